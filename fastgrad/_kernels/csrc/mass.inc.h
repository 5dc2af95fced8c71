/* Cross-entropy with every option, and its second order.
 *
 * A row's target puts a mass m_c = w_c ((1 - eps) t_c + eps / K) on each class: w the class weights, t one-hot or
 * probabilities, eps the smoothing, K the number of classes that `where` keeps.  With A = sum m, p = softmax(x),
 * lse = logsumexp(x), B = A + 2 z lse and z the factor of the z-loss,
 *
 *   loss = sum m_c (lse - x_c) + z lse^2 = A log(S/e_max) + sum m_c (x_max - x_c) + z lse^2     all terms >= 0
 *   gradient = B p - m,  at the maximum (sum of the other m) + 2 z lse - B rest/S               no p - 1 if p > 1/2
 *   H v = p (B (d - p.d) + 2 z (v_max + p.d)),  d = v - v_max                                   H 1 = 0 exactly if z = 0
 *   diag H = p (B (1 - p) + 2 z p),  at the maximum 1 - p = rest/S
 *
 * where `rest` sums the exponentials of all classes but one of the largest, e_max.  So confident rows keep full
 * relative accuracy in first and second order.  `value` gets the factor beta, `out` alpha.  A class that `where`
 * drops has no mass and gets exactly 0; 0 * inf counts as 0.
 */
enum { MASS_VALUE, MASS_GRAD, MASS_HVP, MASS_DIAG };

/* A row between its passes; every field has one lane per row, or one row broadcast. */
typedef struct {
  State state;    /* its term left out is a maximum */
  V2 others, gap; /* sum of m but of the class left out; sum of m_c (x_max - x_c) */
  V held;         /* the m left out of `others` */
  V v_left;       /* MASS_HVP: v at the class left out, and p.d */
  V2 dot;
} Masses;

/* What turns a term e of the row into the result. */
typedef struct {
  V2 scale; /* GRAD: F B / S, else 1 / S; F the factor of the row */
  V b, d;   /* F B, 2 z F */
  V far;    /* MASS_HVP: d (v_max + p.d) */
  V patch;  /* the result at the class left out */
} MassMap;

FG_INLINE V2 wide_value(Wide w) { /* nothing but the head counts where that is infinite */
#if FG_DOUBLE
  return two_sum(w.h, vsel(veq(vabs(w.h), vset((T)__builtin_inf())), vset(0), w.l));
#else
  V2 r;
  wide_split(&w, &r.h, &r.l);
  return r;
#endif
}

/* All lanes of a sum that may be infinite, broadcast. */
FG_INLINE V2 wide_lanes(Wide w) {
#if FG_DOUBLE
  const V2 r = total2(w);
  T sum = 0;
  for (int i = 0; i < LANES; i++) sum += w.h[i];
  return sum - sum == 0 ? r : (V2){vset(sum), vset(0)};
#else
  const double sum = wide_total(&w);
  const T high = (T)sum;
  return (V2){vset(high), vset(sum - sum == 0 ? (T)(sum - (double)high) : 0)};
#endif
}

FG_INLINE V2 mass_lse(const State *s, V2 log, V inv_t) {
  const V2 v = two_sum(s->max * inv_t, log.h);
  return (V2){v.h, v.l + log.l};
}

FG_INLINE V mass_value(const Masses *m, const fg_run *run, Base base, V inv_t) {
  const V2 log = log_rest(&m->state, term_left(&m->state, base)), a = two_sum(m->others.h, m->held);
  const V total = a.h + (a.l + m->others.l);
  const V2 lse = mass_lse(&m->state, log, inv_t);
  const V square = (lse.h + lse.l) * (lse.h + lse.l);
  V v = vfma(total, log.h, m->gap.h) + vmla(total, log.l, m->gap.l);
  if (run->z_loss != 0) v = vfma(vset((T)run->z_loss), square, v);
  /* There the tail is NaN whatever the row holds; the logarithm is if the row is. */
  v = vsel(veq(m->gap.h, vset((T)__builtin_inf())), m->gap.h + (log.h + log.l), v);
  return vsel(m->state.finite, v, vset((T)__builtin_nan("")));
}

