"""Segments beside the peers: the sort, centroids, sums of one column, segment softmax.

    BENCH_THREADS=1 python benchmarks/segments.py [--seconds 2] [--only WORD ...]

Medians of interleaved rounds in one process, ids of int64 (int32 for JAX, which has no others by
default), float32 data, results freshly allocated; what ours is compared with is checked first.
The ratio is that of the fastest peer to ours.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import clock
import numpy as np
import peers

import fastgrad as fg

Calls = dict[str, Callable[[], Any]]
ROWS = 1_000_000
CENTROIDS = [(100_000, 512, 10), (ROWS, 64, 1_000), (ROWS, 8, 100_000), (200_000, 128, 50_000)]


def sorting(k: int) -> Calls:
    ids = np.random.default_rng(0).integers(0, k, ROWS)
    return {
        "fastgrad": lambda: fg.Segments.from_ids(ids, k).order,
        "numpy argsort": lambda: np.argsort(ids, kind="stable"),
    }


def in_jax(x: Any, ids: Any, k: int, mean: bool = False) -> Callable[[], Any]:
    jnp, sums = peers.jax.numpy, peers.jax.ops.segment_sum

    def f(x: Any, ids: Any) -> Any:
        total = sums(x, ids, k)
        return total / sums(jnp.ones(len(ids), x.dtype), ids, k)[:, None] if mean else total

    jitted, xj, ij = peers.jax.jit(f), jnp.asarray(x), jnp.asarray(ids.astype(np.int32))
    return lambda: jitted(xj, ij).block_until_ready()


def centroids(n: int, d: int, k: int) -> Calls:
    """JAX's segment_sum alone against our sum; PyTorch's index_add."""
    rng = np.random.default_rng(0)
    x, ids = rng.standard_normal((n, d), dtype=np.float32), rng.integers(0, k, n)
    calls: Calls = {"fastgrad": lambda: fg.segment_sum(x, ids, num_segments=k)}
    if peers.jax is not None:
        calls["jax segment_sum"] = in_jax(x, ids, k)
    if peers.torch is not None:
        t, i = peers.torch.from_numpy(x), peers.torch.from_numpy(ids)
        calls["torch index_add"] = lambda: peers.torch.zeros(k, d).index_add_(0, i, t)
    return calls


def means(n: int, d: int, k: int) -> Calls:
    rng = np.random.default_rng(0)
    x, ids = rng.standard_normal((n, d), dtype=np.float32), rng.integers(0, k, n)
    calls: Calls = {"fastgrad": lambda: fg.segment_mean(x, ids, num_segments=k)}
    if peers.jax is not None:
        calls["jax sum / count"] = in_jax(x, ids, k, mean=True)
    return calls


def column(k: int, dtype: type, in_order: bool) -> Calls:
    rng = np.random.default_rng(0)
    x, ids = rng.standard_normal(ROWS).astype(dtype), rng.integers(0, k, ROWS)
    if not in_order:
        return {
            "fastgrad": lambda: fg.segment_sum(x, ids, num_segments=k),
            "numpy bincount": lambda: np.bincount(ids, x, k),
        }
    # None is empty, of which reduceat would return an element.
    plan = fg.Segments.from_lengths(1 + rng.multinomial(ROWS - k, np.full(k, 1 / k)))
    starts = plan.offsets[:-1]
    return {
        "fastgrad": lambda: fg.segment_sum(x, plan),
        "numpy reduceat": lambda: np.add.reduceat(x, starts),
    }


def softmax(k: int, dtype: type) -> Calls:
    """In NumPy's best form: rows in the order of segments, the lengths known."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 3, ROWS).astype(dtype)
    lengths = 1 + rng.multinomial(ROWS - k, np.full(k, 1 / k))
    plan = fg.Segments.from_lengths(lengths)
    starts = plan.offsets[:-1]

    def numpy() -> Any:
        e = np.exp(x - np.repeat(np.maximum.reduceat(x, starts), lengths))
        e /= np.repeat(np.add.reduceat(e, starts), lengths)
        return e

    return {"fastgrad": lambda: fg.segment_softmax(x, plan), "numpy": numpy}


def cases() -> Iterator[tuple[str, Calls]]:
    for k in (10, 1_000, 10_000, 1_000_000):
        yield f"sort, K={k:,}", sorting(k)
    for n, d, k in CENTROIDS:
        yield f"sum {n:,} x {d}, K={k:,}", centroids(n, d, k)
    for n, d, k in CENTROIDS:
        yield f"mean {n:,} x {d}, K={k:,}", means(n, d, k)
    for dtype in (np.float32, np.float64):
        for k in (10, 1_000, 100_000):
            yield f"column, K={k:,}, {dtype.__name__}", column(k, dtype, False)
            yield f"column in order, K={k:,}, {dtype.__name__}", column(k, dtype, True)
    for dtype in (np.float32, np.float64):
        for k in (1_000, 10_000, 100_000):
            yield f"softmax, K={k:,}, {dtype.__name__}", softmax(k, dtype)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--only", nargs="+", default=[""], help="words of the cases to run")
    args = parser.parse_args()
    fg.set_num_threads(peers.THREADS)
    print(f"{peers.THREADS} thread(s)\n{'':<36}{'ours, ms':>10}{'peer, ms':>10}{'ratio':>8}")
    for name, calls in cases():
        if not all(word in name for word in args.only):
            continue
        results = [np.asarray(f(), float) for f in calls.values()]
        for other in results[1:]:
            # Peers add float32 in float32: a thousandth of the largest is far above their errors.
            np.testing.assert_allclose(
                results[0], other, rtol=1e-3, atol=1e-3 * np.nanmax(np.abs(other))
            )
        times = clock.medians(calls, args.seconds)
        ours, *others = times.items()
        if others:
            peer = min(others, key=lambda item: item[1])
            print(
                f"{name:<36}{1e3 * ours[1]:>10.2f}{1e3 * peer[1]:>10.2f}"
                f"{peer[1] / ours[1]:>7.2f}x  {peer[0]}",
                flush=True,
            )


if __name__ == "__main__":
    main()
