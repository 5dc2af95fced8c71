# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: freethreading_compatible=True
"""The limit of this machine: single passes over memory, with nothing computed.

What every other kernel is measured against in `benchmarks/`.  Arrays of any dtype, each one
contiguous piece of memory; large ones are cut among as many threads as any large call may use.
"""
from cython.parallel cimport prange
from libc.stdint cimport uint8_t

cimport numpy as cnp

from fastgrad._kernels.isa cimport active

from fastgrad._kernels.rows import get_threads

cnp.import_array()

cdef extern from "bandwidth.h" nogil:
    ctypedef uint8_t (*fg_pass)(uint8_t *, const uint8_t *, Py_ssize_t) noexcept nogil
    ctypedef struct fg_passes:
        fg_pass copy
        fg_pass stream
        fg_pass stream_pages
        fg_pass read
    const fg_passes *fg_passes_of(const char *isa)

cdef enum:
    BYTES_PER_THREAD = 1 << 16  # less does not pay a second thread
    LINE = 64


cdef uint8_t _run(fg_pass one, uint8_t *to, const uint8_t *source, Py_ssize_t n, int threads):
    cdef Py_ssize_t part, begin
    cdef uint8_t result = 0
    cdef int t
    threads = <int>max(1, min(threads, n // BYTES_PER_THREAD))
    if threads == 1:
        with nogil:
            result = one(to, source, n)
        return result
    part = ((n + threads - 1) // threads + LINE - 1) // LINE * LINE
    for t in prange(threads, num_threads=threads, schedule="static", chunksize=1, nogil=True):
        begin = min(t * part, n)
        result ^= one(
            to + begin if to != NULL else NULL, source + begin, min(part, n - begin)
        )
    return result


cdef uint8_t *_memory(cnp.ndarray a, str name) except NULL:
    if not cnp.PyArray_IS_C_CONTIGUOUS(a) and not cnp.PyArray_IS_F_CONTIGUOUS(a):
        raise ValueError(f"{name} must be contiguous; its strides are {(<object>a).strides}")
    return <uint8_t *>cnp.PyArray_DATA(a)


cdef int _move(fg_pass one, cnp.ndarray dst, cnp.ndarray src) except -1:
    cdef uint8_t *to = _memory(dst, "dst")
    cdef uint8_t *source = _memory(src, "src")
    cdef Py_ssize_t n = cnp.PyArray_NBYTES(src)
    if cnp.PyArray_NBYTES(dst) != n:
        raise ValueError(f"dst must have the {n} bytes of src; it has {cnp.PyArray_NBYTES(dst)}")
    if not cnp.PyArray_ISWRITEABLE(dst):
        raise ValueError("dst must be writeable")
    if to < source + n and source < to + n:
        raise ValueError("dst and src must not overlap")
    _run(one, to, source, n, get_threads())
    return 0


def copy(cnp.ndarray dst not None, cnp.ndarray src not None):
    """The bytes of src to dst, with ordinary stores."""
    _move(fg_passes_of(active().name).copy, dst, src)


def stream(cnp.ndarray dst not None, cnp.ndarray src not None):
    """The bytes of src to dst, with stores past the caches where the instruction set has them."""
    _move(fg_passes_of(active().name).stream, dst, src)


def stream_pages(cnp.ndarray dst not None, cnp.ndarray src not None):
    """The same, four pages in turns: faster than in order on some processors, slower on others."""
    _move(fg_passes_of(active().name).stream_pages, dst, src)


def read(cnp.ndarray src not None):
    """Exclusive or of the bytes of src, each read once."""
    return _run(
        fg_passes_of(active().name).read,
        NULL, _memory(src, "src"), cnp.PyArray_NBYTES(src), get_threads(),
    )
