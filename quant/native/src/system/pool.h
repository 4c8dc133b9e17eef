// The threads that share a product's panels.
#pragma once

#include <stdint.h>

// Work on the items [begin, end); called by several threads at once.
using Work = void (*)(const void* context, int64_t begin, int64_t end);

// Run `work` over the items [0, count) with up to `threads` threads, this one among them.
//
// Items are taken in small runs by whoever is free, so a core that is busy elsewhere stalls
// nobody. Threads wait for work by spinning shortly and then sleep. While another thread is in
// here, or where no thread can be started, the caller does all items itself.
void run(Work work, const void* context, int64_t count, int32_t threads);
