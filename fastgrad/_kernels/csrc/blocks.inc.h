/* Blocks of up to LANES rows: each row as vectors of neighbouring classes, as in a `rows` kernel, but what is one number
 * per row (frame, sum, loss, factor) for all of them at once, a row per lane, as in a `lanes` kernel.
 *
 * For rows of a few vectors, where neither the transposes of lanes nor what rows spend on each row pays.  Results are
 * never streamed (rows.pyx).
 */
#define BLOCKS_ABOVE (MASKS_ROWS ? 103 : 63) /* classes, where lanes and blocks cross (measured) */
_Static_assert(BLOCKS_ABOVE <= FG_LANES_MAX_CONTIGUOUS, "scratch_bytes has room for halves in lanes up to there");
_Static_assert(SIDE * BLOCKS_ABOVE * sizeof(V) <= TILE_L2 && SIDE <= GROUPS_MAX,
               "the lots of a list fit the scratch of its longest line");

#define BLOCK_BYTES ((ptrdiff_t)10 << 10) /* of terms: with x and `out`, of this block and the next, they fill L1 */

/* Rows of a block, of which the longest is `n`. */
FG_INLINE ptrdiff_t block_rows(ptrdiff_t n) {
  const ptrdiff_t fit = BLOCK_BYTES / (padded(n) * (ptrdiff_t)sizeof(T));
  return fit < 1 ? 1 : fit < LANES ? fit : LANES;
}

FG_INLINE ptrdiff_t block_scratch(ptrdiff_t n) { /* enough for shorter rows too */
  const ptrdiff_t line = padded(n) * (ptrdiff_t)sizeof(T);
  return line < BLOCK_BYTES ? BLOCK_BYTES : line;
}

FG_INLINE V fold_max(V *v) {
#pragma GCC unroll 4
  for (int step = 0, n = LANES / 2; n > 0; step++, n /= 2)
#pragma GCC unroll 8
    for (int k = 0; k < n; k++) {
      V even, odd;
      vfold(step, v[2 * k], v[2 * k + 1], &even, &odd);
      v[k] = vmax(even, odd);
    }
  return v[0];
}

FG_INLINE V2 fold_sum(V2 *v) {
#pragma GCC unroll 4
  for (int step = 0, n = LANES / 2; n > 0; step++, n /= 2)
#pragma GCC unroll 8
    for (int k = 0; k < n; k++) {
      V2 even, odd;
      vfold(step, v[2 * k].h, v[2 * k + 1].h, &even.h, &odd.h);
      vfold(step, v[2 * k].l, v[2 * k + 1].l, &even.l, &odd.l);
      const V2 sum = two_sum(even.h, odd.h);
      v[k] = (V2){sum.h, sum.l + (even.l + odd.l)};
    }
  return fast_two_sum(v[0].h, v[0].l);
}

FG_INLINE VI first_classes(void) {
  VI r = viset(0);
  for (int l = 0; l < LANES; l++) r[l] = l;
  return r;
}

/* The first half of pass 2 of the LANES classes from c on.  Where the largest term is left out, `peak` is it in row->d;
 * returns how many there are of it. */
FG_INLINE int block_exp_begin(const int op, const int half, const Exp *row, ptrdiff_t c, VI class, VI left, V peak,
                              Base base, Begun *begun) {
  const V low = vset((T)-__builtin_inf());
  const Frame *const frame = &row->frame;
  const ptrdiff_t k = row->n - c;
  V d = shifted(half, k < LANES ? line_load_n(half, row->d, c, k, low) : line_load(half, row->d, c), frame);
  if (has_target(op)) d = vsel(vieq(left, class), low, d);
  const M top = veq(d, peak);
  if (leaves_largest(op)) d = vsel(top, low, d);
  exp_begin(1, &d, &frame, base, begun);
  return leaves_largest(op) ? vcount(top) : 0;
}

/* Pass 2 of a row, returning a sum for every lane; `ahead` and `place`, as long as the row, are prefetched, and `ties`
 * becomes the number of the largest terms. */
