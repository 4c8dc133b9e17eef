// AVX512's vectors as products use them (tiles.h): 16 of a panel's 32 outputs, its half 0 or 1.
#pragma once

#include <immintrin.h>

#include <string.h>

#include "layout/codebooks.h"
#include "products/tiles.h"

namespace {

struct Avx512 {
    using Floats = __m512;
    using Ints = __m512i;
    using Bytes = __m512i;
    static constexpr int64_t kLanes = 16;

    static Floats zero() { return _mm512_setzero_ps(); }
    static Floats fill(float x) { return _mm512_set1_ps(x); }
    static void store(float* to, Floats x) { _mm512_storeu_ps(to, x); }
    static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
    static Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
    static Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
    static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
    static Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
    template <int BITS>
    static Ints shift_down(Ints x) {
        return _mm512_srli_epi32(x, BITS);
    }
    static Ints load_ints(const uint8_t* at) { return _mm512_loadu_si512(at); }

    static Floats load_floats(const uint8_t* array, int32_t kind, int64_t half) {
        if (kind == EDGELM_FLOAT32) return _mm512_loadu_ps(array + half * 64);
        const __m256i halves =
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(array + half * 32));
        if (kind == EDGELM_FLOAT16) return _mm512_cvtph_ps(halves);
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
    }
    static Ints load_wide(const uint8_t* bytes, int64_t half) {
        const __m128i own = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + half * 16));
        return _mm512_cvtepu8_epi32(own);
    }
    static Ints load_signed(const uint8_t* bytes, int64_t half) {
        const __m128i own = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + half * 16));
        return _mm512_cvtepi8_epi32(own);
    }

    static Bytes load_bytes(const uint8_t* at) { return _mm512_loadu_si512(at); }
    static Bytes low_nibbles(Bytes x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
    static Bytes high_nibbles(Bytes x) { return low_nibbles(_mm512_srli_epi16(x, 4)); }
    template <int BITS>
    static Bytes shift_bytes(Bytes x) {
        return _mm512_srli_epi16(x, BITS);
    }
    template <int32_t MASK>
    static Bytes add_masked(Bytes a, Bytes b) {
        return _mm512_ternarylogic_epi32(a, b, _mm512_set1_epi8(MASK), 0xf8);
    }
    // Each of four (5 bits) or two parts of the vector has its own bits of the same bytes.
    template <Stored S>
    static INLINE Bytes uppers(const uint8_t* at, int64_t) {
        if (S == Stored::kInt6) {
            const __m256i own = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
            const __m512i up = _mm512_setr_epi64(4, 4, 4, 4, 0, 0, 0, 0);
            return _mm512_sllv_epi64(_mm512_broadcast_i64x4(own), up);
        }
        const __m128i own = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
        const __m512i up = _mm512_setr_epi64(4, 4, 2, 2, 0, 0, 62, 62);
        return _mm512_rolv_epi64(_mm512_broadcast_i32x4(own), up);
    }

    // What rounded/avx512vnni.cpp asks for.

    static constexpr int32_t base(Stored) { return 0; }
    static Bytes repeat(const uint8_t* bytes) {
        return _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
    }
    static Bytes spread4(const int8_t* x) {
        int32_t four;
        memcpy(&four, x, 4);
        return _mm512_set1_epi32(four);
    }
    // Adds the products of 4 bytes each to 16 sums.
    static Ints dot4(Ints sums, Bytes codes, Bytes x) {
#if defined(__GNUC__) && !defined(__clang__)
        // gcc 12 copies the accumulator of the intrinsic before each use, at 1.7 times the time.
        __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(codes), "v"(x));
        return sums;
#else
        return _mm512_dpbusd_epi32(sums, codes, x);
#endif
    }

    // What exact/tiles.h asks for.

    static Ints as_ints(Bytes x) { return x; }

    using ExactShapes = Shapes<Shape<6, 2>, Shape<2, 2>, Shape<1, 2>>;
    static constexpr int kTogether = 2;  // an input is spread once for both

    using Table = Floats;  // the number of each 4-bit code
    template <Stored S>
    static Table table(const edgelm_matrix& m) {
        if (S == Stored::kBook) return _mm512_loadu_ps(::numbers(m));
        return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    }
    template <Stored S>
    static INLINE Floats numbers(const Table& table, Ints codes) {
        if (S == Stored::kInt8 || upper_bits(S) > 0) {
            return to_floats(_mm512_and_si512(codes, _mm512_set1_epi32(255)));
        }
        return _mm512_permutexvar_ps(codes, table);  // reads 4 bits of each index
    }
};

}  // namespace
