/* sigmoid, log_sigmoid and binary cross-entropy: every element is a row of one class.
 *
 * Everything is a function of u = exp(-|z|), which never overflows:
 *
 *   s(|z|) = 1 / (1 + u)        s(-|z|) = u / (1 + u)        softplus(-|z|) = log1p(u)
 *
 * A target puts the mass P = pos_weight t on the positive class and N = 1 - t on the negative one.  Let `near` be the
 * mass on the class that the sign of z speaks against (N if z > 0, else P), and `far` the other.  With B the factor of
 * the value and A that of `out`,
 *
 *   value    = B ((P + N) log1p(u) + near |z|)                    both terms >= 0
 *   gradient = A sign(z) (near s(|z|) - far s(-|z|))              no s - 1
 *   hessian  = A (P + N) s(z) s(-z)
 *
 * so that a confident element keeps full relative accuracy.  0 * inf counts as 0 in `near |z|`; no other product can
 * meet it.  u and all that is proportional to it carry 2^BIAS (exp.inc.h) until the last multiplication: what is
 * subnormal is rounded at the end only.
 */
enum { SIGMOID, LOG_SIGMOID, PULL_SIGMOID, PULL_SIGMOID_OF, PULL_LOG_SIGMOID, BINARY, BINARY_GRAD, BINARY_HESS };
#define UP ((T)((int64_t)1 << BIAS))

typedef struct {
  V2 big;   /* s(|z|) */
  V2 small; /* 2^BIAS s(-|z|) */
  V2 log;   /* 2^BIAS log1p(u) */
} Logistic;

FG_INLINE Logistic logistic_of(V z, const Frame *frame, Base base) {
  const V up = vset(UP), down = vset(1 / UP);
  const V2 e = term2(exp_term(-vabs(z), frame, base)), u = {e.h * down, e.l * down};
  V2 sum = fast_two_sum(vset(1), u.h);
  sum.l += u.l;
  Logistic r;
  r.big = reciprocal2(sum);
  r.small = mul2(e, r.big);
  const V2 log = vlog1p(u);
  const M tiny = vlt(e.h, vset((T)0x1p-4)); /* log1p(u) = u to the last bit, and u itself may be subnormal */
  r.log = (V2){vsel(tiny, e.h, log.h * up), vsel(tiny, e.l, log.l * up)};
  return r;
}

/* p c, infinite where c is: there the low words would make inf - inf. */
FG_INLINE V times(V2 p, V c) { return vsel(vlt(vabs(c), vset((T)__builtin_inf())), vfma(p.h, c, p.l * c), p.h * c); }

/* p c 2^-BIAS, with no overflow or underflow on the way; p <= 2^BIAS. */
FG_INLINE V bring_down(V2 p, V c) {
  const V down = vset(1 / UP);
  const M less = vlt(vabs(c), vset(1));
  return times(p, vsel(less, c, c * down)) * vsel(less, down, vset(1));
}

/* ---- n <= LANES elements, `step` bytes apart ------------------------------------------------------------ */

FG_INLINE V take(const char *p, ptrdiff_t step, ptrdiff_t n) {
  if (step == (ptrdiff_t)sizeof(T)) return vload_some((const T *)p, n, vset(0));
  if (step == 0) return vset(*(const T *)p);
  T lane[LANES];
  for (ptrdiff_t i = 0; i < LANES; i++) lane[i] = *at(p, (i < n ? i : 0) * step);
  return vload(lane);
}

FG_INLINE void put(char *p, ptrdiff_t step, V v, ptrdiff_t n) {
  if (step == (ptrdiff_t)sizeof(T) && n == LANES) {
    vstore((T *)p, v);
  } else if (step == (ptrdiff_t)sizeof(T)) {
    vstore_n((T *)p, v, n);
  } else {
    T lane[LANES];
    vstore(lane, v);
    for (ptrdiff_t i = 0; i < n; i++) *(T *)(p + i * step) = lane[i];
  }
}

FG_INLINE VI take_targets(const int64_t *p, ptrdiff_t n) {
  if (n >= LANES) return viload_wide(p);
  int64_t lane[LANES];
  for (ptrdiff_t i = 0; i < LANES; i++) lane[i] = p[i < n ? i : 0];
  return viload_wide(lane);
}

FG_INLINE M dropped(const char *where, ptrdiff_t step, ptrdiff_t n) {
  if (step == 1 && n == LANES) return (M)~vkept(where);
  T lane[LANES];
  for (ptrdiff_t i = 0; i < LANES; i++) lane[i] = where[(i < n ? i : 0) * step] == 0;
  return vlt(vset(0), vload(lane));
}

