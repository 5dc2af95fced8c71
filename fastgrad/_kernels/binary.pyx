# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: freethreading_compatible=True
"""sigmoid, log_sigmoid and binary cross-entropy over arrays that Python has checked.

Every array has the shape of x, broadcast where need be, so that an element is a row of one class.
"""
cimport numpy as cnp

from fastgrad._kernels.isa cimport (
    FG_BINARY,
    FG_BINARY_GRAD,
    FG_BINARY_HESS,
    FG_LOG_SIGMOID,
    FG_PULL_LOG_SIGMOID,
    FG_PULL_SIGMOID,
    FG_PULL_SIGMOID_OF,
    FG_SIGMOID,
)
from fastgrad._kernels.rows cimport (
    OUT,
    SAMPLE,
    TARGET,
    UPSTREAM,
    VALUE,
    WEIGHT,
    WHERE,
    G,
    Plan,
    V,
    plan_element,
    plan_elements,
    plan_run,
)

cnp.import_array()

_MAPS = {"sigmoid": FG_SIGMOID, "log_sigmoid": FG_LOG_SIGMOID}
_DERIVATIVES = {
    "sigmoid": FG_PULL_SIGMOID,
    "sigmoid_of": FG_PULL_SIGMOID_OF,
    "log_sigmoid": FG_PULL_LOG_SIGMOID,
}
_LOSSES = {
    "value": FG_BINARY,
    "grad": FG_BINARY_GRAD,
    "hvp": FG_BINARY_HESS,
    "hess_diag": FG_BINARY_HESS,
}


def transform(name, cnp.ndarray x, cnp.ndarray out):
    """out = sigmoid or log_sigmoid of x."""
    cdef Plan plan
    plan_elements(&plan, x)
    plan_element(&plan, OUT, out)
    plan_run(&plan, _MAPS[name])


def derivative(name, cnp.ndarray x, cnp.ndarray g, cnp.ndarray out):
    """out = g times the derivative of a map at x; for "sigmoid_of" x is the sigmoid."""
    cdef Plan plan
    plan_elements(&plan, x)
    plan_element(&plan, G, g)
    plan_element(&plan, OUT, out)
    plan_run(&plan, _DERIVATIVES[name])


def run(
    kind, cnp.ndarray logits, cnp.ndarray target, value, out, v, pos_weight, sample_weight,
    grad_output, where, double scale, bint reduce,
):
    """Losses into `value`, or their sum returned; derivatives of `kind` into `out`.

    A target of floats holds probabilities, any other one 0 and 1.
    """
    cdef Plan plan
    # bfloat16 is neither a float nor an integer to NumPy.
    cdef int type = cnp.PyArray_TYPE(target)
    cdef bint indices = cnp.PyTypeNum_ISINTEGER(type) or cnp.PyTypeNum_ISBOOL(type)
    plan_elements(&plan, logits)
    plan_element(&plan, TARGET if indices else G, target)
    plan_element(&plan, VALUE, value)
    plan_element(&plan, OUT, out)
    plan_element(&plan, V, v)
    plan_element(&plan, WEIGHT, pos_weight)
    plan_element(&plan, SAMPLE, sample_weight)
    plan_element(&plan, UPSTREAM, grad_output)
    plan_element(&plan, WHERE, where)
    plan.sum_values = reduce
    plan.run.scale = scale
    plan_run(&plan, _LOSSES[kind])
    return plan.total[0] + plan.total[1]
