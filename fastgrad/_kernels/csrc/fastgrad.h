/* The contract between the Cython drivers and the C kernels.
 *
 * Shape letters: a *row* is one softmax distribution, C its number of classes.  A kernel gets a *run*:
 * `rows` rows that are equally spaced in every operand.  All strides are in bytes.  A kernel cannot
 * fail, allocates nothing, and writes only to `out`, `value` and `scratch`.
 *
 * Two styles compute a row:
 *   rows   the lanes of a vector hold neighbouring classes of one row; for long rows.
 *   lanes  each lane holds a row of its own, in a tile laid out [class][lane]; for short rows, and for
 *          a class axis that is not contiguous.
 * A row's bits depend on the style, never on its neighbours, so the drivers choose the style by C,
 * dtype and layout alone.
 */
#ifndef FASTGRAD_H
#define FASTGRAD_H

#include "platform.h"

typedef struct {
  ptrdiff_t rows, classes;
  const char *x; /* (rows, C) in: scores; probabilities for the pull_* kernels */
  ptrdiff_t x_row, x_class;
  char *out; /* (rows, C) out; may be x itself */
  ptrdiff_t out_row, out_class;
  const char *g; /* (rows, C) in: cotangent or tangent; weights b for logsumexp_weighted; target probabilities */
  ptrdiff_t g_row, g_class;
  const char *v; /* (rows, C) in: the vector that a Hessian is multiplied by */
  ptrdiff_t v_row, v_class;
  const char *where; /* (rows, C) in, one byte each, 0 drops the class; or NULL */
  ptrdiff_t where_row, where_class;
  const char *weight; /* (rows, C) in: class weights, mostly with row stride 0; or NULL for 1 */
  ptrdiff_t weight_row, weight_class;
  char *value; /* (rows) out: loss, logsumexp, dot product, record; or NULL where `out` is the result */
  ptrdiff_t value_row;
  char *sign; /* (rows) out: sign of the sum, logsumexp_weighted only; or NULL */
  ptrdiff_t sign_row;
  const char *alpha; /* (rows) in, of the kernel's type: factor of the row's `out`; or NULL for 1 */
  ptrdiff_t alpha_row;
  const char *beta; /* (rows) in, of the kernel's type: factor of the row's `value`; or NULL for 1 */
  ptrdiff_t beta_row;
  const int64_t *target;  /* (rows) in, contiguous: in [0, C), or -1 for an ignored row; NULL in mass_soft: none is */
  double scale;           /* common factor of `out` */
  double smoothing;       /* the share of a target's mass that is spread over all classes */
  double z_loss;          /* factor of logsumexp squared */
  double log2e[2];        /* log2(e) / temperature as head and tail */
  double inv_temperature; /* 1 / temperature */
  void *scratch;          /* scratch_bytes(C, style, kernel) bytes, 64-byte aligned */
  int stream;             /* store `out` past the caches */
  int half;               /* how x and `out` lie in memory; if not FG_NATIVE, flat and without `where` */
} fg_run;

typedef void (*fg_kernel)(const fg_run *run);
typedef void (*fg_elementwise)(const void *x, void *out, ptrdiff_t n);

enum { FG_ROWS, FG_LANES, FG_STYLES };

enum { FG_NATIVE, FG_FLOAT16, FG_BFLOAT16, FG_KINDS }; /* how an operand of a float kernel lies in memory */

