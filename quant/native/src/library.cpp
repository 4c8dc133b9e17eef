// The C interface but for packing: the choice of the instruction set, and the product.
#include <atomic>

#include "isa.h"
#include "platform.h"
#include "pool.h"

namespace {

// Below so many bytes of codes times rows a second thread costs more than it brings.
constexpr int64_t kThreadedBytes = 1 << 16;
// From so many rows on, rounding activations is shared between threads too.
constexpr int64_t kThreadedRows = 8;

constexpr int kMaxIsas = 4;  // of one processor family

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
        if (cpu.avx_vnni) list.found[list.count++] = &kAvxVnni;
        if (cpu.avx512_vnni) list.found[list.count++] = &kAvx512Vnni;
#elif defined(EDGELM_ARM)
        const CpuFeatures cpu = cpu_features();
        if (cpu.neon_dotprod) list.found[list.count++] = &kNeonDotprod;
        if (cpu.neon_i8mm) list.found[list.count++] = &kNeonI8mm;
#endif
        return list;
    }();
    return own;
}

std::atomic<const Isa*> chosen{nullptr};

struct Product {
    const Isa& isa;
    const edgelm_matrix& matrix;
    const uint8_t* layout;
    const float* x;
    int64_t x_stride;
    const float* bias;
    float* out;
    int64_t out_stride;
    Activations activations;  // or, where they are not rounded,
    ExactRows exact;
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

// Room for what exact products need besides the activations: their sums, and padded copies.
struct ExactSpace {
    float* padded;
    int64_t stride;
    float* sums;
};

ExactSpace place_exact(const edgelm_matrix& m, int64_t rows, Cutter& cut) {
    ExactSpace space{};
    space.stride = activation_stride(m);
    if (needs_padding(m)) space.padded = cut.take<float>(rows * space.stride);
    if (m.zeros == EDGELM_ZEROS_FLOAT) space.sums = cut.take<float>(rows * group_count(m));
    return space;
}

ExactRows exact_rows(const Product& p, int64_t rows, const ExactSpace& space) {
    const edgelm_matrix& m = p.matrix;
    ExactRows exact{p.x, p.x_stride, rows, group_count(m), space.sums};
    for (int64_t row = 0; row < rows; ++row) {
        const float* x = p.x + row * p.x_stride;
        if (space.padded) {
            float* copy = space.padded + row * space.stride;
            memset(copy, 0, static_cast<size_t>(space.stride) * sizeof(float));
            memcpy(copy, x, static_cast<size_t>(m.inputs) * sizeof(float));
        }
        for (int64_t g = 0; space.sums && g < exact.groups; ++g) {
            const int64_t first = g * group_inputs(m), left = m.inputs - first;
            const int64_t count = left < group_inputs(m) ? left : group_inputs(m);
            space.sums[row * exact.groups + g] = sum_of(x + first, count);
        }
    }
    if (space.padded) exact.x = space.padded, exact.stride = space.stride;
    return exact;
}

void round_all(const Product& p, int32_t threads) {
    run(round_rows, &p, p.activations.rows, threads);
    count_fine(p.activations);
    run(refine_groups, &p, p.activations.groups, threads);
}

void multiply_panels(const void* context, int64_t begin, int64_t end) {
    const Product& p = *static_cast<const Product*>(context);
    for (int64_t panel = begin; panel < end; ++panel) {
        const int64_t first = panel * kPanel, left = p.matrix.outputs - first;
        const Target target{p.out + first, p.out_stride, left < kPanel ? left : kPanel,
                            p.bias ? p.bias + first : nullptr};
        const uint8_t* at = p.layout + panel * panel_bytes(p.matrix);
        if (is_exact(p.matrix)) {
            p.isa.exact_panel(p.matrix, at, p.exact, target);
        } else {
            p.isa.panel(p.matrix, at, p.activations, target);
        }
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

int64_t edgelm_workspace_bytes(const edgelm_matrix* matrix, int64_t rows) {
    Cutter cut(nullptr);
    if (is_exact(*matrix)) {
        place_exact(*matrix, rows, cut);
    } else {
        place(*matrix, rows, cut);
    }
    return cut.bytes + kLine;
}

void edgelm_multiply(const edgelm_matrix* matrix, const uint8_t* layout, const float* x,
                     int64_t rows, int64_t x_stride, const float* bias, float* out,
                     int64_t out_stride, uint8_t* workspace, int32_t threads) {
    const uintptr_t beyond = reinterpret_cast<uintptr_t>(workspace) % kLine;
    Cutter cut(workspace + (beyond ? kLine - beyond : 0));
    Product product{current_isa(), *matrix, layout, x,  x_stride, bias,
                    out,           out_stride, {},    {}};
    const int64_t panels = ceil_div(matrix->outputs, kPanel);
    if (panels * panel_bytes(*matrix) * rows < kThreadedBytes) threads = 1;
    if (is_exact(*matrix)) {
        product.exact = exact_rows(product, rows, place_exact(*matrix, rows, cut));
    } else {
        product.activations = place(*matrix, rows, cut);
        round_all(product, rows < kThreadedRows ? 1 : threads);
    }
    run(multiply_panels, &product, panels, threads);
}
