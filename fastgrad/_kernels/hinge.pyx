# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: freethreading_compatible=True
"""The hinge losses over arrays that Python has checked, and the scan of targets with a sign."""
import numpy as np

cimport numpy as cnp
from libc.stdint cimport int64_t, uint64_t

from fastgrad._kernels.cross_entropy cimport is_plain, plain_out
from fastgrad._kernels.isa cimport (
    FG_CRAMMER_SINGER,
    FG_CRAMMER_SINGER_GRAD,
    FG_CRAMMER_SINGER_HESS_DIAG,
    FG_CRAMMER_SINGER_HVP,
    FG_HINGE,
    FG_HINGE_GRAD,
    FG_HINGE_HESS,
    FG_WESTON_WATKINS,
    FG_WESTON_WATKINS_GRAD,
    FG_WESTON_WATKINS_HESS_DIAG,
    FG_WESTON_WATKINS_HVP,
)
from fastgrad._kernels.rows cimport (
    OUT,
    SAMPLE,
    TARGET,
    UPSTREAM,
    VALUE,
    WHERE,
    Plan,
    V,
    integer_type,
    plan_begin,
    plan_element,
    plan_elements,
    plan_full,
    plan_rowwise,
    plan_run,
    widen,
)

cnp.import_array()

cdef enum:
    CHUNK = 1024

_KERNELS = {
    "value": FG_HINGE,
    "grad": FG_HINGE_GRAD,
    "hvp": FG_HINGE_HESS,
    "hess_diag": FG_HINGE_HESS,
}
_CLASS_KERNELS = {
    ("value", "crammer_singer"): FG_CRAMMER_SINGER,
    ("grad", "crammer_singer"): FG_CRAMMER_SINGER_GRAD,
    ("hvp", "crammer_singer"): FG_CRAMMER_SINGER_HVP,
    ("hess_diag", "crammer_singer"): FG_CRAMMER_SINGER_HESS_DIAG,
    ("value", "weston_watkins"): FG_WESTON_WATKINS,
    ("grad", "weston_watkins"): FG_WESTON_WATKINS_GRAD,
    ("hvp", "weston_watkins"): FG_WESTON_WATKINS_HVP,
    ("hess_diag", "weston_watkins"): FG_WESTON_WATKINS_HESS_DIAG,
}


def first_unsigned(cnp.ndarray target):
    """Flat C-order position of the first integer that is neither -1 nor 1, or -1."""
    cdef int type = integer_type(target), size = cnp.PyArray_ITEMSIZE(target)
    cdef uint64_t bits = 0
    if cnp.PyArray_IS_C_CONTIGUOUS(target) or cnp.PyArray_IS_F_CONTIGUOUS(target):
        bits = _other_bits(
            <const char *>cnp.PyArray_DATA(target), size, cnp.PyArray_SIZE(target), type
        )
    else:
        flags = ["external_loop", "buffered", "zerosize_ok"]
        for line in np.nditer(target, flags, [["readonly", "contig"]]):
            bits |= _other_bits(
                <const char *>cnp.PyArray_DATA(line), size, cnp.PyArray_SIZE(line), type
            )
    return int(np.argmax((target != -1) & (target != 1))) if bits else -1


cdef uint64_t _other_bits(const char *p, Py_ssize_t step, Py_ssize_t n, int type) noexcept nogil:
    """0 if all are -1 or 1: then y + 1 is 0 or 2, and so has no other bit."""
    cdef int64_t chunk[CHUNK]
    cdef const int64_t *at
    cdef uint64_t bits = 0
    cdef Py_ssize_t i = 0, k, m
    while i < n:
        m = n - i if n - i < CHUNK else CHUNK
        at = <const int64_t *>(p + i * step)
        if type != 8:
            widen(p + i * step, step, m, type, chunk)
            at = chunk
        for k in range(m):
            bits |= <uint64_t>at[k] + 1
        i += m
    return bits & ~<uint64_t>2


def run(
    kind, cnp.ndarray scores, cnp.ndarray target, value, out, v, sample_weight, grad_output, where,
    double margin, bint squared, double scale, bint reduce,
):
    """Losses of elements into `value`, or their sum returned; derivatives of `kind` into `out`.

    The target is positive where it is 1, whatever else it holds.  Every array has the shape of
    scores; `sample_weight` and `grad_output` are of the type computed in.
    """
    cdef Plan plan
    plan_elements(&plan, scores)
    plan_element(&plan, TARGET, target)
    plan_element(&plan, VALUE, value)
    plan_element(&plan, OUT, out)
    plan_element(&plan, V, v)
    plan_element(&plan, SAMPLE, sample_weight)
    plan_element(&plan, UPSTREAM, grad_output)
    plan_element(&plan, WHERE, where)
    plan.sum_values = reduce
    plan.run.margin = margin
    plan.run.squared = squared
    plan.run.scale = scale
    plan_run(&plan, _KERNELS[kind])
    return plan.total[0] + plan.total[1]


def run_classes(
    kind, variant, cnp.ndarray scores, cnp.ndarray target, int axis, value, out, v, weight,
    sample_weight, grad_output, where, double margin, bint squared, bint per_class, double scale,
    ignore_index, bint some_ignored, bint reduce,
):
    """Losses of rows into `value`, or their sum returned; derivatives of `kind` into `out`.

    Targets are in range.  `weight` (C,), `sample_weight` and `grad_output` (one per row) are of the
    type computed in.
    """
    cdef Plan plan
    cdef int ndim = cnp.PyArray_NDIM(scores)
    plan_begin(&plan, scores, axis)
    plan_rowwise(&plan, TARGET, target, axis, ndim)
    if some_ignored:
        plan.ignore = ignore_index
    if value is not None:
        plan_rowwise(&plan, VALUE, value, axis, ndim)
    if out is not None:
        plan_full(&plan, OUT, out, axis)
    if v is not None:
        plan_full(&plan, V, v, axis)
    if where is not None:
        plan_full(&plan, WHERE, where, axis)
    if sample_weight is not None:
        plan_rowwise(&plan, SAMPLE, sample_weight, axis, ndim)
    if grad_output is not None:
        plan_rowwise(&plan, UPSTREAM, grad_output, axis, ndim)
    if weight is not None:
        plan.target_weight = <const char *>cnp.PyArray_DATA(weight)
    plan.sum_values = reduce
    plan.run.margin = margin
    plan.run.squared = squared
    plan.run.per_class = per_class
    plan.run.scale = scale
    plan_run(&plan, _CLASS_KERNELS[kind, variant])
    return plan.total[0] + plan.total[1]


def plain_classes(
    scores, target, variant, double margin, bint squared, bint per_class, bint mean,
    bint with_grad, out,
):
    """(value, gradient or None) of the commonest call, or None if it is not one (is_plain)."""
    cdef Plan plan
    cdef cnp.ndarray z, y, grad = None
    cdef Py_ssize_t n
    cdef double total
    if not is_plain(scores, target):
        return None
    z = scores
    y = target
    n = cnp.PyArray_DIM(z, 0)
    plan_begin(&plan, z, 1)
    plan_rowwise(&plan, TARGET, y, 1, 2)
    plan.sum_values = True
    plan.run.margin = margin
    plan.run.squared = squared
    plan.run.per_class = per_class
    if with_grad:
        grad = plain_out(z, y, out)
        if grad is None:
            return None
        plan_full(&plan, OUT, grad, 1)
        plan.run.scale = 1.0 / n if mean else 1.0
    plan_run(&plan, _CLASS_KERNELS["grad" if with_grad else "value", variant])
    total = plan.total[0] + plan.total[1]
    return (total / n if mean else total), grad
