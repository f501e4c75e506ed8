// A memory bank as the native search wants it: turned to its main directions, rounded and packed, as knn_bank.py.
//
// What is written here decides how many rows must be compared exactly, never what the search finds.
#pragma once

#include "native.hpp"

extern "C" {
#include "knn.h"
}

namespace edgead {

struct RoundingOwned {
    std::vector<float> middle, reach;
    std::vector<int32_t> most;
    float step = 0.0f, error = 0.0f;

    Rounding as_c() const;
};

// The arrays that the structure of knn.h points to.
struct PackedBank {
    Aligned<float> rows;
    std::vector<float> center, axes;
    Aligned<int8_t> fine;
    RoundingOwned coarse, whole;
    std::vector<int32_t> offset;
    Aligned<uint8_t> packed;
    Aligned<int32_t> halves;
    Bank bank{};
};

// keys: (C + 1, M), of which the first C are each row times -2 as a column. Raises std::invalid_argument for rows that
// are not finite.
std::unique_ptr<PackedBank> pack_bank(const float *keys, int channels, int count, const InstructionSet &form);

}  // namespace edgead
