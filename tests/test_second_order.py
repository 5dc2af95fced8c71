"""Second derivatives of cross_entropy: hvp and hess_diag, by the laws that a Hessian obeys.

test_cross_entropy_options.py compares them with the twin under every combination of options.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest

import fastgrad as fg
from fastgrad import _reference as ref

NAN, INF = np.nan, np.inf
LD = np.longdouble
ROWS = 23

classes = pytest.mark.parametrize("classes", [6, 150])
layouts = pytest.mark.parametrize("layout", ["C", "F"])
targets = pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
reductions = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
SETTINGS = [
    {},
    {"weight": True, "sample": True},
    {"weight": True, "sample": True, "smoothing": 0.1, "where": True},
]
settings = pytest.mark.parametrize("settings", SETTINGS, ids=lambda kw: "+".join(kw) or "plain")
z_losses = pytest.mark.parametrize("z_loss", [0.0, 0.3])


def eps(dtype):
    return float(np.finfo(dtype).eps)


def bits(a):
    return np.ascontiguousarray(a).tobytes()


def drawn(rng, mass, dtype, soft, settings, classes, layout, z_loss=0.0):
    """Ordinary logits (but for ignored rows and dropped classes), two vectors, and options."""
    case = mass.Case(soft, **settings, z_loss=z_loss)
    z, t, v, kw = case.draw(rng, (ROWS, classes), dtype)
    z = np.where(np.isnan(z), NAN, rng.normal(0, 3, z.shape)).astype(dtype)
    u = np.where(np.isnan(v), NAN, rng.normal(size=z.shape)).astype(dtype)
    return *(np.asarray(a, order=layout) for a in (z, t, u, v)), kw


def counts(z):
    """Where the loss depends on the logits."""
    return ~np.isnan(z)


def hvp(*args, **kw):
    return fg.cross_entropy.hvp(*args, **{"reduction": "none"} | kw)


def hess_diag(*args, **kw):
    return fg.cross_entropy.hess_diag(*args, **{"reduction": "none"} | kw)


def test_a_hessian_by_hand(isa, dtype):
    """p = (3/4, 1/4): diag(p) - p p' = 3/16 [[1, -1], [-1, 1]]."""
    x, v = np.log(np.array([[3, 1]], dtype)), np.array([[1, 0]], dtype)
    tight = {"rtol": 8 * eps(dtype)}
    np.testing.assert_allclose(hvp(x, [0], v), [[3 / 16, -3 / 16]], **tight)
    np.testing.assert_allclose(hess_diag(x, [1]), [[3 / 16, 3 / 16]], **tight)
    np.testing.assert_allclose(hess_diag(x, [[1.0, 3.0]]), [[12 / 16, 12 / 16]], **tight)


# ---- laws ---------------------------------------------------------------------------------------


@classes
@layouts
@targets
@settings
@z_losses
def test_the_hessian_is_symmetric(isa, dtype, rng, mass, classes, layout, soft, settings, z_loss):
    z, t, u, v, kw = drawn(rng, mass, dtype, soft, settings, classes, layout, z_loss)
    here = counts(z)
    hu, hv = hvp(z, t, u, **kw).astype(LD), hvp(z, t, v, **kw).astype(LD)
    left = np.where(here, u * hv, 0).sum(-1)
    right = np.where(here, v * hu, 0).sum(-1)
    sizes = mass.size("hvp", z, t, v, **kw), mass.size("hvp", z, t, u, **kw)
    size = np.where(here, np.abs(u) * sizes[0] + np.abs(v) * sizes[1], 0).sum(-1)
    assert (np.abs(left - right) <= 6 * eps(dtype) * size).all()


@classes
@layouts
@targets
@settings
def test_the_hessian_is_positive_semidefinite_without_z_loss(
    isa, dtype, rng, mass, classes, layout, soft, settings
):
    z, t, _, v, kw = drawn(rng, mass, dtype, soft, settings, classes, layout)
    here = counts(z)
    for scale in (1, 1e6, 1e-6):
        w = (v * dtype(scale)).astype(dtype)
        curvature = np.where(here, w * hvp(z, t, w, **kw).astype(LD), 0).sum(-1)
        size = np.where(here, np.abs(w) * mass.size("hvp", z, t, w, **kw), 0).sum(-1)
        assert (curvature >= -6 * eps(dtype) * size).all()
        assert curvature.sum() > 0  # not zero throughout


