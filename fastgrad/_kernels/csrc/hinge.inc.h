/* Hinge losses: of one score with a sign (elementwise), and of the scores of classes (Crammer-Singer, Weston-Watkins).
 *
 * Exactly at a kink the subgradient is 0, so a term counts where h > 0.  NaN passes through: vmax(0, NaN) is NaN, and
 * no other comparison is true for it.
 */

/* ---- one score: value = beta h or beta h^2 with h = max(0, margin - y x), y = 1 where the target is 1, else -1 ---- */

enum { HINGE, HINGE_GRAD, HINGE_HESS };

FG_INLINE void hinge_as(const int op, const fg_run *run) {
  const V zero = vset(0), margin = vset((T)run->margin);
  const M square = vtruth(run->squared);
  const V scale = vset((T)(run->scale * (run->squared ? 2 : 1)));
  const int stream = run->stream && run->out_row == (ptrdiff_t)sizeof(T);
  /* Streamed stores want `out` aligned: a first, short piece sees to that. */
  const ptrdiff_t head = stream ? (ptrdiff_t)(-(uintptr_t)run->out & (sizeof(V) - 1)) / (ptrdiff_t)sizeof(T) : 0;
  for (ptrdiff_t r = 0, n; r < run->rows; r += n) {
    n = r == 0 && head ? head : LANES;
    if (n > run->rows - r) n = run->rows - r;
    const V x = take(run->x + r * run->x_row, run->x_row, n);
    const M above = vieq(take_targets(run->target + r, n), viset(1));
    M gone = vtruth(0);
    V beta = vset(1), alpha = scale;
    if (run->where) gone |= dropped(run->where + r * run->where_row, run->where_row, n);
    if (run->beta) {
      beta = take(run->beta + r * run->beta_row, run->beta_row, n);
      alpha *= take(run->alpha + r * run->alpha_row, run->alpha_row, n);
      gone |= veq(beta, zero); /* the driver's mark of an element without weight is a target of -1, which counts here */
    }
    const V h = vmax(zero, margin - vsel(above, x, -x));
    if (op != HINGE_HESS && run->value)
      put(run->value + r * run->value_row, run->value_row, vdrop(gone, vsel(square, h * h, h) * beta), n);
    if (op == HINGE) continue;
    V out = alpha;
    if (op == HINGE_GRAD) {
      out = vsel(square, h * alpha, alpha);
      out = vsel(above, -out, out);
    } else {
      if (run->v) out *= take(run->v + r * run->v_row, run->v_row, n);
      out = vsel(square, out, zero);
    }
    out = vsel(vlt(zero, h), out, h);
    out = vdrop(gone, out);
    char *const to = run->out + r * run->out_row;
    if (stream && n == LANES)
      vstream((T *)to, out);
    else
      put(to, run->out_row, out, n);
  }
  if (stream) vfence();
}

FG_KERNEL void FG_NAME(hinge)(const fg_run *run) { hinge_as(HINGE, run); }
FG_KERNEL void FG_NAME(hinge_grad)(const fg_run *run) { hinge_as(HINGE_GRAD, run); }
FG_KERNEL void FG_NAME(hinge_hess)(const fg_run *run) { hinge_as(HINGE_HESS, run); }

/* ---- the scores of classes -------------------------------------------------------------------------------
 *
 * With h_j = max(0, margin + x_j - x_y) for the classes j other than the target y,
 *
 *   Weston-Watkins   value = sum h_j            squared   sum h_j^2
 *   Crammer-Singer   value = max h_j                      (max h_j)^2
 *
 * over the number of classes if `per_class`.  x_y - margin is kept in two words, so that h_j has its relative accuracy
 * (and its sign) however near the kink.  A derivative is, where h_j > 0,
 *
 *   out_j = f t_j,   out_y = -f sum t_j,   t_j = 1 or, squared, h_j (gradient), v_j - v_y (Hv), 1 (diagonal, out_y > 0)
 *
 * in Crammer-Singer for the first of the largest classes only.  A class at -inf is absent.  What a row gives is known
 * but for out_y before its classes are: Weston-Watkins takes one pass over memory.
 */
enum { MARGIN_VALUE, MARGIN_GRAD, MARGIN_HVP, MARGIN_DIAG };

/* What a row knows before its other classes; one lane per row, or one row broadcast. */
typedef struct {
  V x, high, low; /* its target's score; the same less the margin, as high + low */
  V v;            /* MARGIN_HVP: v at its target */
  V factor;       /* f */
  M curved;       /* whether there is a second derivative */
} Own;

