// Factors packed for mahalanobis.c, and that run by several threads, as mahalanobis.py.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <stdexcept>

#include "failure.hpp"
#include "native.hpp"
#include "workers.hpp"

// As in mahalanobis.c.
extern "C" {
typedef struct {
    const float *mean;
    const void *factors;
    const float *scales;
    const float *precision;
    int32_t lanes, locations, channels, rows;
    int32_t triangular;
} Gaussians;

typedef struct {
    const float *values;
    ptrdiff_t image, location, channel;
    int32_t images;
} Queries;

int edgead_gaussians_supported(int lanes);
int edgead_gaussians(const Gaussians *of, const Queries *given, int first, int end, float *distances);
}

namespace edgead {

namespace {

constexpr int ROWS = 4;  // of a factor that are read together
constexpr float MOST_CODE = 32767.0f;

int most_lanes() {
    for (int lanes : {16, 8})
        if (edgead_gaussians_supported(lanes)) return lanes;
    return 4;
}

const char *vector_name(int lanes) {
    if (lanes == 16) return "AVX-512";
    if (lanes == 8) return "AVX2";
#if defined(__x86_64__)
    return "SSE2";
#elif defined(__aarch64__)
    return "NEON";
#else
    return "four lanes";
#endif
}

// (P, n) as (groups, n, lanes), the last group filled up with zeros.
Aligned<float> pack(const Constant &values, size_t count, size_t width, size_t lanes) {
    Aligned<float> packed((count + lanes - 1) / lanes * width * lanes);
    for (size_t i = 0; i < count; i++)
        for (size_t k = 0; k < width; k++) packed[(i / lanes * width + k) * lanes + i % lanes] = values.at(i * width + k);
    return packed;
}

class LocationDistances : public NativeCode {
  public:
    LocationDistances(const Constants &constants, const GaussianForm &form, int threads)
        : form_(form), lanes_(static_cast<size_t>(most_lanes())), workers_(threads) {
        const Constant &factors = *constants.at("factors");
        const auto locations = static_cast<size_t>(form.locations), channels = static_cast<size_t>(form.channels);
        groups_ = (locations + lanes_ - 1) / lanes_;
        mean_ = pack(*constants.at("mean"), locations, channels, lanes_);
        const auto precision = constants.find("precision");
        if (precision != constants.end()) precision_ = pack(*precision->second, locations, 1, lanes_);
        pack_factors(factors);
        const void *packed = form.bits == 32 ? static_cast<const void *>(floats_.data()) : codes_.data();
        given_ = {mean_.data(),
                  packed,
                  scales_.data(),
                  precision_.data(),
                  static_cast<int32_t>(lanes_),
                  form.locations,
                  form.channels,
                  static_cast<int32_t>(factors.shape()[1]),
                  form.triangular};
    }

    void distances(const Features &features, float *out) override {
        if (features.locations != form_.locations || features.channels != form_.channels)
            fail(EDGEAD_BACKEND_FAILED, "the network gave " + std::to_string(features.locations) + " features of " +
                                            std::to_string(features.channels) + " channels, its Gaussians are for others");
        const Queries queries{features.values, 0, features.location, features.channel, 1};
        std::atomic<bool> failed{false};
        workers_.share(static_cast<int>(groups_), [&](int start, int end) {
            if (edgead_gaussians(&given_, &queries, start, end, out)) failed = true;
        });
        if (failed) fail(EDGEAD_OUT_OF_MEMORY, "the distances to the Gaussians ran out of memory");
    }

    std::string describe() const override {
        return std::string("native Gaussians (") + vector_name(static_cast<int>(lanes_)) +
               (form_.bits == 32 ? "" : ", 16-bit factors") + ")";
    }

  private:
    // A few rows of one location: (ROWS, entries), zeros above the diagonal and behind the last row.
    void read_block(const Constant &factors, size_t location, size_t row, size_t entries, std::vector<float> &into) const {
        const size_t rows = factors.shape()[1], channels = factors.shape()[2];
        std::fill(into.begin(), into.end(), 0.0f);
        for (size_t r = 0; r < ROWS && row + r < rows; r++)
            for (size_t k = 0; k < entries && (!form_.triangular || k <= row + r); k++)
                into[r * entries + k] = factors.at((location * rows + row + r) * channels + k);
    }

