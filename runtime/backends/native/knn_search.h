/* Included once for each instruction set, behind its `compare_group`: the search around it, compiled for that set.
 *
 * SET, TARGET, TILE and ROWS are defined by the set's file, and forgotten at the end. Vectors are the compiler's own.
 */
#define JOINED(a, b) a##_##b
#define NAMED_(a, b) JOINED(a, b)
#define NAMED(a) NAMED_(a, SET)
#define Floats NAMED(Floats)
#define Ints NAMED(Ints)
#define Doubles NAMED(Doubles)

typedef float Floats __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(32), aligned(4), may_alias));
typedef double Doubles __attribute__((vector_size(64)));

#define FLOATS(at) (*(const Floats *)(at))

TARGET static float NAMED(squared_distance)(const float *a, const float *b, int width) {
    Floats even = {0}, odd = {0};
    int k = 0;
    for (; k + 16 <= width; k += 16) {
        const Floats d = FLOATS(a + k) - FLOATS(b + k), e = FLOATS(a + k + 8) - FLOATS(b + k + 8);
        even += d * d, odd += e * e;
    }
    if (k < width) {
        const Floats d = FLOATS(a + k) - FLOATS(b + k);
        even += d * d;
    }
    even += odd;
    return ((even[0] + even[4]) + (even[1] + even[5])) + ((even[2] + even[6]) + (even[3] + even[7]));
}

/* Compare a row with a query; return whether it is the nearest so far. */
TARGET static int NAMED(compare)(const Bank *bank, Query *query, const float *values, int row) {
    const float squared = NAMED(squared_distance)(values, bank->rows + (size_t)row * bank->width, bank->width);
    if (!(squared < query->squared)) return 0;
    query->squared = squared;
    query->nearest = row;
    return 1;
}

/* Between rounded vectors; count is a multiple of 32. */
TARGET static int32_t NAMED(rounded_distance)(const int8_t *a, const int8_t *b, int count) {
    int32_t sum = 0;
    for (int k = 0; k < count; k += 32)
        for (int i = k; i < k + 32; i++) {
            const int16_t d = (int16_t)(a[i] - b[i]);
            sum += d * d;
        }
    return sum;
}

/* Compare the rows that were held with a query. The most promising one first: what it is found to be at rules out most
 * of the others unseen. */
TARGET static void NAMED(settle)(const Bank *bank, Query *query, const float *values, const int8_t *fine) {
    const size_t turned = bank->turned;
    int best = 0;
    for (int i = 0; i < query->held; i++) {
        if (query->products[i] > query->products[best]) best = i;
        for (size_t at = 0; bank->fine && at < turned; at += 64)
            __builtin_prefetch(bank->fine + query->rows[i] * turned + at, 0, 3);
    }
    if (query->held && NAMED(compare)(bank, query, values, query->rows[best])) set_limits(bank, query);
    for (int i = 0; i < query->held; i++) {
        const int row = query->rows[i];
        if (i == best || query->products[i] < query->least) continue;
        if (bank->fine && NAMED(rounded_distance)(fine, bank->fine + row * turned, bank->turned) > query->most) continue;
        if (NAMED(compare)(bank, query, values, row)) set_limits(bank, query);
    }
    query->held = 0;
}

/* Put the coordinates of a tile of queries, without their center, into work->coordinate. */
TARGET static void NAMED(turn)(const Bank *bank, const Work *work) {
    const size_t width = bank->width, turned = bank->turned;
    const float *x = work->centered;
    for (size_t i = 0; i < turned; i += 16) {
        Floats low[TILE] = {{0}}, high[TILE] = {{0}};
        for (size_t k = 0; k < width; k++) {
            const Floats first = FLOATS(bank->axes + k * turned + i), second = FLOATS(bank->axes + k * turned + i + 8);
            for (int n = 0; n < TILE; n++) {
                low[n] += first * x[n * width + k];
                high[n] += second * x[n * width + k];
            }
        }
        for (int n = 0; n < TILE; n++) {
            *(Floats *)(work->coordinate + n * turned + i) = low[n];
            *(Floats *)(work->coordinate + n * turned + i + 8) = high[n];
        }
    }
}

