// Reading stored numbers into AVX512 vectors: 16 of a panel's 32 outputs, its half 0 or 1.
#pragma once

#include <immintrin.h>

#include "layout.h"

namespace {

constexpr int kHalves = 2;

// Adds the products of 4 bytes each to 16 sums.
inline __m512i dot4(__m512i sums, __m512i codes, __m512i x) {
#if defined(__GNUC__) && !defined(__clang__)
    // gcc 12 copies the accumulator of the intrinsic before each use, at 1.7 times the time.
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(codes), "v"(x));
    return sums;
#else
    return _mm512_dpbusd_epi32(sums, codes, x);
#endif
}

inline __m512 load_floats(const uint8_t* array, int32_t kind, int half) {
    if (kind == EDGELM_FLOAT32) return _mm512_loadu_ps(array + half * 64);
    const __m256i halves =
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(array + half * 32));
    if (kind == EDGELM_FLOAT16) return _mm512_cvtph_ps(halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// Bytes as integers of 32 bits.
inline __m512i load_codes_wide(const uint8_t* codes, int half) {
    const __m128i own = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + half * 16));
    return _mm512_cvtepu8_epi32(own);
}

inline __m512 load_codes_as_floats(const uint8_t* codes, int half) {
    return _mm512_cvtepi32_ps(load_codes_wide(codes, half));
}

}  // namespace
