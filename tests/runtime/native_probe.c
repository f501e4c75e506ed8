/* Calls the native code with arrays of exactly the sizes that it documents, for the sanitizers to watch; see
 * test_gaussians.py. */
#include <stdio.h>

#include "gaussians.c"
#undef ROWS
#include "search.c"

static float *numbers(size_t count) {
    float *values = malloc(count * sizeof(float));
    for (size_t i = 0; values && i < count; i++) values[i] = (float)(i * 7 % 13) - 6.0f;
    return values;
}

static void gaussians(int lanes, int locations, int channels, int rows, int triangular, int low_rank, int bits) {
    Gaussians of = {.lanes = lanes, .locations = locations, .channels = channels, .rows = rows, .triangular = triangular};
    const size_t groups = (locations + lanes - 1) / lanes, images = 2, count = images * locations * channels;
    const size_t floats = groups * entries_of(&of) * lanes / (bits == 32 ? 1 : 2);
    float *mean = numbers(groups * channels * lanes), *factors = numbers(floats), *values = numbers(count);
    float *scales = numbers(groups * ((rows + 3) / 4 * 4) * lanes), *precision = numbers(groups * lanes);
    float *distances = malloc(images * locations * sizeof(float));
    of.mean = mean, of.factors = factors, of.scales = bits == 32 ? NULL : scales;
    of.precision = low_rank ? precision : NULL;
    const Queries first = {values, (ptrdiff_t)locations * channels, 1, locations, images};
    const Queries last = {values, (ptrdiff_t)locations * channels, channels, 1, images};
    if (edgead_gaussians(&of, &first, 0, groups, distances) || edgead_gaussians(&of, &last, 0, groups, distances))
        exit(3);
    free(mean), free(factors), free(values), free(scales), free(precision), free(distances);
}

static void search(int queries, int channels, int rows) {
    const int groups = (rows + 63) / 64, quads = (channels + 3) / 4;
    float *asked = numbers((size_t)queries * channels), *bank = numbers((size_t)rows * channels);
    float *distances = malloc(queries * sizeof(float));
    uint8_t *packed = calloc((size_t)groups * 64, quads * 4);
    int32_t *norms = malloc(groups * 64 * sizeof(int32_t));
    for (int i = 0; i < groups * 64; i++) norms[i] = i < rows ? 128 * 128 * channels : 1 << 30;
    if (edgead_search(asked, queries, channels, packed, norms, groups, bank, 0.05f, 1e3f, distances)) exit(3);
    free(asked), free(bank), free(distances), free(packed), free(norms);
}

int main(void) {
    int called = 0;
    for (int lanes = 4; lanes <= 16; lanes *= 2)
        for (int bits = 16; edgead_gaussians_supported(lanes) && bits <= 32; bits += 16, called++)
            for (int odd = 1; odd < 36; odd += 17) {
                gaussians(lanes, odd, odd + 5, odd + 5, 1, 0, bits);
                gaussians(lanes, odd + 15, odd, 7, 0, 1, bits);
                gaussians(lanes, 2 * odd, odd, 1, 0, 0, bits);
            }
    for (int odd = 1; edgead_search_supported() && odd < 36; odd += 17, called++) search(odd, odd + 1, 5 * odd);
    printf("%d\n", called);
    return called ? 0 : 3;
}
