// How the workspace of a product is cut into arrays.
#pragma once

#include "layout/layout.h"

namespace {

// An odd number of cache lines, so that the rows of a tile do not fall into one cache set.
inline int64_t activation_stride(const edgelm_matrix& m) {
    return (ceil_div(m.inputs, 64) | 1) * 64;
}

constexpr int64_t kLine = 64;  // bytes of a cache line, to which workspaces are aligned

// Cuts a workspace into arrays; without one (null) it only adds up their bytes.
class Cutter {
  public:
    explicit Cutter(uint8_t* workspace) : at_(workspace) {}

    template <typename T>
    T* take(int64_t count) {
        uint8_t* taken = at_ ? at_ + bytes : nullptr;
        bytes += ceil_div(count * static_cast<int64_t>(sizeof(T)), kLine) * kLine;
        return reinterpret_cast<T*>(taken);
    }

    int64_t bytes = 0;

  private:
    uint8_t* at_;
};

}  // namespace
