"""Segments and segment_*: the plan, values against the twins, special values, layouts, threads."""

from __future__ import annotations

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastgrad as fg
from fastgrad import _reference as ref
from fastgrad import _segments
from fastgrad._kernels import isa as _isa
from fastgrad._kernels import sort

INF, NAN = np.inf, np.nan
EPS32 = np.finfo(np.float32).eps
INTEGERS = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i4", ">u8"]
REDUCE = ["sum", "mean", "max", "min", "logsumexp"]
NORMALIZE = ["softmax", "log_softmax"]
ALL = REDUCE + NORMALIZE


def function(name):
    return getattr(fg, f"segment_{name}")


def twin(name, derivative=""):
    return getattr(ref, f"segment_{name}{derivative and '_' + derivative}")


def draw(rng, shape, segments, trailing=(), dtype=np.float64, ignored=False):
    """Data of unequal sizes with ties, and ids; -1 may be among them."""
    ids = rng.integers(-1 if ignored else 0, segments, shape)
    x = rng.normal(0, 3, shape + trailing)
    return np.where(rng.random(x.shape) < 0.3, np.round(x), x).astype(dtype), ids


# ---- the plan -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (2000,), (3, 700), (0, 5), (5, 0)], ids=str)
@pytest.mark.parametrize("ignored", [None, 0, 5])
def test_order_is_that_of_a_stable_sort(rng, dtype, shape, ignored):
    ids = rng.integers(0, 100, shape).astype(dtype)
    s = fg.Segments.from_ids(ids, ignore_index=ignored)
    batch = shape[0] if len(shape) == 2 else 1
    flat = ids.reshape(batch, shape[-1]).astype(np.int64)
    kept = np.ones(flat.shape, bool) if ignored is None else flat != ignored
    k = int(flat[kept].max(initial=-1)) + 1
    codes = flat + k * np.arange(batch)[:, None]
    order = np.argsort(np.where(kept, codes, batch * k), axis=None, kind="stable")
    counts = np.bincount(codes[kept], minlength=batch * k)
    assert (s.num_segments, s.shape) == (k, shape)
    assert np.array_equal(s.order, order[: kept.sum()])
    assert np.array_equal(s.counts, counts.reshape(*shape[:-1], k))
    assert np.array_equal(s.offsets, np.concatenate([[0], np.cumsum(counts)]))
    assert {a.dtype for a in (s.order, s.counts, s.offsets)} == {np.dtype(np.int64)}


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("items", [1, 3])
@pytest.mark.parametrize(
    "segments", [1, 100, 1024, 1025, 2048, 2049, 32_768, 32_769, 200_000, 3_000_000]
)
def test_order_of_many_segments(rng, segments, items, ignored):
    """Below and above what has several tables of counters, rows prefetched, two steps, or a wider
    copy."""
    ids = rng.integers(-1 if ignored else 0, segments, (items, 30_000))
    ids[:, ::3] = segments - 1  # a bucket of many rows
    s = fg.Segments.from_ids(ids, segments, ignore_index=-1 if ignored else None)
    together = (ids + segments * np.arange(items)[:, None]).ravel()
    kept = np.flatnonzero(ids.ravel() >= 0)
    assert np.array_equal(s.order, kept[np.argsort(together[kept], kind="stable")])
    counts = np.bincount(together[kept], minlength=segments * items)
    assert np.array_equal(np.diff(s.offsets), counts)
    again = fg.Segments.from_ids(ids, segments, ignore_index=-1 if ignored else None)
    assert np.array_equal(again.offsets, s.offsets)  # made without the order


