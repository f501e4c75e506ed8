// From feature rows to what the scans read: centred FP32 rows, and rows coded in FP16 or INT8.
#pragma once

#include "knn_types.cuh"
#include "warp.cuh"

namespace edgead {

constexpr int kPrepareThreads = 128;
constexpr int kPrepareRows = kPrepareThreads / 32;

// A row's scale brings its largest magnitude to where the code is dense: [1, 2) in FP16, 127 in INT8. So neither codes
// nor products overflow, whatever the unit of the features.
__device__ __forceinline__ float scale_for(float largest, __half) {
  const float power = __uint_as_float(__float_as_uint(largest) & 0x7f800000u);
  return power > 0.0f ? power : 1.0f;
}
__device__ __forceinline__ float scale_for(float largest, int8_t) {
  const float step = largest / 127.0f;
  return step > 0.0f ? step : 1.0f;
}
__device__ __forceinline__ float scale_for(float, float) { return 1.0f; }

__device__ __forceinline__ void encode(float scaled, __half& code) { code = __float2half_rn(scaled); }
__device__ __forceinline__ void encode(float scaled, int8_t& code) {
  code = static_cast<int8_t>(fminf(fmaxf(rintf(scaled), -127.0f), 127.0f));
}
__device__ __forceinline__ void encode(float scaled, float& code) { code = scaled; }

// Codes a centred FP32 row that this warp wrote itself, lane i the columns i, i + 32, ...; `largest` is each lane's own.
template <class Code>
__device__ __forceinline__ void code_row(const float* plain, int channels, float largest, int row, int lane, Code* coded,
                                         RowStats* __restrict__ stats, float* __restrict__ error) {
  const float scale = scale_for(warp_max(largest), Code());
  const float inverse = 1.0f / scale;
  const int narrow = row_pitch<Code>(channels);
  float norm = 0.0f;
  float lost = 0.0f;
  for (int column = lane; column < narrow; column += 32) {
    const float value = column < channels ? plain[column] : 0.0f;
    Code code;
    encode(value * inverse, code);
    if (sizeof(Code) != sizeof(float)) coded[static_cast<size_t>(row) * narrow + column] = code;
    const float kept = to_float(code) * scale;
    norm += kept * kept + (value - value);
    lost += (value - kept) * (value - kept);
  }
  norm = warp_sum(norm);
  lost = warp_sum(lost);
  if (lane == 0) {
    stats[row] = RowStats{norm, scale};
    error[row] = sqrtf(lost);
  }
}

// One warp a row; grid = ceil(count / kPrepareRows).
//   rows     (count, channels), contiguous
//   center   (channels), subtracted first; distances do not feel it, the difference of squares does. nullptr: nothing
//   centred  (count, row_pitch<float>), zeros beyond the channels
//   coded    (count, row_pitch<Code>), likewise; for Code = float it is `centred` itself
//   stats    (count); norm is NaN where the row holds NaN or Inf, so that no scan takes it for a finite one
//   error    (count): |row - scale * code|
template <class Input, class Code>
__global__ void __launch_bounds__(kPrepareThreads)
    knn_prepare(const Input* __restrict__ rows, const float* __restrict__ center, int count, int channels,
                float* __restrict__ centred, Code* coded, RowStats* __restrict__ stats, float* __restrict__ error) {
  const int lane = threadIdx.x & 31;
  const int row = blockIdx.x * kPrepareRows + (threadIdx.x >> 5);
  if (row >= count) return;
  const Input* source = rows + static_cast<size_t>(row) * channels;
  const int wide = row_pitch<float>(channels);
  float* plain = centred + static_cast<size_t>(row) * wide;
  float largest = 0.0f;
  for (int column = lane; column < wide; column += 32) {
    const float value = column < channels ? exact_add(to_float(source[column]), center ? -center[column] : 0.0f) : 0.0f;
    plain[column] = value;
    largest = fmaxf(largest, fabsf(value));
  }
  code_row(plain, channels, largest, row, lane, coded, stats, error);
}

// What bounds the error of any row of the bank: its largest |r|^2 and its largest coding error. One block.
struct BankBound {
  float norm;
  float error;
};

constexpr int kBoundThreads = 256;
constexpr int kBoundSharedBytes = kBoundThreads / 32 * static_cast<int>(sizeof(BankBound));

__global__ void __launch_bounds__(kBoundThreads)
    knn_bank_bound(const RowStats* __restrict__ stats, const float* __restrict__ error, int count, BankBound* bound) {
  EDGEAD_SHARED(BankBound, partial);
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  float norm = 0.0f;
  float lost = 0.0f;
  for (int row = threadIdx.x; row < count; row += kBoundThreads) {
    norm = fmaxf(norm, stats[row].norm);
    lost = fmaxf(lost, error[row]);
  }
  norm = warp_max(norm);
  lost = warp_max(lost);
  if (lane == 0) partial[warp] = BankBound{norm, lost};
  __syncthreads();
  if (warp == 0) {
    const bool there = lane < kBoundThreads / 32;
    norm = warp_max(there ? partial[lane].norm : 0.0f);
    lost = warp_max(there ? partial[lane].error : 0.0f);
    if (lane == 0) *bound = BankBound{norm, lost};
  }
}

}  // namespace edgead
