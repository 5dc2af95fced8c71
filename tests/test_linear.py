"""linear_cross_entropy: against the twin, whatever the tiles; options, layouts, memory, SciPy."""

from __future__ import annotations

import copy
import itertools
import pickle
import tracemalloc

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

import fastgrad as fg
from fastgrad import _reference as ref

LOSS = fg.linear_cross_entropy
N, D, K = 37, 5, 11
NAMES = ("W", "bias", "X")
WRT = [w for n in (1, 2, 3) for w in itertools.permutations(NAMES, n)]

# Bytes: tiles of one row and pieces of one class; an uneven last tile; pieces of several classes;
# tiles of 32 rows and the rest; one tile.  (A row of float64 takes 8 (K + 2 D) = 168.)
MEMORY = [1, 168 * 5, 3000, 168 * 32, 2**26]
memories = pytest.mark.parametrize("memory", MEMORY)
kinds = pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
reductions = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])

OPTIONS = {
    "plain": lambda rng: {},
    "smoothing": lambda rng: {"label_smoothing": 0.2},
    "z_loss": lambda rng: {"z_loss": 0.1},
    "weight": lambda rng: {"weight": np.r_[0.0, rng.random(K - 1)]},
    "weight-smoothing": lambda rng: {
        "weight": np.r_[0.0, rng.random(K - 1)],
        "label_smoothing": 0.3,
    },
    "sample_weight": lambda rng: {"sample_weight": np.r_[0.0, 0.0, rng.random(N - 2)]},
    "bias": lambda rng: {"bias": rng.normal(size=K)},
    "l2": lambda rng: {"l2": 0.3},
    "normalizer": lambda rng: {"normalizer": 3.0},
    "all": lambda rng: {
        "weight": np.r_[rng.random(K - 1), 0.0],
        "sample_weight": np.r_[rng.random(N - 1), 0.0],
        "bias": rng.normal(size=K),
        "l2": 0.1,
        "label_smoothing": 0.1,
        "z_loss": 0.2,
    },
}


def data(rng, soft=False, rows=N, features=D, classes=K):
    X, W = rng.normal(size=(rows, features)), rng.normal(size=(classes, features))
    if soft:
        return X, W, rng.dirichlet(np.ones(classes), rows)
    return X, W, rng.integers(0, classes, rows)


EPS = float(np.finfo(np.float64).eps)


