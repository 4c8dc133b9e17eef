// Integer products in AVX2 vectors: tiles of up to 4 rows of activations by vectors of 8 outputs.
//
// Whoever includes this has defined
//     base(S)           what their dot product subtracts from each stored byte by itself
//     dot4<S>(sums, codes, x)  adds the products of 4 bytes each to 8 sums
#pragma once

#include "codebooks.h"
#include "isa.h"
#include "vectors256.h"

namespace {

inline __m256i spread4(const int8_t* x) {
    int32_t four;
    memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
}

// The bytes that a codebook's codes stand for.
struct Book {
    __m256i planes[kPlanes];
    float unit;

    explicit Book(const edgelm_matrix& m) : unit(::unit(m)) {
        const Planes own = ::planes(m);
        for (int p = 0; p < kPlanes; ++p) {
            const __m128i* bytes = reinterpret_cast<const __m128i*>(own.bytes[p]);
            planes[p] = _mm256_broadcastsi128_si256(_mm_load_si128(bytes));
        }
    }
};

template <Stored S>
inline void load_codes(const uint8_t* step, int64_t v, __m256i plane, __m256i& low,
                       __m256i& high) {
    const uint8_t* at = vector_of(step, bits_of(S), v);
    low = load_bytes(at);
    if (S == Stored::kInt8) {
        high = load_bytes(at + 64);
        return;
    }
    const __m256i nibble = _mm256_set1_epi8(15);
    high = _mm256_and_si256(_mm256_srli_epi16(low, 4), nibble);
    low = _mm256_and_si256(low, nibble);
    if (S == Stored::kBook) {
        high = _mm256_shuffle_epi8(plane, high);
        low = _mm256_shuffle_epi8(plane, low);
    }
}

// What a sum of codes times activations starts from: minus the zero times the activations' sum.
template <Stored S>
inline __m256i preset(const edgelm_matrix& m, const uint8_t* zeros, int64_t v, int32_t sum) {
    if (m.zeros != EDGELM_ZEROS_INT) {
        return _mm256_set1_epi32(-sum * (middle_code(m) - base(S)));
    }
    const __m256i zero =
        _mm256_sub_epi32(load_codes_wide(zeros, v), _mm256_set1_epi32(base(S)));
    return _mm256_mullo_epi32(zero, _mm256_set1_epi32(-sum));
}

// The codes of a group's vectors, or one plane of what they stand for, times rows of `x`.
template <Stored S, int ROWS, int VECTORS>
INLINE void dot_group(const Group& group, __m256i plane, const Coded& x, int64_t begin,
                      __m256i (&dots)[ROWS][VECTORS]) {
    const int8_t* in = x.codes;
    const uint8_t* at = group.codes;
    for (int64_t s = 0; s < group.steps; ++s, in += kStep, at += step_bytes(bits_of(S))) {
        UNROLL
        for (int v = 0; v < VECTORS; ++v) {
            __m256i low, high;
            load_codes<S>(at, begin + v, plane, low, high);
            UNROLL
            for (int r = 0; r < ROWS; ++r) {
                dots[r][v] = dot4<S>(dots[r][v], low, spread4(in + r * x.stride));
                dots[r][v] = dot4<S>(dots[r][v], high, spread4(in + r * x.stride + 4));
            }
        }
    }
}

// Rows of `x` times VECTORS vectors of a group, from vector `begin` on, added to their sums.
template <Stored S, int ROWS, int VECTORS>
INLINE void add_group(const edgelm_matrix& m, const Book& book, const Group& group,
                      const Coded& x, int64_t begin, __m256 (&sums)[ROWS][VECTORS]) {
    const uint8_t* zeros = group.parameters + scales_bytes(m);
    __m256i dots[ROWS][VECTORS];
    UNROLL
    for (int plane = 0; plane < (S == Stored::kBook ? kPlanes : 1); ++plane) {
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const int32_t sum = x.sums[r * x.step];
            UNROLL
            for (int v = 0; v < VECTORS; ++v) {
                const __m256i start = preset<S>(m, zeros, begin + v, sum);
                dots[r][v] = plane == 0 ? start
                                        : _mm256_add_epi32(_mm256_slli_epi32(dots[r][v], 8), start);
            }
        }
        dot_group<S, ROWS, VECTORS>(group, book.planes[plane], x, begin, dots);
    }
    UNROLL
    for (int v = 0; v < VECTORS; ++v) {
        const __m256 scale = load_floats(group.parameters, m.scales, begin + v);
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const __m256 a = _mm256_set1_ps(x.scales[r * x.step] * book.unit);
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
template <Stored S, int ROWS, int VECTORS>
void tile(const edgelm_matrix& m, const Book& book, const uint8_t* panel, const Activations& x,
          int64_t row, int64_t begin, const Target& target) {
    __m256 sums[ROWS][VECTORS];
    for (auto& own : sums) {
        for (auto& sum : own) sum = _mm256_setzero_ps();
    }
    Group group = Group::first_of(m, panel);
    for (int64_t g = 0; g < x.groups; ++g, group.next(m)) {
        add_group<S, ROWS, VECTORS>(m, book, group, rows_of(x, row, g, group.first), begin, sums);
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
template <Stored S>
void fine_tile(const edgelm_matrix& m, const Book& book, const Group& group,
               const Activations& x, int64_t entry, const Target& target) {
    constexpr int kVectors = kPanel / kVector;
    float values[kPanel] = {};
    fetch(target, x.fine_rows[entry], values);
    __m256 sums[1][kVectors];
    UNROLL
    for (int v = 0; v < kVectors; ++v) sums[0][v] = _mm256_loadu_ps(values + kVector * v);
    add_group<S, 1, kVectors>(m, book, group, fine_of(m, x, entry), 0, sums);
    UNROLL
    for (int v = 0; v < kVectors; ++v) _mm256_storeu_ps(values + kVector * v, sums[0][v]);
    put_back(target, x.fine_rows[entry], values);
}

template <Stored S>
void rows_by_tiles(const edgelm_matrix& m, const uint8_t* panel, const Activations& x,
                   const Target& target) {
    const Book book(m);
    int64_t row = 0;
    for (; x.rows - row >= 4; row += 4) {
        tile<S, 4, 2>(m, book, panel, x, row, 0, target);
        tile<S, 4, 2>(m, book, panel, x, row, 2, target);
    }
    for (; x.rows - row >= 2; row += 2) {
        tile<S, 2, 2>(m, book, panel, x, row, 0, target);
        tile<S, 2, 2>(m, book, panel, x, row, 2, target);
    }
    for (; x.rows - row >= 1; row += 1) tile<S, 1, 4>(m, book, panel, x, row, 0, target);
    for (int64_t g = 0; g < x.groups; ++g) {
        const Group group = Group::at(m, panel, g);
        for (int64_t entry = x.fine_begins[g]; entry < x.fine_begins[g + 1]; ++entry) {
            fine_tile<S>(m, book, group, x, entry, target);
        }
    }
}

}  // namespace

#include "rounding_dispatch.h"