@pytest.mark.parametrize("ignored", [None, 3])
@pytest.mark.parametrize("shape", [(400_000,), (3, 150_000), (500, 800)], ids=str)
@pytest.mark.parametrize("segments", [10, 5_000, 60_000])
def test_threads_sort_as_one_does(rng, segments, shape, ignored, on_threads):
    """Pieces of an item, of some items, whole items; counters that a piece is worth or not."""
    ids = rng.integers(0, segments, shape)
    codes = ids.reshape(-1, shape[-1]) + segments * np.arange(ids.size // shape[-1])[:, None]
    kept = np.flatnonzero(ids.ravel() != ignored)
    order = kept[np.argsort(codes.ravel()[kept], kind="stable")]
    counts = np.bincount(codes.ravel()[kept], minlength=codes.shape[0] * segments)
    for threads in (2, 3, 6):
        with on_threads(threads):
            s = fg.Segments.from_ids(ids, segments, ignore_index=ignored)
            later = _segments._plan(ids, segments, ignored)  # counts when it is asked
            assert np.array_equal(s.order, order)
            assert np.array_equal(np.diff(s.offsets), counts)
            assert np.array_equal(np.diff(later.offsets), counts)
            assert fg.Segments.from_ids(ids, ignore_index=ignored).num_segments == segments


@pytest.mark.parametrize("at", [0, 199_999, 200_000, 399_999])
@pytest.mark.parametrize("segments", [100, 60_000])
def test_threads_name_the_first_id_out_of_range(segments, at, on_threads):
    one, many = np.zeros((2, 400_000), np.int64)
    one[at] = many[at:] = segments
    low = np.where(one == 0, 0, -7)
    for threads in (2, 5):
        for ids, number in ((one, segments), (many, segments), (low, segments), (low, None)):
            wrong = rf"ids\[{at}\] is {ids[at]}\."
            with on_threads(threads), pytest.raises(IndexError, match=wrong):
                fg.Segments.from_ids(ids, number)


@pytest.mark.parametrize("ids", [[5, 5, 5], [], [0], [50_000]], ids=str)
def test_order_of_few_rows_of_many_segments(ids):
    s = fg.Segments.from_ids(np.array(ids, int), 50_001)
    assert np.array_equal(s.order, np.arange(len(ids)))
    assert np.array_equal(s.offsets[1:], np.searchsorted(ids, np.arange(50_001), side="right"))


@pytest.mark.parametrize("dtype", [np.int16, np.int64, np.uint64])
@pytest.mark.parametrize("at", [0, 511, 512, 1999])
@pytest.mark.parametrize("segments", [100, 40_000])
def test_an_id_out_of_range_is_found_while_ids_are_packed(dtype, at, segments):
    if dtype == np.int16 and segments > 2**15 - 1:
        segments = 2**15 - 1
    ids = np.zeros((2, 2000), dtype)
    ids[1, at] = segments
    with pytest.raises(IndexError, match=rf"ids\[1, {at}\] is {segments}\."):
        fg.Segments.from_ids(ids, segments)
    with pytest.raises(IndexError, match=rf"ids\[{at}\] is {segments}\."):
        fg.Segments.from_ids(ids[1], segments)
    assert fg.Segments.from_ids(ids, segments + 1).num_segments == segments + 1
    assert fg.Segments.from_ids(ids, [1, segments + 1]).counts[1, 0] == 1999


def test_a_plan_of_strided_ids(rng):
    ids = rng.integers(0, 9, (40, 6))
    s = fg.Segments.from_ids(ids[::-2, 1::3])
    again = fg.Segments.from_ids(ids[::-2, 1::3].copy())
    assert np.array_equal(s.order, again.order)


def test_items_with_their_own_number_of_segments():
    s = fg.Segments.from_ids([[0, 1], [0, 0]], [3, 1])
    assert s.counts.tolist() == [[1, 1, 0], [2, 0, 0]]
    assert s.offsets.tolist() == [0, 1, 2, 2, 4, 4, 4]


def test_consecutive_segments():
    for s in (fg.Segments.from_lengths([2, 0, 3]), fg.Segments.from_offsets([0, 2, 2, 5])):
        assert (s.shape, s.num_segments) == ((5,), 3)
        assert s.order.tolist() == [0, 1, 2, 3, 4]
        assert s.offsets.tolist() == [0, 2, 2, 5]
        assert s.counts.tolist() == [2, 0, 3]
    none = fg.Segments.from_lengths([])
    assert (none.shape, none.num_segments, none.order.size) == ((0,), 0, 0)


def test_a_plan_never_changes():
    ids = np.array([2, 0, 2])
    offsets = np.array([0, 1, 3])
    plans = [fg.Segments.from_ids(ids), fg.Segments.from_offsets(offsets)]
    ids[:] = 1
    offsets[:] = 0
    assert plans[0].order.tolist() == [1, 0, 2]
    assert plans[1].offsets.tolist() == [0, 1, 3]
    for s in plans:
        for a in (s.order, s.offsets, s.counts):
            with pytest.raises(ValueError, match="read-only"):
                a[0] = 7


def test_a_plan_pickles_and_shows_itself():
    s = fg.Segments.from_ids([[2, 0, -1]], ignore_index=-1)
    again = pickle.loads(pickle.dumps(s))
    assert repr(again) == repr(s) == "Segments(shape=(1, 3), num_segments=3)"
    assert np.array_equal(again.order, s.order)


# ---- values -------------------------------------------------------------------------------------


def size_of(name, x, ids, **options):
    """What the errors of a result count in."""
    if name in ("sum", "mean"):
        return twin(name)(np.abs(x.astype(np.float64)), ids, **options)
    if name == "logsumexp":
        log = np.abs(twin(name)(x, ids, **options))
        return np.maximum(log, np.abs(ref.segment_max(x, ids, **options)))
    return None


# In ulps: sums are rounded once from a wider one, means are quotients of such; the others as in
# NUMERICS.md section 1.
BARS = {"sum": 1, "mean": 1, "max": 0, "min": 0, "logsumexp": 2, "softmax": 2.5, "log_softmax": 4}
SHAPES = [(0,), (17,), (300,), (3, 50), (2, 0), (0, 3)]
TRAILING = [(), (1,), (3,), (16,), (33,), (2, 20), (0,)]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("trailing", TRAILING, ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_values_are_those_of_the_twin(isa, dtype, rng, assert_ulps, name, trailing, order):
    for shape in SHAPES:
        for segments in (1, 40):
            x, ids = draw(rng, shape, segments, trailing, dtype, ignored=True)
            x = np.asarray(x, order=order)
            options = {"num_segments": segments, "ignore_index": -1}
            exact = twin(name)(x, ids, **options)
            actual = function(name)(x, ids, **options)
            assert actual.dtype == dtype
            scale = size_of(name, x, ids, **options)
            assert_ulps(actual, exact, BARS[name], scale, (shape, segments))


@pytest.mark.parametrize("name", ["sum", "mean"])
@pytest.mark.parametrize("trailing", [(), (3,), (16,), (33,)], ids=str)
def test_weights(isa, dtype, rng, assert_ulps, name, trailing):
    """Two roundings more where the weights of a mean are added."""
    for shape in ((300,), (3, 50)):
        x, ids = draw(rng, shape, 20, trailing, dtype, ignored=True)
        w = rng.random(shape).astype(dtype)
        w[rng.random(shape) < 0.3] = 0
        x[w == 0] = NAN
        options = {"num_segments": 40, "ignore_index": -1, "weights": w}
        scale = size_of(name, np.where(np.isnan(x), 0, x), ids, **options)
        exact = twin(name)(x, ids, **options)
        assert_ulps(function(name)(x, ids, **options), exact, 2, scale, shape)
        plan = fg.Segments.from_ids(ids, 40, ignore_index=-1)
        same = function(name)(x, plan, weights=w)
        assert same.tobytes() == function(name)(x, ids, **options).tobytes()


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
@pytest.mark.parametrize("columns", [1, 4, 16, 40])
@pytest.mark.parametrize("in_order", [True, False])
def test_every_length_of_a_segment(isa, dtype, rng, assert_ulps, name, columns, in_order):
    """From lanes over blocks to rows, alone and beside others."""
    lengths = [*range(48), 63, 64, 65, 102, 103, 104, 105, 128, 129, 143, 144, 145, 146, 255]
    lengths += [256, 257, 300, 0, 2000]
    ids = np.repeat(np.arange(len(lengths)), lengths)
    s = fg.Segments.from_lengths(lengths)
    if not in_order:
        rng.shuffle(ids)
        s = fg.Segments.from_ids(ids, len(lengths))
    x = rng.normal(0, 3, (ids.size, columns)).astype(dtype)
    exact = twin(name)(x, ids, num_segments=len(lengths))
    scale = size_of(name, x, ids, num_segments=len(lengths))
    actual = function(name)(x, s)
    assert_ulps(actual, exact, BARS[name], scale, name)
    for k in (1, 20, 63, 64, 103, 104, 128, 144, 145, 257, 300):
        rows = np.flatnonzero(ids == lengths.index(k))
        alone = function(name)(x[rows], fg.Segments.from_lengths([k]))
        mine = actual[lengths.index(k)] if name == "logsumexp" else actual[rows]
        assert alone.tobytes() == mine.tobytes(), k


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
@pytest.mark.parametrize("longest", [49, 60, 69, 97, 120, 140])
def test_many_columns_beside_a_longer_segment(isa, dtype, rng, name, longest):
    """The shorter one takes more columns at once, and may need more memory for them."""
    for length in range(longest // 2, longest, 4):
        ids = rng.permutation(np.repeat([0, 1], [length, longest]))
        x = rng.normal(0, 3, (ids.size, 400)).astype(dtype)
        alone = function(name)(x[ids == 0], fg.Segments.from_lengths([length]))
        both = function(name)(x, ids)
        beside = both[:1] if name == "logsumexp" else both[ids == 0]
        assert alone.tobytes() == beside.tobytes(), length


def test_segments_longer_than_a_tile(isa, rng, assert_ulps):
    x = rng.normal(0, 3, (33_000, 17)).astype(np.float32)
    s = fg.Segments.from_ids(np.zeros(33_000, int))
    assert_ulps(fg.segment_softmax(x, s), ref.softmax(x, 0), 2.5)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("lengths", [[300, 33_000], [33_000, 300], [0, 0, 0, 300, 33_000]])
def test_segments_longer_than_a_tile_beside_others(isa, rng, assert_ulps, lengths, order):
    """A tile of columns and columns one by one share memory."""
    ids = rng.permutation(np.repeat(np.arange(len(lengths)), lengths))
    x = np.asarray(rng.normal(0, 3, (len(ids), 17)), np.float32, order=order)
    for each in (ids, np.sort(ids)):
        exact = ref.segment_softmax(x, each)
        assert_ulps(fg.segment_softmax(x, each), exact, 2.5)
        lse = fg.segment_logsumexp(x, each)
        assert_ulps(lse, ref.segment_logsumexp(x, each), 2, np.abs(lse).astype(float) + 3)


@pytest.mark.parametrize("offset", [0, 1e4, -1e4, 1e8])
def test_softmax_of_far_logits(isa, rng, assert_ulps, offset):
    x = rng.normal(0, 5000, 400) + offset
    ids = rng.integers(0, 30, 400)
    assert_ulps(fg.segment_softmax(x, ids), ref.segment_softmax(x, ids), 2.5)


@pytest.mark.parametrize("name", ["sum", "mean"])
def test_many_rows_near_1000(dtype, rng, assert_ulps, name):
    """A running sum of float32 would be 1.6 % off, and one of float64 35 ulp."""
    x = (1000 + rng.random((200_000, 2))).astype(dtype)
    ids = np.zeros(len(x), int)
    ids[::7] = 1
    assert_ulps(function(name)(x, ids), twin(name)(x, ids), 1)


def test_a_small_segment_after_a_huge_one(dtype):
    """What a difference of prefix sums would lose."""
    x = np.array([1e30, 1e30, 3.0, 5.0], dtype)
    assert fg.segment_sum(x, fg.Segments.from_lengths([2, 2])).tolist()[1] == 8
    assert fg.segment_sum(x, [0, 0, 1, 1])[1] == 8


@pytest.mark.parametrize("name", ["sum", "mean"])
def test_every_length_of_consecutive_rows(isa, dtype, rng, assert_ulps, name):
    """One column, several segments side by side: still the bits of the same ids."""
    lengths = [*range(150), 1000, 5000]
    x = rng.normal(size=sum(lengths)).astype(dtype)
    x[-5000:-4000:100] = INF
    ids = np.repeat(np.arange(len(lengths)), lengths)
    exact = twin(name)(x, ids)
    scale = twin(name)(np.abs(x.astype(np.float64)), ids)
    for a in (x, np.repeat(x, 2)[::2]):
        actual = function(name)(a, fg.Segments.from_lengths(lengths))
        assert_ulps(actual, exact, 1, scale)
        assert actual.tobytes() == function(name)(a, ids).tobytes()
    x[-1] = -INF
    last = function(name)(x, fg.Segments.from_lengths(lengths))[-1]
    assert np.isnan(last)


def test_sums_that_cancel(dtype):
    """1 survives in what is wider than the data."""
    big = 2.0**40 if dtype == np.float32 else 2.0**80
    assert fg.segment_sum(np.array([big, 1, -big], dtype), [0, 0, 0]).tolist() == [1]


# ---- derivatives --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "weighs"), [*((n, False) for n in ALL), ("sum", True), ("mean", True)]
)
@pytest.mark.parametrize("trailing", [(), (3,), (20,)], ids=str)
def test_derivatives_are_those_of_the_twin(isa, dtype, rng, name, weighs, trailing):
    """Within 8 eps of what each term can be: p (2.5 ulp) times vectors of the size drawn."""
    f, eps = function(name), np.finfo(dtype).eps
    for shape in ((60,), (3, 25)):
        x, ids = draw(rng, shape, 8, trailing, dtype, ignored=True)
        options = {"num_segments": 10, "ignore_index": -1}
        if weighs:
            options["weights"] = rng.integers(0, 3, shape).astype(dtype)
        reduced = (*shape[:-1], 10, *trailing) if name in REDUCE else x.shape
        v = rng.normal(size=x.shape).astype(dtype)
        g = rng.normal(size=reduced).astype(dtype)
        pulled, pushed = f.vjp(x, ids, g, **options), f.jvp(x, ids, v, **options)
        assert pulled.dtype == pushed.dtype == dtype
        terms = 4 if name in NORMALIZE else 2  # rows that may add up in one result, beside eps
        bar = (
            8 * eps * max(np.abs(v).max(), np.abs(g).max()) * (terms * len(ids.reshape(-1)) ** 0.5)
        )
        np.testing.assert_allclose(
            pulled, twin(name, "vjp")(x, ids, g, **options).astype(float), rtol=0, atol=bar
        )
        np.testing.assert_allclose(
            pushed, twin(name, "jvp")(x, ids, v, **options).astype(float), rtol=0, atol=bar
        )
        # <g, J v> = <J^T g, v>
        a, b = np.vdot(g.astype(float), pushed), np.vdot(pulled.astype(float), v)
        assert abs(a - b) <= bar * g.size


def test_a_saved_result_gives_the_same_derivative(rng):
    x, ids = draw(rng, (200,), 9, (3,))
    g, y = rng.normal(size=x.shape), fg.segment_softmax(x, ids)
    for d in (fg.segment_softmax.vjp, fg.segment_softmax.jvp):
        assert d(x, ids, g, y=y).tobytes() == d(x, ids, g).tobytes()


def test_ties_give_all_to_the_first():
    x, ids = np.array([[2.0, 1], [2, 1], [2, 3]]), [0, 0, 0]
    assert fg.segment_max.vjp(x, ids, [[-5.0, 7]]).tolist() == [[-5, 0], [0, 0], [0, 7]]
    assert fg.segment_min.vjp(x, ids, [[-5.0, 7]]).tolist() == [[-5, 7], [0, 0], [0, 0]]
    best, place = fg.segment_min(x, ids, return_argmax=True)
    assert (best.tolist(), place.tolist()) == ([[2, 1]], [[0, 0]])


# ---- special values -----------------------------------------------------------------------------

SPECIAL = [NAN, INF, -INF, 0.0, -0.0, 1.0]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("columns", [1, 5, 20])
def test_special_values_stay_in_their_segment(isa, dtype, rng, assert_ulps, name, columns):
    for _ in range(20):
        x = rng.choice(SPECIAL, (40, columns), p=[0.1, 0.05, 0.2, 0.1, 0.1, 0.45]).astype(dtype)
        ids = rng.integers(0, 12, 40)
        for s in (ids, fg.Segments.from_ids(ids)):
            assert_ulps(function(name)(x, s), twin(name)(x, ids), BARS[name], None, x)


@pytest.mark.parametrize("name", ["max", "min"])
def test_where_extremes_are(isa, dtype, rng, name):
    for columns in (1, 5, 40):
        x = rng.choice(SPECIAL, (3, 40, columns)).astype(dtype)
        ids = rng.integers(0, 12, (3, 40))
        mine = function(name)(x, ids, num_segments=14, return_argmax=True)
        exact = twin(name)(x, ids, num_segments=14, return_argmax=True)
        assert np.array_equal(mine[0], exact[0].astype(dtype), equal_nan=True)
        assert np.array_equal(mine[1], exact[1])
        assert mine[1].dtype == np.int64


@pytest.mark.parametrize(
    ("name", "default"),
    [("sum", 0), ("mean", NAN), ("max", -INF), ("min", INF), ("logsumexp", -INF)],
)
def test_empty_segments(dtype, name, default):
    x = np.ones((2, 2), dtype)
    f = function(name)
    found = f(x, [[1, 1], [3, 3]], num_segments=5)
    full = [[False, True, False, False, False], [False, False, False, True, False]]
    assert np.array_equal(found[~np.array(full)], np.full(8, default, dtype), equal_nan=True)
    assert np.isfinite(found[np.array(full)]).all()
    if name != "logsumexp":
        assert f(x[0], [2, 2], empty_value=7)[:2].tolist() == [7, 7]
    assert f(np.ones(0), np.zeros(0, int), num_segments=2).shape == (2,)
    assert f(np.ones((0, 3)), np.zeros(0, int)).shape == (0, 3)


def test_a_segment_without_weight_is_empty():
    x, w = np.array([1.0, NAN, 3]), [0.0, 0, 1]
    assert fg.segment_mean(x, [0, 0, 1], weights=w, empty_value=-1).tolist() == [-1, 3]
    assert fg.segment_sum(x, [0, 0, 1], weights=w, empty_value=-1).tolist() == [-1, 3]
    assert fg.segment_sum(x, [0, 0, 1], weights=w).tolist() == [0, 3]


def test_infinite_sums(dtype):
    big = np.finfo(dtype).max
    x = np.array([big, big, INF, 1, INF, -INF], dtype)
    out = fg.segment_sum(x, [0, 0, 1, 1, 2, 2])
    assert np.array_equal(out, [INF, INF, NAN], equal_nan=True)


# ---- half precision -----------------------------------------------------------------------------


@pytest.mark.parametrize("half", [np.float16, ml_dtypes.bfloat16], ids=["f16", "bf16"])
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("columns", [1, 5, 20])
def test_halves_are_float32_rounded_once(isa, rng, half, name, columns):
    x = rng.normal(0, 3, (700, columns)).astype(half)
    ids = rng.integers(0, 40, 700)
    for a in (x, np.asfortranarray(x), x[::-1]):
        wide = function(name)(a.astype(np.float32), ids)
        assert function(name)(a, ids).tobytes() == wide.astype(half).tobytes()
        g = rng.normal(size=wide.shape).astype(half)
        pulled = function(name).vjp(a.astype(np.float32), ids, g.astype(np.float32))
        assert function(name).vjp(a, ids, g).tobytes() == pulled.astype(half).tobytes()


# ---- paths, threads, layouts --------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_means_beyond_the_range_change_no_others(isa, rng, columns):
    x = rng.normal(size=(300, columns))
    ids = rng.integers(0, 20, 300)
    plain = fg.segment_mean(x, ids, num_segments=20)
    for plan in (ids, fg.Segments.from_ids(ids, 20)):
        if isinstance(plan, fg.Segments):
            assert plan.order.size == 300  # sorted: the other path
        x[ids == 3, -1] = 1.6e308
        mean = fg.segment_mean(x, plan, **({} if plan is not ids else {"num_segments": 20}))
        np.testing.assert_array_equal(mean[3, -1], 1.6e308)
        same = np.ones(mean.shape, bool)
        same[3, -1] = False
        np.testing.assert_array_equal(mean[same], plain[same])
    assert fg.segment_mean(np.full(9, 1.7e308), fg.Segments.from_lengths([9]))[0] == 1.7e308
    assert np.isinf(fg.segment_sum(np.full(9, 1.7e308), [0] * 9)[0])


@pytest.mark.parametrize("columns", [1, 3, 16, 33, 130])
@pytest.mark.parametrize("weighs", [False, True])
@pytest.mark.parametrize("shape", [(3000,), (4, 1500)], ids=str)
def test_both_paths_give_the_same_bits(
    isa, dtype, rng, monkeypatch, columns, weighs, shape, on_threads
):
    x, ids = draw(rng, shape, 50, (columns,), dtype, ignored=True)
    w = rng.random(shape).astype(dtype) if weighs else None
    seen = set()
    for table in (True, False):
        monkeypatch.setattr(_segments._kernels, "prefers_table", lambda *_, t=table: t)
        for threads in (1, 2, 5):
            with on_threads(threads):
                seen.add(fg.segment_mean(x, ids, ignore_index=-1, weights=w).tobytes())
    assert len(seen) == 1


@pytest.mark.parametrize("columns", [1, 3, 40])
@pytest.mark.parametrize("at", [0, 511, 512, 1999])
@pytest.mark.parametrize("wrong", [-1, 50])
@pytest.mark.parametrize("batch", [False, True])
def test_an_id_out_of_range_is_found_while_rows_are_added(
    isa, dtype, rng, columns, at, wrong, batch, on_threads
):
    x, ids = draw(rng, (2, 2000), 50, (columns,), dtype)
    ids[1, at] = wrong
    place = f"1, {at}"
    if not batch:
        x, ids, place = x[1], ids[1], f"{at}"
    out = np.full((*ids.shape[:-1], 50, columns), 7, dtype)
    w = rng.random(ids.shape).astype(dtype)
    for f in (fg.segment_sum, fg.segment_mean):
        for weights in (None, w):
            for threads in (1, 2):
                with (
                    on_threads(threads),
                    pytest.raises(IndexError, match=rf"segments\[{place}\] is {wrong}\."),
                ):
                    f(x, ids, num_segments=50, out=out, weights=weights)
    assert (out == 7).all()
    with pytest.raises(IndexError, match=rf"labels\[{place}\] is {wrong}\."):
        fg.class_centroids(x, ids, num_classes=50)


@pytest.mark.parametrize("columns", [1, 8, 40])
@pytest.mark.parametrize("name", ["sum", "mean"])
def test_ids_checked_on_the_way_give_the_same_bits(isa, dtype, rng, columns, name):
    x, ids = draw(rng, (3000,), 40, (columns,), dtype)
    ids[ids == 20] = 21
    f, plan = function(name), fg.Segments.from_ids(ids, 40)
    for options in ({}, {"empty_value": 7.0}, {"weights": rng.random(3000).astype(dtype)}):
        found = f(x, ids, num_segments=40, **options)
        assert found.tobytes() == f(x, plan, **options).tobytes(), options
    counts = fg.class_centroids(x, ids, num_classes=40).counts
    assert np.array_equal(counts, np.bincount(ids, minlength=40))


@pytest.mark.parametrize(("rows", "columns"), [(100_000, 5), (10_000, 40)])
@pytest.mark.parametrize("at", [0, -1])
def test_threads_check_and_count_ids_on_the_way(isa, dtype, rng, rows, columns, at, on_threads):
    """Each reads all of them, whether they share out segments or columns."""
    x, ids = draw(rng, (rows,), 50, (columns,), dtype)
    with on_threads(1):
        expected = fg.segment_mean(x, fg.Segments.from_ids(ids, 50))
    out = np.full((50, columns), 7, dtype)
    with on_threads(3):
        centroids, counts = fg.class_centroids(x, ids, num_classes=50)
        true = np.bincount(ids, minlength=50)
        ids[at] = 50
        with pytest.raises(IndexError, match="is 50"):
            fg.segment_mean(x, ids, num_segments=50, out=out)
    assert (out == 7).all()
    assert centroids.tobytes() == expected.tobytes()
    assert np.array_equal(counts, true)


@pytest.mark.parametrize("columns", [2, 4, 5, 8])
@pytest.mark.parametrize("weighs", [False, True])
@pytest.mark.parametrize("segments", [1, 3, 1000])
def test_threads_that_share_out_the_segments(
    isa, dtype, rng, columns, weighs, segments, on_threads
):
    """Where rows are too short to cut; `taken` rows have the weights of their own."""
    x, ids = draw(rng, (100_000,), segments, (columns,), dtype, ignored=True)
    x = np.concatenate([x, x], axis=1)[:, :columns]  # strided, too
    w = rng.random(len(x)).astype(dtype) if weighs else None
    seen = set()
    for threads in (1, 2, 3, 7):
        with on_threads(threads):
            options = {"ignore_index": -1, "num_segments": segments, "weights": w}
            seen.add(fg.segment_sum(x, ids, **options).tobytes())
            seen.add(fg.segment_sum(x, ids, empty_value=7, **options).tobytes())
            mean = fg.segment_mean(x, ids, **options)
    assert len(seen) == 1
    plan = fg.Segments.from_ids(ids, segments, ignore_index=-1)
    assert plan.order.size  # sorted: the other path
    with on_threads(1):
        assert fg.segment_mean(x, plan, weights=w).tobytes() == mean.tobytes()


# Rows of at least 8 MiB are cut into two strips, of at least 16 MiB into four.
STRIPS = [(18 << 20, 3), (9 << 20, 21), (18 << 20, 40)]


@pytest.mark.parametrize(("size", "columns"), STRIPS)
@pytest.mark.parametrize("weighs", [False, True])
def test_sums_of_strips_of_rows(isa, dtype, rng, size, columns, weighs, on_threads):
    rows = size // (columns * np.dtype(dtype).itemsize)
    x, ids = draw(rng, (rows,), 30, (columns,), dtype, ignored=True)
    x[ids == 7] = 3e-3  # a sum that would show its rounding
    w = rng.integers(0, 3, rows).astype(dtype) if weighs else None
    options = {"ignore_index": -1, "num_segments": 30, "weights": w}
    by_id = np.argsort(ids, kind="stable")
    kept = by_id[np.searchsorted(ids[by_id], 0) :]
    share = np.ones((rows, 1)) if w is None else w[:, None]
    starts = np.searchsorted(ids[kept], np.arange(30))
    exact = np.add.reduceat((x.astype(np.longdouble) * share)[kept], starts, axis=0)
    scale = np.add.reduceat(np.abs(x * share)[kept], starts, axis=0)
    seen, means = set(), set()
    for threads in (1, 2, 3, 7):
        with on_threads(threads):
            total = fg.segment_sum(x, ids, **options)
            seen.add(total.tobytes())
            means.add(fg.segment_mean(x, ids, **options).tobytes())
            strided = np.asfortranarray(x)
            seen.add(fg.segment_sum(strided, ids, **options).tobytes())
            pair = np.stack([x, x]), np.stack([ids, ids])
            twice = fg.segment_sum(*pair, **options | {"weights": None})
            assert twice[0].tobytes() == twice[1].tobytes()
    assert len(seen) == len(means) == 1
    assert (np.abs(total - exact) <= np.spacing(np.abs(exact).astype(dtype)) + 1e-13 * scale).all()
    plan = fg.Segments.from_ids(ids, 30, ignore_index=-1)
    assert plan.order.size == len(kept)
    assert fg.segment_sum(x, plan, weights=w).tobytes() == total.tobytes()
    if not weighs:
        assert twice[0].tobytes() == total.tobytes()
        x[-1], ids[-1] = np.nan, 5
        spoiled = np.isnan(fg.segment_sum(x, ids, **options))
        assert np.array_equal(spoiled, np.arange(30)[:, None] == np.full(columns, 5))


@pytest.mark.parametrize("columns", [1, 4, 40])
@pytest.mark.parametrize("in_order", [False, True])
def test_strips_depend_on_nothing_but_the_shape(dtype, rng, columns, in_order, on_threads):
    """What is huge cancels, so that every other order of the additions would show."""
    rows = (18 << 20) // (columns * np.dtype(dtype).itemsize)
    x, ids = draw(rng, (rows,), 30, (columns,), dtype)
    if in_order:
        ids.sort()
    by_id = np.argsort(ids, kind="stable")
    ends = np.searchsorted(ids[by_id], np.arange(31))
    huge = dtype(1e17 if dtype == np.float32 else 1e33)
    x[by_id[ends[:-1]]], x[by_id[ends[1:] - 1]] = huge, -huge
    seen = set()
    for threads in (1, 2, 3, 7):
        with on_threads(threads):
            plan = fg.Segments.from_ids(ids, 30)
            plans = [ids, plan, fg.Segments.from_lengths(plan.counts)] if in_order else [ids, plan]
            for p in plans:
                some = {"num_segments": 30} if p is ids else {}
                seen.add(fg.segment_sum(x, p, **some).tobytes())
                seen.add(fg.segment_sum(np.asfortranarray(x), p, **some).tobytes())
    assert len(seen) == 1


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("columns", [4, 40])
@pytest.mark.parametrize("at", [0, -1])
def test_an_id_out_of_range_in_some_strip(dtype, rng, threads, columns, at, on_threads):
    rows = (18 << 20) // (columns * np.dtype(dtype).itemsize)
    x, ids = draw(rng, (rows,), 30, (columns,), dtype)
    out = np.full((30, columns), 7, dtype)
    with on_threads(threads):
        counts = fg.class_centroids(x, ids, num_classes=30).counts
        assert np.array_equal(counts, np.bincount(ids, minlength=30))
        ids[at] = 30
        with pytest.raises(IndexError, match="is 30"):
            fg.segment_sum(x, ids, num_segments=30, out=out)
    assert (out == 7).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bad", [-1, 3])
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
def test_a_bad_id_is_refused_before_anything_is_written(dtype, name, bad, batch):
    x, ids = np.ones((*batch, 4, 2), dtype), np.broadcast_to(np.array([0, 1, 2, bad]), (*batch, 4))
    f, shape = function(name), (*batch, 4 if name in NORMALIZE else 3, 2)
    out, slope = np.full(shape, 7, dtype), np.full(x.shape, 7, dtype)
    for call in (
        lambda: f(x, ids, num_segments=3, out=out),
        lambda: f.jvp(x, ids, x, num_segments=3, out=out),
        lambda: f.vjp(x, ids, np.ones_like(out), num_segments=3, out=slope),
    ):
        with pytest.raises(IndexError, match=rf"segments\[.*3\] is {bad}"):
            call()
        assert (out == 7).all()
        assert (slope == 7).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("shape", "columns"),
    [((200_000,), 1), ((100_000,), 5), ((20_000,), 40), ((4, 10_000), 20)],
    ids=str,
)
def test_threads_change_no_bit(dtype, rng, name, shape, columns, on_threads):
    x, ids = draw(rng, shape, 300, (columns,), dtype)
    f = function(name)
    g = rng.normal(size=f(x, ids, num_segments=300).shape).astype(dtype)
    v = rng.normal(size=x.shape).astype(dtype)
    seen = set()
    for threads in (1, 2, 3, 5):
        with on_threads(threads):
            seen.add(
                (
                    f(x, ids, num_segments=300).tobytes(),
                    f.vjp(x, ids, g, num_segments=300).tobytes(),
                    f.jvp(x, ids, v, num_segments=300).tobytes(),
                )
            )
    assert len(seen) == 1


def views(x):
    """The same values in many layouts."""
    yield np.asfortranarray(x)
    yield np.repeat(x, 2, axis=0)[::2]
    yield x[::-1].copy()[::-1]
    yield np.repeat(x, 3, axis=-1)[..., ::3]
    yield np.moveaxis(np.moveaxis(x, 0, -1).copy(), -1, 0)
    frozen = x.copy()
    frozen.flags.writeable = False
    yield frozen
    yield x.astype(x.dtype.newbyteorder(">"))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("trailing", [(), (3,), (20,), (4, 5)], ids=str)
def test_layouts(dtype, rng, assert_ulps, name, trailing):
    for shape in ((300,), (3, 60)):
        x, ids = draw(rng, shape, 20, trailing, dtype)
        f = function(name)
        expected = f(x, ids, num_segments=20)
        for view in views(x):
            actual = f(view, ids, num_segments=20)
            assert actual.dtype == dtype
            # The style of a softmax depends on nothing but lengths and columns.
            assert actual.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ALL)
