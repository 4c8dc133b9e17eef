// What each instruction set provides; one file per set defines its table.
#pragma once

#include "ops/ops.h"
#include "products/exact/activations.h"
#include "products/rounded/activations.h"
#include "products/target.h"

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
    // The same with activations as they are, for floats as well as for codes.
    void (*exact_panel)(const edgelm_matrix& m, const uint8_t* panel, const ExactRows& x,
                        const Target& target);
    const Ops* ops;  // the rest of a step
};

// What runs now: the one chosen, else the fastest that this CPU has.
const Isa& current_isa();

extern const Isa kGeneric;
void exact_panel_generic(const edgelm_matrix& m, const uint8_t* panel, const ExactRows& x,
                         const Target& target);
#if defined(EDGELM_X86)
extern const Isa kAvx2;
extern const Isa kAvxVnni;
extern const Isa kAvx512Vnni;
void exact_panel_avx2(const edgelm_matrix& m, const uint8_t* panel, const ExactRows& x,
                      const Target& target);
void exact_panel_avx512(const edgelm_matrix& m, const uint8_t* panel, const ExactRows& x,
                        const Target& target);
#elif defined(EDGELM_ARM)
extern const Isa kNeonDotprod;
extern const Isa kNeonI8mm;
void exact_panel_neon(const edgelm_matrix& m, const uint8_t* panel, const ExactRows& x,
                      const Target& target);
#endif
