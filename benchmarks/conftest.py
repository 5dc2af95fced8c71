"""Loads `peers` before anything else, and runs a case under pytest-benchmark's clock."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import peers  # found by the line above


@pytest.fixture
def race(benchmark):
    """Time one library at one piece of work, or skip it with the reason."""

    def run(work: str, name: str, case: peers.Case) -> None:
        if not peers.installed(name):
            pytest.skip(f"{name} is not installed")
        calls = peers.calls(work, case, ("fastgrad", name))
        if name not in calls:
            pytest.skip(f"{name} has nothing for this case")
        peers.check(work, name, case, calls[name](), calls["fastgrad"]())
        benchmark.group = f"{work} {case}"
        benchmark(calls[name])

    return run
