// What of a bundle's manifest decides, parsed as untrusted input; every other field is checked too.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace edgead {

struct Member {
    std::string sha256;
    uint64_t size;
};

struct RegionSection {
    int frame_width, frame_height, x, y, width, height;
    bool mask;
};

struct TilesSection {
    int rows, columns, overlap;
};

struct AlignSection {
    int frame_width, frame_height, canvas_width, canvas_height, window_x, window_y, window_width, window_height, minimum;
    bool turns;
};

struct Category {
    std::optional<double> threshold, minimum_similarity;
};

struct Precision {
    std::string file;
    std::optional<double> threshold, max_drop;
    std::map<std::string, double> categories;
    bool saturation_free;
};

struct Manifest {
    std::string name;
    bool routed;
    int height, width;
    std::string resize;
    std::optional<RegionSection> region;
    std::optional<TilesSection> tiles;
    std::optional<AlignSection> align;
    int map_height = 0, map_width = 0;  // 0: the manifest does not say
    double threshold;
    std::map<std::string, Category> categories;
    std::vector<std::pair<std::string, Member>> members;  // in the order of the file
    std::map<std::string, Precision> precisions;

    const Member *member(const std::string &name) const;
};

// Thresholds in raw score units.
struct Limits {
    double value;
    std::map<std::string, double> categories;
};

// The thresholds that the scores of a precision are compared with.
Limits find_limits(const Manifest &manifest, const std::string &precision);

constexpr uint64_t MAX_MANIFEST_BYTES = 1 << 20;

// Parse the bytes of manifest.json; label: name of the bundle, for messages.
Manifest parse_manifest(const std::string &data, const std::string &label);

}  // namespace edgead
