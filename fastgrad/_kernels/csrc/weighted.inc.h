/* logsumexp with weights of either sign: value = log |sum_i b_i exp(x_i)|, sign = sign of the sum, and
 * optionally out_i = alpha b_i exp(x_i) / sum, which is its gradient.
 *
 * A weight of 0 removes its element, infinite or NaN though it be.  Very large or small weights are
 * brought to [-1, 1] by a power of two 2^k, so that no product overflows.  With e_t the largest exponential kept and S the sum,
 * value = x_t + log(|S| / e_t) + k ln 2.  If k = 0 and S is near e_t, log1p(u) with u = (S - e_t) / e_t, taken
 * without forming S, keeps the accuracy of the plain kernel.  One row at a time in every layout.
 */
FG_INLINE T weighted_infinite(const T *x, const T *b, ptrdiff_t n, T max) {
  T sum = 0; /* of the elements that decide: infinite or NaN, or not there */
  for (ptrdiff_t c = 0; c < n; c++)
    if (x[c] != x[c] || b[c] != b[c])
      return (T)__builtin_nan("");
    else if (b[c] != 0 && x[c] > (T)-__builtin_inf() && (x[c] == max || b[c] - b[c] != 0))
      sum += max > BIGGEST ? (x[c] == max ? b[c] * max : 0) : b[c];
  return sum;
}

FG_KERNEL void FG_NAME(logsumexp_weighted)(const fg_run *run) {
  const ptrdiff_t n = run->classes, room = padded(n);
  const Base base = base_of(run);
  const V zero = vset(0), inv_t = vset((T)run->inv_temperature), nan = vset((T)__builtin_nan(""));
  T *const x = (T *)run->scratch, *const b = x + room;
  for (ptrdiff_t r = 0; r < run->rows; r++) {
    const char *const from = run->x + r * run->x_row, *const weight = run->g + r * run->g_row;
    const char *const w = run->where ? run->where + r * run->where_row : NULL;
    T largest = 0; /* of |b| */
    int odd = 0;   /* is some weight not finite */
    for (ptrdiff_t c = 0; c < n; c++) {
      b[c] = w && !w[c * run->where_class] ? 0 : *at(weight, c * run->g_class);
      x[c] = b[c] == 0 ? (T)-__builtin_inf() : *at(from, c * run->x_class);
      const T size = b[c] < 0 ? -b[c] : b[c];
      largest = size > largest ? size : largest;
      odd |= b[c] - b[c] != 0;
    }
    for (ptrdiff_t c = n; c < room; c++) x[c] = (T)-__builtin_inf(), b[c] = 0;

    const T max = row_max(FG_NATIVE, x, n);
    const int finite = max - max == 0 && !odd;
    T value, sign;
    V2 total = {zero, zero};
    const Frame frame = frame_of(vset(finite ? max : 0), base);
    if (finite) {
      int k = 0;
      const T scale = largest > (T)0x1p-20 && largest < (T)0x1p20 ? 1 : power_of_two_above(largest, &k);
      const ptrdiff_t t = row_find(FG_NATIVE, x, n, max);
      for (ptrdiff_t c = 0; c < n; c++) b[c] *= scale;
      const T b_t = b[t];
      b[t] = b_t - 1;
      V2 s = {zero, zero}; /* S - e_t */
      for (ptrdiff_t c = 0; c < n; c += LANES) {
        const V2 e = term2(exp_term(vload(x + c) - frame.shift, &frame, base));
        const V bc = vload(b + c), term = bc * e.h;
        const V2 sum = two_sum(s.h, term);
        s = (V2){sum.h, s.l + (sum.l + vmla(bc, e.l, vfma(bc, e.h, -term)))};
      }
      const V2 top = term2(exp_term(vset(max) - frame.shift, &frame, base));
      /* The same sum with b_t itself, for when S is far below e_t: there S - e_t + e_t has lost its digits. */
      b[t] = b_t;
      for (ptrdiff_t c = 0; c < n; c += LANES) {
        const V2 e = term2(exp_term(vload(x + c) - frame.shift, &frame, base));
        const V bc = vload(b + c), term = bc * e.h;
        const V2 sum = two_sum(total.h, term);
        total = (V2){sum.h, total.l + (sum.l + vmla(bc, e.l, vfma(bc, e.h, -term)))};
      }
      s = total2(s);
      total = total2(total);
      sign = total.h[0] > 0 ? (T)1 : total.h[0] < 0 ? (T)-1 : total.h[0];
      const V2 u = div2(s, top);
      const int near = k == 0 && u.h[0] > (T)-0.5 && u.h[0] < 1;
      V2 q = div2(total, top), log;
      if (sign < 0) q = (V2){-q.h, -q.l};
      if (near)
        log = vlog1p(u);
      else {
        q = two_sum(q.h, q.l);
        log = log_sum(q.h, q.l);
      }
      if (!near) log = add2(log, two_sum(vset((T)k) * vset(LN2_HIGH), vset((T)k) * vset(LN2_LOW)));
      const V2 m = two_sum(vset(max) * inv_t, log.h);
      value = sign == 0 ? (T)-__builtin_inf() : (m.h + (m.l + log.l))[0];
      if (sign != sign) value = sign;
    } else {
      const T sum = max == (T)-__builtin_inf() && !odd ? (first_nan(FG_NATIVE, x, n) >= 0 ? (T)__builtin_nan("") : 0)
                                                       : weighted_infinite(x, b, n, max);
      sign = sum > 0 ? (T)1 : sum < 0 ? (T)-1 : sum;
      value = sum == 0 ? (T)-__builtin_inf() : sum < 0 ? -sum : sum;
    }
    if (run->sign)
      *(T *)(run->sign + r * run->sign_row) = sign;
    else if (sign < 0)
      value = (T)__builtin_nan("");
    if (run->value) *(T *)(run->value + r * run->value_row) = value;
    if (run->out) {
      V2 factor = mul2(reciprocal2(total), scale_of(run));
      if (run->alpha) factor = mul2(factor, (V2){vset(*at(run->alpha, r * run->alpha_row)), zero});
      const int defined = finite && value == value;
      for (ptrdiff_t c = 0; c < n; c += LANES) {
        const V2 e = term2(exp_term(vload(x + c) - frame.shift, &frame, base));
        vstore(x + c, defined ? (vload(b + c) * (e.h + e.l)) * factor.h : nan);
      }
      for (ptrdiff_t c = 0; c < n; c++) *(T *)(run->out + r * run->out_row + c * run->out_class) = b[c] == 0 ? 0 : x[c];
    }
  }
}
