// The most 8-bit operations that one thread of this processor does: what products are held to.
#include "api/edgelm_native.h"
#include "peak/peak.h"
#include "system/platform.h"

int64_t edgelm_peak(int64_t steps) {
    int64_t done = 0;
#if defined(EDGELM_X86)
    int32_t sink = 0;  // the loops lie in files of their own: no compiler sees that nobody reads it
    const CpuFeatures cpu = cpu_features();
    if (cpu.avx512_vnni) {
        done = peak_avx512vnni(steps, &sink);
    } else if (cpu.avx2_fma_f16c) {
        done = peak_avx2(steps, &sink);
    }
#else
    (void)steps;
#endif
    return done;
}
