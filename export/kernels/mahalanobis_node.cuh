// The ONNX node edgead::MahalanobisScore: distances of each location's rows to the Gaussian of that location.
#pragma once

#include "mahalanobis.cuh"

namespace edgead {

#if defined(EDGEAD_LAUNCH)

// Sizes of one node; all are at least 1, `channels` at most kLocationMaxChannels.
struct MahalanobisNode {
  int images;
  int locations;
  int channels;
  int factor_rows;

  size_t scratch_bytes() const { return location_bytes(images, locations, 1, 1); }

  // Distances (images, locations) of `rows` (images, locations, channels). factors (locations, factor_rows, channels): the
  // whole of the whitening, or with `precision` (locations) its low-rank part.
  template <class Factor>
  bool run(const float* rows, const float* mean, const Factor* factors, const float* precision, float* distance,
           void* scratch, Stream stream) const {
    float* squared = static_cast<float*>(scratch);
    const Locations<Factor, false> kept{locations, 1, channels, factor_rows, mean, factors, precision};
    if (!measure_locations(rows, kept, images, 1, squared, stream)) return false;
    const MahalanobisNode sizes = *this;  // launches capture what they are given
    const Neighbour* nearest = nullptr;
    EDGEAD_LAUNCH(dim3((images * locations + kScoreThreads - 1) / kScoreThreads), dim3(kScoreThreads), 0, stream,
                  location_scores, squared, sizes.images, sizes.locations, 1, 1, nearest, 1, static_cast<int>(Fusion::kNone), 0.0f,
                  0.0f, 0.0f, distance);
    return true;
  }
};

#endif

}  // namespace edgead
