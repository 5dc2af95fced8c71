/* The spine: every kernel for one instruction set (FG_ISA) and one precision (FG_DOUBLE). */
#include "exp.inc.h"
#include "half.inc.h"
#include "tile.inc.h"
#include "softmax.inc.h"
#include "rows.inc.h"
#include "lanes.inc.h"
#include "blocks.inc.h"
#include "weighted.inc.h"
#include "pull.inc.h"
#include "mass.inc.h"
#include "binary.inc.h"
#include "hinge.inc.h"
#include "stats.inc.h"
#include "segments.inc.h"
#include "centroids.inc.h"

FG_KERNEL void FG_NAME(exp2_each)(const void *x, void *out, ptrdiff_t n) {
  for (ptrdiff_t i = 0; i + LANES <= n; i += LANES) vstore((T *)out + i, vexp2(vload((const T *)x + i)));
}
FG_KERNEL void FG_NAME(log_each)(const void *x, void *out, ptrdiff_t n) {
  for (ptrdiff_t i = 0; i + LANES <= n; i += LANES) vstore((T *)out + i, vlog(vload((const T *)x + i)));
}
FG_KERNEL void FG_NAME(log1p_each)(const void *x, void *out, ptrdiff_t n) {
  for (ptrdiff_t i = 0; i + LANES <= n; i += LANES) {
    const V2 r = vlog1p((V2){vload((const T *)x + i), vset(0)});
    vstore((T *)out + i, r.h + r.l);
  }
}

FG_KERNEL ptrdiff_t FG_NAME(scratch_bytes)(ptrdiff_t classes, int style, int kernel) {
  const ptrdiff_t size = (ptrdiff_t)sizeof(T);
  if (kernel >= FG_MASS && kernel <= FG_MASS_SOFT_HESS_DIAG) return mass_scratch(classes, style);
  if (kernel == FG_TOKEN_STATS) return padded(classes) * size;
  if (style == FG_BLOCKS) return block_scratch(classes);
  if (style == FG_ROWS) return (3 * padded(classes) + 128 / size) * size; /* two lines of terms, one packed */
  const ptrdiff_t groups = kernel <= FG_CROSS_ENTROPY_GRAD ? lanes_groups(classes) : tile_groups(classes, 1);
  const ptrdiff_t tiles = (groups < 2 ? 2 : groups) * classes * LANES; /* the pull_* kernels need two of one group */
  const ptrdiff_t wide = classes <= FG_LANES_MAX_CONTIGUOUS ? (LOADED * LANES * classes + LANES) * size : 0;
  const ptrdiff_t edges = edges_size(classes) + 64;
  return tiles * size + (wide > edges ? wide : edges);
}

FG_KERNEL void FG_NAME(total)(const void *x_, ptrdiff_t n, double sum[2]) {
  const T *x = (const T *)x_;
  Wide w = wide_start();
  ptrdiff_t i = 0;
  for (; i + LANES <= n; i += LANES) wide_add(&w, vload(x + i));
  if (i < n) wide_add(&w, vload_n(x + i, n - i, vset(0)));
#if FG_DOUBLE
  const V2 s = total2(w);
  sum[0] = s.h[0];
  sum[1] = s.l[0];
#else
  sum[0] = wide_total(&w);
  sum[1] = 0;
#endif
  if (FG_UNLIKELY(sum[0] - sum[0] != 0 || sum[1] != sum[1])) { /* the tails know inf - inf only */
    sum[0] = sum[1] = 0;
    for (i = 0; i < n; i++) sum[0] += x[i];
  }
}

FG_KERNEL ptrdiff_t FG_NAME(count_outside)(const int64_t *x, ptrdiff_t n, int64_t classes) {
  int64_t count = 0;
  for (ptrdiff_t i = 0; i < n; i++) count += (uint64_t)x[i] >= (uint64_t)classes;
  return count;
}

FG_KERNEL ptrdiff_t FG_NAME(count_unfit)(const void *x_, ptrdiff_t n, double high_) {
  const T *const x = (const T *)x_, high = (T)high_;
  ptrdiff_t count = 0;
  for (ptrdiff_t from = 0; from < n; from += 1 << 16) {
    const ptrdiff_t to = n - from < 1 << 16 ? n : from + (1 << 16);
    I here = 0; /* as wide as T, so that the loop becomes vectors */
    for (ptrdiff_t i = from; i < to; i++) here += !((x[i] >= 0) & (x[i] <= high)); /* NaN is unfit too */
    count += here;
  }
  return count;
}

