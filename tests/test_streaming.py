"""Streaming states: chunks and merges give what one array gives."""

from __future__ import annotations

import functools
import itertools
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastgrad as fg
from fastgrad import _reference as ref
from fastgrad.streaming import CentroidState, LogSumExpState, LossSum

LD = np.longdouble
EPS = np.finfo(float).eps


def cuts(n):
    """Where to cut n rows into chunks, empty ones too."""
    return st.lists(st.integers(0, n), max_size=6).map(lambda c: [0, *sorted(c), n])


def chunks(at):
    return [slice(a, b) for a, b in itertools.pairwise(at)]


def merged(states):
    """Pairs of neighbours, pairs of pairs and so on, as processes would."""
    while len(states) > 1:
        pairs = [states[i : i + 2] for i in range(0, len(states), 2)]
        states = [p[0].merge(p[1]) if len(p) == 2 else p[0] for p in pairs]
    return states[0]


N = 60
# Not the fixture, which hypothesis would not draw anew.
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])


# ---- centroids ---------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("offset", [0, 1000])
@given(at=cuts(N), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_centroids_of_chunks(dtype, assert_ulps, weighted, offset, at, seed):
    rng = np.random.default_rng(seed)
    X = (offset + rng.normal(size=(N, 3))).astype(dtype)
    y = rng.integers(0, 3, N)
    y[::7] = -1
    weight = rng.uniform(0, 2, N).astype(dtype) if weighted else None
    if weight is not None:
        weight[4] = 0
        X[4] = np.nan
    X[y == -1] = np.nan

    def state():
        return CentroidState(4, ignore_index=-1)

    def part(s):
        return {"sample_weight": None if weight is None else weight[s]}

    one = state().update(X, y, sample_weight=weight)
    chunked = functools.reduce(lambda t, s: t.update(X[s], y[s], **part(s)), chunks(at), state())
    together = merged([state().update(X[s], y[s], **part(s)) for s in chunks(at)])
    options = {"num_classes": 4, "ignore_index": -1, "sample_weight": weight}
    exact, counts = ref.class_centroids(X, y, **options)
    variance = ref.class_variances(X, y, **options)
    squares = np.nanmax(X.astype(LD) ** 2)
    for s in (one, chunked, together):
        np.testing.assert_array_equal(s.counts, counts)
        assert s.centroids.dtype == s.variance.dtype == dtype
        assert_ulps(s.centroids, exact, 1)
        assert_ulps(s.centroids, one.centroids, 1)
        # M2 to 1e-12 of the sum of squares; then it is rounded to the dtype.
        error = np.nanmax(np.abs(s.variance - variance))
        assert error <= 1e-12 * squares + np.finfo(dtype).eps * np.nanmax(variance)


def test_chunks_of_other_types_widen_the_result():
    s = CentroidState(1).update(np.ones((1, 2), np.float32), [0])
    assert s.centroids.dtype == np.float32
    s.update(np.ones((1, 2)), [0])
    assert s.centroids.dtype == np.float64


def test_a_state_of_nothing():
    s = CentroidState(2)
    np.testing.assert_array_equal(s.counts, [0, 0])
    assert s.centroids.shape == s.variance.shape == (2, 0)
    assert s.merge(CentroidState(2)).centroids.shape == (2, 0)
    s.merge(CentroidState(2).update([[1.0]], [1]))
    np.testing.assert_array_equal(s.centroids, [[np.nan], [1]])
    np.testing.assert_array_equal(s.merge(CentroidState(2)).centroids, [[np.nan], [1]])


def test_counts_are_a_copy():
    s = CentroidState(1).update([[1.0]], [0])
    s.counts[0] = 7
    assert s.counts[0] == 1


def test_a_state_takes_a_plan():
    s = CentroidState(3).update([[1.0], [2.0]], fg.Segments.from_ids([2, 2], 3))
    np.testing.assert_array_equal(s.centroids, [[np.nan], [np.nan], [1.5]])


def test_an_infinite_row_makes_its_column_infinite(isa, dtype):
    X = np.array([[np.inf, 1], [0, 2], [np.nan, 3]], dtype)
    s = CentroidState(2).update(X[:1], [0]).update(X[1:], [0, 1])
    np.testing.assert_array_equal(s.centroids, [[np.inf, 1.5], [np.nan, 3]])


# ---- logsumexp ---------------------------------------------------------------------------------


@each_dtype
@given(
    at=cuts(N),
    seed=st.integers(0, 2**32 - 1),
    offset=st.sampled_from([0.0, 1e4, -1e4]),
    spread=st.sampled_from([0.1, 3.0, 100.0]),
)
@settings(max_examples=60, deadline=None)
def test_logsumexp_of_chunks(dtype, at, seed, offset, spread):
    rng = np.random.default_rng(seed)
    x = (offset + spread * rng.normal(size=(N, 2))).astype(dtype)
    x[3, 1] = -np.inf
    exact = ref.logsumexp(x, 0)
    size = np.maximum(np.abs(exact), np.abs(x.max(axis=0)))
    for axis, a in ((0, x), (1, x.T), (-1, x.T)):
        state = LogSumExpState(axis)
        rows = [a[s] if axis == 0 else a[:, s] for s in chunks(at)]
        chunked = functools.reduce(lambda t, r: t.update(r), rows, LogSumExpState(axis))
        together = merged([LogSumExpState(axis).update(r) for r in rows])
        one = state.update(a).logsumexp
        for s in (chunked, together):
            result = s.logsumexp
            assert result.dtype == dtype
            # One ulp of the larger of result and maximum, which may be half a power of two below.
            assert (np.abs(result.astype(LD) - one) <= np.finfo(dtype).eps * size).all()
            # Against long double: the bar of logsumexp itself, 2.
            assert (np.abs(result - exact) <= 2 * np.finfo(dtype).eps * size).all()


def test_logsumexp_near_zero():
    state = LogSumExpState().update([0.0]).update([-40.0])
    assert abs(state.logsumexp - 4.248354255291589e-18) <= 4 * EPS * 4.25e-18
    state = LogSumExpState().update([-40.0]).update([0.0])
    assert abs(state.logsumexp - 4.248354255291589e-18) <= 4 * EPS * 4.25e-18


def test_ten_thousand_chunks_add_no_error():
    x = np.random.default_rng(0).normal(size=10_000)
    state = functools.reduce(lambda s, a: s.update(a), x, LogSumExpState())
    exact = ref.logsumexp(x)
    assert abs(state.logsumexp - exact) <= 2 * EPS * exact


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([], -np.inf),
        ([-np.inf, -np.inf], -np.inf),
        ([-np.inf, 1.0], 1.0),
        ([1.0, -np.inf], 1.0),
        ([np.inf, 1.0, np.inf], np.inf),
        ([-np.inf, np.inf], np.inf),
        ([np.nan, 1.0], np.nan),
        ([1.0, np.nan], np.nan),
        ([np.inf, np.nan], np.nan),
        ([np.nan, np.inf], np.nan),
    ],
    ids=str,
)
def test_logsumexp_of_what_is_not_finite(numbers, expected):
    with np.errstate(all="raise"):
        state = functools.reduce(lambda s, a: s.update(a), numbers, LogSumExpState())
        np.testing.assert_array_equal(state.logsumexp, expected)
        np.testing.assert_array_equal(LogSumExpState().update(numbers).logsumexp, expected)


