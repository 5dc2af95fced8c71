"""The boosting bridge: its contract with each library, and training against built-in objectives.

How closely a custom objective can agree with the built-in one, with the same start score:

- XGBoost: the same splits; scores to rounding of float32 (it keeps scores and leaves in float32,
  and its own softmax is one of float32).
- LightGBM: the same splits; scores to rounding of float64 (both round the same derivatives to
  float32; they may differ in the last bit of float64 before that).
- CatBoost: scores to rounding of float64.

Splits could differ where two of them have the same gain to the last bits; these data have none.
A row of weight 2 equals the row twice in XGBoost.  LightGBM estimates counts of rows from sums of
curvatures, and CatBoost scales its l2 by the mean weight: their built-in objectives do not have
this property either, so there weights are tested against the built-in objectives.
"""

# ruff: noqa: E501  (a message is easier to search for in one piece)

from __future__ import annotations

import copy
import doctest
import inspect
import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from sklearn import datasets
from sklearn.base import clone

import fastgrad as fg
from fastgrad import _reference as ref
from fastgrad import boosting
from fastgrad.boosting import CatBoostObjective, LightGBMObjective, XGBoostObjective, init_score

LD = np.longdouble
EPS32, EPS64 = np.finfo(np.float32).eps, np.finfo(np.float64).eps
BOTH = pytest.mark.parametrize("objective", [XGBoostObjective, LightGBMObjective])


def squared_value(z, y):
    return 0.5 * float(np.sum((z - y) ** 2))


def squared_grad(z, y):
    return z - y


def squared_hess(z, y):
    return np.ones_like(z)


SQUARED = fg.Loss(squared_value, grad=squared_grad, hess_diag=squared_hess, name="squared")


def as_passed(objective, scores):
    """Scores as the library passes them: dtype and memory order."""
    if objective is XGBoostObjective:
        return np.ascontiguousarray(scores, np.float32)
    return np.asfortranarray(scores, np.float64)


def draw(rng, n=40, k=5):
    return rng.normal(size=(n, k)) * 3, rng.integers(0, k, n)


# ---- the contract -------------------------------------------------------------------------------


@BOTH
def test_results_are_float32_in_the_order_of_the_scores(objective, rng):
    z, y = draw(rng)
    scores = as_passed(objective, z)
    for d in objective(fg.cross_entropy)(y.astype(np.float32), scores):
        assert d.dtype == np.float32
        assert d.shape == scores.shape
        assert d.flags.f_contiguous == (objective is LightGBMObjective)
        assert d.flags.c_contiguous == (objective is XGBoostObjective)


OPTIONS = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "class-weights": {"weight": [0.5, 1, 2, 3, 4]},
    "both": {"label_smoothing": 0.2, "weight": [0.5, 1, 2, 3, 4]},
}


@BOTH
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weights"])
def test_gradient_is_that_of_each_row(objective, options, weighted, rng, assert_ulps):
    """Never divided by N: it equals the twin's gradient of the sum."""
    z, y = draw(rng)
    w = rng.integers(0, 4, len(y)).astype(np.float32) if weighted else None
    scores = as_passed(objective, z)
    grad, _ = objective(fg.cross_entropy.with_options(**options))(y.astype(np.float32), scores, w)
    exact = ref.cross_entropy_grad(scores, y, reduction="sum", sample_weight=w, **options)
    if objective is LightGBMObjective:  # computed in float64, rounded once
        assert_ulps(grad, exact, 0.51)
    else:
        # The kernel's bar, and the weight's rounding; with smoothing, A p - m cancels.
        p = ref.softmax(scores, -1)
        mass = np.abs(exact).sum(axis=1, keepdims=True)
        if "label_smoothing" in options:
            hess = ref.cross_entropy_hess_diag(
                scores, y, reduction="sum", sample_weight=w, **options
            )
            mass = hess / (p * (1 - p))
        assert_ulps(grad, exact, 8.5, scale=np.maximum(np.abs(exact), p * mass))


@BOTH
def test_gradient_of_soft_labels(objective, rng, assert_ulps):
    z, _ = draw(rng)
    t = ref.softmax(rng.normal(size=z.shape), -1).astype(np.float64)
    scores = as_passed(objective, z)
    grad, _ = objective(fg.cross_entropy, target=t)(np.zeros(len(z)), scores)
    exact = ref.cross_entropy_grad(scores, t, reduction="sum")
    # p - t cancels, and t is rounded to the dtype of the scores.
    assert_ulps(grad, exact, 8, scale=np.maximum(t, ref.softmax(scores, -1)))


@pytest.mark.parametrize(
    ("objective", "curvature", "factor"),
    [
        (XGBoostObjective, "native", 2),
        (LightGBMObjective, "native", LD(5) / 4),
        (XGBoostObjective, "exact", 1),
        (LightGBMObjective, "exact", 1),
    ],
)
def test_curvature_of_softmax(objective, curvature, factor, rng, assert_ulps):
    z, y = draw(rng)
    w = rng.uniform(0.5, 2, len(y)).astype(np.float32)
    scores = as_passed(objective, z)
    _, hess = objective(fg.cross_entropy, curvature=curvature)(y, scores, w)
    exact = factor * ref.cross_entropy_hess_diag(scores, y, reduction="sum", sample_weight=w)
    assert_ulps(hess, exact, 8 if objective is XGBoostObjective else 0.51)


@BOTH
def test_curvature_scales_with_class_weight(objective, rng, assert_ulps):
    z, y = draw(rng)
    scores = as_passed(objective, z)
    loss = fg.cross_entropy.with_options(weight=np.arange(1.0, 6))
    _, hess = objective(loss)(y, scores)
    _, plain = objective(fg.cross_entropy)(y, scores)
    assert_ulps(hess, (y + 1.0)[:, None] * plain.astype(LD), 4)


