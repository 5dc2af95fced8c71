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
  return (V2){vset(h), vset(h - h == 0 ? (T)(run->scale - (double)h) : 0)};
}

/* Rows between pass 2 and pass 3; every field has one lane per row, or one row broadcast. */
typedef struct {
  V2 rest;        /* sum of the terms but the one left out */
  V top, max;     /* the maximum; the same, 0 if not finite */
  V x_left;       /* logit of the term left out */
  M finite, gone; /* is the maximum finite; is the row ignored or wholly masked */
  Frame frame;
} State;

/* A sum taken without low words gets that of its largest term, the only one that can show; not if that term is all
 * there is, which then has a share of exactly 1. */
FG_INLINE V2 add_low(V2 sum, V max, const Frame *frame, Base base) {
  const Term e = exp_term(max - frame->shift, frame, base);
  const M alone = veq(sum.h, e.hi * e.power) & veq(sum.l, vset(0));
  return (V2){sum.h, vsel(alone, vset(0), vmla(e.lo, e.power, sum.l))};
}

FG_INLINE V2 term_left(const State *s, Base base) {
  return term2(exp_term(s->x_left - s->frame.shift, &s->frame, base));
}

/* log(S / e_left) >= 0, as log1p of what was left in the sum. */
FG_INLINE V2 log_rest(const State *s, Base base) { return vlog1p(div2(s->rest, term_left(s, base))); }

FG_INLINE Map finish_map(const int op, const State *s, V2 factor, Base base) {
  const V nan = vset((T)__builtin_nan(""));
  Map map = {vset(0), vset(0), viset(-1), vset(0)};
  if (op == LOG_SOFTMAX) {
    const V2 log = log_rest(s, base);
    map.a = vdrop(s->gone, s->max);
    map.b = vdrop(s->gone, vsel(s->finite, log.h + log.l, nan));
    return map;
  }
  V2 sum = s->rest;
  V rest = sum.h;
  if (op != SOFTMAX) {
    const V2 left = term_left(s, base);
    const M vanished = veq(left.h, vset(0));
    sum = add2(sum, left);
    if (FG_UNLIKELY(vany(vanished))) { /* as in add_low, where sums come with low words */
      const V2 top = term2(exp_term(s->max - s->frame.shift, &s->frame, base));
      const V hi = top.h, others = vabs((sum.h - top.h) + (sum.l - top.l));
      const M alone = vanished & vlt(others, hi * vset((T)(FG_DOUBLE ? 0x1p-55 : 0x1p-26)));
      sum = (V2){vsel(alone, hi, sum.h), vdrop(alone, sum.l)};
      rest = vsel(alone, hi, rest);
    }
  }
  const V2 p = mul2(reciprocal2(sum), factor);
  map.a = vdrop(s->gone, vsel(s->finite, p.h, nan));
  map.b = vdrop(s->gone, vsel(vlt(vabs(p.h), vset((T)__builtin_inf())), p.l, vset(0))); /* of inf the tail is NaN */
  map.patch = vdrop(s->gone, -rest);
  return map;
}

/* Of LOGSUMEXP only where the maximum is finite: else the caller decides, having looked for NaN. */
FG_INLINE V finish_value(const int op, const State *s, Base base, V inv_t) {
  if (op == LOGSUMEXP) {
    const V2 log = log_rest(s, base), v = two_sum(s->max * inv_t, log.h);
    return v.h + (v.l + log.l);
  }
  V2 num = s->rest, den = term_left(s, base);
  const V gap = s->max - s->x_left;
  const M far = vlt(vset(FAR), gap);
  V apart = vset(0);
  if (vany(far)) {
    const V2 top = term2(exp_term(s->max - s->frame.shift, &s->frame, base));
    const V2 others = add2(add2(num, den), (V2){-top.h, -top.l});
    num = (V2){vsel(far, vmax(vset(0), others.h), num.h), vsel(far, vset(0), num.l)};
    den = (V2){vsel(far, top.h, den.h), vsel(far, top.l, den.l)};
    apart = vsel(far, gap, apart);
  }
  const V2 log = vlog1p(div2(num, den));
  return vdrop(s->gone, vsel(s->finite, apart + (log.h + log.l), vset((T)__builtin_nan(""))));
}

/* ---- rows: the lanes of a vector are neighbouring classes ----------------------------------------- */

/* Rows up to this size lag: their two lines of terms then still fit in L1 or a corner of L2. */
#define LAG_BYTES ((ptrdiff_t)64 << 10)

