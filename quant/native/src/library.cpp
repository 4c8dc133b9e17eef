// The C interface: packing, lookup, the choice of the instruction set, and the product.
#include <atomic>

#include "floats.h"
#include "isa.h"
#include "platform.h"
#include "pool.h"

namespace {

// Below so many bytes of codes times rows a second thread costs more than it brings.
constexpr int64_t kThreadedBytes = 1 << 16;
// From so many rows on, rounding activations is shared between threads too.
constexpr int64_t kThreadedRows = 8;

constexpr int kMaxIsas = 4;

struct Isas {
    const Isa* found[kMaxIsas];
    int count;
};

const Isas& isas() {
    static const Isas own = [] {
        Isas list{{&kGeneric}, 1};
#if defined(EDGELM_X86)
        const CpuFeatures cpu = cpu_features();
        if (cpu.avx2_fma_f16c) list.found[list.count++] = &kAvx2;
        if (cpu.avx512_vnni) list.found[list.count++] = &kAvx512Vnni;
#endif
        return list;
    }();
    return own;
}

std::atomic<const Isa*> chosen{nullptr};

uint8_t code_at(const edgelm_matrix& m, const uint8_t* qweight, int64_t row, int64_t input) {
    if (row >= m.outputs || input >= m.inputs) return 0;
    if (m.bits == 8) return qweight[row * m.inputs + input] ^ 0x80;
    const uint8_t pair = qweight[(row * m.inputs + input) / 2];
    return input % 2 ? pair >> 4 : pair & 15;
}

void pack_codes(const edgelm_matrix& m, const uint8_t* qweight, int64_t row, int64_t first,
                uint8_t* step) {
    for (int64_t r = 0; r < kPanel; ++r) {
        uint8_t* at = step + r / 16 * (step_bytes(m.bits) / 2) + r % 16 * 4;
        for (int64_t j = 0; j < 4; ++j) {
            const uint8_t low = code_at(m, qweight, row + r, first + j);
            const uint8_t high = code_at(m, qweight, row + r, first + 4 + j);
            if (m.bits == 4) {
                at[j] = static_cast<uint8_t>(low | high << 4);
            } else {
                at[j] = low;
                at[64 + j] = high;
            }
        }
    }
}

// 32 scales and zeros of group `g`, from arrays [outputs, groups]; zeros beyond the last row.
void pack_parameters(const edgelm_matrix& m, const uint8_t* scales, const uint8_t* zeros,
                     int64_t row, int64_t g, uint8_t* at) {
    const int64_t groups = m.group ? group_count(m) : 1;
    const int64_t width = float_bytes(m.scales), zero_width = zero_bytes(m);
    memset(at, 0, static_cast<size_t>(parameter_bytes(m)));
    for (int64_t r = 0; r < kPanel && row + r < m.outputs; ++r) {
        const int64_t from = (row + r) * groups + g;
        memcpy(at + r * width, scales + from * width, static_cast<size_t>(width));
        uint8_t* zero = at + scales_bytes(m) + r * zero_width;
        if (zero_width) memcpy(zero, zeros + from * zero_width, static_cast<size_t>(zero_width));
        if (m.bits == 8 && m.zeros == EDGELM_ZEROS_INT) *zero ^= 0x80;
    }
}

struct Canonical {
    const edgelm_matrix& matrix;
    const uint8_t* qweight;
    const uint8_t* scales;
    const uint8_t* zeros;
    uint8_t* layout;
};

void pack_panels(const void* context, int64_t begin, int64_t end) {
    const Canonical& from = *static_cast<const Canonical*>(context);
    const edgelm_matrix& m = from.matrix;
    uint8_t* at = from.layout + begin * panel_bytes(m);
    for (int64_t row = begin * kPanel; row < end * kPanel; row += kPanel) {
        for (int64_t k = 0; k < m.inputs; k += kStep) {
            const bool first = m.group ? k % m.group == 0 : k == 0;
            if (first) {
                const int64_t group = m.group ? k / m.group : 0;
                pack_parameters(m, from.scales, from.zeros, row, group, at);
                at += parameter_bytes(m);
            }
            pack_codes(m, from.qweight, row, k, at);
            at += step_bytes(m.bits);
        }
    }
}

// Row `row` of a panel as numbers, rounded as quant/groupwise.py rounds them.
void read_row(const edgelm_matrix& m, const uint8_t* panel, int64_t row, float* out) {
    Group group = Group::first_of(m, panel);
    for (int64_t g = 0; g < group_count(m); ++g, group.next(m)) {
        const float scale = read_float(group.parameters, m.scales, row);
        const uint8_t* zeros = group.parameters + scales_bytes(m);
        const int32_t middle = m.zeros == EDGELM_ZEROS_INT ? zeros[row] : middle_code(m);
        for (int64_t i = 0; i < group.steps * kStep && group.first + i < m.inputs; ++i) {
            const uint8_t* at = group.codes + i / kStep * step_bytes(m.bits) +
                                row / 16 * (step_bytes(m.bits) / 2) + row % 16 * 4 + i % 4;
            const bool high = i % kStep >= 4;
            const int32_t code = m.bits == 8 ? at[high ? 64 : 0] : (high ? *at >> 4 : *at & 15);
            float value = static_cast<float>(code - middle) * scale;
            if (m.zeros == EDGELM_ZEROS_FLOAT) value += read_float(zeros, m.scales, row);
            out[group.first + i] = value;
        }
    }
}

struct Product {
    const Isa& isa;
    const edgelm_matrix& matrix;
    const uint8_t* layout;
    const float* x;
    int64_t x_stride;
    const float* bias;
    float* out;
    int64_t out_stride;
    Activations activations;
};

void round_rows(const void* context, int64_t begin, int64_t end) {
    const Product& p = *static_cast<const Product*>(context);
    for (int64_t row = begin; row < end; ++row) {
        p.isa.round(p.matrix, p.x + row * p.x_stride, p.activations, row);
    }
}

// Where each group's fine rows begin, from the flags that rounding set.
void count_fine(const Activations& x) {
    int64_t total = 0;
    for (int64_t g = 0; g < x.groups; ++g) {
        x.fine_begins[g] = total;
        for (int64_t row = 0; row < x.rows; ++row) total += x.coarse[row * x.groups + g];
    }
    x.fine_begins[x.groups] = total;
}

void refine_groups(const void* context, int64_t begin, int64_t end) {
    const Product& p = *static_cast<const Product*>(context);
    for (int64_t g = begin; g < end; ++g) {
        p.isa.refine(p.matrix, p.x, p.x_stride, p.activations, g);
    }
}

void multiply_panels(const void* context, int64_t begin, int64_t end) {
    const Product& p = *static_cast<const Product*>(context);
    for (int64_t panel = begin; panel < end; ++panel) {
        const int64_t first = panel * kPanel, left = p.matrix.outputs - first;
        const Target target{p.out + first, p.out_stride, left < kPanel ? left : kPanel,
                            p.bias ? p.bias + first : nullptr};
        p.isa.panel(p.matrix, p.layout + panel * panel_bytes(p.matrix), p.activations, target);
    }
}

}  // namespace

