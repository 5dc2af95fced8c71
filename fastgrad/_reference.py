"""Slow, obvious twins of the public functions: specification, test oracle and teaching text.

One row at a time, in plain NumPy, written for the reader. The kernels are compared with these
functions, and these functions with mpmath.

Precision: integers and bools become float64, as they do in the library; then everything is
computed and returned in ``np.longdouble``, and callers cast. Where long double has 64 bits or more
(x86, Linux on ARM) results are good to 0.1 ulp of float64; where it is only a double (MSVC, macOS
on ARM) the same lines give a double's accuracy. The one delicate operation is the subtraction of
the row's maximum. In 64 bits it leaves a relative error of ``d * 2**-64`` at most in ``exp(-d)``,
and none when the two numbers are of similar size: 0.1 ulp down to ``exp(-200)``, a third of an
ulp at the underflow limit.

Three ideas carry everything:

* ``where`` removes elements. A row function sees only the elements kept; what was removed gets a
  constant.
* A row whose maximum is not finite has no distribution: one look at the maximum finds NaN, +inf
  and all -inf alike.
* The largest term is left out of every sum that is added to 1 or subtracted from 1: ``log(1 + t)``
  and ``1 - p`` lose the small terms which ``log1p(t)`` and the sum of the other terms keep.

Nothing here warns, and nothing is validated unless it would silently give a wrong number.

References
----------
P. Blanchard, D. J. Higham and N. J. Higham, "Accurately computing the log-sum-exp and softmax
functions", IMA Journal of Numerical Analysis 41(4), 2021, doi 10.1093/imanum/draa038.
"""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Exact = NDArray[np.longdouble]
Mask = NDArray[np.bool_]
Axis = int | Sequence[int] | None
Reduction = Literal["mean", "sum", "none"]

__all__ = [
    "Centroids",
    "TokenStats",
    "binary_cross_entropy",
    "binary_cross_entropy_grad",
    "binary_cross_entropy_hess_diag",
    "binary_cross_entropy_hvp",
    "binary_cross_entropy_value_and_grad",
    "centroid_hinge",
    "centroid_hinge_grad",
    "centroid_hinge_hvp",
    "centroid_hinge_value_and_grad",
    "class_centroids",
    "class_centroids_jvp",
    "class_centroids_vjp",
    "class_variances",
    "cross_entropy",
    "cross_entropy_grad",
    "cross_entropy_hess_diag",
    "cross_entropy_hvp",
    "cross_entropy_value_and_grad",
    "hinge",
    "hinge_grad",
    "hinge_hess_diag",
    "hinge_hvp",
    "hinge_value_and_grad",
    "linear_cross_entropy",
    "linear_cross_entropy_fisher_diag",
    "linear_cross_entropy_grad",
    "linear_cross_entropy_hvp",
    "linear_cross_entropy_value_and_grad",
    "log_sigmoid",
    "log_sigmoid_jvp",
    "log_sigmoid_vjp",
    "log_softmax",
    "log_softmax_jvp",
    "log_softmax_vjp",
    "logsumexp",
    "logsumexp_jvp",
    "logsumexp_vjp",
    "multiclass_hinge",
    "multiclass_hinge_grad",
    "multiclass_hinge_hess_diag",
    "multiclass_hinge_hvp",
    "multiclass_hinge_value_and_grad",
    "prototype_logits",
    "prototype_logits_jvp",
    "prototype_logits_vjp",
    "segment_log_softmax",
    "segment_log_softmax_jvp",
    "segment_log_softmax_vjp",
    "segment_logsumexp",
    "segment_logsumexp_jvp",
    "segment_logsumexp_vjp",
    "segment_max",
    "segment_max_jvp",
    "segment_max_vjp",
    "segment_mean",
    "segment_mean_jvp",
    "segment_mean_vjp",
    "segment_min",
    "segment_min_jvp",
    "segment_min_vjp",
    "segment_softmax",
    "segment_softmax_jvp",
    "segment_softmax_vjp",
    "segment_sum",
    "segment_sum_jvp",
    "segment_sum_vjp",
    "sigmoid",
    "sigmoid_jvp",
    "sigmoid_vjp",
    "softmax",
    "softmax_jvp",
    "softmax_vjp",
    "token_stats",
]


# Rows and axes -----------------------------------------------------------------------------------


def _exact(a: ArrayLike) -> Exact:
    """`a` in long double, with at least one dimension; integers go through float64."""
    values = np.atleast_1d(np.asarray(a))
    if values.dtype.kind in "biu":
        values = values.astype(np.float64)
    return values.astype(np.longdouble)


def _axes(ndim: int, axis: Axis) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(ndim))
    return tuple(int(a) for a in np.atleast_1d(axis))


def _axes_last(a: np.ndarray, axis: Axis) -> np.ndarray:
    axes = _axes(a.ndim, axis)
    return np.moveaxis(a, axes, tuple(range(-len(axes), 0)))


def _batch_shape(shape: tuple[int, ...], axis: Axis) -> tuple[int, ...]:
    """The shape that is left when `axis` is reduced away."""
    moved = _axes_last(np.empty(shape, dtype=bool), axis)
    return moved.shape[: moved.ndim - len(_axes(len(shape), axis))]


def _rows(a: np.ndarray, axis: Axis) -> np.ndarray:
    """`a` as a table (N, C): one distribution per row, its elements along `axis` as columns."""
    moved = _axes_last(a, axis)
    batch = math.prod(_batch_shape(a.shape, axis))
    return moved.reshape(batch, math.prod(moved.shape[moved.ndim - len(_axes(a.ndim, axis)) :]))


def _unrows(table: Exact, shape: tuple[int, ...], axis: Axis) -> Exact:
    """The inverse of `_rows`: a table back in the given shape."""
    result = np.empty(shape, np.longdouble)
    moved = _axes_last(result, axis)
    moved[...] = table.reshape(moved.shape)
    return result


def _mask(where: ArrayLike | None, shape: tuple[int, ...]) -> Mask:
    return np.array(np.broadcast_to(True if where is None else np.asarray(where, bool), shape))


def _each_row(
    function: Callable[..., Exact],
    arrays: Sequence[ArrayLike],
    axis: Axis,
    where: ArrayLike | None,
    removed: float,
) -> Exact:
    """Apply `function` to the kept elements of every row; removed elements become `removed`."""
    shape = np.shape(arrays[0])
    x = _exact(arrays[0])
    tables = [_rows(np.broadcast_to(_exact(a), x.shape), axis) for a in arrays]
    result = np.full(tables[0].shape, removed, np.longdouble)
    for i, keep in enumerate(_rows(_mask(where, x.shape), axis)):
        if keep.any():
            result[i, keep] = function(*(table[i, keep] for table in tables))
    return _unrows(result, x.shape, axis).reshape(shape)


# One row -----------------------------------------------------------------------------------------


def _softmax_row(z: Exact, temperature: np.longdouble) -> Exact:
    # Without a finite maximum the row is NaN by itself: inf - inf, and NaN in the sum.
    e = np.exp((z - z.max()) / temperature)
    return np.asarray(e / e.sum())


def _log_softmax_row(z: Exact, temperature: np.longdouble) -> Exact:
    winner = z.argmax()  # the first NaN, if there is one
    if not np.isfinite(z[winner]):
        return np.full_like(z, np.nan)
    below = (z - z[winner]) / temperature
    others = np.exp(np.delete(below, winner)).sum()
    # Two terms of one sign: nothing cancels, for the winner (0 - log1p) or for anyone else.
    return np.asarray(below - np.log1p(others))


def _softmax_jacobian_row(z: Exact, v: Exact, temperature: np.longdouble) -> Exact:
    """(diag p - p p') v / T; the matrix is symmetric, so it serves vjp and jvp."""
    p = _softmax_row(z, temperature)
    return p * _log_softmax_jvp_row(z, v, temperature)


def _log_softmax_jvp_row(z: Exact, v: Exact, temperature: np.longdouble) -> Exact:
    """(v - p.v) / T for each element."""
    p = _softmax_row(z, temperature)
    # A constant added to v changes nothing. Measured from the winner's v, the mean p.v has no term
    # with p close to 1, which is the one that would cancel in v - p.v.
    v = v - v[p.argmax()]
    return np.asarray((v - (p * v).sum()) / temperature)


def _complement_row(p: Exact) -> Exact:
    """1 - p, at the winner as the sum of the other p."""
    q = 1 - p
    winner = p.argmax()
    q[winner] = np.delete(p, winner).sum()
    return np.asarray(q)


def _log_softmax_vjp_row(z: Exact, g: Exact, temperature: np.longdouble) -> Exact:
    """(g - p sum(g)) / T."""
    p = _softmax_row(z, temperature)
    winner = p.argmax()
    pulled = np.asarray(g - p * g.sum())
    # g (1 - p) - p (sum of the other g). All other classes have p <= 1/2 and lose nothing in 1 - p.
    others_g = np.delete(g, winner).sum()
    pulled[winner] = g[winner] * _complement_row(p)[winner] - p[winner] * others_g
    return np.asarray(pulled / temperature)


def _log_sum_row(
    z: Exact, b: Exact, temperature: np.longdouble
) -> tuple[np.longdouble, np.longdouble, Exact]:
    """log|s|, the sign of s and every term's share of s, for s = sum(b exp(z/T)), b not 0."""
    nan, zero, inf = np.longdouble("nan"), np.longdouble(0), np.longdouble("inf")
    no_shares = np.full_like(z, np.nan)
    if z.size == 0:
        return -inf, zero, no_shares
    size = z / temperature + np.log(np.abs(b))  # the logarithm of each term's magnitude
    m = size.argmax()  # the first NaN, if there is one
    if np.isnan(size[m]):
        return nan, nan, no_shares
    if size[m] == -inf:
        return -inf, zero, no_shares
    if size[m] == inf:
        signs = np.unique(np.sign(b[size == inf]))
        if signs.size > 1:  # inf - inf
            return nan, nan, no_shares
        return inf, signs[0], no_shares
    ratio = b / b[m] * np.exp((z - z[m]) / temperature)  # each term over the largest, exactly 1
    others = np.delete(ratio, m).sum()
    # Only terms of mixed sign can bring 1 + others below 0.
    log_ratio = np.log1p(others) if others > -1 else np.log(-1 - others)
    log = z[m] / temperature + np.log(np.abs(b[m])) + log_ratio
    return log, np.sign(b[m]) * np.sign(1 + others), np.asarray(ratio / (1 + others))


# Softmax -----------------------------------------------------------------------------------------


@np.errstate(all="ignore")
def softmax(
    x: ArrayLike, axis: Axis = -1, *, temperature: float = 1.0, where: ArrayLike | None = None
) -> Exact:
    """Softmax: positive numbers that sum to 1 along `axis`.

    ``p_i = exp((x_i - max x) / T) / sum_j exp((x_j - max x) / T)``

    Parameters
    ----------
    x : array_like
        Scores.
    axis : int, sequence of int or None
        The axes that make up one distribution; None means all of them.
    temperature : float
        The divisor T of the scores, above 0.
    where : array_like of bool, optional
        True keeps an element. Broadcasts to the shape of `x`.

    Returns
    -------
    ndarray of longdouble, the shape of `x`
        Removed elements and elements at -inf are exactly 0, so a row with nothing kept is all 0.
        A row that holds NaN or +inf, or only -inf, is NaN throughout.

    Notes
    -----
    The shifted form of Blanchard, Higham and Higham (2021, doi 10.1093/imanum/draa038).

    Examples
    --------
    >>> softmax([0.0, math.log(3.0)]).astype(float).round(12)
    array([0.25, 0.75])
    >>> softmax([0.0, 7.0, math.log(3.0)], where=[True, False, True]).astype(float).round(12)
    array([0.25, 0.  , 0.75])
    """
    t = np.longdouble(temperature)
    return _each_row(lambda z: _softmax_row(z, t), [x], axis, where, removed=0.0)


@np.errstate(all="ignore")
def softmax_vjp(
    x: ArrayLike,
    g: ArrayLike,
    axis: Axis = -1,
    *,
    temperature: float = 1.0,
    where: ArrayLike | None = None,
) -> Exact:
    """Pull the cotangent `g` of `softmax` back to `x`.

    ``p * (g - sum(p * g)) / T``

    Parameters and special values as in `softmax`; `g` has the shape of `x`. Removed elements get
    exactly 0 and their `g` is not read.

    Examples
    --------
    >>> softmax_vjp([0.0, math.log(3.0)], [1.0, 0.0]).astype(float).round(12)
    array([ 0.1875, -0.1875])
    """
    t = np.longdouble(temperature)
    return _each_row(lambda z, u: _softmax_jacobian_row(z, u, t), [x, g], axis, where, removed=0.0)


@np.errstate(all="ignore")
def softmax_jvp(
    x: ArrayLike,
    v: ArrayLike,
    axis: Axis = -1,
    *,
    temperature: float = 1.0,
    where: ArrayLike | None = None,
) -> Exact:
    """Derivative of `softmax` at `x` in the direction `v`.

    ``p * (v - sum(p * v)) / T``, the same as `softmax_vjp`: the Jacobian
    ``(diag(p) - p p^T) / T`` is symmetric.

    Examples
    --------
    >>> softmax_jvp([0.0, math.log(3.0)], [1.0, 0.0]).astype(float).round(12)
    array([ 0.1875, -0.1875])
    """
    return softmax_vjp(x, v, axis, temperature=temperature, where=where)


