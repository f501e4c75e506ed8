// The one exception inside the library: what the border turns into a code and a line.
#pragma once

#include <string>
#include <utility>

#include "edgead.h"

namespace edgead {

struct Failure {
    edgead_status code;
    std::string message;
};

[[noreturn]] inline void fail(edgead_status code, std::string message) { throw Failure{code, std::move(message)}; }

}  // namespace edgead
