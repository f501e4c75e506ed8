// The signature member of a bundle: who signed the manifest, which has the digests of everything else; as signature.py.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace edgead {

constexpr size_t MAX_SIGNATURE_BYTES = 16 << 10, MAX_SIGNATURES = 8;

struct Signature {
    std::string key_id;  // the SHA-256 of the public key's 32 bytes, in hexadecimal
    std::vector<uint8_t> signature;
};
using SignatureFile = std::vector<Signature>;

// The content of the member; raises a Failure where it is none, or of a version that this one does not know.
SignatureFile parse_signature(const std::string &data, const std::string &label);

// What is signed: a fixed first line, so that no signature of something else fits, and the manifest.
std::string signed_message(const std::string &manifest);

// The id of a public key.
std::string key_id(const std::vector<uint8_t> &key);

// The bytes of lower-case hexadecimal, which was checked.
std::vector<uint8_t> from_hex(const std::string &text);

bool is_hex(const std::string &text, size_t digits);

}  // namespace edgead
