// Codes of scales and minima, and the best among those near them: quant/scale_codes.py explains
// what is computed.
#pragma once

#include "search/rows.h"

namespace {

template <Kind kKind>
struct Coder {
    static constexpr int kParts = kKind == Kind::kMinima ? 2 : 1;  // of a super-scale
    static constexpr float kMostMinimum = 63;

    Rows<kKind>& rows;
    const edgelm_search& s;
    Room& room;
    int64_t blocks;  // super-scales of a row
    int64_t own;     // groups of each

    explicit Coder(Rows<kKind>& of)
        : rows(of),
          s(of.s),
          room(of.room),
          blocks(of.s.inputs % 256 == 0 ? of.s.inputs / 256 : 1),
          own(groups_of_row(of.s) / blocks) {}

    // Super-scales of a part, and codes of its `numbers` in multiples of them; the numbers become
    // what their codes say.
    void encode(float* numbers, float* codes, int part, float sign, float least, float most) {
        for (int64_t block = 0; block < rows.groups / own; ++block) {
            float largest = 0;
            for (int64_t i = block * own; i < (block + 1) * own; ++i) {
                if (magnitude(numbers[i]) > largest) largest = magnitude(numbers[i]);
            }
            largest = largest / most;
            if (largest > largest_float(s.floats)) {
                rows.refused |= EDGELM_BEYOND;
                return;
            }
            const float super = sign * nearest_float(largest, s.floats);
            write_float(s.supers, s.floats, (rows.row * blocks + block) * kParts + part, super);
            float by = 1 / super;
            if (magnitude(by) > FLT_MAX) by = 0;
            for (int64_t i = block * own; i < (block + 1) * own; ++i) {
                codes[i] = rounded(clamped(numbers[i] * by, least, most));
                numbers[i] = codes[i] * super;
            }
        }
    }

    float super_of(int64_t group, int part) const {
        return read_float(s.supers, s.floats, (rows.first + group) / own * kParts + part);
    }

    // Codes `up` from those at `codes`, and what they say; lanes beyond the last group repeat it.
    Vec neighbour(const float* codes, const float* supers, float up, float least, float most,
                  float* found) const {
        float numbers[kLanes];
        for (int64_t i = 0; i < kLanes; ++i) {
            found[i] = clamped(codes[i] + up, least, most);
            numbers[i] = found[i] * supers[i];
        }
        return load(numbers);
    }

    // The best of the codes near those of the lanes from `group` on.
    void nearby(int64_t group) {
        static constexpr float kNear[3] = {0, -1, 1};
        const int zero_ups = kParts == 2 ? 3 : 1;
        float supers[2][kLanes] = {}, found[2][kLanes] = {};
        for (int64_t i = 0; i < kLanes; ++i) {
            const int64_t at = group + i < rows.groups ? group + i : rows.groups - 1;
            supers[0][i] = super_of(at, 0);
            if (kParts == 2) supers[1][i] = super_of(at, 1);
        }
        const Numbers numbers = rows.numbers();
        Floats best = rows.at(group);
        const Vec scale_codes = load(room.scale_codes + group);
        const Vec zero_codes = load(room.zero_codes + group);
        Vec best_scales = scale_codes, best_zeros = zero_codes;
        Vec least = sums_of<kKind>(rows.task, numbers, best, room.parts).left_left;
        for (int i = 0; i < 3; ++i) {
            for (int j = i ? 0 : 1; j < zero_ups; ++j) {
                Floats tried = rows.at(group);
                tried.steps = neighbour(room.scale_codes + group, supers[0], kNear[i],
                                        static_cast<float>(s.least_scale),
                                        static_cast<float>(s.most_scale), found[0]);
                if (kParts == 2) {
                    tried.zeros = neighbour(room.zero_codes + group, supers[1], kNear[j], 0,
                                            kMostMinimum, found[1]);
                }
                const Vec error =
                    sums_of<kKind>(rows.task, numbers, tried, room.parts).left_left;
                best = chosen(error, least, tried, best);
                best_scales = chosen(error, least, load(found[0]), best_scales);
                best_zeros = chosen(error, least, load(found[1]), best_zeros);
                least = chosen(error, least, error, least);
            }
        }
        rows.put(group, best);
        store(room.scale_codes + group, best_scales);
        store(room.zero_codes + group, best_zeros);
    }

    void run() {
        for (int64_t group = 0; group < rows.groups && !rows.refused; group += kLanes) {
            rows.put(group, rows.grids(group));
        }
        if (rows.refused) return;
        encode(room.steps, room.scale_codes, 0, 1, static_cast<float>(s.least_scale),
               static_cast<float>(s.most_scale));
        if (kParts == 2) encode(room.zeros, room.zero_codes, 1, -1, 0, kMostMinimum);
        for (int64_t group = 0; group < rows.groups && !rows.refused; group += kLanes) {
            rows.gather(group);
            if (s.start_count) nearby(group);
            rows.write_codes(group, rows.at(group));
        }
    }
};

}  // namespace
