"""float16 and bfloat16: the bits of the float32 call on upcast input, rounded once.

Every comparison is exact. The rounding it is compared with is NumPy's for float16 and that of
ml_dtypes for bfloat16, both to nearest with ties to even.
"""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import fastgrad as fg
from fastgrad._kernels import isa as _isa
from fastgrad._kernels import rows as _rows

THREADS = [1, 2, 3] if _rows.build_info()[1] else [1]
HALVES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
BITS = {"float16": 10, "bfloat16": 7}  # of the fraction


@pytest.fixture(params=HALVES, ids=["f16", "bf16"])
def half(request: pytest.FixtureRequest) -> np.dtype[Any]:
    return request.param


def up(a: Any) -> Any:
    """Halves as float32; anything else as it is."""
    if not isinstance(a, np.ndarray) or a.dtype not in HALVES:
        return a
    return a.astype(np.float32)


def rounded(a: Any, half: np.dtype[Any]) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(a).astype(half)


def assert_same(actual: Any, wanted: Any, what: Any = "") -> None:
    """The same dtype, shape and bits; any NaN equals any other."""
    actual, wanted = np.asarray(actual), np.asarray(wanted)
    assert actual.dtype == wanted.dtype, what
    assert actual.shape == wanted.shape, what
    a, b = up(actual), up(wanted)
    same = (a.view(f"u{a.itemsize}") == b.view(f"u{b.itemsize}")) | (np.isnan(a) & np.isnan(b))
    assert same.all(), f"{what}: {(~same).sum()} differ, {a[~same][:3]} not {b[~same][:3]}"


# ---- conversion ---------------------------------------------------------------------------------


def every(half: np.dtype[Any]) -> np.ndarray:
    return np.arange(1 << 16, dtype=np.uint16).view(half)


def widened(x: np.ndarray) -> np.ndarray:
    out = np.empty(x.size + 16, np.float32)
    _isa._convert(x, out, False)
    return out[: x.size]


@pytest.mark.parametrize("step", [1, 3, -1])
def test_every_half_is_widened_exactly(isa, half, step):
    x = np.empty((1 << 16) * abs(step), half)[::step]
    x[:] = every(half)
    assert_same(widened(x), x.astype(np.float32))


def test_nan_is_widened_and_narrowed_to_a_quiet_nan(isa, half):
    x = every(half)
    nan = np.isnan(up(x))
    fraction = BITS[half.name]
    assert nan.sum() == 2 * ((1 << fraction) - 1)
    bits = np.pad(x[nan].astype(np.float32), (0, 16))
    out = np.empty(nan.sum(), half)
    _isa._convert(bits, out, False)
    assert np.isnan(up(out)).all()
    assert (out.view(np.uint16) >> (fraction - 1) & 1).all()


def floats_around(half: np.dtype[Any], rng: np.random.Generator) -> np.ndarray:
    """Every half, the points half way between two of them, their neighbours, and random bits."""
    bits = every(half).astype(np.float32).view(np.uint32)
    middle = 1 << (22 - BITS[half.name])
    near = [bits + np.uint32(k % 2**32) for k in (0, 1, -1, middle, middle - 1, middle + 1)]
    # Between subnormals of float16 the distance does not shrink.
    small = (np.arange(-(2**13), 2**13) * 2.0**-26).astype(np.float32).view(np.uint32)
    drawn = rng.integers(0, 2**32, 1 << 18, np.uint32)
    return np.concatenate([*near, small, small + np.uint32(1), drawn]).view(np.float32)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("step", [1, 2])
def test_narrowing_rounds_to_nearest_even(isa, half, rng, stream, step):
    x = floats_around(half, rng)
    out = np.empty(x.size * step, half)[::step]
    _isa._convert(np.pad(x, (0, 16)), out, stream)
    assert_same(out, rounded(x, half))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("at", range(0, 40, 3))
def test_narrowing_stays_inside_its_line(isa, half, rng, stream, at):
    for n in range(100):
        memory = np.full(160, 7, half)
        x = rng.normal(size=n + 16).astype(np.float32)
        _isa._convert(x, memory[at : at + n], stream)
        assert_same(memory[at : at + n], rounded(x[:n], half))
        assert (memory[:at] == 7).all()
        assert (memory[at + n :] == 7).all()


# ---- every kernel -------------------------------------------------------------------------------


