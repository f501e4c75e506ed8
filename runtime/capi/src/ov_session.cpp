// OpenVINO through its C API, opened as openvino_backend.py opens it, in FP32.
//
// The functions are found by their names; their types are those of openvino/c/*.h of the wheel (Apache-2.0).
#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <mutex>

#include "bundle.hpp"
#include "failure.hpp"
#include "saturation_probe.h"
#include "session.hpp"
#include "text.hpp"

namespace edgead {

namespace {

struct Shape {
    int64_t rank;
    int64_t *dims;
};
struct Dimension {
    int64_t min, max;
};
struct PartialShape {
    Dimension rank;
    Dimension *dims;
};
struct Version {
    const char *build, *description;
};

#define EDGEAD_OV_FUNCTIONS(FUNCTION)                                                \
    FUNCTION(ov_get_openvino_version, int (*)(Version *))                            \
    FUNCTION(ov_version_free, void (*)(Version *))                                   \
    FUNCTION(ov_get_last_err_msg, const char *(*)())                                 \
    FUNCTION(ov_free, void (*)(const char *))                                        \
    FUNCTION(ov_core_create, int (*)(void **))                                       \
    FUNCTION(ov_core_read_model, int (*)(const void *, const char *, const char *, void **)) \
    FUNCTION(ov_core_compile_model, int (*)(const void *, const void *, const char *, size_t, void **, ...)) \
    FUNCTION(ov_model_inputs_size, int (*)(const void *, size_t *))                  \
    FUNCTION(ov_model_outputs_size, int (*)(const void *, size_t *))                 \
    FUNCTION(ov_model_const_input_by_index, int (*)(const void *, size_t, void **))  \
    FUNCTION(ov_model_const_output_by_index, int (*)(const void *, size_t, void **)) \
    FUNCTION(ov_model_reshape, int (*)(const void *, const char **, const PartialShape *, size_t)) \
    FUNCTION(ov_model_free, void (*)(void *))                                        \
    FUNCTION(ov_port_get_any_name, int (*)(const void *, char **))                   \
    FUNCTION(ov_port_get_partial_shape, int (*)(const void *, PartialShape *))       \
    FUNCTION(ov_partial_shape_free, void (*)(PartialShape *))                        \
    FUNCTION(ov_output_const_port_free, void (*)(void *))                            \
    FUNCTION(ov_compiled_model_create_infer_request, int (*)(const void *, void **)) \
    FUNCTION(ov_compiled_model_get_property, int (*)(const void *, const char *, char **)) \
    FUNCTION(ov_compiled_model_free, void (*)(void *))                               \
    FUNCTION(ov_infer_request_get_tensor, int (*)(const void *, const char *, void **)) \
    FUNCTION(ov_infer_request_infer, int (*)(void *))                                \
    FUNCTION(ov_infer_request_free, void (*)(void *))                                \
    FUNCTION(ov_tensor_get_shape, int (*)(const void *, Shape *))                    \
    FUNCTION(ov_tensor_get_element_type, int (*)(const void *, int *))               \
    FUNCTION(ov_tensor_get_byte_size, int (*)(const void *, size_t *))               \
    FUNCTION(ov_tensor_data, int (*)(const void *, void **))                         \
    FUNCTION(ov_tensor_free, void (*)(void *))                                       \
    FUNCTION(ov_shape_free, int (*)(Shape *))

struct Api {
#define EDGEAD_OV_MEMBER(name, ...) std::decay_t<decltype(static_cast<__VA_ARGS__>(nullptr))> name = nullptr;
    EDGEAD_OV_FUNCTIONS(EDGEAD_OV_MEMBER)
#undef EDGEAD_OV_MEMBER
    void *core = nullptr;
    int float_type = -1;  // what this version calls float32
    std::string path, version;
    bool ready = false;
};

// Never released: a second core in one process is no good neighbour, see common.py.
Api &api() {
    static Api *one = new Api;
    return *one;
}
std::mutex loading;

void require(int status, const std::string &what) {
    if (!status) return;
    const char *message = api().ov_get_last_err_msg();
    const std::string line = first_line(message ? message : "");
    if (message) api().ov_free(message);
    fail(EDGEAD_BACKEND_FAILED, what + ": " + line);
}

using Held = std::unique_ptr<void, void (*)(void *)>;

std::vector<int64_t> shape_of(const void *port) {
    PartialShape partial{};
    require(api().ov_port_get_partial_shape(port, &partial), "openvino failed");
    std::vector<int64_t> shape;
    for (int64_t i = 0; partial.rank.min == partial.rank.max && i < partial.rank.max; i++)
        shape.push_back(partial.dims[i].min == partial.dims[i].max ? partial.dims[i].max : -1);
    api().ov_partial_shape_free(&partial);
    return shape;
}

struct Port {
    std::string name;
    std::vector<int64_t> shape;
};

template <typename Count, typename At> std::vector<Port> ports_of(const void *model, Count count, At at) {
    size_t number = 0;
    require(count(model, &number), "openvino failed");
    std::vector<Port> ports;
    for (size_t i = 0; i < number; i++) {
        void *port = nullptr;
        require(at(model, i, &port), "openvino failed");
        const Held held(port, api().ov_output_const_port_free);
        char *name = nullptr;
        require(api().ov_port_get_any_name(port, &name), "openvino failed");
        ports.push_back({name, shape_of(port)});
        api().ov_free(name);
    }
    return ports;
}

class OvSession : public Session {
  public:
    OvSession(const std::string &folder, const std::string &file, SessionOptions options)
        : model_(nullptr, api().ov_model_free), compiled_(nullptr, api().ov_compiled_model_free),
          request_(nullptr, api().ov_infer_request_free) {
        void *made = nullptr;
        require(api().ov_core_read_model(api().core, (folder + "/" + file).c_str(), nullptr, &made), "openvino cannot read " + file);
        model_.reset(made);
        std::vector<Port> ports = ports_of(made, api().ov_model_inputs_size, api().ov_model_const_input_by_index);
        fix_batch(ports, options.after_native);
        for (const Port &port : ports) inputs_.push_back(port.name);
        if (!ports.empty()) input_shape_ = ports[0].shape;
        compile(file, options.threads);
        outputs_with_shapes_ = ports_of(made, api().ov_model_outputs_size, api().ov_model_const_output_by_index);
        for (const Port &port : outputs_with_shapes_) outputs_.push_back(port.name);
    }

