// SHA-256, by the processor's own rounds where it has them; CRC-32 by eight tables.
#include "hash.hpp"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace edgead {

namespace {

constexpr uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t turn(uint32_t x, int n) { return x >> n | x << (32 - n); }

struct CrcTable {
    uint32_t at[8][256];
    CrcTable() {
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t c = i;
            for (int k = 0; k < 8; k++) c = c & 1 ? 0xEDB88320u ^ c >> 1 : c >> 1;
            at[0][i] = c;
        }
        for (int n = 1; n < 8; n++)
            for (int i = 0; i < 256; i++) at[n][i] = at[0][at[n - 1][i] & 255] ^ at[n - 1][i] >> 8;
    }
};

#if defined(__x86_64__)
bool has_sha() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 19 & 1) || !(c >> 9 & 1)) return false;  // SSE4.1, SSSE3
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 29 & 1);
}
#endif

}  // namespace

#if defined(__x86_64__)
// The processor's own rounds: 100 MB of weights are hashed twice while a bundle opens.
__attribute__((target("sha,sse4.1,ssse3"))) void Sha256::block_fast(const uint8_t *data, size_t blocks) {
    const __m128i order = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
    __m128i low = _mm_shuffle_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(&state_[0])), 0xB1);
    __m128i high = _mm_shuffle_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(&state_[4])), 0x1B);
    __m128i first = _mm_alignr_epi8(low, high, 8), second = _mm_blend_epi16(high, low, 0xF0);
    for (; blocks; blocks--, data += 64) {
        const __m128i kept_first = first, kept_second = second;
        __m128i w[4];
        for (int i = 0; i < 4; i++)
            w[i] = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i *>(data + 16 * i)), order);
        for (int i = 0; i < 16; i++) {
            __m128i &now = w[i & 3];
            if (i >= 4) {
                const __m128i &back1 = w[(i + 3) & 3], &back2 = w[(i + 2) & 3], &back3 = w[(i + 1) & 3];
                now = _mm_add_epi32(_mm_sha256msg1_epu32(now, back3), _mm_alignr_epi8(back1, back2, 4));
                now = _mm_sha256msg2_epu32(now, back1);
            }
            __m128i sum = _mm_add_epi32(now, _mm_loadu_si128(reinterpret_cast<const __m128i *>(K + 4 * i)));
            second = _mm_sha256rnds2_epu32(second, first, sum);
            first = _mm_sha256rnds2_epu32(first, second, _mm_shuffle_epi32(sum, 0x0E));
        }
        first = _mm_add_epi32(first, kept_first);
        second = _mm_add_epi32(second, kept_second);
    }
    low = _mm_shuffle_epi32(first, 0x1B);
    high = _mm_shuffle_epi32(second, 0xB1);
    _mm_storeu_si128(reinterpret_cast<__m128i *>(&state_[0]), _mm_blend_epi16(low, high, 0xF0));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(&state_[4]), _mm_alignr_epi8(high, low, 8));
}
#else
void Sha256::block_fast(const uint8_t *data, size_t blocks) {
    for (; blocks; blocks--, data += 64) block(data);
}
#endif

void Sha256::block(const uint8_t *data) {
    uint32_t w[64];
    for (int i = 0; i < 16; i++)
        w[i] = static_cast<uint32_t>(data[4 * i]) << 24 | static_cast<uint32_t>(data[4 * i + 1]) << 16 |
               static_cast<uint32_t>(data[4 * i + 2]) << 8 | data[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        const uint32_t s0 = turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ w[i - 15] >> 3;
        const uint32_t s1 = turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    auto [a, b, c, d, e, f, g, h] = state_;
    for (int i = 0; i < 64; i++) {
        const uint32_t one = h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + K[i] + w[i];
        const uint32_t two = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + one, d = c, c = b, b = a, a = one + two;
    }
    const uint32_t added[8] = {a, b, c, d, e, f, g, h};
    for (size_t i = 0; i < 8; i++) state_[i] += added[i];
}

void Sha256::update(const uint8_t *data, size_t size) {
#if defined(__x86_64__)
    static const bool fast = has_sha();
#else
    static const bool fast = false;
#endif
    size_t filled = total_ % 64;
    total_ += size;
    if (filled) {
        const size_t taken = std::min(size, 64 - filled);
        std::memcpy(held_.data() + filled, data, taken);
        data += taken, size -= taken, filled += taken;
        if (filled < 64) return;
        block(held_.data());
    }
    const size_t blocks = size / 64;
    if (fast) {
        block_fast(data, blocks);
    } else {
        for (size_t i = 0; i < blocks; i++) block(data + 64 * i);
    }
    if (size % 64) std::memcpy(held_.data(), data + 64 * blocks, size % 64);
}

std::string Sha256::hex() {
    const uint64_t bits = total_ * 8;
    const uint8_t end = 0x80, zero = 0;
    update(&end, 1);
    while (total_ % 64 != 56) update(&zero, 1);
    uint8_t length[8];
    for (int i = 0; i < 8; i++) length[i] = static_cast<uint8_t>(bits >> (56 - 8 * i));
    update(length, 8);
    std::string out;
    for (uint32_t word : state_)
        for (int shift = 28; shift >= 0; shift -= 4) out += "0123456789abcdef"[word >> shift & 15];
    return out;
}

uint32_t crc32(const uint8_t *data, size_t size, uint32_t start) {
    static const CrcTable table;
    uint32_t c = ~start;
    for (; size >= 8; size -= 8, data += 8) {
        c ^= static_cast<uint32_t>(data[0]) | static_cast<uint32_t>(data[1]) << 8 | static_cast<uint32_t>(data[2]) << 16 |
             static_cast<uint32_t>(data[3]) << 24;
        c = table.at[7][c & 255] ^ table.at[6][c >> 8 & 255] ^ table.at[5][c >> 16 & 255] ^ table.at[4][c >> 24] ^
            table.at[3][data[4]] ^ table.at[2][data[5]] ^ table.at[1][data[6]] ^ table.at[0][data[7]];
    }
    for (; size; size--, data++) c = table.at[0][(c ^ *data) & 255] ^ c >> 8;
    return ~c;
}

}  // namespace edgead
