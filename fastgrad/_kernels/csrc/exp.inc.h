/* exp, log and their two-word arithmetic: the numerical heart of every normaliser.
 *
 * exp(x - max) as everybody writes it rounds the difference, and half an ulp of a difference of 20 is
 * 20 times half an ulp of the result.  Here x log2(e) = n + f with n an integer and |f| <= 1/2, and the
 * exponential is 2^(n - n_max) 2^f: the shift by the maximum is an exact power of two, f never met the
 * maximum, and the common factor 2^n_max cancels in every quotient.  (Mantissa and exponent apart:
 * Dukhan & Ablavatski, "The Two-Pass Softmax Algorithm", arXiv 2001.04438.)
 *
 *   t  = fma(x, log2e, MAGIC + FIELD - n_max)     the low bits of t are the exponent field of 2^(n - n_max)
 *   f  = x log2e - n                               log2e in two words, n = t minus the same constant
 *   2^f = 1 + f q(f) = hi + lo                     hi rounded, lo what the rounding lost
 *
 * All terms carry the factor 2^BIAS, so that a term of 2^-150 (float) is still a normal number and a
 * result in the subnormal range is rounded once, in the last multiplication.  Terms that would be
 * smaller than that land on exponent field 0 and are exactly 0: so is exp(-inf).
 *
 * Rows whose maximum is larger than LARGE_ROW (in octaves) are shifted by the maximum first: the difference is
 * exact for every term that does not vanish (Sterbenz), and n stays small whatever the offset.
 *
 * NaN passes through: every step keeps it, and vmax(bound, x) returns x when x is NaN.
 */

#if FG_DOUBLE
#define BIAS 53
#define MAGIC 0x1.8p52
#define LARGE_ROW 2176
#define LN2_HIGH 0x1.62e42feep-1 /* 32 bits: k LN2_HIGH is exact for |k| < 2^21 */
#define LN2_LOW 0x1.a39ef35793c76p-33
#define BIGGEST 0x1.fffffffffffffp1023
#define SQRT_HALF_BITS 0x3fe6a09e667f3bcd
static const T EXP2_Q[] = {/* minimax of (2^f - 1)/f on |f| <= 1/2 + 2^-12, |f| error 2^-57.2 */
                           0x1.62e42fefa39efp-1,  0x1.ebfbdff82c598p-3,  0x1.c6b08d704a0cbp-5,  0x1.3b2ab6fba1da8p-7,
                           0x1.5d87fe78a2c85p-10, 0x1.430913097cde0p-13, 0x1.ffcbfc7455a97p-17, 0x1.62bfd44fe3d06p-20,
                           0x1.b524dc8a3fb8ap-24, 0x1.e6068e63ec327p-28, 0x1.ea049285d01dep-32};
static const T LOG_R[] = {/* minimax of 2(atanh(s)/s - 1)/s^2 in s^2 on |s| <= 0.1724, error 2^-51.4 */
                          0x1.5555555555558p-1, 0x1.9999999994db5p-2, 0x1.2492492e807ddp-2, 0x1.c71c6232805b1p-3,
                          0x1.7462e6be0988fp-3, 0x1.39f7f8e7251b9p-3, 0x1.2ba66426e1fe4p-3};
#else
#define BIAS 24
#define MAGIC 0x1.8p23f
#define LARGE_ROW 320
#define LN2_HIGH 0x1.62ep-1f /* 12 bits: k LN2_HIGH is exact for |k| < 2^12 */
#define LN2_LOW 0x1.0bfbe8p-15f
#define BIGGEST 0x1.fffffep127f
#define SQRT_HALF_BITS 0x3f3504f3
static const T EXP2_Q[] = {/* minimax of (2^f - 1)/f on |f| <= 1/2 + 2^-12, |f| error 2^-28 */
                           0x1.62e430p-1f, 0x1.ebfbe0p-3f,  0x1.c6af6cp-5f,
                           0x1.3b29e4p-7f, 0x1.5f08f6p-10f, 0x1.446cdap-13f};
