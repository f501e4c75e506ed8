// Nearest and k-nearest neighbours of patch embeddings in a memory bank: all kernels, and the order to launch them in.
//
// For a bank, once: `prepare_bank`. For each batch of queries: `search`, then `knn_image` where an image score is wanted.
// The three precisions differ in what they read and how fast they may be, never in what they return (knn_rerank.cuh).
#pragma once

#include "knn_image.cuh"
#include "knn_prepare.cuh"
#include "knn_rerank.cuh"
#include "knn_scan_mma.cuh"
#include "knn_scan_simt.cuh"

#if defined(EDGEAD_LAUNCH)
namespace edgead {

// Rows ready for a scan, on the device: (count, channels). `coded` is `centred` itself in FP32.
template <class Code>
struct PreparedRows {
  int count;
  float* centred;
  Code* coded;
  RowStats* stats;
  float* error;
};

template <class Code>
struct Search {
  static constexpr bool kTensorCores = sizeof(Code) != sizeof(float);
  static constexpr int kTileQueries = kTensorCores ? kMmaQueries : kSimtTile;
  static constexpr int kTileRows = kTensorCores ? kMmaRows : kSimtTile;
  static constexpr int kLists = kTensorCores ? kMmaLists : kSimtLists;

  // How many blocks share the bank for one tile of queries: enough to fill the device twice, no more than there are
  // tiles, and for k > 1 enough lists that few hold more than kKeep of the k nearest.
  static int splits(int queries, int rows, int neighbours, int multiprocessors) {
    const int query_tiles = (queries + kTileQueries - 1) / kTileQueries;
    const int row_tiles = (rows + kTileRows - 1) / kTileRows;
    int wanted = (2 * multiprocessors + query_tiles - 1) / query_tiles;
    if (neighbours > 1 && wanted < neighbours) wanted = neighbours;
    return wanted < row_tiles ? wanted : row_tiles;
  }

  // Bytes of `candidates`.
  static size_t candidate_bytes(int queries, int splits) {
    return static_cast<size_t>(queries) * splits * kLists * kKeep * sizeof(Neighbour);
  }

  static dim3 scan_grid(int queries, int splits) { return dim3((queries + kTileQueries - 1) / kTileQueries, splits); }
};

template <class Input, class Code>
void prepare(const Input* rows, const float* center, int channels, PreparedRows<Code> out, Stream stream) {
  EDGEAD_LAUNCH(dim3((out.count + kPrepareRows - 1) / kPrepareRows), dim3(kPrepareThreads), 0, stream,
                (knn_prepare<Input, Code>), rows, center, out.count, channels, out.centred, out.coded, out.stats,
                out.error);
}

template <class Input, class Code>
void prepare_bank(const Input* rows, const float* center, int channels, PreparedRows<Code> out, BankBound* bound,
                  Stream stream) {
  prepare(rows, center, channels, out, stream);
  EDGEAD_LAUNCH(dim3(1), dim3(kBoundThreads), kBoundSharedBytes, stream, knn_bank_bound, out.stats, out.error, out.count,
                bound);
}

inline void scan(PreparedRows<float> queries, PreparedRows<float> bank, int channels, int splits, Neighbour* candidates,
                 Stream stream) {
  EDGEAD_LAUNCH(Search<float>::scan_grid(queries.count, splits), dim3(kSimtThreads), kSimtSharedBytes, stream,
                knn_scan_simt, queries.coded, queries.stats, queries.count, bank.coded, bank.stats, bank.count,
                row_pitch<float>(channels), candidates);
}

template <class Code>
void scan(PreparedRows<Code> queries, PreparedRows<Code> bank, int channels, int splits, Neighbour* candidates,
          Stream stream) {
  const int stages = row_pitch<Code>(channels) * static_cast<int>(sizeof(Code)) / kStageBytes;
  EDGEAD_LAUNCH(Search<Code>::scan_grid(queries.count, splits), dim3(kMmaThreads), kMmaSharedBytes, stream,
                knn_scan_mma<Code>, queries.coded, queries.stats, queries.count, bank.coded, bank.stats, bank.count,
                stages, candidates);
}

// The `neighbours` nearest rows of prepared queries; best is (queries, neighbours). False, and nothing is launched, unless
// neighbours is 1 to kMaxNeighbours.
template <class Code>
bool search(PreparedRows<Code> queries, PreparedRows<Code> bank, const BankBound* bound, int channels, int neighbours,
            int splits, Neighbour* candidates, Neighbour* best, int* certain, Stream stream) {
  if (neighbours < 1 || neighbours > kMaxNeighbours) return false;
  scan(queries, bank, channels, splits, candidates, stream);
  constexpr int kQueriesPerBlock = kRerankThreads / 32;
  const int sums = sizeof(Code) == 1 ? 0 : channels;
  EDGEAD_LAUNCH(dim3((queries.count + kQueriesPerBlock - 1) / kQueriesPerBlock), dim3(kRerankThreads), 0, stream,
                knn_rerank, queries.centred, queries.stats, queries.error, queries.count, bank.centred, bound, channels,
                sums, candidates, splits * Search<Code>::kLists, neighbours, best, certain);
  EDGEAD_LAUNCH(dim3(queries.count), dim3(kExhaustThreads), kExhaustSharedBytes, stream, knn_exhaust, queries.centred,
                bank.centred, bank.count, channels, neighbours, certain, best);
  return true;
}

}  // namespace edgead
#endif
