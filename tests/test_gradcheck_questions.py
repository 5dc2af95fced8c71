"""The broken programs of thirty forum questions, rebuilt: each must get its diagnosis.

Named after their files and places there.  Questions without a derivative that could be checked
(installation of graphs, eigenvectors, priors, printing) are left out, except for what their
programs do to their inputs.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

import fastgrad as fg

LN2 = math.log(2)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def one_hot(y, classes):
    return np.eye(classes)[y]


def assert_fails(result, *codes, **evidence):
    """FAIL, and the first diagnosis is one of `codes`, with this evidence."""
    assert result.verdict == "FAIL", result
    assert not result
    if codes:
        assert result.diagnoses, result.message
        first = result.diagnoses[0]
        assert first.code in codes, first
        for name, wanted in evidence.items():
            found = first.evidence[name]
            if isinstance(wanted, float):
                assert found == pytest.approx(wanted, rel=1e-3), name
            else:
                assert found in (wanted, [wanted]), name


def assert_passes(result):
    assert result.verdict in ("PASS", "KINK"), result.message
    assert result


@pytest.fixture
def batch(rng):
    """Logits of 6 rows and 10 classes, and labels."""
    return rng.normal(0, 2, (6, 10)), rng.integers(0, 10, 6)


# ---- file 000 -----------------------------------------------------------------------------------


def bits(p, t):
    """Cross-entropy in bits of given probabilities."""
    return -np.log2((t * p).sum(1)).mean()


@pytest.mark.parametrize(
    ("grad", "factor", "name"),
    [
        (lambda p, t: -t / p / len(p), LN2, "ln 2"),
        (lambda p, t: -t / p * LN2 / len(p), LN2**2, None),
        (lambda p, t: t / p * LN2 / len(p), -(LN2**2), None),
    ],
    ids=["natural", "times ln 2", "no minus"],
)
def test_000_1_logarithm_of_base_2(batch, grad, factor, name):
    z, y = batch
    result = fg.gradcheck(bits, softmax(z), one_hot(y, 10), grad=grad, wrt=0)
    assert_fails(result, "factor", factor=factor, **({"name": name} if name else {}))


def test_000_1_the_sum_of_the_jacobian_of_softmax_is_zero(rng):
    def summed(x, g):
        p = softmax(x)
        return (np.diag(p) - np.outer(p, p)).sum(1) * g

    result = fg.gradcheck(softmax, rng.normal(size=10), grad=summed, kind="vjp")
    assert_fails(result, "common shift")


def test_000_2_a_network_of_one_number_has_an_elementwise_derivative(rng):
    a, b = rng.normal(size=(2, 8))

    def u(x):
        return np.tanh(x[:, None] * a) @ b

    def du(x, g):
        return g * ((1 - np.tanh(x[:, None] * a) ** 2) @ (a * b))

    assert_passes(fg.gradcheck(u, rng.normal(size=50), grad=du, kind="vjp"))


def test_000_2_a_map_that_mixes_has_none(rng):
    W = rng.normal(size=(9, 9))

    def u(x):
        return np.tanh(W @ x)

    def diagonal(x, g):
        return g * (1 - np.tanh(W @ x) ** 2) * np.diag(W)

    assert_fails(fg.gradcheck(u, rng.normal(size=9), grad=diagonal, kind="vjp"))


def renormalised(p, t):
    """Cross-entropy of outputs that are made to sum to 1 first."""
    return -(t * np.log(p / p.sum(1, keepdims=True))).sum(1).mean()


def test_000_3_output_minus_target_is_not_the_slope_in_the_probabilities(batch):
    z, y = batch
    p, t = softmax(z), one_hot(y, 10)
    assert_fails(fg.gradcheck(renormalised, p, t, grad=lambda p, t: (p - t) / len(p), wrt=0))
    assert_fails(fg.gradcheck(renormalised, p, t, grad=lambda p, t: -t / p / len(p), wrt=0))
    right = lambda p, t: (1 / p.sum(1, keepdims=True) - t / p) / len(p)  # noqa: E731
    assert_passes(fg.gradcheck(renormalised, p, t, grad=right, wrt=0))


def test_000_4_the_squared_gradient_is_not_the_diagonal_of_the_hessian(batch):
    ce = fg.cross_entropy
    fisher = fg.Loss(ce, grad=ce.grad, hess_diag=lambda z, y: ce.grad(z, y) ** 2)
    assert_fails(fg.gradcheck(fisher, *batch, kind="hess_diag"))
    assert_passes(fg.gradcheck(ce, *batch, kind="hess_diag"))


def of_size(p, y, size):
    """Squared errors over the size of each system."""
    return ((p - y) ** 2 / size).sum()


def of_size_grad(p, y, size):
    return 2 * (p - y) / size


def of_size_loss(hess_diag):
    return fg.Loss(of_size, grad=of_size_grad, hess_diag=hess_diag)


def test_000_5_hessian_not_divided_like_the_gradient(rng):
    p, y = rng.normal(10, 3, (2, 12))
    flat = lambda p, y, size: 0 * y + 2  # noqa: E731
    sizes = rng.uniform(5, 50, 12)
    assert_passes(fg.gradcheck(of_size_loss(flat), p, y, sizes))
    assert_fails(fg.gradcheck(of_size_loss(flat), p, y, sizes, kind="hess_diag"))
    result = fg.gradcheck(of_size_loss(flat), p, y, np.full(12, 7.0), kind="hess_diag")
    assert_fails(result, "factor", factor=7.0)


def test_000_5_metric_that_clips_its_predictions_in_place(rng):
    def clipped(p, y):
        p[p < 0] = 0
        return ((p - y) ** 2).mean()

    p, y = rng.normal(0, 1, (2, 12))
    result = fg.gradcheck(clipped, p, y, grad=lambda p, y: 2 * (p - y) / len(p))
    assert "mutates" in [d.code for d in result.diagnoses]
    assert not result


# ---- file 001 -----------------------------------------------------------------------------------

LAMBDA = 0.4


def penalised(W, X, y):
    """Softmax regression; row 0 of W is the bias, and is not penalised."""
    z = X @ W
    nll = np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y]
    return nll.mean() + LAMBDA / 2 * (W[1:] ** 2).sum()


def slope_without_penalty(W, X, y):
    return -X.T @ (one_hot(y, W.shape[1]) - softmax(X @ W)) / len(y)


@pytest.fixture
def regression(rng):
    X = rng.normal(size=(9, 5))
    X[:, 0] = 1
    return rng.normal(size=(5, 7)), X, rng.integers(0, 7, 9)


def test_001_1_penalty_spares_the_first_class_and_not_the_bias(regression):
    def stacked_sideways(W, X, y):
        spared = np.hstack((np.zeros((W.shape[0], 1)), W[:, 1:]))
        return slope_without_penalty(W, X, y) + LAMBDA * spared

    result = fg.gradcheck(penalised, *regression, grad=stacked_sideways)
    assert_fails(result, "row", "column", "regulariser")


def test_001_1_bias_penalised(regression):
    def all_of_it(W, X, y):
        return slope_without_penalty(W, X, y) + LAMBDA * W

    result = fg.gradcheck(penalised, *regression, grad=all_of_it)
    assert_fails(result, "row", "regulariser")
    assert {e.index[0] for e in result.wrong} == {0}


def test_001_1_stacked_the_right_way(regression):
    def stacked(W, X, y):
        spared = np.vstack((np.zeros((1, W.shape[1])), W[1:]))
        return slope_without_penalty(W, X, y) + LAMBDA * spared

    assert_passes(fg.gradcheck(penalised, *regression, grad=stacked))


def test_001_3_two_losses_of_one_network_add_up(rng):
    means = rng.normal(size=(3, 2))

    def both(x):
        d = -0.5 * ((x[:, None] - means) ** 2).sum(2)
        return -np.log(np.exp(d).sum(1)).sum() + (x**2).sum()

    def grad(x):
        d = -0.5 * ((x[:, None] - means) ** 2).sum(2)
        shares = softmax(d)
        return x - shares @ means + 2 * x

    x = rng.normal(size=(8, 2))
    assert_passes(fg.gradcheck(both, x, grad=grad))
    second_is_a_mean = lambda x: x - softmax(-0.5 * ((x[:, None] - means) ** 2).sum(2)) @ means  # noqa: E731
    result = fg.gradcheck(both, x, grad=second_is_a_mean)
    assert_fails(result, "regulariser", coefficient=-2.0)


def test_001_4_penalty_added_to_the_loss_alone(rng):
    def loss(W, X, y):
        return fg.cross_entropy(X @ W, y) + 0.1 * (W**2).sum() / 2

    def grad(W, X, y):
        return X.T @ fg.cross_entropy.grad(X @ W, y)

    args = rng.normal(size=(5, 7)), rng.normal(size=(9, 5)), rng.integers(0, 7, 9)
    assert_fails(fg.gradcheck(loss, *args, grad=grad), "regulariser", coefficient=-0.1)
    of_the_mean = lambda W, X, y: grad(W, X, y) + 0.1 * W / W.size  # noqa: E731
    assert_fails(fg.gradcheck(loss, *args, grad=of_the_mean), "regulariser")


def test_001_5_row_of_label_minus_one(batch):
    z, y = batch
    y[2] = -1

    def masked(z, y):
        nll = np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y]
        return nll[y >= 0].sum()

    def unmasked(z, y):
        t = np.where(y[:, None] >= 0, one_hot(y, z.shape[1]), 0)
        return softmax(z) - t

    result = fg.gradcheck(masked, z, y, grad=unmasked)
    assert_fails(result, "row", "extra row", index=2)
    z[2, 0] = np.inf  # what the ignored row holds does not count, but 0 * NaN is NaN

    def multiplied(z, y):
        with np.errstate(invalid="ignore"):
            return unmasked(z, y) * (y >= 0)[:, None]

    result = fg.gradcheck(masked, z, y, grad=multiplied)
    assert_fails(result, "nan")


def test_001_6_order_of_the_chosen_classes(rng):
    """The penalty is on indices from argmax, and its gradient from the softmax."""

    def disorder(z):
        chosen = z.shape[1] - 1 - softmax(z).argmax(1)
        return float((np.minimum(0, np.diff(chosen)) ** 2).sum())

    def through_softmax(z):
        p = softmax(z)
        k = np.arange(z.shape[1], dtype=float)
        return p * (k - (p * k).sum(1, keepdims=True))

    z = rng.normal(size=(6, 5))
    z[np.arange(6), z.argmax(1)] += 1
    result = fg.gradcheck(disorder, z, grad=through_softmax)
    assert_fails(result, "flat")
    assert "surrogate" in result.diagnoses[0].text


# ---- file 002 -----------------------------------------------------------------------------------


def nll(a, y):
    return -(one_hot(y, a.shape[1]) * np.log(softmax(a))).sum(1)


def shifted_whole(a, y, eps=1e-5):
    """The slope by adding eps to everything, for every logit of the row."""
    slope = (nll(a + eps, y) - nll(a, y)) / eps
    return np.repeat(slope[:, None], a.shape[1], 1)


def test_002_1_eps_added_to_the_whole_array(batch):
    result = fg.gradcheck(lambda a, y: nll(a, y).sum(), *batch, grad=shifted_whole)
    assert_fails(result, "common shift")


def test_002_1_per_row(batch):
    """One value per row; a gradient of the shape of the logits is that of their sum."""
    right = lambda a, y: softmax(a) - one_hot(y, a.shape[1])  # noqa: E731
    assert_passes(fg.gradcheck(nll, *batch, grad=right))
    assert_fails(fg.gradcheck(nll, *batch, grad=shifted_whole), "common shift")


def test_002_1_integer_logits(rng):
    """A step of 1e-5 that is stored in an array of integers is no step."""

    def loss(a, y):
        return nll(a, y).sum()

    def one_by_one(a, y, eps=1e-5):
        slope = np.zeros(a.shape)
        for i in np.ndindex(a.shape):
            moved = a.copy()
            moved[i] += eps
            slope[i] = (loss(moved, y) - loss(a, y)) / eps
        return slope

    a, y = rng.integers(1, 20, (3, 10)), rng.integers(0, 10, 3)
    assert_fails(fg.gradcheck(loss, a, y, grad=one_by_one, wrt=0), "integer")
    right = fg.gradcheck(loss, a, y, grad=lambda a, y: softmax(a) - one_hot(y, 10), wrt=0)
    assert right.verdict != "FAIL", right.message


def test_002_2_targets_of_shape_m_1(rng):
    def cost(theta, X, y):
        h = 1 / (1 + np.exp(-X @ theta))
        return -(y[:, 0] @ np.log(h) + (1 - y[:, 0]) @ np.log(1 - h)) / len(y)

    def slope(theta, X, y):
        h = 1 / (1 + np.exp(-X @ theta))
        return (h - y).dot(X) / len(y)  # (m,) minus (m, 1) is (m, m)

    X, y = rng.normal(size=(20, 4)), rng.integers(0, 2, (20, 1)).astype(float)
    with pytest.raises(ValueError, match=r"\(20, 4\).*\(4,\)|\(4,\).*\(20, 4\)"):
        fg.gradcheck(cost, rng.normal(size=4), X, y, grad=slope, wrt="theta")


def test_002_2_softmax_of_sigmoids(rng):
    def squashed_twice(theta, X, y):
        h = 1 / (1 + np.exp(-X @ theta))
        return -np.log(softmax(h)[np.arange(len(y)), y]).mean()

    def once(theta, X, y):
        h = 1 / (1 + np.exp(-X @ theta))
        return X.T @ (softmax(h) - one_hot(y, h.shape[1])) / len(y)

    args = rng.normal(size=(5, 10)), rng.normal(size=(20, 5)), rng.integers(0, 10, 20)
    assert_fails(fg.gradcheck(squashed_twice, *args, grad=once))


def test_002_3_rows_centred_in_place(rng):
    def spread(X):
        X -= X.mean(0)
        return np.trace(X.T @ X)

    result = fg.gradcheck(spread, rng.normal(size=(6, 4)), grad=lambda X: 2 * (X - X.mean(0)))
    assert "mutates" in [d.code for d in result.diagnoses]
    assert not result


def class_hinge(X, labels, margin=0.5):
    """Sum over classes of the mean squared hinge of the distance to the class's mean."""
    total = 0.0
    for k in np.unique(labels):
        members = X[labels == k]
        far = np.linalg.norm(members - members.mean(0), axis=1)
        total += (np.maximum(far - margin, 0) ** 2).mean()
    return total