@BOTH
def test_binary_has_one_score(objective, rng, assert_ulps):
    z, y = rng.normal(size=50) * 3, rng.integers(0, 2, 50)
    w = rng.uniform(0.5, 2, 50).astype(np.float32)
    scores = as_passed(objective, z)
    grad, hess = objective(fg.binary_cross_entropy)(y.astype(np.float32), scores, w)
    options = {"reduction": "sum", "sample_weight": w}
    assert_ulps(grad, ref.binary_cross_entropy_grad(scores, y, **options), 9)
    assert_ulps(hess, ref.binary_cross_entropy_hess_diag(scores, y, **options), 9)


@BOTH
def test_several_labels_per_row(objective, rng):
    """Elementwise, so each label is the binary problem; weights belong to rows, not to labels."""
    z, t = rng.normal(size=(4, 4)), rng.integers(0, 2, (4, 4)).astype(np.float32)
    w = np.array([1, 2, 3, 4], np.float32)
    scores = as_passed(objective, z)
    bound = objective(fg.binary_cross_entropy)
    together = bound(t, scores, w)
    for k in range(4):
        column = bound(t[:, k].copy(), scores[:, k].copy(), w)
        for a, b in zip(together, column, strict=True):
            np.testing.assert_array_max_ulp(a[:, k], b, maxulp=2)


@BOTH
def test_floor(objective, rng):
    z, y = draw(rng)
    z[0] = [200, -200, 0, 0, 0]  # p (1 - p) is 0 in float32, and far below 1e-16 in float64
    y[1] = -100  # ignored
    w = np.ones(len(y), np.float32)
    w[2] = 0
    grad, hess = objective(fg.cross_entropy)(y, as_passed(objective, z), w)
    assert (hess[:3] == np.float32(1e-16)).all()
    assert (hess[3:] > 1e-16).all()
    assert (grad[1:3] == 0).all()
    _, hess = objective(fg.cross_entropy, floor=0.25)(y, as_passed(objective, z))
    assert hess.min() == 0.25 < hess.max()


@BOTH
def test_blocks_change_nothing(objective, rng, monkeypatch):
    z, y = draw(rng, n=100)
    w = rng.uniform(size=100)
    scores = as_passed(objective, z)
    bound = objective(fg.cross_entropy.with_options(weight=np.ones(5)))
    whole = bound(y, scores, w)
    monkeypatch.setattr(boosting, "_BLOCK", 7 * 5 + 1)
    for a, b in zip(whole, bound(y, scores, w), strict=True):
        np.testing.assert_array_equal(a, b)


@BOTH
def test_options_with_a_value_per_row_are_not_cut(objective, rng, monkeypatch):
    z, y = draw(rng)
    s = rng.uniform(size=len(y))
    scores = as_passed(objective, z)
    monkeypatch.setattr(boosting, "_BLOCK", 7 * 5)
    bound = objective(fg.cross_entropy.with_options(sample_weight=s))
    weighted = objective(fg.cross_entropy)(y, scores, s)
    for a, b in zip(bound(y, scores), weighted, strict=True):
        np.testing.assert_array_max_ulp(a, b, maxulp=2)


def test_memory(rng):
    """LightGBM's scores are float64; no float64 array of their size is made beside the result."""
    n, k = 200_000, 16
    scores = np.asfortranarray(rng.normal(size=(n, k)))
    y = rng.integers(0, k, n)
    objective = LightGBMObjective(fg.cross_entropy)
    tracemalloc.start()
    grad, hess = objective(y, scores)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - grad.nbytes - hess.nbytes < scores.nbytes / 2


@BOTH
def test_both_orders_of_arguments(objective, rng):
    """The training functions pass (scores, data set), the wrappers (labels, scores, weights)."""
    z, y = draw(rng)
    scores, labels = as_passed(objective, z), y.astype(np.float32)
    for w in (None, np.arange(len(y), dtype=np.float32), np.zeros(0, np.float32)):

        class Data:
            def get_label(self):
                return labels

            def get_weight(self):
                return w  # noqa: B023

        bound = objective(fg.cross_entropy)
        for a, b in zip(bound(scores, Data()), bound(labels, scores, w), strict=True):
            np.testing.assert_array_equal(a, b)


def test_labels_of_several_columns_may_be_flat(rng):
    """As XGBoost before 3.2 has them."""
    z, t = rng.normal(size=(6, 3)).astype(np.float32), rng.dirichlet(np.ones(3), 6)

    class Data:
        def get_label(self):
            return t.astype(np.float32).ravel()

        def get_weight(self):
            return None

    bound = XGBoostObjective(fg.cross_entropy)
    for a, b in zip(bound(z, Data()), bound(t.astype(np.float32), z), strict=True):
        np.testing.assert_array_equal(a, b)


@BOTH
def test_signature_that_the_libraries_read(objective):
    parameters = inspect.signature(objective(fg.cross_entropy)).parameters
    assert list(parameters) == ["y_true", "y_pred", "sample_weight"]


# ---- users' losses ------------------------------------------------------------------------------


@BOTH
def test_users_loss(objective, rng):
    """Labels that are not whole stay floats; the weights multiply; nothing is cut into blocks."""
    z, y, w = (rng.normal(size=30) for _ in range(3))
    w = np.abs(w)
    scores = as_passed(objective, z)
    grad, hess = objective(SQUARED, curvature="exact")(y, scores, w)
    np.testing.assert_allclose(grad, w * (scores - y), rtol=2 * EPS32, atol=2 * EPS32)
    np.testing.assert_allclose(hess, w, rtol=EPS32)


@BOTH
def test_users_loss_is_called_once(objective, rng, monkeypatch):
    """It may look at all rows together, as a ranking loss does."""
    monkeypatch.setattr(boosting, "_BLOCK", 4)
    centred = fg.Loss(
        squared_value,
        grad=lambda z, y: (z - y) - (z - y).mean(axis=0),
        hess_diag=squared_hess,
        name="centred",
    )
    z = as_passed(objective, rng.normal(size=(30, 2)))
    grad, _ = objective(centred, curvature="exact")(np.zeros((30, 2)), z)
    np.testing.assert_allclose(grad, z - z.mean(axis=0), atol=4 * EPS32)


