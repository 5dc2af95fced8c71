# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: freethreading_compatible=True
"""Sorting of rows by segment, and the reductions over segments.

Ids are (B, N), C-contiguous, of any integer dtype; they are widened to int64 block by block, -1
where ignored.  Data are (B, N, d) with any strides: B items of N rows.  A column of a segment is
reduced by one thread in the order of its rows, so that no choice made here (path, threads, blocks
of columns) changes a bit.
"""
from cython.parallel cimport prange
# The heap that tracemalloc sees: profile_loss counts scratch.
from cpython.mem cimport PyMem_RawFree as free, PyMem_RawMalloc as malloc
from libc.string cimport memcpy, memset

cimport numpy as cnp
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint64_t, uintptr_t

from fastgrad._kernels import rows as _rows

from fastgrad._kernels.isa cimport (
    FG_LANES,
    FG_LANES_MAX,
    FG_LANES_MAX_CONTIGUOUS,
    FG_LOG_SOFTMAX,
    FG_LOGSUMEXP,
    FG_NATIVE,
    FG_PULL_LOG_SOFTMAX,
    FG_PULL_SOFTMAX,
    FG_PUSH_LOG_SOFTMAX,
    FG_PUSH_LOGSUMEXP,
    FG_ROWS,
    FG_SOFTMAX,
    active,
    fg_precision,
    fg_run,
    fg_segments,
)
from fastgrad._kernels.rows cimport UNSIGNED, integer_type, kind_of, widen


cdef extern from "platform.h" nogil:
    void FG_PREFETCH(const void *)
cdef extern from "threads.h" nogil:
    void *fg_table_of(size_t size)

cnp.import_array()

cdef enum:
    CHUNK = 512      # rows widened at once
    COPIES = 4        # of a small table of counters: neighbours of one segment then do not wait
    SMALL = 1 << 10   # segments of such a table
    LARGE = 1 << 12   # segments whose counters leave L1: prefetch them

cdef struct Ids:
    const char *data
    int type
    Py_ssize_t size
    bint ignoring
    int64_t ignore
    bint direct       # int64, none ignored: read in place


cdef Ids _ids(cnp.ndarray ids, ignore_index):
    cdef Ids a
    a.data = <const char *>cnp.PyArray_DATA(ids)
    a.type = integer_type(ids)
    a.size = cnp.PyArray_ITEMSIZE(ids)
    a.ignoring = ignore_index is not None
    a.ignore = ignore_index if a.ignoring else 0
    if a.type == UNSIGNED + 8 and a.ignore == 0x7fffffffffffffff:
        a.ignoring = False  # widening makes this of ids beyond int64, and those are errors
    a.direct = a.type == 8 and not a.ignoring
    return a


cdef const int64_t *_codes(
    const Ids *ids, Py_ssize_t begin, Py_ssize_t n, int64_t *chunk
) noexcept nogil:
    """Ids [begin, begin + n): where they are, or in `chunk`, -1 for those ignored."""
    cdef Py_ssize_t i
    if ids.direct:
        return <const int64_t *>ids.data + begin
    widen(ids.data + begin * ids.size, ids.size, n, ids.type, chunk)
    if ids.ignoring:
        for i in range(n):
            if chunk[i] == ids.ignore:
                chunk[i] = -1
    return chunk


def scan(cnp.ndarray ids, ignore_index, const int64_t[::1] classes):
    """(flat position of the first id outside [0, classes of its item) or -1, largest id or -1).

    Ids that are ignored do not count.  Without `classes` any id from 0 on will do.
    """
    cdef Ids a = _ids(ids, ignore_index)
    cdef int64_t chunk[CHUNK]
    cdef const int64_t *at
    cdef Py_ssize_t items = cnp.PyArray_DIM(ids, 0), rows = cnp.PyArray_DIM(ids, 1), b, i, k, n
    cdef Py_ssize_t bad = -1
    cdef int64_t most = -1, limit
    # The id that is ignored becomes -1, and so must not be mistaken for one that is wrong.
    with nogil:
        for b in range(items):
            limit = classes[b] if classes is not None else 0x7fffffffffffffff
            i = 0
            while i < rows and bad < 0:
                n = CHUNK if rows - i > CHUNK else rows - i
                if a.ignoring:
                    widen(a.data + (b * rows + i) * a.size, a.size, n, a.type, chunk)
                    for k in range(n):
                        if chunk[k] == a.ignore:
                            continue
                        if <uint64_t>chunk[k] >= <uint64_t>limit:
                            bad = b * rows + i + k
                            break
                        if chunk[k] > most:
                            most = chunk[k]
                else:
                    at = _codes(&a, b * rows + i, n, chunk)
                    if active().f64.count_outside(at, n, limit):
                        k = 0
                        while <uint64_t>at[k] < <uint64_t>limit:
                            k += 1
                        bad = b * rows + i + k
                    elif classes is None:
                        for k in range(n):
                            if at[k] > most:
                                most = at[k]
                i += n
            if bad >= 0:
                break
    return bad, most


ctypedef fused narrow:
    int8_t
    int16_t
    int32_t
    int64_t


