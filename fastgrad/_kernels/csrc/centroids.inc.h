/* Segments that need several passes over their rows: means, distances from them, and what follows.
 *
 * A segment's rows lie anywhere (`order` says where) and stay in cache from one pass to the next.  Everything is
 * computed in double, D for short: for float data that is the wide accumulator and the centroid's missing digits in
 * one; for double data, sums and centroids have a second word.  Four rows go through a pass together and share the
 * loads and stores of the columns' sums, in which they are still added one after the other, in their order.
 *
 * Arrays in scratch: a *column array* holds one double per column, or two arrays `pitch` apart, head and tail. */

#if FG_DOUBLE
typedef V D;
typedef V H;
#else
typedef double D __attribute__((vector_size(sizeof(V))));
typedef float H __attribute__((vector_size(sizeof(V) / 2)));
#ifndef FG_HALF_TO_DOUBLE
#define FG_HALF_TO_DOUBLE(h) __builtin_convertvector(h, D)
#define FG_DOUBLE_TO_HALF(d) __builtin_convertvector(d, H)
#endif
#endif
#define DLANES ((ptrdiff_t)(sizeof(D) / sizeof(double)))

FG_INLINE D dset(double a) { return (D){0} + a; }
FG_INLINE D dload(const double *p) {
  D r;
  memcpy(&r, p, sizeof r);
  return r;
}
FG_INLINE void dstore(double *p, D a) { memcpy(p, &a, sizeof a); }
/* n of the row's next elements, 0 behind them. */
FG_INLINE D widened(const T *p, ptrdiff_t n) {
#if FG_DOUBLE
  return n >= DLANES ? vload(p) : vload_n(p, n, vset(0));
#else
  T part[LANES];
  if (n < DLANES) {
    vstore(part, vload_n(p, n, vset(0)));
    p = part;
  }
  H h;
  memcpy(&h, p, sizeof h);
  return (D)FG_HALF_TO_DOUBLE(h);
#endif
}
FG_INLINE void narrowed(T *p, D a, ptrdiff_t n) {
#if FG_DOUBLE
  if (n >= DLANES)
    vstore(p, a);
  else
    vstore_n(p, a, n);
#else
  const H h = (H)FG_DOUBLE_TO_HALF(a);
  if (n >= DLANES) {
    memcpy(p, &h, sizeof h);
  } else {
    T part[LANES] = {0};
    memcpy(part, &h, sizeof h);
    vstore_n(p, vload(part), n);
  }
#endif
}
FG_INLINE double dtotal(D a) {
  double part[DLANES];
  memcpy(part, &a, sizeof part);
  for (ptrdiff_t n = DLANES / 2; n > 0; n /= 2)
    for (ptrdiff_t i = 0; i < n; i++) part[i] += part[i + n];
  return part[0];
}
FG_INLINE void dadd2(D *s, D *t, D a) {
  const D sum = *s + a, b = sum - *s;
  *t += (*s - (sum - b)) + (a - b);
  *s = sum;
}
FG_INLINE void dadd1(double *s, double *t, double a) {
  const double sum = *s + a, b = sum - *s;
  *t += (*s - (sum - b)) + (a - b);
  *s = sum;
}
/* What the product a * b, rounded to p, lacks; 0 for float, whose products are exact in double. */
FG_INLINE D dlost(D a, D b, D p) {
#if FG_DOUBLE
  return vfma(a, b, -p);
#else
  (void)a, (void)b, (void)p;
  return dset(0);
#endif
}

/* ---- the rows of a segment ---- */

enum { TOGETHER = 4, COLUMN_ARRAYS = 6, HALF_LINES = 2 * TOGETHER + 1, FLUSH = 32 };

typedef struct {
  ptrdiff_t n, d, line_pitch;
  const int64_t *position; /* of each row that counts, from that of the item's first row on */
  const double *weight;    /* of each, or NULL for 1 */
  double total[2];         /* of the weights, head and tail */
  double *column[COLUMN_ARRAYS], *factor[2];
  double *lift; /* of each row, a power of two that brings its residue near 1; 1 but at the ends of the range */
  int squared;
  double floor; /* squared lengths up to this one are the rounding of the mean: the row lies on it */
  T *line;      /* HALF_LINES rows of half precision, widened or still to be narrowed */
} Members;

