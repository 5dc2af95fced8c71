# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: freethreading_compatible=True
"""softmax, log_softmax, logsumexp and their derivatives over the rows of every segment.

A *series* is one column of one segment, and a row to the kernels of softmax.inc.h and pull.inc.h.
How it is computed depends on its length and the number of columns alone, so its bits depend on
neither neighbours, order nor threads:

  many columns   those of one segment side by side: style `lanes`
  else           a list of lines, in memory if they are contiguous there, packed otherwise: style
                 `lanes` (those of like length together), `blocks` or `rows`, by length
"""
from cython.parallel cimport prange
# The heap that tracemalloc sees: profile_loss counts scratch.
from cpython.mem cimport PyMem_RawFree as free, PyMem_RawMalloc as malloc
from libc.string cimport memcpy, memset

cimport numpy as cnp
from libc.stdint cimport int32_t, int64_t, uintptr_t

from fastgrad._kernels.isa cimport (
    FG_BLOCKS,
    FG_BLOCKS_MAX_BYTES,
    FG_LANES,
    FG_LANES_MAX,
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
)
from fastgrad._kernels.pieces cimport piece, pieces_of
from fastgrad._kernels.rows cimport threads_for
from fastgrad._kernels.watch cimport Watch, ends, raised, watching

cnp.import_array()

cdef enum:
    LIST = 256         # series of a list
    FEW = 16           # columns from which on those of one segment are side by side
    TILE = 1 << 14     # elements of a tile of such columns, and of lines that are packed
    WINDOW = 1 << 11   # segments that are sorted by length; fewer if they take more than
    WINDOW_BYTES = 1 << 17
    LENGTHS = 256      # lengths of those, FG_BLOCKS_MAX_BYTES of float32
    COUNTERS = 4       # of one length: neighbours do not wait for each other

_KERNELS = {
    "softmax": FG_SOFTMAX,
    "log_softmax": FG_LOG_SOFTMAX,
    "logsumexp": FG_LOGSUMEXP,
    "pull_softmax": FG_PULL_SOFTMAX,
    "pull_log_softmax": FG_PULL_LOG_SOFTMAX,
    "push_log_softmax": FG_PUSH_LOG_SOFTMAX,
    "push_logsumexp": FG_PUSH_LOGSUMEXP,
}

cdef struct Operand:
    const char *data              # or NULL
    Py_ssize_t item, row, column  # strides in bytes

cdef struct Series:
    const fg_precision *precision
    int kernel
    Py_ssize_t rows, columns, segments  # of an item
    Py_ssize_t size               # of an element
    Operand x, g
    char *out                     # (B, N, d), contiguous; or NULL
    char *value                   # (B, K, d), contiguous; or NULL
    const char *alpha             # the same
    const int64_t *offsets
    const int64_t *order          # NULL if rows lie in the order of segments
    bint in_place                 # series are lines in memory

# A thread's memory, and its list.
cdef struct Tile:
    char *block                   # that holds what follows
    char *value                   # of the list
    char *alpha
    void *scratch
    char *x                       # `room` elements for lines that are packed; or the operands
    char *g
    char *out
    Py_ssize_t room
    int style                     # of the list
    Py_ssize_t count, longest, elements
    Py_ssize_t ahead              # the row that is prefetched during the list
    const char *line[LIST]
    const char *second[LIST]      # of g
    char *to[LIST]
    Py_ssize_t length[LIST]
    Py_ssize_t item[LIST]
    Py_ssize_t segment[LIST]
    Py_ssize_t column[LIST]


# ---- columns of segments, to and from contiguous lines ----------------------------------------

ctypedef fused word:
    int32_t
    int64_t


cdef inline Py_ssize_t _position(const Series *u, Py_ssize_t b, Py_ssize_t i) noexcept nogil:
    return i if u.order == NULL else u.order[i] - b * u.rows


