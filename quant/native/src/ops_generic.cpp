// A step's operations for this instruction set.
#include "vector_generic.h"

#include "ops_attention.h"

const Ops kOpsGeneric = kOps;
