// Scores and maps of tiles joined, categories chosen, INT8 sums that saturate refused.
#include "network.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>

#include "failure.hpp"
#include "layout.hpp"
#include "saturation_probe.h"
#include "text.hpp"

namespace edgead {

namespace {

// Score and map of one image, which are the first of each.
Inference as_inference(const Tensor &score, const Tensor &map) {
    if (score.shape.size() != 1 || map.shape.size() != 3)
        fail(EDGEAD_BACKEND_FAILED, "the network gave score " + score.describe() + " and map " + map.describe() +
                                        "; a scoring graph gives (N,) and (N, gh, gw)");
    Inference made;
    made.score = score.data[0];
    made.height = static_cast<int>(map.shape[1]), made.width = static_cast<int>(map.shape[2]);
    const size_t cells = static_cast<size_t>(made.height) * static_cast<size_t>(made.width);
    made.map.assign(map.data, map.data + cells);
    return made;
}

struct Route {
    std::string category;
    std::optional<std::string> reason;
};

// The category with most votes, and the reason where the image is not like its parts.
Route route(const Tensor &votes, const Tensor &similarity, const std::vector<std::string> &names, const Manifest &manifest) {
    const bool fits = votes.shape.size() == 2 && votes.shape[1] == static_cast<int64_t>(names.size()) &&
                      similarity.shape.size() == 1;
    if (!fits)
        fail(EDGEAD_BACKEND_FAILED, "the router gave votes " + votes.describe() + " and similarity " + similarity.describe() +
                                        " for " + std::to_string(names.size()) + " categories; export the bundle again");
    size_t winner = 0;
    for (size_t i = 0; i < names.size(); i++) {
        const float vote = votes.data[i], best = votes.data[winner];
        // As numpy's argmax: the first of the largest, and the first that is no number before all.
        if (std::isnan(best)) break;
        if (std::isnan(vote) || vote > best) winner = i;
    }
    const std::string &name = names[winner];
    const double likeness = similarity.data[0], least = *manifest.categories.at(name).minimum_similarity;
    if (likeness >= least) return {name, std::nullopt};  // never true of NaN
    return {name, "unknown category (similarity " + fixed(likeness, 3) + " to " + name + ", its parts reach " +
                      fixed(least, 3) + ")"};
}

// Open a graph file; another size than the manifest's would be another picture than the one that is prepared.
std::unique_ptr<Graph> open_graph(const Backend &backend, const Bundle &bundle, const std::string &folder, const std::string &file,
                                  const std::vector<std::string> &outputs, const NetworkOptions &options) {
    auto graph = std::make_unique<Graph>(backend, bundle, folder, file, outputs, options.graph);
    const Manifest &manifest = bundle.manifest();
    if (graph->height() != manifest.height || graph->width() != manifest.width)
        fail(EDGEAD_BACKEND_FAILED, file + " takes (N, " + std::to_string(graph->height()) + ", " +
                                        std::to_string(graph->width()) + ", 3) uint8, the manifest says " +
                                        std::to_string(manifest.height) + "x" + std::to_string(manifest.width));
    return graph;
}

const std::vector<std::string> SCORING{"score", "map"}, ROUTING{"votes", "similarity"},
    FUSED{"score", "map", "votes", "similarity"};

class Single : public Network {
  public:
    explicit Single(std::unique_ptr<Graph> graph) : graph_(std::move(graph)) {}
    Inference run(const uint8_t *image) override {
        const std::vector<Tensor> found = graph_->run(image);
        return as_inference(found[0], found[1]);
    }
    std::string provider() const override { return graph_->provider(); }

  private:
    std::unique_ptr<Graph> graph_;
};

// Tiles of one picture, which stand below each other; as tiling.py joins them.
class Tiled : public Network {
  public:
    Tiled(std::unique_ptr<Network> inner, const Manifest &manifest)
        : inner_(std::move(inner)), tiles_(*manifest.tiles), height_(manifest.map_height), width_(manifest.map_width),
          bytes_(static_cast<size_t>(manifest.height) * static_cast<size_t>(manifest.width) * 3) {}

    Inference run(const uint8_t *image) override {
        Inference whole;
        whole.height = tiles_.rows * height_ - (tiles_.rows - 1) * tiles_.overlap;
        whole.width = tiles_.columns * width_ - (tiles_.columns - 1) * tiles_.overlap;
        whole.map.assign(static_cast<size_t>(whole.height) * static_cast<size_t>(whole.width),
                         -std::numeric_limits<float>::infinity());
        for (int row = 0, index = 0; row < tiles_.rows; row++)
            for (int column = 0; column < tiles_.columns; column++, index++, image += bytes_) {
                const Inference one = inner_->run(image);
                if (one.height != height_ || one.width != width_)
                    fail(EDGEAD_BACKEND_FAILED, "the network gives maps of (" + std::to_string(one.height) + ", " +
                                                    std::to_string(one.width) + ") cells, not (" + std::to_string(height_) +
                                                    ", " + std::to_string(width_) + ")");
                whole.score = index ? larger(whole.score, one.score) : one.score;
                for (int y = 0; y < height_; y++)
                    for (int x = 0; x < width_; x++) {
                        const int down = row * (height_ - tiles_.overlap) + y, across = column * (width_ - tiles_.overlap) + x;
                        float &cell = whole.map[static_cast<size_t>(down) * static_cast<size_t>(whole.width) + static_cast<size_t>(across)];
                        cell = larger(cell, one.map[static_cast<size_t>(y) * static_cast<size_t>(width_) + static_cast<size_t>(x)]);
                    }
            }
        return whole;
    }
    std::string provider() const override { return inner_->provider(); }

