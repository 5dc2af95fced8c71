"""Losses as users write them in NumPy, regularised or streamed, with gradients by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import fastgrad as fg
from gradcheck_corpus import bugs
from gradcheck_corpus.case import Case, plant
from gradcheck_corpus.data import LAYOUTS, Rng, longdouble, scores

FAMILY = "by hand"
N, C = 6, 19


@dataclass(frozen=True)
class Written:
    """A loss, its gradient by the first argument, and how inputs are drawn."""

    f: Callable[..., Any]
    grad: Callable[..., Any]
    draw: Callable[[Rng], tuple[Any, ...]]
    smooth: bool = True


def _case(name: str, f: Any, grad: Any, args: tuple[Any, ...], **more: Any) -> Case:
    first = f.__code__.co_varnames[0]
    kwargs = dict(more.pop("kwargs", {}))

    def truth() -> dict[str, np.ndarray]:
        return {first: grad(*longdouble(args), **kwargs)}

    return Case(
        f"{FAMILY}: {name}",
        FAMILY,
        f,
        args,
        grad,
        kwargs=kwargs,
        **{"grad": grad, "truth": truth, **more},
    )


def squares(x: np.ndarray, y: np.ndarray) -> Any:
    return ((x - y) ** 2).mean()


def squares_grad(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 2 * (x - y) / x.size


def half_squares(x: np.ndarray) -> Any:
    return 0.5 * (x * x).sum()


def half_squares_grad(x: np.ndarray) -> np.ndarray:
    return x.copy()


def quartic(x: np.ndarray) -> Any:
    return (x**4).sum()


def quartic_grad(x: np.ndarray) -> np.ndarray:
    return 4 * x**3


def logcosh(x: np.ndarray, y: np.ndarray) -> Any:
    return np.log(np.cosh(x - y)).mean()


def logcosh_grad(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.tanh(x - y) / x.size


def huber(x: np.ndarray, y: np.ndarray, delta: float = 1.0) -> Any:
    r = np.abs(x - y)
    return np.where(r < delta, r * r / 2, delta * (r - delta / 2)).mean()


def huber_grad(x: np.ndarray, y: np.ndarray, delta: float = 1.0) -> np.ndarray:
    return np.clip(x - y, -delta, delta) / x.size


def pinball(x: np.ndarray, y: np.ndarray, q: float = 0.3) -> Any:
    r = y - x
    return np.maximum(q * r, (q - 1) * r).mean()


def pinball_grad(x: np.ndarray, y: np.ndarray, q: float = 0.3) -> np.ndarray:
    return np.where(y > x, -q, 1 - q).astype(x.dtype) / x.size


def poisson(x: np.ndarray, y: np.ndarray) -> Any:
    return (np.exp(x) - y * x).mean()


def poisson_grad(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.exp(x) - y) / x.size


def divergence(p: np.ndarray, q: np.ndarray) -> Any:
    return (p * np.log(p / q)).sum() / len(p)


def divergence_grad(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (np.log(p / q) + 1) / len(p)


def focal(z: np.ndarray, y: np.ndarray, gamma: float = 2.0) -> Any:
    p = 1 / (1 + np.exp(-z * (2 * y - 1)))
    return (-((1 - p) ** gamma) * np.log(p)).mean()


def focal_grad(z: np.ndarray, y: np.ndarray, gamma: float = 2.0) -> np.ndarray:
    s = 2 * y - 1
    p = 1 / (1 + np.exp(-z * s))
    return s * (1 - p) ** gamma * (gamma * p * np.log(p) - (1 - p)) / z.size


def cosine(x: np.ndarray, y: np.ndarray) -> Any:
    return (1 - (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))).mean()


def cosine_grad(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    a, b = np.sqrt((x * x).sum(1, keepdims=True)), np.sqrt((y * y).sum(1, keepdims=True))
    c = (x * y).sum(1, keepdims=True) / (a * b)
    return -(y / (a * b) - c * x / a**2) / len(x)


def normalised(x: np.ndarray, y: np.ndarray) -> Any:
    """Squared residuals over each row's own size."""
    return (((x - y) / (1 + np.abs(y))) ** 2).sum()


