/* Exact nearest rows of a memory bank, by far fewer operations than comparing with every row.
 *
 * Rows and queries are first turned and shortened: to their coordinates along the directions in which the rows differ
 * most, and the length of the rest. That never brings two vectors farther apart, nor does moving a query into the box in
 * which all rows lie. What comes out is rounded to 8 bits with one common step. Between rounded vectors all distances are
 * computed, in integers and without error. By the triangle inequality a row whose rounded distance exceeds the best true
 * distance found so far by more than both rounding errors cannot be the nearest one. The few others are compared in
 * float32 and in all channels, so the result is the exact one.
 *
 * One file an instruction set holds the integer part, knn_search.h what is around it; knn.py packs the rows. One call
 * uses one thread.
 */
#include "knn.h"
#include "processor.h"

#include "knn_serial.h"
#if defined(__x86_64__)
#include "knn_avx2.h"

#include "knn_avxvnni.h"
#include "knn_avx512vnni.h"
#elif defined(__aarch64__)
#include "knn_neon.h"

#include "knn_neondot.h"
#include "knn_i8mm.h"
#endif

/* The fastest first. */
static const InstructionSet SETS[] = {
#if defined(__x86_64__)
    {"AVX-512 VNNI", 64, 4, 127, 10000, 0, HAS_AVX2 | HAS_AVX512VNNI, search_avx512vnni},
    {"AVX-VNNI", 16, 4, 127, 6000, 0, HAS_AVX2 | HAS_AVXVNNI, search_avxvnni},
    {"AVX2", 16, 4, 90, 4000, 0, HAS_AVX2, search_avx2},
#elif defined(__aarch64__)
    {"NEON i8mm", 8, 8, 127, 8000, 1, HAS_NEON | HAS_I8MM, search_i8mm},
    {"NEON dot product", 16, 4, 127, 6000, 1, HAS_NEON | HAS_DOT, search_neondot},
    {"NEON", 16, 1, 127, 4000, 1, HAS_NEON, search_neon},
#endif
    {"plain C", 16, 4, 127, 1000, 0, 0, search_serial},
};

/* Return what the library has for an instruction set, the fastest first; NULL behind the last one. */
EXPORT const InstructionSet *edgead_knn_set(int index) {
    return index >= 0 && index < (int)(sizeof(SETS) / sizeof(*SETS)) ? SETS + index : NULL;
}

/* Whether this processor has it. */
EXPORT int edgead_knn_supported(int index) {
    const InstructionSet *set = edgead_knn_set(index);
    return set && (processor_features() & set->needs) == set->needs;
}

/* Write the distance (count) of each query (count, channels) to its nearest row, NaN for one that is not finite. Return
 * 0, or 1 where memory is short. */
EXPORT int edgead_knn(int set, const Bank *bank, const float *queries, int count, float *distances) {
    const size_t width = bank->width, turned = bank->turned;
    Work work = {
        .queries = calloc(MOST_TILE, sizeof(Query)),
        .values = calloc(MOST_TILE * width, sizeof(float)),
        .centered = calloc(MOST_TILE * width, sizeof(float)),
        .coordinate = calloc(MOST_TILE * turned, sizeof(float)),
        .rounded = calloc(MOST_TILE, bank->coarse_rounding.count),
        .fine = calloc(MOST_TILE, turned),
        .stops = calloc(bank->units + 1, sizeof(int32_t)),
    };
    const int short_of =
        !work.queries || !work.values || !work.centered || !work.coordinate || !work.rounded || !work.fine ||
        !work.stops;
    if (!short_of) SETS[set].search(bank, queries, count, &work, distances);
    free(work.queries), free(work.values), free(work.centered), free(work.coordinate), free(work.rounded);
    free(work.fine), free(work.stops);
    return short_of;
}
