// A bundle opened, every byte of it verified; its members read and extracted.
#include "bundle.hpp"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "digests.hpp"
#include "hash.hpp"
#include "layout.hpp"
#include "text.hpp"
#include "trust.hpp"

namespace edgead {

namespace {

constexpr size_t CHUNK = 1 << 20;

[[noreturn]] void altered(const std::string &label, const std::string &what) {
    damaged(label, what, EDGEAD_BUNDLE_ALTERED);
}

}  // namespace

Bundle::Bundle(const std::string &path, const std::optional<std::string> &trust) : file_(path), entries_(read_entries(file_)) {
    const std::string data = read_unlisted(MANIFEST_NAME, MAX_MANIFEST_BYTES);
    std::optional<SignatureFile> signature;
    if (entries_.count(SIGNATURE_NAME))
        signature = parse_signature(read_unlisted(SIGNATURE_NAME, MAX_SIGNATURE_BYTES), path);
    // Before anything of the manifest is looked at: what nobody vouches for is not even parsed.
    if (trust) read_trust(*trust).require(data, signature, {*trust, path});
    manifest_ = parse_manifest(data, path);
    Sha256 digest;
    digest.update(reinterpret_cast<const uint8_t *>(data.data()), data.size());
    sha256_ = digest.hex();
    verify();
}

std::string Bundle::read_unlisted(const std::string &name, size_t limit) const {
    const auto found = entries_.find(name);
    if (found == entries_.end()) damaged(path(), "it holds no " + name);
    const Entry &entry = found->second;
    if (entry.size > limit)
        damaged(path(), name + " has " + std::to_string(entry.size) + " bytes, allowed are " + std::to_string(limit));
    std::string data;
    raw(entry, [&](const uint8_t *at, size_t size) { data.append(reinterpret_cast<const char *>(at), size); });
    if (!agree(crc32(reinterpret_cast<const uint8_t *>(data.data()), data.size()), entry.crc))
        altered(path(), name + " has another checksum than its header says");
    return data;
}

void Bundle::verify() const {
    const std::string &label = path();
    for (const auto &one : entries_)
        if (one.first != MANIFEST_NAME && one.first != SIGNATURE_NAME && !holds(one.first))
            altered(label, "member " + repr(one.first) + " is not listed in its manifest");
    std::vector<std::string> listed;
    for (const auto &one : manifest_.members) listed.push_back(one.first);
    std::sort(listed.begin(), listed.end());
    for (const auto &name : listed)
        if (!entries_.count(name)) altered(label, "member " + repr(name) + " is missing");
    for (const auto &one : manifest_.precisions)
        if (!holds(one.second.file)) altered(label, "the graph file of precision '" + one.first + "' is missing");
    for (const auto &one : manifest_.members)
        if (entries_.at(one.first).size != one.second.size)
            altered(label, "member " + repr(one.first) + " has another size than its manifest says");
    for (const auto &one : manifest_.members) chunks(one.first, [](const uint8_t *, size_t) {});
}

std::vector<uint8_t> Bundle::read(const std::string &name) const {
    if (!holds(name)) fail(EDGEAD_BUNDLE_CONTENT, path() + " holds no member " + repr(name) + "; export it again");
    std::vector<uint8_t> data;
    data.reserve(entries_.at(name).size);
    chunks(name, [&](const uint8_t *at, size_t size) { data.insert(data.end(), at, at + size); });
    return data;
}

void Bundle::chunks(const std::string &name, const Taker &take) const {
    Sha256 digest;
    raw(entries_.at(name), [&](const uint8_t *at, size_t size) {
        digest.update(at, size);
        take(at, size);
    });
    if (!agree(digest.hex(), manifest_.member(name)->sha256))
        altered(path(), "member " + repr(name) + " has another SHA-256 than its manifest says");
}

void Bundle::raw(const Entry &entry, const Taker &take) const {
    std::vector<uint8_t> chunk(std::min<uint64_t>(CHUNK, entry.size));
    for (uint64_t start = 0; start < entry.size; start += CHUNK) {
        const size_t length = std::min<uint64_t>(CHUNK, entry.size - start);
        if (!file_.read(entry.offset + start, chunk.data(), length))
            damaged(path(), "it became shorter while it was read");
        take(chunk.data(), length);
    }
}

void Bundle::extract(const std::string &folder, const std::vector<std::string> &names) const {
    for (const auto &name : names) {
        const std::filesystem::path target = std::filesystem::path(folder) / name;
        std::error_code ignored;
        std::filesystem::create_directories(target.parent_path(), ignored);
        const std::unique_ptr<FILE, int (*)(FILE *)> out(std::fopen(target.c_str(), "wbe"), std::fclose);
        bool written = out != nullptr;
        chunks(name, [&](const uint8_t *at, size_t size) {
            written = written && std::fwrite(at, 1, size, out.get()) == size;
        });
        if (!written || std::fflush(out.get()))
            fail(EDGEAD_BUNDLE_UNREADABLE, "cannot extract " + path() + " to " + folder + ": " + std::strerror(errno));
    }
}

PrivateFolder::PrivateFolder() {
    const char *temporary = std::getenv("TMPDIR");
    std::string name = std::string(temporary && *temporary ? temporary : "/tmp") + "/edgead-XXXXXX";
    if (!mkdtemp(name.data()))
        fail(EDGEAD_BUNDLE_UNREADABLE, "cannot make a folder like " + name + ": " + std::strerror(errno));
    path_ = name;
}

PrivateFolder::~PrivateFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
}

}  // namespace edgead
