"""Bugs that any gradient may have: each takes the right array to the wrong one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from gradcheck_corpus.case import Case, call, plant


def scaled(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda g: (g * factor).astype(g.dtype)


def _at(*index: Any, value: float | None = None, factor: float | None = None) -> Any:
    """Set what `index` selects to `value`, or multiply it."""

    def change(g: np.ndarray) -> np.ndarray:
        wrong = np.array(g)
        wrong[index] = value if factor is None else wrong[index] * factor
        return wrong

    return change


def _flat(change: Callable[[np.ndarray], None]) -> Callable[[np.ndarray], np.ndarray]:
    """Change a copy in C order as one vector."""

    def changed(g: np.ndarray) -> np.ndarray:
        wrong = np.array(g, order="C")
        change(wrong.reshape(-1))
        return wrong

    return changed


@_flat
def swapped(g: np.ndarray) -> None:
    """The least and the greatest element change places."""
    i, j = int(np.argmin(g)), int(np.argmax(g))
    g[i], g[j] = g[j], g[i]


@_flat
def doubled(g: np.ndarray) -> None:
    """The largest element in size is doubled."""
    g[np.argmax(np.abs(g))] *= 2


@_flat
def one_sign(g: np.ndarray) -> None:
    g[np.argmax(np.abs(g))] *= -1


@_flat
def one_zero(g: np.ndarray) -> None:
    g[np.argmax(np.abs(g))] = 0


@_flat
def one_nan(g: np.ndarray) -> None:
    g[g.size // 2] = np.nan


@_flat
def one_inf(g: np.ndarray) -> None:
    g[g.size // 2] = np.inf


def fortran(g: np.ndarray) -> np.ndarray:
    return g.ravel(order="F").reshape(g.shape)


def to_fortran(g: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(g.ravel().reshape(g.shape, order="F"))


def transposed(g: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(g.T)


def rolled(axis: int | None, by: int = 1) -> Callable[[np.ndarray], np.ndarray]:
    return lambda g: np.roll(g, by, axis)


def jittered(g: np.ndarray) -> np.ndarray:
    """Every element off by a relative error of about 1e-3, as from float16 somewhere inside."""
    noise = np.random.default_rng(5).standard_normal(g.shape)
    return (g * (1 + 1e-3 * noise)).astype(g.dtype)


def clipped(g: np.ndarray) -> np.ndarray:
    limit = np.abs(g).max() / 2
    return np.clip(g, -limit, limit)


def truncated(g: np.ndarray) -> np.ndarray:
    """Integers, as from a buffer of the wrong type."""
    return g.astype(np.int64)


def tail(lanes: int) -> Callable[[np.ndarray], np.ndarray]:
    """The columns after the last full vector stay zero."""
    return lambda g: _at(..., slice(lanes * (g.shape[-1] // lanes), None), value=0.0)(g)


@_flat
def end_missing(g: np.ndarray) -> None:
    """The elements after the last full vector of the whole array stay zero."""
    g[16 * (g.size // 16) :] = 0


def anywhere(case: Case, of: Any = None) -> list[Case]:
    """Bugs for an array of any shape."""

    def bug(name: str, change: Any, /, *codes: str, located: bool = False, **evidence: Any) -> None:
        carried = of is None and len(made) % 3 == 0
        label = name if of is None else f"{name} of {of}"
        made.extend(
            plant(
                case,
                label,
                change,
                of=of,
                codes=codes,
                located=located,
                carried=carried,
                **evidence,
            )
        )

    made: list[Case] = []
    bug("sign", np.negative, "sign")
    bug("twice", scaled(2), "factor", factor=2.0, name="2")
    bug("half", scaled(0.5), "factor", factor=0.5, name="1/2")
    bug("times ln 2", scaled(math.log(2)), "factor", factor=math.log(2), name="ln 2")
    bug("over ln 2", scaled(1 / math.log(2)), "factor", factor=1 / math.log(2), name="1/ln 2")
    bug("minus twice", scaled(-2), "factor", "sign")
    bug("0.1 % off", scaled(1.001), "factor", factor=1.001)
    bug("1.37 times", scaled(1.37), "factor", factor=1.37)
    bug("one doubled", doubled, located=True)
    bug("one of the wrong sign", one_sign, located=True)
    bug("one zero", one_zero, located=True)
    bug("two swapped", swapped, "permuted", located=True, how="swapped")
    bug("one NaN", one_nan, "nan")
    bug("one infinite", one_inf, "nan")
    bug("zero", scaled(0))
    bug("ones", np.ones_like)
    bug("absolute values", np.abs)
    bug("jittered", jittered)
    bug("clipped", clipped)
    bug("reversed", lambda g: np.ascontiguousarray(g.ravel()[::-1]).reshape(g.shape))
    bug("plus a constant", lambda g: g + np.abs(g).max() / 4)
    return made


def matrix(case: Case, of: Any = None) -> list[Case]:
    """Bugs for a gradient of N rows and C columns, which must be different and not 2."""
    made: list[Case] = []

    def bug(name: str, change: Any, /, *codes: str, located: bool = False, **evidence: Any) -> None:
        label = name if of is None else f"{name} of {of}"
        made.extend(plant(case, label, change, of=of, codes=codes, located=located, **evidence))

    with np.errstate(all="ignore"):
        g = _gradient(case, of)
    n, c = g.shape
    bug("times N", scaled(n), "factor", factor=float(n), name="N")
    bug("over N", scaled(1 / n), "factor", factor=1 / n, name="1/N")
    bug("times C", scaled(c), "factor", factor=float(c), name="C")
    bug("over C", scaled(1 / c), "factor", factor=1 / c, name="1/C")
    bug("times NC", scaled(n * c), "factor", factor=float(n * c))
    bug("unravelled in Fortran order", fortran, "permuted", how="fortran order")
    bug("ravelled in Fortran order", to_fortran, "permuted", how="fortran order")
    bug("rolled along the rows", rolled(0), "permuted", how="rolled by 1 along axis 0")
    bug("rolled along the columns", rolled(1), "permuted", how="rolled by 1 along axis 1")
    bug("first row zero", _at(0, value=0.0), "missing row", located=True)
    bug("last row zero", _at(-1, value=0.0), "missing row", located=True)
    bug("a row tripled", _at(n // 2, factor=3.0), "row", located=True, index=n // 2)
    bug("a column tripled", _at(..., c // 2, factor=3.0), "column", located=True, index=c // 2)
    bug("first column zero", _at(..., 0, value=0.0), "column", located=True, index=0)
    bug("last column zero", _at(..., -1, value=0.0), "column", "tail", located=True)
    bug("a row of the wrong sign", _at(1, factor=-1.0), "row", located=True, index=1)
    bug("first row in every row", lambda g: np.broadcast_to(g[:1], g.shape).copy())
    bug("mean over rows", lambda g: np.broadcast_to(g.mean(0), g.shape).copy())
    bug("mean of columns taken off", lambda g: g - g.mean(0))
    # Where the right gradient is zero too, nothing tells a tail from single elements.
    if c > 16 and c % 16 > 1 and g[:, 16 * (c // 16) :].all():
        bug("tail of 16 lanes", tail(16), "tail")
    if c > 8 and c % 8 > 1 and g[:, 8 * (c // 8) :].all():
        bug("tail of 8 lanes", tail(8), "tail")
    if g.size > 32 and 1 < g.size % 16 < c and g.ravel()[16 * (g.size // 16) :].all():
        bug("end of the array", end_missing, "tail", "row")
    return made


def _gradient(case: Case, of: Any) -> np.ndarray:
    got = call(case, case.derivative)
    return next(iter(got.values())) if of is None else got[of]


def square(case: Case, of: Any = None) -> list[Case]:
    """Bugs for a square gradient."""
    return plant(case, "transposed", transposed, of=of, codes=("transposed",))


def vector(case: Case, of: Any = None) -> list[Case]:
    """Bugs for a gradient of one axis."""
    made: list[Case] = []
    n = _gradient(case, of).size
    for name, change, codes, evidence in (
        ("times N", scaled(n), ("factor",), {"factor": float(n), "name": "N"}),
        ("over N", scaled(1 / n), ("factor",), {"factor": 1 / n, "name": "1/N"}),
        ("rolled", rolled(0), ("permuted",), {"how": "rolled by 1 along axis 0"}),
        ("rolled back", rolled(0, -1), ("permuted",), {}),
        ("last one zero", _at(-1, value=0.0), (), {}),
        ("first one zero", _at(0, value=0.0), (), {}),
    ):
        made += plant(case, name, change, of=of, codes=codes, **evidence)
    if n > 16 and n % 16 > 1:
        made += plant(case, "tail of 16 lanes", tail(16), of=of, codes=("tail",))
    return made


def behaviour(case: Case) -> list[Case]:
    """Not the numbers are wrong but what the functions do: they write, or they roll dice."""
    rng = np.random.default_rng(9)
    f, derivative = case.f, case.derivative

    def noisy(*args: Any, **kwargs: Any) -> Any:
        return f(*args, **kwargs) * (1 + 1e-3 * rng.standard_normal())

    def dropout(x: np.ndarray, *args: Any, **kwargs: Any) -> Any:
        return f(x * (rng.random(x.shape) < 0.9), *args, **kwargs)

    def writes(x: np.ndarray, *args: Any, **kwargs: Any) -> Any:
        value = f(x, *args, **kwargs)
        x -= x.mean()
        return value

    def centres_in_place(x: np.ndarray, *args: Any, **kwargs: Any) -> Any:
        x -= x.max()
        return f(x, *args, **kwargs)

    def grad_writes(x: np.ndarray, *args: Any, **kwargs: Any) -> Any:
        g = derivative(x, *args, **kwargs)
        x *= 0.5
        return g

    def grad_into_input(x: np.ndarray, *args: Any, **kwargs: Any) -> Any:
        x[...] = derivative(x, *args, **kwargs)
        return x

    def grad_noisy(*args: Any, **kwargs: Any) -> Any:
        return derivative(*args, **kwargs) * (1 + 1e-2 * rng.standard_normal())

    def variant(bug: str, f: Any, grad: Any, *codes: str) -> Case:
        return replace(
            case,
            name=f"{case.name}: {bug}",
            f=f,
            grad=grad,
            right=False,
            codes=codes,
            truth=None,
        )

    return [
        variant("f is noisy", noisy, derivative, "nondeterministic"),
        variant("f drops elements at random", dropout, derivative, "nondeterministic"),
        variant("f writes into its input", writes, derivative, "mutates"),
        variant("f centres its input in place", centres_in_place, derivative, "mutates"),
        variant("the gradient writes into the input", f, grad_writes, "mutates"),
        variant("the gradient is written over the input", f, grad_into_input, "mutates", "aliased"),
        variant("the gradient is noisy", f, grad_noisy, "nondeterministic"),
    ]
