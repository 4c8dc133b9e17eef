// One split of attention for one tile of queries (after Dao 2023, arXiv:2307.08691): blocks of
// keys, a softmax that goes on from block to block. Included after a Vec is defined.
#pragma once

#include "isa.h"
#include "ops_rows.h"

namespace {

inline int64_t padded_size(int64_t size) { return (size + 15) / 16 * 16; }

// Up to so many queries widen keys and values as they read them; more share a widened copy.
constexpr int64_t kFewQueries = 8;

// Which keys of a block count: [from, to).
struct Span {
    int64_t from;
    int64_t to;

    // Whole runs of 16 that the span touches.
    Span runs() const { return {from / 16 * 16, (to + 15) / 16 * 16}; }
};

// Keys or values of one row and group in the cache, one slot after another.
template <class T>
struct Kept {
    const T* slots;
    int64_t count;
    int64_t stride;
    int64_t size;
    const uint16_t* scales;  // bfloat16, of int8 alone
    int64_t scale_stride;

    Kept(const edgelm_cache& c, const uint8_t* memory, const uint8_t* all_scales, int64_t row,
         int64_t group)
        : count(c.slots), stride(c.groups * c.size), size(c.size), scale_stride(c.groups) {
        const int64_t first = row * c.slots * c.groups + group;
        slots = reinterpret_cast<const T*>(memory) + first * c.size;
        scales = all_scales ? reinterpret_cast<const uint16_t*>(all_scales) + first : nullptr;
    }
};

// Vectors of a block as products read them: number k at `at + k * stride`.
template <class T>
struct Block {
    const T* at;
    int64_t stride;
};

// Whether the runs of a block's span can be read where they lie.
template <class T>
inline bool lies_whole(const Kept<T>& kept, int64_t block, Span span) {
    const Span runs = span.runs();
    return kept.size % 16 == 0 && (block + runs.from) % kept.count + runs.to - runs.from <= kept.count;
}

template <class T>
inline Block<T> block_in_place(const Kept<T>& kept, int64_t block, Span span) {
    const int64_t from = span.runs().from, slot = (block + from) % kept.count;
    return {kept.slots + (slot - from) * kept.stride, kept.stride};
}

inline float widen(float x) { return x; }
inline float widen(uint16_t x) { return from_bits(static_cast<uint32_t>(x) << 16); }
inline float widen(int8_t x) { return static_cast<float>(x); }

// The block's vectors in `span` as float32 [kBlock, padded], zeros for the rest of its runs.
template <class T>
inline Block<float> widened_block(const Kept<T>& kept, int64_t block, Span span, int64_t padded,
                                  float* to) {
    const Span runs = span.runs();
    const int64_t whole = kept.size / 16 * 16;
    int64_t slot = (block + span.from) % kept.count;
    memset(to + runs.from * padded, 0, static_cast<size_t>((span.from - runs.from) * padded) * 4);
    for (int64_t key = span.from; key < span.to; ++key) {
        const T* from = kept.slots + slot * kept.stride;
        float* vector = to + key * padded;
        int64_t i = 0;
        for (; i < whole; i += 16) store(vector + i, load(from + i));
        for (; i < kept.size; ++i) vector[i] = widen(from[i]);
        for (; i < padded; ++i) vector[i] = 0;
        if (++slot == kept.count) slot = 0;
    }
    memset(to + span.to * padded, 0, static_cast<size_t>((runs.to - span.to) * padded) * 4);
    return {to, padded};
}

// Scales [kBlock] of a block's vectors in `span`; what others get is never used.
template <class T>
inline void read_scales(const Kept<T>& kept, int64_t block, Span span, float* to) {
    int64_t slot = (block + span.from) % kept.count;
    for (int64_t key = span.from; key < span.to; ++key) {
        to[key] = widen(kept.scales[slot * kept.scale_stride]);
        if (++slot == kept.count) slot = 0;
    }
}

// Which keys of the block at position `block` the query at `position` sees.
inline Span visible(const edgelm_attention& a, int64_t position, int64_t block, Span span) {
    const int64_t first = a.window ? position - a.window + 1 - block : 0;
    const int64_t last = position + 1 - block;
    span.from = first > span.from ? first : span.from;
    span.to = last < span.to ? last : span.to;
    return span;
}

inline void fill_around(float* scores, Span span, float number) {
    for (int64_t i = 0; i < span.from; ++i) scores[i] = number;
    for (int64_t i = span.to; i < kBlock; ++i) scores[i] = number;
}

// Dot products of one query to what softmax takes; `distance` is the block's first position less
// the query's.
inline void score(const edgelm_attention& a, float slope, float distance, const float* key_scales,
                  float* scores) {
    alignas(64) static constexpr float kLanes[16] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                     8, 9, 10, 11, 12, 13, 14, 15};
    const Vec scale = fill(a.scale), bound = fill(a.softcap);
    for (int64_t i = 0; i < kBlock; i += 16) {
        Vec v = load(scores + i);
        if (key_scales) v = mul(v, load(key_scales + i));
        v = mul(v, scale);
        if (a.softcap != 0) v = capped(v, bound);
        if (a.slopes) {
            const Vec away = add(load(kLanes), fill(distance + static_cast<float>(i)));
            v = fma(fill(slope), away, v);
        }
        store(scores + i, v);
    }
}

