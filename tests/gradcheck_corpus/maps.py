"""softmax, log_softmax and logsumexp: maps, checked by their vector-Jacobian products."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastgrad as fg
from gradcheck_corpus import bugs
from gradcheck_corpus.case import Case, plant
from gradcheck_corpus.data import LAYOUTS, VALUES, Rng, scores

FAMILY = "maps"
N, C = 6, 19
MAPS = (fg.softmax, fg.log_softmax, fg.logsumexp)


def _case(name: str, f: Any, x: np.ndarray, **more: Any) -> Case:
    return Case(f"{FAMILY}: {name}", FAMILY, f, (x,), f.vjp, kind="vjp", **more)


def _np_softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _np_softmax_vjp(x: np.ndarray, g: np.ndarray) -> np.ndarray:
    p = _np_softmax(x)
    return p * (g - (g * p).sum(-1, keepdims=True))


def _squashed(x: np.ndarray) -> np.ndarray:
    return np.tanh(x / 3) * x


def _squashed_vjp(x: np.ndarray, g: np.ndarray) -> np.ndarray:
    t = np.tanh(x / 3)
    return g * (t + x * (1 - t * t) / 3)


def right(rng: Rng) -> list[Case]:
    x = scores(rng, (N, C))
    keep = rng.random((N, C)) < 0.7
    keep[:, 0] = True
    cases = []
    for f in MAPS:
        n = f.__name__
        cases += [
            _case(n, f, x),
            _case(f"{n} of axis 0", f, x, kwargs={"axis": 0}),
            _case(f"{n} of all axes", f, x, kwargs={"axis": (0, 1)}),
            _case(f"{n} at temperature 0.5", f, x, kwargs={"temperature": 0.5}),
            _case(f"{n} of a vector", f, scores(rng, (C,))),
            _case(f"{n} of three axes", f, scores(rng, (2, 3, 5)), kwargs={"axis": 1}),
            _case(f"{n} of one row", f, scores(rng, (1, 5))),
            _case(f"{n} of one class", f, scores(rng, (5, 1))),
            _case(f"{n} of one element", f, scores(rng, (1, 1))),
            _case(f"{n} with -inf", f, np.where(x > 4.0, -np.inf, x), hard=True),
        ]
        cases += [
            _case(f"{n}, {how}", f, draw(rng, (4, 7)), hard=hard)
            for how, (draw, hard) in VALUES.items()
        ]
        cases += [_case(f"{n}, {how}", f, lay(x)) for how, lay in LAYOUTS.items()]
    cases += [
        _case("softmax of some", fg.softmax, x, kwargs={"where": keep}),
        _case("logsumexp of some", fg.logsumexp, x, kwargs={"where": keep}),
        _case("logsumexp with b", fg.logsumexp, x, kwargs={"b": rng.random((N, C)) + 0.1}),
        _case("softmax, given", fg.softmax, x, grad=fg.softmax.vjp),
        Case(
            f"{FAMILY}: NumPy softmax",
            FAMILY,
            _np_softmax,
            (x,),
            _np_softmax_vjp,
            grad=_np_softmax_vjp,
            kind="vjp",
        ),
        Case(
            f"{FAMILY}: elementwise",
            FAMILY,
            _squashed,
            (x,),
            _squashed_vjp,
            grad=_squashed_vjp,
            kind="vjp",
        ),
        Case(
            f"{FAMILY}: Map",
            FAMILY,
            fg.Map(_squashed, vjp=_squashed_vjp),
            (x,),
            _squashed_vjp,
            kind="vjp",
        ),
        _case(
            "softmax, 65,536 elements",
            fg.softmax,
            scores(rng, (4096, 16)),
            options={"mode": "random"},
        ),
        _case(
            "logsumexp, 65,536 elements",
            fg.logsumexp,
            scores(rng, (16, 4096)),
            options={"mode": "random"},
        ),
    ]
    return cases


def planted(rng: Rng) -> list[Case]:
    x = scores(rng, (N, C))
    lsm = _case("log_softmax", fg.log_softmax, x)
    lse = _case("logsumexp", fg.logsumexp, x)
    soft = _case("softmax", fg.softmax, x)
    squared = _case("square log_softmax", fg.log_softmax, scores(rng, (5, 5)))
    line = _case("softmax of a vector", fg.softmax, scores(rng, (C,)))
    cases = bugs.anywhere(lsm) + bugs.matrix(lsm) + bugs.matrix(lse) + bugs.square(squared)
    cases += bugs.vector(line) + bugs.behaviour(soft)

    def of(case: Case, bug: str, wrong: Any, *codes: str, **evidence: Any) -> None:
        cases.extend(plant(case, bug, derivative=wrong, codes=codes, **evidence))

    def summed_jacobian(x: np.ndarray, g: np.ndarray) -> np.ndarray:
        p = fg.softmax(x)
        return g * (p - p * p.sum(-1, keepdims=True))

    of(soft, "only the diagonal", lambda x, g: g * fg.softmax(x) * (1 - fg.softmax(x)))
    of(soft, "p times g", lambda x, g: g * fg.softmax(x))
    of(soft, "sum of the Jacobian", summed_jacobian)
    of(soft, "along the wrong axis", lambda x, g: fg.softmax.vjp(x, g, axis=0))
    of(soft, "temperature forgotten", lambda x, g: fg.softmax.vjp(x, g, temperature=2.0))
    of(soft, "cotangent forgotten", lambda x, g: fg.softmax.vjp(x, np.ones_like(g)))
    of(soft, "that of log_softmax", lambda x, g: fg.log_softmax.vjp(x, g))
    of(lsm, "that of softmax", lambda x, g: fg.softmax.vjp(x, g))
    of(lsm, "mean of g for its sum", lambda x, g: g - fg.softmax(x) * g.mean(-1, keepdims=True))
    of(lsm, "p forgotten", lambda x, g: g - g.sum(-1, keepdims=True))
    of(lse, "p without the cotangent", lambda x, g: fg.softmax(x))
    of(lse, "exp without the shift", lambda x, g: g[:, None] * np.exp(x))
    warm = _case("softmax at temperature 2", fg.softmax, x, kwargs={"temperature": 2.0})
    of(
        warm,
        "1/T forgotten",
        lambda x, g, temperature: 2 * fg.softmax.vjp(x, g, temperature=2.0),
        "factor",
        factor=2.0,
    )
    for how, (draw, hard) in VALUES.items():
        if how == "ones":
            continue
        odd = _case(f"log_softmax, {how}", fg.log_softmax, draw(rng, (4, 7)), hard=hard)
        cases += plant(odd, "sign", np.negative, codes=() if hard else ("sign",))
        cases += plant(odd, "one doubled", bugs.doubled)
    for how, lay in LAYOUTS.items():
        odd = _case(f"logsumexp, {how}", fg.logsumexp, lay(x))
        cases += plant(odd, "a row tripled", bugs._at(2, factor=3.0), codes=("row",), index=2)
    big = _case(
        "softmax, 65,536 elements", fg.softmax, scores(rng, (4096, 16)), options={"mode": "random"}
    )
    cases += plant(big, "one doubled", bugs.doubled, located=True)
    cases += plant(big, "last column zero", bugs._at(..., -1, value=0.0), codes=("column", "tail"))
    return cases
