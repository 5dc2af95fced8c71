"""The speed bars of fastgrad: each case beside its peers, in one process and in turns.

    python benchmarks/bars.py [--quick] [--threads N] [--isa NAME] [--only TEXT] [--json FILE]

A bar is a ratio to the fastest peer of the same run (or to a copy of the same array, or to fastgrad
itself on one thread), except for small calls, whose bar is a time.  Every peer's result is first
compared with fastgrad's.  Measure on a quiet machine; on a busy one the ratios still hold roughly.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

STREAMED = "streaming copy"
BIG = ((4096, 1000), (1024, 32000))
PLANES = (8, 21, 512, 512)


@dataclass
class Row:
    """One line of the table: a piece of work on one shape, what it races against, and its bar."""

    work: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    axis: int = -1
    order: str = "C"
    out: bool = False
    against: str = "peers"
    bar: float | None = None
    """Least ratio; for `against` "time" the most seconds; None: no bar, shown for comparison."""
    medians: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        parts = [self.work, "x".join(map(str, self.shape)), self.dtype]
        parts += [f"axis {self.axis}"] * (self.axis != -1) + ["Fortran"] * (self.order == "F")
        return " ".join(parts + ["out="] * self.out)

    @property
    def rival(self) -> str | None:
        others = [n for n in self.medians if n != "fastgrad"]
        return min(others, key=self.medians.__getitem__, default=None)

    @property
    def ratio(self) -> float | None:
        return self.medians[self.rival] / self.medians["fastgrad"] if self.rival else None

    @property
    def verdict(self) -> str:
        if self.bar is None:
            return ""
        if self.against == "time":
            return "ok" if self.medians["fastgrad"] <= self.bar else "MISS"
        if self.ratio is None:
            return "no peer"
        return "ok" if self.ratio >= self.bar else "MISS"


def speed_rows(dtype: str) -> Iterator[Row]:
    """The rows of PERFORMANCE.md §4 that exist, in one precision on any number of threads."""
    wide = dtype == "float64"

    def bar(value: float | None) -> float | None:
        return 2.0 if wide and value is not None else value

    softmax, both, loss = "softmax", "CE loss+gradient", "CE loss"
    if not wide:
        yield Row(softmax, (64, 10), against="time", bar=2e-6)
        yield Row(both, (64, 10), against="time", bar=4e-6)
    for work, small, cached in ((softmax, 2.5, 1.8), (both, 5.0, 5.0)):
        for out in (False, True):
            for shape in ((65536, 10), (65536, 32)):
                yield Row(work, shape, dtype, out=out, bar=bar(small))
            yield Row(work, (256, 1000), dtype, out=out, bar=bar(cached))
    for shape, share in zip(BIG, (0.85, 0.75), strict=True):
        yield Row(softmax, shape, dtype, bar=2.0 if wide else None)
        yield Row(softmax, shape, dtype, out=True, bar=2.0 if wide else None)
        yield Row(softmax, shape, dtype, out=True, against="np.copyto", bar=1.0)
        yield Row(softmax, shape, dtype, out=True, against=STREAMED, bar=share)
        yield Row(both, shape, dtype, bar=bar(3.0))
        yield Row(both, shape, dtype, out=True, bar=bar(5.0))
        yield Row(both, shape, dtype, out=True, against="np.copyto", bar=1.0)
    for shape in ((65536, 10), (256, 1000), *BIG):
        yield Row(loss, shape, dtype, bar=bar(1.8))
    for work in (softmax, both):
        for out in (False, True):
            yield Row(work, PLANES, dtype, axis=1, out=out, bar=2.0)
            for shape in ((4096, 1000), (65536, 10)):
                yield Row(work, shape, dtype, order="F", out=out, bar=2.0)


def isa_rows() -> Iterator[Row]:
    """A forced instruction set against PyTorch held to the same one."""
    for work in ("softmax", "CE loss+gradient"):
        for shape in ((65536, 10), (256, 1000), *BIG):
            yield Row(work, shape, out=True, bar=1.5)


def thread_rows() -> Iterator[Row]:
    """Two threads against one."""
    for work in ("softmax", "CE loss+gradient"):
        for shape in ((65536, 10), (65536, 32), (256, 1000), *BIG):
            yield Row(work, shape, out=True, against="one thread", bar=1.8)


# ---- measuring --------------------------------------------------------------------------------


class StreamedCopy:
    """memcpy with non-temporal stores, in a process of its own: glibc decides by size at start."""

    CHILD = (
        "import ctypes, sys, time, numpy as np\n"
        "size = int(sys.argv[1])\n"
        "a, b = np.ones(size, np.uint8), np.empty(size, np.uint8)\n"
        "b[:] = 0\n"
        "for n in sys.stdin:\n"
        "    start = time.perf_counter()\n"
        "    for _ in range(int(n)):\n"
        "        ctypes.memmove(b.ctypes.data, a.ctypes.data, size)\n"
        "    print(time.perf_counter() - start, flush=True)\n"
    )

    def __init__(self, size: int) -> None:
        tunables = "glibc.cpu.x86_non_temporal_threshold=0x40000"
        self._child = subprocess.Popen(
            [sys.executable, "-c", self.CHILD, str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "GLIBC_TUNABLES": tunables},
        )

    def measure(self, n: int) -> float:
        """Seconds that n copies take; the clock runs in the child."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        print(n, file=self._child.stdin, flush=True)
        return float(self._child.stdout.readline())

    def close(self) -> None:
        self._child.communicate()


