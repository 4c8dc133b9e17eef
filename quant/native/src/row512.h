// One row of activations times a panel, for AVX512 with VNNI: what a decode step consists of.
//
// The tiles of avx512vnni.cpp would do with one row as well, but at half the speed at which the
// codes come out of a cache: what a matrix is made of is known here when the loop is compiled.
// Sums have the same order and the same bits.
#pragma once

#include "isa.h"
#include "vectors512.h"

namespace {

inline __m512i spread4(const int8_t* x) {
    int32_t four;
    memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
}

// Sums of one step's codes times activations. Upper nibbles stay where they are: their sums are
// 16 times too large until `whole` shifts them, all at once.
template <Stored S>
INLINE void dot_step(const uint8_t* codes, const int8_t* x, __m512i (&low)[kHalves],
                     __m512i (&high)[kHalves]) {
    const __m512i first = spread4(x), second = spread4(x + 4);
    UNROLL
    for (int h = 0; h < kHalves; ++h) {
        const __m512i stored = _mm512_loadu_si512(codes + h * step_bytes(bits_of(S)) / 2);
        if (S == Stored::kInt8) {
            const __m512i more = _mm512_loadu_si512(codes + h * step_bytes(8) / 2 + 64);
            low[h] = dot4(low[h], stored, first);
            high[h] = dot4(high[h], more, second);
        } else {
            const __m512i upper = _mm512_set1_epi8(static_cast<char>(0xf0));
            low[h] = dot4(low[h], _mm512_andnot_si512(upper, stored), first);
            high[h] = dot4(high[h], _mm512_and_si512(upper, stored), second);
        }
    }
}

template <Stored S>
INLINE __m512i whole(__m512i low, __m512i high) {
    return _mm512_add_epi32(low, S == Stored::kInt4 ? _mm512_srai_epi32(high, 4) : high);
}

// Where a group of codes is, and the activations that it meets.
struct OneGroup {
    const uint8_t* parameters;
    const uint8_t* codes;
    const int8_t* x;
    int32_t sum;
    float scale;
};

// A group of codes times its activations, added to the sums of the panel's rows. `blocks` of four
// steps each, and `rest` steps behind them.
template <Stored S, int32_t KIND, int32_t ZEROS>
INLINE void add_one(const OneGroup& group, int32_t middle, int64_t blocks, int64_t rest,
                    __m512 (&sums)[kHalves]) {
    constexpr int64_t kBytes = step_bytes(bits_of(S));
    const uint8_t* zeros = group.parameters + kPanel * float_bytes(KIND);
    __m512i low[kHalves], high[kHalves];
    UNROLL
    for (int h = 0; h < kHalves; ++h) {
        low[h] = ZEROS == EDGELM_ZEROS_INT
                     ? _mm512_mullo_epi32(load_codes_wide(zeros, h), _mm512_set1_epi32(-group.sum))
                     : _mm512_set1_epi32(-group.sum * middle);
        high[h] = _mm512_setzero_si512();
    }
    const uint8_t* at = group.codes;
    const int8_t* in = group.x;
    for (; blocks > 0; --blocks, at += 4 * kBytes, in += 4 * kStep) {
        UNROLL
        for (int s = 0; s < 4; ++s) dot_step<S>(at + s * kBytes, in + s * kStep, low, high);
    }
    for (; rest > 0; --rest, at += kBytes, in += kStep) dot_step<S>(at, in, low, high);
    const __m512 a = _mm512_set1_ps(group.scale);
    UNROLL
    for (int h = 0; h < kHalves; ++h) {
        const __m512 scale = load_floats(group.parameters, KIND, h);
        const __m512 product = _mm512_cvtepi32_ps(whole<S>(low[h], high[h]));
        sums[h] = _mm512_fmadd_ps(product, _mm512_mul_ps(scale, a), sums[h]);
    }
    if (ZEROS != EDGELM_ZEROS_FLOAT) return;
    const __m512 total = _mm512_set1_ps(static_cast<float>(group.sum) * group.scale);
    UNROLL
    for (int h = 0; h < kHalves; ++h) {
        sums[h] = _mm512_fmadd_ps(total, load_floats(zeros, KIND, h), sums[h]);
    }
}

// All groups of a panel, the last of which may be shorter: `coarse` in their order, then the fine.
template <Stored S, int32_t KIND, int32_t ZEROS>
void one_row_of(const edgelm_matrix& m, const uint8_t* panel, const Activations& x,
                const Target& target) {
    constexpr int64_t kBlock = 4 * kStep;
    const int32_t middle = middle_code(m);
    const int64_t width = group_inputs(m), blocks = width / kBlock;
    const int64_t parameters = m.group ? parameter_bytes(m) : 0;
    const int64_t bytes = parameters + width / kStep * step_bytes(bits_of(S));
    const uint8_t* codes = panel + parameter_bytes(m);
    const int64_t full = m.inputs / width, last = ceil_div(m.inputs - full * width, kStep);
    const auto coarse = [&](int64_t g) {
        const uint8_t* at = codes + g * bytes;
        const uint8_t* own = m.group ? at - parameters : panel;
        return OneGroup{own, at, x.codes + g * width, x.sums[g], x.scales[g]};
    };
    __m512 sums[kHalves] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t g = 0; g < full; ++g) add_one<S, KIND, ZEROS>(coarse(g), middle, blocks, 0, sums);
    if (last) add_one<S, KIND, ZEROS>(coarse(full), middle, last / 4, last % 4, sums);
    __mmask16 real[kHalves];
    UNROLL
    for (int h = 0; h < kHalves; ++h) {
        const int64_t count = target.columns - 16 * h;
        real[h] = count >= 16 ? 0xffff : static_cast<__mmask16>(count > 0 ? (1 << count) - 1 : 0);
        if (target.bias) {
            const __m512 bias = _mm512_maskz_loadu_ps(real[h], target.bias + 16 * h);
            sums[h] = _mm512_add_ps(sums[h], bias);
        }
    }
    for (int64_t g = 0; g < x.groups; ++g) {
        const int64_t entry = x.fine_begins[g];
        if (entry == x.fine_begins[g + 1]) continue;
        OneGroup fine = coarse(g);
        fine.x = x.fine_codes + entry * fine_width(m);
        fine.sum = x.fine_sums[entry];
        fine.scale = x.fine_scales[entry];
        const bool whole = g < full;
        add_one<S, KIND, ZEROS>(fine, middle, whole ? blocks : last / 4, whole ? 0 : last % 4,
                                sums);
    }
    UNROLL
    for (int h = 0; h < kHalves; ++h) _mm512_mask_storeu_ps(target.out + 16 * h, real[h], sums[h]);
}

template <Stored S, int32_t KIND>
void one_row_by_zeros(const edgelm_matrix& m, const uint8_t* panel, const Activations& x,
                      const Target& target) {
    switch (m.zeros) {
        case EDGELM_ZEROS_NONE: return one_row_of<S, KIND, EDGELM_ZEROS_NONE>(m, panel, x, target);
        case EDGELM_ZEROS_INT: return one_row_of<S, KIND, EDGELM_ZEROS_INT>(m, panel, x, target);
        default: return one_row_of<S, KIND, EDGELM_ZEROS_FLOAT>(m, panel, x, target);
    }
}

template <Stored S>
void one_row(const edgelm_matrix& m, const uint8_t* panel, const Activations& x,
             const Target& target) {
    switch (m.scales) {
        case EDGELM_FLOAT32: return one_row_by_zeros<S, EDGELM_FLOAT32>(m, panel, x, target);
        case EDGELM_FLOAT16: return one_row_by_zeros<S, EDGELM_FLOAT16>(m, panel, x, target);
        default: return one_row_by_zeros<S, EDGELM_BFLOAT16>(m, panel, x, target);
    }
}

}  // namespace
