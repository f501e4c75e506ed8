// What a GPU can do at most: arithmetic without memory, so that kernels are judged by this device and not by a data sheet.
#pragma once

#include "port.cuh"

namespace edgead {

constexpr int kCeilingThreads = 256;
constexpr int kChains = 8;  // independent sums of a thread, more than the latency of one step

// 2 * kChains FLOP a thread and turn.
__global__ void __launch_bounds__(kCeilingThreads) ceiling_fp32(int turns, float factor, float* __restrict__ out) {
  float sum[kChains];
#pragma unroll
  for (int i = 0; i < kChains; ++i) sum[i] = static_cast<float>(threadIdx.x + i);
#pragma unroll 8
  for (int turn = 0; turn < turns; ++turn) {
#pragma unroll
    for (int i = 0; i < kChains; ++i) sum[i] = sum[i] * factor + factor;
  }
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < kChains; ++i) total += sum[i];
  out[blockIdx.x * kCeilingThreads + threadIdx.x] = total;
}

template <class Code>
struct CeilingSum {
  using Type = float;
};
template <>
struct CeilingSum<int8_t> {
  using Type = int32_t;
};

// kChains tiles a warp and turn: 16 x 8 x 16 (FP16) or 16 x 8 x 32 (INT8) products and sums each.
template <class Code>
__global__ void __launch_bounds__(kCeilingThreads) ceiling_mma(int turns, float factor, float* __restrict__ out) {
  typename CeilingSum<Code>::Type sum[kChains][4] = {};
  const uint32_t bits = static_cast<uint32_t>(factor) + threadIdx.x % 2;
  const uint32_t left[4] = {bits, bits + 1, bits + 2, bits + 3};
#pragma unroll 4
  for (int turn = 0; turn < turns; ++turn) {
#pragma unroll
    for (int i = 0; i < kChains; ++i) multiply_tile(sum[i], left, bits, bits + 1, Code());
  }
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < kChains; ++i) total += static_cast<float>(sum[i][0] + sum[i][1] + sum[i][2] + sum[i][3]);
  out[blockIdx.x * kCeilingThreads + threadIdx.x] = total;
}

}  // namespace edgead