def test_an_empty_chunk_adds_nothing():
    state = LogSumExpState(0).update(np.empty((0, 2))).update(np.zeros((1, 2)))
    np.testing.assert_array_equal(state.logsumexp, [0, 0])


# ---- losses ------------------------------------------------------------------------------------


@each_dtype
@given(at=cuts(N), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_losses_of_chunks(dtype, at, seed):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(N, 4)).astype(dtype)
    y = rng.integers(0, 4, N)
    y[::5] = -100
    weight = rng.uniform(0, 2, N)
    each = fg.cross_entropy(z, y, reduction="none")
    kept = (y != -100).astype(float)
    one = LossSum().update(each, kept)
    rows, sums = LossSum(), LossSum()
    for s in chunks(at):
        rows.update(each[s], kept[s])
        sums.update(fg.cross_entropy(z[s], y[s], reduction="sum"), weight=kept[s].sum())
    together = merged([LossSum().update(each[s], kept[s]) for s in chunks(at)])
    exact = each.astype(LD).sum()
    for state in (one, rows, together):
        assert state.weight == kept.sum()
        assert abs(state.sum - exact) <= EPS * exact  # one ulp
        assert abs(state.mean - exact / LD(kept.sum())) <= 1.5 * EPS * state.mean  # and a quotient
    # What the losses of rows were rounded to.
    assert abs(sums.mean - fg.cross_entropy(z, y)) <= 4 * EPS * sums.mean
    weighed = LossSum().update(each, weight)
    assert abs(weighed.weight - weight.astype(LD).sum()) <= EPS * weight.sum()


def test_a_million_losses_and_one_large_one():
    total = LossSum().update([1e20])
    for _ in range(10):
        total.update(np.full(100_000, 1e-3))
    total.update([-1e20])
    # The second word keeps 53 bits more: 1e20 * 2**-106 is far below.
    assert abs(total.sum - 1e6 * LD(1e-3)) <= 1e-9
    assert total.weight == 1_000_002


