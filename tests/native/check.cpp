// Compares every instruction set of the processor with the generic one, bit by bit.
//
//     edgelm_check [NAME ...]    fails too if an instruction set of these names is missing
//
// For emulators and sanitizers: no Python, buffers of exactly the sizes that the library asks
// for, callers at the same time, and pointers that are aligned to nothing but their type.
#include <stdio.h>
#include <string.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "api/edgelm_ops.h"
#include "api/edgelm_search.h"

namespace {

constexpr int64_t kRows = 67;  // more than a block of rows that share unpacked codes
constexpr int64_t kOutputs = 45;  // not a multiple of a panel

uint32_t state = 1;

uint32_t random32() {
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state;
}

float random_float() { return static_cast<float>(static_cast<int32_t>(random32())) * 0x1p-31f; }

// Numbers of magnitude near 0.01 in a type of edgelm_float.
std::vector<uint8_t> random_numbers(int64_t count, int32_t kind, bool signs) {
    std::vector<uint8_t> bytes(static_cast<size_t>(count * (kind == EDGELM_FLOAT32 ? 4 : 2)));
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t sign = signs ? random32() & 1 : 0;
        if (kind == EDGELM_FLOAT32) {
            const float number = (sign ? -0.01f : 0.01f) * (1.5f + random_float());
            memcpy(bytes.data() + 4 * i, &number, 4);
        } else {
            const uint32_t half = kind == EDGELM_FLOAT16 ? 0x2000u | (random32() & 0x7ff)
                                                         : 0x3c00u | (random32() & 0xff);
            const uint16_t stored = static_cast<uint16_t>(sign << 15 | half);
            memcpy(bytes.data() + 2 * i, &stored, 2);
        }
    }
    return bytes;
}

std::vector<uint8_t> random_bytes(int64_t count, uint32_t mask) {
    std::vector<uint8_t> bytes(static_cast<size_t>(count));
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random32() & mask);
    return bytes;
}

// A layout behind one byte that nobody uses, so that it is aligned to nothing.
struct Packed {
    edgelm_matrix matrix;
    std::unique_ptr<uint8_t[]> memory;
    const uint8_t* layout() const { return memory.get() + 1; }
};

Packed random_matrix(edgelm_matrix m) {
    Packed packed{m, nullptr};
    packed.memory.reset(new uint8_t[static_cast<size_t>(edgelm_layout_bytes(&m)) + 1]);
    const int64_t groups = m.group ? m.inputs / m.group : 1, count = m.outputs * groups;
    const int64_t numbers = m.outputs * m.inputs;
    const bool floats = m.codes == EDGELM_FLOATS;
    const auto qweight = floats ? random_numbers(numbers, m.scales, true)
                                : random_bytes(numbers * m.bits / 8, 255);
    const auto scales =
        m.coded ? random_bytes(count, 255) : random_numbers(count, m.scales, false);
    const bool minima = m.zeros == EDGELM_ZEROS_FLOAT && !m.coded;
    const uint32_t most = m.zeros == EDGELM_ZEROS_INT ? (1u << m.bits) - 1 : 255;
    const auto zeros = minima ? random_numbers(count, m.scales, true) : random_bytes(count, most);
    const int64_t blocks = m.inputs % 256 ? 1 : m.inputs / 256;
    const auto supers = random_numbers(2 * m.outputs * blocks, m.scales, true);
    edgelm_pack(&m, qweight.data(), floats ? nullptr : scales.data(),
                m.zeros == EDGELM_ZEROS_NONE ? nullptr : zeros.data(),
                m.coded ? supers.data() : nullptr, packed.memory.get() + 1, 2);
    return packed;
}

std::vector<float> random_rows(int64_t inputs) {
    std::vector<float> x(static_cast<size_t>(kRows * inputs));
    for (float& number : x) number = random_float();
    for (size_t i = 7; i < x.size(); i += 173) x[i] *= 100;  // groups that are rounded twice
    return x;
}

std::vector<float> product(const Packed& packed, const float* x, int64_t rows, int32_t threads) {
    const edgelm_matrix& m = packed.matrix;
    std::vector<float> out(static_cast<size_t>(rows * m.outputs));
    const size_t bytes = static_cast<size_t>(edgelm_workspace_bytes(&m, rows));
    const std::unique_ptr<uint8_t[]> workspace(new uint8_t[bytes]);
    const edgelm_product call{&m,       packed.layout(), x,    nullptr,  out.data(),
                              workspace.get(), rows, m.inputs, m.outputs, threads};
    edgelm_multiply(&call);
    return out;
}

bool same(const std::vector<float>& a, const float* b) {
    return memcmp(a.data(), b, a.size() * sizeof(float)) == 0;
}

