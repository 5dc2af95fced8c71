# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: freethreading_compatible=True
"""Sorting of rows by segment, and the reductions over segments.

Ids are (B, N), C-contiguous, of any integer dtype; they are widened to int64 block by block, -1
where ignored.  Data are (B, N, d) with any strides: B items of N rows.  A column of a segment is
reduced by one thread in the order of its rows, so that no choice made here (path, threads, blocks
of columns) changes a bit.

About every SLAB elements the thread that called looks at signals, so that Ctrl-C ends a long call.
"""
from cython.parallel cimport prange
from libc.math cimport INFINITY
# The heap that tracemalloc sees: profile_loss counts scratch.
from cpython.mem cimport PyMem_RawFree as free, PyMem_RawMalloc as malloc
from libc.string cimport memcpy, memset

cimport numpy as cnp
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint64_t, uintptr_t

from fastgrad._kernels import rows as _rows

from fastgrad._kernels.isa cimport (
    FG_BLOCKS,
    FG_BLOCKS_ABOVE_LISTED,
    FG_BLOCKS_MAX_BYTES,
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
    fg_lines,
    fg_precision,
    fg_run,
    fg_segments,
)
from fastgrad._kernels.rows cimport UNSIGNED, integer_type, kind_of, widen
from fastgrad._kernels.watch cimport SLAB, Watch, ends, raised, watching


cdef extern from "platform.h" nogil:
    void FG_PREFETCH(const void *)
    void FG_PREFETCH_WRITE(const void *)
cdef extern from "threads.h" nogil:
    void *fg_table_of(size_t size)
    void fg_table_free(void *table)

cnp.import_array()

cdef enum:
    CHUNK = 512       # rows widened at once
    LINE = 64         # bytes of a cache line
    COPIES = 4        # of a small table of counters: neighbours of one segment then do not wait
    SMALL = 1 << 10   # segments of such a table
    LARGE = 1 << 15   # segments whose counters leave the cache: sort in two steps
    STREAMS = 1 << 11  # segments whose next lines stay in L1
    AHEAD = 24        # rows between a prefetch and its use where they do not
    BUCKETS_BITS = 11  # of such a sort: more leave the cache
    PLACE_BITS = 44   # of a row's position, in one word with what is left of its id


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


cdef void _widen_flat(const Ids *ids, Py_ssize_t begin, Py_ssize_t n, int64_t *to) noexcept nogil:
    """widen(), in vectors for the types of packed ids."""
    cdef Py_ssize_t i
    if ids.type == 2:
        for i in range(n):
            to[i] = (<const int16_t *>ids.data)[begin + i]
    elif ids.type == 4:
        for i in range(n):
            to[i] = (<const int32_t *>ids.data)[begin + i]
    else:
        widen(ids.data + begin * ids.size, ids.size, n, ids.type, to)


cdef const int64_t *_codes(
    const Ids *ids, Py_ssize_t begin, Py_ssize_t n, int64_t *chunk
) noexcept nogil:
    """Ids [begin, begin + n): where they are, or in `chunk`, -1 for those ignored."""
    cdef Py_ssize_t i
    if ids.direct:
        return <const int64_t *>ids.data + begin
    _widen_flat(ids, begin, n, chunk)
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
    cdef Watch watch = watching()
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
                if i % SLAB == 0 and ends(&watch, SLAB + 1):
                    break
            if bad >= 0 or watch.ended:
                break
    raised(&watch)
    return bad, most


# The rows of every segment, counted.  A small table has copies, so that neighbours of one segment
# do not wait for each other.
cdef struct Tally:
    int64_t *counts
    Py_ssize_t segments
    int64_t *copy[COPIES]
    int64_t table[(COPIES - 1) * SMALL]


cdef void _tally_start(Tally *t, int64_t *counts, Py_ssize_t segments) noexcept nogil:
    cdef Py_ssize_t k
    t.counts = counts
    t.segments = segments
    for k in range(COPIES):
        t.copy[k] = counts
    if segments <= SMALL:
        for k in range(COPIES - 1):
            t.copy[k + 1] = t.table + k * SMALL
            memset(t.copy[k + 1], 0, 8 * segments)


cdef void _tally(Tally *t, const int64_t *at, Py_ssize_t n, bint ignoring) noexcept nogil:
    """Add rows of these segments, -1 for none if some are ignored."""
    cdef int64_t *c0 = t.copy[0]
    cdef int64_t *c1 = t.copy[1]
    cdef int64_t *c2 = t.copy[2]
    cdef int64_t *c3 = t.copy[3]
    cdef Py_ssize_t k = 0
    if ignoring:
        for k in range(n):
            if at[k] >= 0:
                c0[at[k]] += 1
        return
    while k + 4 <= n:
        c0[at[k]] += 1
        c1[at[k + 1]] += 1
        c2[at[k + 2]] += 1
        c3[at[k + 3]] += 1
        k += 4
    while k < n:
        c0[at[k]] += 1
        k += 1


