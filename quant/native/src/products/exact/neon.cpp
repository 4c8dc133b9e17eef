// Products with activations as they are, NEON.
#include "isa/isa.h"
#include "products/exact/tiles.h"
#include "products/vector_neon.h"

void exact_panel_neon(const edgelm_matrix& m, const uint8_t* panel, const ExactRows& x,
                    const Target& target) {
    exact_panel<Neon>(m, panel, x, target);
}