/* `classes`: the number that the row is divided by; `alpha`: the row's factor of `out`. */
FG_INLINE Own own_of(const int op, V x, V v, V classes, V alpha, const fg_run *run) {
  Own own;
  const V2 edge = two_sum(x, vset(-(T)run->margin));
  own.x = x;
  own.high = edge.h;
  own.low = vsel(vlt(vabs(edge.h), vset((T)__builtin_inf())), edge.l, vset(0));
  own.v = v;
  own.factor = vset((T)run->scale) * alpha;
  if (run->per_class) own.factor /= classes;
  if (run->squared || op == MARGIN_HVP || op == MARGIN_DIAG) own.factor += own.factor;
  own.curved = vtruth(run->squared);
  return own;
}

/* x of the target itself must be -inf. */
FG_INLINE V margin_hinge(V x, const Own *own) {
  const V h = vmax(vset(0), (x - own->high) - own->low);
  return vdrop(veq(x, vset((T)-__builtin_inf())), h);
}

/* t, and what it adds to `out`. */
FG_INLINE V margin_slope(const int op, const int squared, V h, V v, const Own *own, V *out) {
  M on = vlt(vset(0), h);
  if (op == MARGIN_HVP || op == MARGIN_DIAG) on &= own->curved;
  const V t = op == MARGIN_GRAD && squared ? h : vsel(on, op == MARGIN_HVP ? v - own->v : vset(1), vset(0));
  *out = (op == MARGIN_GRAD && squared) || op == MARGIN_HVP ? t * own->factor : vsel(on, own->factor, vset(0));
  return t;
}

FG_INLINE ptrdiff_t kept_classes(const fg_run *run, ptrdiff_t r) {
  if (!run->where) return run->classes;
  ptrdiff_t kept = 0;
  for (ptrdiff_t c = 0; c < run->classes; c++) kept += run->where[r * run->where_row + c * run->where_class] != 0;
  return kept;
}

/* The values of up to LANES rows from `first` on, NaN where they have none: a class is NaN, or the target and its
 * rival are the same infinity. */
FG_INLINE V margin_value(V value, const Own *own, const fg_run *run, ptrdiff_t first, ptrdiff_t rows) {
  const V nan = vset((T)__builtin_nan(""));
  M absent = veq(value, vset(0)) & veq(own->x, vset((T)-__builtin_inf()));
  if (FG_UNLIKELY(vany(absent))) { /* without a rival at -inf there is none */
    T rivals[LANES];
    for (ptrdiff_t l = 0; l < LANES; l++) rivals[l] = (T)(kept_classes(run, first + (l < rows ? l : 0)) - 1);
    absent &= vlt(vset(0), vload(rivals));
  }
  return vsel(absent, nan, vsel(veq(own->x, own->x), value, nan));
}

FG_INLINE V margin_weigh(V value, V classes, V beta, const fg_run *run) {
  return (run->per_class ? value / classes : value) * beta;
}

FG_INLINE V margin_own_out(const int op, V slopes, const Own *own) {
  return op == MARGIN_DIAG ? slopes * own->factor : vset(0) - slopes * own->factor;
}

/* The tail of a sum that is infinite is none. */
FG_INLINE V joined(V2 sum) { return vsel(veq(vabs(sum.h), vset((T)__builtin_inf())), sum.h, sum.h + sum.l); }

/* ---- rows ------------------------------------------------------------------------------------------------ */

/* One class of Weston-Watkins, added to what the row sums up; returns its `out`. */
FG_INLINE V margin_step(const int op, const int squared, V x, V v, const Own *own, V *values, V *slopes) {
  const V h = margin_hinge(x, own);
  V out = vset(0);
  *values += squared ? h * h : h;
  if (op != MARGIN_VALUE) *slopes += margin_slope(op, squared, h, v, own, &out);
  return out;
}

FG_INLINE V margin_load(const int op, const int squared, const T *x, const T *v, ptrdiff_t n, const Own *own, V *values,
                        V *slopes) {
  const V zero = vset(0), v_part = op == MARGIN_HVP ? vload_some(v, n, zero) : zero;
  return margin_step(op, squared, vload_some(x, n, vset((T)-__builtin_inf())), v_part, own, values, slopes);
}

