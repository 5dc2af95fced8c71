"""Results of the suite carry what they depend on; what is missing is skipped by its name."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from benchmarks import libraries, limit

# isort: split
import numpy as np

from fastgrad._kernels import bandwidth

LIMITS = pytest.StashKey[list[limit.Limit]]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "quick: the subset that takes two minutes")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    machine_info["fastgrad"] = libraries.machine()
    machine_info["limits"] = [asdict(one) for one in config.stash.get(LIMITS, [])]


@pytest.fixture(scope="session")
def limits(request: pytest.FixtureRequest) -> list[limit.Limit]:
    """The speed of copies and reads, on the threads of this run."""
    found = (
        []
        if request.config.getoption("benchmark_disable")
        else limit.measure(libraries.THREADS, 0.1)
    )
    request.config.stash[LIMITS] = found
    return found


@pytest.fixture
def timed(benchmark, limits):
    """Time one contestant of a case, or skip it with the reason."""

    def run(group: str, case, name: str) -> None:
        if not libraries.installed(name):
            pytest.skip(f"{name.split()[0]} is not installed, or not in BENCH_PEERS")
        if case.dtype == "bfloat16":
            pytest.importorskip("ml_dtypes")
        call = case.calls([name]).get(name)
        if call is None:
            pytest.skip(f"{name} has no form of this case")
        read, written = case.work.moved(case.data)
        benchmark.group = f"{group}: {case}"
        benchmark.extra_info |= {
            "group": group,
            "case": str(case),
            "implementation": name,
            "shape": case.shape,
            "dtype": case.dtype,
            "layout": case.layout,
            "out": case.out,
            "cold": case.cold,
            "threads": libraries.THREADS,
            "bytes": read + written,
        }
        if case.cold:
            benchmark.pedantic(call, setup=_evict, rounds=20, warmup_rounds=1)
        else:
            benchmark(call)
        if benchmark.stats is not None:  # None with --benchmark-disable
            seconds = benchmark.stats.stats.median
            least = limit.least_seconds(limits, read, written)
            benchmark.extra_info["GB/s"] = round((read + written) / seconds / 1e9, 3)
            benchmark.extra_info["fraction of the limit"] = round(least / seconds, 4)

    return run


_OTHER = np.ones(64 * 2**20, np.uint8)


def _evict() -> None:
    """Read other memory, so that data have left the caches of the core."""
    bandwidth.read(_OTHER)
