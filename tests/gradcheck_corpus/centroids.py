"""Class centroids, the hinge on the distance to them, and logits from prototypes."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastgrad as fg
from fastgrad import _reference as ref
from gradcheck_corpus import bugs
from gradcheck_corpus.case import Case, plant
from gradcheck_corpus.data import Rng, backwards, scores, sealed, sliced

FAMILY = "centroids"
N, D = 14, 19
LABELS = np.array([0, 3, 1, 0, 2, 2, 1, 0, 3, 5, 5, 1, 2, 3])  # 4 is absent


def _case(
    name: str, X: np.ndarray, labels: np.ndarray = LABELS, truth: bool = True, **more: Any
) -> Case:
    kwargs = dict(more.pop("kwargs", {}))
    f = fg.centroid_hinge
    exact = None
    if truth:

        def exact() -> dict[str, np.ndarray]:
            return {"X": ref.centroid_hinge_grad(X, labels, **kwargs)}

    return Case(
        f"{FAMILY}: {name}", FAMILY, f, (X, labels), f.grad, kwargs=kwargs, truth=exact, **more
    )


def centres(X: np.ndarray, labels: np.ndarray, **kw: Any) -> np.ndarray:
    return fg.class_centroids(X, labels, **kw).centroids


def _centres(name: str, X: np.ndarray, labels: np.ndarray, **more: Any) -> Case:
    vjp = fg.class_centroids.vjp
    return Case(
        f"{FAMILY}: {name}", FAMILY, centres, (X, labels), vjp, grad=vjp, kind="vjp", **more
    )


def _logits(name: str, X: np.ndarray, prototypes: np.ndarray, **more: Any) -> Case:
    f = fg.prototype_logits
    return Case(
        f"{FAMILY}: {name}",
        FAMILY,
        f,
        (X, prototypes),
        f.vjp,
        kind="vjp",
        options={"wrt": "X"},
        **more,
    )


def right(rng: Rng) -> list[Case]:
    X, narrow = scores(rng, (N, D)), scores(rng, (N, 3))
    far = {"squared": False, "margin": 0.2}
    dense = np.array([0, 1, 2, 0, 2, 2, 1, 0, 1, 0, 2, 1, 2, 0])
    weights = rng.random(N) + 0.2
    cases = [
        _case("squared", X),
        _case("of distances", X, kwargs=far),
        _case("squared, margin 0", narrow, kwargs={"margin": 0.0}),
        _case("of distances, margin 0", narrow, kwargs={"margin": 0.0, "squared": False}),
        _case("float32", narrow.astype(np.float32), kwargs=far),
        _case("float32, squared", narrow.astype(np.float32)),
        _case("Fortran order", np.asfortranarray(narrow), kwargs=far),
        _case("every second element", sliced(narrow), kwargs=far),
        _case("negative strides", backwards(narrow), kwargs=far),
        _case("read-only", sealed(narrow), kwargs=far),
        _case("offset 1e4", narrow + 1e4, kwargs=far),
        _case("offset 1e8", narrow + 1e8, kwargs=far, hard=True),
        _case("scale 1e30", narrow * 1e30, kwargs={**far, "margin": 1e29}),
        _case("scale 1e-30", narrow * 1e-30, kwargs={**far, "margin": 1e-31}),
        _case("scale 1e150, squared", narrow * 1e150, kwargs={"margin": 1e149}, hard=True),
        _case("scale 1e-100, squared", narrow * 1e-100, kwargs={"margin": 1e-101}, hard=True),
        _case("within the margin", narrow * 1e-3),
        _case("sum of classes", narrow, kwargs={**far, "class_reduction": "sum"}),
        _case("sample_weight", narrow, kwargs={**far, "sample_weight": weights}),
        _case("ignored rows", narrow, kwargs={**far, "ignore_index": 3}),
        _case("absent classes", narrow, kwargs={**far, "num_classes": 9}),
        _case("one class", narrow, np.zeros(N, int), kwargs=far),
        _case("each row its own class", narrow, np.arange(N), smooth=False, truth=False),
        _case(
            "each row its own, margin 0",
            narrow,
            np.arange(N),
            smooth=False,
            truth=False,
            kwargs={"margin": 0.0, "squared": False},
        ),
        _case("one row", narrow[:1], LABELS[:1], smooth=False, truth=False),
        _case("one feature", narrow[:, :1], kwargs={"margin": 0.0}),
        _case("equal rows", np.ones((N, 3)), smooth=False, truth=False),
        _case(
            "equal rows, margin 0",
            np.ones((N, 3)),
            smooth=False,
            truth=False,
            kwargs={"margin": 0.0, "squared": False},
        ),
        _case("a batch", scores(rng, (2, 7, 3)), LABELS.reshape(2, 7), kwargs=far),
        _case(
            "a batch, one value each",
            scores(rng, (2, 7, 3)),
            LABELS.reshape(2, 7),
            kwargs={**far, "reduction": "none"},
            truth=False,
        ),
        _case("given", narrow, kwargs=far, grad=fg.centroid_hinge.grad),
        _centres("centroids", X, dense),
        _centres("centroids, float32", narrow.astype(np.float32), dense),
        _centres("centroids, weighted", narrow, dense, kwargs={"sample_weight": weights}),
        _centres("centroids, offset 1e8", narrow + 1e8, dense, hard=True),
        _centres("centroids, scale 1e30", narrow * 1e30, dense),
        _centres("centroids, scale 1e-30", narrow * 1e-30, dense),
        _centres(
            "centroids, leave one out",
            narrow,
            dense,
            kwargs={"leave_one_out": True},
            smooth=False,
            hard=True,
        ),
        _centres("centroids, one class", narrow, np.zeros(N, int)),
        _centres("centroids of one row", narrow[:1], np.zeros(1, int)),
        _centres("centroids, absent class", narrow, LABELS, hard=True),
        _logits("logits", narrow, scores(rng, (4, 3))),
        _logits(
            "logits, float32", narrow.astype(np.float32), scores(rng, (4, 3)).astype(np.float32)
        ),
        _logits("logits, offset 1e4", narrow + 1e4, scores(rng, (4, 3)) + 1e4),
        _case(
            "4,096 rows of 16",
            scores(rng, (4096, 16)),
            rng.integers(0, 50, 4096),
            truth=False,
            options={"mode": "random"},
            hard=True,
        ),
        _case(
            "4,096 rows of 16, margin 0",
            scores(rng, (4096, 16)),
            rng.integers(0, 50, 4096),
            truth=False,
            options={"mode": "random"},
            kwargs={"margin": 0.0},
        ),
    ]
    return cases


def planted(rng: Rng) -> list[Case]:
    far = {"squared": False, "margin": 0.2}
    X, narrow = scores(rng, (N, D)), scores(rng, (N, 3))
    dense = np.array([0, 1, 2, 0, 2, 2, 1, 0, 1, 0, 2, 1, 2, 0])
    hinge, squared = _case("of distances", X, kwargs=far), _case("squared", X)
    middle = _centres("centroids", X, dense)
    cases = bugs.anywhere(hinge) + bugs.matrix(squared) + bugs.behaviour(squared)
    cases += [c for c in bugs.matrix(middle) if "rolled along the rows" not in c.name]
    five = _case("five rows of five", scores(rng, (5, 5)), np.array([0, 1, 0, 1, 0]))
    cases += bugs.square(five)

    def of(case: Case, bug: str, wrong: Any, *codes: str, **evidence: Any) -> None:
        cases.extend(plant(case, bug, derivative=wrong, codes=codes, **evidence))

    def ours(**instead: Any) -> Any:
        return lambda X, labels, **kw: fg.centroid_hinge.grad(X, labels, **{**kw, **instead})

    still = "centroid held still"
    uneven = np.repeat(np.arange(4), [2, 3, 4, 5])
    for case in (
        hinge,
        squared,
        _case("uneven classes", narrow, uneven, kwargs=far),
        _case("uneven classes, squared", narrow, uneven),
        _case("one class", narrow, np.zeros(N, int), kwargs=far),
        _case("sum of classes", narrow, kwargs={**far, "class_reduction": "sum"}),
        _case("float32", narrow.astype(np.float32), kwargs=far),
    ):
        of(case, "centroid held still", ours(centroid_grad=False), still)
    weighted = _case(
        "sample_weight", narrow, uneven, kwargs={**far, "sample_weight": rng.random(N) + 0.2}
    )
    of(weighted, "centroid held still", ours(centroid_grad=False))
    of(weighted, "sample_weight forgotten", ours(sample_weight=None))
    of(hinge, "that of the squared", ours(squared=True))
    of(squared, "that of the distances", ours(squared=False))
    of(
        squared,
        "2 forgotten",
        lambda X, y, **kw: fg.centroid_hinge.grad(X, y) / 2,
        "factor",
        factor=0.5,
    )
    of(squared, "margin forgotten", ours(margin=0.0))
    of(
        hinge,
        "class mean for sum",
        lambda X, y, **kw: 5 * fg.centroid_hinge.grad(X, y, **kw),
        "factor",
        factor=5.0,
    )
    of(
        hinge,
        "classes weighted by their rows",
        lambda X, y, **kw: (
            fg.centroid_hinge.grad(X, y, **kw) * np.bincount(y)[y][:, None] * 5 / len(y)
        ),
    )

    def held(X: np.ndarray, labels: np.ndarray, unit: bool) -> np.ndarray:
        c = fg.class_centroids(X, labels).centroids[labels]
        r = X - c
        d = np.linalg.norm(r, axis=1, keepdims=True)
        return r / (d if unit else 1) / len(X)

    of(hinge, "mean over rows, centroid still", lambda X, y, **kw: held(X, y, True))
    of(hinge, "not divided by the distance", lambda X, y, **kw: held(X, y, False))
    of(
        hinge,
        "towards the wrong centroid",
        lambda X, y, **kw: fg.centroid_hinge.grad(X, (y + 1) % 6, **kw),
    )
    wide = _case("sum of classes", X, kwargs={**far, "class_reduction": "sum"})
    of(wide, "mean of classes", ours(class_reduction="mean"), "factor", factor=0.2)

    def lost(case: Case, k: int) -> Any:
        def wrong(X: Any, labels: Any, *g: Any, **kw: Any) -> np.ndarray:
            made = np.array(case.derivative(X, labels, *g, **kw))
            made[labels == k] = 0
            return made

        return wrong

    near = _logits("logits", X, scores(rng, (4, D)))
    of(near, "sign", lambda X, P, g: -fg.prototype_logits.vjp(X, P, g), "sign")
    of(
        near,
        "2 forgotten",
        lambda X, P, g: fg.prototype_logits.vjp(X, P, g) / 2,
        "factor",
        factor=0.5,
    )
    of(near, "X forgotten", lambda X, P, g: 2 * g @ P)
    of(near, "prototypes forgotten", lambda X, P, g: -2 * g.sum(1, keepdims=True) * X)
    for case in (hinge, squared, middle):
        for k in (0, 1, 2):
            of(case, f"class {k} missing", lost(case, k), "missing segment")
    of(middle, "counts forgotten", lambda X, y, g: g[y])
    of(middle, "divided by N", lambda X, y, g: g[y] / len(y))
    of(middle, "count less one", lambda X, y, g: g[y] / (np.bincount(y) - 1)[y][:, None])
    of(middle, "labels off by one", lambda X, y, g: fg.class_centroids.vjp(X, (y + 1) % 3, g))
    of(
        middle,
        "of the first row of each",
        lambda X, y, g: (
            g[y] * np.isin(np.arange(len(y)), np.unique(y, return_index=True)[1])[:, None]
        ),
    )
    apart = _centres("centroids, weighted", X, dense, kwargs={"sample_weight": rng.random(N) + 0.2})
    of(apart, "weights forgotten", lambda X, y, g, **kw: fg.class_centroids.vjp(X, y, g))
    for scale in (1e-30, 1e-6, 1e6, 1e30):
        odd = _case(
            f"scale {scale:g}", narrow * scale, kwargs={"squared": False, "margin": 0.1 * scale}
        )
        cases += plant(odd, "sign", np.negative, codes=("sign",))
        cases += plant(odd, "one doubled", bugs.doubled)
        cases += plant(
            odd, "centroid held still", derivative=ours(centroid_grad=False), codes=(still,)
        )
    big = _case(
        "4,096 rows of 16, margin 0",
        scores(rng, (4096, 16)),
        rng.integers(0, 50, 4096),
        truth=False,
        options={"mode": "random"},
        kwargs={"margin": 0.0},
    )
    cases += plant(big, "one doubled", bugs.doubled, located=True)
    cases += plant(big, "last column zero", bugs._at(..., -1, value=0.0), codes=("column", "tail"))
    return cases
