"""Every option of cross_entropy, alone and with the others: value and gradient.

The oracle is the twin, the laws of landscape.md section 5.4, and the peers.  Second derivatives are
in test_second_order.py; lengths, layouts, threads in the files that sweep those.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest

import fastgrad as fg
from fastgrad import _reference as ref

NAN, INF = np.nan, np.inf
LD = np.longdouble

# Few classes in the kernels' one style, many in the other.
classes = pytest.mark.parametrize("classes", [6, 150])
layouts = pytest.mark.parametrize("layout", ["C", "F"])
reductions = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
targets = pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])


def eps(dtype):
    return float(np.finfo(dtype).eps)


def both(x, t, **kw):
    return fg.cross_entropy.value_and_grad(x, t, **kw)


def bits(a):
    return np.ascontiguousarray(a).tobytes()


def data(rng, dtype, soft, classes=6, rows=23):
    """Ordinary logits, with class indices or probabilities that do not sum to 1."""
    x = rng.normal(0, 3, (rows, classes)).astype(dtype)
    if soft:
        return x, rng.random(x.shape).astype(dtype)
    return x, rng.integers(0, classes, rows)


def weights(rng, dtype, classes, rows):
    return {
        "weight": rng.uniform(0.2, 2, classes).astype(dtype),
        "sample_weight": rng.uniform(0.2, 2, rows).astype(dtype),
    }


def assert_close(actual, expected, dtype, bar):
    """Within `bar` eps of the largest number of each row."""
    actual, expected = np.asarray(actual, LD), np.asarray(expected, LD)
    assert actual.shape == expected.shape
    size = np.abs(expected)
    if size.ndim > 1:
        size = size.max(-1, keepdims=True)
    assert (np.abs(actual - expected) <= bar * eps(dtype) * size).all()


# ---- every combination against the twin ---------------------------------------------------------

FLAGS = list(itertools.product([False, True], repeat=6))


def name_of(flags):
    names = "soft", "weight", "sample", "smoothing", "z_loss", "where"
    return "+".join(n for n, f in zip(names, flags, strict=True) if f) or "plain"


@functools.cache
def drawn(mass, flags, dtype, classes):
    """Arguments, and for each kind what the twin gives and how large its parts are."""
    soft, weight, sample, smoothing, z_loss, where = flags
    case = mass.Case(soft, weight, sample, 0.1 * smoothing, 0.01 * z_loss, where)
    rng = np.random.default_rng(FLAGS.index(flags))
    z, t, v, options = case.draw(rng, (23, classes), dtype)
    factors = rng.normal(size=23).astype(dtype)
    results = {}
    for kind in mass.kinds:
        kw = options if kind == "value" else options | {"grad_output": factors}
        size = None if kind == "value" else mass.size(kind, z, t, v, **kw)
        results[kind] = kw, mass.exact(kind, z, t, v, **kw), size
    for a in (z, t, v, factors):
        a.flags.writeable = False
    return z, t, v, results


@pytest.mark.parametrize("flags", FLAGS, ids=name_of)
def test_every_combination_of_options(isa, dtype, mass, flags):
    for n in (6, 150):
        z, t, v, results = drawn(mass, flags, dtype, n)
        for kind, layout in itertools.product(mass.kinds, "CF"):
            kw, exact, size = results[kind]
            what = f"C={n}, {layout}"
            x = np.asarray(z, order=layout)
            actual = mass.run(kind, x, t, v, **kw)
            mass.assert_good(kind, actual, exact, size, what)
            if kind == "value":
                continue
            # Into the array that is not needed any more: the same bits.
            first = (v if kind == "hvp" else z).copy(layout)
            first_x, first_v = (x, first) if kind == "hvp" else (first, v)
            assert mass.run(kind, first_x, t, first_v, **kw, out=first) is first
            assert bits(first) == bits(actual), what


@pytest.mark.parametrize("flags", FLAGS[::5], ids=name_of)
@reductions
def test_every_reduction_of_every_combination(dtype, mass, flags, reduction):
    """The sum of the rows in float64, divided by what the documentation says, and no more."""
    z, t, v, results = drawn(mass, flags, dtype, 6)
    options = results["value"][0] | {"reduction": reduction}
    level = np.zeros(z.shape)  # finite losses, so that their sums give the divisor
    total = ref.cross_entropy(level, t, **options | {"reduction": "sum"})
    for normalizer in (None, 7.5) if reduction == "mean" else (None,):
        kw = options if normalizer is None else options | {"normalizer": normalizer}
        value = fg.cross_entropy(z, t, **kw)
        assert type(value) is float or reduction == "none"
        exact = mass.exact("value", z, t, v, **kw)
        mass.assert_good("value", np.asarray(value, dtype), exact)
        divisor = total / ref.cross_entropy(level, t, **kw) if reduction == "mean" else 1.0
        for kind in mass.kinds[1:]:
            exact = mass.exact(kind, z, t, v, **kw, grad_output=-1.5)
            size = mass.size(kind, z, t, v, **options) * 1.5 / divisor
            actual = mass.run(kind, z, t, v, **kw, grad_output=-1.5)
            mass.assert_good(kind, actual, exact, size, reduction)


@pytest.mark.parametrize("flags", FLAGS[1::3], ids=name_of)
def test_value_and_gradient_at_once_have_the_bits_of_each(isa, dtype, mass, flags):
    for n, layout in itertools.product((6, 150), "CF"):
        z, t, _, results = drawn(mass, flags, dtype, n)
        x = np.asarray(z, order=layout)
        kw = results["grad"][0]
        plain = results["value"][0]
        for reduction in ("mean", "sum", "none"):
            more = kw if reduction == "none" else plain | {"grad_output": 0.7}
            value, grad = both(x, t, **more, reduction=reduction)
            assert bits(value) == bits(fg.cross_entropy(x, t, **plain, reduction=reduction))
            assert bits(grad) == bits(fg.cross_entropy.grad(x, t, **more, reduction=reduction))
            out = np.full_like(x, 9)
            again, result = both(x, t, **more, reduction=reduction, out=out)
            assert result is out
            assert (bits(again), bits(out)) == (bits(value), bits(grad))


@pytest.mark.parametrize("flags", FLAGS[2::3], ids=name_of)
def test_arguments_are_left_alone(isa, dtype, mass, flags):
    z, t, v, results = drawn(mass, flags, dtype, 150)
    for kind in mass.kinds:
        kw = results[kind][0]
        arrays = [z, t, v, *(a for a in kw.values() if isinstance(a, np.ndarray))]
        before = [a.tobytes() for a in arrays]
        mass.run(kind, z, t, v, **kw)
        assert [a.tobytes() for a in arrays] == before


# ---- neutral values -----------------------------------------------------------------------------

DEFAULTS = {
    "axis": -1,
    "weight": None,
    "sample_weight": None,
    "ignore_index": -100,
    "label_smoothing": 0.0,
    "z_loss": 0.0,
    "where": None,
    "normalizer": None,
}


@classes
@layouts
@targets
@reductions
def test_defaults_said_aloud_change_no_bit(isa, dtype, rng, classes, layout, soft, reduction):
    x, t = data(rng, dtype, soft, classes)
    x = np.asarray(x, order=layout)
    value, grad = both(x, t, reduction=reduction)
    for spelled in (
        DEFAULTS,
        DEFAULTS | {"label_smoothing": 0, "z_loss": np.float32(0), "axis": 1},
    ):
        again, same = both(x, t, **spelled, reduction=reduction, grad_output=None)
        assert (bits(again), bits(same)) == (bits(value), bits(grad))
        assert bits(fg.cross_entropy(x, t, **spelled, reduction=reduction)) == bits(value)
    assert bits(both(x, t, reduction=reduction, grad_output=1.0)[1]) == bits(grad)


@classes
@layouts
@targets
@pytest.mark.parametrize(
    "neutral",
    [
        {"weight": "classes"},
        {"sample_weight": "rows"},
        {"where": True},
        {"normalizer": 23},
        {"weight": "classes", "sample_weight": "rows", "where": True, "normalizer": 23.0},
    ],
    ids=lambda kw: "+".join(kw),
)
def test_options_at_their_neutral_value_agree(isa, dtype, rng, classes, layout, soft, neutral):
    x, t = data(rng, dtype, soft, classes)
    x = np.asarray(x, order=layout)
    ones = {"classes": np.ones(classes), "rows": np.ones(23, np.float32)}
    kw = {k: ones[v] if isinstance(v, str) else v for k, v in neutral.items()}
    value, grad = both(x, t)
    again, same = both(x, t, **kw)
    np.testing.assert_allclose(again, value, rtol=8 * eps(dtype))  # 4 eps each
    assert_close(same, grad, dtype, 10)


@classes
def test_a_smoothing_next_to_nothing_is_none(isa, dtype, rng, classes):
    x, y = data(rng, dtype, False, classes)
    value, grad = both(x, y)
    again, same = both(x, y, label_smoothing=1e-30, z_loss=1e-30)
    np.testing.assert_allclose(again, value, rtol=8 * eps(dtype))
    assert_close(same, grad, dtype, 10)


# ---- laws ---------------------------------------------------------------------------------------


@classes
@layouts
@targets
@pytest.mark.parametrize("shift", [1, -37, 1000])
def test_a_common_shift_changes_nothing(isa, dtype, rng, classes, layout, soft, shift):
    """Without z-loss. Logits in steps of 1/64, so that adding is exact."""
    x, t = data(rng, dtype, soft, classes)
    x = np.asarray(np.round(x * 64) / 64, dtype, order=layout)
    kw = weights(rng, dtype, classes, 23) | {"label_smoothing": 0.1, "reduction": "none"}
    value, grad = both(x, t, **kw)
    moved, same = both(x + dtype(shift), t, **kw)
    np.testing.assert_allclose(moved, value, rtol=8 * eps(dtype))
    assert_close(same, grad, dtype, 10)


@classes
@layouts
@targets
def test_classes_may_be_permuted(isa, dtype, rng, classes, layout, soft):
    x, t = data(rng, dtype, soft, classes)
    order = rng.permutation(classes)
    keep = rng.random(x.shape) < 0.8
    if soft:
        t[~keep] = 0
        permuted = t[:, order]
    else:
        keep[np.arange(23), t] = True
        permuted = np.argsort(order)[t]
    w = weights(rng, dtype, classes, 23)
    kw = {"label_smoothing": 0.2, "z_loss": 0.01, "sample_weight": w["sample_weight"]}
    x = np.asarray(x, order=layout)
    value, grad = both(x, t, **kw, weight=w["weight"], where=keep)
    moved = np.asarray(x[:, order], order=layout)
    again, same = both(moved, permuted, **kw, weight=w["weight"][order], where=keep[:, order])
    np.testing.assert_allclose(again, value, rtol=8 * eps(dtype))
    assert_close(same, grad[:, order], dtype, 10)


@classes
@layouts
@targets
def test_rows_may_be_permuted(isa, dtype, rng, classes, layout, soft):
    """A row's bits do not depend on where it stands; only the divisor is added up anew."""
    x, t = data(rng, dtype, soft, classes)
    w = weights(rng, dtype, classes, 23)
    order = rng.permutation(23)
    kw = {"label_smoothing": 0.2, "z_loss": 0.01, "weight": w["weight"], "reduction": "none"}
    value, grad = both(np.asarray(x, order=layout), t, sample_weight=w["sample_weight"], **kw)
    again, same = both(
        np.asarray(x[order], order=layout), t[order], sample_weight=w["sample_weight"][order], **kw
    )
    assert bits(again) == bits(value[order])
    assert bits(same) == bits(grad[order])


