// Items of work: rows whose groups fill the lanes.
#pragma once

#include <atomic>

#include "search/coded.h"

namespace {

inline void refuse(const edgelm_search& s, int32_t reason) {
    reinterpret_cast<std::atomic<int32_t>*>(s.refused)->fetch_or(reason);
}

template <Kind kKind>
void quantize_rows(const Task& task, int64_t begin, int64_t end) {
    const edgelm_search& s = task.s;
    Room room(s);
    if (!room.memory) return refuse(s, EDGELM_NO_MEMORY);
    const int64_t step = rows_of_item(s);
    for (int64_t row = begin * step; row < end * step && row < s.rows; row += step) {
        Rows<kKind> rows(task, room, row, row + step < s.rows ? row + step : s.rows);
        if (s.supers) {
            Coder<kKind>(rows).run();
        } else {
            rows.plain();
        }
        if (rows.refused) return refuse(s, rows.refused);
        rows.write();
    }
}

void quantize_items(const void* search, int64_t begin, int64_t end) {
    const Task task(*static_cast<const edgelm_search*>(search));
    switch (task.kind()) {
        case Kind::kSymmetric: return quantize_rows<Kind::kSymmetric>(task, begin, end);
        case Kind::kTable: return quantize_rows<Kind::kTable>(task, begin, end);
        case Kind::kIntegers: return quantize_rows<Kind::kIntegers>(task, begin, end);
        case Kind::kMinima: return quantize_rows<Kind::kMinima>(task, begin, end);
    }
}

}  // namespace
