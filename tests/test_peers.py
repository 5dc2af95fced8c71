"""Agreement of losses with PyTorch and scikit-learn in float64, to 1e-10 and better.

PyTorch's own sample inputs are frozen in peers_samples/ (make.py there says how), so that they are
checked where PyTorch is not installed; with it, a wider grid of options is.  The rules differ in
two places, which the last tests name.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

import fastgrad as fg


def samples(name):
    path = Path(__file__).parent.joinpath("peers_samples", f"{name}.json")
    return json.loads(path.read_text("utf-8"))["samples"]


SAMPLES = samples("cross_entropy")
TIGHT = {"rtol": 1e-10, "atol": 1e-12}


def name_of(i):
    sample = SAMPLES[i]
    kind = "soft" if np.shape(sample["input"]) == np.shape(sample["target"]) else "hard"
    return (
        f"{i}-{kind}-{'x'.join(map(str, np.shape(sample['input'])))}-{'+'.join(sample['options'])}"
    )


@pytest.mark.parametrize("number", range(len(SAMPLES)), ids=name_of)
def test_sample_inputs_of_pytorch(isa, number):
    sample = SAMPLES[number]
    x, t, v = (np.array(sample[k]) for k in ("input", "target", "v"))
    kw = sample["options"] | {"axis": 1}
    value, grad = fg.cross_entropy.value_and_grad(x, t, **kw, grad_output=sample["upstream"])
    np.testing.assert_allclose(value, sample["value"], **TIGHT)
    np.testing.assert_allclose(grad, sample["grad"], **TIGHT)
    product = fg.cross_entropy.hvp(x, t, v, **kw, grad_output=sample["upstream"])
    np.testing.assert_allclose(product, sample["hvp"], **TIGHT)


def test_the_samples_of_pytorch_are_all_there():
    """21 of them, each with and without smoothing: probabilities, weights, ignored rows, 2 to 5
    dimensions.
    """
    assert len(SAMPLES) == 42
    shapes = {np.ndim(s["input"]) for s in SAMPLES}
    assert shapes == {2, 3, 4, 5}
    assert sum(np.ndim(s["input"]) == np.ndim(s["target"]) for s in SAMPLES) == 20
    options = {k for s in SAMPLES for k in s["options"]}
    assert options == {"weight", "reduction", "ignore_index", "label_smoothing"}


def arrays(sample):
    return (np.array(sample[k]) for k in ("input", "value", "upstream", "grad"))


@pytest.mark.parametrize("sample", samples("binary_cross_entropy"))
def test_sample_inputs_of_pytorch_for_binary_cross_entropy(isa, sample):
    """What it calls weight is our sample_weight, which its mean does not divide by."""
    x, value, upstream, grad = arrays(sample)
    kw = dict(sample["options"])
    weight = kw.pop("weight", None)
    if kw.get("reduction", "mean") == "mean":
        kw["normalizer"] = x.size
    actual = fg.binary_cross_entropy.value_and_grad(
        x, np.array(sample["target"]), sample_weight=weight, grad_output=upstream, **kw
    )
    np.testing.assert_allclose(actual[0], value, **TIGHT)
    np.testing.assert_allclose(actual[1], grad, **TIGHT)


@pytest.mark.parametrize("sample", samples("multi_margin"))
def test_sample_inputs_of_pytorch_for_the_multiclass_hinge(isa, sample):
    x, value, upstream, grad = arrays(sample)
    kw = dict(sample["options"])
    rows = np.atleast_2d(x)
    reduction = kw.pop("reduction", "mean")
    one = x.ndim == 1  # PyTorch's row without a batch: its value is a number
    actual = fg.multiclass_hinge.value_and_grad(
        rows,
        np.ravel(sample["target"]),
        variant="weston_watkins",
        divide="k",
        squared=kw.pop("p", 1) == 2,
        reduction=reduction,
        normalizer=len(rows) if reduction == "mean" else None,
        grad_output=upstream.reshape(()) if one else upstream,
        **kw,
    )
    np.testing.assert_allclose(actual[0], value.reshape(()) if one else value, **TIGHT)
    np.testing.assert_allclose(actual[1].reshape(x.shape), grad, **TIGHT)


@pytest.mark.parametrize("sample", samples("segment_reduce"))
def test_sample_inputs_of_pytorch_for_segments(isa, sample):
    """A segment per length or pair of offsets, along axis 0, or along axis 1 of a batch of items.

    PyTorch splits the gradient of an extreme among ties, of which its samples have none.
    """
    x, value, upstream, grad = arrays(sample)
    axis = sample["options"]["axis"]
    lengths = np.array(sample["options"].get("lengths", 0))
    if "offsets" in sample["options"]:
        lengths = np.diff(sample["options"]["offsets"], axis=-1)
    ids = np.array([np.repeat(range(4), n) for n in lengths]) if axis else lengths
    plan = fg.Segments.from_ids(ids, 4) if axis else fg.Segments.from_lengths(lengths)
    f = getattr(fg, f"segment_{sample['reduce']}")
    np.testing.assert_allclose(f(x, plan), value, **TIGHT)
    np.testing.assert_allclose(f.vjp(x, plan, upstream), grad, **TIGHT)


# ---- PyTorch, where it is installed -------------------------------------------------------------

GRID = list(
    itertools.product(
        [False, True],  # probabilities
        [False, True],  # class weights
        [0.0, 0.2, 1.0],  # smoothing
        ["mean", "sum", "none"],
        [(5, 3), (4, 7, 2), (2, 150, 3)],
    )
)


@pytest.mark.parametrize(("soft", "weight", "smoothing", "reduction", "shape"), GRID, ids=str)
def test_pytorch_with_every_option_it_has(soft, weight, smoothing, reduction, shape, rng):
    torch = pytest.importorskip("torch")
    x, v = rng.normal(0, 3, (2, *shape))
    rows = shape[:1] + shape[2:]
    if soft:
        t = rng.random(shape)
    else:
        t = rng.integers(0, shape[1], rows)
        t.reshape(-1)[1] = -100
    w = rng.uniform(0, 2, shape[1]) if weight else None
    g = rng.normal(size=rows if reduction == "none" else ())
    ours = {
        "axis": 1,
        "weight": w,
        "label_smoothing": smoothing,
        "reduction": reduction,
    }
    z = torch.tensor(x, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(
        z,
        torch.tensor(t),
        weight=None if w is None else torch.tensor(w),
        label_smoothing=smoothing,
        reduction=reduction,
    )
    (slope,) = torch.autograd.grad((loss * torch.tensor(g)).sum(), z, create_graph=True)
    (product,) = torch.autograd.grad((slope * torch.tensor(v)).sum(), z)
    value, grad = fg.cross_entropy.value_and_grad(x, t, **ours, grad_output=g)
    np.testing.assert_allclose(value, loss.detach().numpy(), **TIGHT)
    np.testing.assert_allclose(grad, slope.detach().numpy(), **TIGHT)
    hvp = fg.cross_entropy.hvp(x, t, v, **ours, grad_output=g)
    np.testing.assert_allclose(hvp, product.numpy(), **TIGHT)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_z_loss_and_sample_weight_written_out_in_pytorch(soft, rng):
    torch = pytest.importorskip("torch")
    x, v = rng.normal(0, 3, (2, 9, 5))
    t = rng.random((9, 5)) if soft else rng.integers(0, 5, 9)
    s, w = rng.uniform(0.2, 2, 9), rng.uniform(0.2, 2, 5)
    z, ts, tw = torch.tensor(x, requires_grad=True), torch.tensor(s), torch.tensor(w)
    each = torch.nn.functional.cross_entropy(
        z, torch.tensor(t), weight=tw, label_smoothing=0.1, reduction="none"
    )
    each = ts * (each + 0.3 * torch.logsumexp(z, 1) ** 2)
    divisor = ts.sum() if soft else (ts * tw[torch.tensor(t)]).sum()
    loss = each.sum() / divisor
    (slope,) = torch.autograd.grad(loss, z, create_graph=True)
    (product,) = torch.autograd.grad((slope * torch.tensor(v)).sum(), z, retain_graph=True)
    diagonal = [
        torch.autograd.grad(slope[:, c].sum(), z, retain_graph=True)[0][:, c] for c in range(5)
    ]
    kw = {"weight": w, "sample_weight": s, "label_smoothing": 0.1, "z_loss": 0.3}
    value, grad = fg.cross_entropy.value_and_grad(x, t, **kw)
    np.testing.assert_allclose(value, loss.item(), **TIGHT)
    np.testing.assert_allclose(grad, slope.detach().numpy(), **TIGHT)
    np.testing.assert_allclose(fg.cross_entropy.hvp(x, t, v, **kw), product.numpy(), **TIGHT)
    exact = torch.stack(diagonal, 1).numpy()
    np.testing.assert_allclose(fg.cross_entropy.hess_diag(x, t, **kw), exact, **TIGHT)


def test_everything_ignored_as_in_pytorch():
    """The mean is NaN, the gradient 0: PyTorch's rule too, and ours without its 0 / 0."""
    torch = pytest.importorskip("torch")
    z = torch.zeros((2, 3), dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(z, torch.tensor([-100, -100]))
    loss.backward()
    value, grad = fg.cross_entropy.value_and_grad(np.zeros((2, 3)), [-100, -100])
    assert math.isnan(loss.item())
    assert math.isnan(value)
    np.testing.assert_array_equal(grad, z.grad.numpy())


def test_where_the_rules_of_pytorch_differ():
    """A total weight of 0: PyTorch's gradient is NaN, ours 0.  A class at -inf without mass:
    PyTorch's smoothed or weighted loss is NaN by 0 * inf, ours finite (NUMERICS.md section 3).
    """
    torch = pytest.importorskip("torch")
    z = torch.zeros((1, 2), dtype=torch.float64, requires_grad=True)
    w = torch.tensor([0.0, 1.0], dtype=torch.float64)
    torch.nn.functional.cross_entropy(z, torch.tensor([0]), weight=w).backward()
    assert z.grad.isnan().any()
    assert (fg.cross_entropy.grad(np.zeros((1, 2)), [0], weight=[0.0, 1.0]) == 0).all()

    x = np.array([[-np.inf, 0.0, 0.0]])
    t = np.array([[0.0, 1.0, 0.0]])
    loss = torch.nn.functional.cross_entropy(torch.tensor(x), torch.tensor(t))
    assert loss.isnan()
    assert fg.cross_entropy(x, t) == pytest.approx(math.log(2), rel=1e-15)


# ---- scikit-learn -------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("classes", [3, 10, 150])
def test_the_multinomial_loss_of_scikit_learn(rng, weighted, classes):
    """Its private class: loss, gradient and diagonal of the Hessian, times sample weights."""
    from sklearn._loss import HalfMultinomialLoss

    x = rng.normal(0, 3, (40, classes))
    y = rng.integers(0, classes, 40)
    s = rng.uniform(0, 2, 40) if weighted else None
    peer = HalfMultinomialLoss(n_classes=classes)
    args = {"y_true": y.astype(float), "raw_prediction": x, "sample_weight": s}
    kw = {"sample_weight": s, "reduction": "none"}
    loss, grad = peer.loss_gradient(**args)
    value, ours = fg.cross_entropy.value_and_grad(x, y, **kw)
    np.testing.assert_allclose(value, loss, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(ours, grad, rtol=1e-12, atol=1e-14)
    _, diagonal = peer.gradient_hessian(**args)
    hessian = fg.cross_entropy.hess_diag(x, y, **kw)
    np.testing.assert_allclose(hessian, diagonal, rtol=1e-10, atol=1e-14)
    mean = peer(y_true=y.astype(float), raw_prediction=x, sample_weight=s)
    assert fg.cross_entropy(x, y, sample_weight=s) == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_log_loss_of_scikit_learn(rng, weighted, normalize):
    from sklearn.metrics import log_loss

    x = rng.normal(0, 3, (40, 5))
    y = rng.integers(0, 5, 40)
    s = rng.uniform(0, 2, 40) if weighted else None
    p = fg.softmax(x)
    expected = log_loss(y, p, sample_weight=s, normalize=normalize, labels=range(5))
    how = "mean" if normalize else "sum"
    assert fg.cross_entropy(x, y, sample_weight=s, reduction=how) == pytest.approx(
        expected, rel=1e-12
    )
