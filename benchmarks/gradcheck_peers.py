"""What gradcheck and other checkers miss: bugs that they pass, right gradients that they fail.

    python benchmarks/gradcheck_peers.py [--seeds 3] [--families maps ...] [--missed]

The cases are those of tests/gradcheck_corpus: planted bugs and right gradients.  Each checker gets
the same NumPy functions and is called as its manual says, with its own tolerances:

* PyTorch: `torch.autograd.gradcheck`, slow and fast, of an autograd.Function around them;
* JAX: `jax.test_util.check_grads` in reverse mode, of a custom_vjp around callbacks, with x64;
* SciPy: `scipy.optimize.check_grad`, which returns a 2-norm that its user must judge: here an error
  is one above 1e-6 ("absolute"), or above 1e-6 of the gradient's own norm ("relative").  It has
  scalar functions only, so maps go as their product with one random vector.

A case that a checker refuses counts as failed; one that would need more than MOST evaluations is
not run.  Left out for all: Hessians, losses without reduction, and inputs that are integers.
"""

from __future__ import annotations

import argparse
import collections
import inspect
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import scipy.optimize
import torch
from jax.test_util import check_grads
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from gradcheck_corpus import FAMILIES, Case, corpus, parts

jax.config.update("jax_enable_x64", True)

MOST = 20_000
"""Evaluations that a checker may need."""


@dataclass
class Problem:
    """A case as all checkers take it: a function of some arrays, and its pullback."""

    arrays: list[np.ndarray]
    value: Callable[..., Any]
    pullback: Callable[..., list[np.ndarray]]

    @property
    def size(self) -> int:
        return sum(a.size for a in self.arrays)


def _names(case: Case) -> list[str]:
    """Names of the arguments, as the derivative's parts are called."""
    return list(inspect.signature(case.f).parameters)


def problem(case: Case) -> Problem | None:
    """The case's inputs and functions; None if other checkers have nothing for it."""
    grad = case.grad
    if grad is None:
        grad = case.f.vjp if case.kind == "vjp" else case.f.grad
    if case.kind not in ("grad", "vjp") or not callable(grad):
        return None
    if not all(np.asarray(a).dtype.kind == "f" for a in case.args[:1]):
        return None
    if np.ndim(case.f(*_copied(case.args), **case.kwargs)) and case.kind == "grad":
        return None
    names = _names(case)
    wrt = case.options.get("wrt", ())
    wrt = [wrt] if isinstance(wrt, (str, int)) else list(wrt)
    if not wrt:
        found = parts(case.derivative(*_copied(case.args), *_vector(case), **case.kwargs))
        wrt = list(found) if len(found) > 1 else [0]
    places = [names.index(w) if isinstance(w, str) and w in names else w for w in wrt]
    inside = [p if isinstance(p, int) and p < len(case.args) else names[p] for p in places]

    def arguments(arrays: tuple[np.ndarray, ...]) -> tuple[list[Any], dict[str, Any]]:
        args, kwargs = list(case.args), dict(case.kwargs)
        for place, array in zip(inside, arrays, strict=True):
            if isinstance(place, int):
                args[place] = array
            else:
                kwargs[place] = array
        return args, kwargs

    def value(*arrays: np.ndarray) -> Any:
        args, kwargs = arguments(arrays)
        return case.f(*args, **kwargs)

    def pullback(v: np.ndarray, *arrays: np.ndarray) -> list[np.ndarray]:
        args, kwargs = arguments(arrays)
        if case.kind == "vjp":
            return [np.asarray(grad(*args, v, **kwargs))]
        got = parts(grad(*args, **kwargs))
        ordered = [got[w] for w in wrt] if set(wrt) <= set(got) else list(got.values())
        return [np.asarray(v * g) for g in ordered]

    arrays = [case.args[p] if isinstance(p, int) else case.kwargs[p] for p in inside]
    return Problem([np.array(a, order="K") for a in arrays], value, pullback)


def _copied(args: tuple[Any, ...]) -> list[Any]:
    return [a.copy() if isinstance(a, np.ndarray) else a for a in args]


def _vector(case: Case) -> list[np.ndarray]:
    if case.kind != "vjp":
        return []
    return [np.ones_like(np.asarray(case.f(*_copied(case.args), **case.kwargs)))]


# ---- the checkers: True if they accept ----------------------------------------------------------


def ours(case: Case, p: Problem) -> bool | None:
    result = case.check()
    return None if result.verdict == "UNRESOLVED" else bool(result)


def _torch(fast: bool) -> Callable[[Case, Problem], bool]:
    def check(case: Case, p: Problem) -> bool:
        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *leaves: Any) -> Any:
                ctx.save_for_backward(*leaves)
                value = p.value(*(leaf.detach().numpy() for leaf in leaves))
                return torch.as_tensor(np.array(value, dtype=p.arrays[0].dtype))

            @staticmethod
            def backward(ctx: Any, v: Any) -> Any:
                leaves = [leaf.detach().numpy() for leaf in ctx.saved_tensors]
                back = p.pullback(v.numpy(), *leaves)
                return tuple(torch.as_tensor(np.array(g)) for g in back)

        leaves = tuple(torch.tensor(a, requires_grad=True) for a in p.arrays)
        return bool(
            torch.autograd.gradcheck(Function.apply, leaves, raise_exception=False, fast_mode=fast)
        )

    return check


