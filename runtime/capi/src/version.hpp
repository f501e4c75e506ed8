// The version of edgead; a test compares it with runtime/version.py.
#pragma once

namespace edgead {

inline const char *const VERSION = "0.1.0";

}  // namespace edgead
