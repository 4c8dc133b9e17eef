// AVX-VNNI: the dot products of AVX512-VNNI in AVX2's vectors.
#include <immintrin.h>

#include "layout.h"

namespace {

constexpr int32_t base(Stored) { return 0; }

template <Stored>
inline __m256i dot4(__m256i sums, __m256i codes, __m256i x) {
    return _mm256_dpbusd_avx_epi32(sums, codes, x);
}

}  // namespace

#include "products256.h"

const Isa kAvxVnni = {"avxvnni", round_row, refine_group, multiply, exact_panel_avx2,
    &kOpsAvx2};
