// Which instruction set runs: what this CPU has, and what was chosen of it.
#include <string.h>

#include <atomic>

#include "isa/isa.h"
#include "system/platform.h"

namespace {

constexpr int kMaxIsas = 4;  // of one processor family

struct Isas {
    const Isa* found[kMaxIsas];
    int count;
};

const Isas& isas() {
    static const Isas own = [] {
        Isas list{{&kGeneric}, 1};
#if defined(EDGELM_X86)
        const CpuFeatures cpu = cpu_features();
        if (cpu.avx2_fma_f16c) list.found[list.count++] = &kAvx2;
        if (cpu.avx_vnni) list.found[list.count++] = &kAvxVnni;
        if (cpu.avx512_vnni) list.found[list.count++] = &kAvx512Vnni;
#elif defined(EDGELM_ARM)
        const CpuFeatures cpu = cpu_features();
        if (cpu.neon_dotprod) list.found[list.count++] = &kNeonDotprod;
        if (cpu.neon_i8mm) list.found[list.count++] = &kNeonI8mm;
#endif
        return list;
    }();
    return own;
}

std::atomic<const Isa*> chosen{nullptr};

}  // namespace

const Isa& current_isa() {
    const Isa* isa = chosen.load(std::memory_order_relaxed);
    return isa ? *isa : *isas().found[isas().count - 1];
}

const char* edgelm_isa(int32_t index) {
    return index >= 0 && index < isas().count ? isas().found[index]->name : nullptr;
}

int32_t edgelm_use_isa(const char* name) {
    for (int i = 0; i < isas().count; ++i) {
        if (strcmp(isas().found[i]->name, name) == 0) {
            chosen.store(isas().found[i]);
            return 1;
        }
    }
    return 0;
}
