// Pictures in memory, and the integer-exact resize that makes the network's input of one, as preprocess.py states it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace edgead {

// Somebody's pixels: channels 1 or 3, side by side; stride in bytes.
struct View {
    const uint8_t *data;
    int width, height, channels;
    ptrdiff_t stride;

    const uint8_t *row(int y) const { return data + y * stride; }
    View cut(int x, int y, int columns, int rows) const {
        return {row(y) + static_cast<ptrdiff_t>(x) * channels, columns, rows, channels, stride};
    }
};

// Own pixels, without gaps.
struct Picture {
    int width = 0, height = 0, channels = 3;
    std::vector<uint8_t> pixels;

    Picture() = default;
    Picture(int columns, int rows, int each)
        : width(columns), height(rows), channels(each),
          pixels(static_cast<size_t>(columns) * static_cast<size_t>(rows) * static_cast<size_t>(each)) {}
    View view() const { return {pixels.data(), width, height, channels, static_cast<ptrdiff_t>(width) * channels}; }
    uint8_t *row(int y) { return pixels.data() + static_cast<size_t>(y) * static_cast<size_t>(width * channels); }
};

// Resize to network size; `swap`: the first and third channel change places. out: (height, width, 3) RGB.
void resize(const View &picture, int height, int width, bool swap, uint8_t *out);

// Convert a part of a limited-range NV12 frame: (rows, columns, 3) RGB, as nv12.py.
struct Nv12 {
    const uint8_t *luma, *chroma;
    ptrdiff_t stride, chroma_stride;
    bool bt709;
};
Picture nv12_to_rgb(const Nv12 &frame, int x, int y, int columns, int rows);

}  // namespace edgead