def pack(cnp.ndarray ids, ignore_index, narrow[:, ::1] out):
    """A copy of the ids, -1 where ignored, in a type that is wide enough."""
    cdef Ids a = _ids(ids, ignore_index)
    cdef int64_t chunk[CHUNK]
    cdef const int64_t *at
    cdef Py_ssize_t size = cnp.PyArray_SIZE(ids), i = 0, k, n
    cdef narrow *to
    if size == 0:
        return
    to = &out[0, 0]
    with nogil:
        while i < size:
            n = CHUNK if size - i > CHUNK else size - i
            at = _codes(&a, i, n, chunk)
            for k in range(n):
                to[i + k] = <narrow>at[k]
            i += n


def count(cnp.ndarray ids, ignore_index, int64_t[:, ::1] counts):
    """Rows of every segment, into `counts` (B, K), which holds zeros; ids are in range."""
    cdef Ids a = _ids(ids, ignore_index)
    cdef int64_t chunk[CHUNK]
    cdef int64_t table[(COPIES - 1) * SMALL]
    cdef const int64_t *at
    cdef int64_t *c0
    cdef int64_t *c1
    cdef int64_t *c2
    cdef int64_t *c3
    cdef Py_ssize_t items = cnp.PyArray_DIM(ids, 0), rows = cnp.PyArray_DIM(ids, 1), b, i, k, n
    cdef Py_ssize_t segments = counts.shape[1]
    if rows == 0 or segments == 0:
        return
    with nogil:
        for b in range(items):
            c0 = c1 = c2 = c3 = &counts[b, 0]
            if segments <= SMALL:
                c1, c2, c3 = table, table + SMALL, table + 2 * SMALL
                for k in range(segments):
                    c1[k] = c2[k] = c3[k] = 0
            i = 0
            while i < rows:
                n = CHUNK if rows - i > CHUNK else rows - i
                at = _codes(&a, b * rows + i, n, chunk)
                k = 0
                if a.ignoring:
                    for k in range(n):
                        if at[k] >= 0:
                            c0[at[k]] += 1
                else:
                    while k + 4 <= n:
                        c0[at[k]] += 1
                        c1[at[k + 1]] += 1
                        c2[at[k + 2]] += 1
                        c3[at[k + 3]] += 1
                        k += 4
                    while k < n:
                        c0[at[k]] += 1
                        k += 1
                i += n
            if segments <= SMALL:
                for k in range(segments):
                    c0[k] += c1[k] + c2[k] + c3[k]


def sort(cnp.ndarray ids, ignore_index, int64_t[::1] cursor, int64_t[::1] order):
    """A stable counting sort: positions of the rows by segment.

    `cursor` holds for every segment where it begins in `order`; and where it ends, afterwards.
    """
    cdef Ids a = _ids(ids, ignore_index)
    cdef int64_t chunk[CHUNK]
    cdef const int64_t *at
    cdef int64_t *next
    cdef int64_t *to
    cdef Py_ssize_t items = cnp.PyArray_DIM(ids, 0), rows = cnp.PyArray_DIM(ids, 1), b, i, k, n
    cdef Py_ssize_t segments, from_row, place
    if order.shape[0] == 0:
        return
    segments = cursor.shape[0] // items
    to = &order[0]
    with nogil:
        for b in range(items):
            next = &cursor[b * segments]
            i = 0
            while i < rows:
                n = CHUNK if rows - i > CHUNK else rows - i
                from_row = b * rows + i
                at = _codes(&a, from_row, n, chunk)
                for k in range(n if segments > LARGE else 0):
                    if at[k] >= 0:
                        FG_PREFETCH(&next[at[k]])
                for k in range(n):
                    if at[k] >= 0:
                        place = next[at[k]]
                        next[at[k]] = place + 1
                        to[place] = from_row + k
                i += n


# ---- reductions -------------------------------------------------------------------------------

cdef enum:
    LINE = 64                     # bytes of a cache line
    TABLE_NEAR = 32 << 10         # bytes of accumulators that stay in L1
    TABLE_BLOCK = 1 << 20         # of a block of columns, which stay in L2
    TABLE_FAR = 16 << 20          # of a table that is worth its misses where rows are short
    PER_THREAD = 1 << 16          # elements: less does not pay a second thread
    PIECES = 8                    # of the segments, for every thread

# How the ids of a call are found: of every row, or consecutive segments by their offsets.
cdef struct Rows:
    Ids ids
    const int64_t *offsets        # NULL if there are ids
    Py_ssize_t segments

cdef struct Data:
    const char *data
    Py_ssize_t item, row, column  # strides in bytes
    int kind                      # FG_NATIVE or how halves lie in memory
    Py_ssize_t size               # of the type computed in
    bint plain                    # columns are contiguous, of the type computed in


cdef Rows _rows_of(ids, ignore_index, const int64_t[::1] offsets, Py_ssize_t segments):
    cdef Rows r
    memset(&r, 0, sizeof(r))
    r.segments = segments
    r.offsets = NULL
    if ids is None:
        r.offsets = &offsets[0]
    else:
        r.ids = _ids(ids, ignore_index)
    return r


cdef Data _data(cnp.ndarray x):
    cdef Data a
    a.data = <const char *>cnp.PyArray_DATA(x)
    a.item = cnp.PyArray_STRIDE(x, 0)
    a.row = cnp.PyArray_STRIDE(x, 1)
    a.column = cnp.PyArray_STRIDE(x, 2)
    a.kind = kind_of(x)
    a.size = cnp.PyArray_ITEMSIZE(x) if a.kind == FG_NATIVE else 4
    a.plain = a.kind == FG_NATIVE and (a.column == a.size or cnp.PyArray_DIM(x, 2) == 1)
    return a


