"""Derivatives by differences, for their own sake."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastgrad._gradcheck.problem import Problem
from fastgrad._gradcheck.run import Run, numerical_columns
from fastgrad._gradcheck.search import Search, scales_of


@np.errstate(all="ignore")  # steps leave domains
def numerical_gradient(
    f: Callable[..., Any],
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    wrt: Any = None,
    eval_dtype: Any = None,
) -> Any:
    """The gradient of a scalar function, each element by extrapolated central differences.

    Parameters
    ----------
    f : callable
        ``f(*args, **kwargs)`` returns a number.
    *args
        Its arguments; they are not changed.
    kwargs : mapping, optional
        Keyword arguments of `f`.
    wrt : str, int or sequence of them, optional
        The inputs to differentiate, by name or position.  Default: the first floating array.
    eval_dtype : {"float64", "same"}, optional
        Precision of the evaluations.  Default: float64, if `f` gives the same in it.

    Returns
    -------
    ndarray or tuple of ndarray
        float64, of the shape of the input; a tuple if `wrt` is a sequence.  NaN where `f` is not
        finite around x.

    Raises
    ------
    TypeError
        `f` does not return a number, or nothing can be differentiated.

    Notes
    -----
    Six evaluations an element where three steps settle it, about 20 where they do not.  The steps,
    the extrapolation and its error bar are those of `gradcheck`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> fg.numerical_gradient(lambda x: np.sum(x**3), np.array([1.0, 2.0])).round(9)
    array([ 3., 12.])
    """
    check = _of(f, args, kwargs, wrt, eval_dtype, "grad")
    problem = check.problem
    if not problem.scalar:
        raise TypeError(
            f"f must return a number; {problem.name} returned an array of shape "
            f"{problem.value_shape}. Use numerical_jacobian."
        )
    nothing = [np.zeros(part.shape) for part in problem.inputs]
    s = Search(problem, None, nothing, check.tolerance, check.clock, check.rng, unknown=True)
    for which, part in enumerate(problem.inputs):
        s.elements(which, np.arange(part.size))
    return tuple(s.numeric) if _several(wrt) else s.numeric[0]


@np.errstate(all="ignore")  # steps leave domains
def numerical_jacobian(
    f: Callable[..., Any],
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    wrt: Any = None,
    eval_dtype: Any = None,
) -> NDArray[np.float64]:
    """The Jacobian of an array function, column by column.

    Parameters
    ----------
    f : callable
        ``f(*args, **kwargs)`` returns an array (or a number).
    *args, kwargs, eval_dtype
        As in `numerical_gradient`.
    wrt : str or int, optional
        The one input to differentiate.  Default: the first floating array.

    Returns
    -------
    ndarray
        float64, of the shape of the value followed by that of the input.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> fg.numerical_jacobian(fg.softmax, np.array([0.0, 0.0])).round(9)
    array([[ 0.25, -0.25],
           [-0.25,  0.25]])
    """
    check = _of(f, args, kwargs, wrt, eval_dtype, "jac")
    problem = check.problem
    part = problem.inputs[0]
    out = np.empty((math.prod(problem.value_shape), part.size))
    for i, slopes in numerical_columns(check, check.clock):
        out[:, i] = slopes.value
    return out.reshape(problem.value_shape + part.shape)


@np.errstate(all="ignore")  # steps leave domains
def numerical_hvp(
    f: Callable[..., Any],
    *args: Any,
    v: ArrayLike,
    kwargs: Mapping[str, Any] | None = None,
    wrt: Any = None,
    grad: Callable[..., Any] | None = None,
    eval_dtype: Any = None,
) -> NDArray[np.float64]:
    """The Hessian of a scalar function times a vector, by differences of its gradient.

    Parameters
    ----------
    f : Loss or callable
        ``f(*args, **kwargs)`` returns a number.
    *args, kwargs, wrt, eval_dtype
        As in `numerical_jacobian`.
    v : array_like
        The vector, of the shape of the input.
    grad : callable, optional
        The gradient of `f`, with the same arguments; default: the one that `f` carries.  Without
        one it is made of differences too, which costs digits.

    Returns
    -------
    ndarray
        float64, of the shape of the input.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> cube = fg.Loss(value=lambda x: np.sum(x**3), grad=lambda x: 3 * x**2)
    >>> fg.numerical_hvp(cube, np.array([1.0, 2.0]), v=[1.0, 0.0]).round(9)
    array([6., 0.])
    """
    check = _of(f, args, kwargs, wrt, eval_dtype, "hvp")
    problem = check.problem
    part = problem.inputs[0]
    direction = np.asarray(v, float)
    if direction.shape != part.shape:
        raise ValueError(
            f"v must have the shape of {part.name}, {part.shape}; got {direction.shape}."
        )
    size = float(np.max(np.abs(direction), initial=0))
    if size == 0:
        return np.zeros(part.shape)
    step = scales_of(part.x).typical / size

    def gradient(arrays: Any) -> NDArray[np.float64]:
        x = arrays[0]
        moved, keywords = list(args), dict(kwargs or {})
        if isinstance(part.key, int):
            moved[part.key] = x
        else:
            keywords[part.key] = x
        if grad is not None:
            return np.asarray(grad(*moved, **keywords), float)
        if hasattr(f, "grad") or hasattr(f, "value_and_grad"):
            return problem.at_copy(arrays)[0]
        return np.asarray(numerical_gradient(f, *moved, kwargs=keywords, wrt=part.key), float)

    middle = gradient([part.x])
    slopes, exact = check.along(gradient, [step * direction], middle)
    # The direction as stored differs from the one wanted by its rounding.
    at = int(np.argmax(np.abs(direction)))
    unit = float(exact[0].reshape(-1)[at]) / float(direction.reshape(-1)[at])
    return np.asarray(slopes.value / unit).reshape(part.shape)


def _several(wrt: Any) -> bool:
    return wrt is not None and not isinstance(wrt, (str, int))


def _of(f: Any, args: Any, kwargs: Any, wrt: Any, eval_dtype: Any, kind: str) -> Run:
    problem = Problem(f, args, kwargs, _no_derivative, wrt, kind, eval_dtype, None, None)
    return Run(problem, "full", None, 0.0, 1, math.inf, None, 0, 0.0, 1, None)


def _no_derivative(*args: Any, **kwargs: Any) -> None:
    """Stands where `gradcheck` has a derivative."""
