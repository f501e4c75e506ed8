// JSON as Python's parser takes it: whole numbers kept apart from others, no key twice, no constant beyond the standard.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace edgead {

struct Value {
    enum Kind { NONE, BOOL, INT, BIG, FLOAT, TEXT, LIST, OBJECT };  // BIG: a whole number beyond 64 bits

    Kind kind = NONE;
    bool truth = false;
    int64_t whole = 0;      // of INT
    double number = 0.0;    // of INT, BIG and FLOAT
    std::string text;       // of TEXT; of BIG its digits
    std::vector<Value> items;
    std::vector<std::pair<std::string, Value>> fields;

    // The value of a key, nullptr where there is none.
    const Value *find(std::string_view key) const;
    bool is_whole() const { return kind == INT || kind == BIG; }
    bool is_number() const { return is_whole() || kind == FLOAT; }
};

// Parse a document; where it is none, return false with the reason.
bool parse_json(const std::string &data, Value &value, std::string &problem);

}  // namespace edgead
