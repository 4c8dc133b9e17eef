// Who computes which part of attention: tiles of tokens, groups of heads, splits of keys.
#include <atomic>

#include "isa/isa.h"
#include "ops/ops.h"

namespace {

// Queries in a tile: enough that a block of keys is used often once it is in the cache.
constexpr int64_t kTileQueries = 64;
// Steps of up to so many tokens share splits between threads; longer ones have enough tiles.
constexpr int64_t kFewTokens = 16;
// Threads of one call; each has a place of its own in the workspace.
constexpr int32_t kMostThreads = 64;
// Below so many products a second thread costs more than it brings.
constexpr int64_t kThreadedProducts = 1 << 16;

int64_t ceil_to(int64_t count, int64_t multiple) {
    return (count + multiple - 1) / multiple * multiple;
}

int64_t padded_size(const edgelm_attention& a) { return ceil_to(a.cache.size, 16); }

int64_t heads_of_group(const edgelm_attention& a) { return a.heads / a.cache.groups; }

int64_t tile_tokens(const edgelm_attention& a) {
    const int64_t heads = heads_of_group(a);
    return heads < kTileQueries ? kTileQueries / heads : 1;
}

int64_t tile_queries(const edgelm_attention& a) { return tile_tokens(a) * heads_of_group(a); }

int64_t few(const edgelm_attention& a) { return a.tokens < kFewTokens ? a.tokens : kFewTokens; }

int32_t thread_count(const edgelm_attention& a) {
    return a.threads < kMostThreads ? a.threads : kMostThreads;
}

// Splits that a token's keys can lie in: those of all slots, and one more at either end.
int64_t most_splits(const edgelm_attention& a) { return a.cache.slots / kSplit + 2; }

int64_t softmax_floats(const edgelm_attention& a, int64_t queries) {
    return queries * (padded_size(a) + kSoftmaxExtra);
}

int64_t thread_floats(const edgelm_attention& a) {
    const int64_t queries = tile_queries(a), padded = padded_size(a);
    return queries * padded + kBlock * padded + queries * kBlock + ceil_to(queries, 16) +
           2 * softmax_floats(a, queries);
}

int64_t tiles_bytes(const edgelm_attention& a) {
    return ceil_to(a.tokens * static_cast<int64_t>(sizeof(Tile)), 64);
}

Softmax softmax_at(const edgelm_attention& a, float* at, int64_t queries) {
    float* largest = at + queries * padded_size(a);
    return {at, largest, largest + queries};
}

// One call: the tiles, and places for threads and partial results.
struct Job {
    const edgelm_attention& a;
    const Ops& ops;
    const Tile* tiles;
    float* partial;  // of (split, tile, group), for few tokens
    float* places;   // of the threads
    int64_t splits = 1;  // the most that a tile has
    mutable std::atomic<uint64_t> taken{0};
};

// A place in the workspace, for as long as this lives.
class Place {
  public:
    explicit Place(const Job& job) : job_(job) {
        uint64_t taken = job.taken.load();
        do {
            for (index_ = 0; taken >> index_ & 1; ++index_) {
            }
        } while (!job.taken.compare_exchange_weak(taken, taken | uint64_t{1} << index_));
        const int64_t queries = tile_queries(job.a), padded = padded_size(job.a);
        float* at = job.places + index_ * thread_floats(job.a);
        scratch.queries = at;
        scratch.kept = scratch.queries + queries * padded;
        scratch.scores = scratch.kept + kBlock * padded;
        scratch.decay = scratch.scores + queries * kBlock;
        at = scratch.decay + ceil_to(queries, 16);
        own = softmax_at(job.a, at, queries);
        total = softmax_at(job.a, at + softmax_floats(job.a, queries), queries);
    }
    ~Place() { job_.taken.fetch_and(~(uint64_t{1} << index_)); }
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;

    AttentionScratch scratch;
    Softmax own, total;

