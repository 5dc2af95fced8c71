"""The linear head with cross-entropy: features, weights and bias at once, with an L2 penalty."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastgrad as fg
from fastgrad import _reference as ref
from gradcheck_corpus import bugs
from gradcheck_corpus.case import Case, plant
from gradcheck_corpus.data import Rng, longdouble, scores

FAMILY = "linear"
N, D, K = 8, 5, 19  # rows, features, classes
L2 = 0.3


def _softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def head(X: np.ndarray, W: np.ndarray, b: np.ndarray, y: np.ndarray, l2: float = 0.0) -> Any:
    """Mean cross-entropy of X W + b plus l2/2 |W|^2, as users write it."""
    z = X @ W + b
    z = z - z.max(1, keepdims=True)
    lse = np.log(np.exp(z).sum(1))
    return (lse - z[np.arange(len(y)), y]).mean() + 0.5 * l2 * (W * W).sum()


def head_grad(
    X: np.ndarray, W: np.ndarray, b: np.ndarray, y: np.ndarray, l2: float = 0.0
) -> dict[str, np.ndarray]:
    g = _softmax(X @ W + b)
    g[np.arange(len(y)), y] -= 1
    g /= len(y)
    return {"X": g @ W.T, "W": X.T @ g + l2 * W, "b": g.sum(0)}


def biased(W: np.ndarray, X: np.ndarray, y: np.ndarray, l2: float) -> Any:
    """The bias is the first row of W, against a column of ones, and is not penalised."""
    return head(X, W, np.zeros(W.shape[1], W.dtype), y) + 0.5 * l2 * (W[1:] ** 2).sum()


def biased_grad(W: np.ndarray, X: np.ndarray, y: np.ndarray, l2: float) -> np.ndarray:
    g = head_grad(X, W, np.zeros(W.shape[1], W.dtype), y)["W"]
    return g + l2 * np.vstack([np.zeros_like(W[:1]), W[1:]])


def _draw(
    rng: Rng, n: int = N, d: int = D, k: int = K, dtype: Any = np.float64, scale: float = 1.0
) -> tuple[np.ndarray, ...]:
    arrays = scores(rng, (n, d), scale), scores(rng, (d, k), 1 / scale), scores(rng, (k,), 1)
    return (*(a.astype(dtype) for a in arrays), rng.integers(0, k, n))


def _case(name: str, args: tuple[Any, ...], l2: float = 0.0, **more: Any) -> Case:
    def truth() -> dict[str, np.ndarray]:
        return head_grad(*longdouble(args), l2)

    return Case(
        f"{FAMILY}: {name}",
        FAMILY,
        head,
        args,
        head_grad,
        kwargs={"l2": l2},
        **{"grad": head_grad, "truth": truth, **more},
    )


def _of(name: str, rng: Rng, **more: Any) -> Case:
    """With the bias inside W."""
    X, W, _, y = _draw(rng)
    X[:, 0] = 1
    args = W, X, y

    def truth() -> dict[str, np.ndarray]:
        return {"W": biased_grad(*longdouble(args), L2)}

    return Case(
        f"{FAMILY}: {name}",
        FAMILY,
        biased,
        args,
        biased_grad,
        grad=biased_grad,
        kwargs={"l2": L2},
        truth=truth,
        **more,
    )


def _ours(
    name: str,
    rng: Rng,
    dtype: Any = np.float64,
    shape: tuple[int, ...] = (N, D, K),
    wrt: Any = ("W", "bias", "X"),
    **kwargs: Any,
) -> Case:
    """fastgrad's own, whose gradient is a named tuple; its weights are (classes, features)."""
    X, W, b, y = _draw(rng, *shape, dtype)
    W = np.ascontiguousarray(W.T)
    f = fg.linear_cross_entropy
    kwargs = {"bias": b, **kwargs}

    def derivative(X: Any, W: Any, y: Any, **kw: Any) -> Any:
        return f.grad(X, W, y, wrt=wrt, **kw)

    def truth() -> dict[str, np.ndarray]:
        return ref.linear_cross_entropy_grad(X, W, y, wrt=wrt, **kwargs)._asdict()

    return Case(
        f"{FAMILY}: {name}",
        FAMILY,
        f,
        (X, W, y),
        derivative,
        kwargs=kwargs,
        options={"wrt": wrt},
        truth=truth,
    )