FG_INLINE ptrdiff_t column_pitch(ptrdiff_t d) { return (d + 63) / 64 * 64; }

FG_KERNEL ptrdiff_t FG_NAME(segment_scratch)(ptrdiff_t count, ptrdiff_t d) {
  return (COLUMN_ARRAYS * 8 + HALF_LINES * (ptrdiff_t)sizeof(T)) * column_pitch(d) + 40 * count;
}

/* Lay out the scratch, and leave out rows of weight 0: those may hold anything. */
FG_INLINE Members members(const fg_segment *s) {
  Members m = {
      .n = s->count, .d = s->features, .line_pitch = column_pitch(s->features), .squared = s->squared, .floor = -1};
  double *at = (double *)s->scratch;
  memset(at, 0, (size_t)(COLUMN_ARRAYS * m.line_pitch) * sizeof *at);
  for (int i = 0; i < COLUMN_ARRAYS; i++, at += m.line_pitch) m.column[i] = at;
  m.line = (T *)at;
  at = (double *)(m.line + HALF_LINES * m.line_pitch);
  for (int i = 0; i < 2; i++, at += s->count) m.factor[i] = at;
  m.lift = at;
  at += s->count;
  m.position = s->order;
  m.total[0] = (double)s->count;
  if (s->weight != NULL) {
    double *const weight = at;
    int64_t *const position = (int64_t *)(at + s->count);
    m.n = 0;
    m.total[0] = 0;
    for (ptrdiff_t i = 0; i < s->count; i++) {
      const double w = (double)((const T *)s->weight)[s->order[i]];
      if (w == 0) continue;
      position[m.n] = s->order[i];
      weight[m.n++] = w;
      dadd1(&m.total[0], &m.total[1], w);
    }
    m.position = position;
    m.weight = weight;
  }
  return m;
}

#define REST 4096 /* rows between two questions whether to go on */
FG_INLINE int ends(const fg_segment *s, const Members *m, ptrdiff_t i) {
  return FG_UNLIKELY(i % REST == 0) && i > 0 && s->ends(s->watch, REST * m->d);
}

FG_INLINE char *place(const fg_rows *a, const fg_segment *s, const Members *m, ptrdiff_t i) {
  return a->data + (m->position[i] - s->first) * a->row;
}

/* k rows from the i-th on; those of half precision in `line`s. */
FG_INLINE void rows_at(const fg_rows *a, const fg_segment *s, const Members *m, ptrdiff_t i, const int k, T *line,
                       const T **row) {
  for (int r = 0; r < k; r++) {
    const char *const p = place(a, s, m, i + r);
    row[r] = (const T *)p;
#if !FG_DOUBLE
    if (a->kind != FG_NATIVE) {
      FG_NAME(widen)(a->kind, p, 0, 2, 1, m->d, line, 0);
      row[r] = line;
      line += m->line_pitch;
    }
#endif
  }
  (void)line;
}

FG_INLINE void prefetch_rows(const fg_rows *a, const fg_segment *s, const Members *m, ptrdiff_t i) {
  const ptrdiff_t bytes = m->d * (ptrdiff_t)sizeof(T) < 1024 ? m->d * (ptrdiff_t)sizeof(T) : 1024;
  for (ptrdiff_t r = i; r < m->n && r < i + TOGETHER; r++)
    for (ptrdiff_t b = 0; b < bytes; b += 64) FG_PREFETCH(place(a, s, m, r) + b);
}

/* Of what comes next as much as k rows from the i-th on are: in order, where those of a segment lie anywhere. */
FG_INLINE void prefetch_next(const fg_rows *a, ptrdiff_t i, const int k, const int write) {
  if (a->next == NULL) return;
  for (const char *p = a->next + i * a->row, *const end = p + k * a->row; p < end; p += 64) {
    if (write)
      FG_PREFETCH_WRITE(p);
    else
      FG_PREFETCH_L2(p);
  }
}

