// What the tiles of both kinds of products have in common, whatever vectors they are made of.
//
// A tile is some rows of activations times some vectors of a panel's outputs, whose sums stay in
// registers. The vectors of an instruction set are a struct `V` (vector_avx2.h and its like):
//     Floats, Ints, Bytes, kLanes      kLanes numbers of 32 bits, and as many bytes as they take
//     zero, fill, load, store, add, mul, sub, fma, to_floats; fill_ints, add_ints, ...
//     load_floats(array, kind, v)      numbers v * kLanes and on of 32 in a type of edgelm_float
//     load_wide(bytes, v)              likewise bytes without a sign, as integers
// and what rounded/tiles.h and exact/tiles.h name besides.
#pragma once

#include "isa/compiler.h"
#include "layout/layout.h"
#include "products/target.h"

namespace {

// A tile of ROWS rows by VECTORS vectors.
template <int ROWS, int VECTORS>
struct Shape {
    static constexpr int kRows = ROWS, kVectors = VECTORS;
};

// Shapes in the order in which they are tried, the last of one row.
template <class... SHAPES>
struct Shapes {
    // tile(shape, row) for shapes that together cover all rows.
    template <class F>
    static void cover(int64_t rows, F tile) {
        int64_t row = 0;
        const auto repeat = [&](auto shape) {
            for (; rows - row >= shape.kRows; row += shape.kRows) tile(shape, row);
        };
        (repeat(SHAPES{}), ...);
    }
};

// What a matrix stores, as a type.
template <Stored S>
struct Kind {
    static constexpr Stored kStored = S;
};

// visit(kind) for a matrix of codes.
template <class F>
void by_codes(const edgelm_matrix& m, F visit) {
    switch (stored(m)) {
        case Stored::kInt4: return visit(Kind<Stored::kInt4>{});
        case Stored::kInt8: return visit(Kind<Stored::kInt8>{});
        default: return visit(Kind<Stored::kBook>{});
    }
}

// Where vector v's codes begin in a step: a part of the half of 16 rows that it lies in.
template <class V>
inline const uint8_t* vector_of(const uint8_t* step, int32_t bits, int64_t v) {
    constexpr int64_t kOfHalf = 16 / V::kLanes;
    return step + v / kOfHalf * (step_bytes(bits) / 2) + v % kOfHalf * (4 * V::kLanes);
}

template <class V, int ROWS, int VECTORS>
INLINE void clear(typename V::Floats (&sums)[ROWS][VECTORS]) {
    for (auto& own : sums) {
        for (auto& sum : own) sum = V::zero();
    }
}

// The sums of rows from `row` on and vectors from `begin` on to where they belong.
template <class V, int ROWS, int VECTORS>
INLINE void store_tile(const Target& target, int64_t row, int64_t begin,
                       const typename V::Floats (&sums)[ROWS][VECTORS]) {
    UNROLL
    for (int r = 0; r < ROWS; ++r) {
        float values[VECTORS * V::kLanes];
        UNROLL
        for (int v = 0; v < VECTORS; ++v) V::store(values + V::kLanes * v, sums[r][v]);
        store(target, row + r, begin * V::kLanes, values, VECTORS * V::kLanes);
    }
}

}  // namespace
