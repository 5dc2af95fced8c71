# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: freethreading_compatible=True
"""Sorting of rows by segment.

Ids are (B, N), C-contiguous, of any integer dtype; they are widened to int64 block by block, -1 where ignored.
"""
cimport numpy as cnp
from libc.stdint cimport int64_t, uint64_t

from fastgrad._kernels.isa cimport active
from fastgrad._kernels.rows cimport UNSIGNED, integer_type, widen


cdef extern from "platform.h" nogil:
    void FG_PREFETCH(const void *)

cnp.import_array()

cdef enum:
    CHUNK = 1024      # rows widened at once
    AHEAD = 24        # rows between a prefetch and its use
    COPIES = 4        # of a small table of counters, so that neighbours of one segment need not wait
    SMALL = 1 << 10   # segments of such a table

cdef struct Ids:
    const char *data
    int type
    Py_ssize_t size
    bint ignoring
    int64_t ignore
    bint direct       # int64, none ignored: read in place


cdef Ids _ids(cnp.ndarray ids, ignore_index):
    cdef Ids a
    a.data = <const char *>cnp.PyArray_DATA(ids)
    a.type = integer_type(ids)
    a.size = cnp.PyArray_ITEMSIZE(ids)
    a.ignoring = ignore_index is not None
    a.ignore = ignore_index if a.ignoring else 0
    if a.type == UNSIGNED + 8 and a.ignore == 0x7fffffffffffffff:
        a.ignoring = False  # widening makes this of every id beyond int64, and those are errors
    a.direct = a.type == 8 and not a.ignoring
    return a


cdef const int64_t *_codes(
    const Ids *ids, Py_ssize_t begin, Py_ssize_t n, int64_t *chunk
) noexcept nogil:
    """Ids [begin, begin + n): where they are, or in `chunk`, -1 for those ignored."""
    cdef Py_ssize_t i
    if ids.direct:
        return <const int64_t *>ids.data + begin
    widen(ids.data + begin * ids.size, ids.size, n, ids.type, chunk)
    if ids.ignoring:
        for i in range(n):
            if chunk[i] == ids.ignore:
                chunk[i] = -1
    return chunk


def scan(cnp.ndarray ids, ignore_index, const int64_t[::1] classes):
    """(flat position of the first id outside [0, classes of its item) or -1, largest id or -1).

    Ids that are ignored do not count.  Without `classes` any id from 0 on will do.
    """
    cdef Ids a = _ids(ids, ignore_index)
    cdef int64_t chunk[CHUNK]
    cdef const int64_t *at
    cdef Py_ssize_t items = cnp.PyArray_DIM(ids, 0), rows = cnp.PyArray_DIM(ids, 1), b, i, k, n
    cdef Py_ssize_t bad = -1
    cdef int64_t most = -1, limit
    # The id that is ignored becomes -1, and so must not be mistaken for one that is wrong.
    with nogil:
        for b in range(items):
            limit = classes[b] if classes is not None else 0x7fffffffffffffff
            i = 0
            while i < rows and bad < 0:
                n = CHUNK if rows - i > CHUNK else rows - i
                if a.ignoring:
                    widen(a.data + (b * rows + i) * a.size, a.size, n, a.type, chunk)
                    for k in range(n):
                        if chunk[k] == a.ignore:
                            continue
                        if <uint64_t>chunk[k] >= <uint64_t>limit:
                            bad = b * rows + i + k
                            break
                        if chunk[k] > most:
                            most = chunk[k]
                else:
                    at = _codes(&a, b * rows + i, n, chunk)
                    if active().f64.count_outside(at, n, limit):
                        k = 0
                        while <uint64_t>at[k] < <uint64_t>limit:
                            k += 1
                        bad = b * rows + i + k
                    elif classes is None:
                        for k in range(n):
                            if at[k] > most:
                                most = at[k]
                i += n
            if bad >= 0:
                break
    return bad, most


def count(cnp.ndarray ids, ignore_index, int64_t[:, ::1] counts):
    """Rows of every segment, into `counts` (B, K), which holds zeros; ids are in range."""
    cdef Ids a = _ids(ids, ignore_index)
    cdef int64_t chunk[CHUNK]
    cdef int64_t table[(COPIES - 1) * SMALL]
    cdef const int64_t *at
    cdef int64_t *c0
    cdef int64_t *c1
    cdef int64_t *c2
    cdef int64_t *c3
    cdef Py_ssize_t items = cnp.PyArray_DIM(ids, 0), rows = cnp.PyArray_DIM(ids, 1), b, i, k, n
    cdef Py_ssize_t segments = counts.shape[1]
    if rows == 0 or segments == 0:
        return
    with nogil:
        for b in range(items):
            c0 = c1 = c2 = c3 = &counts[b, 0]
            if segments <= SMALL:
                c1, c2, c3 = table, table + SMALL, table + 2 * SMALL
                for k in range(segments):
                    c1[k] = c2[k] = c3[k] = 0
            i = 0
            while i < rows:
                n = CHUNK if rows - i > CHUNK else rows - i
                at = _codes(&a, b * rows + i, n, chunk)
                k = 0
                if a.ignoring:
                    for k in range(n):
                        if at[k] >= 0:
                            c0[at[k]] += 1
                else:
                    while k + 4 <= n:
                        c0[at[k]] += 1
                        c1[at[k + 1]] += 1
                        c2[at[k + 2]] += 1
                        c3[at[k + 3]] += 1
                        k += 4
                    while k < n:
                        c0[at[k]] += 1
                        k += 1
                i += n
            if segments <= SMALL:
                for k in range(segments):
                    c0[k] += c1[k] + c2[k] + c3[k]


def sort(cnp.ndarray ids, ignore_index, int64_t[::1] cursor, int64_t[::1] order):
    """A stable counting sort: positions of the rows by segment.

    `cursor` holds for every segment where it begins in `order`; and where it ends, afterwards.
    """
    cdef Ids a = _ids(ids, ignore_index)
    cdef int64_t chunk[CHUNK]
    cdef const int64_t *at
    cdef int64_t *next
    cdef int64_t *to
    cdef Py_ssize_t items = cnp.PyArray_DIM(ids, 0), rows = cnp.PyArray_DIM(ids, 1), b, i, k, n
    cdef Py_ssize_t segments, from_row
    if order.shape[0] == 0:
        return
    segments = cursor.shape[0] // items
    to = &order[0]
    with nogil:
        for b in range(items):
            next = &cursor[b * segments]
            i = 0
            while i < rows:
                n = CHUNK if rows - i > CHUNK else rows - i
                from_row = b * rows + i
                at = _codes(&a, from_row, n, chunk)
                for k in range(n):
                    if at[k] >= 0:
                        to[next[at[k]]] = from_row + k
                        next[at[k]] += 1
                i += n