@BOTH
def test_users_loss_with_a_mean_is_asked_for_rows(objective):
    def grad(z, y, *, reduction="mean"):
        return (z - y) / (len(z) if reduction == "mean" else 1)

    def hess(z, y, *, reduction="mean"):
        return np.ones_like(z) / (len(z) if reduction == "mean" else 1)

    def value(z, y, *, reduction="mean"):
        return 0.0

    bound = objective(fg.Loss(value, grad=grad, hess_diag=hess), curvature="exact")
    grad, hess = bound(np.zeros(4), np.ones(4))
    assert (grad == 1).all()
    assert (hess == 1).all()


def test_class_indices_become_integers_only_where_they_are_whole(rng):
    seen = []

    def grad(z, y):
        seen.append(y.dtype)
        return np.zeros_like(z)

    bound = XGBoostObjective(
        fg.Loss(lambda z, y: 0.0, grad=grad, hess_diag=lambda z, y: np.ones_like(z)),
        curvature="exact",
    )
    z = np.zeros((2, 3), np.float32)
    for y in ([0, 2], [0.5, 2], [np.nan, 1], [np.inf, 1]):
        bound(np.array(y, np.float32), z)
    bound(np.array([1, 0], np.float32), z[:, 0])
    assert seen == [np.int64] + 4 * [np.float32]


# ---- what is refused ----------------------------------------------------------------------------

NO_HESSIAN = fg.Loss(squared_value, grad=squared_grad, name="rough")
NO_GRADIENT = fg.Loss(squared_value, hess_diag=squared_hess, name="flat")

REFUSED = [
    (XGBoostObjective, (abs,), {}, TypeError, "XGBoostObjective needs a fastgrad loss; got builtin_function_or_method. Make one of your functions: fg.Loss(value=..., grad=..., hess_diag=...)."),
    (LightGBMObjective, (fg.softmax,), {}, TypeError, "LightGBMObjective needs a fastgrad loss; got Softmax. Make one of your functions: fg.Loss(value=..., grad=..., hess_diag=...)."),
    (CatBoostObjective, ("MultiClass",), {}, TypeError, "CatBoostObjective needs a fastgrad loss; got str. Make one of your functions: fg.Loss(value=..., grad=..., hess_diag=...)."),
    (XGBoostObjective, (NO_HESSIAN,), {"curvature": "exact"}, TypeError, "XGBoostObjective needs the loss's hess_diag, and rough has none. Give it one: fg.Loss(..., hess_diag=...)."),
    (LightGBMObjective, (NO_GRADIENT,), {"curvature": "exact"}, TypeError, "LightGBMObjective needs the loss's grad, and flat has none. Give it one: fg.Loss(..., grad=...)."),
    (CatBoostObjective, (NO_HESSIAN,), {}, TypeError, "CatBoostObjective needs the loss's hess_diag, and rough has none. Give it one: fg.Loss(..., hess_diag=...)."),
    (XGBoostObjective, (SQUARED,), {}, ValueError, "curvature='native' is the library's own bound, which it has for cross_entropy and binary_cross_entropy; got squared. Use curvature='exact', which takes squared.hess_diag as it is."),
    (XGBoostObjective, (fg.cross_entropy,), {"curvature": "diagonal"}, ValueError, "curvature must be 'native' or 'exact'; got 'diagonal'."),
    (LightGBMObjective, (fg.cross_entropy,), {"floor": -1.0}, ValueError, "floor must be in [0, 3.40282e+38]; got -1.0."),
    (LightGBMObjective, (fg.cross_entropy,), {"floor": np.nan}, ValueError, "floor must be in [0, 3.40282e+38]; got nan."),
    (init_score, (SQUARED, [0.0]), {}, TypeError, "init_score knows the start of cross_entropy and binary_cross_entropy; got 'squared'. Minimise its sum over the rows in a constant score, for example with scipy.optimize.minimize."),
    (init_score, (fg.cross_entropy.with_options(where=[True, False]), [0]), {"num_class": 2}, ValueError, "init_score needs every class in every row; the loss has where=."),
    (init_score, (fg.cross_entropy, [-100]), {"num_class": 2}, ValueError, "target must have rows with weight; all are ignored or have weight 0."),
    (init_score, (fg.cross_entropy, [0, 1]), {}, ValueError, "cross_entropy has one score for each class: give init_score num_class=K, with K > 1; got None."),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "args", "kwargs", "kind", "message"), REFUSED, ids=range(len(REFUSED))
)
def test_refused(raises_exactly, make, args, kwargs, kind, message):
    raises_exactly(kind, message, make, *args, **kwargs)


@BOTH
def test_one_score_for_many_classes(raises_exactly, objective):
    message = (
        "cross_entropy needs one score per class, shape (N, K) with K > 1; the library passed "
        "scores of shape (3,). Set num_class, or use binary_cross_entropy for two classes with "
        "one score."
    )
    raises_exactly(ValueError, message, objective(fg.cross_entropy), np.zeros(3), np.zeros(3))


@BOTH
@pytest.mark.parametrize("rows", [3, 5])
def test_another_number_of_rows(raises_exactly, objective, rows, monkeypatch):
    monkeypatch.setattr(boosting, "_BLOCK", 4)
    message = (
        "{} must have one entry for each of the 4 rows of the scores; it has shape ({},). Parts of "
        "the data, as in cross-validation, need an objective of their own where it has a target."
    )
    y, z = np.zeros(4, int), np.zeros((4, 2))
    bound = objective(fg.cross_entropy, target=np.zeros(rows, int))
    raises_exactly(ValueError, message.format("target", rows), bound, y, z)
    bound = objective(fg.cross_entropy)
    raises_exactly(ValueError, message.format("sample_weight", rows), bound, y, z, np.ones(rows))


