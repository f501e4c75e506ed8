/* The search with NEON's products of matrices of bytes (ARMv8.6): two rows by two queries, eight channels at a time. */
#include <arm_neon.h>

#define SET i8mm
#define TARGET __attribute__((target("arch=armv8.2-a+dotprod+i8mm")))
#define TILE 8 /* queries at a time: 4 x 4 sums of pairs, 4 vectors of rows and a pair of queries */
#define ROWS 8
#define CHUNK 128

/* The 16 sums have names, for an array of them would be kept in memory instead of in registers. */
#define EACH_PAIR(DO) DO(0) DO(1) DO(2) DO(3)
#define BEGIN(i) int32x4_t s##i##0 = h0, s##i##1 = h1, s##i##2 = h2, s##i##3 = h3;
#define ADD(i)                                                                                              \
    {                                                                                                       \
        const int8_t *pair = query + (size_t)(2 * (i)) * width;                                             \
        const int8x16_t q = vcombine_s8(vld1_s8(pair), vld1_s8(pair + width));                              \
        s##i##0 = vmmlaq_s32(s##i##0, q, r0);                                                               \
        s##i##1 = vmmlaq_s32(s##i##1, q, r1);                                                               \
        s##i##2 = vmmlaq_s32(s##i##2, q, r2);                                                               \
        s##i##3 = vmmlaq_s32(s##i##3, q, r3);                                                               \
    }
/* A sum holds a query's products with two rows, then the other query's. */
#define HOLD(i)                                                                                             \
    hold_i8mm(work->queries + 2 * i, first, vget_low_s32(s##i##0), vget_low_s32(s##i##1), vget_low_s32(s##i##2), \
              vget_low_s32(s##i##3));                                                                       \
    hold_i8mm(work->queries + 2 * i + 1, first, vget_high_s32(s##i##0), vget_high_s32(s##i##1),             \
              vget_high_s32(s##i##2), vget_high_s32(s##i##3));

static inline void hold_i8mm(Query *query, int first, int32x2_t p0, int32x2_t p1, int32x2_t p2, int32x2_t p3) {
    const int32x4_t low = vcombine_s32(p0, p1), high = vcombine_s32(p2, p3);
    if (__builtin_expect(vmaxvq_s32(vmaxq_s32(low, high)) < query->least, 1)) return;
    int32_t products[ROWS];
    vst1q_s32(products, low), vst1q_s32(products + 4, high);
    for (int row = 0; row < ROWS; row++)
        if (products[row] >= query->least) hold(query, first + row, products[row]);
}

/* Half of the squares of two rows, taken away for each query of a pair. */
static inline int32x4_t pair_of_halves(const int32_t *halves) {
    const int32x2_t two = vneg_s32(vld1_s32(halves));
    return vcombine_s32(two, two);
}

TARGET static void compare_group_i8mm(const Bank *bank, const Work *work, const uint8_t *packed, int first) {
    const size_t width = bank->coarse_rounding.count;
    const int32_t *halves = bank->halves + first;
    const int32x4_t h0 = pair_of_halves(halves), h1 = pair_of_halves(halves + 2);
    const int32x4_t h2 = pair_of_halves(halves + 4), h3 = pair_of_halves(halves + 6);
    EACH_PAIR(BEGIN)
    for (int unit = 0; unit < bank->units; unit++) {
        const int8_t *at = (const int8_t *)packed + (size_t)unit * ROWS * 8;
        const int8_t *query = work->rounded + (size_t)unit * 8;
        const int8x16_t r0 = vld1q_s8(at), r1 = vld1q_s8(at + 16), r2 = vld1q_s8(at + 32), r3 = vld1q_s8(at + 48);
        EACH_PAIR(ADD)
    }
    EACH_PAIR(HOLD)
}

#undef EACH_PAIR
#undef BEGIN
#undef ADD
#undef HOLD
#include "knn_search.h"