/* One column vector of `n` columns from j on in each of the verbs below; full ones first, so that n is a constant. */
#define EACH_COLUMN(d, verb)                                \
  do {                                                      \
    ptrdiff_t j = 0;                                        \
    for (; j + DLANES <= (d); j += DLANES) verb(j, DLANES); \
    if (j < (d)) verb(j, (d) - j);                          \
  } while (0)

FG_INLINE void sum_column(const T *const *row, const double *f, const int k, const int two, double *h, double *l,
                          ptrdiff_t j, ptrdiff_t n) {
  D head = dload(h + j), tail = two ? dload(l + j) : dset(0);
  for (int r = 0; r < k; r++) {
    D a = widened(row[r] + j, n);
    if (f != NULL) {
      const D p = a * dset(f[r]);
      if (two) tail += dlost(a, dset(f[r]), p);
      a = p;
    }
    if (two)
      dadd2(&head, &tail, a);
    else
      head += a;
  }
  dstore(h + j, head);
  if (two) dstore(l + j, tail);
}

/* h (and l) += f_i x_i over all rows, f 1 if NULL. */
FG_INLINE void sum_rows(const fg_rows *x, const fg_segment *s, const Members *m, const double *f, const int two,
                        double *h, double *l) {
  const T *row[TOGETHER];
  ptrdiff_t i = 0;
#define SUM4(j, n) sum_column(row, f == NULL ? NULL : f + i, TOGETHER, two, h, l, j, n)
#define SUM1(j, n) sum_column(row, f == NULL ? NULL : f + i, 1, two, h, l, j, n)
  for (; i + TOGETHER <= m->n; i += TOGETHER) {
    if (ends(s, m, i)) return;
    if (x->kind == FG_NATIVE) prefetch_rows(x, s, m, i + TOGETHER);
    prefetch_next(x, i, TOGETHER, 0);
    rows_at(x, s, m, i, TOGETHER, m->line, row);
    EACH_COLUMN(m->d, SUM4);
  }
  for (; i < m->n; i++) {
    rows_at(x, s, m, i, 1, m->line, row);
    EACH_COLUMN(m->d, SUM1);
  }
#undef SUM4
#undef SUM1
}

/* Sums become means; for double data in two words. */
FG_INLINE void mean_columns(const Members *m, double *h, double *l) {
  const D total = dset(m->total[0]);
  for (ptrdiff_t j = 0; j < m->d; j += DLANES) {
    const D sum = dload(h + j), mean = sum / total;
    dstore(h + j, mean);
#if FG_DOUBLE
    dstore(l + j, ((vfma(-mean, total, sum) + dload(l + j)) - mean * dset(m->total[1])) / total);
#endif
  }
  (void)l;
}

#define EVEN 0x1p-64

FG_INLINE int all_finite(const double *h, ptrdiff_t d) {
  int finite = 1;
  for (ptrdiff_t j = 0; j < d; j++) finite &= h[j] - h[j] == 0;
  return finite;
}

/* x - mean */
FG_INLINE D residue(const T *x, const double *h, const double *l, ptrdiff_t j, ptrdiff_t n) {
  const D r = widened(x + j, n) - dload(h + j);
#if FG_DOUBLE
  return r - dload(l + j);
#else
  (void)l;
  return r;
#endif
}

/* ---- distances ---- */

FG_INLINE void squares_of(const T *const *row, const T *const *move, const int k, const Members *m, double *q,
                          double *p) {
  D length[TOGETHER], along[TOGETHER], length_here[TOGETHER], along_here[TOGETHER];
  for (int r = 0; r < k; r++) length[r] = along[r] = dset(0);
  for (ptrdiff_t from = 0; from < m->d; from += FLUSH * DLANES) {
    const ptrdiff_t d = m->d - from < FLUSH * DLANES ? m->d - from : FLUSH * DLANES;
    for (int r = 0; r < k; r++) length_here[r] = along_here[r] = dset(0);
#define SQUARE(j, n)                                                                                    \
  for (int r = 0; r < k; r++) {                                                                         \
    const D x = residue(row[r], m->column[0], m->column[1], from + (j), n);                             \
    length_here[r] += x * x;                                                                            \
    if (move != NULL) along_here[r] += x * residue(move[r], m->column[4], m->column[5], from + (j), n); \
  }
    EACH_COLUMN(d, SQUARE);
#undef SQUARE
    for (int r = 0; r < k; r++) {
      length[r] += length_here[r];
      along[r] += along_here[r];
    }
  }
  for (int r = 0; r < k; r++) {
    q[r] = dtotal(length[r]);
    if (move != NULL) p[r] = dtotal(along[r]);
  }
}

