// A step's operations for this instruction set.
#include "ops/vector_avx2.h"

#include "ops/attention.h"

const Ops kOpsAvx2 = kOps;
