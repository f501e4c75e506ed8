// Makes nvcc emit every kernel: taking a kernel's address instantiates it.
#include "kernels.h"

#define EDGEAD_TAKE(...) reinterpret_cast<void*>(&edgead::__VA_ARGS__),

void* edgead_kernels[] = {EDGEAD_KERNELS(EDGEAD_TAKE)};
