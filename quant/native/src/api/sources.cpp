// Which sources the library was compiled from: a digest that sources.cmake computes.
#include "api/edgelm_native.h"

const char* edgelm_sources() { return EDGELM_SOURCES; }