    const std::vector<std::string> &inputs() const override { return inputs_; }
    const std::vector<std::string> &outputs() const override { return outputs_; }
    const std::vector<int64_t> &input_shape() const override { return input_shape_; }
    std::vector<int64_t> output_shape(const std::string &name) const override {
        for (const Port &port : outputs_with_shapes_)
            if (port.name == name) return port.shape;
        return {};
    }

    std::vector<Tensor> run(const std::vector<Feed> &feeds, const std::vector<std::string> &outputs) const override {
        for (const Feed &feed : feeds) {
            const Held tensor = tensor_of(feed.name);
            size_t bytes = 0;
            void *data = nullptr;
            require(api().ov_tensor_get_byte_size(tensor.get(), &bytes), "openvino failed");
            require(api().ov_tensor_data(tensor.get(), &data), "openvino failed");
            if (bytes != feed.bytes())
                fail(EDGEAD_BACKEND_FAILED, "openvino takes " + std::to_string(bytes) + " bytes of " + feed.name + ", there are " +
                                                std::to_string(feed.bytes()));
            std::memcpy(data, feed.data, bytes);
        }
        require(api().ov_infer_request_infer(request_.get()), "openvino failed");
        std::vector<Tensor> found;
        for (const auto &name : outputs) found.push_back(take(tensor_of(name)));
        return found;
    }

  private:
    // A graph has one open axis, the batch; behind native code each input has it.
    void fix_batch(std::vector<Port> &ports, bool all) {
        std::vector<Port *> open;
        for (Port &port : ports)
            if (!port.shape.empty() && (all || port.shape[0] < 0)) open.push_back(&port);
        std::vector<std::vector<Dimension>> dims(open.size());
        std::vector<PartialShape> shapes;
        std::vector<const char *> names;
        for (size_t i = 0; i < open.size(); i++) {
            open[i]->shape[0] = 1;
            for (int64_t size : open[i]->shape) dims[i].push_back(size < 0 ? Dimension{0, -1} : Dimension{size, size});
            const auto rank = static_cast<int64_t>(dims[i].size());
            shapes.push_back({{rank, rank}, dims[i].data()});
            names.push_back(open[i]->name.c_str());
        }
        if (!names.empty())
            require(api().ov_model_reshape(model_.get(), names.data(), shapes.data(), names.size()), "openvino cannot fix the batch");
    }

