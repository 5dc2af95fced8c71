"""The slow twin itself, against mpmath, hand values and the table of special values."""

from __future__ import annotations

import doctest
import inspect
import itertools
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

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
    z: list[Any], t: list[Any], w: list[Any], s: Any, eps: Any, z_loss: Any, hard: bool
) -> Any:
    """The loss of NUMERICS.md section 4, as it is written there."""
    lse = mp_logsumexp(z)
    if hard:
        y = t.index(1)
        picked = s * w[y] * (1 - eps) * (lse - z[y])
        spread = [value * lse - value * x for value, x in zip(w, z, strict=True)]
        return picked + s * eps / len(z) * mp.fsum(spread) + s * z_loss * lse**2
    t = [(1 - eps) * value + eps / len(z) for value in t]
    mass = mp.fsum(a * c for a, c in zip(w, t, strict=True))
    picked = mp.fsum(a * c * x for a, c, x in zip(w, t, z, strict=True))
    return s * (mass * lse - picked + z_loss * lse**2)


def mp_along(f: Callable[[list[Any]], list[Any]], z: list[Any], v: list[Any]) -> list[Any]:
    """The derivative of a list of numbers in the direction v.

    Central differences; with 300 digits the truncation, h**2, is the only error.
    """
    h = mpf(10) ** -90
    ahead, behind = (f([a + step * b for a, b in zip(z, v, strict=True)]) for step in (h, -h))
    return [(a - b) / (2 * h) for a, b in zip(ahead, behind, strict=True)]


def mp_partial(f: Callable[[list[Any]], Any], z: list[Any], i: int) -> Any:
    return mp_along(lambda z: [f(z)], z, [int(j == i) for j in range(len(z))])[0]


def mp_gradient(f: Callable[[list[Any]], Any], z: list[Any]) -> list[Any]:
    return [mp_partial(f, z, i) for i in range(len(z))]


def mp_second(f: Callable[[list[Any]], Any], z: list[Any]) -> list[Any]:
    """The diagonal of the Hessian."""
    return [mp_partial(lambda z, i=i: mp_partial(f, z, i), z, i) for i in range(len(z))]


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


def cross_entropies(logits: Any, target: Any, v: Any, **options: Any) -> list[Any]:
    """The value and its three derivatives."""
    return [
        *ref.cross_entropy_value_and_grad(logits, target, **options),
        ref.cross_entropy_hvp(logits, target, v, **options),
        ref.cross_entropy_hess_diag(logits, target, **options),
    ]


def binary_cross_entropies(logits: Any, target: Any, v: Any, **options: Any) -> list[Any]:
    return [
        *ref.binary_cross_entropy_value_and_grad(logits, target, **options),
        ref.binary_cross_entropy_hvp(logits, target, v, **options),
        ref.binary_cross_entropy_hess_diag(logits, target, **options),
    ]


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
            return mp_cross_entropy_row(z, t, [mpf(1)] * len(z), mpf(1), mpf(0), mpf(0), hard=True)

        z = mp_row(row)
        value, grad = ref.cross_entropy_value_and_grad(row, y)
        assert_close(value, loss(z))
        assert_close(grad, mp_gradient(loss, z))


@pytest.mark.parametrize("row", rows(), ids=row_name)
def test_second_derivatives_of_a_class_index(row: np.ndarray) -> None:
    p, v = mp_softmax(mp_row(row)), rng().normal(0, 1, row.size)
    hessian = [[a * (int(i == j) - b) for j, b in enumerate(p)] for i, a in enumerate(p)]
    # No scale: p (1 - p) is right to its own last digits.
    assert_close(ref.cross_entropy_hess_diag(row, 0), [hessian[i][i] for i in range(row.size)])
    hvp = [mp.fdot(line, mp_row(v)) for line in hessian]
    # sum_j p_i p_j (v_i - v_j): its terms may cancel by chance, in any arithmetic.
    scale = [
        mp.fsum(abs(h * exactly(v[i] - u)) for h, u in zip(line, v, strict=True))
        for i, line in enumerate(hessian)
    ]
    assert_close(ref.cross_entropy_hvp(row, 0, v), hvp, scale=scale)
    assert_same(ref.cross_entropy_hvp(row, 0, np.full(row.size, 0.3)), np.zeros(row.size))


class Problem(NamedTuple):
    """A batch, what mpmath says of it, and for each number the size of the terms it is made of."""

    logits: np.ndarray
    v: np.ndarray
    target: np.ndarray
    options: dict[str, Any]
    divisor: Any
    losses: list[Any]
    derivatives: dict[str, list[list[Any]]]
    loss_scales: list[Any]
    scales: dict[str, list[list[Any]]]


