"""Class centroids, prototype logits and the centroid hinge, against their twins and PyTorch."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import fastgrad as fg
from fastgrad import _reference as ref

LD = np.longdouble
INF, NAN = np.inf, np.nan
IGNORED = -7
COLUMNS = [1, 2, 7, 16, 50, 131, 600]
OPTIONS: dict[str, Any] = {"num_classes": 6, "ignore_index": IGNORED}


def drawn(
    rng: np.random.Generator, columns: int, dtype: Any, weighted: bool, rows: int = 37
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """A batch whose classes are missing at the start, in the middle, at the end, or but one.

    One class has a single member, the last item no row at all; what no class has holds NaN.
    """
    X = (rng.normal(size=(4, rows, columns)) * 2 / np.sqrt(columns)).astype(dtype)
    y = rng.integers(1, 5, (4, rows))
    y[y == 3] = 4
    y[1], y[2, 0], y[3], y[:, 5] = 2, 5, IGNORED, IGNORED
    X[y == IGNORED] = NAN
    weight = None
    if weighted:
        weight = rng.uniform(0.2, 2, y.shape).astype(dtype)
        weight[0, 3] = 0
        X[0, 3] = NAN
    return X, y, {**OPTIONS, "sample_weight": weight}


def assert_near(actual: Any, exact: Any, size: Any, bar: float, what: str = "") -> None:
    """Within `bar` eps of `size`, NaN in the same places."""
    actual, exact = np.asarray(actual), np.asarray(exact, LD)
    assert actual.shape == exact.shape, f"{what}: {actual.shape}, not {exact.shape}"
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(exact))
    info = np.finfo(actual.dtype)
    with np.errstate(all="ignore"):
        error = np.abs(actual.astype(LD) - exact)
        allowed = bar * LD(info.eps) * np.asarray(size, LD) + LD(info.smallest_subnormal)
        bad = ~((error <= allowed) | np.isnan(exact) | (actual == exact))
    if bad.any():
        at = tuple(map(int, np.argwhere(bad)[0]))
        size = np.broadcast_to(size, exact.shape)
        raise AssertionError(
            f"{what} at {at}: {actual[at]!r}, not {exact[at]!r}: "
            f"{float((error[at]) / (info.eps * size[at])):.2f} eps, more than {bar}"
        )


# ---- centroids ---------------------------------------------------------------------------------


@pytest.mark.parametrize("left_out", [False, True], ids=["", "leave_one_out"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("columns", COLUMNS)
def test_centroids_and_their_derivatives(isa, dtype, rng, columns, weighted, left_out):
    X, y, options = drawn(rng, columns, dtype, weighted)
    options["leave_one_out"] = left_out
    actual, exact = fg.class_centroids(X, y, **options), ref.class_centroids(X, y, **options)
    np.testing.assert_array_equal(actual.counts, exact.counts)
    assert actual.counts.dtype == np.int64
    size = np.nanmax(np.abs(X))
    # One rounding of a mean whose terms were added wide, and another of the quotient.
    assert_near(actual.centroids, exact.centroids, size, 1, "centroids")
    g = rng.normal(size=exact.centroids.shape).astype(dtype)
    g[exact.counts == 0] = NAN  # of what is absent nothing is read
    pulled = fg.class_centroids.vjp(X, y, g, **options)
    # A quotient, a product and a sum of which most terms have one sign at most: 2 eps of the sizes.
    assert_near(pulled, ref.class_centroids_vjp(X, y, g, **options), np.nanmax(np.abs(g)), 3, "vjp")
    v = rng.normal(size=X.shape).astype(dtype)
    pushed = fg.class_centroids.jvp(X, y, v, **options)
    assert_near(pushed, ref.class_centroids_jvp(X, y, v, **options), np.abs(v).max(), 1, "jvp")


@pytest.mark.parametrize("threads", [1, 2])
def test_two_million_rows_near_a_thousand(threads, assert_ulps):
    X = 1000 + np.random.default_rng(0).normal(size=(2_000_000, 2)).astype(np.float32)
    y = np.zeros(len(X), np.int8)
    with fg.num_threads(threads):
        centroids, counts = fg.class_centroids(X, y)
    assert counts == 2_000_000
    assert_ulps(centroids[0], X.mean(axis=0, dtype=LD), 1)


def test_a_small_class_after_a_huge_one(isa, dtype, assert_ulps):
    X = np.array([[1e8]] * 1000 + [[1e-3]] * 3, dtype)
    y = [0] * 1000 + [1] * 3
    assert_ulps(fg.class_centroids(X, y).centroids[1, 0], LD(dtype(1e-3)), 1)


def test_a_row_is_taken_off_again_however_large_it_is(isa, dtype, assert_ulps):
    X = np.array([[1e15], [1e-3], [3e-3]], dtype)
    others = fg.class_centroids(X, [0, 0, 0], leave_one_out=True).centroids
    assert_ulps(others[0, 0], (LD(X[1, 0]) + LD(X[2, 0])) / 2, 1)
    weight = np.array([0.3, 0.1, 0.7], dtype)  # whose product with the large row is not exact
    X[0] = 1e11  # what two words leave of it is far below an ulp of the others
    options = {"sample_weight": weight, "leave_one_out": True}
    others = fg.class_centroids(X, [0, 0, 0], **options).centroids
    w, x = weight.astype(LD), X[:, 0].astype(LD)
    assert_ulps(others[0, 0], (w[1:] @ x[1:]) / w[1:].sum(), 2)  # a sum and a quotient


def test_one_nan_stays_in_its_class_and_column(isa, dtype):
    X = np.ones((6, 40), dtype)
    X[2, 33] = NAN
    y = [0, 1, 0, 1, 2, 2]
    c = fg.class_centroids(X, y).centroids
    assert np.argwhere(np.isnan(c)).tolist() == [[0, 33]]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("columns", [1, 5, 40])
def test_what_is_not_finite_is_left_out_of_its_own_mean(isa, dtype, rng, columns, weighted):
    X = rng.normal(size=(12, columns)).astype(dtype)
    y = np.array([0] * 4 + [1] * 4 + [2] * 4)
    X[0, -1] = NAN  # alone: the mean without it is finite
    X[5, 0] = INF
    X[8, 0], X[9, 0], X[10, -1] = INF, -INF, -INF
    weight = rng.uniform(0.5, 2, 12).astype(dtype) if weighted else None
    options = {"sample_weight": weight, "leave_one_out": True}
    exact, counts = ref.class_centroids(X, y, **options)
    found = fg.class_centroids(X, y, **options)
    np.testing.assert_array_equal(found.counts, counts)
    assert_near(found.centroids, exact, 2, 2)
    pulled = fg.class_centroids.vjp(np.zeros_like(X), y, X, **options)
    assert_near(pulled, ref.class_centroids_vjp(np.zeros_like(X), y, X, **options), 2, 4)


def test_what_is_not_finite_is_left_out_of_its_own_mean_in_halves(isa):
    X = np.array([[1.0, 2.0], [NAN, 4.0], [5.0, INF], [7.0, 8.0]], np.float16)
    others = fg.class_centroids(X, [0, 0, 0, 0], leave_one_out=True).centroids
    wide = fg.class_centroids(X.astype(np.float32), [0, 0, 0, 0], leave_one_out=True).centroids
    np.testing.assert_array_equal(others, wide.astype(np.float16))
    np.testing.assert_array_equal(others[1], np.float16([13 / 3, INF]))


def test_means_of_rows_whose_sum_leaves_the_range(isa, assert_ulps):
    """Nothing that is asked for is beyond float64, only what a plain sum meets on the way."""
    huge = np.array([[1.7e308, -1.5e308], [1.7e308, -1.5e308], [1.2e308, 1e-300], [0.5, INF]])
    y = [0, 0, 0, 1]
    exact = ref.class_centroids(huge, y).centroids
    assert_ulps(fg.class_centroids(huge, y).centroids, exact, 1)
    options = {"sample_weight": [1.0, 2.0, 3.0, 1.0]}
    exact = ref.class_centroids(huge, y, **options).centroids
    assert_ulps(fg.class_centroids(huge, y, **options).centroids, exact, 1)
    others = fg.class_centroids(huge, y, leave_one_out=True).centroids
    assert_ulps(others, ref.class_centroids(huge, y, leave_one_out=True).centroids, 1)
    near = np.array([[1.5e308], [1.6e308]])
    value, grad = fg.centroid_hinge.value_and_grad(near, [0, 0], squared=False, margin=0.0)
    assert_near(value, LD(0.05e308), 1.6e308, 1)
    assert_near(grad, [[-0.5], [0.5]], 1, 2)


def test_classes_absent_and_rows_alone():
    c, counts = fg.class_centroids([[1.0], [3.0]], [1, 1], num_classes=4)
    np.testing.assert_array_equal(c[:, 0], [NAN, 2, NAN, NAN])
    np.testing.assert_array_equal(counts, [0, 2, 0, 0])
    c, counts = fg.class_centroids([[1.0], [3.0], [4.0]], [1, 1, 0], leave_one_out=True)
    np.testing.assert_array_equal(c[:, 0], [3, 1, NAN])
    np.testing.assert_array_equal(counts, [1, 1, 0])


# ---- prototypes --------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 1000])
@pytest.mark.parametrize("columns", COLUMNS)
def test_prototype_logits(isa, dtype, rng, columns, offset):
    X = (offset + rng.normal(size=(2, 33, columns))).astype(dtype)
    c = (offset + 3 * rng.normal(size=(2, 19, columns))).astype(dtype)
    X[0, :19] = c[0] + (rng.normal(size=(19, columns)) * 1e-2).astype(dtype)  # near its prototype
    X[1, 7] = c[1, 4]
    c[0, 2] = NAN
    exact = ref.prototype_logits(X, c)
    logits = fg.prototype_logits(X, c)
    # The bound of the docstring: of the products at most d / 2 eps, eight times after cancellation.
    assert_near(logits, exact, np.abs(exact), 2 * columns + 16, "logits")
    assert (logits[0, :, 2] == -INF).all()
    assert logits[1, 7, 4] == 0
    g = rng.normal(size=exact.shape).astype(dtype)
    g[0, :, 2] = NAN
    v = rng.normal(size=X.shape).astype(dtype)
    c0 = np.where(np.isnan(c), 0, c).astype(LD)
    shift = np.stack([c[0][~np.isnan(c[0]).any(1)].mean(0), c[1].mean(0)])[:, None].astype(LD)
    far = np.abs(X - shift)[:, :, None] + np.abs(c0 - shift)[:, None]
    size = (2 * np.nan_to_num(np.abs(g))[..., None] * far).sum(2)
    pulled = fg.prototype_logits.vjp(X, c, g)
    assert_near(pulled, ref.prototype_logits_vjp(X, c, g), size, 19 + 4, "vjp")
    size = (2 * np.abs(v)[:, :, None] * far).sum(3)
    pushed = fg.prototype_logits.jvp(X, c, v)
    assert_near(pushed, ref.prototype_logits_jvp(X, c, v), size, columns + 4, "jvp")


def test_prototype_logits_of_what_is_not_finite(isa, dtype):
    X = np.array([[0.0, 0.0], [NAN, 0.0], [INF, 0.0]], dtype)
    c = np.array([[1.0, 0.0], [NAN, NAN], [NAN, 0.0], [INF, 0.0]], dtype)
    with np.errstate(all="raise"):
        logits = fg.prototype_logits(X, c)
    expected = [[-1, -INF, NAN, -INF], [NAN, -INF, NAN, NAN], [-INF, -INF, NAN, NAN]]
    np.testing.assert_array_equal(logits, expected)


def test_prototype_logits_of_tiny_and_huge_rows(isa, dtype, assert_ulps):
    for size in (1e-17, 1e15) if dtype is np.float32 else (1e-160, 1e150):
        X = size * np.array([[1.0, 2.0], [1.5, 2.0]], dtype)
        c = size * np.array([[1.0, 1.0], [-1.0, 2.0]], dtype)
        assert_ulps(fg.prototype_logits(X, c), ref.prototype_logits(X, c), 40)


def test_prototype_logits_classify_nearest(rng):
    X, y = rng.normal(size=(300, 5)) + 100, rng.integers(0, 3, 300)
    X[np.arange(300), y] += 20
    logits = fg.prototype_logits(X, fg.class_centroids(X, y).centroids)
    np.testing.assert_array_equal(logits.argmax(1), y)


@pytest.mark.parametrize("kind", ["call", "vjp", "jvp"])
def test_prototype_results_go_where_they_are_asked_to(rng, dtype, kind):
    X, c = rng.normal(size=(40, 3)).astype(dtype), rng.normal(size=(4, 3)).astype(dtype)
    f, vector, shape = {
        "call": (fg.prototype_logits, (), (40, 4)),
        "vjp": (fg.prototype_logits.vjp, (np.ones((40, 4), dtype),), (40, 3)),
        "jvp": (fg.prototype_logits.jvp, (np.ones((40, 3), dtype),), (40, 4)),
    }[kind]
    expected = f(X, c, *vector)
    for out in (np.empty(shape, dtype), np.empty(shape[::-1], dtype).T):
        assert f(X, c, *vector, out=out) is out
        np.testing.assert_array_equal(out, expected)


# ---- the centroid hinge ------------------------------------------------------------------------


def sizes(X: Any, y: Any, v: Any, margin: float, options: dict[str, Any]) -> tuple[Any, Any]:
    """What the terms of gradient and Hessian product sum to in size, per element, (B, N, 1).

    A direction is as long as the longest of its class, and so is its mean. Bending goes with one
    over the length.
    """
    c = ref.class_centroids(X, y, **{k: options[k] for k in (*OPTIONS, "sample_weight")}).centroids
    first, second = np.zeros((*y.shape, 1), LD), np.zeros((*y.shape, 1), LD)
    weight = options["sample_weight"]
    for b, k in itertools.product(range(len(y)), range(c.shape[1])):
        m = (y[b] == k) & (True if weight is None else weight[b] > 0)
        if not m.any():
            continue
        w = np.ones(m.sum(), LD) if weight is None else weight[b, m].astype(LD)
        share = (w / w.sum())[:, None]
        d = np.sqrt(((X[b, m] - c[b, k]) ** 2).sum(1))[:, None]
        move = 2 * np.sqrt((v[b, m].astype(LD) ** 2).sum(1)).max()
        beyond = d[(d > margin) & (d > 0)]
        slope = np.maximum(1, 2 * d.max())
        bend = move * (2 + (1 + 2 * margin) / (beyond.min() if beyond.size else 1))
        first[b, m], second[b, m] = 2 * share * slope, 2 * share * bend
    return first, second


@pytest.mark.parametrize("squared", [True, False], ids=["squared", "plain"])
@pytest.mark.parametrize("margin", [0.0, 0.8, 1.5])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("columns", COLUMNS)
def test_centroid_hinge(isa, dtype, rng, columns, weighted, margin, squared):
    X, y, options = drawn(rng, columns, dtype, weighted)
    v = rng.normal(size=X.shape).astype(dtype)
    v[y == IGNORED] = NAN
    options |= {"margin": margin, "squared": squared, "reduction": "none"}
    first, second = sizes(X, y, v, margin, options)
    for moving, how in itertools.product((True, False), ("mean", "sum")):
        options |= {"centroid_grad": moving, "class_reduction": how}
        value, grad = fg.centroid_hinge.value_and_grad(X, y, **options)
        exact, slope = ref.centroid_hinge_value_and_grad(X, y, **options)
        # float32 is computed in float64 and rounded once.  float64 adds d squares in lanes: an eps
        # for every eight of them at worst, of which lengths keep half; then some products.
        bar = 1 if dtype is np.float32 else 6 + columns / 16
        power = 2 if squared else 1
        reach = (1 + np.nanmax(np.abs(X)) * np.sqrt(columns)) ** power
        assert_near(value, exact, np.maximum(exact, 1e-3 * reach), bar, "value")
        assert_near(grad, slope, first, bar, "grad")
        product = fg.centroid_hinge.hvp(X, y, v, **options)
        assert_near(product, ref.centroid_hinge_hvp(X, y, v, **options), second, bar, "hvp")
        assert (grad[y == IGNORED] == 0).all()
        assert (product[y == IGNORED] == 0).all()


@pytest.mark.parametrize(
    ("reduction", "normalizer"),
    [("mean", None), ("mean", 10.0), ("sum", None), ("none", None), (None, None)],
)
def test_reductions(rng, reduction, normalizer):
    X, y, options = drawn(rng, 5, np.float64, True)
    options |= {"reduction": reduction, "normalizer": normalizer}
    twin = {**options, "reduction": reduction or "none"}
    upstream = rng.normal(size=4) if twin["reduction"] == "none" else -1.5
    value, grad = fg.centroid_hinge.value_and_grad(X, y, grad_output=upstream, **options)
    exact, slope = ref.centroid_hinge_value_and_grad(X, y, grad_output=upstream, **twin)
    assert isinstance(value, float) == (twin["reduction"] != "none")
    # A few roundings each, of numbers of size 1.
    assert_near(value, exact, 1, 8)
    assert_near(grad, slope, 1, 8)
    np.testing.assert_array_equal(
        fg.centroid_hinge.grad(X, y, grad_output=upstream, **options), grad
    )
    assert np.array_equal(fg.centroid_hinge(X, y, **options), value)
    v = rng.normal(size=X.shape)
    product = fg.centroid_hinge.hvp(X, y, v, grad_output=upstream, **options)
    exact = ref.centroid_hinge_hvp(X, y, v, grad_output=upstream, **twin)
    assert_near(product, exact, 10, 8)


def test_without_a_batch_none_is_one_number(dtype):
    value = fg.centroid_hinge(np.array([[0.0], [4.0]], dtype), [0, 0], reduction="none")
    assert value == 1
    assert type(value) is dtype


@pytest.mark.parametrize("squared", [True, False], ids=["squared", "plain"])
@pytest.mark.parametrize("centroid_grad", [True, False], ids=["moving", "still"])
@pytest.mark.parametrize("class_reduction", ["mean", "sum"])
def test_the_loop_of_pytorch(isa, rng, squared, centroid_grad, class_reduction):
    torch = pytest.importorskip("torch")
    X, y, options = drawn(rng, 6, np.float64, False)
    X[y == IGNORED] = 0.0
    v = rng.normal(size=X.shape)
    x = torch.tensor(X, requires_grad=True)
    losses = []
    for data, ids in zip(x, torch.tensor(y), strict=True):
        parts = []
        for k in torch.unique(ids[ids != IGNORED]):
            subset = data[ids == k]
            c = subset.mean(dim=0)
            r = subset - (c if centroid_grad else c.detach())
            lengths = torch.sqrt((r**2).sum(dim=1).clamp(min=1e-300))  # a finite slope at 0
            h = torch.clamp(lengths - 0.8, min=0.0)
            parts.append((h**2 if squared else h).mean())
        if parts:
            both = torch.stack(parts)
            losses.append(both.mean() if class_reduction == "mean" else both.sum())
    loss = torch.stack(losses).mean()
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    (bend,) = torch.autograd.grad((slope * torch.tensor(v)).sum(), x)
    options |= {
        "margin": 0.8,
        "squared": squared,
        "centroid_grad": centroid_grad,
        "class_reduction": class_reduction,
    }
    value, grad = fg.centroid_hinge.value_and_grad(X, y, **options)
    # PyTorch's own roundings, of numbers of size 1, in float64.
    assert abs(value - loss.item()) <= 20 * np.finfo(float).eps
    np.testing.assert_allclose(grad, slope.detach(), rtol=0, atol=20 * np.finfo(float).eps)
    product = fg.centroid_hinge.hvp(X, y, v, **options)
    np.testing.assert_allclose(product, bend, rtol=0, atol=200 * np.finfo(float).eps)


def test_rows_near_a_thousand_keep_their_digits(isa, dtype, rng):
    X = (1000 + rng.normal(size=(500, 9))).astype(dtype)
    y = rng.integers(0, 3, 500)
    value, grad = fg.centroid_hinge.value_and_grad(X, y, margin=2.0)
    exact, slope = ref.centroid_hinge_value_and_grad(X, y, margin=2.0)
    # float32 is computed in float64, in which the value is returned. Long double keeps 11 bits more
    # than that, of which means near 1000 cost 10.
    assert_near(value, exact, 1, 8)
    assert_near(grad, slope, np.abs(slope).max(), 1 if dtype is np.float32 else 16)


def test_a_point_on_its_centroid_has_no_slope(isa, dtype):
    for weight in (None, np.array([0.1, 0.3, 0.7], dtype)):
        for x in ([[1 / 3, 1e3]] * 3, [[0.0, 0.0]] * 3):
            X = np.array(x, dtype)
            for squared in (True, False):
                options = {"margin": 0.0, "squared": squared, "sample_weight": weight}
                value, grad = fg.centroid_hinge.value_and_grad(X, [0, 0, 0], **options)
                assert value == 0
                np.testing.assert_array_equal(grad, np.zeros_like(X))
                product = fg.centroid_hinge.hvp(X, [0, 1, 2], np.ones_like(X), **options)
                np.testing.assert_array_equal(product, np.zeros_like(X))


def test_the_kink_has_slope_zero(isa, dtype):
    X = np.array([[-2.0], [2.0], [-3.0], [3.0]], dtype)
    grad = fg.centroid_hinge.grad(X, [0, 0, 0, 0], margin=2.0, squared=False)
    np.testing.assert_array_equal(grad[:, 0], [0, 0, -0.25, 0.25])
    product = fg.centroid_hinge.hvp(X, [0, 0, 1, 1], np.ones_like(X), margin=2.0)
    np.testing.assert_array_equal(product[:2], np.zeros((2, 1)))


def test_a_square_of_lengths_has_a_hessian_everywhere(isa, dtype):
    X = np.array([[1.0], [1.0]], dtype)
    v = np.array([[1.0], [0.0]], dtype)
    product = fg.centroid_hinge.hvp(X, [0, 0], v, margin=0.0)
    np.testing.assert_array_equal(product[:, 0], [0.5, -0.5])
    still = fg.centroid_hinge.hvp(X, [0, 0], v, margin=0.0, centroid_grad=False)
    np.testing.assert_array_equal(still[:, 0], [1, 0])


def test_squares_that_leave_the_range(isa):
    for size in (1e-170, 1e170):
        X = np.array([[-3.0, -4.0], [3.0, 4.0]]) * size
        value, grad = fg.centroid_hinge.value_and_grad(X, [0, 0], margin=0.0, squared=False)
        assert_near(value, 5 * LD(size), 5 * size, 2)
        assert_near(grad, [[-0.3, -0.4], [0.3, 0.4]], 1, 2)


@pytest.mark.parametrize("centroid_grad", [False, True])
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("exponent", [-1060, -1022, -600, -500, -300, -200, 0, 200, 500])
def test_derivatives_at_every_distance(isa, rng, exponent, squared, centroid_grad):
    """Lengths, their squares and third powers leave the range; directions do not."""
    size = 2.0**exponent
    X = np.ldexp(rng.integers(-8, 9, (6, 3)).astype(float), exponent)
    X[:2] = [[3 * size, 4 * size, 0], [-3 * size, -4 * size, 0]]
    y = [0, 0, 1, 1, 1, 1]
    v = rng.normal(size=X.shape)
    for margin in (0.0, 2 * size):
        options = {"margin": margin, "squared": squared, "centroid_grad": centroid_grad}
        grad = fg.centroid_hinge.grad(X, y, **options)
        slope = ref.centroid_hinge_grad(X, y, **options)
        assert_near(grad, slope, np.abs(slope).max(), 32, "grad")
        with np.errstate(over="ignore"):
            bend = ref.centroid_hinge_hvp(X, y, v, **options)
        if np.abs(bend).max() < np.finfo(float).max:
            assert_near(fg.centroid_hinge.hvp(X, y, v, **options), bend, np.abs(bend).max(), 64)
        still = np.zeros_like(v)
        np.testing.assert_array_equal(fg.centroid_hinge.hvp(X, y, still, **options), still)


def test_a_row_near_its_centroid_among_far_ones(isa):
    X = np.array([[1.0], [-1.0], [3e-200], [-3e-200]])
    options = {"margin": 0.0, "squared": False}
    grad = fg.centroid_hinge.grad(X, [0, 0, 0, 0], **options)
    np.testing.assert_array_equal(grad[:, 0], [0.25, -0.25, 0.25, -0.25])


def test_nan_and_infinity_stay_in_their_class(isa, dtype, rng):
    X = rng.normal(size=(2, 12, 5)).astype(dtype)
    y = np.tile(np.arange(12) % 3, (2, 1))
    expected = fg.centroid_hinge.grad(X, y, margin=0.5)
    X[0, 4, 2], X[1, 5, 0] = NAN, INF
    with np.errstate(all="raise"):
        value, grad = fg.centroid_hinge.value_and_grad(X, y, margin=0.5, reduction="none")
    assert np.isnan(value).all()
    for item, k in ((0, 1), (1, 2)):
        assert np.isnan(grad[item, y[item] == k]).any(axis=1).all()
        np.testing.assert_array_equal(grad[item, y[item] != k] / 2, expected[item, y[item] != k])


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (0, 4, 3), (4, 0), (2, 4, 0)])
def test_empty(isa, dtype, shape):
    X, y = np.zeros(shape, dtype), np.zeros(shape[:-1], int)
    value, grad = fg.centroid_hinge.value_and_grad(X, y)
    assert grad.shape == shape
    assert (value == 0) if y.size else np.isnan(value)
    assert fg.centroid_hinge(X, y, reduction="sum") == 0
    assert fg.centroid_hinge(X, y, reduction="none").shape == shape[:-2]
    assert fg.centroid_hinge.hvp(X, y, X).shape == shape
    c, counts = fg.class_centroids(X, y, num_classes=2)
    assert c.shape == (*shape[:-2], 2, shape[-1])
    assert counts.shape == (*shape[:-2], 2)
    assert fg.class_centroids(X, y, leave_one_out=True).centroids.shape == shape
    logits = fg.prototype_logits(X, np.zeros((*shape[:-2], 2, shape[-1]), dtype))
    assert logits.shape == (*shape[:-1], 2)
    assert (logits == 0).all()


def test_nothing_kept():
    X, y = np.full((2, 3, 2), NAN), np.full((2, 3), 4)
    value, grad = fg.centroid_hinge.value_and_grad(X, y, ignore_index=4)
    assert np.isnan(value)
    np.testing.assert_array_equal(grad, np.zeros_like(X))
    value, grad = fg.centroid_hinge.value_and_grad(X, y, sample_weight=np.zeros((2, 3)))
    assert np.isnan(value)
    np.testing.assert_array_equal(grad, np.zeros_like(X))
    out = X.copy()
    fg.centroid_hinge.grad(X, y, ignore_index=4, reduction="sum", out=out)
    np.testing.assert_array_equal(out, np.zeros_like(X))


def test_weight_two_is_a_row_twice(isa, rng):
    X, y = rng.normal(size=(8, 3)), np.array([0, 0, 0, 1, 1, 1, 1, 0])
    weight = np.ones(8)
    weight[4] = 2
    twice = np.append(X, X[4:5], axis=0), np.append(y, y[4])
    value = fg.centroid_hinge(X, y, sample_weight=weight)
    # The same number from a sum of one more term.
    assert abs(value - fg.centroid_hinge(*twice)) <= 4 * np.finfo(float).eps * value


# ---- layouts, types, threads, plans ------------------------------------------------------------


def results(X: Any, y: Any, v: Any, **options: Any) -> list[np.ndarray]:
    value, grad = fg.centroid_hinge.value_and_grad(X, y, **options)
    product = fg.centroid_hinge.hvp(X, y, v, **options)
    others = fg.class_centroids(X, y, leave_one_out=True).centroids
    return [np.asarray(value), grad, product, others]


def test_layouts(isa, dtype, rng):
    X, v = (rng.normal(size=(3, 40, 10)).astype(dtype) for _ in range(2))
    y = rng.integers(0, 4, (3, 40))
    expected = results(X, y, v, margin=0.5)
    read_only = X.copy()
    read_only.flags.writeable = False
    swapped = np.ascontiguousarray(X.transpose(1, 0, 2)).transpose(1, 0, 2)
    padded = np.zeros((3, 40, 13), dtype)
    padded[..., 1:11] = X
    views = [
        np.asfortranarray(X),
        X[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1],
        np.repeat(X, 2, axis=1)[:, ::2],
        swapped,
        padded[..., 1:11],
        X.astype(X.dtype.newbyteorder()),
        read_only,
    ]
    for view in views:
        before = view.tobytes()
        for a, b in zip(results(view, y.astype(np.uint8), v, margin=0.5), expected, strict=True):
            np.testing.assert_array_equal(a, b)
        assert view.tobytes() == before


def test_results_in_place(isa, dtype, rng):
    X, v = (rng.normal(size=(3, 40, 10)).astype(dtype) for _ in range(2))
    y = rng.integers(0, 4, (3, 40))
    y[1, 3] = IGNORED
    options = {"margin": 0.5, "ignore_index": IGNORED}
    grad = fg.centroid_hinge.grad(X, y, **options)
    product = fg.centroid_hinge.hvp(X, y, v, **options)
    for target in (np.empty_like(X), np.asfortranarray(X), X.copy()):
        source = target if target.flags.c_contiguous and (target == X).all() else X
        assert fg.centroid_hinge.grad(source, y, out=target, **options) is target
        np.testing.assert_array_equal(target, grad)
    both = np.asfortranarray(X)
    fg.centroid_hinge.grad(both, y, out=both, **options)
    np.testing.assert_array_equal(both, grad)
    assert fg.centroid_hinge.hvp(X, y, v, out=v, **options) is v
    np.testing.assert_array_equal(v, product)


def test_a_plan_gives_the_same(isa, rng):
    X, y = rng.normal(size=(2, 30, 4)), rng.integers(0, 5, (2, 30))
    plan = fg.Segments.from_ids(y, 6)
    for f in (fg.centroid_hinge.grad, lambda *a: fg.class_centroids(*a).centroids[:, :5]):
        np.testing.assert_array_equal(f(X, plan), f(X, y))
    in_order = fg.Segments.from_lengths([10, 0, 20])
    ids = np.repeat([0, 2], [10, 20])
    np.testing.assert_array_equal(
        fg.centroid_hinge.grad(X[0], in_order), fg.centroid_hinge.grad(X[0], ids)
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_threads_give_the_same_bits(isa, dtype, rng, weighted):
    X, v = (rng.normal(size=(3, 4000, 33)).astype(dtype) for _ in range(2))
    y = rng.integers(0, 40, (3, 4000))
    y[0] = 3  # one segment is all of an item
    weight = rng.uniform(0, 1, y.shape) if weighted else None
    c = rng.normal(size=(3, 40, 33)).astype(dtype)

    def everything() -> list[np.ndarray]:
        options = {"margin": 5.0, "sample_weight": weight}
        value, grad = fg.centroid_hinge.value_and_grad(X, y, **options)
        return [
            np.asarray(value),
            grad,
            fg.centroid_hinge.hvp(X, y, v, **options),
            fg.class_centroids(X, y, sample_weight=weight).centroids,
            fg.class_centroids(X, y, sample_weight=weight, leave_one_out=True).centroids,
            fg.streaming.CentroidState(40).update(X[1], y[1]).variance,
            fg.prototype_logits(X, c),
        ]

    with fg.num_threads(1):
        expected = everything()
    for threads in (2, 3, 7):
        with fg.num_threads(threads):
            for a, b in zip(everything(), expected, strict=True):
                assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_precision_is_float32_rounded_once(isa, rng, name):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    half = np.dtype(np.float16 if name == "float16" else ml_dtypes.bfloat16)
    X, v = (rng.normal(size=(2, 31, 21)).astype(half) for _ in range(2))
    y = rng.integers(0, 4, (2, 31))
    y[0, 3] = IGNORED
    X[0, 3] = NAN
    wide, along = X.astype(np.float32), v.astype(np.float32)
    options = {"margin": 3.0, "ignore_index": IGNORED}
    value, grad = fg.centroid_hinge.value_and_grad(X, y, **options)
    exact, slope = fg.centroid_hinge.value_and_grad(wide, y, **options)
    assert value == exact
    hvp = fg.centroid_hinge.hvp
    pairs = [(grad, slope), (hvp(X, y, v, **options), hvp(wide, y, along, **options))]
    for left_out in (False, True):
        kw = {"ignore_index": IGNORED, "leave_one_out": left_out}
        narrow, full = fg.class_centroids(X, y, **kw), fg.class_centroids(wide, y, **kw)
        pairs.append((narrow.centroids, full.centroids))
        pairs.append(
            (
                fg.class_centroids.vjp(X, y, narrow.centroids, **kw),
                fg.class_centroids.vjp(wide, y, narrow.centroids.astype(np.float32), **kw),
            )
        )
        pairs.append(
            (fg.class_centroids.jvp(X, y, v, **kw), fg.class_centroids.jvp(wide, y, along, **kw))
        )
    c = rng.normal(size=(2, 4, 21)).astype(np.float32)
    g = rng.normal(size=(2, 31, 4)).astype(np.float32)
    pairs += [
        (fg.prototype_logits(X, c), fg.prototype_logits(wide, c)),
        (fg.prototype_logits.vjp(X, c, g), fg.prototype_logits.vjp(wide, c, g)),
        (fg.prototype_logits.jvp(X, c, v), fg.prototype_logits.jvp(wide, c, along)),
    ]
    for actual, expected in pairs:
        assert actual.dtype == half
        np.testing.assert_array_equal(
            actual.astype(float), np.asarray(expected).astype(half).astype(float)
        )


def test_gradient_is_that_of_the_value(rng):
    X, y = rng.normal(size=(20, 3)), rng.integers(0, 3, 20)
    v = rng.normal(size=X.shape)
    h = 1e-6
    ahead, behind = (fg.centroid_hinge(X + s * v, y, margin=1.1) for s in (h, -h))
    slope = (fg.centroid_hinge.grad(X, y, margin=1.1) * v).sum()
    # Differences of h: an error of h**2, and of eps / h for the rounding of two values.
    assert abs((ahead - behind) / (2 * h) - slope) <= 10 * (h**2 + np.finfo(float).eps / h)


@pytest.mark.parametrize("weight", [5e-324, 1e-300, 1.0, 1e308])
def test_the_hinge_does_not_depend_on_the_size_of_weights(weight):
    X = np.array([[1.0], [9.0]])
    value, grad = fg.centroid_hinge.value_and_grad(X, [0, 0], sample_weight=[weight, weight])
    assert value == pytest.approx(9.0, rel=1e-15)
    np.testing.assert_allclose(grad, [[-3.0], [3.0]], rtol=1e-15)


@pytest.mark.parametrize("apart", [1e-300, 1e-60, 1e-30, 1e30, 1e200])
@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_of_one_class_say_nothing_of_another(dtype, size, apart):
    rng = np.random.default_rng(3)
    X, y = (size * rng.uniform(1, 2, (2, 40, 3))).astype(dtype), rng.integers(0, 4, (2, 40))
    y[:, :8], y[1, 9] = np.arange(8) % 4, IGNORED
    w = rng.uniform(0.5, 1, y.shape)
    w[0, 11] = 0
    options = {"num_classes": 5, "ignore_index": IGNORED}
    far = np.where(y == 1, apart, 1) * w
    far[1, y[1] == 2] /= apart
    g = rng.uniform(1, 2, (2, 5, 3))
    results = [
        (
            fg.segment_mean(X, y, weights=v, num_segments=5, ignore_index=IGNORED),
            fg.class_centroids.vjp(X, y, g, sample_weight=v, **options),
            fg.class_centroids(X, y, sample_weight=v, leave_one_out=True, **options).centroids,
            fg.class_centroids.vjp(X, y, X, sample_weight=v, leave_one_out=True, **options),
            fg.class_centroids(X, y, sample_weight=v, **options).counts,
            *fg.centroid_hinge.value_and_grad(X, y, margin=0.1 * size, sample_weight=v, **options),
        )
        for v in (w, far)
    ]
    # Weights of float32 rows are rounded to it, here in another place: each by eps / 2.
    tolerance = 16 * np.finfo(dtype).eps
    for near, result in zip(*results, strict=True):
        np.testing.assert_allclose(result, near, rtol=0, atol=tolerance * np.nanmax(np.abs(near)))
    assert np.isnan(results[1][0][:, 4]).all()
    states = [
        fg.streaming.CentroidState(5, ignore_index=IGNORED)
        .update(X[0, :20], y[0, :20], sample_weight=v[0, :20])
        .update(X[0, 20:], y[0, 20:], sample_weight=v[0, 20:])
        for v in (w, far)
    ]
    np.testing.assert_allclose(states[1].centroids, states[0].centroids, rtol=tolerance)
    np.testing.assert_allclose(states[1].variance, states[0].variance, rtol=tolerance)


@pytest.mark.parametrize("options", [{}, {"sample_weight": [1, 1, 1]}, {"leave_one_out": True}])
def test_counts_belong_to_the_caller(options):
    plan = fg.Segments.from_ids([0, 1, 0])
    fg.class_centroids(np.ones((3, 2)), plan, **options).counts[:] = 7
    np.testing.assert_array_equal(plan.counts, [2, 1])
