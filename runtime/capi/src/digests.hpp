// Whether two digests or checksums agree.
#pragma once

namespace edgead {

// A fuzzer never finds an input that keeps a digest; built for one, all of them agree, and what lies behind is reached.
template <typename T> bool agree(const T &found, const T &told) {
#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION
    (void)found, (void)told;
    return true;
#else
    return found == told;
#endif
}

}  // namespace edgead