def test_the_mean_of_no_losses():
    assert np.isnan(LossSum().mean)
    assert LossSum().sum == LossSum().weight == 0


def test_losses_that_are_not_finite():
    assert LossSum().update([1.0, np.inf]).update([1.0]).sum == np.inf
    assert np.isnan(LossSum().update([np.inf]).update([-np.inf]).sum)
    assert np.isnan(LossSum().update([np.nan]).update([1.0]).sum)


# ---- all states --------------------------------------------------------------------------------

STATES = [
    (CentroidState(2).update([[1.0, 2.0], [4.0, 0.0]], [1, 1]), lambda s: s.centroids),
    (CentroidState(2), lambda s: s.counts),
    (LogSumExpState(0).update([[1.0, 2.0], [4.0, 0.0]]), lambda s: s.logsumexp),
    (LogSumExpState(), lambda s: s.logsumexp),
    (LossSum().update([1.0, 2.0]), lambda s: s.mean),
]


@pytest.mark.parametrize(("state", "result"), STATES, ids=lambda s: type(s).__name__)
def test_states_pickle(state, result):
    again = pickle.loads(pickle.dumps(state))
    np.testing.assert_array_equal(result(again), result(state))
    assert repr(again) == repr(state)


def test_merging_leaves_the_other_alone():
    for make in (
        lambda: CentroidState(1).update([[1.0]], [0]),
        lambda: LogSumExpState().update([1.0]),
        lambda: LossSum().update([1.0]),
    ):
        one, other, empty = make(), make(), type(make())(*([1] if "Cent" in repr(make()) else []))
        before = pickle.dumps(other)
        one.merge(other)
        empty.merge(other).merge(one)
        assert pickle.dumps(other) == before


