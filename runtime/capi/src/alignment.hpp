// The pose of a part in a frame, found and undone with whole numbers, as alignment.py.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "manifest.hpp"
#include "picture.hpp"
#include "pose.hpp"

namespace edgead {

class Alignment {
  public:
    // template_png: the part picture, its grey values, and what is judged, below each other. Raises a Failure.
    Alignment(const AlignSection &section, const std::vector<uint8_t> &template_png);

    // Write what the network sees of a frame or its region, (height, width, 3); returns why the part was not found.
    std::optional<std::string> prepare(const View &part, bool swap, int height, int width, uint8_t *out) const;

  private:
    // How far columns or rows of the network lie from the template's centre, in 1/65536 canvas pixel.
    std::vector<int64_t> offsets(int count, int middle, int over) const;
    bool is_plain(int64_t right, int64_t down) const;
    void undo(const Picture &canvas, const Pose &pose, const Small &small, int height, int width, uint8_t *out) const;
    void check() const;

    AlignSection section_;
    int side_ = 0, small_width_, small_height_;
    std::vector<uint8_t> part_, grey_, judged_;
    std::unique_ptr<PoseSearch> search_;
};

}  // namespace edgead
