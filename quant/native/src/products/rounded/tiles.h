// Products of rounded activations in tiles, over the vectors `V` of an instruction set (tiles.h),
// which for them has
//     base(S)              what `dot` subtracts from each stored byte by itself; a book's bytes
//                          come without it
//     Inputs, inputs(x)    8 codes of activations, as `dot` takes them
//     dot<S>(sums, low, high, x)  adds products of 4 bytes each to a sum: `low` are a vector's
//                          codes of inputs 0-3 and `high` those of 4-7
//     repeat(bytes), look_up(bytes, indices)   a table of 16 bytes, and what it says
//     kUnpacks             whether many rows are multiplied from unpacked codes
//     kPairs               whether `dot_pairs` takes even numbers of rows, two by two
//     RoundedShapes        the tiles
#pragma once

#include "products/rounded/activations.h"
#include "products/rounded/book.h"
#include "products/tiles.h"

namespace {

// How far ahead one row's product asks for codes, which are read once and from memory.
constexpr int64_t kAhead = 4 << 10;

// Many rows are multiplied block by block. A part of the panel's codes is unpacked once for all rows
// of a block; it and their sums stay in the first cache.
constexpr int64_t kRowBlock = 64;          // rows of a block
constexpr int64_t kUnpackedInputs = 256;   // inputs of a part
constexpr int64_t kUnpackedGroups = 16;    // groups of a part, at most
constexpr int64_t kUnpackedRows = 8;       // the fewest rows that are worth it

// Bytes of a step: as it is stored, or unpacked, which lies as codes of 8 bits do.
constexpr int64_t bytes_of_step(Stored s, bool unpacked) {
    return step_bytes(unpacked ? 8 : bits_of(s));
}

// What a vector's codes are multiplied as: themselves, or bytes of the numbers they stand for.
template <class V, Stored S, bool UNPACKED = false>
INLINE void load_codes(const uint8_t* step, int64_t v, typename V::Bytes plane,
                       typename V::Bytes& low, typename V::Bytes& high) {
    if (UNPACKED) {
        const uint8_t* at = vector_of<V>(step, 8, v);
        low = V::load_bytes(at);
        high = V::load_bytes(at + kNibbles);
        return;
    }
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
template <class V, Stored S, int ROWS, int VECTORS, bool UNPACKED>
INLINE void dot_group(const Group& group, typename V::Bytes plane, const Coded& x, int64_t begin,
                      typename V::Ints (&dots)[ROWS][VECTORS]) {
    if constexpr (V::kPairs && ROWS % 2 == 0) {
        return V::template dot_pairs<S, ROWS / 2, VECTORS>(group, plane, x, begin, dots);
    }
    const int8_t* in = x.codes;
    const uint8_t* at = group.codes;
    constexpr int64_t kBytes = bytes_of_step(S, UNPACKED);
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
            load_codes<V, S, UNPACKED>(at, begin + v, plane, low, high);
            UNROLL
            for (int r = 0; r < ROWS; ++r) {
                dots[r][v] = V::template dot<S>(dots[r][v], low, high, own[r]);
            }
        }
    }
}

// Rows of `x` times VECTORS vectors of a group, from vector `begin` on, added to their sums.
template <class V, Stored S, int ROWS, int VECTORS, bool UNPACKED = false>
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
        dot_group<V, S, ROWS, VECTORS, UNPACKED>(group, book.planes[plane], x, begin, dots);
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

// Some groups of a panel with their codes unpacked.
template <class V, Stored S>
struct UnpackedGroups {
    alignas(64) uint8_t codes[kUnpackedInputs * kPanel];
    Group groups[kUnpackedGroups];
    int64_t count;

    // Takes what there is room for from `group`, the first of `left`, on; that becomes the next.
    void take(const edgelm_matrix& m, const Book<V>& book, Group& group, int64_t left) {
        uint8_t* to = codes;
        for (count = 0; count < kUnpackedGroups && count < left; ++count, group.next(m)) {
            const int64_t bytes = group.steps * step_bytes(8);
            if (to + bytes > codes + sizeof(codes)) return;
            groups[count] = group;
            groups[count].codes = to;
            const uint8_t* at = group.codes;
            for (int64_t s = 0; s < group.steps; ++s, at += step_bytes(bits_of(S))) {
                unpack(at, book, to);
                to += step_bytes(8);
            }
        }
    }

  private:
    static void unpack(const uint8_t* step, const Book<V>& book, uint8_t* to) {
        UNROLL
        for (int64_t v = 0; v < kPanel / V::kLanes; ++v) {
            typename V::Bytes low, high;
            load_codes<V, S>(step, v, book.planes[0], low, high);
            uint8_t* at = to + (vector_of<V>(step, 8, v) - step);
            V::store_bytes(at, low);
            V::store_bytes(at + kNibbles, high);
        }
    }
};

// Rows of a block from `row` on times the unpacked groups, the first of them the matrix's group
// `first`, added to `sums` [rows, kPanel].
template <class V, Stored S, int ROWS, int VECTORS>
INLINE void unpacked_tile(const edgelm_matrix& m, const Book<V>& book,
                          const UnpackedGroups<V, S>& unpacked, const Activations& x, int64_t row,
                          int64_t first, int64_t begin, float* sums) {
    typename V::Floats own[ROWS][VECTORS];
    float* at = sums + begin * V::kLanes;
    UNROLL
    for (int r = 0; r < ROWS; ++r) {
        UNROLL
        for (int v = 0; v < VECTORS; ++v) own[r][v] = V::load(at + r * kPanel + v * V::kLanes);
    }
    for (int64_t g = 0; g < unpacked.count; ++g) {
        const Coded rows = rows_of(x, row, first + g, unpacked.groups[g].first);
        add_group<V, S, ROWS, VECTORS, true>(m, book, unpacked.groups[g], rows, begin, own);
    }
    UNROLL
    for (int r = 0; r < ROWS; ++r) {
        UNROLL
        for (int v = 0; v < VECTORS; ++v) V::store(at + r * kPanel + v * V::kLanes, own[r][v]);
    }
}

