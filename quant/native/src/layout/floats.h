// Reading float16, bfloat16 and float32 numbers one by one; exact.
#pragma once

#include <string.h>

#include "api/edgelm_native.h"

namespace {

inline float from_bits(uint32_t bits) {
    float number;
    memcpy(&number, &bits, 4);
    return number;
}

inline float from_float16(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
    const uint32_t exponent = (half >> 10) & 31u, fraction = half & 1023u;
    if (exponent == 0) {
        const float small = static_cast<float>(fraction) * 0x1p-24f;
        return sign ? -small : small;
    }
    const uint32_t wide = exponent == 31 ? 255u : exponent + 112u;
    return from_bits(sign | wide << 23 | fraction << 13);
}

// Number `index` of an array of `kind` (edgelm_float).
inline float read_float(const uint8_t* array, int32_t kind, int64_t index) {
    if (kind == EDGELM_FLOAT32) {
        float number;
        memcpy(&number, array + 4 * index, 4);
        return number;
    }
    uint16_t half;
    memcpy(&half, array + 2 * index, 2);
    return kind == EDGELM_BFLOAT16 ? from_bits(static_cast<uint32_t>(half) << 16)
                                   : from_float16(half);
}

}  // namespace
