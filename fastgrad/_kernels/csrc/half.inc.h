/* Half precision in memory, T in every register.
 *
 * A line is T (FG_NATIVE) or, for the float kernels, float16 or bfloat16: `kind` says which, and is a constant
 * wherever it matters.  The kernels that fg_precision lists under a kind read and write it themselves; for all others
 * the driver widens a block of rows that fits into the caches, runs the float kernel there and narrows the result.
 * Either way a result has the bits of the float one, rounded once.
 */
FG_INLINE ptrdiff_t size_of(const int kind) { return kind == FG_NATIVE ? (ptrdiff_t)sizeof(T) : 2; }

#if !FG_DOUBLE && !defined(FG_MASKS_HALVES)
/* n < LANES halves, of at most 8.  A loop would become a call of memcpy. */
FG_INLINE void copy_halves(uint16_t *to, const uint16_t *from, ptrdiff_t n) {
  const ptrdiff_t four = n & 4, six = n & 6;
  if (n & 4) memcpy(to, from, 8);
  if (n & 2) memcpy(to + four, from + four, 4);
  if (n & 1) to[six] = from[six];
}
FG_INLINE V vwiden_n(const int kind, const uint16_t *p, ptrdiff_t n, V fill) {
  uint16_t lane[LANES] = {0};
  T wide[LANES];
  copy_halves(lane, p, n);
  vstore(wide, vwiden(kind, lane));
  return vload_n(wide, n, fill);
}
FG_INLINE void vnarrow_n(const int kind, uint16_t *p, ptrdiff_t n, V v) {
  uint16_t lane[LANES];
  vnarrow(kind, lane, v);
  copy_halves(p, lane, n);
}
#endif

FG_INLINE const void *line_at(const int kind, const void *line, ptrdiff_t c) {
  return (const char *)line + c * size_of(kind);
}

/* The elements of a line from c on: LANES of them, or the first n <= LANES. */
FG_INLINE V line_load(const int kind, const void *line, ptrdiff_t c) {
  (void)kind; /* of a double kernel it is FG_NATIVE */
#if !FG_DOUBLE
  if (kind != FG_NATIVE) return vwiden(kind, (const uint16_t *)line + c);
#endif
  return vload((const T *)line + c);
}

FG_INLINE V line_load_n(const int kind, const void *line, ptrdiff_t c, ptrdiff_t n, V fill) {
  if (n >= LANES) return line_load(kind, line, c);
#if !FG_DOUBLE
  if (kind != FG_NATIVE) return vwiden_n(kind, (const uint16_t *)line + c, n, fill);
#endif
  return vload_n((const T *)line + c, n, fill);
}

FG_INLINE T line_get(const int kind, const void *line, ptrdiff_t c) {
  return kind == FG_NATIVE ? ((const T *)line)[c] : line_load_n(kind, line, c, 1, vset(0))[0];
}

FG_INLINE void line_store_n(const int kind, void *line, ptrdiff_t c, ptrdiff_t n, V v) {
  (void)kind;
#if !FG_DOUBLE
  if (kind != FG_NATIVE) {
    if (n >= LANES)
      vnarrow(kind, (uint16_t *)line + c, v);
    else
      vnarrow_n(kind, (uint16_t *)line + c, n, v);
    return;
  }
#endif
  vstore_n((T *)line + c, v, n);
}

/* What a streamed store writes at once: a vector in memory. */
FG_INLINE ptrdiff_t line_step(const int kind) { return kind == FG_NATIVE ? LANES : 2 * LANES; }

/* line_step elements, of which the second LANES are `b`. */
FG_INLINE void line_store(const int kind, void *line, ptrdiff_t c, V a, V b, const int stream) {
  (void)kind;
  (void)b;
#if !FG_DOUBLE
  uint16_t *const half = (uint16_t *)line + c;
  if (kind != FG_NATIVE && stream) {
    vnarrow2_stream(kind, half, a, b);
    return;
  }
  if (kind != FG_NATIVE) {
    vnarrow(kind, half, a);
    vnarrow(kind, half + LANES, b);
    return;
  }
#endif
  if (stream)
    vstream((T *)line + c, a);
  else
    vstore((T *)line + c, a);
}

/* Elements of a line up to the next 64-byte boundary, at most n. */
FG_INLINE ptrdiff_t line_head(const int kind, const void *line, ptrdiff_t n) {
  const ptrdiff_t gap = (ptrdiff_t)((64 - ((uintptr_t)line & 63)) & 63) / size_of(kind);
  return gap < n ? gap : n;
}

/* The end of a streamed row in a 64-byte line that the next row goes on in: it waits until that one fills the line.
 * Stored by itself it would have the line read, changed and written back, which takes as long as streaming many. */
typedef struct {
  char line[64] __attribute__((aligned(64)));
  char *place;     /* of the line in memory */
  ptrdiff_t bytes; /* that wait, from the line's start on; 0: none do */
} Edge;

FG_INLINE void edge_flush(Edge *edge) {
  if (edge->bytes) memcpy(edge->place, edge->line, (size_t)edge->bytes);
  edge->bytes = 0;
}