def gapped(a: np.ndarray) -> np.ndarray:
    """The same numbers two rows and three classes apart."""
    whole = np.zeros((2 * a.shape[0], 3 * a.shape[1]), a.dtype)
    whole[::2, ::3] = a
    return whole[::2, ::3]


def rows_apart(a: np.ndarray) -> np.ndarray:
    whole = np.zeros((a.shape[0], a.shape[1] + 5), a.dtype)
    whole[:, 2:-3] = a
    return whole[:, 2:-3]


def backwards(a: np.ndarray) -> np.ndarray:
    return a[::-1, ::-1].copy()[::-1, ::-1]


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "gapped": gapped,
    "rows apart": rows_apart,
    "backwards": backwards,
    "one row": lambda a: np.broadcast_to(a[:1], a.shape),
}
# Around the width of a vector, changes of style (64, 104, 144, 256 classes), and blocks of 4096.
SHAPES = [(7, 1), (37, 3), (70, 17), (33, 64), (35, 65), (34, 103), (33, 104), (21, 144), (19, 145)]
SHAPES += [(9, 256), (9, 257), (3, 1000), (2, 5003)]


def check(f: Callable[..., Any], half: np.dtype[Any], layout: Any, x: np.ndarray, *inputs: Any):
    x = layout(x)
    actual = f(x, *inputs)
    wanted = f(layout(up(x)), *map(up, inputs))
    assert_same(actual, rounded(wanted, half), x.shape)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_kernel_has_the_rounded_bits_of_float32(isa, half, op, rng, layout):
    for shape in SHAPES:
        x = rng.normal(0, 3, shape).astype(half)
        inputs = op.inputs(rng, x, -1)
        check(lambda x, *a: op.run(x, -1, *a), half, LAYOUTS[layout], x, *inputs)


def test_an_axis_in_the_middle(isa, half, op, rng):
    for shape in [(3, 5, 70), (4, 150, 9), (2, 150, 1)]:
        x = rng.normal(0, 3, shape).astype(half)
        inputs = op.inputs(rng, x, 1)
        wanted = op.run(up(x), 1, *map(up, inputs))
        assert_same(op.run(x, 1, *inputs), rounded(wanted, half), shape)


@pytest.mark.parametrize("layout", ["C", "F", "gapped"])
def test_rows_of_a_hundred_thousand(isa, half, op, rng, layout):
    x = rng.normal(0, 3, (3, 100003)).astype(half)
    inputs = op.inputs(rng, x, -1)
    check(lambda x, *a: op.run(x, -1, *a), half, LAYOUTS[layout], x, *inputs)


def test_many_short_rows(half, op, rng):
    x = rng.normal(0, 3, (70001, 2)).astype(half)
    inputs = op.inputs(rng, x, -1)
    check(lambda x, *a: op.run(x, -1, *a), half, np.ascontiguousarray, x, *inputs)


def test_no_dimension(half, op, rng):
    x = np.asarray(rng.normal(), half)
    inputs = op.inputs(rng, x, -1)
    wanted = op.run(up(x), -1, *map(up, inputs))
    assert_same(op.run(x, -1, *inputs), rounded(wanted, half))


def test_no_elements(half):
    x = np.zeros((0, 3), half)
    for y in (fg.softmax(x), fg.log_softmax(x), fg.softmax.vjp(x, x)):
        assert (y.shape, y.dtype) == (x.shape, half)
    assert_same(fg.logsumexp(x, 0), np.full(3, -np.inf).astype(half))
    assert fg.cross_entropy(x, np.zeros(0, int), reduction="none").dtype == half


