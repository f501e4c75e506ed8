// From the raw anomaly map to what is shown and decided: smoothing, its maximum, and the map at the image's size.
#pragma once

#include "warp.cuh"

namespace edgead {

constexpr int kMapThreads = 256;
constexpr int kMapSharedBytes = kMapThreads / 32 * static_cast<int>(sizeof(float));

// Position in a line of `length` that is mirrored at both ends without repeating the last cell.
__device__ __forceinline__ int mirrored(int position, int length) {
  if (position < 0) position = -position;
  return position < length ? position : 2 * (length - 1) - position;
}

// Gaussian blur with mirrored borders, and the largest value; one block an image, grid = images.
//   maps      (images, height, width)
//   weights   (2 radius + 1, 2 radius + 1); radius is smaller than either side
//   smoothed  (images, height, width); score (images), NaN if any cell is
__global__ void __launch_bounds__(kMapThreads)
    map_smooth(const float* __restrict__ maps, int height, int width, const float* __restrict__ weights, int radius,
               float* __restrict__ smoothed, float* __restrict__ score) {
  EDGEAD_SHARED(float, partial);
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int cells = height * width;
  const float* map = maps + static_cast<size_t>(blockIdx.x) * cells;
  float* target = smoothed + static_cast<size_t>(blockIdx.x) * cells;
  const float lowest = __uint_as_float(0xff800000u);  // -Inf
  float largest = lowest;
  for (int cell = threadIdx.x; cell < cells; cell += kMapThreads) {
    float sum = 0.0f;
    for (int i = -radius; i <= radius; ++i) {
      const float* line = map + mirrored(cell / width + i, height) * width;
      const float* weight = weights + (i + radius) * (2 * radius + 1) + radius;
      for (int j = -radius; j <= radius; ++j) sum += weight[j] * line[mirrored(cell % width + j, width)];
    }
    target[cell] = sum;
    if (!(sum <= largest)) largest = largest != largest ? largest : sum;  // NaN wins and stays
  }
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) {
    const float other = __shfl_xor_sync(kWholeWarp, largest, offset);
    if (!(other <= largest)) largest = largest != largest ? largest : other;
  }
  if (lane == 0) partial[warp] = largest;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kMapThreads / 32; ++i) {
    if (!(partial[i] <= largest)) largest = largest != largest ? largest : partial[i];
  }
  score[blockIdx.x] = largest;
}

// The cell before a pixel of a line that is stretched from `length` to `size`, and the way from it to the next.
struct MapPosition {
  int near, far;
  float weight;
};

__device__ __forceinline__ MapPosition map_position(int index, int length, int size) {
  if (length == size) return {index, index, 0.0f};
  const double exact = exact_add(exact_multiply(index + 0.5, static_cast<double>(length) / size), -0.5);
  const double position = exact > 0.0 ? exact : 0.0;
  const int whole = static_cast<int>(position);
  const int near = whole < length - 1 ? whole : length - 1;
  return {near, near < length - 1 ? near + 1 : near, static_cast<float>(exact_add(position, -near))};
}

// Bilinear resize with half-pixel centres, columns first, as runtime/imaging/anomaly_map.py does; one thread a pixel.
//   maps (images, map_height, map_width) -> resized (images, height, width); grid = (ceil(height * width / 256), images)
__global__ void __launch_bounds__(kMapThreads)
    map_resize(const float* __restrict__ maps, int map_height, int map_width, int height, int width,
               float* __restrict__ resized) {
  const int pixel = blockIdx.x * kMapThreads + threadIdx.x;
  if (pixel >= height * width) return;
  const float* map = maps + static_cast<size_t>(blockIdx.y) * map_height * map_width;
  const MapPosition row = map_position(pixel / width, map_height, height);
  const MapPosition column = map_position(pixel % width, map_width, width);
  float across[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float* line = map + static_cast<size_t>(i == 0 ? row.near : row.far) * map_width;
    // near + (far - near) * weight: a constant map stays constant to the last bit.
    across[i] = exact_add(line[column.near], exact_multiply(exact_add(line[column.far], -line[column.near]), column.weight));
  }
  resized[(static_cast<size_t>(blockIdx.y) * height * width) + pixel] =
      exact_add(across[0], exact_multiply(exact_add(across[1], -across[0]), row.weight));
}

