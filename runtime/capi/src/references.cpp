// Expected results read, and their names compared with the images.
#include "references.hpp"

#include <algorithm>
#include <cmath>
#include <set>

#include "failure.hpp"
#include "layout.hpp"
#include "npz.hpp"

namespace edgead {

namespace {

[[noreturn]] void wrong(const std::string &message) { fail(EDGEAD_BUNDLE_CONTENT, message + "; export it again"); }

std::vector<std::string> image_names(const Bundle &bundle) {
    std::vector<std::string> names;
    for (const auto &one : bundle.manifest().members)
        if (starts_with(one.first, REFERENCES) && one.first != EXPECTED_NAME)
            names.push_back(one.first.substr(std::string(REFERENCES).size()));
    std::sort(names.begin(), names.end());
    return names;
}

void check(const std::map<std::string, Array> &arrays, const std::string &where) {
    const Array &names = arrays.at("names"), &score = arrays.at("score"), &map = arrays.at("map");
    const bool right = names.kind == 'U' && score.kind == 'f' && map.kind == 'f' && names.shape.size() == 1 &&
                       score.shape.size() == 1 && map.shape.size() == 3;
    if (!right) wrong(where + " must hold names (N,) str, score (N,) and map (N, gh, gw) float32");
    const std::set<std::string> unique(names.text.begin(), names.text.end());
    const size_t count = names.text.size();
    if (score.shape[0] != count || map.shape[0] != count || unique.size() != count || !map.shape[1] || !map.shape[2])
        wrong(where + ": names, score and map do not belong together");
    const auto finite = [](float x) { return std::isfinite(x); };
    if (!std::all_of(score.floats.begin(), score.floats.end(), finite) || !std::all_of(map.floats.begin(), map.floats.end(), finite))
        wrong(where + " holds a value that is not finite");
    for (const auto &[key, kind] : {std::pair<const char *, char>{"category", 'U'}, {"known", 'b'}}) {
        const auto found = arrays.find(key);
        if (found != arrays.end() && (found->second.kind != kind || found->second.shape != names.shape))
            wrong(where + ": " + key + " does not belong to names");
    }
}

}  // namespace

std::map<std::string, Inference> read_expected(const Bundle &bundle) {
    const std::vector<std::string> images = image_names(bundle);
    if (images.empty()) wrong(bundle.path() + " holds no reference images, so nothing can be proved");
    const std::string where = bundle.path() + ": " + EXPECTED_NAME;
    std::map<std::string, Array> arrays;
    std::string problem;
    if (!read_npz(bundle.read(EXPECTED_NAME), arrays, problem)) wrong(where + " cannot be read (" + problem + ")");
    std::set<std::string> keys;
    for (const auto &one : arrays) keys.insert(one.first);
    const bool routed = keys == std::set<std::string>{"names", "score", "map", "category", "known"};
    if (!routed && keys != std::set<std::string>{"names", "score", "map"}) wrong(where + " must hold names, score and map");
    check(arrays, where);
    std::vector<std::string> names = arrays["names"].text;
    std::sort(names.begin(), names.end());
    if (names != images) wrong(bundle.path() + ": reference images and expected results differ in name");
    if (bundle.manifest().routed != routed) wrong(bundle.path() + ": the expected results are of another kind of graph");
    std::map<std::string, Inference> found;
    const Array &map = arrays["map"];
    const size_t cells = map.shape[1] * map.shape[2];
    for (size_t i = 0; i < names.size(); i++) {
        Inference one;
        one.score = arrays["score"].floats[i];
        one.height = static_cast<int>(map.shape[1]), one.width = static_cast<int>(map.shape[2]);
        one.map.assign(map.floats.begin() + static_cast<ptrdiff_t>(i * cells), map.floats.begin() + static_cast<ptrdiff_t>((i + 1) * cells));
        if (routed) one.category = arrays["category"].text[i];
        if (routed && arrays["known"].floats[i] == 0.0f) one.reason = "unknown category";
        found[arrays["names"].text[i]] = std::move(one);
    }
    return found;
}

}  // namespace edgead
