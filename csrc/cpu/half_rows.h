// Rows of float16 added to rows of float, by the processor's own conversion where it has one.
#pragma once
#include <cstdint>

#include "dtypes.h"

namespace infodisent {

// sum[j] += a x[j] + b y[j]; either row may be missing.
using AddHalfRows = void (*)(float* sum, int64_t width, float a, const Float16* x, float b,
                             const Float16* y);

// The fastest here; nullptr where there is nothing better than plain C++.
AddHalfRows add_half_rows();

}  // namespace infodisent
