// AVX512 with VNNI: tiles of up to 12 rows of activations by one panel of 32 outputs.
#include <immintrin.h>

#include "isa.h"

namespace {

constexpr int kHalves = 2;

inline __m512i dot4(__m512i sums, __m512i codes, __m512i x) {
#if defined(__GNUC__) && !defined(__clang__)
    // gcc 12 copies the accumulator of the intrinsic before each use, at 1.7 times the time.
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(codes), "v"(x));
    return sums;
#else
    return _mm512_dpbusd_epi32(sums, codes, x);
#endif
}

inline __m512i spread4(const int8_t* x) {
    int32_t four;
    memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
}

inline __m512 load_floats(const uint8_t* array, int32_t kind, int half) {
    if (kind == EDGELM_FLOAT32) return _mm512_loadu_ps(array + half * 64);
    const __m256i halves =
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(array + half * 32));
    if (kind == EDGELM_FLOAT16) return _mm512_cvtph_ps(halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

template <int BITS>
inline void load_codes(const uint8_t* at, __m512i& low, __m512i& high) {
    low = _mm512_loadu_si512(at);
    if (BITS == 4) {
        const __m512i nibble = _mm512_set1_epi8(15);
        high = _mm512_and_si512(_mm512_srli_epi16(low, 4), nibble);
        low = _mm512_and_si512(low, nibble);
    } else {
        high = _mm512_loadu_si512(at + 64);
    }
}

// What a sum of codes times activations starts from: minus the zero times the activations' sum.
inline __m512i preset(const edgelm_matrix& m, const uint8_t* zeros, int half, int32_t sum) {
    if (m.zeros != EDGELM_ZEROS_INT) return _mm512_set1_epi32(-sum * middle_code(m));
    const __m128i own = _mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros + half * 16));
    return _mm512_mullo_epi32(_mm512_cvtepu8_epi32(own), _mm512_set1_epi32(-sum));
}

// Rows of `x` times one group of a panel, added to their sums.
template <int BITS, int ROWS>
INLINE void add_group(const edgelm_matrix& m, const Group& group, const Coded& x,
                      __m512 (&sums)[ROWS][kHalves]) {
    // Few rows leave registers for two chains of sums, which hide the instruction's latency.
    constexpr int kChains = ROWS <= 4 ? 2 : 1;
    const uint8_t* zeros = group.parameters + scales_bytes(m);
    __m512i dots[ROWS][kHalves][kChains];
    UNROLL
    for (int r = 0; r < ROWS; ++r) {
        UNROLL
        for (int h = 0; h < kHalves; ++h) {
            dots[r][h][kChains - 1] = _mm512_setzero_si512();
            dots[r][h][0] = preset(m, zeros, h, x.sums[r * x.step]);
        }
    }
    const int8_t* in = x.codes;
    const uint8_t* at = group.codes;
    for (int64_t s = 0; s < group.steps; ++s, in += kStep, at += step_bytes(BITS)) {
        __m512i low[kHalves], high[kHalves];
        UNROLL
        for (int h = 0; h < kHalves; ++h) {
            load_codes<BITS>(at + h * step_bytes(BITS) / 2, low[h], high[h]);
        }
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const __m512i first = spread4(in + r * x.stride);
            const __m512i second = spread4(in + r * x.stride + 4);
            UNROLL
            for (int h = 0; h < kHalves; ++h) {
                dots[r][h][0] = dot4(dots[r][h][0], low[h], first);
                dots[r][h][kChains - 1] = dot4(dots[r][h][kChains - 1], high[h], second);
            }
        }
    }
    UNROLL
    for (int h = 0; h < kHalves; ++h) {
        const __m512 scale = load_floats(group.parameters, m.scales, h);
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const __m512 a = _mm512_set1_ps(x.scales[r * x.step]);
            __m512i dot = dots[r][h][0];
            if (kChains == 2) dot = _mm512_add_epi32(dot, dots[r][h][kChains - 1]);
            const __m512 product = _mm512_cvtepi32_ps(dot);
            sums[r][h] = _mm512_fmadd_ps(product, _mm512_mul_ps(scale, a), sums[r][h]);
        }
    }
    if (m.zeros != EDGELM_ZEROS_FLOAT) return;
    UNROLL
    for (int h = 0; h < kHalves; ++h) {
        const __m512 zero = load_floats(zeros, m.scales, h);
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const float total = static_cast<float>(x.sums[r * x.step]) * x.scales[r * x.step];
            sums[r][h] = _mm512_fmadd_ps(_mm512_set1_ps(total), zero, sums[r][h]);
        }
    }
}

