"""Handwritten digits, by softmax regression and by class centroids: what `fastgrad demo` runs.

`objective` and `fit` are all that the first model needs, `nearest` is the second; the rest checks,
times and prints what they do.
Shapes: N images, D pixels, C classes.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, minimize
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import NearestCentroid
from threadpoolctl import threadpool_limits

import fastgrad as fg
from fastgrad._kernels import isa
from fastgrad._profile.idioms import IDIOMS

Floats: TypeAlias = NDArray[np.floating[Any]]
Labels: TypeAlias = NDArray[np.int64]
ValueAndGrad: TypeAlias = Callable[[Floats, Labels], tuple[Any, Floats]]

C = 10
L2 = 1e-3
MARGIN = 1.0
DIFFERENCES = "worst error against differences"


def objective(
    theta: Floats,
    X: Floats,
    y: Labels,
    value_and_grad: ValueAndGrad | None = None,
) -> tuple[float, Floats]:
    """Mean cross-entropy + L2/2 ‖W‖², and its gradient; the intercepts are free.

    With another `value_and_grad` of logits, the linear head is written out by hand around it.
    """
    W, b = unpack(theta)
    if value_and_grad is None:
        value, gradients = fg.linear_cross_entropy.value_and_grad(
            X, W, y, bias=b, l2=L2, wrt=("W", "bias")
        )
        return value, np.concatenate([gradients.W.ravel(), gradients.bias])
    loss, G = value_and_grad(X @ W.T + b, y)  # G is the gradient in the logits, (N, C)
    gradient = np.concatenate([(G.T @ X + L2 * W).ravel(), G.sum(axis=0)])
    return loss + L2 / 2 * float(np.vdot(W, W)), gradient


def fit(
    X: Floats,
    y: Labels,
    value_and_grad: ValueAndGrad | None = None,
    callback: Callable[[OptimizeResult], None] | None = None,
) -> OptimizeResult:
    """Minimise the objective from zero until no component of the gradient exceeds 1e-9."""
    start = np.zeros(C * X.shape[1] + C)
    options = {"gtol": 1e-9, "ftol": 0.0, "maxiter": 5_000, "maxfun": 10_000}
    return minimize(
        objective,
        start,
        (X, y, value_and_grad),
        "L-BFGS-B",
        jac=True,
        options=options,
        callback=callback,
    )


def unpack(theta: Floats) -> tuple[Floats, Floats]:
    """Weights (C, D) and intercepts (C,), as views of theta."""
    return theta[:-C].reshape(C, -1), theta[-C:]


def nearest(X: Floats, y: Labels, X_test: Floats) -> Labels:
    """The class whose mean is nearest to each image of X_test."""
    centroids, _ = fg.class_centroids(X, y)
    labels: Labels = fg.prototype_logits(X_test, centroids).argmax(axis=1)
    return labels


def sklearn_objective(X: Floats, y: Labels) -> float:
    """The same objective where scikit-learn's own solver ends, evaluated without fastgrad."""
    model = LogisticRegression(C=1 / (L2 * len(y)), tol=1e-10, max_iter=10_000).fit(X, y)
    theta = np.concatenate([model.coef_.ravel(), model.intercept_])
    return objective(theta, X, y, IDIOMS["cross_entropy"].value_and_grad)[0]


def gradient_error(f: Callable[[Floats], tuple[float, Floats]], x: Floats) -> float:
    """Worst error of the gradient in 20 random directions, against central differences.

    As a fraction of the gradient's own size in a random direction.
    """
    gradient = f(x)[1]
    # Truncation goes with h² and rounding with eps / h; they meet near the cube root of eps.
    h = np.finfo(np.float64).eps ** (1 / 3)
    worst = 0.0
    for v in np.random.default_rng(0).normal(size=(20, *x.shape)):
        v /= np.linalg.norm(v)
        difference = (f(x + h * v)[0] - f(x - h * v)[0]) / (2 * h)
        worst = max(worst, abs(float(np.vdot(gradient, v)) - difference))
    return worst * math.sqrt(x.size) / float(np.linalg.norm(gradient))


