"""Fixtures of all tests: instruction set, dtype, seeded data, ulps, guarded memory, operations.

Helpers are fixtures because test files cannot import each other (`--import-mode=importlib`).
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import fastgrad as fg
from fastgrad import _reference as ref
from fastgrad._kernels import isa as _isa
from fastgrad._kernels import rows as _rows

LD = np.longdouble


@pytest.fixture(params=_isa.available_names())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set of this machine, one after the other."""
    before = _isa._use(request.param)
    yield request.param
    _isa._use(before)


@pytest.fixture(params=[np.float32, np.float64], ids=["f32", "f64"])
def dtype(request: pytest.FixtureRequest) -> type:
    return request.param


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Another seed for every test, the same in every run; pytest shows it when the test fails."""
    seed = zlib.crc32(request.node.nodeid.encode())
    print(f"seed {seed}")
    return np.random.default_rng(seed)


@contextlib.contextmanager
def _on_threads(n: int) -> Iterator[None]:
    with threadpool_limits(n, user_api="openmp"), fg.num_threads(n):
        assert fg.get_num_threads() == (n if _rows.build_info()[1] else 1)  # 0 without OpenMP
        yield


@pytest.fixture(scope="session")
def on_threads() -> Callable[[int], contextlib.AbstractContextManager[None]]:
    """Really n, even on a machine with fewer cores: both limits are raised."""
    return _on_threads


# ---- ulps ---------------------------------------------------------------------------------------


def _spacing(magnitude: np.ndarray, dtype: Any) -> np.ndarray:
    info = np.finfo(dtype)
    _, exponent = np.frexp(magnitude)
    exponent = np.where(magnitude == 0, info.minexp, exponent - 1)
    return np.ldexp(LD(1), np.maximum(exponent, info.minexp) - info.nmant)


def _ulps(actual: Any, exact: Any, scale: Any = None) -> np.ndarray:
    """Errors in ulps of `exact`, or of `scale`; where both are NaN, or the same infinity, 0."""
    actual, exact = np.asarray(actual), np.asarray(exact, LD)
    assert actual.shape == exact.shape, f"shape {actual.shape}, not {exact.shape}"
    wide = actual.astype(LD)
    same = (wide == exact) | (np.isnan(wide) & np.isnan(exact))
    magnitude = np.abs(exact if scale is None else np.asarray(scale, LD))
    with np.errstate(invalid="ignore"):
        error = np.abs(wide - exact)
        magnitude = np.where(np.isfinite(magnitude), magnitude, 0)
        error = np.where(same, 0, error / _spacing(magnitude, actual.dtype))
    return np.where(np.isnan(error), np.inf, error)


@pytest.fixture(scope="session")
def ulps() -> Callable[..., np.ndarray]:
    return _ulps


def _assert_ulps(actual: Any, exact: Any, bar: float, scale: Any = None, what: Any = "") -> None:
    error = _ulps(actual, exact, scale)
    if error.size and not error.max() <= bar:
        at = np.unravel_index(int(error.argmax()), error.shape)
        raise AssertionError(
            f"{what}: {float(error.max()):.2f} ulp at {tuple(map(int, at))}, more than {bar}: "
            f"{np.asarray(actual)[at]!r}, not {np.asarray(exact)[at]!r}"
        )


@pytest.fixture(scope="session")
def assert_ulps() -> Callable[..., None]:
    """assert_ulps(actual, exact, bar, scale=None, what="")"""
    return _assert_ulps


# ---- guarded memory -----------------------------------------------------------------------------

GUARD = 0xA5
PAGE = mmap.PAGESIZE
_READ_WRITE, _NONE = 3, 0


def _protect(address: int, size: int, how: int) -> None:
    """mprotect; on a machine without it only the guard bytes are left."""
    try:
        change = ctypes.CDLL(None, use_errno=True).mprotect
    except (AttributeError, OSError, TypeError):
        return
    change.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert change(address, size, how) == 0, ctypes.get_errno()


class Guard:
    """Memory between two pages that nobody may touch; unused bytes of it hold a pattern."""

    def __init__(self, room: int) -> None:
        self._room = -(-room // PAGE) * PAGE
        self._map = mmap.mmap(-1, self._room + 2 * PAGE)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._start = self._bytes.ctypes.data
        for page in (self._start, self._start + PAGE + self._room):
            _protect(page, PAGE, _NONE)
        self._inner = self._bytes[PAGE : PAGE + self._room]
        self._taken = slice(0, 0)
        self._inner[:] = GUARD

    def place(self, a: np.ndarray, at: str = "end") -> np.ndarray:
        """A copy of `a`, in its memory order, that touches the page behind it or the one before."""
        self.check()
        self._inner[self._taken] = GUARD
        begin = self._room - a.nbytes if at == "end" else 0
        assert 0 <= begin <= self._room, "the guarded room is too small"
        self._taken = slice(begin, begin + a.nbytes)
        strides = np.empty_like(a).strides
        copy = np.ndarray(a.shape, a.dtype, self._inner[self._taken].data, strides=strides)
        copy[...] = a
        return copy

    def check(self) -> None:
        taken = self._taken
        assert (self._inner[: taken.start] == GUARD).all(), "written before the buffer"
        assert (self._inner[taken.stop :] == GUARD).all(), "written behind the buffer"

    def release(self) -> None:
        for page in (self._start, self._start + PAGE + self._room):
            _protect(page, PAGE, _READ_WRITE)


@pytest.fixture
def guard() -> Iterator[Callable[[int], Guard]]:
    """guard(room) is memory between two protected pages; what lies around arrays is checked."""
    made: list[Guard] = []

    def make(room: int) -> Guard:
        made.append(Guard(room))
        return made[-1]

    yield make
    for g in made:
        g.check()
        g.release()


# ---- operations ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Op:
    """One kernel as the sweeps over shapes, layouts and lengths see it.

    `inputs` draws what the call needs beside x; `scale` says in ulps of what the error counts
    (None: of the exact value), because a sum of terms of mixed sign is as good as its terms.
    """

    name: str
    inputs: Callable[[np.random.Generator, np.ndarray, int], tuple[Any, ...]]
    run: Callable[..., Any]
    reference: Callable[..., Any]
    bar: float
    scale: Callable[..., Any] | None = None
    reduces: bool = False

    def check(self, actual: Any, x: np.ndarray, axis: int, inputs: Any, what: Any = "") -> None:
        exact = self.reference(x, axis, *inputs)
        scale = None if self.scale is None else self.scale(x, axis, *inputs)
        assert np.asarray(actual).dtype == x.dtype.newbyteorder("=")
        _assert_ulps(actual, exact, self.bar, scale, what or self.name)


def _nothing(rng: Any, x: Any, axis: int) -> tuple[()]:
    return ()


def _full(rng: np.random.Generator, x: np.ndarray, axis: int) -> tuple[np.ndarray]:
    return (rng.normal(size=x.shape).astype(x.dtype.newbyteorder("=")),)


def _positive(rng: np.random.Generator, x: np.ndarray, axis: int) -> tuple[np.ndarray]:
    return (np.abs(_full(rng, x, axis)[0]) + x.dtype.type(0.25),)


def _without(x: np.ndarray, axis: int) -> tuple[int, ...]:
    axis %= max(x.ndim, 1)
    return x.shape[:axis] + x.shape[axis + 1 :]


def _classes(x: np.ndarray, axis: int) -> int:
    return x.shape[axis] if x.ndim else 1


def _targets(rng: np.random.Generator, x: np.ndarray, axis: int) -> tuple[np.ndarray]:
    y = np.asarray(rng.integers(0, _classes(x, axis), _without(x, axis)))
    if y.size > 3:
        y.reshape(-1)[2] = -100
    return (y,)


def _labels(rng: np.random.Generator, x: np.ndarray, axis: int) -> tuple[np.ndarray]:
    return (np.asarray(rng.integers(0, 2, x.shape)),)


def _signs(rng: np.random.Generator, x: np.ndarray, axis: int) -> tuple[np.ndarray]:
    return (np.asarray(rng.choice([-1, 1], x.shape)),)


def _rowwise(rng: np.random.Generator, x: np.ndarray, axis: int) -> tuple[np.ndarray]:
    return (rng.normal(size=_without(x, axis)).astype(x.dtype.newbyteorder("=")),)


def _sum(a: np.ndarray, axis: int) -> np.ndarray:
    return np.sum(a, axis=axis, keepdims=True) if a.ndim else a


def _pg(x: np.ndarray, axis: int, g: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    p = ref.softmax(x, axis)
    return p, np.abs(g), _sum(p * np.abs(g), axis)


def _size_of_log(x: np.ndarray, axis: int, *b: np.ndarray) -> np.ndarray:
    """max(|lse|, |max|) is what both parts of max + log1p(...) are rounded to."""
    top = np.max(x, axis) if x.ndim else x
    log = ref.logsumexp(x, axis, b=b[0] if b else None)
    return np.maximum(np.abs(log), np.abs(top))


def _softmax_scale(x: np.ndarray, axis: int, g: np.ndarray) -> np.ndarray:
    p, size, mean = _pg(x, axis, g)
    return p * (size + mean)


def _pulled_scale(x: np.ndarray, axis: int, g: np.ndarray) -> np.ndarray:
    p, size, _ = _pg(x, axis, g)
    return size + p * _sum(size, axis)


def _pushed_scale(x: np.ndarray, axis: int, g: np.ndarray) -> np.ndarray:
    _, size, mean = _pg(x, axis, g)
    return size + mean


def _dot_scale(x: np.ndarray, axis: int, g: np.ndarray) -> np.ndarray:
    _, _, mean = _pg(x, axis, g)
    return mean.reshape(_without(x, axis))


# Bars in ulps: those of NUMERICS.md section 1 (softmax 2.5, logsumexp 2, loss 4, gradient 8 at the
# target). Where it names none: log_softmax has relative error 4 eps; derivatives are p (2.5 ulp)
# with three more roundings of half an ulp each, in ulps of their largest term.
OPS = [
    Op(
        "softmax",
        _nothing,
        lambda x, axis, **kw: fg.softmax(x, axis, **kw),
        lambda x, axis: ref.softmax(x, axis),
        2.5,
    ),
    Op(
        "log_softmax",
        _nothing,
        lambda x, axis, **kw: fg.log_softmax(x, axis, **kw),
        lambda x, axis: ref.log_softmax(x, axis),
        4,
    ),
    Op(
        "logsumexp",
        _nothing,
        lambda x, axis, **kw: fg.logsumexp(x, axis, **kw),
        lambda x, axis: ref.logsumexp(x, axis),
        2,
        _size_of_log,
        reduces=True,
    ),
    Op(
        "logsumexp-b",
        _positive,
        lambda x, axis, b, **kw: fg.logsumexp(x, axis, b=b, **kw),
        lambda x, axis, b: ref.logsumexp(x, axis, b=b),
        4,
        # Where factors make the sum 1 by chance, its rounding is that of 1, not of its log.
        lambda x, axis, b: np.maximum(_size_of_log(x, axis, b), 1),
        reduces=True,
    ),
    Op(
        "cross_entropy",
        _targets,
        lambda x, axis, y: fg.cross_entropy(x, y, axis=axis, reduction="none"),
        lambda x, axis, y: ref.cross_entropy(np.atleast_1d(x), y, axis=axis, reduction="none"),
        4,
        reduces=True,
    ),
    Op(
        "cross_entropy.grad",
        _targets,
        lambda x, axis, y, **kw: fg.cross_entropy.grad(x, y, axis=axis, reduction="sum", **kw),
        lambda x, axis, y: ref.cross_entropy_grad(
            np.atleast_1d(x), y, axis=axis, reduction="sum"
        ).reshape(x.shape),
        8,
    ),
    Op(
        "softmax.vjp",
        _full,
        lambda x, axis, g, **kw: fg.softmax.vjp(x, g, axis, **kw),
        lambda x, axis, g: ref.softmax_vjp(x, g, axis),
        4,
        _softmax_scale,
    ),
    Op(
        "log_softmax.vjp",
        _full,
        lambda x, axis, g, **kw: fg.log_softmax.vjp(x, g, axis, **kw),
        lambda x, axis, g: ref.log_softmax_vjp(x, g, axis),
        4,
        _pulled_scale,
    ),
    Op(
        "log_softmax.jvp",
        _full,
        lambda x, axis, g, **kw: fg.log_softmax.jvp(x, g, axis, **kw),
        lambda x, axis, g: ref.log_softmax_jvp(x, g, axis),
        4,
        _pushed_scale,
    ),
    Op(
        "logsumexp.vjp",
        _rowwise,
        lambda x, axis, g, **kw: fg.logsumexp.vjp(x, g, axis, **kw),
        lambda x, axis, g: ref.logsumexp_vjp(x, g, axis),
        4,
    ),
    Op(
        "logsumexp.jvp",
        _full,
        lambda x, axis, v, **kw: fg.logsumexp.jvp(x, v, axis, **kw),
        lambda x, axis, v: ref.logsumexp_jvp(x, v, axis),
        4,
        _dot_scale,
        reduces=True,
    ),
    # Elementwise: the axis means nothing to them, the sweeps over layouts and lengths do.
    Op(
        "sigmoid",
        _nothing,
        lambda x, axis, **kw: fg.sigmoid(x, **kw),
        lambda x, axis: ref.sigmoid(x),
        2.5,
    ),
    Op(
        "log_sigmoid.vjp",
        _full,
        lambda x, axis, g, **kw: fg.log_sigmoid.vjp(x, g, **kw),
        lambda x, axis, g: ref.log_sigmoid_vjp(x, g),
        4,
    ),
    Op(
        "binary_cross_entropy.grad",
        _labels,
        lambda x, axis, y, **kw: fg.binary_cross_entropy.grad(x, y, reduction="sum", **kw),
        lambda x, axis, y: ref.binary_cross_entropy_grad(x, y, reduction="sum"),
        8,
    ),
    Op(
        "hinge.grad",
        _signs,
        lambda x, axis, y, **kw: fg.hinge.grad(x, y, squared=True, reduction="sum", **kw),
        lambda x, axis, y: ref.hinge_grad(x, y, squared=True, reduction="sum"),
        4,
    ),
    # Subtraction, square and sum round a few times: 6 ulp, as test_hinge.py counts them.
    *[
        Op(
            f"multiclass_hinge.grad {variant}",
            _targets,
            lambda x, axis, y, variant=variant, **kw: fg.multiclass_hinge.grad(
                x, y, axis=axis, variant=variant, squared=True, reduction="sum", **kw
            ),
            lambda x, axis, y, variant=variant: ref.multiclass_hinge_grad(
                np.atleast_1d(x), y, axis=axis, variant=variant, squared=True, reduction="sum"
            ).reshape(x.shape),
            6,
        )
        for variant in ("crammer_singer", "weston_watkins")
    ],
]


@pytest.fixture(params=OPS, ids=lambda op: op.name)
def op(request: pytest.FixtureRequest) -> Op:
    """Every kernel, with its reference and its bar."""
    return request.param


@pytest.fixture(params=[op for op in OPS if not op.reduces], ids=lambda op: op.name)
def elementwise_op(request: pytest.FixtureRequest) -> Op:
    """Kernels whose result has the shape of x."""
    return request.param


STREAMED = (
    "softmax",
    "log_softmax",
    "softmax.vjp",
    "log_softmax.jvp",
    "cross_entropy.grad",
    "sigmoid",
    "binary_cross_entropy.grad",
    "hinge.grad",
    "multiclass_hinge.grad crammer_singer",
    "multiclass_hinge.grad weston_watkins",
)


@pytest.fixture(params=[op for op in OPS if op.name in STREAMED], ids=lambda op: op.name)
def streamed_op(request: pytest.FixtureRequest) -> Op:
    """Kernels that store large results past the caches."""
    return request.param


@pytest.fixture(scope="session")
def raises_exactly() -> Callable[..., Any]:
    """raises_exactly(kind, message, f, *args, **kwargs): this class, this message in full."""

    def check(kind: type[Exception], message: str, f: Callable[..., Any], *args: Any, **kw: Any):
        with pytest.raises(kind) as caught:
            f(*args, **kw)
        assert str(caught.value) == message
        assert type(caught.value) is kind

    return check


# ---- cross-entropy with options -----------------------------------------------------------------


@dataclass(frozen=True)
class Mass:
    """A set of cross-entropy's options, as the sweeps over all of them see it.

    `draw` makes arguments of every kind of row: ordinary, far from zero, confident, with -inf, and
    ignored in each way there is.  What must not be read (ignored rows, dropped classes) holds NaN.
    """

    soft: bool = False
    weight: bool = False
    sample: bool = False
    smoothing: float = 0.0
    z_loss: float = 0.0
    where: bool = False

    def __str__(self) -> str:
        names = [
            f for f in ("weight", "sample", "smoothing", "z_loss", "where") if getattr(self, f)
        ]
        return "+".join(["soft" if self.soft else "hard", *names])

    def draw(
        self, rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, axis: int = -1
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """(logits, target, v, options)"""
        axis %= len(shape)
        classes, rows = shape[axis], _without(np.empty(shape, bool), axis)
        n = int(np.prod(rows))
        z = rng.normal(0, 3, (n, classes))
        v = rng.normal(0, 1, (n, classes))
        z[1::7] *= 10
        z[2::7] += 1e4
        z[3::7] -= 3e8
        z[np.arange(4, n, 7), rng.integers(0, classes, len(z[4::7]))] += 60
        if classes > 2:
            z[np.arange(5, n, 7), rng.integers(0, classes, len(z[5::7]))] = -np.inf
        y = rng.integers(0, classes, n)
        t = rng.random((n, classes))
        t[:, 1:] *= rng.random((n, classes - 1)) < 0.4  # mass stays on class 0
        t[4::14] = 0
        t[np.arange(4, n, 14), z[4::14].argmax(1)] = 1  # one-hot, where it is nearly certain
        y[4::14] = z[4::14].argmax(1)
        options: dict[str, Any] = {"axis": axis}
        gone = np.zeros(n, bool)
        if self.weight:
            w = rng.uniform(0.2, 2, classes)
            if classes > 2:
                w[classes // 2] = 0
            options["weight"] = w.astype(dtype)
            gone |= (not self.soft) & (self.smoothing == 0) & (w[y] == 0)
        if self.sample:
            s = rng.uniform(0.2, 2, n)
            s[6::9] = 0
            gone |= s == 0
            options["sample_weight"] = s.astype(dtype).reshape(rows)
        if self.smoothing:
            options["label_smoothing"] = self.smoothing
        if self.z_loss:
            options["z_loss"] = self.z_loss
        if not self.soft and n > 3:
            y[8::11] = -100
            gone |= y == -100
        if self.where:
            keep = rng.random((n, classes)) < 0.7
            if self.soft:
                keep[np.arange(n), rng.integers(0, classes, n)] = True
                t[~keep] = 0
            else:
                keep[np.arange(n), np.maximum(y, 0)] = True
            keep[10::12] = False
            t[10::12] = 0
            gone |= ~keep.any(1)
            z[~keep] = v[~keep] = np.nan
            options["where"] = np.moveaxis(keep.reshape(*rows, classes), -1, axis).copy()
        z[gone] = v[gone] = np.nan
        z, t, v = (
            np.moveaxis(a.astype(dtype).reshape(*rows, classes), -1, axis).copy() for a in (z, t, v)
        )
        return z, t if self.soft else y.reshape(rows), v, options


MASS_KINDS = ("value", "grad", "hvp", "hess_diag")


def _mass_run(kind: str, z: Any, target: Any, v: Any, **options: Any) -> Any:
    """One row's result each, unless `reduction` says otherwise."""
    options = {"reduction": "none"} | options
    if kind == "value":
        return fg.cross_entropy(z, target, **options)
    f = getattr(fg.cross_entropy, kind)
    return f(z, target, v, **options) if kind == "hvp" else f(z, target, **options)


