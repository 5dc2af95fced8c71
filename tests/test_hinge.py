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


# ---- classes ------------------------------------------------------------------------------------

MH = fg.multiclass_hinge
VARIANTS = [
    {"variant": "crammer_singer"},
    {"variant": "weston_watkins"},
    {"variant": "weston_watkins", "divide": "k"},
]
EVERY_VARIANT = pytest.mark.parametrize("variant", VARIANTS, ids=["cs", "ww", "ww/k"])
# Lanes (C up to 144, or a class axis that is not contiguous) and rows; whole vectors and not.
CLASSES = [1, 2, 3, 5, 16, 33, 144, 145, 257, 1000]


def draw(rng, shape, dtype, axis=-1, **which):
    """(scores, target, v, options): rows near the kink, tied, far from 0, with -inf, and ignored in
    each way there is; what must not be read holds NaN."""
    axis %= len(shape)
    classes, rows = shape[axis], tuple(np.delete(shape, axis))
    n = int(np.prod(rows))
    z, v = rng.normal(0, 1, (2, n, classes)).astype(dtype)
    y = rng.integers(0, classes, n)
    own = z[np.arange(n), y][:, None]
    close = own - dtype(1) + np.finfo(dtype).eps * rng.integers(-2, 3, z.shape).astype(dtype)
    z[1::6] = np.where(rng.random(z.shape) < 0.7, close, z)[1::6]
    z[2::6] = np.round(z[2::6])  # ties
    z[3::6] *= dtype(1e6)
    z[4::6][rng.random(z[4::6].shape) < 0.3] = -np.inf
    z[np.arange(n), y] = own[:, 0]
    gone = np.zeros(n, bool)
    options = {"axis": axis}
    if which.get("weight"):
        w = rng.uniform(0.2, 2, classes)
        if classes > 2:
            w[classes // 2] = 0
        options["weight"] = w.astype(dtype)
        gone |= w[y] == 0
    if which.get("sample"):
        s = rng.uniform(0.2, 2, n)
        s[6::9] = 0
        gone |= s == 0
        options["sample_weight"] = s.astype(dtype).reshape(rows)
    if n > 3:
        y[8::11] = -100
        gone |= y == -100
    if which.get("where"):
        keep = rng.random((n, classes)) < 0.7
        keep[np.arange(n), np.maximum(y, 0)] = True
        keep[10::12] = False
        gone |= ~keep.any(1)
        z[~keep] = v[~keep] = np.nan
        options["where"] = np.moveaxis(keep.reshape(*rows, classes), -1, axis).copy()
    z[gone] = v[gone] = np.nan
    z, v = (np.moveaxis(a.reshape(*rows, classes), -1, axis).copy() for a in (z, v))
    return z, y.reshape(rows), v, options


def check_classes(kind, actual, z, y, v, assert_ulps, what="", **options):
    """A hinge has 2 roundings, its square 3 more at most; sums of terms >= 0 one or two; weight,
    scale, number of classes one each: 6 ulp, most of them met by no row at once.

    What has both signs (hvp at the target) counts against the sum of the sizes.
    """
    exact = call("multiclass_hinge", kind, z, y, v, **options)
    scale = None
    if kind == "hvp":
        axis = options.get("axis", -1)
        size = np.where(np.isfinite(exact), np.abs(exact), 0)
        target = np.arange(z.shape[axis]) == np.expand_dims(y, -1)
        target = np.moveaxis(target, -1, axis)
        scale = np.where(target, np.where(target, 0, size).sum(axis, keepdims=True), size)
    assert_ulps(actual, exact, 6, scale, f"{kind} {what}")


WHICH = [
    {},
    {"weight": True},
    {"sample": True},
    {"where": True},
    {"weight": True, "sample": True, "where": True},
]


@pytest.mark.parametrize("which", WHICH, ids=lambda w: "+".join(w) or "none")
@SQUARED
@EVERY_VARIANT
def test_classes_equal_the_twin(isa, dtype, rng, assert_ulps, variant, squared, which):
    for classes, margin in itertools.product(CLASSES, (1.0, 0.0)):
        z, y, v, options = draw(rng, (39, classes), dtype, **which)
        options |= variant | {"squared": squared, "margin": margin}
        for kind in KINDS:
            actual = call(MH, kind, z, y, v, **options)
            check_classes(kind, actual, z, y, v, assert_ulps, f"C={classes}", **options)
            assert actual.dtype == dtype


@EVERY_VARIANT
@pytest.mark.parametrize(("shape", "axis"), [((5, 7, 33), 1), ((200, 40), 0), ((3, 4, 150), -1)])
def test_every_axis(isa, dtype, rng, assert_ulps, variant, shape, axis):
    z, y, v, options = draw(rng, shape, dtype, axis, weight=True, sample=True, where=True)
    for squared, kind in itertools.product((False, True), KINDS):
        how = options | variant | {"squared": squared}
        actual = call(MH, kind, z, y, v, **how)
        check_classes(kind, actual, z, y, v, assert_ulps, **how)


@EVERY_VARIANT
@pytest.mark.parametrize("classes", [3, 40, 150, 300])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_classes(isa, dtype, rng, assert_ulps, layout, classes, variant):
    """All operands in another layout, and `out`; the same bits where the style is the same."""
    move = LAYOUTS[layout]
    z, y, v, options = draw(rng, (23, classes), dtype, sample=True, where=True)
    options |= variant | {"squared": True}
    given = dict(options, where=move(options["where"]), sample_weight=options["sample_weight"])
    for kind in KINDS:
        expected = call(MH, kind, z, y, v, **options)
        actual = call(MH, kind, move(z), y, move(v), **given)
        check_classes(kind, actual, z, y, v, assert_ulps, **options)
        if layout in ("C", "read-only") or classes <= 144:
            assert np.array_equal(actual, expected, equal_nan=True)
        if kind == "value":
            continue
        out = move(np.full_like(z, 7))
        if out.flags.writeable:
            assert call(MH, kind, move(z), y, move(v), out=out, **given) is out
            check_classes(kind, out, z, y, v, assert_ulps, **options)


@EVERY_VARIANT
@pytest.mark.parametrize("axis", [0, 1])
def test_classes_stay_inside_their_memory(isa, dtype, rng, guard, assert_ulps, variant, axis):
    rooms = [guard(8 * 40 * 300) for _ in range(6)]
    lanes = LANES[dtype]
    sizes = [*range(1, 20), 2 * lanes + 1, 143, 145, 145 + lanes // 2, 290]
    for i, classes in enumerate(sizes):
        n = 1 + i % 19
        shape = (n, classes) if axis else (classes, n)
        z, y, v, options = draw(rng, shape, dtype, axis, sample=True, where=i % 3 == 0)
        options |= variant | {"squared": i % 2 == 0}
        z, y, v = (room.place(a) for room, a in zip(rooms, (z, y, v), strict=False))
        options["sample_weight"] = rooms[3].place(options["sample_weight"])
        if "where" in options:
            options["where"] = rooms[4].place(options["where"])
        for kind in KINDS:
            more = {} if kind == "value" else {"out": rooms[5].place(np.full_like(z, 7))}
            actual = call(MH, kind, z, y, v, **options, **more)
            check_classes(kind, actual, z, y, v, assert_ulps, f"{shape}", **options)


@EVERY_VARIANT
@pytest.mark.parametrize("classes", [10, 300])
def test_out_of_classes_may_be_the_first_argument(isa, dtype, rng, variant, classes):
    for which in ({}, {"where": True}):
        z, y, v, options = draw(rng, (37, classes), dtype, **which)
        z[3, 1] = 0 if which else NAN
        options |= variant | {"squared": True}
        for kind in KINDS[1:]:
            expected = call(MH, kind, z, y, v, **options)
            mine = (v if kind == "hvp" else z).copy()
            args = (z, y, mine) if kind == "hvp" else (mine, y, v)
            assert call(MH, kind, *args, out=mine, **options) is mine
            assert np.array_equal(mine, expected, equal_nan=True)


def test_inputs_of_classes_are_left_alone(dtype, rng):
    for axis in (0, 1):
        z, y, v, options = draw(rng, (20, 30), dtype, axis, weight=True, sample=True, where=True)
        given = [z, y, v, *(options[n] for n in ("weight", "sample_weight", "where"))]
        before = [a.tobytes() for a in given]
        for kind, variant in itertools.product(KINDS, VARIANTS):
            call(MH, kind, z, y, v, **options, **variant)
        assert [a.tobytes() for a in given] == before


@pytest.mark.parametrize("kind", ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i4"])
def test_every_dtype_of_class_indices(isa, dtype, rng, kind):
    z, y = rng.normal(size=(5000, 3)).astype(dtype), rng.integers(0, 2, 5000)
    value, grad = MH.value_and_grad(z, y)
    other, slope = MH.value_and_grad(z, y.astype(kind))
    assert other == value
    assert np.array_equal(slope, grad)


@EVERY_VARIANT
@pytest.mark.parametrize("axis", [0, 1])
def test_streamed_classes(isa, dtype, rng, variant, axis):
    """Beyond 8 MiB results are stored past the caches, at every offset from a line: same bits."""
    lanes, item = LANES[dtype], np.dtype(dtype).itemsize
    classes = 1001
    n = (9 << 20) // item // classes
    shape = (n, classes) if axis else (classes, n)
    room = np.empty(n * classes + lanes, dtype)
    z = rng.standard_normal(shape, dtype)
    y = rng.integers(0, classes, n)
    v = z[::-1, ::-1]
    for kind, offset in itertools.product(KINDS[1:], (0, 1)):
        out = room[offset : offset + z.size].reshape(shape)
        call(MH, kind, z, y, v, axis=axis, squared=True, out=out, **variant)
        part = (slice(-50, None),) if axis else (slice(None), slice(-50, None))
        alone = call(MH, kind, z[part].copy(), y[-50:], v[part], axis=axis, squared=True, **variant)
        assert np.array_equal(out[part], alone)
        part = (slice(50),) if axis else (slice(None), slice(50))
        alone = call(MH, kind, z[part].copy(), y[:50], v[part], axis=axis, squared=True, **variant)
        assert np.array_equal(out[part], alone)


# ---- classes: special values --------------------------------------------------------------------


@pytest.mark.parametrize("classes", [4, 200])
@EVERY_VARIANT
@SQUARED
def test_exactly_at_the_kink_no_class_counts(isa, dtype, classes, variant, squared):
    z = np.zeros((20, classes), dtype)
    z[:, 1] = 1
    for kind in KINDS:
        a = call(MH, kind, z, np.ones(20, int), z + 1, squared=squared, **variant)
        assert (a == 0).all()
        assert not np.signbit(a).any()
    z[:, 2] = np.finfo(dtype).eps
    grad = MH.grad(z, np.ones(20, int), squared=squared, reduction="none", **variant)
    assert (grad[:, 2] > 0).all()
    assert ((grad != 0).sum(1) == 2).all()


@pytest.mark.parametrize("classes", [5, 200])
def test_the_first_of_equal_rivals_counts(isa, dtype, classes):
    for y in range(5):
        z = np.zeros((1, classes), dtype)
        z[0, [0, 2, 4]] = 3
        z[0, y] = 0.5
        rival = min({0, 2, 4} - {y})
        expected = np.zeros(classes)
        expected[[y, rival]] = -1, 1
        np.testing.assert_array_equal(MH.grad(z, [y])[0], expected)


SPECIAL_ROWS = [  # scores, target; loss of Crammer-Singer, of Weston-Watkins; sign of the gradient
    ([0, NAN, 0], 0, NAN, NAN, None),
    ([0, NAN, 0], 1, NAN, NAN, None),
    ([INF, 0, 0], 0, 0, 0, [0, 0, 0]),
    ([0, INF, 0], 0, INF, INF, [-1, 1, (0, 1)]),
    ([INF, INF, 0], 0, NAN, NAN, None),
    ([-INF, 0, -INF], 0, INF, INF, [-1, 1, 0]),
    ([-INF, -INF, -INF], 1, NAN, NAN, None),
    ([0, -INF, -INF], 0, 0, 0, [0, 0, 0]),
    ([-INF, 0, 5], 1, 6, 6, [0, -1, 1]),
    ([NAN, INF, -INF], 2, NAN, NAN, None),
]


@pytest.mark.parametrize("classes", [3, 200])
@pytest.mark.parametrize(("row", "y", "cs", "ww", "slope"), SPECIAL_ROWS, ids=str)
def test_special_rows(isa, dtype, rng, row, y, cs, ww, slope, classes):
    """In the middle of ordinary rows, which stay as they are; with absent classes behind."""
    z = rng.normal(size=(40, classes)).astype(dtype)
    labels = rng.integers(0, 3, 40)
    mine, targets = z.copy(), labels.copy()
    mine[17] = -INF
    mine[17, :3], targets[17] = row, y
    others = np.arange(40) != 17
    for variant, loss in (("crammer_singer", cs), ("weston_watkins", ww)):
        how = {"variant": variant, "reduction": "none"}
        plain, plain_slope = MH.value_and_grad(z, labels, **how)
        value, grad = MH.value_and_grad(mine, targets, **how)
        np.testing.assert_array_equal(value[17], loss)
        assert np.array_equal(value[others], plain[others])
        assert np.array_equal(grad[others], plain_slope[others])
        assert value[17] == MH(mine, targets, **how)[17] or np.isnan(value[17])
        diag = MH.hess_diag(mine, targets, squared=True, **how)[17]
        hvp = MH.hvp(mine, targets, np.ones_like(z), squared=True, **how)[17]
        if slope is None:
            assert np.isnan(grad[17]).all()
            assert np.isnan(diag).all()
            assert np.isnan(hvp).all()
            assert np.isnan(MH.hess_diag(mine, targets, **how)[17]).all()
            continue
        pick = 0 if variant == "crammer_singer" else 1
        expected = [s[pick] if isinstance(s, tuple) else s for s in slope]
        expected[y] = -sum(expected[j] for j in range(3) if j != y)
        np.testing.assert_array_equal(grad[17, :3], expected)
        assert (grad[17, 3:] == 0).all()
        np.testing.assert_array_equal(diag[:3], 2 * np.abs(expected))
        assert (hvp == 0).all()


@pytest.mark.parametrize("classes", [4, 200])
@pytest.mark.parametrize("junk", [NAN, INF, -INF, 1.0])
@pytest.mark.parametrize("how", ["ignore_index", "sample_weight", "weight", "where"])
@EVERY_VARIANT
def test_an_ignored_row_is_nothing(isa, dtype, rng, classes, junk, how, variant):
    z, v = rng.normal(size=(2, 37, classes)).astype(dtype)
    y, keep = rng.integers(1, classes, 37), rng.random(37) < 0.6
    z[~keep], v[~keep] = junk, junk
    option = dict(variant)
    targets = y.copy()
    if how == "ignore_index":
        targets[~keep] = -100
    elif how == "weight":
        targets[~keep] = 0
        option["weight"] = (np.arange(classes) > 0).astype(dtype)
    else:
        option[how] = keep.astype(dtype) if how == "sample_weight" else keep[:, None]
    for squared, reduction in itertools.product((False, True), ("mean", "sum", "none")):
        options = {"squared": squared, "reduction": reduction}
        value, grad = MH.value_and_grad(z, targets, **options, **option)
        alone, slope = MH.value_and_grad(z[keep], y[keep], **options, **variant)
        if reduction == "none":
            assert (value[~keep] == 0).all()
            value = value[keep]
        np.testing.assert_allclose(value, alone, rtol=4 * np.finfo(dtype).eps)
        np.testing.assert_allclose(grad[keep], slope, rtol=4 * np.finfo(dtype).eps)
        hvp = MH.hvp(z, targets, v, **options, **option)
        for a in (grad, hvp, MH.hess_diag(z, targets, **options, **option)):
            assert (a[~keep] == 0).all()


@pytest.mark.parametrize("classes", [4, 200])
def test_a_class_that_is_dropped_is_absent(isa, dtype, rng, classes):
    """The same as the scores without it; exactly 0 there, in a row of NaN too."""
    z, v = rng.normal(size=(2, 23, classes)).astype(dtype)
    y = rng.integers(0, 2, 23)
    z[5, 0] = NAN
    keep = np.arange(classes) != 2
    mine = z.copy()
    mine[:, 2] = NAN
    for variant, kind in itertools.product(VARIANTS, KINDS):
        options = variant | {"squared": True}
        actual = call(MH, kind, mine, y, v, where=keep, **options)
        alone = call(MH, kind, z[:, keep], y, v[:, keep], **options)
        if kind != "value":
            assert (actual[:, 2] == 0).all()
            actual = actual[:, keep]
        eps = np.finfo(dtype).eps  # sums of other vectors, and tied to no order
        np.testing.assert_allclose(actual, alone, rtol=4 * eps, atol=8 * classes * eps)
        assert np.isnan(actual[5]).all()


@pytest.mark.parametrize("classes", [4, 200])
@EVERY_VARIANT
def test_where_that_keeps_all_changes_no_bit(isa, dtype, rng, classes, variant):
    z, y, v, options = draw(rng, (37, classes), dtype, sample=True)
    for kind in KINDS:
        expected = call(MH, kind, z, y, v, **options, **variant)
        actual = call(MH, kind, z, y, v, where=True, **options, **variant)
        assert np.array_equal(actual, expected)


@pytest.mark.parametrize(
    ("y", "options"),
    [
        ([-100], {}),
        ([0], {"sample_weight": [0.0]}),
        ([0], {"weight": [0.0, 1.0]}),
        ([0], {"where": False}),
        ([7], {"ignore_index": 7}),
    ],
    ids=str,
)
def test_no_row_kept(isa, dtype, y, options):
    z = np.array([[NAN, 1.0]], dtype)
    for kind in ("grad", "hess_diag"):
        assert (getattr(MH, kind)(z, y, **options) == 0).all()
    assert np.isnan(MH(z, y, **options))
    assert MH(z, y, reduction="sum", **options) == 0
    assert MH(z, y, normalizer=3, **options) == 0
    assert (MH(z, y, reduction="none", **options) == 0).all()


def test_no_row_at_all(dtype):
    z, y = np.empty((0, 3), dtype), np.empty(0, int)
    assert np.isnan(MH(z, y))
    assert MH(z, y, reduction="sum") == 0
    assert MH.grad(z, y).shape == (0, 3)
    assert MH(z, y, reduction="none").shape == (0,)


@EVERY_VARIANT
@SQUARED
@pytest.mark.parametrize("classes", [1, 10, 300])
def test_the_short_way_of_the_commonest_call_changes_nothing(
    isa, dtype, rng, variant, squared, classes
):
    z, y = rng.normal(size=(50, classes)).astype(dtype), rng.integers(0, classes, 50)
    for reduction in ("mean", "sum"):
        how = variant | {"squared": squared, "margin": 0.3, "reduction": reduction}
        value, grad = MH.value_and_grad(z, y, **how)
        other, slope = MH.value_and_grad(z, y, sample_weight=np.ones(50), out=z.copy(), **how)
        assert value == other == MH(z, y, **how)
        assert type(value) is float
        assert np.array_equal(grad, slope)
        assert grad.dtype == dtype
    for bad in (-1, -100, classes):
        targets = y.copy()
        targets[30] = bad
        if bad == -100:
            assert MH(z, targets, **variant) == MH(z, targets, where=True, **variant)
            continue
        with pytest.raises(IndexError, match=rf"target\[30\] is {bad}"):
            MH.value_and_grad(z, targets, **variant)


def test_one_row_is_one_number(dtype):
    z = np.array([0.5, 1.0, 0.25], dtype)
    value, grad = MH.value_and_grad(z, 0)
    assert value == 1.5
    assert type(value) is float
    np.testing.assert_array_equal(grad, [-1, 1, 0])
    assert MH(z, 0, reduction="none") == dtype(1.5)
    assert MH(dtype(3), 0) == 0
    assert np.shape(MH.grad(dtype(3), 0)) == ()


# ---- classes: reductions and properties ---------------------------------------------------------


@SQUARED
@EVERY_VARIANT
@pytest.mark.parametrize("classes", [7, 180])
def test_reductions_of_classes_equal_the_twin(isa, dtype, rng, variant, squared, classes):
    z, y, _, options = draw(rng, (301, classes), dtype, weight=True, sample=True, where=True)
    options |= variant | {"squared": squared}
    eps = np.finfo(dtype).eps
    for how in ({}, {"reduction": "sum"}, {"normalizer": 12.5}, {"reduction": None}):
        twin = {**how, "reduction": "none"} if how.get("reduction", 1) is None else how
        value, grad = MH.value_and_grad(z, y, **options, **how)
        loss, slope = ref.multiclass_hinge_value_and_grad(z, y, **options, **twin)
        np.testing.assert_allclose(value, loss.astype(float), rtol=6 * eps)
        np.testing.assert_allclose(grad, slope.astype(float), rtol=6 * eps)
        assert np.array_equal(MH(z, y, **options, **how), value)
        assert np.array_equal(MH.grad(z, y, **options, **how), grad)
        if np.ndim(value) == 0:
            assert type(value) is float


@pytest.mark.parametrize("classes", [7, 180])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_grad_output_of_classes(isa, dtype, rng, assert_ulps, kind, classes):
    z, y, v, options = draw(rng, (39, classes), dtype, sample=True)
    g = rng.normal(size=39).astype(dtype)
    for variant, upstream in itertools.product(VARIANTS, (-2.5, g)):
        how = options | variant | {"squared": True, "grad_output": upstream}
        actual = call(MH, kind, z, y, v, **how)
        check_classes(kind, actual, z, y, v, assert_ulps, **how)
    how = options | {"reduction": "none"}
    value = MH.value_and_grad(z, y, grad_output=g, **how)[0]
    assert np.array_equal(value, MH(z, y, **how))


@EVERY_VARIANT
@pytest.mark.parametrize("classes", [10, 500])
def test_classes_do_not_depend_on_threads(dtype, rng, variant, classes):
    n = 3_000_000 // classes
    z = rng.standard_normal((n, classes), dtype)
    y, s = rng.integers(0, classes, n), rng.random(n)
    seen = set()
    for threads in (1, 2, 3):
        with fg.num_threads(threads):
            value, grad = MH.value_and_grad(z, y, sample_weight=s, **variant)
        seen.add((value, grad.tobytes()))
    assert len(seen) == 1


@EVERY_VARIANT
@pytest.mark.parametrize("classes", [10, 300])
def test_a_row_does_not_depend_on_its_neighbours(isa, dtype, rng, variant, classes):
    z, y, v, _ = draw(rng, (50, classes), dtype)
    y = np.maximum(y, 0)
    for kind in KINDS:
        together = call(MH, kind, z, y, v, squared=True, **variant)
        for i in (0, 7, 49):
            alone = call(
                MH, kind, z[i : i + 1], y[i : i + 1], v[i : i + 1], squared=True, **variant
            )
            assert np.array_equal(alone[0], together[i], equal_nan=True)


@EVERY_VARIANT
@SQUARED
@pytest.mark.parametrize("classes", [6, 200])
def test_derivatives_of_classes_are_those_of_the_value(isa, rng, variant, squared, classes):
    """Along a random direction; where no kink is crossed, central differences are exact but for
    the rounding of the values, some eps / h of the loss."""
    z, d = rng.normal(0, 1, (2, 60, classes))
    y = rng.integers(0, classes, 60)
    how = variant | {"squared": squared, "reduction": "none"}
    h = 1e-6
    same = (MH.grad(z - h * d, y, **how) != 0) == (MH.grad(z + h * d, y, **how) != 0)
    smooth = same.all(1)
    assert smooth.mean() > 0.9
    slope = (MH(z + h * d, y, **how) - MH(z - h * d, y, **how)) / (2 * h)
    np.testing.assert_allclose(
        (MH.grad(z, y, **how) * d).sum(1)[smooth], slope[smooth], atol=1e-6 * classes
    )
    bend = (MH.grad(z + h * d, y, **how) - MH.grad(z - h * d, y, **how)) / (2 * h)
    np.testing.assert_allclose(MH.hvp(z, y, d, **how)[smooth], bend[smooth], atol=1e-6 * classes)
    unit = np.zeros_like(z)
    unit[:, 1] = 1
    diag = MH.hess_diag(z, y, **how)
    np.testing.assert_allclose(diag[:, 1], MH.hvp(z, y, unit, **how)[:, 1], rtol=1e-14)


def test_two_classes_are_one_score(isa, dtype, rng):
    """Exact differences: f = z_1 - z_0, both variants the binary hinge."""
    z = rng.integers(-40, 40, (100, 2)).astype(dtype) / 8
    y = rng.integers(0, 2, 100)
    for squared, variant in itertools.product((False, True), ("crammer_singer", "weston_watkins")):
        how = {"squared": squared, "reduction": "none"}
        value, grad = MH.value_and_grad(z, y, variant=variant, **how)
        loss, slope = fg.hinge.value_and_grad(z[:, 1] - z[:, 0], 2 * y - 1, **how)
        assert np.array_equal(value, loss)
        assert np.array_equal(grad, np.stack([-slope, slope], 1))


@EVERY_VARIANT
@pytest.mark.parametrize("classes", [6, 200])
def test_a_common_offset_changes_nothing(isa, dtype, rng, variant, classes):
    """Multiples of 1/8 are shifted without rounding."""
    z = rng.integers(-40, 40, (50, classes)).astype(dtype) / 8
    y = rng.integers(0, classes, 50)
    value, grad = MH.value_and_grad(z, y, reduction="sum", **variant)
    other, slope = MH.value_and_grad(z + dtype(1024), y, reduction="sum", **variant)
    assert value == other
    assert np.array_equal(grad, slope)
    # Exact without "k"; with it NumPy adds C numbers whose sizes sum to 2 at most.
    assert (np.abs(grad.sum(1)) <= 2 * classes * np.finfo(dtype).eps * ("divide" in variant)).all()


def test_a_row_of_weight_two_counts_twice(isa, dtype, rng):
    z, y = rng.normal(size=(200, 10)).astype(dtype), rng.integers(0, 10, 200)
    twice = MH(np.repeat(z, 2, 0), np.repeat(y, 2), reduction="sum")
    options = {"sample_weight": np.full(200, 2), "reduction": "sum"}
    np.testing.assert_allclose(MH(z, y, **options), twice, rtol=1e-14)


def test_micro_batches_of_classes_add_up(isa, rng):
    z, y = rng.normal(size=(1000, 12)), rng.integers(0, 12, 1000)
    parts = [MH(z[i : i + 100], y[i : i + 100], normalizer=1000) for i in range(0, 1000, 100)]
    np.testing.assert_allclose(sum(parts), MH(z, y), rtol=1e-14)


# ---- PyTorch and scikit-learn -------------------------------------------------------------------

TORCH_SAMPLES = [  # options of sample_inputs_multi_margin_loss, and what fills them
    {},
    {"p": 1},
    {"p": 2},
    {"margin": 1.0},
    {"margin": 0.0},
    {"margin": 0.5},
    {"weight": True},
    {"weight": True, "p": 2, "margin": 0.25},
]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", TORCH_SAMPLES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (5,), (5, 3), (5, 200)], ids=str)
def test_the_samples_of_pytorch(isa, rng, shape, options, reduction):
    """multi_margin_loss as its own test inputs have it; values and gradients."""
    torch = pytest.importorskip("torch")
    z = rng.uniform(-9, 9, shape)
    classes = shape[-1] if shape else 1
    y = rng.integers(0, classes, shape[:-1])
    weight = rng.uniform(0.1, 2, classes) if options.get("weight") else None
    x = torch.tensor(z, dtype=torch.float64, requires_grad=True)
    given = {k: v for k, v in options.items() if k != "weight"}
    loss = torch.nn.functional.multi_margin_loss(
        x,
        torch.tensor(y),
        weight=None if weight is None else torch.tensor(weight),
        reduction=reduction,
        **given,
    )
    loss.sum().backward()
    mine = {
        "variant": "weston_watkins",
        "divide": "k",
        "margin": options.get("margin", 1.0),
        "squared": options.get("p") == 2,
        "weight": weight,
        "reduction": reduction,
    }
    if reduction == "mean":
        mine["normalizer"] = max(y.size, 1)
    value, grad = MH.value_and_grad(z, y, **mine)
    np.testing.assert_allclose(value, loss.detach().numpy(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(grad, x.grad.numpy(), rtol=1e-12, atol=1e-12)


def test_scikit_learn_has_the_same_mean_of_classes(rng):
    metrics = pytest.importorskip("sklearn.metrics")
    z, y, s = rng.normal(size=(50, 6)), rng.integers(0, 6, 50), rng.random(50)
    expected = metrics.hinge_loss(y, z, labels=np.arange(6), sample_weight=s)
    np.testing.assert_allclose(MH(z, y, sample_weight=s), expected, rtol=1e-13)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("variant", ["crammer_singer", "weston_watkins"])
def test_a_class_without_rivals(isa, dtype, variant, squared, axis):
    """One class, or one that is kept: 0, but NaN of NaN; a rival at -inf is still a rival."""
    options = {"variant": variant, "squared": squared, "reduction": "none"}
    one = np.array([[NAN], [-INF], [INF], [2.0]], dtype)
    two = np.concatenate([one, np.full_like(one, -INF)], axis=1)
    y = np.zeros(4, int)
    masked = {"where": np.moveaxis(np.array([[True, False]]), 1, axis)}
    for z, expected, extra in (
        (one, [NAN, 0, 0, 0], {}),
        (two, [NAN, NAN, 0, 0], {}),
        (two, [NAN, 0, 0, 0], masked),
    ):
        given = {**options, **extra, "axis": axis}
        turned = np.moveaxis(z, 1, axis)
        value, grad = MH.value_and_grad(turned, y, **given)
        np.testing.assert_array_equal(value, expected)
        np.testing.assert_array_equal(value, ref.multiclass_hinge(turned, y, **given))
        grad = np.moveaxis(grad, axis, 1)
        np.testing.assert_array_equal(grad[:, 0], expected)
        product = np.moveaxis(MH.hvp(turned, y, np.ones_like(turned), **given), axis, 1)
        np.testing.assert_array_equal(product[:, 0], expected)


@pytest.mark.parametrize("loss", [MH, fg.cross_entropy], ids=lambda f: f.__name__)
def test_the_short_way_writes_where_it_is_told_to(rng, dtype, loss):
    z, y = rng.normal(size=(64, 10)).astype(dtype), rng.integers(0, 10, 64)
    value, grad = loss.value_and_grad(z, y)
    room = np.zeros(1000, dtype)
    strided = np.zeros((64, 20), dtype)[:, ::2]
    for out in (np.empty_like(z), room[:640].reshape(64, 10), strided, z.copy()):
        own, target = (out, y) if np.array_equal(out, z) else (z, y)
        again, written = loss.value_and_grad(own, target, out=out)
        assert written is out
        assert again == value
        np.testing.assert_array_equal(written, grad)
    big = np.zeros(1000, dtype)
    big[:640] = z.ravel()
    with pytest.raises(ValueError, match="overlap"):
        loss.value_and_grad(big[:640].reshape(64, 10), y, out=big[1:641].reshape(64, 10))
    with pytest.raises(TypeError, match="dtype"):
        loss.value_and_grad(z, y, out=np.zeros(z.shape, np.float16))
