/* softmax, log_softmax, logsumexp, cross-entropy and its gradient: one algorithm.
 *
 *   pass 1   maximum of the row
 *   pass 2   terms exp(x - max) (exp.inc.h), all but one of them summed: `rest`
 *   pass 3   out = term * factor of the row, or x - max - log(...)
 *
 * The term left out is the target's (cross-entropy) or the largest (logsumexp, log_softmax), e_t:
 *
 *   loss = log(S/e_t) = log1p(rest/e_t)         no cancellation, however confident the row
 *   gradient at the target = -rest/(rest + e_t)
 *   logsumexp = max + log1p(rest/e_max),  log_softmax = x - max - log1p(rest/e_max)
 *
 * When x_max - x_t is large (e_t may underflow), loss = (x_max - x_t) + log1p((S - e_max)/e_max): both parts >= 0,
 * nothing cancels.  See Blanchard, Higham & Higham 2021, doi 10.1093/imanum/draa038.
 *
 * Memory: a `rows` kernel keeps the terms of a row in scratch, so that x is read once from memory and
 * `out` is written once.  Rows overlap: while row i is exponentiated, a later row is prefetched; while a
 * row is scaled, the maximum of a later one is taken.  Short rows lag by one more, so that no row waits
 * for the latency of its own sum and reciprocal.  The `lanes` kernels keep a tile.
 *
 * Rows without a finite maximum: NaN, but logsumexp is the maximum unless a NaN is present.
 */
#define FAR ((T)(FG_DOUBLE ? 64 : 32))

enum { SOFTMAX, LOG_SOFTMAX, LOGSUMEXP, XENT, XENT_GRAD };
FG_INLINE int has_target(const int op) { return op == XENT || op == XENT_GRAD; }
FG_INLINE int leaves_out(const int op) { return op != SOFTMAX; }
FG_INLINE int keeps_terms(const int op) { return op == SOFTMAX || op == XENT_GRAD; }
FG_INLINE int has_value(const int op) { return op == LOGSUMEXP || has_target(op); }

FG_INLINE Base base_of(const fg_run *run) {
  const double *log2e = run->log2e;
  T h = (T)log2e[0];
  return (Base){vset(h), vset((T)((log2e[0] - (double)h) + log2e[1])), vset((T)(1 / log2e[0]))};
}
FG_INLINE V2 scale_of(const fg_run *run) {
  T h = (T)run->scale;
  return (V2){vset(h), vset((T)(run->scale - (double)h))};
}

/* What a row needs beside its terms; every field has one lane per row, or one row broadcast. */
typedef struct {
  V max, x_left;  /* the maximum (0 if not finite), the logit of the term left out */
  M finite, gone; /* is the maximum finite; is the row ignored or wholly masked */
  V2 factor;      /* alpha * scale */
} Row;

typedef struct {
  Map map;
  V value;
} Result;

FG_INLINE void scale_map(Map *map, V2 sum, const Row *row) {
  const V2 p = mul2(reciprocal2(sum), row->factor);
  map->a = vdrop(row->gone, vsel(row->finite, p.h, vset((T)__builtin_nan(""))));
  map->b = vdrop(row->gone, p.l);
}

/* A sum taken without low words gets that of its largest term, the only one that can show. */
FG_INLINE V2 add_low(V2 sum, V max, const Frame *frame, Base base) {
  const Term e = exp_term(max - frame->shift, frame, base);
  return (V2){sum.h, vmla(e.lo, e.power, sum.l)};
}

