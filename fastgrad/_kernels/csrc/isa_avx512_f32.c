/* Every kernel for avx512, f32: only the region below may hold its instructions. */
#include "fastgrad.h"
#if FG_X86
FG_TARGET_BEGIN("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c")
#define FG_ISA avx512
#define FG_DOUBLE 0
#include "precision.h"
#include "vec_avx512.h"
#include "kernels.inc.h"
FG_TARGET_END
#endif
typedef int fg_f32_avx512_not_empty; /* ISO C wants a declaration on other machines */
