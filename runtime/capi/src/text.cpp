// repr(), isprintable and suggestions as Python has them.
#include "text.hpp"

#include <algorithm>
#include <charconv>
#include <map>

namespace edgead {

namespace {

// First and last code point of each range that Python does not print; made by tests/runtime/capi/printable.py.
const uint32_t UNPRINTABLE[][2] = {
#include "unprintable.h"
};

void put_hex(std::string &out, const char *prefix, uint32_t value, int digits) {
    out += prefix;
    for (int shift = 4 * (digits - 1); shift >= 0; shift -= 4) out += "0123456789abcdef"[value >> shift & 15];
}

void put_utf8(std::string &out, uint32_t c) {
    if (c < 0x80) {
        out += static_cast<char>(c);
    } else if (c < 0x800) {
        out += static_cast<char>(0xC0 | c >> 6);
        out += static_cast<char>(0x80 | (c & 63));
    } else if (c < 0x10000) {
        out += static_cast<char>(0xE0 | c >> 12);
        out += static_cast<char>(0x80 | (c >> 6 & 63));
        out += static_cast<char>(0x80 | (c & 63));
    } else {
        out += static_cast<char>(0xF0 | c >> 18);
        out += static_cast<char>(0x80 | (c >> 12 & 63));
        out += static_cast<char>(0x80 | (c >> 6 & 63));
        out += static_cast<char>(0x80 | (c & 63));
    }
}

// Characters of both in matching blocks, longest first, as difflib's SequenceMatcher counts them.
size_t matching(std::string_view a, std::string_view b) {
    size_t best = 0, at = 0, other = 0;
    std::vector<size_t> before(b.size() + 1), now(b.size() + 1);
    for (size_t i = 0; i < a.size(); i++) {
        for (size_t j = 0; j < b.size(); j++) {
            now[j + 1] = a[i] == b[j] ? before[j] + 1 : 0;
            if (now[j + 1] > best) best = now[j + 1], at = i + 1 - best, other = j + 1 - best;
        }
        std::swap(before, now);
    }
    if (!best) return 0;
    return best + matching(a.substr(0, at), b.substr(0, other)) + matching(a.substr(at + best), b.substr(other + best));
}

}  // namespace

bool decode_utf8(std::string_view text, std::vector<uint32_t> &points) {
    points.clear();
    for (size_t i = 0; i < text.size();) {
        const auto byte = [&](size_t at) { return static_cast<uint8_t>(text[at]); };
        const uint8_t first = byte(i);
        const int more = first < 0x80 ? 0 : first >> 5 == 6 ? 1 : first >> 4 == 14 ? 2 : first >> 3 == 30 ? 3 : -1;
        if (more < 0 || i + static_cast<size_t>(more) >= text.size()) return false;
        uint32_t c = more == 0 ? first : first & (0x3F >> more);
        for (int k = 1; k <= more; k++) {
            if (byte(i + static_cast<size_t>(k)) >> 6 != 2) return false;
            c = c << 6 | (byte(i + static_cast<size_t>(k)) & 0x3Fu);
        }
        const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
        if (c < least[more] || c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) return false;
        points.push_back(c);
        i += static_cast<size_t>(more) + 1;
    }
    return true;
}

std::string encode_utf8(const std::vector<uint32_t> &points) {
    std::string out;
    for (uint32_t c : points) put_utf8(out, c);
    return out;
}

bool is_printable(uint32_t point) {
    const auto *end = std::end(UNPRINTABLE);
    const auto *found = std::upper_bound(std::begin(UNPRINTABLE), end, point,
                                         [](uint32_t value, const uint32_t(&range)[2]) { return value <= range[1]; });
    return found == end || point < (*found)[0];
}

bool is_ascii(std::string_view text) {
    return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<uint8_t>(c) < 0x80; });
}

std::string repr(std::string_view text) {
    std::vector<uint32_t> points;
    if (!decode_utf8(text, points)) return repr_bytes(text);
    const bool single = text.find('\'') != text.npos, twice = text.find('"') != text.npos;
    const char quote = single && !twice ? '"' : '\'';
    std::string out(1, quote);
    for (uint32_t c : points) {
        if (c == static_cast<uint32_t>(quote) || c == '\\') {
            out += '\\';
            out += static_cast<char>(c);
        } else if (c == '\n' || c == '\r' || c == '\t') {
            out += c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t";
        } else if (is_printable(c)) {
            put_utf8(out, c);
        } else if (c < 0x100) {
            put_hex(out, "\\x", c, 2);
        } else {
            c < 0x10000 ? put_hex(out, "\\u", c, 4) : put_hex(out, "\\U", c, 8);
        }
    }
    return out + quote;
}

std::string repr_bytes(std::string_view bytes) {
    const bool single = bytes.find('\'') != bytes.npos, twice = bytes.find('"') != bytes.npos;
    const char quote = single && !twice ? '"' : '\'';
    std::string out = std::string("b") + quote;
    for (char character : bytes) {
        const auto c = static_cast<uint8_t>(character);
        if (c == static_cast<uint8_t>(quote) || c == '\\') {
            out += '\\';
            out += character;
        } else if (c == '\n' || c == '\r' || c == '\t') {
            out += c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t";
        } else if (c >= 32 && c < 127) {
            out += character;
        } else {
            put_hex(out, "\\x", c, 2);
        }
    }
    return out + quote;
}

std::string head(std::string_view text, size_t count) {
    size_t at = 0;
    for (; at < text.size() && count; count--)
        do at++;
        while (at < text.size() && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80);
    return std::string(text.substr(0, at));
}

std::string one_line(std::string_view text) {
    std::string out;
    for (char c : text) {
        const bool blank = c == ' ' || (c >= '\t' && c <= '\r') || (c >= 0x1C && c <= 0x1F);
        if (!blank) {
            out += c;
        } else if (!out.empty() && out.back() != ' ') {
            out += ' ';
        }
    }
    if (!out.empty() && out.back() == ' ') out.pop_back();
    return head(out, 300);
}

std::string suggest(const std::string &name, std::vector<std::string> known) {
    std::sort(known.begin(), known.end());
    const std::string *near = nullptr;
    double best = 0.0;
    for (const auto &one : known) {
        const size_t total = one.size() + name.size();
        const double ratio = total ? 2.0 * static_cast<double>(matching(one, name)) / static_cast<double>(total) : 1.0;
        // Of equal ones difflib takes the name that sorts last.
        if (ratio >= 0.5 && ratio >= best) best = ratio, near = &one;
    }
    if (near) return " Did you mean '" + *near + "'?";
    if (known.size() > 30) return "";
    std::string out = " Known: ";
    for (size_t i = 0; i < known.size(); i++) out += (i ? ", " : "") + known[i];
    return out + ".";
}

std::string fixed(double value, int digits) {
    if (value != value) return "nan";
    char buffer[400];
    const auto done = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::fixed, digits);
    return std::string(buffer, done.ptr);
}

std::string general3(double value) {
    if (value != value) return "nan";
    char buffer[64];
    const auto done = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::general, 3);
    return std::string(buffer, done.ptr);
}

}  // namespace edgead