@BOTH
def test_derivatives_that_are_not_finite(raises_exactly, objective, monkeypatch):
    monkeypatch.setattr(boosting, "_BLOCK", 2)
    scores = np.zeros((4, 2))
    scores[3, 1] = np.nan
    message = (
        "cross_entropy.grad must be finite in float32; it is nan at [3, 0], where the score is "
        "0.0. If the scores grow without bound, lower the learning rate."
    )
    y = np.zeros(4, int)
    raises_exactly(ValueError, message, objective(fg.cross_entropy), y, scores)


@BOTH
def test_derivatives_too_large_for_float32(raises_exactly, objective):
    message = (
        "squared.grad must be finite in float32; it is inf at [1], where the score is 1e+50. "
        "If the scores grow without bound, lower the learning rate."
    )
    bound = objective(SQUARED, curvature="exact")
    raises_exactly(ValueError, message, bound, np.zeros(2), np.array([0, 1e50]))


@BOTH
def test_derivatives_of_another_shape(raises_exactly, objective):
    mean = fg.Loss(squared_value, grad=lambda z, y: 1.0, hess_diag=squared_hess, name="mean")
    message = "mean.grad must return the shape of the scores, (2,); it returned ()."
    bound = objective(mean, curvature="exact")
    raises_exactly(ValueError, message, bound, np.zeros(2), np.zeros(2))


@BOTH
def test_label_outside_the_classes(objective):
    with pytest.raises(IndexError, match=r"target must be in \[0, 3\).*target\[1\] is 3"):
        objective(fg.cross_entropy)(np.array([1, 3], np.float32), np.zeros((2, 3)))


# ---- objects ------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [XGBoostObjective, LightGBMObjective, CatBoostObjective])
@pytest.mark.parametrize("how", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies(objective, how, rng):
    z, y = draw(rng)
    original = objective(fg.cross_entropy.with_options(label_smoothing=0.1))
    other = how(original)
    assert repr(other) == repr(original)
    if objective is CatBoostObjective:
        assert other.calc_ders_multi(z[0], 1.0, 2.0) == original.calc_ders_multi(z[0], 1.0, 2.0)
    else:
        for a, b in zip(other(y, z), original(y, z), strict=True):
            np.testing.assert_array_equal(a, b)


def test_repr():
    bound = LightGBMObjective(SQUARED, curvature="exact")
    assert repr(bound) == "LightGBMObjective(<fastgrad loss squared>, curvature='exact')"


def test_no_library_is_imported():
    code = (
        "import sys, fastgrad.boosting;"
        "sys.exit(bool({'xgboost', 'lightgbm', 'catboost'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["", *boosting.__all__])
def test_examples_run(name):
    """Those that train are skipped where the library is missing."""
    obj = getattr(boosting, name) if name else boosting
    text = inspect.getdoc(obj)
    for library in ("xgboost", "lightgbm", "catboost"):
        if f"import {library}" in text:
            pytest.importorskip(library)
    test = doctest.DocTestParser().get_doctest(text, {}, name or "boosting", None, None)
    assert test.examples
    report: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)


# ---- start scores -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [*OPTIONS.values(), {"z_loss": 0.1, "label_smoothing": 0.1}],
    ids=[*OPTIONS, "z-loss"],
)
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weights"])
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "soft"])
def test_start_is_stationary(options, weighted, soft, rng):
    """The gradient of the sum vanishes there, to the rounding of N terms of at most 20."""
    n, k = 200, 5
    loss = fg.cross_entropy.with_options(reduction="sum", **options)
    target = rng.dirichlet(np.ones(k), n) if soft else np.sort(rng.integers(0, k, n))
    w = rng.uniform(0, 2, n) if weighted else None
    start = init_score(loss, target, num_class=k, sample_weight=w)
    total = loss.grad(np.tile(start, (n, 1)), target, sample_weight=w).sum(axis=0)
    assert np.abs(total).max() < 20 * n * EPS64
    assert start.shape == (k,)


def test_start_is_the_logarithm_of_the_shares():
    start = init_score(fg.cross_entropy, np.float32([0, 0, 1, 0, -100]), num_class=2)
    np.testing.assert_allclose(start, np.log([0.75, 0.25]), rtol=4 * EPS64)


def test_start_of_an_absent_class_is_finite():
    start = init_score(fg.cross_entropy, [0, 1, 1], num_class=3)
    np.testing.assert_allclose(start, np.log([1 / 3, 2 / 3, 1e-15]), rtol=8 * EPS64)


def test_start_of_binary():
    start = init_score(fg.binary_cross_entropy, [1, 0, 0, 0], sample_weight=[2, 1, 1, 1])
    assert type(start) is float
    np.testing.assert_allclose(start, np.log(2 / 3), rtol=8 * EPS64)
    loss = fg.binary_cross_entropy.with_options(pos_weight=3.0)
    np.testing.assert_allclose(init_score(loss, [1, 0, 0, 0, 0]), np.log(3 / 4), rtol=8 * EPS64)
    per_label = init_score(fg.binary_cross_entropy, np.eye(4)[:, :2], num_class=2)
    np.testing.assert_allclose(per_label, np.log([1 / 3, 1 / 3]), rtol=8 * EPS64)
    all_one = init_score(fg.binary_cross_entropy, [1, 1])
    np.testing.assert_allclose(all_one, np.log(1e15), rtol=1e-2)  # 1 - 1e-15 has a digit or two


# ---- training -----------------------------------------------------------------------------------

DATA = {
    "wine": datasets.load_wine,
    "iris": datasets.load_iris,
    "digits": datasets.load_digits,
}
ROUNDS = 20


@pytest.fixture(params=DATA)
def multiclass(request):
    X, y = DATA[request.param](return_X_y=True)
    return X, y, int(y.max()) + 1


