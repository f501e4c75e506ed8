// The part found on the canvas, and the window about it read in the template's pose.
#include "alignment.hpp"

#include <algorithm>
#include <cstdlib>

#include "failure.hpp"
#include "layout.hpp"
#include "png.hpp"
#include "text.hpp"

namespace edgead {

namespace {

constexpr int BITS = 16;  // positions on the canvas are counted in 1/65536 of a pixel
constexpr int WEIGHT_BITS = 6, STEP = BITS - WEIGHT_BITS;
constexpr int MOST_SIDE = 2 * SMALL_SIDE;

int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

[[noreturn]] void wrong(const std::string &what) { fail(EDGEAD_BUNDLE_CONTENT, what + "; fit again"); }

std::string tuple(std::initializer_list<int> values) {
    std::string out;
    for (int value : values) out += (out.empty() ? "(" : ", ") + std::to_string(value);
    return out + ")";
}

// As numpy adds 32-bit integers.
int32_t wrapped(int64_t value) { return static_cast<int32_t>(static_cast<uint32_t>(static_cast<uint64_t>(value))); }

}  // namespace

Alignment::Alignment(const AlignSection &section, const std::vector<uint8_t> &template_png) : section_(section) {
    const PngHead head = png_head(template_png, TEMPLATE_NAME);
    if (head.channels != 1 || head.height != 3 * head.width || head.width > MOST_SIDE) {
        const char *modes[] = {"", "L", "LA", "RGB", "RGBA"};
        fail(EDGEAD_BUNDLE_CONTENT, std::string(TEMPLATE_NAME) + " is " + std::to_string(head.width) + "x" +
                                        std::to_string(head.height) + " '" + modes[head.channels] +
                                        "'; a template is grey, three times as high as wide");
    }
    const Picture picture = decode_png(template_png, TEMPLATE_NAME);
    side_ = head.width;
    const ptrdiff_t third = static_cast<ptrdiff_t>(side_) * side_;
    const auto start = picture.pixels.begin();
    part_.assign(start, start + third);
    grey_.assign(start + third, start + 2 * third);
    judged_.assign(start + 2 * third, start + 3 * third);
    check();
    std::tie(small_width_, small_height_) = small_size(section.canvas_width, section.canvas_height);
    search_ = std::make_unique<PoseSearch>(part_, grey_, side_, section.turns);
}

void Alignment::check() const {
    const AlignSection &s = section_;
    if (side_ % 2) wrong("a template is square, of an even side of " + std::to_string(MOST_SIDE) + " pixels at most");
    if (std::all_of(part_.begin(), part_.end(), [](uint8_t value) { return value == 0; }))
        wrong("the template of the alignment shows no part");
    const std::string canvas = tuple({s.canvas_width, s.canvas_height});
    if (s.canvas_width > s.frame_width || s.canvas_height > s.frame_height)
        wrong("a canvas of " + canvas + " is no reduced frame of " + tuple({s.frame_width, s.frame_height}));
    const int reach = std::max(2 * std::abs(s.window_x) + s.window_width, 2 * std::abs(s.window_y) + s.window_height);
    if (reach > 2 * std::max(s.canvas_width, s.canvas_height))
        wrong("a window of " + tuple({s.window_x, s.window_y, s.window_width, s.window_height}) +
              " does not lie about a canvas of " + canvas);
}

std::optional<std::string> Alignment::prepare(const View &part, bool swap, int height, int width, uint8_t *out) const {
    const AlignSection &s = section_;
    if (part.width != s.frame_width || part.height != s.frame_height)
        fail(EDGEAD_FRAME_SIZE, "the frame is " + std::to_string(part.width) + "x" + std::to_string(part.height) +
                                    ", but the model was aligned on frames of " + std::to_string(s.frame_width) + "x" +
                                    std::to_string(s.frame_height) + "; set the camera to that size or fit the model anew");
    Picture canvas(s.canvas_width, s.canvas_height, 3);
    resize(part, s.canvas_height, s.canvas_width, swap, canvas.pixels.data());
    const Small small = part_picture(canvas.view(), small_width_, small_height_);
    const Pose pose = search_->find(small);
    if (pose.overlap < s.minimum) {
        // Python judges a black picture then, whose score nobody sees.
        std::fill_n(out, static_cast<size_t>(height) * static_cast<size_t>(width) * 3, uint8_t{0});
        return "part not found: it overlaps by " + fixed(pose.overlap / static_cast<double>(FULL), 3) +
               " with what the normal parts look like, needed are " + fixed(s.minimum / static_cast<double>(FULL), 3) +
               " (nothing there, several parts, or one that is cut off)";
    }
    undo(canvas, pose, small, height, width, out);
    return std::nullopt;
}

std::vector<int64_t> Alignment::offsets(int count, int middle, int over) const {
    std::vector<int64_t> found;
    for (int i = 0; i < count; i++)
        found.push_back(floor_div((2 * static_cast<int64_t>(i) + 1 - count) * (static_cast<int64_t>(over) << (BITS - 1)), count) +
                        static_cast<int64_t>(middle) * (1 << BITS));
    return found;
}

// Whether what lies there is too far from the part to be judged.
bool Alignment::is_plain(int64_t right, int64_t down) const {
    const int64_t column = (floor_div(right * small_width_, section_.canvas_width) >> BITS) + side_ / 2;
    const int64_t row = (floor_div(down * small_height_, section_.canvas_height) >> BITS) + side_ / 2;
    if (column < 0 || row < 0 || column >= side_ || row >= side_) return true;
    return judged_[static_cast<size_t>(row) * static_cast<size_t>(side_) + static_cast<size_t>(column)] <= 127;
}

void Alignment::undo(const Picture &canvas, const Pose &pose, const Small &small, int height, int width, uint8_t *out) const {
    const AlignSection &s = section_;
    const std::vector<int64_t> right = offsets(width, s.window_x, s.window_width);
    const std::vector<int64_t> down = offsets(height, s.window_y, s.window_height);
    const int64_t scale = (1 << BITS) / UNIT, si = sine(pose.angle), co = sine(pose.angle + TURN / 4);
    const int64_t at_x = floor_div(pose.x * s.canvas_width * scale, small_width_);
    const int64_t at_y = floor_div(pose.y * s.canvas_height * scale, small_height_);
    const int64_t last_x = static_cast<int64_t>(canvas.width - 1) << BITS, last_y = static_cast<int64_t>(canvas.height - 1) << BITS;
    const int half = 1 << (BITS - 1), one = 1 << WEIGHT_BITS;
    for (const int64_t below : down)
        for (const int64_t beside : right) {
            const int32_t x = wrapped(static_cast<int64_t>(wrapped(at_x + ((co * beside) >> SINE_BITS))) - wrapped((si * below) >> SINE_BITS));
            const int32_t y = wrapped(static_cast<int64_t>(wrapped(at_y + ((si * beside) >> SINE_BITS))) + wrapped((co * below) >> SINE_BITS));
            if (is_plain(beside, below)) {
                for (int c = 0; c < 3; c++) *out++ = small.background[c];
                continue;
            }
            const int64_t px = std::clamp<int64_t>(static_cast<int64_t>(x) - half, 0, last_x);
            const int64_t py = std::clamp<int64_t>(static_cast<int64_t>(y) - half, 0, last_y);
            const int r = static_cast<int>(px >> STEP) & (one - 1), d = static_cast<int>(py >> STEP) & (one - 1);
            const int left = static_cast<int>(px >> BITS), top = static_cast<int>(py >> BITS);
            const int next = std::min(left + 1, canvas.width - 1), under = std::min(top + 1, canvas.height - 1);
            const View view = canvas.view();
            const uint8_t *upper = view.row(top), *lower = view.row(under);
            for (int c = 0; c < 3; c++) {
                const int above = upper[3 * left + c] * (one - r) + upper[3 * next + c] * r;
                const int beneath = lower[3 * left + c] * (one - r) + lower[3 * next + c] * r;
                *out++ = static_cast<uint8_t>((above * (one - d) + beneath * d + (1 << (2 * WEIGHT_BITS - 1))) >> (2 * WEIGHT_BITS));
            }
        }
}

}  // namespace edgead
