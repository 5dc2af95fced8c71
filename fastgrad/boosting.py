r"""Objectives for XGBoost, LightGBM and CatBoost from any fastgrad loss.

The three libraries take custom objectives in three forms: other shapes, orders, signs and dtypes,
and three ideas of curvature.  Here the loss is written once:

>>> import fastgrad as fg
>>> smooth = fg.cross_entropy.with_options(label_smoothing=0.1)
>>> fg.boosting.XGBoostObjective(smooth)
XGBoostObjective(<fastgrad loss cross_entropy(label_smoothing=0.1)>)
>>> fg.boosting.LightGBMObjective(smooth)
LightGBMObjective(<fastgrad loss cross_entropy(label_smoothing=0.1)>)
>>> fg.boosting.CatBoostObjective(smooth)
CatBoostObjective(<fastgrad loss cross_entropy(label_smoothing=0.1)>)

================  =======================  ==========================  =========================
library           is called with           returns                     curvature ("native")
================  =======================  ==========================  =========================
XGBoost >= 2.1    float32 (N, K) or (N,)   +gradient, the same shape   2 p (1 - p), at least
                                           and order, float32          1e-16; one score p (1 - p)
LightGBM >= 4     float64 (N, K) in        +gradient, (N, K) in        K / (K - 1) p (1 - p);
                  Fortran order, or (N,)   Fortran order, float32      one score p (1 - p)
CatBoost >= 1.2   float64: (N,) for one    -gradient, float64          -Hessian: all K x K
                  score; else one row (K,)                             entries
================  =======================  ==========================  =========================

All three expect derivatives per row: nothing is ever divided by N, and the weights of the data
multiply each row.  This module imports none of the libraries.
"""

from __future__ import annotations

import abc
import functools
import inspect
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastgrad import _arrays
from fastgrad._binary import binary_cross_entropy
from fastgrad._cross_entropy import cross_entropy
from fastgrad._maps import Loss, _Options

__all__ = ["CatBoostObjective", "LightGBMObjective", "XGBoostObjective", "init_score"]

_Array = NDArray[Any]

# Scores per block: their derivatives are in float64 for LightGBM, and a block of these stays in
# cache until it is rounded into the float32 result.
_BLOCK = 1 << 18

# The least share that a class counts with in a start score; LightGBM's kEpsilon.
_LEAST_SHARE = 1e-15


