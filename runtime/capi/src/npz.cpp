// Members of the archive inside, and what their headers claim, checked before anything is allocated.
#include "npz.hpp"

#include <cstring>

#include "digests.hpp"
#include "hash.hpp"
#include "inflate.hpp"
#include "layout.hpp"
#include "text.hpp"

namespace edgead {

namespace {

constexpr size_t MOST_BYTES = size_t{256} << 20;
constexpr size_t MOST_ARRAYS = 16;

uint32_t little(const uint8_t *at, int bytes) {
    uint32_t value = 0;
    for (int i = bytes - 1; i >= 0; i--) value = value << 8 | at[i];
    return value;
}

struct Member {
    std::string name;
    std::vector<uint8_t> data;
};

// The zip archive inside: plain members, stored or deflated.
bool read_members(const std::vector<uint8_t> &data, std::vector<Member> &members) {
    if (data.size() < 22) return false;
    const uint8_t *end = data.data() + data.size() - 22;
    const size_t count = little(end + 10, 2), start = little(end + 16, 4);
    if (std::memcmp(end, "PK\5\6", 4) || little(end + 20, 2) || count > MOST_ARRAYS || start > data.size() - 22) return false;
    size_t position = start;
    for (size_t i = 0; i < count; i++) {
        if (data.size() - position < 46) return false;
        const uint8_t *at = data.data() + position;
        const uint32_t method = little(at + 10, 2), crc = little(at + 16, 4);
        const size_t packed = little(at + 20, 4), plain = little(at + 24, 4), n_name = little(at + 28, 2);
        const size_t more = little(at + 30, 2) + size_t{little(at + 32, 2)}, local = little(at + 42, 4);
        if (std::memcmp(at, "PK\1\2", 4) || data.size() - position < 46 + n_name + more || plain > MOST_BYTES) return false;
        if (local > data.size() || data.size() - local < 30 || std::memcmp(data.data() + local, "PK\3\4", 4)) return false;
        const size_t from = local + 30 + little(data.data() + local + 26, 2) + little(data.data() + local + 28, 2);
        if (from > data.size() || data.size() - from < packed) return false;
        Member member{std::string(reinterpret_cast<const char *>(at) + 46, n_name), {}};
        const uint8_t *held = data.data() + from;
        if (method == 0 && packed == plain) {
            member.data.assign(held, held + plain);
        } else if (method != 8 || !inflate_raw(held, packed, plain, member.data)) {
            return false;
        }
        if (!agree(crc32(member.data.data(), member.data.size()), crc)) return false;
        members.push_back(std::move(member));
        position += 46 + n_name + more;
    }
    return true;
}

// What stands behind a key in the header of a .npy file, up to one of the marks.
std::string value_of(const std::string &head, const std::string &key, const char *marks) {
    const size_t at = head.find("'" + key + "': ");
    if (at == head.npos) return "";
    const size_t start = at + key.size() + 4, end = head.find_first_of(marks, start);
    return end == head.npos ? "" : head.substr(start, end - start);
}

bool read_shape(const std::string &text, std::vector<size_t> &shape) {
    if (text.empty() || text[0] != '(') return false;
    for (size_t at = 1; at < text.size();) {
        const size_t end = std::min(text.find(',', at), text.size());
        const size_t start = text.find_first_not_of(' ', at);
        if (start == text.npos || start >= end) return end + 1 >= text.size();
        const std::string digits = text.substr(start, end - start);
        if (digits.size() > 9 || digits.find_first_not_of("0123456789") != digits.npos) return false;
        shape.push_back(std::stoul(digits));
        at = end + 1;
    }
    return shape.size() <= 3;
}

bool read_values(const std::string &type, const uint8_t *data, size_t bytes, Array &array) {
    const size_t count = array.count();
    if (type == "'<f4'" && bytes == 4 * count) {
        array.kind = 'f';
        array.floats.resize(count);
        if (count) std::memcpy(array.floats.data(), data, bytes);
        return true;
    }
    if (type == "'|b1'" && bytes == count) {
        array.kind = 'b';
        for (size_t i = 0; i < count; i++) array.floats.push_back(data[i] ? 1.0f : 0.0f);
        return true;
    }
    const bool text = starts_with(type, "'<U") && type.size() > 4 && type.size() < 10 && ends_with(type, "'") &&
                      type.find_first_not_of("0123456789", 3) == type.size() - 1;
    if (!text) return false;
    const size_t length = std::stoul(type.substr(3));
    if (!length || length > 1000 || bytes != 4 * length * count) return false;
    array.kind = 'U';
    for (size_t i = 0; i < count; i++) {
        std::vector<uint32_t> points;
        for (size_t k = 0; k < length; k++) points.push_back(little(data + 4 * (i * length + k), 4));
        while (!points.empty() && !points.back()) points.pop_back();
        const std::string made = encode_utf8(points);
        if (std::vector<uint32_t> again; !decode_utf8(made, again) || again != points) return false;
        array.text.push_back(made);
    }
    return true;
}

bool read_npy(const std::vector<uint8_t> &data, Array &array) {
    if (data.size() < 10 || std::memcmp(data.data(), "\x93NUMPY\1\0", 8)) return false;
    const size_t length = little(data.data() + 8, 2);
    if (data.size() - 10 < length) return false;
    const std::string head(reinterpret_cast<const char *>(data.data()) + 10, length);
    if (value_of(head, "fortran_order", ",}") != "False" || !read_shape(value_of(head, "shape", ")"), array.shape)) return false;
    size_t left = MOST_BYTES;
    for (size_t size : array.shape) {
        if (size > left) return false;
        left /= size ? size : 1;
    }
    return read_values(value_of(head, "descr", ",}"), data.data() + 10 + length, data.size() - 10 - length, array);
}

}  // namespace

size_t Array::count() const {
    size_t all = 1;
    for (size_t size : shape) all *= size;
    return all;
}

bool read_npz(const std::vector<uint8_t> &data, std::map<std::string, Array> &arrays, std::string &problem) {
    std::vector<Member> members;
    if (!read_members(data, members)) {
        problem = "it is no archive of arrays";
        return false;
    }
    for (const Member &one : members) {
        Array array;
        const bool named = ends_with(one.name, ".npy");
        if (!named || !read_npy(one.data, array) ||
            !arrays.emplace(one.name.substr(0, one.name.size() - 4), std::move(array)).second) {
            problem = repr(one.name) + " is no array that is read here";
            return false;
        }
    }
    return true;
}

}  // namespace edgead
