// A step's operations for this instruction set.
#include "vector_avx512.h"

#include "ops_attention.h"

const Ops kOpsAvx512 = kOps;
