// The C interface of quantizing: who shares the work.
#include "search/search.h"

#include "isa/isa.h"

namespace {

Work quantizer() {
#if defined(EDGELM_X86)
    if (&current_isa() != &kGeneric) return quantize_avx2;
#endif
    return quantize_generic;
}

}  // namespace

void edgelm_quantize(const void* search) {
    const edgelm_search& s = *static_cast<const edgelm_search*>(search);
    *s.refused = 0;
    const int64_t rows = rows_of_item(s);
    run(quantizer(), search, (s.rows + rows - 1) / rows, s.threads);
}
