cimport numpy as cnp
from libc.stdint cimport int64_t

cdef enum:
    CHUNK = 512       # rows widened at once
    COPIES = 4        # of a small table of counters
    SMALL = 1 << 10   # segments of such a table

# Ids of rows as the caller has them.
cdef struct Ids:
    const char *data
    int type
    Py_ssize_t size
    bint ignoring
    int64_t ignore
    bint direct       # int64, none ignored: read in place

# The rows of every segment, counted.  A small table has copies, so that neighbours of one segment
# do not wait for each other.
cdef struct Tally:
    int64_t *counts
    Py_ssize_t segments
    int64_t *copy[COPIES]
    int64_t table[(COPIES - 1) * SMALL]

cdef Ids ids_of(cnp.ndarray ids, ignore_index)
cdef const int64_t *codes(
    const Ids *ids, Py_ssize_t begin, Py_ssize_t n, int64_t *chunk
) noexcept nogil
cdef void tally_start(Tally *t, int64_t *counts, Py_ssize_t segments) noexcept nogil
cdef void tally_add(Tally *t, const int64_t *at, Py_ssize_t n, bint ignoring) noexcept nogil
cdef void tally_end(Tally *t) noexcept nogil
