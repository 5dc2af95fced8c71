"""Hinge losses, of signs and of classes: kinks near the inputs, kinks at them, and ties."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastgrad as fg
from fastgrad import _reference as ref
from gradcheck_corpus import bugs
from gradcheck_corpus.case import Case, plant
from gradcheck_corpus.data import LAYOUTS, VALUES, Rng, longdouble, scores

FAMILY = "hinge"
N, C = 6, 19
SCALES = (
    "float32",
    "offset 1e4",
    "scale 1e-3",
    "scale 1e-30",
    "scale 1e30",
    "zeros",
    "ones",
    "ties",
    "scales mixed",
    "float16",
)


def _signs(rng: Rng, shape: Any) -> np.ndarray:
    return rng.choice([-1, 1], shape)


def _clear(f: np.ndarray, y: np.ndarray, margin: float = 1.0, by: float = 0.05) -> np.ndarray:
    """Scores moved away from the kink by at least `by`."""
    h = margin - y * f
    return f - y * np.where(np.abs(h) < by, np.where(h >= 0, by, -by), 0)


def _case(name: str, f: np.ndarray, y: np.ndarray, truth: bool = False, **more: Any) -> Case:
    kwargs = dict(more.pop("kwargs", {}))
    exact = None
    if truth:

        def exact() -> dict[str, np.ndarray]:
            return {"scores": ref.hinge_grad(f, y, **kwargs)}

    return Case(
        f"{FAMILY}: {name}",
        FAMILY,
        fg.hinge,
        (f, y),
        fg.hinge.grad,
        kwargs=kwargs,
        **{"truth": exact, "smooth": truth, **more},
    )


def _many(name: str, z: np.ndarray, y: np.ndarray, truth: bool = False, **more: Any) -> Case:
    kwargs = dict(more.pop("kwargs", {}))
    exact = None
    if truth:

        def exact() -> dict[str, np.ndarray]:
            return {"scores": ref.multiclass_hinge_grad(z, y, **kwargs)}

    return Case(
        f"{FAMILY}: multiclass, {name}",
        FAMILY,
        fg.multiclass_hinge,
        (z, y),
        fg.multiclass_hinge.grad,
        kwargs=kwargs,
        **{"truth": exact, "smooth": truth, **more},
    )


def svm(W: np.ndarray, X: np.ndarray, y: np.ndarray, l2: float = 0.0) -> Any:
    """Weston and Watkins' loss of a linear classifier, rows of X times W."""
    z = X @ W
    h = np.maximum(0, 1 + z - z[np.arange(len(y)), y][:, None])
    return (h.sum() - len(y)) / len(y) + l2 * (W * W).sum()


def svm_grad(W: np.ndarray, X: np.ndarray, y: np.ndarray, l2: float = 0.0) -> np.ndarray:
    z = X @ W
    g = (1 + z - z[np.arange(len(y)), y][:, None] > 0).astype(W.dtype)
    g[np.arange(len(y)), y] = 0
    g[np.arange(len(y)), y] = -g.sum(1)
    return X.T @ g / len(y) + 2 * l2 * W


def _svm(rng: Rng, name: str, l2: float = 0.2) -> Case:
    args = scores(rng, (5, 19), 1), scores(rng, (8, 5), 1), rng.integers(0, 19, 8)
    return Case(
        f"{FAMILY}: {name}",
        FAMILY,
        svm,
        args,
        svm_grad,
        grad=svm_grad,
        kwargs={"l2": l2},
        smooth=False,
        truth=lambda: {"W": svm_grad(*longdouble(args), l2)},
    )


def absolute(x: np.ndarray) -> Any:
    return np.abs(x).sum()


