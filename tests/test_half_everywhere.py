"""Every public function of halves: the float32 result on upcast input, rounded once.

The kernels and the conversions are in test_half.py.
"""

from __future__ import annotations

import numpy as np
import pytest

import fastgrad as fg
from fastgrad._kernels import isa

ml_dtypes = pytest.importorskip("ml_dtypes")

HALVES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
SHAPES = [
    ((40, 10), -1),
    ((37, 150), -1),
    ((5, 7, 33), 1),
    ((3, 1000), -1),
    ((70, 17), 0),
    ((1, 1), 1),
]


@pytest.fixture(params=isa.available_names(), autouse=True)
def instruction_set(request):
    before = isa._use(request.param)
    yield request.param
    isa._use(before)


@pytest.fixture(params=HALVES, ids=lambda h: h.name)
def half(request):
    return request.param


def layouts(x):
    """The array in three layouts, each with its upcast of the same layout."""
    yield x, x.astype(np.float32)
    yield np.asfortranarray(x), np.asfortranarray(x.astype(np.float32))
    yield x[::-1], x.astype(np.float32)[::-1]


def same(got, wide, half):
    """Bits of the float32 result, rounded once; a reduced loss is not rounded at all."""
    if isinstance(wide, float):
        assert got == wide or (got != got and wide != wide)
        return
    assert got.dtype == half
    with np.errstate(over="ignore"):
        expected = np.asarray(wide).astype(half)
    np.testing.assert_array_equal(np.asarray(got).astype(float), expected.astype(float))


def special(shape, half):
    x = np.random.default_rng(3).normal(scale=4, size=shape)
    if x.ndim > 1 and x.shape[0] > 6:
        x[1, 0], x[2, -1], x[3, 0], x[4] = np.nan, np.inf, -np.inf, -np.inf
        x[5] *= 1e-7  # subnormal in float16
    return x.astype(half)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
def test_maps(half, shape, axis, name):
    f = getattr(fg, name)
    for x, wide in layouts(special(shape, half)):
        same(f(x, axis), f(wide, axis), half)


@pytest.mark.parametrize(
    ("shape", "axis"), [((12, 10), 1), ((12, 150), 1), ((5, 33), 0), ((9, 4, 5), (1, 2))]
)
def test_what_where_drops_of_a_row_with_an_infinite_factor(half, shape, axis):
    x = special(shape, half)
    keep = np.random.default_rng(1).random(shape) < 0.5
    g = np.full(fg.logsumexp(x, axis).shape, 2.0)
    g[::3], g[1::3] = np.inf, -np.inf
    for a, wide in layouts(x):
        mask = keep[::-1] if a.strides[0] < 0 else keep
        got = fg.logsumexp.vjp(a, g, axis, where=mask)
        same(got, fg.logsumexp.vjp(wide, g, axis, where=mask), half)
        assert (got[~mask].astype(float) == 0).all()


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize(
    "options",
    [{}, {"reduction": "none"}, {"label_smoothing": 0.1, "z_loss": 0.01}, {"weighted": True}],
    ids=str,
)
def test_cross_entropy(half, shape, axis, options):
    rng = np.random.default_rng(1)
    rows = tuple(np.delete(shape, axis))
    y = rng.integers(0, shape[axis], rows)
    options = dict(options)
    if options.pop("weighted", False):
        options |= {"sample_weight": rng.random(rows), "weight": rng.random(shape[axis])}
    v = rng.normal(size=shape).astype(half)
    loss = fg.cross_entropy.with_options(axis=axis, **options)
    for x, wide in layouts(special(shape, half)):
        for got, expected in zip(
            loss.value_and_grad(x, y), loss.value_and_grad(wide, y), strict=True
        ):
            same(got, expected, half)
        same(loss.hvp(x, y, v), loss.hvp(wide, y, v.astype(np.float32)), half)
        same(loss.hess_diag(x, y), loss.hess_diag(wide, y), half)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_probabilities(half, shape, axis):
    t = np.random.default_rng(2).random(shape).astype(half)
    for x, wide in layouts(special(shape, half)):
        got = fg.cross_entropy.value_and_grad(x, t, axis=axis)
        expected = fg.cross_entropy.value_and_grad(wide, t.astype(np.float32), axis=axis)
        for a, b in zip(got, expected, strict=True):
            same(a, b, half)


