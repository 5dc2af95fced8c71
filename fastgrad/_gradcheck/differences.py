"""Numbers from differences: derivatives with error bars, the noise of a function, kinks.

Nothing here knows what is checked.  A *sweep* holds the values of a function at ``x ± h`` for a
ladder of steps `h`, for many elements or outputs at once: arrays of shape (steps, elements), the
largest step first.  `derivative` makes of it one number with an error bar per element.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NOISE = 2.0
"""The noise of a difference counts this often in a bar: two standard deviations of each value."""
KINK = 5.0
"""A jump of the slope counts from this many bars on."""
RELATIVE_KINK = 1e-6
"""And from this part of the slope on: below, rounding of the steps looks the same."""


@dataclass
class Sweep:
    """Values of a function on both sides of x.

    Attributes
    ----------
    up, down : (K, E) array
        The steps that were really made, as they are stored; largest first, positive.
    above, below : (K, E) array
        Values at ``x + up`` and ``x - down``.
    middle : (E,) array
        Values at x.
    noise : (E,) array
        Standard deviation of one value.
    """

    up: Array
    down: Array
    above: Array
    below: Array
    middle: Array
    noise: Array


@dataclass
class Slopes:
    """What a sweep tells: per element, the derivative and its bar, and the two one-sided slopes.

    Where there is no kink, `left` and `right` are NaN.  `jump` marks where the function itself
    jumps, `edge` where it is finite on one side alone and `value` is the slope of that side.
    `reach` is the largest slope between x and the farthest step: what the function does there.
    """

    value: Array
    bar: Array
    step: Array
    kink: NDArray[np.bool_]
    left: Array
    right: Array
    jump: NDArray[np.bool_]
    edge: NDArray[np.bool_]
    reach: Array

    def picked(self, which: Any) -> Slopes:
        """Those of some elements."""
        return Slopes(*(getattr(self, f)[which] for f in self.__dataclass_fields__))

    def take(self, other: Slopes, where: NDArray[np.bool_]) -> None:
        """Replace those of some elements."""
        for f in self.__dataclass_fields__:
            getattr(self, f)[where] = getattr(other, f)[where]

    def outdoes(self, value: Array, bar: Array, step: Array) -> NDArray[np.bool_]:
        """Where these are better than a value and bar at another step.

        Of two that are both sure of themselves and disagree, the one of the smaller step has seen
        the function bend: at large steps a bend or a wave may pass for a straight line.
        """
        relative = np.abs(self.value) + np.abs(value)
        sure, was_sure = (self.bar < 1e-3 * relative) & ~self.edge, bar < 1e-3 * relative
        smaller = self.step <= step
        # A kink that is not there any more at a smaller step lies beside x.
        less = ~np.isfinite(bar) | ((self.bar < bar) & (~self.kink | smaller))
        agree = np.abs(self.value - value) <= self.bar + bar
        better: NDArray[np.bool_] = np.isfinite(self.bar) & (
            (sure & smaller) | (less & (agree | ~was_sure))
        )
        return better


def richardson(h: Array, d: Array, noise: Array, exponents: tuple[int, ...]) -> tuple[Array, ...]:
    """The limit of `d` at h = 0, its bar, and the step it came from; all (E,).

    Neville's table over the ladder; `exponents` are those of the error terms, one eliminated per
    column.  An entry's bar is its distance from the two that it was made of, plus the noise of the
    values carried through the table; without that term two values that agree by chance would look
    exact (Ridders, doi:10.1016/S0141-1195(82)80057-0, has none).

    Of all entries the one with the least bar would be best, were it not for functions that look
    simple from afar: a loss of saturated logits is straight lines with a kink between them.  So the
    steps are taken from the smallest up, and an entry of larger steps counts only as long as it
    agrees with what smaller ones said.
    """
    steps, elements = d.shape
    rows = [(d[-1], np.full(elements, np.inf))] * steps
    ratio = h[:-1] / h[1:]
    for column, exponent in enumerate(exponents[: steps - 1], 1):
        power = ratio[column - 1 :] ** exponent
        new = d[1:] + (d[1:] - d[:-1]) / (power - 1)
        carried = (power * noise[1:] + noise[:-1]) / (power - 1)
        bars = np.maximum(np.abs(new - d[1:]), np.abs(new - d[:-1])) + carried
        bars[np.isnan(bars)] = np.inf
        for k in range(column, steps):
            value, bar = rows[k]
            better = bars[k - column] < bar
            rows[k] = (
                np.where(better, new[k - column], value),
                np.where(better, bars[k - column], bar),
            )
        d, noise = new, carried
    best, least = rows[-1]
    step = h[-1].copy()
    alive = np.ones(elements, bool)
    for k in range(steps - 2, 0, -1):
        value, bar = rows[k]
        known = np.isfinite(bar)
        alive &= ~known | ~np.isfinite(least) | (np.abs(value - best) <= 2 * (bar + least))
        better = alive & known & (bar < least)
        best = np.where(better, value, best)
        step = np.where(better, h[k], step)
        least = np.where(better, bar, least)
    return best, least, step


def derivative(s: Sweep) -> Slopes:
    """One derivative with its bar per element of a sweep."""
    with np.errstate(all="ignore"):
        eps = np.finfo(float).eps / 2
        # What a value carries at least: the rounding of the number itself.
        size = np.maximum(np.abs(s.above), np.abs(s.below))
        sigma = NOISE * np.maximum(s.noise, eps * np.where(np.isfinite(size), size, 0))
        two = s.up + s.down
        value, bar, step = richardson(
            two / 2, (s.above - s.below) / two, 2 * sigma / two, (2, 4, 6, 8)
        )
        right = (s.above - s.middle) / s.up
        left = (s.middle - s.below) / s.down
        one = 2 * sigma / np.minimum(s.up, s.down)

        edge = ~np.isfinite(bar) & np.isfinite(s.middle)
        if edge.any():
            a = richardson(s.up, right, one, (1, 2, 3, 4))
            b = richardson(s.down, left, one, (1, 2, 3, 4))
            use_a = edge & (a[1] <= b[1]) & np.isfinite(a[1])
            use_b = edge & ~use_a & np.isfinite(b[1])
            edge = use_a | use_b
            value = np.where(use_a, a[0], np.where(use_b, b[0], value))
            bar = np.where(use_a, a[1], np.where(use_b, b[1], bar))
            step = np.where(use_a, a[2], np.where(use_b, b[2], step))

        gap, gap_bar, _ = richardson(two / 2, right - left, 2 * one, (1, 3, 5))
        slope = np.maximum(np.abs(right[-1]), np.abs(left[-1]))
        jump = _jumps(s, slope)
        kink = (np.abs(gap) > KINK * gap_bar) & (np.abs(gap) > RELATIVE_KINK * slope)
        kink &= ~jump & ~edge
        sides = np.full((2, len(value)), np.nan)
        if kink.any():
            k = np.flatnonzero(kink)
            sides[0, k] = richardson(s.down[:, k], left[:, k], one[:, k], (1, 2, 3))[0]
            sides[1, k] = richardson(s.up[:, k], right[:, k], one[:, k], (1, 2, 3))[0]
        reach = np.maximum(np.abs(right[0]), np.abs(left[0]))
        reach = np.where(np.isfinite(reach), reach, 0.0)
    return Slopes(value, bar, step, kink, sides[0], sides[1], jump, edge, reach)


def _jumps(s: Sweep, slope: Array) -> NDArray[np.bool_]:
    """Where the values on one side do not approach the value at x as the step shrinks.

    Their distance must stay the same over the smallest steps, and exceed by far what the slope of
    the other steps explains: a kink that is nearer than the smallest step looks like a jump else.
    """
    if len(s.up) < 3:
        return np.zeros(len(s.middle), bool)
    jumps = np.zeros(len(s.middle), bool)
    both = np.abs(np.concatenate([s.above, s.below]) - s.middle)
    far = np.max(both, axis=0, initial=0, where=np.isfinite(both))
    for h, f in ((s.up, s.above), (s.down, s.below)):
        distance = np.abs(f - s.middle)
        stays = distance[-1] > 0.5 * distance[-3]
        # A linear function shrinks with its step; a jump does not, by the same ratio.
        stays &= (h[-1] < 0.3 * h[-3]) & (distance[-1] > 20 * NOISE * s.noise)
        # Rounding of a function that is 0 at x stays the same too.
        stays &= distance[-1] > 1e-6 * far
        away = np.abs(np.diff(f[-3:], axis=0)).max(axis=0)
        jumps |= stays & (away < 0.3 * distance[-1]) & (slope > 0)
    return jumps


def difference_noise(values: Array) -> Array:
    """The standard deviation of the noise in (7, E) values at equal, tiny spacings.

    The k-th differences of a smooth function vanish; those of noise grow by a known factor.  After
    Moré and Wild, *Estimating computational noise*, doi:10.1137/100786125.  NaN where no level of
    differences looks like noise: the spacing was too wide, or a value is not finite.
    """
    levels = []
    signs = []
    size = np.abs(values).max(axis=0)  # the squares of large values overflow
    size = np.where(np.isfinite(size) & (size > 0), size, 1.0)
    table = values / size
    gamma = 1.0
    for k in range(1, len(values)):
        table = np.diff(table, axis=0)
        gamma *= 0.5 * k / (2 * k - 1)
        levels.append(np.sqrt(gamma * np.mean(table**2, axis=0)))
        signs.append((table.min(axis=0) < 0) & (table.max(axis=0) > 0))
    sigma = np.array(levels)
    changing = np.array(signs)
    noise = np.full(values.shape[1], np.nan)
    for k in range(len(sigma) - 3, -1, -1):
        window = sigma[k : k + 3]
        steady = window.max(axis=0) <= 4 * window.min(axis=0)
        noise = np.where(steady & changing[k], sigma[k], noise)
    return np.where((values == values[0]).all(axis=0), 0.0, noise * size)
