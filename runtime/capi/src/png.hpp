// PNG files as a bundle holds them: 8 bits a channel, not interlaced; others are refused by name.
#pragma once

#include <string>
#include <vector>

#include "picture.hpp"

namespace edgead {

struct PngHead {
    int width, height, channels;  // 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA
};

// Read what a file says of itself; raises a Failure where it is no PNG, or of a form that is not read here.
PngHead png_head(const std::vector<uint8_t> &file, const std::string &name);

// Decode a file without its alpha: 1 channel or 3.
Picture decode_png(const std::vector<uint8_t> &file, const std::string &name);

}  // namespace edgead
