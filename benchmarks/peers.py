"""What fastgrad is measured against: one function per library, the same for speed and accuracy.

Import this module before NumPy: libraries read their thread counts, and whether idle threads spin,
from the environment when they are loaded.  BENCH_THREADS sets the threads of all (default 1),
BENCH_PEERS the libraries to compare with (default: those of NAMES that are installed).

A *case* is an array of logits z with the classes along `axis`, and class indices y.  Each function
takes a case and returns a call without arguments that does the work once; everything that is not
the work (conversion, allocation of `out`) is done before.
"""

# ruff: noqa: E402 - the environment has to be set before the imports.

from __future__ import annotations

import os

NAMES = ("numpy", "scipy", "torch", "jax", "scikit-learn")
THREADS = int(os.environ.get("BENCH_THREADS", "1"))
WANTED = os.environ.get("BENCH_PEERS", ",".join(NAMES)).split(",")

if set(WANTED) & {"torch", "scikit-learn"}:
    # Each brings an OpenMP runtime besides ours, and in one process they spin against each other.
    os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    f"--xla_cpu_multi_thread_eigen={'true' if THREADS > 1 else 'false'} "
    f"intra_op_parallelism_threads={THREADS}"
)

import importlib
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

import fastgrad as fg

Call = Callable[[], Any]


def _optional(library: str, module: str) -> Any:
    if library not in WANTED:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what others deprecate is not our concern
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError:
            return None


scipy_special = _optional("scipy", "scipy.special")
sklearn_loss = _optional("scikit-learn", "sklearn._loss.loss")
torch = _optional("torch", "torch")
jax = _optional("jax", "jax")

fg.set_num_threads(THREADS)
if torch is not None:
    torch.set_num_threads(THREADS)
if jax is not None:
    jax.config.update("jax_enable_x64", True)  # else float64 input silently becomes float32

_LOADED = {"scipy": scipy_special, "torch": torch, "jax": jax, "scikit-learn": sklearn_loss}
INSTALLED = tuple(n for n in NAMES if n in WANTED and _LOADED.get(n, np) is not None)


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("fastgrad", *INSTALLED)}


@dataclass
class Case:
    """Logits with their targets; `out` says whether results go into memory that exists already."""

    z: np.ndarray
    y: np.ndarray
    axis: int = -1
    out: bool = False

    def __str__(self) -> str:
        parts = ["x".join(map(str, self.z.shape)), str(self.z.dtype)]
        parts += [f"axis {self.axis}"] * (self.axis != -1)
        parts += ["Fortran"] * (not self.z.flags.c_contiguous) + ["out="] * self.out
        return " ".join(parts)

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
        a = np.asarray(result)
        return a if a.shape == self.z.shape else a[0].T


def make_case(
    shape: tuple[int, ...],
    dtype: str = "float32",
    *,
    axis: int = -1,
    order: str = "C",
    out: bool = False,
    scale: float = 3.0,
    seed: int = 0,
) -> Case:
    rng = np.random.default_rng(seed)
    z = rng.standard_normal(shape, dtype=np.float32).astype(dtype, order=order, copy=False)
    z = np.asarray(z, order=order)
    z *= scale
    rows = list(shape)
    classes = rows.pop(axis)
    return Case(z, rng.integers(0, classes, rows), axis, out)


# ---- softmax ----------------------------------------------------------------------------------


def fastgrad_softmax(case: Case) -> Call:
    z, axis, out = case.z, case.axis, case.buffer
    if axis == -1 and out is None:
        return lambda: fg.softmax(z)
    return lambda: fg.softmax(z, axis, out=out)


def numpy_softmax(case: Case) -> Call:
    z, axis, out = case.z, case.axis, case.buffer

    def softmax() -> Any:
        e = np.subtract(z, z.max(axis=axis, keepdims=True), out=out)
        np.exp(e, out=e)
        e /= e.sum(axis=axis, keepdims=True)
        return e

    return softmax


def scipy_softmax(case: Case) -> Call | None:
    return None if case.out else lambda: scipy_special.softmax(case.z, axis=case.axis)


def torch_softmax(case: Case) -> Call:
    z, _, axis = case.packed
    t = torch.from_numpy(z)
    if not case.out:
        return lambda: torch.softmax(t, axis)
    out = torch.empty_like(t)
    return lambda: torch.softmax(t, axis, out=out)


def jax_softmax(case: Case) -> Call:
    z, _, axis = case.packed
    t, f = jax.numpy.asarray(z), jax.jit(lambda t: jax.nn.softmax(t, axis))
    return lambda: f(t).block_until_ready()


