"""The multiclass hinge with its gradient: Weston and Watkins', which is multi_margin_loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import libraries
from benchmarks.work import Call, Case, Logits, Work, logits, read_with_targets_and_write, unpacked

# isort: split
import numpy as np

import fastgrad as fg

torch = libraries.torch

hinge = Work("hinge loss+gradient", "hinge", logits, read_with_targets_and_write)

AS_TORCH = {"variant": "weston_watkins", "divide": "k"}


def cases() -> Iterator[Case]:
    for dtype in ("float32", "float64"):
        for shape in ((65536, 10), (256, 1000), (4096, 1000)):
            yield Case(hinge, shape, dtype, out=True, quick=dtype == "float32")
    yield Case(hinge, (1024, 32000), out=True)
    yield Case(hinge, (4096, 1000), layout="Fortran", out=True)


@hinge.by("fastgrad")
def _(data: Logits) -> Call:
    loss, out = fg.multiclass_hinge.with_options(**AS_TORCH), data.buffer
    return lambda: loss.value_and_grad(data.z, data.y, axis=data.axis, out=out)


@hinge.by("numpy")
def _(data: Logits) -> Call:
    z, y, out, rows = data.z, data.y, data.buffer, np.arange(len(data.y))
    n, c = z.shape

    def loss_and_gradient() -> Any:
        m = np.subtract(z, z[rows, y, None] - 1, out=out)
        m[rows, y] = 0
        np.maximum(m, 0, out=m)
        loss = m.sum(dtype=np.float64) / (n * c)
        np.sign(m, out=m)
        m[rows, y] = -m.sum(axis=1)
        m /= n * c
        return loss, m

    return loss_and_gradient


@hinge.by("torch", unpacked)
def _(data: Logits) -> Call:
    t, target = torch.from_numpy(data.z).requires_grad_(), torch.from_numpy(data.y)

    def loss_and_gradient() -> Any:
        loss = torch.nn.functional.multi_margin_loss(t, target)
        return loss.detach(), torch.autograd.grad(loss, t)[0]

    return loss_and_gradient
