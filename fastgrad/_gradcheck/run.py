"""One check: which way to measure, and what came of it."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgrad._arrays import finfo
from fastgrad._gradcheck import search as _search
from fastgrad._gradcheck.diagnosis import Diagnosis
from fastgrad._gradcheck.differences import Slopes, Sweep, derivative, difference_noise
from fastgrad._gradcheck.problem import Array, Problem
from fastgrad._gradcheck.search import (
    BELOW_NOISE,
    FAIL,
    MISS,
    NATURAL,
    OPEN,
    PASS,
    UNRESOLVED,
    Clock,
    Direction,
    Search,
    Tolerance,
)
from fastgrad._maps import Loss, Map

RTOL = {8: 1e-7, 4: 1e-4, 2: 2e-2}
"""By the size of the input's dtype: what is demanded of the analytic side."""
MOST = 64
"""Directions at most, where `detect` asks for more."""
MANY_ROWS = 4096
"""Up to so many rows every pair is seen apart."""
SAMPLE = 64
"""Elements measured one by one beside the directions, where an error is dense, and where rows taken
all at once do not settle them."""
COARSE = 8
"""Steps along a direction of an array function; twice as many where an element bends on a smaller
scale.
"""


@dataclass
class Part:
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
    natural: float = 0.0
    """What a derivative of 0 is measured against: the size of what was differentiated."""

    @classmethod
    def blank(cls, name: str, dtype: Any, analytic: Array, tolerance: Tolerance) -> Part:
        """Nothing measured yet."""
        numeric, bar, left, right = np.full((4, *analytic.shape), np.nan)
        status = np.zeros(analytic.shape, np.uint8)
        return cls(name, str(dtype), analytic, numeric, bar, left, right, status, tolerance)

    def judge(self, index: NDArray[np.intp], slopes: Slopes, largest: float) -> None:
        """Take what was measured at flat positions `index`."""
        claims = self.analytic.reshape(-1)[index]
        status, _ = _search.decide(claims, slopes, self.tolerance, largest)
        for array, values in (
            (self.numeric, slopes.value),
            (self.bar, slopes.bar),
            (self.left, slopes.left),
            (self.right, slopes.right),
            (self.status, status),
        ):
            array.reshape(-1)[index] = values


