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
 * `out` is written once.  Three rows are under way: while row i is exponentiated, row i - 1 is scaled and stored and
 * the maximum of row i + 1 (i + 2 where rows are short) is taken, a few vectors of each in turn.  Arithmetic, loads and
 * stores then overlap, and no row waits for the latency of its own sum or maximum.  The `lanes` kernels keep a tile, or
 * three of them, under way in the same manner.
 *
 * Rows without a finite maximum: NaN, but logsumexp is the maximum unless a NaN is present.
 */
#define FAR ((T)(FG_DOUBLE ? 64 : 32))

enum { SOFTMAX, LOG_SOFTMAX, LOGSUMEXP, XENT, XENT_GRAD };
FG_INLINE int has_target(const int op) { return op == XENT || op == XENT_GRAD; }
FG_INLINE int leaves_out(const int op) { return op != SOFTMAX; }
FG_INLINE int leaves_largest(const int op) { return leaves_out(op) && !has_target(op); }
FG_INLINE int keeps_terms(const int op) { return op == SOFTMAX || op == XENT_GRAD; }
FG_INLINE int has_out(const int op) { return op != LOGSUMEXP && op != XENT; }
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

/* Terms that do not depend on the sum; who computes them before it lets nobody wait for them. */
typedef struct {
  Term largest;
  V2 left; /* the term left out */
} Known;

/* Rows between pass 2 and pass 3; every field has one lane per row, or one row broadcast. */
typedef struct {
  V2 rest;        /* sum of the terms but the one left out */
  V top, max;     /* the maximum; the same, 0 if not finite */
  V x_left;       /* logit of the term left out */
  V ties;         /* lanes and blocks: how many terms are the largest, where that one is left out */
  M finite, gone; /* is the maximum finite; is the row ignored or wholly masked */
  Frame frame;
  Known known; /* lanes and blocks */
} State;

/* A sum taken without low words gets that of its largest term, the only one that can show; not if that term is all
 * there is, which then has a share of exactly 1. */
FG_INLINE V2 add_low(V2 sum, Term e) {
  const M alone = veq(sum.h, e.hi * e.power) & veq(sum.l, vset(0));
  return (V2){sum.h, vsel(alone, vset(0), vmla(e.lo, e.power, sum.l))};
}

FG_INLINE Term term_largest(const State *s, Base base) { return exp_term(s->max - s->frame.shift, &s->frame, base); }
FG_INLINE V2 term_left(const State *s, Base base) {
  return term2(exp_term(s->x_left - s->frame.shift, &s->frame, base));
}

/* Of `several` states abreast: of two at most where they have a target. */
FG_INLINE void known_terms(const int op, const int several, State *const *s, Base base) {
  const int both = has_target(op), all = both ? 2 * several : several;
  V d[ABREAST_MAX];
  Term e[ABREAST_MAX];
  const Frame *frame[ABREAST_MAX];
  FG_UNROLL (k, all, 1) {
    const State *const of = s[k % several];
    frame[k] = &of->frame;
    d[k] = (k < several ? of->max : of->x_left) - of->frame.shift;
  }
  exp_terms(all, d, frame, base, e);
  FG_UNROLL (u, several, 1) {
    s[u]->known = (Known){e[u], term2(e[both ? several + u : u])};
  }
}

/* log(S / e_left) >= 0, as log1p of what was left in the sum. */
FG_INLINE V2 log_rest(const State *s, V2 left) { return vlog1p(div2(s->rest, left)); }

