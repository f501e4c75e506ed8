// ldmatrix and mma.sync, lane by lane, in the fragment layouts of the PTX ISA (mma.m16n8k16 .f16, mma.m16n8k32 .s8).
// tests/cuda/test_layouts.py holds these layouts equal to those of NVIDIA's CuTe headers.
#pragma once

#include <cuda_fp16.h>

#include "engine.h"

#define SIMULATOR_UNCHECKED __attribute__((no_sanitize("thread")))

namespace simulator {

// Where element `i` of a lane's fragment lies in its matrix.
struct Cell {
  int row, column;
};

// A: 16 x 16 halves, 8 a lane.  B: 16 x 8, 4 a lane (row is k).  Sum: 16 x 8, 4 a lane.
constexpr Cell f16_a(int lane, int i) { return {(lane >> 2) + (i >> 1 & 1) * 8, (lane & 3) * 2 + (i & 1) + (i >> 2) * 8}; }
constexpr Cell f16_b(int lane, int i) { return {(lane & 3) * 2 + (i & 1) + (i >> 1) * 8, lane >> 2}; }
constexpr Cell sum_cell(int lane, int i) { return {(lane >> 2) + (i >> 1) * 8, (lane & 3) * 2 + (i & 1)}; }

// A: 16 x 32 bytes, 16 a lane.  B: 32 x 8, 8 a lane (row is k).
constexpr Cell s8_a(int lane, int i) { return {(lane >> 2) + (i >> 2 & 1) * 8, (lane & 3) * 4 + (i & 3) + (i >> 3) * 16}; }
constexpr Cell s8_b(int lane, int i) { return {(lane & 3) * 4 + (i & 3) + (i >> 2) * 16, lane >> 2}; }

// Word `i` of a lane after ldmatrix.x4: which of the 32 row addresses it comes from, and which word of that row.
constexpr Cell matrix_word(int lane, int i) { return {i * 8 + (lane >> 2), lane & 3}; }

struct Factors {
  const uint32_t* a;
  const uint32_t* b;
};

inline float half_of(const uint32_t* words, int i) {
  __half_raw raw;
  raw.x = static_cast<unsigned short>(words[i >> 1] >> (16 * (i & 1)));
  return __half2float(__half(raw));
}

inline int byte_of(const uint32_t* words, int i) { return static_cast<int8_t>(words[i >> 2] >> (8 * (i & 3))); }

inline SIMULATOR_UNCHECKED void multiply_f16_warp(Lane* const* lanes, unsigned) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto* factors = static_cast<const Factors*>(lanes[lane]->input);
    for (int i = 0; i < 8; ++i) a[f16_a(lane, i).row][f16_a(lane, i).column] = half_of(factors->a, i);
    for (int i = 0; i < 4; ++i) b[f16_b(lane, i).row][f16_b(lane, i).column] = half_of(factors->b, i);
  }
  for (int lane = 0; lane < 32; ++lane) {
    auto* sum = static_cast<float*>(lanes[lane]->output);
    for (int i = 0; i < 4; ++i) {
      const Cell cell = sum_cell(lane, i);
      for (int k = 0; k < 16; ++k) sum[i] += a[cell.row][k] * b[k][cell.column];
    }
  }
}

inline SIMULATOR_UNCHECKED void multiply_s8_warp(Lane* const* lanes, unsigned) {
  int a[16][32], b[32][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto* factors = static_cast<const Factors*>(lanes[lane]->input);
    for (int i = 0; i < 16; ++i) a[s8_a(lane, i).row][s8_a(lane, i).column] = byte_of(factors->a, i);
    for (int i = 0; i < 8; ++i) b[s8_b(lane, i).row][s8_b(lane, i).column] = byte_of(factors->b, i);
  }
  for (int lane = 0; lane < 32; ++lane) {
    auto* sum = static_cast<int32_t*>(lanes[lane]->output);
    for (int i = 0; i < 4; ++i) {
      const Cell cell = sum_cell(lane, i);
      for (int k = 0; k < 32; ++k) sum[i] += a[cell.row][k] * b[k][cell.column];
    }
  }
}

// A register of another lane: to the thread sanitizer it would be memory that two threads write.
inline SIMULATOR_UNCHECKED __attribute__((noinline)) void set_register(void* fragment, int i, uint32_t value) {
  static_cast<uint32_t*>(fragment)[i] = value;
}

// Checked by the sanitizers on purpose: this is where shared memory is read.
inline void load_matrix_warp(Lane* const* lanes, unsigned) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const Cell cell = matrix_word(lane, i);
      const auto* row = static_cast<const uint32_t*>(lanes[cell.row]->input);
      if (reinterpret_cast<uintptr_t>(row) & 15) fail("ldmatrix: the address of a row is no multiple of 16");
      set_register(lanes[lane]->output, i, row[cell.column]);
    }
  }
}

inline SIMULATOR_UNCHECKED void multiply_f16(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                             const Place& place = Place::current()) {
  const uint32_t b[2] = {b0, b1};
  const Factors factors{a, b};
  warp_operation(~0u, multiply_f16_warp, &factors, sum, false, "mma.f16", place);
}

inline SIMULATOR_UNCHECKED void multiply_s8(int32_t (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                            const Place& place = Place::current()) {
  const uint32_t b[2] = {b0, b1};
  const Factors factors{a, b};
  warp_operation(~0u, multiply_s8_warp, &factors, sum, false, "mma.s8", place);
}

inline void load_matrix(uint32_t (&fragment)[4], const void* row, const Place& place = Place::current()) {
  warp_operation(~0u, load_matrix_warp, row, fragment, false, "ldmatrix", place);
}

}  // namespace simulator
