"""The same bits: over threads, batches, `out`, stores; NUMERICS.md and promise 4 of DESIGN.md."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import fastgrad as fg
from fastgrad._kernels import rows as _rows

# Without OpenMP there is one thread, and the claims hold by themselves.
THREADS = [1, 2, 3, 4] if _rows.build_info()[1] else [1]
layouts = pytest.mark.parametrize("layout", ["C", "F"])


def bits(a):
    return np.ascontiguousarray(a).tobytes()


# (rows, classes): at least four times 2**16 elements, where the fourth thread joins. Rows are no
# multiple of anything, and more than one block of the sum (4096) where they are short.
LARGE = [(30011, 10), (5003, 60), (1501, 250), (7, 40009)]


@layouts
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_results_do_not_depend_on_the_number_of_threads(dtype, op, rng, shape, layout, on_threads):
    x = np.asarray(rng.normal(0, 3, shape), dtype, order=layout)
    inputs = op.inputs(rng, x, -1)
    results = set()
    for n in THREADS:
        with on_threads(n):
            results.add(bits(op.run(x, -1, *inputs)))
    assert len(results) == 1


@layouts
@pytest.mark.parametrize("marker", [-100, 0])
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_reduced_loss_does_not_depend_on_threads(
    isa, dtype, rng, shape, marker, layout, on_threads
):
    # Losses from 1e-20 to 1e4: no order of adding them is exact.
    spread = 10 ** rng.uniform(-1, 4, (shape[0], 1))
    x = np.asarray(rng.normal(size=shape) * spread, dtype, order=layout)
    y = x.argmax(1)
    y[::7] = 0
    values = set()
    for n in THREADS:
        with on_threads(n):
            values.add(fg.cross_entropy(x, y, ignore_index=marker))
            values.add(fg.cross_entropy.value_and_grad(x, y, ignore_index=marker)[0])
    assert len(values) == 1


def test_a_sum_over_several_slabs_does_not_depend_on_threads(dtype, rng, on_threads):
    """A slab is 2^23 elements or 2^16 rows for each thread; their edges move with the threads."""
    small = rng.normal(0, 3, (3, 1)).astype(dtype)
    tall = np.broadcast_to(small[:1], (200003, 2))
    wide = np.broadcast_to(small, (700, 3, 10007)).reshape(2100, 10007)[:2099]
    for x in (tall, wide):
        y = np.arange(len(x)) % 2
        values = set()
        for n in THREADS:
            with on_threads(n):
                values.add(fg.cross_entropy(x, y, reduction="sum"))
        assert len(values) == 1


@layouts
@pytest.mark.parametrize("classes", [10, 60, 250])
def test_rows_do_not_depend_on_their_neighbours(isa, dtype, op, rng, classes, layout):
    x = np.asarray(rng.normal(0, 3, (70, classes)), dtype, order=layout)
    inputs = op.inputs(rng, x, -1)
    whole = op.run(x, -1, *inputs)
    for begin, end in [(0, 1), (0, 16), (1, 18), (15, 70), (69, 70), (33, 66)]:
        part = op.run(x[begin:end], -1, *(a[begin:end] for a in inputs))
        assert bits(part) == bits(whole[begin:end]), (begin, end)


def bits_of_numbers(a):
    """A NaN's sign is nobody's promise."""
    a = np.array(a)
    a[np.isnan(a)] = np.nan
    return bits(a)


def special_rows(x):
    """Some rows with what makes a kernel leave its usual way."""
    x[5::41, 0] = np.nan
    x[6::41, -1] = np.inf
    x[7::41] = -np.inf
    x[8::41] += 20_000
    x[9::41, x.shape[1] // 2] = 90
    return x


@pytest.mark.parametrize(
    ("rows", "classes"), [(650, 2), (650, 3), (650, 4), (650, 21), (300, 90), (230, 250)]
)
def test_rows_of_many_tiles_have_the_bits_of_few(isa, dtype, op, rng, rows, classes):
    """Three whole tiles are under way at once; calls of 20 rows have not as many."""
    x = np.asfortranarray(special_rows(rng.normal(0, 3, (rows, classes))), dtype)
    inputs = op.inputs(rng, x, -1)
    whole = op.run(x, -1, *inputs)
    for begin in range(0, rows, 20):
        few = slice(begin, begin + 20)
        part = op.run(x[few], -1, *(a[few] for a in inputs))
        assert bits_of_numbers(part) == bits_of_numbers(whole[few]), begin


@pytest.mark.parametrize("classes", [3, 40, 250, 2048, 2049])
@pytest.mark.parametrize("shift", [0, 1])
def test_many_tiles_between_odd_addresses_and_in_place(isa, dtype, rng, classes, shift):
    rows = 650 if classes < 100 else 230
    x = special_rows(rng.normal(0, 3, (rows, classes))).astype(dtype)
    memory = np.full((classes, rows + 2 * shift), 9, dtype)
    inside = memory[:, shift : shift + rows].T
    inside[:] = x
    wanted = np.concatenate([fg.softmax(inside[i : i + 20]) for i in range(0, rows, 20)])
    out = np.full_like(memory, 9)
    fg.softmax(inside, out=out[:, shift : shift + rows].T)
    fg.softmax(inside, out=inside)
    for result in (out, memory):
        assert bits_of_numbers(result[:, shift : shift + rows].T) == bits_of_numbers(wanted)
        assert (result[:, :shift] == 9).all()
        assert (result[:, shift + rows :] == 9).all()


@pytest.mark.parametrize("classes", [3, 21, 250])
def test_ignored_targets_in_many_tiles(isa, dtype, rng, classes):
    x = np.asfortranarray(special_rows(rng.normal(0, 3, (650, classes))), dtype)
    y = rng.integers(-1, classes, 650)
    options = {"ignore_index": -1, "reduction": "none"}
    values, grads = fg.cross_entropy.value_and_grad(x, y, **options)
    assert bits_of_numbers(fg.cross_entropy(x, y, **options)) == bits_of_numbers(values)
    for begin in range(0, 650, 20):
        few = slice(begin, begin + 20)
        value, grad = fg.cross_entropy.value_and_grad(x[few], y[few], **options)
        assert bits_of_numbers(value) == bits_of_numbers(values[few])
        assert bits_of_numbers(grad) == bits_of_numbers(grads[few])
    assert (values[y < 0] == 0).all()
    assert (grads[y < 0] == 0).all()


@layouts
@pytest.mark.parametrize("classes", [10, 60, 250])
def test_rows_do_not_depend_on_their_order(isa, dtype, op, rng, classes, layout):
    x = np.asarray(rng.normal(0, 3, (70, classes)), dtype, order=layout)
    inputs = op.inputs(rng, x, -1)
    order = rng.permutation(70)
    shuffled = np.asarray(x[order], order=layout)
    actual = op.run(shuffled, -1, *(np.asarray(a[order], order=layout) for a in inputs))
    assert bits(actual) == bits(op.run(x, -1, *inputs)[order])


@layouts
@pytest.mark.parametrize("classes", [10, 60, 250])
def test_equal_rows_have_equal_results(isa, dtype, op, rng, classes, layout):
    row = rng.normal(0, 3, classes).astype(dtype)
    x = np.asarray(np.tile(row, (37, 1)), order=layout)
    inputs = tuple(
        np.asarray(np.broadcast_to(a[:1], a.shape), order=layout) for a in op.inputs(rng, x, -1)
    )
    y = np.asarray(op.run(x, -1, *inputs))
    assert (y == y[:1]).all()


@layouts
@pytest.mark.parametrize("classes", [10, 60, 250])
def test_out_changes_no_bit(isa, dtype, elementwise_op, rng, classes, layout):
    x = np.asarray(rng.normal(0, 3, (70, classes)), dtype, order=layout)
    inputs = elementwise_op.inputs(rng, x, -1)
    out = np.full_like(x, 9)
    elementwise_op.run(x, -1, *inputs, out=out)
    assert bits(out) == bits(elementwise_op.run(x, -1, *inputs))


@pytest.mark.parametrize("classes", [10, 250])
def test_strides_of_out_change_no_bit(isa, dtype, elementwise_op, rng, classes):
    """Derivatives keep probabilities in `out`, and the kernels choose their style by layout."""
    x = rng.normal(0, 3, (70, classes)).astype(dtype)
    inputs = elementwise_op.inputs(rng, x, -1)
    wanted = elementwise_op.run(x, -1, *inputs)
    for out in (np.full((70, 2 * classes), 9, dtype)[:, ::2], np.full(x.shape[::-1], 9, dtype).T):
        elementwise_op.run(x, -1, *inputs, out=out)
        assert bits(out) == bits(wanted)


STREAM_BYTES = 8 << 20  # from here on results are stored past the caches


def test_the_results_here_are_large_enough_to_be_streamed():
    """Should the kernels stream from another size on, the tests below would see nothing."""
    source = Path(__file__).parents[1] / "fastgrad" / "_kernels" / "rows.pyx"
    assert re.search(r"^    STREAM_BYTES = 8 << 20\b", source.read_text(), re.MULTILINE)


def repeated(a, times, layout="C"):
    return np.asarray(np.tile(a, (times, *[1] * (a.ndim - 1))), order=layout)


def some_rows(classes, dtype, aligned):
    """As many as 1 MiB holds: an odd number, or one with which columns begin like cache lines."""
    rows = (1 << 20) // (classes * np.dtype(dtype).itemsize)
    return max(rows & ~15, 16) if aligned else rows | 1


@pytest.mark.parametrize(
    ("classes", "layout", "aligned"),
    [
        *((classes, "C", False) for classes in (10, 57, 250, 40009)),
        *((classes, "F", aligned) for classes in (10, 57) for aligned in (False, True)),
    ],
)
def test_results_streamed_past_the_caches_are_the_same(
    isa, dtype, streamed_op, rng, classes, layout, aligned
):
    item = np.dtype(dtype).itemsize
    rows = some_rows(classes, dtype, aligned)
    times = -(-(9 << 20) // (rows * classes * item))
    small = np.asarray(rng.normal(0, 3, (rows, classes)), dtype, order=layout)
    inputs = streamed_op.inputs(rng, small, -1)
    stored = streamed_op.run(small, -1, *inputs)
    x = repeated(small, times, layout)
    assert x.nbytes > STREAM_BYTES
    streamed = streamed_op.run(x, -1, *(repeated(a, times) for a in inputs))
    assert (streamed.reshape(times, rows, classes) == stored).all()


@layouts
@pytest.mark.parametrize("shift", [1, 7])
@pytest.mark.parametrize("classes", [57, 1999, 30_000])
@pytest.mark.parametrize("aligned", [False, True])
def test_streaming_to_odd_addresses(isa, dtype, rng, classes, shift, layout, aligned):
    """Streamed stores want whole aligned lines; a row's end waits for the next to fill its line."""
    rows = some_rows(classes, dtype, aligned)
    small = np.asarray(rng.normal(0, 3, (rows, classes)), dtype, order=layout)
    x = repeated(small, 10, layout)
    memory = np.full(x.size + 2 * shift, 9, dtype)
    out = memory[shift : shift + x.size].reshape(x.shape if layout == "C" else x.shape[::-1])
    out = out if layout == "C" else out.T
    fg.softmax(x, out=out)
    assert (out.reshape(10, rows, classes) == fg.softmax(small)).all()
    assert (memory[:shift] == 9).all()
    assert (memory[shift + x.size :] == 9).all()


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "cross_entropy.grad", "hinge"])
@pytest.mark.parametrize("gap", [0, 1, 16, 1000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_rows_that_share_a_line_when_streamed(isa, dtype, rng, name, gap):
    """The end of a row waits for the next one; not if that is ignored, or lies elsewhere."""
    classes, rows = 1000 - gap % 3, (18 << 20) // (1000 * np.dtype(dtype).itemsize)
    x = np.asarray(rng.normal(0, 3, (rows, classes)), dtype)
    y = rng.integers(0, classes, rows)
    y[rng.integers(0, rows, rows // 5)] = -1
    y[[0, 1, 5, -1]] = -1
    y[[6, 7]] = 3

    def run(rows, out=None):
        if name == "hinge":
            return fg.multiclass_hinge.grad(
                x[rows], y[rows], ignore_index=-1, reduction="sum", out=out
            )
        if name == "cross_entropy.grad":
            return fg.cross_entropy.grad(
                x[rows], y[rows], ignore_index=-1, reduction="sum", out=out
            )
        return getattr(fg, name)(x[rows], out=out)

    memory = np.full((rows, classes + gap), 9, dtype)
    out = memory[:, :classes]
    run(slice(None), out)
    assert out.nbytes > STREAM_BYTES
    for begin in range(0, rows, 999):  # a few at a time: stored as usual
        part = slice(begin, begin + 999)
        assert bits(out[part]) == bits(run(part))
    assert (memory[:, classes:] == 9).all()
    if name != "hinge" and dtype != np.float16 and gap == 0:
        wanted = bits(out)
        assert bits(run(slice(None), x)) == wanted  # in place


@layouts
@pytest.mark.parametrize("classes", [10, 60, 250])
def test_value_at_once_with_the_gradient_has_the_same_bits(isa, dtype, rng, classes, layout):
    x = np.asarray(rng.normal(0, 3, (5003, classes)), dtype, order=layout)
    y = rng.integers(0, classes, 5003)
    for reduction in ("mean", "sum", "none"):
        value, grad = fg.cross_entropy.value_and_grad(x, y, reduction=reduction)
        assert bits(value) == bits(fg.cross_entropy(x, y, reduction=reduction))
        assert bits(grad) == bits(fg.cross_entropy.grad(x, y, reduction=reduction))


def test_the_shortest_path_has_the_bits_of_the_general_one(isa, dtype, rng):
    """Plain calls skip the border; with where=True, out= or int32 targets they do not."""
    x = rng.normal(0, 3, (40, 60)).astype(dtype)
    for f in (fg.softmax, fg.log_softmax):
        assert bits(f(x)) == bits(f(x, out=np.empty_like(x))) == bits(f(x, 1, temperature=1))
    y = rng.integers(0, 60, 40)
    value, grad = fg.cross_entropy.value_and_grad(x, y)
    again, out = fg.cross_entropy.value_and_grad(x, y.astype("i"), out=np.empty_like(x))
    assert (value, bits(grad)) == (again, bits(out))
    assert bits(fg.cross_entropy.grad(x, y)) == bits(fg.cross_entropy.grad(x, y.astype("i")))
    for f in (fg.cross_entropy, fg.multiclass_hinge):
        general = f.grad(x, y, grad_output=1.0)
        assert bits(f.grad(x, y)) == bits(f.grad(x, y, out=np.empty_like(x))) == bits(general)


def test_repeated_calls_have_the_same_bits(isa, dtype, op, rng):
    x = rng.normal(0, 3, (700, 60)).astype(dtype)
    inputs = op.inputs(rng, x, -1)
    assert len({bits(op.run(x, -1, *inputs)) for _ in range(5)}) == 1


def test_batches_of_several_dimensions_have_the_bits_of_flat_ones(isa, dtype, op, rng):
    x = rng.normal(0, 3, (4, 5, 6, 60)).astype(dtype)
    inputs = op.inputs(rng, x, -1)
    flat = op.run(x.reshape(120, 60), -1, *(a.reshape(120, *a.shape[3:]) for a in inputs))
    assert bits(op.run(x, -1, *inputs)) == bits(flat)


# ---- cross-entropy with options -----------------------------------------------------------------


def rows_of(kw, pick):
    """The options of some rows: weights of rows and masks are picked from, class weights not."""
    picked = {k: kw[k][pick] for k in ("sample_weight", "where", "grad_output") if k in kw}
    return kw | picked


@pytest.mark.parametrize("shape", [(30011, 10), (1501, 250)], ids=str)
def test_options_do_not_depend_on_the_number_of_threads(
    dtype, mass, mass_case, mass_kind, shape, on_threads
):
    z, t, v, kw = mass_case.draw(np.random.default_rng(1), shape, dtype)
    for layout in "CF":
        x = np.asarray(z, order=layout)
        results = set()
        for n in THREADS:
            with on_threads(n):
                results.add(bits(mass.run(mass_kind, x, t, v, **kw)))
        assert len(results) == 1


@pytest.mark.parametrize("shape", [(140003, 4), (9001, 150)], ids=str)
def test_reduced_losses_with_options_do_not_depend_on_threads(
    isa, dtype, mass_case, shape, on_threads
):
    """Nor do the divisor and the factors of more rows than a slab has (65536)."""
    z, t, _, kw = mass_case.draw(np.random.default_rng(2), shape, dtype)
    z[np.isinf(z)] = -3  # an infinite loss would hide the others
    results = set()
    for n in THREADS:
        with on_threads(n):
            value = fg.cross_entropy(z, t, **kw)
            again, grad = fg.cross_entropy.value_and_grad(z, t, **kw)
            assert np.isfinite(value)
            assert again == value
            results.add((value, fg.cross_entropy(z, t, **kw, reduction="sum"), bits(grad)))
    assert len(results) == 1


def test_a_large_batch_with_weights_is_the_sum_of_its_rows(isa, dtype, mass, mass_case):
    """Over slabs of 65536 rows, whose weights, targets and values go through one buffer."""
    shape = (140003, 3)
    z, t, v, kw = mass_case.draw(np.random.default_rng(3), shape, dtype)
    z[np.isinf(z)] = -3
    each = mass.run("value", z, t, v, **kw).astype(np.float64)
    value = fg.cross_entropy(z, t, **kw, reduction="sum")
    # The rows are the same; a block of 4096 is added in float64, the blocks in two words.
    np.testing.assert_allclose(value, each.sum(dtype=np.longdouble), rtol=4096 * 2.0**-53)
    g = np.random.default_rng(4).normal(size=len(z)).astype(dtype)
    grad = mass.run("grad", z, t, v, **kw, grad_output=g)
    for pick in (np.s_[:50], np.s_[65500:65600], np.s_[131000:131100], np.s_[-50:]):
        part = rows_of(kw | {"grad_output": g}, pick)
        assert bits(mass.run("grad", z[pick], t[pick], v[pick], **part)) == bits(grad[pick])


@layouts
@pytest.mark.parametrize("classes", [10, 60, 250])
def test_rows_with_options_do_not_depend_on_their_neighbours(
    isa, dtype, mass, mass_case, mass_kind, classes, layout
):
    def run(pick):
        return mass.run(mass_kind, x[pick], target[pick], u[pick], **rows_of(kw, pick))

    z, t, v, kw = mass_case.draw(np.random.default_rng(classes), (70, classes), dtype)
    x, target, u = (np.asarray(a, order=layout) for a in (z, t, v))
    whole = run(np.s_[:])
    for begin, end in [(0, 1), (1, 18), (15, 70), (69, 70)]:
        assert bits(run(np.s_[begin:end])) == bits(whole[begin:end]), (begin, end)
    order = np.random.default_rng(5).permutation(70)
    x, target, u = (np.asarray(a[order], order=layout) for a in (z, t, v))
    shuffled = mass.run(mass_kind, x, target, u, **rows_of(kw, order))
    assert bits(shuffled) == bits(whole[order])
    x, target, u = (np.asarray(a, order=layout) for a in (z, t, v))
    assert len({bits(run(np.s_[:])) for _ in range(3)}) == 1
    if mass_kind != "value":
        out = np.full_like(z, 9, order=layout)
        mass.run(mass_kind, x, target, u, **kw, out=out)
        assert bits(out) == bits(whole)


STREAMED_MASSES = [
    *((1999, 0, "C"), (250, 0, "C"), (250, 1, "C"), (1999, 7, "C")),
    *((10, 0, "F"), (10, 7, "F"), (57, 3, "F")),
]


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize(("classes", "shift", "layout"), STREAMED_MASSES)
def test_options_streamed_past_the_caches_give_the_same(isa, mass, soft, classes, shift, layout):
    """At odd addresses too, and nothing is written beside the result."""
    dtype = np.float32
    case = mass.Case(soft, weight=True, sample=True, smoothing=0.1, z_loss=0.01)
    small_rows = some_rows(classes, dtype, aligned=layout == "F")
    z, t, v, kw = case.draw(np.random.default_rng(classes), (small_rows, classes), dtype)
    x, u = repeated(z, 10, layout), repeated(v, 10, layout)
    target = repeated(t, 10, layout)
    long = kw | {"sample_weight": np.tile(kw["sample_weight"], 10)}
    assert x.nbytes > STREAM_BYTES
    memory = np.full(x.size + 2 * shift, 9, dtype)
    out = memory[shift : shift + x.size].reshape(x.shape if layout == "C" else x.shape[::-1])
    out = out if layout == "C" else out.T
    for kind in mass.kinds[1:]:
        mass.run(kind, x, target, u, **long, out=out)
        stored = mass.run(kind, *(np.asarray(a, order=layout) for a in (z, t, v)), **kw)
        assert np.array_equal(out.reshape(10, *z.shape), np.broadcast_to(stored, (10, *z.shape)))
        assert (memory[:shift] == 9).all()
        assert (memory[shift + x.size :] == 9).all()


def test_batches_of_several_dimensions_have_the_bits_of_flat_ones_with_options(
    isa, dtype, mass, mass_case, mass_kind
):
    z, t, v, kw = mass_case.draw(np.random.default_rng(6), (4, 5, 6, 60), dtype)
    flat = {k: a.reshape(120) for k, a in kw.items() if k == "sample_weight"}
    flat |= {k: a.reshape(120, 60) for k, a in kw.items() if k == "where"}
    result = mass.run(mass_kind, z, t, v, **kw)
    rows = mass.run(
        mass_kind,
        z.reshape(120, 60),
        t.reshape(120, 60) if mass_case.soft else t.reshape(120),
        v.reshape(120, 60),
        **kw | flat | {"axis": -1},
    )
    assert bits(result) == bits(rows)
