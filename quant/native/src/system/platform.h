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

// The core that the calling thread runs on now; kUnknownCore where the system is not asked, and
// then leave_core does nothing either.
constexpr int kUnknownCore = -1;
int current_core();

// Move the calling thread to another core that it may run on, if there is one, and let it stay or
// go as before from there: schedulers wake a thread on the core of whoever woke it, and may take
// longer to part the two than a step lasts.
void leave_core();

// Call `handler` in the child of every fork; nothing where processes do not fork.
void after_fork_in_child(void (*handler)());
