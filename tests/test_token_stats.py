"""token_stats: every field against the twin, by instruction set, length, layout, special value."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import fastgrad as fg
from fastgrad import _reference as ref

INF, NAN = np.inf, np.nan
LANES = {np.float32: 16, np.float64: 8}  # of the widest vector, 64 bytes
FLOATS = ("nll", "logsumexp", "entropy")
INTEGERS = ("argmax", "correct", "rank")


def agree(actual, logits, target, axis, assert_ulps, what=""):
    """nll and entropy to 4 ulp of themselves, logsumexp to 2 of what its parts are rounded to."""
    exact = ref.token_stats(logits, target, axis=axis)
    for name in INTEGERS:
        mine, other = getattr(actual, name), getattr(exact, name)
        assert mine.dtype == other.dtype
        assert np.array_equal(mine, other), (name, what)
    top = np.max(logits, axis)
    size = np.maximum(np.abs(exact.logsumexp), np.abs(top))
    assert_ulps(actual.nll, exact.nll, 4, what=("nll", what))
    # A probability below the smallest number counts as 0, times its surprise of up to 745.
    smallest = np.maximum(exact.entropy, np.finfo(logits.dtype).tiny)
    bar = 4 if (exact.entropy[np.isfinite(exact.entropy)] > smallest.min()).all() else 64
    assert_ulps(actual.entropy, exact.entropy, bar, smallest, ("entropy", what))
    assert_ulps(actual.logsumexp, exact.logsumexp, 2, size, ("logsumexp", what))


def draw(rng, shape, dtype, axis=-1, spread=3.0):
    """Logits with ties for the first place and elsewhere; some rows ignored."""
    x = rng.normal(0, spread, shape)
    x = np.where(rng.random(shape) < 0.3, np.round(x), x).astype(dtype)
    classes = shape[axis]
    y = rng.integers(0, classes, np.delete(shape, axis))
    y = np.where(rng.random(y.shape) < 0.2, -100, y)
    return x, y


def bits(stats):
    return tuple(np.ascontiguousarray(a).tobytes() for a in stats)


# ---- values -------------------------------------------------------------------------------------


def test_every_length_stays_inside_its_memory(isa, dtype, rng, guard, assert_ulps):
    lengths = [*range(1, 4 * LANES[dtype] + 2), *range(126, 131), *range(255, 258), 1000]
    memory, targets = guard(5 * 1000 * 8), guard(64)
    for n in lengths:
        x, y = draw(rng, (5, n), dtype)
        for at in ("end", "start"):
            z, t = memory.place(x, at), targets.place(y, at)
            agree(fg.token_stats(z, t), z, t, -1, assert_ulps, n)


@pytest.mark.parametrize("spread", [0.0, 0.1, 3, 20, 100])
@pytest.mark.parametrize("offset", [0, 1e4, -1e6, 1e8, -1e30])
def test_every_spread_and_offset(isa, dtype, rng, assert_ulps, spread, offset):
    for classes in (2, 10, 57, 300):
        x, y = draw(rng, (20, classes), np.float64, spread=spread)
        z = (x + offset).astype(dtype)
        agree(fg.token_stats(z, y), z, y, -1, assert_ulps, classes)


def test_confident_rows_keep_their_digits(isa, dtype, assert_ulps):
    """Entropy and nll far below eps, where a difference of logarithms would be 0."""
    gap = np.arange(5, 80, dtype=dtype)
    z = np.zeros((gap.size, 3), dtype)
    z[:, 1] = gap
    y = np.ones(gap.size, int)
    stats = fg.token_stats(z, y)
    assert (stats.nll > 0).all()
    assert (stats.entropy > stats.nll).all()
    agree(stats, z, y, -1, assert_ulps)


def test_uniform_rows(isa, dtype, assert_ulps):
    for classes in (1, 2, 7, 100, 4097):
        stats = fg.token_stats(np.full((1, classes), 2.5, dtype), [classes - 1])
        assert_ulps(stats.entropy, np.log(np.array([classes], np.longdouble)), 2)
        assert stats.rank == classes - 1
        assert stats.argmax == 0
        assert stats.correct == (classes == 1)


@pytest.mark.parametrize("place", [0, 1, 15, 16, 40, 1999])
def test_a_vocabulary(isa, dtype, rng, assert_ulps, place):
    """Rows longer than the blocks of the sums; the target anywhere, and once the maximum."""
    x = rng.normal(0, 4, (3, 2000)).astype(dtype)
    x[1, place] = x[1].max() + 9
    x[2, place] = x[2, 1000] = x[2].max() + 1
    y = np.full(3, place)
    agree(fg.token_stats(x, y), x, y, -1, assert_ulps)


@pytest.mark.parametrize("kind", ["?", "i1", "u1", "i4", "u8", ">i4"])
def test_every_dtype_of_targets(dtype, rng, kind):
    x, y = rng.normal(size=(50, 2)).astype(dtype), rng.integers(0, 2, 50)
    assert bits(fg.token_stats(x, y.astype(kind))) == bits(fg.token_stats(x, y))


# ---- layouts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("classes", [1, 5, 40, 200])
def test_layouts_change_no_bit(isa, dtype, rng, assert_ulps, axis, classes):
    shape = [4, 3, 5]
    shape[axis] = classes
    x, y = draw(rng, shape, dtype, axis)
    expected = fg.token_stats(x, y, axis=axis)
    agree(expected, x, y, axis, assert_ulps)
    assert expected.rank.shape == y.shape
    for z in (
        np.asfortranarray(x),
        np.ascontiguousarray(x[::-1, :, ::-1])[::-1, :, ::-1],
        np.repeat(x, 2, 2)[:, :, ::2],
        np.broadcast_to(x, x.shape),
    ):
        assert bits(fg.token_stats(z, np.asfortranarray(y), axis=axis)) == bits(expected)


def test_rows_of_stride_zero(isa, dtype, rng, assert_ulps):
    x = np.broadcast_to(rng.normal(size=30).astype(dtype), (6, 30))
    y = np.arange(6)
    agree(fg.token_stats(x, y), x, y, -1, assert_ulps)


def test_results_do_not_depend_on_threads_or_neighbours(isa, dtype, rng):
    x, y = draw(rng, (600, 700), dtype)
    seen = set()
    for n in (1, 2, 3):
        with fg.num_threads(n):
            seen.add(bits(fg.token_stats(x, y)))
    assert len(seen) == 1
    alone = [fg.token_stats(x[i], y[i]) for i in (0, 17, 599)]
    whole = fg.token_stats(x, y)
    for i, stats in zip((0, 17, 599), alone, strict=True):
        assert bits(stats) == bits([a[i] for a in whole])


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3)], ids=str)
def test_no_rows(dtype, shape):
    stats = fg.token_stats(np.empty(shape, dtype), np.empty(shape[:-1], int))
    assert all(a.shape == shape[:-1] for a in stats)
    assert stats.nll.dtype == stats.entropy.dtype == dtype


def test_one_row(dtype):
    stats = fg.token_stats(np.zeros(4, dtype), 2)
    assert stats.rank == 2
    assert np.ndim(stats.nll) == 0
    assert fg.token_stats(np.float64(3.0), 0).correct


def test_inputs_are_left_alone(dtype, rng):
    x, y = draw(rng, (5, 40), dtype)
    before = x.tobytes(), y.tobytes()
    fg.token_stats(x, y)
    assert (x.tobytes(), y.tobytes()) == before


# ---- special values -----------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["C", "F"])
@pytest.mark.parametrize("classes", [2, 17, 200])
def test_special_rows(isa, dtype, rng, assert_ulps, classes, layout):
    """Each between ordinary rows; place and target of every kind."""
    special = []
    for junk in (NAN, INF, -INF):
        for place in {0, 1, classes - 1}:
            row = rng.normal(size=classes)
            row[place] = junk
            special += [row, rng.normal(size=classes)]
    special += [np.full(classes, -INF), np.full(classes, NAN), np.full(classes, INF)]
    mixed = np.full(classes, -INF)
    mixed[-1] = INF
    special += [mixed, np.r_[INF, np.full(classes - 1, NAN)], np.r_[np.full(classes - 1, INF), NAN]]
    x = np.asarray(np.array(special), dtype, order=layout)
    for target in {0, 1, classes - 1}:
        for y in (np.full(len(x), target), np.where(np.arange(len(x)) % 3 == 0, -100, target)):
            with np.errstate(invalid="ignore"):
                agree(fg.token_stats(x, y), x, y, -1, assert_ulps, target)


def test_an_ignored_row_still_says_what_needs_no_target(isa, dtype, rng):
    x = rng.normal(0, 3, (4, 50)).astype(dtype)
    stats = fg.token_stats(x, [3, -1, 7, -1], ignore_index=-1)
    other = fg.token_stats(x, [3, 5, 7, 9])
    assert stats.nll[[1, 3]].tolist() == [0, 0]
    assert stats.rank[[1, 3]].tolist() == [-1, -1]
    assert not stats.correct[[1, 3]].any()
    assert np.array_equal(stats.argmax, other.argmax)
    eps = np.finfo(
        dtype
    ).eps  # the target is left out of the sum, so the order of summation differs
    np.testing.assert_allclose(stats.entropy, other.entropy, rtol=8 * eps)
    np.testing.assert_allclose(stats.logsumexp, other.logsumexp, rtol=4 * eps)


# ---- against the other functions ----------------------------------------------------------------


def test_it_agrees_with_the_other_functions(isa, dtype, rng):
    x, y = draw(rng, (200, 90), dtype)
    stats = fg.token_stats(x, y)
    kept = y >= 0
    eps = np.finfo(dtype).eps
    nll = fg.cross_entropy(x, y, reduction="none")
    np.testing.assert_allclose(stats.nll, nll, rtol=8 * eps)
    np.testing.assert_allclose(stats.logsumexp, fg.logsumexp(x), rtol=4 * eps)
    assert np.array_equal(stats.argmax, x.argmax(1))
    assert np.array_equal(stats.correct[kept], (x.argmax(1) == y)[kept])
    order = np.argsort(-x, axis=1, kind="stable")
    assert np.array_equal(stats.rank[kept], (order == y[:, None]).argmax(1)[kept])
    log_p = fg.log_softmax(x).astype(float)
    np.testing.assert_allclose(stats.entropy, -(np.exp(log_p) * log_p).sum(1), rtol=32 * eps)


def test_an_offset_changes_nothing(isa, dtype, rng):
    """Of whole numbers, whose sums with the offset are exact."""
    x = rng.integers(-20, 20, (30, 65)).astype(dtype)
    y = rng.integers(0, 65, 30)
    near, far = fg.token_stats(x, y), fg.token_stats(x + dtype(4096), y)
    for name in ("nll", "entropy"):
        a, b = getattr(near, name), getattr(far, name)
        np.testing.assert_allclose(a, b, rtol=8 * np.finfo(dtype).eps)
    for name in INTEGERS:
        assert np.array_equal(getattr(near, name), getattr(far, name))


# ---- recipe -------------------------------------------------------------------------------------

PERPLEXITY = """
import resource, sys
import numpy as np
import fastgrad as fg

