// AVX-VNNI: the dot products of AVX512-VNNI in AVX2's vectors.
#include "isa/isa.h"
#include "products/rounded/tiles.h"
#include "products/vector_avx2.h"

namespace {

struct AvxVnni : Avx2 {
    static constexpr int32_t base(Stored) { return 0; }
    template <Stored>
    static INLINE Ints dot(Ints sums, Bytes low, Bytes high, Inputs x) {
        const Ints half = _mm256_dpbusd_avx_epi32(sums, low, spread4(x));
        return _mm256_dpbusd_avx_epi32(half, high, spread4(x + 4));
    }
};

}  // namespace

const Isa kAvxVnni = {"avxvnni",        round_row, refine_group, rounded_panel<AvxVnni>,
                      exact_panel_avx2, &kOpsAvx2};
