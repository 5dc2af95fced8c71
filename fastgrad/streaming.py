"""States that are updated chunk by chunk and merged, for data that does not fit into memory.

A state holds what its result is made of, not the result: sums in two words, so that it hardly
matters how the data was cut, in which order the parts were merged, or in how many processes.
States are small, and pickle.

Examples
--------
Class centroids of a file larger than memory, one slice of rows after the other:

>>> import tempfile
>>> import numpy as np
>>> import fastgrad as fg
>>> file = tempfile.TemporaryFile()
>>> X = np.memmap(file, np.float32, "w+", shape=(1000, 4))
>>> y = np.arange(1000) % 3
>>> state = fg.streaming.CentroidState(3)
>>> for i in range(0, len(X), 256):
...     state = state.update(X[i : i + 256], y[i : i + 256])
>>> state.counts
array([334, 333, 333])
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastgrad import _arrays
from fastgrad._arrays import FloatArray
from fastgrad._centroids import _items, _Rows
from fastgrad._kernels import centroids as _kernels
from fastgrad._segments import Segments, segment_sum
from fastgrad._softmax import logsumexp

__all__ = ["CentroidState", "LogSumExpState", "LossSum"]

Pair: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Head and tail of sums: their value is that of both together."""


_ROOM = 64
"""The power of two by which sums are scaled down that would leave the range of float64."""

_LARGE = 2.0**900
"""Sums of fewer than 2**64 numbers below this one do not leave it."""


def _whole(pair: Pair) -> NDArray[np.float64]:
    return pair[0] + pair[1]


@np.errstate(all="ignore")
def _added(a: Pair, b: Pair) -> Pair:
    """The sum of two sums (Knuth), its tail without what is not finite."""
    head = a[0] + b[0]
    part = head - a[0]
    tail = (a[0] - (head - part)) + (b[0] - part) + (a[1] + b[1])
    tail = np.where(np.isfinite(head), tail, 0)
    return head, tail