// Rows [row, row + count) of activations times a panel.
template <class V, Stored S>
void block_of_rows(const edgelm_matrix& m, const Book<V>& book, const uint8_t* panel,
                   const Activations& x, int64_t row, int64_t count, const Target& target) {
    float sums[kRowBlock * kPanel] = {};
    UnpackedGroups<V, S> unpacked;
    Group group = Group::first_of(m, panel);
    for (int64_t first = 0; first < x.groups; first += unpacked.count) {
        unpacked.take(m, book, group, x.groups - first);
        V::RoundedShapes::cover(count, [&](auto shape, int64_t r) {
            for (int64_t begin = 0; begin < kPanel / V::kLanes; begin += shape.kVectors) {
                unpacked_tile<V, S, shape.kRows, shape.kVectors>(
                    m, book, unpacked, x, row + r, first, begin, sums + r * kPanel);
            }
        });
    }
    for (int64_t r = 0; r < count; ++r) store(target, row + r, 0, sums + r * kPanel, kPanel);
}

// Fine rows from `entry` on times their group, added to what the target has.
template <class V, Stored S, int ROWS, bool UNPACKED>
void fine_tile(const edgelm_matrix& m, const Book<V>& book, const Group& group,
               const Activations& x, int64_t entry, const Target& target) {
    constexpr int kVectors = kPanel / V::kLanes;
    float values[ROWS][kPanel] = {};
    typename V::Floats sums[ROWS][kVectors];
    for (int r = 0; r < ROWS; ++r) fetch(target, x.fine_rows[entry + r], values[r]);
    UNROLL
    for (int r = 0; r < ROWS; ++r) {
        UNROLL
        for (int v = 0; v < kVectors; ++v) sums[r][v] = V::load(values[r] + V::kLanes * v);
    }
    add_group<V, S, ROWS, kVectors, UNPACKED>(m, book, group, fine_of(m, x, entry), 0, sums);
    UNROLL
    for (int r = 0; r < ROWS; ++r) {
        UNROLL
        for (int v = 0; v < kVectors; ++v) V::store(values[r] + V::kLanes * v, sums[r][v]);
    }
    for (int r = 0; r < ROWS; ++r) put_back(target, x.fine_rows[entry + r], values[r]);
}

// All fine rows [entry, end) of a group.
template <class V, Stored S, bool UNPACKED>
void fine_tiles(const edgelm_matrix& m, const Book<V>& book, const Group& group,
                const Activations& x, int64_t entry, int64_t end, const Target& target) {
    for (; entry + 2 <= end; entry += 2) {
        fine_tile<V, S, 2, UNPACKED>(m, book, group, x, entry, target);
    }
    if (entry < end) fine_tile<V, S, 1, UNPACKED>(m, book, group, x, entry, target);
}

// All rows times a panel, but for what the first rounding left.
template <class V, Stored S, bool UNPACKED>
void coarse_rows(const edgelm_matrix& m, const Book<V>& book, const uint8_t* panel,
                 const Activations& x, const Target& target) {
    if constexpr (UNPACKED) {
        for (int64_t row = 0; row < x.rows; row += kRowBlock) {
            const int64_t left = x.rows - row, count = left < kRowBlock ? left : kRowBlock;
            block_of_rows<V, S>(m, book, panel, x, row, count, target);
        }
    } else {
        V::RoundedShapes::cover(x.rows, [&](auto shape, int64_t row) {
            for (int64_t begin = 0; begin < kPanel / V::kLanes; begin += shape.kVectors) {
                tile<V, S, shape.kRows, shape.kVectors>(m, book, panel, x, row, begin, target);
            }
        });
    }
}

// What the first rounding left of some groups.
template <class V, Stored S, bool UNPACKED>
void fine_rows(const edgelm_matrix& m, const Book<V>& book, const uint8_t* panel,
               const Activations& x, const Target& target) {
    for (int64_t g = 0; g < x.groups; ++g) {
        const int64_t entry = x.fine_begins[g], end = x.fine_begins[g + 1];
        if (entry == end) continue;
        Group group = Group::at(m, panel, g);
        if constexpr (UNPACKED) {
            UnpackedGroups<V, S> own;
            own.take(m, book, group, 1);
            fine_tiles<V, S, true>(m, book, own.groups[0], x, entry, end, target);
        } else {
            fine_tiles<V, S, false>(m, book, group, x, entry, end, target);
        }
    }
}

template <class V, Stored S>
void rows_by_tiles(const edgelm_matrix& m, const uint8_t* panel, const Activations& x,
                   const Target& target) {
    const Book<V> book(m);
    constexpr bool kUnpacks = V::kUnpacks && plane_count(S) == 1 && S != Stored::kInt8;
    if (kUnpacks && x.rows >= kUnpackedRows) {
        coarse_rows<V, S, kUnpacks>(m, book, panel, x, target);
        fine_rows<V, S, kUnpacks>(m, book, panel, x, target);
    } else {
        coarse_rows<V, S, false>(m, book, panel, x, target);
        fine_rows<V, S, false>(m, book, panel, x, target);
    }
}

// All rows of rounded activations times a panel: what `Isa::panel` asks for.
template <class V>
void rounded_panel(const edgelm_matrix& m, const uint8_t* panel, const Activations& x,
                   const Target& target) {
    by_codes(m, [&](auto kind) { rows_by_tiles<V, kind.kStored>(m, panel, x, target); });
}

}  // namespace
