// Reading stored numbers into NEON vectors: vector v is outputs 4 v to 4 v + 3 of a panel.
#pragma once

#include <arm_neon.h>

#include <string.h>

#include "layout.h"

namespace {

constexpr int64_t kVector = 4;

// Where vector v's codes begin in a step: a quarter of a block of 16 rows.
inline const uint8_t* vector_of(const uint8_t* step, int32_t bits, int64_t v) {
    return step + v / 4 * (step_bytes(bits) / 2) + v % 4 * 16;
}

inline float32x4_t load_floats(const uint8_t* array, int32_t kind, int64_t vector) {
    if (kind == EDGELM_FLOAT32) return vreinterpretq_f32_u8(vld1q_u8(array + vector * 16));
    const uint16x4_t halves = vreinterpret_u16_u8(vld1_u8(array + vector * 8));
    if (kind == EDGELM_FLOAT16) return vcvt_f32_f16(vreinterpret_f16_u16(halves));
    return vreinterpretq_f32_u32(vshll_n_u16(halves, 16));
}

// Bytes as integers of 32 bits.
inline int32x4_t load_codes_wide(const uint8_t* codes, int64_t vector) {
    uint32_t four;
    memcpy(&four, codes + vector * kVector, 4);
    const uint8x8_t bytes = vreinterpret_u8_u32(vdup_n_u32(four));
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))));
}

}  // namespace
