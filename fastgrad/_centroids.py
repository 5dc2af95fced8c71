"""Class centroids, logits from distances to them, and the centroid hinge.

Shapes: N rows, d columns, K classes; B items of a batch, each with centroids of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastgrad import _arrays
from fastgrad._arrays import BoolArray, FloatArray
from fastgrad._kernels import centroids as _kernels
from fastgrad._maps import Loss, Map
from fastgrad._segments import Segments, evened, segment_mean, segment_sum

ROWS = 1024
"""More rows in a tile make no product faster and only leave the caches."""


class Centroids(NamedTuple):
    """What `class_centroids` returns.

    Attributes
    ----------
    centroids : ndarray, shape (K, d) or (B, K, d), or that of `X` if one row is left out
        Means, in the dtype of `X`; NaN where there is nothing to take the mean of.
    counts : ndarray of int64, shape (K,) or (B, K), or that of `labels` if one row is left out
        How many rows each is the mean of.

    Examples
    --------
    >>> import fastgrad as fg
    >>> fg.class_centroids([[1.0], [3.0]], [0, 0]).counts
    array([2])
    """

    centroids: FloatArray
    counts: NDArray[np.int64]


class _Rows:
    """Rows, their classes and weights, those of each class over a power of two if there are
    `exponents`: the checked arguments that these functions share.
    """

    def __init__(
        self,
        X: ArrayLike,
        labels: ArrayLike | Segments,
        num_classes: int | ArrayLike | None,
        sample_weight: ArrayLike | None,
        ignore_index: int | None,
    ) -> None:
        self.X = _arrays.as_rows(X, "X", _arrays.BY_IDS)
        if isinstance(labels, Segments):
            _arrays.check_no_options_of_ids(num_classes=num_classes, ignore_index=ignore_index)
            self.plan = labels
        else:
            ids = _arrays.as_ids(labels, "labels")
            _arrays.check_labels(ids.shape, self.X.shape)
            self.plan = Segments._of(ids, num_classes, ignore_index, "labels")
        _arrays.check_labels(self.plan.shape, self.X.shape)
        even, self.exponents = evened(sample_weight, self.plan, "sample_weight")
        weight = _arrays.as_row_weight(even, self.X.shape[:-1], self.X.dtype)
        self.weight = None if weight is None else np.ascontiguousarray(weight)
        self.batch = self.X.shape[:-2]
        self.items = math.prod(self.batch)

    def counts(self) -> NDArray[np.int64]:
        """Rows of weight > 0 of every class, (B K,)."""
        if self.weight is None:
            return np.diff(self.plan.offsets)
        counts: NDArray[np.int64] = _kernels.kept(self.weight, self.plan.order, self.plan.offsets)
        return counts

    def left_out(self, counts: NDArray[np.int64]) -> BoolArray | None:
        """Which rows belong to no class, in the shape of labels; None if all belong to one."""
        if counts.sum() == math.prod(self.plan.shape):
            return None
        out = np.ones(math.prod(self.plan.shape), bool)
        out[self.plan.order] = False
        if self.weight is not None:
            out |= self.weight.ravel() == 0
        return out.reshape(self.plan.shape)


def _items(a: FloatArray) -> FloatArray:
    """(B, N, d) with contiguous rows, as the kernels read it."""
    a = a.reshape((1, *a.shape)) if a.ndim == 2 else a
    if a.shape[2] > 1 and a.strides[2] != a.itemsize:
        return np.ascontiguousarray(a)
    return a


# ---- centroids ---------------------------------------------------------------------------------


class ClassCentroids(Map):
    r"""The mean of the rows of each class.

    .. math:: c_k = \frac{\sum_{i : y_i = k} w_i x_i}{\sum_{i : y_i = k} w_i}

    Parameters
    ----------
    X : array_like of floats, shape (N, d) or (B, N, d)
        Rows.  The B items of a batch are independent.  float16 and bfloat16 are read natively.
        Integers and bools become float64.
    labels : array_like of int, shape (N,) or (B, N); or Segments
        The class of every row, in any order, of any integer dtype; or a plan made of them once.
    num_classes : int, or array_like of int of shape (B,), optional
        `K`; the default is the largest label plus 1.  Items may have their own: `K` is then the
        largest, and the classes beyond are absent.
    sample_weight : array_like, shape (N,) or (B, N), optional
        Weights of the rows, finite and >= 0.  A row of weight 0 belongs to no class.
    ignore_index : int, optional
        Rows with this label belong to no class.  Nothing is left out by default.
    leave_one_out : bool, default False
        For every row the mean of the *other* rows of its class instead.

    Returns
    -------
    Centroids
        Named tuple ``(centroids, counts)``: (K, d) or (B, K, d) in the dtype of `X`, and int64 (K,)
        or (B, K); with `leave_one_out` one mean and count for every row.

    Raises
    ------
    IndexError
        For a label outside [0, K) that is not `ignore_index`, naming the first one.
    TypeError, ValueError
        For labels that are no integers, and shapes that do not fit.

    See Also
    --------
    prototype_logits, centroid_hinge, segment_mean

    Notes
    -----
    An absent class has centroid NaN and count 0, and so has a row that is left out and alone in its
    class, or belongs to none.  What rows that belong to no class hold is not read.  NaN stays in
    its class and column.

    Means are those of `segment_mean`, and as accurate.  A mean that leaves a row out is taken from
    the sum of all in two words (106 bits), from which a row can be taken off again with an error of
    some 1e-31 of the largest.  Bits do not depend on threads.

    Derivatives of the centroids: ``vjp`` and ``jvp``.  The map is linear in `X`.

    References
    ----------
    .. [1] J. Snell, K. Swersky and R. Zemel, "Prototypical Networks for Few-shot Learning", 2017,
       arXiv:1703.05175.

    Examples
    --------
    >>> import fastgrad as fg
    >>> X = [[1.0, 0.0], [3.0, 2.0], [5.0, 5.0]]
    >>> fg.class_centroids(X, [0, 0, 2])
    Centroids(centroids=array([[ 2.,  1.],
           [nan, nan],
           [ 5.,  5.]]), counts=array([2, 0, 1]))
    >>> fg.class_centroids(X, [0, 0, 2], leave_one_out=True).centroids
    array([[ 3.,  2.],
           [ 1.,  0.],
           [nan, nan]])
    """

    _builtin_name = "class_centroids"

    def __init__(self) -> None:
        self.__name__ = self._builtin_name

    def __call__(
        self,
        X: ArrayLike,
        labels: ArrayLike | Segments,
        *,
        num_classes: int | ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: int | None = None,
        leave_one_out: bool = False,
    ) -> Centroids:
        rows = _Rows(X, labels, num_classes, sample_weight, ignore_index)
        return _leave_one_out(rows) if leave_one_out else _means(rows)

    def vjp(
        self,
        X: ArrayLike,
        labels: ArrayLike | Segments,
        g: ArrayLike,
        *,
        num_classes: int | ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: int | None = None,
        leave_one_out: bool = False,
    ) -> FloatArray:
        r"""A cotangent of the centroids, pulled back to `X`.

        .. math:: \frac{w_i}{\sum_{j : y_j = y_i} w_j} g_{y_i}

        Parameters
        ----------
        X, labels, num_classes, ...
            As in the call.
        g : array_like
            Of the shape of the centroids.  That of an absent centroid is not read.

        Returns
        -------
        ndarray
            Shape and dtype of `X`; 0 for rows that belong to no class.

        Examples
        --------
        >>> import fastgrad as fg
        >>> fg.class_centroids.vjp([[1.0], [3.0]], [0, 0], [[4.0]])
        array([[2.],
               [2.]])
        """
        rows = _Rows(X, labels, num_classes, sample_weight, ignore_index)
        classes = (*rows.batch, rows.plan.num_segments, rows.X.shape[-1])
        shape = rows.X.shape if leave_one_out else classes
        back = _arrays.as_cotangent(g, shape, rows.X.dtype, "g")
        if leave_one_out:
            return _pull_others(rows, back)
        return segment_mean.vjp(rows.X, rows.plan, back, weights=rows.weight)

    def jvp(
        self,
        X: ArrayLike,
        labels: ArrayLike | Segments,
        v: ArrayLike,
        *,
        num_classes: int | ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: int | None = None,
        leave_one_out: bool = False,
    ) -> FloatArray:
        """A tangent of `X`, pushed to the centroids: the means of its rows.

        Parameters
        ----------
        X, labels, num_classes, ...
            As in the call.
        v : array_like
            Of the shape of `X`.

        Returns
        -------
        ndarray
            Shape and dtype of the centroids; 0 where these are absent.

        Examples
        --------
        >>> import fastgrad as fg
        >>> fg.class_centroids.jvp([[1.0], [3.0]], [0, 0], [[1.0], [0.0]])
        array([[0.5]])
        """
        rows = _Rows(X, labels, num_classes, sample_weight, ignore_index)
        dtype = rows.X.dtype
        move = _arrays.as_cotangent(v, rows.X.shape, dtype, "v")
        if not leave_one_out:
            return segment_mean.jvp(rows.X, rows.plan, move, weights=rows.weight)
        rows.X = move
        pushed, others = _leave_one_out(rows)
        pushed[others == 0] = 0
        return _arrays.cast(pushed, dtype)


def _means(rows: _Rows) -> Centroids:
    means = segment_mean(rows.X, rows.plan, weights=rows.weight)
    if rows.weight is None:
        return Centroids(means, rows.plan.counts.copy())
    there = (rows.weight != 0).astype(np.float64)
    return Centroids(means, segment_sum(there, rows.plan).astype(np.int64))


def _leave_one_out(rows: _Rows) -> Centroids:
    plan, counts = rows.plan, rows.counts()
    means = np.full(rows.X.shape, np.nan, rows.X.dtype)
    _kernels.leave_one_out(
        _items(rows.X),
        _items(means),
        rows.weight,
        plan.order,
        plan.offsets,
        False,
    )
    others = np.zeros(math.prod(plan.shape), np.int64)
    others[plan.order] = np.repeat(counts - 1, np.diff(plan.offsets))
    if rows.weight is not None:
        others[rows.weight.ravel() == 0] = 0
    return Centroids(means, others.reshape(plan.shape))


def _pull_others(rows: _Rows, g: FloatArray) -> FloatArray:
    pulled = np.zeros(rows.X.shape, rows.X.dtype)
    if g.dtype != pulled.dtype:  # float32 for rows of half precision
        g = _arrays.cast(g, pulled.dtype)
    _kernels.leave_one_out(
        _items(g),
        _items(pulled),
        rows.weight,
        rows.plan.order,
        rows.plan.offsets,
        True,
    )
    return pulled


class_centroids = ClassCentroids()


# ---- prototypes --------------------------------------------------------------------------------


class PrototypeLogits(Map):
    r"""Minus the squared Euclidean distance of every row to every centroid.

    .. math:: z_{ik} = -\lVert x_i - c_k \rVert^2

    Parameters
    ----------
    X : array_like of floats, shape (N, d) or (B, N, d)
        Rows; float16 and bfloat16 are computed in float32.
    centroids : array_like, shape (K, d) or (B, K, d)
        As from `class_centroids`, cast to the dtype of `X` (float32 for half precision).
    out : ndarray, optional
        Where to put the logits: shape (N, K) or (B, N, K), dtype of `X`.

    Returns
    -------
    ndarray
        Logits for `softmax` or `cross_entropy`: shape (N, K) or (B, N, K), dtype of `X`.

    Raises
    ------
    TypeError, ValueError
        For shapes that do not fit, and an unfit `out`.

    See Also
    --------
    class_centroids, cross_entropy

    Notes
    -----
    A centroid that is NaN in every column, as that of an absent class, has logit -inf: probability
    0, and derivative 0.  One with some NaN gives NaN, and so does a row with NaN.

    The distances are :math:`\lVert x' \rVert^2 + \lVert c' \rVert^2 - 2 x' \cdot c'` by one matrix
    product, `x'` and `c'` counted from the mean of the centroids.  Where that is less than a
    quarter of its first two terms too many digits have cancelled, and the distance is taken
    directly from the differences.  So the relative error of a logit is at most (2 d + 16) eps, and
    a few eps as a rule.  Derivatives have no such way out: their error is d eps relative to the
    sizes of `x'` and `c'`, which one centroid far from the others makes large.

    Products are NumPy's: equal bits need equal shapes and BLAS threads.  Memory beyond the result
    is that of 1,024 rows, and the centroids.

    Derivatives in `X`, the centroids held still: ``vjp`` and ``jvp``.

    References
    ----------
    .. [1] J. Snell, K. Swersky and R. Zemel, "Prototypical Networks for Few-shot Learning", 2017,
       arXiv:1703.05175.

    Examples
    --------
    >>> import fastgrad as fg
    >>> X = [[1.0, 0.0], [3.0, 2.0], [5.0, 5.0]]
    >>> fg.prototype_logits(X, fg.class_centroids(X, [0, 0, 2]).centroids)
    array([[ -2., -inf, -41.],
           [ -2., -inf, -13.],
           [-25., -inf,  -0.]])
    """

    _builtin_name = "prototype_logits"

    def __init__(self) -> None:
        self.__name__ = self._builtin_name

    def __call__(
        self, X: ArrayLike, centroids: ArrayLike, *, out: FloatArray | None = None
    ) -> FloatArray:
        x = _arrays.as_rows(X, "X")
        c = _arrays.as_centroids(centroids, x)
        shape = (*x.shape[:-1], c.shape[-2])
        logits = (
            np.empty(shape, x.dtype)
            if out is None
            else _arrays.as_out(out, shape, x.dtype, **_others(x, c))
        )
        for tile in _tiles(x, c):
            part = logits[tile.at]
            fits = part.flags.c_contiguous and part.dtype == tile.X.dtype
            products = part if fits else np.empty(part.shape, tile.X.dtype)
            with np.errstate(all="ignore"):
                np.matmul(tile.shifted, tile.table.shifted.T, out=products)
            _kernels.prototype_logits(
                tile.X,
                tile.table.c,
                _kernels.row_squares(tile.shifted),
                tile.table.squares,
                tile.table.absent,
                products,
            )
            if not fits:
                part[...] = _arrays.cast(products, part.dtype)
        return _arrays.returned(logits, out)

    def vjp(
        self, X: ArrayLike, centroids: ArrayLike, g: ArrayLike, *, out: FloatArray | None = None
    ) -> FloatArray:
        r"""A cotangent of the logits, pulled back to `X`.

        .. math:: -2 \sum_k g_{ik} (x_i - c_k)

        Parameters
        ----------
        X, centroids
            As in the call.
        g : array_like, shape (N, K) or (B, N, K)
            That of an absent class is not read.
        out : ndarray, optional
            Where to put it: shape and dtype of `X`; it may be `X` itself.

        Returns
        -------
        ndarray
            Shape and dtype of `X`.

        Examples
        --------
        >>> import fastgrad as fg
        >>> fg.prototype_logits.vjp([[1.0, 2.0]], [[0.0, 0.0]], [[1.0]])
        array([[-2., -4.]])
        """
        x = _arrays.as_rows(X, "X")
        c = _arrays.as_centroids(centroids, x)
        back = _arrays.as_cotangent(g, (*x.shape[:-1], c.shape[-2]), x.dtype, "g")
        pulled = (
            np.empty(x.shape, x.dtype)
            if out is None
            else _arrays.as_out(out, x.shape, x.dtype, X=x, centroids=c, g=back)
        )
        for tile in _tiles(x, c):
            G = back[tile.at].astype(tile.X.dtype, copy=False)
            if tile.table.absent.any():
                G = np.where(tile.table.absent, G.dtype.type(0), G)
            with np.errstate(all="ignore"):
                part = G @ tile.table.shifted
                part -= (G @ np.ones((G.shape[1], 1), G.dtype)) * tile.shifted
                part *= 2
            pulled[tile.at] = _arrays.cast(part, x.dtype)
        return _arrays.returned(pulled, out)

    def jvp(
        self, X: ArrayLike, centroids: ArrayLike, v: ArrayLike, *, out: FloatArray | None = None
    ) -> FloatArray:
        r"""A tangent of `X`, pushed to the logits.

        .. math:: -2 (x_i - c_k) \cdot v_i

        Parameters
        ----------
        X, centroids
            As in the call.
        v : array_like
            Of the shape of `X`.
        out : ndarray, optional
            Where to put it: shape and dtype of the logits.

        Returns
        -------
        ndarray
            Shape and dtype of the logits; 0 for an absent class.

        Examples
        --------
        >>> import fastgrad as fg
        >>> fg.prototype_logits.jvp([[1.0, 2.0]], [[0.0, 0.0]], [[1.0, 0.0]])
        array([[-2.]])
        """
        x = _arrays.as_rows(X, "X")
        c = _arrays.as_centroids(centroids, x)
        move = _arrays.as_cotangent(v, x.shape, x.dtype, "v")
        shape = (*x.shape[:-1], c.shape[-2])
        pushed = (
            np.empty(shape, x.dtype)
            if out is None
            else _arrays.as_out(out, shape, x.dtype, **_others(x, c), v=move)
        )
        for tile in _tiles(x, c):
            V = move[tile.at].astype(tile.X.dtype, copy=False)
            with np.errstate(all="ignore"):
                part = V @ tile.table.shifted.T
                part -= np.einsum("ij,ij->i", V, tile.shifted)[:, None]
                part *= 2
            part[:, tile.table.absent] = 0
            pushed[tile.at] = _arrays.cast(part, x.dtype)
        return _arrays.returned(pushed, out)


def _others(x: FloatArray, c: FloatArray) -> dict[str, Any]:
    """Inputs of a result of another shape, which therefore may be none of them itself."""
    return {"": None, "X": x, "centroids": c}


class _Table(NamedTuple):
    """The centroids of an item, and what is the same for all its rows."""

    c: FloatArray
    shift: NDArray[np.float64]
    shifted: FloatArray
    squares: FloatArray
    absent: BoolArray


class _Tile(NamedTuple):
    """Some rows of an item, and the same counted from the shift of its centroids."""

    at: Any
    X: FloatArray
    shifted: FloatArray
    table: _Table


@np.errstate(all="ignore")
def _table(c: FloatArray) -> _Table:
    c = np.ascontiguousarray(c)
    absent = np.asarray(np.isnan(c).all(axis=1)) & (c.shape[1] > 0)
    known = c[np.isfinite(c).all(axis=1)]
    shift = known.mean(axis=0, dtype=np.float64) if len(known) else np.zeros(c.shape[1])
    shifted = np.where(absent[:, None], 0, c - shift).astype(c.dtype)
    squares = _kernels.row_squares(shifted)
    squares[absent] = np.inf
    return _Table(c, shift, shifted, squares, absent)


def _tiles(x: FloatArray, c: FloatArray) -> Iterator[_Tile]:
    for b in np.ndindex(x.shape[:-2]):
        table = _table(c[b])
        for i in range(0, x.shape[-2], ROWS):
            at = (*b, slice(i, i + ROWS))
            X = np.ascontiguousarray(x[at].astype(c.dtype, copy=False))
            with np.errstate(all="ignore"):
                shifted = np.subtract(X, table.shift, dtype=np.float64).astype(c.dtype)
            yield _Tile(at, X, shifted, table)


prototype_logits = PrototypeLogits()


# ---- the centroid hinge ------------------------------------------------------------------------


class _Options(NamedTuple):
    """What a call of `centroid_hinge` and of each of its derivatives was given."""

    margin: float
    squared: bool
    centroid_grad: bool
    class_reduction: str
    num_classes: int | ArrayLike | None
    sample_weight: ArrayLike | None
    ignore_index: int | None
    reduction: str | None
    normalizer: float | None


class CentroidHinge(Loss):
    r"""How far rows lie beyond a margin from the centroid of their own class.

    .. math::
        \ell_k = \frac{\sum_i w_i h_i^2}{\sum_i w_i}, \quad
        h_i = \max(0, \lVert x_i - c_{y_i} \rVert - m)

    over the rows `i` of class `k`, :math:`c_k` their (weighted) mean; an item has the mean of
    :math:`\ell_k` over its classes that have rows.

    Parameters
    ----------
    X : array_like of floats, shape (N, d) or (B, N, d)
        Rows, any strides; B items of a batch are independent, each with classes of its own.
        float16 and bfloat16 are read and written natively.  Integers and bools become float64.
    labels : array_like of int, shape (N,) or (B, N); or Segments
        The class of every row, in any order, of any integer dtype; or a plan made of them once.
    margin : float >= 0, default 1.0
        `m`, the distance that costs nothing.
    squared : bool, default True
        Whether :math:`h_i` is squared.
    centroid_grad : bool, default True
        Whether derivatives follow the centroid, which moves with its rows; False holds it still.
    class_reduction : {"mean", "sum"}, default "mean"
        Over the classes of an item.
    num_classes, sample_weight, ignore_index
        As in `class_centroids`.
    reduction : {"mean", "sum", "none"}, default "mean"
        Over the items of a batch; one without rows counts as ignored.  "none" (or None) gives one
        value per item.
    normalizer : float > 0, optional
        What "mean" divides by instead of the number of items that have rows.

    Returns
    -------
    float or ndarray
        A Python float, accumulated in float64; for "none" an array of shape (B,), or a scalar
        where `X` is (N, d), of the dtype of `X`.

    Raises
    ------
    IndexError
        For a label outside [0, K) that is not `ignore_index`, naming the first one.
    TypeError, ValueError
        For labels that are no integers, shapes that do not fit, options out of range, and an unfit
        `out`.

    See Also
    --------
    class_centroids, prototype_logits, Segments

    Notes
    -----
    With :math:`u_i` the gradient with the centroid held still, the whole gradient is
    :math:`u_i - (w_i / \sum_j w_j) \sum_j u_j` over the class.  The second part vanishes for
    squared distances without a margin, and is then not computed; elsewhere to hold the centroid
    still is to minimise something else.

    A row on its centroid, as one that is alone in its class, inside the margin or exactly on it,
    has slope 0 (for ``squared`` and margin 0 nothing has a kink, and Hessians say so).  NaN makes
    its class NaN, and the value of its item; other classes keep their gradients.  Rows that belong
    to no class have derivatives of exactly 0, whatever they hold.  An item without rows has value
    0; if there is no other, "mean" is NaN.  Nothing warns.

    Centroids, distances and the sums over a class are computed in float64 for float32 and half
    precision, and for float64 with centroids and sums in two words: rows near 1000 keep the digits
    of their distances.  Each class is one pass over its rows for the centroid, one for distances
    and slopes, one for the gradient, out of cache only the first time.  Memory beyond `X` and the
    result is O(N + K), and a copy of `X` if its last axis is not contiguous.  A class has one
    thread: bits do not depend on their number.

    Derivatives: ``grad``, ``value_and_grad`` and ``hvp``, with the same arguments.

    References
    ----------
    .. [1] Y. Wen et al., "A Discriminative Feature Learning Approach for Deep Face Recognition"
       (center loss), ECCV 2016, doi:10.1007/978-3-319-46478-7_31.

    Examples
    --------
    >>> import fastgrad as fg
    >>> X = [[0.0], [4.0], [9.0]]
    >>> fg.centroid_hinge(X, [0, 0, 1], margin=0.5)
    1.125
    >>> fg.centroid_hinge.grad(X, [0, 0, 1], margin=0.5)
    array([[-0.75],
           [ 0.75],
           [ 0.  ]])
    """

    _builtin_name = "centroid_hinge"
    _derivatives = ("grad", "value_and_grad", "hvp")  # type: ignore[assignment]  # one less

    def __init__(self) -> None:
        self.__name__ = self._builtin_name

    def __getattr__(self, name: str) -> NoReturn:
        if name == "hess_diag":
            raise AttributeError(
                "centroid_hinge has no hess_diag: every row of a class bends with every other "
                "through their centroid. hvp gives products with the whole Hessian."
            )
        super().__getattr__(name)

    def __call__(
        self,
        X: ArrayLike,
        labels: ArrayLike | Segments,
        *,
        margin: float = 1.0,
        squared: bool = True,
        centroid_grad: bool = True,
        class_reduction: str = "mean",
        num_classes: int | ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: int | None = None,
        reduction: str | None = "mean",
        normalizer: float | None = None,
    ) -> Any:
        options = _Options(
            margin,
            squared,
            centroid_grad,
            class_reduction,
            num_classes,
            sample_weight,
            ignore_index,
            reduction,
            normalizer,
        )
        return _hinge("value", X, labels, None, options, None, None)[0]

    def grad(
        self,
        X: ArrayLike,
        labels: ArrayLike | Segments,
        *,
        margin: float = 1.0,
        squared: bool = True,
        centroid_grad: bool = True,
        class_reduction: str = "mean",
        num_classes: int | ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: int | None = None,
        reduction: str | None = "mean",
        normalizer: float | None = None,
        grad_output: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray:
        r"""Gradient with respect to `X`.

        .. math:: u_i - \frac{w_i}{\sum_j w_j} \sum_j u_j, \quad
                  u_i = \frac{w_i}{\sum_j w_j} 2 h_i \frac{x_i - c}{\lVert x_i - c \rVert}

        Parameters
        ----------
        X, labels, margin, ...
            As in the call.  For "none", each item's gradient is that of its own loss.
        grad_output : float or array_like, optional
            Factor of the gradient, an upstream derivative: one number, or for "none" one per item.
        out : ndarray, optional
            Where to put it: shape and dtype of `X`; it may be `X` itself.

        Returns
        -------
        ndarray
            Shape and dtype of `X`; `out` if that was given.

        Examples
        --------
        >>> import fastgrad as fg
        >>> fg.centroid_hinge.grad([[0.0], [4.0]], [0, 0], squared=False)
        array([[-0.5],
               [ 0.5]])
        """
        options = _Options(
            margin,
            squared,
            centroid_grad,
            class_reduction,
            num_classes,
            sample_weight,
            ignore_index,
            reduction,
            normalizer,
        )
        grad: FloatArray = _hinge("grad", X, labels, None, options, grad_output, out)[1]
        return grad

    def value_and_grad(
        self,
        X: ArrayLike,
        labels: ArrayLike | Segments,
        *,
        margin: float = 1.0,
        squared: bool = True,
        centroid_grad: bool = True,
        class_reduction: str = "mean",
        num_classes: int | ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: int | None = None,
        reduction: str | None = "mean",
        normalizer: float | None = None,
        grad_output: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> tuple[Any, FloatArray]:
        """Loss and gradient together.

        Parameters
        ----------
        X, labels, margin, ..., grad_output, out
            As for `grad`; `grad_output` does not touch the value.

        Returns
        -------
        value : float or ndarray
            What the call returns, to the last bit.
        grad : ndarray
            What `grad` returns, to the last bit.

        Examples
        --------
        >>> import fastgrad as fg
        >>> fg.centroid_hinge.value_and_grad([[0.0], [4.0]], [0, 0])
        (1.0, array([[-1.],
               [ 1.]]))
        """
        options = _Options(
            margin,
            squared,
            centroid_grad,
            class_reduction,
            num_classes,
            sample_weight,
            ignore_index,
            reduction,
            normalizer,
        )
        return _hinge("value_and_grad", X, labels, None, options, grad_output, out)

    def hvp(
        self,
        X: ArrayLike,
        labels: ArrayLike | Segments,
        v: ArrayLike,
        *,
        margin: float = 1.0,
        squared: bool = True,
        centroid_grad: bool = True,
        class_reduction: str = "mean",
        num_classes: int | ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: int | None = None,
        reduction: str | None = "mean",
        normalizer: float | None = None,
        grad_output: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray:
        r"""The Hessian with respect to `X`, times a vector.

        With :math:`r_i = x_i - c`, :math:`d_i` its length and :math:`v'_i` the direction without
        its class mean, the part of a row beyond the margin is

        .. math:: 2 \frac{w_i}{\sum_j w_j} \Big( \frac{d_i - m}{d_i} v'_i
                  + \frac{m \langle r_i, v'_i \rangle}{d_i^3} r_i \Big)

        and the class's share of the sum of these parts is taken off, as in `grad`.  With
        ``centroid_grad=False``, :math:`v' = v` and nothing is taken off: the Hessian of the loss
        whose centroids are constants.

        Parameters
        ----------
        X, labels, margin, ..., grad_output
            As for `grad`.
        v : array_like
            The vector: shape of `X`, cast to its dtype.
        out : ndarray, optional
            Where to put the result: shape and dtype of `X`; it may be `v` itself.

        Returns
        -------
        ndarray
            Shape and dtype of `X`; `out` if that was given.

        Examples
        --------
        >>> import fastgrad as fg
        >>> fg.centroid_hinge.hvp([[0.0], [4.0]], [0, 0], [[1.0], [0.0]])
        array([[ 0.5],
               [-0.5]])
        """
        options = _Options(
            margin,
            squared,
            centroid_grad,
            class_reduction,
            num_classes,
            sample_weight,
            ignore_index,
            reduction,
            normalizer,
        )
        result: FloatArray = _hinge("hvp", X, labels, v, options, grad_output, out)[1]
        return result


def _hinge(
    kind: str,
    X: ArrayLike,
    labels: ArrayLike | Segments,
    v: Any,
    options: _Options,
    grad_output: ArrayLike | None,
    out: FloatArray | None,
) -> tuple[Any, Any]:
    """(value or None, array or None): what `kind` asks for."""
    how = _arrays.check_reduction(options.reduction)
    divisor = _arrays.check_normalizer(options.normalizer, how)
    margin = _arrays.check_between(options.margin, "margin", 0.0, math.inf)
    by_mean = _arrays.check_class_reduction(options.class_reduction) == "mean"
    rows = _Rows(X, labels, options.num_classes, options.sample_weight, options.ignore_index)
    x, plan = rows.X, rows.plan
    factor, upstream = _arrays.as_grad_output(grad_output, how, rows.batch, x.dtype)
    direction = _arrays.as_cotangent(v, x.shape, x.dtype, "v") if kind == "hvp" else None
    result: Any = None
    if kind != "value":
        # `out` may be the first of these.
        inputs: dict[str, Any] = {"v": direction} if direction is not None else {}
        inputs |= {"X": x, "labels": None if isinstance(labels, Segments) else np.asarray(labels)}
        inputs |= {"sample_weight": rows.weight, "grad_output": upstream}
        result = (
            np.empty(x.shape, x.dtype)
            if out is None
            else _arrays.as_out(out, x.shape, x.dtype, **inputs)
        )

    counts = rows.counts()
    present = (counts > 0).reshape(rows.items, plan.num_segments).sum(axis=1)
    if how == "mean" and divisor is None:
        divisor = float(np.count_nonzero(present))
    scale = np.full(rows.items, factor / divisor if divisor else factor)
    if upstream is not None:
        scale *= upstream
    if by_mean:
        scale /= np.maximum(present, 1)
    written: Any = None
    if result is not None:
        written = result if result.strides[-1] == x.itemsize else np.empty(x.shape, x.dtype)
    values = np.empty(len(counts))
    if written is None or divisor != 0.0:
        _kernels.hinge(
            _items(x),
            None if direction is None else _items(direction),
            None if written is None else _items(written),
            rows.weight,
            plan.order,
            plan.offsets,
            margin,
            bool(options.squared),
            bool(options.centroid_grad),
            scale,
            values,
        )
    if result is not None:
        if written is not result:
            result[...] = written
        left_out = rows.left_out(counts)
        if divisor == 0.0:
            result.fill(0)
        elif left_out is not None:
            result[left_out] = 0
    value = _reduced(rows, values, present, by_mean, how, divisor) if kind != "hvp" else None
    return value, result if out is None else out


def _reduced(
    rows: _Rows,
    values: NDArray[np.float64],
    present: NDArray[np.int64],
    by_mean: bool,
    how: str,
    divisor: float | None,
) -> Any:
    """The value, from those of the classes."""
    if how == "mean" and not divisor:
        return math.nan
    items = np.empty(rows.items)
    _kernels.item_values(values, present, by_mean, items)
    if how == "none":
        return _arrays.cast(items, rows.X.dtype).reshape(rows.batch)[()]
    total = float(sum(_kernels.total(items)))
    return total / divisor if how == "mean" and divisor else total


centroid_hinge = CentroidHinge()
