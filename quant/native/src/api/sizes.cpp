// What a binding compares before it calls anything else.
#include <string.h>

#include "api/edgelm_ops.h"
#include "api/edgelm_search.h"

namespace {

struct Size {
    const char* name;
    int64_t bytes;
};

#define SIZE(type) {#type, static_cast<int64_t>(sizeof(type))}
constexpr Size kSizes[] = {
    SIZE(edgelm_matrix), SIZE(edgelm_product), SIZE(edgelm_row_lookup), SIZE(edgelm_norm),
    SIZE(edgelm_addition), SIZE(edgelm_unary), SIZE(edgelm_activation), SIZE(edgelm_rotation),
    SIZE(edgelm_cache), SIZE(edgelm_append), SIZE(edgelm_attention), SIZE(edgelm_maximum),
    SIZE(edgelm_sampling), SIZE(edgelm_call), SIZE(edgelm_tape), SIZE(edgelm_search),
};
#undef SIZE

}  // namespace

int32_t edgelm_abi() { return EDGELM_ABI; }

int64_t edgelm_struct_bytes(const char* name) {
    for (const Size& size : kSizes) {
        if (strcmp(size.name, name) == 0) return size.bytes;
    }
    return 0;
}
