// The next token of a row, drawn from its logits in a few passes and without sorting: a filter is
// the smallest weight that it keeps, and that number's bits are found from the highest down.
#include <math.h>
#include <string.h>

#include "api/edgelm_ops.h"
#include "isa/isa.h"

namespace {

constexpr int kDigits[] = {21, 10, 0};  // lowest bit of each part of a float's 32
constexpr int64_t kMostBuckets = 1 << 11;

uint32_t bits_of(float number) {
    uint32_t bits;
    memcpy(&bits, &number, 4);
    return bits;
}

// What a filter keeps: every weight above `least`, and of those that equal it what is left once
// `above` was counted for the others.
struct Threshold {
    float least;
    double above;
};

// The smallest weight so that it and the larger ones count `wanted` or more, 0 where all do not.
// Weights are not negative, so their bits order them; count(weight) is what one is worth.
template <class Count>
Threshold threshold(const float* weights, int64_t size, double wanted, Count count) {
    uint32_t known = 0;  // the bits found so far
    double above = 0;
    int upper = 32;
    for (const int lower : kDigits) {
        double worth[kMostBuckets] = {};
        const uint32_t mask = (1u << (upper - lower)) - 1;
        for (int64_t i = 0; i < size; ++i) {
            const uint32_t own = bits_of(weights[i]);
            const bool same = upper == 32 || own >> upper == known;
            if (same) worth[own >> lower & mask] += count(weights[i]);
        }
        uint32_t digit = mask;
        while (digit > 0 && above + worth[digit] < wanted) above += worth[digit--];
        known = (upper == 32 ? 0 : known << (upper - lower)) | digit;
        upper = lower;
    }
    float least;
    memcpy(&least, &known, 4);
    return {least, above};
}

void drop_below(float* weights, int64_t size, float least) {
    for (int64_t i = 0; i < size; ++i) weights[i] = weights[i] < least ? 0.0f : weights[i];
}

double total_of(const float* weights, int64_t size) {
    double total = 0;
    for (int64_t i = 0; i < size; ++i) total += static_cast<double>(weights[i]);
    return total;
}

void keep_most(float* weights, int64_t size, int64_t most) {
    const auto one = [](float) { return 1.0; };
    const double wanted = static_cast<double>(most);
    drop_below(weights, size, threshold(weights, size, wanted, one).least);
}

// The heaviest whose share of all reaches `mass`, the one that crosses it included; of equal ones
// the first.
void keep_mass(float* weights, int64_t size, double mass) {
    const double wanted = mass * total_of(weights, size);
    const auto own = [](float weight) { return static_cast<double>(weight); };
    const Threshold found = threshold(weights, size, wanted, own);
    double before = found.above;
    for (int64_t i = 0; i < size; ++i) {
        const bool kept = weights[i] > found.least || (weights[i] == found.least && before < wanted);
        if (weights[i] == found.least) before += own(found.least);
        if (!kept) weights[i] = 0;
    }
}

// The first whose running sum exceeds `share` of all.
int64_t drawn(const float* weights, int64_t size, double share) {
    const double wanted = share * total_of(weights, size);
    double sum = 0;
    int64_t last = -1;
    for (int64_t i = 0; i < size; ++i) {
        if (weights[i] == 0) continue;
        last = i;
        sum += static_cast<double>(weights[i]);
        if (sum > wanted) break;
    }
    return last;
}

float largest_of(const float* x, int64_t size) {
    float most = -INFINITY;
    for (int64_t i = 0; i < size; ++i) most = x[i] > most ? x[i] : most;
    return most;
}

}  // namespace

void edgelm_sample(const void* draw) {
    const edgelm_sampling& d = *static_cast<const edgelm_sampling*>(draw);
    const float most = largest_of(d.logits, d.size);
    if (most == -INFINITY) {
        *d.out = -1;
        return;
    }
    current_isa().ops->soft_weights(d.logits, d.size, d.temperature, most / d.temperature);
    if (d.top_k > 0 && d.top_k < d.size) keep_most(d.logits, d.size, d.top_k);
    if (d.top_p < 1) keep_mass(d.logits, d.size, d.top_p);
    if (d.min_p > 0) drop_below(d.logits, d.size, d.min_p);
    *d.out = drawn(d.logits, d.size, d.uniform);
}
