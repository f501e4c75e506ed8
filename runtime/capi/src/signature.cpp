// Read and checked as a whole; its form is all that is looked at here.
#include "signature.hpp"

#include <set>

#include "failure.hpp"
#include "hash.hpp"
#include "schema.hpp"

namespace edgead {

namespace {

Check hex(size_t digits) {
    return text({0, 0, [=](const std::string &value) { return std::string(is_hex(value, digits) ? "" : "no hexadecimal"); }});
}

const Check &signature_check() {
    static const Check one = object({{"format", one_of({"edgead.signature/1"})},
                                     {"signatures", list_of(object({{"algorithm", one_of({"ed25519"})},
                                                                    {"key_id", hex(64)},
                                                                    {"signature", hex(128)}}))}});
    return one;
}

// Every way in which it can be wrong has one remedy.
bool read(const std::string &data, SignatureFile &found) {
    Value content;
    std::string problem;
    Problems problems;
    if (!parse_json(data, content, problem) || !signature_check()(content, problems)) return false;
    const std::vector<Value> &listed = content.find("signatures")->items;
    if (listed.empty() || listed.size() > MAX_SIGNATURES) return false;
    std::set<std::string> keys;
    for (const Value &one : listed) {
        found.push_back({one.find("key_id")->text, from_hex(one.find("signature")->text)});
        if (!keys.insert(found.back().key_id).second) return false;
    }
    return true;
}

}  // namespace

bool is_hex(const std::string &text, size_t digits) {
    return text.size() == digits && text.find_first_not_of("0123456789abcdef") == text.npos;
}

std::vector<uint8_t> from_hex(const std::string &text) {
    const auto value = [](char c) { return c <= '9' ? c - '0' : c - 'a' + 10; };
    std::vector<uint8_t> bytes;
    for (size_t i = 0; i + 1 < text.size(); i += 2) bytes.push_back(static_cast<uint8_t>(value(text[i]) << 4 | value(text[i + 1])));
    return bytes;
}

std::string signed_message(const std::string &manifest) { return "edgead.bundle-manifest/1\n" + manifest; }

std::string key_id(const std::vector<uint8_t> &key) {
    Sha256 digest;
    digest.update(key.data(), key.size());
    return digest.hex();
}

SignatureFile parse_signature(const std::string &data, const std::string &label) {
    SignatureFile found;
    if (!read(data, found))
        fail(EDGEAD_BUNDLE_SIGNED, "the signature of " + label + " is damaged or of a newer edgead; sign it again: edgead sign " +
                                       label + " --key FILE");
    return found;
}

}  // namespace edgead
