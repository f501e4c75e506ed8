/* The search with NEON as every 64-bit ARM processor has it: products of bytes are added in 16 bits, and emptied into sums
 * of 32 bits before one of 16 bits could overflow. */
#include <arm_neon.h>

#define SET neon
#define TARGET
#define TILE 6 /* queries at a time: 6 x 2 sums */
#define ROWS 16
#define CHUNK 64
#define PLAN(bank, work) plan_stops(bank, work, TILE, 1, 1)

/* The 12 sums have names, for an array of them would be kept in memory instead of in registers. */
#define EACH_QUERY(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#define BEGIN(i) int16x8_t s##i##0 = vdupq_n_s16(0), s##i##1 = s##i##0;
#define ADD(i)                                                      \
    {                                                               \
        const int8x8_t q = vld1_dup_s8(query + (size_t)(i) * width); \
        s##i##0 = vmlal_s8(s##i##0, vget_low_s8(r), q);             \
        s##i##1 = vmlal_s8(s##i##1, vget_high_s8(r), q);            \
    }
#define EMPTY(i)                                                            \
    sums[4 * i] = vaddw_s16(sums[4 * i], vget_low_s16(s##i##0));            \
    sums[4 * i + 1] = vaddw_s16(sums[4 * i + 1], vget_high_s16(s##i##0));   \
    sums[4 * i + 2] = vaddw_s16(sums[4 * i + 2], vget_low_s16(s##i##1));    \
    sums[4 * i + 3] = vaddw_s16(sums[4 * i + 3], vget_high_s16(s##i##1));

/* Hold every row of a group that may be the nearest one of a query. */
static inline void hold_neon(Query *query, int first, int32x4_t p0, int32x4_t p1, int32x4_t p2, int32x4_t p3) {
    const int32x4_t largest = vmaxq_s32(vmaxq_s32(p0, p1), vmaxq_s32(p2, p3));
    if (__builtin_expect(vmaxvq_s32(largest) < query->least, 1)) return;
    int32_t products[16];
    vst1q_s32(products, p0), vst1q_s32(products + 4, p1), vst1q_s32(products + 8, p2), vst1q_s32(products + 12, p3);
    for (int row = 0; row < 16; row++)
        if (products[row] >= query->least) hold(query, first + row, products[row]);
}

static void compare_group_neon(const Bank *bank, const Work *work, const uint8_t *packed, int first) {
    const size_t width = bank->coarse_rounding.count;
    int32x4_t sums[4 * TILE];
    for (int i = 0; i < 4 * TILE; i++) sums[i] = vnegq_s32(vld1q_s32(bank->halves + first + i % 4 * 4));
    int unit = 0;
    for (const int32_t *stop = work->stops; unit < bank->units; stop++) {
        EACH_QUERY(BEGIN)
        for (const int end = *stop; unit < end; unit++) {
            const int8_t *query = work->rounded + unit;
            const int8x16_t r = vreinterpretq_s8_u8(vld1q_u8(packed + (size_t)unit * ROWS));
            EACH_QUERY(ADD)
        }
        EACH_QUERY(EMPTY)
    }
    for (int i = 0; i < TILE; i++)
        hold_neon(work->queries + i, first, sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]);
}

#undef EACH_QUERY
#undef BEGIN
#undef ADD
#undef EMPTY
#include "knn_search.h"