/* Weston-Watkins over n classes, none of them the target. */
FG_INLINE void margin_span(const int op, const int squared, const T *x, const T *v, ptrdiff_t n, const Own *own, T *to,
                           Wide *value, Wide *slope) {
  const V zero = vset(0);
  V values = zero, slopes = zero;
  ptrdiff_t c = 0;
  for (; c + MASS_BLOCK * LANES <= n; c += MASS_BLOCK * LANES) {
#pragma GCC unroll 4
    for (int k = 0; k < MASS_BLOCK; k++) {
      const ptrdiff_t at = c + k * LANES;
      const V out = margin_load(op, squared, x + at, v + at, LANES, own, &values, &slopes);
      if (op != MARGIN_VALUE) vstore(to + at, out);
    }
    wide_add(value, values);
    if (op != MARGIN_VALUE) wide_add(slope, slopes);
    values = slopes = zero;
  }
  for (; c + LANES <= n; c += LANES) {
    const V out = margin_load(op, squared, x + c, v + c, LANES, own, &values, &slopes);
    if (op != MARGIN_VALUE) vstore(to + c, out);
  }
  if (c < n) {
    const V out = margin_load(op, squared, x + c, v + c, n - c, own, &values, &slopes);
    if (op != MARGIN_VALUE) vstore_n(to + c, out, n - c);
  }
  wide_add(value, values);
  if (op != MARGIN_VALUE) wide_add(slope, slopes);
}

/* Joins n scores to `max`; `number` stays true in lanes that saw no NaN. */
FG_INLINE V rival_max(const T *x, ptrdiff_t n, V max, M *number) {
  const V low = vset((T)-__builtin_inf());
  V a = max, b = max;
  M all = *number, more = vtruth(1);
  ptrdiff_t c = 0;
  for (; c + 2 * LANES <= n; c += 2 * LANES) {
    const V u = vload(x + c), v = vload(x + c + LANES);
    all &= veq(u, u);
    more &= veq(v, v);
    a = vmax(u, a);
    b = vmax(v, b);
  }
  for (; c < n; c += LANES) {
    const V u = vload_some(x + c, n - c, low);
    all &= veq(u, u);
    a = vmax(u, a);
  }
  *number = all & more;
  return vmax(a, b);
}

/* The first class other than y with this score. */
FG_INLINE ptrdiff_t rival_find(const T *x, ptrdiff_t n, ptrdiff_t y, T score) {
  const ptrdiff_t before = row_find(FG_NATIVE, x, y, score);
  return before >= 0 ? before : y + 1 + row_find(FG_NATIVE, x + y + 1, n - y - 1, score);
}

FG_INLINE void margin_rows(const int op, const int every, const int squared, const fg_run *run) {
  const ptrdiff_t n = run->classes, room = padded(n);
  const V low = vset((T)-__builtin_inf());
  const T nan = (T)__builtin_nan("");
  const int has_out = op != MARGIN_VALUE, flat = run->out_class == (ptrdiff_t)sizeof(T);
  const int stream = has_out && flat && run->stream;
  T *const packed = (T *)run->scratch, *const v_line = packed + room, *const line = v_line + room;
  Edge edge;
  edge.bytes = 0;

  for (ptrdiff_t r = 0; r < run->rows; r++) {
    char *const out = run->out + r * run->out_row;
    const char *const drop = run->where ? run->where + r * run->where_row : NULL;
    T *const to = flat && !stream ? (T *)out : line;
    const ptrdiff_t y = run->target[r];
    int empty = y < 0;
    const T *const x = empty ? NULL : row_line(FG_NATIVE, run, r, packed, &empty);
    T total = 0;
    if (empty) {
      if (has_out) memset(to, 0, (size_t)n * sizeof(T));
    } else {
      const char *const v_row = op == MARGIN_HVP ? run->v + r * run->v_row : NULL;
      const V classes = vset((T)(run->per_class ? kept_classes(run, r) : n));
      const V alpha = vset(run->alpha ? *at(run->alpha, r * run->alpha_row) : 1);
      const V beta = vset(run->beta ? *at(run->beta, r * run->beta_row) : 1);
      const V v_own = vset(op == MARGIN_HVP ? *at(v_row, y * run->v_class) : 0);
      const Own own = own_of(op, vset(x[y]), v_own, classes, alpha, run);
      V value, slope = vset(0);
      if (every) {
        const T *const v = op == MARGIN_HVP ? line_of(v_row, run->v_class, NULL, 0, n, v_line) : x;
        Wide values = wide_start(), slopes = wide_start();
        margin_span(op, squared, x, v, y, &own, to, &values, &slopes);
        margin_span(op, squared, x + y + 1, v + y + 1, n - y - 1, &own, to + y + 1, &values, &slopes);
        value = joined(wide_lanes(values));
        if (has_out) slope = joined(wide_lanes(slopes));
      } else {
        M number = vtruth(1);
        const V before = rival_max(x, y, low, &number);
        const V top = vset(vreduce_max(rival_max(x + y + 1, n - y - 1, before, &number)));
        const V h = margin_hinge(top, &own);
        value = vany((M)~number) ? vset(nan) : squared ? h * h : h;
        if (has_out) {
          const int on = h[0] > 0;
          const ptrdiff_t rival = on ? rival_find(x, n, y, top[0]) : y;
          const V v = vset(op == MARGIN_HVP && on ? *at(v_row, rival * run->v_class) : 0);
          V at_rival;
          slope = margin_slope(op, squared, h, v, &own, &at_rival);
          memset(to, 0, (size_t)n * sizeof(T));
          to[rival] = at_rival[0];
        }
      }
      value = margin_value(value, &own, run, r, 1);
      total = margin_weigh(value, classes, beta, run)[0];
      if (has_out) to[y] = margin_own_out(op, slope, &own)[0];
      if (has_out && FG_UNLIKELY(value[0] != value[0]))
        for (ptrdiff_t c = 0; c < n; c++) to[c] = drop && !drop[c * run->where_class] ? 0 : nan;
    }
    if (stream) row_stream(&edge, (T *)out, line, n);
    if (run->value) *(T *)(run->value + r * run->value_row) = total;
    if (has_out && !flat)
      for (ptrdiff_t c = 0; c < n; c++) *(T *)(out + c * run->out_class) = line[c];
  }
  edge_flush(&edge);
  if (stream) vfence();
}

