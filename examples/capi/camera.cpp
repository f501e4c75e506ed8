// The same loop in C++: handles that close themselves, errors as exceptions. Build: c++ -std=c++11 camera.cpp -ledgead
#include <edgead.h>

#include <cstdio>
#include <iostream>
#include <stdexcept>
#include <vector>

void require(edgead_status status) {
    if (status) throw std::runtime_error(std::string(edgead_status_name(status)) + ": " + edgead_last_error());
}

struct Inspector {
    edgead_inspector handle;
    Inspector(const char *bundle, const edgead_options &options) { require(edgead_open(bundle, &options, &handle)); }
    ~Inspector() { edgead_close(handle); }
};

struct Result {
    edgead_result handle;
    Result(const Inspector &inspector, const edgead_frame &frame) {
        require(edgead_inspect(inspector.handle, &frame, &handle));
    }
    ~Result() { edgead_result_close(handle); }
};

int main(int count, char **arguments) try {
    static const char *const names[] = {"OK", "ANOMALY", "NOT_INSPECTED"};
    if (count < 2) throw std::runtime_error("usage: camera BUNDLE [ONNXRUNTIME] < frames");
    edgead_options options = {sizeof(options), 0, 0, 0, count > 3 ? arguments[3] : nullptr, nullptr,
                              count > 2 ? arguments[2] : nullptr, nullptr};
    const Inspector inspector(arguments[1], options);
    int width, height;
    while (std::scanf("%d %d", &width, &height) == 2 && std::getchar() == '\n') {
        std::vector<uint8_t> pixels(3 * static_cast<size_t>(width) * static_cast<size_t>(height));
        if (std::fread(pixels.data(), 1, pixels.size(), stdin) != pixels.size()) break;
        const edgead_frame frame = {sizeof(frame), EDGEAD_RGB, pixels.data(), nullptr, width, height,
                                    3 * int64_t{width}, 0, EDGEAD_BT601, 0};
        const Result result(inspector, frame);
        int32_t decision;
        double score;
        require(edgead_result_decision(result.handle, &decision));
        require(edgead_result_score(result.handle, &score));
        std::printf("%s %a\n", names[decision], score);  // only OK may pass
    }
} catch (const std::exception &error) {
    std::cerr << error.what() << "\n";
    return 2;
}
