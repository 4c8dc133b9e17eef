// Rows from numbers to codes: what is around the search. quant/methods/rtn.py and
// quant/groupwise.py explain what is computed.
#pragma once

#include <math.h>

#include <memory>
#include <new>

#include "search/fits.h"
#include "search/stored.h"

namespace {

constexpr int64_t kTile = 64;  // numbers of each lane that are brought to or from their places

// Room of one thread, for the groups of an item and the lanes at hand.
struct Room {
    std::unique_ptr<float[]> memory;
    float* values;   // [group size, kLanes]
    float* weights;  // of their errors
    Sums* parts;
    float* steps;  // [groups], padded to kLanes
    float* zeros;
    float* scale_codes;
    float* zero_codes;
    uint8_t* codes;  // [rows, inputs]

    explicit Room(const edgelm_search& s) {
        const int64_t size = group_size(s), padded = rows_of_item(s) * groups_of_row(s);
        const int64_t chunks = size / kChunk + 1, sums = sizeof(Sums) / sizeof(float);
        const int64_t bytes = rows_of_item(s) * s.inputs;
        const int64_t floats = 2 * size * kLanes + chunks * sums + 4 * padded + bytes / 4 + 1 + kLanes;
        memory.reset(new (std::nothrow) float[static_cast<size_t>(floats)]());
        if (!memory) return;
        const size_t beyond = reinterpret_cast<uintptr_t>(memory.get()) / 4 % kLanes;
        float* at = memory.get() + (kLanes - static_cast<int64_t>(beyond)) % kLanes;
        parts = reinterpret_cast<Sums*>(at);  // aligned to vectors
        values = at + chunks * sums;
        weights = values + size * kLanes;
        steps = weights + size * kLanes;
        zeros = steps + padded;
        scale_codes = zeros + padded;
        zero_codes = scale_codes + padded;
        codes = reinterpret_cast<uint8_t*>(zero_codes + padded);
    }
};

// Each lane's number in its stored type.
inline Vec stored(Vec numbers, int32_t kind) {
    if (kind == EDGELM_FLOAT32) return numbers;
    float lanes[kLanes];
    store(lanes, numbers);
    const float most = largest_float(kind);
    for (float& x : lanes) x = nearest_float(clamped(x, -most, most), kind);
    return load(lanes);
}

// Rows [row, end) and their groups, which begin at group `first` of the matrix.
template <Kind kKind>
struct Rows {
    const Task& task;
    const edgelm_search& s;
    Room& room;
    int64_t row, end, first, groups;
    int32_t refused = 0;

    Rows(const Task& own, Room& with, int64_t from, int64_t to)
        : task(own),
          s(own.s),
          room(with),
          row(from),
          end(to),
          first(from * groups_of_row(own.s)),
          groups((to - from) * groups_of_row(own.s)) {}

    // Lanes' numbers side by side; lanes beyond the last group repeat it.
    void gather(int64_t group) {
        const int64_t size = group_size(s);
        for (int64_t begin = 0; begin < size; begin += kTile) {
            const int64_t stop = size - begin < kTile ? size : begin + kTile;
            for (int64_t lane = 0; lane < kLanes; ++lane) {
                const int64_t own = group + lane < groups ? group + lane : groups - 1;
                const float* from = s.x + (first + own) * size;
                for (int64_t i = begin; i < stop; ++i) room.values[i * kLanes + lane] = from[i];
            }
        }
    }

    // The gathered numbers with the weights of their errors, `_weights` of mse.py.
    Numbers numbers() {
        const int64_t size = group_size(s);
        Vec* parts = reinterpret_cast<Vec*>(room.parts);
        float lanes[kLanes];
        store(lanes, total<Vec>(size, parts, [&](int64_t first, int64_t count) {
            Vec sum = fill(0);
            for (int64_t i = first; i < first + count; ++i) {
                const Vec x = load(room.values + i * kLanes);
                sum = add(sum, mul(x, x));
            }
            return sum;
        }));
        for (float& x : lanes) {
            x = static_cast<float>(sqrt(static_cast<double>(x / static_cast<float>(size))));
        }
        const Vec typical = load(lanes);
        const Vec weight = total<Vec>(size, parts, [&](int64_t first, int64_t count) {
            Vec sum = fill(0);
            for (int64_t i = first; i < first + count; ++i) {
                const Vec own = add(size_of(load(room.values + i * kLanes)), typical);
                store(room.weights + i * kLanes, own);
                sum = add(sum, own);
            }
            return sum;
        });
        return {room.values, room.weights, weight};
    }

    void extremes(Vec& low, Vec& high) {
        low = high = load(room.values);
        Vec none = mul(low, fill(0));
        for (int64_t i = 1; i < group_size(s); ++i) {
            const Vec x = load(room.values + i * kLanes);
            low = smaller(low, x);
            high = larger(high, x);
            none = add(none, mul(x, fill(0)));  // NaN once a number is not finite
        }
        float lanes[kLanes];
        store(lanes, add(none, mul(sub(high, low), fill(0))));
        for (float x : lanes) {
            if (!(x == 0)) refused |= EDGELM_NOT_FINITE;
        }
    }

    // In the stored type, unless scales are coded.
    Vec kept(Vec numbers) {
        if (s.supers) return numbers;
        float lanes[kLanes];
        store(lanes, numbers);
        for (float x : lanes) {
            if (magnitude(x) > largest_float(s.floats)) refused |= EDGELM_BEYOND;
        }
        return stored(numbers, s.floats);
    }