# Log-softmax -------------------------------------------------------------------------------------


@np.errstate(all="ignore")
def log_softmax(
    x: ArrayLike, axis: Axis = -1, *, temperature: float = 1.0, where: ArrayLike | None = None
) -> Exact:
    """Logarithm of `softmax`.

    ``(x_i - max x) / T - log1p(sum of exp((x_j - max x) / T) over all j but one largest)``

    Parameters as in `softmax`.

    Returns
    -------
    ndarray of longdouble, the shape of `x`
        Removed elements and elements at -inf are -inf. A row that holds NaN or +inf, or only
        -inf, is NaN throughout.

    Notes
    -----
    ``x_i - logsumexp(x)`` is the same number, but 0 for a winner that is 40 ahead (Blanchard,
    Higham and Higham 2021, doi 10.1093/imanum/draa038, on the two forms).

    Examples
    --------
    >>> log_softmax([0.0, -40.0]).astype(float)
    array([-4.24835426e-18, -4.00000000e+01])
    """
    t = np.longdouble(temperature)
    return _each_row(lambda z: _log_softmax_row(z, t), [x], axis, where, removed=-math.inf)


@np.errstate(all="ignore")
def log_softmax_vjp(
    x: ArrayLike,
    g: ArrayLike,
    axis: Axis = -1,
    *,
    temperature: float = 1.0,
    where: ArrayLike | None = None,
) -> Exact:
    """Pull the cotangent `g` of `log_softmax` back to `x`.

    ``(g - p * sum(g)) / T``

    With ``g = -e_y`` this is the gradient of the cross-entropy at target y: ``p - e_y``.

    Examples
    --------
    >>> log_softmax_vjp([0.0, math.log(3.0)], [-1.0, 0.0]).astype(float).round(12)
    array([-0.75,  0.75])
    """
    t = np.longdouble(temperature)
    return _each_row(lambda z, u: _log_softmax_vjp_row(z, u, t), [x, g], axis, where, removed=0.0)


@np.errstate(all="ignore")
def log_softmax_jvp(
    x: ArrayLike,
    v: ArrayLike,
    axis: Axis = -1,
    *,
    temperature: float = 1.0,
    where: ArrayLike | None = None,
) -> Exact:
    """Derivative of `log_softmax` at `x` in the direction `v`.

    ``(v - sum(p * v)) / T``

    Examples
    --------
    >>> log_softmax_jvp([0.0, math.log(3.0)], [1.0, 0.0]).astype(float).round(12)
    array([ 0.75, -0.25])
    """
    t = np.longdouble(temperature)
    return _each_row(lambda z, u: _log_softmax_jvp_row(z, u, t), [x, v], axis, where, removed=0.0)


# Logsumexp ---------------------------------------------------------------------------------------


def _terms(
    x: ArrayLike, b: ArrayLike | None, axis: Axis, where: ArrayLike | None
) -> tuple[Exact, Exact, Mask]:
    """Tables of scores, of factors and of the terms present: `where` is True and b is not 0."""
    z = _exact(x)
    factors = np.broadcast_to(_exact(1.0 if b is None else b), z.shape)
    present = _mask(where, z.shape) & (factors != 0)
    return _rows(z, axis), _rows(factors, axis), _rows(present, axis)


def _reduced_shape(x: ArrayLike, axis: Axis, keepdims: bool) -> tuple[int, ...]:
    shape = np.shape(x)
    if not shape:
        return ()
    if not keepdims:
        return _batch_shape(shape, axis)
    reduced = {a % len(shape) for a in _axes(len(shape), axis)}
    return tuple(1 if a in reduced else length for a, length in enumerate(shape))


@np.errstate(all="ignore")
def logsumexp(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    temperature: float = 1.0,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    return_sign: bool = False,
    where: ArrayLike | None = None,
) -> Exact | tuple[Exact, Exact]:
    """Logarithm of a sum of exponentials.

    ``s = sum_j b_j exp(x_j / T)``;
    ``log|s| = x_m / T + log|b_m| + log1p(sum of the other terms / term m)``,
    where term m is one of the largest.

    Parameters
    ----------
    x, axis, temperature, where
        As in `softmax`.
    b : array_like, optional
        Factors, 1 if not given. Broadcast to the shape of `x`. A factor 0 removes its element,
        whatever its score.
    keepdims : bool
        Keep the reduced axes, with length 1.
    return_sign : bool
        Return ``(log|s|, sign(s))``; otherwise a negative s gives NaN.

    Returns
    -------
    ndarray of longdouble, or a pair of them
        -inf (sign 0) for an empty sum: no elements, all removed, or all -inf. NaN if a NaN is
        kept. +inf if +inf is kept, and NaN if +inf comes with both signs.

    Notes
    -----
    Leaving the largest term out of the sum keeps full relative accuracy when the result is close
    to 0 (Blanchard, Higham and Higham 2021, doi 10.1093/imanum/draa038). A result near 0 that is
    the difference of ``x_m / T`` and a logarithm is accurate relative to those two, not to itself.

    Examples
    --------
    >>> float(logsumexp([0.0, -40.0]))
    4.248354255291589e-18
    >>> log, sign = logsumexp([0.0, math.log(3.0)], b=[1.0, -1.0], return_sign=True)
    >>> round(math.exp(log), 12), float(sign)
    (2.0, -1.0)
    """
    t = np.longdouble(temperature)
    shape = _reduced_shape(x, axis, keepdims)
    z, factors, present = _terms(x, b, axis, where)
    logs = np.empty(len(z), np.longdouble)
    signs = np.empty(len(z), np.longdouble)
    for i, keep in enumerate(present):
        logs[i], signs[i], _ = _log_sum_row(z[i, keep], factors[i, keep], t)
    if return_sign:
        return logs.reshape(shape), signs.reshape(shape)
    return np.where(signs < 0, np.nan, logs).reshape(shape)


def _shares(
    x: ArrayLike,
    axis: Axis,
    temperature: float,
    b: ArrayLike | None,
    return_sign: bool,
    where: ArrayLike | None,
) -> tuple[Exact, Mask]:
    """Tables: the gradient of log|s| in z = x/T, NaN where the value is, and what is present."""
    z, factors, present = _terms(x, b, axis, where)
    shares = np.zeros_like(z)
    for i, keep in enumerate(present):
        _, sign, row = _log_sum_row(z[i, keep], factors[i, keep], np.longdouble(temperature))
        shares[i, keep] = row if return_sign or not sign < 0 else np.nan
    return shares, present


@np.errstate(all="ignore")
def logsumexp_vjp(
    x: ArrayLike,
    g: ArrayLike,
    axis: Axis = -1,
    *,
    temperature: float = 1.0,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    return_sign: bool = False,
    where: ArrayLike | None = None,
) -> Exact:
    """Pull the cotangent `g` of `logsumexp` (of ``log|s|``; the sign is constant) back to `x`.

    ``g * b_i exp(x_i / T) / s / T``, which is ``g * softmax(x / T) / T`` without `b`

    `g` has the shape of the result (whatever `keepdims`), or is one number. Removed elements
    (`where` False or ``b = 0``) get exactly 0. Elsewhere special values are those of `softmax`: NaN
    throughout for a row that holds NaN or +inf, or only -inf, and for a negative s without
    `return_sign`, because the value is NaN there.

    Examples
    --------
    >>> logsumexp_vjp([0.0, math.log(3.0)], 1.0).astype(float).round(12)
    array([0.25, 0.75])
    """
    shares, present = _shares(x, axis, temperature, b, return_sign, where)
    pulled = _exact(g).reshape(-1, 1) * shares / np.longdouble(temperature)
    return _unrows(np.where(present, pulled, 0), _exact(x).shape, axis).reshape(np.shape(x))


@np.errstate(all="ignore")
def logsumexp_jvp(
    x: ArrayLike,
    v: ArrayLike,
    axis: Axis = -1,
    *,
    temperature: float = 1.0,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    return_sign: bool = False,
    where: ArrayLike | None = None,
) -> Exact:
    """Derivative of `logsumexp` (of ``log|s|``; the sign is constant) in the direction `v`.

    ``sum_i v_i b_i exp(x_i / T) / s / T``; the `v` of removed elements is not read.

    Examples
    --------
    >>> float(logsumexp_jvp([0.0, math.log(3.0)], [1.0, 0.0]).round(12))
    0.25
    """
    shares, present = _shares(x, axis, temperature, b, return_sign, where)
    tangents = _rows(np.broadcast_to(_exact(v), _exact(x).shape), axis)
    pushed = np.where(present, tangents * shares, 0).sum(axis=1) / np.longdouble(temperature)
    return np.asarray(pushed.reshape(_reduced_shape(x, axis, keepdims)))


# Sigmoid -----------------------------------------------------------------------------------------


def _sigmoid(x: Exact) -> Exact:
    e = np.exp(-np.abs(x))  # at most 1
    return np.asarray(np.where(x >= 0, 1, e) / (1 + e))


def _log_sigmoid(x: Exact) -> Exact:
    return np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x)))  # two terms of one sign


@np.errstate(all="ignore")
def sigmoid(x: ArrayLike) -> Exact:
    """Logistic function of every element: ``1 / (1 + exp(-x))``.

    For ``x < 0`` it is computed as ``exp(x) / (1 + exp(x))``. ``1 - sigmoid(x)`` is
    ``sigmoid(-x)``: no subtraction is needed in either tail. 0 at -inf, 1 at +inf, NaN at NaN.

    Examples
    --------
    >>> sigmoid([0.0, -math.log(3.0), -40.0]).astype(float)
    array([5.00000000e-01, 2.50000000e-01, 4.24835426e-18])
    """
    return _sigmoid(_exact(x)).reshape(np.shape(x))


@np.errstate(all="ignore")
def sigmoid_vjp(x: ArrayLike, g: ArrayLike) -> Exact:
    """Pull the cotangent `g` of `sigmoid`, in the shape of `x`, back to `x`.

    ``g * sigmoid(x) * sigmoid(-x)``

    Examples
    --------
    >>> float(sigmoid_vjp(math.log(3.0), 16.0).round(12))
    3.0
    """
    z = _exact(x)
    return (_exact(g) * _sigmoid(z) * _sigmoid(-z)).reshape(np.shape(x))


def sigmoid_jvp(x: ArrayLike, v: ArrayLike) -> Exact:
    """Derivative of `sigmoid` at `x` in the direction `v`: the same as `sigmoid_vjp`.

    Examples
    --------
    >>> float(sigmoid_jvp(math.log(3.0), 16.0).round(12))
    3.0
    """
    return sigmoid_vjp(x, v)


@np.errstate(all="ignore")
def log_sigmoid(x: ArrayLike) -> Exact:
    """Logarithm of `sigmoid`: ``min(x, 0) - log1p(exp(-|x|))``.

    -inf at -inf, 0 at +inf, NaN at NaN.

    Examples
    --------
    >>> log_sigmoid([40.0, -40.0]).astype(float)
    array([-4.24835426e-18, -4.00000000e+01])
    """
    return _log_sigmoid(_exact(x)).reshape(np.shape(x))


@np.errstate(all="ignore")
def log_sigmoid_vjp(x: ArrayLike, g: ArrayLike) -> Exact:
    """Pull the cotangent `g` of `log_sigmoid`, in the shape of `x`, back to `x`.

    ``g * sigmoid(-x)``

    Examples
    --------
    >>> float(log_sigmoid_vjp(math.log(3.0), 16.0).round(12))
    4.0
    """
    return (_exact(g) * _sigmoid(-_exact(x))).reshape(np.shape(x))


def log_sigmoid_jvp(x: ArrayLike, v: ArrayLike) -> Exact:
    """Derivative of `log_sigmoid` at `x` in the direction `v`: the same as `log_sigmoid_vjp`.

    Examples
    --------
    >>> float(log_sigmoid_jvp(math.log(3.0), 16.0).round(12))
    4.0
    """
    return log_sigmoid_vjp(x, v)


# Losses ------------------------------------------------------------------------------------------


def _surprises(mass: Exact, surprise: Exact) -> Exact:
    """Mass times surprise: 0 * inf counts as 0 (no mass, no probability), and NaN stays NaN."""
    return np.where((mass == 0) & np.isinf(surprise), 0, mass * surprise)


def _reduced(
    losses: Exact,
    weights: Exact,
    derivatives: Exact,
    counted: Mask,
    batch: tuple[int, ...],
    reduction: Reduction,
    normalizer: float | None,
    grad_output: ArrayLike | None,
) -> tuple[Exact, Exact]:
    """The value of a loss, and its derivatives as a table, from those of its rows.

    `losses` (N,) and `weights` (N,), a row's share of the divisor, are 0 where a row is ignored;
    `counted`, in the shape of `derivatives` (N, C), is False there and in classes removed.
    """
    scale = np.ones(len(losses), np.longdouble)
    if grad_output is not None:
        scale = scale * _exact(grad_output).reshape(-1)
    if reduction == "none":
        value = losses.reshape(batch)
    elif reduction == "sum":
        value = np.asarray(losses.sum())
    else:
        divisor = weights.sum() if normalizer is None else normalizer
        value = np.asarray(losses.sum() / divisor) if divisor != 0 else np.array(np.nan)
        scale = scale / divisor
        counted = counted & (divisor != 0)
    # By selection and not by a factor 0, which would turn a NaN or inf scale into a NaN derivative.
    derivatives = np.where(counted, derivatives * scale[:, None], 0)
    return value.astype(np.longdouble), derivatives


