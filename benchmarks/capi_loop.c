/* The camera loop of benchmarks/capi.py in C: BUNDLE ONNXRUNTIME PRECISION THREADS WIDTH HEIGHT FRAMES, BGR on stdin.
 *
 * It says "first" with the first decision, then the median milliseconds of a frame and the resident memory in MB. */
#define _POSIX_C_SOURCE 199309L
#include <edgead.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now_ms(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e3 + (double)time.tv_nsec * 1e-6;
}

static void require(edgead_status status) {
    if (!status) return;
    fprintf(stderr, "%s\n", edgead_last_error());
    exit(2);
}

static int compare(const void *a, const void *b) {
    return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

static double resident_mb(void) {
    char line[256];
    double kib = 0;
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof(line), status))
        if (!strncmp(line, "VmRSS:", 6)) kib = atof(line + 6);
    if (status) fclose(status);
    return kib / 1024;
}

int main(int count, char **arguments) {
    if (count < 8) return 2;
    const int width = atoi(arguments[5]), height = atoi(arguments[6]), frames = atoi(arguments[7]);
    const size_t bytes = (size_t)width * (size_t)height * 3;
    edgead_options options = {sizeof(options), atoi(arguments[4]), 0, 0, arguments[3], NULL, arguments[2]};
    uint8_t *pixels = malloc(bytes);
    double *times = malloc((size_t)frames * sizeof(double));
    edgead_frame frame = {sizeof(frame), EDGEAD_BGR, pixels, NULL, width, height, 3 * (int64_t)width, 0, 0, 0};
    edgead_inspector inspector;

    if (!pixels || !times || fread(pixels, 1, bytes, stdin) != bytes) return 2;
    require(edgead_open(arguments[1], &options, &inspector));
    for (int i = 0; i < frames; i++) {
        const double started = now_ms();
        edgead_result result;
        int32_t decision;
        require(edgead_inspect(inspector, &frame, &result));
        require(edgead_result_decision(result, &decision));
        times[i] = now_ms() - started;
        require(edgead_result_close(result));
        if (i == 0) printf("first %d\n", decision), fflush(stdout);
    }
    qsort(times, (size_t)frames, sizeof(double), compare);
    printf("%.3f %.1f\n", times[frames / 2], resident_mb());
    return 0;
}
