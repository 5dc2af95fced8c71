"""`gradcheck`: which way to measure, and what the verdict is."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgrad._gradcheck import search as _search
from fastgrad._gradcheck.diagnosis import Diagnosis, Measured, diagnose, from_findings
from fastgrad._gradcheck.differences import Sweep, derivative, difference_noise
from fastgrad._gradcheck.problem import Array, Problem
from fastgrad._gradcheck.result import Element, GradcheckResult, InputReport, Kink
from fastgrad._gradcheck.search import (
    BELOW_NOISE,
    FAIL,
    KINK,
    MISS,
    OPEN,
    PASS,
    UNRESOLVED,
    Clock,
    Direction,
    OutOfBudget,
    Search,
    Tolerance,
)
from fastgrad._maps import Loss, Map
from fastgrad._segments import Segments

MODES = ("auto", "full", "random", "rows", "complex")
RTOL = {8: 1e-7, 4: 1e-4, 2: 2e-2}
"""By the size of the input's dtype: what is demanded of the analytic side."""
SAMPLE = 64
"""Elements measured one by one beside the directions, and where an error is dense."""
HIDDEN = 1e-3
"""An element whose bar exceeds this part of the largest can hide an error that matters."""
ALWAYS_WRONG = ("mutates", "nondeterministic", "transposed")
"""What makes a derivative unusable, however right its numbers are."""


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
    >>> r.verdict, r.pattern
    ('FAIL', 'the gradient is 1/2 times the numeric one: a ½ too many, or a square whose 2 is missing?')
    """
    _check_options(mode, rtol, atol, directions, order, budget, max_evals, nondet)
    started = time.perf_counter()
    problem = Problem(f, args, kwargs, grad, wrt, kind, eval_dtype, reference, name)
    check = _Check(
        problem, mode, rtol, atol, directions, budget, max_evals, seed, nondet, top, callback
    )
    check.clock.start = started
    try:
        check.run()
        if order == 2 and problem.kind in ("grad", "vjp") and check.verdict_so_far() != "FAIL":
            check.second_order()
    except OutOfBudget as stop:
        check.stopped = str(stop)
    except KeyboardInterrupt as interrupt:
        check.stopped = "interrupted"
        interrupt.result = check.result(interrupted=True)  # type: ignore[attr-defined]
        raise
    return check.result()


def _check_options(
    mode: str,
    rtol: Any,
    atol: Any,
    directions: Any,
    order: Any,
    budget: Any,
    max_evals: Any,
    nondet: Any,
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
    ):
        if value is None and what in ("rtol", "max_evals"):
            continue
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float, np.number))
            or not value >= least
        ):
            raise ValueError(f"{what} must be a number >= {least}; got {value!r}.")


@dataclass
class _Part:
    """One array of the comparison, with what was measured of it."""

    name: str
    dtype: str
    analytic: Array
    numeric: Array
    bar: Array
    left: Array
    right: Array
    status: NDArray[np.uint8]
    tolerance: Tolerance


class _Check:
    """One run: chooses the mode, collects the parts, judges."""

    def __init__(
        self,
        problem: Problem,
        mode: str,
        rtol: float | None,
        atol: float,
        directions: int,
        budget: float,
        max_evals: int | None,
        seed: int,
        nondet: float,
        top: int,
        callback: Any,
    ) -> None:
        self.problem, self.mode, self.count = problem, mode, directions
        self.done_mode = mode
        self.seed, self.nondet, self.top = seed, nondet, top
        self.rng = np.random.default_rng(seed)
        self.clock = Clock(budget, max_evals, callback, problem)
        self.tolerance = []
        for part in problem.inputs:
            size = part.dtype.itemsize if part.dtype.kind not in "iub" else 8
            demanded = rtol if rtol is not None else RTOL.get(size, 1e-7)
            if part.dtype.name == "bfloat16" and rtol is None:
                demanded = 0.1
            self.tolerance.append(Tolerance(demanded, atol, _eps(part.dtype)))
        self.parts: list[_Part] = []
        self.search: Search | None = None
        self.directions: list[Direction] = []
        self.guarantee = ""
        self.norm = 0.0
        self.dense: str = ""
        self.stopped = ""
        self.trouble = ""
        self.mixed: list[Diagnosis] = []
        self.along_ones: list[tuple[float, float]] = []
        self.noise = 0.0

    # ---- running ---------------------------------------------------------------------------------

    def run(self) -> None:
        problem = self.problem
        if problem.spread > self.nondet:
            problem.findings["nondeterministic"] = (
                f"f differs by {problem.spread:.3g} between two calls with the same input"
            )
        if not np.isfinite(problem.at_x).any() and problem.at_x.size:
            self.trouble = (
                f"f is {problem.at_x.reshape(-1)[0]:g} at x: there is no derivative to compare; "
                "check where f is finite."
            )
            return
        kind = problem.kind
        if kind in ("jvp", "hvp"):
            self._vectors(kind)
        elif kind == "jac":
            self._jacobian()
        elif kind == "hess_diag":
            self._hessian_diagonal()
        else:
            self._first_order()
            self.look_along_ones()

    def cotangent(self, ones: bool = False) -> Array | None:
        problem = self.problem
        if problem.kind != "vjp":
            return None
        if ones or problem.fixed_cotangent:
            v = np.ones(problem.value_shape)
        else:
            v = self.rng.standard_normal(problem.value_shape)
        # What is not finite at x has no derivative, and does not move the rest.
        return np.where(np.isfinite(problem.at_x), v, 0.0)

    def _first_order(self) -> None:
        problem, mode = self.problem, self.mode
        v = self.cotangent()
        analytic = problem.look_twice(v)
        rows = None
        began = time.perf_counter()
        s = self.search = Search(problem, v, analytic, self.tolerance, self.clock, self.rng)
        self.noise = s.noise
        per_call = (time.perf_counter() - began) / 8
        self.parts = _parts(s)
        size = sum(a.size for a in analytic)
        self.clock.total = size
        self.clock.phase = "elements"
        if mode in ("auto", "rows"):
            rows = self._independent_rows(s)
            if mode == "rows" and rows is None:
                raise ValueError(
                    f"mode='rows' needs rows that do not depend on each other, and one value (or row "
                    f"of values) for each; {problem.name} has none. Use mode='auto'."
                )
        if mode == "complex":
            self._complex(s, analytic)
            return
        if rows is not None:
            self.done_mode = "rows"
            axis, factor, per_row, middle = rows
            s.rows(per_row, axis, factor, middle)
            problem.reset()
            self._one_direction(s)
            return
        predicted = 8 * size * per_call
        room = self.clock.max_evals is None or 6 * size < self.clock.max_evals
        if mode == "full" or (mode == "auto" and predicted <= self.clock.budget / 2 and room):
            self.done_mode = "full"
            for which, a in enumerate(analytic):
                s.elements(which, np.arange(a.size))
            self._transforms(s)
            return
        self.done_mode = "random"
        self._random(s)
        if mode == "auto" and not any(d.failed for d in self.directions):
            self.done_mode = "random + sample"
            self.clock.phase = "sample"
            for which, a in enumerate(analytic):
                s.elements(which, _search.sample(a.shape, [None] * a.ndim, SAMPLE, self.rng))

    def _one_direction(self, s: Search) -> None:
        """The whole of f along one direction: the rows were measured apart from their sum."""
        d, _ = s.direction(s.gaussian(), 0.1)
        if not d.ok:
            # Kinks of many rows lie near; the sum along one direction crosses them.
            self.directions.append(d)

    def _transforms(self, s: Search) -> None:
        """<v, J u> against <Jᵀ v, u>, where f has both."""
        f, problem = self.problem.f, self.problem
        if problem.given is not None or problem.kind != "vjp" or not isinstance(f, Map):
            return
        if not (hasattr(f, "jvp") and hasattr(f, "vjp")) or len(problem.inputs) != 1:
            return
        u = [np.asarray(one, problem.inputs[0].x.dtype) for one in s.gaussian()]
        forward = np.asarray(problem.analytic(u[0], "jvp")[0], float)
        v = s.weight if s.weight is not None else np.ones(problem.value_shape)
        ahead = float(np.sum(np.where(v != 0, v * forward, 0.0)))
        back = s.dot([np.asarray(one, float) for one in u])
        loose = (
            64 * self.tolerance[0].eps * float(np.sum(np.abs(np.where(v != 0, v * forward, 0))))
            + 10 * self.tolerance[0].rtol * s.norm()
        )
        if abs(ahead - back) > loose and s.status_counts()[FAIL] == 0:
            self.mixed.append(
                Diagnosis(
                    "jvp",
                    f"vjp agrees with differences and jvp does not: <v, J u> = {ahead:.6g}, "
                    f"<Jᵀ v, u> = {back:.6g}",
                    {"forward": ahead, "backward": back},
                )
            )

    # ---- rows ------------------------------------------------------------------------------------

    def _independent_rows(self, s: Search) -> tuple[int, float, Callable[[], Array], Array] | None:
        """How to take all rows at once: the axis, what a row counts, its value, and that at x."""
        problem = self.problem
        if len(problem.inputs) != 1 or problem._fresh or "nondeterministic" in problem.findings:
            return None
        part = problem.inputs[0]
        shape = part.shape
        if part.x.ndim < 1 or part.size < 2 or part.key != 0:
            return None
        axis = problem.kwargs.get("axis", -1)
        if axis is None or not isinstance(axis, (int, np.integer)):
            return None
        axis = int(axis) % part.x.ndim
        kept = shape[:axis] + shape[axis + 1 :]
        rows = math.prod(kept)
        if rows < 2:
            return None
        factor = 1.0
        call: Callable[[], NDArray[Any]] = problem.value
        if problem.kind == "grad":
            f = problem.reference
            if not isinstance(f, Loss) or "reduction" not in inspect.signature(f).parameters:
                return None
            if problem.kwargs.get("reduction", "mean") == "none":
                return None

            def call() -> NDArray[Any]:
                problem.evals += 1
                kwargs = {**problem._moving_kwargs, "reduction": "none"}
                return np.asarray(f(*problem._moving_args, **kwargs))

        out = np.asarray(call(), float)
        weight = np.ones(out.shape) if s.weight is None else s.weight
        if out.shape == shape:

            def fold(value: Array) -> Array:
                v = np.where(weight != 0, weight * value, 0.0)
                return np.sum(np.moveaxis(v, axis, -1), axis=-1).reshape(-1)
        elif out.shape == kept:

            def fold(value: Array) -> Array:
                return np.where(weight != 0, weight * value, 0.0).reshape(-1)
        else:
            return None

        def per_row() -> Array:
            return fold(np.asarray(call(), float))

        middle = fold(out)
        if not np.isfinite(middle).all():
            return None
        if problem.kind == "grad":
            total = float(np.sum(middle))
            if not total or not math.isfinite(s.middle) or not s.middle:
                return None
            factor = s.middle / total
        if not self._proved(out, shape, axis, call):
            return None
        return axis, factor, per_row, middle

    def _proved(self, out: Array, shape: tuple[int, ...], axis: int, call: Any) -> bool:
        """Move half of the rows and see the values of the other half stand still, to the bit."""
        problem = self.problem
        part = problem.inputs[0]
        kept = shape[:axis] + shape[axis + 1 :]
        small = _search._scales(part.x).small
        for _ in range(2):
            half = self.rng.random(kept) < 0.5
            for moved in (half, ~half):
                mask = np.broadcast_to(np.expand_dims(moved, axis), shape)
                step = 0.1 * small * self.rng.choice([-1.0, 1.0], size=shape)
                np.copyto(part.moving, np.where(mask, part.x + step, part.x), casting="unsafe")
                now = np.asarray(call(), float)
                problem.reset()
                still = ~mask if out.shape == shape else ~moved
                a, b = now[still], out[still]
                if not np.all((a == b) | ((a != a) & (b != b))):
                    return False
        return True

    # ---- random directions -----------------------------------------------------------------------

    def _random(self, s: Search) -> None:
        problem = self.problem
        self.clock.phase = "directions"
        reach = 0.1
        taus = []
        failed = None
        current = s
        for j in range(self.count):
            if j and problem.kind == "vjp" and not problem.fixed_cotangent:
                v = self.cotangent()
                current = Search(
                    problem,
                    v,
                    problem.analytic(v),
                    self.tolerance,
                    self.clock,
                    self.rng,
                    noise=s.noise,
                )
            d, reach = current.direction(current.gaussian(), reach)
            self.directions.append(d)
            taus.append(d.allowance)
            if d.failed and failed is None:
                failed = current
        self.norm = s.norm()
        k = len(taus)
        if all(t > 0 and math.isfinite(t) for t in taus) and self.norm > 0:
            radius = (
                math.sqrt(2 / math.pi) * math.exp(sum(map(math.log, taus)) / k) * MISS ** (-1 / k)
            )
            self.radius = radius / self.norm
            self.guarantee = (
                f"an error of {self.radius:.1e} of the gradient's norm or more is missed with "
                f"probability at most {MISS:g} ({k} directions, at this x)"
            )
        else:
            self.radius = math.inf if self.norm > 0 else 0.0
        if failed is not None:
            self._locate(failed, reach)

    def _locate(self, s: Search, reach: float) -> None:
        """Find the wrong elements, or a sample of them where they are many."""
        problem = self.problem
        self.clock.phase = "locate"
        if s is not self.search:
            self.search = s
            self.parts = _parts(s)
        places = s.localise(reach, 700)
        for which, axes in places:
            shape = problem.inputs[which].shape
            if axes and all(a is None for a in axes):
                self.dense = problem.inputs[which].name
            found = _search.sample(shape, axes, SAMPLE, self.rng)
            s.elements(which, found)
            if axes and not all(a is None for a in axes):
                # Some places beside them, which are right: a pattern needs both.
                others = _search.sample(shape, [None] * len(shape), 24, self.rng)
                s.elements(which, np.setdiff1d(others, found))
        self.located = [
            (which, [None if a is None else a.tolist() for a in axes]) for which, axes in places
        ]

    # ---- complex steps ---------------------------------------------------------------------------

    def _complex(self, s: Search, analytic: Sequence[Array]) -> None:
        problem = self.problem
        self.done_mode = "complex"
        d = s.gaussian()
        slopes, exact = s.along(d, 0.1 * 4.0 ** -np.arange(8.0))
        real = [part.x for part in problem.inputs]
        problem.complex_inputs()
        tiny = 1e-30

        def imaginary() -> float:
            out = problem.value()
            if s.weight is not None:
                out = np.where(s.weight != 0, s.weight * out, 0.0)
            return float(np.sum(np.imag(out))) / tiny

        try:
            for part, x, one in zip(problem.inputs, real, exact, strict=True):
                part.moving[...] = x + 1j * tiny * one
            probe = imaginary()
        except TypeError as error:
            raise ValueError(
                f"mode='complex' needs an f that takes complex arrays: {error}"
            ) from error
        n, bar = float(slopes.value[0]), float(slopes.bar[0])
        if not abs(probe - n) <= 10 * bar + 1e-6 * abs(n):
            raise ValueError(
                f"mode='complex' does not suit {problem.name}: its imaginary part is lost (abs, max, "
                f"real, a comparison or a cast): {probe:.6g} along a direction, differences say {n:.6g}."
            )
        for which, (part, x) in enumerate(zip(problem.inputs, real, strict=True)):
            part.moving[...] = x
            flat = part.moving.flat
            values = np.empty(part.size)
            for i, at in enumerate(x.reshape(-1).tolist()):
                if not i % 64:
                    self.clock.check(64)
                flat[i] = complex(at, tiny)
                values[i] = imaginary()
                flat[i] = at
            largest = float(np.max(np.abs(values), initial=0))
            bar_ = np.full(part.size, 64 * np.finfo(float).eps * largest)
            a = analytic[which].reshape(-1)
            allowed = (
                self.tolerance[which].rtol * np.maximum(np.abs(a), np.abs(values))
                + self.tolerance[which].atol
            )
            allowed = allowed + bar_
            s.numeric[which].reshape(-1)[:] = values
            s.bar[which].reshape(-1)[:] = bar_
            s.status[which].reshape(-1)[:] = np.where(np.abs(a - values) <= allowed, PASS, FAIL)
        s.flat = False
        self.parts = _parts(s)

    # ---- derivatives that are arrays along a direction -------------------------------------------

    def _along(
        self, at: Callable[[Sequence[Array]], Array], d: Sequence[Array], middle: Array
    ) -> Any:
        """Slopes of an array function along d, element by element."""
        problem = self.problem
        steps = np.concatenate([0.1 * 4.0 ** -np.arange(8.0)])
        exact = []
        for part, one in zip(problem.inputs, d, strict=True):
            stored = (part.x + (steps[-1] * one).astype(part.x.dtype)) - part.x
            exact.append(np.asarray(stored, float) / steps[-1])

        def shifted(t: float) -> list[Array]:
            return [
                (p.x + (t * one).astype(p.x.dtype)).astype(p.x.dtype)
                for p, one in zip(problem.inputs, exact, strict=True)
            ]

        with np.errstate(all="ignore"):
            narrow = problem.eval_dtype.itemsize < 8
            spacing = 3e-4 if narrow else 1e-9
            points = np.array(
                [middle.reshape(-1), *(at(shifted(i * spacing)).reshape(-1) for i in range(1, 7))]
            )
            noise = np.nan_to_num(difference_noise(points))
            size = np.abs(middle.reshape(-1))
            largest = float(np.max(size, initial=0, where=np.isfinite(size)))
            # An element's rounding may come from its row, which is larger than itself.
            noise = np.maximum(
                noise,
                0.5 * float(np.finfo(problem.eval_dtype).eps) * np.maximum(size, 0.1 * largest),
            )
            self.clock.check()
            above = np.array([at(shifted(float(t))).reshape(-1) for t in steps])
            below = np.array([at(shifted(-float(t))).reshape(-1) for t in steps])
        h = np.broadcast_to(steps[:, None], above.shape)
        return derivative(
            Sweep(h, h, above, below, middle.reshape(-1), np.nan_to_num(noise))
        ), exact

    def _compare(
        self, name: str, analytic: Array, slopes: Any, tolerance: Tolerance, dtype: str
    ) -> _Part:
        a = np.asarray(analytic, float)
        flat = a.reshape(-1)
        largest = float(np.max(np.abs(flat), initial=0, where=np.isfinite(flat)))
        status, _ = _search.decide(flat, slopes, tolerance, largest)
        shape = a.shape
        return _Part(
            name,
            dtype,
            a,
            slopes.value.reshape(shape),
            slopes.bar.reshape(shape),
            slopes.left.reshape(shape),
            slopes.right.reshape(shape),
            status.reshape(shape),
            tolerance,
        )

    def _value_at(self, arrays: Sequence[Array]) -> Array:
        problem = self.problem
        for part, a in zip(problem.inputs, arrays, strict=True):
            np.copyto(part.moving, a)
        problem._mark()
        return np.asarray(problem.value(), float)

    def _gradients_at(self, arrays: Sequence[Array]) -> Array:
        parts = self.problem.at_copy(arrays)
        return np.concatenate([p.reshape(-1) for p in parts])

    def _vectors(self, kind: str) -> None:
        """J·v or H·v for some Gaussian v, every element."""
        problem = self.problem
        self.done_mode = "directions"
        self.clock.total = self.count
        self.clock.phase = "directions"
        scales = [_search._scales(p.x) for p in problem.inputs]
        products = []
        for j in range(self.count):
            self.clock.check(22)
            d = [
                s.typical * self.rng.standard_normal(p.shape)
                for s, p in zip(scales, problem.inputs, strict=True)
            ]
            if kind == "jvp":
                problem.reset()
                slopes, exact = self._along(self._value_at, d, problem.at_x)
                problem.reset()
            else:
                middle = self._gradients_at([p.x for p in problem.inputs])
                slopes, exact = self._along(self._gradients_at, d, middle)
            vectors = [np.asarray(e, p.x.dtype) for e, p in zip(exact, problem.inputs, strict=True)]
            vector: Any = (
                tuple(vectors)
                if len(vectors) > 1 or problem._asked(getattr(problem.f, kind, None))
                else vectors[0]
            )
            found = problem.analytic(vector, kind)
            if kind == "jvp":
                label = f"J·v{j}" if self.count > 1 else "J·v"
                part = self._compare(
                    label, found[0], slopes, self.tolerance[0], str(problem.inputs[0].dtype)
                )
                self.parts.append(part)
                continue
            products.append((d, found))
            start = 0
            for i, (p, a) in enumerate(zip(problem.inputs, found, strict=True)):
                cut = _slice_slopes(slopes, start, start + p.size)
                start += p.size
                label = p.name if self.count == 1 else f"{p.name}·v{j}"
                self.parts.append(self._compare(label, a, cut, self.tolerance[i], str(p.dtype)))
            self.clock.done += 1
        if len(products) > 1:
            (u, hu), (v, hv) = products[:2]
            ahead = sum(float(np.sum(a * b)) for a, b in zip(u, hv, strict=True))
            back = sum(float(np.sum(a * b)) for a, b in zip(v, hu, strict=True))
            size = sum(float(np.sum(np.abs(a * b))) for a, b in zip(u, hv, strict=True))
            if (
                abs(ahead - back)
                > 1e3 * self.tolerance[0].eps * size + self.tolerance[0].rtol * size
            ):
                self.mixed.append(
                    Diagnosis(
                        "asymmetric",
                        f"uᵀ(H v) = {ahead:.6g} and vᵀ(H u) = {back:.6g}: a Hessian is symmetric",
                        {"uHv": ahead, "vHu": back},
                    )
                )

    def _jacobian(self) -> None:
        problem = self.problem
        self.done_mode = "full"
        part = problem.inputs[0]
        expected = problem.value_shape + part.shape
        found = problem.analytic()[0]
        if found.shape != expected:
            raise ValueError(
                f"the Jacobian must have the shape of the value and of {part.name}, {expected}; "
                f"got {found.shape}."
            )
        numeric = numerical_columns(self, self.clock)
        columns = found.reshape(-1, part.size)
        largest = float(np.max(np.abs(found), initial=0))
        out = {key: np.full(columns.shape, np.nan) for key in ("value", "bar", "left", "right")}
        status = np.zeros(columns.shape, np.uint8)
        self.clock.total = part.size
        for i, slopes in numeric:
            code, _ = _search.decide(columns[:, i], slopes, self.tolerance[0], largest)
            status[:, i] = code
            for key, array in out.items():
                array[:, i] = getattr(slopes, key)
            self.clock.done += 1
        self.parts.append(
            _Part(
                part.name,
                str(part.dtype),
                found,
                out["value"].reshape(expected),
                out["bar"].reshape(expected),
                out["left"].reshape(expected),
                out["right"].reshape(expected),
                status.reshape(expected),
                self.tolerance[0],
            )
        )

    def _hessian_diagonal(self) -> None:
        """Elements of the diagonal, by differences of the gradient; a sample where there are many."""
        problem = self.problem
        part = problem.inputs[0]
        found = problem.analytic()[0]
        middle = self._gradients_at([p.x for p in problem.inputs])
        index = np.arange(part.size)
        self.done_mode = "full"
        began = time.perf_counter()
        self._gradients_at([p.x for p in problem.inputs])
        each = 24 * (time.perf_counter() - began)
        if each * part.size > self.clock.budget / 2:
            index = _search.sample(part.shape, [None] * part.x.ndim, SAMPLE, self.rng)
            self.done_mode = "sample"
        self.clock.total = len(index)
        small = _search._scales(part.x).small.reshape(-1)
        shape = part.shape
        arrays = {key: np.full(part.size, np.nan) for key in ("value", "bar", "left", "right")}
        status = np.zeros(part.size, np.uint8)
        largest = float(np.max(np.abs(found), initial=0))
        for i in index.tolist():
            self.clock.check(22)
            d = np.zeros(part.size)
            d[i] = small[i]
            slopes, exact = self._along(self._gradients_at, [d.reshape(shape)], middle)
            one = _slice_slopes(slopes, i, i + 1)
            unit = float(exact[0].reshape(-1)[i])
            one = _search._scaled(one, 1 / unit)
            code, _ = _search.decide(found.reshape(-1)[i : i + 1], one, self.tolerance[0], largest)
            status[i] = code[0]
            for key, array in arrays.items():
                array[i] = getattr(one, key)[0]
            self.clock.done += 1
        self.parts.append(
            _Part(
                part.name,
                str(part.dtype),
                found,
                arrays["value"].reshape(shape),
                arrays["bar"].reshape(shape),
                arrays["left"].reshape(shape),
                arrays["right"].reshape(shape),
                status.reshape(shape),
                self.tolerance[0],
            )
        )

    def second_order(self) -> None:
        """The Hessian-vector product beside differences of the gradient that was just checked."""
        problem = self.problem
        if not hasattr(problem.f, "hvp"):
            raise TypeError(
                f"order=2 needs {problem.name}.hvp, which does not exist; pass order=1."
            )
        kind, problem.kind = problem.kind, "hvp"
        try:
            self._vectors("hvp")
        finally:
            problem.kind = kind
        self.done_mode += " + hvp"

    # ---- the verdict -----------------------------------------------------------------------------

    def verdict_so_far(self) -> str:
        return self.result().verdict

    def result(self, interrupted: bool = False) -> GradcheckResult:
        """Everything measured so far, judged."""
        problem = self.problem
        s = self.search
        wrong, unresolved, kinks, worst = self._elements()
        counts = {code: sum(int((p.status == code).sum()) for p in self.parts) for code in range(6)}
        diagnoses = self._diagnoses()
        failed_direction = next((d for d in self.directions if d.failed), None)
        undecided = [d for d in self.directions if not d.ok and not d.failed]
        bad_kinks = [k for k in kinks if not k.valid]
        message = ""
        complete = self.done_mode in ("full", "rows", "complex")
        if self.trouble:
            verdict, message = "UNRESOLVED", f"{problem.name}: {self.trouble}"
        elif counts[FAIL]:
            verdict = "FAIL"
            top = wrong[0]
            places = f"{counts[FAIL]:,} place{'s' if counts[FAIL] != 1 else ''}"
            message = (
                f"{problem.name}: {_letters(problem.kind)}{top.input} wrong at {places}"
                f"{'' if complete else ' of those measured'}, worst {top.place} "
                f"({top.analytic:.4g} against {top.numeric:.4g})."
            )
        elif any(code in problem.findings for code in ALWAYS_WRONG):
            verdict = "FAIL"
            code = next(c for c in ALWAYS_WRONG if c in problem.findings)
            message = f"{problem.name}: {problem.findings[code]}."
        elif any(d.code in ("jvp", "asymmetric") for d in self.mixed):
            verdict, message = "FAIL", f"{problem.name}: {self.mixed[0].text}."
        elif failed_direction is not None and not self._diffuse(failed_direction):
            verdict = "FAIL"
            d = failed_direction
            message = (
                f"{problem.name}: along a random direction the gradient gives {d.analytic:.8g}, "
                f"differences {d.numeric:.8g} ±{d.bar:.1g}; no single element was found."
            )
        elif self.stopped:
            verdict = "UNRESOLVED"
            message = (
                f"{problem.name}: {self.stopped} after {self.clock.done:,} of {self.clock.total:,} "
                "elements, none of them wrong. Raise budget=, or take mode='random'."
            )
        elif counts[UNRESOLVED] or undecided or self._hidden():
            verdict = "UNRESOLVED"
            message = f"{problem.name}: {self._why(unresolved, undecided)}"
        elif self.directions and self.radius_is_poor():
            verdict = "UNRESOLVED"
            message = (
                f"{problem.name}: the bars along random directions are too wide to tell "
                f"(noise of f {self.noise:.1e}); use mode='full', or eval_dtype='float64'."
            )
        elif kinks and not bad_kinks:
            verdict = "KINK"
            message = (
                f"{problem.name}: right, with a valid subgradient at "
                f"{len(kinks)} kink{'s' if len(kinks) != 1 else ''}."
            )
        else:
            verdict = "PASS"
            message = f"{problem.name}: the derivative is right."
        if interrupted:
            verdict = "INTERRUPTED"
            message = (
                f"{problem.name}: interrupted: {self.clock.done:,}/{self.clock.total:,} checked, "
                f"{counts[FAIL]:,} wrong so far."
            )
        known = (
            counts[FAIL]
            if complete and not self.stopped
            else (None if counts[FAIL] or verdict == "FAIL" else 0)
        )
        notes = [*problem.notes]
        if failed_direction is not None and verdict in ("PASS", "KINK"):
            error = abs(failed_direction.analytic - failed_direction.numeric)
            notes.append(
                f"along a random direction the gradient is off by {error / max(self.norm, 1e-300):.1e} of "
                "its norm, spread thinly and within rtol"
            )
        return GradcheckResult(
            verdict=verdict,
            name=problem.name,
            kind=problem.kind,
            mode=self.done_mode,
            message=message,
            inputs=self._reports(),
            worst=worst[: self.top],
            wrong=wrong[:64],
            wrong_count=known,
            kinks=kinks,
            unresolved=unresolved[:64],
            diagnoses=tuple(diagnoses),
            guarantee=self.guarantee,
            noise=self.noise if s is None else s.noise,
            evals=problem.evals,
            derivative_evals=problem.derivative_evals,
            seconds=self.clock.seconds,
            seed=self.seed,
            notes=notes,
            top=self.top,
        )

    def look_along_ones(self) -> None:
        """The derivative along ones of each input, for the hypothesis that everything was shifted."""
        s = self.search
        if s is None or not any((p.status == FAIL).any() for p in self.parts):
            return
        for which, part in enumerate(self.problem.inputs):
            d = [np.zeros(p.shape) for p in self.problem.inputs]
            d[which] = np.full(part.shape, s.scales[which].typical)
            slopes, _ = s.along(d, 0.1 * 4.0 ** -np.arange(5.0))
            unit = s.scales[which].typical
            self.along_ones.append((float(slopes.value[0]) / unit, float(slopes.bar[0]) / unit))

    radius: float = 0.0
    located: Sequence[Any] = ()

    def radius_is_poor(self) -> bool:
        return self.done_mode.startswith("random") and self.radius > 1e-2

    def _diffuse(self, d: Direction) -> bool:
        """Off by less, in its norm, than the relative error that is granted to every element."""
        measured = any((p.status != OPEN).any() for p in self.parts)
        rtol = max(t.rtol for t in self.tolerance)
        return measured and abs(d.analytic - d.numeric) <= 3 * rtol * self.norm + 2 * d.bar

    def _hidden(self) -> bool:
        for i, p in enumerate(self.parts):
            below = p.status == BELOW_NOISE
            if not below.any():
                continue
            sizes = np.maximum(np.abs(p.analytic), np.abs(np.nan_to_num(p.numeric)))
            largest = float(np.max(sizes, initial=0, where=np.isfinite(sizes)))
            if self.search is not None and i < len(self.search.reach):
                largest = max(largest, self.search.reach[i])
            if np.any(p.bar[below] > HIDDEN * largest):
                return True
        return False

    def _why(self, unresolved: list[Element], undecided: list[Direction]) -> str:
        advice = "Try reference= (a NumPy twin), mode='complex', or another x."
        if self.problem.eval_dtype.itemsize < 8:
            advice = "Try eval_dtype='float64', reference= (a NumPy twin), or another x."
        if self.search is not None and self.search.jumps:
            return f"f jumps within the smallest step at {self.search.jumps} places: no derivative there. {advice}"
        if unresolved:
            e = unresolved[0]
            if not math.isfinite(e.bar):
                return f"f is not finite around {e.place}: no difference can be taken. {advice}"
            return (
                f"finite differences cannot tell: at {e.place} the bar ±{e.bar:.1e} is as large as the "
                f"difference {e.error:.1e}; the noise of f is {self.noise:.1e}. {advice}"
            )
        if undecided:
            d = undecided[0]
            return (
                f"finite differences cannot tell: along a random direction the bar ±{d.bar:.1e} is as large "
                f"as the difference {abs(d.analytic - d.numeric):.1e} (noise of f {self.noise:.1e}, or kinks "
                f"on the way). Try mode='full' or 'rows'. {advice}"
            )
        return (
            f"finite differences cannot tell: bars exceed the gradient itself; the noise of f is "
            f"{self.noise:.1e}. {advice}"
        )

    def _elements(self) -> tuple[list[Element], list[Element], list[Kink], list[Element]]:
        wrong: list[Element] = []
        unresolved: list[Element] = []
        kinks: list[Kink] = []
        good: list[Element] = []
        for p in self.parts:
            with np.errstate(all="ignore"):
                size = np.maximum(np.abs(p.analytic), np.abs(p.numeric))
                error = np.abs(p.analytic - p.numeric)
                allowed = p.tolerance.rtol * size + p.tolerance.atol + p.bar
                rel = np.where(size > 0, error / size, 0.0)
                ratio = np.where(allowed > 0, error / allowed, np.where(error > 0, np.inf, 0.0))
            for code, into in ((FAIL, wrong), (UNRESOLVED, unresolved), (PASS, good)):
                index = np.flatnonzero(p.status.reshape(-1) == code)
                # NaN first: nothing is worse.
                weight = np.nan_to_num(ratio.reshape(-1)[index], nan=np.inf, posinf=np.inf)
                if code == FAIL:
                    weight = np.nan_to_num(error.reshape(-1)[index], nan=np.inf, posinf=np.inf)
                for i in index[np.argsort(-weight, kind="stable")[:64]]:
                    into.append(
                        Element(
                            p.name,
                            tuple(int(k) for k in np.unravel_index(int(i), p.status.shape)),
                            *(
                                float(array.reshape(-1)[i])
                                for array in (p.analytic, p.numeric, p.bar, error, rel, ratio)
                            ),
                        )
                    )
            at_kink = np.isfinite(p.left) & np.isfinite(p.right) & np.isin(p.status, (KINK, FAIL))
            for i in np.flatnonzero(at_kink.reshape(-1)):
                kinks.append(
                    Kink(
                        p.name,
                        tuple(int(k) for k in np.unravel_index(int(i), p.status.shape)),
                        float(p.left.reshape(-1)[i]),
                        float(p.right.reshape(-1)[i]),
                        float(p.analytic.reshape(-1)[i]),
                        bool(p.status.reshape(-1)[i] == KINK),
                    )
                )
        if len(self.parts) > 1:
            wrong.sort(key=lambda e: -np.nan_to_num(e.error, nan=np.inf))
            good.sort(key=lambda e: -e.ratio)
        return wrong, unresolved, kinks, wrong or good

    def _reports(self) -> dict[str, InputReport]:
        out = {}
        for p in self.parts:
            measured = p.status != OPEN
            any_measured = bool(measured.any())
            with np.errstate(all="ignore"):
                size = np.maximum(np.abs(p.analytic), np.abs(p.numeric))
                resolved = measured & np.isin(p.status, (PASS, KINK, FAIL))
            out[p.name] = InputReport(
                name=p.name,
                shape=p.status.shape,
                dtype=p.dtype,
                analytic=p.analytic if any_measured else None,
                numeric=p.numeric if any_measured else None,
                bar=p.bar if any_measured else None,
                status=p.status if any_measured else None,
                checked=int(measured.sum()),
                resolved=int(resolved.sum()),
                wrong=int((p.status == FAIL).sum()),
            )
        if not out:
            for part in self.problem.inputs:
                out[part.name] = InputReport(
                    part.name, part.shape, str(part.dtype), None, None, None, None, 0, 0, 0
                )
        return out

    # ---- diagnosis -------------------------------------------------------------------------------

    def _diagnoses(self) -> list[Diagnosis]:
        problem = self.problem
        findings = dict(problem.findings)
        integer = findings.pop("integer", None)
        found = [*self.mixed]
        any_wrong = any((p.status == FAIL).any() for p in self.parts)
        if any_wrong and problem.kind in ("grad", "vjp"):
            for i, p in enumerate(self.parts[: len(problem.inputs)]):
                index = np.flatnonzero(p.status.reshape(-1) != OPEN)
                if not (p.status == FAIL).any() or not len(index):
                    continue
                found += diagnose(self._measured(i, p, index))
        if self.search is not None and self.search.flat and (any_wrong or self._all_zero()):
            if not any(d.code == "flat" for d in found):
                found.insert(
                    0,
                    Diagnosis(
                        "flat",
                        "f does not change with its input at all: argmax, round, a comparison or a cast "
                        "cuts the dependence; train through a smooth surrogate",
                    ),
                )
        if integer and any_wrong:
            found.insert(0, from_findings({"integer": integer})[0])
        leading = [
            code for code in ("mutates", "nondeterministic", "transposed") if code in findings
        ]
        first = from_findings({code: findings.pop(code) for code in leading})
        return [*first, *found, *from_findings(findings)]

    def _all_zero(self) -> bool:
        return all(not np.any(a) for a in (self.search.analytic if self.search else []))

    def _measured(self, i: int, p: _Part, index: NDArray[np.intp]) -> Measured:
        problem = self.problem
        others = [
            (name, value)
            for name, value in (
                *((problem._parameter(k), a) for k, a in enumerate(problem.args)),
                *problem.kwargs.items(),
            )
        ]
        labels, constants = [], []
        for name, value in others:
            if isinstance(value, Segments):
                ids = np.empty(value.order.size, np.intp)
                ids[np.asarray(value.order)] = np.repeat(
                    np.arange(value.num_segments), value.counts
                )
                labels.append((name, ids))
                continue
            if not isinstance(value, (np.ndarray, list)):
                continue
            try:
                array = np.asarray(value)
            except ValueError:
                continue
            if array.dtype.kind in "iub" and array.ndim:
                labels.append((name, array.astype(np.intp)))
            elif (
                array.dtype.kind == "f"
                and array.ndim
                and not any(q.name == name for q in problem.inputs)
            ):
                constants.append((name, array.astype(float)))
        with np.errstate(all="ignore"):
            size = np.maximum(np.abs(p.analytic), np.abs(p.numeric)).reshape(-1)[index]
            slack = 2 * p.bar.reshape(-1)[index] + p.tolerance.rtol * np.nan_to_num(size)
        return Measured(
            name=p.name,
            x=np.asarray(problem.inputs[i].x, float),
            a=p.analytic,
            index=index,
            n=p.numeric.reshape(-1)[index],
            slack=np.nan_to_num(slack, nan=0.0, posinf=0.0),
            wrong=p.status.reshape(-1)[index] == FAIL,
            along_ones=self.along_ones[i] if self.along_ones else None,
            labels=labels,
            constants=constants,
        )


def numerical_columns(check: _Check, clock: Clock) -> Any:
    """Columns of the Jacobian of f with respect to its first input, one after the other."""
    problem = check.problem
    part = problem.inputs[0]
    small = _search._scales(part.x).small.reshape(-1)
    for i in range(part.size):
        clock.check(22)
        d = np.zeros(part.size)
        d[i] = small[i]
        slopes, exact = check._along(check._value_at, [d.reshape(part.shape)], problem.at_x)
        problem.reset()
        yield i, _search._scaled(slopes, 1 / float(exact[0].reshape(-1)[i]))


def _parts(s: Search) -> list[_Part]:
    return [
        _Part(
            part.name,
            str(part.dtype),
            s.analytic[i],
            s.numeric[i],
            s.bar[i],
            s.left[i],
            s.right[i],
            s.status[i],
            s.tolerance[i],
        )
        for i, part in enumerate(s.problem.inputs)
    ]


def _slice_slopes(s: Any, start: int, stop: int) -> Any:
    return type(s)(*(getattr(s, f)[start:stop] for f in s.__dataclass_fields__))


def _letters(kind: str) -> str:
    return {"hvp": "H·v in ", "hess_diag": "diag H in ", "jvp": "J·v in "}.get(kind, "d/d")


def _eps(dtype: np.dtype[Any]) -> float:
    if dtype.name == "bfloat16":
        return 2.0**-7
    if dtype.kind == "f":
        return float(np.finfo(dtype).eps)
    return float(np.finfo(float).eps)
