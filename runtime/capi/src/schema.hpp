// Checks of JSON values that collect every problem in the order and words of the Python runtime's (pydantic's).
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "json_value.hpp"

namespace edgead {

struct Problem {
    std::vector<std::string> where;
    std::string what;
    bool newer;  // of a field, or a rule, that a later version of edgead must have added
};

class Problems {
  public:
    // Add one at the current place; at last ones are kept short of what a hostile file could ask for.
    void add(const std::string &what, bool newer = false);
    bool empty() const { return count_ == 0; }

    std::vector<std::string> where;
    std::vector<Problem> found;

    size_t count() const { return count_; }

  private:
    size_t count_ = 0;
};

// Whether a value is right; what is wrong is added.
using Check = std::function<bool(const Value &, Problems &)>;
// What is wrong with a text, "" where nothing is.
using TextCheck = std::function<std::string(const std::string &)>;
// What is wrong with an object whose fields are right, "" where nothing is.
using Together = std::function<std::string(const Value &)>;

struct Field {
    const char *name;
    Check check;
    bool required = true;
};

struct TextRule {
    size_t least = 0, most = 0;  // code points; 0: any
    TextCheck check;
};

Check whole(int64_t least, int64_t most);
struct Range {
    double least, most;
    bool above = false, below = false;  // the ends are not in it
};
Check number();
Check number(Range range);
Check number_at_least(double least, bool above = false);
Check truth();
Check text(TextRule rule);
Check pattern_sha256();
Check one_of(std::vector<std::string> names, bool newer = false);
Check or_none(Check check);
Check anything();
Check list_of(Check check);
Check dict_of(TextRule key, Check value, size_t least = 0);
Check object(std::vector<Field> fields, Together together = nullptr);

}  // namespace edgead
