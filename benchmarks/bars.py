"""Is every bar of the project met: each case beside its rivals, in one process and in turns.

A bar is a least ratio to the fastest rival of the same run: a peer on as many threads, a copy of
the same array, or fastgrad itself on one thread; for small calls it is a time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import centroids, cross_entropy, libraries, segments
from benchmarks import softmax as maps
from benchmarks.clock import Times, race
from benchmarks.work import Case

# isort: split
import numpy as np

import fastgrad as fg
from fastgrad._kernels import bandwidth, isa

softmax, both, value = maps.softmax, cross_entropy.both, cross_entropy.value

PEERS, TIME, COPYTO = "peers", "time", "np.copyto"
STREAMED, ONE_THREAD = "streamed copy", "one thread"
BIG = ((4096, 1000), (1024, 32000))
PLANES = (8, 21, 512, 512)


@dataclass
class Row:
    """One line of the table: a case, what it races against, and its bar."""

    bar: str
    """Its name in NOTES.md."""
    case: Case
    least: float | None = None
    """Least ratio; for `against` "time" the most seconds; None: no bar, shown for comparison."""
    against: str = PEERS
    rivals: tuple[str, ...] | None = None
    """Only these contestants; None: all."""
    times: dict[str, Times] = field(default_factory=dict)

    @property
    def rival(self) -> str | None:
        others = [n for n in self.times if n != "fastgrad"]
        return min(others, key=lambda name: self.times[name].median, default=None)

    @property
    def ratio(self) -> float | None:
        if self.rival is None:
            return None
        return self.times[self.rival].median / self.times["fastgrad"].median

    @property
    def verdict(self) -> str:
        if self.least is None:
            return ""
        if self.against == TIME:
            return "met" if self.times["fastgrad"].median <= self.least else "MISSED"
        if self.ratio is None:
            return "no peer"
        return "met" if self.ratio >= self.least else "MISSED"

    def measure(self, seconds: float) -> None:
        names = None if self.rivals is None else ("fastgrad", *self.rivals)
        calls: dict[str, Callable[[], Any]] = self.case.calls(
            names if self.against in (PEERS, TIME) else ["fastgrad"]
        )
        ours = calls["fastgrad"]
        if self.against in (COPYTO, STREAMED):
            source = self.case.data.z
            target = np.empty_like(source)
            copies = {COPYTO: np.copyto}
            if self.against == STREAMED:  # which is faster depends on the processor
                copies = {STREAMED: bandwidth.stream, STREAMED + ", pages": bandwidth.stream_pages}
            calls |= {name: partial(copy, target, source) for name, copy in copies.items()}
        elif self.against == ONE_THREAD:
            calls = {"fastgrad": _on_threads(2, ours), self.against: _on_threads(1, ours)}
        self.times = race(calls, seconds)

    def as_dict(self) -> dict[str, Any]:
        return {
            "bar": self.bar,
            "case": str(self.case),
            "dtype": self.case.dtype,
            "against": self.against,
            "least": self.least,
            "rival": self.rival,
            "ratio": self.ratio,
            "verdict": self.verdict,
            "threads": libraries.THREADS,
            "instruction set": isa.active_name(),
            "times": self.times,
        }


def _on_threads(n: int, call: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        with fg.num_threads(n):
            call()

    return run


def speed_rows(dtype: str) -> Iterator[Row]:
    """Against peers and copies, in one precision on one thread."""
    wide = dtype == "float64"
    suffix = ", float64" if wide else ""

    def row(bar: str, case: Case, least: float | None, against: str = PEERS) -> Row:
        ratio_to_peers = wide and least is not None and against == PEERS
        return Row(bar + suffix, case, 2.0 if ratio_to_peers else least, against)

    if not wide:
        yield Row("one call", Case(softmax, (64, 10)), 2e-6, TIME)
        yield Row("one call", Case(both, (64, 10)), 4e-6, TIME)
    for work, name, small, cached in (
        (softmax, "softmax", 2.5, 1.8),
        (both, "CE value_and_grad", 5.0, 5.0),
    ):
        for out in (False, True):
            for shape in ((65536, 10), (65536, 32)):
                yield row(f"{name}, small C", Case(work, shape, dtype, out=out), small)
            yield row(f"{name}, in cache", Case(work, (256, 1000), dtype, out=out), cached)
    for shape, share in zip(BIG, (0.85, 0.75), strict=True):
        new, old = Case(softmax, shape, dtype), Case(softmax, shape, dtype, out=True)
        yield row("softmax, out of cache", new, 2.0 if wide else None)
        yield row("softmax, out of cache", old, 2.0 if wide else None)
        yield row("softmax against np.copyto", old, 1.0, COPYTO)
        yield row("softmax against the limit", old, share, STREAMED)
        new, old = Case(both, shape, dtype), Case(both, shape, dtype, out=True)
        yield row("CE value_and_grad, out of cache, new", new, 3.0)
        yield row("CE value_and_grad, out of cache, out=", old, 5.0)
        yield row("CE value_and_grad against np.copyto", old, 1.0, COPYTO)
        yield row("CE value_and_grad against the limit", old, None, STREAMED)
    for shape in ((65536, 10), (256, 1000), *BIG):
        yield row("CE value", Case(value, shape, dtype), 1.8)
    for work, name in ((softmax, "softmax"), (both, "CE value_and_grad")):
        yield row(f"{name}, layouts", Case(work, PLANES, dtype, "axis 1", out=True), 2.0)
        for shape in ((4096, 1000), (65536, 10)):
            yield row(f"{name}, layouts", Case(work, shape, dtype, "Fortran", out=True), 2.0)


def ragged_rows(dtype: str) -> Iterator[Row]:
    wide, n = dtype == "float64", segments.N
    if not wide:
        for shape in segments.ROWS:
            case, bar = Case(centroids.centroids, shape), "class centroids"
            yield Row(bar, case, _centroid_bar(shape))
            yield Row(bar + ", JAX", case, 1.0, rivals=("jax",))
        for k in (10, 1_000, 10_000, n):
            least = 15.0 if k <= 10_000 else 5.0
            yield Row("sort of ids", Case(segments.sort, (n, k)), least, rivals=("numpy",))
        case = Case(centroids.hinge, (32, 1000, 50, 25), out=True)
        yield Row("centroid hinge, loop", case, 10.0, rivals=("torch loop",))
        yield Row("centroid hinge, one-hot", case, 5.0, rivals=("torch one-hot",))
    bar = "segment_sum of (N,)" + ", float64" * wide
    for k in (10, 1_000, 100_000):
        for layout, rival in (("rows", "numpy bincount"), ("in order", "numpy reduceat")):
            yield Row(bar, Case(segments.sums, (n, k), dtype, layout), 2.0, rivals=(rival,))
    bar = "segment softmax" + ", float64" * wide
    for k in (1_000, 10_000, 100_000):
        case = Case(segments.softmax, (n, k), dtype, "in order")
        yield Row(bar, case, 5.0, rivals=("numpy",))


def _centroid_bar(shape: tuple[int, ...]) -> float:
    if libraries.THREADS == 1:
        return 1.3
    return 1.5 if 4 * shape[1] >= 256 else 1.2


def isa_rows() -> Iterator[Row]:
    """A forced instruction set against PyTorch held to the same one."""
    for work in (softmax, both):
        for shape in ((65536, 10), (256, 1000), *BIG):
            yield Row("AVX2 forced", Case(work, shape, out=True), 1.5)


def thread_rows() -> Iterator[Row]:
    """Two threads against one, from 1 MiB on."""
    for work in (softmax, both):
        for shape in ((65536, 10), (65536, 32), (512, 1000), *BIG):
            yield Row("two threads", Case(work, shape, out=True), 1.8, ONE_THREAD)


def part_rows(part: str, quick: bool) -> list[Row]:
    dtypes = ("float32",) if quick else ("float32", "float64")
    if part == "isa":
        return list(isa_rows())
    if part == "threads":
        return list(thread_rows())
    rows = [r for d in dtypes for make in (speed_rows, ragged_rows) for r in make(d)]
    if part == "many":  # a copy by NumPy has one thread, and so has a sort
        rows = [r for r in rows if r.against == PEERS and r.rivals is None]
        rows = [r for r in rows if not quick or r.bar == "class centroids"]
    return rows


# ---- the table ----------------------------------------------------------------------------------


def time_text(seconds: float) -> str:
    return f"{seconds * 1e6:.2f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


HEAD = f"{'case':<58}{'fastgrad':>11}  {'fastest rival':<27}{'ratio':>8}{'bar':>8}"


def line(row: Row) -> str:
    rival = f"{row.rival} {time_text(row.times[row.rival].median)}" if row.rival else "-"
    ratio = f"{row.ratio:.2f}x" if row.ratio else "-"
    least = "-" if row.least is None else f"{row.least:g}x"
    if row.against == TIME and row.least is not None:
        least = f"{row.least * 1e6:g} µs"
    ours = time_text(row.times["fastgrad"].median)
    return f"{row.case!s:<58}{ours:>11}  {rival:<27}{ratio:>8}{least:>8}  {row.verdict}".rstrip()


def run_part(part: str, quick: bool, only: str) -> list[dict[str, Any]]:
    titles = {
        "one": f"fastgrad and its peers, {libraries.THREADS} thread",
        "many": f"fastgrad and its peers, {libraries.THREADS} threads",
        "isa": f"fastgrad and PyTorch, both held to {isa.active_name()}",
        "threads": "fastgrad on two threads and on one",
    }
    rows = [r for r in part_rows(part, quick) if only in f"{r.bar}: {r.case}"]
    if rows:
        print(f"\n{titles[part]}, load {os.getloadavg()[0]:.1f}\n{HEAD}", flush=True)
    for row in rows:
        row.measure(0.1 if quick else 1.0)
        print(line(row), flush=True)
    return [row.as_dict() for row in rows]


def main(quick: bool, only: str, folder: Path) -> dict[str, Any]:
    """Each part in a process of its own: a library reads its settings only when it is loaded."""
    parts: dict[str, dict[str, str]] = {"one": {"BENCH_THREADS": "1"}}
    if (os.cpu_count() or 1) > 1:
        parts["many"] = {"BENCH_THREADS": "2"}
        parts["threads"] = {"BENCH_THREADS": "2", "BENCH_PEERS": ""}
    if "avx2" in isa.available_names():
        parts["isa"] = {
            "BENCH_THREADS": "1",
            "BENCH_PEERS": "torch",
            "FASTGRAD_ISA": "avx2",
            "ATEN_CPU_CAPABILITY": "avx2",
        }
    rows = []
    for part, settings in parts.items():
        saved = folder / f"bars-{part}.json"
        command = [sys.executable, "-m", "benchmarks", "bars", "--part", part, "--only", only]
        command += ["--results", str(folder), *["--quick"] * quick]
        subprocess.run(command, env={**os.environ, **settings}, check=True)
        rows += json.loads(saved.read_text())["rows"]
        saved.unlink()
    missed = sum(row["verdict"] == "MISSED" for row in rows)
    print(f"\n{missed} of {sum(row['least'] is not None for row in rows)} bars missed")
    return {"rows": rows}