class Run:
    """One check: chooses how to measure, and collects what was measured."""

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
        miss: float = MISS,
        detect: float | None = None,
    ) -> None:
        self.problem, self.mode, self.count = problem, mode, directions
        self.miss, self.detect = miss, detect
        self.done_mode = mode
        self.seed, self.nondet, self.top = seed, nondet, top
        self.rng = np.random.default_rng(seed)
        self.clock = Clock(budget, max_evals, callback, problem)
        self.tolerance = []
        for part in problem.inputs:
            floating = np.dtype(float) if part.dtype.kind in "iub" else part.dtype
            size = floating.itemsize
            demanded = rtol if rtol is not None else RTOL.get(size, 1e-7)
            if part.dtype.name == "bfloat16" and rtol is None:
                demanded = 0.1
            info = finfo(floating)
            tiny = 2.0**info.minexp * float(info.eps)
            self.tolerance.append(Tolerance(demanded, atol, float(info.eps), tiny))
        self.parts: list[Part] = []
        self.search: Search | None = None
        self.directions: list[Direction] = []
        self.guarantee = ""
        self.radius = 0.0
        self.stopped = ""
        self.trouble = ""
        self.mixed: list[Diagnosis] = []
        self.located: set[int] = set()
        self.along_ones: list[tuple[float, float]] = []
        self.noise = 0.0

    # ---- running ---------------------------------------------------------------------------------

    def measure(self) -> None:
        problem = self.problem
        if problem.spread > self.nondet:
            problem.findings["nondeterministic"] = (
                "f is not deterministic: two calls at the same place differ by "
                f"{problem.spread:.3g}"
            )
        if not np.isfinite(problem.at_x).any() and problem.at_x.size:
            self.trouble = (
                f"f is {problem.at_x.reshape(-1)[0]:g} at x: there is no derivative to compare; "
                "check where f is finite."
            )
            return
        kind = problem.kind
        if kind in ("hvp", "hess_diag"):
            self._gradient_itself()
        if kind in ("jvp", "hvp"):
            self._vectors(kind)
        elif kind == "jac":
            self._jacobian()
        elif kind == "hess_diag":
            self._hessian_diagonal()
        else:
            self._first_order()
            self.look_along_ones()
            self.look_at_diagonal()

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
        analytic = self._known(problem.look_twice(v))
        self._both_at_once(analytic)
        rows = None
        began = time.perf_counter()
        s = self.search = Search(problem, v, analytic, self.tolerance, self.clock, self.rng)
        self.noise = s.noise
        per_call = (time.perf_counter() - began) / 8
        self.parts = parts_of(s)
        size = sum(a.size for a in analytic)
        self.clock.total = size
        self.clock.phase = "elements"
        if mode in ("auto", "rows"):
            rows = self._independent_rows(s)
            if mode == "rows" and rows is None:
                raise ValueError(
                    "mode='rows' needs rows that do not depend on each other, and one value (or "
                    f"row of values) for each; {problem.name} has none. Use mode='auto'."
                )
        if mode == "complex":
            self._complex(s)
            self._transforms(s)
            return
        if rows is not None:
            self.done_mode = "rows"
            axis, factor, per_row, middle = rows
            s.rows(per_row, axis, factor, middle)
            problem.reset()
            unsettled = np.flatnonzero(s.status[0] == UNRESOLVED)
            if len(unsettled) <= SAMPLE:  # alone, each gets steps of its own
                s.elements(0, unsettled)
            self._one_direction(s)
            self._transforms(s)
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
            try:
                for which, a in enumerate(analytic):
                    s.elements(which, _search.sample(a.shape, [None] * a.ndim, SAMPLE, self.rng))
            except _search.OutOfBudget as stop:
                # What the directions said stands without it.
                problem.notes.append(f"{stop}: a smaller sample than planned")
                problem.reset()
        if not any(d.failed for d in self.directions):
            self._transforms(s)

    def _known(self, analytic: list[Array]) -> list[Array]:
        """An element of which the value is not finite has no derivative: NaN says nothing else."""
        lost = ~np.isfinite(self.problem.at_x)
        if self.problem.kind == "vjp" and lost.any():
            for a in analytic:
                if a.shape == lost.shape:
                    a[lost & np.isnan(a)] = 0.0
        return analytic

    def _both_at_once(self, analytic: Sequence[Array]) -> None:
        """value_and_grad gives what value and grad give."""
        problem = self.problem
        if problem.kind != "grad":
            return
        for what, one, other in problem.both(analytic):
            gap = np.abs(one - other)
            near = gap <= 1e3 * self.tolerance[0].eps * _largest(np.asarray(other))
            same = near | (one == other) | (np.isnan(one) & np.isnan(other))
            if not np.all(same):
                self.mixed.append(
                    Diagnosis(
                        "inconsistent",
                        f"value_and_grad gives another {what} than {what} itself, by up to "
                        f"{float(np.nanmax(gap)):.3g}",
                        {"what": what},
                    )
                )

    def _gradient_itself(self) -> None:
        """Second derivatives are compared with differences of grad, which must be that of f."""
        problem = self.problem
        if math.prod(problem.value_shape) != 1:
            return
        gradient = problem.at_copy([part.x for part in problem.inputs])
        s = Search(problem, None, gradient, self.tolerance, self.clock, self.rng)
        d, _ = s.direction(s.gaussian(), 0.1)
        problem.reset()
        problem.stand()
        if d.failed:
            self.mixed.append(
                Diagnosis(
                    "inconsistent",
                    f"grad, with whose differences this is compared, is not that of f: along a "
                    f"direction it gives {d.analytic:.6g}, differences of f {d.numeric:.6g}",
                    {"what": "grad"},
                )
            )

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
        problem.stand()
        forward = np.asarray(problem.analytic(u[0], "jvp")[0], float)
        v = s.weight if s.weight is not None else np.ones(problem.value_shape)
        ahead = float(np.sum(np.where(v != 0, v * forward, 0.0)))
        back = s.dot([np.asarray(one, float) for one in u])
        loose = (
            64 * self.tolerance[0].eps * float(np.sum(np.abs(np.where(v != 0, v * forward, 0))))
            + 10 * self.tolerance[0].rtol * s.norm()
            + u[0].size * self.tolerance[0].tiny
        )
        if abs(ahead - back) > loose and not (s.status[0] == FAIL).any():
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
        if len(problem.inputs) != 1 or problem.fresh or "nondeterministic" in problem.findings:
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
                kwargs = {**problem.moving_kwargs, "reduction": "none"}
                kwargs.pop("normalizer", None)  # what a row counts is measured
                return np.array(f(*problem.moving_args, **kwargs))

        out = np.asarray(call(), float)
        weight = np.ones(out.shape) if s.weight is None else s.weight
        if out.shape == shape:

            def fold(value: Array) -> Array:
                v = np.where(weight != 0, weight * value, 0.0)
                folded: Array = np.moveaxis(v, axis, -1).sum(axis=-1).reshape(-1)
                return folded
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
        if problem.kind == "grad" and not self._sums_to_value(s, per_row, factor):
            return None
        return axis, factor, per_row, middle

    def _sums_to_value(self, s: Search, per_row: Callable[[], Array], factor: float) -> bool:
        """Whether every row counts the same: else the rows do not add up elsewhere."""
        problem = self.problem
        part = problem.inputs[0]
        step = 0.1 * _search.scales_of(part.x).small * self.rng.standard_normal(part.shape)
        problem.move([step], 1.0)
        rows, value = factor * per_row(), s.phi()
        problem.reset()
        loose = 1e4 * float(np.finfo(problem.eval_dtype).eps) * float(np.sum(np.abs(rows)))
        return abs(float(np.sum(rows)) - value) <= loose

    def _proved(self, out: Array, shape: tuple[int, ...], axis: int, call: Any) -> bool:
        """Move half of the rows and see the values of the other half stand still, to the bit."""
        problem = self.problem
        part = problem.inputs[0]
        kept = shape[:axis] + shape[axis + 1 :]
        small = _search.scales_of(part.x).small
        number = np.arange(math.prod(kept)).reshape(kept)
        if number.size > MANY_ROWS:  # then by chance
            number = self.rng.permutation(number.size).reshape(kept) % 64
        for bit in range(int(number.max(initial=0)).bit_length()):
            # Of any two rows one moves and the other stands, once each way.
            half = (number >> bit) & 1 == 1
            for moved in (half, ~half):
                self.clock.check(1)
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
        taus: list[float] = []
        failed = None
        current = s
        while len(taus) < self.count or self._detects_too_little(taus):
            j = len(taus)
            if j and self.clock.seconds > self.clock.budget / 2:
                break  # what is left is for finding the place, and the guarantee says how many
            if j and problem.kind == "vjp" and not problem.fixed_cotangent:
                v = self.cotangent()
                problem.stand()
                current = Search(
                    problem,
                    v,
                    self._known(problem.analytic(v)),
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
        self.radius = self._radius(taus)
        left_out = any(d.left_out for d in self.directions)
        if 0 < self.radius < math.inf:
            whose = "product with a random vector" if problem.kind == "vjp" else "gradient"
            self.guarantee = (
                f"an error of {self.radius:.1e} of the {whose}'s norm or more is missed with "
                f"probability at most {self.miss:g} ({len(taus)} directions, at this x"
                + ("; not at elements that are 0, where f has kinks)" if left_out else ")")
            )
        if failed is not None:
            self._locate(failed, reach)
            return
        if left_out:
            self._look_at_zeros(s)

    def _look_at_zeros(self, s: Search) -> None:
        """Some of the elements that directions left out."""
        for which, part in enumerate(self.problem.inputs):
            zeros = np.flatnonzero(part.x == 0)
            few = min(SAMPLE, len(zeros))
            s.elements(which, np.sort(self.rng.choice(zeros, few, replace=False)))

    @property
    def norm(self) -> float:
        """|g|₂ of what was compared along directions, in their units."""
        return 0.0 if self.search is None else self.search.norm()

    def _radius(self, taus: Sequence[float]) -> float:
        """The error, in parts of the norm, that these allowances miss with probability `miss`."""
        norm = self.norm
        if norm == 0:
            # A claim of 0 everywhere is sure only if the bars are rounding and nothing else.
            own = 0.0 if self.search is None else self.search.own_rounding(self.search.gaussian())
            return 0.0 if all(t <= 1e4 * own for t in taus) else math.inf
        if not taus or not all(0 < t < math.inf for t in taus):
            return math.inf
        k = len(taus)
        product = math.exp(math.fsum(map(math.log, taus)) / k)
        return float(math.sqrt(2 / math.pi) * product * self.miss ** (-1 / k) / norm)

    def _detects_too_little(self, taus: Sequence[float]) -> bool:
        wanted = self.detect
        return wanted is not None and len(taus) < MOST and self._radius(taus) > wanted

    def _locate(self, s: Search, reach: float) -> None:
        """Find the wrong elements, or a sample of them where they are many."""
        self.clock.phase = "locate"
        if s is not self.search:
            self.search = s
            self.parts = parts_of(s)
        self._measure_places(s, s.localise(reach, 700))
        wrong, right = (
            sum(int(np.isin(status, codes).sum()) for status in s.status)
            for codes in (FAIL, (PASS, BELOW_NOISE))
        )
        if 8 * wrong < right or not wrong:  # a sample of many, which met few of them or none
            self._measure_places(s, s.localise(reach, 700, few=True))

    def _measure_places(
        self, s: Search, places: Sequence[tuple[int, list[NDArray[np.intp] | None]]]
    ) -> None:
        problem = self.problem
        for which, axes in places:
            shape = problem.inputs[which].shape
            # As many as half of the time that is left allows; wrong ones cost 40 evaluations.
            each = 40 * self.clock.seconds / max(problem.evals, 1)
            room = int(0.5 * (self.clock.budget - self.clock.seconds) / each)
            found = _search.sample(shape, axes, min(SAMPLE, max(8, room)), self.rng)
            s.elements(which, found)
            if axes and not all(a is None for a in axes):
                self.located.add(which)
                # Some places beside them, which are right: a pattern needs both.
                others = _search.sample(shape, [None] * len(shape), len(found) // 2, self.rng)
                s.elements(which, np.setdiff1d(others, found))

    # ---- complex steps ---------------------------------------------------------------------------

    def _complex(self, s: Search) -> None:
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
                f"mode='complex' does not suit {problem.name}: its imaginary part is lost (abs, "
                f"max, real, a comparison or a cast): {probe:.6g} along a direction, where "
                f"differences say {n:.6g}."
            )
        problem.reset()
        found = []
        for which, (part, x) in enumerate(zip(problem.inputs, real, strict=True)):
            flat = part.moving.flat
            values = np.empty(part.size)
            for i, at in enumerate(x.reshape(-1).tolist()):
                if not i % 64:
                    self.clock.check(64)
                flat[i] = complex(at, tiny)
                values[i] = imaginary()
                flat[i] = at
            s.take(which, values, 64 * float(np.finfo(float).eps) * _largest(values))
            found.append(values)
        problem.real_inputs(real)
        self._not_blind(s, found)
        self.parts = parts_of(s)

    def _not_blind(self, s: Search, found: Sequence[Array]) -> None:
        """Complex steps beside differences: at what looks wrong, and at a few places more."""
        problem = self.problem
        by = Search(
            problem, s.weight, s.analytic, self.tolerance, self.clock, self.rng, noise=s.noise
        )
        for which, exact in enumerate(found):
            shape = problem.inputs[which].shape
            few = _search.sample(shape, [None] * len(shape), _search.CONFIRM, self.rng)
            wrong = np.flatnonzero(s.status[which].reshape(-1) == FAIL)
            index = np.union1d(few, wrong)
            by.elements(which, index)
            n, bar = (a[which].reshape(-1)[index] for a in (by.numeric, by.bar))
            rounding = 64 * float(np.finfo(float).eps) * s.rounding[which]
            apart = np.abs(exact[index] - n) - (10 * bar + 1e-6 * np.abs(n) + rounding)
            if np.any(apart > 0):
                place = "[{}]".format(
                    ", ".join(map(str, np.unravel_index(index[np.argmax(apart)], shape)))
                )
                raise ValueError(
                    f"mode='complex' does not suit {problem.name}: its imaginary part is lost "
                    f"(abs, max, real, a comparison or a cast) at {problem.inputs[which].name}"
                    f"{place if shape else ''}, where differences see a slope."
                )
            s.status[which].reshape(-1)[wrong] = by.status[which].reshape(-1)[wrong]

    # ---- derivatives that are arrays along a direction -------------------------------------------

    def along(
        self, at: Callable[[Sequence[Array]], Array], d: Sequence[Array], middle: Array
    ) -> tuple[Slopes, list[Array]]:
        """Slopes of an array function along d, element by element, and d as it is stored."""
        slopes, exact = self._ladder(at, d, middle, COARSE)
        size = np.maximum(np.abs(slopes.value), 1e-6 * _largest(slopes.value))
        if not np.all(slopes.bar <= 1e-3 * size):
            # Some element may bend on a smaller scale than these steps.
            fine = next((n for n in range(2 * COARSE, COARSE + 2, -1) if self._stores(d, n)), 0)
            if fine:
                slopes, exact = self._ladder(at, d, middle, fine)
        return slopes, exact

    def _stores(self, d: Sequence[Array], count: int) -> bool:
        """Whether the smallest of so many steps is more than the spacing of the numbers."""
        spacing = 64 * float(np.finfo(self.problem.eval_dtype).eps)
        least = 0.1 * 4.0 ** (1 - count)
        return all(
            np.all(least * np.abs(one[one != 0]) >= spacing * np.abs(p.x[one != 0]))
            for p, one in zip(self.problem.inputs, d, strict=True)
        )

    def _ladder(
        self,
        at: Callable[[Sequence[Array]], Array],
        d: Sequence[Array],
        middle: Array,
        count: int,
    ) -> tuple[Slopes, list[Array]]:
        problem = self.problem
        steps = 0.1 * 4.0 ** -np.arange(float(count))
        exact = []
        for part, one in zip(problem.inputs, d, strict=True):
            stored = (part.x + (steps[-1] * one).astype(part.x.dtype)) - part.x
            exact.append(np.asarray(stored, float) / steps[-1])

        def shifted(t: float) -> list[Array]:
            return [
                (p.x + (t * one).astype(p.x.dtype)).astype(p.x.dtype)
                for p, one in zip(problem.inputs, exact, strict=True)
            ]

        narrow = problem.eval_dtype.itemsize < 8
        spacing = 3e-4 if narrow else 1e-9
        value = middle.reshape(-1)
        points = np.array([value, *(at(shifted(i * spacing)).reshape(-1) for i in range(1, 7))])
        size = np.abs(value)
        largest = float(np.max(size, initial=0, where=np.isfinite(size)))
        # An element's rounding may come from its row, which is larger than itself.
        floor = 0.5 * float(np.finfo(problem.eval_dtype).eps) * np.maximum(size, 0.1 * largest)
        noise = np.nan_to_num(np.maximum(np.nan_to_num(difference_noise(points)), floor))

        def rungs(steps: Array) -> Slopes:
            self.clock.check(2 * len(steps))
            above = np.array([at(shifted(float(t))).reshape(-1) for t in steps])
            below = np.array([at(shifted(-float(t))).reshape(-1) for t in steps])
            h = np.broadcast_to(steps[:, None], above.shape)
            return derivative(Sweep(h, h, above, below, value, noise))

        slopes = rungs(steps[:COARSE])
        if count > COARSE:
            fine = rungs(steps[COARSE:])
            slopes.take(fine, fine.outdoes(slopes.value, slopes.bar, slopes.step))
        return slopes, exact

    def _compare(
        self,
        name: str,
        analytic: Array,
        slopes: Slopes,
        tolerance: Tolerance,
        dtype: str,
        natural: float,
    ) -> Part:
        out = Part.blank(name, dtype, np.asarray(analytic, float), tolerance)
        out.natural = natural
        out.judge(np.arange(out.analytic.size), slopes, max(_largest(out.analytic), natural))
        return out

    def value_at(self, arrays: Sequence[Array]) -> Array:
        problem = self.problem
        for part, a in zip(problem.inputs, arrays, strict=True):
            np.copyto(part.moving, a)
        problem.mark()
        return np.asarray(problem.value(), float)

    def _gradients_at(self, arrays: Sequence[Array]) -> Array:
        parts = self.problem.at_copy(arrays)
        return np.concatenate([p.reshape(-1) for p in parts])

    def _vectors(self, kind: str) -> None:
        """J·v or H·v for some Gaussian v, every element."""
        problem = self.problem
        self.done_mode = "along directions" if not self.parts else f"{self.done_mode} + {kind}"
        self.clock.total = self.count
        self.clock.phase = "directions"
        scales = [_search.scales_of(p.x) for p in problem.inputs]
        products = []
        for j in range(self.count):
            self.clock.check(22)
            d = [
                s.typical * self.rng.standard_normal(p.shape)
                for s, p in zip(scales, problem.inputs, strict=True)
            ]
            if kind == "jvp":
                problem.reset()
                slopes, exact = self.along(self.value_at, d, problem.at_x)
                problem.reset()
            else:
                middle = self._gradients_at([p.x for p in problem.inputs])
                slopes, exact = self.along(self._gradients_at, d, middle)
            vectors = [np.asarray(e, p.x.dtype) for e, p in zip(exact, problem.inputs, strict=True)]
            vector: Any = (
                tuple(vectors)
                if len(vectors) > 1 or problem.asked(getattr(problem.f, kind, None))
                else vectors[0]
            )
            problem.stand()
            found = problem.analytic(vector, kind)
            if kind == "jvp":
                label = f"J·v{j}" if self.count > 1 else "J·v"
                dtype = str(problem.inputs[0].dtype)
                natural = _largest(problem.at_x)
                one = self._compare(label, found[0], slopes, self.tolerance[0], dtype, natural)
                # What is not finite at x has no derivative.
                one.status[~np.isfinite(problem.at_x)] = OPEN
                self.parts.append(one)
                continue
            products.append((d, found))
            start = 0
            for i, (p, a) in enumerate(zip(problem.inputs, found, strict=True)):
                cut = slopes.picked(slice(start, start + p.size))
                natural = _largest(middle[start : start + p.size])
                start += p.size
                label = p.name if self.count == 1 else f"{p.name}·v{j}"
                self.parts.append(
                    self._compare(label, a, cut, self.tolerance[i], str(p.dtype), natural)
                )
            self.clock.done += 1
        if len(products) > 1:
            (u, hu), (v, hv) = products[:2]
            ahead = sum(float(np.sum(a * b)) for a, b in zip(u, hv, strict=True))
            back = sum(float(np.sum(a * b)) for a, b in zip(v, hu, strict=True))
            size = sum(float(np.sum(np.abs(a * b))) for a, b in zip(u, hv, strict=True))
            # A product may be a difference of terms of the size of the gradient times its vector.
            terms = _largest(middle) * max(sum(_largest(a) for a in one) for one in (u, v))
            eps = self.tolerance[0].eps
            if abs(ahead - back) > (1e3 * eps + self.tolerance[0].rtol) * size + 64 * eps * terms:
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
        out = Part.blank(part.name, part.dtype, found, self.tolerance[0])
        columns = np.arange(found.size).reshape(-1, part.size)
        largest = _largest(found)
        self.clock.total = part.size
        for i, slopes in numeric:
            out.judge(columns[:, i], slopes, largest)
            self.clock.done += 1
        self.parts.append(out)

    def _hessian_diagonal(self) -> None:
        """Elements of the diagonal, by differences of the gradient; of many, a sample."""
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
        small = _search.scales_of(part.x).small.reshape(-1)
        out = Part.blank(part.name, part.dtype, found, self.tolerance[0])
        for i in index.tolist():
            self.clock.check(22)
            d = np.zeros(part.size)
            d[i] = small[i]
            slopes, exact = self.along(self._gradients_at, [d.reshape(part.shape)], middle)
            unit = float(exact[0].reshape(-1)[i])
            one = _search.scaled(slopes.picked(slice(i, i + 1)), 1 / unit)
            out.judge(np.array([i]), one, max(_largest(found), _largest(middle) / unit))
            self.clock.done += 1
        self.parts.append(out)

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

    def look_at_diagonal(self) -> None:
        """Whether a wrong product with a square Jacobian used its diagonal alone."""
        s, problem = self.search, self.problem
        if s is None or s.weight is None or problem.value_shape != problem.inputs[0].shape:
            return
        if len(problem.inputs) != 1:
            return
        wrong = np.flatnonzero(s.status[0].reshape(-1) == FAIL)[:6]
        if len(wrong) < 2 and problem.inputs[0].size > 1:
            return
        for i in wrong.tolist():
            one = np.zeros(problem.value_shape)
            one.reshape(-1)[i] = s.weight.reshape(-1)[i]
            alone = Search(
                problem,
                one,
                [one],
                self.tolerance,
                self.clock,
                self.rng,
                noise=s.noise,
                unknown=True,
            )
            alone.elements(0, np.array([i]))
            a, n = float(s.analytic[0].reshape(-1)[i]), float(alone.numeric[0].reshape(-1)[i])
            if not abs(a - n) <= 1e-6 * abs(n) + 2 * float(alone.bar[0].reshape(-1)[i]):
                return
        self.mixed.append(
            Diagnosis(
                "diagonal",
                "only the diagonal of the Jacobian is used: each value also depends on the other "
                "elements of its row, as in softmax, where ∂yᵢ/∂xⱼ = yᵢ (δᵢⱼ − yⱼ)",
            )
        )

    def look_along_ones(self) -> None:
        """The derivative along ones of each input: what a shift of all coordinates gives."""
        s = self.search
        if s is None or not any((p.status == FAIL).any() for p in self.parts):
            return
        for which, part in enumerate(self.problem.inputs):
            d = [np.zeros(p.shape) for p in self.problem.inputs]
            d[which] = np.full(part.shape, s.scales[which].typical)
            slopes, _ = s.along(d, 0.1 * 4.0 ** -np.arange(5.0))
            unit = s.scales[which].typical
            self.along_ones.append((float(slopes.value[0]) / unit, float(slopes.bar[0]) / unit))


def numerical_columns(check: Run, clock: Clock) -> Iterator[tuple[int, Slopes]]:
    """Columns of the Jacobian of f with respect to its first input, one after the other."""
    problem = check.problem
    part = problem.inputs[0]
    small = _search.scales_of(part.x).small.reshape(-1)
    own = np.abs(np.asarray(part.x, float).reshape(-1))

    def column(i: int, unit: float) -> Slopes:
        clock.check(22)
        d = np.zeros(part.size)
        d[i] = unit
        slopes, exact = check.along(check.value_at, [d.reshape(part.shape)], problem.at_x)
        problem.reset()
        return _search.scaled(slopes, 1 / float(exact[0].reshape(-1)[i]))

    for i in range(part.size):
        slopes = column(i, small[i])
        wide = slopes.bar > 1e-3 * np.abs(slopes.value)
        if 0 < own[i] < 1e-3 * small[i] and wide.any():
            # Such as a logarithm near 0, which bends within the size of x.
            near = column(i, own[i])
            slopes.take(
                near, near.outdoes(slopes.value, slopes.bar, slopes.step * small[i] / own[i])
            )
        yield i, slopes


def parts_of(s: Search) -> list[Part]:
    return [
        Part(
            part.name,
            str(part.dtype),
            s.analytic[i],
            s.numeric[i],
            s.bar[i],
            s.left[i],
            s.right[i],
            s.status[i],
            s.tolerance[i],
            NATURAL * s.natural[i],
        )
        for i, part in enumerate(s.problem.inputs)
    ]


def _largest(a: Array) -> float:
    return float(np.max(np.abs(a), initial=0, where=np.isfinite(a)))