def class_hinge_grad(X, labels, margin=0.5, moving=True):
    grad = np.zeros_like(X)
    for k in np.unique(labels):
        r = X[labels == k] - X[labels == k].mean(0)
        far = np.linalg.norm(r, axis=1, keepdims=True)
        u = 2 * np.maximum(far - margin, 0) * r / far / len(r)
        grad[labels == k] = u - moving * u.mean(0)
    return grad


@pytest.fixture
def clustered(rng):
    return rng.normal(size=(20, 3)), rng.permutation(np.repeat([0, 1, 2, 5], [3, 7, 6, 4]))


def test_002_4_centroid_held_still(clustered):
    assert_passes(fg.gradcheck(class_hinge, *clustered, grad=class_hinge_grad))
    still = lambda X, labels: class_hinge_grad(X, labels, moving=False)  # noqa: E731
    assert_fails(fg.gradcheck(class_hinge, *clustered, grad=still), "centroid held still")


def test_002_4_labels_offset_in_place(clustered):
    X, labels = clustered
    batches, ids = np.stack([X, X + 1]), np.stack([labels, labels])

    def batched(X, labels):
        labels += np.arange(len(labels))[:, None] * 10
        return class_hinge(X.reshape(-1, X.shape[-1]), labels.ravel())

    def batched_grad(X, labels):
        offset = labels + np.arange(len(labels))[:, None] * 10
        return class_hinge_grad(X.reshape(-1, X.shape[-1]), offset.ravel()).reshape(X.shape)

    result = fg.gradcheck(batched, batches, ids, grad=batched_grad)
    assert "mutates" in [d.code for d in result.diagnoses]
    assert not result


