// The CUDA language for a host compiler (C++20): what kernels call, on top of the fibers of engine.h.
//
// Included by export/kernels/port.cuh wherever the compiler is not nvcc. Types and __half conversions are the toolkit's
// own headers, which compile as host code. Not modelled: static __shared__ (it could be neither poisoned nor sized by
// the launch; use dynamic), textures, TMA, wgmma, clusters, and weak memory order between threads.
#pragma once

#include <cuda_fp16.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "engine.h"
#include "tensor_core.h"

#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

#define threadIdx (::simulator::current->thread)
#define blockIdx (::simulator::current->block)
#define blockDim (::simulator::current->block_size)
#define gridDim (::simulator::current->grid_size)

namespace simulator {

template <class Value>
struct Shuffled {
  Value value;
  int source;  // lane that is read
};

template <class Value>
SIMULATOR_UNCHECKED void shuffle_warp(Lane* const* lanes, unsigned mask) {
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const int source = static_cast<const Shuffled<Value>*>(lanes[lane]->input)->source;
    if (!(mask >> source & 1)) fail("shuffle: lane %u reads lane %d, which is not in the mask %08x", lane, source, mask);
    *static_cast<Value*>(lanes[lane]->output) = static_cast<const Shuffled<Value>*>(lanes[source]->input)->value;
  }
}

template <class Value>
Value shuffle(unsigned mask, Value value, int source, const Place& place) {
  const Shuffled<Value> input{value, source};
  Value output;
  warp_operation(mask, shuffle_warp<Value>, &input, &output, false, "shuffle", place);
  return output;
}

inline SIMULATOR_UNCHECKED void ballot_warp(Lane* const* lanes, unsigned mask) {
  unsigned votes = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1 && *static_cast<const int*>(lanes[lane]->input)) votes |= 1u << lane;
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) *static_cast<unsigned*>(lanes[lane]->output) = votes;
  }
}

inline void nothing(Lane* const*, unsigned) {}

}  // namespace simulator

// The place of the call travels as a default argument, so that messages name the kernel's line.
#define SIMULATOR_PLACE const ::simulator::Place& place = ::simulator::Place::current()

inline void __syncthreads(SIMULATOR_PLACE) { simulator::block_barrier(place); }

inline int __syncthreads_count(int predicate, SIMULATOR_PLACE) {
  return static_cast<int>(simulator::block_vote(predicate != 0, simulator::Vote::kCount, place));
}

inline int __syncthreads_and(int predicate, SIMULATOR_PLACE) {
  return static_cast<int>(simulator::block_vote(predicate != 0, simulator::Vote::kAll, place));
}

inline int __syncthreads_or(int predicate, SIMULATOR_PLACE) {
  return static_cast<int>(simulator::block_vote(predicate != 0, simulator::Vote::kAny, place));
}

inline void __syncwarp(unsigned mask = ~0u, SIMULATOR_PLACE) {
  simulator::warp_operation(mask, simulator::nothing, nullptr, nullptr, true, "__syncwarp", place);
}

template <class Value>
Value __shfl_sync(unsigned mask, Value value, int source, int width = 32, SIMULATOR_PLACE) {
  const int lane = static_cast<int>(simulator::current->lane);
  return simulator::shuffle(mask, value, (lane & ~(width - 1)) + (source & (width - 1)), place);
}

template <class Value>
Value __shfl_xor_sync(unsigned mask, Value value, int flip, int width = 32, SIMULATOR_PLACE) {
  const int lane = static_cast<int>(simulator::current->lane);
  const int source = lane ^ flip;
  return simulator::shuffle(mask, value, source / width > lane / width ? lane : source, place);
}

template <class Value>
Value __shfl_up_sync(unsigned mask, Value value, unsigned delta, int width = 32, SIMULATOR_PLACE) {
  const int lane = static_cast<int>(simulator::current->lane);
  const int source = lane - static_cast<int>(delta);
  return simulator::shuffle(mask, value, source >= (lane & ~(width - 1)) ? source : lane, place);
}

template <class Value>
Value __shfl_down_sync(unsigned mask, Value value, unsigned delta, int width = 32, SIMULATOR_PLACE) {
  const int lane = static_cast<int>(simulator::current->lane);
  const int source = lane + static_cast<int>(delta);
  return simulator::shuffle(mask, value, source / width == lane / width ? source : lane, place);
}

inline SIMULATOR_UNCHECKED unsigned __ballot_sync(unsigned mask, int predicate, SIMULATOR_PLACE) {
  unsigned votes;
  simulator::warp_operation(mask, simulator::ballot_warp, &predicate, &votes, false, "ballot", place);
  return votes;
}

template <class Value>
Value atomicAdd(Value* target, std::type_identity_t<Value> value) {
  static_assert(std::is_integral_v<Value>, "a float sum would depend on the order of threads");
  return __atomic_fetch_add(target, value, __ATOMIC_RELAXED);
}

template <class Value>
Value atomicMin(Value* target, std::type_identity_t<Value> value) {
  Value old = __atomic_load_n(target, __ATOMIC_RELAXED);
  while (value < old && !__atomic_compare_exchange_n(target, &old, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}

template <class Value>
Value atomicMax(Value* target, std::type_identity_t<Value> value) {
  Value old = __atomic_load_n(target, __ATOMIC_RELAXED);
  while (value > old && !__atomic_compare_exchange_n(target, &old, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}

template <class Value>
Value __ldg(const Value* pointer) {
  return *pointer;
}

inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
