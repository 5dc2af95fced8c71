"""The checker: its numbers, its verdicts, its diagnoses, and what it does to its surroundings."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import fastgrad as fg
from fastgrad._gradcheck.differences import Sweep, derivative, difference_noise
from fastgrad._kernels import isa as _isa

N, C = 16, 10


@pytest.fixture
def z(rng):
    return rng.standard_normal((N, C))


@pytest.fixture
def y(rng):
    return rng.integers(0, C, N)


def _ce(z, y):
    """Not a Loss: the checker has to go the general way."""
    return fg.cross_entropy(z, y)


def _grad(z, y):
    return fg.cross_entropy.grad(z, y)


# ---- numbers ------------------------------------------------------------------------------------


def _sweep(f, x, h, noise=0.0):
    x = np.asarray(x, float)
    up, down = (x + h[:, None]) - x, x - (x - h[:, None])
    with np.errstate(invalid="ignore"):
        return derivative(Sweep(up, down, f(x + up), f(x - down), f(x), np.full(len(x), noise)))


def test_a_smooth_function_has_its_derivative_within_the_bar():
    x = np.linspace(-3, 3, 201)
    s = _sweep(np.sin, x, 0.1 * 4.0 ** -np.arange(5))
    assert np.all(np.abs(s.value - np.cos(x)) <= s.bar)
    assert np.all(s.bar < 1e-10)
    assert not s.kink.any()
    assert not s.jump.any()


def test_the_bar_grows_with_the_noise(rng):
    x = np.linspace(0.5, 3, 500)

    def noisy(t):
        return np.exp(t) + 1e-7 * rng.standard_normal(t.shape)

    s = _sweep(noisy, x, 0.1 * 4.0 ** -np.arange(5), noise=1e-7)
    error = np.abs(s.value - np.exp(x))
    assert np.mean(error <= s.bar) >= 0.999
    assert np.median(s.bar) > 1e-7


def test_a_kink_has_two_slopes():
    s = _sweep(
        lambda t: np.maximum(0, t) - 3 * np.minimum(0, t), [0.0, 0.5], 0.1 * 4.0 ** -np.arange(5)
    )
    assert s.kink.tolist() == [True, False]
    np.testing.assert_allclose([s.left[0], s.right[0]], [-3, 1], rtol=1e-12)


def test_a_kink_between_the_steps_is_resolved_by_the_small_ones():
    s = _sweep(np.abs, [0.01], 0.1 * 4.0 ** -np.arange(5))
    assert not s.kink[0]
    assert abs(s.value[0] - 1) <= s.bar[0] < 1e-9


def test_what_looks_like_a_kink_from_afar_is_none():
    # From 1e5 away log(1 + e^t) is max(0, t).
    s = _sweep(lambda t: np.logaddexp(0, t), [0.3], 1e6 * 4.0 ** -np.arange(16))
    assert not s.kink[0]
    assert abs(s.value[0] - 1 / (1 + np.exp(-0.3))) <= s.bar[0] < 1e-6


def test_a_jump_is_not_a_derivative():
    s = _sweep(lambda t: (t >= 0) * 1.0, [0.0], 0.1 * 4.0 ** -np.arange(5))
    assert s.jump[0]


def test_the_edge_of_a_domain_has_the_slope_of_its_side():
    s = _sweep(lambda t: np.sqrt(t) ** 3, [0.0], 1e-2 * 4.0 ** -np.arange(8))
    assert s.edge[0]
    assert abs(s.value[0]) <= s.bar[0] < 1e-3


@pytest.mark.parametrize("sigma", [1e-12, 1e-6, 1e-2])
def test_noise_is_measured_to_a_factor_of_three(rng, sigma):
    x = np.linspace(1, 2, 400)
    t = x + 1e-9 * np.arange(7)[:, None]
    found = difference_noise(np.exp(t) + sigma * rng.standard_normal(t.shape))
    assert sigma / 3 < np.nanmedian(found) < 3 * sigma


def test_no_noise_in_a_constant():
    assert difference_noise(np.ones((7, 3))).tolist() == [0, 0, 0]


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_bars_cover_the_true_error(rng, scale):
    z, y = scale * rng.standard_normal((40, 25)), rng.integers(0, 25, 40)
    # The kernel's own gradient is right to a few eps (tests of accuracy), the differences are not.
    true = fg.cross_entropy.grad(z / scale, y) / scale

    def f(z, y):
        return fg.cross_entropy(z / scale, y)

    r = fg.gradcheck(f, z, y, grad=lambda z, y: true, mode="full")
    assert r.verdict == "PASS"
    report = r.inputs["z"]
    inside = np.abs(report.numeric - true) <= report.bar + 4 * np.finfo(float).eps * np.abs(true)
    assert inside.mean() >= 0.999


def test_numerical_functions_agree_with_the_kernels(z, y):
    eps = np.finfo(float).eps
    # Six-step differences of a value near 2.5 with steps near 1/64: noise eps·f/h in each element.
    loose = 1e3 * eps
    np.testing.assert_allclose(fg.numerical_gradient(_ce, z, y), _grad(z, y), atol=loose)
    J = fg.numerical_jacobian(fg.softmax, z[0])
    p = fg.softmax(z[0])
    np.testing.assert_allclose(J, np.diag(p) - np.outer(p, p), atol=1e4 * eps)
    v = np.cos(z)
    np.testing.assert_allclose(
        fg.numerical_hvp(fg.cross_entropy, z, y, v=v), fg.cross_entropy.hvp(z, y, v), atol=1e4 * eps
    )
    plain = fg.numerical_hvp(_ce, z, y, v=v)  # differences of differences
    np.testing.assert_allclose(plain, fg.cross_entropy.hvp(z, y, v), atol=1e-6)
    both = fg.numerical_gradient(lambda a, b: np.sum(a * b), z, 2 * z, wrt=("a", "b"))
    np.testing.assert_allclose(both, [2 * z, z], atol=1e5 * eps)


# ---- verdicts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "full", "random", "rows"])
def test_a_right_gradient_passes(z, y, mode):
    r = fg.gradcheck(fg.cross_entropy, z, y, mode=mode)
    assert r
    assert r.verdict == "PASS"
    assert r.diagnoses == ()
    if mode != "random":
        assert r.resolved == r.checked == z.size


def test_random_mode_decides_in_sixty_evaluations(rng):
    z, y = rng.standard_normal((2048, 32)), rng.integers(0, 32, 2048)
    r = fg.gradcheck(_ce, z, y, grad=_grad, mode="random")
    assert r
    assert r.evals <= 60
    assert "probability at most 1e-06" in r.guarantee


@pytest.mark.parametrize("mode", ["full", "rows", "random"])
def test_what_rtol_grants_is_granted_in_every_mode(z, y, mode):
    def off_by(error):
        return fg.Loss(
            value=lambda z, y, *, reduction="mean": fg.cross_entropy(z, y, reduction=reduction),
            grad=lambda z, y: (1 + error) * _grad(z, y),
        )

    assert fg.gradcheck(off_by(3e-8), z, y, mode=mode)
    assert fg.gradcheck(off_by(1e-6), z, y, mode=mode).verdict == "FAIL"


def test_more_directions_until_an_error_would_be_found(z, y):
    four = fg.gradcheck(_ce, z, y, grad=_grad, mode="random")
    more = fg.gradcheck(_ce, z, y, grad=_grad, mode="random", miss=1e-9, detect=1e-11)
    assert "1e-09" in more.guarantee
    assert more.evals > four.evals
    assert "(4 directions" not in more.guarantee


def test_points_beside_x_are_checked_too(z, y):
    r = fg.gradcheck(_ce, z, y, grad=_grad, points=3)
    assert r
    assert "right at 3 points" in r.notes

    def right_at_z_alone(x, y):
        return _grad(x, y) * (1 if np.array_equal(x, z) else 1.01)

    assert fg.gradcheck(_ce, z, y, grad=right_at_z_alone)
    r = fg.gradcheck(_ce, z, y, grad=right_at_z_alone, points=2)
    assert r.verdict == "FAIL"
    assert "a point beside it" in r.notes[-1]
    with pytest.raises(ValueError, match="points > 1 needs grad as a function"):
        fg.gradcheck(_ce, z, y, grad=_grad(z, y), points=2)


def _double_one(g):
    g[500, 3] *= 2


def _swap_two(g):
    g[[5, 1900], [3, 1]] = g[[1900, 5], [1, 3]]


def _scale(g):
    g *= 1.001


def _drop_last_column(g):
    g[:, -1] = 0


def _drop_last_row(g):
    g[-1] = 0


@pytest.mark.parametrize(
    ("spoil", "code", "where"),
    [
        (_double_one, "element", {(500, 3)}),
        (_swap_two, "permuted", {(5, 3), (1900, 1)}),
        (_scale, "factor", None),
        (_drop_last_column, "tail", None),
        (_drop_last_row, "missing row", None),
    ],
)
def test_random_mode_finds_and_locates(rng, spoil, code, where):
    z, y = rng.standard_normal((2048, 32)), rng.integers(0, 32, 2048)

    def wrong(z, y):
        g = _grad(z, y)
        spoil(g)
        return g

    r = fg.gradcheck(_ce, z, y, grad=wrong, mode="random")
    assert r.verdict == "FAIL"
    assert r.evals <= 60 + 1500
    assert r.diagnoses[0].code == code
    if where:
        assert {e.index for e in r.wrong} == where


def test_rows_see_what_the_mean_hides(rng):
    # A row with margin 60: its gradient is 1e-26 of the others', far below the noise of the mean.
    z, y = rng.standard_normal((8, 4)), np.zeros(8, int)
    z[0, 0] += 60

    def wrong(z, y, *, reduction="mean"):
        g = fg.cross_entropy.grad(z, y, reduction=reduction)
        g[0, 1] *= 1.01
        return g

    spoiled = fg.Loss(
        value=lambda z, y, *, reduction="mean": fg.cross_entropy(z, y, reduction=reduction),
        grad=wrong,
    )
    assert fg.gradcheck(spoiled, z, y, mode="full")
    r = fg.gradcheck(spoiled, z, y, mode="rows")
    assert r.verdict == "FAIL"
    assert [e.index for e in r.wrong] == [(0, 1)]


def test_rows_that_depend_on_each_other_are_not_taken_at_once(z):
    def normalised(x):
        return np.sum((x - x.mean(axis=0)) ** 2, axis=-1)

    def vjp(x, v):
        g = 2 * (x - x.mean(axis=0)) * v[:, None]
        return g - g.mean(axis=0)

    f = fg.Map(normalised, vjp=vjp)
    assert fg.gradcheck(f, z).mode == "full"
    with pytest.raises(ValueError, match="mode='rows' needs rows that do not depend on each other"):
        fg.gradcheck(f, z, mode="rows")


def test_rows_that_count_differently_are_not_taken_at_once(z):
    w = np.arange(1.0, len(z) + 1)

    def value(z, reduction="mean"):
        rows = np.sum(z**4, axis=1)
        return rows if reduction == "none" else float(w @ rows)

    right = fg.Loss(value=value, grad=lambda z, **_: 4 * w[:, None] * z**3)
    wrong = fg.Loss(value=value, grad=lambda z, **_: 4 * z**3)
    assert fg.gradcheck(right, z).verdict == "PASS"
    assert fg.gradcheck(wrong, z).verdict == "FAIL"


def test_kinks_accept_any_subgradient_and_nothing_else():
    x = np.array([0.0, 2.0, 0.0])

    def f(x):
        return np.sum(np.abs(x))

    for at_zero, verdict in ((0.0, "KINK"), (-1.0, "KINK"), (0.3, "KINK"), (1.2, "FAIL")):
        r = fg.gradcheck(f, x, grad=lambda x, a=at_zero: np.where(x == 0, a, np.sign(x)))
        assert r.verdict == verdict
        assert bool(r) == (verdict == "KINK")
        assert {k.index for k in r.kinks} == {(0,), (2,)}
        np.testing.assert_allclose([(k.left, k.right) for k in r.kinks], [(-1, 1)] * 2)
        assert {k.valid for k in r.kinks} == {verdict == "KINK"}


def test_a_jump_is_unresolved_and_says_so():
    r = fg.gradcheck(lambda x: float(np.sum(x >= 0)), np.array([0.0, 1.0]), grad=np.zeros_like)
    assert r.verdict == "UNRESOLVED"
    assert not r
    assert "f jumps" in r.message


def test_a_gradient_below_the_noise_is_unresolved_not_passed(rng):
    x = rng.standard_normal(20)

    def noisy(x):
        return float(np.sum(x**2) * 1e-9 + 1e-3 * np.sin(1e9 * x.sum()))

    for sign in (1, -1):
        r = fg.gradcheck(noisy, x, grad=lambda x, s=sign: s * 2e-9 * x)
        assert r.verdict == "UNRESOLVED"
        assert "noise of f" in r.message


def test_noise_widens_the_bar_and_does_not_hide_the_gradient(rng):
    x = rng.standard_normal(20)

    def noisy(x):
        return float(np.sum(x**2) + 1e-6 * np.sin(1e9 * x.sum()))

    assert fg.gradcheck(noisy, x, grad=lambda x: 2 * x)
    assert fg.gradcheck(noisy, x, grad=lambda x: 2.2 * x).verdict == "FAIL"


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6, -1e8])
def test_logits_with_a_common_offset(z, y, offset):
    assert fg.gradcheck(_ce, z + offset, y, grad=_grad)
    r = fg.gradcheck(_ce, z + offset, y, grad=lambda z, y: 1.001 * _grad(z, y))
    assert r.verdict == "FAIL"
    assert r.diagnoses[0].code == "factor"


def test_float32_is_judged_by_its_own_precision(z, y):
    x = z.astype(np.float32)
    assert fg.gradcheck(_ce, x, y, grad=_grad)
    assert (
        fg.gradcheck(_ce, x, y, grad=lambda z, y: np.float32(1.001) * _grad(z, y)).verdict == "FAIL"
    )

    def only_float32(x):
        if x.dtype != np.float32:
            raise TypeError("float32 only")
        return np.float32(np.sum(x * x))

    assert fg.gradcheck(only_float32, x, grad=lambda x: 2 * x)
    assert fg.gradcheck(only_float32, x, grad=lambda x: 2.1 * x).verdict == "FAIL"


def test_a_right_gradient_in_float16_passes(rng):
    x = rng.standard_normal((5, 4)).astype(np.float16)
    assert fg.gradcheck(lambda x: np.sum(x * x), x, grad=lambda x: 2 * x).verdict == "PASS"


def test_a_function_that_is_float32_inside(z):
    def f(x):
        return float(np.sum(x.astype(np.float32) ** 2))

    assert fg.gradcheck(f, z, grad=lambda x: 2 * x)
    assert fg.gradcheck(f, z, grad=lambda x: 2.1 * x).verdict == "FAIL"


def test_the_edge_of_log(rng):
    x = np.array([1.0, 2e-300, 3e-8])
    assert fg.gradcheck(lambda x: np.sum(np.log(x)), x, grad=lambda x: 1 / x)
    wrong = fg.gradcheck(lambda x: np.sum(np.log(x)), x, grad=lambda x: 1 / (x + 1e-8))
    assert wrong.verdict == "FAIL"


@pytest.mark.parametrize("mode", ["full", "random"])
def test_edges_nearer_than_the_steps(mode):
    def f(p):
        return float(np.sum(np.log(p) + np.log1p(-p)))

    def grad(p):
        return 1 / p - 1 / (1 - p)

    p = np.array([1 - 1e-8, 0.5, 1e-7])
    # 1 − p keeps 8 digits of a p that near to 1; the slope there no more.
    assert fg.gradcheck(f, p, grad=grad, mode=mode).verdict in ("PASS", "UNRESOLVED")
    if mode == "full":
        assert fg.gradcheck(f, p, grad=grad).verdict == "PASS"
        wrong = fg.gradcheck(f, p, grad=lambda p: grad(p) * np.array([1, 1, 1.01]))
        assert [e.index for e in wrong.wrong] == [(2,)]
    np.testing.assert_allclose(fg.numerical_gradient(f, p), grad(p), rtol=1e-6)


def _waves(x):
    return float(np.sum(np.sin(1e6 * x)))


FINE = {
    "cbrt": (lambda x: np.sum(np.cbrt(x)), lambda x: np.cbrt(x) ** -2 / 3, [1e-8, 1]),
    "sqrt": (
        lambda x: np.sum(np.sqrt(abs(x))),
        lambda x: 0.5 * np.sign(x) / np.sqrt(abs(x)),
        [1e-6, 1],
    ),
    "x log x": (
        lambda x: np.sum(x * np.log(abs(x) + 1e-300)),
        lambda x: np.log(abs(x) + 1e-300) + 1,
        [1e-9, 1],
    ),
    "waves": (_waves, lambda x: 1e6 * np.cos(1e6 * x), [0.3, 0.7, -1.1]),
    "rounded |x|": (
        lambda x: np.sum(np.sqrt(x * x + 1e-12)),
        lambda x: x / np.sqrt(x * x + 1e-12),
        [3e-7, 1, -2],
    ),
    "relu": (lambda x: np.sum(np.maximum(x, 0)), lambda x: (x > 0) * 1.0, [1e-7, 1]),
}


@pytest.mark.parametrize("name", FINE)
def test_bends_nearer_than_the_steps(name):
    # Each bends within 1e-6 of x, where larger steps see a kink, or a slope of something else.
    f, grad, x = FINE[name]
    x = np.array(x, float)
    assert fg.gradcheck(f, x, grad=grad).verdict == "PASS"
    spoiled = np.r_[0.9, np.ones(len(x) - 1)]
    wrong = fg.gradcheck(f, x, grad=lambda x: grad(x) * spoiled)
    assert wrong.verdict == "FAIL"
    assert [e.index for e in wrong.wrong] == [(0,)]


def test_right_elements_after_many_that_looked_wrong():
    # Eight that fail on two ladders settle the rest of a chunk, unless these turned out right.
    x = np.linspace(1, 2, 100) * 1e-8
    x[0] = 1.0
    assert fg.gradcheck(lambda x: np.sum(np.cbrt(x)), x, grad=lambda x: np.cbrt(x) ** -2 / 3)


def test_one_huge_element_hides_no_other():
    x = np.array([1e-20, 1.0, 2.0])
    r = fg.gradcheck(lambda x: np.sum(np.log(x)), x, grad=lambda x: np.array([1e20, 2.0, 0.5]))
    assert r.verdict == "FAIL"
    assert [e.index for e in r.wrong] == [(1,)]


@pytest.mark.parametrize("f", [fg.cross_entropy, fg.softmax, fg.log_softmax, fg.logsumexp])
@pytest.mark.parametrize("mode", ["full", "random"])
def test_infinite_logits_stay_where_they_are(z, y, f, mode):
    z[np.arange(N), (y + 1) % C] = -np.inf
    args = (z, y) if f is fg.cross_entropy else (z,)
    r = fg.gradcheck(f, *args, mode=mode)
    assert r.verdict == "PASS"
    if mode == "full":
        assert r.checked == N * (C - 1)


def test_value_and_grad_says_what_the_others_say(z, y):
    wrong = fg.Loss(
        value=_ce,
        grad=_grad,
        value_and_grad=lambda z, y: (_ce(z, y), 2 * _grad(z, y)),
    )
    r = fg.gradcheck(wrong, z, y)
    assert r.verdict == "FAIL"
    assert r.diagnoses[0].code == "inconsistent"


def test_a_gradient_with_the_arguments_of_f_is_that_of_the_sum(z, y):
    def per_row(z, y):
        return fg.cross_entropy(z, y, reduction="none")

    def grad(z, y, eps=1e-5):
        return fg.cross_entropy.grad(z, y, reduction="sum")

    assert fg.gradcheck(per_row, z, y, grad=grad)
    assert fg.gradcheck(per_row, z, y, grad=lambda z, y: 2 * grad(z, y)).verdict == "FAIL"
    assert fg.gradcheck(per_row, z, y, grad=lambda z, y, v: v[:, None] * grad(z, y))


def test_what_is_not_finite():
    x = np.array([1.0, 2.0])
    r = fg.gradcheck(lambda x: float(np.sum(x**2)), x, grad=lambda x: np.array([2.0, np.nan]))
    assert r.verdict == "FAIL"
    assert r.diagnoses[0].code == "nan"
    assert [e.index for e in r.wrong] == [(1,)]
    r = fg.gradcheck(lambda x: math.inf, x, grad=lambda x: x)
    assert r.verdict == "UNRESOLVED"
    assert "f is inf at x" in r.message


def test_complex_steps_have_no_noise(z):
    def f(z):
        return np.log(np.sum(np.exp(z)))

    r = fg.gradcheck(f, z, grad=lambda z: np.exp(z) / np.sum(np.exp(z)), mode="complex")
    assert r.verdict == "PASS"
    # One exp and one sum in each part.
    assert r.worst[0].rel < 16 * np.finfo(float).eps
    with pytest.raises(ValueError, match="its imaginary part is lost"):
        fg.gradcheck(lambda z: np.sum(np.abs(z)), z, grad=np.sign, mode="complex")


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 0.0, 3.0])
def test_complex_steps_judge_as_the_others_do(z, wrong):
    z = z.copy()
    given = z.copy()
    r = fg.gradcheck(lambda x: np.sum(x * x), z, grad=lambda x: wrong * x, mode="complex")
    assert r.verdict == "FAIL"
    assert z.dtype == float
    np.testing.assert_array_equal(z, given)


def test_second_order(z, y):
    r = fg.gradcheck(fg.cross_entropy, z, y, order=2)
    assert r
    assert "hvp" in r.mode
    wrong = fg.Loss(
        value=_ce, grad=_grad, hvp=lambda z, y, v: 1.01 * fg.cross_entropy.hvp(z, y, v), name="ce"
    )
    assert fg.gradcheck(wrong, z, y)
    assert fg.gradcheck(wrong, z, y, order=2).verdict == "FAIL"


def test_an_asymmetric_hessian_is_wrong(z, y):
    def skew(z, y, v):
        return fg.cross_entropy.hvp(z, y, v) + 1e-4 * np.roll(v, 1)

    wrong = fg.Loss(value=_ce, grad=_grad, hvp=skew)
    r = fg.gradcheck(wrong, z, y, kind="hvp")
    assert r.verdict == "FAIL"
    assert "asymmetric" in {d.code for d in r.diagnoses}


def test_vjp_and_jvp_must_be_transposes(z):
    wrong = fg.Map(
        fg.softmax, vjp=fg.softmax.vjp, jvp=lambda x, v: 1.01 * fg.softmax.jvp(x, v), name="softmax"
    )
    r = fg.gradcheck(wrong, z)
    assert r.verdict == "FAIL"
    assert r.diagnoses[0].code == "jvp"
    assert fg.gradcheck(wrong, z, kind="jvp").verdict == "FAIL"


def test_a_jacobian(z):
    p = fg.softmax(z[0])
    J = np.diag(p) - np.outer(p, p)
    assert fg.gradcheck(fg.softmax, z[0], grad=J, kind="jac")
    assert fg.gradcheck(fg.softmax, z[0], grad=J).kind == "jac"
    assert fg.gradcheck(fg.softmax, z[0], grad=np.diag(p), kind="jac").verdict == "FAIL"
    with pytest.raises(ValueError, match=r"shape of the value and of x, \(10, 10\)"):
        fg.gradcheck(fg.softmax, z[0], grad=p, kind="jac")


def test_the_other_seed_gives_the_same_verdict(z, y):
    for seed in range(20):
        assert fg.gradcheck(_ce, z, y, grad=_grad, mode="random", seed=seed)
        assert not fg.gradcheck(
            _ce, z, y, grad=lambda z, y: _grad(z, y) * 1.0001, mode="random", seed=seed
        )


# ---- diagnoses ----------------------------------------------------------------------------------


def _spoiled(f):
    def grad(z, y):
        g = _grad(z, y)
        return f(g, z, y)

    return grad


def _missing_target(g, z, y):
    return fg.softmax(z) / len(z)


def _tail(g, z, y):
    g[:, 8:] = 0
    return g


def _row(g, z, y):
    g[-1] = 0
    return g


def _column(g, z, y):
    g[:, 3] += 0.01 * z[:, 3]
    return g


def _segment(g, z, y):
    g[y == y[0]] = 0
    return g


DIAGNOSES = {
    "sign": (lambda g, z, y: -g, "sign", {}),
    "sum": (lambda g, z, y: N * g, "factor", {"name": "N"}),
    "mean of a sum": (lambda g, z, y: g / N, "factor", {"name": "1/N"}),
    "classes": (lambda g, z, y: g / C, "factor", {"name": "1/C"}),
    "half": (lambda g, z, y: g / 2, "factor", {"name": "1/2"}),
    "twice": (lambda g, z, y: g * 2, "factor", {"name": "2"}),
    "log2": (lambda g, z, y: g / math.log(2), "factor", {"name": "1/ln 2"}),
    "fortran": (
        lambda g, z, y: g.ravel("F").reshape(g.shape),
        "permuted",
        {"how": "fortran order"},
    ),
    "roll": (lambda g, z, y: np.roll(g, 1, 1), "permuted", {"how": "rolled by 1 along axis 1"}),
    "target": (_missing_target, "target", {}),
    "tail": (_tail, "tail", {"index": [8, 9]}),
    "row": (_row, "missing row", {"index": N - 1}),
    "column": (_column, "column", {"index": 3}),
    "segment": (_segment, "missing segment", {}),
    "transposed shape": (lambda g, z, y: g.T, "transposed", {}),
    "shift": (lambda g, z, y: np.full_like(g, g.sum()), "common shift", {}),
    "per row": (lambda g, z, y: g * np.arange(1, N + 1)[:, None], "weights", {"per": "row"}),
}


@pytest.mark.parametrize("case", DIAGNOSES)
@pytest.mark.parametrize("mode", ["full", "random"])
def test_the_bug_is_named(z, case, mode):
    spoil, code, evidence = DIAGNOSES[case]
    y = np.arange(N) * 3 % 5
    r = fg.gradcheck(_ce, z, y, grad=_spoiled(spoil), mode=mode)
    assert r.verdict == "FAIL"
    assert r.diagnoses[0].code == code, r
    assert {k: r.diagnoses[0].evidence[k] for k in evidence} == evidence
    assert r.pattern == r.diagnoses[0].text


def test_square_transposes_are_named(rng):
    W = rng.standard_normal((6, 6))
    r = fg.gradcheck(lambda W: np.sum(W**3), W, grad=lambda W: 3 * W.T**2)
    assert r.diagnoses[0].code == "transposed"


def test_targets_are_named_in_every_form(z, y):
    def one_hot_loss(z, t):
        return fg.cross_entropy(z, t)

    t = np.eye(C)[y]
    r = fg.gradcheck(one_hot_loss, z, t, grad=lambda z, t: fg.softmax(z) / N, wrt="z")
    assert r.diagnoses[0].code == "target"
    r = fg.gradcheck(lambda z: _ce(z, y), z, grad=lambda z: fg.softmax(z) / N)
    assert r.diagnoses[0].code == "target"


def test_a_tail_inside_the_last_row_is_named(z, y):
    def tail(z, y):
        g = _grad(z, y)
        g.reshape(-1)[-3:] = 0
        return g

    r = fg.gradcheck(_ce, z, y, grad=tail)
    assert r.diagnoses[0].code == "tail"
    assert r.diagnoses[0].evidence["index"] == z.size - 3


def test_bugs_of_other_kinds_of_derivatives_are_named(z, y):
    wrong = fg.Loss(
        value=_ce, grad=_grad, hess_diag=lambda z, y: 2 * fg.cross_entropy.hess_diag(z, y)
    )
    r = fg.gradcheck(wrong, z, y, kind="hess_diag")
    assert (r.verdict, r.diagnoses[0].code) == ("FAIL", "factor")
    p = fg.softmax(z[0])
    r = fg.gradcheck(fg.softmax, z[0], grad=np.outer(p, p) - np.diag(p), kind="jac")
    assert (r.verdict, r.diagnoses[0].code) == ("FAIL", "sign")


def test_regularisers_are_named(z, y):
    def f(z, y):
        return _ce(z, y) + 0.05 * np.sum(z**2)

    for coefficient, verb in ((0.0, "lacks"), (0.2, "too many")):
        r = fg.gradcheck(f, z, y, grad=lambda z, y, c=coefficient: _grad(z, y) + c * z)
        assert r.diagnoses[0].code == "regulariser"
        assert verb in r.pattern
        assert math.isclose(abs(r.diagnoses[0].evidence["coefficient"]), 0.1, rel_tol=1e-6)


def test_flat_functions_are_named(z, y):
    def accuracy(z, y):
        return float(np.mean(np.argmax(z, axis=1) == y))

    r = fg.gradcheck(accuracy, z, y, grad=_grad)
    assert r.verdict == "FAIL"
    assert r.diagnoses[0].code == "flat"
    assert "surrogate" in r.pattern


def test_a_centroid_held_still_is_named(rng):
    X, labels = rng.standard_normal((12, 3)), np.repeat([0, 1, 2], 4)

    def still(X, labels):
        c = fg.class_centroids(X, labels).centroids
        diff = X - c[labels]
        d = np.linalg.norm(diff, axis=1, keepdims=True)
        h = np.maximum(d - 0.5, 0)
        return 2 * h * diff / np.where(d > 0, d, 1) / 4 / 3

    def f(X, labels):
        return fg.centroid_hinge(X, labels, margin=0.5)

    r = fg.gradcheck(f, X, labels, grad=still)
    assert r.verdict == "FAIL"
    assert r.diagnoses[0].code == "centroid held still"


def test_the_diagonal_of_softmax_is_named(z):
    r = fg.gradcheck(fg.softmax, z, grad=lambda x, v: v * fg.softmax(x) * (1 - fg.softmax(x)))
    assert r.verdict == "FAIL"
    assert r.diagnoses[0].code == "diagonal"


def test_integer_input_is_named(rng):
    x = rng.integers(1, 5, (4, 3))
    r = fg.gradcheck(
        lambda x: float(np.sum(np.sqrt(x))), x, grad=lambda x: (0.5 / np.sqrt(x)).astype(int)
    )
    assert r.verdict == "FAIL"
    assert r.diagnoses[0].code == "integer"


def test_writing_into_the_input_is_named_and_undone(z, y):
    before = z.copy()

    def f(z, y):
        z -= z.max(axis=1, keepdims=True)
        return fg.cross_entropy(z, y)

    r = fg.gradcheck(f, z, y, grad=_grad)
    assert r.verdict == "FAIL"
    assert r.diagnoses[0].code == "mutates"
    assert "f wrote into its input z" in r.pattern
    np.testing.assert_array_equal(z, before)

    def grad(z, y):
        g = _grad(z, y)
        z[...] = 0
        return g

    r = fg.gradcheck(_ce, z, y, grad=grad)
    assert "the gradient wrote into its input z" in r.pattern
    np.testing.assert_array_equal(z, before)


def test_dice_are_named(z, y):
    dice = np.random.default_rng(0)

    def f(z, y):
        return fg.cross_entropy(z, y) + 1e-6 * dice.random()

    r = fg.gradcheck(f, z, y, grad=_grad)
    assert r.verdict == "FAIL"
    assert r.diagnoses[0].code == "nondeterministic"
    assert fg.gradcheck(f, z, y, grad=_grad, nondet=1e-5)


def test_shared_memory_is_remarked(z):
    buffer = np.empty_like(z)
    r = fg.gradcheck(lambda x: np.sum(x**2), z, grad=lambda x: np.multiply(x, 2, out=buffer))
    assert r
    assert r.diagnoses[0].code == "aliased"
    assert "remark" in r.report()
    r = fg.gradcheck(lambda x: 0.5 * np.sum(x**2), z, grad=lambda x: x)
    assert r
    assert r.diagnoses[0].code == "aliased"


# ---- inputs -------------------------------------------------------------------------------------


def test_several_inputs(rng):
    A, B = rng.standard_normal((5, 3)), rng.standard_normal((3, 4))
    ones = np.ones((5, 4))

    def f(A, B):
        return np.sum(A @ B)

    def as_dict(A, B):
        return {"B": A.T @ ones, "A": ones @ B.T}

    def as_tuple(A, B):
        return ones @ B.T, A.T @ ones

    for grad in (as_dict, as_tuple):
        r = fg.gradcheck(f, A, B, grad=grad)
        assert r
        assert set(r.inputs) == {"A", "B"}
    r = fg.gradcheck(f, A, B, grad=lambda A, B: (ones @ B.T, 2 * A.T @ ones))
    assert {e.input for e in r.wrong} == {"B"}
    r = fg.gradcheck(f, A, B, grad=lambda A, B: A.T @ ones, wrt="B")
    assert r
    assert set(r.inputs) == {"B"}
    r = fg.gradcheck(f, A, B, grad=lambda A, B: (ones @ B.T, 2 * A.T @ ones), mode="random")
    assert r.verdict == "FAIL"
    assert {e.input for e in r.wrong} == {"B"}


def test_keywords_are_differentiated_when_named(rng):
    X, W = rng.standard_normal((20, 5)), rng.standard_normal((4, 5))
    y = rng.integers(0, 4, 20)
    kwargs = {"bias": rng.standard_normal(4), "l2": 0.1}
    r = fg.gradcheck(fg.linear_cross_entropy, X, W, y, kwargs=kwargs)
    assert r
    assert set(r.inputs) == {"W", "bias", "X"}
    r = fg.gradcheck(fg.linear_cross_entropy, X, W, y, kwargs=kwargs, wrt=("bias",))
    assert set(r.inputs) == {"bias"}
    assert fg.gradcheck(fg.linear_cross_entropy, X, W, y, kwargs=kwargs, kind="hvp")


def test_inputs_of_every_form(rng):
    def f(x):
        return float(np.sum(np.asarray(x) ** 3))

    def grad(x):
        return 3 * np.asarray(x) ** 2

    x = rng.standard_normal((6, 4))
    frozen = x.copy()
    frozen.flags.writeable = False
    strided = np.zeros((12, 8))[::2, ::-2]
    strided[...] = x
    for form in (
        x,
        np.asfortranarray(x),
        frozen,
        strided,
        np.broadcast_to(x[0], (6, 4)),
        x[0].tolist(),
    ):
        assert fg.gradcheck(f, form, grad=grad)
        assert not fg.gradcheck(f, form, grad=lambda x: 1.1 * grad(x))
    assert fg.gradcheck(f, 2.0, grad=grad)
    assert fg.gradcheck(f, np.array(2.0), grad=grad)
    assert fg.gradcheck(f, x, grad=grad(x))


def test_exceptions_of_the_function_pass_through(z):
    def broken(x):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        fg.gradcheck(broken, z, grad=lambda x: x)


def test_an_interrupt_brings_what_is_known(rng):
    x = rng.standard_normal(2000)
    before = x.copy()
    calls = 0

    def f(x):
        nonlocal calls
        calls += 1
        if calls == 5000:
            raise KeyboardInterrupt
        return float(np.sum(x**2))

    with pytest.raises(KeyboardInterrupt) as caught:
        fg.gradcheck(f, x, grad=lambda x: 2 * x, mode="full")
    r = caught.value.result
    assert r.verdict == "INTERRUPTED"
    assert 0 < r.checked < 2000
    assert "0 wrong so far" in r.message
    np.testing.assert_array_equal(x, before)


def test_budgets_end_the_check_without_a_verdict(rng):
    x = rng.standard_normal(5000)
    r = fg.gradcheck(
        lambda x: float(np.sum(x**2)), x, grad=lambda x: 2 * x, mode="full", max_evals=600
    )
    assert r.verdict == "UNRESOLVED"
    assert r.evals <= 600
    assert 0 < r.checked < 5000
    assert "max_evals=600 is used up" in r.message


def test_progress_is_told(rng):
    x = rng.standard_normal(3000)
    seen = []

    def slow(x):
        return float(np.sum(np.sin(np.tile(x, 8))))

    fg.gradcheck(
        slow,
        x,
        grad=lambda x: 8 * np.cos(x),
        mode="full",
        callback=lambda p: seen.append((p.done, p.total)),
    )
    assert seen
    assert all(total == 3000 for _, total in seen)
    assert [d for d, _ in seen] == sorted(d for d, _ in seen)


# ---- results ------------------------------------------------------------------------------------


def test_results_are_exported(z, y):
    r = fg.gradcheck(_ce, z, y, grad=_spoiled(_tail))
    d = json.loads(r.to_json())
    assert d["verdict"] == "FAIL"
    assert d["diagnoses"][0]["code"] == "tail"
    assert np.shape(d["inputs"]["z"]["numeric"]) == z.shape
    nan = fg.gradcheck(_ce, z, y, grad=lambda z, y: np.full_like(z, np.nan))
    assert json.loads(nan.to_json())["worst"][0]["analytic"] is None


def test_frames(z, y):
    pandas = pytest.importorskip("pandas")
    frame = fg.gradcheck(_ce, z, y, grad=_grad).to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == z.size
    assert set(frame.status) == {"pass"}


def test_a_report_reads_like_this(y):
    x = np.array([1.0, 2.0, -3.0])
    r = fg.gradcheck(lambda x: np.sum(x**2), x, grad=lambda x: 1.0 * x, name="energy")
    lines = r.report(width=80).splitlines()
    assert lines[0].startswith("✘ FAIL  energy   d/dx (3,) float64   full · ")
    assert lines[1] == "            energy: d/dx wrong at 3 places, worst x[2] (-3 against -6)."
    assert (
        lines[2]
        == "  diagnosis the gradient is 1/2 times the numeric one: a ½ too many, or a square"
    )
    assert max(map(len, lines)) <= 80
    assert str(r).splitlines()[1:4] == r.report().splitlines()[1:4]
    assert repr(r).startswith(
        "<GradcheckResult FAIL 3/3, worst x[2] rel 0.5, the gradient is 1/2 times"
    )
    good = fg.gradcheck(lambda x: np.sum(x**2), x, grad=lambda x: 2 * x)
    assert repr(good).startswith("<GradcheckResult PASS 3/3, worst rel ")


def test_reports_are_wrapped(z, y):
    r = fg.gradcheck(_ce, z, y, grad=lambda z, y: 2 * _grad(z, y))
    table = [line for line in r.report(60).splitlines() if len(line) > 60]
    assert all(line.startswith(("  element", "  z[")) for line in table)
    for narrow in (0, -3, 39):
        with pytest.raises(ValueError, match="width must be at least 40 columns"):
            r.report(narrow)


def test_assert_gradient(z, y):
    assert fg.testing.assert_gradient(_ce, z, y, grad=_grad)
    with pytest.raises(AssertionError, match="diagnosis the gradient has the wrong sign"):
        fg.testing.assert_gradient(_ce, z, y, grad=lambda z, y: -_grad(z, y))


def test_the_users_random_numbers_are_left_alone(z, y):
    np.random.seed(1)  # noqa: NPY002 - the legacy state is what must not move
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    fg.gradcheck(_ce, z, y, grad=_grad, mode="random")
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # noqa: NPY002


MISUSE = [
    (lambda z, y: fg.gradcheck(3, z), TypeError, "f must be a function"),
    (lambda z, y: fg.gradcheck(_ce, z, y), TypeError, "no derivative of _ce is known"),
    (
        lambda z, y: fg.gradcheck(_ce, z, y, grad=_grad, mode="slow"),
        ValueError,
        "mode must be one of",
    ),
    (
        lambda z, y: fg.gradcheck(_ce, z, y, grad=_grad, kind="hessian"),
        ValueError,
        "kind must be one of",
    ),
    (lambda z, y: fg.gradcheck(_ce, z, y, grad=_grad, order=3), ValueError, "order must be 1 or 2"),
    (
        lambda z, y: fg.gradcheck(_ce, z, y, grad=_grad, rtol=-1),
        ValueError,
        "rtol must be a number >= 0",
    ),
    (
        lambda z, y: fg.gradcheck(_ce, z, y, grad=_grad, directions=0),
        ValueError,
        "directions must be",
    ),
    (lambda z, y: fg.gradcheck(_ce, z, y, grad=_grad, wrt="w"), ValueError, "there are z, y"),
    (lambda z, y: fg.gradcheck(_ce, z, y, grad=_grad, wrt=[]), ValueError, "at least one input"),
    (lambda z, y: fg.gradcheck(_ce, z, y, grad=_grad, wrt=5), ValueError, "position 5"),
    (
        lambda z, y: fg.gradcheck(_ce, z, y, grad=_grad, eval_dtype="float16"),
        ValueError,
        "eval_dtype",
    ),
    (lambda z, y: fg.gradcheck(lambda x: None, z, grad=_grad), TypeError, "returned NoneType"),
    (
        lambda z, y: fg.gradcheck(lambda x: x.sum(), z, grad=lambda x: x[0]),
        ValueError,
        "shape (16, 10)",
    ),
    (lambda z, y: fg.gradcheck(lambda x: x.sum(), z, grad=lambda x: None), ValueError, "is None"),
    (
        lambda z, y: fg.gradcheck(lambda x: 1.0, z * 1j, grad=lambda x: x),
        TypeError,
        "floating array",
    ),
    (
        lambda z, y: fg.gradcheck(lambda a, b: a.sum(), z, z, grad=lambda a, b: (a,)),
        ValueError,
        "tuple of 1",
    ),
    (
        lambda z, y: fg.gradcheck(lambda x: 1.0, z * np.nan, grad=lambda x: x),
        ValueError,
        "no finite number",
    ),
    (
        lambda z, y: fg.gradcheck(lambda s: 1.0, "abc", grad=lambda s: s),
        TypeError,
        "no floating array",
    ),
    (
        lambda z, y: fg.gradcheck(_ce, z, y, grad=_grad, miss=1),
        ValueError,
        "miss must be a probability",
    ),
    (
        lambda z, y: fg.gradcheck(_ce, z, y, grad=_grad, detect=0),
        ValueError,
        "detect must be > 0",
    ),
    (lambda z, y: fg.gradcheck(_ce, z, y, grad=_grad, seed=-1), ValueError, "integer >= 0"),
    (
        lambda z, y: fg.gradcheck(_ce, z, y, grad=_grad, callback=3),
        TypeError,
        "callback must be a function",
    ),
    (
        lambda z, y: fg.gradcheck(_ce, z, y, grad=_grad, reference="mpmath"),
        TypeError,
        "reference must be a function; got str",
    ),
    (
        lambda z, y: fg.gradcheck(
            lambda z: np.sum(z), z, grad=np.ones_like, reference=lambda z: z.sum(1)
        ),
        TypeError,
        "one of them returned an array of shape (16,)",
    ),
    (
        lambda z, y: fg.gradcheck(lambda x: x.sum(), z, grad=lambda x: 1j * x),
        TypeError,
        "is complex; pass its real part",
    ),
    (
        lambda z, y: fg.gradcheck(lambda a, b: a.sum(), z, z, grad=lambda a, b: (a, b), wrt=(0, 0)),
        ValueError,
        "name each input once",
    ),
    (
        lambda z, y: fg.gradcheck(
            lambda a, b: a + b, z, z, grad=lambda a, b: a, kind="jac", wrt=(0, 1)
        ),
        ValueError,
        "kind='jac' takes one input; got 2",
    ),
    (lambda z, y: fg.numerical_gradient(fg.softmax, z), TypeError, "f must return a number"),
    (lambda z, y: fg.numerical_hvp(_ce, z, y, v=z[0]), ValueError, "v must have the shape of z"),
]


@pytest.mark.parametrize(("call", "error", "message"), MISUSE)
def test_misuse_is_told(z, y, call, error, message):
    with pytest.raises(error) as caught:
        call(z, y)
    assert message in str(caught.value)


# ---- fastgrad's own derivatives -----------------------------------------------------------------


def _own():
    rng = np.random.default_rng(7)
    z, X = rng.standard_normal((13, 7)), rng.standard_normal((13, 5))
    y = rng.integers(0, 4, 13)
    probabilities = rng.dirichlet(np.ones(7), 13)
    sign = rng.choice([-1, 1], (13, 7))
    w = rng.random(13)
    none = {"reduction": "none"}
    cases = [
        (fg.cross_entropy, (z, y), {}),
        (fg.cross_entropy, (z, y), {"label_smoothing": 0.1, "sample_weight": w, "z_loss": 1e-2}),
        (fg.cross_entropy, (z, y), none),
        (fg.cross_entropy, (z, probabilities), {"reduction": "sum"}),
        (fg.cross_entropy, (z.T.copy(), y), {"axis": 0}),
        (fg.binary_cross_entropy, (z, z > 0), {}),
        (fg.binary_cross_entropy, (z, probabilities), {"reduction": "sum"}),
        (
            fg.linear_cross_entropy,
            (X, rng.standard_normal((4, 5)), y),
            {"bias": np.zeros(4), "l2": 0.1},
        ),
        (fg.hinge, (z, sign), {}),
        (fg.hinge, (z, sign), {"squared": True}),
        (fg.multiclass_hinge, (z, y), {}),
        (fg.multiclass_hinge, (z, y), {"variant": "weston_watkins", "squared": True}),
        (fg.centroid_hinge, (X, y), {}),
        (fg.centroid_hinge, (X, y), {"margin": 0.5, "squared": False}),
        (fg.softmax, (z,), {}),
        (fg.log_softmax, (z,), {"axis": 0}),
        (fg.logsumexp, (z,), {}),
        (fg.sigmoid, (z,), {}),
        (fg.log_sigmoid, (z,), {}),
        (fg.segment_sum, (z, y), {}),
        (fg.segment_mean, (z, y), {}),
        (fg.segment_max, (z, y), {}),
        (fg.segment_min, (z, y), {}),
        (fg.segment_logsumexp, (z, y), {}),
        (fg.segment_softmax, (z, y), {}),
        (fg.segment_log_softmax, (z, y), {}),
        (fg.class_centroids, (X, y), {}),
        (fg.prototype_logits, (X, rng.standard_normal((4, 5))), {}),
    ]
    return [pytest.param(*case, id=f"{case[0].__name__}-{i}") for i, case in enumerate(cases)]


@pytest.mark.parametrize(("f", "args", "kwargs"), _own())
def test_our_own_derivatives(isa, dtype, f, args, kwargs):
    def cast(a):
        return a.astype(dtype) if a.dtype == np.float64 else a

    args = [cast(a) for a in args]
    kwargs = {k: cast(v) if isinstance(v, np.ndarray) else v for k, v in kwargs.items()}
    assert fg.gradcheck(f, *args, kwargs=kwargs)
    if hasattr(f, "jvp"):
        assert fg.gradcheck(f, *args, kwargs=kwargs, kind="jvp", directions=2)
    if hasattr(f, "hvp"):
        assert fg.gradcheck(f, *args, kwargs=kwargs, kind="hvp", directions=2)
    if hasattr(f, "hess_diag") and dtype is np.float64 and isa == _isa.available_names()[-1]:
        assert fg.gradcheck(f, *args, kwargs=kwargs, kind="hess_diag")


def shows_no_signature(function):
    """The function as a compiled one would show it."""

    class Compiled:
        __signature__ = ()

        def __call__(self, *args):
            return function(*args)

    return Compiled()


@pytest.mark.parametrize(
    "gradient",
    [
        np.cos,
        lambda x: np.cos(x),
        lambda x, out=None: np.cos(x, out=out),
        lambda x, dtype=None: np.cos(x, dtype=dtype),
        lambda x, g=None: np.cos(x) * (1 if g is None else g),
        lambda x, v: np.cos(x) * v,
        lambda *both: np.cos(both[0]) * both[1],
        np.vectorize(math.cos),
        shows_no_signature(lambda x: np.cos(x)),
        shows_no_signature(lambda x, g: np.cos(x) * g),
    ],
)
def test_what_a_derivative_of_an_array_function_is_called_with(z, gradient):
    def sine(v, dtype=None):
        return np.sin(v, dtype=dtype)

    assert fg.gradcheck(sine, z, grad=gradient)
    wrong = fg.gradcheck(lambda v, dtype=None: 1.01 * np.sin(v), z, grad=gradient)
    assert wrong.verdict == "FAIL"


def test_a_ufunc_does_not_get_the_cotangent_as_out(z):
    assert fg.gradcheck(lambda x: x + 1, z, grad=np.exp).verdict == "FAIL"
    assert fg.gradcheck(lambda x: x * x / 2, z, grad=np.multiply)


def test_a_vjp_that_writes_into_its_cotangent_is_told(z):
    def scaled(x, g):
        g *= 2 * x
        return g

    result = fg.gradcheck(np.square, z, grad=scaled)
    assert result.verdict == "FAIL"
    assert "wrote into the vector" in str(result)
    assert "d/dz wrong" not in str(result)


# ---- what a hostile reader found -----------------------------------------------------------------


def cross_entropy_by_hand(z):
    return np.log(np.sum(np.exp(z - z.max()))) + z.max() - z[z.argmax()]


@pytest.mark.parametrize("seed", range(40))
def test_the_noise_is_not_measured_where_f_does_not_change(seed):
    """Along ones softmax does not change: of two elements half of all signs were alike."""
    r = np.random.default_rng(seed)
    z = r.standard_normal(int(r.integers(2, 5)))
    z *= r.uniform(3, 18) / np.ptp(z)  # of more the derivative is below the noise of f
    p = fg.softmax(z)
    right = p - (np.arange(z.size) == z.argmax())
    right[z.argmax()] = -np.sum(np.delete(p, z.argmax()))
    assert fg.gradcheck(cross_entropy_by_hand, z, grad=right)
    assert fg.gradcheck(cross_entropy_by_hand, z, grad=0 * z).verdict == "FAIL"


def test_values_that_are_views_of_the_input(rng):
    x = rng.standard_normal((3, 2))
    np.testing.assert_array_equal(fg.numerical_jacobian(lambda x: x, x[0]), np.eye(2))
    assert fg.gradcheck(lambda x: x[::-1], x, grad=lambda x, v: v[::-1])
    assert fg.gradcheck(lambda x: x.T, x, grad=lambda x, v: v.T)
    assert fg.gradcheck(lambda x: x[::2], x[:, 0], grad=np.eye(3)[::2], kind="jac")
    assert fg.gradcheck(lambda x: x[::-1], x, grad=lambda x, v: v).verdict == "FAIL"


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("rows", [2, 3, 64])
def test_rows_that_depend_on_each_other_in_pairs(rng, rows, seed):
    def exchanged(x):
        return x[np.r_[1, 0, 2 : len(x)]] * 2

    x = rng.standard_normal((rows, 3))
    right = exchanged  # symmetric
    assert fg.gradcheck(exchanged, x, grad=lambda x, v: right(v), seed=seed)
    centred = fg.gradcheck(lambda x: x - x.mean(0), x, grad=lambda x, v: v - v.mean(0), seed=seed)
    assert centred


@pytest.mark.parametrize("mode", ["auto", "random"])
@pytest.mark.parametrize("seed", range(10))
def test_kinks_at_0_hide_nothing_and_blame_nobody(mode, seed):
    r = np.random.default_rng(seed)
    x = r.standard_normal((4, 5)) * (r.random((4, 5)) > 0.3)
    w = r.standard_normal(x.shape)
    for k, expected in ((1.0, True), (1.3, False)):
        options = {"mode": mode, "seed": seed}
        assert expected == bool(
            fg.gradcheck(
                lambda x: np.maximum(x, 0), x, grad=lambda x, v, k=k: k * v * (x > 0), **options
            )
        )
        assert expected == bool(
            fg.gradcheck(lambda x: np.sum(w * abs(x)), x, grad=k * w * np.sign(x), **options)
        )
    # What cannot be told is said.
    result = fg.gradcheck(lambda x: np.sum(abs(x)), x, grad=np.sign(x), mode="random")
    assert "not at elements that are 0" in result.guarantee


@pytest.mark.parametrize("mask", [-1e9, -1e12, -3.4e38])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(4, 6), (7, 7)])
def test_masks_of_large_numbers(mask, dtype, shape, rng):
    x = rng.standard_normal(shape).astype(dtype)
    x[np.triu_indices(shape[0], 1, shape[1])] = mask
    for f in (fg.softmax, fg.logsumexp):
        assert fg.gradcheck(f, x).verdict == "PASS"
    y = np.zeros(len(x), int)
    assert fg.gradcheck(fg.cross_entropy, x, y).verdict == "PASS"
    for factor in (0, 0.5, 1.01):
        wrong = fg.gradcheck(fg.cross_entropy, x, y, grad=factor * fg.cross_entropy.grad(x, y))
        assert wrong.verdict == "FAIL"


@pytest.mark.parametrize("size", [10, 10_000])
@pytest.mark.parametrize("mode", ["auto", "random", "complex"])
def test_a_wrong_jvp_of_a_map_is_found_at_any_size(size, mode):
    wrong = fg.Map(np.tanh, vjp=lambda x, v: v / np.cosh(x) ** 2, jvp=lambda x, u: 7 * u)
    result = fg.gradcheck(wrong, np.linspace(-1, 1, size), mode=mode)
    assert result.verdict == "FAIL"
    assert {d.code for d in result.diagnoses} == {"jvp"}


def test_a_constant_argument_stays_as_it_is():
    def doubles(x, w):
        w *= 2 if x.max() > 3 else 1
        return np.sum(w * x)

    w = np.ones(3)
    fg.gradcheck(doubles, np.array([1.0, 2.0, 2.999999]), w, grad=lambda x, w: w, wrt="x")
    np.testing.assert_array_equal(w, 1)


def test_second_derivatives_of_a_wrong_gradient():
    x = np.array([1.0, 2.0])
    quartic = fg.Loss(
        value=lambda x: np.sum(x**4),
        grad=lambda x: x**3,
        hvp=lambda x, v: 3 * x**2 * v,
        hess_diag=lambda x: 3 * x**2,
    )
    for kind in ("hvp", "hess_diag"):
        result = fg.gradcheck(quartic, x, kind=kind)
        assert result.verdict == "FAIL"
        assert "is not that of f" in str(result)


@pytest.mark.parametrize("mode", ["auto", "random"])
def test_a_layer_that_keeps_its_forward_pass(mode, rng):
    class Layer:
        def forward(self, x):
            self.y = np.tanh(x)
            return self.y

        def backward(self, x, v):
            return v * (1 - self.y**2)

    layer = Layer()
    x = rng.standard_normal((30, 10))
    assert fg.gradcheck(layer.forward, x, grad=layer.backward, mode=mode)


def test_the_symmetry_of_a_hessian_that_is_all_but_0():
    def hvp(x, v):
        p = fg.softmax(x)
        return p * v - p * (p @ v)

    lse = fg.Loss(value=lambda x: float(fg.logsumexp(x)), grad=fg.softmax, hvp=hvp)
    for seed in range(20):
        x = 100 * np.random.default_rng(seed).standard_normal(3)
        assert fg.gradcheck(lse, x, kind="hvp", seed=seed).verdict in ("PASS", "UNRESOLVED")


def test_numbers_below_the_smallest_of_the_dtype_may_be_0():
    for seed in range(20):
        x = 100 * np.random.default_rng(seed).standard_normal((2, 3)).astype(np.float32)
        assert fg.gradcheck(fg.cross_entropy, x, np.array([0, 1])).verdict != "FAIL"


@pytest.mark.parametrize("kind", ["jvp", "jac"])
def test_a_complex_or_textual_derivative_is_refused(kind):
    x = np.ones(2)
    derivative = {"jvp": lambda x, v: v + 5j, "jac": lambda x: np.eye(2) + 5j}[kind]
    with pytest.raises(TypeError, match="is complex; pass its real part"):
        fg.gradcheck(lambda x: x + 0, x, grad=derivative, kind=kind)
    with pytest.raises(TypeError, match="must hold numbers; got dtype <U32"):
        fg.gradcheck(lambda x: np.sum(x**2), x, grad=lambda x: (2 * x).astype(str))


def test_an_integer_input_that_f_takes_only_as_integers():
    with pytest.raises(TypeError, match=r"target has dtype int64.*Leave it out of wrt"):
        fg.gradcheck(fg.cross_entropy, np.eye(3), np.array([0, 1, 2]), wrt=("logits", "target"))


def test_an_infinite_value_has_no_derivative_and_blames_none():
    with np.errstate(divide="ignore", invalid="ignore"):
        x = np.array([0.0, 1.0, 2.0])
        assert fg.gradcheck(np.log, x, grad=lambda x, v: v / x)
        assert fg.gradcheck(np.log, x, grad=lambda x, v: 1.1 * v / x).verdict == "FAIL"
        nowhere = fg.gradcheck(np.sqrt, x + 1, grad=lambda x, v: v * np.nan)
        assert nowhere.verdict == "FAIL"


def test_two_numbers_are_printed_so_that_they_differ():
    x = np.array([6.0, 3.0])
    result = fg.gradcheck(lambda x: np.sum(x**2), x, grad=lambda x: 2.000003 * x)
    assert "(12.000018 against 12)" in " ".join(str(result).split())
    assert "1.0000015 times the numeric one" in str(result)


def test_a_wrong_product_of_second_order_is_named_as_such():
    def value(x):
        return np.sum(x**2)

    wrong = fg.Loss(value=value, grad=lambda x: 2 * x, hvp=lambda x, v: 3 * v)
    result = fg.gradcheck(wrong, np.array([1.0, 2.0]), order=2)
    assert result.verdict == "FAIL"
    assert "H·v in x" in str(result)


def test_a_leak_of_single_precision_does_not_pass_for_rounding():
    x = np.array([0.1, 0.2, 0.3], np.float32)

    def leaky(x):
        return np.array([0.2, 0.4, 0.35], np.float32)

    def right(x):
        return 2 * x * np.array([1, 1, 0], x.dtype)

    def f(x):
        return 1e5 + np.sum(x[:-1] ** 2)

    assert fg.gradcheck(f, x, grad=leaky).verdict in ("FAIL", "UNRESOLVED")
    assert fg.gradcheck(f, x, grad=right)
    z = 3 * np.random.default_rng(0).standard_normal((400, 4)).astype(np.float32)
    y = np.where(np.arange(400) < 399, np.arange(400) % 4, -100)
    total = fg.cross_entropy.with_options(reduction="sum")
    leak = total.grad(z, y)
    leak[-1] = 1e-3 * fg.softmax(z[-1])
    assert fg.gradcheck(lambda z: total(z, y), z, grad=leak, mode="full").verdict != "PASS"
    assert fg.gradcheck(lambda z: total(z, y), z, grad=total.grad(z, y), mode="full")


def by_hand(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("mode", ["auto", "random"])
@pytest.mark.parametrize("mask", [-1e9, -1e12, np.finfo(float).min])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_masks_beside_any_logits(mode, mask, offset, spread, rng):
    z = offset + spread * rng.standard_normal((200, 6))
    z[:, -2:] = mask
    for factor, verdict in ((1, "PASS"), (1.001, "FAIL"), (2, "FAIL")):

        def vjp(z, v, factor=factor):
            p = by_hand(z)
            return factor * p * (v - (p * v).sum(-1, keepdims=True))

        assert fg.gradcheck(by_hand, z, grad=vjp, mode=mode).verdict == verdict


def test_steps_that_move_nothing_acquit_nobody():
    """Below the spacing of large numbers a step is no step."""
    x = np.tile([0.5, -1.2, 3e7, 4e7, 2.0], 400)
    wrong = np.cos(x) * np.where(x > 1e6, 1.5, 1)
    result = fg.gradcheck(lambda x: float(np.sin(x).sum()), x, grad=wrong, mode="random")
    assert result.verdict == "FAIL"
    few = x[:5]
    wrong = 2 * few * [1.5, 1, 1, 1, 1]
    assert fg.gradcheck(lambda x: np.sum(x**2), few, grad=wrong, mode="full").verdict == "FAIL"


@pytest.mark.parametrize("mode", ["auto", "random"])
def test_what_is_wrong_at_zeros_alone(mode, rng):
    x = rng.standard_normal(4000)
    x[::2] = 0
    w = rng.standard_normal(x.size)
    right = w * (x > 0)
    assert fg.gradcheck(lambda x: np.sum(w * np.maximum(x, 0)), x, grad=right, mode=mode)
    for places, value in ((x == 0, 5.0), (x == 0, np.nan), ([2], np.nan), ([2], np.inf)):
        wrong = right.copy()
        wrong[places] = value
        result = fg.gradcheck(lambda x: np.sum(w * np.maximum(x, 0)), x, grad=wrong, mode=mode)
        assert result.verdict == "FAIL"


@pytest.mark.parametrize("mode", ["auto", "random", "full"])
def test_a_map_that_keeps_its_forward_pass(mode, rng):
    class Kept:
        def __call__(self, x):
            self.y = np.tanh(x)
            return self.y

        def vjp(self, x, v):
            return v * (1 - self.y**2)

    f = Kept()
    assert fg.gradcheck(fg.Map(f, vjp=f.vjp, jvp=f.vjp), rng.standard_normal(20), mode=mode)


@pytest.mark.parametrize("outlier", [-1e12, 1e10, 1e12])
def test_one_element_far_out_tells_nothing_of_the_others(outlier):
    x = np.random.default_rng(1).standard_normal(600)
    x[1] = outlier

    def f(x):
        return float(np.tanh(x).sum())

    right = 1 - np.tanh(x) ** 2
    for mode in ("full", "random"):
        assert fg.gradcheck(f, x, grad=right, mode=mode)
        assert fg.gradcheck(f, x, grad=1.01 * right, mode=mode).verdict == "FAIL"


# ---- what a reader with fresh eyes found --------------------------------------------------------


def test_complex_steps_of_several_inputs(rng):
    x, y = rng.standard_normal((2, 4))

    def grad(x, y):
        return y**2, 2 * x * y

    assert fg.gradcheck(lambda x, y: np.sum(x * y**2), x, y, grad=grad, mode="complex")


def test_complex_steps_that_are_lost_beside_large_slopes():
    # slogdet takes complex numbers, and returns the logarithm of an absolute value.
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))
    A = q @ np.diag([1, 1e-2, 1e-4, 1e-6]) @ q.T
    with pytest.raises(ValueError, match=r"mode='complex' does not suit .* lost "):
        fg.gradcheck(
            lambda A: np.linalg.slogdet(A)[1], A, grad=lambda A: np.linalg.inv(A).T, mode="complex"
        )


P = np.arange(9.0).reshape(3, 3) % 2
HINGED = np.random.default_rng(0).integers(-2, 3, 1000).astype(float)
NEAR_EDGES = np.array([1e-9, 1 - 1e-12, 0.5, 1e-4, 0.999])
HITS = np.array([1.0, 0, 1, 1, 0])


def _cross_entropy_of(p):
    return -np.mean(HITS * np.log(p) + (1 - HITS) * np.log(1 - p))


def _but_one(p):
    a = (-HITS / p + (1 - HITS) / (1 - p)) / 5
    a[1] = 0  # 2e11
    return a


@pytest.mark.parametrize(
    ("f", "x", "grad"),
    [
        (lambda x: np.maximum(x, x.T).sum(), P, np.zeros_like),
        (
            lambda x: np.exp(-x * x).sum(),
            np.array([0.3, -1, 0.5, 2, 1e4, 0.1, -0.7]),
            np.zeros_like,
        ),
        (lambda x: np.maximum(np.abs(x) - 1, 0).sum(), HINGED, np.zeros_like),
        (_cross_entropy_of, NEAR_EDGES, _but_one),
    ],
)
def test_directions_do_not_pass_what_they_cannot_see(f, x, grad):
    assert fg.gradcheck(f, x, grad=grad, mode="random").verdict in ("FAIL", "UNRESOLVED")


SCALES = np.array([1e3, 1, 1e-3])
FAR = np.array([0.3, -1.0, 0.5, 2.0, 1e5, 0.1])
ROWS = np.random.default_rng(1).standard_normal((4, 3))


def _scaled_jvp(X, d):
    return (1 - np.tanh(X * SCALES) ** 2) * SCALES * d


@pytest.mark.parametrize(
    ("f", "x", "grad", "kind"),
    [
        (np.tanh, FAR, lambda x: np.diag(1 - np.tanh(x) ** 2), "jac"),
        (np.tanh, FAR, lambda x, d: (1 - np.tanh(x) ** 2) * d, "jvp"),
        (lambda x: 1 / x, np.array([1e-5, 1, 4, 0.5]), lambda x: np.diag(-1 / x**2), "jac"),
        (lambda X: np.tanh(X * SCALES), ROWS / SCALES, _scaled_jvp, "jvp"),
        (lambda X: np.tanh(X * SCALES), ROWS * SCALES[::-1], _scaled_jvp, "jvp"),
    ],
)
def test_array_functions_that_bend_on_several_scales(f, x, grad, kind):
    assert fg.gradcheck(f, x, grad=grad, kind=kind)

    def half(*args):
        return 0.5 * grad(*args)

    assert fg.gradcheck(f, x, grad=half, kind=kind).verdict == "FAIL"


def test_a_numerical_jacobian_near_a_pole():
    x = np.array([1e-10, 1e-5, 1.0, 4.0])
    np.testing.assert_allclose(np.diag(fg.numerical_jacobian(np.log, x)), 1 / x, rtol=1e-8)


def test_a_numerical_gradient_where_f_is_nan():
    with np.errstate(invalid="ignore"):
        found = fg.numerical_gradient(lambda x: np.log(x).sum(), np.array([-1.0]))
    np.testing.assert_array_equal(found, [np.nan])


def test_what_directions_said_stands_without_the_sample(rng):
    given = rng.standard_normal((4, 60, 60))
    result = fg.gradcheck(
        lambda *a: sum((np.tanh(t) ** 2).sum() for t in a),
        *given,
        grad=lambda *a: tuple(2 * np.tanh(t) * (1 - np.tanh(t) ** 2) for t in a),
        max_evals=300,
    )
    assert result
    assert "a smaller sample than planned" in str(result)


def test_a_place_is_not_taken_for_a_pattern(rng):
    z, b = rng.standard_normal(20), (rng.random(20) > 0.5).astype(float)
    spoilt = int(np.flatnonzero(b == 0)[0])

    def grad(z, b):
        a = (1 / (1 + np.exp(-z)) - b) / 20
        a[spoilt] = 0
        return a

    result = fg.gradcheck(lambda z, b: np.mean(np.logaddexp(0, z) - b * z), z, b, grad=grad, wrt=0)
    assert "weights" not in [d.code for d in result.diagnoses]
    w = rng.standard_normal(20000)

    def flipped(w):
        a = np.sign(w)
        a[77] *= -1
        return a

    result = fg.gradcheck(lambda w: np.abs(w).sum(), w, grad=flipped, mode="random")
    assert [d.code for d in result.diagnoses] == ["element"]


@pytest.mark.parametrize(
    ("f", "x", "grad", "codes"),
    [
        (
            lambda z: np.mean(np.log(np.exp(z).sum(1)) - z[:, 0]),
            np.random.default_rng(2).standard_normal((5, 3)),
            np.zeros_like,
            ["zero"],
        ),
        (lambda a: np.sum(a // 2), np.arange(5), lambda a: np.full(5, 0.5), ["integer"]),
    ],
)
def test_nothing_is_a_common_shift_by_chance(f, x, grad, codes):
    assert [d.code for d in fg.gradcheck(f, x, grad=grad).diagnoses] == codes


def test_a_sparse_derivative_is_refused_in_words():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match=r"is a csr_array; pass its toarray\(\)"):
        fg.gradcheck(
            lambda x: np.sum(x**2), np.ones(3), grad=lambda x: sparse.csr_array(2 * x[None])
        )


def test_a_wrong_jvp_is_called_by_its_name(rng):
    W = rng.standard_normal((5, 3))
    result = fg.gradcheck(
        lambda x: np.tanh(W @ x),
        np.ones(3),
        grad=lambda x, v: 2 * (1 - np.tanh(W @ x) ** 2) * (W @ v),
        kind="jvp",
    )
    assert "J·v (5,) float64" in result.headline()
    assert ": J·v" in result.message
    assert "J·v in" not in result.message


def test_elements_that_rows_leave_open_are_measured_alone(rng):
    x = np.abs(rng.standard_normal((6, 3))) * np.array([1e-4, 1, 1e4])
    result = fg.gradcheck(fg.Map(np.log, vjp=lambda x, v: v / x), x)
    assert result.verdict == "PASS"
    assert result.mode == "rows"
    wrong = fg.gradcheck(fg.Map(np.log, vjp=lambda x, v: 1.001 * v / x), x)
    assert wrong.verdict == "FAIL"


@pytest.mark.parametrize("wrong", [2, 6, 10, 40])
def test_rare_wrong_rows_are_found(rng, wrong):
    """The gradient of an embedding without np.add.at: rows looked up twice have half of theirs."""
    E, looked_up = rng.standard_normal((5000, 16)), rng.permutation(5000)[:200]
    looked_up[:wrong] = looked_up[100 : 100 + wrong]

    def grad(E):
        a = np.zeros_like(E)
        a[looked_up] += 2 * E[looked_up]
        return a

    result = fg.gradcheck(lambda E: (E[looked_up] ** 2).sum(), E, grad=grad, mode="random")
    assert result.verdict == "FAIL"
    assert result.wrong
    rows = {int(w.place.partition("[")[2].partition(",")[0]) for w in result.wrong}
    assert rows <= set(looked_up[:wrong].tolist())
    assert "column" not in [d.code for d in result.diagnoses]
