// edgead::MahalanobisScore for TensorRT: rows (N, P, d), mean (P, d), factors (P, r, d) and, in the low-rank form,
// precision (P) -> distance (N, P) FP32. Factors are FP32 or FP16, all else is FP32.
#pragma once

#include "../mahalanobis_node.cuh"
#include "common.h"

namespace edgead {

struct MahalanobisParameters {
  int32_t inputs;  // 3, or 4 in the low-rank form, which `enqueue` is not told; 0 before the first shapes are known
};

class MahalanobisPlugin : public ScorePlugin<MahalanobisPlugin> {
 public:
  static constexpr char kName[] = "MahalanobisScore";

  explicit MahalanobisPlugin(MahalanobisParameters parameters) : parameters_(parameters) {}

  static std::vector<nvinfer1::PluginField> attributes() { return {}; }

  static MahalanobisParameters read(const nvinfer1::PluginFieldCollection* fields, nvinfer1::TensorRTPhase phase) {
    return {phase == nvinfer1::TensorRTPhase::kBUILD ? 0 : read_integer(fields, "inputs")};
  }

  MahalanobisParameters parameters() const { return parameters_; }

  std::vector<nvinfer1::PluginField> fields() const {
    return {nvinfer1::PluginField("inputs", &parameters_.inputs, nvinfer1::PluginFieldType::kINT32, 1)};
  }

  void see(int32_t inputs) { parameters_.inputs = inputs; }

  template <class Tensor>
  MahalanobisNode node(const Tensor* inputs, int32_t count) const {
    require(count == 3 || count == 4, "it takes rows, mean, factors and, in the low-rank form, precision");
    const nvinfer1::Dims& rows = shape_of(inputs[0]);
    const nvinfer1::Dims& mean = shape_of(inputs[1]);
    const nvinfer1::Dims& factors = shape_of(inputs[2]);
    require(rows.nbDims == 3 && mean.nbDims == 2 && factors.nbDims == 3,
            "rows are (N, P, d), mean (P, d) and factors (P, r, d)");
    const int64_t locations = rows.d[1], channels = rows.d[2];
    require(mean.d[0] == locations && mean.d[1] == channels && factors.d[0] == locations && factors.d[2] == channels,
            "mean or factors do not fit rows of " + std::to_string(locations) + " locations and " +
                std::to_string(channels) + " channels");
    if (count == 4) {
      const nvinfer1::Dims& precision = shape_of(inputs[3]);
      require(precision.nbDims == 1 && precision.d[0] == locations, "precision is (P)");
    }
    require(channels >= 1 && channels <= kLocationMaxChannels,
            std::to_string(channels) + " channels, and the plugin takes 1 to " + std::to_string(kLocationMaxChannels) +
                "; build without the plugin");
    fitting(rows.d[0], locations, "rows");
    return {static_cast<int32_t>(rows.d[0]), static_cast<int32_t>(locations), static_cast<int32_t>(channels),
            fitting(factors.d[1], 1, "rows of factors")};
  }

  int32_t getNbOutputs() const noexcept override { return 1; }

  int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t count, const nvinfer1::DataType*,
                             int32_t) const noexcept override {
    if (count != 1) return -1;
    outputs[0] = nvinfer1::DataType::kFLOAT;
    return 0;
  }

  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t count, const nvinfer1::DimsExprs*, int32_t,
                          nvinfer1::DimsExprs* outputs, int32_t output_count, nvinfer1::IExprBuilder&) noexcept override {
    return guarded(kName, -1, [&] {
      require((count == 3 || count == 4) && output_count == 1 && inputs[0].nbDims == 3, "rows are (N, P, d)");
      outputs[0].nbDims = 2;
      outputs[0].d[0] = inputs[0].d[0];
      outputs[0].d[1] = inputs[0].d[1];
      return 0;
    });
  }

  bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors, int32_t inputs,
                                 int32_t outputs) noexcept override {
    using nvinfer1::DataType;
    if ((inputs != 3 && inputs != 4) || outputs != 1 || position < 0 || position > inputs) return false;
    const bool factors = position == 2;
    return is_linear(tensors[position].desc, DataType::kFLOAT, factors ? DataType::kHALF : DataType::kFLOAT);
  }

  int32_t enqueue(const nvinfer1::PluginTensorDesc* tensors, const nvinfer1::PluginTensorDesc*, const void* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
    return guarded(kName, -1, [&] {
      require(parameters_.inputs != 0, "it was enqueued before it was told its shapes");
      const MahalanobisNode sizes = node(tensors, parameters_.inputs);
      if (sizes.images == 0 || sizes.locations == 0) return 0;
      const float* precision = parameters_.inputs == 4 ? static_cast<const float*>(inputs[3]) : nullptr;
      auto run = tensors[2].type == nvinfer1::DataType::kHALF ? &MahalanobisPlugin::launch<__half>
                                                              : &MahalanobisPlugin::launch<float>;
      run(sizes, inputs, precision, outputs, workspace, stream);
      check_launches();
      return 0;
    });
  }

 private:
  template <class Factor>
  static void launch(const MahalanobisNode& sizes, const void* const* inputs, const float* precision,
                     void* const* outputs, void* workspace, cudaStream_t stream) {
    require(sizes.run(static_cast<const float*>(inputs[0]), static_cast<const float*>(inputs[1]),
                      static_cast<const Factor*>(inputs[2]), precision, static_cast<float*>(outputs[0]), workspace, stream),
            "the measurement was refused");
  }

  MahalanobisParameters parameters_;
};

}  // namespace edgead
