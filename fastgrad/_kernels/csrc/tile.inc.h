/* Tiles: up to GROUPS_MAX groups of LANES rows, laid out [group][class][lane].
 *
 * Whatever the strides of the array, a tile is what the `lanes` kernels compute on.  Packing picks the
 * widest access that the layout allows: transposes of several classes at a time where classes are contiguous,
 * plain vectors where neighbouring rows are, single elements otherwise.  Lanes without a row repeat the last
 * one: they compute something harmless and are never stored. */
#define GROUPS_MAX 12
#define TILE_L1 ((ptrdiff_t)24 << 10)
#define TILE_L2 ((ptrdiff_t)512 << 10)

/* As many groups as stay in L1; of long rows up to four even so, for the sake of whole cache lines and
 * of fewer pages where the class axis is strided.  Work that leaves the caches anyway (`large`) takes what
 * L2 holds: memory wants long pieces of each class. */
FG_INLINE ptrdiff_t tile_groups(ptrdiff_t classes, int large) {
  const ptrdiff_t group = classes * LANES * (ptrdiff_t)sizeof(T), few = TILE_L2 / group < 4 ? TILE_L2 / group : 4;
  ptrdiff_t g = (large ? TILE_L2 : TILE_L1) / group;
  g = g < few ? few : g;
  return g < 1 ? 1 : g > GROUPS_MAX ? GROUPS_MAX : g;
}

FG_INLINE const T *at(const char *p, ptrdiff_t bytes) { return (const T *)(p + bytes); }

FG_INLINE void pack_scalar(const char *p, ptrdiff_t row, ptrdiff_t cls, ptrdiff_t from, ptrdiff_t rows,
                           ptrdiff_t classes, T *tile) {
  const ptrdiff_t all = (rows + LANES - 1) / LANES * LANES, last = rows - 1;
  for (ptrdiff_t r = from; r < all; r++) {
    const char *line = p + (r < last ? r : last) * row;
    T *to = tile + (r / LANES) * classes * LANES + r % LANES;
    for (ptrdiff_t c = 0; c < classes; c++) to[c * LANES] = *at(line, c * cls);
  }
}

/* Rows shorter than a quad go through the transposes only where they can be masked; one class is plain vectors. */
#define TRANSPOSES(classes) ((classes) >= (MASKS_ROWS ? 2 : 4))

/* Of rows that lie one after another, what as many bytes hold as classes c to c + n take in a group. */
FG_INLINE void prefetch_classes(const char *group, ptrdiff_t c, ptrdiff_t n) {
  for (ptrdiff_t k = 0; k < n; k++) FG_PREFETCH(group + (c + k) * (ptrdiff_t)sizeof(V));
}

/* With `ahead` as many rows after these are prefetched: the hardware follows fewer streams, and sees nothing between two
 * groups. */
FG_INLINE void pack(const int ahead, const char *p, ptrdiff_t row, ptrdiff_t cls, ptrdiff_t rows, ptrdiff_t classes,
                    T *tile) {
  const ptrdiff_t full = rows / LANES, groups = (rows + LANES - 1) / LANES;
  if (cls == (ptrdiff_t)sizeof(T) && TRANSPOSES(classes)) {
    for (ptrdiff_t g = 0; g < full; g++) {
      const char *const from = p + g * LANES * row;
      T *const to = tile + g * classes * LANES;
      for (ptrdiff_t c = 0; c < classes; c += 4) {
        V v[4];
        if (classes < 4) {
          vgather4(starts_from(starts_apart(from, row, 0), 0), classes, 0, v);
          for (ptrdiff_t k = 0; k < classes; k++) vstore(to + k * LANES, v[k]);
        } else {
          const ptrdiff_t b = c + 4 <= classes ? c : classes - 4;
          vgather4(starts_apart(from, row, b), 4, 0, v);
          for (int k = 0; k < 4; k++) vstore(to + (b + k) * LANES, v[k]);
        }
        if (ahead) prefetch_classes(from + full * LANES * row, c, 4);
      }
    }
    pack_scalar(p, row, cls, full * LANES, rows, classes, tile);
  } else if (row == (ptrdiff_t)sizeof(T)) {
    for (ptrdiff_t c = 0; c < classes; c++) {
      const T *from = at(p, c * cls);
      for (ptrdiff_t g = 0; g < full; g++) {
        vstore(tile + (g * classes + c) * LANES, vload(from + g * LANES));
        if (ahead) FG_PREFETCH(from + (full + g) * LANES);
      }
      if (full < groups)
        vstore(tile + (full * classes + c) * LANES,
               vload_n(from + full * LANES, rows - full * LANES, vset(from[rows - 1])));
    }
  } else {
    pack_scalar(p, row, cls, 0, rows, classes, tile);
  }
}

