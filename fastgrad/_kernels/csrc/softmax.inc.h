/* softmax, log_softmax, logsumexp, cross-entropy and its gradient: one algorithm.
 *
 *   pass 1   maximum of the row
 *   pass 2   terms exp(x - max) (exp.inc.h), all but one of them summed: `rest`
 *   pass 3   out = term * factor of the row, or x - max - log(...)
 *
 * The term left out is the target's (cross-entropy) or the largest (logsumexp, log_softmax), e_t:
 *
 *   loss = log(S/e_t) = log1p(rest/e_t)         no cancellation, however confident the row
 *   gradient at the target = -rest/(rest + e_t)
 *   logsumexp = max + log1p(rest/e_max),  log_softmax = x - max - log1p(rest/e_max)
 *
 * When x_max - x_t is large (e_t may underflow), loss = (x_max - x_t) + log1p((S - e_max)/e_max): both parts >= 0,
 * nothing cancels.  See Blanchard, Higham & Higham 2021, doi 10.1093/imanum/draa038.
 *
 * Three styles do it: rows.inc.h, blocks.inc.h and lanes.inc.h.
 *
 * Rows without a finite maximum: NaN, but logsumexp is the maximum unless a NaN is present.
 */
#define FAR ((T)(FG_DOUBLE ? 64 : 32))

enum { SOFTMAX, LOG_SOFTMAX, LOGSUMEXP, XENT, XENT_GRAD };
/* Every style has a kernel for each of these, and of the first three one for lists of rows. */
#define LISTED_KERNELS(kernel) kernel(softmax, SOFTMAX) kernel(log_softmax, LOG_SOFTMAX) kernel(logsumexp, LOGSUMEXP)
#define SOFTMAX_KERNELS(kernel) LISTED_KERNELS(kernel) kernel(cross_entropy, XENT) kernel(cross_entropy_grad, XENT_GRAD)

FG_INLINE int has_target(const int op) { return op == XENT || op == XENT_GRAD; }
FG_INLINE int leaves_out(const int op) { return op != SOFTMAX; }
FG_INLINE int leaves_largest(const int op) { return leaves_out(op) && !has_target(op); }
FG_INLINE int keeps_terms(const int op) { return op == SOFTMAX || op == XENT_GRAD; }
FG_INLINE int has_out(const int op) { return op != LOGSUMEXP && op != XENT; }
FG_INLINE int has_value(const int op) { return op == LOGSUMEXP || has_target(op); }

FG_INLINE Base base_of(const fg_run *run) {
  const double *log2e = run->log2e;
  T h = (T)log2e[0];
  return (Base){vset(h), vset((T)((log2e[0] - (double)h) + log2e[1])), vset((T)(1 / log2e[0]))};
}
FG_INLINE V2 scale_of(const fg_run *run) {
  T h = (T)run->scale;
  return (V2){vset(h), vset(h - h == 0 ? (T)(run->scale - (double)h) : 0)};
}

/* Terms that do not depend on the sum; who computes them before it lets nobody wait for them. */
typedef struct {
  Term largest;
  V2 left; /* the term left out */
} Known;

/* Rows between pass 2 and pass 3; every field has one lane per row, or one row broadcast. */
typedef struct {
  V2 rest;        /* sum of the terms but the one left out */
  V top, max;     /* the maximum; the same, 0 if not finite */
  V x_left;       /* logit of the term left out */
  V ties;         /* lanes and blocks: how many terms are the largest, where that one is left out */
  M finite, gone; /* is the maximum finite; is the row ignored or wholly masked */
  Frame frame;
  Known known; /* lanes and blocks */
} State;

FG_INLINE int maxima_finite(const State *s) { return !vany(veq(vdrop(s->finite, vset(1)), vset(1))); }

/* A sum taken without low words gets that of its largest term, the only one that can show; not if that term is all
 * there is, which then has a share of exactly 1. */
FG_INLINE V2 add_low(V2 sum, Term e) {
  const M alone = veq(sum.h, e.hi * e.power) & veq(sum.l, vset(0));
  return (V2){sum.h, vsel(alone, vset(0), vmla(e.lo, e.power, sum.l))};
}

FG_INLINE Term term_largest(const State *s, Base base) { return exp_term(s->max - s->frame.shift, &s->frame, base); }
FG_INLINE V2 term_left(const State *s, Base base) {
  return term2(exp_term(s->x_left - s->frame.shift, &s->frame, base));
}

