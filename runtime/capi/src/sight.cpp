// Region, mask, tiles and alignment applied to a frame.
#include "sight.hpp"

#include <algorithm>

#include "failure.hpp"
#include "layout.hpp"
#include "png.hpp"

namespace edgead {

namespace {

constexpr uint8_t FILL = 116;
constexpr int MIN_SIDE = 8;

std::string by(int width, int height) { return std::to_string(width) + "x" + std::to_string(height); }

// The mask of a frame, ignored where it is above 127; nothing is decoded where it has another size than the frame.
std::vector<uint8_t> read_mask(const std::vector<uint8_t> &png, const RegionSection &region) {
    const PngHead head = png_head(png, MASK_NAME);
    if (head.width != region.frame_width || head.height != region.frame_height)
        fail(EDGEAD_BUNDLE_CONTENT, std::string("the mask ") + MASK_NAME + " is " + by(head.width, head.height) +
                                        ", the frames are " + by(region.frame_width, region.frame_height) + "; draw it on a frame");
    const Picture picture = decode_png(png, MASK_NAME);
    std::vector<uint8_t> mask(static_cast<size_t>(head.width) * static_cast<size_t>(head.height));
    const auto channels = static_cast<size_t>(picture.channels);
    for (size_t i = 0; i < mask.size(); i++)
        mask[i] = *std::max_element(&picture.pixels[i * channels], &picture.pixels[i * channels] + channels);
    return mask;
}

}  // namespace

Sight::Sight(const Bundle &bundle) : manifest_(bundle.manifest()) {
    try {
        if (manifest_.region) {
            std::vector<uint8_t> mask;
            if (manifest_.region->mask) mask = read_mask(bundle.read(MASK_NAME), *manifest_.region);
            check_region(mask);
        }
        if (manifest_.align) align_ = std::make_unique<Alignment>(*manifest_.align, bundle.read(TEMPLATE_NAME));
        if (align_ && manifest_.region &&
            (manifest_.align->frame_width != manifest_.region->width || manifest_.align->frame_height != manifest_.region->height))
            fail(EDGEAD_BUNDLE_CONTENT, "the model was aligned on another region than it judges; fit it anew");
    } catch (const Failure &failure) {
        const bool told = failure.message.compare(0, bundle.path().size(), bundle.path()) == 0;
        if (failure.code != EDGEAD_BUNDLE_CONTENT || told) throw;
        fail(failure.code, bundle.path() + ": " + failure.message + "; export it again with 'edgead export'");
    }
}

void Sight::check_region(const std::vector<uint8_t> &mask) {
    const RegionSection &r = *manifest_.region;
    const bool inside = std::min(r.x, r.y) >= 0 && std::min(r.width, r.height) >= MIN_SIDE && r.x + r.width <= r.frame_width &&
                        r.y + r.height <= r.frame_height;
    if (!inside)
        fail(EDGEAD_BUNDLE_CONTENT, "the region " + std::to_string(r.x) + "," + std::to_string(r.y) + "," +
                                        std::to_string(r.width) + "," + std::to_string(r.height) +
                                        " (x,y,width,height) does not lie in a frame of " + by(r.frame_width, r.frame_height) +
                                        "; its sides have " + std::to_string(MIN_SIDE) + " pixels at least");
    if (mask.empty()) return;
    std::vector<uint8_t> ignored;
    for (int y = r.y; y < r.y + r.height; y++)
        for (int x = r.x; x < r.x + r.width; x++)
            ignored.push_back(mask[static_cast<size_t>(y) * static_cast<size_t>(r.frame_width) + static_cast<size_t>(x)] > 127);
    if (std::find(ignored.begin(), ignored.end(), 1) == ignored.end()) return;
    if (std::find(ignored.begin(), ignored.end(), 0) == ignored.end())
        fail(EDGEAD_BUNDLE_CONTENT, "the mask ignores the whole region; white is what is ignored, black what is judged");
    ignored_ = std::move(ignored);
}

std::optional<std::pair<int, int>> Sight::frame_size() const {
    if (manifest_.region) return std::make_pair(manifest_.region->frame_width, manifest_.region->frame_height);
    if (manifest_.align) return std::make_pair(manifest_.align->frame_width, manifest_.align->frame_height);
    return std::nullopt;
}

Picture Sight::paint(const View &part) const {
    Picture made(part.width, part.height, part.channels);
    const auto columns = static_cast<size_t>(part.width), channels = static_cast<size_t>(part.channels);
    for (int y = 0; y < part.height; y++) {
        const uint8_t *row = part.row(y), *ignored = ignored_.data() + static_cast<size_t>(y) * columns;
        uint8_t *out = made.row(y);
        for (size_t x = 0; x < columns; x++)
            for (size_t c = 0; c < channels; c++) out[x * channels + c] = ignored[x] ? FILL : row[x * channels + c];
    }
    return made;
}

void Sight::cut_tiles(const View &part, bool swap, uint8_t *out) const {
    const TilesSection &t = *manifest_.tiles;
    const int64_t cells_down = t.rows * manifest_.map_height - (t.rows - 1) * t.overlap;
    const int64_t cells_across = t.columns * manifest_.map_width - (t.columns - 1) * t.overlap;
    if (part.height < cells_down || part.width < cells_across)
        fail(EDGEAD_FRAME_SIZE, "a picture of " + by(part.width, part.height) + " is too small for " + by(t.rows, t.columns) +
                                    " tiles; it needs " + by(static_cast<int>(cells_across), static_cast<int>(cells_down)) +
                                    " pixels at least");
    // At the edges of cells, rounded half up.
    const auto pixel = [](int64_t cell, int64_t pixels, int64_t total) {
        return static_cast<int>((2 * cell * pixels + total) / (2 * total));
    };
    for (int row = 0; row < t.rows; row++)
        for (int column = 0; column < t.columns; column++) {
            const int64_t down = static_cast<int64_t>(row) * (manifest_.map_height - t.overlap);
            const int64_t across = static_cast<int64_t>(column) * (manifest_.map_width - t.overlap);
            const int top = pixel(down, part.height, cells_down), left = pixel(across, part.width, cells_across);
            const int bottom = pixel(down + manifest_.map_height, part.height, cells_down);
            const int right = pixel(across + manifest_.map_width, part.width, cells_across);
            resize(part.cut(left, top, right - left, bottom - top), manifest_.height, manifest_.width, swap, out);
            out += static_cast<size_t>(manifest_.height) * static_cast<size_t>(manifest_.width) * 3;
        }
}

std::optional<std::string> Sight::prepare(const Frame &frame, uint8_t *out) const {
    const int width = frame.pixels.width, height = frame.pixels.height;
    int x = 0, y = 0, columns = width, rows = height;
    if (manifest_.region) {
        const RegionSection &r = *manifest_.region;
        if (width != r.frame_width || height != r.frame_height)
            fail(EDGEAD_FRAME_SIZE, "the frame is " + by(width, height) + ", but the model's region was drawn on frames of " +
                                        by(r.frame_width, r.frame_height) + "; set the camera to that size or fit the model anew");
        x = r.x, y = r.y, columns = r.width, rows = r.height;
    }
    Picture held;
    View part = frame.pixels;
    if (frame.layout == Layout::nv12) {
        held = nv12_to_rgb(frame.nv12, x, y, columns, rows);
        part = held.view();
    } else {
        part = part.cut(x, y, columns, rows);
    }
    if (!ignored_.empty()) {
        held = paint(part);
        part = held.view();
    }
    const bool swap = frame.layout == Layout::bgr;
    if (align_) return align_->prepare(part, swap, manifest_.height, manifest_.width, out);
    if (manifest_.tiles) {
        cut_tiles(part, swap, out);
    } else {
        resize(part, manifest_.height, manifest_.width, swap, out);
    }
    return std::nullopt;
}

}  // namespace edgead