def right(rng: Rng) -> list[Case]:
    cases = [
        _case("mean", _draw(rng)),
        _case("with a penalty", _draw(rng), L2),
        _case("float32", _draw(rng, dtype=np.float32), 0.125),
        _case("float32 without penalty", _draw(rng, dtype=np.float32)),
        _case("one row", _draw(rng, n=1)),
        _case("one feature", _draw(rng, d=1), L2),
        _case("one class", _draw(rng, k=1), L2),
        _case("two classes", _draw(rng, k=2)),
        _case("one of each", _draw(rng, 1, 1, 1), L2),
        _case("large features", _draw(rng, scale=1e6)),
        _case("small features", _draw(rng, scale=1e-6)),
        _case("features of 1e30", _draw(rng, scale=1e30)),
        _case("features of 1e-30", _draw(rng, scale=1e-30)),
        _of("bias inside W", rng),
        _case(
            "by a tuple",
            _draw(rng),
            grad=lambda *a, **k: tuple(head_grad(*a, **k)[n] for n in "XWb"),
        ),
        _case(
            "only W",
            _draw(rng),
            L2,
            options={"wrt": "W"},
            truth=None,
            grad=lambda *a, **k: head_grad(*a, **k)["W"],
        ),
        _case(
            "W and b by name",
            _draw(rng),
            options={"wrt": ("W", "b")},
            truth=None,
            grad=lambda *a, **k: {n: head_grad(*a, **k)[n] for n in "bW"},
        ),
        _case(
            "by positions",
            _draw(rng),
            options={"wrt": (1, 2)},
            truth=None,
            grad=lambda *a, **k: tuple(head_grad(*a, **k)[n] for n in "Wb"),
        ),
        _ours("ours", rng),
        _ours("ours, features alone", rng, wrt=("X",)),
        _ours("ours, weights alone", rng, wrt=("W",)),
        _ours("ours, bias alone", rng, wrt=("bias",)),
        _ours("ours, other order", rng, wrt=("X", "W")),
        _ours("ours, float32", rng, np.float32),
        _ours("ours, penalty", rng, l2=L2),
        _ours("ours, penalty, float32", rng, np.float32, l2=0.25),
        _ours("ours, sum", rng, reduction="sum"),
        _ours("ours, sum with penalty", rng, reduction="sum", l2=L2),
        _ours("ours, smoothing", rng, label_smoothing=0.1),
        _ours("ours, z-loss", rng, z_loss=0.02),
        _ours("ours, weight", rng, weight=rng.random(K) + 0.2),
        _ours("ours, sample_weight", rng, sample_weight=rng.random(N) + 0.2),
        _ours("ours, normalizer", rng, normalizer=5.0),
        _ours("ours, ignore_index", rng, ignore_index=0),
        _ours("ours, one row", rng, shape=(1, D, K)),
        _ours("ours, one class", rng, shape=(N, D, 1), l2=0.1),
        _ours("ours, one feature", rng, shape=(N, 1, K)),
        _ours(
            "ours, everything",
            rng,
            l2=0.1,
            label_smoothing=0.1,
            z_loss=0.01,
            weight=rng.random(K) + 0.2,
            sample_weight=rng.random(N) + 0.2,
        ),
    ]
    X, W, b, y = _draw(rng)
    cases += [
        _case("Fortran weights", (X, np.asfortranarray(W), b, y), L2),
        _case("transposed features", (np.ascontiguousarray(X.T).T, W, b, y)),
        _case("zero weights", (X, 0 * W, 0 * b, y)),
        _case("logits with a large offset", (X, W, b + 1e4, y)),
        _case("saturated", (X, 20 * W, b, y), hard=True),
    ]
    big = _draw(rng, 256, 128, 16)
    cases.append(_case("34,832 parameters", big, L2, options={"mode": "random"}, truth=None))
    return cases