@cache
def problem(kind: str, weighted: bool, sampled: bool, smoothing: float, z_loss: float) -> Problem:
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
    v = draw.normal(0, 1, (n, c))

    hard = kind == "hard"
    w = [mpf(1)] * c if weight is None else mp_row(weight)
    losses, loss_scales, divisor = [mpf(0)] * n, [mpf(0)] * n, mpf(0)
    derivatives = {name: [[mpf(0)] * c for _ in range(n)] for name in ("grad", "hvp", "hess_diag")}
    scales = {name: [[mpf(0)] * c for _ in range(n)] for name in derivatives}
    for i in range(n):
        s = mpf(1) if sample_weight is None else exactly(sample_weight[i])
        y = int(labels[i])
        if s == 0 or (hard and y == -100):
            continue
        divisor += s * w[y] if hard else s
        t = [int(j == y) for j in range(c)] if hard else mp_row(probabilities[i])
        e, zl = exactly(smoothing), exactly(z_loss)

        def loss(z: list[Any], t: list[Any] = t, s: Any = s, e: Any = e, zl: Any = zl) -> Any:
            return mp_cross_entropy_row(z, t, w, s, e, zl, hard)

        z, u = mp_row(logits[i]), mp_row(v[i])
        losses[i] = loss(z)
        derivatives["grad"][i] = mp_gradient(loss, z)
        derivatives["hvp"][i] = mp_along(lambda z, f=loss: mp_gradient(f, z), z, u)
        derivatives["hess_diag"][i] = mp_second(loss, z)

        # sum(m) p - m cancels where p is near m / sum(m); without smoothing at a class index it
        # cannot. The scale is the two parts that remain when the class's own share is taken out.
        p = mp_softmax(z)
        m = [s * a * ((1 - e) * b + e / c) for a, b in zip(w, t, strict=True)]
        # logsumexp may be the small difference of max z and a logarithm.
        lse = max(abs(mp_logsumexp(z)), abs(max(z)))
        pull = 2 * s * zl
        loss_scales[i] = losses[i] + s * zl * lse**2
        for j in range(c):
            curvature = mp.fsum(m) + pull * lse
            scales["grad"][i][j] = (
                p[j] * mp.fsum(m[:j] + m[j + 1 :]) + m[j] * (1 - p[j]) + pull * lse * p[j]
            )
            apart = mp.fsum(a * abs(u[j] - b) for a, b in zip(p, u, strict=True))
            size = mp.fsum(a * abs(b) for a, b in zip(p, u, strict=True))
            scales["hvp"][i][j] = p[j] * (curvature * apart + pull * size)
            scales["hess_diag"][i][j] = curvature * p[j] * (1 - p[j]) + pull * p[j] ** 2

    options = {
        "weight": weight,
        "sample_weight": sample_weight,
        "label_smoothing": smoothing,
        "z_loss": z_loss,
    }
    target = labels if hard else probabilities
    return Problem(logits, v, target, options, divisor, losses, derivatives, loss_scales, scales)


OPTIONS = list(
    itertools.product(
        ["hard", "soft"], [False, True], [False, True], [0.0, 0.1, 1e-12, 1.0], [0.0, 0.01]
    )
)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "normalizer"])
@pytest.mark.parametrize(("kind", "weighted", "sampled", "smoothing", "z_loss"), OPTIONS)
def test_cross_entropy_options(
    kind: str, weighted: bool, sampled: bool, smoothing: float, z_loss: float, reduction: str
) -> None:
    given = problem(kind, weighted, sampled, smoothing, z_loss)
    n, options, divisor = len(given.logits), dict(given.options), given.divisor
    grad_output = rng().normal(0, 1, n) if reduction == "none" else np.float64(-1.5)
    options["reduction"] = "mean" if reduction == "normalizer" else reduction
    if reduction == "normalizer":
        options["normalizer"] = 7.5
        divisor = mpf(7.5)
    if reduction in ("sum", "none"):
        divisor = mpf(1)
    factors = [u / divisor for u in mp_row(np.broadcast_to(grad_output, n))]

    arguments = given.logits, given.target
    value, grad = ref.cross_entropy_value_and_grad(*arguments, grad_output=grad_output, **options)
    if reduction == "none":
        assert_close(value, given.losses, scale=given.loss_scales)
    else:
        expected = mp.fsum(given.losses) / divisor
        assert_close(value, expected, scale=mp.fsum(given.loss_scales) / divisor)
    results = {
        "grad": grad,
        "hvp": ref.cross_entropy_hvp(*arguments, given.v, grad_output=grad_output, **options),
        "hess_diag": ref.cross_entropy_hess_diag(*arguments, grad_output=grad_output, **options),
    }
    for name, result in results.items():
        pairs = zip(factors, given.derivatives[name], given.scales[name], strict=True)
        expected, scale = zip(
            *(([f * d for d in row], [abs(f) * x for x in sizes]) for f, row, sizes in pairs),
            strict=True,
        )
        assert_close(result, expected, scale=scale)
    assert_same(ref.cross_entropy(*arguments, **options), value)
    assert_same(ref.cross_entropy_grad(*arguments, grad_output=grad_output, **options), grad)


def test_a_number_as_grad_output_multiplies_every_row() -> None:
    z, y = rng().normal(0, 3, (2, 3)), [0, 2]
    once = ref.cross_entropy_hess_diag(z, y, reduction="none")
    assert_same(ref.cross_entropy_hess_diag(z, y, reduction="none", grad_output=2.0), 2 * once)


@pytest.mark.parametrize("row", rows(), ids=row_name)
def test_token_stats(row: np.ndarray) -> None:
    p = mp_softmax(mp_row(row))
    for y in range(row.size):
        stats = ref.token_stats(row, y)
        assert_same(stats.nll, ref.cross_entropy(row, y))
        assert_same(stats.logsumexp, ref.logsumexp(row))
        assert_close(stats.entropy, -mp.fsum(value * mp.log(value) for value in p))
        before = [j for j, z in enumerate(row) if z > row[y] or (z == row[y] and j < y)]
        assert stats.rank == len(before)
        assert stats.correct == (not before)
        assert row[stats.argmax] == row.max()