/* Take the center away from a query. Return its length then, negative if it is not finite. */
TARGET static double NAMED(center)(const Bank *bank, const float *values, float *x) {
    Doubles sums = {0};
    for (int k = 0; k < bank->width; k += 8) {
        const Floats difference = FLOATS(values + k) - FLOATS(bank->center + k);
        const Doubles wide = __builtin_convertvector(difference, Doubles);
        *(Floats *)(x + k) = difference;
        sums += wide * wide;
    }
    double square = 0.0;
    for (int i = 0; i < 8; i++) square += sums[i];
    if (square < 1e30) return sqrt(square);
    memset(x, 0, bank->width * sizeof(float));
    return -1.0;
}

/* Return by how much a query's coordinates may be off; the last of them is put in where axes leave something out. */
TARGET static float NAMED(uncertainty)(const Bank *bank, double norm, float *coordinate) {
    const int turned = bank->turned;
    if (!bank->axes) return (float)(1e-7 * norm);
    /* A float32 sum of n products is off by at most n 2^-24 of both vectors' lengths. */
    const double error = (bank->channels + 16) * 6e-8 * sqrt((double)turned) * norm;
    if (!bank->shortened) return (float)(1e-7 * norm + error);
    double kept = 0.0;
    for (int i = 0; i < turned - 1; i++) kept += (double)coordinate[i] * (double)coordinate[i];
    const double rest = sqrt(norm * norm > kept ? norm * norm - kept : 0.0);
    /* A root is off by at most the root of the error under it, or by the error over the root. */
    const double under = (3.0 * error + 1e-12 * norm) * norm, root = sqrt(under);
    coordinate[turned - 1] = (float)rest;
    return (float)(1e-7 * norm + error + (under < root * rest ? under / rest : root));
}

/* Round coordinates; return by how much they are off then, and the sum of their squares. */
TARGET static float NAMED(round)(const Rounding *how, const float *coordinate, int8_t *rounded, int32_t *square) {
    const float step = how->step, inverse = 1.0f / step, whole = 12582912.0f; /* added to it, only whole numbers are left */
    Floats error = {0};
    Ints squares = {0};
    for (int k = 0; k < how->count; k += 8) {
        /* To the box in which all rows lie: that brings a query nearer to each of them, or leaves it. */
        const Floats reach = FLOATS(how->reach + k), far = FLOATS(coordinate + k) - FLOATS(how->middle + k);
        const Ints above = (Ints)(far > reach), below = (Ints)(far < -reach);
        const Ints within = ((Ints)far & ~above & ~below) | ((Ints)reach & above) | ((Ints)-reach & below);
        const Floats x = (Floats)within, value = x * inverse + whole - whole, off = x - step * value;
        const Ints number = __builtin_convertvector(value, Ints);
        for (int i = 0; i < 8; i++) rounded[k + i] = (int8_t)number[i];
        squares += number * number;
        error += off * off;
    }
    float sum = 0.0f;
    *square = 0;
    for (int i = 0; i < 8; i++) sum += error[i], *square += squares[i];
    /* What is added covers the rounding of these sums. */
    return sqrtf(sum) * 1.0001f + how->row_error + 2e-3f * step;
}

