// Handles: numbers that are never used twice, so that one that was closed is known as such.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>

namespace edgead {

template <typename T> class Handles {
  public:
    // tag: kept in the lowest bits, so that handles of two kinds differ.
    explicit Handles(uint64_t tag) : next_(TAGS + tag) {}

    uint64_t put(std::shared_ptr<T> object) {
        const std::lock_guard<std::mutex> guard(mutex_);
        const uint64_t handle = next_;
        objects_.emplace(handle, std::move(object));
        next_ += TAGS;
        return handle;
    }

    // Empty where there is none.
    std::shared_ptr<T> get(uint64_t handle) {
        const std::lock_guard<std::mutex> guard(mutex_);
        const auto found = objects_.find(handle);
        return found == objects_.end() ? nullptr : found->second;
    }

    std::shared_ptr<T> take(uint64_t handle) {
        const std::lock_guard<std::mutex> guard(mutex_);
        const auto found = objects_.find(handle);
        if (found == objects_.end()) return nullptr;
        std::shared_ptr<T> object = std::move(found->second);
        objects_.erase(found);
        return object;
    }

  private:
    static constexpr uint64_t TAGS = 16;
    std::mutex mutex_;
    std::unordered_map<uint64_t, std::shared_ptr<T>> objects_;
    uint64_t next_;
};

}  // namespace edgead