def _mass_exact(kind: str, z: Any, target: Any, v: Any, **options: Any) -> np.ndarray:
    options = {"reduction": "none"} | options
    if kind == "value":
        return ref.cross_entropy(z, target, **options)
    f = getattr(ref, f"cross_entropy_{kind}")
    return f(z, target, v, **options) if kind == "hvp" else f(z, target, **options)


@np.errstate(all="ignore")
def _mass_size(
    kind: str,
    z: np.ndarray,
    target: np.ndarray,
    v: np.ndarray,
    *,
    axis: int = -1,
    weight: Any = None,
    sample_weight: Any = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    where: Any = None,
    grad_output: Any = None,
    **_: Any,
) -> np.ndarray:
    """The numbers that each element of a derivative is added up from: the sum of their sizes.

    At the largest class nothing is 1 - p: its size is that of the other classes' masses and terms.
    A probability in the subnormal range counts as one at its upper end: it has no digits to lose.
    """
    tiny = np.finfo(z.dtype).tiny / 4
    x, d = (np.moveaxis(np.asarray(a, LD), axis, -1) for a in (z, v))
    keep = np.broadcast_to(True if where is None else np.asarray(where), z.shape)
    keep = np.moveaxis(keep, axis, -1)
    x = np.where(keep, x, -np.inf)
    d = np.where(keep, d, 0)
    left = np.arange(x.shape[-1]) == x.argmax(-1)[..., None]
    top = x.max(-1, keepdims=True)
    e = np.where(left, 0, np.exp(x - top))
    total = 1 + e.sum(-1, keepdims=True)
    p = np.where(left, 1, e) / total
    p = np.where(x > -np.inf, np.maximum(p, tiny), 0)
    if target.dtype.kind == "f":
        t = np.moveaxis(np.asarray(target, LD), axis, -1)
    else:
        t = (np.arange(x.shape[-1]) == target[..., None]).astype(LD)
    kept = keep.sum(-1, keepdims=True)
    m = keep * ((1 - LD(label_smoothing)) * t + label_smoothing / kept)
    m = m if weight is None else m * weight
    # The bar of logsumexp counts in ulps of the larger of its two parts.
    ridge = 2 * z_loss * np.maximum(np.abs(top), np.abs(top + np.log(total)))
    b = m.sum(-1, keepdims=True) + ridge
    if kind == "grad":
        others = np.where(left, 0, m).sum(-1, keepdims=True)
        rest = e.sum(-1, keepdims=True) / total
        size = np.where(left, others + ridge + b * rest, b * p + m)
    elif kind == "hvp":
        at_top = np.where(left, d, 0).sum(-1, keepdims=True)
        d = np.abs(d - at_top)
        dot = (p * d).sum(-1, keepdims=True)
        size = p * (b * (d + dot) + 2 * z_loss * (np.abs(at_top) + dot))
    else:
        size = p * (b * np.where(left, e.sum(-1, keepdims=True) / total, 1 - p) + 2 * z_loss * p)
    for factor in (sample_weight, grad_output):
        if factor is not None:
            size = size * np.abs(np.asarray(factor, LD))[..., None]
    return np.moveaxis(size, -1, axis)


