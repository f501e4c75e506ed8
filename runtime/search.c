/* Exact nearest rows of a memory bank, by far fewer float operations than comparing with every row.
 *
 * Rows and queries are rounded to 8 bits with one common step. Between rounded vectors all distances are computed, in
 * integers and without error, with the processor's dot products of bytes (AVX-512 VNNI). By the triangle inequality a
 * row whose rounded distance exceeds the best true distance found so far by more than both rounding errors cannot be
 * the nearest one. The few others are compared in float32, so the result is the exact one.
 *
 * Built on the device by `edgead build --target cpu`; called by runtime/search.py. One call uses one thread.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#if defined(__x86_64__)
#include <immintrin.h>

#define WIDE __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
#define TILE 6   /* queries at a time: 6 x 4 accumulators, 4 vectors of rows and a query fit into 32 registers */
#define GROUP 4  /* vectors of 16 rows at a time */
#define ROWS 64  /* rows of a group */
#define CHUNK 16 /* groups that stay in the cache while all queries pass */
#define HELD 48  /* candidates that may wait for their comparison; a group may add 64 more */

typedef struct {
    float squared;  /* smallest squared distance so far */
    float reach;    /* rounding error of this query plus the largest one of a row */
    int32_t limit;  /* rounded values above it cannot belong to the nearest row */
    int32_t shift;  /* what is the same for all rows of this query's rounded squared distances */
    int32_t nearest, held;
    int32_t rows[HELD + ROWS], values[HELD + ROWS];
} Query;