def test_002_5_logistic_function_is_sound(rng):
    def logistic(x):
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-x))

    slope = lambda x, g: g * logistic(x) * (1 - logistic(x))  # noqa: E731
    assert_passes(fg.gradcheck(logistic, rng.normal(0, 3, 20), grad=slope, kind="vjp"))
    far = fg.gradcheck(logistic, np.array([-800.0, -30.0, 0.0, 5.0]), grad=slope, kind="vjp")
    assert far.verdict in ("PASS", "UNRESOLVED"), far.message


def test_002_6_softmax_over_the_samples(rng):
    def over_samples(x):
        e = np.exp(x - x.max())
        return e / e.sum(axis=0)

    def over_classes(x, g):
        p = softmax(x)
        return p * (g - (p * g).sum(1, keepdims=True))

    x = rng.normal(size=(6, 5))
    assert_fails(fg.gradcheck(over_samples, x, grad=over_classes, kind="vjp"))


def test_002_6_hinge_has_a_kink(rng):
    def hinge(x):
        return np.where(x < 1, 1 - x, 0).sum()

    x = np.array([-1.0, 0.5, 1.0, 2.0])
    result = fg.gradcheck(hinge, x, grad=lambda x: np.where(x < 1, -1.0, 0.0))
    assert_passes(result)
    assert result.verdict == "KINK"
    assert [k.index for k in result.kinks] == [(2,)]
    assert_fails(fg.gradcheck(hinge, x, grad=lambda x: np.where(x == 1, -1.5, -1.0 * (x < 1))))