FG_INLINE T row_max(const int in, const void *x, ptrdiff_t n) {
  const V low = vset((T)-__builtin_inf());
  V a = low, b = low;
  ptrdiff_t c = 0;
  for (; c + 2 * LANES <= n; c += 2 * LANES) {
    a = vmax(line_load(in, x, c), a);
    b = vmax(line_load(in, x, c + LANES), b);
  }
  for (; c + LANES <= n; c += LANES) a = vmax(line_load(in, x, c), a);
  if (c < n) b = vmax(line_load_n(in, x, c, n - c, low), b);
  return vreduce_max(vmax(a, b));
}

FG_INLINE ptrdiff_t row_find(const int in, const void *x, ptrdiff_t n, T value) {
  const V v = vset(value);
  ptrdiff_t c = 0;
  for (; c + LANES <= n; c += LANES) {
    M hit = veq(line_load(in, x, c), v);
    if (vany(hit)) return c + vfirst_true(hit);
  }
  for (; c < n; c++)
    if (line_get(in, x, c) == value) return c;
  return -1;
}

/* The first NaN of a line, or -1. */
FG_INLINE ptrdiff_t first_nan(const int in, const void *x, ptrdiff_t n) {
  for (ptrdiff_t c = 0; c < n; c++) {
    const T v = line_get(in, x, c);
    if (v != v) return c;
  }
  return -1;
}

/* d = x - shift at the LANES classes from c on; a line of T has had its shift subtracted. */
FG_INLINE V shifted(const int in, V x, const Frame *frame) { return in == FG_NATIVE ? x : x - frame->shift; }

FG_INLINE void exp_span(const int keep, const int in, const void *d, ptrdiff_t from, ptrdiff_t to, const Frame *frame,
                        Base base, Sum *sum, T *terms, const void *ahead, const void *place) {
  ptrdiff_t c = from;
  for (; c + SUM_BLOCK * LANES <= to; c += SUM_BLOCK * LANES) {
#pragma GCC unroll 8
    for (int k = 0; k < SUM_BLOCK; k++) {
      const V v = shifted(in, line_load(in, d, c + k * LANES), frame);
      const V e = sum_add(sum, 0, exp_term(v, frame, base));
      if (keep) vstore(terms + c + k * LANES, e);
      FG_PREFETCH(line_at(in, ahead, c + k * LANES));
      FG_PREFETCH(line_at(in, place, c + k * LANES));
    }
    sum_flush(sum);
  }
  for (; c < to; c += LANES) {
    const V e = sum_add(sum, 0, exp_term(shifted(in, line_load(in, d, c), frame), frame, base));
    if (keep) vstore(terms + c, e);
    FG_PREFETCH(line_at(in, ahead, c));
    FG_PREFETCH(line_at(in, place, c));
  }
  sum_flush(sum);
}

/* Pass 2 over one row; the term `left` (or none: -1) is left out.  `terms` has room for a whole last vector;
 * `ahead`, the row to be read next, and `place`, where this row will be stored, are prefetched. */
FG_INLINE Sum exp_row(const int keep, const int in, const void *d, ptrdiff_t n, ptrdiff_t left, const Frame *frame,
                      Base base, T *terms, const void *ahead, const void *place) {
  const V low = vset((T)-__builtin_inf());
  const ptrdiff_t whole = n - n % LANES, hole = left < 0 ? n : left - left % LANES;
  Sum sum = sum_start();
  exp_span(keep, in, d, 0, hole < whole ? hole : whole, frame, base, &sum, terms, ahead, place);
  if (hole < whole) {
    T lane[LANES];
    vstore(lane, shifted(in, line_load(in, d, hole), frame));
    lane[left - hole] = (T)-__builtin_inf();
    const V e = sum_add(&sum, 0, exp_term(vload(lane), frame, base));
    if (keep) vstore(terms + hole, e);
    exp_span(keep, in, d, hole + LANES, whole, frame, base, &sum, terms, ahead, place);
  }
  if (whole < n) {
    V x = shifted(in, line_load_n(in, d, whole, n - whole, low), frame);
    if (hole == whole) {
      T lane[LANES];
      vstore(lane, x);
      lane[left - hole] = (T)-__builtin_inf();
      x = vload(lane);
    }
    const V e = sum_add(&sum, 0, exp_term(x, frame, base));
    if (keep) vstore(terms + whole, e);
  }
  return sum;
}

/* Pass 3 over one row, from `from` (terms or x) to `to`, fused with pass 1 of a later row if there is one (`joined`);
 * returns its maximum.  `later` and `to` are lines of the kind `half`. */
