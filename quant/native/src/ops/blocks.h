// Blocks of keys and values: where they lie, their scores and weights, their mixture. Included after
// a Vec is defined.
#pragma once

#include "isa/compiler.h"
#include "ops/rows.h"

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
    int64_t size;
    const uint16_t* scales;  // bfloat16, of int8 alone

    Kept(const edgelm_cache& c, const uint8_t* memory, const uint8_t* all_scales, int64_t row,
         int64_t group)
        : count(c.slots), size(c.size) {
        const int64_t first = (row * c.groups + group) * c.slots;
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
    const int64_t slot = (block + runs.from) % kept.count;
    return kept.size % 16 == 0 && slot + runs.to - runs.from <= kept.count;
}

template <class T>
inline Block<T> block_in_place(const Kept<T>& kept, int64_t block, Span span) {
    const int64_t from = span.runs().from, slot = (block + from) % kept.count;
    return {kept.slots + (slot - from) * kept.size, kept.size};
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
        const T* from = kept.slots + slot * kept.size;
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
        to[key] = widen(kept.scales[slot]);
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

}  // namespace
