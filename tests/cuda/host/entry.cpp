// C interface for Python's ctypes: every kernel by its name, launched as the driver API does, and the C++ launchers.
// A function's result is 0, or 1 and `last_error` tells why.
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "kernels.h"

namespace {

using namespace edgead;

std::string last_message;

template <class Run>
int guarded(Run run) {
  try {
    run();
    return 0;
  } catch (const std::exception& error) {
    last_message = error.what();
    return 1;
  }
}

// arguments[i] points at the kernel's i-th argument, as for cuLaunchKernel.
template <class... Parameters, size_t... Index>
void launch_with(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void** arguments,
                 std::index_sequence<Index...>) {
  simulator::launch(grid, block, shared_bytes, [=] { kernel(*static_cast<Parameters*>(arguments[Index])...); });
}

template <class... Parameters>
void launch_any(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void** arguments) {
  launch_with(kernel, grid, block, shared_bytes, arguments, std::index_sequence_for<Parameters...>());
}

struct Kernel {
  const char* name;
  void (*launch)(dim3, dim3, size_t, void**);
};

#define KERNEL(...)                                                                              \
  {#__VA_ARGS__, [](dim3 grid, dim3 block, size_t shared_bytes, void** arguments) {              \
     launch_any(__VA_ARGS__, grid, block, shared_bytes, arguments);                              \
   }},

const Kernel kernels[] = {EDGEAD_KERNELS(KERNEL)};

struct Rows {
  int count;
  float* centred;
  void* coded;
  RowStats* stats;
  float* error;

  template <class Code>
  PreparedRows<Code> as() const {
    return {count, centred, static_cast<Code*>(coded), stats, error};
  }
};

template <class Code>
void prepare_and_search(const float* query_features, const float* bank_features, const float* center, const Rows& queries,
                        const Rows& bank, BankBound* bound, int channels, int neighbours, int splits,
                        Neighbour* candidates, Neighbour* best, int* certain) {
  prepare(query_features, center, channels, queries.as<Code>(), nullptr);
  prepare_bank(bank_features, center, channels, bank.as<Code>(), bound, nullptr);
  if (!search(queries.as<Code>(), bank.as<Code>(), bound, channels, neighbours, splits, candidates, best, certain,
              nullptr)) {
    throw std::runtime_error("the search was refused");
  }
}

}  // namespace

extern "C" {

const char* last_error() { return last_message.c_str(); }

void set_order(const char* order) { simulator::set_order(order); }

int launch_kernel(const char* name, const unsigned* grid, const unsigned* block, size_t shared_bytes, void** arguments) {
  return guarded([&] {
    for (const Kernel& kernel : kernels) {
      if (std::strcmp(kernel.name, name) != 0) continue;
      return kernel.launch(dim3(grid[0], grid[1], grid[2]), dim3(block[0], block[1], block[2]), shared_bytes, arguments);
    }
    throw std::runtime_error(std::string("no kernel of the name ") + name);
  });
}

// code: 0 FP32, 1 FP16, 2 INT8.
int knn_splits(int code, int queries, int rows, int neighbours, int multiprocessors) {
  auto splits = code == 0 ? Search<float>::splits : code == 1 ? Search<__half>::splits : Search<int8_t>::splits;
  return splits(queries, rows, neighbours, multiprocessors);
}

size_t knn_candidate_bytes(int code, int queries, int splits) {
  auto bytes = code == 0   ? Search<float>::candidate_bytes
               : code == 1 ? Search<__half>::candidate_bytes
                           : Search<int8_t>::candidate_bytes;
  return bytes(queries, splits);
}

// The triangular form with FP32 factors; the distances alone.
int mahalanobis_scores(const float* features, const float* mean, const float* factors, int frames, int height, int width,
                       int channels, int window, float* squared, float* scores) {
  const Stream stream = nullptr;
  return guarded([&] {
    const Locations<float, true> locations{height, width, channels, channels, mean, factors, nullptr};
    if (!measure_locations(features, locations, frames, window, squared, nullptr)) {
      throw std::runtime_error("too many channels");
    }
    const dim3 grid((frames * height * width + kScoreThreads - 1) / kScoreThreads);
    EDGEAD_LAUNCH(grid, dim3(kScoreThreads), 0, stream, location_scores, squared, frames, height, width, window, nullptr, 1,
                  static_cast<int>(Fusion::kNone), 0.0f, 0.0f, 0.0f, scores);
  });
}

int knn_search(int code, const float* query_features, const float* bank_features, const float* center,
               const Rows* queries, const Rows* bank, BankBound* bound, int channels, int neighbours, int splits,
               Neighbour* candidates, Neighbour* best, int* certain) {
  return guarded([&] {
    auto run = code == 0   ? prepare_and_search<float>
               : code == 1 ? prepare_and_search<__half>
                           : prepare_and_search<int8_t>;
    run(query_features, bank_features, center, *queries, *bank, bound, channels, neighbours, splits, candidates, best,
        certain);
  });
}

}  // extern "C"
