cimport numpy as cnp
from libc.stdint cimport int64_t

from fastgrad._kernels.isa cimport fg_kernel, fg_precision, fg_run

cdef enum:  # operands; those before FULL have the shape of x, the others one element per row
    X, OUT, G, V, WHERE, WEIGHT, FULL
    VALUE = FULL, SIGN, ALPHA, TARGET, SAMPLE, UPSTREAM, OPERANDS

cdef enum:
    DIMS = 64  # NPY_MAXDIMS
    UNSIGNED = 16

# Where the float32 copy of a block of a half-precision operand lies in scratch; strides in bytes.
cdef struct Copy:
    int kind            # FG_NATIVE (no copy), FG_FLOAT16 or FG_BFLOAT16
    bint across         # are neighbouring rows contiguous, rather than neighbouring classes
    Py_ssize_t at, row, cls

# The rows of a call, after sorting and merging the axes; an operand that is absent has data NULL.
cdef struct Plan:
    int dims
    Py_ssize_t shape[DIMS]
    Py_ssize_t step[OPERANDS][DIMS]
    Py_ssize_t class_step[FULL]
    char *data[OPERANDS]
    Py_ssize_t rows
    int target_type         # see integer_type
    int64_t ignore        # the target value that becomes -1
    const char *target_weight  # weight of each class, contiguous: a factor of its rows; or NULL
    bint only_drops         # that weight is no factor, but rows where it is 0 are ignored
    bint sum_values         # reduce `value` instead of storing it
    double total[2]         # that sum, head and tail
    fg_run run              # what is the same for every run of rows
    const fg_precision *precision
    fg_kernel kernel
    int style
    Py_ssize_t item         # size of the type that the kernel computes in
    Copy copy[OPERANDS]
    bint half               # is some operand of half precision
    Py_ssize_t block        # rows that are then copied at once

cdef int threads_for(Py_ssize_t elements) noexcept
cdef void plan_begin(Plan *plan, cnp.ndarray x, int axis) noexcept
cdef void plan_elements(Plan *plan, cnp.ndarray x) noexcept
cdef void plan_element(Plan *plan, int which, a) noexcept
cdef void plan_full(Plan *plan, int which, cnp.ndarray a, int axis) noexcept
cdef void plan_rowwise(Plan *plan, int which, cnp.ndarray a, int axis, int ndim) noexcept
cdef int plan_run(Plan *plan, int kernel) except -1
cdef int integer_type(cnp.ndarray a) noexcept
cdef int kind_of(cnp.ndarray a) noexcept
cdef void add_two_words(double *sum, double head, double tail) noexcept nogil
cdef double temperature(Plan *plan, double t) noexcept
cdef void widen(const char *p, Py_ssize_t step, Py_ssize_t n, int type, int64_t *out) noexcept nogil
