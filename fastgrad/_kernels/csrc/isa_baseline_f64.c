/* Every kernel for the baseline instruction set, f64. */
#include "fastgrad.h"
#define FG_ISA baseline
#define FG_DOUBLE 1
#include "precision.h"
#include "vec_any.h"
#include "kernels.inc.h"
