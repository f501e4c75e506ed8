// Threads that share a number of items; the calling one is one of them.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace edgead {

class Workers {
  public:
    explicit Workers(int threads);
    ~Workers();
    Workers(const Workers &) = delete;
    Workers &operator=(const Workers &) = delete;

    // Call task(start, end) for parts of the count, and return when all are done. The task must not throw.
    void share(int count, const std::function<void(int, int)> &task);

  private:
    void work(int number);

    std::mutex mutex_;
    std::condition_variable begin_, done_;
    const std::function<void(int, int)> *task_ = nullptr;
    int count_ = 0, parts_ = 1, left_ = 0;
    uint64_t round_ = 0;
    bool end_ = false;
    std::vector<std::thread> threads_;
};

}  // namespace edgead
