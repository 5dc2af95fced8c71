/* Half precision in memory, float in every kernel.
 *
 * The driver widens a block of rows that fits into the caches, runs a float kernel on it and narrows the result: so a
 * result has the bits of the float one, rounded once.  The kernels of softmax.inc.h do that themselves, row by row,
 * in passes that they take anyway.  A line may begin and end anywhere; what lies around it is neither read nor written.
 */
FG_INLINE void widen_lines(const int kind, const char *from, ptrdiff_t line, ptrdiff_t step, ptrdiff_t lines,
                           ptrdiff_t n, float *to, ptrdiff_t pitch) {
  for (ptrdiff_t l = 0; l < lines; l++, from += line, to += pitch) {
    ptrdiff_t i = 0;
    if (step == 2)
      for (; i + LANES <= n; i += LANES) vstore(to + i, vwiden(kind, (const uint16_t *)from + i));
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
    uint16_t *const flat = (uint16_t *)to;
    uint16_t lane[LANES];
    ptrdiff_t i = 0;
    if (step == 2) {
      if (stream) {
        const ptrdiff_t gap = (ptrdiff_t)(-(uintptr_t)to & (sizeof(V) - 1)) / 2, head = gap < n ? gap : n;
        while (i < head) {
          vnarrow(kind, lane, vload(from + i));
          for (int k = 0; k < LANES && i < head; k++) flat[i++] = lane[k];
        }
        for (; i + 2 * LANES <= n; i += 2 * LANES)
          vnarrow2_stream(kind, flat + i, vload(from + i), vload(from + i + LANES));
      }
      for (; i + LANES <= n; i += LANES) vnarrow(kind, flat + i, vload(from + i));
    }
    for (; i < n; i += LANES) {
      vnarrow(kind, lane, vload(from + i));
      for (int k = 0; k < LANES && i + k < n; k++) *(uint16_t *)(to + (i + k) * step) = lane[k];
    }
  }
  if (stream && lines == 0) vfence();
}

/* The maximum of a row of halves, which is widened to `to`. */
FG_INLINE T widen_row_as(const int kind, const uint16_t *x, ptrdiff_t n, T *to) {
  V a = vset(-__builtin_inff()), b = a;
  const V low = a;
  ptrdiff_t c = 0;
  for (; c + 2 * LANES <= n; c += 2 * LANES) {
    const V v = vwiden(kind, x + c), w = vwiden(kind, x + c + LANES);
    vstore(to + c, v);
    vstore(to + c + LANES, w);
    a = vmax(v, a);
    b = vmax(w, b);
  }
  if (c < n) {
    widen_lines(kind, (const char *)(x + c), 0, 2, 1, n - c, to + c, 0);
    for (; c + LANES <= n; c += LANES) a = vmax(vload(to + c), a);
    if (c < n) b = vmax(vload_n(to + c, n - c, low), b);
  }
  return vreduce_max(vmax(a, b));
}

FG_INLINE T widen_row(const int kind, const char *x, ptrdiff_t n, T *to) {
  return kind == FG_FLOAT16 ? widen_row_as(FG_FLOAT16, (const uint16_t *)x, n, to)
                            : widen_row_as(FG_BFLOAT16, (const uint16_t *)x, n, to);
}

/* map_row (softmax.inc.h) to a row of halves, fused with widen_row of a later one. */
FG_INLINE T map_row_half_as(const int half, const int kind, const T *from, ptrdiff_t n, Map m, V factor, uint16_t *to,
                            const uint16_t *later, T *wide, const int stream) {
  const V low = vset(-__builtin_inff());
  V max = low, max2 = low;
  ptrdiff_t c = 0, head = 0;
  if (stream) {
    const ptrdiff_t gap = (ptrdiff_t)(-(uintptr_t)to & (sizeof(V) - 1)) / 2;
    head = gap < n ? gap : n;
    for (; c < head; c += LANES) {
      uint16_t lane[LANES];
      vnarrow(half, lane, map_apply(kind, vload(from + c), m, factor));
      for (ptrdiff_t i = 0; i < LANES && c + i < head; i++) to[c + i] = lane[i];
    }
    c = head;
  }
  /* Two vectors, for that is one streamed store; `later` runs behind by `head`. */
  if (later)
    for (; c + 2 * LANES <= n; c += 2 * LANES) {
      const V y = map_apply(kind, vload(from + c), m, factor);
      const V z = map_apply(kind, vload(from + c + LANES), m, factor);
      const V v = vwiden(half, later + c - head), w = vwiden(half, later + c - head + LANES);
      vstore(wide + c - head, v);
      vstore(wide + c - head + LANES, w);
      max = vmax(v, max);
      max2 = vmax(w, max2);
      if (stream) {
        vnarrow2_stream(half, to + c, y, z);
      } else {
        vnarrow(half, to + c, y);
        vnarrow(half, to + c + LANES, z);
      }
    }
  else
    for (; c + 2 * LANES <= n; c += 2 * LANES) {
      const V y = map_apply(kind, vload(from + c), m, factor);
      const V z = map_apply(kind, vload(from + c + LANES), m, factor);
      if (stream) {
        vnarrow2_stream(half, to + c, y, z);
      } else {
        vnarrow(half, to + c, y);
        vnarrow(half, to + c + LANES, z);
      }
    }
  T top = 0;
  if (later) {
    const T rest = widen_row_as(half, later + c - head, n - c + head, wide + c - head);
    top = vreduce_max(vmax(vset(rest), vmax(max, max2)));
  }
  for (; c < n; c += LANES) {
    uint16_t lane[LANES];
    vnarrow(half, lane, map_apply(kind, vload(from + c), m, factor));
    for (ptrdiff_t i = 0; i < LANES && c + i < n; i++) to[c + i] = lane[i];
  }
  return top;
}

FG_INLINE T map_row_half(const int kind, const fg_run *run, const T *from, Map m, V factor, char *to, const char *later,
                         T *wide) {
  const ptrdiff_t n = run->classes;
  uint16_t *const out = (uint16_t *)to;
  const uint16_t *const x = (const uint16_t *)later;
  if (run->half == FG_FLOAT16)
    return run->stream ? map_row_half_as(FG_FLOAT16, kind, from, n, m, factor, out, x, wide, 1)
                       : map_row_half_as(FG_FLOAT16, kind, from, n, m, factor, out, x, wide, 0);
  return run->stream ? map_row_half_as(FG_BFLOAT16, kind, from, n, m, factor, out, x, wide, 1)
                     : map_row_half_as(FG_BFLOAT16, kind, from, n, m, factor, out, x, wide, 0);
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
