// AVX2 with FMA: tiles of up to 4 rows of activations by vectors of 8 outputs.
#include <immintrin.h>

#include "isa.h"

namespace {

constexpr int64_t kVector = 8;

inline __m256i load_bytes(const uint8_t* at) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
}

// int8 codes are multiplied as signed numbers here: pairs of products of codes up to 255 would
// not fit the 16 bits of vpmaddubsw, but those of magnitudes up to 128 do.
template <int BITS>
constexpr int32_t kBase = BITS == 4 ? 0 : 128;

template <int BITS>
inline __m256i dot4(__m256i sums, __m256i codes, __m256i x) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i pairs;
    if (BITS == 4) {
        pairs = _mm256_maddubs_epi16(codes, x);
    } else {
        const __m256i weights = _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
        pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
    }
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, ones));
}

inline __m256i spread4(const int8_t* x) {
    int32_t four;
    memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
}

inline __m256 load_floats(const uint8_t* array, int32_t kind, int64_t vector) {
    if (kind == EDGELM_FLOAT32) {
        return _mm256_loadu_ps(reinterpret_cast<const float*>(array + vector * 32));
    }
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(array + vector * 16));
    if (kind == EDGELM_FLOAT16) return _mm256_cvtph_ps(halves);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

// Vector v of a step has 8 rows: the lower or upper half of a block of 16.
template <int BITS>
inline void load_codes(const uint8_t* step, int64_t v, __m256i& low, __m256i& high) {
    const uint8_t* at = step + v / 2 * (step_bytes(BITS) / 2) + v % 2 * 32;
    low = load_bytes(at);
    if (BITS == 4) {
        const __m256i nibble = _mm256_set1_epi8(15);
        high = _mm256_and_si256(_mm256_srli_epi16(low, 4), nibble);
        low = _mm256_and_si256(low, nibble);
    } else {
        high = load_bytes(at + 64);
    }
}

// What a sum of codes times activations starts from: minus the zero times the activations' sum.
template <int BITS>
inline __m256i preset(const edgelm_matrix& m, const uint8_t* zeros, int64_t v, int32_t sum) {
    if (m.zeros != EDGELM_ZEROS_INT) {
        return _mm256_set1_epi32(-sum * (middle_code(m) - kBase<BITS>));
    }
    const __m128i own = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(zeros + v * kVector));
    const __m256i zero = _mm256_sub_epi32(_mm256_cvtepu8_epi32(own),
                                          _mm256_set1_epi32(kBase<BITS>));
    return _mm256_mullo_epi32(zero, _mm256_set1_epi32(-sum));
}

// Rows of `x` times VECTORS vectors of a group, from vector `begin` on, added to their sums.
template <int BITS, int ROWS, int VECTORS>
INLINE void add_group(const edgelm_matrix& m, const Group& group, const Coded& x, int64_t begin,
                      __m256 (&sums)[ROWS][VECTORS]) {
    const uint8_t* zeros = group.parameters + scales_bytes(m);
    __m256i dots[ROWS][VECTORS];
    UNROLL
    for (int r = 0; r < ROWS; ++r) {
        const int32_t sum = x.sums[r * x.step];
        UNROLL
        for (int v = 0; v < VECTORS; ++v) dots[r][v] = preset<BITS>(m, zeros, begin + v, sum);
    }
    const int8_t* in = x.codes;
    const uint8_t* at = group.codes;
    for (int64_t s = 0; s < group.steps; ++s, in += kStep, at += step_bytes(BITS)) {
        UNROLL
        for (int v = 0; v < VECTORS; ++v) {
            __m256i low, high;
            load_codes<BITS>(at, begin + v, low, high);
            UNROLL
            for (int r = 0; r < ROWS; ++r) {
                dots[r][v] = dot4<BITS>(dots[r][v], low, spread4(in + r * x.stride));
                dots[r][v] = dot4<BITS>(dots[r][v], high, spread4(in + r * x.stride + 4));
            }
        }
    }
    UNROLL
    for (int v = 0; v < VECTORS; ++v) {
        const __m256 scale = load_floats(group.parameters, m.scales, begin + v);
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const __m256 a = _mm256_set1_ps(x.scales[r * x.step]);
            sums[r][v] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[r][v]), _mm256_mul_ps(scale, a),
                                         sums[r][v]);
        }
    }
    if (m.zeros != EDGELM_ZEROS_FLOAT) return;
    UNROLL
    for (int v = 0; v < VECTORS; ++v) {
        const __m256 zero = load_floats(zeros, m.scales, begin + v);
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const float total = static_cast<float>(x.sums[r * x.step]) * x.scales[r * x.step];
            sums[r][v] = _mm256_fmadd_ps(_mm256_set1_ps(total), zero, sums[r][v]);
        }
    }
}

