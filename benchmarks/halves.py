"""float16 and bfloat16 beside float32 of the same shape: what half the bytes buy.

    python benchmarks/halves.py [--rounds N] [N C ...]

Medians of the thread's own time in microseconds, all three in turns in one process, one thread,
`out=` given; behind a half its ratio to float32.  Out of the caches it should be below 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

import fastgrad as fg

SHAPES = [65536, 10, 1 << 20, 10, 4096, 1000, 65536, 1000, 1024, 32000, 64, 128_000]


def kinds() -> dict[str, Any]:
    """The dtypes to compare; float32 first."""
    found: dict[str, Any] = {"float32": np.float32, "float16": np.float16}
    try:
        import ml_dtypes
    except ImportError:
        print("bfloat16 needs ml_dtypes", file=sys.stderr)
    else:
        found["bfloat16"] = ml_dtypes.bfloat16
    return found


def works(z: Any, y: Any) -> dict[str, Callable[[], Any]]:
    out, labels = np.empty_like(z), np.arange(z.shape[1]) == y[:, None]
    return {
        "softmax": lambda: fg.softmax(z, out=out),
        "log_softmax": lambda: fg.log_softmax(z, out=out),
        "cross_entropy": lambda: fg.cross_entropy(z, y),
        "cross_entropy.value_and_grad": lambda: fg.cross_entropy.value_and_grad(z, y, out=out),
        "the same, label_smoothing=0.1": lambda: fg.cross_entropy.value_and_grad(
            z, y, label_smoothing=0.1, out=out
        ),
        "binary_cross_entropy.value_and_grad": lambda: fg.binary_cross_entropy.value_and_grad(
            z, labels, out=out
        ),
        "token_stats": lambda: fg.token_stats(z, y),
    }


def seconds(call: Callable[[], Any]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


def race(n: int, c: int, rounds: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, c), dtype=np.float32) * 3
    y = rng.integers(0, c, n)
    calls = {name: works(x.astype(dtype), y) for name, dtype in kinds().items()}
    print(f"\n{f'({n}, {c}), us':<36}" + "".join(f"{name:>18}" for name in calls))
    for what in calls["float32"]:
        times: dict[str, list[float]] = {name: [] for name in calls}
        for i in range(rounds + 1):
            for name in calls:
                took = seconds(calls[name][what])
                if i > 0:  # the first round touches the memory
                    times[name].append(took)
        wide = median(times["float32"])
        row = f"{1e6 * wide:>18.0f}"
        for name in list(calls)[1:]:
            half = median(times[name])
            row += f"{1e6 * half:>11.0f}{half / wide:>6.2f}x"
        print(f"{what:<36}{row}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("shapes", type=int, nargs="*", metavar="N C")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    shapes = args.shapes or SHAPES
    if len(shapes) % 2:
        parser.error("shapes come in pairs, N and C")
    fg.set_num_threads(1)
    for n, c in zip(shapes[::2], shapes[1::2], strict=True):
        race(n, c, args.rounds)


if __name__ == "__main__":
    main()
