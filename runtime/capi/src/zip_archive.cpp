// Directory and local headers, read in one form only; PKWARE APPNOTE 6.3.10, sections 4.3 to 4.5.
#include "zip_archive.hpp"

#include <algorithm>
#include <cstring>
#include <set>
#include <tuple>

#include "layout.hpp"
#include "text.hpp"

namespace edgead {

namespace {

constexpr uint64_t MAX_MEMBERS = 4096;
constexpr uint64_t LOCAL = 30, CENTRAL = 46, END = 22, END64 = 56, LOCATOR64 = 20;
constexpr uint32_t LIMIT32 = 0xFFFFFFFF;
constexpr uint16_t UTF8 = 0x800, ZIP64_FIELD = 1;

using Bytes = std::vector<uint8_t>;

template <typename T> T little(const uint8_t *at) {
    T value = 0;
    for (size_t i = 0; i < sizeof(T); i++) value = static_cast<T>(value | static_cast<T>(at[i]) << (8 * i));
    return value;
}
uint16_t u16(const uint8_t *at) { return little<uint16_t>(at); }
uint32_t u32(const uint8_t *at) { return little<uint32_t>(at); }
uint64_t u64(const uint8_t *at) { return little<uint64_t>(at); }

bool is(const uint8_t *at, const char *signature) { return !std::memcmp(at, signature, 4); }

// As the central directory has it; ordered as the members lie in the file.
struct Found {
    uint64_t at;
    std::string name;
    uint16_t flags;
    uint32_t crc;
    uint64_t size;
    bool operator<(const Found &other) const {
        return std::tie(at, name, flags, crc, size) < std::tie(other.at, other.name, other.flags, other.crc, other.size);
    }
};

struct Directory {
    Bytes bytes;
    uint64_t end;  // where it ends in the file
};

Bytes exact(const File &file, uint64_t position, uint64_t length) {
    if (position > file.size() || length > file.size() - position) damaged(file.path(), "it is truncated");
    Bytes data(length);
    if (!file.read(position, data.data(), data.size())) damaged(file.path(), "it is truncated");
    return data;
}

std::string decode_name(const std::string &name, uint16_t flags, const std::string &label) {
    std::vector<uint32_t> points;
    const bool text = flags & UTF8 ? decode_utf8(name, points) : is_ascii(name);
    if (!text) damaged(label, "member name " + repr_bytes(name.substr(0, 60)) + " is not text");
    return name;
}

void check_kind(const std::string &name, uint16_t flags, uint16_t method, uint32_t attributes, const std::string &label) {
    const uint32_t kind = attributes >> 16 & 0170000;
    const std::string member = "member " + repr(name);
    if (flags & 0x41) damaged(label, member + " is encrypted");
    if (method != 0) damaged(label, member + " is compressed, which a bundle never is");
    if (ends_with(name, "/") || attributes & 0x10 || (kind != 0 && kind != 0100000))
        damaged(label, member + " is no plain file");
    if (flags & ~UTF8) damaged(label, member + " has flags that a bundle never has");
    if (const std::string problem = member_name_problem(name); !problem.empty()) damaged(label, problem);
}

// Replace each value that is 0xFFFFFFFF by the next eight bytes of the zip64 field.
void widen(const uint8_t *extra, size_t length, std::initializer_list<uint64_t *> values, const std::string &label) {
    const uint8_t *wide = nullptr;
    size_t left = 0;
    while (length) {
        const size_t size = length >= 4 ? u16(extra + 2) : length;
        if (length < 4 + size) damaged(label, "a header is broken");
        if (u16(extra) == ZIP64_FIELD) wide = extra + 4, left = size;
        extra += 4 + size, length -= 4 + size;
    }
    for (uint64_t *value : values) {
        if (*value != LIMIT32) continue;
        if (left < 8) damaged(label, "a header lacks its 64-bit sizes");
        *value = u64(wide);
        wide += 8, left -= 8;
    }
}

struct End {
    uint64_t disk, disk0, here, count, length, start;
};

End read_end64(const File &file, uint64_t &end) {
    const std::string &label = file.path();
    if (end < LOCATOR64 + END64) damaged(label, "it is truncated");
    end -= LOCATOR64 + END64;
    const Bytes record = exact(file, end, END64 + LOCATOR64);
    const uint8_t *at = record.data(), *locator = at + END64;
    const bool found = is(locator, "PK\6\7") && !u32(locator + 4) && u64(locator + 8) == end && u32(locator + 16) == 1;
    if (!is(at, "PK\6\6") || u64(at + 4) != END64 - 12 || !found) damaged(label, "its end record is broken");
    return {u32(at + 16), u32(at + 20), u64(at + 24), u64(at + 32), u64(at + 40), u64(at + 48)};
}

Directory read_directory(const File &file) {
    const std::string &label = file.path();
    const uint64_t size = file.size();
    const Bytes head = exact(file, 0, std::min<uint64_t>(size, 64));
    const std::string_view start(reinterpret_cast<const char *>(head.data()), head.size());
    if (starts_with(start, "version https://git-lfs"))
        fail(EDGEAD_BUNDLE_NO_ARCHIVE, label + " is a Git LFS pointer, not the bundle itself; run: git lfs pull");
    if (!starts_with(start, "PK\3\4"))
        fail(EDGEAD_BUNDLE_NO_ARCHIVE,
             label + " is not a bundle (" + (size ? "no zip file" : "it is empty") + "); check the path");
    if (size < END + LOCAL) damaged(label, "it is truncated");
    uint64_t end = size - END;
    const Bytes record = exact(file, end, END);
    const uint8_t *at = record.data();
    if (!is(at, "PK\5\6") || u16(at + 20)) damaged(label, "it is truncated, or something was appended to it");
    End told = {u16(at + 4), u16(at + 6), u16(at + 8), u16(at + 10), u32(at + 12), u32(at + 16)};
    if (told.here == 0xFFFF || told.count == 0xFFFF || told.length == LIMIT32 || told.start == LIMIT32)
        told = read_end64(file, end);
    const bool ends_there = told.start <= end && told.length == end - told.start;
    if (told.disk || told.disk0 || told.here != told.count || !ends_there)
        damaged(label, "its end record is broken, or bytes are missing before it");
    if (told.count > MAX_MEMBERS || told.length > MAX_MEMBERS * 512)
        damaged(label, "it claims " + std::to_string(told.count) + " members, allowed are " + std::to_string(MAX_MEMBERS));
    return {exact(file, told.start, told.length), end};
}

std::vector<Found> read_found(const Directory &directory, uint64_t size, const std::string &label) {
    std::vector<Found> found;
    const Bytes &bytes = directory.bytes;
    for (size_t position = 0; position < bytes.size();) {
        if (bytes.size() - position < CENTRAL) damaged(label, "its directory is cut short");
        const uint8_t *at = bytes.data() + position;
        const uint16_t flags = u16(at + 8), method = u16(at + 10);
        uint64_t packed = u32(at + 20), plain = u32(at + 24), start = u32(at + 42);
        const size_t n_name = u16(at + 28), n_extra = u16(at + 30);
        position += CENTRAL;
        const size_t left = bytes.size() - position;
        const size_t got_name = std::min(n_name, left), got_extra = std::min(n_extra, left - got_name);
        const uint8_t *text = bytes.data() + position, *extra = text + got_name;
        const std::string name(reinterpret_cast<const char *>(text), got_name);
        position += got_name + got_extra;
        if (!is(at, "PK\1\2") || got_extra != n_extra || u16(at + 32) || u16(at + 34))
            damaged(label, "its directory is broken");
        decode_name(name, flags, label);
        check_kind(name, flags, method, u32(at + 38), label);
        widen(extra, n_extra, {&plain, &packed, &start}, label);
        const std::string member = "member " + repr(name);
        if (packed != plain) damaged(label, member + " has two sizes");
        if (plain > size || start > size)
            damaged(label, member + " claims " + std::to_string(plain) + " bytes, the file has " + std::to_string(size));
        found.push_back({start, name, flags, u32(at + 16), plain});
    }
    std::sort(found.begin(), found.end());
    return found;
}

// Compare a local header with the directory; return where the data start.
uint64_t check_local(const File &file, const Found &one) {
    const Bytes header = exact(file, one.at, LOCAL);
    const uint8_t *at = header.data();
    const size_t n_name = u16(at + 26), n_extra = u16(at + 28);
    const Bytes names = exact(file, one.at + LOCAL, n_name + n_extra);
    uint64_t plain = u32(at + 22), packed = u32(at + 18);
    widen(names.data() + n_name, n_extra, {&plain, &packed}, file.path());
    const std::string name(reinterpret_cast<const char *>(names.data()), n_name);
    const bool same = is(at, "PK\3\4") && u16(at + 6) == one.flags && u16(at + 8) == 0 && u32(at + 14) == one.crc &&
                      packed == one.size && plain == one.size && name == one.name;
    if (!same) damaged(file.path(), "the two headers of member " + repr(one.name) + " disagree");
    return one.at + LOCAL + n_name + n_extra;
}

}  // namespace

void damaged(const std::string &label, const std::string &what, edgead_status code) {
    fail(code, label + " is damaged or unsafe: " + what + "; copy it again, or export it again");
}

std::map<std::string, Entry> read_entries(const File &file) {
    const std::string &label = file.path();
    const Directory directory = read_directory(file);
    const std::vector<Found> found = read_found(directory, file.size(), label);
    const uint64_t data_end = directory.end - directory.bytes.size();
    std::map<std::string, Entry> entries;
    std::set<std::string> folded;
    uint64_t position = 0;
    std::string beyond;
    for (const Found &one : found) {
        if (!takes_letters(one.name)) beyond = one.name;
        if (!folded.insert(fold_name(one.name)).second) damaged(label, "member " + repr(one.name) + " is there twice");
        // Where `at` lies so far behind that a header has no place, data are missing.
        if (one.at != position || one.at + LOCAL > data_end)
            damaged(label, "there are unaccounted bytes before member " + repr(one.name));
        const uint64_t offset = check_local(file, one);
        position = offset + one.size;
        entries[one.name] = {one.size, one.crc, offset};
    }
    if (position != data_end) damaged(label, "there are unaccounted bytes before its directory");
    // Whether two such names are the same on some disk is in tables of Unicode that this library does without.
    if (!beyond.empty())
        fail(EDGEAD_BUNDLE_UNSUPPORTED, label + ": member " + repr(beyond) +
                                            " has characters in its name that the C library does not take (Latin, Greek, "
                                            "Cyrillic, Japanese, Chinese and Korean ones it does); rename the category, or "
                                            "use the Python runtime");
    return entries;
}

}  // namespace edgead
