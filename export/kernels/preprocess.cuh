// The resize from frame to network input, rule `reduce-bilinear/1` of runtime/imaging/preprocess.py, byte for byte.
//
// NV12 is converted pixel by pixel on the way in, as runtime/imaging/nv12.py does; no RGB frame is ever written.
//
// Blocks of whole pixels are averaged first, then a triangle filter with 22-bit weights does the rest, rows before
// columns, each pass rounded to 8 bits. Pixels are integers throughout. Weights are computed in FP64 as Python does, one
// rounding an operation: a fused multiply-add would change the last bit of some, and with it a pixel.
#pragma once

#include "port.cuh"

namespace edgead {

constexpr int kResizeThreads = 256;
constexpr int kResizeTaps = 5;  // the filter shrinks by less than 2: never more
constexpr int kWeightBits = 22;

// Order of a frame's channels. Grey has one; the network's input has three equal ones then.
enum class FrameLayout : int { kRgb, kBgr, kGray };

// Weights of BT.601 and BT.709 for limited range, in units of 2^-16: runtime/imaging/nv12.py has the formula.
constexpr int kNv12Bits = 16;
struct Nv12Weights {
  int y, rv, gu, gv, bu;
};
__device__ __forceinline__ Nv12Weights nv12_weights(int standard) {
  return standard == 0 ? Nv12Weights{76309, 104597, 25675, 53279, 132201} : Nv12Weights{76309, 117489, 13975, 34925, 138438};
}

// One output pixel's share of a line: `count` source pixels from `first` on.
struct ResizeTaps {
  int first;
  int count;
  int weight[kResizeTaps];
};

__host__ __device__ constexpr int resize_factor(int source, int target) {
  return source / target > 1 ? source / target : 1;
}

// Pixels that are left of a side after stage 1.
__host__ __device__ constexpr int reduced_size(int source, int target) {
  return (source + resize_factor(source, target) - 1) / resize_factor(source, target);
}

__device__ __forceinline__ uint8_t to_byte(int value) {
  return static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

// Weights along one side; grid = ceil(target / 256). Once for a size of frames, not for each frame.
__global__ void __launch_bounds__(kResizeThreads) resize_taps(int source, int target, ResizeTaps* __restrict__ taps) {
  const int index = blockIdx.x * kResizeThreads + threadIdx.x;
  if (index >= target) return;
  const int factor = resize_factor(source, target);
  const int left = reduced_size(source, target);
  const double extent = static_cast<double>(source) / factor;
  ResizeTaps found = {};
  if (left == target && extent == left) {
    found.first = index;
    found.count = 1;
    found.weight[0] = 1 << kWeightBits;
    taps[index] = found;
    return;
  }
  const double scale = static_cast<double>(static_cast<float>(extent)) / target;
  const double support = scale > 1.0 ? scale : 1.0;
  const double center = exact_multiply(index + 0.5, scale);
  const int first = static_cast<int>(exact_add(exact_add(center, -support), 0.5));
  const int last = static_cast<int>(exact_add(exact_add(center, support), 0.5));
  found.first = first > 0 ? first : 0;
  found.count = (last < left ? last : left) - found.first;
  const double inverse = 1.0 / support;
  double weight[kResizeTaps] = {};
  double total = 0.0;
#pragma unroll
  for (int i = 0; i < kResizeTaps; ++i) {
    const double away = exact_multiply(exact_add(exact_add(found.first + i, -center), 0.5), inverse);
    const double near = exact_add(1.0, -fabs(away));
    weight[i] = i < found.count && near > 0.0 ? near : 0.0;
    total = exact_add(total, weight[i]);  // in this order: the sum decides the last bit
  }
#pragma unroll
  for (int i = 0; i < kResizeTaps; ++i) {
    found.weight[i] = static_cast<int>(floor(exact_add(exact_multiply(weight[i] / total, 1 << kWeightBits), 0.5)));
  }
  taps[index] = found;
}

// Frames as they come: `add` puts a pixel's channels onto three sums.
struct PackedFrame {
  const uint8_t* pixels;
  int pitch;  // bytes from line to line
  int channels;

  __device__ __forceinline__ void add(int64_t (&sum)[3], int y, int x) const {
    const uint8_t* pixel = pixels + static_cast<size_t>(y) * pitch + x * channels;
#pragma unroll
    for (int channel = 0; channel < 3; ++channel) {
      if (channel < channels) sum[channel] += pixel[channel];
    }
  }
};

struct Nv12Frame {
  const uint8_t* luma;
  int luma_pitch;
  const uint8_t* chroma;  // U before V, a pair for 2 x 2 pixels
  int chroma_pitch;
  Nv12Weights weight;

  __device__ __forceinline__ void add(int64_t (&sum)[3], int y, int x) const {
    const uint8_t* pair = chroma + static_cast<size_t>(y / 2) * chroma_pitch + x / 2 * 2;
    const int u = pair[0] - 128;
    const int v = pair[1] - 128;
    const int light = weight.y * (luma[static_cast<size_t>(y) * luma_pitch + x] - 16) + (1 << (kNv12Bits - 1));
    sum[0] += to_byte((light + weight.rv * v) >> kNv12Bits);
    sum[1] += to_byte((light - weight.gu * u - weight.gv * v) >> kNv12Bits);
    sum[2] += to_byte((light + weight.bu * u) >> kNv12Bits);
  }
};

// Stage 1, and the pass along rows: one thread a pixel of the reduced rows at the target's width.
template <class Frame>
__device__ __forceinline__ void resize_row_pixel(const Frame& frame, int source_height, int source_width, int channels,
                                                 const ResizeTaps* __restrict__ taps, int height, int width,
                                                 uint8_t* __restrict__ middle) {
  const int pixel = blockIdx.x * kResizeThreads + threadIdx.x;
  if (pixel >= reduced_size(source_height, height) * width) return;
  const int factor_y = resize_factor(source_height, height);
  const int factor_x = resize_factor(source_width, width);
  const int top = pixel / width * factor_y;
  const int bottom = top + factor_y < source_height ? top + factor_y : source_height;
  const ResizeTaps tap = taps[pixel % width];
  int sum[3] = {1 << (kWeightBits - 1), 1 << (kWeightBits - 1), 1 << (kWeightBits - 1)};
#pragma unroll
  for (int i = 0; i < kResizeTaps; ++i) {
    if (i >= tap.count) continue;  // with a constant number of turns the weights stay in registers
    const int left = (tap.first + i) * factor_x;
    const int right = left + factor_x < source_width ? left + factor_x : source_width;
    const int area = (bottom - top) * (right - left);
    // 2^32 / (256 area) in FP32, cut off: what Pillow does.
    const int64_t reciprocal = static_cast<int64_t>(4294967296.0f / static_cast<float>(256 * area));
    int64_t block[3] = {area / 2, area / 2, area / 2};
    for (int y = top; y < bottom; ++y) {
      for (int x = left; x < right; ++x) frame.add(block, y, x);
    }
#pragma unroll
    for (int channel = 0; channel < 3; ++channel) {
      const int mean = static_cast<int>(area == 1 ? block[channel] : (block[channel] * reciprocal) >> 24);
      sum[channel] += tap.weight[i] * mean;
    }
  }
#pragma unroll
  for (int channel = 0; channel < 3; ++channel) {
    if (channel < channels) {
      middle[static_cast<size_t>(pixel) * channels + channel] = to_byte(sum[channel] >> kWeightBits);
    }
  }
}

//   frame   (source_height, pitch bytes): channels interleaved
//   taps    of the width
//   middle  (reduced_size(source_height, height), width, channels)
// grid = ceil(reduced height * width / 256).
__global__ void __launch_bounds__(kResizeThreads, 3)
    resize_rows(const uint8_t* __restrict__ frame, int pitch, int source_height, int source_width, int channels,
                const ResizeTaps* __restrict__ taps, int height, int width, uint8_t* __restrict__ middle) {
  const PackedFrame source{frame, pitch, channels};
  resize_row_pixel(source, source_height, source_width, channels, taps, height, width, middle);
}

// The same of an NV12 frame; middle is RGB.
//   luma      (source_height, luma_pitch bytes); chroma (ceil(source_height / 2), chroma_pitch bytes)
//   standard  0 for BT.601, else BT.709; limited range
__global__ void __launch_bounds__(kResizeThreads, 3)
    resize_rows_nv12(const uint8_t* __restrict__ luma, int luma_pitch, const uint8_t* __restrict__ chroma,
                     int chroma_pitch, int standard, int source_height, int source_width,
                     const ResizeTaps* __restrict__ taps, int height, int width, uint8_t* __restrict__ middle) {
  const Nv12Frame source{luma, luma_pitch, chroma, chroma_pitch, nv12_weights(standard)};
  resize_row_pixel(source, source_height, source_width, 3, taps, height, width, middle);
}

// The pass along columns, and the order of channels: one thread a pixel of the result.
//   taps   of the height
//   image  (height, width, 3) uint8 RGB
// grid = ceil(height * width / 256).
__global__ void __launch_bounds__(kResizeThreads)
    resize_columns(const uint8_t* __restrict__ middle, int layout, const ResizeTaps* __restrict__ taps, int height,
                   int width, uint8_t* __restrict__ image) {
  const int pixel = blockIdx.x * kResizeThreads + threadIdx.x;
  if (pixel >= height * width) return;
  const bool gray = layout == static_cast<int>(FrameLayout::kGray);
  const int channels = gray ? 1 : 3;
  const ResizeTaps tap = taps[pixel / width];
  for (int channel = 0; channel < 3; ++channel) {
    const int source = gray ? 0 : layout == static_cast<int>(FrameLayout::kBgr) ? 2 - channel : channel;
    int sum = 1 << (kWeightBits - 1);
#pragma unroll
    for (int i = 0; i < kResizeTaps; ++i) {
      if (i >= tap.count) continue;
      const size_t place = static_cast<size_t>(tap.first + i) * width + pixel % width;
      sum += tap.weight[i] * middle[place * channels + source];
    }
    image[static_cast<size_t>(pixel) * 3 + channel] = to_byte(sum >> kWeightBits);
  }
}

}  // namespace edgead
