// The C interface to layouts: made from the canonical form, and read by rows.
#include <string.h>

#include "api/edgelm_ops.h"
#include "layout/codebooks.h"
#include "layout/codes.h"
#include "system/pool.h"

namespace {

uint8_t code_at(const edgelm_matrix& m, const uint8_t* qweight, int64_t row, int64_t input) {
    if (row >= m.outputs || input >= m.inputs) return 0;
    const uint8_t* own = qweight + row * (m.inputs * m.bits / 8);
    if (m.bits == 8) return own[input] ^ 0x80;
    const uint8_t pair = own[input / 2], nibble = input % 2 ? pair >> 4 : pair & 15;
    if (m.bits == 4) return nibble;
    // The plane of upper bits follows, with 8 inputs in a byte or 4.
    const int64_t upper = m.bits - 4, in_byte = 8 / upper;
    const uint8_t bits = own[m.inputs / 2 + input / in_byte];
    const uint8_t found = bits >> (input % in_byte * upper) & ((1 << upper) - 1);
    return static_cast<uint8_t>(nibble | found << 4);
}

void pack_codes(const edgelm_matrix& m, const uint8_t* qweight, int64_t row, int64_t first,
                uint8_t* step) {
    memset(step, 0, static_cast<size_t>(step_bytes(m.bits)));
    for (int64_t r = 0; r < kPanel; ++r) {
        uint8_t* half = step + r / 16 * (step_bytes(m.bits) / 2);
        for (int64_t j = 0; j < 4; ++j) {
            put_pair(half, m.bits, r % 16 * 4 + j,
                     {code_at(m, qweight, row + r, first + j),
                      code_at(m, qweight, row + r, first + 4 + j)});
        }
    }
}

// The numbers of 8 inputs from `first` on, by input.
void pack_floats(const edgelm_matrix& m, const uint8_t* numbers, int64_t row, int64_t first,
                 uint8_t* step) {
    const int64_t width = float_bytes(m.scales);
    memset(step, 0, static_cast<size_t>(step_bytes(m.bits)));
    for (int64_t r = 0; r < kPanel && row + r < m.outputs; ++r) {
        for (int64_t i = 0; i < kStep && first + i < m.inputs; ++i) {
            memcpy(step + (i * kPanel + r) * width,
                   numbers + ((row + r) * m.inputs + first + i) * width,
                   static_cast<size_t>(width));
        }
    }
}

// 32 scales and zeros of group `g`, from arrays [outputs, groups]; zeros beyond the last row.
void pack_parameters(const edgelm_matrix& m, const uint8_t* scales, const uint8_t* zeros,
                     int64_t row, int64_t g, uint8_t* at) {
    const int64_t groups = m.group ? group_count(m) : 1;
    const int64_t width = scale_bytes(m), zero_width = zero_bytes(m);
    memset(at, 0, static_cast<size_t>(parameter_bytes(m)));
    for (int64_t r = 0; r < kPanel && row + r < m.outputs; ++r) {
        const int64_t from = (row + r) * groups + g;
        memcpy(at + r * width, scales + from * width, static_cast<size_t>(width));
        uint8_t* zero = at + scales_bytes(m) + r * zero_width;
        if (zero_width) memcpy(zero, zeros + from * zero_width, static_cast<size_t>(zero_width));
        if (m.bits == 8 && m.zeros == EDGELM_ZEROS_INT) *zero ^= 0x80;
    }
}

// The supers of a panel, from an array [outputs, blocks, parts]; zeros beyond the last row.
void pack_supers(const edgelm_matrix& m, const uint8_t* supers, int64_t row, uint8_t* at) {
    const int64_t width = float_bytes(m.scales), parts = super_parts(m);
    const int64_t numbers = super_blocks(m) * parts;  // of a row
    memset(at, 0, static_cast<size_t>(super_blocks(m) * super_bytes(m)));
    for (int64_t r = 0; r < kPanel && row + r < m.outputs; ++r) {
        for (int64_t i = 0; i < numbers; ++i) {
            memcpy(at + (i * kPanel + r) * width, supers + ((row + r) * numbers + i) * width,
                   static_cast<size_t>(width));
        }
    }
}

struct Canonical {
    const edgelm_matrix& matrix;
    const uint8_t* qweight;
    const uint8_t* scales;
    const uint8_t* zeros;
    const uint8_t* supers;
    uint8_t* layout;
};

void pack_panels(const void* context, int64_t begin, int64_t end) {
    const Canonical& from = *static_cast<const Canonical*>(context);
    const edgelm_matrix& m = from.matrix;
    uint8_t* at = from.layout + begin * panel_bytes(m);
    for (int64_t row = begin * kPanel; row < end * kPanel; row += kPanel) {
        if (m.coded) pack_supers(m, from.supers, row, at);
        at += super_blocks(m) * super_bytes(m);
        for (int64_t k = 0; k < m.inputs; k += kStep) {
            const bool first = m.group ? k % m.group == 0 : k == 0;
            if (first && parameter_bytes(m) > 0) {
                const int64_t group = m.group ? k / m.group : 0;
                pack_parameters(m, from.scales, from.zeros, row, group, at);
                at += parameter_bytes(m);
            }
            const bool plain = m.codes == EDGELM_FLOATS;
            (plain ? pack_floats : pack_codes)(m, from.qweight, row, k, at);
            at += step_bytes(m.bits);
        }
    }
}

// Input `i` of row `row` of a group as a number, rounded as quant/groupwise.py rounds it.
float number_at(const edgelm_matrix& m, const Group& group, int64_t row, int64_t i) {
    const uint8_t* step = group.codes + i / kStep * step_bytes(m.bits);
    if (m.codes == EDGELM_FLOATS) return read_float(step, m.scales, i % kStep * kPanel + row);
    const int32_t code = code_in(m, step, row, i % kStep);
    const float scale = read_scale(m, group, row);
    if (m.codes != EDGELM_INTEGERS) return numbers(m)[code] * scale;
    const int32_t middle = m.zeros == EDGELM_ZEROS_INT ? group.zeros[row] : middle_code(m);
    const float value = static_cast<float>(code - middle) * scale;
    return m.zeros == EDGELM_ZEROS_FLOAT ? value + read_minimum(m, group, row) : value;
}

void read_row(const edgelm_matrix& m, const uint8_t* panel, int64_t row, float* out) {
    Group group = Group::first_of(m, panel);
    for (int64_t g = 0; g < group_count(m); ++g, group.next(m)) {
        for (int64_t i = 0; i < group.steps * kStep && group.first + i < m.inputs; ++i) {
            out[group.first + i] = number_at(m, group, row, i);
        }
    }
}

}  // namespace

int64_t edgelm_layout_bytes(const edgelm_matrix* matrix) {
    return ceil_div(matrix->outputs, kPanel) * panel_bytes(*matrix);
}

void edgelm_pack(const edgelm_matrix* matrix, const uint8_t* qweight, const uint8_t* scales,
                 const uint8_t* zeros, const uint8_t* supers, uint8_t* layout,
                 int32_t threads) {
    const Canonical from{*matrix, qweight, scales, zeros, supers, layout};
    run(pack_panels, &from, ceil_div(matrix->outputs, kPanel), threads);
}

void edgelm_lookup(const void* reading) {
    const edgelm_row_lookup& r = *static_cast<const edgelm_row_lookup*>(reading);
    for (int64_t i = 0; i < r.count; ++i) {
        const uint8_t* panel = r.layout + r.ids[i] / kPanel * panel_bytes(*r.matrix);
        read_row(*r.matrix, panel, r.ids[i] % kPanel, r.out + i * r.out_stride);
    }
}