#define LIFTS FG_DOUBLE /* float data make no double whose third power leaves the range */

/* The length of a residue whose squares sum to q, over and under a power of two `lift` that brings it near 1 where q
 * comes near the ends of the range; then also p, its product with `move`. */
FG_INLINE double length_of(double *q, double *p, const T *x, const T *move, const Members *m, double *lift) {
  *lift = 1;
#if LIFTS
  if (FG_UNLIKELY(!(*q > 0x1p-400 && *q < 0x1p400) && *q == *q)) {
    const double *const h = m->column[0], *const l = m->column[1];
    double top = 0, sum = 0, along = 0;
    for (ptrdiff_t j = 0; j < m->d; j++) {
      const double r = (x[j] - h[j]) - l[j], size = r < 0 ? -r : r;
      top = size > top ? size : top;
    }
    if (top == 0 || top - top != 0) return top;
    int exponent;
    __builtin_frexp(top, &exponent);
    *lift = __builtin_ldexp(1.0, -exponent < 1000 ? -exponent : 1000);
    for (ptrdiff_t j = 0; j < m->d; j++) {
      const double r = ((x[j] - h[j]) - l[j]) * *lift;
      sum += r * r;
      if (move != NULL) along += r * ((move[j] - m->column[4][j]) - m->column[5][j]);
    }
    *q = sum;
    *p = along;
  }
#endif
  (void)x, (void)m, (void)p, (void)move;
  return __builtin_sqrt(*q);
}

/* ---- the centroid hinge ---- */

/* What the i-th row adds to the slopes of its class.  A residue that leaves the range is lifted; what is divided by a
 * length, as the second derivative of a length is, is lifted once more. */
FG_INLINE D slope_column(const T *x, const T *v, const Members *m, ptrdiff_t i, const int second, const int lifts,
                         ptrdiff_t j, ptrdiff_t n) {
  const D r = residue(x, m->column[0], m->column[1], j, n), up = lifts ? r * dset(m->lift[i]) : r;
  if (!second) return dset(m->factor[0][i]) * up;
  const D move = residue(v, m->column[4], m->column[5], j, n);
  if (!lifts) return dset(m->factor[0][i]) * move + dset(m->factor[1][i]) * up;
  const D again = dset(m->squared ? 1 : m->lift[i]);
  return dset(m->factor[0][i]) * (move * again) + dset(m->factor[1][i]) * (up * again);
}

FG_INLINE void pull_column(const T *const *row, const T *const *move, const Members *m, ptrdiff_t i, const int k,
                           const int second, const int lifts, ptrdiff_t j, ptrdiff_t n) {
  D head = dload(m->column[2] + j), tail = dload(m->column[3] + j);
  for (int r = 0; r < k; r++) {
    const D u = slope_column(row[r], second ? move[r] : NULL, m, i + r, second, lifts, j, n);
    if (FG_DOUBLE)
      dadd2(&head, &tail, u);
    else
      head += u;
  }
  dstore(m->column[2] + j, head);
  dstore(m->column[3] + j, tail);
}

/* Rows [i, i + k) of the second pass: their share of the value, their factors of residue and direction, and what the
 * centroid gets of their slopes. */