cdef void _tally_end(Tally *t) noexcept nogil:
    cdef Py_ssize_t k
    if t.segments <= SMALL:
        for k in range(t.segments):
            t.counts[k] += t.copy[1][k] + t.copy[2][k] + t.copy[3][k]


ctypedef fused narrow:
    int8_t
    int16_t
    int32_t
    int64_t


def pack(
    cnp.ndarray ids, ignore_index, const int64_t[::1] classes, int64_t[:, ::1] counts,
    narrow[:, ::1] out,
):
    """A copy of the ids, -1 where ignored, in a type that is wide enough.

    With `classes`, of every item, ids are checked on the way (none is ignored then), and the copy
    is of use only if this returns True.  With `counts` (B, K), which holds zeros, rows are counted
    too.
    """
    cdef Ids a = _ids(ids, ignore_index)
    cdef int64_t chunk[CHUNK]
    cdef const int64_t *at
    cdef Py_ssize_t items = cnp.PyArray_DIM(ids, 0), rows = cnp.PyArray_DIM(ids, 1), b, i, k, n
    cdef bint good = True, checks = classes is not None, counting = counts is not None
    cdef narrow *to
    cdef Tally tally
    cdef Watch watch = watching()
    if items == 0 or rows == 0:
        return True
    if counting and counts.shape[1] == 0:
        counting = False
    to = &out[0, 0]
    with nogil:
        for b in range(items):
            if counting:
                _tally_start(&tally, &counts[b, 0], counts.shape[1])
            i = 0
            while i < rows and good:
                n = CHUNK if rows - i > CHUNK else rows - i
                at = _codes(&a, b * rows + i, n, chunk)
                if checks and active().f64.count_outside(at, n, classes[b]):
                    good = False
                    break
                for k in range(n):
                    to[b * rows + i + k] = <narrow>at[k]
                if counting:
                    _tally(&tally, at, n, a.ignoring)
                i += n
                if i % SLAB == 0 and ends(&watch, SLAB + 1):
                    break
            if watch.ended or not good:
                break
            if counting:
                _tally_end(&tally)
    raised(&watch)
    return good


cdef void _count(
    const Ids *ids, Py_ssize_t begin, Py_ssize_t rows, Py_ssize_t segments, int64_t *counts,
    Watch *watch,
) noexcept nogil:
    """Rows of every segment of an item, into `counts`, which holds zeros; ids are in range."""
    cdef int64_t chunk[CHUNK]
    cdef Tally tally
    cdef Py_ssize_t i = 0, n
    _tally_start(&tally, counts, segments)
    while i < rows:
        n = CHUNK if rows - i > CHUNK else rows - i
        _tally(&tally, _codes(ids, begin + i, n, chunk), n, ids.ignoring)
        i += n
        if i % SLAB == 0 and ends(watch, SLAB + 1):
            return
    _tally_end(&tally)


def count(cnp.ndarray ids, ignore_index, int64_t[:, ::1] counts):
    """Rows of every segment, into `counts` (B, K), which holds zeros; ids are in range."""
    cdef Ids a = _ids(ids, ignore_index)
    cdef Py_ssize_t items = cnp.PyArray_DIM(ids, 0), rows = cnp.PyArray_DIM(ids, 1), b
    cdef Py_ssize_t segments = counts.shape[1]
    cdef Watch watch = watching()
    if rows == 0 or segments == 0:
        return
    with nogil:
        for b in range(items):
            _count(&a, b * rows, rows, segments, &counts[b, 0], &watch)
            if watch.ended:
                break
    raised(&watch)


def ascends(cnp.ndarray ids, ignore_index, int64_t[::1] offsets):
    """Whether the ids of one item (1, N), which are in range, never fall, those ignored last.

    Then `offsets` (K + 1), zeros if given, say where segments begin; else they are of no use.
    """
    cdef Ids a = _ids(ids, ignore_index)
    cdef int64_t chunk[CHUNK]
    cdef const int64_t *at
    cdef Py_ssize_t rows = cnp.PyArray_DIM(ids, 1), i = 0, k, n
    cdef uint64_t before = 0  # as unsigned, the -1 of rows ignored is largest
    cdef bint falls = False
    cdef int64_t *begins = NULL
    cdef Watch watch = watching()
    if offsets is not None:
        begins = &offsets[0]
    with nogil:
        while i < rows and not falls:
            n = CHUNK if rows - i > CHUNK else rows - i
            at = _codes(&a, i, n, chunk)
            for k in range(n):
                falls |= <uint64_t>at[k] < before
                before = <uint64_t>at[k]
            if begins != NULL:
                for k in range(n):  # no branch where a segment ends: that cannot be foreseen
                    if not a.ignoring or at[k] >= 0:
                        begins[at[k] + 1] = i + k + 1
            i += n
            if i % SLAB == 0 and ends(&watch, SLAB + 1):
                break
        if begins != NULL and not falls:
            for k in range(1, offsets.shape[0]):
                begins[k] = max(begins[k], begins[k - 1])
    raised(&watch)
    return not falls


