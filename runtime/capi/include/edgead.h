/* libedgead: from a camera frame to a decision, the same as `edgead.runtime.Inspector` takes in Python.
 *
 * Every function that can fail returns an `edgead_status`: 0, or a code of its own for each kind of error; then
 * `edgead_last_error` has the line that says what is wrong and what to do. Nothing is thrown across this border, and
 * whatever a function was to fill in stays as it was where it fails.
 *
 *     edgead_inspector inspector;
 *     edgead_result result;
 *     edgead_frame frame = {sizeof(frame), EDGEAD_RGB, pixels, NULL, 1280, 720, 3 * 1280, 0, EDGEAD_BT601, 0};
 *     int32_t decision;
 *
 *     if (edgead_open("screw.edgead", NULL, &inspector)) die(edgead_last_error());
 *     if (edgead_inspect(inspector, &frame, &result)) die(edgead_last_error());
 *     edgead_result_decision(result, &decision);          // EDGEAD_OK_PART, EDGEAD_ANOMALY or EDGEAD_NOT_INSPECTED
 *     edgead_result_close(result);
 *     edgead_close(inspector);
 *
 * Fail-safe: only EDGEAD_OK_PART may pass a part. A frame on which the network failed, whose score is no finite number
 * or whose part is unknown is no error but EDGEAD_NOT_INSPECTED, with its reason.
 *
 * Threads: all functions may be called from any thread. One inspector judges one frame at a time; a call that meets
 * another one on the same inspector returns EDGEAD_BUSY at once and does nothing, so take turns, or open one inspector
 * for each thread. Closing waits for the call that is going on. The first `edgead_open` of a process loads ONNX Runtime (or
 * OpenVINO, where it is asked for), and sets ORT_DISABLE_TELEMETRY=1 in the environment unless it is set: call it before
 * other threads read or change the environment. A process that was forked after `edgead_open` must not use the inspector.
 *
 * Handles are numbers, never addresses: one that was closed, or never was one, is EDGEAD_CLOSED.
 *
 * ABI: a struct begins with its size as the caller was compiled, and later versions only append fields, enumerators
 * and functions. `edgead_abi_version` says what the library has; EDGEAD_ABI_VERSION what this header describes.
 */
#ifndef EDGEAD_H
#define EDGEAD_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define EDGEAD_API __declspec(dllimport)
#elif defined(EDGEAD_BUILDING)
#define EDGEAD_API __attribute__((visibility("default")))
#else
#define EDGEAD_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* 1: the first one. It changes only where a program must be compiled again. */
#define EDGEAD_ABI_VERSION 1

/* What a function returns; see `edgead_status_name`. */
typedef enum edgead_status {
    EDGEAD_SUCCESS = 0,
    /* Calls. */
    EDGEAD_NULL_POINTER = 1,      /* an argument that must point somewhere does not */
    EDGEAD_WRONG_STRUCT_SIZE = 2, /* struct_size is none that this library knows: set it to sizeof(the struct) */
    EDGEAD_CLOSED = 3,            /* a handle that was closed, or of the other kind, or never was one */
    EDGEAD_BUSY = 4,              /* another thread is using this inspector */
    EDGEAD_BUFFER_TOO_SMALL = 5,  /* the size that is needed was written */
    EDGEAD_OUT_OF_MEMORY = 6,
    EDGEAD_INTERNAL = 7, /* a fault of this library */
    EDGEAD_NO_VALUE = 8, /* the result has none, such as the map of a frame that nobody judged */
    /* Bundles; nothing of the bundle was loaded. */
    EDGEAD_BUNDLE_MISSING = 20,     /* there is no such file */
    EDGEAD_BUNDLE_UNREADABLE = 21,  /* a folder, a pipe, or the system refuses it */
    EDGEAD_BUNDLE_NO_ARCHIVE = 22,  /* some other file */
    EDGEAD_BUNDLE_DAMAGED = 23,     /* truncated, or it breaks a rule of the archive */
    EDGEAD_BUNDLE_ALTERED = 24,     /* a member that its manifest does not list, or of another size or digest */
    EDGEAD_BUNDLE_SIGNED = 25,      /* signed in a way that this version cannot read: damaged, or by a newer edgead */
    EDGEAD_BUNDLE_MANIFEST = 26,    /* the manifest is no JSON, or a field is missing or out of range */
    EDGEAD_BUNDLE_NEWER = 27,       /* made by a newer edgead */
    EDGEAD_BUNDLE_CONTENT = 28,     /* members that do not belong together: region, mask, template, references */
    EDGEAD_BUNDLE_UNSUPPORTED = 29, /* right, but it needs something that only the Python runtime has; it is named */
    EDGEAD_BUNDLE_UNTRUSTED = 30,   /* a trust file holds, and no key of it that holds now signed this content */
    /* What was asked for. */
    EDGEAD_UNKNOWN_PRECISION = 40,
    EDGEAD_UNKNOWN_BACKEND = 41,
    EDGEAD_WRONG_OPTION = 42,
    EDGEAD_TRUST_FILE = 43, /* the trust file cannot be read or is none; nobody is trusted then */
    /* The library that computes. */
    EDGEAD_BACKEND_UNAVAILABLE = 60, /* it is missing or too old, or the graph would compute something else here */
    EDGEAD_BACKEND_FAILED = 61,      /* it cannot load or run the graph */
    EDGEAD_CRYPTO_UNAVAILABLE = 62,  /* OpenSSL's libcrypto, which verifies signatures, is missing or too old */
    /* Frames. */
    EDGEAD_FRAME_LAYOUT = 80, /* none of edgead_layout, or a colour standard that is none */
    EDGEAD_FRAME_STRIDE = 81, /* rows that overlap: a stride below the bytes of a row */
    EDGEAD_FRAME_SIZE = 82,   /* empty, too large, or another size than the model's region was drawn on */
    /* Checks. */
    EDGEAD_CHECK_FAILED = 100 /* this device does not decide as the model was validated */
} edgead_status;

