// Reading stored numbers into AVX2 vectors: vector v is outputs 8 v to 8 v + 7 of a panel.
#pragma once

#include <immintrin.h>

#include "layout.h"

namespace {

constexpr int64_t kVector = 8;

inline __m256i load_bytes(const uint8_t* at) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
}

// Where vector v's codes begin in a step: the lower or upper half of a block of 16 rows.
inline const uint8_t* vector_of(const uint8_t* step, int32_t bits, int64_t v) {
    return step + v / 2 * (step_bytes(bits) / 2) + v % 2 * 32;
}

inline __m256 load_floats(const uint8_t* array, int32_t kind, int64_t vector) {
    if (kind == EDGELM_FLOAT32) {
        return _mm256_loadu_ps(reinterpret_cast<const float*>(array + vector * 32));
    }
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(array + vector * 16));
    if (kind == EDGELM_FLOAT16) return _mm256_cvtph_ps(halves);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

// Bytes as integers of 32 bits.
inline __m256i load_codes_wide(const uint8_t* codes, int64_t vector) {
    const __m128i own =
        _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + vector * kVector));
    return _mm256_cvtepu8_epi32(own);
}

inline __m256 load_codes_as_floats(const uint8_t* codes, int64_t vector) {
    return _mm256_cvtepi32_ps(load_codes_wide(codes, vector));
}

}  // namespace
