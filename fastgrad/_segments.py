"""Segments, the plan of a ragged reduction, and the reductions with their derivatives."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastgrad import _arrays
from fastgrad._arrays import IntArray
from fastgrad._kernels import segments as _kernels


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
    _ids: IntArray | None
    """(B, N), C-contiguous, in range or equal to `_ignored`; None if segments are consecutive."""
    _ignored: int | None
    _bounds: NDArray[np.int64]
    """The offsets of consecutive segments."""

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
        given = _arrays.as_ids(ids, "ids")
        kept = given.copy() if np.may_share_memory(given, ids) else given
        return cls._of(kept, num_segments, ignore_index, "ids")

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
        self = object.__new__(cls)
        self.shape, self.num_segments = (int(offsets[-1]),), len(offsets) - 1
        self._ids, self._ignored = None, None
        self._bounds = _read_only(offsets)
        return self

    @classmethod
    def _of(
        cls,
        ids: IntArray,
        num_segments: int | ArrayLike | None,
        ignore_index: int | None,
        name: str,
    ) -> Segments:
        """From checked ids, which are not copied."""
        self = object.__new__(cls)
        self.shape = ids.shape
        self._ids = ids.reshape((1, *ids.shape)[-2:])
        self._ignored = _arrays.check_ignore_index(ignore_index)
        self.num_segments = _arrays.check_ids(ids, num_segments, self._ignored, name)
        return self

    @property
    def _items(self) -> int:
        return self.shape[0] if len(self.shape) == 2 else 1

    @functools.cached_property
    def _table(self) -> NDArray[np.int64]:
        """Counts as (B, K)."""
        if self._ids is None:
            return _read_only(np.diff(self._bounds)[None])
        counts = np.zeros((self._items, self.num_segments), np.int64)
        _kernels.count(self._ids, self._ignored, counts)
        return _read_only(counts)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Rows of every segment."""
        return self._table if len(self.shape) == 2 else self._table[0]

    @functools.cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Where every segment begins in `order`, and at last where the last one ends."""
        if self._ids is None:
            return self._bounds
        offsets = np.zeros(self._table.size + 1, np.int64)
        np.cumsum(self._table, out=offsets[1:])
        return _read_only(offsets)

    @functools.cached_property
    def order(self) -> NDArray[np.int64]:
        """Positions of the rows, sorted by segment."""
        if self._ids is None:
            return _read_only(np.arange(self.shape[0], dtype=np.int64))
        order = np.empty(int(self.offsets[-1]), np.int64)
        _kernels.sort(self._ids, self._ignored, self.offsets[:-1].copy(), order)
        return _read_only(order)

    def __repr__(self) -> str:
        return f"Segments(shape={self.shape}, num_segments={self.num_segments})"


def _read_only(a: NDArray[np.int64]) -> NDArray[np.int64]:
    a.flags.writeable = False
    return a