  private:
    // NaN stays NaN.
    static float larger(float a, float b) { return std::isnan(a) ? a : std::isnan(b) ? b : std::max(a, b); }

    std::unique_ptr<Network> inner_;
    TilesSection tiles_;
    int height_, width_;
    size_t bytes_;
};

// A router and the heads of its categories; or one graph that routes and scores, where there are no heads.
class Routed : public Network {
  public:
    Routed(const Backend &backend, const Bundle &bundle, const std::string &folder, const NetworkOptions &options) : manifest_(bundle.manifest()) {
        const std::string &file = manifest_.precisions.at(options.precision).file;
        size_t missing = 0;
        std::string first;
        for (const auto &one : manifest_.categories) {
            names_.push_back(one.first);
            const std::string head = head_file(one.first, options.precision);
            if (bundle.holds(head)) continue;
            if (!missing++) first = head;
        }
        if (missing && missing < names_.size())
            fail(EDGEAD_BUNDLE_CONTENT, manifest_.name + " lacks " + first + "; export it again with 'edgead export'");
        router_ = open_graph(backend, bundle, folder, file, missing ? FUSED : ROUTING, options);
        for (const auto &name : missing ? std::vector<std::string>() : names_)
            heads_[name] = open_graph(backend, bundle, folder, head_file(name, options.precision), SCORING, options);
    }

    Inference run(const uint8_t *image) override {
        const std::vector<Tensor> found = router_->run(image);
        const size_t votes = heads_.empty() ? 2 : 0;
        const Route way = route(found[votes], found[votes + 1], names_, manifest_);
        const std::vector<Tensor> scored = heads_.empty() ? found : heads_.at(way.category)->run(image);
        Inference made = as_inference(scored[0], scored[1]);
        made.category = way.category, made.reason = way.reason;
        return made;
    }

    std::string provider() const override {
        std::vector<std::string> all{router_->provider()};
        for (const auto &head : heads_) all.push_back(head.second->provider());
        std::string out;
        for (size_t i = 0; i < all.size(); i++)
            if (std::find(all.begin(), all.begin() + static_cast<ptrdiff_t>(i), all[i]) == all.begin() + static_cast<ptrdiff_t>(i))
                out += (out.empty() ? "" : "; ") + all[i];
        return out;
    }

  private:
    const Manifest manifest_;
    std::vector<std::string> names_;
    std::unique_ptr<Graph> router_;
    std::map<std::string, std::unique_ptr<Graph>> heads_;
};

// Whether byte products saturate on this processor, asked of the library itself; as saturation_probe.py.
bool saturates(const Backend &backend) {
    static std::mutex asking;
    static std::map<std::string, bool> known;
    const std::lock_guard<std::mutex> guard(asking);
    const auto before = known.find(backend.name());
    if (before != known.end()) return before->second;
    const bool found = [&] {
        const PrivateFolder folder;
        write_probe(folder.path() + "/probe.onnx");
        const std::unique_ptr<Session> probe = backend.open(folder.path(), "probe.onnx", {1});
        const std::vector<uint8_t> white(PROBE_SIDE * PROBE_SIDE * 3, 255);
        const std::vector<Feed> feeds{{"images", white.data(), {1, PROBE_SIDE, PROBE_SIDE, 3}, false}};
        return std::fabs(probe->run(feeds, {"score"})[0].data[0] - PROBE_SCORE) > 1.0f;
    }();
    return known[backend.name()] = found;
}

void require_exact_sums(const Backend &backend, const Manifest &manifest, const std::string &precision) {
    if (!starts_with(precision, "int8") || manifest.precisions.at(precision).saturation_free || !saturates(backend)) return;
    const char *other = precision != "int8-cpu" && manifest.precisions.count("int8-cpu") ? "int8-cpu" : "fp32";
    const char *why = precision == "int8-cpu" ? "was exported by an earlier version" : "is meant for TensorRT";
    fail(EDGEAD_BACKEND_UNAVAILABLE, precision + " of " + manifest.name + " " + why +
                                         ", and its sums saturate on this processor (it has no VNNI), which changes scores; use "
                                         "precision " + other + ", or export it again");
}

std::vector<std::string> model_files(const Bundle &bundle, const NetworkOptions &options) {
    const Manifest &manifest = bundle.manifest();
    std::vector<std::string> graphs{manifest.precisions.at(options.precision).file}, found;
    for (const auto &one : manifest.categories) graphs.push_back(head_file(one.first, options.precision));
    for (const auto &one : manifest.members) {
        bool wanted = starts_with(one.first, WEIGHTS);
        for (const auto &graph : graphs) {
            const NativeFiles parts = native_files(graph);
            wanted |= one.first == graph || (options.graph.native && (one.first == parts.queries || one.first == parts.score));
        }
        if (wanted) found.push_back(one.first);
    }
    return found;
}

}  // namespace

std::unique_ptr<Network> open_network(const Backend &backend, const Bundle &bundle, const NetworkOptions &options) {
    const Manifest &manifest = bundle.manifest();
    require_exact_sums(backend, manifest, options.precision);
    // Gone when this returns: the library has mapped what it needs, and a process that is killed leaves nothing behind.
    const PrivateFolder folder;
    bundle.extract(folder.path(), model_files(bundle, options));
    if (manifest.routed) return std::make_unique<Routed>(backend, bundle, folder.path(), options);
    auto graph = open_graph(backend, bundle, folder.path(), manifest.precisions.at(options.precision).file, SCORING, options);
    std::unique_ptr<Network> single = std::make_unique<Single>(std::move(graph));
    if (!manifest.tiles) return single;
    return std::make_unique<Tiled>(std::move(single), manifest);
}

}  // namespace edgead
