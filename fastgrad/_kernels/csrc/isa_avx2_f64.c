/* Every kernel for avx2, f64: only the region below may hold its instructions. */
#include "fastgrad.h"
#if FG_X86
FG_TARGET_BEGIN("avx2,fma")
#define FG_ISA avx2
#define FG_DOUBLE 1
#include "precision.h"
#include "vec_avx2.h"
#include "kernels.inc.h"
FG_TARGET_END
#endif
typedef int fg_f64_avx2_not_empty; /* ISO C wants a declaration on other machines */