FG_INLINE void hinge_rows(fg_segment *s, const Members *m, ptrdiff_t i, const int k, const int second,
                          double value[2]) {
  const T *row[TOGETHER], *move[TOGETHER];
  const int smooth = s->squared && s->margin == 0; /* a square of lengths, without a kink even at 0 */
  double q[TOGETHER], p[TOGETHER];
  int some = 0, lifts = 0;
  rows_at(&s->x, s, m, i, k, m->line, row);
  if (second) rows_at(&s->v, s, m, i, k, m->line + TOGETHER * m->line_pitch, move);
  squares_of(row, second ? move : NULL, k, m, q, p);
  for (int r = 0; r < k; r++) {
    const double w = m->weight == NULL ? 1 : m->weight[i + r], share = s->scale * w / m->total[0];
    double *const lift = m->lift + i + r;
    /* The length and the margin times the lift, which is 1 of a row that lies on its centroid. */
    double length = 0;
    *lift = 1;
    if (!(q[r] <= m->floor)) length = length_of(&q[r], &p[r], row[r], second ? move[r] : NULL, m, lift);
    const double margin = s->margin * *lift;
    double slope = 0, bend = 0; /* factors of the direction (or residue), and of the residue: see slope_column */
    if (!(length <= margin)) {
      const double lifted = length - margin, h = lifted / *lift;
      dadd1(&value[0], &value[1], s->squared ? w * (h * h) : w * h);
      slope = (s->squared ? 2 * (second ? lifted : h) : 1) / length;
      if (second && !smooth) bend = (s->squared ? 2 * margin : -1.0) * (p[r] / length / length) / length;
    }
    if (second && smooth && length == 0) slope = 2;
    if (second) m->factor[1][i + r] = share * bend;
    m->factor[0][i + r] = share * slope;
    some |= slope != 0;
    lifts |= *lift != 1;
  }
  if (!some || smooth || !s->moving || s->out.data == NULL) return;
#define PULL(j, n) pull_column(row, move, m, i, k, second, 0, j, n)
#define PULL_LIFTED(j, n) pull_column(row, move, m, i, k, second, 1, j, n)
  if (LIFTS && FG_UNLIKELY(lifts))
    EACH_COLUMN(m->d, PULL_LIFTED);
  else
    EACH_COLUMN(m->d, PULL);
#undef PULL
#undef PULL_LIFTED
}

FG_INLINE void write_column(const T *x, const T *v, const Members *m, ptrdiff_t i, const int second, const int lifts,
                            T *out, ptrdiff_t j, ptrdiff_t n) {
  const D w = dset(m->weight == NULL ? 1 : m->weight[i]);
  narrowed(out + j, slope_column(x, v, m, i, second, lifts, j, n) - w * dload(m->column[2] + j), n);
}

FG_INLINE void hinge_out(const fg_segment *s, const Members *m, const int second) {
  T *const spare = m->line + (HALF_LINES - 1) * m->line_pitch;
  const ptrdiff_t d = m->d;
  for (ptrdiff_t i = 0; i < m->n && !ends(s, m, i); i++) {
    const T *row[1], *move[1];
    rows_at(&s->x, s, m, i, 1, m->line, row);
    if (second) rows_at(&s->v, s, m, i, 1, m->line + m->line_pitch, move);
    char *const to = place(&s->out, s, m, i);
    if (s->out.kind == FG_NATIVE && i + TOGETHER < m->n) {
      const char *const next = place(&s->out, s, m, i + TOGETHER);
      for (ptrdiff_t at = 0; at < d * (ptrdiff_t)sizeof(T) && at < 1024; at += 64) __builtin_prefetch(next + at, 1, 3);
    }
    const T *const x = row[0], *const v = second ? move[0] : NULL;
    T *const out = s->out.kind == FG_NATIVE ? (T *)to : spare;
#define WRITE(j, n) write_column(x, v, m, i, second, 0, out, j, n)
#define WRITE_LIFTED(j, n) write_column(x, v, m, i, second, 1, out, j, n)
    if (LIFTS && FG_UNLIKELY(m->lift[i] != 1))
      EACH_COLUMN(d, WRITE_LIFTED);
    else
      EACH_COLUMN(d, WRITE);
#undef WRITE
#undef WRITE_LIFTED
#if !FG_DOUBLE
    if (s->out.kind != FG_NATIVE) FG_NAME(narrow)(s->out.kind, out, 0, to, 0, 2, 1, d, 0);
#endif
  }
}