enum {
  FG_SOFTMAX,            /* out = alpha softmax(x) */
  FG_LOG_SOFTMAX,        /* out = log softmax(x) */
  FG_LOGSUMEXP,          /* value = log sum exp(x) */
  FG_LOGSUMEXP_WEIGHTED, /* value, sign = log |sum g exp(x)|; out = alpha g exp(x) / sum, if given */
  FG_CROSS_ENTROPY,      /* value = beta loss */
  FG_CROSS_ENTROPY_GRAD, /* value = beta loss, if given; out = alpha (softmax(x) - onehot(target)) */
  FG_MASS,               /* the same with every option (mass.inc.h), from class indices ... */
  FG_MASS_GRAD,
  FG_MASS_HVP,       /* out = alpha H v */
  FG_MASS_HESS_DIAG, /* out = alpha diag H */
  FG_MASS_SOFT,      /* ... and from probabilities */
  FG_MASS_SOFT_GRAD,
  FG_MASS_SOFT_HVP,
  FG_MASS_SOFT_HESS_DIAG,
  FG_ROW_WEIGHT,       /* value = beta, 0 for an ignored row or where `where` is 0 */
  FG_PULL_SOFTMAX,     /* out = alpha p (g - p.g) */
  FG_PULL_LOG_SOFTMAX, /* out = alpha (g - p sum(g)) */
  FG_PUSH_LOG_SOFTMAX, /* out = alpha (g - p.g) */
  FG_PUSH_LOGSUMEXP,   /* value = alpha p.g */
  FG_SIGMOID,          /* elementwise (binary.inc.h): out = sigmoid(x) */
  FG_LOG_SIGMOID,      /* out = log sigmoid(x) */
  FG_PULL_SIGMOID,     /* out = g times the derivative of sigmoid at x */
  FG_PULL_SIGMOID_OF,  /* the same from x = sigmoid */
  FG_PULL_LOG_SIGMOID, /* out = g sigmoid(-x) */
  FG_BINARY,      /* value = beta loss, of target 0 or 1 or of probabilities g; weight that of the positive class */
  FG_BINARY_GRAD, /* value = beta loss, if given; out = alpha gradient */
  FG_BINARY_HESS, /* out = alpha second derivative, times v if given */
  FG_TOKEN_STATS, /* value = a record for every row (stats.inc.h) */
  FG_KERNELS
};

typedef struct {
  fg_kernel kernel[FG_KINDS][FG_KERNELS][FG_STYLES]; /* NULL: the driver must widen, and narrow the result */
  fg_elementwise exp2, log, log1p;                   /* the building blocks, for the accuracy tests */
  ptrdiff_t (*scratch_bytes)(ptrdiff_t classes, int style, int kernel);
  void (*total)(const void *x, ptrdiff_t n, double sum[2]);                   /* head and tail */
  ptrdiff_t (*count_outside)(const int64_t *x, ptrdiff_t n, int64_t classes); /* of x not in [0, classes) */
  ptrdiff_t (*count_unfit)(const void *x, ptrdiff_t n, double high);          /* of x not in [0, high] */
  /* Half precision, for float only (half.inc.h): `lines` lines of n elements `step` bytes apart, to or from
   * contiguous lines of float, `pitch` of them apart.  widen may write, and narrow read, up to the next whole vector
   * of a line of float.  `fence` orders the streamed stores of narrow. */
  void (*widen)(int kind, const char *from, ptrdiff_t line, ptrdiff_t step, ptrdiff_t lines, ptrdiff_t n, float *to,
                ptrdiff_t pitch);
  void (*narrow)(int kind, const float *from, ptrdiff_t pitch, char *to, ptrdiff_t line, ptrdiff_t step,
                 ptrdiff_t lines, ptrdiff_t n, int stream);
  void (*fence)(void);
} fg_precision;

typedef struct {
  const char *name;
  const fg_precision *f32, *f64;
} fg_table;

/* Rows with a contiguous class axis go to the `lanes` style up to this C: where the two styles cross (measured;
 * softmax crosses earlier, because it has no logarithm to take for every row). */
#define FG_LANES_MAX_SOFTMAX 80
#define FG_LANES_MAX_CONTIGUOUS 144
/* Other layouts up to this one: one group of lanes is then a tile of at most 2 MiB, the size of an L2. */
#define FG_LANES_MAX 32768

extern const fg_precision FG_HIDDEN fg_f32_baseline, fg_f64_baseline;
#if FG_X86
extern const fg_precision FG_HIDDEN fg_f32_avx2, fg_f64_avx2, fg_f32_avx512, fg_f64_avx512;
#endif

/* Instruction sets of this machine and build, narrowest first; returns their number (at most 3). */
FG_HIDDEN int fg_available(const fg_table *tables[3]);

#endif