def sorts_in_steps(Py_ssize_t segments, Py_ssize_t rows):
    """Whether ids are for `sort`, and not for `count` (or `pack`) and `place`."""
    return LARGE < segments <= 1 << 30 and rows < 1LL << PLACE_BITS


def sort(cnp.ndarray ids, ignore_index, int64_t[::1] offsets, int64_t[::1] order):
    """A stable sort by segment: positions of the rows into `order` (B * N), where segments begin
    into `offsets` (B * K + 1).  Returns how many rows belong to one; ids are in range.

    For numbers that sorts_in_steps says.
    """
    cdef Ids a = _ids(ids, ignore_index)
    cdef Py_ssize_t items = cnp.PyArray_DIM(ids, 0), rows = cnp.PyArray_DIM(ids, 1), b
    cdef Py_ssize_t segments = (offsets.shape[0] - 1) // max(items, 1)
    cdef int64_t *to
    cdef Watch watch = watching()
    cdef bint full = False
    offsets[:] = 0
    if order.shape[0] == 0 or segments == 0:
        return 0
    to = &order[0]
    with nogil:
        for b in range(items):
            full = _sort_in_steps(
                &a, b * rows, rows, segments, &offsets[b * segments], to, &watch
            )
            if full or watch.ended:
                break
    if full:
        raise MemoryError("no room for the rows of some segments")
    raised(&watch)
    return int(offsets[items * segments])


def place(cnp.ndarray ids, ignore_index, const int64_t[::1] offsets, int64_t[::1] order):
    """The rest of such a sort, where the offsets are known."""
    cdef Ids a = _ids(ids, ignore_index)
    cdef Py_ssize_t items = cnp.PyArray_DIM(ids, 0), rows = cnp.PyArray_DIM(ids, 1), b
    cdef Py_ssize_t segments = (offsets.shape[0] - 1) // max(items, 1)
    cdef int64_t *cursor
    cdef int64_t *to
    cdef Watch watch = watching()
    if order.shape[0] == 0 or segments == 0:
        return
    to = &order[0]
    cursor = <int64_t *>malloc(8 * segments)
    if cursor == NULL:
        raise MemoryError("no room for the counters of the segments")
    with nogil:
        for b in range(items):
            memcpy(cursor, &offsets[b * segments], 8 * segments)
            _place(&a, b * rows, rows, segments, cursor, to, &watch)
            if watch.ended:
                break
    free(cursor)
    raised(&watch)