def normalised_grad(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 2 * (x - y) / (1 + np.abs(y)) ** 2


def softplus(x: np.ndarray) -> Any:
    return np.logaddexp(0, x).sum()


def softplus_grad(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def regression(W: np.ndarray, X: np.ndarray, y: np.ndarray, l2: float = 0.0) -> Any:
    """Softmax regression with a penalty."""
    z = X @ W
    z = z - z.max(1, keepdims=True)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return -np.log(p[np.arange(len(y)), y]).mean() + l2 * (W * W).sum()


def regression_grad(W: np.ndarray, X: np.ndarray, y: np.ndarray, l2: float = 0.0) -> np.ndarray:
    z = X @ W
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return X.T @ p / len(y) + 2 * l2 * W


def ridge(w: np.ndarray, X: np.ndarray, y: np.ndarray, l2: float = 0.0) -> Any:
    return ((X @ w - y) ** 2).mean() + l2 * w @ w


def ridge_grad(w: np.ndarray, X: np.ndarray, y: np.ndarray, l2: float = 0.0) -> np.ndarray:
    return 2 * X.T @ (X @ w - y) / len(y) + 2 * l2 * w


def lasso(w: np.ndarray, X: np.ndarray, y: np.ndarray, l1: float = 0.1) -> Any:
    return 0.5 * ((X @ w - y) ** 2).mean() + l1 * np.abs(w).sum()


def lasso_grad(w: np.ndarray, X: np.ndarray, y: np.ndarray, l1: float = 0.1) -> np.ndarray:
    return X.T @ (X @ w - y) / len(y) + l1 * np.sign(w)


def mixture(means: np.ndarray, x: np.ndarray) -> Any:
    """Negative log-likelihood of points under equal unit Gaussians."""
    d = -0.5 * ((x[:, None] - means) ** 2).sum(2)
    m = d.max(1, keepdims=True)
    return -(m[:, 0] + np.log(np.exp(d - m).mean(1))).mean()


def mixture_grad(means: np.ndarray, x: np.ndarray) -> np.ndarray:
    d = -0.5 * ((x[:, None] - means) ** 2).sum(2)
    r = np.exp(d - d.max(1, keepdims=True))
    r /= r.sum(1, keepdims=True)
    return -(r[:, :, None] * (x[:, None] - means)).sum(0) / len(x)


def streamed(z: np.ndarray, y: np.ndarray) -> Any:
    """Mean cross-entropy over chunks of rows of different sizes."""
    total = fg.streaming.LossSum()
    for rows in (slice(0, 1), slice(1, 4), slice(4, None)):
        loss = fg.cross_entropy(z[rows], y[rows], reduction="sum")
        total.update(loss, weight=len(y[rows]))
    return total.mean


def streamed_grad(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    return fg.cross_entropy.grad(z, y)


def chunked(x: np.ndarray) -> Any:
    """Log of the sum of exponentials of all elements, in chunks of columns."""
    state = fg.streaming.LogSumExpState()
    for part in np.array_split(x, 4, axis=-1):
        state.update(part)
    return state.logsumexp


def chunked_grad(x: np.ndarray) -> np.ndarray:
    return fg.softmax(x, axis=None)


def smoothness(x: np.ndarray) -> Any:
    return (np.diff(x) ** 2).sum() + np.exp(-x * x).sum()


def smoothness_grad(x: np.ndarray) -> np.ndarray:
    d = np.diff(x)
    g = -2 * x * np.exp(-x * x)
    g[..., 1:] += 2 * d
    g[..., :-1] -= 2 * d
    return g


def monotone(x: np.ndarray) -> Any:
    """Penalises every step down."""
    return (np.minimum(0, np.diff(x)) ** 2).sum()


def monotone_grad(x: np.ndarray) -> np.ndarray:
    d = 2 * np.minimum(0, np.diff(x))
    g = np.zeros_like(x)
    g[..., 1:] += d
    g[..., :-1] -= d
    return g


def logarithms(x: np.ndarray) -> Any:
    return np.log(x).sum()


def logarithms_grad(x: np.ndarray) -> np.ndarray:
    return 1 / x


def both_logarithms(p: np.ndarray) -> Any:
    """Of p and of 1 - p: the domain ends at 0 and at 1."""
    return -(np.log(p) + np.log1p(-p)).mean()


def both_logarithms_grad(p: np.ndarray) -> np.ndarray:
    return (1 / (1 - p) - 1 / p) / p.size


def roots(x: np.ndarray) -> Any:
    return np.sqrt(x).sum()


def roots_grad(x: np.ndarray) -> np.ndarray:
    return 0.5 / np.sqrt(x)


def _pair(shape: tuple[int, ...], scale: float = 1.0) -> Callable[[Rng], tuple[Any, ...]]:
    return lambda r: (scores(r, shape, scale), scores(r, shape, scale))


def _one(shape: tuple[int, ...], scale: float = 1.0) -> Callable[[Rng], tuple[Any, ...]]:
    return lambda r: (scores(r, shape, scale),)


def _fit(r: Rng) -> tuple[Any, ...]:
    return scores(r, (21,), 1), scores(r, (30, 21), 1), scores(r, (30,), 1)


LOSSES = {
    "squares": Written(squares, squares_grad, _pair((N, C))),
    "half squares": Written(half_squares, half_squares_grad, _one((N, C))),
    "quartic": Written(quartic, quartic_grad, _one((N, C))),
    "log cosh": Written(logcosh, logcosh_grad, _pair((N, C))),
    "Huber": Written(huber, huber_grad, _pair((N, C)), smooth=False),
    "pinball": Written(pinball, pinball_grad, _pair((N, C)), smooth=False),
    "Poisson": Written(
        poisson, poisson_grad, lambda r: (scores(r, (N, C), 1), r.poisson(2.0, (N, C)))
    ),
    "divergence": Written(
        divergence,
        divergence_grad,
        lambda r: (r.dirichlet(np.full(5, 3.0), 7), r.dirichlet(np.full(5, 3.0), 7)),
    ),
    "focal": Written(focal, focal_grad, lambda r: (scores(r, (N, C)), r.integers(0, 2, (N, C)))),
    "cosine": Written(cosine, cosine_grad, _pair((N, C))),
    "normalised": Written(normalised, normalised_grad, _pair((N, C), 100.0)),
    "softplus": Written(softplus, softplus_grad, _one((N, C), 5.0)),
    "regression": Written(
        regression,
        regression_grad,
        lambda r: (scores(r, (5, 17), 1), scores(r, (8, 5), 1), r.integers(0, 17, 8)),
    ),
    "ridge": Written(ridge, ridge_grad, _fit),
    "lasso": Written(lasso, lasso_grad, _fit, smooth=False),
    "mixture": Written(
        mixture, mixture_grad, lambda r: (scores(r, (3, 2), 2), scores(r, (20, 2), 2))
    ),
    "streamed": Written(
        streamed, streamed_grad, lambda r: (scores(r, (7, 5)), r.integers(0, 5, 7))
    ),
    "chunked": Written(chunked, chunked_grad, _one((3, 9))),
    "smoothness": Written(smoothness, smoothness_grad, _one((23,))),
    "monotone": Written(monotone, monotone_grad, _one((4, 6)), smooth=False),
}
FASTGRAD = ("streamed", "chunked")  # not in long double
SCALED = ("squares", "half squares", "quartic", "normalised", "Huber", "pinball", "cosine")


def _drawn(name: str, rng: Rng, how: str = "", **kwargs: Any) -> Case:
    w = LOSSES[name]
    more = {"truth": None} if name in FASTGRAD else {}
    return _case(name + how, w.f, w.grad, w.draw(rng), smooth=w.smooth, kwargs=kwargs, **more)


def right(rng: Rng) -> list[Case]:
    cases = [_drawn(name, rng) for name in LOSSES]
    cases += [_drawn(name, rng, ", penalised", l2=0.3) for name in ("regression", "ridge")]
    for name, w in LOSSES.items():
        args = tuple(a.astype(np.float32) if a.dtype.kind == "f" else a for a in w.draw(rng))
        if name not in FASTGRAD:
            cases.append(_case(f"{name}, float32", w.f, w.grad, args, smooth=w.smooth))
    for name in SCALED:
        w = LOSSES[name]
        for scale in (1e-30, 1e30):
            args = tuple(a * scale for a in w.draw(rng))
            hard = name in ("Huber", "normalised", "quartic")
            cases.append(
                _case(f"{name}, scale {scale:g}", w.f, w.grad, args, smooth=w.smooth, hard=hard)
            )
    for how, lay in LAYOUTS.items():
        w = LOSSES["log cosh"]
        x, y = w.draw(rng)
        cases.append(_case(f"log cosh, {how}", w.f, w.grad, (lay(x), y)))
    for edge in (1e-2, 1e-5, 1e-8, 1e-11, 1e-20, 1e-300):
        near = np.array([edge, 0.3, 0.8])
        for mode in ("auto", "random"):
            options: dict[str, Any] = {"options": {"mode": mode}, "hard": True}
            cases += [
                _case(f"{name} at {edge:g}, {mode}", f, grad, (at,), **options)
                for name, f, grad, at in (
                    ("logarithm", logarithms, logarithms_grad, near),
                    ("root", roots, roots_grad, near),
                    ("both logarithms", both_logarithms, both_logarithms_grad, near),
                    ("both logarithms, of 1 -", both_logarithms, both_logarithms_grad, 1 - near),
                )
                if at.max() < 1
            ]
    x, y = scores(rng, (256, 256)), scores(rng, (256, 256))
    cases += [
        _case("squares at the minimum", squares, squares_grad, (x[:3, :4], x[:3, :4].copy())),
        _case("half squares at 0", half_squares, half_squares_grad, (np.zeros((3, 4)),)),
        _case("quartic at 0", quartic, quartic_grad, (np.zeros(5),)),
        _case("quartic, one 0", quartic, quartic_grad, (np.array([0.0, 1.0, -2.0]),)),
        _case("softplus, saturated", softplus, softplus_grad, (x[:3, :4] * 30,), hard=True),
        _case(
            "Poisson near overflow",
            poisson,
            poisson_grad,
            (700 + x[:3, :4], np.ones((3, 4))),
            hard=True,
        ),
        _case(
            "squares, 65,536 elements",
            squares,
            squares_grad,
            (x, y),
            options={"mode": "random"},
            truth=None,
        ),
        _case("squares, one element", squares, squares_grad, (x[0, :1], y[0, :1])),
        _case("squares of a point", squares, squares_grad, (x[0, 0].reshape(()), y[0, 0])),
        _case(
            "squares as a Python float",
            lambda x, y: float(squares(x, y)),
            squares_grad,
            (x[:3, :4], y[:3, :4]),
        ),
        _case(
            "the argument that is no array",
            lambda x, y, note: squares(x, y),
            lambda x, y, note: squares_grad(x, y),
            (x[:3, :4], y[:3, :4], "note"),
        ),
        _case("offset squares", squares, squares_grad, (x[:3, :4] + 1e6, y[:3, :4] + 1e6)),
        _case("large constant", lambda x: half_squares(x) + 1e6, half_squares_grad, (x[:3, :4],)),
        _case(
            "huge constant",
            lambda x: half_squares(x) + 1e14,
            half_squares_grad,
            (x[:3, :4],),
            hard=True,
        ),
        _case("flat and right", lambda x: 3.0 + 0 * x.sum(), np.zeros_like, (x[:3, :4],)),
        _case(
            "step and right",
            lambda x: float((x > 0).sum()),
            np.zeros_like,
            (x[:3, :4],),
            hard=True,
            smooth=False,
            truth=None,
        ),
    ]
    return cases


def planted(rng: Rng) -> list[Case]:
    l2 = 0.3
    plain, fitted = (
        _drawn("log cosh", rng, ", again"),
        _drawn("regression", rng, ", penalised", l2=l2),
    )
    ridged = _drawn("ridge", rng, ", penalised", l2=l2)
    cases = bugs.anywhere(plain) + bugs.matrix(fitted) + bugs.vector(ridged)
    cases += bugs.anywhere(_drawn("smoothness", rng, ", again")) + bugs.behaviour(
        _drawn("focal", rng, ", again")
    )
    cases += bugs.square(_case("square", quartic, quartic_grad, (scores(rng, (5, 5), 1),)))
    for name in LOSSES:
        case = _drawn(name, rng)
        cases += plant(case, "sign", np.negative, codes=("sign",), carried=True)
        cases += plant(case, "0.1 % off", bugs.scaled(1.001), codes=("factor",), factor=1.001)
        cases += plant(case, "one doubled", bugs.doubled)

    def of(case: Case, bug: str, wrong: Any, *codes: str, **evidence: Any) -> None:
        cases.extend(plant(case, bug, derivative=wrong, codes=codes, **evidence))

    def by(name: str, bug: str, wrong: Any, /, *codes: str, **evidence: Any) -> None:
        of(_drawn(name, rng), bug, wrong, *codes, **evidence)

    g = regression_grad
    of(
        fitted,
        "penalty forgotten",
        lambda W, X, y, l2: g(W, X, y),
        "regulariser",
        coefficient=-2 * l2,
    )
    of(
        fitted,
        "penalty doubled",
        lambda W, X, y, l2: g(W, X, y, 2 * l2),
        "regulariser",
        coefficient=2 * l2,
    )
    of(
        fitted,
        "half of the penalty",
        lambda W, X, y, l2: g(W, X, y, l2 / 2),
        "regulariser",
        coefficient=-l2,
    )
    of(
        fitted,
        "-1 at the target forgotten",
        lambda W, X, y, l2: X.T @ fg.softmax(X @ W) / len(y) + 2 * l2 * W,
    )
    of(fitted, "features transposed", lambda W, X, y, l2: bugs.fortran(g(W, X, y, l2)), "permuted")
    of(ridged, "penalty forgotten", lambda w, X, y, l2: ridge_grad(w, X, y), "regulariser")
    of(
        ridged,
        "bias not excluded",
        lambda w, X, y, l2: ridge_grad(w, X, y, l2) + np.where(np.arange(len(w)) == 0, w, 0),
    )
    by("squares", "2 forgotten", lambda x, y: (x - y) / x.size, "factor", factor=0.5, name="1/2")
    by("squares", "y minus x", lambda x, y: 2 * (y - x) / x.size, "sign")
    by("squares", "mean over rows", lambda x, y: 2 * (x - y) / len(x), "factor", factor=float(C))
    by("quartic", "power not lowered", lambda x: 4 * x**4)
    by("quartic", "coefficient forgotten", lambda x: x**3, "factor", factor=0.25)
    by("normalised", "divided once", lambda x, y: 2 * (x - y) / (1 + np.abs(y)))
    by("Huber", "not clipped", lambda x, y: (x - y) / x.size)
    by("pinball", "quantile of the other side", lambda x, y: pinball_grad(x, y, 0.7))
    by("Poisson", "rate for its logarithm", lambda x, y: (1 - y * np.exp(-x)) / x.size)
    by("divergence", "1 forgotten", lambda p, q: np.log(p / q) / len(p))
    by(
        "focal",
        "only the outer factor",
        lambda z, y: -(2 * y - 1) * (1 - 1 / (1 + np.exp(-z * (2 * y - 1)))) ** 3 / z.size,
    )
    by(
        "cosine",
        "length of x held still",
        lambda x, y: (
            -y / np.sqrt((x * x).sum(1, keepdims=True) * (y * y).sum(1, keepdims=True)) / len(x)
        ),
    )
    by("lasso", "l1 forgotten", lambda w, X, y: lasso_grad(w, X, y, 0.0))
    by("lasso", "w for its sign", lambda w, X, y: lasso_grad(w, X, y, 0.0) + 0.1 * w)
    by("mixture", "hard assignment", _hard)
    by("streamed", "mean of means", _mean_of_means)
    by("smoothness", "one end forgotten", lambda x: bugs._at(0, value=0.0)(smoothness_grad(x)))
    by("monotone", "max for min", lambda x: -monotone_grad(-x))
    for edge in (1e-5, 1e-20, 1e-300):
        uneven = _case(
            f"logarithm at {edge:g}", logarithms, logarithms_grad, (np.array([edge, 0.3, 0.8]),)
        )
        # Too small beside the largest for `plant`, and yet each is told to ten digits.
        cases.append(
            replace(
                uneven,
                name=f"{uneven.name}: all but the largest doubled",
                grad=lambda x: np.where(x < 0.1, 1, 2) / x,
                right=False,
                truth=None,
            )
        )
        of(uneven, "the largest doubled", lambda x: np.where(x < 0.1, 2, 1) / x)
    # Nothing to descend: the function has steps.
    x = scores(rng, (N, C))

    def rounded(x: np.ndarray) -> float:
        return float(((np.round(x) - 1) ** 2).mean())

    def chosen(x: np.ndarray) -> float:
        return float((x.argmax(1) ** 2).mean())

    def cast(x: np.ndarray) -> float:
        return float((x.astype(np.int64) ** 2).sum())

    def accuracy(x: np.ndarray) -> float:
        return float(((1 / (1 + np.exp(-x))) > 0.5).mean())

    apart = np.round(x) + rng.uniform(-0.3, 0.3, x.shape)  # away from the steps
    for name, f, at, surrogate in (
        ("rounded", rounded, apart, lambda x: 2 * (np.round(x) - 1) / x.size),
        ("argmax", chosen, x, lambda x: fg.softmax(x) / len(x)),
        ("cast to integers", cast, np.trunc(x) + 0.5 * np.sign(x), lambda x: 2.0 * np.trunc(x)),
        ("accuracy", accuracy, x, lambda x: 1 / (1 + np.exp(-x)) / x.size),
    ):
        cases.append(
            Case(
                f"{FAMILY}: {name}: a surrogate's gradient",
                FAMILY,
                f,
                (at,),
                np.zeros_like,
                grad=surrogate,
                right=False,
                codes=("flat",),
                smooth=False,
            )
        )
    whole = rng.integers(-3, 4, (4, 5))

    def truncating(x: np.ndarray) -> float:
        return float((x**2).sum())

    cases.append(
        Case(
            f"{FAMILY}: integer input",
            FAMILY,
            truncating,
            (whole,),
            lambda x: 2.0 * x,
            grad=lambda x: x * 1.0,
            right=False,
            codes=("integer",),
            options={"wrt": 0},
        )
    )
    big = _case(
        "squares, 65,536 elements",
        squares,
        squares_grad,
        (scores(rng, (65536,)), scores(rng, (65536,))),
        options={"mode": "random"},
    )
    cases += plant(big, "one doubled", bugs.doubled, located=True)
    cases += plant(big, "two swapped", bugs.swapped, codes=("permuted",), located=True)
    return cases


def _hard(means: np.ndarray, x: np.ndarray) -> np.ndarray:
    nearest = ((x[:, None] - means) ** 2).sum(2).argmin(1)
    r = np.eye(len(means))[nearest]
    return -(r[:, :, None] * (x[:, None] - means)).sum(0) / len(x)


def _mean_of_means(z: np.ndarray, y: np.ndarray) -> np.ndarray:
    chunks = (slice(0, 1), slice(1, 4), slice(4, None))
    return np.concatenate([fg.cross_entropy.grad(z[c], y[c]) / 3 for c in chunks])