def test_out(dtype, rng, name):
    x, ids = draw(rng, (300,), 20, (6,), dtype)
    f = function(name)
    expected = f(x, ids)
    room = np.full((*expected.shape, 2), 7, dtype)
    for out in (np.empty_like(expected), room[..., 0], np.empty_like(expected, order="F")):
        assert f(x, ids, out=out) is out
        assert np.array_equal(out, expected, equal_nan=True)
    assert (room[..., 1] == 7).all()
    for d in (f.vjp, f.jvp):
        vector = expected if d == f.vjp else x
        vector = np.nan_to_num(vector)
        result = d(x, ids, vector)
        out = np.empty_like(result)
        assert d(x, ids, vector, out=out) is out
        assert out.tobytes() == result.tobytes()


def test_nothing_is_written_around_the_data(isa, dtype, rng, guard):
    for columns in (1, 3, 7, 16, 17, 33):
        memory, room = guard(1 << 18), guard(1 << 18)
        x, ids = draw(rng, (200,), 20, (columns,), dtype)
        for at in ("end", "start"):
            a = memory.place(x, at)
            for name in ALL:
                for s in (ids, *map(fg.Segments.from_lengths, ([150, 0, 3, 47], [9, 11] * 10))):
                    expected = function(name)(x, s)
                    out = room.place(np.zeros_like(expected), at)
                    function(name)(a, s, out=out)
                    assert out.tobytes() == expected.tobytes()
                    room.check()


