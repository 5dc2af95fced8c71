"""The accuracy table: the worst error of fastgrad and of its peers against long double.

ulp: units in the last place of the exact result; only results in the normal range count, for some
peers flush the others to zero.  eps: relative error in units of the spacing at 1; "lost" means that
no digit is right, mostly because the peer returns 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks import centroids, cross_entropy, libraries, softmax
from benchmarks.segments import Ragged
from benchmarks.work import Arrays, Case, Logits, Work, logits

# isort: split
import numpy as np

from fastgrad._kernels import isa

Exact = np.ndarray  # of long double
LD = np.longdouble


def exact_softmax(z: Exact, y: np.ndarray) -> Exact:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def exact_logsumexp(z: Exact, y: np.ndarray) -> Exact:
    return z.max(axis=1) + np.log1p(_others(z, z.argmax(axis=1)))


def exact_log_softmax_of_winner(z: Exact, y: np.ndarray) -> Exact:
    return -np.log1p(_others(z, z.argmax(axis=1)))


def exact_losses(z: Exact, y: np.ndarray) -> Exact:
    return np.log1p(_others(z, y))


def exact_target_gradient(z: Exact, y: np.ndarray) -> Exact:
    rest = _others(z, y)
    return -rest / (rest + 1)


def exact_mean(x: Exact, ids: np.ndarray) -> Exact:
    return x.mean(axis=0, keepdims=True)


def _others(z: Exact, y: np.ndarray) -> Exact:
    """Sum of the exponentials of all classes but y, in units of that of y: nothing cancels."""
    rows = np.arange(len(y))
    e = np.exp(z - z[rows, y, None])
    e[rows, y] = 0
    return e.sum(axis=1)


def in_ulp(got: np.ndarray, exact: Exact, z: np.ndarray) -> float:
    kept = np.abs(exact) >= np.finfo(z.dtype).tiny
    unit = np.spacing(np.abs(exact[kept]).astype(z.dtype)).astype(LD)
    return float(np.max(np.abs(got[kept] - exact[kept]) / unit))


def in_ulp_of_inputs(got: np.ndarray, exact: Exact, z: np.ndarray) -> float:
    """The logarithm cannot be finer than the larger of itself and the largest logit."""
    size = np.maximum(np.abs(exact), np.abs(z.max(axis=1)))
    return float(np.max(np.abs(got - exact) / np.spacing(size.astype(z.dtype))))


def in_eps(got: np.ndarray, exact: Exact, z: np.ndarray) -> float:
    return float(np.max(np.abs(got - exact) / np.abs(exact))) / float(np.finfo(z.dtype).eps)


@dataclass
class Question:
    """One line of the table."""

    name: str
    work: Work
    data: Any
    exact: Callable[[Exact, np.ndarray], Exact]
    error: Callable[[np.ndarray, Exact, np.ndarray], float]
    unit: str
    bar: float
    part: Callable[[Any, Arrays], np.ndarray] = lambda data, a: a[0]

    def answer(self) -> dict[str, float]:
        """The worst error of each library; one form of each is enough here."""
        scores, ids = (
            (self.data.z, self.data.y)
            if isinstance(self.data, Logits)
            else (self.data.x, self.data.ids)
        )
        exact = self.exact(scores.astype(LD), ids)
        errors = {}
        for name, call in self.work.calls(self.data, ("fastgrad", *libraries.NAMES)).items():
            arrays = self.work.arrays(name, self.data, call())
            errors[name] = self.error(self.part(self.data, arrays), exact, scores)
        return errors


def confident(dtype: str, low: float, high: float) -> Logits:
    """4,096 rows of 10 classes whose target leads by `low` to `high`."""
    data = logits(Case(softmax.softmax, (4096, 10), dtype), scale=1.0)
    rows = np.arange(4096)
    data.z[rows, data.y] = data.z.max(axis=1) + np.linspace(low, high, 4096)
    return data


def winners(data: Logits, arrays: Arrays) -> np.ndarray:
    return arrays[0].max(axis=1)


def target_gradients(data: Logits, arrays: Arrays) -> np.ndarray:
    """Times N, a power of two, which takes back the division of the mean without rounding."""
    n = len(data.y)
    return arrays[1][np.arange(n), data.y] * n


def questions(dtype: str) -> Iterator[Question]:
    def normal(shape: tuple[int, int], scale: float = 3.0) -> Logits:
        return logits(Case(softmax.softmax, shape, dtype), scale)

    for shape, scale in (
        ((65536, 10), 3.0),
        ((1024, 1000), 20.0),
        ((64, 32_000), 3.0),
        ((4, 1_000_000), 1.0),
    ):
        name = f"softmax, C={shape[1]:,}, N(0,{scale:g}²)"
        data = normal(shape, scale)
        yield Question(name, softmax.softmax, data, exact_softmax, in_ulp, "ulp", 2.5)
    # True losses of 1e-5 to 1e-17, and below eps² in float64.
    lead = (13.0, 40.0) if dtype == "float32" else (38.0, 80.0)
    name, sure = "confident rows", confident(dtype, *lead)
    losses = cross_entropy.losses
    yield Question(f"loss, {name}", losses, sure, exact_losses, in_eps, "eps", 4)
    data = normal((65536, 10))
    yield Question("loss, C=10, N(0,3²)", losses, data, exact_losses, in_ulp, "ulp", 4)
    yield Question(
        f"gradient at the target, {name}",
        cross_entropy.both,
        sure,
        exact_target_gradient,
        in_eps,
        "eps",
        8,
        target_gradients,
    )
    name, data = "logsumexp, C=2, N(0,1)", normal((65536, 2), 1.0)
    yield Question(name, softmax.logsumexp, data, exact_logsumexp, in_ulp_of_inputs, "ulp", 2)
    pairs = np.zeros((4096, 2), dtype)
    pairs[:, 1] = -np.linspace(*lead, 4096)
    data = Logits(pairs, np.zeros(4096, np.int64))
    name = "logsumexp([0, -t]) near 0"
    yield Question(name, softmax.logsumexp, data, exact_logsumexp, in_eps, "eps", 4)
    yield Question(
        "log_softmax at the winner of [0, -t]",
        softmax.log_softmax,
        data,
        exact_log_softmax_of_winner,
        in_eps,
        "eps",
        4,
        winners,
    )
    n = 2_000_000
    x = np.random.default_rng(0).normal(1000, 1, (n, 4)).astype(dtype)
    ragged = Ragged(x, np.zeros(n, np.int64), 1, None)
    name = "mean of 2,000,000 rows near 1000"
    yield Question(name, centroids.centroids, ragged, exact_mean, in_ulp, "ulp", 1)


def error_text(errors: dict[str, float], name: str, dtype: str) -> str:
    if name not in errors:
        return "–"
    error = errors[name]
    if error * np.finfo(dtype).eps > 0.5:
        return "lost"
    return f"{error:,.1f}" if error < 10 else f"{error:,.0f}"


def main(forced: str | None) -> dict[str, Any]:
    if np.finfo(LD).nmant <= np.finfo(np.float64).nmant:
        raise SystemExit(
            "long double is no wider than float64 on this platform: nothing to compare with"
        )
    if forced:
        isa._use(forced)
    names = ("fastgrad", *libraries.INSTALLED)
    print(f"fastgrad ({isa.active_name()}) and its peers: the worst error")
    print(", ".join(f"{name} {v}" for name, v in libraries.versions().items()))
    rows = []
    for dtype in ("float32", "float64"):
        print(f"\n{dtype:<40}{'':>4}" + "".join(f"{n:>13}" for n in names) + f"{'bar':>7}")
        for question in questions(dtype):
            errors = question.answer()
            met = errors["fastgrad"] <= question.bar
            cells = "".join(f"{error_text(errors, n, dtype):>13}" for n in names)
            verdict = "met" if met else "MISSED"
            print(
                f"{question.name:<40}{question.unit:>4}{cells}{question.bar:>7g}  {verdict}",
                flush=True,
            )
            rows.append(
                {
                    "dtype": dtype,
                    "case": question.name,
                    "unit": question.unit,
                    "bar": question.bar,
                    "errors": errors,
                    "met": met,
                }
            )
    return {"rows": rows}