/* Masks are a byte for each element, 0 if it is dropped.  Nobody foresees one, so none of this branches on it. */

FG_INLINE T kept_or(int keep, T x, T fill) {
  I bits, other;
  memcpy(&bits, &x, sizeof bits);
  memcpy(&other, &fill, sizeof other);
  bits = (bits & -(I)keep) | (other & ~-(I)keep);
  memcpy(&x, &bits, sizeof x);
  return x;
}

/* A line whose dropped elements become `fill`; its mask's bytes lie `step` apart.  Returns how many are kept. */
FG_INLINE ptrdiff_t mask_line(const char *w, ptrdiff_t step, ptrdiff_t n, const T *from, T fill, T *to) {
  ptrdiff_t kept = 0, c = 0;
  if (step == 1)
    for (; c + LANES <= n; c += LANES) {
      const M keep = vkept(w + c);
      kept += vcount(keep);
      vstore(to + c, vsel(keep, vload(from + c), vset(fill)));
    }
  for (; c < n; c++) {
    const int keep = w[c * step] != 0;
    kept += keep;
    to[c] = kept_or(keep, from[c], fill);
  }
  return kept;
}

/* The same for a tile; empty[row] says whether nothing was kept. */
FG_KERNEL void FG_NAME(mask_tile)(const char *w, ptrdiff_t row, ptrdiff_t cls, ptrdiff_t rows, ptrdiff_t classes,
                                  T fill, T *tile, T *empty) {
  const ptrdiff_t groups = (rows + LANES - 1) / LANES, last = rows - 1, whole = row == 1 ? rows / LANES : 0;
  for (ptrdiff_t g = 0; g < whole; g++) {
    T *const to = tile + g * classes * LANES;
    M any = vtruth(0);
    for (ptrdiff_t c = 0; c < classes; c++) {
      const M keep = vkept(w + c * cls + g * LANES);
      any |= keep;
      vstore(to + c * LANES, vsel(keep, vload(to + c * LANES), vset(fill)));
    }
    vstore(empty + g * LANES, vsel(any, vset(0), vset(1)));
  }
  for (ptrdiff_t r = whole * LANES; r < groups * LANES; r++) {
    const char *const from = w + (r < last ? r : last) * row;
    T *const to = tile + (r / LANES) * classes * LANES + r % LANES;
    int any = 0;
    for (ptrdiff_t c = 0; c < classes; c++) {
      const int keep = from[c * cls] != 0;
      any |= keep;
      to[c * LANES] = kept_or(keep, to[c * LANES], fill);
    }
    empty[r] = (T)!any;
  }
}

/* What turns a tile's number into the result: per lane, and the same for every class. */
typedef struct {
  V a, b;
  VI target; /* MAP_TARGET, MAP_PATCH: the class of each lane whose value is `patch` instead of its own */
  V patch;
} Map;

enum { MAP_SCALE2, MAP_TARGET, MAP_LOG, MAP_PATCH, MAP_NONE };

FG_INLINE V map_apply(const int kind, V v, Map m, V factor) {
  if (kind == MAP_SCALE2 || kind == MAP_TARGET) return vscale2(v, m.a, m.b);
  if (kind == MAP_LOG) return vmla(v - m.a, factor, -m.b);
  return v;
}

FG_INLINE V map_class(const int kind, const T *from, ptrdiff_t c, const Map *m, V factor) {
  V v = vload(from + c * LANES);
  if (kind == MAP_TARGET || kind == MAP_PATCH) v = vsel(vieq(m->target, viset((I)c)), m->patch, v);
  return map_apply(kind, v, *m, factor);
}

FG_INLINE void unpack_scalar(const int kind, const T *tile, const Map *map, V factor, char *p, ptrdiff_t row,
                             ptrdiff_t cls, ptrdiff_t from, ptrdiff_t rows, ptrdiff_t classes) {
  for (ptrdiff_t first = from; first < rows; first += LANES)
    for (ptrdiff_t c = 0; c < classes; c++) {
      T lane[LANES];
      vstore(lane, map_class(kind, tile + first * classes, c, map + first / LANES, factor));
      for (ptrdiff_t l = 0; l < LANES && first + l < rows; l++) *(T *)(p + (first + l) * row + c * cls) = lane[l];
    }
}

