# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: freethreading_compatible=True
"""Which instruction set is active.

The C tables are linked into this extension alone and the others cimport `active`, so a process has
one active instruction set.  A kernel call reads the pointer once: a switch never tears a running
call.
"""
import os

cimport numpy as cnp

cnp.import_array()

cdef const fg_table *_tables[3]
cdef int _count = fg_available(_tables)
cdef const fg_table *_active = _tables[_count - 1]


cdef const fg_table *active() noexcept nogil:
    return _active


def available_names():
    """Instruction sets of this machine and build, narrowest first."""
    return tuple(_tables[i].name.decode() for i in range(_count))


def active_name():
    return _active.name.decode()


def _use(name):
    """Switch the active table; for tests and benchmarks.  Returns the name that was active."""
    global _active
    before = active_name()
    for i in range(_count):
        if _tables[i].name.decode() == name:
            _active = _tables[i]
            return before
    raise ValueError(
        f"no instruction set {name!r}: this machine and build have {', '.join(available_names())}"
    )


def _elementwise(name, cnp.ndarray x, cnp.ndarray out):
    """exp2, log or log1p of whole 64-byte vectors; for the accuracy tests."""
    cdef const fg_precision *p = (
        _active.f32 if cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT32 else _active.f64
    )
    cdef fg_elementwise f = p.exp2 if name == "exp2" else p.log if name == "log" else p.log1p
    f(cnp.PyArray_DATA(x), cnp.PyArray_DATA(out), cnp.PyArray_SIZE(x))


def _convert(cnp.ndarray x, cnp.ndarray out, bint stream):
    """float16 or bfloat16 to float32 or back, both one-dimensional; for the tests.

    The float32 array has room for 16 more elements than the other, and is contiguous.
    """
    cdef cnp.ndarray half = out if cnp.PyArray_ITEMSIZE(out) == 2 else x
    cdef int kind = FG_FLOAT16 if cnp.PyArray_TYPE(half) == cnp.NPY_FLOAT16 else FG_BFLOAT16
    cdef Py_ssize_t n = cnp.PyArray_SIZE(half), step = cnp.PyArray_STRIDE(half, 0)
    if half is x:
        _active.f32.widen(
            kind, <const char *>cnp.PyArray_DATA(x), 0, step, 1, n,
            <float *>cnp.PyArray_DATA(out), 0,
        )
    else:
        _active.f32.narrow(
            kind, <const float *>cnp.PyArray_DATA(x), 0, <char *>cnp.PyArray_DATA(out), 0, step, 1,
            n, stream,
        )


_forced = os.environ.get("FASTGRAD_ISA", "")
if _forced:
    try:
        _use(_forced)
    except ValueError as error:
        raise ImportError(f"FASTGRAD_ISA={_forced}: {error}") from None