@classes
@layouts
@targets
@settings
@pytest.mark.parametrize("level", [1.0, -3.7, 1e30, 1e-30])
def test_a_constant_vector_gives_exactly_zero(
    isa, dtype, rng, mass, classes, layout, soft, settings, level
):
    """The null vector of the Hessian: another constant in every row."""
    z, t, _, _, kw = drawn(rng, mass, dtype, soft, settings, classes, layout)
    v = np.repeat(rng.normal(size=(ROWS, 1)) * level, classes, 1).astype(dtype)
    v = np.asarray(np.where(counts(z), v, NAN), order=layout)
    for reduction, factor in itertools.product(("mean", "none"), (None, 3.3)):
        assert (hvp(z, t, v, **kw, reduction=reduction, grad_output=factor) == 0).all()


@classes
@layouts
@targets
@settings
def test_a_constant_vector_with_z_loss(isa, dtype, rng, mass, classes, layout, soft, settings):
    """What is left is 2 z s p: the Hessian of lse^2 less lse times that of lse."""
    z, t, _, _, kw = drawn(rng, mass, dtype, soft, settings, classes, layout, 0.3)
    p = ref.softmax(z, where=kw.get("where"))
    s = kw.get("sample_weight", np.ones(ROWS, dtype))[:, None]
    expected = np.where(counts(z), LD(0.6) * s * p, 0)
    actual = hvp(z, t, np.ones_like(z), **kw)
    assert (np.abs(actual - expected) <= 6 * eps(dtype) * expected).all()


@classes
@layouts
@targets
@settings
def test_rows_of_the_hessian_sum_to_zero_without_z_loss(
    isa, dtype, rng, mass, classes, layout, soft, settings
):
    z, t, _, v, kw = drawn(rng, mass, dtype, soft, settings, classes, layout)
    total = hvp(z, t, v, **kw).astype(LD).sum(-1)
    size = np.where(counts(z), mass.size("hvp", z, t, v, **kw), 0).sum(-1)
    assert (np.abs(total) <= 6 * eps(dtype) * size).all()


@targets
@settings
@z_losses
@layouts
def test_the_diagonal_is_that_of_products_with_unit_vectors(
    isa, dtype, rng, mass, soft, settings, z_loss, layout
):
    for n in (1, 2, 6):
        z, t, _, _, kw = drawn(rng, mass, dtype, soft, settings, n, layout, z_loss)
        diagonal = hess_diag(z, t, **kw)
        for c in range(n):
            unit = np.zeros_like(z)
            unit[:, c] = 1
            column = hvp(z, t, unit, **kw)[:, c]
            size = mass.size("hess_diag", z, t, unit, **kw)[:, c]
            size += mass.size("hvp", z, t, unit, **kw)[:, c]
            size = np.where(np.isnan(size), 0, size)  # ignored rows
            assert (np.abs(column.astype(LD) - diagonal[:, c]) <= 6 * eps(dtype) * size).all()


@targets
@settings
@z_losses
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_product_is_the_slope_of_the_gradient(
    isa, rng, mass, soft, settings, z_loss, reduction
):
    z, t, _, v, kw = drawn(rng, mass, np.float64, soft, settings, 6, "C", z_loss)
    h = 1e-5
    kw = kw | {"reduction": reduction}
    step = np.where(counts(z), h * v, 0)
    slope = (
        fg.cross_entropy.grad(z + step, t, **kw) - fg.cross_entropy.grad(z - step, t, **kw)
    ) / (2 * h)
    np.testing.assert_allclose(hvp(z, t, v, **kw), slope, rtol=1e-6, atol=1e-9)


@targets
@settings
@z_losses
@reductions
def test_curvature_along_a_line(isa, rng, mass, soft, settings, z_loss, reduction):
    """v' H v is the second difference of the value."""
    z, t, _, v, kw = drawn(rng, mass, np.float64, soft, settings, 6, "C", z_loss)
    h = 1e-3
    kw = kw | {"reduction": reduction}
    step = np.where(counts(z), h * v, 0)
    f = [fg.cross_entropy(z + k * step, t, **kw) for k in (-1, 0, 1)]
    second = (f[0] - 2 * f[1] + f[2]) / h**2
    curvature = np.where(counts(z), v * hvp(z, t, v, **kw), 0).sum(-1)
    if reduction != "none":
        curvature = curvature.sum()
    np.testing.assert_allclose(curvature, second, rtol=1e-4, atol=1e-5)