@pytest.fixture
def wine():
    X, y = datasets.load_wine(return_X_y=True)
    return X, y, 3


@pytest.fixture
def cancer():
    return datasets.load_breast_cancer(return_X_y=True)


@pytest.fixture(params=[False, True], ids=["", "weights"])
def weighted(request):
    return request.param


def weights(y):
    return 1.0 + np.arange(len(y)) % 3


def centred(scores):
    """Softmax does not see a constant, and XGBoost's own start has mean 0."""
    return scores - scores.mean(axis=1, keepdims=True)


@pytest.fixture
def xgboost():
    return pytest.importorskip("xgboost", minversion="2.1")


def xgboost_splits(booster):
    return booster.trees_to_dataframe()[["Tree", "Node", "Feature", "Split"]]


XGB = {"max_depth": 3, "eta": 0.3, "nthread": 1}


def test_xgboost_multiclass(xgboost, multiclass, weighted):
    X, y, k = multiclass
    w = weights(y) if weighted else None
    data = xgboost.DMatrix(X, y, weight=w)
    # Given as base_margin, which XGBoost has taken since before 2.1; base_score may be a vector
    # from 3.1 on only.
    start = init_score(fg.cross_entropy, y, num_class=k, sample_weight=w)
    data.set_base_margin(np.tile(start - start.mean(), (len(y), 1)))
    params = XGB | {"objective": "multi:softprob", "num_class": k}
    own = xgboost.train(params, data, ROUNDS)
    bridge = xgboost.train(params, data, ROUNDS, obj=XGBoostObjective(fg.cross_entropy))
    assert xgboost_splits(bridge).equals(xgboost_splits(own))
    scores = own.predict(data, output_margin=True)
    # Each of the rounds adds a leaf that is good to a few eps of float32 of its size.
    bar = ROUNDS * 4 * EPS32 * max(1, np.abs(scores).max() / ROUNDS)
    assert np.abs(bridge.predict(data, output_margin=True) - scores).max() < bar


def test_xgboost_exact_curvature_grows_other_trees(xgboost, wine):
    """That the comparison with the built-in objective can fail at all."""
    X, y, k = wine
    data = xgboost.DMatrix(X, y)
    params = XGB | {"objective": "multi:softprob", "num_class": k, "base_score": 0.5}
    own = xgboost.train(params, data, 3)
    exact = XGBoostObjective(fg.cross_entropy, curvature="exact")
    other = xgboost.train(params, data, 3, obj=exact)
    difference = np.abs(other.predict(data) - own.predict(data)).max()
    assert difference > 1e-3


def test_xgboost_binary(xgboost, cancer, weighted):
    X, y = cancer
    w = weights(y) if weighted else None
    data = xgboost.DMatrix(X, y, weight=w)
    start = init_score(fg.binary_cross_entropy, y, sample_weight=w)
    params = XGB | {"objective": "binary:logistic", "base_score": 1 / (1 + np.exp(-start))}
    own = xgboost.train(params, data, ROUNDS)
    bridge = xgboost.train(params, data, ROUNDS, obj=XGBoostObjective(fg.binary_cross_entropy))
    assert xgboost_splits(bridge).equals(xgboost_splits(own))
    np.testing.assert_allclose(bridge.predict(data), own.predict(data), atol=ROUNDS * EPS32)


def test_xgboost_scikit_learn(xgboost, wine, weighted):
    X, y, k = wine
    w = weights(y) if weighted else None
    bridge = xgboost.XGBClassifier(
        objective=XGBoostObjective(fg.cross_entropy), n_estimators=ROUNDS, max_depth=3, n_jobs=1
    )
    own = xgboost.XGBClassifier(n_estimators=ROUNDS, max_depth=3, n_jobs=1)
    start = init_score(fg.cross_entropy, y, num_class=k, sample_weight=w)
    margin = np.tile(start - start.mean(), (len(y), 1))
    for model in (bridge, own):
        model.fit(X, y, sample_weight=w, base_margin=margin)
    for model in (clone(bridge).fit(X, y), pickle.loads(pickle.dumps(bridge))):
        assert isinstance(model.objective, XGBoostObjective)
    p = own.predict_proba(X, base_margin=margin)
    copied = pickle.loads(pickle.dumps(bridge))
    np.testing.assert_allclose(copied.predict_proba(X, base_margin=margin), p, atol=ROUNDS * EPS32)


@pytest.mark.parametrize("method", ["exact", "hist"])
def test_xgboost_weight_two_is_a_row_twice(xgboost, wine, method):
    X, y, k = wine
    w = np.where(np.arange(len(y)) % 4 == 0, 2.0, 1.0)
    twice = np.repeat(np.arange(len(y)), w.astype(int))
    params = XGB | {"num_class": k, "tree_method": method, "base_score": 0.5}
    objective = XGBoostObjective(fg.cross_entropy.with_options(label_smoothing=0.1))
    a = xgboost.train(params, xgboost.DMatrix(X, y, weight=w), ROUNDS, obj=objective)
    b = xgboost.train(params, xgboost.DMatrix(X[twice], y[twice]), ROUNDS, obj=objective)
    assert xgboost_splits(a).equals(xgboost_splits(b))


def test_xgboost_class_weight_is_a_sample_weight(xgboost, wine):
    X, y, k = wine
    c = np.array([1.0, 2.0, 4.0])
    params = XGB | {"num_class": k, "base_score": 0.5}
    loss = fg.cross_entropy.with_options(weight=c)
    # Binned before it has weights, which the bins would depend on.
    data = xgboost.QuantileDMatrix(X, y)
    a = xgboost.train(params, data, ROUNDS, obj=XGBoostObjective(loss))
    data.set_weight(c[y])
    b = xgboost.train(params, data, ROUNDS, obj=XGBoostObjective(fg.cross_entropy))
    assert xgboost_splits(a).equals(xgboost_splits(b))


