// Functions of vectors, and rows that fill no whole vector. Included after a Vec is defined.
#pragma once

#include <string.h>

namespace {

// e^x for x in [-87, 88], beyond which x counts as the nearest bound: relative error below 3e-7.
// e^0 is 1. Polynomial of Cephes' expf (Moshier 1992).
inline Vec exponential(Vec x) {
    const Vec shift = fill(12582912.0f);  // 1.5 * 2^23: adding it leaves no fraction
    x = smaller(fill(88.0f), larger(fill(-87.0f), x));
    const Vec shifted = fma(x, fill(1.44269504f), shift), power = sub(shifted, shift);
    const Vec r = fma(power, fill(2.12194440e-4f), fma(power, fill(-0.693359375f), x));
    Vec p = fma(fill(1.9875691500e-4f), r, fill(1.3981999507e-3f));
    p = fma(p, r, fill(8.3334519073e-3f));
    p = fma(p, r, fill(4.1665795894e-2f));
    p = fma(p, r, fill(1.6666665459e-1f));
    p = fma(p, r, fill(5.0000001201e-1f));
    return times_power(add(fma(mul(r, r), p, r), fill(1)), shifted);
}

inline float exponential(float x) {
    float lanes[16];
    store(lanes, exponential(fill(x)));
    return lanes[0];
}

// Relative error below 5e-7; polynomial near 0 of Cephes' tanhf.
inline Vec hyperbolic_tangent(Vec x) {
    const Vec square = mul(x, x);
    Vec p = fma(fill(-5.70498872745e-3f), square, fill(2.06390887954e-2f));
    p = fma(p, square, fill(-5.37397155531e-2f));
    p = fma(p, square, fill(1.33314422036e-1f));
    p = fma(p, square, fill(-3.33332819422e-1f));
    const Vec near = fma(mul(p, square), x, x), one = fill(1);
    const Vec far = sub(one, div(fill(2), add(exponential(add(x, x)), one)));
    return where_less(square, fill(0.390625f), near, far);
}

inline Vec load_part(const float* from, int64_t count) {
    float lanes[16] = {};
    memcpy(lanes, from, static_cast<size_t>(count) * 4);
    return load(lanes);
}

inline void store_part(float* to, Vec v, int64_t count) {
    float lanes[16];
    store(lanes, v);
    memcpy(to, lanes, static_cast<size_t>(count) * 4);
}

// visit(i, vector) for `size` numbers at x, zeros behind the last.
template <class F>
inline void read_vectors(const float* x, int64_t size, F visit) {
    int64_t i = 0;
    for (; i + 16 <= size; i += 16) visit(i, load(x + i), int64_t{16});
    if (i < size) visit(i, load_part(x + i, size - i), size - i);
}

// Number i of `y` with those that `visit` got.
inline Vec load_some(const float* y, int64_t count) {
    return count == 16 ? load(y) : load_part(y, count);
}

inline void store_some(float* y, Vec v, int64_t count) {
    if (count == 16) {
        store(y, v);
    } else {
        store_part(y, v, count);
    }
}

}  // namespace
