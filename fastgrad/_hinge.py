"""Hinge losses of one signed score and of the scores of classes, with their derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fastgrad import _arrays
from fastgrad._arrays import FloatArray
from fastgrad._kernels import cross_entropy as _weights
from fastgrad._kernels import hinge as _kernels
from fastgrad._maps import Loss


class _Options(NamedTuple):
    """What a call of `hinge` and of each of its derivatives was given."""

    margin: float
    squared: bool
    sample_weight: ArrayLike | None
    where: ArrayLike | None
    reduction: str | None
    normalizer: float | None


class Hinge(Loss):
    r"""Hinge loss of scores against targets with a sign, element by element.

    .. math:: \ell = s \max(0,\, m - y f)^q, \quad q = 1 \text{ or, squared, } 2

    for every element by itself: `f` its score, `y` its target, -1 or 1, `m` the margin and `s` its
    weight.

    Parameters
    ----------
    scores : array_like of floats
        Scores `f`, any shape and strides.  float16 and bfloat16 (of `ml_dtypes`) are read and
        written natively and computed in float32.  Integers and bools become float64.
    target : array_like, shape of `scores`
        Bools (True is 1, False is -1) or the integers -1 and 1.  The integers 0 and 1 are refused:
        other libraries read them in two ways.  Never broadcast.
    margin : float >= 0, default 1.0
        The margin `m`, rounded to the type computed in.  With 0 this is the perceptron's loss.
    squared : bool, default False
        Square the hinge, which makes the gradient continuous.
    sample_weight : array_like, optional
        Weights `s`, finite and >= 0, broadcast to the shape of `scores`.
    where : array_like of bool, optional
        Elements to keep, broadcast to the shape of `scores`; the others are ignored.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides the sum by :math:`\sum s` over the elements kept (without weights, their
        number).  "none" (or None) gives one value per element.
    normalizer : float > 0, optional
        What "mean" divides by instead, so that the sums of micro-batches add up.

    Returns
    -------
    float or ndarray
        A Python float, accumulated in float64; for "none" an array of the shape and dtype of
        `scores`.

    Raises
    ------
    TypeError
        For targets that are neither bools nor integers, weights that are not real numbers, and for
        scores as in `sigmoid`.
    ValueError
        For a target of another shape, an integer that is not -1 or 1, a margin or weight that is
        negative, not finite or does not broadcast, options without meaning together, or an unfit
        `out`.

    See Also
    --------
    multiclass_hinge, binary_cross_entropy

    Notes
    -----
    :math:`m - y f` is rounded once, so the loss keeps its relative accuracy (4 eps) however near
    the kink, and is 0 exactly where it should be.  Exactly at the kink the subgradient is 0, and so
    is the second derivative [1]_, [2]_.

    A NaN score gives NaN there and nowhere else, in the second derivatives too.  An infinite one
    gives loss +inf on the wrong side, else 0.  An element is ignored if its sample weight is 0 or
    `where` drops it: loss 0, derivatives exactly 0, whatever its score.  With no element kept, or a
    total weight of 0, "mean" is NaN, "sum" 0, every derivative 0.  An empty array has no element
    kept.  Nothing warns.

    Half precision gives the bits of the same call on ``scores.astype(np.float32)``, arrays rounded
    once to the dtype of `scores`, floats not at all.

    An element's results depend on no other element, nor on threads or `out`, to the last bit; the
    reduced value does not depend on threads.

    Derivatives: ``grad``, ``value_and_grad``, ``hvp`` and ``hess_diag``, with the same arguments.

    References
    ----------
    .. [1] C. Cortes and V. Vapnik, "Support-vector networks", Machine Learning 20, 1995,
       doi:10.1007/BF00994018.
    .. [2] S. S. Keerthi and D. DeCoste, "A modified finite Newton method for fast solution of large
       scale linear SVMs" (the second derivative of the squared hinge), JMLR 6, 2005,
       https://jmlr.org/papers/v6/keerthi05a.html.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> scores = np.array([2.0, 0.25, 1.0, -0.5])
    >>> fg.hinge(scores, [1, 1, 1, -1], reduction="none")
    array([0.  , 0.75, 0.  , 0.5 ])
    >>> fg.hinge.value_and_grad(scores, [True, True, True, False])
    (0.3125, array([ 0.  , -0.25,  0.  ,  0.25]))
    """

    _builtin_name = "hinge"

    def __init__(self) -> None:
        self.__name__ = self._builtin_name

    def __call__(
        self,
        scores: ArrayLike,
        target: ArrayLike,
        *,
        margin: float = 1.0,
        squared: bool = False,
        sample_weight: ArrayLike | None = None,
        where: ArrayLike | None = None,
        reduction: str | None = "mean",
        normalizer: float | None = None,
    ) -> Any:
        options = _Options(margin, squared, sample_weight, where, reduction, normalizer)
        return _elements("value", scores, target, None, options, None, None)[0]

    def grad(
        self,
        scores: ArrayLike,
        target: ArrayLike,
        *,
        margin: float = 1.0,
        squared: bool = False,
        sample_weight: ArrayLike | None = None,
        where: ArrayLike | None = None,
        reduction: str | None = "mean",
        normalizer: float | None = None,
        grad_output: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> Any:
        r"""Gradient with respect to the scores, 0 exactly at the kink.

        .. math:: -s\, y\, [m > y f] \quad \text{or, squared,} \quad -2\, s\, y \max(0,\, m - y f)

        Parameters
        ----------
        scores, target, margin, ...
            As in the call.  For "none", each element's gradient is that of its own loss.
        grad_output : float or array_like, optional
            Factor of the gradient, an upstream derivative: one number, or for "none" one per
            element.
        out : ndarray, optional
            Where to put it: shape and dtype of `scores`; it may be `scores` itself.

        Returns
        -------
        ndarray or scalar
            Shape and dtype of `scores`; `out` if that was given.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.hinge.grad(np.array([0.5, 0.5]), [1, -1], squared=True)
        array([-0.5,  1.5])
        """
        options = _Options(margin, squared, sample_weight, where, reduction, normalizer)
        return _elements("grad", scores, target, None, options, grad_output, out)[1]

    def value_and_grad(
        self,
        scores: ArrayLike,
        target: ArrayLike,
        *,
        margin: float = 1.0,
        squared: bool = False,
        sample_weight: ArrayLike | None = None,
        where: ArrayLike | None = None,
        reduction: str | None = "mean",
        normalizer: float | None = None,
        grad_output: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> tuple[Any, Any]:
        """Loss and gradient in one pass.

        Parameters
        ----------
        scores, target, margin, ..., grad_output, out
            As for `grad`; `grad_output` does not touch the value.

        Returns
        -------
        value : float or ndarray
            What the call returns, to the last bit.
        grad : ndarray or scalar
            What `grad` returns, to the last bit.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.hinge.value_and_grad(np.array([0.5, 0.5]), [1, -1])
        (1.0, array([-0.5,  0.5]))
        """
        options = _Options(margin, squared, sample_weight, where, reduction, normalizer)
        return _elements("value_and_grad", scores, target, None, options, grad_output, out)

    def hvp(
        self,
        scores: ArrayLike,
        target: ArrayLike,
        v: ArrayLike,
        *,
        margin: float = 1.0,
        squared: bool = False,
        sample_weight: ArrayLike | None = None,
        where: ArrayLike | None = None,
        reduction: str | None = "mean",
        normalizer: float | None = None,
        grad_output: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> Any:
        """The Hessian with respect to the scores, times a vector.

        The Hessian is diagonal: `hess_diag` times `v`, element by element.

        Parameters
        ----------
        scores, target, margin, ..., grad_output
            As for `grad`.
        v : array_like
            The vector: shape of `scores`, cast to its dtype.  It does not enter the result where
            the second derivative is 0.
        out : ndarray, optional
            Where to put the result: shape and dtype of `scores`; it may be `v` itself.

        Returns
        -------
        ndarray or scalar
            Shape and dtype of `scores`; `out` if that was given.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.hinge.hvp(np.array([0.5, 2.0]), [1, 1], [8.0, 8.0], squared=True)
        array([8., 0.])
        """
        options = _Options(margin, squared, sample_weight, where, reduction, normalizer)
        return _elements("hvp", scores, target, v, options, grad_output, out)[1]

    def hess_diag(
        self,
        scores: ArrayLike,
        target: ArrayLike,
        *,
        margin: float = 1.0,
        squared: bool = False,
        sample_weight: ArrayLike | None = None,
        where: ArrayLike | None = None,
        reduction: str | None = "mean",
        normalizer: float | None = None,
        grad_output: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> Any:
        r"""The diagonal of the Hessian with respect to the scores, which is all of it.

        .. math:: 0 \quad \text{or, squared,} \quad 2\, s\, [m > y f]

        Parameters
        ----------
        scores, target, margin, ..., grad_output, out
            As for `grad`.

        Returns
        -------
        ndarray or scalar
            Shape and dtype of `scores`; `out` if that was given.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.hinge.hess_diag(np.array([0.5, 2.0]), [1, 1], squared=True)
        array([1., 0.])
        """
        options = _Options(margin, squared, sample_weight, where, reduction, normalizer)
        return _elements("hess_diag", scores, target, None, options, grad_output, out)[1]


def _elements(
    kind: str,
    scores: ArrayLike,
    target: ArrayLike,
    v: Any,
    options: _Options,
    grad_output: ArrayLike | None,
    out: FloatArray | None,
) -> tuple[Any, Any]:
    """(value or None, array or None): what `kind` asks for."""
    z = _arrays.as_scores(scores, "scores", _arrays.BY_WHERE)
    shape, dtype = z.shape, z.dtype
    how = _arrays.check_reduction(options.reduction)
    divisor = _arrays.check_normalizer(options.normalizer, how)
    margin = _arrays.check_margin(options.margin, dtype)
    y = _arrays.as_signed_target(target, shape)
    shares = how == "mean" and divisor is None
    s = _arrays.as_element_weight(
        options.sample_weight, "sample_weight", shape, dtype, "scores", mean=shares
    )
    mask = _arrays.as_where(options.where, shape, "scores")
    factor, upstream = _arrays.as_grad_output(grad_output, how, shape, dtype)
    direction = _arrays.as_cotangent(v, shape, dtype, "v") if kind == "hvp" else None
    result: Any = None
    if kind != "value":
        # `out` may be the first of these.
        inputs: dict[str, Any] = {"v": direction} if direction is not None else {}
        inputs |= {"scores": z, "target": y, "sample_weight": s, "where": mask}
        result = (
            np.empty_like(z)
            if out is None
            else _arrays.as_out(out, shape, dtype, **inputs, grad_output=upstream)
        )

    if shares:
        s = _arrays.balanced(s)
        if s is None:
            divisor = float(z.size if mask is None else np.count_nonzero(mask))
        elif z.size:
            zeros = np.broadcast_to(s.dtype.type(0), shape)
            divisor = _weights.total_weight(zeros, None, None, None, s, mask)

    def run(value: FloatArray | None, divided_by: float, reduce: bool) -> float:
        return _kernels.run(
            "grad" if kind == "value_and_grad" else kind,
            z,
            y,
            value,
            result,
            direction,
            s,
            upstream,
            mask,
            margin,
            bool(options.squared),
            factor / divided_by,
            reduce,
        )

    value = _evaluated(kind, z, shape, how, divisor, result, run)
    return value, result if result is None else _arrays.returned(result, out)


class _ClassOptions(NamedTuple):
    """What a call of `multiclass_hinge` and of each of its derivatives was given."""

    axis: int
    variant: str
    divide: str
    margin: float
    squared: bool
    weight: ArrayLike | None
    sample_weight: ArrayLike | None
    ignore_index: int | None
    where: ArrayLike | None
    reduction: str | None
    normalizer: float | None


class MulticlassHinge(Loss):
    r"""Hinge loss of the scores of classes against class indices.

    .. math::
        \ell_n = s_n w_y \max_{j \ne y} h_{nj}^q \quad \text{(Crammer-Singer)}, \qquad
        \ell_n = s_n w_y \sum_{j \ne y} h_{nj}^q \quad \text{(Weston-Watkins)}

    with :math:`h_{nj} = \max(0,\, m + z_{nj} - z_{ny})`, `y` the target of row `n`, `m` the margin
    and `q` 1 or, squared, 2.

    Parameters
    ----------
    scores : array_like of floats, shape (..., C, ...)
        Scores `z`, any strides, the classes along `axis`.  float16 and bfloat16 (of `ml_dtypes`)
        are read and written natively and computed in float32.  Integers and bools become float64.
    target : array_like of int or bool
        Class indices in [0, C), or `ignore_index`, with the shape of `scores` without `axis`.
        Never broadcast, never wrapped.
    axis : int, default -1
        The class axis.  (PyTorch's is always 1.)
    variant : {"crammer_singer", "weston_watkins"}
        Whether the largest rival of the target counts [1]_, or all of them [2]_.
    divide : {"one", "k"}, default "one"
        "k" divides a row by the number of classes (that `where` keeps, the target included), as
        PyTorch's ``multi_margin_loss`` does; for "weston_watkins" only.
    margin : float >= 0, default 1.0
        The margin `m`, rounded to the type computed in.
    squared : bool, default False
        Square every hinge (`q` is 2).
    weight : array_like, shape (C,), optional
        Weights `w` of the classes, finite and >= 0: that of the target is a factor of its row.
    sample_weight : array_like, optional
        Weights `s` of the rows, finite and >= 0, of the shape of `scores` without `axis`.
    ignore_index : int or None, default -100
        Rows with this class index are left out: loss 0, derivatives exactly 0, whatever their
        scores.  None leaves nothing out.
    where : array_like of bool, optional
        Classes to keep, broadcast to the shape of `scores`.  A class that is dropped is absent and
        may hold anything; its derivatives are exactly 0.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides the sum by :math:`\sum s_n w_y` over the rows kept (with all weights 1, their
        number; PyTorch divides by that with weights too).  "none" (or None) gives one value per
        row.
    normalizer : float > 0, optional
        What "mean" divides by instead, so that the sums of micro-batches add up.

    Returns
    -------
    float or ndarray
        A Python float, accumulated in float64; for "none" an array with one element per row and the
        dtype of `scores`.

    Raises
    ------
    IndexError
        For a class index outside [0, C) that is not `ignore_index`, naming the first one.
    TypeError
        For targets that are neither integers nor bools, and for scores as in `softmax`.
    ValueError
        For a target or weight of another shape, a margin or weight that is negative or not finite,
        options unknown or without meaning together, a `where` that drops a target, no classes, or
        an unfit `out`.

    See Also
    --------
    hinge, cross_entropy

    Notes
    -----
    :math:`z_y - m` is kept in two words, so each hinge has its relative accuracy however near the
    kink: 4 eps for the loss, and the subgradient is 0 exactly at the kink and nowhere else near it.
    Among equally large rivals the lowest index counts.  With
    ``variant="weston_watkins", divide="k", normalizer=N`` this is PyTorch's ``multi_margin_loss``
    of `N` rows.

    A row that holds NaN has loss and derivatives NaN; other rows are untouched.  So has one in
    which the target and its largest rival are the same infinity.  Otherwise an infinite rival, or a
    target at -inf, gives loss +inf, and other classes at -inf count for nothing.  A row of one
    class has loss 0.  A row is ignored, as with `ignore_index`, if its sample weight or the weight
    of its class is 0, or `where` drops all its classes.  With no row kept, or a total weight of 0,
    "mean" is NaN, "sum" 0, every derivative 0.  Nothing warns.

    Half precision gives the bits of the same call on ``scores.astype(np.float32)``, arrays rounded
    once to the dtype of `scores`, floats not at all.

    A row's results do not depend on the other rows, on threads or on `out`, to the last bit; the
    reduced value does not depend on threads.

    Derivatives: ``grad``, ``value_and_grad``, ``hvp`` and ``hess_diag``, with the same arguments.

    References
    ----------
    .. [1] K. Crammer and Y. Singer, "On the algorithmic implementation of multiclass kernel-based
       vector machines", JMLR 2, 2001, https://jmlr.org/papers/v2/crammer01a.html.
    .. [2] J. Weston and C. Watkins, "Support vector machines for multi-class pattern recognition",
       ESANN, 1999.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> scores = np.array([[0.5, 1.0, 0.25, -2.0], [0.0, 0.0, 0.0, 4.0]])
    >>> fg.multiclass_hinge(scores, [0, 3], reduction="none")
    array([1.5, 0. ])
    >>> value, grad = fg.multiclass_hinge.value_and_grad(
    ...     scores, [0, -100], variant="weston_watkins", divide="k"
    ... )
    >>> value
    0.5625
    >>> grad
    array([[-0.5 ,  0.25,  0.25,  0.  ],
           [ 0.  ,  0.  ,  0.  ,  0.  ]])
    """

    _builtin_name = "multiclass_hinge"

    def __init__(self) -> None:
        self.__name__ = self._builtin_name

    def __call__(
        self,
        scores: ArrayLike,
        target: ArrayLike,
        *,
        axis: int = -1,
        variant: str = "crammer_singer",
        divide: str = "one",
        margin: float = 1.0,
        squared: bool = False,
        weight: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: int | None = -100,
        where: ArrayLike | None = None,
        reduction: str | None = "mean",
        normalizer: float | None = None,
    ) -> Any:
        options = _ClassOptions(
            axis,
            variant,
            divide,
            margin,
            squared,
            weight,
            sample_weight,
            ignore_index,
            where,
            reduction,
            normalizer,
        )
        plain = _plain(scores, target, options, False, None)
        if plain is not None:
            return plain[0]
        return _classes("value", scores, target, None, options, None, None)[0]

    def grad(
        self,
        scores: ArrayLike,
        target: ArrayLike,
        *,
        axis: int = -1,
        variant: str = "crammer_singer",
        divide: str = "one",
        margin: float = 1.0,
        squared: bool = False,
        weight: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: int | None = -100,
        where: ArrayLike | None = None,
        reduction: str | None = "mean",
        normalizer: float | None = None,
        grad_output: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray:
        r"""Gradient with respect to the scores, 0 exactly at a kink.

        .. math:: g_{nj} = s_n w_y\, [h_{nj} > 0] \text{ or, squared, } 2\, s_n w_y\, h_{nj}, \quad
                  g_{ny} = -\sum_{j \ne y} g_{nj}

        for the classes `j` that count: all but `y`, or in Crammer and Singer's variant the first of
        the largest.

        Parameters
        ----------
        scores, target, axis, ...
            As in the call.  For "none", each row's gradient is that of its own loss.
        grad_output : float or array_like, optional
            Factor of the gradient, an upstream derivative: one number, or for "none" one per row.
        out : ndarray, optional
            Where to put it: shape and dtype of `scores`; it may be `scores` itself.

        Returns
        -------
        ndarray
            Shape and dtype of `scores`; `out` if that was given.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.multiclass_hinge.grad(np.zeros((1, 3)), [1])
        array([[ 1., -1.,  0.]])
        """
        options = _ClassOptions(
            axis,
            variant,
            divide,
            margin,
            squared,
            weight,
            sample_weight,
            ignore_index,
            where,
            reduction,
            normalizer,
        )
        plain = None
        if grad_output is None:
            plain = _plain(scores, target, options, True, out)
        found = plain or _classes("grad", scores, target, None, options, grad_output, out)
        grad: FloatArray = found[1]
        return grad

    def value_and_grad(
        self,
        scores: ArrayLike,
        target: ArrayLike,
        *,
        axis: int = -1,
        variant: str = "crammer_singer",
        divide: str = "one",
        margin: float = 1.0,
        squared: bool = False,
        weight: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: int | None = -100,
        where: ArrayLike | None = None,
        reduction: str | None = "mean",
        normalizer: float | None = None,
        grad_output: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> tuple[Any, FloatArray]:
        """Loss and gradient in one pass.

        Parameters
        ----------
        scores, target, axis, ..., grad_output, out
            As for `grad`; `grad_output` does not touch the value.

        Returns
        -------
        value : float or ndarray
            What the call returns, to the last bit.
        grad : ndarray
            What `grad` returns, to the last bit.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.multiclass_hinge.value_and_grad(np.zeros((1, 3)), [1], variant="weston_watkins")
        (2.0, array([[ 1., -2.,  1.]]))
        """
        options = _ClassOptions(
            axis,
            variant,
            divide,
            margin,
            squared,
            weight,
            sample_weight,
            ignore_index,
            where,
            reduction,
            normalizer,
        )
        if grad_output is None:
            plain = _plain(scores, target, options, True, out)
            if plain is not None:
                return plain
        return _classes("value_and_grad", scores, target, None, options, grad_output, out)

    def hvp(
        self,
        scores: ArrayLike,
        target: ArrayLike,
        v: ArrayLike,
        *,
        axis: int = -1,
        variant: str = "crammer_singer",
        divide: str = "one",
        margin: float = 1.0,
        squared: bool = False,
        weight: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: int | None = -100,
        where: ArrayLike | None = None,
        reduction: str | None = "mean",
        normalizer: float | None = None,
        grad_output: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray:
        r"""The Hessian with respect to the scores, times a vector.

        0 or, squared, :math:`2\, s_n w_y\, (v_{nj} - v_{ny})` at the classes that count and whose
        hinge is above 0, and minus their sum at the target.

        Parameters
        ----------
        scores, target, axis, ..., grad_output
            As for `grad`.
        v : array_like
            The vector: shape of `scores`, cast to its dtype.  It enters at the target and at those
            classes only.
        out : ndarray, optional
            Where to put the result: shape and dtype of `scores`; it may be `v` itself.

        Returns
        -------
        ndarray
            Shape and dtype of `scores`; `out` if that was given.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.multiclass_hinge.hvp(np.zeros((1, 3)), [1], [[3.0, 1.0, 9.0]], squared=True)
        array([[ 4., -4.,  0.]])
        """
        options = _ClassOptions(
            axis,
            variant,
            divide,
            margin,
            squared,
            weight,
            sample_weight,
            ignore_index,
            where,
            reduction,
            normalizer,
        )
        result: FloatArray = _classes("hvp", scores, target, v, options, grad_output, out)[1]
        return result

    def hess_diag(
        self,
        scores: ArrayLike,
        target: ArrayLike,
        *,
        axis: int = -1,
        variant: str = "crammer_singer",
        divide: str = "one",
        margin: float = 1.0,
        squared: bool = False,
        weight: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: int | None = -100,
        where: ArrayLike | None = None,
        reduction: str | None = "mean",
        normalizer: float | None = None,
        grad_output: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray:
        r"""The diagonal of the Hessian with respect to the scores.

        0 or, squared, :math:`2\, s_n w_y` at the classes that count and whose hinge is above 0, and
        their sum at the target.

        Parameters
        ----------
        scores, target, axis, ..., grad_output, out
            As for `grad`.

        Returns
        -------
        ndarray
            Shape and dtype of `scores`; `out` if that was given.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.multiclass_hinge.hess_diag(np.zeros((1, 3)), [1], squared=True)
        array([[2., 2., 0.]])
        """
        options = _ClassOptions(
            axis,
            variant,
            divide,
            margin,
            squared,
            weight,
            sample_weight,
            ignore_index,
            where,
            reduction,
            normalizer,
        )
        result: FloatArray = _classes("hess_diag", scores, target, None, options, grad_output, out)[
            1
        ]
        return result


def _classes(
    kind: str,
    scores: ArrayLike,
    target: ArrayLike,
    v: Any,
    options: _ClassOptions,
    grad_output: ArrayLike | None,
    out: FloatArray | None,
) -> tuple[Any, Any]:
    """(value or None, array or None): what `kind` asks for."""
    z = _arrays.as_scores(scores, "scores", _arrays.BY_WHERE)
    shape, dtype = z.shape, z.dtype
    z = z.reshape(1) if z.ndim == 0 else z
    i = _arrays.one_axis(options.axis, z.ndim, "scores")
    rows, classes = z.shape[:i] + z.shape[i + 1 :], z.shape[i]
    how = _arrays.check_reduction(options.reduction)
    divisor = _arrays.check_normalizer(options.normalizer, how)
    _arrays.check_variant(options.variant, options.divide)
    margin = _arrays.check_margin(options.margin, dtype)
    _arrays.check_classes(classes, i, "scores")
    y = _arrays.as_class_indices(target, z, shape, i, "scores")
    ignored = _arrays.check_ignore_index(options.ignore_index)
    w = _arrays.as_class_weight(options.weight, classes, dtype)
    shares = how == "mean" and divisor is None
    s = _arrays.as_row_weight(options.sample_weight, rows, dtype, shares)
    mask = _arrays.as_where(options.where, z.shape, "scores")
    factor, upstream = _arrays.as_grad_output(grad_output, how, rows, dtype)
    direction = _arrays.as_cotangent(v, shape, dtype, "v") if kind == "hvp" else None
    result: Any = None
    if kind != "value":
        result = np.empty_like(z) if out is None else None
        if out is not None:
            # `out` may be the first of these.
            inputs: dict[str, Any] = {"v": direction} if direction is not None else {}
            inputs |= {"scores": z.reshape(shape), "target": y, "weight": w, "where": mask}
            inputs |= {"sample_weight": s, "grad_output": upstream}
            result = _arrays.as_out(out, shape, dtype, **inputs).reshape(z.shape)
    kept = _arrays.check_range(y, classes, ignored)
    if mask is not None:
        s = _arrays.check_kept(mask, y, False, i, w, s, ignored, 0.0, dtype)

    if shares:
        divisor, s, w = float(kept), _arrays.balanced(s), _arrays.balanced(w)
        if kept and (s is not None or w is not None):
            zeros = np.broadcast_to(_arrays.computed(dtype).type(0), rows)
            divisor = _weights.total_weight(zeros, y, ignored, w, s)

    def run(value: FloatArray | None, divided_by: float, reduce: bool) -> float:
        return _kernels.run_classes(
            "grad" if kind == "value_and_grad" else kind,
            options.variant,
            z,
            y,
            i,
            value,
            result,
            None if direction is None else direction.reshape(z.shape),
            w,
            s,
            upstream,
            mask,
            margin,
            bool(options.squared),
            options.divide == "k",
            factor / divided_by,
            ignored,
            kept < y.size,
            reduce,
        )

    value = _evaluated(kind, z, rows, how, divisor, result, run)
    if out is not None or result is None:
        return value, out
    return value, result if shape else result[0]


def _plain(
    scores: ArrayLike, target: ArrayLike, options: _ClassOptions, with_grad: bool, out: Any
) -> tuple[Any, Any] | None:
    """The commonest call with the least overhead, or None if this is not one."""
    axis, variant, divide, margin, squared, weight, sample_weight, ignore, *rest = options
    where, reduction, normalizer = rest
    if (
        axis.__class__ is int
        and axis == -1
        and weight is None
        and sample_weight is None
        and where is None
        and normalizer is None
        and margin.__class__ is float
        and 0.0 <= margin < 1e38
        and (variant == "weston_watkins" or variant == "crammer_singer")
        and (divide == "one" or (divide == "k" and variant == "weston_watkins"))
        and (reduction == "mean" or reduction == "sum")
        and (ignore is None or (type(ignore) is int and -(2**63) <= ignore < 0))
    ):
        return _kernels.plain_classes(
            scores,
            target,
            variant,
            margin,
            squared,
            divide == "k",
            reduction == "mean",
            with_grad,
            out,
        )
    return None


def _evaluated(
    kind: str,
    z: FloatArray,
    rows: tuple[int, ...],
    how: str,
    divisor: float | None,
    result: FloatArray | None,
    run: Callable[[FloatArray | None, float, bool], float],
) -> Any:
    """The value, if `kind` has one; what else it has, `run` writes into `result`."""
    with_value = kind in ("value", "value_and_grad")
    value = np.empty(rows, z.dtype) if with_value and how == "none" else None
    total = 0.0
    if how == "mean" and not divisor:
        total = math.nan
        if result is not None:
            result.fill(0)
    elif z.size:
        total = run(value, divisor or 1.0, with_value and how != "none")
    if not with_value:
        return None
    if value is not None:
        return value[()]
    return total / divisor if divisor else total


hinge = Hinge()
multiclass_hinge = MulticlassHinge()