# Cross-entropy -----------------------------------------------------------------------------------


def _one_hot(
    target: np.ndarray, batch: tuple[int, ...], num_classes: int, ignore_index: int | None
) -> Exact:
    """Class indices as a table of probabilities; ignored rows are all 0."""
    table = np.zeros((math.prod(batch), num_classes), np.longdouble)
    labels = [int(y) for y in target.reshape(len(table))]
    for i, y in enumerate(labels):
        if y == ignore_index:
            continue
        if not 0 <= y < num_classes:  # NumPy would wrap a negative one
            raise IndexError(
                f"targets must be in [0, {num_classes}) or ignore_index; "
                f"target[{_row_name(i, batch)}] is {y}"
            )
        table[i, y] = 1
    return table


def _row_name(i: int, batch: tuple[int, ...]) -> str:
    return ", ".join(str(index) for index in np.unravel_index(i, batch)) if batch else ""


def _logsumexp_row(z: Exact) -> np.longdouble:
    return _log_sum_row(z, np.ones_like(z), np.longdouble(1))[0]


# In the four row functions `m` are the masses of the classes, `zl` is the sample weight times
# `z_loss`, and the loss is sum(m * surprise) + zl logsumexp(z)**2.


def _cross_entropy_row(z: Exact, m: Exact, zl: np.longdouble) -> np.longdouble:
    surprise = -_log_softmax_row(z, np.longdouble(1))
    loss: np.longdouble = _surprises(m, surprise).sum() + zl * _logsumexp_row(z) ** 2
    return loss


def _cross_entropy_grad_row(z: Exact, m: Exact, zl: np.longdouble) -> Exact:
    """sum(m) p - m + 2 zl lse p."""
    pulled = _log_softmax_vjp_row(z, -m, np.longdouble(1))
    return pulled + 2 * zl * _logsumexp_row(z) * _softmax_row(z, np.longdouble(1))


def _cross_entropy_hvp_row(z: Exact, m: Exact, zl: np.longdouble, v: Exact) -> Exact:
    """The derivative of the gradient, (sum(m) + 2 zl lse) p - m, in the direction v."""
    p = _softmax_row(z, np.longdouble(1))
    curvature = m.sum() + 2 * zl * _logsumexp_row(z)
    moved = _softmax_jacobian_row(z, v, np.longdouble(1))
    return np.asarray(curvature * moved + 2 * zl * p * (p * v).sum())


def _cross_entropy_hess_diag_row(z: Exact, m: Exact, zl: np.longdouble) -> Exact:
    p = _softmax_row(z, np.longdouble(1))
    curvature = m.sum() + 2 * zl * _logsumexp_row(z)
    return np.asarray(curvature * p * _complement_row(p) + 2 * zl * p**2)


@np.errstate(all="ignore")
def _cross_entropy(
    derivative: Callable[..., Exact],
    logits: ArrayLike,
    target: ArrayLike,
    *vectors: ArrayLike,
    axis: int = -1,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    grad_output: ArrayLike | None = None,
) -> tuple[Exact, Exact]:
    """The value, and what the row function `derivative` gives, in the shape of `logits`."""
    z = _exact(logits)
    batch = _batch_shape(z.shape, axis)
    rows = _rows(z, axis)
    tables = [_rows(_exact(v), axis) for v in vectors]
    keep = _rows(_mask(where, z.shape), axis)
    n, num_classes = rows.shape
    if num_classes == 0:
        raise ValueError(f"cross_entropy needs at least one class; logits have shape {z.shape}")
    w = np.ones(num_classes, np.longdouble) if weight is None else _exact(weight)
    s = np.ones(n, np.longdouble) if sample_weight is None else _exact(sample_weight).reshape(n)
    eps = np.longdouble(label_smoothing)

    y = np.asarray(target)
    ignored = (s == 0) | ~keep.any(axis=1)
    if y.dtype.kind in "biu":
        t = _one_hot(y, batch, num_classes, ignore_index)
        row_weight = s * (t @ w)
        # Smoothing gives mass to the other classes even if the target's weight is 0.
        ignored |= (t.sum(axis=1) == 0) | ((t @ w == 0) & (eps == 0))
    else:
        t = _rows(_exact(y), axis)
        row_weight = s

    losses = np.zeros(n, np.longdouble)
    derivatives = np.zeros((n, num_classes), np.longdouble)
    for i in np.flatnonzero(~ignored).tolist():
        k = keep[i]
        if (t[i, ~k] > 0).any():
            raise ValueError(f"where removes a target class of row [{_row_name(i, batch)}]")
        masses = s[i] * w[k] * ((1 - eps) * t[i, k] + eps / k.sum())
        row = rows[i, k], masses, s[i] * np.longdouble(z_loss)
        losses[i] = _cross_entropy_row(*row)
        derivatives[i, k] = derivative(*row, *(table[i, k] for table in tables))

    value, table = _reduced(
        losses,
        np.where(ignored, 0, row_weight),
        derivatives,
        keep & ~ignored[:, None],
        batch,
        reduction,
        normalizer,
        grad_output,
    )
    return value, _unrows(table, z.shape, axis).reshape(np.shape(logits))


def cross_entropy(logits: ArrayLike, target: ArrayLike, **options: Any) -> Exact:
    """Cross-entropy of softmax(logits) against class indices or probabilities.

    A row's loss is the mass of each class times its surprise:
    ``sum_c m_c * -log_softmax(z)_c + s z_loss logsumexp(z)**2``
    with ``m_c = s w_c ((1 - eps) t_c + eps / K)``,
    where ``t`` is the target (1 at the class index, or the probabilities given), ``w`` the class
    weights, ``s`` the sample weight, ``eps`` the smoothing and ``K`` the number of classes kept.
    For a class index without options this is ``logsumexp(z) - z_y``.

    Parameters
    ----------
    logits : array_like
        Scores; the classes lie along `axis`.
    target : array_like
        Integers or bools: class indices, in the shape of `logits` without `axis`. Floats:
        probabilities, in the shape of `logits`; they need not sum to 1.
    axis : int, default -1
        The class axis.
    weight : array_like, shape (C,), optional
        Weights of the classes.
    sample_weight : array_like, optional
        Weights of the rows, in the shape of `logits` without `axis`.
    ignore_index : int or None, default -100
        Rows with this class index are ignored. Has no meaning for probabilities.
    label_smoothing : float, default 0
        The share of the mass that is spread evenly over the classes kept, the target's included.
    z_loss : float, default 0
        The factor of ``logsumexp(z)**2``, which keeps the logits from drifting. It is multiplied
        by the sample weight, and not by class weights.
    where : array_like of bool, optional
        False removes a class. Broadcasts to the shape of `logits`.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides the sum of the losses by the sum over the rows that are not ignored of
        ``s w_y`` (class indices) or ``s`` (probabilities).
    normalizer : float, optional
        The divisor of "mean", instead of the sum of weights. Other reductions do not use it.

    Returns
    -------
    ndarray of longdouble
        0-d, or one loss per row for "none".

        A row is ignored (loss 0, derivatives exactly 0, not in the divisor, even if it holds NaN)
        if its class index is `ignore_index`, its sample weight is 0, the weight of its class is 0
        and nothing is smoothed, or `where` removes every class. Otherwise a row that holds NaN or
        +inf, or only -inf, has loss NaN, and a class at -inf makes the loss +inf if it has mass,
        and adds nothing if it has none. The mean is NaN if the divisor is 0.

    Notes
    -----
    All terms of the loss are at least 0, and the winner's surprise is ``log1p(rest / e_y)``: a
    confident row keeps full relative accuracy. (Blanchard, Higham and Higham 2021,
    doi 10.1093/imanum/draa038, for the shifted forms; A. Chowdhery et al., "PaLM: Scaling Language
    Modeling with Pathways", section 5, arXiv 2204.02311, for the z-loss.)

    Examples
    --------
    >>> round(float(cross_entropy([[0.0, 1.0, 2.0]], [1])), 12)
    1.407605964444
    >>> float(cross_entropy([[0.0, -40.0]], [0]))
    4.248354255291589e-18
    """
    return cross_entropy_value_and_grad(logits, target, **options)[0]


def cross_entropy_value_and_grad(
    logits: ArrayLike, target: ArrayLike, **options: Any
) -> tuple[Exact, Exact]:
    """Value of `cross_entropy` and its gradient with respect to `logits`.

    Parameters
    ----------
    grad_output : array_like, optional
        Factor of the gradient (of the Hessian, for the second derivatives): a number, or one per
        row for "none"; 1 if not given. The value is not multiplied.
    logits, target, axis, ...
        As in `cross_entropy`.

    Returns
    -------
    value : ndarray of longdouble
    grad : ndarray of longdouble, the shape of `logits`
        Exactly 0 in ignored rows, in removed classes, and everywhere if the divisor of a mean is 0.
        At a class at -inf it is minus the class's mass.

    Notes
    -----
    With ``m`` the masses of a row (see `cross_entropy`), its gradient is
    ``sum(m) p - m + 2 s z_loss logsumexp(z) p``. The first part is the pullback of ``-m`` through
    `log_softmax`; for a hard target that is ``-rest / (rest + e_y)`` at the target, `rest` being
    the sum of the other exponentials: ``p_y - 1`` without cancellation.

    Examples
    --------
    >>> value, grad = cross_entropy_value_and_grad([[0.0, math.log(3.0)]], [1])
    >>> round(float(value), 12), grad.astype(float).round(12)
    (0.287682072452, array([[ 0.25, -0.25]]))
    """
    return _cross_entropy(_cross_entropy_grad_row, logits, target, **options)


def cross_entropy_grad(logits: ArrayLike, target: ArrayLike, **options: Any) -> Exact:
    """Gradient of `cross_entropy` with respect to `logits`: ``sum(m) p - m`` in each row.

    Parameters as in `cross_entropy` and `cross_entropy_value_and_grad`, which also says what
    `z_loss` adds.

    Examples
    --------
    >>> cross_entropy_grad([[0.0, math.log(3.0)]], [1]).astype(float).round(12)
    array([[ 0.25, -0.25]])
    """
    return cross_entropy_value_and_grad(logits, target, **options)[1]


def cross_entropy_hvp(logits: ArrayLike, target: ArrayLike, v: ArrayLike, **options: Any) -> Exact:
    """Hessian of `cross_entropy` times `v`, which has the shape of `logits`.

    ``B p * (v - p.v) + 2 s z_loss p (p.v)`` in each row, with
    ``B = sum(m) + 2 s z_loss logsumexp(z)``; without `z_loss`, a constant `v` gives exactly 0.

    Parameters as in `cross_entropy` and `cross_entropy_value_and_grad`; the `v` of ignored rows and
    removed classes is not read. Special values as for the gradient, but 0 at a class at -inf.

    Examples
    --------
    >>> cross_entropy_hvp([[0.0, math.log(3.0)]], [1], [[1.0, 0.0]]).astype(float).round(12)
    array([[ 0.1875, -0.1875]])
    """
    return _cross_entropy(_cross_entropy_hvp_row, logits, target, v, **options)[1]


def cross_entropy_hess_diag(logits: ArrayLike, target: ArrayLike, **options: Any) -> Exact:
    """Diagonal of the Hessian of `cross_entropy`.

    ``B p (1 - p) + 2 s z_loss p**2`` in each row, with ``B`` as in `cross_entropy_hvp` and
    ``1 - p`` at the winner as the sum of the other p.

    Parameters as in `cross_entropy` and `cross_entropy_value_and_grad`, special values as in
    `cross_entropy_hvp`.

    Examples
    --------
    >>> cross_entropy_hess_diag([[0.0, math.log(3.0)]], [1]).astype(float).round(12)
    array([[0.1875, 0.1875]])
    """
    return _cross_entropy(_cross_entropy_hess_diag_row, logits, target, **options)[1]


# Binary cross-entropy ----------------------------------------------------------------------------


def _binary_grad(z: Exact, positive: Exact, negative: Exact) -> Exact:
    return negative * _sigmoid(z) - positive * _sigmoid(-z)


def _binary_hess(z: Exact, positive: Exact, negative: Exact) -> Exact:
    return (negative + positive) * _sigmoid(z) * _sigmoid(-z)


@np.errstate(all="ignore")
def _binary_cross_entropy(
    derivative: Callable[[Exact, Exact, Exact], Exact],
    logits: ArrayLike,
    target: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    grad_output: ArrayLike | None = None,
) -> tuple[Exact, Exact]:
    """The value, and the derivative with respect to each logit given the masses of its classes."""
    z, t = _exact(logits), _exact(target)
    s = np.broadcast_to(_exact(1.0 if sample_weight is None else sample_weight), z.shape)
    positive = s * _exact(1.0 if pos_weight is None else pos_weight) * t
    negative = s * (1 - t)
    counted = (s != 0) & _mask(where, z.shape)
    losses = _surprises(positive, -_log_sigmoid(z)) + _surprises(negative, -_log_sigmoid(-z))
    value, table = _reduced(
        np.where(counted, losses, 0).ravel(),
        np.where(counted, s, 0).ravel(),
        derivative(z, positive, negative).reshape(-1, 1),
        counted.reshape(-1, 1),
        np.shape(logits),
        reduction,
        normalizer,
        grad_output,
    )
    return value, table.reshape(np.shape(logits))