OPTIONS = [
    {},
    {"weight": True},
    {"label_smoothing": 0.1},
    {"weight": True, "z_loss": 0.01},
]
options = pytest.mark.parametrize("options", OPTIONS, ids=lambda kw: "+".join(kw) or "plain")


def with_weight(options, rng, dtype, classes):
    if "weight" in options:
        return options | {"weight": rng.uniform(0.2, 2, classes).astype(dtype)}
    return options


@classes
@layouts
@options
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("how", ["ignore_index", "sample_weight", "where", "soft"])
def test_ignored_is_removed(isa, dtype, rng, classes, layout, options, reduction, how):
    """In each of the ways there are to ignore a row, whatever it holds."""
    x, t = data(rng, dtype, how == "soft", classes)
    kw = with_weight(options, rng, dtype, classes) | {"reduction": reduction}
    keep = rng.random(23) < 0.6
    less, expected = both(np.asarray(x[keep], order=layout), t[keep], **kw)
    x[~keep] = rng.choice([NAN, INF, -INF, 3e38], (np.sum(~keep), 1))
    if how == "ignore_index":
        t[~keep] = 2
        x[keep & (t == 2)], t[keep & (t == 2)] = 0, 1
        less, expected = both(np.asarray(x[keep], order=layout), t[keep], **kw)
        more = {"ignore_index": 2}
    elif how == "where":
        more = {"where": np.repeat(keep[:, None], classes, 1)}
    else:
        more = {"sample_weight": keep.astype(dtype)}
    value, grad = both(np.asarray(x, order=layout), t, **kw, **more)
    np.testing.assert_allclose(value, less, rtol=8 * eps(dtype))
    assert_close(grad[keep], expected, dtype, 10)
    assert (grad[~keep] == 0).all()
    assert not np.signbit(grad[~keep]).any()
    each = fg.cross_entropy(x, t, **kw | more | {"reduction": "none"})
    assert (each[~keep] == 0).all()