FG_INLINE V2 block_exp(const int op, const int half, const Exp *row, T largest, Base base, const void *ahead,
                       const void *place, T *ties) {
  const VI left = viset((I)row->left);
  const V peak = vset(largest);
  const ptrdiff_t n = row->n, few = SUM_FEW * LANES;
  VI class = first_classes();
  Sum sum = sum_start();
  Begun begun;
  int count = block_exp_begin(op, half, row, 0, class, left, peak, base, &begun);
  for (ptrdiff_t c = 0; c < n;) {
    const ptrdiff_t end = c + few < n ? c + few : n;
    for (; c < end; c += LANES) {
      const Begun ready = begun;
      class += viset(LANES);
      if (c + LANES < n) count += block_exp_begin(op, half, row, c + LANES, class, left, peak, base, &begun);
      Term e;
      exp_end(1, &ready, &e);
      const V term = sum_add(&sum, wants_low_words(op), e);
      if (keeps_terms(op)) vstore(row->terms + c, term);
      FG_PREFETCH(line_at(half, ahead, c));
      FG_PREFETCH(line_at(half, place, c));
    }
    if (n > few) sum_flush(&sum);
  }
  *ties = (T)count;
  return n > few ? sum_value(sum) : sum_unflushed(sum);
}

/* One number of each row of a block. */
typedef struct {
  T lane[LANES];
} Each;
FG_INLINE Each each_of(V v) {
  Each e;
  vstore(e.lane, v);
  return e;
}

/* Rows between passes; what lanes without a row hold is harmless. */
typedef struct {
  ptrdiff_t first;
  int rows;
  Line line[LANES];
  const void *x[LANES]; /* its x as a contiguous line */
  ptrdiff_t left[LANES];
  T *terms[LANES];
  State state;
  const char *ahead, *place; /* of listed rows, what is prefetched next */
} Block;

/* Pass 1. */
FG_INLINE void block_begin(const int op, const int half, const Rows *all, Block *b) {
  V top[LANES];
  Each gone = each_of(vset(0));
  for (int l = 0; l < b->rows; l++) {
    int empty = 0;
    b->line[l] = place_of(op, all, b->first + l);
    b->x[l] = all->listed ? b->line[l].x : row_line(half, all->run, b->first + l, b->terms[l], &empty);
    b->left[l] = has_target(op) ? all->run->target[b->first + l] : -1;
    top[l] = max_lanes(half, b->x[l], 0, b->line[l].n, max_start());
    gone.lane[l] = (T)(empty || (has_target(op) && b->left[l] < 0));
  }
  for (int l = b->rows; l < LANES; l++) top[l] = vset(0);
  State *const s = &b->state;
  s->top = fold_max(top);
  s->finite = vlt(vabs(s->top), vset((T)__builtin_inf()));
  s->max = vsel(s->finite, s->top, vset(0));
  s->gone = veq(vload(gone.lane), vset(1));
  s->frame = frame_of(s->max, all->base);
}

/* Pass 2; `most` rows after each of these, the next block begins. */
FG_INLINE void block_terms(const int op, const int half, const Rows *all, ptrdiff_t most, Block *b) {
  State *const s = &b->state;
  const Each shift = each_of(s->frame.shift), magic = each_of(s->frame.magic), bound = each_of(s->frame.bound);
  const Each peak = each_of(s->max - s->frame.shift);
  Each x_left = each_of(s->max), ties;
  V2 sum[LANES];
  for (int l = 0; l < b->rows; l++) {
    const ptrdiff_t n = b->line[l].n;
    if (has_target(op) && b->left[l] >= 0) x_left.lane[l] = line_get(half, b->x[l], b->left[l]);
    const Frame frame = {vset(shift.lane[l]), vset(magic.lane[l]), vset(bound.lane[l])};
    const void *d = b->x[l];
    if (half == FG_NATIVE && FG_UNLIKELY(shift.lane[l] != 0)) {
      for (ptrdiff_t c = 0; c < n; c++) b->terms[l][c] = ((const T *)d)[c] - shift.lane[l];
      d = b->terms[l];
    }
    const Exp row = {d, n, b->left[l], frame, b->terms[l]};
    const char *ahead = b->ahead, *place = b->place;
    if (all->listed) {
      b->ahead += n * (ptrdiff_t)sizeof(T), b->place += n * (ptrdiff_t)sizeof(T);
    } else {
      const ptrdiff_t next = b->first + most + l;
      ahead = next < all->run->rows ? place_of(op, all, next).x : b->line[l].x;
      place = has_out(op) ? b->line[l].out : ahead;
    }
    sum[l] = block_exp(op, half, &row, peak.lane[l], all->base, ahead, place, ties.lane + l);
  }
  for (int l = b->rows; l < LANES; l++) {
    sum[l] = (V2){vset(1), vset(0)};
    ties.lane[l] = 1;
  }
  s->ties = vload(ties.lane);
  s->x_left = vload(x_left.lane);
  known_terms(op, 1, &s, all->base);
  s->rest = lanes_rest(op, s, fold_sum(sum));
}

