// Loops of 8-bit products on registers, for measuring what the processor can do at best.
#pragma once

#include <stdint.h>

// Runs `steps` steps and adds what they computed to `*sink`; the operations that were done, two for
// each multiplication with its addition.
#if defined(EDGELM_X86)
int64_t peak_avx2(int64_t steps, int32_t* sink);
int64_t peak_avx512vnni(int64_t steps, int32_t* sink);
#endif