ROWS, CLASSES, CHUNK = 2048, 4096, 256  # 32 MiB of logits
logits = np.memmap(sys.argv[1], np.float32, "r", shape=(ROWS, CLASSES))
target = np.load(sys.argv[2])
fg.token_stats(logits[:CHUNK], target[:CHUNK])  # what is allocated once is there now

used = next(int(s.split()[1]) for s in open("/proc/self/status") if s.startswith("VmData"))
limit = used * 1024 + (8 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    np.array(logits)
    sys.exit("the limit does not bite")
except MemoryError:
    pass

nll = hits = count = 0
for i in range(0, ROWS, CHUNK):
    stats = fg.token_stats(logits[i : i + CHUNK], target[i : i + CHUNK])
    kept = target[i : i + CHUNK] != -100
    nll += stats.nll.sum(dtype=np.float64)
    hits += int(stats.correct.sum())
    count += int(kept.sum())
print(repr(float(np.exp(nll / count))), hits, count)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mappings on Linux alone")
def test_perplexity_of_a_file_larger_than_memory(rng, tmp_path):
    logits = rng.normal(0, 3, (2048, 4096)).astype(np.float32)
    target = rng.integers(0, 4096, 2048)
    target[::5] = -100
    logits[:600][np.arange(600), np.abs(target[:600])] += 9
    logits.tofile(tmp_path / "logits")
    np.save(tmp_path / "target.npy", target)
    done = subprocess.run(
        [sys.executable, "-c", PERPLEXITY, tmp_path / "logits", tmp_path / "target.npy"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    perplexity, hits, count = done.stdout.split()
    kept = target != -100
    wide = logits.astype(np.float64)
    nll = fg.cross_entropy(wide, target)
    assert float(perplexity) == pytest.approx(np.exp(nll), rel=1e-6)
    assert int(count) == kept.sum()
    assert int(hits) == (logits.argmax(1) == target).sum()
