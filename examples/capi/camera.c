/* A camera loop in C: `./camera BUNDLE ONNXRUNTIME < frames` judges raw frames and says a line for each.
 *
 * Frames come as "WIDTH HEIGHT\n" and WIDTH * HEIGHT * 3 bytes of RGB; in your program `frame.data` is what the camera's
 * library gives, such as cv::Mat's `data` with EDGEAD_BGR and `step`. Build: cc camera.c -ledgead */
#include <edgead.h>
#include <stdio.h>
#include <stdlib.h>

static void require(edgead_status status) {
    if (!status) return;
    fprintf(stderr, "%s: %s\n", edgead_status_name(status), edgead_last_error());
    exit(2);
}

int main(int count, char **arguments) {
    static const char *const names[] = {"OK", "ANOMALY", "NOT_INSPECTED"};
    edgead_options options = {sizeof(options), 0, 0, 0, NULL, NULL, NULL, NULL};
    edgead_frame frame = {sizeof(frame), EDGEAD_RGB, NULL, NULL, 0, 0, 0, 0, EDGEAD_BT601, 0};
    edgead_inspector inspector;
    uint8_t *pixels = NULL;

    if (count < 2) return fprintf(stderr, "usage: camera BUNDLE [ONNXRUNTIME] < frames\n"), 2;
    options.library = count > 2 ? arguments[2] : NULL;
    options.precision = count > 3 ? arguments[3] : NULL;
    require(edgead_open(arguments[1], &options, &inspector));
    while (scanf("%d %d", &frame.width, &frame.height) == 2 && getchar() == '\n') {
        const size_t bytes = (size_t)frame.width * (size_t)frame.height * 3;
        edgead_result result;
        int32_t decision;
        double score;

        pixels = realloc(pixels, bytes);
        if (!pixels || fread(pixels, 1, bytes, stdin) != bytes) break;
        frame.data = pixels, frame.stride = 3 * (int64_t)frame.width;
        require(edgead_inspect(inspector, &frame, &result));
        require(edgead_result_decision(result, &decision));
        require(edgead_result_score(result, &score));
        printf("%s %a\n", names[decision], score); /* only OK may pass */
        require(edgead_result_close(result));
    }
    free(pixels);
    require(edgead_close(inspector));
    return 0;
}
