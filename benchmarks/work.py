"""What is measured: a `Work` knows how each library does it, a `Case` is a work on certain data.

A function that is registered with `by` gets the data of a case and returns a call without
arguments that does the work once; what is not the work (conversion, allocation of `out`) is done
before.  It returns None where the library has nothing for the case.  Contestants are named by their
library, and by the form of its use where there are several: "jax", "torch one-hot".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from benchmarks import libraries

# isort: split
import numpy as np

Call = Callable[[], Any]
Maker = Callable[[Any], Call | None]
Arrays = tuple[np.ndarray, ...]


class Work:
    """One piece of work.

    `make` makes the data of a case; `moved` tells the bytes that must be read and written at least.
    """

    def __init__(
        self,
        name: str,
        group: str,
        make: Callable[[Case], Any],
        moved: Callable[[Any], tuple[int, int]],
    ) -> None:
        self.name, self.group, self.make, self.moved = name, group, make, moved
        self.makers: dict[str, Maker] = {}
        self._views: dict[str, Callable[[Any, Any], Arrays]] = {}

    def by(
        self, contestant: str, view: Callable[[Any, Any], Arrays] | None = None
    ) -> Callable[[Maker], Maker]:
        """Register a contestant; `view(data, result)` is its result as fastgrad gives it."""

        def register(maker: Maker) -> Maker:
            self.makers[contestant] = maker
            if view is not None:
                self._views[contestant] = view
            return maker

        return register

    def calls(self, data: Any, names: Iterable[str] | None = None) -> dict[str, Call]:
        """The calls of fastgrad and of every installed library that can do this; ours first."""
        makers = {name: make for name, make in self.makers.items() if libraries.installed(name)}
        made = {n: make(data) for n, make in makers.items() if names is None or n in names}
        return {name: call for name, call in made.items() if call is not None}

    def arrays(self, contestant: str, data: Any, result: Any) -> Arrays:
        """A result of a contestant as NumPy arrays of our shape."""
        if contestant in self._views:
            return self._views[contestant](data, result)
        parts = result if isinstance(result, tuple) else (result,)
        return tuple(np.asarray(p) for p in parts)

    def check(self, contestant: str, data: Any, result: Any, ours: Arrays, dtype: str) -> None:
        """Refuse a peer that computes something else."""
        # Peers are some tens of ulp off, and their float32 means over many rows some hundreds.
        eps = 2.0**-8 if dtype == "bfloat16" else float(np.finfo(dtype).eps)
        rtol = min(5e3 * eps, 0.02)  # halves: a few units in the last place of 8 bits
        for a, b in zip(self.arrays(contestant, data, result), ours, strict=True):
            assert a.shape == b.shape, f"{contestant}: shape {a.shape}, not {b.shape}"
            if a.dtype == bool:
                assert (a == b).all(), f"{contestant} says {a}, fastgrad {b}"
                continue
            largest = float(np.max(np.abs(b), initial=0, where=np.isfinite(b)))
            apart = np.abs(np.subtract(a, b, dtype=np.result_type(a, b, np.float32)))
            wrong = (apart > rtol * np.abs(b) + 100 * eps * largest) | (np.isnan(a) != np.isnan(b))
            assert not wrong.any(), (
                f"{contestant} gives {a[wrong][0]} where fastgrad gives {b[wrong][0]}; "
                f"{wrong.sum()} of {wrong.size} elements are apart"
            )


@dataclass(frozen=True)
class Case:
    """A work on data of one shape, dtype and layout."""

    work: Work
    shape: tuple[int, ...]
    dtype: str = "float32"
    layout: str = "rows"
    """ "rows": classes, or columns, last and in C order; the works say which others they know."""
    out: bool = False
    """Whether the result goes into memory that exists already."""
    cold: bool = False
    """Whether other memory is read before every call."""
    quick: bool = False
    """Whether the quick run has it."""

    def __str__(self) -> str:
        parts = [self.work.name, "x".join(map(str, self.shape)), self.dtype]
        parts += [self.layout] * (self.layout != "rows")
        return " ".join(parts + ["out="] * self.out + ["cold"] * self.cold)

    @property
    def data(self) -> Any:
        return _data(self)

    @property
    def ours(self) -> Arrays:
        """What fastgrad gives."""
        return _ours(self)

    def calls(self, names: Iterable[str] | None = None) -> dict[str, Call]:
        """Calls of all contestants whose results agree with ours."""
        calls = self.work.calls(self.data, names)
        for name, call in calls.items():
            if name.split()[0] != "fastgrad":
                self.work.check(name, self.data, call(), self.ours, self.dtype)
        return calls


# One case at a time: contestants follow one another, and data are large.
@lru_cache(maxsize=1)
def _data(case: Case) -> Any:
    return case.work.make(case)


@lru_cache(maxsize=1)
def _ours(case: Case) -> Arrays:
    (call,) = case.work.calls(case.data, ["fastgrad"]).values()
    return tuple(np.array(a) for a in case.work.arrays("fastgrad", case.data, call()))


# ---- logits, which most works have --------------------------------------------------------------


@dataclass
class Logits:
    """Scores z with their classes y."""

    z: np.ndarray
    y: np.ndarray
    axis: int = -1
    out: bool = False

    @property
    def buffer(self) -> np.ndarray | None:
        return np.empty_like(self.z) if self.out else None

    @property
    def packed(self) -> tuple[np.ndarray, np.ndarray, int]:
        """The same problem on the same memory for libraries that want it in C order."""
        if self.z.flags.c_contiguous:
            return self.z, self.y, self.axis
        return self.z.T[None], self.y[None], 1

    def unpacked(self, result: Any) -> np.ndarray:
        """What came of `packed`, in the shape of z."""
        a = to_numpy(result)
        if a.ndim <= 1 or a.shape == self.z.shape:
            return a
        return a[0].T


def to_numpy(a: Any) -> np.ndarray:
    """Of torch's bfloat16 too, which NumPy lacks."""
    if libraries.torch is not None and isinstance(a, libraries.torch.Tensor):
        return a.float().numpy() if a.dtype == libraries.torch.bfloat16 else a.numpy()
    return np.asarray(a)


def unpacked(data: Logits, result: Any) -> Arrays:
    """The view of every contestant that was given `packed`."""
    parts = result if isinstance(result, tuple) else (result,)
    return tuple(data.unpacked(p) for p in parts)


def logits(case: Case, scale: float = 3.0) -> Logits:
    """Layouts: "rows", "axis 1" (classes second), "Fortran"."""
    rng = np.random.default_rng(0)
    order = "F" if case.layout == "Fortran" else "C"
    z = rng.standard_normal(case.shape, dtype=np.float32)
    z *= scale
    z = np.asarray(z.astype(to_dtype(case.dtype), copy=False), order=order)
    axis = 1 if case.layout == "axis 1" else -1
    rows = list(case.shape)
    classes = rows.pop(axis)
    return Logits(z, rng.integers(0, classes, rows), axis, case.out)


def to_dtype(name: str) -> Any:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def to_torch(a: np.ndarray) -> Any:
    if a.dtype.name == "bfloat16":
        return libraries.torch.from_numpy(a.view(np.int16)).view(libraries.torch.bfloat16)
    return libraries.torch.from_numpy(a)


def read_and_write(data: Logits) -> tuple[int, int]:
    return data.z.nbytes, data.z.nbytes


def read_only(data: Logits) -> tuple[int, int]:
    return data.z.nbytes + data.y.nbytes, 0


def read_with_targets_and_write(data: Logits) -> tuple[int, int]:
    return data.z.nbytes + data.y.nbytes, data.z.nbytes