def binary_cross_entropy(logits: ArrayLike, target: ArrayLike, **options: Any) -> Exact:
    """Cross-entropy of sigmoid(logits) against the probability of the positive class.

    Each element's loss is the mass of either class times its surprise:
    ``s (pos_weight t * -log_sigmoid(z) + (1 - t) * -log_sigmoid(-z))``.

    Parameters
    ----------
    logits : array_like
        Scores, any shape.
    target : array_like, the shape of `logits`
        Probabilities t in [0, 1]; bools and the integers 0 and 1 too.
    pos_weight : array_like, optional
        Factors of the positive class. Broadcast to the shape of `logits`.
    sample_weight : array_like, optional
        Weights s of the elements. Broadcast to the shape of `logits`.
    where : array_like of bool, optional
        False leaves an element out. Broadcasts to the shape of `logits`.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides the sum of the losses by the sum of s over the elements that are not ignored;
        `pos_weight` does not enter it.
    normalizer : float, optional
        The divisor of "mean", instead of the sum of weights. Other reductions do not use it.

    Returns
    -------
    ndarray of longdouble
        0-d, or one loss per element for "none".

        An element is ignored (loss 0, derivatives exactly 0, not in the divisor, even if it is NaN)
        if its sample weight is 0 or `where` is False there. Otherwise NaN gives NaN, and an
        infinite logit gives +inf if the class that it excludes has mass, and adds nothing if it has
        none. The mean is NaN if the divisor is 0.

    Notes
    -----
    This is `cross_entropy` of the logits ``[0, z]`` with the masses ``1 - t`` and ``pos_weight t``.
    Both terms are at least 0, so that full relative accuracy is kept in both tails (M. Mächler,
    "Accurately computing log(1 - exp(-|a|))", 2012, which treats ``log(1 + exp(x))`` too).

    Examples
    --------
    >>> binary_cross_entropy([40.0, -40.0], [1, 1], reduction="none").astype(float)
    array([4.24835426e-18, 4.00000000e+01])
    """
    return binary_cross_entropy_value_and_grad(logits, target, **options)[0]


def binary_cross_entropy_value_and_grad(
    logits: ArrayLike, target: ArrayLike, **options: Any
) -> tuple[Exact, Exact]:
    """Value of `binary_cross_entropy` and its gradient with respect to `logits`.

    The gradient of an element is ``s ((1 - t) sigmoid(z) - pos_weight t sigmoid(-z))``: never
    ``sigmoid(z) - 1``.

    Parameters
    ----------
    grad_output : array_like, optional
        Factor of the gradient (of the Hessian, for the second derivatives): a number, or one per
        element for "none"; 1 if not given. The value is not multiplied.
    logits, target, pos_weight, ...
        As in `binary_cross_entropy`.

    Returns
    -------
    value : ndarray of longdouble
    grad : ndarray of longdouble, the shape of `logits`
        Exactly 0 in ignored elements, and everywhere if the divisor of a mean is 0.

    Examples
    --------
    >>> value, grad = binary_cross_entropy_value_and_grad([math.log(3.0)], [1])
    >>> round(float(value), 12), grad.astype(float).round(12)
    (0.287682072452, array([-0.25]))
    """
    return _binary_cross_entropy(_binary_grad, logits, target, **options)


def binary_cross_entropy_grad(logits: ArrayLike, target: ArrayLike, **options: Any) -> Exact:
    """Gradient of `binary_cross_entropy` with respect to `logits`.

    Parameters as in `binary_cross_entropy` and `binary_cross_entropy_value_and_grad`.

    Examples
    --------
    >>> binary_cross_entropy_grad([math.log(3.0)], [1]).astype(float).round(12)
    array([-0.25])
    """
    return binary_cross_entropy_value_and_grad(logits, target, **options)[1]


def binary_cross_entropy_hvp(
    logits: ArrayLike, target: ArrayLike, v: ArrayLike, **options: Any
) -> Exact:
    """Hessian of `binary_cross_entropy` times `v`, which has the shape of `logits`.

    The Hessian is diagonal: `binary_cross_entropy_hess_diag` times `v`; the `v` of ignored elements
    is not read.

    Examples
    --------
    >>> binary_cross_entropy_hvp([math.log(3.0)], [1], [16.0]).astype(float).round(12)
    array([3.])
    """

    def derivative(z: Exact, positive: Exact, negative: Exact) -> Exact:
        return _binary_hess(z, positive, negative) * _exact(v)

    return _binary_cross_entropy(derivative, logits, target, **options)[1]


def binary_cross_entropy_hess_diag(logits: ArrayLike, target: ArrayLike, **options: Any) -> Exact:
    """Diagonal of the Hessian of `binary_cross_entropy`.

    ``s ((1 - t) + pos_weight t) sigmoid(z) sigmoid(-z)``

    Parameters as in `binary_cross_entropy` and `binary_cross_entropy_value_and_grad`. 0 at infinite
    logits.

    Examples
    --------
    >>> binary_cross_entropy_hess_diag([math.log(3.0)], [1]).astype(float).round(12)
    array([0.1875])
    """
    return _binary_cross_entropy(_binary_hess, logits, target, **options)[1]


# Token statistics --------------------------------------------------------------------------------


class TokenStats(NamedTuple):
    """What `token_stats` returns: arrays in the shape of the rows.

    Examples
    --------
    >>> TokenStats._fields
    ('nll', 'logsumexp', 'argmax', 'correct', 'entropy', 'rank')
    """

    nll: Exact
    logsumexp: Exact
    argmax: NDArray[np.int64]
    correct: Mask
    entropy: Exact
    rank: NDArray[np.int64]


@np.errstate(all="ignore")
def token_stats(
    logits: ArrayLike, target: ArrayLike, *, axis: int = -1, ignore_index: int | None = -100
) -> TokenStats:
    """Statistics of each row of logits and its target, as language models are evaluated by.

    Parameters
    ----------
    logits : array_like
        Scores; the classes lie along `axis`.
    target : array_like of int
        Class indices, in the shape of `logits` without `axis`.
    axis : int
        The class axis.
    ignore_index : int or None
        A row with this target has nll 0, correct False and rank -1. What does not depend on the
        target is given for it all the same.

    Returns
    -------
    TokenStats
        nll : `cross_entropy` of the row.

        logsumexp : `logsumexp` of the row.

        argmax : the first of the largest logits, or the first NaN.

        correct : whether that is the target; False in a row with NaN.

        entropy : ``sum_c p_c * -log p_c`` in nats; a class at -inf adds nothing. NaN in a row that
        holds NaN or +inf, or only -inf.

        rank : how many classes come before the target when they are sorted by falling logit, equal
        ones by rising index; -1 in a row with NaN. It is 0 exactly where `correct` is True.

    Notes
    -----
    ``exp`` of the mean `nll` over the rows not ignored is the perplexity.

    Examples
    --------
    >>> stats = token_stats([[0.0, math.log(3.0)], [2.0, 2.0]], [0, 1])
    >>> stats.rank, stats.correct
    (array([1, 1]), array([False, False]))
    >>> stats.entropy.astype(float)
    array([0.56233514, 0.69314718])
    """
    nll = cross_entropy(logits, target, axis=axis, ignore_index=ignore_index, reduction="none")
    rows = _rows(_exact(logits), axis)
    labels = np.asarray(target).reshape(len(rows))
    entropy = np.empty(len(rows), np.longdouble)
    rank = np.full(len(rows), -1, np.int64)
    for i, z in enumerate(rows):
        p, log_p = _softmax_row(z, np.longdouble(1)), _log_softmax_row(z, np.longdouble(1))
        entropy[i] = _surprises(p, -log_p).sum()
        if labels[i] != ignore_index and not np.isnan(z).any():
            rank[i] = np.argsort(-z, kind="stable").tolist().index(labels[i])
    shape = nll.shape
    return TokenStats(
        nll,
        np.asarray(logsumexp(logits, axis)).reshape(shape),
        rows.argmax(axis=1).astype(np.int64).reshape(shape),
        (rank == 0).reshape(shape),
        entropy.reshape(shape),
        rank.reshape(shape),
    )


# Linear head -------------------------------------------------------------------------------------


def _linear(x: Exact, w: Exact, bias: ArrayLike | None) -> Exact:
    return np.asarray(x @ w.T + (0 if bias is None else _exact(bias)))


def _pullback(g: Exact, x: Exact, w: Exact) -> dict[str, Exact]:
    """The cotangent `g` of ``x w^T + bias`` pulled back to each of the three."""
    # A row without slope adds nothing, even if it is ignored and holds NaN: 0 * NaN is not 0.
    used = g.any(axis=1)
    to_x = np.zeros_like(x)
    to_x[used] = g[used] @ w
    return {"W": g[used].T @ x[used], "bias": g[used].sum(axis=0), "X": to_x}


def _chosen(parts: Mapping[str, Exact], wrt: Sequence[str]) -> Any:
    return namedtuple("Parts", wrt)(*(parts[name] for name in wrt))


def _penalty_slope(w: Exact, l2: float, options: Mapping[str, Any]) -> Exact:
    """``l2 w``, the derivative of the penalty, times grad_output."""
    if l2 == 0:  # 0 * inf is not 0
        return np.zeros_like(w)
    if options.get("reduction") == "none":
        raise ValueError(f'reduction="none" has no sum to add the penalty to; l2 must be 0: {l2}')
    grad_output = options.get("grad_output")
    return np.asarray(np.longdouble(l2) * w * (1 if grad_output is None else _exact(grad_output)))


def linear_cross_entropy(X: ArrayLike, W: ArrayLike, target: ArrayLike, **options: Any) -> Exact:
    """`cross_entropy` of the logits ``X W^T + bias``, with a penalty ``l2 / 2 sum(W**2)``.

    Parameters
    ----------
    X : array_like, shape (N, d)
        Data, one row each.
    W : array_like, shape (K, d)
        Weights of the classes.
    target : array_like
        As in `cross_entropy`: N class indices, or probabilities (N, K).
    bias : array_like, shape (K,), optional
        Zero if not given.
    l2 : float, default 0
        Factor of the penalty, which is added after the reduction and does not touch the bias.
    weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, normalizer
        As in `cross_entropy`.

    Returns
    -------
    ndarray of longdouble
        0-d, or one loss per row for "none".

    Raises
    ------
    ValueError
        For a penalty with reduction "none", which would add it N times.

    Notes
    -----
    The products are plain sums in long double. An ignored row's X may hold NaN.

    Examples
    --------
    >>> X, W = [[1.0], [2.0]], [[0.0], [math.log(3.0)]]
    >>> round(float(linear_cross_entropy(X, W, [1, 1])), 12)
    0.196521294055
    """
    return linear_cross_entropy_value_and_grad(X, W, target, **options)[0]


@np.errstate(all="ignore")
def linear_cross_entropy_value_and_grad(
    X: ArrayLike,
    W: ArrayLike,
    target: ArrayLike,
    *,
    wrt: Sequence[str] = ("W", "bias", "X"),
    bias: ArrayLike | None = None,
    l2: float = 0.0,
    **options: Any,
) -> tuple[Exact, Any]:
    """Value of `linear_cross_entropy` and its gradients.

    With G the gradient of `cross_entropy` in the logits: ``dW = G^T X + l2 W``,
    ``dbias = sum of G over the rows``, ``dX = G W``.

    Parameters
    ----------
    wrt : sequence of {"W", "bias", "X"}
        The arguments to differentiate in; "bias" also if none is given.
    grad_output : array_like, optional
        Factor of the gradients, that of the penalty included; as in `cross_entropy_value_and_grad`.
    X, W, target, bias, ...
        As in `linear_cross_entropy`.

    Returns
    -------
    value : ndarray of longdouble
    grad : named tuple of ndarray of longdouble
        The fields of `wrt` in that order, each in the shape of its argument. If the divisor of a
        mean is 0 only the penalty's part is not 0.

    Examples
    --------
    >>> X, W = [[1.0], [2.0]], [[0.0], [math.log(3.0)]]
    >>> _, grad = linear_cross_entropy_value_and_grad(X, W, [1, 1], wrt=("W", "bias"))
    >>> grad.bias.astype(float).round(12)
    array([ 0.175, -0.175])
    """
    x, w = _exact(X), _exact(W)
    value, g = cross_entropy_value_and_grad(_linear(x, w, bias), target, **options)
    grads = _pullback(g, x, w)
    grads["W"] = grads["W"] + _penalty_slope(w, l2, options)
    if l2 != 0:
        value = np.asarray(value + np.longdouble(l2) / 2 * (w**2).sum())
    return value, _chosen(grads, wrt)