/* Of `several` states abreast: of two at most where they have a target. */
FG_INLINE void known_terms(const int op, const int several, State *const *s, Base base) {
  const int both = has_target(op), all = both ? 2 * several : several;
  V d[ABREAST_MAX];
  Term e[ABREAST_MAX];
  const Frame *frame[ABREAST_MAX];
  FG_UNROLL (k, all, 1) {
    const State *const of = s[k % several];
    frame[k] = &of->frame;
    d[k] = (k < several ? of->max : of->x_left) - of->frame.shift;
  }
  exp_terms(all, d, frame, base, e);
  FG_UNROLL (u, several, 1) {
    s[u]->known = (Known){e[u], term2(e[both ? several + u : u])};
  }
}

/* log(S / e_left) >= 0, as log1p of what was left in the sum. */
FG_INLINE V2 log_rest(const State *s, V2 left) { return vlog1p(div2(s->rest, left)); }

/* `left` is the term left out, here and below; softmax has none and does not look. */
FG_INLINE Map finish_map(const int op, const State *s, V2 left, V2 factor, Base base) {
  const V nan = vset((T)__builtin_nan(""));
  Map map = {vset(0), vset(0), viset(-1), vset(0)};
  if (op == LOG_SOFTMAX) {
    const V2 log = log_rest(s, left);
    map.a = vdrop(s->gone, s->max);
    map.b = vdrop(s->gone, vsel(s->finite, log.h + log.l, nan));
    return map;
  }
  V2 sum = s->rest;
  V rest = sum.h;
  if (op != SOFTMAX) {
    const M vanished = veq(left.h, vset(0));
    sum = add2(sum, left);
    if (FG_UNLIKELY(vany(vanished))) { /* as in add_low: what all but stands alone has a share of exactly 1 */
      const V2 top = term2(term_largest(s, base));
      const V hi = top.h, others = vabs((sum.h - top.h) + (sum.l - top.l));
      const M alone = vanished & vlt(others, hi * vset((T)(FG_DOUBLE ? 0x1p-55 : 0x1p-26)));
      sum = (V2){vsel(alone, hi, sum.h), vdrop(alone, sum.l)};
      rest = vsel(alone, hi, rest);
    }
  }
  const V2 p = mul2(reciprocal2(sum), factor);
  map.a = vdrop(s->gone, vsel(s->finite, p.h, nan));
  map.b = vdrop(s->gone, vsel(vlt(vabs(p.h), vset((T)__builtin_inf())), p.l, vset(0))); /* of inf the tail is NaN */
  map.patch = vdrop(s->gone, -rest);
  return map;
}

/* Of LOGSUMEXP only where the maximum is finite: else the caller decides, having looked for NaN. */
FG_INLINE V finish_value(const int op, const State *s, V2 left, Base base, V inv_t) {
  if (op == LOGSUMEXP) {
    const V2 log = log_rest(s, left), v = two_sum(s->max * inv_t, log.h);
    return v.h + (v.l + log.l);
  }
  V2 num = s->rest, den = left;
  const V gap = s->max - s->x_left;
  const M far = vlt(vset(FAR), gap);
  V apart = vset(0);
  if (vany(far)) {
    const V2 top = term2(term_largest(s, base));
    const V2 others = add2(add2(num, den), (V2){-top.h, -top.l});
    num = (V2){vsel(far, vmax(vset(0), others.h), num.h), vsel(far, vset(0), num.l)};
    den = (V2){vsel(far, top.h, den.h), vsel(far, top.l, den.l)};
    apart = vsel(far, gap, apart);
  }
  const V2 log = vlog1p(div2(num, den));
  return vdrop(s->gone, vsel(s->finite, apart + (log.h + log.l), vset((T)__builtin_nan(""))));
}

/* Rows whose map would make NaN of the 0 or -inf of what `where` drops: it is not finite.  (The maximum is no sign of it,
 * for it skips NaN.) */
FG_INLINE M spoils_dropped(const int op, const fg_run *run, Map m) {
  if (has_target(op) || FG_LIKELY(!run->where)) return vtruth(0);
  const V zero = (m.a - m.a) + (m.b - m.b);
  return veq(vdrop(veq(zero, zero), vset(1)), vset(1));
}

/* Such rows are mapped beforehand and what is dropped of them is put in; then this leaves them alone, for they hold NaN,
 * infinities and 0 only.  (Of large numbers: infinity times 0 is NaN, and the baseline splits smaller ones.) */
FG_INLINE Map map_mapped(const int op) {
  const V large = vset(op == LOG_SOFTMAX ? 0 : (T)BIGGEST);
  return (Map){large, large, viset(-1), vset(0)};
}
FG_INLINE T where_dropped(const int op) { return op == LOG_SOFTMAX ? -(T)__builtin_inf() : 0; }