def test_xgboost_soft_labels(xgboost, wine, rng):
    """As labels of the data, or as the objective's own target; smoothing is a soft label too."""
    X, y, k = wine
    t = 0.7 * np.eye(k)[y] + 0.3 / k
    params = XGB | {"base_score": 0.0}
    hard, soft = xgboost.DMatrix(X, y), xgboost.DMatrix(X, t)
    plain = XGBoostObjective(fg.cross_entropy)
    own_target = XGBoostObjective(fg.cross_entropy, target=t)
    smooth = XGBoostObjective(fg.cross_entropy.with_options(label_smoothing=0.3))
    a = xgboost.train(params, soft, ROUNDS, obj=plain)
    b = xgboost.train(params | {"num_class": k}, hard, ROUNDS, obj=own_target)
    c = xgboost.train(params | {"num_class": k}, hard, ROUNDS, obj=smooth)
    scores = a.predict(soft, output_margin=True)
    for other in (b, c):
        # The float32 label is another number by up to eps / 2.
        difference = other.predict(hard, output_margin=True) - scores
        assert np.abs(difference).max() < ROUNDS * 8 * EPS32
    # The scores move to where the loss is least: p = t for rows that the trees can tell apart.
    assert np.abs(fg.softmax(scores) - t).mean() < 0.02


def test_xgboost_users_loss(xgboost):
    X, y = datasets.load_diabetes(return_X_y=True)
    params = XGB | {"base_score": 100.0}
    data = xgboost.DMatrix(X, y)
    own = xgboost.train(params, data, ROUNDS)
    bridge = xgboost.train(params, data, ROUNDS, obj=XGBoostObjective(SQUARED, curvature="exact"))
    assert xgboost_splits(bridge).equals(xgboost_splits(own))
    np.testing.assert_array_equal(bridge.predict(data), own.predict(data))


# LightGBM prints to the console; its deterministic mode needs one way of histograms.
LGB = {
    "max_depth": 3,
    "learning_rate": 0.3,
    "num_threads": 1,
    "verbose": -1,
    "deterministic": True,
    "force_row_wise": True,
    "min_data_in_leaf": 5,
}


@pytest.fixture
def lightgbm():
    return pytest.importorskip("lightgbm", minversion="4")


def lightgbm_splits(booster):
    return booster.trees_to_dataframe()[["tree_index", "node_index", "split_feature", "threshold"]]


def test_lightgbm_multiclass(lightgbm, multiclass, weighted):
    X, y, k = multiclass
    w = weights(y) if weighted else None
    start = init_score(fg.cross_entropy, y, num_class=k, sample_weight=w)
    params = LGB | {"num_class": k}
    own = lightgbm.train(
        params | {"objective": "multiclass"}, lightgbm.Dataset(X, y, weight=w), ROUNDS
    )
    data = lightgbm.Dataset(X, y, weight=w, init_score=np.tile(start, (len(y), 1)))
    params["objective"] = LightGBMObjective(fg.cross_entropy)
    bridge = lightgbm.train(params, data, ROUNDS)
    assert lightgbm_splits(bridge).equals(lightgbm_splits(own))
    scores = own.predict(X, raw_score=True)
    # A sum of a start and a leaf per round, each rounded.
    bar = 2 * ROUNDS * EPS64 * np.abs(scores).max()
    assert np.abs(bridge.predict(X) + start - scores).max() < bar


def test_lightgbm_exact_curvature_grows_other_trees(lightgbm, wine):
    X, y, k = wine
    params = LGB | {"num_class": k, "boost_from_average": False}
    own = lightgbm.train(params | {"objective": "multiclass"}, lightgbm.Dataset(X, y), 3)
    params["objective"] = LightGBMObjective(fg.cross_entropy, curvature="exact")
    other = lightgbm.train(params, lightgbm.Dataset(X, y), 3)
    assert np.abs(other.predict(X) - own.predict(X, raw_score=True)).max() > 1e-3


def test_lightgbm_binary(lightgbm, cancer, weighted):
    X, y = cancer
    w = weights(y) if weighted else None
    start = init_score(fg.binary_cross_entropy, y, sample_weight=w)
    own = lightgbm.train(LGB | {"objective": "binary"}, lightgbm.Dataset(X, y, weight=w), ROUNDS)
    bridge = lightgbm.train(
        LGB | {"objective": LightGBMObjective(fg.binary_cross_entropy)},
        lightgbm.Dataset(X, y, weight=w, init_score=np.full(len(y), start)),
        ROUNDS,
    )
    assert lightgbm_splits(bridge).equals(lightgbm_splits(own))
    scores = own.predict(X, raw_score=True)
    bar = 2 * ROUNDS * EPS64 * np.abs(scores).max()
    assert np.abs(bridge.predict(X) + start - scores).max() < bar


def test_lightgbm_one_against_all(lightgbm, wine):
    """multiclassova is the binary objective for each class."""
    X, y, k = wine
    t = np.eye(k)[y]
    start = init_score(fg.binary_cross_entropy, t, num_class=k)
    params = LGB | {"num_class": k}
    own = lightgbm.train(params | {"objective": "multiclassova"}, lightgbm.Dataset(X, y), ROUNDS)
    params["objective"] = LightGBMObjective(fg.binary_cross_entropy, target=t)
    data = lightgbm.Dataset(X, y, init_score=np.tile(start, (len(y), 1)))
    bridge = lightgbm.train(params, data, ROUNDS)
    assert lightgbm_splits(bridge).equals(lightgbm_splits(own))