def linear_cross_entropy_grad(X: ArrayLike, W: ArrayLike, target: ArrayLike, **options: Any) -> Any:
    """Gradients of `linear_cross_entropy`.

    Parameters and result as in `linear_cross_entropy_value_and_grad`.

    Examples
    --------
    >>> X, W = [[1.0], [2.0]], [[0.0], [math.log(3.0)]]
    >>> linear_cross_entropy_grad(X, W, [1, 1], wrt=["W"]).W.astype(float).round(12)
    array([[ 0.225],
           [-0.225]])
    """
    return linear_cross_entropy_value_and_grad(X, W, target, **options)[1]


@np.errstate(all="ignore")
def linear_cross_entropy_hvp(
    X: ArrayLike,
    W: ArrayLike,
    target: ArrayLike,
    v: Sequence[ArrayLike],
    *,
    wrt: Sequence[str] | None = None,
    bias: ArrayLike | None = None,
    l2: float = 0.0,
    **options: Any,
) -> Any:
    """Hessian of `linear_cross_entropy` in the arguments of `wrt`, times `v`.

    The direction moves the logits by ``D = X vW^T + vX W^T + vbias``. With G the gradient of
    `cross_entropy` in the logits and R its Hessian times D, the product rule gives
    ``R^T X + G^T vX + l2 vW`` for W, ``R W + G vW`` for X and the sum of R over the rows for bias.

    Parameters
    ----------
    v : sequence of array_like
        A direction for each name in `wrt`, in the shape of that argument.
    wrt : sequence of {"W", "bias", "X"}, optional
        The first ``len(v)`` of W, bias, X if not given. What is not in it is held still.
    X, W, target, bias, grad_output, ...
        As in `linear_cross_entropy_value_and_grad`.

    Returns
    -------
    named tuple of ndarray of longdouble
        Fields and shapes of `v`.

    Examples
    --------
    >>> X, W = [[1.0], [2.0]], [[0.0], [math.log(3.0)]]
    >>> linear_cross_entropy_hvp(X, W, [1, 1], [[[0.0], [1.0]]]).W.astype(float).round(12)
    array([[-0.27375],
           [ 0.27375]])
    """
    x, w = _exact(X), _exact(W)
    names = ("W", "bias", "X")[: len(v)] if wrt is None else wrt
    move = {"W": np.zeros_like(w), "bias": np.zeros(len(w), np.longdouble), "X": np.zeros_like(x)}
    move |= {name: _exact(a) for name, a in zip(names, v, strict=True)}
    logits = _linear(x, w, bias)
    moved = _linear(x, move["W"], move["bias"]) + _linear(move["X"], w, None)
    products = _pullback(cross_entropy_hvp(logits, target, moved, **options), x, w)
    slope = _pullback(cross_entropy_grad(logits, target, **options), move["X"], move["W"])
    products["W"] = products["W"] + slope["W"] + _penalty_slope(move["W"], l2, options)
    products["X"] = products["X"] + slope["X"]
    return _chosen(products, names)


@np.errstate(all="ignore")
def linear_cross_entropy_fisher_diag(
    X: ArrayLike,
    W: ArrayLike,
    target: ArrayLike,
    *,
    wrt: Sequence[str] = ("W", "bias"),
    bias: ArrayLike | None = None,
    **options: Any,
) -> Any:
    """Diagonal of the Fisher information of a linear head, without a penalty.

    ``sum_n A_n p_nk (1 - p_nk) x_nd**2`` for W, the same without x for bias, with ``A_n`` the mass
    of a row over the divisor: the diagonal of the Hessian of `linear_cross_entropy`.

    Parameters as in `linear_cross_entropy_value_and_grad`, but without `l2` and `z_loss`.

    Examples
    --------
    >>> X, W = [[1.0], [2.0]], [[0.0], [math.log(3.0)]]
    >>> linear_cross_entropy_fisher_diag(X, W, [1, 1]).W.astype(float).round(12)
    array([[0.27375],
           [0.27375]])
    """
    if options.get("z_loss", 0) != 0:
        raise ValueError(f"z_loss must be 0: it is no log-likelihood, but is {options['z_loss']}")
    x, w = _exact(X), _exact(W)
    curvature = cross_entropy_hess_diag(_linear(x, w, bias), target, **options)
    parts = _pullback(curvature, x**2, w)
    del parts["X"]  # would need more of the Hessian in the logits than its diagonal
    return _chosen(parts, wrt)


# Segments ----------------------------------------------------------------------------------------

# A batch of items, each with its own segments, is B problems (N, ...); a function of one segment
# sees its rows (n, ...) and their weights (n, ...), both with the rows first.


def _each_segment(
    function: Callable[..., Exact],
    arrays: Sequence[ArrayLike],
    tables: Sequence[ArrayLike],
    segments: ArrayLike,
    num_segments: int | None,
    ignore_index: int | None,
    weights: ArrayLike | None,
    reduces: bool,
    outside: float,
) -> Exact:
    """Apply `function` to the rows of every segment, of `arrays`, and to its row of `tables`.

    What it returns becomes the segment's row (`reduces`) or its rows; `outside` is the result of
    segments without rows, or for rows of no segment. A row of weight 0 is of no segment.
    """
    ids = np.atleast_2d(np.asarray(segments))
    batch, n = ids.shape
    trailing = np.shape(arrays[0])[np.ndim(segments) :]
    kept = np.ones(ids.shape, bool) if ignore_index is None else ids != ignore_index
    k = int(ids[kept].max(initial=-1)) + 1 if num_segments is None else num_segments
    w = np.ones(ids.shape, np.longdouble) if weights is None else _exact(weights).reshape(ids.shape)
    x = [_exact(a).reshape(batch, n, *trailing) for a in arrays]
    t = [_exact(a).reshape(batch, k, *trailing) for a in tables]
    result = np.full((batch, k if reduces else n, *trailing), outside, np.longdouble)
    for b in range(batch):
        for s in range(k):
            rows = kept[b] & (ids[b] == s) & (w[b] != 0)
            if rows.any():
                factors = w[b, rows].reshape(-1, *([1] * len(trailing)))
                given = (*(a[b, rows] for a in x), *(a[b, s] for a in t))
                result[b, s if reduces else rows] = function(*given, factors)
    return result.reshape(*np.shape(segments)[:-1], *result.shape[1:])


def _first_extreme(x: Exact, least: bool) -> NDArray[np.intp]:
    """The row of the extreme of every column, the first at ties, with one axis more; NaN is one."""
    return np.asarray(np.argmin(x, 0, keepdims=True) if least else np.argmax(x, 0, keepdims=True))


def _at_extreme(x: Exact, v: Exact, least: bool) -> Exact:
    return np.asarray(np.take_along_axis(v, _first_extreme(x, least), axis=0)[0])


def _to_extreme(x: Exact, g: Exact, least: bool) -> Exact:
    result = np.zeros_like(x)
    np.put_along_axis(result, _first_extreme(x, least), g[None], axis=0)
    return result


@np.errstate(all="ignore")
def segment_sum(
    data: ArrayLike,
    segments: ArrayLike,
    *,
    num_segments: int | None = None,
    weights: ArrayLike | None = None,
    ignore_index: int | None = None,
    empty_value: float = 0.0,
) -> Exact:
    """Sum of ``weights * data`` over the rows of every segment.

    Parameters
    ----------
    data : array_like, shape (N, ...) or (B, N, ...)
        Rows.
    segments : array_like of int, shape (N,) or (B, N)
        The segment of every row.
    num_segments : int, optional
        `K`; the largest id plus 1 by default.
    weights : array_like, shape of `segments`, optional
        Factors; a row of weight 0 is left out, whatever it holds.
    ignore_index : int, optional
        Rows with this id are left out.
    empty_value : float
        Result of a segment without rows.

    Returns
    -------
    ndarray of longdouble, shape (K, ...) or (B, K, ...)

    Examples
    --------
    >>> segment_sum([1.0, 2.0, 4.0], [2, 0, 2]).astype(float)
    array([2., 0., 5.])
    """
    return _each_segment(
        lambda x, w: (x * w).sum(axis=0),
        [data],
        [],
        segments,
        num_segments,
        ignore_index,
        weights,
        True,
        empty_value,
    )


def segment_sum_vjp(data: ArrayLike, segments: ArrayLike, g: ArrayLike, **options: Any) -> Exact:
    """Pull back through `segment_sum`: every row gets its segment's `g`, times its weight.

    Examples
    --------
    >>> segment_sum_vjp([0.0, 0.0, 0.0], [1, 0, 1], [5.0, 7.0]).astype(float)
    array([7., 5., 7.])
    """
    return _spread(lambda x, g, w: g * w, data, segments, g, **options)


def segment_sum_jvp(data: ArrayLike, segments: ArrayLike, v: ArrayLike, **options: Any) -> Exact:
    """Push forward through `segment_sum`: the sum of `v`, 0 for an empty segment.

    Examples
    --------
    >>> segment_sum_jvp([0.0, 0.0, 0.0], [1, 0, 1], [1.0, 2.0, 4.0]).astype(float)
    array([2., 5.])
    """
    return segment_sum(v, segments, **{**options, "empty_value": 0.0})


def _spread(
    function: Callable[..., Exact],
    data: ArrayLike,
    segments: ArrayLike,
    g: ArrayLike,
    *,
    num_segments: int | None = None,
    weights: ArrayLike | None = None,
    ignore_index: int | None = None,
    empty_value: float = 0.0,
) -> Exact:
    """Rows from their segments: `function` of its rows, its row of g, and the weights."""
    with np.errstate(all="ignore"):
        return _each_segment(
            function, [data], [g], segments, num_segments, ignore_index, weights, False, 0.0
        )


@np.errstate(all="ignore")
def segment_mean(
    data: ArrayLike,
    segments: ArrayLike,
    *,
    num_segments: int | None = None,
    weights: ArrayLike | None = None,
    ignore_index: int | None = None,
    empty_value: float = math.nan,
) -> Exact:
    """Weighted mean of the rows of every segment; arguments as for `segment_sum`.

    Examples
    --------
    >>> segment_mean([1.0, 2.0, 4.0], [2, 0, 2]).astype(float)
    array([2. , nan, 2.5])
    """
    return _each_segment(
        lambda x, w: (x * w).sum(axis=0) / w.sum(axis=0),
        [data],
        [],
        segments,
        num_segments,
        ignore_index,
        weights,
        True,
        empty_value,
    )


def segment_mean_vjp(data: ArrayLike, segments: ArrayLike, g: ArrayLike, **options: Any) -> Exact:
    """Pull back through `segment_mean`; weights are constants.

    Examples
    --------
    >>> segment_mean_vjp([0.0, 0.0, 0.0], [1, 0, 1], [5.0, 7.0]).astype(float)
    array([3.5, 5. , 3.5])
    """
    return _spread(lambda x, g, w: g * w / w.sum(axis=0), data, segments, g, **options)


def segment_mean_jvp(data: ArrayLike, segments: ArrayLike, v: ArrayLike, **options: Any) -> Exact:
    """Push forward through `segment_mean`: the mean of `v`, 0 for an empty segment.

    Examples
    --------
    >>> segment_mean_jvp([0.0, 0.0, 0.0], [1, 0, 1], [1.0, 2.0, 4.0]).astype(float)
    array([2. , 2.5])
    """
    return segment_mean(v, segments, **{**options, "empty_value": 0.0})


def _extremes(
    least: bool,
    data: ArrayLike,
    segments: ArrayLike,
    num_segments: int | None,
    ignore_index: int | None,
    empty_value: float,
    return_argmax: bool,
) -> Any:
    plan = (segments, num_segments, ignore_index, None, True)
    best = _each_segment(lambda x, w: _at_extreme(x, x, least), [data], [], *plan, empty_value)
    if not return_argmax:
        return best
    shape, rows = np.shape(data), np.ndim(segments)
    position = np.arange(shape[rows - 1]).reshape(-1, *([1] * (len(shape) - rows)))
    place = _each_segment(
        lambda x, i, w: _at_extreme(x, i, least),
        [data, np.broadcast_to(position, shape)],
        [],
        *plan,
        -1,
    )
    return best, place.astype(np.int64)


def segment_max(
    data: ArrayLike,
    segments: ArrayLike,
    *,
    num_segments: int | None = None,
    ignore_index: int | None = None,
    empty_value: float = -math.inf,
    return_argmax: bool = False,
) -> Any:
    """Largest row of every segment, column by column, a NaN being larger than anything.

    Other arguments as for `segment_sum`. With `return_argmax` also where it is in the item: the
    first at ties, -1 in a segment without rows.

    Examples
    --------
    >>> best, place = segment_max([1.0, 2.0, 4.0], [2, 0, 2], return_argmax=True)
    >>> best.astype(float), place
    (array([  2., -inf,   4.]), array([ 1, -1,  2]))
    """
    return _extremes(False, data, segments, num_segments, ignore_index, empty_value, return_argmax)


def segment_max_vjp(data: ArrayLike, segments: ArrayLike, g: ArrayLike, **options: Any) -> Exact:
    """Pull back through `segment_max`: the first of the largest rows gets all.

    Examples
    --------
    >>> segment_max_vjp([3.0, 1.0, 3.0], [0, 1, 0], [5.0, 7.0]).astype(float)
    array([5., 7., 0.])
    """
    return _spread(lambda x, g, w: _to_extreme(x, g, False), data, segments, g, **options)


