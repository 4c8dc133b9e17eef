// Products of rounded activations in tiles, over the vectors `V` of an instruction set (tiles.h),
// which for them has
//     base(S)              what `dot` subtracts from each stored byte by itself; a book's bytes
//                          come without it
//     Inputs, inputs(x)    8 codes of activations, as `dot` takes them
//     dot<S>(sums, low, high, x)  adds products of 4 bytes each to a sum: `low` are a vector's
//                          codes of inputs 0-3 and `high` those of 4-7
//     repeat(bytes), look_up(bytes, indices)   a table of 16 bytes, and what it says
//     kPairs               whether `dot_pairs` takes even numbers of rows, two by two
//     RoundedShapes        the tiles
#pragma once

#include "products/rounded/activations.h"
#include "products/rounded/book.h"
#include "products/tiles.h"

namespace {

// How far ahead one row's product asks for codes, which are read once and from memory.
constexpr int64_t kAhead = 4 << 10;

// What a vector's codes are multiplied as: themselves, or bytes of the numbers they stand for.
template <class V, Stored S>
INLINE void load_codes(const uint8_t* step, int64_t v, typename V::Bytes plane,
                       typename V::Bytes& low, typename V::Bytes& high) {
    stored_codes<V, S>(step, v, low, high);
    if (is_book(S)) {
        high = V::look_up(plane, high);
        low = V::look_up(plane, low);
    }
}

// What sums of codes times activations start from: minus the zero times the activations' sum.
template <class V, Stored S, int VECTORS>
INLINE void preset(const edgelm_matrix& m, const uint8_t* zeros, int64_t begin, int32_t sum,
                   typename V::Ints (&starts)[VECTORS]) {
    const bool stored = m.zeros == EDGELM_ZEROS_INT;
    const int32_t middle = middle_of(S, m.zeros) - V::base(S);
    for (auto& start : starts) start = V::fill_ints(stored ? -sum : -sum * middle);
    if (!stored) return;
    const typename V::Ints base = V::fill_ints(V::base(S));
    UNROLL
    for (int v = 0; v < VECTORS; ++v) {
        starts[v] = V::mul_ints(V::sub_ints(V::load_wide(zeros, begin + v), base), starts[v]);
    }
}

// The codes of a group's vectors, or one plane of what they stand for, times rows of `x`.
template <class V, Stored S, int ROWS, int VECTORS>
INLINE void dot_group(const Group& group, typename V::Bytes plane, const Coded& x, int64_t begin,
                      typename V::Ints (&dots)[ROWS][VECTORS]) {
    if constexpr (V::kPairs && ROWS % 2 == 0) {
        return V::template dot_pairs<S, ROWS / 2, VECTORS>(group, plane, x, begin, dots);
    }
    const int8_t* in = x.codes;
    const uint8_t* at = group.codes;
    constexpr int64_t kBytes = step_bytes(bits_of(S));
    for (int64_t s = 0; s < group.steps; ++s, in += kStep, at += kBytes) {
        for (int64_t line = 0; ROWS == 1 && line < kBytes; line += kLine) {
            PREFETCH(at + kAhead + line);
        }
        typename V::Inputs own[ROWS];
        UNROLL
        for (int r = 0; r < ROWS; ++r) own[r] = V::inputs(in + r * x.stride);
        UNROLL
        for (int v = 0; v < VECTORS; ++v) {
            typename V::Bytes low, high;
            load_codes<V, S>(at, begin + v, plane, low, high);
            UNROLL
            for (int r = 0; r < ROWS; ++r) {
                dots[r][v] = V::template dot<S>(dots[r][v], low, high, own[r]);
            }
        }
    }
}

// Rows of `x` times VECTORS vectors of a group, from vector `begin` on, added to their sums.
template <class V, Stored S, int ROWS, int VECTORS>
INLINE void add_group(const edgelm_matrix& m, const Book<V>& book, const Group& group,
                      const Coded& x, int64_t begin, typename V::Floats (&sums)[ROWS][VECTORS]) {
    using Floats = typename V::Floats;
    typename V::Ints dots[ROWS][VECTORS];
    constexpr int kCount = plane_count(S);
    UNROLL
    for (int plane = 0; plane < kCount; ++plane) {
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
            typename V::Ints starts[VECTORS];
            preset<V, S>(m, group.zeros, begin, x.sums[r * x.step], starts);
            UNROLL
            for (int v = 0; v < VECTORS; ++v) {
                dots[r][v] =
                    plane == 0 ? starts[v] : V::add_ints(V::times_256(dots[r][v]), starts[v]);
            }
        }
        dot_group<V, S, ROWS, VECTORS>(group, book.planes[plane], x, begin, dots);
    }
    Floats scales[VECTORS];
    load_scales<V>(m, group.scales, group.supers, begin, scales);
    UNROLL
    for (int v = 0; v < VECTORS; ++v) {
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const Floats a = V::fill(x.scales[r * x.step] * book.unit);
            sums[r][v] = V::fma(V::to_floats(dots[r][v]), V::mul(scales[v], a), sums[r][v]);
        }
    }
    if (m.zeros != EDGELM_ZEROS_FLOAT) return;
    Floats minima[VECTORS];
    load_minima<V>(m, group.zeros, group.supers, begin, minima);
    UNROLL
    for (int v = 0; v < VECTORS; ++v) {
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const float total = static_cast<float>(x.sums[r * x.step]) * x.scales[r * x.step];
            sums[r][v] = V::fma(V::fill(total), minima[v], sums[r][v]);
        }
    }
}

