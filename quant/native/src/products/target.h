// Where the sums of a panel go.
#pragma once

#include <string.h>

#include "layout/layout.h"

// Where a panel's results go: `columns` of its 32 rows of the matrix exist.
struct Target {
    float* out;
    int64_t stride;
    int64_t columns;
    const float* bias;  // of this panel, or null
};

namespace {

// Columns [from, from + count) of a panel in row `row`, as far as they exist.
inline void store(const Target& target, int64_t row, int64_t from, const float* values,
                  int64_t count) {
    float* out = target.out + row * target.stride;
    const float* bias = target.bias;
    for (int64_t c = from; c < from + count && c < target.columns; ++c) {
        out[c] = bias ? values[c - from] + bias[c] : values[c - from];
    }
}

// Columns of a panel in row `row` as far as they exist, to add to.
inline void fetch(const Target& target, int64_t row, float* values) {
    const float* from = target.out + row * target.stride;
    if (target.columns == kPanel) {
        memcpy(values, from, kPanel * sizeof(float));  // of a known size: two moves, no call
    } else {
        memcpy(values, from, static_cast<size_t>(target.columns) * sizeof(float));
    }
}

// The same back again.
inline void put_back(const Target& target, int64_t row, const float* values) {
    float* to = target.out + row * target.stride;
    if (target.columns == kPanel) {
        memcpy(to, values, kPanel * sizeof(float));
    } else {
        memcpy(to, values, static_cast<size_t>(target.columns) * sizeof(float));
    }
}

}  // namespace
