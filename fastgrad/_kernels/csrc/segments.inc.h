/* Sums over segments, their extremes, and what spreads a row per segment over the rows.
 *
 * A column of a segment has one accumulator, which takes the rows in their original order: a double for float,
 * two words for double; or one for each strip of rows.  So both ways to a sum of rows with ids give the same bits:
 *
 *   add     rows as they come, into a table with the accumulators of every segment; where the driver has cut the rows
 *           into strips, each has a table, and `merge` adds them up in order
 *   gather  segment after segment, its rows by their positions, into registers
 *
 * Accumulators of a segment are `pitch` doubles: one for every column, and for double as many tails behind.
 * A row of weight 0 is left out, whatever it holds.
 *
 * Prefetches (measured, benchmarks/NOTES.md) go out one by one between the additions, for in a burst those of a wide row
 * wait for each other.  Rows as they come want one fg_ahead, and of the table only where a row is a vector or two; rows by
 * their positions want one as many rows ahead as make GATHER_AHEAD bytes.
 */
#define STEP (FG_DOUBLE ? LANES : LANES / 2) /* columns of an accumulator of one vector */
#define LINE (64 / (ptrdiff_t)sizeof(T))     /* columns in a line of the cache */
/* Accumulators of a step that gather keeps: half of the registers. */
#define GATHERED ((FG_DOUBLE ? 4 : 8) * (LANES * sizeof(T) == 64 ? 2 : 1))
#define TABLE_AHEAD 16    /* rows between a prefetch and its use: of accumulators, */
#define ROWS_AHEAD 32     /* and of rows by their positions, of which only some columns are wanted */
#define GATHER_AHEAD 8192 /* bytes between them, of rows by their positions */
#define STREAM_AHEAD 2048 /* and of each of LANES segments that are read side by side */

#if FG_DOUBLE
typedef V2 Acc;
typedef V Part;
FG_INLINE Acc acc_zero(void) { return (Acc){vset(0), vset(0)}; }
FG_INLINE Part part_load(const T *p) { return vload(p); }
FG_INLINE void acc_add(Acc *a, Part x) {
  const V2 s = two_sum(a->h, x);
  *a = (Acc){s.h, a->l + s.l};
}
FG_INLINE void acc_add_times(Acc *a, Part x, T w) {
  const V p = x * vset(w), error = vfma(x, vset(w), -p);
  const V2 s = two_sum(a->h, p);
  *a = (Acc){s.h, a->l + (s.l + error)};
}
FG_INLINE Acc acc_sum(Acc a, Acc b) {
  const V2 s = two_sum(a.h, b.h);
  return (Acc){s.h, a.l + (b.l + s.l)};
}
FG_INLINE Acc acc_load(const double *p, ptrdiff_t pitch) { return (Acc){vload(p), vload(p + pitch / 2)}; }
FG_INLINE void acc_store(double *p, ptrdiff_t pitch, Acc a) {
  vstore(p, a.h);
  vstore(p + pitch / 2, a.l);
}
#else
typedef VW Part;
typedef VW Acc;
FG_INLINE Acc acc_zero(void) { return (Acc){0}; }
FG_INLINE Part part_load(const T *p) { return vwload(p); }
FG_INLINE void acc_add(Acc *a, Part x) { *a += x; }
FG_INLINE void acc_add_times(Acc *a, Part x, T w) { *a += x * (double)w; }
FG_INLINE Acc acc_sum(Acc a, Acc b) { return a + b; }
FG_INLINE Acc acc_load(const double *p, ptrdiff_t pitch) {
  (void)pitch;
  Acc r;
  memcpy(&r, p, sizeof r);
  return r;
}
FG_INLINE void acc_store(double *p, ptrdiff_t pitch, Acc a) {
  (void)pitch;
  memcpy(p, &a, sizeof a);
}
#endif

