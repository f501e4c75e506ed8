// A file that is only read, from any thread, at any place.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace edgead {

// What the system says of an errno.
std::string system_reason(int error);

class File {
  public:
    // Open a bundle's file; raises a Failure where it is missing, a folder, a pipe, or refused by the system.
    explicit File(const std::string &path);
    ~File();
    File(const File &) = delete;
    File &operator=(const File &) = delete;

    uint64_t size() const { return size_; }
    const std::string &path() const { return path_; }

    // Read so many bytes; false where the file ends before. Raises a Failure where the system cannot read.
    bool read(uint64_t position, uint8_t *into, size_t size) const;

  private:
    std::string path_;
    int descriptor_ = -1;
    uint64_t size_ = 0;
};

}  // namespace edgead