# Small, large and far below EPS in either tail.
SCALARS = np.array([0.0, 1e-20, -0.3, 2.5, -4.0, 37.0, -40.0, 150.0, -150.0])


def mp_sigmoid(x: Any) -> Any:
    return 1 / (1 + mp.exp(-x))


def mp_derivative(f: Callable[[Any], Any], x: Any) -> Any:
    return mp_partial(lambda z: f(z[0]), [x], 0)


def test_sigmoid_and_log_sigmoid() -> None:
    x, v = mp_row(SCALARS), rng().normal(0, 1, SCALARS.size)
    pairs = [
        (ref.sigmoid, ref.sigmoid_vjp, ref.sigmoid_jvp, mp_sigmoid),
        (
            ref.log_sigmoid,
            ref.log_sigmoid_vjp,
            ref.log_sigmoid_jvp,
            lambda z: mp.log(mp_sigmoid(z)),
        ),
    ]
    for function, vjp, jvp, definition in pairs:
        assert_close(function(SCALARS), [definition(value) for value in x])
        expected = [mp_derivative(definition, a) * b for a, b in zip(x, mp_row(v), strict=True)]
        assert_close(vjp(SCALARS, v), expected)
        assert_same(jvp(SCALARS, v), vjp(SCALARS, v))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "normalizer"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sampled", [False, True])
def test_binary_cross_entropy_options(weighted: bool, sampled: bool, reduction: str) -> None:
    draw = rng()
    logits, target = (a.ravel() for a in np.meshgrid(SCALARS, [0.0, 1.0, 0.25, 1e-20]))
    n = logits.size
    pos_weight = draw.uniform(0.5, 2, n) if weighted else None
    sample_weight: Any = draw.uniform(0.5, 2, n) if sampled else None
    if sample_weight is not None:
        sample_weight[2] = 0
    v = draw.normal(0, 1, n)
    grad_output = draw.normal(0, 1, n) if reduction == "none" else np.float64(-1.5)

    losses, gradients, hessians, sizes = [], [], [], []
    weights = [mpf(1)] * n if sample_weight is None else mp_row(sample_weight)
    for i, s in enumerate(weights):
        t, pw = exactly(target[i]), mpf(1) if pos_weight is None else exactly(pos_weight[i])

        def loss(z: Any, t: Any = t, pw: Any = pw, s: Any = s) -> Any:
            return s * (pw * t * mp.log(1 + mp.exp(-z)) + (1 - t) * mp.log(1 + mp.exp(z)))

        z = exactly(logits[i])
        losses.append(loss(z))
        gradients.append(mp_derivative(loss, z))
        hessians.append(mp_derivative(lambda z, f=loss: mp_derivative(f, z), z))
        # The two classes pull in opposite directions, and may cancel.
        sizes.append(s * ((1 - t) * mp_sigmoid(z) + pw * t * mp_sigmoid(-z)))

    divisor = {"mean": mp.fsum(weights), "normalizer": mpf(7.5)}.get(reduction, mpf(1))
    options: dict[str, Any] = {
        "pos_weight": pos_weight,
        "sample_weight": sample_weight,
        "reduction": "mean" if reduction == "normalizer" else reduction,
        "normalizer": 7.5 if reduction == "normalizer" else None,
    }
    factors = [u / divisor for u in mp_row(np.broadcast_to(grad_output, n))]
    value, grad, hvp, hess_diag = binary_cross_entropies(
        logits, target, v, grad_output=grad_output, **options
    )
    assert_close(value, losses if reduction == "none" else mp.fsum(losses) / divisor)
    expected = [f * g for f, g in zip(factors, gradients, strict=True)]
    assert_close(grad, expected, scale=[abs(f) * x for f, x in zip(factors, sizes, strict=True)])
    diagonal = [f * h for f, h in zip(factors, hessians, strict=True)]
    assert_close(hess_diag, diagonal)
    assert_close(hvp, [h * u for h, u in zip(diagonal, mp_row(v), strict=True)])
    assert_same(ref.binary_cross_entropy(logits, target, **options), value)
    assert_same(
        ref.binary_cross_entropy_grad(logits, target, grad_output=grad_output, **options), grad
    )