/* `left` is the term left out, here and below; softmax has none and does not look. */
FG_INLINE Map finish_map(const int op, const State *s, V2 left, V2 factor, Base base) {
  const V nan = vset((T)__builtin_nan(""));
  Map map = {vset(0), vset(0), viset(-1), vset(0)};
  if (op == LOG_SOFTMAX) {
    const V2 log = log_rest(s, left);
    map.a = vdrop(s->gone, s->max);
    map.b = vdrop(s->gone, vsel(s->finite, log.h + log.l, nan));
    return map;
  }
  V2 sum = s->rest;
  V rest = sum.h;
  if (op != SOFTMAX) {
    const M vanished = veq(left.h, vset(0));
    sum = add2(sum, left);
    if (FG_UNLIKELY(vany(vanished))) { /* as in add_low: what all but stands alone has a share of exactly 1 */
      const V2 top = term2(term_largest(s, base));
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
FG_INLINE V finish_value(const int op, const State *s, V2 left, Base base, V inv_t) {
  if (op == LOGSUMEXP) {
    const V2 log = log_rest(s, left), v = two_sum(s->max * inv_t, log.h);
    return v.h + (v.l + log.l);
  }
  V2 num = s->rest, den = left;
  const V gap = s->max - s->x_left;
  const M far = vlt(vset(FAR), gap);
  V apart = vset(0);
  if (vany(far)) {
    const V2 top = term2(term_largest(s, base));
    const V2 others = add2(add2(num, den), (V2){-top.h, -top.l});
    num = (V2){vsel(far, vmax(vset(0), others.h), num.h), vsel(far, vset(0), num.l)};
    den = (V2){vsel(far, top.h, den.h), vsel(far, top.l, den.l)};
    apart = vsel(far, gap, apart);
  }
  const V2 log = vlog1p(div2(num, den));
  return vdrop(s->gone, vsel(s->finite, apart + (log.h + log.l), vset((T)__builtin_nan(""))));
}

/* ---- rows: the lanes of a vector are neighbouring classes ----------------------------------------- */

/* Of rows up to this size the maximum is known two rows before its turn. */
#define EARLY_BYTES ((ptrdiff_t)64 << 10)

/* The maximum so far of a line whose classes before `c` have been seen. */
typedef struct {
  V a, b;
} Max;
FG_INLINE Max max_start(void) { return (Max){vset((T)-__builtin_inf()), vset((T)-__builtin_inf())}; }

FG_INLINE V max_lanes(const int in, const void *x, ptrdiff_t c, ptrdiff_t n, Max m) {
  const V low = vset((T)-__builtin_inf());
  for (; c + 2 * LANES <= n; c += 2 * LANES) {
    m.a = vmax(line_load(in, x, c), m.a);
    m.b = vmax(line_load(in, x, c + LANES), m.b);
  }
  for (; c + LANES <= n; c += LANES) m.a = vmax(line_load(in, x, c), m.a);
  if (c < n) m.b = vmax(line_load_n(in, x, c, n - c, low), m.b);
  return vmax(m.a, m.b);
}
FG_INLINE T max_from(const int in, const void *x, ptrdiff_t c, ptrdiff_t n, Max m) {
  return vreduce_max(max_lanes(in, x, c, n, m));
}
FG_INLINE T row_max(const int in, const void *x, ptrdiff_t n) { return max_from(in, x, 0, n, max_start()); }

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

/* Where a row lies. */
typedef struct {
  const char *x;
  char *out;
  ptrdiff_t n;
} Line;

/* What pass 2 needs of a row. */
typedef struct {
  const void *d;  /* x, or a line of T that is x - shift already */
  ptrdiff_t n;    /* classes */
  ptrdiff_t left; /* the term left out, or -1 */
  Frame frame;
  T *terms; /* room for a whole last vector; NULL if nobody wants them */
} Exp;

/* ... and pass 3. */
typedef struct {
  const void *from; /* terms or x; NULL if there is nothing to do */
  void *to;
  ptrdiff_t n;
  Map map;
  Edge *edge; /* of rows that are streamed */
} Out;

/* A term of 0 at element `left` of several vectors; -1 and less, and what lies behind them, is none of theirs. */
FG_INLINE void omit_term(ptrdiff_t left, const int several, V *d) {
  if (FG_UNLIKELY((size_t)left < (size_t)several * LANES)) {
    T lane[ABREAST_MAX * LANES];
    FG_UNROLL (k, several, 1) vstore(lane + k * LANES, d[k]);
    lane[left] = (T)-__builtin_inf();
    FG_UNROLL (k, several, 1) d[k] = vload(lane + k * LANES);
  }
}

/* Vectors of a row that are begun at once, before as many before them are ended (exp_begin).  Four are too many for the
 * registers, one leaves too little to do. */
#define PAIR 2
_Static_assert(PAIR == 2 && SUM_BLOCK % PAIR == 0, "three_rows has two maxima and stores a whole line of halves");

FG_INLINE void exp_vectors_begin(const int in, const int several, const Exp *row, ptrdiff_t c, Base base, Begun *b) {
  V d[ABREAST_MAX];
  const Frame *frame[ABREAST_MAX];
  FG_UNROLL (k, several, 1) {
    d[k] = shifted(in, line_load(in, row->d, c + k * LANES), &row->frame);
    frame[k] = &row->frame;
  }
  omit_term(row->left - c, several, d);
  exp_begin(several, d, frame, base, b);
}

FG_INLINE void exp_vectors_end(const int keep, const int several, const Exp *row, ptrdiff_t c, const Begun *b,
                               Sum *sum) {
  Term e[ABREAST_MAX];
  exp_end(several, b, e);
  FG_UNROLL (k, several, 1) {
    const V term = sum_add(sum, 0, e[k]);
    if (keep) vstore(row->terms + c + k * LANES, term);
  }
}

/* Pass 2 over the classes from c on, c a multiple of SUM_BLOCK * LANES; the lines `ahead` and `place`, which are read
 * and stored next, are prefetched (or d again, for nothing). */
FG_INLINE void exp_from(const int keep, const int in, const Exp *row, ptrdiff_t c, Base base, Sum *sum,
                        const void *ahead, const void *place) {
  const ptrdiff_t n = row->n, block = SUM_BLOCK * LANES, pair = PAIR * LANES;
  Begun begun;
  if (c + pair <= n) exp_vectors_begin(in, PAIR, row, c, base, &begun);
  for (; c + pair <= n; c += pair) {
    const Begun ready = begun;
    if (c + 2 * pair <= n) exp_vectors_begin(in, PAIR, row, c + pair, base, &begun);
    exp_vectors_end(keep, PAIR, row, c, &ready, sum);
    if ((c + pair) % block == 0) sum_flush(sum);
    FG_UNROLL (k, PAIR, 1) {
      FG_PREFETCH(line_at(in, ahead, c + k * LANES));
      FG_PREFETCH(line_at(in, place, c + k * LANES));
    }
  }
  if (c + LANES <= n) {
    exp_vectors_begin(in, 1, row, c, base, &begun);
    exp_vectors_end(keep, 1, row, c, &begun, sum);
    FG_PREFETCH(line_at(in, ahead, c));
    FG_PREFETCH(line_at(in, place, c));
    c += LANES;
  }
  if (c < n) {
    const V low = vset((T)-__builtin_inf());
    V x = shifted(in, line_load_n(in, row->d, c, n - c, low), &row->frame);
    omit_term(row->left - c, 1, &x);
    const V term = sum_add(sum, 0, exp_term(x, &row->frame, base));
    if (keep) vstore(row->terms + c, term);
  }
  sum_flush(sum);
}

FG_INLINE Sum exp_row(const int keep, const int in, const void *d, ptrdiff_t n, ptrdiff_t left, const Frame *frame,
                      Base base, T *terms, const void *ahead, const void *place) {
  const Exp row = {d, n, left, *frame, terms};
  Sum sum = sum_start();
  exp_from(keep, in, &row, 0, base, &sum, ahead, place);
  return sum;
}

/* Pass 3 over a row that is streamed, up to its first whole line; the driver streams no row of less than two. */
FG_INLINE ptrdiff_t map_head(const int kind, const int from_kind, const int to_kind, const Out *row, V factor) {
  const V low = vset((T)-__builtin_inf());
  const ptrdiff_t head = line_head(to_kind, row->to, row->n);
  void *const to = edge_head(row->edge, row->to);
  for (ptrdiff_t c = 0, k; c < head; c += k) {
    k = head - c < LANES ? head - c : LANES;
    line_store_n(to_kind, to, c, k, map_apply(kind, line_load_n(from_kind, row->from, c, k, low), row->map, factor));
  }
  if (to != row->to) edge_stream(row->edge);
  return head;
}

FG_INLINE void map_vectors(const int kind, const int from_kind, const int to_kind, const int stream, const int several,
                           const Out *row, ptrdiff_t c, V factor) {
  const ptrdiff_t step = line_step(to_kind);
  FG_UNROLL (k, several, (int)(step / LANES)) {
    const ptrdiff_t here = c + k * LANES;
    const V y = map_apply(kind, line_load(from_kind, row->from, here), row->map, factor);
    const V z = step > LANES ? map_apply(kind, line_load(from_kind, row->from, here + LANES), row->map, factor) : y;
    line_store(to_kind, row->to, here, y, z, stream);
  }
}

/* Pass 3 from class c on; if it is streamed, a line begins there. */
FG_INLINE void map_from(const int kind, const int from_kind, const int to_kind, const int stream, const Out *row,
                        ptrdiff_t c, V factor) {
  const V low = vset((T)-__builtin_inf());
  const ptrdiff_t n = row->n, step = line_step(to_kind), line = 64 / size_of(to_kind);
  const ptrdiff_t end = stream ? c + (n - c) / line * line : n;
  for (; c + step <= end; c += step) map_vectors(kind, from_kind, to_kind, stream, (int)(step / LANES), row, c, factor);
  void *to = row->to;
  if (stream) to = edge_tail(row->edge, (char *)to + end * size_of(to_kind), (n - end) * size_of(to_kind));
  for (ptrdiff_t k; c < n; c += k) {
    k = n - c < LANES ? n - c : LANES;
    line_store_n(to_kind, to, stream ? c - end : c, k,
                 map_apply(kind, line_load_n(from_kind, row->from, c, k, low), row->map, factor));
  }
}

FG_INLINE void map_row(const int kind, const int from_kind, const int to_kind, const int stream, const Out *row,
                       V factor) {
  const ptrdiff_t c = stream ? map_head(kind, from_kind, to_kind, row, factor) : 0;
  map_from(kind, from_kind, to_kind, stream, row, c, factor);
}

/* Pass 2 over a row, pass 3 over one before it (if `maps`), pass 1 over one after it, whose maximum is returned: a few
 * vectors of each in turn, so that loads, arithmetic and stores are under way at any time.  x lies in memory as `half`
 * says, and so does `out`; pass 3 reads lines of `from_kind`. */
FG_INLINE T three_rows(const int keep, const int kind, const int from_kind, const int half, const int maps,
                       const int stream, const Exp *row, const Out *before, const Line *after, Base base, V factor,
                       Sum *sum) {
  const void *const later = after->x;
  const ptrdiff_t block = SUM_BLOCK * LANES, pair = PAIR * LANES;
  const ptrdiff_t line = 64 / size_of(half); /* `head` is less than one */
  /* Into L2 and into L1: the hardware starts anew at every page, and what waits for memory to fill L1 keeps streamed
   * stores waiting. */
  const ptrdiff_t far = fg_ahead, near = far / 4;
  const ptrdiff_t head = maps && stream ? map_head(kind, from_kind, half, before, factor) : 0;
  ptrdiff_t common = row->n < after->n ? row->n : after->n, c = 0;
  if (maps && before->n < common) common = before->n;
  Max max = max_start();
  Begun begun; /* in the end two vectors that exp_from begins anew */
  if (block + pair + line <= common) exp_vectors_begin(half, PAIR, row, 0, base, &begun);
  for (; c + block + pair + line <= common; c += block) {
    FG_UNROLL (k, SUM_BLOCK, PAIR) {
      const ptrdiff_t at = c + k * LANES;
      const Begun ready = begun;
      exp_vectors_begin(half, PAIR, row, at + pair, base, &begun);
      exp_vectors_end(keep, PAIR, row, at, &ready, sum);
      if (maps) map_vectors(kind, from_kind, half, stream, PAIR, before, at + head, factor);
      max.a = vmax(line_load(half, later, at), max.a);
      max.b = vmax(line_load(half, later, at + LANES), max.b);
      FG_UNROLL (j, PAIR, half == FG_NATIVE ? 1 : 2) {
        const char *const read = (const char *)line_at(half, later, at + j * LANES);
        FG_PREFETCH(read + near);
        FG_PREFETCH_L2(read + far);
      }
      if (maps && !stream) { /* where the next block will go */
        FG_UNROLL (j, PAIR, 1) FG_PREFETCH(line_at(half, before->to, at + head + block + j * LANES));
      }
    }
    sum_flush(sum);
  }
  exp_from(keep, half, row, c, base, sum, row->d, row->d);
  if (maps) map_from(kind, from_kind, half, stream, before, c + head, factor);
  return max_from(half, later, c, after->n, max);
}

/* One row as a contiguous line: x itself where it is one and nothing is masked, a packed copy otherwise. */
FG_INLINE const void *row_line(const int half, const fg_run *run, ptrdiff_t r, T *packed, int *empty) {
  const char *x = run->x + r * run->x_row;
  *empty = 0;
  if (half != FG_NATIVE || (run->x_class == (ptrdiff_t)sizeof(T) && !run->where)) return x;
  const ptrdiff_t n = run->classes;
  const T *line = (const T *)x;
  if (run->x_class != (ptrdiff_t)sizeof(T)) {
    for (ptrdiff_t c = 0; c < n; c++) packed[c] = *at(x, c * run->x_class);
    line = packed;
  }
  if (run->where) {
    const char *const w = run->where + r * run->where_row;
    *empty = mask_line(w, run->where_class, n, line, (T)-__builtin_inf(), packed) == 0;
  }
  return packed;
}

/* Rows whose map would make NaN of the 0 or -inf of what `where` drops: it is not finite.  (The maximum is no sign of it,
 * for it skips NaN.) */
FG_INLINE M spoils_dropped(const int op, const fg_run *run, Map m) {
  if (has_target(op) || FG_LIKELY(!run->where)) return vtruth(0);
  const V zero = (m.a - m.a) + (m.b - m.b);
  return veq(vdrop(veq(zero, zero), vset(1)), vset(1));
}

/* Such rows are mapped beforehand and what is dropped of them is put in; then this leaves them alone, for they hold NaN,
 * infinities and 0 only.  (Of large numbers: infinity times 0 is NaN, and the baseline splits smaller ones.) */
FG_INLINE Map map_mapped(const int op) {
  const V large = vset(op == LOG_SOFTMAX ? 0 : (T)BIGGEST);
  return (Map){large, large, viset(-1), vset(0)};
}
FG_INLINE T where_dropped(const int op) { return op == LOG_SOFTMAX ? -(T)__builtin_inf() : 0; }

FG_INLINE void map_kept(const int op, const fg_run *run, ptrdiff_t r, T *line, V inv_t, Map *map) {
  const Out own = {line, line, run->classes, *map, NULL};
  map_row(op == LOG_SOFTMAX ? MAP_LOG : MAP_SCALE2, FG_NATIVE, FG_NATIVE, 0, &own, inv_t);
  mask_line(run->where + r * run->where_row, run->where_class, run->classes, line, where_dropped(op), line);
  *map = map_mapped(op);
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
  V v = finish_value(op, &s, term_left(&s, base), base, inv_t);
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

/* What all rows of a run have in common. */
typedef struct {
  const fg_run *run;
  const fg_lines *listed; /* rows of any lengths at any addresses; NULL if `run` tells where they lie */
  Base base;
  V2 scale;
  V inv_t;
  T *lines, *packed; /* two lines of terms, one of x */
  ptrdiff_t room;    /* of each */
  int direct, flat;  /* is a row of x, is a row of `out` (if there is one) a line in memory */
  Edge *edge;
} Rows;

FG_INLINE Rows rows_of(const int op, const int half, const fg_run *run, const fg_lines *listed, Edge *edge) {
  const ptrdiff_t room = padded(run->classes) + 64 / (ptrdiff_t)sizeof(T);
  T *const lines = (T *)run->scratch;
  return (Rows){run,
                listed,
                base_of(run),
                scale_of(run),
                vset((T)run->inv_temperature),
                lines,
                lines + 2 * room,
                room,
                listed || half != FG_NATIVE || (run->x_class == (ptrdiff_t)sizeof(T) && !run->where),
                listed || half != FG_NATIVE || !has_out(op) || run->out_class == (ptrdiff_t)sizeof(T),
                edge};
}

FG_INLINE Line place_of(const int op, const Rows *all, ptrdiff_t r) {
  const fg_run *const run = all->run;
  const fg_lines *const listed = all->listed;
  if (listed) return (Line){listed->x[r], has_out(op) ? listed->out[r] : NULL, listed->size[r]};
  return (Line){run->x + r * run->x_row, run->out + r * run->out_row, run->classes};
}

/* Between pass 1, which found the maximum `top` of row r, and pass 2. */
FG_INLINE Exp row_begin(const int op, const int half, const Rows *all, ptrdiff_t r, const Line *line, const void *x,
                        T top, int empty, State *s) {
  const fg_run *const run = all->run;
  const ptrdiff_t n = line->n;
  const int finite = top - top == 0;
  Exp row;
  row.n = n;
  row.left = -1;
  if (has_target(op))
    row.left = run->target[r];
  else if (leaves_out(op) && finite)
    row.left = row_find(half, x, n, top);
  s->x_left = vset(row.left < 0 ? 0 : line_get(half, x, row.left));
  s->top = vset(top);
  s->max = vset(finite ? top : 0);
  s->finite = vtruth(finite);
  s->gone = vtruth(empty);
  s->frame = row.frame = frame_of(s->max, all->base);
  row.d = x;
  if (half == FG_NATIVE && FG_UNLIKELY(s->frame.shift[0] != 0)) {
    for (ptrdiff_t c = 0; c < n; c++) all->packed[c] = ((const T *)x)[c] - s->frame.shift[0];
    row.d = all->packed;
  }
  row.terms = NULL;
  if (keeps_terms(op)) {
    row.terms = all->lines + (r & 1) * all->room;
    /* Streamed stores want whole lines: the terms then lie at the offset of `out` from a 64-byte boundary. */
    const uintptr_t apart = (uintptr_t)line->out & 63;
    if (run->stream) row.terms += apart / (size_t)size_of(half) % (64 / sizeof(T));
  }
  return row;
}

/* Pass 2 over `row`, pass 3 over what waits in `before`, pass 1 over `later`, as far as there are such: in one loop, or
 * one after another at the first and last rows and around ignored ones.  Returns the maximum of `later`. */
FG_INLINE T row_turn(const int op, const int half, const Rows *all, const Exp *row, Out *before, const Line *later,
                     Sum *sum) {
  const int kind = op == LOG_SOFTMAX ? MAP_LOG : MAP_SCALE2, from_kind = op == LOG_SOFTMAX ? half : FG_NATIVE;
  const int keep = keeps_terms(op), maps = has_out(op), stream = all->run->stream;
  T max = 0;
  if (row && later && all->direct && all->flat && (!maps || before->from)) {
    if (maps && stream)
      max = three_rows(keep, kind, from_kind, half, 1, 1, row, before, later, all->base, all->inv_t, sum);
    else
      max = three_rows(keep, kind, from_kind, half, maps, 0, row, before, later, all->base, all->inv_t, sum);
  } else {
    if (row) exp_from(keep, half, row, 0, all->base, sum, row->d, row->d);
    if (maps && before->from) map_row(kind, from_kind, half, stream, before, all->inv_t);
    if (later) max = row_max(half, later->x, later->n);
  }
  before->from = NULL;
  return max;
}

/* Between pass 2 and pass 3, which has to wait in `out` for the next turn where that could share a loop with it. */
FG_INLINE void row_end(const int op, const int half, const Rows *all, ptrdiff_t r, const Line *line, const void *x,
                       const Exp *row, Sum sum, State *s, Pending *pending, Out *out) {
  const fg_run *const run = all->run;
  const ptrdiff_t n = row->n;
  s->rest = sum_lanes(sum);
  if (row->left < 0 || s->x_left[0] < s->top[0]) s->rest = add_low(s->rest, term_largest(s, all->base));
  if (has_value(op) && run->value) {
    const int nan = op == LOGSUMEXP && s->top[0] - s->top[0] != 0 && first_nan(half, x, n) >= 0;
    pending_add(pending, r, s, nan ? (T)__builtin_nan("") : 0);
    if (pending->count == LANES) pending_flush(op, pending, run, all->base, all->inv_t);
  }
  if (!has_out(op)) return;
  V2 factor = all->scale;
  if (op != LOG_SOFTMAX && run->alpha) factor = mul2((V2){vset(*at(run->alpha, r * run->alpha_row)), vset(0)}, factor);
  char *const to = line->out;
  const V2 left = leaves_out(op) ? term_left(s, all->base) : s->rest;
  *out = (Out){op == LOG_SOFTMAX ? x : row->terms, to, n, finish_map(op, s, left, factor, all->base), all->edge};
  if (op == XENT_GRAD) row->terms[row->left] = out->map.patch[0];
  if (op == LOG_SOFTMAX && x == all->packed) out->map.a = out->map.a - s->frame.shift; /* shifted in place */
  if (FG_UNLIKELY(vany(spoils_dropped(op, run, out->map)))) {
    T *const kept = op == LOG_SOFTMAX ? all->packed : row->terms;
    map_kept(op, run, r, kept, all->inv_t, &out->map);
    out->from = kept;
  }
  if (all->direct && all->flat) return;
  const int kind = op == LOG_SOFTMAX ? MAP_LOG : MAP_SCALE2;
  if (!all->flat) out->to = all->packed;
  map_row(kind, FG_NATIVE, FG_NATIVE, all->flat && run->stream, out, all->inv_t);
  if (!all->flat)
    for (ptrdiff_t c = 0; c < n; c++) *(T *)(to + c * run->out_class) = all->packed[c];
  out->from = NULL;
}

FG_INLINE int row_ignored(const int op, const int half, const fg_run *run, ptrdiff_t r) {
  if (!has_target(op) || run->target[r] >= 0) return 0;
  if (run->value) *(T *)(run->value + r * run->value_row) = 0;
  if (op == XENT_GRAD)
    for (ptrdiff_t c = 0; c < run->classes; c++)
      memset(run->out + r * run->out_row + c * run->out_class, 0, (size_t)size_of(half));
  return 1;
}

/* x and `out` lie in memory as `half` says; if that is not FG_NATIVE, both are flat and nothing is masked.  Of rows that
 * are `listed`, run->classes is the longest. */
FG_INLINE void rows_as(const int op, const int half, const fg_run *run, const fg_lines *listed) {
  const ptrdiff_t n = run->classes, rows = listed ? listed->lines : run->rows;
  Edge edge;
  edge.bytes = 0;
  const Rows all = rows_of(op, half, run, listed, &edge);
  /* Rows known beforehand by their maximum: two, so that none waits for it; of long rows one, for the cache's sake. */
  const int is_short = all.flat && n * (ptrdiff_t)sizeof(T) <= EARLY_BYTES;
  const ptrdiff_t early = !all.direct ? 0 : is_short ? 2 : 1;

  T max[3] = {0, 0, 0}; /* of rows r to r + early, each at its number modulo 3 */
  Out out[2];           /* of rows r and r - 1 */
  out[0].from = out[1].from = NULL;
  Pending pending;
  memset(&pending, 0, sizeof pending);
  for (ptrdiff_t r = 0; r < early && r < rows; r++) {
    const Line line = place_of(op, &all, r);
    max[r] = row_max(half, line.x, line.n);
  }

  for (ptrdiff_t r = 0; r < rows; r++) {
    const Line line = place_of(op, &all, r);
    Line after;
    const Line *later = NULL;
    if (early && r + early < rows) {
      after = place_of(op, &all, r + early);
      later = &after;
    }
    T *const max_later = max + (r + early) % 3;
    Out *const mine = out + (r & 1), *const before = out + (~r & 1);
    Sum sum = sum_start();
    if (row_ignored(op, half, run, r)) {
      const T m = row_turn(op, half, &all, NULL, before, later, &sum);
      if (later) *max_later = m;
      continue;
    }
    int empty = 0;
    const void *const x = listed ? line.x : row_line(half, run, r, all.packed, &empty);
    State s;
    const Exp row = row_begin(op, half, &all, r, &line, x, early ? max[r % 3] : row_max(half, x, line.n), empty, &s);
    const T m = row_turn(op, half, &all, &row, before, later, &sum);
    if (later) *max_later = m;
    row_end(op, half, &all, r, &line, x, &row, sum, &s, &pending, mine);
  }
  if (rows > 0) {
    Sum none = sum_start();
    row_turn(op, half, &all, NULL, out + ((rows - 1) & 1), NULL, &none);
  }
  edge_flush(&edge);
  pending_flush(op, &pending, run, all.base, all.inv_t);
  if (run->stream) vfence();
}

/* ---- lanes: a row per lane -------------------------------------------------------------------------- */

/* The low word of the largest term (lanes_rest) is what shows, but where that term is the one left out the others want
 * theirs: a loss may do without by 1 ulp, logsumexp may not. */
FG_INLINE int wants_low_words(const int op) { return leaves_largest(op); }

/* A group of LANES rows between pass 2 and pass 3. */
typedef struct {
  State state;
  Sum sum;
  VI left;
} Group;

/* Groups that end together; of contiguous rows also those that are transposed at once, and all that a tile holds. */
#define LOADED 4
/* Groups in step at most; four need the 32 registers of AVX-512. */
#define SIDE ((int)sizeof(V) == 64 ? 4 : 2)
_Static_assert(SIDE <= ABREAST_MAX && SIDE <= LOADED, "groups in step are exponentiated abreast, and end together");

/* Memory that will be wanted: `step` bytes from one class of a tile to the next, a vector for every group. */
typedef struct {
  const char *first;
  ptrdiff_t step;
} Lines;

FG_INLINE VI lanes_target(const int op, const fg_run *run, ptrdiff_t first, ptrdiff_t rows) {
  if (!has_target(op)) return viset(-1);
  const int64_t *const target = run->target + first;
  if (rows >= LANES) return viload_wide(target);
  int64_t t[LANES];
  for (ptrdiff_t l = 0; l < LANES; l++) t[l] = target[l < rows ? l : 0];
  return viload_wide(t);
}

/* `gone` are the rows that are wholly masked. */
FG_INLINE void state_start(const int op, V max, V x_left, VI left, M gone, Base base, State *s) {
  s->gone = has_target(op) ? vieq(left, viset(-1)) : gone;
  s->top = max;
  s->finite = vlt(vabs(max), vset((T)__builtin_inf()));
  s->max = vsel(s->finite, max, vset(0));
  s->x_left = has_target(op) ? x_left : s->max;
  s->frame = frame_of(s->max, base);
}

/* Pass 2 of `several` vectors of a tile, in two halves: of class c[k] of a group each, or of one group's classes.
 * `omits` if the targets are still in the tile. */
FG_INLINE void lanes_begin(const int op, const int several, const int one, const int omits, T *const *at, const VI *c,
                           const Frame *frame, const VI *left, const V *peak, V *ties, Base base, Begun *b) {
  const V low = vset((T)-__builtin_inf());
  V d[ABREAST_MAX];
  const Frame *frames[ABREAST_MAX];
  FG_UNROLL (k, several, 1) {
    const int u = one ? 0 : k;
    frames[k] = frame + u;
    d[k] = vload(at[k]) - frame[u].shift;
    if (omits) d[k] = vsel(vieq(left[u], c[k]), low, d[k]);
    if (leaves_largest(op)) {
      const M largest = veq(d[k], peak[u]);
      ties[u] = vsel(largest, ties[u] + vset(1), ties[u]);
      d[k] = vsel(largest, low, d[k]);
    }
  }
  exp_begin(several, d, frames, base, b);
}

FG_INLINE void lanes_finish(const int op, const int several, const int one, T *const *at, const Begun *b, Sum *sum) {
  Term e[ABREAST_MAX];
  exp_end(several, b, e);
  FG_UNROLL (k, several, 1) {
    const V term = sum_add(sum + (one ? 0 : k), wants_low_words(op), e[k]);
    if (keeps_terms(op)) vstore(at[k], term);
  }
}

FG_INLINE void lanes_terms(const int op, const int several, const int one, const int omits, T *const *at, const VI *c,
                           const Frame *frame, const VI *left, const V *peak, Sum *sum, V *ties, Base base) {
  Begun b;
  lanes_begin(op, several, one, omits, at, c, frame, left, peak, ties, base, &b);
  lanes_finish(op, several, one, at, &b, sum);
}

/* Passes 1 and 2 of `several` neighbouring groups in step: a short row is a chain of latencies, and several
 * chains side by side take little longer than one.  `ahead` and `place`, as large as the tile, are prefetched. */
FG_INLINE void lanes_exp(const int op, const int several, const fg_run *run, ptrdiff_t first, ptrdiff_t rows, T *tile,
                         const T *empty, Lines ahead, Lines place, Base base, Group *group) {
  const ptrdiff_t n = run->classes, stride = n * LANES;
  V max[ABREAST_MAX], x_left[ABREAST_MAX], peak[ABREAST_MAX], ties[ABREAST_MAX];
  VI left[ABREAST_MAX];
  Frame frame[ABREAST_MAX];
  Sum sum[ABREAST_MAX];
  for (int u = 0; u < several; u++) {
    max[u] = vset((T)-__builtin_inf());
    x_left[u] = vset(0);
    left[u] = lanes_target(op, run, first + u * LANES, rows - u * LANES);
  }
  VI class = viset(0);
  for (ptrdiff_t c = 0; c < n; c++, class += viset(1))
    for (int u = 0; u < several; u++) {
      const V x = vload(tile + u * stride + c * LANES);
      if (has_target(op)) x_left[u] = vsel(vieq(left[u], class), x, x_left[u]);
      max[u] = vmax(x, max[u]);
    }
  for (int u = 0; u < several; u++) {
    State *const s = &group[u].state;
    state_start(op, max[u], x_left[u], left[u], empty ? veq(vload(empty + u * LANES), vset(1)) : vtruth(0), base, s);
    frame[u] = s->frame;
    peak[u] = s->max - s->frame.shift;
    ties[u] = vset(0);
    sum[u] = sum_start();
  }
  State *state[ABREAST_MAX];
  FG_UNROLL (u, several, 1) state[u] = &group[u].state;
  known_terms(op, several, state, base);
  T *next[ABREAST_MAX];
  VI classes[ABREAST_MAX];
  Begun begun;
  FG_UNROLL (u, several, 1) {
    next[u] = tile + u * stride;
    classes[u] = viset(0);
  }
  lanes_begin(op, several, 0, has_target(op), next, classes, frame, left, peak, ties, base, &begun);
  for (ptrdiff_t c = 0; c < n;) {
    const ptrdiff_t end = c + SUM_FEW < n ? c + SUM_FEW : n;
    for (; c < end; c++) {
      const Begun ready = begun;
      T *at[ABREAST_MAX];
      FG_UNROLL (u, several, 1) {
        at[u] = next[u];
        next[u] += LANES;
        classes[u] += viset(1);
      }
      if (c + 1 < n) lanes_begin(op, several, 0, has_target(op), next, classes, frame, left, peak, ties, base, &begun);
      lanes_finish(op, several, 0, at, &ready, sum);
      FG_UNROLL (u, several, 1) {
        FG_PREFETCH(ahead.first + c * ahead.step + u * (ptrdiff_t)sizeof(V));
        FG_PREFETCH(place.first + c * place.step + u * (ptrdiff_t)sizeof(V));
      }
    }
    if (n > SUM_FEW)
      for (int u = 0; u < several; u++) sum_flush(&sum[u]);
  }
  for (int u = 0; u < several; u++) {
    group[u].state.ties = ties[u];
    group[u].sum = sum[u];
    group[u].left = left[u];
  }
}

FG_INLINE V2 group_sum(const Group *g, ptrdiff_t n) { return n > SUM_FEW ? sum_value(g->sum) : sum_unflushed(g->sum); }

/* Where the largest term is left out, all that equal it have been: of several the others come back. */
FG_INLINE V2 lanes_rest(const int op, const State *s, V2 rest) {
  if (leaves_largest(op)) return add2(rest, mul2(s->known.left, (V2){s->ties - vset(1), vset(0)}));
  const V2 whole = add_low(rest, s->known.largest);
  if (op == SOFTMAX) return whole;
  return (V2){rest.h, vsel(vlt(s->x_left, s->top), whole.l, rest.l)}; /* a largest target is not in the sum */
}

/* A number of each row, `step` bytes apart, and back; rows that are not there repeat the first.  Not inlined: GCC would
 * compute the LANES addresses beforehand, needed or not. */
FG_KERNEL V FG_NAME(lanes_from)(const char *from, ptrdiff_t step, ptrdiff_t rows) {
  T lane[LANES];
  for (ptrdiff_t l = 0; l < LANES; l++) lane[l] = *at(from, l < rows ? l * step : 0);
  return vload(lane);
}
FG_KERNEL void FG_NAME(lanes_to)(char *to, ptrdiff_t step, ptrdiff_t rows, V v) {
  T lane[LANES];
  vstore(lane, v);
  for (ptrdiff_t l = 0; l < rows; l++) *(T *)(to + l * step) = lane[l];
}

FG_INLINE V2 lanes_factor(const int op, const fg_run *run, ptrdiff_t first, ptrdiff_t rows, V2 scale) {
  if (op == LOG_SOFTMAX || FG_LIKELY(!run->alpha)) return scale;
  const V alpha = FG_NAME(lanes_from)(run->alpha + first * run->alpha_row, run->alpha_row, rows);
  return mul2((V2){alpha, vset(0)}, scale);
}

FG_INLINE int lanes_kind(const int op) {
  return op == LOG_SOFTMAX ? MAP_LOG : op == XENT_GRAD ? MAP_TARGET : MAP_SCALE2;
}

FG_INLINE Map lanes_map(const int op, const fg_run *run, ptrdiff_t first, ptrdiff_t rows, const Group *group, T *tile,
                        V2 scale, Base base, V inv_t) {
  Map map = finish_map(op, &group->state, group->state.known.left, lanes_factor(op, run, first, rows, scale), base);
  map.target = group->left;
  if (op == XENT_GRAD && FG_UNLIKELY(vany(group->state.gone))) /* 0 * NaN is not 0 */
    for (ptrdiff_t c = 0; c < run->classes; c++)
      vstore(tile + c * LANES, vdrop(group->state.gone, vload(tile + c * LANES)));
  const M spoilt = spoils_dropped(op, run, map);
  if (FG_UNLIKELY(vany(spoilt))) { /* as map_kept */
    T empty[LANES];
    for (ptrdiff_t c = 0; c < run->classes; c++) {
      const V v = vload(tile + c * LANES);
      vstore(tile + c * LANES, vsel(spoilt, map_apply(lanes_kind(op), v, map, inv_t), v));
    }
    FG_NAME(mask_tile)(run->where + first * run->where_row, run->where_row, run->where_class, rows, run->classes,
                       where_dropped(op), tile, empty);
    const Map mapped = map_mapped(op);
    map.a = vsel(spoilt, mapped.a, map.a);
    map.b = vsel(spoilt, mapped.b, map.b);
  }
  return map;
}

FG_INLINE int maxima_finite(const State *s) { return !vany(veq(vdrop(s->finite, vset(1)), vset(1))); }

/* Of logsumexp, where not every maximum is finite: NaN for the lanes of a tile that hold one; 0 for the others. */
FG_INLINE V lanes_nan(const int op, const State *s, const T *tile, ptrdiff_t n) {
  V nan = vset(0);
  if (op == LOGSUMEXP && FG_UNLIKELY(!maxima_finite(s)))
    for (ptrdiff_t c = 0; c < n; c++) {
      const V x = vload(tile + c * LANES);
      nan = vsel(veq(x, x), nan, x);
    }
  return nan;
}

FG_INLINE void lanes_value(const int op, const fg_run *run, ptrdiff_t first, ptrdiff_t rows, const State *s, V nan,
                           Base base, V inv_t) {
  V v = finish_value(op, s, s->known.left, base, inv_t);
  if (op == LOGSUMEXP) v = vsel(s->finite, v, s->top + nan);
  if (has_target(op) && FG_UNLIKELY(run->beta != NULL))
    v = vdrop(s->gone, v * FG_NAME(lanes_from)(run->beta + first * run->beta_row, run->beta_row, rows));
  char *const value = run->value + first * run->value_row;
  if (FG_LIKELY(rows == LANES && run->value_row == (ptrdiff_t)sizeof(T)))
    vstore((T *)value, v);
  else
    FG_NAME(lanes_to)(value, run->value_row, rows, v);
}

/* Halves go through `wide`, flat rows of T. */
FG_INLINE void lanes_load(const int ahead, const fg_run *run, ptrdiff_t first, ptrdiff_t rows, T *tile, T *empty,
                          T *wide) {
  const char *const x = run->x + first * run->x_row;
#if !FG_DOUBLE
  if (run->half != FG_NATIVE) {
    const ptrdiff_t n = run->classes;
    const int joined = run->x_row == 2 * n;
    FG_NAME(widen)(run->half, x, run->x_row, 2, joined ? 1 : rows, joined ? rows * n : n, wide, n);
    pack(0, (const char *)wide, n * (ptrdiff_t)sizeof(T), sizeof(T), rows, n, tile);
    return;
  }
#else
  (void)wide;
#endif
  pack(ahead, x, run->x_row, run->x_class, rows, run->classes, tile);
  if (run->where) {
    const char *const w = run->where + first * run->where_row;
    FG_NAME(mask_tile)(w, run->where_row, run->where_class, rows, run->classes, (T)-__builtin_inf(), tile, empty);
  }
}

FG_INLINE void lanes_store(const int op, const fg_run *run, ptrdiff_t first, ptrdiff_t rows, const T *tile,
                           const Map *map, T *wide, Edge *edges) {
  const int kind = lanes_kind(op);
  const T inv_t = (T)run->inv_temperature;
#if !FG_DOUBLE
  if (run->half != FG_NATIVE) {
    char *const out = run->out + first * run->out_row;
    const ptrdiff_t n = run->classes;
    const int joined = run->out_row == 2 * n;
    unpack(kind, 0, tile, map, inv_t, (char *)wide, n * (ptrdiff_t)sizeof(T), sizeof(T), rows, n, 0);
    FG_NAME(narrow)(run->half, wide, n, out, run->out_row, 2, joined ? 1 : rows, joined ? rows * n : n, run->stream);
    return;
  }
#else
  (void)wide;
#endif
  tile_store(kind, run, first, rows, tile, map, inv_t, edges);
}

/* What becomes of a group that went through pass 2, and of its sum. */
FG_INLINE void lanes_end(const int op, const fg_run *run, ptrdiff_t first, ptrdiff_t rows, T *tile, V2 sum, V2 scale,
                         Base base, V inv_t, Group *group, Map *map) {
  State *const s = &group->state;
  s->rest = lanes_rest(op, s, sum);
  if (has_value(op) && run->value)
    lanes_value(op, run, first, rows, s, lanes_nan(op, s, tile, run->classes), base, inv_t);
  if (has_out(op)) *map = lanes_map(op, run, first, rows, group, tile, scale, base, inv_t);
}

/* ---- three tiles at once -------------------------------------------------------------------------------
 *
 * Where neighbouring rows are contiguous, a tile is a piece of every class, and packing and storing it is waiting for
 * memory.  So three whole tiles are under way: while one is exponentiated, the next is packed and the one before it
 * stored, FLOW vectors of each in turn. */
#define FLOW 4

typedef struct {
  T *data;
  ptrdiff_t first; /* row */
  V max[GROUPS_MAX];
  Map map[GROUPS_MAX];
} Tile;

/* Groups of such a tile, or 0 where one of FLOW would fill L2. */
FG_INLINE ptrdiff_t flow_groups(ptrdiff_t classes) {
  const ptrdiff_t group = classes * LANES * (ptrdiff_t)sizeof(T), g = TILE_L1 / group / FLOW * FLOW;
  if (FLOW * group > TILE_L2) return 0;
  return g < FLOW ? FLOW : g > GROUPS_MAX ? GROUPS_MAX : g;
}

/* Groups that all tiles of a run hold at most. */
FG_INLINE ptrdiff_t lanes_groups(ptrdiff_t classes) {
  const ptrdiff_t one = tile_groups(classes, 1), three = 3 * flow_groups(classes);
  return one > three ? one : three;
}

FG_INLINE int flows(const int op, const fg_run *run) {
  const ptrdiff_t size = sizeof(T);
  return run->half == FG_NATIVE && !run->where && run->x_row == size && run->x_class != size &&
         (!has_out(op) || (run->out_row == size && run->out_class != size));
}

/* Of few classes the target is looked for in every vector; of more it is taken out of the tile before pass 2, and what
 * stands for it in the gradient put there afterwards.  A line of which a part was just stored is slow to load, so of 10
 * classes the latter would take a tenth longer; of 1,000 it takes a fifth less. */
#define FLOW_FEW 32

/* Where the targets stand in a tile; `ignored` for rows that have none. */
FG_INLINE void target_places(const int64_t *target, T *tile, T *ignored, T **place) {
  for (int l = 0; l < LANES; l++) place[l] = target[l] < 0 ? ignored : tile + target[l] * LANES + l;
}

/* The logits of the targets, -inf in their place if they are taken. */
FG_INLINE V targets_of(const int take, const int64_t *target, T *tile) {
  T x[LANES], ignored = 0, *place[LANES];
  target_places(target, tile, &ignored, place);
  for (int l = 0; l < LANES; l++) {
    x[l] = *place[l];
    if (take) *place[l] = (T)-__builtin_inf();
  }
  return vload(x);
}

FG_INLINE void targets_patch(const int64_t *target, T *tile, V patch) {
  T p[LANES], ignored, *place[LANES];
  vstore(p, patch);
  target_places(target, tile, &ignored, place);
  for (int l = 0; l < LANES; l++) *place[l] = p[l];
}

FG_INLINE int flow_kind(const int op, const int few) { return lanes_kind(op == XENT_GRAD && !few ? SOFTMAX : op); }

/* What the turns of a run have in common. */
typedef struct {
  const fg_run *run;
  ptrdiff_t groups, ahead; /* of a tile; rows from what is read or stored to what is prefetched, or 0 */
  int stream;
  Edge *edges;
  V2 scale;
  Base base;
  V inv_t;
} Flow;

/* Class c of FLOW groups from `h` on: of `after` to its tile, of `before` to its place, where classes have edges of all
 * groups at once; either may be NULL. */
FG_INLINE void flow_move(const int op, const int few, const Flow *flow, ptrdiff_t c, ptrdiff_t h, const Tile *before,
                         Tile *after) {
  const fg_run *const run = flow->run;
  const ptrdiff_t n = run->classes, size = sizeof(T);
  if (after) {
    const T *const from = at(run->x, (after->first + h * LANES) * size + c * run->x_class);
    T *const to = after->data + (h * n + c) * LANES;
    FG_UNROLL (u, FLOW, 1) {
      const V x = vload(from + u * LANES);
      after->max[h + u] = vmax(x, after->max[h + u]);
      vstore(to + u * n * LANES, x);
      if (flow->ahead) FG_PREFETCH(from + flow->ahead + u * LANES);
    }
  }
  if (!has_out(op) || !before) return;
  const int kind = flow_kind(op, few);
  char *const out = run->out + before->first * size;
  if (flow->edges) {
    if (h == 0)
      class_stream(kind, run, out, c, flow->groups * LANES, before->data, before->map, flow->inv_t, flow->edges);
    return;
  }
  T *const to = (T *)(out + c * run->out_class) + h * LANES;
  FG_UNROLL (u, FLOW, 1) {
    const V y = map_class(kind, before->data + (h + u) * n * LANES, c, before->map + h + u, flow->inv_t);
    if (flow->stream) {
      vstream(to + u * LANES, y);
    } else {
      vstore(to + u * LANES, y);
      if (flow->ahead) FG_PREFETCH(to + flow->ahead + u * LANES);
    }
  }
}

/* Pass 2 of `tile`, whose maxima are known, and meanwhile pass 1 of `after` and pass 3 of `before`. */
FG_INLINE void flow_turn(const int op, const int few, const Flow *flow, const Tile *before, Tile *tile, Tile *after) {
  const fg_run *const run = flow->run;
  const Base base = flow->base;
  const ptrdiff_t groups = flow->groups;
  const int omits = has_target(op) && few;
  const ptrdiff_t n = run->classes;
  ptrdiff_t moved = 0, h = 0;
  V x_left[GROUPS_MAX]; /* of all groups at once, so that what is stored has arrived before its line is loaded */
  for (ptrdiff_t g = 0; has_target(op) && g < groups; g++)
    x_left[g] = targets_of(!few, run->target + tile->first + g * LANES, tile->data + g * n * LANES);
  for (ptrdiff_t g = 0; after && g < groups; g++) after->max[g] = vset((T)-__builtin_inf());
  for (ptrdiff_t g = 0; g < groups; g++) {
    const ptrdiff_t first = tile->first + g * LANES;
    T *const mine = tile->data + g * n * LANES;
    const VI left = lanes_target(op, run, first, LANES);
    Group group;
    state_start(op, tile->max[g], has_target(op) ? x_left[g] : vset(0), left, vtruth(0), base, &group.state);
    State *const state = &group.state;
    known_terms(op, 1, &state, base);
    const Frame frame = group.state.frame;
    const V peak = group.state.max - frame.shift;
    V ties = vset(0);
    Sum sum = sum_start();
    for (ptrdiff_t c = 0; c < n; c += FLOW) {
      T *places[FLOW];
      VI classes[FLOW];
      FG_UNROLL (k, FLOW, 1) {
        places[k] = mine + (c + k) * LANES;
        classes[k] = viset((I)(c + k));
      }
      if (c + FLOW <= n) {
        FG_UNROLL (k, FLOW, ABREAST)
          lanes_terms(op, ABREAST, 1, omits, places + k, classes + k, &frame, &left, &peak, &sum, &ties, base);
      } else {
        for (ptrdiff_t k = c; k < n; k++) {
          T *const place = mine + k * LANES;
          const VI class = viset((I)k);
          lanes_terms(op, 1, 1, omits, &place, &class, &frame, &left, &peak, &sum, &ties, base);
        }
      }
      if (moved < n) {
        flow_move(op, few, flow, moved, h, before, after);
        h = h + FLOW < groups ? h + FLOW : 0;
        moved += h == 0;
      }
      if (n > SUM_FEW && (c + FLOW) % SUM_FEW == 0) sum_flush(&sum);
      FG_BARRIER; /* GCC would load the next vectors here already, and run out of registers */
    }
    group.state.ties = ties;
    group.sum = sum;
    group.left = left;
    lanes_end(op, run, first, LANES, mine, group_sum(&group, n), flow->scale, base, flow->inv_t, &group, tile->map + g);
    if (op == XENT_GRAD && !few) targets_patch(run->target + first, mine, tile->map[g].patch);
  }
}

/* Whether every piece of a class begins with a vector from row `first` on. */
FG_INLINE int flow_aligned(const fg_run *run, ptrdiff_t first) {
  const uintptr_t out = (uintptr_t)run->out + (uintptr_t)first * sizeof(T);
  return (out | (uintptr_t)run->out_class) % sizeof(V) == 0;
}

/* As many whole tiles as there are from row `first` on, if there are three; returns the first row that is left. */
FG_INLINE ptrdiff_t flow_as(const int op, const int few, const fg_run *run, ptrdiff_t first, Edge *edges, V2 scale,
                            Base base, V inv_t) {
  const ptrdiff_t n = run->classes, groups = flow_groups(n), rows = groups * LANES;
  const ptrdiff_t tiles = rows ? (run->rows - first) / rows : 0, bytes = rows * n * (ptrdiff_t)sizeof(T);
  if (tiles < 3) return first;
  /* With edges a piece is at least two lines, as row_stream wants it. */
  if (edges && (rows * (ptrdiff_t)sizeof(T) < 128 || 3 * bytes + edges_size(n) > TILE_L2)) return first;
  const ptrdiff_t ahead = bytes <= TILE_L1 ? rows : 0; /* what is more would be gone before its turn */
  const Flow flow = {run, groups, ahead, run->stream && flow_aligned(run, first), edges, scale, base, inv_t};
  Tile tile[3];
  for (int k = 0; k < 3; k++) tile[k].data = (T *)run->scratch + k * rows * n;
  tile[0].first = first;
  pack(0, run->x + first * run->x_row, run->x_row, run->x_class, rows, n, tile[0].data);
  for (ptrdiff_t g = 0; g < groups; g++) {
    V max = vset((T)-__builtin_inf());
    for (ptrdiff_t c = 0; c < n; c++) max = vmax(vload(tile[0].data + (g * n + c) * LANES), max);
    tile[0].max[g] = max;
  }
  for (ptrdiff_t t = 0; t < tiles; t++) {
    Tile *const after = tile + (t + 1) % 3;
    after->first = first + (t + 1) * rows;
    flow_turn(op, few, &flow, t ? tile + (t + 2) % 3 : NULL, tile + t % 3, t + 1 < tiles ? after : NULL);
  }
  const Tile *const last = tile + (tiles - 1) % 3;
  if (has_out(op))
    tile_store(flow_kind(op, few), run, last->first, rows, last->data, last->map, (T)run->inv_temperature, edges);
  return first + tiles * rows;
}

FG_INLINE void lanes_as(const int op, const fg_run *run) {
  const ptrdiff_t n = run->classes;
  const Base base = base_of(run);
  const V2 scale = scale_of(run);
  const V inv_t = vset((T)run->inv_temperature);
  T *const tile = (T *)run->scratch, *const wide = tile + lanes_groups(n) * n * LANES;
  T empty[GROUPS_MAX * LANES];
  Map map[GROUPS_MAX];
  const int side = op == SOFTMAX ? SIDE : 2;
  /* Transposing a group keeps other ports busy than its arithmetic does: do them side by side.  Where
   * neighbouring rows are contiguous, memory wants several groups of one class at a time instead. */
  const int by_group = run->half != FG_NATIVE || (run->x_class == (ptrdiff_t)sizeof(T) &&
                                                  (!has_out(op) || run->out_class == (ptrdiff_t)sizeof(T)));
  const ptrdiff_t fit = tile_groups(n, run->stream);
  const ptrdiff_t most = by_group && fit > LOADED ? LOADED : fit; /* no more: a part would be on its own */
  const Streams streams = by_group ? (Streams){0, NULL} : streams_start(run, most, wide);
  for (ptrdiff_t first = 0, rows; first < run->rows; first += rows) {
    if (first == streams.head && flows(op, run)) { /* what is left of the rows goes on below */
      if (has_target(op) && n <= FLOW_FEW)
        first = flow_as(op, 1, run, first, streams.edges, scale, base, inv_t);
      else
        first = flow_as(op, 0, run, first, streams.edges, scale, base, inv_t);
      if (first == run->rows) break;
    }
    rows = first == 0 && streams.head ? streams.head : most * LANES;
    if (rows > run->rows - first) rows = run->rows - first;
    const ptrdiff_t groups = (rows + LANES - 1) / LANES;
    if (!by_group) lanes_load(0, run, first, rows, tile, empty, wide);
    for (ptrdiff_t g = 0, end; g < groups; g = end) {
      end = g + LOADED < groups ? g + LOADED : groups;
      const ptrdiff_t begin = first + g * LANES, stop = end < groups ? first + end * LANES : first + rows;
      if (by_group) lanes_load(0, run, begin, stop - begin, tile + g * n * LANES, empty + g * LANES, wide);
      Group group[LOADED];
      for (ptrdiff_t h = g, several; h < end; h += several) {
        const ptrdiff_t from = first + h * LANES, left = rows - h * LANES;
        several = h + side <= end ? side : 1;
        T *const mine = tile + h * n * LANES, *const mask = run->where ? empty + h * LANES : NULL;
        Lines ahead = {(const char *)mine, 0};
        ptrdiff_t place_step = 0;
        if (by_group) {
          ahead = (Lines){run->x + (from + (end - g) * LANES) * run->x_row, several * (ptrdiff_t)sizeof(V)};
          place_step = ahead.step;
        } else if (rows * n * (ptrdiff_t)sizeof(T) <= TILE_L1) { /* what is more would be gone before its turn */
          ahead = (Lines){run->x + (from + rows) * run->x_row, run->x_class};
          place_step = run->out_class;
        }
        const int places = has_out(op) && !run->stream && place_step;
        const Lines place = places ? (Lines){run->out + from * run->out_row, place_step} : ahead;
        if (several == side)
          lanes_exp(op, side, run, from, left, mine, mask, ahead, place, base, group + (h - g));
        else
          lanes_exp(op, 1, run, from, left, mine, mask, ahead, place, base, group + (h - g));
      }
      for (ptrdiff_t h = g; h < end; h++) { /* a chain each, that overlaps with its neighbours' */
        const ptrdiff_t left = rows - h * LANES, here = left < LANES ? left : LANES;
        lanes_end(op, run, first + h * LANES, here, tile + h * n * LANES, group_sum(group + (h - g), n), scale, base,
                  inv_t, group + (h - g), map + h);
      }
      if (has_out(op) && by_group) lanes_store(op, run, begin, stop - begin, tile + g * n * LANES, map + g, wide, NULL);
    }
    if (has_out(op) && !by_group) lanes_store(op, run, first, rows, tile, map, wide, streams.edges);
  }
  streams_end(streams, n);
  if (run->stream) vfence();
}

#define SOFTMAX_KERNEL(name, op)                                                                  \
  FG_KERNEL void FG_NAME(name##_rows)(const fg_run *run) { rows_as(op, FG_NATIVE, run, NULL); }   \
  OF_HALVES(name##_rows, rows_as(op, FG_FLOAT16, run, NULL), rows_as(op, FG_BFLOAT16, run, NULL)) \
  FG_KERNEL void FG_NAME(name##_lanes)(const fg_run *run) { lanes_as(op, run); }
SOFTMAX_KERNEL(softmax, SOFTMAX)
SOFTMAX_KERNEL(log_softmax, LOG_SOFTMAX)
SOFTMAX_KERNEL(logsumexp, LOGSUMEXP)
SOFTMAX_KERNEL(cross_entropy, XENT)
SOFTMAX_KERNEL(cross_entropy_grad, XENT_GRAD)

/* ---- the same for rows at any addresses, of any lengths ------------------------------------------------ */

FG_INLINE void listed_lanes_as(const int op, const fg_run *given, const fg_lines *all) {
  const int side = op == SOFTMAX ? SIDE : 2;
  fg_run run = *given;
  const Base base = base_of(&run);
  const V2 scale = scale_of(&run);
  const V inv_t = vset((T)run.inv_temperature);
  T *const tile = (T *)run.scratch;
  ptrdiff_t done = 0;
  for (ptrdiff_t first = 0, several; first < all->lines; first += several * LANES) {
    const ptrdiff_t left = all->lines - first;
    several = left > (side - 1) * LANES ? side : 1;
    Lot lot;
    lot_of(0, has_out(op), all, first, several, &lot);
    const ptrdiff_t n = run.classes = lot.longest;
    for (int u = 0; u < several; u++) /* a term of 0, which changes no bit */
      lot_load(&lot, lot.lines.x, u, (T)-__builtin_inf(), tile + u * n * LANES);
    Group group[ABREAST_MAX];
    const Lines ahead = {all->ahead + done, several * (ptrdiff_t)sizeof(V)};
    const Lines place = {has_out(op) ? all->place + done : ahead.first, ahead.step};
    if (several == side)
      lanes_exp(op, side, &run, first, left, tile, NULL, ahead, place, base, group);
    else
      lanes_exp(op, 1, &run, first, left, tile, NULL, ahead, place, base, group);
    done += several * n * (ptrdiff_t)sizeof(V);
    for (int u = 0; u < several; u++) {
      const ptrdiff_t from = first + u * LANES, here = left - u * LANES < LANES ? left - u * LANES : LANES;
      T *const mine = tile + u * n * LANES;
      Map map;
      /* Not group_sum: `n` is the longest line's, and the bits of one must not depend on it. */
      lanes_end(op, &run, from, here, mine, sum_value(group[u].sum), scale, base, inv_t, group + u, &map);
      if (has_out(op)) lot_store(lanes_kind(op), &lot, u, here, mine, &map, inv_t);
    }
  }
}

#define LISTED_KERNEL(name, op)                                                           \
  FG_KERNEL void FG_NAME(name##_listed_rows)(const fg_run *run, const fg_lines *lines) {  \
    rows_as(op, FG_NATIVE, run, lines);                                                   \
  }                                                                                       \
  FG_KERNEL void FG_NAME(name##_listed_lanes)(const fg_run *run, const fg_lines *lines) { \
    listed_lanes_as(op, run, lines);                                                      \
  }
LISTED_KERNEL(softmax, SOFTMAX)
LISTED_KERNEL(log_softmax, LOG_SOFTMAX)
LISTED_KERNEL(logsumexp, LOGSUMEXP)
