"""Class centroids, shapes (N, d, K); the centroid hinge with its gradient, shapes (B, N, d, K)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks import libraries
from benchmarks.segments import ROWS, Ragged, make
from benchmarks.work import Call, Case, Work

# isort: split
import numpy as np

import fastgrad as fg

jax, torch = libraries.jax, libraries.torch


@dataclass
class Items:
    X: np.ndarray
    y: np.ndarray
    k: int
    margin: float
    out: np.ndarray | None


def items(case: Case) -> Items:
    b, n, d, k = case.shape
    rng = np.random.default_rng(0)
    X = rng.standard_normal((b, n, d), dtype=np.float32).astype(case.dtype, copy=False)
    margin = float(np.sqrt(d)) * 0.9  # about half the rows lie beyond it
    out = np.empty_like(X) if case.out else None
    return Items(X, rng.integers(0, k, (b, n)), k, margin, out)


centroids = Work(
    "class centroids",
    "centroids",
    make,
    lambda data: (data.x.nbytes + data.ids.nbytes, data.result),
)
hinge = Work(
    "centroid hinge loss+gradient",
    "centroids",
    items,
    lambda data: (data.X.nbytes + data.y.nbytes, data.X.nbytes),
)


def cases() -> Iterator[Case]:
    for shape in ROWS:
        yield Case(centroids, shape, quick=shape in ROWS[:2])
    yield Case(centroids, ROWS[1], "float64")
    yield Case(hinge, (32, 1000, 50, 25), out=True, quick=True)
    yield Case(hinge, (1, 100_000, 64, 100), out=True)


@centroids.by("fastgrad")
def _(data: Ragged) -> Call:
    return lambda: fg.class_centroids(data.x, data.ids, num_classes=data.k).centroids


@centroids.by("numpy")
def _(data: Ragged) -> Call | None:
    """Sorted, then reduceat over the classes that are there."""

    def means() -> Any:
        order = np.argsort(data.ids, kind="stable")
        found, starts, counts = np.unique(data.ids[order], return_index=True, return_counts=True)
        result = np.full((data.k, data.x.shape[1]), np.nan, data.x.dtype)
        result[found] = np.add.reduceat(data.x[order], starts) / counts[:, None]
        return result

    return means


@centroids.by("scipy")
def _(data: Ragged) -> Call:
    """A product with the sparse one-hot matrix."""
    n = len(data.ids)

    def means() -> Any:
        ones = np.ones(n, data.x.dtype)
        one_hot = libraries.scipy_sparse.csr_array(
            (ones, data.ids, np.arange(n + 1)), shape=(n, data.k)
        )
        counts = np.bincount(data.ids, minlength=data.k).astype(data.x.dtype)
        with np.errstate(invalid="ignore"):
            return (one_hot.T @ data.x) / counts[:, None]

    return means


@centroids.by("torch")
def _(data: Ragged) -> Call:
    t, ids = torch.from_numpy(data.x), torch.from_numpy(data.ids)

    def means() -> Any:
        total = torch.zeros((data.k, t.shape[1]), dtype=t.dtype).index_add_(0, ids, t)
        return total / torch.bincount(ids, minlength=data.k)[:, None]

    return means


@centroids.by("jax")
def _(data: Ragged) -> Call:
    def means(x: Any, ids: Any) -> Any:
        total = jax.ops.segment_sum(x, ids, data.k)
        counts = jax.ops.segment_sum(jax.numpy.ones(len(ids), x.dtype), ids, data.k)
        return total / counts[:, None]

    f = jax.jit(means)
    x, ids = jax.numpy.asarray(data.x), jax.numpy.asarray(data.ids.astype(np.int32))
    return lambda: f(x, ids).block_until_ready()


@centroids.by("pandas")
def _(data: Ragged) -> Call:
    frame = libraries.pandas.DataFrame(data.x)
    return lambda: frame.groupby(data.ids).mean().reindex(range(data.k)).to_numpy()


# ---- the centroid hinge -------------------------------------------------------------------------


@hinge.by("fastgrad")
def _(data: Items) -> Call:
    return lambda: fg.centroid_hinge.value_and_grad(
        data.X, data.y, margin=data.margin, out=data.out
    )


@hinge.by("torch loop")
def _(data: Items) -> Call:
    """The forum's loop over the classes of every item, made right."""
    x, labels = torch.from_numpy(data.X).requires_grad_(), torch.from_numpy(data.y)

    def loss_and_gradient() -> Any:
        losses = []
        for rows, ids in zip(x, labels, strict=True):
            of_classes = []
            for k in torch.unique(ids):
                subset = rows[ids == k]
                distances = torch.linalg.norm(subset - subset.mean(dim=0), dim=1)
                of_classes.append(_hinge(distances, data.margin).mean())
            losses.append(torch.stack(of_classes).mean())
        loss = torch.stack(losses).mean()
        return loss.item(), torch.autograd.grad(loss, x)[0]

    return loss_and_gradient


@hinge.by("torch one-hot")
def _(data: Items) -> Call:
    """Class sums by a matrix product; what is absent masked; centroids to their rows by another."""
    x, labels = torch.from_numpy(data.X).requires_grad_(), torch.from_numpy(data.y)

    def loss_and_gradient() -> Any:
        table = torch.nn.functional.one_hot(labels, data.k).to(x.dtype)
        counts = table.sum(dim=1)
        shares = table / counts.clamp(min=1)[:, None]
        distances = torch.linalg.norm(x - table @ (shares.transpose(1, 2) @ x), dim=2)
        of_classes = (shares * _hinge(distances, data.margin)[..., None]).sum(dim=1)
        loss = (of_classes.sum(dim=1) / (counts > 0).sum(dim=1)).mean()
        return loss.item(), torch.autograd.grad(loss, x)[0]

    return loss_and_gradient


def _hinge(distances: Any, margin: float) -> Any:
    return torch.clamp(distances - margin, min=0.0) ** 2
