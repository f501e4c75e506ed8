// Scan of the whole bank on the tensor cores, FP16 with FP32 sums or INT8 with INT32 sums.
//
// A block of 8 warps takes 128 queries and every gridDim.y-th tile of 64 bank rows; each warp multiplies 32 x 32. Stages
// of 64 bytes of each row come by cp.async into two buffers in turn, without a pause between bank tiles. FP16 and INT8
// differ in nothing but the instruction: both take 32 bytes of a row at a time, and ldmatrix moves bytes.
#pragma once

#include "knn_types.cuh"

namespace edgead {

constexpr int kMmaThreads = 256;
constexpr int kMmaQueries = 128;
constexpr int kMmaRows = 64;
constexpr int kMmaPitch = kStageBytes + 16;  // bytes; eight rows of ldmatrix fall into 32 different banks
constexpr int kMmaLists = 8;                 // lists a query gets from one block: 2 warps x 4 lanes
constexpr int kMmaBufferBytes = (kMmaQueries + kMmaRows) * kMmaPitch;
constexpr int kMmaSharedBytes = 2 * kMmaBufferBytes;

template <class Code>
struct MmaSum {
  using Type = float;
};
template <>
struct MmaSum<int8_t> {
  using Type = int32_t;
};

// grid = (ceil(queries / 128), splits); rows and queries as `knn_prepare` leaves them.
//   stage_count  row_pitch<Code>(channels) * sizeof(Code) / kStageBytes
//   candidates   (queries, splits * kMmaLists, kKeep): approximate squared distance and row, best first in each list
template <class Code>
__global__ void __launch_bounds__(kMmaThreads, 2)
    knn_scan_mma(const Code* __restrict__ queries, const RowStats* __restrict__ query_stats, int query_count,
                 const Code* __restrict__ bank, const RowStats* __restrict__ bank_stats, int bank_count,
                 int stage_count, Neighbour* __restrict__ candidates) {
  EDGEAD_SHARED(unsigned char, buffers);
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int warp_query = (warp & 3) * 32;
  const int warp_row = (warp >> 2) * 32;
  const int group = lane >> 2;  // row of a fragment of sums; its columns are 2 * member and 2 * member + 1
  const int member = lane & 3;
  const int first_query = blockIdx.x * kMmaQueries;
  const size_t row_bytes = static_cast<size_t>(stage_count) * kStageBytes;
  const unsigned char* query_bytes = reinterpret_cast<const unsigned char*>(queries);
  const unsigned char* bank_bytes = reinterpret_cast<const unsigned char*>(bank);

  // Three copies of 16 bytes a thread: two of query rows, one of a bank row.
  const int copy_row = threadIdx.x >> 2;
  const int copy_byte = (threadIdx.x & 3) * 16;
  auto load = [&](int buffer, int first_row, int stage) {
    unsigned char* target = buffers + buffer * kMmaBufferBytes + copy_row * kMmaPitch + copy_byte;
    const size_t offset = static_cast<size_t>(stage) * kStageBytes + copy_byte;
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int query = first_query + part * 64 + copy_row;
      const bool inside = query < query_count;
      copy_async(target + part * 64 * kMmaPitch, query_bytes + (inside ? query * row_bytes + offset : 0), inside);
    }
    const int row = first_row + copy_row;
    const bool inside = row < bank_count;
    copy_async(target + kMmaQueries * kMmaPitch, bank_bytes + (inside ? row * row_bytes + offset : 0), inside);
    copy_commit();
  };

  Shortlist lists[4];
  float weight[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    lists[i].clear();
    const int query = first_query + warp_query + i * 8 + group;
    weight[i] = query < query_count ? 2.0f * query_stats[query].scale : 0.0f;
  }

  typename MmaSum<Code>::Type sum[2][4][4] = {};
  const int stride = gridDim.y * kMmaRows;
  int first_row = blockIdx.y * kMmaRows;
  int stage = 0;
  int buffer = 0;
  if (first_row < bank_count) load(buffer, first_row, stage);
  while (first_row < bank_count) {
    const bool last_stage = stage + 1 == stage_count;
    const int next_row = last_stage ? first_row + stride : first_row;
    const int next_stage = last_stage ? 0 : stage + 1;
    if (next_row < bank_count) {
      load(buffer ^ 1, next_row, next_stage);
      copy_wait<1>();
    } else {
      copy_wait<0>();
    }
    __syncthreads();
    const unsigned char* query_tile = buffers + buffer * kMmaBufferBytes;
    const unsigned char* bank_tile = query_tile + kMmaQueries * kMmaPitch;
#pragma unroll
    for (int byte = 0; byte < kStageBytes; byte += 32) {
      uint32_t left[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = warp_query + i * 16 + (lane & 15);
        load_matrix(left[i], query_tile + row * kMmaPitch + byte + (lane >> 4) * 16);
      }
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        uint32_t right[4];
        const int row = warp_row + pair * 16 + (lane >> 4) * 8 + (lane & 7);
        load_matrix(right, bank_tile + row * kMmaPitch + byte + (lane >> 3 & 1) * 16);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          multiply_tile(sum[i][2 * pair], left[i], right[0], right[1], Code());
          multiply_tile(sum[i][2 * pair + 1], left[i], right[2], right[3], Code());
        }
      }
    }
    if (last_stage) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int row = first_row + warp_row + (j >> 1) * 8 + member * 2 + (j & 1);
        if (row < bank_count) {
          const RowStats stats = bank_stats[row];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float product = static_cast<float>(sum[i >> 1][j >> 1][(i & 1) * 2 + (j & 1)]);
            lists[i].offer(stats.norm - weight[i] * stats.scale * product, row);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
#pragma unroll
          for (int k = 0; k < 4; ++k) sum[i][j][k] = 0;
        }
      }
    }
    // The buffer that was read here is written in the next turn.
    __syncthreads();
    first_row = next_row;
    stage = next_stage;
    buffer ^= 1;
  }

  const int list_count = gridDim.y * kMmaLists;
  const int list = blockIdx.y * kMmaLists + (warp_row / 32) * 4 + member;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int query = first_query + warp_query + i * 8 + group;
    if (query < query_count) {
      const size_t place = static_cast<size_t>(query) * list_count + list;
      lists[i].store(candidates + place * kKeep, query_stats[query].norm);
    }
  }
}

}  // namespace edgead
