"""Where numbers come from: elements, rows, directions; and where a wrong gradient hides.

A `Search` holds the analytic derivative of one scalar function of all inputs and fills in the
numeric one.  Elements are taken one by one (`elements`), as whole columns of independent rows
(`rows`), by Gaussian directions (`directions`) and by halving (`localise`).
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgrad._gradcheck.differences import Slopes, Sweep, derivative, difference_noise
from fastgrad._gradcheck.problem import Array, Problem
from fastgrad._maps import Loss

OPEN, PASS, BELOW_NOISE, KINK, FAIL, UNRESOLVED = range(6)
"""Status of an element.  BELOW_NOISE: agrees, but its bar is over a tenth of its value."""

MISS = 1e-6
"""The guarantee of the random directions is stated for this probability of a miss."""
SIGMAS = 5.0
ULPS = {"element": 8.0, "direction": 32.0}
"""Honest rounding of the analytic side, in eps of its dtype, of the largest element or the norm."""
NATURAL = 1e-5
"""A derivative of 0 is known once its bar is below the square of this of |φ| per unit of x."""
UNKNOWN = 1e-10
"""Bar, relative to the slopes, that settles an element whose derivative nobody claims to know."""
CHUNK = 256
CONFIRM = 8
"""So many failures are measured again on a second ladder; further ones stand by the first."""


class OutOfBudget(Exception):
    """Time or evaluations are used up; what is known so far stands."""


@dataclass
class Tolerance:
    """How far the analytic side may be off: rtol of the element, atol, and its own rounding."""

    rtol: float
    atol: float
    eps: float
    tiny: float
    """The smallest number of the dtype: what is below may be 0."""


@dataclass
class Direction:
    """One Gaussian direction and what came of it."""

    analytic: float
    numeric: float
    bar: float
    allowance: float
    ok: bool
    failed: bool
    edge: bool = False
    """F is finite on one side alone."""
    left_out: bool = False
    """It does not move elements that are 0, for f has kinks there."""


class Clock:
    """Budget and progress of one check."""

    def __init__(
        self, budget: float, max_evals: int | None, callback: Any, problem: Problem
    ) -> None:
        self.start = time.perf_counter()
        self.budget, self.max_evals = budget, max_evals
        self.callback, self.problem = callback, problem
        self.done = self.total = self.wrong = 0
        self.phase = "noise"
        self._told = self.start

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start

    def evals_left(self) -> int:
        return sys.maxsize if self.max_evals is None else self.max_evals - self.problem.evals

    def check(self, coming: int = 0) -> None:
        if self.seconds > self.budget:
            raise OutOfBudget(f"the budget of {self.budget:g} s is used up")
        if self.max_evals is not None and self.problem.evals + coming > self.max_evals:
            raise OutOfBudget(f"max_evals={self.max_evals} is used up")
        if self.callback is not None and time.perf_counter() - self._told > 0.2:
            self._told = time.perf_counter()
            self.callback(self)


class Search:
    """The numeric side of one scalar function φ = Σ weight·f of the inputs.

    Parameters
    ----------
    problem : Problem
    weight : (value shape) array or None
        The cotangent; None for a scalar f.
    analytic : list of arrays
        The derivative of φ, one array per input; zeros where `unknown`.
    unknown : bool
        There is nothing to compare with: numbers alone are wanted.
    """

    def __init__(
        self,
        problem: Problem,
        weight: Array | None,
        analytic: Sequence[Array],
        tolerance: Sequence[Tolerance],
        clock: Clock,
        rng: np.random.Generator,
        noise: float | None = None,
        unknown: bool = False,
    ) -> None:
        self.unknown = unknown
        self.problem, self.weight, self.clock, self.rng = problem, weight, clock, rng
        self.analytic = [np.asarray(a, float) for a in analytic]
        self.tolerance = list(tolerance)
        self.scales = [scales_of(part.x) for part in problem.inputs]
        self.numeric = [np.full(p.shape, np.nan) for p in problem.inputs]
        self.bar = [np.full(p.shape, np.nan) for p in problem.inputs]
        self.step = [np.full(p.shape, np.nan) for p in problem.inputs]
        self.left = [np.full(p.shape, np.nan) for p in problem.inputs]
        self.right = [np.full(p.shape, np.nan) for p in problem.inputs]
        self.status = [np.zeros(p.shape, np.uint8) for p in problem.inputs]
        self.reach = [0.0 for _ in problem.inputs]
        self.jumps = 0
        self.flat = True
        problem.reset()
        self.middle = self.phi()
        size = abs(self.middle) if math.isfinite(self.middle) else 0.0
        # A product with a Jacobian may be a difference of terms of the size of its vector.
        pull = 0.0
        if weight is None or not isinstance(problem.f, Loss):
            pull = 1.0 if weight is None else float(np.max(np.abs(weight), initial=0))
        # Per unit of x, or of the size of x where that is larger.
        self.natural = [size / s.unit for s in self.scales]
        self.rounding = [size / s.unit + pull for s in self.scales]
        self.noise = self._noise() if noise is None else noise
        self._confirmed = 0

    def phi(self) -> float:
        out = self.problem.value()
        if self.weight is None:
            if out.size != 1:
                raise TypeError(
                    "f and its reference must return a number each; one of them returned an array "
                    f"of shape {out.shape}."
                )
            return float(out.reshape(()))
        out = np.asarray(out, float)
        return float(np.sum(np.where(self.weight != 0, self.weight * out, 0.0)))

    # ---- noise -----------------------------------------------------------------------------------

    def _noise(self) -> float:
        problem = self.problem
        eps = max(float(np.finfo(problem.eval_dtype).eps), problem.value_eps)
        worst = 0.5 * eps * abs(self.middle)
        spread = problem.spread if math.isfinite(problem.spread) else 0.0
        # One estimate may be low by chance.
        return max(self._noise_along(), self._noise_along(), worst, spread)

    def _noise_along(self) -> float:
        """That of six small steps along a direction."""
        problem = self.problem
        spacing = 3e-4 if problem.eval_dtype.itemsize < 8 else 1e-9
        # Not of signs: all alike they shift every element, along which softmax does not change.
        d = [s.small * self.rng.standard_normal(s.small.shape) for s in self.scales]
        for _ in range(3):
            values = [self.middle]
            for i in range(1, 7):
                problem.move(d, i * spacing)
                values.append(self.phi())
            problem.reset()
            if len(set(values)) > 4 or not np.isfinite(values).all():
                found = float(difference_noise(np.array(values)[:, None])[0])
                return 0.0 if math.isnan(found) else found
            # Values that repeat: the steps are below the resolution of f.
            spacing *= 1e3
        return 0.0

    # ---- elements --------------------------------------------------------------------------------

    def elements(self, which: int, index: NDArray[np.intp]) -> None:
        """Measure the elements of one input at flat positions `index`, in chunks.

        Three steps first; where those do not settle it, a ladder over all scales.
        """
        each = self.clock.seconds / max(self.problem.evals, 1)
        # A chunk is a small part of the budget, for between chunks alone is it looked at.
        most = max(1, int(min(0.05 * self.clock.budget / (6 * each + 1e-9), CHUNK)))
        first = min(32 if len(index) > 512 else 8, len(index), most)
        # The first chunk shows which step suits the function.
        spread = np.unique(np.linspace(0, len(index) - 1, first).astype(int))
        rest = np.delete(np.arange(len(index)), spread)
        exponent = self._first_exponent()
        size = min(most, max(1, self.clock.evals_left() // 12))
        for chunk in (spread, *(rest[i : i + size] for i in range(0, len(rest), size))):
            if not len(chunk):
                continue
            self.clock.check(6 * len(chunk))
            i = index[chunk]
            small = self.scales[which].small.reshape(-1)[i]
            h = small * 2.0 ** np.array([[exponent], [exponent - 1], [exponent - 2]])
            unsettled = self._settle(which, i, self._sweep(which, i, h), last=False)
            # Wrong beyond doubt, as others were on two ladders: the first steps stand.
            error = np.abs(self.analytic[which] - self.numeric[which]).reshape(-1)[unsettled]
            clear = self.bar[which].reshape(-1)[unsettled] < 0.01 * error
            clear &= self.status[which].reshape(-1)[unsettled] == FAIL
            later = clear & (np.cumsum(clear) > CONFIRM - self._confirmed)
            sooner = unsettled[~later]
            if len(sooner):
                exponent = self._wide(which, sooner, exponent)
            status = self.status[which].reshape(-1)
            if later.any() and not np.all(status[unsettled[clear & ~later]] == FAIL):
                # The first steps were wrong of some, so they may be wrong of these.
                exponent = self._wide(which, unsettled[later], exponent)
            self.clock.done += len(chunk)
            self.clock.wrong += int((self.status[which].reshape(-1)[i] == FAIL).sum())

    def _first_exponent(self) -> float:
        """Of 2, for the largest of three steps: truncation h⁶ against noise/h."""
        norm = _norm(s.small * a for s, a in zip(self.scales, self.analytic, strict=True))
        count = sum(a.size for a in self.analytic) or 1
        size = abs(self.middle) if math.isfinite(self.middle) else 0.0
        typical = norm / math.sqrt(count) or size or 1.0
        relative = min(max(self.noise / typical, 1e-17), 1.0)
        return float(np.clip(round(math.log2(relative) / 7 + 1), -8, -2))

    def _wide(self, which: int, index: NDArray[np.intp], exponent: float) -> float:
        """The ladder over all scales, and a second one before anything is called wrong.

        Returns the exponent that suited most of these elements.
        """
        scales = self.scales[which]
        small = scales.small.reshape(-1)[index]
        big = scales.big.reshape(-1)[index]
        slopes = self._sweep(which, index, self._ladder(big, small))
        self.clock.check()
        # From so far that f has become flat nothing but 0 is seen: then the first steps stand.
        value, bar = (a[which].reshape(-1)[index] for a in (self.numeric, self.bar))
        flat = (np.abs(slopes.value) < 10 * slopes.bar) & (slopes.step > 1e3 * small)
        flat &= (np.abs(value) > 2 * bar) & (np.abs(slopes.value) < 1e-3 * np.abs(value))
        self._settle(which, index[~flat], slopes.picked(~flat), last=True)
        self._refine(which, index, slopes)
        suits = np.log2(slopes.step / small)
        suits = suits[np.isfinite(slopes.bar) & np.isfinite(suits)]
        now = self.status[which].reshape(-1)[index]
        wrong = index[(now == FAIL) | ((now == UNRESOLVED) & np.isfinite(slopes.bar))]
        again = wrong[: max(0, CONFIRM - self._confirmed)]
        if len(again):
            self._confirmed += len(again)
            small = scales.small.reshape(-1)[again]
            center = self.step[which].reshape(-1)[again]
            center = np.where(np.isfinite(center) & (center > 0), center, small / 16)
            h = 0.7 * 9.0 * center * 3.0 ** -np.arange(7.0)[:, None]
            self._settle(which, again, self._sweep(which, again, h), last=True, confirm=True)
        return float(np.clip(np.median(suits) + 2, -40, -2)) if len(suits) > 8 else exponent

    def take(self, which: int, values: Array, bar: float) -> None:
        """Settle all elements of one input by derivatives that were found in another way."""
        none = np.full(values.shape, np.nan)
        no = np.zeros(values.shape, bool)
        all_ = np.arange(len(values))
        bars = np.full(values.shape, bar)
        self.flat = False
        found = Slopes(values, bars, np.zeros_like(values), no, none, none, no, no, np.abs(values))
        self._settle(which, all_, found, last=True)

    def _deeper(self, x: Array, small: Array) -> Array:
        """Steps below those of `_ladder`, down to where numbers end."""
        bottom = np.maximum(
            256 * float(np.finfo(self.problem.eval_dtype).eps) * np.abs(x), 1e-14 * small
        )
        top = np.maximum(1e-4 * small, 2 * bottom)
        steps: Array = top * (bottom / top) ** np.linspace(0, 1, 14)[:, None]
        return steps

    def _refine(self, which: int, index: NDArray[np.intp], s: Slopes) -> None:
        """Look closer at edges of the domain, and between the steps where a kink may lie."""
        part = self.problem.inputs[which]
        small = self.scales[which].small.reshape(-1)
        x = np.abs(np.asarray(part.x, float).reshape(-1))
        eps = float(np.finfo(part.x.dtype).eps)
        at_edge = index[s.edge | ~np.isfinite(s.bar)]
        if len(at_edge):
            # Down to the spacing of the numbers, and to x itself: the edge may be at 0.
            top = 1e-3 * small[at_edge]
            bottom = np.maximum(64 * eps * x[at_edge], 1e-3 * x[at_edge] * (x[at_edge] < 1e-9))
            bottom = np.where(x[at_edge] > 0, np.minimum(bottom, 1e-2 * x[at_edge]), 1e-9 * top)
            octaves = float(np.max(np.log2(top) - np.log2(np.maximum(bottom, 1e-320)), initial=2))
            steps = np.linspace(0, 1, min(max(int(octaves / 2) + 2, 8), 40))[:, None]
            near = self._sweep(which, at_edge, top * (bottom / top) ** steps)
            own = 0.25 * x[at_edge] * 4.0 ** -np.arange(8.0)[:, None]
            itself = self._sweep(which, at_edge, np.maximum(own, 1e-323))
            self._keep_better(which, at_edge, near, edge=True)
            self._keep_better(which, at_edge, itself, edge=True)
        wide = s.bar > 1e-4 * np.maximum(np.abs(s.value), np.abs(self._claims(which, index)))
        wide &= s.bar > 100 * self.noise / small[index]
        # What looks wrong, unsure or like a kink may bend on a smaller scale than any step so far.
        doubtful = index[s.kink | wide | (self.status[which].reshape(-1)[index] == FAIL)]
        if len(doubtful):
            h = self._deeper(x[doubtful], small[doubtful])
            self._keep_better(which, doubtful, self._sweep(which, doubtful, h))
        rough = index[wide & ~s.edge & np.isfinite(s.bar) & ~s.kink & ~s.jump]
        if len(rough):
            h = small[rough] * 2.0 ** -np.arange(2.0, 18.0)[:, None]
            self._keep_better(which, rough, self._sweep(which, rough, h))

    def _claims(self, which: int, index: NDArray[np.intp]) -> Array:
        claims: Array = self.analytic[which].reshape(-1)[index]
        return claims

    def _keep_better(
        self, which: int, index: NDArray[np.intp], s: Slopes, edge: bool = False
    ) -> None:
        """Settle by these slopes where they are better, or where both sides exist now."""
        value, bar, step = (
            a[which].reshape(-1)[index] for a in (self.numeric, self.bar, self.step)
        )
        # The slope of one side may be sure of itself, and wrong.
        better = s.outdoes(value, np.where(s.edge, bar, np.inf) if edge else bar, step)
        if better.any():
            self._settle(which, index[better], s.picked(better), last=True)

    def _ladder(self, big: Array, small: Array) -> Array:
        """Steps over all scales that the function may have, its own and 1, largest first."""
        lowest = 1e-3 if self.problem.eval_dtype.itemsize < 8 else 1e-6
        top = 0.25 * np.maximum(big, 1.0)
        octaves = float(np.max(np.log2(top) - np.log2(lowest * small)))
        count = min(2 + math.ceil(octaves / 2), 24)
        return top * 2.0 ** -(max(2.0, octaves / (count - 1)) * np.arange(count))[:, None]

    def _sweep(self, which: int, index: NDArray[np.intp], h: Array) -> Slopes:
        part = self.problem.inputs[which]
        x = part.x.reshape(-1)[index]
        plus = (x + h).astype(part.x.dtype)
        minus = (x - h).astype(part.x.dtype)
        above, below = np.empty(h.shape), np.empty(h.shape)
        flat, phi, mark = part.moving.flat, self.phi, self.problem.mark
        fresh = self.problem.fresh
        for j, i in enumerate(index.tolist()):
            self.clock.check()
            for k in range(len(h)):
                flat[i] = plus[k, j]
                if fresh:
                    mark()
                above[k, j] = phi()
                flat[i] = minus[k, j]
                if fresh:
                    mark()
                below[k, j] = phi()
            flat[i] = x[j]
        if fresh:
            mark()
        wide = x.astype(float)
        up, down = plus.astype(float) - wide, wide - minus.astype(float)
        return self._slopes(up, down, above, below)

    def _slopes(self, up: Array, down: Array, above: Array, below: Array) -> Slopes:
        if self.flat and (np.any(above != self.middle) or np.any(below != self.middle)):
            self.flat = False
        middle = np.full(up.shape[1], self.middle)
        above = np.where(up > 0, above, np.nan)
        below = np.where(down > 0, below, np.nan)
        return derivative(Sweep(up, down, above, below, middle, np.full(up.shape[1], self.noise)))

    def _settle(
        self, which: int, index: NDArray[np.intp], s: Slopes, last: bool, confirm: bool = False
    ) -> NDArray[np.intp]:
        """Decide what can be decided, and return the positions of the rest.

        Before the last ladder the rest is what does not clearly agree; after it, what fails.
        """
        a = self.analytic[which].reshape(-1)[index]
        self.reach[which] = max(self.reach[which], float(np.max(s.reach, initial=0)))
        self.jumps += int(s.jump.sum())
        if self.unknown:
            self.numeric[which].reshape(-1)[index] = s.value
            self.bar[which].reshape(-1)[index] = s.bar
            settled = (s.bar <= UNKNOWN * np.abs(s.value)) | (s.bar <= UNKNOWN * s.reach)
            return index[:0] if last else index[~settled]
        status, allowed = decide(
            a,
            s,
            self.tolerance[which],
            self._largest(which),
            self.natural[which],
            self.rounding[which],
        )
        if confirm:
            # Only what fails on both ladders is wrong.
            status = np.where(
                (status == FAIL) | (status == KINK),
                status,
                np.where(status == PASS, PASS, UNRESOLVED),
            )
        if not last:
            fine = (
                np.isin(status, (PASS, BELOW_NOISE))
                & (s.bar <= np.maximum(1e-5 * np.abs(a), allowed))
                & ~s.kink
                & ~s.edge
            )
        else:
            fine = status != FAIL
        for array, values in (
            (self.numeric, s.value),
            (self.bar, s.bar),
            (self.step, s.step),
            (self.left, s.left),
            (self.right, s.right),
            (self.status, status),
        ):
            array[which].reshape(-1)[index] = values
        fixed = ~np.isfinite(self.problem.inputs[which].x.reshape(-1)[index])
        if fixed.any():
            # Infinity plus a step is infinity: such an element does not move.
            self.status[which].reshape(-1)[index[fixed]] = OPEN
            fine = fine | fixed
        rest: NDArray[np.intp] = index[~fine]
        return rest

    def _largest(self, which: int) -> float:
        a = np.abs(self.analytic[which])
        return float(np.max(a, initial=0, where=np.isfinite(a)))

    # ---- independent rows ------------------------------------------------------------------------

    def rows(self, per_row: Callable[[], Array], axis: int, factor: float, middle: Array) -> None:
        """Measure all elements of the only input, one column of every row at a time.

        `per_row` gives one value for every row, `factor` is what it counts in φ.
        """
        part = self.problem.inputs[0]
        x = np.moveaxis(np.asarray(part.x, float), axis, -1).reshape(-1, part.shape[axis])
        moving = np.moveaxis(part.moving, axis, -1)
        a = np.moveaxis(self.analytic[0], axis, -1).reshape(x.shape)
        small = np.moveaxis(self.scales[0].small, axis, -1).reshape(x.shape)
        big = np.moveaxis(self.scales[0].big, axis, -1).reshape(x.shape)
        noise = self._row_noise(
            per_row, middle, np.moveaxis(self.scales[0].small, axis, -1), moving
        )
        # Rounding of the analytic side is that of its row: another row may be 1e30 times as large.
        largest = np.max(np.abs(a), axis=1, initial=0, where=np.isfinite(a))
        natural = np.abs(factor * middle) / self.scales[0].unit
        rounding = natural + self.rounding[0]
        for column in range(x.shape[1]):

            def judge(s: Slopes, of: int = column) -> tuple[NDArray[np.uint8], Array]:
                claim = a[:, of]
                return decide(
                    claim, scaled(s, factor), self.tolerance[0], largest, natural, rounding
                )

            self.clock.check(6)
            exponents = -5.0 - np.arange(3.0)[:, None]
            s = self._column(
                per_row, moving, x, column, small[:, column] * 2.0**exponents, noise, middle
            )
            status, allowed = judge(s)
            rough = (
                (status != PASS)
                | (factor * s.bar > np.maximum(1e-5 * np.abs(a[:, column]), allowed))
                | s.kink
            )
            if rough.any():
                h = self._ladder(big[:, column], small[:, column])
                self.clock.check(2 * len(h))
                wide = self._column(per_row, moving, x, column, h, noise, middle)
                s.take(wide, rough)
                status, _ = judge(s)
            doubtful = (status == FAIL) | s.kink
            if doubtful.any():
                h = self._deeper(x[:, column], small[:, column])
                self.clock.check(2 * len(h))
                near = self._column(per_row, moving, x, column, h, noise, middle)
                s.take(near, doubtful & near.outdoes(s.value, s.bar, s.step))
                status, _ = judge(s)
            if (status == FAIL).any():
                center = np.where(s.step > 0, s.step, small[:, column] / 16)
                again = self._column(
                    per_row,
                    moving,
                    x,
                    column,
                    6.3 * center * 3.0 ** -np.arange(7.0)[:, None],
                    noise,
                    middle,
                )
                second, _ = judge(again)
                status = np.where(
                    (status == FAIL) & (second != FAIL),
                    np.where(second == PASS, PASS, UNRESOLVED),
                    status,
                )
            status = np.where(np.isfinite(x[:, column]), status, OPEN)
            self.jumps += int(s.jump.sum())
            self.reach[0] = max(self.reach[0], abs(factor) * float(np.max(s.reach, initial=0)))
            for array, values in (
                (self.numeric, factor * s.value),
                (self.bar, abs(factor) * s.bar),
                (self.left, factor * s.left),
                (self.right, factor * s.right),
                (self.status, status),
            ):
                target = np.moveaxis(array[0], axis, -1)
                target[..., column] = values.reshape(target.shape[:-1])
            self.clock.done += len(x)
            self.clock.wrong += int((status == FAIL).sum())

    def _row_noise(self, per_row: Any, middle: Array, small: Array, moving: Any) -> Array:
        spacing = 3e-4 if self.problem.eval_dtype.itemsize < 8 else 1e-9
        base = moving.copy()
        d = small * self.rng.standard_normal(small.shape)  # not signs, as in _noise
        values = [middle]
        for i in range(1, 7):
            moving[...] = base + i * spacing * d
            values.append(per_row())
        moving[...] = base
        own = np.nan_to_num(difference_noise(np.array(values)), nan=0.0)
        size = np.abs(middle)
        floor = 0.5 * float(np.finfo(self.problem.eval_dtype).eps) * size
        # One row's estimate may be low by chance; the others', as parts of their values, help.
        shared = np.sqrt(np.nanmean(np.where(size > 0, own / np.where(size > 0, size, 1), 0) ** 2))
        noise: Array = np.nan_to_num(np.maximum(np.maximum(own, floor), shared * size))
        return noise

    def _column(
        self,
        per_row: Any,
        moving: Any,
        x: Array,
        column: int,
        h: Array,
        noise: Array,
        middle: Array,
    ) -> Slopes:
        now = x[:, column]
        shape = moving.shape[:-1]
        up, down = np.empty(h.shape), np.empty(h.shape)
        above, below = np.empty(h.shape), np.empty(h.shape)
        for k in range(len(h)):
            moving[..., column] = (now + h[k]).reshape(shape)
            up[k] = np.asarray(moving[..., column], float).reshape(-1) - now
            above[k] = per_row()
            moving[..., column] = (now - h[k]).reshape(shape)
            down[k] = now - np.asarray(moving[..., column], float).reshape(-1)
            below[k] = per_row()
        moving[..., column] = now.reshape(shape)
        if self.flat and (np.any(above != middle) or np.any(below != middle)):
            self.flat = False
        above = np.where(up > 0, above, np.nan)
        below = np.where(down > 0, below, np.nan)
        return derivative(Sweep(up, down, above, below, middle, noise))

    # ---- directions ------------------------------------------------------------------------------

    def gaussian(self) -> list[Array]:
        """A direction, in units of each input's own scale."""
        return [
            s.typical * self.rng.standard_normal(part.shape)
            for s, part in zip(self.scales, self.problem.inputs, strict=True)
        ]

    def norm(self) -> float:
        """|g|₂ in the units of `gaussian`."""
        return _norm(s.typical * a for s, a in zip(self.scales, self.analytic, strict=True))

    def along(self, d: Sequence[Array], steps: Array) -> tuple[Slopes, list[Array]]:
        """The derivative along d, and d as it is stored: x ± t·d are exact for these steps."""
        problem = self.problem
        least = float(steps[-1])
        exact = []
        for part, one in zip(problem.inputs, d, strict=True):
            stored = (part.x + (least * one).astype(part.x.dtype)) - part.x
            stored = np.where(np.isfinite(part.x), stored, 0)
            exact.append(np.asarray(stored, float) / least)
        above, below = [], []
        for t in steps:
            problem.move(exact, float(t))
            above.append(self.phi())
            problem.move(exact, -float(t))
            below.append(self.phi())
        problem.reset()
        h = np.asarray(steps, float)[:, None]
        return self._slopes(h, h, np.array(above)[:, None], np.array(below)[:, None]), exact

    def dot(self, d: Sequence[Array]) -> float:
        return math.fsum(
            float(np.sum(np.where(one != 0, a * one, 0.0)))
            for a, one in zip(self.analytic, d, strict=True)
        )

    def direction(self, d: list[Array], reach: float) -> tuple[Direction, float]:
        """Compare along one direction; also the largest step that suits it."""
        self.clock.check(10)
        steps = reach * 2.0 ** -np.arange(5.0)
        slopes, exact = self.along(d, steps)
        a = self.dot(exact)
        norm = self.norm()
        rounding = SIGMAS * ULPS["direction"] * max(t.eps for t in self.tolerance) * norm
        if norm == 0:
            # Of a claim of 0 everywhere only steps of all scales tell: f may be flat from afar.
            for start in (2.0, 7.0, 12.0):
                found, stored = self.along(d, reach * 4.0 ** -(start + np.arange(5.0)))
                better = found.outdoes(slopes.value, slopes.bar, slopes.step)
                if better and self._moves(stored, d):
                    slopes, exact = found, stored
        settled = float(slopes.bar[0]) <= max(1e-7 * norm, rounding) and not slopes.kink[0]
        if not settled:
            # Down the scales, for a bend or a kink nearer than the steps; up, if x is tiny.
            others = [reach * 4.0 ** -np.arange(2.0, 11.0)]
            if slopes.edge[0] or not np.isfinite(slopes.bar[0]):
                others.append(reach * 4.0 ** -np.arange(11.0, 24.0))
            typical = max(s.typical for s in self.scales)
            if typical < 0.1:
                others.append(0.25 / typical * 2.0 ** -np.arange(5.0))
            for other in others:
                found, stored = self.along(d, other)
                if not self._moves(stored, d):
                    continue
                worse = slopes.edge[0] or not np.isfinite(slopes.bar[0])
                if float(found.bar[0]) < float(slopes.bar[0]) or (worse and not found.edge[0]):
                    slopes, exact = found, stored
                    a = self.dot(exact)
                    if float(found.bar[0]) < 1e-3 * norm:
                        reach = 4.0 * float(found.step[0])
        if slopes.kink[0]:
            # Elements that are exactly 0 are where abs and relu bend: the others can be told.
            elsewhere = [
                np.where(part.x == 0, 0.0, one)
                for part, one in zip(self.problem.inputs, d, strict=True)
            ]
            known = all(np.isfinite(a).all() for a in self.analytic)
            if known and any(map(np.any, elsewhere)) and not all(map(np.array_equal, elsewhere, d)):
                result, reach = self.direction(elsewhere, reach)
                result.left_out = True
                return result, reach
        result = self._compare(a, slopes, rounding, exact)
        if result.failed:
            near, stored = self.along(d, reach * 4.0 ** -np.arange(11.0, 20.0))
            if self._moves(stored, d) and float(near.bar[0]) < 1e-3 * norm and not near.edge[0]:
                closer = self._compare(self.dot(stored), near, rounding, stored)
                if not closer.failed:
                    result = closer
        if result.failed:
            for up in 3.0 ** np.arange(1.0, 7.0):  # till the least of the steps is stored
                steps = 0.7 * up * float(slopes.step[0]) * 3.0 ** -np.arange(5.0)
                again, exact = self.along(d, steps)
                if self._moves(exact, d):
                    break
            second = self._compare(self.dot(exact), again, rounding, exact)
            if not self._moves(exact, d):
                result.failed = False  # one ladder alone says so
            elif not second.failed:
                result = second
        return result, reach

    def own_rounding(self, d: Sequence[Array]) -> float:
        """What the analytic side may say along d of a function that does not move at all."""
        return sum(
            ULPS["direction"] * t.eps * r * _norm([one])
            for t, r, one in zip(self.tolerance, self.rounding, d, strict=True)
        )

    def _moves(self, stored: Sequence[Array], d: Sequence[Array]) -> bool:
        """Whether steps move all that they should, masks such as -1e9 apart.

        Those below the spacing of the numbers move nothing, and so acquit of everything.
        """
        return all(
            np.all((now != 0) | (one == 0) | _masked(np.asarray(part.x, float)))
            for part, now, one in zip(self.problem.inputs, stored, d, strict=True)
        )

    def _compare(self, a: float, s: Slopes, rounding: float, d: list[Array]) -> Direction:
        n, bar = float(s.value[0]), float(s.bar[0])
        if s.kink[0]:
            # Kinks that bend to both sides leave more room than the two slopes of their sum: as
            # much counts as a bar, which says in the guarantee what could be missed.
            low, high = sorted((float(s.left[0]), float(s.right[0])))
            n = min(max(a, low), high)
            bar += high - low
        if n == 0 and s.reach[0] == 0:
            # f does not move at all, and what a says of it is its own rounding.
            rounding += self.own_rounding(d)
        error = abs(a - n)
        ok = error <= bar + rounding
        ok = ok and not s.edge[0]
        failed = math.isnan(a) or (error > 2 * bar + rounding and math.isfinite(bar))
        failed = failed and not s.edge[0]  # what lies beyond the edge bends the slope
        return Direction(a, n, bar, bar + rounding, ok, failed, bool(s.edge[0]))

    # ---- localise --------------------------------------------------------------------------------

    def localise(
        self, reach: float, evals: int, few: bool = False
    ) -> list[tuple[int, list[NDArray[np.intp] | None]]]:
        """Which inputs are wrong, and for each axis which indices; None where it is most of them.

        Directions that live on a part of the indices of one axis disagree only if the error touches
        that part: halve it until single indices are left.  With `few`, two of them at most, for
        errors that are too many to follow and too rare for a sample.
        """
        stop = self.problem.evals + evals
        found = []
        for which, part in enumerate(self.problem.inputs):
            if len(self.problem.inputs) > 1 and not self._disagrees(which, None, None, reach):
                continue
            axes: list[NDArray[np.intp] | None] = []
            for axis, length in enumerate(part.shape):
                axes.append(self._live(which, axis, length, reach, stop, few))
            found.append((which, axes))
        return found

    def _live(
        self, which: int, axis: int, length: int, reach: float, stop: int, few: bool
    ) -> NDArray[np.intp] | None:
        spans, everywhere = [(0, length)], True
        most = 64 if self.problem.inputs[which].x.ndim == 1 else 8
        while any(b - a > 1 for a, b in spans):
            halves = []
            for a, b in spans:
                if b - a == 1:
                    halves.append((a, b))
                    continue
                middle = (a + b) // 2
                halves += [
                    (p, q)
                    for p, q in ((a, middle), (middle, b))
                    if self._disagrees(which, axis, (p, q), reach)
                ]
                if self.problem.evals > stop:
                    return None
            if few:
                everywhere = everywhere and len(halves) == 2 * len(spans)
                halves = halves[:2]
            if len(halves) > most or not halves:
                return None
            spans = halves
        return None if few and everywhere else np.array([a for a, _ in spans], np.intp)

    def _disagrees(
        self, which: int, axis: int | None, span: tuple[int, int] | None, reach: float
    ) -> bool:
        self.clock.check(6)
        d = [np.zeros(p.shape) for p in self.problem.inputs]
        one = self.gaussian()[which]
        if axis is None or span is None:
            d[which] = one
        else:
            cut = [slice(None)] * one.ndim
            cut[axis] = slice(*span)
            d[which][tuple(cut)] = one[tuple(cut)]
        slopes, exact = self.along(d, reach * np.array([1.0, 0.5, 0.25]))
        part = _norm([self.analytic[which] * exact[which]])
        rounding = SIGMAS * ULPS["direction"] * self.tolerance[which].eps * part
        # A kink on the way: the bar says so.
        c = self._compare(self.dot(exact), slopes, rounding, exact)
        return c.failed


