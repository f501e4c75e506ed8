// Whose signature a bundle must bear before it is opened: public keys, each with its name and validity; as trust.py.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "signature.hpp"

namespace edgead {

// The start of a day, "2026-01-31", or "2026-01-31T12:00:00Z", both UTC, in seconds since 1970; none where it is no time.
std::optional<int64_t> parse_time(const std::string &text);

struct TrustedKey {
    std::string name;
    std::vector<uint8_t> public_key;
    std::optional<std::string> valid_from, valid_until;  // the first instant, and the first after it

    // Why the key does not hold now (seconds since 1970), "" where it does.
    std::string period_problem(int64_t now) const;
};

struct Where {
    std::string trust, bundle;  // the two files, for messages
};

class TrustFile {
  public:
    explicit TrustFile(std::vector<TrustedKey> keys) : keys_(std::move(keys)) {}

    // Return where a key of the list that holds now signed the manifest; else raises a Failure, as it does without libcrypto.
    void require(const std::string &manifest, const std::optional<SignatureFile> &signature, const Where &where) const;

  private:
    std::vector<TrustedKey> keys_;
};

// Read a trust file; raises a Failure where it cannot be read, or is none: nothing is trusted then.
TrustFile read_trust(const std::string &path);

// The same of its content.
TrustFile parse_trust(const std::string &data, const std::string &path);

// The trust file that holds: the one that was asked for, else what $EDGEAD_TRUST names, where that is not empty.
std::optional<std::string> asked_trust(const std::string &asked);

}  // namespace edgead
