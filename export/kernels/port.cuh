// The one file that knows CUDA from a host compiler: inline PTX, dynamic shared memory, launches, exact arithmetic.
//
// Kernels include this and are written once. nvcc and NVRTC make device code of them; a host compiler makes a library
// that runs them on a CPU with the simulator of tests/cuda/host (cuda_on_host.h there stands for the CUDA language).
#pragma once

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#if defined(__CUDACC_RTC__)  // NVRTC has no C++ library
using int8_t = signed char;
using uint8_t = unsigned char;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;
#else
#include <cstdint>
#endif
#define EDGEAD_SHARED(Type, name)                                        \
  extern __shared__ __align__(128) unsigned char edgead_shared_memory[]; \
  Type* name = reinterpret_cast<Type*>(edgead_shared_memory)
#if !defined(__CUDACC_RTC__)
#define EDGEAD_LAUNCH(grid, block, shared_bytes, stream, kernel, ...) \
  (kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__))
#endif
#else
#include "cuda_on_host.h"
#define EDGEAD_SHARED(Type, name) Type* name = static_cast<Type*>(simulator::shared_memory())
#define EDGEAD_LAUNCH(grid, block, shared_bytes, stream, kernel, ...) \
  (static_cast<void>(stream), simulator::launch((grid), (block), (shared_bytes), [=] { (kernel)(__VA_ARGS__); }))
#endif

namespace edgead {

#if defined(__CUDACC__)
using Stream = struct CUstream_st*;  // cudaStream_t, without the runtime's header
#else
using Stream = void*;
#endif

constexpr unsigned kWholeWarp = 0xffffffffu;

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(int8_t value) { return static_cast<float>(value); }

// Sum, difference and product that no compiler may fuse: every executor rounds alike, to the last bit.
__device__ __forceinline__ float exact_add(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}
__device__ __forceinline__ float exact_multiply(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
__device__ __forceinline__ double exact_add(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dadd_rn(a, b);
#else
  return a + b;
#endif
}
__device__ __forceinline__ double exact_multiply(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

// Copies 16 bytes from global to shared memory behind the thread's back; zeros instead where `inside` is false. Both
// addresses are multiples of 16. sm_75 has no such instruction: there it is a load and a store.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool inside) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(inside ? 16 : 0)
               : "memory");
#elif defined(__CUDACC__)
  *static_cast<uint4*>(shared) = inside ? *static_cast<const uint4*>(global) : make_uint4(0, 0, 0, 0);
#else
  simulator::copy_async(shared, global, 16, inside ? 16 : 0);
#endif
}

// Closes a group of copies.
__device__ __forceinline__ void copy_commit() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#elif !defined(__CUDACC__)
  simulator::copy_commit();
#endif
}

// Waits until no more than `Pending` of this thread's groups are under way. Other threads see the data after a barrier.
template <int Pending>
__device__ __forceinline__ void copy_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#elif !defined(__CUDACC__)
  simulator::copy_wait(Pending);
#endif
}

// Loads four 8 x 8 tiles of 16-bit elements; lane 8 i + j gives the address of row j of tile i.
__device__ __forceinline__ void load_matrix(uint32_t (&fragment)[4], const void* row) {
#if defined(__CUDA_ARCH__)
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(address)
               : "memory");
#elif !defined(__CUDACC__)
  simulator::load_matrix(fragment, row);
#endif
}

// sum (16 x 8) += a (16 x 16, row-major) * b (16 x 8, column-major) in FP16 with FP32 sums.
__device__ __forceinline__ void multiply_tile(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __half) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#elif defined(__CUDA_ARCH__)
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
               : "r"(a[0]), "r"(a[1]), "r"(b0));
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
               : "r"(a[2]), "r"(a[3]), "r"(b1));
#elif !defined(__CUDACC__)
  simulator::multiply_f16(sum, a, b0, b1);
#endif
}

// sum (16 x 8) += a (16 x 32, row-major) * b (32 x 8, column-major) in INT8 with exact INT32 sums.
__device__ __forceinline__ void multiply_tile(int32_t (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                              int8_t) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#elif defined(__CUDA_ARCH__)
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                 : "+r"(sum[2 * half]), "+r"(sum[2 * half + 1])
                 : "r"(a[half]), "r"(b0));
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                 : "+r"(sum[2 * half]), "+r"(sum[2 * half + 1])
                 : "r"(a[half + 2]), "r"(b1));
  }
#elif !defined(__CUDACC__)
  simulator::multiply_s8(sum, a, b0, b1);
#endif
}

}  // namespace edgead
