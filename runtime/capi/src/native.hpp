// Native code for the part of a graph on which a CPU spends most; the C sources are those of runtime/backends/native.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace edgead {

// Memory that starts at a cache line: a vector across two of them costs two reads.
template <typename T> class Aligned {
  public:
    Aligned() = default;
    Aligned(Aligned &&) = default;
    Aligned &operator=(Aligned &&) = default;
    explicit Aligned(size_t count) : bytes_(count * sizeof(T) + 64), count_(count) {
        start_ = bytes_.data() + (64 - reinterpret_cast<uintptr_t>(bytes_.data()) % 64) % 64;
    }
    T *data() { return count_ ? reinterpret_cast<T *>(start_) : nullptr; }
    const T *data() const { return count_ ? reinterpret_cast<const T *>(start_) : nullptr; }
    size_t size() const { return count_; }
    T &operator[](size_t at) { return data()[at]; }

  private:
    std::vector<uint8_t> bytes_;
    uint8_t *start_ = nullptr;
    size_t count_ = 0;
};

// An array of a bundle, mapped from its file.
class Constant {
  public:
    // Raises a Failure where the file is missing or smaller than the shape says.
    Constant(const std::string &path, bool half, std::vector<size_t> shape);
    ~Constant();
    Constant(const Constant &) = delete;
    Constant &operator=(const Constant &) = delete;

    const std::vector<size_t> &shape() const { return shape_; }
    bool half() const { return half_; }  // float16 instead of float32
    float at(size_t index) const;
    const float *floats() const { return static_cast<const float *>(data_); }

  private:
    void *data_ = nullptr;
    size_t bytes_ = 0;
    bool half_;
    std::vector<size_t> shape_;
};

using Constants = std::map<std::string, std::unique_ptr<Constant>>;

// Features of images, and the steps between locations and channels, in floats.
struct Features {
    const float *values;
    int locations, channels;
    ptrdiff_t location, channel;
};

class NativeCode {
  public:
    virtual ~NativeCode() = default;
    // Write the distance of each location of one image; raises a Failure where memory is short.
    virtual void distances(const Features &features, float *out) = 0;
    virtual std::string describe() const = 0;
};

// Whether this processor has an instruction set of the search, plain C aside.
bool search_supported();

// Distances to the nearest row of the constant "keys"; raises std::invalid_argument where it does not fit.
std::unique_ptr<NativeCode> open_search(const Constants &constants, int channels, int threads);

// Distances to the Gaussian of each location; raises std::invalid_argument where the constants do not fit.
struct GaussianForm {
    int locations, channels;
    bool triangular;
    int bits;
};
std::unique_ptr<NativeCode> open_gaussians(const Constants &constants, GaussianForm form, int threads);

}  // namespace edgead
