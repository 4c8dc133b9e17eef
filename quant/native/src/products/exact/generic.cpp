// Products with activations as they are, in plain C++: what the other sets equal.
#include <cmath>

#include "layout/codebooks.h"
#include "layout/floats.h"
#include "isa/isa.h"

namespace {

// Input `i` of row `row` of a step as a number without its scale, less `zero`.
float number(const edgelm_matrix& m, const uint8_t* step, int64_t row, int64_t i, float zero) {
    if (m.codes == EDGELM_FLOATS) return read_float(step, m.scales, i * kPanel + row);
    const uint8_t* at = step + row / 16 * (step_bytes(m.bits) / 2) + row % 16 * 4 + i % 4;
    const bool high = i >= 4;
    const int32_t code = m.bits == 8 ? at[high ? 64 : 0] : (high ? *at >> 4 : *at & 15);
    if (m.codes != EDGELM_INTEGERS) return numbers(m)[code];
    return static_cast<float>(code) - zero;
}

// A row of activations times row `row` of a group.
float dot(const edgelm_matrix& m, const Group& group, int64_t row, const float* x) {
    const uint8_t* zeros = group.parameters + scales_bytes(m);
    const int32_t zero = m.zeros == EDGELM_ZEROS_INT ? zeros[row] : middle_code(m);
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
            const uint8_t* zeros = group.parameters + scales_bytes(m);
            for (int64_t i = 0; i < kPanel; ++i) {
                const bool plain = m.codes == EDGELM_FLOATS;
                const float scale = plain ? 1.0f : read_float(group.parameters, m.scales, i);
                const float own = dot(m, group, i, x.x + row * x.stride + group.first);
                sums[i] = std::fma(own, scale, sums[i]);
                if (m.zeros == EDGELM_ZEROS_FLOAT) {
                    const float zero = read_float(zeros, m.scales, i);
                    sums[i] = std::fma(x.sums[row * x.groups + g], zero, sums[i]);
                }
            }
        }
        store(target, row, 0, sums, kPanel);
    }
}
