// Text as Python shows it, so that both runtimes say the same line.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace edgead {

// Code points of UTF-8; false where it is none (overlong, a surrogate, beyond U+10FFFF).
bool decode_utf8(std::string_view text, std::vector<uint32_t> &points);

// UTF-8 of code points.
std::string encode_utf8(const std::vector<uint32_t> &points);

// Whether Python's str.isprintable holds of a code point.
bool is_printable(uint32_t point);

bool is_ascii(std::string_view text);

// Python's repr() of text, which must be UTF-8.
std::string repr(std::string_view text);

// Python's repr() of bytes.
std::string repr_bytes(std::string_view bytes);

// The first `count` code points.
std::string head(std::string_view text, size_t count);

// One line of at most 300 characters, blanks joined.
std::string one_line(std::string_view text);

// " Did you mean 'x'?" for the nearest known name, else " Known: a, b.", as `edgead.runtime.errors.suggest`.
std::string suggest(const std::string &name, std::vector<std::string> known);

// A number with so many digits behind the point, whatever the locale is.
std::string fixed(double value, int digits);

// A number as Python's format ".3g".
std::string general3(double value);

}  // namespace edgead
