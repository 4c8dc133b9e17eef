// Products with activations as they are, NEON: up to 4 rows by vectors of 4 outputs.
#include "codebooks.h"
#include "isa.h"
#include "vectors128.h"

namespace {

// A vector's codes of inputs 0-3 and those of 4-7, the first of each in the low bits.
template <Stored S>
INLINE void open_step(const uint8_t* step, int64_t v, uint32x4_t (&codes)[2]) {
    if (is_float(S)) return;
    const uint8_t* at = vector_of(step, bits_of(S), v);
    codes[0] = vreinterpretq_u32_u8(vld1q_u8(at));
    codes[1] = S == Stored::kInt8 ? vreinterpretq_u32_u8(vld1q_u8(at + 64))
                                  : vshrq_n_u32(codes[0], 4);
}

// Input `i` of vector v; `codes` moves on by one input. Codes of a codebook look up the bytes of
// its numbers: `book` holds their 64 bytes.
template <Stored S>
INLINE float32x4_t number(const uint8x16x4_t& book, float32x4_t zero, const uint8_t* step,
                          int64_t v, int i, uint32x4_t& codes) {
    if (S == Stored::kFloat32) return load_floats(step + i * 128, EDGELM_FLOAT32, v);
    if (S == Stored::kFloat16) return load_floats(step + i * 64, EDGELM_FLOAT16, v);
    if (S == Stored::kBfloat16) return load_floats(step + i * 64, EDGELM_BFLOAT16, v);
    const uint32x4_t code = vandq_u32(codes, vdupq_n_u32(S == Stored::kInt8 ? 255 : 15));
    codes = vshrq_n_u32(codes, 8);
    if (S != Stored::kBook) return vsubq_f32(vcvtq_f32_u32(code), zero);
    // Bytes 4 c to 4 c + 3 of the table for each code c.
    const uint32x4_t bytes = vaddq_u32(vmulq_n_u32(code, 0x04040404u), vdupq_n_u32(0x03020100u));
    return vreinterpretq_f32_u8(vqtbl4q_u8(book, vreinterpretq_u8_u32(bytes)));
}

template <Stored S>
uint8x16x4_t book_of(const edgelm_matrix& m) {
    uint8x16x4_t book{};
    if (S != Stored::kBook) return book;
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(numbers(m));
    for (int i = 0; i < 4; ++i) book.val[i] = vld1q_u8(bytes + 16 * i);
    return book;
}

// ROWS rows from `x` on times VECTORS vectors of a group from `begin` on, two chains per sum.
template <Stored S, int ROWS, int VECTORS>
INLINE void dot_group(const uint8x16x4_t& book, const float32x4_t (&zero)[VECTORS],
                      const Group& group, int64_t begin, const float* x, int64_t stride,
                      float32x4_t (&dots)[2][ROWS][VECTORS]) {
    const uint8_t* step = group.codes;
    for (int64_t s = 0; s < group.steps; ++s, x += kStep, step += step_bytes(bits_of(S))) {
        UNROLL
        for (int v = 0; v < VECTORS; ++v) {
            uint32x4_t codes[2];
            open_step<S>(step, begin + v, codes);
            UNROLL
            for (int j = 0; j < 4; ++j) {
                UNROLL
                for (int chain = 0; chain < 2; ++chain) {
                    const int i = j + 4 * chain;
                    const float32x4_t w =
                        number<S>(book, zero[v], step, begin + v, i, codes[chain]);
                    UNROLL
                    for (int r = 0; r < ROWS; ++r) {
                        dots[chain][r][v] = vfmaq_n_f32(dots[chain][r][v], w, x[r * stride + i]);
                    }
                }
            }
        }
    }
}

// A group's dot products, scaled and moved by its zeros, added to the sums.
template <Stored S, int ROWS, int VECTORS>
INLINE void add_group(const edgelm_matrix& m, const uint8x16x4_t& book, const Group& group,
                      const ExactRows& x, int64_t row, int64_t begin, int64_t g,
                      float32x4_t (&sums)[ROWS][VECTORS]) {
    const uint8_t* zeros = group.parameters + scales_bytes(m);
    float32x4_t zero[VECTORS], dots[2][ROWS][VECTORS];
    UNROLL
    for (int v = 0; v < VECTORS; ++v) {
        zero[v] = m.zeros == EDGELM_ZEROS_INT
                      ? vcvtq_f32_s32(load_codes_wide(zeros, begin + v))
                      : vdupq_n_f32(static_cast<float>(middle_code(m)));
        UNROLL
        for (int r = 0; r < ROWS; ++r) dots[0][r][v] = dots[1][r][v] = vdupq_n_f32(0.0f);
    }
    const float* from = x.x + row * x.stride + group.first;
    dot_group<S, ROWS, VECTORS>(book, zero, group, begin, from, x.stride, dots);
    UNROLL
    for (int v = 0; v < VECTORS; ++v) {
        const float32x4_t scale =
            is_float(S) ? vdupq_n_f32(1.0f) : load_floats(group.parameters, m.scales, begin + v);
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const float32x4_t dot = vaddq_f32(dots[0][r][v], dots[1][r][v]);
            sums[r][v] = vfmaq_f32(sums[r][v], dot, scale);
            if (m.zeros == EDGELM_ZEROS_FLOAT) {
                const float32x4_t own = load_floats(zeros, m.scales, begin + v);
                sums[r][v] = vfmaq_n_f32(sums[r][v], own, x.sums[(row + r) * x.groups + g]);
            }
        }
    }
}

template <Stored S, int ROWS, int VECTORS>
void tiles(const edgelm_matrix& m, const uint8_t* panel, const ExactRows& x, int64_t row,
           const Target& target) {
    const uint8x16x4_t book = book_of<S>(m);
    for (int64_t begin = 0; begin < kPanel / kVector; begin += VECTORS) {
        float32x4_t sums[ROWS][VECTORS];
        for (auto& own : sums) {
            for (auto& sum : own) sum = vdupq_n_f32(0.0f);
        }
        Group group = Group::first_of(m, panel);
        for (int64_t g = 0; g < x.groups; ++g, group.next(m)) {
            add_group<S, ROWS, VECTORS>(m, book, group, x, row, begin, g, sums);
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

template <Stored S>
void rows_by_tiles(const edgelm_matrix& m, const uint8_t* panel, const ExactRows& x,
                   const Target& target) {
    int64_t row = 0;
    for (; x.rows - row >= 4; row += 4) tiles<S, 4, 2>(m, panel, x, row, target);
    for (; x.rows - row >= 1; row += 1) tiles<S, 1, 8>(m, panel, x, row, target);
}

}  // namespace

#include "exact_dispatch.h"

void exact_panel_neon(const edgelm_matrix& m, const uint8_t* panel, const ExactRows& x,
                      const Target& target) {
    exact_panel(m, panel, x, target);
}
