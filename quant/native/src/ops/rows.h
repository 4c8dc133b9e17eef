// Norms, element-wise operations, rotation, the cache's writing and arg-max. Included after a Vec
// is defined, once for each instruction set.
#pragma once

#include <cmath>

#include "layout/floats.h"
#include "ops/ops.h"
#include "ops/vector_math.h"

namespace {

// The sum of term(vector) over a row: four sums taken in turns, so that none waits for another.
template <class F>
inline float sum_over(const float* x, int64_t size, F term) {
    Vec sums[4] = {fill(0), fill(0), fill(0), fill(0)};
    read_vectors(x, size, [&](int64_t i, Vec v, int64_t count) {
        Vec& own = sums[i / 16 % 4];
        own = term(v, count, own);
    });
    return sum(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
}

inline float square_sum(const float* x, int64_t size) {
    return sum_over(x, size, [](Vec v, int64_t, Vec sums) { return fma(v, v, sums); });
}

inline float mean_of(const float* x, int64_t size) {
    const float total =
        sum_over(x, size, [](Vec v, int64_t, Vec sums) { return add(v, sums); });
    return total / static_cast<float>(size);
}

inline float inverse_root(float squares, int64_t size, float eps) {
    return 1.0f / std::sqrt(squares / static_cast<float>(size) + eps);
}

void rms_norm_vector(const edgelm_norm& n, const float* x, float* out) {
    const Vec scale = fill(inverse_root(square_sum(x, n.size), n.size, n.eps));
    read_vectors(x, n.size, [&](int64_t i, Vec v, int64_t count) {
        store_some(out + i, mul(mul(v, scale), load_some(n.weight + i, count)), count);
    });
}

void layer_norm_vector(const edgelm_norm& n, const float* x, float* out) {
    const Vec mean = fill(mean_of(x, n.size));
    read_vectors(x, n.size, [&](int64_t i, Vec v, int64_t count) {
        store_some(out + i, sub(v, mean), count);
    });
    const Vec scale = fill(inverse_root(square_sum(out, n.size), n.size, n.eps));
    read_vectors(out, n.size, [&](int64_t i, Vec v, int64_t count) {
        const Vec scaled = mul(mul(v, scale), load_some(n.weight + i, count));
        store_some(out + i, add(scaled, load_some(n.bias + i, count)), count);
    });
}

template <void (*VECTOR)(const edgelm_norm&, const float*, float*)>
void norm_tokens(const void* context, int64_t begin, int64_t end) {
    const edgelm_norm& n = *static_cast<const edgelm_norm*>(context);
    for (int64_t token = begin; token < end; ++token) {
        for (int64_t head = 0; head < n.heads; ++head) {
            VECTOR(n, n.x + token * n.x_stride + head * n.size,
                   n.out + token * n.out_stride + head * n.size);
        }
    }
}

// visit(token, column, count) for items of kColumns columns.
template <class F>
inline void visit_columns(int64_t size, int64_t begin, int64_t end, F visit) {
    const int64_t blocks = (size + kColumns - 1) / kColumns;
    for (int64_t item = begin; item < end; ++item) {
        const int64_t column = item % blocks * kColumns, left = size - column;
        visit(item / blocks, column, left < kColumns ? left : kColumns);
    }
}

void add_columns(const void* context, int64_t begin, int64_t end) {
    const edgelm_addition& s = *static_cast<const edgelm_addition*>(context);
    visit_columns(s.size, begin, end, [&](int64_t token, int64_t column, int64_t width) {
        float* x = s.x + token * s.x_stride + column;
        const float* y = s.y + token * s.y_stride + column;
        read_vectors(x, width, [&](int64_t i, Vec v, int64_t count) {
            store_some(x + i, add(v, load_some(y + i, count)), count);
        });
    });
}

template <class F>
inline void map_columns(const void* context, int64_t begin, int64_t end, F function) {
    const edgelm_unary& m = *static_cast<const edgelm_unary*>(context);
    const Vec number = fill(m.number);
    visit_columns(m.size, begin, end, [&](int64_t token, int64_t column, int64_t width) {
        float* out = m.out + token * m.out_stride + column;
        read_vectors(m.x + token * m.x_stride + column, width,
                     [&](int64_t i, Vec v, int64_t count) {
                         store_some(out + i, function(v, number), count);
                     });
    });
}

inline Vec capped(Vec x, Vec bound) { return mul(hyperbolic_tangent(div(x, bound)), bound); }

void scale_columns(const void* context, int64_t begin, int64_t end) {
    map_columns(context, begin, end, [](Vec v, Vec number) { return mul(v, number); });
}

void softcap_columns(const void* context, int64_t begin, int64_t end) {
    map_columns(context, begin, end, capped);
}

// x * sigmoid(y)
inline Vec gated(Vec x, Vec y) {
    return div(x, add(fill(1), exponential(sub(fill(0), y))));
}

inline Vec silu(Vec x) { return gated(x, x); }

// x / 2 * (1 + tanh(u)) is x * sigmoid(2 u); u = sqrt(2 / pi) * (x + 0.044715 x^3).
inline Vec gelu_tanh(Vec x) {
    const Vec cubic = fma(mul(mul(x, x), x), fill(0.044715f), x);
    return gated(x, mul(cubic, fill(1.5957691216f)));
}

inline Vec relu_squared(Vec x) {
    const Vec positive = larger(fill(0), x);
    return mul(positive, positive);
}

template <class F>
inline void activate_part(const edgelm_activation& a, int64_t begin, int64_t end, F function) {
    visit_columns(a.size, begin, end, [&](int64_t token, int64_t column, int64_t width) {
        const float* up = a.up ? a.up + token * a.up_stride + column : nullptr;
        float* out = a.out + token * a.out_stride + column;
        read_vectors(a.gate + token * a.gate_stride + column, width,
                     [&](int64_t i, Vec v, int64_t count) {
                         v = function(v);
                         if (up) v = mul(v, load_some(up + i, count));
                         store_some(out + i, v, count);
                     });
    });
}

void activate_columns(const void* context, int64_t begin, int64_t end) {
    const edgelm_activation& a = *static_cast<const edgelm_activation*>(context);
    switch (a.function) {
        case EDGELM_SILU: return activate_part(a, begin, end, silu);
        case EDGELM_GELU_TANH: return activate_part(a, begin, end, gelu_tanh);
        default: return activate_part(a, begin, end, relu_squared);
    }
}

inline void rotate_halves(const float* x, const float* cosines, const float* sines, int64_t pairs,
                          float* out) {
    read_vectors(x, pairs, [&](int64_t i, Vec first, int64_t count) {
        const Vec second = load_some(x + pairs + i, count);
        const Vec cosine = load_some(cosines + i, count), sine = load_some(sines + i, count);
        store_some(out + i, sub(mul(first, cosine), mul(second, sine)), count);
        store_some(out + pairs + i, add(mul(second, cosine), mul(first, sine)), count);
    });
}

inline void rotate_neighbours(const float* x, const float* cosines, const float* sines,
                              int64_t pairs, float* out) {
    for (int64_t i = 0; i < pairs; ++i) {
        const float first = x[2 * i], second = x[2 * i + 1];
        out[2 * i] = first * cosines[i] - second * sines[i];
        out[2 * i + 1] = second * cosines[i] + first * sines[i];
    }
}

void rotate_tokens(const void* context, int64_t begin, int64_t end) {
    const edgelm_rotation& r = *static_cast<const edgelm_rotation*>(context);
    const auto rotate = r.interleaved ? rotate_neighbours : rotate_halves;
    for (int64_t token = begin; token < end; ++token) {
        const float* cosines = r.cosines + r.positions[token] * r.pairs;
        const float* sines = r.sines + r.positions[token] * r.pairs;
        for (int64_t head = 0; head < r.heads; ++head) {
            const float* x = r.x + token * r.x_stride + head * r.size;
            float* out = r.out + token * r.out_stride + head * r.size;
            rotate(x, cosines, sines, r.pairs, out);
            const int64_t rotated = 2 * r.pairs;
            if (out != x) {
                memcpy(out + rotated, x + rotated, static_cast<size_t>(r.size - rotated) * 4);
            }
        }
    }
}

inline uint16_t to_bfloat16(float number) {
    uint32_t bits;
    memcpy(&bits, &number, 4);
    const uint32_t even = bits + 0x7fffu + (bits >> 16 & 1u);
    return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : even >> 16);
}

// Codes of one head [size]; returns the scale.
inline uint16_t store_int8(const float* x, int64_t size, int8_t* codes) {
    float most = 0;
    for (int64_t i = 0; i < size; ++i) {
        const float magnitude = std::fabs(x[i]);
        most = magnitude > most ? magnitude : most;
    }
    constexpr float to_nearest = 12582912.0f;  // 1.5 * 2^23: adding it leaves no fraction
    const uint16_t scale = to_bfloat16(most / 127.0f);
    float step = from_bits(static_cast<uint32_t>(scale) << 16);
    step = step > 1e-30f ? step : 1e-30f;
    for (int64_t i = 0; i < size; ++i) {
        float code = (x[i] / step + to_nearest) - to_nearest;
        code = code < 127.0f ? code : 127.0f;
        code = code > -127.0f ? code : -127.0f;
        codes[i] = static_cast<int8_t>(static_cast<int32_t>(code));
    }
    return scale;
}

// `x` [size] into the cache as vector `index` of all rows, groups and slots.
void store_vector(const edgelm_cache& c, const float* x, int64_t index, uint8_t* memory,
                  uint8_t* scales) {
    if (c.storage == EDGELM_KV_FLOAT32) {
        memcpy(memory + index * c.size * 4, x, static_cast<size_t>(c.size) * 4);
    } else if (c.storage == EDGELM_KV_BFLOAT16) {
        uint16_t* to = reinterpret_cast<uint16_t*>(memory) + index * c.size;
        for (int64_t i = 0; i < c.size; ++i) to[i] = to_bfloat16(x[i]);
    } else {
        int8_t* to = reinterpret_cast<int8_t*>(memory) + index * c.size;
        reinterpret_cast<uint16_t*>(scales)[index] = store_int8(x, c.size, to);
    }
}

void store_tokens(const void* context, int64_t begin, int64_t end) {
    const edgelm_append& a = *static_cast<const edgelm_append*>(context);
    const edgelm_cache& c = a.cache;
    for (int64_t token = begin; token < end; ++token) {
        const float* keys = a.keys + token * a.key_stride;
        const float* values = a.values + token * a.value_stride;
        int64_t index = a.rows[token] * c.groups * c.slots + a.positions[token] % c.slots;
        for (int64_t g = 0; g < c.groups; ++g, index += c.slots) {
            store_vector(c, keys + g * c.size, index, c.keys, c.key_scales);
            store_vector(c, values + g * c.size, index, c.values, c.value_scales);
        }
    }
}

void soft_weights(float* x, int64_t size, float temperature, float most) {
    const Vec divisor = fill(temperature), top = fill(most), least = fill(-87.0f);
    read_vectors(x, size, [&](int64_t i, Vec v, int64_t count) {
        const Vec power = sub(div(v, divisor), top);
        store_some(x + i, where_less(power, least, fill(0), exponential(power)), count);
    });
}

inline float largest_of(const float* x, int64_t size) {
    Vec most = fill(-INFINITY);
    read_vectors(x, size, [&](int64_t i, Vec v, int64_t count) {
        if (count == 16) {
            most = larger(v, most);
        } else {  // no zeros behind the last
            for (; i < size; ++i) most = larger(fill(x[i]), most);
        }
    });
    return largest(most);
}

inline bool all_finite(const float* x, int64_t size) {
    int32_t found = 0;
    for (int64_t i = 0; i < size; ++i) found |= x[i] - x[i] != 0.0f;  // NaN for both kinds
    return found == 0;
}

int64_t first_largest(const float* x, int64_t size) {
    int64_t block = 0;
    float most = -INFINITY;
    for (int64_t i = 0; i < size; i += kColumns) {
        const int64_t count = size - i < kColumns ? size - i : kColumns;
        if (!all_finite(x + i, count)) return -1;
        const float own = largest_of(x + i, count);
        if (own > most) {
            most = own;
            block = i;
        }
    }
    while (x[block] != most) ++block;
    return block;
}

void argmax_tokens(const void* context, int64_t begin, int64_t end) {
    const edgelm_maximum& c = *static_cast<const edgelm_maximum*>(context);
    for (int64_t token = begin; token < end; ++token) {
        c.out[token] = first_largest(c.x + token * c.x_stride, c.size);
    }
}

}  // namespace