@dataclass
class Scales:
    """Steps per element: `small` follows the spread of its row, `big` its size too."""

    small: Array
    big: Array
    typical: float
    unit: float


def scales_of(x: NDArray[Any]) -> Scales:
    """Units in which the function may be expected to bend.

    The spread within a row, not the size: logits near 1e6 that differ by 1 bend on the scale of 1.
    """
    wide = np.asarray(x.real, float)
    wide = np.where(np.isfinite(wide), wide, 0.0)
    far = _masked(wide)
    if far.any():
        # It tells nothing of the others, and has its own size for a scale.
        count = np.sum(~far, axis=-1, keepdims=True)
        middle = np.sum(np.where(far, 0.0, wide), axis=-1, keepdims=True) / np.maximum(count, 1)
        s = scales_of(np.where(far, np.where(count > 0, middle, 0.0), wide))
        own = np.abs(wide)
        return Scales(np.where(far, own, s.small), np.where(far, own, s.big), s.typical, s.unit)
    peak = float(np.max(np.abs(wide), initial=0)) or 1.0
    unit = wide / peak
    rms = math.sqrt(float(np.mean(unit**2))) if x.size else 1.0
    center = unit.mean(axis=-1, keepdims=True) if x.ndim else unit
    spread = (
        np.sqrt(np.mean((unit - center) ** 2, axis=-1, keepdims=True)) if x.ndim else np.zeros(())
    )
    overall = float(np.std(unit)) if x.size else 0.0
    big = np.maximum(np.abs(unit), rms) * peak
    # A spread of rounding alone is none.
    floor = 16 * float(np.finfo(x.real.dtype).eps) * np.abs(center)
    small = np.where(
        spread > floor,
        spread,
        overall if overall > 1e-9 * rms else np.maximum(np.abs(unit), rms),
    )
    small = np.maximum(small, np.abs(unit - center) if x.ndim else 0) * peak
    small = np.broadcast_to(small, x.shape)
    small = np.where(small > 0, small, 1.0)
    big = np.maximum(np.where(big > 0, big, 1.0), small)
    typical = float(np.median(small)) if x.size else 1.0
    unit_ = max(1.0, float(np.median(big))) if x.size else 1.0
    return Scales(small, big, typical, unit_)


