# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: freethreading_compatible=True
"""Reductions over segments: sums, means and extremes; and a row of each, spread over its rows.

Data are (B, N, d) with any strides: B items of N rows.  A column of a segment is reduced in the
order of its rows, by one thread or strip by strip, so that no choice made here (path, threads,
blocks of columns) changes a bit.

Strips: of many rows of few segments each quarter, or half, is reduced by itself, as the shape
alone decides, and the sums are added in order.  Threads that shared out columns or segments would
each have the processor prefetch nearly all rows.
"""
from cython.parallel cimport prange
# The heap that tracemalloc sees: profile_loss counts scratch.
from cpython.mem cimport PyMem_RawFree as free, PyMem_RawMalloc as malloc
from libc.string cimport memcpy, memset

cimport numpy as cnp
from libc.stdint cimport int32_t, int64_t, uint64_t

from fastgrad._kernels.isa cimport FG_NATIVE, active, fg_precision, fg_segments
from fastgrad._kernels.pieces cimport piece, pieces_of
from fastgrad._kernels.rows cimport kind_of, threads_for
from fastgrad._kernels.sort cimport (
    CHUNK,
    Ids,
    Tally,
    codes,
    ids_of,
    tally_add,
    tally_end,
    tally_start,
)
from fastgrad._kernels.watch cimport Watch, ends, raised, watching


cdef extern from "threads.h" nogil:
    void *fg_table_of(size_t size)
    void fg_table_free(void *table)
    bint fg_last(int *left)

cnp.import_array()

cdef enum:
    LINE = 64                     # bytes of a cache line
    TABLE_BLOCK = 1 << 20         # of a block of columns, which stay in L2
    TABLE_FAR = 16 << 20          # of a table that is worth its misses where rows are short
    SHARED = 16                   # bytes of a row from which on threads share out the segments
    STRIPS = 4                    # of the rows of an item at most, each of so many
    STRIP_BYTES = 4 << 20         # bytes,
    STRIP_TABLES = 32             # and times its table

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
        r.ids = ids_of(ids, ignore_index)
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
        return codes(&r.ids, begin, n, chunk)
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
    Py_ssize_t units, Py_ssize_t segments, Py_ssize_t columns, Py_ssize_t size, int threads
) noexcept nogil:
    """Columns of a block: whole cache lines, so many blocks that all threads have one where items
    or strips are too few, and accumulators that stay in L2 where that leaves some 256 bytes of a
    row together."""
    cdef Py_ssize_t line = LINE // size, block = columns, fits, shares = threads // units
    if shares >= 2 and columns * size >= LINE * shares:
        block = (columns + shares - 1) // shares
    fits = TABLE_BLOCK // (8 * max(segments, 1) * (1 if size == 4 else 2))
    if block > fits:
        block = max(fits, 4 * line)
    block = (block + line - 1) // line * line
    return min(block, columns)


cdef Py_ssize_t _table_of(Py_ssize_t segments, Py_ssize_t columns, Py_ssize_t size) noexcept nogil:
    """Bytes of the accumulators of a block of columns, on one thread."""
    return 8 * segments * _pitch(_columns_at_once(1, segments, columns, size, 1), size)


def prefers_table(Py_ssize_t segments, Py_ssize_t columns, Py_ssize_t size, bint is_sorted):
    """Whether to accumulate rows as they come, rather than to gather them by segment."""
    cdef Py_ssize_t table = _table_of(segments, columns, size)
    return table <= TABLE_BLOCK or (
        not is_sorted and columns * size <= LINE and table <= TABLE_FAR
    )


cdef Py_ssize_t _strips_of(
    Py_ssize_t rows, Py_ssize_t segments, Py_ssize_t columns, Py_ssize_t size
) noexcept nogil:
    """Strips of the rows of an item: several only where the table is always preferred, for other
    ways to a sum know none."""
    cdef Py_ssize_t table = _table_of(segments, columns, size), strips = 1
    cdef Py_ssize_t bytes = rows * _columns_at_once(1, segments, columns, size, 1) * size
    cdef Py_ssize_t least = max(<Py_ssize_t>STRIP_BYTES, STRIP_TABLES * table)
    if columns > 1 and table <= TABLE_BLOCK:
        while strips < STRIPS and bytes >= 2 * strips * least:
            strips *= 2
    return strips