cdef void _take_words(
    const Series *u, const char *p, Py_ssize_t row, Py_ssize_t b, Py_ssize_t s, word *to
) noexcept nogil:
    cdef Py_ssize_t begin = u.offsets[s], n = u.offsets[s + 1] - begin, i
    if u.order != NULL:
        for i in range(n):
            to[i] = (<const word *>(p + (u.order[begin + i] - b * u.rows) * row))[0]
    elif row == u.size:
        memcpy(to, p + begin * row, n * u.size)
    else:
        for i in range(n):
            to[i] = (<const word *>(p + (begin + i) * row))[0]


cdef void _take(
    const Series *u, const Operand *from_, Py_ssize_t b, Py_ssize_t s, Py_ssize_t c, char *to
) noexcept nogil:
    """A column of a segment of x or g."""
    cdef const char *p = from_.data + b * from_.item + c * from_.column
    if u.size == 4:
        _take_words(u, p, from_.row, b, s, <int32_t *>to)
    else:
        _take_words(u, p, from_.row, b, s, <int64_t *>to)


cdef void _put_words(
    const Series *u, const word *line, Py_ssize_t b, Py_ssize_t s, Py_ssize_t c
) noexcept nogil:
    cdef Py_ssize_t begin = u.offsets[s], n = u.offsets[s + 1] - begin, i
    cdef word *to = <word *>u.out + b * u.rows * u.columns + c
    if u.order == NULL and u.columns == 1:
        memcpy(to + begin, line, n * u.size)
        return
    for i in range(n):
        to[_position(u, b, begin + i) * u.columns] = line[i]


cdef void _put(
    const Series *u, const char *line, Py_ssize_t b, Py_ssize_t s, Py_ssize_t c
) noexcept nogil:
    """A column of a segment of `out`."""
    if u.size == 4:
        _put_words(u, <const int32_t *>line, b, s, c)
    else:
        _put_words(u, <const int64_t *>line, b, s, c)


cdef void _copy_words(const char *p, Py_ssize_t step, Py_ssize_t n, word *to) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        to[i] = (<const word *>(p + i * step))[0]


cdef void _take_across(
    const Series *u, const Operand *from_, Py_ssize_t b, Py_ssize_t s, Py_ssize_t c,
    Py_ssize_t columns, char *to,
) noexcept nogil:
    """Some columns of a segment of x or g, row by row."""
    cdef Py_ssize_t i, n = columns * u.size
    cdef const char *p
    for i in range(u.offsets[s], u.offsets[s + 1]):
        p = from_.data + b * from_.item + _position(u, b, i) * from_.row + c * from_.column
        if from_.column == u.size:
            memcpy(to, p, n)
        elif u.size == 4:
            _copy_words(p, from_.column, columns, <int32_t *>to)
        else:
            _copy_words(p, from_.column, columns, <int64_t *>to)
        to += n


cdef void _put_across(
    const Series *u, const char *tile, Py_ssize_t s, Py_ssize_t c, Py_ssize_t columns
) noexcept nogil:
    """Some columns of a segment of `out`, whose rows are in no order."""
    cdef Py_ssize_t i, n = columns * u.size
    for i in range(u.offsets[s], u.offsets[s + 1]):
        memcpy(u.out + (u.order[i] * u.columns + c) * u.size, tile, n)
        tile += n


# ---- a thread's work --------------------------------------------------------------------------

