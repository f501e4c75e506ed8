// The border: arguments are checked here, and whatever is thrown inside becomes a code and a line.
#include <cstddef>
#include <cstring>
#include <new>

#include "edgead.h"
#include "failure.hpp"
#include "handles.hpp"
#include "inspector.hpp"
#include "version.hpp"

namespace edgead {

namespace {

// Never destroyed: a thread may call while the process ends.
Handles<Inspector> &inspectors() {
    static auto *all = new Handles<Inspector>(1);
    return *all;
}
Handles<const Judged> &results() {
    static auto *all = new Handles<const Judged>(2);
    return *all;
}

thread_local std::string last_error;

edgead_status told(edgead_status code, const char *message) {
    try {
        last_error = message;
    } catch (...) {
        last_error.clear();
    }
    return code;
}

template <typename Call> edgead_status guarded(Call call) noexcept {
    try {
        call();
        return EDGEAD_SUCCESS;
    } catch (const Failure &failure) {
        return told(failure.code, failure.message.c_str());
    } catch (const std::bad_alloc &) {
        return told(EDGEAD_OUT_OF_MEMORY, "there is not enough memory; free some, or use a smaller model");
    } catch (const std::exception &error) {
        return told(EDGEAD_INTERNAL, error.what());
    } catch (...) {
        return told(EDGEAD_INTERNAL, "an unknown fault of libedgead; please report it");
    }
}

void require_pointer(const void *pointer, const char *name) {
    if (!pointer) fail(EDGEAD_NULL_POINTER, std::string(name) + " is NULL; give an address");
}

void require_size(uint32_t given, size_t size, const char *name) {
    if (given != size)
        fail(EDGEAD_WRONG_STRUCT_SIZE, std::string(name) + ".struct_size is " + std::to_string(given) + ", this library takes " +
                                           std::to_string(size) + "; set it to sizeof(" + name + ") and compile against its header");
}

std::shared_ptr<Inspector> inspector_of(edgead_inspector handle) {
    auto found = inspectors().get(handle);
    if (!found) fail(EDGEAD_CLOSED, "the inspector is closed, or was never opened; call edgead_open");
    if (!found->is_here())
        fail(EDGEAD_CLOSED, "the inspector was opened before this process was forked; call edgead_open in it");
    return found;
}

std::unique_lock<std::mutex> take_turn(Inspector &inspector) {
    std::unique_lock<std::mutex> turn(inspector.turn, std::try_to_lock);
    if (!turn) fail(EDGEAD_BUSY, "another thread is using this inspector; take turns, or open one for each thread");
    return turn;
}

std::shared_ptr<const Judged> result_of(edgead_result handle) {
    auto found = results().get(handle);
    if (!found) fail(EDGEAD_CLOSED, "the result is closed, or was never given; call edgead_inspect");
    return found;
}

void require_stride(int64_t stride, int64_t row, const char *name) {
    if (stride < row || stride > int64_t{1} << 32)
        fail(EDGEAD_FRAME_STRIDE, std::string("edgead_frame.") + name + " is " + std::to_string(stride) + ", a row has " +
                                      std::to_string(row) + " bytes; give the bytes from one row to the next");
}

Frame frame_of(const edgead_frame *given) {
    require_pointer(given, "frame");
    require_size(given->struct_size, sizeof(edgead_frame), "edgead_frame");
    if (given->layout < EDGEAD_RGB || given->layout > EDGEAD_NV12)
        fail(EDGEAD_FRAME_LAYOUT, "unknown layout " + std::to_string(given->layout) + "; give one of edgead_layout");
    require_pointer(given->data, "edgead_frame.data");
    const int width = given->width, height = given->height;
    if (width < 1 || height < 1 || width > 65535 || height > 65535)
        fail(EDGEAD_FRAME_SIZE, "a frame has 1 to 65535 pixels a side, not " + std::to_string(width) + "x" + std::to_string(height));
    const int channels = given->layout == EDGEAD_RGB || given->layout == EDGEAD_BGR ? 3 : 1;
    require_stride(given->stride, int64_t{width} * channels, "stride");
    Frame frame{};
    frame.layout = static_cast<Layout>(given->layout - EDGEAD_RGB);
    frame.pixels = {given->data, width, height, channels, static_cast<ptrdiff_t>(given->stride)};
    if (given->reserved) fail(EDGEAD_WRONG_OPTION, "edgead_frame.reserved must be 0");
    if (frame.layout != Layout::nv12) return frame;
    if (given->colors != EDGEAD_BT601 && given->colors != EDGEAD_BT709)
        fail(EDGEAD_FRAME_LAYOUT, "unknown colour standard " + std::to_string(given->colors) + "; give one of edgead_colors");
    require_pointer(given->chroma, "edgead_frame.chroma");
    require_stride(given->chroma_stride, (int64_t{width} + 1) / 2 * 2, "chroma_stride");
    frame.nv12 = {given->data, given->chroma, static_cast<ptrdiff_t>(given->stride), static_cast<ptrdiff_t>(given->chroma_stride),
                  given->colors == EDGEAD_BT709};
    return frame;
}

OpenOptions options_of(const edgead_options *asked) {
    OpenOptions options{"fp32", std::nullopt, true, "onnxruntime", "", ""};
    if (!asked) return options;
    // As the first version had it, or as it is now; nothing behind its end is read.
    edgead_options own{};
    if (asked->struct_size != offsetof(edgead_options, trust))
        require_size(asked->struct_size, sizeof(edgead_options), "edgead_options");
    std::memcpy(&own, asked, asked->struct_size);
    const edgead_options *given = &own;
    if (given->threads < 0 || given->threads > 1024)
        fail(EDGEAD_WRONG_OPTION, "threads must be at least 1, got " + std::to_string(given->threads) +
                                      "; omit it for the library's own choice (0), the most are 1024");
    if (given->reserved) fail(EDGEAD_WRONG_OPTION, "edgead_options.reserved must be 0");
    const std::string backend = given->backend ? given->backend : "onnxruntime";
    if (backend != "onnxruntime" && backend != "openvino")
        fail(EDGEAD_UNKNOWN_BACKEND, "this library has the backends 'onnxruntime' and 'openvino', not '" + backend + "'");
    options.backend = backend;
    if (given->threads) options.threads = given->threads;
    options.native = !given->no_native_code;
    if (given->precision) options.precision = given->precision;
    if (given->library) options.library = given->library;
    // Taken for no file at all, it would open what nobody signed.
    if (given->trust && !*given->trust)
        fail(EDGEAD_WRONG_OPTION, "edgead_options.trust is empty; give the path of a trust file, or NULL");
    if (given->trust) options.trust = given->trust;
    return options;
}

// Write a part of a result.
template <typename Out, typename Get> edgead_status read_result(edgead_result handle, Out *out, Get get) noexcept {
    return guarded([&] {
        require_pointer(out, "the address for the value");
        *out = get(*result_of(handle));
    });
}

}  // namespace

}  // namespace edgead

