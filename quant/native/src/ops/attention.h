// One split of attention for one tile of queries (after Dao 2023, arXiv:2307.08691): blocks of
// keys, a softmax that goes on from block to block. Included after a Vec is defined.
#pragma once

#include "ops/blocks.h"

namespace {

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
    AttentionScratch s;
    Softmax into;
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
        score_block(t.s.queries, t.rows, own, t.padded, span.runs(), t.s.scores);
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
        const Span span{first > block ? first - block : 0,
                        last < block + kBlock ? last - block : kBlock};
        attend_block(t, keys, values, block, span);
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
    argmax_tokens, add_columns, scale_columns, softcap_columns, activate_columns, soft_weights, attend_split,
    merge_softmax, finish_softmax,
};

}  // namespace