cdef Py_ssize_t _scratch(
    const Series *u, Py_ssize_t begin, Py_ssize_t last, Py_ssize_t longest, Py_ssize_t across_max
) noexcept nogil:
    """Bytes for segments [begin, last), the longest of so many rows, in every style that theirs
    may have."""
    cdef Py_ssize_t lanes = min(longest, u.precision.blocks_above)
    cdef Py_ssize_t blocks = min(longest, FG_BLOCKS_MAX_BYTES // u.size)
    cdef Py_ssize_t bytes = u.precision.scratch_bytes(lanes, FG_LANES, u.kernel), s, n
    if longest > u.precision.blocks_above:
        bytes = max(bytes, u.precision.scratch_bytes(blocks, FG_BLOCKS, u.kernel))
        bytes = max(bytes, u.precision.scratch_bytes(longest, FG_ROWS, u.kernel))
    for s in range(begin, last if across_max > 0 else begin):
        n = u.offsets[s + 1] - u.offsets[s]
        if 0 < n <= across_max:  # fewer rows may need more: they take more columns at once
            bytes = max(bytes, u.precision.scratch_bytes(n, FG_LANES, u.kernel))
    return bytes


cdef bint _tile_start(
    const Series *u, Py_ssize_t begin, Py_ssize_t last, Py_ssize_t longest, Py_ssize_t across_max,
    Tile *t
) noexcept nogil:
    """False without memory."""
    cdef Py_ssize_t most = min(longest, across_max), bytes = 0, scratch, list_bytes = LIST * 8
    t.room = max(longest, <Py_ssize_t>TILE)
    if most > 0:
        t.room = max(longest, min(most * u.columns, max(<Py_ssize_t>TILE, most * FEW)))
    if not u.in_place:
        bytes = (t.room * u.size + 63) & ~<Py_ssize_t>63
    scratch = (_scratch(u, begin, last, longest, across_max) + 63) & ~<Py_ssize_t>63
    t.block = <char *>malloc(3 * bytes + scratch + 2 * list_bytes + 64)
    if t.block == NULL:
        return False
    t.value = t.block + (-<uintptr_t>t.block & 63)
    t.alpha = t.value + list_bytes
    t.scratch = t.alpha + list_bytes
    t.x = <char *>t.scratch + scratch
    t.g = t.x + bytes
    t.out = t.g + bytes
    if u.in_place:
        t.x = <char *>u.x.data
        t.g = <char *>u.g.data
        t.out = u.out
    t.count = t.longest = t.elements = 0
    t.style = FG_LANES
    return True


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
    run.g = t.g if u.g.data != NULL else NULL
    run.value = t.value if u.value != NULL else NULL
    run.alpha = t.alpha if u.alpha != NULL else NULL
    run.value_row = run.alpha_row = u.size
    return run


cdef void _list(
    const Series *u, Tile *t, Py_ssize_t b, Py_ssize_t s, Py_ssize_t c, Py_ssize_t n
) noexcept nogil:
    """Put a series of n elements on the list, which is computed first if it is of another style."""
    cdef Py_ssize_t k, at
    cdef int style = FG_ROWS
    if n <= u.precision.blocks_above:
        style = FG_LANES
    elif n * u.size <= FG_BLOCKS_MAX_BYTES:
        style = FG_BLOCKS
    if t.count == LIST or t.style != style or (not u.in_place and t.elements + n > t.room):
        _flush(u, t)
    t.style = style
    k = t.count
    at = (u.offsets[s] if u.in_place else t.elements) * u.size
    t.line[k] = t.x + at
    if u.g.data != NULL:
        t.second[k] = t.g + at
    if u.out != NULL:
        t.to[k] = t.out + at
    t.length[k] = n
    t.item[k] = b
    t.segment[k] = s
    t.column[k] = c
    if not u.in_place:
        _take(u, &u.x, b, s, c, t.x + at)
        if u.g.data != NULL:
            _take(u, &u.g, b, s, c, t.g + at)
    t.longest = max(t.longest, n)
    t.elements += n
    t.count += 1


cdef void _flush(const Series *u, Tile *t) noexcept nogil:
    """Compute the series of the list."""
    cdef fg_run run = _run_of(u, t)
    cdef fg_lines lines
    cdef Py_ssize_t k, at
    if t.count == 0:
        return
    run.classes = t.longest
    if u.alpha != NULL:
        for k in range(t.count):
            at = u.columns * t.segment[k] + t.column[k]
            memcpy(t.alpha + k * u.size, u.alpha + at * u.size, u.size)
    lines.lines = t.count
    lines.x = t.line
    lines.g = t.second
    lines.out = t.to
    lines.size = t.length
    lines.ahead = t.x
    lines.place = t.out
    if u.in_place:
        lines.ahead += t.ahead * u.size
        if u.out != NULL:
            lines.place += t.ahead * u.size
        t.ahead += t.elements
    u.precision.listed[u.kernel][t.style](&run, &lines)
    for k in range(t.count if u.out != NULL and not u.in_place else 0):
        _put(u, t.to[k], t.item[k], t.segment[k], t.column[k])
    if u.value != NULL:
        for k in range(t.count):
            at = u.columns * t.segment[k] + t.column[k]
            memcpy(u.value + at * u.size, t.value + k * u.size, u.size)
    t.count = t.longest = t.elements = 0


cdef void _across(
    const Series *u, Tile *t, Py_ssize_t b, Py_ssize_t s, Py_ssize_t n, Watch *watch
) noexcept nogil:
    """A segment of n rows with many columns, some of them at a time."""
    cdef fg_run run = _run_of(u, t)
    cdef Py_ssize_t c = 0, columns, at, begin = u.offsets[s]
    cdef Py_ssize_t most = min(u.columns, max(<Py_ssize_t>FEW, TILE // n))
    cdef bint direct_x = u.order == NULL and u.x.column == u.size
    cdef bint direct_g = u.order == NULL and u.g.column == u.size
    run.classes = n
    run.x_row = run.out_row = run.g_row = u.size
    while c < u.columns:
        columns = min(most, u.columns - c)
        if ends(watch, columns * n):
            return
        run.rows = columns
        run.x_class = run.g_class = run.out_class = columns * u.size
        if direct_x:
            run.x = u.x.data + c * u.size + begin * u.x.row
            run.x_class = u.x.row
        else:
            _take_across(u, &u.x, b, s, c, columns, t.x)
        if u.g.data != NULL and direct_g:
            run.g = u.g.data + c * u.size + begin * u.g.row
            run.g_class = u.g.row
        elif u.g.data != NULL:
            _take_across(u, &u.g, b, s, c, columns, t.g)
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
            _put_across(u, t.out, s, c, columns)
        c += columns


cdef int _unit(
    const Series *u, Py_ssize_t which, Py_ssize_t pieces, Watch *watch
) noexcept nogil:
    """All series of some of the segments of one item; 1 without memory."""
    cdef Py_ssize_t b = which // pieces, part = which % pieces
    cdef const int64_t *offsets = u.offsets + b * u.segments
    cdef Py_ssize_t begin = b * u.segments + piece(offsets, u.segments, part, pieces)
    cdef Py_ssize_t last = b * u.segments + piece(offsets, u.segments, part + 1, pieces)
    cdef Py_ssize_t across_max = FG_LANES_MAX if u.columns >= FEW else 0
    cdef Py_ssize_t sorted_max = 0 if u.columns >= FEW else FG_BLOCKS_MAX_BYTES // u.size
    cdef Py_ssize_t window_rows = WINDOW_BYTES // u.size
    cdef Py_ssize_t longest = 0, end, count, k, s, n, c
    cdef Py_ssize_t by_length[WINDOW]
    cdef Tile t
    if watch.ended:
        return 0
    for s in range(begin, last):
        longest = max(longest, u.offsets[s + 1] - u.offsets[s])
    if longest == 0:
        return 0
    if not _tile_start(u, begin, last, longest, across_max, &t):
        return 1
    while begin < last:
        end = begin + 1
        while (
            end < last
            and end < begin + WINDOW
            and u.offsets[end] < u.offsets[begin] + window_rows
        ):
            end += 1
        t.ahead = u.offsets[end]
        count = _sort_by_length(u, begin, end, sorted_max, by_length)
        for k in range(count):
            s = by_length[k]
            n = u.offsets[s + 1] - u.offsets[s]
            if n <= across_max:
                _flush(u, &t)  # what is listed may lie in the tile
                _across(u, &t, b, s, n, watch)
            else:
                for c in range(u.columns):
                    if n > sorted_max and ends(watch, n):
                        break
                    _list(u, &t, b, s, c, n)
        _flush(u, &t)
        if ends(watch, u.offsets[end] - u.offsets[begin] + end - begin):
            break
        begin = end
    free(t.block)
    return 0


cdef Py_ssize_t _sort_by_length(
    const Series *u, Py_ssize_t begin, Py_ssize_t end, Py_ssize_t most, Py_ssize_t *to
) noexcept nogil:
    """Segments [begin, end) that have rows, by their length up to `most`, so that neighbours are
    alike, then the longer ones; returns their number."""
    cdef Py_ssize_t places[LENGTHS][COUNTERS]
    cdef Py_ssize_t s, n, k, c, sum = 0, low = most + 1, high = 0
    for s in range(begin, end):
        n = u.offsets[s + 1] - u.offsets[s]
        if 0 < n <= most:
            low = min(low, n)
            high = max(high, n)
    if low <= high:
        memset(places, 0, (high - low + 1) * sizeof(places[0]))
    for s in range(begin, end):
        n = u.offsets[s + 1] - u.offsets[s]
        if low <= n <= high:
            places[n - low][s % COUNTERS] += 1
    for k in range(high - low + 1):
        for c in range(COUNTERS):
            n = places[k][c]
            places[k][c] = sum
            sum += n
    for s in range(begin, end):
        n = u.offsets[s + 1] - u.offsets[s]
        if low <= n <= high:
            k = places[n - low][s % COUNTERS]
            places[n - low][s % COUNTERS] = k + 1
            to[k] = s
        elif n:
            to[sum] = s
            sum += 1
    return sum


cdef Operand _operand(cnp.ndarray a):
    cdef Operand o
    o.data = <const char *>cnp.PyArray_DATA(a)
    o.item = cnp.PyArray_STRIDE(a, 0)
    o.row = cnp.PyArray_STRIDE(a, 1)
    # That of one column may be anything.
    o.column = cnp.PyArray_STRIDE(a, 2) if cnp.PyArray_DIM(a, 2) > 1 else cnp.PyArray_ITEMSIZE(a)
    return o


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
    memset(&u, 0, sizeof(u))
    u.kernel = _KERNELS[name]
    u.rows = cnp.PyArray_DIM(x, 1)
    u.columns = cnp.PyArray_DIM(x, 2)
    u.segments = (offsets.shape[0] - 1) // max(items, 1)
    u.size = cnp.PyArray_ITEMSIZE(x)
    u.precision = active().f32 if u.size == 4 else active().f64
    if cnp.PyArray_SIZE(x) == 0 or u.segments == 0:
        return
    u.x = u.g = _operand(x)
    u.g.data = NULL
    if g is not None:
        u.g = _operand(g)
    if out is not None:
        u.out = <char *>cnp.PyArray_DATA(<cnp.ndarray>out)
    if value is not None:
        u.value = <char *>cnp.PyArray_DATA(<cnp.ndarray>value)
    if alpha is not None:
        u.alpha = <const char *>cnp.PyArray_DATA(<cnp.ndarray>alpha)
    u.offsets = &offsets[0]
    if order is not None and order.shape[0] > 0:
        u.order = &order[0]
    # Rows in order are those of one item.
    u.in_place = u.order == NULL and u.columns == 1 and u.x.row == u.g.row == u.size
    threads = threads_for(cnp.PyArray_SIZE(x))
    pieces = pieces_of(items, cnp.PyArray_SIZE(x), threads)
    with nogil:
        if threads == 1:
            for which in range(items * pieces):
                told |= _unit(&u, which, pieces, &watch)
        else:
            for which in prange(
                items * pieces, num_threads=threads, schedule="dynamic", chunksize=1
            ):
                told |= _unit(&u, which, pieces, &watch)
    raised(&watch)
    if told:
        raise MemoryError("no room for the terms of a segment")