@pytest.mark.parametrize("where", ["end", "start"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_row_length_stays_inside_its_memory(isa, half, op, guard, rng, order, where):
    memories = [guard(5 * 257 * 2) for _ in range(3)]
    for n in [*range(1, 66), *range(78, 83), *range(143, 147), 255, 256, 257]:
        x = memories[0].place(np.asarray(rng.normal(0, 3, (5, n)).astype(half), order=order), where)
        drawn = op.inputs(rng, x, -1)
        # Only halves: 8-byte targets need more room.
        inputs = tuple(memories[1].place(a, where) if a.dtype == half else a for a in drawn)
        wanted = rounded(op.run(up(x), -1, *map(up, inputs)), half)
        if op.name == "cross_entropy":
            actual = op.run(x, -1, *inputs)
        else:
            out = np.full((5,) if op.reduces else x.shape, 7).astype(half)
            out = memories[2].place(np.asarray(out, order=order), where)
            actual = op.run(x, -1, *inputs, out=out)
            assert actual is out
        assert_same(actual, wanted, n)
        for memory in memories:
            memory.check()


@pytest.mark.parametrize("classes", [3, 60, 200])
def test_gaps_of_out_are_left_alone(isa, half, elementwise_op, rng, classes):
    x = rng.normal(0, 3, (7, classes)).astype(half)
    inputs = elementwise_op.inputs(rng, x, -1)
    whole = np.full((14, 3 * classes), 7).astype(half)
    gaps = np.ones(whole.shape, bool)
    gaps[::2, 1::3] = False
    elementwise_op.run(x, -1, *inputs, out=whole[::2, 1::3])
    wanted = elementwise_op.run(up(x), -1, *map(up, inputs))
    assert_same(whole[::2, 1::3], rounded(wanted, half))
    assert (up(whole[gaps]) == 7).all()


@pytest.mark.parametrize("shape", [(70, 10), (70, 250), (3, 20000)], ids=str)
@pytest.mark.parametrize("layout", ["C", "F", "gapped"])
def test_in_place(isa, half, rng, shape, layout):
    a = rng.normal(0, 3, shape).astype(half)
    g = rng.normal(size=shape).astype(half)
    lay = LAYOUTS[layout]
    for f in (fg.softmax, fg.log_softmax):
        x = lay(a.copy())
        f(x, out=x)
        assert_same(x, rounded(f(lay(up(a))), half), f)
    for f in (fg.softmax.vjp, fg.log_softmax.vjp, fg.log_softmax.jvp):
        v = lay(g.copy())
        f(lay(a), v, out=v)
        assert_same(v, rounded(f(lay(up(a)), lay(up(g))), half), f)


@pytest.mark.parametrize("layout", ["C", "F"])
def test_of_other_orders_are_out_and_g(isa, half, rng, layout):
    other = {"C": np.asfortranarray, "F": np.ascontiguousarray}[layout]
    for shape in [(70, 10), (70, 250)]:
        x = LAYOUTS[layout](rng.normal(0, 3, shape).astype(half))
        g = other(rng.normal(size=shape).astype(half))
        out = other(np.empty_like(x))
        fg.softmax.vjp(x, g, out=out)
        wanted = fg.softmax.vjp(LAYOUTS[layout](up(x)), other(up(g)))
        assert_same(out, rounded(wanted, half))
        fg.softmax(x, out=out)
        assert_same(out, rounded(fg.softmax(LAYOUTS[layout](up(x))), half))


def test_other_maps_options(isa, half, rng):
    for shape in [(40, 10), (40, 300)]:
        x, g = (rng.normal(0, 3, shape).astype(half) for _ in range(2))
        keep = rng.random(shape) < 0.7
        b = rng.normal(size=shape).astype(half)
        for f in (fg.softmax, fg.log_softmax, fg.logsumexp):
            for kw in ({"where": keep}, {"temperature": 0.3}, {"axis": None}, {"axis": (1, 0)}):
                assert_same(f(x, **kw), rounded(f(up(x), **kw), half), (f, kw))
        for f in (fg.softmax.vjp, fg.log_softmax.vjp, fg.log_softmax.jvp, fg.logsumexp.jvp):
            for kw in ({"where": keep}, {"temperature": 0.3}, {"axis": 0}):
                assert_same(f(x, g, **kw), rounded(f(up(x), up(g), **kw), half), (f, kw))
        y = fg.softmax(x)
        assert_same(fg.softmax.vjp(x, g, y=y), rounded(fg.softmax.vjp(up(x), up(g), y=up(y)), half))
        for sign in (False, True):
            some = fg.logsumexp(x, b=b, return_sign=sign)
            wanted = fg.logsumexp(up(x), b=up(b), return_sign=sign)
            assert_same(np.asarray(some), rounded(wanted, half))
        b[3, 5] = np.nan
        tangent = fg.logsumexp.jvp(x, g, b=abs(b))
        assert np.isnan(up(tangent)[3])
        assert_same(tangent, rounded(fg.logsumexp.jvp(up(x), up(g), b=abs(up(b))), half))
        weights = rng.normal(size=40).astype(half)
        pulled = fg.logsumexp.vjp(x, weights, b=b, return_sign=True)
        wanted = fg.logsumexp.vjp(up(x), up(weights), b=up(b), return_sign=True)
        assert_same(pulled, rounded(wanted, half))


def test_the_sign_of_a_sum_whose_logarithm_overflows(half):
    x = np.full((2, 3), -6e4).astype(half)
    x[1] = -np.inf
    log, sign = fg.logsumexp(x, temperature=1e-4, return_sign=True)
    wanted = fg.logsumexp(up(x), temperature=1e-4)
    assert_same(log, rounded(wanted, half))
    assert np.isneginf(up(log[0])) == (half == np.float16)
    assert_same(sign, np.array([1, 0]).astype(half))


@pytest.mark.parametrize("kind", [np.float32, np.float64, "other half"])
def test_vectors_of_another_dtype_are_cast_to_float32(half, rng, kind):
    dtype = kind if kind != "other half" else next(h for h in HALVES if h != half)
    x = rng.normal(0, 3, (5, 30)).astype(half)
    g = (rng.normal(size=x.shape) * 1e-3).astype(dtype)
    wanted = fg.softmax.vjp(up(x), g.astype(np.float32))
    assert_same(fg.softmax.vjp(x, g), rounded(wanted, half))
    t = abs(g)
    value, grad = fg.cross_entropy.value_and_grad(x, t)
    wanted_value, wanted_grad = fg.cross_entropy.value_and_grad(up(x), t.astype(np.float32))
    assert value == wanted_value
    assert_same(grad, rounded(wanted_grad, half))


def test_halves_beside_wider_scores(half, rng):
    """The scores decide."""
    x, g = rng.normal(0, 3, (2, 5, 30))
    g = g.astype(half)
    assert_same(fg.softmax.vjp(x, g), fg.softmax.vjp(x, g.astype(float)))
    x = x.astype(np.float32)
    assert_same(fg.softmax.vjp(x, g), fg.softmax.vjp(x, up(g)))
    weight = abs(g[0])
    y = np.zeros(5, int)
    assert fg.cross_entropy(x, y, weight=weight) == fg.cross_entropy(x, y, weight=up(weight))


def test_big_endian_halves(half, rng):
    x = rng.normal(0, 3, (5, 30)).astype(half)
    assert_same(fg.softmax(x.astype(half.newbyteorder(">"))), fg.softmax(x))


# ---- cross-entropy ------------------------------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduction": "sum"},
    {"normalizer": 7.5},
    {"ignore_index": 0},
    {"weight": True},
    {"weight": True, "z_loss": 0.1},
    {"sample_weight": True},
    {"label_smoothing": 0.1},
    {"label_smoothing": 0.1, "weight": True, "sample_weight": True, "z_loss": 1e-2},
    {"where": True, "label_smoothing": 0.1},
]


# Nothing is ignored among probabilities.
TARGETS = [
    (soft, o) for soft in (False, True) for o in OPTIONS if not (soft and "ignore_index" in o)
]


@pytest.mark.parametrize("layout", ["C", "F", "gapped"])
@pytest.mark.parametrize(("soft", "options"), TARGETS)
def test_every_option_and_derivative(isa, half, rng, layout, soft, options):
    for shape in [(37, 10), (9, 200)]:
        lay = LAYOUTS[layout]
        x = lay(rng.normal(0, 3, shape).astype(half))
        wide = lay(up(x))
        v = rng.normal(size=shape).astype(half)
        target: Any = rng.integers(0, shape[1], shape[0])
        if soft:
            target = rng.random(shape).astype(half)
        kw = dict(options)
        if "weight" in kw:  # more digits than a half has
            kw["weight"] = rng.random(shape[1])
        if "sample_weight" in kw:
            kw["sample_weight"] = rng.random(shape[0])
        if "where" in kw:
            keep = rng.random(shape) < 0.8
            if soft:
                target[~keep] = 0
            else:
                keep[np.arange(shape[0]), target] = True
            kw["where"] = keep
        t, f = up(target), fg.cross_entropy
        assert f(x, target, **kw) == f(wide, t, **kw)
        value, grad = f.value_and_grad(x, target, **kw)
        assert value == f(wide, t, **kw)
        assert type(value) is float
        assert_same(grad, rounded(f.grad(wide, t, **kw), half))
        assert_same(f.grad(x, target, **kw), grad)
        assert_same(f.hvp(x, target, v, **kw), rounded(f.hvp(wide, t, up(v), **kw), half))
        assert_same(f.hess_diag(x, target, **kw), rounded(f.hess_diag(wide, t, **kw), half))
        if "normalizer" not in kw:
            kw["reduction"] = "none"
            upstream = rng.normal(size=shape[0])
            assert_same(f(x, target, **kw), rounded(f(wide, t, **kw), half))
            assert_same(
                f.grad(x, target, **kw, grad_output=upstream),
                rounded(f.grad(wide, t, **kw, grad_output=upstream), half),
            )


@pytest.mark.parametrize("bad", [-0.25, np.nan, np.inf, -np.inf, -1e-6])
def test_probabilities_of_half_precision_are_checked(half, bad):
    t = np.zeros((3, 40), half)
    t[1] = -t[1]  # -0 is no negative number
    x = np.zeros(t.shape, half)
    top = up(every(half))
    t[2, 1] = top[np.isfinite(top)].max()
    assert fg.cross_entropy(x, t) > 0
    t[2, 5] = bad
    for layout in LAYOUTS.values():
        if layout is LAYOUTS["one row"]:
            continue
        with pytest.raises(ValueError, match=rf"target\[2, 5\] is .* \(as {half.name}\)"):
            fg.cross_entropy(x, layout(t))


def test_strided_probabilities_are_read_where_they_are(dtype):
    """Once the scan read the elements in between."""
    whole = np.full((3, 8), np.nan, dtype)
    whole[:, ::2] = 0.25
    assert fg.cross_entropy(np.zeros((3, 4), dtype), whole[:, ::2]) > 0
    whole[:] = 0.25
    whole[2, 6] = np.nan
    with pytest.raises(ValueError, match=r"target\[2, 3\] is nan"):
        fg.cross_entropy(np.zeros((3, 4), dtype), whole[:, ::2])


def test_integer_targets_of_two_bytes_are_no_halves(half, rng):
    x = rng.normal(0, 3, (40, 10)).astype(half)
    y = rng.integers(0, 10, 40)
    for kind in (np.int16, np.uint16):
        assert fg.cross_entropy(x, y.astype(kind)) == fg.cross_entropy(x, y)
        wide = up(x).astype(float)
        assert fg.cross_entropy(wide, y.astype(kind)) == fg.cross_entropy(wide, y)


# ---- token_stats --------------------------------------------------------------------------------


def assert_same_stats(x: np.ndarray, y: np.ndarray, wide: np.ndarray, axis: int = -1) -> None:
    actual, wanted = fg.token_stats(x, y, axis=axis), fg.token_stats(wide, y, axis=axis)
    for name, a, b in zip(actual._fields, actual, wanted, strict=True):
        assert_same(a, rounded(b, x.dtype) if b.dtype == np.float32 else b, (name, x.shape))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_token_stats(isa, half, rng, layout):
    """Every place of the target and of the maximum around the width of a vector; special rows."""
    for shape in [*SHAPES, (40, 33), (40, 16), (3, 100003)]:
        x = rng.normal(0, 3, shape).astype(half)
        y = np.arange(shape[0]) % shape[1]
        x[np.arange(shape[0]), rng.permutation(y)] = 9
        if shape[0] > 30:
            x[0, -1], x[1, 0], x[2], x[3, -1] = np.nan, np.inf, -np.inf, -np.inf
            x[4] *= half.type(1e-6)
            x[5] += half.type(3e4)  # subtracted before anything else
        y[6::7] = -100
        lay = LAYOUTS[layout]
        assert_same_stats(lay(x), y, lay(up(x)))


def test_token_stats_along_any_axis(isa, half, rng):
    for axis in range(3):
        shape = [5, 7, 150]
        x = rng.normal(0, 3, shape).astype(half)
        y = rng.integers(0, shape.pop(axis), shape)
        assert_same_stats(x, y, up(x), axis)
    row = rng.normal(size=9).astype(half)
    assert_same_stats(row, np.asarray(4), up(row))


@pytest.mark.parametrize("order", ["C", "F"])
def test_token_stats_converts_nothing_in_python(half, rng, order, tmp_path):
    """Of a memory map of 16 MiB, only the results and a tile for each thread are allocated."""
    shape = (2048, 4096) if order == "C" else (4096, 2048)
    rng.normal(0, 3, shape).astype(half).tofile(tmp_path / "logits")
    x = np.memmap(tmp_path / "logits", half, "r", shape=(2048, 4096), order=order)
    y = rng.integers(0, 4096, 2048)
    tracemalloc.start()
    fg.token_stats(x, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2048 * 128 + fg.get_num_threads() * 2**20  # bytes for each row, and the tiles


# ---- special values -----------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [4, 20, 300])
@pytest.mark.parametrize("layout", ["C", "F"])
def test_special_values(isa, half, op, rng, classes, layout):
    finite = np.sort(up(every(half))[np.isfinite(up(every(half)))])
    top, tiny = finite[-1], finite[finite > 0][0]
    x = rng.normal(0, 3, (12, classes)).astype(half)
    x[0, 1] = np.nan
    x[1, 2] = np.inf
    x[2] = -np.inf
    x[3, :2] = -np.inf
    x[4] = tiny * rng.integers(-9, 9, classes)
    x[5] = top
    x[6] = -top
    x[7, ::2], x[7, 1::2] = top, -top
    x[8] = 0
    x[9] = -top
    x[9, 0] = top
    x[10, 3] = -np.nan
    inputs = op.inputs(rng, x, -1)
    check(lambda x, *a: op.run(x, -1, *a), half, LAYOUTS[layout], x, *inputs)


def test_subnormal_results(isa, half):
    """Probabilities that float16 holds as subnormals, and some that no half can hold."""
    x = -np.arange(400, dtype=np.float32)[None] / 4
    x = np.concatenate([x, x[:, ::-1]]).astype(half)
    p = fg.softmax(x)
    assert_same(p, rounded(fg.softmax(up(x)), half))
    assert (np.abs(up(p)) < 2.0**-14).any()


def test_results_too_large_become_infinite_and_warn_of_nothing(isa, half, rng):
    x = rng.normal(0, 3, (20, 30)).astype(half)
    y = rng.integers(0, 30, 20)
    big = 3e38
    kw = {"reduction": "sum", "grad_output": big}
    grad = fg.cross_entropy.grad(x, y, **kw)
    assert_same(grad, rounded(fg.cross_entropy.grad(up(x), y, **kw), half))
    assert np.isinf(up(grad)).any() == (half == np.float16)
    value = fg.cross_entropy(x, y, reduction="none", sample_weight=np.full(20, big / 50))
    wanted = fg.cross_entropy(up(x), y, reduction="none", sample_weight=np.full(20, big / 50))
    assert_same(value, rounded(wanted, half))


# ---- threads and stores -------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["C", "F"])
@pytest.mark.parametrize("shape", [(30011, 10), (1501, 250), (7, 40009)], ids=str)
def test_threads_change_no_bit(half, op, rng, shape, layout):
    x = LAYOUTS[layout](rng.normal(0, 3, shape).astype(half))
    inputs = op.inputs(rng, x, -1)
    wanted = rounded(op.run(LAYOUTS[layout](up(x)), -1, *map(up, inputs)), half)
    y = np.argmax(up(x), -1)
    values = set()
    for n in THREADS:
        with threadpool_limits(n, user_api="openmp"), fg.num_threads(n):
            assert_same(op.run(x, -1, *inputs), wanted, n)
            values.add(fg.cross_entropy(x, y))
            values.add(fg.cross_entropy.value_and_grad(x, y)[0])
    assert values == {fg.cross_entropy(LAYOUTS[layout](up(x)), y)}


@pytest.mark.parametrize("layout", ["C", "F"])
@pytest.mark.parametrize("shift", [0, 1, 7])
@pytest.mark.parametrize("classes", [57, 1999])
def test_streamed_results_are_the_same(isa, half, rng, classes, shift, layout):
    """From 8 MiB of results on; they begin at any address and touch nothing around."""
    rows = (1 << 20) // (classes * 2) | 1
    small = rng.normal(0, 3, (rows, classes)).astype(half)
    x = np.asarray(np.tile(small, (9, 1)), order=layout)
    assert x.nbytes > 8 << 20
    memory = np.full(x.size + 2 * shift, 9).astype(half)
    out = memory[shift : shift + x.size].reshape(x.shape if layout == "C" else x.shape[::-1])
    out = out if layout == "C" else out.T
    fg.softmax(x, out=out)
    wanted = fg.softmax(np.asarray(small, order=layout))
    assert (out.reshape(9, rows, classes).view(np.uint16) == wanted.view(np.uint16)).all()
    assert (memory[:shift] == 9).all()
    assert (memory[shift + x.size :] == 9).all()


# ---- ml_dtypes ----------------------------------------------------------------------------------


def test_ml_dtypes_is_never_imported():
    code = "import sys, fastgrad; sys.exit('ml_dtypes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    package = Path(fg.__file__).parent
    sources = [*package.rglob("*.py"), *package.rglob("*.pyx")]
    assert len(sources) > 10
    for path in sources:
        assert "import ml_dtypes" not in path.read_text(), path