cdef struct Sums:                 # of a strip
    double *table
    int64_t *counts               # of rows of segment k at k + 1, behind the table; or NULL
    int told

cdef struct Unit:
    const fg_precision *precision
    Data x
    Rows rows
    Py_ssize_t n, columns, block
    Py_ssize_t parts              # of the segments, where rows are too short to cut
    Py_ssize_t strips
    Sums *sums                    # of every unit
    int *left                     # strips that are not done, of every block of columns or part
    const char *weight            # (B, N), contiguous
    int64_t limit                 # that ids must be below, checked on the way; -1: they are
    int64_t *made                 # (K + 1), to count the rows of segment k at k + 1; or NULL


cdef enum:
    LOST = 1   # a mean that is not finite
    FULL = 2   # no memory
    WRONG = 4  # an id out of range


cdef struct Place:                # of the work of a unit
    Py_ssize_t item, column, low  # its first column, its first segment
    Py_ssize_t segments


cdef Place _place(const Unit *u, Py_ssize_t block, fg_segments *run) noexcept nogil:
    """Of a block of columns of an item, or of a part of its segments; sets the width of `run`."""
    cdef Py_ssize_t blocks = (u.columns + u.block - 1) // u.block, part = block % u.parts
    cdef Place p
    p.item = block // (blocks * u.parts)
    p.column = block // u.parts % blocks * u.block
    p.low = u.rows.segments * part // u.parts
    p.segments = u.rows.segments * (part + 1) // u.parts - p.low
    run.columns = min(u.block, u.columns - p.column)
    run.pitch = _pitch(run.columns, u.x.size)
    return p


