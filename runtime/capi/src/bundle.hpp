// One file, NAME.edgead, verified before anything of it is used.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "file.hpp"
#include "manifest.hpp"
#include "zip_archive.hpp"

namespace edgead {

// An opened bundle, all of it verified. What is read later is hashed again while it is read, so a file that changes on
// disk meanwhile is refused, not used.
class Bundle {
  public:
    // Open and verify: container, signature, manifest, and size and SHA-256 of every member; raises a Failure.
    // trust: the trust file of which a key must have signed it; none: no signature is asked for, only its form is checked.
    Bundle(const std::string &path, const std::optional<std::string> &trust);

    const std::string &path() const { return file_.path(); }
    const Manifest &manifest() const { return manifest_; }
    // Of the manifest's bytes; it covers every member through the digests listed there.
    const std::string &sha256() const { return sha256_; }

    // The verified bytes of a listed member.
    std::vector<uint8_t> read(const std::string &name) const;
    bool holds(const std::string &name) const { return manifest_.member(name) != nullptr; }
    // Write members below a folder under their own names, hashed while written.
    void extract(const std::string &folder, const std::vector<std::string> &names) const;

  private:
    using Taker = std::function<void(const uint8_t *, size_t)>;
    void verify() const;
    void chunks(const std::string &name, const Taker &take) const;
    std::string read_unlisted(const std::string &name, size_t limit) const;
    void raw(const Entry &entry, const Taker &take) const;

    File file_;
    std::map<std::string, Entry> entries_;
    Manifest manifest_;
    std::string sha256_;
};

// A private folder, mode 0700, that goes when this does.
class PrivateFolder {
  public:
    PrivateFolder();
    ~PrivateFolder();
    PrivateFolder(const PrivateFolder &) = delete;
    PrivateFolder &operator=(const PrivateFolder &) = delete;
    const std::string &path() const { return path_; }

  private:
    std::string path_;
};

}  // namespace edgead