FG_INLINE MassMap mass_map(const int op, const Masses *m, const fg_run *run, V2 factor, Base base, V inv_t) {
  const V nan = vset((T)__builtin_nan("")), z2 = vset((T)(2 * run->z_loss));
  const V2 left = term_left(&m->state, base), sum = add2(m->state.rest, left);
  V ridge = vset(0); /* 2 z lse */
  if (run->z_loss != 0) {
    const V2 lse = mass_lse(&m->state, log_rest(&m->state, left), inv_t);
    ridge = z2 * (lse.h + lse.l);
  }
  const V b = (m->others.h + m->held) + ridge, rest = m->state.rest.h / sum.h, p = left.h / sum.h;
  MassMap map;
  map.scale = reciprocal2(sum);
  map.b = b * factor.h;
  map.d = z2 * factor.h;
  map.far = vset(0);
  if (op == MASS_GRAD) {
    map.scale = mul2(map.scale, mul2(factor, (V2){b, vset(0)}));
    /* The sum of the others cancels where the largest class has less than half. */
    const V plain = vscale2(left.h, map.scale.h, map.scale.l) - m->held * factor.h;
    map.patch = vsel(vlt(p, vset((T)0.5)), plain, factor.h * vmla(-b, rest, m->others.h + ridge));
  } else if (op == MASS_HVP) {
    map.far = map.d * ((m->v_left + m->dot.h) + m->dot.l);
    map.patch = p * vmla(-map.b, m->dot.h + m->dot.l, map.far);
  } else {
    map.patch = p * vmla(map.b, rest, map.d * p);
  }
  map.scale.h = vsel(m->state.finite, map.scale.h, nan);
  map.patch = vsel(m->state.finite, map.patch, nan);
  return map;
}

/* `mass` comes with the factor F. */
FG_INLINE V mass_apply(const int op, V term, V mass, V v, const MassMap *map, const Masses *m) {
  const V p = vscale2(term, map->scale.h, map->scale.l);
  if (op == MASS_GRAD) return p - mass;
  if (op == MASS_HVP) {
    const V2 d = two_sum(v, -m->v_left);
    return p * vmla(map->b, (d.h - m->dot.h) + (d.l - m->dot.l), map->far);
  }
  return p * vmla(map->b, vset(1) - p, map->d * p);
}

/* ---- rows ------------------------------------------------------------------------------------------------ */

/* The first n lanes; n >= LANES, where the compiler knows that, costs nothing. */
FG_INLINE V vload_some(const T *p, ptrdiff_t n, V fill) { return line_load_n(FG_NATIVE, p, 0, n, fill); }

FG_INLINE V class_mass(const int soft, V w, V t, V hard, V spread) {
  return w * (soft ? vmla(t, hard, spread) : spread);
}

#define MASS_BLOCK 4 /* masses added before they are widened: terms >= 0, so little more than one rounding */

/* Adds m and m (x_max - x) of the n <= LANES classes from c on; x lies `top` below its maximum. */
FG_INLINE void mass_add(const int soft, const int has_gap, const int careful, const T *x, const T *t, const T *w,
                        ptrdiff_t c, ptrdiff_t n, V top, V hard, V spread, V *sum, V *gaps) {
  const V zero = vset(0);
  const V mass = class_mass(soft, vload_some(w + c, n, zero), soft ? vload_some(t + c, n, zero) : zero, hard, spread);
  *sum += mass;
  if (has_gap) {
    const V term = mass * (top - vload_some(x + c, n, top));
    *gaps += careful ? vdrop(veq(mass, zero), term) : term;
  }
}

