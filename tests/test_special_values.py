"""The table of special values, NUMERICS.md section 3: NaN, infinities, masks, nothing at all.

Each special row stands among ordinary ones, which must not notice. Every warning is an error.
"""

from __future__ import annotations

import numpy as np
import pytest

import fastgrad as fg
from fastgrad import _reference as ref

INF, NAN = np.inf, np.nan

# Both styles of kernel: a row per lane up to 48 (softmax) or 192 classes, lanes along the row
# beyond, and a class axis that is not contiguous. 17 rows fill more than one vector.
classes = pytest.mark.parametrize("classes", [10, 250])
layouts = pytest.mark.parametrize("layout", ["C", "F"])
places = pytest.mark.parametrize("place", ["first", "last"])
ROW = 5  # the special one


def batch(rng, dtype, classes, layout, place, *special, fill=None):
    """17 ordinary rows, but row 5 holds `special` at one end; `fill` is the rest of that row."""
    x = rng.normal(0, 3, (17, classes)).astype(dtype)
    if fill is not None:
        x[ROW] = fill
    at = slice(0, len(special)) if place == "first" else slice(classes - len(special), classes)
    x[ROW, at] = special
    return np.asarray(x, order=layout), at


def assert_others(actual, f, x, *args, **kw):
    """Every other row is what it is when the special one is an ordinary one, to the last bit."""
    plain = np.array(x, order="K")
    plain[ROW] = 0.5
    keep = np.arange(len(x)) != ROW
    np.testing.assert_array_equal(np.asarray(actual)[keep], np.asarray(f(plain, *args, **kw))[keep])
    assert np.isfinite(np.asarray(actual)[keep]).all()


@classes
@layouts
@places
@pytest.mark.parametrize("special", [(NAN,), (INF,), (INF, NAN), (-INF, INF)], ids=str)
@pytest.mark.parametrize("f", [fg.softmax, fg.log_softmax], ids=lambda f: f.__name__)
def test_nan_or_plus_infinity_makes_its_row_nan(
    isa, dtype, rng, f, classes, layout, place, special
):
    x, _ = batch(rng, dtype, classes, layout, place, *special)
    y = f(x)
    assert np.isnan(y[ROW]).all()
    assert_others(y, f, x)


@classes
@layouts
@places
@pytest.mark.parametrize("special", [(NAN,), (NAN, INF), (INF, NAN), (-INF, NAN)], ids=str)
def test_nan_makes_logsumexp_nan(isa, dtype, rng, classes, layout, place, special):
    x, _ = batch(rng, dtype, classes, layout, place, *special)
    y = fg.logsumexp(x)
    assert np.isnan(y[ROW])
    assert_others(y, fg.logsumexp, x)


@classes
@layouts
@places
@pytest.mark.parametrize("special", [(INF,), (INF, INF), (INF, -INF)], ids=str)
def test_plus_infinity_makes_logsumexp_infinite(isa, dtype, rng, classes, layout, place, special):
    x, _ = batch(rng, dtype, classes, layout, place, *special)
    y = fg.logsumexp(x)
    assert y[ROW] == INF
    assert_others(y, fg.logsumexp, x)


@classes
@layouts
@places
def test_minus_infinity_is_exactly_zero_in_softmax(isa, dtype, rng, classes, layout, place, ulps):
    x, at = batch(rng, dtype, classes, layout, place, -INF, -INF)
    y = fg.softmax(x)
    assert (y[ROW, at] == 0).all()
    assert ulps(y, ref.softmax(x)).max() <= 2.5
    assert_others(y, fg.softmax, x)


@classes
@layouts
@places
def test_minus_infinity_stays_in_log_softmax(isa, dtype, rng, classes, layout, place, ulps):
    x, at = batch(rng, dtype, classes, layout, place, -INF, -INF)
    y = fg.log_softmax(x)
    assert (y[ROW, at] == -INF).all()
    assert ulps(y, ref.log_softmax(x)).max() <= 4
    assert_others(y, fg.log_softmax, x)


