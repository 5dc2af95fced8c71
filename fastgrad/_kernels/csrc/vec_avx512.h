/* The vector verbs for AVX-512 (F, DQ, BW, VL), one precision: see vec_any.h for what each verb means. */
#define LANES (64 / (int)sizeof(T))
typedef T V __attribute__((vector_size(64)));
typedef I VI __attribute__((vector_size(64)));

#if FG_DOUBLE
typedef __mmask8 M;
#define FG_PS(name) _mm512_##name##_pd
#define FG_EPI(name) _mm512_##name##_epi64
#define FG_CMP_EPI _mm512_cmp_epi64_mask
#define FG_CMP_PS _mm512_cmp_pd_mask
typedef __m512d FG_VREG;
#else
typedef __mmask16 M;
#define FG_PS(name) _mm512_##name##_ps
#define FG_EPI(name) _mm512_##name##_epi32
#define FG_CMP_EPI _mm512_cmp_epi32_mask
#define FG_CMP_PS _mm512_cmp_ps_mask
typedef __m512 FG_VREG;
#endif

FG_INLINE M v_first(ptrdiff_t n) { return (M)((1u << n) - 1u); }

FG_INLINE V vset(T a) { return (V)FG_PS(set1)(a); }
FG_INLINE VI viset(I a) { return (VI)FG_EPI(set1)(a); }
FG_INLINE V vload(const T *p) { return (V)FG_PS(loadu)(p); }
#if FG_DOUBLE
FG_INLINE VI viload_wide(const int64_t *p) { return (VI)_mm512_loadu_si512(p); }
#else
FG_INLINE VI viload_wide(const int64_t *p) {
  const __m256i a = _mm512_cvtepi64_epi32(_mm512_loadu_si512(p)), b = _mm512_cvtepi64_epi32(_mm512_loadu_si512(p + 8));
  return (VI)_mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
}
#endif
FG_INLINE V vload_n(const T *p, ptrdiff_t n, V fill) { return (V)FG_PS(mask_loadu)((FG_VREG)fill, v_first(n), p); }
FG_INLINE void vstore(T *p, V a) { FG_PS(storeu)(p, (FG_VREG)a); }
FG_INLINE void vstore_n(T *p, V a, ptrdiff_t n) { FG_PS(mask_storeu)(p, v_first(n), (FG_VREG)a); }
FG_INLINE void vstream(T *p, V a) { FG_PS(stream)(p, (FG_VREG)a); }
FG_INLINE void vfence(void) { _mm_sfence(); }

FG_INLINE V vfma(V a, V b, V c) { return (V)FG_PS(fmadd)((FG_VREG)a, (FG_VREG)b, (FG_VREG)c); }
FG_INLINE V vmla(V a, V b, V c) { return vfma(a, b, c); }
FG_INLINE V vscale2(V v, V a, V b) { return vfma(v, a, v * b); }
FG_INLINE V vmax(V a, V b) { return (V)FG_PS(max)((FG_VREG)a, (FG_VREG)b); }
FG_INLINE V vabs(V a) { return (V)FG_PS(abs)((FG_VREG)a); }

FG_INLINE M vlt(V a, V b) { return FG_CMP_PS((FG_VREG)a, (FG_VREG)b, _CMP_LT_OQ); }
FG_INLINE M veq(V a, V b) { return FG_CMP_PS((FG_VREG)a, (FG_VREG)b, _CMP_EQ_OQ); }
FG_INLINE M vieq(VI a, VI b) { return FG_CMP_EPI((__m512i)a, (__m512i)b, _MM_CMPINT_EQ); }
FG_INLINE V vsel(M m, V a, V b) { return (V)FG_PS(mask_blend)(m, (FG_VREG)b, (FG_VREG)a); }
FG_INLINE VI visel(M m, VI a, VI b) { return (VI)FG_EPI(mask_blend)(m, (__m512i)b, (__m512i)a); }
FG_INLINE M vtruth(int yes) { return (M)-yes; }
FG_INLINE V vdrop(M m, V a) { return (V)FG_PS(maskz_mov)((M)~m, (FG_VREG)a); }
FG_INLINE int vany(M m) { return m != 0; }
FG_INLINE ptrdiff_t vfirst_true(M m) { return __builtin_ctz((unsigned)m); }
FG_INLINE int vcount(M m) { return __builtin_popcount((unsigned)m); }
#if FG_DOUBLE
FG_INLINE M vkept(const char *w) {
  const __m128i bytes = _mm_loadl_epi64((const __m128i *)w);
  return (M)_mm_test_epi8_mask(bytes, bytes);
}
#else
FG_INLINE M vkept(const char *w) {
  const __m128i bytes = _mm_loadu_si128((const __m128i *)w);
  return _mm_test_epi8_mask(bytes, bytes);
}
#endif