def segment_max_jvp(
    data: ArrayLike,
    segments: ArrayLike,
    v: ArrayLike,
    *,
    num_segments: int | None = None,
    ignore_index: int | None = None,
) -> Exact:
    """Push forward through `segment_max`: the tangent of the first of the largest rows.

    Examples
    --------
    >>> segment_max_jvp([3.0, 1.0, 3.0], [0, 1, 0], [1.0, 2.0, 4.0]).astype(float)
    array([1., 2.])
    """
    return _each_segment(
        lambda x, v, w: _at_extreme(x, v, False),
        [data, v],
        [],
        segments,
        num_segments,
        ignore_index,
        None,
        True,
        0.0,
    )


def segment_min(
    data: ArrayLike,
    segments: ArrayLike,
    *,
    num_segments: int | None = None,
    ignore_index: int | None = None,
    empty_value: float = math.inf,
    return_argmax: bool = False,
) -> Any:
    """Smallest row of every segment, a NaN being smaller than anything; see `segment_max`.

    Examples
    --------
    >>> segment_min([1.0, 2.0, 4.0], [2, 0, 2]).astype(float)
    array([ 2., inf,  1.])
    """
    return _extremes(True, data, segments, num_segments, ignore_index, empty_value, return_argmax)


def segment_min_vjp(data: ArrayLike, segments: ArrayLike, g: ArrayLike, **options: Any) -> Exact:
    """Pull back through `segment_min`: the first of the smallest rows gets all.

    Examples
    --------
    >>> segment_min_vjp([3.0, 1.0, 3.0], [0, 1, 0], [5.0, 7.0]).astype(float)
    array([5., 7., 0.])
    """
    return _spread(lambda x, g, w: _to_extreme(x, g, True), data, segments, g, **options)


def segment_min_jvp(
    data: ArrayLike,
    segments: ArrayLike,
    v: ArrayLike,
    *,
    num_segments: int | None = None,
    ignore_index: int | None = None,
) -> Exact:
    """Push forward through `segment_min`: the tangent of the first of the smallest rows.

    Examples
    --------
    >>> segment_min_jvp([3.0, 1.0, 3.0], [0, 1, 0], [1.0, 2.0, 4.0]).astype(float)
    array([1., 2.])
    """
    return _each_segment(
        lambda x, v, w: _at_extreme(x, v, True),
        [data, v],
        [],
        segments,
        num_segments,
        ignore_index,
        None,
        True,
        0.0,
    )


def segment_logsumexp(
    data: ArrayLike,
    segments: ArrayLike,
    *,
    num_segments: int | None = None,
    ignore_index: int | None = None,
) -> Exact:
    """`logsumexp` over the rows of every segment; -inf for one without rows.

    Examples
    --------
    >>> segment_logsumexp([0.0, 5.0, -40.0], [2, 0, 2]).astype(float)
    array([5.00000000e+00,           -inf, 4.24835426e-18])
    """
    return _each_segment(
        lambda x, w: np.asarray(logsumexp(x, 0)),
        [data],
        [],
        segments,
        num_segments,
        ignore_index,
        None,
        True,
        -math.inf,
    )


def segment_logsumexp_vjp(
    data: ArrayLike, segments: ArrayLike, g: ArrayLike, **options: Any
) -> Exact:
    """Pull back through `segment_logsumexp`.

    Examples
    --------
    >>> segment_logsumexp_vjp([0.0, 0.0, 0.0], [0, 1, 0], [1.0, 3.0]).astype(float)
    array([0.5, 3. , 0.5])
    """
    return _spread(lambda x, g, w: logsumexp_vjp(x, g, 0), data, segments, g, **options)


def segment_logsumexp_jvp(
    data: ArrayLike,
    segments: ArrayLike,
    v: ArrayLike,
    *,
    num_segments: int | None = None,
    ignore_index: int | None = None,
) -> Exact:
    """Push forward through `segment_logsumexp`; 0 for a segment without rows.

    Examples
    --------
    >>> segment_logsumexp_jvp([0.0, 0.0, 0.0], [0, 1, 0], [1.0, 3.0, 2.0]).astype(float)
    array([1.5, 3. ])
    """
    return _each_segment(
        lambda x, v, w: logsumexp_jvp(x, v, 0),
        [data, v],
        [],
        segments,
        num_segments,
        ignore_index,
        None,
        True,
        0.0,
    )


def _within(
    function: Callable[..., Exact],
    arrays: Sequence[ArrayLike],
    segments: ArrayLike,
    outside: float,
    num_segments: int | None = None,
    ignore_index: int | None = None,
) -> Exact:
    """A function of rows to as many rows, within every segment."""
    return _each_segment(
        lambda *a: function(*a[:-1], 0),
        arrays,
        [],
        segments,
        num_segments,
        ignore_index,
        None,
        False,
        outside,
    )


def segment_softmax(data: ArrayLike, segments: ArrayLike, **options: Any) -> Exact:
    """`softmax` over the rows of every segment; 0 for a row of none.

    Examples
    --------
    >>> segment_softmax([0.0, 5.0, math.log(3.0)], [1, 0, 1]).astype(float)
    array([0.25, 1.  , 0.75])
    """
    return _within(softmax, [data], segments, 0.0, **options)


def segment_softmax_vjp(
    data: ArrayLike, segments: ArrayLike, g: ArrayLike, **options: Any
) -> Exact:
    """Pull back through `segment_softmax`; 0 for a row of no segment.

    Examples
    --------
    >>> segment_softmax_vjp([0.0, 0.0, 0.0], [0, 1, 0], [1.0, 1.0, 0.0]).astype(float)
    array([ 0.25,  0.  , -0.25])
    """
    return _within(softmax_vjp, [data, g], segments, 0.0, **options)


def segment_softmax_jvp(
    data: ArrayLike, segments: ArrayLike, v: ArrayLike, **options: Any
) -> Exact:
    """Push forward through `segment_softmax`; 0 for a row of no segment.

    Examples
    --------
    >>> segment_softmax_jvp([0.0, 0.0, 0.0], [0, 1, 0], [1.0, 1.0, 0.0]).astype(float)
    array([ 0.25,  0.  , -0.25])
    """
    return _within(softmax_jvp, [data, v], segments, 0.0, **options)


def segment_log_softmax(data: ArrayLike, segments: ArrayLike, **options: Any) -> Exact:
    """`log_softmax` over the rows of every segment; -inf for a row of none.

    Examples
    --------
    >>> segment_log_softmax([0.0, 5.0, 0.0], [1, 0, 1]).astype(float)
    array([-0.69314718,  0.        , -0.69314718])
    """
    return _within(log_softmax, [data], segments, -math.inf, **options)


def segment_log_softmax_vjp(
    data: ArrayLike, segments: ArrayLike, g: ArrayLike, **options: Any
) -> Exact:
    """Pull back through `segment_log_softmax`; 0 for a row of no segment.

    Examples
    --------
    >>> segment_log_softmax_vjp([0.0, 0.0, 0.0], [0, 1, 0], [1.0, 1.0, 0.0]).astype(float)
    array([ 0.5,  0. , -0.5])
    """
    return _within(log_softmax_vjp, [data, g], segments, 0.0, **options)


def segment_log_softmax_jvp(
    data: ArrayLike, segments: ArrayLike, v: ArrayLike, **options: Any
) -> Exact:
    """Push forward through `segment_log_softmax`; 0 for a row of no segment.

    Examples
    --------
    >>> segment_log_softmax_jvp([0.0, 0.0, 0.0], [0, 1, 0], [1.0, 1.0, 0.0]).astype(float)
    array([ 0.5,  0. , -0.5])
    """
    return _within(log_softmax_jvp, [data, v], segments, 0.0, **options)


# Class centroids ---------------------------------------------------------------------------------


class Centroids(NamedTuple):
    """What `class_centroids` returns.

    Examples
    --------
    >>> Centroids._fields
    ('centroids', 'counts')
    """

    centroids: Exact
    counts: NDArray[np.int64]


def _kept_rows(
    labels: np.ndarray, weights: Exact, num_classes: int, ignore_index: int | None
) -> list[NDArray[np.intp]]:
    """The rows of one item that count, class by class."""
    rows: list[list[int]] = [[] for _ in range(num_classes)]
    for i, y in enumerate(labels.tolist()):
        if y == ignore_index:
            continue
        if not 0 <= y < num_classes:  # NumPy would wrap a negative one
            raise IndexError(
                f"labels must be in [0, {num_classes}) or ignore_index; labels[{i}] is {y}"
            )
        if weights[i] != 0:
            rows[y].append(i)
    return [np.array(r, np.intp) for r in rows]


def _num_classes(labels: np.ndarray, num_classes: int | None, ignore_index: int | None) -> int:
    if num_classes is not None:
        return num_classes
    kept = labels if ignore_index is None else labels[labels != ignore_index]
    return int(kept.max(initial=-1)) + 1


def _items(
    X: ArrayLike,
    labels: ArrayLike,
    num_classes: int | None,
    sample_weight: ArrayLike | None,
    ignore_index: int | None,
) -> list[tuple[Exact, Exact, list[NDArray[np.intp]]]]:
    """(rows, their weights, which rows each class has) of every item of a batch, or of the one."""
    x, y = _exact(X), np.asarray(labels)
    weights = np.ones(y.shape, np.longdouble) if sample_weight is None else _exact(sample_weight)
    count = _num_classes(y, num_classes, ignore_index)
    if y.ndim == 1:
        x, y, weights = x[None], y[None], weights[None]
    return [
        (x[b], weights[b], _kept_rows(y[b], weights[b], count, ignore_index)) for b in range(len(y))
    ]


def _unbatched(a: np.ndarray, labels: ArrayLike) -> np.ndarray:
    return np.asarray(a[0] if np.ndim(labels) == 1 else a)


def _share(weights: Exact, members: NDArray[np.intp]) -> Exact:
    """What each member of a class counts for in its mean."""
    return np.asarray(weights[members] / weights[members].sum())


@np.errstate(all="ignore")
def class_centroids(
    X: ArrayLike,
    labels: ArrayLike,
    *,
    num_classes: int | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    leave_one_out: bool = False,
) -> Centroids:
    """The mean of the rows of each class: ``sum of w x over sum of w``.

    Parameters
    ----------
    X : array_like, shape (N, d) or (B, N, d)
        Rows; B items are independent of each other.
    labels : array_like of int, shape (N,) or (B, N)
        The class of each row.
    num_classes : int, optional
        K, the largest label plus 1 if not given.
    sample_weight : array_like, shape of `labels`, optional
        Weights of the rows; a row of weight 0 belongs to no class.
    ignore_index : int, optional
        So does a row with this label.
    leave_one_out : bool
        For every row the mean of the others of its class instead.

    Returns
    -------
    centroids : shape (K, d) or (B, K, d), or that of `X` if one is left out
        NaN for a class without rows, a row alone in its class, and a row that belongs to none.
    counts : of int64, shape (K,) or (B, K), or that of `labels` if one is left out
        How many rows each mean is taken over.

    Examples
    --------
    >>> class_centroids([[1.0], [3.0], [5.0]], [0, 0, 2]).centroids.astype(float).ravel()
    array([ 2., nan,  5.])
    >>> class_centroids([[1.0], [3.0], [5.0]], [0, 0, 2], leave_one_out=True).counts
    array([1, 1, 0])
    """
    centroids, counts = [], []
    for x, weights, classes in _items(X, labels, num_classes, sample_weight, ignore_index):
        if leave_one_out:
            mean, count = np.full_like(x, np.nan), np.zeros(len(x), np.int64)
            for members in classes:
                for i in members:
                    others = members[members != i]
                    count[i] = len(others)
                    if len(others):
                        mean[i] = _share(weights, others) @ x[others]
        else:
            mean = np.full((len(classes), x.shape[1]), np.nan, np.longdouble)
            count = np.array([len(members) for members in classes], np.int64)
            for k, members in enumerate(classes):
                if len(members):
                    mean[k] = _share(weights, members) @ x[members]
        centroids.append(mean)
        counts.append(count)
    return Centroids(
        _unbatched(np.array(centroids), labels), _unbatched(np.array(counts, np.int64), labels)
    )


@np.errstate(all="ignore")
def class_centroids_vjp(
    X: ArrayLike,
    labels: ArrayLike,
    g: ArrayLike,
    *,
    num_classes: int | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    leave_one_out: bool = False,
) -> Exact:
    """The cotangent `g` of the centroids pulled back to `X`; a row that belongs to no class has 0.

    Parameters as in `class_centroids`; what is NaN there depends on nothing.

    Examples
    --------
    >>> class_centroids_vjp([[1.0], [3.0], [5.0]], [0, 0, 2], [[4.0], [0.0], [6.0]]).astype(float)
    array([[2.],
           [2.],
           [6.]])
    """
    items = _items(X, labels, num_classes, sample_weight, ignore_index)
    pulled = []
    for (x, weights, classes), back in zip(items, _batched(g, labels), strict=True):
        result = np.zeros_like(x)
        for k, members in enumerate(classes):
            if not leave_one_out and len(members):
                result[members] += _share(weights, members)[:, None] * back[k]
            for i in members if leave_one_out else ():
                others = members[members != i]
                if len(others):
                    result[others] += _share(weights, others)[:, None] * back[i]
        pulled.append(result)
    return _unbatched(np.array(pulled), labels)


