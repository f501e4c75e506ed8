// One graph opened and run, whole or in two parts with native code between them.
#include <algorithm>
#include <cstring>
#include <set>
#include <stdexcept>
#include <thread>

#include "failure.hpp"
#include "layout.hpp"
#include "network.hpp"
#include "schema.hpp"
#include "text.hpp"

namespace edgead {

namespace {

const char *const INPUT = "images";
const char *const QUERIES = "queries";
const char *const DISTANCES = "distances";

// What a bundle says of the native code between a graph's parts, as native_description.py.
struct Description {
    std::string kind;
    std::vector<std::pair<std::string, const Value *>> constants;
    std::vector<std::string> carried;
    bool channels_first = false, triangular = false;
    int bits = 32;
};

std::string constant_file(const std::string &name) {
    const std::string stem = name.substr(0, name.size() - std::min<size_t>(name.size(), 4));
    const bool right = starts_with(name, WEIGHTS) && ends_with(name, ".bin") && stem.size() == 8 + 64 &&
                       stem.find_first_not_of("0123456789abcdef", 8) == stem.npos;
    return right ? "" : "String should match pattern '^weights/[0-9a-f]{64}\\.bin$'";
}

bool shape_of_constant(const Value &value, Problems &problems) {
    if (value.kind != Value::LIST || value.items.empty() || value.items.size() > 3) {
        problems.add("List should have 1 to 3 items");
        return false;
    }
    return list_of(whole(1, int64_t{1} << 40))(value, problems);
}

bool bits_of(const Value &value, Problems &problems) {
    if (value.kind == Value::INT && (value.whole == 16 || value.whole == 32)) return true;
    problems.add("Input should be 16 or 32");
    return false;
}

const Check &description_check() {
    static const Check constant =
        object({{"file", text({0, 0, constant_file})}, {"dtype", one_of({"<f4", "<f2"})}, {"shape", shape_of_constant}});
    static const Check check = object({{"kind", one_of({"search", "gaussians"})},
                                       {"constants", dict_of({}, constant)},
                                       {"carried", list_of(text({})), false},
                                       {"channels_first", truth(), false},
                                       {"triangular", truth(), false},
                                       {"bits", bits_of, false}});
    return check;
}

Description parse_description(const std::vector<uint8_t> &data, const std::string &label, Value &content) {
    std::string problem;
    Problems problems;
    if (!parse_json(std::string(data.begin(), data.end()), content, problem) || !description_check()(content, problems)) {
        const std::string why = problem.empty() ? problems.found.front().what : problem;
        fail(EDGEAD_BACKEND_FAILED, label + " does not say what to compute natively (" + why + "); export the bundle again");
    }
    Description made;
    made.kind = content.find("kind")->text;
    for (const auto &one : content.find("constants")->fields) made.constants.emplace_back(one.first, &one.second);
    if (const Value *carried = content.find("carried"))
        for (const auto &one : carried->items) made.carried.push_back(one.text);
    const auto flag = [&](const char *name) {
        const Value *found = content.find(name);
        return found && found->truth;
    };
    made.channels_first = flag("channels_first"), made.triangular = flag("triangular");
    if (const Value *bits = content.find("bits")) made.bits = static_cast<int>(bits->whole);
    return made;
}

std::unique_ptr<NativeCode> open_code(const Description &description, const std::string &folder, GaussianForm form, int threads) {
    Constants constants;
    for (const auto &one : description.constants) {
        std::vector<size_t> shape;
        for (const auto &size : one.second->find("shape")->items) shape.push_back(static_cast<size_t>(size.whole));
        const bool half = one.second->find("dtype")->text == "<f2";
        constants[one.first] = std::make_unique<Constant>(folder + "/" + one.second->find("file")->text, half, shape);
    }
    if (description.kind == "search") return open_search(constants, form.channels, threads);
    return open_gaussians(constants, form, threads);
}

std::string joined(const std::vector<std::string> &names, const char *between) {
    std::string out;
    for (const auto &name : names) out += (out.empty() ? "" : between) + name;
    return out;
}

}  // namespace

Graph::Graph(const Backend &backend, const Bundle &bundle, const std::string &folder, const std::string &file,
             const std::vector<std::string> &outputs, GraphOptions options)
    : provider_(backend.provider()), outputs_(outputs) {
    const std::optional<int> threads = options.threads;
    const NativeFiles parts = native_files(file);
    const bool scores = outputs == std::vector<std::string>{"score", "map"};
    if (options.native && scores && bundle.holds(parts.queries) && bundle.holds(parts.score) && bundle.holds(parts.description)) {
        open_native(backend, bundle, folder, file, threads);
        if (native_) return;
    }
    first_ = backend.open(folder, file, {threads});
    check(file, outputs);
}

void Graph::open_native(const Backend &backend, const Bundle &bundle, const std::string &folder, const std::string &file,
                        std::optional<int> threads) {
    const NativeFiles parts = native_files(file);
    Value content;
    const Description description = parse_description(bundle.read(parts.description), parts.description, content);
    if (description.kind == "search" && !search_supported()) return;
    std::vector<std::string> wanted{QUERIES};
    wanted.insert(wanted.end(), description.carried.begin(), description.carried.end());
    first_ = backend.open(folder, parts.queries, {threads});
    check(parts.queries, wanted);
    second_ = backend.open(folder, parts.score, {threads, true});
    const std::vector<int64_t> shape = first_->output_shape(QUERIES);
    const auto misfit = [&](const std::string &why) {
        fail(EDGEAD_BACKEND_FAILED, parts.queries + " names no fitting constants for native " + description.kind + " (" + why +
                                        "); export the bundle again");
    };
    if (shape.size() != 3 || shape[1] < 1 || shape[2] < 1 || std::max(shape[1], shape[2]) > 1 << 24)
        misfit("queries of " + std::to_string(shape.size()) + " axes");
    channels_first_ = description.channels_first;
    carried_ = description.carried;
    const auto first = static_cast<int>(shape[1]), second = static_cast<int>(shape[2]);
    const GaussianForm form{channels_first_ ? second : first, channels_first_ ? first : second, description.triangular,
                            description.bits};
    const int processors = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    try {
        native_ = open_code(description, folder, form, threads.value_or(processors));
    } catch (const std::invalid_argument &error) {
        misfit(error.what());
    }
}

void Graph::check(const std::string &file, const std::vector<std::string> &wanted) {
    const auto &inputs = first_->inputs();
    const std::set<std::string> there(first_->outputs().begin(), first_->outputs().end());
    const bool all = std::all_of(wanted.begin(), wanted.end(), [&](const std::string &one) { return there.count(one) > 0; });
    if (inputs != std::vector<std::string>{INPUT} || !all)
        fail(EDGEAD_BACKEND_FAILED, file + " maps " + joined(inputs, ", ") + " to " + joined(first_->outputs(), ", ") +
                                        "; this graph must map " + INPUT + " to " + joined(wanted, " and "));
    const auto &shape = first_->input_shape();
    if (shape.size() != 4 || shape[3] != 3 || shape[1] < 1 || shape[2] < 1) {
        std::vector<std::string> shown;
        for (int64_t size : shape) shown.push_back(size < 0 ? "?" : std::to_string(size));
        fail(EDGEAD_BACKEND_FAILED, file + " takes images of shape (" + joined(shown, ", ") + "); a scoring graph takes (N, h, w, 3)");
    }
    height_ = static_cast<int>(shape[1]), width_ = static_cast<int>(shape[2]);
    // A file exported with a static batch keeps its own.
    batch_ = static_cast<int>(std::max<int64_t>(shape[0], 1));
}

std::vector<Tensor> Graph::run(const uint8_t *image) {
    const size_t bytes = static_cast<size_t>(height_) * static_cast<size_t>(width_) * 3;
    const auto batch = static_cast<size_t>(batch_);
    if (batch > 1) {
        // The places that are left are filled up with the image itself: images are scored independently of each other.
        filled_.resize(batch * bytes);
        for (size_t i = 0; i < batch; i++) std::memcpy(filled_.data() + i * bytes, image, bytes);
        image = filled_.data();
    }
    const std::vector<Feed> feeds{{INPUT, image, {batch_, height_, width_, 3}, false}};
    std::vector<std::string> wanted = outputs_;
    if (native_) wanted = {QUERIES}, wanted.insert(wanted.end(), carried_.begin(), carried_.end());
    std::vector<Tensor> found = first_->run(feeds, wanted);
    std::vector<float> distances;
    if (native_) {
        const auto &shape = found[0].shape;
        const int64_t locations = shape.size() == 3 ? shape[channels_first_ ? 2 : 1] : 0;
        const int64_t channels = shape.size() == 3 ? shape[channels_first_ ? 1 : 2] : 0;
        if (shape != std::vector<int64_t>{batch_, shape.size() == 3 ? shape[1] : 0, shape.size() == 3 ? shape[2] : 0} ||
            !found[0].is_float || locations < 1)
            fail(EDGEAD_BACKEND_FAILED, "the network gave queries " + found[0].describe());
        distances.resize(batch * static_cast<size_t>(locations));
        for (size_t i = 0; i < batch; i++) {
            const Features features{found[0].data + i * static_cast<size_t>(locations * channels), static_cast<int>(locations),
                                    static_cast<int>(channels), channels_first_ ? 1 : channels, channels_first_ ? locations : 1};
            native_->distances(features, distances.data() + i * static_cast<size_t>(locations));
        }
        std::vector<Feed> rest{{DISTANCES, distances.data(), {batch_, locations}, true}};
        for (size_t i = 0; i < carried_.size(); i++) {
            const Tensor &one = found[i + 1];
            if (!one.is_float) fail(EDGEAD_BACKEND_FAILED, "the network gave " + carried_[i] + " of another type than float32");
            rest.push_back({carried_[i], one.data, one.shape, true});
        }
        found = second_->run(rest, outputs_);
    }
    for (const Tensor &one : found)
        if (!one.is_float || one.shape.empty() || one.shape[0] != batch_)
            fail(EDGEAD_BACKEND_FAILED, "the network gave " + one.describe() + " for " + std::to_string(batch_) +
                                            " images; a graph gives one float32 entry an image");
    return found;
}

std::string Graph::provider() const {
    return provider_ + (native_ ? " with " + native_->describe() : "");
}

}  // namespace edgead