# ---- every segment function equals a loop over segments -----------------------------------------


@given(
    rows=st.integers(0, 60),
    items=st.none() | st.integers(0, 3),
    segments=st.integers(1, 9),
    trailing=st.lists(st.integers(0, 5), max_size=2),
    seed=st.integers(0, 2**32 - 1),
    name=st.sampled_from(ALL),
    kind=st.sampled_from([np.float32, np.float64]),
    which=st.sampled_from(_isa.available_names()),
)
@settings(deadline=None, max_examples=150)
def test_equals_a_loop_over_segments(rows, items, segments, trailing, seed, name, kind, which):
    rng = np.random.default_rng(seed)
    shape = (rows,) if items is None else (items, rows)
    x, ids = draw(rng, shape, segments, tuple(trailing), kind, ignored=True)
    before = _isa._use(which)
    try:
        actual = function(name)(x, ids, num_segments=segments, ignore_index=-1)
    finally:
        _isa._use(before)
    exact = twin(name)(x, ids, num_segments=segments, ignore_index=-1)
    # Rows add up to no more than 60 terms of size 12; 8 eps of that, or of the value itself.
    bar = 8 * np.finfo(kind).eps
    np.testing.assert_allclose(actual, exact.astype(float), rtol=bar, atol=bar * 60 * 12)


