"""Rounds of all contestants in turns, so that a slow moment hits them all: what ratios need.

On one thread the clock is the processor time of this process, which is that of the wall on an idle
machine; on a busy one it leaves out the time that others had, if not what they did to the caches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from statistics import quantiles
from typing import Any, NamedTuple

from benchmarks.libraries import THREADS

ROUND = 2e-3
"""Seconds that a round lasts at least: far above the resolution of the clock."""
ROUNDS = 5, 60


class Times(NamedTuple):
    """Quartiles of the seconds of one call."""

    low: float
    median: float
    high: float


def race(
    contestants: Mapping[str, Callable[[], Any]], seconds: float, threads: int = THREADS
) -> dict[str, Times]:
    """Seconds of one call of each, which uses so many threads; the first contestant is ours.

    One whose best of three rounds is three times as slow as the best of the others is then left
    alone.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    times = {name: list[float]() for name in contestants}
    loops = {name: _loops(call, clock) for name, call in contestants.items()}
    ours, *others = contestants
    racing = [ours, *others]
    start = time.perf_counter()
    for i in range(ROUNDS[1]):
        for name in racing:
            times[name].append(_seconds(contestants[name], loops[name], clock))
        if i == 2 and others:
            # By best times: one slow moment must not take the fastest peer out of the race.
            best = min(min(times[name]) for name in others)
            racing = [ours, *(name for name in others if min(times[name]) < 3 * best)]
        if i + 1 >= ROUNDS[0] and time.perf_counter() - start > seconds:
            break
    return {name: Times(*quantiles(t, n=4, method="inclusive")) for name, t in times.items()}


def _loops(call: Callable[[], Any], clock: Callable[[], float]) -> int:
    call()
    n, took = 1, _seconds(call, 1, clock)
    while n * took < ROUND:
        n = math.ceil(1.2 * ROUND / max(took, 1e-7))
        took = _seconds(call, n, clock)
    return n


def _seconds(call: Callable[[], Any], n: int, clock: Callable[[], float]) -> float:
    _wait_for_idle_threads()
    call()  # or it would find the caches as another left them, on a core that was idle
    start = clock()
    for _ in range(n):
        call()
    return (clock() - start) / n


def _wait_for_idle_threads() -> None:
    """JAX's threads spin for some 8 ms after a call, on the core of whoever comes next."""
    for _ in range(100):
        before = time.process_time()
        time.sleep(1e-3)
        if time.process_time() - before < 1e-4:
            break
