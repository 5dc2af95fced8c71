# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: freethreading_compatible=True
"""Sorting of rows by segment.

Ids are (B, N), C-contiguous, of any integer dtype; they are widened to int64 block by block, -1
where ignored.  Threads take pieces of the items: they count what each holds of every segment, and
then know where its rows go.  About every SLAB rows the caller's thread looks at signals, so that
Ctrl-C ends a long call.
"""
from cython.parallel cimport prange
# The heap that tracemalloc sees: profile_loss counts scratch.
from cpython.mem cimport (
    PyMem_RawCalloc as calloc,
    PyMem_RawFree as free,
    PyMem_RawMalloc as malloc,
)
from libc.string cimport memcpy, memset

cimport numpy as cnp
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint64_t

from fastgrad._kernels.isa cimport active
from fastgrad._kernels.rows cimport UNSIGNED, integer_type, threads_for, widen
from fastgrad._kernels.watch cimport Watch, ends, fg_thread, raised, watching


cdef extern from "platform.h" nogil:
    void FG_PREFETCH_WRITE(const void *)

cnp.import_array()

cdef enum:
    LINE = 64         # bytes of a cache line
    LARGE = 1 << 15   # segments whose counters leave the cache: sort in two steps
    STREAMS = 1 << 11  # segments whose next lines stay in L1
    AHEAD = 24        # rows between a prefetch and its use where they do not
    BUCKETS_BITS = 11  # of such a sort: more leave the cache
    PLACE_BITS = 44   # of a row's position, in one word with what is left of its id


cdef Ids ids_of(cnp.ndarray ids, ignore_index):
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