using namespace edgead;

extern "C" {

uint32_t edgead_abi_version(void) { return EDGEAD_ABI_VERSION; }

const char *edgead_version(void) { return VERSION; }

const char *edgead_last_error(void) { return last_error.c_str(); }

edgead_status edgead_open(const char *path, const edgead_options *options, edgead_inspector *inspector) {
    return guarded([&] {
        require_pointer(path, "path");
        require_pointer(inspector, "inspector");
        *inspector = inspectors().put(std::make_shared<Inspector>(path, options_of(options)));
    });
}

edgead_status edgead_close(edgead_inspector inspector) {
    return guarded([&] {
        const auto found = inspectors().take(inspector);
        if (!found) fail(EDGEAD_CLOSED, "the inspector is closed, or was never opened");
        // Of a forked process's parent nothing can be released here.
        if (!found->is_here()) {
            static auto *kept = new std::vector<std::shared_ptr<Inspector>>;
            kept->push_back(found);
            return;
        }
        const std::lock_guard<std::mutex> last(found->turn);
    });
}

edgead_status edgead_input_shape(edgead_inspector inspector, edgead_shape *shape) {
    return guarded([&] {
        require_pointer(shape, "shape");
        require_size(shape->struct_size, sizeof(edgead_shape), "edgead_shape");
        *shape = inspector_of(inspector)->shape();
    });
}

edgead_status edgead_describe(edgead_inspector inspector, char *text, size_t capacity, size_t *needed) {
    return guarded([&] {
        const std::string line = inspector_of(inspector)->describe();
        if (needed) *needed = line.size() + 1;
        if (capacity < line.size() + 1)
            fail(EDGEAD_BUFFER_TOO_SMALL, "the line needs " + std::to_string(line.size() + 1) + " bytes");
        require_pointer(text, "text");
        std::memcpy(text, line.c_str(), line.size() + 1);
    });
}

edgead_status edgead_prepare(edgead_inspector inspector, const edgead_frame *frame, uint8_t *pixels, size_t capacity) {
    return guarded([&] {
        require_pointer(pixels, "pixels");
        const auto found = inspector_of(inspector);
        const Frame taken = frame_of(frame);
        const Sight &sight = found->sight();
        const size_t bytes = static_cast<size_t>(sight.rows()) * static_cast<size_t>(sight.width()) * 3;
        if (capacity < bytes) fail(EDGEAD_BUFFER_TOO_SMALL, "the network's picture needs " + std::to_string(bytes) + " bytes");
        const auto turn = take_turn(*found);
        std::vector<uint8_t> made(bytes);
        if (const auto missing = sight.prepare(taken, made.data())) fail(EDGEAD_NO_VALUE, *missing);
        std::memcpy(pixels, made.data(), bytes);
    });
}

edgead_status edgead_inspect(edgead_inspector inspector, const edgead_frame *frame, edgead_result *result) {
    return guarded([&] {
        require_pointer(result, "result");
        const auto found = inspector_of(inspector);
        const Frame taken = frame_of(frame);
        const auto turn = take_turn(*found);
        *result = results().put(std::make_shared<const Judged>(found->inspect(taken)));
    });
}

edgead_status edgead_check(edgead_inspector inspector, edgead_check_report *report) {
    return guarded([&] {
        if (report) require_size(report->struct_size, sizeof(edgead_check_report), "edgead_check_report");
        const auto found = inspector_of(inspector);
        const auto turn = take_turn(*found);
        const Checked checked = found->check();
        if (report) *report = {sizeof(edgead_check_report), checked.references, checked.worst, checked.worst_map};
        if (!checked.problem.empty()) fail(EDGEAD_CHECK_FAILED, checked.problem);
    });
}

edgead_status edgead_result_decision(edgead_result result, int32_t *decision) {
    return read_result(result, decision, [](const Judged &one) { return static_cast<int32_t>(one.verdict.decision); });
}

edgead_status edgead_result_score(edgead_result result, double *score) {
    return read_result(result, score, [](const Judged &one) { return one.verdict.score; });
}

edgead_status edgead_result_threshold(edgead_result result, double *threshold) {
    return read_result(result, threshold, [](const Judged &one) { return one.verdict.threshold; });
}

edgead_status edgead_result_category(edgead_result result, const char **category) {
    return read_result(result, category, [](const Judged &one) {
        if (!one.verdict.category) fail(EDGEAD_NO_VALUE, "the model routes nothing, so there is no category");
        return one.verdict.category->c_str();
    });
}

edgead_status edgead_result_reason(edgead_result result, const char **reason) {
    return read_result(result, reason, [](const Judged &one) {
        if (!one.verdict.reason) fail(EDGEAD_NO_VALUE, "the frame was inspected, so there is no reason why not");
        return one.verdict.reason->c_str();
    });
}

edgead_status edgead_result_map(edgead_result result, const float **cells, int32_t *height, int32_t *width) {
    return guarded([&] {
        require_pointer(cells, "cells");
        require_pointer(height, "height");
        require_pointer(width, "width");
        const auto found = result_of(result);
        if (found->map.empty()) fail(EDGEAD_NO_VALUE, "nothing was computed for this frame, so there is no map");
        *cells = found->map.data(), *height = found->height, *width = found->width;
    });
}

edgead_status edgead_result_timings(edgead_result result, double *preprocess_ms, double *network_ms, double *decide_ms) {
    return guarded([&] {
        require_pointer(preprocess_ms, "preprocess_ms");
        require_pointer(network_ms, "network_ms");
        require_pointer(decide_ms, "decide_ms");
        const auto found = result_of(result);
        *preprocess_ms = found->preprocess_ms, *network_ms = found->network_ms, *decide_ms = found->decide_ms;
    });
}

edgead_status edgead_result_close(edgead_result result) {
    return guarded([&] {
        if (!results().take(result)) fail(EDGEAD_CLOSED, "the result is closed, or was never given");
    });
}

const char *edgead_status_name(int32_t status) {
#define NAMED(name) \
    case name: return #name;
    switch (status) {
        NAMED(EDGEAD_SUCCESS)
        NAMED(EDGEAD_NULL_POINTER)
        NAMED(EDGEAD_WRONG_STRUCT_SIZE)
        NAMED(EDGEAD_CLOSED)
        NAMED(EDGEAD_BUSY)
        NAMED(EDGEAD_BUFFER_TOO_SMALL)
        NAMED(EDGEAD_OUT_OF_MEMORY)
        NAMED(EDGEAD_INTERNAL)
        NAMED(EDGEAD_NO_VALUE)
        NAMED(EDGEAD_BUNDLE_MISSING)
        NAMED(EDGEAD_BUNDLE_UNREADABLE)
        NAMED(EDGEAD_BUNDLE_NO_ARCHIVE)
        NAMED(EDGEAD_BUNDLE_DAMAGED)
        NAMED(EDGEAD_BUNDLE_ALTERED)
        NAMED(EDGEAD_BUNDLE_SIGNED)
        NAMED(EDGEAD_BUNDLE_MANIFEST)
        NAMED(EDGEAD_BUNDLE_NEWER)
        NAMED(EDGEAD_BUNDLE_CONTENT)
        NAMED(EDGEAD_BUNDLE_UNSUPPORTED)
        NAMED(EDGEAD_BUNDLE_UNTRUSTED)
        NAMED(EDGEAD_UNKNOWN_PRECISION)
        NAMED(EDGEAD_UNKNOWN_BACKEND)
        NAMED(EDGEAD_WRONG_OPTION)
        NAMED(EDGEAD_TRUST_FILE)
        NAMED(EDGEAD_BACKEND_UNAVAILABLE)
        NAMED(EDGEAD_BACKEND_FAILED)
        NAMED(EDGEAD_CRYPTO_UNAVAILABLE)
        NAMED(EDGEAD_FRAME_LAYOUT)
        NAMED(EDGEAD_FRAME_STRIDE)
        NAMED(EDGEAD_FRAME_SIZE)
        NAMED(EDGEAD_CHECK_FAILED)
    }
#undef NAMED
    return "unknown status";
}

}  // extern "C"
