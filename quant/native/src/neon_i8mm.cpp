// NEON with products of 8-bit matrices (ARMv8.6).
#define EDGELM_I8MM
#include "products_neon.h"

const Isa kNeonI8mm = {"neoni8mm", round_row, refine_group, multiply, exact_panel_neon,
    &kOpsGeneric};
