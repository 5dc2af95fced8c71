"""profile_loss: parts, references, accuracy, traffic, memory, statistics, reports.  No timing."""

from __future__ import annotations

import gc
import math
import re
import tracemalloc
import weakref

import numpy as np
import pytest

import fastgrad as fg
from fastgrad._profile import measure, result
from fastgrad._profile.idioms import IDIOMS

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 7))
Y = RNG.permutation(np.arange(40) % 7)
S = RNG.normal(size=40)
W = RNG.normal(size=(7, 7))

CALLS = {
    "softmax": ((X,), {}),
    "log_softmax": ((X, 0), {}),
    "logsumexp": ((X,), {"axis": -1}),
    "sigmoid": ((X,), {}),
    "log_sigmoid": ((X,), {}),
    "cross_entropy": ((X, Y), {}),
    "binary_cross_entropy": ((S, S > 0.3), {}),
    "linear_cross_entropy": ((X, W, Y), {"bias": W[0].copy()}),
    "hinge": ((S, S > 0.3), {"margin": 0.5}),
    "multiclass_hinge": ((X, Y), {"variant": "crammer_singer"}),
    "centroid_hinge": ((X, Y), {}),
    "segment_sum": ((X, Y), {}),
    "segment_mean": ((X, Y), {}),
    "segment_max": ((X, Y), {}),
    "segment_min": ((X, fg.Segments.from_ids(Y)), {}),
    "segment_softmax": ((X, fg.Segments.from_ids(Y)), {}),
    "class_centroids": ((X, Y), {}),
    "prototype_logits": ((X, W), {}),
}


@pytest.fixture(autouse=True)
def short_samples(monkeypatch):
    """These tests look at no time, so it may be a rough one."""
    monkeypatch.setattr(measure, "SAMPLE", 2e-4)


def quick(f, *args, **options):
    options = {"seconds": 0.01, "rounds": 6, "memory": False, **options}
    return fg.profile_loss(f, *args, **options)


# ---- parts, references, accuracy ----------------------------------------------------------------


def test_every_idiom_is_of_a_built_in():
    assert set(CALLS) == set(IDIOMS)