def _masked(x: Array) -> NDArray[np.bool_]:
    """Elements such as -1e9 or finfo.min: below minus a million and beyond a gap of 10,000, or of
    either sign beyond one of 1e8.
    """
    sizes = np.sort(np.abs(x), axis=None)
    if x.ndim == 0 or not sizes.size or sizes[-1] < 1e6:
        return np.zeros(x.shape, bool)

    def beyond(gap: float) -> NDArray[np.bool_]:
        above = sizes[1:][(sizes[1:] >= 1e6) & (sizes[1:] / gap > sizes[:-1])]
        return np.abs(x) >= (above[0] if above.size else np.inf)

    return ((x < 0) & beyond(1e4)) | beyond(1e8)


def _norm(arrays: Iterable[Array]) -> float:
    """Euclidean, of all arrays together; what is not finite does not count."""
    kept = [np.where(np.isfinite(a), np.abs(a), 0.0) for a in arrays]
    largest = max((float(np.max(a, initial=0)) for a in kept), default=0.0)
    if not largest:
        return 0.0
    return largest * math.sqrt(math.fsum(float(np.sum((a / largest) ** 2)) for a in kept))


def scaled(s: Slopes, factor: float) -> Slopes:
    return Slopes(
        factor * s.value,
        abs(factor) * s.bar,
        s.step,
        s.kink,
        factor * s.left,
        factor * s.right,
        s.jump,
        s.edge,
        abs(factor) * s.reach,
    )