// All rows at once and each alone.
bool equals_generic(const Packed& packed, const char* isa) {
    const int64_t inputs = packed.matrix.inputs, outputs = packed.matrix.outputs;
    const std::vector<float> x = random_rows(inputs);
    edgelm_use_isa("generic");
    const std::vector<float> expected = product(packed, x.data(), kRows, 1);
    edgelm_use_isa(isa);
    bool equal = same(product(packed, x.data(), kRows, 3), expected.data());
    for (int64_t row = 0; row < kRows; row += 6) {
        const std::vector<float> alone = product(packed, x.data() + row * inputs, 1, 1);
        equal = equal && same(alone, expected.data() + row * outputs);
    }
    return equal;
}

// A matrix of every group: one scale per row, a scale of its own per group, a coded one.
void add_integers(std::vector<edgelm_matrix>& all, edgelm_matrix m) {
    m.inputs = m.bits == 5 ? 136 : m.bits == 6 ? 140 : 142;  // no multiple of a step or a group
    all.push_back(m);
    for (const int32_t group : {16, 32, 64, 128}) {
        for (const int32_t coded : {0, 1}) {
            m.group = group;
            m.coded = coded;
            m.inputs = 512;  // two blocks of supers, or one of no whole 256 inputs
            all.push_back(m);
            m.inputs = 384;
            if (coded) all.push_back(m);
        }
    }
}

std::vector<edgelm_matrix> kinds() {
    std::vector<edgelm_matrix> all;
    for (const int32_t exact : {EDGELM_ROUNDED, EDGELM_EXACT}) {
        for (const int32_t scales : {EDGELM_FLOAT16, EDGELM_BFLOAT16, EDGELM_FLOAT32}) {
            for (const int32_t zeros : {EDGELM_ZEROS_NONE, EDGELM_ZEROS_INT, EDGELM_ZEROS_FLOAT}) {
                for (const int32_t bits : {4, 5, 6, 8}) {
                    add_integers(all, {kOutputs, 0, bits, 0, scales, zeros, EDGELM_INTEGERS, exact,
                                       0});
                }
            }
            for (const int32_t book : {EDGELM_NF4, EDGELM_FP4, EDGELM_IQ4}) {
                for (const int32_t coded : {0, 1}) {
                    all.push_back({kOutputs, 512, 4, coded ? 32 : 64, scales, EDGELM_ZEROS_NONE,
                                   book, exact, coded});
                }
            }
        }
    }
    for (const int32_t type : {EDGELM_FLOAT16, EDGELM_BFLOAT16, EDGELM_FLOAT32}) {
        const int32_t bits = type == EDGELM_FLOAT32 ? 32 : 16;
        all.push_back({kOutputs, 142, bits, 0, type, EDGELM_ZEROS_NONE, EDGELM_FLOATS, 0, 0});
    }
    return all;
}

bool check(const char* isa) {
    int equal = 0, count = 0;
    for (const edgelm_matrix& m : kinds()) {
        ++count;
        if (equals_generic(random_matrix(m), isa)) {
            ++equal;
        } else {
            printf("%s differs: bits %d group %d scales %d zeros %d codes %d exact %d coded %d\n",
                   isa, m.bits, m.group, m.scales, m.zeros, m.codes, m.activations, m.coded);
        }
    }
    printf("%s: %d of %d kinds of products equal the generic ones\n", isa, equal, count);
    return equal == count;
}

// Rows of the layout read one by one: within its bytes, and finite.
bool check_lookup() {
    bool finite = true;
    for (const edgelm_matrix& m : kinds()) {
        const Packed packed = random_matrix(m);
        std::vector<float> row(static_cast<size_t>(m.inputs));
        for (int64_t id = 0; id < m.outputs; ++id) {
            const edgelm_row_lookup reading{&m, packed.layout(), &id, row.data(), 1, m.inputs};
            edgelm_lookup(&reading);
            for (const float number : row) finite = finite && number - number == 0;
        }
    }
    printf("lookups: %s\n", finite ? "finite" : "not finite");
    return finite;
}

// Callers at the same time, each with more threads than there are cores.
bool check_callers() {
    const Packed packed = random_matrix(
        {2000, 256, 4, 32, EDGELM_FLOAT16, EDGELM_ZEROS_NONE, EDGELM_INTEGERS, EDGELM_ROUNDED,
         0});
    const std::vector<float> x = random_rows(256);
    const std::vector<float> expected = product(packed, x.data(), kRows, 1);
    bool equal[4] = {true, true, true, true};
    std::vector<std::thread> callers;
    for (bool& own : equal) {
        callers.emplace_back([&] {
            for (int turn = 0; turn < 20; ++turn) {
                own = own && same(product(packed, x.data(), kRows, 40), expected.data());
            }
        });
    }
    for (std::thread& caller : callers) caller.join();
    const bool all = equal[0] && equal[1] && equal[2] && equal[3];
    printf("four callers with 40 threads each: %s\n", all ? "equal" : "differ");
    return all;
}

