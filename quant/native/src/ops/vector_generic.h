// Sixteen floats in plain C++: what the vectors of every instruction set equal, bit by bit.
#pragma once

#include <cmath>
#include <string.h>

#include <stdint.h>

namespace {

struct Vec {
    float at[16];
};

// Queries and vectors of values whose sums fit the registers.
constexpr int kMixRows = 1, kMixVectors = 1;

template <class F>
inline Vec each(F number) {
    Vec v;
    for (int i = 0; i < 16; ++i) v.at[i] = number(i);
    return v;
}

inline Vec load(const float* from) {
    Vec v;
    memcpy(v.at, from, sizeof v.at);
    return v;
}
inline void store(float* to, const Vec& v) { memcpy(to, v.at, sizeof v.at); }
inline Vec fill(float x) {
    return each([&](int) { return x; });
}
inline Vec add(const Vec& a, const Vec& b) {
    return each([&](int i) { return a.at[i] + b.at[i]; });
}
inline Vec sub(const Vec& a, const Vec& b) {
    return each([&](int i) { return a.at[i] - b.at[i]; });
}
inline Vec mul(const Vec& a, const Vec& b) {
    return each([&](int i) { return a.at[i] * b.at[i]; });
}
inline Vec div(const Vec& a, const Vec& b) {
    return each([&](int i) { return a.at[i] / b.at[i]; });
}
inline Vec fma(const Vec& a, const Vec& b, const Vec& c) {
    return each([&](int i) { return std::fma(a.at[i], b.at[i], c.at[i]); });
}
// The second number where one of them is NaN.
inline Vec larger(const Vec& a, const Vec& b) {
    return each([&](int i) { return a.at[i] > b.at[i] ? a.at[i] : b.at[i]; });
}
inline Vec smaller(const Vec& a, const Vec& b) {
    return each([&](int i) { return a.at[i] < b.at[i] ? a.at[i] : b.at[i]; });
}
// yes where a < b, else no
inline Vec where_less(const Vec& a, const Vec& b, const Vec& yes, const Vec& no) {
    return each([&](int i) { return a.at[i] < b.at[i] ? yes.at[i] : no.at[i]; });
}
// x times 2^n, n being the lowest bits of `shifted`; the result is a normal number.
inline Vec times_power(const Vec& x, const Vec& shifted) {
    return each([&](int i) {
        uint32_t bits, power;
        memcpy(&bits, &x.at[i], 4);
        memcpy(&power, &shifted.at[i], 4);
        bits += power << 23;
        float number;
        memcpy(&number, &bits, 4);
        return number;
    });
}
// bfloat16
inline Vec load(const uint16_t* from) {
    return each([&](int i) {
        const uint32_t bits = static_cast<uint32_t>(from[i]) << 16;
        float number;
        memcpy(&number, &bits, 4);
        return number;
    });
}
inline Vec load(const int8_t* from) {
    return each([&](int i) { return static_cast<float>(from[i]); });
}
// Lane i and i + 8, then i and i + 4, i + 2, i + 1: the order of every sum over lanes.
inline float sum(Vec v) {
    for (int half = 8; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) v.at[i] += v.at[i + half];
    }
    return v.at[0];
}
inline float largest(const Vec& v) {
    float most = v.at[0];
    for (int i = 1; i < 16; ++i) most = most > v.at[i] ? most : v.at[i];
    return most;
}

// out[r, c] = queries[r] . keys[c] for ROWS x 16 / ROWS pairs of vectors [size].
template <int ROWS, class T>
inline void dots(const float* queries, const T* keys, int64_t key_stride, int64_t size,
                 float* out, int64_t out_stride) {
    for (int r = 0; r < ROWS; ++r) {
        for (int c = 0; c < 16 / ROWS; ++c) {
            Vec total = fill(0);
            for (int64_t i = 0; i < size; i += 16) {
                total = fma(load(queries + r * size + i),
                            load(keys + c * key_stride + i), total);
            }
            out[r * out_stride + c] = sum(total);
        }
    }
}

}  // namespace
