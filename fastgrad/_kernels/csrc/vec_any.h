/* The vector verbs in plain GNU C: 16-byte vectors, which every 64-bit machine has (SSE2, NEON, VSX ...).
 *
 * This is the baseline and the specification of the verbs; vec_avx2.h and vec_avx512.h say the same
 * with intrinsics.  `+ - * /` and unary minus work on V by themselves.
 *
 *   V, VI, M, LANES      vector of T, of integers of the same width, mask, number of lanes
 *   vset viset           broadcast;  vload vstore: unaligned;  viload_wide: integers from int64
 *   vload_n vstore_n     the first n lanes, n < LANES; `fill` elsewhere; never touches what lies behind
 *   vstream              store past the caches, 64-byte aligned address;  vfence orders such stores
 *   vfma                 a*b + c rounded once;  vmla: a*b + c, either way
 *   vscale2              v (a + b), b a tail of a, rounded once even where the result is subnormal
 *   vmax                 a > b ? a : b, hence b when either is NaN
 *   vsel visel           lane-wise m ? a : b;  vdrop: m ? 0 : a
 *   vtruth               0 or 1 as a mask of all lanes;  vany, vfirst_true: is there, and which is, a true lane;
 *                        vcount: how many are;  vkept: which of LANES bytes are not 0
 *   vexponent            the low bits of t moved into the exponent field: a power of two, or +0
 *   vgather4             the first n elements of LANES rows as a vector each, `fill` behind those that there are
 *   vscatter             and back: n elements, n <= 4 quads, of at most QUADS quads
 *                        (unless MASKS_ROWS: n is 4 for vgather4 and 4 quads for vscatter, and no row is shorter)
 *   vfold                of vectors a and b, whose elements are parts of one result each: all parts of a and b in `even`
 *                        and `odd`, to be put together lane by lane.  LANES vectors become one in log2(LANES) steps
 *                        from 0 on, neighbours with each other: the result of vector k is then in lane k
 *   Wide wide_*          float only: LANES sums in double; wide_split gives them back as head + tail
 *   VW vwload            float only: LANES / 2 doubles, loaded from as many floats
 *   vwiden               float only: LANES halves of a kind (FG_FLOAT16, FG_BFLOAT16) from p; exact, subnormals too
 *   vnarrow              to p, rounded once to nearest, ties to even; NaN becomes a quiet NaN
 *   vwiden_n vnarrow_n   the first n halves, n < LANES, as vload_n; by default in half.inc.h
 *   vnarrow2_stream      2 LANES halves past the caches, to an address that is a multiple of the vector's size
 */
#define LANES (16 / (int)sizeof(T))
typedef T V __attribute__((vector_size(16)));
typedef I VI __attribute__((vector_size(16)));
typedef VI M;
typedef double FG_WIDE __attribute__((vector_size(32)));

#define FG_EACH for (int i = 0; i < LANES; i++)

#if FG_DOUBLE
FG_INLINE V vset(T a) { return (V){a, a}; }
FG_INLINE VI viset(I a) { return (VI){a, a}; }
#else
FG_INLINE V vset(T a) { return (V){a, a, a, a}; }
FG_INLINE VI viset(I a) { return (VI){a, a, a, a}; }
#endif
FG_INLINE V vload(const T *p) {
  V r;
  memcpy(&r, p, sizeof r);
  return r;
}
FG_INLINE VI viload_wide(const int64_t *p) {
  VI r;
  FG_EACH r[i] = (I)p[i];
  return r;
}
FG_INLINE void vstore(T *p, V a) { memcpy(p, &a, sizeof a); }
FG_INLINE V vload_n(const T *p, ptrdiff_t n, V fill) {
  T lane[LANES];
  vstore(lane, fill);
  for (ptrdiff_t i = 0; i < n; i++) lane[i] = p[i];
  return vload(lane);
}
FG_INLINE void vstore_n(T *p, V a, ptrdiff_t n) {
  T lane[LANES];
  vstore(lane, a);
  for (ptrdiff_t i = 0; i < n; i++) p[i] = lane[i];
}
#if FG_X86
FG_INLINE void vstream(T *p, V a) { _mm_stream_si128((__m128i *)p, (__m128i)a); }
FG_INLINE void vfence(void) { _mm_sfence(); }
#else
FG_INLINE void vstream(T *p, V a) { vstore(p, a); }
FG_INLINE void vfence(void) {}
#endif

