"""The loss of a linear head with its gradients in weights and rows; shapes are (N, d, K)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks import libraries
from benchmarks.work import Call, Case, Work

# isort: split
import numpy as np

import fastgrad as fg

torch = libraries.torch


@dataclass
class Head:
    X: np.ndarray
    W: np.ndarray
    y: np.ndarray


def make(case: Case) -> Head:
    n, d, k = case.shape
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d), dtype=np.float32)
    W = rng.standard_normal((k, d), dtype=np.float32)
    W *= np.float32(d**-0.5)
    return Head(X.astype(case.dtype), W.astype(case.dtype), rng.integers(0, k, n))


def moved(data: Head) -> tuple[int, int]:
    """Bytes alone: three products of matrices take most of the time."""
    return data.X.nbytes + data.W.nbytes + data.y.nbytes, data.X.nbytes + data.W.nbytes


linear = Work("linear CE loss+gradients", "linear", make, moved)


def cases() -> Iterator[Case]:
    yield Case(linear, (1797, 64, 10), quick=True)
    yield Case(linear, (1797, 64, 10), "float64")
    yield Case(linear, (2048, 256, 4000), quick=True)
    yield Case(linear, (1024, 128, 32000))


@linear.by("fastgrad")
def _(data: Head) -> Call:
    def loss_and_gradients() -> Any:
        loss, grads = fg.linear_cross_entropy.value_and_grad(data.X, data.W, data.y, wrt=("W", "X"))
        return loss, *grads

    return loss_and_gradients


@linear.by("numpy")
def _(data: Head) -> Call:
    X, W, y, rows = data.X, data.W, data.y, np.arange(len(data.y))

    def loss_and_gradients() -> Any:
        z = X @ W.T
        z -= z.max(axis=1, keepdims=True)
        own = z[rows, y]
        np.exp(z, out=z)
        total = z.sum(axis=1, keepdims=True)
        loss = float(np.mean(np.log(total[:, 0]) - own))
        z /= total * len(y)
        z[rows, y] -= 1 / len(y)
        return loss, z.T @ X, z @ W

    return loss_and_gradients


def _in_torch(data: Head, **options: Any) -> Call:
    X, W = (torch.from_numpy(a).requires_grad_() for a in (data.X, data.W))
    y = torch.from_numpy(data.y)

    def loss_and_gradients() -> Any:
        if options:
            loss = torch.nn.functional.linear_cross_entropy(X, W, y, **options)
        else:
            loss = torch.nn.functional.cross_entropy(X @ W.T, y)
        return loss.detach(), *torch.autograd.grad(loss, (W, X))

    return loss_and_gradients


@linear.by("torch")
def _(data: Head) -> Call:
    return _in_torch(data)


@linear.by("torch chunked")
def _(data: Head) -> Call | None:
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):  # before 2.13
        return None
    return _in_torch(data, options=torch.nn.LinearCrossEntropyOptions(batch_chunk_size=1024))


@linear.by("jax")
def _(data: Head) -> Call:
    jax = libraries.jax
    X, W, y = (jax.numpy.asarray(a) for a in (data.X, data.W, data.y))

    def loss(X: Any, W: Any) -> Any:
        z = X @ W.T
        own = jax.numpy.take_along_axis(z, y[:, None], 1)
        return jax.numpy.mean(jax.nn.logsumexp(z, 1, keepdims=True) - own)

    f = jax.jit(jax.value_and_grad(loss, (1, 0)))

    def loss_and_gradients() -> Any:
        mean, grads = jax.block_until_ready(f(X, W))
        return mean, *grads

    return loss_and_gradients
