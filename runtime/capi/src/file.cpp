// Files read at any place by pread.
#include "file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "failure.hpp"

namespace edgead {

std::string system_reason(int error) {
    char buffer[256] = "";
    // The GNU form returns the text, the other one fills the buffer.
    struct Shown {
        static const char *of(const char *text, const char *) { return text; }
        static const char *of(int, const char *filled) { return filled; }
    };
    return Shown::of(strerror_r(error, buffer, sizeof buffer), buffer);
}

namespace {

[[noreturn]] void refused(const std::string &path, int error) {
    if (error == ENOENT) fail(EDGEAD_BUNDLE_MISSING, path + " does not exist; check the path");
    fail(EDGEAD_BUNDLE_UNREADABLE, "cannot read " + path + ": " + system_reason(error));
}

}  // namespace

File::File(const std::string &path) : path_(path) {
    struct stat status;
    // Before opening: to open a pipe would wait indefinitely.
    if (stat(path.c_str(), &status)) refused(path, errno);
    const char *give = "; give the .edgead file that 'edgead export' wrote";
    if (S_ISDIR(status.st_mode)) fail(EDGEAD_BUNDLE_UNREADABLE, path + " is a folder, not a bundle" + give);
    if (!S_ISREG(status.st_mode)) fail(EDGEAD_BUNDLE_UNREADABLE, path + " is no plain file" + give);
    descriptor_ = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor_ < 0) refused(path, errno);
    if (fstat(descriptor_, &status)) {
        const int error = errno;
        close(descriptor_);
        refused(path, error);
    }
    size_ = static_cast<uint64_t>(status.st_size);
}

File::~File() {
    if (descriptor_ >= 0) close(descriptor_);
}

bool File::read(uint64_t position, uint8_t *into, size_t size) const {
    while (size) {
        const ssize_t got = pread(descriptor_, into, size, static_cast<off_t>(position));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) refused(path_, errno);
        if (got == 0) return false;
        position += static_cast<uint64_t>(got), into += got, size -= static_cast<size_t>(got);
    }
    return true;
}

}  // namespace edgead
