// Products with activations as they are, AVX2 with FMA: up to 4 rows by vectors of 8 outputs.
#include "codebooks.h"
#include "isa.h"
#include "vectors256.h"

namespace {

// What a group's codes are turned into numbers with.
template <int VECTORS>
struct Terms {
    __m256 low, high;  // a codebook's numbers of codes 0-7 and 8-15
    __m256 zero[VECTORS];
};

template <Stored S, int VECTORS>
Terms<VECTORS> terms_of(const edgelm_matrix& m) {
    Terms<VECTORS> terms;
    terms.low = terms.high = _mm256_setzero_ps();
    if (S == Stored::kBook) {
        terms.low = _mm256_loadu_ps(numbers(m));
        terms.high = _mm256_loadu_ps(numbers(m) + 8);
    }
    const int32_t middle = is_float(S) ? 0 : middle_code(m);
    for (auto& zero : terms.zero) zero = _mm256_set1_ps(static_cast<float>(middle));
    return terms;
}

// A vector's codes of inputs 0-3 and those of 4-7, the first of each in the low bits.
template <Stored S>
INLINE void open_step(const uint8_t* step, int64_t v, __m256i& low, __m256i& high) {
    if (is_float(S)) return;
    const uint8_t* at = vector_of(step, bits_of(S), v);
    low = load_bytes(at);
    high = S == Stored::kInt8 ? load_bytes(at + 64) : _mm256_srli_epi32(low, 4);
}

// The number of each 4-bit code: 8 of the 16 at a time.
template <int VECTORS>
INLINE __m256 look_up(const Terms<VECTORS>& terms, __m256i codes) {
    const __m256 low = _mm256_permutevar8x32_ps(terms.low, codes);
    const __m256 high = _mm256_permutevar8x32_ps(terms.high, codes);
    const __m256 fourth = _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28));
    return _mm256_blendv_ps(low, high, fourth);
}

// Input `i` of vector v, counted `own` among the terms; `codes` moves on by one input.
template <Stored S, int VECTORS>
INLINE __m256 number(const Terms<VECTORS>& terms, const uint8_t* step, int64_t v, int own, int i,
                     __m256i& codes) {
    if (S == Stored::kFloat32) return load_floats(step + i * 128, EDGELM_FLOAT32, v);
    if (S == Stored::kFloat16) return load_floats(step + i * 64, EDGELM_FLOAT16, v);
    if (S == Stored::kBfloat16) return load_floats(step + i * 64, EDGELM_BFLOAT16, v);
    const __m256i now = codes;
    codes = _mm256_srli_epi32(codes, 8);
    if (S == Stored::kBook) return look_up(terms, now);
    const __m256i code = _mm256_and_si256(now, _mm256_set1_epi32(S == Stored::kInt8 ? 255 : 15));
    return _mm256_sub_ps(_mm256_cvtepi32_ps(code), terms.zero[own]);
}

// ROWS rows from `x` on times VECTORS vectors of a group from `begin` on, two chains per sum.
template <Stored S, int ROWS, int VECTORS>
INLINE void dot_group(const Terms<VECTORS>& terms, const Group& group, int64_t begin,
                      const float* x, int64_t stride, __m256 (&dots)[2][ROWS][VECTORS]) {
    const uint8_t* step = group.codes;
    for (int64_t s = 0; s < group.steps; ++s, x += kStep, step += step_bytes(bits_of(S))) {
        UNROLL
        for (int v = 0; v < VECTORS; ++v) {
            __m256i codes[2];
            open_step<S>(step, begin + v, codes[0], codes[1]);
            UNROLL
            for (int j = 0; j < 4; ++j) {
                UNROLL
                for (int chain = 0; chain < 2; ++chain) {
                    const int i = j + 4 * chain;
                    const __m256 w =
                        number<S, VECTORS>(terms, step, begin + v, v, i, codes[chain]);
                    UNROLL
                    for (int r = 0; r < ROWS; ++r) {
                        const __m256 a = _mm256_set1_ps(x[r * stride + i]);
                        dots[chain][r][v] = _mm256_fmadd_ps(a, w, dots[chain][r][v]);
                    }
                }
            }
        }
    }
}