@classes
@layouts
@places
def test_minus_infinity_is_ignored_by_logsumexp(isa, dtype, rng, classes, layout, place, ulps):
    x, _ = batch(rng, dtype, classes, layout, place, -INF, -INF)
    exact = ref.logsumexp(x)
    scale = np.maximum(np.abs(exact), np.abs(x.max(-1)))
    assert ulps(fg.logsumexp(x), exact, scale).max() <= 2


@classes
@layouts
@pytest.mark.parametrize("where", [None, True])
def test_a_row_of_minus_infinity_has_no_distribution(isa, dtype, rng, classes, layout, where):
    x, _ = batch(rng, dtype, classes, layout, "first", fill=-INF)
    for f in (fg.softmax, fg.log_softmax):
        assert np.isnan(f(x, where=where)[ROW]).all()
        assert_others(f(x, where=where), f, x, where=where)


@classes
@layouts
def test_logsumexp_of_minus_infinity_is_minus_infinity(isa, dtype, rng, classes, layout):
    x, _ = batch(rng, dtype, classes, layout, "first", fill=-INF)
    log, sign = fg.logsumexp(x, return_sign=True)
    assert log[ROW] == -INF
    assert sign.tolist() == [1] * ROW + [0] + [1] * (16 - ROW)


@classes
@layouts
@pytest.mark.parametrize("special", [-INF, INF, NAN])
def test_derivatives_of_a_row_without_distribution_are_nan(
    isa, dtype, rng, classes, layout, special
):
    x, _ = batch(rng, dtype, classes, layout, "first", fill=special)
    g = np.asarray(rng.normal(size=x.shape).astype(dtype), order=layout)
    for f in (fg.softmax.vjp, fg.softmax.jvp, fg.log_softmax.vjp, fg.log_softmax.jvp):
        assert np.isnan(f(x, g)[ROW]).all()
        assert_others(f(x, g), f, x, g)
    assert np.isnan(fg.logsumexp.vjp(x, np.ones(17, dtype))[ROW]).all()
    assert np.isnan(fg.logsumexp.jvp(x, g)[ROW])


@pytest.mark.parametrize("largest", [1, -1])
def test_the_largest_and_smallest_numbers(isa, dtype, largest):
    big = np.finfo(dtype).max
    x = np.array([[big, -big], [big, big], [-big, -big]], dtype) * largest
    y = [[1, 0], [0.5, 0.5], [0.5, 0.5]] if largest > 0 else [[0, 1], [0.5, 0.5], [0.5, 0.5]]
    np.testing.assert_array_equal(fg.softmax(x), np.array(y, dtype))


def test_subnormal_logits_count_as_nearly_zero(isa, dtype):
    tiny = np.finfo(dtype).smallest_subnormal
    x = np.array([tiny, 0, -tiny, -0.0], dtype)
    np.testing.assert_array_equal(fg.softmax(x), np.full(4, 0.25, dtype))
    assert fg.logsumexp(x) == dtype(np.log(4))


# ---- where --------------------------------------------------------------------------------------


def masked(rng, dtype, classes, layout):
    """NaN and infinities stand only where the mask drops them; row 5 is dropped altogether."""
    x = rng.normal(0, 3, (17, classes)).astype(dtype)
    keep = rng.random(x.shape) < 0.6
    keep[:, 0] = True
    keep[ROW] = False
    junk = rng.choice([NAN, INF, -INF, 1e38, 7], x.shape)
    return np.asarray(np.where(keep, x, junk).astype(dtype), order=layout), keep


