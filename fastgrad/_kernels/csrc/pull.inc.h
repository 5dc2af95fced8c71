/* Derivatives of the maps, from probabilities p and a cotangent or tangent g:
 *
 *   softmax      vjp = jvp   alpha p (g - p.g)
 *   log_softmax  vjp         alpha (g - p sum(g))
 *   log_softmax  jvp         alpha (g - p.g)
 *   logsumexp    jvp         alpha p.g
 *
 * alpha is the common factor `scale` (1 / temperature).  The row's sum is taken in two words (Ogita, Rump
 * & Oishi 2005, doi 10.1137/030601818), because g may have any sign.  A class that `where` drops counts
 * as g = 0 and gets exactly 0.
 */
enum { PULL_SOFTMAX, PULL_LOG_SOFTMAX, PUSH_LOG_SOFTMAX, PUSH_LOGSUMEXP };

FG_INLINE V2 dot_add(const int op, V2 s, V p, V g) {
  const V term = op == PULL_LOG_SOFTMAX ? g : p * g;
  const V err = op == PULL_LOG_SOFTMAX ? vset(0) : vfma(p, g, -term);
  const V2 t = two_sum(s.h, term);
  return (V2){t.h, s.l + (t.l + err)};
}

/* (s.h + s.l) is kept apart to the end: g - s cancels when one class holds all the probability. */
FG_INLINE V pull_apply(const int op, V p, V g, V2 s, V alpha) {
  if (op == PULL_SOFTMAX) return (p * ((g - s.h) - s.l)) * alpha;
  if (op == PULL_LOG_SOFTMAX) return vfma(-p, s.h, g) * alpha;
  return ((g - s.h) - s.l) * alpha;
}

FG_INLINE const T *line_of(const char *p, ptrdiff_t cls, const char *w, ptrdiff_t w_cls, ptrdiff_t n, T *packed) {
  if (cls == (ptrdiff_t)sizeof(T) && !w) return (const T *)p;
  const T *line = (const T *)p;
  if (cls != (ptrdiff_t)sizeof(T)) {
    for (ptrdiff_t c = 0; c < n; c++) packed[c] = *at(p, c * cls);
    line = packed;
  }
  if (w) mask_line(w, w_cls, n, line, 0, packed);
  return packed;
}

/* A line to where it belongs; what `w` drops is 0. */
FG_INLINE void line_out(T *line, ptrdiff_t n, const char *w, ptrdiff_t w_cls, char *out, ptrdiff_t cls) {
  const int contiguous = cls == (ptrdiff_t)sizeof(T);
  if (w) mask_line(w, w_cls, n, line, 0, contiguous ? (T *)out : line);
  if (!contiguous)
    for (ptrdiff_t c = 0; c < n; c++) *(T *)(out + c * cls) = line[c];
}

FG_INLINE void pull_rows(const int op, const fg_run *run, const fg_lines *listed) {
  const V zero = vset(0), alpha = vset((T)run->scale);
  const ptrdiff_t rows = listed ? listed->lines : run->rows, room = padded(run->classes);
  T *const packed_p = (T *)run->scratch, *const packed_g = packed_p + room, *const line = packed_g + room;
  for (ptrdiff_t r = 0; r < rows; r++) {
    const ptrdiff_t n = listed ? listed->size[r] : run->classes, whole = n - n % LANES;
    const char *const w = run->where ? run->where + r * run->where_row : NULL;
    const T *const p = listed ? (const T *)listed->x[r]
                              : line_of(run->x + r * run->x_row, run->x_class, w, run->where_class, n, packed_p);
    const T *const g = listed ? (const T *)listed->g[r]
                              : line_of(run->g + r * run->g_row, run->g_class, w, run->where_class, n, packed_g);
    V2 s = {zero, zero};
    for (ptrdiff_t c = 0; c < whole; c += LANES) s = dot_add(op, s, vload(p + c), vload(g + c));
    if (whole < n) s = dot_add(op, s, vload_n(p + whole, n - whole, zero), vload_n(g + whole, n - whole, zero));
    s = total2(s);
    if (op == PUSH_LOGSUMEXP) {
      *(T *)(run->value + r * run->value_row) = (T)((s.h[0] + s.l[0]) * (T)run->scale);
      continue;
    }
    char *const out = listed ? listed->out[r] : run->out + r * run->out_row;
    const int flat = listed || (run->out_class == (ptrdiff_t)sizeof(T) && !w);
    T *const to = flat ? (T *)out : line;
    for (ptrdiff_t c = 0; c < whole; c += LANES) vstore(to + c, pull_apply(op, vload(p + c), vload(g + c), s, alpha));
    if (whole < n)
      vstore_n(to + whole,
               pull_apply(op, vload_n(p + whole, n - whole, zero), vload_n(g + whole, n - whole, zero), s, alpha),
               n - whole);
    if (!flat) line_out(line, n, w, run->where_class, out, run->out_class);
  }
}