int edgead_search_supported(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

WIDE static float squared_distance(const float *a, const float *b, int channels) {
    __m512 sum = _mm512_setzero_ps();
    int k = 0;
    for (; k + 16 <= channels; k += 16) {
        __m512 d = _mm512_sub_ps(_mm512_loadu_ps(a + k), _mm512_loadu_ps(b + k));
        sum = _mm512_fmadd_ps(d, d, sum);
    }
    if (k < channels) {
        __mmask16 rest = (__mmask16)((1u << (channels - k)) - 1u);
        __m512 d = _mm512_sub_ps(_mm512_maskz_loadu_ps(rest, a + k), _mm512_maskz_loadu_ps(rest, b + k));
        sum = _mm512_fmadd_ps(d, d, sum);
    }
    return _mm512_reduce_add_ps(sum);
}

/* The rounded squared distance, in steps, that a row at the true distance `squared` can have at most. */
static void set_limit(Query *query, float inverse_step) {
    /* The factor covers the rounding of float32 sums. */
    double root = (sqrt((double)query->squared) * 1.00001 + (double)query->reach) * (double)inverse_step;
    double most = ceil(root * root) + 1.0;
    query->limit = (most < 1e9 ? (int32_t)most : 1000000000) - query->shift;
}

WIDE static void consider(Query *query, const float *values, const float *row, int32_t index, int channels) {
    float squared = squared_distance(values, row, channels);
    if (squared < query->squared) {
        query->squared = squared;
        query->nearest = index;
    }
}

/* The most promising one first: what it is found to be at rules out most of the others unseen. */
WIDE static void compare_held(Query *query, const float *values, const float *rows, int channels, float inverse_step) {
    int best = 0;
    for (int i = 1; i < query->held; i++)
        if (query->values[i] < query->values[best]) best = i;
    for (int i = -1; i < query->held; i++) {
        int at = i < 0 ? best : i;
        if (i == best || query->values[at] > query->limit) continue;
        float before = query->squared;
        consider(query, values, rows + (size_t)query->rows[at] * channels, query->rows[at], channels);
        if (query->squared < before) set_limit(query, inverse_step);
    }
    query->held = 0;
}

/* Round a query; one that is not finite is never searched for, and its distance is NaN. */
WIDE static void round_query(Query *query, const float *values, const float *rows, int8_t *rounded, int channels,
                             float step, float row_error) {
    float inverse = 1.0f / step;
    double error = 0.0;
    int32_t sum = 0, square = 0;
    for (int k = 0; k < channels; k++) {
        float x = rintf(values[k] * inverse);
        int value = x >= 127.0f ? 127 : x > -127.0f ? (int)x : -127; /* NaN gives -127 */
        double rest = (double)values[k] - (double)step * value;
        rounded[k] = (int8_t)value;
        sum += value;
        square += value * value;
        error += rest * rest;
    }
    if (!(error < 1e30)) {
        query->squared = NAN;
        query->limit = INT32_MIN;
        return;
    }
    /* Rows are stored with 128 added, which the sum takes away again. */
    query->shift = square + 256 * sum;
    query->reach = (float)(sqrt(error) * 1.00001) + row_error + 1e-3f * step;
    query->squared = squared_distance(values, rows, channels);
    set_limit(query, inverse);
}

/* Hold every row of a group that may be the nearest one of a query, given the products of the rounded vectors. */
WIDE static inline void hold(Query *query, const int32_t *norms, int first, __m512i p0, __m512i p1, __m512i p2,
                             __m512i p3) {
    const __m512i limit = _mm512_set1_epi32(query->limit);
    const __m512i v0 = _mm512_sub_epi32(_mm512_loadu_si512(norms + first), _mm512_slli_epi32(p0, 1));
    const __m512i v1 = _mm512_sub_epi32(_mm512_loadu_si512(norms + first + 16), _mm512_slli_epi32(p1, 1));
    const __m512i v2 = _mm512_sub_epi32(_mm512_loadu_si512(norms + first + 32), _mm512_slli_epi32(p2, 1));
    const __m512i v3 = _mm512_sub_epi32(_mm512_loadu_si512(norms + first + 48), _mm512_slli_epi32(p3, 1));
    uint64_t near = (uint64_t)_mm512_cmple_epi32_mask(v0, limit) |
                    (uint64_t)_mm512_cmple_epi32_mask(v1, limit) << 16 |
                    (uint64_t)_mm512_cmple_epi32_mask(v2, limit) << 32 |
                    (uint64_t)_mm512_cmple_epi32_mask(v3, limit) << 48;
    if (__builtin_expect(near == 0, 1)) return;
    int32_t values[ROWS];
    _mm512_storeu_si512(values, v0);
    _mm512_storeu_si512(values + 16, v1);
    _mm512_storeu_si512(values + 32, v2);
    _mm512_storeu_si512(values + 48, v3);
    for (; near; near &= near - 1) {
        int at = __builtin_ctzll(near);
        query->rows[query->held] = first + at;
        query->values[query->held++] = values[at];
    }
}

/* The 24 sums have names, for an array of them would be kept in memory instead of in registers. */
#define EACH_QUERY(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5)
#define CLEAR(i) __m512i s##i##0 = zero, s##i##1 = zero, s##i##2 = zero, s##i##3 = zero;
/* As assembly, because GCC 12 copies every sum twice around the intrinsic, which takes half of the time. */
#define MULTIPLY_ADD(sum, rows) __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(rows), "v"(q))
#define ADD(i)                                                          \
    {                                                                   \
        int32_t four;                                                   \
        __builtin_memcpy(&four, query + (size_t)(i) * width, 4);        \
        const __m512i q = _mm512_set1_epi32(four);                      \
        MULTIPLY_ADD(s##i##0, r0);                                      \
        MULTIPLY_ADD(s##i##1, r1);                                      \
        MULTIPLY_ADD(s##i##2, r2);                                      \
        MULTIPLY_ADD(s##i##3, r3);                                      \
    }
#define HOLD(i) hold(queries + i, norms, first, s##i##0, s##i##1, s##i##2, s##i##3);

/* Compare a tile of queries with a group of rows. */
WIDE static void search_group(Query *queries, const int8_t *rounded, const uint8_t *packed, const int32_t *norms,
                              int first, int quads) {
    const size_t width = (size_t)quads * 4, vector = (size_t)quads * 64;
    const __m512i zero = _mm512_setzero_si512();
    EACH_QUERY(CLEAR)
    for (int k = 0; k < quads; k++) {
        const uint8_t *at = packed + (size_t)k * 64;
        const int8_t *query = rounded + (size_t)k * 4;
        const __m512i r0 = _mm512_loadu_si512(at), r1 = _mm512_loadu_si512(at + vector);
        const __m512i r2 = _mm512_loadu_si512(at + 2 * vector), r3 = _mm512_loadu_si512(at + 3 * vector);
        EACH_QUERY(ADD)
    }
    EACH_QUERY(HOLD)
}

/* Return 0, or 1 where memory is short.
 *
 * queries   (count, channels) float32
 * packed    rows rounded, with 128 added: (groups * 4, quads, 16, 4) uint8, quads = ceil(channels / 4)
 * norms     (groups * 64) int32, sum of squares of each rounded row; 2^30 for rows that only fill up the last group
 * rows      (any, channels) float32, row_error the largest distance of one from its rounded form
 * distances (count) float32, out
 */
WIDE int edgead_search(const float *queries, int count, int channels, const uint8_t *packed, const int32_t *norms,
                       int groups, const float *rows, float step, float row_error, float *distances) {
    const int quads = (channels + 3) / 4, tiles = (count + TILE - 1) / TILE;
    const size_t width = (size_t)quads * 4;
    const float inverse = 1.0f / step;
    int8_t *rounded = calloc((size_t)tiles * TILE, width);
    Query *states = calloc((size_t)tiles * TILE, sizeof(Query));
    if (!rounded || !states) {
        free(rounded);
        free(states);
        return 1;
    }
    for (int i = 0; i < tiles * TILE; i++) {
        if (i < count)
            round_query(states + i, queries + (size_t)i * channels, rows, rounded + i * width, channels, step, row_error);
        else
            states[i].limit = INT32_MIN;
    }
    for (int start = 0; start < groups; start += CHUNK) {
        int end = start + CHUNK < groups ? start + CHUNK : groups;
        for (int i = 0; i < tiles * TILE; i += TILE) {
            for (int n = i; !start && n < i + TILE && n < count; n++) {
                /* Neighbours in the image are alike: the nearest row of the last query is a good start. */
                const float *values = queries + (size_t)n * channels;
                int32_t last = i ? states[i - 1].nearest : 0;
                if (states[n].limit == INT32_MIN) continue;
                consider(states + n, values, rows + (size_t)last * channels, last, channels);
                set_limit(states + n, inverse);
            }
            for (int group = start; group < end; group++) {
                search_group(states + i, rounded + i * width, packed + (size_t)group * GROUP * quads * 64, norms,
                             group * ROWS, quads);
                for (int n = i; n < i + TILE && n < count; n++)
                    if (states[n].held >= HELD || (!start && states[n].held))
                        compare_held(states + n, queries + (size_t)n * channels, rows, channels, inverse);
            }
        }
    }
    for (int i = 0; i < count; i++) {
        if (states[i].held) compare_held(states + i, queries + (size_t)i * channels, rows, channels, inverse);
        distances[i] = sqrtf(states[i].squared);
    }
    free(rounded);
    free(states);
    return 0;
}

#else

int edgead_search_supported(void) { return 0; }

int edgead_search(const float *queries, int count, int channels, const uint8_t *packed, const int32_t *norms,
                  int groups, const float *rows, float step, float row_error, float *distances) {
    (void)queries, (void)count, (void)channels, (void)packed, (void)norms, (void)groups, (void)rows, (void)step;
    (void)row_error, (void)distances;
    return 1;
}

#endif
