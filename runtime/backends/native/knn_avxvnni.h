/* The search with AVX-VNNI: dot products of bytes in vectors of 256 bits. */
#include <immintrin.h>

#define SET avxvnni
#define TARGET __attribute__((target("avx2,fma,avxvnni")))
#define TILE 6 /* queries at a time: 6 x 2 sums, 2 vectors of rows and a query fit into 16 registers */
#define ROWS 16
#define CHUNK 64

/* The 12 sums have names, for an array of them would be kept in memory instead of in registers. */
#define EACH_QUERY(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#define BEGIN(i) __m256i s##i##0 = h0, s##i##1 = h1;
/* As assembly, because GCC 12 copies every sum twice around the intrinsic, which takes half of the time. */
#define MULTIPLY_ADD(sum, rows) __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(rows), "x"(q))
#define ADD(i)                                                      \
    {                                                               \
        int32_t four;                                               \
        __builtin_memcpy(&four, query + (size_t)(i) * width, 4);    \
        const __m256i q = _mm256_set1_epi32(four);                  \
        MULTIPLY_ADD(s##i##0, r0);                                  \
        MULTIPLY_ADD(s##i##1, r1);                                  \
    }
#define HOLD(i) hold_avx2(queries + i, first, s##i##0, s##i##1);

TARGET static void compare_group_avxvnni(const Bank *bank, const Work *work, const uint8_t *packed,
                                         int first) {
    Query *queries = work->queries;
    const size_t width = bank->coarse_rounding.count;
    const __m256i zero = _mm256_setzero_si256();
    const __m256i h0 = _mm256_sub_epi32(zero, _mm256_loadu_si256((const __m256i *)(bank->halves + first)));
    const __m256i h1 = _mm256_sub_epi32(zero, _mm256_loadu_si256((const __m256i *)(bank->halves + first + 8)));
    EACH_QUERY(BEGIN)
    for (int unit = 0; unit < bank->units; unit++) {
        const uint8_t *at = packed + (size_t)unit * ROWS * 4;
        const int8_t *query = work->rounded + (size_t)unit * 4;
        const __m256i r0 = _mm256_loadu_si256((const __m256i *)at);
        const __m256i r1 = _mm256_loadu_si256((const __m256i *)(at + 32));
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