FG_INLINE Result finish(const int op, V2 rest, const Row *row, const Frame *frame, Base base, V inv_t) {
  const V nan = vset((T)__builtin_nan(""));
  Result r;
  memset(&r, 0, sizeof r);
  if (op == SOFTMAX) {
    scale_map(&r.map, rest, row);
    return r;
  }
  const V2 left = term2(exp_term(row->x_left - frame->shift, frame, base));
  V2 num = rest, den = left;
  if (has_target(op)) {
    const V2 sum = add2(rest, left);
    const V gap = row->max - row->x_left;
    const M far = vlt(vset(FAR), gap);
    V apart = vset(0);
    if (vany(far)) {
      const V2 top = term2(exp_term(row->max - frame->shift, frame, base));
      const V2 others = add2(sum, (V2){-top.h, -top.l});
      num = (V2){vsel(far, vmax(vset(0), others.h), rest.h), vsel(far, vset(0), rest.l)};
      den = (V2){vsel(far, top.h, left.h), vsel(far, top.l, left.l)};
      apart = vsel(far, gap, apart);
    }
    const V2 log = vlog1p(div2(num, den));
    r.value = vdrop(row->gone, vsel(row->finite, apart + (log.h + log.l), nan));
    if (op == XENT_GRAD) {
      scale_map(&r.map, sum, row);
      r.map.patch = vdrop(row->gone, -rest.h);
    }
    return r;
  }
  const V2 log = vlog1p(div2(num, den));
  if (op == LOGSUMEXP) { /* a maximum that is not finite: the caller decides, having looked for NaN */
    const V2 v = two_sum(row->max * inv_t, log.h);
    r.value = v.h + (v.l + log.l);
  } else {
    r.map.a = vdrop(row->gone, row->max);
    r.map.b = vdrop(row->gone, vsel(row->finite, log.h + log.l, nan));
  }
  return r;
}

/* ---- rows: the lanes of a vector are neighbouring classes ----------------------------------------- */

/* Rows up to this size lag: their two lines of terms then still fit in L1 or a corner of L2. */
#define LAG_BYTES ((ptrdiff_t)64 << 10)

FG_INLINE T row_max(const T *x, ptrdiff_t n) {
  const V low = vset((T)-__builtin_inf());
  V a = low, b = low;
  ptrdiff_t c = 0;
  for (; c + 2 * LANES <= n; c += 2 * LANES) {
    a = vmax(vload(x + c), a);
    b = vmax(vload(x + c + LANES), b);
  }
  for (; c + LANES <= n; c += LANES) a = vmax(vload(x + c), a);
  if (c < n) b = vmax(vload_n(x + c, n - c, low), b);
  return vreduce_max(vmax(a, b));
}

FG_INLINE ptrdiff_t row_find(const T *x, ptrdiff_t n, T value) {
  const V v = vset(value);
  ptrdiff_t c = 0;
  for (; c + LANES <= n; c += LANES) {
    M hit = veq(vload(x + c), v);
    if (vany(hit)) return c + vfirst_true(hit);
  }
  for (; c < n; c++)
    if (x[c] == value) return c;
  return -1;
}

FG_INLINE int has_nan(const char *x, ptrdiff_t step, ptrdiff_t n) {
  int nan = 0;
  for (ptrdiff_t c = 0; c < n; c++) {
    T v = *(const T *)(x + c * step);
    nan |= v != v;
  }
  return nan;
}

FG_INLINE void exp_span(const int keep, const T *d, ptrdiff_t from, ptrdiff_t to, const Frame *frame, Base base, Sum *sum,
                        T *terms, const T *ahead) {
  ptrdiff_t c = from;
  for (; c + SUM_BLOCK * LANES <= to; c += SUM_BLOCK * LANES) {
#pragma GCC unroll 8
    for (int k = 0; k < SUM_BLOCK; k++) {
      const V e = sum_add(sum, 0, exp_term(vload(d + c + k * LANES), frame, base));
      if (keep) vstore(terms + c + k * LANES, e);
      FG_PREFETCH(ahead + c + k * LANES);
    }
    sum_flush(sum);
  }
  for (; c < to; c += LANES) {
    const V e = sum_add(sum, 0, exp_term(vload(d + c), frame, base));
    if (keep) vstore(terms + c, e);
    FG_PREFETCH(ahead + c);
  }
  sum_flush(sum);
}

/* Pass 2 over one row; the term `left` (or none: -1) is left out.  `terms` has room for a whole last vector;
 * `ahead` is prefetched, C elements of it. */
