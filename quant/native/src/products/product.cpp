// The C interface of products: rounds the activations and shares a matrix's panels among threads.
#include <string.h>

#include "api/edgelm_ops.h"
#include "isa/isa.h"
#include "products/workspace.h"
#include "system/pool.h"

namespace {

// Below so many bytes of codes times rows a second thread costs more than it brings.
constexpr int64_t kThreadedBytes = 1 << 16;
// From so many rows on, rounding activations is shared between threads too.
constexpr int64_t kThreadedRows = 8;

// A product under way.
struct Job {
    const Isa& isa;
    const edgelm_product& p;
    Activations activations;  // or, where they are not rounded,
    ExactRows exact;
};

void round_rows(const void* context, int64_t begin, int64_t end) {
    const Job& job = *static_cast<const Job*>(context);
    for (int64_t row = begin; row < end; ++row) {
        job.isa.round(*job.p.matrix, job.p.x + row * job.p.x_stride, job.activations, row);
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
    const Job& job = *static_cast<const Job*>(context);
    for (int64_t g = begin; g < end; ++g) {
        job.isa.refine(*job.p.matrix, job.p.x, job.p.x_stride, job.activations, g);
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

ExactRows exact_rows(const edgelm_product& p, const ExactSpace& space) {
    const edgelm_matrix& m = *p.matrix;
    ExactRows exact{p.x, p.x_stride, p.rows, group_count(m), space.sums};
    for (int64_t row = 0; row < p.rows; ++row) {
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

void round_all(const Job& job, int32_t threads) {
    run(round_rows, &job, job.p.rows, threads);
    count_fine(job.activations);
    run(refine_groups, &job, job.activations.groups, threads);
}

void multiply_panels(const void* context, int64_t begin, int64_t end) {
    const Job& job = *static_cast<const Job*>(context);
    const edgelm_product& p = job.p;
    for (int64_t panel = begin; panel < end; ++panel) {
        const int64_t first = panel * kPanel, left = p.matrix->outputs - first;
        const Target target{p.out + first, p.out_stride, left < kPanel ? left : kPanel,
                            p.bias ? p.bias + first : nullptr};
        const uint8_t* at = p.layout + panel * panel_bytes(*p.matrix);
        if (is_exact(*p.matrix)) {
            job.isa.exact_panel(*p.matrix, at, job.exact, target);
        } else {
            job.isa.panel(*p.matrix, at, job.activations, target);
        }
    }
}

}  // namespace

int64_t edgelm_workspace_bytes(const edgelm_matrix* matrix, int64_t rows) {
    Cutter cut(nullptr);
    if (is_exact(*matrix)) {
        place_exact(*matrix, rows, cut);
    } else {
        place(*matrix, rows, cut);
    }
    return cut.bytes + kLine;
}

void edgelm_multiply(const void* product) {
    const edgelm_product& p = *static_cast<const edgelm_product*>(product);
    const edgelm_matrix& m = *p.matrix;
    const uintptr_t beyond = reinterpret_cast<uintptr_t>(p.workspace) % kLine;
    Cutter cut(p.workspace + (beyond ? kLine - beyond : 0));
    Job job{current_isa(), p, {}, {}};
    const int64_t panels = ceil_div(m.outputs, kPanel);
    const int32_t threads = panels * panel_bytes(m) * p.rows < kThreadedBytes ? 1 : p.threads;
    if (is_exact(m)) {
        job.exact = exact_rows(p, place_exact(m, p.rows, cut));
    } else {
        job.activations = place(m, p.rows, cut);
        round_all(job, p.rows < kThreadedRows ? 1 : threads);
    }
    run(multiply_panels, &job, panels, threads);
}