static const T LOG_R[] = {/* minimax of 2(atanh(s)/s - 1)/s^2 in s^2 on |s| <= 0.1724, error 2^-29.6 */
                          0x1.555556p-1f, 0x1.9999eep-2f, 0x1.245af0p-2f, 0x1.de14a6p-3f};
#endif
#define EXPONENT_BIAS (FG_DOUBLE ? 1023 : 127)
#define FIELD ((T)(EXPONENT_BIAS + BIAS)) /* exponent field of the largest term */
#define COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))

FG_INLINE V polynomial(const T *c, int n, V x) {
  V r = vset(c[n - 1]);
#pragma GCC unroll 16
  for (int i = n - 2; i >= 0; i--) r = vmla(r, x, vset(c[i]));
  return r;
}

/* ---- two-word numbers: h + l, unevaluated ------------------------------------------------------ */

typedef struct {
  V h, l;
} V2;

FG_INLINE V2 two_sum(V a, V b) { /* any order */
  V s = a + b, t = s - a;
  return (V2){s, (a - (s - t)) + (b - t)};
}
FG_INLINE V2 fast_two_sum(V a, V b) { /* |a| >= |b| */
  V s = a + b;
  return (V2){s, b - (s - a)};
}
FG_INLINE V2 add2(V2 a, V2 b) {
  V2 s = two_sum(a.h, b.h);
  return fast_two_sum(s.h, s.l + (a.l + b.l));
}
FG_INLINE V2 mul2(V2 a, V2 b) {
  V h = a.h * b.h;
  return (V2){h, vfma(a.h, b.h, -h) + (a.h * b.l + a.l * b.h)};
}
FG_INLINE V2 reciprocal2(V2 a) {
  V r = vset(1) / a.h;
  return (V2){r, r * (vfma(-a.h, r, vset(1)) - a.l * r)};
}
FG_INLINE V2 div2(V2 a, V2 b) {
  V r = vset(1) / b.h, q = a.h * r;
  return (V2){q, (vfma(-q, b.h, a.h) + (a.l - q * b.l)) * r};
}

/* The power of two 2^-k with 2^(k - 1) <= x < 2^k, for finite x > 0. */
FG_INLINE T power_of_two_above(T x, int *k) {
#if FG_DOUBLE
  __builtin_frexp(x, k);
  return __builtin_ldexp(1.0, -*k);
#else
  __builtin_frexpf(x, k);
  return __builtin_ldexpf(1.0f, -*k < 127 ? -*k : 127);
#endif
}

/* ---- exp ---------------------------------------------------------------------------------------- */

typedef struct {
  V log2e, log2e_low, ln2; /* log2(e) / temperature in two words, and its reciprocal */
} Base;

typedef struct {
  V shift; /* subtracted from x before anything else: 0, or the maximum of a large row */
  V magic; /* MAGIC + FIELD - n_max */
  V bound; /* smaller x - shift land here, on exponent field 0 */
} Frame;

FG_INLINE V vround(V x) { return (x + vset(MAGIC)) - vset(MAGIC); }

/* `max` must be finite. */
FG_INLINE Frame frame_of(V max, Base base) {
  Frame f;
  f.shift = vdrop(vlt(vabs(max * base.log2e), vset(LARGE_ROW)), max);
  V n = vround((max - f.shift) * base.log2e) - vset(FIELD);
  f.magic = vset(MAGIC) - n;
  f.bound = n * base.ln2;
  return f;
}

typedef struct {
  V hi, lo, power;
} Term; /* exp(x) = (hi + lo) power, up to the frame's common factor; hi power is exact */

/* Of several vectors d = x - shift in step, each stage for all of them: one alone is a chain of 12 operations that wait
 * for one another.  It gains 5 %; the processor finds most of the rest by itself. */
#define ABREAST ((int)sizeof(V) == 64 ? 4 : 2)
#define ABREAST_MAX 4

/* Half-way: the polynomial is missing.  A loop that begins the next ones before it ends these keeps the processor's
 * window free of operations that only wait: 120 in flight, of 19 and a chain of 60 cycles for each vector (Zen 5). */
