// Every product in plain C++: what runs where no vector code fits, and what the others equal.
#include <cmath>

#include "isa/isa.h"
#include "layout/codebooks.h"
#include "layout/codes.h"

namespace {

// `book` says what 4-bit codes stand for, null that they are integers.
template <int BITS>
void dot(const Group& group, const uint8_t* book, const int8_t* x, int32_t* dots) {
    const uint8_t* codes = group.codes;
    for (int64_t s = 0; s < group.steps; ++s, x += kStep) {
        for (int64_t half = 0; half < kPanel; half += 16, codes += step_bytes(BITS) / 2) {
            for (int64_t i = 0; i < 64; ++i) {
                Pair pair = pair_at(codes, BITS, i);
                if (book) pair = {book[pair.low], book[pair.high]};
                dots[half + i / 4] += pair.low * x[i % 4] + pair.high * x[4 + i % 4];
            }
        }
    }
}

void dot(const edgelm_matrix& m, const Group& group, const uint8_t* book, const int8_t* x,
         int32_t* dots) {
    switch (m.bits) {
        case 4: return dot<4>(group, book, x, dots);
        case 5: return dot<5>(group, book, x, dots);
        case 6: return dot<6>(group, book, x, dots);
        default: return dot<8>(group, book, x, dots);
    }
}

// One row of `x` times a group, added to a panel's sums.
void add_group(const edgelm_matrix& m, const Group& group, const Coded& x, float* sums) {
    const float a = *x.scales * unit(m);
    const int32_t sum = *x.sums;
    const Stored kind = stored(m);
    const Planes own = planes(m);
    int32_t dots[kPanel] = {};
    for (int plane = 0; plane < plane_count(kind); ++plane) {
        for (int64_t i = 0; i < kPanel; ++i) {
            const int32_t zero = m.zeros == EDGELM_ZEROS_INT ? group.zeros[i] : middle_code(m);
            dots[i] = dots[i] * 256 - sum * zero;
        }
        dot(m, group, is_book(kind) ? own.bytes[plane] : nullptr, x.codes, dots);
    }
    for (int64_t i = 0; i < kPanel; ++i) {
        const float scale = read_scale(m, group, i);
        sums[i] = std::fma(static_cast<float>(dots[i]), scale * a, sums[i]);
        if (m.zeros == EDGELM_ZEROS_FLOAT) {
            const float minimum = read_minimum(m, group, i);
            sums[i] = std::fma(static_cast<float>(sum) * a, minimum, sums[i]);
        }
    }
}

void multiply(const edgelm_matrix& m, const uint8_t* panel, const Activations& x,
              const Target& target) {
    for (int64_t row = 0; row < x.rows; ++row) {
        float sums[kPanel] = {};
        Group group = Group::first_of(m, panel);
        for (int64_t g = 0; g < x.groups; ++g, group.next(m)) {
            add_group(m, group, rows_of(x, row, g, group.first), sums);
        }
        store(target, row, 0, sums, kPanel);
    }
    for (int64_t g = 0; g < x.groups; ++g) {
        const Group group = Group::at(m, panel, g);
        for (int64_t entry = x.fine_begins[g]; entry < x.fine_begins[g + 1]; ++entry) {
            float sums[kPanel] = {};
            fetch(target, x.fine_rows[entry], sums);
            add_group(m, group, fine_of(m, x, entry), sums);
            put_back(target, x.fine_rows[entry], sums);
        }
    }
}

}  // namespace

const Isa kGeneric = {"generic", round_row,           refine_group,
                      multiply,  exact_panel_generic, &kOpsGeneric};
