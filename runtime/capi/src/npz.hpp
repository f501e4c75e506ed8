// NumPy's .npz as a bundle holds it: arrays of float32, of bool and of text, without believing a claimed size.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace edgead {

struct Array {
    std::vector<size_t> shape;
    char kind = 0;                  // 'f', 'b' or 'U'
    std::vector<float> floats;      // of 'f', and of 'b' 0 or 1
    std::vector<std::string> text;  // of 'U', UTF-8

    size_t count() const;
};

// Read all arrays; where the data are no such file, return false with the reason.
bool read_npz(const std::vector<uint8_t> &data, std::map<std::string, Array> &arrays, std::string &problem);

}  // namespace edgead
