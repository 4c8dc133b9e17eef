// What each instruction set provides; one file per set defines its table.
#pragma once

#include "activations.h"
#include "ops.h"

// Before loops over the vectors of a tile: gcc unrolls them by itself, but after it has decided
// what stays in registers, and then stores every sum in every step.
#if defined(__GNUC__)
#define UNROLL _Pragma("GCC unroll 16")
#define INLINE inline __attribute__((always_inline))
#else
#define UNROLL
#define INLINE inline
#endif

struct Isa {
    const char* name;
    // Round `x`, row `row` of the activations.
    void (*round)(const edgelm_matrix& m, const float* x, const Activations& into, int64_t row);
    // Round once more what is left of the coarse groups `g`, `x` being row 0.
    void (*refine)(const edgelm_matrix& m, const float* x, int64_t x_stride,
                   const Activations& into, int64_t g);
    // All rows of activations times one panel: first their codes, then the fine ones group by
    // group, so that a row's sum has one order whatever rows stand beside it.
    void (*panel)(const edgelm_matrix& m, const uint8_t* panel, const Activations& x,
                  const Target& target);
    const Ops* ops;  // the rest of a step
};

// What runs now: the one chosen, else the fastest that this CPU has.
const Isa& current_isa();

extern const Isa kGeneric;
#if defined(EDGELM_X86)
extern const Isa kAvx2;
extern const Isa kAvx512Vnni;
#endif