typedef enum edgead_decision { EDGEAD_OK_PART = 0, EDGEAD_ANOMALY = 1, EDGEAD_NOT_INSPECTED = 2 } edgead_decision;

typedef enum edgead_layout {
    EDGEAD_RGB = 1,  /* 3 bytes a pixel */
    EDGEAD_BGR = 2,  /* 3 bytes a pixel, as OpenCV has them */
    EDGEAD_GRAY = 3, /* 1 byte a pixel */
    EDGEAD_NV12 = 4  /* 1 byte a pixel in `data`, and in `chroma` U and V of each 2 x 2 pixels; limited range */
} edgead_layout;

typedef enum edgead_colors { EDGEAD_BT601 = 0, EDGEAD_BT709 = 1 } edgead_colors;

typedef uint64_t edgead_inspector;
typedef uint64_t edgead_result;

/* How a bundle is opened; all zero but its size, or no struct at all, is the default. */
typedef struct edgead_options {
    uint32_t struct_size;    /* sizeof(edgead_options) */
    int32_t threads;         /* CPU threads, 1 to 1024; 0 leaves the number to the backend */
    int32_t no_native_code;  /* not 0: the whole graph runs in the backend, as with Python's native_code=False */
    int32_t reserved;        /* 0 */
    const char *precision;   /* one of the bundle's, such as "int8-cpu"; NULL: "fp32" */
    const char *backend;     /* "onnxruntime", which is NULL too, or "openvino" */
    const char *library;     /* path of libonnxruntime.so or libopenvino_c.so; NULL: the system finds
                                libonnxruntime.so.1 or libopenvino_c.so. The first `edgead_open` of a process with this
                                backend decides; another path later is EDGEAD_WRONG_OPTION */
    const char *trust;       /* path of a trust file: only bundles that a key of it signed are opened, see docs/bundle.md;
                                NULL: the file that $EDGEAD_TRUST names, where it does. Appended: a struct_size without
                                it is taken, too */
} edgead_options;

/* One picture. It is only read, and only during the call. */
typedef struct edgead_frame {
    uint32_t struct_size;  /* sizeof(edgead_frame) */
    int32_t layout;        /* edgead_layout */
    const uint8_t *data;   /* the first row */
    const uint8_t *chroma; /* of NV12: ceil(height / 2) rows of ceil(width / 2) pairs; else NULL */
    int32_t width, height; /* in pixels, 1 to 65535 */
    int64_t stride;        /* bytes from one row to the next, at least those of a row */
    int64_t chroma_stride; /* of NV12, as stride; else 0 */
    int32_t colors;        /* edgead_colors, of NV12 alone */
    int32_t reserved;      /* 0 */
} edgead_frame;

/* What the network sees, and what its map is like. */
typedef struct edgead_shape {
    uint32_t struct_size;              /* sizeof(edgead_shape) */
    int32_t height, width;             /* of the network's input in pixels, 3 bytes each; of tiles as many below each other */
    int32_t map_height, map_width;     /* in cells, of the whole picture; 0 where the graph alone knows */
    int32_t frame_height, frame_width; /* the only size of frames that is taken; 0: any */
} edgead_shape;

/* What `edgead_check` found. */
typedef struct edgead_check_report {
    uint32_t struct_size;        /* sizeof(edgead_check_report) */
    int32_t references;          /* images that were replayed */
    double worst_difference;     /* of scores, as a share of what is allowed: above 1 is too far */
    double worst_map_difference; /* raw */
} edgead_check_report;

/* Return the ABI that this library has, to be compared with EDGEAD_ABI_VERSION. */
EDGEAD_API uint32_t edgead_abi_version(void);

/* Return the version of edgead, such as "0.2.0". */
EDGEAD_API const char *edgead_version(void);

/* Return the name of a status, such as "EDGEAD_BUNDLE_DAMAGED"; "unknown status" for any other number. */
EDGEAD_API const char *edgead_status_name(int32_t status);

/* Return the line for the last error in this thread, UTF-8, never NULL: what is wrong, and what to do. It is "" before
 * the first one, and stays until this thread's next error. */
