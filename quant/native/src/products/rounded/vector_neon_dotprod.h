// NEON's vectors with the dot products of ARMv8.2.
#pragma once

#include "products/rounded/tiles.h"
#include "products/vector_neon.h"

namespace {

struct NeonDotprod : Neon {
    static constexpr bool kPairs = false;
    static constexpr bool kUnpacks = false;
    template <Stored S>
    static INLINE Ints dot(Ints sums, Bytes low, Bytes high, Inputs x) {
        const Ints half = vdotq_lane_s32(sums, less_base<S>(low), x, 0);
        return vdotq_lane_s32(half, less_base<S>(high), x, 1);
    }
};

}  // namespace
