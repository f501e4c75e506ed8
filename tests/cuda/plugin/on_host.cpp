// The plugin library with its kernels on the simulator: what it asks of the CUDA runtime is answered as by a small GPU.
// PLUGIN_SOURCE is export/kernels/plugin/plugin.cu, or a faulty copy of it.
#include PLUGIN_SOURCE

extern "C" {

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
