// The C interface of a decoding step's operations beside the matrix products.
//
// Every operation is void(const void*): it gets one pointer to the struct named in the comment
// beside it, and allocates nothing. So a recorded step is an array of functions and structs. What
// changes from token to token (positions, rows of the cache) is read from arrays that the structs
// point to, at the time of the call.
//
// Numbers are float32. A stride counts floats from one token to the next; numbers within a token
// are contiguous. What a token gets depends on that token alone (attention: and on its row of the
// cache), to the last bit, whatever the number of tokens, of threads and the instruction set are.
#pragma once

#include "api/edgelm_native.h"

// out [rows, outputs] = x [rows, inputs] times the transposed matrix, plus bias [outputs]. Row m of
// out depends on row m of x alone, whatever `rows` and `threads` are.
struct edgelm_product {
    const edgelm_matrix* matrix;
    const uint8_t* layout;
    const float* x;
    const float* bias;  // or null
    float* out;
    uint8_t* workspace;  // edgelm_workspace_bytes
    int64_t rows;
    int64_t x_stride;
    int64_t out_stride;
    int32_t threads;
};
EDGELM_API void edgelm_multiply(const void* product);

// out [count, inputs] = rows `ids` of the matrix.
struct edgelm_row_lookup {
    const edgelm_matrix* matrix;
    const uint8_t* layout;
    const int64_t* ids;
    float* out;
    int64_t count;
    int64_t out_stride;
};
EDGELM_API void edgelm_lookup(const void* reading);

// out = the norm of each vector [size] of x [tokens, heads, size]; out is not x.
struct edgelm_norm {
    const float* x;
    float* out;
    const float* weight;  // [size]
    const float* bias;    // [size]; layer_norm alone reads it
    int64_t tokens;
    int64_t heads;  // vectors of a token, one after another
    int64_t size;
    int64_t x_stride;
    int64_t out_stride;
    float eps;
    int32_t threads;
};
// x / sqrt(mean(x^2) + eps) * weight
EDGELM_API void edgelm_rms_norm(const void* norm);
// (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias
EDGELM_API void edgelm_layer_norm(const void* norm);

// x [tokens, size] += y [tokens, size].
struct edgelm_addition {
    float* x;
    const float* y;
    int64_t tokens;
    int64_t size;
    int64_t x_stride;
    int64_t y_stride;
    int32_t threads;
};
EDGELM_API void edgelm_add(const void* sum);

// out = function(x) with a number; x, out: [tokens, size], out may be x.
struct edgelm_unary {
    const float* x;
    float* out;
    int64_t tokens;
    int64_t size;
    int64_t x_stride;
    int64_t out_stride;
    float number;
    int32_t threads;
};
// x * number; with 1 a copy
EDGELM_API void edgelm_scale(const void* map);
// number * tanh(x / number)
EDGELM_API void edgelm_softcap(const void* map);

enum edgelm_function { EDGELM_SILU = 0, EDGELM_GELU_TANH = 1, EDGELM_RELU_SQUARED = 2 };

// out = function(gate) * up, each [tokens, size]; without `up` just function(gate). out may be
// gate or up.
struct edgelm_activation {
    const float* gate;
    const float* up;  // or null
    float* out;
    int64_t tokens;
    int64_t size;
    int64_t gate_stride;
    int64_t up_stride;
    int64_t out_stride;
    int32_t function;  // edgelm_function
    int32_t threads;
};
EDGELM_API void edgelm_activate(const void* activation);

// out = x [tokens, heads, size] with `pairs` pairs of each head turned by the angles of the token's
// position; the rest of a head is copied. out may be x.
struct edgelm_rotation {
    const float* x;
    float* out;
    const float* cosines;      // [positions, pairs]
    const float* sines;        // [positions, pairs]
    const int64_t* positions;  // [tokens]
    int64_t tokens;
    int64_t heads;
    int64_t size;
    int64_t pairs;
    int64_t x_stride;
    int64_t out_stride;
    int32_t interleaved;  // 1: pairs are neighbours; 0: first half with second half
    int32_t threads;
};
EDGELM_API void edgelm_rotate(const void* rotation);

// How a layer's keys and values lie in memory: [rows, groups, slots, size], position p of a row in
// slot p % slots.
enum edgelm_storage { EDGELM_KV_BFLOAT16 = 1, EDGELM_KV_FLOAT32 = 2, EDGELM_KV_INT8 = 3 };
struct edgelm_cache {
    uint8_t* keys;
    uint8_t* values;
    uint8_t* key_scales;    // bfloat16 [rows, groups, slots]; int8 alone has them
    uint8_t* value_scales;  // likewise
    int64_t slots;
    int64_t groups;
    int64_t size;
    int64_t storage;  // edgelm_storage
};

// Keys and values [tokens, groups, size] into the cache, rounded to what it stores: bfloat16 to
// nearest even; int8 by the largest magnitude of each head, its scale rounded to bfloat16 first.
struct edgelm_append {
    edgelm_cache cache;
    const float* keys;
    const float* values;
    const int64_t* rows;       // [tokens]
    const int64_t* positions;  // [tokens]
    int64_t tokens;
    int64_t key_stride;
    int64_t value_stride;
    int32_t threads;
};
EDGELM_API void edgelm_store(const void* append);

// out [tokens, heads, size] = softmax(score) . values for queries [tokens, heads, size], where a
// token sees the keys of its row at positions in (position - window, position], all of which must
// be in the cache. heads is a multiple of the cache's groups.
// score = cap(scale * q . k) + slopes[head] * (key's position - position)
struct edgelm_attention {
    edgelm_cache cache;
    const float* queries;
    float* out;
    const int64_t* rows;       // [tokens]
    const int64_t* positions;  // [tokens]
    const float* slopes;       // [heads] of ALiBi, or null
    uint8_t* workspace;        // edgelm_attention_bytes, aligned to 64
    int64_t tokens;
    int64_t heads;
    int64_t query_stride;
    int64_t out_stride;
    int64_t window;  // how many positions a token sees, itself included; 0: all
    float scale;
    float softcap;  // score = softcap * tanh(score / softcap); 0: none
    int32_t threads;
};
EDGELM_API void edgelm_attend(const void* attention);
// Bytes of the workspace for up to that many tokens; pointers are not read.
EDGELM_API int64_t edgelm_attention_bytes(const void* attention);

// out [tokens] = index of the first largest number of x [tokens, size]; -1 where one is not finite.
struct edgelm_maximum {
    const float* x;
    int64_t* out;
    int64_t tokens;
    int64_t size;
    int64_t x_stride;
    int32_t threads;
};
EDGELM_API void edgelm_argmax(const void* choice);

// out = a token of logits [size], which become weights: e^(logit / temperature) of those that
// top_k (0: all), top_p and min_p keep, in this order and as edgelm/generation/processors.py has them. The
// token is the first whose running sum of weights exceeds `uniform` of all; -1 where every logit
// is -infinity.
struct edgelm_sampling {
    float* logits;
    int64_t* out;
    int64_t size;
    int64_t top_k;
    double uniform;  // in [0, 1)
    double top_p;
    float temperature;
    float min_p;
};
EDGELM_API void edgelm_sample(const void* draw);

// A recorded step: `count` operations of this file, run one after another.
struct edgelm_call {
    void (*operation)(const void*);
    const void* arguments;
};
struct edgelm_tape {
    const edgelm_call* calls;
    int64_t count;
};
EDGELM_API void edgelm_replay(const void* tape);
