/* A row per lane: groups of LANES rows in a tile (tile.inc.h), which holds a vector for each class.  Where neighbouring rows
 * are contiguous, three tiles are under way at once, as rows are in rows.inc.h.
 */

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

#define LANES_KERNEL(name, op) \
  FG_KERNEL void FG_NAME(name##_lanes)(const fg_run *run) { lanes_as(op, run); }
SOFTMAX_KERNELS(LANES_KERNEL)

/* ---- rows at any addresses, of any lengths ------------------------------------------------ */

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

#define LISTED_LANES(name, op)                                                            \
  FG_KERNEL void FG_NAME(name##_listed_lanes)(const fg_run *run, const fg_lines *lines) { \
    listed_lanes_as(op, run, lines);                                                      \
  }
LISTED_KERNELS(LISTED_LANES)
