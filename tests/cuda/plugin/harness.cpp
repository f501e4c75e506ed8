// Does to libedgead_plugin.so what TensorRT does, without TensorRT and without a GPU.
//
//   harness LIBRARY gpu        enqueue must fail cleanly, for there is no GPU
//   harness LIBRARY simulator  the library's kernels run on the CPU: enqueue must give the right numbers
#include <NvInfer.h>
#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <cuda_fp16.h>

using namespace nvinfer1;

namespace {

int failures = 0;

void expect(bool holds, const char* text, int line) {
  if (holds) return;
  std::printf("line %d: %s\n", line, text);
  ++failures;
}
#define EXPECT(condition) expect((condition), #condition, __LINE__)

// The application's logger, and a finder as TensorRT hands one over.
struct Log : ILogger {
  std::string last;
  void log(Severity severity, AsciiChar const* text) noexcept override {
    if (severity == Severity::kERROR) last = text;
  }
  std::string take() {
    std::string text;
    text.swap(last);
    return text;
  }
};

struct Finder : ILoggerFinder {
  Log* log = nullptr;
  bool throws = false;
  ILogger* findLogger() override {
    if (throws) throw 1;
    return log;
  }
};

// Just enough of the builder's arithmetic of shapes: constants, and symbols that are compared by address.
struct Expression : IDimensionExpr, apiv::VDimensionExpr {
  int64_t value;
  explicit Expression(int64_t number) : value(number) { IDimensionExpr::mImpl = this; }
  bool isConstant() const override { return value >= 0; }
  int64_t getConstantValue() const override { return value; }
  bool isSizeTensor() const override { return false; }
};

struct Builder : IExprBuilder, apiv::VExprBuilder {
  std::vector<std::unique_ptr<Expression>> made;
  Builder() { IExprBuilder::mImpl = this; }
  IDimensionExpr const* constant(int64_t value) override {
    made.push_back(std::make_unique<Expression>(value));
    return made.back().get();
  }
  IDimensionExpr const* operation(DimensionOperation, IDimensionExpr const&, IDimensionExpr const&) override {
    return nullptr;
  }
  IDimensionExpr const* declareSizeTensor(int32_t, IDimensionExpr const&, IDimensionExpr const&) override {
    return nullptr;
  }
};

using Owned = std::unique_ptr<IPluginV3>;

Log log_;
Finder finder;

Dims dims(std::initializer_list<int64_t> sizes) {
  Dims made{};
  for (int64_t size : sizes) made.d[made.nbDims++] = size;
  return made;
}

PluginTensorDesc tensor(std::initializer_list<int64_t> sizes, DataType type = DataType::kFLOAT,
                        TensorFormat format = TensorFormat::kLINEAR) {
  PluginTensorDesc made{};
  made.dims = dims(sizes);
  made.type = type;
  made.format = format;
  return made;
}

DynamicPluginTensorDesc widest(const PluginTensorDesc& largest) {
  DynamicPluginTensorDesc made{};
  made.desc = largest;
  made.desc.dims.d[0] = -1;  // as for a batch that is not known yet
  made.min = made.opt = made.max = largest.dims;
  return made;
}

std::vector<DynamicPluginTensorDesc> widest(const std::vector<PluginTensorDesc>& tensors) {
  std::vector<DynamicPluginTensorDesc> made;
  for (const PluginTensorDesc& one : tensors) made.push_back(widest(one));
  return made;
}

template <class Interface>
Interface* as(const Owned& plugin, PluginCapabilityType type) {
  return static_cast<Interface*>(plugin->getCapabilityInterface(type));
}
IPluginV3OneBuild* build(const Owned& plugin) { return as<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD); }
IPluginV3OneRuntime* runtime(const Owned& plugin) {
  return as<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

Owned create(IPluginCreatorV3One* creator, const std::vector<PluginField>& fields, TensorRTPhase phase) {
  const PluginFieldCollection collection{static_cast<int32_t>(fields.size()), fields.data()};
  return Owned(creator->createPlugin("score", &collection, phase));
}

Owned with_k(IPluginCreatorV3One* creator, int32_t k) {
  return create(creator, {PluginField("k", &k, PluginFieldType::kINT32, 1)}, TensorRTPhase::kBUILD);
}

int32_t field(const Owned& plugin, const char* name) {
  const PluginFieldCollection* kept = runtime(plugin)->getFieldsToSerialize();
  for (int32_t i = 0; i < kept->nbFields; ++i) {
    if (std::strcmp(kept->fields[i].name, name) == 0) return *static_cast<const int32_t*>(kept->fields[i].data);
  }
  return -1;
}

// Out to an engine file and back, in memory that is the file's.
Owned reload(IPluginCreatorV3One* creator, const Owned& plugin) {
  const PluginFieldCollection* kept = runtime(plugin)->getFieldsToSerialize();
  std::vector<std::string> names;
  std::vector<int32_t> values;
  for (int32_t i = 0; i < kept->nbFields; ++i) {
    EXPECT(kept->fields[i].type == PluginFieldType::kINT32 && kept->fields[i].length == 1);
    names.emplace_back(kept->fields[i].name);
    values.push_back(*static_cast<const int32_t*>(kept->fields[i].data));
  }
  std::vector<PluginField> fields;
  for (size_t i = 0; i < names.size(); ++i) {
    fields.emplace_back(names[i].c_str(), &values[i], PluginFieldType::kINT32, 1);
  }
  return create(creator, fields, TensorRTPhase::kRUNTIME);
}

bool refused(const Owned& plugin, const char* reason) {
  const std::string said = log_.take();
  if (plugin == nullptr && said.find(reason) != std::string::npos) return true;
  std::printf("not refused for '%s', but: '%s'\n", reason, said.c_str());
  return false;
}

bool refused(int32_t code, const char* reason) {
  const std::string said = log_.take();
  if (code != 0 && said.find(reason) != std::string::npos) return true;
  std::printf("not refused for '%s', but %d: '%s'\n", reason, code, said.c_str());
  return false;
}

void check_creator(IPluginCreatorInterface* one, const char* name, std::vector<std::string> attributes) {
  auto* creator = static_cast<IPluginCreatorV3One*>(one);
  EXPECT(std::string(creator->getInterfaceInfo().kind) == "PLUGIN CREATOR_V3ONE");
  EXPECT(std::string(creator->getPluginName()) == name);
  EXPECT(std::string(creator->getPluginVersion()) == "1");
  EXPECT(std::string(creator->getPluginNamespace()) == "edgead");
  const PluginFieldCollection* fields = creator->getFieldNames();
  std::vector<std::string> names;
  for (int32_t i = 0; i < fields->nbFields; ++i) names.emplace_back(fields->fields[i].name);
  EXPECT(names == attributes);
}

// Every type and layout in every place; `allowed[position]` are the types that the node may have there.
void check_formats(const Owned& plugin, const std::vector<std::vector<DataType>>& allowed, int32_t outputs) {
  const int32_t count = static_cast<int32_t>(allowed.size());
  std::vector<DynamicPluginTensorDesc> tensors(count);
  for (int32_t i = 0; i < count; ++i) tensors[i].desc = tensor({1, 1, 1}, allowed[i][0]);
  for (int32_t i = 0; i < count; ++i) {
    const PluginTensorDesc good = tensors[i].desc;
    for (int type = 0; type <= 9; ++type) {
      tensors[i].desc.type = static_cast<DataType>(type);
      bool wanted = false;
      for (DataType one : allowed[i]) wanted = wanted || static_cast<int>(one) == type;
      EXPECT(build(plugin)->supportsFormatCombination(i, tensors.data(), count - outputs, outputs) == wanted);
    }
    tensors[i].desc = good;
    tensors[i].desc.format = TensorFormat::kCHW4;
    EXPECT(!build(plugin)->supportsFormatCombination(i, tensors.data(), count - outputs, outputs));
    tensors[i].desc = good;
  }
  EXPECT(!build(plugin)->supportsFormatCombination(count, tensors.data(), count - outputs, outputs));
  EXPECT(!build(plugin)->supportsFormatCombination(0, tensors.data(), 1, outputs));
}

void check_identity(const Owned& plugin, const char* name) {
  auto* core = as<IPluginV3OneCore>(plugin, PluginCapabilityType::kCORE);
  EXPECT(std::string(core->getPluginName()) == name);
  EXPECT(std::string(core->getPluginVersion()) == "1");
  EXPECT(std::string(core->getPluginNamespace()) == "edgead");
  EXPECT(plugin->getCapabilityInterface(static_cast<PluginCapabilityType>(77)) == nullptr);
}

void check_knn(IPluginCreatorV3One* creator) {
  for (int32_t k : {1, 9, 16}) EXPECT(with_k(creator, k) != nullptr);
  for (int32_t k : {0, -3, 17}) EXPECT(refused(with_k(creator, k), "the plugin finds 1 to 16 neighbours"));
  const int64_t wide = 3, huge = int64_t{1} << 40;
  const float fraction = 3.0f;
  const TensorRTPhase building = TensorRTPhase::kBUILD;
  const Owned plugin = create(creator, {PluginField("k", &wide, PluginFieldType::kINT64, 1)}, building);
  EXPECT(field(plugin, "k") == 3);
  EXPECT(refused(create(creator, {PluginField("k", &huge, PluginFieldType::kINT64, 1)}, building), "out of range"));
  EXPECT(refused(create(creator, {PluginField("k", &fraction, PluginFieldType::kFLOAT32, 1)}, building), "no integer"));
  EXPECT(refused(create(creator, {PluginField("k", &wide, PluginFieldType::kINT64, 2)}, building), "not one number"));
  EXPECT(refused(create(creator, {PluginField("k", nullptr, PluginFieldType::kINT64, 1)}, building), "not one number"));
  EXPECT(refused(create(creator, {PluginField("count", &wide, PluginFieldType::kINT64, 1)}, building), "k is missing"));
  EXPECT(refused(Owned(creator->createPlugin("score", nullptr, building)), "k is missing"));
  // An engine without what the build found out about its GPU.
  EXPECT(refused(create(creator, {PluginField("k", &wide, PluginFieldType::kINT64, 1)}, TensorRTPhase::kRUNTIME),
                 "multiprocessors is missing"));
  check_identity(plugin, "KnnScore");

  EXPECT(build(plugin)->getNbOutputs() == 2);
  DataType given[2] = {DataType::kHALF, DataType::kHALF}, types[2];
  EXPECT(build(plugin)->getOutputDataTypes(types, 2, given, 2) == 0);
  EXPECT(types[0] == DataType::kFLOAT && types[1] == DataType::kINT64);
  EXPECT(build(plugin)->getOutputDataTypes(types, 1, given, 2) != 0);
  Builder builder;
  Expression batch(-1), patches(784), channels(128), lines(129), rows(1000);
  DimsExprs inputs[2]{}, outputs[2]{};
  inputs[0].nbDims = 3, inputs[1].nbDims = 2;
  inputs[0].d[0] = &batch, inputs[0].d[1] = &patches, inputs[0].d[2] = &channels;
  inputs[1].d[0] = &lines, inputs[1].d[1] = &rows;
  EXPECT(build(plugin)->getOutputShapes(inputs, 2, nullptr, 0, outputs, 2, builder) == 0);
  for (const DimsExprs& shape : outputs) {
    EXPECT(shape.nbDims == 3 && shape.d[0] == &batch && shape.d[1] == &patches && shape.d[2]->getConstantValue() == 3);
  }
  inputs[0].nbDims = 2;
  EXPECT(refused(build(plugin)->getOutputShapes(inputs, 2, nullptr, 0, outputs, 2, builder), "queries (N, P, C)"));
  const std::vector<DataType> floats = {DataType::kFLOAT, DataType::kHALF};
  check_formats(plugin, {floats, floats, {DataType::kFLOAT}, {DataType::kINT64}}, 2);

  const std::vector<PluginTensorDesc> fitting = {tensor({4, 784, 128}), tensor({129, 1000})};
  const auto wide_inputs = widest(fitting);
  EXPECT(build(plugin)->configurePlugin(wide_inputs.data(), 2, nullptr, 2) == 0);
  EXPECT(runtime(plugin)->onShapeChange(fitting.data(), 2, nullptr, 2) == 0);
  const struct {
    std::vector<PluginTensorDesc> inputs;
    const char* reason;
  } wrong[] = {{{tensor({4, 784, 128})}, "queries and keys"},
               {{tensor({784, 128}), tensor({129, 1000})}, "queries are (N, P, C)"},
               {{tensor({4, 784, 128}), tensor({128, 1000})}, "keys of 128 lines do not fit queries of 128 channels"},
               {{tensor({4, 784, 128}), tensor({129, 2})}, "fewer than k = 3 keys"},
               {{tensor({1 << 20, 1 << 20, 128}), tensor({129, 1000})}, "too many queries"}};
  for (const auto& one : wrong) {
    const int32_t count = static_cast<int32_t>(one.inputs.size());
    EXPECT(refused(runtime(plugin)->onShapeChange(one.inputs.data(), count, nullptr, 2), one.reason));
    EXPECT(refused(build(plugin)->configurePlugin(widest(one.inputs).data(), count, nullptr, 2), one.reason));
    EXPECT(build(plugin)->getWorkspaceSize(widest(one.inputs).data(), count, nullptr, 2) == 0);
    EXPECT(!log_.take().empty());
  }

  const Owned loaded = reload(creator, plugin);
  EXPECT(loaded != nullptr && field(loaded, "k") == 3);
  EXPECT(field(loaded, "multiprocessors") == field(plugin, "multiprocessors") && field(plugin, "multiprocessors") > 0);
  const Owned twin(loaded->clone()), attached(runtime(loaded)->attachToContext(nullptr));
  EXPECT(field(twin, "k") == 3 && field(attached, "k") == 3 && twin.get() != loaded.get());
  // The same scratch memory, whether the engine was just built or loaded.
  const size_t bytes = build(plugin)->getWorkspaceSize(wide_inputs.data(), 2, nullptr, 2);
  EXPECT(bytes > 4 * 784 * 128 * sizeof(float) && build(twin)->getWorkspaceSize(wide_inputs.data(), 2, nullptr, 2) == bytes);
}

void check_mahalanobis(IPluginCreatorV3One* creator) {
  const Owned plugin = create(creator, {}, TensorRTPhase::kBUILD);
  EXPECT(plugin != nullptr && field(plugin, "inputs") == 0);
  EXPECT(Owned(creator->createPlugin("score", nullptr, TensorRTPhase::kBUILD)) != nullptr);
  EXPECT(refused(create(creator, {}, TensorRTPhase::kRUNTIME), "inputs is missing"));
  check_identity(plugin, "MahalanobisScore");
  EXPECT(build(plugin)->getNbOutputs() == 1);
  DataType given[4] = {}, types[1] = {DataType::kHALF};
  EXPECT(build(plugin)->getOutputDataTypes(types, 1, given, 4) == 0 && types[0] == DataType::kFLOAT);
  Builder builder;
  Expression batch(-1), locations(3136), channels(100);
  DimsExprs inputs[3]{}, outputs[1]{};
  inputs[0].nbDims = 3;
  inputs[0].d[0] = &batch, inputs[0].d[1] = &locations, inputs[0].d[2] = &channels;
  EXPECT(build(plugin)->getOutputShapes(inputs, 3, nullptr, 0, outputs, 1, builder) == 0);
  EXPECT(outputs[0].nbDims == 2 && outputs[0].d[0] == &batch && outputs[0].d[1] == &locations);
  EXPECT(refused(build(plugin)->getOutputShapes(inputs, 2, nullptr, 0, outputs, 1, builder), "rows are (N, P, d)"));
  const std::vector<DataType> single = {DataType::kFLOAT}, both = {DataType::kFLOAT, DataType::kHALF};
  check_formats(plugin, {single, single, both, single}, 1);
  check_formats(plugin, {single, single, both, single, single}, 1);

  const std::vector<PluginTensorDesc> whole = {tensor({2, 35, 17}), tensor({35, 17}), tensor({35, 17, 17})};
  std::vector<PluginTensorDesc> low_rank = whole;
  low_rank[2] = tensor({35, 4, 17}), low_rank.push_back(tensor({35}));
  PluginTensorDesc values[4];
  const void* data[4] = {values, values, values, values};
  void* results[1] = {values};
  EXPECT(refused(runtime(plugin)->enqueue(whole.data(), nullptr, data, results, nullptr, nullptr), "before it was told"));
  EXPECT(build(plugin)->configurePlugin(widest(low_rank).data(), 4, nullptr, 1) == 0);
  EXPECT(field(reload(creator, plugin), "inputs") == 4);  // known in an engine before any shape is
  EXPECT(runtime(plugin)->onShapeChange(whole.data(), 3, nullptr, 1) == 0);
  EXPECT(field(Owned(plugin->clone()), "inputs") == 3);
  EXPECT(build(plugin)->getWorkspaceSize(widest(whole).data(), 3, nullptr, 1) == 2 * 35 * sizeof(float));
  std::vector<PluginTensorDesc> wrong = whole;
  wrong[1] = tensor({34, 17});
  EXPECT(refused(runtime(plugin)->onShapeChange(wrong.data(), 3, nullptr, 1), "do not fit rows of 35 locations"));
  low_rank[3] = tensor({34});
  EXPECT(refused(runtime(plugin)->onShapeChange(low_rank.data(), 4, nullptr, 1), "precision is (P)"));
  EXPECT(refused(runtime(plugin)->onShapeChange(whole.data(), 2, nullptr, 1), "it takes rows"));
  wrong = {tensor({1, 2, 1025}), tensor({2, 1025}), tensor({2, 9, 1025})};
  EXPECT(refused(runtime(plugin)->onShapeChange(wrong.data(), 3, nullptr, 1), "1025 channels, and the plugin takes 1 to"));
}

// A logger that throws, and none at all: TensorRT must never see an exception.
void check_loggers(IPluginCreatorV3One* creator) {
  finder.throws = true;
  EXPECT(with_k(creator, 0) == nullptr);
  finder.throws = false, finder.log = nullptr;
  EXPECT(with_k(creator, 0) == nullptr);
  finder.log = &log_;
  EXPECT(refused(with_k(creator, 0), "k is 0"));
}

std::mt19937 random_bits(1);

std::vector<float> normal(size_t count) {
  std::normal_distribution<float> distribution;
  std::vector<float> values(count);
  for (float& value : values) value = distribution(random_bits);
  return values;
}

// An input as the node has it, FP32 or FP16, in memory of the exact size; `values` become what was kept of them.
std::vector<unsigned char> stored(std::vector<float>& values, DataType type) {
  std::vector<unsigned char> bytes(values.size() * (type == DataType::kHALF ? 2 : 4));
  for (size_t i = 0; i < values.size(); ++i) {
    if (type == DataType::kHALF) {
      const __half half = __float2half_rn(values[i]);
      std::memcpy(&bytes[2 * i], &half, 2);
      values[i] = __half2float(half);
    } else {
      std::memcpy(&bytes[4 * i], &values[i], 4);
    }
  }
  bytes.shrink_to_fit();
  return bytes;
}

// Runs a node whose scratch memory is that of its widest shapes, all NaN.
int32_t run(const Owned& plugin, const std::vector<PluginTensorDesc>& tensors, size_t scratch_bytes,
            const std::vector<std::vector<unsigned char>>& inputs, const std::vector<void*>& outputs) {
  std::vector<const void*> pointers;
  for (const auto& input : inputs) pointers.push_back(input.data());
  const std::unique_ptr<void, decltype(&std::free)> scratch(std::aligned_alloc(256, (scratch_bytes + 255) / 256 * 256),
                                                            std::free);
  std::memset(scratch.get(), 0xff, scratch_bytes);
  const int32_t count = static_cast<int32_t>(tensors.size());
  EXPECT(runtime(plugin)->onShapeChange(tensors.data(), count, nullptr, static_cast<int32_t>(outputs.size())) == 0);
  return runtime(plugin)->enqueue(tensors.data(), nullptr, pointers.data(), outputs.data(), scratch.get(), nullptr);
}

void execute_knn(IPluginCreatorV3One* creator, bool simulator) {
  const struct {
    int64_t images, patches, channels, rows;
    int32_t k;
    DataType queries, keys;
  } cases[] = {{1, 1, 1, 1, 1, DataType::kFLOAT, DataType::kFLOAT},  {2, 35, 17, 70, 3, DataType::kFLOAT, DataType::kHALF},
               {1, 130, 33, 65, 16, DataType::kHALF, DataType::kHALF}, {3, 5, 40, 33, 2, DataType::kHALF, DataType::kFLOAT},
               // Few queries are split most often, and take the most scratch memory for their number.
               {1, 5, 8, 1000, 1, DataType::kFLOAT, DataType::kFLOAT}, {0, 5, 40, 33, 2, DataType::kFLOAT, DataType::kFLOAT}};
  bool tight = false;
  for (const auto& one : cases) {
    // In turn: a call of the largest shape that the engine was built for, and one of a smaller shape.
    tight = !tight;
    const Owned built = with_k(creator, one.k);
    const std::vector<PluginTensorDesc> largest = {
        tight ? tensor({one.images, one.patches, one.channels}) : tensor({3, 130, one.channels}),
        tensor({one.channels + 1, one.rows})};
    const size_t scratch = build(built)->getWorkspaceSize(widest(largest).data(), 2, nullptr, 2);
    const Owned plugin = reload(creator, built);
    const size_t count = one.images * one.patches;
    std::vector<float> queries = normal(count * one.channels), keys = normal((one.channels + 1) * one.rows);
    for (int64_t m = 0; m < one.rows; ++m) keys[one.channels * one.rows + m] = NAN;  // the line that is not read
    const std::vector<std::vector<unsigned char>> inputs = {stored(queries, one.queries), stored(keys, one.keys)};
    std::vector<float> distance(count * one.k, -7.0f);
    std::vector<int64_t> index(count * one.k, -7);
    const std::vector<PluginTensorDesc> tensors = {tensor({one.images, one.patches, one.channels}, one.queries),
                                                   tensor({one.channels + 1, one.rows}, one.keys)};
    const int32_t code = run(plugin, tensors, scratch, inputs, {distance.data(), index.data()});
    if (!simulator && count != 0) {
      EXPECT(refused(code, "edgead::KnnScore: CUDA: "));
      continue;
    }
    EXPECT(code == 0);
    for (size_t q = 0; q < count; ++q) {
      std::vector<std::pair<double, int64_t>> all;
      for (int64_t m = 0; m < one.rows; ++m) {
        double sum = 0.0;
        for (int64_t c = 0; c < one.channels; ++c) {
          const double difference = queries[q * one.channels + c] + 0.5 * keys[c * one.rows + m];
          sum += difference * difference;
        }
        all.emplace_back(std::sqrt(sum), m);
      }
      std::vector<std::pair<double, int64_t>> sorted = all;
      std::sort(sorted.begin(), sorted.end());
      for (int32_t i = 0; i < one.k; ++i) {
        const int64_t row = index[q * one.k + i];
        const double found = distance[q * one.k + i];
        EXPECT(row >= 0 && row < one.rows && std::fabs(found - all[row].first) <= 1e-5 * (1.0 + found));
        EXPECT(std::fabs(found - sorted[i].first) <= 1e-5 * (1.0 + found));
      }
    }
  }
}

// A node whose keys never change: one bank, made once, never in a recording, and freed with its plugin.
void execute_kept_bank(IPluginCreatorV3One* creator, void* library) {
  const auto simulate = reinterpret_cast<void (*)(int, int)>(dlsym(library, "simulate"));
  const auto count_blocks = reinterpret_cast<void (*)(int*, int*)>(dlsym(library, "count_blocks"));
  const auto blocks = [&] { int now = 0, ever = 0; return count_blocks(&now, &ever), std::make_pair(now, ever); };
  EXPECT(blocks() == std::make_pair(0, 0));  // keys that may change are never kept
  const int64_t patches = 35, channels = 17, rows = 70;
  const std::vector<PluginTensorDesc> tensors = {tensor({1, patches, channels}), tensor({channels + 1, rows})};
  const auto with_keys = [&](int32_t fixed) {
    const int32_t k = 2;
    return create(creator, {PluginField("k", &k, PluginFieldType::kINT32, 1),
                            PluginField("fixed_keys", &fixed, PluginFieldType::kINT32, 1)}, TensorRTPhase::kBUILD);
  };
  EXPECT(refused(with_keys(2), "fixed_keys is neither 0 nor 1"));
  const Owned built = with_keys(1);
  EXPECT(field(built, "fixed_keys") == 1 && field(with_k(creator, 2), "fixed_keys") == 0);
  const size_t scratch = build(built)->getWorkspaceSize(widest(tensors).data(), 2, nullptr, 2);
  const Owned engine = reload(creator, built);
  EXPECT(field(engine, "fixed_keys") == 1);
  std::vector<float> queries = normal(patches * channels), keys = normal((channels + 1) * rows), other = normal(keys.size());
  std::vector<std::vector<unsigned char>> inputs = {stored(queries, DataType::kFLOAT), stored(keys, DataType::kFLOAT)};
  const auto score = [&](const Owned& plugin) {
    std::vector<float> distance(patches * 2, -7.0f);
    std::vector<int64_t> index(patches * 2, -7);
    EXPECT(run(plugin, tensors, scratch, inputs, {distance.data(), index.data()}) == 0);
    return std::make_pair(distance, index);
  };
  const auto expected = score(Owned(with_k(creator, 2)->clone()));
  EXPECT(blocks() == std::make_pair(0, 0));
  {
    const Owned first(runtime(engine)->attachToContext(nullptr)), second(runtime(engine)->attachToContext(nullptr));
    simulate(1, 0);  // the first call is recorded: no bank is kept, and the numbers are right
    EXPECT(score(first) == expected && blocks() == std::make_pair(0, 0));
    simulate(0, 1);  // memory is short
    EXPECT(score(first) == expected && blocks() == std::make_pair(0, 0));
    simulate(0, 0);
    for (int turn = 0; turn < 3; ++turn) EXPECT(score(first) == expected && blocks() == std::make_pair(1, 1));
    simulate(1, 0);  // a recording uses what is there
    EXPECT(score(first) == expected && blocks() == std::make_pair(1, 1));
    simulate(0, 0);
    EXPECT(score(second) == expected && blocks() == std::make_pair(2, 2));  // each context has its own
    // It is really the kept bank that is read: the keys' memory may be anything now.
    std::fill(inputs[1].begin(), inputs[1].end(), 0xff);
    EXPECT(score(first) == expected);
    inputs[1] = stored(keys, DataType::kFLOAT);
    // Other keys at another place: another bank, in the place of the first.
    inputs[1] = stored(other, DataType::kFLOAT);
    const auto changed = score(first);
    EXPECT(changed == score(Owned(with_k(creator, 2)->clone())) && changed != expected);
    EXPECT(blocks() == std::make_pair(2, 3));
  }
  EXPECT(blocks() == std::make_pair(0, 3));
}

void execute_mahalanobis(IPluginCreatorV3One* creator, bool simulator) {
  const struct {
    int64_t images, locations, channels, rank;
    bool low_rank;
    DataType factors;
  } cases[] = {{1, 1, 1, 1, false, DataType::kFLOAT},   {3, 35, 17, 17, false, DataType::kHALF},
               {2, 12, 40, 4, true, DataType::kFLOAT}, {33, 2, 33, 9, true, DataType::kHALF},
               {0, 2, 33, 9, true, DataType::kHALF}};
  for (const auto& one : cases) {
    const size_t count = one.images * one.locations;
    std::vector<float> rows = normal(count * one.channels), mean = normal(one.locations * one.channels),
                       factors = normal(one.locations * one.rank * one.channels), precision = normal(one.locations);
    for (float& value : precision) value = std::fabs(value) + 0.5f;
    for (float& value : factors) value *= 0.2f;
    std::vector<std::vector<unsigned char>> inputs = {stored(rows, DataType::kFLOAT), stored(mean, DataType::kFLOAT),
                                                      stored(factors, one.factors)};
    std::vector<PluginTensorDesc> tensors = {tensor({one.images, one.locations, one.channels}),
                                             tensor({one.locations, one.channels}),
                                             tensor({one.locations, one.rank, one.channels}, one.factors)};
    if (one.low_rank) inputs.push_back(stored(precision, DataType::kFLOAT)), tensors.push_back(tensor({one.locations}));
    const Owned built = create(creator, {}, TensorRTPhase::kBUILD);
    const int32_t number = static_cast<int32_t>(tensors.size());
    EXPECT(build(built)->configurePlugin(widest(tensors).data(), number, nullptr, 1) == 0);
    const size_t scratch = build(built)->getWorkspaceSize(widest(tensors).data(), number, nullptr, 1);
    std::vector<float> distance(count, -7.0f);
    const int32_t code = run(reload(creator, built), tensors, scratch, inputs, {distance.data()});
    if (!simulator && count != 0) {
      EXPECT(refused(code, "edgead::MahalanobisScore: CUDA: "));
      continue;
    }
    EXPECT(code == 0);
    for (size_t place = 0; place < count; ++place) {
      const size_t location = place % one.locations;
      const float* x = &rows[place * one.channels];
      const float* center = &mean[location * one.channels];
      double squared = 0.0, length = 0.0;
      for (int64_t c = 0; c < one.channels; ++c) length += (double(x[c]) - center[c]) * (double(x[c]) - center[c]);
      for (int64_t r = 0; r < one.rank; ++r) {
        double product = 0.0;
        for (int64_t c = 0; c < one.channels; ++c) {
          product += factors[(location * one.rank + r) * one.channels + c] * (double(x[c]) - center[c]);
        }
        squared += product * product;
      }
      if (one.low_rank) squared = std::max(0.0, length * precision[location] - squared);
      EXPECT(std::fabs(double(distance[place]) * distance[place] - squared) <= 1e-4 * (1.0 + length));
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return 2;
  void* library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    std::printf("%s\n", dlerror());
    return 2;
  }
  const auto get_creators = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"));
  const auto set_finder = reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"));
  if (get_creators == nullptr || set_finder == nullptr) {
    std::printf("no entry points\n");
    return 2;
  }
  finder.log = &log_;
  set_finder(&finder);
  int32_t number = 0;
  IPluginCreatorInterface* const* creators = get_creators(number);
  EXPECT(number == 2);
  check_creator(creators[0], "KnnScore", {"k", "fixed_keys"});
  check_creator(creators[1], "MahalanobisScore", {});
  auto* knn = static_cast<IPluginCreatorV3One*>(creators[0]);
  auto* mahalanobis = static_cast<IPluginCreatorV3One*>(creators[1]);
  check_knn(knn);
  check_mahalanobis(mahalanobis);
  check_loggers(knn);
  const bool simulator = std::string(arguments[2]) == "simulator";
  execute_knn(knn, simulator);
  execute_mahalanobis(mahalanobis, simulator);
  if (simulator) execute_kept_bank(knn, library);
  EXPECT(log_.last.empty());
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
