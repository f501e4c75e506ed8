// Decompression of zlib streams (RFC 1950, 1951) whose size is known.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace edgead {

// Decompress into exactly `size` bytes; false where the stream is damaged or holds another number of bytes.
bool inflate_zlib(const std::vector<uint8_t> &stream, size_t size, std::vector<uint8_t> &out);

// The same of a bare deflate stream, as in a zip archive.
bool inflate_raw(const uint8_t *data, size_t length, size_t size, std::vector<uint8_t> &out);

}  // namespace edgead