class CentroidState:
    """Class centroids and variances of rows that come in chunks.

    Parameters
    ----------
    num_classes : int
        `K`; labels lie in [0, K).
    ignore_index : int, optional
        Rows with this label belong to no class.

    Attributes
    ----------
    centroids : ndarray, shape (K, d)
        The mean of each class, in the dtype of the rows; NaN for a class without any.
    counts : ndarray of int64, shape (K,)
        Rows of each class.
    variance : ndarray, shape (K, d)
        Mean squared deviation from the centroid, by column (divided by the weight, not by one
        less); NaN for a class without rows.
    num_classes : int

    See Also
    --------
    class_centroids : for one array.

    Notes
    -----
    The state is the weights, the weighted sums in two words and the squared deviations M2, of each
    class, all over a power of two that keeps them in range whatever the size of rows and weights.
    Centroids are those of all rows at once to 1 ulp, whatever the chunks; M2, merged by the formula
    of Chan, Golub and LeVeque [1]_, to 1e-12 relative to the sum of squares.  Results take the
    widest dtype of all chunks.

    References
    ----------
    .. [1] T. F. Chan, G. H. Golub and R. J. LeVeque, "Updating Formulae and a Pairwise Algorithm
       for Computing Sample Variances", 1979, doi:10.1007/978-3-642-51461-6_3.

    Examples
    --------
    >>> import fastgrad as fg
    >>> first = fg.streaming.CentroidState(2).update([[1.0], [3.0]], [0, 0])
    >>> other = fg.streaming.CentroidState(2).update([[5.0]], [0])
    >>> first.merge(other).centroids
    array([[ 3.],
           [nan]])
    >>> first.variance[0].round(6), first.counts
    (array([2.666667]), array([3, 0]))
    """

    def __init__(self, num_classes: int, *, ignore_index: int | None = None) -> None:
        self.num_classes = _arrays.check_count(num_classes, "num_classes")
        self._ignored = _arrays.check_ignore_index(ignore_index)
        self._counts = np.zeros(self.num_classes, np.int64)
        self._weights: Pair = np.zeros(self.num_classes), np.zeros(self.num_classes)
        self._exponents = np.zeros(self.num_classes, np.int64)
        self._sums: Pair | None = None
        self._squares: NDArray[np.float64] | None = None
        self._dtype: np.dtype[Any] | None = None

    def update(
        self,
        X: ArrayLike,
        labels: ArrayLike | Segments,
        *,
        sample_weight: ArrayLike | None = None,
    ) -> CentroidState:
        """Add rows.

        Parameters
        ----------
        X : array_like of floats, shape (N, d)
            The same `d` in every update.
        labels : array_like of int, shape (N,); or Segments with `num_classes` segments
            The class of every row.
        sample_weight : array_like, shape (N,), optional
            Weights of the rows; one of weight 0 belongs to no class.

        Returns
        -------
        CentroidState
            Itself.

        Examples
        --------
        >>> import fastgrad as fg
        >>> fg.streaming.CentroidState(1).update([[1.0, 2.0]], [0]).centroids
        array([[1., 2.]])
        """
        plan = isinstance(labels, Segments)
        rows = _Rows(
            _arrays.as_matrix_of_rows(X),
            labels,
            None if plan else self.num_classes,
            sample_weight,
            self._ignored,
        )
        _arrays.check_same_classes(rows.plan.num_segments, self.num_classes)
        self._check_columns(rows.X.shape[1])
        weight, exponents = rows.weight, np.zeros(self.num_classes, np.int64)
        if rows.exponents is not None:
            exponents += rows.exponents
        moments = self._moments(rows, weight)
        if rows.X.dtype == np.float64:
            lost = ~np.isfinite(moments[2][0])
            columns = np.abs(rows.X[:, lost.any(axis=0)])
            if (
                np.isfinite(columns) & (columns > _LARGE)
            ).any():  # else an infinity or NaN was there
                weight = np.ones(rows.X.shape[:1]) if weight is None else weight
                room = _ROOM * lost.any(axis=1)
                of_rows = segment_sum.vjp(weight, rows.plan, room.astype(np.float64))
                weight = _arrays.scaled_weights(weight, -of_rows.astype(np.int64))
                moments = self._moments(rows, weight)
                exponents += room
        self._add(*moments, exponents, rows.X.dtype)
        return self

    @staticmethod
    def _moments(
        rows: _Rows, weight: FloatArray | None
    ) -> tuple[NDArray[np.int64], Pair, Pair, NDArray[np.float64]]:
        counts, weights, sums, squares = _kernels.moments(
            _items(rows.X), weight, rows.plan.order, rows.plan.offsets
        )
        return counts, (weights[0], weights[1]), (sums[0], sums[1]), squares

    def merge(self, other: CentroidState) -> CentroidState:
        """Add all that another state has seen.

        Parameters
        ----------
        other : CentroidState
            Of the same number of classes and columns; it is left alone.

        Returns
        -------
        CentroidState
            Itself.

        Examples
        --------
        >>> import fastgrad as fg
        >>> a, b = fg.streaming.CentroidState(1), fg.streaming.CentroidState(1)
        >>> a.update([[1.0]], [0]).merge(b.update([[2.0]], [0])).centroids
        array([[1.5]])
        """
        _arrays.check_merge(
            other, CentroidState, num_classes=(self.num_classes, getattr(other, "num_classes", 0))
        )
        if other._sums is not None and other._squares is not None:
            self._check_columns(other._squares.shape[1])
            self._add(
                other._counts,
                other._weights,
                other._sums,
                other._squares,
                other._exponents,
                other._dtype,
            )
        return self

    def _check_columns(self, columns: int) -> None:
        known = None if self._squares is None else self._squares.shape[1:]
        _arrays.check_same_columns((columns,), known, "X")

    @np.errstate(all="ignore")
    def _add(
        self,
        counts: NDArray[np.int64],
        weights: Pair,
        sums: Pair,
        squares: NDArray[np.float64],
        exponents: NDArray[np.int64],
        dtype: np.dtype[Any] | None,
    ) -> None:
        self._counts = self._counts + counts
        if self._sums is None or self._squares is None or self._dtype is None:
            self._sums, self._squares, self._weights = sums, squares, weights
            self._exponents, self._dtype = exponents, dtype
            return
        ours, theirs = _whole(self._weights), _whole(weights)
        common = np.maximum(
            np.where(ours > 0, self._exponents, exponents),
            np.where(theirs > 0, exponents, self._exponents),
        )
        for _ in range(2):  # again with room for a sum of two that left the range
            mine = _scaled(self._exponents - common, *self._weights, *self._sums, self._squares)
            other = _scaled(exponents - common, *weights, *sums, squares)
            total = _added((mine[2], mine[3]), (other[2], other[3]))
            lost = np.isinf(total[0]) & np.isfinite(mine[2]) & np.isfinite(other[2])
            if not lost.any():
                break
            common = common + _ROOM * lost.any(axis=1)
        here, there = _quotient(self._sums, self._weights), _quotient(sums, weights)
        apart = (here[0] - there[0]) + (here[1] - there[1])
        ours, theirs = mine[0] + mine[1], other[0] + other[1]
        between = (ours * (theirs / (ours + theirs)))[:, None] * apart**2
        both = ((ours > 0) & (theirs > 0))[:, None]
        self._dtype = _widest(self._dtype, dtype)
        self._squares = mine[4] + other[4] + np.where(both, between, 0)
        self._sums = total
        self._weights = _added((mine[0], mine[1]), (other[0], other[1]))
        self._exponents = common

    @property
    def counts(self) -> NDArray[np.int64]:
        """Rows of each class."""
        return self._counts.copy()

    @property
    def centroids(self) -> FloatArray:
        """The mean of each class."""
        if self._sums is None or self._dtype is None:
            return np.full((self.num_classes, 0), np.nan)
        with np.errstate(all="ignore"):
            means = _whole(_quotient(self._sums, self._weights))
        return _arrays.cast(means, self._dtype)

    @property
    def variance(self) -> FloatArray:
        """The mean squared deviation from the centroid, by class and column."""
        if self._squares is None or self._dtype is None:
            return np.full((self.num_classes, 0), np.nan)
        with np.errstate(all="ignore"):
            variance = self._squares / _whole(self._weights)[:, None]
        return _arrays.cast(variance, self._dtype)

    def __repr__(self) -> str:
        return f"CentroidState(num_classes={self.num_classes}, rows={int(self._counts.sum())})"


