"""All cases under pytest-benchmark: every contestant of every case, compared with ours, then timed.

make bench ARGS='-k "softmax and 4096x1000 and torch"'
BENCH_THREADS=2 pytest benchmarks -m quick --benchmark-json=two.json
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks import (
    centroids,
    checker,
    cross_entropy,
    hinge,
    libraries,
    linear,
    segments,
    softmax,
)
from benchmarks.work import Case

GROUPS = (softmax, cross_entropy, linear, hinge, segments, centroids, checker)


def calls() -> Iterator[Case]:
    """So small that all time is overhead."""
    for work in (
        softmax.softmax,
        softmax.log_softmax,
        softmax.logsumexp,
        cross_entropy.value,
        cross_entropy.both,
        hinge.hinge,
    ):
        yield Case(work, (64, 10), quick=work in (softmax.softmax, cross_entropy.both))
    yield Case(segments.sums, (64, 10))
    yield Case(centroids.centroids, (64, 4, 10))
    yield Case(linear.linear, (64, 4, 10))


def parameters() -> list[object]:
    cases = [(case.work.group, case) for module in GROUPS for case in module.cases()]
    cases += [("call overhead", case) for case in calls()]
    given = []
    for group, case in cases:
        for name in case.work.makers:
            words = f"{group} {case} {libraries.THREADS}t {name}"
            marks = [pytest.mark.quick] * case.quick
            given.append(pytest.param(group, case, name, id=words.replace(" ", "-"), marks=marks))
    return given


@pytest.mark.parametrize(("group", "case", "name"), parameters())
def test_speed(timed, group: str, case: Case, name: str) -> None:
    timed(group, case, name)