FG_INLINE void hinge_segment(fg_segment *s, const int second) {
  Members m = members(s);
  double value[2] = {0, 0};
  s->value = 0;
  if (m.n == 0) return;
  sum_rows(&s->x, s, &m, m.weight, FG_DOUBLE, m.column[0], m.column[1]);
  if (LIFTS && FG_UNLIKELY(!all_finite(m.column[0], m.d))) {
    /* Perhaps the sum left the range and the mean does not: once more, with smaller weights. */
    const double total[2] = {m.total[0], m.total[1]};
    for (ptrdiff_t i = 0; i < m.n; i++) m.factor[0][i] = EVEN * (m.weight == NULL ? 1 : m.weight[i]);
    for (int i = 0; i < 2; i++) memset(m.column[i], 0, (size_t)m.line_pitch * sizeof(double)), m.total[i] *= EVEN;
    sum_rows(&s->x, s, &m, m.factor[0], FG_DOUBLE, m.column[0], m.column[1]);
    mean_columns(&m, m.column[0], m.column[1]);
    for (int i = 0; i < 2; i++) m.total[i] = total[i];
  } else {
    mean_columns(&m, m.column[0], m.column[1]);
  }
  D size = dset(0);
  for (ptrdiff_t j = 0; j < m.d; j += DLANES) size += dload(m.column[0] + j) * dload(m.column[0] + j);
  m.floor = dtotal(size) * (FG_DOUBLE ? 0x1p-196 : 0x1p-98);
  if (!(m.floor > 0x1p-900 && m.floor < 0x1p700)) m.floor = -1; /* left the range */
  if (second && s->moving) {
    sum_rows(&s->v, s, &m, m.weight, FG_DOUBLE, m.column[4], m.column[5]);
    mean_columns(&m, m.column[4], m.column[5]);
  }
  ptrdiff_t i = 0;
  for (; i + TOGETHER <= m.n; i += TOGETHER) {
    if (ends(s, &m, i)) return;
    prefetch_next(&s->out, i, TOGETHER, 1);
    hinge_rows(s, &m, i, TOGETHER, second, value);
  }
  for (; i < m.n; i++) hinge_rows(s, &m, i, 1, second, value);
  const double sum = value[0] + value[1];
  s->value = (value[0] - value[0] != 0 ? value[0] : sum) / m.total[0];
  if (s->out.data == NULL) return;
  mean_columns(&m, m.column[2], m.column[3]);
  hinge_out(s, &m, second);
}

FG_KERNEL void FG_NAME(centroid_hinge)(fg_segment *s) { hinge_segment(s, 0); }
FG_KERNEL void FG_NAME(centroid_hinge_hvp)(fg_segment *s) { hinge_segment(s, 1); }

/* ---- moments, and means that leave one row out ---- */

FG_KERNEL void FG_NAME(class_moments)(fg_segment *s) {
  const Members m = members(s);
  double *const h = m.column[0], *const l = m.column[1];
  s->total[0] = m.total[0];
  s->total[1] = m.total[1];
  s->value = (double)m.n;
  sum_rows(&s->x, s, &m, m.weight, 1, h, l);
  for (ptrdiff_t j = 0; j < m.d; j++) {
    if (h[j] - h[j] != 0) l[j] = 0; /* the tail of an infinite sum is NaN */
    s->sum[0][j] = h[j];
    s->sum[1][j] = l[j];
  }
  if (m.n == 0) return;
  /* The second word counts here even for float: its sums are exact to 106 bits, not the mean of 53. */
  mean_columns(&m, h, l);
  for (ptrdiff_t i = 0; i < m.n && !ends(s, &m, i); i++) {
    const T *row[1];
    rows_at(&s->x, s, &m, i, 1, m.line, row);
    const D w = dset(m.weight == NULL ? 1 : m.weight[i]);
#define SPREAD(j, n)                                                    \
  {                                                                     \
    const D r = residue(row[0], h, l, j, n);                            \
    D head = dload(m.column[2] + (j)), tail = dload(m.column[3] + (j)); \
    dadd2(&head, &tail, w * (r * r));                                   \
    dstore(m.column[2] + (j), head);                                    \
    dstore(m.column[3] + (j), tail);                                    \
  }
    EACH_COLUMN(m.d, SPREAD);
#undef SPREAD
  }
  for (ptrdiff_t j = 0; j < m.d; j++) {
    const double head = m.column[2][j];
    s->squares[j] = head - head != 0 ? head : head + m.column[3][j];
  }
}

