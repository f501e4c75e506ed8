/* The search with NEON's dot products of bytes (ARMv8.2). */
#include <arm_neon.h>

#define SET neondot
#define TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#define TILE 6 /* queries at a time: 6 x 4 sums, 4 vectors of rows and a query fit into 32 registers */
#define ROWS 16
#define CHUNK 64

/* The 24 sums have names, for an array of them would be kept in memory instead of in registers. */
#define EACH_QUERY(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#define BEGIN(i) int32x4_t s##i##0 = h0, s##i##1 = h1, s##i##2 = h2, s##i##3 = h3;
#define ADD(i)                                                      \
    {                                                               \
        int32_t four;                                               \
        __builtin_memcpy(&four, query + (size_t)(i) * width, 4);    \
        const int8x16_t q = vreinterpretq_s8_s32(vdupq_n_s32(four)); \
        s##i##0 = vdotq_s32(s##i##0, r0, q);                        \
        s##i##1 = vdotq_s32(s##i##1, r1, q);                        \
        s##i##2 = vdotq_s32(s##i##2, r2, q);                        \
        s##i##3 = vdotq_s32(s##i##3, r3, q);                        \
    }
#define HOLD(i) hold_neon(work->queries + i, first, s##i##0, s##i##1, s##i##2, s##i##3);

TARGET static void compare_group_neondot(const Bank *bank, const Work *work, const uint8_t *packed, int first) {
    const size_t width = bank->coarse_rounding.count;
    const int32_t *halves = bank->halves + first;
    const int32x4_t h0 = vnegq_s32(vld1q_s32(halves)), h1 = vnegq_s32(vld1q_s32(halves + 4));
    const int32x4_t h2 = vnegq_s32(vld1q_s32(halves + 8)), h3 = vnegq_s32(vld1q_s32(halves + 12));
    EACH_QUERY(BEGIN)
    for (int unit = 0; unit < bank->units; unit++) {
        const int8_t *at = (const int8_t *)packed + (size_t)unit * ROWS * 4;
        const int8_t *query = work->rounded + (size_t)unit * 4;
        const int8x16_t r0 = vld1q_s8(at), r1 = vld1q_s8(at + 16), r2 = vld1q_s8(at + 32), r3 = vld1q_s8(at + 48);
        EACH_QUERY(ADD)
    }
    EACH_QUERY(HOLD)
}

#undef EACH_QUERY
#undef BEGIN
#undef ADD
#undef HOLD
#include "knn_search.h"
