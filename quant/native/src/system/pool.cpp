#include "system/pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#include "system/platform.h"

namespace {

constexpr int kSpins = 2000;       // about 50 us: longer than the gap between two products
// Then the core is offered to others for so long: between two steps the caller chooses a token,
// and a worker that sleeps wakes late and often on the caller's own core.
constexpr auto kLinger = std::chrono::milliseconds(2);
constexpr int64_t kRuns = 8;       // runs of items that each thread takes in a fair share
constexpr int32_t kMaxThreads = 256;

// The gate counts jobs in its upper bits; below are "closed" and the workers that entered.
constexpr uint64_t kJob = uint64_t{1} << 16;
constexpr uint64_t kClosed = uint64_t{1} << 15;
constexpr uint64_t kEntered = kClosed - 1;

class Pool {
  public:
    void run(Work work, const void* context, int64_t count, int32_t threads) {
        start_workers(threads - 1);
        work_ = work;
        context_ = context;
        count_ = count;
        length_ = count / (threads * kRuns) + 1;
        helpers_ = threads - 1;
        caller_core_ = current_core();
        next_.store(0);
        left_.store(0);
        gate_.store((gate_.load() / kJob + 1) * kJob);
        if (sleepers_.load() > 0) {
            { const std::lock_guard<std::mutex> lock(mutex_); }
            wake_.notify_all();
        }
        take_items();
        // Whoever has not entered by now never will, so only those who did are waited for.
        const uint64_t entered = gate_.fetch_or(kClosed) & kEntered;
        for (int spins = 0; left_.load() < entered; ++spins) {
            if (spins < kSpins) {
                cpu_relax();
            } else {
                std::this_thread::yield();
            }
        }
    }

    std::mutex busy;

  private:
    void start_workers(int32_t wanted) {
        while (workers_ < wanted) {
            try {
                std::thread(&Pool::serve, this, workers_, gate_.load()).detach();
            } catch (const std::system_error&) {
                return;  // the others do the work
            }
            ++workers_;
        }
    }

    void serve(int32_t index, uint64_t seen) {
        for (;;) {
            wait_beyond(seen);
            seen = gate_.load();
            if (enter(index, seen)) {
                if (caller_core_ != kUnknownCore && current_core() == caller_core_) leave_core();
                take_items();
                left_.fetch_add(1);
            }
        }
    }

    static bool same_job(uint64_t a, uint64_t b) { return a / kJob == b / kJob; }

    void wait_beyond(uint64_t seen) {
        for (int spins = 0; spins < kSpins; ++spins) {
            if (!same_job(gate_.load(), seen)) return;
            cpu_relax();
        }
        const auto end = std::chrono::steady_clock::now() + kLinger;
        while (std::chrono::steady_clock::now() < end) {
            if (!same_job(gate_.load(), seen)) return;
            std::this_thread::yield();
        }
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1);
        wake_.wait(lock, [&] { return !same_job(gate_.load(), seen); });
        sleepers_.fetch_sub(1);
    }

    // Join the job that `gate` shows; false once it is closed or over. `helpers_` may be read
    // only inside: before, the next job may be written.
    bool enter(int32_t index, uint64_t gate) {
        const uint64_t job = gate;
        do {
            if (!same_job(gate, job) || gate & kClosed) return false;
        } while (!gate_.compare_exchange_weak(gate, gate + 1));
        if (index < helpers_) return true;
        left_.fetch_add(1);
        return false;
    }

    void take_items() {
        for (;;) {
            const int64_t begin = next_.fetch_add(length_);
            if (begin >= count_) return;
            const int64_t end = begin + length_;
            work_(context_, begin, end < count_ ? end : count_);
        }
    }

    Work work_ = nullptr;
    const void* context_ = nullptr;
    int64_t count_ = 0;
    int64_t length_ = 1;
    int32_t helpers_ = 0;
    int32_t caller_core_ = kUnknownCore;
    int32_t workers_ = 0;
    std::atomic<uint64_t> gate_{0};
    std::atomic<int64_t> next_{0};
    std::atomic<uint64_t> left_{0};
    std::atomic<int32_t> sleepers_{0};
    std::mutex mutex_;
    std::condition_variable wake_;
};

// Never destroyed: its threads may outlive static destruction. A forked child has none of the
// threads and unknown locks, so it leaves the old pool alone and gets a new one.
std::atomic<Pool*> current{nullptr};

Pool* pool() {
    Pool* own = current.load();
    if (own) return own;
    static const bool registered = [] {
        after_fork_in_child([] { current.store(nullptr); });
        return true;
    }();
    (void)registered;
    Pool* made = new Pool;
    if (current.compare_exchange_strong(own, made)) return made;
    delete made;
    return own;
}

}  // namespace

void run(Work work, const void* context, int64_t count, int32_t threads) {
    if (threads > kMaxThreads) threads = kMaxThreads;
    if (threads > count) threads = static_cast<int32_t>(count);
    if (threads > 1) {
        Pool* own = pool();
        const std::unique_lock<std::mutex> lock(own->busy, std::try_to_lock);
        if (lock.owns_lock()) {
            own->run(work, context, count, threads);
            return;
        }
    }
    work(context, 0, count);
}
