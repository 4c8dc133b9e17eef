// Quantizing with AVX2.
#include "ops/vector_avx2.h"

namespace {

// Numbers of a codebook, or their codes, by the interval that a number lies in: three steps of a
// binary search give the pair of intervals, the fourth which of the two.
struct Table {
    float limit7, limit3, limit11;
    __m256 quarters, pairs, lower, upper;

    Table(const float* limits, const float* entries)
        : limit7(limits[7]), limit3(limits[3]), limit11(limits[11]) {
        alignas(32) float four[8] = {limits[1], limits[5], limits[9], limits[13]};
        quarters = _mm256_load_ps(four);
        alignas(32) float even[3][8];
        for (int i = 0; i < 8; ++i) {
            even[0][i] = limits[2 * i];
            even[1][i] = entries[2 * i];
            even[2][i] = entries[2 * i + 1];
        }
        pairs = _mm256_load_ps(even[0]);
        lower = _mm256_load_ps(even[1]);
        upper = _mm256_load_ps(even[2]);
    }

    static __m256 above(__m256 x, __m256 limit) { return _mm256_cmp_ps(x, limit, _CMP_GT_OQ); }

    static __m256i twice_plus(__m256i index, __m256 one) {
        return _mm256_sub_epi32(_mm256_add_epi32(index, index), _mm256_castps_si256(one));
    }

    __m256 pick(__m256 x) const {
        const __m256 half = above(x, _mm256_set1_ps(limit7));
        const __m256 limit =
            _mm256_blendv_ps(_mm256_set1_ps(limit3), _mm256_set1_ps(limit11), half);
        __m256i index = twice_plus(_mm256_setzero_si256(), half);
        index = twice_plus(index, above(x, limit));
        index = twice_plus(index, above(x, _mm256_permutevar8x32_ps(quarters, index)));
        const __m256 second = above(x, _mm256_permutevar8x32_ps(pairs, index));
        return _mm256_blendv_ps(_mm256_permutevar8x32_ps(lower, index),
                                _mm256_permutevar8x32_ps(upper, index), second);
    }

    Vec pick(Vec x) const { return {pick(x.low), pick(x.high)}; }
};

}  // namespace

#include "search/items.h"

void quantize_avx2(const void* search, int64_t begin, int64_t end) {
    quantize_items(search, begin, end);
}