/* One column: the same arithmetic without vectors. */
typedef struct {
  double h, l;
} Acc1;
FG_INLINE void acc1_add(Acc1 *a, const int weighs, T x, T w) {
#if FG_DOUBLE
  double error = 0;
  if (weighs) {
    const V v = vset(x), p = v * vset(w);
    error = vfma(v, vset(w), -p)[0];
    x = p[0];
  }
  const double s = a->h + x, t = s - a->h;
  error += (a->h - (s - t)) + (x - t);
  *a = (Acc1){s, a->l + error};
#else
  a->h += weighs ? (double)x * (double)w : (double)x;
#endif
}
FG_INLINE Acc1 acc1_sum(Acc1 a, Acc1 b) {
  const double s = a.h + b.h, t = s - a.h;
  return (Acc1){s, a.l + (b.l + ((a.h - (s - t)) + (b.h - t)))}; /* the second word is not stored for float */
}
FG_INLINE Acc1 acc1_load(const double *p, ptrdiff_t pitch) { return (Acc1){p[0], FG_DOUBLE ? p[pitch / 2] : 0}; }
FG_INLINE void acc1_store(double *p, ptrdiff_t pitch, Acc1 a) {
  p[0] = a.h;
  if (FG_DOUBLE) p[pitch / 2] = a.l;
}

/* ---- add ------------------------------------------------------------------------------------------ */

/* A weight, `even` times that of the row if it has one. */
FG_INLINE T weight_at(const fg_segments *run, ptrdiff_t r) {
  return run->weight ? ((const T *)run->weight)[r] * (T)run->even : (T)run->even;
}

enum { ANY_COLUMNS, ONE_VECTOR, TWO_VECTORS, ONE_COLUMN };

FG_INLINE void prefetch_columns(const T *row, ptrdiff_t columns) {
  for (ptrdiff_t c = 0; c < columns; c += LINE) FG_PREFETCH(row + c);
}

FG_INLINE void add_part(double *a, ptrdiff_t pitch, const T *x, const int weighs, T w) {
  Acc v = acc_load(a, pitch);
  if (weighs)
    acc_add_times(&v, part_load(x), w);
  else
    acc_add(&v, part_load(x));
  acc_store(a, pitch, v);
}

FG_INLINE void add_as(const fg_segments *run, const int weighs, const int shape, const int some) {
  const int fixed = shape == ONE_VECTOR || shape == TWO_VECTORS;
  const ptrdiff_t columns = fixed ? shape * STEP : shape == ONE_COLUMN ? 1 : run->columns;
  const ptrdiff_t pitch = fixed ? columns * (FG_DOUBLE ? 2 : 1) : run->pitch;
  const ptrdiff_t bytes = columns * (ptrdiff_t)sizeof(T), whole = columns - columns % STEP;
  const ptrdiff_t ahead = run->x_row == bytes ? fg_ahead : (fg_ahead + bytes - 1) / bytes * run->x_row;
  for (ptrdiff_t i = 0; i < run->rows; i++) {
    const int64_t code = run->code[i];
    const ptrdiff_t r = some ? run->taken[i] : i;
    const char *const x = run->x + r * run->x_row;
    const T w = weighs ? weight_at(run, r) : 1;
    double *const a = run->table + code * pitch;
    if (fixed && i + TABLE_AHEAD < run->rows) FG_PREFETCH(run->table + run->code[i + TABLE_AHEAD] * pitch);
    const T *const row = (const T *)x, *const next = (const T *)(x + ahead);
    ptrdiff_t c = 0;
    if (code < 0 || (weighs && w == 0)) {
      if (shape != ONE_COLUMN) prefetch_columns(next, columns);
      continue;
    }
    if (shape != ONE_COLUMN) {
      for (; c + 4 * LINE <= whole; c += 4 * LINE)
#pragma GCC unroll 32
        for (ptrdiff_t k = c; k < c + 4 * LINE; k += STEP) {
          if ((k - c) % LINE == 0) FG_PREFETCH(next + k);
          add_part(a + k, pitch, row + k, weighs, w);
        }
      prefetch_columns(next + c, columns - c);
      for (; c < whole; c += STEP) add_part(a + c, pitch, row + c, weighs, w);
    }
    for (; c < columns; c++) {
      Acc1 v = acc1_load(a + c, pitch);
      acc1_add(&v, weighs, row[c], w);
      acc1_store(a + c, pitch, v);
    }
  }
}