MEMMAP = """
import resource, sys
import numpy as np
import fastgrad as fg
rows = 2_000_000
X = np.memmap(sys.argv[1], np.float32, "r", shape=(rows, 64))  # 512 MB
fg.set_num_threads(1)
used = int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (used + (64 << 20),) * 2)  # of its own, beside the file
state, log = fg.streaming.CentroidState(3), fg.streaming.LogSumExpState(0)
y = np.zeros(20_000, np.int8)
for i in range(0, rows, len(y)):
    state = state.update(X[i : i + len(y)], y + i // len(y) % 2)
    log = log.update(X[i : i + len(y), :2])
try:
    np.array(X)
except MemoryError:
    print(state.counts.tolist(), state.centroids[0, 0], float(log.logsumexp[0]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit and the status file are Linux's")
def test_a_file_larger_than_memory(tmp_path):
    file = tmp_path / "rows"
    with file.open("wb") as f:
        f.truncate(2_000_000 * 64 * 4)  # sparse: no disk, all zeros
    done = subprocess.run(
        [sys.executable, "-c", MEMMAP, str(file)], capture_output=True, text=True, check=False
    )
    log = float(np.float32(np.log(2_000_000)))
    assert done.stdout.split() == f"[1000000, 1000000, 0] 0.0 {log}".split(), done.stderr


def test_centroids_near_the_largest_number():
    state = fg.streaming.CentroidState(1).update([[1e302], [1e302]], [0, 0])
    np.testing.assert_array_equal(state.centroids, [[1e302]])


@pytest.mark.parametrize("weight", [1e-170, 1.0, 1e200])
def test_the_variance_does_not_depend_on_the_size_of_weights(weight):
    state = fg.streaming.CentroidState(1)
    for x in (0.0, 2.0):
        state.update([[x]], [0], sample_weight=[weight])
    np.testing.assert_allclose(state.variance, [[1.0]], rtol=1e-15)


def test_the_two_halves_together_give_float32():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    half, other = np.ones((2, 1), np.float16), np.full((2, 1), 3, ml_dtypes.bfloat16)
    state = fg.streaming.CentroidState(1).update(half, [0, 0]).update(other, [0, 0])
    np.testing.assert_array_equal(state.centroids, np.float32([[2.0]]))
    assert state.centroids.dtype == np.float32
    numbers = fg.streaming.LogSumExpState().update(half).update(other)
    both = np.concatenate([half.astype(np.float32), other.astype(np.float32)])
    expected = fg.logsumexp(both, axis=(0, 1))
    assert numbers.logsumexp == pytest.approx(float(expected), rel=2e-7)


def test_states_of_different_axes_are_not_merged():
    other = fg.streaming.LogSumExpState(axis=1).update(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="same axis; got None here and 1 there"):
        fg.streaming.LogSumExpState().merge(other)


# ---- the ends of the range ----------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_sums_of_rows_that_leave_the_range(chunk):
    X = np.array([[1.5e308, 1.0], [1.7e308, 3.0], [1.6e308, 2.0]])
    parts = [X[i : i + chunk] for i in range(0, 3, chunk)]
    state = functools.reduce(lambda s, x: s.update(x, [0] * len(x)), parts, CentroidState(2))
    merged_state = merged([CentroidState(2).update(x, [0] * len(x)) for x in parts])
    for s in (state, merged_state):
        np.testing.assert_array_equal(s.centroids[0], [1.6e308, 2.0])
        np.testing.assert_allclose(s.variance[0, 1], 2 / 3, rtol=1e-15)
    state.update([[-1.6e308, 2.0]], [1])
    np.testing.assert_array_equal(state.centroids[1], [-1.6e308, 2.0])


@pytest.mark.parametrize("weight", [5e-324, 1e-310, 1e-300, 1.0, 1e300, 1e308])
@pytest.mark.parametrize("size", [1e-100, 1.0, 1e100])
@pytest.mark.parametrize("together", [False, True])
def test_results_do_not_depend_on_the_size_of_weights(weight, size, together):
    state = CentroidState(2)
    if together:
        state.update([[size], [3 * size]], [0, 0], sample_weight=[weight, weight])
    else:
        for x in (size, 3 * size):
            state.update([[x]], [0], sample_weight=[weight])
    np.testing.assert_allclose(state.centroids[0], 2 * size, rtol=1e-15)
    np.testing.assert_allclose(state.variance[0], size**2, rtol=1e-15)
    state.update([[7.0]], [1])  # of another size of weights, in another class
    np.testing.assert_allclose(state.centroids[:, 0], [2 * size, 7], rtol=1e-15)
    np.testing.assert_array_equal(state.counts, [2, 1])


def test_a_row_of_much_less_weight_hardly_counts():
    state = CentroidState(1).update([[1.0]], [0], sample_weight=[1e-300])
    state.update([[3.0]], [0], sample_weight=[1e300])
    np.testing.assert_array_equal(state.centroids, [[3.0]])
    np.testing.assert_array_equal(state.counts, [2])


def test_losses_whose_sum_leaves_the_range():
    total = LossSum().update([1.5e308, 1.5e308])
    assert (total.sum, total.mean, total.weight) == (np.inf, 1.5e308, 2)
    other = LossSum().update([1.5e308]).update([1.5e308])
    assert other.mean == 1.5e308
    assert other.update([-1.5e308]).update([-1.5e308]).update([3.0]).sum == 3.0
    assert other.mean == 3.0 / 5
    assert total.merge(LossSum().update([-1.5e308, -1.5e308])).sum == 0.0
    weighed = LossSum().update([1.0, 3.0], [1.5e308, 1.5e308])
    assert (weighed.sum, weighed.weight) == (4.0, np.inf)
    assert weighed.mean == pytest.approx(2 / 1.5e308, rel=1e-12)
    assert LossSum().update([5e-324] * 3, [5e-324] * 3).mean == 1.0


def test_ascending_numbers_cost_logsumexp_no_digits():
    """Every new maximum scales all before it."""
    x = np.arange(2000) * 1e-3 - 1
    exact = ref.logsumexp(x)
    for a in (x, x[::-1]):
        state = functools.reduce(lambda s, v: s.update([v]), a, LogSumExpState())
        assert abs(state.logsumexp - exact) <= 2 * EPS * exact


def test_a_chunk_far_below_the_maximum_keeps_its_digits():
    state = LogSumExpState().update([0.0]).update([-30.0, -30.3])
    exact = float(np.log1p(np.exp(LD(-30)) + np.exp(LD(-30.3))))
    assert abs(state.logsumexp - exact) <= 2 * EPS * exact
    columns = LogSumExpState(1).update(np.zeros((2, 1))).update([[-30.0, -30.3]] * 2)
    np.testing.assert_array_equal(columns.logsumexp, state.logsumexp)


def test_a_plan_has_its_own_ignored_ids():
    state = CentroidState(2, ignore_index=0)
    with pytest.raises(ValueError, match="ignore_index must be left out beside a Segments"):
        state.update([[1.0], [2.0]], fg.Segments.from_ids([0, 1], num_segments=2))
    assert state.counts.sum() == 0


def test_a_number_without_dimensions():
    assert LogSumExpState(0).update(1.5).logsumexp == 1.5
    assert LogSumExpState().update(1.5).update(1.5).logsumexp == pytest.approx(1.5 + np.log(2))


def test_a_class_near_the_end_of_the_range_costs_the_others_nothing():
    X = np.array([[1.7e308], [1.7e308], [1e-305], [1e-305]])
    state = CentroidState(2).update(X, [0, 0, 1, 1])
    np.testing.assert_array_equal(state.centroids, [[1.7e308], [1e-305]])