cdef void _place(
    const Ids *ids, Py_ssize_t begin, Py_ssize_t rows, Py_ssize_t segments, int64_t *next,
    int64_t *order, Watch *watch,
) noexcept nogil:
    """The position of each row to where its segment goes on, which `next` says."""
    cdef int64_t chunk[CHUNK]
    cdef const int64_t *at
    cdef Py_ssize_t i = 0, k, n, place
    cdef bint few = segments <= STREAMS
    while i < rows:
        n = CHUNK if rows - i > CHUNK else rows - i
        at = _codes(ids, begin + i, n, chunk)
        for k in range(n):
            if not few and k + AHEAD < n and at[k + AHEAD] >= 0:
                FG_PREFETCH_WRITE(order + next[at[k + AHEAD]])
            if at[k] >= 0:
                place = next[at[k]]
                next[at[k]] = place + 1
                order[place] = begin + i + k
                if few:
                    FG_PREFETCH_WRITE(order + place + LINE // 8)
        i += n
        if i % SLAB == 0 and ends(watch, SLAB + 1):
            return


cdef bint _sort_in_steps(
    const Ids *ids, Py_ssize_t begin, Py_ssize_t rows, Py_ssize_t segments, int64_t *offsets,
    int64_t *order, Watch *watch,
) noexcept nogil:
    """Sort an item, from offsets[0] on: first into buckets of neighbouring segments, then each of
    these, whose counters and rows stay in cache.  True without memory."""
    cdef int64_t chunk[CHUNK]
    cdef int64_t heads[(1 << BUCKETS_BITS) + 1]
    cdef const int64_t *at
    cdef int64_t *scratch
    cdef int64_t *next
    cdef int shift = 0
    cdef Py_ssize_t buckets, low, i, k, n, h, here, most = 0, first, last
    cdef int64_t base = offsets[0], entry, place
    while (segments - 1) >> shift >= 1 << BUCKETS_BITS or shift < 8:
        shift += 1
    buckets = ((segments - 1) >> shift) + 1
    low = <Py_ssize_t>1 << shift
    memset(heads, 0, sizeof(heads))
    for k in range(2):  # count, then place
        i = 0
        while i < rows:
            n = CHUNK if rows - i > CHUNK else rows - i
            at = _codes(ids, begin + i, n, chunk)
            if k == 0:
                for h in range(n):
                    if at[h] >= 0:
                        heads[at[h] >> shift] += 1
            else:
                for h in range(n):
                    if at[h] >= 0:
                        place = heads[at[h] >> shift]
                        heads[at[h] >> shift] = place + 1
                        order[place] = (at[h] & (low - 1)) << PLACE_BITS | (begin + i + h)
            i += n
            if i % SLAB == 0 and ends(watch, SLAB + 1):
                return False
        if k == 0:
            place = base
            for h in range(buckets):
                most = max(most, <Py_ssize_t>heads[h])
                entry = heads[h]
                heads[h] = place
                place += entry
    scratch = <int64_t *>malloc(8 * (most + low))
    if scratch == NULL:
        return True
    next = scratch + most
    place = base
    for h in range(buckets):
        n = heads[h] - place
        first = h << shift
        last = min(first + low, segments)
        here = last - first
        memset(next, 0, 8 * here)
        for i in range(n):
            entry = scratch[i] = order[place + i]
            next[entry >> PLACE_BITS] += 1
        for i in range(here):
            entry = next[i]
            next[i] = offsets[first + i] = place
            place += entry
        for i in range(n):
            entry = scratch[i]
            k = entry >> PLACE_BITS
            order[next[k]] = entry & ((<int64_t>1 << PLACE_BITS) - 1)
            next[k] += 1
        if ends(watch, n):
            break
    offsets[segments] = place
    free(scratch)
    return False


# ---- reductions -------------------------------------------------------------------------------

cdef enum:
    TABLE_BLOCK = 1 << 20         # of a block of columns, which stay in L2
    TABLE_FAR = 16 << 20          # of a table that is worth its misses where rows are short
    PER_THREAD = 1 << 16          # elements: less does not pay a second thread
    PIECES = 8                    # of the segments, for every thread
    SHARED = 16                   # bytes of a row from which on threads share out the segments

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
    Py_ssize_t parts              # of the segments, where rows are too short to cut
    const char *weight            # (B, N), contiguous
    int64_t limit                 # that ids must be below, checked on the way; -1: they are
    int64_t *made                 # (K + 1), to count the rows of segment k at k + 1; or NULL


cdef enum:
    LOST = 1   # a mean that is not finite
    FULL = 2   # no memory
    WRONG = 4  # an id out of range


cdef int _add_unit(
    const Unit *u, const fg_segments *common, Py_ssize_t which, Watch *watch
) noexcept nogil:
    """One block of columns of one item, or one part of its segments, from its rows to its results;
    LOST, FULL, WRONG or 0."""
    cdef fg_segments run = common[0]
    cdef Py_ssize_t blocks = (u.columns + u.block - 1) // u.block
    cdef Py_ssize_t b = which // (blocks * u.parts), c = which // u.parts % blocks * u.block
    cdef Py_ssize_t i = 0, k, n, most = CHUNK, low, some
    cdef int64_t own[CHUNK]
    cdef int32_t taken[CHUNK]
    cdef Tally tally
    cdef bint counted = u.made != NULL
    cdef int64_t *offsets = NULL
    cdef int told = 0
    cdef Py_ssize_t segments = u.rows.segments, segment = 0, part = which % u.parts
    cdef const char *x = u.x.data + b * u.x.item + c * u.x.column
    cdef int64_t chunk[CHUNK]
    cdef char *scratch = NULL
    low = segments * part // u.parts
    segments = segments * (part + 1) // u.parts - low
    run.columns = min(u.block, u.columns - c)
    run.pitch = _pitch(run.columns, u.x.size)
    run.table = <double *>fg_table_of((segments * run.pitch + counted * (segments + 1)) * 8)
    if counted:
        offsets = <int64_t *>(run.table + segments * run.pitch)
    if not u.x.plain:
        most = max(1, min(<Py_ssize_t>CHUNK, (1 << 15) // run.columns))
        scratch = <char *>malloc(u.x.size * (most * run.columns + 16))
    if run.table == NULL or (scratch == NULL and not u.x.plain):
        fg_table_free(run.table)
        free(scratch)
        return FULL
    run.x_row = u.x.row if u.x.plain else run.columns * u.x.size
    if counted:
        _tally_start(&tally, offsets + 1, segments)
    while i < u.n:
        n = min(most, u.n - i)
        if ends(watch, n * run.columns):
            break
        run.rows = n
        run.code = _segment_of(&u.rows, b * u.n + i, n, chunk, &segment)
        if u.limit >= 0 and u.precision.count_outside(run.code, n, u.limit):
            told = WRONG  # nothing was written but what is freed below
            break
        if u.weight != NULL:
            run.weight = u.weight + (b * u.n + i) * u.x.size
        run.x = _packed(&u.x, u.precision, x + i * u.x.row, n, run.columns, scratch)
        if u.parts > 1:
            some = 0
            for k in range(n):  # no branch: which rows are of this part cannot be foreseen
                own[some] = run.code[k] - low
                taken[some] = <int32_t>k
                some += <uint64_t>own[some] < <uint64_t>segments
            run.code = own
            run.taken = taken
            run.rows = some
        if counted:
            _tally(&tally, run.code, run.rows, u.rows.ids.ignoring)
        u.precision.segment_add(&run)
        i += n
    if counted:
        _tally_end(&tally)
        if c == 0:
            memcpy(u.made + low + 1, offsets + 1, 8 * segments)
        for k in range(segments):
            offsets[k + 1] += offsets[k]
    low += b * u.rows.segments
    run.out = common.out + low * common.out_row + c * u.x.size
    if counted:
        run.offsets = offsets
    elif run.offsets != NULL:
        run.offsets += low
    if run.total != NULL:
        run.total += low
    if told == 0 and not watch.ended and u.precision.segment_finish(&run, 0, segments):
        told = LOST
    fg_table_free(run.table)
    free(scratch)
    return told


cdef int _gather_unit(
    const Unit *u, const fg_segments *common, Py_ssize_t which, Py_ssize_t pieces, Watch *watch
) noexcept nogil:
    """Some of the segments of one item, chosen so that all pieces have as many rows."""
    cdef fg_segments run = common[0]
    cdef Py_ssize_t b = which // pieces, k = which % pieces, segments = u.rows.segments
    cdef Py_ssize_t first = _piece(run.offsets + b * segments, segments, k, pieces)
    cdef Py_ssize_t last = _piece(run.offsets + b * segments, segments, k + 1, pieces)
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


cdef Py_ssize_t _pieces(Py_ssize_t items, Py_ssize_t elements, int threads):
    """Into how many pieces the segments of each item go: several for a thread, and a slab each."""
    cdef Py_ssize_t pieces = elements // SLAB + 1
    if threads > 1:
        pieces = max(pieces, <Py_ssize_t>(PIECES * threads))
    return (pieces + items - 1) // items


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
    double even, bint check, int64_t[::1] made,
):
    """Sums or means of x (B, N, d) over segments, into `out` (B, K, d), contiguous, of the type
    computed in; whether a mean of float64 is not finite.

    `table` chooses the path; without it `offsets` are needed, and `order` unless `ids` are None.
    `weight` is (B, N), contiguous, of that type; `total` (B * K) what means are divided by instead
    of the rows' number, 0 for an empty segment.  All weights, and `total`, are multiplied by
    `even`, a power of two; 1 for float32.

    With `check`, ids that are not checked yet are on the way, and their offsets, zeros (K + 1),
    made if they are given.  None if one is out of range: every unit of the work reads them all, so
    `out` is then as it was.  Only with `table`, of one item, and where none is ignored.
    """
    cdef fg_segments common
    cdef Unit u
    cdef Py_ssize_t items = cnp.PyArray_DIM(x, 0), which, pieces, units, elements
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
    threads = _threads(elements)
    if table or not u.x.plain:
        u.block = _columns_at_once(items, u.rows.segments, u.columns, u.x.size, threads)
        units = items * ((u.columns + u.block - 1) // u.block)
        u.parts = 1
        if units < threads and u.columns * u.x.size >= SHARED:
            u.parts = min(<Py_ssize_t>threads, u.rows.segments)
            units *= u.parts
        threads = <int>min(<Py_ssize_t>threads, units)
        with nogil:
            if threads == 1:
                for which in range(units):
                    told |= _add_unit(&u, &common, which, &watch)
            else:
                for which in prange(units, num_threads=threads, schedule="dynamic", chunksize=1):
                    told |= _add_unit(&u, &common, which, &watch)
    else:
        pieces = _pieces(items, elements, threads)
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
    cnp.ndarray table, ids, ignore_index, const int64_t[::1] offsets, cnp.ndarray out, weight
):
    """out (B, N, d), contiguous: row k of table (B, K, d) for each row of segment k, times its
    weight; 0 for rows of no segment."""
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
    common.out = <char *>cnp.PyArray_DATA(out)
    common.columns = u.columns
    common.x_row = common.out_row = u.columns * u.x.size
    chunks = (u.n + CHUNK - 1) // CHUNK
    threads = _threads(cnp.PyArray_SIZE(out))
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
    cdef Py_ssize_t s, i, j, end, n, r, last = _piece(offsets, segments, k + 1, pieces)
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
    for s in range(_piece(offsets, segments, k, pieces), last):
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
    threads = _threads(elements)
    pieces = _pieces(items, elements, threads)
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


# ---- softmax and its kin ----------------------------------------------------------------------
#
# A *series* is one column of one segment, and a row to the kernels of softmax.inc.h.  How it is
# computed depends on its length and the number of columns alone, so its bits depend on neither
# neighbours, order nor threads:
#
#   many columns   those of one segment side by side: style `lanes`
#   else           a list of lines, in memory if they are contiguous there, packed otherwise: style
#                  `lanes` (those of like length together), `blocks` or `rows`, by length
#
# Kernels that know no lists, those of derivatives, take instead of them
#
#   short ones     GROUP series side by side, filled up with terms that vanish: style `lanes`
#   long ones      one by one, packed: style `rows`

cdef enum:
    GROUP = 64         # series of a tile
    LIST = 256         # series of a list
    FEW = 16           # columns from which on those of one segment are a tile
    TILE = 1 << 14     # elements of a tile of such columns
    SCRATCH = 1 << 20  # bytes that the lanes kernels need for rows of any number of classes
    WINDOW = 1 << 11   # segments that are sorted by length; fewer if they have more rows than
    WINDOW_ROWS = 1 << 15
    NEXT = 1 << 13     # bytes of a segment that are prefetched
    LENGTHS = 256      # lengths of those, FG_BLOCKS_MAX_BYTES of float32

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
    bint listed                   # the kernel takes lists of lines
    bint in_place                 # which lie in memory as they are

# A thread's memory, and the tile that it is filling.
cdef struct Tile:
    char *x
    char *g
    char *out
    char *value
    char *alpha
    void *scratch
    int style                     # of a list
    Py_ssize_t count, longest
    Py_ssize_t elements, ahead    # of a list; the row that is prefetched during it
    Py_ssize_t room               # elements for lines that are packed
    const char *line[LIST]
    char *to[LIST]
    Py_ssize_t length[LIST]
    Py_ssize_t item[LIST]
    Py_ssize_t segment[LIST]
    Py_ssize_t column[LIST]


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


cdef void _list(
    const Series *u, Tile *t, Py_ssize_t b, Py_ssize_t s, Py_ssize_t c, Py_ssize_t n
) noexcept nogil:
    """Put a series of n elements on the list, which is computed first if it is of another style."""
    cdef Py_ssize_t k
    cdef int style = FG_ROWS
    if n <= FG_BLOCKS_ABOVE_LISTED:
        style = FG_LANES
    elif n * u.size <= FG_BLOCKS_MAX_BYTES:
        style = FG_BLOCKS
    if t.count == LIST or t.style != style or (not u.in_place and t.elements + n > t.room):
        _flush_list(u, t)
    t.style = style
    k = t.count
    t.segment[k] = s
    t.length[k] = n
    if u.in_place:
        t.line[k] = u.x + u.offsets[s] * u.size
        t.to[k] = u.out + u.offsets[s] * u.size
    else:
        t.item[k] = b
        t.column[k] = c
        t.line[k] = t.x + t.elements * u.size
        t.to[k] = t.out + t.elements * u.size
        _take_any(u, False, b, s, c, t.x + t.elements * u.size, n)
    t.longest = max(t.longest, n)
    t.elements += n
    t.count += 1


cdef void _flush_list(const Series *u, Tile *t) noexcept nogil:
    """Compute the series of the list."""
    cdef fg_run run = _run_of(u, t)
    cdef fg_lines lines
    cdef Py_ssize_t k, at
    if t.count == 0:
        return
    run.classes = t.longest
    if u.alpha != NULL:
        for k in range(t.count):
            at = u.columns * t.segment[k] + (0 if u.in_place else t.column[k])
            memcpy(t.alpha + k * u.size, u.alpha + at * u.size, u.size)
    lines.lines = t.count
    lines.x = t.line
    lines.out = t.to
    lines.size = t.length
    lines.ahead = t.x
    lines.place = t.out
    if u.in_place:
        lines.ahead = u.x + t.ahead * u.size
        lines.place = u.out + t.ahead * u.size
    t.ahead += t.elements
    u.precision.listed[u.kernel][t.style](&run, &lines)
    for k in range(t.count if u.out != NULL and not u.in_place else 0):
        _put_any(u, t.to[k], t.item[k], t.segment[k], t.column[k])
    if u.value != NULL:
        for k in range(t.count):
            at = u.columns * t.segment[k] + (0 if u.in_place else t.column[k])
            memcpy(u.value + at * u.size, t.value + k * u.size, u.size)
    t.count = t.longest = t.elements = 0


cdef void _flush(const Series *u, Tile *t) noexcept nogil:
    """Compute the series side by side in the tile, and put them where they belong."""
    cdef fg_run run = _run_of(u, t)
    cdef Py_ssize_t k, at, line = t.longest * u.size
    cdef bint joined = u.order == NULL and u.columns == 1
    if t.count == 0:
        return
    run.rows = t.count
    run.classes = t.longest
    run.x_row = run.out_row = run.g_row = line
    run.x_class = run.out_class = run.g_class = u.size
    if joined:
        for k in range(t.count):
            at = u.offsets[t.segment[k]]
            t.length[k] = u.offsets[t.segment[k] + 1] - at
            t.line[k] = u.x + t.item[k] * u.x_item + at * u.size
            if u.out != NULL:
                t.to[k] = u.out + (t.item[k] * u.n + at) * u.size
    if joined and u.x_row == u.size:
        u.precision.lines_take(
            t.line, t.length, t.count, t.longest, -INFINITY if u.g == NULL else 0.0, t.x
        )
    else:
        for k in range(t.count):
            _take_any(u, False, t.item[k], t.segment[k], t.column[k], t.x + k * line, t.longest)
    for k in range(t.count):
        if u.g != NULL:
            _take_any(u, True, t.item[k], t.segment[k], t.column[k], t.g + k * line, t.longest)
        if u.alpha != NULL:
            at = (t.segment[k] * u.columns + t.column[k]) * u.size
            memcpy(t.alpha + k * u.size, u.alpha + at, u.size)
    u.precision.kernel[FG_NATIVE][u.kernel][FG_LANES](&run)
    if joined and u.out != NULL:
        u.precision.lines_put(t.out, t.length, t.count, t.longest, t.to)
    for k in range(t.count):
        if u.out != NULL and not joined:
            _put_any(u, t.out + k * line, t.item[k], t.segment[k], t.column[k])
        if u.value != NULL:
            at = (t.segment[k] * u.columns + t.column[k]) * u.size
            memcpy(u.value + at, t.value + k * u.size, u.size)
    t.count = t.longest = 0


cdef void _one_by_one(
    const Series *u, Tile *t, Py_ssize_t b, Py_ssize_t s, Py_ssize_t n, Watch *watch
) noexcept nogil:
    """A long segment, each of its columns packed unless it is contiguous."""
    cdef fg_run run = _run_of(u, t)
    cdef Py_ssize_t c, at, ahead
    cdef bint in_order = u.order == NULL
    run.rows = 1
    run.classes = n
    run.x_class = run.out_class = run.g_class = u.size
    for c in range(u.columns):
        if ends(watch, n):
            return
        at = (s * u.columns + c) * u.size
        if in_order and u.x_row == u.size:
            run.x = u.x + b * u.x_item + c * u.x_column + u.offsets[s] * u.size
            ahead = n * u.size
            for at in range(ahead, ahead + min(ahead, <Py_ssize_t>NEXT), 64):
                FG_PREFETCH(run.x + at)  # the next segment: to the kernel there is none
            at = (s * u.columns + c) * u.size
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
    const Series *u, Tile *t, Py_ssize_t b, Py_ssize_t s, Py_ssize_t n, Watch *watch
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
        if ends(watch, k * n):
            return
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


cdef int _series_unit(
    const Series *u, Py_ssize_t which, Py_ssize_t pieces, Watch *watch
) noexcept nogil:
    """All series of some of the segments of one item; FULL without memory."""
    cdef Py_ssize_t b = which // pieces, k = which % pieces, s, c, n, step
    cdef const int64_t *offsets = u.offsets + b * u.segments
    cdef Py_ssize_t first = b * u.segments + _piece(offsets, u.segments, k, pieces)
    cdef Py_ssize_t last = b * u.segments + _piece(offsets, u.segments, k + 1, pieces)
    cdef Py_ssize_t longest = 0, short_max, like_max, room, scratch, n_rows
    cdef Py_ssize_t begin, end
    cdef Py_ssize_t by_length[WINDOW]
    cdef Tile t
    cdef char *block
    if watch.ended:
        return 0
    for s in range(first, last):
        longest = max(longest, u.offsets[s + 1] - u.offsets[s])
    if longest == 0:
        return 0
    short_max = FG_BLOCKS_ABOVE_LISTED if u.listed else FG_LANES_MAX_CONTIGUOUS
    if u.columns >= FEW:
        short_max = FG_LANES_MAX
    n = min(longest, short_max)
    if u.columns >= FEW:
        room = max(longest, min(n * u.columns, max(<Py_ssize_t>TILE, n * FEW)))
    elif u.listed:
        room = 0 if u.in_place else max(longest, <Py_ssize_t>TILE)
    else:
        room = max(n * GROUP, longest)
    t.room = room
    room = (room * u.size + 64 + 127) & ~<Py_ssize_t>63  # and a vector more
    scratch = u.precision.scratch_bytes(n, FG_LANES, u.kernel)
    if n > FG_LANES_MAX_CONTIGUOUS:  # fewer rows may then need more
        scratch = max(scratch, <Py_ssize_t>SCRATCH)
    if longest > short_max:
        scratch = max(scratch, u.precision.scratch_bytes(longest, FG_ROWS, u.kernel))
        if u.listed:
            scratch = max(scratch, u.precision.scratch_bytes(longest, FG_BLOCKS, u.kernel))
    scratch = (scratch + 63) & ~<Py_ssize_t>63
    step = LIST * 8
    block = <char *>malloc(3 * room + scratch + 2 * step + 64)
    if block == NULL:
        return FULL
    t.x = block + (-<uintptr_t>block & 63)
    t.g = t.x + room
    t.out = t.g + room
    t.value = t.out + room
    t.alpha = t.value + step
    t.scratch = t.alpha + step
    like_max = 0
    if u.columns < FEW:
        like_max = FG_BLOCKS_MAX_BYTES // u.size if u.listed else short_max
    t.count = t.longest = t.elements = 0
    t.style = FG_LANES
    begin = first
    while begin < last:
        end = begin + 1
        while (
            end < last
            and end < begin + WINDOW
            and u.offsets[end] < u.offsets[begin] + WINDOW_ROWS
        ):
            end += 1
        t.ahead = u.offsets[end]
        n = _sort_short(u, begin, end, like_max, by_length)
        for k in range(n):
            s = by_length[k]
            n_rows = u.offsets[s + 1] - u.offsets[s]
            if u.columns >= FEW and n_rows <= short_max:
                _flush_list(u, &t)  # which may lie in the tile
                _side_by_side(u, &t, b, s, n_rows, watch)
            elif u.listed:
                for c in range(u.columns):
                    if n_rows > like_max and ends(watch, n_rows):
                        break
                    _list(u, &t, b, s, c, n_rows)
            elif n_rows > short_max:
                _one_by_one(u, &t, b, s, n_rows, watch)
            else:
                for c in range(u.columns):
                    t.item[t.count] = b
                    t.segment[t.count] = s
                    t.column[t.count] = c
                    t.longest = max(t.longest, n_rows)
                    t.count += 1
                    if t.count == GROUP:
                        _flush(u, &t)
        if u.listed:
            _flush_list(u, &t)
        else:
            _flush(u, &t)
        if ends(watch, u.offsets[end] - u.offsets[begin] + end - begin):
            break
        begin = end
    free(block)
    return 0


cdef Py_ssize_t _sort_short(
    const Series *u, Py_ssize_t begin, Py_ssize_t end, Py_ssize_t short_max, Py_ssize_t *to
) noexcept nogil:
    """Segments [begin, end) that have rows, by their length up to short_max, so that neighbours are
    alike, then the longer ones; returns their number.  Neighbours have their own counters: of one
    length, they do not wait for each other."""
    cdef Py_ssize_t places[LENGTHS][COPIES]
    cdef Py_ssize_t s, n, k, c, sum = 0, low = short_max + 1, high = 0
    for s in range(begin, end):
        n = u.offsets[s + 1] - u.offsets[s]
        if 0 < n <= short_max:
            low = min(low, n)
            high = max(high, n)
    if low <= high:
        memset(places, 0, (high - low + 1) * sizeof(places[0]))
    for s in range(begin, end):
        n = u.offsets[s + 1] - u.offsets[s]
        if low <= n <= high:
            places[n - low][s % COPIES] += 1
    for k in range(high - low + 1):
        for c in range(COPIES):
            n = places[k][c]
            places[k][c] = sum
            sum += n
    for s in range(begin, end):
        n = u.offsets[s + 1] - u.offsets[s]
        if low <= n <= high:
            k = places[n - low][s % COPIES]
            places[n - low][s % COPIES] = k + 1
            to[k] = s
        elif n:
            to[sum] = s
            sum += 1
    return sum


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
    cdef int threads, told = 0
    cdef Watch watch = watching()
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
    u.listed = (
        u.kernel == FG_SOFTMAX or u.kernel == FG_LOG_SOFTMAX or u.kernel == FG_LOGSUMEXP
    )
    # Rows in order are those of one item.
    u.in_place = u.order == NULL and u.columns == 1 and u.x_row == u.size
    threads = _threads(cnp.PyArray_SIZE(x))
    pieces = _pieces(items, cnp.PyArray_SIZE(x), threads)
    with nogil:
        if threads == 1:
            for which in range(items * pieces):
                told |= _series_unit(&u, which, pieces, &watch)
        else:
            for which in prange(
                items * pieces, num_threads=threads, schedule="dynamic", chunksize=1
            ):
                told |= _series_unit(&u, which, pieces, &watch)
    raised(&watch)
    if told:
        raise MemoryError("no room for the terms of a segment")
