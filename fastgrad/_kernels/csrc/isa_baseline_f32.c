/* Every kernel for the baseline instruction set, f32. */
#include "fastgrad.h"
#define FG_ISA baseline
#define FG_DOUBLE 0
#include "precision.h"
#include "vec_any.h"
#include "kernels.inc.h"