# ---- file 003 -----------------------------------------------------------------------------------


def test_003_1_squared_features(rng):
    """The gradient is right; what diverges are the steps."""
    x = np.array([1, 2, 3, 4, 5])
    y = (x**2).astype(float)

    def loss(w):
        return ((np.stack([np.ones(5), x, x**2], 1) @ w - y) ** 2).mean()

    def grad(w):
        psi = np.stack([np.ones(5), x, x**2], 1)
        return 2 * psi.T @ (psi @ w - y) / 5

    assert_passes(fg.gradcheck(loss, np.full(3, 0.5), grad=grad))
    assert_fails(fg.gradcheck(loss, np.full(3, 0.5), grad=lambda w: 5 * grad(w)), "factor",
                 factor=5.0)  # fmt: skip


def two_layers(W1, b1, W2, b2, X, y, reg):
    hidden = np.maximum(0, X @ W1 + b1)
    p = softmax(hidden @ W2 + b2)
    loss = -np.log(p[np.arange(len(y)), y]).mean()
    return loss + reg * ((W1**2).sum() + (W2**2).sum())


def two_layers_grad(W1, b1, W2, b2, X, y, reg, twice=2, divided=True, open_gate=False):
    hidden = np.maximum(0, X @ W1 + b1)
    d = softmax(hidden @ W2 + b2)
    d[np.arange(len(y)), y] -= 1
    n = len(y) if divided else 1
    back = d @ W2.T
    if not open_gate:
        back[hidden == 0] = 0
    return {
        "W1": X.T @ back / n + twice * reg * W1,
        "b1": back.sum(0) / n,
        "W2": hidden.T @ d / n + twice * reg * W2,
        "b2": d.sum(0) / n,
    }