@classes
@layouts
@options
@targets
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_weight_two_is_a_repeated_row(isa, dtype, rng, classes, layout, options, soft, reduction):
    x, t = data(rng, dtype, soft, classes)
    kw = with_weight(options, rng, dtype, classes) | {"reduction": reduction}
    s = rng.integers(1, 4, 23)
    value, grad = both(np.asarray(x, order=layout), t, **kw, sample_weight=s)
    long = np.asarray(np.repeat(x, s, 0), order=layout)
    again, parts = both(long, np.repeat(t, s, 0), **kw)
    np.testing.assert_allclose(value, again, rtol=8 * eps(dtype))
    summed = np.add.reduceat(parts.astype(LD), np.cumsum(s) - s)
    assert_close(grad, summed, dtype, 10)


@classes
@layouts
def test_class_weight_two_is_a_repeated_row(isa, dtype, rng, classes, layout):
    """Class indices, nothing smoothed, no z-loss: then it is a weight of the row, divisor too."""
    x, y = data(rng, dtype, False, classes)
    w = rng.integers(0, 4, classes)
    w[y[0]] = 2
    value, grad = both(np.asarray(x, order=layout), y, weight=w)
    again, parts = both(np.asarray(np.repeat(x, w[y], 0), order=layout), np.repeat(y, w[y]))
    np.testing.assert_allclose(value, again, rtol=8 * eps(dtype))
    at = np.repeat(np.arange(23), w[y])
    summed = np.zeros(x.shape, LD)
    np.add.at(summed, at, parts.astype(LD))
    assert_close(grad, summed, dtype, 10)


@classes
@layouts
@options
def test_one_hot_probabilities_are_class_indices(isa, dtype, rng, classes, layout, options):
    """Row by row, also with class weights; the mean's divisors differ, by the PyTorch rule."""
    x, y = data(rng, dtype, False, classes)
    kw = with_weight(options, rng, dtype, classes) | {"reduction": "none"}
    x = np.asarray(x, order=layout)
    value, grad = both(x, y, **kw)
    again, same = both(x, np.eye(classes, dtype=dtype)[y], **kw)
    np.testing.assert_allclose(again, value, rtol=8 * eps(dtype))
    assert_close(same, grad, dtype, 10)


@classes
@layouts
def test_smoothing_of_one_is_the_uniform_target(isa, dtype, rng, classes, layout):
    x, y = data(rng, dtype, False, classes)
    x = np.asarray(x, order=layout)
    uniform = np.full(x.shape, 1 / classes, dtype)
    for kw in ({}, {"weight": rng.uniform(0.2, 2, classes), "reduction": "sum"}):
        value, grad = both(x, uniform, **kw)
        for t in (y, np.eye(classes, dtype=dtype)[y]):
            again, same = both(x, t, **kw, label_smoothing=1.0)
            np.testing.assert_allclose(again, value, rtol=8 * eps(dtype))
            assert_close(same, grad, dtype, 10)


@targets
def test_smoothing_spreads_over_all_classes_the_target_included(isa, dtype, rng, soft):
    """PyTorch's rule, and Keras's: (1 - eps) t + eps / K."""
    x, t = data(rng, dtype, soft)
    dense = t if soft else np.eye(6, dtype=dtype)[t]
    mixed = (dense * LD(0.75) + LD(0.25) / 6).astype(dtype)
    value, grad = both(x, t, label_smoothing=0.25)
    again, same = both(x, mixed)
    np.testing.assert_allclose(value, again, rtol=10 * eps(dtype))  # the targets are rounded too
    assert_close(grad, same, dtype, 12)


def test_smoothing_spreads_over_the_classes_kept(isa, dtype, rng):
    x, y = data(rng, dtype, False)
    keep = rng.random(x.shape) < 0.6
    keep[np.arange(23), y] = True
    for i in range(23):
        less, expected = both(x[i, keep[i]], int(keep[i, : y[i]].sum()), label_smoothing=0.3)
        value, grad = both(x[i], y[i], label_smoothing=0.3, where=keep[i])
        np.testing.assert_allclose(value, less, rtol=8 * eps(dtype))
        assert_close(grad[None, keep[i]], expected[None], dtype, 10)
        assert (grad[~keep[i]] == 0).all()


@classes
@targets
def test_smoothed_mass_is_weighed_by_each_class(isa, dtype, rng, classes, soft):
    """Not by the weight of the target's class: NUMERICS.md section 4, and PyTorch's rule."""
    x, t = data(rng, dtype, soft, classes)
    w = weights(rng, dtype, classes, 23)["weight"]
    dense = t if soft else np.eye(classes, dtype=dtype)[t]
    m = w.astype(LD) * (dense * LD(0.9) + LD(0.1) / classes)
    log_p = ref.log_softmax(x)
    expected = -(m * log_p).sum(-1)
    slope = m.sum(-1, keepdims=True) * ref.softmax(x) - m
    value, grad = both(x, t, weight=w, label_smoothing=0.1, reduction="none")
    np.testing.assert_allclose(value.astype(LD), expected, rtol=4 * eps(dtype))
    assert_close(grad, slope, dtype, 8)


@classes
@layouts
@targets
def test_z_loss_is_weighed_by_the_sample_and_not_by_the_class(
    isa, dtype, rng, mass, classes, layout, soft
):
    x, t = data(rng, dtype, soft, classes)
    kw = weights(rng, dtype, classes, 23) | {"reduction": "none"}
    z = np.asarray(x, order=layout)
    value, grad = both(z, t, **kw, z_loss=0.5)
    plain, slope = ref.cross_entropy_value_and_grad(x, t, **kw)
    lse = ref.logsumexp(x)
    more = LD(0.5) * kw["sample_weight"] * lse**2
    np.testing.assert_allclose(value.astype(LD), plain + more, rtol=4 * eps(dtype))
    tilt = (kw["sample_weight"] * lse)[:, None] * ref.softmax(x)
    size = mass.size("grad", x, t, x, **kw, z_loss=0.5)
    mass.assert_good("grad", grad, slope + tilt, size)


@classes
@options
@targets
def test_dropping_classes_is_deleting_them(isa, dtype, rng, classes, options, soft):
    x, t = data(rng, dtype, soft, classes)
    kw = with_weight(options, rng, dtype, classes)
    keep = rng.random(classes) < 0.6
    keep[0] = True
    less = dict(kw)
    if "weight" in kw:
        less["weight"] = kw["weight"][keep]
    if soft:
        t[:, ~keep] = 0
        kept = t[:, keep]
    else:
        t = rng.choice(np.flatnonzero(keep), 23)
        kept = (np.cumsum(keep) - 1)[t]
    expected, slope = both(x[:, keep], kept, **less)
    x[:, ~keep] = rng.choice([NAN, INF, 3e38], np.sum(~keep))
    for layout in "CF":
        value, grad = both(np.asarray(x, order=layout), t, **kw, where=keep)
        np.testing.assert_allclose(value, expected, rtol=8 * eps(dtype))
        assert_close(grad[:, keep], slope, dtype, 10)
        assert (grad[:, ~keep] == 0).all()


