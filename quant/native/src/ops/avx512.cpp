// A step's operations for this instruction set.
#include "ops/vector_avx512.h"

#include "ops/attention.h"

const Ops kOpsAvx512 = kOps;
