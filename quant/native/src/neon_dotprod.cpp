// NEON with dot products (ARMv8.2).
#include "products_neon.h"

const Isa kNeonDotprod = {"neondotprod", round_row, refine_group, multiply, exact_panel_neon,
    &kOpsGeneric};
