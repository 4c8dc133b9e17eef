// AVX512 with VNNI: tiles of up to 6 rows of activations by one panel of 32 outputs.
//
// Of six rows the sums of a group and of the whole stay in registers; with twice as many the latter
// are stored and loaded in every group, which takes longer than reading the codes twice as often.
#include "isa/isa.h"
#include "products/rounded/book.h"
#include "products/vector_avx512.h"

namespace {

constexpr int kHalves = 2;  // of a panel, 16 outputs each

// A single row is read as fast as memory gives it. One line of each group is asked for so many
// bytes ahead, which takes the delay out of the pages that come; asking for every line costs more.
constexpr int64_t kAhead = 32 << 10;

// Few rows leave registers for two chains of sums, which hide the instruction's latency.
constexpr int chains(int rows) { return rows <= 2 ? 2 : 1; }

// Where chains are apart, upper nibbles stay in place: their sums are 16 times too large until
// `joined` shifts them, all at once.
template <Stored S, int ROWS>
constexpr bool stays_in_place() {
    return S == Stored::kInt4 && chains(ROWS) == 2;
}

template <Stored S, int ROWS>
INLINE void load_codes(const uint8_t* step, int half, __m512i plane, __m512i& low,
                       __m512i& high) {
    if (stays_in_place<S, ROWS>()) {
        const __m512i stored = Avx512::load_bytes(step + half * kNibbles);
        low = Avx512::low_nibbles(stored);
        high = _mm512_andnot_si512(_mm512_set1_epi8(15), stored);
        return;
    }
    stored_codes<Avx512, S>(step, half, low, high);
    if (is_book(S)) {
        high = _mm512_shuffle_epi8(plane, high);
        low = _mm512_shuffle_epi8(plane, low);
    }
}

template <int ROWS>
using Dots = __m512i[ROWS][kHalves][chains(ROWS)];

template <Stored S, int ROWS>
INLINE void dot_step(const uint8_t* at, __m512i plane, const int8_t* x, int64_t stride,
                     Dots<ROWS>& dots) {
    constexpr int kLast = chains(ROWS) - 1;
    __m512i low[kHalves], high[kHalves];
    UNROLL
    for (int h = 0; h < kHalves; ++h) {
        load_codes<S, ROWS>(at, h, plane, low[h], high[h]);
    }
    UNROLL
    for (int r = 0; r < ROWS; ++r) {
        const __m512i first = Avx512::spread4(x + r * stride);
        const __m512i second = Avx512::spread4(x + r * stride + 4);
        UNROLL
        for (int h = 0; h < kHalves; ++h) {
            dots[r][h][0] = Avx512::dot4(dots[r][h][0], low[h], first);
            dots[r][h][kLast] = Avx512::dot4(dots[r][h][kLast], high[h], second);
        }
    }
}

template <Stored S, int ROWS>
INLINE __m512i joined(const __m512i (&dots)[chains(ROWS)]) {
    if (chains(ROWS) == 1) return dots[0];
    const __m512i other = dots[chains(ROWS) - 1];
    return _mm512_add_epi32(
        dots[0], stays_in_place<S, ROWS>() ? _mm512_srai_epi32(other, 4) : other);
}

// A group's codes and parameters, in blocks of four steps and a rest of single ones.
struct Codes {
    const uint8_t* parameters;
    const uint8_t* codes;
    const uint8_t* supers;  // of its block, where scales are coded
    int64_t blocks;
    int64_t rest;
};

// What a row's dots start from: minus the zero times the activations' sum.
template <Stored S, int32_t ZEROS>
INLINE __m512i preset(const uint8_t* zeros, int half, int32_t sum) {
    if (ZEROS != EDGELM_ZEROS_INT) return _mm512_set1_epi32(-sum * middle_of(S, ZEROS));
    return _mm512_mullo_epi32(Avx512::load_wide(zeros, half), _mm512_set1_epi32(-sum));
}

// Rows of `x` times one group of a panel, added to their sums.
template <Stored S, int32_t ZEROS, int ROWS>
INLINE void add_group(const edgelm_matrix& m, const Book<Avx512>& book, const Codes& group,
                      const Coded& x, __m512 (&sums)[ROWS][kHalves]) {
    constexpr int64_t kBytes = step_bytes(bits_of(S));
    constexpr int kLast = chains(ROWS) - 1, kCount = plane_count(S);
    const uint8_t* zeros = group.parameters + scales_bytes(m);
    Dots<ROWS> dots;
    UNROLL
    for (int plane = 0; plane < kCount; ++plane) {
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
            UNROLL
            for (int h = 0; h < kHalves; ++h) {
                __m512i start = preset<S, ZEROS>(zeros, h, x.sums[r * x.step]);
                if (plane > 0) {
                    const __m512i upper = _mm512_slli_epi32(joined<S, ROWS>(dots[r][h]), 8);
                    start = _mm512_add_epi32(upper, start);
                }
                dots[r][h][kLast] = _mm512_setzero_si512();
                dots[r][h][0] = start;
            }
        }
        const uint8_t* at = group.codes;
        const int8_t* in = x.codes;
        for (int64_t b = group.blocks; b > 0; --b, at += 4 * kBytes, in += 4 * kStep) {
            UNROLL
            for (int s = 0; s < 4; ++s) {
                dot_step<S, ROWS>(at + s * kBytes, book.planes[plane], in + s * kStep, x.stride,
                                  dots);
            }
        }
        for (int64_t s = group.rest; s > 0; --s, at += kBytes, in += kStep) {
            dot_step<S, ROWS>(at, book.planes[plane], in, x.stride, dots);
        }
    }
    __m512 scales[kHalves];
    load_scales<Avx512>(m, group.parameters, group.supers, 0, scales);
    UNROLL
    for (int r = 0; r < ROWS; ++r) {
        const float own = x.scales[r * x.step];
        const __m512 a = _mm512_set1_ps(S == Stored::kBook ? own * book.unit : own);
        UNROLL
        for (int h = 0; h < kHalves; ++h) {
            const __m512 product = _mm512_cvtepi32_ps(joined<S, ROWS>(dots[r][h]));
            sums[r][h] = _mm512_fmadd_ps(product, _mm512_mul_ps(scales[h], a), sums[r][h]);
        }
    }
    if (ZEROS != EDGELM_ZEROS_FLOAT) return;
    __m512 minima[kHalves];
    load_minima<Avx512>(m, zeros, group.supers, 0, minima);
    UNROLL
    for (int h = 0; h < kHalves; ++h) {
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const float total = static_cast<float>(x.sums[r * x.step]) * x.scales[r * x.step];
            sums[r][h] = _mm512_fmadd_ps(_mm512_set1_ps(total), minima[h], sums[r][h]);
        }
    }
}

