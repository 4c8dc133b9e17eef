// AVX512 with VNNI: tiles of up to 12 rows of activations by one panel of 32 outputs.
#include "codebooks.h"
#include "isa.h"
#include "row512.h"
#include "vectors512.h"

namespace {

// The bytes that a codebook's codes stand for.
struct Book {
    __m512i planes[kPlanes];
    float unit;

    explicit Book(const edgelm_matrix& m) : unit(::unit(m)) {
        const Planes own = ::planes(m);
        for (int p = 0; p < kPlanes; ++p) {
            const __m128i* bytes = reinterpret_cast<const __m128i*>(own.bytes[p]);
            planes[p] = _mm512_broadcast_i32x4(_mm_load_si128(bytes));
        }
    }
};

template <Stored S>
inline void load_codes(const uint8_t* at, __m512i plane, __m512i& low, __m512i& high) {
    low = _mm512_loadu_si512(at);
    if (S == Stored::kInt8) {
        high = _mm512_loadu_si512(at + 64);
        return;
    }
    const __m512i nibble = _mm512_set1_epi8(15);
    high = _mm512_and_si512(_mm512_srli_epi16(low, 4), nibble);
    low = _mm512_and_si512(low, nibble);
    if (S == Stored::kBook) {
        high = _mm512_shuffle_epi8(plane, high);
        low = _mm512_shuffle_epi8(plane, low);
    }
}

// What a sum of codes times activations starts from: minus the zero times the activations' sum.
inline __m512i preset(const edgelm_matrix& m, const uint8_t* zeros, int half, int32_t sum) {
    if (m.zeros != EDGELM_ZEROS_INT) return _mm512_set1_epi32(-sum * middle_code(m));
    return _mm512_mullo_epi32(load_codes_wide(zeros, half), _mm512_set1_epi32(-sum));
}

// Few rows leave registers for two chains of sums, which hide the instruction's latency.
constexpr int chains(int rows) { return rows <= 4 ? 2 : 1; }

// The codes of a group, or one plane of what they stand for, times rows of `x`.
template <Stored S, int ROWS>
INLINE void dot_group(const Group& group, __m512i plane, const Coded& x,
                      __m512i (&dots)[ROWS][kHalves][chains(ROWS)]) {
    constexpr int kChains = chains(ROWS);
    constexpr int64_t kBytes = step_bytes(bits_of(S));
    const int8_t* in = x.codes;
    const uint8_t* at = group.codes;
    for (int64_t s = 0; s < group.steps; ++s, in += kStep, at += kBytes) {
        __m512i low[kHalves], high[kHalves];
        UNROLL
        for (int h = 0; h < kHalves; ++h) {
            load_codes<S>(at + h * kBytes / 2, plane, low[h], high[h]);
        }
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const __m512i first = spread4(in + r * x.stride);
            const __m512i second = spread4(in + r * x.stride + 4);
            UNROLL
            for (int h = 0; h < kHalves; ++h) {
                dots[r][h][0] = dot4(dots[r][h][0], low[h], first);
                dots[r][h][kChains - 1] = dot4(dots[r][h][kChains - 1], high[h], second);
            }
        }
    }
}

// Rows of `x` times one group of a panel, added to their sums.
template <Stored S, int ROWS>
INLINE void add_group(const edgelm_matrix& m, const Book& book, const Group& group,
                      const Coded& x, __m512 (&sums)[ROWS][kHalves]) {
    constexpr int kChains = chains(ROWS);
    const uint8_t* zeros = group.parameters + scales_bytes(m);
    __m512i dots[ROWS][kHalves][kChains];
    UNROLL
    for (int plane = 0; plane < (S == Stored::kBook ? kPlanes : 1); ++plane) {
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
            UNROLL
            for (int h = 0; h < kHalves; ++h) {
                __m512i start = preset(m, zeros, h, x.sums[r * x.step]);
                if (plane > 0) {
                    __m512i upper = dots[r][h][0];
                    if (kChains == 2) upper = _mm512_add_epi32(upper, dots[r][h][kChains - 1]);
                    start = _mm512_add_epi32(_mm512_slli_epi32(upper, 8), start);
                }
                dots[r][h][kChains - 1] = _mm512_setzero_si512();
                dots[r][h][0] = start;
            }
        }
        dot_group<S, ROWS>(group, book.planes[plane], x, dots);
    }
    UNROLL
    for (int h = 0; h < kHalves; ++h) {
        const __m512 scale = load_floats(group.parameters, m.scales, h);
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const __m512 a = _mm512_set1_ps(x.scales[r * x.step] * book.unit);
            __m512i dot = dots[r][h][0];
            if (kChains == 2) dot = _mm512_add_epi32(dot, dots[r][h][kChains - 1]);
            const __m512 product = _mm512_cvtepi32_ps(dot);
            sums[r][h] = _mm512_fmadd_ps(product, _mm512_mul_ps(scale, a), sums[r][h]);
        }
    }
    if (m.zeros != EDGELM_ZEROS_FLOAT) return;
    UNROLL
    for (int h = 0; h < kHalves; ++h) {
        const __m512 zero = load_floats(zeros, m.scales, h);
        UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const float total = static_cast<float>(x.sums[r * x.step]) * x.scales[r * x.step];
            sums[r][h] = _mm512_fmadd_ps(_mm512_set1_ps(total), zero, sums[r][h]);
        }
    }
}

