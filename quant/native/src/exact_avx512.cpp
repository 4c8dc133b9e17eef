// Products with activations as they are, AVX512: tiles of up to 6 rows by one panel of 32 outputs.
#include "codebooks.h"
#include "isa.h"
#include "vectors512.h"

namespace {

// What a group's codes are turned into numbers with.
struct Terms {
    __m512 table;  // the number of each 4-bit code
    __m512 zero[kHalves];
};

template <Stored S>
Terms terms_of(const edgelm_matrix& m) {
    Terms terms;
    terms.table = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    if (S == Stored::kBook) terms.table = _mm512_loadu_ps(numbers(m));
    const int32_t middle = is_float(S) ? 0 : middle_code(m);
    for (auto& zero : terms.zero) zero = _mm512_set1_ps(static_cast<float>(middle));
    return terms;
}

// Half a step's codes, those of inputs 0-3 and those of 4-7, the first of each in the low bits.
template <Stored S>
INLINE void open_step(const uint8_t* step, int half, __m512i& low, __m512i& high) {
    if (is_float(S)) return;
    const uint8_t* at = step + half * (step_bytes(bits_of(S)) / 2);
    low = _mm512_loadu_si512(at);
    high = S == Stored::kInt8 ? _mm512_loadu_si512(at + 64) : _mm512_srli_epi32(low, 4);
}

// Input `i` of 16 rows; `codes` moves on by one input.
template <Stored S>
INLINE __m512 number(const Terms& terms, const uint8_t* step, int half, int i, __m512i& codes) {
    if (S == Stored::kFloat32) return load_floats(step + i * 128, EDGELM_FLOAT32, half);
    if (S == Stored::kFloat16) return load_floats(step + i * 64, EDGELM_FLOAT16, half);
    if (S == Stored::kBfloat16) return load_floats(step + i * 64, EDGELM_BFLOAT16, half);
    const __m512i own = codes;
    codes = _mm512_srli_epi32(codes, 8);
    if (S == Stored::kInt8) {
        const __m512i code = _mm512_and_si512(own, _mm512_set1_epi32(255));
        return _mm512_sub_ps(_mm512_cvtepi32_ps(code), terms.zero[half]);
    }
    const __m512 found = _mm512_permutexvar_ps(own, terms.table);  // reads 4 bits of each index
    return S == Stored::kBook ? found : _mm512_sub_ps(found, terms.zero[half]);
}

// ROWS rows from `x` on times a group, in two chains per sum.
template <Stored S, int ROWS>
INLINE void dot_group(const Terms& terms, const Group& group, const float* x, int64_t stride,
                      __m512 (&dots)[2][ROWS][kHalves]) {
    const uint8_t* step = group.codes;
    for (int64_t s = 0; s < group.steps; ++s, x += kStep, step += step_bytes(bits_of(S))) {
        __m512i codes[2][kHalves];
        UNROLL
        for (int h = 0; h < kHalves; ++h) open_step<S>(step, h, codes[0][h], codes[1][h]);
        UNROLL
        for (int j = 0; j < 4; ++j) {
            UNROLL
            for (int chain = 0; chain < 2; ++chain) {
                const int i = j + 4 * chain;
                __m512 w[kHalves];
                UNROLL
                for (int h = 0; h < kHalves; ++h) {
                    w[h] = number<S>(terms, step, h, i, codes[chain][h]);
                }
                UNROLL
                for (int r = 0; r < ROWS; ++r) {
                    const __m512 a = _mm512_set1_ps(x[r * stride + i]);
                    UNROLL
                    for (int h = 0; h < kHalves; ++h) {
                        dots[chain][r][h] = _mm512_fmadd_ps(a, w[h], dots[chain][r][h]);
                    }
                }
            }
        }
    }
}

// A group's dot products, scaled and moved by its zeros, added to the sums.
template <Stored S, int ROWS>
INLINE void add_group(const edgelm_matrix& m, Terms& terms, const Group& group,
                      const ExactRows& x, int64_t row, int64_t g,
                      __m512 (&sums)[ROWS][kHalves]) {
    const uint8_t* zeros = group.parameters + scales_bytes(m);
    if (m.zeros == EDGELM_ZEROS_INT) {
        for (int h = 0; h < kHalves; ++h) terms.zero[h] = load_codes_as_floats(zeros, h);
    }
    __m512 dots[2][ROWS][kHalves];
    UNROLL
    for (int r = 0; r < ROWS; ++r) {
        UNROLL
        for (int h = 0; h < kHalves; ++h) dots[0][r][h] = dots[1][r][h] = _mm512_setzero_ps();
    }
    dot_group<S, ROWS>(terms, group, x.x + row * x.stride + group.first, x.stride, dots);
    UNROLL
    for (int h = 0; h < kHalves; ++h) {
        const __m512 scale =
            is_float(S) ? _mm512_set1_ps(1.0f) : load_floats(group.parameters, m.scales, h);
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const __m512 dot = _mm512_add_ps(dots[0][r][h], dots[1][r][h]);
            sums[r][h] = _mm512_fmadd_ps(dot, scale, sums[r][h]);
        }
    }
    if (m.zeros != EDGELM_ZEROS_FLOAT) return;
    UNROLL
    for (int h = 0; h < kHalves; ++h) {
        const __m512 zero = load_floats(zeros, m.scales, h);
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const __m512 sum = _mm512_set1_ps(x.sums[(row + r) * x.groups + g]);
            sums[r][h] = _mm512_fmadd_ps(sum, zero, sums[r][h]);
        }
    }
}

template <Stored S, int ROWS>
void tile(const edgelm_matrix& m, const uint8_t* panel, const ExactRows& x, int64_t row,
          const Target& target) {
    __m512 sums[ROWS][kHalves];
    for (auto& pair : sums) pair[0] = pair[1] = _mm512_setzero_ps();
    Terms terms = terms_of<S>(m);
    Group group = Group::first_of(m, panel);
    for (int64_t g = 0; g < x.groups; ++g, group.next(m)) {
        add_group<S, ROWS>(m, terms, group, x, row, g, sums);
    }
    UNROLL
    for (int r = 0; r < ROWS; ++r) {
        float values[kPanel];
        UNROLL
        for (int h = 0; h < kHalves; ++h) _mm512_storeu_ps(values + 16 * h, sums[r][h]);
        store(target, row + r, 0, values, kPanel);
    }
}

template <Stored S>
void rows_by_tiles(const edgelm_matrix& m, const uint8_t* panel, const ExactRows& x,
                   const Target& target) {
    int64_t row = 0;
    for (; x.rows - row >= 6; row += 6) tile<S, 6>(m, panel, x, row, target);
    for (; x.rows - row >= 2; row += 2) tile<S, 2>(m, panel, x, row, target);
    for (; x.rows - row >= 1; row += 1) tile<S, 1>(m, panel, x, row, target);
}

}  // namespace

#include "exact_dispatch.h"

void exact_panel_avx512(const edgelm_matrix& m, const uint8_t* panel, const ExactRows& x,
                        const Target& target) {
    exact_panel(m, panel, x, target);
}
