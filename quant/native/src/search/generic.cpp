// Quantizing in plain C++: what other instruction sets equal, bit by bit.
#include "ops/vector_generic.h"

namespace {

// Numbers of a codebook, or their codes, by the interval that a number lies in.
struct Table {
    const float* limits;  // of the first 15 intervals
    const float* entries;

    Table(const float* at, const float* of) : limits(at), entries(of) {}

    Vec pick(const Vec& x) const {
        return each([&](int i) {
            int below = 0;
            for (int k = 0; k < 15; ++k) below += x.at[i] > limits[k];
            return entries[below];
        });
    }
};

}  // namespace

#include "search/items.h"

void quantize_generic(const void* search, int64_t begin, int64_t end) {
    quantize_items(search, begin, end);
}
