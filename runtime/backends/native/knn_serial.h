/* The search in plain C: the reference for the others. */
#define SET serial
#define TARGET
#define TILE 4
#define ROWS 16
#define CHUNK 64

static void compare_group_serial(const Bank *bank, const Work *work, const uint8_t *packed, int first) {
    Query *queries = work->queries;
    for (int i = 0; i < TILE; i++) {
        const int8_t *query = work->rounded + (size_t)i * bank->coarse_rounding.count;
        int32_t sums[ROWS];
        for (int r = 0; r < ROWS; r++) sums[r] = -bank->halves[first + r];
        for (int u = 0; u < bank->units; u++)
            for (int r = 0; r < ROWS; r++)
                for (int k = 0; k < 4; k++) sums[r] += packed[((size_t)u * ROWS + r) * 4 + k] * query[u * 4 + k];
        for (int r = 0; r < ROWS; r++)
            if (sums[r] >= queries[i].least) hold(queries + i, first + r, sums[r]);
    }
}

#include "knn_search.h"
