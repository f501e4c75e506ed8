// One function a section, one line a field.
#include "manifest_schema.hpp"

#include <algorithm>
#include <set>

#include "layout.hpp"
#include "text.hpp"

namespace edgead {

std::string printable(const std::string &value) {
    std::vector<uint32_t> points;
    decode_utf8(value, points);
    return std::all_of(points.begin(), points.end(), is_printable) ? "" : "it holds a control character";
}

namespace {

const int64_t MOST_COUNT = int64_t{1} << 53;

Check pixels() { return whole(1, 8192); }
Check frame_pixels() { return whole(1, 65535); }
Check offset() { return whole(-8192, 8192); }
Check count() { return whole(0, MOST_COUNT); }
Check rate() { return number({0.0, 1.0}); }
Check change() { return number({-1.0, 1.0}); }
Check difference() { return number_at_least(0.0); }

std::string component(const std::string &name) {
    if (name.find('/') != name.npos) return repr(name) + " must not hold a slash";
    return member_name_problem(name);
}

std::string graph_file(const std::string &name) {
    return ends_with(name, ".onnx") ? component(name) : repr(name) + " must end in .onnx";
}

std::string listed_member(const std::string &name) {
    const std::string folded = fold_name(name);
    if (folded == MANIFEST_NAME || folded == SIGNATURE_NAME) return repr(name) + " is never listed";
    return member_name_problem(name);
}

TextCheck exactly(const char *wanted) {
    return [=](const std::string &name) { return name == wanted ? "" : repr(name) + " must be " + wanted; };
}

const TextRule TEXT{1, 200, printable};
const TextRule COMPONENT{0, 0, component};
const TextRule GRAPH_FILE{0, 0, graph_file};
const TextRule LISTED{0, 0, listed_member};

bool given(const Value &object, const char *name) {
    const Value *found = object.find(name);
    return found && found->kind != Value::NONE;
}

Check detector() { return object({{"name", text(TEXT)}, {"settings", dict_of(TEXT, anything()), false}}); }

Check region() {
    return object({{"frame_width", frame_pixels()},
                   {"frame_height", frame_pixels()},
                   {"x", whole(0, 65535)},
                   {"y", whole(0, 65535)},
                   {"width", frame_pixels()},
                   {"height", frame_pixels()},
                   {"mask", or_none(text({0, 0, exactly(MASK_NAME)})), false}});
}

Check tiles() {
    return object({{"rows", whole(1, MOST_TILES)}, {"columns", whole(1, MOST_TILES)}, {"overlap", whole(1, 8192)}});
}

Check align() {
    return object({{"rule", one_of({"pose-overlap/1"}, true), false},
                   {"frame_width", frame_pixels()},
                   {"frame_height", frame_pixels()},
                   {"canvas_width", pixels()},
                   {"canvas_height", pixels()},
                   {"window_x", offset()},
                   {"window_y", offset()},
                   {"window_width", pixels()},
                   {"window_height", pixels()},
                   {"minimum", whole(1, 1000)},
                   {"turns", truth()},
                   {"template", text({0, 0, exactly(TEMPLATE_NAME)}), false}});
}

std::string alignable(const Value &input) {
    if (!given(input, "align")) return "";
    const Value *region = input.find("region");
    // As Python has it: a mask that is an empty text is none. The check of its name lets none of these pass.
    const bool masked = region && region->kind == Value::OBJECT && given(*region, "mask");
    return given(input, "tiles") || masked ? "what is aligned has neither tiles nor a mask" : "";
}

Check input() {
    return object({{"height", pixels()},
                   {"width", pixels()},
                   {"color", one_of({"RGB"}), false},
                   {"resize", text(TEXT)},
                   {"region", or_none(region()), false},
                   {"tiles", or_none(tiles()), false},
                   {"align", or_none(align()), false},
                   {"bits", whole(8, 16), false}},
                  alignable);
}

Check map_grid() { return object({{"height", pixels()}, {"width", pixels()}}); }

Check threshold() {
    const auto ordered = [](const Value &value) {
        return value.find("low")->number > value.find("high")->number ? "low lies above high" : "";
    };
    return object({{"value", number()},
                   {"target_false_alarm_rate", number({0.0, 1.0, true, true})},
                   {"n_normals", count()},
                   {"low", rate()},
                   {"high", rate()},
                   {"supported", truth()}},
                  ordered);
}

std::string complete(const Value &normals) {
    const std::set<std::string> signals{"score", "level", "brightness", "focus"};
    std::set<std::string> there;
    const auto &quantiles = normals.find("quantiles")->fields;
    for (const auto &one : quantiles) there.insert(one.first);
    if (there != signals) return "the signals are score, level, brightness, focus";
    for (const auto &one : quantiles) {
        const auto &values = one.second.items;
        const bool falls = std::adjacent_find(values.begin(), values.end(), [](const Value &low, const Value &high) {
                               return low.number > high.number;
                           }) != values.end();
        if (values.size() != 21 || falls) return one.first + " needs 21 ascending quantiles";
    }
    return "";
}

Check normals() {
    return object({{"images", count()}, {"quantiles", dict_of(TEXT, list_of(number()))}, {"pictures", or_none(count()), false}},
                  complete);
}

Check category() {
    return object({{"threshold", or_none(threshold()), false},
                   {"minimum_similarity", or_none(change()), false},
                   {"n_train", count()},
                   {"normals", or_none(normals()), false}});
}

Check member() { return object({{"sha256", pattern_sha256()}, {"size", count()}}); }

Check precision() {
    return object({{"file", text(GRAPH_FILE)},
                   {"runtimes", list_of(text(TEXT))},
                   {"threshold", or_none(threshold()), false},
                   {"categories", dict_of(COMPONENT, threshold()), false},
                   {"max_drop", or_none(number_at_least(0.0, true)), false},
                   {"saturation_free", truth(), false}});
}

Check parity() {
    return object({{"max_score_difference", difference()},
                   {"p99_score_difference", difference()},
                   {"max_map_difference", difference()},
                   {"flips", count()},
                   {"borderline", count()},
                   {"images", count()},
                   {"epsilon", or_none(difference()), false},
                   {"rank_correlation", or_none(change()), false},
                   {"worst_image", or_none(text(TEXT)), false},
                   {"drop", or_none(difference()), false},
                   {"half_margin", or_none(difference()), false},
                   {"auroc", or_none(rate()), false},
                   {"auroc_change", or_none(change()), false},
                   {"auroc_change_low", or_none(change()), false},
                   {"auroc_change_high", or_none(change()), false},
                   {"drift_allowed", truth(), false},
                   {"note", or_none(text(TEXT)), false}});
}

std::string tiles_problem(const Value &tiles, const Value &grid) {
    const auto whole_of = [](const Value &object, const char *name) { return object.find(name)->whole; };
    const int64_t rows = whole_of(tiles, "rows"), columns = whole_of(tiles, "columns");
    const int64_t overlap = whole_of(tiles, "overlap");
    const int64_t height = whole_of(grid, "height"), width = whole_of(grid, "width");
    if (rows * columns < 2 || rows * columns > MOST_TILES)
        return "tiles are 2 to 64 in all, such as 2x2, not " + std::to_string(rows) + "x" + std::to_string(columns);
    const int64_t least = std::min(height, width);
    if (2 * overlap < least) return "";
    return "tiles overlap by 1 to " + std::to_string((least - 1) / 2) + " cells of their " + std::to_string(height) + "x" +
           std::to_string(width) + ", not " + std::to_string(overlap);
}

std::string routed_problem(const Value &whole) {
    const Value *categories = whole.find("categories");
    if (!categories || categories->fields.empty()) return "a routed graph must state its categories";
    for (const auto &one : categories->fields)
        if (!given(one.second, "threshold") || !given(one.second, "minimum_similarity"))
            return "category " + repr(one.first) + " of a routed graph lacks its threshold or minimum_similarity";
    for (const auto &entry : whole.find("precisions")->fields) {
        std::set<std::string> unknown;
        if (const Value *own = entry.second.find("categories"))
            for (const auto &one : own->fields)
                if (!categories->find(one.first)) unknown.insert(one.first);
        if (!unknown.empty())
            return "precision " + repr(entry.first) + " has a threshold of the category " + repr(*unknown.begin()) +
                   ", which is none";
    }
    return "";
}

std::string consistent(const Value &whole) {
    const Value *graph = whole.find("graph");
    const bool single = !graph || graph->text == "single";
    const Value &input = *whole.find("input");
    if (single && !given(whole, "map")) return "a single graph must state its map grid";
    if (given(input, "tiles")) {
        if (!single) return "only a single graph judges tiles";
        const std::string found = tiles_problem(*input.find("tiles"), *whole.find("map"));
        if (!found.empty()) return found;
    }
    if (given(input, "align") && !single) return "only a single graph judges aligned frames";
    return single ? "" : routed_problem(whole);
}

bool is_one(const Value &value, Problems &problems) {
    if (value.kind == Value::INT && value.whole == 1) return true;
    problems.add("Input should be 1");
    return false;
}

Check whole_manifest() {
    return object({{"format_version", is_one, false},
                   {"name", text(TEXT)},
                   {"graph", one_of({"single", "routed"}), false},
                   {"score_direction", one_of({"higher is more anomalous"}), false},
                   {"detector", detector()},
                   {"input", input()},
                   {"map", or_none(map_grid()), false},
                   {"threshold", threshold()},
                   {"categories", dict_of(COMPONENT, category()), false},
                   {"members", dict_of(LISTED, member()), false},
                   {"precisions", dict_of(COMPONENT, precision(), 1)},
                   {"parity", dict_of(GRAPH_FILE, dict_of(TEXT, parity())), false},
                   {"provenance", dict_of(TEXT, anything()), false}},
                  consistent);
}

}  // namespace

const Check &manifest_check() {
    static const Check check = whole_manifest();
    return check;
}

}  // namespace edgead
