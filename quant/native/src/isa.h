// What each instruction set provides; one file per set defines its table.
#pragma once

#include "activations.h"

// Before loops over the vectors of a tile: gcc unrolls them by itself, but after it has decided
// what stays in registers, and then stores every sum in every step.
#if defined(__GNUC__)
#define UNROLL _Pragma("GCC unroll 12")
#else
#define UNROLL
#endif

struct Isa {
    const char* name;
    // Round `x`, row `row` of the activations.
    void (*round)(const edgelm_matrix& m, const float* x, const Activations& into, int64_t row);
    // All rows of activations times one panel.
    void (*panel)(const edgelm_matrix& m, const uint8_t* panel, const Activations& x,
                  const Target& target);
};

extern const Isa kGeneric;
#if defined(EDGELM_X86)
extern const Isa kAvx2;
extern const Isa kAvx512Vnni;
#endif
