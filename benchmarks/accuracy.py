"""The accuracy table: the worst error of fastgrad and of its peers against long double.

    python benchmarks/accuracy.py [--isa NAME] [--json FILE]

ulp: units in the last place of the exact result; only results in the normal range count, for some
peers flush the others to zero.  eps: relative error in units of the spacing at 1; "lost" means that
no digit is right, mostly because the peer returns 0.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peers  # first: it sets what the libraries read when they are loaded

# isort: split
import numpy as np

from fastgrad._kernels import isa

Exact = np.ndarray  # of long double


def exact_softmax(z: Exact, y: np.ndarray) -> Exact:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def exact_logsumexp(z: Exact, y: np.ndarray) -> Exact:
    return z.max(axis=1) + np.log1p(_others(z, z.argmax(axis=1)))


def exact_log_softmax(z: Exact, y: np.ndarray) -> Exact:
    top = z.max(axis=1, keepdims=True)
    return z - top - np.log1p(_others(z, z.argmax(axis=1)))[:, None]


def exact_losses(z: Exact, y: np.ndarray) -> Exact:
    return np.log1p(_others(z, y))


def exact_target_gradient(z: Exact, y: np.ndarray) -> Exact:
    rest = _others(z, y)
    return -rest / (rest + 1)


def _others(z: Exact, y: np.ndarray) -> Exact:
    """Sum of the exponentials of all classes but y, in units of that of y: nothing cancels."""
    rows = np.arange(len(y))
    e = np.exp(z - z[rows, y, None])
    e[rows, y] = 0
    return e.sum(axis=1)


def in_ulp(got: np.ndarray, exact: Exact, z: np.ndarray) -> float:
    kept = np.abs(exact) >= np.finfo(z.dtype).tiny
    unit = np.spacing(np.abs(exact[kept]).astype(z.dtype)).astype(np.longdouble)
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
    work: str
    case: peers.Case
    exact: Callable[[Exact, np.ndarray], Exact]
    error: Callable[[np.ndarray, Exact, np.ndarray], float]
    unit: str
    bar: float
    part: Callable[[peers.Case, tuple[np.ndarray, ...]], np.ndarray] = lambda case, a: a[0]


def confident(dtype: str, low: float, high: float) -> peers.Case:
    """4,096 rows of 10 classes whose target leads by `low` to `high`."""
    case = peers.make_case((4096, 10), dtype, scale=1.0)
    rows = np.arange(4096)
    case.z[rows, case.y] = case.z.max(axis=1) + np.linspace(low, high, 4096)
    return case


def winners(case: peers.Case, arrays: tuple[np.ndarray, ...]) -> np.ndarray:
    return arrays[0].max(axis=1)


def target_gradients(case: peers.Case, arrays: tuple[np.ndarray, ...]) -> np.ndarray:
    """Times N, a power of two, which takes back the division of the mean without rounding."""
    n = len(case.y)
    return arrays[1][np.arange(n), case.y] * n


def questions(dtype: str) -> Iterator[Question]:
    for shape, scale in (
        ((65536, 10), 3.0),
        ((1024, 1000), 20.0),
        ((64, 32_000), 3.0),
        ((4, 1_000_000), 1.0),
    ):
        name = f"softmax, C={shape[1]:,}, N(0,{scale:g}²)"
        case = peers.make_case(shape, dtype, scale=scale)
        yield Question(name, "softmax", case, exact_softmax, in_ulp, "ulp", 2.5)
    # True losses of 1e-5 to 1e-17, and below eps² in float64.
    lead = (13.0, 40.0) if dtype == "float32" else (38.0, 80.0)
    name, sure = "confident rows", confident(dtype, *lead)
    yield Question(f"loss, {name}", "losses", sure, exact_losses, in_eps, "eps", 4)
    case = peers.make_case((65536, 10), dtype)
    yield Question("loss, C=10, N(0,3²)", "losses", case, exact_losses, in_ulp, "ulp", 4)
    yield Question(
        f"gradient at the target, {name}",
        "CE loss+gradient",
        sure,
        exact_target_gradient,
        in_eps,
        "eps",
        8,
        target_gradients,
    )
    case = peers.make_case((65536, 2), dtype, scale=1.0)
    name = "logsumexp, C=2, N(0,1)"
    yield Question(name, "logsumexp", case, exact_logsumexp, in_ulp_of_inputs, "ulp", 2)
    pairs = np.zeros((4096, 2), dtype)
    pairs[:, 1] = -np.linspace(*lead, 4096)
    case = peers.Case(pairs, np.zeros(4096, np.int64))
    yield Question(
        "logsumexp([0, -t]) near 0", "logsumexp", case, exact_logsumexp, in_eps, "eps", 4
    )
    yield Question(
        "log_softmax at the winner of [0, -t]",
        "log_softmax",
        case,
        lambda z, y: exact_log_softmax(z, y).max(axis=1),
        in_eps,
        "eps",
        4,
        winners,
    )


def answer(question: Question) -> dict[str, float]:
    """The worst error of each library."""
    names = ("fastgrad", *peers.INSTALLED)  # one form of each is enough here
    case = question.case
    exact = question.exact(case.z.astype(np.longdouble), case.y)
    errors = {}
    for name, call in peers.calls(question.work, case, names).items():
        arrays: tuple[Any, ...] = peers.as_arrays(question.work, name, case, call())
        errors[name] = question.error(question.part(case, arrays), exact, case.z)
    return errors


def shown(errors: dict[str, float], name: str, eps: float) -> str:
    if name not in errors:
        return "-"
    error = errors[name]
    if error * eps > 0.5:
        return "lost"
    return f"{error:,.2f}" if error < 10 else f"{error:,.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--isa", help="force this instruction set")
    parser.add_argument("--json", type=Path, help="write all errors to this file")
    args = parser.parse_args()
    if np.finfo(np.longdouble).nmant <= np.finfo(np.float64).nmant:
        print("long double is no wider than float64 on this platform: nothing to compare with")
        return 1
    if args.isa:
        isa._use(args.isa)
    names = ("fastgrad", *peers.INSTALLED)
    print(f"fastgrad ({isa.active_name()}) and its peers: the worst error")
    print(", ".join(f"{name} {v}" for name, v in peers.versions().items()))
    collected, missed = [], False
    for dtype in ("float32", "float64"):
        print(f"\n{dtype:<40}{'':>4}" + "".join(f"{n:>13}" for n in names) + f"{'bar':>7}")
        for question in questions(dtype):
            errors = answer(question)
            ok = errors["fastgrad"] <= question.bar
            missed |= not ok
            eps = float(np.finfo(dtype).eps)
            cells = "".join(f"{shown(errors, n, eps):>13}" for n in names)
            verdict = "ok" if ok else "MISS"
            print(f"{question.name:<40}{question.unit:>4}{cells}{question.bar:>7g}  {verdict}")
            collected.append({"dtype": dtype, "case": question.name, "errors": errors})
    if args.json:
        args.json.write_text(json.dumps(collected, indent=1))
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