FG_INLINE Sum exp_row(const int keep, const T *d, ptrdiff_t n, ptrdiff_t left, const Frame *frame, Base base, T *terms, const T *ahead) {
  const V low = vset((T)-__builtin_inf());
  const ptrdiff_t whole = n - n % LANES, hole = left < 0 ? n : left - left % LANES;
  Sum sum = sum_start();
  exp_span(keep, d, 0, hole < whole ? hole : whole, frame, base, &sum, terms, ahead);
  for (ptrdiff_t c = hole < whole ? hole : whole; c < n; c = whole) { /* the vector with the hole, the last one */
    T lane[LANES];
    vstore(lane, c < whole ? vload(d + c) : vload_n(d + c, n - c, low));
    if (c == hole) lane[left - hole] = (T)-__builtin_inf();
    const V e = sum_add(&sum, 0, exp_term(vload(lane), frame, base));
    if (keep) vstore(terms + c, e);
    if (c == whole) break;
    exp_span(keep, d, c + LANES, whole, frame, base, &sum, terms, ahead);
  }
  return sum;
}

/* Pass 3 over one row, from `from` (terms or x) to `to`, fused with pass 1 of a later row. */
FG_INLINE T map_row(const int kind, const T *from, ptrdiff_t n, Map m, V factor, T *to, const T *later, const int stream) {
  const V low = vset((T)-__builtin_inf());
  V max = low;
  ptrdiff_t c = 0;
  if (stream) { /* up to the next 64-byte boundary */
    const ptrdiff_t gap = (ptrdiff_t)((64 - ((uintptr_t)to & 63)) & 63) / (ptrdiff_t)sizeof(T);
    const ptrdiff_t head = gap < n ? gap : n;
    while (c < head) {
      const ptrdiff_t k = head - c < LANES ? head - c : LANES;
      T lane[LANES];
      for (ptrdiff_t i = 0; i < k; i++) lane[i] = from[c + i];
      if (later)
        for (ptrdiff_t i = 0; i < k; i++) max = vmax(vset(later[c + i]), max);
      for (ptrdiff_t i = k; i < LANES; i++) lane[i] = 0;
      vstore(lane, map_apply(kind, vload(lane), m, factor));
      for (ptrdiff_t i = 0; i < k; i++) to[c + i] = lane[i];
      c += k;
    }
  }
  if (later)
    for (; c + LANES <= n; c += LANES) {
      const V y = map_apply(kind, vload(from + c), m, factor);
      max = vmax(vload(later + c), max);
      if (stream)
        vstream(to + c, y);
      else
        vstore(to + c, y);
    }
  else
    for (; c + LANES <= n; c += LANES) {
      const V y = map_apply(kind, vload(from + c), m, factor);
      if (stream)
        vstream(to + c, y);
      else
        vstore(to + c, y);
    }
  if (c < n) {
    if (later) max = vmax(vload_n(later + c, n - c, low), max);
    vstore_n(to + c, map_apply(kind, vload_n(from + c, n - c, low), m, factor), n - c);
  }
  return later ? vreduce_max(max) : 0;
}

/* One row as a contiguous line: x itself where it is one and nothing is masked, a packed copy otherwise. */
FG_INLINE const T *row_line(const fg_run *run, ptrdiff_t r, T *packed, int *empty) {
  const char *x = run->x + r * run->x_row;
  *empty = 0;
  if (run->x_class == (ptrdiff_t)sizeof(T) && !run->where) return (const T *)x;
  for (ptrdiff_t c = 0; c < run->classes; c++) packed[c] = *at(x, c * run->x_class);
  if (run->where) {
    const char *w = run->where + r * run->where_row;
    *empty = 1;
    for (ptrdiff_t c = 0; c < run->classes; c++) {
      if (w[c * run->where_class])
        *empty = 0;
      else
        packed[c] = (T)-__builtin_inf();
    }
  }
  return packed;
}

FG_INLINE ptrdiff_t padded(ptrdiff_t n) { return (n + 64 / (ptrdiff_t)sizeof(T)) & ~(ptrdiff_t)(64 / sizeof(T) - 1); }