def right(rng: Rng) -> list[Case]:
    y, t = _signs(rng, (4, 7)), rng.integers(0, 7, 4)
    f, z = _clear(scores(rng, (4, 7)), y), scores(rng, (4, 7))
    at = np.where(rng.random((4, 7)) < 0.3, y * 1.0, f)  # on the kink
    tied = np.repeat(rng.normal(0, 1, (4, 1)), 7, 1)
    tied[np.arange(4), t] -= 0.5
    edge = scores(rng, (4, 7), 0.2)
    edge[np.arange(4), t] = edge.max(1) + 1  # the margin is reached exactly
    cases = [
        _case("mean", f, y, truth=True),
        _case("sum", f, y, truth=True, kwargs={"reduction": "sum"}),
        _case("margin 0.5", _clear(f, y, 0.5), y, truth=True, kwargs={"margin": 0.5}),
        _case("perceptron", _clear(f, y, 0.0), y, kwargs={"margin": 0.0}),
        _case("squared", f, y, truth=True, kwargs={"squared": True}),
        _case("squared, at the kink", at, y, kwargs={"squared": True}),
        _case("at the kink", at, y),
        _case("all at the kink", y.astype(float), y),
        _case("sum, at the kink", at, y, kwargs={"reduction": "sum"}),
        _case("float32, at the kink", at.astype(np.float32), y),
        _case("nearly at the kink", y * (1 + 1e-9), y),
        _case("kinks at 1e-4", y * (1 - 1e-4), y),
        _case("kinks at 1e-2", y * (1 + 1e-2 * rng.choice([-1, 1], (4, 7))), y),
        _case("sample_weight", f, y, truth=True, kwargs={"sample_weight": rng.random((4, 7))}),
        _case("where", f, y, kwargs={"where": np.arange(28).reshape(4, 7) % 2 == 0}),
        _case("one value per element", f, y, kwargs={"reduction": "none"}),
        _case("a vector", f[0], y[0], truth=True),
        _case("one element", f[0, :1], y[0, :1]),
        _case("none active", 5.0 * y, y),
        _case("all active", -5.0 * y, y),
        _many("mean", z, t),
        _many(
            "of three axes", scores(rng, (2, 5, 3)), rng.integers(0, 5, (2, 3)), kwargs={"axis": 1}
        ),
        _many("Weston and Watkins", z, t, kwargs={"variant": "weston_watkins"}),
        _many(
            "Weston and Watkins over K", z, t, kwargs={"variant": "weston_watkins", "divide": "k"}
        ),
        _many("squared", z, t, kwargs={"squared": True}),
        _many(
            "squared, Weston and Watkins",
            z,
            t,
            kwargs={"squared": True, "variant": "weston_watkins"},
        ),
        _many("sum", z, t, kwargs={"reduction": "sum"}),
        _many("weight", z, t, kwargs={"weight": rng.random(7) + 0.2}),
        _many("sample_weight", z, t, kwargs={"sample_weight": rng.random(4) + 0.2}),
        _many("ignore_index", z, np.array([1, -1, 0, -1]), kwargs={"ignore_index": -1}),
        _many("per row", z, t, kwargs={"reduction": "none"}),
        _many("ties of rivals", tied, t),
        _many("ties of rivals, Weston and Watkins", tied, t, kwargs={"variant": "weston_watkins"}),
        _many("at the margin", edge, t),
        _many("at the margin, Weston and Watkins", edge, t, kwargs={"variant": "weston_watkins"}),
        _many("one row", z[:1], t[:1]),
        _many("two classes", scores(rng, (5, 2)), rng.integers(0, 2, 5)),
        _case(
            "65,536 elements, squared",
            scores(rng, (65536,)),
            _signs(rng, 65536),
            kwargs={"squared": True},
            options={"mode": "random"},
            hard=True,
        ),
        _case(
            "65,536 elements",
            scores(rng, (65536,)),
            _signs(rng, 65536),
            options={"mode": "random"},
            hard=True,
        ),
        _svm(rng, "support vectors"),
        Case(
            f"{FAMILY}: absolute values at 0",
            FAMILY,
            absolute,
            (np.zeros(5),),
            np.sign,
            grad=np.sign,
            smooth=False,
        ),
        Case(
            f"{FAMILY}: absolute values, some 0",
            FAMILY,
            absolute,
            (np.array([0.0, 1.0, -2.0, 0.0]),),
            np.sign,
            grad=np.sign,
            smooth=False,
        ),
        Case(
            f"{FAMILY}: ReLU of slope 1 at 0",
            FAMILY,
            lambda x: np.maximum(x, 0).sum(),
            (np.array([0.0, 1.0, -2.0]),),
            lambda x: (x >= 0) * 1.0,
            grad=lambda x: (x >= 0) * 1.0,
            smooth=False,
        ),
        Case(
            f"{FAMILY}: maximum shared out",
            FAMILY,
            np.max,
            (np.ones(4),),
            lambda x: np.full(4, 0.25),
            grad=lambda x: np.full(4, 0.25),
            smooth=False,
        ),
    ]
    for how in SCALES:
        draw, hard = VALUES[how]
        cases.append(_case(how, draw(rng, (4, 7)), y, hard=hard))
        cases.append(_many(how, draw(rng, (4, 7)), t, hard=hard))
    cases += [_case(how, lay(f), y) for how, lay in LAYOUTS.items()]
    return cases