EDGEAD_API const char *edgead_last_error(void);

/* Open a bundle: every byte of its archive, manifest and members is checked before anything of it is used.
 *
 * Where a trust file holds (edgead_options.trust, else $EDGEAD_TRUST), OpenSSL's libcrypto is loaded, and a bundle that is
 * unsigned, altered, or signed by no key that holds now is refused before its manifest is parsed. Without one a signature
 * is not looked at, except for its form.
 *
 * path: of a .edgead file, UTF-8. options: NULL for the defaults. inspector: where the handle is written.
 * Errors: EDGEAD_BUNDLE_*, EDGEAD_UNKNOWN_*, EDGEAD_WRONG_OPTION, EDGEAD_BACKEND_*, EDGEAD_TRUST_FILE,
 * EDGEAD_CRYPTO_UNAVAILABLE.
 *
 *     edgead_options options = {sizeof(options), 4, 0, 0, "int8-cpu", NULL, NULL, NULL};
 *     edgead_status status = edgead_open("screw.edgead", &options, &inspector);
 */
EDGEAD_API edgead_status edgead_open(const char *path, const edgead_options *options, edgead_inspector *inspector);

/* Release an inspector, after the call that is going on. Its results stay. Errors: EDGEAD_CLOSED. */
EDGEAD_API edgead_status edgead_close(edgead_inspector inspector);

/* Write what the network sees. Errors: EDGEAD_CLOSED. */
EDGEAD_API edgead_status edgead_input_shape(edgead_inspector inspector, edgead_shape *shape);

/* Write one line on what really runs, such as "onnxruntime 1.31.1 CPUExecutionProvider with native search (AVX2)".
 *
 * text: of `capacity` bytes, ended by 0; needed: with that 0, may be NULL. Errors: EDGEAD_BUFFER_TOO_SMALL. */
EDGEAD_API edgead_status edgead_describe(edgead_inspector inspector, char *text, size_t capacity, size_t *needed);

/* Write a frame as the network gets it, to be compared with `edgead.runtime.imaging.view.View.prepare`.
 *
 * pixels: height * width * 3 bytes of RGB, see `edgead_input_shape`; capacity: in bytes.
 * Errors: EDGEAD_FRAME_*, EDGEAD_BUFFER_TOO_SMALL; EDGEAD_NO_VALUE where the part to align was not found. */
EDGEAD_API edgead_status edgead_prepare(edgead_inspector inspector, const edgead_frame *frame, uint8_t *pixels,
                                        size_t capacity);

/* Judge one frame.
 *
 * result: where a handle is written; close it. What the network cannot judge is EDGEAD_NOT_INSPECTED with its reason, and
 * no error. Errors: EDGEAD_FRAME_*, EDGEAD_BUSY, EDGEAD_CLOSED. */
EDGEAD_API edgead_status edgead_inspect(edgead_inspector inspector, const edgead_frame *frame, edgead_result *result);

/* Replay the bundle's reference images, and compare with what the trained model gave on them, as `edgead check` does.
 *
 * The file must still be the bundle that was opened; no signature is asked for again, so a line that runs when its key ends
 * goes on. report: NULL, or filled in, in failure too.
 * Errors: EDGEAD_CHECK_FAILED; EDGEAD_BUNDLE_* where the file is another one by now, or holds no references. */
EDGEAD_API edgead_status edgead_check(edgead_inspector inspector, edgead_check_report *report);

/* Write an edgead_decision. */
EDGEAD_API edgead_status edgead_result_decision(edgead_result result, int32_t *decision);

/* Write the raw image score, higher is more anomalous; NaN where nothing was computed. */
EDGEAD_API edgead_status edgead_result_score(edgead_result result, double *score);

/* Write the threshold that the score was compared with: EDGEAD_ANOMALY iff score > threshold. */
EDGEAD_API edgead_status edgead_result_threshold(edgead_result result, double *threshold);

/* Write the category that a routed model took the part for, UTF-8, valid until the result is closed; EDGEAD_NO_VALUE. */
EDGEAD_API edgead_status edgead_result_category(edgead_result result, const char **category);

/* Write why the frame was not inspected, valid until the result is closed; EDGEAD_NO_VALUE where it was. */
EDGEAD_API edgead_status edgead_result_reason(edgead_result result, const char **reason);

/* Write the anomaly map: height rows of width cells, valid until the result is closed; EDGEAD_NO_VALUE. */
EDGEAD_API edgead_status edgead_result_map(edgead_result result, const float **cells, int32_t *height, int32_t *width);

/* Write the milliseconds that the stages took: preprocess, network and decision. */
EDGEAD_API edgead_status edgead_result_timings(edgead_result result, double *preprocess_ms, double *network_ms,
                                               double *decide_ms);

/* Release a result. Errors: EDGEAD_CLOSED. */
EDGEAD_API edgead_status edgead_result_close(edgead_result result);

#ifdef __cplusplus
}
#endif

#endif
