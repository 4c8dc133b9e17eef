// What the tiles of both kinds of products have in common, whatever vectors they are made of.
//
// A tile is some rows of activations times some vectors of a panel's outputs, whose sums stay in
// registers. The vectors of an instruction set are a struct `V` (vector_avx2.h and its like):
//     Floats, Ints, Bytes, kLanes      kLanes numbers of 32 bits, and as many bytes as they take
//     zero, fill, load, store, add, mul, sub, fma, to_floats; fill_ints, add_ints, ...
//     load_floats(array, kind, v)      numbers v * kLanes and on of 32 in a type of edgelm_float
//     load_wide, load_signed(bytes, v)   likewise bytes without a sign or with one, as integers
//     load_bytes, low_nibbles, high_nibbles    a vector of bytes, and half of each
//     uppers<S>(bytes, v)              upper bits of vector v of a half of 16 rows: those of low
//                                      codes from bit 4 of each byte on, then those of high codes
//     shift_bytes<BITS>(bytes)         each byte moved down; bits of its neighbour may come in
//     add_masked<MASK>(a, b)           a | (b & MASK)
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
        case Stored::kInt5: return visit(Kind<Stored::kInt5>{});
        case Stored::kInt6: return visit(Kind<Stored::kInt6>{});
        case Stored::kInt8: return visit(Kind<Stored::kInt8>{});
        case Stored::kIq4: return visit(Kind<Stored::kIq4>{});
        default: return visit(Kind<Stored::kBook>{});
    }
}

// Where vector v's codes begin in a step: a part of the half of 16 rows that it lies in.
template <class V>
inline const uint8_t* vector_of(const uint8_t* step, int32_t bits, int64_t v) {
    constexpr int64_t kOfHalf = 16 / V::kLanes;
    return step + v / kOfHalf * (step_bytes(bits) / 2) + v % kOfHalf * (4 * V::kLanes);
}

// A vector's codes as they are stored: inputs 0-3 of each output in `low`, 4-7 in `high`.
template <class V, Stored S>
INLINE void stored_codes(const uint8_t* step, int64_t v, typename V::Bytes& low,
                         typename V::Bytes& high) {
    const uint8_t* at = vector_of<V>(step, bits_of(S), v);
    low = V::load_bytes(at);
    if (S == Stored::kInt8) {
        high = V::load_bytes(at + kNibbles);
        return;
    }
    high = V::high_nibbles(low);
    low = V::low_nibbles(low);
    if constexpr (upper_bits(S) > 0) {
        constexpr int64_t kOfHalf = 16 / V::kLanes;
        constexpr int32_t kMask = ((1 << upper_bits(S)) - 1) << 4;
        const uint8_t* half = step + v / kOfHalf * (step_bytes(bits_of(S)) / 2);
        const typename V::Bytes upper = V::template uppers<S>(half + kNibbles, v % kOfHalf);
        low = V::template add_masked<kMask>(low, upper);
        high = V::template add_masked<kMask>(high, V::template shift_bytes<upper_bits(S)>(upper));
    }
}

// Scales of vectors from `begin` on of a group: floats, or where coded bytes times the supers.
template <class V, int VECTORS>
INLINE void load_scales(const edgelm_matrix& m, const uint8_t* scales, const uint8_t* supers,
                        int64_t begin, typename V::Floats (&into)[VECTORS]) {
    const bool coded = m.coded;
    const uint8_t* floats = coded ? supers : scales;
    UNROLL
    for (int v = 0; v < VECTORS; ++v) into[v] = V::load_floats(floats, m.scales, begin + v);
    if (!coded) return;
    UNROLL
    for (int v = 0; v < VECTORS; ++v) {
        into[v] = V::mul(V::to_floats(V::load_signed(scales, begin + v)), into[v]);
    }
}

// Minima likewise.
template <class V, int VECTORS>
INLINE void load_minima(const edgelm_matrix& m, const uint8_t* zeros, const uint8_t* supers,
                        int64_t begin, typename V::Floats (&into)[VECTORS]) {
    load_scales<V>(m, zeros, supers + kPanel * float_bytes(m.scales), begin, into);
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