def class_centroids_jvp(X: ArrayLike, labels: ArrayLike, v: ArrayLike, **options: Any) -> Exact:
    """The tangent `v` of `X` pushed to the centroids, which are linear in `X`.

    Parameters as in `class_centroids`; 0 where there is no centroid.

    Examples
    --------
    >>> class_centroids_jvp([[1.0], [3.0]], [0, 0], [[1.0], [0.0]]).astype(float)
    array([[0.5]])
    """
    pushed, counts = class_centroids(v, labels, **options)
    return np.where(counts[..., None] > 0, pushed, 0)


def _batched(a: ArrayLike, labels: ArrayLike) -> Exact:
    values = _exact(a)
    return values[None] if np.ndim(labels) == 1 else values


@np.errstate(all="ignore")
def class_variances(X: ArrayLike, labels: ArrayLike, **options: Any) -> Exact:
    """The mean of the squared distances of the rows of a class from its centroid, by column.

    Parameters as in `class_centroids`, without `leave_one_out`; NaN for a class without rows.

    Examples
    --------
    >>> class_variances([[1.0], [3.0], [5.0]], [0, 0, 2]).astype(float).ravel()
    array([ 1., nan,  0.])
    """
    names = ("num_classes", "sample_weight", "ignore_index")
    items = _items(X, labels, *(options.get(name) for name in names))
    means = _batched(class_centroids(X, labels, **options).centroids, labels)
    variances = np.full_like(means, np.nan)
    for b, (x, weights, classes) in enumerate(items):
        for k, members in enumerate(classes):
            if len(members):
                variances[b, k] = _share(weights, members) @ (x[members] - means[b, k]) ** 2
    return _unbatched(variances, labels)


# Prototypes --------------------------------------------------------------------------------------


def _prototypes(centroids: ArrayLike) -> tuple[Exact, Mask]:
    """Centroids, and which of them are there: one that is NaN throughout is that of no class."""
    c = _exact(centroids)
    there = np.asarray(~np.isnan(c).all(axis=-1) if c.shape[-1] else np.ones(c.shape[:-1], bool))
    return np.where(there[..., None], c, 0), there[..., None, :]


@np.errstate(all="ignore")
def prototype_logits(X: ArrayLike, centroids: ArrayLike) -> Exact:
    """Minus the squared Euclidean distance of each row to each centroid.

    Parameters
    ----------
    X : array_like, shape (N, d) or (B, N, d)
        Rows.
    centroids : array_like, shape (K, d) or (B, K, d)
        One that is NaN throughout, as that of an absent class, has logit -inf: no probability.

    Returns
    -------
    ndarray of longdouble, shape (N, K) or (B, N, K)

    Examples
    --------
    >>> prototype_logits([[1.0, 2.0]], [[1.0, 0.0], [math.nan, math.nan]]).astype(float)
    array([[ -4., -inf]])
    """
    c, there = _prototypes(centroids)
    x = _exact(X)
    distances = ((x[..., :, None, :] - c[..., None, :, :]) ** 2).sum(axis=-1)
    return np.where(there, -distances, -np.inf)


@np.errstate(all="ignore")
def prototype_logits_vjp(X: ArrayLike, centroids: ArrayLike, g: ArrayLike) -> Exact:
    """The cotangent `g` of `prototype_logits` pulled back to `X`: ``-2 sum_k g_k (x - c_k)``.

    Examples
    --------
    >>> prototype_logits_vjp([[2.0, 2.0]], [[1.0, 0.0]], [[1.0]]).astype(float)
    array([[-2., -4.]])
    """
    c, there = _prototypes(centroids)
    back = np.where(there, _exact(g), 0)
    return np.asarray((-2 * back[..., None] * _differences(X, c)).sum(axis=-2))


@np.errstate(all="ignore")
def prototype_logits_jvp(X: ArrayLike, centroids: ArrayLike, v: ArrayLike) -> Exact:
    """The tangent `v` of `X` pushed to the logits: ``-2 (x - c_k) . v``, 0 for an absent class.

    Examples
    --------
    >>> prototype_logits_jvp([[1.0, 2.0]], [[1.0, 0.0]], [[0.0, 1.0]]).astype(float)
    array([[-4.]])
    """
    c, there = _prototypes(centroids)
    pushed = (-2 * _differences(X, c) * _exact(v)[..., :, None, :]).sum(axis=-1)
    return np.where(there, pushed, 0)


def _differences(X: ArrayLike, c: Exact) -> Exact:
    return np.asarray(_exact(X)[..., :, None, :] - c[..., None, :, :])


# Centroid hinge ----------------------------------------------------------------------------------


def _hinge_class(
    x: Exact, weights: Exact, v: Exact, margin: Any, squared: bool, moving: bool
) -> tuple[np.longdouble, Exact, Exact]:
    """Loss of the rows of one class, its gradient, and its Hessian times `v`.

    ``u`` is the gradient with the centroid held still. The centroid moves by every row's share of
    what the row moves by, so what all rows lose through it, the sum of u, is shared out again.
    """
    share = weights / weights.sum()
    r = x - share @ x
    d = np.sqrt((r**2).sum(axis=1))
    h = np.maximum(d - margin, 0)  # NaN stays
    smooth = squared and margin == 0  # then h**2 is a square of lengths, and has no kink at all
    active = (d > margin) | np.isnan(d) | smooth
    slope = np.where(active, 2 * h if squared else 1, 0)
    per_length = np.where(smooth, 2, np.where(d == 0, 0, slope / d))
    u = (share * per_length)[:, None] * r
    move = v - share @ v if moving else v
    along = (r * move).sum(axis=1)
    bend = np.where(smooth | ~active | (d == 0), 0, (2 * margin if squared else -1) / d**3)
    du = share[:, None] * (per_length[:, None] * move + (bend * along)[:, None] * r)
    if moving:
        u = u - share[:, None] * u.sum(axis=0)
        du = du - share[:, None] * du.sum(axis=0)
    return share @ (h**2 if squared else h), u, du


@np.errstate(all="ignore")
def _centroid_hinge(
    X: ArrayLike,
    labels: ArrayLike,
    v: ArrayLike,
    *,
    margin: float = 1.0,
    squared: bool = True,
    centroid_grad: bool = True,
    class_reduction: Literal["mean", "sum"] = "mean",
    num_classes: int | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    grad_output: ArrayLike | None = None,
) -> tuple[Exact, Exact, Exact]:
    """Value, gradient, and Hessian times v."""
    items = _items(X, labels, num_classes, sample_weight, ignore_index)
    values = np.zeros(len(items), np.longdouble)
    present = np.zeros(len(items), np.longdouble)
    tables = [np.zeros((len(items), *items[0][0].shape), np.longdouble) for _ in range(2)]
    for b, ((x, weights, classes), move) in enumerate(zip(items, _batched(v, labels), strict=True)):
        there = [members for members in classes if len(members)]
        present[b] = bool(there)
        scale = 1 / np.longdouble(len(there)) if class_reduction == "mean" and there else 1
        for m in there:
            value, u, du = _hinge_class(
                x[m], weights[m], move[m], np.longdouble(margin), squared, centroid_grad
            )
            values[b] += scale * value
            for table, part in zip(tables, (u, du), strict=True):
                table[b, m] = scale * part
    counted = np.array([np.isin(np.arange(len(x)), np.concatenate([[], *c])) for x, _, c in items])
    flat = [table.reshape(len(items), -1) for table in tables]
    mask = np.repeat(counted, tables[0].shape[-1], axis=-1)
    batch = () if np.ndim(labels) == 1 else (len(items),)
    results = [
        _reduced(values, present, table, mask, batch, reduction, normalizer, grad_output)
        for table in flat
    ]
    shape = np.shape(X)
    return results[0][0], results[0][1].reshape(shape), results[1][1].reshape(shape)


def centroid_hinge(X: ArrayLike, labels: ArrayLike, **options: Any) -> Exact:
    """How far beyond a margin the rows lie from the centroid of their class.

    ``d_i = |x_i - c_k|``, ``h_i = max(0, d_i - margin)``; a class has the weighted mean of ``h`` or
    ``h**2``, an item of the batch the mean over its classes or their sum.

    Parameters
    ----------
    X : array_like, shape (N, d) or (B, N, d)
        Rows.
    labels : array_like of int, shape (N,) or (B, N)
        The class of each row.
    margin : float, default 1
        Distance that costs nothing.
    squared : bool, default True
        Whether to square ``h``.
    centroid_grad : bool, default True
        Whether derivatives follow the centroid, which moves with its rows; else it is held still.
    class_reduction : {"mean", "sum"}
        Over the classes that have rows.
    num_classes, sample_weight, ignore_index
        As in `class_centroids`.
    reduction, normalizer
        As in `cross_entropy`, over the items of the batch; one without rows counts as ignored.

    Returns
    -------
    ndarray of longdouble
        0-d, or of shape (B,) for "none".

    Examples
    --------
    >>> float(centroid_hinge([[0.0], [4.0], [9.0]], [0, 0, 1], margin=0.5))
    1.125
    """
    return _centroid_hinge(X, labels, X, **options)[0]


def centroid_hinge_value_and_grad(
    X: ArrayLike, labels: ArrayLike, **options: Any
) -> tuple[Exact, Exact]:
    """Value of `centroid_hinge` and its gradient in `X`, times `grad_output` if that is given.

    A row on its centroid, or inside the margin or exactly at it, has slope 0 of its own.

    Examples
    --------
    >>> _, grad = centroid_hinge_value_and_grad([[0.0], [4.0], [9.0]], [0, 0, 1], margin=0.5)
    >>> grad.astype(float)
    array([[-0.75],
           [ 0.75],
           [ 0.  ]])
    """
    return _centroid_hinge(X, labels, X, **options)[:2]


def centroid_hinge_grad(X: ArrayLike, labels: ArrayLike, **options: Any) -> Exact:
    """Gradient of `centroid_hinge` in `X`.

    Examples
    --------
    >>> centroid_hinge_grad([[0.0], [4.0]], [0, 0], squared=False).astype(float)
    array([[-0.5],
           [ 0.5]])
    """
    return _centroid_hinge(X, labels, X, **options)[1]


def centroid_hinge_hvp(X: ArrayLike, labels: ArrayLike, v: ArrayLike, **options: Any) -> Exact:
    """Hessian of `centroid_hinge` in `X`, times `v`.

    With ``centroid_grad=False`` that of the loss as a function of `X` alone, the centroids
    constants.

    Examples
    --------
    >>> centroid_hinge_hvp([[0.0], [4.0]], [0, 0], [[1.0], [0.0]]).astype(float)
    array([[ 0.5],
           [-0.5]])
    """
    return _centroid_hinge(X, labels, v, **options)[2]


# Hinge -------------------------------------------------------------------------------------------


def _signs(target: ArrayLike, shape: tuple[int, ...]) -> Exact:
    """The classes as -1 and 1; False is -1."""
    y = np.asarray(target)
    if not (y.dtype == bool or np.isin(y, (-1, 1)).all()):
        raise ValueError(f"target must hold bools, or -1 and 1; it holds {np.unique(y)}")
    return np.where(y.reshape(shape) > 0, np.longdouble(1), np.longdouble(-1))


def _hinge_grad(y: Exact, h: Exact, squared: bool) -> Exact:
    return np.where(h > 0, -y * (2 * h if squared else 1), h)


def _hinge_hess(y: Exact, h: Exact, squared: bool) -> Exact:
    return np.where(h > 0, np.longdouble(2 if squared else 0), h)


@np.errstate(all="ignore")
def _hinge(
    derivative: Callable[[Exact, Exact, bool], Exact],
    scores: ArrayLike,
    target: ArrayLike,
    *,
    margin: float = 1.0,
    squared: bool = False,
    sample_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    grad_output: ArrayLike | None = None,
) -> tuple[Exact, Exact]:
    """The value, and the derivative for each score given its sign and its hinge."""
    f = _exact(scores)
    y = _signs(target, f.shape)
    s = np.broadcast_to(_exact(1.0 if sample_weight is None else sample_weight), f.shape)
    counted = (s != 0) & _mask(where, f.shape)
    h = np.maximum(0, np.longdouble(margin) - y * f)
    value, table = _reduced(
        np.where(counted, s * h ** (2 if squared else 1), 0).ravel(),
        np.where(counted, s, 0).ravel(),
        (s * derivative(y, h, squared)).reshape(-1, 1),
        counted.reshape(-1, 1),
        np.shape(scores),
        reduction,
        normalizer,
        grad_output,
    )
    return value, table.reshape(np.shape(scores))


