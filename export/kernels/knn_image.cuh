// What an image's patches say together: distances as a map, the largest of them, and PatchCore's weight.
#pragma once

#include "knn_types.cuh"
#include "warp.cuh"

namespace edgead {

constexpr int kImageThreads = 256;

constexpr int image_shared_bytes(int support) {
  return kImageThreads / 32 * static_cast<int>(sizeof(unsigned long long)) + support * static_cast<int>(sizeof(float));
}

// One block an image; grid = images.
//   best      (images * patches, neighbours) of `knn_rerank`; the first of each counts
//   support   (bank rows, support_count) int32: each row's nearest rows, itself first; nullptr without weights
//   distance  (images, patches): Euclidean; index (images, patches): bank row. NaN and -1 where the patch was not finite
//   score     (images): largest distance, NaN if any is
//   weight    (images): 1 - softmax of the worst patch's distances to its neighbour's neighbourhood, first entry
//             (equation 7 of Roth et al., CVPR 2022); of equally bad patches the first; untouched without `support`
__global__ void __launch_bounds__(kImageThreads)
    knn_image(const Neighbour* __restrict__ best, int neighbours, int patches, const float* __restrict__ queries,
              const float* __restrict__ bank, int channels, const int* __restrict__ support, int support_count,
              float* __restrict__ distance, int* __restrict__ index, float* __restrict__ score,
              float* __restrict__ weight) {
  EDGEAD_SHARED(unsigned long long, partial);
  float* spread = reinterpret_cast<float*>(partial + kImageThreads / 32);
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const size_t first = static_cast<size_t>(blockIdx.x) * patches;

  // Distance above, the patch's number inverted below: the largest is the worst patch, the first of equals.
  unsigned long long worst = 0;
  for (int patch = threadIdx.x; patch < patches; patch += kImageThreads) {
    const Neighbour nearest = best[(first + patch) * neighbours];
    const float root = sqrtf(squared_distance_of(nearest));
    distance[first + patch] = root;
    index[first + patch] = row_of(nearest);
    const unsigned bits = root != root ? 0xffffffffu : __float_as_uint(root);
    const unsigned long long key = static_cast<unsigned long long>(bits) << 32 | (0xffffffffu - patch);
    worst = key > worst ? key : worst;
  }
  worst = warp_max(worst);
  if (lane == 0) partial[warp] = worst;
  __syncthreads();
  worst = warp_max(lane < kImageThreads / 32 ? partial[lane] : 0ull);
  const int patch = static_cast<int>(0xffffffffu - static_cast<unsigned>(worst & 0xffffffffu));
  const float largest = __uint_as_float(static_cast<unsigned>(worst >> 32));
  if (threadIdx.x == 0) score[blockIdx.x] = largest;
  if (support == nullptr) return;

  const int row = row_of(best[(first + patch) * neighbours]);
  if (row < 0) {
    if (threadIdx.x == 0) weight[blockIdx.x] = largest;  // NaN
    return;
  }
  const int pitch = row_pitch<float>(channels);
  const float* query = queries + (first + patch) * pitch;
  for (int i = warp; i < support_count; i += kImageThreads / 32) {
    const int other = support[static_cast<size_t>(row) * support_count + i];
    const float squared = warp_squared_distance(query, bank + static_cast<size_t>(other) * pitch, channels, lane);
    if (lane == 0) spread[i] = sqrtf(squared);
  }
  __syncthreads();
  if (warp != 0) return;
  float top = 0.0f;
  for (int i = lane; i < support_count; i += 32) top = fmaxf(top, spread[i]);
  top = warp_max(top);
  float total = 0.0f;
  for (int i = lane; i < support_count; i += 32) total += expf(spread[i] - top);
  total = warp_sum(total);
  if (lane == 0) weight[blockIdx.x] = 1.0f - expf(spread[0] - top) / total;
}

}  // namespace edgead