    Floats nearest(Vec low, Vec high) {
        const Vec none = fill(0), begin = fill(task.first_code);
        const Vec range = fill(task.last_code - task.first_code);
        if (kKind == Kind::kIntegers) {
            low = smaller(none, low);
            high = larger(none, high);
            const Vec steps = kept(div(sub(high, low), range));
            const Vec offset = where_zero(steps, none, div(flipped(low), steps));
            return {steps, add(round_within(offset, none, range), begin)};
        }
        if (kKind == Kind::kMinima) {
            if (s.supers) {
                low = smaller(none, low);
                high = larger(low, high);
            }
            const Vec steps = kept(div(sub(high, low), range));
            return {steps, kept(sub(low, mul(steps, begin)))};
        }
        const Vec middle = fill(task.middle), ends = fill(s.first), last = fill(s.last);
        if (s.first == -s.last) return {kept(div(larger(high, flipped(low)), last)), middle};
        if (!s.supers || s.least_scale < 0) {
            return {kept(div(where_less(flipped(low), high, high, low), ends)), middle};
        }
        return {kept(larger(div(high, last), div(low, ends))), middle};
    }

    // The grids of the lanes from `group` on, unless scales are coded as they are stored.
    Floats grids(int64_t group) {
        Vec low, high;
        gather(group);
        extremes(low, high);
        const Floats near = nearest(low, high);
        if (refused || s.start_count == 0) return near;
        const Numbers own = numbers();
        const Sums sums = sums_of<kKind>(task, own, near, room.parts);
        const Vec error = sums.left_left;
        Floats found = search<kKind>(task, own, near, sums, low, high, room.parts);
        if (s.supers) return found;
        found.steps = stored(found.steps, s.floats);
        if (kKind == Kind::kMinima) found.zeros = stored(found.zeros, s.floats);
        const Vec other = sums_of<kKind>(task, own, found, room.parts).left_left;
        return chosen(other, error, found, near);
    }

    // Codes of the numbers in the lanes, to their places in the rows, and their errors.
    void write_codes(int64_t group, const Floats& at) {
        const int64_t size = group_size(s);
        const int64_t lanes = groups - group < kLanes ? groups - group : kLanes;
        const Rounder<kKind> rounder(task, at);
        for (int64_t begin = 0; begin < size; begin += kTile) {
            const int64_t count = size - begin < kTile ? size - begin : kTile;
            uint8_t codes[kLanes][kTile];
            float errors[kLanes], powers[kLanes];
            round_tile(rounder, at, room.values + begin * kLanes, count, codes, errors, powers);
            for (int64_t lane = 0; lane < lanes; ++lane) {
                memcpy(room.codes + (group + lane) * size + begin, codes[lane],
                       static_cast<size_t>(count));
                double* own = s.errors + 2 * (row + (group + lane) / groups_of_row(s));
                own[0] += static_cast<double>(powers[lane]);
                own[1] += static_cast<double>(errors[lane]);
            }
        }
    }

    INLINE void round_tile(const Rounder<kKind>& rounder, const Floats& at, const float* values,
                           int64_t count, uint8_t (&codes)[kLanes][kTile], float* errors,
                           float* powers) const {
        Vec error = fill(0), power = error;
        for (int64_t i = 0; i < count; ++i) {
            const Vec x = load(values + i * kLanes), unit = rounder.units(x);
            Vec left = sub(x, mul(unit, at.steps)), code = unit;
            if (kKind == Kind::kMinima) left = sub(left, at.zeros);
            if (kKind == Kind::kTable) code = task.codes.pick(mul(x, rounder.by));
            if (kKind == Kind::kSymmetric || kKind == Kind::kIntegers) code = add(unit, at.zeros);
            error = add(error, mul(left, left));
            power = add(power, mul(x, x));
            float own[kLanes];
            store(own, code);
            for (int64_t lane = 0; lane < kLanes; ++lane) {
                codes[lane][i] = static_cast<uint8_t>(static_cast<int32_t>(own[lane]));
            }
        }
        store(errors, error);
        store(powers, power);
    }

    void put(int64_t group, const Floats& at) {
        store(room.steps + group, at.steps);
        store(room.zeros + group, at.zeros);
    }

    Floats at(int64_t group) const { return {load(room.steps + group), load(room.zeros + group)}; }

    void plain() {
        for (int64_t group = 0; group < groups && !refused; group += kLanes) {
            const Floats found = grids(group);
            put(group, found);
            write_codes(group, found);
        }
    }

    void write() const {
        const int64_t width = s.bits < 8 ? s.inputs * s.bits / 8 : s.inputs;
        for (int64_t i = row; i < end; ++i) {
            pack_row(s, room.codes + (i - row) * s.inputs, s.qweight + i * width);
        }
        for (int64_t i = 0; i < groups; ++i) {
            const int64_t own = first + i;
            if (s.supers) {
                s.scales[own] = static_cast<uint8_t>(static_cast<int32_t>(room.scale_codes[i]));
            } else {
                write_float(s.scales, s.floats, own, room.steps[i]);
            }
            if (kKind == Kind::kIntegers) {
                s.zeros[own] = static_cast<uint8_t>(static_cast<int32_t>(room.zeros[i]));
            } else if (kKind == Kind::kMinima && s.supers) {
                s.zeros[own] = static_cast<uint8_t>(static_cast<int32_t>(room.zero_codes[i]));
            } else if (kKind == Kind::kMinima) {
                write_float(s.zeros, s.floats, own, room.zeros[i]);
            }
        }
    }
};

}  // namespace
