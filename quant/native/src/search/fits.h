// The grid of least squared error of sixteen groups, one per lane: quant/methods/mse.py explains
// what is computed, names are its names, and every operation has the order that it has there.
//
// Where a bound meets NaN the number stays NaN: it is the second argument of `larger`, `smaller`.
#pragma once

#include <float.h>
#include <math.h>

#include "isa/compiler.h"
#include "search/search.h"

namespace {

enum class Kind { kSymmetric, kTable, kIntegers, kMinima };

// Grids of the lanes: value = unit * steps, + a float zero.
struct Floats {
    Vec steps, zeros;
};

// Numbers of the lanes' groups [size, kLanes] and the weights of their errors.
struct Numbers {
    const float* values;
    const float* weights;
    Vec weight;  // of all numbers of a group
};

// Over the numbers of each group, of products of what is left of them, units and weights.
struct Sums {
    Vec left_left, left_unit, unit_unit, left, unit;
};

inline Vec flipped(Vec x) { return mul(x, fill(-1)); }
inline Vec size_of(Vec x) { return larger(x, flipped(x)); }
inline Vec within(Vec x, Vec least, Vec most) { return smaller(most, larger(least, x)); }
inline Vec round_within(Vec x, Vec least, Vec most) {
    const Vec shift = fill(12582912.0f);  // 1.5 * 2^23
    return sub(add(within(x, least, most), shift), shift);
}
inline Vec where_zero(Vec x, Vec yes, Vec no) {
    return where_less(x, fill(0), no, where_less(fill(0), x, no, yes));
}
inline Vec ratio(Vec upper, Vec lower) { return where_zero(lower, fill(0), div(upper, lower)); }
inline Vec inverse(Vec steps) {
    const Vec by = div(fill(1), steps);
    return where_less(fill(FLT_MAX), size_of(by), fill(0), by);
}

// What is the same for all groups.
struct Task {
    const edgelm_search& s;
    float first_code, last_code, middle;
    Table table, codes;  // of a codebook

    explicit Task(const edgelm_search& search)
        : s(search),
          first_code(search.bits == 8 ? -128.0f : 0.0f),
          last_code(search.bits == 8 ? 127.0f : static_cast<float>((1 << search.bits) - 1)),
          middle(search.bits == 8 ? 0.0f : static_cast<float>(1 << (search.bits - 1))),
          table(tables(search) + 16, tables(search)),
          codes(tables(search) + 16, tables(search) + 32) {}

    Kind kind() const {
        if (s.table) return Kind::kTable;
        if (s.zero_kind == EDGELM_ZEROS_INT) return Kind::kIntegers;
        return s.zero_kind == EDGELM_ZEROS_FLOAT ? Kind::kMinima : Kind::kSymmetric;
    }

  private:
    static const float* tables(const edgelm_search& search) {
        static constexpr float kNone[3 * kLanes] = {};
        return search.table ? search.table : kNone;
    }
};

// Units of the nearest codes on a grid.
template <Kind kKind>
struct Rounder {
    const Table& table;
    Vec by, zeros, least, most;

    Rounder(const Task& task, const Floats& at)
        : table(task.table),
          by(inverse(at.steps)),
          zeros(at.zeros),
          least(fill(task.first_code)),
          most(fill(task.last_code)) {
        if (kKind != Kind::kMinima) {
            least = sub(least, zeros);
            most = sub(most, zeros);
        }
    }