/* The columns of leave_out whose sum is not finite: who has NaN or an infinity is left out of its own mean only, and
 * a sum beyond the range is taken with smaller weights. */
FG_INLINE void leave_out_wild(fg_segment *s, const Members *m, const int pull) {
  double *const head = m->column[2], *const tail = m->column[3], *const plus = m->column[4],
                *const minus = m->column[5];
  double *const sum = m->column[0], *const nan = m->column[1];
  for (ptrdiff_t j = 0; j < m->d; j++) nan[j] = 0;
  for (int last = 0; last <= 1; last++) /* first what there is, then what there is without each */
    for (ptrdiff_t i = 0; i < m->n && !ends(s, m, i); i++) {
      const T *row[1];
      rows_at(&s->x, s, m, i, 1, m->line, row);
      const double w = m->weight == NULL ? 1 : m->weight[i], f = m->factor[0][i] * EVEN, rest = m->factor[1][i];
      for (ptrdiff_t j = 0; j < m->d; j++) {
        if (sum[j] - sum[j] == 0) continue;
        const double x = (double)row[0][j];
        const int number = x == x, finite = x - x == 0;
        const double own = finite ? x * f : 0, lost = finite ? dlost(dset(x), dset(f), dset(own))[0] : 0;
        if (!last) {
          dadd1(&head[j], &tail[j], own);
          tail[j] += lost;
          nan[j] += !number;
          plus[j] += number && !finite && x > 0;
          minus[j] += number && !finite && x < 0;
          continue;
        }
        const int some_nan = nan[j] > !number, some_plus = plus[j] > (number && !finite && x > 0);
        const int some_minus = minus[j] > (number && !finite && x < 0);
        double h = head[j], l = tail[j] - lost;
        dadd1(&h, &l, -own);
        double out = ((pull ? w * (h + l) : (h + l) / rest)) / EVEN;
        if (some_nan || (some_plus && some_minus))
          out = __builtin_nan("");
        else if (some_plus || some_minus)
          out = some_plus ? __builtin_inf() : -__builtin_inf();
        T value[LANES] = {(T)out};
        char *const to = place(&s->out, s, m, i);
#if !FG_DOUBLE
        if (s->out.kind != FG_NATIVE) {
          FG_NAME(narrow)(s->out.kind, value, 0, to + 2 * j, 0, 2, 1, 1, 0);
          continue;
        }
#endif
        ((T *)to)[j] = value[0];
      }
    }
}

/* out_i = (sum of f - f_i) / (W - w_i) with f = w x; or, pulled back, w_i (sum of f - f_i) with f = x / (W - w_i).
 * A row that is alone in its class is left as it is. */
FG_INLINE void leave_out(fg_segment *s, const int pull) {
  const Members m = members(s);
  double *const f = m.factor[0], *const rest = m.factor[1];
  T *const spare = m.line + (HALF_LINES - 1) * m.line_pitch;
  if (m.n < 2) return;
  for (ptrdiff_t i = 0; i < m.n; i++) {
    const double w = m.weight == NULL ? 1 : m.weight[i];
    double head = m.total[0], tail = m.total[1];
    dadd1(&head, &tail, -w);
    rest[i] = head + tail;
    f[i] = pull ? 1 / rest[i] : w;
  }
  sum_rows(&s->x, s, &m, pull || m.weight != NULL ? f : NULL, 1, m.column[0], m.column[1]);
  for (ptrdiff_t i = 0; i < m.n && !ends(s, &m, i); i++) {
    const T *row[1];
    rows_at(&s->x, s, &m, i, 1, m.line, row);
    char *const to = place(&s->out, s, &m, i);
    T *const out = s->out.kind == FG_NATIVE ? (T *)to : spare;
    const D factor = dset(f[i]), w = dset(m.weight == NULL ? 1 : m.weight[i]), others = dset(rest[i]);
#define LEAVE(j, n)                                                                             \
  {                                                                                             \
    const D x = widened(row[0] + (j), n), own = x * factor;                                     \
    D head = dload(m.column[0] + (j)), tail = dload(m.column[1] + (j)) - dlost(x, factor, own); \
    dadd2(&head, &tail, -own);                                                                  \
    const D sum = head + tail;                                                                  \
    narrowed(out + (j), pull ? w * sum : sum / others, n);                                      \
  }
    EACH_COLUMN(m.d, LEAVE);
#undef LEAVE
#if !FG_DOUBLE
    if (s->out.kind != FG_NATIVE) FG_NAME(narrow)(s->out.kind, out, 0, to, 0, 2, 1, m.d, 0);
#endif
  }
  if (FG_UNLIKELY(!all_finite(m.column[0], m.d))) leave_out_wild(s, &m, pull);
}

