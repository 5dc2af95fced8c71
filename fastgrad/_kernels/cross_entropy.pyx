# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: freethreading_compatible=True
"""Cross-entropy over arrays that Python has checked, and the scans of targets and weights."""
import numpy as np

cimport numpy as cnp
from libc.stdint cimport int64_t, uint16_t

from fastgrad._kernels.isa cimport (
    FG_CROSS_ENTROPY,
    FG_CROSS_ENTROPY_GRAD,
    FG_MASS,
    FG_MASS_GRAD,
    FG_MASS_HESS_DIAG,
    FG_MASS_HVP,
    FG_MASS_SOFT,
    FG_MASS_SOFT_GRAD,
    FG_MASS_SOFT_HESS_DIAG,
    FG_MASS_SOFT_HVP,
    FG_ROW_WEIGHT,
    active,
    fg_precision,
)
from fastgrad._kernels.rows cimport (
    G,
    OUT,
    SAMPLE,
    TARGET,
    UNSIGNED,
    UPSTREAM,
    V,
    VALUE,
    WEIGHT,
    WHERE,
    Plan,
    integer_type,
    plan_begin,
    plan_elements,
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


def first_unfit(cnp.ndarray a, double high):
    """Flat C-order position of the first element of `a`, floats of any size, outside [0, high], NaN
    included, or -1."""
    cdef bint half = cnp.PyArray_ITEMSIZE(a) == 2
    cdef const fg_precision *p = active().f64 if cnp.PyArray_ITEMSIZE(a) == 8 else active().f32
    cdef uint16_t top = np.asarray(high).astype(a.dtype).view(np.uint16) if half else 0
    cdef Py_ssize_t bad = 0, n = cnp.PyArray_SIZE(a)
    cdef const void *data = cnp.PyArray_DATA(a)
    if cnp.PyArray_IS_C_CONTIGUOUS(a) or cnp.PyArray_IS_F_CONTIGUOUS(a):
        with nogil:
            bad = _count_unfit_half(data, n, top) if half else p.count_unfit(data, n, high)
    else:
        flags = ["external_loop", "buffered", "zerosize_ok"]
        for line in np.nditer(a.view(np.uint16) if half else a, flags, [["readonly", "contig"]]):
            data = cnp.PyArray_DATA(line)
            n = cnp.PyArray_SIZE(line)
            bad += _count_unfit_half(data, n, top) if half else p.count_unfit(data, n, high)
    if bad == 0:
        return -1
    bits = a.view(np.uint16) if half else None
    return int(np.argmin((bits <= top) | (bits == 0x8000) if half else (a >= 0) & (a <= high)))


cdef Py_ssize_t _count_unfit_half(const void *x, Py_ssize_t n, uint16_t top) noexcept nogil:
    """Halves are ordered as their bits, but for the sign; 0x8000 is -0."""
    cdef const uint16_t *bits = <const uint16_t *>x
    cdef Py_ssize_t i, j, end, count = 0
    cdef uint16_t here
    for i in range(0, n, 1 << 15):
        end = n if n - i < 1 << 15 else i + (1 << 15)
        here = 0  # as wide as the elements, so that the loop becomes vectors
        for j in range(i, end):
            here += (bits[j] > top) & (bits[j] != 0x8000)
        count += here
    return count


_KERNELS = {
    ("value", False): FG_MASS,
    ("grad", False): FG_MASS_GRAD,
    ("hvp", False): FG_MASS_HVP,
    ("hess_diag", False): FG_MASS_HESS_DIAG,
    ("value", True): FG_MASS_SOFT,
    ("grad", True): FG_MASS_SOFT_GRAD,
    ("hvp", True): FG_MASS_SOFT_HVP,
    ("hess_diag", True): FG_MASS_SOFT_HESS_DIAG,
}


def run(
    kind, cnp.ndarray logits, cnp.ndarray target, int axis, value, out, v, weight, sample_weight,
    grad_output, where, double smoothing, double z_loss, double scale, ignore_index,
    bint some_ignored, bint reduce,
):
    """Losses into `value`, or their sum as a float if `reduce`; scale times grad_output times
    gradient, Hessian product with v, or Hessian diagonal into `out`.

    Every array of floats has the dtype of logits, or is float32 where that is half precision, as
    `weight` (C,), `sample_weight` and `grad_output` (one per row) then always are.  Integer targets
    are in range.  With nothing ignored, int64 targets are read in place.
    """
    cdef Plan plan
    cdef int ndim = cnp.PyArray_NDIM(logits)
    cdef int type = cnp.PyArray_TYPE(target)
    cdef bint soft = not (cnp.PyTypeNum_ISINTEGER(type) or cnp.PyTypeNum_ISBOOL(type))
    cdef int kernel
    plan_begin(&plan, logits, axis)
    if soft:
        plan_full(&plan, G, target, axis)
    else:
        plan_rowwise(&plan, TARGET, target, axis, ndim)
        if some_ignored:
            plan.ignore = ignore_index
    if value is not None:
        plan_rowwise(&plan, VALUE, value, axis, ndim)
    plan.sum_values = reduce
    if out is not None:
        plan_full(&plan, OUT, out, axis)
        plan.run.scale = scale
    if v is not None:
        plan_full(&plan, V, v, axis)
    if where is not None:
        plan_full(&plan, WHERE, where, axis)
    if sample_weight is not None:
        plan_rowwise(&plan, SAMPLE, sample_weight, axis, ndim)
    if grad_output is not None:
        plan_rowwise(&plan, UPSTREAM, grad_output, axis, ndim)
    plan.run.smoothing = smoothing
    plan.run.z_loss = z_loss
    if weight is not None and not soft and smoothing == 0.0:
        # Only the target has mass: its weight is a factor of the row, but not of the z-loss.
        plan.target_weight = <const char *>cnp.PyArray_DATA(weight)
        plan.only_drops = z_loss != 0.0
    if weight is not None and (plan.target_weight == NULL or plan.only_drops):
        shape = tuple(logits.shape[d] if d == axis else 1 for d in range(ndim))
        weight = np.broadcast_to(weight.reshape(shape), np.shape(logits))
        plan_full(&plan, WEIGHT, weight, axis)
    if kind in ("value", "grad") and not soft and smoothing == z_loss == 0.0 and where is None:
        kernel = FG_CROSS_ENTROPY if out is None else FG_CROSS_ENTROPY_GRAD
    else:
        kernel = _KERNELS[kind, soft]
    plan_run(&plan, kernel)
    return plan.total[0] + plan.total[1]


def total_weight(cnp.ndarray zeros, target, ignore_index, weight, sample_weight, where=None):
    """Sum over the rows not ignored of sample weight times the weight of the target's class.

    `zeros` has one element per row and the dtype of the weights; it may have strides 0.  `where`
    has one per row too, and False leaves it out.
    """
    cdef Plan plan
    plan_elements(&plan, zeros)
    if target is not None:
        plan_rowwise(&plan, TARGET, target, -1, 0)
        if ignore_index is not None:
            plan.ignore = ignore_index
        if weight is not None:
            plan.target_weight = <const char *>cnp.PyArray_DATA(weight)
    if sample_weight is not None:
        plan_rowwise(&plan, SAMPLE, sample_weight, -1, 0)
    if where is not None:
        plan_rowwise(&plan, WHERE, where, -1, 0)
    plan.sum_values = True
    plan_run(&plan, FG_ROW_WEIGHT)
    return plan.total[0] + plan.total[1]


cdef bint is_plain(logits, target):
    """Are logits (N, C) C-contiguous float32 or float64, target (N,) contiguous int64 with every
    entry in [0, C), and N, C > 0?"""
    cdef cnp.ndarray z, y
    cdef int type
    if not (cnp.PyArray_CheckExact(logits) and cnp.PyArray_CheckExact(target)):
        return False
    z = logits
    y = target
    type = cnp.PyArray_TYPE(z)
    return (
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
        and active().f64.count_outside(
            <int64_t *>cnp.PyArray_DATA(y), cnp.PyArray_DIM(y, 0), cnp.PyArray_DIM(z, 1)
        ) == 0
    )


cdef cnp.ndarray plain_out(cnp.ndarray z, cnp.ndarray y, out):
    """Where the gradient of a plain call goes: a new array, or `out` if it fits and is z itself or
    apart from z and y; None if it is not."""
    cdef cnp.ndarray a
    if out is None:
        return cnp.PyArray_EMPTY(2, cnp.PyArray_DIMS(z), cnp.PyArray_TYPE(z), 0)
    if not cnp.PyArray_CheckExact(out):
        return None
    a = out
    if (
        cnp.PyArray_TYPE(a) == cnp.PyArray_TYPE(z)
        and cnp.PyArray_NDIM(a) == 2
        and cnp.PyArray_DIM(a, 0) == cnp.PyArray_DIM(z, 0)
        and cnp.PyArray_DIM(a, 1) == cnp.PyArray_DIM(z, 1)
        and cnp.PyArray_IS_C_CONTIGUOUS(a)
        and cnp.PyArray_ISBEHAVED(a)
        and (cnp.PyArray_DATA(a) == cnp.PyArray_DATA(z) or _apart(a, z))
        and _apart(a, y)
    ):
        return a
    return None


cdef bint _apart(cnp.ndarray a, cnp.ndarray b) noexcept:
    """Do two contiguous arrays share no memory?"""
    cdef const char *p = <const char *>cnp.PyArray_DATA(a)
    cdef const char *q = <const char *>cnp.PyArray_DATA(b)
    return p + cnp.PyArray_NBYTES(a) <= q or q + cnp.PyArray_NBYTES(b) <= p


def plain(logits, target, bint mean, bint with_grad, out):
    """(value, gradient or None) of the commonest call, or None if it is not one (is_plain)."""
    cdef Plan plan
    cdef cnp.ndarray z, y, grad = None
    cdef Py_ssize_t n
    cdef double total
    if not is_plain(logits, target):
        return None
    z = logits
    y = target
    n = cnp.PyArray_DIM(z, 0)
    plan_begin(&plan, z, 1)
    plan_rowwise(&plan, TARGET, y, 1, 2)
    plan.sum_values = True
    if with_grad:
        grad = plain_out(z, y, out)
        if grad is None:
            return None
        plan_full(&plan, OUT, grad, 1)
        plan.run.scale = 1.0 / n if mean else 1.0
    plan_run(&plan, FG_CROSS_ENTROPY_GRAD if with_grad else FG_CROSS_ENTROPY)
    total = plan.total[0] + plan.total[1]
    return (total / n if mean else total), grad