FG_INLINE void rows_as(const int op, const fg_run *run) {
  const int kind = op == LOG_SOFTMAX ? MAP_LOG : MAP_SCALE2, has_out = op != LOGSUMEXP && op != XENT;
  const ptrdiff_t n = run->classes, rows = run->rows, room = padded(n) + 64 / (ptrdiff_t)sizeof(T);
  const Base base = base_of(run);
  const V2 scale = scale_of(run);
  const V inv_t = vset((T)run->inv_temperature);
  T *const lines = (T *)run->scratch, *const packed = lines + 2 * room;
  const int direct = run->x_class == (ptrdiff_t)sizeof(T) && !run->where;
  const int flat = run->out_class == (ptrdiff_t)sizeof(T);
  const ptrdiff_t lag = direct && flat && n * (ptrdiff_t)sizeof(T) <= LAG_BYTES;

  T max[2] = {0, 0}; /* of rows r and r + lag, known before their turn when x is read directly */
  Map map[2];
  const T *from[2] = {NULL, NULL}; /* what row r & 1 is mapped from, or NULL if it is done */
  if (direct)
    for (ptrdiff_t r = 0; r <= lag && r < rows; r++) max[r & 1] = row_max(at(run->x, r * run->x_row), n);

  for (ptrdiff_t r = 0; r < rows + lag; r++) {
    const T *const later = direct && r + 1 + lag < rows ? at(run->x, (r + 1 + lag) * run->x_row) : NULL;
    if (r < rows) {
      char *const out = run->out + r * run->out_row;
      char *const value = run->value + r * run->value_row;
      from[r & 1] = NULL;
      if (has_target(op) && run->target[r] < 0) {
        if (run->value) *(T *)value = 0;
        if (op == XENT_GRAD)
          for (ptrdiff_t c = 0; c < n; c++) *(T *)(out + c * run->out_class) = 0;
      } else {
        int empty;
        const T *const x = row_line(run, r, packed, &empty);
        const T top = direct ? max[r & 1] : row_max(x, n);
        const int finite = top - top == 0;
        const V m = vset(finite ? top : 0);
        const Frame frame = frame_of(m, base);
        const ptrdiff_t left = has_target(op) ? run->target[r] : leaves_out(op) && finite ? row_find(x, n, top) : -1;
        Row row = {m, vset(left < 0 ? 0 : x[left]), vtruth(finite), vtruth(empty), scale};
        if (keeps_terms(op) && run->alpha)
          row.factor = mul2((V2){vset(*at(run->alpha, r * run->alpha_row)), vset(0)}, scale);

        const T *d = x;
        if (FG_UNLIKELY(frame.shift[0] != 0)) {
          for (ptrdiff_t c = 0; c < n; c++) packed[c] = x[c] - frame.shift[0];
          d = packed;
        }
        /* The terms lie at the offset of `out` from a 64-byte boundary: streamed stores then load whole lines. */
        T *const terms = keeps_terms(op) ? lines + (lag ? r & 1 : 0) * room + ((uintptr_t)out & 63) / sizeof(T) : NULL;
        Sum sum = exp_row(keeps_terms(op), d, n, left, &frame, base, terms, later ? later : d);
        V2 rest = sum_lanes(sum);
        if (left < 0 || x[left] < top) rest = add_low(rest, m, &frame, base);
        const Result result = finish(op, rest, &row, &frame, base, inv_t);
        if (has_value(op) && run->value) {
          T v = result.value[0];
          if (op == LOGSUMEXP && !finite) v = has_nan((const char *)x, sizeof(T), n) ? (T)__builtin_nan("") : top;
          *(T *)value = v;
        }
        if (op == XENT_GRAD) terms[left] = result.map.patch[0];
        map[r & 1] = result.map;
        if (has_out) from[r & 1] = op == LOG_SOFTMAX ? x : terms;
        if (op == LOG_SOFTMAX && x == packed) map[r & 1].a = map[r & 1].a - frame.shift; /* shifted in place */
      }
    }
    const ptrdiff_t done = r - lag;
    if (has_out && done >= 0 && from[done & 1]) {
      char *const out = run->out + done * run->out_row;
      const T *const f = from[done & 1];
      const Map m = map[done & 1];
      if (!flat) {
        map_row(kind, f, n, m, inv_t, packed, NULL, 0);
        for (ptrdiff_t c = 0; c < n; c++) *(T *)(out + c * run->out_class) = packed[c];
        if (later) max[(r + 1 + lag) & 1] = row_max(later, n);
      } else {
        const T top = run->stream ? map_row(kind, f, n, m, inv_t, (T *)out, later, 1)
                                  : map_row(kind, f, n, m, inv_t, (T *)out, later, 0);
        if (later) max[(r + 1 + lag) & 1] = top;
      }
    } else if (later) {
      max[(r + 1 + lag) & 1] = row_max(later, n);
    }
  }
  if (run->stream) vfence();
}