/* A group of rows, from its tiles of p and g to its value, or to the result in g. */
FG_INLINE void pull_group(const int op, ptrdiff_t n, const T *p, T *g, V alpha, V *value) {
  V2 s = {vset(0), vset(0)};
  for (ptrdiff_t c = 0; c < n; c++) s = dot_add(op, s, vload(p + c * LANES), vload(g + c * LANES));
  s = two_sum(s.h, s.l);
  *value = (s.h + s.l) * alpha;
  if (op == PUSH_LOGSUMEXP) return;
  for (ptrdiff_t c = 0; c < n; c++)
    vstore(g + c * LANES, pull_apply(op, vload(p + c * LANES), vload(g + c * LANES), s, alpha));
}

FG_INLINE void put_values(const fg_run *run, ptrdiff_t first, ptrdiff_t rows, V value) {
  T lane[LANES];
  vstore(lane, value);
  for (ptrdiff_t l = 0; l < rows; l++) *(T *)(run->value + (first + l) * run->value_row) = lane[l];
}

FG_INLINE void pull_lanes(const int op, const fg_run *run) {
  const ptrdiff_t n = run->classes;
  const V alpha = vset((T)run->scale);
  T *const p = (T *)run->scratch, *const g = p + n * LANES;
  const Map none = {vset(0), vset(0), viset(0), vset(0)};
  T empty[LANES];
  const ptrdiff_t head = group_head(run);
  for (ptrdiff_t first = 0, rows; first < run->rows; first += rows) {
    rows = first == 0 && head ? head : LANES;
    if (rows > run->rows - first) rows = run->rows - first;
    const char *const w = run->where ? run->where + first * run->where_row : NULL;
    pack(1, run->x + first * run->x_row, run->x_row, run->x_class, rows, n, p);
    pack(1, run->g + first * run->g_row, run->g_row, run->g_class, rows, n, g);
    if (w) FG_NAME(mask_tile)(w, run->where_row, run->where_class, rows, n, 0, g, empty);
    V value;
    pull_group(op, n, p, g, alpha, &value);
    if (op == PUSH_LOGSUMEXP) {
      put_values(run, first, rows, value);
      continue;
    }
    if (w) FG_NAME(mask_tile)(w, run->where_row, run->where_class, rows, n, 0, g, empty);
    group_store(MAP_NONE, run, first, rows, g, &none);
  }
  if (run->stream) vfence();
}

FG_INLINE void pull_listed_lanes(const int op, const fg_run *run, const fg_lines *all) {
  const Map none = {vset(0), vset(0), viset(0), vset(0)};
  for (ptrdiff_t first = 0; first < all->lines; first += LANES) {
    const ptrdiff_t rows = all->lines - first < LANES ? all->lines - first : LANES;
    Lot lot;
    lot_of(1, op != PUSH_LOGSUMEXP, all, first, 1, &lot);
    T *const p = (T *)run->scratch, *const g = p + lot.longest * LANES;
    lot_load(&lot, lot.lines.x, 0, 0, p);
    lot_load(&lot, lot.lines.g, 0, 0, g);
    V value;
    pull_group(op, lot.longest, p, g, vset((T)run->scale), &value);
    if (op == PUSH_LOGSUMEXP)
      put_values(run, first, rows, value);
    else
      lot_store(MAP_NONE, &lot, 0, rows, g, &none, vset(0));
  }
}

#define PULL_KERNEL(name, op)                                                                                         \
  FG_KERNEL void FG_NAME(name##_rows)(const fg_run *run) { pull_rows(op, run, NULL); }                                \
  FG_KERNEL void FG_NAME(name##_lanes)(const fg_run *run) { pull_lanes(op, run); }                                    \
  FG_KERNEL void FG_NAME(name##_listed_rows)(const fg_run *run, const fg_lines *lines) { pull_rows(op, run, lines); } \
  FG_KERNEL void FG_NAME(name##_listed_lanes)(const fg_run *run, const fg_lines *lines) {                             \
    pull_listed_lanes(op, run, lines);                                                                                \
  }
PULL_KERNEL(pull_softmax, PULL_SOFTMAX)
PULL_KERNEL(pull_log_softmax, PULL_LOG_SOFTMAX)
PULL_KERNEL(push_log_softmax, PUSH_LOG_SOFTMAX)
PULL_KERNEL(push_logsumexp, PUSH_LOGSUMEXP)
