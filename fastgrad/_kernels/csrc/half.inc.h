/* Half precision in memory, float in every kernel.
 *
 * The driver widens a block of rows that fits into the caches, runs a float kernel on it and narrows the result: so a
 * result has the bits of the float one, rounded once.  A line may begin and end anywhere; what lies around it is
 * neither read nor written.
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
  if (stream) vfence();
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
