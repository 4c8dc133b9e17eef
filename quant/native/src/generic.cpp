// Every product in plain C++: what runs where no vector code fits, and what the others equal.
#include <cmath>

#include "floats.h"
#include "isa.h"

namespace {

template <int BITS>
void dot(const Group& group, const int8_t* x, int32_t* dots) {
    const uint8_t* codes = group.codes;
    for (int64_t s = 0; s < group.steps; ++s, x += kStep) {
        for (int64_t half = 0; half < kPanel; half += 16, codes += step_bytes(BITS) / 2) {
            for (int64_t i = 0; i < 64; ++i) {
                const int32_t low = BITS == 4 ? codes[i] & 15 : codes[i];
                const int32_t high = BITS == 4 ? codes[i] >> 4 : codes[64 + i];
                dots[half + i / 4] += low * x[i % 4] + high * x[4 + i % 4];
            }
        }
    }
}

void multiply(const edgelm_matrix& m, const uint8_t* panel, const Activations& x,
              const Target& target) {
    for (int64_t row = 0; row < x.rows; ++row) {
        float sums[kPanel] = {};
        Group group = Group::first_of(m, panel);
        for (int64_t g = 0; g < x.groups; ++g, group.next(m)) {
            const float a = x.scales[row * x.groups + g];
            const int32_t sum = x.sums[row * x.groups + g];
            const uint8_t* zeros = group.parameters + scales_bytes(m);
            int32_t dots[kPanel];
            for (int64_t i = 0; i < kPanel; ++i) {
                dots[i] = -sum * (m.zeros == EDGELM_ZEROS_INT ? zeros[i] : middle_code(m));
            }
            (m.bits == 4 ? dot<4> : dot<8>)(group, x.codes + row * x.stride + group.first, dots);
            for (int64_t i = 0; i < kPanel; ++i) {
                const float scale = read_float(group.parameters, m.scales, i);
                sums[i] = std::fma(static_cast<float>(dots[i]), scale * a, sums[i]);
                if (m.zeros == EDGELM_ZEROS_FLOAT) {
                    const float zero = read_float(zeros, m.scales, i);
                    sums[i] = std::fma(static_cast<float>(sum) * a, zero, sums[i]);
                }
            }
        }
        store(target, row, 0, sums, kPanel);
    }
}

}  // namespace

const Isa kGeneric = {"generic", round_row, multiply};
