# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: freethreading_compatible=True
"""Cross-entropy with class-index targets, over arrays that Python has checked, and the scan of
targets."""
cimport numpy as cnp
from libc.stdint cimport int64_t

from fastgrad._kernels.isa cimport FG_CROSS_ENTROPY, FG_CROSS_ENTROPY_GRAD, active
from fastgrad._kernels.rows cimport (
    ALPHA,
    OUT,
    TARGET,
    UNSIGNED,
    VALUE,
    Plan,
    integer_type,
    plan_begin,
    plan_full,
    plan_rowwise,
    plan_run,
    widen,
)

cnp.import_array()

cdef enum:
    CHUNK = 1024


cdef Py_ssize_t _scan_line(
    const char *p, Py_ssize_t step, Py_ssize_t n, int type, int64_t classes, bint ignoring,
    int64_t ignore, Py_ssize_t *kept,
) noexcept nogil:
    """Position of the first target outside [0, classes) that is not ignored, or -1."""
    cdef int64_t chunk[CHUNK]
    cdef const int64_t *at
    cdef Py_ssize_t i, k, m, dropped
    cdef bint direct = step == 8 and type == 8
    i = 0
    while i < n:
        m = n - i if n - i < CHUNK else CHUNK
        if direct:
            at = <const int64_t *>p + i
        else:
            widen(p + i * step, step, m, type, chunk)
            at = chunk
        dropped = 0
        if (ignoring and 0 <= ignore < classes) or active().f64.count_outside(at, m, classes):
            for k in range(m):
                if ignoring and at[k] == ignore:
                    dropped += 1
                elif at[k] < 0 or at[k] >= classes:
                    return i + k
        kept[0] += m - dropped
        i += m
    return -1


def scan(cnp.ndarray target, int64_t classes, ignore_index):
    """(flat C-order position of the first bad target or -1, number of rows that are kept)."""
    cdef Py_ssize_t kept = 0, bad, done = 0, n
    cdef bint ignoring = ignore_index is not None
    cdef int64_t ignore = ignore_index if ignoring else 0
    cdef int type = integer_type(target), ndim = cnp.PyArray_NDIM(target), d
    cdef Py_ssize_t index[64]
    cdef const char *p
    cdef const char *data = <const char *>cnp.PyArray_DATA(target)
    if type == UNSIGNED + 8 and ignore == 0x7fffffffffffffff:
        ignoring = False  # widening makes this of every target beyond int64, and those are errors
    if cnp.PyArray_IS_C_CONTIGUOUS(target):
        n = cnp.PyArray_SIZE(target)
        with nogil:
            bad = _scan_line(
                data, cnp.PyArray_ITEMSIZE(target), n, type, classes, ignoring, ignore, &kept
            )
        return bad, kept
    if cnp.PyArray_SIZE(target) == 0:
        return -1, 0
    n = cnp.PyArray_DIM(target, ndim - 1)
    for d in range(ndim):
        index[d] = 0
    while True:
        p = data
        for d in range(ndim - 1):
            p += index[d] * cnp.PyArray_STRIDE(target, d)
        bad = _scan_line(
            p, cnp.PyArray_STRIDE(target, ndim - 1), n, type, classes, ignoring, ignore, &kept
        )
        if bad >= 0:
            return done + bad, kept
        done += n
        d = ndim - 2
        while d >= 0:
            index[d] += 1
            if index[d] < cnp.PyArray_DIM(target, d):
                break
            index[d] = 0
            d -= 1
        if d < 0:
            return -1, kept


cdef object _run(
    cnp.ndarray logits, cnp.ndarray target, int axis, object value, object out, object alpha,
    double scale, object ignore_index, bint some_ignored, bint reduce,
):
    cdef Plan plan
    cdef int ndim = cnp.PyArray_NDIM(logits)
    plan_begin(&plan, logits, axis)
    plan_rowwise(&plan, TARGET, target, axis, ndim)
    if some_ignored:
        plan.ignore = ignore_index
    if value is not None:
        plan_rowwise(&plan, VALUE, value, axis, ndim)
    plan.sum_values = reduce
    if out is not None:
        plan_full(&plan, OUT, out, axis)
        plan.run.scale = scale
        if alpha is not None:
            plan_rowwise(&plan, ALPHA, alpha, axis, ndim)
    plan_run(&plan, FG_CROSS_ENTROPY if out is None else FG_CROSS_ENTROPY_GRAD)
    return plan.total[0] + plan.total[1]


def run(logits, target, axis, value, out, alpha, scale, ignore_index, kept, reduce):
    """Losses into `value`, or their sum as a float if `reduce`; gradient times alpha and scale into
    `out`.

    `kept` is what `scan` counted: with nothing ignored, int64 targets are read in place.
    """
    return _run(
        logits, target, axis, value, out, alpha, scale, ignore_index, kept < target.size, reduce
    )


def plain(logits, target, bint mean, bint with_grad):
    """(value, gradient or None) of the commonest call, or None if it is not one.

    It is one if logits (N, C) is C-contiguous float32 or float64, target (N,) contiguous int64 with
    every entry in [0, C), and N, C > 0.
    """
    cdef cnp.ndarray z, y, grad
    cdef int type
    cdef Py_ssize_t n
    cdef double total
    if not (cnp.PyArray_CheckExact(logits) and cnp.PyArray_CheckExact(target)):
        return None
    z = logits
    y = target
    type = cnp.PyArray_TYPE(z)
    if not (
        (type == cnp.NPY_FLOAT32 or type == cnp.NPY_FLOAT64)
        and cnp.PyArray_NDIM(z) == 2
        and cnp.PyArray_IS_C_CONTIGUOUS(z)
        and cnp.PyArray_ISBEHAVED_RO(z)
        and cnp.PyArray_NDIM(y) == 1
        and integer_type(y) == 8 and cnp.PyTypeNum_ISINTEGER(cnp.PyArray_TYPE(y))
        and cnp.PyArray_IS_C_CONTIGUOUS(y)
        and cnp.PyArray_ISBEHAVED_RO(y)
        and cnp.PyArray_DIM(y, 0) == cnp.PyArray_DIM(z, 0)
        and cnp.PyArray_SIZE(z) > 0
    ):
        return None
    n = cnp.PyArray_DIM(z, 0)
    if active().f64.count_outside(<int64_t *>cnp.PyArray_DATA(y), n, cnp.PyArray_DIM(z, 1)):
        return None
    grad = None
    if with_grad:
        grad = cnp.PyArray_EMPTY(2, cnp.PyArray_DIMS(z), type, 0)
    total = _run(z, y, 1, None, grad, None, 1.0 / n if mean else 1.0, None, False, True)
    return (total / n if mean else total), grad
