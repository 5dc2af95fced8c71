"""Ragged reductions: sorting ids, sums, softmax.  Shapes are (N, K), or (N, d, K) for rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks import libraries
from benchmarks.work import Call, Case, Work

# isort: split
import numpy as np

import fastgrad as fg

jax, torch = libraries.jax, libraries.torch


@dataclass
class Ragged:
    """Data with one id each; "in order" also as a plan of lengths, none of them 0."""

    x: np.ndarray
    ids: np.ndarray
    k: int
    plan: fg.Segments | None

    @property
    def starts(self) -> np.ndarray:
        assert self.plan is not None
        return self.plan.offsets[:-1]

    @property
    def result(self) -> int:
        """Bytes of one row for every segment."""
        return self.k * self.x[:1].nbytes


def make(case: Case, scale: float = 1.0) -> Ragged:
    n, *d, k = case.shape
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, *d), dtype=np.float32).astype(case.dtype, copy=False)
    x *= scale
    if case.layout == "rows":
        return Ragged(x, rng.integers(0, k, n), k, None)
    # None is empty, of which reduceat would return an element.
    lengths = 1 + rng.multinomial(n - k, np.full(k, 1 / k))
    return Ragged(x, np.repeat(np.arange(k), lengths), k, fg.Segments.from_lengths(lengths))


sort = Work("sort of ids", "segments", make, lambda data: (data.ids.nbytes, data.ids.nbytes))
sums = Work(
    "segment sum",
    "segments",
    make,
    lambda data: (data.x.nbytes + (data.ids.nbytes if data.plan is None else 0), data.result),
)
softmax = Work(
    "segment softmax", "segments", lambda c: make(c, 3.0), lambda data: (data.x.nbytes,) * 2
)

N = 1_000_000
ROWS = ((100_000, 512, 10), (N, 64, 1_000), (N, 8, 100_000), (200_000, 128, 50_000))


def cases() -> Iterator[Case]:
    for k in (10, 1_000, 10_000, N):
        yield Case(sort, (N, k), quick=k in (1_000, N))
    for shape in ROWS:
        yield Case(sums, shape, quick=shape == ROWS[1])
    for dtype in ("float32", "float64"):
        for k in (1_000, 100_000):
            for layout in ("rows", "in order"):
                yield Case(sums, (N, k), dtype, layout, quick=dtype == "float32" and k == 1_000)
            yield Case(softmax, (N, k), dtype, "in order", quick=dtype == "float32" and k == 1_000)


@sort.by("fastgrad")
def _(data: Ragged) -> Call:
    return lambda: fg.Segments.from_ids(data.ids, data.k).order


@sort.by("numpy")
def _(data: Ragged) -> Call:
    return lambda: np.argsort(data.ids, kind="stable")


@sort.by("torch")
def _(data: Ragged) -> Call:
    ids = torch.from_numpy(data.ids)
    return lambda: torch.argsort(ids, stable=True)


@sums.by("fastgrad")
def _(data: Ragged) -> Call:
    if data.plan is not None:
        return lambda: fg.segment_sum(data.x, data.plan)
    return lambda: fg.segment_sum(data.x, data.ids, num_segments=data.k)


@sums.by("numpy bincount")
def _(data: Ragged) -> Call | None:
    if data.x.ndim > 1 or data.plan is not None:
        return None
    return lambda: np.bincount(data.ids, data.x, data.k)


@sums.by("numpy reduceat")
def _(data: Ragged) -> Call | None:
    if data.x.ndim > 1 or data.plan is None:
        return None
    return lambda: np.add.reduceat(data.x, data.starts)


@sums.by("scipy")
def _(data: Ragged) -> Call | None:
    """A product with the sparse one-hot matrix, made before."""
    if data.x.ndim == 1:
        return None
    n = len(data.ids)
    one_hot = libraries.scipy_sparse.csr_array(
        (np.ones(n, data.x.dtype), (data.ids, np.arange(n))), shape=(data.k, n)
    )
    return lambda: one_hot @ data.x


@sums.by("torch")
def _(data: Ragged) -> Call:
    t, ids = torch.from_numpy(data.x), torch.from_numpy(data.ids)
    return lambda: torch.zeros((data.k, *t.shape[1:]), dtype=t.dtype).index_add_(0, ids, t)


@sums.by("jax")
def _(data: Ragged) -> Call:
    """With ids of int32, which are JAX's own."""
    f = jax.jit(lambda x, ids: jax.ops.segment_sum(x, ids, data.k))
    x, ids = jax.numpy.asarray(data.x), jax.numpy.asarray(data.ids.astype(np.int32))
    return lambda: f(x, ids).block_until_ready()


@softmax.by("fastgrad")
def _(data: Ragged) -> Call:
    return lambda: fg.segment_softmax(data.x, data.plan)


@softmax.by("numpy")
def _(data: Ragged) -> Call:
    x, starts, lengths = data.x, data.starts, np.bincount(data.ids)

    def softmax() -> Any:
        e = np.exp(x - np.repeat(np.maximum.reduceat(x, starts), lengths))
        e /= np.repeat(np.add.reduceat(e, starts), lengths)
        return e

    return softmax


@softmax.by("jax")
def _(data: Ragged) -> Call:
    x, ids = jax.numpy.asarray(data.x), jax.numpy.asarray(data.ids.astype(np.int32))

    def softmax(x: Any, ids: Any) -> Any:
        given = {"num_segments": data.k, "indices_are_sorted": True}
        e = jax.numpy.exp(x - jax.ops.segment_max(x, ids, **given)[ids])
        return e / jax.ops.segment_sum(e, ids, **given)[ids]

    f = jax.jit(softmax)
    return lambda: f(x, ids).block_until_ready()
