/* The search with AVX-512 VNNI: dot products of bytes in vectors of 512 bits. */
#include <immintrin.h>

#define SET avx512vnni
#define TARGET __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni")))
#define TILE 6  /* queries at a time: 6 x 4 sums, 4 vectors of rows and a query fit into 32 registers */
#define ROWS 64
#define CHUNK 16

/* The 24 sums have names, for an array of them would be kept in memory instead of in registers. */
#define EACH_QUERY(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#define BEGIN(i) __m512i s##i##0 = h0, s##i##1 = h1, s##i##2 = h2, s##i##3 = h3;
/* As assembly, because GCC 12 copies every sum twice around the intrinsic, which takes half of the time. */
#define MULTIPLY_ADD(sum, rows) __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(rows), "v"(q))
#define ADD(i)                                                      \
    {                                                               \
        int32_t four;                                               \
        __builtin_memcpy(&four, query + (size_t)(i) * width, 4);    \
        const __m512i q = _mm512_set1_epi32(four);                  \
        MULTIPLY_ADD(s##i##0, r0);                                  \
        MULTIPLY_ADD(s##i##1, r1);                                  \
        MULTIPLY_ADD(s##i##2, r2);                                  \
        MULTIPLY_ADD(s##i##3, r3);                                  \
    }
#define HOLD(i) hold_avx512vnni(queries + i, first, s##i##0, s##i##1, s##i##2, s##i##3);

TARGET static inline void hold_avx512vnni(Query *query, int first, __m512i p0, __m512i p1, __m512i p2, __m512i p3) {
    const __m512i least = _mm512_set1_epi32(query->least);
    uint64_t near = (uint64_t)_mm512_cmpge_epi32_mask(p0, least) | (uint64_t)_mm512_cmpge_epi32_mask(p1, least) << 16 |
                    (uint64_t)_mm512_cmpge_epi32_mask(p2, least) << 32 |
                    (uint64_t)_mm512_cmpge_epi32_mask(p3, least) << 48;
    if (__builtin_expect(near == 0, 1)) return;
    int32_t products[ROWS];
    _mm512_storeu_si512(products, p0);
    _mm512_storeu_si512(products + 16, p1);
    _mm512_storeu_si512(products + 32, p2);
    _mm512_storeu_si512(products + 48, p3);
    for (; near; near &= near - 1) hold(query, first + __builtin_ctzll(near), products[__builtin_ctzll(near)]);
}

TARGET static void compare_group_avx512vnni(const Bank *bank, const Work *work,
                                            const uint8_t *packed, int first) {
    Query *queries = work->queries;
    const size_t width = bank->coarse_rounding.count;
    const int32_t *halves = bank->halves + first;
    const __m512i zero = _mm512_setzero_si512();
    const __m512i h0 = _mm512_sub_epi32(zero, _mm512_loadu_si512(halves));
    const __m512i h1 = _mm512_sub_epi32(zero, _mm512_loadu_si512(halves + 16));
    const __m512i h2 = _mm512_sub_epi32(zero, _mm512_loadu_si512(halves + 32));
    const __m512i h3 = _mm512_sub_epi32(zero, _mm512_loadu_si512(halves + 48));
    EACH_QUERY(BEGIN)
    for (int unit = 0; unit < bank->units; unit++) {
        const uint8_t *at = packed + (size_t)unit * ROWS * 4;
        const int8_t *query = work->rounded + (size_t)unit * 4;
        const __m512i r0 = _mm512_loadu_si512(at), r1 = _mm512_loadu_si512(at + 64);
        const __m512i r2 = _mm512_loadu_si512(at + 128), r3 = _mm512_loadu_si512(at + 192);
        EACH_QUERY(ADD)
    }
    EACH_QUERY(HOLD)
}

#undef EACH_QUERY
#undef BEGIN
#undef MULTIPLY_ADD
#undef ADD
#undef HOLD
#include "knn_search.h"
