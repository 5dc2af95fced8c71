"""The hinge losses: kernels, instruction sets, layouts, options, special values, PyTorch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import fastgrad as fg
from fastgrad import _reference as ref

INF, NAN = np.inf, np.nan
LANES = {np.float32: 16, np.float64: 8}  # of the widest vector, 64 bytes
KINDS = ("value", "grad", "hvp", "hess_diag")
SQUARED = pytest.mark.parametrize("squared", [False, True], ids=["plain", "squared"])
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def call(f, kind, z, y, v, **options):
    """Every kind of result by one name; f is a loss, or the name of a twin."""
    options = {"reduction": "none"} | options
    args = (z, y, v) if kind == "hvp" else (z, y)
    if isinstance(f, str):
        return getattr(ref, f if kind == "value" else f"{f}_{kind}")(*args, **options)
    return (f if kind == "value" else getattr(f, kind))(*args, **options)


def signs(rng, shape):
    return rng.choice([-1, 1], shape)


def near_the_kink(rng, dtype, n=4000):
    """Signed scores of every size, and at and around the kink by a few ulps."""
    y = signs(rng, n)
    f = np.ldexp(rng.normal(size=n), rng.integers(-30, 30, n)).astype(dtype)
    close = dtype(1) + np.finfo(dtype).eps * rng.integers(-4, 5, n).astype(dtype)
    return np.where(rng.random(n) < 0.5, f, y * close).astype(dtype), y


# ---- one score: accuracy ------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@SQUARED
@EVERY_KIND
def test_hinge_everywhere(isa, dtype, rng, assert_ulps, kind, squared, weighted):
    """m - y f is rounded once; its square, the weight and the scale round once each: 3.5 ulp."""
    f, y = near_the_kink(rng, dtype)
    v = rng.normal(size=f.shape).astype(dtype)
    options = {"squared": squared}
    if weighted:
        options["sample_weight"] = rng.uniform(0.1, 2, f.shape).astype(dtype)
    for margin in (1.0, 0.0, float(dtype(0.3))):
        options["margin"] = margin
        assert_ulps(
            call(fg.hinge, kind, f, y, v, **options),
            call("hinge", kind, f, y, v, **options),
            4,
            what=f"{kind} {margin}",
        )


def test_the_margin_is_rounded_to_the_type_computed_in(isa, dtype):
    f = np.array([0.0], dtype)
    assert fg.hinge(f, [1], margin=0.1) == float(dtype(0.1))
    assert fg.hinge.hess_diag(f + dtype(0.1), [1], margin=0.1, squared=True) == 0


@SQUARED
def test_exactly_at_the_kink_every_derivative_is_0(isa, dtype, squared):
    y = np.array([1, -1] * 20)
    for margin in (1.0, 0.0, 0.75):
        f = (y * margin).astype(dtype)
        for kind in KINDS:
            a = call(fg.hinge, kind, f, y, np.ones_like(f), margin=margin, squared=squared)
            assert (a == 0).all()


# ---- one score: layouts, lengths and dtypes -----------------------------------------------------


@EVERY_KIND
def test_hinge_of_every_length_stays_inside_its_memory(isa, dtype, rng, guard, assert_ulps, kind):
    rooms = [guard(8 * 80) for _ in range(6)]
    for n in range(1, 4 * LANES[dtype] + 2):
        given = [
            rng.normal(0, 2, n).astype(dtype),
            signs(rng, n),
            rng.normal(size=n).astype(dtype),
            rng.random(n).astype(dtype),
            rng.random(n) < 0.7,
            np.full(n, 7, dtype),
        ]
        f, y, v, s, keep, out = (r.place(a) for r, a in zip(rooms, given, strict=True))
        options = {"sample_weight": s, "where": keep, "squared": n % 2 == 0}
        expected = call("hinge", kind, f, y, v, **options)
        more = {} if kind == "value" else {"out": out}
        actual = call(fg.hinge, kind, f, y, v, **options, **more)
        assert_ulps(actual, expected, 4, what=f"{kind} n={n}")
    for room in rooms:
        room.check()


LAYOUTS = {
    "C": lambda a: np.ascontiguousarray(a),
    "F": lambda a: np.asfortranarray(a),
    "reversed": lambda a: np.ascontiguousarray(a[::-1, ::-1])[::-1, ::-1],
    "every third": lambda a: np.repeat(a, 3, 1)[:, ::3],
    "swapped": lambda a: np.ascontiguousarray(np.swapaxes(a, 0, 1)).swapaxes(0, 1),
    "read-only": lambda a: np.broadcast_to(a, a.shape),
}


@SQUARED
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_change_no_bit_of_a_hinge(isa, dtype, rng, layout, squared):
    """All operands in C order, and each in turn, then all, in another."""
    shape = (7, 19)
    move = LAYOUTS[layout]
    arrays = {
        "z": rng.normal(0, 2, shape).astype(dtype),
        "y": signs(rng, shape),
        "v": rng.normal(size=shape).astype(dtype),
        "sample_weight": rng.random(shape).astype(dtype),
        "where": rng.random(shape) < 0.8,
    }
    for kind in KINDS:
        expected = call(fg.hinge, kind, squared=squared, **arrays)
        for moved in [*arrays, "all"]:
            other = {n: move(a) if moved in (n, "all") else a for n, a in arrays.items()}
            actual = call(fg.hinge, kind, squared=squared, **other)
            assert np.array_equal(actual, expected), (kind, moved)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (2, 3, 4), (1, 1, 5)], ids=str)
def test_hinge_of_every_shape(dtype, rng, assert_ulps, shape):
    f, v = rng.normal(0, 2, (2, *shape)).astype(dtype)
    y = signs(rng, shape)
    for kind in KINDS:
        actual = call(fg.hinge, kind, f, y, v, squared=True)
        assert np.shape(actual) == shape
        assert actual.dtype == dtype
        assert np.isscalar(actual) == (shape == ())
        assert_ulps(actual, call("hinge", kind, f, y, v, squared=True), 4, what=kind)


@pytest.mark.parametrize("kind", ["?", "i1", "i2", "i4", "i8", ">i4", ">i8"])
def test_every_dtype_of_signs(isa, dtype, rng, kind):
    f = rng.normal(0, 2, (50, 101)).astype(dtype)
    y = signs(rng, f.shape)
    value, grad = fg.hinge.value_and_grad(f, y)
    as_kind = (y > 0) if kind == "?" else y.astype(kind)
    for moved in (as_kind, np.repeat(as_kind, 2, 1)[:, ::2], as_kind.T.copy().T):
        other, slope = fg.hinge.value_and_grad(f, moved)
        assert other == value
        assert np.array_equal(slope, grad)


@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "u8"])
def test_unsigned_targets_may_be_all_positive(kind):
    assert fg.hinge(np.array([0.25, 3.0]), np.ones(2, kind), reduction="sum") == 0.75


def test_out_of_a_hinge_may_be_the_first_argument(isa, dtype, rng):
    f, v = rng.normal(0, 2, (2, 1001)).astype(dtype)
    y = signs(rng, f.shape)
    for kind in KINDS[1:]:
        expected = call(fg.hinge, kind, f, y, v, squared=True)
        mine = (v if kind == "hvp" else f).copy()
        args = (f, y, mine) if kind == "hvp" else (mine, y, v)
        assert call(fg.hinge, kind, *args, squared=True, out=mine) is mine
        assert np.array_equal(mine, expected)


def test_inputs_of_a_hinge_are_left_alone(dtype, rng):
    f, v, s = np.abs(rng.normal(size=(3, 50))).astype(dtype)
    given = (f, signs(rng, 50), v, s, rng.random(50) < 0.5)
    before = [a.tobytes() for a in given]
    for kind in KINDS:
        call(fg.hinge, kind, *given[:3], sample_weight=given[3], where=given[4])
    assert [a.tobytes() for a in given] == before


# ---- one score: special values ------------------------------------------------------------------

SPECIAL = [  # score, target, loss, gradient; squared: loss, gradient, second derivative
    (INF, 1, 0, 0, 0, 0, 0),
    (INF, -1, INF, 1, INF, INF, 2),
    (-INF, 1, INF, -1, INF, -INF, 2),
    (-INF, -1, 0, 0, 0, 0, 0),
    (NAN, 1, NAN, NAN, NAN, NAN, NAN),
    (NAN, -1, NAN, NAN, NAN, NAN, NAN),
    (1.0, 1, 0, 0, 0, 0, 0),
    (-1.0, -1, 0, 0, 0, 0, 0),
    (0.0, 1, 1, -1, 1, -2, 2),
]


@pytest.mark.parametrize(("z", "t", "loss", "slope", "loss2", "slope2", "second"), SPECIAL, ids=str)
def test_special_scores(isa, dtype, z, t, loss, slope, loss2, slope2, second):
    """In the middle of ordinary elements, which stay as they are."""
    f, y = np.linspace(-3, 3, 40).astype(dtype), np.ones(40, int)
    expected = {
        False: {"value": loss, "grad": slope, "hess_diag": NAN if z != z else 0},
        True: {"value": loss2, "grad": slope2, "hess_diag": second},
    }
    for squared, kinds in expected.items():
        for kind, number in kinds.items():
            plain = call(fg.hinge, kind, f, y, None, squared=squared)
            mine, target = f.copy(), y.copy()
            mine[17], target[17] = z, t
            actual = call(fg.hinge, kind, mine, target, None, squared=squared)
            np.testing.assert_array_equal(actual[17], dtype(number))
            others = np.arange(40) != 17
            assert np.array_equal(actual[others], plain[others])


@pytest.mark.parametrize("how", ["where", "sample_weight"])
@pytest.mark.parametrize("junk", [NAN, INF, -INF, 1.0])
def test_an_ignored_score_is_nothing(isa, dtype, rng, junk, how):
    f, v = rng.normal(0, 2, (2, 37)).astype(dtype)
    y, keep = signs(rng, 37), rng.random(37) < 0.6
    f[~keep], v[~keep] = junk, junk
    option = {how: keep if how == "where" else keep.astype(dtype)}
    for squared, reduction in itertools.product((False, True), ("mean", "sum", "none")):
        options = {"squared": squared, "reduction": reduction}
        value, grad = fg.hinge.value_and_grad(f, y, **options, **option)
        alone, slope = fg.hinge.value_and_grad(f[keep], y[keep], **options)
        if reduction == "none":
            assert (value[~keep] == 0).all()
            value = value[keep]
        np.testing.assert_allclose(value, alone, rtol=4 * np.finfo(dtype).eps)
        assert np.array_equal(grad[keep], slope)
        hvp = fg.hinge.hvp(f, y, v, **options, **option)
        assert np.array_equal(hvp[keep], fg.hinge.hvp(f[keep], y[keep], v[keep], **options))
        for a in (grad, hvp, fg.hinge.hess_diag(f, y, **options, **option)):
            assert (a[~keep] == 0).all()


def test_a_vector_does_not_enter_where_nothing_curves(isa, dtype):
    f = np.full(40, 2, dtype)
    v = np.full(40, NAN, dtype)
    assert (fg.hinge.hvp(f, np.ones(40, int), v, squared=True) == 0).all()
    assert (fg.hinge.hvp(-f, np.ones(40, int), v) == 0).all()
    assert np.isnan(fg.hinge.hvp(-f, np.ones(40, int), v, squared=True)).all()


@pytest.mark.parametrize(
    "options",
    [{"where": False}, {"sample_weight": 0.0}, {"where": [[True, False]], "sample_weight": [0, 1]}],
    ids=str,
)
def test_no_score_kept(isa, dtype, options):
    f, y = np.array([[NAN, 1.0]], dtype), [[1, -1]]
    for kind in ("grad", "hess_diag"):
        assert (getattr(fg.hinge, kind)(f, y, **options) == 0).all()
    assert np.isnan(fg.hinge(f, y, **options))
    assert fg.hinge(f, y, reduction="sum", **options) == 0
    assert fg.hinge(f, y, normalizer=3, **options) == 0
    assert (fg.hinge(f, y, reduction="none", **options) == 0).all()


@pytest.mark.parametrize("shape", [(0,), (3, 0)], ids=str)
def test_no_score_at_all(dtype, shape):
    f, y = np.empty(shape, dtype), np.empty(shape, int)
    assert np.isnan(fg.hinge(f, y))
    assert fg.hinge(f, y, reduction="sum", sample_weight=2.0) == 0
    assert fg.hinge.grad(f, y).shape == fg.hinge(f, y, reduction="none").shape == shape


# ---- one score: reductions and properties -------------------------------------------------------


@SQUARED
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_reductions_of_a_hinge_equal_the_twin(isa, dtype, rng, weighted, masked, squared):
    shape = (67, 131)
    f, y = rng.normal(0, 2, shape).astype(dtype), signs(rng, shape)
    options = {"squared": squared}
    if masked:
        options["where"] = rng.random(131) < 0.8
    if weighted:
        options["sample_weight"] = rng.random((67, 1)).astype(dtype)
    eps = np.finfo(dtype).eps
    for how in ({}, {"reduction": "sum"}, {"normalizer": 12.5}, {"reduction": None}):
        twin = {**how, "reduction": "none"} if how.get("reduction", 1) is None else how
        value, grad = fg.hinge.value_and_grad(f, y, **options, **how)
        loss, slope = ref.hinge_value_and_grad(f, y, **options, **twin)
        # Each loss has 4 ulp at most; the sum adds nothing to that.
        np.testing.assert_allclose(value, loss.astype(float), rtol=4 * eps)
        np.testing.assert_allclose(grad, slope.astype(float), rtol=4 * eps)
        assert np.array_equal(fg.hinge(f, y, **options, **how), value)
        assert np.array_equal(fg.hinge.grad(f, y, **options, **how), grad)
        if np.ndim(value) == 0:
            assert type(value) is float


@pytest.mark.parametrize("kind", KINDS[1:])
def test_grad_output_of_a_hinge(isa, dtype, rng, assert_ulps, kind):
    f, v, g = rng.normal(0, 2, (3, 9, 11)).astype(dtype)
    y = signs(rng, f.shape)
    args = (f, y, v) if kind == "hvp" else (f, y)
    mine, twin = getattr(fg.hinge, kind), getattr(ref, f"hinge_{kind}")
    for how in (
        {"grad_output": -2.5},
        {"grad_output": -2.5, "reduction": "none"},
        {"grad_output": g, "reduction": "none"},
        {"grad_output": g, "reduction": "none", "sample_weight": np.abs(v)},
    ):
        assert_ulps(mine(*args, squared=True, **how), twin(*args, squared=True, **how), 4)
    value = fg.hinge.value_and_grad(f, y, reduction="none", grad_output=g)[0]
    assert np.array_equal(value, fg.hinge(f, y, reduction="none"))


def test_a_hinge_does_not_depend_on_threads(dtype, rng):
    f = rng.normal(0, 2, 300_001).astype(dtype)
    y, keep = signs(rng, f.shape), rng.random(f.shape) < 0.9
    seen = set()
    for n in (1, 2, 3):
        with fg.num_threads(n):
            value, grad = fg.hinge.value_and_grad(f, y, where=keep, sample_weight=np.abs(f))
        seen.add((value, grad.tobytes()))
    assert len(seen) == 1


def test_exchanging_the_classes_changes_the_sign(isa, dtype, rng):
    f, y = near_the_kink(rng, dtype)
    for squared in (False, True):
        options = {"squared": squared, "reduction": "none"}
        value, grad = fg.hinge.value_and_grad(f, y, **options)
        other, slope = fg.hinge.value_and_grad(-f, -y, **options)
        assert np.array_equal(value, other)
        assert np.array_equal(grad, -slope)


def test_a_score_of_weight_two_counts_twice(isa, dtype, rng):
    f, y = rng.normal(0, 2, 200).astype(dtype), signs(rng, 200)
    twice = fg.hinge(np.repeat(f, 2), np.repeat(y, 2), reduction="sum")
    np.testing.assert_allclose(fg.hinge(f, y, sample_weight=2, reduction="sum"), twice, rtol=1e-14)
    np.testing.assert_allclose(fg.hinge(f, y, sample_weight=2), fg.hinge(f, y), rtol=1e-14)


@SQUARED
def test_derivatives_of_a_hinge_are_those_of_its_value(isa, rng, squared):
    """Piecewise polynomials of degree 2: central differences are exact but for the rounding of the
    loss, 2 eps / h, away from the kink."""
    f, y = rng.normal(0, 2, 300), signs(rng, 300)
    how = {"reduction": "none", "sample_weight": 0.5, "squared": squared}
    h = 1e-5
    smooth = np.abs(1 - y * f) > 2 * h
    for lower, upper in ((fg.hinge, fg.hinge.grad), (fg.hinge.grad, fg.hinge.hess_diag)):
        slope = (lower(f + h, y, **how) - lower(f - h, y, **how)) / (2 * h)
        np.testing.assert_allclose(upper(f, y, **how)[smooth], slope[smooth], rtol=0, atol=1e-8)


def test_scikit_learn_has_the_same_mean(rng):
    metrics = pytest.importorskip("sklearn.metrics")
    f, y, s = rng.normal(0, 2, 50), signs(rng, 50), rng.random(50)
    expected = metrics.hinge_loss(y, f, sample_weight=s)
    np.testing.assert_allclose(fg.hinge(f, y, sample_weight=s), expected, rtol=1e-14)
