// A step's operations for this instruction set.
#include "vector_avx2.h"

#include "ops_attention.h"

const Ops kOpsAvx2 = kOps;
