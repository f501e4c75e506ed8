/* Distances to the Gaussian of each location: |W (x - m)|, and the low-rank form of it.
 *
 * The factors W of all locations are far larger than the features: the time goes into reading them, once a frame. They
 * are triangles, so half of what a matrix product in the graph reads is zeros. Here only the triangles are kept, those
 * of as many locations side by side as a vector has lanes, entry by entry in the order in which they are needed. The
 * features need no order of their own: in a network's output, locations lie side by side.
 *
 * Called by mahalanobis.py, which packs the factors. One call uses one thread.
 */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "processor.h"

#define ROWS 4 /* of a factor at a time: their sums do not wait for each other, and share what is read of x */

/* How many bytes ahead factors of 16 bits are asked for. A network leaves none of them in the cache, and they are used up
 * faster than the processor's own prefetching brings them: with it the first pass took 0.83 times as long. In 32 bits it
 * gained nothing. */
#define AHEAD 3072

/* As many locations as there are lanes are a group; what a last group has too many is zero. */
typedef struct {
    const float *mean;      /* (groups, channels, lanes) */
    const void *factors;    /* (groups, entries, lanes): ROWS rows, channel by channel; then the next ROWS. In 16 bits
                               the lanes of two rows that follow each other alternate: (groups, entries / 2, lanes, 2) */
    const float *scales;    /* (groups, rows, lanes) for 16 bits, rows rounded up to ROWS; else NULL */
    const float *precision; /* (groups, lanes): |x|^2 precision - |W x|^2 instead of |W x|^2; else NULL */
    int32_t lanes, locations, channels, rows;
    int32_t triangular; /* row i has i + 1 entries; else all have one for each channel */
} Gaussians;

/* Features of images, and the steps between images, locations and channels, in floats. */
typedef struct {
    const float *values;
    ptrdiff_t image, location, channel;
    int32_t images;
} Queries;

/* Of rows that are read together all have as many entries as the longest; the others are filled up with zeros. */
static int entries_of_row(const Gaussians *of, int row) {
    return of->triangular && row + ROWS < of->channels ? row + ROWS : of->channels;
}

static size_t entries_of(const Gaussians *of) {
    size_t sum = 0;
    for (int row = 0; row < of->rows; row += ROWS) sum += (size_t)entries_of_row(of, row) * ROWS;
    return sum;
}

#define LANES 4
#define TARGET /* what every processor of the kind can do, NEON for one */
#include "mahalanobis_lanes.h"

#if defined(__x86_64__)
#define LANES 8
#define TARGET __attribute__((target("avx2,fma")))
#include "mahalanobis_lanes.h"

#define LANES 16
#define TARGET __attribute__((target("avx512f")))
#include "mahalanobis_lanes.h"
#endif

/* Whether this processor has vectors of so many lanes. */
EXPORT int edgead_gaussians_supported(int lanes) {
#if defined(__x86_64__)
    if (lanes == 16) return (processor_features() & HAS_AVX512) != 0;
    if (lanes == 8) return (processor_features() & HAS_AVX2) != 0;
#endif
    return lanes == 4;
}

/* Write distances (images, locations) for the groups from first to before end. Return 0, or 1 where memory is short. */
EXPORT int edgead_gaussians(const Gaussians *of, const Queries *given, int first, int end, float *distances) {
    float *held = malloc((size_t)of->channels * of->lanes * sizeof(float) + 64);
    if (!held) return 1;
    float *x = held + (64 - (uintptr_t)held % 64) / sizeof(float); /* a vector across two cache lines costs two reads */
#if defined(__x86_64__)
    if (of->lanes == 16) score_16(of, given, first, end, x, distances);
    if (of->lanes == 8) score_8(of, given, first, end, x, distances);
#endif
    if (of->lanes == 4) score_4(of, given, first, end, x, distances);
    free(held);
    return 0;
}
