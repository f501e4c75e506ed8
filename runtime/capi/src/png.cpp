// Chunks, filters and scan lines.
#include "png.hpp"

#include <cstdlib>
#include <cstring>

#include "digests.hpp"
#include "failure.hpp"
#include "hash.hpp"
#include "inflate.hpp"
#include "text.hpp"

namespace edgead {

namespace {

constexpr uint8_t SIGNATURE[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};
constexpr uint64_t MOST_PIXELS = 178956970;  // as Pillow

uint32_t big(const uint8_t *at) {
    return static_cast<uint32_t>(at[0]) << 24 | static_cast<uint32_t>(at[1]) << 16 | static_cast<uint32_t>(at[2]) << 8 | at[3];
}

[[noreturn]] void unreadable(const std::string &name) {
    fail(EDGEAD_BUNDLE_CONTENT, name + " is not a readable image");
}

[[noreturn]] void unsupported(const std::string &name, const std::string &what) {
    fail(EDGEAD_BUNDLE_UNSUPPORTED,
         name + " is a PNG " + what + ", which the C library does not read; save it with 8 bits a channel and nothing else "
                "in it, or use the Python runtime");
}

struct Chunk {
    std::string kind;
    const uint8_t *data;
    size_t size;
};

// The chunk at a position, which moves behind it.
Chunk next_chunk(const std::vector<uint8_t> &file, size_t &position, const std::string &name) {
    if (file.size() - position < 12) unreadable(name);
    const uint8_t *at = file.data() + position;
    const uint64_t size = big(at);
    if (size > file.size() - position - 12) unreadable(name);
    if (!agree(crc32(at + 4, size + 4), big(at + 8 + size))) unreadable(name);
    position += 12 + size;
    return {std::string(reinterpret_cast<const char *>(at) + 4, 4), at + 8, static_cast<size_t>(size)};
}

// Chunks that change no pixel; of others, such as one that turns the picture, nobody could say so.
bool harmless(const std::string &kind) {
    for (const char *one : {"pHYs", "gAMA", "cHRM", "sRGB", "tIME", "bKGD", "sBIT", "iCCP"})
        if (kind == one) return true;
    return false;
}

uint8_t paeth(int left, int up, int corner) {
    const int guess = left + up - corner;
    const int a = std::abs(guess - left), b = std::abs(guess - up), c = std::abs(guess - corner);
    return static_cast<uint8_t>(a <= b && a <= c ? left : b <= c ? up : corner);
}

void unfilter(int kind, const uint8_t *above, uint8_t *row, size_t length, size_t step, const std::string &name) {
    if (kind > 4) unreadable(name);
    for (size_t i = 0; kind && i < length; i++) {
        const int left = i >= step ? row[i - step] : 0, up = above[i], corner = i >= step ? above[i - step] : 0;
        const int added = kind == 1 ? left : kind == 2 ? up : kind == 3 ? (left + up) / 2 : paeth(left, up, corner);
        row[i] = static_cast<uint8_t>(row[i] + added);
    }
}

}  // namespace

PngHead png_head(const std::vector<uint8_t> &file, const std::string &name) {
    if (file.size() < 8 || std::memcmp(file.data(), SIGNATURE, 8)) unreadable(name);
    size_t position = 8;
    const Chunk head = next_chunk(file, position, name);
    if (head.kind != "IHDR" || head.size != 13) unreadable(name);
    const uint64_t width = big(head.data), height = big(head.data + 4);
    if (!width || !height || width * height > MOST_PIXELS) unreadable(name);
    const int depth = head.data[8], color = head.data[9];
    if (head.data[10] || head.data[11] || head.data[12] > 1) unreadable(name);
    if (depth != 8) unsupported(name, "of " + std::to_string(depth) + " bits");
    if (color == 3) unsupported(name, "with a palette");
    if (head.data[12]) unsupported(name, "that is interlaced");
    const int channels = color == 0 ? 1 : color == 2 ? 3 : color == 4 ? 2 : color == 6 ? 4 : 0;
    if (!channels) unreadable(name);
    return {static_cast<int>(width), static_cast<int>(height), channels};
}

Picture decode_png(const std::vector<uint8_t> &file, const std::string &name) {
    const PngHead head = png_head(file, name);
    std::vector<uint8_t> stream, raw;
    bool ended = false;
    for (size_t position = 8 + 25; !ended;) {
        const Chunk chunk = next_chunk(file, position, name);
        ended = chunk.kind == "IEND";
        if (chunk.kind == "IDAT") {
            stream.insert(stream.end(), chunk.data, chunk.data + chunk.size);
        } else if (!ended && chunk.kind != "tRNS" && !harmless(chunk.kind)) {
            unsupported(name, "with a chunk " + repr(chunk.kind));
        }
    }
    const auto step = static_cast<size_t>(head.channels), length = static_cast<size_t>(head.width) * step;
    const auto rows = static_cast<size_t>(head.height);
    if (!inflate_zlib(stream, (length + 1) * rows, raw)) unreadable(name);
    const size_t kept = step >= 3 ? 3 : 1;
    Picture picture(head.width, head.height, static_cast<int>(kept));
    const std::vector<uint8_t> nothing(length);
    const uint8_t *above = nothing.data();
    uint8_t *out = picture.pixels.data();
    for (size_t y = 0; y < rows; y++) {
        uint8_t *row = raw.data() + y * (length + 1) + 1;
        unfilter(row[-1], above, row, length, step, name);
        for (size_t x = 0; x < length; x += step, out += kept) std::memcpy(out, row + x, kept);
        above = row;
    }
    return picture;
}

}  // namespace edgead
