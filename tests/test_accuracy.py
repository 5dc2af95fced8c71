"""The accuracy bars of NUMERICS.md section 1, on every instruction set.

The oracle is `fastgrad._reference` in long double, and mpmath for float64 where rows are few.
References are computed once for all instruction sets. "C" is a contiguous class axis, "F" a strided
one: with the numbers of classes below, every style of kernel is met.
"""

from __future__ import annotations

import functools

import mpmath
import numpy as np
import pytest

import fastgrad as fg
from fastgrad import _reference as ref

LD = np.longdouble
TYPES = {"f32": np.float32, "f64": np.float64}
EPS = {np.float32: 2.0**-23, np.float64: 2.0**-52}

# name: rows, classes, standard deviation
NORMAL = {
    "C2": (20000, 2, 1),
    "C10": (10000, 10, 3),
    "C40": (1000, 40, 3),
    "C60": (1000, 60, 5),
    "C100": (500, 100, 10),
    "C200": (500, 200, 10),
    "C1000": (200, 1000, 20),
    "C32000": (6, 32000, 3),
    "C1000000": (1, 1_000_000, 1),
}
OFFSETS = {
    np.float32: [1e4, -1e4, 1e6, -1e6, 1e8, -1e8, 1e30, -1e30, 3e38, -3e38],
    np.float64: [1e4, -1e4, 1e6, -1e6, 1e8, -1e8, 1e12, 1e13, -1e16, 1e30, -1e30, 1e300, -1.7e308],
}


@functools.cache
def normal(name, dtype):
    rows, classes, sigma = NORMAL[name]
    rng = np.random.default_rng(20240614 + classes)
    return rng.normal(0, sigma, (rows, classes)).astype(dtype), rng.integers(0, classes, rows)


@functools.cache
def exact(function, name, dtype, *args):
    x, y = normal(name, dtype)
    if function.startswith("cross_entropy"):
        return getattr(ref, function)(x, y, reduction=args[0])
    return getattr(ref, function)(x)


layouts = pytest.mark.parametrize("layout", ["C", "F"])


def test_measures_are_not_blind(ulps):
    one = np.array([1.0], np.float32)
    assert ulps(np.nextafter(one, 2, dtype=np.float32), LD(1) + np.zeros(1)) == 1


# ---- softmax ------------------------------------------------------------------------------------


@layouts
@pytest.mark.parametrize("name", NORMAL)
def test_softmax_is_within_two_and_a_half_ulp(isa, dtype, name, layout, assert_ulps):
    x, _ = normal(name, dtype)
    assert_ulps(fg.softmax(np.asarray(x, order=layout)), exact("softmax", name, dtype), 2.5)


@layouts
@pytest.mark.parametrize("name", ["C10", "C40", "C60", "C100", "C1000", "C32000"])
def test_softmax_is_within_half_an_ulp_on_average(isa, dtype, name, layout, ulps):
    x, _ = normal(name, dtype)
    error = ulps(fg.softmax(np.asarray(x, order=layout)), exact("softmax", name, dtype))
    assert error.mean() <= 0.5


def offset_rows(dtype, classes):
    """N(0, 3^2), and two values one step apart, at each offset; large ones leave few distinct."""
    rng = np.random.default_rng(classes)
    rows = []
    for offset in OFFSETS[dtype]:
        step = max(np.spacing(dtype(abs(offset))), dtype(1e-3))
        noise = rng.normal(0, 3, (3, classes))
        tied = np.where(rng.random((3, classes)) < 0.5, 0.0, -float(step))
        rows += [noise, tied + 0.0]
        for r in rows[-2:]:
            with np.errstate(over="ignore"):
                r += offset
    biggest = float(np.finfo(dtype).max)
    return np.clip(np.concatenate(rows), -biggest, biggest).astype(dtype)


@functools.cache
def exact_offset(function, dtype, classes):
    return getattr(ref, function)(offset_rows(dtype, classes))