FG_KERNEL void FG_NAME(leave_one_out)(fg_segment *s) { leave_out(s, 0); }
FG_KERNEL void FG_NAME(leave_one_out_pull)(fg_segment *s) { leave_out(s, 1); }

/* ---- distances from a table of centroids ---- */

/* The squared length of each row, contiguous rows. */
FG_KERNEL void FG_NAME(row_squares)(const void *x_, ptrdiff_t rows, ptrdiff_t d, void *out) {
  const T *x = (const T *)x_;
  for (ptrdiff_t i = 0; i < rows; i++, x += d) {
    D q = dset(0);
#define SQUARE(j, n)                 \
  {                                  \
    const D a = widened(x + (j), n); \
    q += a * a;                      \
  }
    EACH_COLUMN(d, SQUARE);
#undef SQUARE
    ((T *)out)[i] = (T)dtotal(q);
  }
}

FG_INLINE double squared_distance(const T *x, const T *c, ptrdiff_t d) {
  D q = dset(0);
#define SQUARE(j, n)                                       \
  {                                                        \
    const D r = widened(x + (j), n) - widened(c + (j), n); \
    q += r * r;                                            \
  }
  EACH_COLUMN(d, SQUARE);
#undef SQUARE
  return dtotal(q);
}

/* Products of centred rows become logits.  Where |x|^2 + |c|^2 - 2 x.c is less than a quarter of its first two terms,
 * or these leave the range, the distance is taken directly. */
FG_KERNEL void FG_NAME(prototype_logits)(const fg_pairs *a) {
  const T low = FG_DOUBLE ? (T)0x1p-900 : (T)0x1p-100, high = FG_DOUBLE ? (T)0x1p1000 : (T)0x1p120;
  const T *const size = (const T *)a->c_squares, infinity = (T)__builtin_inf();
  for (ptrdiff_t i = 0; i < a->rows; i++) {
    const T *const x = (const T *)a->x + i * a->features;
    T *const out = (T *)a->out + i * a->classes;
    const V own = vset(((const T *)a->x_squares)[i]);
    for (ptrdiff_t k = 0; k < a->classes; k += LANES) {
      const ptrdiff_t n = a->classes - k < LANES ? a->classes - k : LANES;
      /* Behind the last class stands a pair that is good. */
      const V c = n < LANES ? vload_n(size + k, n, vset(1)) : vload(size + k);
      const V p = n < LANES ? vload_n(out + k, n, vset(0)) : vload(out + k);
      const V sum = own + c, distance = sum - (p + p);
      const V bad = vsel(vlt(vset(low), sum), vsel(vlt(sum, vset(high)), vset(0), vset(1)), vset(1));
      const V near = vsel(vlt(sum * vset((T)0.25), distance), bad, vset(1));
      if (n < LANES)
        vstore_n(out + k, -distance, n);
      else
        vstore(out + k, -distance);
      if (FG_LIKELY(!vany(vlt(vset(0), near)))) continue;
      T flag[LANES];
      vstore(flag, near);
      for (ptrdiff_t r = 0; r < n; r++)
        if (flag[r] > 0)
          out[k + r] = a->absent[k + r] ? -infinity
                                        : -(T)squared_distance(x, (const T *)a->c + (k + r) * a->features, a->features);
    }
  }
}
