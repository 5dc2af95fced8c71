# cython: language_level=3
"""How a long call hears of a signal, so that Ctrl-C ends it.

The thread that called takes the GIL about every SLAB elements and looks at signals; the others see
what it found.  What a signal raises waits until the call has ended.
"""

cdef extern from "Python.h":
    int PyErr_CheckSignals()  # not `except`

cdef extern from "threads.h" nogil:
    int fg_thread()

cdef enum:
    SLAB = 1 << 22  # at the slowest some 50 ms

cdef struct Watch:
    bint ended        # by a signal
    Py_ssize_t left   # elements until the next look


cdef inline Watch watching() noexcept nogil:
    cdef Watch watch
    watch.ended = False
    watch.left = SLAB
    return watch


cdef inline bint signalled() noexcept with gil:
    return PyErr_CheckSignals() != 0


cdef inline bint ends(Watch *watch, Py_ssize_t elements) noexcept nogil:
    """Whether a signal ended this call; these elements are what comes next."""
    if not watch.ended and fg_thread() == 0:
        watch.left -= elements
        if watch.left < 0:
            watch.left = SLAB
            watch.ended = signalled()
    return watch.ended


cdef inline int raised(const Watch *watch) except -1:
    """Raise what the signal raised."""
    return -1 if watch.ended else 0