@layouts
@pytest.mark.parametrize("classes", [10, 60, 100, 300])
def test_softmax_of_rows_far_from_zero(isa, dtype, classes, layout, assert_ulps):
    x = np.asarray(offset_rows(dtype, classes), order=layout)
    assert_ulps(fg.softmax(x), exact_offset("softmax", dtype, classes), 2.5)


@layouts
@pytest.mark.parametrize("classes", [10, 60, 100, 300])
def test_log_softmax_of_rows_far_from_zero(isa, dtype, classes, layout, assert_ulps):
    x = np.asarray(offset_rows(dtype, classes), order=layout)
    assert_ulps(fg.log_softmax(x), exact_offset("log_softmax", dtype, classes), 4)


@layouts
@pytest.mark.parametrize("classes", [10, 60, 100, 300])
def test_logsumexp_of_rows_far_from_zero(isa, dtype, classes, layout, assert_ulps):
    x = np.asarray(offset_rows(dtype, classes), order=layout)
    log = exact_offset("logsumexp", dtype, classes)
    scale = np.maximum(np.abs(log), np.abs(x.max(-1)))
    actual = fg.logsumexp(x)
    fits = np.abs(log) <= np.finfo(dtype).max
    assert_ulps(actual[fits], log[fits], 2, scale[fits])


@layouts
@pytest.mark.parametrize("classes", [10, 60, 100, 300])
def test_loss_of_rows_far_from_zero(isa, dtype, classes, layout, assert_ulps):
    x = np.asarray(offset_rows(dtype, classes), order=layout)
    y = np.arange(len(x)) % classes
    actual = fg.cross_entropy(x, y, reduction="none")
    assert_ulps(actual, ref.cross_entropy(x, y, reduction="none"), 4)


@layouts
@pytest.mark.parametrize("classes", [10, 60, 100, 300])
def test_masked_rows_far_from_zero(isa, dtype, classes, layout, assert_ulps):
    x = np.asarray(offset_rows(dtype, classes), order=layout)
    where = np.random.default_rng(classes).random(x.shape) < 0.8
    where[:, :2] = [True, False]
    assert_ulps(fg.softmax(x, where=where), ref.softmax(x, where=where), 2.5)
    actual, log = fg.log_softmax(x, where=where), ref.log_softmax(x, where=where)
    assert (actual[~where] == -np.inf).all()
    assert_ulps(actual[where], log[where], 4)


def wide_rows(dtype):
    """Differences up to the whole range: what underflows, and what nearly does."""
    far = {np.float32: 104.0, np.float64: 746.0}[dtype]
    rng = np.random.default_rng(5)
    x = -rng.random((300, 33)) * far
    x[np.arange(300), rng.integers(0, 33, 300)] = 0
    offsets = rng.choice([0, 1e3, -1e5, 1e7], 300)[:, None]
    return (x + offsets).astype(dtype)


@layouts
@pytest.mark.parametrize("repeat", [1, 7])
def test_subnormal_results_are_rounded_once(isa, dtype, layout, repeat, ulps):
    """Within 1 ulp of a subnormal number, and within 2.5 where the normal ones begin."""
    x = np.asarray(np.tile(wide_rows(dtype), (1, repeat)), order=layout)
    p, tiny = ref.softmax(x), np.finfo(dtype).tiny
    subnormal = p < tiny
    assert subnormal.sum() > 100
    error = ulps(fg.softmax(x), p)[subnormal]
    assert (error <= 1 + 1.5 * (p[subnormal] / tiny)).all(), error.max()


@layouts
@pytest.mark.parametrize("repeat", [1, 7])
def test_softmax_over_the_whole_range(isa, dtype, layout, repeat, assert_ulps):
    x = np.asarray(np.tile(wide_rows(dtype), (1, repeat)), order=layout)
    assert_ulps(fg.softmax(x), ref.softmax(x), 2.5)