// Scores [kBlock] of one query to weights of values that have scales or null, 0 outside of `span`;
// returns by what earlier values and sums decay.
inline float weigh(float* scores, Span span, const float* value_scales, float* most,
                   float* total) {
    if (span.from >= span.to) {
        memset(scores, 0, kBlock * 4);
        return 1;
    }
    fill_around(scores, span, -INFINITY);
    Vec top = load(scores);
    for (int64_t i = 16; i < kBlock; i += 16) top = larger(top, load(scores + i));
    const float block_most = largest(top);
    const float now = block_most > *most ? block_most : *most;
    for (int64_t i = 0; i < kBlock; i += 16) {
        store(scores + i, exponential(sub(load(scores + i), fill(now))));
    }
    fill_around(scores, span, 0);
    Vec sums = load(scores);
    for (int64_t i = 16; i < kBlock; i += 16) sums = add(sums, load(scores + i));
    if (value_scales) {
        for (int64_t i = 0; i < kBlock; i += 16) {
            store(scores + i, mul(load(scores + i), load(value_scales + i)));
        }
    }
    const float decay = exponential(*most - now);
    *most = now;
    *total = std::fma(*total, decay, sum(sums));
    return decay;
}

// ROWS queries times a run of 16 keys.
template <int ROWS, class T>
inline void score_run(const float* queries, const Block<T>& keys, int64_t run, int64_t padded,
                      float* scores) {
    for (int64_t key = run; key < run + 16; key += 16 / ROWS) {
        dots<ROWS>(queries, keys.at + key * keys.stride, keys.stride, padded, scores + key,
                   kBlock);
    }
}

// `rows` queries times the runs of the block's keys.
template <class T>
inline void score_block(const float* queries, int64_t rows, const Block<T>& keys, int64_t padded,
                        Span runs, float* scores) {
    for (int64_t run = runs.from; run < runs.to; run += 16) {
        int64_t row = 0;
        for (; row + 4 <= rows; row += 4) {
            score_run<4>(queries + row * padded, keys, run, padded, scores + row * kBlock);
        }
        if (rows - row >= 2) {
            score_run<2>(queries + row * padded, keys, run, padded, scores + row * kBlock);
            row += 2;
        }
        if (row < rows) {
            score_run<1>(queries + row * padded, keys, run, padded, scores + row * kBlock);
        }
    }
}

// mixed = mixed * decay + weights . values, for ROWS queries and VECTORS Vecs of each value.
template <int ROWS, int VECTORS, class T>
inline void mix_tile(const float* weights, const float* decay, const T* values, int64_t stride,
                     Span span, float* mixed, int64_t padded) {
    Vec sums[ROWS][VECTORS];
    UNROLL
    for (int r = 0; r < ROWS; ++r) {
        UNROLL
        for (int v = 0; v < VECTORS; ++v) {
            sums[r][v] = mul(load(mixed + r * padded + v * 16), fill(decay[r]));
        }
    }
    for (int64_t key = span.from; key < span.to; ++key) {
        Vec value[VECTORS];
        UNROLL
        for (int v = 0; v < VECTORS; ++v) value[v] = load(values + key * stride + v * 16);
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const Vec weight = fill(weights[r * kBlock + key]);
            UNROLL
            for (int v = 0; v < VECTORS; ++v) sums[r][v] = fma(weight, value[v], sums[r][v]);
        }
    }
    UNROLL
    for (int r = 0; r < ROWS; ++r) {
        UNROLL
        for (int v = 0; v < VECTORS; ++v) store(mixed + r * padded + v * 16, sums[r][v]);
    }
}