@classes
@layouts
@targets
@settings
@z_losses
def test_the_product_is_linear(isa, dtype, rng, mass, classes, layout, soft, settings, z_loss):
    z, t, u, v, kw = drawn(rng, mass, dtype, soft, settings, classes, layout, z_loss)
    u, v = (np.round(a * 64) / 64 for a in (u, v))  # so that adding is exact
    hv = hvp(z, t, v, **kw)
    np.testing.assert_array_equal(hvp(z, t, -4 * v, **kw), -4 * hv)
    both = hvp(z, t, u + v, **kw)
    parts = hvp(z, t, u, **kw).astype(LD) + hv
    size = sum(mass.size("hvp", z, t, a, **kw) for a in (u, v))
    size = np.where(counts(z), size, 0)
    assert (np.abs(both - parts) <= 12 * eps(dtype) * size).all()


@classes
@layouts
def test_class_indices_without_weights_do_not_matter(isa, dtype, rng, classes, layout):
    """The Hessian of lse - z_y is that of lse, whatever y."""
    x = np.asarray(rng.normal(0, 3, (ROWS, classes)), dtype, order=layout)
    v = rng.normal(size=x.shape).astype(dtype)
    y = rng.integers(0, classes, ROWS)
    for z_loss in (0.0, 0.3):
        assert bits(hvp(x, y, v, z_loss=z_loss)) == bits(hvp(x, x.argmax(1), v, z_loss=z_loss))
        assert bits(hess_diag(x, y, z_loss=z_loss)) == bits(
            hess_diag(x, x.argmax(1), z_loss=z_loss)
        )


@classes
@layouts
@targets
def test_the_hessian_is_the_jacobian_of_softmax_times_the_mass(
    isa, dtype, rng, mass, classes, layout, soft
):
    z, t, _, v, kw = drawn(
        rng, mass, dtype, soft, {"weight": True, "sample": True}, classes, layout
    )
    here = counts(z).all(1)
    moved = ref.softmax_jvp(z, v)
    dense = t if soft else np.eye(classes)[np.maximum(t, 0)]
    a = (dense * kw["weight"].astype(LD)).sum(-1) * kw["sample_weight"]
    actual = hvp(z, t, v, **kw)[here]
    size = mass.size("hvp", z, t, v, **kw)[here]
    mass.assert_good("hvp", actual, (a[:, None] * moved)[here], size)


@classes
@layouts
@targets
@settings
def test_the_diagonal_lies_between_zero_and_a_quarter_of_the_mass(
    isa, dtype, rng, mass, classes, layout, soft, settings
):
    z, t, _, _, kw = drawn(rng, mass, dtype, soft, settings, classes, layout)
    diagonal = hess_diag(z, t, **kw)
    kept = np.sum(kw.get("where", np.ones(z.shape, bool)), -1, keepdims=True).clip(2)
    level = np.where(counts(z), 0, NAN).astype(dtype)
    even = hess_diag(level, t, **kw) * kept**2 / (kept - 1)  # A, as all p are 1 / kept
    assert (diagonal >= 0).all()
    assert (diagonal <= even / 4 * (1 + 8 * eps(dtype))).all()
    assert (diagonal.sum(-1) <= even.max(-1)).all()


# ---- accuracy -----------------------------------------------------------------------------------

GAPS = {np.float32: [5, 10, 17, 30, 50, 80], np.float64: [5, 20, 37, 60, 200, 500, 700]}