class _Objective(abc.ABC):
    """What XGBoost's and LightGBM's objectives share: one call, made in two orders of arguments."""

    def __init__(
        self,
        loss: Loss,
        *,
        curvature: Literal["native", "exact"] = "native",
        floor: float = 1e-16,
        target: ArrayLike | None = None,
    ) -> None:
        _check_derivatives(loss, type(self).__name__, "grad", "hess_diag")
        if curvature not in ("native", "exact"):
            raise ValueError(f"curvature must be 'native' or 'exact'; got {curvature!r}.")
        base, _ = _base(loss)
        if curvature == "native" and base not in (cross_entropy, binary_cross_entropy):
            raise ValueError(
                f"curvature='native' is the library's own bound, which it has for cross_entropy "
                f"and binary_cross_entropy; got {loss.__name__}. Use curvature='exact', which "
                f"takes {loss.__name__}.hess_diag as it is."
            )
        self.loss = loss
        self._loss = _unreduced(loss)
        self.curvature = curvature
        self.floor = _arrays.check_between(floor, "floor", 0.0, float(np.finfo(np.float32).max))
        self.target = None if target is None else _arrays.as_labels(target)

    def __repr__(self) -> str:
        shown = "" if self.curvature == "native" else f", curvature={self.curvature!r}"
        return f"{type(self).__name__}({self.loss!r}{shown})"

    # Both libraries read this signature: XGBoost's scikit-learn wrapper looks for the name
    # sample_weight, LightGBM's counts the parameters and passes the weights as the third.
    def __call__(
        self, y_true: Any, y_pred: Any, sample_weight: ArrayLike | None = None
    ) -> tuple[_Array, _Array]:
        """Gradient and curvature of every row.

        Parameters
        ----------
        y_true : array_like, shape (N,) or (N, K)
            Labels; not read if the objective has its own `target`.
        y_pred : ndarray, shape (N,) or (N, K)
            Raw scores.
        sample_weight : array_like, shape (N,), optional
            A factor for every row's derivatives.

        Returns
        -------
        grad, hess : ndarray of float32
            In the shape and memory order of the scores.

        Raises
        ------
        ValueError
            For derivatives of another shape, or not finite, and for weights that are negative, not
            finite, or not one for each row.
        IndexError, TypeError, ValueError
            As the loss itself raises them for the labels.

        Notes
        -----
        The training functions call with (scores, data set), the scikit-learn wrappers with
        (labels, scores) and maybe weights.  A data set is known by its `get_label`.
        """
        if hasattr(y_pred, "get_label"):
            scores, data = _arrays.as_raw_scores(y_true), y_pred
            y_true, sample_weight = np.asarray(data.get_label()), data.get_weight()
            if y_true.size == scores.size:  # XGBoost before 3.2 has (N, K) labels flat
                y_true = y_true.reshape(scores.shape)
        else:
            scores = _arrays.as_raw_scores(y_pred)
        factor = self._factor(scores)
        target = _labels(y_true if self.target is None else self.target, scores)
        weight = None
        if sample_weight is not None and np.size(sample_weight):  # XGBoost passes (0,) for none
            # In the scores' dtype: in float32 the products of LightGBM's float64 would be rounded.
            wide = scores.dtype.kind == "f" and scores.itemsize >= 4
            dtype = scores.dtype if wide else np.dtype(np.float64)
            weight = _arrays.as_training_weight(sample_weight, len(scores), dtype)
        # Blocks of rows would be cut from a longer array without a word.
        _arrays.check_training_rows("target", target, len(scores))
        grad = self._rounded("grad", scores, target, weight, 1.0)
        hess = self._rounded("hess_diag", scores, target, weight, factor)
        return grad, np.maximum(hess, np.float32(self.floor), out=hess)

    def _factor(self, scores: _Array) -> float:
        base, _ = _base(self.loss)
        classes = scores.shape[1] if scores.ndim == 2 else 1
        if base is cross_entropy and classes < 2:
            raise ValueError(
                f"cross_entropy needs one score per class, shape (N, K) with K > 1; the library "
                f"passed scores of shape {scores.shape}. Set num_class, or use "
                "binary_cross_entropy for two classes with one score."
            )
        if base is cross_entropy and self.curvature == "native":
            return self._softmax_bound(classes)
        return 1.0

    @staticmethod
    @abc.abstractmethod
    def _softmax_bound(classes: int) -> float:
        """By what the library multiplies p (1 - p)."""

    def _rounded(
        self, name: str, scores: _Array, target: _Array, weight: _Array | None, factor: float
    ) -> _Array:
        result = np.empty_like(scores, np.float32)
        n = len(scores)
        step = max(1, _BLOCK * n // max(scores.size, 1)) if _by_rows(self.loss) else max(n, 1)
        for start in range(0, n, step):
            rows = slice(start, start + step)
            d = _derivative(self._loss, name, scores[rows], target[rows])
            scale: Any = factor
            if weight is not None:
                scale = factor * weight[rows].reshape(-1, *[1] * (scores.ndim - 1))
            with np.errstate(over="ignore"):  # what becomes infinite is refused
                np.multiply(d, scale, out=result[rows], casting="same_kind")
            finite = np.isfinite(result[rows])
            if not finite.all():
                i, *k = map(int, np.argwhere(~finite)[0])
                at = (start + i, *k)
                raise ValueError(
                    f"{self.loss.__name__}.{name} must be finite in float32; it is "
                    f"{float(result[at])} at {list(at)}, where the score is {float(scores[at])!r}. "
                    "If the scores grow without bound, lower the learning rate."
                )
        return result


class XGBoostObjective(_Objective):
    r"""A fastgrad loss as an objective of XGBoost 2.1 or later.

    The same object serves ``xgboost.train(..., obj=)`` and the scikit-learn wrappers
    (``XGBClassifier(objective=)``), with and without weights.

    Parameters
    ----------
    loss : Loss
        `cross_entropy` (one score per class), `binary_cross_entropy` (one score, or one per
        label), either of them `with_options`, or a user's `Loss` with `grad` and `hess_diag`.
    curvature : {"native", "exact"}, default "native"
        "native" is XGBoost's own bound: twice the diagonal of the Hessian for `cross_entropy`
        (2 p (1 - p) without options), the second derivative for `binary_cross_entropy`.  "exact"
        is ``loss.hess_diag``; a user's loss needs it, since no bound is known for it.
    floor : float, default 1e-16
        The least curvature, XGBoost's own.  A loss that is not convex needs a larger one.
    target : array_like, shape (N,) or (N, K), optional
        What to learn, in the order of the training data, instead of its labels; for example
        probabilities.  (XGBoost also takes those as labels of shape (N, K), without num_class.)

    Raises
    ------
    TypeError
        For what is no `Loss`, or lacks a derivative.
    ValueError
        For another `curvature`, for "native" with a user's loss, or a `floor` that is negative or
        beyond float32.

    See Also
    --------
    LightGBMObjective, CatBoostObjective, init_score

    Notes
    -----
    Labels that are whole numbers, one for a row of scores, become integers: XGBoost passes class
    indices as float32.

    A user's loss is called without options, except ``reduction="none"`` if its derivatives take
    that; otherwise its gradient must be that of the sum over the rows.  The weights multiply the
    derivatives.

    XGBoost keeps its own `objective` parameter beside `obj`: with "multi:softprob" or
    "binary:logistic" there, predictions are probabilities.  Its start score is then 1/2 for every
    class, and not estimated from the labels as for the built-in objective; give it as
    ``base_score`` (XGBoost 3.1 or later, see `init_score`) or as ``base_margin`` of the data.

    With that start, the trees are the same as with the built-in objective, except where gains of
    two splits are equal to the last bits of float32.  The curvature of a confident row is more
    accurate here: in float32, XGBoost's own 1 - p cancels.

    References
    ----------
    .. [1] XGBoost's `SoftmaxMultiClassObj` and `LogisticRegression`, src/objective.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> objective = fg.boosting.XGBoostObjective(fg.cross_entropy)
    >>> grad, hess = objective(np.array([0.0, 1.0]), np.zeros((2, 2), np.float32))
    >>> grad
    array([[-0.5,  0.5],
           [ 0.5, -0.5]], dtype=float32)
    >>> hess
    array([[0.5, 0.5],
           [0.5, 0.5]], dtype=float32)

    >>> import xgboost
    >>> from sklearn.datasets import load_wine
    >>> X, y = load_wine(return_X_y=True)
    >>> smooth = fg.cross_entropy.with_options(label_smoothing=0.1)
    >>> objective = fg.boosting.XGBoostObjective(smooth)
    >>> model = xgboost.XGBClassifier(n_estimators=10, objective=objective)
    >>> float(model.fit(X, y).score(X, y))
    1.0
    """

    @staticmethod
    def _softmax_bound(classes: int) -> float:
        return 2.0


class LightGBMObjective(_Objective):
    r"""A fastgrad loss as an objective of LightGBM 4 or later.

    The same object serves ``lightgbm.train({"objective": ...})`` and the scikit-learn wrappers
    (``LGBMClassifier(objective=)``), with and without weights.

    Parameters
    ----------
    loss : Loss
        As for `XGBoostObjective`.
    curvature : {"native", "exact"}, default "native"
        "native" is LightGBM's own bound: K / (K - 1) times the diagonal of the Hessian for
        `cross_entropy`, the second derivative for `binary_cross_entropy`.  "exact" is
        ``loss.hess_diag``; a user's loss needs it, since no bound is known for it.
    floor : float, default 1e-16
        The least curvature.  LightGBM has none; this one is too small to change a sum.
    target : array_like, shape (N,) or (N, K), optional
        What to learn, in the order of the training data, instead of its labels.  LightGBM's labels
        are one number per row, so probabilities, or K labels per row, need this.

    Raises
    ------
    TypeError, ValueError
        As `XGBoostObjective`.

    See Also
    --------
    XGBoostObjective, CatBoostObjective, init_score

    Notes
    -----
    LightGBM passes (N, K) scores as a float64 array in Fortran order.  The derivatives are computed
    in float64 from these, block by block, and rounded once into float32 arrays of the same order,
    which LightGBM reads as they are: no array of that size is copied on either side.

    Custom objectives start from 0 in LightGBM, whatever ``boost_from_average`` says, and predict
    raw scores.  The built-in start is ``init_score(loss, y, num_class=K)``; LightGBM adds the
    `init_score` of a data set while training, never when it predicts: see the example.

    With that start, the trees are the same as with the built-in objective, except where gains of
    two splits are equal to the last bits.

    References
    ----------
    .. [1] LightGBM's `MulticlassSoftmax` and `BinaryLogloss`, src/objective.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> objective = fg.boosting.LightGBMObjective(fg.cross_entropy)
    >>> grad, hess = objective(np.array([0.0, 1.0]), np.zeros((2, 3), order="F"))
    >>> hess
    array([[0.33333334, 0.33333334, 0.33333334],
           [0.33333334, 0.33333334, 0.33333334]], dtype=float32)
    >>> hess.flags.f_contiguous
    True

    >>> import lightgbm
    >>> from sklearn.datasets import load_wine
    >>> X, y = load_wine(return_X_y=True)
    >>> start = fg.boosting.init_score(fg.cross_entropy, y, num_class=3)
    >>> data = lightgbm.Dataset(X, y, init_score=np.tile(start, (len(y), 1)))
    >>> params = {"objective": objective, "num_class": 3, "verbose": -1}
    >>> booster = lightgbm.train(params, data, num_boost_round=20)
    >>> p = fg.softmax(booster.predict(X) + start)
    >>> float((p.argmax(axis=1) == y).mean())
    1.0
    """

    @staticmethod
    def _softmax_bound(classes: int) -> float:
        return classes / (classes - 1)


class CatBoostObjective:
    r"""A fastgrad loss as an objective of CatBoost 1.2 or later.

    For ``CatBoostClassifier(loss_function=..., eval_metric="MultiClass")`` and the like; CatBoost
    wants the metric named beside a custom objective.

    Parameters
    ----------
    loss : Loss
        `cross_entropy` (one score per class), `binary_cross_entropy` (one score), either of them
        `with_options`, or a user's `Loss`.  One score per row needs `hess_diag`, several need
        `hvp`, from which the K x K Hessian of a row is taken.

    Raises
    ------
    TypeError
        For what is no `Loss`, or lacks both second derivatives; while training, for a loss that
        lacks the one that is needed.

    See Also
    --------
    XGBoostObjective, LightGBMObjective

    Notes
    -----
    CatBoost maximises, so the derivatives are those of the negative loss, times the row's weight.

    With several scores CatBoost calls Python for every row, four times per tree.  Each call takes
    some 20 microseconds here; a function of Python lists written for one loss and few classes
    takes less, a larger K is faster here.  With one score CatBoost calls for blocks of rows.

    CatBoost's own `MultiClass` and `Logloss` start from 0 and use the whole Hessian, as this does,
    so predictions agree to rounding if the settings do: CatBoost chooses `learning_rate`,
    `bootstrap_type` and `leaf_estimation_iterations` by the name of the loss where they are not
    given.

    For targets of several numbers (probabilities, say) CatBoost asks for a class of its own as a
    base::

        class Objective(fg.boosting.CatBoostObjective, catboost.MultiTargetCustomObjective):
            pass

    References
    ----------
    .. [1] CatBoost, "Custom loss function", catboost.ai/docs.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> objective = fg.boosting.CatBoostObjective(fg.cross_entropy)
    >>> objective.calc_ders_multi(np.zeros(2), 1.0, 1.0)
    ([-0.5, 0.5], [[-0.25, 0.25], [0.25, -0.25]])
    >>> binary = fg.boosting.CatBoostObjective(fg.binary_cross_entropy)
    >>> binary.calc_ders_range(np.zeros(1), np.ones(1), None)
    array([[ 0.5 , -0.25]])

    >>> import catboost
    >>> from sklearn.datasets import load_wine
    >>> X, y = load_wine(return_X_y=True)
    >>> model = catboost.CatBoostClassifier(
    ...     iterations=20,
    ...     learning_rate=0.3,
    ...     loss_function=objective,
    ...     eval_metric="MultiClass",
    ...     verbose=False,
    ...     allow_writing_files=False,
    ... )
    >>> float(model.fit(X, y).score(X, y))
    1.0
    """

    no_jit = True
    """CatBoost would try to compile the methods with numba, and warn where there is none."""

    def __init__(self, loss: Loss) -> None:
        name = type(self).__name__
        _check_derivatives(loss, name, "grad")
        if not hasattr(loss, "hvp"):
            _check_derivatives(loss, name, "hess_diag")
        self.loss = loss
        self._loss = _unreduced(loss)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.loss!r})"

    def calc_ders_range(
        self, approxes: ArrayLike, targets: ArrayLike, weights: ArrayLike | None
    ) -> _Array:
        """Derivatives of the negative loss for a block of rows with one score each.

        Parameters
        ----------
        approxes, targets : array_like, shape (N,)
        weights : array_like, shape (N,), or None

        Returns
        -------
        ndarray of float64, shape (N, 2)
            First and second derivative of every row.
        """
        _check_derivatives(self.loss, "CatBoostObjective with one score per row", "hess_diag")
        scores = np.asarray(approxes, np.float64)
        target = _labels(targets, scores)
        result = np.empty((len(scores), 2))
        result[:, 0] = _derivative(self._loss, "grad", scores, target)
        result[:, 1] = _derivative(self._loss, "hess_diag", scores, target)
        if weights is None:
            return -result
        weight = _arrays.as_training_weight(weights, len(scores), scores.dtype)
        return result * -weight[:, None]

    def calc_ders_multi(
        self, approx: ArrayLike, target: Any, weight: float | None
    ) -> tuple[list[float], list[list[float]]]:
        """Derivatives of the negative loss for one row with several scores.

        Parameters
        ----------
        approx : array_like, shape (K,)
        target : float or array_like
            The label; an array for a multi-target objective.
        weight : float or None

        Returns
        -------
        der1 : list of K floats
        der2 : list of K lists of K floats
            The Hessian.
        """
        _check_derivatives(self.loss, "CatBoostObjective with several scores per row", "hvp")
        scores = np.asarray(approx, np.float64)[None]
        label = _labels(np.asarray(target)[None], scores)
        grad = _derivative(self._loss, "grad", scores, label)
        # The same row times each unit vector: the rows of a symmetric matrix.
        v = _unit_vectors(scores.shape[1])
        hess = _derivative(
            self._loss,
            "hvp",
            scores.repeat(len(v), axis=0),
            label.repeat(len(v), axis=0),
            v,
        )
        sign = -1.0 if weight is None else -_arrays.check_between(weight, "weight", 0.0, np.inf)
        return (sign * grad[0]).tolist(), (sign * hess).tolist()