/* n classes from c on, which take `quads` quads. */
FG_INLINE void unpack_quads(const int quads, const int kind, const T *tile, ptrdiff_t c, ptrdiff_t n, const Map *m,
                            V factor, Starts rows) {
  V v[4 * QUADS];
  FG_UNROLL (q, quads, 1) {
    const VI target = m->target - viset((I)c) - viset(4 * q);
    FG_UNROLL (j, 4, 1) {
      const int k = 4 * q + j, sure = k <= 4 * (quads - 1);
      V x = vload(tile + (c + (sure || k < n ? k : n - 1)) * LANES);
      if (kind == MAP_TARGET || kind == MAP_PATCH) x = vsel(vieq(target, viset(j)), m->patch, x);
      v[k] = map_apply(kind, x, *m, factor);
    }
  }
  vscatter(quads, rows, n, v);
}

/* As many classes from c on as the registers hold: the last quad is masked or, where rows cannot be, goes by itself and
 * overlaps those before.  Returns the class that comes next. */
FG_INLINE ptrdiff_t unpack_classes(const int kind, const T *tile, ptrdiff_t c, ptrdiff_t classes, const Map *m,
                                   V factor, Starts rows) {
  const ptrdiff_t left = classes - c, whole = left >= 4 * QUADS;
  const ptrdiff_t n = whole ? 4 * QUADS : MASKS_ROWS ? left : 4, b = n <= left ? c : classes - n;
  const Starts starts = starts_from(rows, b);
  if (whole)
    unpack_quads(QUADS, kind, tile, b, n, m, factor, starts);
  else if (n <= 4)
    unpack_quads(1, kind, tile, b, n, m, factor, starts);
#if QUADS > 2
  else if (n > 12)
    unpack_quads(4, kind, tile, b, n, m, factor, starts);
  else if (n > 8)
    unpack_quads(3, kind, tile, b, n, m, factor, starts);
#endif
#if QUADS > 1
  else
    unpack_quads(2, kind, tile, b, n, m, factor, starts);
#endif
  return b + n;
}

FG_INLINE void unpack_as(const int kind, int ahead, const T *tile, const Map *map, V factor, char *p, ptrdiff_t row,
                         ptrdiff_t cls, ptrdiff_t rows, ptrdiff_t classes, int stream) {
  const ptrdiff_t groups = (rows + LANES - 1) / LANES, full = rows / LANES;
  if (cls == (ptrdiff_t)sizeof(T) && TRANSPOSES(classes)) {
    for (ptrdiff_t g = 0; g < full; g++) {
      const T *const from = tile + g * classes * LANES;
      char *const to = p + g * LANES * row;
      const Map m = map[g];
      for (ptrdiff_t c = 0, next; c < classes; c = next) {
        next = unpack_classes(kind, from, c, classes, &m, factor, starts_apart(to, row, 0));
        if (ahead) prefetch_classes(to + full * LANES * row, c, next - c);
      }
    }
    unpack_scalar(kind, tile, map, factor, p, row, cls, full * LANES, rows, classes);
  } else if (row == (ptrdiff_t)sizeof(T)) {
    for (ptrdiff_t c = 0; c < classes; c++) {
      T *to = (T *)(p + c * cls);
      const int aligned = stream && ((uintptr_t)to & (sizeof(V) - 1)) == 0;
      if (aligned)
        for (ptrdiff_t g = 0; g < full; g++)
          vstream(to + g * LANES, map_class(kind, tile + g * classes * LANES, c, map + g, factor));
      else
        for (ptrdiff_t g = 0; g < full; g++) {
          vstore(to + g * LANES, map_class(kind, tile + g * classes * LANES, c, map + g, factor));
          if (ahead) FG_PREFETCH(to + (full + g) * LANES);
        }
      if (full < groups)
        vstore_n(to + full * LANES, map_class(kind, tile + full * classes * LANES, c, map + full, factor),
                 rows - full * LANES);
    }
  } else {
    unpack_scalar(kind, tile, map, factor, p, row, cls, 0, rows, classes);
  }
}

/* Kernels of their own: the transposes want all registers. */
#define UNPACK(name, kind)                                                                                          \
  FG_KERNEL void FG_NAME(unpack_##name)(int ahead, const T *tile, const Map *map, V factor, char *p, ptrdiff_t row, \
                                        ptrdiff_t cls, ptrdiff_t rows, ptrdiff_t classes, int stream) {             \
    unpack_as(kind, ahead, tile, map, factor, p, row, cls, rows, classes, stream);                                  \
  }
UNPACK(scale, MAP_SCALE2)
UNPACK(target, MAP_TARGET)
UNPACK(log, MAP_LOG)
UNPACK(patch, MAP_PATCH)
UNPACK(none, MAP_NONE)