# ---- the divisor, the factor --------------------------------------------------------------------


@classes
@options
@targets
def test_mean_times_its_divisor_is_the_sum(isa, dtype, rng, classes, options, soft):
    x, t = data(rng, dtype, soft, classes)
    kw = with_weight(options, rng, dtype, classes)
    s = rng.uniform(0.2, 2, 23).astype(dtype)
    for more in ({}, {"sample_weight": s}):
        divisor = np.sum(more["sample_weight"], dtype=LD) if more else LD(23)
        if not soft and "weight" in kw:
            divisor = (kw["weight"][t].astype(LD) * (s if more else 1)).sum()
        total, rise = both(x, t, **kw, **more, reduction="sum")
        mean, slope = both(x, t, **kw, **more)
        # Weights are multiplied in the dtype of the logits, and added in float64.
        np.testing.assert_allclose(mean * divisor, total, rtol=2 * eps(dtype))
        assert_close(slope * divisor, rise, dtype, 10)
        fixed, same = both(x, t, **kw, **more, normalizer=7)
        assert fixed == total / 7
        assert_close(same.astype(LD) * 7, rise, dtype, 10)


def test_the_mean_over_probabilities_divides_by_rows_not_by_class_weight(dtype):
    """PyTorch's rule; scikit-learn has none."""
    x = np.zeros((2, 2), dtype)
    assert fg.cross_entropy(x, np.full((2, 2), 0.5, dtype), weight=[3, 5]) == pytest.approx(
        4 * math.log(2), rel=4 * eps(dtype)
    )
    assert fg.cross_entropy(x, [0, 1], weight=[3, 5]) == pytest.approx(
        math.log(2), rel=4 * eps(dtype)
    )


@classes
@options
@targets
def test_chunks_with_a_normalizer_are_the_whole(isa, dtype, rng, classes, options, soft):
    x, t = data(rng, dtype, soft, classes)
    kw = with_weight(options, rng, dtype, classes)
    s = rng.uniform(0.2, 2, 23).astype(dtype)
    divisor = float(s.sum(dtype=LD))
    if not soft and "weight" in kw:
        divisor = float((kw["weight"][t].astype(LD) * s).sum())
    whole, grad = both(x, t, **kw, sample_weight=s)
    chunks = [
        both(x[p], t[p], **kw, sample_weight=s[p], normalizer=divisor)
        for p in (np.s_[:5], np.s_[5:16], np.s_[16:])
    ]
    np.testing.assert_allclose(sum(c[0] for c in chunks), whole, rtol=2 * eps(dtype))
    assert_close(np.concatenate([c[1] for c in chunks]), grad, dtype, 2)


@classes
@layouts
@targets
@reductions
def test_grad_output_is_a_factor_of_the_gradient_alone(
    isa, dtype, rng, classes, layout, soft, reduction
):
    x, t = data(rng, dtype, soft, classes)
    x = np.asarray(x, order=layout)
    kw = {"label_smoothing": 0.1, "reduction": reduction}
    value, grad = both(x, t, **kw)
    for g in (-4.0, np.float32(0.5), np.array(2), 8):
        again, scaled = both(x, t, **kw, grad_output=g)
        assert bits(again) == bits(value)
        assert bits(scaled) == bits(grad * dtype(g))  # powers of two are exact
    if reduction == "none":
        g = (2.0 ** rng.integers(-9, 9, 23) * rng.choice([-1, 1], 23)).astype(dtype)
        again, scaled = both(x, t, **kw, grad_output=g)
        assert bits(again) == bits(value)
        assert bits(scaled) == bits(grad * g[:, None])


@pytest.mark.parametrize("g", [0.0, NAN, INF], ids=str)
def test_special_grad_outputs_leave_ignored_rows_at_zero(isa, dtype, rng, mass, mass_kind, g):
    if mass_kind == "value":
        return
    x, y = data(rng, dtype, False, rows=5)
    y[2] = -100
    factors = np.ones(5, dtype)
    factors[[1, 2]] = g
    for kw in ({"grad_output": factors, "reduction": "none"}, {"grad_output": g}):
        a = mass.run(mass_kind, x, y, x, **kw)
        exact = mass.exact(mass_kind, x, y, x, **kw).astype(dtype)
        assert (a[2] == 0).all()
        np.testing.assert_array_equal(np.isfinite(a), np.isfinite(exact))
        np.testing.assert_array_equal(a == 0, exact == 0)


def test_a_sum_of_factors_is_the_gradient_of_the_weighted_sum(isa, dtype, rng):
    """grad_output with "none" folds a weighted sum of the rows into the gradient."""
    x, t = data(rng, dtype, True)
    g = rng.normal(size=23).astype(dtype)
    s = rng.uniform(0.5, 2, 23).astype(dtype)
    direct = fg.cross_entropy.grad(x, t, reduction="none", grad_output=g, sample_weight=s)
    each = fg.cross_entropy.grad(x, t, reduction="none").astype(LD)
    assert_close(direct, each * (g.astype(LD) * s)[:, None], dtype, 10)


# ---- accuracy of confident rows -----------------------------------------------------------------

GAPS = {np.float32: [5, 10, 17, 30, 50, 80], np.float64: [5, 20, 37, 60, 200, 500, 700]}