#define BOTH(kernel) {FG_NAME(kernel##_rows), FG_NAME(kernel##_lanes)}
#define STYLES(kernel) {FG_NAME(kernel##_rows), FG_NAME(kernel##_lanes), FG_NAME(kernel##_blocks)}
#define LISTED(kernel) {FG_NAME(kernel##_listed_rows), FG_NAME(kernel##_listed_lanes), FG_NAME(kernel##_listed_blocks)}
#define LISTED_PULL(kernel) \
  {FG_NAME(kernel##_listed_rows), FG_NAME(kernel##_listed_lanes), FG_NAME(kernel##_listed_rows)}
#define EITHER(kernel) {FG_NAME(kernel), FG_NAME(kernel)}
#define HALF(kernel, half) {FG_NAME(kernel##_rows_##half), FG_NAME(kernel##_lanes), FG_NAME(kernel##_blocks_##half)}
#define HALVES(half)                                         \
  {[FG_SOFTMAX] = HALF(softmax, half),                       \
   [FG_LOG_SOFTMAX] = HALF(log_softmax, half),               \
   [FG_LOGSUMEXP] = HALF(logsumexp, half),                   \
   [FG_CROSS_ENTROPY] = HALF(cross_entropy, half),           \
   [FG_CROSS_ENTROPY_GRAD] = HALF(cross_entropy_grad, half), \
   [FG_TOKEN_STATS] = EITHER(token_stats_##half)}
const fg_precision FG_JOIN2(fg, FG_SUFFIX) = {
#if !FG_DOUBLE
    .kernel[FG_FLOAT16] = HALVES(f16),
    .kernel[FG_BFLOAT16] = HALVES(bf16),
    .widen = FG_NAME(widen),
    .narrow = FG_NAME(narrow),
    .fence = FG_NAME(fence),
#endif
    .kernel[FG_NATIVE] = {[FG_SOFTMAX] = STYLES(softmax),
                          [FG_LOG_SOFTMAX] = STYLES(log_softmax),
                          [FG_LOGSUMEXP] = STYLES(logsumexp),
                          [FG_LOGSUMEXP_WEIGHTED] = EITHER(logsumexp_weighted),
                          [FG_CROSS_ENTROPY] = STYLES(cross_entropy),
                          [FG_CROSS_ENTROPY_GRAD] = STYLES(cross_entropy_grad),
                          [FG_MASS] = BOTH(mass),
                          [FG_MASS_GRAD] = BOTH(mass_grad),
                          [FG_MASS_HVP] = BOTH(mass_hvp),
                          [FG_MASS_HESS_DIAG] = BOTH(mass_hess_diag),
                          [FG_MASS_SOFT] = BOTH(mass_soft),
                          [FG_MASS_SOFT_GRAD] = BOTH(mass_soft_grad),
                          [FG_MASS_SOFT_HVP] = BOTH(mass_soft_hvp),
                          [FG_MASS_SOFT_HESS_DIAG] = BOTH(mass_soft_hess_diag),
                          [FG_ROW_WEIGHT] = EITHER(row_weight),
                          [FG_PULL_SOFTMAX] = BOTH(pull_softmax),
                          [FG_PULL_LOG_SOFTMAX] = BOTH(pull_log_softmax),
                          [FG_PUSH_LOG_SOFTMAX] = BOTH(push_log_softmax),
                          [FG_PUSH_LOGSUMEXP] = BOTH(push_logsumexp),
                          [FG_SIGMOID] = EITHER(sigmoid),
                          [FG_LOG_SIGMOID] = EITHER(log_sigmoid),
                          [FG_PULL_SIGMOID] = EITHER(pull_sigmoid),
                          [FG_PULL_SIGMOID_OF] = EITHER(pull_sigmoid_of),
                          [FG_PULL_LOG_SIGMOID] = EITHER(pull_log_sigmoid),
                          [FG_BINARY] = EITHER(binary),
                          [FG_BINARY_GRAD] = EITHER(binary_grad),
                          [FG_BINARY_HESS] = EITHER(binary_hess),
                          [FG_TOKEN_STATS] = EITHER(token_stats),
                          [FG_HINGE] = EITHER(hinge),
                          [FG_HINGE_GRAD] = EITHER(hinge_grad),
                          [FG_HINGE_HESS] = EITHER(hinge_hess),
                          [FG_CRAMMER_SINGER] = BOTH(crammer_singer),
                          [FG_CRAMMER_SINGER_GRAD] = BOTH(crammer_singer_grad),
                          [FG_CRAMMER_SINGER_HVP] = BOTH(crammer_singer_hvp),
                          [FG_CRAMMER_SINGER_HESS_DIAG] = BOTH(crammer_singer_hess_diag),
                          [FG_WESTON_WATKINS] = BOTH(weston_watkins),
                          [FG_WESTON_WATKINS_GRAD] = BOTH(weston_watkins_grad),
                          [FG_WESTON_WATKINS_HVP] = BOTH(weston_watkins_hvp),
                          [FG_WESTON_WATKINS_HESS_DIAG] = BOTH(weston_watkins_hess_diag)},
    .exp2 = FG_NAME(exp2_each),
    .log = FG_NAME(log_each),
    .log1p = FG_NAME(log1p_each),
    .blocks_above = BLOCKS_ABOVE,
    .scratch_bytes = FG_NAME(scratch_bytes),
    .total = FG_NAME(total),
    .count_outside = FG_NAME(count_outside),
    .count_unfit = FG_NAME(count_unfit),
    .segment_add = FG_NAME(segment_add),
    .segment_merge = FG_NAME(segment_merge),
    .segment_finish = FG_NAME(segment_finish),
    .segment_gather = FG_NAME(segment_gather),
    .segment_spread = FG_NAME(segment_spread),
    .segment_extreme = FG_NAME(segment_extreme),
    .listed = {[FG_SOFTMAX] = LISTED(softmax),
               [FG_LOG_SOFTMAX] = LISTED(log_softmax),
               [FG_LOGSUMEXP] = LISTED(logsumexp),
               [FG_PULL_SOFTMAX] = LISTED_PULL(pull_softmax),
               [FG_PULL_LOG_SOFTMAX] = LISTED_PULL(pull_log_softmax),
               [FG_PUSH_LOG_SOFTMAX] = LISTED_PULL(push_log_softmax),
               [FG_PUSH_LOGSUMEXP] = LISTED_PULL(push_logsumexp)},
    .segment_scratch = FG_NAME(segment_scratch),
    .centroid_hinge = FG_NAME(centroid_hinge),
    .centroid_hinge_hvp = FG_NAME(centroid_hinge_hvp),
    .class_moments = FG_NAME(class_moments),
    .leave_one_out = FG_NAME(leave_one_out),
    .leave_one_out_pull = FG_NAME(leave_one_out_pull),
    .row_squares = FG_NAME(row_squares),
    .prototype_logits = FG_NAME(prototype_logits),
};