def _scaled(exponents: NDArray[np.int64], *parts: NDArray[np.float64]) -> list[Any]:
    """Numbers of classes times powers of two."""
    return [np.ldexp(a, exponents.reshape(-1, *[1] * (a.ndim - 1))) for a in parts]


def _quotient(sums: Pair, weights: Pair) -> Pair:
    """Means in two words: a quotient, and what it lacks."""
    weight = _whole(weights)[:, None]
    missing = (weights[0][:, None] - weight) + weights[1][:, None]
    head = (sums[0] + sums[1]) / weight
    product, error = _product(head, weight)
    rest = (sums[0] - product) + (sums[1] - error) - head * missing
    return head, np.where(np.isfinite(head), rest / weight, 0)


def _product(a: NDArray[np.float64], b: NDArray[np.float64]) -> Pair:
    """A product and what it lacks (Dekker)."""
    split = 134217729.0
    a, a_exponent = np.frexp(a)  # the split of what is near the largest number would overflow
    b, b_exponent = np.frexp(b)
    a1, b1 = split * a, split * b
    a1, b1 = a1 - (a1 - a), b1 - (b1 - b)
    a2, b2, p = a - a1, b - b1, a * b
    error = ((a1 * b1 - p) + a1 * b2 + a2 * b1) + a2 * b2
    exponent = a_exponent + b_exponent
    return np.ldexp(p, exponent), np.ldexp(error, exponent)


def _widest(ours: np.dtype[Any], theirs: np.dtype[Any] | None) -> np.dtype[Any]:
    """float32 for the two halves, of which NumPy knows no common type."""
    if theirs is None or theirs == ours:
        return ours
    return np.promote_types(_arrays.computed(ours), _arrays.computed(theirs))