// ROWS rows of activations times VECTORS vectors of a panel, from vector `begin` on.
template <class V, Stored S, int ROWS, int VECTORS>
void tile(const edgelm_matrix& m, const Book<V>& book, const uint8_t* panel, const Activations& x,
          int64_t row, int64_t begin, const Target& target) {
    typename V::Floats sums[ROWS][VECTORS];
    clear<V>(sums);
    Group group = Group::first_of(m, panel);
    for (int64_t g = 0; g < x.groups; ++g, group.next(m)) {
        const Coded rows = rows_of(x, row, g, group.first);
        add_group<V, S, ROWS, VECTORS>(m, book, group, rows, begin, sums);
    }
    store_tile<V>(target, row, begin, sums);
}

// A fine row times its group, added to what the target has.
template <class V, Stored S>
void fine_tile(const edgelm_matrix& m, const Book<V>& book, const Group& group,
               const Activations& x, int64_t entry, const Target& target) {
    constexpr int kVectors = kPanel / V::kLanes;
    float values[kPanel] = {};
    fetch(target, x.fine_rows[entry], values);
    typename V::Floats sums[1][kVectors];
    UNROLL
    for (int v = 0; v < kVectors; ++v) sums[0][v] = V::load(values + V::kLanes * v);
    add_group<V, S, 1, kVectors>(m, book, group, fine_of(m, x, entry), 0, sums);
    UNROLL
    for (int v = 0; v < kVectors; ++v) V::store(values + V::kLanes * v, sums[0][v]);
    put_back(target, x.fine_rows[entry], values);
}

template <class V, Stored S>
void rows_by_tiles(const edgelm_matrix& m, const uint8_t* panel, const Activations& x,
                   const Target& target) {
    const Book<V> book(m);
    V::RoundedShapes::cover(x.rows, [&](auto shape, int64_t row) {
        for (int64_t begin = 0; begin < kPanel / V::kLanes; begin += shape.kVectors) {
            tile<V, S, shape.kRows, shape.kVectors>(m, book, panel, x, row, begin, target);
        }
    });
    for (int64_t g = 0; g < x.groups; ++g) {
        if (x.fine_begins[g] == x.fine_begins[g + 1]) continue;
        const Group group = Group::at(m, panel, g);
        for (int64_t entry = x.fine_begins[g]; entry < x.fine_begins[g + 1]; ++entry) {
            fine_tile<V, S>(m, book, group, x, entry, target);
        }
    }
}

// All rows of rounded activations times a panel: what `Isa::panel` asks for.
template <class V>
void rounded_panel(const edgelm_matrix& m, const uint8_t* panel, const Activations& x,
                   const Target& target) {
    by_codes(m, [&](auto kind) { rows_by_tiles<V, kind.kStored>(m, panel, x, target); });
}

}  // namespace
