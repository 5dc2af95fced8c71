"""Properties that hold for any input (landscape.md section 5.4), searched for by hypothesis."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastgrad as fg
from fastgrad import _reference as ref

# derandomize: the same examples in every run. Shapes reach every style of kernel.
settings.register_profile("fastgrad", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("fastgrad")

dtypes = st.sampled_from([np.float32, np.float64])
orders = st.sampled_from(["C", "F"])


@st.composite
def logits(draw, most=30.0, elements=None):
    dtype = draw(dtypes)
    shape = draw(st.tuples(st.integers(1, 20), st.one_of(st.integers(1, 12), st.integers(45, 210))))
    if elements is None:
        elements = st.floats(-most, most, width=32)
    x = draw(hnp.arrays(dtype, shape, elements=elements, fill=st.floats(-3, 3, width=32)))
    return np.asarray(x, order=draw(orders))


@st.composite
def batches(draw):
    x = draw(logits())
    y = draw(hnp.arrays(np.int64, len(x), elements=st.integers(0, x.shape[1] - 1)))
    return x, y


def eps(x):
    return float(np.finfo(x.dtype).eps)


def ulp(y):
    return np.spacing(np.abs(y))


@given(logits())
def test_a_softmax_row_sums_to_one(x):
    """Every term is within 2.5 ulp, hence 2.5 eps of its share of 1."""
    y = fg.softmax(x).astype(np.longdouble)
    assert (np.abs(y.sum(-1) - 1) <= 2.5 * eps(x)).all()


@given(logits(), st.integers(-2000, 2000))
def test_a_common_integer_added_changes_little(x, shift):
    """The sum is rounded; where it is not, both are within 2.5 ulp of the same."""
    x = np.round(x)
    y, shifted = fg.softmax(x), fg.softmax(x + x.dtype.type(shift))
    assert (np.abs(y - shifted) <= 5 * ulp(y)).all()


@given(logits(), st.data())
def test_logsumexp_is_monotone(x, data):
    """Up to the bar of each value: 2 ulp of the larger of its parts."""
    i, j = (data.draw(st.integers(0, n - 1)) for n in x.shape)
    more = x.copy(order="K")
    more[i, j] += data.draw(st.floats(0, 10, width=32))
    low, high = fg.logsumexp(x)[i], fg.logsumexp(more)[i]
    size = max(abs(low), abs(high), np.abs(x[i]).max(), np.abs(more[i]).max())
    assert high >= low - 4 * ulp(size)


@given(logits())
def test_logsumexp_lies_between_max_and_max_plus_log_n(x):
    log, top = fg.logsumexp(x).astype(float), x.max(-1).astype(float)
    slack = 2 * eps(x) * np.maximum(np.abs(log), np.abs(top))
    assert (log >= top - slack).all()
    assert (log <= top + np.log(x.shape[1]) + slack).all()


@given(logits(), st.data())
def test_classes_may_be_permuted(x, data):
    order = np.array(data.draw(st.permutations(range(x.shape[1]))))
    y, permuted = fg.softmax(x), fg.softmax(x[:, order])
    assert (np.abs(y[:, order] - permuted) <= 5 * ulp(permuted)).all()


@given(logits(), st.data())
def test_rows_may_be_permuted(x, data):
    order = np.array(data.draw(st.permutations(range(len(x)))))
    layout = "C" if x.flags.c_contiguous else "F"
    permuted = np.asarray(x[order], order=layout)
    np.testing.assert_array_equal(fg.softmax(permuted), fg.softmax(x)[order])


@given(logits())
def test_exponential_of_log_softmax_is_softmax(x):
    """An error of 4 eps |log p| in the exponent is a relative one of the same size."""
    log, p = fg.log_softmax(x).astype(np.longdouble), fg.softmax(x)
    bar = (4 * np.abs(log) + 4) * eps(x) * p + np.finfo(x.dtype).smallest_subnormal
    assert (np.abs(np.exp(log) - p) <= bar).all()


@given(batches(), st.data())
def test_ignored_is_removed(batch, data):
    x, y = batch
    keep = data.draw(hnp.arrays(bool, len(y)))
    value, grad = fg.cross_entropy.value_and_grad(x, np.where(keep, y, -100), reduction="sum")
    less, expected = fg.cross_entropy.value_and_grad(
        np.asarray(x[keep], order="C" if x.flags.c_contiguous else "F"), y[keep], reduction="sum"
    )
    assert abs(value - less) <= 1e-14 * abs(less)
    assert (np.abs(grad[keep] - expected) <= 16 * ulp(expected)).all()
    assert (grad[~keep] == 0).all()


@given(batches())
def test_mean_times_rows_is_the_sum(batch):
    x, y = batch
    mean, total = (fg.cross_entropy(x, y, reduction=r) for r in ("mean", "sum"))
    assert mean == total / len(y)


@given(batches(), st.data())
def test_the_sum_over_a_batch_is_that_of_its_chunks(batch, data):
    x, y = batch
    cut = data.draw(st.integers(0, len(y)))
    parts = sum(fg.cross_entropy(x[s], y[s], reduction="sum") for s in (np.s_[:cut], np.s_[cut:]))
    whole = fg.cross_entropy(x, y, reduction="sum")
    assert abs(parts - whole) <= 8 * eps(x) * whole


@given(batches())
def test_loss_is_never_negative(batch):
    assert (fg.cross_entropy(*batch, reduction="none") >= 0).all()


@given(batches())
def test_loss_is_minus_log_softmax_at_the_target(batch):
    x, y = batch
    loss = fg.cross_entropy(x, y, reduction="none")
    log = fg.log_softmax(x)[np.arange(len(y)), y]
    assert (np.abs(loss + log) <= 8 * ulp(loss)).all()


@given(logits(elements=st.floats(width=32)), st.data())
def test_nan_and_infinity_stay_in_their_rows(x, data):
    """Whatever the rows hold, each has the bits that it has alone, and nothing warns."""
    y = data.draw(hnp.arrays(np.int64, len(x), elements=st.integers(0, x.shape[1] - 1)))
    p, loss = fg.softmax(x), fg.cross_entropy(x, y, reduction="none")
    for i in range(len(x)):
        np.testing.assert_array_equal(p[i : i + 1], fg.softmax(x[i : i + 1]))
        np.testing.assert_array_equal(
            loss[i : i + 1], fg.cross_entropy(x[i : i + 1], y[i : i + 1], reduction="none")
        )


@given(logits(elements=st.floats(width=32)))
def test_special_values_are_where_the_reference_has_them(x):
    for name in ("softmax", "log_softmax", "logsumexp"):
        actual, exact = getattr(fg, name)(x), getattr(ref, name)(x)
        np.testing.assert_array_equal(np.isnan(actual), np.isnan(exact), name)
        np.testing.assert_array_equal(actual == -np.inf, exact.astype(x.dtype) == -np.inf, name)
        np.testing.assert_array_equal(actual == np.inf, exact.astype(x.dtype) == np.inf, name)


@given(logits(), st.data())
def test_dropping_elements_is_deleting_them(x, data):
    keep = data.draw(hnp.arrays(bool, x.shape[1]))
    p = fg.softmax(x, where=keep)
    less = fg.softmax(x[:, keep])
    assert (np.abs(p[:, keep] - less) <= 5 * ulp(less)).all()
    assert (p[:, ~keep] == 0).all()


@given(logits(), st.data())
def test_derivatives_are_linear(x, data):
    g = data.draw(hnp.arrays(x.dtype, x.shape, elements=st.floats(-4, 4, width=32)))
    for f in (fg.softmax.vjp, fg.softmax.jvp, fg.log_softmax.vjp, fg.log_softmax.jvp):
        # Doubling is exact, but for results below the normal range: these lose bits when halved.
        tiny = 8 * np.finfo(x.dtype).smallest_subnormal
        np.testing.assert_allclose(f(x, 2 * g), 2 * f(x, g), rtol=0, atol=tiny)


@given(logits(), st.data())
def test_the_hessian_of_logsumexp_is_positive_semidefinite(x, data):
    v = data.draw(hnp.arrays(x.dtype, x.shape, elements=st.floats(-4, 4, width=32)))
    curvature = (v * fg.softmax.jvp(x, v).astype(np.longdouble)).sum(-1)
    largest = np.abs(v).max(-1).astype(np.longdouble)  # of float32 its square may be 0
    tiny = v.shape[-1] * np.finfo(x.dtype).smallest_subnormal
    assert (curvature >= -largest * (8 * eps(x) * largest + tiny)).all()


@given(batches())
def test_arguments_are_left_alone(batch):
    x, y = batch
    before = x.tobytes(), y.tobytes()
    fg.softmax(x)
    fg.log_softmax.vjp(x, x)
    fg.logsumexp.jvp(x, x)
    fg.cross_entropy.value_and_grad(x, y)
    assert (x.tobytes(), y.tobytes()) == before


def test_more_than_two_to_the_sixteen_classes(isa, dtype, rng, assert_ulps):
    x = rng.normal(0, 3, (2, 2**16 + 5)).astype(dtype)
    assert_ulps(fg.softmax(x), ref.softmax(x), 2.5)


def test_more_elements_than_32_bits_can_count():
    """2^31 + elements that share one row's memory: offsets do not overflow."""
    row = np.linspace(-3, 3, 1 << 15).astype(np.float32)
    x = np.broadcast_to(row, ((1 << 16) + 1, row.size))
    out = fg.logsumexp(x)
    assert (out == out[0]).all()