@functools.cache
def confident(dtype, classes, place):
    gaps = GAPS[dtype]
    rng = np.random.default_rng(classes)
    x = rng.normal(0, 1, (len(gaps), classes)).astype(dtype)
    y = {"first": 0, "middle": classes // 2, "last": classes - 1}[place]
    x[:, y] = x.max(-1) + np.array(gaps)
    x[::2] += 300
    target = np.full(len(gaps), y)
    return x, target, ref.cross_entropy_value_and_grad(x, target, reduction="none")


@pytest.mark.parametrize("classes", [2, 6, 33, 150, 300])
@layouts
@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("how", ["weight", "soft", "soft+weight", "sample", "where", "upstream"])
def test_confident_rows_keep_full_relative_accuracy(isa, dtype, classes, layout, place, how):
    """NUMERICS.md section 1: loss 4 eps, gradient at the target 8 eps, down to the underflow limit.

    The factors are powers of two: they cost nothing.
    """
    x, y, (loss, slope) = confident(dtype, classes, place)
    kw, factor, raised = {}, 1, 1
    if "weight" in how:
        kw["weight"], factor = np.full(classes, 0.25), 0.25
        raised = factor
    elif how == "sample":
        kw["sample_weight"], factor = np.full(len(y), 4.0), 4
        raised = factor
    elif how == "where":
        kw["where"] = np.ones(classes, bool)
    elif how == "upstream":
        kw["grad_output"], raised = np.full(len(y), -0.5), -0.5
    target = np.eye(classes, dtype=dtype)[y] if "soft" in how else y
    value, grad = both(np.asarray(x, order=layout), target, **kw, reduction="none")
    floor = np.finfo(dtype).smallest_subnormal
    assert (np.abs(value - loss * factor) <= 4 * eps(dtype) * loss * factor + floor).all()
    at = np.arange(len(y)), y
    assert (slope[at] < 0).all()
    error = np.abs(grad[at] - slope[at] * raised)
    assert (error <= 8 * eps(dtype) * np.abs(slope[at] * raised) + floor).all()


@pytest.mark.parametrize("classes", [2, 3, 6, 150, 3000])
@layouts
@pytest.mark.parametrize(
    "how", [{"where": True}, {"label_smoothing": 0.1}, {"z_loss": 0.01}, {}], ids=str
)
@pytest.mark.parametrize("spread", [0, 0.5, 1, 3])
def test_the_largest_class_of_an_undecided_row_has_no_worse_a_gradient(
    isa, dtype, rng, classes, layout, how, spread
):
    """It is the sum of the others only where it outweighs them; else that sum cancels.

    p rounded once, its mass and their difference: 4 eps of the larger one.  The target is soft
    where `how` says nothing.
    """
    x = rng.normal(0, spread, (9, classes)).astype(dtype)
    y = rng.integers(0, classes, 9)
    smoothing, z = how.get("label_smoothing", 0), how.get("z_loss", 0)
    top = x.max(-1, keepdims=True).astype(LD)
    terms = np.exp(x - top)
    total = terms.sum(-1, keepdims=True)
    p = terms / total
    mass = (1 - LD(smoothing)) * np.eye(classes, dtype=LD)[y] + LD(smoothing) / classes
    raised = (1 + 2 * LD(z) * (top + np.log(total))) * p
    target = y if how else np.eye(classes, dtype=dtype)[y]
    grad = fg.cross_entropy.grad(np.asarray(x, order=layout), target, **how, reduction="sum")
    assert (np.abs(grad - (raised - mass)) <= 4 * eps(dtype) * np.maximum(raised, mass)).all()


@layouts
def test_a_confident_smoothed_row_keeps_its_small_parts(isa, dtype, layout):
    """All terms of the loss are >= 0; the gradient at the winner is that of the other masses."""
    x = np.zeros((3, 150), dtype)
    x[:, 7] = [20, 40, 80]
    y = np.full(3, 7)
    for smoothing in (1e-7, 1e-12, 1e-20):
        kw = {"label_smoothing": smoothing, "reduction": "none"}
        exact, slope = ref.cross_entropy_value_and_grad(x, y, **kw)
        value, grad = both(np.asarray(x, order=layout), y, **kw)
        assert (np.abs(value - exact) <= 4 * eps(dtype) * exact).all()
        size = 149 / 150 * smoothing + ref.softmax(x)[:, 0] * 149
        assert (np.abs(grad[:, 7] - slope[:, 7]) <= 8 * eps(dtype) * size).all()


@classes
@layouts
@targets
def test_rows_far_from_zero(isa, dtype, rng, mass, classes, layout, soft):
    offsets = {
        np.float32: [1e4, -1e6, 1e8, 1e15, -1e15],
        np.float64: [1e4, -1e6, 1e8, 1e16, -1e30, 1e100, -1e150],
    }[dtype]
    case = mass.Case(soft, weight=True, smoothing=0.1, z_loss=0.01)
    z, t, v, kw = case.draw(rng, (len(offsets), classes), dtype)
    noise = rng.choice([0.0, 1.0, 3.0], z.shape)
    z = np.asarray(noise + np.array(offsets)[:, None], dtype, order=layout)
    for kind in mass.kinds:
        mass.check(kind, mass.run(kind, z, t, v, **kw), z, t, v, **kw)


@classes
@layouts
@targets
def test_rows_at_the_end_of_the_range(isa, dtype, rng, mass, classes, layout, soft):
    """Without z-loss nothing overflows: only differences of logits count."""
    top = np.finfo(dtype).max
    case = mass.Case(soft, weight=True, sample=True, smoothing=0.1)
    z, t, v, kw = case.draw(rng, (6, classes), dtype)
    z[:] = np.array([top, top, top / 2, -top, -top, -top / 2])[:, None]
    z[:, 1] *= dtype(1 - 2 * eps(dtype))
    z = np.asarray(z, order=layout)
    t = np.maximum(t, 0)
    for kind in mass.kinds:
        with np.errstate(over="ignore"):
            mass.check(kind, mass.run(kind, z, t, v, **kw), z, t, v, **kw)


# ---- special values -----------------------------------------------------------------------------

ALL = slice(None)
SPECIAL = [
    [(0, NAN)],
    [(0, INF)],
    [(0, -INF)],
    [(-1, -INF)],
    [(0, INF), (1, NAN)],
    [(0, INF), (-1, -INF)],
    [(0, -INF), (-1, NAN)],
    [(0, -INF), (1, NAN)],
    [(ALL, -INF)],
    [(ALL, -INF), (2, 1.0)],
    [(ALL, INF)],
    [(ALL, NAN)],
]
SETTINGS = [
    {},
    {"weight": True},
    {"label_smoothing": 0.1},
    {"label_smoothing": 1.0},
    {"z_loss": 0.5},
    {"where": True},
    {"weight": True, "label_smoothing": 0.1, "z_loss": 0.5, "where": True},
]


@functools.cache
def special(mass, dtype, soft, number, classes):
    """Arguments, the rows that are special, ordinary logits instead, and the twin's results."""
    rng = np.random.default_rng(number)
    n = 2 * len(SPECIAL) + 3
    z, t = data(rng, dtype, soft, classes, n)
    hit = np.zeros(n, bool)
    calm = z.copy()
    for i, values in enumerate(SPECIAL):
        for r in (i, len(SPECIAL) + 3 + i):
            hit[r] = True
            for at, value in values:
                z[r, at] = value
    if soft:
        t[:, 1::2] = 0
        t[: len(SPECIAL), 0] = 0  # mass on the special class in the second half only
    else:
        t[: len(SPECIAL)] = 2
        t[-len(SPECIAL) :] = 0
    kw = with_weight(SETTINGS[number], rng, dtype, classes)
    if "where" in kw:
        keep = np.ones((n, classes), bool)
        keep[:, 3] = False
        z[:, 3] = calm[:, 3] = NAN
        kw = kw | {"where": keep}
        if soft:
            t[:, 3] = 0
        else:
            t[t == 3] = 1
    v = rng.normal(size=z.shape).astype(dtype)
    exact = {kind: mass.exact(kind, z, t, v, **kw) for kind in mass.kinds}
    size = {kind: mass.size(kind, z, t, v, **kw) for kind in mass.kinds[1:]} | {"value": None}
    return z, t, v, kw, hit, calm, exact, size


@layouts
@classes
@targets
@pytest.mark.parametrize(
    "number", range(len(SETTINGS)), ids=lambda i: "+".join(SETTINGS[i]) or "plain"
)
def test_special_values(isa, dtype, mass, number, classes, soft, layout):
    """A row with NaN or infinities is what the table says, and no other row notices."""
    z, t, v, kw, hit, calm, exact, size = special(mass, dtype, soft, number, classes)
    z, calm, v = (np.asarray(a, order=layout) for a in (z, calm, v))
    for kind in mass.kinds:
        actual = mass.run(kind, z, t, v, **kw)
        mass.assert_good(kind, actual, exact[kind], size[kind])
        others = mass.run(kind, calm, t, v, **kw)
        assert bits(actual[~hit]) == bits(others[~hit]), kind
    only = ~np.isnan(exact["value"])
    part = kw | {"where": kw["where"][only]} if "where" in kw else kw
    for reduction in ("sum", "mean"):
        # NaN wins over infinity.
        assert np.isnan(fg.cross_entropy(z, t, **kw, reduction=reduction))
        value = fg.cross_entropy(z[only], t[only], **part, reduction=reduction)
        assert np.isinf(value) == np.isinf(exact["value"][only]).any()


@classes
@layouts
def test_no_mass_at_minus_infinity_costs_nothing(isa, dtype, classes, layout):
    """0 * inf counts as 0: class weight 0, probability 0, smoothing 0 with the mass elsewhere."""
    x = np.zeros((2, classes), dtype, order=layout)
    x[:, 1] = -INF
    w = np.ones(classes)
    w[1] = 0
    others = math.log(classes - 1)
    one_hot = np.eye(classes, dtype=dtype)[[0, 0]]
    for t, kw in (
        ([0, 0], {"weight": w, "z_loss": 0.0}),
        ([0, 0], {"weight": w, "label_smoothing": 0.3, "where": True}),
        (one_hot, {}),
        (one_hot, {"weight": w, "label_smoothing": 0.3}),
        (np.where(np.arange(classes) < 2, dtype(1), dtype(0)) + 0 * x[:, :1], {"weight": w}),
    ):
        value, grad = both(x, t, **kw, reduction="none")
        smoothing = kw.get("label_smoothing", 0)
        mass = 1 - smoothing + smoothing * (classes - 1) / classes
        np.testing.assert_allclose(value, mass * others, rtol=4 * eps(dtype))
        assert (grad[:, 1] == 0).all()


@classes
@layouts
def test_mass_at_minus_infinity_is_an_infinite_loss(isa, dtype, classes, layout):
    """The gradient there is minus the mass, elsewhere finite."""
    x = np.zeros((2, classes), dtype, order=layout)
    x[:, 1] = -INF
    t = np.zeros((2, classes), dtype)
    t[:, :2] = 0.5, 0.25
    value, grad = both(x, t, sample_weight=[1, 2], reduction="none", grad_output=[1, 4])
    assert (value == INF).all()
    np.testing.assert_allclose(grad[:, 1], [-0.25, -2], rtol=8 * eps(dtype))
    assert np.isfinite(grad).all()
    value, grad = both(x, [0, 1], label_smoothing=0.5, reduction="none")
    assert (value == INF).all()
    np.testing.assert_allclose(
        grad[:, 1], [-0.5 / classes, -0.5 - 0.5 / classes], rtol=8 * eps(dtype)
    )


@targets
@layouts
@pytest.mark.parametrize("kw", [{}, {"label_smoothing": 0.1}, {"weight": [2.0]}, {"where": True}])
def test_one_class_has_no_loss_and_no_slope(isa, dtype, mass, soft, layout, kw):
    x = np.array([[3], [-7], [1e30]], dtype)
    t = np.ones((3, 1), dtype) if soft else np.zeros(3, int)
    for kind in mass.kinds:
        a = mass.run(kind, np.asarray(x, order=layout), t, x, **kw)
        assert (a == 0).all(), kind


def test_one_class_with_z_loss(isa, dtype, mass):
    x = np.array([[3], [-7]], dtype)
    kw = {"z_loss": 0.5}
    np.testing.assert_allclose(mass.run("value", x, [0, 0], x, **kw), [4.5, 24.5])
    np.testing.assert_allclose(mass.run("grad", x, [0, 0], x, **kw), x)
    np.testing.assert_allclose(mass.run("hvp", x, [0, 0], x, **kw), x)
    np.testing.assert_allclose(mass.run("hess_diag", x, [0, 0], x, **kw), [[1], [1]])


@targets
@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (0, 200)], ids=str)
def test_an_empty_batch(isa, dtype, mass, soft, shape):
    x = np.empty(shape, dtype)
    t = x if soft else np.empty(shape[:-1], int)
    w = {"weight": np.ones(shape[-1]), "sample_weight": np.empty(shape[:-1])}
    for kw in ({}, w, {"label_smoothing": 0.1, "z_loss": 1.0, "where": np.ones(shape, bool)}):
        value, grad = both(x, t, **kw)
        assert math.isnan(value)
        assert grad.shape == shape
        assert both(x, t, **kw, reduction="sum")[0] == 0
        assert both(x, t, **kw, reduction="none")[0].shape == shape[:-1]
        assert both(x, t, **kw, normalizer=3)[0] == 0
        for kind in ("hvp", "hess_diag"):
            assert mass.run(kind, x, t, x, **kw, reduction="mean").shape == shape