// A group's dot products, scaled and moved by its zeros, added to the sums.
template <Stored S, int ROWS, int VECTORS>
INLINE void add_group(const edgelm_matrix& m, Terms<VECTORS>& terms, const Group& group,
                      const ExactRows& x, int64_t row, int64_t begin, int64_t g,
                      __m256 (&sums)[ROWS][VECTORS]) {
    const uint8_t* zeros = group.parameters + scales_bytes(m);
    if (m.zeros == EDGELM_ZEROS_INT) {
        for (int v = 0; v < VECTORS; ++v) terms.zero[v] = load_codes_as_floats(zeros, begin + v);
    }
    __m256 dots[2][ROWS][VECTORS];
    UNROLL
    for (int r = 0; r < ROWS; ++r) {
        UNROLL
        for (int v = 0; v < VECTORS; ++v) dots[0][r][v] = dots[1][r][v] = _mm256_setzero_ps();
    }
    const float* from = x.x + row * x.stride + group.first;
    dot_group<S, ROWS, VECTORS>(terms, group, begin, from, x.stride, dots);
    UNROLL
    for (int v = 0; v < VECTORS; ++v) {
        const __m256 scale = is_float(S) ? _mm256_set1_ps(1.0f)
                                         : load_floats(group.parameters, m.scales, begin + v);
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const __m256 dot = _mm256_add_ps(dots[0][r][v], dots[1][r][v]);
            sums[r][v] = _mm256_fmadd_ps(dot, scale, sums[r][v]);
        }
    }
    if (m.zeros != EDGELM_ZEROS_FLOAT) return;
    UNROLL
    for (int v = 0; v < VECTORS; ++v) {
        const __m256 zero = load_floats(zeros, m.scales, begin + v);
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const __m256 sum = _mm256_set1_ps(x.sums[(row + r) * x.groups + g]);
            sums[r][v] = _mm256_fmadd_ps(sum, zero, sums[r][v]);
        }
    }
}

template <Stored S, int ROWS, int VECTORS>
void tiles(const edgelm_matrix& m, const uint8_t* panel, const ExactRows& x, int64_t row,
           const Target& target) {
    for (int64_t begin = 0; begin < kPanel / kVector; begin += VECTORS) {
        __m256 sums[ROWS][VECTORS];
        for (auto& own : sums) {
            for (auto& sum : own) sum = _mm256_setzero_ps();
        }
        Terms<VECTORS> terms = terms_of<S, VECTORS>(m);
        Group group = Group::first_of(m, panel);
        for (int64_t g = 0; g < x.groups; ++g, group.next(m)) {
            add_group<S, ROWS, VECTORS>(m, terms, group, x, row, begin, g, sums);
        }
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
            float values[VECTORS * kVector];
            UNROLL
            for (int v = 0; v < VECTORS; ++v) _mm256_storeu_ps(values + kVector * v, sums[r][v]);
            store(target, row + r, begin * kVector, values, VECTORS * kVector);
        }
    }
}

template <Stored S>
void rows_by_tiles(const edgelm_matrix& m, const uint8_t* panel, const ExactRows& x,
                   const Target& target) {
    int64_t row = 0;
    for (; x.rows - row >= 4; row += 4) tiles<S, 4, 1>(m, panel, x, row, target);
    for (; x.rows - row >= 2; row += 2) tiles<S, 2, 2>(m, panel, x, row, target);
    for (; x.rows - row >= 1; row += 1) tiles<S, 1, 4>(m, panel, x, row, target);
}

}  // namespace

#include "exact_dispatch.h"

void exact_panel_avx2(const edgelm_matrix& m, const uint8_t* panel, const ExactRows& x,
                      const Target& target) {
    exact_panel(m, panel, x, target);
}