// A panel and the rows it meets: what all tiles of one product have in common.
template <Stored S, int32_t ZEROS>
class Product {
  public:
    Product(const edgelm_matrix& m, const uint8_t* panel, const Activations& x,
            const Target& target)
        : m_(m), panel_(panel), groups_(panel + super_blocks(m) * super_bytes(m)), x_(x),
          target_(target), book_(m), width_(group_inputs(m)),
          own_(m.group ? parameter_bytes(m) : 0),
          bytes_(own_ + width_ / kStep * step_bytes(bits_of(S))), full_(m.inputs / width_),
          supers_(super_blocks(m) > 1 ? super_bytes(m) : 0) {}

    void run() const {
        int64_t row = 0;
        for (; x_.rows - row >= 6; row += 6) tile<6>(row);
        for (; x_.rows - row >= 4; row += 4) tile<4>(row);
        for (; x_.rows - row >= 2; row += 2) tile<2>(row);
        for (; x_.rows - row >= 1; row += 1) tile<1>(row);
        if (x_.rows == 1) return;  // its tile had the fine row in it
        for (int64_t g = 0; g < x_.groups; ++g) {
            const Codes codes = group(g);
            int64_t entry = x_.fine_begins[g];
            const int64_t end = x_.fine_begins[g + 1];
            for (; end - entry >= 6; entry += 6) fine_tile<6>(codes, entry);
            for (; end - entry >= 2; entry += 2) fine_tile<2>(codes, entry);
            for (; end - entry >= 1; entry += 1) fine_tile<1>(codes, entry);
        }
    }

  private:
    Codes group(int64_t g) const {
        const uint8_t* codes = groups_ + parameter_bytes(m_) + g * bytes_;
        const int64_t inputs = g < full_ ? width_ : m_.inputs - g * width_;
        const int64_t steps = ceil_div(inputs, kStep);
        return {m_.group ? codes - own_ : groups_, codes, supers(g), steps / 4, steps % 4};
    }

    const uint8_t* supers(int64_t g) const { return panel_ + g * width_ / kBlock * supers_; }