# LightGBM 4.6 invents names of columns, and then misses them.
@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_lightgbm_scikit_learn(lightgbm, wine, weighted):
    X, y, k = wine
    w = weights(y) if weighted else None
    settings = {"n_estimators": ROUNDS, "max_depth": 3, "n_jobs": 1, "verbose": -1}
    own = lightgbm.LGBMClassifier(**settings).fit(X, y, sample_weight=w)
    start = init_score(fg.cross_entropy, y, num_class=k, sample_weight=w)
    bridge = lightgbm.LGBMClassifier(objective=LightGBMObjective(fg.cross_entropy), **settings)
    bridge = clone(bridge)
    bridge.fit(X, y, sample_weight=w, init_score=np.tile(start, (len(y), 1)))
    copied = pickle.loads(pickle.dumps(bridge))
    p = fg.softmax(copied.predict(X, raw_score=True) + start)
    np.testing.assert_allclose(p, own.predict_proba(X), atol=2 * ROUNDS * EPS64)


def test_lightgbm_soft_labels(lightgbm, wine):
    X, y, k = wine
    t = 0.7 * np.eye(k)[y] + 0.3 / k
    params = LGB | {"num_class": k}
    scores = []
    for objective in (
        LightGBMObjective(fg.cross_entropy, target=t),
        LightGBMObjective(fg.cross_entropy.with_options(label_smoothing=0.3)),
    ):
        booster = lightgbm.train(params | {"objective": objective}, lightgbm.Dataset(X, y), ROUNDS)
        scores.append(booster.predict(X))
    assert np.abs(scores[0] - scores[1]).max() < ROUNDS * 8 * EPS32  # rounded gradients
    assert np.abs(fg.softmax(scores[0]) - t).mean() < 0.02


def test_lightgbm_users_loss(lightgbm):
    X, y = datasets.load_diabetes(return_X_y=True)
    own = lightgbm.train(
        LGB | {"objective": "regression", "boost_from_average": False},
        lightgbm.Dataset(X, y),
        ROUNDS,
    )
    objective = LightGBMObjective(SQUARED, curvature="exact")
    bridge = lightgbm.train(LGB | {"objective": objective}, lightgbm.Dataset(X, y), ROUNDS)
    np.testing.assert_array_equal(bridge.predict(X), own.predict(X))


def test_lightgbm_reads_the_arrays_as_they_are(lightgbm, wine, monkeypatch):
    """What its Python layer hands to C is the memory that the objective returned."""
    X, y, k = wine
    returned, handed = [], []

    class Watched(LightGBMObjective):
        def __call__(self, y_true, y_pred, sample_weight=None):
            returned.append(super().__call__(y_true, y_pred, sample_weight))
            return returned[-1]

        def __deepcopy__(self, memo):
            return self

    original = lightgbm.basic._list_to_1d_numpy

    def watch(*args, name, **kwargs):
        result = original(*args, name=name, **kwargs)
        if name in ("gradient", "hessian"):
            handed.append(result)
        return result

    monkeypatch.setattr(lightgbm.basic, "_list_to_1d_numpy", watch)
    params = LGB | {"num_class": k, "objective": Watched(fg.cross_entropy)}
    lightgbm.train(params, lightgbm.Dataset(X, y), 3)
    assert len(handed) == 2 * len(returned) == 6
    for i, pair in enumerate(returned):
        for made, passed in zip(pair, handed[2 * i : 2 * i + 2], strict=True):
            assert passed.ctypes.data == made.ctypes.data
            assert passed.dtype == made.dtype == np.float32


# Without randomness, so that both objectives draw nothing; what CatBoost chooses by the name of
# the loss is said.
CAT = {
    "iterations": 10,
    "learning_rate": 0.3,
    "depth": 3,
    "random_strength": 0,
    "bootstrap_type": "No",
    "leaf_estimation_iterations": 1,
    "boosting_type": "Plain",
    "thread_count": 1,
    "verbose": False,
    "allow_writing_files": False,
}


@pytest.fixture
def catboost():
    return pytest.importorskip("catboost", minversion="1.2")


def catboost_scores(model, X):
    return model.predict(X, prediction_type="RawFormulaVal")


# Scores are sums of ten leaves of size 1, each the solution of a small linear system.
CAT_BAR = 10 * 32 * EPS64


@pytest.mark.parametrize("data", ["wine", "iris"])  # digits: 70,000 calls of Python, seconds
def test_catboost_multiclass(catboost, data, weighted):
    X, y = DATA[data](return_X_y=True)
    w = weights(y) if weighted else None
    own = catboost.CatBoostClassifier(loss_function="MultiClass", **CAT)
    bridge = catboost.CatBoostClassifier(
        loss_function=CatBoostObjective(fg.cross_entropy), eval_metric="MultiClass", **CAT
    )
    for model in (own, bridge):
        model.fit(X, y, sample_weight=w)
    assert np.abs(catboost_scores(bridge, X) - catboost_scores(own, X)).max() < CAT_BAR


@pytest.mark.parametrize("iterations", [1, 5])
def test_catboost_binary(catboost, cancer, weighted, iterations):
    X, y = cancer
    w = weights(y) if weighted else None
    settings = CAT | {"leaf_estimation_iterations": iterations}
    own = catboost.CatBoostClassifier(loss_function="Logloss", **settings)
    bridge = catboost.CatBoostClassifier(
        loss_function=CatBoostObjective(fg.binary_cross_entropy), eval_metric="Logloss", **settings
    )
    for model in (own, bridge):
        model.fit(X, y, sample_weight=w)
    # CatBoost's own keeps exp(score), so its scores are rounded once more in every round.
    assert np.abs(catboost_scores(bridge, X) - catboost_scores(own, X)).max() < CAT_BAR


