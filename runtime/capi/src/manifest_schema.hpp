// The fields of a manifest and what each may hold, as manifest_schema.py, align_section.py and manifest.py have them.
#pragma once

#include "schema.hpp"

namespace edgead {

constexpr int MOST_TILES = 64;

// What is wrong with a text that people read, "" where nothing is.
std::string printable(const std::string &value);

// The check of a whole manifest.
const Check &manifest_check();

}  // namespace edgead
