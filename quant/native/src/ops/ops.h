// What each instruction set provides of a step's operations; one file per set defines its table.
#pragma once

#include "api/edgelm_ops.h"
#include "system/pool.h"

// Numbers of an element-wise operation that make one item of work.
constexpr int64_t kColumns = 1024;
// Keys whose scores are made at once; a softmax goes on from one such block to the next. Blocks
// and splits begin at multiples of their sizes, counted in positions.
constexpr int64_t kBlock = 64;
// Keys whose softmax stands alone; those of several splits are merged in order. Threads that share
// a token's keys share splits.
constexpr int64_t kSplit = 512;

// Queries of `count` neighbouring tokens, which see positions [first, last) of one row.
struct Tile {
    int64_t token;
    int64_t count;
    int64_t row;
    int64_t first;
    int64_t last;
};

// Floats of a query's softmax beyond its values; so many that what follows is aligned.
constexpr int64_t kSoftmaxExtra = 16;

// A softmax under way, for each query of a tile: values so far, times e^-largest.
struct Softmax {
    float* mixed;    // [queries, padded size]
    float* largest;  // [queries]
    float* sums;     // [queries], 0 while no key was seen
};

// What one thread needs beside it.
struct AttentionScratch {
    float* queries;  // [queries, padded size]
    float* kept;     // [kBlock, padded size], keys and then values
    float* scores;   // [queries, kBlock]
    float* decay;    // [queries]
};

// The items of the first functions are (token, kColumns numbers) for element-wise operations and
// tokens for the others.
struct Ops {
    Work rms_norm, layer_norm, rotate, store, argmax;
    Work add, scale, softcap, activate;
    // x = e^(x / temperature - most), 0 below e^-87
    void (*soft_weights)(float* x, int64_t size, float temperature, float most);
    // One split of a tile's keys, for the heads of a group.
    void (*attend)(const edgelm_attention& a, const Tile& tile, int64_t group, int64_t split,
                   const AttentionScratch& scratch, const Softmax& into);
    void (*merge)(const Softmax& from, const Softmax& into, int64_t queries, int64_t padded);
    void (*finish)(const edgelm_attention& a, const Tile& tile, int64_t group,
                   const Softmax& from);
};

extern const Ops kOpsGeneric;
#if defined(EDGELM_X86)
extern const Ops kOpsAvx2;
extern const Ops kOpsAvx512;
#endif
