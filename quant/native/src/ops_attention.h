// One split of attention for one tile of queries (after Dao 2023, arXiv:2307.08691): blocks of
// keys, a softmax that goes on from block to block. Included after a Vec is defined.
#pragma once

#include "isa.h"
#include "ops_rows.h"

namespace {

inline int64_t padded_size(int64_t size) { return (size + 15) / 16 * 16; }

// How many keys ahead memory is asked for: those of one group are too far apart for the processor
// to guess.
constexpr int64_t kAhead = 16;

// Keys or values of one group, in the cache.
struct Kept {
    const uint8_t* memory;
    const uint8_t* scales;
};

// Vector `index` of the cache as float32, zeros behind it up to `padded`.
inline void widen(const edgelm_cache& c, const Kept& kept, int64_t index, int64_t padded,
                  float* to) {
    const int64_t first = index * c.size, whole = c.size / 16 * 16;
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(kept.memory) + first;
    const int8_t* codes = reinterpret_cast<const int8_t*>(kept.memory) + first;
    int64_t i = 0;
    if (c.storage == EDGELM_KV_FLOAT32) {
        i = c.size;
        memcpy(to, kept.memory + first * 4, static_cast<size_t>(i) * 4);
    } else if (c.storage == EDGELM_KV_BFLOAT16) {
        for (; i < whole; i += 16) store(to + i, from_bfloat16s(halves + i));
        for (; i < c.size; ++i) to[i] = from_bits(static_cast<uint32_t>(halves[i]) << 16);
    } else {
        const float scale = read_float(kept.scales, EDGELM_BFLOAT16, index);
        for (; i < whole; i += 16) store(to + i, mul(from_int8s(codes + i), fill(scale)));
        for (; i < c.size; ++i) to[i] = static_cast<float>(codes[i]) * scale;
    }
    for (; i < padded; ++i) to[i] = 0;
}

// Which keys of a block count: [from, to).
struct Span {
    int64_t from;
    int64_t to;
};

// Keys or values at positions `block` + span of one row and group as float32 [kBlock, padded],
// zeros for the rest of each run of 16 that the span touches.
inline void widen_block(const edgelm_cache& c, const Kept& kept, int64_t row, int64_t group,
                        int64_t block, Span span, int64_t padded, float* to) {
    const int64_t bytes = c.storage == EDGELM_KV_FLOAT32 ? 4 : c.storage == EDGELM_KV_INT8 ? 1 : 2;
    const int64_t first = row * c.slots, from = span.from / 16 * 16;
    const int64_t end = (span.to + 15) / 16 * 16;
    int64_t slot = (block + span.from) % c.slots;
    memset(to + from * padded, 0, static_cast<size_t>((span.from - from) * padded) * 4);
    for (int64_t key = span.from; key < span.to; ++key) {
        const int64_t index = (first + slot) * c.groups + group;
        const uint8_t* later = kept.memory + (index + kAhead * c.groups) * c.size * bytes;
        for (int64_t line = 0; line < c.size * bytes; line += 64) prefetch(later + line);
        widen(c, kept, index, padded, to + key * padded);
        if (++slot == c.slots) slot = 0;
    }
    memset(to + span.to * padded, 0, static_cast<size_t>((end - span.to) * padded) * 4);
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
inline void score(const edgelm_attention& a, float slope, float distance, float* scores) {
    alignas(64) static constexpr float kLanes[16] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                     8, 9, 10, 11, 12, 13, 14, 15};
    const Vec scale = fill(a.scale), bound = fill(a.softcap);
    for (int64_t i = 0; i < kBlock; i += 16) {
        Vec v = mul(load(scores + i), scale);
        if (a.softcap != 0) v = capped(v, bound);
        if (a.slopes) {
            const Vec away = add(load(kLanes), fill(distance + static_cast<float>(i)));
            v = fma(fill(slope), away, v);
        }
        store(scores + i, v);
    }
}

// Scores [kBlock] of one query to weights, 0 outside of `span`; returns by what earlier values and
// sums decay.
inline float weigh(float* scores, Span span, float* most, float* total) {
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
    const float decay = exponential(*most - now);
    *most = now;
    *total = std::fma(*total, decay, sum(sums));
    return decay;
}

// `rows` queries times the block's keys in `span`.
inline void score_block(const float* queries, int64_t rows, const float* keys, int64_t padded,
                        Span span, float* scores) {
    const int64_t from = span.from / 16 * 16;
    int64_t row = 0;
    for (; row + 4 <= rows; row += 4) {
        for (int64_t key = from; key < span.to; key += 4) {
            dots<4>(queries + row * padded, keys + key * padded, padded,
                    scores + row * kBlock + key, kBlock);
        }
    }
    for (; row < rows; ++row) {
        for (int64_t key = from; key < span.to; key += 16) {
            dots<1>(queries + row * padded, keys + key * padded, padded,
                    scores + row * kBlock + key, kBlock);
        }
    }
}

// mixed = mixed * decay + weights . values, for ROWS queries and VECTORS Vecs of each value.
template <int ROWS, int VECTORS>
inline void mix_tile(const float* weights, const float* decay, const float* values, Span span,
                     float* mixed, int64_t padded) {
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
        for (int v = 0; v < VECTORS; ++v) value[v] = load(values + key * padded + v * 16);
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

template <int ROWS>
inline void mix_rows(const float* weights, const float* decay, const float* values, Span span,
                     float* mixed, int64_t padded) {
    int64_t i = 0;
    for (; i + kMixVectors * 16 <= padded; i += kMixVectors * 16) {
        mix_tile<ROWS, kMixVectors>(weights, decay, values + i, span, mixed + i, padded);
    }
    for (; i < padded; i += 16) {
        mix_tile<ROWS, 1>(weights, decay, values + i, span, mixed + i, padded);
    }
}

inline void mix_block(const AttentionScratch& s, int64_t rows, Span span, float* mixed,
                      int64_t padded) {
    int64_t row = 0;
    for (; row + kMixRows <= rows; row += kMixRows) {
        mix_rows<kMixRows>(s.scores + row * kBlock, s.decay + row, s.values, span,
                           mixed + row * padded, padded);
    }
    for (; row < rows; ++row) {
        mix_rows<1>(s.scores + row * kBlock, s.decay + row, s.values, span, mixed + row * padded,
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

void attend_split(const edgelm_attention& a, const Tile& tile, int64_t group, int64_t split,
                  const AttentionScratch& s, const Softmax& into) {
    const edgelm_cache& c = a.cache;
    const int64_t heads = a.heads / c.groups, rows = tile.count * heads;
    const int64_t padded = padded_size(c.size);
    const int64_t start = split * kSplit, stop = start + kSplit;
    const int64_t first = start > tile.first ? start : tile.first;
    const int64_t last = stop < tile.last ? stop : tile.last;
    place_queries(a, tile, group, heads, s.queries);
    memset(into.mixed, 0, static_cast<size_t>(rows * padded) * 4);
    for (int64_t row = 0; row < rows; ++row) {
        into.largest[row] = -INFINITY;
        into.sums[row] = 0;
    }
    for (int64_t block = first / kBlock * kBlock; block < last; block += kBlock) {
        const Span span{first > block ? first - block : 0,
                        last < block + kBlock ? last - block : kBlock};
        widen_block(c, {c.keys, c.key_scales}, tile.row, group, block, span, padded, s.keys);
        widen_block(c, {c.values, c.value_scales}, tile.row, group, block, span, padded, s.values);
        score_block(s.queries, rows, s.keys, padded, span, s.scores);
        for (int64_t row = 0; row < rows; ++row) {
            const int64_t position = a.positions[tile.token + row / heads];
            const float slope = a.slopes ? a.slopes[group * heads + row % heads] : 0;
            float* scores = s.scores + row * kBlock;
            score(a, slope, static_cast<float>(block - position), scores);
            s.decay[row] = weigh(scores, visible(a, position, block, span), into.largest + row,
                                 into.sums + row);
        }
        mix_block(s, rows, span, into.mixed, padded);
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
