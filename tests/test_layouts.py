"""Any strides, any axis, any number of dimensions: the numbers are those of the reference."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

import fastgrad as fg
from fastgrad import _reference as ref

# Five dimensions; the three-dimensional ones have rows long enough for either style.
SHAPES = [(7,), (60,), (200,), (3, 5), (2, 70), (4, 2, 3), (2, 193, 1), (3, 2, 50), (2, 3, 2, 4)]
SHAPES += [(2, 3, 2, 2, 3), (1, 4, 1, 1, 2)]


def c_order(a):
    return np.ascontiguousarray(a)


def fortran(a):
    return np.asfortranarray(a)


def middle_axis_innermost(a):
    order = sorted(range(a.ndim), key=lambda i: (i == a.ndim // 2, -i))
    return np.ascontiguousarray(a.transpose(order)).transpose(np.argsort(order))


def all_negative(a):
    flip = (slice(None, None, -1),) * a.ndim
    return np.ascontiguousarray(a[flip])[flip]


def last_negative(a):
    return np.ascontiguousarray(a[..., ::-1])[..., ::-1]


def stepped(a):
    big = np.full([2 * n for n in a.shape], 9, a.dtype)
    big[(slice(None, None, 2),) * a.ndim] = a
    return big[(slice(None, None, 2),) * a.ndim]


def padded_rows(a):
    big = np.full((*a.shape[:-1], a.shape[-1] + 3), 9, a.dtype)
    big[..., 1:-2] = a
    return big[..., 1:-2]


def big_endian(a):
    return a.astype(a.dtype.newbyteorder(">"))


def unaligned(a):
    raw = np.zeros(a.nbytes + 1, np.uint8)
    b = np.ndarray(a.shape, a.dtype, raw[1:].data)
    b[...] = a
    assert not b.flags.aligned
    return b


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


LAYOUTS = [
    c_order,
    fortran,
    middle_axis_innermost,
    all_negative,
    last_negative,
    stepped,
    padded_rows,
    big_endian,
    unaligned,
    read_only,
]
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda f: f.__name__)
# The last three are the border's affair, alike for every instruction set, and no place for `out`.
strides = pytest.mark.parametrize("layout", LAYOUTS[:-3], ids=lambda f: f.__name__)


@layouts
def test_layout_helpers_keep_the_numbers(layout, rng):
    a = rng.normal(size=(3, 4, 5))
    np.testing.assert_array_equal(layout(a), a)


@layouts
def test_every_layout_shape_and_axis(dtype, op, layout, rng):
    for shape in SHAPES:
        x = layout(rng.normal(0, 3, shape).astype(dtype))
        before = x.tobytes()
        for i in range(len(shape)):
            axis = i - len(shape) if i % 2 == 0 else i
            inputs = op.inputs(rng, x, axis)
            op.check(op.run(x, axis, *inputs), x, axis, inputs, f"{shape}, axis {axis}")
        assert x.tobytes() == before


@strides
def test_every_layout_on_every_instruction_set(isa, dtype, op, layout, rng):
    for shape, axis in itertools.product([(3, 40, 2), (2, 1, 200), (35, 3, 1)], range(3)):
        x = layout(rng.normal(0, 3, shape).astype(dtype))
        inputs = tuple(layout(a) if a.shape == shape else a for a in op.inputs(rng, x, axis))
        op.check(op.run(x, axis, *inputs), x, axis, inputs, f"{shape}, axis {axis}")


@functools.cache
def mass_drawn(mass, case, kind, dtype, shape, axis):
    z, t, v, kw = case.draw(np.random.default_rng([*shape, axis]), shape, dtype, axis)
    exact = mass.exact(kind, z, t, v, **kw)
    size = None if kind == "value" else mass.size(kind, z, t, v, **kw)
    return z, t, v, kw, exact, size


@strides
def test_every_layout_with_options(isa, dtype, mass, mass_case, mass_kind, layout):
    """Every operand in the layout, then the logits alone, then every operand but the logits."""
    for shape, axis in itertools.product([(3, 7, 2), (2, 1, 150), (19, 3)], range(3)):
        if axis >= len(shape):
            continue
        z, t, v, kw, exact, size = mass_drawn(mass, mass_case, mass_kind, dtype, shape, axis)
        changed = {k: layout(a) if isinstance(a, np.ndarray) else a for k, a in kw.items()}
        what = f"{shape}, axis {axis}"
        for args, options in (
            ((layout(z), layout(t), layout(v)), changed),
            ((layout(z), t, v), kw),
            ((z, layout(t), layout(v)), changed),
        ):
            before = [a.tobytes() for a in args]
            actual = mass.run(mass_kind, *args, **options)
            mass.assert_good(mass_kind, actual, exact, size, what)
            if mass_kind != "value":
                out = layout(np.zeros_like(z))
                assert mass.run(mass_kind, *args, **options, out=out) is out
                np.testing.assert_array_equal(out, actual, what)
            assert [a.tobytes() for a in args] == before


@layouts
def test_what_the_border_copies_with_options(dtype, mass, mass_case, mass_kind, layout):
    """Byte-swapped, unaligned and read-only operands too; no place for `out`."""
    z, t, v, kw, exact, size = mass_drawn(mass, mass_case, mass_kind, dtype, (3, 7, 2), 1)
    one_byte = layout is unaligned  # a mask is always aligned
    kw = {
        k: layout(a) if isinstance(a, np.ndarray) and not (one_byte and k == "where") else a
        for k, a in kw.items()
    }
    actual = mass.run(mass_kind, layout(z), layout(t), layout(v), **kw)
    mass.assert_good(mass_kind, actual, exact, size)


@pytest.mark.parametrize("stretched", [(0,), (2,), (0, 2)], ids=str)
def test_zero_strides_with_options(isa, dtype, rng, mass, mass_kind, stretched):
    """Broadcast rows, in logits, probabilities, vectors, masks and weights."""
    shape = (3, 20, 4)
    small = tuple(1 if i in stretched else n for i, n in enumerate(shape))
    z, t, v = (np.broadcast_to(rng.random(small).astype(dtype), shape) for _ in range(3))
    keep = np.broadcast_to(rng.random(small) < 0.7, shape)
    s = np.broadcast_to(rng.random(small[:1] + small[2:]).astype(dtype), (3, 4))
    w = np.broadcast_to(dtype([0.5]), (20,))
    y = np.broadcast_to(np.where(keep.any(1), keep.argmax(1), 0)[:1, :1], (3, 4))
    g = None if mass_kind == "value" else np.broadcast_to(dtype([[-2.0]]), (3, 4))
    for target, mask in (
        (np.where(keep, t, 0).astype(dtype), keep),
        (y, keep[:1, :, :1]),
        (y, None),
    ):
        kw = {"axis": 1, "weight": w, "sample_weight": s, "where": mask, "label_smoothing": 0.1}
        kw |= {} if g is None else {"grad_output": g}
        mass.check(mass_kind, mass.run(mass_kind, z, target, v, **kw), z, target, v, **kw)
        full = {k: a.copy() if isinstance(a, np.ndarray) else a for k, a in kw.items()}
        actual = mass.run(mass_kind, z.copy(), target.copy(), v.copy(), **full)
        mass.check(mass_kind, actual, z, target, v, **kw)


def test_negative_axes_count_from_the_end_with_options(dtype, rng, mass, mass_case, mass_kind):
    for axis in range(3):
        z, t, v, kw = mass_case.draw(rng, (3, 4, 5), dtype, axis)
        expected = mass.run(mass_kind, z, t, v, **kw)
        actual = mass.run(mass_kind, z, t, v, **kw | {"axis": axis - 3})
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_derivatives_keep_the_memory_order_of_the_logits(dtype, mass, mass_case, mass_kind, order):
    if mass_kind == "value":
        return
    z, t, v, kw, *_ = mass_drawn(mass, mass_case, mass_kind, dtype, (3, 7, 2), 1)
    z = np.ascontiguousarray(z.transpose(order)).transpose(np.argsort(order))
    y = mass.run(mass_kind, z, t, v, **kw)
    assert y.strides == z.strides
    assert not np.shares_memory(y, z)


@pytest.mark.parametrize(
    "stretched", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)], ids=str
)
def test_zero_strides(isa, dtype, op, rng, stretched):
    shape = (3, 50, 4)
    small = tuple(1 if i in stretched else n for i, n in enumerate(shape))
    x = np.broadcast_to(rng.normal(0, 3, small).astype(dtype), shape)
    for axis in range(3):
        inputs = op.inputs(rng, x, axis)
        op.check(op.run(x, axis, *inputs), x, axis, inputs, f"axis {axis}")


def test_negative_axes_count_from_the_end(dtype, op, rng):
    x = rng.normal(0, 3, (3, 4, 5)).astype(dtype)
    for axis in range(3):
        inputs = op.inputs(rng, x, axis)
        np.testing.assert_array_equal(op.run(x, axis, *inputs), op.run(x, axis - 3, *inputs))


def test_zero_strided_cotangents(isa, dtype, rng):
    x = rng.normal(0, 3, (5, 60)).astype(dtype)
    g = np.broadcast_to(dtype([[0.25]]), x.shape)
    for f in (fg.softmax.vjp, fg.log_softmax.vjp, fg.log_softmax.jvp):
        np.testing.assert_array_equal(f(x, g), f(x, g.copy()))


def test_overlapping_windows_are_read(isa, dtype, rng):
    series = rng.normal(0, 3, 100).astype(dtype)
    x = as_strided(series, (60, 40), (series.itemsize, series.itemsize))
    np.testing.assert_array_equal(fg.softmax(x), fg.softmax(x.copy()))


@pytest.mark.parametrize("axis", [0, -1])
def test_0d_counts_as_one_element(isa, dtype, op, rng, axis):
    x = np.array(1.5, dtype)
    inputs = op.inputs(rng, x, axis)
    actual = op.run(x, axis, *inputs)
    assert np.shape(actual) == ()
    op.check(actual, x, axis, inputs)


def test_0d_results_are_numpy_scalars(dtype):
    for f in (fg.softmax, fg.log_softmax, fg.logsumexp):
        assert type(f(dtype(1.5))) is dtype


def test_0d_out_is_filled_and_returned(dtype, elementwise_op, rng):
    x, out = np.array(1.5, dtype), np.full((), 9, dtype)
    inputs = elementwise_op.inputs(rng, x, -1)
    assert elementwise_op.run(x, -1, *inputs, out=out) is out
    elementwise_op.check(out, x, -1, inputs)


# ---- several axes -------------------------------------------------------------------------------

SEVERAL = [None, (), (0,), (1, 0), (0, 2), (-1, 0), (1, 2), (0, 1, 2), [0, 2]]


def as_tuple(axis):
    """The reference takes None and any non-empty sequence."""
    return axis if axis is None else tuple(axis)


@strides
@pytest.mark.parametrize("axis", [a for a in SEVERAL if a != ()], ids=str)
@pytest.mark.parametrize("f", [fg.softmax, fg.log_softmax], ids=lambda f: f.__name__)
def test_several_axes(dtype, f, axis, layout, rng, assert_ulps):
    x = layout(rng.normal(0, 3, (3, 4, 5)).astype(dtype))
    assert_ulps(f(x, axis), getattr(ref, f.__name__)(x, as_tuple(axis)), 4)


@strides
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [a for a in SEVERAL if a != ()], ids=str)
def test_logsumexp_over_several_axes(dtype, axis, keepdims, layout, rng, assert_ulps):
    x = layout(rng.normal(0, 3, (3, 4, 5)).astype(dtype))
    expected = ref.logsumexp(x, as_tuple(axis), keepdims=keepdims)
    scale = np.maximum(np.abs(expected), np.abs(x).max())
    assert_ulps(fg.logsumexp(x, axis, keepdims=keepdims), expected, 2, scale)


@pytest.mark.parametrize("axis", [a for a in SEVERAL if a != ()], ids=str)
@pytest.mark.parametrize("f", [fg.softmax, fg.log_softmax], ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", ["vjp", "jvp"])
def test_derivatives_over_several_axes(dtype, f, kind, axis, rng, assert_ulps):
    x, g = rng.normal(0, 3, (2, 3, 4, 5)).astype(dtype)
    expected = getattr(ref, f"{f.__name__}_{kind}")(x, g, as_tuple(axis))
    assert_ulps(getattr(f, kind)(x, g, axis), expected, 8, np.abs(g).sum() + 0 * x)


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [a for a in SEVERAL if a != ()], ids=str)
def test_derivatives_of_logsumexp_over_several_axes(dtype, axis, keepdims, rng, assert_ulps):
    x, v = rng.normal(0, 3, (2, 3, 4, 5)).astype(dtype)
    log = fg.logsumexp(x, axis, keepdims=keepdims)
    g = np.asarray(rng.normal(size=np.shape(log)).astype(dtype))
    pulled = ref.logsumexp_vjp(x, g, as_tuple(axis), keepdims=keepdims)
    assert_ulps(fg.logsumexp.vjp(x, g, axis, keepdims=keepdims), pulled, 4)
    pushed = ref.logsumexp_jvp(x, v, as_tuple(axis), keepdims=keepdims)
    actual = fg.logsumexp.jvp(x, v, axis, keepdims=keepdims)
    assert_ulps(actual, pushed, 8, np.abs(v).max() + 0 * np.abs(pushed))


@pytest.mark.parametrize("axis", [a for a in SEVERAL if a != ()], ids=str)
def test_several_axes_into_out_that_cannot_be_merged(dtype, axis, rng):
    x = rng.normal(0, 3, (3, 4, 5)).astype(dtype)
    out = np.full((5, 6, 4), 9, dtype).transpose(1, 2, 0)[::2]
    assert fg.softmax(x, axis, out=out) is out
    np.testing.assert_allclose(out, fg.softmax(x, axis), rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("axis", [a for a in SEVERAL if a != ()], ids=str)
def test_several_axes_in_place(dtype, axis, rng):
    x = rng.normal(0, 3, (4, 5, 3)).astype(dtype).transpose(2, 0, 1)
    expected = fg.softmax(x, axis)
    assert fg.softmax(x, axis, out=x) is x
    np.testing.assert_array_equal(x, expected)


def test_no_axis_makes_every_element_a_row(dtype, rng, assert_ulps):
    x = rng.normal(size=(3, 4)).astype(dtype)
    assert_ulps(fg.softmax(x, ()), np.ones_like(x), 2.5)
    np.testing.assert_array_equal(fg.logsumexp(x, ()), x)


# ---- memory order of results --------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_results_keep_the_memory_order_of_x(dtype, elementwise_op, rng, order):
    x = rng.normal(size=(3, 4, 5)).astype(dtype)
    x = np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))
    for axis in range(3):
        y = elementwise_op.run(x, axis, *elementwise_op.inputs(rng, x, axis))
        assert y.strides == x.strides


def test_results_own_their_memory(dtype, elementwise_op, rng):
    x = rng.normal(size=(3, 4)).astype(dtype)
    y = elementwise_op.run(x, -1, *elementwise_op.inputs(rng, x, -1))
    assert not np.shares_memory(x, y)
    assert y.flags.writeable


# ---- out ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
@strides
def test_out_of_another_layout(isa, dtype, elementwise_op, layout, axis, rng):
    x = rng.normal(0, 3, (3, 50, 4)).astype(dtype)
    inputs = elementwise_op.inputs(rng, x, axis)
    out = layout(np.zeros_like(x))
    assert elementwise_op.run(x, axis, *inputs, out=out) is out
    elementwise_op.check(out, x, axis, inputs)


@pytest.mark.parametrize("axis", [0, 1, 2])
@strides
def test_out_may_be_x_itself(isa, dtype, layout, axis, rng):
    a = rng.normal(0, 3, (3, 50, 4)).astype(dtype)
    for f in (fg.softmax, fg.log_softmax):
        x = layout(a)
        expected = f(x, axis)
        assert f(x, axis, out=x) is x
        np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("shape", [(5, 3), (5, 60), (5, 300), (700, 3)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_gradient_may_overwrite_the_logits(isa, dtype, shape, order, rng):
    x = np.asarray(rng.normal(0, 3, shape), dtype, order=order)
    y = rng.integers(0, shape[1], shape[0])
    value, grad = fg.cross_entropy.value_and_grad(x, y)
    assert fg.cross_entropy.value_and_grad(x, y, out=x) == (value, pytest.approx(grad, abs=0))
    np.testing.assert_array_equal(x, grad)


@pytest.mark.parametrize("shape", [(5, 3), (5, 60), (5, 300)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    "f", [fg.softmax.vjp, fg.softmax.jvp, fg.log_softmax.vjp, fg.log_softmax.jvp], ids=str
)
def test_derivative_may_overwrite_its_vector(isa, dtype, f, shape, order, rng):
    x, g = (np.asarray(rng.normal(0, 3, shape), dtype, order=order) for _ in range(2))
    expected = f(x, g)
    assert f(x, g, out=g) is g
    np.testing.assert_array_equal(g, expected)


@pytest.mark.parametrize("b", [None, 2.0])
def test_gradient_of_logsumexp_may_overwrite_x(isa, dtype, b, rng):
    x = rng.normal(0, 3, (5, 60)).astype(dtype)
    expected = fg.logsumexp.vjp(x, np.ones(5, dtype), b=b)
    assert fg.logsumexp.vjp(x, np.ones(5, dtype), b=b, out=x) is x
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [0, 1, (0, 2), None], ids=str)
@pytest.mark.parametrize("b", [None, 2.0])
def test_logsumexp_into_out(isa, dtype, axis, keepdims, b, rng):
    x = rng.normal(0, 3, (3, 5, 4)).astype(dtype)
    expected = fg.logsumexp(x, axis, keepdims=keepdims, b=b)
    out = np.full(np.shape(expected), 9, dtype)
    assert fg.logsumexp(x, axis, keepdims=keepdims, b=b, out=out) is out
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [0, 1, (0, 2), None], ids=str)
def test_tangent_of_logsumexp_into_out(isa, dtype, axis, keepdims, rng):
    x, v = rng.normal(0, 3, (2, 3, 5, 4)).astype(dtype)
    expected = fg.logsumexp.jvp(x, v, axis, keepdims=keepdims)
    out = np.full(np.shape(expected), 9, dtype)
    assert fg.logsumexp.jvp(x, v, axis, keepdims=keepdims, out=out) is out
    np.testing.assert_array_equal(out, expected)


def test_logsumexp_into_a_strided_out(isa, dtype, rng):
    x = rng.normal(0, 3, (40, 7)).astype(dtype)
    big = np.full(120, 9, dtype)
    fg.logsumexp(x, out=big[1::3])
    np.testing.assert_array_equal(big[1::3], fg.logsumexp(x))
    assert (np.delete(big, np.s_[1::3]) == 9).all()


# ---- empty --------------------------------------------------------------------------------------

EMPTY = [(0,), (0, 3), (3, 0), (0, 0), (2, 0, 3), (2, 3, 0)]


@pytest.mark.parametrize("shape", EMPTY, ids=str)
@pytest.mark.parametrize("f", [fg.softmax, fg.log_softmax], ids=lambda f: f.__name__)
def test_empty_input_gives_an_empty_result(dtype, f, shape):
    x = np.empty(shape, dtype)
    for axis in [*range(-len(shape), len(shape)), None]:
        y = f(x, axis)
        assert y.shape == shape
        assert y.dtype == dtype
        assert f.vjp(x, x, axis).shape == shape
        assert f.jvp(x, x, axis).shape == shape


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("shape", EMPTY, ids=str)
@pytest.mark.parametrize("b", [None, 2.0])
def test_logsumexp_of_nothing(dtype, shape, keepdims, b):
    x = np.empty(shape, dtype)
    for axis in [*range(-len(shape), len(shape)), None]:
        log, sign = fg.logsumexp(x, axis, keepdims=keepdims, return_sign=True, b=b)
        expected = np.sum(x, axis, keepdims=keepdims)
        assert np.shape(log) == np.shape(sign) == expected.shape
        assert log.dtype == sign.dtype == dtype
        assert np.all(log == -np.inf)
        assert np.all(sign == 0)
        tangent = fg.logsumexp.jvp(x, x, axis, keepdims=keepdims, b=b)
        np.testing.assert_array_equal(tangent, expected)


# ---- what is taken for an array -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["?", "b", "B", "h", "H", "i", "I", "l", "L", "q", "Q"])
def test_integers_and_bools_become_float64(kind):
    x = np.array([[0, 1, 1], [1, 0, 1]]).astype(kind)
    y = fg.softmax(x)
    assert y.dtype == np.float64
    np.testing.assert_array_equal(y, fg.softmax(x.astype(np.float64)))


@pytest.mark.parametrize("f", [fg.softmax, fg.log_softmax, fg.logsumexp], ids=lambda f: f.__name__)
def test_lists_are_taken(f):
    np.testing.assert_array_equal(f([[0, 1], [2, 3]]), f(np.array([[0.0, 1], [2, 3]])))


def test_subclasses_give_plain_arrays():
    class Mine(np.ndarray):
        pass

    assert type(fg.softmax(np.zeros((2, 2)).view(Mine))) is np.ndarray


def test_cotangents_are_cast_to_the_dtype_of_x():
    x = np.zeros(4, np.float32)
    assert fg.softmax.vjp(x, [1, 0, 0, 0]).dtype == np.float32


def test_factors_are_cast_to_the_dtype_of_x():
    assert fg.logsumexp(np.zeros(4, np.float32), b=[1.0, 2, 3, 4]).dtype == np.float32


def test_casting_a_huge_cotangent_does_not_warn():
    x, g = np.zeros(2, np.float32), np.array([1e300, 0])
    assert not np.isfinite(fg.log_softmax.vjp(x, g)).any()


def test_casting_a_huge_factor_does_not_warn():
    assert fg.logsumexp(np.zeros(2, np.float32), b=[1e300, 1]) == np.inf
