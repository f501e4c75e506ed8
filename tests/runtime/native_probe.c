/* Calls the native code outside Python: under sanitizers, and for other processors in an emulator.
 *
 *   probe                     Gaussians with arrays of exactly the sizes that are documented; prints how many kinds ran
 *   probe lanes               the vectors of the Gaussians that this processor has, in lanes
 *   probe gaussians IN OUT    the distances for a case that native_cases.py wrote, as float32
 *   probe sets                the instruction sets of the search: rows, unit, level, fine cost, negative, supported, name
 *   probe search SET IN OUT   the search for a case that native_cases.py wrote, its distances written as float32
 */
#include <stdio.h>
#include <string.h>

#include "mahalanobis.c"
#undef ROWS
#undef AHEAD
#include "knn.c"

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

static int all_gaussians(void) {
    int called = 0;
    for (int lanes = 4; lanes <= 16; lanes *= 2)
        for (int bits = 16; edgead_gaussians_supported(lanes) && bits <= 32; bits += 16, called++)
            for (int odd = 1; odd < 36; odd += 17) {
                gaussians(lanes, odd, odd + 5, odd + 5, 1, 0, bits);
                gaussians(lanes, odd + 15, odd, 7, 0, 1, bits);
                gaussians(lanes, 2 * odd, odd, 1, 0, 0, bits);
            }
    printf("%d\n", called);
    return called ? 0 : 3;
}

static int list_sets(void) {
    for (int i = 0; edgead_knn_set(i); i++) {
        const InstructionSet *set = edgead_knn_set(i);
        printf("%d %d %d %d %d %d %s\n", set->rows, set->unit, set->level, set->fine_cost, set->negative,
               edgead_knn_supported(i), set->name);
    }
    return 0;
}

/* An array of the case: its size in bytes, then itself; in memory of exactly that size. NULL for none. */
static void *array(FILE *file) {
    int64_t size = 0;
    if (fread(&size, sizeof(size), 1, file) != 1) exit(4);
    if (!size) return NULL;
    void *values = malloc(size);
    if (!values || fread(values, 1, size, file) != (size_t)size) exit(4);
    return values;
}

static Rounding rounding(FILE *file) {
    float numbers[2];
    int32_t count;
    if (fread(numbers, sizeof(numbers), 1, file) != 1 || fread(&count, sizeof(count), 1, file) != 1) exit(4);
    Rounding how = {.count = count, .step = numbers[0], .row_error = numbers[1]};
    how.middle = array(file), how.reach = array(file);
    return how;
}

static int search_case(int set, const char *from, const char *to) {
    FILE *file = fopen(from, "rb");
    int32_t n[7];
    if (!file || fread(n, sizeof(n), 1, file) != 1) return 4;
    Bank bank = {.channels = n[0], .width = n[1], .turned = n[2], .units = n[3], .groups = n[4], .shortened = n[5]};
    bank.coarse_rounding = rounding(file), bank.fine_rounding = rounding(file);
    bank.rows = array(file), bank.center = array(file), bank.axes = array(file), bank.fine = array(file);
    bank.most = array(file), bank.offset = array(file), bank.packed = array(file), bank.halves = array(file);
    float *queries = array(file), *distances = malloc((size_t)n[6] * sizeof(float));
    fclose(file);
    if (!edgead_knn_supported(set) || edgead_knn(set, &bank, queries, n[6], distances)) return 5;
    file = fopen(to, "wb");
    if (!file || fwrite(distances, sizeof(float), n[6], file) != (size_t)n[6] || fclose(file)) return 4;
    free((void *)bank.coarse_rounding.middle), free((void *)bank.coarse_rounding.reach);
    free((void *)bank.fine_rounding.middle), free((void *)bank.fine_rounding.reach);
    free((void *)bank.rows), free((void *)bank.center), free((void *)bank.axes), free((void *)bank.fine);
    free((void *)bank.most), free((void *)bank.offset), free((void *)bank.packed), free((void *)bank.halves);
    free(queries), free(distances);
    return 0;
}

static int list_lanes(void) {
    for (int lanes = 1; lanes <= 64; lanes++)
        if (edgead_gaussians_supported(lanes)) printf("%d\n", lanes);
    return 0;
}

static int gaussians_case(const char *from, const char *to) {
    FILE *file = fopen(from, "rb");
    int32_t n[9];
    if (!file || fread(n, sizeof(n), 1, file) != 1) return 4;
    Gaussians of = {.lanes = n[0], .locations = n[1], .channels = n[2], .rows = n[3], .triangular = n[4]};
    Queries given = {.images = n[5], .image = n[6], .location = n[7], .channel = n[8]};
    of.mean = array(file), of.factors = array(file), of.scales = array(file), of.precision = array(file);
    given.values = array(file);
    fclose(file);
    const size_t count = (size_t)given.images * of.locations;
    float *distances = malloc(count * sizeof(float));
    if (edgead_gaussians(&of, &given, 0, (of.locations + of.lanes - 1) / of.lanes, distances)) return 5;
    file = fopen(to, "wb");
    if (!file || fwrite(distances, sizeof(float), count, file) != count || fclose(file)) return 4;
    free((void *)of.mean), free((void *)of.factors), free((void *)of.scales), free((void *)of.precision);
    free((void *)given.values), free(distances);
    return 0;
}

int main(int count, char **words) {
    if (count == 2 && !strcmp(words[1], "lanes")) return list_lanes();
    if (count == 4 && !strcmp(words[1], "gaussians")) return gaussians_case(words[2], words[3]);
    if (count == 2 && !strcmp(words[1], "sets")) return list_sets();
    if (count == 5 && !strcmp(words[1], "search")) return search_case(atoi(words[2]), words[3], words[4]);
    return all_gaussians();
}
