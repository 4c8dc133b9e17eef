// A step's operations for this instruction set.
#include "ops/vector_generic.h"

#include "ops/attention.h"

const Ops kOpsGeneric = kOps;