cdef const int64_t *_segment_of(
    const Rows *r, Py_ssize_t begin, Py_ssize_t n, int64_t *chunk, Py_ssize_t *segment
) noexcept nogil:
    """Segments of n rows; `segment` says where to go on in consecutive ones."""
    cdef Py_ssize_t i, s = segment[0]
    if r.offsets == NULL:
        return _codes(&r.ids, begin, n, chunk)
    for i in range(n):
        while r.offsets[s + 1] <= begin + i:
            s += 1
        chunk[i] = s
    segment[0] = s
    return chunk


ctypedef fused word:
    int32_t
    int64_t


cdef void _copy_rows(
    const word *p, Py_ssize_t row, Py_ssize_t column, Py_ssize_t rows, Py_ssize_t columns, word *to
) noexcept nogil:
    cdef const char *at = <const char *>p
    cdef Py_ssize_t i, c
    for c in range(columns):
        for i in range(rows):
            to[i * columns + c] = (<const word *>(at + i * row + c * column))[0]


cdef const char *_packed(
    const Data *x, const fg_precision *precision, const char *p, Py_ssize_t rows,
    Py_ssize_t columns, char *scratch,
) noexcept nogil:
    """Rows whose columns are contiguous: where they are, or in `scratch`."""
    if x.plain:
        return p
    if x.kind != FG_NATIVE:
        precision.widen(x.kind, p, x.row, x.column, rows, columns, <float *>scratch, columns)
    elif x.size == 4:
        _copy_rows(<const int32_t *>p, x.row, x.column, rows, columns, <int32_t *>scratch)
    else:
        _copy_rows(<const int64_t *>p, x.row, x.column, rows, columns, <int64_t *>scratch)
    return scratch


cdef Py_ssize_t _pitch(Py_ssize_t columns, Py_ssize_t size) noexcept nogil:
    """Doubles of a segment's accumulators."""
    return columns if size == 4 else 2 * columns


cdef Py_ssize_t _columns_at_once(
    Py_ssize_t items, Py_ssize_t segments, Py_ssize_t columns, Py_ssize_t size, int threads
) noexcept nogil:
    """Columns of a block: whole cache lines, one block for every thread where a batch is none, and
    accumulators that stay in L2 where that leaves some 256 bytes of a row together."""
    cdef Py_ssize_t line = LINE // size, block = columns, fits
    if items < threads and columns * size >= LINE * threads:
        block = (columns + threads - 1) // threads
    fits = TABLE_BLOCK // (8 * max(segments, 1) * (1 if size == 4 else 2))
    if block > fits:
        block = max(fits, 4 * line)
    block = (block + line - 1) // line * line
    return min(block, columns)


def prefers_table(
    Py_ssize_t items, Py_ssize_t rows, Py_ssize_t segments, Py_ssize_t columns, Py_ssize_t size,
    bint is_sorted
):
    """Whether to accumulate rows as they come, rather than to gather them by segment."""
    cdef Py_ssize_t block, table
    block = _columns_at_once(items, segments, columns, size, 1)
    table = 8 * segments * _pitch(block, size)
    return table <= TABLE_BLOCK or (
        not is_sorted and columns * size <= LINE and table <= TABLE_FAR
    )


