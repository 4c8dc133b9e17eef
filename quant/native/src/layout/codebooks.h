// The numbers that 4-bit codes of a codebook name, as quant/codebooks.py has them.
#pragma once

#include "layout/layout.h"

namespace {

constexpr float kNf4[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

constexpr float kFp4[16] = {
    0.0f,         0.0625f / 12, 8.0f / 12,  1.0f,  4.0f / 12,  6.0f / 12,  2.0f / 12,  3.0f / 12,
    -0.0f / 12, -0.0625f / 12, -8.0f / 12, -1.0f, -4.0f / 12, -6.0f / 12, -2.0f / 12, -3.0f / 12,
};

// GGUF's, whole numbers of a signed byte.
constexpr float kIq4[16] = {
    -127.0f, -104.0f, -83.0f, -65.0f, -49.0f, -35.0f, -22.0f, -10.0f,
    1.0f,    13.0f,   25.0f,  38.0f,  53.0f,  69.0f,  89.0f,  113.0f,
};

inline const float* numbers(const edgelm_matrix& m) {
    if (m.codes == EDGELM_IQ4) return kIq4;
    return m.codes == EDGELM_NF4 ? kNf4 : kFp4;
}

// Integer products take the numbers as multiples of 1 / kBookUnits: all of fp4's are (12 * 16 *
// 169), nf4's are rounded at -96 dB. Two signed bytes hold one, v = 256 * upper + lower.
constexpr int32_t kBookUnits = 32448;
// iq4's numbers are signed bytes themselves.
constexpr int kPlanes = 2;

// How many products a group's codes take: one for each plane.
constexpr int plane_count(Stored s) { return s == Stored::kBook ? kPlanes : 1; }

// Upper (plane 0) or lower bytes of the 16 multiples, with 128 added like int8 codes; or plane 0
// alone, iq4's numbers.
struct Planes {
    alignas(16) uint8_t bytes[kPlanes][16];
};

inline Planes planes(const edgelm_matrix& m) {
    Planes own{};
    if (!is_book(stored(m))) return own;
    for (int i = 0; i < 16; ++i) {
        if (m.codes == EDGELM_IQ4) {
            own.bytes[0][i] = static_cast<uint8_t>(static_cast<int32_t>(kIq4[i]) + 128);
            continue;
        }
        const float number = numbers(m)[i] * static_cast<float>(kBookUnits);
        const int32_t v = static_cast<int32_t>(number + (number < 0 ? -0.5f : 0.5f));
        const int32_t upper = (v + 128 + 32768) / 256 - 128;  // rounded down, whatever the sign
        own.bytes[0][i] = static_cast<uint8_t>(upper + 128);
        own.bytes[1][i] = static_cast<uint8_t>(v - 256 * upper + 128);
    }
    return own;
}

// What an integer product is multiplied by, besides the scales.
inline float unit(const edgelm_matrix& m) {
    return stored(m) == Stored::kBook ? 1.0f / static_cast<float>(kBookUnits) : 1.0f;
}

}  // namespace
