"""Every row length and number of rows around the width of a vector, in guarded memory.

Arrays end at a page that cannot be read (or begin behind one), so that a kernel that reads one byte
too far ends the process; bytes around what is written hold a pattern that is checked.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest

import fastgrad as fg
from fastgrad import _reference as ref

LANES = {np.float32: 16, np.float64: 8}  # of the widest vector, 64 bytes
# Around the numbers of classes where the kernels change style (64, 104, 144, 1024 bytes),
# and where a tile or a block has fewer rows.
AROUND = [*range(63, 69), 80, *range(96, 106), *range(111, 114), *range(127, 131), *range(143, 147)]
AROUND += [160, *range(190, 196), *range(255, 258)]


def lengths(dtype):
    return [*range(1, 4 * LANES[dtype] + 2), *range(46, 51), *AROUND]


@pytest.mark.parametrize("at", ["end", "start"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_row_length_stays_inside_its_memory(isa, dtype, op, guard, rng, order, at):
    room = 5 * 257 * 8
    memory = guard(room)
    others = [guard(room), guard(room)]
    for n in lengths(dtype):
        x = memory.place(np.asarray(rng.normal(0, 3, (5, n)), dtype, order=order), at)
        x.flags.writeable = False
        drawn = op.inputs(rng, x, -1)
        inputs = tuple(g.place(a, at) for g, a in zip(others, drawn, strict=False))
        before = x.tobytes()
        if op.name == "cross_entropy":
            actual = op.run(x, -1, *inputs)
        else:
            shape = (5,) if op.reduces else x.shape
            out = others[1].place(np.full(shape, 7, dtype, order=order), at)
            actual = op.run(x, -1, *inputs, out=out)
            assert actual is out
        op.check(actual, x, -1, inputs, f"C={n}")
        assert x.tobytes() == before


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("classes", [2, 10, 17, 70, 127])
def test_every_number_of_rows_stays_inside_its_memory(isa, dtype, op, guard, rng, order, classes):
    most = 2 * LANES[dtype] + 1
    memory, other, result = (guard(most * classes * 8) for _ in range(3))
    for rows in range(1, most + 1):
        x = memory.place(np.asarray(rng.normal(0, 3, (rows, classes)), dtype, order=order))
        inputs = tuple(other.place(a) for a in op.inputs(rng, x, -1))
        if op.name == "cross_entropy":
            actual = op.run(x, -1, *inputs)
        else:
            shape = (rows,) if op.reduces else x.shape
            out = result.place(np.full(shape, 7, dtype, order=order))
            actual = op.run(x, -1, *inputs, out=out)
        op.check(actual, x, -1, inputs, f"N={rows}")


@pytest.mark.parametrize("gap", [0, 3])
def test_groups_of_rows_of_every_length_stay_inside_their_memory(
    isa, dtype, elementwise_op, guard, rng, gap
):
    """As many rows as a vector has lanes are transposed at once, a few classes at a time."""
    rows = 6 * LANES[dtype] + 1
    memory, other, result = (guard(rows * (104 + gap) * 8) for _ in range(3))
    for n in [*range(1, 38), *range(60, 66), *range(101, 105)]:
        x = memory.place(np.asarray(rng.normal(0, 3, (rows, n + gap)), dtype))[:, gap:]
        inputs = elementwise_op.inputs(rng, x, -1)
        inputs = tuple(
            other.place(np.pad(a, [(0, 0)] * (a.ndim - 1) + [(gap, 0)]))[..., gap:] for a in inputs
        )
        whole = result.place(np.full((rows, n + gap), 7, dtype))
        elementwise_op.run(x, -1, *inputs, out=whole[:, gap:])
        elementwise_op.check(whole[:, gap:], x, -1, inputs, f"C={n}")
        assert (whole[:, :gap] == 7).all()


@pytest.mark.parametrize("classes", [3, 40, 60, 100, 200, 300])
def test_strided_out_leaves_the_gaps_alone(isa, dtype, elementwise_op, rng, classes):
    x = rng.normal(0, 3, (7, classes)).astype(dtype)
    inputs = elementwise_op.inputs(rng, x, -1)
    whole = np.full((14, 3 * classes), 7, dtype)
    out = whole[::2, 1::3]
    elementwise_op.check(elementwise_op.run(x, -1, *inputs, out=out), x, -1, inputs)
    gaps = np.ones(whole.shape, bool)
    gaps[::2, 1::3] = False
    assert (whole[gaps] == 7).all()


@pytest.mark.parametrize("classes", [3, 40, 60, 100, 200, 300])
def test_masked_rows_stay_inside_their_memory(isa, dtype, guard, rng, classes):
    memory, masks, result = guard(9 * classes * 8), guard(9 * classes), guard(9 * classes * 8)
    for rows in range(1, 10):
        x = memory.place(rng.normal(0, 3, (rows, classes)).astype(dtype))
        keep = masks.place(rng.random(x.shape) < 0.7)
        out = result.place(np.empty_like(x))
        fg.softmax(x, where=keep, out=out)
        exact = ref.softmax(x, where=keep)
        np.testing.assert_allclose(out, exact.astype(dtype), rtol=3 * np.finfo(dtype).eps, atol=0)


# Multiples of the lanes and of the masses that are added at once, and where the style changes.
MASS_LENGTHS = [*range(1, 10), *range(15, 19), *range(31, 36), 47, 48, 49, *range(63, 67)]
MASS_LENGTHS += [*range(127, 131), *range(143, 148), *range(159, 163), *range(191, 195), 209, 257]


@functools.cache
def mass_drawn(mass, case, kind, dtype, shape):
    z, t, v, kw = case.draw(np.random.default_rng(shape), shape, dtype)
    exact = mass.exact(kind, z, t, v, **kw)
    size = None if kind == "value" else mass.size(kind, z, t, v, **kw)
    return z, t, v, kw, exact, size


def check_guarded(mass, kind, drawn, guards, order, at):
    """Every operand and the result of its own between pages that nobody may touch."""
    z, t, v, kw, exact, size = drawn
    guards = iter(guards)

    def place(a):
        placed = next(guards).place(np.asarray(a, order=order if a.ndim > 1 else "C"), at)
        placed.flags.writeable = False
        return placed

    z, t, v = place(z), place(t), place(v)
    kw = {k: place(a) if isinstance(a, np.ndarray) else a for k, a in kw.items()}
    if kind == "value":
        actual = mass.run(kind, z, t, v, **kw)
    else:
        out = next(guards).place(np.full(z.shape, 7, z.dtype, order=order), at)
        actual = mass.run(kind, z, t, v, **kw, out=out)
        assert actual is out
    mass.assert_good(kind, actual, exact, size, f"{z.shape} {order} {at}")


@pytest.mark.parametrize("at", ["end", "start"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_row_length_with_options(isa, dtype, mass, mass_case, mass_kind, guard, order, at):
    guards = [guard(5 * 257 * 8) for _ in range(7)]
    for n in MASS_LENGTHS:
        drawn = mass_drawn(mass, mass_case, mass_kind, dtype, (5, n))
        check_guarded(mass, mass_kind, drawn, guards, order, at)


@pytest.mark.parametrize("order", ["C", "F"])
def test_every_number_of_rows_with_options(isa, dtype, mass, mass_case, mass_kind, guard, order):
    guards = [guard(33 * 17 * 8) for _ in range(7)]
    for rows in [*range(1, 10), 15, 16, 17, 31, 32, 33]:
        drawn = mass_drawn(mass, mass_case, mass_kind, dtype, (rows, 17 if rows < 5 else 3))
        check_guarded(mass, mass_kind, drawn, guards, order, "end")


@pytest.mark.parametrize("n", [3, 60, 200])
def test_strided_out_with_options_leaves_the_gaps_alone(isa, dtype, mass, mass_case, mass_kind, n):
    if mass_kind == "value":
        return
    z, t, v, kw, exact, size = mass_drawn(mass, mass_case, mass_kind, dtype, (5, n))
    whole = np.full((10, 3 * n), 7, dtype)
    out = whole[::2, 1::3]
    mass.run(mass_kind, z, t, v, **kw, out=out)
    mass.assert_good(mass_kind, out, exact, size)
    gaps = np.ones(whole.shape, bool)
    gaps[::2, 1::3] = False
    assert (whole[gaps] == 7).all()


@pytest.mark.parametrize("classes", [32768, 32769])
def test_very_long_strided_rows_with_options(isa, dtype, mass, mass_case, mass_kind, classes):
    """Up to 32768 classes a strided class axis is a tile; beyond it is copied row by row."""
    z, t, v, kw, exact, size = mass_drawn(mass, mass_case, mass_kind, dtype, (2, classes))
    for order in "CF":
        actual = mass.run(mass_kind, np.asarray(z, order=order), t, v, **kw)
        mass.assert_good(mass_kind, actual, exact, size, order)


@pytest.mark.parametrize(("rows", "classes"), [(1, 32769), (3, 32768), (17, 32769)])
def test_very_long_strided_rows(isa, dtype, op, rng, rows, classes, assert_ulps):
    """Up to 32768 classes a strided class axis is a tile; beyond it is copied row by row."""
    x = np.asarray(rng.normal(0, 3, (rows, classes)), dtype, order="F")
    inputs = op.inputs(rng, x, -1)
    flat = op.run(np.ascontiguousarray(x), -1, *inputs)
    strided = op.run(x, -1, *inputs)
    scale = None if op.scale is None else op.scale(x[:1], -1, *(a[:1] for a in inputs)).max()
    if scale is not None:
        scale = np.full(np.shape(flat), scale) if op.name.startswith("logsumexp") else None
    if op.name in ("softmax.vjp", "log_softmax.vjp", "log_softmax.jvp"):
        atol = 8 * np.finfo(dtype).eps * float(np.abs(flat).max())
        np.testing.assert_allclose(strided, flat, rtol=0, atol=atol)
    else:
        assert_ulps(strided, flat, 2 * op.bar, scale)
