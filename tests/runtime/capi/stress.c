/* Drives libedgead under a sanitizer: opens, judges, checks and closes from several threads, rightly and wrongly. */
#include <edgead.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { THREADS = 4, ROUNDS = 12, WIDTH = 61, HEIGHT = 47 };

static const char *bundle;
static edgead_options options;
static edgead_inspector shared;
static uint8_t pixels[HEIGHT * WIDTH * 3];

static void expect(edgead_status status, edgead_status wanted, const char *what) {
    if (status == wanted) return;
    fprintf(stderr, "%s: %s (%s), not %s\n", what, edgead_status_name(status), edgead_last_error(),
            edgead_status_name(wanted));
    abort();
}

static void judge(edgead_inspector inspector, int busy_is_right) {
    edgead_frame frame = {sizeof(frame), EDGEAD_BGR, pixels, NULL, WIDTH, HEIGHT, WIDTH * 3, 0, 0, 0};
    edgead_result result;
    edgead_status status = edgead_inspect(inspector, &frame, &result);
    const float *cells;
    const char *text;
    int32_t decision, rows, columns;
    double score, threshold, times[3];

    if (busy_is_right && status == EDGEAD_BUSY) return;
    expect(status, EDGEAD_SUCCESS, "inspect");
    expect(edgead_result_decision(result, &decision), EDGEAD_SUCCESS, "decision");
    expect(edgead_result_score(result, &score), EDGEAD_SUCCESS, "score");
    expect(edgead_result_threshold(result, &threshold), EDGEAD_SUCCESS, "threshold");
    expect(edgead_result_timings(result, times, times + 1, times + 2), EDGEAD_SUCCESS, "timings");
    edgead_result_category(result, &text);
    edgead_result_reason(result, &text);
    if (!edgead_result_map(result, &cells, &rows, &columns)) {
        float most = cells[0];
        for (int i = 0; i < rows * columns; i++) most = cells[i] > most ? cells[i] : most;
        if (most != (float)score) printf("score %g, map up to %g\n", score, most);
    }
    expect(edgead_result_close(result), EDGEAD_SUCCESS, "close");
    expect(edgead_result_close(result), EDGEAD_CLOSED, "close again");
}

static void *work(void *unused) {
    edgead_inspector own;
    edgead_frame wrong = {sizeof(wrong), EDGEAD_RGB, pixels, NULL, WIDTH, HEIGHT, WIDTH, 0, 0, 0};
    edgead_result result;
    edgead_inspector shared_not;
    edgead_shape shape = {sizeof(shape), 0, 0, 0, 0, 0, 0};

    (void)unused;
    expect(edgead_open(bundle, &options, &own), EDGEAD_SUCCESS, "open");
    expect(edgead_input_shape(own, &shape), EDGEAD_SUCCESS, "shape");
    for (int round = 0; round < ROUNDS; round++) {
        judge(own, 0);
        judge(shared, 1);
        expect(edgead_inspect(own, &wrong, &result), EDGEAD_FRAME_STRIDE, "stride");
    }
    expect(edgead_check(own, NULL), EDGEAD_SUCCESS, "check");
    expect(edgead_open("/no/such.edgead", &options, &shared_not), EDGEAD_BUNDLE_MISSING, "missing");
    expect(edgead_close(own), EDGEAD_SUCCESS, "close");
    expect(edgead_inspect(own, &wrong, &result), EDGEAD_CLOSED, "closed");
    return NULL;
}

/* Closes what others may be using: they get EDGEAD_CLOSED, or finish first. */
static void *use(void *handle) {
    edgead_frame frame = {sizeof(frame), EDGEAD_RGB, pixels, NULL, WIDTH, HEIGHT, WIDTH * 3, 0, 0, 0};
    edgead_result result;
    for (int i = 0; i < 20; i++) {
        const edgead_status status = edgead_inspect(*(edgead_inspector *)handle, &frame, &result);
        if (!status) edgead_result_close(result);
        if (status && status != EDGEAD_CLOSED && status != EDGEAD_BUSY) expect(status, EDGEAD_SUCCESS, "use");
    }
    return NULL;
}

int main(int count, char **arguments) {
    pthread_t threads[THREADS];
    edgead_inspector closing;

    if (count < 3) return 2;
    bundle = arguments[1];
    options.struct_size = sizeof(options);
    options.library = arguments[2];
    options.threads = 2;
    options.precision = count > 3 ? arguments[3] : NULL;
    for (size_t i = 0; i < sizeof(pixels); i++) pixels[i] = (uint8_t)(i * 7919 % 251);
    expect(edgead_open(bundle, &options, &shared), EDGEAD_SUCCESS, "open");
    for (int i = 0; i < THREADS; i++) pthread_create(threads + i, NULL, work, NULL);
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    expect(edgead_close(shared), EDGEAD_SUCCESS, "close");
    expect(edgead_open(bundle, &options, &closing), EDGEAD_SUCCESS, "open");
    for (int i = 0; i < THREADS; i++) pthread_create(threads + i, NULL, use, &closing);
    expect(edgead_close(closing), EDGEAD_SUCCESS, "close while used");
    for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    puts("done");
    return 0;
}