    template <int ROWS>
    void tile(int64_t row) const {
        __m512 sums[ROWS][kHalves];
        for (auto& pair : sums) pair[0] = pair[1] = _mm512_setzero_ps();
        Codes codes = group(0);
        for (int64_t g = 0; g < full_; ++g) {
            codes.supers = supers(g);
            add_group<S, ZEROS, ROWS>(m_, book_, codes, rows_of(x_, row, g, g * width_), sums);
            if (ROWS == 1) {
                _mm_prefetch(reinterpret_cast<const char*>(codes.codes + kAhead), _MM_HINT_T0);
            }
            codes.codes += bytes_;
            if (m_.group) codes.parameters += bytes_;
        }
        for (int64_t g = full_; g < x_.groups; ++g) {
            add_group<S, ZEROS, ROWS>(m_, book_, group(g), rows_of(x_, row, g, g * width_), sums);
        }
        if (target_.bias) add_bias<ROWS>(sums);
        for (int64_t g = 0; ROWS == 1 && x_.rows == 1 && g < x_.groups; ++g) {
            const int64_t entry = x_.fine_begins[g];
            if (entry == x_.fine_begins[g + 1]) continue;
            add_group<S, ZEROS, ROWS>(m_, book_, group(g), fine_of(m_, x_, entry), sums);
        }
        UNROLL
        for (int r = 0; r < ROWS; ++r) write(row + r, sums[r]);
    }

    // Fine rows [entry, entry + ROWS) times their group, added to what the target has.
    template <int ROWS>
    void fine_tile(const Codes& codes, int64_t entry) const {
        __m512 sums[ROWS][kHalves];
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const float* from = target_.out + x_.fine_rows[entry + r] * target_.stride;
            UNROLL
            for (int h = 0; h < kHalves; ++h) {
                sums[r][h] = _mm512_maskz_loadu_ps(real(h), from + 16 * h);
            }
        }
        add_group<S, ZEROS, ROWS>(m_, book_, codes, fine_of(m_, x_, entry), sums);
        UNROLL
        for (int r = 0; r < ROWS; ++r) write(x_.fine_rows[entry + r], sums[r]);
    }

    template <int ROWS>
    void add_bias(__m512 (&sums)[ROWS][kHalves]) const {
        UNROLL
        for (int h = 0; h < kHalves; ++h) {
            const __m512 bias = _mm512_maskz_loadu_ps(real(h), target_.bias + 16 * h);
            UNROLL
            for (int r = 0; r < ROWS; ++r) sums[r][h] = _mm512_add_ps(sums[r][h], bias);
        }
    }

    void write(int64_t row, const __m512 (&sums)[kHalves]) const {
        float* to = target_.out + row * target_.stride;
        UNROLL
        for (int h = 0; h < kHalves; ++h) _mm512_mask_storeu_ps(to + 16 * h, real(h), sums[h]);
    }

    // Which of a half's 16 outputs the matrix has.
    __mmask16 real(int half) const {
        const int64_t count = target_.columns - 16 * half;
        return static_cast<__mmask16>(count >= 16 ? 0xffff : count > 0 ? (1 << count) - 1 : 0);
    }

    const edgelm_matrix& m_;
    const uint8_t* panel_;
    const uint8_t* groups_;  // behind the supers
    const Activations& x_;
    const Target& target_;
    const Book<Avx512> book_;
    const int64_t width_;   // inputs of a group
    const int64_t own_;     // bytes of parameters that each group has
    const int64_t bytes_;   // from one group's codes to the next one's
    const int64_t full_;    // groups of all their inputs
    const int64_t supers_;  // from one block's supers to the next one's, 0 if all share one
};

template <Stored S>
void rows_by_tiles(const edgelm_matrix& m, const uint8_t* panel, const Activations& x,
                   const Target& target) {
    switch (m.zeros) {
        case EDGELM_ZEROS_NONE: return Product<S, EDGELM_ZEROS_NONE>(m, panel, x, target).run();
        case EDGELM_ZEROS_INT: return Product<S, EDGELM_ZEROS_INT>(m, panel, x, target).run();
        default: return Product<S, EDGELM_ZEROS_FLOAT>(m, panel, x, target).run();
    }
}

void multiply(const edgelm_matrix& m, const uint8_t* panel, const Activations& x,
              const Target& target) {
    by_codes(m, [&](auto kind) { rows_by_tiles<kind.kStored>(m, panel, x, target); });
}

}  // namespace

const Isa kAvx512Vnni = {"avx512vnni", round_row,          refine_group,
                         multiply,     exact_panel_avx512, &kOpsAvx512};