def with_jax(case: Case, p: Problem) -> bool:
    dtype = p.arrays[0].dtype
    out = jax.ShapeDtypeStruct(np.shape(p.value(*_copied(tuple(p.arrays)))), dtype)
    backs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in p.arrays]

    def call(*leaves: Any) -> Any:
        return jax.pure_callback(
            lambda *a: np.asarray(p.value(*map(np.array, a)), dtype), out, *leaves
        )

    f = jax.custom_vjp(call)

    def backward(leaves: Any, v: Any) -> Any:
        def pulled(v: Any, *a: Any) -> list[np.ndarray]:
            back = p.pullback(np.asarray(v), *map(np.array, a))
            return [
                np.asarray(g, b.dtype).reshape(b.shape) for g, b in zip(back, backs, strict=True)
            ]

        return tuple(jax.pure_callback(pulled, backs, v, *leaves))

    f.defvjp(lambda *leaves: (call(*leaves), leaves), backward)
    try:
        check_grads(f, tuple(map(jax.numpy.asarray, p.arrays)), order=1, modes=("rev",))
    except AssertionError:
        return False
    return True


def _scipy(relative: bool) -> Callable[[Case, Problem], bool]:
    def check(case: Case, p: Problem) -> bool:
        shapes = [a.shape for a in p.arrays]
        cuts = np.cumsum([a.size for a in p.arrays])[:-1]
        value = np.asarray(p.value(*_copied(tuple(p.arrays))))
        v = np.random.default_rng(0).standard_normal(value.shape) if value.ndim else 1.0

        def split(x: np.ndarray) -> list[np.ndarray]:
            pieces = np.split(np.array(x), cuts)
            return [
                a.reshape(s).astype(b.dtype)
                for a, s, b in zip(pieces, shapes, p.arrays, strict=True)
            ]

        def f(x: np.ndarray) -> float:
            return float(np.sum(v * p.value(*split(x))))

        def grad(x: np.ndarray) -> np.ndarray:
            back = p.pullback(np.asarray(v, value.dtype), *split(x))
            return np.concatenate([np.ravel(g) for g in back]).astype(float)

        x = np.concatenate([a.ravel() for a in p.arrays]).astype(float)
        error = scipy.optimize.check_grad(f, grad, x)
        bar = 1e-6 * (float(np.linalg.norm(grad(x))) if relative else 1.0)
        return bool(error <= bar)

    return check


CHECKERS: dict[str, tuple[Callable[[Case, Problem], bool | None], bool]] = {
    "fastgrad": (ours, False),
    "PyTorch, slow": (_torch(False), True),
    "PyTorch, fast": (_torch(True), False),
    "JAX": (with_jax, False),
    "SciPy, absolute": (_scipy(False), True),
    "SciPy, relative": (_scipy(True), True),
}
"""Each with whether it needs an evaluation for every element."""


# ---- the tables ---------------------------------------------------------------------------------


def verdict(name: str, case: Case, p: Problem) -> str:
    check, by_elements = CHECKERS[name]
    if by_elements and 2 * p.size > MOST:
        return "not run"
    try:
        accepted = check(case, p)
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception:  # whatever the reason, what is refused does not pass
        return "refused"
    return "undecided" if accepted is None else "passed" if accepted else "failed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--checkers", nargs="+", choices=CHECKERS, default=list(CHECKERS))
    parser.add_argument("--missed", action="store_true", help="list what each gets wrong")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    counts: dict[str, collections.Counter[tuple[bool, str]]] = collections.defaultdict(
        collections.Counter
    )
    seconds: collections.Counter[str] = collections.Counter()
    missed: dict[str, list[str]] = collections.defaultdict(list)
    left_out = 0
    for family in args.families:
        for seed in range(args.seeds):
            for case in corpus(family, seed, True) + corpus(family, seed, False):
                if (p := problem(case)) is None:
                    left_out += 1
                    continue
                for name in args.checkers:
                    start = time.perf_counter()
                    said = verdict(name, case, problem(case) or p)
                    seconds[name] += time.perf_counter() - start
                    counts[name][case.right, said] += 1
                    if said == ("failed" if case.right else "passed") or said == "refused":
                        missed[name].append(f"{'right' if case.right else 'wrong'} {said}: {case}")
    console = Console(width=120)
    table = Table(title=f"{args.seeds} seed(s), {', '.join(args.families)}; {left_out} left out")
    for column in ("checker", "wrong passed", "of", "right failed", "of", "undecided wrong",
                   "undecided right", "refused", "not run", "seconds"):  # fmt: skip
        table.add_column(column, justify="left" if column == "checker" else "right")
    for name in args.checkers:
        c = counts[name]
        run = {
            r: sum(n for (right, said), n in c.items() if right == r and said != "not run")
            for r in (True, False)
        }
        table.add_row(
            name,
            str(c[False, "passed"]),
            str(run[False]),
            str(c[True, "failed"] + c[True, "refused"]),
            str(run[True]),
            str(c[False, "undecided"]),
            str(c[True, "undecided"]),
            str(c[True, "refused"] + c[False, "refused"]),
            str(c[True, "not run"] + c[False, "not run"]),
            f"{seconds[name]:.1f}",
        )
    console.print(table)
    if args.missed:
        for name, cases in missed.items():
            console.print(f"[bold]{name}[/bold]")
            for case in cases:
                console.print(f"  {case}", markup=False)


if __name__ == "__main__":
    main()