NOTHING = {
    "ignore_index": (False, {}),
    "sample_weight": (False, {"sample_weight": np.zeros(4)}),
    "weight": (False, {"weight": np.zeros(6)}),
    "weight+z_loss": (False, {"weight": np.zeros(6), "z_loss": 1.0}),
    "where": (False, {"where": np.zeros((4, 6), bool)}),
    "soft sample_weight": (True, {"sample_weight": np.zeros(4)}),
    "soft where": (True, {"where": np.zeros((4, 6), bool)}),
}


@pytest.mark.parametrize("name", NOTHING)
@layouts
def test_nothing_kept(isa, dtype, mass, name, layout):
    """The mean is NaN, the sum 0, every derivative exactly 0, and nothing warns."""
    soft, kw = NOTHING[name]
    x = np.full((4, 6), NAN, dtype, order=layout)
    t = np.ones((4, 6), dtype) if soft and name != "soft where" else np.zeros((4, 6), dtype)
    if not soft:
        t = np.full(4, -100 if name == "ignore_index" else 1)
    assert math.isnan(fg.cross_entropy(x, t, **kw))
    assert fg.cross_entropy(x, t, **kw, reduction="sum") == 0
    assert fg.cross_entropy(x, t, **kw, normalizer=3) == 0
    assert (fg.cross_entropy(x, t, **kw, reduction="none") == 0).all()
    for reduction, kind in itertools.product(("mean", "sum", "none"), mass.kinds[1:]):
        out = np.full_like(x, 9)
        for more in ({}, {"grad_output": NAN}, {"out": out}):
            a = mass.run(kind, x, t, x, **kw, **more, reduction=reduction)
            assert (a == 0).all(), (reduction, kind)
            assert not np.signbit(a).any()