def planted(rng: Rng) -> list[Case]:
    plain, ridge = _case("mean", _draw(rng)), _case("with a penalty", _draw(rng), L2)
    inside, ours = _of("bias inside W", rng), _ours("ours, penalty", rng, l2=L2)
    cases = bugs.anywhere(plain, "W") + bugs.matrix(plain, "W") + bugs.matrix(plain, "X")
    cases += bugs.vector(plain, "b") + bugs.anywhere(inside) + bugs.behaviour(inside)
    cases += bugs.square(_case("square weights", _draw(rng, k=D)), "W")

    def of(case: Case, bug: str, name: str, part: Any, /, *codes: str, **evidence: Any) -> None:
        """`part(X, W, b, y, l2)` takes the place of the gradient of `name`."""

        def wrong(X: Any, W: Any, b: Any, y: Any, l2: float = 0.0) -> dict[str, np.ndarray]:
            return {**head_grad(X, W, b, y, l2), name: part(X, W, b, y, l2)}

        cases.extend(plant(case, bug, derivative=wrong, codes=codes, **evidence))

    def dz(X: Any, W: Any, b: Any, y: Any) -> np.ndarray:
        return (_softmax(X @ W + b) - np.eye(W.shape[1])[y]) / len(y)

    def clean(X: Any, W: Any, b: Any, y: Any, l2: float) -> np.ndarray:
        return X.T @ dz(X, W, b, y)

    reg = ("regulariser",)
    of(ridge, "penalty forgotten", "W", clean, *reg, coefficient=-L2)
    of(ridge, "penalty doubled", "W", lambda *a: clean(*a) + 2 * L2 * a[1], *reg, coefficient=L2)
    of(
        ridge,
        "penalty halved",
        "W",
        lambda *a: clean(*a) + L2 / 2 * a[1],
        *reg,
        coefficient=-L2 / 2,
    )
    of(
        ridge,
        "penalty of the wrong sign",
        "W",
        lambda *a: clean(*a) - L2 * a[1],
        *reg,
        coefficient=-2 * L2,
    )
    of(ridge, "penalty over N", "W", lambda *a: clean(*a) + L2 / N * a[1], *reg)
    of(ridge, "bias penalised", "b", lambda *a: dz(*a[:4]).sum(0) + L2 * a[2], *reg, coefficient=L2)
    of(ridge, "features penalised", "X", lambda *a: dz(*a[:4]) @ a[1].T + L2 * a[0], *reg)
    of(
        plain,
        "mean in W forgotten",
        "W",
        lambda *a: N * clean(*a),
        "factor",
        factor=float(N),
        name="N",
    )
    of(
        plain,
        "mean in b forgotten",
        "b",
        lambda *a: N * dz(*a[:4]).sum(0),
        "factor",
        factor=float(N),
    )
    of(
        plain,
        "mean in X forgotten",
        "X",
        lambda *a: N * dz(*a[:4]) @ a[1].T,
        "factor",
        factor=float(N),
    )
    of(
        plain,
        "mean of the bias over rows twice",
        "b",
        lambda *a: dz(*a[:4]).mean(0),
        "factor",
        factor=1 / N,
    )
    of(
        plain,
        "-1 at the target forgotten",
        "W",
        lambda *a: a[0].T @ _softmax(a[0] @ a[1] + a[2]) / N,
    )
    of(
        plain,
        "bias left out of the scores",
        "W",
        lambda *a: a[0].T @ dz(a[0], a[1], 0 * a[2], a[3]),
    )
    of(
        plain,
        "scores for probabilities",
        "W",
        lambda *a: a[0].T @ (a[0] @ a[1] + a[2] - np.eye(K)[a[3]]) / N,
    )
    of(plain, "bias of the last row", "b", lambda *a: dz(*a[:4])[-1])
    of(plain, "rows of X not matched", "W", lambda *a: a[0][::-1].T @ dz(*a[:4]))
    of(plain, "ReLU that is not there", "X", lambda *a: (dz(*a[:4]) @ a[1].T) * (a[0] > 0))
    of(
        plain,
        "a row left out",
        "X",
        lambda *a: bugs._at(3, value=0.0)(dz(*a[:4]) @ a[1].T),
        "missing row",
        index=3,
    )

    def inner(bug: str, penalty: Any, *codes: str, **evidence: Any) -> None:
        def wrong(W: Any, X: Any, y: Any, l2: float) -> np.ndarray:
            return biased_grad(W, X, y, 0.0) + l2 * penalty(W)

        cases.extend(plant(inside, bug, derivative=wrong, codes=codes, **evidence))

    inner("bias penalised", lambda W: W, "row", "regulariser")
    inner("penalty forgotten", np.zeros_like, "regulariser", "row")
    inner("penalty doubled", lambda W: 2 * np.vstack([0 * W[:1], W[1:]]), "regulariser", "row")
    inner(
        "first class not penalised",
        lambda W: np.hstack([0 * W[:, :1], W[:, 1:]]),
        "row",
        "column",
        "regulariser",
    )

    def grad_of(bug: str, **instead: Any) -> None:
        codes = tuple(instead.pop("codes", ()))

        def wrong(X: Any, W: Any, y: Any, **kw: Any) -> Any:
            return fg.linear_cross_entropy.grad(X, W, y, **{**kw, **instead})

        cases.extend(plant(ours, bug, derivative=wrong, codes=codes))

    grad_of("penalty forgotten", l2=0.0, codes=reg)
    grad_of("penalty doubled", l2=2 * L2, codes=reg)
    grad_of("bias forgotten", bias=None)
    grad_of("smoothing that is not there", label_smoothing=0.1)
    grad_of("z-loss that is not there", z_loss=0.1)
    single = _case("float32", _draw(rng, dtype=np.float32))
    cases += plant(single, "sign of W", np.negative, of="W", codes=("sign",))
    cases += plant(single, "twice b", bugs.scaled(2), of="b", codes=("factor",))
    cases += plant(single, "one of X doubled", bugs.doubled, of="X")
    for scale in (1e-30, 1e-6, 1e6, 1e30):
        odd = _case(f"features of {scale:g}", _draw(rng, scale=scale))
        cases += plant(odd, "half W", bugs.scaled(0.5), of="W", codes=("factor",))
        cases += plant(odd, "one of X doubled", bugs.doubled, of="X")
    big = _case(
        "34,832 parameters", _draw(rng, 256, 128, 16), L2, options={"mode": "random"}, truth=None
    )
    cases += plant(big, "one of W doubled", bugs.doubled, of="W")
    cases += plant(big, "last of b zero", bugs._at(-1, value=0.0), of="b")
    return cases
