// What loops over vectors ask of a compiler.
#pragma once

// Before loops over the vectors of a tile: gcc unrolls them by itself, but after it has decided
// what stays in registers, and then stores every sum in every step.
#if defined(__GNUC__)
#define UNROLL _Pragma("GCC unroll 16")
#define INLINE inline __attribute__((always_inline))
#else
#define UNROLL
#define INLINE inline
#endif

// Asks for the cache line at an address that need not exist.
#if defined(__GNUC__)
#define PREFETCH(at) __builtin_prefetch(at)
#elif defined(_M_X64)
#include <xmmintrin.h>
#define PREFETCH(at) _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T0)
#else
#define PREFETCH(at)
#endif