FG_INLINE T map_row(const int kind, const int in, const int half, const int joined, const int stream, const void *from,
                    ptrdiff_t n, Map m, V factor, void *to, const void *later) {
  const V low = vset((T)-__builtin_inf());
  const ptrdiff_t step = line_step(half);
  V max = low, max2 = low;
  ptrdiff_t c = 0;
  if (stream)
    for (const ptrdiff_t head = line_head(half, to, n); c < head;) {
      const ptrdiff_t k = head - c < LANES ? head - c : LANES;
      if (joined) max = vmax(line_load_n(half, later, c, k, low), max);
      line_store_n(half, to, c, k, map_apply(kind, line_load_n(in, from, c, k, low), m, factor));
      c += k;
    }
  for (; c + step <= n; c += step) {
    const V y = map_apply(kind, line_load(in, from, c), m, factor);
    const V z = step > LANES ? map_apply(kind, line_load(in, from, c + LANES), m, factor) : y;
    if (joined) max = vmax(line_load(half, later, c), max);
    if (joined && step > LANES) max2 = vmax(line_load(half, later, c + LANES), max2);
    line_store(half, to, c, y, z, stream);
  }
  for (ptrdiff_t k; c < n; c += k) {
    k = n - c < LANES ? n - c : LANES;
    if (joined) max = vmax(line_load_n(half, later, c, k, low), max);
    line_store_n(half, to, c, k, map_apply(kind, line_load_n(in, from, c, k, low), m, factor));
  }
  return joined ? vreduce_max(vmax(max, max2)) : 0;
}

/* map_row and its two choices that are made for every row; without a later row the result means nothing. */
FG_INLINE T last_pass(const int kind, const int in, const int half, const fg_run *run, const void *from, Map m,
                      V factor, void *to, const void *later) {
  const ptrdiff_t n = run->classes;
  if (run->stream)
    return later ? map_row(kind, in, half, 1, 1, from, n, m, factor, to, later)
                 : map_row(kind, in, half, 0, 1, from, n, m, factor, to, NULL);
  return later ? map_row(kind, in, half, 1, 0, from, n, m, factor, to, later)
               : map_row(kind, in, half, 0, 0, from, n, m, factor, to, NULL);
}