# ---- what a hostile reader found ----------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_out_must_not_overlap_the_ids(name):
    ids = np.arange(4000)
    with pytest.raises(ValueError, match="out must not overlap segments"):
        function(name)(np.ones(4000), ids, out=ids.view(np.float64))
    np.testing.assert_array_equal(ids, np.arange(4000))


@pytest.mark.parametrize(
    "made", [lambda: fg.Segments.from_ids([1, 0, 1]), lambda: fg.Segments.from_lengths([1, 2])]
)
@pytest.mark.parametrize("copied", [lambda s: pickle.loads(pickle.dumps(s)), copy.deepcopy])
def test_copies_of_a_plan_are_read_only_too(made, copied):
    plan = made()
    expected = plan.order, plan.offsets, plan.counts
    again = copied(plan)
    for a, b in zip(expected, (again.order, again.offsets, again.counts), strict=True):
        np.testing.assert_array_equal(a, b)
        assert not b.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            b.setflags(write=True)


def test_attributes_of_a_plan_never_change():
    plan = fg.Segments.from_ids([1, 0, 1])
    for name in ("num_segments", "shape", "order"):
        with pytest.raises(AttributeError, match="must not change"):
            setattr(plan, name, 5)


@pytest.mark.parametrize(
    ("data", "weight"),
    [(1e-200, 1e-200), (0.3, 1e-320), (1e10, 1e300), (3.0, 1e308), (1e-30, 2.0**-1074)],
)
def test_means_do_not_depend_on_the_size_of_weights(data, weight):
    x, w = np.array([data, data]), [weight, weight]
    np.testing.assert_allclose(fg.segment_mean(x, [0, 0], weights=w), [data], rtol=1e-15)
    pulled = fg.segment_mean.vjp(x, [0, 0], [1.0], weights=w)
    np.testing.assert_allclose(pulled, [0.5, 0.5], rtol=2e-16)  # g / total, then times w
    alone = fg.class_centroids(x[:, None], [0, 0], sample_weight=w, leave_one_out=True)
    np.testing.assert_allclose(alone.centroids, x[:, None], rtol=1e-15)