/* ---- lanes ----------------------------------------------------------------------------------------------- */

/* A group of up to LANES rows from `first` on; the tile x becomes that of `out`, but for the classes in the map. */
FG_INLINE void margin_group(const int op, const int every, const int squared, const fg_run *run, ptrdiff_t first,
                            ptrdiff_t rows, T *x, const T *v, const T *empty, Map *map) {
  const ptrdiff_t n = run->classes;
  const V zero = vset(0), low = vset((T)-__builtin_inf()), nan = vset((T)__builtin_nan(""));
  const int has_out = op != MARGIN_VALUE;
  int64_t lane_y[LANES];
  T own_x[LANES], own_v[LANES], kept[LANES];
  for (ptrdiff_t l = 0; l < LANES; l++) {
    lane_y[l] = run->target[first + (l < rows ? l : 0)];
    if (empty && empty[l] != 0) lane_y[l] = -1;
    /* +inf makes every hinge of a row that is left out 0. */
    own_x[l] = lane_y[l] < 0 ? (T)__builtin_inf() : x[lane_y[l] * LANES + l];
    own_v[l] = op == MARGIN_HVP && lane_y[l] >= 0 ? v[lane_y[l] * LANES + l] : 0;
    kept[l] = (T)(run->per_class ? kept_classes(run, first + (l < rows ? l : 0)) : n);
  }
  const VI target = viload_wide(lane_y);
  const M gone = vieq(target, viset(-1));
  const V alpha = run->alpha ? take(run->alpha + first * run->alpha_row, run->alpha_row, rows) : vset(1);
  const V beta = run->beta ? take(run->beta + first * run->beta_row, run->beta_row, rows) : vset(1);
  const V classes = vsel(gone, vset(1), vload(kept));
  const Own own = own_of(op, vload(own_x), vload(own_v), classes, alpha, run);
  V value, slope = zero;
  VI class = viset(0);
  if (every) {
    Wide values = wide_start(), slopes = wide_start();
    for (ptrdiff_t c = 0; c < n;) {
      const ptrdiff_t end = c + MASS_BLOCK < n ? c + MASS_BLOCK : n;
      V sum = zero, slope_sum = zero;
      for (; c < end; c++, class += viset(1)) {
        T *const at_class = x + c * LANES;
        const V xc = vsel(vieq(target, class), low, vload(at_class)),
                vc = op == MARGIN_HVP ? vload(v + c * LANES) : zero;
        const V out = margin_step(op, squared, xc, vc, &own, &sum, &slope_sum);
        if (has_out) vstore(at_class, out);
      }
      wide_add(&values, sum);
      if (has_out) wide_add(&slopes, slope_sum);
    }
    value = joined(wide_value(values));
    slope = joined(wide_value(slopes));
  } else {
    V top = low;
    VI rival = viset(-1);
    M number = vtruth(1);
    for (ptrdiff_t c = 0; c < n; c++, class += viset(1)) {
      const V xc = vsel(vieq(target, class), low, vload(x + c * LANES));
      const M larger = vlt(top, xc);
      number &= veq(xc, xc);
      rival = visel(larger, class, rival);
      top = vsel(larger, xc, top);
    }
    const V h = margin_hinge(top, &own);
    value = vsel(number, squared ? h * h : h, nan);
    if (has_out) {
      T at_rival[LANES];
      for (ptrdiff_t l = 0; l < LANES; l++)
        at_rival[l] = op == MARGIN_HVP && rival[l] >= 0 ? v[rival[l] * LANES + l] : 0;
      V out;
      slope = margin_slope(op, squared, h, vload(at_rival), &own, &out);
      class = viset(0);
      for (ptrdiff_t c = 0; c < n; c++, class += viset(1)) vstore(x + c * LANES, vsel(vieq(rival, class), out, zero));
    }
  }
  value = margin_value(value, &own, run, first, rows);
  if (run->value)
    put(run->value + first * run->value_row, run->value_row, vdrop(gone, margin_weigh(value, classes, beta, run)),
        rows);
  if (!has_out) return;
  map->target = target;
  map->patch = margin_own_out(op, slope, &own);
  const M number = veq(value, value);
  if (FG_UNLIKELY(vany((M)~number))) {
    map->patch = vsel(number, map->patch, nan);
    for (ptrdiff_t c = 0; c < n; c++) vstore(x + c * LANES, vdrop(gone, vsel(number, vload(x + c * LANES), nan)));
    if (run->where) {
      T unused[LANES];
      FG_NAME(mask_tile)(run->where + first * run->where_row, run->where_row, run->where_class, rows, n, 0, x, unused);
    }
  }
}