// ROWS rows of activations times VECTORS vectors of a panel, from vector `begin` on.
template <int BITS, int ROWS, int VECTORS>
void tile(const edgelm_matrix& m, const uint8_t* panel, const Activations& x, int64_t row,
          int64_t begin, const Target& target) {
    __m256 sums[ROWS][VECTORS];
    for (auto& own : sums) {
        for (auto& sum : own) sum = _mm256_setzero_ps();
    }
    Group group = Group::first_of(m, panel);
    for (int64_t g = 0; g < x.groups; ++g, group.next(m)) {
        add_group<BITS, ROWS, VECTORS>(m, group, rows_of(x, row, g, group.first), begin, sums);
    }
    UNROLL
    for (int r = 0; r < ROWS; ++r) {
        float values[VECTORS * kVector];
        UNROLL
        for (int v = 0; v < VECTORS; ++v) _mm256_storeu_ps(values + kVector * v, sums[r][v]);
        store(target, row + r, begin * kVector, values, VECTORS * kVector);
    }
}

// A fine row times its group, added to what the target has.
template <int BITS>
void fine_tile(const edgelm_matrix& m, const Group& group, const Activations& x, int64_t entry,
               const Target& target) {
    constexpr int kVectors = kPanel / kVector;
    float values[kPanel] = {};
    fetch(target, x.fine_rows[entry], values);
    __m256 sums[1][kVectors];
    UNROLL
    for (int v = 0; v < kVectors; ++v) sums[0][v] = _mm256_loadu_ps(values + kVector * v);
    add_group<BITS, 1, kVectors>(m, group, fine_of(m, x, entry), 0, sums);
    UNROLL
    for (int v = 0; v < kVectors; ++v) _mm256_storeu_ps(values + kVector * v, sums[0][v]);
    put_back(target, x.fine_rows[entry], values);
}

template <int BITS>
void rows_by_tiles(const edgelm_matrix& m, const uint8_t* panel, const Activations& x,
                   const Target& target) {
    int64_t row = 0;
    for (; x.rows - row >= 4; row += 4) {
        tile<BITS, 4, 2>(m, panel, x, row, 0, target);
        tile<BITS, 4, 2>(m, panel, x, row, 2, target);
    }
    for (; x.rows - row >= 2; row += 2) {
        tile<BITS, 2, 2>(m, panel, x, row, 0, target);
        tile<BITS, 2, 2>(m, panel, x, row, 2, target);
    }
    for (; x.rows - row >= 1; row += 1) tile<BITS, 1, 4>(m, panel, x, row, 0, target);
    for (int64_t g = 0; g < x.groups; ++g) {
        const Group group = Group::at(m, panel, g);
        for (int64_t entry = x.fine_begins[g]; entry < x.fine_begins[g + 1]; ++entry) {
            fine_tile<BITS>(m, group, x, entry, target);
        }
    }
}

void multiply(const edgelm_matrix& m, const uint8_t* panel, const Activations& x,
              const Target& target) {
    (m.bits == 4 ? rows_by_tiles<4> : rows_by_tiles<8>)(m, panel, x, target);
}

}  // namespace

const Isa kAvx2 = {"avx2", round_row, refine_group, multiply, &kOpsAvx2};
