"""Write the .json files here: PyTorch's own sample inputs of some functions, with its results.

    pip install torch expecttest numpy && python tests/peers_samples/make.py

Frozen, because PyTorch is not installed where the tests run, and its internal module of samples may
move.  Each has PyTorch's value and gradient in float64, for the upstream gradient 1, 2, 3, ...

- cross_entropy: also with label smoothing, which the samples leave out, and with the Hessian
  product.
- binary_cross_entropy, multi_margin: without the negative margin.
- segment_reduce: without `initial` and products, which fastgrad does not have.

Weights, some of them negative there, are made positive: fastgrad refuses the others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from torch.testing._internal.common_methods_invocations import op_db

Sample = dict[str, Any]


def sample_inputs(name: str) -> Iterator[Any]:
    torch.manual_seed(0)
    for op in op_db:
        if op.name == name:
            yield from op.sample_inputs("cpu", torch.float64, requires_grad=False)


def plain(options: dict[str, Any]) -> dict[str, Any]:
    return {k: a.tolist() if torch.is_tensor(a) else a for k, a in options.items()}


def positive(options: dict[str, Any]) -> dict[str, Any]:
    return {k: a.abs() if torch.is_tensor(a) else a for k, a in options.items()}


def results(f: Callable[[Any], Any], x: Any) -> tuple[Sample, Any, Any]:
    """Value and gradient; and the input and gradient, still parts of the graph."""
    x = x.detach().clone().requires_grad_()
    value = f(x)
    upstream = torch.arange(1, value.numel() + 1, dtype=x.dtype).reshape(value.shape)
    (grad,) = torch.autograd.grad((value * upstream).sum(), x, create_graph=True)
    got = {"value": value, "upstream": upstream, "grad": grad}
    return {"input": x.tolist()} | {k: a.tolist() for k, a in got.items()}, x, grad


def cross_entropy() -> Iterator[Sample]:
    for sample in sample_inputs("nn.functional.cross_entropy"):
        for smoothing in ({}, {"label_smoothing": 0.3}):
            target, options = sample.args[0], positive(sample.kwargs) | smoothing
            record, x, grad = results(
                lambda x, t=target, o=options: functional.cross_entropy(x, t, **o), sample.input
            )
            v = torch.sin(torch.arange(x.numel(), dtype=x.dtype)).reshape(x.shape)
            (hvp,) = torch.autograd.grad((grad * v).sum(), x)
            yield record | {
                "target": target.tolist(),
                "options": plain(options),
                "v": v.tolist(),
                "hvp": hvp.tolist(),
            }


def losses(name: str) -> Iterator[Sample]:
    loss = getattr(functional, name)
    for sample in sample_inputs(f"nn.functional.{name}"):
        target, options = sample.args[0], positive(sample.kwargs)
        if options.get("margin", 1.0) >= 0:
            record, _, _ = results(lambda x, t=target, o=options: loss(x, t, **o), sample.input)
            yield record | {"target": target.tolist(), "options": plain(options)}


def segment_reduce() -> Iterator[Sample]:
    for sample in sample_inputs("_segment_reduce"):
        reduce, options = sample.args[0], sample.kwargs
        if reduce != "prod" and not options["unsafe"] and options["initial"] == 1:
            kept = {k: options[k] for k in ("axis", "lengths", "offsets") if k in options}
            record, _, _ = results(
                lambda x, r=reduce, o=kept: torch.segment_reduce(x, r, **o), sample.input
            )
            yield record | {"reduce": reduce, "options": plain(kept)}


def main() -> None:
    files = {
        "cross_entropy": cross_entropy(),
        "binary_cross_entropy": losses("binary_cross_entropy_with_logits"),
        "multi_margin": losses("multi_margin_loss"),
        "segment_reduce": segment_reduce(),
    }
    for name, samples in files.items():
        lines = ",\n".join(json.dumps(s) for s in samples)
        text = f'{{"torch": "{torch.__version__}", "samples": [\n{lines}\n]}}\n'
        Path(__file__).with_name(f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
