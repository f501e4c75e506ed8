// A template laid over a small picture until most of both overlaps.
#include "pose.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>

namespace edgead {

namespace {

constexpr int COARSE = 64;  // angles that are tried first
constexpr size_t CANDIDATES = 4;
// Steps of the refinement, angle in 1/TURN and position in 1/UNIT, and about how many template pixels they look at.
constexpr int FAR[][2] = {{16, 64}, {16, 48}, {8, 32}}, NEAR[][2] = {{8, 16}, {4, 8}, {2, 4}, {1, 2}};
constexpr size_t FEW_POINTS = 200, POINTS = 600;
constexpr int ALIKE = 32;  // poses whose overlaps differ by less than 1/32 are told apart by grey values
constexpr int THREE[3] = {0, -1, 1};
constexpr int PIXEL_SHIFT = SINE_BITS + 4;  // of 1/UNIT

int wrapped(int angle) { return (angle % TURN + TURN) % TURN; }

// Otsu's threshold of a histogram, the first of those that part it alike, as otsu.py.
int otsu(const std::array<int64_t, 256> &counts) {
    int64_t all = 0, weighted = 0, below = 0, summed = 0;
    for (int i = 0; i < 256; i++) all += counts[static_cast<size_t>(i)], weighted += i * counts[static_cast<size_t>(i)];
    double most = -2.0;
    int best = 0;
    for (int i = 0; i < 256; i++) {
        below += counts[static_cast<size_t>(i)], summed += i * counts[static_cast<size_t>(i)];
        const auto apart = static_cast<double>(weighted * below - summed * all);
        const auto pairs = static_cast<double>(below * (all - below));
        const double between = pairs > 0 ? apart * apart / pairs : -1.0;
        if (between > most) most = between, best = i;
    }
    return best;
}

int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

}  // namespace

int32_t sine(int angle) {
    // No quotient lies near a half, so that rounding is safe; a test compares all of them.
    static const std::array<int32_t, TURN> table = [] {
        std::array<int32_t, TURN> made{};
        for (int i = 0; i < TURN; i++)
            made[static_cast<size_t>(i)] =
                static_cast<int32_t>(std::lround((1 << SINE_BITS) * std::sin(2.0 * 3.14159265358979323846 * i / TURN)));
        return made;
    }();
    return table[static_cast<size_t>(wrapped(angle))];
}

std::pair<int, int> small_size(int width, int height) {
    const int longer = std::max(width, height);
    if (longer <= SMALL_SIDE) return {width, height};
    const auto small = [longer](int side) { return std::max(1, (2 * side * SMALL_SIDE + longer) / (2 * longer)); };
    return {small(width), small(height)};
}

Small part_picture(const View &canvas, int width, int height) {
    Small small{width, height, {}, {}, {}};
    const auto count = static_cast<size_t>(width) * static_cast<size_t>(height);
    std::vector<uint8_t> picture(count * 3), far(count);
    resize(canvas, height, width, false, picture.data());
    for (size_t c = 0; c < 3; c++) {
        std::vector<uint8_t> border;
        const auto at = [&](int y, int x) { return picture[(static_cast<size_t>(y) * static_cast<size_t>(width) + static_cast<size_t>(x)) * 3 + c]; };
        for (int x = 0; x < width; x++) border.push_back(at(0, x)), border.push_back(at(height - 1, x));
        for (int y = 1; y < height - 1; y++) border.push_back(at(y, 0)), border.push_back(at(y, width - 1));
        std::sort(border.begin(), border.end());
        small.background[c] = border[(border.size() - 1) / 2];
    }
    std::array<int64_t, 256> histogram{};
    for (size_t i = 0; i < count; i++) {
        int most = 0;
        for (size_t c = 0; c < 3; c++) most = std::max(most, std::abs(picture[3 * i + c] - small.background[c]));
        far[i] = static_cast<uint8_t>(most);
        histogram[static_cast<size_t>(most)]++;
        small.grey.push_back(static_cast<uint8_t>((picture[3 * i] * 77 + picture[3 * i + 1] * 150 + picture[3 * i + 2] * 29 + 128) >> 8));
    }
    const int threshold = std::max(1, otsu(histogram));
    for (size_t i = 0; i < count; i++)
        small.part.push_back(
            static_cast<uint8_t>(std::clamp<int64_t>(floor_div((2 * far[i] - threshold) * 255, 2 * threshold), 0, 255)));
    return small;
}

PoseSearch::PoseSearch(const std::vector<uint8_t> &part, const std::vector<uint8_t> &grey, int side, bool turns) : turns_(turns) {
    for (int row = 0; row < side; row++)
        for (int column = 0; column < side; column++) {
            const size_t at = static_cast<size_t>(row) * static_cast<size_t>(side) + static_cast<size_t>(column);
            weight_ += part[at];
            if (part[at]) all_.push_back({2 * column + 1 - side, 2 * row + 1 - side, part[at], grey[at]});
        }
    const auto pick = [this](size_t most) {
        std::vector<Point> picked;
        for (size_t i = 0; i < all_.size(); i += std::max<size_t>(1, all_.size() / most)) picked.push_back(all_[i]);
        return picked;
    };
    some_ = pick(POINTS), few_ = pick(FEW_POINTS);
}

// A border of zeros, so that what lies outside reads as background.
PoseSearch::Field PoseSearch::make_field(const std::vector<uint8_t> &picture, int width, int height) {
    Field field{std::vector<uint8_t>(static_cast<size_t>(width + 2) * static_cast<size_t>(height + 2)), width + 2, height + 2};
    for (int y = 0; y < height; y++)
        std::copy_n(picture.begin() + static_cast<ptrdiff_t>(y) * width, width,
                    field.flat.begin() + static_cast<ptrdiff_t>(y + 1) * field.width + 1);
    return field;
}

uint8_t PoseSearch::Field::read(int32_t x, int32_t y) const {
    const int column = std::clamp(x + 1, 0, width - 1), row = std::clamp(y + 1, 0, height - 1);
    return flat[static_cast<size_t>(row) * static_cast<size_t>(width) + static_cast<size_t>(column)];
}

// The sum over points of the lesser of template and part picture.
int64_t PoseSearch::overlap(const std::vector<Point> &points, const Field &field, int angle, int64_t x, int64_t y) {
    const int32_t s = sine(angle) * (UNIT / 2), c = sine(angle + TURN / 4) * (UNIT / 2);
    const auto right = static_cast<int32_t>(x * (1 << SINE_BITS)), down = static_cast<int32_t>(y * (1 << SINE_BITS));
    int64_t total = 0;
    for (const Point &point : points) {
        const int32_t at_x = c * point.right - s * point.down + right, at_y = s * point.right + c * point.down + down;
        total += std::min(field.read(at_x >> PIXEL_SHIFT, at_y >> PIXEL_SHIFT), point.part);
    }
    return total;
}

std::vector<PoseSearch::Place> PoseSearch::coarse(const Field &field, int64_t x, int64_t y) const {
    if (!turns_) return {{x, y, 0}};
    std::array<int64_t, COARSE> found{};
    for (int i = 0; i < COARSE; i++) found[static_cast<size_t>(i)] = overlap(few_, field, i * (TURN / COARSE), x, y);
    std::vector<int> peaks;
    for (int i = 0; i < COARSE; i++) {
        const int64_t own = found[static_cast<size_t>(i)];
        if (own >= found[static_cast<size_t>((i + COARSE - 1) % COARSE)] && own > found[static_cast<size_t>((i + 1) % COARSE)])
            peaks.push_back(i);
    }
    if (peaks.empty()) peaks.push_back(0);  // all the same
    std::stable_sort(peaks.begin(), peaks.end(),
                     [&](int a, int b) { return found[static_cast<size_t>(a)] > found[static_cast<size_t>(b)]; });
    std::vector<Place> places;
    for (size_t i = 0; i < std::min(peaks.size(), CANDIDATES); i++) places.push_back({x, y, peaks[i] * (TURN / COARSE)});
    return places;
}

// The best overlap and place after trying, for each step, the 27 places around the best so far.
PoseSearch::Try PoseSearch::refine(const std::vector<Point> &points, const Field &field, Place place, const int (*steps)[2],
                                   int count) const {
    int64_t best = -1;
    for (int step = 0; step < count; step++) {
        const int turn = steps[step][0], shift = steps[step][1];
        const Place start = place;
        best = -1;
        for (int a = 0; a < (turns_ ? 3 : 1); a++)
            for (int down : THREE)
                for (int right : THREE) {
                    const Place tried{start.x + shift * right, start.y + shift * down, start.angle + turn * THREE[a]};
                    const int64_t found = overlap(points, field, tried.angle, tried.x, tried.y);
                    // The first of equals, which is the place itself.
                    if (found > best) best = found, place = tried;
                }
    }
    return {best, place};
}

std::vector<PoseSearch::Place> PoseSearch::alike(const std::vector<Try> &tries) {
    int64_t best = 0;
    for (const Try &one : tries) best = std::max(best, one.first);
    std::vector<Place> places;
    for (const Try &one : tries)
        if (one.first * ALIKE >= best * (ALIKE - 1)) places.push_back(one.second);
    return places;
}

// How much the grey values differ from the template's where the part is, their means apart.
int64_t PoseSearch::unlike(const Field &grey, const Place &place) const {
    const int32_t s = sine(place.angle) * (UNIT / 2), c = sine(place.angle + TURN / 4) * (UNIT / 2);
    const auto right = static_cast<int32_t>(place.x * (1 << SINE_BITS)), down = static_cast<int32_t>(place.y * (1 << SINE_BITS));
    std::vector<int64_t> differences;
    int64_t sum = 0, total = 0;
    for (const Point &point : all_) {
        const int32_t at_x = c * point.right - s * point.down + right, at_y = s * point.right + c * point.down + down;
        differences.push_back(grey.read(at_x >> PIXEL_SHIFT, at_y >> PIXEL_SHIFT) - point.grey);
        sum += differences.back();
    }
    for (int64_t one : differences) total += std::llabs(one * static_cast<int64_t>(differences.size()) - sum);
    return total;
}

Pose PoseSearch::find(const Small &small) const {
    int64_t total = 0, x = 0, y = 0;
    for (int row = 0, at = 0; row < small.height; row++)
        for (int column = 0; column < small.width; column++, at++) {
            const int64_t value = small.part[static_cast<size_t>(at)];
            total += value, x += value * (2 * column + 1), y += value * (2 * row + 1);
        }
    if (!total) return {small.width * UNIT / 2, small.height * UNIT / 2, 0, 0};
    const Field field = make_field(small.part, small.width, small.height);
    std::vector<Try> tries, closer;
    for (const Place &place : coarse(field, x * UNIT / (2 * total), y * UNIT / (2 * total)))
        tries.push_back(refine(few_, field, place, FAR, 3));
    for (const Place &place : alike(tries)) closer.push_back(refine(some_, field, place, NEAR, 4));
    const std::vector<Place> close = alike(closer);
    Place chosen = close[0];
    if (close.size() > 1) {
        const Field grey = make_field(small.grey, small.width, small.height);
        int64_t least = unlike(grey, chosen);
        for (const Place &place : close) {
            const int64_t found = unlike(grey, place);
            if (found < least) least = found, chosen = place;
        }
    }
    const int64_t common = overlap(all_, field, chosen.angle, chosen.x, chosen.y), either = total + weight_ - common;
    return {chosen.x, chosen.y, wrapped(chosen.angle), static_cast<int>((common * FULL + either / 2) / either)};
}

}  // namespace edgead
