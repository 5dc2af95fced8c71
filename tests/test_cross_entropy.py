"""Cross-entropy: targets of every dtype, what is ignored, reductions, axes."""

from __future__ import annotations

import math

import numpy as np
import pytest

import fastgrad as fg
from fastgrad import _reference as ref

INTEGERS = ["?", "b", "B", "h", "H", "i", "I", "l", "L", "q", "Q"]
reductions = pytest.mark.parametrize("reduction", ["mean", "sum", "none", None])


def data(rng, dtype, rows=23, classes=7):
    x = rng.normal(0, 3, (rows, classes)).astype(dtype)
    return x, rng.integers(0, classes, rows)


def both(x, y, **kw):
    return fg.cross_entropy.value_and_grad(x, y, **kw)


def assert_same(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, e)


def test_value_of_a_row_by_hand():
    assert fg.cross_entropy([[0.0, math.log(3)]], [1]) == pytest.approx(math.log(4 / 3), rel=1e-15)


def test_order_of_arguments_is_logits_then_target():
    assert fg.cross_entropy(np.zeros((1, 4)), [0]) == pytest.approx(math.log(4), rel=1e-15)


# ---- targets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["contiguous", "strided", "negative", "swapped", "unaligned"])
@pytest.mark.parametrize("kind", INTEGERS)
def test_every_integer_dtype_is_read_in_place(dtype, rng, kind, layout):
    x, y = data(rng, dtype, 5000, 2 if kind == "?" else 7)
    expected = both(x, y, reduction="none")
    y = y.astype(kind)
    if layout == "strided":
        y = np.repeat(y, 3)[::3]
    elif layout == "negative":
        y = y[::-1].copy()[::-1]
    elif layout == "swapped":
        y = y.astype(y.dtype.newbyteorder("S"))
    elif layout == "unaligned":
        raw = np.zeros(y.nbytes + 1, np.uint8)
        raw[1:] = y.view(np.uint8)
        y = raw[1:].view(y.dtype)
    before = y.tobytes()
    assert_same(both(x, y, reduction="none"), expected)
    assert y.tobytes() == before


@pytest.mark.parametrize("kind", INTEGERS)
def test_reduced_value_does_not_depend_on_the_dtype_of_targets(dtype, rng, kind):
    x, y = data(rng, dtype, 9000, 2)
    assert fg.cross_entropy(x, y.astype(kind)) == fg.cross_entropy(x, y)


@pytest.mark.parametrize("kind", ["B", "H", "b", "h", "i"])
def test_the_largest_class_of_a_dtype(rng, kind):
    top = min(np.iinfo(kind).max, 70000)
    x = rng.normal(size=(2, top + 1))
    y = np.array([top, top - 1], kind)
    assert_same(both(x, y), both(x, y.astype(np.int64)))


def test_a_list_of_targets(dtype, rng):
    x, y = data(rng, dtype)
    assert_same(both(x, y.tolist()), both(x, y))


@pytest.mark.parametrize("order", ["C", "F"])
def test_targets_of_several_dimensions_and_any_order(dtype, rng, order):
    x = rng.normal(size=(4, 3, 5, 6)).astype(dtype)
    y = rng.integers(0, 5, (4, 3, 6))
    expected = both(x, y, axis=2, reduction="none")
    for kind in "bil":
        changed = np.asarray(y, kind, order=order)
        assert_same(both(x, changed, axis=2, reduction="none"), expected)


# ---- ignored rows -------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("classes", [3, 60, 250])
@pytest.mark.parametrize("marker", [-100, -1, 1, 2**40])
def test_ignored_is_removed(isa, dtype, rng, classes, order, marker):
    x, y = data(rng, dtype, 37, classes)
    keep = rng.random(37) < 0.6
    y[keep & (y == marker)] = 0
    y[~keep] = marker
    x[~keep] = np.nan
    x = np.asarray(x, order=order)
    for reduction in ("mean", "sum"):
        value, grad = both(x, y, reduction=reduction, ignore_index=marker)
        less, expected = both(x[keep].copy(order), y[keep], reduction=reduction)
        assert value == pytest.approx(less, rel=1e-15)
        np.testing.assert_array_equal(grad[keep], expected)
        assert (grad[~keep] == 0).all()
    each = fg.cross_entropy(x, y, reduction="none", ignore_index=marker)
    assert (each[~keep] == 0).all()


@pytest.mark.parametrize("kind", ["b", "h", "i", "q"])
@pytest.mark.parametrize("marker", [-100, -1, 2])
def test_ignore_index_in_every_signed_dtype(rng, kind, marker):
    x, y = data(rng, np.float64)
    y[::3] = marker
    expected = ref.cross_entropy(x, y, ignore_index=marker)
    actual = fg.cross_entropy(x, y.astype(kind), ignore_index=marker)
    assert actual == pytest.approx(float(expected), rel=1e-14)


@pytest.mark.parametrize("kind", ["B", "H", "I", "Q"])
def test_ignore_index_in_every_unsigned_dtype(rng, kind):
    x, y = data(rng, np.float64)
    marker = np.iinfo(kind).max if kind != "Q" else 2**62
    y = y.astype(kind)
    y[::3] = marker
    expected = fg.cross_entropy(x, np.where(y == marker, -100, y.astype(np.int64)))
    assert fg.cross_entropy(x, y, ignore_index=marker) == expected


