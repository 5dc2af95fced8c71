"""Segments, the plan of a ragged reduction, and the reductions with their derivatives."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastgrad import _arrays
from fastgrad._arrays import FloatArray, IntArray
from fastgrad._kernels import segments as _kernels
from fastgrad._kernels import series as _softmax
from fastgrad._kernels import sort as _sort
from fastgrad._maps import Map
from fastgrad._threads import cached_property, get_num_threads


class Segments:
    """Which rows belong to which segment: sort once, reduce many times.

    Made by `from_ids`, `from_lengths` or `from_offsets`, and taken by every ``segment_*`` function
    in the place of ids.

    Attributes
    ----------
    order : ndarray of int64, shape (rows kept,)
        Positions of the rows, sorted by segment; those of one segment in their original order.  In
        a batch row `i` of item `b` has position ``b * N + i``.
    offsets : ndarray of int64, shape (B * K + 1,)
        Segment `k` of item `b` is ``order[offsets[s] : offsets[s + 1]]`` with ``s = b * K + k``.
    counts : ndarray of int64, shape (K,) or (B, K)
        Rows of every segment.
    num_segments : int
        `K`, in a batch the largest of all items.
    shape : tuple of int
        (N,), or (B, N) for a batch of `B` items.

    See Also
    --------
    segment_sum, segment_softmax

    Notes
    -----
    The sort is a stable counting sort, O(N + K) [1]_.  It and the counts are made when they are
    first asked for, and then kept.  Segments never change: the arrays are read-only, and ids are
    copied.

    References
    ----------
    .. [1] D. E. Knuth, "The Art of Computer Programming", vol. 3, 2nd ed., 1998, section 5.2,
       algorithm D.

    Examples
    --------
    >>> import fastgrad as fg
    >>> s = fg.Segments.from_ids([1, 0, 1, 3])
    >>> s
    Segments(shape=(4,), num_segments=4)
    >>> s.order, s.offsets, s.counts
    (array([1, 0, 2, 3]), array([0, 1, 3, 3, 4]), array([1, 2, 0, 1]))
    """

    shape: tuple[int, ...]
    num_segments: int
    _unchecked: tuple[IntArray, NDArray[np.int64], str] | None
    """What `_ids` is made of: ids as they were given, the number of segments of every item, and the
    name of the argument; None once they are checked."""
    _ignored: int | None
    _bounds: NDArray[np.int64] | None
    """The offsets of consecutive segments, else None."""

    def __init__(self) -> None:
        _arrays.refuse_bare_segments()

    @classmethod
    def from_ids(
        cls,
        ids: ArrayLike,
        num_segments: int | ArrayLike | None = None,
        *,
        ignore_index: int | None = None,
    ) -> Segments:
        """Segments from the id of every row.

        Parameters
        ----------
        ids : array_like of int, shape (N,) or (B, N)
            The segment of every row, of any integer dtype, in any order; (B, N) is a batch of
            items, each with segments of its own.
        num_segments : int, or array_like of int of shape (B,), optional
            `K`: ids lie in [0, K).  The default is the largest id plus 1.  In a batch, every item
            may have its own number; segments beyond it, up to the largest, are empty.
        ignore_index : int, optional
            Rows with this id belong to no segment.  Nothing is left out by default.

        Returns
        -------
        Segments

        Raises
        ------
        TypeError
            If `ids` are no integers, or a masked array.
        ValueError
            For other than one or two dimensions, or a `num_segments` that is negative or does not
            fit.
        IndexError
            For an id out of range; the message names the first.

        Examples
        --------
        >>> import fastgrad as fg
        >>> fg.Segments.from_ids([[0, 1, -1], [2, 2, 0]], ignore_index=-1).counts
        array([[1, 1, 0],
               [1, 0, 2]])
        """
        self = cls._of(_arrays.as_ids(ids, "ids"), num_segments, ignore_index, "ids")
        given, each, _ = self._unchecked or (self._ids, None, "")
        assert given is not None
        # int8, int16 ...: reading them again later is cheaper than making the copy.
        narrow = np.empty(given.shape, np.min_scalar_type(-max(self.num_segments, 1)))
        offsets, counts = None, None
        if not _sort.sorts_in_steps(self.num_segments, given.size):
            offsets = np.zeros(self._items * self.num_segments + 1, np.int64)
            counts = offsets[1:].reshape(self._items, self.num_segments)
        if not _sort.pack(given, self._ignored, each, counts, narrow):
            _ = self._ids  # raises
            raise RuntimeError("ids must not change while they are read; they did.")
        vars(self)["_ignored"] = None if ignore_index is None else -1
        self._checked(narrow, None if offsets is None else np.cumsum(offsets, out=offsets))
        _ = self._in_order  # soon known: the first id that falls ends the search
        return self

    @classmethod
    def from_lengths(cls, lengths: ArrayLike) -> Segments:
        """Segments of consecutive rows, from the number of rows of each.

        Parameters
        ----------
        lengths : array_like of int, shape (K,)
            Each >= 0; `N` is their sum.

        Returns
        -------
        Segments

        Raises
        ------
        TypeError, ValueError
            If they are no integers, negative, not one-dimensional, or their sum leaves int64.

        Examples
        --------
        >>> import fastgrad as fg
        >>> fg.Segments.from_lengths([2, 0, 3]).offsets
        array([0, 2, 2, 5])
        """
        return cls._consecutive(_arrays.offsets_of_lengths(lengths))

    @classmethod
    def from_offsets(cls, offsets: ArrayLike) -> Segments:
        """Segments of consecutive rows, from where each begins (the indptr of a CSR matrix).

        Parameters
        ----------
        offsets : array_like of int, shape (K + 1,)
            From 0 up to `N`, never falling: segment `k` is the rows
            ``offsets[k] : offsets[k + 1]``.

        Returns
        -------
        Segments

        Raises
        ------
        TypeError, ValueError
            If they are no integers, not one-dimensional, or not so ordered.

        Examples
        --------
        >>> import fastgrad as fg
        >>> fg.Segments.from_offsets([0, 2, 2, 5]).counts
        array([2, 0, 3])
        """
        return cls._consecutive(_arrays.as_offsets(offsets))

    @classmethod
    def _consecutive(cls, offsets: NDArray[np.int64]) -> Segments:
        return cls._made(
            shape=(int(offsets[-1]),),
            num_segments=len(offsets) - 1,
            _ids=None,
            _unchecked=None,
            _ignored=None,
            _bounds=_read_only(offsets),
        )

    @classmethod
    def _of(
        cls,
        ids: IntArray,
        num_segments: int | ArrayLike | None,
        ignore_index: int | None,
        name: str,
    ) -> Segments:
        """From ids as the border hands them out, which are not copied.

        They are checked when `_ids` is first read, so that a kernel may check them on its way.
        """
        ignored = _arrays.check_ignore_index(ignore_index)
        flat = ids.reshape((1, *ids.shape)[-2:])
        made: dict[str, Any] = {"shape": ids.shape, "_ignored": ignored, "_bounds": None}
        if num_segments is None or ignored is not None:
            number = _arrays.check_ids(ids, num_segments, ignored, name)
            return cls._made(num_segments=number, _ids=flat, _unchecked=None, **made)
        number, each = _arrays.numbers_of_segments(num_segments, ids, name)
        return cls._made(num_segments=number, _unchecked=(flat, each, name), **made)

    @classmethod
    def _made(cls, **attributes: Any) -> Segments:
        self = object.__new__(cls)
        vars(self).update(attributes)
        return self

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        _arrays.refuse_change_of_segments(name)

    def __delattr__(self, name: str) -> NoReturn:
        _arrays.refuse_change_of_segments(name)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made of the ids; from a pickle NumPy would make it writeable."""
        now = dict(vars(self))  # another thread may be making some
        return {k: a for k, a in now.items() if k not in ("offsets", "counts", "order")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._bounds is not None:
            vars(self)["_bounds"] = _read_only(self._bounds)

    @cached_property
    def _ids(self) -> IntArray | None:
        """(B, N), C-contiguous, in range or equal to `_ignored`; None if segments are consecutive.

        IndexError if they are not in range.
        """
        unchecked = self._unchecked
        if unchecked is None:  # another thread has just checked them
            ids: IntArray | None = vars(self)["_ids"]
            return ids
        flat, each, name = unchecked
        _arrays.check_range_of_ids(flat.reshape(self.shape), each, None, name)
        self._checked(flat, None)
        return flat

    def _checked(self, ids: IntArray, offsets: NDArray[np.int64] | None) -> None:
        """Ids were found to be in range, and offsets made of them."""
        vars(self)["_ids"] = ids
        vars(self)["_unchecked"] = None
        if offsets is not None:
            vars(self)["offsets"] = _read_only(offsets)

    @property
    def _items(self) -> int:
        return self.shape[0] if len(self.shape) == 2 else 1

    @cached_property
    def _in_order(self) -> bool:
        """Whether rows lie in the order of segments, those of none at the end."""
        if self._ids is None or self._items != 1:
            return self._ids is None
        if "offsets" in vars(self):
            return _sort.ascends(self._ids, self._ignored, None)
        offsets = np.zeros(self.num_segments + 1, np.int64)
        ascends = _sort.ascends(self._ids, self._ignored, offsets)
        if ascends:
            vars(self)["offsets"] = _read_only(offsets)
        return ascends

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Where every segment begins in `order`, and at last where the last one ends."""
        if self._ids is None:
            assert self._bounds is not None
            return self._bounds
        offsets = np.zeros(self._items * self.num_segments + 1, np.int64)
        _sort.count(self._ids, self._ignored, offsets[1:].reshape(self._items, self.num_segments))
        return _read_only(np.cumsum(offsets, out=offsets))

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Rows of every segment."""
        counts = self.offsets[1:] - self.offsets[:-1]
        return _read_only(counts.reshape((*self.shape[:-1], self.num_segments)))

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Positions of the rows, sorted by segment."""
        if self._in_order:
            return _read_only(np.arange(self.offsets[-1], dtype=np.int64))
        assert self._ids is not None
        order = np.empty(self._ids.size, np.int64)
        if _sort.sorts_in_steps(self.num_segments, self._ids.size):
            offsets = np.empty(self._items * self.num_segments + 1, np.int64)
            kept = _sort.sort(self._ids, self._ignored, offsets, order)
            vars(self).setdefault("offsets", _read_only(offsets))
        else:
            _sort.place(self._ids, self._ignored, self.offsets, order)
            kept = int(self.offsets[-1])
        return _read_only(order if kept == len(order) else order[:kept].copy())

    def __repr__(self) -> str:
        return f"Segments(shape={self.shape}, num_segments={self.num_segments})"


def _read_only(a: NDArray[np.int64]) -> NDArray[np.int64]:
    """A view that cannot be made writeable again, as an array that owns its data can."""
    return np.asarray(a.data.toreadonly())


def _plan(segments: Any, num_segments: Any, ignore_index: int | None) -> Segments:
    if isinstance(segments, Segments):
        _arrays.check_no_options_of_ids(num_segments=num_segments, ignore_index=ignore_index)
        return segments
    ids = _arrays.as_ids(segments, "segments")
    return Segments._of(ids, num_segments, ignore_index, "segments")


class _Rows:
    """Data of one call beside its plan: B items of N rows of d columns."""

    def __init__(self, data: ArrayLike, plan: Segments) -> None:
        self.whole = _arrays.as_data(data, plan.shape)
        self.plan = plan
        self.dtype = self.whole.dtype
        self.computed = _arrays.computed(self.dtype)
        self.trailing = self.whole.shape[len(plan.shape) :]
        self.columns = math.prod(self.trailing)
        self.reduced = (*plan.shape[:-1], plan.num_segments, *self.trailing)

    def flat(self, a: Any) -> Any:
        """An array in the shape of the data as (B, N, d): a view wherever strides allow it."""
        return a.reshape(self.plan._items, self.plan.shape[-1], self.columns)

    def table(self, a: Any) -> Any:
        """An array in the shape of the result as (B, K, d)."""
        return a.reshape(self.plan._items, self.plan.num_segments, self.columns)

    def result(self, out: Any, shape: tuple[int, ...], **inputs: Any) -> _Result:
        into = None
        if out is not None:
            unchecked = self.plan._unchecked
            ids = self.plan._ids if unchecked is None else unchecked[0]
            into = _arrays.as_out(out, shape, self.dtype, nothing=None, **inputs, segments=ids)
        return _Result(out, into, shape, self.dtype, self.computed)


class _Result:
    """A C-contiguous array of the type computed in, which becomes the result."""

    def __init__(
        self,
        out: FloatArray | None,
        into: FloatArray | None,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        computed: np.dtype[Any],
    ) -> None:
        self._out, self._into, self._dtype = out, into, dtype
        direct = into is not None and dtype == computed and into.flags.c_contiguous
        self.array: Any = into if direct else np.empty(shape, computed)

    def give(self) -> FloatArray:
        if self._into is None:
            return _arrays.cast(self.array, self._dtype)
        if self.array is not self._into:
            self._into[...] = _arrays.cast(self.array, self._dtype)
        return _arrays.returned(self._into, self._out)


def _add_up(
    x: Any,
    plan: Segments,
    out: Any,
    weights: Any,
    totals: NDArray[np.float64] | None,
    mean: bool,
    empty: float,
) -> None:
    """Sums or means of x (B, N, d) into out (B, K, d)."""
    items, _, columns = x.shape
    # To look through ids that are used once would cost more than it gains.
    in_order = vars(plan).get("_in_order", plan._bounds is not None)
    # Consecutive rows of one column need no table: several segments are added side by side.
    table = not (in_order and columns == 1) and _kernels.prefers_table(
        plan.num_segments, columns, out.itemsize, "order" in vars(plan) or in_order
    )
    if not (in_order or table):
        plan.order  # noqa: B018  (made first, it makes the offsets too)

    counting = mean or empty != 0

    def run(out: Any, even: float, ids: Any = None, made: Any = None) -> bool | None:
        """With `ids`, they are checked, and their offsets made, on the way."""
        check = ids is not None
        return _kernels.reduce(
            x,
            ids if check else plan._ids,
            plan._ignored,
            plan.offsets if in_order or not table or (counting and not check) else None,
            None if in_order or table else plan.order,
            out,
            weights,
            totals,
            mean,
            empty,
            table,
            even,
            check,
            made,
        )

    lost = None
    # Many counters and many accumulators drive each other out of the cache, but on several threads
    # a pass before them would be waited for (benchmarks/NOTES.md).
    fused = columns == 1 or not counting or get_num_threads() > 1
    unchecked = plan._unchecked
    if table and items == 1 and fused and unchecked is not None:
        ids = unchecked[0]
        made = np.zeros(plan.num_segments + 1, np.int64) if counting else None
        lost = run(out, 1.0, ids, made)
        if lost is not None:
            plan._checked(ids, made)
    if lost is None:
        lost = run(out, 1.0)
    if lost:
        # Perhaps a sum left the range of float64 and its mean does not: again, with tiny weights.
        again = np.empty_like(out)
        run(again, 2.0**-64)
        np.copyto(out, again, where=~np.isfinite(out))


def _totals(weights: Any, plan: Segments) -> NDArray[np.float64] | None:
    """Sums of weights over segments."""
    if weights is None:
        return None
    totals = np.empty((plan._items, plan.num_segments, 1))
    w = weights.astype(np.float64).reshape(plan._items, plan.shape[-1], 1)
    _add_up(w, plan, totals, None, None, False, 0.0)
    return totals.reshape(-1)


def evened(
    weights: ArrayLike | None, plan: Segments, name: str
) -> tuple[ArrayLike | None, NDArray[np.int64] | None]:
    """Weights of means, those of each segment over a power of two where their products could leave
    the range, and the exponents (..., K), or None.
    """
    if weights is None:
        return None, None
    w = _arrays.as_scores(weights, name)
    if w.shape != plan.shape or w.dtype != np.float64 or not w.size:
        return w, None
    if w.max() < 2.0**32 and not ((w > 0) & (w < 2.0**-64)).any():
        return w, None
    _arrays.check_fit(w, name, "finite and >= 0")
    exponents = np.frexp(segment_max(w, plan, empty_value=0.0))[1].astype(np.int64)
    of_rows = segment_sum.vjp(w, plan, exponents.astype(np.float64)).astype(np.int64)
    return _arrays.scaled_weights(w, -of_rows), exponents


class _Additive(Map):
    """What segment_sum and segment_mean share."""

    _mean: bool

    def __init__(self) -> None:
        self.__name__ = self._builtin_name

    def _weights(self, weights: ArrayLike | None, rows: _Rows) -> FloatArray | None:
        if self._mean:
            weights, _ = evened(weights, rows.plan, "weights")
        return _arrays.as_segment_weights(weights, rows.plan.shape, rows.dtype)

    def _reduce(
        self,
        data: ArrayLike,
        moved: tuple[str, ArrayLike] | None,
        segments: Any,
        num_segments: Any,
        weights: ArrayLike | None,
        ignore_index: int | None,
        empty_value: float,
        out: Any,
    ) -> FloatArray:
        plan = _plan(segments, num_segments, ignore_index)
        rows = _Rows(data, plan)
        x = rows.whole
        if moved is not None:
            name, v = moved
            x = _arrays.as_cotangent(v, x.shape, x.dtype, name)
        empty = _arrays.check_empty_value(empty_value)
        w = self._weights(weights, rows)
        result = rows.result(out, rows.reduced, data=x, weights=w)
        if moved is not None:
            empty = 0.0
        totals = _totals(w, plan) if self._mean or empty != 0 else None
        _add_up(rows.flat(x), plan, rows.table(result.array), w, totals, self._mean, empty)
        return result.give()

    def _spread(
        self,
        data: ArrayLike,
        g: ArrayLike,
        segments: Any,
        num_segments: Any,
        weights: ArrayLike | None,
        ignore_index: int | None,
        empty_value: float,
        out: Any,
    ) -> FloatArray:
        plan = _plan(segments, num_segments, ignore_index)
        rows = _Rows(data, plan)
        _arrays.check_empty_value(empty_value)
        cotangent = _arrays.as_cotangent(g, rows.reduced, rows.dtype, "g")
        w = self._weights(weights, rows)
        result = rows.result(out, rows.whole.shape, g=cotangent, weights=w)
        table, totals = rows.table(cotangent), None
        if self._mean and w is None:
            with np.errstate(all="ignore"):
                table = table / plan.counts.reshape(plan._items, plan.num_segments, 1)
        elif self._mean:
            totals = _totals(w, plan)
        _kernels.spread(
            np.ascontiguousarray(_arrays.cast(table, rows.computed)),
            plan._ids,
            plan._ignored,
            plan.offsets if plan._ids is None else None,
            rows.flat(result.array),
            w,
            totals,
        )
        return result.give()


class SegmentSum(_Additive):
    r"""Sum of the rows of every segment.

    .. math:: y_k = \sum_{i: s_i = k} w_i x_i

    Parameters
    ----------
    data : array_like of floats, shape (N, ...) or (B, N, ...)
        One row for every segment id, of any strides.  float16 and bfloat16 are read natively;
        integers and bools become float64.
    segments : array_like of int, shape (N,) or (B, N), or Segments
        The segment of every row, in any order; or a plan, which pays if it is used more than once.
    num_segments : int, or array_like of int of shape (B,), optional
        `K`; the default is the largest id plus 1.  See `Segments.from_ids`.
    weights : array_like of floats, shape of `segments`, optional
        Factors of the rows, finite and >= 0.  A row of weight 0 is left out, whatever it holds.
    ignore_index : int, optional
        Rows with this id belong to no segment.
    empty_value : float, default 0.0
        Result of a segment without rows, or with rows of weight 0 only.
    out : ndarray, optional
        Where to put the result, apart from every input.

    Returns
    -------
    ndarray, shape (K, ...) or (B, K, ...)
        In the dtype of `data`; `out` if that was given.

    Raises
    ------
    TypeError
        For ids that are no integers, complex, long double, object or masked data, and an `out` of
        another dtype.
    ValueError
        For shapes that do not fit, weights out of range, and an `out` that overlaps an input.
    IndexError
        For an id out of range.

    See Also
    --------
    segment_mean, Segments

    Notes
    -----
    Float32 and half precision are added in float64, float64 in two words [1]_, and rounded once.
    Rows are added in their original order, many in up to four strips whose sums are added, as the
    shape alone decides: the bits depend neither on threads nor on whether ids, lengths, offsets or
    a plan are given.  NaN and infinities stay in their segment and column.

    Derivatives: ``vjp(data, segments, g)`` and ``jvp(data, segments, v)``.  Trailing axes that
    cannot be merged are copied.

    References
    ----------
    .. [1] T. Ogita, S. M. Rump and S. Oishi, "Accurate sum and dot product", SIAM J. Sci. Comput.
       26(6), 2005, doi:10.1137/030601818.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> fg.segment_sum(np.array([1.0, 2.0, 4.0]), [2, 0, 2])
    array([2., 0., 5.])
    """

    _builtin_name = "segment_sum"
    _mean = False

    def __call__(
        self,
        data: ArrayLike,
        segments: ArrayLike | Segments,
        *,
        num_segments: int | ArrayLike | None = None,
        weights: ArrayLike | None = None,
        ignore_index: int | None = None,
        empty_value: float = 0.0,
        out: FloatArray | None = None,
    ) -> FloatArray:
        return self._reduce(
            data, None, segments, num_segments, weights, ignore_index, empty_value, out
        )

    def vjp(
        self,
        data: ArrayLike,
        segments: ArrayLike | Segments,
        g: ArrayLike,
        *,
        num_segments: int | ArrayLike | None = None,
        weights: ArrayLike | None = None,
        ignore_index: int | None = None,
        empty_value: float = 0.0,
        out: FloatArray | None = None,
    ) -> FloatArray:
        r"""Pull a cotangent back: :math:`w_i\, g_{s_i}`, and 0 for a row of no segment.

        Parameters
        ----------
        data, segments, num_segments, weights, ignore_index, empty_value
            As in the call.
        g : array_like
            Cotangent of the result, of its shape; cast to its dtype.
        out : ndarray, optional
            Where to put the result.

        Returns
        -------
        ndarray
            Shape and dtype of `data`.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.segment_sum.vjp(np.zeros(3), [1, 0, 1], np.array([5.0, 7.0]))
        array([7., 5., 7.])
        """
        return self._spread(
            data, g, segments, num_segments, weights, ignore_index, empty_value, out
        )

    def jvp(
        self,
        data: ArrayLike,
        segments: ArrayLike | Segments,
        v: ArrayLike,
        *,
        num_segments: int | ArrayLike | None = None,
        weights: ArrayLike | None = None,
        ignore_index: int | None = None,
        empty_value: float = 0.0,
        out: FloatArray | None = None,
    ) -> FloatArray:
        r"""Push a tangent forward: the sum of the rows of `v`; 0 for an empty segment.

        Parameters
        ----------
        data, segments, num_segments, weights, ignore_index, empty_value, out
            As in the call.
        v : array_like
            Tangent of `data`, of its shape; cast to its dtype.

        Returns
        -------
        ndarray
            Shape and dtype of the result.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.segment_sum.jvp(np.zeros(3), [1, 0, 1], np.array([1.0, 2.0, 4.0]))
        array([2., 5.])
        """
        return self._reduce(
            data, ("v", v), segments, num_segments, weights, ignore_index, empty_value, out
        )


class SegmentMean(_Additive):
    r"""Mean of the rows of every segment.

    .. math:: y_k = \sum_{i: s_i = k} w_i x_i \Big/ \sum_{i: s_i = k} w_i

    Parameters
    ----------
    data, segments, num_segments, weights, ignore_index, out
        As for `segment_sum`.
    empty_value : float, default nan
        Result of a segment without rows, or with rows of weight 0 only.

    Returns
    -------
    ndarray, shape (K, ...) or (B, K, ...)
        In the dtype of `data`; `out` if that was given.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for `segment_sum`.

    See Also
    --------
    segment_sum, Segments

    Notes
    -----
    Within 1 ulp of the true mean, however many rows there are and however far from 0 they lie: the
    sum is wide, as for `segment_sum`, and the quotient rounded once.  With weights, 2 ulp, as long
    as their products with the rows are normal numbers.  Rows that cancel leave the error of a wide
    sum of float32, at most N 2**-53 times the mean of \|x\|.

    Derivatives: ``vjp(data, segments, g)`` and ``jvp(data, segments, v)``; weights are constants.

    References
    ----------
    .. [1] T. Ogita, S. M. Rump and S. Oishi, "Accurate sum and dot product", SIAM J. Sci. Comput.
       26(6), 2005, doi:10.1137/030601818.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> fg.segment_mean(np.array([1.0, 2.0, 4.0]), [2, 0, 2])
    array([2. , nan, 2.5])
    """

    _builtin_name = "segment_mean"
    _mean = True

    def __call__(
        self,
        data: ArrayLike,
        segments: ArrayLike | Segments,
        *,
        num_segments: int | ArrayLike | None = None,
        weights: ArrayLike | None = None,
        ignore_index: int | None = None,
        empty_value: float = np.nan,
        out: FloatArray | None = None,
    ) -> FloatArray:
        return self._reduce(
            data, None, segments, num_segments, weights, ignore_index, empty_value, out
        )

    def vjp(
        self,
        data: ArrayLike,
        segments: ArrayLike | Segments,
        g: ArrayLike,
        *,
        num_segments: int | ArrayLike | None = None,
        weights: ArrayLike | None = None,
        ignore_index: int | None = None,
        empty_value: float = np.nan,
        out: FloatArray | None = None,
    ) -> FloatArray:
        r"""Pull a cotangent back: :math:`w_i\, g_{s_i} / \sum_{j: s_j = s_i} w_j`.

        Parameters and result are those of ``segment_sum.vjp``.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.segment_mean.vjp(np.zeros(3), [1, 0, 1], np.array([5.0, 7.0]))
        array([3.5, 5. , 3.5])
        """
        return self._spread(
            data, g, segments, num_segments, weights, ignore_index, empty_value, out
        )

    def jvp(
        self,
        data: ArrayLike,
        segments: ArrayLike | Segments,
        v: ArrayLike,
        *,
        num_segments: int | ArrayLike | None = None,
        weights: ArrayLike | None = None,
        ignore_index: int | None = None,
        empty_value: float = np.nan,
        out: FloatArray | None = None,
    ) -> FloatArray:
        r"""Push a tangent forward: the mean of the rows of `v`; 0 for an empty segment.

        Parameters and result are those of ``segment_sum.jvp``.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.segment_mean.jvp(np.zeros(3), [1, 0, 1], np.array([1.0, 2.0, 4.0]))
        array([2. , 2.5])
        """
        return self._reduce(
            data, ("v", v), segments, num_segments, weights, ignore_index, empty_value, out
        )


class _Extreme(Map):
    """What segment_max and segment_min share."""

    _least: bool

    def __init__(self) -> None:
        self.__name__ = self._builtin_name

    def _find(self, rows: _Rows, empty: float, best: Any, argmax: bool) -> Any:
        """Extremes into best (B, K, d); their positions if they are wanted."""
        plan = rows.plan
        order = None if plan._in_order else plan.order  # first, for a bad id raises here
        best[...] = _arrays.cast(np.full((), empty), best.dtype)
        place = np.full(best.shape, -1, np.int64) if argmax else None
        _kernels.extreme(rows.flat(rows.whole), self._least, plan.offsets, order, best, place)
        return place

    def _apply(
        self,
        data: ArrayLike,
        segments: Any,
        num_segments: Any,
        ignore_index: int | None,
        empty_value: float,
        return_argmax: bool,
        out: Any,
    ) -> Any:
        rows = _Rows(data, _plan(segments, num_segments, ignore_index))
        empty = _arrays.check_empty_value(empty_value)
        result = rows.result(out, rows.reduced, data=rows.whole)
        place = self._find(rows, empty, rows.table(result.array), return_argmax)
        best = result.give()
        return (best, place.reshape(rows.reduced)) if return_argmax else best

    def _places(
        self, data: ArrayLike, segments: Any, num_segments: Any, ignore_index: int | None
    ) -> tuple[_Rows, Any]:
        rows = _Rows(data, _plan(segments, num_segments, ignore_index))
        best = rows.table(np.empty(rows.reduced, rows.computed))
        return rows, self._find(rows, 0.0, best, True)

    def _pull(
        self,
        data: ArrayLike,
        g: ArrayLike,
        segments: Any,
        num_segments: Any,
        ignore_index: int | None,
        empty_value: float,
        out: Any,
    ) -> FloatArray:
        _arrays.check_empty_value(empty_value)
        rows, place = self._places(data, segments, num_segments, ignore_index)
        cotangent = _arrays.as_cotangent(g, rows.reduced, rows.dtype, "g")
        result = rows.result(out, rows.whole.shape, data=rows.whole, g=cotangent)
        result.array[...] = 0
        found = np.nonzero(place >= 0)
        item, _, column = found
        rows.flat(result.array)[item, place[found], column] = rows.table(cotangent)[found]
        return result.give()

    def _push(
        self,
        data: ArrayLike,
        v: ArrayLike,
        segments: Any,
        num_segments: Any,
        ignore_index: int | None,
        empty_value: float,
        out: Any,
    ) -> FloatArray:
        _arrays.check_empty_value(empty_value)
        rows, place = self._places(data, segments, num_segments, ignore_index)
        tangent = _arrays.as_cotangent(v, rows.whole.shape, rows.dtype, "v")
        result = rows.result(out, rows.reduced, data=rows.whole, v=tangent)
        result.array[...] = 0
        found = np.nonzero(place >= 0)
        item, _, column = found
        rows.table(result.array)[found] = rows.flat(tangent)[item, place[found], column]
        return result.give()


class SegmentMax(_Extreme):
    r"""Largest row of every segment, column by column.

    .. math:: y_k = \max_{i: s_i = k} x_i

    Parameters
    ----------
    data, segments, num_segments, ignore_index, out
        As for `segment_sum`.
    empty_value : float, default -inf
        Result of a segment without rows.
    return_argmax : bool, default False
        Return a pair, with where the largest are.

    Returns
    -------
    ndarray, shape (K, ...) or (B, K, ...)
        In the dtype of `data`; `out` if that was given.
    argmax : ndarray of int64, of the same shape
        Only if `return_argmax`: the row in the item, the first one at ties, -1 in an empty segment.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for `segment_sum`.

    See Also
    --------
    segment_min, segment_logsumexp, Segments

    Notes
    -----
    NaN is larger than anything, as for `numpy.max`; it stays in its segment and column.

    Derivatives: ``vjp(data, segments, g)`` and ``jvp(data, segments, v)`` through the argmax: at
    ties the first row has the whole derivative.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> fg.segment_max(np.array([1.0, 2.0, 4.0]), [2, 0, 2], return_argmax=True)
    (array([  2., -inf,   4.]), array([ 1, -1,  2]))
    """

    _builtin_name = "segment_max"
    _least = False

    def __call__(
        self,
        data: ArrayLike,
        segments: ArrayLike | Segments,
        *,
        num_segments: int | ArrayLike | None = None,
        ignore_index: int | None = None,
        empty_value: float = -np.inf,
        return_argmax: bool = False,
        out: FloatArray | None = None,
    ) -> Any:
        return self._apply(
            data, segments, num_segments, ignore_index, empty_value, return_argmax, out
        )

    def vjp(
        self,
        data: ArrayLike,
        segments: ArrayLike | Segments,
        g: ArrayLike,
        *,
        num_segments: int | ArrayLike | None = None,
        ignore_index: int | None = None,
        empty_value: float = -np.inf,
        return_argmax: bool = False,
        out: FloatArray | None = None,
    ) -> FloatArray:
        """Pull a cotangent back to the rows that are the largest, the first ones at ties.

        Parameters
        ----------
        data, segments, num_segments, ignore_index, empty_value, return_argmax
            As in the call; the last two change nothing.
        g : array_like
            Cotangent of the maxima, of their shape; cast to the dtype of `data`.
        out : ndarray, optional
            Where to put the result.

        Returns
        -------
        ndarray
            Shape and dtype of `data`.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.segment_max.vjp(np.array([3.0, 1.0, 3.0]), [0, 1, 0], np.array([5.0, 7.0]))
        array([5., 7., 0.])
        """
        return self._pull(data, g, segments, num_segments, ignore_index, empty_value, out)

    def jvp(
        self,
        data: ArrayLike,
        segments: ArrayLike | Segments,
        v: ArrayLike,
        *,
        num_segments: int | ArrayLike | None = None,
        ignore_index: int | None = None,
        empty_value: float = -np.inf,
        return_argmax: bool = False,
        out: FloatArray | None = None,
    ) -> FloatArray:
        """Push a tangent forward: that of the largest rows; 0 for an empty segment.

        Parameters
        ----------
        data, segments, num_segments, ignore_index, empty_value, return_argmax, out
            As in the call.
        v : array_like
            Tangent of `data`, of its shape; cast to its dtype.

        Returns
        -------
        ndarray
            Shape and dtype of the maxima.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> v = np.array([1.0, 2.0, 4.0])
        >>> fg.segment_max.jvp(np.array([3.0, 1.0, 3.0]), [0, 1, 0], v)
        array([1., 2.])
        """
        return self._push(data, v, segments, num_segments, ignore_index, empty_value, out)


class SegmentMin(_Extreme):
    r"""Smallest row of every segment, column by column.

    .. math:: y_k = \min_{i: s_i = k} x_i

    Parameters
    ----------
    data, segments, num_segments, ignore_index, return_argmax, out
        As for `segment_max`; the rows returned are those of the smallest.
    empty_value : float, default inf
        Result of a segment without rows.

    Returns
    -------
    ndarray, shape (K, ...) or (B, K, ...)
        In the dtype of `data`; `out` if that was given.
    argmin : ndarray of int64, of the same shape
        Only if `return_argmax`: the row in the item, the first one at ties, -1 in an empty segment.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for `segment_sum`.

    See Also
    --------
    segment_max, Segments

    Notes
    -----
    NaN is smaller than anything, as for `numpy.min`; it stays in its segment and column.

    Derivatives: ``vjp(data, segments, g)`` and ``jvp(data, segments, v)``, as for `segment_max`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> fg.segment_min(np.array([1.0, 2.0, 4.0]), [2, 0, 2])
    array([ 2., inf,  1.])
    """

    _builtin_name = "segment_min"
    _least = True

    def __call__(
        self,
        data: ArrayLike,
        segments: ArrayLike | Segments,
        *,
        num_segments: int | ArrayLike | None = None,
        ignore_index: int | None = None,
        empty_value: float = np.inf,
        return_argmax: bool = False,
        out: FloatArray | None = None,
    ) -> Any:
        return self._apply(
            data, segments, num_segments, ignore_index, empty_value, return_argmax, out
        )

    def vjp(
        self,
        data: ArrayLike,
        segments: ArrayLike | Segments,
        g: ArrayLike,
        *,
        num_segments: int | ArrayLike | None = None,
        ignore_index: int | None = None,
        empty_value: float = np.inf,
        return_argmax: bool = False,
        out: FloatArray | None = None,
    ) -> FloatArray:
        """Pull a cotangent back to the rows that are the smallest, the first ones at ties.

        Parameters and result are those of ``segment_max.vjp``.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.segment_min.vjp(np.array([3.0, 1.0, 3.0]), [0, 1, 0], np.array([5.0, 7.0]))
        array([5., 7., 0.])
        """
        return self._pull(data, g, segments, num_segments, ignore_index, empty_value, out)

    def jvp(
        self,
        data: ArrayLike,
        segments: ArrayLike | Segments,
        v: ArrayLike,
        *,
        num_segments: int | ArrayLike | None = None,
        ignore_index: int | None = None,
        empty_value: float = np.inf,
        return_argmax: bool = False,
        out: FloatArray | None = None,
    ) -> FloatArray:
        """Push a tangent forward: that of the smallest rows; 0 for an empty segment.

        Parameters and result are those of ``segment_max.jvp``.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> v = np.array([1.0, 2.0, 4.0])
        >>> fg.segment_min.jvp(np.array([3.0, 1.0, 3.0]), [0, 1, 0], v)
        array([1., 2.])
        """
        return self._push(data, v, segments, num_segments, ignore_index, empty_value, out)


def _series(
    kernel: str,
    rows: _Rows,
    x: Any,
    g: Any = None,
    out: Any = None,
    value: Any = None,
    alpha: Any = None,
    empty: float = 0.0,
) -> None:
    """A kernel of softmax over the rows of every segment; `empty` is the value of one without."""
    plan = rows.plan
    # Made first: they make the offsets too, and raise for a bad id.
    order = None if plan._in_order else plan.order
    if value is not None:
        value[...] = empty
    _softmax.series(
        kernel,
        rows.flat(_arrays.cast(x, rows.computed)),
        None if g is None else rows.flat(_arrays.cast(g, rows.computed)),
        plan.offsets,
        order,
        None if out is None else rows.flat(out),
        None if value is None else rows.table(value),
        None if alpha is None else np.ascontiguousarray(rows.table(alpha)),
    )


class _Normalized(Map):
    """What segment_softmax and segment_log_softmax share."""

    _gone: float
    """Result for a row of no segment."""

    def __init__(self) -> None:
        self.__name__ = self._builtin_name

    def _apply(
        self, data: ArrayLike, segments: Any, num_segments: Any, ignore_index: int | None, out: Any
    ) -> FloatArray:
        rows = _Rows(data, _plan(segments, num_segments, ignore_index))
        result = rows.result(out, rows.whole.shape, data=rows.whole)
        if rows.plan._ignored is not None:
            result.array[...] = self._gone
        _series(self._builtin_name[len("segment_") :], rows, rows.whole, out=result.array)
        return result.give()

    @staticmethod
    def _derive(
        kernel: str,
        data: ArrayLike,
        vector: tuple[str, ArrayLike],
        segments: Any,
        num_segments: Any,
        ignore_index: int | None,
        y: ArrayLike | None,
        out: Any,
    ) -> FloatArray:
        rows = _Rows(data, _plan(segments, num_segments, ignore_index))
        name, given = vector
        v = _arrays.as_cotangent(given, rows.whole.shape, rows.dtype, name)
        p: Any = None
        if y is not None:
            p = _arrays.as_cotangent(y, rows.whole.shape, rows.dtype, "y")
        result = rows.result(out, rows.whole.shape, data=rows.whole, y=p, **{name: v})
        if p is None:
            p = np.empty(rows.whole.shape, rows.computed)
            _series("softmax", rows, rows.whole, out=p)
        if rows.plan._ignored is not None:
            result.array[...] = 0
        _series(kernel, rows, p, v, out=result.array)
        return result.give()


class SegmentSoftmax(_Normalized):
    r"""Softmax over the rows of every segment, column by column.

    .. math:: y_i = \exp(x_i) / \sum_{j: s_j = s_i} \exp(x_j)

    Parameters
    ----------
    data, segments, num_segments, ignore_index
        As for `segment_sum`.
    out : ndarray, optional
        Where to put the result, apart from `data`.

    Returns
    -------
    ndarray
        Shape and dtype of `data`; `out` if that was given.  0 for a row of no segment.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for `segment_sum`.

    See Also
    --------
    segment_log_softmax, segment_logsumexp, softmax, Segments

    Notes
    -----
    Accuracy and special values are those of `softmax` for each segment: within 2.5 ulp [1]_
    (3.5 where the processor has no fused multiply-add) whatever the offset.  The bits of a segment
    do not depend on the others nor on threads.

    Derivatives: ``vjp(data, segments, g)`` and ``jvp(data, segments, v)``.  Half precision is
    converted to float32 as a whole.

    References
    ----------
    .. [1] P. Blanchard, D. J. Higham and N. J. Higham, "Accurately computing the log-sum-exp and
       softmax functions", IMA J. Numer. Anal. 41(4), 2021, doi:10.1093/imanum/draa038.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> fg.segment_softmax(np.array([0.0, 5.0, np.log(3.0)]), [1, 0, 1])
    array([0.25, 1.  , 0.75])
    """

    _builtin_name = "segment_softmax"
    _gone = 0.0

    def __call__(
        self,
        data: ArrayLike,
        segments: ArrayLike | Segments,
        *,
        num_segments: int | ArrayLike | None = None,
        ignore_index: int | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray:
        return self._apply(data, segments, num_segments, ignore_index, out)

    def vjp(
        self,
        data: ArrayLike,
        segments: ArrayLike | Segments,
        g: ArrayLike,
        *,
        num_segments: int | ArrayLike | None = None,
        ignore_index: int | None = None,
        y: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray:
        r"""Pull a cotangent back: :math:`y \circ (g - \langle y, g\rangle)` in every segment.

        Parameters
        ----------
        data, segments, num_segments, ignore_index
            As in the call.
        g : array_like
            Cotangent of the result, of the shape of `data`; cast to its dtype.
        y : array_like, optional
            The result of the call for these arguments, to save computing it again.
        out : ndarray, optional
            Where to put the result, apart from every input.

        Returns
        -------
        ndarray
            Shape and dtype of `data`; 0 for a row of no segment.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.segment_softmax.vjp(np.zeros(3), [0, 1, 0], np.array([1.0, 1.0, 0.0]))
        array([ 0.25,  0.  , -0.25])
        """
        return self._derive(
            "pull_softmax", data, ("g", g), segments, num_segments, ignore_index, y, out
        )

    def jvp(
        self,
        data: ArrayLike,
        segments: ArrayLike | Segments,
        v: ArrayLike,
        *,
        num_segments: int | ArrayLike | None = None,
        ignore_index: int | None = None,
        y: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray:
        r"""Push a tangent forward: :math:`y \circ (v - \langle y, v\rangle)` in every segment.

        The Jacobian is symmetric, so this is `vjp` with a tangent of `data`; parameters and result
        are the same.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.segment_softmax.jvp(np.zeros(3), [0, 1, 0], np.array([1.0, 1.0, 0.0]))
        array([ 0.25,  0.  , -0.25])
        """
        return self._derive(
            "pull_softmax", data, ("v", v), segments, num_segments, ignore_index, y, out
        )


class SegmentLogSoftmax(_Normalized):
    r"""Logarithm of the softmax over the rows of every segment.

    .. math:: y_i = x_i - \log \sum_{j: s_j = s_i} \exp(x_j)

    Parameters
    ----------
    data, segments, num_segments, ignore_index, out
        As for `segment_softmax`.

    Returns
    -------
    ndarray
        Shape and dtype of `data`; `out` if that was given.  -inf for a row of no segment.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for `segment_sum`.

    See Also
    --------
    segment_softmax, segment_logsumexp, log_softmax

    Notes
    -----
    Accuracy and special values are those of `log_softmax` for each segment: full relative accuracy
    even at the winner of a confident one.

    Derivatives: ``vjp(data, segments, g)`` and ``jvp(data, segments, v)``.

    References
    ----------
    .. [1] P. Blanchard, D. J. Higham and N. J. Higham, "Accurately computing the log-sum-exp and
       softmax functions", IMA J. Numer. Anal. 41(4), 2021, doi:10.1093/imanum/draa038.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> fg.segment_log_softmax(np.array([0.0, 5.0, -40.0]), [1, 0, 1])
    array([-4.24835426e-18,  0.00000000e+00, -4.00000000e+01])
    """

    _builtin_name = "segment_log_softmax"
    _gone = -np.inf

    def __call__(
        self,
        data: ArrayLike,
        segments: ArrayLike | Segments,
        *,
        num_segments: int | ArrayLike | None = None,
        ignore_index: int | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray:
        return self._apply(data, segments, num_segments, ignore_index, out)

    def vjp(
        self,
        data: ArrayLike,
        segments: ArrayLike | Segments,
        g: ArrayLike,
        *,
        num_segments: int | ArrayLike | None = None,
        ignore_index: int | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray:
        r"""Pull a cotangent back: :math:`g - p \sum g` in every segment, `p` its softmax.

        Parameters and result are those of ``segment_softmax.vjp``.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.segment_log_softmax.vjp(np.zeros(3), [0, 1, 0], np.array([1.0, 1.0, 0.0]))
        array([ 0.5,  0. , -0.5])
        """
        return self._derive(
            "pull_log_softmax", data, ("g", g), segments, num_segments, ignore_index, None, out
        )

    def jvp(
        self,
        data: ArrayLike,
        segments: ArrayLike | Segments,
        v: ArrayLike,
        *,
        num_segments: int | ArrayLike | None = None,
        ignore_index: int | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray:
        r"""Push a tangent forward: :math:`v - \langle p, v\rangle` in every segment.

        Parameters and result are those of ``segment_softmax.jvp``.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.segment_log_softmax.jvp(np.zeros(3), [0, 1, 0], np.array([1.0, 1.0, 0.0]))
        array([ 0.5,  0. , -0.5])
        """
        return self._derive(
            "push_log_softmax", data, ("v", v), segments, num_segments, ignore_index, None, out
        )


class SegmentLogSumExp(Map):
    r"""Logarithm of the sum of exponentials of the rows of every segment.

    .. math:: y_k = \log \sum_{i: s_i = k} \exp(x_i)

    Parameters
    ----------
    data, segments, num_segments, ignore_index, out
        As for `segment_sum`.

    Returns
    -------
    ndarray, shape (K, ...) or (B, K, ...)
        In the dtype of `data`; `out` if that was given.  -inf for a segment without rows.

    Raises
    ------
    TypeError, ValueError, IndexError
        As for `segment_sum`.

    See Also
    --------
    segment_softmax, segment_max, logsumexp

    Notes
    -----
    Accuracy and special values are those of `logsumexp` for each segment.

    Derivatives: ``vjp(data, segments, g)`` and ``jvp(data, segments, v)``.

    References
    ----------
    .. [1] P. Blanchard, D. J. Higham and N. J. Higham, "Accurately computing the log-sum-exp and
       softmax functions", IMA J. Numer. Anal. 41(4), 2021, doi:10.1093/imanum/draa038.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> fg.segment_logsumexp(np.array([0.0, 5.0, -40.0]), [2, 0, 2])
    array([5.00000000e+00,           -inf, 4.24835426e-18])
    """

    _builtin_name = "segment_logsumexp"

    def __init__(self) -> None:
        self.__name__ = self._builtin_name

    def __call__(
        self,
        data: ArrayLike,
        segments: ArrayLike | Segments,
        *,
        num_segments: int | ArrayLike | None = None,
        ignore_index: int | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray:
        rows = _Rows(data, _plan(segments, num_segments, ignore_index))
        result = rows.result(out, rows.reduced, data=rows.whole)
        _series("logsumexp", rows, rows.whole, value=result.array, empty=-np.inf)
        return result.give()

    def vjp(
        self,
        data: ArrayLike,
        segments: ArrayLike | Segments,
        g: ArrayLike,
        *,
        num_segments: int | ArrayLike | None = None,
        ignore_index: int | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray:
        r"""Pull a cotangent back: :math:`g_{s_i} p_i`, `p` the softmax of every segment.

        Parameters
        ----------
        data, segments, num_segments, ignore_index
            As in the call.
        g : array_like
            Cotangent of the result, of its shape; cast to its dtype.
        out : ndarray, optional
            Where to put the result, apart from every input.

        Returns
        -------
        ndarray
            Shape and dtype of `data`; 0 for a row of no segment.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.segment_logsumexp.vjp(np.zeros(3), [0, 1, 0], np.array([1.0, 3.0]))
        array([0.5, 3. , 0.5])
        """
        rows = _Rows(data, _plan(segments, num_segments, ignore_index))
        cotangent = _arrays.as_cotangent(g, rows.reduced, rows.dtype, "g")
        result = rows.result(out, rows.whole.shape, data=rows.whole, g=cotangent)
        if rows.plan._ignored is not None:
            result.array[...] = 0
        alpha = _arrays.cast(cotangent, rows.computed)
        _series("softmax", rows, rows.whole, out=result.array, alpha=alpha)
        return result.give()

    def jvp(
        self,
        data: ArrayLike,
        segments: ArrayLike | Segments,
        v: ArrayLike,
        *,
        num_segments: int | ArrayLike | None = None,
        ignore_index: int | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray:
        r"""Push a tangent forward: :math:`\sum_{i: s_i = k} p_i v_i`; 0 for an empty segment.

        Parameters
        ----------
        data, segments, num_segments, ignore_index, out
            As in the call.
        v : array_like
            Tangent of `data`, of its shape; cast to its dtype.

        Returns
        -------
        ndarray
            Shape and dtype of the result.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.segment_logsumexp.jvp(np.zeros(3), [0, 1, 0], np.array([1.0, 3.0, 2.0]))
        array([1.5, 3. ])
        """
        rows = _Rows(data, _plan(segments, num_segments, ignore_index))
        tangent = _arrays.as_cotangent(v, rows.whole.shape, rows.dtype, "v")
        result = rows.result(out, rows.reduced, data=rows.whole, v=tangent)
        p = np.empty(rows.whole.shape, rows.computed)
        _series("softmax", rows, rows.whole, out=p)
        _series("push_logsumexp", rows, p, tangent, value=result.array)
        return result.give()


segment_sum = SegmentSum()
segment_mean = SegmentMean()
segment_max = SegmentMax()
segment_min = SegmentMin()
segment_logsumexp = SegmentLogSumExp()
segment_softmax = SegmentSoftmax()
segment_log_softmax = SegmentLogSoftmax()
