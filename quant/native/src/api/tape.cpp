// Recorded steps.
#include "api/edgelm_ops.h"

void edgelm_replay(const void* tape) {
    const edgelm_tape& recorded = *static_cast<const edgelm_tape*>(tape);
    for (int64_t i = 0; i < recorded.count; ++i) {
        recorded.calls[i].operation(recorded.calls[i].arguments);
    }
}