def race(f: Callable[[], Any], g: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Median seconds of one call of each, measured in turns, each turn a millisecond or longer."""
    times: tuple[list[float], list[float]] = [], []
    calls = [0, 0]
    for turn in range(rounds + 1):
        for i, h in enumerate((f, g)):
            start = time.perf_counter()
            for _ in range(calls[i] or 1):
                h()
            seconds = (time.perf_counter() - start) / (calls[i] or 1)
            if turn:
                times[i].append(seconds)
            else:  # the first turn warms up and sets the number of calls
                calls[i] = math.ceil(1e-3 / seconds)
    return median(times[0]), median(times[1])


def picture(image: Floats) -> list[str]:
    """An image of 64 pixels in [0, 1] as eight lines of text."""
    shades = " .:-=+*#%@"
    return ["".join(2 * shades[int(9 * p + 0.5)] for p in line) for line in image.reshape(8, 8)]


class Progress:
    """One line that is rewritten in place on a terminal; elsewhere nothing."""

    def __init__(self) -> None:
        self._shown = sys.stdout.isatty()

    def show(self, text: str = "") -> None:
        """Replace the line; without a text, remove it."""
        if self._shown:
            print(f"\r\x1b[K{text}", end="", flush=True)


def run() -> int:
    """Fit, check and time two classifiers of scikit-learn's digits, and print a report.

    Everything runs on one thread: NumPy and SciPy each bring their own BLAS threads, and on few
    cores these wait for each other longer than such small matrices take to multiply.

    Returns
    -------
    int
        0, or 1 if a result fails its check.

    Examples
    --------
    >>> from fastgrad.demo import run
    >>> run()  # doctest: +SKIP
    0
    """
    with threadpool_limits(limits=1):
        return _report(Progress())


def _report(progress: Progress) -> int:
    digits = load_digits()
    X, X_test, y, y_test = train_test_split(
        digits.data / 16, digits.target, test_size=0.25, random_state=0, stratify=digits.target
    )
    print(f"fastgrad {fg.__version__}: the UCI handwritten digits")
    print(f"({isa.active_name()} kernels; one thread for everything)\n")
    print(f"data       {len(y)} images to learn from, {len(y_test)} held back, 8 x 8 pixels")

    steps = 0

    def callback(intermediate_result: OptimizeResult) -> None:
        nonlocal steps
        steps += 1
        progress.show(f"fitting: step {steps}, objective {intermediate_result.fun:.10f}")

    result = fit(X, y, callback=callback)
    progress.show("fitting the same model with scikit-learn")
    expected = sklearn_objective(X, y)
    theta = np.random.default_rng(1).normal(scale=0.5, size=result.x.size)  # far from the optimum
    error = gradient_error(lambda theta: objective(theta, X, y), theta)
    progress.show()
    difference = abs(result.fun - expected)
    agrees, exact = difference <= 1e-6, error <= 1e-6
    print(f"fit        L-BFGS, {result.nit} steps, {result.nfev} evaluations")
    print(f"objective  {result.fun:.12f}  fastgrad with SciPy's L-BFGS")
    print(f"           {expected:.12f}  scikit-learn's LogisticRegression")
    print(f"           {difference:<14.1e}  difference: {_verdict(agrees)}, at most 1e-6 allowed")
    print(f"gradient   {error:<14.1e}  {DIFFERENCES}: {_verdict(exact)}, at most 1e-6 allowed")

    W, b = unpack(result.x)
    probabilities = fg.softmax(X_test @ W.T + b)
    learnt = np.mean((X @ W.T + b).argmax(axis=1) == y)
    right = np.mean(probabilities.argmax(axis=1) == y_test)
    print(f"accuracy   {learnt:.1%} of the images learnt, {right:.1%} of those held back\n")

    central = _report_centroids(X, y, X_test, y_test)
    _print_times(X, y, X_test, result.x, progress)
    unsure = int(probabilities.max(axis=1).argmin())
    _print_digit(X_test[unsure], probabilities[unsure], int(y_test[unsure]))
    return 0 if agrees and exact and central else 1


def _report_centroids(X: Floats, y: Labels, X_test: Floats, y_test: Labels) -> bool:
    found = nearest(X, y, X_test)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # some pixels are the same in all images of a class
        same = np.array_equal(found, NearestCentroid().fit(X, y).predict(X_test))
    hinge = fg.centroid_hinge.with_options(margin=MARGIN)
    error = gradient_error(lambda x: hinge.value_and_grad(x, y), X)
    exact = error <= 1e-6
    print(f"centroids  {np.mean(found == y_test):.1%} of the images held back are nearest to their")
    print(f"           own class; {'all' if same else 'NOT ALL'} as scikit-learn's NearestCentroid")
    print(f"hinge      {hinge(X, y):.12f}  centroid_hinge of the images learnt, margin {MARGIN}")
    print(f"gradient   {error:<14.1e}  {DIFFERENCES}: {_verdict(exact)}, at most 1e-6 allowed\n")
    return same and exact


def _verdict(ok: bool) -> str:
    return "ok" if ok else "TOO LARGE"


def _print_times(X: Floats, y: Labels, X_test: Floats, theta: Floats, progress: Progress) -> None:
    W, b = unpack(theta)
    z, z_test = X @ W.T + b, X_test @ W.T + b
    contests: list[tuple[str, Callable[[], Any], Callable[[], Any], int]] = [
        (
            f"loss and gradient of {z.shape} logits",
            lambda: fg.cross_entropy.value_and_grad(z, y),
            lambda: IDIOMS["cross_entropy"].value_and_grad(z, y),
            200,
        ),
        (
            f"softmax of {z_test.shape} logits",
            lambda: fg.softmax(z_test),
            lambda: IDIOMS["softmax"](z_test),
            200,
        ),
        (
            f"class centroids of {X.shape} pixels",
            lambda: fg.class_centroids(X, y),
            lambda: IDIOMS["class_centroids"](X, y),
            200,
        ),
        (
            "centroid hinge of them and its gradient",
            lambda: fg.centroid_hinge.value_and_grad(X, y, margin=MARGIN),
            lambda: IDIOMS["centroid_hinge"].value_and_grad(X, y, margin=MARGIN),
            200,
        ),
        (
            "the whole fit, SciPy and matrix products too",
            lambda: fit(X, y),
            lambda: fit(X, y, IDIOMS["cross_entropy"].value_and_grad),
            9,
        ),
    ]
    print(f"{'median time in ms':<46}{'fastgrad':>10}{'NumPy':>10}{'ratio':>8}")
    for what, ours, theirs, rounds in contests:
        progress.show(f"timing {what}")
        a, n = race(ours, theirs, rounds)
        progress.show()
        print(f"{what:<46}{1e3 * a:>10.3f}{1e3 * n:>10.3f}{n / a:>7.1f}x")


def _print_digit(image: Floats, p: Floats, label: int) -> None:
    beside = [f"{k}  {p[k]:6.1%}  {'#' * round(20 * p[k])}" for k in (-p).argsort()[:4]]
    beside = ["", *beside, "", f"It is a {label}.", ""]
    print("\nThe held-back digit that the model is least sure of:\n")
    for line, text in zip(picture(image), beside, strict=True):
        print(f"   {line}   {text}".rstrip())
