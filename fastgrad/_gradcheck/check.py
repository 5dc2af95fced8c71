"""`gradcheck`: the public function and its options."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fastgrad._gradcheck.problem import Problem
from fastgrad._gradcheck.result import GradcheckResult
from fastgrad._gradcheck.run import Run
from fastgrad._gradcheck.search import MISS, Clock, OutOfBudget
from fastgrad._gradcheck.verdict import Judge

MODES = ("auto", "full", "random", "rows", "complex")


@np.errstate(all="ignore")  # steps leave domains
def gradcheck(
    f: Callable[..., Any],
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    grad: Any = None,
    wrt: Any = None,
    kind: str | None = None,
    mode: str = "auto",
    rtol: float | None = None,
    atol: float = 0.0,
    directions: int = 4,
    eval_dtype: Any = None,
    reference: Callable[..., Any] | None = None,
    order: int = 1,
    budget: float = 10.0,
    max_evals: int | None = None,
    seed: int = 0,
    nondet: float = 0.0,
    top: int = 10,
    name: str | None = None,
    callback: Callable[[Clock], None] | None = None,
    miss: float = MISS,
    detect: float | None = None,
    points: int = 1,
) -> GradcheckResult:
    r"""Whether a derivative is right, where it is not, and what is wrong with it.

    Each number of the numeric side comes with an error bar: a ladder of central differences,
    extrapolated, with the measured noise of `f` carried through the table.  An element passes if
    :math:`|a - n| \le \mathrm{rtol}\max(|a|, |n|) + \mathrm{atol} + \mathrm{bar}`, and fails only
    if a second ladder says so too.  Where the slopes on both sides differ, any value between them
    is accepted.

    Parameters
    ----------
    f : Loss, Map or callable
        ``f(*args, **kwargs)`` returns a number or an array of any shape (of a tuple, the first
        counts).  A `Loss` or `Map` carries its derivatives.
    *args
        Arguments of `f`.  They are never changed.
    kwargs : mapping, optional
        Keyword arguments of `f`; differentiated only if named in `wrt`.
    grad : callable, array, tuple or dict, optional
        The derivative, if `f` does not carry it: a function with the arguments of `f` (for a
        vector-Jacobian product, a JVP or an HVP the vector follows the positional ones), or its
        result.  A tuple has one array for each of `wrt`, a dict names them.
    wrt : str, int or sequence of them, optional
        The inputs that are differentiated, by name or position.  Default: all floating arrays among
        `args` where the derivative is a tuple or dict, else the first that it fits.
    kind : {"grad", "vjp", "jvp", "jac", "hvp", "hess_diag"}, optional
        What the derivative is.  Default: "grad" if `f` returns a number, "vjp" if an array.
    mode : {"auto", "full", "random", "rows", "complex"}
        Every element; Gaussian directions, at a cost that does not depend on the size; all rows at
        once where they do not depend on each other; complex steps, for an `f` of NumPy functions
        that keeps imaginary parts.  "auto" takes rows where it can, every element where half the
        budget allows, else directions and a sample.
    rtol : float, optional
        Relative error that the derivative may have.  Default: 1e-7, 1e-4, 2e-2 for inputs of 8, 4,
        2 bytes.
    atol : float
        Absolute error that it may have.  0 by default: the gradient of a mean is of size 1/N, and
        any fixed number passes everything from some N on.
    directions : int
        How many, in mode "random".
    eval_dtype : {"float64", "same"}, optional
        Precision of the numeric side.  Default: float64, if `f` gives the same in it.
    reference : callable, optional
        Takes the place of `f` on the numeric side.
    order : {1, 2}
        2 checks the Hessian-vector product of `f` too.
    budget : float
        Seconds.
    max_evals : int, optional
        Evaluations of `f`.
    seed : int
        Of the check's own random numbers.
    nondet : float
        How far two values of `f` at the same place may lie apart.
    top : int
        Elements listed in the report.
    name : str, optional
        Shown in the report; default: that of `f`.
    miss : float
        Probability of a miss that the guarantee of random directions is stated for.
    detect : float, optional
        Relative error, in the norm, that must be found but for `miss`: takes more directions, up to
        64, until it is.
    points : int
        Check so many points: after x itself, x moved at random by a tenth of its spread.
    callback : callable, optional
        Called at most five times a second with an object that has ``done``, ``total``, ``wrong``,
        ``phase`` and ``seconds``.

    Returns
    -------
    GradcheckResult
        True if the derivative is right; `str` gives the report.

    Raises
    ------
    TypeError, ValueError
        The call makes no sense: no derivative is known, a gradient has another shape than its
        input, an unknown name in `wrt`, `f` returns no numbers.
    KeyboardInterrupt
        On Ctrl-C; its attribute ``result`` holds what was known.

    Notes
    -----
    The ladder is Ridders' (doi:10.1016/S0141-1195(82)80057-0), the noise that of Moré and Wild
    (doi:10.1137/100786125).  For a gradient error :math:`e` and a Gaussian direction :math:`d`,
    :math:`e \cdot d` is normal with standard deviation :math:`|e|_2` whatever the shape of
    :math:`e`: that gives the guarantee which mode "random" prints.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> z = np.array([[0.5, -1.0, 2.0], [1.0, 0.0, -0.5]])
    >>> bool(fg.gradcheck(fg.cross_entropy, z, np.array([2, 0])))
    True
    >>> r = fg.gradcheck(lambda x: np.sum(x**2), np.array([1.0, 2.0, -3.0]), grad=lambda x: x)
    >>> r.verdict, r.diagnoses[0].code, r.diagnoses[0].evidence["name"]
    ('FAIL', 'factor', '1/2')
    """
    _check_options(mode, rtol, atol, directions, order, budget, max_evals, nondet, points)
    if not 0 < miss < 1:
        raise ValueError(f"miss must be a probability, over 0 and under 1; got {miss!r}.")
    if detect is not None and not detect > 0:
        raise ValueError(f"detect must be > 0, or None; got {detect!r}.")
    if seed < 0:
        raise ValueError(f"seed must be an integer >= 0; got {seed!r}.")
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be a function; got {type(callback).__name__}.")
    if points > 1 and grad is not None and not callable(grad):
        raise ValueError(
            "points > 1 needs grad as a function: an array is right at one point alone."
        )
    started = time.perf_counter()

    def at(
        args: Sequence[Any], kwargs: Mapping[str, Any] | None, wrt: Any
    ) -> tuple[GradcheckResult, Problem]:
        problem = Problem(f, args, kwargs, grad, wrt, kind, eval_dtype, reference, name)
        run = Run(
            problem,
            mode,
            rtol,
            atol,
            directions,
            budget,
            max_evals,
            seed,
            nondet,
            top,
            callback,
            miss,
            detect,
        )
        run.clock.start = started
        try:
            run.measure()
            if order == 2 and problem.kind in ("grad", "vjp") and Judge(run).result():
                run.second_order()
        except OutOfBudget as stop:
            run.stopped = str(stop)
        except KeyboardInterrupt as interrupt:
            run.stopped = "interrupted"
            interrupt.result = Judge(run).result(interrupted=True)  # type: ignore[attr-defined]
            raise
        return Judge(run).result(), problem

    result, problem = at(args, kwargs, wrt)
    rng = np.random.default_rng([seed, points])
    for _ in range(1, points):
        if not result:
            return result
        there, _ = at(*problem.jittered(rng), [part.key for part in problem.inputs])
        if not there:
            there.notes.append("at x itself the derivative is right; this is a point beside it")
            return there
        result.evals += there.evals
        result.seconds = there.seconds
    if points > 1 and result:
        result.notes.append(f"right at {points} points")
    return result


def _check_options(
    mode: str,
    rtol: Any,
    atol: Any,
    directions: Any,
    order: Any,
    budget: Any,
    max_evals: Any,
    nondet: Any,
    points: Any,
) -> None:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}.")
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2; got {order!r}.")
    for what, value, least in (
        ("rtol", rtol, 0.0),
        ("atol", atol, 0.0),
        ("nondet", nondet, 0.0),
        ("budget", budget, 0.0),
        ("directions", directions, 1),
        ("max_evals", max_evals, 1),
        ("points", points, 1),
    ):
        if value is None and what in ("rtol", "max_evals"):
            continue
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float, np.number))
            or not value >= least
        ):
            raise ValueError(f"{what} must be a number >= {least}; got {value!r}.")
