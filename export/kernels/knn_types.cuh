// Names that the kernels of nearest-neighbour search share.
#pragma once

#include "port.cuh"

namespace edgead {

// A neighbour in one number: FP32 bits of its squared distance above, its row in the memory bank below. Distances are
// never negative, so the order of the numbers is that of the distances, and equal distances go by the lowest row.
using Neighbour = unsigned long long;

// No neighbour: its distance reads as NaN, its row as -1.
constexpr Neighbour kNone = ~0ull;

constexpr int kMaxNeighbours = 16;

// Rows of every matrix begin at multiples of 64 bytes and are filled up with zeros; one stage of a scan takes 64 bytes.
constexpr int kStageBytes = 64;

// Each list of a scan keeps this many rows.
constexpr int kKeep = 4;

__device__ __forceinline__ Neighbour make_neighbour(float squared, int row) {
  // Written so that NaN stays what it is.
  const float distance = squared <= 0.0f ? 0.0f : squared;
  return static_cast<Neighbour>(__float_as_uint(distance)) << 32 | static_cast<unsigned>(row);
}

__device__ __forceinline__ float squared_distance_of(Neighbour neighbour) {
  return __uint_as_float(static_cast<unsigned>(neighbour >> 32));
}

__device__ __forceinline__ int row_of(Neighbour neighbour) { return static_cast<int>(neighbour & 0xffffffffu); }

// Elements from one row to the next, for `channels` elements of `Element`.
template <class Element>
__host__ __device__ constexpr int row_pitch(int channels) {
  return (channels * static_cast<int>(sizeof(Element)) + kStageBytes - 1) / kStageBytes * kStageBytes /
         static_cast<int>(sizeof(Element));
}

// What a scan knows of a coded row r = scale * code: |r|^2 and scale.
struct RowStats {
  float norm;
  float scale;
};

// The best kKeep of the rows that one thread offers, best first. Rows come in ascending order; of equal values the
// first stays ahead. NaN is never taken.
struct Shortlist {
  float value[kKeep];
  int row[kKeep];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int slot = 0; slot < kKeep; ++slot) {
      value[slot] = __uint_as_float(0x7f800000u);  // +Inf
      row[slot] = -1;
    }
  }

  __device__ __forceinline__ void offer(float candidate, int candidate_row) {
    if (!(candidate < value[kKeep - 1])) return;
    value[kKeep - 1] = candidate;
    row[kKeep - 1] = candidate_row;
#pragma unroll
    for (int slot = kKeep - 1; slot > 0; --slot) {
      if (value[slot] < value[slot - 1]) {
        const float other_value = value[slot - 1];
        const int other_row = row[slot - 1];
        value[slot - 1] = value[slot];
        row[slot - 1] = row[slot];
        value[slot] = other_value;
        row[slot] = other_row;
      }
    }
  }

  // Values were ranked without the query's own norm, which is added here.
  __device__ __forceinline__ void store(Neighbour* target, float query_norm) const {
#pragma unroll
    for (int slot = 0; slot < kKeep; ++slot) {
      target[slot] = row[slot] < 0 ? kNone : make_neighbour(query_norm + value[slot], row[slot]);
    }
  }
};

}  // namespace edgead
