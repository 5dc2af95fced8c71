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
  double floor; /* squared lengths up to this one are the rounding of the mean: the row lies on it */
  T *line;      /* HALF_LINES rows of half precision, widened or still to be narrowed */
} Members;

FG_INLINE ptrdiff_t column_pitch(ptrdiff_t d) { return (d + 63) / 64 * 64; }

FG_KERNEL ptrdiff_t FG_NAME(segment_scratch)(ptrdiff_t count, ptrdiff_t d) {
  return (COLUMN_ARRAYS * 8 + HALF_LINES * (ptrdiff_t)sizeof(T)) * column_pitch(d) + 32 * count;
}

/* Lay out the scratch, and leave out rows of weight 0: those may hold anything. */
FG_INLINE Members members(const fg_segment *s) {
  Members m = {.n = s->count, .d = s->features, .line_pitch = column_pitch(s->features), .floor = -1};
  double *at = (double *)s->scratch;
  memset(at, 0, (size_t)(COLUMN_ARRAYS * m.line_pitch) * sizeof *at);
  for (int i = 0; i < COLUMN_ARRAYS; i++, at += m.line_pitch) m.column[i] = at;
  m.line = (T *)at;
  at = (double *)(m.line + HALF_LINES * m.line_pitch);
  for (int i = 0; i < 2; i++, at += s->count) m.factor[i] = at;
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
    if (x->kind == FG_NATIVE) prefetch_rows(x, s, m, i + TOGETHER);
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

/* The length of a residue whose squares sum to q. */
FG_INLINE double length_of(double q, const T *x, const Members *m) {
#if FG_DOUBLE
  if (FG_UNLIKELY(!(q > 0x1p-900 && q < 0x1p1000) && q == q)) { /* squares that left the range: scale them */
    double top = 0, sum = 0;
    for (ptrdiff_t j = 0; j < m->d; j++) {
      const double r = (x[j] - m->column[0][j]) - m->column[1][j], size = r < 0 ? -r : r;
      top = size > top ? size : top;
    }
    if (top == 0 || top - top != 0) return top;
    for (ptrdiff_t j = 0; j < m->d; j++) {
      const double r = ((x[j] - m->column[0][j]) - m->column[1][j]) / top;
      sum += r * r;
    }
    return top * __builtin_sqrt(sum);
  }
#endif
  (void)x, (void)m;
  return __builtin_sqrt(q);
}

/* ---- the centroid hinge ---- */

/* Rows [i, i + k) of the second pass: their share of the value, their factors of residue and direction, and what the
 * centroid gets of their slopes. */
FG_INLINE void hinge_rows(fg_segment *s, const Members *m, ptrdiff_t i, const int k, const int second,
                          double value[2]) {
  const T *row[TOGETHER], *move[TOGETHER];
  const int smooth = s->squared && s->margin == 0; /* a square of lengths, without a kink even at 0 */
  double q[TOGETHER], p[TOGETHER];
  int some = 0;
  rows_at(&s->x, s, m, i, k, m->line, row);
  if (second) rows_at(&s->v, s, m, i, k, m->line + TOGETHER * m->line_pitch, move);
  squares_of(row, second ? move : NULL, k, m, q, p);
  for (int r = 0; r < k; r++) {
    const double w = m->weight == NULL ? 1 : m->weight[i + r], share = s->scale * w / m->total[0];
    const double length = q[r] <= m->floor ? 0 : length_of(q[r], row[r], m);
    double slope = 0, bend = 0; /* the derivative over the length, and that again over the length */
    if (!(length <= s->margin)) {
      const double h = length - s->margin;
      dadd1(&value[0], &value[1], s->squared ? w * (h * h) : w * h);
      slope = s->squared ? 2 * h / length : 1 / length;
      if (second) bend = (s->squared ? 2 * s->margin : -1.0) / (length * length * length);
    }
    if (second && smooth && length == 0) slope = 2;
    if (second) m->factor[1][i + r] = share * bend * (smooth ? 0 : p[r]);
    m->factor[0][i + r] = share * slope;
    some |= slope != 0;
  }
  if (!some || smooth || !s->moving || s->out.data == NULL) return;
  const double *const a = m->factor[0] + i, *const b = m->factor[1] + i;
#define PULL(j, n)                                                                          \
  {                                                                                         \
    D head = dload(m->column[2] + (j)), tail = dload(m->column[3] + (j));                   \
    for (int r = 0; r < k; r++) {                                                           \
      const D x = residue(row[r], m->column[0], m->column[1], j, n);                        \
      D u = dset(a[r]) * (second ? residue(move[r], m->column[4], m->column[5], j, n) : x); \
      if (second) u += dset(b[r]) * x;                                                      \
      if (FG_DOUBLE)                                                                        \
        dadd2(&head, &tail, u);                                                             \
      else                                                                                  \
        head += u;                                                                          \
    }                                                                                       \
    dstore(m->column[2] + (j), head);                                                       \
    dstore(m->column[3] + (j), tail);                                                       \
  }
  EACH_COLUMN(m->d, PULL);
#undef PULL
}

FG_INLINE void hinge_out(const fg_segment *s, const Members *m, const int second) {
  T *const spare = m->line + (HALF_LINES - 1) * m->line_pitch;
  const double *const h = m->column[0], *const l = m->column[1], *const u = m->column[2];
  const double *const vh = m->column[4], *const vl = m->column[5];
  const ptrdiff_t d = m->d;
  for (ptrdiff_t i = 0; i < m->n; i++) {
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
    const D a = dset(m->factor[0][i]), b = dset(second ? m->factor[1][i] : 0);
    const D w = dset(m->weight == NULL ? 1 : m->weight[i]);
#define WRITE(j, n)                                        \
  {                                                        \
    const D r = residue(x, h, l, j, n);                    \
    D slope = a * (second ? residue(v, vh, vl, j, n) : r); \
    if (second) slope += b * r;                            \
    narrowed(out + (j), slope - w * dload(u + (j)), n);    \
  }
    EACH_COLUMN(d, WRITE);
#undef WRITE
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
  mean_columns(&m, m.column[0], m.column[1]);
  D size = dset(0);
  for (ptrdiff_t j = 0; j < m.d; j += DLANES) size += dload(m.column[0] + j) * dload(m.column[0] + j);
  m.floor = dtotal(size) * (FG_DOUBLE ? 0x1p-196 : 0x1p-98);
  if (!(m.floor > 0x1p-900 && m.floor < 0x1p700)) m.floor = -1; /* left the range */
  if (second && s->moving) {
    sum_rows(&s->v, s, &m, m.weight, FG_DOUBLE, m.column[4], m.column[5]);
    mean_columns(&m, m.column[4], m.column[5]);
  }
  ptrdiff_t i = 0;
  for (; i + TOGETHER <= m.n; i += TOGETHER) hinge_rows(s, &m, i, TOGETHER, second, value);
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
  for (ptrdiff_t i = 0; i < m.n; i++) {
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
  for (ptrdiff_t i = 0; i < m.n; i++) {
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