def test_an_empty_value_too_large_for_the_dtype_warns_of_nothing():
    best = fg.segment_max(np.ones(2, np.float32), [0, 2], empty_value=1e300)
    np.testing.assert_array_equal(best, np.float32([1, INF, 1]))


@pytest.mark.parametrize(
    "lengths",
    [[n] * 70 for n in (1, 2, 3, 4, 5, 7, 8, 63, 64, 103, 104, 128, 129, 256, 257)]
    + [[9] * n for n in (1, 4, 15, 17, 63, 256, 257, 300)]
    + [[*range(1, 51)] * 8, [6, 0, 2] * 90, [100] * 30 + [140] * 30, [*range(30, 300, 7)] * 2],
    ids=lambda lengths: f"{len(lengths)} of {min(lengths)}-{max(lengths)}",
)
def test_short_segments_where_they_lie_and_in_tiles(isa, dtype, rng, lengths):
    """Consecutive ones are read and written where they lie, others copied: the same bits."""
    ids = np.repeat(np.arange(len(lengths)), lengths)
    falling = fg.Segments.from_ids(len(lengths) - 1 - ids, len(lengths))
    x = rng.normal(0, 3, len(ids)).astype(dtype)
    x[rng.integers(0, len(x), 3)] = np.nan, np.inf, -np.inf
    g = rng.normal(size=len(lengths)).astype(dtype)
    v = rng.normal(size=2 * len(ids)).astype(dtype)[::2]
    results = []
    for plan, step in ((fg.Segments.from_lengths(lengths), 1), (falling, -1)):
        found = [f(x, plan) for f in (fg.segment_softmax, fg.segment_log_softmax)]
        found += [fg.segment_logsumexp(x, plan)[::step]]
        found += [fg.segment_logsumexp.vjp(x, plan, g[::step])]
        for w in (v, v.copy()):
            found += [fg.segment_softmax.vjp(x, plan, w), fg.segment_log_softmax.vjp(x, plan, w)]
            found += [fg.segment_log_softmax.jvp(x, plan, w)]
            found += [fg.segment_logsumexp.jvp(x, plan, w)[::step]]
        # A NaN has a sign, which means nothing.
        results.append([np.where(np.isnan(a), NAN, a).astype(dtype).tobytes() for a in found])
    assert results[0] == results[1]


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("kind", ["", "vjp", "jvp"])
def test_neighbours_change_no_bit(isa, dtype, rng, name, in_order, kind):
    """Short segments are sorted by length and put side by side; each alone gives the same."""
    lengths = rng.integers(0, 60, 3000)
    ids = np.repeat(np.arange(3000), lengths)
    f = getattr(function(name), kind) if kind else function(name)
    x = rng.normal(0, 3, len(ids)).astype(dtype)
    by_segment = name == "logsumexp" and kind == "vjp"
    v = rng.normal(size=3000 if by_segment else len(ids)).astype(dtype)
    plan = fg.Segments.from_lengths(lengths)
    step = 1
    if not in_order:
        plan = fg.Segments.from_ids(2999 - ids, 3000)
        step = -1
    found = f(x, plan, v[::step] if by_segment else v) if kind else f(x, plan)
    if len(found) == 3000:
        found = found[::step]
    for k in (0, 1, 17, 2047, 2048, 2999):
        own = ids == k
        given = [(v[k : k + 1] if by_segment else v[own])] if kind else []
        alone = f(x[own], fg.Segments.from_lengths([own.sum()]), *given)
        np.testing.assert_array_equal(found[k : k + 1] if len(found) == 3000 else found[own], alone)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint64"])