@pytest.mark.parametrize("size", [1e-320, 1e-300, 1e300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["cross_entropy", "multiclass_hinge", "binary", "hinge", "linear"])
def test_a_mean_does_not_depend_on_the_size_of_weights(name, dtype, size):
    """A power of two changes no bit, however near the ends of the range."""
    size = float(dtype(2.0 ** np.round(np.log2(size) * (1 if dtype is np.float64 else 0.12))))
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 4)).astype(dtype), rng.integers(0, 4, 6)
    s = rng.integers(1, 4, 6).astype(dtype)
    kinds = {
        "cross_entropy": lambda s: fg.cross_entropy.value_and_grad(x, y, sample_weight=s),
        "multiclass_hinge": lambda s: fg.multiclass_hinge.value_and_grad(x, y, sample_weight=s),
        "binary": lambda s: fg.binary_cross_entropy.value_and_grad(x[:, 0], y > 1, sample_weight=s),
        "hinge": lambda s: fg.hinge.value_and_grad(x[:, 0], y > 1, sample_weight=s),
        "linear": lambda s: fg.linear_cross_entropy.value_and_grad(
            x, x[:4], y, sample_weight=s, wrt=("W",)
        ),
    }
    value, grad = kinds[name](s)
    scaled, also = kinds[name](s * dtype(size))
    assert scaled == pytest.approx(value, rel=1e-15)
    np.testing.assert_allclose(also, grad, rtol=4 * np.finfo(dtype).eps)
