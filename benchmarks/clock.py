"""The clock of bars.py: rounds of all contestants in turns, so that a slow moment hits them all."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

ROUND = 2e-3
"""Seconds that a round lasts at least: far above the resolution of the clock."""
ROUNDS = 5, 60


def medians(contestants: Mapping[str, Any], seconds: float) -> dict[str, float]:
    """Median seconds of one call of each; the first contestant is ours.

    A contestant is a function, or an object whose `measure(n)` tells the seconds of n calls.  One
    whose best of three rounds is three times as slow as the best of the others is then left alone.
    """
    timers = {name: _timer(c) for name, c in contestants.items()}
    times = {name: list[float]() for name in timers}
    loops = {}
    for name, timer in timers.items():
        timer(1)
        n, took = 1, timer(1)
        while took < ROUND:
            n = math.ceil(1.2 * n * ROUND / max(took, 1e-7))
            took = timer(n)
        loops[name] = n
    ours, *others = timers
    racing = [ours, *others]
    start = time.perf_counter()
    for i in range(ROUNDS[1]):
        for name in racing:
            times[name].append(timers[name](loops[name]) / loops[name])
        if i == 2 and others:
            # By best times: one slow moment must not take the fastest peer out of the race.
            best = min(min(times[name]) for name in others)
            racing = [ours, *(name for name in others if min(times[name]) < 3 * best)]
        if i + 1 >= ROUNDS[0] and time.perf_counter() - start > seconds:
            break
    return {name: median(t) for name, t in times.items()}


def _timer(contestant: Any) -> Callable[[int], float]:
    if hasattr(contestant, "measure"):
        return contestant.measure  # type: ignore[no-any-return]

    def timer(n: int) -> float:
        start = time.perf_counter()
        for _ in range(n):
            contestant()
        return time.perf_counter() - start

    return timer