typedef struct {
  V t[ABREAST_MAX], f[ABREAST_MAX];
} Begun;

FG_INLINE void exp_begin(const int several, V *d, const Frame *const *frame, Base base, Begun *b) {
  FG_UNROLL (k, several, 1) d[k] = vmax(frame[k]->bound, d[k]);
  FG_UNROLL (k, several, 1) b->t[k] = vmla(d[k], base.log2e, frame[k]->magic);
  FG_UNROLL (k, several, 1) b->f[k] = vfma(d[k], base.log2e, -(b->t[k] - frame[k]->magic));
  FG_UNROLL (k, several, 1) b->f[k] = vmla(d[k], base.log2e_low, b->f[k]);
}

FG_INLINE void exp_end(const int several, const Begun *b, Term *e) {
  const V *const t = b->t, *const f = b->f;
  V q[ABREAST_MAX];
  FG_UNROLL (k, several, 1) q[k] = vset(EXP2_Q[COUNT(EXP2_Q) - 1]);
#pragma GCC unroll 16
  for (int i = COUNT(EXP2_Q) - 2; i >= 0; i--)
    FG_UNROLL (k, several, 1) q[k] = vmla(q[k], f[k], vset(EXP2_Q[i]));
  FG_UNROLL (k, several, 1) {
    const V hi = vmla(f[k], q[k], vset(1));
    e[k] = (Term){hi, vfma(f[k], q[k], vset(1) - hi), vexponent(t[k])};
  }
}

FG_INLINE void exp_terms(const int several, V *d, const Frame *const *frame, Base base, Term *e) {
  Begun b;
  exp_begin(several, d, frame, base, &b);
  exp_end(several, &b, e);
}

FG_INLINE Term exp_term(V d, const Frame *frame, Base base) {
  Term e;
  exp_terms(1, &d, &frame, base, &e);
  return e;
}
FG_INLINE V2 term2(Term e) { return (V2){e.hi * e.power, e.lo * e.power}; }

/* ---- sums of terms ------------------------------------------------------------------------------
 *
 * `head` starts above every term, so that FastTwoSum recovers the rounding error of each addition
 * exactly; `tail` collects those errors and the low words of the terms.  When all but the term left out
 * are tiny, the sum lives in `tail` alone: every SUM_BLOCK terms it is emptied into a wider accumulator
 * (double for float, two words for double).  The sum then inherits neither the rounding of its largest
 * term nor one rounding per term. */
#define SUM_BLOCK 8
#define SUM_FEW (2 * SUM_BLOCK) /* so many may do without, where no lane gets more */
#define SUM_START ((T)((int64_t)2 << BIAS))

#if FG_DOUBLE
typedef V2 Wide;
FG_INLINE Wide wide_start(void) { return (Wide){vset(0), vset(0)}; }
FG_INLINE void wide_add(Wide *w, V v) {
  V2 s = two_sum(w->h, v);
  *w = (Wide){s.h, w->l + s.l};
}
#endif

typedef struct {
  V head, tail;
  Wide wide;
} Sum;

FG_INLINE Sum sum_start(void) { return (Sum){vset(SUM_START), vset(0), wide_start()}; }

/* Returns the term.  Without `low`, its low word is left out of the sum. */
FG_INLINE V sum_add(Sum *s, const int low, Term e) {
  const V term = e.hi * e.power, head = s->head + term;
  s->tail += term - (head - s->head);
  if (low) s->tail = vmla(e.lo, e.power, s->tail);
  s->head = head;
  return term;
}

FG_INLINE void sum_flush(Sum *s) { /* at least every SUM_BLOCK terms, or SUM_FEW where a lane holds a row */
  wide_add(&s->wide, s->tail);
  s->tail = vset(0);
}

FG_INLINE Wide sum_wide(Sum s) {
  wide_add(&s.wide, s.tail);
  wide_add(&s.wide, s.head - vset(SUM_START)); /* exact */
  return s.wide;
}

