// The version of edgead; a test compares it with runtime/version.py.
#pragma once

namespace edgead {

inline const char *const VERSION = "0.2.0";

}  // namespace edgead
