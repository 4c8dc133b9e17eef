// The C interface of quantizing: the grid of every group, and the codes of its numbers.
#pragma once

#include "api/edgelm_native.h"

// Why rows cannot be quantized: bits of edgelm_search.refused.
enum edgelm_refusal {
    EDGELM_NOT_FINITE = 1,  // NaN, infinite numbers, or a group wider than float32
    EDGELM_BEYOND = 2,      // a scale, minimum or super-scale beyond its type
    EDGELM_NO_MEMORY = 4,
};

// What quant/methods/mse.py, or rtn.py without starts, makes of rows x [rows, inputs], to the last
// bit, in the canonical form of quant/packing.py. What is written is valid where `refused` is 0.
struct edgelm_search {
    const float* x;
    const float* starts;  // two numbers of each, as `starts` of mse.py has them
    const float* table;   // [3, 16] of a codebook: its numbers in ascending order, the largest number
                          // that each is nearest to, its code; null for integers
    uint8_t* qweight;
    uint8_t* scales;
    uint8_t* zeros;    // or null
    uint8_t* supers;   // or null: scales are not coded
    double* errors;    // [rows, 2], zeros: sums of x^2 and of the squared errors are added
    int32_t* refused;  // of edgelm_refusal
    int64_t rows;
    int64_t inputs;
    int64_t start_count;  // 0: round to nearest
    float first;          // ends of a symmetric grid of step 1
    float last;
    int32_t bits;
    int32_t group;        // inputs; 0: one per row
    int32_t floats;       // edgelm_float of scales and minima, or of super-scales
    int32_t zero_kind;    // edgelm_zeros
    int32_t least_scale;  // codes of scales
    int32_t most_scale;
    int32_t threads;
};
EDGELM_API void edgelm_quantize(const void* search);
