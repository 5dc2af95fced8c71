"""Checking the gradient of cross-entropy by the checker of each library: all give a verdict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import libraries
from benchmarks.work import Arrays, Call, Case, Logits, Work, logits

# isort: split
import numpy as np

import fastgrad as fg

jax, torch = libraries.jax, libraries.torch


def verdict(data: Logits, result: Any) -> Arrays:
    return (np.array(bool(result)),)


checker = Work("check of CE gradient", "checker", logits, lambda data: (data.z.nbytes, 0))


def cases() -> Iterator[Case]:
    yield Case(checker, (8, 10), "float64", quick=True)
    yield Case(checker, (100, 20), "float64")


@checker.by("fastgrad", verdict)
def _(data: Logits) -> Call:
    return lambda: fg.gradcheck(fg.cross_entropy, data.z, data.y)


@checker.by("scipy", verdict)
def _(data: Logits) -> Call:
    """All elements by forward differences; the user judges the distance that it gives."""
    import scipy.optimize

    shape, y = data.z.shape, data.y

    def f(z: np.ndarray) -> float:
        return fg.cross_entropy(z.reshape(shape), y)

    def grad(z: np.ndarray) -> np.ndarray:
        return fg.cross_entropy.grad(z.reshape(shape), y).ravel()

    return lambda: scipy.optimize.check_grad(f, grad, data.z.ravel()) < 1e-5


@checker.by("torch", verdict)
def _(data: Logits) -> Call:
    """All elements by central differences."""
    z, y = torch.from_numpy(data.z).requires_grad_(), torch.from_numpy(data.y)
    return lambda: torch.autograd.gradcheck(lambda z: torch.nn.functional.cross_entropy(z, y), z)


@checker.by("jax", verdict)
def _(data: Logits) -> Call:
    """One random direction."""
    import jax.test_util

    y = jax.numpy.asarray(data.y)

    def loss(z: Any) -> Any:
        own = jax.numpy.take_along_axis(z, y[:, None], 1)
        return jax.numpy.mean(jax.nn.logsumexp(z, 1, keepdims=True) - own)

    f, z = jax.jit(loss), jax.numpy.asarray(data.z)

    def check() -> bool:
        jax.test_util.check_grads(f, (z,), order=1, modes=["rev"])
        return True

    return check
