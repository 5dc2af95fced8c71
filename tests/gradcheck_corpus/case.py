"""What a case of the corpus is, and how a bug is planted in a right one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import fastgrad as fg

Derivative = Callable[..., Any]
Change = Callable[[np.ndarray], np.ndarray]
Wrong = frozenset[tuple[int, ...]]

# The accuracy demanded of a derivative by default (interactive.md, section 3).
RTOL = {"float64": 1e-7, "float32": 1e-4, "float16": 2e-2}


@dataclass(frozen=True)
class Case:
    """One call of gradcheck and what it must say.

    Attributes
    ----------
    name, family : str
    f : callable
        A loss, a map or any function of arrays.
    args, kwargs
        What `f` is called with.
    derivative : callable
        The right one: the gradient, a tuple or a dict of gradients, or a vjp.
    grad
        What gradcheck is given as `grad`; None: it finds the derivative on `f`.
    options : mapping
        Further options for gradcheck.
    kind : {"grad", "vjp", "hvp", "hess_diag"}
    right : bool
        Whether what is checked is right.
    hard : bool
        Differences may be unable to tell here: "UNRESOLVED" is allowed, the opposite verdict not.
    codes : tuple of str
        Diagnoses that are right, any of them first; empty: none is expected.
    evidence : mapping
        What the evidence of the first diagnosis must hold.
    wrong : frozenset of index, optional
        The wrong elements of the first input, where they are few.
    truth : callable, optional
        The gradient in long double: name of the input -> array.
    smooth : bool
        Without a kink near the inputs, so that error bars can be judged.
    """

    name: str
    family: str
    f: Callable[..., Any]
    args: tuple[Any, ...]
    derivative: Derivative
    grad: Any = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "grad"
    right: bool = True
    hard: bool = False
    codes: tuple[str, ...] = ()
    evidence: Mapping[str, Any] = field(default_factory=dict)
    wrong: Wrong | None = None
    truth: Callable[[], Mapping[str, np.ndarray]] | None = None
    smooth: bool = True

    def check(self, **options: Any) -> Any:
        """Call gradcheck on it."""
        return fg.gradcheck(
            self.f, *self.args, kwargs=self.kwargs, grad=self.grad, **{**self.options, **options}
        )

    def __repr__(self) -> str:
        return self.name


def parts(derivative: Any) -> dict[Any, np.ndarray]:
    """A derivative of any form as a dict of arrays."""
    if hasattr(derivative, "_asdict"):
        derivative = derivative._asdict()
    if isinstance(derivative, Mapping):
        return {k: np.asarray(v) for k, v in derivative.items()}
    if isinstance(derivative, tuple):
        return {i: np.asarray(v) for i, v in enumerate(derivative)}
    return {0: np.asarray(derivative)}


def copied(arrays: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.copy(order="K") if isinstance(a, np.ndarray) else a for a in arrays)


def call(case: Case, derivative: Derivative, seed: int = 0) -> dict[Any, np.ndarray]:
    """A derivative at the case's inputs, against a vector drawn from `seed` if it takes one."""
    args = copied(case.args)
    rng = np.random.default_rng(seed)
    if case.kind == "vjp":
        value = np.asarray(case.f(*args, **case.kwargs))
        args = (*args, rng.standard_normal(value.shape).astype(value.dtype))
    elif case.kind == "hvp":
        args = (*args, rng.standard_normal(args[0].shape).astype(args[0].dtype))
    return parts(derivative(*args, **case.kwargs))


def _differing(wrong: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Elements that differ by far more than is tolerated, and not by rounding alone."""
    if wrong.shape != right.shape:
        return np.ones(right.shape, bool)
    rtol = RTOL.get(right.dtype.name, 1e-7)
    w, r = np.asarray(wrong, np.longdouble), np.asarray(right, np.longdouble)
    size = np.maximum(np.abs(w), np.abs(r))
    gap = np.abs(w - r)
    seen = gap > 10 * rtol * np.max(np.abs(r), initial=0)
    return np.isnan(w) | np.isinf(w) | ((gap > 20 * rtol * size) & seen)


def plant(
    case: Case,
    bug: str,
    change: Change | None = None,
    *,
    derivative: Derivative | None = None,
    of: Any = None,
    codes: tuple[str, ...] = (),
    located: bool = False,
    carried: bool = False,
    **evidence: Any,
) -> list[Case]:
    """The case with a wrong derivative, or nothing where by chance the bug changes no element.

    Parameters
    ----------
    change : callable
        Applied to the gradient (that of the input `of` where there are several), or
    derivative : callable
        put in its place.
    located : bool
        Whether the elements that it makes wrong are recorded.
    carried : bool
        Whether `f` becomes a Loss or Map that carries the derivative.
    """
    if derivative is None:
        assert change is not None
        derivative = _changed(case.derivative, change, of)
    with np.errstate(all="ignore"):
        right, wrong = call(case, case.derivative), call(case, derivative)
    masks = {k: _differing(wrong[k], right[k]) for k in right}
    if not any(m.any() for m in masks.values()):
        return []
    where = None
    if located and case.kind != "vjp":  # there they depend on the vector that gradcheck draws
        first = next(iter(masks.values())) if of is None else masks[of]
        where = frozenset(tuple(map(int, i)) for i in np.argwhere(first))
    planted = replace(
        case,
        name=f"{case.name}: {bug}",
        grad=derivative,
        right=False,
        codes=codes,
        evidence=evidence,
        wrong=where,
        truth=None,
    )
    if carried and case.kind == "grad":
        planted = replace(planted, f=fg.Loss(case.f, grad=derivative), grad=None)
    elif carried and case.kind == "vjp":
        planted = replace(planted, f=fg.Map(case.f, vjp=derivative), grad=None)
    return [planted]


def _changed(derivative: Derivative, change: Change, of: Any) -> Derivative:
    def wrong(*args: Any, **kwargs: Any) -> Any:
        g = derivative(*args, **kwargs)
        if hasattr(g, "_asdict"):
            g = g._asdict()
        if isinstance(g, Mapping):
            return {k: change(v) if k == of or of is None else v for k, v in g.items()}
        if isinstance(g, tuple):
            return tuple(change(v) if i == of or of is None else v for i, v in enumerate(g))
        return change(np.asarray(g))

    return wrong