def measure(row: Row, seconds: float) -> None:
    """Fill in the medians of a row."""
    import clock
    import numpy as np
    import peers

    import fastgrad as fg

    case = peers.make_case(row.shape, row.dtype, axis=row.axis, order=row.order, out=row.out)
    calls: dict[str, Callable[..., Any]] = peers.calls(row.work, case)
    fastgrad, streamed = calls["fastgrad"], None
    if row.against in ("peers", "time"):
        ours = fastgrad()
        for name, call in calls.items():
            peers.check(row.work, name, case, call(), ours)
    elif row.against == "np.copyto":
        target = np.empty_like(case.z)
        calls = {"fastgrad": fastgrad, row.against: lambda: np.copyto(target, case.z)}
    elif row.against == STREAMED:
        streamed = StreamedCopy(case.z.nbytes)
        calls = {"fastgrad": fastgrad, row.against: streamed}
    else:

        def on_one() -> None:
            with fg.num_threads(1):
                fastgrad()

        def on_two() -> None:
            with fg.num_threads(2):
                fastgrad()

        calls = {"fastgrad": on_two, row.against: on_one}
    row.medians = clock.medians(calls, seconds)
    if streamed is not None:
        streamed.close()


# ---- the table --------------------------------------------------------------------------------


def shown(seconds: float) -> str:
    return f"{seconds * 1e6:.2f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


HEAD = f"{'case':<51}{'fastgrad':>11}  {'fastest peer':<24}{'ratio':>8}{'bar':>9}"


def line(row: Row) -> str:
    peer = f"{row.rival} {shown(row.medians[row.rival])}" if row.rival else "-"
    ratio = f"{row.ratio:.2f}x" if row.ratio else "-"
    bar = "-" if row.bar is None else f"{row.bar:g}x"
    if row.against == "time" and row.bar is not None:
        bar = f"{row.bar * 1e6:g} µs"
    ours = shown(row.medians["fastgrad"])
    return f"{row.name:<51}{ours:>11}  {peer:<24}{ratio:>8}{bar:>9}  {row.verdict}".rstrip()


def machine() -> str:
    model = "unknown processor"
    try:
        text = Path("/proc/cpuinfo").read_text()
        model = next(s for s in text.splitlines() if s.startswith("model name")).split(": ")[1]
    except (OSError, StopIteration):
        pass
    return f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def run_rows(rows: list[Row], seconds: float, title: str) -> list[Row]:
    print(f"\n{title}\n{HEAD}", flush=True)
    for row in rows:
        measure(row, seconds)
        print(line(row), flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of everyone (default 1)")
    parser.add_argument("--quick", action="store_true", help="float32 only, short rounds")
    parser.add_argument("--isa", help="force this instruction set; PyTorch is held to the same one")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--json", type=Path, help="write all medians to this file")
    parser.add_argument("--part", choices=("speed", "isa", "threads"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part is None and args.isa is None:
        return all_parts(args)

    part = args.part or "isa"
    os.environ["BENCH_THREADS"] = str(args.threads)
    if part == "threads":
        os.environ["BENCH_PEERS"] = ""
    if part == "isa":
        os.environ["BENCH_PEERS"] = "torch"
        os.environ["ATEN_CPU_CAPABILITY"] = {"baseline": "default"}.get(args.isa, args.isa)
    import peers

    from fastgrad._kernels import isa

    if args.isa:
        isa._use(args.isa)
    dtypes = ("float32",) if args.quick else ("float32", "float64")
    if part == "speed":
        title = f"fastgrad ({isa.active_name()}) against its peers, {args.threads} thread(s)"
        rows = [row for dtype in dtypes for row in speed_rows(dtype)]
    elif part == "isa":
        title = f"fastgrad and PyTorch, both held to {args.isa}, {args.threads} thread(s)"
        rows = list(isa_rows())
    else:
        title = "fastgrad on two threads against fastgrad on one"
        rows = list(thread_rows())
    rows = [row for row in rows if args.only in row.name]
    if args.threads > 1:  # a copy runs on one thread
        rows = [row for row in rows if row.against in ("peers", "time")]
    if part == "speed":
        print(machine())
        print(", ".join(f"{name} {v}" for name, v in peers.versions().items()))
    run_rows(rows, 0.1 if args.quick else 1.0, title)
    if args.json:
        results = [{**asdict(r), "name": r.name, "verdict": r.verdict} for r in rows]
        args.json.write_text(json.dumps({"part": part, "machine": machine(), "rows": results}))
    return int(any(row.verdict == "MISS" for row in rows))


def all_parts(args: argparse.Namespace) -> int:
    """Each part in a process of its own: a library reads its settings only when it is loaded."""
    from fastgrad._kernels import isa

    parts = [["--part", "speed"]]
    if "avx2" in isa.available_names():
        parts.append(["--part", "isa", "--isa", "avx2"])
    if args.threads == 1 and (os.cpu_count() or 1) > 1:
        parts.append(["--part", "threads"])
    common = ["--threads", str(args.threads), "--only", args.only, *["--quick"] * args.quick]
    missed, collected = 0, []
    for part in parts:
        command = [sys.executable, __file__, *part, *common]
        if args.json:
            command += ["--json", str(args.json)]
        missed |= subprocess.run(command).returncode
        if args.json:
            collected.append(json.loads(args.json.read_text()))
    if args.json:
        args.json.write_text(json.dumps(collected, indent=1))
    return missed


if __name__ == "__main__":
    sys.exit(main())