    void compile(const std::string &file, std::optional<int> threads) {
        const std::string number = std::to_string(threads.value_or(0));
        void *made = nullptr;
        // The precision is always said: on CPUs that have bf16 it is the silent default, and it flips decisions.
        require(api().ov_core_compile_model(api().core, model_.get(), "CPU", threads ? 6 : 4, &made, "PERFORMANCE_HINT", "LATENCY",
                                            "INFERENCE_PRECISION_HINT", "f32", "INFERENCE_NUM_THREADS", number.c_str()),
                "openvino cannot compile " + file);
        compiled_.reset(made);
        char *real = nullptr;
        require(api().ov_compiled_model_get_property(made, "INFERENCE_PRECISION_HINT", &real), "openvino failed");
        const std::string precision = real;
        api().ov_free(real);
        if (precision != "f32")
            fail(EDGEAD_BACKEND_FAILED, "openvino compiled " + file + " in " + precision + ", asked was f32; use another backend");
        void *request = nullptr;
        require(api().ov_compiled_model_create_infer_request(made, &request), "openvino failed");
        request_.reset(request);
    }

    Held tensor_of(const std::string &name) const {
        void *tensor = nullptr;
        require(api().ov_infer_request_get_tensor(request_.get(), name.c_str(), &tensor), "openvino failed");
        return Held(tensor, api().ov_tensor_free);
    }

    // A copy: the request is used again.
    Tensor take(Held tensor) const {
        Tensor made;
        Shape shape{};
        require(api().ov_tensor_get_shape(tensor.get(), &shape), "openvino failed");
        made.shape.assign(shape.dims, shape.dims + shape.rank);
        api().ov_shape_free(&shape);
        int type = -1;
        size_t bytes = 0;
        void *data = nullptr;
        require(api().ov_tensor_get_element_type(tensor.get(), &type), "openvino failed");
        require(api().ov_tensor_get_byte_size(tensor.get(), &bytes), "openvino failed");
        require(api().ov_tensor_data(tensor.get(), &data), "openvino failed");
        // While it is not known what float32 is called, the probe is asked, which gives nothing else.
        if (api().float_type < 0) api().float_type = type;
        made.is_float = type == api().float_type;
        auto copy = std::make_shared<std::vector<float>>((bytes + 3) / 4);
        std::memcpy(copy->data(), data, bytes);
        made.data = copy->data();
        made.owner = copy;
        return made;
    }

    Held model_, compiled_, request_;
    std::vector<std::string> inputs_, outputs_;
    std::vector<Port> outputs_with_shapes_;
    std::vector<int64_t> input_shape_;
};

class OvBackend : public Backend {
  public:
    std::string name() const override { return "openvino"; }
    std::string version() const override { return api().version; }
    std::string provider() const override { return "CPU"; }
    std::unique_ptr<Session> open(const std::string &folder, const std::string &file, SessionOptions options) const override {
        return std::make_unique<OvSession>(folder, file, options);
    }
};

void find_functions(const std::string &path) {
    void *library = dlopen(path.empty() ? "libopenvino_c.so" : path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library)
        fail(EDGEAD_BACKEND_UNAVAILABLE, "openvino cannot be loaded (" + one_line(dlerror()) +
                                             "); give the path of its libopenvino_c.so in edgead_options.library; "
                                             "pip install openvino brings one in openvino/libs");
    bool all = true;
#define EDGEAD_OV_FIND(name, ...)                                             \
    api().name = reinterpret_cast<__VA_ARGS__>(dlsym(library, #name));        \
    all = all && api().name;
    EDGEAD_OV_FUNCTIONS(EDGEAD_OV_FIND)
#undef EDGEAD_OV_FIND
    if (!all) fail(EDGEAD_BACKEND_UNAVAILABLE, "this openvino is too old or none; use 2024.4 or newer");
}

// Find out by a graph that gives float32 what this version calls it: its numbers have moved between versions.
void ask_float_type() {
    const PrivateFolder folder;
    write_probe(folder.path() + "/probe.onnx");
    const OvSession probe(folder.path(), "probe.onnx", {1});
    const std::vector<uint8_t> white(PROBE_SIDE * PROBE_SIDE * 3, 255);
    (void)probe.run({{"images", white.data(), {1, PROBE_SIDE, PROBE_SIDE, 3}, false}}, {"score"});
}

}  // namespace

const Backend &load_openvino(const std::string &path) {
    static const OvBackend backend;
    const std::lock_guard<std::mutex> guard(loading);
    Api &one = api();
    if (one.ready) {
        if (!path.empty() && path != one.path)
            fail(EDGEAD_WRONG_OPTION, "this process has loaded openvino from '" + one.path + "' and takes no other one");
        return backend;
    }
    find_functions(path);
    Version version{};
    require(one.ov_get_openvino_version(&version), "openvino failed");
    const std::string build = version.build ? version.build : "";
    one.version = build.substr(0, build.find('-'));
    one.ov_version_free(&version);
    if (!one.core) require(one.ov_core_create(&one.core), "openvino cannot start");
    ask_float_type();
    one.path = path, one.ready = true;
    return backend;
}

}  // namespace edgead
