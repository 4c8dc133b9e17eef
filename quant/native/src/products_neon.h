// Integer products in NEON vectors: up to 4 rows of activations by vectors of 4 outputs.
//
// Codes become signed numbers (int8's, and the bytes of a codebook, lose the 128 that they are
// stored with). Where EDGELM_I8MM is defined, pairs of rows go through 2 x 8 by 8 x 2 products.
#pragma once

#include "codebooks.h"
#include "isa.h"
#include "vectors128.h"

namespace {

// What is subtracted from each stored byte before it is multiplied.
constexpr int32_t base(Stored s) { return s == Stored::kInt4 ? 0 : 128; }

// The bytes that a codebook's codes stand for.
struct Book {
    uint8x16_t planes[kPlanes];
    float unit;

    explicit Book(const edgelm_matrix& m) : unit(::unit(m)) {
        const Planes own = ::planes(m);
        for (int p = 0; p < kPlanes; ++p) planes[p] = vld1q_u8(own.bytes[p]);
    }
};

// Codes of 4 outputs: inputs 0-3 of each in `low`, 4-7 in `high`.
template <Stored S>
INLINE void load_codes(const uint8_t* step, int64_t v, uint8x16_t plane, int8x16_t& low,
                       int8x16_t& high) {
    const uint8_t* at = vector_of(step, bits_of(S), v);
    uint8x16_t first = vld1q_u8(at), second;
    if (S == Stored::kInt8) {
        second = vld1q_u8(at + 64);
    } else {
        second = vshrq_n_u8(first, 4);
        first = vandq_u8(first, vdupq_n_u8(15));
    }
    if (S == Stored::kBook) {
        first = vqtbl1q_u8(plane, first);
        second = vqtbl1q_u8(plane, second);
    }
    const uint8x16_t sign = vdupq_n_u8(static_cast<uint8_t>(base(S)));
    low = vreinterpretq_s8_u8(veorq_u8(first, sign));
    high = vreinterpretq_s8_u8(veorq_u8(second, sign));
}

// What a sum of codes times activations starts from: minus the zero times the activations' sum.
template <Stored S>
INLINE int32x4_t preset(const edgelm_matrix& m, const uint8_t* zeros, int64_t v, int32_t sum) {
    if (m.zeros != EDGELM_ZEROS_INT) return vdupq_n_s32(-sum * (middle_code(m) - base(S)));
    const int32x4_t zero = vsubq_s32(load_codes_wide(zeros, v), vdupq_n_s32(base(S)));
    return vmulq_n_s32(zero, -sum);
}

// The codes of a group's vectors, or one plane of what they stand for, times rows of `x`.
template <Stored S, int ROWS, int VECTORS>
INLINE void dot_group(const Group& group, uint8x16_t plane, const Coded& x, int64_t begin,
                      int32x4_t (&dots)[ROWS][VECTORS]) {
    const int8_t* in = x.codes;
    const uint8_t* at = group.codes;
    for (int64_t s = 0; s < group.steps; ++s, in += kStep, at += step_bytes(bits_of(S))) {
        int8x8_t own[ROWS];
        UNROLL
        for (int r = 0; r < ROWS; ++r) own[r] = vld1_s8(in + r * x.stride);
        UNROLL
        for (int v = 0; v < VECTORS; ++v) {
            int8x16_t low, high;
            load_codes<S>(at, begin + v, plane, low, high);
            UNROLL
            for (int r = 0; r < ROWS; ++r) {
                dots[r][v] = vdotq_lane_s32(dots[r][v], low, own[r], 0);
                dots[r][v] = vdotq_lane_s32(dots[r][v], high, own[r], 1);
            }
        }
    }
}

#if defined(EDGELM_I8MM)

// The same by pairs of rows: a sum of 4 holds 2 rows by 2 outputs until the end.
template <Stored S, int PAIRS, int VECTORS>
INLINE void dot_pairs(const Group& group, uint8x16_t plane, const Coded& x, int64_t begin,
                      int32x4_t (&dots)[2 * PAIRS][VECTORS]) {
    int32x4_t sums[PAIRS][VECTORS][2] = {};
    const int8_t* in = x.codes;
    const uint8_t* at = group.codes;
    for (int64_t s = 0; s < group.steps; ++s, in += kStep, at += step_bytes(bits_of(S))) {
        int8x16_t own[PAIRS];
        UNROLL
        for (int p = 0; p < PAIRS; ++p) {
            own[p] = vcombine_s8(vld1_s8(in + 2 * p * x.stride),
                                 vld1_s8(in + (2 * p + 1) * x.stride));
        }
        UNROLL
        for (int v = 0; v < VECTORS; ++v) {
            int8x16_t low, high;
            load_codes<S>(at, begin + v, plane, low, high);
            const int32x4_t a = vreinterpretq_s32_s8(low), b = vreinterpretq_s32_s8(high);
            const int8x16_t upper = vreinterpretq_s8_s32(vzip1q_s32(a, b));  // outputs 0 and 1
            const int8x16_t lower = vreinterpretq_s8_s32(vzip2q_s32(a, b));  // 2 and 3
            UNROLL
            for (int p = 0; p < PAIRS; ++p) {
                sums[p][v][0] = vmmlaq_s32(sums[p][v][0], own[p], upper);
                sums[p][v][1] = vmmlaq_s32(sums[p][v][1], own[p], lower);
            }
        }
    }
    UNROLL
    for (int p = 0; p < PAIRS; ++p) {
        UNROLL
        for (int v = 0; v < VECTORS; ++v) {
            const int32x4_t a = sums[p][v][0], b = sums[p][v][1];
            const int32x4_t first = vcombine_s32(vget_low_s32(a), vget_low_s32(b));
            const int32x4_t second = vcombine_s32(vget_high_s32(a), vget_high_s32(b));
            dots[2 * p][v] = vaddq_s32(dots[2 * p][v], first);
            dots[2 * p + 1][v] = vaddq_s32(dots[2 * p + 1][v], second);
        }
    }
}

template <Stored S, int VECTORS>
INLINE void dot_group(const Group& group, uint8x16_t plane, const Coded& x, int64_t begin,
                      int32x4_t (&dots)[4][VECTORS]) {
    dot_pairs<S, 2, VECTORS>(group, plane, x, begin, dots);
}

#else

template <Stored S, int VECTORS>
INLINE void dot_group(const Group& group, uint8x16_t plane, const Coded& x, int64_t begin,
                      int32x4_t (&dots)[4][VECTORS]) {
    dot_group<S, 4, VECTORS>(group, plane, x, begin, dots);
}

#endif

template <Stored S, int VECTORS>
INLINE void dot_group(const Group& group, uint8x16_t plane, const Coded& x, int64_t begin,
                      int32x4_t (&dots)[1][VECTORS]) {
    dot_group<S, 1, VECTORS>(group, plane, x, begin, dots);
}

// Rows of `x` times VECTORS vectors of a group, from vector `begin` on, added to their sums.
template <Stored S, int ROWS, int VECTORS>
INLINE void add_group(const edgelm_matrix& m, const Book& book, const Group& group,
                      const Coded& x, int64_t begin, float32x4_t (&sums)[ROWS][VECTORS]) {
    const uint8_t* zeros = group.parameters + scales_bytes(m);
    int32x4_t dots[ROWS][VECTORS];
    UNROLL
    for (int plane = 0; plane < (S == Stored::kBook ? kPlanes : 1); ++plane) {
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
            UNROLL
            for (int v = 0; v < VECTORS; ++v) {
                const int32x4_t start = preset<S>(m, zeros, begin + v, x.sums[r * x.step]);
                dots[r][v] =
                    plane == 0 ? start : vaddq_s32(vshlq_n_s32(dots[r][v], 8), start);
            }
        }
        dot_group<S>(group, book.planes[plane], x, begin, dots);
    }
    UNROLL
    for (int v = 0; v < VECTORS; ++v) {
        const float32x4_t scale = load_floats(group.parameters, m.scales, begin + v);
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const float a = x.scales[r * x.step] * book.unit;
            sums[r][v] = vfmaq_f32(sums[r][v], vcvtq_f32_s32(dots[r][v]), vmulq_n_f32(scale, a));
            if (m.zeros == EDGELM_ZEROS_FLOAT) {
                const float32x4_t zero = load_floats(zeros, m.scales, begin + v);
                const float total = static_cast<float>(x.sums[r * x.step]) * x.scales[r * x.step];
                sums[r][v] = vfmaq_n_f32(sums[r][v], zero, total);
            }
        }
    }
}

