"""vjp and jvp of the maps: against the reference, against each other, with every option."""

from __future__ import annotations

import numpy as np
import pytest

import fastgrad as fg
from fastgrad import _reference as ref

MAPS = [fg.softmax, fg.log_softmax]
maps = pytest.mark.parametrize("f", MAPS, ids=lambda f: f.__name__)
kinds = pytest.mark.parametrize("kind", ["vjp", "jvp"])
classes = pytest.mark.parametrize("classes", [3, 40, 60, 250])
layouts = pytest.mark.parametrize("layout", ["C", "F"])


def drawn(rng, dtype, classes, layout, rows=19):
    x, g = rng.normal(0, 3, (2, rows, classes))
    return (np.asarray(a, dtype, order=layout) for a in (x, g))


def eps(dtype):
    return float(np.finfo(dtype).eps)


def assert_rowwise(actual, exact, bar, size):
    """Errors within `bar` eps of the largest number that a row's sums are made of."""
    error = np.abs(np.asarray(actual) - exact)
    assert (error <= bar * eps(np.asarray(actual).dtype) * size).all()


# The exact dot product of p and g is one of numbers up to max|g|; 8 eps leave p its 2.5 ulp (up to
# 2.5 eps), and one rounding each for the difference, the product and 1/T.
@maps
@kinds
@classes
@layouts
@pytest.mark.parametrize("temperature", [1.0, 0.3, 7])
def test_derivative_is_that_of_the_reference(
    isa, dtype, rng, f, kind, classes, layout, temperature
):
    x, g = drawn(rng, dtype, classes, layout)
    exact = getattr(ref, f"{f.__name__}_{kind}")(x, g, temperature=temperature)
    size = np.abs(g).max(-1, keepdims=True) / temperature
    if (f.__name__, kind) == ("log_softmax", "vjp"):
        size = np.abs(g).sum(-1, keepdims=True) / temperature
    assert_rowwise(getattr(f, kind)(x, g, temperature=temperature), exact, 8, size)


@maps
@classes
@layouts
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_vjp_is_the_transpose_of_jvp(isa, dtype, rng, f, classes, layout, temperature):
    x, g = drawn(rng, dtype, classes, layout)
    v = rng.normal(size=x.shape).astype(dtype)
    pulled = f.vjp(x, g, temperature=temperature).astype(np.longdouble)
    pushed = f.jvp(x, v, temperature=temperature).astype(np.longdouble)
    left, right = (g * pushed).sum(-1), (pulled * v).sum(-1)
    size = np.abs(g).sum(-1) * np.abs(v).max(-1) / temperature
    assert (np.abs(left - right) <= 16 * eps(dtype) * size).all()


@classes
@layouts
@pytest.mark.parametrize("b", [False, True])
def test_vjp_of_logsumexp_is_the_transpose_of_jvp(isa, dtype, rng, classes, layout, b):
    x, v = drawn(rng, dtype, classes, layout)
    kw = {"b": rng.normal(size=x.shape).astype(dtype), "return_sign": True} if b else {}
    g = rng.normal(size=len(x)).astype(dtype)
    pulled = fg.logsumexp.vjp(x, g, **kw).astype(np.longdouble)
    left, right = g * fg.logsumexp.jvp(x, v, **kw), (pulled * v).sum(-1)
    size = np.abs(pulled * v).sum(-1)
    assert (np.abs(left - right) <= 16 * eps(dtype) * size).all()


@maps
@kinds
def test_derivative_is_the_slope(isa, rng, f, kind):
    x, g = drawn(rng, np.float64, 7, "C")
    v, h = rng.normal(size=x.shape), 1e-5
    slope = (f(x + h * v) - f(x - h * v)) / (2 * h)
    if kind == "jvp":
        np.testing.assert_allclose(f.jvp(x, v), slope, atol=1e-8)
    else:
        np.testing.assert_allclose((f.vjp(x, g) * v).sum(), (g * slope).sum(), rtol=1e-7)


@kinds
@classes
@layouts
def test_a_saved_result_gives_the_same_bits(isa, dtype, rng, kind, classes, layout):
    x, g = drawn(rng, dtype, classes, layout)
    f = getattr(fg.softmax, kind)
    y = fg.softmax(x)
    np.testing.assert_array_equal(f(x, g, y=y), f(x, g))


@kinds
def test_a_saved_result_is_used(dtype, rng, kind):
    x, g = drawn(rng, dtype, 7, "C")
    f = getattr(fg.softmax, kind)
    np.testing.assert_array_equal(f(x, g, y=np.zeros_like(x)), np.zeros_like(x))


@kinds
def test_a_saved_result_is_left_alone(isa, dtype, rng, kind):
    x, g = drawn(rng, dtype, 60, "C")
    y = fg.softmax(x)
    before = [a.tobytes() for a in (x, g, y)]
    getattr(fg.softmax, kind)(x, g, y=y)
    assert [a.tobytes() for a in (x, g, y)] == before


@maps
@kinds
@classes
@layouts
def test_out_holds_the_derivative(isa, dtype, rng, f, kind, classes, layout):
    x, g = drawn(rng, dtype, classes, layout)
    out = np.full_like(x, 9)
    before = x.tobytes(), g.tobytes()
    assert getattr(f, kind)(x, g, out=out) is out
    np.testing.assert_array_equal(out, getattr(f, kind)(x, g))
    assert (x.tobytes(), g.tobytes()) == before