/* One row as a contiguous line: x itself where it is one and nothing is masked, a packed copy otherwise. */
FG_INLINE const void *row_line(const int half, const fg_run *run, ptrdiff_t r, T *packed, int *empty) {
  const char *x = run->x + r * run->x_row;
  *empty = 0;
  if (half != FG_NATIVE || (run->x_class == (ptrdiff_t)sizeof(T) && !run->where)) return x;
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

/* Values wait until there are LANES of them, and are then computed at once. */
typedef struct {
  int count;
  ptrdiff_t row[LANES];
  T rest_h[LANES], rest_l[LANES], top[LANES], max[LANES], x_left[LANES], shift[LANES], magic[LANES], bound[LANES];
  T nan[LANES]; /* LOGSUMEXP: NaN if the row has one and no finite maximum, else 0 */
} Pending;

FG_INLINE void pending_flush(const int op, Pending *p, const fg_run *run, Base base, V inv_t) {
  if (!p->count) return;
  State s;
  s.rest = (V2){vload(p->rest_h), vload(p->rest_l)};
  s.top = vload(p->top);
  s.max = vload(p->max);
  s.x_left = vload(p->x_left);
  s.finite = vlt(vabs(s.top), vset((T)__builtin_inf()));
  s.gone = vtruth(0);
  s.frame = (Frame){vload(p->shift), vload(p->magic), vload(p->bound)};
  V v = finish_value(op, &s, base, inv_t);
  if (op == LOGSUMEXP) v = vsel(s.finite, v, s.top + vload(p->nan));
  T value[LANES];
  vstore(value, v);
  if (has_target(op) && run->beta)
    for (int k = 0; k < p->count; k++) value[k] *= *at(run->beta, p->row[k] * run->beta_row);
  for (int k = 0; k < p->count; k++) *(T *)(run->value + p->row[k] * run->value_row) = value[k];
  p->count = 0;
}

FG_INLINE void pending_add(Pending *p, ptrdiff_t r, const State *s, T nan) {
  const int k = p->count++;
  p->row[k] = r;
  p->rest_h[k] = s->rest.h[0];
  p->rest_l[k] = s->rest.l[0];
  p->top[k] = s->top[0];
  p->max[k] = s->max[0];
  p->x_left[k] = s->x_left[0];
  p->shift[k] = s->frame.shift[0];
  p->magic[k] = s->frame.magic[0];
  p->bound[k] = s->frame.bound[0];
  p->nan[k] = nan;
}

/* x and `out` lie in memory as `half` says; if that is not FG_NATIVE, both are flat and nothing is masked. */
FG_INLINE void rows_as(const int op, const int half, const fg_run *run) {
  const int kind = op == LOG_SOFTMAX ? MAP_LOG : MAP_SCALE2, has_out = op != LOGSUMEXP && op != XENT;
  const int in = op == LOG_SOFTMAX ? half : FG_NATIVE; /* of what pass 3 reads */
  const ptrdiff_t n = run->classes, rows = run->rows, room = padded(n) + 64 / (ptrdiff_t)sizeof(T);
  const Base base = base_of(run);
  const V2 scale = scale_of(run);
  const V inv_t = vset((T)run->inv_temperature);
  T *const lines = (T *)run->scratch, *const packed = lines + 2 * room;
  const ptrdiff_t size = size_of(half);
  const int direct = half != FG_NATIVE || (run->x_class == size && !run->where);
  const int flat = half != FG_NATIVE || run->out_class == size;
  const ptrdiff_t lag = direct && flat && n * (ptrdiff_t)sizeof(T) <= LAG_BYTES;

  T max[2] = {0, 0}; /* of rows r and r + lag, known before their turn when x is read directly */
  Map map[2];
  Pending pending;
  memset(&pending, 0, sizeof pending);
  const void *from[2] = {NULL, NULL}; /* what row r & 1 is mapped from, or NULL if it is done */
  if (direct)
    for (ptrdiff_t r = 0; r <= lag && r < rows; r++) max[r & 1] = row_max(half, run->x + r * run->x_row, n);

  for (ptrdiff_t r = 0; r < rows + lag; r++) {
    const void *const later = direct && r + 1 + lag < rows ? run->x + (r + 1 + lag) * run->x_row : NULL;
    if (r < rows) {
      char *const out = run->out + r * run->out_row;
      char *const value = run->value + r * run->value_row;
      from[r & 1] = NULL;
      if (has_target(op) && run->target[r] < 0) {
        if (run->value) *(T *)value = 0;
        if (op == XENT_GRAD)
          for (ptrdiff_t c = 0; c < n; c++) memset(out + c * run->out_class, 0, (size_t)size);
      } else {
        int empty;
        const void *const x = row_line(half, run, r, packed, &empty);
        const T top = direct ? max[r & 1] : row_max(half, x, n);
        const int finite = top - top == 0;
        ptrdiff_t left = -1;
        if (has_target(op))
          left = run->target[r];
        else if (leaves_out(op) && finite)
          left = row_find(half, x, n, top);
        const T x_left = left < 0 ? 0 : line_get(half, x, left);
        State s;
        s.top = vset(top);
        s.max = vset(finite ? top : 0);
        s.x_left = vset(x_left);
        s.finite = vtruth(finite);
        s.gone = vtruth(empty);
        s.frame = frame_of(s.max, base);
        const void *d = x;
        if (half == FG_NATIVE && FG_UNLIKELY(s.frame.shift[0] != 0)) {
          for (ptrdiff_t c = 0; c < n; c++) packed[c] = ((const T *)x)[c] - s.frame.shift[0];
          d = packed;
        }
        /* Streamed stores want whole lines: the terms then lie at the offset of `out` from a 64-byte boundary. */
        const uintptr_t offset = run->stream ? ((uintptr_t)out & 63) / (size_t)size % (64 / sizeof(T)) : 0;
        T *const terms = keeps_terms(op) ? lines + (lag ? r & 1 : 0) * room + offset : NULL;
        const void *const place = keeps_terms(op) && flat && !run->stream ? out : d, *const ahead = later ? later : d;
        s.rest = sum_lanes(exp_row(keeps_terms(op), half, d, n, left, &s.frame, base, terms, ahead, place));
        if (left < 0 || x_left < top) s.rest = add_low(s.rest, s.max, &s.frame, base);
        if (has_value(op) && run->value) {
          const int nan = op == LOGSUMEXP && !finite && first_nan(half, x, n) >= 0;
          pending_add(&pending, r, &s, nan ? (T)__builtin_nan("") : 0);
          if (pending.count == LANES) pending_flush(op, &pending, run, base, inv_t);
        }
        if (has_out) {
          V2 factor = scale;
          if (op != LOG_SOFTMAX && run->alpha)
            factor = mul2((V2){vset(*at(run->alpha, r * run->alpha_row)), vset(0)}, scale);
          map[r & 1] = finish_map(op, &s, factor, base);
          if (op == XENT_GRAD) terms[left] = map[r & 1].patch[0];
        }
        if (has_out) from[r & 1] = op == LOG_SOFTMAX ? x : (const void *)terms;
        if (op == LOG_SOFTMAX && x == packed) map[r & 1].a = map[r & 1].a - s.frame.shift; /* shifted in place */
      }
    }
    const ptrdiff_t done = r - lag;
    if (has_out && done >= 0 && from[done & 1]) {
      char *const out = run->out + done * run->out_row;
      const void *const f = from[done & 1];
      const Map m = map[done & 1];
      if (!flat) {
        map_row(kind, in, FG_NATIVE, 0, 0, f, n, m, inv_t, packed, NULL);
        for (ptrdiff_t c = 0; c < n; c++) *(T *)(out + c * run->out_class) = packed[c];
        if (later) max[(r + 1 + lag) & 1] = row_max(half, later, n);
      } else {
        const T top = last_pass(kind, in, half, run, f, m, inv_t, out, later);
        if (later) max[(r + 1 + lag) & 1] = top;
      }
    } else if (later) {
      max[(r + 1 + lag) & 1] = row_max(half, later, n);
    }
  }
  pending_flush(op, &pending, run, base, inv_t);
  if (run->stream) vfence();
}

/* ---- lanes: a row per lane -------------------------------------------------------------------------- */

/* A group of LANES rows between pass 2 and pass 3. */
typedef struct {
  State state;
  Sum sum;
  VI left;
} Group;

/* Groups in step at most; four need the 32 registers of AVX-512. */
#define SIDE (sizeof(V) == 64 ? 4 : 2)

/* Passes 1 and 2 of `several` neighbouring groups in step: a short row is a chain of latencies, and several
 * chains side by side take little longer than one. */
FG_INLINE void lanes_exp(const int op, const int several, const fg_run *run, ptrdiff_t first, ptrdiff_t rows, T *tile,
                         const T *empty, Base base, Group *group) {
  const ptrdiff_t n = run->classes, stride = n * LANES;
  const V low = vset((T)-__builtin_inf());
  V max[4], x_left[4];
  VI left[4];
  Frame frame[4];
  Sum sum[4];
  for (int u = 0; u < several; u++) {
    max[u] = low;
    x_left[u] = vset(0);
    left[u] = viset(-1);
    group[u].state.gone = empty ? veq(vload(empty + u * LANES), vset(1)) : vtruth(0);
    if (has_target(op)) {
      const int64_t *const target = run->target + first + u * LANES;
      const ptrdiff_t here = rows - u * LANES;
      if (here >= LANES) {
        left[u] = viload_wide(target);
      } else {
        int64_t t[LANES];
        for (ptrdiff_t l = 0; l < LANES; l++) t[l] = target[l < here ? l : 0];
        left[u] = viload_wide(t);
      }
      group[u].state.gone = vieq(left[u], viset(-1));
    }
  }
  VI class = viset(0);
  for (ptrdiff_t c = 0; c < n; c++, class += viset(1))
    for (int u = 0; u < several; u++) {
      const V x = vload(tile + u * stride + c * LANES);
      if (has_target(op)) x_left[u] = vsel(vieq(left[u], class), x, x_left[u]);
      if (op == LOG_SOFTMAX || op == LOGSUMEXP) left[u] = visel(vlt(max[u], x), class, left[u]);
      max[u] = vmax(x, max[u]);
    }
  for (int u = 0; u < several; u++) {
    State *const s = &group[u].state;
    s->top = max[u];
    s->finite = vlt(vabs(max[u]), vset((T)__builtin_inf()));
    s->max = vsel(s->finite, max[u], vset(0));
    s->x_left = has_target(op) ? x_left[u] : s->max;
    s->frame = frame[u] = frame_of(s->max, base);
    sum[u] = sum_start();
  }
  class = viset(0);
  for (ptrdiff_t c = 0; c < n;) {
    const ptrdiff_t end = c + 2 * SUM_BLOCK < n ? c + 2 * SUM_BLOCK : n;
    for (; c < end; c++, class += viset(1))
      for (int u = 0; u < several; u++) {
        T *const at_class = tile + u * stride + c * LANES;
        V d = vload(at_class) - frame[u].shift;
        if (leaves_out(op)) d = vsel(vieq(left[u], class), low, d);
        const V e = sum_add(&sum[u], op != SOFTMAX, exp_term(d, &frame[u], base));
        if (keeps_terms(op)) vstore(at_class, e);
      }
    for (int u = 0; u < several; u++) sum_flush(&sum[u]);
  }
  for (int u = 0; u < several; u++) {
    group[u].sum = sum[u];
    group[u].left = left[u];
  }
}

FG_INLINE Map lanes_map(const int op, const fg_run *run, ptrdiff_t first, ptrdiff_t rows, const Group *group, T *tile,
                        V2 scale, Base base) {
  V2 factor = scale;
  if (op != LOG_SOFTMAX && run->alpha) {
    T alpha[LANES];
    for (ptrdiff_t l = 0; l < LANES; l++) alpha[l] = *at(run->alpha, (first + (l < rows ? l : 0)) * run->alpha_row);
    factor = mul2((V2){vload(alpha), vset(0)}, scale);
  }
  Map map = finish_map(op, &group->state, factor, base);
  map.target = group->left;
  if (op == XENT_GRAD && FG_UNLIKELY(vany(group->state.gone))) /* 0 * NaN is not 0 */
    for (ptrdiff_t c = 0; c < run->classes; c++)
      vstore(tile + c * LANES, vdrop(group->state.gone, vload(tile + c * LANES)));
  return map;
}

FG_INLINE int has_nan(const char *x, ptrdiff_t step, ptrdiff_t n) {
  int nan = 0;
  for (ptrdiff_t c = 0; c < n; c++) {
    T v = *(const T *)(x + c * step);
    nan |= v != v;
  }
  return nan;
}

FG_INLINE void lanes_value(const int op, const fg_run *run, ptrdiff_t first, ptrdiff_t rows, const State *s,
                           const T *tile, Base base, V inv_t) {
  V v = finish_value(op, s, base, inv_t);
  T lane[LANES];
  if (has_target(op) && run->beta) {
    for (ptrdiff_t l = 0; l < LANES; l++) lane[l] = *at(run->beta, (first + (l < rows ? l : 0)) * run->beta_row);
    v = vdrop(s->gone, v * vload(lane));
  }
  if (op == LOGSUMEXP) {
    T top[LANES];
    vstore(lane, vsel(s->finite, v, s->top));
    vstore(top, s->top);
    for (ptrdiff_t l = 0; l < LANES; l++)
      if (FG_UNLIKELY(top[l] - top[l] != 0) && has_nan((const char *)(tile + l), sizeof(V), run->classes))
        lane[l] = (T)__builtin_nan("");
    v = vload(lane);
  }
  char *const value = run->value + first * run->value_row;
  if (rows == LANES && run->value_row == (ptrdiff_t)sizeof(T)) {
    vstore((T *)value, v);
  } else {
    vstore(lane, v);
    for (ptrdiff_t l = 0; l < rows; l++) *(T *)(value + l * run->value_row) = lane[l];
  }
}

/* Halves go through `wide`, flat rows of T. */
FG_INLINE void lanes_load(const fg_run *run, ptrdiff_t first, ptrdiff_t rows, T *tile, T *empty, T *wide) {
  const char *const x = run->x + first * run->x_row;
#if !FG_DOUBLE
  if (run->half != FG_NATIVE) {
    const ptrdiff_t n = run->classes;
    const int joined = run->x_row == 2 * n;
    FG_NAME(widen)(run->half, x, run->x_row, 2, joined ? 1 : rows, joined ? rows * n : n, wide, n);
    pack((const char *)wide, n * (ptrdiff_t)sizeof(T), sizeof(T), rows, n, tile);
    return;
  }
#else
  (void)wide;
#endif
  pack(x, run->x_row, run->x_class, rows, run->classes, tile);
  if (run->where) {
    const char *const w = run->where + first * run->where_row;
    FG_NAME(mask_tile)(w, run->where_row, run->where_class, rows, run->classes, (T)-__builtin_inf(), tile, empty);
  }
}

FG_INLINE void lanes_store(const int op, const fg_run *run, ptrdiff_t first, ptrdiff_t rows, const T *tile,
                           const Map *map, T *wide) {
  const int kind = op == LOG_SOFTMAX ? MAP_LOG : op == XENT_GRAD ? MAP_TARGET : MAP_SCALE2;
  const T inv_t = (T)run->inv_temperature;
  char *const out = run->out + first * run->out_row;
#if !FG_DOUBLE
  if (run->half != FG_NATIVE) {
    const ptrdiff_t n = run->classes;
    const int joined = run->out_row == 2 * n;
    unpack_as(kind, tile, map, inv_t, (char *)wide, n * (ptrdiff_t)sizeof(T), sizeof(T), rows, n, 0);
    FG_NAME(narrow)(run->half, wide, n, out, run->out_row, 2, joined ? 1 : rows, joined ? rows * n : n, run->stream);
    return;
  }
#else
  (void)wide;
#endif
  unpack_as(kind, tile, map, inv_t, out, run->out_row, run->out_class, rows, run->classes, run->stream);
}

FG_INLINE void lanes_as(const int op, const fg_run *run) {
  const int has_out = op != LOGSUMEXP && op != XENT;
  const ptrdiff_t n = run->classes, most = tile_groups(n, run->stream);
  const Base base = base_of(run);
  const V2 scale = scale_of(run);
  const V inv_t = vset((T)run->inv_temperature);
  T *const tile = (T *)run->scratch, *const wide = tile + most * n * LANES;
  T empty[GROUPS_MAX * LANES];
  Map map[GROUPS_MAX];
  const int side = op == SOFTMAX ? SIDE : 2;
  /* Transposing a group keeps other ports busy than its arithmetic does: do them side by side.  Where
   * neighbouring rows are contiguous, memory wants several groups of one class at a time instead. */
  const int by_group = run->half != FG_NATIVE ||
                       (run->x_class == (ptrdiff_t)sizeof(T) && (!has_out || run->out_class == (ptrdiff_t)sizeof(T)));

  /* Streamed stores want `out` aligned: where neighbouring rows are contiguous, a first, short tile sees to that. */
  const uintptr_t apart = (uintptr_t)run->out & 63;
  const int aligns = run->stream && !by_group && apart && run->out_class % 64 == 0;
  const ptrdiff_t head = aligns ? (ptrdiff_t)(64 - apart) / (ptrdiff_t)sizeof(T) : 0;
  for (ptrdiff_t first = 0, rows; first < run->rows; first += rows) {
    rows = first == 0 && head ? head : most * LANES;
    if (rows > run->rows - first) rows = run->rows - first;
    const ptrdiff_t groups = (rows + LANES - 1) / LANES;
    if (!by_group) lanes_load(run, first, rows, tile, empty, wide);
    for (ptrdiff_t g = 0, several; g < groups; g += several) {
      const ptrdiff_t from = first + g * LANES, left = rows - g * LANES;
      several = g + side <= groups ? side : 1;
      const ptrdiff_t together = left < several * LANES ? left : several * LANES;
      T *const mine = tile + g * n * LANES, *const mask = empty + g * LANES;
      Group group[4];
      if (by_group) lanes_load(run, from, together, mine, mask, wide);
      if (several == side)
        lanes_exp(op, side, run, from, left, mine, run->where ? mask : NULL, base, group);
      else
        lanes_exp(op, 1, run, from, left, mine, run->where ? mask : NULL, base, group);
      for (int u = 0; u < several; u++) {
        const ptrdiff_t here = left - u * LANES < LANES ? left - u * LANES : LANES;
        State *const s = &group[u].state;
        s->rest = sum_value(group[u].sum);
        if (op == SOFTMAX) s->rest = add_low(s->rest, s->max, &s->frame, base);
        if (has_value(op) && run->value)
          lanes_value(op, run, from + u * LANES, here, s, mine + u * n * LANES, base, inv_t);
        if (has_out)
          map[g + u] = lanes_map(op, run, from + u * LANES, here, &group[u], mine + u * n * LANES, scale, base);
      }
      if (has_out && by_group) lanes_store(op, run, from, together, mine, map + g, wide);
    }
    if (has_out && !by_group) lanes_store(op, run, first, rows, tile, map, wide);
  }
  if (run->stream) vfence();
}

#define SOFTMAX_KERNEL(name, op)                                                          \
  FG_KERNEL void FG_NAME(name##_rows)(const fg_run *run) { rows_as(op, FG_NATIVE, run); } \
  OF_HALVES(name##_rows, rows_as(op, FG_FLOAT16, run), rows_as(op, FG_BFLOAT16, run))     \
  FG_KERNEL void FG_NAME(name##_lanes)(const fg_run *run) { lanes_as(op, run); }
SOFTMAX_KERNEL(softmax, SOFTMAX)
SOFTMAX_KERNEL(log_softmax, LOG_SOFTMAX)
SOFTMAX_KERNEL(logsumexp, LOGSUMEXP)
SOFTMAX_KERNEL(cross_entropy, XENT)
SOFTMAX_KERNEL(cross_entropy_grad, XENT_GRAD)

/* ---- lines: the same for rows at any addresses, of any lengths ---------------------------------------- */

/* What is behind the end of a line is -inf: a term of 0, which changes no bit. */
FG_INLINE void lines_load(const T *const *x, const ptrdiff_t *size, ptrdiff_t least, ptrdiff_t most, ptrdiff_t n,
                          T *tile) {
  const ptrdiff_t whole = least & ~(ptrdiff_t)3;
  V v[4];
  for (ptrdiff_t c = 0; c < whole; c += 4) {
    vgather4_at(x, c, v);
    for (int k = 0; k < 4; k++) vstore(tile + (c + k) * LANES, v[k]);
  }
  const int even = least == most && whole;
  for (ptrdiff_t c = even ? least : whole; c < n; c++) vstore(tile + c * LANES, vset((T)-__builtin_inf()));
  if (even && whole < least) { /* overlapping the block before */
    vgather4_at(x, least - 4, v);
    for (int k = 0; k < 4; k++) vstore(tile + (least - 4 + k) * LANES, v[k]);
  } else if (!even) {
    for (int l = 0; l < LANES; l++)
      for (ptrdiff_t c = whole; c < size[l]; c++) tile[c * LANES + l] = x[l][c];
  }
}

FG_INLINE void lines_store(const int kind, const T *tile, const Map *m, V factor, ptrdiff_t lines,
                           const ptrdiff_t *size, ptrdiff_t least, ptrdiff_t most, T *const *out) {
  const ptrdiff_t whole = lines < LANES ? 0 : least & ~(ptrdiff_t)3;
  V v[4];
  for (ptrdiff_t c = 0; c < whole; c += 4) {
    for (int k = 0; k < 4; k++) v[k] = map_class(kind, tile, c + k, m, factor);
    vscatter4_at(out, c, v);
  }
  if (least == most && whole) {
    for (int k = 0; k < 4; k++) v[k] = map_class(kind, tile, least - 4 + k, m, factor);
    if (whole < least) vscatter4_at(out, least - 4, v);
    return;
  }
  for (ptrdiff_t c = whole; c < most; c++) {
    T lane[LANES];
    vstore(lane, map_class(kind, tile, c, m, factor));
    for (ptrdiff_t l = 0; l < lines; l++)
      if (c < size[l]) out[l][c] = lane[l];
  }
}

FG_INLINE void lines_as(const int op, const fg_run *given, const fg_lines *all) {
  const int has_out = op != LOGSUMEXP, kind = op == LOG_SOFTMAX ? MAP_LOG : MAP_SCALE2;
  const int side = op == SOFTMAX ? SIDE : 2;
  fg_run run = *given;
  const Base base = base_of(&run);
  const V2 scale = scale_of(&run);
  const V inv_t = vset((T)run.inv_temperature);
  T *const tile = (T *)run.scratch;
  for (ptrdiff_t first = 0, several; first < all->lines; first += several * LANES) {
    const ptrdiff_t left = all->lines - first;
    several = left > (side - 1) * LANES ? side : 1;
    fg_lines these = {several * LANES, all->x + first, all->out + first, all->size + first};
    const char *x[4 * LANES];
    char *out[4 * LANES];
    ptrdiff_t size[4 * LANES], least[4], most[4], n = 0;
    if (left < these.lines) { /* lanes without a line repeat the last */
      for (ptrdiff_t k = 0; k < these.lines; k++) {
        const ptrdiff_t at = k < left ? k : left - 1;
        x[k] = these.x[at], size[k] = these.size[at];
        if (has_out) out[k] = these.out[at];
      }
      these = (fg_lines){these.lines, x, out, size};
    }
    for (int u = 0; u < several; u++) {
      const ptrdiff_t *const of = these.size + u * LANES;
      ptrdiff_t low = of[0], high = of[0];
      for (int l = 1; l < LANES; l++) {
        low = low < of[l] ? low : of[l];
        high = high > of[l] ? high : of[l];
      }
      least[u] = low, most[u] = high;
      n = n > high ? n : high;
    }
    run.classes = n;
    for (int u = 0; u < several; u++)
      lines_load((const T *const *)these.x + u * LANES, these.size + u * LANES, least[u], most[u], n,
                 tile + u * n * LANES);
    for (ptrdiff_t k = several * LANES; k < 2 * several * LANES && k < left; k++) {
      FG_PREFETCH(all->x[first + k]);
      if (has_out) FG_PREFETCH_WRITE(all->out[first + k]);
    }
    Group group[4];
    if (several == side)
      lanes_exp(op, side, &run, first, left, tile, NULL, base, group);
    else
      lanes_exp(op, 1, &run, first, left, tile, NULL, base, group);
    for (int u = 0; u < several; u++) {
      const ptrdiff_t from = first + u * LANES, here = left - u * LANES < LANES ? left - u * LANES : LANES;
      T *const mine = tile + u * n * LANES;
      State *const s = &group[u].state;
      s->rest = sum_value(group[u].sum);
      if (op == SOFTMAX) s->rest = add_low(s->rest, s->max, &s->frame, base);
      if (has_value(op)) lanes_value(op, &run, from, here, s, mine, base, inv_t);
      if (has_out) {
        const Map map = lanes_map(op, &run, from, here, &group[u], mine, scale, base);
        lines_store(kind, mine, &map, inv_t, here, these.size + u * LANES, least[u], most[u],
                    (T *const *)these.out + u * LANES);
      }
    }
  }
}

FG_KERNEL void FG_NAME(softmax_lines)(const fg_run *run, const fg_lines *lines) { lines_as(SOFTMAX, run, lines); }
FG_KERNEL void FG_NAME(log_softmax_lines)(const fg_run *run, const fg_lines *lines) {
  lines_as(LOG_SOFTMAX, run, lines);
}
FG_KERNEL void FG_NAME(logsumexp_lines)(const fg_run *run, const fg_lines *lines) { lines_as(LOGSUMEXP, run, lines); }
