// Products with activations as they are, AVX512.
#include "isa/isa.h"
#include "products/exact/tiles.h"
#include "products/vector_avx512.h"

void exact_panel_avx512(const edgelm_matrix& m, const uint8_t* panel, const ExactRows& x,
                    const Target& target) {
    exact_panel<Avx512>(m, panel, x, target);
}
