/* What the precision of a translation unit (FG_DOUBLE) stands for. */
#if FG_DOUBLE
typedef double T;
typedef int64_t I;
#define MANTISSA 52
#define FG_SUFFIX FG_JOIN2(f64, FG_ISA)
#else
typedef float T;
typedef int32_t I;
#define MANTISSA 23
#define FG_SUFFIX FG_JOIN2(f32, FG_ISA)
#endif
#define FG_NAME(kernel) FG_JOIN2(kernel, FG_SUFFIX) /* softmax_rows -> softmax_rows_f32_avx2 */