def decide(
    a: Array,
    s: Slopes,
    tolerance: Tolerance,
    largest: float | Array,
    natural: float | Array = 0.0,
    rounding: float | Array = np.inf,
) -> tuple[NDArray[np.uint8], Array]:
    """Status of every element, and what the analytic side was allowed to be off.

    `largest` is the size of the elements beside it, whose rounding it may share.  Where nothing
    tells how small is zero: `natural` is |φ| per unit of x, `rounding` what the terms of a sum
    that cancels may have been.
    """
    size = np.maximum(np.abs(a), np.where(np.isfinite(s.value), np.abs(s.value), 0))
    allowed = tolerance.rtol * size + tolerance.atol + 4 * tolerance.tiny
    allowed = allowed + ULPS["element"] * tolerance.eps * np.minimum(largest, rounding)
    error = np.abs(a - s.value)
    low, high = np.minimum(s.left, s.right), np.maximum(s.left, s.right)
    slack = allowed + np.where(np.isfinite(s.bar), s.bar, 0) + 1e-6 * (high - low)
    inside = s.kink & (a >= low - slack) & (a <= high + slack)
    status = np.full(a.shape, UNRESOLVED, np.uint8)
    status[error <= allowed + s.bar] = PASS
    known = np.maximum(np.maximum(1e-6 * largest, 1e-6 * s.reach), NATURAL**2 * natural)
    zero = (a == 0) & (s.bar <= known)
    status[(status == PASS) & (s.bar > 0.1 * size) & (s.bar > allowed) & ~zero] = BELOW_NOISE
    status[error > allowed + 2 * s.bar] = FAIL
    # The slope is 0 as far as anybody can tell, and what a says of it is its own rounding.
    double = float(np.finfo(float).eps)
    none = np.abs(s.value) <= s.bar
    own = ULPS["direction"] * double * np.where(np.isfinite(rounding), rounding, 0)
    status[none & np.isfinite(s.bar) & (np.abs(a) <= own)] = PASS
    still = (s.value == 0) & (s.reach == 0) & np.isfinite(s.bar)
    narrow = tolerance.eps / double
    status[still & (np.abs(a) <= own * narrow) & (status == FAIL)] = UNRESOLVED
    # Of a narrow type that is much: it passes as a rounding of the elements beside it, or of 1.
    beside = ULPS["direction"] * tolerance.eps * np.maximum(largest, 1.0)
    status[still & (np.abs(a) <= np.minimum(own * narrow, beside))] = PASS
    status[s.kink] = np.where(inside, KINK, FAIL)[s.kink]
    status[~np.isfinite(s.bar) | s.jump] = UNRESOLVED
    # One side of a singularity may look straight from where the steps are.
    status[s.edge & (status == FAIL) & (s.bar > 1e-6 * np.abs(s.value))] = UNRESOLVED
    # Of a finite function the derivative is a number.
    status[np.isnan(a) & np.isfinite(s.value)] = FAIL
    status[np.isinf(a) & np.isfinite(s.bar)] = FAIL
    return status, allowed


