# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: freethreading_compatible=True
"""Token statistics over arrays that Python has checked."""
cimport numpy as cnp

from fastgrad._kernels.isa cimport FG_TOKEN_STATS
from fastgrad._kernels.rows cimport (
    TARGET,
    VALUE,
    Plan,
    plan_begin,
    plan_rowwise,
    plan_run,
)

cnp.import_array()


def token_stats(cnp.ndarray logits, cnp.ndarray target, int axis, ignore_index, cnp.ndarray record):
    """A record for every row: nll, logsumexp and entropy in the dtype of the logits, argmax and
    rank as int64, aligned as C does it."""
    cdef Plan plan
    plan_begin(&plan, logits, axis)
    plan_rowwise(&plan, TARGET, target, axis, logits.ndim)
    plan_rowwise(&plan, VALUE, record, axis, logits.ndim)
    if ignore_index is not None:
        plan.ignore = ignore_index
    plan_run(&plan, FG_TOKEN_STATS)
