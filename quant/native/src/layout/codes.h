// Codes, scales and minima of a layout one by one; vectors read many at once and find the same.
#pragma once

#include "layout/floats.h"
#include "layout/layout.h"

namespace {

// The codes of inputs j (low) and j + 4 (high) of row r in a half of a step.
struct Pair {
    int32_t low, high;
};

// The pair at byte p = 4 r + j of a half.
inline Pair pair_at(const uint8_t* half, int32_t bits, int64_t p) {
    if (bits == 8) return {half[p], half[kNibbles + p]};
    Pair pair{half[p] & 15, half[p] >> 4};
    const int upper = bits - 4;
    if (upper == 0) return pair;
    const int64_t width = 16 * upper;
    const int32_t both = half[kNibbles + p % width] >> p / width * (2 * upper);
    const int32_t mask = (1 << upper) - 1;
    pair.low |= (both & mask) << 4;
    pair.high |= (both >> upper & mask) << 4;
    return pair;
}

// Writes it; upper bits are added to bytes that were zero.
inline void put_pair(uint8_t* half, int32_t bits, int64_t p, Pair pair) {
    if (bits == 8) {
        half[p] = static_cast<uint8_t>(pair.low);
        half[kNibbles + p] = static_cast<uint8_t>(pair.high);
        return;
    }
    half[p] = static_cast<uint8_t>((pair.low & 15) | (pair.high & 15) << 4);
    const int upper = bits - 4;
    if (upper == 0) return;
    const int64_t width = 16 * upper;
    const int32_t both = pair.low >> 4 | pair.high >> 4 << upper;
    half[kNibbles + p % width] |= static_cast<uint8_t>(both << p / width * (2 * upper));
}

// The code of row `row` and input `i` of a step.
inline int32_t code_in(const edgelm_matrix& m, const uint8_t* step, int64_t row, int64_t i) {
    const uint8_t* half = step + row / 16 * (step_bytes(m.bits) / 2);
    const Pair pair = pair_at(half, m.bits, row % 16 * 4 + i % 4);
    return i < 4 ? pair.low : pair.high;
}

// Number `row` of parameters `bytes`, which where coded are factors of supers from `super` on.
inline float read_parameter(const edgelm_matrix& m, const uint8_t* bytes, const Group& group,
                            int64_t super, int64_t row) {
    if (!m.coded) return read_float(bytes, m.scales, row);
    const float code = static_cast<float>(static_cast<int8_t>(bytes[row]));
    return code * read_float(group.supers, m.scales, super + row);
}

inline float read_scale(const edgelm_matrix& m, const Group& group, int64_t row) {
    return read_parameter(m, group.scales, group, 0, row);
}

inline float read_minimum(const edgelm_matrix& m, const Group& group, int64_t row) {
    return read_parameter(m, group.zeros, group, kPanel, row);
}

}  // namespace