    Vec units(Vec x) const {
        if (kKind == Kind::kTable) return table.pick(mul(x, by));
        if (kKind == Kind::kMinima) x = sub(x, zeros);
        return round_within(mul(x, by), least, most);
    }
};

// Sums over the numbers [count, kLanes] of one chunk.
template <Kind kKind>
INLINE Sums chunk_sums(const Rounder<kKind>& rounder, Vec steps, const float* values,
                       const float* weights, int64_t count) {
    const Vec none = fill(0);
    Sums sums{none, none, none, none, none};
    for (int64_t i = 0; i < count; ++i) {
        const Vec x = load(values + i * kLanes), unit = rounder.units(x);
        Vec left = sub(x, mul(unit, steps));
        if (kKind == Kind::kMinima) left = sub(left, rounder.zeros);
        const Vec weight = load(weights + i * kLanes);
        const Vec own = mul(left, weight), own_unit = mul(unit, weight);
        sums.left_left = add(sums.left_left, mul(own, left));
        sums.left_unit = add(sums.left_unit, mul(own, unit));
        sums.unit_unit = add(sums.unit_unit, mul(own_unit, unit));
        if (kKind == Kind::kSymmetric || kKind == Kind::kTable) continue;
        sums.left = add(sums.left, own);
        sums.unit = add(sums.unit, own_unit);
    }
    return sums;
}

inline Sums add(const Sums& a, const Sums& b) {
    return {add(a.left_left, b.left_left), add(a.left_unit, b.left_unit),
            add(a.unit_unit, b.unit_unit), add(a.left, b.left), add(a.unit, b.unit)};
}

// What chunks of `size` numbers, (first, count), give in all; `parts` has room for every chunk.
template <class Part, class Chunk>
INLINE Part total(int64_t size, Part* parts, Chunk chunk) {
    if (size <= kChunk) return chunk(0, size);
    int64_t count = 0;
    for (int64_t i = 0; i < size; i += kChunk) {
        parts[count++] = chunk(i, size - i < kChunk ? size - i : kChunk);
    }
    while (count > 1) {
        const int64_t half = (count + 1) / 2;
        for (int64_t i = half; i < count; ++i) parts[i - half] = add(parts[i - half], parts[i]);
        count = half;
    }
    return parts[0];
}

// Sums over the numbers of the lanes' groups.
template <Kind kKind>
Sums sums_of(const Task& task, const Numbers& numbers, const Floats& at, Sums* parts) {
    const Rounder<kKind> rounder(task, at);
    return total<Sums>(group_size(task.s), parts, [&](int64_t i, int64_t count) {
        return chunk_sums(rounder, at.steps, numbers.values + i * kLanes,
                          numbers.weights + i * kLanes, count);
    });
}

struct Fit {
    Floats grid;
    Vec error;
};

inline Fit fit_symmetric(const Floats& now, const Sums& sums) {
    const Vec move = ratio(sums.left_unit, sums.unit_unit);
    return {{add(now.steps, move), now.zeros}, sub(sums.left_left, mul(move, sums.left_unit))};
}

// The error once units are worth `move` more and every number has `shift` more.
inline Vec moved_error(const Sums& sums, Vec move, Vec shift, Vec weight) {
    const Vec two = fill(2);
    const Vec gain = mul(add(mul(move, sums.left_unit), mul(shift, sums.left)), two);
    const Vec squares = mul(mul(move, move), sums.unit_unit);
    const Vec mixed = mul(mul(mul(move, shift), sums.unit), two);
    const Vec shifts = mul(mul(shift, shift), weight);
    return add(sub(sums.left_left, gain), add(add(squares, mixed), shifts));
}

inline Fit fit_integers(const Task& task, const Floats& now, const Sums& sums, Vec steps,
                        Vec shift, Vec weight) {
    const Vec two = fill(2);
    const Vec zeros = round_within(sub(now.zeros, mul(shift, inverse(steps))),
                                   fill(task.first_code), fill(task.last_code));
    const Vec up = sub(now.zeros, zeros);  // of all units
    const Vec squares = add(add(sums.unit_unit, mul(mul(up, sums.unit), two)),
                            mul(mul(up, up), weight));
    const Vec products = add(add(sums.left_unit, mul(now.steps, sums.unit_unit)),
                             mul(up, add(sums.left, mul(now.steps, sums.unit))));
    const Vec found = where_zero(squares, now.steps, div(products, squares));
    return {{found, zeros}, moved_error(sums, sub(found, now.steps), mul(up, found), weight)};
}

inline Fit fit_minima(const Task& task, const Floats& now, const Sums& sums, Vec move, Vec shift,
                      Vec weight) {
    Floats found{add(now.steps, move), add(now.zeros, shift)};
    if (task.s.supers) {  // codes of minima and of their scales have no sign
        const Vec none = fill(0);
        const Vec products = add(sums.left_unit, mul(now.zeros, sums.unit));
        const Vec alone = add(now.steps, ratio(products, sums.unit_unit));
        found.steps = larger(none, where_less(none, found.zeros, alone, found.steps));
        found.zeros = smaller(none, found.zeros);
        move = sub(found.steps, now.steps);
        shift = sub(found.zeros, now.zeros);
    }
    return {found, moved_error(sums, move, shift, weight)};
}

// The grid nearest to the numbers under the codes they have now, and its squared error.
template <Kind kKind>
Fit fit(const Task& task, const Floats& now, const Sums& sums, Vec weight) {
    if (kKind == Kind::kSymmetric || kKind == Kind::kTable) return fit_symmetric(now, sums);
    const Vec spread = sub(mul(sums.unit_unit, weight), mul(sums.unit, sums.unit));
    const Vec move =
        ratio(sub(mul(sums.left_unit, weight), mul(sums.unit, sums.left)), spread);
    const Vec shift = div(sub(sums.left, mul(move, sums.unit)), weight);
    if (kKind == Kind::kMinima) return fit_minima(task, now, sums, move, shift, weight);
    return fit_integers(task, now, sums, add(now.steps, move), shift, weight);
}

inline Vec chosen(Vec better, Vec least, Vec yes, Vec no) {
    return where_less(better, least, yes, no);
}

inline Floats chosen(Vec better, Vec least, const Floats& yes, const Floats& no) {
    return {where_less(better, least, yes.steps, no.steps),
            where_less(better, least, yes.zeros, no.zeros)};
}

template <Kind kKind>
void keep_better(const Task& task, const Floats& tried, const Sums& sums, Vec weight,
                 Fit& best) {
    const Fit found = fit<kKind>(task, tried, sums, weight);
    best.grid = chosen(found.error, best.error, found.grid, best.grid);
    best.error = chosen(found.error, best.error, found.error, best.error);
}

// Start `numbers` of groups from `low` to `high`.
template <Kind kKind>
Floats start(const Task& task, const float* numbers, Vec low, Vec high) {
    const edgelm_search& s = task.s;
    if (kKind == Kind::kSymmetric || kKind == Kind::kTable) {
        const Vec zeros = fill(task.middle);
        if (numbers[1] != 0) {
            return {larger(div(high, fill(numbers[0])), div(low, fill(numbers[1]))), zeros};
        }
        return {div(where_less(flipped(low), high, high, low), fill(numbers[0])), zeros};
    }
    const Vec none = fill(0), range = fill(task.last_code - task.first_code);
    if (kKind == Kind::kIntegers || s.supers) {
        low = smaller(none, low);
        high = kKind == Kind::kIntegers ? larger(none, high) : larger(low, high);
    }
    const Vec step = div(sub(high, low), range), first = fill(task.first_code);
    const Vec lower = add(low, mul(step, fill(numbers[0])));
    const Vec steps = div(sub(sub(high, mul(step, fill(numbers[1]))), lower), range);
    if (kKind == Kind::kMinima) return {steps, sub(lower, mul(steps, first))};
    return {steps, round_within(sub(first, mul(lower, inverse(steps))), first,
                                fill(task.last_code))};
}

// The best fit to `numbers`, not rounded; `sums` are those of `first`.
template <Kind kKind>
Floats search(const Task& task, const Numbers& numbers, const Floats& first, const Sums& sums,
              Vec low, Vec high, Sums* parts) {
    Fit best{first, fill(HUGE_VALF)};
    keep_better<kKind>(task, first, sums, numbers.weight, best);
    for (int64_t i = 0; i < task.s.start_count; ++i) {
        const Floats tried = start<kKind>(task, task.s.starts + 2 * i, low, high);
        const Sums own = sums_of<kKind>(task, numbers, tried, parts);
        keep_better<kKind>(task, tried, own, numbers.weight, best);
    }
    for (int i = 0; i < kFits; ++i) {
        const Floats now = best.grid;
        const Sums own = sums_of<kKind>(task, numbers, now, parts);
        keep_better<kKind>(task, now, own, numbers.weight, best);
    }
    return best.grid;
}

}  // namespace