FG_INLINE void unpack(const int kind, int ahead, const T *tile, const Map *map, T factor, char *p, ptrdiff_t row,
                      ptrdiff_t cls, ptrdiff_t rows, ptrdiff_t classes, int stream) {
  (kind == MAP_SCALE2   ? FG_NAME(unpack_scale)
   : kind == MAP_TARGET ? FG_NAME(unpack_target)
   : kind == MAP_LOG    ? FG_NAME(unpack_log)
   : kind == MAP_PATCH  ? FG_NAME(unpack_patch)
                        : FG_NAME(unpack_none))(ahead, tile, map, vset(factor), p, row, cls, rows, classes, stream);
}

/* ---- tiles that are streamed ------------------------------------------------------------------------ */

/* Where neighbouring rows are contiguous a tile is streamed as a piece of every class, and each wants whole cache lines.
 * If all classes begin alike within one, a first, short tile sees to that; else what a piece shares of a line waits for
 * the next tile.  Waiting costs 7 to 14 %. */
typedef struct {
  ptrdiff_t head; /* rows of the short tile, which it must hold, or 0 */
  Edge *edges;    /* one for every class, or NULL */
} Streams;

/* Bytes for the edges; 0 of so many classes that they would fill L2. */
FG_INLINE ptrdiff_t edges_size(ptrdiff_t classes) {
  const ptrdiff_t size = classes * (ptrdiff_t)sizeof(Edge);
  return size > TILE_L2 ? 0 : size;
}

FG_INLINE int rows_stream(const fg_run *run) { return run->stream && run->out_row == (ptrdiff_t)sizeof(T); }

FG_INLINE ptrdiff_t streams_head(const fg_run *run) {
  if (!rows_stream(run) || run->out_class % 64) return 0;
  return (ptrdiff_t)(-(uintptr_t)run->out & 63) / (ptrdiff_t)sizeof(T);
}

/* Tiles hold `most` groups; `room` is for edges_size, and 64 bytes to align them. */
FG_INLINE Streams streams_start(const fg_run *run, ptrdiff_t most, void *room) {
  const ptrdiff_t n = run->classes, head = streams_head(run);
  Streams s = {head <= most * LANES ? head : 0, NULL}; /* groups of few lanes, so many classes that one fills a tile */
  if (rows_stream(run) && run->out_class % 64 && edges_size(n)) {
    s.edges = (Edge *)(((uintptr_t)room + 63) & ~(uintptr_t)63);
    for (ptrdiff_t c = 0; c < n; c++) s.edges[c].bytes = 0;
  }
  return s;
}

FG_INLINE void streams_end(Streams s, ptrdiff_t classes) {
  for (ptrdiff_t c = 0; s.edges && c < classes; c++) edge_flush(s.edges + c);
}

FG_INLINE void class_stream(const int kind, const fg_run *run, char *out, ptrdiff_t c, ptrdiff_t rows, const T *tile,
                            const Map *map, V factor, Edge *edges) {
  const ptrdiff_t n = run->classes, groups = (rows + LANES - 1) / LANES;
  T line[GROUPS_MAX * LANES];
  for (ptrdiff_t g = 0; g < groups; g++)
    vstore(line + g * LANES, map_class(kind, tile + g * n * LANES, c, map + g, factor));
  row_stream(edges + c, (T *)(out + c * run->out_class), line, rows);
}

FG_INLINE void tile_store(const int kind, const fg_run *run, ptrdiff_t first, ptrdiff_t rows, const T *tile,
                          const Map *map, T factor, Edge *edges) {
  char *const out = run->out + first * run->out_row;
  if (edges)
    for (ptrdiff_t c = 0; c < run->classes; c++) class_stream(kind, run, out, c, rows, tile, map, vset(factor), edges);
  else
    unpack(kind, 0, tile, map, factor, out, run->out_row, run->out_class, rows, run->classes, run->stream);
}

/* Kernels that know one group at a time stream it where it is a whole line of every class; a part of one would wait in
 * a buffer for the next group, and there are ten or twelve of those. */
#define GROUP_STREAMS ((int)sizeof(V) == 64)

FG_INLINE ptrdiff_t group_head(const fg_run *run) { return GROUP_STREAMS ? streams_head(run) : 0; }

/* A finished group to its place; where the next one goes is prefetched. */
FG_INLINE void group_store(const int kind, const fg_run *run, ptrdiff_t first, ptrdiff_t rows, const T *tile,
                           const Map *map) {
  unpack(kind, 1, tile, map, 1, run->out + first * run->out_row, run->out_row, run->out_class, rows, run->classes,
         GROUP_STREAMS && run->stream);
}

/* ---- lists of lines -------------------------------------------------------------------------------- */

