// Products with activations as they are, AVX2 with FMA.
#include "isa/isa.h"
#include "products/exact/tiles.h"
#include "products/vector_avx2.h"

void exact_panel_avx2(const edgelm_matrix& m, const uint8_t* panel, const ExactRows& x,
                    const Target& target) {
    exact_panel<Avx2>(m, panel, x, target);
}