# ---- for accuracy alone -----------------------------------------------------------------------


def numpy_logsumexp(case: Case) -> Call:
    def logsumexp() -> Any:
        top = case.z.max(axis=case.axis, keepdims=True)
        return np.squeeze(top, case.axis) + np.log(np.exp(case.z - top).sum(axis=case.axis))

    return logsumexp


def jax_logsumexp(case: Case) -> Call:
    return lambda: jax.nn.logsumexp(jax.numpy.asarray(case.z), case.axis)


def numpy_log_softmax(case: Case) -> Call:
    def log_softmax() -> Any:
        shifted = case.z - case.z.max(axis=case.axis, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=case.axis, keepdims=True))

    return log_softmax


def jax_log_softmax(case: Case) -> Call:
    return lambda: jax.nn.log_softmax(jax.numpy.asarray(case.z), case.axis)


def fastgrad_losses(case: Case) -> Call:
    return lambda: fg.cross_entropy(case.z, case.y, axis=case.axis, reduction="none")


def scipy_losses(case: Case) -> Call:
    """Minus the logarithm of the target's softmax, as SciPy's users write it."""
    y = np.expand_dims(case.y, case.axis)
    return lambda: (
        -np.take_along_axis(scipy_special.log_softmax(case.z, case.axis), y, case.axis).squeeze(
            case.axis
        )
    )


def torch_losses(case: Case) -> Call:
    z, y = torch.from_numpy(case.z), torch.from_numpy(case.y)
    return lambda: torch.nn.functional.cross_entropy(z, y, reduction="none")


def jax_losses(case: Case) -> Call:
    y = np.expand_dims(case.y, case.axis)
    return lambda: (
        -jax.numpy.take_along_axis(
            jax.nn.log_softmax(jax.numpy.asarray(case.z), case.axis), y, case.axis
        ).squeeze(case.axis)
    )


def sklearn_losses(case: Case) -> Call:
    loss = sklearn_loss.HalfMultinomialLoss(n_classes=case.z.shape[1])
    return lambda: loss.loss(case.y.astype(case.z.dtype), case.z)


# ---- cross-entropy: mean loss and gradient ----------------------------------------------------


def fastgrad_loss_and_gradient(case: Case) -> Call:
    z, y, axis, out = case.z, case.y, case.axis, case.buffer
    if axis == -1 and out is None:
        return lambda: fg.cross_entropy.value_and_grad(z, y)
    return lambda: fg.cross_entropy.value_and_grad(z, y, axis=axis, out=out)


def numpy_loss_and_gradient(case: Case) -> Call:
    z, axis, out = case.z, case.axis, case.buffer
    y = np.expand_dims(case.y, axis)

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

    return loss_and_gradient


def torch_loss_and_gradient(case: Case) -> Call:
    z, y, axis = case.packed
    t, target = torch.from_numpy(z).requires_grad_(), torch.from_numpy(y)
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


def jax_loss_and_gradient(case: Case, loss: Callable[..., Any] = _jax_by_log_softmax) -> Call:
    z, y, axis = case.packed
    t, target = jax.numpy.asarray(z), jax.numpy.asarray(y)
    f = jax.jit(jax.value_and_grad(lambda t, y: loss(t, y, axis)))
    return lambda: jax.block_until_ready(f(t, target))


def jax_lse_loss_and_gradient(case: Case) -> Call:
    return jax_loss_and_gradient(case, _jax_by_logsumexp)


def sklearn_loss_and_gradient(case: Case) -> Call | None:
    """The bare kernel of LogisticRegression: losses per row, and gradients not divided by N."""
    if case.z.ndim != 2:
        return None
    loss = sklearn_loss.HalfMultinomialLoss(n_classes=case.z.shape[1])
    y = case.y.astype(case.z.dtype)
    losses = np.empty_like(y) if case.out else None
    out = case.buffer
    return lambda: loss.loss_gradient(y, case.z, None, losses, out, THREADS)


# ---- cross-entropy: mean loss alone -----------------------------------------------------------


def fastgrad_loss(case: Case) -> Call:
    z, y, axis = case.z, case.y, case.axis
    return lambda: fg.cross_entropy(z, y) if axis == -1 else fg.cross_entropy(z, y, axis=axis)


def numpy_loss(case: Case) -> Call:
    z, axis = case.z, case.axis
    y = np.expand_dims(case.y, axis)

    def loss() -> Any:
        top = z.max(axis=axis, keepdims=True)
        total = np.exp(z - top).sum(axis=axis, keepdims=True)
        return np.mean(np.log(total) + top - np.take_along_axis(z, y, axis))

    return loss