@layouts
def test_a_total_weight_of_zero_with_smoothing(isa, dtype, layout, rng):
    """Smoothing gives mass to other classes, but the divisor counts the targets' weights."""
    x = np.asarray(rng.normal(size=(4, 6)), dtype, order=layout)
    w = np.array([1, 0, 1, 1, 1, 1])
    y = np.full(4, 1)
    value, grad = both(x, y, weight=w, label_smoothing=0.1)
    assert math.isnan(value)
    assert (grad == 0).all()
    total, slope = both(x, y, weight=w, label_smoothing=0.1, reduction="sum")
    exact, expected = ref.cross_entropy_value_and_grad(
        x, y, weight=w, label_smoothing=0.1, reduction="sum"
    )
    np.testing.assert_allclose(total, float(exact), rtol=4 * eps(dtype))
    assert_close(slope, expected, dtype, 8)


@classes
@layouts
@pytest.mark.parametrize("z_loss", [0.0, 0.5])
def test_a_class_of_weight_zero_is_as_if_ignored(isa, dtype, rng, mass, classes, layout, z_loss):
    """Nothing smoothed: a row of that class is an ignored one, with z-loss too, even if NaN."""
    x, y = data(rng, dtype, False, classes)
    w = rng.uniform(0.5, 2, classes)
    w[2] = 0
    y[::4] = 2
    x[::4] = NAN
    x = np.asarray(x, order=layout)
    kw = {"weight": w, "z_loss": z_loss}
    marked = np.where(y == 2, -100, y)
    for kind, reduction in itertools.product(mass.kinds, ("mean", "sum", "none")):
        v = np.nan_to_num(x)
        actual = mass.run(kind, x, y, v, **kw, reduction=reduction)
        expected = mass.run(kind, x, marked, v, **kw, reduction=reduction)
        assert bits(actual) == bits(expected), (kind, reduction)


def test_probabilities_of_no_mass_are_not_ignored(isa, dtype):
    """A row of zeros has loss 0, but counts in the divisor, and NaN shows."""
    x = np.array([[0, 0], [0, 0], [NAN, 0]], dtype)
    t = np.array([[0, 0], [1, 0], [0, 0]], dtype)
    value, grad = both(x, t, reduction="none")
    assert value[0] == 0
    assert (grad[0] == 0).all()
    assert np.isnan(value[2])
    assert np.isnan(grad[2]).all()
    assert fg.cross_entropy(x[:2], t[:2]) == pytest.approx(math.log(2) / 2, rel=4 * eps(dtype))


# ---- what is taken ------------------------------------------------------------------------------

INTEGERS = ["?", "b", "B", "h", "H", "i", "I", "l", "L", "q", "Q"]


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("step", [1, -1, 3])
def test_class_indices_of_every_dtype(dtype, rng, kind, step):
    x, _ = data(rng, dtype, False, 2)
    y = rng.integers(0, 2, 23)
    kw = weights(rng, dtype, 2, 23) | {"label_smoothing": 0.1, "z_loss": 0.01}
    for more in (kw, {"weight": kw["weight"]}, {"sample_weight": kw["sample_weight"]}):
        value, grad = both(x, y, **more)
        changed = np.repeat(y, 3).astype(kind)[::3] if step == 3 else y.astype(kind)
        if step == -1:
            changed = changed[::-1].copy()[::-1]
        again, same = both(x, changed, **more)
        assert (bits(again), bits(same)) == (bits(value), bits(grad))


@pytest.mark.parametrize("kind", ["f4", "f8", ">f4", ">f8"])
def test_probabilities_and_weights_are_cast_to_the_dtype_of_the_logits(dtype, rng, kind):
    x, t = data(rng, dtype, True)
    kw = weights(rng, dtype, 6, 23)
    t = t.astype(kind)
    kw = {k: a.astype(kind) for k, a in kw.items()}
    expected = both(x, t.astype(dtype), **{k: a.astype(dtype) for k, a in kw.items()})
    actual = both(x, t, **kw)
    assert (bits(actual[0]), bits(actual[1])) == (bits(expected[0]), bits(expected[1]))
    assert actual[1].dtype == dtype


def test_lists_and_integers_are_weights(dtype, rng):
    x, y = data(rng, dtype, False)
    w, s = [1, 2, 3, 4, 5, 6], rng.integers(0, 3, 23)
    kw = {"weight": np.array(w, dtype), "sample_weight": s.astype(dtype)}
    expected = both(x, y, **kw)
    for more in ({"weight": w, "sample_weight": s.tolist()}, {"weight": w, "sample_weight": s}):
        actual = both(x, y.tolist(), **more)
        assert (bits(actual[0]), bits(actual[1])) == (bits(expected[0]), bits(expected[1]))


@targets
def test_one_row_without_a_batch(isa, dtype, rng, mass, soft):
    x = rng.normal(size=7).astype(dtype)
    t = rng.random(7).astype(dtype) if soft else 3
    v = rng.normal(size=7).astype(dtype)
    kw = {"weight": rng.uniform(0.5, 2, 7), "label_smoothing": 0.1, "z_loss": 0.1}
    for kind in mass.kinds:
        for reduction in ("mean", "sum", "none"):
            a = mass.run(kind, x, t, v, **kw, sample_weight=2.0, reduction=reduction)
            b = mass.run(
                kind,
                x[None],
                np.array([t]),
                v[None],
                **kw,
                sample_weight=[2.0],
                reduction=reduction,
            )
            assert np.shape(a) == (() if kind == "value" else (7,))
            assert bits(np.asarray(a, dtype)) == bits(np.asarray(b, dtype))


def test_0d_logits_are_one_class(isa, dtype, mass):
    x = dtype(1.5)
    for kind in mass.kinds:
        for t in (0, dtype(1)):
            a = mass.run(kind, x, t, x, label_smoothing=0.1, sample_weight=2)
            assert np.shape(a) == ()
            assert a == 0


@pytest.mark.parametrize("shape", [(), (1,), (60,), (17, 1), (1, 60), (17, 60)], ids=str)
@targets
def test_where_broadcasts_as_in_a_ufunc(isa, dtype, rng, mass, shape, soft):
    x, t = data(rng, dtype, soft, 60, 17)
    keep = np.asarray(rng.random(shape) < 0.7)
    if keep.size > 1:
        keep.reshape(-1)[0] = True
    if shape in ((), (1,)):
        keep[...] = True
    full = np.broadcast_to(keep, x.shape).copy()
    if soft:
        t = np.where(full, t, 0).astype(dtype)
    else:
        full_target = np.where(full.any(1), full.argmax(1), 0)
        t = full_target
    for kind in mass.kinds:
        a = mass.run(kind, x, t, x, where=keep, label_smoothing=0.1)
        assert bits(a) == bits(mass.run(kind, x, t, x, where=full, label_smoothing=0.1))


# ---- what is refused ----------------------------------------------------------------------------

