// How a matrix lies in memory, the same for every instruction set.
//
// Rows are cut into panels of 32, one contiguous stream each; rows beyond the last are zeros. A
// panel is its groups one after another, a group is its parameters (32 scales, then 32 zeros in
// their own types) and its codes in steps of 8 inputs. A matrix with one group per row has the
// parameters once, at the panel's start. Where scales are coded, a panel begins with its supers
// instead: for each block of 256 inputs (or one for all) 32 of scales, then 32 of minima.
//
// A step holds for each half of 16 rows
//     int4:  64 bytes, byte 4 r + j = code of (row r, input j) | code of (r, j + 4) << 4
//     int5:  64 bytes as int4, then 16 of upper bits
//     int6:  64 bytes as int4, then 32 of upper bits
//     int8: 128 bytes, byte 4 r + j = code of (r, j), and byte 64 + 4 r + j that of (r, j + 4)
// so that each 32-bit lane of a dot product belongs to one row. The upper bits u that belong to
// byte p of the nibbles, those of the low nibble's code first, are pieces of 2 and 4 bits:
//     int5: byte i = u(i) | u(i + 16) << 2 | u(i + 32) << 4 | u(i + 48) << 6
//     int6: byte i = u(i) | u(i + 32) << 4
// Codes are unsigned: int8 codes, and their integer zeros, are stored with 128 added. Codes of a
// codebook lie as int4 does. Floats have no parameters; a step holds for each of its 8 inputs the
// numbers of the 32 rows.
#pragma once

#include "api/edgelm_native.h"

// Everything in these headers has internal linkage: each file is compiled for its own
// instruction set, and a shared inline function would keep whichever copy the linker met first.
namespace {

constexpr int64_t kPanel = 32;
constexpr int64_t kStep = 8;
// Activations share a scale over so many inputs where the weights have one scale per row.
constexpr int64_t kRowGroup = 32;
constexpr int64_t kMostGroup = 128;  // the widest group there is
constexpr int64_t kBlock = 256;      // inputs that share a super, where they divide the inputs

// How a product reads what is stored.
enum class Stored { kInt4, kInt5, kInt6, kInt8, kBook, kIq4, kFloat16, kBfloat16, kFloat32 };

constexpr bool is_float(Stored s) {
    return s == Stored::kFloat16 || s == Stored::kBfloat16 || s == Stored::kFloat32;
}

constexpr bool is_book(Stored s) { return s == Stored::kBook || s == Stored::kIq4; }

// Upper bits of a code.
constexpr int32_t upper_bits(Stored s) {
    return s == Stored::kInt5 ? 1 : s == Stored::kInt6 ? 2 : 0;
}

constexpr int32_t bits_of(Stored s) {
    if (is_float(s)) return s == Stored::kFloat32 ? 32 : 16;
    return s == Stored::kInt8 ? 8 : 4 + upper_bits(s);
}

// Whether the bytes of a product are codes below 64 as they are, and not numbers plus 128.
constexpr bool is_narrow(Stored s) { return !is_book(s) && bits_of(s) < 8; }

inline Stored stored(const edgelm_matrix& m) {
    if (m.codes == EDGELM_INTEGERS) {
        if (m.bits == 8) return Stored::kInt8;
        return m.bits == 4 ? Stored::kInt4 : m.bits == 5 ? Stored::kInt5 : Stored::kInt6;
    }
    if (m.codes != EDGELM_FLOATS) return m.codes == EDGELM_IQ4 ? Stored::kIq4 : Stored::kBook;
    if (m.scales == EDGELM_FLOAT32) return Stored::kFloat32;
    return m.scales == EDGELM_FLOAT16 ? Stored::kFloat16 : Stored::kBfloat16;
}

inline int64_t ceil_div(int64_t number, int64_t by) { return (number + by - 1) / by; }

inline int64_t group_inputs(const edgelm_matrix& m) { return m.group ? m.group : kRowGroup; }

inline int64_t group_count(const edgelm_matrix& m) { return ceil_div(m.inputs, group_inputs(m)); }

inline int64_t float_bytes(int32_t kind) { return kind == EDGELM_FLOAT32 ? 4 : 2; }

inline int64_t zero_bytes(const edgelm_matrix& m) {
    if (m.zeros == EDGELM_ZEROS_NONE) return 0;
    return m.zeros == EDGELM_ZEROS_INT || m.coded ? 1 : float_bytes(m.scales);
}

inline int64_t scale_bytes(const edgelm_matrix& m) { return m.coded ? 1 : float_bytes(m.scales); }

inline int64_t scales_bytes(const edgelm_matrix& m) {
    return m.codes == EDGELM_FLOATS ? 0 : kPanel * scale_bytes(m);
}

inline int64_t parameter_bytes(const edgelm_matrix& m) {
    return scales_bytes(m) + kPanel * zero_bytes(m);
}

// Supers of a row in a block: of scales, and of minima.
inline int64_t super_parts(const edgelm_matrix& m) {
    return m.zeros == EDGELM_ZEROS_FLOAT ? 2 : 1;
}

// Blocks of a panel that have supers of their own.
inline int64_t super_blocks(const edgelm_matrix& m) {
    if (!m.coded) return 0;
    return m.inputs % kBlock ? 1 : m.inputs / kBlock;
}

// Bytes of a block's supers.
inline int64_t super_bytes(const edgelm_matrix& m) {
    return super_parts(m) * kPanel * float_bytes(m.scales);
}

// Bytes of a half's nibbles, behind which upper bits begin; or of half its codes of 8 bits.
constexpr int64_t kNibbles = 64;

constexpr int64_t step_bytes(int32_t bits) { return kPanel * kStep * bits / 8; }

inline int64_t panel_bytes(const edgelm_matrix& m) {
    const int64_t parameters = m.group ? group_count(m) : 1;
    return super_blocks(m) * super_bytes(m) + parameters * parameter_bytes(m) +
           ceil_div(m.inputs, kStep) * step_bytes(m.bits);
}

// The stored code whose weight is zero, where the zeros do not say another; of a codebook, that
// of the bytes of its numbers (codebooks.h).
constexpr int32_t middle_of(Stored s, int32_t zeros) {
    if (!is_narrow(s)) return 128;
    return zeros == EDGELM_ZEROS_FLOAT ? 0 : 1 << (bits_of(s) - 1);
}

inline int32_t middle_code(const edgelm_matrix& m) { return middle_of(stored(m), m.zeros); }

// One group of a panel: where its parameters, codes and supers are. `next` walks along a panel.
struct Group {
    const uint8_t* scales;
    const uint8_t* zeros;
    const uint8_t* codes;
    const uint8_t* supers;  // of its block, where scales are coded
    int64_t first;          // its first input
    int64_t steps;

