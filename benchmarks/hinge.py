"""multiclass_hinge beside PyTorch's multi_margin_loss: value and gradient, medians in turns.

    python benchmarks/hinge.py [--shape N C ...] [--threads 1] [--dtype float32] [--seconds 2]

Weston and Watkins' variant over the number of classes is multi_margin_loss; results are compared
before anything is timed.  "CS" is Crammer and Singer's variant, which PyTorch does not have; "out"
writes the gradient into the same array every time; "axis 0" has the classes along the first axis
(PyTorch gets the transposed tensor).  PyTorch's gradient is that of autograd.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from clock import medians

import fastgrad as fg

SHAPES = [(64, 10), (65536, 10), (4096, 100), (256, 1000), (4096, 1000), (1024, 32000)]
TORCH = {"variant": "weston_watkins", "divide": "k"}


def contestants(z: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Calls that return the mean loss and its gradient; ours first."""
    out, columns = np.empty_like(z), np.ascontiguousarray(z.T)
    x = torch.from_numpy(z).requires_grad_()
    x_columns = torch.from_numpy(columns).requires_grad_()
    t = torch.from_numpy(y)
    margin_loss = torch.nn.functional.multi_margin_loss
    loss = fg.multiclass_hinge.with_options(**TORCH)

    def peer(leaf: Any, scores: Any) -> Any:
        value = margin_loss(scores, t)
        return float(value.detach()), torch.autograd.grad(value, leaf)[0]

    return {
        "fastgrad": lambda: fg.multiclass_hinge.value_and_grad(z, y, **TORCH),
        "PyTorch": lambda: peer(x, x),
        "fastgrad out": lambda: fg.multiclass_hinge.value_and_grad(z, y, out=out, **TORCH),
        "fastgrad squared out": lambda: fg.multiclass_hinge.value_and_grad(
            z, y, squared=True, out=out, **TORCH
        ),
        "fastgrad CS out": lambda: fg.multiclass_hinge.value_and_grad(z, y, out=out),
        "fastgrad axis 0": lambda: fg.multiclass_hinge.value_and_grad(columns, y, axis=0, **TORCH),
        "PyTorch axis 0": lambda: peer(x_columns, x_columns.T),
        "fastgrad value": lambda: loss(z, y),
        "PyTorch value": lambda: float(margin_loss(x.detach(), t)),
        "np.copyto": lambda: np.copyto(out, z),
    }


def agree(calls: dict[str, Any], dtype: Any) -> None:
    """Our loss and gradient are PyTorch's, up to the rounding of its float sums."""
    rtol = 1e3 * np.finfo(dtype).eps
    value, grad = calls["fastgrad"]()
    other, slope = calls["PyTorch"]()
    np.testing.assert_allclose(value, other, rtol=rtol)
    np.testing.assert_allclose(grad, slope.numpy(), rtol=rtol, atol=rtol * abs(grad).max())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--shape", type=int, nargs=2, action="append", metavar=("N", "C"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--seconds", type=float, default=2.0)
    args = parser.parse_args()
    fg.set_num_threads(args.threads)
    torch.set_num_threads(args.threads)
    print(f"{args.dtype}, {args.threads} thread(s): microseconds, PyTorch's over ours")
    for n, c in args.shape or SHAPES:
        rng = np.random.default_rng(0)
        z = rng.standard_normal((n, c)).astype(args.dtype)
        calls = contestants(z, rng.integers(0, c, n))
        agree(calls, args.dtype)
        print(f"\n{n} x {c}")
        for ours, peer in (
            ("fastgrad", "PyTorch"),
            ("fastgrad out", "PyTorch"),
            ("fastgrad squared out", "PyTorch"),
            ("fastgrad CS out", "PyTorch"),
            ("fastgrad axis 0", "PyTorch axis 0"),
            ("fastgrad value", "PyTorch value"),
            ("fastgrad out", "np.copyto"),
        ):
            pair = {name: calls[name] for name in (ours, peer)}
            times = medians(pair, args.seconds / 7)
            print(
                f"  {ours:<21}{times[ours] * 1e6:>10.1f}   {peer:<15}{times[peer] * 1e6:>10.1f}"
                f"{times[peer] / times[ours]:>8.2f}x",
                flush=True,
            )


if __name__ == "__main__":
    main()
