/* Every kernel for avx2, f32: only the region below may hold its instructions. */
#include "fastgrad.h"
#if FG_X86
FG_TARGET_BEGIN("avx2,fma,f16c")
#define FG_ISA avx2
#define FG_DOUBLE 0
#include "precision.h"
#include "vec_avx2.h"
#include "kernels.inc.h"
FG_TARGET_END
#endif
typedef int fg_f32_avx2_not_empty; /* ISO C wants a declaration on other machines */
