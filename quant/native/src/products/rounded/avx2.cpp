// AVX2 with FMA.
#include "isa/isa.h"
#include "products/rounded/tiles.h"
#include "products/vector_avx2.h"

const Isa kAvx2 = {"avx2",        round_row, refine_group, rounded_panel<Avx2>, exact_panel_avx2,
                   &kOpsAvx2};
