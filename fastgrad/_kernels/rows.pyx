# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: freethreading_compatible=True
"""The driver of every kernel that works on rows.

A call is a Plan: the axes other than the class axis, sorted by the strides of x (largest first) and
merged where all operands allow it.  Rows are numbered in that order and cut into slabs; a slab is
cut into one stretch per thread, a stretch into runs of equally spaced rows, which is what a C
kernel takes. None of these cuts changes a bit of a row's result.

The commonest kernels read and write flat rows of half precision themselves (_reads).  For all
others such operands lead a run to be cut into blocks: a block is widened to float32 in scratch,
with the kind of layout that it has, the float32 kernel runs there, and what it wrote is narrowed.
So every kernel takes float16 and bfloat16, in the style of float32 of the same layout.

The sum of the values of all rows is taken over blocks of REDUCE rows, whatever the slabs and
threads, and the blocks are added in order, in two words: the same bits for every number of threads.

Between slabs the GIL is taken and signals are looked at, so that Ctrl-C ends a long call.
"""
from cython.parallel cimport prange
from libc.stdint cimport (
    int8_t,
    int16_t,
    int32_t,
    int64_t,
    uint8_t,
    uint16_t,
    uint32_t,
    uintptr_t,
)
# The heap that tracemalloc sees: profile_loss counts scratch.
from cpython.mem cimport PyMem_RawFree as free, PyMem_RawMalloc as malloc

cimport numpy as cnp

from fastgrad._kernels.isa cimport (
    FG_BFLOAT16,
    FG_BLOCKS,
    FG_BLOCKS_MAX_BYTES,
    FG_FLOAT16,
    FG_LANES,
    FG_LANES_MAX,
    FG_LANES_MAX_CONTIGUOUS,
    FG_LOGSUMEXP_WEIGHTED,
    FG_NATIVE,
    FG_ROWS,
    active,
    fg_run,
)


cdef extern from "threads.h" nogil:
    int fg_openmp()
    int fg_max_threads()
    void fg_limit_threads(int n)
    const char *fg_compiler()

cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1

cnp.import_array()

cdef enum:
    REDUCE = 4096                 # rows of a block of the sum
    SLAB_ROWS = 65536             # a multiple of REDUCE; bounds the buffers for targets and values
    SLAB_ELEMENTS = 1 << 23       # per thread: some 5 ms of work, 50 at the slowest
    ELEMENTS_PER_THREAD = 1 << 16  # less does not pay a second thread
    KEEP_GIL_BELOW = 1 << 12      # elements: releasing it costs more than such a call
    STREAM_BYTES = 8 << 20        # larger results: store past the caches (benchmarks/NOTES.md)
    HALF = 2                      # bytes
    BLOCK = 1 << 14               # elements widened at once: with the kernel's own scratch in L2
    ACROSS_ROWS = 64              # where rows are contiguous: whole cache lines of each class,
    ACROSS = 1 << 17              # as far as they fit into L2, but in any case 16 rows
    ACROSS_MAX = 1 << 20          # (1 row where even those are too large)
cdef int _threads = fg_max_threads()
cdef bint _forked = False


cdef int _allowed() noexcept:
    return 1 if _forked else min(_threads, fg_max_threads())


