// Every kernel of export/kernels, by name: what the host library can launch and what nvcc is made to emit.
#pragma once

#include "anomaly_map.cuh"
#include "knn.cuh"
#include "knn_node.cuh"
#include "mahalanobis.cuh"
#include "mahalanobis_node.cuh"
#include "preprocess.cuh"

#define EDGEAD_KERNELS(KERNEL) \
  KERNEL(knn_prepare<float, float>) \
  KERNEL(knn_prepare<float, __half>) \
  KERNEL(knn_prepare<float, int8_t>) \
  KERNEL(knn_prepare<__half, float>) \
  KERNEL(knn_prepare<__half, __half>) \
  KERNEL(knn_prepare<__half, int8_t>) \
  KERNEL(knn_prepare_keys<float, __half>) \
  KERNEL(knn_prepare_keys<__half, __half>) \
  KERNEL(knn_bank_bound) \
  KERNEL(knn_scan_simt) \
  KERNEL(knn_scan_mma<__half>) \
  KERNEL(knn_scan_mma<int8_t>) \
  KERNEL(knn_rerank) \
  KERNEL(knn_exhaust) \
  KERNEL(knn_image) \
  KERNEL(knn_unpack) \
  KERNEL(location_distances<float, true>) \
  KERNEL(location_distances<__half, true>) \
  KERNEL(location_distances<float, false>) \
  KERNEL(location_distances<__half, false>) \
  KERNEL(location_scores) \
  KERNEL(resize_taps) \
  KERNEL(resize_rows) \
  KERNEL(resize_rows_nv12) \
  KERNEL(resize_columns) \
  KERNEL(map_smooth) \
  KERNEL(map_resize) \
  KERNEL(map_regions)
