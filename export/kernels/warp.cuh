// What a warp of 32 threads does together: reductions, and a sorted list that lies across its lanes.
#pragma once

#include "port.cuh"

namespace edgead {

// Each lane gets the same sum, added in the order of a binary tree: lane i and i ^ 16 first.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) value = exact_add(value, __shfl_xor_sync(kWholeWarp, value, offset));
  return value;
}

template <class Value>
__device__ __forceinline__ Value warp_min(Value value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) {
    const Value other = __shfl_xor_sync(kWholeWarp, value, offset);
    value = other < value ? other : value;
  }
  return value;
}

template <class Value>
__device__ __forceinline__ Value warp_max(Value value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) {
    const Value other = __shfl_xor_sync(kWholeWarp, value, offset);
    value = other > value ? other : value;
  }
  return value;
}

// Lane i holds the i-th smallest of what came before; `value`, the same in all lanes, takes its place among them.
template <class Value>
__device__ __forceinline__ Value warp_insert(Value held, Value value, int lane) {
  const Value below = __shfl_up_sync(kWholeWarp, held, 1);
  if (!(value < held)) return held;
  return lane == 0 || !(value < below) ? value : below;
}

// Squared Euclidean distance of two FP32 rows, the same bits in all lanes and in every executor: lane i sums the
// columns i, i + 32, ... in this order, then the lanes are added by `warp_sum`.
__device__ __forceinline__ float warp_squared_distance(const float* a, const float* b, int columns, int lane) {
  float sum = 0.0f;
  for (int column = lane; column < columns; column += 32) {
    const float difference = exact_add(a[column], -b[column]);
    sum = exact_add(sum, exact_multiply(difference, difference));
  }
  return warp_sum(sum);
}

}  // namespace edgead