template <int BITS, int ROWS>
void tile(const edgelm_matrix& m, const uint8_t* panel, const Activations& x, int64_t row,
          const Target& target) {
    __m512 sums[ROWS][kHalves];
    for (auto& pair : sums) pair[0] = pair[1] = _mm512_setzero_ps();
    Group group = Group::first_of(m, panel);
    for (int64_t g = 0; g < x.groups; ++g, group.next(m)) {
        add_group<BITS, ROWS>(m, group, rows_of(x, row, g, group.first), sums);
    }
    UNROLL
    for (int r = 0; r < ROWS; ++r) {
        float values[kPanel];
        UNROLL
        for (int h = 0; h < kHalves; ++h) _mm512_storeu_ps(values + 16 * h, sums[r][h]);
        store(target, row + r, 0, values, kPanel);
    }
}

// Fine rows [entry, entry + ROWS) times their group, added to what the target has.
template <int BITS, int ROWS>
void fine_tile(const edgelm_matrix& m, const Group& group, const Activations& x, int64_t entry,
               const Target& target) {
    __m512 sums[ROWS][kHalves];
    float values[kPanel] = {};
    UNROLL
    for (int r = 0; r < ROWS; ++r) {
        fetch(target, x.fine_rows[entry + r], values);
        UNROLL
        for (int h = 0; h < kHalves; ++h) sums[r][h] = _mm512_loadu_ps(values + 16 * h);
    }
    add_group<BITS, ROWS>(m, group, fine_of(m, x, entry), sums);
    UNROLL
    for (int r = 0; r < ROWS; ++r) {
        UNROLL
        for (int h = 0; h < kHalves; ++h) _mm512_storeu_ps(values + 16 * h, sums[r][h]);
        put_back(target, x.fine_rows[entry + r], values);
    }
}

template <int BITS>
void rows_by_tiles(const edgelm_matrix& m, const uint8_t* panel, const Activations& x,
                   const Target& target) {
    int64_t row = 0;
    for (; x.rows - row >= 12; row += 12) tile<BITS, 12>(m, panel, x, row, target);
    for (; x.rows - row >= 8; row += 8) tile<BITS, 8>(m, panel, x, row, target);
    for (; x.rows - row >= 4; row += 4) tile<BITS, 4>(m, panel, x, row, target);
    for (; x.rows - row >= 2; row += 2) tile<BITS, 2>(m, panel, x, row, target);
    for (; x.rows - row >= 1; row += 1) tile<BITS, 1>(m, panel, x, row, target);
    for (int64_t g = 0; g < x.groups; ++g) {
        const Group group = Group::at(m, panel, g);
        int64_t entry = x.fine_begins[g];
        const int64_t end = x.fine_begins[g + 1];
        for (; end - entry >= 8; entry += 8) fine_tile<BITS, 8>(m, group, x, entry, target);
        for (; end - entry >= 4; entry += 4) fine_tile<BITS, 4>(m, group, x, entry, target);
        for (; end - entry >= 1; entry += 1) fine_tile<BITS, 1>(m, group, x, entry, target);
    }
}

void multiply(const edgelm_matrix& m, const uint8_t* panel, const Activations& x,
              const Target& target) {
    (m.bits == 4 ? rows_by_tiles<4> : rows_by_tiles<8>)(m, panel, x, target);
}

}  // namespace

const Isa kAvx512Vnni = {"avx512vnni", round_row, refine_group, multiply, &kOpsAvx512};
