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
