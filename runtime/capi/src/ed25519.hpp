// Ed25519 (RFC 8032) of OpenSSL's libcrypto, which is loaded when the first signature is verified.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace edgead {

// Whether a signature of 64 bytes belongs to a public key of 32 bytes and a message; raises a Failure where libcrypto is
// missing or cannot tell.
bool signature_holds(const std::vector<uint8_t> &key, const std::vector<uint8_t> &signature, const std::string &message);

}  // namespace edgead
