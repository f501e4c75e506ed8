// Constants mapped, and the search run by several threads.
#include "native.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "failure.hpp"
#include "knn_bank.hpp"
#include "workers.hpp"

extern "C" {
const InstructionSet *edgead_knn_set(int index);
int edgead_knn_supported(int index);
int edgead_knn(int set, const Bank *bank, const float *queries, int count, float *distances);
}

namespace edgead {

namespace {

constexpr int MOST_CHANNELS = 2048;  // sums of products of bytes stay within 32 bits up to here

// The fastest instruction set that this processor has, -1 where there is only plain C, which is slower than the graph.
int find_set() {
    for (int index = 0; edgead_knn_set(index + 1); index++)
        if (edgead_knn_supported(index)) return index;
    return -1;
}

float from_half(uint16_t half) {
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    const float value = exponent == 31 ? (fraction ? NAN : INFINITY)
                        : exponent     ? std::ldexp(static_cast<float>(1024 + fraction), exponent - 25)
                                       : std::ldexp(static_cast<float>(fraction), -24);
    return half & 0x8000 ? -value : value;
}

class Search : public NativeCode {
  public:
    Search(const Constant &keys, int channels, int threads) : set_(find_set()), channels_(channels), workers_(threads) {
        packed_ = pack_bank(keys.floats(), channels, static_cast<int>(keys.shape()[1]), *edgead_knn_set(set_));
    }

    void distances(const Features &features, float *out) override {
        const auto count = static_cast<size_t>(features.locations), width = static_cast<size_t>(channels_);
        const float *rows = features.values;
        if (features.channels != channels_)
            fail(EDGEAD_BACKEND_FAILED, "the network gave " + std::to_string(features.channels) +
                                            " channels, its memory bank has " + std::to_string(channels_));
        if (features.channel != 1 || features.location != channels_) {
            gathered_.resize(count * width);
            for (size_t i = 0; i < count; i++)
                for (size_t c = 0; c < width; c++)
                    gathered_[i * width + c] = features.values[static_cast<ptrdiff_t>(i) * features.location +
                                                               static_cast<ptrdiff_t>(c) * features.channel];
            rows = gathered_.data();
        }
        std::atomic<bool> failed{false};
        workers_.share(features.locations, [&](int start, int end) {
            const float *part = rows + static_cast<size_t>(start) * width;
            if (edgead_knn(set_, &packed_->bank, part, end - start, out + start)) failed = true;
        });
        if (failed) fail(EDGEAD_OUT_OF_MEMORY, "the search in the memory bank ran out of memory");
    }

    std::string describe() const override { return std::string("native search (") + edgead_knn_set(set_)->name + ")"; }

  private:
    int set_, channels_;
    std::unique_ptr<PackedBank> packed_;
    std::vector<float> gathered_;
    Workers workers_;
};

}  // namespace

Constant::Constant(const std::string &path, bool half, std::vector<size_t> shape) : half_(half), shape_(std::move(shape)) {
    bytes_ = half ? 2 : 4;
    for (size_t size : shape_) {
        if (size > (size_t{1} << 46) / bytes_) throw std::invalid_argument("an array that is too large");
        bytes_ *= size;
    }
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat status;
    const bool enough = file >= 0 && !fstat(file, &status) && static_cast<uint64_t>(status.st_size) >= bytes_;
    data_ = enough ? mmap(nullptr, bytes_, PROT_READ, MAP_PRIVATE, file, 0) : MAP_FAILED;
    if (file >= 0) close(file);
    if (data_ == MAP_FAILED) throw std::invalid_argument("a file that is missing or smaller than its shape");
}

Constant::~Constant() { munmap(data_, bytes_); }

float Constant::at(size_t index) const {
    if (!half_) return floats()[index];
    return from_half(static_cast<const uint16_t *>(data_)[index]);
}

bool search_supported() { return find_set() >= 0; }

std::unique_ptr<NativeCode> open_search(const Constants &constants, int channels, int threads) {
    const auto found = constants.find("keys");
    if (found == constants.end()) throw std::invalid_argument("'keys'");
    const Constant &keys = *found->second;
    const auto &shape = keys.shape();
    const bool fits = !keys.half() && shape.size() == 2 && shape[0] == static_cast<size_t>(channels) + 1 &&
                      channels >= 1 && channels <= MOST_CHANNELS && shape[1] <= 1u << 30;
    if (!fits) throw std::invalid_argument("keys of another shape for " + std::to_string(channels) + " channels");
    return std::make_unique<Search>(keys, channels, threads);
}

}  // namespace edgead
