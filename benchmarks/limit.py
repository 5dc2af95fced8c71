"""What this machine can move: our own copy, streamed copy and read, of several sizes."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import libraries
from benchmarks.clock import race

# isort: split
import numpy as np

import fastgrad as fg
from fastgrad._kernels import bandwidth

KIB, MIB = 2**10, 2**20
SIZES = (256 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB, 512 * MIB)
"""Bytes that are touched: of a copy, source and result together."""


@dataclass
class Limit:
    """Bytes a second; those of copies count what is read and what is written."""

    size: int
    threads: int
    copy: float
    stream: float
    read: float

    @property
    def fastest_copy(self) -> float:
        return max(self.copy, self.stream)


def measure(threads: int, seconds: float = 0.3) -> list[Limit]:
    found = []
    with fg.num_threads(threads):
        for size in SIZES:
            src, dst, all_ = (np.ones(n, np.uint8) for n in (size // 2, size // 2, size))
            times = race(
                {
                    "copy": lambda d=dst, s=src: bandwidth.copy(d, s),
                    "stream": lambda d=dst, s=src: bandwidth.stream(d, s),
                    "stream pages": lambda d=dst, s=src: bandwidth.stream_pages(d, s),
                    "read": lambda a=all_: bandwidth.read(a),
                },
                seconds,
                threads,
            )
            speeds = {name: size / t.median for name, t in times.items()}
            # Which of the two is faster depends on the processor.
            stream = max(speeds["stream"], speeds["stream pages"])
            found.append(Limit(size, threads, speeds["copy"], stream, speeds["read"]))
    return found


def least_seconds(limits: list[Limit], read: int, written: int) -> float:
    """What it takes to move that much: what is written, copied; the rest, read.

    At the speed of the nearest size that was measured.
    """
    near = min(limits, key=lambda one: abs(math.log(one.size / max(read + written, 1))))
    copied = 2 * min(read, written)
    return copied / near.fastest_copy + (read + written - copied) / near.read


def main(seconds: float) -> dict[str, Any]:
    """Every number of threads from 1 to that of this run, doubled each time."""
    results = []
    print(f"load {os.getloadavg()[0]:.1f}")
    print(f"{'threads':>7}{'touched':>10}{'copy':>9}{'streamed':>10}{'read':>8}   GB/s")
    threads = 1
    while threads <= libraries.THREADS:
        for one in measure(threads, seconds):
            speeds = f"{one.copy / 1e9:>9.1f}{one.stream / 1e9:>10.1f}{one.read / 1e9:>8.1f}"
            print(f"{threads:>7}{size_name(one.size):>10}{speeds}", flush=True)
            results.append(asdict(one))
        threads *= 2
    return {"limits": results}


def size_name(size: float) -> str:
    return f"{size / KIB:g} KiB" if size < MIB else f"{size / MIB:g} MiB"
