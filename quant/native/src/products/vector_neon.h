// NEON's vectors as products use them (tiles.h); vector v is outputs 4 v to 4 v + 3 of a panel.
#pragma once

#include <arm_neon.h>

#include <string.h>

#include "layout/codebooks.h"
#include "products/tiles.h"

namespace {

struct Neon {
    using Floats = float32x4_t;
    using Ints = int32x4_t;
    using Bytes = uint8x16_t;
    static constexpr int64_t kLanes = 4;

    static Floats zero() { return vdupq_n_f32(0.0f); }
    static Floats fill(float x) { return vdupq_n_f32(x); }
    static Floats load(const float* from) { return vld1q_f32(from); }
    static void store(float* to, Floats x) { vst1q_f32(to, x); }
    static Floats add(Floats a, Floats b) { return vaddq_f32(a, b); }
    static Floats sub(Floats a, Floats b) { return vsubq_f32(a, b); }
    static Floats mul(Floats a, Floats b) { return vmulq_f32(a, b); }
    static Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, b, a); }
    static Floats to_floats(Ints x) { return vcvtq_f32_s32(x); }

    static Ints fill_ints(int32_t x) { return vdupq_n_s32(x); }
    static Ints add_ints(Ints a, Ints b) { return vaddq_s32(a, b); }
    static Ints sub_ints(Ints a, Ints b) { return vsubq_s32(a, b); }
    static Ints mul_ints(Ints a, Ints b) { return vmulq_s32(a, b); }
    static Ints times_256(Ints x) { return vshlq_n_s32(x, 8); }
    template <int BITS>
    static Ints shift_down(Ints x) {
        return vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(x), BITS));
    }
    static Ints load_ints(const uint8_t* at) { return vreinterpretq_s32_u8(vld1q_u8(at)); }

    static Floats load_floats(const uint8_t* array, int32_t kind, int64_t v) {
        if (kind == EDGELM_FLOAT32) return vreinterpretq_f32_u8(vld1q_u8(array + v * 16));
        const uint16x4_t halves = vreinterpret_u16_u8(vld1_u8(array + v * 8));
        if (kind == EDGELM_FLOAT16) return vcvt_f32_f16(vreinterpret_f16_u16(halves));
        return vreinterpretq_f32_u32(vshll_n_u16(halves, 16));
    }
    static Ints load_wide(const uint8_t* bytes, int64_t v) {
        uint32_t four;
        memcpy(&four, bytes + v * kLanes, 4);
        const uint8x8_t own = vreinterpret_u8_u32(vdup_n_u32(four));
        return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(own))));
    }
    static Ints load_signed(const uint8_t* bytes, int64_t v) {
        uint32_t four;
        memcpy(&four, bytes + v * kLanes, 4);
        const int8x8_t own = vreinterpret_s8_u32(vdup_n_u32(four));
        return vmovl_s16(vget_low_s16(vmovl_s8(own)));
    }

    static Bytes load_bytes(const uint8_t* at) { return vld1q_u8(at); }
    static Bytes low_nibbles(Bytes x) { return vandq_u8(x, vdupq_n_u8(15)); }
    static Bytes high_nibbles(Bytes x) { return vshrq_n_u8(x, 4); }
    template <int BITS>
    static Bytes shift_bytes(Bytes x) {
        return vshrq_n_u8(x, BITS);
    }
    template <int32_t MASK>
    static Bytes add_masked(Bytes a, Bytes b) {
        return vorrq_u8(a, vandq_u8(b, vdupq_n_u8(MASK)));
    }
    // Of 6-bit codes there are two vectors, their bits 0-3 for vectors 0 and 1 of the half, 4-7
    // for 2 and 3; of 5-bit codes one, with two bits for each.
    template <Stored S>
    static INLINE Bytes uppers(const uint8_t* at, int64_t v) {
        const bool six = S == Stored::kInt6;
        const int64_t up = six ? 4 - v / 2 * 4 : 4 - v * 2;
        return vshlq_u8(vld1q_u8(six ? at + v % 2 * 16 : at), vdupq_n_s8(static_cast<int8_t>(up)));
    }

    // What rounded/tiles.h asks for, but for `dot`.

    using RoundedShapes = Shapes<Shape<4, 4>, Shape<1, 8>>;

    static Bytes repeat(const uint8_t* bytes) { return vld1q_u8(bytes); }
    static Bytes look_up(Bytes table, Bytes indices) { return vqtbl1q_u8(table, indices); }

    using Inputs = int8x8_t;
    static Inputs inputs(const int8_t* x) { return vld1_s8(x); }

    // Both factors are signed: int8's codes lose the 128 that they are stored with.
    static constexpr int32_t base(Stored s) { return is_narrow(s) ? 0 : 128; }
    template <Stored S>
    static INLINE int8x16_t less_base(Bytes codes) {
        if (S != Stored::kInt8) return vreinterpretq_s8_u8(codes);
        return vreinterpretq_s8_u8(veorq_u8(codes, vdupq_n_u8(128)));
    }

    // What exact/tiles.h asks for.

    static Ints as_ints(Bytes x) { return vreinterpretq_s32_u8(x); }

    using ExactShapes = Shapes<Shape<4, 2>, Shape<1, 8>>;
    static constexpr int kTogether = 1;

    using Table = uint8x16x4_t;  // the 64 bytes of a codebook's numbers
    template <Stored S>
    static Table table(const edgelm_matrix& m) {
        Table bytes{};
        if (S != Stored::kBook) return bytes;
        const uint8_t* from = reinterpret_cast<const uint8_t*>(::numbers(m));
        for (int i = 0; i < 4; ++i) bytes.val[i] = vld1q_u8(from + 16 * i);
        return bytes;
    }
    template <Stored S>
    static INLINE Floats numbers(const Table& table, Ints codes) {
        const uint32x4_t all = vdupq_n_u32(S == Stored::kInt8 || upper_bits(S) > 0 ? 255 : 15);
        const uint32x4_t code = vandq_u32(vreinterpretq_u32_s32(codes), all);
        if (S != Stored::kBook) return vcvtq_f32_u32(code);
        // Bytes 4 c to 4 c + 3 of the table for each code c.
        const uint32x4_t bytes =
            vaddq_u32(vmulq_n_u32(code, 0x04040404u), vdupq_n_u32(0x03020100u));
        return vreinterpretq_f32_u8(vqtbl4q_u8(table, vreinterpretq_u8_u32(bytes)));
    }
};

}  // namespace
