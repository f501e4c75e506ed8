// The container of a bundle: a plain zip of stored members in which every byte is accounted for, as zip_archive.py.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "failure.hpp"
#include "file.hpp"

namespace edgead {

// One member as found: size in bytes, CRC-32, and where its data start in the file.
struct Entry {
    uint64_t size;
    uint32_t crc;
    uint64_t offset;
};

// Read the directory of an archive; nothing is read or allocated on the word of a header alone.
std::map<std::string, Entry> read_entries(const File &file);

// Raise the one line for a file that must not be used.
[[noreturn]] void damaged(const std::string &label, const std::string &what, edgead_status code = EDGEAD_BUNDLE_DAMAGED);

}  // namespace edgead
