# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: freethreading_compatible=True
"""Sorting of rows by segment.

Ids are (B, N), C-contiguous, of any integer dtype; they are widened to int64 block by block, -1
where ignored.  About every SLAB rows the caller's thread looks at signals, so that Ctrl-C ends a
long call.
"""
# The heap that tracemalloc sees: profile_loss counts scratch.
from cpython.mem cimport PyMem_RawFree as free, PyMem_RawMalloc as malloc
from libc.string cimport memcpy, memset

cimport numpy as cnp
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint64_t

from fastgrad._kernels.isa cimport active
from fastgrad._kernels.rows cimport UNSIGNED, integer_type, widen
from fastgrad._kernels.watch cimport SLAB, Watch, ends, raised, watching


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


def scan(cnp.ndarray ids, ignore_index, const int64_t[::1] classes):
    """(flat position of the first id outside [0, classes of its item) or -1, largest id or -1).

    Ids that are ignored do not count.  Without `classes` any id from 0 on will do.
    """
    cdef Ids a = ids_of(ids, ignore_index)
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
                    at = codes(&a, b * rows + i, n, chunk)
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
                tally_start(&tally, &counts[b, 0], counts.shape[1])
            i = 0
            while i < rows and good:
                n = CHUNK if rows - i > CHUNK else rows - i
                at = codes(&a, b * rows + i, n, chunk)
                if checks and active().f64.count_outside(at, n, classes[b]):
                    good = False
                    break
                for k in range(n):
                    to[b * rows + i + k] = <narrow>at[k]
                if counting:
                    tally_add(&tally, at, n, a.ignoring)
                i += n
                if i % SLAB == 0 and ends(&watch, SLAB + 1):
                    break
            if watch.ended or not good:
                break
            if counting:
                tally_end(&tally)
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
    tally_start(&tally, counts, segments)
    while i < rows:
        n = CHUNK if rows - i > CHUNK else rows - i
        tally_add(&tally, codes(ids, begin + i, n, chunk), n, ids.ignoring)
        i += n
        if i % SLAB == 0 and ends(watch, SLAB + 1):
            return
    tally_end(&tally)


def count(cnp.ndarray ids, ignore_index, int64_t[:, ::1] counts):
    """Rows of every segment, into `counts` (B, K), which holds zeros; ids are in range."""
    cdef Ids a = ids_of(ids, ignore_index)
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
    cdef Ids a = ids_of(ids, ignore_index)
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
    cdef Ids a = ids_of(ids, ignore_index)
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
        at = codes(ids, begin + i, n, chunk)
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
            at = codes(ids, begin + i, n, chunk)
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
