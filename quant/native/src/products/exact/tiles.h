// Products of activations as they are in tiles, over the vectors `V` of an instruction set
// (tiles.h), which for them has
//     Table, table<S>(m)      the numbers of codes, where they are looked up
//     numbers<S>(table, codes)   the number of the lowest code of each lane
//     load_ints, shift_down<BITS>, as_ints     bytes as they lie in lanes
//     kTogether               vectors whose numbers are made before any is multiplied
//     ExactShapes             the tiles
#pragma once

#include "layout/codebooks.h"
#include "products/exact/activations.h"
#include "products/tiles.h"

namespace {

// What a group's codes are turned into numbers with.
template <class V, int VECTORS>
struct Terms {
    typename V::Table table;
    typename V::Floats zero[VECTORS];
};

template <class V, Stored S, int VECTORS>
INLINE Terms<V, VECTORS> terms_of(const edgelm_matrix& m) {
    Terms<V, VECTORS> terms;
    terms.table = V::template table<S>(m);
    const int32_t middle = is_float(S) ? 0 : middle_of(S, m.zeros);
    for (auto& zero : terms.zero) zero = V::fill(static_cast<float>(middle));
    return terms;
}

// A vector's codes of inputs 0-3 and those of 4-7, the first of each in the low bits.
template <class V, Stored S>
INLINE void open_step(const uint8_t* step, int64_t v, typename V::Ints& low,
                      typename V::Ints& high) {
    if (is_float(S)) return;
    if constexpr (upper_bits(S) > 0) {
        typename V::Bytes codes[2];
        stored_codes<V, S>(step, v, codes[0], codes[1]);
        low = V::as_ints(codes[0]);
        high = V::as_ints(codes[1]);
        return;
    }
    const uint8_t* at = vector_of<V>(step, bits_of(S), v);
    low = V::load_ints(at);
    high = S == Stored::kInt8 ? V::load_ints(at + 64) : V::template shift_down<4>(low);
}

// Input `i` of vector v, whose zero is given; `codes` moves on by one input.
template <class V, Stored S>
INLINE typename V::Floats number(const typename V::Table& table, typename V::Floats zero,
                                 const uint8_t* step, int64_t v, int i, typename V::Ints& codes) {
    if (S == Stored::kFloat32) return V::load_floats(step + i * 128, EDGELM_FLOAT32, v);
    if (S == Stored::kFloat16) return V::load_floats(step + i * 64, EDGELM_FLOAT16, v);
    if (S == Stored::kBfloat16) return V::load_floats(step + i * 64, EDGELM_BFLOAT16, v);
    const typename V::Ints own = codes;
    codes = V::template shift_down<8>(codes);
    const typename V::Floats found = V::template numbers<S>(table, own);
    return S == Stored::kBook ? found : V::sub(found, zero);
}

// ROWS rows from `x` on times VECTORS vectors of a group from `begin` on, two chains per sum.
template <class V, Stored S, int ROWS, int VECTORS>
INLINE void dot_group(const Terms<V, VECTORS>& terms, const Group& group, int64_t begin,
                      const float* x, int64_t stride,
                      typename V::Floats (&dots)[2][ROWS][VECTORS]) {
    constexpr int kMany = V::kTogether;
    const uint8_t* step = group.codes;
    for (int64_t s = 0; s < group.steps; ++s, x += kStep, step += step_bytes(bits_of(S))) {
        UNROLL
        for (int v = 0; v < VECTORS; v += kMany) {
            typename V::Ints codes[2][kMany];
            UNROLL
            for (int t = 0; t < kMany; ++t) {
                open_step<V, S>(step, begin + v + t, codes[0][t], codes[1][t]);
            }
            UNROLL
            for (int j = 0; j < 4; ++j) {
                UNROLL
                for (int chain = 0; chain < 2; ++chain) {
                    const int i = j + 4 * chain;
                    typename V::Floats w[kMany];
                    UNROLL
                    for (int t = 0; t < kMany; ++t) {
                        w[t] = number<V, S>(terms.table, terms.zero[v + t], step, begin + v + t,
                                            i, codes[chain][t]);
                    }
                    UNROLL
                    for (int r = 0; r < ROWS; ++r) {
                        const typename V::Floats a = V::fill(x[r * stride + i]);
                        UNROLL
                        for (int t = 0; t < kMany; ++t) {
                            dots[chain][r][v + t] = V::fma(a, w[t], dots[chain][r][v + t]);
                        }
                    }
                }
            }
        }
    }
}

// A group's dot products, scaled and moved by its zeros, added to the sums.
template <class V, Stored S, int ROWS, int VECTORS>
INLINE void add_group(const edgelm_matrix& m, Terms<V, VECTORS>& terms, const Group& group,
                      const ExactRows& x, int64_t row, int64_t begin, int64_t g,
                      typename V::Floats (&sums)[ROWS][VECTORS]) {
    using Floats = typename V::Floats;
    if (m.zeros == EDGELM_ZEROS_INT) {
        for (int v = 0; v < VECTORS; ++v) {
            terms.zero[v] = V::to_floats(V::load_wide(group.zeros, begin + v));
        }
    }
    Floats dots[2][ROWS][VECTORS];
    clear<V>(dots[0]);
    clear<V>(dots[1]);
    const float* from = x.x + row * x.stride + group.first;
    dot_group<V, S, ROWS, VECTORS>(terms, group, begin, from, x.stride, dots);
    Floats scales[VECTORS];
    if (is_float(S)) {
        for (auto& scale : scales) scale = V::fill(1.0f);
    } else {
        load_scales<V>(m, group.scales, group.supers, begin, scales);
    }
    UNROLL
    for (int v = 0; v < VECTORS; ++v) {
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
            sums[r][v] = V::fma(V::add(dots[0][r][v], dots[1][r][v]), scales[v], sums[r][v]);
        }
    }
    if (m.zeros != EDGELM_ZEROS_FLOAT) return;
    Floats minima[VECTORS];
    load_minima<V>(m, group.zeros, group.supers, begin, minima);
    UNROLL
    for (int v = 0; v < VECTORS; ++v) {
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const Floats sum = V::fill(x.sums[(row + r) * x.groups + g]);
            sums[r][v] = V::fma(sum, minima[v], sums[r][v]);
        }
    }
}

