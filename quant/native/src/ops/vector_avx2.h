// Sixteen floats in two registers of AVX2 with FMA.
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "isa/compiler.h"

namespace {

struct Vec {
    __m256 low, high;
};

constexpr int kMixRows = 2, kMixVectors = 2;

inline Vec load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline void store(float* to, Vec v) {
    _mm256_storeu_ps(to, v.low);
    _mm256_storeu_ps(to + 8, v.high);
}
inline Vec fill(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Vec add(Vec a, Vec b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
inline Vec sub(Vec a, Vec b) {
    return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
inline Vec mul(Vec a, Vec b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
inline Vec div(Vec a, Vec b) {
    return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}
inline Vec fma(Vec a, Vec b, Vec c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Vec larger(Vec a, Vec b) {
    return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
inline Vec smaller(Vec a, Vec b) {
    return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}
inline Vec where_less(Vec a, Vec b, Vec yes, Vec no) {
    return {_mm256_blendv_ps(no.low, yes.low, _mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ)),
            _mm256_blendv_ps(no.high, yes.high, _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ))};
}
inline __m256 times_power(__m256 x, __m256 shifted) {
    const __m256i power = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), power));
}
inline Vec times_power(Vec x, Vec shifted) {
    return {times_power(x.low, shifted.low), times_power(x.high, shifted.high)};
}
inline __m256 wide_bfloat16s(__m128i from) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(from), 16));
}
inline Vec load(const uint16_t* from) {
    const __m128i* at = reinterpret_cast<const __m128i*>(from);
    return {wide_bfloat16s(_mm_loadu_si128(at)), wide_bfloat16s(_mm_loadu_si128(at + 1))};
}
inline __m256 wide_int8s(__m128i from) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(from));
}
inline Vec load(const int8_t* from) {
    const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return {wide_int8s(all), wide_int8s(_mm_unpackhi_epi64(all, all))};
}
inline float sum(Vec v) {
    const __m256 eight = _mm256_add_ps(v.low, v.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float largest(Vec v) {
    float at[16];
    store(at, v);
    float most = at[0];
    for (int i = 1; i < 16; ++i) most = most > at[i] ? most : at[i];
    return most;
}

// Lane i: the sum over the lanes of v[i], in the order of `sum`, whose first step is done.
inline __m256 sums_of_eight(const __m256* v) {
    __m256 four[4];
    UNROLL
    for (int e = 0; e < 4; ++e) {
        four[e] = _mm256_add_ps(_mm256_permute2f128_ps(v[e], v[4 + e], 0x20),
                                _mm256_permute2f128_ps(v[e], v[4 + e], 0x31));
    }
    const __m256 left = _mm256_add_ps(_mm256_shuffle_ps(four[0], four[1], 0x44),
                                      _mm256_shuffle_ps(four[0], four[1], 0xEE));
    const __m256 right = _mm256_add_ps(_mm256_shuffle_ps(four[2], four[3], 0x44),
                                       _mm256_shuffle_ps(four[2], four[3], 0xEE));
    return _mm256_add_ps(_mm256_shuffle_ps(left, right, 0x88),
                         _mm256_shuffle_ps(left, right, 0xDD));
}

// One query times four keys, each sum folded to eight lanes.
template <class T>
inline void dots_of_four(const float* query, const T* keys, int64_t key_stride, int64_t size,
                         __m256* out) {
    Vec total[4];
    UNROLL
    for (int c = 0; c < 4; ++c) total[c] = fill(0);
    for (int64_t i = 0; i < size; i += 16) {
        const Vec q = load(query + i);
        UNROLL
        for (int c = 0; c < 4; ++c) {
            total[c] = fma(q, load(keys + c * key_stride + i), total[c]);
        }
    }
    UNROLL
    for (int c = 0; c < 4; ++c) out[c] = _mm256_add_ps(total[c].low, total[c].high);
}

template <int ROWS, class T>
inline void dots(const float* queries, const T* keys, int64_t key_stride, int64_t size,
                 float* out, int64_t out_stride) {
    constexpr int kKeys = 16 / ROWS;
    alignas(32) float sums[16];
    for (int half = 0; half < 16; half += 8) {
        __m256 folded[8];
        for (int pair = half; pair < half + 8; pair += 4) {
            dots_of_four(queries + pair / kKeys * size, keys + pair % kKeys * key_stride,
                         key_stride, size, folded + pair - half);
        }
        _mm256_store_ps(sums + half, sums_of_eight(folded));
    }
    for (int r = 0; r < ROWS; ++r) memcpy(out + r * out_stride, sums + r * kKeys, kKeys * 4);
}

}  // namespace