@pytest.mark.parametrize("n", [0, 1, 2, 100, 511, 512, 513, 1500])
def test_ids_that_ascend(dtype, n):
    ids = np.sort(np.arange(n) % 100).astype(dtype)
    offsets = np.zeros(102, np.int64)
    assert sort.ascends(ids[None], None, None)
    assert sort.ascends(ids[None], None, offsets)
    np.testing.assert_array_equal(offsets, np.searchsorted(ids, np.arange(102)))
    for i in np.flatnonzero(np.diff(ids)):
        fallen = ids.copy()
        fallen[[i, i + 1]] = ids[[i + 1, i]]
        assert not sort.ascends(fallen[None], None, None), i
        assert not sort.ascends(fallen[None], None, np.zeros(102, np.int64)), i
    if n > 2:
        assert not sort.ascends(ids[None], ids[0], None)  # ignored, but not at the end
        offsets[:] = 0
        assert sort.ascends(ids[None], ids[-1], offsets)
        kept = ids[ids != ids[-1]]
        np.testing.assert_array_equal(offsets, np.searchsorted(kept, np.arange(102)))


def test_nothing_ascends():
    nothing, offsets = np.zeros((1, 0), np.int64), np.zeros(1, np.int64)
    assert sort.ascends(nothing, None, offsets)
    assert offsets.tolist() == [0]
    offsets = np.zeros(4, np.int64)
    assert sort.ascends(np.full((1, 5), 9), 9, offsets)
    assert offsets.tolist() == [0] * 4