// Everything that quantizing writes, in buffers of exactly its sizes.
std::vector<uint8_t> quantized(edgelm_search s, const std::vector<float>& x, int32_t threads) {
    const int64_t groups = s.rows * (s.group ? s.inputs / s.group : 1);
    const int64_t width = s.floats == EDGELM_FLOAT32 ? 4 : 2;
    const bool coded = s.supers != nullptr, minima = s.zero_kind == EDGELM_ZEROS_FLOAT;
    const int64_t supers = coded ? s.rows * (s.inputs % 256 ? 1 : s.inputs / 256) * (minima + 1) : 0;
    const int64_t zero = s.zero_kind == EDGELM_ZEROS_INT ? 1 : minima ? (coded ? 1 : width) : 0;
    const int64_t sizes[] = {s.rows * s.inputs * s.bits / 8, groups * (coded ? 1 : width),
                             groups * zero, supers * width};
    uint8_t** const places[] = {&s.qweight, &s.scales, &s.zeros, &s.supers};
    std::vector<std::vector<uint8_t>> parts;
    for (int i = 0; i < 4; ++i) {
        parts.emplace_back(static_cast<size_t>(sizes[i]));
        *places[i] = sizes[i] ? parts.back().data() : nullptr;
    }
    std::vector<double> errors(static_cast<size_t>(2 * s.rows));
    int32_t refused = -1;
    s.x = x.data();
    s.errors = errors.data();
    s.refused = &refused;
    s.threads = threads;
    edgelm_quantize(&s);
    std::vector<uint8_t> all(1, static_cast<uint8_t>(refused));
    for (const auto& part : parts) all.insert(all.end(), part.begin(), part.end());
    const uint8_t* sums = reinterpret_cast<const uint8_t*>(errors.data());
    all.insert(all.end(), sums, sums + errors.size() * sizeof(double));
    return all;
}

bool check_search() {
    static const float kStarts[] = {8.5f, 0, -7, 0, 0.3f, -0.3f}, kEnds[] = {8, -8, 7.5f, -8.5f};
    float table[48] = {};
    for (int i = 0; i < 16; ++i) {
        table[i] = static_cast<float>(i * i - 100);
        table[16 + i] = i < 15 ? static_cast<float>(i * i + i) - 99.5f : 1e30f;
        table[32 + i] = static_cast<float>(15 - i);
    }
    uint8_t coded = 0;
    bool all = true;
    for (int kind = 0; kind < 64; ++kind) {
        const int32_t bits[] = {4, 5, 6, 8}, groups[] = {16, 32, 0, 128};
        edgelm_search s{};
        s.bits = bits[kind % 4];
        s.group = groups[kind / 4 % 4];
        s.zero_kind = kind / 16 % 3;
        const bool book = kind / 16 == 3;
        if (book) s.bits = 4, s.table = table;
        s.starts = s.zero_kind || s.bits == 8 ? kStarts : kEnds;
        s.rows = 19;
        s.inputs = kind % 2 ? 256 : 384;
        s.start_count = kind % 3 ? 2 : 0;
        s.first = s.bits == 8 ? -127.0f : -static_cast<float>(1 << (s.bits - 1));
        s.last = -s.first - (s.bits == 8 ? 0 : 1);
        s.floats = kind % 5 % 3;
        s.most_scale = 63;
        if (s.group && kind / 2 % 2) s.supers = &coded;
        const std::vector<float> x = random_rows(s.rows * s.inputs / kRows + 1);
        edgelm_use_isa("generic");
        const std::vector<uint8_t> expected = quantized(s, x, 1);
        bool equal = expected[0] == 0;
        for (int32_t i = 0; edgelm_isa(i); ++i) {
            edgelm_use_isa(edgelm_isa(i));
            equal = quantized(s, x, 3) == expected && equal;
        }
        if (!equal) printf("search %d: bits differ\n", kind);
        all = all && equal;
    }
    printf("search: %s\n", all ? "the same bits" : "NOT the same");
    return all;
}

}  // namespace

int main(int count, char** wanted) {
    bool good = check_lookup();
    good = check_search() && good;
    std::vector<std::string> found;
    for (int32_t i = 0; edgelm_isa(i); ++i) found.push_back(edgelm_isa(i));
    for (const std::string& isa : found) good = check(isa.c_str()) && good;
    good = check_callers() && good;
    for (int i = 1; i < count; ++i) {
        bool has = false;
        for (const std::string& isa : found) has = has || isa == wanted[i];
        if (!has) printf("%s is missing here\n", wanted[i]);
        good = good && has;
    }
    return good ? 0 : 1;
}
