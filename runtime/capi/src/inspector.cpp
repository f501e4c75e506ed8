// A frame judged; a bundle's references replayed and compared.
#include "inspector.hpp"

#include <unistd.h>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "failure.hpp"
#include "layout.hpp"
#include "png.hpp"
#include "references.hpp"
#include "text.hpp"
#include "trust.hpp"

namespace edgead {

namespace {

// How far a score may lie from the trained model's, as a share of the margin; replay.py says why.
constexpr double FP32_TOLERANCE = 1e-3, REDUCED_TOLERANCE = 0.05, ROUNDING = 1e-5;

double milliseconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

Judged not_inspected(const std::string &reason, double threshold) {
    Judged made;
    made.verdict = {std::numeric_limits<double>::quiet_NaN(), threshold, EDGEAD_NOT_INSPECTED, std::nullopt, reason};
    return made;
}

std::vector<std::string> names_of(const std::map<std::string, Precision> &precisions) {
    std::vector<std::string> names;
    for (const auto &one : precisions) names.push_back(one.first);
    return names;
}

Frame as_frame(const Picture &picture) {
    return {picture.channels == 1 ? Layout::gray : Layout::rgb, picture.view(), {}};
}

double worst_difference(const std::vector<float> &a, const std::vector<float> &b) {
    double worst = 0.0;
    for (size_t i = 0; i < a.size(); i++) {
        const double apart = std::fabs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
        if (!(apart <= worst)) worst = apart;
    }
    return worst;
}

}  // namespace

Inspector::Inspector(const std::string &path, const OpenOptions &options) : path_(path), process_(getpid()) {
    const Bundle bundle(path, asked_trust(options.trust));
    sha256_ = bundle.sha256();
    manifest_ = bundle.manifest();
    sight_ = std::make_unique<Sight>(bundle);
    precision_ = options.precision;
    if (!manifest_->precisions.count(precision_))
        fail(EDGEAD_UNKNOWN_PRECISION,
             path + " has no precision '" + precision_ + "'." + suggest(precision_, names_of(manifest_->precisions)));
    backend_ = &(options.backend == "openvino" ? load_openvino : load_onnxruntime)(options.library);
    network_ = open_network(*backend_, bundle, {precision_, {options.threads, options.native}});
    limits_ = find_limits(*manifest_, precision_);
    picture_.resize(static_cast<size_t>(sight_->rows()) * static_cast<size_t>(sight_->width()) * 3);
#if defined(__GLIBC__)
    // What packing took is given back to the system: an inspector stays open for months.
    malloc_trim(0);
#endif
}

bool Inspector::is_here() const { return getpid() == process_; }

std::string Inspector::describe() const {
    return backend_->name() + " " + backend_->version() + " " + network_->provider() + ", " + precision_;
}

edgead_shape Inspector::shape() const {
    edgead_shape made{};
    made.struct_size = sizeof(made);
    made.height = sight_->rows(), made.width = sight_->width();
    made.map_height = manifest_->map_height, made.map_width = manifest_->map_width;
    if (manifest_->tiles) {
        const TilesSection &t = *manifest_->tiles;
        made.map_height = t.rows * made.map_height - (t.rows - 1) * t.overlap;
        made.map_width = t.columns * made.map_width - (t.columns - 1) * t.overlap;
    }
    if (const auto size = sight_->frame_size()) made.frame_width = size->first, made.frame_height = size->second;
    return made;
}

Judged Inspector::inspect(const Frame &frame) {
    const auto started = std::chrono::steady_clock::now();
    if (const auto missing = sight_->prepare(frame, picture_.data())) return not_inspected(*missing, limits_.value);
    Judged made;
    const double preprocess_ms = milliseconds_since(started);
    const auto prepared = std::chrono::steady_clock::now();
    try {
        Inference inference = network_->run(picture_.data());
        made.network_ms = milliseconds_since(prepared);
        const auto inferred = std::chrono::steady_clock::now();
        made.verdict = judge(limits_, inference);
        made.map = std::move(inference.map), made.height = inference.height, made.width = inference.width;
        made.decide_ms = milliseconds_since(inferred);
    } catch (const Failure &failure) {
        if (failure.code == EDGEAD_OUT_OF_MEMORY) throw;
        made = not_inspected(failure.message, limits_.value);
    }
    made.preprocess_ms = preprocess_ms;
    return made;
}

Checked Inspector::check() {
    // Opened before, and its digest is compared: a line that runs when its key ends goes on.
    const Bundle bundle(path_, std::nullopt);
    if (bundle.sha256() != sha256_)
        fail(EDGEAD_BUNDLE_ALTERED, path_ + " is not the bundle that was opened; open it again");
    const std::map<std::string, Inference> expected = read_expected(bundle);
    const Limits whole = find_limits(*manifest_, "fp32");
    std::vector<Verdict> verdicts;
    for (const auto &one : expected) verdicts.push_back(judge(whole, one.second));
    const double allowed = manifest_->precisions.at(precision_).max_drop.value_or(0.0);
    const double share = precision_ == "fp32" ? FP32_TOLERANCE : std::max(REDUCED_TOLERANCE, allowed);
    Checked found;
    size_t index = 0;
    for (const auto &[name, wanted] : expected) {
        const Verdict &own = verdicts[index++];
        std::vector<Verdict> alike;
        std::copy_if(verdicts.begin(), verdicts.end(), std::back_inserter(alike),
                     [&](const Verdict &one) { return one.category == own.category; });
        const double tolerance = share * score_margin(alike, own.threshold) + ROUNDING * std::fabs(own.score) + 1e-12;
        const std::string said = name + ": ";
        const Picture picture = decode_png(bundle.read(REFERENCES + name), name);
        const Judged now = inspect(as_frame(picture));
        if (now.map.empty()) fail(EDGEAD_CHECK_FAILED, said + now.verdict.reason.value_or("nothing was judged"));
        if (now.height != wanted.height || now.width != wanted.width)
            fail(EDGEAD_CHECK_FAILED, said + "the network gives a map of another grid than expected");
        const double apart = std::fabs(now.verdict.score - own.score), map_apart = worst_difference(now.map, wanted.map);
        found.references++;
        found.worst = std::isfinite(apart) ? std::max(found.worst, apart / tolerance) : INFINITY;
        if (!(map_apart <= found.worst_map)) found.worst_map = map_apart;
        std::string problem;
        if (!std::isfinite(now.verdict.score) || !std::isfinite(map_apart)) {
            problem = "the score or map is not finite on this device";
        } else if (now.verdict.decision != own.decision) {
            problem = std::string(decision_name(own.decision)) + " became " + decision_name(now.verdict.decision);
        } else if (now.verdict.category != own.category) {
            problem = own.category.value_or("None") + " was taken for " + now.verdict.category.value_or("None");
        } else if (apart > tolerance) {
            problem = "the score differs by " + general3(apart) + ", allowed are " + general3(tolerance);
        }
        if (!problem.empty() && found.problem.empty()) found.problem = said + problem;
    }
    return found;
}

}  // namespace edgead
