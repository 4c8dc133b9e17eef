// What differs between operating systems and processors, apart from the products themselves.
#pragma once

struct CpuFeatures {
    bool avx2_fma_f16c;
    bool avx_vnni;
    bool avx512_vnni;  // with F, BW, DQ and VL
    bool neon_dotprod;
    bool neon_i8mm;  // with dotprod
};

// What processor and operating system both support.
CpuFeatures cpu_features();

// Tell the core that this thread only waits.
void cpu_relax();

// Call `handler` in the child of every fork; nothing where processes do not fork.
void after_fork_in_child(void (*handler)());
