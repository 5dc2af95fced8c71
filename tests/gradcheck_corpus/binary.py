"""Sigmoid, log_sigmoid and binary cross-entropy: from logits, and from probabilities by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastgrad as fg
from fastgrad import _reference as ref
from gradcheck_corpus import bugs
from gradcheck_corpus.case import Case, plant
from gradcheck_corpus.data import LAYOUTS, VALUES, Rng, longdouble, scores

FAMILY = "binary"
N, C = 7, 19
EPS = 1e-3  # of the loss by hand: large enough for its lack to be seen


def _case(name: str, z: np.ndarray, y: np.ndarray, truth: bool = True, **more: Any) -> Case:
    kwargs = dict(more.pop("kwargs", {}))
    f = fg.binary_cross_entropy
    exact = None
    if truth and kwargs.get("reduction") != "none":

        def exact() -> dict[str, np.ndarray]:
            return {"logits": ref.binary_cross_entropy_grad(z, y, **kwargs)}

    return Case(f"{FAMILY}: {name}", FAMILY, f, (z, y), f.grad, kwargs=kwargs, truth=exact, **more)


def by_hand(p: np.ndarray, y: np.ndarray) -> Any:
    return -np.mean(y * np.log(p + EPS) + (1 - y) * np.log(1 - p + EPS))


def by_hand_grad(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    return -(y / (p + EPS) - (1 - y) / (1 - p + EPS)) / p.size


def _by_hand(name: str, p: np.ndarray, y: np.ndarray, **more: Any) -> Case:
    def truth() -> dict[str, np.ndarray]:
        return {"p": by_hand_grad(*longdouble((p, y)))}

    return Case(
        f"{FAMILY}: {name}",
        FAMILY,
        by_hand,
        (p, y),
        by_hand_grad,
        grad=by_hand_grad,
        truth=truth,
        **more,
    )


def logistic(w: np.ndarray, X: np.ndarray, y: np.ndarray) -> Any:
    h = 1 / (1 + np.exp(-(X @ w)))
    return -(y @ np.log(h) + (1 - y) @ np.log(1 - h)) / len(y)


def logistic_grad(w: np.ndarray, X: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (1 / (1 + np.exp(-(X @ w))) - y) @ X / len(y)


def _logistic(rng: Rng, name: str = "logistic regression") -> Case:
    args = scores(rng, (21,), 0.5), scores(rng, (9, 21), 1), rng.integers(0, 2, 9).astype(float)
    return Case(
        f"{FAMILY}: {name}",
        FAMILY,
        logistic,
        args,
        logistic_grad,
        grad=logistic_grad,
        truth=lambda: {"w": logistic_grad(*longdouble(args))},
        options={"wrt": "w"},
    )


def right(rng: Rng) -> list[Case]:
    z, y = scores(rng, (N, C)), rng.integers(0, 2, (N, C))
    few, some = scores(rng, (4, 7)), rng.integers(0, 2, (4, 7))
    keep = rng.random((4, 7)) < 0.7
    keep[0, 0] = True
    cases = [_case(how, draw(rng, (4, 7)), some, hard=hard) for how, (draw, hard) in VALUES.items()]
    cases += [_case(how, lay(z), y) for how, lay in LAYOUTS.items()]
    cases += [
        _case("mean", z, y),
        _case("sum", z, y, kwargs={"reduction": "sum"}),
        _case("one value per element", few, some, kwargs={"reduction": "none"}),
        _case("soft targets", few, rng.random((4, 7))),
        _case("pos_weight", few, some, kwargs={"pos_weight": 3.0}),
        _case("pos_weight per column", few, some, kwargs={"pos_weight": rng.random(7) + 0.5}),
        _case("sample_weight", few, some, kwargs={"sample_weight": rng.random((4, 7))}),
        _case("where", few, some, kwargs={"where": keep}),
        _case("normalizer", few, some, kwargs={"normalizer": 11.0}),
        _case("a vector", scores(rng, (9,)), rng.integers(0, 2, 9)),
        _case("one element", scores(rng, (1,)), np.array([1])),
        _case("all positive", few, np.ones((4, 7), int)),
        _case("float32, weighted", few.astype(np.float32), some, kwargs={"pos_weight": 0.5}),
        _case(
            "65,536 elements",
            scores(rng, (65536,)),
            rng.integers(0, 2, 65536),
            truth=False,
            options={"mode": "random"},
        ),
        _by_hand("by hand", rng.uniform(0.05, 0.95, (N, C)), y.astype(float)),
        _by_hand("by hand at small p", rng.uniform(1e-9, 1e-7, (4, 7)), some.astype(float)),
        _by_hand("by hand near 1", 1 - rng.uniform(1e-4, 1e-3, (4, 7)), some.astype(float)),
        _logistic(rng),
        Case(
            f"{FAMILY}: Hessian times vector",
            FAMILY,
            fg.binary_cross_entropy,
            (few, some),
            fg.binary_cross_entropy.hvp,
            kind="hvp",
            options={"kind": "hvp"},
        ),
        Case(
            f"{FAMILY}: diagonal of the Hessian",
            FAMILY,
            fg.binary_cross_entropy,
            (few, some),
            fg.binary_cross_entropy.hess_diag,
            kind="hess_diag",
            options={"kind": "hess_diag"},
        ),
    ]
    for f in (fg.sigmoid, fg.log_sigmoid):
        n = f.__name__
        draws = {"": few, " of a vector": scores(rng, (9,)), " of one element": scores(rng, (1,))}
        draws[", saturated"] = rng.choice([-1, 1], (4, 7)) * rng.uniform(20, 36, (4, 7))
        draws[", float32"] = few.astype(np.float32)
        for how, x in draws.items():
            cases.append(
                Case(
                    f"{FAMILY}: {n}{how}",
                    FAMILY,
                    f,
                    (x,),
                    f.vjp,
                    kind="vjp",
                    hard=how == ", saturated",
                )
            )
    return cases


def planted(rng: Rng) -> list[Case]:
    z, y = scores(rng, (N, C)), rng.integers(0, 2, (N, C))
    mean = _case("mean", z, y)
    hand = _by_hand("by hand", rng.uniform(0.05, 0.95, (N, C)), y.astype(float))
    soft = Case(f"{FAMILY}: sigmoid", FAMILY, fg.sigmoid, (z,), fg.sigmoid.vjp, kind="vjp")
    cases = bugs.anywhere(mean) + bugs.matrix(mean) + bugs.matrix(hand) + bugs.behaviour(mean)
    cases += bugs.square(_case("square", scores(rng, (5, 5)), rng.integers(0, 2, (5, 5))))
    cases += bugs.vector(_case("a vector", scores(rng, (21,)), rng.integers(0, 2, 21)))
    cases += bugs.vector(_logistic(rng))

    def of(case: Case, bug: str, wrong: Any, *codes: str, **evidence: Any) -> None:
        cases.extend(plant(case, bug, derivative=wrong, codes=codes, **evidence))

    def p(z: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-z))

    of(mean, "target forgotten", lambda z, y: p(z) / z.size)
    of(mean, "residual of the logits", lambda z, y: (z - y) / z.size)
    of(mean, "times the slope of the sigmoid", lambda z, y: (p(z) - y) * p(z) * (1 - p(z)) / z.size)
    of(mean, "mean over rows only", lambda z, y: (p(z) - y) / len(z), "factor", factor=float(C))
    of(mean, "classes confused", lambda z, y: (p(z) - (1 - y)) / z.size)
    of(hand, "eps missing", lambda p, y: -(y / p - (1 - y) / (1 - p)) / p.size)
    of(hand, "negatives forgotten", lambda p, y: -y / (p + EPS) / p.size)
    of(
        hand,
        "sum for mean",
        lambda p, y: by_hand_grad(p, y) * p.size,
        "factor",
        factor=float(N * C),
    )
    of(soft, "p forgotten", lambda x, g: g * (1 - p(x)))
    of(soft, "slope at the value", lambda x, g: g * x * (1 - x))
    of(soft, "cotangent forgotten", lambda x, g: p(x) * (1 - p(x)))
    of(soft, "that of log_sigmoid", lambda x, g: g * p(-x))
    keep = rng.random((N, C)) < 0.6
    some = _case("where", z, y, kwargs={"where": keep})
    of(some, "removed elements kept", lambda z, y, where: (p(z) - y) / where.sum())
    heavy = _case("pos_weight", z, y, kwargs={"pos_weight": 3.0})
    of(heavy, "pos_weight forgotten", lambda z, y, pos_weight: fg.binary_cross_entropy.grad(z, y))
    of(heavy, "pos_weight of all", lambda z, y, pos_weight: 3 * fg.binary_cross_entropy.grad(z, y))
    weighted = _case("sample_weight", z, y, kwargs={"sample_weight": rng.random((N, C)) + 0.1})
    of(
        weighted,
        "sample_weight forgotten",
        lambda z, y, sample_weight: fg.binary_cross_entropy.grad(z, y),
    )
    of(
        weighted,
        "divided by the number of elements",
        lambda z, y, sample_weight: fg.binary_cross_entropy.grad(
            z, y, sample_weight=sample_weight, normalizer=float(z.size)
        ),
        "factor",
    )
    for how, (draw, hard) in VALUES.items():
        odd = _case(how, draw(rng, (4, 7)), rng.integers(0, 2, (4, 7)), hard=hard)
        cases += plant(odd, "sign", np.negative, codes=() if hard else ("sign",))
        cases += plant(odd, "one doubled", bugs.doubled)
    for how, lay in LAYOUTS.items():
        odd = _case(how, lay(z), y)
        cases += plant(
            odd, "rolled", bugs.rolled(1), codes=("permuted",), how="rolled by 1 along axis 1"
        )
    big = _case(
        "65,536 elements",
        scores(rng, (65536,)),
        rng.integers(0, 2, 65536),
        truth=False,
        options={"mode": "random"},
    )
    cases += plant(big, "one doubled", bugs.doubled, located=True)
    cases += plant(big, "over N", bugs.scaled(1 / 65536), codes=("factor",))
    return cases
