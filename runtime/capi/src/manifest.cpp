// A manifest read of its JSON, once every field was found right.
#include "manifest.hpp"

#include <algorithm>

#include "failure.hpp"
#include "layout.hpp"
#include "manifest_schema.hpp"
#include "text.hpp"
#include "version.hpp"

namespace edgead {

namespace {

const char *const EXPORT_AGAIN = "export it again with 'edgead export'";
const char *const RESIZE_RULE = "reduce-bilinear/1";

[[noreturn]] void wrong(const std::string &message) { fail(EDGEAD_BUNDLE_MANIFEST, message); }

const Value *given(const Value &object, const char *name) {
    const Value *found = object.find(name);
    return found && found->kind != Value::NONE ? found : nullptr;
}

int whole_of(const Value &object, const char *name) { return static_cast<int>(object.find(name)->whole); }

std::optional<double> number_of(const Value &object, const char *name) {
    const Value *found = given(object, name);
    return found ? std::optional<double>(found->number) : std::nullopt;
}

std::optional<double> threshold_of(const Value &object) {
    const Value *found = given(object, "threshold");
    return found ? number_of(*found, "value") : std::nullopt;
}

std::string join(const std::vector<std::string> &parts) {
    std::string out;
    for (const auto &part : parts) out += (out.empty() ? "" : ".") + part;
    return out;
}

// As Python finds it in the JSON before any field is judged.
void check_version(const Value &content, const std::string &label) {
    const Value *version = content.find("format_version");
    if (!version || !version->is_whole())
        wrong(label + ": the manifest has no format_version; " + EXPORT_AGAIN);
    const std::string shown =
        (version->kind == Value::INT ? std::to_string(version->whole) : version->text).substr(0, 30);
    if (version->number > 1)
        fail(EDGEAD_BUNDLE_NEWER, label + " was made by a newer edgead (format " + shown + "); upgrade edgead");
    if (version->number < 1) wrong(label + " has an unknown format (" + shown + "); " + EXPORT_AGAIN);
}

void refuse(const Problems &problems, const std::string &label) {
    const auto newer =
        std::find_if(problems.found.begin(), problems.found.end(), [](const Problem &one) { return one.newer; });
    if (newer != problems.found.end())
        fail(EDGEAD_BUNDLE_NEWER, label + ": " +
                                      one_line("field " + repr(head(join(newer->where), 120)) + " is unknown to this edgead (" +
                                               VERSION + "), so a newer one made it") +
                                      "; upgrade edgead, or " + EXPORT_AGAIN);
    const Problem &first = problems.found.front();
    const std::string where = first.where.empty() ? "(whole)" : join(first.where);
    const size_t others = problems.count() - 1;
    const std::string more = others ? " (and " + std::to_string(others) + " more)" : "";
    wrong(label + ": " + one_line("manifest field " + repr(head(where, 120)) + ": " + first.what) + more + "; " + EXPORT_AGAIN);
}

void read_input(const Value &input, Manifest &manifest) {
    manifest.height = whole_of(input, "height");
    manifest.width = whole_of(input, "width");
    manifest.resize = input.find("resize")->text;
    if (const Value *r = given(input, "region"))
        manifest.region = RegionSection{whole_of(*r, "frame_width"), whole_of(*r, "frame_height"), whole_of(*r, "x"),
                                        whole_of(*r, "y"),           whole_of(*r, "width"),        whole_of(*r, "height"),
                                        given(*r, "mask") != nullptr};
    if (const Value *t = given(input, "tiles"))
        manifest.tiles = TilesSection{whole_of(*t, "rows"), whole_of(*t, "columns"), whole_of(*t, "overlap")};
    if (const Value *a = given(input, "align"))
        manifest.align = AlignSection{whole_of(*a, "frame_width"),  whole_of(*a, "frame_height"),
                                      whole_of(*a, "canvas_width"), whole_of(*a, "canvas_height"),
                                      whole_of(*a, "window_x"),     whole_of(*a, "window_y"),
                                      whole_of(*a, "window_width"), whole_of(*a, "window_height"),
                                      whole_of(*a, "minimum"),      a->find("turns")->truth};
}

Precision read_precision(const Value &entry) {
    Precision made{entry.find("file")->text, threshold_of(entry), number_of(entry, "max_drop"), {}, false};
    if (const Value *own = entry.find("categories"))
        for (const auto &one : own->fields) made.categories[one.first] = one.second.find("value")->number;
    if (const Value *free = entry.find("saturation_free")) made.saturation_free = free->truth;
    return made;
}

Manifest read(const Value &content) {
    Manifest manifest{};
    manifest.name = content.find("name")->text;
    const Value *graph = content.find("graph");
    manifest.routed = graph && graph->text == "routed";
    read_input(*content.find("input"), manifest);
    if (const Value *grid = given(content, "map"))
        manifest.map_height = whole_of(*grid, "height"), manifest.map_width = whole_of(*grid, "width");
    manifest.threshold = *threshold_of(content);
    if (const Value *categories = content.find("categories"))
        for (const auto &one : categories->fields)
            manifest.categories[one.first] = {threshold_of(one.second), number_of(one.second, "minimum_similarity")};
    if (const Value *members = content.find("members"))
        for (const auto &one : members->fields)
            manifest.members.emplace_back(one.first, Member{one.second.find("sha256")->text,
                                                            static_cast<uint64_t>(one.second.find("size")->whole)});
    for (const auto &one : content.find("precisions")->fields) manifest.precisions[one.first] = read_precision(one.second);
    return manifest;
}

}  // namespace

const Member *Manifest::member(const std::string &wanted) const {
    for (const auto &one : members)
        if (one.first == wanted) return &one.second;
    return nullptr;
}

Limits find_limits(const Manifest &manifest, const std::string &precision) {
    const auto entry = manifest.precisions.find(precision);
    const bool there = entry != manifest.precisions.end();
    Limits limits{there ? entry->second.threshold.value_or(manifest.threshold) : manifest.threshold, {}};
    if (!manifest.routed) return limits;
    for (const auto &one : manifest.categories) {
        limits.categories[one.first] = *one.second.threshold;
        if (!there) continue;
        const auto own = entry->second.categories.find(one.first);
        if (own != entry->second.categories.end()) limits.categories[one.first] = own->second;
    }
    return limits;
}

Manifest parse_manifest(const std::string &data, const std::string &label) {
    if (data.size() > MAX_MANIFEST_BYTES)
        wrong(label + ": the manifest has " + std::to_string(data.size()) + " bytes, allowed are 1 MiB; " + EXPORT_AGAIN);
    Value content;
    std::string problem;
    if (!parse_json(data, content, problem))
        wrong(label + ": the manifest is not valid JSON (" + one_line(problem) + "); " + EXPORT_AGAIN);
    if (content.kind != Value::OBJECT) wrong(label + ": the manifest is not a JSON object; " + EXPORT_AGAIN);
    check_version(content, label);
    Problems problems;
    if (!manifest_check()(content, problems)) refuse(problems, label);
    Manifest manifest = read(content);
    // Another rule gives other pixels, and other pixels give other decisions.
    if (manifest.resize != RESIZE_RULE)
        fail(EDGEAD_BUNDLE_NEWER, label + " wants the resize rule '" + manifest.resize + "', this edgead has '" +
                                      RESIZE_RULE + "'; upgrade edgead");
    return manifest;
}

}  // namespace edgead