def hinge(scores: ArrayLike, target: ArrayLike, **options: Any) -> Exact:
    """Hinge loss of scores f against targets y in {-1, 1}: ``s max(0, margin - y f)``, or squared.

    Parameters
    ----------
    scores : array_like
        Scores, any shape.
    target : array_like, the shape of `scores`
        Bools, or -1 and 1.
    margin : float, default 1
    squared : bool, default False
        Whether ``max(0, margin - y f)`` is squared.
    sample_weight : array_like, optional
        Weights s of the elements. Broadcast to the shape of `scores`.
    where : array_like of bool, optional
        False leaves an element out. Broadcasts to the shape of `scores`.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides the sum of the losses by the sum of s over the elements that are not ignored.
    normalizer : float, optional
        The divisor of "mean", instead of the sum of weights. Other reductions do not use it.

    Returns
    -------
    ndarray of longdouble
        0-d, or one loss per element for "none".

        An element is ignored (loss 0, derivatives exactly 0, not in the divisor, even if it is NaN)
        if its sample weight is 0 or `where` is False there. Otherwise NaN gives NaN. The mean is
        NaN if the divisor is 0.

    Notes
    -----
    C. Cortes and V. Vapnik, "Support-vector networks", Machine Learning 20, 1995,
    doi 10.1007/BF00994018.

    Examples
    --------
    >>> hinge([0.25, 0.25, 3.0], [1, -1, 1], reduction="none").astype(float)
    array([0.75, 1.25, 0.  ])
    """
    return hinge_value_and_grad(scores, target, **options)[0]


def hinge_value_and_grad(
    scores: ArrayLike, target: ArrayLike, **options: Any
) -> tuple[Exact, Exact]:
    """Value of `hinge` and its gradient with respect to `scores`.

    The gradient is ``-s y`` where the hinge ``h = max(0, margin - y f)`` is above 0, or
    ``-2 s y h`` if it is squared, and 0 elsewhere: at the kink too.

    Parameters
    ----------
    grad_output : array_like, optional
        Factor of the gradient (of the Hessian, for the second derivatives): a number, or one per
        element for "none"; 1 if not given. The value is not multiplied.
    scores, target, margin, ...
        As in `hinge`.

    Returns
    -------
    value : ndarray of longdouble
    grad : ndarray of longdouble, the shape of `scores`
        Exactly 0 in ignored elements, and everywhere if the divisor of a mean is 0.

    Examples
    --------
    >>> value, grad = hinge_value_and_grad([0.25, 1.0], [-1, 1], squared=True, reduction="sum")
    >>> float(value), grad.astype(float)
    (1.5625, array([2.5, 0. ]))
    """
    return _hinge(_hinge_grad, scores, target, **options)


def hinge_grad(scores: ArrayLike, target: ArrayLike, **options: Any) -> Exact:
    """Gradient of `hinge` with respect to `scores`.

    Parameters as in `hinge` and `hinge_value_and_grad`.

    Examples
    --------
    >>> hinge_grad([0.25, 1.0], [-1, 1], reduction="sum").astype(float)
    array([1., 0.])
    """
    return hinge_value_and_grad(scores, target, **options)[1]


def hinge_hvp(scores: ArrayLike, target: ArrayLike, v: ArrayLike, **options: Any) -> Exact:
    """Hessian of `hinge` times `v`, which has the shape of `scores`.

    The Hessian is diagonal: `hinge_hess_diag` times `v`, which is not read where that is 0.

    Examples
    --------
    >>> hinge_hvp([0.25, 1.0], [-1, 1], [3.0, 3.0], squared=True, reduction="sum").astype(float)
    array([6., 0.])
    """

    def derivative(y: Exact, h: Exact, squared: bool) -> Exact:
        curvature = _hinge_hess(y, h, squared)
        return np.where(curvature == 0, 0, curvature * _exact(v))

    return _hinge(derivative, scores, target, **options)[1]


def hinge_hess_diag(scores: ArrayLike, target: ArrayLike, **options: Any) -> Exact:
    """Diagonal of the Hessian of `hinge`: 0, or ``2 s`` where a squared hinge is above 0.

    Parameters as in `hinge` and `hinge_value_and_grad`.

    Examples
    --------
    >>> hinge_hess_diag([0.25, 1.0], [-1, 1], squared=True, reduction="sum").astype(float)
    array([2., 0.])
    """
    return _hinge(_hinge_hess, scores, target, **options)[1]


# Multiclass hinge --------------------------------------------------------------------------------


def _rivals(z: Exact, y: int, margin: float, crammer_singer: bool) -> Exact:
    """``max(0, margin + z_j - z_y)`` for the classes that count, 0 at the target and at the others.

    All NaN where the row has no margin: it holds NaN, or the target and its largest rival are the
    same infinity.
    """
    others = np.arange(len(z)) != y
    top = np.where(others, z, -np.inf).max()
    if np.isnan(z).any() or (len(z) > 1 and np.isinf(top) and top == z[y]):
        return np.full_like(z, np.nan)
    gaps = np.where(others & (z > -np.inf), z - z[y] + np.longdouble(margin), 0)
    if crammer_singer:
        first = np.argmax(np.where(others, z, -np.inf))
        gaps = np.where(np.arange(len(z)) == first, gaps, 0)
    return np.maximum(0, gaps)


# The three row functions get the hinges of a row (a table row of `_rivals`) and its target.


def _rivals_grad_row(h: Exact, y: int, squared: bool) -> Exact:
    slopes = 2 * h if squared else np.where(h > 0, np.longdouble(1), h)
    slopes[y] = -slopes.sum()
    return slopes


def _rivals_hvp_row(h: Exact, y: int, squared: bool, v: Exact) -> Exact:
    """Each counted class bends the loss along its own score minus the target's."""
    moved = np.where(h > 0, 2 * (v - v[y]) if squared else 0, h)
    moved[y] = -moved.sum()
    return moved


def _rivals_hess_diag_row(h: Exact, y: int, squared: bool) -> Exact:
    curvature = np.where(h > 0, np.longdouble(2 if squared else 0), h)
    curvature[y] = curvature.sum()
    return curvature


@np.errstate(all="ignore")
def _multiclass_hinge(
    derivative: Callable[..., Exact],
    scores: ArrayLike,
    target: ArrayLike,
    *vectors: ArrayLike,
    axis: int = -1,
    variant: str = "crammer_singer",
    divide: str = "one",
    margin: float = 1.0,
    squared: bool = False,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = -100,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    normalizer: float | None = None,
    grad_output: ArrayLike | None = None,
) -> tuple[Exact, Exact]:
    """The value, and what the row function `derivative` gives, in the shape of `scores`."""
    z = _exact(scores)
    batch = _batch_shape(z.shape, axis)
    rows = _rows(z, axis)
    tables = [_rows(_exact(v), axis) for v in vectors]
    keep = _rows(_mask(where, z.shape), axis)
    n, num_classes = rows.shape
    w = np.ones(num_classes, np.longdouble) if weight is None else _exact(weight)
    s = np.ones(n, np.longdouble) if sample_weight is None else _exact(sample_weight).reshape(n)
    one_hot = _one_hot(np.asarray(target), batch, num_classes, ignore_index)
    row_weight = s * (one_hot @ w)
    ignored = (row_weight == 0) | ~keep.any(axis=1)

    losses = np.zeros(n, np.longdouble)
    derivatives = np.zeros((n, num_classes), np.longdouble)
    for i in np.flatnonzero(~ignored).tolist():
        k = keep[i]
        if (one_hot[i, ~k] > 0).any():
            raise ValueError(f"where removes the target of row [{_row_name(i, batch)}]")
        y = int(one_hot[i, k].argmax())
        h = _rivals(rows[i, k], y, margin, variant == "crammer_singer")
        factor = row_weight[i] / (k.sum() if divide == "k" else 1)
        losses[i] = factor * (h ** (2 if squared else 1)).sum()
        parts = (table[i, k] for table in tables)
        derivatives[i, k] = factor * derivative(h, y, squared, *parts)

    value, table = _reduced(
        losses,
        np.where(ignored, 0, row_weight),
        derivatives,
        keep & ~ignored[:, None],
        batch,
        reduction,
        normalizer,
        grad_output,
    )
    return value, _unrows(table, z.shape, axis).reshape(np.shape(scores))


def multiclass_hinge(scores: ArrayLike, target: ArrayLike, **options: Any) -> Exact:
    """Hinge loss of the scores of classes against class indices.

    With ``h_j = max(0, margin + z_j - z_y)`` for the classes j other than the target y, a row's
    loss is ``s w_y max_j h_j`` (Crammer and Singer) or ``s w_y sum_j h_j`` (Weston and Watkins);
    `squared` squares each h.

    Parameters
    ----------
    scores : array_like
        Scores; the classes lie along `axis`.
    target : array_like of int
        Class indices, in the shape of `scores` without `axis`.
    axis : int, default -1
        The class axis.
    variant : {"crammer_singer", "weston_watkins"}
    divide : {"one", "k"}, default "one"
        "k" divides a row's loss by the number of classes kept.
    margin : float, default 1
    squared : bool, default False
    weight : array_like, shape (C,), optional
        Weights w of the classes; the target's counts.
    sample_weight : array_like, optional
        Weights s of the rows, in the shape of `scores` without `axis`.
    ignore_index : int or None, default -100
        Rows with this class index are ignored.
    where : array_like of bool, optional
        False removes a class. Broadcasts to the shape of `scores`.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides the sum of the losses by the sum of ``s w_y`` over the rows not ignored.
    normalizer : float, optional
        The divisor of "mean", instead of the sum of weights. Other reductions do not use it.

    Returns
    -------
    ndarray of longdouble
        0-d, or one loss per row for "none".

        A row is ignored (loss 0, derivatives exactly 0, not in the divisor, even if it holds NaN)
        if its class index is `ignore_index`, a weight of it is 0, or `where` removes every class.
        Otherwise a row has loss NaN if it holds NaN, or if its target and the largest other score
        are the same infinity. Other classes at -inf count for nothing. A row of one class has loss
        0. The mean is NaN if the divisor is 0.

    Notes
    -----
    K. Crammer and Y. Singer, "On the algorithmic implementation of multiclass kernel-based vector
    machines", JMLR 2, 2001; J. Weston and C. Watkins, "Support vector machines for multi-class
    pattern recognition", ESANN 1999.

    Examples
    --------
    >>> z = [[0.5, 1.0, 0.25, -2.0]]
    >>> float(multiclass_hinge(z, [0]))
    1.5
    >>> float(multiclass_hinge(z, [0], variant="weston_watkins", divide="k"))
    0.5625
    """
    return multiclass_hinge_value_and_grad(scores, target, **options)[0]


def multiclass_hinge_value_and_grad(
    scores: ArrayLike, target: ArrayLike, **options: Any
) -> tuple[Exact, Exact]:
    """Value of `multiclass_hinge` and its gradient with respect to `scores`.

    A class that counts and whose ``h_j`` is above 0 has the gradient ``s w_y`` (squared:
    ``2 s w_y h_j``), the target minus their sum; every other class has 0. In Crammer and Singer's
    variant the first of the largest classes counts, in Weston and Watkins' all but the target.

    Parameters
    ----------
    grad_output : array_like, optional
        Factor of the gradient (of the Hessian, for the second derivatives): a number, or one per
        row for "none"; 1 if not given. The value is not multiplied.
    scores, target, axis, ...
        As in `multiclass_hinge`.

    Returns
    -------
    value : ndarray of longdouble
    grad : ndarray of longdouble, the shape of `scores`
        Exactly 0 in ignored rows, in removed classes, and everywhere if the divisor of a mean is 0.

    Examples
    --------
    >>> value, grad = multiclass_hinge_value_and_grad([[0.5, 1.0, 0.25, -2.0]], [0])
    >>> float(value), grad.astype(float)
    (1.5, array([[-1.,  1.,  0.,  0.]]))
    """
    return _multiclass_hinge(_rivals_grad_row, scores, target, **options)


def multiclass_hinge_grad(scores: ArrayLike, target: ArrayLike, **options: Any) -> Exact:
    """Gradient of `multiclass_hinge` with respect to `scores`.

    Parameters as in `multiclass_hinge` and `multiclass_hinge_value_and_grad`.

    Examples
    --------
    >>> z = [[0.5, 1.0, 0.25, -2.0]]
    >>> multiclass_hinge_grad(z, [0], variant="weston_watkins").astype(float)
    array([[-2.,  1.,  1.,  0.]])
    """
    return multiclass_hinge_value_and_grad(scores, target, **options)[1]


def multiclass_hinge_hvp(
    scores: ArrayLike, target: ArrayLike, v: ArrayLike, **options: Any
) -> Exact:
    """Hessian of `multiclass_hinge` times `v`, which has the shape of `scores`.

    0, or for the squared loss ``2 s w_y (v_j - v_y)`` at the classes that count, and minus their
    sum at the target. The `v` of all other classes is not read.

    Examples
    --------
    >>> z, v = [[0.5, 1.0, 0.25, -2.0]], [[1.0, 3.0, 0.0, 9.0]]
    >>> multiclass_hinge_hvp(z, [0], v, squared=True).astype(float)
    array([[-4.,  4.,  0.,  0.]])
    """
    return _multiclass_hinge(_rivals_hvp_row, scores, target, v, **options)[1]


def multiclass_hinge_hess_diag(scores: ArrayLike, target: ArrayLike, **options: Any) -> Exact:
    """Diagonal of the Hessian of `multiclass_hinge`.

    0, or for the squared loss ``2 s w_y`` at the classes that count, and their sum at the target.

    Examples
    --------
    >>> z = [[0.5, 1.0, 0.25, -2.0]]
    >>> multiclass_hinge_hess_diag(z, [0], variant="weston_watkins", squared=True).astype(float)
    array([[4., 2., 2., 0.]])
    """
    return _multiclass_hinge(_rivals_hess_diag_row, scores, target, **options)[1]
