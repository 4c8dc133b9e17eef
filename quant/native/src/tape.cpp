// Recorded steps, and the products as operations that can be recorded.
#include "edgelm_ops.h"

void edgelm_linear(const void* product) {
    const edgelm_product& p = *static_cast<const edgelm_product*>(product);
    edgelm_multiply(p.matrix, p.layout, p.x, p.rows, p.x_stride, p.bias, p.out, p.out_stride,
                    p.workspace, p.threads);
}

void edgelm_embed(const void* reading) {
    const edgelm_reading& r = *static_cast<const edgelm_reading*>(reading);
    edgelm_lookup(r.matrix, r.layout, r.ids, r.count, r.out, r.out_stride);
}

void edgelm_replay(const void* tape) {
    const edgelm_tape& recorded = *static_cast<const edgelm_tape*>(tape);
    for (int64_t i = 0; i < recorded.count; ++i) {
        recorded.calls[i].operation(recorded.calls[i].arguments);
    }
}