    Group() = default;
    static Group first_of(const edgelm_matrix& m, const uint8_t* panel) { return {m, panel, 0}; }

    static Group at(const edgelm_matrix& m, const uint8_t* panel, int64_t index) {
        return {m, panel, index};
    }

    void next(const edgelm_matrix& m) {
        codes += steps * step_bytes(m.bits);
        first += group_inputs(m);
        if (m.group) {
            scales = codes;
            zeros = codes + scales_bytes_;
            codes += parameter_bytes_;
        }
        measure(m);
    }

  private:
    Group(const edgelm_matrix& m, const uint8_t* panel, int64_t index)
        : supers(panel), first(index * group_inputs(m)), panel_(panel),
          block_bytes_(super_blocks(m) > 1 ? super_bytes(m) : 0), scales_bytes_(scales_bytes(m)),
          parameter_bytes_(parameter_bytes(m)) {
        scales = panel + super_blocks(m) * super_bytes(m);
        codes = scales + parameter_bytes_ + first / kStep * step_bytes(m.bits);
        if (m.group) {
            codes += index * parameter_bytes_;
            scales = codes - parameter_bytes_;
        }
        zeros = scales + scales_bytes_;
        measure(m);
    }

    void measure(const edgelm_matrix& m) {
        const int64_t left = m.inputs - first;
        steps = ceil_div(left < group_inputs(m) ? left : group_inputs(m), kStep);
        if (block_bytes_) supers = panel_ + first / kBlock * block_bytes_;
    }

    const uint8_t* panel_;
    int64_t block_bytes_;  // from one block's supers to the next one's, 0 if all share one
    int64_t scales_bytes_;
    int64_t parameter_bytes_;
};

}  // namespace
