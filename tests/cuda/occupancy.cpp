// Blocks of a kernel that fit on one multiprocessor at a time, by NVIDIA's own calculator (cuda_occupancy.h).
// Arguments: capability (87), threads and shared KiB a multiprocessor; then registers, threads, shared bytes of a block.
#include <cuda_occupancy.h>

#include <cstdio>
#include <cstdlib>

int main(int count, char** arguments) {
  if (count != 7) return 2;
  int values[6];
  for (int i = 0; i < 6; ++i) values[i] = std::atoi(arguments[i + 1]);
  cudaOccDeviceProp device;
  device.computeMajor = values[0] / 10;
  device.computeMinor = values[0] % 10;
  device.maxThreadsPerBlock = 1024;
  device.maxThreadsPerMultiprocessor = values[1];
  device.regsPerBlock = device.regsPerMultiprocessor = 65536;
  device.warpSize = 32;
  device.sharedMemPerBlock = 48 << 10;
  device.sharedMemPerMultiprocessor = static_cast<size_t>(values[2]) << 10;
  device.sharedMemPerBlockOptin = device.sharedMemPerMultiprocessor - 1024;
  device.reservedSharedMemPerBlock = values[0] >= 80 ? 1024 : 0;
  device.numSms = 1;
  cudaOccFuncAttributes kernel;
  kernel.maxThreadsPerBlock = 1024;
  kernel.numRegs = values[3];
  kernel.sharedSizeBytes = 0;
  cudaOccDeviceState state;
  cudaOccResult result;
  if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, values[4], values[5]) != CUDA_OCC_SUCCESS) {
    return 1;
  }
  std::printf("%d\n", result.activeBlocksPerMultiprocessor);
}
