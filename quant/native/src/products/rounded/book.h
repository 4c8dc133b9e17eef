// A codebook as rounded products read it.
#pragma once

#include "layout/codebooks.h"

namespace {

// The bytes that a codebook's codes stand for, less what `V::dot` would subtract from each.
template <class V>
struct Book {
    typename V::Bytes planes[kPlanes];
    float unit;

    explicit Book(const edgelm_matrix& m) : unit(::unit(m)) {
        Planes own = ::planes(m);
        for (int p = 0; p < kPlanes; ++p) {
            for (uint8_t& byte : own.bytes[p]) {
                byte = static_cast<uint8_t>(byte - V::base(Stored::kBook));
            }
            planes[p] = V::repeat(own.bytes[p]);
        }
    }
};

}  // namespace