def planted(rng: Rng) -> list[Case]:
    y, t = _signs(rng, (N, C)), rng.integers(0, C, N)
    f = _clear(scores(rng, (N, C), 3.0), y)
    mean = _case("mean", f, y)
    squared = _case("squared", f, y, kwargs={"squared": True})
    many = _many("Weston and Watkins", scores(rng, (N, C)), t, kwargs={"variant": "weston_watkins"})
    support = _svm(rng, "support vectors")
    cases = bugs.anywhere(squared) + bugs.matrix(squared) + bugs.matrix(support)
    cases += bugs.anywhere(many) + bugs.behaviour(squared)
    cases += bugs.vector(
        _case(
            "a vector",
            scores(rng, (21,)),
            _signs(rng, 21),
            kwargs={"squared": True, "margin": 20.0},  # all active
        )
    )
    cases += bugs.square(_svm_square(rng))

    def of(case: Case, bug: str, wrong: Any, *codes: str, **evidence: Any) -> None:
        cases.extend(plant(case, bug, derivative=wrong, codes=codes, **evidence))

    ours = fg.hinge.grad
    of(mean, "margin forgotten", lambda f, y: ours(f, y, margin=0.0))
    of(mean, "margin doubled", lambda f, y: ours(f, y, margin=2.0))
    of(mean, "sign of y forgotten", lambda f, y: np.abs(ours(f, y)))
    of(mean, "active everywhere", lambda f, y: -y / f.size)
    of(mean, "that of the squared hinge", lambda f, y: ours(f, y, squared=True))
    of(mean, "mean over the active", lambda f, y: ours(f, y) * f.size / (y * f < 1).sum(), "factor")
    of(
        mean,
        "sum for mean",
        lambda f, y: ours(f, y, reduction="sum"),
        "factor",
        factor=float(N * C),
    )
    of(mean, "mean over rows", lambda f, y: ours(f, y) * C, "factor", factor=float(C))
    of(mean, "the wrong side", lambda f, y: -y * (y * f > 1) / f.size)
    of(
        squared,
        "2 forgotten",
        lambda f, y, squared: ours(f, y, squared=True) / 2,
        "factor",
        factor=0.5,
        name="1/2",
    )
    of(squared, "that of the hinge", lambda f, y, squared: ours(f, y))
    rivals = fg.multiclass_hinge.grad
    of(
        many,
        "target not counted down",
        lambda z, y, variant: np.maximum(rivals(z, y, variant=variant), 0),
        "target",
    )
    of(
        many,
        "target counted once",
        lambda z, y, variant: np.maximum(rivals(z, y, variant=variant), -1 / N),
    )
    of(many, "that of Crammer and Singer", lambda z, y, variant: rivals(z, y))
    of(
        many,
        "divided by K",
        lambda z, y, variant: rivals(z, y, variant=variant, divide="k"),
        "factor",
        factor=1 / C,
        name="1/C",
    )
    of(
        many,
        "target among its rivals",
        lambda z, y, variant: rivals(z, y, variant=variant) + np.eye(C)[y] / N,
    )
    of(support, "penalty forgotten", lambda W, X, y, l2: svm_grad(W, X, y), "regulariser")
    of(support, "penalty halved", lambda W, X, y, l2: svm_grad(W, X, y, l2 / 2), "regulariser")
    of(support, "margin forgotten", lambda W, X, y, l2: _no_margin(W, X, y, l2))
    weights = rng.random(C) + 0.2
    heavy = _many("weight", scores(rng, (N, C)), t, kwargs={"weight": weights})
    of(heavy, "weight forgotten", lambda z, y, weight: rivals(z, y))
    # A kink at the input: the value must lie between the slopes at its two sides.
    at = _case("at the kink", np.where(rng.random((4, 7)) < 0.3, 1.0, -0.5) * y[:4, :7], y[:4, :7])
    outside = np.where(at.args[0] == at.args[1], 1.0, 0.0) * at.args[1] / 28
    of(at, "outside the slopes at the kink", lambda f, y: ours(f, y) + outside)
    of(at, "beyond the slopes at the kink", lambda f, y: ours(f, y) - 2 * outside)
    zero = Case(
        f"{FAMILY}: absolute values at 0",
        FAMILY,
        absolute,
        (np.array([0.0, 1.0, -2.0, 0.0]),),
        np.sign,
        grad=np.sign,
        smooth=False,
    )
    of(zero, "2 at 0", lambda x: np.where(x == 0, 2.0, np.sign(x)))
    of(zero, "-1.01 at 0", lambda x: np.where(x == 0, -1.01, np.sign(x)))
    for how in SCALES:
        if how in ("zeros", "ones", "ties"):
            continue
        draw, hard = VALUES[how]
        odd = _case(how, draw(rng, (4, 7)), y[:4, :7], hard=hard)
        cases += plant(odd, "twice", bugs.scaled(2), codes=() if hard else ("factor",))
        cases += plant(odd, "one zero", bugs.one_zero)
    big = _case(
        "65,536 elements, squared",
        scores(rng, (65536,)),
        _signs(rng, 65536),
        hard=True,
        kwargs={"squared": True},
        options={"mode": "random"},
    )
    cases += plant(big, "half", bugs.scaled(0.5), codes=("factor",))
    cases += plant(big, "sign", np.negative, codes=("sign",))
    return cases


def _no_margin(W: np.ndarray, X: np.ndarray, y: np.ndarray, l2: float) -> np.ndarray:
    z = X @ W
    g = (z > z[np.arange(len(y)), y][:, None]).astype(W.dtype)
    g[np.arange(len(y)), y] = -g.sum(1)
    return X.T @ g / len(y) + 2 * l2 * W


def _svm_square(rng: Rng) -> Case:
    args = scores(rng, (5, 5), 1), scores(rng, (8, 5), 1), rng.integers(0, 5, 8)
    return Case(
        f"{FAMILY}: square support vectors",
        FAMILY,
        svm,
        args,
        svm_grad,
        grad=svm_grad,
        kwargs={"l2": 0.2},
        smooth=False,
    )
