/* The text of bandwidth.h for one instruction set: VECTOR bytes at once, STREAM(to, v) past the caches. */
typedef uint64_t FG_NAME(bytes) __attribute__((vector_size(VECTOR), aligned(1), may_alias));
#define B FG_NAME(bytes)

/* Without the barriers GCC makes a call of memcpy from the loops, which would measure the C library. */
FG_KERNEL uint8_t FG_NAME(fg_copy)(uint8_t *to, const uint8_t *from, ptrdiff_t n) {
  ptrdiff_t i = 0;
  for (; i + 4 * VECTOR <= n; i += 4 * VECTOR) {
    const B *const p = (const B *)(from + i);
    B *const q = (B *)(to + i);
    const B a = p[0], b = p[1], c = p[2], d = p[3];
    q[0] = a, q[1] = b, q[2] = c, q[3] = d;
    FG_BARRIER;
  }
  memcpy(to + i, from + i, (size_t)(n - i));
  return 0;
}

/* Streamed stores take aligned addresses, and lines should leave whole. */
FG_INLINE uint8_t FG_NAME(fg_stream_of)(const int pages, uint8_t *to, const uint8_t *from, ptrdiff_t n) {
  ptrdiff_t i = (ptrdiff_t)(-(uintptr_t)to & 63);
  i = i < n ? i : n;
  memcpy(to, from, (size_t)i);
  for (; i + pages * PAGE <= n; i += pages * PAGE)
    for (ptrdiff_t at = i; at < i + PAGE; at += 4 * VECTOR)
      for (ptrdiff_t page = at; page < at + pages * PAGE; page += PAGE) {
        const B *const p = (const B *)(from + page);
        const B a = p[0], b = p[1], c = p[2], d = p[3];
        STREAM(to + page, a);
        STREAM(to + page + VECTOR, b);
        STREAM(to + page + 2 * VECTOR, c);
        STREAM(to + page + 3 * VECTOR, d);
        FG_BARRIER;
      }
  for (; i + VECTOR <= n; i += VECTOR) STREAM(to + i, *(const B *)(from + i));
  memcpy(to + i, from + i, (size_t)(n - i));
#if FG_X86
  _mm_sfence();
#endif
  return 0;
}

FG_KERNEL uint8_t FG_NAME(fg_stream)(uint8_t *to, const uint8_t *from, ptrdiff_t n) {
  return FG_NAME(fg_stream_of)(1, to, from, n);
}

/* Four pages in turns, as in memcpy of glibc: on Intel's processors one stream alone leaves a third of the bandwidth
 * unused; on AMD's four are a quarter slower than one. */
FG_KERNEL uint8_t FG_NAME(fg_stream_pages)(uint8_t *to, const uint8_t *from, ptrdiff_t n) {
  return FG_NAME(fg_stream_of)(4, to, from, n);
}

/* Exclusive or of all bytes: a result that needs every one of them, in whatever order. */
FG_KERNEL uint8_t FG_NAME(fg_read)(uint8_t *to, const uint8_t *from, ptrdiff_t n) {
  (void)to;
  B sum[4] = {{0}};
  ptrdiff_t i = 0;
  for (; i + 4 * PAGE <= n; i += 4 * PAGE)
    for (ptrdiff_t at = i; at < i + PAGE; at += 2 * VECTOR)
      for (int k = 0; k < 4; k++) {
        const B *const p = (const B *)(from + at + k * PAGE);
        sum[k] ^= p[0] ^ p[1];
      }
  for (; i + VECTOR <= n; i += VECTOR) sum[0] ^= *(const B *)(from + i);
  sum[0] ^= sum[1] ^ sum[2] ^ sum[3];
  uint64_t word = 0;
  for (int k = 0; k < VECTOR / 8; k++) word ^= sum[0][k];
  for (int shift = 32; shift >= 8; shift /= 2) word ^= word >> shift;
  uint8_t byte = (uint8_t)word;
  for (; i < n; i++) byte ^= from[i];
  return byte;
}

static const fg_passes FG_NAME(fg_passes) = {FG_NAME(fg_copy), FG_NAME(fg_stream), FG_NAME(fg_stream_pages),
                                             FG_NAME(fg_read)};
#undef B
#undef STREAM
#undef VECTOR
#undef FG_NAME
