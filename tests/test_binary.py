"""sigmoid, log_sigmoid and binary cross-entropy: kernels, instruction sets, layouts, options."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import fastgrad as fg
from fastgrad import _reference as ref

LD = np.longdouble
INF, NAN = np.inf, np.nan
BCE = fg.binary_cross_entropy
LANES = {np.float32: 16, np.float64: 8}  # of the widest vector, 64 bytes
KINDS = ("value", "grad", "hvp", "hess_diag")


def everywhere(rng, dtype):
    """Logits of every size: near 0, both tails through the subnormal results and beyond, huge."""
    edge = 110 if dtype is np.float32 else 760
    small = np.ldexp(rng.normal(size=2000), rng.integers(-140, 3, 2000))
    large = np.ldexp(rng.uniform(1, 2, 500), rng.integers(3, 127, 500)) * rng.choice([-1, 1], 500)
    parts = rng.normal(0, 3, 8000), rng.uniform(-edge, edge, 8000), small, large
    return np.concatenate([*parts, [0.0, -0.0, 1.0, -1.0]]).astype(dtype)


def call(kind, z, t, v, **options):
    """(value, None), or (None, derivative), of every kind by one name."""
    if kind == "value":
        return BCE(z, t, reduction="none", **options)
    args = (z, t, v) if kind == "hvp" else (z, t)
    return getattr(BCE, kind)(*args, reduction="sum", **options)


def exact(kind, z, t, v, **options):
    if kind == "value":
        return ref.binary_cross_entropy(z, t, reduction="none", **options)
    args = (z, t, v) if kind == "hvp" else (z, t)
    return getattr(ref, f"binary_cross_entropy_{kind}")(*args, reduction="sum", **options)


def larger_term(z, t, pos_weight=1, sample_weight=1, **_):
    """What the gradient's error counts against: with soft targets its two terms may cancel."""
    w, s, t = LD(pos_weight), LD(sample_weight), LD(t)
    return np.maximum(s * (1 - t) * ref.sigmoid(z), s * w * t * ref.sigmoid(-z))


def check(kind, actual, z, t, v, assert_ulps, what="", **options):
    """Bars of NUMERICS.md: 4 for the value, 8 for the gradient; the second derivative is a product
    of five factors that are each good to an ulp."""
    scale = larger_term(z, t, **options) if kind == "grad" else None
    if options.get("where") is not None and scale is not None:
        scale = np.where(options["where"], scale, 0)
    bar = {"value": 4, "grad": 8}.get(kind, 5)
    assert_ulps(actual, exact(kind, z, t, v, **options), bar, scale, f"{kind} {what}")


def soft_or_hard(rng, shape, dtype, soft):
    return rng.random(shape).astype(dtype) if soft else rng.integers(0, 2, shape)


# ---- accuracy -----------------------------------------------------------------------------------


def test_sigmoid_everywhere(isa, dtype, rng, assert_ulps):
    x = everywhere(rng, dtype)
    assert_ulps(fg.sigmoid(x), ref.sigmoid(x), 2.5)


def test_log_sigmoid_everywhere(isa, dtype, rng, assert_ulps):
    x = everywhere(rng, dtype)
    assert_ulps(fg.log_sigmoid(x), ref.log_sigmoid(x), 4)


@pytest.mark.parametrize("name", ["sigmoid", "log_sigmoid"])
def test_derivatives_everywhere(isa, dtype, rng, assert_ulps, name):
    """Cotangents of every size too: down to where only the product is subnormal."""
    x = everywhere(rng, dtype)
    g = np.ldexp(rng.uniform(-1, 1, x.size), rng.integers(-140, 1, x.size)).astype(dtype)
    expected = getattr(ref, f"{name}_vjp")(x, g)
    assert_ulps(getattr(fg, name).vjp(x, g), expected, 4)
    assert_ulps(getattr(fg, name).jvp(x, g), expected, 4)


