// NEON with products of 8-bit matrices (ARMv8.6): pairs of rows by 2 x 8 times 8 x 2, single rows
// by dot products.
#include "isa/isa.h"
#include "products/rounded/vector_neon_dotprod.h"

namespace {

struct NeonI8mm : NeonDotprod {
    static constexpr bool kPairs = true;

    // The products of `dot_group` by pairs of rows: a sum of 4 holds 2 rows by 2 outputs until
    // the end.
    template <Stored S, int PAIRS, int VECTORS>
    static INLINE void dot_pairs(const Group& group, Bytes plane, const Coded& x, int64_t begin,
                                 Ints (&dots)[2 * PAIRS][VECTORS]) {
        Ints sums[PAIRS][VECTORS][2] = {};
        const int8_t* in = x.codes;
        const uint8_t* at = group.codes;
        for (int64_t s = 0; s < group.steps; ++s, in += kStep, at += step_bytes(bits_of(S))) {
            int8x16_t own[PAIRS];
            UNROLL
            for (int p = 0; p < PAIRS; ++p) {
                own[p] = vcombine_s8(vld1_s8(in + 2 * p * x.stride),
                                     vld1_s8(in + (2 * p + 1) * x.stride));
            }
            UNROLL
            for (int v = 0; v < VECTORS; ++v) {
                Bytes low, high;
                load_codes<NeonI8mm, S>(at, begin + v, plane, low, high);
                const Ints a = vreinterpretq_s32_s8(less_base<S>(low));
                const Ints b = vreinterpretq_s32_s8(less_base<S>(high));
                const int8x16_t upper = vreinterpretq_s8_s32(vzip1q_s32(a, b));  // outputs 0, 1
                const int8x16_t lower = vreinterpretq_s8_s32(vzip2q_s32(a, b));  // 2 and 3
                UNROLL
                for (int p = 0; p < PAIRS; ++p) {
                    sums[p][v][0] = vmmlaq_s32(sums[p][v][0], own[p], upper);
                    sums[p][v][1] = vmmlaq_s32(sums[p][v][1], own[p], lower);
                }
            }
        }
        UNROLL
        for (int p = 0; p < PAIRS; ++p) {
            UNROLL
            for (int v = 0; v < VECTORS; ++v) {
                const Ints a = sums[p][v][0], b = sums[p][v][1];
                const Ints first = vcombine_s32(vget_low_s32(a), vget_low_s32(b));
                const Ints second = vcombine_s32(vget_high_s32(a), vget_high_s32(b));
                dots[2 * p][v] = vaddq_s32(dots[2 * p][v], first);
                dots[2 * p + 1][v] = vaddq_s32(dots[2 * p + 1][v], second);
            }
        }
    }
};

}  // namespace

const Isa kNeonI8mm = {"neoni8mm", round_row, refine_group, rounded_panel<NeonI8mm>,
                       exact_panel_neon, &kOpsGeneric};
