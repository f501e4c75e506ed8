// What the simulator's scheduler offers to the language surface (cuda_on_host.h). engine.cpp implements it.
//
// One block runs at a time, each CUDA thread as a fiber of its own; a fiber runs until it waits for others. So a run is
// deterministic, and the order in which threads take their turns can be chosen (`set_order`).
#pragma once

#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <source_location>

namespace simulator {

using Place = std::source_location;

// The part of a CUDA thread that kernels and warp operations may see.
struct Lane {
  uint3 thread, block;
  dim3 block_size, grid_size;
  unsigned lane, warp;
  const void* input = nullptr;  // operands of the warp operation that it waits in
  void* output = nullptr;
};

extern Lane* current;

// Done once for a warp, when all lanes of the mask have arrived; lanes[i] is lane i of the warp.
using WarpOperation = void (*)(Lane* const* lanes, unsigned mask);

enum class Vote { kCount, kAll, kAny };

void block_barrier(const Place&);
unsigned block_vote(bool predicate, Vote, const Place&);

// `orders_memory`: __syncwarp does, shuffles do not, as in CUDA; only the thread sanitizer feels the difference.
void warp_operation(unsigned mask, WarpOperation, const void* input, void* output, bool orders_memory, const char* name,
                    const Place&);

// Dynamic shared memory of this block: allocated at the exact size, filled with 0xFF, which is NaN in FP16, FP32, FP64.
void* shared_memory();

// Copies happen as late as they legally may, at the wait that covers their group; until then the target is poisoned.
void copy_async(void* target, const void* source, unsigned bytes, unsigned source_bytes);
void copy_commit();
void copy_wait(unsigned pending);

// Ends the launch with a message.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// "forward", "reverse" or "random:SEED": whose turn it is when several threads could run.
void set_order(const char* order);

using Body = void (*)(void*);

// Throws std::runtime_error with what was wrong and where.
void run(dim3 grid, dim3 block, size_t shared_bytes, Body, void* argument);

template <class Kernel>
void launch(dim3 grid, dim3 block, size_t shared_bytes, Kernel kernel) {
  run(grid, block, shared_bytes, [](void* argument) { (*static_cast<Kernel*>(argument))(); }, &kernel);
}

}  // namespace simulator