@functools.lru_cache(maxsize=4)
def _unit_vectors(k: int) -> NDArray[np.float64]:
    return np.eye(k)


def init_score(
    loss: Loss,
    target: ArrayLike,
    *,
    num_class: int | None = None,
    sample_weight: ArrayLike | None = None,
) -> float | NDArray[np.float64]:
    r"""The constant scores with the least loss, from which built-in objectives start.

    .. math:: \log \frac{\sum_n m_{nc}}{\sum_{n, j} m_{nj}}, \qquad
              \log \frac{\sum_n m_{n1}}{\sum_n m_{n0}}

    with `m` the mass that the loss puts on a class of a row: the label or probability, its class
    weight and smoothing, and the row's weight.  Without options these are the logarithms of the
    classes' shares, and the log odds.

    Parameters
    ----------
    loss : Loss
        `cross_entropy`, `binary_cross_entropy`, or either of them `with_options`.
    target : array_like, shape (N,) or (N, K)
        Class indices, whole numbers of any dtype; or floats, probabilities.
    num_class : int, optional
        K, the number of scores per row.  None: one score per row, for `binary_cross_entropy`.
    sample_weight : array_like, shape (N,), optional
        Weights of the rows.

    Returns
    -------
    ndarray of float64, shape (K,), or float
        One for each class; for ``num_class=None`` a Python float.  A share below 1e-15 counts as
        that, as in LightGBM, so that scores are finite.

    Raises
    ------
    TypeError
        For another loss, whose start has no closed form known here; for a `num_class` that is no
        int, and masked arrays.
    ValueError
        For weights that are negative, not finite or not one for each row; if no row has mass; or
        for a loss with `where`, whose start is no share.

    Notes
    -----
    LightGBM starts from these (``boost_from_average``).  XGBoost 3.1 and later start from these
    less their mean, which is the same softmax, older ones from 1/2 for every class.  CatBoost's
    objectives for classification start from 0.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> start = fg.boosting.init_score(fg.cross_entropy, [0, 0, 0, 1], num_class=2)
    >>> np.exp(start).round(12)
    array([0.75, 0.25])
    >>> round(fg.boosting.init_score(fg.binary_cross_entropy, [0, 0, 0, 1]), 12)
    -1.098612288668
    """
    base, options = _base(loss)
    if base not in (cross_entropy, binary_cross_entropy):
        raise TypeError(
            "init_score knows the start of cross_entropy and binary_cross_entropy; got "
            f"{getattr(loss, '__name__', loss)!r}. Minimise its sum over the rows in a constant "
            "score, for example with scipy.optimize.minimize."
        )
    if num_class is not None:
        num_class = _arrays.check_count(num_class, "num_class")
    if base is cross_entropy and (num_class is None or num_class < 2):
        raise ValueError(
            "cross_entropy has one score for each class: give init_score num_class=K, with K > 1; "
            f"got {num_class!r}."
        )
    if options.get("where") is not None:
        raise ValueError("init_score needs every class in every row; the loss has where=.")
    y = _arrays.as_labels(target)
    scores = np.broadcast_to(0.0, (len(y),) if num_class is None else (len(y), num_class))
    y = _labels(y, scores)
    rows: Any = 1.0
    if sample_weight is not None:
        weight = _arrays.as_training_weight(sample_weight, len(y), scores.dtype)
        # Shares do not depend on the weights' size, and their products must not leave the range.
        rows = np.asarray(_arrays.balanced(weight)).reshape(-1, *[1] * (scores.ndim - 1))
    # The gradient is mass p - mass of the class; at score 0, where p = 1/K, the curvature
    # mass (1 - 1/K) / K tells the mass, and so each class's share of it.
    per_row = _unreduced(loss)
    if options.get("weight") is not None:
        given = np.asarray(options["weight"], np.float64)
        per_row = cast(Loss, per_row.with_options(weight=_arrays.balanced(given)))
    penalty = {"z_loss": 0.0} if base is cross_entropy else {}
    start = np.zeros(scores.shape[1:])
    hess = _summed(per_row, "hess_diag", start, y, rows, penalty)
    if not np.all(hess > 0):
        raise ValueError("target must have rows with weight; all are ignored or have weight 0.")
    k = 2 if num_class is None or base is binary_cross_entropy else num_class
    share, rest = np.full(start.shape, 1 / k), np.full(start.shape, 1 - 1 / k)
    # That of a rare class is what remains of 1/K; seen from about itself it keeps its digits.
    for _ in range(2):
        grad = _summed(per_row, "grad", start, y, rows, penalty)
        step = grad / hess * ((k - 1) / k**2)
        share = np.maximum(share - step, _LEAST_SHARE)
        if base is binary_cross_entropy:
            rest = np.maximum(rest + step, _LEAST_SHARE)
            start = np.log(share / rest)
        else:
            start = np.log(share)
            share /= share.sum()
    return float(start) if num_class is None else np.asarray(start)