def sample(
    shape: tuple[int, ...], axes: Iterable[Any], count: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Flat positions worth looking at: corners, ends of axes, whole lines, and some at random.

    `axes` narrows each axis to some indices, or None for all.
    """
    grids = [
        np.arange(n) if live is None else np.asarray(live)
        for n, live in zip(shape, axes, strict=True)
    ]
    total = math.prod(len(g) for g in grids)
    if total <= count:
        return (
            np.ravel_multi_index(np.meshgrid(*grids, indexing="ij"), shape).reshape(-1)
            if shape
            else np.zeros(1, np.intp)
        )
    picked: set[int] = set()

    def add(points: Sequence[NDArray[np.intp]]) -> None:
        flat = np.ravel_multi_index(tuple(points), shape).reshape(-1)
        picked.update(int(i) for i in flat[: max(0, count - len(picked))])

    ends = [np.unique(g[[0, -1]]) for g in grids]
    if len(shape) <= 4:
        add(np.meshgrid(*ends, indexing="ij"))
    for axis, grid in enumerate(grids):
        # A line along every axis, through a place inside.
        line = [g[len(g) // 2 : len(g) // 2 + 1] for g in grids]
        step = max(1, len(grid) // 24)
        line[axis] = np.unique(np.concatenate([grid[::step], grid[-2:]]))
        add(np.meshgrid(*line, indexing="ij"))
    while len(picked) < count:
        add([rng.choice(g, size=1) for g in grids])
    return np.array(sorted(picked), np.intp)
