/* The vector verbs for AVX2 with FMA, one precision: see vec_any.h for what each verb means. */
#define LANES (32 / (int)sizeof(T))
typedef T V __attribute__((vector_size(32)));
typedef I VI __attribute__((vector_size(32)));
typedef VI M;

#if FG_DOUBLE
#define FG_PS(name) _mm256_##name##_pd
#define FG_EPI(name) _mm256_##name##_epi64
typedef __m256d FG_VREG;
FG_INLINE VI viset(I a) { return (VI)_mm256_set1_epi64x(a); }
FG_INLINE M v_first(ptrdiff_t n) {
  return (M)_mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
#else
#define FG_PS(name) _mm256_##name##_ps
#define FG_EPI(name) _mm256_##name##_epi32
typedef __m256 FG_VREG;
FG_INLINE VI viset(I a) { return (VI)_mm256_set1_epi32(a); }
FG_INLINE M v_first(ptrdiff_t n) {
  return (M)_mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
#endif

FG_INLINE V vset(T a) { return (V)FG_PS(set1)(a); }
FG_INLINE V vload(const T *p) { return (V)FG_PS(loadu)(p); }
#if FG_DOUBLE
FG_INLINE VI viload_wide(const int64_t *p) { return (VI)_mm256_loadu_si256((const __m256i *)p); }
#else
FG_INLINE VI viload_wide(const int64_t *p) {
  VI r;
  for (int i = 0; i < LANES; i++) r[i] = (I)p[i];
  return r;
}
#endif
FG_INLINE V vsel(M m, V a, V b) { return (V)FG_PS(blendv)((FG_VREG)b, (FG_VREG)a, (FG_VREG)m); }
FG_INLINE VI visel(M m, VI a, VI b) { return (VI)_mm256_blendv_epi8((__m256i)b, (__m256i)a, (__m256i)m); }
FG_INLINE V vload_n(const T *p, ptrdiff_t n, V fill) {
  M m = v_first(n);
  return vsel(m, (V)FG_PS(maskload)(p, (__m256i)m), fill);
}
FG_INLINE void vstore(T *p, V a) { FG_PS(storeu)(p, (FG_VREG)a); }
FG_INLINE void vstore_n(T *p, V a, ptrdiff_t n) { FG_PS(maskstore)(p, (__m256i)v_first(n), (FG_VREG)a); }
FG_INLINE void vstream(T *p, V a) { FG_PS(stream)(p, (FG_VREG)a); }
FG_INLINE void vfence(void) { _mm_sfence(); }

FG_INLINE V vfma(V a, V b, V c) { return (V)FG_PS(fmadd)((FG_VREG)a, (FG_VREG)b, (FG_VREG)c); }
FG_INLINE V vmla(V a, V b, V c) { return vfma(a, b, c); }
FG_INLINE V vscale2(V v, V a, V b) { return vfma(v, a, v * b); }
FG_INLINE V vmax(V a, V b) { return (V)FG_PS(max)((FG_VREG)a, (FG_VREG)b); }
FG_INLINE V vabs(V a) { return (V)FG_PS(andnot)(FG_PS(set1)((T)-0.0), (FG_VREG)a); }

FG_INLINE M vlt(V a, V b) { return (M)(a < b); }
FG_INLINE M veq(V a, V b) { return (M)(a == b); }
FG_INLINE M vieq(VI a, VI b) { return (M)(a == b); }
FG_INLINE M vtruth(int yes) { return viset(-(I)yes); }
FG_INLINE V vdrop(M m, V a) { return (V)FG_PS(andnot)((FG_VREG)m, (FG_VREG)a); }
FG_INLINE int vany(M m) { return FG_PS(movemask)((FG_VREG)m) != 0; }
FG_INLINE ptrdiff_t vfirst_true(M m) { return __builtin_ctz((unsigned)FG_PS(movemask)((FG_VREG)m)); }
FG_INLINE int vcount(M m) { return __builtin_popcount((unsigned)FG_PS(movemask)((FG_VREG)m)); }
#if FG_DOUBLE
FG_INLINE M vkept(const char *w) {
  int bytes;
  memcpy(&bytes, w, sizeof bytes);
  return (M)_mm256_cmpgt_epi64(_mm256_cvtepu8_epi64(_mm_cvtsi32_si128(bytes)), _mm256_setzero_si256());
}
#else
FG_INLINE M vkept(const char *w) {
  return (M)_mm256_cmpgt_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)w)), _mm256_setzero_si256());
}
#endif

