// The functions of ONNX Runtime's C API that are used, by their places in its table.
//
// The wheel brings the library and no header. The table only grows, so a place stays what it is for ever: the header's
// own static_asserts say so (onnxruntime/core/session/onnxruntime_c_api.cc). tests/runtime/capi/test_ort_table.py runs
// every function here against two versions of the wheel. MIT licence, Microsoft Corporation: see NOTICE.
#pragma once

#include <cstddef>
#include <cstdint>

namespace edgead::ort {

struct Env;
struct Status;
struct MemoryInfo;
struct Session;
struct Value;
struct TypeInfo;
struct TensorInfo;
struct SessionOptions;
struct Allocator;

constexpr int WARNING = 2, ERROR = 3;          // OrtLoggingLevel
constexpr int FLOAT = 1, UINT8 = 2;            // ONNXTensorElementDataType
constexpr int ARENA_ALLOCATOR = 1, MEMORY_DEFAULT = 0;
constexpr uint32_t OLDEST = 19;                // 1.19, the oldest that edgead takes

// Places in the table, in its order; behind each the type of the function.
#define EDGEAD_ORT_FUNCTIONS(FUNCTION)                                                                              \
    FUNCTION(2, error_message, const char *(*)(const Status *))                                                     \
    FUNCTION(3, create_env, Status *(*)(int, const char *, Env **))                                                 \
    FUNCTION(6, disable_telemetry, Status *(*)(const Env *))                                                        \
    FUNCTION(7, create_session, Status *(*)(const Env *, const char *, const SessionOptions *, Session **))         \
    FUNCTION(9, run,                                                                                                \
             Status *(*)(Session *, const void *, const char *const *, const Value *const *, size_t,                \
                         const char *const *, size_t, Value **))                                                    \
    FUNCTION(10, create_options, Status *(*)(SessionOptions **))                                                    \
    FUNCTION(22, set_log_level, Status *(*)(SessionOptions *, int))                                                 \
    FUNCTION(24, set_threads, Status *(*)(SessionOptions *, int))                                                   \
    FUNCTION(25, set_graph_threads, Status *(*)(SessionOptions *, int))                                             \
    FUNCTION(30, input_count, Status *(*)(const Session *, size_t *))                                               \
    FUNCTION(31, output_count, Status *(*)(const Session *, size_t *))                                              \
    FUNCTION(33, input_type, Status *(*)(const Session *, size_t, TypeInfo **))                                     \
    FUNCTION(34, output_type, Status *(*)(const Session *, size_t, TypeInfo **))                                    \
    FUNCTION(36, input_name, Status *(*)(const Session *, size_t, Allocator *, char **))                            \
    FUNCTION(37, output_name, Status *(*)(const Session *, size_t, Allocator *, char **))                           \
    FUNCTION(49, create_tensor,                                                                                     \
             Status *(*)(const MemoryInfo *, void *, size_t, const int64_t *, size_t, int, Value **))               \
    FUNCTION(51, tensor_data, Status *(*)(Value *, void **))                                                        \
    FUNCTION(55, as_tensor_info, Status *(*)(const TypeInfo *, const TensorInfo **))                                \
    FUNCTION(60, element_type, Status *(*)(const TensorInfo *, int *))                                              \
    FUNCTION(61, dimension_count, Status *(*)(const TensorInfo *, size_t *))                                        \
    FUNCTION(62, dimensions, Status *(*)(const TensorInfo *, int64_t *, size_t))                                    \
    FUNCTION(65, tensor_info, Status *(*)(const Value *, TensorInfo **))                                            \
    FUNCTION(69, create_memory_info, Status *(*)(int, int, MemoryInfo **))                                          \
    FUNCTION(76, allocator_free, Status *(*)(Allocator *, void *))                                                  \
    FUNCTION(78, default_allocator, Status *(*)(Allocator **))                                                      \
    FUNCTION(93, release_status, void (*)(Status *))                                                                \
    FUNCTION(95, release_session, void (*)(Session *))                                                              \
    FUNCTION(96, release_value, void (*)(Value *))                                                                  \
    FUNCTION(98, release_type, void (*)(TypeInfo *))                                                                \
    FUNCTION(99, release_tensor_info, void (*)(TensorInfo *))                                                       \
    FUNCTION(100, release_options, void (*)(SessionOptions *))                                                      \
    FUNCTION(124, fix_dimension, Status *(*)(SessionOptions *, const char *, int64_t))                              \
    FUNCTION(130, set_entry, Status *(*)(SessionOptions *, const char *, const char *))

struct Api {
    void *places[131];

#define EDGEAD_ORT_ACCESS(place, name, ...)                                    \
    auto name() const {                                                        \
        using Function = __VA_ARGS__;                                          \
        return reinterpret_cast<Function>(places[place]);                      \
    }
    EDGEAD_ORT_FUNCTIONS(EDGEAD_ORT_ACCESS)
#undef EDGEAD_ORT_ACCESS
};

// What the library exports, as OrtGetApiBase.
struct ApiBase {
    const Api *(*get_api)(uint32_t version);
    const char *(*version)();
};

}  // namespace edgead::ort
