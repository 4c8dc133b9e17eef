// NEON with dot products (ARMv8.2).
#include "isa/isa.h"
#include "products/rounded/vector_neon_dotprod.h"

const Isa kNeonDotprod = {"neondotprod", round_row, refine_group, rounded_panel<NeonDotprod>,
                          exact_panel_neon, &kOpsGeneric};
