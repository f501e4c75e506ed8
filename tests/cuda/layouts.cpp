// Prints where the simulator and NVIDIA's CuTe headers put an element of a fragment differently; nothing is agreement.
#include "tensor_core.h"

#include <cstdio>
#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/tensor.hpp>

namespace simulator {
Lane* current = nullptr;
void warp_operation(unsigned, WarpOperation, const void*, void*, bool, const char*, const Place&) {}
void fail(const char*, ...) { __builtin_abort(); }
}  // namespace simulator

namespace {

void compare(const char* what, int lane, int i, int ours, int theirs) {
  if (ours != theirs) std::printf("%s lane %d element %d: %d here, %d in CuTe\n", what, lane, i, ours, theirs);
}

// CuTe numbers the elements of A, B and the sum by column: row + rows * column; B is taken as 8 x k.
template <class Traits, class A, class B>
void compare_mma(const char* what, A a, int a_count, B b, int b_count) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < a_count; ++i) {
      compare(what, lane, i, a(lane, i).row + 16 * a(lane, i).column, typename Traits::ALayout{}(lane, i));
    }
    for (int i = 0; i < b_count; ++i) {
      compare(what, lane, i, b(lane, i).column + 8 * b(lane, i).row, typename Traits::BLayout{}(lane, i));
    }
    for (int i = 0; i < 4; ++i) {
      const simulator::Cell cell = simulator::sum_cell(lane, i);
      compare(what, lane, i, cell.row + 16 * cell.column, typename Traits::CLayout{}(lane, i));
    }
  }
}

}  // namespace

int main() {
  using namespace cute;
  compare_mma<MMA_Traits<SM80_16x8x16_F32F16F16F32_TN>>("mma.f16", simulator::f16_a, 8, simulator::f16_b, 4);
  compare_mma<MMA_Traits<SM80_16x8x32_S32S8S8S32_TN>>("mma.s8", simulator::s8_a, 16, simulator::s8_b, 8);
  using Load = Copy_Traits<SM75_U32x4_LDSM_N>;
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const simulator::Cell word = simulator::matrix_word(lane, i);
      compare("ldmatrix", lane, i, typename Load::SrcLayout{}(word.row, word.column * 32),
              typename Load::DstLayout{}(lane, i * 32));
    }
  }
  std::puts("compared");
}