def test_binary_cross_entropy_is_cross_entropy_of_two_classes() -> None:
    z, v, s = rng().normal(0, 5, 6), rng().normal(0, 1, 6), rng().uniform(0, 2, 6)
    t = np.array([0.0, 1.0, 0.25, 0.5, 1.0, 0.0])
    binary = binary_cross_entropies(z, t, v, sample_weight=s, pos_weight=3.0)
    both = cross_entropies(
        np.stack([np.zeros(6), z], 1),
        np.stack([1 - t, t], 1),
        np.stack([np.zeros(6), v], 1),
        sample_weight=s,
        weight=[1.0, 3.0],
    )
    # Another order of the same operations: a few roundings of terms that are about 1 in size.
    close: dict[str, Any] = {"rtol": TOLERANCE, "atol": TOLERANCE}
    np.testing.assert_allclose(binary[0], both[0], **close)
    for one, two in zip(binary[1:], both[1:], strict=True):
        np.testing.assert_allclose(one, two[:, 1], **close)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "normalizer"])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_linear_cross_entropy(kind: str, z_loss: float, with_bias: bool, reduction: str) -> None:
    draw = rng()
    n, d, k = 4, 2, 3
    X, W, b = draw.normal(0, 1, (n, d)), draw.normal(0, 1, (k, d)), draw.normal(0, 1, k)
    hard, l2, e = kind == "hard", 0.0 if reduction == "none" else 0.3, 0.1
    weight, s = draw.uniform(0.5, 2, k), draw.uniform(0.5, 2, n)
    labels = np.array([2, -100 if hard else 0, 1, 1])
    probabilities = draw.uniform(0, 2, (n, k))
    X[1] = NAN  # of an ignored row
    s[1] = s[1] if hard else 0.0
    grad_output: Any = draw.normal(0, 1, n) if reduction == "none" else np.float64(-1.5)
    options: dict[str, Any] = {
        "bias": b if with_bias else None,
        "l2": l2,
        "weight": weight,
        "sample_weight": s,
        "label_smoothing": e,
        "z_loss": z_loss,
        "reduction": "mean" if reduction == "normalizer" else reduction,
        "normalizer": 7.5 if reduction == "normalizer" else None,
    }

    rows_kept = [0, 2, 3]
    masses = [exactly(s[i]) * (exactly(weight[labels[i]]) if hard else 1) for i in rows_kept]
    divisor = {"mean": mp.fsum(masses), "normalizer": mpf(7.5)}.get(reduction, mpf(1))
    shapes = {"W": W.shape, "bias": b.shape, "X": X.shape}

    def split(theta: list[Any]) -> dict[str, np.ndarray]:
        parts, start = {}, 0
        for name, shape in shapes.items():
            stop = start + int(np.prod(shape))
            parts[name] = np.array(theta[start:stop], object).reshape(shape)
            start = stop
        return parts

    def row_loss(i: int, parts: dict[str, np.ndarray]) -> Any:
        z = [
            mp.fdot(line, parts["X"][i]) + c
            for line, c in zip(*list(parts.values())[:2], strict=True)
        ]
        t = [int(j == labels[i]) for j in range(k)] if hard else mp_row(probabilities[i])
        numbers = exactly(s[i]), exactly(e), exactly(z_loss)
        return mp_cross_entropy_row(z, t, mp_row(weight), *numbers, hard)

    def total(theta: list[Any], factors: Any = (1,) * n) -> Any:
        parts = split(theta)
        losses = mp.fsum(factors[i] * row_loss(i, parts) for i in rows_kept)
        return losses / divisor + exactly(l2) / 2 * mp.fsum(a**2 for a in parts["W"].flat)

    def pulled(theta: list[Any]) -> list[Any]:
        if reduction == "none":
            return mp_gradient(lambda theta: total(theta, mp_row(grad_output)), theta)
        return [exactly(grad_output) * value for value in mp_gradient(total, theta)]

    def assert_parts(actual: Any, expected: list[Any], names: Any) -> None:
        assert actual._fields == tuple(names)
        for name, part in zip(names, actual, strict=True):
            # The products are sums of terms of both signs.
            scale = max(abs(value) for value in expected)
            assert_close(part, split(expected)[name], scale=scale)

    theta = [*mp_row(W.ravel()), *mp_row(b if with_bias else np.zeros(k)), *mp_row(X.ravel())]
    target = labels if hard else probabilities
    value, grad = ref.linear_cross_entropy_value_and_grad(
        X, W, target, grad_output=grad_output, **options
    )
    if reduction == "none":
        parts = split(theta)
        losses = [row_loss(i, parts) if i in rows_kept else mpf(0) for i in range(n)]
        assert_close(value, losses, scale=[1 + loss for loss in losses])
    else:
        assert_close(value, total(theta), scale=1 + total(theta))
    gradient = pulled(theta)
    assert_parts(grad, gradient, ["W", "bias", "X"])
    assert_same(ref.linear_cross_entropy(X, W, target, **options), value)
    some = ref.linear_cross_entropy_grad(
        X, W, target, grad_output=grad_output, wrt=["X", "W"], **options
    )
    assert_parts(some, gradient, ["X", "W"])

    v = {name: draw.normal(0, 1, shape) for name, shape in shapes.items()}
    v["X"][1] = NAN
    for names, wrt in (
        (["W"], None),
        (["W", "bias"], None),
        (["W", "bias", "X"], None),
        (["X", "bias"], ("X", "bias")),
    ):
        zeros = {name: np.zeros(shape) for name, shape in shapes.items()} | {"X": 0 * X}
        still = zeros | {name: v[name] for name in names}
        step = [h for name in shapes for h in mp_row(still[name].ravel())]
        hvp = ref.linear_cross_entropy_hvp(
            X,
            W,
            target,
            tuple(v[name] for name in names),
            wrt=wrt,
            grad_output=grad_output,
            **options,
        )
        assert_parts(hvp, mp_along(pulled, theta, step), names)

    if z_loss == 0:
        penalty = [exactly(l2)] * W.size + [mpf(0)] * (b.size + X.size)
        hessian = [a - c for a, c in zip(mp_second(total, theta), penalty, strict=True)]
        fisher = ref.linear_cross_entropy_fisher_diag(
            X, W, target, **{name: o for name, o in options.items() if name != "l2"}
        )
        assert_parts(fisher, hessian, ["W", "bias"])


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
    for derivative in (ref.softmax_vjp, ref.softmax_jvp, ref.log_softmax_vjp, ref.log_softmax_jvp):
        assert_same(derivative(dirty, dirty_v, where=MASK), scattered(derivative(kept, kept_v), 0))
    assert_same(ref.logsumexp(dirty, where=MASK), ref.logsumexp(kept))
    vjp = ref.logsumexp_vjp(dirty, 2.0, where=MASK)
    assert_same(vjp, scattered(ref.logsumexp_vjp(kept, 2.0), 0))
    assert_same(ref.logsumexp_jvp(dirty, dirty_v, where=MASK), ref.logsumexp_jvp(kept, kept_v))

    weight = np.array([0.5, 9.0, 2.0, 1.0])
    targets: list[tuple[Any, Any]] = [(2, 1), ([0.2, 0.0, 0.3, 0.1], [0.2, 0.3, 0.1])]
    for target, kept_target in targets:
        # Smoothing spreads over the classes kept: K and W count those.
        options: dict[str, Any] = {"label_smoothing": 0.2, "z_loss": 0.1}
        value, *derivatives = cross_entropies(
            dirty, target, dirty_v, where=MASK, weight=weight, **options
        )
        expected, *expected_derivatives = cross_entropies(
            kept, kept_target, kept_v, weight=weight[MASK], **options
        )
        assert_same(value, expected)
        for actual, short in zip(derivatives, expected_derivatives, strict=True):
            assert_same(actual, scattered(short, 0))


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
    value, grad, hvp, hess_diag = cross_entropies([0.0, -40.0], 0, [1.0, 0.0])
    assert_hand(value, 4.248354255291589e-18)
    assert_hand(grad, [-4.248354255291589e-18, 4.248354255291589e-18])
    assert_hand(hvp, [4.248354255291589e-18, -4.248354255291589e-18])
    assert_hand(hess_diag, [4.248354255291589e-18, 4.248354255291589e-18])


