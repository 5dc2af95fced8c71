"""The NumPy idiom of each built-in: what people write without a library.

`profile_loss` and the demo time the built-ins against these functions, so they are the good form of
each idiom: vectorised, the largest score subtracted, temporaries reused where that is customary.
They know few options, validate nothing, and lose the digits that such code loses.
`_reference.py` is the slow and exact twin.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgrad._maps import Loss, Map
from fastgrad._segments import Segments

Floats = NDArray[Any]
Ints = NDArray[Any]


# ---- normalisers ------------------------------------------------------------------------------


def _softmax(x: Floats, axis: int = -1) -> Floats:
    e: Floats = np.exp(x - x.max(axis=axis, keepdims=True))
    e /= e.sum(axis=axis, keepdims=True)
    return e


def _softmax_vjp(x: Floats, g: Floats, axis: int = -1, *, y: Floats | None = None) -> Any:
    p = _softmax(x, axis) if y is None else y
    return p * (g - (p * g).sum(axis=axis, keepdims=True))


def _log_softmax(x: Floats, axis: int = -1) -> Any:
    shifted = x - x.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def _log_softmax_vjp(x: Floats, g: Floats, axis: int = -1) -> Any:
    return g - _softmax(x, axis) * g.sum(axis=axis, keepdims=True)


def _log_softmax_jvp(x: Floats, v: Floats, axis: int = -1) -> Any:
    return v - (_softmax(x, axis) * v).sum(axis=axis, keepdims=True)


def _logsumexp(x: Floats, axis: int = -1) -> Any:
    top = x.max(axis=axis, keepdims=True)
    return np.squeeze(top, axis) + np.log(np.exp(x - top).sum(axis=axis))


def _logsumexp_vjp(x: Floats, g: Floats, axis: int = -1) -> Any:
    return _softmax(x, axis) * np.expand_dims(g, axis)


def _logsumexp_jvp(x: Floats, v: Floats, axis: int = -1) -> Any:
    return (_softmax(x, axis) * v).sum(axis=axis)


def _sigmoid(x: Floats) -> Any:
    return 1 / (1 + np.exp(-x))


def _sigmoid_vjp(x: Floats, g: Floats) -> Any:
    p = _sigmoid(x)
    return g * p * (1 - p)


def _log_sigmoid(x: Floats) -> Any:
    return -np.logaddexp(x.dtype.type(0), -x)


def _log_sigmoid_vjp(x: Floats, g: Floats) -> Any:
    return g * _sigmoid(-x)


# ---- losses -----------------------------------------------------------------------------------


def _cross_entropy(logits: Floats, target: Ints, *, axis: int = -1) -> Any:
    y = np.expand_dims(target, axis)
    top = logits.max(axis=axis, keepdims=True)
    total = np.exp(logits - top).sum(axis=axis, keepdims=True)
    return np.mean(np.log(total) + top - np.take_along_axis(logits, y, axis))


def _cross_entropy_both(logits: Floats, target: Ints, *, axis: int = -1) -> tuple[Any, Floats]:
    y = np.expand_dims(target, axis)
    G: Floats = logits - logits.max(axis=axis, keepdims=True)
    at_target = np.take_along_axis(G, y, axis)
    np.exp(G, out=G)
    total = G.sum(axis=axis, keepdims=True)
    loss = np.mean(np.log(total) - at_target)
    G /= total
    np.put_along_axis(G, y, np.take_along_axis(G, y, axis) - 1, axis)
    G /= y.size
    return loss, G


def _binary_cross_entropy(logits: Floats, target: Any) -> Any:
    return np.mean(np.logaddexp(logits.dtype.type(0), logits) - target * logits)


def _binary_cross_entropy_grad(logits: Floats, target: Any) -> Any:
    return ((_sigmoid(logits) - target) / logits.size).astype(logits.dtype, copy=False)


def _linear_cross_entropy(X: Floats, W: Floats, target: Ints, *, bias: Floats | None = None) -> Any:
    z = X @ W.T
    return _cross_entropy(z if bias is None else z + bias, target)


def _linear_cross_entropy_both(
    X: Floats, W: Floats, target: Ints, *, bias: Floats | None = None
) -> tuple[Any, tuple[Floats, Floats, Floats]]:
    z = X @ W.T
    loss, G = _cross_entropy_both(z if bias is None else z + bias, target)
    return loss, (G.T @ X, G.sum(axis=0), G @ W)


def _signs(target: Any) -> Any:
    return np.where(target, 1, -1) if target.dtype == bool else target


def _hinge(scores: Floats, target: Any, *, margin: float = 1.0) -> Any:
    return np.mean(np.maximum(margin - _signs(target) * scores, 0))


def _hinge_grad(scores: Floats, target: Any, *, margin: float = 1.0) -> Floats:
    y = _signs(target)
    return (np.where(y * scores < margin, -y, 0) / scores.size).astype(scores.dtype, copy=False)


def _multiclass_hinge(scores: Floats, target: Ints, *, variant: str, margin: float = 1.0) -> Any:
    rows = np.arange(len(target))
    h = np.maximum(scores - scores[rows, target][:, None] + margin, 0)
    h[rows, target] = 0
    return np.mean(h.max(axis=1) if variant == "crammer_singer" else h.sum(axis=1))


def _multiclass_hinge_grad(
    scores: Floats, target: Ints, *, variant: str, margin: float = 1.0
) -> Floats:
    rows = np.arange(len(target))
    h = scores - scores[rows, target][:, None] + margin
    h[rows, target] = 0
    G = np.zeros_like(scores)
    if variant == "crammer_singer":
        worst = h.argmax(axis=1)
        G[rows, worst] = h[rows, worst] > 0
    else:
        G[h > 0] = 1
    G[rows, target] -= G.sum(axis=1)
    G /= len(target)
    return G


def _centroid_hinge_both(X: Floats, labels: Any, *, margin: float = 1.0) -> tuple[float, Floats]:
    labels = ids_of(labels)
    present = np.unique(labels)
    total, G = 0.0, np.zeros_like(X)
    for k in present:
        own = labels == k
        apart = X[own] - X[own].mean(axis=0)
        distance = np.linalg.norm(apart, axis=1)
        h = np.maximum(distance - margin, 0)
        total += float(np.mean(h**2))
        u = (2 * h / np.maximum(distance, 1e-30))[:, None] * apart / len(h)
        G[own] = u - u.mean(axis=0)
    G /= len(present)
    return total / len(present), G


# ---- ragged -----------------------------------------------------------------------------------


def ids_of(segments: Any) -> Ints:
    if not isinstance(segments, Segments):
        return np.asarray(segments)
    ids: Ints = np.empty(len(segments.order), np.int64)
    ids[segments.order] = np.repeat(np.arange(segments.num_segments), segments.counts)
    return ids


def _sorted(segments: Any) -> tuple[Ints, Ints, Ints]:
    """The rows in the order of their segments, the first place of each segment, and its length."""
    if isinstance(segments, Segments):
        order, starts, counts = segments.order, segments.offsets[:-1], segments.counts
    else:
        ids = np.asarray(segments)
        order, counts = ids.argsort(kind="stable"), np.bincount(ids)
        starts = np.cumsum(counts) - counts
    if not counts.all():
        raise ValueError("the NumPy idiom np.add.reduceat has no empty segments")
    return order, starts, counts


def _reduceat(ufunc: np.ufunc) -> Map:
    def reduce(data: Floats, segments: Any) -> Any:
        order, starts, _ = _sorted(segments)
        return ufunc.reduceat(data[order], starts)

    return Map(reduce, name=f"np.{ufunc.__name__}.reduceat")


def _segment_mean(data: Floats, segments: Any) -> Any:
    order, starts, counts = _sorted(segments)
    shape = (-1,) + (1,) * (data.ndim - 1)
    return np.add.reduceat(data[order], starts) / counts.astype(data.dtype).reshape(shape)


def _segment_softmax(data: Floats, segments: Any) -> Floats:
    ids = ids_of(segments)
    order, starts, _ = _sorted(segments)
    e: Floats = np.exp(data - np.maximum.reduceat(data[order], starts)[ids])
    e /= np.add.reduceat(e[order], starts)[ids]
    return e


def _class_centroids(X: Floats, labels: Any) -> tuple[Floats, Ints]:
    return _segment_mean(X, labels), _sorted(labels)[2]


def _prototype_logits(X: Floats, centroids: Floats) -> Floats:
    """By the expansion of the square, which loses digits where rows lie close to a centroid."""
    z: Floats = 2 * (X @ centroids.T)
    z -= (X**2).sum(axis=1)[:, None]
    z -= (centroids**2).sum(axis=1)
    return z


IDIOMS: dict[str, Any] = {
    "softmax": Map(_softmax, vjp=_softmax_vjp, jvp=_softmax_vjp),  # its Jacobian is symmetric
    "log_softmax": Map(_log_softmax, vjp=_log_softmax_vjp, jvp=_log_softmax_jvp),
    "logsumexp": Map(_logsumexp, vjp=_logsumexp_vjp, jvp=_logsumexp_jvp),
    "sigmoid": Map(_sigmoid, vjp=_sigmoid_vjp, jvp=_sigmoid_vjp),
    "log_sigmoid": Map(_log_sigmoid, vjp=_log_sigmoid_vjp, jvp=_log_sigmoid_vjp),
    "cross_entropy": Loss(_cross_entropy, value_and_grad=_cross_entropy_both),
    "binary_cross_entropy": Loss(_binary_cross_entropy, grad=_binary_cross_entropy_grad),
    "linear_cross_entropy": Loss(_linear_cross_entropy, value_and_grad=_linear_cross_entropy_both),
    "hinge": Loss(_hinge, grad=_hinge_grad),
    "multiclass_hinge": Loss(_multiclass_hinge, grad=_multiclass_hinge_grad),
    "centroid_hinge": Loss(value_and_grad=_centroid_hinge_both),
    "segment_sum": _reduceat(np.add),
    "segment_max": _reduceat(np.maximum),
    "segment_min": _reduceat(np.minimum),
    "segment_mean": Map(_segment_mean),
    "segment_softmax": Map(_segment_softmax),
    "class_centroids": Map(_class_centroids),
    "prototype_logits": Map(_prototype_logits),
}
"""The idiom of the built-in of each name.  A derivative missing here has no customary form."""