@pytest.fixture
def network(rng):
    shapes = (4, 6), (6,), (6, 5), (5,), (9, 4)
    return *(rng.normal(size=s) for s in shapes), rng.integers(0, 5, 9), 0.05


PARAMETERS = ("W1", "b1", "W2", "b2")


def test_003_2_two_layers(network):
    result = fg.gradcheck(two_layers, *network, grad=two_layers_grad, wrt=PARAMETERS)
    assert_passes(result)
    assert set(result.inputs) == set(PARAMETERS)


def test_003_2_two_layers_with_half_of_the_penalty(network):
    grad = lambda *a: two_layers_grad(*a, twice=1)  # noqa: E731
    result = fg.gradcheck(two_layers, *network, grad=grad, wrt=PARAMETERS)
    assert_fails(result, "regulariser")
    assert {e.input for e in result.wrong} == {"W1", "W2"}


def test_003_2_two_layers_with_an_open_gate(network):
    grad = lambda *a: two_layers_grad(*a, open_gate=True)  # noqa: E731
    result = fg.gradcheck(two_layers, *network, grad=grad, wrt=PARAMETERS)
    assert_fails(result)
    assert {e.input for e in result.wrong} <= {"W1", "b1"}


def test_003_3_not_divided_by_the_batch(network):
    *params, X, y, _ = network
    grad = lambda *a: two_layers_grad(*a, divided=False)  # noqa: E731
    result = fg.gradcheck(two_layers, *params, X, y, 0.0, grad=grad, wrt=PARAMETERS)
    assert_fails(result, "factor", factor=9.0, name="N")