X2 = np.zeros((2, 3))
REFUSED = [
    ([0, 1], {"normalizer": 2.0, "reduction": "sum"}, ValueError),
    ([0, 1], {"normalizer": 2.0, "reduction": "none"}, ValueError),
    ([0, 1], {"normalizer": -1.0}, ValueError),
    ([0, 1], {"normalizer": INF}, ValueError),
    ([0, 1], {"normalizer": NAN}, ValueError),
    ([0, 1], {"normalizer": [1.0, 2.0]}, TypeError),
    ([0, 1], {"weight": [1.0, 1.0]}, ValueError),
    ([0, 1], {"weight": 1.0}, ValueError),
    ([0, 1], {"weight": [[1.0, 1.0, 1.0]]}, ValueError),
    ([0, 1], {"weight": [1.0, NAN, 1.0]}, ValueError),
    ([0, 1], {"weight": [1.0, INF, 1.0]}, ValueError),
    ([0, 1], {"weight": [1.0, 1.0, -1e-300]}, ValueError),
    ([0, 1], {"sample_weight": [1.0]}, ValueError),
    ([0, 1], {"sample_weight": 1.0}, ValueError),
    ([0, 1], {"sample_weight": [[1.0], [1.0]]}, ValueError),
    ([0, 1], {"sample_weight": [1.0, -1.0]}, ValueError),
    ([0, 1], {"sample_weight": [NAN, 1.0]}, ValueError),
    ([0, 1], {"label_smoothing": -0.1}, ValueError),
    ([0, 1], {"label_smoothing": 1.0000001}, ValueError),
    ([0, 1], {"z_loss": -1e-9}, ValueError),
    ([0, 1], {"z_loss": NAN}, ValueError),
    ([0, 1], {"where": [True, True, True, True]}, ValueError),
    ([0, 1], {"where": [1, 1, 1]}, TypeError),
    ([0, 1], {"where": [False, True, True]}, ValueError),
    ([0, 1], {"where": [False, True, True], "label_smoothing": 1.0}, ValueError),
    ([0, 1], {"grad_output": [1.0, 2.0]}, ValueError),
    ([0, 1], {"grad_output": [1.0, 2.0], "reduction": "sum"}, ValueError),
    ([0, 1], {"grad_output": [1.0, 2.0, 3.0], "reduction": "none"}, ValueError),
    ([0, 1], {"grad_output": [[1.0, 2.0]], "reduction": "none"}, ValueError),
    ([0, 3], {}, IndexError),
    ([0, -1], {"weight": [1.0, 1.0, 1.0]}, IndexError),
    ([0, -100], {"ignore_index": None}, IndexError),
    (X2, {"ignore_index": 1}, ValueError),
    (X2, {"ignore_index": -1}, ValueError),
    (X2 - 1, {}, ValueError),
    (X2 + NAN, {}, ValueError),
    (X2 + INF, {}, ValueError),
    (X2[:1], {}, ValueError),
    (X2[:, :1], {}, ValueError),
    (X2 + 1, {"where": [False, True, True]}, ValueError),
]


@pytest.mark.parametrize(("target", "kw", "error"), REFUSED, ids=str)
def test_what_makes_no_sense_is_refused_before_anything_is_written(mass, target, kw, error):
    out = np.full((2, 3), 9.0)
    for kind in mass.kinds:
        if kind == "value" and "grad_output" in kw:
            continue
        more = {} if kind == "value" else {"out": out}
        with pytest.raises(error):
            mass.run(kind, X2, target, X2, **{"reduction": "mean"} | kw, **more)
        assert (out == 9).all()


@pytest.mark.parametrize(
    "kw",
    [{"weight": np.ones(3)}, {"sample_weight": np.ones(2)}, {"where": np.ones((2, 3), bool)}],
    ids=lambda kw: "+".join(kw),
)
def test_out_must_not_overlap_the_options(mass, kw):
    (array,) = kw.values()
    memory = np.ones(6)
    if array.dtype == bool:
        kw = {"where": memory.view(bool)[:6].reshape(2, 3)}
    else:
        kw = {k: memory[: a.size] for k, a in kw.items()}
    out = memory.reshape(2, 3)
    for kind in mass.kinds[1:]:
        with pytest.raises(ValueError, match="overlap"):
            mass.run(kind, np.zeros((2, 3)), [0, 1], np.ones((2, 3)), **kw, out=out)


def test_out_must_not_overlap_probabilities_or_upstream(mass):
    x, t = np.zeros((2, 3)), np.ones((2, 3))
    g = np.ones(6)
    for kind in mass.kinds[1:]:
        with pytest.raises(ValueError, match="overlap"):
            mass.run(kind, x, t, np.ones((2, 3)), out=t)
        with pytest.raises(ValueError, match="overlap"):
            mass.run(kind, x, [0, 1], x.copy(), grad_output=g[:2], out=g.reshape(2, 3))
    with pytest.raises(ValueError, match="overlap"):
        fg.cross_entropy.hvp(x, [0, 1], t, out=x)  # v may be overwritten, not the logits


def test_a_dropped_target_class_names_its_row():
    keep = np.ones((2, 2, 3), bool)
    keep[1, 0, 2] = False
    with pytest.raises(ValueError, match=r"row \[1, 0\] drops"):
        fg.cross_entropy(np.zeros((2, 2, 3)), np.full((2, 2), 2), where=keep)
    with pytest.raises(ValueError, match=r"row \[1, 0\] drops"):
        fg.cross_entropy(np.zeros((2, 2, 3)), np.ones((2, 2, 3)), where=keep)
    # Rows that are left out anyway may drop it.
    y = np.array([[2, 2], [-100, 2]])
    assert np.isfinite(fg.cross_entropy(np.zeros((2, 2, 3)), y, where=keep))
    s = np.array([[1, 1], [0, 1]])
    for t in (np.full((2, 2), 2), np.ones((2, 2, 3))):
        assert np.isfinite(fg.cross_entropy(np.zeros((2, 2, 3)), t, where=keep, sample_weight=s))
    w = np.array([1, 1, 0])
    assert np.isnan(fg.cross_entropy(np.zeros((2, 2, 3)), np.full((2, 2), 2), where=keep, weight=w))


@pytest.mark.parametrize("size", [1e-20, 3.0, 1e20])
def test_one_weight_beside_scores_of_one_row(size):
    """A mean of one row does not depend on its weight, be it far out of the range of float32."""
    for loss, scores in (
        (fg.cross_entropy, [0.5, 1.0]),
        (fg.multiclass_hinge, [0.5, 1.0]),
        (fg.hinge, 0.5),
        (fg.binary_cross_entropy, 0.5),
    ):
        value, grad = loss.value_and_grad(scores, 1, sample_weight=size)
        assert value == pytest.approx(loss(scores, 1), rel=4e-16)
        np.testing.assert_allclose(grad, loss.grad(scores, 1), rtol=4e-16)
