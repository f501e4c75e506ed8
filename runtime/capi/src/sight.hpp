// From a frame to the network's input: region, then alignment or tiles, then the resize, as view.py and roi.py.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "alignment.hpp"
#include "bundle.hpp"
#include "picture.hpp"

namespace edgead {

enum class Layout { rgb, bgr, gray, nv12 };

// A frame whose pointers, sizes and strides have been checked.
struct Frame {
    Layout layout;
    View pixels;  // of NV12: its luma
    Nv12 nv12;
};

class Sight {
  public:
    explicit Sight(const Bundle &bundle);

    // Pixels of what the network gets, (rows, width, 3), tiles below each other.
    int rows() const { return manifest_.height * tiles(); }
    int width() const { return manifest_.width; }
    int tiles() const { return manifest_.tiles ? manifest_.tiles->rows * manifest_.tiles->columns : 1; }
    // (width, height) of the frames, none where any is taken.
    std::optional<std::pair<int, int>> frame_size() const;

    // Write a frame as the network gets it; returns why there is nothing to judge, none where there is. Raises a Failure
    // for a frame of another size.
    std::optional<std::string> prepare(const Frame &frame, uint8_t *out) const;

  private:
    void check_region(const std::vector<uint8_t> &mask);
    void cut_tiles(const View &part, bool swap, uint8_t *out) const;
    Picture paint(const View &part) const;

    Manifest manifest_;
    std::vector<uint8_t> ignored_;  // of the region's size, not 0 where nothing is judged; empty: everything is
    std::unique_ptr<Alignment> align_;
};

}  // namespace edgead
