/* What this processor can do, asked of itself or of the system: the library runs on every one of its architecture.
 *
 * The compilers' own __builtin_cpu_supports is not used: it needs a part of their libraries that not all of them have.
 */
#ifndef EDGEAD_PROCESSOR_H
#define EDGEAD_PROCESSOR_H

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#if defined(__x86_64__)
#include <cpuid.h>

enum { HAS_AVX2 = 1, HAS_AVXVNNI = 2, HAS_AVX512 = 4, HAS_AVX512VNNI = 8 };

/* Which registers the system saves when it changes from one thread to another: others must not be used. */
static unsigned saved_registers(void) {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static int processor_features(void) {
    unsigned a, b, c, d, one;
    if (!__get_cpuid(1, &a, &b, &one, &d)) return 0;
    const unsigned fma = one >> 12 & 1, saves = one >> 27 & 1, avx = one >> 28 & 1;
    if (!fma || !saves || !avx || (saved_registers() & 6) != 6) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b >> 5 & 1)) return 0;
    int found = HAS_AVX2;
    /* Foundation; with it BW (bytes and words) and VL (shorter vectors) are asked for, as every processor since 2017 has. */
    if ((saved_registers() & 0xe6) == 0xe6 && (b >> 16 & 1) && (b >> 30 & 1) && (b >> 31 & 1)) {
        found |= HAS_AVX512;
        if (c >> 11 & 1) found |= HAS_AVX512VNNI;
    }
    if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1)) found |= HAS_AVXVNNI;
    return found;
}

#elif defined(__aarch64__)

enum { HAS_NEON = 1, HAS_DOT = 2, HAS_I8MM = 4 };

#if defined(__linux__)
#include <sys/auxv.h>

static int processor_features(void) {
    /* HWCAP_ASIMDDP and HWCAP2_I8MM, by their numbers: old headers lack the names. */
    return HAS_NEON | (getauxval(AT_HWCAP) >> 20 & 1 ? HAS_DOT : 0) | (getauxval(26) >> 13 & 1 ? HAS_I8MM : 0);
}

#elif defined(__APPLE__)
#include <sys/sysctl.h>

static int has(const char *name) {
    int value = 0;
    size_t size = sizeof(value);
    return sysctlbyname(name, &value, &size, 0, 0) == 0 && value;
}

static int processor_features(void) {
    return HAS_NEON | (has("hw.optional.arm.FEAT_DotProd") ? HAS_DOT : 0) |
           (has("hw.optional.arm.FEAT_I8MM") ? HAS_I8MM : 0);
}

#elif defined(_WIN32)
#include <windows.h>

static int processor_features(void) {
    return HAS_NEON | (IsProcessorFeaturePresent(43) ? HAS_DOT : 0); /* PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE */
}

#else

static int processor_features(void) { return HAS_NEON; }

#endif

#else

static int processor_features(void) { return 0; }

#endif

#endif
