// What both plugins share: no exception leaves them, messages go to TensorRT's logger, fields are read by their type.
#pragma once

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

namespace edgead {

constexpr char kNamespace[] = "edgead";
constexpr char kVersion[] = "1";

// Set by TensorRT when it loads the library; without it messages go to standard error.
inline nvinfer1::ILoggerFinder*& logger_finder() noexcept {
  static nvinfer1::ILoggerFinder* finder = nullptr;
  return finder;
}

inline void complain(const char* text) noexcept {
  try {
    nvinfer1::ILogger* logger = logger_finder() != nullptr ? logger_finder()->findLogger() : nullptr;
    if (logger != nullptr) {
      logger->log(nvinfer1::ILogger::Severity::kERROR, text);
      return;
    }
  } catch (...) {  // a logger of the application; the message still has a way out
  }
  std::fprintf(stderr, "%s\n", text);
}

// Runs what may throw; `failed`, with a message, where it does. TensorRT is told by values only.
template <class Result, class Run>
Result guarded(const char* name, Result failed, Run run) noexcept {
  try {
    return run();
  } catch (const std::exception& error) {
    char text[512];
    std::snprintf(text, sizeof text, "edgead::%s: %s", name, error.what());
    complain(text);
  } catch (...) {
    complain("edgead: an unknown exception");
  }
  return failed;
}

class PluginError : public std::exception {
 public:
  explicit PluginError(std::string text) : text_(std::move(text)) {}
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  std::string text_;
};

inline void require(bool holds, const std::string& text) {
  if (!holds) throw PluginError(text);
}

// An integer of the node or of the engine; parsers write kINT64 or kINT32.
inline int32_t read_integer(const nvinfer1::PluginFieldCollection* fields, const char* name) {
  for (int32_t i = 0; fields != nullptr && i < fields->nbFields; ++i) {
    const nvinfer1::PluginField& field = fields->fields[i];
    if (field.name == nullptr || std::strcmp(field.name, name) != 0) continue;
    require(field.data != nullptr && field.length == 1, std::string("the attribute ") + name + " is not one number");
    if (field.type == nvinfer1::PluginFieldType::kINT32) {
      int32_t value;
      std::memcpy(&value, field.data, sizeof value);
      return value;
    }
    require(field.type == nvinfer1::PluginFieldType::kINT64, std::string("the attribute ") + name + " is no integer");
    int64_t value;
    std::memcpy(&value, field.data, sizeof value);
    require(value >= INT32_MIN && value <= INT32_MAX, std::string("the attribute ") + name + " is out of range");
    return static_cast<int32_t>(value);
  }
  throw PluginError(std::string("the attribute ") + name + " is missing");
}

inline bool has_field(const nvinfer1::PluginFieldCollection* fields, const char* name) {
  for (int32_t i = 0; fields != nullptr && i < fields->nbFields; ++i) {
    if (fields->fields[i].name != nullptr && std::strcmp(fields->fields[i].name, name) == 0) return true;
  }
  return false;
}

inline bool is_linear(const nvinfer1::PluginTensorDesc& tensor, nvinfer1::DataType a, nvinfer1::DataType b) {
  return tensor.format == nvinfer1::TensorFormat::kLINEAR && (tensor.type == a || tensor.type == b);
}

// A product of sizes that kernels count in 32 bits.
inline int32_t fitting(int64_t a, int64_t b, const char* what) {
  require(a >= 0 && b >= 0 && (b == 0 || a <= INT32_MAX / b), std::string("too many ") + what);
  return static_cast<int32_t>(a * b);
}

inline void check_launches() {
  const cudaError_t error = cudaPeekAtLastError();
  require(error == cudaSuccess, std::string("CUDA: ") + cudaGetErrorString(error));
}

// The tensors of a call, whichever of TensorRT's two descriptions it comes with.
inline const nvinfer1::Dims& shape_of(const nvinfer1::PluginTensorDesc& tensor) { return tensor.dims; }
// Where a shape is not known yet, the largest it may have.
inline const nvinfer1::Dims& shape_of(const nvinfer1::DynamicPluginTensorDesc& tensor) { return tensor.max; }

// What TensorRT asks of every plugin and both answer alike. `Self` has kName, parameters(), fields(), node(inputs, count),
// which throws where shapes do not fit, and see(count), which is told how many inputs there are.
template <class Self>
class ScorePlugin : public nvinfer1::IPluginV3,
                    public nvinfer1::IPluginV3OneCore,
                    public nvinfer1::IPluginV3OneBuild,
                    public nvinfer1::IPluginV3OneRuntime {
 public:
  nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
    switch (type) {
      case nvinfer1::PluginCapabilityType::kCORE:
        return static_cast<nvinfer1::IPluginV3OneCore*>(this);
      case nvinfer1::PluginCapabilityType::kBUILD:
        return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
      case nvinfer1::PluginCapabilityType::kRUNTIME:
        return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }

  nvinfer1::IPluginV3* clone() noexcept override {
    return guarded<nvinfer1::IPluginV3*>(Self::kName, nullptr, [this] { return new Self(self().parameters()); });
  }

  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }

  const char* getPluginName() const noexcept override { return Self::kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t count,
                          const nvinfer1::DynamicPluginTensorDesc*, int32_t) noexcept override {
    return guarded(Self::kName, -1, [&] { return accept(inputs, count); });
  }

  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t count, const nvinfer1::PluginTensorDesc*,
                        int32_t) noexcept override {
    return guarded(Self::kName, -1, [&] { return accept(inputs, count); });
  }

  // Of the largest shapes; it grows with each of them.
  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t count,
                          const nvinfer1::DynamicPluginTensorDesc*, int32_t) const noexcept override {
    return guarded<size_t>(Self::kName, 0, [&] { return self().node(inputs, count).scratch_bytes(); });
  }

  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override {
    return guarded<const nvinfer1::PluginFieldCollection*>(Self::kName, nullptr, [this] {
      fields_ = self().fields();
      collection_.nbFields = static_cast<int32_t>(fields_.size());
      collection_.fields = fields_.data();
      return &collection_;
    });
  }

 private:
  template <class Tensor>
  int32_t accept(const Tensor* inputs, int32_t count) {
    self().node(inputs, count);
    self().see(count);
    return 0;
  }

  Self& self() noexcept { return static_cast<Self&>(*this); }
  const Self& self() const noexcept { return static_cast<const Self&>(*this); }

  std::vector<nvinfer1::PluginField> fields_;
  nvinfer1::PluginFieldCollection collection_{};
};

// Makes plugins of one kind. `Plugin::attributes()` are those of the ONNX node; `Plugin::read` makes parameters of fields.
template <class Plugin>
class ScoreCreator : public nvinfer1::IPluginCreatorV3One {
 public:
  ScoreCreator() : attributes_(Plugin::attributes()) {
    collection_.nbFields = static_cast<int32_t>(attributes_.size());
    collection_.fields = attributes_.data();
  }

  const char* getPluginName() const noexcept override { return Plugin::kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override { return &collection_; }

  nvinfer1::IPluginV3* createPlugin(const char*, const nvinfer1::PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase phase) noexcept override {
    return guarded<nvinfer1::IPluginV3*>(Plugin::kName, nullptr,
                                         [&] { return new Plugin(Plugin::read(fields, phase)); });
  }

 private:
  std::vector<nvinfer1::PluginField> attributes_;
  nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace edgead