    void pack_factors(const Constant &factors) {
        const size_t rows = factors.shape()[1], channels = factors.shape()[2];
        const auto entries_of = [&](size_t row) { return form_.triangular ? std::min(row + ROWS, channels) : channels; };
        size_t most = 0, blocks = 0;
        for (size_t row = 0; row < rows; row += ROWS) most += entries_of(row), blocks++;
        const size_t whole = groups_ * ROWS * most * lanes_;
        if (form_.bits == 32) floats_ = Aligned<float>(whole);
        if (form_.bits == 16) codes_ = Aligned<int16_t>(whole);
        if (form_.bits == 16) scales_ = Aligned<float>(groups_ * ROWS * blocks * lanes_);
        for (size_t location = 0; location < static_cast<size_t>(form_.locations); location++) {
            const size_t group = location / lanes_, lane = location % lanes_;
            size_t start = group * ROWS * most;
            for (size_t row = 0; row < rows; row += ROWS) {
                const size_t entries = entries_of(row);
                std::vector<float> values(ROWS * entries);
                read_block(factors, location, row, entries, values);
                if (form_.bits == 32) {
                    for (size_t k = 0; k < entries; k++)
                        for (size_t r = 0; r < ROWS; r++) floats_[(start + k * ROWS + r) * lanes_ + lane] = values[r * entries + k];
                } else {
                    put_codes(values, entries, (start * lanes_), lane, (group * ROWS * blocks + row) * lanes_ + lane);
                }
                start += ROWS * entries;
            }
        }
        fill_scales(blocks);
    }

    // Whole numbers with a scale for each row; the lanes of two rows that follow each other alternate.
    void put_codes(const std::vector<float> &values, size_t entries, size_t start, size_t lane, size_t scale_at) {
        for (size_t r = 0; r < ROWS; r++) {
            float largest = 0.0f;
            for (size_t k = 0; k < entries; k++) largest = std::max(largest, std::fabs(values[r * entries + k]));
            const float scale = std::max(largest, 1e-30f) / MOST_CODE;
            scales_[scale_at + r * lanes_] = scale;
            for (size_t k = 0; k < entries; k++)
                codes_[start + ((k * ROWS / 2 + r / 2) * lanes_ + lane) * 2 + r % 2] =
                    static_cast<int16_t>(std::nearbyint(values[r * entries + k] / scale));
        }
    }

    // Of what fills up the last group.
    void fill_scales(size_t blocks) {
        for (size_t location = static_cast<size_t>(form_.locations); scales_.size() && location < groups_ * lanes_; location++)
            for (size_t r = 0; r < ROWS * blocks; r++)
                scales_[(location / lanes_ * ROWS * blocks + r) * lanes_ + location % lanes_] = 1e-30f / MOST_CODE;
    }

    GaussianForm form_;
    size_t lanes_, groups_ = 0;
    Aligned<float> mean_, precision_, floats_, scales_;
    Aligned<int16_t> codes_;
    Gaussians given_{};
    Workers workers_;
};

}  // namespace

std::unique_ptr<NativeCode> open_gaussians(const Constants &constants, GaussianForm form, int threads) {
    const auto mean = constants.find("mean"), factors = constants.find("factors"), precision = constants.find("precision");
    if (mean == constants.end() || factors == constants.end()) throw std::invalid_argument("no mean or no factors");
    const auto locations = static_cast<size_t>(form.locations), channels = static_cast<size_t>(form.channels);
    const auto &of_mean = mean->second->shape(), &of_factors = factors->second->shape();
    const bool fits = of_mean == std::vector<size_t>{locations, channels} && of_factors.size() == 3 &&
                      of_factors[0] == locations && of_factors[2] == channels &&
                      (precision == constants.end() || precision->second->shape() == std::vector<size_t>{locations}) &&
                      (!form.triangular || of_factors[1] == channels) && of_factors[1] <= 1u << 20;
    if (!fits)
        throw std::invalid_argument("another shape for " + std::to_string(locations) + " locations of " +
                                    std::to_string(channels) + " channels");
    return std::make_unique<LocationDistances>(constants, form, threads);
}

}  // namespace edgead