template <Stored S, int ROWS>
void tile(const edgelm_matrix& m, const Book& book, const uint8_t* panel, const Activations& x,
          int64_t row, const Target& target) {
    __m512 sums[ROWS][kHalves];
    for (auto& pair : sums) pair[0] = pair[1] = _mm512_setzero_ps();
    Group group = Group::first_of(m, panel);
    for (int64_t g = 0; g < x.groups; ++g, group.next(m)) {
        add_group<S, ROWS>(m, book, group, rows_of(x, row, g, group.first), sums);
    }
    UNROLL
    for (int r = 0; r < ROWS; ++r) {
        float values[kPanel];
        UNROLL
        for (int h = 0; h < kHalves; ++h) _mm512_storeu_ps(values + 16 * h, sums[r][h]);
        store(target, row + r, 0, values, kPanel);
    }
}

// Fine rows [entry, entry + ROWS) times their group, added to what the target has.
template <Stored S, int ROWS>
void fine_tile(const edgelm_matrix& m, const Book& book, const Group& group,
               const Activations& x, int64_t entry, const Target& target) {
    __m512 sums[ROWS][kHalves];
    float values[kPanel] = {};
    UNROLL
    for (int r = 0; r < ROWS; ++r) {
        fetch(target, x.fine_rows[entry + r], values);
        UNROLL
        for (int h = 0; h < kHalves; ++h) sums[r][h] = _mm512_loadu_ps(values + 16 * h);
    }
    add_group<S, ROWS>(m, book, group, fine_of(m, x, entry), sums);
    UNROLL
    for (int r = 0; r < ROWS; ++r) {
        UNROLL
        for (int h = 0; h < kHalves; ++h) _mm512_storeu_ps(values + 16 * h, sums[r][h]);
        put_back(target, x.fine_rows[entry + r], values);
    }
}

template <Stored S>
void rows_by_tiles(const edgelm_matrix& m, const uint8_t* panel, const Activations& x,
                   const Target& target) {
    if (S != Stored::kBook && x.rows == 1 && group_inputs(m) % (4 * kStep) == 0) {
        return one_row<S>(m, panel, x, target);
    }
    const Book book(m);
    int64_t row = 0;
    for (; x.rows - row >= 12; row += 12) tile<S, 12>(m, book, panel, x, row, target);
    for (; x.rows - row >= 8; row += 8) tile<S, 8>(m, book, panel, x, row, target);
    for (; x.rows - row >= 4; row += 4) tile<S, 4>(m, book, panel, x, row, target);
    for (; x.rows - row >= 2; row += 2) tile<S, 2>(m, book, panel, x, row, target);
    for (; x.rows - row >= 1; row += 1) tile<S, 1>(m, book, panel, x, row, target);
    for (int64_t g = 0; g < x.groups; ++g) {
        const Group group = Group::at(m, panel, g);
        int64_t entry = x.fine_begins[g];
        const int64_t end = x.fine_begins[g + 1];
        for (; end - entry >= 8; entry += 8) fine_tile<S, 8>(m, book, group, x, entry, target);
        for (; end - entry >= 4; entry += 4) fine_tile<S, 4>(m, book, group, x, entry, target);
        for (; end - entry >= 1; entry += 1) fine_tile<S, 1>(m, book, group, x, entry, target);
    }
}

}  // namespace

#include "rounding_dispatch.h"

const Isa kAvx512Vnni = {"avx512vnni", round_row,          refine_group,
                         multiply,     exact_panel_avx512, &kOpsAvx512};
