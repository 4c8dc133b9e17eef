// Rows of activations rounded to 8 bits per group, and what a product needs of them.
#pragma once

#include <string.h>

#include "layout.h"

// Plain data without member functions: shared between files of different instruction sets.
struct Activations {
    int8_t* codes;    // [rows, stride], zeros behind the last input
    float* scales;    // [rows, groups]
    int32_t* sums;    // [rows, groups], of a group's codes
    int64_t rows;
    int64_t stride;
    int64_t groups;
};

// Where a panel's results go: `columns` of its 32 rows of the matrix exist.
struct Target {
    float* out;
    int64_t stride;
    int64_t columns;
    const float* bias;  // of this panel, or null
};

namespace {

// An odd number of cache lines, so that the rows of a tile do not fall into one cache set.
inline int64_t activation_stride(const edgelm_matrix& m) {
    return (ceil_div(m.inputs, 64) | 1) * 64;
}

inline Activations place(const edgelm_matrix& m, int64_t rows, uint8_t* workspace) {
    const int64_t groups = group_count(m), stride = activation_stride(m);
    uint8_t* scales = workspace + rows * stride;
    return {reinterpret_cast<int8_t*>(workspace), reinterpret_cast<float*>(scales),
            reinterpret_cast<int32_t*>(scales + rows * groups * 4), rows, stride, groups};
}

inline uint32_t magnitude_bits(float number) {
    uint32_t bits;
    memcpy(&bits, &number, 4);
    return bits & 0x7fffffffu;
}

// `count` numbers to codes in -127..127 that mean code * scale; returns the scale. A group with a
// number that is not finite gets the scale NaN, so that the product says so.
inline float round_group(const float* x, int64_t count, int8_t* codes, int32_t* sum) {
    constexpr uint32_t infinite = 0x7f800000u;
    constexpr float to_nearest = 12582912.0f;  // 1.5 * 2^23: adding it leaves no fraction
    constexpr float smallest = 1e-30f;         // below it 127 / largest would overflow
    uint32_t bits = 0;
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t own = magnitude_bits(x[i]);
        bits = own > bits ? own : bits;
    }
    float largest;
    memcpy(&largest, &bits, 4);
    const bool finite = bits < infinite;
    if (!finite || largest < smallest) {
        memset(codes, 0, static_cast<size_t>(count));
        *sum = 0;
        return finite ? 0.0f : largest - largest;
    }
    const float inverse = 127.0f / largest;
    int32_t total = 0;
    for (int64_t i = 0; i < count; ++i) {
        const int32_t code = static_cast<int32_t>((x[i] * inverse + to_nearest) - to_nearest);
        codes[i] = static_cast<int8_t>(code);
        total += code;
    }
    *sum = total;
    return largest / 127.0f;
}

inline void round_row(const edgelm_matrix& m, const float* x, const Activations& into,
                      int64_t row) {
    int8_t* codes = into.codes + row * into.stride;
    const int64_t width = group_inputs(m);
    for (int64_t g = 0; g < into.groups; ++g) {
        const int64_t first = g * width, left = m.inputs - first;
        const int64_t at = row * into.groups + g;
        into.scales[at] =
            round_group(x + first, left < width ? left : width, codes + first, into.sums + at);
    }
    memset(codes + m.inputs, 0, static_cast<size_t>(into.stride - m.inputs));
}

// Columns [from, from + count) of a panel in row `row`, as far as they exist.
inline void store(const Target& target, int64_t row, int64_t from, const float* values,
                  int64_t count) {
    float* out = target.out + row * target.stride;
    const float* bias = target.bias;
    for (int64_t c = from; c < from + count && c < target.columns; ++c) {
        out[c] = bias ? values[c - from] + bias[c] : values[c - from];
    }
}

}  // namespace