class LogSumExpState:
    r"""Logarithm of the sum of exponentials of numbers that come in chunks.

    Parameters
    ----------
    axis : int or None, default None
        The axis that is summed over, and cut into chunks; None is for all elements.

    Attributes
    ----------
    logsumexp : float or ndarray
        Of all chunks: a number of the dtype of the chunks, or an array of their shape without
        `axis`.  -inf if there were none.

    See Also
    --------
    logsumexp : for one array.

    Notes
    -----
    The state is the largest number `m` and the sum of the exponentials of all others, relative to
    that of `m`, in two words: :math:`m + \log(1 + s)` keeps its digits near 0.  The result is that
    of one chunk to 1 ulp of the larger of it and `m`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> state = fg.streaming.LogSumExpState()
    >>> state.update(np.zeros(1)).update(np.zeros(1)).logsumexp
    0.6931471805599453
    >>> rows = fg.streaming.LogSumExpState(axis=1)
    >>> for columns in np.split(np.zeros((2, 8)), 4, axis=1):
    ...     rows = rows.update(columns)
    >>> rows.logsumexp
    array([2.07944154, 2.07944154])
    """

    def __init__(self, axis: int | None = None) -> None:
        self._axis = axis
        self._top: Any = None
        self._rest: Pair | None = None
        self._dtype: np.dtype[Any] | None = None

    def update(self, a: ArrayLike) -> LogSumExpState:
        """Add numbers.

        Parameters
        ----------
        a : array_like of floats
            Of the same shape in every update, apart from `axis`.

        Returns
        -------
        LogSumExpState
            Itself.

        Examples
        --------
        >>> import fastgrad as fg
        >>> fg.streaming.LogSumExpState().update([0.0, 0.0]).logsumexp
        0.6931471805599453
        """
        x = _arrays.as_scores(a, "a")
        if self._axis is not None:
            axis: Any = _arrays.one_axis(self._axis, x.ndim, "a")
        else:
            axis = tuple(range(x.ndim))
        wide = x.astype(np.float64)  # that each chunk is rounded to float64 alone
        wide = wide.reshape(1) if wide.ndim == 0 and self._axis is not None else wide
        top = np.max(wide, axis=axis, initial=-np.inf)
        known = np.isfinite(top)
        with np.errstate(all="ignore"):
            # Of the distances: beside a large maximum a logarithm is short of digits.
            wide -= np.expand_dims(np.where(known, top, 0), axis)
            rest = np.expm1(np.where(known, logsumexp(wide, axis), 0))
        self._add(np.asarray(top), (np.asarray(rest), np.zeros_like(rest)), x.dtype)
        return self

    def merge(self, other: LogSumExpState) -> LogSumExpState:
        """Add all that another state has seen.

        Parameters
        ----------
        other : LogSumExpState
            Of the same shape; it is left alone.

        Returns
        -------
        LogSumExpState
            Itself.

        Examples
        --------
        >>> import fastgrad as fg
        >>> a, b = fg.streaming.LogSumExpState(), fg.streaming.LogSumExpState()
        >>> a.update([0.0]).merge(b.update([0.0])).logsumexp
        0.6931471805599453
        """
        _arrays.check_merge(other, LogSumExpState, axis=(self._axis, getattr(other, "_axis", None)))
        if other._rest is not None:
            self._add(other._top, other._rest, other._dtype)
        return self

    @np.errstate(all="ignore")
    def _add(self, top: NDArray[np.float64], rest: Pair, dtype: np.dtype[Any] | None) -> None:
        if self._rest is None or self._dtype is None:
            self._top, self._rest, self._dtype = top, rest, dtype
            return
        _arrays.check_same_columns(top.shape, self._top.shape, "a")
        self._dtype = _widest(self._dtype, dtype)
        first = (self._top >= top) | np.isnan(self._top)
        high, low = np.where(first, self._top, top), np.where(first, top, self._top)
        (a, a_missing), (b, b_missing) = self._rest, rest
        kept = np.where(first, a, b), np.where(first, a_missing, b_missing)
        scaled = np.where(first, b, a), np.where(first, b_missing, a_missing)
        # Equal infinities are no distance apart; nothing adds to +inf, and -inf adds nothing.
        # In two words, for in ascending numbers every one scales all before it.
        ratio = np.exp(np.longdouble(low) - np.longdouble(high))
        ratio = np.where(np.isfinite(high) | np.isnan(low), ratio, 0)
        factor = ratio.astype(np.float64)
        one = factor, (ratio - factor).astype(np.float64)
        p, missing = _product(factor, scaled[0])
        missing = missing + (factor * scaled[1] + one[1] * scaled[0])
        self._rest = _added(_added(kept, one), (p, missing))
        self._top = high

    @property
    def logsumexp(self) -> Any:
        """Of all that the state has seen."""
        if self._rest is None or self._dtype is None:
            return -math.inf
        with np.errstate(all="ignore"):
            log = self._top + np.log1p(_whole(self._rest))
        result = _arrays.cast(np.asarray(log), self._dtype)
        return float(result) if result.ndim == 0 else result

    def __repr__(self) -> str:
        shape = None if self._rest is None else np.shape(self._top)
        return f"LogSumExpState(axis={self._axis}, shape={shape})"