// ROWS rows of activations times VECTORS vectors of a panel, from vector `begin` on.
template <class V, Stored S, int ROWS, int VECTORS>
INLINE void tile(const edgelm_matrix& m, const uint8_t* panel, const ExactRows& x, int64_t row,
                 int64_t begin, const Target& target) {
    typename V::Floats sums[ROWS][VECTORS];
    clear<V>(sums);
    Terms<V, VECTORS> terms = terms_of<V, S, VECTORS>(m);
    Group group = Group::first_of(m, panel);
    for (int64_t g = 0; g < x.groups; ++g, group.next(m)) {
        add_group<V, S, ROWS, VECTORS>(m, terms, group, x, row, begin, g, sums);
    }
    store_tile<V>(target, row, begin, sums);
}

// ROWS rows of activations times a panel, VECTORS vectors at a time.
template <class V, Stored S, int ROWS, int VECTORS>
void tiles(const edgelm_matrix& m, const uint8_t* panel, const ExactRows& x, int64_t row,
           const Target& target) {
    for (int64_t begin = 0; begin < kPanel / V::kLanes; begin += VECTORS) {
        tile<V, S, ROWS, VECTORS>(m, panel, x, row, begin, target);
    }
}

template <class V, Stored S>
void rows_by_tiles(const edgelm_matrix& m, const uint8_t* panel, const ExactRows& x,
                   const Target& target) {
    V::ExactShapes::cover(x.rows, [&](auto shape, int64_t row) {
        tiles<V, S, shape.kRows, shape.kVectors>(m, panel, x, row, target);
    });
}

// All rows of activations as they are times a panel: what `Isa::exact_panel` asks for.
template <class V>
void exact_panel(const edgelm_matrix& m, const uint8_t* panel, const ExactRows& x,
                 const Target& target) {
    switch (stored(m)) {
        case Stored::kFloat16:
            return rows_by_tiles<V, Stored::kFloat16>(m, panel, x, target);
        case Stored::kBfloat16:
            return rows_by_tiles<V, Stored::kBfloat16>(m, panel, x, target);
        case Stored::kFloat32:
            return rows_by_tiles<V, Stored::kFloat32>(m, panel, x, target);
        case Stored::kIq4:  // numbers are looked up as float32, whatever the book
            return rows_by_tiles<V, Stored::kBook>(m, panel, x, target);
        default:
            by_codes(m, [&](auto kind) { rows_by_tiles<V, kind.kStored>(m, panel, x, target); });
    }
}

}  // namespace
