/* What the instruction sets of the search share; knn.c says how it works. */
#ifndef EDGEAD_KNN_H
#define EDGEAD_KNN_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define HELD 48      /* rows that may wait for their comparison; a group may add as many as it has */
#define MOST_ROWS 64 /* of a group, in any instruction set */
#define MOST_TILE 8  /* queries that are searched for together, in any instruction set */

/* Coordinates rounded to 8 bits with one step; written by knn.py, which has the same structure. */
typedef struct {
    const float *middle; /* (count): of the range in which the rows lie */
    const float *reach;  /* (count): from there to its ends */
    int32_t count;
    float step;
    float row_error; /* largest distance of a row's coordinates from their rounded form */
} Rounding;

/* Written by knn.py, which has the same structure. */
typedef struct {
    const float *rows;     /* (any, width): as they are; width: channels rounded up to 8, zeros behind them */
    const float *center;   /* (width): taken away from a query first */
    const float *axes;     /* (width, turned), orthonormal columns; NULL: the channels as they are, turned is width */
    const int8_t *fine;    /* (any, turned): rows in all coordinates, a multiple of 32; NULL where the coarse ones are all there are */
    const int32_t *most;   /* (coarse.count): largest rounded value */
    const int32_t *offset; /* (coarse.count): what was added to rounded rows */
    const void *packed;    /* rows in coarse coordinates, (groups, units, ROWS, UNIT) bytes */
    const int32_t *halves; /* (groups * ROWS): half of each rounded row's sum of squares; 2^30 for those that only fill up */
    Rounding coarse_rounding; /* of the first coordinates, and of the length of the others in place of the last one */
    Rounding fine_rounding;
    int32_t channels, width, turned, units, groups;
    int32_t shortened; /* the last axis is zero: the last coordinate is the length of what the others omit */
} Bank;

typedef struct {
    float squared;        /* smallest squared distance so far */
    float error;          /* rounding error of this query plus the largest one of a row */
    float fine_error;     /* the same in all coordinates */
    int32_t constant;     /* what is the same for all rows of this query's rounded squared distances */
    int32_t least;        /* coarse products below it cannot belong to the nearest row */
    int32_t most;         /* nor fine squared distances above this */
    int32_t nearest, held;
    int32_t rows[HELD + MOST_ROWS], products[HELD + MOST_ROWS];
} Query;

/* Of one thread, for one tile. */
typedef struct {
    Query *queries;    /* (MOST_TILE) */
    float *values;     /* (MOST_TILE, width) */
    float *centered;   /* (MOST_TILE, width) */
    float *coordinate; /* (MOST_TILE, turned) */
    int8_t *rounded;   /* (MOST_TILE, coarse count) */
    int8_t *fine;      /* (MOST_TILE, turned) */
    int32_t *stops;    /* (units): after which sums of 16 bits must be emptied; the last one is all units */
} Work;

/* How an instruction set wants its rows; knn.py has the first six of these. */
typedef struct {
    const char *name;
    int32_t rows;     /* of a group */
    int32_t unit;     /* channels of a row that lie side by side */
    int32_t level;    /* largest rounded value */
    int32_t fine_cost; /* of comparing in all coordinates, in products of one: guides knn_bank.py */
    int32_t negative; /* rounded rows are signed; else their smallest values are taken away from them */
    int32_t needs;    /* of processor.h */
    void (*search)(const Bank *bank, const float *queries, int count, const Work *work, float *distances);
} InstructionSet;

static inline void hold(Query *query, int row, int32_t product) {
    query->rows[query->held] = row;
    query->products[query->held++] = product;
}

/* The rounded squared distance that a row at a true squared distance can have at most. */
static inline int32_t rounded_limit(float squared, float error, float step) {
    /* The factor covers the rounding of float32 sums. */
    const double root = (sqrt((double)squared) * 1.00001 + (double)error) / (double)step;
    const double most = ceil(root * root) + 1.0;
    return most < 1e9 ? (int32_t)most : 1000000000;
}

static inline void set_limits(const Bank *bank, Query *query) {
    const int32_t most = rounded_limit(query->squared, query->error, bank->coarse_rounding.step);
    /* Of products, less half of the row's square. */
    query->least = (query->constant - most) >> 1;
    if (bank->fine) query->most = rounded_limit(query->squared, query->fine_error, bank->fine_rounding.step);
}

/* Find the units after which sums of 16 bits must be emptied, for any rows within their range and these queries.
 *
 * Of each unit's coordinates `shared` are added to one sum; one unit alone never exceeds it. */
static inline void plan_stops(const Bank *bank, const Work *work, int tile, int unit, int shared) {
    const Rounding *how = &bank->coarse_rounding;
    int32_t up[MOST_TILE * 4] = {0}, down[MOST_TILE * 4] = {0};
    int stops = 0;
    for (int u = 0; u < bank->units; u++) {
        int full = 0;
        for (int pass = 0; pass < 2; pass++) {
            for (int i = 0; i < tile; i++)
                for (int k = 0; k < unit; k++) {
                    const int at = u * unit + k, query = work->rounded[(size_t)i * how->count + at];
                    const int low = (bank->offset[at] - bank->most[at]) * query;
                    const int high = (bank->offset[at] + bank->most[at]) * query;
                    const int sum = i * (unit / shared) + k / shared;
                    up[sum] += (low > high ? low : high) > 0 ? (low > high ? low : high) : 0;
                    down[sum] -= (low < high ? low : high) < 0 ? (low < high ? low : high) : 0;
                    full |= up[sum] > INT16_MAX || down[sum] > INT16_MAX;
                }
            if (!full || pass) break;
            /* Once more, into sums that were emptied before this unit. */
            memset(up, 0, sizeof(up)), memset(down, 0, sizeof(down));
            work->stops[stops++] = u;
        }
    }
    work->stops[stops] = bank->units;
}

/* A query that is not searched for: to fill up a tile, or because it is not finite. */
static inline void leave_out(Query *query, float squared) {
    query->squared = squared;
    query->least = INT32_MAX;
    query->nearest = -1;
}

#endif
