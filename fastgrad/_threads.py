"""How many threads a large call may use, and what happens after a fork."""

from __future__ import annotations

import contextlib
import operator
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastgrad._kernels import rows as _rows

if TYPE_CHECKING or sys.version_info >= (3, 12):
    from functools import cached_property as cached_property
else:

    class cached_property:
        """That of Python 3.12.

        The one of 3.11 computes under a lock that all instances share: threads wait for strangers,
        and a child that is forked meanwhile waits for ever.
        """

        def __init__(self, make):
            self._make, self.__doc__ = make, make.__doc__

        def __set_name__(self, owner, name):
            self._name = name

        def __get__(self, instance, owner=None):
            if instance is None:
                return self
            return vars(instance).setdefault(self._name, self._make(instance))


def set_num_threads(n: int) -> None:
    """Set the number of threads that a large call may use.

    Parameters
    ----------
    n : int
        At least 1.  A call uses at most this many, at most what OpenMP allows (``OMP_NUM_THREADS``,
        threadpoolctl), and one for small work.  Results do not depend on it, to the last bit.

    Raises
    ------
    TypeError, ValueError
        If `n` is not an integer, or less than 1.

    See Also
    --------
    num_threads : the same for a `with` block.

    Notes
    -----
    The environment variable ``FASTGRAD_NUM_THREADS`` sets the number at import; the default is
    OpenMP's.  The setting is that of the process, not of the calling thread.

    Examples
    --------
    >>> import fastgrad as fg
    >>> fg.set_num_threads(1)
    >>> fg.get_num_threads()
    1
    """
    _rows.set_threads(_checked(n, "n"))


def get_num_threads() -> int:
    """Number of threads that a large call would use now.

    Returns
    -------
    int
        The smaller of our setting and what OpenMP allows this thread.

    Examples
    --------
    >>> import fastgrad as fg
    >>> fg.get_num_threads() >= 1
    True
    """
    return _rows.get_threads()


@contextlib.contextmanager
def num_threads(n: int) -> Iterator[None]:
    """Within a `with` block, use at most `n` threads.

    Parameters
    ----------
    n : int
        As for `set_num_threads`.

    Examples
    --------
    >>> import fastgrad as fg
    >>> with fg.num_threads(1):
    ...     fg.get_num_threads()
    1
    """
    before = _rows.get_setting()
    set_num_threads(n)
    try:
        yield
    finally:
        _rows.set_threads(before)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within a `with` block, the calling thread computes by itself.

    For small kernels between products: threads of OpenMP spin for a while after a kernel, those of
    BLAS after a product, and each would wait for the other's, some 5 to 10 ms every time.  This
    limit is the calling thread's own; that of `num_threads` would hold for the whole process.
    """
    before = _rows.limit_threads(1)
    try:
        yield
    finally:
        _rows.limit_threads(before)


def _checked(n: int, what: str) -> int:
    try:
        count = operator.index(n)
    except TypeError:
        raise TypeError(f"{what} must be an int; got {n!r}.") from None
    if not 1 <= count < 2**31:
        raise ValueError(f"{what} must be at least 1, and less than 2**31; got {count}.")
    return count


def _from_environment() -> None:
    text = os.environ.get("FASTGRAD_NUM_THREADS", "").strip()
    if not text:
        return
    try:
        _rows.set_threads(_checked(int(text), "FASTGRAD_NUM_THREADS"))
    except ValueError:
        raise ImportError(
            "FASTGRAD_NUM_THREADS must be a whole number, at least 1 and less than 2**31; it is "
            f"{text!r}."
        ) from None


_from_environment()
if hasattr(os, "register_at_fork"):
    # GNU OpenMP's worker threads do not exist in a forked child, and a parallel region there would
    # wait for them for ever.
    os.register_at_fork(after_in_child=_rows.forbid_threads)
