// SHA-256 (FIPS 180-4) and CRC-32 (ISO 3309), of what is read in parts.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace edgead {

class Sha256 {
  public:
    void update(const uint8_t *data, size_t size);
    std::string hex();  // once, at the end

  private:
    void block(const uint8_t *data);
    void block_fast(const uint8_t *data, size_t blocks);

    std::array<uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                   0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<uint8_t, 64> held_{};
    uint64_t total_ = 0;
};

uint32_t crc32(const uint8_t *data, size_t size, uint32_t start = 0);

}  // namespace edgead
