"""Time and memory against size and threads, with fitted exponents; and data beyond the usual sizes.

An exponent is the slope of a line through the logarithms: time ~ size ** exponent.  Memory is the
peak of the process beyond arguments and results, which exist before the call.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import centroids, cross_entropy, libraries, linear, segments, softmax
from benchmarks.clock import race
from benchmarks.limit import MIB, size_name
from benchmarks.work import Case

# isort: split
import numpy as np

import fastgrad as fg

GIB = 2**30


@dataclass
class Series:
    """Cases that differ in one size."""

    name: str
    size: str
    cases: dict[int, Case]

    def measure(self, seconds: float) -> dict[str, Any]:
        """One thread; the slope is that of the upper half, where overhead no longer counts."""
        times = []
        with fg.num_threads(1):
            for case in self.cases.values():
                calls = {"fastgrad": case.calls(["fastgrad"])["fastgrad"]}
                times.append(race(calls, seconds, threads=1)["fastgrad"].median)
        sizes = list(self.cases)
        half = len(sizes) // 2
        slope = np.polyfit(np.log(sizes[half:]), np.log(times[half:]), 1)[0]
        return {
            "name": self.name,
            "against": self.size,
            "sizes": sizes,
            "seconds": times,
            "exponent": round(float(slope), 3),
        }


def series() -> Iterator[Series]:
    s, ce, kinds = softmax.softmax, cross_entropy.both, {"out": True}
    rows = [2**i for i in range(6, 16)]
    yield Series("softmax, C = 1,000", "N", {n: Case(s, (n, 1000), **kinds) for n in rows})
    yield Series(
        "CE value_and_grad, C = 1,000", "N", {n: Case(ce, (n, 1000), **kinds) for n in rows}
    )
    many = [2**i for i in range(10, 22)]
    yield Series("CE value_and_grad, C = 10", "N", {n: Case(ce, (n, 10), **kinds) for n in many})
    classes = [4**i for i in range(1, 12)]
    elements = 2**22
    yield Series(
        "softmax, N·C = 4M", "C", {c: Case(s, (elements // c, c), **kinds) for c in classes}
    )
    yield Series(
        "CE value_and_grad, N·C = 4M",
        "C",
        {c: Case(ce, (elements // c, c), **kinds) for c in classes},
    )
    groups = [10**i for i in range(1, 7)]
    yield Series("sort of 1M ids", "K", {k: Case(segments.sort, (segments.N, k)) for k in groups})
    yield Series(
        "segment_sum of (1M, 8)", "K", {k: Case(segments.sums, (segments.N, 8, k)) for k in groups}
    )
    yield Series(
        "class centroids, d = 64, K = 1,000",
        "N",
        {n: Case(centroids.centroids, (n, 64, 1000)) for n in (10**4, 10**5, 10**6)},
    )


def thread_cases() -> Iterator[Case]:
    for work in (softmax.softmax, cross_entropy.both):
        for shape in ((65536, 10), (4096, 1000), (1024, 32000)):
            yield Case(work, shape, out=True)
    yield Case(centroids.centroids, segments.ROWS[1])
    yield Case(centroids.hinge, (32, 1000, 50, 25), out=True)


def against_threads(case: Case, seconds: float) -> dict[str, Any]:
    def on(n: int) -> Callable[[], None]:
        def run() -> None:
            with fg.num_threads(n):
                call()

        return run

    call = case.calls(["fastgrad"])["fastgrad"]
    counts = [2**i for i in range(libraries.THREADS.bit_length())]
    times = race({str(n): on(n) for n in counts}, seconds)
    medians = [times[str(n)].median for n in counts]
    return {"case": str(case), "threads": counts, "seconds": medians}


# ---- memory -------------------------------------------------------------------------------------


def memory_cases() -> Iterator[Case]:
    """With results that exist before, where the work has `out`."""
    yield Case(softmax.softmax, (4096, 1000), out=True)
    yield Case(softmax.softmax, (256, 128_000), out=True)
    yield Case(softmax.softmax, (8, 21, 256, 256), layout="axis 1", out=True)
    yield Case(cross_entropy.both, (4096, 1000), out=True)
    yield Case(cross_entropy.both, (256, 128_000), out=True)
    yield Case(cross_entropy.value, (4096, 1000))
    yield Case(centroids.hinge, (32, 1000, 50, 25), out=True)
    yield Case(centroids.centroids, segments.ROWS[1])
    yield Case(linear.linear, (1024, 128, 32000))


def give_memory_back() -> None:
    """Have glibc return every large block when it is freed: what stays would hide the next peak."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 16)
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 16)
        libc.malloc_trim(0)


def peak(call: Callable[[], Any]) -> int:
    """Bytes of memory that a call needs at its worst moment, beyond what the process holds."""
    call()  # code and threads are there now
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now the present
    before = _status("VmRSS")
    result = call()
    most = _status("VmHWM")
    kept = sum(a.nbytes for a in _arrays(result) if a.base is None)
    return max(0, most - before - kept)


def _arrays(result: Any) -> Iterator[np.ndarray]:
    if isinstance(result, tuple):
        for part in result:
            yield from _arrays(part)
    elif isinstance(result, np.ndarray):
        yield result


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(s for s in lines if s.startswith(field)).split()[1]) * 1024


def memory(case: Case) -> dict[str, Any]:
    """Ours on one thread and on all, and that of each peer; results that are kept do not count."""
    peaks = {}
    for name, call in case.calls().items():
        if name != "fastgrad":
            peaks[name] = peak(call)
            continue
        for threads in sorted({1, libraries.THREADS}):
            with fg.num_threads(threads):
                peaks[f"fastgrad, {threads} thread{'s' * (threads > 1)}"] = peak(call)
    return {"case": str(case), "row": case.shape[-1] * 4, "peaks": peaks}


