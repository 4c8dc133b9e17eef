// The library's C interface: plain pointers and integers, no type of C++, torch or Python.
#pragma once

#include <stdint.h>

#if defined(_WIN32)
#define EDGELM_API extern "C" __declspec(dllexport)
#else
#define EDGELM_API extern "C" __attribute__((visibility("default")))
#endif

// Raised with every change of a signature, a struct or the layout; the binding compares it.
#define EDGELM_ABI 3

enum edgelm_float { EDGELM_FLOAT16 = 0, EDGELM_BFLOAT16 = 1, EDGELM_FLOAT32 = 2 };
enum edgelm_zeros { EDGELM_ZEROS_NONE = 0, EDGELM_ZEROS_INT = 1, EDGELM_ZEROS_FLOAT = 2 };

// What is stored: integers, codes of a codebook of 16 numbers, or the numbers themselves.
enum edgelm_codes { EDGELM_INTEGERS = 0, EDGELM_NF4 = 1, EDGELM_FP4 = 2, EDGELM_FLOATS = 3 };
// Whether products round activations to 8 bits per group. Matrices of floats never do.
enum edgelm_activations { EDGELM_ROUNDED = 0, EDGELM_EXACT = 1 };

// A matrix [outputs, inputs] of 4- or 8-bit codes, or of floats of 16 or 32 bits, and how its
// products take activations; group 0 is one group per row.
struct edgelm_matrix {
    int64_t outputs;
    int64_t inputs;
    int32_t bits;
    int32_t group;
    int32_t scales;       // edgelm_float; the numbers' own type where they are floats
    int32_t zeros;        // edgelm_zeros
    int32_t codes;        // edgelm_codes
    int32_t activations;  // edgelm_activations
};

EDGELM_API int32_t edgelm_abi();
// A digest of the sources it was compiled from; the binding looks for it in the file.
EDGELM_API const char* edgelm_sources();

// The i-th instruction set that this CPU has, slowest first; null beyond the last.
EDGELM_API const char* edgelm_isa(int32_t index);
// Run products with that instruction set from now on; 0 if this CPU lacks it, else 1.
EDGELM_API int32_t edgelm_use_isa(const char* name);

// Bytes of the layout, and of the workspace of a product with `rows` rows of activations.
EDGELM_API int64_t edgelm_layout_bytes(const edgelm_matrix* matrix);
EDGELM_API int64_t edgelm_workspace_bytes(const edgelm_matrix* matrix, int64_t rows);

// The layout of a matrix in the canonical form of quant/packing.py.
EDGELM_API void edgelm_pack(const edgelm_matrix* matrix, const uint8_t* qweight,
                            const uint8_t* scales, const uint8_t* zeros, uint8_t* layout,
                            int32_t threads);

// Rows `ids` of the matrix as float32, row i at out + i * out_stride.
EDGELM_API void edgelm_lookup(const edgelm_matrix* matrix, const uint8_t* layout,
                              const int64_t* ids, int64_t count, float* out, int64_t out_stride);

// x [rows, inputs] times the transposed matrix, plus bias [outputs] or null, into out. Strides
// count floats. Row m of out depends on row m of x alone, whatever `rows` and `threads` are.
EDGELM_API void edgelm_multiply(const edgelm_matrix* matrix, const uint8_t* layout, const float* x,
                                int64_t rows, int64_t x_stride, const float* bias, float* out,
                                int64_t out_stride, uint8_t* workspace, int32_t threads);
