"""Long random comparison with the twin; `make fuzz` runs it."""

from __future__ import annotations

import numpy as np
import pytest

import fastgrad as fg
from fastgrad import _reference as ref
from fastgrad._kernels import isa


def anything(rng):
    """An array of any layout, and an axis of it."""
    ndim = int(rng.integers(1, 5))
    shape = [int(n) for n in rng.integers(1, 30 if ndim < 3 else 9, ndim)]
    if ndim < 3 and rng.random() < 0.3:
        shape[-1] = int(rng.integers(40, 400))
    x = rng.standard_normal(shape) * rng.choice([1, 20, 1e3])
    x = np.asarray(x.astype(rng.choice(["f4", "f8"])), order=str(rng.choice(["C", "F"])))
    if rng.random() < 0.3:
        x = x[tuple(slice(None, None, int(rng.choice([-1, 1, 2]))) for _ in shape)]
    return x, int(rng.integers(-ndim, ndim))


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(20))
def test_everything_equals_the_twin(seed):
    rng = np.random.default_rng(seed)
    before = isa.active_name()
    try:
        for _ in range(300):
            isa._use(str(rng.choice(isa.available_names())))
            compare(rng, *anything(rng))
    finally:
        isa._use(before)


def compare(rng, x, axis):
    eps, tiny = np.finfo(x.dtype).eps, np.finfo(x.dtype).tiny
    options = {
        "where": rng.random(x.shape) < 0.7 if rng.random() < 0.4 else None,
        "temperature": float(rng.choice([1.0, 0.7])),
    }
    for f, exact, floor in (
        (fg.softmax, ref.softmax, tiny),
        (fg.log_softmax, ref.log_softmax, tiny),
        (fg.logsumexp, ref.logsumexp, 2 * eps * np.abs(x).max()),
    ):
        expected = np.asarray(exact(x, axis, **options), float)
        np.testing.assert_allclose(f(x, axis, **options), expected, rtol=8 * eps, atol=floor)
    classes = min(x.shape[axis], 127)
    y = np.asarray(rng.integers(0, classes, np.delete(x.shape, axis)))
    y = y.astype(rng.choice(["i1", "u8", "i8", "i4"]))
    for reduction in ("mean", "sum", "none"):
        how = {"axis": axis, "reduction": reduction}
        value, grad = fg.cross_entropy.value_and_grad(x, y, **how)
        expected, slope = ref.cross_entropy_value_and_grad(x, y, **how)
        np.testing.assert_allclose(value, np.asarray(expected, float), rtol=8 * eps, atol=tiny)
        np.testing.assert_allclose(grad, np.asarray(slope, float), rtol=16 * eps, atol=tiny)
        np.testing.assert_array_equal(fg.cross_entropy(x, y, **how), value)


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(20))
def test_every_option_of_cross_entropy_equals_the_twin(seed, mass):
    rng = np.random.default_rng(seed)
    before = isa.active_name()
    try:
        for _ in range(200):
            isa._use(str(rng.choice(isa.available_names())))
            compare_options(rng, mass)
    finally:
        isa._use(before)


def compare_options(rng, mass):
    """One random call of each kind: bits, special values and accuracy."""
    case = mass.Case(
        soft=bool(rng.random() < 0.5),
        weight=bool(rng.random() < 0.4),
        sample=bool(rng.random() < 0.4),
        smoothing=float(rng.choice([0, 0, 1e-9, 0.1, 0.5, 1])),
        z_loss=float(rng.choice([0, 0, 1e-4, 0.1, 1, 100])),
        where=bool(rng.random() < 0.4),
    )
    dtype = rng.choice([np.float32, np.float64])
    ndim = int(rng.integers(1, 4))
    shape = [int(n) for n in rng.integers(1, 8 if ndim > 1 else 2, ndim)]
    axis = int(rng.integers(0, ndim))
    if ndim > 1 and rng.random() < 0.3:
        shape[axis - 1] = 40
    shape[axis] = int(rng.choice([1, 2, 3, 5, 10, 17, 33, 65, 100, 144, 145, 150, 200, 300]))
    z, t, v, kw = case.draw(rng, tuple(shape), dtype, axis)
    if rng.random() < 0.2:
        z += dtype(rng.choice([1e4, -1e6, 1e8]))
    if rng.random() < 0.2:
        z.reshape(-1)[rng.integers(z.size)] = rng.choice([np.nan, np.inf, -np.inf])
    z, t, v = (laid_out(rng, a) for a in (z, t, v))
    kw = {k: laid_out(rng, a) if isinstance(a, np.ndarray) else a for k, a in kw.items()}
    reduction = str(rng.choice(["mean", "sum", "none"]))
    kw["reduction"] = reduction
    if reduction == "mean" and rng.random() < 0.3:
        kw["normalizer"] = 7.5
    more = dict(kw)
    if rng.random() < 0.4:
        rows = z.shape[:axis] + z.shape[axis + 1 :]
        one = reduction != "none" or rng.random() < 0.3
        more["grad_output"] = float(rng.normal()) if one else rng.normal(size=rows).astype(dtype)
    value, grad = fg.cross_entropy.value_and_grad(z, t, **more)
    np.testing.assert_array_equal(value, fg.cross_entropy(z, t, **kw))
    np.testing.assert_array_equal(grad, fg.cross_entropy.grad(z, t, **more))
    with np.errstate(over="ignore"):
        exact = mass.exact("value", z, t, v, **kw)
        mass.assert_good("value", np.asarray(value, dtype), exact, what=str(kw))
    divisor = 1.0
    if reduction == "mean":
        divisor = kw.get("normalizer") or divisor_of(z, t, axis, kw)
    for kind in mass.kinds[1:]:
        exact = mass.exact(kind, z, t, v, **more)
        with np.errstate(all="ignore"):
            size = mass.size(kind, z, t, v, **more | {"grad_output": None}) / divisor
            g = np.abs(np.asarray(more.get("grad_output", 1.0), np.longdouble))
            size = size * (np.expand_dims(g, axis) if g.ndim else g)
        actual = mass.run(kind, z, t, v, **more)
        mass.assert_good(kind, actual, exact, size, f"{case} {shape} {axis} {reduction}")


def divisor_of(z, t, axis, kw):
    """From rows of equal logits, whose losses are finite."""
    level, more = np.ones(z.shape), {"z_loss": 1.0}  # one class alone has no other loss
    total = ref.cross_entropy(level, t, **kw | more | {"reduction": "sum"})
    with np.errstate(all="ignore"):
        return total / ref.cross_entropy(level, t, **kw | more)


def laid_out(rng, a):
    """The same numbers in another layout."""
    if a.ndim == 0:
        return a
    how = rng.choice(["C", "F", "negative", "stepped"])
    if how in ("C", "F"):
        return np.asarray(a, order=str(how))
    flip = tuple(slice(None, None, -1 if how == "negative" else 2) for _ in a.shape)
    big = np.zeros([n if how == "negative" else 2 * n for n in a.shape], a.dtype)
    big[flip] = a
    return big[flip]