def torch_loss(case: Case) -> Call:
    z, y, _ = case.packed
    t, target = torch.from_numpy(z), torch.from_numpy(y)
    return lambda: torch.nn.functional.cross_entropy(t, target)


def jax_loss(case: Case, loss: Callable[..., Any] = _jax_by_log_softmax) -> Call:
    z, y, axis = case.packed
    t, target = jax.numpy.asarray(z), jax.numpy.asarray(y)
    f = jax.jit(lambda t, y: loss(t, y, axis))
    return lambda: f(t, target).block_until_ready()


def jax_lse_loss(case: Case) -> Call:
    return jax_loss(case, _jax_by_logsumexp)


def sklearn_only_loss(case: Case) -> Call | None:
    if case.z.ndim != 2:
        return None
    loss = sklearn_loss.HalfMultinomialLoss(n_classes=case.z.shape[1])
    y = case.y.astype(case.z.dtype)
    return lambda: loss.loss(y, case.z, None, None, THREADS)


WORK: dict[str, dict[str, Callable[[Case], Call | None]]] = {
    "softmax": {
        "fastgrad": fastgrad_softmax,
        "numpy": numpy_softmax,
        "scipy": scipy_softmax,
        "torch": torch_softmax,
        "jax": jax_softmax,
    },
    "logsumexp": {
        "fastgrad": lambda case: lambda: fg.logsumexp(case.z, case.axis),
        "numpy": numpy_logsumexp,
        "scipy": lambda case: lambda: scipy_special.logsumexp(case.z, axis=case.axis),
        "torch": lambda case: lambda: torch.logsumexp(torch.from_numpy(case.z), case.axis),
        "jax": jax_logsumexp,
    },
    "log_softmax": {
        "fastgrad": lambda case: lambda: fg.log_softmax(case.z, case.axis),
        "numpy": numpy_log_softmax,
        "scipy": lambda case: lambda: scipy_special.log_softmax(case.z, case.axis),
        "torch": lambda case: lambda: torch.log_softmax(torch.from_numpy(case.z), case.axis),
        "jax": jax_log_softmax,
    },
    "losses": {
        "fastgrad": fastgrad_losses,
        "scipy": scipy_losses,
        "torch": torch_losses,
        "jax": jax_losses,
        "scikit-learn": sklearn_losses,
    },
    "CE loss+gradient": {
        "fastgrad": fastgrad_loss_and_gradient,
        "numpy": numpy_loss_and_gradient,
        "torch": torch_loss_and_gradient,
        "jax": jax_loss_and_gradient,
        "jax-lse": jax_lse_loss_and_gradient,
        "scikit-learn": sklearn_loss_and_gradient,
    },
    "CE loss": {
        "fastgrad": fastgrad_loss,
        "numpy": numpy_loss,
        "torch": torch_loss,
        "jax": jax_loss,
        "jax-lse": jax_lse_loss,
        "scikit-learn": sklearn_only_loss,
    },
}


def installed(name: str) -> bool:
    """Whether a name in WORK can be measured; "jax-lse" is a second way to use JAX."""
    return name == "fastgrad" or name.removesuffix("-lse") in INSTALLED


def calls(work: str, case: Case, names: Iterable[str] | None = None) -> dict[str, Call]:
    """The calls of fastgrad and of every installed library that can do this work."""
    makers = {name: make for name, make in WORK[work].items() if installed(name)}
    made = {name: make(case) for name, make in makers.items() if names is None or name in names}
    return {name: call for name, call in made.items() if call is not None}


def as_arrays(work: str, name: str, case: Case, result: Any) -> tuple[np.ndarray, ...]:
    """A result of one of these calls in the shape of z, as if fastgrad had returned it."""
    parts = result if isinstance(result, tuple) else (result,)
    arrays = [case.unpacked(p) if np.ndim(p) > 1 else np.asarray(p) for p in parts]
    if name == "scikit-learn" and work != "losses":
        arrays = [arrays[0].mean(dtype=np.float64), *(a / len(case.y) for a in arrays[1:])]
    return tuple(arrays)


def check(work: str, name: str, case: Case, result: Any, ours: Any) -> None:
    """Refuse a peer that computes something else."""
    # Peers are some tens of ulp off, and their float32 means over many rows some hundreds.
    eps = np.finfo(case.z.dtype).eps
    theirs = as_arrays(work, name, case, result)
    expected = as_arrays(work, "fastgrad", case, ours)
    for a, b in zip(theirs, expected, strict=True):
        atol = 100 * eps * float(np.max(np.abs(b)))
        np.testing.assert_allclose(a, b, rtol=5e3 * eps, atol=atol, err_msg=name)