/* One column of contiguous rows without weights. */
FG_INLINE void add_rows(const T *x, const int64_t *code, ptrdiff_t n, double *table, ptrdiff_t pitch) {
  for (ptrdiff_t i = 0; i < n; i++) {
    if (code[i] < 0) continue;
    double *const a = table + code[i] * (FG_DOUBLE ? 2 : 1);
    Acc1 v = acc1_load(a, pitch);
    acc1_add(&v, 0, x[i], 1);
    acc1_store(a, pitch, v);
  }
}

FG_INLINE void add_column(const fg_segments *run) {
  const T *const x = (const T *)run->x; /* not through `run`, of which the table might be part */
  const int64_t *const code = run->code;
  double *const table = run->table;
  const ptrdiff_t rows = run->rows, pitch = run->pitch;
  for (ptrdiff_t i = 0; i < rows; i += 8) {
    const ptrdiff_t n = rows - i < 8 ? rows - i : 8;
    FG_PREFETCH((const char *)(code + i) + fg_ahead);
    FG_PREFETCH((const char *)(x + i) + fg_ahead);
    if (!FG_DOUBLE && n == 8) /* unrolled; sums in two words are 15 % faster in a loop */
      add_rows(x + i, code + i, 8, table, pitch);
    else
      add_rows(x + i, code + i, n, table, pitch);
  }
}

FG_INLINE void add_some(const fg_segments *run, const int some) {
  const int weighs = run->weight || run->even != 1;
  if (!weighs && !some && run->columns == 1 && run->x_row == (ptrdiff_t)sizeof(T)) {
    add_column(run);
    return;
  }
  if (weighs && run->columns == 1)
    add_as(run, 1, ONE_COLUMN, some);
  else if (weighs)
    add_as(run, 1, ANY_COLUMNS, some);
  else if (run->columns == 1)
    add_as(run, 0, ONE_COLUMN, some);
  else if (run->columns == STEP)
    add_as(run, 0, ONE_VECTOR, some);
  else if (run->columns == 2 * STEP)
    add_as(run, 0, TWO_VECTORS, some);
  else
    add_as(run, 0, ANY_COLUMNS, some);
}

FG_KERNEL void FG_NAME(segment_add)(const fg_segments *run) {
  if (run->taken)
    add_some(run, 1);
  else
    add_some(run, 0);
}

FG_KERNEL void FG_NAME(segment_merge)(const fg_segments *run, ptrdiff_t segments, const double *later) {
  const ptrdiff_t columns = run->columns, pitch = run->pitch, whole = columns - columns % STEP;
  for (ptrdiff_t s = 0; s < segments; s++) {
    double *const a = run->table + s * pitch;
    const double *const b = later + s * pitch;
    ptrdiff_t c = 0;
    for (; c < whole; c += STEP) acc_store(a + c, pitch, acc_sum(acc_load(a + c, pitch), acc_load(b + c, pitch)));
    for (; c < columns; c++) acc1_store(a + c, pitch, acc1_sum(acc1_load(a + c, pitch), acc1_load(b + c, pitch)));
  }
}

/* ---- the result of accumulators ------------------------------------------------------------------- */

/* What a sum is divided by, 0 for an empty segment. */
FG_INLINE double divisor_of(const fg_segments *run, ptrdiff_t s) {
  const double count = run->offsets ? (double)(run->offsets[s + 1] - run->offsets[s]) : 1;
  return count == 0 ? 0 : (run->total ? run->total[s] : count) * run->even;
}