const Isa& current_isa() {
    const Isa* isa = chosen.load(std::memory_order_relaxed);
    return isa ? *isa : *isas().found[isas().count - 1];
}

int32_t edgelm_abi() { return EDGELM_ABI; }

const char* edgelm_isa(int32_t index) {
    return index >= 0 && index < isas().count ? isas().found[index]->name : nullptr;
}

int32_t edgelm_use_isa(const char* name) {
    for (int i = 0; i < isas().count; ++i) {
        if (strcmp(isas().found[i]->name, name) == 0) {
            chosen.store(isas().found[i]);
            return 1;
        }
    }
    return 0;
}

int64_t edgelm_layout_bytes(const edgelm_matrix* matrix) {
    return ceil_div(matrix->outputs, kPanel) * panel_bytes(*matrix);
}

int64_t edgelm_workspace_bytes(const edgelm_matrix* matrix, int64_t rows) {
    Cutter cut(nullptr);
    place(*matrix, rows, cut);
    return cut.bytes;
}

void edgelm_pack(const edgelm_matrix* matrix, const uint8_t* qweight, const uint8_t* scales,
                 const uint8_t* zeros, uint8_t* layout, int32_t threads) {
    const Canonical from{*matrix, qweight, scales, zeros, layout};
    run(pack_panels, &from, ceil_div(matrix->outputs, kPanel), threads);
}

void edgelm_lookup(const edgelm_matrix* matrix, const uint8_t* layout, const int64_t* ids,
                   int64_t count, float* out, int64_t out_stride) {
    for (int64_t i = 0; i < count; ++i) {
        const uint8_t* panel = layout + ids[i] / kPanel * panel_bytes(*matrix);
        read_row(*matrix, panel, ids[i] % kPanel, out + i * out_stride);
    }
}

void edgelm_multiply(const edgelm_matrix* matrix, const uint8_t* layout, const float* x,
                     int64_t rows, int64_t x_stride, const float* bias, float* out,
                     int64_t out_stride, uint8_t* workspace, int32_t threads) {
    Cutter cut(workspace);
    const Product product{current_isa(), *matrix, layout,     x, x_stride, bias, out, out_stride,
                          place(*matrix, rows, cut)};
    const int64_t panels = ceil_div(matrix->outputs, kPanel);
    if (panels * panel_bytes(*matrix) * rows < kThreadedBytes) threads = 1;
    const int32_t rounding = rows < kThreadedRows ? 1 : threads;
    run(round_rows, &product, rows, rounding);
    count_fine(product.activations);
    run(refine_groups, &product, product.activations.groups, rounding);
    run(multiply_panels, &product, panels, threads);
}
