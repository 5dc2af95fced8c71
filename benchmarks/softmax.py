"""softmax, and for the accuracy table log_softmax and logsumexp."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import libraries
from benchmarks.work import (
    Call,
    Case,
    Logits,
    Work,
    logits,
    read_and_write,
    read_only,
    to_torch,
    unpacked,
)

# isort: split
import numpy as np

import fastgrad as fg

jax, torch = libraries.jax, libraries.torch

softmax = Work("softmax", "softmax", logits, read_and_write)
log_softmax = Work("log_softmax", "softmax", logits, read_and_write)
logsumexp = Work("logsumexp", "softmax", logits, read_only)

HALVES = ("float16", "bfloat16")


def cases() -> Iterator[Case]:
    for dtype in ("float32", "float64"):
        quick = dtype == "float32"
        for shape in ((65536, 10), (65536, 32), (256, 1000), (4096, 1000), (1024, 32000)):
            yield Case(softmax, shape, dtype, out=True, quick=quick)
            yield Case(softmax, shape, dtype)
        yield Case(softmax, (8, 21, 256, 256), dtype, "axis 1", out=True, quick=quick)
        yield Case(softmax, (4096, 1000), dtype, "Fortran", out=True)
        yield Case(softmax, (65536, 10), dtype, "Fortran", out=True)
    for dtype in HALVES:
        yield Case(softmax, (4096, 1000), dtype, out=True)
    for shape in ((64, 10), (256, 1000)):
        yield Case(softmax, shape, out=True, cold=True)


@softmax.by("fastgrad")
def _(data: Logits) -> Call:
    z, axis, out = data.z, data.axis, data.buffer
    if axis == -1 and out is None:
        return lambda: fg.softmax(z)
    return lambda: fg.softmax(z, axis, out=out)


@softmax.by("numpy")
def _(data: Logits) -> Call | None:
    z, axis, out = data.z, data.axis, data.buffer

    def softmax() -> Any:
        e = np.subtract(z, z.max(axis=axis, keepdims=True), out=out)
        np.exp(e, out=e)
        e /= e.sum(axis=axis, keepdims=True)
        return e

    return None if z.dtype.name in HALVES else softmax


@softmax.by("scipy")
def _(data: Logits) -> Call | None:
    if data.out or data.z.dtype.name in HALVES:
        return None
    return lambda: libraries.scipy_special.softmax(data.z, axis=data.axis)


@softmax.by("torch", unpacked)
def _(data: Logits) -> Call:
    z, _, axis = data.packed
    t = to_torch(z)
    if not data.out:
        return lambda: torch.softmax(t, axis)
    out = torch.empty_like(t)
    return lambda: torch.softmax(t, axis, out=out)


@softmax.by("jax", unpacked)
def _(data: Logits) -> Call:
    z, _, axis = data.packed
    t, f = jax.numpy.asarray(z), jax.jit(lambda t: jax.nn.softmax(t, axis))
    return lambda: f(t).block_until_ready()


# ---- log_softmax, logsumexp ---------------------------------------------------------------------


@log_softmax.by("fastgrad")
def _(data: Logits) -> Call:
    return lambda: fg.log_softmax(data.z, data.axis)


@log_softmax.by("numpy")
def _(data: Logits) -> Call:
    def log_softmax() -> Any:
        shifted = data.z - data.z.max(axis=data.axis, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=data.axis, keepdims=True))

    return log_softmax


@log_softmax.by("scipy")
def _(data: Logits) -> Call:
    return lambda: libraries.scipy_special.log_softmax(data.z, axis=data.axis)


@log_softmax.by("torch")
def _(data: Logits) -> Call:
    t = torch.from_numpy(data.z)
    return lambda: torch.log_softmax(t, data.axis)


@log_softmax.by("jax")
def _(data: Logits) -> Call:
    return lambda: jax.nn.log_softmax(jax.numpy.asarray(data.z), data.axis)


@logsumexp.by("fastgrad")
def _(data: Logits) -> Call:
    return lambda: fg.logsumexp(data.z, data.axis)


@logsumexp.by("numpy")
def _(data: Logits) -> Call:
    def logsumexp() -> Any:
        top = data.z.max(axis=data.axis, keepdims=True)
        return np.squeeze(top, data.axis) + np.log(np.exp(data.z - top).sum(axis=data.axis))

    return logsumexp


@logsumexp.by("scipy")
def _(data: Logits) -> Call:
    return lambda: libraries.scipy_special.logsumexp(data.z, axis=data.axis)


@logsumexp.by("torch")
def _(data: Logits) -> Call:
    t = torch.from_numpy(data.z)
    return lambda: torch.logsumexp(t, data.axis)


@logsumexp.by("jax")
def _(data: Logits) -> Call:
    return lambda: jax.nn.logsumexp(jax.numpy.asarray(data.z), data.axis)