@pytest.mark.parametrize("classes", [3, 50, 80, 120, 300])
@pytest.mark.parametrize("layout", ["C", "F"])
@pytest.mark.parametrize("lost", [[NAN], [INF], [-INF], [NAN, INF]], ids=str)
def test_what_where_drops_of_a_lost_row_is_no_nan(isa, dtype, rng, classes, layout, lost):
    """Every third row keeps what makes it NaN; what it drops is 0, or -inf, as in any other row."""
    keep = rng.random((40, classes)) < 0.5
    keep[:, :2] = True, False
    x = rng.normal(0, 3, keep.shape)
    x[::3] = np.where(keep[::3], rng.choice(lost, keep[::3].shape), x[::3])
    if lost != [-INF]:
        x[::3, 2:] = rng.normal(0, 3, x[::3, 2:].shape)  # the other numbers may be finite
    x = np.asarray(x.astype(dtype), order=layout)
    g = rng.normal(0, 1, 40).astype(dtype)
    for f, dropped in ((fg.softmax, 0), (fg.log_softmax, -INF)):
        y, others = f(x, where=keep), np.arange(40) % 3 > 0
        assert (y[~keep] == dropped).all()
        assert np.isnan(y[::3][keep[::3]]).all()
        alone = f(np.asarray(x[others], order=layout), where=keep[others])
        assert y[others].tobytes() == alone.tobytes()
    d = fg.logsumexp.vjp(x, g, where=keep, axis=1)
    assert (d[~keep] == 0).all()
    assert np.isnan(d[::3][keep[::3]]).all()


@pytest.mark.parametrize("classes", [3, 50, 80, 120, 300])
@pytest.mark.parametrize("layout", ["C", "F"])
def test_what_where_drops_of_a_row_with_an_infinite_factor_is_0(isa, dtype, rng, classes, layout):
    """Infinite itself or only when divided by the temperature; the others stay as they are."""
    keep = rng.random((40, classes)) < 0.5
    keep[:, 0] = True
    x = np.asarray(rng.normal(0, 3, keep.shape).astype(dtype), order=layout)
    g = rng.normal(0, 1, 40).astype(dtype)
    g[::3], g[1::3] = INF, -INF
    out = np.full((40, 2 * classes), -7.0, dtype)[:, ::2]
    for t in (1.0, 0.5):
        d = fg.logsumexp.vjp(x, g, where=keep, axis=1, temperature=t)
        assert (d[~keep] == 0).all()
        assert (d[::3][keep[::3]] == INF).all()
        assert (d[1::3][keep[1::3]] == -INF).all()
        assert np.isfinite(d[2::3]).all()
        everywhere = fg.logsumexp.vjp(x, g, where=True, axis=1, temperature=t)
        assert everywhere.tobytes() == fg.logsumexp.vjp(x, g, axis=1, temperature=t).tobytes()
        assert (fg.logsumexp.vjp(x, g, where=keep, axis=1, temperature=t, out=out) == d).all()
    huge = np.finfo(dtype).max / 4
    d = fg.logsumexp.vjp(x * 0, np.full(40, huge, dtype), where=keep, axis=1, temperature=1e-6)
    assert (d[~keep] == 0).all()
    assert (d[keep] == INF).all()


@classes
@layouts
def test_where_drops_even_nan_from_softmax(isa, dtype, rng, classes, layout, assert_ulps):
    x, keep = masked(rng, dtype, classes, layout)
    y = fg.softmax(x, where=keep)
    assert (y[~keep] == 0).all()
    assert_ulps(y, ref.softmax(x, where=keep), 2.5)


@classes
@layouts
def test_where_drops_even_nan_from_log_softmax(isa, dtype, rng, classes, layout, assert_ulps):
    x, keep = masked(rng, dtype, classes, layout)
    y = fg.log_softmax(x, where=keep)
    assert (y[~keep] == -INF).all()
    assert_ulps(y, ref.log_softmax(x, where=keep), 4)


@classes
@layouts
@pytest.mark.parametrize("b", [None, 1.0])
def test_where_drops_even_nan_from_logsumexp(isa, dtype, rng, classes, layout, b, assert_ulps):
    x, keep = masked(rng, dtype, classes, layout)
    log, sign = fg.logsumexp(x, where=keep, b=b, return_sign=True)
    exact = ref.logsumexp(x, where=keep)
    top = np.where(keep, x, -INF).max(-1)
    scale = np.where(np.isfinite(top), np.maximum(np.abs(exact), np.abs(top)), 0)
    assert_ulps(log, exact, 2, scale)
    assert log[ROW] == -INF
    assert sign[ROW] == 0


