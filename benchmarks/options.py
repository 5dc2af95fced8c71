"""Cross-entropy with options, and its second derivatives, beside PyTorch and JAX.

    python benchmarks/options.py [--quick] [N C ...]

Value and gradient of float32 logits (N, C) for each option; Hessian product and diagonal against
JAX's jvp of grad.  Medians of interleaved rounds in one process, on BENCH_THREADS threads (default
1); the bar is 3.  Each peer's gradient is first compared with ours.
"""

# ruff: noqa: I001 - peers sets the environment, before NumPy.

from __future__ import annotations

import functools
import sys

import peers

import numpy as np
from clock import medians

import fastgrad as fg

jax, torch = peers.jax, peers.torch
SHAPES = [(65536, 10), (65536, 32), (256, 1000), (4096, 1000), (1024, 32000)]


def options(n: int, c: int) -> dict[str, dict]:
    rng = np.random.default_rng(0)
    w = rng.random(c, dtype=np.float32) + np.float32(0.5)
    t = rng.dirichlet(np.full(c, 0.5), n).astype(np.float32) if n * c < 1e7 else None
    if t is None:
        t = rng.random((n, c), dtype=np.float32)
        t /= t.sum(axis=1, keepdims=True)
    y = rng.integers(0, c, n)
    return {
        "no option": {"target": y},
        "class weights": {"target": y, "weight": w},
        "label smoothing": {"target": y, "label_smoothing": 0.1},
        "probabilities": {"target": t},
        "probabilities, weights, smoothing": {"target": t, "weight": w, "label_smoothing": 0.1},
        "z-loss": {"target": y, "z_loss": 1e-4},
    }


def in_torch(z, target, weight=None, label_smoothing=0.0, z_loss=0.0):
    zt = torch.from_numpy(z).requires_grad_()
    tt = torch.from_numpy(target)
    wt = None if weight is None else torch.from_numpy(weight)

    def call():
        loss = torch.nn.functional.cross_entropy(zt, tt, weight=wt, label_smoothing=label_smoothing)
        if z_loss:
            loss = loss + z_loss * (torch.logsumexp(zt, 1) ** 2).mean()
        (grad,) = torch.autograd.grad(loss, zt)
        return grad.numpy()

    return call


def jax_loss(target, weight=None, label_smoothing=0.0, z_loss=0.0):
    jnp = jax.numpy
    soft = target.dtype.kind == "f"
    w = None if weight is None else jnp.asarray(weight)
    y = jnp.asarray(target)

    def loss(z):
        lse = jax.scipy.special.logsumexp(z, axis=1, keepdims=True)
        eps, c = label_smoothing, z.shape[1]
        if soft or eps:
            t = y if soft else jax.nn.one_hot(y, c, dtype=z.dtype)
            m = (1 - eps) * t + eps / c
            m = m if w is None else m * w
            rows = (m * (lse - z)).sum(axis=1)
        else:
            rows = lse[:, 0] - jnp.take_along_axis(z, y[:, None], 1)[:, 0]
            rows = rows if w is None else rows * w[y]
        divisor = z.shape[0] if soft or w is None else w[y].sum()
        value = rows.sum() / divisor
        return value + z_loss * (lse**2).mean() if z_loss else value

    return loss


def in_jax(z, **given):
    f = jax.jit(jax.value_and_grad(jax_loss(**given)))
    zj = jax.numpy.asarray(z)
    return lambda: np.asarray(f(zj)[1].block_until_ready())


def hvp_in_jax(z, v, **given):
    grad = jax.grad(jax_loss(**given))
    f = jax.jit(lambda z, v: jax.jvp(grad, (z,), (v,))[1])
    zj, vj = jax.numpy.asarray(z), jax.numpy.asarray(v)
    return lambda: np.asarray(f(zj, vj).block_until_ready())


def show(what: str, ours, theirs: dict, same: bool = True) -> None:
    result = ours()
    expected = np.array(result[1] if isinstance(result, tuple) else result, np.float64)
    for name, call in theirs.items() if same else ():
        got = np.asarray(call(), np.float64)
        apart = np.abs(got - expected).max() / np.abs(expected).max()
        assert apart < 2e-4, (what, name, apart)
    times = medians({"fastgrad": ours, **theirs}, 2.0 if "--quick" in sys.argv else 6.0)
    best = min(theirs, key=lambda name: times[name])
    row = "".join(f"{1e6 * times[name]:>12.0f}" for name in times)
    print(f"{what:<36}{row}{times[best] / times['fastgrad']:>8.1f}x  ({best})", flush=True)


def race(n: int, c: int) -> None:
    rng = np.random.default_rng(1)
    z = rng.normal(scale=3, size=(n, c)).astype(np.float32)
    v = rng.normal(size=(n, c)).astype(np.float32)
    out = np.empty_like(z)
    names = "".join(f"{name:>12}" for name in ("fastgrad", "torch", "jax"))
    print(f"\n{f'float32 ({n}, {c}), us':<36}{names}   fastest peer")
    for what, given in options(n, c).items():
        loss = fg.cross_entropy.with_options(**{k: a for k, a in given.items() if k != "target"})
        show(
            what,
            functools.partial(loss.value_and_grad, z, given["target"], out=out),
            {"torch": in_torch(z, **given), "jax": in_jax(z, **given)},
        )
    for what, given in options(n, c).items():
        if what not in ("no option", "probabilities, weights, smoothing"):
            continue
        loss = fg.cross_entropy.with_options(**{k: a for k, a in given.items() if k != "target"})
        peer = {"jax": hvp_in_jax(z, v, **given)}
        hvp = functools.partial(loss.hvp, z, given["target"], v, out=out)
        diagonal = functools.partial(loss.hess_diag, z, given["target"], out=out)
        show(f"hvp, {what}", hvp, peer)
        show(f"hess_diag, {what}", diagonal, peer, same=False)


def main() -> None:
    numbers = [int(a) for a in sys.argv[1:] if a.isdigit()]
    for n, c in list(zip(numbers[::2], numbers[1::2], strict=True)) or SHAPES:
        race(n, c)


if __name__ == "__main__":
    main()