def _summed(
    loss: Loss, name: str, start: _Array, y: _Array, rows: Any, options: dict[str, Any]
) -> Any:
    """A derivative at one start for all rows, times `rows`, summed over them."""
    each = max(1, 2**20 // start.size) if _by_rows(loss) else max(1, len(y))
    sums = [np.zeros(start.shape)]
    for at in range(0, len(y), each):
        part = y[at : at + each]
        result = _derivative(
            loss, name, np.broadcast_to(start, (len(part), *start.shape)), part, **options
        )
        sums.append(_column_sums(result * (rows[at : at + each] if np.ndim(rows) else rows)))
    return _column_sums(np.array(sums))


def _column_sums(a: _Array) -> Any:
    """By blocks of blocks, so that ten million rows cost few digits."""
    while len(a) > 64:
        a = np.add.reduceat(a, np.arange(0, len(a), 64), axis=0)
    return a.sum(axis=0)


def _check_derivatives(loss: Any, who: str, *names: str) -> None:
    if not isinstance(loss, Loss):
        raise TypeError(
            f"{who} needs a fastgrad loss; got {type(loss).__name__}. "
            "Make one of your functions: fg.Loss(value=..., grad=..., hess_diag=...)."
        )
    for name in names:
        if not hasattr(loss, name):
            raise TypeError(
                f"{who} needs the loss's {name}, and {loss.__name__} has none. "
                f"Give it one: fg.Loss(..., {name}=...)."
            )


def _base(loss: Any) -> tuple[Any, dict[str, Any]]:
    """The loss that `with_options` was said to, and all options said."""
    options: dict[str, Any] = {}
    while isinstance(value := getattr(loss, "_value", None), _Options):
        loss, options = value._f, {**value._options, **options}
    return loss, options


def _by_rows(loss: Loss) -> bool:
    """Whether blocks of rows can be given to the loss one by one."""
    base, options = _base(loss)
    arrays = [name for name, value in options.items() if np.ndim(value) > 0 and name != "weight"]
    return base in (cross_entropy, binary_cross_entropy) and not arrays


def _labels(labels: ArrayLike, scores: _Array) -> _Array:
    """Class indices and signs as integers, though the libraries hand them over as float32."""
    y = _arrays.as_labels(labels)
    signs = y.ndim == scores.ndim == 1 and bool((np.abs(y) == 1).all())
    if y.dtype.kind == "f" and (y.ndim < scores.ndim or signs) and np.isfinite(y).all():
        whole = y.astype(np.int64)
        if (whole == y).all():
            return whole
    return y


def _unreduced(loss: Loss) -> Loss:
    """The loss whose gradient is each row's own, as that of a sum is; a mean divides it by N, or by
    its normalizer.
    """
    known = inspect.signature(loss).parameters
    rows = {k: v for k, v in {"reduction": "none", "normalizer": None}.items() if k in known}
    return cast(Loss, loss.with_options(**rows)) if rows else loss


def _derivative(loss: Loss, name: str, scores: _Array, *args: _Array, **options: Any) -> _Array:
    result = np.asarray(getattr(loss, name)(scores, *args, **options))
    if result.shape != scores.shape:
        raise ValueError(
            f"{loss.__name__}.{name} must return the shape of the scores, {scores.shape}; it "
            f"returned {result.shape}."
        )
    return result
