"""Write cross_entropy.json: PyTorch's own sample inputs for cross_entropy, with its results.

    pip install torch expecttest numpy && python tests/peers_samples/make.py

Frozen, because PyTorch is not installed where the tests run, and its internal module of samples may
move.  Each sample comes twice, as it is and with label smoothing, which the samples leave out; and
each has PyTorch's value, gradient and Hessian product in float64, for the upstream gradient given.
Class weights, some of them negative there, are made positive: fastgrad refuses the others.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from torch.testing._internal.common_methods_invocations import op_db


def results(x: Any, target: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Value, and derivatives of its product with the upstream gradient 1, 2, 3, ..."""
    x = x.detach().clone().requires_grad_()
    value = functional.cross_entropy(x, target, **options)
    upstream = torch.arange(1, value.numel() + 1, dtype=x.dtype).reshape(value.shape)
    v = torch.sin(torch.arange(x.numel(), dtype=x.dtype)).reshape(x.shape)
    (grad,) = torch.autograd.grad((value * upstream).sum(), x, create_graph=True)
    (hvp,) = torch.autograd.grad((grad * v).sum(), x)
    return {
        "value": value.tolist(),
        "upstream": upstream.tolist(),
        "grad": grad.tolist(),
        "v": v.tolist(),
        "hvp": hvp.tolist(),
    }


def main() -> None:
    torch.manual_seed(0)
    (op,) = (o for o in op_db if o.name == "nn.functional.cross_entropy")
    samples = []
    for sample in op.sample_inputs("cpu", torch.float64, requires_grad=False):
        for smoothing in ({}, {"label_smoothing": 0.3}):
            options = sample.kwargs | smoothing
            if "weight" in options:
                options["weight"] = options["weight"].abs()
            plain = {k: a.tolist() if torch.is_tensor(a) else a for k, a in options.items()}
            samples.append(
                {
                    "input": sample.input.tolist(),
                    "target": sample.args[0].tolist(),
                    "options": plain,
                    **results(sample.input, sample.args[0], options),
                }
            )
    path = Path(__file__).with_name("cross_entropy.json")
    lines = ",\n".join(json.dumps(s) for s in samples)
    text = f'{{"torch": "{torch.__version__}", "samples": [\n{lines}\n]}}\n'
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
