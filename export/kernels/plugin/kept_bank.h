// The bank of a node whose keys never change: made in the first call, kept by the plugin of one execution context.
#pragma once

#include <cuda_runtime_api.h>

#include "../knn_node.cuh"
#include "common.h"

namespace edgead {

class KeptBank {
 public:
  KeptBank() = default;
  KeptBank(const KeptBank&) = delete;
  KeptBank& operator=(const KeptBank&) = delete;
  ~KeptBank() { release(); }

  // The finished bank of these keys. nullptr where none is there and none can be made now: a recording of a CUDA graph
  // allows no allocation, and memory may be short; the caller makes the bank in its scratch memory then.
  template <class Key>
  const void* of(const KnnNode& sizes, const Key* keys, cudaStream_t stream) {
    if (memory_ != nullptr && keys == keys_ && sizes.rows == rows_ && sizes.channels == channels_) return memory_;
    if (recording(stream)) return nullptr;
    release();
    if (cudaMalloc(&memory_, sizes.bank_bytes()) != cudaSuccess) {
      memory_ = nullptr;
      cudaGetLastError();  // not an error of whatever is launched next
      return nullptr;
    }
    sizes.make_bank(keys, memory_, stream);
    // Once: later calls may come on another stream, which would not wait for this one.
    if (cudaStreamSynchronize(stream) != cudaSuccess) {
      release();
      check_launches();
      throw PluginError("the bank of the keys could not be made");
    }
    keys_ = keys;
    rows_ = sizes.rows;
    channels_ = sizes.channels;
    return memory_;
  }

 private:
  static bool recording(cudaStream_t stream) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    if (cudaStreamIsCapturing(stream, &status) == cudaSuccess) return status != cudaStreamCaptureStatusNone;
    cudaGetLastError();  // another thread records on the default stream: then nothing may be allocated either
    return true;
  }

  void release() noexcept {
    if (memory_ != nullptr) cudaFree(memory_);
    memory_ = nullptr;
    keys_ = nullptr;
  }

  void* memory_ = nullptr;
  const void* keys_ = nullptr;
  int rows_ = 0;
  int channels_ = 0;
};

}  // namespace edgead