/* Part of a line. */
FG_INLINE void mass_span(const int soft, const int has_gap, const int careful, const T *x, const T *t, const T *w,
                         ptrdiff_t from, ptrdiff_t to, V top, V hard, V spread, Wide *others, Wide *gap,
                         const T *ahead) {
  V sum = vset(0), gaps = vset(0);
  ptrdiff_t c = from;
  for (; c + MASS_BLOCK * LANES <= to; c += MASS_BLOCK * LANES) {
#pragma GCC unroll 4
    for (int k = 0; k < MASS_BLOCK; k++) {
      mass_add(soft, has_gap, careful, x, t, w, c + k * LANES, LANES, top, hard, spread, &sum, &gaps);
      if (soft) FG_PREFETCH(ahead + c + k * LANES);
    }
    wide_add(others, sum);
    if (has_gap) wide_add(gap, gaps);
    sum = gaps = vset(0);
  }
  for (; c + LANES <= to; c += LANES)
    mass_add(soft, has_gap, careful, x, t, w, c, LANES, top, hard, spread, &sum, &gaps);
  if (c < to) mass_add(soft, has_gap, careful, x, t, w, c, to - c, top, hard, spread, &sum, &gaps);
  wide_add(others, sum);
  if (has_gap) wide_add(gap, gaps);
}

/* others and gap over a whole line but its class `left`, which has no gap. */
FG_INLINE void mass_line(const int soft, const int has_gap, const int careful, const T *x, const T *t, const T *w,
                         ptrdiff_t n, ptrdiff_t left, T top_, T hard_, T spread_, const T *ahead, Masses *m) {
  const V top = vset(top_), hard = vset(hard_), spread = vset(spread_), zero = vset(0);
  Wide others = wide_start(), gap = wide_start();
  const ptrdiff_t hole = left < 0 ? n : left - left % LANES, next = hole + LANES < n ? hole + LANES : n;
  mass_span(soft, has_gap, careful, x, t, w, 0, hole, top, hard, spread, &others, &gap, ahead);
  m->held = zero;
  if (hole < n) {
    T x_line[LANES], t_line[LANES], w_line[LANES];
    const ptrdiff_t here = next - hole;
    vstore(x_line, vload_some(x + hole, here, top));
    vstore(t_line, soft ? vload_some(t + hole, here, zero) : zero);
    vstore(w_line, vload_some(w + hole, here, zero));
    m->held = class_mass(soft, vset(w_line[left - hole]), vset(t_line[left - hole]), hard, spread);
    w_line[left - hole] = 0;
    mass_span(soft, has_gap, careful, x_line, t_line, w_line, 0, LANES, top, hard, spread, &others, &gap, t_line);
  }
  mass_span(soft, has_gap, careful, x, t, w, next, n, top, hard, spread, &others, &gap, ahead);
  m->others = wide_lanes(others);
  m->gap = wide_lanes(gap);
}

FG_INLINE void add_to(V2 *sum, V v) {
  const V2 s = two_sum(sum->h, v);
  *sum = (V2){s.h, sum->l + s.l};
}

/* s + e d, d = v - v_left in two words: one may be far larger than the others. */
FG_INLINE V2 mass_dot(V2 s, V e, V v, V v_left) {
  const V2 d = two_sum(v, -v_left);
  const V ed = e * d.h;
  const V2 t = two_sum(s.h, ed);
  return (V2){t.h, s.l + (t.l + vmla(e, d.l, vfma(e, d.h, -ed)))};
}

/* sum of term (v - v_left) over a line, in two words. */
FG_INLINE V2 line_dot(const T *terms, const T *v, ptrdiff_t n, V v_left, const T *ahead) {
  V2 s = {vset(0), vset(0)};
  for (ptrdiff_t c = 0; c < n; c += LANES) {
    s = mass_dot(s, vload_some(terms + c, n - c, vset(0)), vload_some(v + c, n - c, v_left), v_left);
    FG_PREFETCH(ahead + c);
  }
  return total2(s);
}

