// Numbers as they are stored: rounded to a float type, and bytes of codes.
#pragma once

#include <float.h>
#include <string.h>

#include "api/edgelm_search.h"
#include "layout/floats.h"

namespace {

// The integer nearest to `x`, ties to even, for magnitudes below 2^22.
inline float rounded(float x) { return (x + 12582912.0f) - 12582912.0f; }

inline float clamped(float x, float least, float most) {
    return x < least ? least : x > most ? most : x;
}

inline float magnitude(float x) { return x < 0 ? -x : x; }

inline float largest_float(int32_t kind) {
    return kind == EDGELM_FLOAT16 ? 65504.0f : kind == EDGELM_BFLOAT16 ? 0x1.fep127f : FLT_MAX;
}

inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

// `x` rounded to its upper `32 - drop` bits, ties to even.
inline float without_bits(float x, int drop) {
    const uint32_t bits = bits_of(x);
    const uint32_t half = (1u << (drop - 1)) - 1 + (bits >> drop & 1);
    return from_bits((bits + half) >> drop << drop);
}

// The number of `kind` nearest to `x`, which is not beyond the largest.
inline float nearest_float(float x, int32_t kind) {
    if (kind == EDGELM_FLOAT32) return x;
    if (kind == EDGELM_BFLOAT16) return without_bits(x, 16);
    if (magnitude(x) >= 0x1p-14f) return without_bits(x, 13);
    const float small = (magnitude(x) + 0.5f) - 0.5f;  // multiples of 2^-24
    return x < 0 ? -small : small;
}

// Number `index` of an array of `kind`; `x` is one of that type's.
inline void write_float(uint8_t* array, int32_t kind, int64_t index, float x) {
    const uint32_t bits = bits_of(x);
    if (kind == EDGELM_FLOAT32) {
        memcpy(array + 4 * index, &bits, 4);
        return;
    }
    uint16_t half = static_cast<uint16_t>(bits >> 16);
    if (kind == EDGELM_FLOAT16) {
        const float size = magnitude(x);
        const uint32_t wide = size < 0x1p-14f ? static_cast<uint32_t>(size * 0x1p24f)
                                              : (bits_of(size) >> 13) - (112u << 10);
        half = static_cast<uint16_t>((bits >> 16 & 0x8000u) | wide);
    }
    memcpy(array + 2 * index, &half, 2);
}

// A row of codes, one per byte, as quant/packing.py packs them.
inline void pack_row(const edgelm_search& s, const uint8_t* codes, uint8_t* out) {
    const int64_t inputs = s.inputs;
    if (s.bits == 8) {
        memcpy(out, codes, static_cast<size_t>(inputs));
        return;
    }
    for (int64_t i = 0; i < inputs / 2; ++i) {
        out[i] = static_cast<uint8_t>((codes[2 * i] & 15) | codes[2 * i + 1] << 4);
    }
    out += inputs / 2;
    for (int64_t i = 0; s.bits == 6 && i < inputs / 4; ++i) {
        const uint8_t* four = codes + 4 * i;
        out[i] = static_cast<uint8_t>(four[0] >> 4 | four[1] >> 4 << 2 | four[2] >> 4 << 4 |
                                      four[3] >> 4 << 6);
    }
    for (int64_t i = 0; s.bits == 5 && i < inputs / 8; ++i) {
        int joined = 0;
        for (int place = 0; place < 8; ++place) joined |= codes[8 * i + place] >> 4 << place;
        out[i] = static_cast<uint8_t>(joined);
    }
}

}  // namespace