@pytest.mark.parametrize("wrong", [2**64 - 1, 2**64 - 100, 2**63])
@pytest.mark.parametrize("marker", [-1, -100, 2**63 - 1])
def test_ignore_index_is_not_reached_by_wrapping(marker, wrong):
    """uint64 beyond int64 equals no ignore_index, whatever it is narrowed to."""
    y = np.array([1, wrong], np.uint64)
    with pytest.raises(IndexError):
        fg.cross_entropy(np.zeros((2, 2)), y, ignore_index=marker)


def test_numpy_integers_are_an_ignore_index(rng):
    x, y = data(rng, np.float64)
    y[::2] = 3
    expected = fg.cross_entropy(x, y, ignore_index=3)
    assert fg.cross_entropy(x, y, ignore_index=np.int8(3)) == expected


def test_ignored_class_stays_in_the_softmax_of_other_rows(dtype):
    x = np.array([[0, 1, 2], [2, 1, 0]], dtype)
    each, grad = both(x, [0, 2], ignore_index=2, reduction="none")
    assert each[0] == fg.cross_entropy(x[0], 0)
    assert each[1] == 0
    assert grad[0, 2] > 0


def test_none_ignores_nothing(dtype, rng):
    x, y = data(rng, dtype)
    assert_same(both(x, y, ignore_index=None), both(x, y))
    y[3] = -100
    with pytest.raises(IndexError):
        fg.cross_entropy(x, y, ignore_index=None)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("classes", [3, 250])
def test_everything_ignored(isa, dtype, rng, classes, order):
    x = np.full((20, classes), np.nan, dtype, order=order)
    y = np.full(20, -100)
    value, grad = both(x, y)
    assert math.isnan(value)
    assert (grad == 0).all()
    assert both(x, y, reduction="sum")[0] == 0
    assert (both(x, y, reduction="none")[0] == 0).all()


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (0, 1)], ids=str)
def test_empty_batch(dtype, shape):
    x, y = np.empty(shape, dtype), np.empty(shape[:-1], int)
    value, grad = both(x, y)
    assert math.isnan(value)
    assert grad.shape == shape
    assert both(x, y, reduction="sum")[0] == 0
    assert both(x, y, reduction="none")[0].shape == y.shape


# ---- reductions ---------------------------------------------------------------------------------


@reductions
def test_reduction_of_the_value(isa, dtype, rng, reduction):
    x, y = data(rng, dtype)
    y[4] = -100
    expected = ref.cross_entropy(x, y, reduction=reduction or "none")
    actual = fg.cross_entropy(x, y, reduction=reduction)
    np.testing.assert_allclose(actual, expected.astype(float), rtol=4 * np.finfo(dtype).eps)


@reductions
def test_reduction_of_the_gradient(isa, dtype, rng, reduction):
    x, y = data(rng, dtype)
    y[4] = -100
    expected = ref.cross_entropy_grad(x, y, reduction=reduction or "none").astype(float)
    actual = fg.cross_entropy.grad(x, y, reduction=reduction)
    np.testing.assert_allclose(actual, expected, rtol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_reduced_loss_is_a_python_float(dtype, rng, reduction):
    x, y = data(rng, dtype)
    assert type(fg.cross_entropy(x, y, reduction=reduction)) is float
    assert type(both(x, y, reduction=reduction)[0]) is float
    assert type(fg.cross_entropy(x[:0], y[:0], reduction=reduction)) is float


def test_losses_by_row_have_the_shape_of_the_target_and_the_dtype_of_the_logits(dtype, rng):
    x = rng.normal(size=(2, 5, 3)).astype(dtype)
    each = fg.cross_entropy(x, np.zeros((2, 3), int), axis=1, reduction="none")
    assert each.shape == (2, 3)
    assert each.dtype == dtype


def test_mean_times_rows_is_the_sum(isa, dtype, rng):
    x, y = data(rng, dtype, 1000)
    mean, total = (fg.cross_entropy(x, y, reduction=r) for r in ("mean", "sum"))
    assert mean == total / 1000


# ---- shapes -------------------------------------------------------------------------------------


@reductions
def test_one_row_and_a_scalar_target(isa, dtype, rng, reduction):
    x = rng.normal(size=7).astype(dtype)
    value, grad = both(x, 3, reduction=reduction)
    assert np.shape(value) == ()
    assert grad.shape == (7,)
    batch = both(x[None], [3], reduction="sum")
    assert dtype(value) == dtype(batch[0])
    np.testing.assert_array_equal(grad, batch[1][0])


@reductions
def test_0d_logits_are_one_class(isa, dtype, reduction):
    value, grad = both(dtype(1.5), 0, reduction=reduction)
    assert value == 0
    assert np.shape(grad) == ()
    assert grad == 0


@pytest.mark.parametrize("axis", range(-4, 4))
def test_any_class_axis(isa, dtype, rng, axis):
    x = rng.normal(size=(2, 5, 3, 4)).astype(dtype)
    y = rng.integers(0, x.shape[axis], np.delete(x.shape, axis).tolist())
    value, grad = both(x, y, axis=axis)
    moved = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis]).copy()
    less, expected = both(moved, y.ravel())
    eps = float(np.finfo(dtype).eps)
    assert value == pytest.approx(less, rel=8 * eps)
    moved_grad = np.moveaxis(grad, axis, -1).reshape(moved.shape)
    np.testing.assert_allclose(moved_grad, expected, rtol=16 * eps)


