# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: freethreading_compatible=True
"""softmax, log_softmax, logsumexp and their derivatives over arrays that Python has checked.

Every array argument is an aligned native ndarray of one float type, or of half precision and
float32, `where` a bool array of the shape of x; `alpha` is never of half precision.  Outputs exist
already.  The `plain_*` functions serve the commonest call with the least
overhead: they return None unless x is a C-contiguous float32 or float64 array with elements, and
judge nothing else.
"""
cimport numpy as cnp

from fastgrad._kernels.isa cimport (
    FG_LOG_SOFTMAX,
    FG_LOGSUMEXP,
    FG_LOGSUMEXP_WEIGHTED,
    FG_PULL_LOG_SOFTMAX,
    FG_PULL_SOFTMAX,
    FG_PUSH_LOG_SOFTMAX,
    FG_PUSH_LOGSUMEXP,
    FG_SOFTMAX,
)
from fastgrad._kernels.rows cimport (
    ALPHA,
    G,
    OUT,
    SIGN,
    VALUE,
    WHERE,
    Plan,
    plan_begin,
    plan_full,
    plan_rowwise,
    plan_run,
    temperature,
)

cnp.import_array()

_MAPS = {"softmax": FG_SOFTMAX, "log_softmax": FG_LOG_SOFTMAX}
_DERIVATIVES = {
    "softmax": FG_PULL_SOFTMAX,
    "log_softmax_vjp": FG_PULL_LOG_SOFTMAX,
    "log_softmax_jvp": FG_PUSH_LOG_SOFTMAX,
}


cdef bint _is_plain(object x) noexcept:
    cdef int type
    if not cnp.PyArray_CheckExact(x):
        return False
    type = cnp.PyArray_TYPE(<cnp.ndarray>x)
    return (
        (type == cnp.NPY_FLOAT32 or type == cnp.NPY_FLOAT64)
        and cnp.PyArray_IS_C_CONTIGUOUS(<cnp.ndarray>x)
        and cnp.PyArray_ISBEHAVED_RO(<cnp.ndarray>x)
        and cnp.PyArray_NDIM(<cnp.ndarray>x) > 0
        and cnp.PyArray_SIZE(<cnp.ndarray>x) > 0
    )


cdef object _plain(object x, int kernel):
    cdef Plan plan
    cdef cnp.ndarray a, out
    cdef int axis
    if not _is_plain(x):
        return None
    a = x
    axis = cnp.PyArray_NDIM(a) - 1
    out = cnp.PyArray_EMPTY(axis + 1, cnp.PyArray_DIMS(a), cnp.PyArray_TYPE(a), 0)
    plan_begin(&plan, a, axis)
    plan_full(&plan, OUT, out, axis)
    plan_run(&plan, kernel)
    return out


def plain_softmax(x):
    return _plain(x, FG_SOFTMAX)


def plain_log_softmax(x):
    return _plain(x, FG_LOG_SOFTMAX)


def transform(name, cnp.ndarray x, int axis, cnp.ndarray out, double t, where, alpha):
    """out = softmax or log_softmax of x / t; softmax times alpha, one factor per row, if given."""
    cdef Plan plan
    plan_begin(&plan, x, axis)
    plan_full(&plan, OUT, out, axis)
    if where is not None:
        plan_full(&plan, WHERE, where, axis)
    if alpha is not None:
        plan_rowwise(&plan, ALPHA, alpha, axis, x.ndim)
        plan.run.scale = 1.0 / t
    temperature(&plan, t)
    plan_run(&plan, _MAPS[name])


def logsumexp(cnp.ndarray x, int axis, cnp.ndarray value, double t, where):
    """value = log sum exp(x / t)."""
    cdef Plan plan
    plan_begin(&plan, x, axis)
    plan_rowwise(&plan, VALUE, value, axis, x.ndim)
    if where is not None:
        plan_full(&plan, WHERE, where, axis)
    temperature(&plan, t)
    plan_run(&plan, FG_LOGSUMEXP)


def logsumexp_weighted(
    cnp.ndarray x, cnp.ndarray b, int axis, value, sign, out, alpha, double t, where
):
    """value, sign = log |sum b exp(x / t)| and its sign; out = alpha times its gradient."""
    cdef Plan plan
    plan_begin(&plan, x, axis)
    plan_full(&plan, G, b, axis)
    if value is not None:
        plan_rowwise(&plan, VALUE, value, axis, x.ndim)
    if sign is not None:
        plan_rowwise(&plan, SIGN, sign, axis, x.ndim)
    if out is not None:
        plan_full(&plan, OUT, out, axis)
        plan.run.scale = 1.0 / t
    if alpha is not None:
        plan_rowwise(&plan, ALPHA, alpha, axis, x.ndim)
    if where is not None:
        plan_full(&plan, WHERE, where, axis)
    temperature(&plan, t)
    plan_run(&plan, FG_LOGSUMEXP_WEIGHTED)


def derivative(name, cnp.ndarray p, cnp.ndarray g, int axis, cnp.ndarray out, double t, where):
    """Pull g back, or push it forward, through a map whose probabilities are p."""
    cdef Plan plan
    plan_begin(&plan, p, axis)
    plan_full(&plan, G, g, axis)
    plan_full(&plan, OUT, out, axis)
    if where is not None:
        plan_full(&plan, WHERE, where, axis)
    plan.run.scale = 1.0 / t
    plan_run(&plan, _DERIVATIVES[name])


def dot(cnp.ndarray p, cnp.ndarray v, int axis, cnp.ndarray value, double t, where):
    """value = sum(p v) / t: the tangent of logsumexp."""
    cdef Plan plan
    plan_begin(&plan, p, axis)
    plan_full(&plan, G, v, axis)
    plan_rowwise(&plan, VALUE, value, axis, p.ndim)
    if where is not None:
        plan_full(&plan, WHERE, where, axis)
    plan.run.scale = 1.0 / t
    plan_run(&plan, FG_PUSH_LOGSUMEXP)
