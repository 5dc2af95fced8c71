/* The contract between the Cython drivers and the C kernels.
 *
 * Shape letters: a *row* is one softmax distribution, C its number of classes.  A kernel gets a *run*:
 * `rows` rows that are equally spaced in every operand.  All strides are in bytes.  A kernel cannot
 * fail, allocates nothing, and writes only to `out`, `value` and `scratch`.
 *
 * Three styles compute a row:
 *   rows   the lanes of a vector hold neighbouring classes of one row; for long rows.
 *   blocks the same, but what is one number per row is computed for several rows at once; for rows of
 *          some vectors, where a kernel has this style.
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
  double margin;          /* of the hinge losses */
  int squared;            /* whether these square their terms */
  int per_class;          /* and are divided by the number of classes kept */
  double log2e[2];        /* log2(e) / temperature as head and tail */
  double inv_temperature; /* 1 / temperature */
  void *scratch;          /* scratch_bytes(C, style, kernel) bytes, 64-byte aligned */
  int stream;             /* store `out` past the caches */
  int half;               /* how x and `out` lie in memory; if not FG_NATIVE, flat and without `where` */
} fg_run;

typedef void (*fg_kernel)(const fg_run *run);
typedef void (*fg_elementwise)(const void *x, void *out, ptrdiff_t n);

enum { FG_ROWS, FG_LANES, FG_BLOCKS, FG_STYLES };

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
  FG_BINARY,         /* value = beta loss, of target 0 or 1 or of probabilities g; weight that of the positive class */
  FG_BINARY_GRAD,    /* value = beta loss, if given; out = alpha gradient */
  FG_BINARY_HESS,    /* out = alpha second derivative, times v if given */
  FG_TOKEN_STATS,    /* value = a record for every row (stats.inc.h) */
  FG_HINGE,          /* elementwise (hinge.inc.h): value = beta loss, of target 1 or anything else */
  FG_HINGE_GRAD,     /* value = beta loss, if given; out = alpha gradient */
  FG_HINGE_HESS,     /* out = alpha second derivative, times v if given */
  FG_CRAMMER_SINGER, /* of rows: value = beta loss */
  FG_CRAMMER_SINGER_GRAD, /* value = beta loss, if given; out = alpha gradient */
  FG_CRAMMER_SINGER_HVP,  /* out = alpha H v */
  FG_CRAMMER_SINGER_HESS_DIAG,
  FG_WESTON_WATKINS,
  FG_WESTON_WATKINS_GRAD,
  FG_WESTON_WATKINS_HVP,
  FG_WESTON_WATKINS_HESS_DIAG,
  FG_KERNELS
};

/* Rows of segments (segments.inc.h); columns are contiguous. */
typedef struct {
  ptrdiff_t rows, columns;
  const char *x; /* (rows, columns) in; one row per segment for spread */
  ptrdiff_t x_row;
  char *out; /* (segments, columns) out; (rows, columns) for spread */
  ptrdiff_t out_row;
  const int64_t *code;    /* (rows) in: segment of each, -1 for none; add and spread */
  const int32_t *taken;   /* (rows) in: which row of x and weight each is; NULL: all in order; add */
  const int64_t *order;   /* in: positions of rows by segment, from `base` on; NULL: in order; gather */
  const int64_t *offsets; /* in: where segments begin in order; NULL in finish: none is empty */
  int64_t base;
  const void *weight; /* (rows) in, of the kernel's type; or NULL for 1 */
  const double
      *total;      /* (segments) in: what the mean is divided by, 0 for an empty segment; NULL: the number of rows */
  double *table;   /* accumulators: of every segment in add and finish, of one in gather */
  ptrdiff_t pitch; /* of a segment's, in doubles: an even number, twice as many for double */
  double empty;    /* result of an empty segment */
  double even;     /* a power of two that every weight is multiplied by; 1 but for means whose sum left the range */
  int mean;        /* divide */
} fg_segments;

/* Lines of contiguous elements at any addresses, as rows of softmax, log_softmax, logsumexp (softmax.inc.h) or their
 * derivatives (pull.inc.h). */
typedef struct {
  ptrdiff_t lines;
  const char *const *x;
  const char *const *g;  /* for derivatives */
  char *const *out;      /* not where there is a value */
  const ptrdiff_t *size; /* elements of each, > 0; in lanes, lines of like sizes side by side are fastest */
  const char *ahead; /* what will be read after these lines, and stored; as much as they are, it is prefetched (not in
                      * the style `rows`) */
  const char *place;
} fg_lines;

/* Rows of contiguous elements, `row` bytes apart; of half precision if `kind` says so. */
typedef struct {
  char *data;
  ptrdiff_t row;
  int kind;
  const char *next; /* as many rows that will be wanted after these, prefetched meanwhile; or NULL */
} fg_rows;

