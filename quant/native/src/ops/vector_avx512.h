// Sixteen floats in one register of AVX-512.
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "isa/compiler.h"

namespace {

struct Vec {
    __m512 all;
};

constexpr int kMixRows = 4, kMixVectors = 4;

inline Vec load(const float* from) { return {_mm512_loadu_ps(from)}; }
inline void store(float* to, Vec v) { _mm512_storeu_ps(to, v.all); }
inline Vec fill(float x) { return {_mm512_set1_ps(x)}; }
inline Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.all, b.all)}; }
inline Vec sub(Vec a, Vec b) { return {_mm512_sub_ps(a.all, b.all)}; }
inline Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.all, b.all)}; }
inline Vec div(Vec a, Vec b) { return {_mm512_div_ps(a.all, b.all)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.all, b.all, c.all)}; }
inline Vec larger(Vec a, Vec b) { return {_mm512_max_ps(a.all, b.all)}; }
inline Vec smaller(Vec a, Vec b) { return {_mm512_min_ps(a.all, b.all)}; }
inline Vec where_less(Vec a, Vec b, Vec yes, Vec no) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.all, b.all, _CMP_LT_OQ), no.all, yes.all)};
}
inline Vec times_power(Vec x, Vec shifted) {
    const __m512i power = _mm512_slli_epi32(_mm512_castps_si512(shifted.all), 23);
    return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x.all), power))};
}
inline Vec load(const uint16_t* from) {
    const __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(all), 16))};
}
inline Vec load(const int8_t* from) {
    const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(all))};
}
inline float sum(Vec v) {
    const __m256 eight =
        _mm256_add_ps(_mm512_castps512_ps256(v.all), _mm512_extractf32x8_ps(v.all, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float largest(Vec v) { return _mm512_reduce_max_ps(v.all); }

template <int LOW, int HIGH>
inline __m512 fold_lanes(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, LOW), _mm512_shuffle_f32x4(a, b, HIGH));
}

template <int LOW, int HIGH>
inline __m512 fold_numbers(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, LOW), _mm512_shuffle_ps(a, b, HIGH));
}

// Lane i: the sum over the lanes of v[i], in the order of `sum`.
inline __m512 sums_of_sixteen(const Vec* v) {
    __m512 four[4];
    UNROLL
    for (int e = 0; e < 4; ++e) {
        four[e] = fold_lanes<0x88, 0xDD>(fold_lanes<0x44, 0xEE>(v[e].all, v[4 + e].all),
                                         fold_lanes<0x44, 0xEE>(v[8 + e].all, v[12 + e].all));
    }
    return fold_numbers<0x88, 0xDD>(fold_numbers<0x44, 0xEE>(four[0], four[1]),
                                    fold_numbers<0x44, 0xEE>(four[2], four[3]));
}

// out[r, c] = queries[r] . keys[c] for ROWS x 16 / ROWS pairs of vectors [size].
template <int ROWS, class T>
inline void dots(const float* queries, const T* keys, int64_t key_stride, int64_t size,
                 float* out, int64_t out_stride) {
    constexpr int kKeys = 16 / ROWS;
    Vec total[16];
    UNROLL
    for (int i = 0; i < 16; ++i) total[i] = fill(0);
    for (int64_t i = 0; i < size; i += 16) {
        Vec query[ROWS];
        UNROLL
        for (int r = 0; r < ROWS; ++r) query[r] = load(queries + r * size + i);
    UNROLL
        for (int c = 0; c < kKeys; ++c) {
            const Vec key = load(keys + c * key_stride + i);
            UNROLL
            for (int r = 0; r < ROWS; ++r) {
                total[r * kKeys + c] = fma(query[r], key, total[r * kKeys + c]);
            }
        }
    }
    alignas(64) float sums[16];
    _mm512_store_ps(sums, sums_of_sixteen(total));
    UNROLL
    for (int r = 0; r < ROWS; ++r) memcpy(out + r * out_stride, sums + r * kKeys, kKeys * 4);
}

}  // namespace
