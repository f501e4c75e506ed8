/* Included by mahalanobis.c once for each width of a vector: LANES and TARGET are set, and forgotten at the end. The
 * compiler's own vectors, so that there is one source for all instruction sets. */

#define JOINED(a, b) a##_##b
#define NAMED(a, b) JOINED(a, b)
#define Floats NAMED(Floats, LANES)
#define Ints NAMED(Ints, LANES)

typedef float Floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define FLOATS(at) (*(const Floats *)(at))
#define LOW(pairs) __builtin_convertvector((pairs) << 16 >> 16, Floats)
#define HIGH(pairs) __builtin_convertvector((pairs) >> 16, Floats)

/* Put the deviations of a group's locations from their means into x (channels, LANES). */
TARGET static void NAMED(deviations, LANES)(const Gaussians *of, const Queries *given, int group, int image, float *x) {
    const int left = of->locations - group * LANES, filled = left < LANES ? left : LANES;
    const float *values = given->values + image * given->image + (ptrdiff_t)group * LANES * given->location;
    const float *mean = of->mean + (size_t)group * of->channels * LANES;
    for (int k = 0; k < of->channels; k++, x += LANES, mean += LANES, values += given->channel) {
        if (given->location == 1 && filled == LANES)
            *(Floats *)x = FLOATS(values) - FLOATS(mean);
        else
            for (int lane = 0; lane < LANES; lane++)
                x[lane] = lane < filled ? values[lane * given->location] - mean[lane] : 0.0f;
    }
}

/* The squared lengths of W x, W in 32 bits. The four sums have names, for an array of them would be kept in memory. */
TARGET static Floats NAMED(lengths, LANES)(const Gaussians *of, const float *factors, const float *x) {
    Floats squared = {0};
    for (int row = 0; row < of->rows; row += ROWS) {
        const int entries = entries_of_row(of, row);
        Floats s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
        for (int k = 0; k < entries; k++, factors += ROWS * LANES) {
            const Floats value = FLOATS(x + (size_t)k * LANES);
            s0 += FLOATS(factors) * value;
            s1 += FLOATS(factors + LANES) * value;
            s2 += FLOATS(factors + 2 * LANES) * value;
            s3 += FLOATS(factors + 3 * LANES) * value;
        }
        squared += s0 * s0 + s1 * s1 + s2 * s2 + s3 * s3;
    }
    return squared;
}

/* The same, W in 16 bits with a scale for each row. */
TARGET static Floats NAMED(short_lengths, LANES)(const Gaussians *of, const int16_t *factors, const float *scales,
                                                 const float *x) {
    Floats squared = {0};
    for (int row = 0; row < of->rows; row += ROWS, scales += ROWS * LANES) {
        const int entries = entries_of_row(of, row);
        Floats s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
        for (int k = 0; k < entries; k++, factors += ROWS * LANES) {
            for (size_t line = 0; line < ROWS * LANES * sizeof(int16_t); line += 64)
                __builtin_prefetch((const char *)factors + AHEAD + line, 0, 2);
            const Floats value = FLOATS(x + (size_t)k * LANES);
            const Ints upper = *(const Ints *)factors, lower = *(const Ints *)(factors + 2 * LANES);
            s0 += LOW(upper) * value;
            s1 += HIGH(upper) * value;
            s2 += LOW(lower) * value;
            s3 += HIGH(lower) * value;
        }
        s0 *= FLOATS(scales), s1 *= FLOATS(scales + LANES);
        s2 *= FLOATS(scales + 2 * LANES), s3 *= FLOATS(scales + 3 * LANES);
        squared += s0 * s0 + s1 * s1 + s2 * s2 + s3 * s3;
    }
    return squared;
}

TARGET static void NAMED(score, LANES)(const Gaussians *of, const Queries *given, int first, int end, float *x,
                                       float *distances) {
    const size_t entries = entries_of(of), rows = ((size_t)of->rows + ROWS - 1) / ROWS * ROWS;
    for (int group = first; group < end; group++) {
        /* All images at the same group: its factors are then in the cache. */
        for (int image = 0; image < given->images; image++) {
            NAMED(deviations, LANES)(of, given, group, image, x);
            const size_t at = group * entries * LANES;
            Floats squared = of->scales ? NAMED(short_lengths, LANES)(of, (const int16_t *)of->factors + at,
                                                                      of->scales + group * rows * LANES, x)
                                        : NAMED(lengths, LANES)(of, (const float *)of->factors + at, x);
            if (of->precision) {
                Floats whole = {0};
                for (int k = 0; k < of->channels; k++) whole += FLOATS(x + k * LANES) * FLOATS(x + k * LANES);
                squared = whole * FLOATS(of->precision + (size_t)group * LANES) - squared;
            }
            for (int lane = 0; lane < LANES && group * LANES + lane < of->locations; lane++)
                distances[(ptrdiff_t)image * of->locations + group * LANES + lane] =
                    sqrtf(squared[lane] < 0.0f ? 0.0f : squared[lane]); /* NaN stays NaN */
        }
    }
}

#undef JOINED
#undef NAMED
#undef Floats
#undef Ints
#undef FLOATS
#undef LOW
#undef HIGH
#undef LANES
#undef TARGET
