// AVX512 with VNNI: one instruction for 64 products and their sums.
#include <initializer_list>

#include "peak.h"
#include "vectors512.h"

int64_t peak_avx512vnni(int64_t steps, int32_t* sink) {
    // Twelve chains hide the latency of five cycles at two instructions a cycle.
    const __m512i codes = _mm512_set1_epi8(7), x = _mm512_set1_epi8(3);
    __m512i a = codes, b = codes, c = codes, d = codes, e = codes, f = codes;
    __m512i g = codes, h = codes, i = codes, j = codes, k = codes, l = codes;
    for (int64_t s = 0; s < steps; ++s) {
        a = dot4(a, codes, x), b = dot4(b, codes, x), c = dot4(c, codes, x);
        d = dot4(d, codes, x), e = dot4(e, codes, x), f = dot4(f, codes, x);
        g = dot4(g, codes, x), h = dot4(h, codes, x), i = dot4(i, codes, x);
        j = dot4(j, codes, x), k = dot4(k, codes, x), l = dot4(l, codes, x);
    }
    for (const __m512i sum : {a, b, c, d, e, f, g, h, i, j, k, l}) {
        *sink += _mm_cvtsi128_si32(_mm512_castsi512_si128(sum));
    }
    return steps * 12 * 64 * 2;
}