def test_z_loss_of_two_equal_logits() -> None:
    # p = 1/2 and logsumexp = log 2 = 0.693...; z_loss is multiplied by s = 2 and not by w = 3.
    value, grad, hvp, hess_diag = cross_entropies(
        [0.0, 0.0], 0, [1.0, 1.0], weight=[3.0, 5.0], sample_weight=2.0, z_loss=1.0, reduction="sum"
    )
    log2 = 0.6931471805599453
    assert_hand(value, 6 * log2 + 2 * log2**2)
    assert_hand(grad, [2 * log2 - 3, 2 * log2 + 3])
    # On ones only 2 s z_loss p (p.1) remains; the diagonal is (6 + 4 log 2) / 4 + 4 / 4.
    assert_hand(hvp, [2.0, 2.0])
    assert_hand(hess_diag, [2.5 + log2, 2.5 + log2])


def test_sigmoid_of_log_three() -> None:
    assert_hand(ref.sigmoid([0.0, np.log(3.0)]), [0.5, 0.75])
    assert_hand(ref.log_sigmoid([40.0, -40.0]), [-4.248354255291589e-18, -40.0])


def test_binary_cross_entropy_in_both_tails() -> None:
    for z, t, slope in ((40.0, 1, -1), (-40.0, 0, 1)):
        value, grad, hvp, hess_diag = binary_cross_entropies([z], [t], [2.0])
        assert_hand(value, 4.248354255291589e-18)
        assert_hand(grad, [slope * 4.248354255291589e-18])
        assert_hand(hvp, [2 * 4.248354255291589e-18])
        assert_hand(hess_diag, [4.248354255291589e-18])
    assert_hand(ref.binary_cross_entropy([-40.0], [1]), 40.0)


def assert_stats(stats: ref.TokenStats, **expected: Any) -> None:
    dtypes = {"argmax": np.int64, "correct": np.bool_, "rank": np.int64}
    for name, values in expected.items():
        actual = getattr(stats, name)
        assert actual.dtype == dtypes.get(name, np.longdouble)
        np.testing.assert_array_equal(actual, values, err_msg=name, strict=name in dtypes)


def test_equal_logits_rank_by_index() -> None:
    stats = ref.token_stats([[2.0, 5.0, 5.0, 2.0]] * 4, [0, 1, 2, 3])
    assert_stats(
        stats,
        argmax=np.array([1, 1, 1, 1]),
        rank=np.array([2, 0, 1, 3]),
        correct=np.array([False, True, False, False]),
    )
    assert_hand(ref.token_stats(np.zeros(5), 0).entropy, 1.6094379124341003)
    # H = log(1 + e**-40) + 40 / (1 + e**40)
    assert_hand(ref.token_stats([0.0, -40.0], 0).entropy, 1.7418252446695516e-16)


def test_linear_cross_entropy_by_hand() -> None:
    # Logits 0 and log 3: p = (1/4, 3/4), and the row's x is 2.
    X, W, log3 = [[2.0]], [[0.0], [0.5 * np.log(3.0)]], np.log(3.0)
    value, grad = ref.linear_cross_entropy_value_and_grad(X, W, [0])
    assert_hand(value, 2 * np.log(2.0))
    assert_hand(grad.W, [[-1.5], [1.5]])
    assert_hand(grad.bias, [-0.75, 0.75])
    assert_hand(grad.X, [[0.375 * log3]])
    assert_hand(ref.linear_cross_entropy_fisher_diag(X, W, [0]).W, [[0.75], [0.75]])
    hvp = ref.linear_cross_entropy_hvp(X, W, [0], ([[0.0], [1.0]],), l2=3.0)
    assert_hand(hvp.W, [[-0.75], [3.75]])
    # The penalty is 1/2 l2 |W|^2, and does not touch the bias.
    penalized, slopes = ref.linear_cross_entropy_value_and_grad(X, W, [0], l2=8.0, bias=[5.0, 5.0])
    assert_hand(penalized, 2 * np.log(2.0) + log3**2)
    assert_hand(slopes.W, [[-1.5], [1.5 + 4 * log3]])
    assert_hand(slopes.bias, [-0.75, 0.75])