def test_catboost_soft_labels(catboost, wine):
    """Targets of several numbers need CatBoost's own base class and a metric of that kind."""
    X, y, k = wine

    class Objective(CatBoostObjective, catboost.MultiTargetCustomObjective):
        pass

    class Metric(catboost.MultiTargetCustomMetric):
        no_jit = True

        def evaluate(self, approxes, target, weight):
            z, t = np.transpose(approxes), np.transpose(target)
            return float(fg.cross_entropy(z, t.astype(np.float64), reduction="sum")), len(z)

        def is_max_optimal(self):
            return False

        def get_final_error(self, error, weight):
            return error / weight

    def fit(loss, t):
        model = catboost.CatBoostRegressor(
            loss_function=Objective(loss), eval_metric=Metric(), **CAT
        )
        return model.fit(X, t).predict(X)

    own = catboost.CatBoostClassifier(loss_function="MultiClass", **CAT).fit(X, y)
    hard = fit(fg.cross_entropy, np.eye(k)[y])
    assert np.abs(hard - catboost_scores(own, X)).max() < CAT_BAR
    soft = fit(fg.cross_entropy, (0.75 * np.eye(k)[y] + 0.25 / k).astype(np.float32))
    smooth = catboost.CatBoostClassifier(
        loss_function=CatBoostObjective(fg.cross_entropy.with_options(label_smoothing=0.25)),
        eval_metric="MultiClass",
        **CAT,
    ).fit(X, y)
    assert np.abs(soft - catboost_scores(smooth, X)).max() < 16 * EPS32  # CatBoost's targets


def test_catboost_users_loss(catboost):
    X, y = datasets.load_diabetes(return_X_y=True)
    settings = CAT | {"boost_from_average": False}
    own = catboost.CatBoostRegressor(loss_function="RMSE", **settings).fit(X, y)
    bridge = catboost.CatBoostRegressor(
        loss_function=CatBoostObjective(SQUARED), eval_metric="RMSE", **settings
    ).fit(X, y)
    np.testing.assert_array_equal(bridge.predict(X), own.predict(X))


def test_catboost_says_what_is_missing(catboost, wine):
    X, y, _ = wine
    model = catboost.CatBoostClassifier(
        loss_function=CatBoostObjective(SQUARED), eval_metric="MultiClass", **CAT
    )
    with pytest.raises(catboost.CatBoostError, match="several scores per row needs the loss's hvp"):
        model.fit(X, y)


def test_catboost_derivatives(rng, assert_ulps):
    """Those of the negative loss, times the weight; the Hessian against its formula."""
    z, y = draw(rng, n=4)
    for row, label in zip(z, y, strict=True):
        der1, der2 = CatBoostObjective(fg.cross_entropy).calc_ders_multi(row, float(label), 2.0)
        p = ref.softmax(row, -1)
        exact = ref.cross_entropy_grad(row[None], [label])[0]
        assert_ulps(np.array(der1), -2 * exact, 8)
        assert_ulps(
            np.array(der2), -2 * (np.diag(p) - np.outer(p, p)), 16, scale=2 * np.diag(p) + p
        )
    scores, labels = rng.normal(size=6), rng.integers(0, 2, 6).astype(np.float32)
    w = rng.uniform(size=6).astype(np.float32)
    ders = CatBoostObjective(fg.binary_cross_entropy).calc_ders_range(scores, labels, w)
    grad, hess = LightGBMObjective(fg.binary_cross_entropy)(labels, scores, w)
    np.testing.assert_allclose(ders, -np.stack([grad, hess], axis=1), rtol=EPS32)


def test_weights_beside_integer_scores_keep_their_fraction():
    objective = fg.boosting.LightGBMObjective(fg.binary_cross_entropy)
    grad, _ = objective(np.array([1, 0]), np.zeros(2, int), np.array([0.5, 0.9]))
    np.testing.assert_allclose(grad, [-0.25, 0.45], rtol=1e-7)


def test_signs_come_as_floats():
    objective = fg.boosting.XGBoostObjective(fg.hinge.with_options(squared=True), curvature="exact")
    y, scores = np.array([1, -1, 1], np.float32), np.zeros(3, np.float32)
    grad, hess = objective(y, scores)
    np.testing.assert_array_equal(np.ravel(grad), [-2, 2, -2])
    np.testing.assert_array_equal(np.ravel(hess), [2, 2, 2])


@pytest.mark.parametrize("rows", [1_000, 1_000_000])
def test_the_start_of_a_rare_and_of_an_absent_class(rows):
    y = np.zeros(rows, int)
    y[0] = 1
    start = init_score(fg.cross_entropy, y, num_class=3)
    exact = np.log([(rows - 1) / rows, 1 / rows, 1e-15])
    np.testing.assert_allclose(start, exact, rtol=8 * EPS64, atol=8 * EPS64)
    odds = init_score(fg.binary_cross_entropy, y)
    np.testing.assert_allclose(odds, -np.log(rows - 1), rtol=8 * EPS64)
    odds = init_score(fg.binary_cross_entropy, 1 - y)
    np.testing.assert_allclose(odds, np.log(rows - 1), rtol=8 * EPS64)


def test_a_start_does_not_depend_on_the_size_of_class_weights():
    y = np.random.default_rng(0).integers(0, 50, 1000)
    weight = 10 ** np.random.default_rng(1).uniform(-6, 6, 50)
    start, large, small, tiny = (
        init_score(fg.cross_entropy.with_options(weight=weight * size), y, num_class=50)
        for size in (1, 1e300, 1e-300, 2.0**-1040)
    )
    np.testing.assert_allclose(large, start, rtol=16 * EPS64)
    np.testing.assert_allclose(small, start, rtol=16 * EPS64)
    np.testing.assert_allclose(tiny, start, rtol=1e-3)  # those weights themselves have few digits


@pytest.mark.parametrize("loss", [fg.cross_entropy, fg.binary_cross_entropy])
def test_rows_are_not_divided_by_a_normalizer(loss):
    y, k = [0, 1, 1, 1], 2 if loss is fg.cross_entropy else None
    divided = loss.with_options(normalizer=7.0)
    np.testing.assert_array_equal(
        init_score(divided, y, num_class=k), init_score(loss, y, num_class=k)
    )
    scores = np.random.default_rng(0).normal(size=(4, 2) if k else 4)
    for mine, plain in zip(
        LightGBMObjective(divided)(y, scores), LightGBMObjective(loss)(y, scores), strict=True
    ):
        np.testing.assert_array_equal(mine, plain)