FG_INLINE V block_nan(const int op, const int half, const Block *b) {
  Each nan = each_of(vset(0));
  if (op == LOGSUMEXP && FG_UNLIKELY(!maxima_finite(&b->state)))
    for (int l = 0; l < b->rows; l++)
      if (first_nan(half, b->x[l], b->line[l].n) >= 0) nan.lane[l] = (T)__builtin_nan("");
  return vload(nan.lane);
}

/* Pass 3. */
FG_INLINE void block_map(const int op, const int half, const Rows *all, const Block *b) {
  const fg_run *const run = all->run;
  const int kind = op == LOG_SOFTMAX ? MAP_LOG : MAP_SCALE2;
  const Map map =
      finish_map(op, &b->state, b->state.known.left, lanes_factor(op, run, b->first, b->rows, all->scale), all->base);
  const Each each_a = each_of(map.a), each_b = each_of(map.b), patch = each_of(map.patch);
  const Each shift = each_of(b->state.frame.shift);
  if (op == XENT_GRAD)
    for (int l = 0; l < b->rows; l++)
      if (b->left[l] >= 0) b->terms[l][b->left[l]] = patch.lane[l];
  for (int l = 0; l < b->rows; l++) {
    T *const terms = b->terms[l];
    const Line line = b->line[l];
    if (has_target(op) && FG_UNLIKELY(row_ignored(op, half, run, b->first + l))) continue;
    Out out = {op == LOG_SOFTMAX ? b->x[l] : terms, all->flat ? (void *)line.out : terms, line.n, map, NULL};
    out.map.a = vset(each_a.lane[l]), out.map.b = vset(each_b.lane[l]);
    if (op == LOG_SOFTMAX && b->x[l] == terms) out.map.a = out.map.a - vset(shift.lane[l]); /* shifted in place */
    if (FG_UNLIKELY(vany(spoils_dropped(op, run, out.map))))
      map_kept(op, run, b->first + l, terms, all->inv_t, &out.map);
    map_row(kind, op == LOG_SOFTMAX ? half : FG_NATIVE, half, 0, &out, all->inv_t);
    if (!all->flat)
      for (ptrdiff_t c = 0; c < line.n; c++) *(T *)(line.out + c * run->out_class) = terms[c];
  }
}

FG_INLINE void blocks_as(const int op, const int half, const fg_run *run, const fg_lines *listed) {
  const Rows all = rows_of(op, half, run, listed, NULL);
  const ptrdiff_t rows = listed ? listed->lines : run->rows, most = block_rows(run->classes);
  Block b;
  b.ahead = listed ? listed->ahead : NULL;
  b.place = listed && has_out(op) ? listed->place : b.ahead;
  for (int l = 0; l < most; l++) b.terms[l] = (T *)run->scratch + l * padded(run->classes);
  for (b.first = 0; b.first < rows; b.first += most) {
    b.rows = (int)(rows - b.first < most ? rows - b.first : most);
    block_begin(op, half, &all, &b);
    block_terms(op, half, &all, most, &b);
    if (has_value(op) && run->value)
      lanes_value(op, run, b.first, b.rows, &b.state, block_nan(op, half, &b), all.base, all.inv_t);
    if (has_out(op)) block_map(op, half, &all, &b);
  }
}

#define BLOCKS_KERNEL(name, op)                                                                     \
  FG_KERNEL void FG_NAME(name##_blocks)(const fg_run *run) { blocks_as(op, FG_NATIVE, run, NULL); } \
  OF_HALVES(name##_blocks, blocks_as(op, FG_FLOAT16, run, NULL), blocks_as(op, FG_BFLOAT16, run, NULL))
SOFTMAX_KERNELS(BLOCKS_KERNEL)

#define LISTED_BLOCKS(name, op)                                                            \
  FG_KERNEL void FG_NAME(name##_listed_blocks)(const fg_run *run, const fg_lines *lines) { \
    blocks_as(op, FG_NATIVE, run, lines);                                                  \
  }
LISTED_KERNELS(LISTED_BLOCKS)