/* ---- lanes: a row per lane -------------------------------------------------------------------------- */

/* A group of LANES rows between pass 2 and pass 3. */
typedef struct {
  Row row;
  Frame frame;
  Sum sum;
  V top; /* the maximum, finite or not */
  VI left;
} Group;

FG_INLINE Group lanes_exp(const int op, const fg_run *run, ptrdiff_t first, ptrdiff_t rows, T *tile, const T *empty,
                          Base base, V2 scale) {
  const ptrdiff_t n = run->classes;
  const V low = vset((T)-__builtin_inf());
  V max = low, x_left = vset(0);
  VI left = viset(-1);
  Group group;
  Row *const row = &group.row;
  row->gone = empty ? veq(vload(empty), vset(1)) : vtruth(0);
  if (has_target(op)) {
    if (rows == LANES) {
      left = viload_wide(run->target + first);
    } else {
      int64_t t[LANES];
      for (ptrdiff_t l = 0; l < LANES; l++) t[l] = run->target[first + (l < rows ? l : 0)];
      left = viload_wide(t);
    }
    row->gone = vieq(left, viset(-1));
  }
  VI class = viset(0);
  for (ptrdiff_t c = 0; c < n; c++, class += viset(1)) {
    const V x = vload(tile + c * LANES);
    if (has_target(op)) x_left = vsel(vieq(left, class), x, x_left);
    if (op == LOG_SOFTMAX || op == LOGSUMEXP) left = visel(vlt(max, x), class, left);
    max = vmax(x, max);
  }
  group.top = max;
  group.left = left;
  row->finite = vlt(vabs(max), vset((T)__builtin_inf()));
  row->max = vsel(row->finite, max, vset(0));
  row->x_left = has_target(op) ? x_left : row->max;
  row->factor = scale;
  if (keeps_terms(op) && run->alpha) {
    T alpha[LANES];
    for (ptrdiff_t l = 0; l < LANES; l++) alpha[l] = *at(run->alpha, (first + (l < rows ? l : 0)) * run->alpha_row);
    row->factor = mul2((V2){vload(alpha), vset(0)}, scale);
  }
  const Frame frame = frame_of(row->max, base);

  Sum sum = sum_start();
  class = viset(0);
  for (ptrdiff_t c = 0; c < n;) {
    const ptrdiff_t end = c + SUM_BLOCK < n ? c + SUM_BLOCK : n;
    for (; c < end; c++, class += viset(1)) {
      V d = vload(tile + c * LANES) - frame.shift;
      if (leaves_out(op)) d = vsel(vieq(left, class), low, d);
      const V e = sum_add(&sum, op != SOFTMAX, exp_term(d, &frame, base));
      if (keeps_terms(op)) vstore(tile + c * LANES, e);
    }
    sum_flush(&sum);
  }
  group.frame = frame;
  group.sum = sum;
  return group;
}

FG_INLINE Result lanes_finish(const int op, Group *group, T *tile, ptrdiff_t n, Base base, V inv_t) {
  const Row *const row = &group->row;
  V2 rest = sum_value(group->sum);
  if (op == SOFTMAX) rest = add_low(rest, row->max, &group->frame, base);
  Result result = finish(op, rest, row, &group->frame, base, inv_t);
  result.map.target = group->left;
  if (op == XENT_GRAD && FG_UNLIKELY(vany(row->gone))) /* 0 * NaN is not 0 */
    for (ptrdiff_t c = 0; c < n; c++) vstore(tile + c * LANES, vdrop(row->gone, vload(tile + c * LANES)));
  if (op == LOGSUMEXP) {
    T finite[LANES], value[LANES], top[LANES];
    vstore(finite, vsel(row->finite, vset(1), vset(0)));
    vstore(value, result.value);
    vstore(top, group->top);
    for (ptrdiff_t l = 0; l < LANES; l++)
      if (FG_UNLIKELY(!finite[l]))
        value[l] = has_nan((const char *)(tile + l), sizeof(V), n) ? (T)__builtin_nan("") : top[l];
    result.value = vload(value);
  }
  return result;
}