/* One segment, for kernels that go over its rows more than once (centroids.inc.h). */
typedef struct {
  ptrdiff_t count, features;
  const int64_t *order; /* (count) positions of its rows; row p of an operand is its row p - first */
  int64_t first;
  fg_rows x, v, out;  /* out.data may be NULL where there is a value */
  const char *weight; /* of the kernel's type, by position, finite and >= 0; or NULL for 1 */
  double margin, scale;
  int squared, moving;
  double value;                       /* out: of the hinge; the number of rows of weight > 0 for class_moments */
  double total[2], *sum[2], *squares; /* out, of class_moments: weights, weighted sums, squared deviations */
  void *scratch;                      /* segment_scratch(count, features) bytes, 64-byte aligned */
  int (*ends)(void *watch, ptrdiff_t elements); /* asked now and then: is the rest not wanted any more? */
  void *watch;
} fg_segment;

/* Rows against a table of centroids. */
typedef struct {
  ptrdiff_t rows, features, classes;
  const void *x, *c;                 /* (rows, features) and (classes, features), contiguous */
  const void *x_squares, *c_squares; /* squared lengths after a common shift; inf for a centroid that is absent */
  const char *absent;                /* (classes) not 0 for those */
  void *out;                         /* (rows, classes) in: products after that shift; out: minus squared distances */
} fg_pairs;

typedef void (*fg_segment_kernel)(fg_segment *segment);

typedef struct {
  fg_kernel kernel[FG_KINDS][FG_KERNELS][FG_STYLES]; /* NULL: the driver must widen, and narrow the result */
  fg_elementwise exp2, log, log1p;                   /* the building blocks, for the accuracy tests */
  ptrdiff_t blocks_above;                            /* see FG_LANES_MAX_CONTIGUOUS */
  /* Of so many classes: in lanes, fewer may need more, for a tile then holds more groups. */
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
  void (*segment_add)(const fg_segments *run);
  /* To the accumulators of a table those of later rows. */
  void (*segment_merge)(const fg_segments *run, ptrdiff_t segments, const double *later);
  /* Whether a mean is not finite. */
  int (*segment_finish)(const fg_segments *run, ptrdiff_t first, ptrdiff_t last);
  int (*segment_gather)(const fg_segments *run, ptrdiff_t first, ptrdiff_t last);
  void (*segment_spread)(const fg_segments *run);
  void (*segment_extreme)(const fg_segments *run, int least, ptrdiff_t begin, ptrdiff_t end, int packed, int start,
                          void *best, int64_t *place);
  /* What else the run holds is as for `kernel`; its classes are those of the longest line, and so is scratch. */
  void (*listed[FG_KERNELS][FG_STYLES])(const fg_run *run, const fg_lines *lines);
  ptrdiff_t (*segment_scratch)(ptrdiff_t count, ptrdiff_t features);
  fg_segment_kernel centroid_hinge, centroid_hinge_hvp, class_moments, leave_one_out, leave_one_out_pull;
  void (*row_squares)(const void *x, ptrdiff_t rows, ptrdiff_t features, void *out);
  void (*prototype_logits)(const fg_pairs *pairs);
  void (*fence)(void);
} fg_precision;

typedef struct {
  const char *name;
  const fg_precision *f32, *f64;
} fg_table;

/* Rows with a contiguous class axis go to the `lanes` style up to this C, then to `rows`: where the two cross
 * (measured).  Those of kernels that have the style `blocks` go to `lanes` up to `blocks_above`, then to `blocks` up to
 * FG_BLOCKS_MAX_BYTES; so do lists of lines, where derivatives have `rows` in place of `blocks`. */
#define FG_LANES_MAX_CONTIGUOUS 144
#define FG_BLOCKS_MAX_BYTES 1024
/* Other layouts up to this one: one group of lanes is then a tile of at most 2 MiB, the size of an L2. */
#define FG_LANES_MAX 32768

extern const fg_precision FG_HIDDEN fg_f32_baseline, fg_f64_baseline;
#if FG_X86
extern const fg_precision FG_HIDDEN fg_f32_avx2, fg_f64_avx2, fg_f32_avx512, fg_f64_avx512;
#endif

/* Bytes between what is read in order and what is prefetched from memory meanwhile.  Which distance pays depends on the
 * maker of the processor rather than on the instruction set; fg_available sets it. */
extern FG_HIDDEN ptrdiff_t fg_ahead;

/* Instruction sets of this machine and build, narrowest first; returns their number (at most 3). */
FG_HIDDEN int fg_available(const fg_table *tables[3]);

#endif