def test_003_3_divided_twice(rng):
    def loss(W, X, y):
        return fg.cross_entropy(X @ W, y)

    def twice(W, X, y):
        return X.T @ fg.cross_entropy.grad(X @ W, y) / len(y)

    args = rng.normal(size=(2, 3)), rng.normal(size=(20, 2)), rng.integers(0, 3, 20)
    assert_fails(fg.gradcheck(loss, *args, grad=twice), "factor", factor=1 / 20, name="1/N")


def test_003_4_cost_that_does_not_read_its_parameters(rng):
    """The network feeds its own weights forward, not those that the minimiser passes."""
    stored = rng.normal(size=(5, 4))
    X, y = rng.normal(size=(7, 4)), rng.integers(0, 5, 7)

    def cost(theta):
        return -np.log(softmax(X @ stored.T)[np.arange(7), y]).mean()

    def slope(theta):
        return ((softmax(X @ stored.T) - one_hot(y, 5)).T @ X / 7).ravel()

    result = fg.gradcheck(cost, stored.ravel(), grad=slope)
    assert_fails(result, "flat")


def test_003_4_unrolled_in_the_order_of_matlab(rng):
    X, y = rng.normal(size=(7, 4)), rng.integers(0, 5, 7)

    def cost(W):
        return fg.cross_entropy(X @ W.T, y)

    def rolled(W):
        slope = fg.cross_entropy.grad(X @ W.T, y).T @ X
        return slope.ravel(order="F").reshape(W.shape)

    result = fg.gradcheck(cost, rng.normal(size=(5, 4)), grad=rolled)
    assert_fails(result, "permuted", how="fortran order")
    flat = fg.gradcheck(
        lambda w: cost(w.reshape(5, 4)),
        rng.normal(size=20),
        grad=lambda w: rolled(w.reshape(5, 4)).ravel(),
    )
    assert_fails(flat)


def test_003_5_regression_with_a_hidden_layer(rng):
    x, y = rng.normal(size=(6, 4)), rng.normal(size=(6, 2))

    def loss(w1, w2):
        return np.square(np.maximum(x @ w1, 0) @ w2 - y).sum()

    def grad(w1, w2, scale=1.0):
        h = x @ w1
        d = 2.0 * (np.maximum(h, 0) @ w2 - y) * scale
        back = d @ w2.T
        back[h < 0] = 0
        return x.T @ back, np.maximum(h, 0).T @ d

    args = rng.normal(size=(4, 5)), rng.normal(size=(5, 2))
    assert_passes(fg.gradcheck(loss, *args, grad=grad))
    halved = fg.gradcheck(loss, *args, grad=lambda w1, w2: grad(w1, w2, 0.5))
    assert_fails(halved, "factor", factor=0.5, name="1/2")


def columns_loss(W, X, y, reg):
    """Samples are the columns of X, classes the rows of W."""
    z = W @ X
    nll = np.log(np.exp(z).sum(0)) - z[y, np.arange(len(y))]
    return nll.mean() + 0.5 * reg * (W * W).sum()


def columns_grad(W, X, y, reg):
    p = softmax((W @ X).T).T
    p[y, np.arange(len(y))] -= 1
    return p @ X.T / len(y) + reg * W


@pytest.mark.parametrize(
    ("grad", "codes"),
    [
        (lambda W, X, y, reg: columns_grad(W, X, y, 0.0), ["regulariser"]),
        (lambda W, X, y, reg: columns_grad(W, X, y, 2 * reg), ["regulariser"]),
        (lambda W, X, y, reg: softmax((W @ X).T).T @ X.T / len(y) + reg * W, []),
        (lambda W, X, y, reg: -columns_grad(W, X, y, reg), ["sign"]),
    ],
    ids=["no penalty", "penalty twice", "no indicator", "sign"],
)
def test_003_6_samples_in_columns(rng, grad, codes):
    args = rng.normal(size=(5, 6)), rng.normal(size=(6, 8)), rng.integers(0, 5, 8), 0.3
    assert_passes(fg.gradcheck(columns_loss, *args, grad=columns_grad))
    assert_fails(fg.gradcheck(columns_loss, *args, grad=grad), *codes)