  private:
    const Job& job_;
    int index_;
};

int64_t first_split(const Tile& tile) { return tile.first / kSplit; }
int64_t end_split(const Tile& tile) { return (tile.last + kSplit - 1) / kSplit; }

int64_t place_tiles(const edgelm_attention& a, Tile* tiles) {
    const int64_t most = tile_tokens(a);
    int64_t count = 0;
    for (int64_t token = 0; token < a.tokens; ++token) {
        const int64_t row = a.rows[token], last = a.positions[token] + 1;
        int64_t first = a.window ? last - a.window : 0;
        if (first < 0) first = 0;
        Tile* tile = count ? tiles + count - 1 : nullptr;
        if (!tile || tile->row != row || tile->count == most) {
            tiles[count++] = {token, 1, row, first, last};
            continue;
        }
        ++tile->count;
        tile->first = first < tile->first ? first : tile->first;
        tile->last = last > tile->last ? last : tile->last;
    }
    return count;
}

// Items (tile, group): all splits one after another.
void attend_tiles(const void* context, int64_t begin, int64_t end) {
    const Job& job = *static_cast<const Job*>(context);
    const Place place(job);
    const int64_t groups = job.a.cache.groups;
    for (int64_t item = begin; item < end; ++item) {
        const Tile& tile = job.tiles[item / groups];
        const int64_t group = item % groups, queries = tile.count * heads_of_group(job.a);
        int64_t split = first_split(tile);
        job.ops.attend(job.a, tile, group, split, place.scratch, place.total);
        while (++split < end_split(tile)) {
            job.ops.attend(job.a, tile, group, split, place.scratch, place.own);
            job.ops.merge(place.own, place.total, queries, padded_size(job.a));
        }
        job.ops.finish(job.a, tile, group, place.total);
    }
}

// Where a split's result lies; `split` counts from the tile's first.
Softmax partial_of(const Job& job, const Tile& tile, int64_t group, int64_t split) {
    const int64_t queries = tile.count * heads_of_group(job.a);
    const int64_t before = split * job.a.tokens * job.a.heads + tile.token * job.a.heads;
    const int64_t from = softmax_floats(job.a, before + group * queries);
    return softmax_at(job.a, job.partial + from, queries);
}

// Items (tile, group, split).
void attend_splits(const void* context, int64_t begin, int64_t end) {
    const Job& job = *static_cast<const Job*>(context);
    const Place place(job);
    const int64_t groups = job.a.cache.groups;
    for (int64_t item = begin; item < end; ++item) {
        const int64_t split = item % job.splits, group = item / job.splits % groups;
        const Tile& tile = job.tiles[item / job.splits / groups];
        if (first_split(tile) + split >= end_split(tile)) continue;
        job.ops.attend(job.a, tile, group, first_split(tile) + split, place.scratch,
                       partial_of(job, tile, group, split));
    }
}

// Items (tile, group), once their splits are done.
void merge_splits(const void* context, int64_t begin, int64_t end) {
    const Job& job = *static_cast<const Job*>(context);
    const int64_t groups = job.a.cache.groups;
    for (int64_t item = begin; item < end; ++item) {
        const Tile& tile = job.tiles[item / groups];
        const int64_t group = item % groups, queries = tile.count * heads_of_group(job.a);
        const Softmax total = partial_of(job, tile, group, 0);
        for (int64_t split = 1; first_split(tile) + split < end_split(tile); ++split) {
            job.ops.merge(partial_of(job, tile, group, split), total, queries,
                          padded_size(job.a));
        }
        job.ops.finish(job.a, tile, group, total);
    }
}

}  // namespace

int64_t edgelm_attention_bytes(const void* attention) {
    const edgelm_attention& a = *static_cast<const edgelm_attention*>(attention);
    const int64_t partial = softmax_floats(a, few(a) * a.heads) * most_splits(a);
    return tiles_bytes(a) + (partial + thread_count(a) * thread_floats(a)) * 4;
}

void edgelm_attend(const void* attention) {
    const edgelm_attention& a = *static_cast<const edgelm_attention*>(attention);
    Tile* tiles = reinterpret_cast<Tile*>(a.workspace);
    const int64_t count = place_tiles(a, tiles);
    float* partial = reinterpret_cast<float*>(a.workspace + tiles_bytes(a));
    float* places = partial + softmax_floats(a, few(a) * a.heads) * most_splits(a);
    Job job{a, *current_isa().ops, tiles, partial, places};
    int64_t keys = 0;
    for (int64_t t = 0; t < count; ++t) {
        const int64_t own = end_split(tiles[t]) - first_split(tiles[t]);
        job.splits = own > job.splits ? own : job.splits;
        keys += tiles[t].count * (tiles[t].last - tiles[t].first);
    }
    const bool small = keys * a.heads * a.cache.size < kThreadedProducts;
    const int32_t threads = small ? 1 : thread_count(a);
    if (a.tokens <= kFewTokens) {
        run(attend_splits, &job, count * a.cache.groups * job.splits, threads);
        run(merge_splits, &job, count * a.cache.groups, 1);
    } else {
        run(attend_tiles, &job, count * a.cache.groups, threads);
    }
}