@layouts
@pytest.mark.parametrize("classes", [10, 47, 100, 191, 1000, 100_000])
@pytest.mark.parametrize("top", [0.5, 3, 9, 17, 30])
def test_one_dominant_term_and_many_equal_ones(isa, dtype, classes, top, layout, assert_ulps):
    x = np.zeros((2, classes), dtype)
    x[0, classes // 2] = x[1, -1] = top
    x = np.asarray(x, order=layout)
    others = LD(classes - 1) * np.exp(-LD(dtype(top)))  # all relative to the largest
    p = np.exp(x.astype(LD) - x.max()) / (1 + others)
    assert_ulps(fg.softmax(x), p, 2.5)
    assert_ulps(fg.log_softmax(x), x.astype(LD) - x.max() - np.log1p(others), 4)
    log = x.max(-1) + np.log1p(others)
    assert_ulps(fg.logsumexp(x), log, 2, np.maximum(log, top))
    y = np.array([classes // 2, classes - 1])
    assert_ulps(fg.cross_entropy(x, y, reduction="none"), np.log1p(others) + LD([0, 0]), 4)


@layouts
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 48, 49, 100, 192, 193, 1000, 65537])
def test_uniform_rows(isa, dtype, classes, layout, assert_ulps):
    x = np.asarray(np.tile(dtype([[0.1], [-7.3], [1e5]]), classes), order=layout)
    assert_ulps(fg.softmax(x), 1 / LD(classes) + np.zeros(x.shape, LD), 2.5)
    assert_ulps(fg.log_softmax(x), -np.log(LD(classes)) + np.zeros(x.shape, LD), 4)


@pytest.mark.parametrize("temperature", [1e-3, 0.1, 0.7, 3.0, 1e3, 1e30])
@pytest.mark.parametrize("name", ["C10", "C100", "C200"])
@layouts
def test_temperature_costs_no_accuracy(isa, dtype, name, layout, temperature, assert_ulps):
    x = np.asarray(normal(name, dtype)[0][:50], order=layout)
    exactly = exact_temperature(name, dtype, temperature)
    assert_ulps(fg.softmax(x, temperature=temperature), exactly, 2.5)


@functools.cache
def exact_temperature(name, dtype, temperature):
    return ref.softmax(normal(name, dtype)[0][:50], temperature=temperature)


@pytest.mark.parametrize("exponent", [-30, -29, -19, -7, 7, 19, 29, 30])
def test_any_temperature_in_range(isa, dtype, exponent, assert_ulps):
    """The whole range that is documented; near 0 the winner takes all."""
    x = np.array([0, 1e-3, 1, -np.inf], dtype)
    t = float(f"1e{exponent}")
    assert_ulps(fg.softmax(x, temperature=t), ref.softmax(x, temperature=t), 2.5)


@pytest.mark.parametrize("temperature", [0.1, 0.7, 3.0, 1e3])
@pytest.mark.parametrize("name", ["C10", "C100", "C200"])
@layouts
def test_log_softmax_with_temperature(isa, dtype, name, layout, temperature, assert_ulps):
    x = np.asarray(normal(name, dtype)[0][:50], order=layout)
    exactly = ref.log_softmax(x, temperature=temperature)
    assert_ulps(fg.log_softmax(x, temperature=temperature), exactly, 4)


@pytest.mark.parametrize("temperature", [0.1, 0.7, 3.0, 1e3])
@pytest.mark.parametrize("name", ["C10", "C100", "C200"])
@layouts
def test_logsumexp_with_temperature(isa, dtype, name, layout, temperature, assert_ulps):
    x = np.asarray(normal(name, dtype)[0][:50], order=layout)
    log = ref.logsumexp(x, temperature=temperature)
    scale = np.maximum(np.abs(log), np.abs(x.max(-1) / LD(temperature)))
    assert_ulps(fg.logsumexp(x, temperature=temperature), log, 2, scale)


# ---- logarithms ---------------------------------------------------------------------------------


@layouts
@pytest.mark.parametrize("name", NORMAL)
def test_logsumexp_is_within_two_ulp_of_its_parts(isa, dtype, name, layout, assert_ulps):
    x, _ = normal(name, dtype)
    log = exact("logsumexp", name, dtype)
    scale = np.maximum(np.abs(log), np.abs(x.max(-1)))
    assert_ulps(fg.logsumexp(np.asarray(x, order=layout)), log, 2, scale)


@layouts
@pytest.mark.parametrize("name", NORMAL)
def test_log_softmax_is_within_four_ulp(isa, dtype, name, layout, assert_ulps):
    x, _ = normal(name, dtype)
    actual = fg.log_softmax(np.asarray(x, order=layout))
    assert_ulps(actual, exact("log_softmax", name, dtype), 4)


@pytest.mark.parametrize("padding", [0, 60, 300])
def test_logsumexp_near_zero_keeps_its_digits(isa, dtype, padding):
    x = np.array([0, -40] + [-np.inf] * padding, dtype)
    expected = float(mpmath.log1p(mpmath.exp(-40)))
    assert abs(float(fg.logsumexp(x)) - expected) <= 4 * EPS[dtype] * expected


@pytest.mark.parametrize("padding", [0, 60, 300])
def test_log_softmax_of_the_winner_keeps_its_digits(isa, dtype, padding):
    x = np.array([0, -40] + [-np.inf] * padding, dtype)
    expected = -float(mpmath.log1p(mpmath.exp(-40)))
    assert abs(float(fg.log_softmax(x)[0]) - expected) <= 4 * EPS[dtype] * -expected


# ---- cross-entropy ------------------------------------------------------------------------------


def confident_rows(dtype, classes):
    """Margins until the true loss leaves the normal range, on offsets up to 1e6."""
    far = {np.float32: 86.0, np.float64: 700.0}[dtype]
    rng = np.random.default_rng(classes)
    margins = np.concatenate([np.linspace(0.5, 45, 60), np.linspace(45, far, 40)])
    x = rng.normal(0, 1, (len(margins), classes))
    y = rng.integers(0, classes, len(margins))
    rows = np.arange(len(margins))
    x[rows, y] = -np.inf
    x -= x.max(-1, keepdims=True) + margins[:, None]
    x[rows, y] = 0
    x += rng.choice([0, -3.7, 1e3, 1e6], len(margins))[:, None]
    return x.astype(dtype), y


@layouts
@pytest.mark.parametrize("classes", [2, 10, 60, 200, 3000])
def test_loss_of_a_confident_row_keeps_full_relative_accuracy(isa, dtype, classes, layout):
    x, y = confident_rows(dtype, classes)
    expected = ref.cross_entropy(x, y, reduction="none")
    assert (expected > 0).all()
    assert expected.min() < 1e-17
    actual = fg.cross_entropy(np.asarray(x, order=layout), y, reduction="none")
    assert np.abs(actual / expected - 1).max() <= 4 * EPS[dtype]


@layouts
@pytest.mark.parametrize("classes", [2, 10, 60, 200, 3000])
def test_gradient_at_the_target_of_a_confident_row(isa, dtype, classes, layout):
    x, y = confident_rows(dtype, classes)
    rows = np.arange(len(y))
    expected = ref.cross_entropy_grad(x, y, reduction="sum")[rows, y]
    actual = fg.cross_entropy.grad(np.asarray(x, order=layout), y, reduction="sum")[rows, y]
    assert np.abs(actual / expected - 1).max() <= 8 * EPS[dtype]


@layouts
@pytest.mark.parametrize("name", NORMAL)
def test_loss_is_within_four_ulp(isa, dtype, name, layout, assert_ulps):
    x, y = normal(name, dtype)
    actual = fg.cross_entropy(np.asarray(x, order=layout), y, reduction="none")
    assert_ulps(actual, exact("cross_entropy", name, dtype, "none"), 4)


@layouts
@pytest.mark.parametrize("name", NORMAL)
def test_gradient_is_as_good_as_softmax_beside_the_target(isa, dtype, name, layout, assert_ulps):
    x, y = normal(name, dtype)
    rows = np.arange(len(y))
    actual = fg.cross_entropy.grad(np.asarray(x, order=layout), y, reduction="sum")
    expected = exact("cross_entropy_grad", name, dtype, "sum").copy()
    actual[rows, y] = expected[rows, y] = 0
    assert_ulps(actual, expected, 2.5)


@layouts
@pytest.mark.parametrize("name", NORMAL)
def test_gradient_at_the_target_is_within_eight_eps(isa, dtype, name, layout):
    x, y = normal(name, dtype)
    rows = np.arange(len(y))
    actual = fg.cross_entropy.grad(np.asarray(x, order=layout), y, reduction="sum")[rows, y]
    expected = exact("cross_entropy_grad", name, dtype, "sum")[rows, y]
    assert np.abs(actual / expected - 1).max() <= 8 * EPS[dtype]


@layouts
def test_mean_divides_the_gradient_without_losing_digits(isa, dtype, layout, assert_ulps):
    """1/N is two words: 3 ulp instead of 2.5 leaves one more half ulp for the product."""
    x, y = normal("C10", dtype)
    x, y = x[:777], y[:777]
    expected = ref.cross_entropy_grad(x, y).copy()
    actual = fg.cross_entropy.grad(np.asarray(x, order=layout), y)
    rows = np.arange(len(y))
    actual[rows, y] = expected[rows, y] = 0
    assert_ulps(actual, expected, 3)


@layouts
@pytest.mark.parametrize("classes", [3, 60, 200])
@pytest.mark.parametrize("offset", [0, 1e6])
def test_loss_of_a_hopeless_row(isa, dtype, classes, offset, layout, assert_ulps):
    """The target's own exponential underflows: the loss is the gap and a logarithm."""
    rng = np.random.default_rng(classes)
    x = rng.normal(0, 3, (200, classes))
    y = rng.integers(0, classes, 200)
    x[np.arange(200), y] = -np.concatenate([np.linspace(20, 120, 100), np.geomspace(121, 1e5, 100)])
    x = np.asarray((x + offset).astype(dtype), order=layout)
    actual = fg.cross_entropy(x, y, reduction="none")
    assert_ulps(actual, ref.cross_entropy(x, y, reduction="none"), 4)


@pytest.mark.parametrize("rows", [1, 777, 10000])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_reduced_loss_is_accumulated_in_double(isa, dtype, rows, reduction):
    """The rows' own errors average out; 2 eps of the dtype is more than one row's worst case."""
    x, y = normal("C10", dtype)
    total = exact("cross_entropy", "C10", dtype, "none")[:rows].sum()
    expected = float(total / rows if reduction == "mean" else total)
    actual = fg.cross_entropy(x[:rows], y[:rows], reduction=reduction)
    assert type(actual) is float
    assert abs(actual / expected - 1) <= 2 * EPS[dtype]


def test_sum_of_a_million_losses_has_the_digits_of_a_double(isa, dtype):
    x = np.zeros((2**20 + 3, 2), dtype)
    x[:, 0] = 1
    y = np.zeros(len(x), np.int64)
    y[::1000] = 1
    each = fg.cross_entropy(x[:2], [0, 1], reduction="none").astype(LD)
    n = len(x[::1000])
    expected = float(each[0] * (len(x) - n) + each[1] * n)
    assert abs(fg.cross_entropy(x, y, reduction="sum") / expected - 1) <= 2 * EPS[np.float64]


# ---- mpmath -------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 10, 60, 200])
def test_float64_against_mpmath(isa, classes):
    """The long double reference is itself rounded; here nothing is."""
    eps = EPS[np.float64]
    x = np.random.default_rng(classes).normal(0, 10, (3, classes))
    for order in "CF":
        a = np.asarray(x, order=order)
        p, loss = fg.softmax(a), fg.cross_entropy(a, [0, 1, 1], reduction="none")
        for i, y in enumerate([0, 1, 1]):
            with mpmath.workdps(50):
                e = [mpmath.exp(mpmath.mpf(v)) for v in x[i].tolist()]
                total = mpmath.fsum(e)
                for c in range(classes):
                    assert abs(mpmath.mpf(float(p[i, c])) * total / e[c] - 1) <= 2.5 * eps
                assert abs(mpmath.mpf(float(loss[i])) / mpmath.log(total / e[y]) - 1) <= 4 * eps