cdef const int64_t *codes(
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


# How the rows of B items are shared out among threads: every item in `cuts` pieces.
cdef struct Shares:
    Py_ssize_t items, rows, cuts, units
    Py_ssize_t apart  # counters of a piece, and then a line that no other thread writes to
    int threads


cdef Shares _shares(Py_ssize_t items, Py_ssize_t rows, Py_ssize_t segments, int threads):
    """Every piece gets counters of all segments, which it must be worth."""
    cdef Shares s
    s.items = items
    s.rows = rows
    s.threads = threads
    s.cuts = 1
    if items and items % threads:  # else the items themselves are shared out evenly
        s.cuts = threads if items == 1 else max(1, 4 * threads // items)
        s.cuts = max(1, min(s.cuts, rows // (4 * segments + 1)))
    s.units = items * s.cuts
    s.threads = <int>max(1, min(<Py_ssize_t>threads, s.units))
    s.apart = segments + LINE // 8
    return s


cdef Shares _shares_of(cnp.ndarray ids, Py_ssize_t segments):
    """Of (B, N) ids, among as many threads as their number is worth."""
    cdef Py_ssize_t items = cnp.PyArray_DIM(ids, 0), rows = cnp.PyArray_DIM(ids, 1)
    return _shares(items, rows, segments, threads_for(items * rows))


cdef Py_ssize_t _first(const Shares *s, Py_ssize_t unit) noexcept nogil:
    """Flat position of the first row of a piece; of the one after the last, the number of rows."""
    return unit // s.cuts * s.rows + s.rows * (unit % s.cuts) // s.cuts


cdef int64_t NO_LIMIT = 0x7fffffffffffffff


cdef struct Scanned:
    Py_ssize_t bad
    int64_t most


cdef Scanned _scan(
    const Ids *a, Py_ssize_t i, Py_ssize_t end, int64_t limit, Watch *watch
) noexcept nogil:
    # The id that is ignored becomes -1 elsewhere, and so must not be mistaken for a wrong one here.
    cdef int64_t chunk[CHUNK]
    cdef const int64_t *at
    cdef Py_ssize_t k, n
    cdef Scanned s
    s.bad = -1
    s.most = -1
    while i < end:
        n = min(<Py_ssize_t>CHUNK, end - i)
        if a.ignoring:
            widen(a.data + i * a.size, a.size, n, a.type, chunk)
            for k in range(n):
                if chunk[k] == a.ignore:
                    continue
                if <uint64_t>chunk[k] >= <uint64_t>limit:
                    s.bad = i + k
                    return s
                if chunk[k] > s.most:
                    s.most = chunk[k]
        else:
            at = codes(a, i, n, chunk)
            if active().f64.count_outside(at, n, limit):
                k = 0
                while k < n - 1 and <uint64_t>at[k] < <uint64_t>limit:
                    k += 1
                s.bad = i + k
                return s
            for k in range(n if limit == NO_LIMIT else 0):
                s.most = max(s.most, at[k])
        i += n
        if ends(watch, n):
            break
    return s


def scan(cnp.ndarray ids, ignore_index, const int64_t[::1] classes):
    """(flat position of the first id outside [0, classes of its item) or -1, largest id or -1).

    Ids that are ignored do not count.  Without `classes` any id from 0 on will do.
    """
    cdef Ids a = ids_of(ids, ignore_index)
    cdef Shares s = _shares_of(ids, 0)
    cdef Py_ssize_t unit, bad = -1
    cdef int64_t most = -1
    cdef const int64_t *limit = &classes[0] if s.units and classes is not None else NULL
    cdef Watch watch = watching()
    cdef Scanned *found = <Scanned *>malloc(max(s.units, 1) * sizeof(Scanned))
    if found == NULL:
        raise MemoryError("no room for what threads find out about ids")
    for unit in prange(s.units, num_threads=s.threads, schedule="static", nogil=True):
        found[unit] = _scan(
            &a, _first(&s, unit), _first(&s, unit + 1),
            NO_LIMIT if limit == NULL else limit[unit // s.cuts], &watch,
        )
    for unit in range(s.units):
        if bad < 0:
            bad = found[unit].bad
        most = max(most, found[unit].most)
    free(found)
    raised(&watch)
    return bad, most


cdef void tally_start(Tally *t, int64_t *counts, Py_ssize_t segments) noexcept nogil:
    cdef Py_ssize_t k
    t.counts = counts
    t.segments = segments
    for k in range(COPIES):
        t.copy[k] = counts
    if segments <= SMALL:
        for k in range(COPIES - 1):
            t.copy[k + 1] = t.table + k * SMALL
            memset(t.copy[k + 1], 0, 8 * segments)


cdef void tally_add(Tally *t, const int64_t *at, Py_ssize_t n, bint ignoring) noexcept nogil:
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


cdef void tally_end(Tally *t) noexcept nogil:
    cdef Py_ssize_t k
    if t.segments <= SMALL:
        for k in range(t.segments):
            t.counts[k] += t.copy[1][k] + t.copy[2][k] + t.copy[3][k]


ctypedef fused narrow:
    int8_t
    int16_t
    int32_t
    int64_t


cdef int64_t *_counters(const Shares *s) except NULL:
    """Zeros for every piece; for every thread where items are whole."""
    cdef int64_t *counts = <int64_t *>calloc((s.threads if s.cuts == 1 else s.units) * s.apart, 8)
    if counts == NULL:
        raise MemoryError("no room for the counters of the segments")
    return counts


cdef int64_t *_counters_in(Shares *s, int64_t[:, ::1] counts) except NULL:
    """Zeros for every piece, which are `counts` if each is an item."""
    if s.cuts > 1:
        return _counters(s)
    s.apart = counts.shape[1]
    return &counts[0, 0]


cdef void _add_up(
    const Shares *s, int64_t *of_pieces, Py_ssize_t segments, int64_t *counts
) noexcept nogil:
    """Counts of the items from those of their pieces, which are the same memory if each is one."""
    cdef Py_ssize_t unit, k
    if s.cuts == 1:
        return
    for unit in range(s.units):
        for k in range(segments):
            counts[unit // s.cuts * segments + k] += of_pieces[unit * s.apart + k]
    free(of_pieces)


cdef bint _pack(
    const Ids *a, Py_ssize_t i, Py_ssize_t end, int64_t limit, int64_t *counts,
    Py_ssize_t segments, narrow *to, Watch *watch,
) noexcept nogil:
    cdef int64_t chunk[CHUNK]
    cdef const int64_t *at
    cdef Py_ssize_t k, n
    cdef Tally tally
    if counts != NULL:
        tally_start(&tally, counts, segments)
    while i < end and not ends(watch, CHUNK):
        n = min(<Py_ssize_t>CHUNK, end - i)
        at = codes(a, i, n, chunk)
        if at != chunk:  # ids may change meanwhile; what is counted must be what was checked
            memcpy(chunk, at, 8 * n)
            at = chunk
        if limit >= 0 and active().f64.count_outside(at, n, limit):
            return False
        for k in range(n):
            to[i + k] = <narrow>at[k]
        if counts != NULL:
            tally_add(&tally, at, n, a.ignoring)
        i += n
    if counts != NULL:
        tally_end(&tally)
    return True


def pack(
    cnp.ndarray ids, ignore_index, const int64_t[::1] classes, int64_t[:, ::1] counts,
    narrow[:, ::1] out,
):
    """A copy of the ids, -1 where ignored, in a type that is wide enough.

    With `classes`, of every item, ids are checked on the way (none is ignored then), and the copy
    is of use only if this returns True.  With `counts` (B, K), which holds zeros, rows are counted
    too.
    """
    cdef Ids a = ids_of(ids, ignore_index)
    cdef Py_ssize_t segments = counts.shape[1] if counts is not None else 0, unit
    cdef Shares s = _shares_of(ids, segments)
    cdef const int64_t *limit = NULL
    cdef int64_t *found = NULL
    cdef int bad = 0
    cdef narrow *to
    cdef Watch watch = watching()
    if s.items == 0 or s.rows == 0:
        return True
    if classes is not None:
        limit = &classes[0]
    if segments:
        found = _counters_in(&s, counts)
    to = &out[0, 0]
    for unit in prange(s.units, num_threads=s.threads, schedule="static", nogil=True):
        bad += not _pack(
            &a, _first(&s, unit), _first(&s, unit + 1),
            -1 if limit == NULL else limit[unit // s.cuts],
            NULL if found == NULL else found + unit * s.apart, segments, to, &watch,
        )
    if segments:
        _add_up(&s, found, segments, &counts[0, 0])
    raised(&watch)
    return bad == 0


cdef void _count(
    const Ids *ids, Py_ssize_t i, Py_ssize_t end, Py_ssize_t segments, int64_t *counts,
    Watch *watch,
) noexcept nogil:
    """Rows of every segment in a piece, into `counts`, which holds zeros; ids are in range."""
    cdef int64_t chunk[CHUNK]
    cdef Tally tally
    cdef Py_ssize_t n
    tally_start(&tally, counts, segments)
    while i < end and not ends(watch, CHUNK):
        n = min(<Py_ssize_t>CHUNK, end - i)
        tally_add(&tally, codes(ids, i, n, chunk), n, ids.ignoring)
        i += n
    tally_end(&tally)


cdef void _count_pieces(
    const Ids *a, const Shares *s, Py_ssize_t segments, int64_t *counts, Watch *watch
) noexcept:
    """Rows of every segment in every piece, into `counts`, which holds zeros."""
    cdef Py_ssize_t unit
    for unit in prange(s.units, num_threads=s.threads, schedule="static", nogil=True):
        _count(a, _first(s, unit), _first(s, unit + 1), segments, counts + unit * s.apart, watch)


def count(cnp.ndarray ids, ignore_index, int64_t[:, ::1] counts):
    """Rows of every segment, into `counts` (B, K), which holds zeros; ids are in range."""
    cdef Ids a = ids_of(ids, ignore_index)
    cdef Py_ssize_t segments = counts.shape[1]
    cdef Shares s = _shares_of(ids, segments)
    cdef int64_t *found
    cdef Watch watch = watching()
    if s.rows == 0 or segments == 0:
        return
    found = _counters_in(&s, counts)
    _count_pieces(&a, &s, segments, found, &watch)
    _add_up(&s, found, segments, &counts[0, 0])
    raised(&watch)


def ascends(cnp.ndarray ids, ignore_index, int64_t[::1] offsets):
    """Whether the ids of one item (1, N), which are in range, never fall, those ignored last.

    Then `offsets` (K + 1), zeros if given, say where segments begin; else they are of no use.
    """
    cdef Ids a = ids_of(ids, ignore_index)
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
            at = codes(&a, i, n, chunk)
            for k in range(n):
                falls |= <uint64_t>at[k] < before
                before = <uint64_t>at[k]
            if begins != NULL:
                for k in range(n):  # no branch where a segment ends: that cannot be foreseen
                    if not a.ignoring or at[k] >= 0:
                        begins[at[k] + 1] = i + k + 1
            i += n
            if ends(&watch, n):
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
    cdef Ids a = ids_of(ids, ignore_index)
    cdef Py_ssize_t items = cnp.PyArray_DIM(ids, 0), rows = cnp.PyArray_DIM(ids, 1), b
    cdef Py_ssize_t segments = (offsets.shape[0] - 1) // max(items, 1)
    # Of many items each would wait for its threads three times.
    cdef int threads = threads_for(rows) if items == 1 else 1
    cdef Watch watch = watching()
    offsets[:] = 0
    if order.shape[0] == 0 or segments == 0:
        return 0
    for b in range(items):
        _sort_in_steps(
            &a, b * rows, rows, segments, threads, &offsets[b * segments], &order[0], &watch
        )
        raised(&watch)
    return int(offsets[items * segments])


def place(cnp.ndarray ids, ignore_index, const int64_t[::1] offsets, int64_t[::1] order):
    """The rest of such a sort, where the offsets are known."""
    cdef Ids a = ids_of(ids, ignore_index)
    cdef Py_ssize_t items = cnp.PyArray_DIM(ids, 0)
    cdef Py_ssize_t segments = (offsets.shape[0] - 1) // max(items, 1), unit
    cdef Shares s = _shares_of(ids, segments)
    cdef int64_t *next
    cdef int64_t *to
    cdef Watch watch = watching()
    if order.shape[0] == 0 or segments == 0:
        return
    to = &order[0]
    next = _counters(&s)
    if s.cuts > 1:  # what a piece holds of a segment follows what the pieces before it do
        _count_pieces(&a, &s, segments, next, &watch)
        _begin_pieces(&s, &offsets[0], segments, next)
    if not watch.ended:
        for unit in prange(s.units, num_threads=s.threads, schedule="static", nogil=True):
            _place(&a, &s, unit, segments, &offsets[0], next, to, &watch)
    free(next)
    raised(&watch)


cdef void _begin_pieces(
    const Shares *s, const int64_t *offsets, Py_ssize_t segments, int64_t *counts
) noexcept nogil:
    """Where the rows of every segment and piece go, from how many there are."""
    cdef Py_ssize_t b, k, c
    cdef int64_t here, rows
    for b in range(s.items):
        for k in range(segments):
            here = offsets[b * segments + k]
            for c in range(b * s.cuts, (b + 1) * s.cuts):
                rows = counts[c * s.apart + k]
                counts[c * s.apart + k] = here
                here += rows


cdef void _place(
    const Ids *ids, const Shares *s, Py_ssize_t unit, Py_ssize_t segments, const int64_t *offsets,
    int64_t *table, int64_t *order, Watch *watch,
) noexcept nogil:
    """The position of each row of a piece to where its segment goes on."""
    cdef int64_t chunk[CHUNK]
    cdef const int64_t *at
    cdef Py_ssize_t i = _first(s, unit), end = _first(s, unit + 1), k, n, place
    cdef bint few = segments <= STREAMS
    cdef int64_t *next = table + (fg_thread() if s.cuts == 1 else unit) * s.apart
    if s.cuts == 1:
        memcpy(next, offsets + unit * segments, 8 * segments)
    while i < end and not ends(watch, CHUNK):
        n = min(<Py_ssize_t>CHUNK, end - i)
        at = codes(ids, i, n, chunk)
        for k in range(n):
            if not few and k + AHEAD < n and at[k + AHEAD] >= 0:
                FG_PREFETCH_WRITE(order + next[at[k + AHEAD]])
            if at[k] >= 0:
                place = next[at[k]]
                next[at[k]] = place + 1
                order[place] = i + k
                if few:
                    FG_PREFETCH_WRITE(order + place + LINE // 8)
        i += n


# ---- in two steps: into buckets of neighbouring segments, then each bucket -------------------


cdef void _count_buckets(
    const Ids *ids, Py_ssize_t i, Py_ssize_t end, int shift, int64_t *counts, Watch *watch
) noexcept nogil:
    cdef int64_t chunk[CHUNK]
    cdef const int64_t *at
    cdef Py_ssize_t k, n
    while i < end and not ends(watch, CHUNK):
        n = min(<Py_ssize_t>CHUNK, end - i)
        at = codes(ids, i, n, chunk)
        for k in range(n):
            if at[k] >= 0:
                counts[at[k] >> shift] += 1
        i += n


cdef void _fill_buckets(
    const Ids *ids, Py_ssize_t i, Py_ssize_t end, int shift, int64_t *next, int64_t *order,
    Watch *watch,
) noexcept nogil:
    """Positions of rows, and above them in the same word what is left of their ids."""
    cdef int64_t chunk[CHUNK]
    cdef const int64_t *at
    cdef Py_ssize_t k, n
    cdef int64_t place, low = (<int64_t>1 << shift) - 1
    while i < end and not ends(watch, CHUNK):
        n = min(<Py_ssize_t>CHUNK, end - i)
        at = codes(ids, i, n, chunk)
        for k in range(n):
            if at[k] >= 0:
                place = next[at[k] >> shift]
                next[at[k] >> shift] = place + 1
                order[place] = (at[k] & low) << PLACE_BITS | (i + k)
        i += n


cdef void _sort_bucket(
    int64_t place, Py_ssize_t n, Py_ssize_t segments, int64_t *offsets, int64_t *order,
    int64_t *scratch, Watch *watch,
) noexcept nogil:
    """The n rows of a bucket from `place` on, and where its segments begin."""
    cdef int64_t *next = scratch + n
    cdef Py_ssize_t i, k
    cdef int64_t entry, here = place
    if ends(watch, n):
        return
    memset(next, 0, 8 * segments)
    for i in range(n):
        entry = scratch[i] = order[place + i]
        next[entry >> PLACE_BITS] += 1
    for i in range(segments):
        entry = next[i]
        next[i] = offsets[i] = here
        here += entry
    for i in range(n):
        entry = scratch[i]
        k = entry >> PLACE_BITS
        order[next[k]] = entry & ((<int64_t>1 << PLACE_BITS) - 1)
        next[k] += 1


cdef int _sort_in_steps(
    const Ids *ids, Py_ssize_t begin, Py_ssize_t rows, Py_ssize_t segments, int threads,
    int64_t *offsets, int64_t *order, Watch *watch,
) except -1:
    """Sort an item, from offsets[0] on.  Counters and rows of a bucket stay in cache."""
    cdef int shift = 0
    cdef Py_ssize_t buckets, low, h, unit, most = 0, room
    cdef int64_t before
    cdef int64_t *heads
    cdef int64_t *ends_at
    cdef int64_t *scratch
    cdef Shares s
    while (segments - 1) >> shift >= 1 << BUCKETS_BITS or shift < 8:
        shift += 1
    buckets = ((segments - 1) >> shift) + 1
    low = <Py_ssize_t>1 << shift
    s = _shares(1, rows, buckets, threads)
    heads = _counters(&s)
    for unit in prange(s.units, num_threads=s.threads, schedule="static", nogil=True):
        _count_buckets(
            ids, begin + _first(&s, unit), begin + _first(&s, unit + 1), shift,
            heads + unit * s.apart, watch,
        )
    before = offsets[0]
    for h in range(buckets):
        room = 0
        for unit in range(s.units):
            room += heads[unit * s.apart + h]
            heads[unit * s.apart + h], before = before, before + heads[unit * s.apart + h]
        most = max(most, room)
    room = most + low
    # Where most rows lie in one bucket, further threads would only take memory.
    s.threads = <int>max(1, min(<Py_ssize_t>s.threads, rows // max(most, 1)))
    scratch = <int64_t *>malloc(8 * s.threads * room)
    if scratch == NULL:
        free(heads)
        raise MemoryError("no room for the rows of some segments")
    if not watch.ended:
        for unit in prange(s.units, num_threads=s.threads, schedule="static", nogil=True):
            _fill_buckets(
                ids, begin + _first(&s, unit), begin + _first(&s, unit + 1), shift,
                heads + unit * s.apart, order, watch,
            )
    if not watch.ended:
        ends_at = heads + (s.units - 1) * s.apart  # the last piece filled them up
        before = offsets[0]
        for h in prange(
            buckets, num_threads=s.threads, schedule="dynamic", chunksize=8, nogil=True
        ):
            _sort_bucket(
                ends_at[h - 1] if h else before, ends_at[h] - (ends_at[h - 1] if h else before),
                min(low, segments - (h << shift)), offsets + (h << shift), order,
                scratch + fg_thread() * room, watch,
            )
        offsets[segments] = ends_at[buckets - 1]
    free(scratch)
    free(heads)
    return 0