def test_linear_cross_entropy_refuses_what_it_cannot_mean() -> None:
    X, W, y = [[2.0]], [[0.0], [1.0]], [0]
    for call in (
        ref.linear_cross_entropy,
        ref.linear_cross_entropy_grad,
        partial(ref.linear_cross_entropy_hvp, v=(W,)),
    ):
        with pytest.raises(ValueError, match="l2 must be 0"):
            call(X, W, y, l2=0.5, reduction="none")
        call(X, W, y, l2=0.0, reduction="none")
    with pytest.raises(ValueError, match="z_loss must be 0"):
        ref.linear_cross_entropy_fisher_diag(X, W, y, z_loss=0.1)
    with pytest.raises(KeyError, match="X"):
        ref.linear_cross_entropy_fisher_diag(X, W, y, wrt=["X"])


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
    for derivative in (ref.softmax_vjp, ref.softmax_jvp, ref.log_softmax_vjp, ref.log_softmax_jvp):
        assert_same(derivative(x, v), [nans, derivative(good, v[1])])
    assert_same(ref.logsumexp_vjp(x, [1.0, 1.0]), [nans, ref.softmax(good)])
    assert_same(ref.logsumexp_jvp(x, v), [NAN, ref.logsumexp_jvp(good, v[1])])
    for z_loss in (0.0, 0.1):
        value, *derivatives = cross_entropies(x, [0, 1], v, reduction="none", z_loss=z_loss)
        expected, *expected_derivatives = cross_entropies(good, 1, v[1], z_loss=z_loss)
        assert_same(value, [NAN, expected])
        for actual, alone in zip(derivatives, expected_derivatives, strict=True):
            assert_same(actual, [nans, alone])
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


@pytest.mark.parametrize("z_loss", [0.0, 0.5])
def test_a_class_at_minus_infinity_has_no_part_in_second_derivatives(z_loss: float) -> None:
    finite = cross_entropies([0.0, 1.0], 0, [1.0, 3.0], z_loss=z_loss)
    for target in (1, 0):  # its mass is 0, or 1
        value, grad, hvp, hess_diag = cross_entropies(
            [-INF, 0.0, 1.0], target, [2.0, 1.0, 3.0], z_loss=z_loss
        )
        assert_same(value, INF if target == 0 else finite[0])
        assert_same(grad[0], -1 if target == 0 else 0)
        assert_same(hvp, [0, *finite[2]])
        assert_same(hess_diag, [0, *finite[3]])


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


def test_token_stats_of_special_rows() -> None:
    table: list[tuple[list[float], int, tuple[Any, ...]]] = [
        # logits, target: nll, logsumexp, argmax, correct, entropy, rank
        ([1.0, NAN, NAN], 1, (NAN, NAN, 1, False, NAN, -1)),
        ([INF, NAN, 0.0], 0, (NAN, NAN, 1, False, NAN, -1)),
        ([1.0, INF, INF], 1, (NAN, INF, 1, True, NAN, 0)),
        ([1.0, INF, INF], 2, (NAN, INF, 1, False, NAN, 1)),
        ([-INF, -INF, -INF], 1, (NAN, -INF, 0, False, NAN, 1)),
        ([-INF, 7.0, -INF], 1, (0, 7, 1, True, 0, 0)),
        ([-INF, 7.0, -INF], 2, (INF, 7, 1, False, 0, 2)),
        # Ignored: what does not depend on the target is there all the same.
        ([-INF, 7.0, -INF], -100, (0, 7, 1, False, 0, -1)),
        ([1.0, NAN, NAN], -100, (0, NAN, 1, False, NAN, -1)),
        ([1.0, INF, -INF], -100, (0, INF, 1, False, NAN, -1)),
    ]
    stats = ref.token_stats([row for row, _, _ in table], [y for _, y, _ in table])
    expected = zip(*(values for _, _, values in table), strict=True)
    for name, values in zip(ref.TokenStats._fields, expected, strict=True):
        assert_stats(stats, **{name: np.array(values)})


def test_token_stats_ignores_the_index_given() -> None:
    row = [0.0, 0.0]
    assert_stats(ref.token_stats([row, row], [0, 1], ignore_index=0), rank=np.array([-1, 1]))
    assert_stats(ref.token_stats([row, row], [0, 1], ignore_index=None), rank=np.array([0, 1]))
    with pytest.raises(IndexError, match=r"target\[1\] is -100"):
        ref.token_stats([row, row], [0, -100], ignore_index=None)


@pytest.mark.parametrize("axis", [0, 1, 2, -2])
def test_token_stats_axis(axis: int) -> None:
    x = rng().normal(0, 3, (2, 3, 4))
    classes_last = np.moveaxis(x, axis, -1)
    labels = rng().integers(0, 2, classes_last.shape[:-1])
    stats = ref.token_stats(x, labels, axis=axis)
    for place in np.ndindex(*labels.shape):
        alone = ref.token_stats(classes_last[place], labels[place])
        for actual, expected in zip(stats, alone, strict=True):
            assert actual.shape == labels.shape
            assert actual[place] == expected


