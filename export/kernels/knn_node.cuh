// What the ONNX node edgead::KnnScore needs around a search: its keys as a bank, its outputs, its scratch memory.
#pragma once

#include "knn.cuh"

namespace edgead {

constexpr int kKeyThreads = 256;
constexpr int kKeyWarps = kKeyThreads / 32;
constexpr int kKeyTile = 32;
constexpr int kKeyRows = kKeyTile / kKeyWarps;  // rows of one warp
constexpr int kKeyPitch = kKeyTile + 1;         // lanes read a column without bank conflicts
constexpr int kKeySharedBytes = kKeyTile * kKeyPitch * static_cast<int>(sizeof(float));

// Rows of the bank from the node's keys, in one pass: turned over, halved, coded; grid = ceil(count / kKeyTile).
//   keys     (channels + 1, count): -2 r for each row r, already centred; the last line, |r|^2, is not read
//   centred, coded, stats, error  as those of `knn_prepare`
template <class Input, class Code>
__global__ void __launch_bounds__(kKeyThreads)
    knn_prepare_keys(const Input* __restrict__ keys, int count, int channels, float* __restrict__ centred, Code* coded,
                     RowStats* __restrict__ stats, float* __restrict__ error) {
  EDGEAD_SHARED(float, tile);
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  const int first = blockIdx.x * kKeyTile;
  const int wide = row_pitch<float>(channels);
  float largest[kKeyRows] = {};
  for (int start = 0; start < wide; start += kKeyTile) {
    for (int i = warp; i < kKeyTile; i += kKeyWarps) {
      const bool inside = start + i < channels && first + lane < count;
      const size_t place = static_cast<size_t>(start + i) * count + first + lane;
      tile[i * kKeyPitch + lane] = inside ? -0.5f * to_float(keys[place]) : 0.0f;  // a power of two: exact
    }
    __syncthreads();
    const int column = start + lane;
#pragma unroll
    for (int turn = 0; turn < kKeyRows; ++turn) {
      const int row = first + turn * kKeyWarps + warp;
      const float value = tile[lane * kKeyPitch + turn * kKeyWarps + warp];
      if (row < count && column < wide) centred[static_cast<size_t>(row) * wide + column] = value;
      largest[turn] = fmaxf(largest[turn], fabsf(value));
    }
    // The next tile goes where this one was read.
    __syncthreads();
  }
#pragma unroll
  for (int turn = 0; turn < kKeyRows; ++turn) {
    const int row = first + turn * kKeyWarps + warp;
    if (row >= count) break;
    code_row(centred + static_cast<size_t>(row) * wide, channels, largest[turn], row, lane, coded, stats, error);
  }
}

constexpr int kUnpackThreads = 256;

// Euclidean distances and rows of packed neighbours, NaN and -1 for kNone; grid = ceil(count / 256).
__global__ void __launch_bounds__(kUnpackThreads)
    knn_unpack(const Neighbour* __restrict__ best, int count, float* __restrict__ distance, int64_t* __restrict__ index) {
  const int place = blockIdx.x * kUnpackThreads + threadIdx.x;
  if (place >= count) return;
  const Neighbour neighbour = best[place];
  distance[place] = sqrtf(squared_distance_of(neighbour));
  index[place] = row_of(neighbour);
}

#if defined(EDGEAD_LAUNCH)

// Hands out pieces of a block of memory, each at a multiple of 256 bytes; from nullptr it only counts.
class Scratch {
 public:
  explicit Scratch(void* memory) : memory_(static_cast<unsigned char*>(memory)) {}

  template <class Element>
  Element* take(size_t count) {
    unsigned char* piece = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += (count * sizeof(Element) + 255) / 256 * 256;
    return reinterpret_cast<Element*>(piece);
  }

  size_t used() const { return used_; }

 private:
  unsigned char* memory_;
  size_t used_ = 0;
};

// Sizes of one node; all are at least 1, `neighbours` at most kMaxNeighbours.
struct KnnNode {
  int queries;   // of all images together
  int channels;
  int rows;      // keys
  int neighbours;
  int multiprocessors;

  // Bytes of scratch memory for these sizes and all that have fewer queries or rows.
  size_t scratch_bytes() const { return lay(nullptr, most_candidates()).bytes; }

  // Bytes of the bank alone, for one that is kept.
  size_t bank_bytes() const {
    Scratch counting(nullptr);
    lay_bank(counting);
    return counting.used();
  }

