// Scan of the whole bank in FP32 on the ordinary cores: for each query, short lists of near rows.
//
// Nothing of size queries x rows is ever written. A block takes 64 queries and every gridDim.y-th tile of 64 bank rows.
// The query tile is the fastest grid index, so blocks that run at one time read the same bank tiles from the L2 cache.
#pragma once

#include "knn_types.cuh"

namespace edgead {

constexpr int kSimtThreads = 256;
constexpr int kSimtTile = 64;
constexpr int kSimtColumns = kStageBytes / 4;  // columns of one stage
constexpr int kSimtPitch = kSimtTile + 4;      // a multiple of 16 bytes, for vector loads
constexpr int kSimtLists = 16;                 // lists a query gets from one block
constexpr int kSimtSharedBytes = 2 * kSimtColumns * kSimtPitch * static_cast<int>(sizeof(float));

// Copies 64 rows x 16 columns into shared memory, columns first; zeros for rows beyond the last.
__device__ __forceinline__ void simt_load(float* target, const float* __restrict__ rows, int pitch, int first, int count,
                                          int column) {
  // Neighbouring threads take neighbouring rows: their stores fall into different banks.
  const int row = threadIdx.x & (kSimtTile - 1);
  const int part = threadIdx.x / kSimtTile * 4;
  float4 value = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (first + row < count) {
    value = *reinterpret_cast<const float4*>(rows + static_cast<size_t>(first + row) * pitch + column + part);
  }
  target[(part + 0) * kSimtPitch + row] = value.x;
  target[(part + 1) * kSimtPitch + row] = value.y;
  target[(part + 2) * kSimtPitch + row] = value.z;
  target[(part + 3) * kSimtPitch + row] = value.w;
}

// grid = (ceil(queries / 64), splits); rows and queries as `knn_prepare` leaves them.
//   candidates  (queries, splits * kSimtLists, kKeep): approximate squared distance and row, best first in each list
__global__ void __launch_bounds__(kSimtThreads, 2)
    knn_scan_simt(const float* __restrict__ queries, const RowStats* __restrict__ query_stats, int query_count,
                  const float* __restrict__ bank, const RowStats* __restrict__ bank_stats, int bank_count, int pitch,
                  Neighbour* __restrict__ candidates) {
  EDGEAD_SHARED(float, shared);
  float* query_tile = shared;
  float* bank_tile = shared + kSimtColumns * kSimtPitch;
  const int across = threadIdx.x & 15;
  const int down = threadIdx.x >> 4;
  const int first_query = blockIdx.x * kSimtTile;
  Shortlist lists[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) lists[i].clear();

  for (int first_row = blockIdx.y * kSimtTile; first_row < bank_count; first_row += gridDim.y * kSimtTile) {
    float sum[4][4] = {};
    for (int column = 0; column < pitch; column += kSimtColumns) {
      simt_load(query_tile, queries, pitch, first_query, query_count, column);
      simt_load(bank_tile, bank, pitch, first_row, bank_count, column);
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kSimtColumns; ++k) {
        const float4 a = *reinterpret_cast<const float4*>(query_tile + k * kSimtPitch + down * 4);
        const float4 b = *reinterpret_cast<const float4*>(bank_tile + k * kSimtPitch + across * 4);
        const float left[4] = {a.x, a.y, a.z, a.w};
        const float right[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) sum[i][j] += left[i] * right[j];
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int row = first_row + across * 4 + j;
      if (row >= bank_count) break;
      const float norm = bank_stats[row].norm;
#pragma unroll
      for (int i = 0; i < 4; ++i) lists[i].offer(norm - 2.0f * sum[i][j], row);
    }
  }

  const int list_count = gridDim.y * kSimtLists;
  const int list = blockIdx.y * kSimtLists + across;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int query = first_query + down * 4 + i;
    if (query >= query_count) break;
    const size_t place = static_cast<size_t>(query) * list_count + list;
    lists[i].store(candidates + place * kKeep, query_stats[query].norm);
  }
}

}  // namespace edgead