# In eps of the sum of sizes above. NUMERICS.md section 1 allows a loss 4 and the gradient at the
# target 8. A derivative is made of p (2.5), B (1: its masses are added wide, then rounded), and
# half an eps for the factor, a product and a sum each: 5; a second one has one more difference and
# product: 6. Where a result is subnormal, it and the last factor are each rounded to a multiple of
# the smallest one.
MASS_BARS = {"value": 4, "grad": 5, "hvp": 6, "hess_diag": 6}


def _assert_mass(kind: str, actual: Any, exact: Any, size: Any = None, what: Any = "") -> None:
    """Errors in eps of the value, or of the sum of sizes; NaN, infinities and zeros in place."""
    actual, exact = np.asarray(actual), np.asarray(exact, LD)
    assert actual.shape == exact.shape, f"{what}: shape {actual.shape}, not {exact.shape}"
    info = np.finfo(actual.dtype)
    with np.errstate(all="ignore"):
        size = np.abs(exact) if size is None else size
        error = np.abs(actual.astype(LD) - exact)
        bar = MASS_BARS[kind] * LD(info.eps) * size + 2 * (exact != 0) * LD(info.smallest_subnormal)
        same = (np.isnan(actual) & np.isnan(exact)) | (actual == exact.astype(actual.dtype))
        good = same | (error <= bar)
    if not good.all():
        at = tuple(map(int, np.argwhere(~good)[0]))
        with np.errstate(all="ignore"):
            ratio = float((error / (LD(info.eps) * size))[at])
        raise AssertionError(
            f"{what}: {kind} at {at} is {actual[at]!r}, not {exact[at]!r}; {ratio:.2f} eps of its "
            f"size ({int((~good).sum())} such of {good.size})"
        )