#if FG_DOUBLE
FG_INLINE V finish_part(const fg_segments *run, V h, V l, V divisor) {
  const V sum = vsel(veq(l, l), h + l, h); /* of an infinite sum the tail is inf - inf */
  if (!run->mean) return sum;
  const V2 q = div2((V2){h, l}, (V2){divisor, vset(0)});
  const V mean = q.h + q.l;
  return vsel(veq(mean, mean), mean, sum / divisor);
}
FG_INLINE int infinite(V a) { return vany((M)~vlt(vabs(a), vset((T)__builtin_inf()))); }
#endif

/* Whether a mean is not finite, be it that its sum left the range of double. */
FG_INLINE int finish_row(const fg_segments *run, ptrdiff_t s, const double *a, ptrdiff_t columns, T *out) {
  const double divisor = divisor_of(run, s);
  int lost = 0;
  if (divisor == 0) {
    for (ptrdiff_t c = 0; c < columns; c++) out[c] = (T)run->empty;
    return 0;
  }
#if FG_DOUBLE
  for (ptrdiff_t c = 0; c < columns; c += LANES) {
    const ptrdiff_t k = columns - c < LANES ? columns - c : LANES;
    const double *const h = a + c, *const l = h + run->pitch / 2;
    const V zero = vset(0);
    const V v = finish_part(run, k < LANES ? vload_n(h, k, zero) : vload(h), k < LANES ? vload_n(l, k, zero) : vload(l),
                            vset(divisor));
    if (run->mean) lost |= infinite(v);
    if (k < LANES)
      vstore_n(out + c, v, k);
    else
      vstore(out + c, v);
  }
#else
  if (run->mean)
    for (ptrdiff_t c = 0; c < columns; c++) out[c] = (T)(a[c] / divisor);
  else
    for (ptrdiff_t c = 0; c < columns; c++) out[c] = (T)a[c];
#endif
  return lost;
}

FG_KERNEL int FG_NAME(segment_finish)(const fg_segments *run, ptrdiff_t begin, ptrdiff_t end) {
  int lost = 0;
  const ptrdiff_t columns = run->columns;
  if (!FG_DOUBLE && !run->mean && !run->offsets && run->out_row == columns * (ptrdiff_t)sizeof(T)) {
    finish_row(run, begin, run->table + begin * columns, (end - begin) * columns,
               (T *)(run->out + begin * run->out_row));
    return 0;
  }
  for (ptrdiff_t s = begin; s < end; s++)
    lost |= finish_row(run, s, run->table + s * run->pitch, run->columns, (T *)(run->out + s * run->out_row));
  return lost;
}

/* ---- gather --------------------------------------------------------------------------------------- */

FG_INLINE ptrdiff_t row_at(const fg_segments *run, ptrdiff_t i) {
  return run->order ? (ptrdiff_t)(run->order[i] - run->base) : i;
}

/* `parts` vectors of columns from c on, of the rows [begin, end) in `order`, which is known up to `limit`. */
FG_INLINE void gather_parts(const fg_segments *run, const int weighs, const int parts, ptrdiff_t begin, ptrdiff_t end,
                            ptrdiff_t limit, ptrdiff_t c, double *a) {
  const ptrdiff_t columns = parts * STEP, ahead = GATHER_AHEAD / (columns * (ptrdiff_t)sizeof(T));
  const char *const x = run->x + c * (ptrdiff_t)sizeof(T);
  Acc v[GATHERED];
#pragma GCC unroll 16
  for (int k = 0; k < parts; k++) v[k] = acc_zero();
  for (ptrdiff_t i = begin; i < end; i++) {
    const T *const row = (const T *)(x + row_at(run, i) * run->x_row);
    const T *const next = (const T *)(x + row_at(run, i + ahead < limit ? i + ahead : i) * run->x_row);
    if ((uintptr_t)next & 63) FG_PREFETCH(next + columns - 1); /* NumPy's arrays begin at 16 of a line */
    const T w = weighs ? weight_at(run, row_at(run, i)) : 1;
    if (weighs && w == 0) {
      prefetch_columns(next, columns);
      continue;
    }
#pragma GCC unroll 16
    for (int k = 0; k < parts; k++) {
      if (k * STEP % LINE == 0) FG_PREFETCH(next + k * STEP);
      if (weighs)
        acc_add_times(&v[k], part_load(row + k * STEP), w);
      else
        acc_add(&v[k], part_load(row + k * STEP));
    }
  }
#pragma GCC unroll 16
  for (int k = 0; k < parts; k++) acc_store(a + c + k * STEP, run->pitch, v[k]);
}

