// Blocks averaged, triangles filtered, NV12 converted: integers alone.
#include "picture.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "processor.h"

// A loop over plain integers, once for every processor and once for wider registers: the same result, in less time.
#if defined(__x86_64__)
#define EDGEAD_WIDE(name, parameters, arguments)                                                           \
    __attribute__((target("avx2"))) inline void name##_avx2 parameters { name##_anywhere arguments; }       \
    inline void name parameters { has_avx2() ? name##_avx2 arguments : name##_anywhere arguments; }
#else
#define EDGEAD_WIDE(name, parameters, arguments) \
    inline void name parameters { name##_anywhere arguments; }
#endif

namespace edgead {

namespace {

constexpr int WEIGHT_BITS = 22;

#if defined(__x86_64__)
bool has_avx2() {
    static const bool found = processor_features() & HAS_AVX2;
    return found;
}
#endif

int factor(int source, int target) { return std::max(1, source / target); }

// The 24-bit reciprocal that turns a block's sum into its mean; taken in float32 and truncated, as Pillow does.
uint64_t reciprocal(int64_t area) {
    return static_cast<uint64_t>(4294967296.0f / static_cast<float>(256 * area));
}

inline __attribute__((always_inline)) void add_short_anywhere(const uint8_t *row, uint16_t *sums, size_t count) {
    for (size_t i = 0; i < count; i++) sums[i] = static_cast<uint16_t>(sums[i] + row[i]);
}
inline __attribute__((always_inline)) void add_long_anywhere(const uint8_t *row, uint32_t *sums, size_t count) {
    for (size_t i = 0; i < count; i++) sums[i] += row[i];
}
EDGEAD_WIDE(add_short, (const uint8_t *row, uint16_t *sums, size_t count), (row, sums, count))
EDGEAD_WIDE(add_long, (const uint8_t *row, uint32_t *sums, size_t count), (row, sums, count))
void add_row(const uint8_t *row, uint16_t *sums, size_t count) { add_short(row, sums, count); }
void add_row(const uint8_t *row, uint32_t *sums, size_t count) { add_long(row, sums, count); }

// Means of blocks of `across` columns from the sums of `rows` rows.
template <typename Sum, int C> void average_row(const Sum *sums, int columns, int across, int rows, uint8_t *out) {
    const int whole = columns / across;
    const auto mean = [rows](int block, const Sum *at, uint8_t *into) {
        const uint64_t area = static_cast<uint64_t>(block) * static_cast<uint64_t>(rows), times = reciprocal(static_cast<int64_t>(area));
        uint64_t total[C] = {0};
        for (int i = 0; i < block; i++)
            for (int c = 0; c < C; c++) total[c] += at[i * C + c];
        for (int c = 0; c < C; c++) into[c] = static_cast<uint8_t>((total[c] + area / 2) * times >> 24);
    };
    const uint64_t area = static_cast<uint64_t>(across) * static_cast<uint64_t>(rows), times = reciprocal(static_cast<int64_t>(area));
    for (int block = 0; block < whole; block++, sums += across * C, out += C) {
        uint32_t total[C] = {0};
        for (int i = 0; i < across; i++)
            for (int c = 0; c < C; c++) total[c] += sums[i * C + c];
        for (int c = 0; c < C; c++) out[c] = static_cast<uint8_t>((total[c] + area / 2) * times >> 24);
    }
    if (columns % across) mean(columns % across, sums, out);
}

template <typename Sum> Picture reduce_as(const View &from, int down, int across) {
    const int height = (from.height + down - 1) / down, width = (from.width + across - 1) / across;
    Picture made(width, height, from.channels);
    std::vector<Sum> sums(static_cast<size_t>(from.width) * static_cast<size_t>(from.channels));
    for (int y = 0; y < height; y++) {
        const int first = y * down, rows = std::min(down, from.height - first);
        std::fill(sums.begin(), sums.end(), Sum{0});
        for (int i = 0; i < rows; i++) add_row(from.row(first + i), sums.data(), sums.size());
        if (from.channels == 3) {
            average_row<Sum, 3>(sums.data(), from.width, across, rows, made.row(y));
        } else {
            average_row<Sum, 1>(sums.data(), from.width, across, rows, made.row(y));
        }
    }
    return made;
}

Picture reduce(const View &from, int down, int across) {
    return down <= 257 ? reduce_as<uint16_t>(from, down, across) : reduce_as<uint32_t>(from, down, across);
}

// What of the source each place of the target is made of.
struct Filter {
    struct Place {
        int first, count, start;
    };
    std::vector<Place> places;
    std::vector<int32_t> weights;
};

Filter bilinear(int source, double extent, int target) {
    Filter filter;
    const double scale = static_cast<double>(static_cast<float>(extent)) / target;
    const double support = std::max(scale, 1.0), inverse = 1.0 / support;
    std::vector<double> weights;
    for (int index = 0; index < target; index++) {
        const double center = (index + 0.5) * scale;
        const int first = std::max(static_cast<int>(center - support + 0.5), 0);
        const int last = std::min(static_cast<int>(center + support + 0.5), source);
        weights.clear();
        double total = 0.0;  // in this order: the sum decides the last bit
        for (int at = first; at < last; at++) {
            weights.push_back(std::max(0.0, 1.0 - std::fabs((at - center + 0.5) * inverse)));
            total += weights.back();
        }
        filter.places.push_back({first, last - first, static_cast<int>(filter.weights.size())});
        for (double weight : weights)
            filter.weights.push_back(static_cast<int32_t>(std::floor(weight / total * (1 << WEIGHT_BITS) + 0.5)));
    }
    return filter;
}

uint8_t rounded(int32_t sum) { return static_cast<uint8_t>(std::clamp(sum >> WEIGHT_BITS, 0, 255)); }

template <int C> void across_row(const uint8_t *from, const Filter &filter, uint8_t *out) {
    for (const auto &place : filter.places) {
        const uint8_t *at = from + static_cast<ptrdiff_t>(place.first) * C;
        const int32_t *weights = filter.weights.data() + place.start;
        int32_t sums[C];
        for (int c = 0; c < C; c++) sums[c] = 1 << (WEIGHT_BITS - 1);
        for (int i = 0; i < place.count; i++)
            for (int c = 0; c < C; c++) sums[c] += weights[i] * at[i * C + c];
        for (int c = 0; c < C; c++) *out++ = rounded(sums[c]);
    }
}

Picture resize_across(const View &from, double extent, int width) {
    const Filter filter = bilinear(from.width, extent, width);
    Picture made(width, from.height, from.channels);
    for (int y = 0; y < from.height; y++) {
        if (from.channels == 3) {
            across_row<3>(from.row(y), filter, made.row(y));
        } else {
            across_row<1>(from.row(y), filter, made.row(y));
        }
    }
    return made;
}

inline __attribute__((always_inline)) void add_weighted_anywhere(const uint8_t *row, int32_t weight, int32_t *sums, size_t count) {
    for (size_t i = 0; i < count; i++) sums[i] += weight * row[i];
}
EDGEAD_WIDE(add_weighted, (const uint8_t *row, int32_t weight, int32_t *sums, size_t count), (row, weight, sums, count))

Picture resize_down(const View &from, double extent, int height) {
    const Filter filter = bilinear(from.height, extent, height);
    Picture made(from.width, height, from.channels);
    std::vector<int32_t> sums(static_cast<size_t>(from.width) * static_cast<size_t>(from.channels));
    for (int y = 0; y < height; y++) {
        const auto &place = filter.places[static_cast<size_t>(y)];
        std::fill(sums.begin(), sums.end(), 1 << (WEIGHT_BITS - 1));
        for (int i = 0; i < place.count; i++)
            add_weighted(from.row(place.first + i), filter.weights[static_cast<size_t>(place.start + i)], sums.data(), sums.size());
        std::transform(sums.begin(), sums.end(), made.row(y), rounded);
    }
    return made;
}

}  // namespace

void resize(const View &picture, int height, int width, bool swap, uint8_t *out) {
    const int down = factor(picture.height, height), across = factor(picture.width, width);
    const double tall = static_cast<double>(picture.height) / down, wide = static_cast<double>(picture.width) / across;
    Picture held;
    View now = picture;
    const auto keep = [&](Picture &&made) {
        held = std::move(made);
        now = held.view();
    };
    if (down != 1 || across != 1) keep(reduce(now, down, across));
    if (now.width != width || picture.width % across) keep(resize_across(now, wide, width));
    if (now.height != height || picture.height % down) keep(resize_down(now, tall, height));
    for (int y = 0; y < height; y++) {
        const uint8_t *row = now.row(y);
        const auto count = static_cast<size_t>(width);
        if (now.channels == 3 && !swap) {
            std::memcpy(out, row, 3 * count);
        } else {
            const size_t step = static_cast<size_t>(now.channels), red = swap ? 2 : 0, green = step / 3, blue = step == 3 && !swap ? 2 : 0;
            for (size_t x = 0; x < count; x++)
                out[3 * x] = row[step * x + red], out[3 * x + 1] = row[step * x + green], out[3 * x + 2] = row[step * x + blue];
        }
        out += 3 * count;
    }
}

Picture nv12_to_rgb(const Nv12 &frame, int x, int y, int columns, int rows) {
    // Units of 2^-16; nv12.py has them.
    struct Weights {
        int32_t y, rv, gu, gv, bu;
    };
    const Weights w = frame.bt709 ? Weights{76309, 117489, 13975, 34925, 138438} : Weights{76309, 104597, 25675, 53279, 132201};
    const auto clip = [](int32_t value) { return static_cast<uint8_t>(std::clamp(value >> 16, 0, 255)); };
    Picture made(columns, rows, 3);
    for (int row = 0; row < rows; row++) {
        const uint8_t *luma = frame.luma + (y + row) * frame.stride, *chroma = frame.chroma + ((y + row) / 2) * frame.chroma_stride;
        uint8_t *out = made.row(row);
        for (int column = 0; column < columns; column++, out += 3) {
            const uint8_t *pair = chroma + 2 * ((x + column) / 2);
            const int32_t u = pair[0] - 128, v = pair[1] - 128;
            const int32_t base = w.y * (luma[x + column] - 16) + (1 << 15);
            out[0] = clip(base + w.rv * v);
            out[1] = clip(base - w.gu * u - w.gv * v);
            out[2] = clip(base + w.bu * u);
        }
    }
    return made;
}

}  // namespace edgead
