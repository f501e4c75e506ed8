// From the short lists of a scan to the exact neighbours: the k least FP32 distances, equal ones by the lowest row.
//
// A scan ranks coded rows, so its distances are off. But by how much is bounded, and the bound is checked for each query:
// where a row that no list kept could be nearer than the k-th neighbour found, the query is scanned again, exactly. So
// every path returns the same bits. With r' = scale * code for a row r, and computed values marked by ~:
//   |q - r| >= |q' - r'| - |q - q'| - |r - r'|             (triangle inequality; the last two were measured)
//   |q' - r'|^2 >= ~|q' - r'|^2 - slack (|q'|^2 + |r'|^2)   (rounding of the norms and of the product's FP32 sums)
#pragma once

#include "knn_prepare.cuh"

namespace edgead {

constexpr int kRerankThreads = 128;
constexpr int kExhaustThreads = 256;
constexpr int kExhaustSharedBytes = kExhaustThreads / 32 * kMaxNeighbours * static_cast<int>(sizeof(Neighbour));

// Units in the last place that a tensor core may lose for each addend; it cuts off where FP32 would round.
constexpr float kUnit = 1.0f / (1 << 23);

// Lower bound of what `warp_squared_distance` gives for a row whose approximate squared distance is `squared`.
//   sums   addends of the scan's FP32 sums: the channels, or 0 where sums are exact (INT8)
struct Certificate {
  float slack;
  float error;
  float shrink;

  __device__ __forceinline__ Certificate(RowStats query, float query_error, BankBound bank, int channels, int sums) {
    const float norms = query.norm + bank.norm;
    slack = (1.125f * sums + 32.0f) * kUnit * norms;
    error = 1.001f * (query_error + bank.error) + 4.0f * kUnit * sqrtf(norms);
    shrink = 1.0f - (channels / 32 + 16) * kUnit;
  }

  __device__ __forceinline__ float lower_bound(float squared) const {
    const float root = sqrtf(fmaxf(squared - slack, 0.0f)) - error;
    return root > 0.0f ? root * root * shrink : 0.0f;
  }
};

// One warp a query; grid = ceil(queries / 4).
//   queries, bank  centred FP32 rows
//   candidates     (queries, list_count, kKeep) of a scan
//   best           (queries, neighbours): squared distance and row, ascending; kNone where the bank has too few rows
//   certain        (queries): 1 where the above is proved, 0 where `knn_exhaust` must follow
__global__ void __launch_bounds__(kRerankThreads)
    knn_rerank(const float* __restrict__ queries, const RowStats* __restrict__ query_stats,
               const float* __restrict__ query_error, int query_count, const float* __restrict__ bank,
               const BankBound* __restrict__ bound, int channels, int sums, const Neighbour* __restrict__ candidates,
               int list_count, int neighbours, Neighbour* __restrict__ best, int* __restrict__ certain) {
  const int lane = threadIdx.x & 31;
  const int query = blockIdx.x * (kRerankThreads / 32) + (threadIdx.x >> 5);
  if (query >= query_count) return;
  const int pitch = row_pitch<float>(channels);
  const float* query_row = queries + static_cast<size_t>(query) * pitch;
  const Certificate certificate(query_stats[query], query_error[query], *bound, channels, sums);
  const int candidate_count = list_count * kKeep;
  const Neighbour* offered = candidates + static_cast<size_t>(query) * candidate_count;

  // Whatever a list let go was no nearer than the last it kept; a list with room let nothing go.
  Neighbour let_go = kNone;
  for (int list = lane; list < list_count; list += 32) {
    const Neighbour last = offered[list * kKeep + kKeep - 1];
    let_go = last < let_go ? last : let_go;
  }
  let_go = warp_min(let_go);

  Neighbour held = kNone;
  float reach = squared_distance_of(kNone);  // of the k-th neighbour; NaN, which nothing exceeds, until there is one
  Neighbour previous = 0;
  for (int turn = 0; turn < candidate_count; ++turn) {
    Neighbour next = kNone;
    for (int i = lane; i < candidate_count; i += 32) {
      const Neighbour candidate = offered[i];
      if ((turn == 0 || candidate > previous) && candidate < next) next = candidate;
    }
    next = warp_min(next);
    if (next == kNone || certificate.lower_bound(squared_distance_of(next)) > reach) break;
    previous = next;
    const int row = row_of(next);
    const float exact = warp_squared_distance(query_row, bank + static_cast<size_t>(row) * pitch, channels, lane);
    held = warp_insert(held, make_neighbour(exact, row), lane);
    reach = squared_distance_of(__shfl_sync(kWholeWarp, held, neighbours - 1));
  }
  if (lane < neighbours) best[static_cast<size_t>(query) * neighbours + lane] = held;
  if (lane == 0) {
    certain[query] = let_go == kNone || certificate.lower_bound(squared_distance_of(let_go)) > reach;
  }
}

// One block a query; those that are certain end at once. grid = queries.
__global__ void __launch_bounds__(kExhaustThreads)
    knn_exhaust(const float* __restrict__ queries, const float* __restrict__ bank, int bank_count, int channels,
                int neighbours, const int* __restrict__ certain, Neighbour* __restrict__ best) {
  EDGEAD_SHARED(Neighbour, found);
  const int query = blockIdx.x;
  if (certain[query]) return;
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int pitch = row_pitch<float>(channels);
  const float* query_row = queries + static_cast<size_t>(query) * pitch;
  Neighbour held = kNone;
  for (int row = warp; row < bank_count; row += kExhaustThreads / 32) {
    const float exact = warp_squared_distance(query_row, bank + static_cast<size_t>(row) * pitch, channels, lane);
    held = warp_insert(held, make_neighbour(exact, row), lane);
  }
  if (lane < neighbours) found[warp * neighbours + lane] = held;
  __syncthreads();
  if (warp != 0) return;
  for (int i = neighbours; i < kExhaustThreads / 32 * neighbours; ++i) held = warp_insert(held, found[i], lane);
  if (lane < neighbours) best[static_cast<size_t>(query) * neighbours + lane] = held;
}

}  // namespace edgead