def assert_near(actual, expected, factor=64, eps=EPS):
    """Errors within `factor` eps of the largest element.

    An element is a sum of at most N + K + d terms of the size of the largest, each product with a
    few roundings of its own; errors that pile up like a random walk stay below sqrt(53) eps, so 64
    leaves room for an element that is small by chance, and none for a wrong term.
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.array_equal(np.isnan(actual), np.isnan(expected))
    if expected.size:
        scale = np.nanmax(np.abs(expected), initial=0)
        error = np.nanmax(np.abs(actual - expected), initial=0)
        assert error <= factor * eps * scale, f"{error / scale / eps:.1f} eps"


def assert_all_near(actual, expected, **kw):
    for a, e in zip(actual, expected, strict=True):
        assert_near(a, e, **kw)


# ---- against the twin ---------------------------------------------------------------------------


@pytest.fixture(params=OPTIONS)
def options(request, rng, reduction):
    chosen = OPTIONS[request.param](rng)
    if reduction != "mean" and "normalizer" in chosen:
        pytest.skip("a normalizer belongs to the mean")
    if reduction == "none":
        chosen.pop("l2", None)
    factor = rng.normal(size=N) if reduction == "none" else 1.7
    return chosen | {"reduction": reduction, "grad_output": factor}


@memories
@reductions
@kinds
def test_everything_agrees_with_the_twin(rng, soft, reduction, options, memory):
    X, W, target = data(rng, soft)
    if not soft:
        target[[0, 20]] = -100
    kw = options | {"memory": memory}
    value, grad = LOSS.value_and_grad(X, W, target, **kw)
    expected, slopes = ref.linear_cross_entropy_value_and_grad(X, W, target, **options)
    assert_near(value, expected)
    assert_all_near(grad, slopes)
    assert_all_near(LOSS.grad(X, W, target, **kw), slopes)
    call = {k: v for k, v in kw.items() if k != "grad_output"}
    np.testing.assert_array_equal(LOSS(X, W, target, **call), value)
    v = [rng.normal(size=g.shape) for g in grad]
    assert_all_near(
        LOSS.hvp(X, W, target, v, **kw), ref.linear_cross_entropy_hvp(X, W, target, v, **options)
    )
    if not options.keys() & {"l2", "z_loss"}:
        assert_all_near(
            LOSS.fisher_diag(X, W, target, **kw),
            ref.linear_cross_entropy_fisher_diag(X, W, target, **options),
        )


@pytest.mark.parametrize("memory", [168 * 5, 2**26])
@pytest.mark.parametrize("wrt", WRT, ids="-".join)
def test_every_choice_of_wrt(rng, wrt, memory):
    X, W, y = data(rng)
    kw = {"bias": rng.normal(size=K), "l2": 0.2, "memory": memory, "wrt": wrt}
    shapes = {"W": W.shape, "bias": (K,), "X": X.shape}
    value, grad = LOSS.value_and_grad(X, W, y, **kw)
    assert grad._fields == wrt
    assert value == LOSS(X, W, y, **{k: a for k, a in kw.items() if k != "wrt"})
    whole = LOSS.grad(X, W, y, **(kw | {"wrt": NAMES}))
    for name in wrt:
        np.testing.assert_array_equal(getattr(grad, name), getattr(whole, name))
    v = tuple(rng.normal(size=shapes[name]) for name in wrt)
    product = LOSS.hvp(X, W, y, v, **kw)
    assert product._fields == wrt
    options = {k: a for k, a in kw.items() if k != "memory"}
    assert_all_near(product, ref.linear_cross_entropy_hvp(X, W, y, v, **options))


@pytest.mark.parametrize("wrt", [("W",), ("bias",), ("bias", "W")], ids="-".join)
def test_fisher_diag_is_the_explicit_sum(rng, wrt):
    X, W, y = data(rng)
    s = rng.random(N)
    p = fg.softmax(X @ W.T)
    curvature = s[:, None] * p * (1 - p) / s.sum()
    parts = {"W": np.einsum("nk,nj->kj", curvature, X * X), "bias": curvature.sum(axis=0)}
    result = LOSS.fisher_diag(X, W, y, sample_weight=s, wrt=wrt, memory=3000)
    assert result._fields == wrt
    assert_all_near(result, [parts[name] for name in wrt])


def test_fisher_diag_is_the_diagonal_of_the_hessian(rng):
    X, W, y = data(rng)
    diagonal = np.empty_like(W)
    for at in np.ndindex(W.shape):
        unit = np.zeros_like(W)
        unit[at] = 1
        diagonal[at] = LOSS.hvp(X, W, y, (unit,)).W[at]
    assert_near(LOSS.fisher_diag(X, W, y).W, diagonal)


def test_logits_that_are_exact_give_the_very_bits_of_cross_entropy(dtype, rng):
    """With W the identity the logits are X and dX is G; tiles and products change no bit."""
    Z = rng.normal(0, 30, (60, 24)).astype(dtype)  # confident rows among them
    y = np.where(rng.random(60) < 0.5, Z.argmax(axis=1), rng.integers(0, 24, 60))
    kw = {"reduction": "none", "memory": 20 * Z.itemsize * 72}
    value, grad = LOSS.value_and_grad(Z, np.eye(24, dtype=dtype), y, wrt=("X",), **kw)
    assert value.dtype == grad.X.dtype == dtype
    expected, G = fg.cross_entropy.value_and_grad(Z, y, reduction="none")
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_array_equal(grad.X, G)
    assert value[value > 0].min() < np.finfo(dtype).eps


def test_float32(rng):
    X, W, y = (a.astype(np.float32) if a.dtype.kind == "f" else a for a in data(rng))
    kw = {"bias": rng.normal(size=K).astype(np.float32), "l2": 0.1}
    value, grad = LOSS.value_and_grad(X, W, y, memory=2000, **kw)
    expected, slopes = ref.linear_cross_entropy_value_and_grad(X, W, y, **kw)
    assert type(value) is float
    assert all(g.dtype == np.float32 for g in grad)
    assert_near(value, expected, eps=np.finfo(np.float32).eps)
    assert_all_near(grad, slopes, eps=np.finfo(np.float32).eps)


# ---- second order -------------------------------------------------------------------------------


def flattened(parts):
    return np.concatenate([np.ravel(p) for p in parts])


@kinds
@pytest.mark.parametrize("wrt", [("W", "bias"), ("X",), ("X", "W"), NAMES], ids="-".join)
def test_hvp_is_symmetric(rng, soft, wrt):
    X, W, target = data(rng, soft)
    shapes = {"W": W.shape, "bias": (K,), "X": X.shape}
    u, v = (tuple(rng.normal(size=shapes[n]) for n in wrt) for _ in range(2))
    kw = {"wrt": wrt, "z_loss": 0.1, "l2": 0.2, "memory": 3000}
    Hu, Hv = (flattened(LOSS.hvp(X, W, target, a, **kw)) for a in (u, v))
    left, right = Hu @ flattened(v), Hv @ flattened(u)
    # Each side is a dot product of up to 251 terms.
    size = np.abs(Hu) @ np.abs(flattened(v))
    assert abs(left - right) <= 64 * EPS * size


@kinds
@pytest.mark.parametrize("wrt", [("W", "bias"), ("X",), NAMES], ids="-".join)
def test_hvp_is_the_difference_of_gradients(rng, soft, wrt):
    X, W, target = data(rng, soft)
    at = {"W": W, "bias": rng.normal(size=K), "X": X}
    v = {name: rng.normal(size=at[name].shape) for name in wrt}
    h = EPS ** (1 / 3)

    def grad(step):
        moved = {name: a + step * v.get(name, 0.0) for name, a in at.items()}
        return LOSS.grad(
            moved["X"], moved["W"], target, bias=moved["bias"], l2=0.1, z_loss=0.05, wrt=wrt
        )

    product = LOSS.hvp(
        X, W, target, tuple(v.values()), bias=at["bias"], l2=0.1, z_loss=0.05, wrt=wrt
    )
    difference = (flattened(grad(h)) - flattened(grad(-h))) / (2 * h)
    # Truncation h**2 and rounding eps / h are both eps**(2/3), times derivatives of order 1 to 100.
    assert np.abs(flattened(product) - difference).max() <= 100 * h**2 * np.abs(difference).max()


def test_hvp_of_equal_rows_is_zero(rng):
    """The same vector added to every class changes no probability."""
    X, W, y = data(rng)
    v = np.tile(rng.normal(size=D), (K, 1))
    # D = X v' is constant along the classes up to the rounding of its d products.
    size = np.abs(X).max() ** 2 * np.abs(v).max() * D
    assert np.abs(LOSS.hvp(X, W, y, (v,)).W).max() <= 8 * EPS * size


# ---- rows that do not count ---------------------------------------------------------------------


@memories
def test_ignored_rows_may_hold_anything(rng, memory):
    X, W, y = data(rng)
    gone = rng.random(N) < 0.4
    weight, s = np.r_[0.0, np.ones(K - 1)], rng.random(N)
    y[y == 0], y[gone] = 1, 2
    y[np.flatnonzero(gone)[::3]] = -100
    y[np.flatnonzero(gone)[1::3]] = 0
    s[np.flatnonzero(gone)[2::3]] = 0.0
    dirty = X.copy()
    dirty[gone] = np.nan
    kw = {"weight": weight, "memory": memory, "l2": 0.1}
    value, grad = LOSS.value_and_grad(dirty, W, y, sample_weight=s, **kw)
    kept = ~gone
    expected, slopes = LOSS.value_and_grad(X[kept], W, y[kept], sample_weight=s[kept], **kw)
    assert_near(value, expected)
    assert_all_near((grad.W, grad.bias, grad.X[kept]), (slopes.W, slopes.bias, slopes.X))
    assert not grad.X[gone].any()
    v = tuple(rng.normal(size=g.shape) for g in grad)
    v[2][gone] = np.nan
    product = LOSS.hvp(dirty, W, y, v, sample_weight=s, **kw)
    assert np.isfinite(flattened(product)).all()
    assert not product.X[gone].any()
    losses = LOSS(dirty, W, y, sample_weight=s, weight=weight, reduction="none", memory=memory)
    assert not losses[gone].any()
    assert losses[kept].all()


@pytest.mark.parametrize("rows", [0, 4], ids=["no rows", "none kept"])
@pytest.mark.parametrize("l2", [0.0, 0.5])
def test_nothing_kept(rng, rows, l2):
    X, W, _ = data(rng, rows=rows)
    X[...] = np.nan
    y = np.full(rows, -100)
    value, grad = LOSS.value_and_grad(X, W, y, l2=l2)
    assert np.isnan(value)
    np.testing.assert_array_equal(grad.W, l2 * W)
    assert not grad.bias.any()
    assert not grad.X.any()
    assert grad.X.shape == X.shape
    assert_near(LOSS(X, W, y, reduction="sum", l2=l2), l2 / 2 * (W**2).sum())
    assert_near(LOSS(X, W, y, normalizer=2, l2=l2), l2 / 2 * (W**2).sum())
    np.testing.assert_array_equal(LOSS.hvp(X, W, y, (W, W[:, 0]), l2=l2).W, l2 * W)
    assert not LOSS.fisher_diag(X, W, y).W.any()
    np.testing.assert_array_equal(LOSS(X, W, y, reduction="none"), np.zeros(rows))


def test_weights_that_sum_to_zero_although_rows_are_smoothed(rng):
    X, W, y = data(rng)
    kw = {"weight": (np.arange(K) > 0).astype(float), "label_smoothing": 0.1}
    value, grad = LOSS.value_and_grad(X, W, np.zeros_like(y), **kw)
    assert np.isnan(value)
    assert not flattened(grad).any()


def test_no_features(rng):
    value, grad = LOSS.value_and_grad(np.empty((4, 0)), np.empty((3, 0)), [0, 1, 2, 0])
    assert value == pytest.approx(np.log(3), rel=1e-15)
    assert grad.W.shape == (3, 0)
    assert_near(grad.bias, np.array([-2, 1, 1]) / 12)


def test_nan_and_infinities_stay_in_their_rows(rng):
    X, W, y = data(rng)
    X[3], X[7] = np.nan, np.inf
    losses, grad = LOSS.value_and_grad(X, W, y, reduction="none", wrt=("X",), memory=3000)
    bad = np.isin(np.arange(N), [3, 7])
    assert np.isnan(losses[bad]).all()
    assert np.isfinite(losses[~bad]).all()
    assert np.isfinite(grad.X[~bad]).all()
    assert np.isnan(LOSS.grad(X, W, y).W).all()


def test_a_product_that_overflows_does_not_warn():
    X, W = np.full((2, 2), 1e300), np.array([[1e300, 1e300], [0, 0]])
    assert np.isnan(LOSS(X, W, [0, 1]))
    assert np.isnan(LOSS(X, W, [0, 1], l2=1.0))


# ---- what options mean --------------------------------------------------------------------------


def test_penalty_never_touches_the_bias(rng):
    X, W, y = data(rng)
    b = 100 * rng.normal(size=K)
    without, with_l2 = (LOSS.value_and_grad(X, W, y, bias=b, l2=l2) for l2 in (0.0, 2.0))
    assert_near(with_l2[0], without[0] + (W**2).sum())
    np.testing.assert_array_equal(with_l2[1].bias, without[1].bias)
    np.testing.assert_array_equal(with_l2[1].X, without[1].X)
    assert_near(with_l2[1].W, without[1].W + 2 * W)


def test_penalty_is_summed_in_float64(rng):
    W = rng.random((300, 1000)).astype(np.float32) + 1
    X = np.zeros((1, 1000), np.float32)
    exact = (W.astype(np.longdouble) ** 2).sum() / 2 + np.log(np.longdouble(300))
    # The sum has 3e5 terms of one sign, and float32 alone would be off by 1e-5 or more; the loss
    # itself is a float32 sum next to 3e5.
    assert abs(LOSS(X, W, [0], l2=1.0) - exact) <= 1e-11 * exact


def test_chunks_with_a_normalizer_add_up(rng):
    X, W, y = data(rng)
    value, grad = LOSS.value_and_grad(X, W, y)
    parts = [LOSS.value_and_grad(X[i], W, y[i], normalizer=N) for i in (slice(20), slice(20, N))]
    assert_near(sum(p[0] for p in parts), value)
    assert_near(sum(p[1].W for p in parts), grad.W)
    assert_near(np.concatenate([p[1].X for p in parts]), grad.X)


def test_weight_two_is_a_repeated_row(rng):
    X, W, y = data(rng)
    s = rng.integers(1, 4, N)
    value, grad = LOSS.value_and_grad(X, W, y, sample_weight=s, wrt=("W",))
    again, slopes = LOSS.value_and_grad(np.repeat(X, s, 0), W, np.repeat(y, s), wrt=("W",))
    assert_near(value, again)
    assert_near(grad.W, slopes.W)


def test_no_bias_is_a_bias_of_zero(rng):
    X, W, y = data(rng)
    a, b = (LOSS.value_and_grad(X, W, y, bias=bias) for bias in (None, np.zeros(K)))
    assert a[0] == b[0]
    assert_all_near(a[1], b[1])


# ---- dtypes and layouts -------------------------------------------------------------------------

LAYOUTS = {
    "Fortran": np.asfortranarray,
    "columns skipped": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "rows skipped": lambda a: np.repeat(a, 3, axis=0)[::3],
    "both skipped": lambda a: np.repeat(np.repeat(a, 2, axis=1), 3, axis=0)[::3, ::2],
    "backwards": lambda a: a[::-1].copy()[::-1],
    "wide": lambda a: np.hstack([a, a])[:, : a.shape[1]],
    "big-endian": lambda a: a.astype(">f8"),
    "list": lambda a: a.tolist(),
}


@pytest.mark.parametrize("of_w", [None, *LAYOUTS])
@pytest.mark.parametrize("of_x", [None, *LAYOUTS])
def test_layouts_of_X_and_W(rng, of_x, of_w):
    X, W, y = data(rng)
    y[5] = -100
    expected, slopes = LOSS.value_and_grad(X, W, y, memory=3000)
    given = LAYOUTS.get(of_x, np.copy)(X), LAYOUTS.get(of_w, np.copy)(W)
    before = [np.array(a) for a in given]
    value, grad = LOSS.value_and_grad(*given, y, memory=3000)
    assert_near(value, expected)
    assert_all_near(grad, slopes)
    assert all(g.flags.c_contiguous for g in grad)
    for a, b in zip(given, before, strict=True):
        np.testing.assert_array_equal(a, b)
    v = given[1], rng.normal(size=K), given[0]
    plain = LOSS.hvp(X, W, y, (W, v[1], X), memory=3000)
    assert_all_near(LOSS.hvp(*given, y, v, memory=3000), plain)


def test_read_only_arguments(rng):
    X, W, y = data(rng)
    for a in (X, W, y):
        a.flags.writeable = False
    LOSS.value_and_grad(X, W, y)


def test_integers_become_floats():
    X, W = np.arange(6, dtype=np.uint8).reshape(3, 2), np.eye(2, dtype=int)
    expected = LOSS.value_and_grad(X.astype(float), W.astype(float), [0, 1, 1])
    value, grad = LOSS.value_and_grad(X, W, [0, 1, 1])
    assert value == expected[0]
    assert_all_near(grad, expected[1], factor=0)
    assert LOSS.grad(X.astype(np.float32), W, [0, 1, 1]).W.dtype == np.float32


# ---- memory -------------------------------------------------------------------------------------


def peak(f):
    """Bytes allocated at most, what f returns included; NumPy reports its arrays."""
    tracemalloc.start()
    try:
        f()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


SLACK = 200_000
"""Bytes for objects, and for what is one number per row: targets, weights, rows kept."""


def test_logits_never_exist_as_a_whole(rng):
    X, W, y = data(rng, rows=2000, features=8, classes=3000)  # the logits take 48 MB
    memory = 2**20
    v = (W, W[:, 0].copy(), X)
    y[::7] = -100
    budget = 17 * memory // 16 + W.nbytes + W[:, 0].nbytes + X.nbytes + SLACK
    assert peak(lambda: LOSS.value_and_grad(X, W, y, l2=0.1, memory=memory)) < budget
    assert peak(lambda: LOSS.fisher_diag(X, W, y, memory=memory)) < budget
    # pieces for the product with vX, a sixteenth, exist beside those of the gradient
    assert peak(lambda: LOSS.hvp(X, W, y, v, l2=0.1, memory=memory)) < budget + memory // 16


@pytest.mark.parametrize("l2", [0.0, 1.0])
def test_neither_X_nor_W_is_copied(rng, l2):
    X, W, y = data(rng, rows=4000, features=100, classes=4000)  # 3.2 MB each
    memory = 2**20
    assert peak(lambda: LOSS(X, W, y, l2=l2, memory=memory)) < 17 * memory // 16 + SLACK


# ---- a loss like the others ---------------------------------------------------------------------


def test_named_results_pickle(rng):
    X, W, y = data(rng)
    results = [LOSS.grad(X, W, y, wrt=wrt) for wrt in WRT]
    results += [LOSS.hvp(X, W, y, (W,)), LOSS.fisher_diag(X, W, y)]
    for result in results:
        for again in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result), copy.copy(result)):
            assert type(again) is type(result)
            assert again._fields == result._fields
            assert_all_near(again, result, factor=0)


def test_the_loss_pickles():
    assert pickle.loads(pickle.dumps(LOSS)) is LOSS
    assert copy.deepcopy(LOSS) is LOSS


def test_derivatives_that_it_has(raises_exactly):
    assert hasattr(LOSS, "fisher_diag")
    assert not hasattr(LOSS, "hess_diag")
    message = "linear_cross_entropy has no hess_diag, because its Hessian is that of three "
    message += "arguments; fisher_diag is the diagonal in W and bias, without the penalty."
    raises_exactly(AttributeError, message, getattr, LOSS, "hess_diag")
    raises_exactly(
        AttributeError, "'LinearCrossEntropy' object has no attribute 'x'", getattr, LOSS, "x"
    )


def test_with_options(rng):
    X, W, y = data(rng)
    smooth = LOSS.with_options(label_smoothing=0.1).with_options(memory=3000)
    kw = {"label_smoothing": 0.1, "memory": 3000}
    assert smooth(X, W, y) == LOSS(X, W, y, **kw)
    for name in ("grad", "fisher_diag"):
        assert_all_near(
            getattr(smooth, name)(X, W, y), getattr(LOSS, name)(X, W, y, **kw), factor=0
        )
    assert_all_near(smooth.hvp(X, W, y, (W,)), LOSS.hvp(X, W, y, (W,), **kw), factor=0)
    assert not hasattr(smooth, "hess_diag")


# ---- SciPy and scikit-learn ---------------------------------------------------------------------

L2 = 1e-3


@pytest.fixture
def one_thread():
    """NumPy's and SciPy's BLAS threads wait for each other longer than the products take."""
    with threadpool_limits(limits=1):
        yield


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X / 16, y


@pytest.fixture(scope="module")
def fun(digits):
    X, y = digits
    return LOSS.flat(X, y, num_classes=10, l2=L2)


def test_flat_is_the_loss_of_its_parts(rng, dtype):
    X, W, y = data(rng)
    X, W, b = X.astype(dtype), W.astype(dtype), rng.normal(size=K).astype(dtype)
    kw = {"l2": 0.1, "label_smoothing": 0.1, "sample_weight": rng.random(N)}
    fun = LOSS.flat(X, y, num_classes=K, **kw)
    theta = np.r_[W.ravel(), b].astype(np.float64)
    value, grad = fun(theta)
    expected, slopes = LOSS.value_and_grad(X, W, y, bias=b, wrt=("W", "bias"), **kw)
    assert value == expected
    assert grad.dtype == np.float64
    np.testing.assert_array_equal(grad, flattened(slopes))
    v = rng.normal(size=theta.size).astype(dtype)
    split = v[: W.size].reshape(W.shape), v[W.size :]
    product = fun.hessp(theta, v)
    assert product.dtype == np.float64
    np.testing.assert_array_equal(product, flattened(LOSS.hvp(X, W, y, split, bias=b, **kw)))
    assert all(np.shares_memory(part, theta) for part in fun.unpack(theta))
    assert_all_near(fun.unpack(theta), (W, b), factor=0)
    np.testing.assert_array_equal(fun.start(), np.zeros(K * D + K))


@kinds
def test_flat_without_bias(rng, soft):
    X, W, target = data(rng, soft)
    fun = LOSS.flat(X, target, num_classes=K, bias=False, reduction="sum")
    value, grad = fun(W.ravel())
    expected, slopes = LOSS.value_and_grad(X, W, target, wrt=("W",), reduction="sum")
    assert value == expected
    np.testing.assert_array_equal(grad, slopes.W.ravel())
    product = LOSS.hvp(X, W, target, (W,), reduction="sum")
    np.testing.assert_array_equal(fun.hessp(W.ravel(), W.ravel()), product.W.ravel())
    assert fun.unpack(W.ravel())[1] is None
    assert fun.start().shape == (K * D,)


def test_flat_pickles(rng):
    X, W, y = data(rng)
    fun = LOSS.flat(X, y, num_classes=K, bias=False)
    assert pickle.loads(pickle.dumps(fun))(W.ravel())[0] == fun(W.ravel())[0]


class Counted:
    """Counts the calls that compute a gradient."""

    def __init__(self, fun):
        self.fun, self.calls = fun, 0

    def __call__(self, theta):
        self.calls += 1
        return self.fun(theta)


def test_newton_needs_fewer_gradients_than_lbfgs(fun, one_thread):
    newton, lbfgs = Counted(fun), Counted(fun)
    a = minimize(
        newton, fun.start(), jac=True, hessp=fun.hessp, method="Newton-CG", options={"xtol": 1e-10}
    )
    b = minimize(
        lbfgs,
        fun.start(),
        jac=True,
        method="L-BFGS-B",
        options={"gtol": 1e-9, "ftol": 0.0, "maxiter": 5000, "maxfun": 10_000},
    )
    assert newton.calls < lbfgs.calls
    # The objective is L2-strongly convex in W: at most |gradient|^2 / (2 L2) above its minimum.
    for result in (a, b):
        slope = fun(result.x)[1]
        assert slope @ slope / (2 * L2) < 1e-11
    assert abs(a.fun - b.fun) < 1e-11


def test_scikit_learn_finds_the_same_model(digits, fun, one_thread):
    X, y = digits
    model = LogisticRegression(C=1 / (L2 * len(y)), tol=1e-10, max_iter=10_000).fit(X, y)
    result = minimize(fun, fun.start(), jac=True, hessp=fun.hessp, method="Newton-CG")
    W, bias = fun.unpack(result.x)
    theirs = fun(np.r_[model.coef_.ravel(), model.intercept_])
    assert abs(result.fun - theirs[0]) < 1e-8
    # Newton-CG stops at steps of 1e-5 on average, and scikit-learn's own stop is of that size.
    assert np.abs(W - model.coef_).max() < 1e-2
    center = bias - bias.mean(), model.intercept_ - model.intercept_.mean()
    assert np.abs(center[0] - center[1]).max() < 1e-2


def test_a_flat_vector_too_large_for_the_dtype_warns_of_nothing():
    f = fg.linear_cross_entropy.flat(np.ones((3, 2), np.float32), [0, 1, 2], num_classes=3)
    value, _ = f(np.full(9, 1e300))
    assert np.isnan(value) or np.isinf(value)