# ---- beyond memory, and beyond 2**31 ------------------------------------------------------------


def larger_than_memory(size: int, allowed: int) -> dict[str, Any]:
    """The loss of logits in a file larger than the memory that the process may have."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:  # /tmp may itself be memory
        command = [sys.executable, "-m", "benchmarks.scaling", folder, str(size), str(allowed)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"larger_than_memory failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _in_file(folder: str, size: int, allowed: int) -> None:
    """The same 64 rows again and again: the mean loss and each row's value are known."""
    classes, rows = 32_000, 64
    rng = np.random.default_rng(0)
    z = rng.standard_normal((rows, classes), dtype=np.float32)
    y = rng.integers(0, classes, rows)
    times = size // z.nbytes
    path = Path(folder, "logits")
    with path.open("wb") as file:
        for _ in range(times):
            z.tofile(file)
        os.fsync(file.fileno())
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
    try:
        np.empty(allowed, np.uint8)
    except MemoryError:
        pass
    else:
        raise SystemExit("this system does not hold a process to its RLIMIT_DATA")
    logits = np.memmap(path, np.float32, "r", shape=(times * rows, classes))
    targets = np.tile(y, times)
    start = time.perf_counter()
    loss = fg.cross_entropy(logits, targets)  # in one call: its memory does not grow with N
    seconds = time.perf_counter() - start
    expected = fg.cross_entropy(z, y)
    assert abs(loss - expected) <= 1e-12 * expected, (loss, expected)
    print(
        json.dumps(
            {
                "shape": logits.shape,
                "bytes": logits.nbytes,
                "allowed": allowed,
                "seconds": seconds,
                "GB/s": logits.nbytes / seconds / 1e9,
            }
        )
    )


def beyond_31_bits() -> dict[str, Any]:
    """float16 logits of more than 2**31 elements, in place: the same block of rows throughout."""
    rows, classes, times = 2**11, 2**10, 2**10 + 1
    needed = 2 * rows * classes * times
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    result: dict[str, Any] = {"elements": rows * classes * times, "bytes": needed}
    if available < 1.5 * needed:
        return result | {"skipped": f"{size_name(available // MIB * MIB)} of memory are free"}
    rng = np.random.default_rng(0)
    block = rng.standard_normal((rows, classes), dtype=np.float32).astype(np.float16)
    y = rng.integers(0, classes, rows)
    z = np.empty((times, rows, classes), np.float16)
    z[:] = block
    z = z.reshape(-1, classes)
    targets = np.tile(y, times)
    start = time.perf_counter()
    values = fg.logsumexp(z)
    result["logsumexp, seconds"] = time.perf_counter() - start
    assert (values.reshape(times, rows) == fg.logsumexp(block)).all()
    start = time.perf_counter()
    loss, grad = fg.cross_entropy.value_and_grad(z, targets, out=z, reduction="sum")
    result["value_and_grad in place, seconds"] = time.perf_counter() - start
    expected, slope = fg.cross_entropy.value_and_grad(block, y, reduction="sum")
    assert abs(loss - times * expected) <= 1e-12 * loss, (loss, times * expected)
    for part in np.split(grad.reshape(times, rows, classes), (1, times - 1))[::2]:
        np.testing.assert_array_equal(part[0], slope)
    assert (grad.reshape(times, rows, classes)[:, -1] == slope[-1]).all()
    return result


def main(quick: bool, only: str) -> dict[str, Any]:
    results: dict[str, Any] = {}
    seconds = 0.1 if quick else 0.5
    print(f"load {os.getloadavg()[0]:.1f}")
    if only in "size":
        print("time against size, one thread")
        results["series"] = []
        for one in series():
            found = one.measure(seconds)
            results["series"].append(found)
            what = f"{found['name']:<40}{found['against']}: {one_line(found)}"
            print(f"{what}  exponent {found['exponent']:.2f}", flush=True)
    if only in "threads":
        print("\ntime against threads")
        results["threads"] = [against_threads(case, seconds) for case in thread_cases()]
        for row in results["threads"]:
            ratios = "".join(f"{row['seconds'][0] / s:>7.2f}x" for s in row["seconds"])
            print(f"{row['case']:<60}{ratios}", flush=True)
    if only in "memory" and Path("/proc/self/clear_refs").exists():
        print("\nmemory beyond arguments and results")
        give_memory_back()
        results["memory"] = []
        for case in memory_cases():
            row = memory(case)
            results["memory"].append(row)
            cells = ", ".join(f"{n} {b / MIB:.2f}" for n, b in row["peaks"].items())
            print(f"{row['case']}: {cells} MiB", flush=True)
    if only in "beyond":
        size, allowed = (2 * GIB, GIB // 2) if quick else (6 * GIB, GIB)
        results["larger than memory"] = found = larger_than_memory(size, allowed)
        print(
            f"\nloss of {size_name(found['bytes'])} of logits in a file, with "
            f"{size_name(allowed)} of memory: {found['seconds']:.2f} s, {found['GB/s']:.1f} GB/s"
        )
        results["beyond 2**31"] = found = beyond_31_bits()
        print(f"beyond 2**31 elements: {found}")
    return results


def one_line(found: dict[str, Any]) -> str:
    first, last = found["sizes"][0], found["sizes"][-1]
    return f"{first:,} to {last:,} in {found['seconds'][-1] * 1e3:.2f} ms"


if __name__ == "__main__":
    _in_file(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