def test_jacobian_of_softmax_is_symmetric(isa, dtype, rng):
    x, g = drawn(rng, dtype, 60, "C")
    np.testing.assert_array_equal(fg.softmax.vjp(x, g), fg.softmax.jvp(x, g))


@kinds
def test_a_constant_vector_is_in_the_null_space_of_softmax(isa, dtype, rng, kind):
    x, _ = drawn(rng, dtype, 60, "C")
    pulled = getattr(fg.softmax, kind)(x, np.full_like(x, 3))
    assert (np.abs(pulled) <= 16 * eps(dtype) * fg.softmax(x)).all()


def test_pulled_log_softmax_is_the_gradient_of_cross_entropy(isa, dtype, rng):
    x, _ = drawn(rng, dtype, 10, "C")
    y = rng.integers(0, 10, len(x))
    minus = -np.eye(10, dtype=dtype)[y]
    grad = fg.cross_entropy.grad(x, y, reduction="sum")
    np.testing.assert_allclose(fg.log_softmax.vjp(x, minus), grad, atol=4 * eps(dtype))


# ---- logsumexp ----------------------------------------------------------------------------------


@classes
@layouts
@pytest.mark.parametrize("temperature", [1.0, 0.3, 7])
def test_gradient_of_logsumexp(isa, dtype, rng, classes, layout, temperature, assert_ulps):
    x, _ = drawn(rng, dtype, classes, layout)
    g = rng.normal(size=len(x)).astype(dtype)
    exact = ref.logsumexp_vjp(x, g, temperature=temperature)
    assert_ulps(fg.logsumexp.vjp(x, g, temperature=temperature), exact, 4)


@classes
@layouts
def test_gradient_of_logsumexp_for_one_is_softmax(isa, dtype, rng, classes, layout):
    x, _ = drawn(rng, dtype, classes, layout)
    np.testing.assert_allclose(
        fg.logsumexp.vjp(x, np.ones(len(x), dtype)), fg.softmax(x), rtol=4 * eps(dtype)
    )


def factors(rng, x, signs):
    b = rng.random(x.shape) + 0.5
    if signs == "mixed":
        b *= rng.choice([-1, 1], x.shape)
    b[:, 1] = 0
    return b.astype(x.dtype)


def condition(x, b, temperature=1.0):
    """Sum of the sizes of a row's terms over the size of their sum: what cancels, cancels."""
    p = ref.logsumexp_vjp(x, np.ones(len(x)), b=b, return_sign=True, temperature=temperature)
    return (np.abs(p).sum(-1) * temperature).astype(float)


@classes
@layouts
@pytest.mark.parametrize("signs", ["positive", "mixed"])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_logsumexp_with_factors(isa, dtype, rng, classes, layout, signs, temperature):
    x, _ = drawn(rng, dtype, classes, layout)
    b = factors(rng, x, signs)
    exact, sign = ref.logsumexp(x, b=b, return_sign=True, temperature=temperature)
    actual = fg.logsumexp(x, b=b, return_sign=True, temperature=temperature)
    size = np.abs(exact) + np.abs(x).max(-1) / temperature + condition(x, b, temperature)
    assert_rowwise(actual[0], exact, 4, size)
    np.testing.assert_array_equal(actual[1], sign)


@classes
@layouts
@pytest.mark.parametrize("signs", ["positive", "mixed"])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_gradient_of_logsumexp_with_factors(isa, dtype, rng, classes, layout, signs, temperature):
    x, _ = drawn(rng, dtype, classes, layout)
    b, g = factors(rng, x, signs), rng.normal(size=len(x)).astype(dtype)
    kw = {"b": b, "return_sign": True, "temperature": temperature}
    exact = ref.logsumexp_vjp(x, g, **kw)
    size = np.abs(exact) * condition(x, b, temperature)[:, None]
    assert_rowwise(fg.logsumexp.vjp(x, g, **kw), exact, 8, size)


@classes
@layouts
@pytest.mark.parametrize("signs", ["positive", "mixed"])
def test_tangent_of_logsumexp_with_factors(isa, dtype, rng, classes, layout, signs):
    x, v = drawn(rng, dtype, classes, layout)
    b = factors(rng, x, signs)
    v[:, 1] = np.nan  # removed by its factor 0, so it is not read
    kw = {"b": b, "return_sign": True}
    exact = ref.logsumexp_jvp(x, v, **kw)
    size = np.nanmax(np.abs(v), -1) * condition(x, b) ** 2
    assert_rowwise(fg.logsumexp.jvp(x, v, **kw), exact, 8, size)


@pytest.mark.parametrize("keepdims", [False, True])
def test_sign_has_the_shape_and_dtype_of_the_logarithm(dtype, rng, keepdims):
    x = rng.normal(size=(3, 4, 5)).astype(dtype)
    for b in (None, -1.0):
        log, sign = fg.logsumexp(x, 1, b=b, return_sign=True, keepdims=keepdims)
        assert log.shape == sign.shape == ((3, 1, 5) if keepdims else (3, 5))
        assert log.dtype == sign.dtype == dtype
        assert (sign == (-1 if b else 1)).all()


def test_factors_broadcast(isa, dtype, rng):
    x = rng.normal(size=(5, 60)).astype(dtype)
    for shape in [(), (60,), (5, 1)]:
        b = (rng.random(shape) + 0.5).astype(dtype)
        full = np.broadcast_to(b, x.shape).copy()
        np.testing.assert_array_equal(fg.logsumexp(x, b=b), fg.logsumexp(x, b=full))
