# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: freethreading_compatible=True
"""The driver of kernels that take whole segments: the centroid hinge, moments, means without a row.

A segment is one kernel call, so its results do not depend on threads; segments are shared out so
that every thread has about the same number of rows.  Kernels ask now and then whether a signal has
ended the call.  Operands are (B, N, d) with contiguous last axis; positions count from the first
row of the batch on.
"""
import numpy as np

cimport numpy as cnp
from cython.parallel cimport prange
from libc.stdint cimport int64_t, uintptr_t
# The heap that tracemalloc sees: profile_loss counts scratch.
from cpython.mem cimport PyMem_RawFree as free, PyMem_RawMalloc as malloc

from fastgrad._kernels import rows as _rows

from fastgrad._kernels.isa cimport (
    FG_NATIVE,
    active,
    fg_pairs,
    fg_precision,
    fg_rows,
    fg_segment,
    fg_segment_kernel,
)
from fastgrad._kernels.rows cimport add_two_words, kind_of
from fastgrad._kernels.watch cimport Watch, ends, raised, watching


cnp.import_array()

cdef enum:
    REDUCE = 4096                  # values of a block of a sum
    ELEMENTS_PER_THREAD = 1 << 15  # less does not pay a second thread
    NEXT_BYTES = 1 << 18           # of an item that stays in L2 beside the one before

cdef struct Operand:
    fg_rows rows     # those of the first item
    Py_ssize_t item  # bytes from one item to the next
    Py_ssize_t bytes  # of a row

cdef struct Job:
    fg_segment_kernel kernel
    const fg_precision *precision
    Py_ssize_t segments, per_item, rows, features
    const int64_t *order
    const int64_t *offsets
    Operand x, v, out
    const char *weight
    fg_segment options    # margin, squared, moving
    const double *scale   # of every item, or NULL
    double *value         # of every segment, or NULL
    double *total[2]      # of every segment, as these; or NULL
    double *sum[2]
    double *squares


cdef const fg_precision *_precision(cnp.ndarray x) noexcept:
    return active().f64 if cnp.PyArray_ITEMSIZE(x) == 8 else active().f32


cdef Operand _operand(cnp.ndarray a) noexcept:
    cdef Operand o
    o.rows.data = <char *>cnp.PyArray_DATA(a)
    o.rows.next = NULL
    o.rows.row = cnp.PyArray_STRIDE(a, 1)
    o.rows.kind = kind_of(a)
    o.item = cnp.PyArray_STRIDE(a, 0)
    o.bytes = cnp.PyArray_DIM(a, 2) * cnp.PyArray_ITEMSIZE(a)
    return o


