// AVX2's vectors as products use them (tiles.h); vector v is outputs 8 v to 8 v + 7 of a panel.
#pragma once

#include <immintrin.h>

#include <string.h>

#include "layout/codebooks.h"
#include "products/tiles.h"

namespace {

struct Avx2 {
    using Floats = __m256;
    using Ints = __m256i;
    using Bytes = __m256i;
    static constexpr int64_t kLanes = 8;

    static Floats zero() { return _mm256_setzero_ps(); }
    static Floats fill(float x) { return _mm256_set1_ps(x); }
    static Floats load(const float* from) { return _mm256_loadu_ps(from); }
    static void store(float* to, Floats x) { _mm256_storeu_ps(to, x); }
    static Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
    static Floats sub(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
    static Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
    static Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
    static Floats to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }

    static Ints fill_ints(int32_t x) { return _mm256_set1_epi32(x); }
    static Ints add_ints(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
    static Ints sub_ints(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
    static Ints mul_ints(Ints a, Ints b) { return _mm256_mullo_epi32(a, b); }
    static Ints times_256(Ints x) { return _mm256_slli_epi32(x, 8); }
    template <int BITS>
    static Ints shift_down(Ints x) {
        return _mm256_srli_epi32(x, BITS);
    }
    static Ints load_ints(const uint8_t* at) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    }

    static Floats load_floats(const uint8_t* array, int32_t kind, int64_t v) {
        if (kind == EDGELM_FLOAT32) {
            return _mm256_loadu_ps(reinterpret_cast<const float*>(array + v * 32));
        }
        const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(array + v * 16));
        if (kind == EDGELM_FLOAT16) return _mm256_cvtph_ps(halves);
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
    }
    static Ints load_wide(const uint8_t* bytes, int64_t v) {
        const __m128i own = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes + v * kLanes));
        return _mm256_cvtepu8_epi32(own);
    }
    static Ints load_signed(const uint8_t* bytes, int64_t v) {
        const __m128i own = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes + v * kLanes));
        return _mm256_cvtepi8_epi32(own);
    }

    static Bytes load_bytes(const uint8_t* at) { return load_ints(at); }
    static void store_bytes(uint8_t* at, Bytes x) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(at), x);
    }
    static Bytes low_nibbles(Bytes x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
    static Bytes high_nibbles(Bytes x) { return low_nibbles(_mm256_srli_epi16(x, 4)); }
    template <int BITS>
    static Bytes shift_bytes(Bytes x) {
        return _mm256_srli_epi16(x, BITS);
    }
    template <int32_t MASK>
    static Bytes add_masked(Bytes a, Bytes b) {
        return _mm256_or_si256(a, _mm256_and_si256(b, _mm256_set1_epi8(MASK)));
    }
    // Bits 0-3 of each byte belong to vector 0, bits 4-7 to vector 1. Of 5-bit codes there is half
    // a vector, whose bits 0-1 and 4-5 belong to lanes 0-3, the others to lanes 4-7.
    template <Stored S>
    static INLINE Bytes uppers(const uint8_t* at, int64_t v) {
        const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
        const __m128i up = _mm_cvtsi32_si128(v == 0 ? 4 : 0);
        if (S == Stored::kInt6) return _mm256_sll_epi16(load_ints(at), up);
        const Bytes both = _mm256_sll_epi16(_mm256_broadcastsi128_si256(first), up);
        return _mm256_srlv_epi32(both, _mm256_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2));
    }

    // What rounded/tiles.h asks for.

    // Of four rows by two vectors gcc stores sums in every step, to keep all activations.
    using RoundedShapes = Shapes<Shape<2, 4>, Shape<1, 4>>;
    static constexpr bool kPairs = false;
    static constexpr bool kUnpacks = true;

    static Bytes repeat(const uint8_t* bytes) {
        return _mm256_broadcastsi128_si256(
            _mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
    }
    static Bytes look_up(Bytes table, Bytes indices) {
        return _mm256_shuffle_epi8(table, indices);
    }

    // Read where they are used: eight of them would not fit the registers beside the sums.
    using Inputs = const int8_t*;
    static Inputs inputs(const int8_t* x) { return x; }
    static Bytes spread4(const int8_t* x) {
        int32_t four;
        memcpy(&four, x, 4);
        return _mm256_set1_epi32(four);
    }

    // Bytes up to 255 are multiplied as signed numbers here: pairs of their products would not
    // fit the 16 bits of vpmaddubsw, but those of magnitudes up to 128 do: 2 * 128 * 127 = 32512.
    // Codes below 64 leave room for two pairs: 4 * 63 * 127 = 32004.
    static constexpr int32_t base(Stored s) { return is_narrow(s) ? 0 : 128; }
    template <Stored S>
    static INLINE Ints pairs(Bytes codes, Bytes x) {
        if (is_narrow(S)) return _mm256_maddubs_epi16(codes, x);
        if (S == Stored::kIq4) {  // none is -128, so signs may change sides: |x| serves all vectors
            return _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(codes, x));
        }
        const Bytes weights =
            is_book(S) ? codes : _mm256_xor_si256(codes, _mm256_set1_epi8(-128));
        return _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
    }
    static Ints add_pairs(Ints sums, Ints pairs) {
        return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    template <Stored S>
    static INLINE Ints dot(Ints sums, Bytes low, Bytes high, Inputs x) {
        const Ints first = pairs<S>(low, spread4(x)), second = pairs<S>(high, spread4(x + 4));
        if (is_narrow(S)) return add_pairs(sums, _mm256_add_epi16(first, second));
        return add_pairs(add_pairs(sums, first), second);
    }

    // What exact/tiles.h asks for.

    static Ints as_ints(Bytes x) { return x; }

    using ExactShapes = Shapes<Shape<4, 1>, Shape<2, 2>, Shape<1, 4>>;
    static constexpr int kTogether = 1;

    struct Table {
        Floats low, high;  // a codebook's numbers of codes 0-7 and 8-15
    };
    template <Stored S>
    static Table table(const edgelm_matrix& m) {
        if (S != Stored::kBook) return {zero(), zero()};
        return {load(::numbers(m)), load(::numbers(m) + 8)};
    }
    template <Stored S>
    static INLINE Floats numbers(const Table& table, Ints codes) {
        if (S != Stored::kBook) {
            const int32_t all = S == Stored::kInt4 ? 15 : 255;
            return to_floats(_mm256_and_si256(codes, _mm256_set1_epi32(all)));
        }
        // 8 of the 16 at a time; bit 3 of the code says which.
        const Floats low = _mm256_permutevar8x32_ps(table.low, codes);
        const Floats high = _mm256_permutevar8x32_ps(table.high, codes);
        return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28)));
    }
};

}  // namespace
