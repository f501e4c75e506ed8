// The plugin library with its kernels on the simulator: what it asks of the CUDA runtime is answered as by a small GPU.
// PLUGIN_SOURCE is export/kernels/plugin/plugin.cu, or a faulty copy of it.
#include PLUGIN_SOURCE

#include <cstdlib>

namespace {

cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
bool memory_is_short = false;
int allocations = 0, made = 0;

}  // namespace

extern "C" {

// What the harness sets and asks: is a recording under way, is memory short; blocks that are there, and ever were.
__attribute__((visibility("default"))) void simulate(int recording, int no_memory) {
  capture = recording ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  memory_is_short = no_memory != 0;
}
__attribute__((visibility("default"))) void count_blocks(int* now, int* ever) {
  *now = allocations;
  *ever = made;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = capture;
  return cudaSuccess;
}

// Of the exact size and full of NaN, under the address sanitizer; an allocation while something records is its end.
cudaError_t cudaMalloc(void** memory, size_t bytes) {
  if (capture != cudaStreamCaptureStatusNone) {
    std::fprintf(stderr, "an allocation ends the recording\n");
    std::abort();
  }
  if (memory_is_short) return cudaErrorMemoryAllocation;
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(*memory, 0xff, bytes);
  ++allocations;
  ++made;
  return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
  std::free(memory);
  --allocations;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return capture == cudaStreamCaptureStatusNone ? cudaSuccess : cudaErrorStreamCaptureUnsupported;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 3;
  return cudaSuccess;
}

cudaError_t cudaPeekAtLastError() { return cudaSuccess; }

cudaError_t cudaGetLastError() { return cudaSuccess; }

const char* cudaGetErrorString(cudaError_t) { return ""; }

}  // extern "C"