cdef Job _job(
    cnp.ndarray x, v, out, weight, const int64_t[::1] order, const int64_t[::1] offsets
):
    """What every call has: x, v, out (B, N, d) or None, weights (B, N) contiguous."""
    cdef Job job
    cdef Operand nothing
    nothing.rows.data = NULL
    nothing.rows.next = NULL
    nothing.rows.row = nothing.item = nothing.bytes = 0
    nothing.rows.kind = FG_NATIVE
    job.precision = _precision(x)
    job.segments = offsets.shape[0] - 1
    job.per_item = max(job.segments // max(x.shape[0], 1), 1)
    job.rows = x.shape[1]
    job.features = x.shape[2]
    job.order = &order[0] if order.shape[0] else NULL
    job.offsets = &offsets[0]
    job.x = _operand(x)
    job.v = nothing if v is None else _operand(v)
    job.out = nothing if out is None else _operand(out)
    job.weight = NULL
    if weight is not None:
        job.weight = <const char *>cnp.PyArray_DATA(weight)
    job.options.margin = 0
    job.options.scale = 1
    job.options.squared = job.options.moving = 0
    job.scale = NULL
    job.value = job.total[0] = job.total[1] = job.sum[0] = job.sum[1] = job.squares = NULL
    return job


cdef int _kernel_ends(void *watch, Py_ssize_t elements) noexcept nogil:
    return ends(<Watch *>watch, elements)


cdef fg_rows _rows_of(
    const Operand *a, Py_ssize_t item, Py_ssize_t rows, bint follows, Py_ssize_t begin
) noexcept nogil:
    """The rows of an item; what comes next are those from `begin` on of the one that `follows`."""
    cdef fg_rows r = a.rows
    if r.data != NULL:
        r.data += item * a.item
        # Between rows that lie apart there is nothing worth a prefetch.
        if follows and a.bytes <= r.row < 2 * a.bytes and r.row * rows <= NEXT_BYTES:
            r.next = r.data + a.item + begin * r.row
    return r


cdef void _stretch(
    const Job *job, Py_ssize_t begin, Py_ssize_t end, void *scratch, Watch *watch
) noexcept nogil:
    """Segments [begin, end)."""
    cdef fg_segment s = job.options
    cdef Py_ssize_t k, item, done
    cdef bint follows
    s.ends = _kernel_ends
    s.watch = watch
    s.features = job.features
    s.weight = job.weight
    s.scratch = scratch
    for k in range(begin, end):
        item = k // job.per_item
        if ends(watch, (job.offsets[k + 1] - job.offsets[k]) * job.features):
            break
        s.count = job.offsets[k + 1] - job.offsets[k]
        s.order = job.order + job.offsets[k]
        s.first = item * job.rows
        follows = (item + 1) * job.per_item < end
        done = job.offsets[k] - job.offsets[item * job.per_item]
        s.x = _rows_of(&job.x, item, job.rows, follows, done)
        s.v = _rows_of(&job.v, item, job.rows, follows, done)
        s.out = _rows_of(&job.out, item, job.rows, follows, done)
        if job.scale != NULL:
            s.scale = job.scale[item]
        if job.squares != NULL:
            s.sum[0] = job.sum[0] + k * job.features
            s.sum[1] = job.sum[1] + k * job.features
            s.squares = job.squares + k * job.features
        job.kernel(&s)
        if job.value != NULL:
            job.value[k] = s.value
        if job.total[0] != NULL:
            job.total[0][k] = s.total[0]
            job.total[1][k] = s.total[1]


cdef Py_ssize_t _segment_at(const Job *job, int64_t row) noexcept nogil:
    """The first segment that begins at this row or behind it."""
    cdef Py_ssize_t low = 0, high = job.segments, middle
    while low < high:
        middle = (low + high) // 2
        if job.offsets[middle] < row:
            low = middle + 1
        else:
            high = middle
    return low


cdef int _run(Job *job) except -1:
    cdef Py_ssize_t k, most = 0, step, first, last
    cdef Watch watch = watching()
    cdef int64_t kept = job.offsets[job.segments] - job.offsets[0]
    cdef int t, threads = 1
    cdef char *block
    cdef char *scratch
    for k in range(job.segments):
        most = max(most, <Py_ssize_t>(job.offsets[k + 1] - job.offsets[k]))
    if kept * job.features >= 2 * ELEMENTS_PER_THREAD:
        threads = min(_rows.get_threads(), kept * job.features // ELEMENTS_PER_THREAD)
    step = (job.precision.segment_scratch(most, job.features) + 63) & ~<Py_ssize_t>63
    block = <char *>malloc(step * threads + 64)
    if block == NULL:
        raise MemoryError(
            f"no room for {step * threads} bytes of scratch (segments of {most} rows)"
        )
    scratch = block + (-<uintptr_t>block & 63)
    try:
        with nogil:
            if threads == 1:
                _stretch(job, 0, job.segments, scratch, &watch)
            else:
                for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                    first = _segment_at(job, kept * t // threads)
                    last = _segment_at(job, kept * (t + 1) // threads)
                    if t == 0:
                        first = 0
                    if t == threads - 1:
                        last = job.segments
                    _stretch(job, first, last, scratch + t * step, &watch)
        raised(&watch)
    finally:
        free(block)
    return 0


def hinge(
    x, v, out, weight, order, offsets, double margin, bint squared, bint moving,
    const double[::1] scale, double[::1] values,
):
    """Class values into `values` (B K,), gradient or (with v) Hessian product into `out` times the
    scale of the item."""
    cdef Job job = _job(x, v, out, weight, order, offsets)
    job.kernel = job.precision.centroid_hinge if v is None else job.precision.centroid_hinge_hvp
    job.options.margin = margin
    job.options.squared = squared
    job.options.moving = moving
    if job.segments == 0:
        return
    job.scale = &scale[0]
    job.value = &values[0]
    _run(&job)


def moments(x, weight, order, offsets):
    """Of every segment: rows of weight > 0, weights (2, S), weighted sums (2, S, d), squared
    deviations (S, d); the pairs are heads and tails."""
    cdef Job job = _job(x, None, None, weight, order, offsets)
    cdef Py_ssize_t segments = job.segments, features = job.features
    counts = np.zeros(segments)
    weights = np.zeros((2, segments))
    sums = np.zeros((2, segments, features))
    squares = np.zeros((segments, features))
    if segments:
        job.kernel = job.precision.class_moments
        job.value = <double *>cnp.PyArray_DATA(counts)
        job.total[0] = <double *>cnp.PyArray_DATA(weights)
        job.total[1] = job.total[0] + segments
        job.sum[0] = <double *>cnp.PyArray_DATA(sums)
        job.sum[1] = job.sum[0] + segments * features
        job.squares = <double *>cnp.PyArray_DATA(squares)
        _run(&job)
    return counts.astype(np.int64), weights, sums, squares


def leave_one_out(x, out, weight, order, offsets, bint pull):
    """Means of the others of each row's class into `out`, or a cotangent x of them pulled back;
    rows without others are left as they are."""
    cdef Job job = _job(x, None, out, weight, order, offsets)
    job.kernel = job.precision.leave_one_out_pull if pull else job.precision.leave_one_out
    if job.segments:
        _run(&job)


def kept(weight, const int64_t[::1] order, const int64_t[::1] offsets):
    """How many rows of every segment have a weight (B, N), contiguous, that is not 0."""
    cdef Py_ssize_t segments = offsets.shape[0] - 1, s, i
    cdef cnp.ndarray counts = np.zeros(segments, np.int64), w = weight
    cdef int64_t *to = <int64_t *>cnp.PyArray_DATA(counts)
    cdef const float *narrow = <const float *>cnp.PyArray_DATA(w)
    cdef const double *wide = <const double *>cnp.PyArray_DATA(w)
    cdef bint half = cnp.PyArray_ITEMSIZE(w) == 4
    with nogil:
        for s in range(segments):
            for i in range(offsets[s], offsets[s + 1]):
                to[s] += narrow[order[i]] != 0 if half else wide[order[i]] != 0
    return counts


def total(cnp.ndarray a):
    """The sum of contiguous float32 or float64 numbers, as head and tail."""
    cdef const fg_precision *p = _precision(a)
    cdef Py_ssize_t n = cnp.PyArray_SIZE(a), size = cnp.PyArray_ITEMSIZE(a), i = 0, m
    cdef const char *data = <const char *>cnp.PyArray_DATA(a)
    cdef double sum[2]
    cdef double block[2]
    sum[0] = sum[1] = 0
    with nogil:
        while i < n:
            m = n - i if n - i < REDUCE else REDUCE
            p.total(data + i * size, m, block)
            add_two_words(sum, block[0], block[1])
            i += m
    return sum[0], sum[1]


def row_squares(cnp.ndarray x):
    """Squared lengths of the rows of a contiguous matrix, in its dtype."""
    cdef cnp.ndarray out = np.empty(x.shape[0], x.dtype)
    cdef const fg_precision *p = _precision(x)
    with nogil:
        p.row_squares(
            cnp.PyArray_DATA(x), cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1), cnp.PyArray_DATA(out)
        )
    return out


def prototype_logits(
    cnp.ndarray x, cnp.ndarray c, cnp.ndarray x_squares, cnp.ndarray c_squares, cnp.ndarray absent,
    cnp.ndarray out,
):
    """Products of shifted rows in `out` become minus squared distances.  All are contiguous.

    On one thread: see alone() in _threads.py.
    """
    cdef const fg_precision *p = _precision(x)
    cdef fg_pairs whole
    whole.rows = x.shape[0]
    whole.features = x.shape[1]
    whole.classes = c.shape[0]
    whole.x = cnp.PyArray_DATA(x)
    whole.c = cnp.PyArray_DATA(c)
    whole.x_squares = cnp.PyArray_DATA(x_squares)
    whole.c_squares = cnp.PyArray_DATA(c_squares)
    whole.absent = <const char *>cnp.PyArray_DATA(absent)
    whole.out = cnp.PyArray_DATA(out)
    with nogil:
        p.prototype_logits(&whole)


def item_values(
    const double[::1] values, const int64_t[::1] present, bint mean, double[::1] items
):
    """Class values (B K,) into values of the items: their sum, or that over the classes present."""
    cdef Py_ssize_t n = items.shape[0], classes = values.shape[0] // max(n, 1), b, k
    cdef double sum[2]
    for b in range(n):
        sum[0] = sum[1] = 0
        for k in range(classes):
            add_two_words(sum, values[b * classes + k], 0)
        items[b] = sum[0] + sum[1]
        if mean and present[b]:
            items[b] /= present[b]
