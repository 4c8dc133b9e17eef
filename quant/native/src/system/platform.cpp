#include "system/platform.h"

#include <stdint.h>

#if defined(EDGELM_X86)
#include <immintrin.h>
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif
#if defined(EDGELM_ARM) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(EDGELM_ARM) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(EDGELM_ARM) && defined(_WIN32)
#include <windows.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

#if defined(EDGELM_X86)

namespace {

struct Registers {
    uint32_t a, b, c, d;
};

Registers cpuid(uint32_t leaf, uint32_t part = 0) {
    Registers r{0, 0, 0, 0};
#if defined(_MSC_VER)
    int values[4];
    __cpuidex(values, static_cast<int>(leaf), static_cast<int>(part));
    r = {uint32_t(values[0]), uint32_t(values[1]), uint32_t(values[2]), uint32_t(values[3])};
#else
    __cpuid_count(leaf, part, r.a, r.b, r.c, r.d);
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
    CpuFeatures found{};
    if (cpuid(0).a < 7) return found;
    const Registers one = cpuid(1), seven = cpuid(7);
    if (!all(one.c, bit(27))) return found;  // OSXSAVE
    const uint64_t states = kept_states();
    found.avx2_fma_f16c = all(one.c, bit(12) | bit(28) | bit(29)) &&
                          all(seven.b, bit(5)) &&
                          all(states, bit(1) | bit(2));  // FMA, AVX, F16C; AVX2
    if (!found.avx2_fma_f16c) return found;
    found.avx_vnni = seven.a >= 1 && all(cpuid(7, 1).a, bit(4));
    found.avx512_vnni = all(states, bit(5) | bit(6) | bit(7)) &&
                        all(seven.b, bit(16) | bit(17) | bit(30) | bit(31)) &&
                        all(seven.c, bit(11));  // F, DQ, BW, VL; VNNI
#if defined(EDGELM_VNNI_AS_AVX512)
    // A build for tests, whose AVX-VNNI file has the same instruction in AVX512's encoding.
    found.avx_vnni = found.avx512_vnni;
#endif
    return found;
}

void cpu_relax() { _mm_pause(); }

#elif defined(EDGELM_ARM)

#if defined(__linux__)

CpuFeatures cpu_features() {
    CpuFeatures found{};
    // HWCAP_ASIMDDP and HWCAP2_I8MM, by number: older C libraries lack the second name.
    found.neon_dotprod = getauxval(AT_HWCAP) >> 20 & 1;
    found.neon_i8mm = found.neon_dotprod && (getauxval(AT_HWCAP2) >> 13 & 1);
    return found;
}

#elif defined(__APPLE__)

namespace {

bool has(const char* name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}

}  // namespace

CpuFeatures cpu_features() {
    CpuFeatures found{};
    found.neon_dotprod = has("hw.optional.arm.FEAT_DotProd");
    found.neon_i8mm = found.neon_dotprod && has("hw.optional.arm.FEAT_I8MM");
    return found;
}

#elif defined(_WIN32)

CpuFeatures cpu_features() {
    CpuFeatures found{};
    // PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE; what asks for i8mm is younger than most SDKs.
    found.neon_dotprod = IsProcessorFeaturePresent(43) != 0;
    return found;
}

#endif

#if defined(__aarch64__) && !defined(_MSC_VER)
void cpu_relax() { __asm__ volatile("yield"); }
#else
void cpu_relax() {}
#endif

#else

CpuFeatures cpu_features() { return {}; }

void cpu_relax() {}

#endif

#if defined(_WIN32)
void after_fork_in_child(void (*)()) {}
#else
void after_fork_in_child(void (*handler)()) { pthread_atfork(nullptr, nullptr, handler); }
#endif

#if defined(__linux__)

int current_core() { return sched_getcpu(); }

void leave_core() {
    cpu_set_t allowed, others;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;  // more cores than fit
    others = allowed;
    const int core = current_core();
    if (core >= 0) CPU_CLR(static_cast<size_t>(core), &others);
    if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof others, &others) != 0) return;
    sched_setaffinity(0, sizeof allowed, &allowed);
}

#else

int current_core() { return kUnknownCore; }

void leave_core() {}

#endif