/* Round the coordinates of query i of a tile, which is `norm` away from the center. */
TARGET static void NAMED(round_query)(const Bank *bank, const Work *work, int i, double norm) {
    const Rounding *coarse = &bank->coarse_rounding;
    Query *query = work->queries + i;
    float *coordinate = work->coordinate + (size_t)i * bank->turned;
    int8_t *rounded = work->rounded + (size_t)i * coarse->count;
    const float off = NAMED(uncertainty)(bank, norm, coordinate) * 1.00001f;
    int32_t square, shift = 0;
    if (bank->fine) {
        int8_t *fine = work->fine + (size_t)i * bank->turned;
        query->fine_error = NAMED(round)(&bank->fine_rounding, coordinate, fine, &square) + off;
        double rest = 0.0;
        for (int k = coarse->count - 1; k < bank->turned; k++) rest += (double)coordinate[k] * (double)coordinate[k];
        coordinate[coarse->count - 1] = (float)sqrt(rest);
    }
    query->error = NAMED(round)(coarse, coordinate, rounded, &square) + off;
    for (int k = 0; k < coarse->count; k++) shift += rounded[k] * bank->offset[k];
    query->constant = square + 2 * shift;
}

/* Make the first `count` queries of a tile ready, which lie in work->values; one that is not finite is omitted, and its
 * distance is NaN. `starts` are rows that may be near them. */
TARGET static void NAMED(prepare)(const Bank *bank, const Work *work, int count, const int32_t *starts, int started) {
    const size_t width = bank->width, coarse = bank->coarse_rounding.count;
    double norms[TILE];
    for (int i = 0; i < TILE; i++) {
        float *x = (bank->axes ? work->centered : work->coordinate) + i * width;
        norms[i] = i < count ? NAMED(center)(bank, work->values + i * width, x) : -1.0;
    }
    if (bank->axes) NAMED(turn)(bank, work);
    for (int i = 0; i < TILE; i++) {
        Query *query = work->queries + i;
        query->held = 0;
        if (norms[i] < 0.0) {
            memset(work->rounded + i * coarse, 0, coarse);
            leave_out(query, NAN);
            continue;
        }
        NAMED(round_query)(bank, work, i, norms[i]);
        query->squared = INFINITY;
        for (int s = 0; s < started; s++) NAMED(compare)(bank, query, work->values + i * width, starts[s]);
        set_limits(bank, query);
    }
#ifdef PLAN
    PLAN(bank, work);
#endif
}

/* Compare what the queries of a tile hold, of those that hold so many rows at least. */
TARGET static inline void NAMED(settle_tile)(const Bank *bank, const Work *work, int count, int least) {
    for (int i = 0; i < count; i++)
        if (work->queries[i].held >= least)
            NAMED(settle)(bank, work->queries + i, work->values + (size_t)i * bank->width,
                          work->fine + (size_t)i * bank->turned);
}

TARGET static void NAMED(search)(const Bank *bank, const float *queries, int count, const Work *work, float *distances) {
    const size_t bytes = (size_t)bank->coarse_rounding.count * ROWS;
    int32_t starts[MOST_TILE] = {0};
    int started = 1;
    for (int first = 0; first < count; first += TILE) {
        const int filled = count - first < TILE ? count - first : TILE;
        for (int i = 0; i < filled; i++)
            memcpy(work->values + (size_t)i * bank->width, queries + (size_t)(first + i) * bank->channels,
                   (size_t)bank->channels * sizeof(float));
        NAMED(prepare)(bank, work, filled, starts, started);
        for (int group = 0; group < bank->groups; group++) {
            NAMED(compare_group)(bank, work, (const uint8_t *)bank->packed + group * bytes, group * ROWS);
            NAMED(settle_tile)(bank, work, filled, group % CHUNK == CHUNK - 1 || group < 8 ? 1 : HELD);
        }
        NAMED(settle_tile)(bank, work, filled, 1);
        /* Neighbours in the image are alike: the nearest rows of these queries are a good start for the next ones. */
        started = 0;
        for (int i = 0; i < filled; i++) {
            distances[first + i] = sqrtf(work->queries[i].squared);
            if (work->queries[i].nearest >= 0) starts[started++] = work->queries[i].nearest;
        }
        if (!started) started = 1;
    }
}

#undef JOINED
#undef NAMED_
#undef NAMED
#undef Floats
#undef Ints
#undef Doubles
#undef FLOATS
#undef SET
#undef TARGET
#undef TILE
#undef ROWS
#undef CHUNK
#undef PLAN