cdef int threads_for(Py_ssize_t elements) noexcept:
    """Threads that a call with so much work is to use."""
    return <int>max(1, min(<Py_ssize_t>_allowed(), elements // ELEMENTS_PER_THREAD))


def set_threads(int n):
    global _threads
    _threads = n


def get_setting():
    return _threads


def get_threads():
    """Threads that a large call would use now."""
    return _allowed()


def limit_threads(int n):
    """Set what OpenMP allows the calling thread; returns what it allowed before."""
    cdef int before = fg_max_threads()
    fg_limit_threads(n)
    return before


def forbid_threads():
    """One thread from now on; for a forked child."""
    global _forked
    _forked = True


def build_info():
    """Compiler and OpenMP version (0 without it) of this build."""
    return fg_compiler().decode(), fg_openmp()


# ---- planning ---------------------------------------------------------------------------------


cdef void _begin(Plan *plan, cnp.ndarray x, int axis) noexcept:
    cdef int i
    for i in range(OPERANDS):
        plan.data[i] = NULL
        plan.copy[i].kind = FG_NATIVE
    for i in range(FULL):
        plan.class_step[i] = 0
    plan.dims = 0
    plan.rows = 1
    plan.sum_values = False
    plan.ignore = -1
    plan.target_weight = NULL
    plan.only_drops = False
    plan.half = False
    plan.item = cnp.PyArray_ITEMSIZE(x) if kind_of(x) == FG_NATIVE else 4
    plan.precision = active().f32 if plan.item == 4 else active().f64
    for i in range(cnp.PyArray_NDIM(x)):
        if i != axis:
            plan.shape[plan.dims] = cnp.PyArray_DIM(x, i)
            plan.rows *= plan.shape[plan.dims]
            plan.dims += 1
    plan.run.scale = 1.0
    plan.run.smoothing = 0.0
    plan.run.z_loss = 0.0
    plan.run.margin = 0.0
    plan.run.squared = 0
    plan.run.per_class = 0
    plan.run.stream = 0
    plan.run.half = FG_NATIVE
    temperature(plan, 1.0)


cdef void plan_begin(Plan *plan, cnp.ndarray x, int axis) noexcept:
    """A plan for the rows of x, its classes along `axis`."""
    _begin(plan, x, axis)
    plan.run.classes = cnp.PyArray_DIM(x, axis)
    plan_full(plan, X, x, axis)


cdef void plan_elements(Plan *plan, cnp.ndarray x) noexcept:
    """A plan for an elementwise kernel: every element is a row of one class.

    All operands are then rowwise, those that are named in FULL too.
    """
    cdef int i
    _begin(plan, x, -1)
    plan.run.classes = 1
    for i in range(FULL):
        plan.class_step[i] = plan.item
    plan_rowwise(plan, X, x, -1, 0)


cdef int kind_of(cnp.ndarray a) noexcept:
    """FG_FLOAT16, FG_BFLOAT16 (a type that NumPy does not know by itself), or FG_NATIVE."""
    cdef int type = cnp.PyArray_TYPE(a)
    if type == cnp.NPY_FLOAT16:
        return FG_FLOAT16
    return FG_BFLOAT16 if cnp.PyTypeNum_ISUSERDEF(type) else FG_NATIVE


cdef void _set_kind(Plan *plan, int which, cnp.ndarray a) noexcept:
    plan.copy[which].kind = kind_of(a)
    plan.half = plan.half or plan.copy[which].kind != FG_NATIVE


cdef double temperature(Plan *plan, double t) noexcept:
    """Set log2(e) / t in two words: the division then costs no accuracy and no time."""
    # log2(e) is high + low to 107 bits; each quotient is corrected by its remainder.
    cdef double high = 1.4426950408889634, low = 2.0355273740931033e-17
    cdef double q = high / t
    plan.run.log2e[0] = q
    plan.run.log2e[1] = low if t == 1.0 else (_remainder(high, q, t) + low) / t
    plan.run.inv_temperature = 1.0 / t
    return t


cdef double _remainder(double a, double q, double t) noexcept:
    """a - q t by Dekker's product."""
    cdef double c = 134217729.0 * q, d = 134217729.0 * t
    cdef double q1 = c - (c - q), t1 = d - (d - t)
    cdef double q2 = q - q1, t2 = t - t1, p = q * t
    return (a - p) - (((q1 * t1 - p) + q1 * t2 + q2 * t1) + q2 * t2)


cdef void plan_full(Plan *plan, int which, cnp.ndarray a, int axis) noexcept:
    """An operand with the shape of x."""
    cdef int i, d = 0
    cdef Py_ssize_t step = cnp.PyArray_STRIDE(a, axis)
    plan.data[which] = <char *>cnp.PyArray_DATA(a)
    _set_kind(plan, which, a)
    for i in range(cnp.PyArray_NDIM(a)):
        if i != axis:
            plan.step[which][d] = cnp.PyArray_STRIDE(a, i)
            d += 1
    # The stride of an axis of one element means nothing; this one keeps C = 1 on the fast paths.
    if cnp.PyArray_DIM(a, axis) == 1:
        step = cnp.PyArray_ITEMSIZE(a)
    plan.class_step[which] = step


cdef void plan_rowwise(Plan *plan, int which, cnp.ndarray a, int axis, int ndim) noexcept:
    """An operand with one element per row; `axis` is there too if a has all ndim axes
    (keepdims)."""
    cdef int i, d = 0
    plan.data[which] = <char *>cnp.PyArray_DATA(a)
    _set_kind(plan, which, a)
    for i in range(cnp.PyArray_NDIM(a)):
        if i != axis or cnp.PyArray_NDIM(a) < ndim:
            plan.step[which][d] = cnp.PyArray_STRIDE(a, i)
            d += 1
    if which == TARGET:
        plan.target_type = integer_type(a)


cdef void plan_element(Plan *plan, int which, a) noexcept:
    """An operand of plan_elements, unless it is None."""
    if a is not None:
        plan_rowwise(plan, which, a, -1, 0)


cdef void _swap_dims(Plan *plan, int i, int j) noexcept:
    cdef int k
    plan.shape[i], plan.shape[j] = plan.shape[j], plan.shape[i]
    for k in range(OPERANDS):
        if plan.data[k] != NULL:
            plan.step[k][i], plan.step[k][j] = plan.step[k][j], plan.step[k][i]


cdef bint _outer_before(Plan *plan, int i, int j) noexcept:
    """Should axis i lie outside axis j?  By the stride of x; a broadcast axis (stride 0)
    outermost."""
    cdef Py_ssize_t a = plan.step[X][i], b = plan.step[X][j]
    a = -a if a < 0 else a
    b = -b if b < 0 else b
    return b != 0 and (a == 0 or a > b)


cdef bint _mergeable(Plan *plan, int outer, int inner) noexcept:
    cdef int k
    for k in range(OPERANDS):
        if plan.data[k] != NULL:
            if plan.step[k][outer] != plan.step[k][inner] * plan.shape[inner]:
                return False
    return True


cdef void _order_and_merge(Plan *plan) noexcept:
    cdef int i, j, k, n = 0
    for i in range(plan.dims):
        if plan.shape[i] != 1:
            if i != n:
                _swap_dims(plan, i, n)
            n += 1
    for i in range(1, n):
        j = i
        while j > 0 and _outer_before(plan, j, j - 1):
            _swap_dims(plan, j, j - 1)
            j -= 1
    plan.dims = n
    i = n - 1
    while i > 0:
        if _mergeable(plan, i - 1, i):
            plan.shape[i - 1] *= plan.shape[i]
            for k in range(OPERANDS):
                if plan.data[k] != NULL:
                    plan.step[k][i - 1] = plan.step[k][i]
            for j in range(i, plan.dims - 1):
                _swap_dims(plan, j, j + 1)
            plan.dims -= 1
        i -= 1
    if plan.dims == 0:
        plan.dims = 1
        plan.shape[0] = 1
        for k in range(OPERANDS):
            plan.step[k][0] = plan.item


# ---- running ----------------------------------------------------------------------------------


cdef void _seek(const Plan *plan, Py_ssize_t row, Py_ssize_t *index) noexcept nogil:
    """The position of a row on every axis."""
    cdef int d
    for d in range(plan.dims - 1, -1, -1):
        index[d] = row % plan.shape[d]
        row //= plan.shape[d]


cdef void _next_line(const Plan *plan, Py_ssize_t *index) noexcept nogil:
    """The start of the next line of rows, a line being all of the innermost axis."""
    cdef int d = plan.dims - 1
    index[d] = 0
    d -= 1
    while d >= 0:
        index[d] += 1
        if index[d] < plan.shape[d]:
            break
        index[d] = 0
        d -= 1


# What a call allocates: targets of a slab unless they are read in place, the factors of its rows
# if there are weights, values of a slab if they are to be added, and `step` bytes of scratch for
# every thread, with the copies of a block behind what the kernel itself needs.
cdef struct Memory:
    int64_t *target
    char *alpha
    char *beta
    char *value
    char *scratch
    Py_ssize_t step
    Py_ssize_t copies


cdef void _stretch(
    const Plan *plan,
    const Memory *memory,
    Py_ssize_t slab,
    Py_ssize_t begin,
    Py_ssize_t end,
    char *value,
    void *scratch,
) noexcept nogil:
    """Rows [begin, end) of the slab that starts at row `slab`; `value`, if given, is contiguous and
    starts at `begin`."""
    cdef fg_run run = plan.run
    cdef Py_ssize_t index[DIMS]
    cdef Py_ssize_t n, done = begin
    cdef char *at[OPERANDS]
    cdef int last = plan.dims - 1, d, k
    cdef int64_t *target = NULL
    cdef char *alpha = NULL
    cdef char *beta = NULL
    if memory.target != NULL:
        target = memory.target + (begin - slab)
        _widen_targets(plan, begin, end, target)
    elif plan.data[TARGET] != NULL:
        target = <int64_t *>plan.data[TARGET] + begin
    if memory.alpha != NULL:
        alpha = memory.alpha + (begin - slab) * plan.item
        beta = memory.beta + (begin - slab) * plan.item
        if plan.item == 4:
            _factors(plan, begin, end, target, <float *>alpha, <float *>beta)
        else:
            _factors(plan, begin, end, target, <double *>alpha, <double *>beta)
    run.scratch = scratch
    run.x_class = plan.class_step[X]
    run.out_class = plan.class_step[OUT]
    run.g_class = plan.class_step[G]
    run.v_class = plan.class_step[V]
    run.where_class = plan.class_step[WHERE]
    run.weight_class = plan.class_step[WEIGHT]
    run.x_row = plan.step[X][last]
    run.out_row = plan.step[OUT][last]
    run.g_row = plan.step[G][last]
    run.v_row = plan.step[V][last]
    run.where_row = plan.step[WHERE][last]
    run.weight_row = plan.step[WEIGHT][last]
    run.value_row = plan.item if value != NULL else plan.step[VALUE][last]
    run.sign_row = plan.step[SIGN][last]
    run.alpha_row = plan.item if alpha != NULL else plan.step[ALPHA][last]
    run.beta_row = plan.item
    _seek(plan, begin, index)
    while done < end:
        n = plan.shape[last] - index[last]
        if n > end - done:
            n = end - done
        for k in range(OPERANDS):
            at[k] = plan.data[k]
            if at[k] != NULL:
                for d in range(last + 1):
                    at[k] += index[d] * plan.step[k][d]
        run.rows = n
        run.x = at[X]
        run.out = at[OUT]
        run.g = at[G]
        run.v = at[V]
        run.where = at[WHERE]
        run.weight = at[WEIGHT]
        run.sign = at[SIGN]
        run.alpha = at[ALPHA] if alpha == NULL else alpha + (done - begin) * plan.item
        run.beta = NULL if beta == NULL else beta + (done - begin) * plan.item
        run.value = at[VALUE] if value == NULL else value + (done - begin) * plan.item
        run.target = NULL if target == NULL else target + (done - begin)
        if plan.half:
            _in_blocks(plan, &run, <char *>scratch + memory.copies)
        else:
            plan.kernel(&run)
        done += n
        _next_line(plan, index)


cdef void _in_blocks(const Plan *plan, const fg_run *run, char *scratch) noexcept nogil:
    """A run with operands of half precision; its strides are those of the operands."""
    cdef fg_run part = run[0]
    cdef bint narrow_value = plan.copy[VALUE].kind != FG_NATIVE and not plan.sum_values
    cdef Py_ssize_t begin = 0, n
    if plan.copy[X].kind != FG_NATIVE:
        part.x_row = plan.copy[X].row
        part.x_class = plan.copy[X].cls
    if plan.copy[G].kind != FG_NATIVE:
        part.g_row = plan.copy[G].row
        part.g_class = plan.copy[G].cls
    if plan.copy[V].kind != FG_NATIVE:
        part.v_row = plan.copy[V].row
        part.v_class = plan.copy[V].cls
    if plan.copy[OUT].kind != FG_NATIVE:
        part.out_row = plan.copy[OUT].row
        part.out_class = plan.copy[OUT].cls
        part.stream = 0
    if narrow_value:
        part.value_row = plan.copy[VALUE].row
    if plan.copy[SIGN].kind != FG_NATIVE:
        part.sign_row = plan.copy[SIGN].row
    while begin < run.rows:
        n = plan.block if plan.block < run.rows - begin else run.rows - begin
        part.rows = n
        part.x = _widened(plan, X, run.x + begin * run.x_row, n, scratch)
        if run.g != NULL:
            part.g = _widened(plan, G, run.g + begin * run.g_row, n, scratch)
        if run.v != NULL:
            part.v = _widened(plan, V, run.v + begin * run.v_row, n, scratch)
        if run.where != NULL:
            part.where = run.where + begin * run.where_row
        if run.weight != NULL:
            part.weight = run.weight + begin * run.weight_row
        if run.alpha != NULL:
            part.alpha = run.alpha + begin * run.alpha_row
        if run.beta != NULL:
            part.beta = run.beta + begin * run.beta_row
        if run.target != NULL:
            part.target = run.target + begin
        if run.out != NULL:
            part.out = run.out + begin * run.out_row
            if plan.copy[OUT].kind != FG_NATIVE:
                part.out = scratch + plan.copy[OUT].at
        if run.value != NULL:
            part.value = run.value + begin * run.value_row
            if narrow_value:
                part.value = scratch + plan.copy[VALUE].at
        if run.sign != NULL:
            part.sign = run.sign + begin * run.sign_row
            if plan.copy[SIGN].kind != FG_NATIVE:
                part.sign = scratch + plan.copy[SIGN].at
        plan.kernel(&part)
        if run.out != NULL:
            _narrow(plan, OUT, run.out + begin * run.out_row, n, scratch, run.stream)
        if run.value != NULL and narrow_value:
            _narrow(plan, VALUE, run.value + begin * run.value_row, n, scratch, 0)
        if run.sign != NULL:
            _narrow(plan, SIGN, run.sign + begin * run.sign_row, n, scratch, 0)
        begin += n
    if run.stream:
        plan.precision.fence()


# The n rows of an operand as lines that lie in memory and in scratch alike.
cdef struct Lines:
    Py_ssize_t line, step, lines, n, pitch


cdef Lines _lines(const Plan *plan, int which, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t row = plan.step[which][plan.dims - 1], cls, classes = plan.run.classes
    cdef Lines a
    if which >= FULL or plan.copy[which].across:
        cls = plan.class_step[which] if which < FULL else 0
        a = Lines(cls, row, classes if which < FULL else 1, n, plan.copy[which].cls // 4)
    else:
        cls = plan.class_step[which]
        a = Lines(row, cls, n, classes, plan.copy[which].row // 4)
        if row == classes * cls:
            a.lines = 1
            a.n = n * classes
    return a


cdef const char *_widened(
    const Plan *plan, int which, const char *p, Py_ssize_t n, char *scratch
) noexcept nogil:
    """n rows of an operand from p on, or their copy in float32."""
    cdef Lines a
    cdef char *to = scratch + plan.copy[which].at
    if plan.copy[which].kind == FG_NATIVE:
        return p
    a = _lines(plan, which, n)
    plan.precision.widen(
        plan.copy[which].kind, p, a.line, a.step, a.lines, a.n, <float *>to, a.pitch
    )
    return to


cdef void _narrow(
    const Plan *plan, int which, char *p, Py_ssize_t n, char *scratch, int stream
) noexcept nogil:
    """n rows that a kernel wrote to scratch, to an operand from p on."""
    cdef Lines a
    if plan.copy[which].kind == FG_NATIVE:
        return
    a = _lines(plan, which, n)
    plan.precision.narrow(
        plan.copy[which].kind, <float *>(scratch + plan.copy[which].at), a.pitch, p, a.line, a.step,
        a.lines, a.n, stream,
    )


cdef int _reads(const Plan *plan, int kernel) noexcept:
    """The half precision that the kernel reads and writes itself, or FG_NATIVE."""
    cdef int kind = plan.copy[X].kind
    if plan.class_step[X] != HALF or plan.data[WHERE] != NULL:
        return FG_NATIVE
    if plan.data[OUT] != NULL:
        if plan.copy[OUT].kind != kind or plan.class_step[OUT] != HALF:
            return FG_NATIVE
    return FG_NATIVE if plan.precision.kernel[kind][kernel][plan.style] == NULL else kind


cdef Py_ssize_t _plan_blocks(Plan *plan) noexcept:
    """Decide on the size of blocks and where their copies lie; returns the bytes these take."""
    cdef Py_ssize_t classes = plan.run.classes, rows = BLOCK // classes, pitch, size, used = 0
    cdef Py_ssize_t most
    cdef int k, last = plan.dims - 1
    cdef bint across = False
    cdef Copy *copy
    if plan.run.half != FG_NATIVE:
        rows = BLOCK  # of one element each
    for k in range(FULL):
        copy = &plan.copy[k]
        if copy.kind != FG_NATIVE:
            copy.across = classes == 1 or (
                plan.class_step[k] != HALF and plan.step[k][last] == HALF
            )
            across = across or copy.across
    if across:
        most = ACROSS // classes
        rows = max(rows, max(min(most, ACROSS_ROWS), min(ACROSS_MAX // classes, 16)))
    rows = min(max(rows, 1), plan.shape[last])
    if rows >= 64:
        rows &= ~<Py_ssize_t>63
    plan.block = rows
    pitch = (rows + 15) & ~<Py_ssize_t>15
    size = 4 * (pitch * classes + 16)
    size = (size + 63) & ~<Py_ssize_t>63
    for k in range(OPERANDS):
        copy = &plan.copy[k]
        if copy.kind == FG_NATIVE:
            continue
        if k == OUT and plan.copy[X].kind != FG_NATIVE and copy.across == plan.copy[X].across:
            copy[0] = Copy(copy.kind, copy.across, plan.copy[X].at, plan.copy[X].row,
                           plan.copy[X].cls)  # in place
            continue
        copy.at = used
        if k >= FULL:
            copy.row = 4
            copy.cls = 0
            used += 4 * pitch
        else:
            copy.row = 4 if copy.across else 4 * classes
            copy.cls = 4 * pitch if copy.across and classes > 1 else 4
            used += size
    return used


ctypedef fused real:
    float
    double


cdef void _factors(
    const Plan *plan, Py_ssize_t begin, Py_ssize_t end, int64_t *target, real *alpha, real *beta
) noexcept nogil:
    """beta = sample weight times the weight of the target's class, alpha = beta times the upstream
    gradient.  A row without weight becomes an ignored one."""
    cdef Py_ssize_t index[DIMS]
    cdef Py_ssize_t n, done = begin, i, k = 0
    cdef const char *s
    cdef const char *g
    cdef const real *w = <const real *>plan.target_weight
    cdef int last = plan.dims - 1, d
    # Copies: the compiler must assume that the stores below change the plan.
    cdef Py_ssize_t s_step = plan.step[SAMPLE][last], g_step = plan.step[UPSTREAM][last]
    cdef bint only_drops = plan.only_drops
    cdef real factor
    cdef int64_t y
    _seek(plan, begin, index)
    while done < end:
        n = plan.shape[last] - index[last]
        if n > end - done:
            n = end - done
        s = plan.data[SAMPLE]
        g = plan.data[UPSTREAM]
        for d in range(last + 1):
            if s != NULL:
                s += index[d] * plan.step[SAMPLE][d]
            if g != NULL:
                g += index[d] * plan.step[UPSTREAM][d]
        for i in range(n):
            factor = 1
            y = target[k]
            if s != NULL:
                factor = (<const real *>(s + i * s_step))[0]
            if w != NULL and y >= 0 and (not only_drops or w[y] == 0):
                factor *= w[y]
            if factor == 0:
                target[k] = -1
            beta[k] = factor
            if g != NULL:
                factor *= (<const real *>(g + i * g_step))[0]
            alpha[k] = factor
            k += 1
        done += n
        _next_line(plan, index)


cdef void _widen_targets(
    const Plan *plan, Py_ssize_t begin, Py_ssize_t end, int64_t *out
) noexcept nogil:
    """Targets of rows [begin, end) as int64, -1 where ignored; 0 where there are none."""
    cdef Py_ssize_t index[DIMS]
    cdef Py_ssize_t n, done = begin, i
    cdef const char *p
    cdef int last = plan.dims - 1, d
    if plan.data[TARGET] == NULL:
        for i in range(end - begin):
            out[i] = 0
        return
    _seek(plan, begin, index)
    while done < end:
        n = plan.shape[last] - index[last]
        if n > end - done:
            n = end - done
        p = plan.data[TARGET]
        for d in range(last + 1):
            p += index[d] * plan.step[TARGET][d]
        widen(p, plan.step[TARGET][last], n, plan.target_type, out + (done - begin))
        done += n
        _next_line(plan, index)
    if plan.ignore != -1:
        for i in range(end - begin):
            out[i] = -1 if out[i] == plan.ignore else out[i]


ctypedef fused integer:
    int8_t
    uint8_t
    int16_t
    uint16_t
    int32_t
    uint32_t
    int64_t


cdef void _widen(const integer *p, Py_ssize_t step, Py_ssize_t n, int64_t *out) noexcept nogil:
    cdef Py_ssize_t i
    cdef const char *at = <const char *>p
    for i in range(n):
        out[i] = (<const integer *>(at + i * step))[0]


cdef int integer_type(cnp.ndarray a) noexcept:
    """Size of an integer or bool dtype, plus UNSIGNED."""
    cdef int type = cnp.PyArray_TYPE(a)
    cdef bint unsigned = cnp.PyTypeNum_ISUNSIGNED(type) or type == cnp.NPY_BOOL
    return cnp.PyArray_ITEMSIZE(a) + (UNSIGNED if unsigned else 0)


cdef void widen(
    const char *p, Py_ssize_t step, Py_ssize_t n, int type, int64_t *out
) noexcept nogil:
    """Integers of an integer_type as int64; uint64 from 2^63 on becomes 2^63 - 1."""
    cdef Py_ssize_t i
    if type == 1:
        _widen(<const int8_t *>p, step, n, out)
    elif type == 2:
        _widen(<const int16_t *>p, step, n, out)
    elif type == 4:
        _widen(<const int32_t *>p, step, n, out)
    elif type == UNSIGNED + 1:
        _widen(<const uint8_t *>p, step, n, out)
    elif type == UNSIGNED + 2:
        _widen(<const uint16_t *>p, step, n, out)
    elif type == UNSIGNED + 4:
        _widen(<const uint32_t *>p, step, n, out)
    else:
        _widen(<const int64_t *>p, step, n, out)
        if type == UNSIGNED + 8:
            for i in range(n):
                if out[i] < 0:
                    out[i] = 0x7fffffffffffffff


cdef bint _target_in_place(const Plan *plan) noexcept nogil:
    """Are the targets int64, contiguous in the order of the rows, and is none ignored?"""
    cdef Py_ssize_t step = 8
    cdef int d
    if plan.ignore != -1 or plan.target_type != 8:
        return False
    for d in range(plan.dims - 1, -1, -1):
        if plan.step[TARGET][d] != step:
            return False
        step *= plan.shape[d]
    return True


cdef void add_two_words(double *sum, double head, double tail) noexcept nogil:
    cdef double s = sum[0] + head, t = s - sum[0]
    if s - s != 0:  # inf or NaN: the tail would be inf - inf
        sum[0] = s
        sum[1] = 0
        return
    sum[1] += ((sum[0] - (s - t)) + (head - t)) + tail
    sum[0] = s


cdef int _slabs(Plan *plan, const Memory *memory, int threads, bint with_gil) except -1 nogil:
    cdef Py_ssize_t classes = plan.run.classes, rows = plan.rows
    cdef Py_ssize_t slab = SLAB_ELEMENTS // classes * threads, begin = 0, n, part, k, i, filled
    cdef int t
    cdef char *value = memory.value
    cdef double block[2]
    # A power of two, so that slabs and blocks of the sum fit into each other.
    i = 1
    while i * 2 <= slab and i * 2 <= SLAB_ROWS:
        i *= 2
    slab = i
    while begin < rows:
        n = slab if slab < rows - begin else rows - begin
        filled = begin % (slab if slab > REDUCE else REDUCE)
        if threads == 1:
            _stretch(
                plan, memory, begin, begin, begin + n,
                value + filled * plan.item if value != NULL else NULL,
                memory.scratch,
            )
        else:
            part = (n + threads - 1) // threads
            part = (part + 15) & ~<Py_ssize_t>15
            for t in prange(threads, num_threads=threads, schedule="static", chunksize=1):
                if t * part < n:
                    _stretch(
                        plan,
                        memory,
                        begin,
                        begin + t * part,
                        begin + (n if n < (t + 1) * part else (t + 1) * part),
                        value + (filled + t * part) * plan.item if value != NULL else NULL,
                        memory.scratch + t * memory.step,
                    )
        begin += n
        if plan.sum_values:
            filled += n
            if filled % REDUCE == 0 or begin == rows:
                k = 0
                while k < filled:
                    i = filled - k if filled - k < REDUCE else REDUCE
                    plan.precision.total(value + k * plan.item, i, block)
                    add_two_words(plan.total, block[0], block[1])
                    k += i
        if begin < rows and not with_gil:
            with gil:
                PyErr_CheckSignals()
    return 0


cdef int plan_run(Plan *plan, int kernel) except -1:
    cdef Py_ssize_t classes = plan.run.classes, elements = plan.rows * classes
    cdef Py_ssize_t buffered = plan.rows if plan.rows < SLAB_ROWS else SLAB_ROWS
    cdef Py_ssize_t target_bytes = 0, factor_bytes = 0, value_bytes = 0, item
    cdef bint weighs = (
        plan.data[SAMPLE] != NULL or plan.data[UPSTREAM] != NULL or plan.target_weight != NULL
    )
    cdef int threads
    cdef bint has_blocks, contiguous
    cdef char *block
    cdef Memory memory
    _order_and_merge(plan)
    contiguous = plan.class_step[X] == (plan.item if plan.copy[X].kind == FG_NATIVE else HALF)
    has_blocks = plan.precision.kernel[FG_NATIVE][kernel][FG_BLOCKS] != NULL
    if kernel == FG_LOGSUMEXP_WEIGHTED:
        plan.style = FG_ROWS
    elif contiguous:
        if classes <= (plan.precision.blocks_above if has_blocks else FG_LANES_MAX_CONTIGUOUS):
            plan.style = FG_LANES
        elif has_blocks and classes * plan.item <= FG_BLOCKS_MAX_BYTES:
            plan.style = FG_BLOCKS
        else:
            plan.style = FG_ROWS
    else:
        plan.style = FG_LANES if classes <= FG_LANES_MAX else FG_ROWS
    plan.total[0] = plan.total[1] = 0.0
    item = plan.item if plan.copy[OUT].kind == FG_NATIVE else HALF
    # Short contiguous rows are stored in bursts, and streamed ones would hold up the loads.
    plan.run.stream = (
        plan.data[OUT] != NULL
        and elements * item >= STREAM_BYTES
        and (plan.style == FG_ROWS or not contiguous)
    )
    plan.run.half = _reads(plan, kernel)
    plan.kernel = plan.precision.kernel[plan.run.half][kernel][plan.style]
    if plan.run.half != FG_NATIVE:
        plan.copy[X].kind = plan.copy[OUT].kind = FG_NATIVE  # there is nothing to copy
        plan.half = plan.copy[VALUE].kind != FG_NATIVE
    threads = <int>max(1, min(plan.rows, <Py_ssize_t>threads_for(elements)))
    if weighs or (plan.data[TARGET] != NULL and not _target_in_place(plan)):
        target_bytes = (buffered * 8 + 63) & ~<Py_ssize_t>63
    if weighs:
        factor_bytes = (buffered * plan.item + 63) & ~<Py_ssize_t>63
    if plan.sum_values:
        value_bytes = (buffered * plan.item + 63) & ~<Py_ssize_t>63
    memory.step = plan.precision.scratch_bytes(classes, plan.style, kernel)
    memory.step = memory.copies = (memory.step + 63) & ~<Py_ssize_t>63
    if plan.half:
        memory.step += _plan_blocks(plan)
    block = <char *>malloc(
        target_bytes + 2 * factor_bytes + value_bytes + memory.step * threads + 64
    )
    if block == NULL:
        raise MemoryError(
            f"no room for {memory.step * threads} bytes of scratch (rows of {classes} classes)"
        )
    memory.target = <int64_t *>(block + (-<uintptr_t>block & 63))
    memory.alpha = <char *>memory.target + target_bytes
    memory.beta = memory.alpha + factor_bytes
    memory.value = memory.beta + factor_bytes
    memory.scratch = memory.value + value_bytes
    if target_bytes == 0:
        memory.target = NULL
    if factor_bytes == 0:
        memory.alpha = memory.beta = NULL
    if value_bytes == 0:
        memory.value = NULL
    try:
        if elements < KEEP_GIL_BELOW:
            _slabs(plan, &memory, threads, True)
        else:
            with nogil:
                _slabs(plan, &memory, threads, False)
    finally:
        free(block)
    return 0