FG_INLINE V binary_apply(const int op, const fg_run *run, ptrdiff_t r, ptrdiff_t n, V z, const Logistic *y, V2 scale,
                         V *value) {
  const V one = vset(1), zero = vset(0);
  const M above = vlt(zero, z);
  VI target = viset(0);
  if (run->target) target = take_targets(run->target + r, n);
  M gone = vieq(target, viset(-1));
  if (run->where) gone |= dropped(run->where + r * run->where_row, run->where_row, n);
  const V weight = run->weight ? take(run->weight + r * run->weight_row, run->weight_row, n) : one;
  V positive, negative;
  if (run->g) {
    const V t = take(run->g + r * run->g_row, run->g_row, n);
    positive = weight * t;
    negative = one - t;
  } else {
    const M is_one = vieq(target, viset(1));
    positive = vsel(is_one, weight, zero);
    negative = vdrop(is_one, one);
  }
  const V near = vsel(above, negative, positive), far = vsel(above, positive, negative), total = positive + negative;
  if (op != BINARY_HESS) {
    const V beta = run->beta ? take(run->beta + r * run->beta_row, run->beta_row, n) : one;
    const V mass = near * beta, apart = vdrop(veq(mass, zero), mass * vabs(z));
    *value = vdrop(gone, bring_down(y->log, total * beta) + apart);
  }
  if (op == BINARY) return zero;
  const V infinity = vset((T)__builtin_inf());
  V factor = scale.h;
  if (run->alpha) {
    const V alpha = take(run->alpha + r * run->alpha_row, run->alpha_row, n);
    factor = vsel(vlt(vabs(alpha), infinity), vfma(alpha, scale.h, alpha * scale.l), alpha * scale.h);
  }
  if (op == BINARY_HESS) {
    V c = total * factor;
    if (run->v) c *= take(run->v + r * run->v_row, run->v_row, n);
    return vdrop(gone, bring_down(mul2(y->small, y->big), c));
  }
  /* An infinite factor comes last: before, it would make inf - inf of the two masses. */
  const M fits = vlt(vabs(factor), infinity);
  const V part = vsel(fits, factor, one);
  V slope = times(y->big, near * part) - bring_down(y->small, far * part);
  slope = vsel(fits, slope, slope * factor);
  return vdrop(gone, vsel(above, slope, -slope));
}

FG_INLINE void binary_as(const int op, const fg_run *run) {
  const Base base = base_of(run);
  const Frame frame = frame_of(vset(0), base);
  const V2 scale = scale_of(run);
  const int flat = run->out_row == (ptrdiff_t)sizeof(T), stream = run->stream && flat;
  /* Streamed stores want `out` aligned: a first, short piece sees to that. */
  const ptrdiff_t head = stream ? (ptrdiff_t)(-(uintptr_t)run->out & (sizeof(V) - 1)) / (ptrdiff_t)sizeof(T) : 0;
  for (ptrdiff_t r = 0, n; r < run->rows; r += n) {
    n = r == 0 && head ? head : LANES;
    if (n > run->rows - r) n = run->rows - r;
    const V z = take(run->x + r * run->x_row, run->x_row, n);
    const M above = vlt(vset(0), z);
    V out, value = vset(0);
    if (op == PULL_SIGMOID_OF) {
      out = take(run->g + r * run->g_row, run->g_row, n) * (z * (vset(1) - z));
    } else {
      const Logistic y = logistic_of(z, &frame, base);
      if (op == SIGMOID) {
        out = vsel(above, y.big.h + y.big.l, bring_down(y.small, vset(1)));
      } else if (op == LOG_SIGMOID) {
        out = vdrop(above, z) - bring_down(y.log, vset(1));
      } else if (op == PULL_SIGMOID) {
        out = bring_down(mul2(y.small, y.big), take(run->g + r * run->g_row, run->g_row, n));
      } else if (op == PULL_LOG_SIGMOID) {
        const V g = take(run->g + r * run->g_row, run->g_row, n);
        out = vsel(above, bring_down(y.small, g), times(y.big, g));
      } else {
        out = binary_apply(op, run, r, n, z, &y, scale, &value);
      }
    }
    if (op != BINARY) {
      char *const to = run->out + r * run->out_row;
      if (stream && n == LANES)
        vstream((T *)to, out);
      else
        put(to, run->out_row, out, n);
    }
    if ((op == BINARY || op == BINARY_GRAD) && run->value)
      put(run->value + r * run->value_row, run->value_row, value, n);
  }
  if (stream) vfence();
}

FG_KERNEL void FG_NAME(sigmoid)(const fg_run *run) { binary_as(SIGMOID, run); }
FG_KERNEL void FG_NAME(log_sigmoid)(const fg_run *run) { binary_as(LOG_SIGMOID, run); }
FG_KERNEL void FG_NAME(pull_sigmoid)(const fg_run *run) { binary_as(PULL_SIGMOID, run); }
FG_KERNEL void FG_NAME(pull_sigmoid_of)(const fg_run *run) { binary_as(PULL_SIGMOID_OF, run); }
FG_KERNEL void FG_NAME(pull_log_sigmoid)(const fg_run *run) { binary_as(PULL_LOG_SIGMOID, run); }
FG_KERNEL void FG_NAME(binary)(const fg_run *run) { binary_as(BINARY, run); }
FG_KERNEL void FG_NAME(binary_grad)(const fg_run *run) { binary_as(BINARY_GRAD, run); }
FG_KERNEL void FG_NAME(binary_hess)(const fg_run *run) { binary_as(BINARY_HESS, run); }
