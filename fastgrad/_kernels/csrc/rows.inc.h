/* Rows one after another, each as vectors of neighbouring classes.
 *
 * The terms of a row stay in scratch, so that x is read once from memory and `out` is written once.  Three rows are under
 * way: while row i is exponentiated, row i - 1 is scaled and stored and the maximum of row i + 1 (i + 2 where rows are
 * short) is taken, a few vectors of each in turn.  Arithmetic, loads and stores then overlap, and no row waits for the
 * latency of its own sum or maximum.
 */

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
  if (FG_UNLIKELY(vany(spoils_dropped(op, run, out->map)))) /* `where` packs rows: out->from is ours */
    map_kept(op, run, r, op == LOG_SOFTMAX ? all->packed : row->terms, all->inv_t, &out->map);
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

#define ROWS_KERNEL(name, op)                                                                   \
  FG_KERNEL void FG_NAME(name##_rows)(const fg_run *run) { rows_as(op, FG_NATIVE, run, NULL); } \
  OF_HALVES(name##_rows, rows_as(op, FG_FLOAT16, run, NULL), rows_as(op, FG_BFLOAT16, run, NULL))
SOFTMAX_KERNELS(ROWS_KERNEL)

#define LISTED_ROWS(name, op)                                                            \
  FG_KERNEL void FG_NAME(name##_listed_rows)(const fg_run *run, const fg_lines *lines) { \
    rows_as(op, FG_NATIVE, run, lines);                                                  \
  }
LISTED_KERNELS(LISTED_ROWS)
