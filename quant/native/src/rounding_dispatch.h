// The entry of integer products: by what a matrix stores, to the tiles of an instruction set.
//
// Whoever includes this has defined
//     rows_by_tiles<S>(m, panel, x, target)  all rows of activations times a panel
#pragma once

#include "codebooks.h"
#include "isa.h"

namespace {

void multiply(const edgelm_matrix& m, const uint8_t* panel, const Activations& x,
              const Target& target) {
    switch (stored(m)) {
        case Stored::kInt4: return rows_by_tiles<Stored::kInt4>(m, panel, x, target);
        case Stored::kInt8: return rows_by_tiles<Stored::kInt8>(m, panel, x, target);
        default: return rows_by_tiles<Stored::kBook>(m, panel, x, target);
    }
}

}  // namespace