def test_derivative_from_the_sigmoid_itself(isa, dtype, rng):
    x, g = rng.normal(0, 5, (2, 1000)).astype(dtype)
    y = fg.sigmoid(x)
    expected = ref.sigmoid_vjp(x, g)
    error = np.abs(fg.sigmoid.vjp(x, g, y=y) - expected)
    # y to 1 ulp of itself, so 1 - y to 1 ulp of 1 at most; three more roundings.
    assert (error <= np.finfo(dtype).eps * (np.abs(g) * y + 3 * np.abs(expected))).all()
    assert fg.sigmoid.vjp(x, g, y=y).tobytes() == fg.sigmoid.jvp(x, g, y=y).tobytes()


def test_large_cotangents_overflow_only_at_the_end(isa, dtype, assert_ulps):
    x = np.array([-30, 30, -1, 1], dtype)
    g = np.full(4, np.finfo(dtype).max)
    for name in ("sigmoid", "log_sigmoid"):
        assert_ulps(getattr(fg, name).vjp(x, g), getattr(ref, f"{name}_vjp")(x, g), 4, what=name)


@pytest.mark.parametrize("weights", ["none", "pos_weight", "both"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_everywhere(isa, dtype, rng, assert_ulps, kind, soft, weights):
    z = everywhere(rng, dtype)
    t = soft_or_hard(rng, z.shape, dtype, soft)
    v = rng.normal(size=z.shape).astype(dtype)
    options = {}
    if weights != "none":
        options["pos_weight"] = rng.uniform(0.01, 1, z.shape).astype(dtype)
    if weights == "both":
        options["sample_weight"] = np.ldexp(1.5, rng.integers(-20, 1, z.shape)).astype(dtype)
    check(kind, call(kind, z, t, v, **options), z, t, v, assert_ulps, **options)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_a_confident_element_keeps_its_digits(isa, dtype, soft):
    """Where other libraries give 0: relative error, 4 eps of the loss and 8 of the gradient."""
    z = np.linspace(5, 80, 76).astype(dtype)
    z = np.concatenate([z, -z])
    t = (z > 0).astype(dtype if soft else int)
    eps = np.finfo(dtype).eps
    value, grad = BCE.value_and_grad(z, t, reduction="none")
    loss, slope = ref.binary_cross_entropy_value_and_grad(z, t, reduction="none")
    assert (value > 0).all()
    assert (np.abs(value - loss) <= 4 * eps * loss).all()
    assert (np.abs(grad - slope) <= 8 * eps * np.abs(slope)).all()


def test_weights_that_overflow_give_infinity_not_nan(isa, dtype):
    top = np.finfo(dtype).max
    z = np.array([3, -3], dtype)
    value, grad = BCE.value_and_grad(
        z, [0, 1], pos_weight=[1, top], sample_weight=top, reduction="none"
    )
    assert value.tolist() == [INF, INF]
    assert np.isfinite(grad[0])
    assert grad[1] == -INF
    v = np.array([top, top])
    assert BCE.hvp(z, [0, 1], v, sample_weight=top, reduction="none").tolist() == [INF, INF]


# ---- layouts, lengths and dtypes ----------------------------------------------------------------


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_length_stays_inside_its_memory(isa, dtype, rng, guard, assert_ulps, kind, soft):
    rooms = [guard(8 * 80) for _ in range(8)]
    for n in range(1, 4 * LANES[dtype] + 2):
        given = [
            rng.normal(0, 3, n).astype(dtype),
            soft_or_hard(rng, n, dtype, soft),
            rng.normal(size=n).astype(dtype),
        ]
        z, t, v = (room.place(a) for room, a in zip(rooms, given, strict=False))
        options = {
            "pos_weight": rooms[3].place(rng.random(n).astype(dtype)),
            "sample_weight": rooms[4].place(rng.random(n).astype(dtype)),
            "where": rooms[5].place(rng.random(n) < 0.7),
        }
        more = {}
        if kind != "value":
            more["out"] = rooms[6].place(np.full(n, 7, dtype))
        actual = call(kind, z, t, v, **options, **more)
        check(kind, actual, z, t, v, assert_ulps, f"n={n}", **options)


LAYOUTS = {
    "C": lambda a: np.ascontiguousarray(a),
    "F": lambda a: np.asfortranarray(a),
    "reversed": lambda a: np.ascontiguousarray(a[::-1, ::-1])[::-1, ::-1],
    "every third": lambda a: np.repeat(a, 3, 1)[:, ::3],
    "swapped": lambda a: np.ascontiguousarray(np.swapaxes(a, 0, 1)).swapaxes(0, 1),
    "read-only": lambda a: np.broadcast_to(a, a.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_layouts_change_no_bit(isa, dtype, rng, kind, layout):
    """All operands in C order, and each in turn, then all, in another."""
    shape = (7, 19)
    z, v, w, s = (np.abs(rng.normal(0, 2, (4, *shape)))).astype(dtype)
    z -= 1
    names = ("z", "t", "v", "pos_weight", "sample_weight", "where")
    for soft in (False, True):
        given = (z, soft_or_hard(rng, shape, dtype, soft), v, w, s, rng.random(shape) < 0.8)
        arrays = dict(zip(names, given, strict=True))
        expected = call(kind, **arrays)
        for moved in [*names, "all"]:
            other = {n: LAYOUTS[layout](a) if moved in (n, "all") else a for n, a in arrays.items()}
            assert np.array_equal(call(kind, **other), expected), moved


@pytest.mark.parametrize("name", ["sigmoid", "log_sigmoid"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_change_no_bit_of_a_map(isa, dtype, rng, name, layout):
    f = getattr(fg, name)
    x, g = rng.normal(0, 3, (2, 7, 19)).astype(dtype)
    move = LAYOUTS[layout]
    assert np.array_equal(f(move(x)), f(x))
    assert np.array_equal(f.vjp(move(x), g), f.vjp(x, g))
    assert np.array_equal(f.vjp(x, move(g)), f.vjp(x, g))
    out = move(np.zeros_like(x))
    if out.flags.writeable:
        assert f(x, out=out) is out
        assert np.array_equal(out, f(x))


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (2, 3, 4), (1, 1, 5)], ids=str)
def test_every_shape(dtype, rng, assert_ulps, shape):
    z, v = rng.normal(0, 3, (2, *shape)).astype(dtype)
    for soft, kind in itertools.product((False, True), KINDS):
        t = soft_or_hard(rng, shape, dtype, soft)
        actual = call(kind, z, t, v)
        assert np.shape(actual) == shape
        assert actual.dtype == dtype
        check(kind, actual, z, t, v, assert_ulps)
    for f in (fg.sigmoid, fg.log_sigmoid):
        assert np.shape(f(z)) == np.shape(f.vjp(z, v)) == shape
        assert f(z).dtype == dtype
        assert np.isscalar(f(z)) == (shape == ())


@pytest.mark.parametrize(
    "kind", ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i4", "f4", "f8", ">f8"]
)
def test_every_dtype_of_targets(isa, dtype, rng, kind):
    z = rng.normal(0, 3, 5000).astype(dtype)
    t = rng.integers(0, 2, 5000)
    value, grad = BCE.value_and_grad(z, t)
    other, slope = BCE.value_and_grad(z, t.astype(kind))
    assert other == value
    assert np.array_equal(slope, grad)


def test_integer_logits_are_doubles():
    assert fg.sigmoid([0, 1]).dtype == np.float64
    assert BCE([0, 1], [True, False], reduction="none").dtype == np.float64


def test_weights_broadcast(isa, dtype, rng):
    z = rng.normal(0, 3, (6, 5)).astype(dtype)
    t = rng.integers(0, 2, z.shape)
    for shape in ((), (1,), (5,), (1, 5), (6, 1), (6, 5)):
        w = rng.random(shape).astype(dtype)
        full = np.array(np.broadcast_to(w, z.shape))
        for name in ("pos_weight", "sample_weight"):
            for reduction in ("mean", "sum", "none"):
                how = {"reduction": reduction}
                value, grad = BCE.value_and_grad(z, t, **{name: w}, **how)
                other, slope = BCE.value_and_grad(z, t, **{name: full}, **how)
                assert np.array_equal(value, other)
                assert np.array_equal(grad, slope)


def test_inputs_are_left_alone(dtype, rng):
    z, v, w, s = np.abs(rng.normal(size=(4, 50))).astype(dtype)
    t, keep = rng.integers(0, 2, (2, 50))
    given = (z, t, v, w, s, keep == 1)
    before = [a.tobytes() for a in given]
    for kind in KINDS:
        call(kind, z, t, v, pos_weight=w, sample_weight=s, where=given[5])
    assert [a.tobytes() for a in given] == before


def test_out_may_be_the_first_argument(isa, dtype, rng):
    z, v = rng.normal(0, 3, (2, 1001)).astype(dtype)
    t = rng.integers(0, 2, 1001)
    for expected, f, args, i in (
        (fg.sigmoid(z), fg.sigmoid, [z], 0),
        (fg.log_sigmoid(z), fg.log_sigmoid, [z], 0),
        (fg.sigmoid.vjp(z, v), fg.sigmoid.vjp, [z, v], 1),
        (fg.log_sigmoid.jvp(z, v), fg.log_sigmoid.jvp, [z, v], 1),
        (BCE.grad(z, t), BCE.grad, [z, t], 0),
        (BCE.hess_diag(z, t), BCE.hess_diag, [z, t], 0),
        (BCE.hvp(z, t, v), BCE.hvp, [z, t, v], 2),
    ):
        mine = [a.copy() for a in args]
        assert f(*mine, out=mine[i]) is mine[i]
        assert np.array_equal(mine[i], expected)


# ---- special values -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "expected"),
    [
        (fg.sigmoid, [0, 1, NAN, 0.5, 0.5]),
        (fg.log_sigmoid, [-INF, 0, NAN, -np.log(2), -np.log(2)]),
        (lambda x: fg.sigmoid.vjp(x, np.ones_like(x)), [0, 0, NAN, 0.25, 0.25]),
        (lambda x: fg.log_sigmoid.vjp(x, np.ones_like(x)), [1, 0, NAN, 0.5, 0.5]),
    ],
    ids=["sigmoid", "log_sigmoid", "sigmoid.vjp", "log_sigmoid.vjp"],
)
def test_special_values_of_the_maps(isa, dtype, f, expected):
    x = np.array([-INF, INF, NAN, 0.0, -0.0], dtype)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(f(x), np.array(expected), rtol=2 * eps, atol=0)


SPECIAL = [  # logit, target, pos_weight, loss, gradient
    (INF, 1, 1, 0, 0),
    (INF, 0, 1, INF, 1),
    (-INF, 1, 1, INF, -1),
    (-INF, 0, 1, 0, 0),
    (INF, 0.25, 2, INF, 0.75),
    (-INF, 0.25, 2, INF, -0.5),
    (INF, 1, 0, 0, 0),
    (-INF, 1, 0, 0, 0),  # 0 * inf counts as 0
    (NAN, 0, 1, NAN, NAN),
    (NAN, 1, 1, NAN, NAN),
    (NAN, 0.5, 1, NAN, NAN),
    (NAN, 1, 0, NAN, NAN),
    (3e38, 1, 1, 0, 0),
    (3e38, 0, 1, 3e38, 1),
    (-3e38, 1, 1, 3e38, -1),
]


@pytest.mark.parametrize(("z", "t", "w", "loss", "slope"), SPECIAL, ids=str)
def test_special_logits(isa, dtype, z, t, w, loss, slope):
    """In the middle of ordinary elements, which stay as they are."""
    logits = np.linspace(-3, 3, 40).astype(dtype)
    targets = np.full(40, 0.5, dtype)
    plain, plain_slope = BCE.value_and_grad(logits, targets, pos_weight=w, reduction="none")
    logits[17], targets[17] = z, t
    value, grad = BCE.value_and_grad(logits, targets, pos_weight=w, reduction="none")
    np.testing.assert_array_equal([value[17], grad[17]], np.array([loss, slope], dtype))
    others = np.arange(40) != 17
    assert np.array_equal(value[others], plain[others])
    assert np.array_equal(grad[others], plain_slope[others])
    second = BCE.hess_diag(logits, targets, pos_weight=w, reduction="none")[17]
    np.testing.assert_array_equal(second, NAN if np.isnan(z) else 0)


@pytest.mark.parametrize("how", ["where", "sample_weight"])
@pytest.mark.parametrize("junk", [NAN, INF, -INF, 1.0])
def test_an_ignored_element_is_nothing(isa, dtype, rng, junk, how):
    z, v = rng.normal(0, 3, (2, 37)).astype(dtype)
    keep = rng.random(37) < 0.6
    z[~keep], v[~keep] = junk, junk
    option = {how: keep if how == "where" else keep.astype(dtype)}
    for soft in (False, True):
        t = soft_or_hard(rng, 37, dtype, soft)
        for reduction in ("mean", "sum", "none"):
            value, grad = BCE.value_and_grad(z, t, reduction=reduction, **option)
            alone, slope = BCE.value_and_grad(z[keep], t[keep], reduction=reduction)
            if reduction == "none":
                assert (value[~keep] == 0).all()
                value = value[keep]
            np.testing.assert_allclose(value, alone, rtol=4 * np.finfo(dtype).eps)
            assert np.array_equal(grad[keep], slope)
            hvp = BCE.hvp(z, t, v, reduction=reduction, **option)
            diag = BCE.hess_diag(z, t, reduction=reduction, **option)
            for a in (grad, hvp, diag):
                assert (a[~keep] == 0).all()
            assert np.array_equal(diag[keep], BCE.hess_diag(z[keep], t[keep], reduction=reduction))


@pytest.mark.parametrize(
    "options",
    [{"where": False}, {"sample_weight": 0.0}, {"where": [[True, False]], "sample_weight": [0, 1]}],
    ids=str,
)
def test_nothing_kept(isa, dtype, options):
    z, t = np.array([[NAN, 1.0]], dtype), [[1, 0]]
    for kind in ("grad", "hess_diag"):
        assert (getattr(BCE, kind)(z, t, **options) == 0).all()
    assert np.isnan(BCE(z, t, **options))
    assert BCE(z, t, reduction="sum", **options) == 0
    assert BCE(z, t, normalizer=3, **options) == 0
    assert (BCE(z, t, reduction="none", **options) == 0).all()


@pytest.mark.parametrize("shape", [(0,), (3, 0)], ids=str)
def test_nothing_at_all(dtype, shape):
    z = np.empty(shape, dtype)
    assert np.isnan(BCE(z, z))
    assert BCE(z, z, reduction="sum", sample_weight=2.0) == 0
    assert BCE.grad(z, z).shape == BCE(z, z, reduction="none").shape == shape
    assert fg.sigmoid(z).shape == fg.log_sigmoid.vjp(z, z).shape == shape


# ---- reductions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_reductions_equal_the_twin(isa, dtype, rng, soft, masked, weighted):
    shape = (67, 131)
    z = rng.normal(0, 3, shape).astype(dtype)
    t = soft_or_hard(rng, shape, dtype, soft)
    options = {"pos_weight": np.asarray(1.75, dtype)}
    if masked:
        options["where"] = rng.random(131) < 0.8
    if weighted:
        options["sample_weight"] = rng.random((67, 1)).astype(dtype)
    eps = np.finfo(dtype).eps
    for how in ({}, {"reduction": "sum"}, {"normalizer": 12.5}, {"reduction": None}):
        twin = {**how, "reduction": "none"} if how.get("reduction", 1) is None else how
        value, grad = BCE.value_and_grad(z, t, **options, **how)
        loss, slope = ref.binary_cross_entropy_value_and_grad(z, t, **options, **twin)
        # Each loss has 4 ulp at most; the sum adds nothing to that.
        np.testing.assert_allclose(value, loss.astype(float), rtol=4 * eps)
        scale = 4 * eps * float(np.abs(slope).max())
        np.testing.assert_allclose(grad, slope.astype(float), rtol=8 * eps, atol=scale)
        assert np.array_equal(BCE(z, t, **options, **how), value)
        assert np.array_equal(BCE.grad(z, t, **options, **how), grad)
        if np.ndim(value) == 0:
            assert type(value) is float


@pytest.mark.parametrize("kind", ["grad", "hvp", "hess_diag"])
def test_grad_output(isa, dtype, rng, assert_ulps, kind):
    z, v, g = rng.normal(0, 3, (3, 9, 11)).astype(dtype)
    t = rng.integers(0, 2, z.shape)
    args = (z, t, v) if kind == "hvp" else (z, t)
    expected = getattr(ref, f"binary_cross_entropy_{kind}")
    for how in ({"grad_output": -2.5}, {"grad_output": -2.5, "reduction": "none"}):
        assert_ulps(getattr(BCE, kind)(*args, **how), expected(*args, **how), 8)
    how = {"reduction": "none", "sample_weight": np.abs(v), "grad_output": g}
    assert_ulps(getattr(BCE, kind)(*args, **how), expected(*args, **how), 8)
    value = BCE.value_and_grad(z, t, **how)[0]
    assert np.array_equal(value, BCE(z, t, reduction="none", sample_weight=np.abs(v)))


def test_results_do_not_depend_on_threads(dtype, rng):
    z = rng.normal(0, 3, 300_001).astype(dtype)
    t, keep = rng.integers(0, 2, (2, z.size)) == 1
    seen = set()
    for n in (1, 2, 3):
        with fg.num_threads(n):
            value, grad = BCE.value_and_grad(z, t, where=keep, sample_weight=np.abs(z))
            y = fg.sigmoid(z)
        seen.add((value, grad.tobytes(), y.tobytes()))
    assert len(seen) == 1


# ---- properties ---------------------------------------------------------------------------------


def test_the_two_sigmoids_of_an_element_sum_to_one(isa, dtype, rng):
    x = everywhere(rng, dtype)
    assert (np.abs(fg.sigmoid(x) + fg.sigmoid(-x) - 1) <= 2 * np.finfo(dtype).eps).all()


def test_monotone(isa, dtype, rng):
    """Between neighbours the rounding may go back by an ulp, never by more."""
    x = np.sort(everywhere(rng, dtype))
    y = fg.sigmoid(x)
    assert (y[1:] >= np.nextafter(y[:-1], dtype(0))).all()
    assert (y >= 0).all()
    assert (y <= 1).all()


def test_it_is_the_cross_entropy_of_two_classes(isa, dtype, rng):
    z = rng.normal(0, 5, 500).astype(dtype)
    pair = np.stack([np.zeros_like(z), z], 1)
    y = rng.integers(0, 2, z.size)
    t = rng.random(z.size).astype(dtype)
    both = np.stack([1 - t, t], 1)
    rtol = 8 * np.finfo(dtype).eps
    for target, classes in ((y, y), (t, both)):
        value, grad = BCE.value_and_grad(z, target, reduction="none")
        loss, slope = fg.cross_entropy.value_and_grad(pair, classes, reduction="none")
        np.testing.assert_allclose(value, loss, rtol=rtol)
        np.testing.assert_allclose(grad, slope[:, 1], rtol=rtol, atol=rtol)


def test_exchanging_the_classes_changes_the_sign(isa, dtype, rng):
    z = everywhere(rng, dtype)
    y = rng.integers(0, 2, z.size)
    value, grad = BCE.value_and_grad(z, y, reduction="none")
    other, slope = BCE.value_and_grad(-z, 1 - y, reduction="none")
    assert np.array_equal(value, other)
    assert np.array_equal(grad, -slope)


def test_hard_equals_soft_of_zero_and_one(isa, dtype, rng):
    z = everywhere(rng, dtype)
    y = rng.integers(0, 2, z.size)
    for kind in KINDS:
        assert np.array_equal(call(kind, z, y, z), call(kind, z, y.astype(dtype), z))


def test_weight_two_is_an_element_twice(isa, dtype, rng):
    z = rng.normal(0, 3, 200).astype(dtype)
    y = rng.integers(0, 2, 200)
    twice = BCE(np.repeat(z, 2), np.repeat(y, 2), reduction="sum")
    np.testing.assert_allclose(BCE(z, y, sample_weight=2, reduction="sum"), twice, rtol=1e-14)
    np.testing.assert_allclose(BCE(z, y, sample_weight=2), BCE(z, y), rtol=1e-14)


def test_micro_batches_add_up(isa, rng):
    z = rng.normal(0, 3, 1000)
    y = rng.integers(0, 2, 1000)
    parts = [BCE(z[i : i + 100], y[i : i + 100], normalizer=1000) for i in range(0, 1000, 100)]
    np.testing.assert_allclose(sum(parts), BCE(z, y), rtol=1e-14)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_derivatives_are_those_of_the_value(isa, rng, soft):
    """Central differences: off by h^2 / 6 times the third derivative, and 2 eps of the loss / h."""
    z = rng.normal(0, 2, 300)
    t = soft_or_hard(rng, 300, np.float64, soft)
    how = {"reduction": "none", "pos_weight": 2.0, "sample_weight": 0.5}
    h = 1e-5
    for lower, upper in ((BCE, BCE.grad), (BCE.grad, BCE.hess_diag)):
        slope = (lower(z + h, t, **how) - lower(z - h, t, **how)) / (2 * h)
        np.testing.assert_allclose(upper(z, t, **how), slope, rtol=0, atol=1e-9)
    for f in (fg.sigmoid, fg.log_sigmoid):
        slope = (f(z + h) - f(z - h)) / (2 * h)
        np.testing.assert_allclose(f.vjp(z, np.ones(300)), slope, rtol=0, atol=1e-9)


def test_hvp_is_the_diagonal_times_v(isa, dtype, rng):
    z, v = rng.normal(0, 3, (2, 200)).astype(dtype)
    y = rng.integers(0, 2, 200)
    diagonal = BCE.hess_diag(z, y)
    assert (diagonal > 0).all()
    rtol = 2 * np.finfo(dtype).eps
    np.testing.assert_allclose(BCE.hvp(z, y, v), diagonal * v, rtol=rtol)


# ---- PyTorch ------------------------------------------------------------------------------------

TORCH_WEIGHTS = [(1,), (1, 5), (5,), (5, 5)]
TORCH_SAMPLES = [  # shape, options: sample_inputs of binary_cross_entropy_with_logits
    *[(s, {}) for s in [(), (1,), (5,), (5, 5), (5, 5, 5)]],
    *[((5, 5), {"weight": w} if w else {}) for w in [None, *TORCH_WEIGHTS]],
    ((5, 5), {"pos_weight": (5,)}),
    ((5, 5), {"weight": (5, 5), "pos_weight": (5,)}),
]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("shape", "options"), TORCH_SAMPLES, ids=str)
def test_the_samples_of_pytorch(isa, rng, shape, options, reduction):
    """Its own test inputs: normal logits, targets in [0, 1), weights; values and gradients."""
    torch = pytest.importorskip("torch")
    z, t = rng.uniform(-9, 9, shape), rng.random(shape)
    weights = {name: rng.random(s) for name, s in options.items()}
    x = torch.tensor(z, dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        x,
        torch.tensor(t, dtype=torch.float64),
        reduction=reduction,
        **{name: torch.tensor(w) for name, w in weights.items()},
    )
    loss.sum().backward()
    mine = {"reduction": reduction, "pos_weight": weights.get("pos_weight")}
    if "weight" in weights:
        mine["sample_weight"] = weights["weight"]
        if reduction == "mean":
            mine["normalizer"] = max(z.size, 1)  # PyTorch divides by the number of elements
    value, grad = BCE.value_and_grad(z, t, **mine)
    np.testing.assert_allclose(value, loss.detach().numpy(), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(grad, x.grad.numpy(), rtol=1e-10, atol=1e-10)


def test_a_product_needs_its_vector():
    with pytest.raises(TypeError, match="v must"):
        fg.binary_cross_entropy.hvp(np.zeros(2), [0, 1], None)