@pytest.mark.parametrize("name", IDIOMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_built_ins_agree_with_their_idiom_and_their_exact_twin(name, dtype):
    args, kwargs = CALLS[name]
    args = tuple(a.astype(dtype) if getattr(a, "dtype", None) == np.float64 else a for a in args)
    kwargs = {k: v.astype(dtype) if isinstance(v, np.ndarray) else v for k, v in kwargs.items()}
    p = quick(getattr(fg, name), *args, kwargs=kwargs)
    assert p.reference == "NumPy", p.warnings
    assert "forward" in p.speedup
    for what, s in p.speedup.items():
        assert s.agrees, (what, s.difference)
    assert set(p.accuracy) == set(p.parts), p.checked
    # 5.5 ulp: one row of a BLAS product of 7 terms; all others keep to 2.5.
    assert max(p.accuracy.values()) <= 6


def test_parts_of_losses_maps_derivatives_and_functions():
    assert list(quick(fg.cross_entropy, X, Y).parts) == ["forward", "gradient", "both", "hvp"]
    assert list(quick(fg.softmax, X).parts) == ["forward", "vjp", "jvp"]
    assert list(quick(fg.segment_max, X, Y).parts) == ["forward", "vjp", "jvp"]
    p = quick(fg.cross_entropy.value_and_grad, X, Y, kwargs={"out": np.empty_like(X)})
    assert (p.name, list(p.parts)) == ("cross_entropy.value_and_grad", ["both"])
    assert (p.reference, list(p.accuracy)) == ("NumPy", ["both"])
    p = quick(fg.softmax.vjp, X, X)
    assert (list(p.parts), list(p.accuracy)) == (["vjp"], ["vjp"])
    assert list(quick(lambda x: x.sum(), X).parts) == ["forward"]
    assert list(quick(lambda x: (x.sum(), x), X).parts) == ["both"]
    assert list(quick(np.sum, X, grad=np.ones_like).parts) == ["forward", "gradient"]
    mine = fg.Loss(value=np.sum, grad=np.ones_like, name="mine")
    assert list(quick(mine, X).parts) == ["forward", "gradient", "both"]
    assert list(quick(fg.cross_entropy, X, Y, what=["both", "forward"]).parts) == [
        "forward",
        "both",
    ]


def test_arrays_in_a_list_are_inputs():
    p = quick(lambda ps, x: ps[0].sum(), [W, W[0]], X)
    shapes = {name: shape for name, shape, _ in p.inputs}
    assert shapes == {"ps[0]": (7, 7), "ps[1]": (7,), "x": (40, 7)}


def test_keywords_that_have_a_place_stay_in_front_of_the_vector():
    p = quick(fg.cross_entropy, X, kwargs={"target": Y})
    assert "hvp" in p.parts
    assert p.accuracy["hvp"] < 4


def test_with_options_is_compared_with_the_same_options():
    p = quick(fg.hinge.with_options(margin=0.2), S, S > 0)
    assert p.name == "hinge(margin=0.2)"
    assert p.speedup["both"].agrees
    assert p.accuracy["both"] < 4
    p = quick(fg.cross_entropy.with_options(label_smoothing=0.1), X, Y)
    assert p.reference is None
    assert any("no NumPy reference" in w for w in p.warnings)
    assert p.accuracy["gradient"] < 4


def test_a_wrong_result_gets_no_speed_up():
    def wrong(z, y):
        return 1.001 * fg.cross_entropy(z, y)

    p = quick(wrong, X, Y, reference=fg.cross_entropy)
    assert p.reference == "cross_entropy"
    assert not p.speedup["forward"].agrees
    assert p.speedup["forward"].difference == pytest.approx(1e-3)
    assert "DISAGREES (0.001)" in p.report()
    assert "×" not in repr(p)


def test_results_in_one_buffer_are_told_apart():
    p = quick(fg.softmax, X, kwargs={"out": np.empty_like(X)})
    assert list(p.speedup) == ["forward", "vjp", "jvp"]
    assert all(s.agrees for s in p.speedup.values())
    assert max(p.accuracy.values()) < 6
    buffer = np.empty_like(X)

    def times(factor):
        return lambda x: np.multiply(x, factor, out=buffer)

    twin = fg.Loss(times(2), grad=times(3))
    p = quick(times(2), X, grad=times(3), reference=twin)
    assert {what: s.difference for what, s in p.speedup.items()} == {"forward": 0, "gradient": 0}
    p = quick(times(2), X, reference=times(3))
    assert p.speedup["forward"].difference == pytest.approx(1 / 3)


@pytest.mark.parametrize("absent", [3, 7])
@pytest.mark.parametrize("name", ["segment_sum", "segment_mean", "class_centroids"])
def test_segments_without_rows_have_no_idiom(name, absent):
    plan = fg.Segments.from_ids(np.delete(np.arange(8), absent)[Y], 8)
    p = quick(getattr(fg, name), X, plan, what="forward")
    assert p.speedup == {}
    assert any("np.add.reduceat has no empty segments" in w for w in p.warnings)
    assert p.accuracy["forward"] < 4


def test_a_wrong_built_in_would_show_in_the_accuracy(monkeypatch):
    exact = measure._reference.softmax
    monkeypatch.setattr(measure._reference, "softmax", lambda x: exact(x) * (1 + 2**-40))
    assert quick(fg.softmax, X, what="forward").accuracy["forward"] > 1000


@pytest.mark.parametrize("other", [np.nan, np.inf])
def test_results_that_are_not_finite_agree_only_with_the_same(other):
    p = quick(lambda x: x * other, X, reference=lambda x: x * other)
    assert p.speedup["forward"].agrees
    p = quick(lambda x: x * other, X, reference=lambda x: x)
    assert not p.speedup["forward"].agrees
    p = quick(lambda x: x, X, reference=lambda x: x[:3])
    assert p.speedup["forward"].difference == math.inf


def test_complex_results_are_compared_as_such():
    p = quick(lambda x: x + 1j, X, reference=lambda x: x - 5j)
    expected = 6 / math.sqrt(np.mean(X**2) + 25)
    assert p.speedup["forward"].difference == pytest.approx(expected)
    p = quick(lambda x: x + 0j, X, reference=lambda x: x)
    assert p.speedup["forward"].difference == 0
    z = X.astype(np.complex64)
    p = quick(np.exp, z, reference=lambda z: np.exp(z.astype(complex)))
    assert 0 < p.speedup["forward"].difference < 1e-6
    assert p.speedup["forward"].agrees


def test_results_of_other_shapes_disagree():
    for other in (lambda x: x.reshape(7, 40), lambda x: x[:, None], lambda x: x[:3]):
        assert quick(lambda x: x, X, reference=other).speedup["forward"].difference == math.inf


def test_dicts_of_gradients_are_compared_by_key():
    def gradients(x):
        return {"W": x, "b": x[0]}

    p = quick(gradients, X, reference=lambda x: {"b": x[0], "W": x})
    assert p.speedup["forward"].difference == 0
    assert p.parts["forward"].written == X.nbytes + X[0].nbytes
    p = quick(gradients, X, reference=lambda x: {"b": x[0], "W": 1.5 * x})
    assert not p.speedup["forward"].agrees


def test_only_some_rows_of_large_arrays_are_compared_exactly():
    p = quick(fg.softmax, RNG.normal(size=(5000, 100)), what="forward")
    assert p.checked == "the exact twin on 256 of 5,000 rows"
    assert p.accuracy["forward"] < 2.5


SQUARE = RNG.normal(size=(40, 40))
CLASSES = RNG.permutation(40)


@pytest.mark.parametrize(
    ("f", "args", "kwargs", "rows"),
    [
        (fg.cross_entropy, (SQUARE, CLASSES), {"weight": np.ones(40)}, 40),
        (fg.cross_entropy, (SQUARE, CLASSES), {"axis": 0, "sample_weight": np.ones(40)}, 40),
        (fg.cross_entropy, (X.T, Y), {"axis": 0}, 40),
        pytest.param(
            fg.cross_entropy.with_options(sample_weight=np.ones(40)), (X, Y), {}, 40, id="options"
        ),
        (fg.linear_cross_entropy, (X, X[::-1], CLASSES), {"bias": S}, 40),
        (fg.binary_cross_entropy, (SQUARE, SQUARE > 0), {"pos_weight": np.full(40, 2.0)}, 40),
        (fg.prototype_logits, (X, X[::-1]), {}, 40),
        (fg.softmax, (X, 0), {}, 7),
        (fg.softmax, (X.reshape(20, 2, 7),), {"axis": (0, -1)}, None),
        (fg.softmax.vjp, (X, X), {}, 40),
        (fg.segment_max, (X, fg.Segments.from_ids(Y)), {}, 40),
        (fg.sigmoid, (np.tile(S, 5),), {}, 200),
        (fg.softmax, (np.tile(S, 5),), {}, None),
    ],
)
def test_samples_for_the_exact_twin_are_whole_rows(f, args, kwargs, rows, monkeypatch):
    monkeypatch.setattr(measure, "CHECKED", 120)
    p = quick(f, *args, kwargs=kwargs, reference=None)
    if rows is None:
        each = args[0].size // (2 if args[0].ndim == 3 else 1)
        why = f"a row of {each} elements (120 at most)"
        assert p.checked == f"the exact twin does not take this: {why}"
        return
    assert re.fullmatch(rf"the exact twin on \d+ of {rows} rows", p.checked)
    assert set(p.accuracy) == set(p.parts)
    assert max(p.accuracy.values()) < 6


def test_accuracy_is_in_ulps_of_the_type_that_is_computed():
    for x in (3.0, np.float64(3.0), np.arange(12).reshape(3, 4)):
        assert "worst error in ulp of float64: forward 0." in quick(fg.sigmoid, x).report()
    x = np.float32(3.0)
    assert "worst error in ulp of float32: forward 0." in quick(fg.sigmoid, x).report()
    pandas = pytest.importorskip("pandas")
    assert "in ulp of float64" in quick(fg.sigmoid, pandas.Series([1.0, 2.0])).report()


def test_the_idiom_may_warn():
    p = quick(fg.cross_entropy, X[:0], Y[:0], what="both")
    assert p.speedup["both"].agrees


def test_half_precision():
    p = quick(fg.softmax, X.astype(np.float16), what="forward")
    assert p.accuracy["forward"] <= 0.51
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    assert quick(fg.softmax, X.astype(bfloat16), what="forward").accuracy["forward"] <= 0.51


# ---- traffic, ceiling, memory -------------------------------------------------------------------


def test_traffic_is_every_argument_read_and_every_result_written():
    p = quick(fg.cross_entropy, X, Y)
    assert (p.parts["forward"].read, p.parts["forward"].written) == (X.nbytes + Y.nbytes, 8)
    assert p.parts["gradient"].written == X.nbytes
    assert p.parts["hvp"].read == 2 * X.nbytes + Y.nbytes
    out = np.empty_like(X)
    p = quick(fg.softmax, X, kwargs={"out": out}, what="forward")
    assert (p.parts["forward"].read, p.parts["forward"].written) == (X.nbytes, X.nbytes)
    p = quick(fg.softmax, X, traffic={"forward": 10 * X.nbytes}, what="forward")
    assert p.parts["forward"].read == 9 * X.nbytes
    assert p.traffic == "as given"


def test_what_is_given_for_some_parts_leaves_the_others():
    p = quick(fg.cross_entropy, X, Y, traffic={"forward": 1e4, "vjp": 1}, flops={"both": 50})
    assert p.parts["forward"].read + p.parts["forward"].written == 10_000
    assert p.parts["gradient"].read == X.nbytes + Y.nbytes
    assert p.traffic.startswith("forward as given; else every argument is read once")
    assert [p.parts[what].flops for what in ("forward", "both")] == [None, 50]


def test_the_floor_is_a_copy_and_a_read():
    p = quick(fg.softmax, X, what="forward", ceiling=1e9)
    part = p.parts["forward"]
    assert part.floor == pytest.approx(2 * X.nbytes / 1e9)
    assert part.fraction == pytest.approx(part.floor / part.median)
    assert p.ceiling.given
    p = quick(fg.softmax, X, what="forward")
    floor = 2 * X.nbytes / p.ceiling.copy
    assert p.parts["forward"].floor == pytest.approx(floor)
    p = quick(fg.cross_entropy, X, Y, what="forward")
    assert p.parts["forward"].floor == pytest.approx((X.nbytes + Y.nbytes) / p.ceiling.read)


def test_memory_counts_results_temporaries_and_the_scratch_of_kernels():
    x = np.ones((100, 1000))

    def f(a):
        temporary = a * 2
        return temporary + 1

    m = fg.profile_loss(f, x, seconds=0.01).memory["forward"]
    # A few objects of Python beside the arrays.
    assert x.nbytes <= m.result < x.nbytes + 2000
    assert x.nbytes <= m.extra < x.nbytes + 2000
    m = fg.profile_loss(fg.softmax, x, what="forward", seconds=0.01).memory["forward"]
    assert 1000 <= m.extra < 0.2 * x.nbytes  # of C alone: the result is the only array
    assert m.reference >= x.nbytes
    assert quick(fg.softmax, x).memory == {}
    assert not tracemalloc.is_tracing()


def test_memory_is_that_of_one_part():
    x = np.ones((100, 1000))
    p = fg.profile_loss(
        lambda a: float(np.concatenate([a, a, a]).sum()), x, grad=np.copy, seconds=0.01
    )
    assert p.memory["forward"].extra >= 3 * x.nbytes
    assert p.memory["gradient"].extra < 2000


def test_tracing_that_was_on_stays_on():
    tracemalloc.start()
    try:
        fg.profile_loss(fg.softmax, X, seconds=0.01)
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()


def test_nothing_is_kept_when_a_profile_is_done():
    x = X.copy()
    alive = weakref.ref(x)
    quick(fg.softmax, x)
    del x
    gc.collect()
    assert alive() is None


# ---- rounds and statistics ----------------------------------------------------------------------


def test_settings_are_restored():
    before = fg.get_num_threads(), gc.isenabled(), np.geterr()
    p = quick(fg.softmax, X, threads=1)
    assert p.threads == 1
    assert (fg.get_num_threads(), gc.isenabled(), np.geterr()) == before


def test_every_round_times_everybody():
    p = quick(fg.cross_entropy, X, Y, seconds=0.2, rounds=9)
    assert p.rounds >= 6
    assert all(len(part.times) == p.rounds for part in p.parts.values())
    assert all(6 <= len(s.reference) <= p.rounds for s in p.speedup.values())
    for part in p.parts.values():
        low, high = part.ci
        assert low <= part.median <= high
        assert low in part.times
    for s in p.speedup.values():
        assert s.ci[0] <= s.ratio <= s.ci[1]


def test_cold_calls_are_single(monkeypatch):
    monkeypatch.setattr(measure, "_caches", lambda: {"L1": 100_000})
    p = quick(fg.softmax, X, what="forward", cold=True, rounds=1)
    assert p.cold
    assert p.parts["forward"].loops == 1
    assert " · cold · " in p.report()


@pytest.mark.parametrize(
    ("n", "below"), [(1, 0), (5, 0), (6, 0), (9, 1), (15, 3), (20, 5), (100, 39)]
)
def test_intervals_are_those_of_the_binomial_distribution(n, below):
    # Tables of order statistics for the median at 95 %, e.g. Conover, Practical Nonparametric
    # Statistics, A3; n = 100 gives the 40th and the 61st.
    assert result.interval(list(range(n))) == (below, n - 1 - below)


def test_intervals_hold_the_median_as_often_as_they_say():
    rng = np.random.default_rng(1)
    hits = 0
    for sample in rng.exponential(size=(4000, 15)):
        low, high = result.interval(sample)
        hits += low <= math.log(2) <= high
    # Exactly 96.5 % for 15; four standard deviations of 4000 trials are 1.2 %.
    assert abs(hits / 4000 - 0.965) < 0.012


def test_a_slow_reference_rests_after_six_rounds():
    import time

    def slow(x):
        time.sleep(0.004)
        return x.sum()

    p = fg.profile_loss(np.sum, X, reference=slow, seconds=0.2, rounds=20, memory=False)
    assert 6 <= len(p.speedup["forward"].reference) < p.rounds


def test_progress_is_told_in_order():
    told = []
    fg.profile_loss(fg.softmax, X, seconds=0.9, callback=told.append)
    assert told
    assert [t.seconds for t in told] == sorted(t.seconds for t in told)
    assert (
        {"calling"}
        <= {t.phase for t in told}
        <= {
            "calling",
            "comparing",
            "warming up",
            "measuring",
            "weighing",
        }
    )
    gaps = np.diff([t.seconds for t in told])
    assert gaps.min(initial=1) >= 0.2


@pytest.mark.parametrize("phase", ["calling", "warming up", "measuring", "weighing"])
def test_ctrl_c_gives_what_was_measured(phase, monkeypatch):
    monkeypatch.setattr(measure, "PAUSE", 0)

    told = []

    def interrupt(progress):
        told.append(progress)
        # In the middle of the fifth round, when one contestant has had its turn.
        in_the_middle = progress.done == 4 and told[-2].done == 4
        if progress.phase == phase and (in_the_middle or phase != "measuring"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        fg.profile_loss(fg.softmax, X, seconds=0.05, callback=interrupt)
    p = caught.value.result
    if phase in ("calling", "warming up"):
        assert p is None
        return
    assert p.interrupted
    assert "interrupted" in p.report()
    assert all(p.rounds == len(part.times) for part in p.parts.values())
    assert p.rounds == 4 or phase == "weighing"
    assert gc.isenabled()
    assert not tracemalloc.is_tracing()


# ---- sweeps, reports, exporters -----------------------------------------------------------------


def test_a_sweep_profiles_every_size():
    sizes = []

    def make(n):
        sizes.append(n)
        return X[:n], Y[:n]

    p = quick(fg.cross_entropy, make, sweep=[20, 10], what="forward")
    assert sizes == [10, 20]
    assert list(p.sweep) == [10, 20]
    assert p.inputs == p.sweep[20].inputs
    assert p.parts == p.sweep[20].parts
    assert [line.split()[0] for line in p.report().splitlines()[-3:-1]] == ["10", "20"]


@pytest.mark.parametrize(("phase", "sizes"), [("calling", [10, 20]), ("weighing", [10, 20, 30])])
def test_ctrl_c_in_a_sweep_gives_the_sizes_done(phase, sizes, monkeypatch):
    monkeypatch.setattr(measure, "PAUSE", 0)

    def make(n):
        made.append(n)
        return X[:n]

    def interrupt(progress):
        if made[-1] == 30 and progress.phase == phase:
            raise KeyboardInterrupt

    made = []
    with pytest.raises(KeyboardInterrupt) as caught:
        quick(fg.softmax, make, sweep=[10, 20, 30], memory=True, callback=interrupt)
    p = caught.value.result
    assert list(p.sweep) == sizes
    assert p.interrupted
    assert p.parts == p.sweep[sizes[-1]].parts
    assert [size.interrupted for size in p.sweep.values()] == [False, False, True][: len(sizes)]
    assert " · interrupted" in p.report()


def test_ctrl_c_between_two_sizes_gives_those_done():
    def make(n):
        if n == 20:
            raise KeyboardInterrupt
        return X[:n]

    for sizes, done in (([10, 20], [10]), ([20], None)):
        with pytest.raises(KeyboardInterrupt) as caught:
            quick(fg.softmax, make, sweep=sizes)
        p = caught.value.result
        assert (p and list(p.sweep)) == done


@pytest.mark.parametrize("width", [60, 80, 120])
def test_reports_keep_their_width(width):
    p = fg.profile_loss(fg.cross_entropy, X, Y, seconds=0.02, names=["scores", "classes"])
    lines = p.report(width).splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("cross_entropy   scores (40, 7) float64, classes (40,)")
    (head,) = (line for line in lines if "median" in line)
    rows = [line for line in lines if line.startswith(("forward", "gradient", "both", "hvp"))]
    assert len(rows) == 4
    assert {len(r) for r in rows} == {len(head)}
    assert head.endswith("of peak")
    assert ("IQR" in head) == (width == 120)


def part(times, **kwargs):
    return result.Part(tuple(times), 1, 10**6, 10**6, floor=1e-3, **kwargs)


def profile(**changes):
    times = [2e-3 * (1 + 1e-3 * i) for i in range(-7, 8)]
    values = {
        "name": "f",
        "inputs": (("x", (125_000,), "float64"),),
        "threads": 1,
        "cold": False,
        "rounds": 15,
        "seconds": 2.0,
        "parts": {"forward": part(times)},
        "reference": "NumPy",
        "speedup": {"forward": result.Speedup(0.84, (0.83, 0.85), 1e-9, True, tuple(times))},
        "ceiling": result.Ceiling(2e9, 3e9, 2_000_000, "L2"),
        "traffic": "every argument is read once",
        "memory": {"forward": result.Memory(1_000_000, 0, 2_000_000)},
        "accuracy": {},
        "checked": "no exact twin to compare with",
        "warnings": ("noisy",),
        "machine": {"CPU": "one"},
    }
    return fg.LossProfile(**{**values, **changes})


REPORT = """\
f   x (125000,) float64   1 thread · warm · 15 interleaved rounds · 2.0 s
            median          95% CI    IQR                vs NumPy   traffic     rate   of peak
forward   2.000 ms   1.992 – 2.008   0.7%   0.840× [0.830, 0.850]      2 MB   1 GB/s       50%
peak      a copy moves 2 GB/s here, a read 3 (measured in the same rounds); working set 2 MB, fits
          L2
memory    forward: 0 B extra (NumPy: 2 MB), 1 MB result
accuracy  results differ from those of NumPy by 1e-09 in the 2-norm; no exact twin to compare with
!         noisy"""


def test_a_report_in_full():
    assert profile().report(100) == REPORT


def test_numbers_of_a_part():
    p = profile().parts["forward"]
    assert p.median == 2e-3
    assert p.ci == (2e-3 * 0.996, 2e-3 * 1.004)
    assert p.gbps == 1.0
    assert p.fraction == 0.5


@pytest.mark.parametrize(
    ("seconds", "spread", "text"),
    [
        (1.2345e-3, 1e-4, "1.234 ms"),
        (1.2345e-3, 0.03, "1.23 ms"),
        (1.2345e-3, 0.2, "1.2 ms"),
        (123.45e-9, 1e-4, "123.5 ns"),
        (12.345, 0.02, "12.3 s"),
        (45e-6, 0.5, "45 µs"),
    ],
)
def test_times_have_the_digits_that_their_interval_supports(seconds, spread, text):
    p = part([seconds * (1 - spread), seconds, seconds * (1 + spread)])
    assert result._time(p.median, p) == text


def test_profiles_are_compared():
    fast = profile(parts={"forward": part([1e-3] * 15)}, threads=2)
    lines = profile().compare({"fast": fast}, name="slow").splitlines()
    assert lines[0].split() == ["slow", "fast"]
    assert lines[1].split() == [
        "forward",
        "2.000",
        "ms",
        "1.000",
        "ms,",
        "0.500×",
        "[0.498,",
        "0.502]",
    ]
    assert lines[2:] == ["! fast was measured with other threads"]


def test_exporters(tmp_path):
    p = quick(fg.softmax, lambda n: (X[:n],), sweep=[4, 8])
    assert fg.LossProfile.from_json(p.to_json()) == p
    assert p.to_dict()["sweep"]["4"]["parts"]["forward"]["times"]
    pandas = pytest.importorskip("pandas")
    frame = p.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["size"]) == [4] * 3 + [8] * 3
    assert list(frame["part"][:3]) == ["forward", "vjp", "jvp"]


def test_json_takes_what_numpy_counted():
    p = quick(np.exp, X, flops=np.prod(X.shape), ceiling=np.float32(1e10), traffic=np.int64(10**4))
    assert fg.LossProfile.from_json(p.to_json()) == p


def test_plots():
    pytest.importorskip("matplotlib")
    p = quick(fg.softmax, lambda n: (X[:n],), sweep=[4, 8])
    left, right = p.plot().axes
    assert {line.get_label() for line in right.lines} == {"forward", "vjp", "jvp", "copy"}
    assert len(left.lines) == 6
    (axes,) = p.sweep[4].plot().axes
    assert len(axes.lines) == 3


# ---- misuse and the machine ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: quick(3, X), TypeError, "f must be a function of arrays; got int."),
        (lambda: quick(fg.softmax, X, what="grad"), ValueError, "what must be of forward, "),
        (lambda: quick(fg.softmax, X, what="both"), ValueError, "softmax has no both; it has "),
        (
            lambda: quick(fg.softmax, X, seconds=0),
            ValueError,
            "seconds and rounds must be positive",
        ),
        (lambda: quick(fg.softmax, X, sweep=[1]), TypeError, "with sweep=, give sizes, and one"),
        (
            lambda: quick(fg.softmax, X, reference="jax"),
            TypeError,
            "reference must be a function, ",
        ),
        (
            lambda: quick(fg.softmax, X, reference=3),
            TypeError,
            'reference must be a function, "NumPy" or None; got 3.',
        ),
        (
            lambda: quick(fg.softmax, X, reference=X),
            TypeError,
            'reference must be a function, "NumPy" or None; got array([[',
        ),
        (
            lambda: quick(str, X, reference=str),
            TypeError,
            "results must be numbers to be compared with those of a reference; got <U",
        ),
        (
            lambda: quick(fg.cross_entropy, X),
            TypeError,
            "cross_entropy cannot be called with these arguments: missing a required argument: 't",
        ),
        (
            lambda: quick(np.sum, X, grad=X),
            TypeError,
            "grad must be a function of the same arguments; got ndarray.",
        ),
        (
            lambda: quick(fg.softmax, X, traffic={"foo": 1}),
            ValueError,
            "traffic is for parts forward, gradient, both, hvp, vjp, jvp; got 'foo'.",
        ),
        (
            lambda: quick(fg.softmax, X, flops={"forward": -1}),
            ValueError,
            "flops must be operations, over 0; got -1.",
        ),
        (
            lambda: quick(fg.softmax, X, ceiling=0),
            ValueError,
            "ceiling must be bytes per second, over 0; got 0.",
        ),
        (
            lambda: quick(fg.softmax, X, ceiling="fast"),
            ValueError,
            "ceiling must be bytes per second, over 0; got 'fast'.",
        ),
    ],
)
def test_misuse(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(message)
    # The magics show what is raised here without a traceback.
    assert caught.traceback[-1].frame.f_globals["__name__"] == "fastgrad._profile.measure"


def test_caches_and_level(monkeypatch):
    monkeypatch.setattr(measure, "_caches", lambda: {"L1": 1000, "L2": 10_000})
    assert [measure._level(n) for n in (1000, 1001, 10_001)] == ["L1", "L2", "DRAM"]
    monkeypatch.setattr(measure, "_caches", dict)
    assert measure._level(5) == ""


def test_noise_is_told(monkeypatch):
    run = measure._Run(measure._Subject(np.sum, (X,), {}), 1.0, 10, False, None)
    run.done, run.given = 5, None
    run.subject.results["forward"] = 0.0
    run.parts, run.race_of = ["forward"], {"forward": measure._Contestant(np.sum)}
    monkeypatch.setattr(measure.os, "getloadavg", lambda: (99.0, 0, 0))
    steady = dict.fromkeys(["forward"], part([2e-3] * 20))
    noisy = dict.fromkeys(["forward"], part([1e-3 * (i % 2 + 1) for i in range(20)]))
    drift = dict.fromkeys(["forward"], part([1e-3 * (1 + i / 100) for i in range(-10, 10)]))
    over = dict.fromkeys(["forward"], part([0.5e-3] * 20))

    def said(parts):
        return "\n".join(run.noise(parts))

    assert "only 5 of 10 rounds: give more seconds" in said(steady)
    assert "load average 99.0" in said(steady)
    assert "do not rely on these times" in said(noisy)
    assert "drift: forward took" in said(drift)
    assert "over 100 %" in said(over)
    run.done = 10
    monkeypatch.setattr(measure.os, "getloadavg", lambda: (0.0, 0, 0))
    monkeypatch.setattr(measure, "_frequency", float)
    monkeypatch.setattr(measure, "_text", lambda path: "")
    assert said(steady) == ""
    monkeypatch.setattr(measure, "get_num_threads", lambda: 1000)
    assert "1000 threads on" in said(steady)
