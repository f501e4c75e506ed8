// Where a part is on a small picture and how it is turned, in whole numbers, as pose.py.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "picture.hpp"

namespace edgead {

constexpr int SMALL_SIDE = 96, TURN = 1024, UNIT = 16, FULL = 1000, SINE_BITS = 14;

// round(2^14 sin) of an angle in 1/1024 of a turn.
int32_t sine(int angle);

struct Pose {
    int64_t x, y;  // of the template's centre, in 1/UNIT of a small pixel
    int angle, overlap;
};

// A grey picture of a part, and the part picture beside it.
struct Small {
    int width, height;
    std::vector<uint8_t> part, grey;
    uint8_t background[3];
};

// Width and height of the small picture of a canvas.
std::pair<int, int> small_size(int width, int height);

// The part picture of a canvas (RGB).
Small part_picture(const View &canvas, int width, int height);

class PoseSearch {
  public:
    // part, grey: (side, side) of the template.
    PoseSearch(const std::vector<uint8_t> &part, const std::vector<uint8_t> &grey, int side, bool turns);

    // The best pose of the template on a small picture.
    Pose find(const Small &small) const;

  private:
    struct Point {
        int32_t right, down;  // twice the distance from the centre
        uint8_t part, grey;
    };
    struct Field {
        std::vector<uint8_t> flat;
        int width, height;
        uint8_t read(int32_t x, int32_t y) const;
    };
    struct Place {
        int64_t x, y;
        int angle;
    };
    using Try = std::pair<int64_t, Place>;

    static Field make_field(const std::vector<uint8_t> &picture, int width, int height);
    static int64_t overlap(const std::vector<Point> &points, const Field &field, int angle, int64_t x, int64_t y);
    static std::vector<Place> alike(const std::vector<Try> &tries);
    std::vector<Place> coarse(const Field &field, int64_t x, int64_t y) const;
    Try refine(const std::vector<Point> &points, const Field &field, Place place, const int (*steps)[2], int count) const;
    int64_t unlike(const Field &grey, const Place &place) const;

    std::vector<Point> all_, some_, few_;
    int64_t weight_ = 0;
    bool turns_;
};

}  // namespace edgead