@pytest.mark.parametrize("classes", [1, 2, 3, 48, 49, 192, 193, 70000])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_position_of_the_target(isa, dtype, rng, classes, order):
    """The target's term is left out of the sum: first, last, inside a vector, in the tail."""
    rows = sorted({*range(min(classes, 40)), *range(max(0, classes - 40), classes)})
    x = np.zeros((len(rows), classes), dtype, order=order)
    x[np.arange(len(rows)), rows] = 3
    value, grad = both(x, rows, reduction="none")
    others = (classes - 1) * math.exp(-3)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(value, math.log1p(others), rtol=4 * eps)
    at = grad[np.arange(len(rows)), rows]
    np.testing.assert_allclose(at, -others / (1 + others), rtol=8 * eps)
    grad[np.arange(len(rows)), rows] = 0
    np.testing.assert_allclose(grad.sum(-1, np.longdouble).astype(dtype), -at, rtol=12 * eps)


def test_one_class_costs_nothing(isa, dtype):
    value, grad = both(np.array([[3], [-7], [1e30]], dtype), [0, 0, 0], reduction="none")
    assert (value == 0).all()
    assert (grad == 0).all()


def test_integer_logits_become_float64():
    value, grad = both(np.array([[0, 1, 2]]), [1])
    assert_same((value, grad), both(np.array([[0.0, 1, 2]]), [1]))
    assert grad.dtype == np.float64


# ---- value, gradient and out --------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("classes", [3, 60, 250])
@reductions
def test_value_and_gradient_at_once_are_those_of_each(isa, dtype, rng, classes, order, reduction):
    x, y = data(rng, dtype, 40, classes)
    x = np.asarray(x, order=order)
    for marked in (y, np.where(y == 1, -100, y)):
        value, grad = both(x, marked, reduction=reduction)
        np.testing.assert_array_equal(value, fg.cross_entropy(x, marked, reduction=reduction))
        np.testing.assert_array_equal(grad, fg.cross_entropy.grad(x, marked, reduction=reduction))


@reductions
def test_out_is_filled_and_returned(isa, dtype, rng, reduction):
    x, y = data(rng, dtype)
    value, grad = both(x, y, reduction=reduction)
    out = np.full_like(x, 9)
    again, result = both(x, y, reduction=reduction, out=out)
    assert result is out
    assert_same((again, out), (value, grad))
    out[:] = 9
    assert fg.cross_entropy.grad(x, y, reduction=reduction, out=out) is out
    np.testing.assert_array_equal(out, grad)


@pytest.mark.parametrize("step", [slice(None, None, 2), slice(None, None, -1)], ids=str)
def test_losses_of_strided_logits(isa, dtype, rng, step):
    x, y = data(rng, dtype, 46)
    np.testing.assert_array_equal(
        fg.cross_entropy(x[step], y[step], reduction="none"),
        fg.cross_entropy(x[step].copy(), y[step].copy(), reduction="none"),
    )


def test_arguments_are_left_alone(isa, dtype, rng):
    x, y = data(rng, dtype)
    before = x.tobytes(), y.tobytes()
    both(x, y)
    fg.cross_entropy(x, y, reduction="none")
    assert (x.tobytes(), y.tobytes()) == before


def test_gradient_of_a_row_sums_to_zero(isa, dtype, rng):
    """Each of the C numbers is within 8 eps of its own size."""
    x, y = data(rng, dtype, 300, 100)
    grad = fg.cross_entropy.grad(x, y, reduction="sum").astype(np.longdouble)
    assert (np.abs(grad.sum(-1)) <= 8 * np.finfo(dtype).eps * np.abs(grad).sum(-1)).all()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradient_is_the_slope_of_the_value(isa, rng, reduction):
    x, y = data(rng, np.float64)
    v, h = rng.normal(size=x.shape), 1e-5
    f = [fg.cross_entropy(x + s * h * v, y, reduction=reduction) for s in (-1, 1)]
    slope = (fg.cross_entropy.grad(x, y, reduction=reduction) * v).sum()
    assert (f[1] - f[0]) / (2 * h) == pytest.approx(slope, rel=1e-8)


def test_agrees_with_scikit_learn(rng):
    from sklearn._loss import HalfMultinomialLoss

    x, y = data(rng, np.float64, 50, 4)
    peer = HalfMultinomialLoss(n_classes=4)
    loss, grad = peer.loss_gradient(y_true=y.astype(float), raw_prediction=x)
    value, ours = both(x, y, reduction="none")
    np.testing.assert_allclose(value, loss, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(ours, grad, rtol=1e-12, atol=1e-14)