FG_INLINE V2 sum_value(Sum s) {
  const Wide w = sum_wide(s);
#if FG_DOUBLE
  return two_sum(w.h, w.l);
#else
  V2 r;
  wide_split(&w, &r.h, &r.l);
  return r;
#endif
}

FG_INLINE V2 sum_unflushed(Sum s) { /* of at most SUM_FEW terms */ return two_sum(s.head - vset(SUM_START), s.tail); }

/* All lanes of a two-word number, broadcast. */
FG_INLINE V2 total2(V2 s) {
  T h[LANES], l[LANES];
  vstore(h, s.h);
  vstore(l, s.l);
  double head[LANES], tail[LANES];
  for (int i = 0; i < LANES; i++) head[i] = h[i], tail[i] = l[i];
  for (int w = LANES / 2; w; w /= 2)
    for (int i = 0; i < w; i++) {
      const double a = head[i], b = head[i + w], t = a + b, u = t - a;
      tail[i] += tail[i + w] + ((a - (t - u)) + (b - u));
      head[i] = t;
    }
  const double sum = head[0] + tail[0];
  const T high = (T)sum;
  return (V2){vset(high), vset((T)((sum - (double)high) + ((head[0] - sum) + tail[0])))};
}

FG_INLINE V2 sum_lanes(Sum s) { /* all lanes of a sum, broadcast */
  const Wide w = sum_wide(s);
#if FG_DOUBLE
  return total2(w);
#else
  const double sum = wide_total(&w);
  const T high = (T)sum;
  return (V2){vset(high), vset((T)(sum - (double)high))};
#endif
}

/* ---- log ---------------------------------------------------------------------------------------- */

/* log(w + c) in two words, |c| <= ulp(w)/2.  w = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), s = f/(2 + f):
 * log(1 + f) = 2 atanh(s) = f - f^2/2 + s (f^2/2 + s^2 R(s^2)), the form of FreeBSD's log.
 * w must be a positive normal number; see the two callers for the rest. */
FG_INLINE V2 log_sum(V w, V c) {
  VI bits = (VI)w, k = (bits - viset(SQRT_HALF_BITS)) >> MANTISSA;
  V kf = (V)(k + (VI)vset(MAGIC)) - vset(MAGIC);
  V f = (V)(bits - (k << MANTISSA)) - vset(1);
  V scale = (V)((viset(EXPONENT_BIAS) - k) << MANTISSA); /* 2^-k */
  V s = f / (f + vset(2)), z = s * s, half = f * f * vset((T)0.5);
  V r = z * polynomial(LOG_R, COUNT(LOG_R), z);
  /* c/w needs few digits: 1/(1 + f) by its parabola through the range. */
  V correction = (c * scale) * vmla(f, vmla(f, vset((T)0.8), vset(-1)), vset(1));
  V small = vmla(kf, vset(LN2_LOW), correction);
  V2 h = two_sum(kf * vset(LN2_HIGH), f); /* the product is exact */
  return (V2){h.h, h.l - (half - (vmla(s, half + r, small)))};
}

FG_INLINE V2 vlog1p(V2 u) { /* u >= -1 or NaN, u < 2^100; -inf in the head at -1 */
  V2 w = two_sum(vset(1), u.h);
  V2 r = log_sum(w.h, w.l + u.l);
  r.h = vsel(veq(w.h, vset(0)), vset((T)-__builtin_inf()), r.h);
  return (V2){r.h, r.l + (u.h - u.h)};
}

FG_INLINE V vlog(V x) { /* x >= 0 and not subnormal, +inf or NaN */
  V2 r = log_sum(x, vset(0));
  V y = vsel(veq(x, vset(0)), vset((T)-__builtin_inf()), r.h + r.l);
  return vsel(vlt(vset(BIGGEST), x), x, y + (x - x));
}

FG_INLINE V vexp2(V x) { /* 2^x for results in the normal range; the term before any normalisation */
  V n = vround(x), f = x - n;
  V q = polynomial(EXP2_Q, COUNT(EXP2_Q), f);
  return vmla(f, q, vset(1)) * vexponent(n + vset(MAGIC + EXPONENT_BIAS));
}