def test_linear_cross_entropy_of_nothing() -> None:
    X, W, y = np.full((2, 1), NAN), np.ones((3, 1)), [-100, -100]
    value, grad = ref.linear_cross_entropy_value_and_grad(X, W, y, l2=0.5, grad_output=2.0)
    assert_same(value, NAN)
    assert_same(grad.W, W)  # the penalty's part alone
    assert_same(grad.bias, np.zeros(3))
    assert_same(grad.X, np.zeros((2, 1)))
    assert_same(ref.linear_cross_entropy(X, W, y, l2=0.5, reduction="sum"), 0.75)
    hvp = ref.linear_cross_entropy_hvp(X, W, y, (3 * W, np.ones(3), X), l2=0.5)
    assert_same(hvp.W, 1.5 * W)
    assert_same(hvp.bias, np.zeros(3))
    assert_same(hvp.X, np.zeros((2, 1)))


def test_linear_cross_entropy_of_nan() -> None:
    # In a row of X: the gradients that it enters are NaN, the other rows are untouched.
    X, W, y = [[NAN], [1.0]], [[0.0], [0.0]], [0, 0]
    value, grad = ref.linear_cross_entropy_value_and_grad(X, W, y, reduction="none")
    assert_same(value, [NAN, ref.cross_entropy([0.0, 0.0], 0)])
    assert_same(grad.W, [[NAN], [NAN]])
    assert_same(grad.X, [[NAN], [0]])
    # In W: every row is NaN but those that are ignored.
    hvp = ref.linear_cross_entropy_hvp(X, [[NAN], [1.0]], [-100, 0], (W, [0.0, 0.0], X))
    grad = ref.linear_cross_entropy_grad(X, [[NAN], [1.0]], [-100, 0])
    for part in (hvp, grad):
        assert_same(part.X, [[0], [NAN]])


def test_linear_cross_entropy_without_a_penalty_does_not_touch_an_infinite_weight() -> None:
    X, W = [[1.0]], [[0.0], [-INF]]
    value, grad = ref.linear_cross_entropy_value_and_grad(X, W, [1], wrt=["W"])
    assert_same(value, INF)
    assert_same(grad.W, [[1], [-1]])


def test_sigmoid_of_what_is_not_finite() -> None:
    x = [-INF, INF, NAN]
    assert_same(ref.sigmoid(x), [0, 1, NAN])
    assert_same(ref.log_sigmoid(x), [-INF, 0, NAN])
    for derivative in (ref.sigmoid_vjp, ref.sigmoid_jvp):
        assert_same(derivative(x, np.ones(3)), [0, 0, NAN])
    for derivative in (ref.log_sigmoid_vjp, ref.log_sigmoid_jvp):
        assert_same(derivative(x, np.ones(3)), [1, 0, NAN])


def test_binary_cross_entropy_of_what_is_not_finite() -> None:
    logits = [INF, INF, INF, -INF, -INF, -INF, NAN, 0.0]
    target = [0.0, 1.0, 0.25, 0.0, 1.0, 0.25, 1.0, 1.0]
    log2 = ref.binary_cross_entropy(0.0, 1)
    value, grad, hvp, hess_diag = binary_cross_entropies(
        logits, target, np.full(8, 2.0), pos_weight=4.0, reduction="none"
    )
    assert_same(value, [INF, 0, INF, 0, INF, INF, NAN, 4 * log2])
    assert_same(grad, [1, 0, 0.75, 0, -4, -1, NAN, -2])
    assert_same(hess_diag, [0, 0, 0, 0, 0, 0, NAN, 1])
    assert_same(hvp, 2 * hess_diag)
    # A factor 0 takes the positive class out, not the element.
    value, grad, *_ = binary_cross_entropies([-INF, NAN], [1, 1], [1.0, 1.0], pos_weight=0.0)
    assert_same(value, NAN)
    assert_same(grad, [0, NAN])


@pytest.mark.parametrize("first", [NAN, INF, -INF, 0.0])
@pytest.mark.parametrize("options", [{"sample_weight": [0.0, 1.0]}, {"where": [False, True]}])
def test_ignored_element(first: float, options: dict[str, Any]) -> None:
    expected, *expected_derivatives = binary_cross_entropies([1.0], [0], [3.0])
    logits, v = [first, 1.0], [NAN, 3.0]
    value, *derivatives = binary_cross_entropies(
        logits, [1, 0], v, reduction="none", grad_output=[NAN, 1.0], **options
    )
    assert_same(value, [0, expected])
    mean, *mean_derivatives = binary_cross_entropies(logits, [1, 0], v, **options)
    assert_same(mean, expected)
    for actual, alone in zip(
        [*derivatives, *mean_derivatives], 2 * expected_derivatives, strict=True
    ):
        assert_same(actual, [0, *alone])