@classes
@layouts
def test_a_row_dropped_altogether(isa, dtype, rng, classes, layout):
    x, keep = masked(rng, dtype, classes, layout)
    assert (fg.softmax(x, where=keep)[ROW] == 0).all()
    assert (fg.log_softmax(x, where=keep)[ROW] == -INF).all()
    assert fg.logsumexp(x, where=keep)[ROW] == -INF


@classes
@layouts
@pytest.mark.parametrize("kind", ["vjp", "jvp"])
def test_where_in_derivatives(isa, dtype, rng, classes, layout, kind, assert_ulps):
    x, keep = masked(rng, dtype, classes, layout)
    g = np.where(keep, rng.normal(size=x.shape), rng.choice([NAN, INF, 3], x.shape)).astype(dtype)
    size = np.where(keep, np.abs(g), 0)
    for f in (fg.softmax, fg.log_softmax):
        actual = getattr(f, kind)(x, g, where=keep)
        assert (actual[~keep] == 0).all()
        exact = getattr(ref, f"{f.__name__}_{kind}")(x, np.where(keep, g, 0), where=keep)
        assert_ulps(actual, exact, 8, size.sum(-1, keepdims=True) + 0 * exact)


@classes
@layouts
@pytest.mark.parametrize("b", [None, 1.0])
def test_where_in_derivatives_of_logsumexp(isa, dtype, rng, classes, layout, b, assert_ulps):
    x, keep = masked(rng, dtype, classes, layout)
    g = rng.normal(size=17).astype(dtype)
    pulled = fg.logsumexp.vjp(x, g, where=keep, b=b)
    assert (pulled[~keep] == 0).all()
    assert_ulps(pulled, ref.logsumexp_vjp(x, g, where=keep), 4)
    v = np.where(keep, rng.normal(size=x.shape), NAN).astype(dtype)
    exact = ref.logsumexp_jvp(x, v, where=keep)
    scale = np.where(keep, np.abs(v), 0).max(-1)
    assert_ulps(fg.logsumexp.jvp(x, v, where=keep, b=b), exact, 8, scale)


@pytest.mark.parametrize("shape", [(), (1,), (60,), (17, 1), (1, 60)], ids=str)
def test_where_broadcasts_as_in_a_ufunc(isa, dtype, rng, shape):
    x = rng.normal(0, 3, (17, 60)).astype(dtype)
    keep = rng.random(shape) < 0.7
    full = np.broadcast_to(keep, x.shape).copy()
    for f in (fg.softmax, fg.log_softmax, fg.logsumexp):
        np.testing.assert_array_equal(f(x, where=keep), f(x, where=full))


@classes
@layouts
def test_where_true_everywhere_changes_no_bit(isa, dtype, rng, classes, layout):
    x = np.asarray(rng.normal(0, 3, (17, classes)), dtype, order=layout)
    for f in (fg.softmax, fg.log_softmax, fg.logsumexp):
        np.testing.assert_array_equal(f(x, where=True), f(x))


def test_where_over_rows_far_from_zero(isa, dtype, rng, assert_ulps):
    """Rows shifted by their maximum, which is not that of the elements dropped."""
    x = (rng.integers(-3, 3, (9, 60)) * 64 + 1e9).astype(dtype)
    keep = rng.random(x.shape) < 0.5
    x[~keep] = 3e38
    assert_ulps(fg.softmax(x, where=keep), ref.softmax(x, where=keep), 2.5)
    assert_ulps(fg.log_softmax(x, where=keep), ref.log_softmax(x, where=keep), 4)


# ---- factors of logsumexp -----------------------------------------------------------------------