@pytest.mark.parametrize(
    "name", ["sum", "mean", "max", "min", "logsumexp", "softmax", "log_softmax"]
)
@pytest.mark.parametrize("columns", [1, 3, 20])
def test_sorted_ids_are_consecutive_segments(isa, dtype, rng, name, columns):
    """With and without rows that are ignored at the end: the bits of lengths."""
    lengths = rng.integers(0, 60, 50)
    lengths[[0, 7, 49]] = 0
    ids = np.repeat(np.arange(50), lengths)
    x = rng.normal(0, 3, (len(ids), columns)).astype(dtype)
    plan = fg.Segments.from_ids(ids, 50)
    assert plan._in_order
    np.testing.assert_array_equal(plan.order, np.arange(len(ids)))
    lying = function(name)(x, fg.Segments.from_lengths(lengths))
    assert function(name)(x, plan).tobytes() == lying.tobytes()
    for ignored, at in ((-1, len(ids)), (-1, 100), (99, len(ids))):
        some = np.insert(ids, at, [ignored] * 3)
        plan = fg.Segments.from_ids(some, 50, ignore_index=ignored)
        assert plan._in_order == (at == len(ids))
        np.testing.assert_array_equal(plan.order, np.flatnonzero(some != ignored))
        np.testing.assert_array_equal(plan.counts, lengths)
        found = function(name)(np.insert(x, [at] * 3, 1e9, axis=0), plan)
        if found.shape == (len(some), columns):
            gone = {"softmax": 0, "log_softmax": -np.inf}[name]
            assert (found[some == ignored] == gone).all()
            found = found[some != ignored]
        assert found.tobytes() == lying.tobytes(), at


def test_confident_neighbours_change_no_bit(isa, dtype, rng):
    """Where nearly all of a segment is one row, the last bit of a sum shows."""
    lengths = np.where(np.arange(1600) % 16 == 0, 2, 17)
    ids = np.repeat(np.arange(1600), lengths)
    x = rng.uniform(-78, -38, len(ids)).astype(dtype)
    x[np.cumsum(lengths) - 1] = rng.uniform(0, 3, 1600)
    found = fg.segment_softmax(x, fg.Segments.from_lengths(lengths))
    for k in range(0, 1600, 16):
        own = ids == k
        assert fg.segment_softmax(x[own], [0, 0]).tobytes() == found[own].tobytes(), k


@pytest.mark.parametrize("shares", [1.0, 1e-30])
def test_weights_too_small_for_float32_still_count(shares):
    """Only a weight that was given as 0 leaves its row out; a mean keeps the ratios."""
    x = np.float32([[1.0], [5.0], [NAN], [7.0]])
    weights = np.array([1e-60, 3e-60, 0.0, 2e-55]) * shares
    mean = fg.segment_mean(x, [0, 0, 0, 1], weights=weights)
    np.testing.assert_array_equal(mean, np.float32([[4.0], [7.0]]))
    np.testing.assert_array_equal(
        fg.class_centroids(x, [0, 0, 0, 1], sample_weight=weights).counts, [2, 1]
    )
    nan = fg.segment_sum(x, [0, 0, 1, 1], weights=np.array([1.0, 1.0, 1e-60, 1.0]))
    np.testing.assert_array_equal(nan, np.float32([[6.0], [NAN]]))


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
def test_numbers_of_segments_of_any_integer_dtype(dtype):
    ids = np.array([[0, 1, 0], [2, 1, 0]])
    each = np.array([2, 3], dtype)
    plan = fg.Segments.from_ids(ids, each)
    np.testing.assert_array_equal(plan.counts.reshape(2, 3), [[2, 1, 0], [1, 1, 1]])
    np.testing.assert_array_equal(
        fg.segment_sum(np.ones((2, 3)), ids, num_segments=each), [[2, 1, 0], [1, 1, 1]]
    )
    if dtype[0] == "i":
        for bad in (each.dtype.type(-1), -each):
            with pytest.raises(ValueError, match=r"num_segments must be >= 0 .*; got -"):
                fg.Segments.from_ids(ids, bad)


@pytest.mark.parametrize(
    ("ids", "weights", "g", "exact"),
    [
        ([0, 1], [1, 1e-9], [1, 1e30], [1, 1e30]),
        ([0, 0], [1e9, 1e9], [1e-36], [5e-37, 5e-37]),
        ([0, 0], [1e-30, 3e-30], [1e20], [0.25e20, 0.75e20]),
        ([0, 1], [1, 1e-39], [1, 1], [1, 1]),
    ],
)
def test_a_pulled_back_mean_is_multiplied_by_shares(ids, weights, g, exact):
    w, g = np.float32(weights), np.float32(g)
    share = np.float64(w) / np.bincount(ids, w)[ids]
    pulled = fg.segment_mean.vjp(np.ones(2, np.float32), ids, g, weights=w)
    np.testing.assert_allclose(pulled, share * np.float64(g)[ids], rtol=EPS32)
    np.testing.assert_allclose(pulled, exact, rtol=4 * EPS32)


def test_nothing_is_told_of_what_becomes_small():
    x, tiny = np.full(3, 1e-4, np.float16), np.float32([1e-7])
    with np.errstate(all="raise"):
        fg.segment_sum.vjp(x, [0, 0, 0], tiny)
        fg.segment_softmax(np.float16([0, -14]), [0, 0])
        fg.segment_mean(np.ones(2, np.float32), [0, 0], weights=[1, 1e-40])
        fg.segment_mean(np.ones(3), [0, 0, 1], weights=[1, 1e-320, 1e300])
        fg.prototype_logits(x[None], np.zeros((1, 3), np.float16))
        fg.streaming.CentroidState(1).update([[1e-200]], [0], sample_weight=[1e-200])
        fg.streaming.LossSum().update([1.5e308, 1.5e308, 1e-310])


@pytest.mark.parametrize("weights", [[1e10, -3.0], [1e-30, -5.0], [1e-30, NAN]])
def test_weights_are_named_as_they_were_given(weights):
    with pytest.raises(ValueError, match=rf"weights\[1\] is {weights[1]} "):
        fg.segment_mean([1.0, 2.0], [0, 0], weights=weights)


def test_attributes_of_a_plan_cannot_be_deleted():
    with pytest.raises(AttributeError, match="must not change"):
        del fg.Segments.from_ids([0, 1]).num_segments
