// AVX2: three instructions for 32 products and their sums.
#include <immintrin.h>

#include "peak/peak.h"

int64_t peak_avx2(int64_t steps, int32_t* sink) {
    constexpr int kChains = 8, kVariants = 8;
    alignas(32) uint8_t codes[kVariants][32];
    for (int i = 0; i < kVariants * 32; ++i) codes[i / 32][i % 32] = static_cast<uint8_t>(i & 15);
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i sums[kChains], x[kChains];
    for (int i = 0; i < kChains; ++i) {
        sums[i] = _mm256_setzero_si256();
        x[i] = _mm256_set1_epi8(static_cast<char>(i + 1));
    }
    for (int64_t s = 0; s < steps; ++s) {
        // Another operand every time, as in a product: what never changes would be computed once.
        const __m256i own = _mm256_load_si256(
            reinterpret_cast<const __m256i*>(codes[s % kVariants]));
        for (int i = 0; i < kChains; ++i) {
            const __m256i pairs = _mm256_maddubs_epi16(own, x[i]);
            sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(pairs, ones));
        }
    }
    for (int i = 0; i < kChains; ++i) *sink += _mm256_extract_epi32(sums[i], 0);
    return steps * kChains * 32 * 2;
}
