# cython: language_level=3, cdivision=True
"""How the segments of a batch are shared out among threads."""
from libc.stdint cimport int64_t

from fastgrad._kernels.watch cimport SLAB

cdef enum:
    PIECES = 8  # of the segments, for every thread


cdef inline Py_ssize_t pieces_of(Py_ssize_t items, Py_ssize_t elements, int threads) noexcept:
    """Into how many pieces the segments of each item go: several for a thread, and a slab each."""
    cdef Py_ssize_t pieces = elements // SLAB + 1
    if threads > 1:
        pieces = max(pieces, <Py_ssize_t>(PIECES * threads))
    return (pieces + items - 1) // items


cdef inline Py_ssize_t piece(
    const int64_t *offsets, Py_ssize_t segments, Py_ssize_t k, Py_ssize_t pieces
) noexcept nogil:
    """The first segment of piece k: rows and segments weigh alike."""
    cdef int64_t all = offsets[segments] - offsets[0] + segments
    cdef int64_t goal = all // pieces * k + all % pieces * k // pieces
    cdef Py_ssize_t low = 0, high = segments, middle
    if k == pieces:
        return segments
    while low < high:
        middle = (low + high) // 2
        if offsets[middle] - offsets[0] + middle < goal:
            low = middle + 1
        else:
            high = middle
    return low
