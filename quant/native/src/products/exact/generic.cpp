// Products with activations as they are, in plain C++: what the other sets equal.
#include <cmath>

#include "isa/isa.h"
#include "layout/codebooks.h"
#include "layout/codes.h"

namespace {

// Input `i` of row `row` of a step as a number without its scale, less `zero`.
float number(const edgelm_matrix& m, const uint8_t* step, int64_t row, int64_t i, float zero) {
    if (m.codes == EDGELM_FLOATS) return read_float(step, m.scales, i * kPanel + row);
    const int32_t code = code_in(m, step, row, i);
    if (m.codes != EDGELM_INTEGERS) return numbers(m)[code];
    return static_cast<float>(code) - zero;
}

// A row of activations times row `row` of a group.
float dot(const edgelm_matrix& m, const Group& group, int64_t row, const float* x) {
    const int32_t zero = m.zeros == EDGELM_ZEROS_INT ? group.zeros[row] : middle_code(m);
    float low = 0.0f, high = 0.0f;
    const uint8_t* step = group.codes;
    for (int64_t s = 0; s < group.steps; ++s, x += kStep, step += step_bytes(m.bits)) {
        for (int64_t j = 0; j < 4; ++j) {
            low = std::fma(x[j], number(m, step, row, j, static_cast<float>(zero)), low);
            high = std::fma(x[j + 4], number(m, step, row, j + 4, static_cast<float>(zero)), high);
        }
    }
    return low + high;
}

}  // namespace

void exact_panel_generic(const edgelm_matrix& m, const uint8_t* panel, const ExactRows& x,
                         const Target& target) {
    for (int64_t row = 0; row < x.rows; ++row) {
        float sums[kPanel] = {};
        Group group = Group::first_of(m, panel);
        for (int64_t g = 0; g < x.groups; ++g, group.next(m)) {
            for (int64_t i = 0; i < kPanel; ++i) {
                const bool plain = m.codes == EDGELM_FLOATS;
                const float scale = plain ? 1.0f : read_scale(m, group, i);
                const float own = dot(m, group, i, x.x + row * x.stride + group.first);
                sums[i] = std::fma(own, scale, sums[i]);
                if (m.zeros == EDGELM_ZEROS_FLOAT) {
                    const float sum = x.sums[row * x.groups + g];
                    sums[i] = std::fma(sum, read_minimum(m, group, i), sums[i]);
                }
            }
        }
        store(target, row, 0, sums, kPanel);
    }
}
