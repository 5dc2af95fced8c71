"""linear_cross_entropy with all gradients: seconds and memory beside the dense and chunked peers.

    python benchmarks/linear.py [--shape N D K] [--threads 1 2] [--rounds 3] [--only NAME ...]

Every measurement runs in a process of its own, in turns, so that a slow moment of the machine hits
them all.  A process calls twice and reports the second call's seconds, and the peak of resident
memory over both calls beyond inputs and results (BLAS's own buffers count).  "numpy" is the usual
idiom; "numpy in place" reuses one array of logits; "torch 1024 rows" is the fastest chunk size that
was found for PyTorch, whose default is "torch chunked".
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

CONTESTANTS = (
    "fastgrad",
    "numpy",
    "numpy in place",
    "torch",
    "torch chunked",
    "torch 1024 rows",
)


def contestant(name: str, X: Any, W: Any, y: Any, threads: int) -> Callable[[], Any]:
    """The call to time: the mean loss, and its gradients in W and X."""
    import numpy as np

    rows = np.arange(len(y))

    def numpy() -> Any:
        z = X @ W.T
        z = z - z.max(axis=1, keepdims=True)
        G = np.exp(z)
        total = G.sum(axis=1, keepdims=True)
        loss = float(np.mean(np.log(total[:, 0]) - z[rows, y]))
        G /= total
        G[rows, y] -= 1
        G /= len(y)
        return loss, G.T @ X, G @ W

    def numpy_in_place() -> Any:
        z = X @ W.T
        z -= z.max(axis=1, keepdims=True)
        own = z[rows, y]
        np.exp(z, out=z)
        total = z.sum(axis=1, keepdims=True)
        loss = float(np.mean(np.log(total[:, 0]) - own))
        z /= total * len(y)
        z[rows, y] -= 1 / len(y)
        return loss, z.T @ X, z @ W

    if name == "numpy":
        return numpy
    if name == "numpy in place":
        return numpy_in_place
    if name == "fastgrad":
        import fastgrad as fg

        fg.set_num_threads(threads)

        def fastgrad() -> Any:
            loss, grad = fg.linear_cross_entropy.value_and_grad(X, W, y, wrt=("W", "X"))
            return loss, *grad

        return fastgrad

    import torch

    torch.set_num_threads(threads)
    Xt, Wt = (torch.from_numpy(a).requires_grad_() for a in (X, W))
    yt = torch.from_numpy(y)
    options = {
        "torch": None,
        "torch chunked": torch.nn.LinearCrossEntropyOptions(),
        "torch 1024 rows": torch.nn.LinearCrossEntropyOptions(batch_chunk_size=1024),
    }[name]

    def call() -> Any:
        loss = torch.nn.functional.linear_cross_entropy(Xt, Wt, yt, options=options)
        return float(loss.detach()), *torch.autograd.grad(loss, (Wt, Xt))

    return call


def resident(field: str) -> float:
    """MiB that /proc tells of this process: VmRSS now, VmHWM at the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(s for s in lines if s.startswith(field)).split()[1]) / 1024


def child(name: str, shape: list[int], threads: int) -> None:
    import numpy as np

    n, d, k = shape
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d), dtype=np.float32)
    W = rng.standard_normal((k, d), dtype=np.float32)
    W *= np.float32(d**-0.5)
    y = rng.integers(0, k, n)
    call = contestant(name, X, W, y, threads)
    before = resident("VmRSS")
    call()
    start = time.perf_counter()
    loss, *grads = call()
    seconds = time.perf_counter() - start
    beyond = resident("VmHWM") - before - (X.nbytes + W.nbytes) / 2**20
    slopes = [float(np.abs(np.asarray(g)).sum(dtype=np.float64)) for g in grads]
    print(json.dumps({"seconds": seconds, "MiB": beyond, "check": [loss, *slopes]}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shape", type=int, nargs=3, default=[4096, 512, 128_000])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=CONTESTANTS, choices=CONTESTANTS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.shape, args.threads[0])
        return
    for threads in args.threads:
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in args.only}
        for _ in range(args.rounds):
            for name in args.only:
                results[name].append(measured(name, args.shape, threads))
        print(f"\n(N, d, K) = {tuple(args.shape)}, float32, {threads} thread(s)")
        print(f"{'':<18}{'seconds':>9}{'to ours':>9}{'MiB':>8}", flush=True)
        ours = median(r["seconds"] for r in results[args.only[0]])
        for name, runs in results.items():
            seconds = median(r["seconds"] for r in runs)
            peak = max(r["MiB"] for r in runs)
            print(f"{name:<18}{seconds:>9.2f}{seconds / ours:>8.2f}x{peak:>8.0f}", flush=True)


def measured(name: str, shape: list[int], threads: int) -> dict[str, Any]:
    """One measurement, whose loss and sums of |gradient| agree with those of the first."""
    variables = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    done = subprocess.run(
        [sys.executable, __file__, "--child", name, "--threads", str(threads), "--shape"]
        + [str(n) for n in shape],
        env={**os.environ, **dict.fromkeys(variables, str(threads))},
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    expected = EXPECTED.setdefault(tuple(shape), result["check"])
    for a, b in zip(result["check"], expected, strict=True):
        # Sums of 1e5 float32 terms in other orders: far below 1e-4, far above any mistake.
        assert abs(a - b) <= 1e-4 * abs(b), (name, result["check"], expected)
    return result


EXPECTED: dict[tuple[int, ...], list[float]] = {}

if __name__ == "__main__":
    main()
