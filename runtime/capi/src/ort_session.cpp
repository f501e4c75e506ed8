// The library loaded, sessions opened with the options of onnxruntime_backend.py, outputs taken over.
#include "session.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>

#include "failure.hpp"
#include "ort_api.hpp"
#include "text.hpp"

namespace edgead {

namespace {

struct Loaded {
    const ort::Api *api = nullptr;
    ort::Env *env = nullptr;
    ort::Allocator *allocator = nullptr;
    ort::MemoryInfo *memory = nullptr;
    std::string path, version;
};

// Never released: sessions may outlive any order in which a process ends.
Loaded &loaded() {
    static Loaded *one = new Loaded;
    return *one;
}
std::mutex loading;

const ort::Api &api() { return *loaded().api; }

void require(ort::Status *status, const std::string &what, edgead_status code = EDGEAD_BACKEND_FAILED) {
    if (!status) return;
    const std::string line = first_line(api().error_message()(status));
    api().release_status()(status);
    fail(code, what + ": " + line);
}

void require(ort::Status *status) { require(status, "onnxruntime failed"); }

const ort::Api *find_api(const std::string &path, std::string &version) {
    const char *const names[] = {"libonnxruntime.so.1", "libonnxruntime.so"};
    void *library = nullptr;
    std::string reason;
    for (const char *name : names) {
        library = dlopen(path.empty() ? name : path.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (library) break;
        if (reason.empty()) reason = one_line(dlerror());
        if (!path.empty()) break;
    }
    if (!library)
        fail(EDGEAD_BACKEND_UNAVAILABLE, "onnxruntime cannot be loaded (" + reason +
                                             "); give the path of its libonnxruntime.so in edgead_options.library; "
                                             "pip install onnxruntime brings one in onnxruntime/capi");
    using GetBase = const ort::ApiBase *(*)();
    const auto get = reinterpret_cast<GetBase>(dlsym(library, "OrtGetApiBase"));
    const ort::ApiBase *base = get ? get() : nullptr;
    const ort::Api *found = base ? base->get_api(ort::OLDEST) : nullptr;
    version = base ? base->version() : "";
    if (!found)
        fail(EDGEAD_BACKEND_UNAVAILABLE, "this onnxruntime" + (version.empty() ? "" : " (" + version + ")") +
                                             " is too old or none; use 1." + std::to_string(ort::OLDEST) + " or newer");
    return found;
}

std::vector<int64_t> shape_of(const ort::TensorInfo *info) {
    size_t count = 0;
    require(api().dimension_count()(info, &count));
    std::vector<int64_t> shape(count);
    require(api().dimensions()(info, shape.data(), count));
    return shape;
}

template <typename Ask> std::vector<int64_t> shape_at(Ask ask, const ort::Session *session, size_t index) {
    ort::TypeInfo *type = nullptr;
    require(ask(session, index, &type));
    const std::unique_ptr<ort::TypeInfo, void (*)(ort::TypeInfo *)> held(type, api().release_type());
    const ort::TensorInfo *info = nullptr;
    require(api().as_tensor_info()(type, &info));
    return info ? shape_of(info) : std::vector<int64_t>();
}

template <typename Count, typename Name>
std::vector<std::string> names_of(const ort::Session *session, Count count, Name name) {
    size_t number = 0;
    require(count(session, &number));
    std::vector<std::string> names;
    for (size_t i = 0; i < number; i++) {
        char *text = nullptr;
        require(name(session, i, loaded().allocator, &text));
        names.emplace_back(text);
        require(api().allocator_free()(loaded().allocator, text));
    }
    return names;
}

Tensor take(ort::Value *value) {
    Tensor made;
    made.owner = std::shared_ptr<ort::Value>(value, api().release_value());
    ort::TensorInfo *info = nullptr;
    require(api().tensor_info()(value, &info));
    const std::unique_ptr<ort::TensorInfo, void (*)(ort::TensorInfo *)> held(info, api().release_tensor_info());
    made.shape = shape_of(info);
    int type = 0;
    require(api().element_type()(info, &type));
    made.is_float = type == ort::FLOAT;
    void *data = nullptr;
    require(api().tensor_data()(value, &data));
    made.data = static_cast<const float *>(data);
    return made;
}

// Opened as onnxruntime_backend.py opens it.
class OrtSession : public Session {
  public:
    OrtSession(const std::string &folder, const std::string &file, SessionOptions asked) {
        ort::SessionOptions *options = nullptr;
        require(api().create_options()(&options));
        const std::unique_ptr<ort::SessionOptions, void (*)(ort::SessionOptions *)> held(options, api().release_options());
        require(api().set_log_level()(options, ort::ERROR));
        if (asked.after_native) asked.threads = 1;
        if (asked.threads) require(api().set_threads()(options, *asked.threads));
        require(api().set_graph_threads()(options, 1));
        // Threads that go on spinning after a frame take the cores from the camera, and from the next graph.
        require(api().set_entry()(options, "session.force_spinning_stop", "1"));
        // It quantises weights that an export kept in FP32; see common.py. Versions without it ignore the name.
        require(api().set_entry()(options, "optimization.disable_specified_optimizers", "WeightBiasQuantization"));
        require(api().fix_dimension()(options, "batch", 1));
        const std::string path = folder + "/" + file;
        require(api().create_session()(loaded().env, path.c_str(), options, &session_), "onnxruntime cannot load " + file);
        try {
            inputs_ = names_of(session_, api().input_count(), api().input_name());
            outputs_ = names_of(session_, api().output_count(), api().output_name());
            if (!inputs_.empty()) input_shape_ = shape_at(api().input_type(), session_, 0);
        } catch (...) {
            api().release_session()(session_);
            throw;
        }
    }
    ~OrtSession() override { api().release_session()(session_); }
    OrtSession(const OrtSession &) = delete;
    OrtSession &operator=(const OrtSession &) = delete;

    const std::vector<std::string> &inputs() const override { return inputs_; }
    const std::vector<std::string> &outputs() const override { return outputs_; }
    const std::vector<int64_t> &input_shape() const override { return input_shape_; }

    std::vector<int64_t> output_shape(const std::string &name) const override {
        const auto found = std::find(outputs_.begin(), outputs_.end(), name);
        if (found == outputs_.end()) return {};
        return shape_at(api().output_type(), session_, static_cast<size_t>(found - outputs_.begin()));
    }

    std::vector<Tensor> run(const std::vector<Feed> &feeds, const std::vector<std::string> &outputs) const override {
        std::vector<std::shared_ptr<ort::Value>> made;
        std::vector<const ort::Value *> values;
        std::vector<const char *> names, wanted;
        for (const Feed &feed : feeds) {
            ort::Value *value = nullptr;
            require(api().create_tensor()(loaded().memory, const_cast<void *>(feed.data), feed.bytes(), feed.shape.data(),
                                          feed.shape.size(), feed.is_float ? ort::FLOAT : ort::UINT8, &value));
            made.emplace_back(value, api().release_value());
            values.push_back(value);
            names.push_back(feed.name.c_str());
        }
        for (const auto &name : outputs) wanted.push_back(name.c_str());
        std::vector<ort::Value *> found(outputs.size(), nullptr);
        require(api().run()(session_, nullptr, names.data(), values.data(), values.size(), wanted.data(), wanted.size(),
                            found.data()));
        std::vector<Tensor> tensors;
        tensors.reserve(found.size());
        size_t taken = 0;
        try {
            for (; taken < found.size(); taken++) tensors.push_back(take(found[taken]));
        } catch (...) {
            // The one that failed is released by its own holder.
            for (size_t i = taken + 1; i < found.size(); i++) api().release_value()(found[i]);
            throw;
        }
        return tensors;
    }

  private:
    ort::Session *session_ = nullptr;
    std::vector<std::string> inputs_, outputs_;
    std::vector<int64_t> input_shape_;
};

class OrtBackend : public Backend {
  public:
    std::string name() const override { return "onnxruntime"; }
    std::string version() const override { return loaded().version; }
    std::string provider() const override { return "CPUExecutionProvider"; }
    std::unique_ptr<Session> open(const std::string &folder, const std::string &file, SessionOptions options) const override {
        return std::make_unique<OrtSession>(folder, file, options);
    }
};

}  // namespace

const Backend &load_onnxruntime(const std::string &path) {
    static const OrtBackend backend;
    const std::lock_guard<std::mutex> guard(loading);
    Loaded &one = loaded();
    if (one.api) {
        if (!path.empty() && path != one.path)
            fail(EDGEAD_WRONG_OPTION, "this process has loaded onnxruntime from '" + one.path + "' and takes no other one");
        return backend;
    }
    // Its newer builds write an identifier into the home folder and report from the import on; a camera must do neither.
    setenv("ORT_DISABLE_TELEMETRY", "1", 0);
    one.api = find_api(path, one.version);
    one.path = path;
    try {
        require(api().create_env()(ort::WARNING, "edgead", &one.env));
        require(api().disable_telemetry()(one.env));
        require(api().default_allocator()(&one.allocator));
        require(api().create_memory_info()(ort::ARENA_ALLOCATOR, ort::MEMORY_DEFAULT, &one.memory));
    } catch (...) {
        one.api = nullptr;
        throw;
    }
    return backend;
}

}  // namespace edgead