@functools.cache
def confident(mass, dtype, classes, place, z_loss):
    gaps = GAPS[dtype]
    rng = np.random.default_rng(classes)
    x = rng.normal(0, 1, (len(gaps), classes)).astype(dtype)
    y = {"first": 0, "middle": classes // 2, "last": classes - 1}[place]
    x[:, y] = x.max(-1) + np.array(gaps)
    v = rng.normal(size=x.shape).astype(dtype)
    t = np.full(len(gaps), y)
    kw = {"z_loss": z_loss}
    return (
        x,
        t,
        v,
        *(
            (mass.exact(kind, x, t, v, **kw), mass.size(kind, x, t, v, **kw))
            for kind in ("hvp", "hess_diag")
        ),
    )


@pytest.mark.parametrize("classes", [2, 6, 33, 150, 300])
@layouts
@pytest.mark.parametrize("place", ["first", "middle", "last"])
@targets
@z_losses
def test_confident_rows_keep_full_relative_accuracy(
    isa, dtype, mass, classes, layout, place, soft, z_loss
):
    """Where p is 1 but for 1e-17, p (1 - p) is not 0: 8 eps of itself down to underflow."""
    x, t, v, product, diagonal = confident(mass, dtype, classes, place, z_loss)
    if soft:
        t = np.eye(classes, dtype=dtype)[t]
    x = np.asarray(x, order=layout)
    mass.assert_good("hvp", hvp(x, t, v, z_loss=z_loss), *product)
    actual = hess_diag(x, t, z_loss=z_loss)
    mass.assert_good("hess_diag", actual, *diagonal)
    floor = 2 * np.finfo(dtype).smallest_subnormal
    exact = diagonal[0]
    assert (np.abs(actual - exact) <= 8 * eps(dtype) * np.abs(exact) + floor).all()


@classes
@layouts
@targets
def test_vectors_of_any_size(isa, dtype, rng, mass, classes, layout, soft):
    z, t, _, v, kw = drawn(rng, mass, dtype, soft, SETTINGS[-1], classes, layout, 0.01)
    for scale in (1e-30, 1e-6, 1e6, 1e30):
        w = np.asarray(v * dtype(scale), order=layout)
        mass.check("hvp", hvp(z, t, w, **kw), z, t, w, **kw)
    # A common offset is not seen: differences of v are taken first.
    whole = np.round(v * 8)
    same = hvp(z, t, whole.astype(dtype), **kw | {"z_loss": 0.0})
    moved = hvp(z, t, (whole + 1024).astype(dtype), **kw | {"z_loss": 0.0})
    np.testing.assert_array_equal(moved, same)


# ---- special values -----------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [3, 60, 150, 3000])
@layouts
@pytest.mark.parametrize("spread", [0, 1, 5])
def test_a_vector_that_is_largest_at_the_winner_costs_the_others_no_digits(
    isa, dtype, rng, classes, layout, spread
):
    """However small the winner's share.  The size of a product is p (|v| + p.|v|)."""
    x = rng.normal(0, spread, (9, classes)).astype(dtype)
    v = rng.normal(0, 1, x.shape).astype(dtype)
    v[np.arange(9), x.argmax(-1)] *= 1e5
    terms, exact = np.exp(x.astype(LD) - x.max(-1, keepdims=True)), v.astype(LD)
    p = terms / terms.sum(-1, keepdims=True)
    product = p * (exact - (p * exact).sum(-1, keepdims=True))
    size = p * (np.abs(exact) + (p * np.abs(exact)).sum(-1, keepdims=True))
    x, v = np.asarray(x, order=layout), np.asarray(v, order=layout)
    result = fg.cross_entropy.hvp(x, np.zeros(9, int), v, reduction="sum")
    assert (np.abs(result - product) <= 4 * eps(dtype) * size).all()


@classes
@layouts
@targets
@pytest.mark.parametrize("special", [NAN, INF, -INF], ids=str)
def test_special_vectors_stay_in_their_rows(isa, dtype, rng, classes, layout, soft, special):
    x = np.asarray(rng.normal(0, 3, (ROWS, classes)), dtype, order=layout)
    t = rng.random(x.shape).astype(dtype) if soft else rng.integers(0, classes, ROWS)
    v = np.asarray(rng.normal(size=x.shape), dtype, order=layout)
    calm = hvp(x, t, v, z_loss=0.1)
    v[5, 1] = special
    actual = hvp(x, t, v, z_loss=0.1)
    others = np.arange(ROWS) != 5
    assert bits(actual[others]) == bits(calm[others])
    assert not np.isfinite(actual[5]).any()


@classes
@layouts
@targets
@z_losses
def test_minus_infinity_has_no_curvature(isa, dtype, rng, mass, classes, layout, soft, z_loss):
    """A class at -inf has p = 0: rows, columns and diagonal are exactly 0, whatever its mass."""
    x = np.asarray(rng.normal(0, 3, (ROWS, classes)), dtype, order=layout)
    t = rng.random(x.shape).astype(dtype) if soft else rng.integers(0, classes, ROWS)
    v = rng.normal(size=x.shape).astype(dtype)
    x[:, 1] = -INF
    for kind in ("hvp", "hess_diag"):
        actual = mass.run(kind, x, t, v, z_loss=z_loss)
        assert (actual[:, 1] == 0).all()
        mass.check(kind, actual, x, t, v, z_loss=z_loss)
    v2 = v.copy()
    v2[:, 1] = 77
    np.testing.assert_array_equal(hvp(x, t, v, z_loss=z_loss), hvp(x, t, v2, z_loss=z_loss))


@layouts
@classes
@targets
def test_what_is_left_out_of_v_is_not_read(isa, dtype, rng, mass, layout, classes, soft):
    """Ignored rows and dropped classes may hold anything in v, and their products are exactly 0."""
    z, t, _, v, kw = drawn(rng, mass, dtype, soft, SETTINGS[-1], classes, layout, 0.01)
    expected = hvp(z, t, v, **kw)
    gone = ~counts(z)
    assert gone.any()
    for junk in (0, 1e38, INF):
        w = np.asarray(np.where(gone, dtype(junk), v), order=layout)
        assert bits(hvp(z, t, w, **kw)) == bits(expected)
    assert (expected[gone] == 0).all()
    assert (hess_diag(z, t, **kw)[gone] == 0).all()


# ---- arguments ----------------------------------------------------------------------------------


def test_v_is_cast_to_the_dtype_of_the_logits(dtype, rng):
    x = rng.normal(size=(4, 3)).astype(dtype)
    v = rng.integers(-3, 4, (4, 3))
    expected = hvp(x, [0, 1, 2, 0], v.astype(dtype))
    assert expected.dtype == dtype
    for w in (v, v.tolist(), v.astype(np.float64), v.astype(np.float32), v.astype(">f8")):
        assert bits(hvp(x, [0, 1, 2, 0], w)) == bits(expected)


@pytest.mark.parametrize(
    ("v", "error"),
    [
        (np.zeros(3), ValueError),
        (np.zeros((1, 3)), ValueError),
        (np.zeros((3, 2)), ValueError),
        (np.zeros((2, 3), complex), TypeError),
        ([["a"] * 3] * 2, TypeError),
        (None, TypeError),
        (np.ma.masked_array(np.zeros((2, 3))), TypeError),
    ],
    ids=str,
)
def test_v_has_the_shape_of_the_logits(v, error):
    out = np.full((2, 3), 9.0)
    with pytest.raises(error):
        fg.cross_entropy.hvp(np.zeros((2, 3)), [0, 1], v, out=out)
    assert (out == 9).all()


@classes
@layouts
@targets
@reductions
def test_out_is_filled_and_returned(isa, dtype, rng, mass, classes, layout, soft, reduction):
    z, t, _, v, kw = drawn(rng, mass, dtype, soft, SETTINGS[-1], classes, layout, 0.01)
    kw = kw | {"reduction": reduction}
    for kind in ("hvp", "hess_diag"):
        expected = mass.run(kind, z, t, v, **kw)
        assert expected.strides == z.strides
        for order in "CF":
            out = np.full_like(z, 9, order=order)
            assert mass.run(kind, z, t, v, **kw, out=out) is out
            assert bits(out) == bits(expected)
        own = v if kind == "hvp" else z
        again = own.copy("K")
        args = (z, t, again) if kind == "hvp" else (again, t, v)
        assert mass.run(kind, *args, **kw, out=again) is again
        assert bits(again) == bits(expected)


def test_the_logits_are_v_too(isa, dtype, rng):
    """v may be the logits themselves, and then be overwritten or not: both are inputs first."""
    x = rng.normal(size=(ROWS, 6)).astype(dtype)
    y = rng.integers(0, 6, ROWS)
    expected = hvp(x, y, x.copy())
    assert bits(hvp(x, y, x)) == bits(expected)


@targets
@reductions
def test_reductions_are_factors(isa, dtype, rng, soft, reduction):
    """Divisors and factors that are powers of two change no digit."""
    x = rng.normal(0, 3, (32, 6)).astype(dtype)
    t = rng.random(x.shape).astype(dtype) if soft else rng.integers(0, 6, 32)
    v = rng.normal(size=x.shape).astype(dtype)
    factor = {"mean": 1 / 32, "sum": 1, "none": 1}[reduction]
    for f in (lambda **kw: hvp(x, t, v, **kw), lambda **kw: hess_diag(x, t, **kw)):
        each = f()
        assert bits(f(reduction=reduction)) == bits(each * dtype(factor))
        assert bits(f(reduction=reduction, grad_output=-8)) == bits(each * dtype(-8 * factor))
        if reduction == "mean":
            assert bits(f(reduction=reduction, normalizer=0.25)) == bits(each * dtype(4))
        if reduction == "none":
            g = (2.0 ** rng.integers(-9, 9, 32)).astype(dtype)
            assert bits(f(grad_output=g)) == bits(each * g[:, None])


def test_a_newton_step_finds_the_minimum(rng):
    """Softmax regression on a point: with smoothing the optimum is log of the smoothed target."""
    y, x = np.array([2]), np.zeros((1, 4))
    for _ in range(12):
        grad = fg.cross_entropy.grad(x, y, label_smoothing=0.2)
        hessian = np.array(
            [fg.cross_entropy.hvp(x, y, e[None], label_smoothing=0.2)[0] for e in np.eye(4)]
        )
        x = x - np.linalg.solve(hessian + np.full((4, 4), 0.25), grad[0])[None]
    np.testing.assert_allclose(fg.softmax(x), [[0.05, 0.05, 0.85, 0.05]], rtol=1e-12)