/* The lines that the last pass over a row reads; masses come with the factor F. */
typedef struct {
  const T *terms, *w, *t, *v;
  V hard, spread;
  int has_mass;
} MassLine;

FG_INLINE V mass_out(const int op, const int soft, const MassLine *line, ptrdiff_t c, ptrdiff_t n, const MassMap *map,
                     const Masses *m) {
  const V zero = vset(0);
  V mass = zero;
  if (op == MASS_GRAD && (soft || line->has_mass))
    mass = class_mass(soft, vload_some(line->w + c, n, zero), soft ? vload_some(line->t + c, n, zero) : zero,
                      line->hard, line->spread);
  const V v = op == MASS_HVP ? vload_some(line->v + c, n, zero) : zero;
  return mass_apply(op, vload_some(line->terms + c, n, zero), mass, v, map, m);
}

FG_INLINE void mass_rows(const int op, const int soft, const fg_run *run) {
  const ptrdiff_t n = run->classes, room = padded(n);
  const Base base = base_of(run);
  const V inv_t = vset((T)run->inv_temperature), zero = vset(0);
  const V2 scale = scale_of(run);
  const T hard = (T)(1 - run->smoothing);
  const int flat = run->out_class == (ptrdiff_t)sizeof(T) && !run->where, stream = flat && run->stream;
  Edge edge;
  edge.bytes = 0;
  T *const terms = (T *)run->scratch, *const packed = terms + room, *const t_line = packed + room;
  T *const v_line = t_line + room, *const all_w = v_line + room, *const some_w = all_w + room;
  for (ptrdiff_t c = 0; c < n; c++) all_w[c] = run->weight ? *at(run->weight, c * run->weight_class) : 1;

  for (ptrdiff_t r = 0; r < run->rows; r++) {
    char *const out = run->out + r * run->out_row, *const value = run->value + r * run->value_row;
    const char *const drop = run->where ? run->where + r * run->where_row : NULL;
    int empty = run->target && run->target[r] < 0;
    const T *const x = empty ? NULL : row_line(FG_NATIVE, run, r, packed, &empty);
    if (empty) {
      if (run->value) *(T *)value = 0;
      if (op != MASS_VALUE)
        for (ptrdiff_t c = 0; c < n; c++) *(T *)(out + c * run->out_class) = 0;
      continue;
    }
    const T *const t = soft ? line_of(run->g + r * run->g_row, run->g_class, drop, run->where_class, n, t_line) : NULL;
    const T *w = all_w;
    ptrdiff_t kept = n;
    if (drop) {
      kept = mask_line(drop, run->where_class, n, all_w, 0, some_w);
      w = some_w;
    }
    const T spread = (T)(run->smoothing / (double)kept), top = row_max(FG_NATIVE, x, n);
    const int finite = top - top == 0;
    const ptrdiff_t left = finite ? row_find(FG_NATIVE, x, n, top) : -1;
    Masses m;
    State *const s = &m.state;
    s->top = vset(top);
    s->max = s->x_left = vset(finite ? top : 0);
    s->finite = vtruth(finite);
    s->gone = vtruth(0);
    s->frame = frame_of(s->max, base);
    const T *d = x;
    if (FG_UNLIKELY(s->frame.shift[0] != 0)) {
      for (ptrdiff_t c = 0; c < n; c++) packed[c] = x[c] - s->frame.shift[0];
      d = packed;
    }
    const ptrdiff_t next = r + 1 < run->rows ? r + 1 : r; /* its operands are prefetched */
    const T *const place = flat && op != MASS_VALUE && !stream ? (const T *)out : d;
    s->rest = sum_lanes(
        exp_row(op != MASS_VALUE, FG_NATIVE, d, n, left, &s->frame, base, terms, run->x + next * run->x_row, place));

    const T d_top = (finite ? top : 0) - s->frame.shift[0];
    const int has_gap = op == MASS_VALUE || op == MASS_GRAD;
    const T *const t_next = soft ? at(run->g, next * run->g_row) : NULL;
    if (soft || spread != 0) {
      mass_line(soft, has_gap, 0, d, t, w, n, left, d_top, hard, spread, t_next, &m);
      if (has_gap && FG_UNLIKELY(m.gap.h[0] != m.gap.h[0])) /* 0 * inf, most likely */
        mass_line(soft, has_gap, 1, d, t, w, n, left, d_top, hard, spread, t_next, &m);
    } else
      m.others = m.gap = (V2){zero, zero}, m.held = zero;
    const ptrdiff_t y = soft ? -1 : run->target[r];
    const T y_mass = soft ? 0 : hard * w[y];
    if (!soft && y_mass != 0) {
      add_to(&m.gap, vset(y_mass * (d_top - d[y])));
      if (y == left)
        m.held += vset(y_mass);
      else
        add_to(&m.others, vset(y_mass));
    }
    if (run->value) {
      V v = mass_value(&m, run, base, inv_t);
      if (run->beta) v *= vset(*at(run->beta, r * run->beta_row));
      *(T *)value = v[0];
    }
    if (op == MASS_VALUE) continue;

    const V2 factor = run->alpha ? mul2((V2){vset(*at(run->alpha, r * run->alpha_row)), zero}, scale) : scale;
    const T *v = NULL;
    m.v_left = zero;
    m.dot = (V2){zero, zero};
    if (op == MASS_HVP) {
      v = line_of(run->v + r * run->v_row, run->v_class, drop, run->where_class, n, v_line);
      m.v_left = vset(left < 0 ? 0 : v[left]);
      m.dot = mul2(line_dot(terms, v, n, m.v_left, at(run->v, next * run->v_row)),
                   reciprocal2(add2(s->rest, term_left(s, base))));
    }
    const MassMap map = mass_map(op, &m, run, factor, base, inv_t);
    const V f_hard = vset(hard) * factor.h, f_spread = vset(spread) * factor.h;
    T *const to = flat && !stream ? (T *)out : terms;
    const T y_term = soft ? 0 : terms[y];
    const MassLine line = {terms, w, t, v, f_hard, f_spread, spread != 0};
    ptrdiff_t c = 0;
    for (; c + LANES <= n; c += LANES) vstore(to + c, mass_out(op, soft, &line, c, LANES, &map, &m));
    if (c < n) vstore_n(to + c, mass_out(op, soft, &line, c, n - c, &map, &m), n - c);
    if (op == MASS_GRAD && !soft) {
      const V mass = vset(w[y]) * (f_hard + f_spread);
      to[y] = mass_apply(op, vset(y_term), mass, zero, &map, &m)[0];
    }
    if (left >= 0) to[left] = map.patch[0];
    if (stream) row_stream(&edge, (T *)out, to, n);
    if (!flat) line_out(to, n, drop, run->where_class, out, run->out_class);
  }
  edge_flush(&edge);
  if (stream) vfence();
}