FG_INLINE void lanes_value(const fg_run *run, ptrdiff_t first, ptrdiff_t rows, V v) {
  char *const value = run->value + first * run->value_row;
  if (rows == LANES && run->value_row == (ptrdiff_t)sizeof(T)) {
    vstore((T *)value, v);
  } else {
    T lane[LANES];
    vstore(lane, v);
    for (ptrdiff_t l = 0; l < rows; l++) *(T *)(value + l * run->value_row) = lane[l];
  }
}

FG_INLINE void lanes_as(const int op, const fg_run *run) {
  const int kind = op == LOG_SOFTMAX ? MAP_LOG : op == XENT_GRAD ? MAP_TARGET : MAP_SCALE2;
  const ptrdiff_t n = run->classes, most = tile_groups(n);
  const Base base = base_of(run);
  const V2 scale = scale_of(run);
  const V inv_t = vset((T)run->inv_temperature);
  T *const tile = (T *)run->scratch;
  T empty[GROUPS_MAX * LANES];
  Map map[GROUPS_MAX];

  for (ptrdiff_t first = 0; first < run->rows; first += most * LANES) {
    const ptrdiff_t rows = run->rows - first < most * LANES ? run->rows - first : most * LANES;
    const ptrdiff_t groups = (rows + LANES - 1) / LANES;
    FG_NAME(pack)(run->x + first * run->x_row, run->x_row, run->x_class, rows, n, tile);
    if (run->where) {
      const char *const w = run->where + first * run->where_row;
      FG_NAME(mask_tile)(w, run->where_row, run->where_class, rows, n, (T)-__builtin_inf(), tile, empty);
    }
    /* A group is finished after the next one's pass 2, which hides the latency of its sum and divisions. */
    Group group[2];
    for (ptrdiff_t g = 0; g <= groups; g++) {
      if (g < groups) {
        const ptrdiff_t here = rows - g * LANES < LANES ? rows - g * LANES : LANES;
        group[g & 1] = lanes_exp(op, run, first + g * LANES, here, tile + g * n * LANES,
                                 run->where ? empty + g * LANES : NULL, base, scale);
      }
      if (g > 0) {
        const ptrdiff_t p = g - 1, here = rows - p * LANES < LANES ? rows - p * LANES : LANES;
        const Result r = lanes_finish(op, &group[p & 1], tile + p * n * LANES, n, base, inv_t);
        map[p] = r.map;
        if (has_value(op) && run->value) lanes_value(run, first + p * LANES, here, r.value);
      }
    }
    if (op == SOFTMAX || op == XENT_GRAD || op == LOG_SOFTMAX)
      unpack_as(kind, tile, map, (T)run->inv_temperature, run->out + first * run->out_row, run->out_row, run->out_class,
                rows, n, run->stream);
  }
  if (run->stream) vfence();
}

FG_KERNEL void FG_NAME(softmax_rows)(const fg_run *run) { rows_as(SOFTMAX, run); }
FG_KERNEL void FG_NAME(softmax_lanes)(const fg_run *run) { lanes_as(SOFTMAX, run); }
FG_KERNEL void FG_NAME(log_softmax_rows)(const fg_run *run) { rows_as(LOG_SOFTMAX, run); }
FG_KERNEL void FG_NAME(log_softmax_lanes)(const fg_run *run) { lanes_as(LOG_SOFTMAX, run); }
FG_KERNEL void FG_NAME(logsumexp_rows)(const fg_run *run) { rows_as(LOGSUMEXP, run); }
FG_KERNEL void FG_NAME(logsumexp_lanes)(const fg_run *run) { lanes_as(LOGSUMEXP, run); }
FG_KERNEL void FG_NAME(cross_entropy_rows)(const fg_run *run) { rows_as(XENT, run); }
FG_KERNEL void FG_NAME(cross_entropy_lanes)(const fg_run *run) { lanes_as(XENT, run); }
FG_KERNEL void FG_NAME(cross_entropy_grad_rows)(const fg_run *run) { rows_as(XENT_GRAD, run); }
FG_KERNEL void FG_NAME(cross_entropy_grad_lanes)(const fg_run *run) { lanes_as(XENT_GRAD, run); }
