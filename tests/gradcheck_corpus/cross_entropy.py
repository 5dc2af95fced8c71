"""Cross-entropy with its options: reductions, weights, ignored rows, smoothing, soft targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

import fastgrad as fg
from fastgrad import _reference as ref
from gradcheck_corpus import bugs
from gradcheck_corpus.case import Case, plant
from gradcheck_corpus.data import LAYOUTS, VALUES, Rng, scores

FAMILY = "cross-entropy"
N, C = 6, 19


def _case(name: str, z: np.ndarray, y: np.ndarray, truth: bool = True, **more: Any) -> Case:
    kwargs = dict(more.pop("kwargs", {}))
    f = fg.cross_entropy
    exact = None
    if truth and kwargs.get("reduction") != "none":

        def exact() -> dict[str, np.ndarray]:
            return {"logits": ref.cross_entropy_grad(z, y, **kwargs)}

    return Case(f"{FAMILY}: {name}", FAMILY, f, (z, y), f.grad, kwargs=kwargs, truth=exact, **more)


def _options(rng: Rng, n: int, c: int) -> dict[str, dict[str, Any]]:
    keep = rng.random((n, c)) < 0.7
    keep[:, :2] = True
    return {
        "mean": {},
        "sum": {"reduction": "sum"},
        "weight": {"weight": rng.random(c) + 0.2},
        "sample_weight": {"sample_weight": rng.random(n) + 0.2},
        "smoothing": {"label_smoothing": 0.1},
        "z-loss": {"z_loss": 0.05},
        "ignore_index": {"ignore_index": 1},
        "normalizer": {"normalizer": 3.5},
        "all at once": {
            "weight": rng.random(c) + 0.2,
            "sample_weight": rng.random(n) + 0.2,
            "label_smoothing": 0.2,
            "z_loss": 0.01,
            "ignore_index": 0,
        },
    }


def right(rng: Rng) -> list[Case]:
    z, y = scores(rng, (N, C)), rng.integers(0, C, N)
    y[:2] = 0, 1
    few, some = scores(rng, (4, 7)), rng.integers(0, 7, 4)
    soft = rng.dirichlet(np.ones(7), 4)
    cases = [_case(name, z, y, kwargs=kw) for name, kw in _options(rng, N, C).items()]
    cases += [
        _case(
            f"{name}, float32",
            few.astype(np.float32),
            some,
            kwargs={k: np.float32(v) if isinstance(v, np.ndarray) else v for k, v in kw.items()},
        )
        for name, kw in _options(rng, 4, 7).items()
    ]
    cases += [
        _case(how, draw(rng, (4, 7)), some, hard=hard) for how, (draw, hard) in VALUES.items()
    ]
    cases += [_case(how, lay(z), y) for how, lay in LAYOUTS.items()]
    cases += [
        _case("one value per row", z, y, kwargs={"reduction": "none"}),
        _case(
            "weighted, per row", z, y, kwargs={"reduction": "none", "sample_weight": rng.random(N)}
        ),
        _case("soft targets", few, soft),
        _case("soft targets of another sum", few, 3 * soft),
        _case("axis 0", few, rng.integers(0, 4, 7), kwargs={"axis": 0}),
        _case("three axes", scores(rng, (2, 5, 3)), rng.integers(0, 5, (2, 3)), kwargs={"axis": 1}),
        _case("one row", scores(rng, (1, 5)), np.array([3])),
        _case("a vector", scores(rng, (5,)), np.array(3)),
        _case("one class", scores(rng, (5, 1)), np.zeros(5, int)),
        _case("all rows ignored but one", few, np.array([-100, -100, 2, -100])),
        _case(
            "where",
            few,
            np.full(4, 3),
            kwargs={"where": (np.arange(28).reshape(4, 7) % 3 != 1) | (np.arange(7) == 3)},
        ),
        _case("targets of probability near 1", few + 40 * np.eye(7)[some], some, hard=True),
        _case(
            "65,536 elements",
            scores(rng, (4096, 16)),
            rng.integers(0, 16, 4096),
            truth=False,
            options={"mode": "random"},
        ),
        _case(
            "65,536 elements in float32",
            scores(rng, (4096, 16)).astype(np.float32),
            rng.integers(0, 16, 4096),
            truth=False,
            options={"mode": "random"},
        ),
        _case(
            "sum of 65,536 elements",
            scores(rng, (64, 1024)),
            rng.integers(0, 1024, 64),
            truth=False,
            kwargs={"reduction": "sum"},
            options={"mode": "random"},
        ),
        Case(
            f"{FAMILY}: Hessian times vector",
            FAMILY,
            fg.cross_entropy,
            (few, some),
            fg.cross_entropy.hvp,
            kind="hvp",
            options={"kind": "hvp"},
        ),
        Case(
            f"{FAMILY}: diagonal of the Hessian",
            FAMILY,
            fg.cross_entropy,
            (few, some),
            fg.cross_entropy.hess_diag,
            kind="hess_diag",
            options={"kind": "hess_diag"},
        ),
    ]
    removed = np.where((np.arange(7) == (some + 1)[:, None] % 7), -np.inf, few)
    cases.append(_case("a logit of -inf in every row", removed, some, hard=True))
    given = fg.cross_entropy.grad(few, some)
    cases.append(_case("gradient already computed", few, some, grad=given))
    return cases


def planted(rng: Rng) -> list[Case]:
    z, y = scores(rng, (N, C)), rng.integers(0, C, N)
    mean = _case("mean", z, y)
    total = _case("sum", z, y, kwargs={"reduction": "sum"})
    cases = bugs.anywhere(mean) + bugs.matrix(mean) + bugs.behaviour(mean)
    cases += bugs.square(_case("square", scores(rng, (5, 5)), rng.integers(0, 5, 5)))

    def of(case: Case, bug: str, wrong: Any, *codes: str, **evidence: Any) -> None:
        cases.extend(plant(case, bug, derivative=wrong, codes=codes, **evidence))

    def without(option: str, **instead: Any) -> Any:
        def wrong(z: np.ndarray, y: np.ndarray, **kwargs: Any) -> np.ndarray:
            kept = {k: v for k, v in kwargs.items() if k != option}
            return fg.cross_entropy.grad(z, y, **kept, **instead)

        return wrong

    def shifted_at_once(z: np.ndarray, y: np.ndarray) -> np.ndarray:
        eps = 1e-5
        slope = (fg.cross_entropy(z + eps, y) - fg.cross_entropy(z, y)) / eps
        return np.full_like(z, slope)

    of(mean, "-1 at the target forgotten", lambda z, y: fg.softmax(z) / len(z), "target")
    of(total, "-1 at the target forgotten", lambda z, y, reduction: fg.softmax(z), "target")
    of(mean, "+1 at the target", lambda z, y: (fg.softmax(z) + np.eye(C)[y]) / len(z), "target")
    of(mean, "targets off by one", lambda z, y: fg.cross_entropy.grad(z, (y + 1) % C))
    of(mean, "normalised along the rows", lambda z, y: (fg.softmax(z, 0) - np.eye(C)[y]) / len(z))
    of(mean, "every logit shifted at once", shifted_at_once, "common shift")
    of(mean, "nothing but zeros", lambda z, y: np.zeros_like(z))
    of(
        mean,
        "sum for mean",
        lambda z, y: fg.cross_entropy.grad(z, y, reduction="sum"),
        "factor",
        factor=float(N),
        name="N",
    )
    of(
        total,
        "mean for sum",
        lambda z, y, reduction: fg.cross_entropy.grad(z, y),
        "factor",
        factor=1 / N,
        name="1/N",
    )
    of(
        mean,
        "mean over elements",
        lambda z, y: fg.cross_entropy.grad(z, y) / C,
        "factor",
        factor=1 / C,
        name="1/C",
    )
    options = _options(rng, N, C)
    for name in ("weight", "sample_weight", "smoothing", "z-loss", "normalizer", "all at once"):
        with_option = _case(name, z, y, kwargs=options[name])
        for option in options[name]:
            codes = ("factor",) if option == "normalizer" else ()
            of(with_option, f"{option} forgotten", without(option), *codes)
    some = y.copy()
    some[[1, 4]] = -1
    ignoring = _case("ignored rows", z, some, kwargs={"ignore_index": -1})
    of(
        ignoring,
        "ignored rows kept",
        lambda z, y, ignore_index: (fg.softmax(z) - (np.arange(C) == y[:, None])) / 4,
    )
    of(
        ignoring,
        "ignored rows counted",
        lambda z, y, ignore_index: fg.cross_entropy.grad(z, y, ignore_index=-1) * 4 / N,
        "factor",
        factor=4 / N,
    )
    of(
        ignoring,
        "all but the first ignored row kept",
        lambda z, y, ignore_index: fg.cross_entropy.grad(
            z, np.where(y < 0, [0, -1, 0, 0, 5, 0], y), ignore_index=-1, normalizer=4.0
        ),
    )
    weighted = _case("weight", z, y, kwargs=options["weight"])
    w = options["weight"]["weight"]
    of(
        weighted,
        "divided by N and not by the weights",
        lambda z, y, weight: fg.cross_entropy.grad(z, y, weight=weight, normalizer=float(N)),
        "factor",
        factor=w[y].sum() / N,
    )
    of(
        weighted,
        "weights of all columns",
        lambda z, y, weight: fg.cross_entropy.grad(z, y) * weight,
    )
    per_row = _case("one value per row", z, y, kwargs={"reduction": "none"})

    def fed(change: Any) -> Any:
        def wrong(z: np.ndarray, y: np.ndarray, *, grad_output: Any = None, **kw: Any) -> Any:
            return change(fg.cross_entropy.grad(z, y, grad_output=grad_output, **kw))

        return wrong

    for bug, change, codes in (
        ("sign", np.negative, ("sign",)),
        ("over N", bugs.scaled(1 / N), ("factor",)),
        ("last row zero", bugs._at(-1, value=0.0), ("missing row",)),
    ):
        grad = fed(change)
        cases += plant(per_row, bug, derivative=grad, codes=codes, carried=True)
    for how, (draw, hard) in VALUES.items():
        if how in ("zeros", "ones"):
            continue
        odd = _case(how, draw(rng, (4, 7)), rng.integers(0, 7, 4), hard=hard)
        cases += plant(odd, "over N", bugs.scaled(0.25), codes=() if hard else ("factor",))
        cases += plant(odd, "one doubled", bugs.doubled)
    for how, lay in LAYOUTS.items():
        odd = _case(how, lay(z), y)
        cases += plant(
            odd,
            "unravelled in Fortran order",
            bugs.fortran,
            codes=("permuted",),
            how="fortran order",
        )
    cases += large(rng)
    bent = Case(
        f"{FAMILY}: Hessian times vector",
        FAMILY,
        fg.cross_entropy,
        (z, y),
        fg.cross_entropy.hvp,
        kind="hvp",
        options={"kind": "hvp"},
    )
    for bug, hvp in (
        ("only the diagonal", lambda z, y, v: fg.cross_entropy.hess_diag(z, y) * v),
        ("1/N forgotten", lambda z, y, v: N * fg.cross_entropy.hvp(z, y, v)),
    ):
        carrier = fg.Loss(fg.cross_entropy, grad=fg.cross_entropy.grad, hvp=hvp)
        cases += _carrying(bent, bug, carrier, hvp)
    curved = Case(
        f"{FAMILY}: diagonal of the Hessian",
        FAMILY,
        fg.cross_entropy,
        (z, y),
        fg.cross_entropy.hess_diag,
        kind="hess_diag",
        options={"kind": "hess_diag"},
    )

    def no_square(z: np.ndarray, y: np.ndarray) -> np.ndarray:
        return fg.softmax(z) / len(z)

    carrier = fg.Loss(fg.cross_entropy, grad=fg.cross_entropy.grad, hess_diag=no_square)
    cases += _carrying(curved, "p for p (1 - p)", carrier, no_square)
    return cases


def _carrying(case: Case, bug: str, carrier: fg.Loss, wrong: Any) -> list[Case]:
    return [replace(c, f=carrier, grad=None) for c in plant(case, bug, derivative=wrong)]


def large(rng: Rng) -> list[Case]:
    """What must be found, and located, among 65,536 elements."""
    z, y = scores(rng, (4096, 16)), rng.integers(0, 16, 4096)
    case = _case("65,536 elements", z, y, truth=False, options={"mode": "random"})
    found: Mapping[str, tuple[Any, tuple[str, ...], bool]] = {
        "one doubled": (bugs.doubled, (), True),
        "two swapped": (bugs.swapped, ("permuted",), True),
        "0.1 % off": (bugs.scaled(1.001), ("factor",), False),
        "last column zero": (bugs._at(..., -1, value=0.0), ("column", "tail"), False),
        "last row zero": (bugs._at(-1, value=0.0), ("missing row",), False),
        "sign": (np.negative, ("sign",), False),
        "1e-4 off": (bugs.scaled(1 + 1e-4), ("factor",), False),
    }
    cases: list[Case] = []
    for bug, (change, codes, located) in found.items():
        cases += plant(case, bug, change, codes=codes, located=located)
    # Directions promise errors of 1.6e-4 of the norm here; rows tell far less.
    rows = _case("65,536 elements", z, y, truth=False, options={"mode": "rows"})
    return cases + plant(rows, "1e-5 off", bugs.scaled(1 + 1e-5), codes=("factor",))