constexpr int kRegionSharedBytes = kMapThreads / 32 * static_cast<int>(sizeof(int) + sizeof(float));

// The largest value of all threads, for all of them; partial has a place a warp. Everybody's writes are seen after it.
template <class Value>
__device__ __forceinline__ Value block_max(Value value, Value* partial) {
  value = warp_max(value);
  if ((threadIdx.x & 31) == 0) partial[threadIdx.x >> 5] = value;
  __syncthreads();
  value = partial[0];
  for (int i = 1; i < kMapThreads / 32; ++i) value = partial[i] > value ? partial[i] : value;
  // The next maximum goes where this one was read.
  __syncthreads();
  return value;
}

// 8-connected regions of cells above a threshold, as `find_regions` of runtime/imaging/anomaly_map.py; one block an image.
//   maps    (images, height, width); NaN is above nothing
//   labels  (images, 2, height * width) scratch
//   boxes   (images, capacity, 4): top, left, bottom, right, half-open; regions by their first cell, row by row
//   peaks   (images, capacity): largest value of each region
//   counts  (images): how many there are, which may be more than `capacity`; the first ones are kept
// grid = images.
__global__ void __launch_bounds__(kMapThreads)
    map_regions(const float* __restrict__ maps, int height, int width, float threshold, int* labels, int capacity,
                int* __restrict__ boxes, float* __restrict__ peaks, int* __restrict__ counts) {
  EDGEAD_SHARED(int, partial);
  float* partial_peak = reinterpret_cast<float*>(partial + kMapThreads / 32);
  const int cells = height * width;
  const float* map = maps + static_cast<size_t>(blockIdx.x) * cells;
  int* current = labels + static_cast<size_t>(blockIdx.x) * 2 * cells;
  int* next = current + cells;
  for (int cell = threadIdx.x; cell < cells; cell += kMapThreads) current[cell] = map[cell] > threshold ? cell : -1;
  __syncthreads();

  // A label is a cell of the region and falls until it is the first one: to the least around, and to that cell's own.
  int moved = 1;
  while (moved) {
    moved = 0;
    for (int cell = threadIdx.x; cell < cells; cell += kMapThreads) {
      const int own = current[cell];
      int least = own;
      if (own >= 0) {
        for (int i = -1; i <= 1; ++i) {
          for (int j = -1; j <= 1; ++j) {
            const int row = cell / width + i;
            const int column = cell % width + j;
            if (row < 0 || row >= height || column < 0 || column >= width) continue;
            const int label = current[row * width + column];
            if (label >= 0 && label < least) least = label;
          }
        }
        least = current[least];
        if (least != own) moved = 1;
      }
      next[cell] = least;
    }
    moved = block_max(moved, partial);
    int* const last = current;
    current = next;
    next = last;
  }

  int previous = -1;
  int count = 0;
  for (;;) {
    int root = cells;
    for (int cell = threadIdx.x; cell < cells; cell += kMapThreads) {
      if (current[cell] == cell && cell > previous && cell < root) root = cell;
    }
    root = -block_max(-root, partial);
    if (root == cells) break;
    if (count < capacity) {
      int top = height, left = width, bottom = 0, right = 0;
      float peak = __uint_as_float(0xff800000u);  // -Inf
      for (int cell = threadIdx.x; cell < cells; cell += kMapThreads) {
        if (current[cell] != root) continue;
        const int row = cell / width;
        const int column = cell % width;
        top = row < top ? row : top;
        left = column < left ? column : left;
        bottom = row + 1 > bottom ? row + 1 : bottom;
        right = column + 1 > right ? column + 1 : right;
        peak = map[cell] > peak ? map[cell] : peak;
      }
      top = -block_max(-top, partial);
      left = -block_max(-left, partial);
      bottom = block_max(bottom, partial);
      right = block_max(right, partial);
      peak = block_max(peak, partial_peak);
      if (threadIdx.x == 0) {
        const size_t place = static_cast<size_t>(blockIdx.x) * capacity + count;
        int* box = boxes + place * 4;
        box[0] = top;
        box[1] = left;
        box[2] = bottom;
        box[3] = right;
        peaks[place] = peak;
      }
    }
    previous = root;
    ++count;
  }
  if (threadIdx.x == 0) counts[blockIdx.x] = count;
}

}  // namespace edgead