/* ---- lanes ----------------------------------------------------------------------------------------------- */

FG_INLINE void mass_lanes(const int op, const int soft, const fg_run *run) {
  const ptrdiff_t n = run->classes, size = n * LANES;
  const Base base = base_of(run);
  const V inv_t = vset((T)run->inv_temperature), zero = vset(0), one = vset(1), low = vset((T)-__builtin_inf());
  const V2 scale = scale_of(run);
  const V hard = vset((T)(1 - run->smoothing));
  const Map none = {zero, zero, viset(0), zero};
  T *const x = (T *)run->scratch, *const t = x + size, *const v = t + size, *const keep = v + size;
  T *const w = keep + size;
  T empty[LANES];
  for (ptrdiff_t c = 0; c < n; c++) w[c] = run->weight ? *at(run->weight, c * run->weight_class) : 1;

  const ptrdiff_t head = group_head(run);
  for (ptrdiff_t first = 0, rows; first < run->rows; first += rows) {
    rows = first == 0 && head ? head : LANES;
    if (rows > run->rows - first) rows = run->rows - first;
    const char *const drop = run->where ? run->where + first * run->where_row : NULL;
    Masses m;
    State *const s = &m.state;
    s->gone = vtruth(0);
    VI target = viset(-1);
    if (run->target) {
      int64_t lane[LANES];
      for (ptrdiff_t l = 0; l < LANES; l++) lane[l] = run->target[first + (l < rows ? l : 0)];
      target = viload_wide(lane);
      s->gone = vieq(target, viset(-1));
    }
    pack(1, run->x + first * run->x_row, run->x_row, run->x_class, rows, n, x);
    if (soft) pack(1, run->g + first * run->g_row, run->g_row, run->g_class, rows, n, t);
    if (op == MASS_HVP) pack(1, run->v + first * run->v_row, run->v_row, run->v_class, rows, n, v);
    V spread = vset((T)(run->smoothing / (double)n));
    if (drop) {
      for (ptrdiff_t c = 0; c < n; c++) vstore(keep + c * LANES, one);
      FG_NAME(mask_tile)(drop, run->where_row, run->where_class, rows, n, 0, keep, empty);
      s->gone |= veq(vload(empty), one);
      V kept = zero;
      for (ptrdiff_t at = 0; at < size; at += LANES) {
        const V one_or_zero = vload(keep + at);
        const M dropped = veq(one_or_zero, zero);
        kept += one_or_zero;
        vstore(x + at, vsel(dropped, low, vload(x + at)));
        if (soft) vstore(t + at, vdrop(dropped, vload(t + at)));
        if (op == MASS_HVP) vstore(v + at, vdrop(dropped, vload(v + at)));
      }
      spread = vset((T)run->smoothing) / vmax(kept, one);
    }

    V max = low;
    VI class = viset(0), left = viset(-1);
    m.v_left = zero;
    for (ptrdiff_t c = 0; c < n; c++, class += viset(1)) {
      const V xc = vload(x + c * LANES);
      const M larger = vlt(max, xc);
      left = visel(larger, class, left);
      if (op == MASS_HVP) m.v_left = vsel(larger, vload(v + c * LANES), m.v_left);
      max = vmax(xc, max);
    }
    s->top = max;
    s->finite = vlt(vabs(max), vset((T)__builtin_inf()));
    s->max = s->x_left = vsel(s->finite, max, zero);
    s->frame = frame_of(s->max, base);

    Sum sum = sum_start();
    Wide others = wide_start(), gap = wide_start();
    V2 dot = {zero, zero};
    const int has_gap = op == MASS_VALUE || op == MASS_GRAD;
    m.held = zero;
    class = viset(0);
    for (ptrdiff_t c = 0; c < n;) {
      const ptrdiff_t end = c + MASS_BLOCK < n ? c + MASS_BLOCK : n;
      V masses = zero, gaps = zero;
      for (; c < end; c++, class += viset(1)) {
        const V xc = vload(x + c * LANES);
        const M is_left = vieq(left, class);
        V mass = class_mass(soft, vset(w[c]), soft ? vload(t + c * LANES) : zero, hard, spread);
        if (!soft) mass += vsel(vieq(target, class), hard * vset(w[c]), zero);
        if (drop) mass *= vload(keep + c * LANES);
        masses += vdrop(is_left, mass);
        m.held = vsel(is_left, mass, m.held);
        if (has_gap) gaps += vdrop(veq(mass, zero), mass * (s->max - xc));
        /* p.d has the rounded terms as weights, so that their sum must be that of the same. */
        const V e = sum_add(&sum, op != MASS_HVP, exp_term(vsel(is_left, low, xc - s->frame.shift), &s->frame, base));
        if (op != MASS_VALUE) vstore(x + c * LANES, e);
        if (op == MASS_HVP) dot = mass_dot(dot, e, vload(v + c * LANES), m.v_left);
      }
      wide_add(&others, masses);
      if (has_gap) wide_add(&gap, gaps);
      sum_flush(&sum);
    }
    s->rest = sum_value(sum);
    m.others = wide_value(others);
    m.gap = wide_value(gap);
    m.dot = op == MASS_HVP ? mul2(two_sum(dot.h, dot.l), reciprocal2(add2(s->rest, term_left(s, base)))) : dot;
    if (run->value) {
      V value = mass_value(&m, run, base, inv_t);
      T lane[LANES];
      if (run->beta) {
        for (ptrdiff_t l = 0; l < LANES; l++) lane[l] = *at(run->beta, (first + (l < rows ? l : 0)) * run->beta_row);
        value *= vload(lane);
      }
      vstore(lane, vdrop(s->gone, value));
      for (ptrdiff_t l = 0; l < rows; l++) *(T *)(run->value + (first + l) * run->value_row) = lane[l];
    }
    if (op == MASS_VALUE) continue;

    V2 factor = scale;
    if (run->alpha) {
      T lane[LANES];
      for (ptrdiff_t l = 0; l < LANES; l++) lane[l] = *at(run->alpha, (first + (l < rows ? l : 0)) * run->alpha_row);
      factor = mul2((V2){vload(lane), zero}, scale);
    }
    const MassMap map = mass_map(op, &m, run, factor, base, inv_t);
    const V f_hard = hard * factor.h, f_spread = spread * factor.h;
    class = viset(0);
    for (ptrdiff_t c = 0; c < n; c++, class += viset(1)) {
      V mass = zero;
      if (op == MASS_GRAD) {
        mass = class_mass(soft, vset(w[c]), soft ? vload(t + c * LANES) : zero, f_hard, f_spread);
        if (!soft) mass += vsel(vieq(target, class), f_hard * vset(w[c]), zero);
      }
      const V vc = op == MASS_HVP ? vload(v + c * LANES) : zero;
      V y = mass_apply(op, vload(x + c * LANES), mass, vc, &map, &m);
      y = vsel(vieq(left, class), map.patch, y);
      vstore(x + c * LANES, vdrop(s->gone, y));
    }
    if (drop)
      for (ptrdiff_t at = 0; at < size; at += LANES) vstore(x + at, vdrop(veq(vload(keep + at), zero), vload(x + at)));
    group_store(MAP_NONE, run, first, rows, x, &none);
  }
  if (run->stream) vfence();
}

