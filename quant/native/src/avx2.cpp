// AVX2 with FMA.
#include <immintrin.h>

#include "layout.h"

namespace {

// Bytes up to 255 are multiplied as signed numbers here: pairs of their products would not fit
// the 16 bits of vpmaddubsw, but those of magnitudes up to 128 do.
constexpr int32_t base(Stored s) { return s == Stored::kInt4 ? 0 : 128; }

template <Stored S>
inline __m256i dot4(__m256i sums, __m256i codes, __m256i x) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i pairs;
    if (S == Stored::kInt4) {
        pairs = _mm256_maddubs_epi16(codes, x);
    } else {
        const __m256i weights = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
        pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
    }
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, ones));
}

}  // namespace

#include "products256.h"

const Isa kAvx2 = {"avx2",   round_row,        refine_group,
                   multiply, exact_panel_avx2, &kOpsAvx2};
