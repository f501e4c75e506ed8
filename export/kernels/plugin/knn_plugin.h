// edgead::KnnScore for TensorRT: queries (N, P, C), keys (C + 1, M) -> distance (N, P, k) FP32, index (N, P, k) INT64.
//
// Queries and keys are FP32 or FP16, each for itself. A node without the index output takes the first output alone. Where
// the node says `fixed_keys` = 1, keys are a constant of the graph, and their bank is made once.
#pragma once

#include "../knn_node.cuh"
#include "common.h"
#include "kept_bank.h"

namespace edgead {

struct KnnParameters {
  int32_t neighbours;
  // Of the GPU that the engine was built on. It decides how the bank is split, and with it how much scratch memory a
  // call takes; so it is kept in the engine and not asked again.
  int32_t multiprocessors;
  int32_t fixed_keys;  // 1: the same values in every call
};

class KnnPlugin : public ScorePlugin<KnnPlugin> {
 public:
  static constexpr char kName[] = "KnnScore";

  explicit KnnPlugin(KnnParameters parameters) : parameters_(parameters) {}

  static std::vector<nvinfer1::PluginField> attributes() {
    return {nvinfer1::PluginField("k", nullptr, nvinfer1::PluginFieldType::kINT32, 1),
            nvinfer1::PluginField("fixed_keys", nullptr, nvinfer1::PluginFieldType::kINT32, 1)};
  }

  static KnnParameters read(const nvinfer1::PluginFieldCollection* fields, nvinfer1::TensorRTPhase phase) {
    KnnParameters found{};
    found.neighbours = read_integer(fields, "k");
    require(found.neighbours >= 1 && found.neighbours <= kMaxNeighbours,
            "k is " + std::to_string(found.neighbours) + ", and the plugin finds 1 to " + std::to_string(kMaxNeighbours) +
                " neighbours; build without the plugin");
    found.fixed_keys = has_field(fields, "fixed_keys") ? read_integer(fields, "fixed_keys") : 0;  // graphs before it
    require(found.fixed_keys == 0 || found.fixed_keys == 1, "fixed_keys is neither 0 nor 1");
    const bool building = phase == nvinfer1::TensorRTPhase::kBUILD;
    found.multiprocessors = building ? this_device() : read_integer(fields, "multiprocessors");
    require(found.multiprocessors >= 1, "the engine names no number of multiprocessors");
    return found;
  }

  KnnParameters parameters() const { return parameters_; }

  std::vector<nvinfer1::PluginField> fields() const {
    return {nvinfer1::PluginField("k", &parameters_.neighbours, nvinfer1::PluginFieldType::kINT32, 1),
            nvinfer1::PluginField("multiprocessors", &parameters_.multiprocessors, nvinfer1::PluginFieldType::kINT32, 1),
            nvinfer1::PluginField("fixed_keys", &parameters_.fixed_keys, nvinfer1::PluginFieldType::kINT32, 1)};
  }

  void see(int32_t) {}

  template <class Tensor>
  KnnNode node(const Tensor* inputs, int32_t count) const {
    require(count == 2, "it takes queries and keys");
    const nvinfer1::Dims& queries = shape_of(inputs[0]);
    const nvinfer1::Dims& keys = shape_of(inputs[1]);
    require(queries.nbDims == 3 && keys.nbDims == 2, "queries are (N, P, C) and keys (C + 1, M)");
    require(keys.d[0] == queries.d[2] + 1, "keys of " + std::to_string(keys.d[0]) + " lines do not fit queries of " +
                                               std::to_string(queries.d[2]) + " channels");
    require(queries.d[2] >= 1 && keys.d[1] >= parameters_.neighbours,
            "fewer than k = " + std::to_string(parameters_.neighbours) + " keys");
    const int32_t patches = fitting(queries.d[0], queries.d[1], "queries");
    fitting(patches, parameters_.neighbours, "queries");
    return {patches, fitting(queries.d[2], 1, "channels"), fitting(keys.d[1], 1, "keys"), parameters_.neighbours,
            parameters_.multiprocessors};
  }

  int32_t getNbOutputs() const noexcept override { return 2; }

  int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t count, const nvinfer1::DataType*,
                             int32_t) const noexcept override {
    if (count != 2) return -1;
    outputs[0] = nvinfer1::DataType::kFLOAT;
    outputs[1] = nvinfer1::DataType::kINT64;
    return 0;
  }

  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t count, const nvinfer1::DimsExprs*, int32_t,
                          nvinfer1::DimsExprs* outputs, int32_t output_count,
                          nvinfer1::IExprBuilder& builder) noexcept override {
    return guarded(kName, -1, [&] {
      require(count == 2 && output_count == 2 && inputs[0].nbDims == 3, "it takes queries (N, P, C) and keys");
      for (int32_t i = 0; i < 2; ++i) {
        outputs[i].nbDims = 3;
        outputs[i].d[0] = inputs[0].d[0];
        outputs[i].d[1] = inputs[0].d[1];
        outputs[i].d[2] = builder.constant(parameters_.neighbours);
      }
      return 0;
    });
  }

  bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors, int32_t inputs,
                                 int32_t outputs) noexcept override {
    using nvinfer1::DataType;
    if (inputs != 2 || outputs != 2 || position < 0 || position > 3) return false;
    const nvinfer1::PluginTensorDesc& tensor = tensors[position].desc;
    if (position < 2) return is_linear(tensor, DataType::kFLOAT, DataType::kHALF);
    const DataType wanted = position == 2 ? DataType::kFLOAT : DataType::kINT64;
    return is_linear(tensor, wanted, wanted);
  }

  int32_t enqueue(const nvinfer1::PluginTensorDesc* tensors, const nvinfer1::PluginTensorDesc*, const void* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
    return guarded(kName, -1, [&] {
      const KnnNode sizes = node(tensors, 2);
      if (sizes.queries == 0) return 0;
      const bool half_queries = tensors[0].type == nvinfer1::DataType::kHALF;
      const bool half_keys = tensors[1].type == nvinfer1::DataType::kHALF;
      auto run = half_queries ? (half_keys ? &KnnPlugin::launch<__half, __half> : &KnnPlugin::launch<__half, float>)
                              : (half_keys ? &KnnPlugin::launch<float, __half> : &KnnPlugin::launch<float, float>);
      (this->*run)(sizes, inputs, outputs, workspace, stream);
      check_launches();
      return 0;
    });
  }

 private:
  template <class Input, class Key>
  void launch(const KnnNode& sizes, const void* const* inputs, void* const* outputs, void* workspace,
              cudaStream_t stream) {
    const Key* keys = static_cast<const Key*>(inputs[1]);
    const void* kept = parameters_.fixed_keys == 1 ? kept_.of(sizes, keys, stream) : nullptr;
    require(sizes.run(static_cast<const Input*>(inputs[0]), keys, kept, static_cast<float*>(outputs[0]),
                      static_cast<int64_t*>(outputs[1]), workspace, stream),
            "the search was refused");
  }

  // Multiprocessors of this thread's GPU; without one, when only shapes are asked for, those of a large Orin.
  static int32_t this_device() {
    int device = 0, found = 0;
    if (cudaGetDevice(&device) == cudaSuccess &&
        cudaDeviceGetAttribute(&found, cudaDevAttrMultiProcessorCount, device) == cudaSuccess && found > 0) {
      return found;
    }
    cudaGetLastError();  // not an error of whatever is launched next
    return 16;
  }

  KnnParameters parameters_;
  KeptBank kept_;  // of this plugin alone: each execution context has a plugin of its own, made by `clone`
};

}  // namespace edgead