@pytest.mark.parametrize("junk", [NAN, INF, -INF])
@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("classes", [3, 60])
def test_a_factor_of_zero_removes_even_nan(isa, dtype, rng, classes, zero, junk):
    x = rng.normal(0, 3, (4, classes)).astype(dtype)
    b = np.ones_like(x)
    b[:, 1] = zero
    x[:, 1] = junk
    expected = fg.logsumexp(np.delete(x, 1, 1), b=1.0)
    np.testing.assert_allclose(fg.logsumexp(x, b=b), expected, rtol=4 * np.finfo(dtype).eps)


def test_all_factors_zero_is_an_empty_sum(isa, dtype):
    log, sign = fg.logsumexp(np.array([1, NAN], dtype), b=0, return_sign=True)
    assert log == -INF
    assert sign == 0


@pytest.mark.parametrize(
    ("x", "b", "log", "sign"),
    [
        ([INF, 0], [1, 1], INF, 1),
        ([INF, 0], [-1, 1], INF, -1),
        ([INF, INF], [1, -1], NAN, NAN),
        ([INF, NAN], [1, 1], NAN, NAN),
        ([0, NAN], [1, 1], NAN, NAN),
        ([0, 1], [1, NAN], NAN, NAN),
        ([0, 0], [1, -1], -INF, 0),
        ([1e3, 1e3], [-2, 2], -INF, 0),
        ([-INF, -INF], [1, -1], -INF, 0),
        ([-INF, 0], [-5, 1], 0, 1),
        ([0, 0], [INF, 1], INF, 1),
        ([0, 0], [-INF, 1], INF, -1),
    ],
)
def test_signs_of_infinite_and_vanishing_sums(isa, dtype, x, b, log, sign):
    actual = fg.logsumexp(np.array(x, dtype), b=np.array(b, dtype), return_sign=True)
    np.testing.assert_array_equal(actual, (log, sign))


def test_a_negative_sum_is_nan_without_sign(isa, dtype):
    assert np.isnan(fg.logsumexp(np.array([0, 0], dtype), b=[1, -3]))


