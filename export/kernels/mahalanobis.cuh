// Mahalanobis distance of each patch to the Gaussian of its location, or to the nearest of those in a window around it.
//
// What costs is reading the factors: a location's is used for one patch a frame and read from memory each time. So a block
// is a location, its factor is read once, and serves all frames of the batch and all q x q patches of the window around,
// up to kLocationColumns of them; more take another turn. Minimum over the window, square root and fusion with another
// distance are a second, small kernel: no atomics, nothing depends on the order of blocks.
#pragma once

#include "knn_types.cuh"
#include "warp.cuh"

namespace edgead {

constexpr int kLocationThreads = 256;
constexpr int kLocationWarps = kLocationThreads / 32;
constexpr int kLocationTurns = 4;                                     // columns of one warp
constexpr int kLocationColumns = kLocationTurns * kLocationWarps;     // of one turn
constexpr int kLocationTile = 32;                                     // rows and columns of a factor at a time
constexpr int kLocationPitch = kLocationTile + 1;                     // lanes read a column without bank conflicts
constexpr int kLocationDeviationBytes = 32 << 10;                     // of shared memory, for deviations
constexpr int kLocationMaxChannels = kLocationDeviationBytes / (kLocationWarps * static_cast<int>(sizeof(float)));

__host__ __device__ constexpr int location_width(int channels) {
  return (channels + kLocationTile - 1) / kLocationTile * kLocationTile;
}

// Columns (frames x window) a turn can hold, a multiple of the warps: 32 for up to 256 channels, 8 for up to 1024.
__host__ __device__ constexpr int location_columns(int channels) {
  const int fit = kLocationDeviationBytes / (location_width(channels) * static_cast<int>(sizeof(float)));
  return (fit < kLocationColumns ? fit : kLocationColumns) / kLocationWarps * kLocationWarps;
}

constexpr int location_shared_bytes(int channels) {
  return (kLocationTile * kLocationPitch + location_columns(channels) * location_width(channels)) *
         static_cast<int>(sizeof(float));
}

// Squared distances |W_b (f_a - mu_b)|^2 of location b to the patches a of the window around it; grid = locations.
//   features   (frames, locations, channels) FP32, locations row by row of a grid of `height` x `width`
//   mean       (locations, channels) FP32
//   factors    kTriangular: W, (locations, channels (channels + 1) / 2), rows of the lower triangle one after the other;
//              otherwise V, (locations, rows, channels), and the squared distance is |x|^2 precision - |V x|^2, no less
//              than 0. FP32 or FP16; sums are FP32 either way
//   precision  (locations) FP32, read in the low-rank form only; nullptr there: V is the whole of W, and |V x|^2 is meant
//   rows       channels in the triangular form, the rank in the other
//   window     q, odd; cell (i, j) of it is the patch i - q / 2 rows below and j - q / 2 columns right of b
//   squared    (locations, frames, q * q); what lies outside the grid stays unwritten
template <class Factor, bool kTriangular>
__global__ void __launch_bounds__(kLocationThreads, 4)
    location_distances(const float* __restrict__ features, const float* __restrict__ mean,
                       const Factor* __restrict__ factors, const float* __restrict__ precision, int frames, int height,
                       int width, int channels, int rows, int window, float* __restrict__ squared) {
  EDGEAD_SHARED(float, tile);
  float* deviations = tile + kLocationTile * kLocationPitch;
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int location = blockIdx.x;
  const int locations = height * width;
  const int cells = window * window;
  const int columns = frames * cells;
  const int wide = location_width(channels);
  const int turn_columns = location_columns(channels);
  const size_t factor_size =
      kTriangular ? static_cast<size_t>(rows) * (rows + 1) / 2 : static_cast<size_t>(rows) * channels;
  const Factor* factor = factors + location * factor_size;
  const float* center = mean + static_cast<size_t>(location) * channels;

  for (int first = 0; first < columns; first += turn_columns) {
    // A warp fills the columns that it will use: number warp, warp + 8, ...
    bool wanted[kLocationTurns];
    float length[kLocationTurns] = {};
#pragma unroll
    for (int turn = 0; turn < kLocationTurns; ++turn) {
      const int slot = turn * kLocationWarps + warp;
      const int column = first + slot;
      const int cell = column % cells;
      const int down = location / width + cell / window - window / 2;
      const int right = location % width + cell % window - window / 2;
      wanted[turn] =
          slot < turn_columns && column < columns && down >= 0 && down < height && right >= 0 && right < width;
      if (slot >= turn_columns) continue;
      const float* patch =
          features + (static_cast<size_t>(column / cells) * locations + down * width + right) * channels;
      for (int k = lane; k < wide; k += 32) {
        const float value = wanted[turn] && k < channels ? patch[k] - center[k] : 0.0f;
        deviations[slot * wide + k] = value;
        length[turn] += value * value;
      }
    }
    float total[kLocationTurns] = {};
    for (int first_row = 0; first_row < rows; first_row += kLocationTile) {
      float product[kLocationTurns] = {};
      const int end = kTriangular && first_row + kLocationTile < channels ? first_row + kLocationTile : channels;
      for (int start = 0; start < end; start += kLocationTile) {
        for (int i = warp; i < kLocationTile; i += kLocationWarps) {
          const int row = first_row + i;
          const int k = start + lane;
          float value = 0.0f;
          if (row < rows && k < (kTriangular ? row + 1 : channels)) {
            value = to_float(factor[kTriangular ? static_cast<size_t>(row) * (row + 1) / 2 + k
                                                : static_cast<size_t>(row) * channels + k]);
          }
          tile[i * kLocationPitch + lane] = value;
        }
        __syncthreads();
#pragma unroll 8
        for (int k = 0; k < kLocationTile; ++k) {
          const float weight = tile[lane * kLocationPitch + k];
#pragma unroll
          for (int turn = 0; turn < kLocationTurns; ++turn) {
            if (turn * kLocationWarps < turn_columns) {
              product[turn] += weight * deviations[(turn * kLocationWarps + warp) * wide + start + k];
            }
          }
        }
        // The next tile goes where this one was read.
        __syncthreads();
      }
#pragma unroll
      for (int turn = 0; turn < kLocationTurns; ++turn) total[turn] += product[turn] * product[turn];
    }
#pragma unroll
    for (int turn = 0; turn < kLocationTurns; ++turn) {
      float result = warp_sum(total[turn]);
      if (!kTriangular && precision != nullptr) {
        result = warp_sum(length[turn]) * precision[location] - result;
        if (result < 0.0f) result = 0.0f;  // NaN stays
      }
      if (wanted[turn] && lane == 0) {
        squared[static_cast<size_t>(location) * columns + first + turn * kLocationWarps + warp] = result;
      }
    }
  }
}

enum class Fusion : int { kNone, kProduct, kZScore };

constexpr int kScoreThreads = 256;

// Distance of each patch to the nearest Gaussian of its window, alone or fused with that to the nearest centroid (N-pad).
//   squared   of `location_distances`
//   nearest   (frames * locations, neighbours) of a search among the centroids; not read for Fusion::kNone
//   scale, offset  for kZScore: mahalanobis * scale.x + euclidean * scale.y - offset
//   scores    (frames, locations)
// grid = ceil(frames * locations / 256).
__global__ void __launch_bounds__(kScoreThreads)
    location_scores(const float* __restrict__ squared, int frames, int height, int width, int window,
                    const Neighbour* __restrict__ nearest, int neighbours, int fusion, float mahalanobis_scale,
                    float centroid_scale, float offset, float* __restrict__ scores) {
  const int locations = height * width;
  const int patch = blockIdx.x * kScoreThreads + threadIdx.x;
  if (patch >= frames * locations) return;
  const int frame = patch / locations;
  const int row = patch % locations / width;
  const int column = patch % width;
  const int cells = window * window;
  float least = __uint_as_float(0x7f800000u);
  for (int cell = 0; cell < cells; ++cell) {
    // The location whose window has this patch in this cell.
    const int down = row - cell / window + window / 2;
    const int right = column - cell % window + window / 2;
    if (down < 0 || down >= height || right < 0 || right >= width) continue;
    const float value = squared[(static_cast<size_t>(down * width + right) * frames + frame) * cells + cell];
    if (value < least || value != value) least = value;
    if (least != least) break;
  }
  float score = sqrtf(least);
  if (fusion != static_cast<int>(Fusion::kNone)) {
    const float centroid = sqrtf(squared_distance_of(nearest[static_cast<size_t>(patch) * neighbours]));
    score = fusion == static_cast<int>(Fusion::kProduct)
                ? score * centroid
                : score * mahalanobis_scale + centroid * centroid_scale - offset;
  }
  scores[patch] = score;
}

#if defined(EDGEAD_LAUNCH)

// What a location's distribution is kept as, on the device; see `location_distances`.
template <class Factor, bool kTriangular>
struct Locations {
  int height, width, channels;
  int rows;
  const float* mean;
  const Factor* factors;
  const float* precision;
};

// Bytes of `squared`.
constexpr size_t location_bytes(int frames, int height, int width, int window) {
  return static_cast<size_t>(height) * width * frames * window * window * sizeof(float);
}

// Squared distances to all locations of the window. False, and nothing is launched, for more than kLocationMaxChannels.
template <class Factor, bool kTriangular>
bool measure_locations(const float* features, Locations<Factor, kTriangular> locations, int frames, int window,
                       float* squared, Stream stream) {
  if (locations.channels > kLocationMaxChannels) return false;
  EDGEAD_LAUNCH(dim3(locations.height * locations.width), dim3(kLocationThreads),
                location_shared_bytes(locations.channels), stream, (location_distances<Factor, kTriangular>), features,
                locations.mean, locations.factors, locations.precision, frames, locations.height, locations.width,
                locations.channels, locations.rows, window, squared);
  return true;
}

#endif

}  // namespace edgead
