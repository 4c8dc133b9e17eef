// How a matrix lies in memory, the same for every instruction set.
//
// Rows are cut into panels of 32, one contiguous stream each; rows beyond the last are zeros. A
// panel is its groups one after another, a group is its parameters (32 scales, then 32 zeros in
// their own types) and its codes in steps of 8 inputs. A matrix with one group per row has the
// parameters once, at the panel's start. A step holds for each half of 16 rows
//     int4:  64 bytes, byte 4 r + j = code of (row r, input j) | code of (r, j + 4) << 4
//     int8: 128 bytes, byte 4 r + j = code of (r, j), and byte 64 + 4 r + j that of (r, j + 4)
// so that each 32-bit lane of a dot product belongs to one row. Codes are unsigned: int8 codes,
// and their integer zeros, are stored with 128 added. Codes of a codebook lie as int4 does. Floats
// have no parameters; a step holds for each of its 8 inputs the numbers of the 32 rows.
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

// How a product reads what is stored.
enum class Stored { kInt4, kInt8, kBook, kFloat16, kBfloat16, kFloat32 };

constexpr bool is_float(Stored s) {
    return s == Stored::kFloat16 || s == Stored::kBfloat16 || s == Stored::kFloat32;
}

constexpr int32_t bits_of(Stored s) {
    return s == Stored::kFloat32 ? 32 : is_float(s) ? 16 : s == Stored::kInt8 ? 8 : 4;
}

inline Stored stored(const edgelm_matrix& m) {
    if (m.codes == EDGELM_INTEGERS) return m.bits == 4 ? Stored::kInt4 : Stored::kInt8;
    if (m.codes != EDGELM_FLOATS) return Stored::kBook;
    if (m.scales == EDGELM_FLOAT32) return Stored::kFloat32;
    return m.scales == EDGELM_FLOAT16 ? Stored::kFloat16 : Stored::kBfloat16;
}

inline int64_t ceil_div(int64_t number, int64_t by) { return (number + by - 1) / by; }

inline int64_t group_inputs(const edgelm_matrix& m) { return m.group ? m.group : kRowGroup; }

inline int64_t group_count(const edgelm_matrix& m) { return ceil_div(m.inputs, group_inputs(m)); }

inline int64_t float_bytes(int32_t kind) { return kind == EDGELM_FLOAT32 ? 4 : 2; }

inline int64_t zero_bytes(const edgelm_matrix& m) {
    if (m.zeros == EDGELM_ZEROS_NONE) return 0;
    return m.zeros == EDGELM_ZEROS_INT ? 1 : float_bytes(m.scales);
}

inline int64_t scales_bytes(const edgelm_matrix& m) {
    return m.codes == EDGELM_FLOATS ? 0 : kPanel * float_bytes(m.scales);
}

inline int64_t parameter_bytes(const edgelm_matrix& m) {
    return scales_bytes(m) + kPanel * zero_bytes(m);
}

constexpr int64_t step_bytes(int32_t bits) { return kPanel * kStep * bits / 8; }

inline int64_t panel_bytes(const edgelm_matrix& m) {
    const int64_t parameters = m.group ? group_count(m) : 1;
    return parameters * parameter_bytes(m) + ceil_div(m.inputs, kStep) * step_bytes(m.bits);
}

// The stored code whose weight is zero, where the zeros do not say another.
inline int32_t middle_code(const edgelm_matrix& m) {
    if (m.bits == 8) return 128;
    if (m.codes != EDGELM_INTEGERS) return 128;  // of the two bytes of its number, codebooks.h
    return m.zeros == EDGELM_ZEROS_FLOAT ? 0 : 8;
}

// One group of a panel: where its parameters and codes are. `next` walks along a panel.
struct Group {
    const uint8_t* parameters;
    const uint8_t* codes;
    int64_t first;  // its first input
    int64_t steps;

    static Group first_of(const edgelm_matrix& m, const uint8_t* panel) {
        Group group{panel, panel + parameter_bytes(m), 0, 0};
        group.measure(m);
        return group;
    }

    static Group at(const edgelm_matrix& m, const uint8_t* panel, int64_t index) {
        Group group = first_of(m, panel);
        const int64_t passed = index * group_inputs(m) / kStep * step_bytes(m.bits);
        group.first = index * group_inputs(m);
        group.codes += passed + (m.group ? index * parameter_bytes(m) : 0);
        if (m.group) group.parameters = group.codes - parameter_bytes(m);
        group.measure(m);
        return group;
    }

    void next(const edgelm_matrix& m) {
        codes += steps * step_bytes(m.bits);
        first += group_inputs(m);
        if (m.group) {
            parameters = codes;
            codes += parameter_bytes(m);
        }
        measure(m);
    }

  private:
    void measure(const edgelm_matrix& m) {
        const int64_t left = m.inputs - first;
        steps = ceil_div(left < group_inputs(m) ? left : group_inputs(m), kStep);
    }
};

}  // namespace