/* Where to put the head of a row whose place is `to`: into the line that waits if it goes on there. */
FG_INLINE void *edge_head(Edge *edge, void *to) {
  if (edge->bytes && edge->place + edge->bytes == (char *)to) return edge->line + edge->bytes;
  edge_flush(edge);
  return to;
}

FG_INLINE void edge_stream(Edge *edge) {
  for (ptrdiff_t k = 0; k < 64; k += (ptrdiff_t)sizeof(V))
    vstream((T *)(edge->place + k), vload((T *)(edge->line + k)));
  edge->bytes = 0;
}

/* Where to put the last `bytes` of a row, which would begin the line at `place`. */
FG_INLINE void *edge_tail(Edge *edge, void *place, ptrdiff_t bytes) {
  edge->place = (char *)place;
  edge->bytes = bytes;
  return edge->line;
}

/* A row of n elements of T from another place. */
FG_INLINE void row_stream(Edge *edge, T *to, const T *from, ptrdiff_t n) {
  const ptrdiff_t line = 64 / (ptrdiff_t)sizeof(T), head = line_head(FG_NATIVE, to, n);
  const ptrdiff_t end = head + (n - head) / line * line;
  if (n < 2 * line) { /* it may not fill what waits */
    edge_flush(edge);
    memcpy(to, from, (size_t)n * sizeof(T));
    return;
  }
  T *const first = (T *)edge_head(edge, to);
  memcpy(first, from, (size_t)head * sizeof(T));
  if (first != to) edge_stream(edge);
  for (ptrdiff_t c = head; c < end; c += LANES) vstream(to + c, vload(from + c));
  const ptrdiff_t bytes = (n - end) * (ptrdiff_t)sizeof(T);
  memcpy(edge_tail(edge, to + end, bytes), from + end, (size_t)bytes);
}

#if !FG_DOUBLE
FG_INLINE void widen_lines(const int kind, const char *from, ptrdiff_t line, ptrdiff_t step, ptrdiff_t lines,
                           ptrdiff_t n, float *to, ptrdiff_t pitch) {
  for (ptrdiff_t l = 0; l < lines; l++, from += line, to += pitch) {
    ptrdiff_t i = 0;
    if (step == 2)
      for (; i + LANES <= n; i += LANES) vstore(to + i, line_load(kind, from, i));
    for (; i < n; i += LANES) {
      uint16_t lane[LANES] = {0};
      for (int k = 0; k < LANES && i + k < n; k++) lane[k] = *(const uint16_t *)(from + (i + k) * step);
      vstore(to + i, vwiden(kind, lane));
    }
  }
}

FG_INLINE void narrow_lines(const int kind, const float *from, ptrdiff_t pitch, char *to, ptrdiff_t line,
                            ptrdiff_t step, ptrdiff_t lines, ptrdiff_t n, int stream) {
  for (ptrdiff_t l = 0; l < lines; l++, from += pitch, to += line) {
    ptrdiff_t i = 0;
    if (step == 2) {
      if (stream) {
        const ptrdiff_t head = line_head(kind, to, n);
        while (i < head) {
          const ptrdiff_t here = head - i < LANES ? head - i : LANES;
          line_store_n(kind, to, i, here, vload(from + i));
          i += here;
        }
        for (; i + 2 * LANES <= n; i += 2 * LANES) line_store(kind, to, i, vload(from + i), vload(from + i + LANES), 1);
      }
      for (; i + LANES <= n; i += LANES) vnarrow(kind, (uint16_t *)to + i, vload(from + i));
    }
    for (; i < n; i += LANES) {
      uint16_t lane[LANES];
      vnarrow(kind, lane, vload(from + i));
      for (int k = 0; k < LANES && i + k < n; k++) *(uint16_t *)(to + (i + k) * step) = lane[k];
    }
  }
}

FG_KERNEL void FG_NAME(widen)(int kind, const char *from, ptrdiff_t line, ptrdiff_t step, ptrdiff_t lines, ptrdiff_t n,
                              float *to, ptrdiff_t pitch) {
  if (kind == FG_FLOAT16)
    widen_lines(FG_FLOAT16, from, line, step, lines, n, to, pitch);
  else
    widen_lines(FG_BFLOAT16, from, line, step, lines, n, to, pitch);
}

FG_KERNEL void FG_NAME(narrow)(int kind, const float *from, ptrdiff_t pitch, char *to, ptrdiff_t line, ptrdiff_t step,
                               ptrdiff_t lines, ptrdiff_t n, int stream) {
  if (kind == FG_FLOAT16)
    narrow_lines(FG_FLOAT16, from, pitch, to, line, step, lines, n, stream);
  else
    narrow_lines(FG_BFLOAT16, from, pitch, to, line, step, lines, n, stream);
}

FG_KERNEL void FG_NAME(fence)(void) { vfence(); }

/* The kernels for the two halves beside one for T. */
#define OF_HALVES(name, of_float16, of_bfloat16)                        \
  FG_KERNEL void FG_NAME(name##_f16)(const fg_run *run) { of_float16; } \
  FG_KERNEL void FG_NAME(name##_bf16)(const fg_run *run) { of_bfloat16; }
#else
#define OF_HALVES(name, of_float16, of_bfloat16)
#endif