FG_INLINE void margin_lanes(const int op, const int every, const int squared, const fg_run *run) {
  const int has_out = op != MARGIN_VALUE;
  const ptrdiff_t n = run->classes, size = (ptrdiff_t)sizeof(T);
  /* As in lanes_as: one group at a time where it is transposed, several where memory wants long pieces of a class. */
  const int by_group = (run->x_class == size && (!has_out || run->out_class == size)) || op == MARGIN_HVP;
  const ptrdiff_t most = by_group ? 1 : tile_groups(n, run->stream);
  T *const tile = (T *)run->scratch, *const v = tile + n * LANES;
  T empty[GROUPS_MAX * LANES];
  Map map[GROUPS_MAX];
  const Streams streams = by_group ? (Streams){0, NULL} : streams_start(run, most, tile + most * n * LANES);
  memset(map, 0, sizeof map);
  for (ptrdiff_t first = 0, rows; first < run->rows; first += rows) {
    rows = first == 0 && streams.head ? streams.head : most * LANES;
    if (rows > run->rows - first) rows = run->rows - first;
    lanes_load(1, run, first, rows, tile, empty, NULL);
    if (op == MARGIN_HVP) pack(1, run->v + first * run->v_row, run->v_row, run->v_class, rows, n, v);
    for (ptrdiff_t g = 0; g * LANES < rows; g++) {
      const ptrdiff_t left = rows - g * LANES;
      margin_group(op, every, squared, run, first + g * LANES, left < LANES ? left : LANES, tile + g * n * LANES, v,
                   run->where ? empty + g * LANES : NULL, map + g);
    }
    if (has_out && by_group)
      group_store(MAP_PATCH, run, first, rows, tile, map);
    else if (has_out)
      tile_store(MAP_PATCH, run, first, rows, tile, map, 1, streams.edges);
  }
  streams_end(streams, n);
  if (run->stream) vfence();
}

#define MARGIN_STYLE(name, style, op, every)                       \
  FG_KERNEL void FG_NAME(name##_##style)(const fg_run *run) {      \
    if ((op == MARGIN_VALUE || op == MARGIN_GRAD) && run->squared) \
      margin_##style(op, every, 1, run);                           \
    else                                                           \
      margin_##style(op, every, 0, run);                           \
  }
#define MARGIN_KERNEL(name, op, every) MARGIN_STYLE(name, rows, op, every) MARGIN_STYLE(name, lanes, op, every)
MARGIN_KERNEL(crammer_singer, MARGIN_VALUE, 0)
MARGIN_KERNEL(crammer_singer_grad, MARGIN_GRAD, 0)
MARGIN_KERNEL(crammer_singer_hvp, MARGIN_HVP, 0)
MARGIN_KERNEL(crammer_singer_hess_diag, MARGIN_DIAG, 0)
MARGIN_KERNEL(weston_watkins, MARGIN_VALUE, 1)
MARGIN_KERNEL(weston_watkins_grad, MARGIN_GRAD, 1)
MARGIN_KERNEL(weston_watkins_hvp, MARGIN_HVP, 1)
MARGIN_KERNEL(weston_watkins_hess_diag, MARGIN_DIAG, 1)
