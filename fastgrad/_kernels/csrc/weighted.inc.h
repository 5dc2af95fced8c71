/* logsumexp with weights of either sign: value = log |sum_i b_i exp(x_i)|, sign = sign of the sum, and
 * optionally out_i = alpha b_i exp(x_i) / sum, which is its gradient.
 *
 * A weight of 0 removes its element, infinite or NaN though it be.  With t the largest logit kept,
 * sum = e_t (1 + u), u = (sum of the others' b e + (b_t - 1) e_t) / e_t, so that value = x_t + log1p(u): a
 * weight of 1 on the largest keeps the accuracy of the plain kernel.  One row at a time in every layout.
 */
FG_KERNEL void FG_NAME(logsumexp_weighted)(const fg_run *run) {
  const ptrdiff_t n = run->classes, room = padded(n);
  const Base base = base_of(run);
  const V zero = vset(0), inv_t = vset((T)run->inv_temperature);
  T *const x = (T *)run->scratch, *const b = x + room;
  for (ptrdiff_t r = 0; r < run->rows; r++) {
    const char *const from = run->x + r * run->x_row, *const weight = run->g + r * run->g_row;
    const char *const w = run->where ? run->where + r * run->where_row : NULL;
    for (ptrdiff_t c = 0; c < n; c++) {
      b[c] = w && !w[c * run->where_class] ? 0 : *at(weight, c * run->g_class);
      x[c] = b[c] == 0 ? (T)-__builtin_inf() : *at(from, c * run->x_class);
    }
    for (ptrdiff_t c = n; c < room; c++) x[c] = (T)-__builtin_inf(), b[c] = 0;

    const T max = row_max(x, n);
    const int finite = max - max == 0;
    const ptrdiff_t t = finite ? row_find(x, n, max) : 0;
    const T b_t = b[t];
    const Frame frame = frame_of(vset(finite ? max : 0), base);
    b[t] = finite ? b_t - 1 : b_t;
    V2 s = {zero, zero};
    for (ptrdiff_t c = 0; c < n; c += LANES) {
      const V2 e = term2(exp_term(vload(x + c) - frame.shift, &frame, base));
      const V bc = vload(b + c), term = bc * e.h;
      const V2 sum = two_sum(s.h, term);
      s = (V2){sum.h, s.l + (sum.l + vmla(bc, e.l, vfma(bc, e.h, -term)))};
    }
    b[t] = b_t;
    s = total2(s);
    const V2 top = term2(exp_term(vset(finite ? max : 0) - frame.shift, &frame, base));
    const V2 total = finite ? add2(s, top) : s;
    T sign = total.h[0] > 0 ? (T)1 : total.h[0] < 0 ? (T)-1 : total.h[0];
    T value;
    if (finite) {
      V2 u = div2(s, top);
      if (total.h[0] < 0) u = (V2){-(u.h + vset(2)), -u.l}; /* |1 + u| = 1 + (-2 - u) */
      const V2 log = vlog1p(u);
      const V2 m = two_sum(vset(max) * inv_t, log.h);
      value = (m.h + (m.l + log.l))[0];
    } else if (max < 0) { /* nothing, or only -inf and NaN */
      value = has_nan((const char *)x, sizeof(T), n) ? (T)__builtin_nan("") : max;
      sign = value != value ? value : 0;
    } else { /* +inf counts with the sign of its weight; both signs are inf - inf */
      int plus = 0, minus = 0, nan = has_nan((const char *)x, sizeof(T), n) || has_nan((const char *)b, sizeof(T), n);
      for (ptrdiff_t c = 0; c < n; c++) {
        plus |= x[c] == max && b[c] > 0;
        minus |= x[c] == max && b[c] < 0;
      }
      value = nan || (plus && minus) ? (T)__builtin_nan("") : max;
      sign = value != value ? value : plus ? (T)1 : (T)-1;
    }
    if (run->sign)
      *(T *)(run->sign + r * run->sign_row) = sign;
    else if (sign < 0)
      value = (T)__builtin_nan("");
    if (run->value) *(T *)(run->value + r * run->value_row) = value;
    if (run->out) {
      V2 factor = mul2(reciprocal2(total), scale_of(run));
      if (run->alpha) factor = mul2(factor, (V2){vset(*at(run->alpha, r * run->alpha_row)), zero});
      for (ptrdiff_t c = 0; c < n; c += LANES) {
        const V2 e = term2(exp_term(vload(x + c) - frame.shift, &frame, base));
        vstore(x + c, finite ? (vload(b + c) * (e.h + e.l)) * factor.h : vset((T)__builtin_nan("")));
      }
      for (ptrdiff_t c = 0; c < n; c++) *(T *)(run->out + r * run->out_row + c * run->out_class) = b[c] == 0 ? 0 : x[c];
    }
  }
}