# ---- file 004 -----------------------------------------------------------------------------------


def test_004_1_terms_of_the_other_classes(batch):
    def with_others(z, y):
        p, t = softmax(z), one_hot(y, z.shape[1])
        return -(t * np.log(p) + (1 - t) * np.log(1 - p)).sum()

    grad = lambda z, y: softmax(z) - one_hot(y, z.shape[1])  # noqa: E731
    assert_fails(fg.gradcheck(with_others, *batch, grad=grad))


def test_004_2_selection_by_rank(rng):
    A, B = rng.normal(size=12), rng.normal(size=(12, 4))
    theta = rng.normal(size=4)

    def chosen(theta):
        order = np.argsort(B @ theta)
        return A[order[-3:]].sum() - A[order[:3]].sum()

    exact = fg.gradcheck(chosen, theta, grad=np.zeros_like)
    assert exact.verdict != "FAIL", exact.message
    surrogate = fg.gradcheck(chosen, theta, grad=lambda theta: B.T @ A)
    assert not surrogate
    assert surrogate.diagnoses[0].code == "flat"


def test_004_3_the_mean_may_be_held_still_in_a_variance(rng):
    x = rng.normal(3, 2, (5, 6))
    still = lambda x: 2 * (x - x.mean()) / x.size  # noqa: E731
    assert_passes(fg.gradcheck(np.var, x, grad=still))


def test_004_3_but_not_in_a_mean_distance(rng):
    def spread(x):
        return np.abs(x - x.mean(0)).sum()

    still = lambda x: np.sign(x - x.mean(0))  # noqa: E731
    x = rng.exponential(size=(9, 4))
    right = lambda x: still(x) - still(x).mean(0)  # noqa: E731
    assert_passes(fg.gradcheck(spread, x, grad=right))
    assert_fails(fg.gradcheck(spread, x, grad=still))


@pytest.mark.parametrize("fixed", [True, False])
def test_004_4_quantisation_and_its_straight_through_gradient(rng, fixed):
    x = rng.normal(size=(6, 5))
    low, high = x.min() - 0.1, x.max() + 0.1

    def quantised(x):
        a, b = (low, high) if fixed else (x.min(), x.max())
        step = (b - a) / 7
        return (a + step * np.round((np.clip(x, a, b) - a) / step)).sum()

    result = fg.gradcheck(quantised, x, grad=np.ones_like)
    assert not result
    if fixed:
        assert result.verdict == "FAIL"
        assert result.diagnoses[0].code == "flat"


def test_004_5_precision_from_rounded_probabilities(rng):
    y = rng.integers(0, 2, 30).astype(float)

    def precision_loss(p):
        positive = np.round(np.clip(p, 0, 1))
        return 1 - (y * positive).sum() / (positive.sum() + 1e-7)

    def steep(p):
        """Gradient of the loss with a steep ramp for the rounding."""
        slope = (np.abs(p - 0.5) < 0.4) / 0.8
        positive = np.clip((p - 0.1) / 0.8, 0, 1)
        total = positive.sum() + 1e-7
        return -(y / total - (y * positive).sum() / total**2) * slope

    p = np.where(rng.random(30) < 0.5, rng.uniform(0.15, 0.4, 30), rng.uniform(0.6, 0.85, 30))
    assert_fails(fg.gradcheck(precision_loss, p, grad=steep), "flat")


def test_004_6_data_outside_the_support():
    """A log-likelihood of -inf has no slope, and nothing passes there."""

    def log_likelihood(bounds):
        low, high = bounds
        x = np.array([0.2, 0.9])
        inside = np.all((x >= low) & (x <= high))
        return -2 * np.log(high - low) if inside else -np.inf

    grad = lambda b: np.array([2.0, -2.0]) / (b[1] - b[0])  # noqa: E731
    assert_passes(fg.gradcheck(log_likelihood, np.array([0.0, 1.0]), grad=grad))
    result = fg.gradcheck(log_likelihood, np.array([0.0, 0.5]), grad=grad)
    assert not result
    assert "inf" in str(result.message)
