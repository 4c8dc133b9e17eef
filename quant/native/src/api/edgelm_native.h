// The library's C interface: plain pointers and integers, no type of C++, torch or Python. This
// file has the matrices and the instruction sets, edgelm_ops.h the operations of a step.
//
// Short words that the library uses throughout:
//     layout       a packed matrix in memory, in the order in which products read it (layout.h)
//     panel        32 rows of a matrix in the layout, one contiguous stream of bytes
//     group        the inputs that share a scale and a zero; a panel is a sequence of groups
//     step         8 inputs of a panel, the unit in which loops over a group advance
//     code         a stored integer; its weight is (code - zero) * scale
//     book         a codebook: 16 numbers that the 4-bit codes of nf4, fp4 and iq4 stand for
//     plane        the upper or lower bytes of a book's numbers, which are 16-bit integers; iq4's
//                  are bytes, one plane
//     upper bits   what codes of 5 and 6 bits have beyond a nibble; they lie behind the nibbles
//     super        a number that is multiplied by a byte to give a scale or a zero (coded)
//     minimum      a zero that is a float: what a weight of code 0 is
//     rounded      products that round activations to 8 bits per group; `exact` ones do not
//     coarse, fine a group whose rounding error is large, and the second row of codes that
//                  holds what its first rounding left
//     tile         rows of activations times outputs whose sums stay in registers together
//     target       where the sums of a panel are written, with the bias
//     slot         the place of a position in the ring of a key-value cache
//     split        512 keys whose softmax stands alone until all splits are merged
//     own          of the row, thread or vector at hand, as opposed to the others'
#pragma once

#include <stdint.h>

#if defined(_WIN32)
#define EDGELM_API extern "C" __declspec(dllexport)
#else
#define EDGELM_API extern "C" __attribute__((visibility("default")))
#endif

// Raised with every change of a signature, a struct or the layout; the binding compares it.
#define EDGELM_ABI 5

enum edgelm_float { EDGELM_FLOAT16 = 0, EDGELM_BFLOAT16 = 1, EDGELM_FLOAT32 = 2 };
enum edgelm_zeros { EDGELM_ZEROS_NONE = 0, EDGELM_ZEROS_INT = 1, EDGELM_ZEROS_FLOAT = 2 };

// What is stored: integers, codes of a codebook of 16 numbers, or the numbers themselves.
enum edgelm_codes {
    EDGELM_INTEGERS = 0,
    EDGELM_NF4 = 1,
    EDGELM_FP4 = 2,
    EDGELM_FLOATS = 3,
    EDGELM_IQ4 = 4
};
// Whether products round activations to 8 bits per group. Matrices of floats never do.
enum edgelm_activations { EDGELM_ROUNDED = 0, EDGELM_EXACT = 1 };

// A matrix [outputs, inputs] of codes of 4, 5, 6 or 8 bits, or of floats of 16 or 32, and how its
// products take activations; group 0 is one group per row. Where it is coded, scales, and zeros
// that are floats, are signed bytes times supers of the type `scales`: one super per row and 256
// inputs, or per row where 256 does not divide the inputs.
struct edgelm_matrix {
    int64_t outputs;
    int64_t inputs;
    int32_t bits;
    int32_t group;
    int32_t scales;       // edgelm_float; the numbers' own type where they are floats
    int32_t zeros;        // edgelm_zeros
    int32_t codes;        // edgelm_codes
    int32_t activations;  // edgelm_activations
    int32_t coded;        // 0 or 1; never with group 0
};

EDGELM_API int32_t edgelm_abi();
// Bytes of the struct of that name in this file or edgelm_ops.h, 0 if there is none: a binding
// compares them with its own.
EDGELM_API int64_t edgelm_struct_bytes(const char* name);
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
                            const uint8_t* scales, const uint8_t* zeros,
                            const uint8_t* supers, uint8_t* layout, int32_t threads);

// How fast this processor multiplies bytes at best: runs `steps` steps of 8-bit products on the
// calling thread; the operations done, 0 where there is no loop for this processor.
EDGELM_API int64_t edgelm_peak(int64_t steps);