cdef Sums _add_strip(
    const Unit *u, const fg_segments *common, Py_ssize_t which, Watch *watch
) noexcept nogil:
    """The accumulators of a unit, from its rows."""
    cdef fg_segments run = common[0]
    cdef Place p = _place(u, which // u.strips, &run)
    cdef Py_ssize_t i = u.n * (which % u.strips) // u.strips
    cdef Py_ssize_t end = u.n * (which % u.strips + 1) // u.strips
    cdef Py_ssize_t k, n, most = CHUNK, some, segment = 0
    cdef int64_t own[CHUNK]
    cdef int32_t taken[CHUNK]
    cdef Tally tally
    cdef bint counted = u.made != NULL
    cdef const char *x = u.x.data + p.item * u.x.item + p.column * u.x.column
    cdef int64_t chunk[CHUNK]
    cdef char *scratch = NULL
    cdef Sums sums
    sums.told = 0
    sums.counts = NULL
    sums.table = <double *>fg_table_of((p.segments * run.pitch + counted * (p.segments + 1)) * 8)
    if counted:
        sums.counts = <int64_t *>(sums.table + p.segments * run.pitch)
    if not u.x.plain:
        most = max(1, min(<Py_ssize_t>CHUNK, (1 << 15) // run.columns))
        scratch = <char *>malloc(u.x.size * (most * run.columns + 16))
    if sums.table == NULL or (scratch == NULL and not u.x.plain):
        free(scratch)
        sums.told = FULL
        return sums
    run.x_row = u.x.row if u.x.plain else run.columns * u.x.size
    run.table = sums.table
    if counted:
        tally_start(&tally, sums.counts + 1, p.segments)
    while i < end:
        n = min(most, end - i)
        if ends(watch, n * run.columns):
            break
        run.rows = n
        run.code = _segment_of(&u.rows, p.item * u.n + i, n, chunk, &segment)
        if u.limit >= 0 and u.precision.count_outside(run.code, n, u.limit):
            sums.told = WRONG
            break
        if u.weight != NULL:
            run.weight = u.weight + (p.item * u.n + i) * u.x.size
        run.x = _packed(&u.x, u.precision, x + i * u.x.row, n, run.columns, scratch)
        if u.parts > 1:
            some = 0
            for k in range(n):  # no branch: which rows are of this part cannot be foreseen
                own[some] = run.code[k] - p.low
                taken[some] = <int32_t>k
                some += <uint64_t>own[some] < <uint64_t>p.segments
            run.code = own
            run.taken = taken
            run.rows = some
        if counted:
            tally_add(&tally, run.code, run.rows, u.rows.ids.ignoring)
        u.precision.segment_add(&run)
        i += n
    if counted:
        tally_end(&tally)
    free(scratch)
    return sums


cdef int _finish(
    const Unit *u, const fg_segments *common, Py_ssize_t block, const Watch *watch
) noexcept nogil:
    """From the accumulators of all strips to the results; LOST or what the strips told.  Nothing is
    written if they told anything."""
    cdef fg_segments run = common[0]
    cdef Place p = _place(u, block, &run)
    cdef Sums *sums = u.sums + block * u.strips
    cdef Py_ssize_t k, s, low = p.item * u.rows.segments + p.low
    cdef int told = 0
    for s in range(u.strips):
        told |= sums[s].told
    if told != 0 or watch.ended:
        return told
    run.table = sums[0].table
    for s in range(1, u.strips):
        u.precision.segment_merge(&run, p.segments, sums[s].table)
        if sums[s].counts != NULL:
            for k in range(p.segments + 1):
                sums[0].counts[k] += sums[s].counts[k]
    run.out = common.out + low * common.out_row + p.column * u.x.size
    if sums[0].counts != NULL:
        if p.column == 0:
            memcpy(u.made + p.low + 1, sums[0].counts + 1, 8 * p.segments)
        for k in range(p.segments):
            sums[0].counts[k + 1] += sums[0].counts[k]
        run.offsets = sums[0].counts
    elif run.offsets != NULL:
        run.offsets += low
    if run.total != NULL:
        run.total += low
    return LOST if u.precision.segment_finish(&run, 0, p.segments) else 0


cdef int _add_unit(
    const Unit *u, const fg_segments *common, Py_ssize_t which, Watch *watch
) noexcept nogil:
    """A strip of one block of columns of one item, or of one part of its segments; who does the
    last strip finishes.  Returns LOST, FULL, WRONG or 0."""
    cdef Py_ssize_t block = which // u.strips, s
    cdef int told
    u.sums[which] = _add_strip(u, common, which, watch)
    if not fg_last(u.left + block):
        return 0
    told = _finish(u, common, block, watch)
    for s in range(u.strips):
        fg_table_free(u.sums[block * u.strips + s].table)
    return told


cdef int _gather_unit(
    const Unit *u, const fg_segments *common, Py_ssize_t which, Py_ssize_t pieces, Watch *watch
) noexcept nogil:
    """Some of the segments of one item, chosen so that all pieces have as many rows."""
    cdef fg_segments run = common[0]
    cdef Py_ssize_t b = which // pieces, k = which % pieces, segments = u.rows.segments
    cdef Py_ssize_t first = piece(run.offsets + b * segments, segments, k, pieces)
    cdef Py_ssize_t last = piece(run.offsets + b * segments, segments, k + 1, pieces)
    cdef int lost
    if first == last or ends(watch, u.n // pieces * u.columns):
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
        return FULL
    lost = u.precision.segment_gather(&run, b * segments + first, b * segments + last)
    free(run.table)
    return LOST if lost else 0


def reduce(
    cnp.ndarray x, ids, ignore_index, const int64_t[::1] offsets, const int64_t[::1] order,
    cnp.ndarray out, weight, const double[::1] total, bint mean, double empty, bint table,
    double even, bint check, int64_t[::1] made,
):
    """Sums or means of x (B, N, d) over segments, into `out` (B, K, d), contiguous, of the type
    computed in; whether a mean of float64 is not finite.

    `table` chooses the path; without it `offsets` are needed, and `order` unless `ids` are None.
    `weight` is (B, N), contiguous, of that type; `total` (B * K) what means are divided by instead
    of the rows' number, 0 for an empty segment.  All weights, and `total`, are multiplied by
    `even`, a power of two; 1 for float32.

    With `check`, ids that are not checked yet are on the way, and their offsets, zeros (K + 1),
    made if they are given.  None if one is out of range: whoever writes a block of columns knows
    of all ids, so `out` is then as it was.  Only with `table`, of one item, and where none is
    ignored.
    """
    cdef fg_segments common
    cdef Unit u
    cdef Py_ssize_t items = cnp.PyArray_DIM(x, 0), which, pieces, blocks, units, elements
    cdef int threads, told = 0
    cdef Watch watch = watching()
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
    u.limit = u.rows.segments if check else -1
    u.made = NULL
    if items == 0 or u.columns == 0 or u.rows.segments == 0:
        return None if check else False
    if made is not None:
        u.made = &made[0]
    common.out = <char *>cnp.PyArray_DATA(out)
    common.out_row = u.columns * u.x.size
    common.mean = mean
    common.empty = empty
    common.even = even
    if offsets is not None:
        common.offsets = &offsets[0]
    if order is not None and order.shape[0] > 0:
        common.order = &order[0]
    if total is not None:
        common.total = &total[0]
    elements = items * u.n * u.columns
    threads = threads_for(elements)
    if table or not u.x.plain:
        u.strips = _strips_of(u.n, u.rows.segments, u.columns, u.x.size)
        u.block = _columns_at_once(
            items * u.strips, u.rows.segments, u.columns, u.x.size, threads
        )
        blocks = items * ((u.columns + u.block - 1) // u.block)
        u.parts = 1
        if threads >= 2 * blocks * u.strips and u.columns * u.x.size >= SHARED:
            u.parts = min(threads // (blocks * u.strips), u.rows.segments)
            blocks *= u.parts
        units = blocks * u.strips
        threads = <int>min(<Py_ssize_t>threads, units)
        u.sums = <Sums *>malloc(units * sizeof(Sums) + blocks * sizeof(int))
        if u.sums == NULL:
            raise MemoryError("no room for the accumulators of the segments")
        u.left = <int *>(u.sums + units)
        for which in range(blocks):
            u.left[which] = <int>u.strips
        with nogil:
            if threads == 1:
                for which in range(units):
                    told |= _add_unit(&u, &common, which, &watch)
            else:
                for which in prange(units, num_threads=threads, schedule="dynamic", chunksize=1):
                    told |= _add_unit(&u, &common, which, &watch)
        free(u.sums)
    else:
        pieces = pieces_of(items, elements, threads)
        units = items * pieces
        with nogil:
            if threads == 1:
                for which in range(units):
                    told |= _gather_unit(&u, &common, which, pieces, &watch)
            else:
                for which in prange(units, num_threads=threads, schedule="dynamic", chunksize=1):
                    told |= _gather_unit(&u, &common, which, pieces, &watch)
    raised(&watch)
    if told & FULL:
        raise MemoryError("no room for the accumulators of the segments")
    if told & WRONG:
        return None
    for which in range(0 if u.made == NULL else u.rows.segments):
        u.made[which + 1] += u.made[which]
    return bool(told & LOST)


def spread(
    cnp.ndarray table, ids, ignore_index, const int64_t[::1] offsets, cnp.ndarray out, weight,
    const double[::1] total,
):
    """out (B, N, d), contiguous: row k of table (B, K, d) for each row of segment k, times its
    weight, or its share of total (B K); 0 for rows of no segment."""
    cdef fg_segments common
    cdef Unit u
    cdef Py_ssize_t items = cnp.PyArray_DIM(out, 0), chunks, which
    cdef int threads
    cdef Watch watch = watching()
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
    if total is not None:
        common.total = &total[0]
    common.out = <char *>cnp.PyArray_DATA(out)
    common.columns = u.columns
    common.x_row = common.out_row = u.columns * u.x.size
    chunks = (u.n + CHUNK - 1) // CHUNK
    threads = threads_for(cnp.PyArray_SIZE(out))
    with nogil:
        if threads == 1:
            for which in range(items * chunks):
                _spread_unit(&u, &common, which, chunks, &watch)
        else:
            for which in prange(items * chunks, num_threads=threads, schedule="static"):
                _spread_unit(&u, &common, which, chunks, &watch)
    raised(&watch)


cdef void _spread_unit(
    const Unit *u, const fg_segments *common, Py_ssize_t which, Py_ssize_t chunks, Watch *watch
) noexcept nogil:
    cdef fg_segments run = common[0]
    cdef Py_ssize_t b = which // chunks, i = which % chunks * CHUNK, segment = 0, low, high
    cdef Py_ssize_t begin = b * u.n + i
    cdef int64_t chunk[CHUNK]
    if ends(watch, CHUNK * u.columns):
        return
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
    if run.total != NULL:
        run.total += b * u.rows.segments
    run.out = common.out + begin * run.out_row
    if u.weight != NULL:
        run.weight = u.weight + begin * u.x.size
    u.precision.segment_spread(&run)


cdef int _extreme_unit(
    const Unit *u, const fg_segments *common, Py_ssize_t which, Py_ssize_t pieces, bint least,
    int64_t *place, Watch *watch,
) noexcept nogil:
    """The extremes of some of the segments of one item."""
    cdef fg_segments run = common[0]
    cdef Py_ssize_t b = which // pieces, k = which % pieces, segments = u.rows.segments
    cdef const int64_t *offsets = common.offsets + b * segments
    cdef Py_ssize_t s, i, j, end, n, r, last = piece(offsets, segments, k + 1, pieces)
    cdef Py_ssize_t most = max(1, (1 << 13) // u.columns)
    cdef const char *x = u.x.data + b * u.x.item
    cdef char *best
    cdef int64_t *at = NULL
    cdef char *scratch = NULL
    if watch.ended:
        return 0
    if not u.x.plain:
        scratch = <char *>malloc(u.x.size * (most * u.columns + 16))
        if scratch == NULL:
            return FULL
    run.columns = u.columns
    run.base = b * u.n
    for s in range(piece(offsets, segments, k, pieces), last):
        i = offsets[s]
        end = offsets[s + 1]
        best = common.out + (b * segments + s) * common.out_row
        if place != NULL:
            at = place + (b * segments + s) * u.columns
        run.x = x if u.x.plain else scratch
        run.x_row = u.x.row if u.x.plain else u.columns * u.x.size
        while i < end:
            n = min(most, end - i)
            if ends(watch, n * u.columns):
                break
            for j in range(0 if u.x.plain else n):
                r = i + j if run.order == NULL else run.order[i + j] - run.base
                _packed(
                    &u.x, u.precision, x + r * u.x.row, 1, u.columns, scratch + j * run.x_row
                )
            u.precision.segment_extreme(
                &run, least, i, i + n, not u.x.plain, i == offsets[s], best, at
            )
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
    cdef Py_ssize_t items = cnp.PyArray_DIM(x, 0), which, pieces, elements
    cdef int threads, told = 0
    cdef Watch watch = watching()
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
    elements = items * u.n * u.columns
    threads = threads_for(elements)
    pieces = pieces_of(items, elements, threads)
    with nogil:
        if threads == 1:
            for which in range(items * pieces):
                told |= _extreme_unit(&u, &common, which, pieces, least, at, &watch)
        else:
            for which in prange(
                items * pieces, num_threads=threads, schedule="dynamic", chunksize=1
            ):
                told |= _extreme_unit(&u, &common, which, pieces, least, at, &watch)
    raised(&watch)
    if told:
        raise MemoryError("no room for a block of rows")
