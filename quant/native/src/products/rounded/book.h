// A codebook as rounded products read it.
#pragma once

#include "layout/codebooks.h"

namespace {

// The bytes that a codebook's codes stand for.
template <class V>
struct Book {
    typename V::Bytes planes[kPlanes];
    float unit;

    explicit Book(const edgelm_matrix& m) : unit(::unit(m)) {
        const Planes own = ::planes(m);
        for (int p = 0; p < kPlanes; ++p) planes[p] = V::repeat(own.bytes[p]);
    }
};

}  // namespace