/* All that fill so many vectors from column c on; returns where the rest begins. */
FG_INLINE ptrdiff_t gather_by(const fg_segments *run, const int weighs, const int parts, ptrdiff_t begin, ptrdiff_t end,
                              ptrdiff_t limit, ptrdiff_t c, double *a) {
  for (; c + parts * STEP <= run->columns; c += parts * STEP) gather_parts(run, weighs, parts, begin, end, limit, c, a);
  return c;
}

FG_INLINE void gather_columns(const fg_segments *run, const int weighs, ptrdiff_t begin, ptrdiff_t end, ptrdiff_t limit,
                              ptrdiff_t c, ptrdiff_t columns, double *a) {
  for (ptrdiff_t k = c; k < columns; k++) acc1_store(a + k, run->pitch, (Acc1){0, 0});
  for (ptrdiff_t i = begin; i < end; i++) {
    const ptrdiff_t r = row_at(run, i);
    if (i + ROWS_AHEAD < limit) FG_PREFETCH_L2((const T *)(run->x + row_at(run, i + ROWS_AHEAD) * run->x_row) + c);
    const T w = weighs ? weight_at(run, r) : 1;
    if (weighs && w == 0) continue;
    const T *const row = (const T *)(run->x + r * run->x_row);
    for (ptrdiff_t k = c; k < columns; k++) {
      Acc1 v = acc1_load(a + k, run->pitch);
      acc1_add(&v, weighs, row[k], w);
      acc1_store(a + k, run->pitch, v);
    }
  }
}

/* One column: an accumulator waits for each of its additions, so those of several segments wait side by side. */
#define LINES 4
#define TILE_ROWS 64 /* rows of a segment that lie in a tile */

FG_INLINE int gather_lines(const fg_segments *run, const int weighs, ptrdiff_t s, int lines) {
  Acc1 v[LINES];
  ptrdiff_t at[LINES], end[LINES], common = PTRDIFF_MAX;
  int lost = 0;
  for (int k = 0; k < lines; k++) {
    v[k] = (Acc1){0, 0};
    at[k] = (ptrdiff_t)run->offsets[s + k], end[k] = (ptrdiff_t)run->offsets[s + k + 1];
    common = common < end[k] - at[k] ? common : end[k] - at[k];
  }
  if (lines < LINES) common = 0;
  for (ptrdiff_t i = 0; i < common; i++) {
#pragma GCC unroll 4
    for (int k = 0; k < LINES; k++) {
      const ptrdiff_t r = row_at(run, at[k] + i);
      const T w = weighs ? weight_at(run, r) : 1;
      if (!weighs || w != 0) acc1_add(&v[k], weighs, *(const T *)(run->x + r * run->x_row), w);
    }
  }
  for (int k = 0; k < lines; k++) {
    for (ptrdiff_t i = at[k] + common; i < end[k]; i++) {
      const ptrdiff_t r = row_at(run, i);
      const T w = weighs ? weight_at(run, r) : 1;
      if (!weighs || w != 0) acc1_add(&v[k], weighs, *(const T *)(run->x + r * run->x_row), w);
    }
    double a[2];
    acc1_store(a, run->pitch, v[k]);
    lost |= finish_row(run, s + k, a, 1, (T *)(run->out + (s + k) * run->out_row));
  }
  return lost;
}

/* Consecutive segments of contiguous elements: one in every lane.  Each is filled up with zeros, which change no bit
 * of an accumulator that began with 0. */