template <int ROWS, class T>
inline void mix_rows(const float* weights, const float* decay, const Block<T>& values, Span span,
                     float* mixed, int64_t padded) {
    int64_t i = 0;
    for (; i + kMixVectors * 16 <= padded; i += kMixVectors * 16) {
        mix_tile<ROWS, kMixVectors>(weights, decay, values.at + i, values.stride, span, mixed + i,
                                    padded);
    }
    for (; i < padded; i += 16) {
        mix_tile<ROWS, 1>(weights, decay, values.at + i, values.stride, span, mixed + i, padded);
    }
}

template <class T>
inline void mix_block(const AttentionScratch& s, int64_t rows, const Block<T>& values, Span span,
                      float* mixed, int64_t padded) {
    int64_t row = 0;
    for (; row + kMixRows <= rows; row += kMixRows) {
        mix_rows<kMixRows>(s.scores + row * kBlock, s.decay + row, values, span,
                           mixed + row * padded, padded);
    }
    if (kMixRows > 2 && rows - row >= 2) {
        mix_rows<2>(s.scores + row * kBlock, s.decay + row, values, span, mixed + row * padded,
                    padded);
        row += 2;
    }
    for (; row < rows; ++row) {
        mix_rows<1>(s.scores + row * kBlock, s.decay + row, values, span, mixed + row * padded,
                    padded);
    }
}

// The queries of a tile for one group's heads, token by token, zeros behind each.
inline void place_queries(const edgelm_attention& a, const Tile& tile, int64_t group,
                          int64_t heads, float* to) {
    const int64_t size = a.cache.size, padded = padded_size(size);
    for (int64_t row = 0; row < tile.count * heads; ++row, to += padded) {
        const int64_t token = tile.token + row / heads, head = group * heads + row % heads;
        memcpy(to, a.queries + token * a.query_stride + head * size,
               static_cast<size_t>(size) * 4);
        memset(to + size, 0, static_cast<size_t>(padded - size) * 4);
    }
}

// One tile's queries of one group, and the softmax that they are in.
struct Task {
    const edgelm_attention& a;
    const Tile& tile;
    int64_t group;
    int64_t heads;  // of the group
    int64_t rows;   // queries: the tile's tokens times heads
    int64_t padded;
    const AttentionScratch& s;
    const Softmax& into;
};

// Scores of a block to weights. Scales are those of int8 keys and values, else null.
inline void weigh_block(const Task& t, int64_t block, Span span, const float* key_scales,
                        const float* value_scales) {
    for (int64_t row = 0; row < t.rows; ++row) {
        const int64_t position = t.a.positions[t.tile.token + row / t.heads];
        const float slope = t.a.slopes ? t.a.slopes[t.group * t.heads + row % t.heads] : 0;
        float* scores = t.s.scores + row * kBlock;
        score(t.a, slope, static_cast<float>(block - position), key_scales, scores);
        t.s.decay[row] = weigh(scores, visible(t.a, position, block, span), value_scales,
                               t.into.largest + row, t.into.sums + row);
    }
}

// Ask for the memory of a block's vectors before they are read.
template <class T>
inline void prefetch_block(const Block<T>& block, Span span, int64_t size) {
    for (int64_t key = span.from; key < span.to; ++key) {
        const T* vector = block.at + key * block.stride;
        for (int64_t i = 0; i < size; i += 64 / static_cast<int64_t>(sizeof(T))) {
            prefetch(vector + i);
        }
    }
}

template <class T>
inline void attend_block(const Task& t, const Kept<T>& keys, const Kept<T>& values, int64_t block,
                         Span span) {
    float scales[2][kBlock] = {};
    const bool scaled = keys.scales != nullptr;
    if (scaled) {
        read_scales(keys, block, span, scales[0]);
        read_scales(values, block, span, scales[1]);
    }
    const float* key_scales = scaled ? scales[0] : nullptr;
    const float* value_scales = scaled ? scales[1] : nullptr;
    const bool few = t.rows <= kFewQueries || sizeof(T) == sizeof(float);
    if (few && lies_whole(keys, block, span)) {
        const Block<T> own = block_in_place(keys, block, span);
        const Block<T> mixed = block_in_place(values, block, span);
        prefetch_block(mixed, span, keys.size);
        score_block(t.s.queries, t.rows, own, t.padded, span.runs(), t.s.scores);
        prefetch_block(own, {span.from + kBlock, span.to + kBlock}, keys.size);
        weigh_block(t, block, span, key_scales, value_scales);
        mix_block(t.s, t.rows, mixed, span, t.into.mixed, t.padded);
        return;
    }
    Block<float> wide = widened_block(keys, block, span, t.padded, t.s.kept);
    score_block(t.s.queries, t.rows, wide, t.padded, span.runs(), t.s.scores);
    weigh_block(t, block, span, key_scales, value_scales);
    wide = widened_block(values, block, span, t.padded, t.s.kept);
    mix_block(t.s, t.rows, wide, span, t.into.mixed, t.padded);
}