/* Bytes of scratch for the kernels of this file. */
FG_INLINE ptrdiff_t mass_scratch(ptrdiff_t classes, int style) {
  const ptrdiff_t size = (ptrdiff_t)sizeof(T);
  return style == FG_ROWS ? 6 * padded(classes) * size : (4 * LANES * classes + padded(classes)) * size;
}

FG_KERNEL void FG_NAME(row_weight)(const fg_run *run) {
  for (ptrdiff_t r = 0; r < run->rows; r++) {
    const int gone = run->target[r] < 0 || (run->where && !run->where[r * run->where_row]);
    *(T *)(run->value + r * run->value_row) = gone ? 0 : *at(run->beta, r * run->beta_row);
  }
}

#define MASS_KERNEL(name, op, soft)                                                    \
  FG_KERNEL void FG_NAME(name##_rows)(const fg_run *run) { mass_rows(op, soft, run); } \
  FG_KERNEL void FG_NAME(name##_lanes)(const fg_run *run) { mass_lanes(op, soft, run); }
MASS_KERNEL(mass, MASS_VALUE, 0)
MASS_KERNEL(mass_grad, MASS_GRAD, 0)
MASS_KERNEL(mass_hvp, MASS_HVP, 0)
MASS_KERNEL(mass_hess_diag, MASS_DIAG, 0)
MASS_KERNEL(mass_soft, MASS_VALUE, 1)
MASS_KERNEL(mass_soft_grad, MASS_GRAD, 1)
MASS_KERNEL(mass_soft_hvp, MASS_HVP, 1)
MASS_KERNEL(mass_soft_hess_diag, MASS_DIAG, 1)