FG_INLINE int gather_lanes(const fg_segments *run, ptrdiff_t s, int lines) {
  T tile[LANES][TILE_ROWS];
  const T *at[LANES];
  ptrdiff_t left[LANES], most = 0, common = PTRDIFF_MAX;
  const V zero = vset(0);
  Wide sums = wide_start();
  for (int k = 0; k < LANES; k++) {
    const ptrdiff_t begin = k < lines ? (ptrdiff_t)run->offsets[s + k] : 0;
    left[k] = k < lines ? (ptrdiff_t)run->offsets[s + k + 1] - begin : 0;
    at[k] = (const T *)run->x + begin;
    most = most > left[k] ? most : left[k];
    common = k < lines && left[k] < common ? left[k] : common;
  }
  if (common >= LINE) { /* what all have needs no filling up, and so no tile; spare lanes read the first segment */
    common -= common % LINE;
    for (int k = lines; k < LANES; k++) at[k] = at[0];
    for (ptrdiff_t c = 0; c < common; c += LINE) {
      for (int k = 0; k < LANES; k++) FG_PREFETCH((const char *)(at[k] + c) + STREAM_AHEAD);
#pragma GCC unroll 4
      for (ptrdiff_t i = 0; i < LINE; i += 4) {
        V v[4];
        vgather4(starts_listed(at, c + i), 4, 0, v);
        for (int k = 0; k < 4; k++) wide_add(&sums, v[k]);
      }
    }
    for (int k = 0; k < lines; k++) at[k] += common, left[k] -= common;
    most -= common;
  }
  for (; most > 0; most -= TILE_ROWS) {
    const ptrdiff_t n = most < TILE_ROWS ? (most + 3) / 4 * 4 : TILE_ROWS;
    for (int k = 0; k < LANES; k++) {
      ptrdiff_t i = 0;
      for (; i < n && left[k] >= LANES; i += LANES, left[k] -= LANES, at[k] += LANES) vstore(tile[k] + i, vload(at[k]));
      if (i < n && left[k] > 0) {
        vstore(tile[k] + i, vload_n(at[k], left[k], zero));
        left[k] = 0;
        i += LANES;
      }
      for (; i < n; i += LANES) vstore(tile[k] + i, zero);
    }
    for (ptrdiff_t i = 0; i < n; i += 4) {
      V v[4];
      vgather4(starts_apart(tile[0], sizeof tile[0], i), 4, 0, v);
      for (int k = 0; k < 4; k++) wide_add(&sums, v[k]);
    }
  }
  T *const out = (T *)(run->out + s * run->out_row);
  double divisor[LANES];
  for (int k = 0; k < LANES; k++) divisor[k] = k < lines ? divisor_of(run, s + k) : 1;
#if FG_DOUBLE
  const V d = vload(divisor), found = finish_part(run, sums.h, sums.l, d);
  const V v = vsel(veq(d, zero), vset(run->empty), found);
  if (lines < LANES)
    vstore_n(out, v, lines);
  else
    vstore(out, v);
  return run->mean && infinite(vsel(veq(d, zero), zero, found));
#else
  double sum[LANES];
  memcpy(sum, &sums, sizeof sum);
  for (int k = 0; k < lines; k++)
    out[k] = divisor[k] == 0 ? (T)run->empty : (T)(run->mean ? sum[k] / divisor[k] : sum[k]);
  return 0;
#endif
}