class LossSum:
    """The sum of losses that come in chunks, and of their weight: the right mean of all.

    The mean of the means of chunks is wrong as soon as these have different weights.

    Attributes
    ----------
    sum : float
        Of all losses.
    weight : float
        Of all rows.
    mean : float
        One over the other; NaN without weight.

    Notes
    -----
    Both are held in two words: results are those of one chunk to 1 ulp of the sum of the sizes.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> total = fg.streaming.LossSum()
    >>> y = np.array([0, 1, 0])
    >>> for rows in (slice(0, 2), slice(2, 3)):
    ...     loss = fg.cross_entropy(np.zeros((len(y[rows]), 2)), y[rows], reduction="sum")
    ...     total = total.update(loss, weight=len(y[rows]))
    >>> round(total.mean, 6), total.weight
    (0.693147, 3.0)
    """

    def __init__(self) -> None:
        self._sum = self._weight = _Number(0.0)

    def update(self, values: ArrayLike, weight: ArrayLike | None = None) -> LossSum:
        """Add losses.

        Parameters
        ----------
        values : float or array_like
            What a loss returned with ``reduction="sum"``, or one value per row with "none".
        weight : float or array_like, optional
            What a mean divides by: the weight of all these rows as one number, or that of each.
            The default is the number of `values`; a single one needs it.  Rows that a loss ignores
            are 0 among its values, and should weigh 0.

        Returns
        -------
        LossSum
            Itself.

        Examples
        --------
        >>> import fastgrad as fg
        >>> fg.streaming.LossSum().update([1.0, 2.0]).update(6.0, weight=4).mean
        1.5
        """
        v, w = _arrays.as_losses(values, weight)
        self._sum = _plus(self._sum, _total(v))
        self._weight = _plus(self._weight, _Number(float(v.size)) if w is None else _total(w))
        return self

    def merge(self, other: LossSum) -> LossSum:
        """Add all that another state has seen.

        Parameters
        ----------
        other : LossSum
            It is left alone.

        Returns
        -------
        LossSum
            Itself.

        Examples
        --------
        >>> import fastgrad as fg
        >>> other = fg.streaming.LossSum().update([4.0])
        >>> fg.streaming.LossSum().update([1.0]).merge(other).mean
        2.5
        """
        _arrays.check_merge(other, LossSum)
        self._sum = _plus(self._sum, other._sum)
        self._weight = _plus(self._weight, other._weight)
        return self

    @property
    def sum(self) -> float:
        """Of all losses."""
        return self._sum.times(0)

    @property
    def weight(self) -> float:
        """Of all rows."""
        return self._weight.times(0)

    @property
    def mean(self) -> float:
        """The sum over the weight; NaN without weight."""
        weight = self._weight.head + self._weight.tail
        if not weight:
            return math.nan
        quotient = _Number((self._sum.head + self._sum.tail) / weight, 0.0, self._sum.exponent)
        return quotient.times(-self._weight.exponent)

    def __repr__(self) -> str:
        return f"LossSum(sum={self.sum!r}, weight={self.weight!r})"


class _Number(NamedTuple):
    """(head + tail) times 2**exponent."""

    head: float
    tail: float = 0.0
    exponent: int = 0

    def times(self, exponent: int) -> float:
        """As one float, times 2**exponent."""
        with np.errstate(all="ignore"):
            return float(np.ldexp(self.head + self.tail, self.exponent + exponent))


def _total(a: FloatArray) -> _Number:
    total = _Number(*_kernels.total(a))
    if not math.isfinite(total.head) and np.isfinite(a).all():
        with np.errstate(under="ignore"):
            total = _Number(*_kernels.total(np.ldexp(a, -_ROOM)), _ROOM)
    return total


@np.errstate(all="ignore")
def _plus(a: _Number, b: _Number) -> _Number:
    # Both near the end of the range, the sum may be beyond it: it is taken with room, and kept so
    # only as long as it is that large.
    room = _ROOM if max(abs(a.times(0)), abs(b.times(0))) > _LARGE else 0
    parts = [
        (np.ldexp(x.head, x.exponent - room), np.ldexp(x.tail, x.exponent - room)) for x in (a, b)
    ]
    head, tail = _added(*parts)
    return _Number(float(head), float(tail), room)