@dataclass(frozen=True)
class MassChecks:
    """run, exact, size and check of cross-entropy's results, by kind."""

    Case = Mass
    kinds = MASS_KINDS
    run = staticmethod(_mass_run)
    exact = staticmethod(_mass_exact)
    size = staticmethod(_mass_size)
    assert_good = staticmethod(_assert_mass)

    @staticmethod
    def check(
        kind: str, actual: Any, z: Any, target: Any, v: Any, what: Any = "", **kw: Any
    ) -> None:
        exact = _mass_exact(kind, z, target, v, **kw)
        size = None if kind == "value" else _mass_size(kind, z, target, v, **kw)
        _assert_mass(kind, actual, exact, size, what)


@pytest.fixture(scope="session")
def mass() -> MassChecks:
    """Cross-entropy with every option: cases, and checks against the twin."""
    return MassChecks()


MASSES = [
    Mass(),
    *(
        Mass(soft, True, True, 0.1, 0.01, where)
        for soft in (False, True)
        for where in (False, True)
    ),
]


@pytest.fixture(params=MASSES, ids=str)
def mass_case(request: pytest.FixtureRequest) -> Mass:
    """No option; and all of them, with class indices and probabilities, without and with a mask."""
    return request.param


@pytest.fixture(params=MASS_KINDS)
def mass_kind(request: pytest.FixtureRequest) -> str:
    """Value, gradient, Hessian times vector, diagonal of the Hessian."""
    return request.param