// ROWS rows of activations times VECTORS vectors of a panel at a time.
template <Stored S, int ROWS, int VECTORS>
void tiles(const edgelm_matrix& m, const Book& book, const uint8_t* panel, const Activations& x,
           int64_t row, const Target& target) {
    for (int64_t begin = 0; begin < kPanel / kVector; begin += VECTORS) {
        float32x4_t sums[ROWS][VECTORS];
        for (auto& own : sums) {
            for (auto& sum : own) sum = vdupq_n_f32(0.0f);
        }
        Group group = Group::first_of(m, panel);
        for (int64_t g = 0; g < x.groups; ++g, group.next(m)) {
            const Coded rows = rows_of(x, row, g, group.first);
            add_group<S, ROWS, VECTORS>(m, book, group, rows, begin, sums);
        }
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
            float values[VECTORS * kVector];
            UNROLL
            for (int v = 0; v < VECTORS; ++v) vst1q_f32(values + kVector * v, sums[r][v]);
            store(target, row + r, begin * kVector, values, VECTORS * kVector);
        }
    }
}

// A fine row times its group, added to what the target has.
template <Stored S>
void fine_tile(const edgelm_matrix& m, const Book& book, const Group& group,
               const Activations& x, int64_t entry, const Target& target) {
    constexpr int kVectors = kPanel / kVector;
    float values[kPanel] = {};
    fetch(target, x.fine_rows[entry], values);
    float32x4_t sums[1][kVectors];
    UNROLL
    for (int v = 0; v < kVectors; ++v) sums[0][v] = vld1q_f32(values + kVector * v);
    add_group<S, 1, kVectors>(m, book, group, fine_of(m, x, entry), 0, sums);
    UNROLL
    for (int v = 0; v < kVectors; ++v) vst1q_f32(values + kVector * v, sums[0][v]);
    put_back(target, x.fine_rows[entry], values);
}

template <Stored S>
void rows_by_tiles(const edgelm_matrix& m, const uint8_t* panel, const Activations& x,
                   const Target& target) {
    const Book book(m);
    int64_t row = 0;
    for (; x.rows - row >= 4; row += 4) tiles<S, 4, 4>(m, book, panel, x, row, target);
    for (; x.rows - row >= 1; row += 1) tiles<S, 1, 8>(m, book, panel, x, row, target);
    for (int64_t g = 0; g < x.groups; ++g) {
        const Group group = Group::at(m, panel, g);
        for (int64_t entry = x.fine_begins[g]; entry < x.fine_begins[g + 1]; ++entry) {
            fine_tile<S>(m, book, group, x, entry, target);
        }
    }
}

}  // namespace

#include "rounding_dispatch.h"
