// Quantizing for one instruction set: what each provides, and sizes.
#pragma once

#include "api/edgelm_search.h"
#include "system/pool.h"

// In an unnamed namespace: see layout.h.
namespace {

constexpr int64_t kLanes = 16;  // groups that are searched side by side
constexpr int64_t kChunk = 32;  // numbers of a group that are summed one after another
constexpr int kFits = 2;        // of the best start

inline int64_t group_size(const edgelm_search& s) { return s.group ? s.group : s.inputs; }

inline int64_t groups_of_row(const edgelm_search& s) { return s.inputs / group_size(s); }

// The fewest rows whose groups fill all lanes.
inline int64_t rows_of_item(const edgelm_search& s) {
    int64_t rows = kLanes;
    for (int64_t groups = groups_of_row(s); rows > 1 && groups % 2 == 0; groups /= 2) rows /= 2;
    return rows;
}

}  // namespace

// Quantizes items of `rows_of_item` rows; the context is an edgelm_search.
void quantize_generic(const void* search, int64_t begin, int64_t end);
#if defined(EDGELM_X86)
void quantize_avx2(const void* search, int64_t begin, int64_t end);
#endif