FG_INLINE int gather_as(const fg_segments *run, const int weighs, ptrdiff_t first, ptrdiff_t last) {
  const ptrdiff_t limit = (ptrdiff_t)run->offsets[last];
  int lost = 0;
  if (run->columns == 1) {
    const int beside = !weighs && !run->order && run->x_row == (ptrdiff_t)sizeof(T), most = beside ? LANES : LINES;
    for (ptrdiff_t s = first; s < last; s += most) {
      const int lines = last - s < most ? (int)(last - s) : most;
      lost |= beside ? gather_lanes(run, s, lines) : gather_lines(run, weighs, s, lines);
    }
    return lost;
  }
  for (ptrdiff_t s = first; s < last; s++) {
    const ptrdiff_t begin = (ptrdiff_t)run->offsets[s], end = (ptrdiff_t)run->offsets[s + 1];
    double *const a = run->table;
    ptrdiff_t c = 0;
    c = gather_by(run, weighs, GATHERED, begin, end, limit, c, a);
    c = gather_by(run, weighs, GATHERED / 2, begin, end, limit, c, a);
    c = gather_by(run, weighs, GATHERED / 4, begin, end, limit, c, a);
    c = gather_by(run, weighs, 1, begin, end, limit, c, a);
    if (c < run->columns) gather_columns(run, weighs, begin, end, limit, c, run->columns, a);
    lost |= finish_row(run, s, a, run->columns, (T *)(run->out + s * run->out_row));
  }
  return lost;
}

FG_KERNEL int FG_NAME(segment_gather)(const fg_segments *run, ptrdiff_t first, ptrdiff_t last) {
  return run->weight || run->even != 1 ? gather_as(run, 1, first, last) : gather_as(run, 0, first, last);
}

/* ---- spread --------------------------------------------------------------------------------------- */

/* out = the row of its segment, times its weight or its share of the total; 0 for a row of no segment.  A factor is a
 * double, of which neither a weight nor a share leaves the range. */
FG_KERNEL void FG_NAME(segment_spread)(const fg_segments *run) {
  const ptrdiff_t columns = run->columns;
  const T *const weight = (const T *)run->weight;
  for (ptrdiff_t i = 0; i < run->rows; i++) {
    T *const out = (T *)(run->out + i * run->out_row);
    const int64_t code = run->code[i];
    const T *const from = (const T *)(run->x + code * run->x_row);
    if (code < 0 || (weight && weight[i] == 0)) {
      memset(out, 0, (size_t)columns * sizeof(T));
    } else if (weight) {
      const double w = (double)weight[i], factor = run->total ? w / run->total[code] : w;
      for (ptrdiff_t c = 0; c < columns; c++) out[c] = (T)((double)from[c] * factor);
    } else if (columns == 1) {
      out[0] = from[0];
    } else {
      memcpy(out, from, (size_t)columns * sizeof(T));
    }
  }
}

/* ---- extremes ------------------------------------------------------------------------------------- */

/* The largest (or smallest) of the run's rows and where it is first, into `best` and `place` (or NULL), which go on
 * from earlier rows unless `start`.  NaN is larger than anything, and smaller.  Rows lie in order if `packed`; what
 * counts as place is their position in any case. */
FG_INLINE void extreme_as(const fg_segments *run, const int least, ptrdiff_t begin, ptrdiff_t end, int packed,
                          int start, T *best, int64_t *place) {
  const T sign = least ? -1 : 1;
  for (ptrdiff_t i = begin; i < end; i++) {
    const ptrdiff_t r = row_at(run, i);
    const T *const row = (const T *)(run->x + (packed ? i - begin : r) * run->x_row);
    if (!packed && i + ROWS_AHEAD < end) FG_PREFETCH(run->x + row_at(run, i + ROWS_AHEAD) * run->x_row);
    if (start) {
      start = 0;
      for (ptrdiff_t c = 0; c < run->columns; c++) best[c] = row[c];
      if (place)
        for (ptrdiff_t c = 0; c < run->columns; c++) place[c] = r;
      continue;
    }
    for (ptrdiff_t c = 0; c < run->columns; c++) {
      const T v = row[c], b = best[c];
      const int better = (!(sign * v <= sign * b)) & (b == b);
      best[c] = better ? v : b;
      if (place) place[c] = better ? r : place[c];
    }
  }
}

FG_KERNEL void FG_NAME(segment_extreme)(const fg_segments *run, int least, ptrdiff_t begin, ptrdiff_t end, int packed,
                                        int start, void *best, int64_t *place) {
  if (least)
    extreme_as(run, 1, begin, end, packed, start, (T *)best, place);
  else
    extreme_as(run, 0, begin, end, packed, start, (T *)best, place);
}
