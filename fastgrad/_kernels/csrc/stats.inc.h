/* Statistics of a row of logits and its target, from one reading of memory:
 *
 *   pass 1   the maximum, and how many classes come before the target
 *   pass 2   terms exp(x - max), summed without the first maximum and the target: R; and D = sum of e (max - x)
 *
 *   logsumexp = max + log1p((R + e_y)/e_max),   nll = log1p((R + e_max)/e_y),   entropy = log(S/e_max) + D/S
 *
 * All terms are >= 0 and none is subtracted.  The second pass finds the row in the caches and prefetches the next one,
 * so that memory and arithmetic overlap.  One row at a time in every layout.
 */
typedef struct {
  T nll, logsumexp, entropy;
  int64_t argmax, rank;
} TokenStats;

/* Beyond this far below the maximum a term is exactly 0; it keeps 0 * inf out of D. */
#define FAR_BELOW ((T)(FG_DOUBLE ? -1000 : -200))

/* Joins n logits to the maximum and counts those on one side of y; y is the row's own or -inf. */
FG_INLINE V stats_scan(const int below, const int half, const void *x, ptrdiff_t n, V y, V max, VI *count) {
  V a = max, b = max;
  VI more = viset(0);
  for (ptrdiff_t c = 0; c < n; c += 2 * LANES) {
    const V u = line_load_n(half, x, c, n - c, y);
    const V v = n - c > LANES ? line_load_n(half, x, c + LANES, n - c - LANES, y) : y;
    a = vmax(u, a);
    b = vmax(v, b);
    *count += visel(below ? vlt(u, y) : vlt(y, u), viset(1), viset(0));
    more += visel(below ? vlt(v, y) : vlt(y, v), viset(1), viset(0));
  }
  *count += more;
  return vmax(a, b);
}

FG_INLINE V stats_term(V x, V max, const Frame *frame, Base base, Sum *sum) {
  const V e = sum_add(sum, 0, exp_term(x - frame->shift, frame, base));
  return e * vmax(vset(FAR_BELOW), x - max);
}

/* R and -D over n neighbouring logits.  Few terms of D are added before they are widened: all have one sign. */
FG_INLINE void stats_sum(const int half, const void *x, ptrdiff_t n, V max, const Frame *frame, Base base, Sum *sum,
                         Wide *d, const void *ahead) {
  const V low = vset((T)-__builtin_inf());
  ptrdiff_t c = 0;
  for (; c + SUM_BLOCK * LANES <= n; c += SUM_BLOCK * LANES) {
    for (int part = 0; part < 2; part++) {
      V sums = vset(0);
#pragma GCC unroll 8
      for (int k = part * SUM_BLOCK / 2; k < (part + 1) * SUM_BLOCK / 2; k++) {
        sums += stats_term(line_load(half, x, c + k * LANES), max, frame, base, sum);
        FG_PREFETCH(line_at(half, ahead, c + k * LANES));
      }
      wide_add(d, sums);
    }
    sum_flush(sum);
  }
  for (; c < n; c += LANES) {
    wide_add(d, stats_term(line_load_n(half, x, c, n - c, low), max, frame, base, sum));
    FG_PREFETCH(line_at(half, ahead, c));
  }
  sum_flush(sum);
}

/* x lies in memory as `half` says; if that is not FG_NATIVE, it is flat. */
FG_INLINE void stats_as(const int half, const fg_run *run) {
  const ptrdiff_t n = run->classes;
  const Base base = base_of(run);
  const V low = vset((T)-__builtin_inf()), inv_t = vset((T)run->inv_temperature);
  const T nan = (T)__builtin_nan("");
  T *const packed = (T *)run->scratch;
  const int direct = half != FG_NATIVE || run->x_class == (ptrdiff_t)sizeof(T);
  for (ptrdiff_t r = 0; r < run->rows; r++) {
    int empty;
    const void *const x = row_line(half, run, r, packed, &empty);
    const void *const ahead = direct && r + 1 < run->rows ? run->x + (r + 1) * run->x_row : x;
    const ptrdiff_t y = run->target[r];
    const V own = vset(y < 0 ? 0 : line_get(half, x, y));
    VI below = viset(0), above = viset(0);
    V max = low;
    if (y >= 0) {
      max = stats_scan(1, half, x, y, own, own, &below);
      max = stats_scan(0, half, line_at(half, x, y + 1), n - y - 1, own, max, &above);
    } else {
      max = stats_scan(0, half, x, n, low, max, &above);
    }
    I fewer[LANES], more[LANES];
    memcpy(fewer, &below, sizeof fewer);
    memcpy(more, &above, sizeof more);
    TokenStats stats = {0, 0, 0, -1, y};
    for (int i = 0; i < LANES; i++) stats.rank += (int64_t)more[i] - (int64_t)fewer[i];
    const T top = vreduce_max(max);
    const int finite = top - top == 0;
    V2 sum = {vset(nan), vset(nan)};
    if (finite) {
      stats.argmax = row_find(half, x, n, top);
      const ptrdiff_t first = y < 0 || stats.argmax < y ? stats.argmax : y, last = stats.argmax < y ? y : stats.argmax;
      State s;
      s.top = s.max = vset(top);
      s.finite = vtruth(1);
      s.gone = vtruth(0);
      s.frame = frame_of(s.max, base);
      Sum rest = sum_start();
      Wide d = wide_start();
      for (ptrdiff_t c = 0; c <= n;) { /* between the holes */
        const ptrdiff_t to = c <= first ? first : c <= last ? last : n;
        stats_sum(half, line_at(half, x, c), to - c, s.max, &s.frame, base, &rest, &d, line_at(half, ahead, c));
        c = to + 1;
      }

      const V2 others = sum_lanes(rest), e_max = term2(exp_term(s.max - s.frame.shift, &s.frame, base));
      const int apart = y >= 0 && y != stats.argmax;
      V2 e_y = {vset(0), vset(0)}, gaps = wide_lanes(d);
      if (apart) {
        e_y = term2(exp_term(own - s.frame.shift, &s.frame, base));
        gaps = add2(gaps, (V2){e_y.h * vmax(vset(FAR_BELOW), own - s.max), vset(0)});
      }
      s.rest = add2(others, e_y);
      s.x_left = s.max;
      sum = add2(s.rest, e_max);
      const V2 left = term_left(&s, base), log = log_rest(&s, left), mean = div2(gaps, sum);
      stats.logsumexp = finish_value(LOGSUMEXP, &s, left, base, inv_t)[0];
      stats.entropy = ((log.h - mean.h) + (log.l - mean.l))[0];
      if (y >= 0) {
        s.x_left = own;
        s.rest = apart ? add2(others, e_max) : others;
        stats.nll = finish_value(XENT, &s, term_left(&s, base), base, inv_t)[0];
      }
    }
    if (FG_UNLIKELY(sum.h[0] != sum.h[0])) { /* no finite maximum, or a NaN beside it */
      const ptrdiff_t bad = first_nan(half, x, n);
      stats.argmax = bad < 0 ? row_find(half, x, n, top) : bad;
      stats.logsumexp = bad < 0 ? top : nan;
      stats.entropy = nan;
      if (y >= 0) stats.nll = nan;
      if (bad >= 0) stats.rank = -1;
    }
    if (y < 0) stats.rank = -1;
    *(TokenStats *)(run->value + r * run->value_row) = stats;
  }
}

FG_KERNEL void FG_NAME(token_stats)(const fg_run *run) { stats_as(FG_NATIVE, run); }
OF_HALVES(token_stats, stats_as(FG_FLOAT16, run), stats_as(FG_BFLOAT16, run))