FG_INLINE V vsel(M m, V a, V b) { return (V)(((VI)a & m) | ((VI)b & ~m)); }
FG_INLINE VI visel(M m, VI a, VI b) { return (a & m) | (b & ~m); }
FG_INLINE M vtruth(int yes) { return viset(-(I)yes); }
FG_INLINE V vdrop(M m, V a) { return (V)((VI)a & ~m); }
#if FG_X86 && FG_DOUBLE /* SSE2 compares no 64-bit integers, and GCC 12 crashes on masks that it may fold into one */
FG_INLINE M vlt(V a, V b) { return (M)_mm_cmplt_pd(a, b); }
FG_INLINE M veq(V a, V b) { return (M)_mm_cmpeq_pd(a, b); }
FG_INLINE M vieq(VI a, VI b) {
  const __m128i same = _mm_cmpeq_epi32((__m128i)a, (__m128i)b);
  return (M)_mm_and_si128(same, _mm_shuffle_epi32(same, 0xb1));
}
#else
FG_INLINE M vlt(V a, V b) { return (M)(a < b); }
FG_INLINE M veq(V a, V b) { return (M)(a == b); }
FG_INLINE M vieq(VI a, VI b) { return (M)(a == b); }
#endif
FG_INLINE V vabs(V a) { return (V)((VI)a & ~(VI)(-vset(0))); }
FG_INLINE V vmax(V a, V b) { return vsel(vlt(b, a), a, b); }

#if defined(__aarch64__) || defined(__powerpc64__)
FG_INLINE V vfma(V a, V b, V c) {
  V r;
#if FG_DOUBLE
  FG_EACH r[i] = __builtin_fma(a[i], b[i], c[i]);
#else
  FG_EACH r[i] = __builtin_fmaf(a[i], b[i], c[i]);
#endif
  return r;
}
FG_INLINE V vmla(V a, V b, V c) { return vfma(a, b, c); }
FG_INLINE V vscale2(V v, V a, V b) { return vfma(v, a, v * b); }
#elif FG_DOUBLE
/* No FMA below AVX2.  Dekker's product and Knuth's sum give a*b + c to within 2^-52 of its last bit,
 * which is as good as one rounding here; the splits cannot overflow for the magnitudes of exp.inc.h. */
FG_INLINE V vfma(V a, V b, V c) {
  const VI high = viset(~(I)0x7ffffff);
  V a1 = (V)((VI)a & high), a2 = a - a1, b1 = (V)((VI)b & high), b2 = b - b1;
  V p = a * b, err = ((a1 * b1 - p) + a1 * b2 + a2 * b1) + a2 * b2;
  V s = p + c, t = s - p;
  return s + (((p - (s - t)) + (c - t)) + err);
}
FG_INLINE V vmla(V a, V b, V c) { return a * b + c; }
/* The parts of a product that is itself subnormal would vanish: multiply 2^200 higher, then come down once.  Those of
 * one that is huge would overflow: there it is rounded twice. */
FG_INLINE V vscale2(V v, V a, V b) {
  const V high = v * vset(0x1p200), r = vfma(high, a, high * b) * vset(0x1p-200);
  return vsel(vlt(vabs(a), vset(0x1p600)), r, v * a);
}
#else
FG_INLINE V vfma(V a, V b, V c) {
  FG_WIDE r =
      __builtin_convertvector(a, FG_WIDE) * __builtin_convertvector(b, FG_WIDE) + __builtin_convertvector(c, FG_WIDE);
  return __builtin_convertvector(r, V);
}
FG_INLINE V vmla(V a, V b, V c) { return a * b + c; }
FG_INLINE V vscale2(V v, V a, V b) { return vfma(v, a, v * b); }
#endif

FG_INLINE V vexponent(V t) { return (V)((VI)t << MANTISSA); }

#if FG_X86 /* GCC 12 fails on the loops below for SSE2 doubles */
#if FG_DOUBLE
FG_INLINE int vmask(M m) { return _mm_movemask_pd((__m128d)m); }
#else
FG_INLINE int vmask(M m) { return _mm_movemask_ps((__m128)m); }
#endif
#else
FG_INLINE int vmask(M m) {
  int bits = 0;
  FG_EACH bits |= (m[i] & 1) << i;
  return bits;
}
#endif
FG_INLINE int vany(M m) { return vmask(m) != 0; }
FG_INLINE ptrdiff_t vfirst_true(M m) { return __builtin_ctz((unsigned)vmask(m)); }
FG_INLINE int vcount(M m) {
  int count = 0;
  FG_EACH count -= (int)m[i];
  return count;
}
FG_INLINE M vkept(const char *w) {
  M m;
  FG_EACH m[i] = -(I)(w[i] != 0);
  return m;
}
FG_INLINE T vreduce_max(V a) {
  T m = a[0];
  FG_EACH m = m > a[i] ? m : a[i];
  return m;
}
FG_INLINE void vfold(const int step, V a, V b, V *even, V *odd) {
#if FG_DOUBLE
  (void)step;
  *even = (V){a[0], b[0]};
  *odd = (V){a[1], b[1]};
#else
  *even = step == 0 ? (V){a[0], b[0], a[1], b[1]} : (V){a[0], a[1], b[0], b[1]};
  *odd = step == 0 ? (V){a[2], b[2], a[3], b[3]} : (V){a[2], a[3], b[2], b[3]};
#endif
}
#define QUADS 1
#define MASKS_ROWS 0
FG_INLINE void vgather4(Starts rows, ptrdiff_t n, T fill, V v[4]) {
  T t[4][LANES];
  (void)n, (void)fill;
  FG_EACH for (int k = 0; k < 4; k++) t[k][i] = start_of(rows, i)[k];
  memcpy(v, t, sizeof t);
}
FG_INLINE void vscatter(const int quads, Starts rows, ptrdiff_t n, const V *v) {
  T t[4][LANES];
  (void)quads, (void)n;
  memcpy(t, v, sizeof t);
  FG_EACH for (int k = 0; k < 4; k++) start_of(rows, i)[k] = t[k][i];
}

