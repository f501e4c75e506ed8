// Which names are safe, and which two of them are one where case is ignored.
#include "layout.hpp"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "text.hpp"

namespace edgead {

namespace {

#include "letters.h"

bool is_windows_device(const std::string &folded) {
    if (folded == "con" || folded == "prn" || folded == "aux" || folded == "nul") return true;
    return folded.size() == 4 && (starts_with(folded, "com") || starts_with(folded, "lpt")) && folded[3] >= '0' &&
           folded[3] <= '9';
}

}  // namespace

bool starts_with(std::string_view text, std::string_view start) { return text.substr(0, start.size()) == start; }

bool ends_with(std::string_view text, std::string_view end) {
    return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

bool takes_letters(std::string_view name) {
    std::vector<uint32_t> points;
    return decode_utf8(name, points) && std::all_of(points.begin(), points.end(), [](uint32_t c) {
               return c < 0x80 || std::any_of(std::begin(LETTERS), std::end(LETTERS),
                                              [c](const uint32_t(&range)[2]) { return c >= range[0] && c <= range[1]; });
           });
}

std::string fold_name(std::string_view name) {
    std::vector<uint32_t> points;
    decode_utf8(name, points);
    std::string folded;
    for (uint32_t c : points) {
        const auto *found = std::find_if(std::begin(FOLDED), std::end(FOLDED), [c](const auto &one) { return one.point == c; });
        if (found != std::end(FOLDED)) {
            folded += found->folded;
        } else {
            folded += encode_utf8({c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c});
        }
    }
    return folded;
}

std::string member_name_problem(std::string_view name) {
    std::vector<uint32_t> points;
    const bool text = decode_utf8(name, points);
    if (name.empty() || name.size() > 240)
        return "unsafe member name " + repr(head(name, 60)) + ": it must have 1 to 240 bytes";
    const std::string unsafe = "unsafe member name " + repr(name) + ": ";
    bool allowed = text;
    for (uint32_t c : points) {
        const bool special = c < 0x80 && std::string_view("\\:*?\"<>|").find(static_cast<char>(c)) != std::string_view::npos;
        allowed = allowed && !special && is_printable(c);
    }
    if (!allowed) return unsafe + "it holds a character that is not allowed";
    for (size_t start = 0; start <= name.size();) {
        const size_t end = std::min(name.find('/', start), name.size());
        const std::string part(name.substr(start, end - start));
        if (part.empty() || part == "." || part == ".." || part.back() == '.' || part.back() == ' ')
            return unsafe + "it is absolute or leaves its folder";
        // No letter beyond ASCII folds to one of these names.
        if (is_windows_device(fold_name(part.substr(0, part.find('.')))))
            return unsafe + "'" + part + "' is a device on Windows";
        start = end + 1;
    }
    return "";
}

std::string head_file(const std::string &category, const std::string &precision) {
    return "head-" + category + "." + precision + ".onnx";
}

NativeFiles native_files(const std::string &graph) {
    const std::string stem = ends_with(graph, ".onnx") ? graph.substr(0, graph.size() - 5) : graph;
    return {"native-queries." + graph, "native-score." + graph, "native." + stem + ".json"};
}

}  // namespace edgead
