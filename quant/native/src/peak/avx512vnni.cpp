// AVX512 with VNNI: one instruction for 64 products and their sums.
#include <initializer_list>

#include "peak/peak.h"
#include "products/vector_avx512.h"

int64_t peak_avx512vnni(int64_t steps, int32_t* sink) {
    // Twelve chains hide the latency of five cycles at two instructions a cycle.
    const __m512i codes = _mm512_set1_epi8(7), x = _mm512_set1_epi8(3);
    __m512i a = codes, b = codes, c = codes, d = codes, e = codes, f = codes;
    __m512i g = codes, h = codes, i = codes, j = codes, k = codes, l = codes;
    const auto next = [&](__m512i sum) { return Avx512::dot4(sum, codes, x); };
    for (int64_t s = 0; s < steps; ++s) {
        a = next(a), b = next(b), c = next(c), d = next(d), e = next(e), f = next(f);
        g = next(g), h = next(h), i = next(i), j = next(j), k = next(k), l = next(l);
    }
    for (const __m512i sum : {a, b, c, d, e, f, g, h, i, j, k, l}) {
        *sink += _mm_cvtsi128_si32(_mm512_castsi512_si128(sum));
    }
    return steps * 12 * 64 * 2;
}
