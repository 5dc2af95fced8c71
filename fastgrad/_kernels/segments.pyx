# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: freethreading_compatible=True
"""Sorting of rows by segment, and the reductions over segments.

Ids are (B, N), C-contiguous, of any integer dtype; they are widened to int64 block by block, -1
where ignored.  Data are (B, N, d) with any strides: B items of N rows.  A column of a segment is
reduced by one thread in the order of its rows, so that no choice made here (path, threads, blocks
of columns) changes a bit.
"""
from cython.parallel cimport prange
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

cimport numpy as cnp
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint64_t

from fastgrad._kernels import rows as _rows

from fastgrad._kernels.isa cimport (
    FG_BFLOAT16,
    FG_FLOAT16,
    FG_NATIVE,
    active,
    fg_precision,
    fg_segments,
)
from fastgrad._kernels.rows cimport UNSIGNED, integer_type, widen


cdef extern from "platform.h" nogil:
    void FG_PREFETCH(const void *)

cnp.import_array()

cdef enum:
    CHUNK = 512      # rows widened at once
    COPIES = 4        # of a small table of counters, so that neighbours of one segment need not wait
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
        a.ignoring = False  # widening makes this of every id beyond int64, and those are errors
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
    cdef int type = cnp.PyArray_TYPE(x)
    a.data = <const char *>cnp.PyArray_DATA(x)
    a.item = cnp.PyArray_STRIDE(x, 0)
    a.row = cnp.PyArray_STRIDE(x, 1)
    a.column = cnp.PyArray_STRIDE(x, 2)
    a.kind = FG_NATIVE
    if type == cnp.NPY_FLOAT16:
        a.kind = FG_FLOAT16
    elif cnp.PyTypeNum_ISUSERDEF(type):
        a.kind = FG_BFLOAT16
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
    bint sorted
):
    """Whether to accumulate rows as they come, rather than to gather them by segment."""
    cdef Py_ssize_t block, table
    block = _columns_at_once(items, segments, columns, size, 1)
    table = 8 * segments * _pitch(block, size)
    if table <= TABLE_BLOCK:
        return not sorted or columns > 1
    return not sorted and columns * size <= LINE and table <= TABLE_FAR


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
    run.table = <double *>calloc(max(segments * run.pitch, 1), 8)
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
