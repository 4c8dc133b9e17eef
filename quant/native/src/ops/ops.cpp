// The C interface of a step's operations: who shares the work.
#include "ops/ops.h"

#include "isa/isa.h"

namespace {

// Below so many numbers a second thread costs more than it brings.
constexpr int64_t kThreadedNumbers = 1 << 15;
// Likewise where each number costs an exponential.
constexpr int64_t kThreadedExponentials = 1 << 12;

template <class Call>
const Call& as(const void* call) {
    return *static_cast<const Call*>(call);
}

void run_tokens(Work work, const void* call, int64_t tokens, int64_t numbers, int32_t threads) {
    run(work, call, tokens, tokens * numbers < kThreadedNumbers ? 1 : threads);
}

void run_columns(Work work, const void* call, int64_t tokens, int64_t size, int32_t threads,
                 int64_t threaded) {
    const int64_t blocks = (size + kColumns - 1) / kColumns;
    run(work, call, tokens * blocks, tokens * size < threaded ? 1 : threads);
}

const Ops& ops() { return *current_isa().ops; }

}  // namespace

void edgelm_rms_norm(const void* norm) {
    const auto& n = as<edgelm_norm>(norm);
    run_tokens(ops().rms_norm, norm, n.tokens, n.heads * n.size, n.threads);
}

void edgelm_layer_norm(const void* norm) {
    const auto& n = as<edgelm_norm>(norm);
    run_tokens(ops().layer_norm, norm, n.tokens, n.heads * n.size, n.threads);
}

void edgelm_add(const void* sum) {
    const auto& s = as<edgelm_addition>(sum);
    run_columns(ops().add, sum, s.tokens, s.size, s.threads, kThreadedNumbers);
}

void edgelm_scale(const void* map) {
    const auto& m = as<edgelm_unary>(map);
    run_columns(ops().scale, map, m.tokens, m.size, m.threads, kThreadedNumbers);
}

void edgelm_softcap(const void* map) {
    const auto& m = as<edgelm_unary>(map);
    run_columns(ops().softcap, map, m.tokens, m.size, m.threads, kThreadedExponentials);
}

void edgelm_activate(const void* activation) {
    const auto& a = as<edgelm_activation>(activation);
    run_columns(ops().activate, activation, a.tokens, a.size, a.threads, kThreadedExponentials);
}

void edgelm_rotate(const void* rotation) {
    const auto& r = as<edgelm_rotation>(rotation);
    run_tokens(ops().rotate, rotation, r.tokens, r.heads * r.size, r.threads);
}

void edgelm_store(const void* append) {
    const auto& a = as<edgelm_append>(append);
    run_tokens(ops().store, append, a.tokens, 2 * a.cache.groups * a.cache.size, a.threads);
}

void edgelm_argmax(const void* choice) {
    const auto& c = as<edgelm_maximum>(choice);
    run_tokens(ops().argmax, choice, c.tokens, c.size, c.threads);
}