FG_INLINE V vexponent(V t) { return (V)FG_EPI(slli)((__m256i)t, MANTISSA); }

FG_INLINE T vreduce_max(V a) {
  T lane[LANES];
  vstore(lane, a);
  T m = lane[0];
  for (int i = 1; i < LANES; i++) m = m > lane[i] ? m : lane[i];
  return m;
}

FG_INLINE void vfold(const int step, V a, V b, V *even, V *odd) {
  if (step == 0) {
    *even = (V)FG_PS(unpacklo)((FG_VREG)a, (FG_VREG)b), *odd = (V)FG_PS(unpackhi)((FG_VREG)a, (FG_VREG)b);
#if !FG_DOUBLE
  } else if (step == 1) {
    *even = (V)_mm256_unpacklo_pd((__m256d)a, (__m256d)b), *odd = (V)_mm256_unpackhi_pd((__m256d)a, (__m256d)b);
#endif
  } else {
    *even = (V)FG_PS(permute2f128)((FG_VREG)a, (FG_VREG)b, 0x20);
    *odd = (V)FG_PS(permute2f128)((FG_VREG)a, (FG_VREG)b, 0x31);
  }
}

#define MASKS_ROWS 0
#if FG_DOUBLE
FG_INLINE void transpose4(__m256d z[4]) {
  const __m256d a = _mm256_permute2f128_pd(z[0], z[2], 0x20), b = _mm256_permute2f128_pd(z[1], z[3], 0x20);
  const __m256d c = _mm256_permute2f128_pd(z[0], z[2], 0x31), d = _mm256_permute2f128_pd(z[1], z[3], 0x31);
  z[0] = _mm256_unpacklo_pd(a, b);
  z[1] = _mm256_unpackhi_pd(a, b);
  z[2] = _mm256_unpacklo_pd(c, d);
  z[3] = _mm256_unpackhi_pd(c, d);
}
#define QUADS 1
FG_INLINE void vgather4(Starts rows, ptrdiff_t n, T fill, V v[4]) {
  __m256d z[4];
  (void)n, (void)fill;
  for (int k = 0; k < 4; k++) z[k] = _mm256_loadu_pd(start_of(rows, k));
  transpose4(z);
  for (int k = 0; k < 4; k++) v[k] = (V)z[k];
}
FG_INLINE void vscatter(const int quads, Starts rows, ptrdiff_t n, const V *v) {
  __m256d z[4];
  (void)quads, (void)n;
  for (int k = 0; k < 4; k++) z[k] = (__m256d)v[k];
  transpose4(z);
  for (int k = 0; k < 4; k++) _mm256_storeu_pd(start_of(rows, k), z[k]);
}
#else
FG_INLINE void transpose4(__m256 z[4]) { /* 4 x 4 in each half */
  const __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(z[0], z[1])),
                b = _mm256_castps_pd(_mm256_unpackhi_ps(z[0], z[1]));
  const __m256d c = _mm256_castps_pd(_mm256_unpacklo_ps(z[2], z[3])),
                d = _mm256_castps_pd(_mm256_unpackhi_ps(z[2], z[3]));
  z[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
  z[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
  z[2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
  z[3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
}
#define QUADS 2
FG_INLINE void vgather4(Starts rows, ptrdiff_t n, T fill, V v[4]) {
  __m256 z[4];
  (void)n, (void)fill;
  for (int k = 0; k < 4; k++)
    z[k] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(start_of(rows, k))),
                                _mm_loadu_ps(start_of(rows, k + 4)), 1);
  transpose4(z);
  for (int k = 0; k < 4; k++) v[k] = (V)z[k];
}
FG_INLINE void vscatter(const int quads, Starts rows, ptrdiff_t n, const V *v) {
  (void)n;
  __m256 z[QUADS][4];
  FG_UNROLL (b, quads, 1) {
    FG_UNROLL (k, 4, 1) z[b][k] = (__m256)v[4 * b + k];
    transpose4(z[b]);
  }
  FG_UNROLL (k, 4, 1) {
    T *const low = start_of(rows, k), *const high = start_of(rows, k + 4);
    if (quads == 1) {
      _mm_storeu_ps(low, _mm256_castps256_ps128(z[0][k]));
      _mm_storeu_ps(high, _mm256_extractf128_ps(z[0][k], 1));
    } else {
      _mm256_storeu_ps(low, _mm256_permute2f128_ps(z[0][k], z[1][k], 0x20));
      _mm256_storeu_ps(high, _mm256_permute2f128_ps(z[0][k], z[1][k], 0x31));
    }
  }
}
#endif

#if !FG_DOUBLE
typedef struct {
  __m256d a, b;
} Wide;
FG_INLINE __m128 low_half(V v) { return _mm256_castps256_ps128((__m256)v); }
FG_INLINE __m128 high_half(V v) { return _mm256_extractf128_ps((__m256)v, 1); }
FG_INLINE V both_halves(__m128 a, __m128 b) { return (V)_mm256_insertf128_ps(_mm256_castps128_ps256(a), b, 1); }
FG_INLINE Wide wide_start(void) { return (Wide){_mm256_setzero_pd(), _mm256_setzero_pd()}; }
FG_INLINE void wide_add(Wide *w, V v) {
  w->a = _mm256_add_pd(w->a, _mm256_cvtps_pd(low_half(v)));
  w->b = _mm256_add_pd(w->b, _mm256_cvtps_pd(high_half(v)));
}
FG_INLINE void wide_split(const Wide *w, V *h, V *l) {
  *h = both_halves(_mm256_cvtpd_ps(w->a), _mm256_cvtpd_ps(w->b));
  *l = both_halves(_mm256_cvtpd_ps(_mm256_sub_pd(w->a, _mm256_cvtps_pd(low_half(*h)))),
                   _mm256_cvtpd_ps(_mm256_sub_pd(w->b, _mm256_cvtps_pd(high_half(*h)))));
}
FG_INLINE double wide_total(const Wide *w) {
  const __m256d s = _mm256_add_pd(w->a, w->b);
  const __m128d t = _mm_add_pd(_mm256_castpd256_pd128(s), _mm256_extractf128_pd(s, 1));
  return t[0] + t[1];
}

typedef double VW __attribute__((vector_size(32)));
FG_INLINE VW vwload(const float *p) { return (VW)_mm256_cvtps_pd(_mm_loadu_ps(p)); }

FG_INLINE V vwiden(const int kind, const uint16_t *p) {
  const __m128i h = _mm_loadu_si128((const __m128i *)p);
  if (kind == FG_FLOAT16) return (V)_mm256_cvtph_ps(h);
  return (V)_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16);
}
FG_INLINE __m128i v_narrow(const int kind, V v) {
  if (kind == FG_FLOAT16) return _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m256i bits = (__m256i)v, odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = (__m256i)_mm256_cmp_ps((__m256)v, (__m256)v, _CMP_UNORD_Q);
  const __m256i r = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}
FG_INLINE void vnarrow(const int kind, uint16_t *p, V v) { _mm_storeu_si128((__m128i *)p, v_narrow(kind, v)); }
FG_INLINE void vnarrow2_stream(const int kind, uint16_t *p, V a, V b) {
  const __m128i low = v_narrow(kind, a), high = v_narrow(kind, b);
  _mm256_stream_si256((__m256i *)p, _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1));
}
#endif