FG_INLINE V vexponent(V t) { return (V)FG_EPI(slli)((__m512i)t, MANTISSA); }
FG_INLINE T vreduce_max(V a) { return FG_PS(reduce_max)((FG_VREG)a); }

FG_INLINE void vfold(const int step, V a, V b, V *even, V *odd) {
  if (step == 0) {
    *even = (V)FG_PS(unpacklo)((FG_VREG)a, (FG_VREG)b), *odd = (V)FG_PS(unpackhi)((FG_VREG)a, (FG_VREG)b);
#if !FG_DOUBLE
  } else if (step == 1) {
    *even = (V)_mm512_unpacklo_pd((__m512d)a, (__m512d)b), *odd = (V)_mm512_unpackhi_pd((__m512d)a, (__m512d)b);
#endif
  } else {
    *even = (V)_mm512_shuffle_f64x2((__m512d)a, (__m512d)b, 0x88);
    *odd = (V)_mm512_shuffle_f64x2((__m512d)a, (__m512d)b, 0xdd);
  }
}

#define MASKS_ROWS 1
#if FG_DOUBLE
/* 4 x 4 in each half: the halves of the rows are swapped across, then pairs. */
FG_INLINE void transpose4(__m512d z[4]) {
  const __m512i even = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), odd = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
  const __m512d a = _mm512_permutex2var_pd(z[0], even, z[2]), b = _mm512_permutex2var_pd(z[1], even, z[3]);
  const __m512d c = _mm512_permutex2var_pd(z[0], odd, z[2]), d = _mm512_permutex2var_pd(z[1], odd, z[3]);
  z[0] = _mm512_unpacklo_pd(a, b);
  z[1] = _mm512_unpackhi_pd(a, b);
  z[2] = _mm512_unpacklo_pd(c, d);
  z[3] = _mm512_unpackhi_pd(c, d);
}
FG_INLINE __m256d load4(Starts rows, int k, ptrdiff_t n, T fill) {
  const T *const p = start_of(rows, k);
  if (n == 4 && !rows.size) return _mm256_loadu_pd(p);
  return _mm256_mask_loadu_pd(_mm256_set1_pd(fill), v_first(rest_of(rows, k, n)), p);
}
FG_INLINE void vgather4(Starts rows, ptrdiff_t n, T fill, V v[4]) {
  __m512d z[4];
  for (int k = 0; k < 4; k++)
    z[k] = _mm512_insertf64x4(_mm512_castpd256_pd512(load4(rows, k, n, fill)), load4(rows, k + 4, n, fill), 1);
  transpose4(z);
  for (int k = 0; k < 4; k++) v[k] = (V)z[k];
}
#define QUADS 2
/* Halves i of part[0] to part[quads - 1] become the beginning of row[i]. */
FG_INLINE void whole_rows(const int quads, const __m512d part[2], __m512d row[2]) {
  const __m512d other = quads == 1 ? part[0] : part[1];
  row[0] = quads == 1 ? part[0] : _mm512_shuffle_f64x2(part[0], other, 0x44);
  row[1] = _mm512_shuffle_f64x2(part[0], other, 0xee);
}
#else
FG_INLINE void transpose4(__m512 z[4]) { /* 4 x 4 in each quarter */
  const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(z[0], z[1])),
                b = _mm512_castps_pd(_mm512_unpackhi_ps(z[0], z[1]));
  const __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(z[2], z[3])),
                d = _mm512_castps_pd(_mm512_unpackhi_ps(z[2], z[3]));
  z[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
  z[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
  z[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
  z[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
}
FG_INLINE __m128 load4(Starts rows, int k, ptrdiff_t n, T fill) {
  const T *const p = start_of(rows, k);
  if (n == 4 && !rows.size) return _mm_loadu_ps(p);
  return _mm_mask_loadu_ps(_mm_set1_ps(fill), (__mmask8)v_first(rest_of(rows, k, n)), p);
}
FG_INLINE void vgather4(Starts rows, ptrdiff_t n, T fill, V v[4]) {
  __m512 z[4];
  for (int k = 0; k < 4; k++) {
    z[k] = _mm512_castps128_ps512(load4(rows, k, n, fill));
    z[k] = _mm512_mask_broadcast_f32x4(z[k], 0x00f0, load4(rows, k + 4, n, fill));
    z[k] = _mm512_mask_broadcast_f32x4(z[k], 0x0f00, load4(rows, k + 8, n, fill));
    z[k] = _mm512_mask_broadcast_f32x4(z[k], 0xf000, load4(rows, k + 12, n, fill));
  }
  transpose4(z);
  for (int k = 0; k < 4; k++) v[k] = (V)z[k];
}
#define QUADS 4
/* Quarters i of part[0] to part[quads - 1] become the beginning of row[i]. */
FG_INLINE void whole_rows(const int quads, const __m512 part[4], __m512 row[4]) {
  const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  if (quads == 1) {
    row[0] = part[0];
    row[1] = _mm512_shuffle_f32x4(part[0], part[0], 0x01);
    row[2] = _mm512_shuffle_f32x4(part[0], part[0], 0x02);
    row[3] = _mm512_shuffle_f32x4(part[0], part[0], 0x03);
  } else if (quads == 2) {
    row[0] = (__m512)_mm512_permutex2var_pd((__m512d)part[0], low, (__m512d)part[1]);
    row[1] = _mm512_shuffle_f32x4(row[0], row[0], 0x0e);
    row[2] = (__m512)_mm512_permutex2var_pd((__m512d)part[0], high, (__m512d)part[1]);
    row[3] = _mm512_shuffle_f32x4(row[2], row[2], 0x0e);
  } else {
    const __m512 even = _mm512_shuffle_f32x4(part[0], part[1], 0x88);
    const __m512 odd = _mm512_shuffle_f32x4(part[0], part[1], 0xdd);
    if (quads == 3) {
      row[0] = _mm512_shuffle_f32x4(even, part[2], 0x08);
      row[1] = _mm512_shuffle_f32x4(odd, part[2], 0x18);
      row[2] = _mm512_shuffle_f32x4(even, part[2], 0x2d);
      row[3] = _mm512_shuffle_f32x4(odd, part[2], 0x3d);
    } else {
      const __m512 even2 = _mm512_shuffle_f32x4(part[2], part[3], 0x88);
      const __m512 odd2 = _mm512_shuffle_f32x4(part[2], part[3], 0xdd);
      row[0] = _mm512_shuffle_f32x4(even, even2, 0x88);
      row[1] = _mm512_shuffle_f32x4(odd, odd2, 0x88);
      row[2] = _mm512_shuffle_f32x4(even, even2, 0xdd);
      row[3] = _mm512_shuffle_f32x4(odd, odd2, 0xdd);
    }
  }
}
#endif
/* Whole vectors with a mask: GCC would make one instruction of taking out a part and storing some of it, which is the
 * only kind that faults where the mask is 0. */
FG_INLINE void vscatter(const int quads, Starts rows, ptrdiff_t n, const V *v) {
  FG_VREG z[QUADS][4];
  FG_UNROLL (q, quads, 1) {
    FG_UNROLL (k, 4, 1) z[q][k] = (FG_VREG)v[4 * q + k];
    transpose4(z[q]);
  }
  FG_UNROLL (k, 4, 1) {
    FG_VREG part[QUADS], row[QUADS];
    FG_UNROLL (q, quads, 1) part[q] = z[q][k];
    whole_rows(quads, part, row);
    FG_UNROLL (i, QUADS, 1) {
      const int r = 4 * i + k;
      FG_PS(mask_storeu)(start_of(rows, r), v_first(rest_of(rows, r, n)), row[i]);
    }
  }
}

#if !FG_DOUBLE
typedef struct {
  __m512d a, b;
} Wide;
FG_INLINE __m256 low_half(V v) { return _mm512_castps512_ps256((__m512)v); }
FG_INLINE __m256 high_half(V v) { return _mm512_extractf32x8_ps((__m512)v, 1); }
FG_INLINE V both_halves(__m256 a, __m256 b) { return (V)_mm512_insertf32x8(_mm512_castps256_ps512(a), b, 1); }
FG_INLINE Wide wide_start(void) { return (Wide){_mm512_setzero_pd(), _mm512_setzero_pd()}; }
FG_INLINE void wide_add(Wide *w, V v) {
  w->a = _mm512_add_pd(w->a, _mm512_cvtps_pd(low_half(v)));
  w->b = _mm512_add_pd(w->b, _mm512_cvtps_pd(high_half(v)));
}
FG_INLINE void wide_split(const Wide *w, V *h, V *l) {
  *h = both_halves(_mm512_cvtpd_ps(w->a), _mm512_cvtpd_ps(w->b));
  *l = both_halves(_mm512_cvtpd_ps(_mm512_sub_pd(w->a, _mm512_cvtps_pd(low_half(*h)))),
                   _mm512_cvtpd_ps(_mm512_sub_pd(w->b, _mm512_cvtps_pd(high_half(*h)))));
}
/* GCC would convert the two halves of __builtin_convertvector one after the other. */
#define FG_HALF_TO_DOUBLE(h) _mm512_cvtps_pd((__m256)(h))
#define FG_DOUBLE_TO_HALF(d) _mm512_cvtpd_ps((__m512d)(d))
FG_INLINE double wide_total(const Wide *w) { return _mm512_reduce_add_pd(_mm512_add_pd(w->a, w->b)); }

typedef double VW __attribute__((vector_size(64)));
/* GCC 12 makes two 32-byte halves of __builtin_convertvector. */
FG_INLINE VW vwload(const float *p) { return (VW)_mm512_cvtps_pd(_mm256_loadu_ps(p)); }

FG_INLINE V v_widen(const int kind, __m256i h) {
  if (kind == FG_FLOAT16) return (V)_mm512_cvtph_ps(h);
  return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16);
}
FG_INLINE V vwiden(const int kind, const uint16_t *p) { return v_widen(kind, _mm256_loadu_si256((const __m256i *)p)); }
#define FG_MASKS_HALVES
FG_INLINE V vwiden_n(const int kind, const uint16_t *p, ptrdiff_t n, V fill) {
  return vsel(v_first(n), v_widen(kind, _mm256_maskz_loadu_epi16(v_first(n), p)), fill);
}
FG_INLINE __m256i v_narrow(const int kind, V v) {
  if (kind == FG_FLOAT16) return _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  /* Not VCVTNEPS2BF16: it flushes subnormals. */
  const __m512i bits = (__m512i)v, odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
  const __m512i r = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
}
FG_INLINE void vnarrow(const int kind, uint16_t *p, V v) { _mm256_storeu_si256((__m256i *)p, v_narrow(kind, v)); }
FG_INLINE void vnarrow_n(const int kind, uint16_t *p, ptrdiff_t n, V v) {
  _mm256_mask_storeu_epi16(p, v_first(n), v_narrow(kind, v));
}
FG_INLINE void vnarrow2_stream(const int kind, uint16_t *p, V a, V b) {
  const __m256i low = v_narrow(kind, a), high = v_narrow(kind, b);
  _mm512_stream_si512((__m512i *)p, _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
}
#endif
