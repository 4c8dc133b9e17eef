// Rows of activations rounded to 8 bits per group, and what a product needs of them.
//
// A few inputs of real models are far larger than the rest, and the error of their groups is most
// of a product's error. Groups whose scale stands out (is_coarse) are therefore rounded twice: what
// the first rounding left is a second, fine row of codes, listed by group so that products take
// them in tiles like the first.
#pragma once

#include <string.h>

#include "products/workspace.h"

// Plain data without member functions: shared between files of different instruction sets.
struct Activations {
    int8_t* codes;    // [rows, stride], zeros behind the last input
    float* scales;    // [rows, groups]
    int32_t* sums;    // [rows, groups], of a group's codes
    int64_t rows;
    int64_t stride;
    int64_t groups;
    uint8_t* coarse;       // [rows, groups], whether the group has a fine row too
    int64_t* fine_begins;  // [groups + 1], where a group's fine rows begin
    int32_t* fine_rows;    // [fine], which row each belongs to, rising within a group
    int8_t* fine_codes;    // [fine, width], zeros behind the last input
    float* fine_scales;    // [fine]
    int32_t* fine_sums;    // [fine]
};

// Some rows' codes of one group: row r at codes + r * stride, its numbers at [r * step].
struct Coded {
    const int8_t* codes;
    int64_t stride;
    const float* scales;
    const int32_t* sums;
    int64_t step;
};

namespace {

// Groups of a row that can be coarse, at most.
inline int64_t most_fine(const edgelm_matrix& m) { return 2 * group_count(m) / 3; }

// Fine codes of a group, in whole steps.
inline int64_t fine_width(const edgelm_matrix& m) {
    return ceil_div(group_inputs(m), kStep) * kStep;
}

inline Activations place(const edgelm_matrix& m, int64_t rows, Cutter& cut) {
    const int64_t groups = group_count(m), fine = rows * most_fine(m);
    Activations x{};
    x.rows = rows;
    x.stride = activation_stride(m);
    x.groups = groups;
    x.codes = cut.take<int8_t>(rows * x.stride);
    x.scales = cut.take<float>(rows * groups);
    x.sums = cut.take<int32_t>(rows * groups);
    x.coarse = cut.take<uint8_t>(rows * groups);
    x.fine_begins = cut.take<int64_t>(groups + 1);
    x.fine_rows = cut.take<int32_t>(fine);
    x.fine_codes = cut.take<int8_t>(fine * fine_width(m));
    x.fine_scales = cut.take<float>(fine);
    x.fine_sums = cut.take<int32_t>(fine);
    return x;
}

inline Coded rows_of(const Activations& x, int64_t row, int64_t g, int64_t first) {
    const int64_t at = row * x.groups + g;
    return {x.codes + row * x.stride + first, x.stride, x.scales + at, x.sums + at, x.groups};
}

inline Coded fine_of(const edgelm_matrix& m, const Activations& x, int64_t entry) {
    const int64_t width = fine_width(m);
    return {x.fine_codes + entry * width, width, x.fine_scales + entry, x.fine_sums + entry, 1};
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

// Whether a group's share of a row's error is more than 1.5 times the average: its second
// rounding then pays. Fewer than two thirds of the groups can be.
inline bool is_coarse(float scale, float squares, int64_t groups) {
    return scale * scale * static_cast<float>(groups) > 1.5f * squares;
}

inline void round_row(const edgelm_matrix& m, const float* x, const Activations& into,
                      int64_t row) {
    int8_t* codes = into.codes + row * into.stride;
    const int64_t width = group_inputs(m), at = row * into.groups;
    float squares = 0.0f;
    for (int64_t g = 0; g < into.groups; ++g) {
        const int64_t first = g * width, left = m.inputs - first;
        const float scale = round_group(x + first, left < width ? left : width, codes + first,
                                        into.sums + at + g);
        into.scales[at + g] = scale;
        squares += scale * scale;
    }
    memset(codes + m.inputs, 0, static_cast<size_t>(into.stride - m.inputs));
    for (int64_t g = 0; g < into.groups; ++g) {
        into.coarse[at + g] = is_coarse(into.scales[at + g], squares, into.groups);
    }
}

// The fine rows of group `g`: what rounding left of x, rounded.
inline void refine_group(const edgelm_matrix& m, const float* x, int64_t x_stride,
                         const Activations& into, int64_t g) {
    const int64_t width = group_inputs(m), first = g * width, left = m.inputs - first;
    const int64_t count = left < width ? left : width, fine = fine_width(m);
    int64_t entry = into.fine_begins[g];
    if (entry == into.fine_begins[g + 1]) return;
    for (int64_t row = 0; row < into.rows; ++row) {
        const int64_t at = row * into.groups + g;
        if (!into.coarse[at]) continue;
        const int8_t* codes = into.codes + row * into.stride + first;
        const float* own = x + row * x_stride + first;
        float rest[kMostGroup];
        for (int64_t i = 0; i < count; ++i) {
            rest[i] = own[i] - static_cast<float>(codes[i]) * into.scales[at];
        }
        int8_t* to = into.fine_codes + entry * fine;
        into.fine_scales[entry] = round_group(rest, count, to, into.fine_sums + entry);
        memset(to + count, 0, static_cast<size_t>(fine - count));
        into.fine_rows[entry++] = static_cast<int32_t>(row);
    }
}

}  // namespace