cdef int _threads(Py_ssize_t elements):
    return <int>max(1, min(<Py_ssize_t>_rows.get_threads(), elements // PER_THREAD))


cdef struct Unit:
    const fg_precision *precision
    Data x
    Rows rows
    Py_ssize_t n, columns, block
    const char *weight            # (B, N), contiguous


cdef int _add_unit(
    const Unit *u, const fg_segments *common, Py_ssize_t which
) noexcept nogil:
    """One block of columns of one item, from its rows to its results; -1 without memory."""
    cdef fg_segments run = common[0]
    cdef Py_ssize_t blocks = (u.columns + u.block - 1) // u.block
    cdef Py_ssize_t b = which // blocks, c = which % blocks * u.block, i = 0, n, most = CHUNK
    cdef Py_ssize_t segments = u.rows.segments, segment = 0
    cdef const char *x = u.x.data + b * u.x.item + c * u.x.column
    cdef int64_t chunk[CHUNK]
    cdef char *scratch = NULL
    run.columns = min(u.block, u.columns - c)
    run.pitch = _pitch(run.columns, u.x.size)
    run.far = segments * run.pitch * 8 > TABLE_NEAR
    run.table = <double *>fg_table_of(segments * run.pitch * 8)
    if not u.x.plain:
        most = max(1, min(<Py_ssize_t>CHUNK, (1 << 15) // run.columns))
        scratch = <char *>malloc(u.x.size * (most * run.columns + 16))
    if run.table == NULL or (scratch == NULL and not u.x.plain):
        free(run.table)
        free(scratch)
        return -1
    run.x_row = u.x.row if u.x.plain else run.columns * u.x.size
    while i < u.n:
        n = min(most, u.n - i)
        run.rows = n
        run.code = _segment_of(&u.rows, b * u.n + i, n, chunk, &segment)
        if u.weight != NULL:
            run.weight = u.weight + (b * u.n + i) * u.x.size
        run.x = _packed(&u.x, u.precision, x + i * u.x.row, n, run.columns, scratch)
        u.precision.segment_add(&run)
        i += n
    run.out = common.out + b * segments * common.out_row + c * u.x.size
    if run.offsets != NULL:
        run.offsets += b * segments
    if run.total != NULL:
        run.total += b * segments
    u.precision.segment_finish(&run, 0, segments)
    free(run.table)
    free(scratch)
    return 0


cdef int _gather_unit(
    const Unit *u, const fg_segments *common, Py_ssize_t which, Py_ssize_t pieces
) noexcept nogil:
    """Some of the segments of one item, chosen so that all pieces have as many rows."""
    cdef fg_segments run = common[0]
    cdef Py_ssize_t b = which // pieces, k = which % pieces, segments = u.rows.segments
    cdef Py_ssize_t first = _piece(run.offsets + b * segments, segments, k, pieces)
    cdef Py_ssize_t last = _piece(run.offsets + b * segments, segments, k + 1, pieces)
    if first == last:
        return 0
    run.x = u.x.data + b * u.x.item
    run.x_row = u.x.row
    run.columns = u.columns
    run.pitch = _pitch(u.columns, u.x.size)
    run.base = b * u.n
    if u.weight != NULL:
        run.weight = u.weight + b * u.n * u.x.size
    run.table = <double *>malloc(8 * run.pitch + 64)
    if run.table == NULL:
        return -1
    u.precision.segment_gather(&run, b * segments + first, b * segments + last)
    free(run.table)
    return 0


cdef Py_ssize_t _piece(
    const int64_t *offsets, Py_ssize_t segments, Py_ssize_t k, Py_ssize_t pieces
) noexcept nogil:
    """The first segment of piece k: rows and segments weigh alike."""
    cdef int64_t all = offsets[segments] - offsets[0] + segments
    cdef int64_t goal = all // pieces * k + all % pieces * k // pieces
    cdef Py_ssize_t low = 0, high = segments, middle
    if k == pieces:
        return segments
    while low < high:
        middle = (low + high) // 2
        if offsets[middle] - offsets[0] + middle < goal:
            low = middle + 1
        else:
            high = middle
    return low


def reduce(
    cnp.ndarray x, ids, ignore_index, const int64_t[::1] offsets, const int64_t[::1] order,
    cnp.ndarray out, weight, const double[::1] total, bint mean, double empty, bint table,
):
    """Sums or means of x (B, N, d) over segments, into `out` (B, K, d), contiguous, of the type
    computed in.

    `table` chooses the path; without it `offsets` are needed, and `order` unless `ids` are None.
    `weight` is (B, N), contiguous, of that type; `total` (B * K) what means are divided by instead
    of the rows' number, 0 for an empty segment.
    """
    cdef fg_segments common
    cdef Unit u
    cdef Py_ssize_t items = cnp.PyArray_DIM(x, 0), which, pieces, units
    cdef int threads, failed = 0
    memset(&common, 0, sizeof(common))
    u.n = cnp.PyArray_DIM(x, 1)
    u.columns = cnp.PyArray_DIM(x, 2)
    u.x = _data(x)
    u.precision = active().f32 if u.x.size == 4 else active().f64
    u.rows = _rows_of(ids, ignore_index, offsets, cnp.PyArray_DIM(out, 1))
    u.weight = NULL
    if weight is not None:
        u.weight = <const char *>cnp.PyArray_DATA(weight)
        common.weight = u.weight
    if items == 0 or u.columns == 0 or u.rows.segments == 0:
        return
    common.out = <char *>cnp.PyArray_DATA(out)
    common.out_row = u.columns * u.x.size
    common.mean = mean
    common.empty = empty
    if offsets is not None:
        common.offsets = &offsets[0]
    if order is not None and order.shape[0] > 0:
        common.order = &order[0]
    if total is not None:
        common.total = &total[0]
    threads = _threads(items * u.n * u.columns)
    if table or not u.x.plain:
        u.block = _columns_at_once(items, u.rows.segments, u.columns, u.x.size, threads)
        units = items * ((u.columns + u.block - 1) // u.block)
        threads = <int>min(<Py_ssize_t>threads, units)
        with nogil:
            if threads == 1:
                for which in range(units):
                    failed |= _add_unit(&u, &common, which)
            else:
                for which in prange(units, num_threads=threads, schedule="dynamic", chunksize=1):
                    failed |= _add_unit(&u, &common, which)
    else:
        pieces = 1 if threads == 1 else max(1, PIECES * threads // items)
        units = items * pieces
        with nogil:
            if threads == 1:
                for which in range(units):
                    failed |= _gather_unit(&u, &common, which, pieces)
            else:
                for which in prange(units, num_threads=threads, schedule="dynamic", chunksize=1):
                    failed |= _gather_unit(&u, &common, which, pieces)
    if failed:
        raise MemoryError("no room for the accumulators of the segments")


def spread(
    cnp.ndarray table, ids, ignore_index, const int64_t[::1] offsets, cnp.ndarray out, weight
):
    """out (B, N, d), contiguous: row k of table (B, K, d) for each row of segment k, times its
    weight; 0 for rows of no segment."""
    cdef fg_segments common
    cdef Unit u
    cdef Py_ssize_t items = cnp.PyArray_DIM(out, 0), chunks, which
    cdef int threads
    memset(&common, 0, sizeof(common))
    u.n = cnp.PyArray_DIM(out, 1)
    u.columns = cnp.PyArray_DIM(out, 2)
    u.x = _data(table)
    u.precision = active().f32 if u.x.size == 4 else active().f64
    u.rows = _rows_of(ids, ignore_index, offsets, cnp.PyArray_DIM(table, 1))
    u.weight = NULL
    if weight is not None:
        u.weight = <const char *>cnp.PyArray_DATA(weight)
    if cnp.PyArray_SIZE(out) == 0:
        return
    common.out = <char *>cnp.PyArray_DATA(out)
    common.columns = u.columns
    common.x_row = common.out_row = u.columns * u.x.size
    chunks = (u.n + CHUNK - 1) // CHUNK
    threads = _threads(cnp.PyArray_SIZE(out))
    with nogil:
        if threads == 1:
            for which in range(items * chunks):
                _spread_unit(&u, &common, which, chunks)
        else:
            for which in prange(items * chunks, num_threads=threads, schedule="static"):
                _spread_unit(&u, &common, which, chunks)


cdef void _spread_unit(
    const Unit *u, const fg_segments *common, Py_ssize_t which, Py_ssize_t chunks
) noexcept nogil:
    cdef fg_segments run = common[0]
    cdef Py_ssize_t b = which // chunks, i = which % chunks * CHUNK, segment = 0, low, high
    cdef Py_ssize_t begin = b * u.n + i
    cdef int64_t chunk[CHUNK]
    if u.rows.offsets != NULL:  # the last segment that begins at or before the row
        low, high = 0, u.rows.segments
        while low + 1 < high:
            segment = (low + high) // 2
            if u.rows.offsets[segment] <= begin:
                low = segment
            else:
                high = segment
        segment = low
    run.rows = min(<Py_ssize_t>CHUNK, u.n - i)
    run.code = _segment_of(&u.rows, begin, run.rows, chunk, &segment)
    run.x = u.x.data + b * u.rows.segments * run.x_row
    run.out = common.out + begin * run.out_row
    if u.weight != NULL:
        run.weight = u.weight + begin * u.x.size
    u.precision.segment_spread(&run)


cdef int _extreme_unit(
    const Unit *u, const fg_segments *common, Py_ssize_t which, Py_ssize_t pieces, bint least,
    int64_t *place,
) noexcept nogil:
    """The extremes of some of the segments of one item."""
    cdef fg_segments run = common[0]
    cdef Py_ssize_t b = which // pieces, k = which % pieces, segments = u.rows.segments
    cdef const int64_t *offsets = common.offsets + b * segments
    cdef Py_ssize_t s, i, j, end, n, r, last = _piece(offsets, segments, k + 1, pieces)
    cdef Py_ssize_t most = max(1, (1 << 13) // u.columns)
    cdef const char *x = u.x.data + b * u.x.item
    cdef char *best
    cdef int64_t *at = NULL
    cdef char *scratch = NULL
    if not u.x.plain:
        scratch = <char *>malloc(u.x.size * (most * u.columns + 16))
        if scratch == NULL:
            return -1
    run.columns = u.columns
    run.base = b * u.n
    for s in range(_piece(offsets, segments, k, pieces), last):
        i = offsets[s]
        end = offsets[s + 1]
        best = common.out + (b * segments + s) * common.out_row
        if place != NULL:
            at = place + (b * segments + s) * u.columns
        if u.x.plain:
            run.x = x
            run.x_row = u.x.row
            u.precision.segment_extreme(&run, least, i, end, False, True, best, at)
            continue
        run.x = scratch
        run.x_row = u.columns * u.x.size
        while i < end:
            n = min(most, end - i)
            for j in range(n):
                r = i + j if run.order == NULL else run.order[i + j] - run.base
                _packed(
                    &u.x, u.precision, x + r * u.x.row, 1, u.columns, scratch + j * run.x_row
                )
            u.precision.segment_extreme(&run, least, i, i + n, True, i == offsets[s], best, at)
            i += n
    free(scratch)
    return 0


def extreme(
    cnp.ndarray x, bint least, const int64_t[::1] offsets, const int64_t[::1] order,
    cnp.ndarray out, int64_t[:, :, ::1] place,
):
    """Largest or smallest rows of x (B, N, d) into `out` (B, K, d), contiguous, of the type
    computed in, and their positions in the item into `place`, if given; empty segments stay.

    Without `order` rows lie in the order of segments.
    """
    cdef fg_segments common
    cdef Unit u
    cdef Py_ssize_t items = cnp.PyArray_DIM(x, 0), which, pieces
    cdef int threads, failed = 0
    cdef int64_t *at = NULL
    memset(&common, 0, sizeof(common))
    u.n = cnp.PyArray_DIM(x, 1)
    u.columns = cnp.PyArray_DIM(x, 2)
    u.x = _data(x)
    u.precision = active().f32 if u.x.size == 4 else active().f64
    u.rows = _rows_of(None, None, offsets, cnp.PyArray_DIM(out, 1))
    u.weight = NULL
    if cnp.PyArray_SIZE(out) == 0 or cnp.PyArray_SIZE(x) == 0:
        return
    common.out = <char *>cnp.PyArray_DATA(out)
    common.out_row = u.columns * u.x.size
    common.offsets = &offsets[0]
    if order is not None and order.shape[0] > 0:
        common.order = &order[0]
    if place is not None:
        at = &place[0, 0, 0]
    threads = _threads(items * u.n * u.columns)
    pieces = 1 if threads == 1 else max(1, PIECES * threads // items)
    with nogil:
        if threads == 1:
            for which in range(items * pieces):
                failed |= _extreme_unit(&u, &common, which, pieces, least, at)
        else:
            for which in prange(
                items * pieces, num_threads=threads, schedule="dynamic", chunksize=1
            ):
                failed |= _extreme_unit(&u, &common, which, pieces, least, at)
    if failed:
        raise MemoryError("no room for a block of rows")


# ---- softmax and its kin ----------------------------------------------------------------------
#
# A *series* is one column of one segment, and a row to the kernels of softmax.inc.h.  How it is
# computed depends on its length and the number of columns alone, so its bits depend on neither
# neighbours, order nor threads:
#
#   short, few columns   GROUP series side by side, filled up with terms that vanish: style `lanes`
#   more columns         those of one segment side by side: style `lanes`
#   long                 one by one, packed: style `rows`

cdef enum:
    GROUP = 64         # series of a tile
    FEW = 16           # columns from which on those of one segment are a tile
    TILE = 1 << 14     # elements of a tile of such columns
    SCRATCH = 1 << 20  # bytes that the lanes kernels need for short rows

_KERNELS = {
    "softmax": FG_SOFTMAX,
    "log_softmax": FG_LOG_SOFTMAX,
    "logsumexp": FG_LOGSUMEXP,
    "pull_softmax": FG_PULL_SOFTMAX,
    "pull_log_softmax": FG_PULL_LOG_SOFTMAX,
    "push_log_softmax": FG_PUSH_LOG_SOFTMAX,
    "push_logsumexp": FG_PUSH_LOGSUMEXP,
}

cdef struct Series:
    const fg_precision *precision
    int kernel
    Py_ssize_t n, columns, segments, size
    const char *x
    Py_ssize_t x_item, x_row, x_column
    const char *g                 # or NULL
    Py_ssize_t g_item, g_row, g_column
    char *out                     # (B, N, d), contiguous; or NULL
    char *value                   # (B, K, d), contiguous; or NULL
    const char *alpha             # the same
    const int64_t *offsets
    const int64_t *order          # NULL if rows lie in the order of segments

# A thread's memory, and the tile that it is filling.
cdef struct Tile:
    char *x
    char *g
    char *out
    char *value
    char *alpha
    void *scratch
    Py_ssize_t count, longest
    Py_ssize_t item[GROUP]
    Py_ssize_t segment[GROUP]
    Py_ssize_t column[GROUP]


cdef inline Py_ssize_t _position(const Series *u, Py_ssize_t b, Py_ssize_t i) noexcept nogil:
    return i if u.order == NULL else u.order[i] - b * u.n


cdef void _take(
    const Series *u, const char *p, Py_ssize_t row, Py_ssize_t b, Py_ssize_t s, word *to,
    Py_ssize_t room, word fill,
) noexcept nogil:
    """One column of a segment from p on, and `fill` up to `room` elements."""
    cdef Py_ssize_t begin = u.offsets[s], n = u.offsets[s + 1] - begin, i
    if u.order != NULL:
        for i in range(n):
            to[i] = (<const word *>(p + (u.order[begin + i] - b * u.n) * row))[0]
    elif row == u.size:
        memcpy(to, p + begin * row, n * u.size)
    else:
        for i in range(n):
            to[i] = (<const word *>(p + (begin + i) * row))[0]
    for i in range(n, room):
        to[i] = fill


cdef void _put(
    const Series *u, const word *line, Py_ssize_t b, Py_ssize_t s, Py_ssize_t c
) noexcept nogil:
    """A column of a segment of `out`."""
    cdef Py_ssize_t begin = u.offsets[s], n = u.offsets[s + 1] - begin, i
    cdef word *to = <word *>u.out + b * u.n * u.columns + c
    if u.order == NULL and u.columns == 1:
        memcpy(to + begin, line, n * u.size)
        return
    for i in range(n):
        to[_position(u, b, begin + i) * u.columns] = line[i]


cdef void _take_any(
    const Series *u, bint is_g, Py_ssize_t b, Py_ssize_t s, Py_ssize_t c, char *to,
    Py_ssize_t room,
) noexcept nogil:
    cdef const char *p = u.x + b * u.x_item + c * u.x_column
    cdef Py_ssize_t row = u.x_row
    # What fills up a series must vanish: -inf among scores; 0 among probabilities and vectors.
    cdef bint scores = not is_g and u.g == NULL
    if is_g:
        p = u.g + b * u.g_item + c * u.g_column
        row = u.g_row
    if u.size == 4:
        _take(u, p, row, b, s, <int32_t *>to, room, <int32_t>(0xff800000 if scores else 0))
    else:
        _take(
            u, p, row, b, s, <int64_t *>to, room,
            <int64_t>(0xfff0000000000000 if scores else 0),
        )


cdef void _put_any(
    const Series *u, const char *line, Py_ssize_t b, Py_ssize_t s, Py_ssize_t c
) noexcept nogil:
    if u.size == 4:
        _put(u, <const int32_t *>line, b, s, c)
    else:
        _put(u, <const int64_t *>line, b, s, c)


cdef fg_run _run_of(const Series *u, const Tile *t) noexcept nogil:
    cdef fg_run run
    memset(&run, 0, sizeof(run))
    run.scale = 1.0
    run.log2e[0] = 1.4426950408889634
    run.log2e[1] = 2.0355273740931033e-17
    run.inv_temperature = 1.0
    run.scratch = t.scratch
    run.x = t.x
    run.out = t.out if u.out != NULL else NULL
    run.g = t.g if u.g != NULL else NULL
    run.value = t.value if u.value != NULL else NULL
    run.alpha = t.alpha if u.alpha != NULL else NULL
    run.value_row = run.alpha_row = u.size
    return run


cdef void _flush(const Series *u, Tile *t) noexcept nogil:
    """Compute the series side by side in the tile, and put them where they belong."""
    cdef fg_run run = _run_of(u, t)
    cdef Py_ssize_t k, at, line = t.longest * u.size
    if t.count == 0:
        return
    run.rows = t.count
    run.classes = t.longest
    run.x_row = run.out_row = run.g_row = line
    run.x_class = run.out_class = run.g_class = u.size
    for k in range(t.count):
        _take_any(u, False, t.item[k], t.segment[k], t.column[k], t.x + k * line, t.longest)
        if u.g != NULL:
            _take_any(u, True, t.item[k], t.segment[k], t.column[k], t.g + k * line, t.longest)
        if u.alpha != NULL:
            at = (t.segment[k] * u.columns + t.column[k]) * u.size
            memcpy(t.alpha + k * u.size, u.alpha + at, u.size)
    u.precision.kernel[FG_NATIVE][u.kernel][FG_LANES](&run)
    for k in range(t.count):
        if u.out != NULL:
            _put_any(u, t.out + k * line, t.item[k], t.segment[k], t.column[k])
        if u.value != NULL:
            at = (t.segment[k] * u.columns + t.column[k]) * u.size
            memcpy(u.value + at, t.value + k * u.size, u.size)
    t.count = t.longest = 0


cdef void _one_by_one(
    const Series *u, Tile *t, Py_ssize_t b, Py_ssize_t s, Py_ssize_t n
) noexcept nogil:
    """A long segment, each of its columns packed unless it is contiguous."""
    cdef fg_run run = _run_of(u, t)
    cdef Py_ssize_t c, at
    cdef bint in_order = u.order == NULL
    run.rows = 1
    run.classes = n
    run.x_class = run.out_class = run.g_class = u.size
    for c in range(u.columns):
        at = (s * u.columns + c) * u.size
        if in_order and u.x_row == u.size:
            run.x = u.x + b * u.x_item + c * u.x_column + u.offsets[s] * u.size
        else:
            _take_any(u, False, b, s, c, t.x, n)
        if u.g != NULL and in_order and u.g_row == u.size:
            run.g = u.g + b * u.g_item + c * u.g_column + u.offsets[s] * u.size
        elif u.g != NULL:
            _take_any(u, True, b, s, c, t.g, n)
        if u.out != NULL and in_order and u.columns == 1:
            run.out = u.out + u.offsets[s] * u.size
        if u.value != NULL:
            run.value = u.value + at
        if u.alpha != NULL:
            run.alpha = u.alpha + at
        u.precision.kernel[FG_NATIVE][u.kernel][FG_ROWS](&run)
        if u.out != NULL and not (in_order and u.columns == 1):
            _put_any(u, t.out, b, s, c)


cdef void _side_by_side(
    const Series *u, Tile *t, Py_ssize_t b, Py_ssize_t s, Py_ssize_t n
) noexcept nogil:
    """A segment with many columns, some of them at a time."""
    cdef fg_run run = _run_of(u, t)
    cdef Py_ssize_t c = 0, i, r, k, at, begin = u.offsets[s]
    cdef Py_ssize_t most = min(u.columns, max(<Py_ssize_t>FEW, TILE // n))
    cdef bint direct_x = u.order == NULL and u.x_column == u.size
    cdef bint direct_g = u.order == NULL and u.g_column == u.size
    run.classes = n
    run.x_row = run.out_row = run.g_row = u.size
    while c < u.columns:
        k = min(most, u.columns - c)
        run.rows = k
        run.x_class = run.g_class = run.out_class = k * u.size
        if direct_x:
            run.x = u.x + c * u.size + begin * u.x_row
            run.x_class = u.x_row
        if direct_g:
            run.g = u.g + c * u.size + begin * u.g_row
            run.g_class = u.g_row
        for i in range(n if not direct_x or (u.g != NULL and not direct_g) else 0):
            r = _position(u, b, begin + i)
            at = i * k * u.size
            if not direct_x:
                _copy_any(
                    u.x + b * u.x_item + r * u.x_row + c * u.x_column, u.x_column, k, u.size,
                    t.x + at,
                )
            if u.g != NULL and not direct_g:
                _copy_any(
                    u.g + b * u.g_item + r * u.g_row + c * u.g_column, u.g_column, k, u.size,
                    t.g + at,
                )
        if u.out != NULL and u.order == NULL:
            run.out = u.out + (begin * u.columns + c) * u.size
            run.out_class = u.columns * u.size
        at = (s * u.columns + c) * u.size
        if u.value != NULL:
            run.value = u.value + at
        if u.alpha != NULL:
            run.alpha = u.alpha + at
        u.precision.kernel[FG_NATIVE][u.kernel][FG_LANES](&run)
        if u.out != NULL and u.order != NULL:
            for i in range(n):
                at = (u.order[begin + i] * u.columns + c) * u.size
                memcpy(u.out + at, t.out + i * k * u.size, k * u.size)
        c += k


cdef void _copy_any(
    const char *p, Py_ssize_t step, Py_ssize_t n, Py_ssize_t size, char *to
) noexcept nogil:
    if step == size:
        memcpy(to, p, n * size)
    elif size == 4:
        _copy_rows(<const int32_t *>p, 0, step, 1, n, <int32_t *>to)
    else:
        _copy_rows(<const int64_t *>p, 0, step, 1, n, <int64_t *>to)


cdef int _series_unit(const Series *u, Py_ssize_t which, Py_ssize_t pieces) noexcept nogil:
    """All series of some of the segments of one item; -1 without memory."""
    cdef Py_ssize_t b = which // pieces, k = which % pieces, s, c, n, step
    cdef const int64_t *offsets = u.offsets + b * u.segments
    cdef Py_ssize_t first = b * u.segments + _piece(offsets, u.segments, k, pieces)
    cdef Py_ssize_t last = b * u.segments + _piece(offsets, u.segments, k + 1, pieces)
    cdef Py_ssize_t longest = 0, short_max, room, scratch
    cdef Tile t
    cdef char *block
    for s in range(first, last):
        longest = max(longest, u.offsets[s + 1] - u.offsets[s])
    if longest == 0:
        return 0
    short_max = FG_LANES_MAX_CONTIGUOUS if u.columns < FEW else FG_LANES_MAX
    n = min(longest, short_max)
    room = max(n * GROUP, longest)
    if u.columns >= FEW:
        room = max(longest, min(n * u.columns, max(<Py_ssize_t>TILE, n * FEW)))
    room = (room * u.size + 127) & ~<Py_ssize_t>63
    scratch = max(<Py_ssize_t>SCRATCH, u.precision.scratch_bytes(n, FG_LANES, u.kernel))
    if longest > short_max:
        scratch = max(scratch, u.precision.scratch_bytes(longest, FG_ROWS, u.kernel))
    scratch = (scratch + 63) & ~<Py_ssize_t>63
    step = 64 * 8
    block = <char *>malloc(3 * room + scratch + 2 * step + 64)
    if block == NULL:
        return -1
    t.x = block + (-<uintptr_t>block & 63)
    t.g = t.x + room
    t.out = t.g + room
    t.value = t.out + room
    t.alpha = t.value + step
    t.scratch = t.alpha + step
    t.count = t.longest = 0
    for s in range(first, last):
        n = u.offsets[s + 1] - u.offsets[s]
        if n == 0:
            continue
        if n > short_max:
            _one_by_one(u, &t, b, s, n)
        elif u.columns >= FEW:
            _side_by_side(u, &t, b, s, n)
        else:
            for c in range(u.columns):
                t.item[t.count] = b
                t.segment[t.count] = s
                t.column[t.count] = c
                t.longest = max(t.longest, n)
                t.count += 1
                if t.count == GROUP:
                    _flush(u, &t)
    _flush(u, &t)
    free(block)
    return 0


def series(
    name, cnp.ndarray x, g, const int64_t[::1] offsets, const int64_t[::1] order, out, value, alpha
):
    """A kernel of softmax over the rows of every segment.

    x and g (B, N, d) are of a native type, with any strides; out (B, N, d), value and alpha
    (B, K, d) contiguous.  What belongs to no segment, or to one without rows, stays as it is.
    Without `order` rows lie in the order of segments.
    """
    cdef Series u
    cdef Py_ssize_t items = cnp.PyArray_DIM(x, 0), which, pieces
    cdef int threads, failed = 0
    cdef cnp.ndarray a
    memset(&u, 0, sizeof(u))
    u.kernel = _KERNELS[name]
    u.n = cnp.PyArray_DIM(x, 1)
    u.columns = cnp.PyArray_DIM(x, 2)
    u.size = cnp.PyArray_ITEMSIZE(x)
    u.segments = (offsets.shape[0] - 1) // max(items, 1)
    u.precision = active().f32 if u.size == 4 else active().f64
    if cnp.PyArray_SIZE(x) == 0 or u.segments == 0:
        return
    u.x = <const char *>cnp.PyArray_DATA(x)
    u.x_item = cnp.PyArray_STRIDE(x, 0)
    u.x_row = cnp.PyArray_STRIDE(x, 1)
    u.x_column = cnp.PyArray_STRIDE(x, 2) if u.columns > 1 else u.size
    if g is not None:
        a = g
        u.g = <const char *>cnp.PyArray_DATA(a)
        u.g_item = cnp.PyArray_STRIDE(a, 0)
        u.g_row = cnp.PyArray_STRIDE(a, 1)
        u.g_column = cnp.PyArray_STRIDE(a, 2) if u.columns > 1 else u.size
    if out is not None:
        u.out = <char *>cnp.PyArray_DATA(<cnp.ndarray>out)
    if value is not None:
        u.value = <char *>cnp.PyArray_DATA(<cnp.ndarray>value)
    if alpha is not None:
        u.alpha = <const char *>cnp.PyArray_DATA(<cnp.ndarray>alpha)
    u.offsets = &offsets[0]
    if order is not None and order.shape[0] > 0:
        u.order = &order[0]
    threads = _threads(cnp.PyArray_SIZE(x))
    pieces = 1 if threads == 1 else max(1, PIECES * threads // items)
    with nogil:
        if threads == 1:
            for which in range(items * pieces):
                failed |= _series_unit(&u, which, pieces)
        else:
            for which in prange(
                items * pieces, num_threads=threads, schedule="dynamic", chunksize=1
            ):
                failed |= _series_unit(&u, which, pieces)
    if failed:
        raise MemoryError("no room for the terms of a segment")