@pytest.mark.parametrize("shape", [(7,), (70, 17), (5, 7, 33)], ids=str)
def test_elementwise(half, shape):
    y = np.random.default_rng(4).integers(0, 2, shape)
    x = np.random.default_rng(5).normal(scale=8, size=shape).astype(half)
    for z, wide in layouts(x):
        same(fg.sigmoid(z), fg.sigmoid(wide), half)
        same(fg.log_sigmoid(z), fg.log_sigmoid(wide), half)
        got = fg.binary_cross_entropy.value_and_grad(z, y)
        for a, b in zip(got, fg.binary_cross_entropy.value_and_grad(wide, y), strict=True):
            same(a, b, half)


@pytest.mark.parametrize("name", ["hinge", "binary_cross_entropy"])
def test_weights_of_elements(half, name):
    """They are cast to float32, not to the type of the scores."""
    rng = np.random.default_rng(9)
    x, s = rng.normal(size=(70, 17)).astype(half), rng.random((70, 17))
    y = rng.random((70, 17)) < 0.5
    for z, wide in layouts(x):
        got = getattr(fg, name).value_and_grad(z, y, sample_weight=s)
        expected = getattr(fg, name).value_and_grad(wide, y, sample_weight=s)
        for a, b in zip(got, expected, strict=True):
            same(a, b, half)


def test_probabilities_of_half_precision_for_binary_cross_entropy(half):
    rng = np.random.default_rng(9)
    x, t = rng.normal(size=(70, 17)).astype(half), rng.random((70, 17)).astype(half)
    for z, wide in layouts(x):
        got = fg.binary_cross_entropy.value_and_grad(z, t)
        expected = fg.binary_cross_entropy.value_and_grad(wide, t.astype(np.float32))
        for a, b in zip(got, expected, strict=True):
            same(a, b, half)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("shape", [(7,), (70, 17), (5, 7, 33)], ids=str)
def test_hinge(half, shape, squared):
    y = np.random.default_rng(4).random(shape) < 0.5
    x, v = np.random.default_rng(5).normal(size=(2, *shape)).astype(half)
    loss = fg.hinge.with_options(squared=squared, margin=0.3)
    for z, wide in layouts(x):
        for a, b in zip(loss.value_and_grad(z, y), loss.value_and_grad(wide, y), strict=True):
            same(a, b, half)
        same(loss.hvp(z, y, v), loss.hvp(wide, y, v.astype(np.float32)), half)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("variant", ["crammer_singer", "weston_watkins"])
def test_multiclass_hinge(half, shape, axis, variant):
    rng = np.random.default_rng(1)
    rows = tuple(np.delete(shape, axis))
    y = rng.integers(0, shape[axis], rows)
    v = rng.normal(size=shape).astype(half)
    options = {"axis": axis, "variant": variant, "squared": True, "sample_weight": rng.random(rows)}
    for reduction in ("mean", "none"):
        loss = fg.multiclass_hinge.with_options(reduction=reduction, **options)
        for x, wide in layouts(special(shape, half)):
            got, expected = loss.value_and_grad(x, y), loss.value_and_grad(wide, y)
            for a, b in zip(got, expected, strict=True):
                same(a, b, half)
            same(loss.hvp(x, y, v), loss.hvp(wide, y, v.astype(np.float32)), half)
            same(loss.hess_diag(x, y), loss.hess_diag(wide, y), half)


@pytest.mark.parametrize(("shape", "axis"), [*SHAPES, ((9,), 0)])
def test_token_stats(half, shape, axis):
    y = np.random.default_rng(6).integers(0, shape[axis], tuple(np.delete(shape, axis)))
    for x, wide in layouts(special(shape, half)):
        got, expected = fg.token_stats(x, y, axis=axis), fg.token_stats(wide, y, axis=axis)
        for field in ("nll", "logsumexp", "entropy"):
            same(getattr(got, field), getattr(expected, field), half)
        for field in ("argmax", "correct", "rank"):
            np.testing.assert_array_equal(getattr(got, field), getattr(expected, field))


def test_every_number_of_a_half(half):
    """softmax of one class reads it, logsumexp of one class returns it."""
    x = np.arange(65536, dtype=np.uint16).view(half)[:, None]
    same(fg.logsumexp(x), fg.logsumexp(x.astype(np.float32)), half)


def test_out_and_threads(half):
    x = np.random.default_rng(7).normal(size=(3000, 100)).astype(half)
    y = np.random.default_rng(8).integers(0, 100, 3000)
    with fg.num_threads(1):
        value, grad = fg.cross_entropy.value_and_grad(x, y)
    with fg.num_threads(2):
        again = fg.cross_entropy.value_and_grad(x, y, out=x)
    assert again[0] == value
    assert again[1] is x
    np.testing.assert_array_equal(x.view(np.uint16), grad.view(np.uint16))
