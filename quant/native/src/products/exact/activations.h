// Rows of activations as they are, for products that do not round them.
//
// Every instruction set computes a row's sum alike: within a group two chains of fused
// multiply-adds, one over inputs 0-3 of each step of 8 and one over 4-7; then their sum times the
// scale is added to the row's. Integer codes are made floats less their zero, which is exact.
#pragma once

#include "layout/layout.h"

// Plain data, as in rounded/activations.h.
struct ExactRows {
    const float* x;  // row r at x + r * stride; zeros from the last input to a whole step
    int64_t stride;
    int64_t rows;
    int64_t groups;
    const float* sums;  // [rows, groups], of a group's activations where zeros are floats
};

namespace {

inline bool is_exact(const edgelm_matrix& m) {
    return m.activations == EDGELM_EXACT || m.codes == EDGELM_FLOATS;
}

// Whether rows must be copied so that a whole step can be read at their end.
inline bool needs_padding(const edgelm_matrix& m) { return m.inputs % kStep != 0; }

inline float sum_of(const float* x, int64_t count) {
    float sum = 0.0f;
    for (int64_t i = 0; i < count; ++i) sum += x[i];
    return sum;
}

}  // namespace
