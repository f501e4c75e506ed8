// Threads that wait for the next round of work.
#include "workers.hpp"

namespace edgead {

Workers::Workers(int threads) : parts_(threads) {
    try {
        for (int number = 1; number < threads; number++) threads_.emplace_back([this, number] { work(number); });
    } catch (...) {
        // The system has no more threads; those that are there do all.
        parts_ = static_cast<int>(threads_.size()) + 1;
    }
}

Workers::~Workers() {
    {
        const std::lock_guard<std::mutex> guard(mutex_);
        end_ = true;
    }
    begin_.notify_all();
    for (auto &thread : threads_) thread.join();
}

void Workers::share(int count, const std::function<void(int, int)> &task) {
    const auto bound = [&](int part) { return static_cast<int>(static_cast<int64_t>(count) * part / parts_); };
    {
        const std::lock_guard<std::mutex> guard(mutex_);
        task_ = &task, count_ = count, left_ = static_cast<int>(threads_.size());
        round_++;
    }
    begin_.notify_all();
    if (bound(0) < bound(1)) task(bound(0), bound(1));
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return left_ == 0; });
}

void Workers::work(int number) {
    for (uint64_t seen = 0;;) {
        std::unique_lock<std::mutex> lock(mutex_);
        begin_.wait(lock, [&] { return end_ || round_ != seen; });
        if (end_) return;
        seen = round_;
        const auto *task = task_;
        const int start = static_cast<int>(static_cast<int64_t>(count_) * number / parts_);
        const int stop = static_cast<int>(static_cast<int64_t>(count_) * (number + 1) / parts_);
        lock.unlock();
        if (start < stop) (*task)(start, stop);
        lock.lock();
        if (--left_ == 0) done_.notify_one();
    }
}

}  // namespace edgead