@pytest.mark.parametrize("options", [{"sample_weight": 0.0}, {"where": False}])
def test_binary_cross_entropy_of_nothing(options: dict[str, Any]) -> None:
    z, zeros = [1.0, NAN], np.zeros(2)
    value, *derivatives = binary_cross_entropies(z, [0, 1], z, grad_output=INF, **options)
    assert_same(value, NAN)
    for extra in ({"reduction": "sum"}, {"normalizer": 4.0}):
        zero, *more = binary_cross_entropies(z, [0, 1], z, **extra, **options)
        assert_same(zero, 0)
        derivatives += more
    for derivative in derivatives:
        assert_same(derivative, zeros)


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
    for derivative in cross_entropies(x, y, x)[1:]:
        assert_same(derivative, x)


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
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_ignored_row(
    z_loss: float, first: list[float], target: Any, options: dict[str, Any]
) -> None:
    good, v = [0.0, 1.0, 2.0], [[NAN, 1.0, 2.0], [1.0, -1.0, 3.0]]
    expected, *expected_derivatives = cross_entropies(good, 1, v[1], z_loss=z_loss)
    value, *derivatives = cross_entropies(
        [first, good],
        target,
        v,
        reduction="none",
        grad_output=[NAN, 1.0],
        z_loss=z_loss,
        **options,
    )
    assert_same(value, [0, expected])
    # An ignored row is not in the divisor either.
    mean, *mean_derivatives = cross_entropies([first, good], target, v, z_loss=z_loss, **options)
    assert_same(mean, expected)
    for actual, alone in zip(
        [*derivatives, *mean_derivatives], 2 * expected_derivatives, strict=True
    ):
        assert_same(actual, [[0, 0, 0], alone])


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
    value, *derivatives = cross_entropies(x, target, x, grad_output=INF, z_loss=0.1, **options)
    assert_same(value, NAN)
    for derivative in derivatives:
        assert_same(derivative, np.zeros((2, 2)))


@pytest.mark.parametrize("name", sorted(NOTHING.keys() - {"no class weight in the divisor"}))
def test_sum_and_normalizer_of_nothing(name: str) -> None:
    target, options = NOTHING[name]
    x = np.array([[0.0, NAN], [3.0, 3.0]])
    for extra in ({"reduction": "sum"}, {"normalizer": 4.0}):
        value, *derivatives = cross_entropies(x, target, x, **extra, z_loss=0.1, **options)
        assert_same(value, 0)
        for derivative in derivatives:
            assert_same(derivative, np.zeros((2, 2)))


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
    x, v = draw.normal(0, 3, (2, 3, 4)), draw.normal(0, 1, (2, 3, 4))
    classes_last = np.moveaxis(x, axis, -1)
    batch, c = classes_last.shape[:-1], classes_last.shape[-1]
    labels, s = draw.integers(0, c, batch), draw.uniform(1, 2, batch)
    keep = np.arange(c) != draw.integers(0, c, batch)[..., None]
    labels = np.where(np.take_along_axis(keep, labels[..., None], -1)[..., 0], labels, -100)
    target: Any = labels
    if soft:
        target = np.moveaxis(keep * draw.uniform(0, 1, classes_last.shape), -1, axis)
    value, *derivatives = cross_entropies(
        x,
        target,
        v,
        axis=axis,
        sample_weight=s,
        where=np.moveaxis(keep, -1, axis),
        reduction="none",
        grad_output=s,
    )
    assert value.shape == batch
    for place in np.ndindex(*batch):
        row_target = np.moveaxis(target, axis, -1)[place] if soft else labels[place]
        expected, *expected_derivatives = cross_entropies(
            classes_last[place],
            row_target,
            np.moveaxis(v, axis, -1)[place],
            sample_weight=s[place],
            where=keep[place],
            reduction="sum",
            grad_output=s[place],
        )
        assert_same(value[place], expected)
        for actual, row in zip(derivatives, expected_derivatives, strict=True):
            assert_same(np.moveaxis(actual, axis, -1)[place], row)


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


@pytest.mark.parametrize("name", ref.__all__)
def test_examples_run(name: str) -> None:
    function = inspect.unwrap(getattr(ref, name))  # under errstate doctest does not see them
    runner = doctest.DocTestRunner(verbose=False)
    report: list[str] = []
    [test] = doctest.DocTestFinder().find(function, name, globs=vars(ref) | {"np": np})
    with np.errstate(all="warn"):
        runner.run(test, out=report.append)
    assert runner.tries > 0
    assert runner.failures == 0, "".join(report)


def test_binary_cross_entropy_keeps_the_shape() -> None:
    draw = rng()
    z, t, v = draw.normal(0, 3, (3, 2, 4)), draw.uniform(0, 1, (3, 2, 4)), draw.normal(0, 1, 4)
    options = {"pos_weight": [1.0, 2.0, 3.0, 4.0], "where": [[True], [False]]}
    full = [np.broadcast_to(a, z.shape) for a in (v, *options.values())]
    flat = {name: a.ravel() for name, a in zip(options, full[1:], strict=True)}
    expected = binary_cross_entropies(
        z.ravel(), t.ravel(), full[0].ravel(), reduction="none", **flat
    )
    actual = binary_cross_entropies(np.asfortranarray(z), t, full[0], reduction="none", **options)
    for shaped, line in zip(actual, expected, strict=True):
        assert_same(shaped, line.reshape(z.shape))
    for result in binary_cross_entropies(2.0, True, 1.0, reduction="none"):
        assert result.shape == ()
    for function in (ref.sigmoid, ref.log_sigmoid):
        assert function(z).shape == z.shape
        assert function(2.0).shape == ()


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
    cross_entropies(x, y, v, where=mask, sample_weight=[1, 2], label_smoothing=0.1)
    assert [array.tobytes() for array in arrays] == before