  // Makes the bank of the keys in memory of that many bytes.
  template <class Key>
  void make_bank(const Key* keys, void* memory, Stream stream) const {
    Scratch scratch(memory);
    const Bank bank = lay_bank(scratch);
    const KnnNode sizes = *this;  // launches capture what they are given
    EDGEAD_LAUNCH(dim3((rows + kKeyTile - 1) / kKeyTile), dim3(kKeyThreads), kKeySharedBytes, stream,
                  (knn_prepare_keys<Key, __half>), keys, sizes.rows, sizes.channels, bank.rows.centred, bank.rows.coded,
                  bank.rows.stats, bank.rows.error);
    EDGEAD_LAUNCH(dim3(1), dim3(kBoundThreads), kBoundSharedBytes, stream, knn_bank_bound, bank.rows.stats,
                  bank.rows.error, sizes.rows, bank.bound);
  }

  // Distances and rows of the nearest keys, (queries, neighbours) each. The scan codes in FP16, whatever the keys are:
  // results are those of FP32 all the same (knn_rerank.cuh). `kept` is a bank that `make_bank` made of these keys, or
  // nullptr: then it is made anew in the scratch memory, for keys are an input.
  template <class Input, class Key>
  bool run(const Input* queries_in, const Key* keys, const void* kept, float* distance, int64_t* index, void* scratch,
           Stream stream) const {
    const int splits = Search<__half>::splits(queries, rows, neighbours, multiprocessors);
    Layout memory = lay(scratch, Search<__half>::candidate_bytes(queries, splits) / sizeof(Neighbour));
    prepare(queries_in, nullptr, channels, memory.queries, stream);
    if (kept == nullptr) {
      make_bank(keys, memory.bank.rows.centred, stream);  // where the bank begins
    } else {
      Scratch finished(const_cast<void*>(kept));  // it is only read
      memory.bank = lay_bank(finished);
    }
    if (!search(memory.queries, memory.bank.rows, memory.bank.bound, channels, neighbours, splits, memory.candidates, memory.best,
                memory.certain, stream)) {
      return false;
    }
    const int count = queries * neighbours;
    EDGEAD_LAUNCH(dim3((count + kUnpackThreads - 1) / kUnpackThreads), dim3(kUnpackThreads), 0, stream, knn_unpack,
                  memory.best, count, distance, index);
    return true;
  }

 private:
  struct Bank {
    PreparedRows<__half> rows;
    BankBound* bound;
  };

  struct Layout {
    PreparedRows<__half> queries;
    Bank bank;
    Neighbour *candidates, *best;
    int* certain;
    size_t bytes;
  };

  static PreparedRows<__half> lay_rows(Scratch& scratch, int count, int channels) {
    const size_t rows = static_cast<size_t>(count);
    PreparedRows<__half> made{count, nullptr, nullptr, nullptr, nullptr};
    made.centred = scratch.take<float>(rows * row_pitch<float>(channels));
    made.coded = scratch.take<__half>(rows * row_pitch<__half>(channels));
    made.stats = scratch.take<RowStats>(rows);
    made.error = scratch.take<float>(rows);
    return made;
  }

  Bank lay_bank(Scratch& scratch) const {
    const PreparedRows<__half> made = lay_rows(scratch, rows, channels);
    return {made, scratch.take<BankBound>(1)};
  }

  Layout lay(void* memory, size_t candidates) const {
    Scratch scratch(memory);
    Layout made{};
    made.queries = lay_rows(scratch, queries, channels);
    made.bank = lay_bank(scratch);
    made.candidates = scratch.take<Neighbour>(candidates);
    made.best = scratch.take<Neighbour>(static_cast<size_t>(queries) * neighbours);
    made.certain = scratch.take<int>(queries);
    made.bytes = scratch.used();
    return made;
  }

  // Of any number of queries up to this one: queries x splits, and fewer queries are split more often.
  size_t most_candidates() const {
    using Scan = Search<__half>;
    const size_t wanted = queries;
    const size_t tiles = (static_cast<size_t>(rows) + Scan::kTileRows - 1) / Scan::kTileRows;
    const size_t filling = wanted + 2 * static_cast<size_t>(multiprocessors) * Scan::kTileQueries;
    const size_t listing = wanted * (neighbours > 1 ? neighbours : 1);
    const size_t blocks = filling > listing ? filling : listing;
    return (blocks < wanted * tiles ? blocks : wanted * tiles) * Scan::kLists * kKeep;
  }
};

#endif

}  // namespace edgead