def test_gradient_of_a_negative_sum_is_nan_without_sign(isa, dtype):
    x = np.array([0, 0], dtype)
    assert np.isnan(fg.logsumexp.vjp(x, 1, b=[1, -3])).all()
    assert np.isnan(fg.logsumexp.jvp(x, x + 1, b=[1, -3]))
    pulled = fg.logsumexp.vjp(x, 1, b=[1, -3], return_sign=True)
    np.testing.assert_allclose(pulled, [-0.5, 1.5], rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("factor", [1e-30, 1e-20, 1e-9, 1e-3, 1e3, 1e9, 1e20, 1e30])
@pytest.mark.parametrize("sign", [1, -1])
def test_factors_of_any_size(isa, dtype, rng, factor, sign, assert_ulps):
    x = rng.normal(0, 3, (9, 20)).astype(dtype)
    b = (sign * factor * (1 + rng.random(x.shape))).astype(dtype)
    exact, signs = ref.logsumexp(x, b=b, return_sign=True)
    scale = np.abs(exact) + np.abs(np.log(factor)) + np.abs(x).max()
    actual = fg.logsumexp(x, b=b, return_sign=True)
    assert_ulps(actual[0], exact, 4, scale)
    np.testing.assert_array_equal(actual[1], signs)


def test_a_small_factor_on_the_largest_term(isa, dtype, assert_ulps):
    x = np.array([[0, -30], [0, -30], [50, 0]], dtype)
    b = np.array([[1e-20, 1], [1e-9, 1], [-1e-20, 1]], dtype)
    exact, signs = ref.logsumexp(x, b=b, return_sign=True)
    actual = fg.logsumexp(x, b=b, return_sign=True)
    assert_ulps(actual[0], exact, 4, np.maximum(np.abs(exact), 50))
    np.testing.assert_array_equal(actual[1], signs)
    pulled = fg.logsumexp.vjp(x, np.ones(3, dtype), b=b, return_sign=True)
    assert_ulps(pulled, ref.logsumexp_vjp(x, np.ones(3), b=b, return_sign=True), 8)


# ---- cross-entropy ------------------------------------------------------------------------------


def targets(rng, classes, at):
    y = rng.integers(0, classes, 17)
    y[ROW] = (at.start + classes // 2) % classes  # not a special class unless said
    return y


@classes
@layouts
@places
@pytest.mark.parametrize("special", [(NAN,), (INF,), (INF, -INF), (NAN, -INF)], ids=str)
def test_nan_or_plus_infinity_makes_the_loss_nan(isa, dtype, rng, classes, layout, place, special):
    x, at = batch(rng, dtype, classes, layout, place, *special)
    y = targets(rng, classes, at)
    loss, grad = fg.cross_entropy.value_and_grad(x, y, reduction="none")
    assert np.isnan(loss[ROW])
    assert np.isnan(grad[ROW]).all()
    for part in (0, 1):
        assert_others(
            (loss, grad)[part],
            lambda z, part=part: fg.cross_entropy.value_and_grad(z, y, reduction="none")[part],
            x,
        )


@classes
@layouts
@pytest.mark.parametrize("special", [NAN, INF])
def test_target_on_the_special_class_is_nan_too(isa, dtype, rng, classes, layout, special):
    x, at = batch(rng, dtype, classes, layout, "last", special)
    y = targets(rng, classes, at)
    y[ROW] = classes - 1
    loss, grad = fg.cross_entropy.value_and_grad(x, y, reduction="none")
    assert np.isnan(loss[ROW])
    assert np.isnan(grad[ROW]).all()


@classes
@layouts
@places
def test_minus_infinity_has_gradient_zero(isa, dtype, rng, classes, layout, place, assert_ulps):
    x, at = batch(rng, dtype, classes, layout, place, -INF)
    y = targets(rng, classes, at)
    loss, grad = fg.cross_entropy.value_and_grad(x, y, reduction="none")
    assert (grad[ROW, at] == 0).all()
    assert_ulps(loss, ref.cross_entropy(x, y, reduction="none"), 4)


@classes
@layouts
@places
def test_minus_infinity_at_the_target(isa, dtype, rng, classes, layout, place, assert_ulps):
    x, at = batch(rng, dtype, classes, layout, place, -INF)
    y = targets(rng, classes, at)
    y[ROW] = at.start
    loss, grad = fg.cross_entropy.value_and_grad(x, y, reduction="none")
    assert loss[ROW] == INF
    others = np.arange(classes) != at.start
    assert_ulps(grad[ROW][others], ref.softmax(x[ROW])[others], 2.5)
    assert_ulps(grad[ROW][~others], [-1], 1)
    assert np.isfinite(np.delete(loss, ROW)).all()


@classes
@layouts
def test_a_row_of_minus_infinity_has_loss_nan(isa, dtype, rng, classes, layout):
    x, at = batch(rng, dtype, classes, layout, "first", fill=-INF)
    loss, grad = fg.cross_entropy.value_and_grad(x, targets(rng, classes, at), reduction="none")
    assert np.isnan(loss[ROW])
    assert np.isnan(grad[ROW]).all()
    assert np.isfinite(np.delete(loss, ROW)).all()


@classes
@layouts
@pytest.mark.parametrize("special", [NAN, INF, -INF, 3e38])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_an_ignored_row_is_zero_whatever_it_holds(
    isa, dtype, rng, classes, layout, special, reduction
):
    x, at = batch(rng, dtype, classes, layout, "first", fill=special)
    y = targets(rng, classes, at)
    y[ROW] = -100
    loss, grad = fg.cross_entropy.value_and_grad(x, y, reduction=reduction)
    assert np.isfinite(loss).all()
    np.testing.assert_array_equal(grad[ROW], np.zeros(classes))
    assert not np.signbit(grad[ROW]).any()
    if reduction == "none":
        assert loss[ROW] == 0


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_infinite_loss_reduces_to_infinity(isa, dtype, reduction):
    x = np.array([[0, -INF], [0, 1]], dtype)
    assert np.max(fg.cross_entropy(x, [1, 1], reduction=reduction)) == INF


def test_nan_loss_reduces_to_nan(isa, dtype):
    x = np.array([[0, NAN], [0, 1], [0, -INF]], dtype)
    assert np.isnan(fg.cross_entropy(x, [1, 1, 1]))


@pytest.mark.parametrize("layout", ["C", "F"])
@pytest.mark.parametrize("classes", [1, 2, 7, 90, 700])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_class_that_is_alone_has_probability_one(isa, dtype, rng, classes, layout, temperature):
    """Exactly, where all others are -inf; so a target among these has gradient exactly -1."""
    alone = rng.integers(0, classes, 200)
    z = np.full((200, classes), -INF, dtype)
    z[np.arange(200), alone] = 100 * rng.normal(size=200)
    z = np.asarray(z, order=layout)
    exact = np.eye(classes, dtype=dtype)[alone]
    np.testing.assert_array_equal(fg.softmax(z, temperature=temperature), exact)
    if classes > 1 and temperature == 1:
        y = (alone + 1) % classes
        grad = fg.cross_entropy.grad(z, y, reduction="sum")
        np.testing.assert_array_equal(grad, exact - np.eye(classes, dtype=dtype)[y])


@pytest.mark.parametrize("classes", [3, 200])
@pytest.mark.parametrize("factor", [INF, -INF, 1e300])
def test_an_infinite_factor_of_a_gradient(isa, dtype, rng, classes, factor):
    """As IEEE has it: infinite where the derivative is finite and not 0."""
    z, y = rng.normal(size=(5, classes)).astype(dtype), rng.integers(0, classes, 5)
    sign = np.where(np.arange(classes) == y[:, None], -1, 1)
    many = {"reduction": "sum", "grad_output": factor}
    expected = factor * sign if dtype is np.float64 else sign * np.copysign(INF, factor)
    for grad in (
        fg.cross_entropy.grad(z, y, **many),
        fg.binary_cross_entropy.grad(z, sign < 0, **many),
        fg.binary_cross_entropy.grad(z, np.where(sign < 0, 1.0, 0.0), **many),
    ):
        if np.isinf(expected).all():
            np.testing.assert_array_equal(grad, expected)
        else:
            assert (np.isfinite(grad) & (np.sign(grad) == np.sign(expected))).all()


@pytest.mark.parametrize(
    "f",
    [
        lambda: fg.cross_entropy(np.zeros((0, 3)), []),
        lambda: fg.multiclass_hinge(np.zeros((0, 3)), []),
        lambda: fg.linear_cross_entropy(np.zeros((0, 2)), np.ones((3, 2)), []),
        lambda: fg.hinge(np.zeros(0), []),
        lambda: fg.binary_cross_entropy(np.zeros(0), []),
        lambda: fg.centroid_hinge(np.zeros((0, 3)), []),
        lambda: fg.cross_entropy(np.zeros((2, 0, 3)), [[], []]),
    ],
)
def test_an_empty_list_is_a_target_of_no_rows(f):
    """Though NumPy makes an array of float64 of it: the mean of no rows is NaN."""
    assert np.isnan(f())


@pytest.mark.parametrize("loss", [fg.cross_entropy, fg.multiclass_hinge], ids=lambda f: f.__name__)
def test_weights_too_small_for_float32_keep_their_rows(loss):
    z, y = np.float32([[NAN, 1.0], [1.0, 2.0]]), [0, 1]
    assert np.isnan(loss(z, y, sample_weight=[1e-60, 1.0]))
    one, other = loss(z[1:], y[1:]), loss(z[1:], [0])
    mean = loss(z[[1, 1]], [1, 0], sample_weight=[1e-60, 3e-60])
    assert abs(mean - (one + 3 * other) / 4) <= 1e-6 * abs(mean)
    assert loss(z, y, sample_weight=[0.0, 1.0]) == one
