#include "platform.h"

#include <stdint.h>

#if defined(EDGELM_X86)
#include <immintrin.h>
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif

#if defined(EDGELM_X86)

namespace {

struct Registers {
    uint32_t a, b, c, d;
};

Registers cpuid(uint32_t leaf) {
    Registers r{0, 0, 0, 0};
#if defined(_MSC_VER)
    int values[4];
    __cpuidex(values, static_cast<int>(leaf), 0);
    r = {uint32_t(values[0]), uint32_t(values[1]), uint32_t(values[2]), uint32_t(values[3])};
#else
    __cpuid_count(leaf, 0, r.a, r.b, r.c, r.d);
#endif
    return r;
}

// The register states that the operating system keeps for a thread (XCR0).
uint64_t kept_states() {
#if defined(_MSC_VER)
    return _xgetbv(0);
#else
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return static_cast<uint64_t>(high) << 32 | low;
#endif
}

bool all(uint64_t bits, uint64_t wanted) { return (bits & wanted) == wanted; }

constexpr uint64_t bit(int index) { return uint64_t{1} << index; }

}  // namespace

CpuFeatures cpu_features() {
    if (cpuid(0).a < 7) return {false, false};
    const Registers one = cpuid(1), seven = cpuid(7);
    if (!all(one.c, bit(27))) return {false, false};  // OSXSAVE
    const uint64_t states = kept_states();
    const bool avx2 = all(one.c, bit(12) | bit(28) | bit(29)) && all(seven.b, bit(5)) &&
                      all(states, bit(1) | bit(2));  // FMA, AVX, F16C; AVX2
    const bool avx512 = avx2 && all(states, bit(5) | bit(6) | bit(7)) &&
                        all(seven.b, bit(16) | bit(17) | bit(30) | bit(31)) &&
                        all(seven.c, bit(11));  // F, DQ, BW, VL; VNNI
    return {avx2, avx512};
}

void cpu_relax() { _mm_pause(); }

#else

CpuFeatures cpu_features() { return {false, false}; }

#if defined(__aarch64__) && !defined(_MSC_VER)
void cpu_relax() { __asm__ volatile("yield"); }
#else
void cpu_relax() {}
#endif

#endif

#if defined(_WIN32)
void after_fork_in_child(void (*)()) {}
#else
void after_fork_in_child(void (*handler)()) { pthread_atfork(nullptr, nullptr, handler); }
#endif
