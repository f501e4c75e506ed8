/* The search with AVX2, the vectors of industrial PCs without dot products of bytes.
 *
 * Products of bytes are added in 16 bits, two instructions for 32 of them, and emptied into sums of 32 bits before one of
 * 16 bits could overflow. Rounded values up to 90 keep the sum of two products, 180 x 90 each, within 16 bits as well:
 * that sum is what the multiplication itself makes.
 */
#include <immintrin.h>

#define SET avx2
#define TARGET __attribute__((target("avx2,fma")))
#define TILE 6  /* queries at a time: 6 x 2 sums, 2 vectors of rows, a query and a product fit into 16 registers */
#define ROWS 16
#define CHUNK 64
#define PLAN(bank, work) plan_stops(bank, work, TILE, 4, 2)

typedef int32_t Four __attribute__((aligned(1), may_alias));

/* The 12 sums have names, for an array of them would be kept in memory instead of in registers. */
#define EACH_QUERY(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#define BEGIN(i) __m256i s##i##0 = _mm256_setzero_si256(), s##i##1 = _mm256_setzero_si256();
/* As assembly, because GCC 12 loads all queries first and keeps the sums in memory then, which doubles the time. */
#define ADD(i)                                                                                               \
    {                                                                                                        \
        __m256i q, product;                                                                                  \
        __asm__("vpbroadcastd %4, %2\n\t"                                                                    \
                "vpmaddubsw %2, %5, %3\n\t"                                                                  \
                "vpmaddubsw %2, %6, %2\n\t"                                                                  \
                "vpaddw %3, %0, %0\n\t"                                                                      \
                "vpaddw %2, %1, %1"                                                                          \
                : "+x"(s##i##0), "+x"(s##i##1), "=&x"(q), "=&x"(product)                                     \
                : "m"(*(const Four *)(query + (size_t)(i) * width)), "x"(r0), "x"(r1));                       \
    }
#define EMPTY(i)                                                                                \
    sums[2 * i] = _mm256_add_epi32(sums[2 * i], _mm256_madd_epi16(s##i##0, ones));              \
    sums[2 * i + 1] = _mm256_add_epi32(sums[2 * i + 1], _mm256_madd_epi16(s##i##1, ones));

TARGET static inline void hold_avx2(Query *query, int first, __m256i p0, __m256i p1) {
    const __m256i least = _mm256_set1_epi32(query->least);
    const unsigned n0 = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(least, p0)));
    const unsigned n1 = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(least, p1)));
    unsigned near = (n0 | n1 << 8) ^ 0xffffu;
    if (__builtin_expect(near == 0, 1)) return;
    int32_t products[ROWS];
    _mm256_storeu_si256((__m256i *)products, p0);
    _mm256_storeu_si256((__m256i *)(products + 8), p1);
    for (; near; near &= near - 1) hold(query, first + __builtin_ctz(near), products[__builtin_ctz(near)]);
}

TARGET static void compare_group_avx2(const Bank *bank, const Work *work, const uint8_t *packed,
                                      int first) {
    Query *queries = work->queries;
    const size_t width = bank->coarse_rounding.count;
    const __m256i ones = _mm256_set1_epi16(1), zero = _mm256_setzero_si256();
    const __m256i h0 = _mm256_sub_epi32(zero, _mm256_loadu_si256((const __m256i *)(bank->halves + first)));
    const __m256i h1 = _mm256_sub_epi32(zero, _mm256_loadu_si256((const __m256i *)(bank->halves + first + 8)));
    __m256i sums[2 * TILE] = {h0, h1, h0, h1, h0, h1, h0, h1, h0, h1, h0, h1};
    int unit = 0;
    for (const int32_t *stop = work->stops; unit < bank->units; stop++) {
        EACH_QUERY(BEGIN)
        for (const int end = *stop; unit < end; unit++) {
            const uint8_t *at = packed + (size_t)unit * ROWS * 4;
            const int8_t *query = work->rounded + (size_t)unit * 4;
            const __m256i r0 = _mm256_loadu_si256((const __m256i *)at);
            const __m256i r1 = _mm256_loadu_si256((const __m256i *)(at + 32));
            EACH_QUERY(ADD)
        }
        EACH_QUERY(EMPTY)
    }
    for (int i = 0; i < TILE; i++) hold_avx2(queries + i, first, sums[2 * i], sums[2 * i + 1]);
}

#undef EACH_QUERY
#undef BEGIN
#undef ADD
#undef EMPTY
#include "knn_search.h"