// Blocks of positions [first, last).
template <class T>
inline void attend_blocks(const Task& t, int64_t first, int64_t last) {
    const edgelm_cache& c = t.a.cache;
    const Kept<T> keys(c, c.keys, c.key_scales, t.tile.row, t.group);
    const Kept<T> values(c, c.values, c.value_scales, t.tile.row, t.group);
    for (int64_t block = first / kBlock * kBlock; block < last; block += kBlock) {
        attend_block(t, keys, values, block,
                     {first > block ? first - block : 0,
                      last < block + kBlock ? last - block : kBlock});
    }
}

void attend_split(const edgelm_attention& a, const Tile& tile, int64_t group, int64_t split,
                  const AttentionScratch& s, const Softmax& into) {
    const int64_t heads = a.heads / a.cache.groups, rows = tile.count * heads;
    const Task task{a, tile, group, heads, rows, padded_size(a.cache.size), s, into};
    const int64_t start = split * kSplit, stop = start + kSplit;
    const int64_t first = start > tile.first ? start : tile.first;
    const int64_t last = stop < tile.last ? stop : tile.last;
    place_queries(a, tile, group, heads, s.queries);
    memset(into.mixed, 0, static_cast<size_t>(rows * task.padded) * 4);
    for (int64_t row = 0; row < rows; ++row) {
        into.largest[row] = -INFINITY;
        into.sums[row] = 0;
    }
    switch (a.cache.storage) {
        case EDGELM_KV_FLOAT32: return attend_blocks<float>(task, first, last);
        case EDGELM_KV_BFLOAT16: return attend_blocks<uint16_t>(task, first, last);
        default: return attend_blocks<int8_t>(task, first, last);
    }
}

// Add what `from` saw to `into`; queries that saw nothing there keep what they have.
void merge_softmax(const Softmax& from, const Softmax& into, int64_t queries, int64_t padded) {
    for (int64_t q = 0; q < queries; ++q) {
        const float* mixed = from.mixed + q * padded;
        float* to = into.mixed + q * padded;
        if (from.sums[q] == 0) continue;
        if (into.sums[q] == 0) {
            memcpy(to, mixed, static_cast<size_t>(padded) * 4);
            into.largest[q] = from.largest[q];
            into.sums[q] = from.sums[q];
            continue;
        }
        const float most =
            from.largest[q] > into.largest[q] ? from.largest[q] : into.largest[q];
        const float old = exponential(into.largest[q] - most);
        const float added = exponential(from.largest[q] - most);
        for (int64_t i = 0; i < padded; i += 16) {
            store(to + i, fma(load(mixed + i), fill(added), mul(load(to + i), fill(old))));
        }
        into.largest[q] = most;
        into.sums[q] = std::fma(from.sums[q], added, into.sums[q] * old);
    }
}

void finish_softmax(const edgelm_attention& a, const Tile& tile, int64_t group,
                    const Softmax& from) {
    const int64_t size = a.cache.size, padded = padded_size(size);
    const int64_t heads = a.heads / a.cache.groups;
    for (int64_t row = 0; row < tile.count * heads; ++row) {
        const int64_t token = tile.token + row / heads, head = group * heads + row % heads;
        float* out = a.out + token * a.out_stride + head * size;
        const Vec share = fill(1.0f / from.sums[row]);
        read_vectors(from.mixed + row * padded, size, [&](int64_t i, Vec v, int64_t count) {
            store_some(out + i, mul(v, share), count);
        });
    }
}

constexpr Ops kOps = {
    norm_tokens<rms_norm_vector>, norm_tokens<layer_norm_vector>, rotate_tokens, store_tokens,
    argmax_tokens, add_columns, scale_columns, softcap_columns, activate_columns, attend_split,
    merge_softmax, finish_softmax,
};

}  // namespace