#if !FG_DOUBLE
typedef double VD __attribute__((vector_size(16))); /* FG_WIDE itself has no fixed calling convention */
typedef struct {
  VD part[2];
} Wide;
FG_INLINE Wide wide_start(void) { return (Wide){{{0, 0}, {0, 0}}}; }
FG_INLINE void wide_add(Wide *w, V v) {
  const FG_WIDE d = __builtin_convertvector(v, FG_WIDE);
  VD part[2];
  memcpy(part, &d, sizeof part);
  w->part[0] += part[0];
  w->part[1] += part[1];
}
FG_INLINE void wide_split(const Wide *w, V *h, V *l) {
  FG_WIDE d;
  memcpy(&d, w->part, sizeof d);
  *h = __builtin_convertvector(d, V);
  *l = __builtin_convertvector(d - __builtin_convertvector(*h, FG_WIDE), V);
}
FG_INLINE double wide_total(const Wide *w) {
  const VD s = w->part[0] + w->part[1];
  return s[0] + s[1];
}

typedef VD VW;
FG_INLINE VW vwload(const float *p) { return (VW){p[0], p[1]}; }

typedef uint16_t VH __attribute__((vector_size(8)));
typedef uint32_t VU __attribute__((vector_size(16)));
FG_INLINE VU vuset(uint32_t a) { return (VU){a, a, a, a}; }
FG_INLINE V vwiden(const int kind, const uint16_t *p) {
  VH h;
  memcpy(&h, p, sizeof h);
  const VU a = __builtin_convertvector(h, VU);
  if (kind == FG_BFLOAT16) return (V)(a << 16);
  const VI size = (VI)(a & vuset(0x7fff));
  const M small = (M)(size < viset(0x400)), special = (M)(size >= viset(0x7c00)), nan = (M)(size > viset(0x7c00));
  const VI bias = viset(112 << 23), normal = (size << 13) + bias + (bias & special);
  const V r = vsel(small, __builtin_convertvector(size, V) * vset(0x1p-24f), (V)normal);
  return (V)((VU)r | ((VU)nan & vuset(0x00400000)) | (a & vuset(0x8000)) << 16);
}
FG_INLINE VH v_narrow(const int kind, V v) {
  const VU bits = (VU)v, a = bits & vuset(0x7fffffff);
  const M nan = (M)((VI)a > viset(0x7f800000));
  VU r, quiet;
  if (kind == FG_BFLOAT16) {
    r = (a + vuset(0x7fff) + ((a >> 16) & vuset(1))) >> 16;
    quiet = (a >> 16) | vuset(0x40);
  } else {
    const VU normal = (a - vuset((112u << 23) - 0xfff) + ((a >> 13) & vuset(1))) >> 13;
    const V half = vset(0.5f); /* its last bit is the smallest float16: adding it rounds */
    const VU small = (VU)((V)a + half) - (VU)half;
    r = (VU)visel((M)((VI)a < viset(113 << 23)), (VI)small, (VI)normal);
    r = (VU)visel((M)((VI)a >= viset(0x477ff000)), viset(0x7c00), (VI)r); /* from 65520 on */
    quiet = ((a >> 13) & vuset(0x3ff)) | vuset(0x7e00);
  }
  r = (VU)visel(nan, (VI)quiet, (VI)r) | ((bits >> 16) & vuset(0x8000));
  return __builtin_convertvector(r, VH);
}
FG_INLINE void vnarrow(const int kind, uint16_t *p, V v) {
  const VH h = v_narrow(kind, v);
  memcpy(p, &h, sizeof h);
}
FG_INLINE void vnarrow2_stream(const int kind, uint16_t *p, V a, V b) {
  const VH h[2] = {v_narrow(kind, a), v_narrow(kind, b)};
  V both;
  memcpy(&both, h, sizeof both);
  vstream((T *)p, both);
}
#endif