/* Groups of LANES lines side by side: lanes without a line repeat the last. */
typedef struct {
  fg_lines lines;
  ptrdiff_t least[ABREAST_MAX], most[ABREAST_MAX], longest; /* elements of a line of each group, of all */
  const char *x[ABREAST_MAX * LANES], *g[ABREAST_MAX * LANES];
  char *out[ABREAST_MAX * LANES];
  ptrdiff_t size[ABREAST_MAX * LANES];
} Lot;

FG_INLINE void lot_of(const int has_g, const int has_out, const fg_lines *all, ptrdiff_t first, int several, Lot *lot) {
  const ptrdiff_t left = all->lines - first;
  fg_lines *const these = &lot->lines;
  *these = (fg_lines){several * LANES, all->x + first, all->g + first, all->out + first, all->size + first, NULL, NULL};
  if (left < these->lines) {
    for (ptrdiff_t k = 0; k < these->lines; k++) {
      const ptrdiff_t at = k < left ? k : left - 1;
      lot->x[k] = these->x[at], lot->size[k] = these->size[at];
      if (has_g) lot->g[k] = these->g[at];
      if (has_out) lot->out[k] = these->out[at];
    }
    these->x = lot->x, these->g = lot->g, these->out = lot->out, these->size = lot->size;
  }
  lot->longest = 0;
  for (int u = 0; u < several; u++) {
    const ptrdiff_t *const of = these->size + u * LANES;
    ptrdiff_t low = of[0], high = of[0];
    for (int l = 1; l < LANES; l++) {
      low = low < of[l] ? low : of[l];
      high = high > of[l] ? high : of[l];
    }
    lot->least[u] = low, lot->most[u] = high;
    lot->longest = lot->longest > high ? lot->longest : high;
  }
}

/* Group u of x or g into a tile of lot->longest classes; what is behind the end of a line becomes `fill`. */
FG_INLINE void lot_load(const Lot *lot, const char *const *lines, int u, T fill, T *tile) {
  const T *const *const x = (const T *const *)lines + u * LANES;
  const ptrdiff_t *const size = lot->lines.size + u * LANES;
  const ptrdiff_t least = lot->least[u], most = lot->most[u], n = lot->longest;
  const ptrdiff_t whole = least & ~(ptrdiff_t)3;
  V v[4];
  for (ptrdiff_t c = 0; c < whole; c += 4) {
    vgather4(starts_listed(x, c), 4, fill, v);
    for (int k = 0; k < 4; k++) vstore(tile + (c + k) * LANES, v[k]);
  }
  const int even = least == most && whole, ragged = MASKS_ROWS && !even;
  for (ptrdiff_t c = even ? least : ragged ? most : whole; c < n; c++) vstore(tile + c * LANES, vset(fill));
  if (even && whole < least) { /* overlapping the block before */
    vgather4(starts_listed(x, least - 4), 4, fill, v);
    for (int k = 0; k < 4; k++) vstore(tile + (least - 4 + k) * LANES, v[k]);
  } else if (ragged) {
    for (ptrdiff_t c = whole; c < most; c += 4) {
      vgather4(starts_ragged(x, size, c), 4, fill, v);
      for (int k = 0; k < 4 && c + k < most; k++) vstore(tile + (c + k) * LANES, v[k]);
    }
  } else if (!even) {
    for (int l = 0; l < LANES; l++)
      for (ptrdiff_t c = whole; c < size[l]; c++) tile[c * LANES + l] = x[l][c];
  }
}

/* And from one to the first `lines` of the group. */
FG_INLINE void lot_store(const int kind, const Lot *lot, int u, ptrdiff_t lines, const T *tile, const Map *m,
                         V factor) {
  T *const *const out = (T *const *)lot->lines.out + u * LANES;
  const ptrdiff_t *const size = lot->lines.size + u * LANES;
  const ptrdiff_t least = lot->least[u], most = lot->most[u];
  const ptrdiff_t all_have = MASKS_ROWS && least < most ? least / (4 * QUADS) * (4 * QUADS) : least;
  ptrdiff_t c = 0;
  if (lines == LANES && TRANSPOSES(least))
    while (c < all_have) c = unpack_classes(kind, tile, c, all_have, m, factor, starts_listed(out, 0));
  if (lines == LANES && MASKS_ROWS)
    while (c < most) c = unpack_classes(kind, tile, c, most, m, factor, starts_ragged(out, size, 0));
  for (; c < most; c++) {
    T lane[LANES];
    vstore(lane, map_class(kind, tile, c, m, factor));
    for (ptrdiff_t l = 0; l < lines; l++)
      if (c < size[l]) out[l][c] = lane[l];
  }
}
