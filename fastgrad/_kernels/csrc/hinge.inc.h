/* Hinge losses: of one score with a sign (elementwise), and of the scores of classes (Crammer-Singer, Weston-Watkins).
 *
 * Exactly at a kink the subgradient is 0, so a term counts where h > 0.  NaN passes through: vmax(0, NaN) is NaN, and
 * no other comparison is true for it.
 */

/* ---- one score: value = beta h or beta h^2 with h = max(0, margin - y x), y = 1 where the target is 1, else -1 ---- */

enum { HINGE, HINGE_GRAD, HINGE_HESS };

FG_INLINE void hinge_as(const int op, const fg_run *run) {
  const V zero = vset(0), margin = vset((T)run->margin);
  const M square = vtruth(run->squared);
  const V scale = vset((T)(run->scale * (run->squared ? 2 : 1)));
  const int stream = run->stream && run->out_row == (ptrdiff_t)sizeof(T);
  /* Streamed stores want `out` aligned: a first, short piece sees to that. */
  const ptrdiff_t head = stream ? (ptrdiff_t)(-(uintptr_t)run->out & (sizeof(V) - 1)) / (ptrdiff_t)sizeof(T) : 0;
  for (ptrdiff_t r = 0, n; r < run->rows; r += n) {
    n = r == 0 && head ? head : LANES;
    if (n > run->rows - r) n = run->rows - r;
    const V x = take(run->x + r * run->x_row, run->x_row, n);
    const M above = vieq(take_targets(run->target + r, n), viset(1));
    M gone = vtruth(0);
    V beta = vset(1), alpha = scale;
    if (run->where) gone |= dropped(run->where + r * run->where_row, run->where_row, n);
    if (run->beta) {
      beta = take(run->beta + r * run->beta_row, run->beta_row, n);
      alpha *= take(run->alpha + r * run->alpha_row, run->alpha_row, n);
      gone |= veq(beta, zero); /* the driver's mark of an element without weight is a target of -1, which counts here */
    }
    const V h = vmax(zero, margin - vsel(above, x, -x));
    if (op != HINGE_HESS && run->value)
      put(run->value + r * run->value_row, run->value_row, vdrop(gone, vsel(square, h * h, h) * beta), n);
    if (op == HINGE) continue;
    V out = alpha;
    if (op == HINGE_GRAD) {
      out = vsel(square, h * alpha, alpha);
      out = vsel(above, -out, out);
    } else {
      if (run->v) out *= take(run->v + r * run->v_row, run->v_row, n);
      out = vsel(square, out, zero);
    }
    out = vsel(vlt(zero, h), out, h);
    out = vdrop(gone, out);
    char *const to = run->out + r * run->out_row;
    if (stream && n == LANES)
      vstream((T *)to, out);
    else
      put(to, run->out_row, out, n);
  }
  if (stream) vfence();
}

FG_KERNEL void FG_NAME(hinge)(const fg_run *run) { hinge_as(HINGE, run); }
FG_KERNEL void FG_NAME(hinge_grad)(const fg_run *run) { hinge_as(HINGE_GRAD, run); }
FG_KERNEL void FG_NAME(hinge_hess)(const fg_run *run) { hinge_as(HINGE_HESS, run); }
