"""Cross-entropy: value, gradient, options, second derivatives; for accuracy the losses of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks import libraries
from benchmarks.work import (
    Arrays,
    Call,
    Case,
    Logits,
    Work,
    logits,
    read_only,
    read_with_targets_and_write,
    to_torch,
    unpacked,
)

# isort: split
import numpy as np

import fastgrad as fg

jax, torch = libraries.jax, libraries.torch

both = Work("CE loss+gradient", "cross-entropy gradient", logits, read_with_targets_and_write)
value = Work("CE loss", "cross-entropy value", logits, read_only)
losses = Work("CE losses of rows", "cross-entropy value", logits, read_only)

HALVES = ("float16", "bfloat16")


def cases() -> Iterator[Case]:
    shapes = ((65536, 10), (65536, 32), (256, 1000), (4096, 1000), (1024, 32000))
    for dtype in ("float32", "float64"):
        quick = dtype == "float32"
        for shape in shapes:
            yield Case(both, shape, dtype, out=True, quick=quick)
            yield Case(both, shape, dtype)
        yield Case(both, (8, 21, 256, 256), dtype, "axis 1", out=True)
        yield Case(both, (4096, 1000), dtype, "Fortran", out=True)
        for shape in shapes:
            yield Case(value, shape, dtype, quick=quick and shape != (65536, 32))
    for dtype in HALVES:
        yield Case(both, (4096, 1000), dtype, out=True)
    yield Case(both, (256, 1000), out=True, cold=True)
    for work in OPTIONS:
        for shape in ((65536, 10), (256, 1000), (4096, 1000)):
            yield Case(work, shape, out=True, quick=shape == (4096, 1000))
    for work in SECOND:
        for shape in ((65536, 10), (4096, 1000)):
            yield Case(work, shape, out=True)


# ---- mean loss and gradient ---------------------------------------------------------------------


@both.by("fastgrad")
def _(data: Logits) -> Call:
    z, y, axis, out = data.z, data.y, data.axis, data.buffer
    if axis == -1 and out is None:
        return lambda: fg.cross_entropy.value_and_grad(z, y)
    return lambda: fg.cross_entropy.value_and_grad(z, y, axis=axis, out=out)


@both.by("numpy")
def _(data: Logits) -> Call | None:
    z, axis, out = data.z, data.axis, data.buffer
    y = np.expand_dims(data.y, axis)

    def loss_and_gradient() -> Any:
        g = np.subtract(z, z.max(axis=axis, keepdims=True), out=out)
        at_target = np.take_along_axis(g, y, axis)
        np.exp(g, out=g)
        total = g.sum(axis=axis, keepdims=True)
        loss = np.mean(np.log(total) - at_target)
        g /= total
        np.put_along_axis(g, y, np.take_along_axis(g, y, axis) - 1, axis)
        g /= y.size
        return loss, g

    return None if z.dtype.name in HALVES else loss_and_gradient


@both.by("torch", unpacked)
def _(data: Logits) -> Call:
    z, y, axis = data.packed
    t, target = to_torch(z).requires_grad_(), torch.from_numpy(y)
    assert t.ndim == 2 or axis == 1  # the only place where PyTorch takes the classes

    def loss_and_gradient() -> Any:
        loss = torch.nn.functional.cross_entropy(t, target)
        return loss.detach(), torch.autograd.grad(loss, t)[0]

    return loss_and_gradient


def _jax_by_log_softmax(t: Any, y: Any, axis: int) -> Any:
    """The form that most JAX programs write."""
    p = jax.numpy.moveaxis(jax.nn.log_softmax(t, axis), axis, -1)
    return -p.reshape(-1, t.shape[axis])[jax.numpy.arange(y.size), y.ravel()].mean()


def _jax_by_logsumexp(t: Any, y: Any, axis: int) -> Any:
    """The fastest form of several tried; its gradient skips the pass through log_softmax."""
    at_target = jax.numpy.take_along_axis(t, jax.numpy.expand_dims(y, axis), axis)
    return jax.numpy.mean(jax.nn.logsumexp(t, axis, keepdims=True) - at_target)


def _jax_loss_and_gradient(data: Logits, loss: Callable[..., Any]) -> Call:
    z, y, axis = data.packed
    t, target = jax.numpy.asarray(z), jax.numpy.asarray(y)
    f = jax.jit(jax.value_and_grad(lambda t, y: loss(t, y, axis)))
    return lambda: jax.block_until_ready(f(t, target))


@both.by("jax", unpacked)
def _(data: Logits) -> Call | None:
    return (
        None if data.z.dtype.name in HALVES else _jax_loss_and_gradient(data, _jax_by_log_softmax)
    )


@both.by("jax lse", unpacked)
def _(data: Logits) -> Call | None:
    return None if data.z.dtype.name in HALVES else _jax_loss_and_gradient(data, _jax_by_logsumexp)


def _divided(data: Logits, result: Any) -> Arrays:
    """The kernel of scikit-learn gives losses of rows, and gradients of their sum."""
    losses, *grad = result if isinstance(result, tuple) else (result,)
    return losses.mean(dtype=np.float64), *(g / len(data.y) for g in grad)


@both.by("scikit-learn", _divided)
def _(data: Logits) -> Call | None:
    """The bare kernel of LogisticRegression."""
    if data.z.ndim != 2 or data.z.dtype.name in HALVES:
        return None
    loss = libraries.sklearn_loss.HalfMultinomialLoss(n_classes=data.z.shape[1])
    y = data.y.astype(data.z.dtype)
    losses = np.empty_like(y) if data.out else None
    out = data.buffer
    return lambda: loss.loss_gradient(y, data.z, None, losses, out, libraries.THREADS)


# ---- mean loss alone ----------------------------------------------------------------------------


@value.by("fastgrad")
def _(data: Logits) -> Call:
    z, y, axis = data.z, data.y, data.axis
    return lambda: fg.cross_entropy(z, y) if axis == -1 else fg.cross_entropy(z, y, axis=axis)


@value.by("numpy")
def _(data: Logits) -> Call:
    z, axis = data.z, data.axis
    y = np.expand_dims(data.y, axis)

    def loss() -> Any:
        top = z.max(axis=axis, keepdims=True)
        total = np.exp(z - top).sum(axis=axis, keepdims=True)
        return np.mean(np.log(total) + top - np.take_along_axis(z, y, axis))

    return loss


@value.by("torch")
def _(data: Logits) -> Call:
    z, y, _ = data.packed
    t, target = torch.from_numpy(z), torch.from_numpy(y)
    return lambda: torch.nn.functional.cross_entropy(t, target)


def _jax_loss(data: Logits, loss: Callable[..., Any]) -> Call:
    z, y, axis = data.packed
    t, target = jax.numpy.asarray(z), jax.numpy.asarray(y)
    f = jax.jit(lambda t, y: loss(t, y, axis))
    return lambda: f(t, target).block_until_ready()


@value.by("jax")
def _(data: Logits) -> Call:
    return _jax_loss(data, _jax_by_log_softmax)


@value.by("jax lse")
def _(data: Logits) -> Call:
    return _jax_loss(data, _jax_by_logsumexp)


@value.by("scikit-learn", _divided)
def _(data: Logits) -> Call | None:
    if data.z.ndim != 2:
        return None
    loss = libraries.sklearn_loss.HalfMultinomialLoss(n_classes=data.z.shape[1])
    y = data.y.astype(data.z.dtype)
    return lambda: loss.loss(y, data.z, None, None, libraries.THREADS)


# ---- losses of rows -----------------------------------------------------------------------------


@losses.by("fastgrad")
def _(data: Logits) -> Call:
    return lambda: fg.cross_entropy(data.z, data.y, axis=data.axis, reduction="none")


@losses.by("scipy")
def _(data: Logits) -> Call:
    """Minus the logarithm of the target's softmax, as SciPy's users write it."""
    rows, y = np.arange(len(data.y)), data.y
    return lambda: -libraries.scipy_special.log_softmax(data.z, 1)[rows, y]


@losses.by("torch")
def _(data: Logits) -> Call:
    z, y = torch.from_numpy(data.z), torch.from_numpy(data.y)
    return lambda: torch.nn.functional.cross_entropy(z, y, reduction="none")


@losses.by("jax")
def _(data: Logits) -> Call:
    rows, y = np.arange(len(data.y)), data.y
    return lambda: -jax.nn.log_softmax(jax.numpy.asarray(data.z), 1)[rows, y]


@losses.by("scikit-learn")
def _(data: Logits) -> Call:
    loss = libraries.sklearn_loss.HalfMultinomialLoss(n_classes=data.z.shape[1])
    return lambda: loss.loss(data.y.astype(data.z.dtype), data.z)


# ---- options, and second derivatives ------------------------------------------------------------


@dataclass
class Options(Logits):
    """Logits with the options of a loss, and a vector for its Hessian."""

    given: dict[str, Any] = field(default_factory=dict)
    target: Any = None
    v: Any = None


def _data(names: tuple[str, ...]) -> Callable[[Case], Options]:
    def make(case: Case) -> Options:
        plain = logits(case)
        n, c = case.shape
        rng = np.random.default_rng(1)
        known = {
            "weight": rng.random(c, dtype=np.float32) + np.float32(0.5),
            "label_smoothing": 0.1,
            "z_loss": 1e-4,
        }
        soft = rng.random((n, c), dtype=np.float32)
        soft /= soft.sum(axis=1, keepdims=True)
        return Options(
            plain.z,
            plain.y,
            out=case.out,
            given={name: known[name] for name in names if name in known},
            target=soft if "probabilities" in names else plain.y,
            v=rng.standard_normal((n, c), dtype=np.float32),
        )

    return make


def _read(data: Options, arrays: int) -> tuple[int, int]:
    return arrays * data.z.nbytes + data.target.nbytes, data.z.nbytes


def _jax_with_options(data: Options) -> Callable[[Any], Any]:
    """The mean loss as a function of the logits."""
    jnp, given = jax.numpy, data.given
    soft, eps, c = data.target.dtype.kind == "f", given.get("label_smoothing", 0), data.z.shape[1]
    w = jnp.asarray(given["weight"]) if "weight" in given else None
    y = jnp.asarray(data.target)

    def loss(z: Any) -> Any:
        lse = jax.scipy.special.logsumexp(z, axis=1, keepdims=True)
        if soft or eps:
            t = y if soft else jax.nn.one_hot(y, c, dtype=z.dtype)
            m = (1 - eps) * t + eps / c
            m = m if w is None else m * w
            rows = (m * (lse - z)).sum(axis=1)
        else:
            rows = lse[:, 0] - jnp.take_along_axis(z, y[:, None], 1)[:, 0]
            rows = rows if w is None else rows * w[y]
        divisor = z.shape[0] if soft or w is None else w[y].sum()
        mean = rows.sum() / divisor
        return mean + given["z_loss"] * (lse**2).mean() if "z_loss" in given else mean

    return loss


def _with_options(name: str, *names: str) -> Work:
    work = Work(
        f"CE gradient, {name}", "cross-entropy options", _data(names), lambda d: _read(d, 1)
    )

    @work.by("fastgrad")
    def _(data: Options) -> Call:
        loss, out = fg.cross_entropy.with_options(**data.given), data.buffer
        return lambda: loss.value_and_grad(data.z, data.target, out=out)

    @work.by("torch")
    def _(data: Options) -> Call:
        z, target = torch.from_numpy(data.z).requires_grad_(), torch.from_numpy(data.target)
        given = dict(data.given)
        z_loss = given.pop("z_loss", 0)
        if "weight" in given:
            given["weight"] = torch.from_numpy(given["weight"])

        def loss_and_gradient() -> Any:
            loss = torch.nn.functional.cross_entropy(z, target, **given)
            if z_loss:
                loss = loss + z_loss * (torch.logsumexp(z, 1) ** 2).mean()
            return loss.detach(), torch.autograd.grad(loss, z)[0]

        return loss_and_gradient

    @work.by("jax")
    def _(data: Options) -> Call:
        f, z = jax.jit(jax.value_and_grad(_jax_with_options(data))), jax.numpy.asarray(data.z)
        return lambda: jax.block_until_ready(f(z))

    return work


def _hessian(name: str, *names: str) -> Work:
    work = Work(
        f"CE Hessian product, {name}", "cross-entropy options", _data(names), lambda d: _read(d, 2)
    )

    @work.by("fastgrad")
    def _(data: Options) -> Call:
        loss, out = fg.cross_entropy.with_options(**data.given), data.buffer
        return lambda: loss.hvp(data.z, data.target, data.v, out=out)

    @work.by("jax")
    def _(data: Options) -> Call:
        grad = jax.grad(_jax_with_options(data))
        z, v = jax.numpy.asarray(data.z), jax.numpy.asarray(data.v)
        f = jax.jit(lambda z, v: jax.jvp(grad, (z,), (v,))[1])
        return lambda: f(z, v).block_until_ready()

    return work


OPTIONS = (
    _with_options("class weights", "weight"),
    _with_options("label smoothing", "label_smoothing"),
    _with_options("probabilities", "probabilities"),
    _with_options(
        "probabilities, weights, smoothing", "probabilities", "weight", "label_smoothing"
    ),
    _with_options("z-loss", "z_loss"),
)
SECOND = (
    _hessian("no option"),
    _hessian("probabilities, weights, smoothing", "probabilities", "weight", "label_smoothing"),
)
