"""The slow twin itself, against mpmath, hand values and the table of special values."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import mpmath
import numpy as np
import pytest
from mpmath import mp, mpf

from fastgrad import _reference as ref

EPS = float(np.finfo(np.float64).eps)
INF, NAN = np.inf, np.nan

# The twin computes in long double. Where that has 64 bits or more, its error is a few 2**-64 times
# the number of terms' logarithm: under a tenth of EPS, which is what an oracle for float64 needs.
# Where it is a double, subtracting the maximum alone costs up to |x - max| / 2 eps, here below 500.
TOLERANCE = 0.1 * EPS if np.finfo(np.longdouble).nmant > 60 else 1000 * EPS

# Values written by hand as float64 literals are themselves rounded: half an eps at most, and the
# cast of the twin's value to float64 may round the other way.
HAND = 1 * EPS

SEED = 20240614
# mean, standard deviation, length
ROWS = [
    (0.0, 1.0, 2),
    (0.0, 1.0, 7),
    (0.0, 3.0, 10),
    (0.0, 20.0, 12),
    (1e4, 3.0, 6),
    (-1e6, 3.0, 6),
    (1e8, 20.0, 6),
]
ROW_IDS = [f"N({mean:g},{std:g}^2)-C{length}" for mean, std, length in ROWS]
# So that its winner's complement and its loss lie far below EPS.
CONFIDENT = np.array([0.3, 41.0, -1.25, 2.0])

MASK = np.array([True, False, True, True])


@pytest.fixture(autouse=True)
def _digits() -> Iterator[None]:
    """Enough digits to write every formula naively.

    50 would not do: 1 - p of a winner that is 200 ahead needs 87 digits before the first right one.
    """
    with mp.workdps(300):
        yield


@pytest.fixture(autouse=True)
def _no_warning_and_no_signal() -> Iterator[None]:
    with np.errstate(all="raise"):
        yield


def rng() -> np.random.Generator:
    return np.random.default_rng(SEED)


def rows() -> list[np.ndarray]:
    draw = rng()
    drawn = [draw.normal(mean, std, length) for mean, std, length in ROWS for _ in range(3)]
    return [*drawn, CONFIDENT, np.array([0.0, 0.0, 0.0]), np.array([5.0])]


def row_name(row: np.ndarray) -> str:
    return np.array2string(row[:3], precision=4, separator=",").replace(" ", "")


# mpmath's side: the definitions, without any shift ------------------------------------------------


def exactly(value: Any) -> Any:
    """A float or long double as an mpf, without rounding."""
    mantissa, exponent = np.frexp(np.longdouble(value))
    high = float(mantissa)
    return mpmath.ldexp(mpf(high) + mpf(float(mantissa - high)), int(exponent))


def mp_row(row: Any) -> list[Any]:
    return [exactly(value) for value in row]


def mp_softmax(z: list[Any], temperature: float = 1.0) -> list[Any]:
    e = [mp.exp(value / mpf(temperature)) for value in z]
    return [value / mp.fsum(e) for value in e]


def mp_log_softmax(z: list[Any], temperature: float = 1.0) -> list[Any]:
    return [mp.log(p) for p in mp_softmax(z, temperature)]


def mp_log_softmax_at(i: int, temperature: float, z: list[Any]) -> Any:
    return mp_log_softmax(z, temperature)[i]


def mp_logsumexp(z: list[Any], temperature: float = 1.0, b: list[Any] | None = None) -> Any:
    factors = b or [1] * len(z)
    terms = [f * mp.exp(value / mpf(temperature)) for f, value in zip(factors, z, strict=True)]
    return mp.log(abs(mp.fsum(terms)))


def mp_cross_entropy_row(
    z: list[Any], t: list[Any], w: list[Any], s: Any, eps: Any, hard: bool
) -> Any:
    """The loss of NUMERICS.md section 4, as it is written there."""
    lse = mp_logsumexp(z)
    if hard:
        y = t.index(1)
        picked = s * w[y] * (1 - eps) * (lse - z[y])
        spread = [value * lse - value * x for value, x in zip(w, z, strict=True)]
        return picked + s * eps / len(z) * mp.fsum(spread)
    t = [(1 - eps) * value + eps / len(z) for value in t]
    mass = mp.fsum(a * c for a, c in zip(w, t, strict=True))
    return s * (mass * lse - mp.fsum(a * c * x for a, c, x in zip(w, t, z, strict=True)))


def mp_gradient(f: Callable[[list[Any]], Any], z: list[Any]) -> list[Any]:
    """Central differences; with 300 digits the truncation, h**2, is the only error."""
    h = mpf(10) ** -90

    def moved(i: int, step: Any) -> list[Any]:
        return [value + step if j == i else value for j, value in enumerate(z)]

    return [(f(moved(i, h)) - f(moved(i, -h))) / (2 * h) for i in range(len(z))]


def assert_close(
    actual: Any, expected: Any, *, scale: Any = None, tolerance: float = TOLERANCE
) -> None:
    """Each number to `tolerance` times itself, or times `scale` where that is what is possible."""
    actual = np.asarray(actual)
    expected = np.asarray(expected, dtype=object)
    scales = np.broadcast_to(
        abs(expected) if scale is None else np.asarray(scale, object), expected.shape
    )
    assert actual.dtype == np.longdouble
    assert actual.shape == expected.shape
    for index in np.ndindex(actual.shape):
        assert np.isfinite(actual[index]), f"at {index}: {actual[index]}"
        error = abs(exactly(actual[index]) - expected[index])
        assert error <= tolerance * scales[index], (
            f"at {index}: {actual[index]!r}, not {mp.nstr(expected[index], 22)}; "
            f"error {mp.nstr(error, 3)}"
        )


def assert_same(actual: Any, expected: Any) -> None:
    """Equal in value, with NaN equal to NaN, and already in long double."""
    assert np.asarray(actual).dtype == np.longdouble
    np.testing.assert_array_equal(np.asarray(actual), np.asarray(expected, np.longdouble))


# Against mpmath ----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
@pytest.mark.parametrize("row", rows(), ids=row_name)
class TestMapsAgainstMpmath:
    def test_softmax(self, row: np.ndarray, temperature: float) -> None:
        expected = mp_softmax(mp_row(row), temperature)
        assert_close(ref.softmax(row, temperature=temperature), expected)

    def test_log_softmax(self, row: np.ndarray, temperature: float) -> None:
        expected = mp_log_softmax(mp_row(row), temperature)
        assert_close(ref.log_softmax(row, temperature=temperature), expected)

    def test_logsumexp(self, row: np.ndarray, temperature: float) -> None:
        expected = mp_logsumexp(mp_row(row), temperature)
        # It may be the small difference of max x / T and a logarithm: hence the scale.
        scale = max(abs(expected), abs(mpf(float(row.max())) / mpf(temperature)))
        assert_close(ref.logsumexp(row, temperature=temperature), expected, scale=scale)

    def test_softmax_vjp_and_jvp(self, row: np.ndarray, temperature: float) -> None:
        v = rng().normal(0, 1, row.size)
        z, p = mp_row(row), mp_softmax(mp_row(row), temperature)
        vjp = mp_gradient(lambda z: mp.fdot(mp_softmax(z, temperature), mp_row(v)), z)
        # p_i sum_j p_j (v_i - v_j): its terms may cancel by chance, in any arithmetic.
        scale = [
            a
            / mpf(temperature)
            * mp.fsum(c * abs(exactly(v[i] - u)) for c, u in zip(p, v, strict=True))
            for i, a in enumerate(p)
        ]
        assert_close(ref.softmax_vjp(row, v, temperature=temperature), vjp, scale=scale)
        assert_close(ref.softmax_jvp(row, v, temperature=temperature), vjp, scale=scale)

    def test_log_softmax_vjp(self, row: np.ndarray, temperature: float) -> None:
        g = rng().normal(0, 1, row.size)
        z, p = mp_row(row), mp_softmax(mp_row(row), temperature)
        expected = mp_gradient(lambda z: mp.fdot(mp_log_softmax(z, temperature), mp_row(g)), z)
        scale = [
            (abs(exactly(g[i])) * (1 - a) + a * mp.fsum(abs(exactly(u)) for u in np.delete(g, i)))
            / mpf(temperature)
            for i, a in enumerate(p)
        ]
        assert_close(ref.log_softmax_vjp(row, g, temperature=temperature), expected, scale=scale)

    def test_log_softmax_jvp(self, row: np.ndarray, temperature: float) -> None:
        v = rng().normal(0, 1, row.size)
        z, p = mp_row(row), mp_softmax(mp_row(row), temperature)
        jacobian = [
            mp_gradient(partial(mp_log_softmax_at, i, temperature), z) for i in range(row.size)
        ]
        expected = [mp.fdot(line, mp_row(v)) for line in jacobian]
        scale = [
            mp.fsum(c * abs(exactly(a - u)) for c, u in zip(p, v, strict=True)) / mpf(temperature)
            for a in v
        ]
        assert_close(ref.log_softmax_jvp(row, v, temperature=temperature), expected, scale=scale)

    def test_logsumexp_vjp_and_jvp(self, row: np.ndarray, temperature: float) -> None:
        v = rng().normal(0, 1, row.size)
        gradient = mp_gradient(lambda z: mp_logsumexp(z, temperature), mp_row(row))
        vjp = [mpf(-2.5) * value for value in gradient]
        assert_close(ref.logsumexp_vjp(row, -2.5, temperature=temperature), vjp)
        scale = mp.fsum(abs(a * exactly(u)) for a, u in zip(gradient, v, strict=True))
        expected = mp.fdot(gradient, mp_row(v))
        actual = ref.logsumexp_jvp(row, v, temperature=temperature)
        assert_close(actual, expected, scale=scale)


@pytest.mark.parametrize("std", [1.0, 20.0])
def test_long_row(std: float) -> None:
    row = rng().normal(0, std, 1000)
    assert_close(ref.softmax(row), mp_softmax(mp_row(row)))
    assert_close(ref.log_softmax(row), mp_log_softmax(mp_row(row)))
    assert_close(ref.logsumexp(row), mp_logsumexp(mp_row(row)))


@pytest.mark.parametrize(("mean", "std", "length"), ROWS, ids=ROW_IDS)
def test_logsumexp_with_signed_factors(mean: float, std: float, length: int) -> None:
    draw = rng()
    row, b = draw.normal(mean, std, length), draw.normal(0, 1, length)
    z, factors = mp_row(row), mp_row(b)
    terms = [f * mp.exp(value) for f, value in zip(factors, z, strict=True)]
    total = mp.fsum(terms)
    condition = mp.fsum(abs(term) for term in terms) / abs(total)
    log, sign = ref.logsumexp(row, b=b, return_sign=True)
    # The cancellation of signed terms is in the problem; log|b| and max x are added to it.
    assert_close(log, mp.log(abs(total)), scale=condition + abs(z[int(row.argmax())]))
    assert_same(sign, mp.sign(total))
    vjp = ref.logsumexp_vjp(row, 1.0, b=b, return_sign=True)
    gradient = mp_gradient(lambda z: mp_logsumexp(z, b=factors), z)
    assert_close(vjp, gradient, scale=[abs(value) * condition for value in gradient])
    jvp = ref.logsumexp_jvp(row, row - mean, b=b, return_sign=True)
    moves = [value * exactly(x) for value, x in zip(gradient, row - mean, strict=True)]
    assert_close(jvp, mp.fsum(moves), scale=condition * mp.fsum(abs(x) for x in moves))


@pytest.mark.parametrize("row", rows(), ids=row_name)
def test_cross_entropy_of_a_class_index(row: np.ndarray) -> None:
    # No scale: every loss and every entry of its gradient is right to its own last digits.
    for y in range(row.size):
        one_hot = [int(j == y) for j in range(row.size)]

        def loss(z: list[Any], t: list[Any] = one_hot) -> Any:
            return mp_cross_entropy_row(z, t, [mpf(1)] * len(z), mpf(1), mpf(0), hard=True)

        z = mp_row(row)
        value, grad = ref.cross_entropy_value_and_grad(row, y)
        assert_close(value, loss(z))
        assert_close(grad, mp_gradient(loss, z))


OPTIONS = list(
    itertools.product(["hard", "soft"], [False, True], [False, True], [0.0, 0.1, 1e-12, 1.0])
)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "normalizer"])
@pytest.mark.parametrize(("kind", "weighted", "sampled", "smoothing"), OPTIONS)
def test_cross_entropy_options(
    kind: str, weighted: bool, sampled: bool, smoothing: float, reduction: str
) -> None:
    draw = rng()
    logits = np.vstack([draw.normal(0, 3, (3, 4)), CONFIDENT, draw.normal(0, 20, (1, 4))])
    n, c = logits.shape
    labels = np.array([3, 0, 2, 1, -100])
    probabilities = draw.uniform(0, 2, (n, c))  # they need not sum to 1
    probabilities[1] = [0, 1, 0, 0]
    weight = draw.uniform(0.5, 2, c) if weighted else None
    sample_weight: Any = draw.uniform(0.5, 2, n) if sampled else None
    if sample_weight is not None:
        sample_weight[2] = 0
    grad_output = draw.normal(0, 1, n) if reduction == "none" else np.float64(-1.5)

    hard = kind == "hard"
    w = [mpf(1)] * c if weight is None else mp_row(weight)
    losses: list[Any] = [mpf(0)] * n
    grads: list[Any] = [[mpf(0)] * c for _ in range(n)]
    divisor: Any = mpf(0)
    scales: list[Any] = [[mpf(0)] * c for _ in range(n)]
    for i in range(n):
        s = mpf(1) if sample_weight is None else exactly(sample_weight[i])
        y = int(labels[i])
        if s == 0 or (hard and y == -100):
            continue
        divisor += s * w[y] if hard else s
        t = [int(j == y) for j in range(c)] if hard else mp_row(probabilities[i])

        def loss(z: list[Any], t: list[Any] = t, s: Any = s) -> Any:
            return mp_cross_entropy_row(z, t, w, s, exactly(smoothing), hard)

        z = mp_row(logits[i])
        losses[i], grads[i] = loss(z), mp_gradient(loss, z)
        # sum(m) p - m cancels where p is near m / sum(m); without smoothing at a class index it
        # cannot. The scale is the two parts that remain when the class's own share is taken out.
        p, e = mp_softmax(z), exactly(smoothing)
        m = [s * a * ((1 - e) * b + e / c) for a, b in zip(w, t, strict=True)]
        scales[i] = [p[j] * mp.fsum(m[:j] + m[j + 1 :]) + m[j] * (1 - p[j]) for j in range(c)]

    options: dict[str, Any] = {
        "weight": weight,
        "sample_weight": sample_weight,
        "label_smoothing": smoothing,
        "reduction": "mean" if reduction == "normalizer" else reduction,
    }
    if reduction == "normalizer":
        options["normalizer"] = 7.5
        divisor = mpf(7.5)
    if reduction in ("sum", "none"):
        divisor = mpf(1)
    target = labels if hard else probabilities
    upstream = mp_row(np.broadcast_to(grad_output, n))
    factors = [u / divisor for u in upstream]
    expected_grad = [[f * g for g in row] for f, row in zip(factors, grads, strict=True)]
    scale = [[abs(f) * g for g in row] for f, row in zip(factors, scales, strict=True)]

    value, grad = ref.cross_entropy_value_and_grad(
        logits, target, grad_output=grad_output, **options
    )
    assert_close(value, losses if reduction == "none" else mp.fsum(losses) / divisor)
    assert_close(grad, expected_grad, scale=scale)
    assert_same(ref.cross_entropy(logits, target, **options), value)
    assert_same(ref.cross_entropy_grad(logits, target, grad_output=grad_output, **options), grad)


def test_where_is_the_same_as_removing_the_classes() -> None:
    draw = rng()
    row, v = draw.normal(0, 3, 4), draw.normal(0, 1, 4)
    dirty, dirty_v = row.copy(), v.copy()
    dirty[1] = dirty_v[1] = NAN
    kept, kept_v = row[MASK], v[MASK]

    def scattered(values: Any, removed: float) -> Any:
        full = np.full(4, removed, np.longdouble)
        full[MASK] = values
        return full

    for function, removed in [(ref.softmax, 0.0), (ref.log_softmax, -INF)]:
        assert_same(function(dirty, where=MASK), scattered(function(kept), removed))
    derivatives = [ref.softmax_vjp, ref.softmax_jvp, ref.log_softmax_vjp, ref.log_softmax_jvp]
    for derivative in derivatives:
        assert_same(derivative(dirty, dirty_v, where=MASK), scattered(derivative(kept, kept_v), 0))
    assert_same(ref.logsumexp(dirty, where=MASK), ref.logsumexp(kept))
    vjp = ref.logsumexp_vjp(dirty, 2.0, where=MASK)
    assert_same(vjp, scattered(ref.logsumexp_vjp(kept, 2.0), 0))
    assert_same(ref.logsumexp_jvp(dirty, dirty_v, where=MASK), ref.logsumexp_jvp(kept, kept_v))

    weight = np.array([0.5, 9.0, 2.0, 1.0])
    targets: list[tuple[Any, Any]] = [(2, 1), ([0.2, 0.0, 0.3, 0.1], [0.2, 0.3, 0.1])]
    for target, kept_target in targets:
        # Smoothing spreads over the classes kept: K and W count those.
        value, grad = ref.cross_entropy_value_and_grad(
            dirty, target, where=MASK, weight=weight, label_smoothing=0.2
        )
        expected, expected_grad = ref.cross_entropy_value_and_grad(
            kept, kept_target, weight=weight[MASK], label_smoothing=0.2
        )
        assert_same(value, expected)
        assert_same(grad, scattered(expected_grad, 0))


# Hand values -------------------------------------------------------------------------------------


def assert_hand(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(
        np.asarray(actual, float), expected, rtol=max(HAND, TOLERANCE), atol=0
    )


def test_softmax_of_zero_and_log_three() -> None:
    # log(3) itself is rounded: half an ulp of a number just above 1 moves p by EPS / 2 at most.
    assert_hand(ref.softmax([0.0, np.log(3.0)]), [0.25, 0.75])


def test_softmax_of_a_uniform_row_is_one_over_its_length() -> None:
    assert_hand(ref.softmax(np.full(5, 1e8)), np.full(5, 0.2))
    assert_hand(ref.log_softmax(np.full(5, 1e8)), np.full(5, -1.6094379124341003))


def test_logsumexp_near_zero() -> None:
    assert_hand(ref.logsumexp([0.0, -40.0]), 4.248354255291589e-18)


def test_logsumexp_of_negative_factors() -> None:
    log, sign = ref.logsumexp([0.0, np.log(3.0)], b=[1.0, -1.0], return_sign=True)
    assert_hand(log, np.log(2.0))
    assert_same(sign, -1)
    assert_same(ref.logsumexp([0.0, np.log(3.0)], b=[1.0, -1.0]), NAN)
    assert_same(ref.logsumexp([0.0, 0.0], b=[1.0, -1.0], return_sign=True), [-INF, 0])


def test_log_softmax_at_the_winner() -> None:
    assert_hand(ref.log_softmax([0.0, -40.0]), [-4.248354255291589e-18, -40.0])


def test_cross_entropy_of_a_small_row() -> None:
    assert_hand(ref.cross_entropy([0.0, 1.0, 2.0], 1), 1.4076059644443804)
    assert_hand(ref.cross_entropy(np.zeros((2, 4)), [0, 3]), 1.3862943611198906)


def test_cross_entropy_of_a_confident_row() -> None:
    value, grad = ref.cross_entropy_value_and_grad([0.0, -40.0], 0)
    assert_hand(value, 4.248354255291589e-18)
    assert_hand(grad, [-4.248354255291589e-18, 4.248354255291589e-18])


def test_full_smoothing_forgets_the_target() -> None:
    uniform = np.full((1, 3), 1 / 3)
    logits = [[0.0, 1.0, 2.0]]
    losses = [ref.cross_entropy(logits, [y], label_smoothing=1.0) for y in range(3)]
    # The mean of 2.4076059644443804 - [0, 1, 2].
    assert_hand(losses, np.full(3, 1.4076059644443804))
    assert_hand(ref.cross_entropy(logits, uniform), 1.4076059644443804)


def test_smoothing_spreads_over_the_target_too() -> None:
    # Masses (0.7 + 0.1, 0.1, 0.1), surprises 2.4076..., 1.4076..., 0.4076...
    value = ref.cross_entropy([0.0, 1.0, 2.0], 0, label_smoothing=0.3)
    assert_hand(value, 0.8 * 2.4076059644443804 + 0.1 * 1.4076059644443804 + 0.0407605964444380)


def test_integers_become_float64() -> None:
    assert_same(ref.softmax([2**53, 2**53 + 1]), [0.5, 0.5])
    assert_same(ref.logsumexp([True, True]), ref.logsumexp([1.0, 1.0]))


# Special values: the table of NUMERICS.md section 3 -----------------------------------------------

NOT_A_ROW = {
    "NaN": [1.0, NAN, 2.0],
    "NaN beside inf": [NAN, INF, -INF],
    "+inf": [1.0, INF, -INF],
    "two +inf": [INF, 0.0, INF],
    "all -inf": [-INF, -INF, -INF],
}


@pytest.mark.parametrize("row", NOT_A_ROW.values(), ids=NOT_A_ROW)
def test_a_row_without_a_finite_maximum_is_nan_and_alone(row: list[float]) -> None:
    good = [0.0, 1.0, 2.0]
    x, v, nans = [row, good], np.ones((2, 3)), [NAN] * 3
    for function in (ref.softmax, ref.log_softmax):
        assert_same(function(x), [nans, function(good)])
    derivatives = [ref.softmax_vjp, ref.softmax_jvp, ref.log_softmax_vjp, ref.log_softmax_jvp]
    for derivative in derivatives:
        assert_same(derivative(x, v), [nans, derivative(good, v[1])])
    assert_same(ref.logsumexp_vjp(x, [1.0, 1.0]), [nans, ref.softmax(good)])
    assert_same(ref.logsumexp_jvp(x, v), [NAN, ref.logsumexp_jvp(good, v[1])])
    value, grad = ref.cross_entropy_value_and_grad(x, [0, 1], reduction="none")
    assert_same(value, [NAN, ref.cross_entropy(good, 1)])
    assert_same(grad, [nans, ref.cross_entropy_grad(good, 1)])
    assert_same(ref.cross_entropy(x, [0, 1]), NAN)
    soft = np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert_same(ref.cross_entropy(x, soft, reduction="none")[0], NAN)


def test_logsumexp_without_a_finite_maximum() -> None:
    values = [ref.logsumexp(row) for row in NOT_A_ROW.values()]
    assert_same(values, [NAN, NAN, INF, INF, -INF])
    signs = [ref.logsumexp(row, return_sign=True)[1] for row in NOT_A_ROW.values()]
    assert_same(signs, [NAN, NAN, 1, 1, 0])


def test_logsumexp_factors_and_infinities() -> None:
    def pair(x: list[float], b: list[float]) -> Any:
        return ref.logsumexp(x, b=b, return_sign=True)

    assert_same(pair([INF, 1.0], [-1.0, 1.0]), [INF, -1])
    assert_same(pair([INF, INF], [-1.0, 1.0]), [NAN, NAN])
    assert_same(pair([INF, INF], [-1.0, -2.0]), [INF, -1])
    assert_same(pair([NAN, 1.0], [0.0, 1.0]), [1, 1])
    assert_same(pair([INF, 1.0], [0.0, 1.0]), [1, 1])
    assert_same(pair([NAN, 1.0], [0.0, 0.0]), [-INF, 0])
    assert_same(pair([-INF, 1.0], [5.0, 1.0]), [1, 1])
    assert_same(ref.logsumexp_vjp([NAN, 1.0], 2.0, b=[0.0, 3.0]), [0, 2])
    assert_same(ref.logsumexp_jvp([NAN, 1.0], [NAN, 5.0], b=[0.0, 3.0]), 5)


def test_gradient_is_nan_where_a_negative_sum_has_no_logarithm() -> None:
    x, b = [0.0, 0.0, 0.0], [1.0, -2.0, 0.0]
    assert_same(ref.logsumexp_vjp(x, 1.0, b=b), [NAN, NAN, 0])
    assert_same(ref.logsumexp_vjp(x, 1.0, b=b, return_sign=True), [-1, 2, 0])
    assert_same(ref.logsumexp_jvp(x, [1.0, 0.0, 0.0], b=b), NAN)


def test_minus_infinity_is_an_exact_zero() -> None:
    x = [-INF, 0.0, 0.0]
    assert_same(ref.softmax(x), [0, 0.5, 0.5])
    assert_same(ref.log_softmax(x), [-INF, *ref.log_softmax([0.0, 0.0])])
    assert_same(ref.logsumexp(x), ref.logsumexp([0.0, 0.0]))
    assert_same(ref.softmax_vjp(x, [7.0, 1.0, 0.0]), [0, 0.25, -0.25])
    assert_same(ref.logsumexp_vjp(x, 1.0), [0, 0.5, 0.5])


def test_minus_infinity_beside_the_target() -> None:
    value, grad = ref.cross_entropy_value_and_grad([-INF, 0.0, 0.0], 1)
    assert_same(value, ref.cross_entropy([0.0, 0.0], 0))
    assert_same(grad, [0, -0.5, 0.5])
    # 0 * (-inf) counts as 0 for probabilities too.
    soft = ref.cross_entropy_value_and_grad([-INF, 0.0, 0.0], [0.0, 1.0, 0.0])
    assert_same(soft[0], value)
    assert_same(soft[1], grad)


def test_target_at_minus_infinity() -> None:
    value, grad = ref.cross_entropy_value_and_grad([-INF, 0.0, 0.0], 0)
    assert_same(value, INF)
    assert_same(grad, [-1, 0.5, 0.5])


def test_mass_at_minus_infinity() -> None:
    value, grad = ref.cross_entropy_value_and_grad([-INF, 0.0, 0.0], [0.25, 0.75, 0.0])
    assert_same(value, INF)
    assert_same(grad, [-0.25, -0.25, 0.5])
    value, grad = ref.cross_entropy_value_and_grad([-INF, 0.0, 0.0, -INF], 1, label_smoothing=0.5)
    assert_same(value, INF)
    assert_same(grad, [-0.125, -0.125, 0.375, -0.125])


def test_where_all_false() -> None:
    x, v, nothing = [1.0, NAN], [1.0, NAN], [False, False]
    assert_same(ref.softmax(x, where=nothing), [0, 0])
    assert_same(ref.log_softmax(x, where=nothing), [-INF, -INF])
    assert_same(ref.logsumexp(x, where=nothing), -INF)
    assert_same(ref.logsumexp_vjp(x, NAN, where=nothing), [0, 0])
    assert_same(ref.logsumexp_jvp(x, v, where=nothing), 0)
    derivatives = [ref.softmax_vjp, ref.softmax_jvp, ref.log_softmax_vjp, ref.log_softmax_jvp]
    for derivative in derivatives:
        assert_same(derivative(x, v, where=nothing), [0, 0])


def test_empty_axis() -> None:
    empty = np.empty((2, 0))
    derivatives = [ref.softmax_vjp, ref.softmax_jvp, ref.log_softmax_vjp, ref.log_softmax_jvp]
    results = [ref.softmax(empty), ref.log_softmax(empty)]
    results += [derivative(empty, empty) for derivative in derivatives]
    results += [ref.logsumexp_vjp(empty, np.ones(2))]
    for result in results:
        assert_same(result, empty)
    assert_same(ref.logsumexp(empty), [-INF, -INF])
    assert_same(ref.logsumexp(empty, return_sign=True)[1], [0, 0])
    assert_same(ref.logsumexp_jvp(empty, empty), [0, 0])
    with pytest.raises(ValueError, match="needs at least one class"):
        ref.cross_entropy(empty, [0, 0])


def test_empty_batch() -> None:
    x, y = np.empty((0, 3)), np.empty(0, int)
    assert_same(ref.softmax(x), x)
    assert_same(ref.logsumexp(x), np.empty(0))
    assert_same(ref.cross_entropy(x, y), NAN)
    assert_same(ref.cross_entropy(x, y, reduction="sum"), 0)
    assert_same(ref.cross_entropy(x, y, reduction="none"), np.empty(0))
    assert_same(ref.cross_entropy(x, y, normalizer=3.0), 0)
    assert_same(ref.cross_entropy_grad(x, y), x)


IGNORED: dict[str, tuple[Any, dict[str, Any]]] = {
    "ignore_index": ([-100, 1], {}),
    "ignore_index inside the range": ([0, 1], {"ignore_index": 0}),
    "sample_weight 0": ([0, 1], {"sample_weight": [0.0, 1.0]}),
    "weight of the class 0": ([0, 1], {"weight": [0.0, 1.0, 1.0]}),
    "where all False": ([0, 1], {"where": [[False] * 3, [True] * 3]}),
    "probabilities, sample_weight 0": (
        [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]],
        {"sample_weight": [0.0, 1.0]},
    ),
    "probabilities, where all False": (
        [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]],
        {"where": [[False] * 3, [True] * 3]},
    ),
}


@pytest.mark.parametrize(("target", "options"), IGNORED.values(), ids=IGNORED)
@pytest.mark.parametrize("first", [[1.0, NAN, 2.0], [INF, INF, 0.0], [-INF] * 3, [0.0, 5.0, 1.0]])
def test_ignored_row(first: list[float], target: Any, options: dict[str, Any]) -> None:
    good = [0.0, 1.0, 2.0]
    value, grad = ref.cross_entropy_value_and_grad(
        [first, good], target, reduction="none", grad_output=[NAN, 1.0], **options
    )
    assert_same(value, [0, ref.cross_entropy(good, 1)])
    assert_same(grad, [[0, 0, 0], ref.cross_entropy_grad(good, 1)])
    # An ignored row is not in the divisor either.
    value, grad = ref.cross_entropy_value_and_grad([first, good], target, **options)
    assert_same(value, ref.cross_entropy(good, 1))
    assert_same(grad, [[0, 0, 0], ref.cross_entropy_grad(good, 1)])


def test_ignored_class_stays_in_the_denominator() -> None:
    value = ref.cross_entropy([[0.0, 0.0], [0.0, 0.0]], [0, 1], ignore_index=0)
    assert_hand(value, 0.6931471805599453)


def test_class_of_weight_zero_counts_again_with_smoothing() -> None:
    value, grad = ref.cross_entropy_value_and_grad(
        [0.0, 0.0], 0, weight=[0.0, 1.0], label_smoothing=0.5, reduction="sum"
    )
    assert_hand(value, 0.25 * 0.6931471805599453)
    assert_same(grad, [0.125, -0.125])


NOTHING: dict[str, tuple[list[int], dict[str, Any]]] = {
    "all ignored": ([-100, -100], {}),
    "no sample weight": ([0, 1], {"sample_weight": [0.0, 0.0]}),
    "no class weight": ([0, 1], {"weight": [0.0, 0.0]}),
    "no class weight in the divisor": ([0, 0], {"weight": [0.0, 1.0], "label_smoothing": 0.5}),
    "nothing kept by where": ([0, 1], {"where": False}),
}


@pytest.mark.parametrize(("target", "options"), NOTHING.values(), ids=NOTHING)
def test_mean_of_nothing(target: list[int], options: dict[str, Any]) -> None:
    x = np.array([[0.0, 1.0], [3.0, 3.0]])
    value, grad = ref.cross_entropy_value_and_grad(x, target, grad_output=INF, **options)
    assert_same(value, NAN)
    assert_same(grad, np.zeros((2, 2)))


@pytest.mark.parametrize("name", sorted(NOTHING.keys() - {"no class weight in the divisor"}))
def test_sum_and_normalizer_of_nothing(name: str) -> None:
    target, options = NOTHING[name]
    x = np.array([[0.0, NAN], [3.0, 3.0]])
    for extra in ({"reduction": "sum"}, {"normalizer": 4.0}):
        value, grad = ref.cross_entropy_value_and_grad(x, target, **extra, **options)
        assert_same(value, 0)
        assert_same(grad, np.zeros((2, 2)))


@pytest.mark.parametrize("target", [[1, 0], [[1.0, 0.0], [0.5, 0.5]]])
def test_where_may_not_remove_a_target(target: Any) -> None:
    with pytest.raises(ValueError, match=r"row \[1\]"):
        ref.cross_entropy(np.zeros((2, 2)), target, where=[[True, True], [False, True]])


@pytest.mark.parametrize("bad", [-1, 2, -101])
def test_target_out_of_range_never_wraps(bad: int) -> None:
    with pytest.raises(IndexError, match=rf"target\[1\] is {bad}"):
        ref.cross_entropy(np.zeros((2, 2)), [0, bad])


# Axes, shapes, layouts ---------------------------------------------------------------------------

AXES = [0, 1, 2, -1, -3, (0, 1), (2, 0), (-1, 1), (0, 1, 2), None]
MAPS = [ref.softmax, ref.log_softmax]
DERIVATIVES = [ref.softmax_vjp, ref.softmax_jvp, ref.log_softmax_vjp, ref.log_softmax_jvp]


def by_rows(function: Callable[..., Any], axis: Any, *arrays: np.ndarray) -> Any:
    """`function` on flat rows picked by index, one for each place outside `axis`."""
    ndim, shape = arrays[0].ndim, arrays[0].shape
    axes = tuple(range(ndim)) if axis is None else tuple(a % ndim for a in np.atleast_1d(axis))
    result = np.full(shape, NAN, np.longdouble)
    for place in np.ndindex(*(1 if a in axes else length for a, length in enumerate(shape))):
        index = tuple(slice(None) if a in axes else place[a] for a in range(ndim))
        picked = [array[index] for array in arrays]
        row = function(*(p.ravel() for p in picked))
        result[index] = np.broadcast_to(row, picked[0].size).reshape(picked[0].shape)
    return result


@pytest.mark.parametrize("axis", AXES, ids=str)
def test_axis(axis: Any) -> None:
    draw = rng()
    x, v = draw.normal(0, 3, (2, 2, 3, 4))[:, 0], draw.normal(0, 1, (2, 3, 4))
    x = np.asfortranarray(x)[:, ::-1]
    # The sum runs over a row in another order for axis=(2, 0): a few roundings of long double.
    close: dict[str, Any] = {"rtol": TOLERANCE, "atol": TOLERANCE}
    for function in MAPS:
        expected = by_rows(function, axis, x)
        np.testing.assert_allclose(function(x, axis), expected, **close)
    for derivative in DERIVATIVES:
        expected = by_rows(derivative, axis, x, v)
        np.testing.assert_allclose(derivative(x, v, axis), expected, **close)

    kept: Any = ref.logsumexp(x, axis, keepdims=True)
    expected = by_rows(ref.logsumexp, axis, x)
    np.testing.assert_allclose(np.broadcast_to(kept, x.shape), expected, **close)
    numpy_axis = axis if axis is None or isinstance(axis, int) else tuple(axis)
    assert kept.shape == x.sum(numpy_axis, keepdims=True).shape
    assert_same(ref.logsumexp(x, axis), kept.reshape(x.sum(numpy_axis).shape))

    g = draw.normal(0, 1, kept.shape)
    expected = g * by_rows(ref.softmax, axis, x)
    for keepdims, shape in [(True, kept.shape), (False, x.sum(numpy_axis).shape)]:
        vjp = ref.logsumexp_vjp(x, g.reshape(shape), axis, keepdims=keepdims)
        np.testing.assert_allclose(vjp, expected, **close)
        jvp = ref.logsumexp_jvp(x, v, axis, keepdims=keepdims)
        assert jvp.shape == shape
        expected_jvp = by_rows(ref.logsumexp_jvp, axis, x, v)
        np.testing.assert_allclose(
            np.broadcast_to(jvp.reshape(kept.shape), x.shape), expected_jvp, **close
        )


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
@pytest.mark.parametrize("soft", [False, True])
def test_cross_entropy_axis(axis: int, soft: bool) -> None:
    draw = rng()
    x = draw.normal(0, 3, (2, 3, 4))
    classes_last = np.moveaxis(x, axis, -1)
    batch, c = classes_last.shape[:-1], classes_last.shape[-1]
    labels, s = draw.integers(0, c, batch), draw.uniform(1, 2, batch)
    keep = np.arange(c) != draw.integers(0, c, batch)[..., None]
    labels = np.where(np.take_along_axis(keep, labels[..., None], -1)[..., 0], labels, -100)
    target: Any = labels
    if soft:
        target = np.moveaxis(keep * draw.uniform(0, 1, classes_last.shape), -1, axis)
    value, grad = ref.cross_entropy_value_and_grad(
        x,
        target,
        axis=axis,
        sample_weight=s,
        where=np.moveaxis(keep, -1, axis),
        reduction="none",
        grad_output=s,
    )
    assert value.shape == batch
    for place in np.ndindex(*batch):
        row_target = np.moveaxis(target, axis, -1)[place] if soft else labels[place]
        expected, expected_grad = ref.cross_entropy_value_and_grad(
            classes_last[place],
            row_target,
            sample_weight=s[place],
            where=keep[place],
            reduction="sum",
            grad_output=s[place],
        )
        assert_same(value[place], expected)
        assert_same(np.moveaxis(grad, axis, -1)[place], expected_grad)


@pytest.mark.parametrize("axis", [-1, 0, None])
def test_zero_dimensional_is_one_element(axis: Any) -> None:
    x = np.float64(3.0)
    cases: list[tuple[Any, float]] = [
        (ref.softmax, 1),
        (ref.log_softmax, 0),
        (ref.logsumexp, 3),
    ]
    for function, expected in cases:
        result = function(x, axis)
        assert np.shape(result) == ()
        assert_same(result, expected)
    assert np.shape(ref.logsumexp(x, axis, keepdims=True)) == ()
    assert_same(ref.logsumexp_vjp(x, 2.0, axis), 2)
    assert_same(ref.logsumexp_jvp(x, 2.0, axis), 2)


def test_one_row_has_a_scalar_loss() -> None:
    value, grad = ref.cross_entropy_value_and_grad([0.0, 0.0], 1, reduction="none")
    assert value.shape == ()
    assert_same(grad, [0.5, -0.5])


def test_where_and_factors_broadcast() -> None:
    x = rng().normal(0, 1, (3, 4))
    b = np.array([1.0, 2.0, 3.0, 4.0])
    expected = [ref.logsumexp(row[MASK], b=b[MASK]) for row in x]
    assert_same(ref.logsumexp(x, b=b, where=MASK), expected)
    column = np.array([[True], [False], [True]])
    assert_same(ref.softmax(x, where=column)[1], np.zeros(4))


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int64, np.uint64, ">i4"])
def test_class_indices_of_any_integer_type(dtype: Any) -> None:
    x = rng().normal(0, 1, (3, 2))
    labels = np.array([0, 1, 1])
    assert_same(ref.cross_entropy(x, labels.astype(dtype)), ref.cross_entropy(x, labels))


def test_inputs_are_left_alone() -> None:
    x, v, y = rng().normal(0, 1, (2, 3)), rng().normal(0, 1, (2, 3)), np.array([0, 2])
    arrays = [x, v, y, mask := np.array([True, True, True])]
    before = [array.tobytes() for array in arrays]
    for function in MAPS:
        function(x, where=mask)
    for derivative in DERIVATIVES:
        derivative(x, v, where=mask)
    ref.logsumexp(x, b=v, where=mask, return_sign=True)
    ref.cross_entropy_value_and_grad(x, y, where=mask, sample_weight=[1, 2], label_smoothing=0.1)
    assert [array.tobytes() for array in arrays] == before
