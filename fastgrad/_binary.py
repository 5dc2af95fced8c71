"""sigmoid, log_sigmoid and binary cross-entropy, element by element, with their derivatives."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fastgrad import _arrays
from fastgrad._arrays import FloatArray
from fastgrad._kernels import binary as _kernels
from fastgrad._kernels import cross_entropy as _weights
from fastgrad._maps import Loss, Map


def _apply(name: str, x: ArrayLike, out: Any) -> Any:
    a = _arrays.as_scores(x, "x")
    y = np.empty_like(a) if out is None else _arrays.as_out(out, a.shape, a.dtype, x=a)
    if a.size:
        _kernels.transform(name, a, y)
    return _arrays.returned(y, out)


def _pull(name: str, x: ArrayLike, g: ArrayLike, what: str, y: ArrayLike | None, out: Any) -> Any:
    a = _arrays.as_scores(x, "x")
    v = _arrays.as_cotangent(g, a.shape, a.dtype, what)
    s = None if y is None else _arrays.as_cotangent(y, a.shape, a.dtype, "y")
    inputs = {what: v, "x": a, "y": s}
    result = np.empty_like(a)
    if out is not None:
        result = _arrays.as_out(out, a.shape, a.dtype, **inputs)
    if a.size:
        _kernels.derivative(name if s is None else f"{name}_of", a if s is None else s, v, result)
    return _arrays.returned(result, out)


class Sigmoid(Map):
    r"""Sigmoid (logistic function) of every element.

    .. math:: \sigma(x) = \frac{1}{1 + \exp(-x)}

    Parameters
    ----------
    x : array_like, float32 or float64
        Scores of any shape and strides.  Integers and bools become float64.
    out : ndarray, optional
        Where to put the result: shape and dtype of `x`.  It may be `x` itself.

    Returns
    -------
    ndarray or scalar
        Shape and dtype of `x`, in its memory order ("K"); `out` if that was given.

    Raises
    ------
    TypeError
        For input that is not real numbers in a supported type, and an `out` of another dtype.
    ValueError
        For an `out` of another shape, read-only, or overlapping `x` in part.

    See Also
    --------
    log_sigmoid, binary_cross_entropy, softmax

    Notes
    -----
    With :math:`u = \exp(-|x|)` it is :math:`1 / (1 + u)` above 0 and :math:`u / (1 + u)` below:
    nothing overflows, and it is within 2.5 ulp of the exact value everywhere, subnormal results
    included.  It is 0 at -inf, 1 at +inf and NaN at NaN; nothing warns.  An empty array gives an
    empty result.  An element's bits depend on nothing but its value.

    Derivatives: ``vjp(x, g)`` and ``jvp(x, v)``.

    References
    ----------
    .. [1] M. Mächler, "Accurately Computing log(1 - exp(-|a|))", 2012,
       https://cran.r-project.org/package=Rmpfr (vignette log1mexp-note).

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> fg.sigmoid(np.array([0.0, np.log(3.0), -800.0, -40.0]))
    array([5.00000000e-01, 7.50000000e-01, 0.00000000e+00, 4.24835426e-18])
    """

    _builtin_name = "sigmoid"

    def __init__(self) -> None:
        self.__name__ = self._builtin_name

    def __call__(self, x: ArrayLike, *, out: FloatArray | None = None) -> Any:
        return _apply("sigmoid", x, out)

    def vjp(
        self,
        x: ArrayLike,
        g: ArrayLike,
        *,
        y: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> Any:
        r"""Pull a cotangent back: :math:`g\, \sigma(x)\, \sigma(-x)`.

        Parameters
        ----------
        x : array_like
            As in the call.
        g : array_like
            Cotangent of the result, of the shape of `x`; cast to its dtype.
        y : array_like, optional
            The result of the call for `x`, to save computing it again: ``g y (1 - y)``.  Where `y`
            is near 1, ``1 - y`` knows the result only to an absolute error of half an ulp of 1;
            without `y` the relative accuracy is full there too.
        out : ndarray, optional
            Where to put the result; it may be `g` itself.

        Returns
        -------
        ndarray or scalar
            Shape and dtype of `x`.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.sigmoid.vjp(np.array([0.0, 40.0]), np.ones(2))
        array([2.50000000e-01, 4.24835426e-18])
        """
        return _pull("sigmoid", x, g, "g", y, out)

    def jvp(
        self,
        x: ArrayLike,
        v: ArrayLike,
        *,
        y: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> Any:
        r"""Push a tangent forward: :math:`v\, \sigma(x)\, \sigma(-x)`.

        The Jacobian is diagonal, so this is `vjp` with a tangent of `x`; parameters and result are
        the same.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.sigmoid.jvp(np.zeros(1), np.array([2.0]))
        array([0.5])
        """
        return _pull("sigmoid", x, v, "v", y, out)


class LogSigmoid(Map):
    r"""Logarithm of the sigmoid, of every element.

    .. math:: \log \sigma(x) = \min(x, 0) - \log(1 + \exp(-|x|))

    Parameters
    ----------
    x, out
        As for `sigmoid`.

    Returns
    -------
    ndarray or scalar
        Shape and dtype of `x`, in its memory order ("K"); `out` if that was given.

    Raises
    ------
    TypeError, ValueError
        As for `sigmoid`.

    See Also
    --------
    sigmoid, binary_cross_entropy, log_softmax

    Notes
    -----
    Two terms of one sign are added, so the relative error is at most 4 eps in both tails.  It is
    -inf at -inf, 0 at +inf and NaN at NaN; nothing warns.  An empty array gives an empty result.
    The softplus function is ``-log_sigmoid(-x)``.

    Derivatives: ``vjp(x, g)`` and ``jvp(x, v)``.

    References
    ----------
    .. [1] M. Mächler, "Accurately Computing log(1 - exp(-|a|))", 2012,
       https://cran.r-project.org/package=Rmpfr (vignette log1mexp-note).

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> fg.log_sigmoid(np.array([40.0, 0.0, -40.0]))
    array([-4.24835426e-18, -6.93147181e-01, -4.00000000e+01])
    """

    _builtin_name = "log_sigmoid"

    def __init__(self) -> None:
        self.__name__ = self._builtin_name

    def __call__(self, x: ArrayLike, *, out: FloatArray | None = None) -> Any:
        return _apply("log_sigmoid", x, out)

    def vjp(self, x: ArrayLike, g: ArrayLike, *, out: FloatArray | None = None) -> Any:
        r"""Pull a cotangent back: :math:`g\, \sigma(-x)`.

        Parameters
        ----------
        x : array_like
            As in the call.
        g : array_like
            Cotangent of the result, of the shape of `x`; cast to its dtype.
        out : ndarray, optional
            Where to put the result; it may be `g` itself.

        Returns
        -------
        ndarray or scalar
            Shape and dtype of `x`.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.log_sigmoid.vjp(np.array([0.0, 40.0]), np.ones(2))
        array([5.00000000e-01, 4.24835426e-18])
        """
        return _pull("log_sigmoid", x, g, "g", None, out)

    def jvp(self, x: ArrayLike, v: ArrayLike, *, out: FloatArray | None = None) -> Any:
        r"""Push a tangent forward: :math:`v\, \sigma(-x)`.

        The Jacobian is diagonal, so this is `vjp` with a tangent of `x`; parameters and result are
        the same.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.log_sigmoid.jvp(np.zeros(1), np.array([2.0]))
        array([1.])
        """
        return _pull("log_sigmoid", x, v, "v", None, out)


class _Options(NamedTuple):
    """What a call of `binary_cross_entropy` and of each of its derivatives was given."""

    pos_weight: ArrayLike | None
    sample_weight: ArrayLike | None
    where: ArrayLike | None
    reduction: str | None
    normalizer: float | None


class BinaryCrossEntropy(Loss):
    r"""Cross-entropy between the sigmoid of logits and binary targets or probabilities.

    .. math::
        \ell = s \big( w\, t \log(1 + e^{-z}) + (1 - t) \log(1 + e^{z}) \big)

    for every element by itself: `z` its logit, `t` its target, `w` the weight of the positive class
    and `s` its own.

    Parameters
    ----------
    logits : array_like, float32 or float64
        Scores `z` before the sigmoid, any shape and strides.  Integers and bools become float64.
    target : array_like, shape of `logits`
        Bools, the integers 0 and 1, or floats in [0, 1]: the probability `t` of the positive class.
        Never broadcast.
    pos_weight : array_like, optional
        Weight `w` of the positive class, finite and >= 0, broadcast to the shape of `logits`: above
        1 it favours recall, below 1 precision.
    sample_weight : array_like, optional
        Weights `s`, finite and >= 0, broadcast to the shape of `logits`.
    where : array_like of bool, optional
        Elements to keep, broadcast to the shape of `logits`; the others are ignored.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides the sum by :math:`\sum s` over the elements kept (without weights, their
        number); `pos_weight` does not enter, as in PyTorch.  "none" (or None) gives one value per
        element.
    normalizer : float > 0, optional
        What "mean" divides by instead, so that the sums of micro-batches add up.

    Returns
    -------
    float or ndarray
        A Python float, accumulated in float64; for "none" an array of the shape and dtype of
        `logits`.

    Raises
    ------
    TypeError
        For targets or weights that are not real numbers, and for logits as in `sigmoid`.
    ValueError
        For a target of another shape, an integer that is not 0 or 1, a float outside [0, 1], a
        weight that is negative, not finite or does not broadcast, options without meaning together,
        or an unfit `out`.

    See Also
    --------
    cross_entropy, sigmoid, log_sigmoid

    Notes
    -----
    Computed as :math:`(w t + 1 - t) \log(1 + u) + m |z|` with :math:`u = \exp(-|z|)` and `m` the
    mass of the class that the sign of `z` speaks against: both terms are >= 0, so a confident
    element keeps full relative accuracy (4 eps).  So does its gradient (8 eps): it is taken from
    :math:`\sigma(-|z|)`, never as :math:`\sigma(z) - 1` [1]_.

    This is a sum of independent yes-no questions (labels that do not exclude each other); for one
    of `C` classes use `cross_entropy`.

    A NaN logit gives NaN there and nowhere else.  An infinite one gives loss +inf if the class that
    it excludes has mass, else 0; its gradient is minus or plus that mass.  An element is ignored if
    its sample weight is 0 or `where` drops it: loss 0, derivatives exactly 0, whatever its logit.
    With no element kept, or a total weight of 0, "mean" is NaN, "sum" 0, every derivative 0.
    Nothing warns.

    An element's results depend on no other element, nor on threads or `out`, to the last bit; the
    reduced value does not depend on threads.

    Derivatives: ``grad``, ``value_and_grad``, ``hvp`` and ``hess_diag``, with the same arguments.

    References
    ----------
    .. [1] M. Mächler, "Accurately Computing log(1 - exp(-|a|))", 2012,
       https://cran.r-project.org/package=Rmpfr (vignette log1mexp-note).

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> logits = np.array([40.0, 0.0, -40.0])
    >>> fg.binary_cross_entropy(logits, [1, 1, 1], reduction="none")
    array([4.24835426e-18, 6.93147181e-01, 4.00000000e+01])
    >>> value, grad = fg.binary_cross_entropy.value_and_grad(logits, [1.0, 0.25, 0.0])
    >>> round(value, 6)
    0.231049
    >>> grad
    array([-1.41611809e-18,  8.33333333e-02,  1.41611809e-18])
    """

    _builtin_name = "binary_cross_entropy"

    def __init__(self) -> None:
        self.__name__ = self._builtin_name

    def __call__(
        self,
        logits: ArrayLike,
        target: ArrayLike,
        *,
        pos_weight: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        where: ArrayLike | None = None,
        reduction: str | None = "mean",
        normalizer: float | None = None,
    ) -> Any:
        options = _Options(pos_weight, sample_weight, where, reduction, normalizer)
        return _loss("value", logits, target, None, options, None, None)[0]

    def grad(
        self,
        logits: ArrayLike,
        target: ArrayLike,
        *,
        pos_weight: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        where: ArrayLike | None = None,
        reduction: str | None = "mean",
        normalizer: float | None = None,
        grad_output: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> Any:
        r"""Gradient with respect to the logits.

        .. math:: s \big( (1 - t)\, \sigma(z) - w\, t\, \sigma(-z) \big)

        Parameters
        ----------
        logits, target, pos_weight, ...
            As in the call.  For "none", each element's gradient is that of its own loss.
        grad_output : float or array_like, optional
            Factor of the gradient, an upstream derivative: one number, or for "none" one per
            element.
        out : ndarray, optional
            Where to put it: shape and dtype of `logits`; it may be `logits` itself.

        Returns
        -------
        ndarray or scalar
            Shape and dtype of `logits`; `out` if that was given.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.binary_cross_entropy.grad(np.zeros(2), [0, 1])
        array([ 0.25, -0.25])
        """
        options = _Options(pos_weight, sample_weight, where, reduction, normalizer)
        return _loss("grad", logits, target, None, options, grad_output, out)[1]

    def value_and_grad(
        self,
        logits: ArrayLike,
        target: ArrayLike,
        *,
        pos_weight: ArrayLike | None = None,
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
        logits, target, pos_weight, ..., grad_output, out
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
        >>> value, grad = fg.binary_cross_entropy.value_and_grad(np.zeros(2), [0, 1])
        >>> round(value, 6), grad
        (0.693147, array([ 0.25, -0.25]))
        """
        options = _Options(pos_weight, sample_weight, where, reduction, normalizer)
        return _loss("value_and_grad", logits, target, None, options, grad_output, out)

    def hvp(
        self,
        logits: ArrayLike,
        target: ArrayLike,
        v: ArrayLike,
        *,
        pos_weight: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        where: ArrayLike | None = None,
        reduction: str | None = "mean",
        normalizer: float | None = None,
        grad_output: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> Any:
        """The Hessian with respect to the logits, times a vector.

        The Hessian is diagonal: `hess_diag` times `v`, element by element.

        Parameters
        ----------
        logits, target, pos_weight, ..., grad_output
            As for `grad`.
        v : array_like
            The vector: shape of `logits`, cast to its dtype.  It does not enter the result of an
            ignored element.
        out : ndarray, optional
            Where to put the result: shape and dtype of `logits`; it may be `v` itself.

        Returns
        -------
        ndarray or scalar
            Shape and dtype of `logits`; `out` if that was given.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.binary_cross_entropy.hvp(np.zeros(2), [0, 1], [8.0, -16.0])
        array([ 1., -2.])
        """
        options = _Options(pos_weight, sample_weight, where, reduction, normalizer)
        return _loss("hvp", logits, target, v, options, grad_output, out)[1]

    def hess_diag(
        self,
        logits: ArrayLike,
        target: ArrayLike,
        *,
        pos_weight: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        where: ArrayLike | None = None,
        reduction: str | None = "mean",
        normalizer: float | None = None,
        grad_output: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> Any:
        r"""The diagonal of the Hessian with respect to the logits, which is all of it.

        .. math:: s\, (1 - t + w\, t)\, \sigma(z)\, \sigma(-z)

        Parameters
        ----------
        logits, target, pos_weight, ..., grad_output, out
            As for `grad`.

        Returns
        -------
        ndarray or scalar
            Shape and dtype of `logits`; `out` if that was given.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.binary_cross_entropy.hess_diag(np.zeros(2), [0, 1], pos_weight=3.0)
        array([0.125, 0.375])
        """
        options = _Options(pos_weight, sample_weight, where, reduction, normalizer)
        return _loss("hess_diag", logits, target, None, options, grad_output, out)[1]


def _loss(
    kind: str,
    logits: ArrayLike,
    target: ArrayLike,
    v: Any,
    options: _Options,
    grad_output: ArrayLike | None,
    out: FloatArray | None,
) -> tuple[Any, Any]:
    """(value or None, array or None): what `kind` asks for."""
    z = _arrays.as_scores(logits, "logits", _arrays.BY_WHERE)
    how = _arrays.check_reduction(options.reduction)
    divisor = _arrays.check_normalizer(options.normalizer, how)
    y = _arrays.as_binary_target(target, z.shape, z.dtype)
    w = _arrays.as_element_weight(options.pos_weight, "pos_weight", z.shape, z.dtype)
    shares = how == "mean" and divisor is None
    s = _arrays.as_element_weight(
        options.sample_weight, "sample_weight", z.shape, z.dtype, mean=shares
    )
    mask = _arrays.as_where(options.where, z.shape, "logits")
    factor, upstream = _arrays.as_grad_output(grad_output, how, z.shape, z.dtype)
    direction = _arrays.as_cotangent(v, z.shape, z.dtype, "v") if kind == "hvp" else None
    result: Any = None
    if kind != "value":
        # `out` may be the first of these.
        inputs: dict[str, Any] = {"v": direction} if direction is not None else {}
        inputs |= {"logits": z, "target": y, "pos_weight": w, "sample_weight": s, "where": mask}
        result = (
            np.empty_like(z)
            if out is None
            else _arrays.as_out(out, z.shape, z.dtype, **inputs, grad_output=upstream)
        )

    if shares:
        s = _arrays.balanced(s)
        if s is None:
            divisor = float(z.size if mask is None else np.count_nonzero(mask))
        elif z.size:
            zeros = np.broadcast_to(z.dtype.type(0), z.shape)
            divisor = _weights.total_weight(zeros, None, None, None, s, mask)
    with_value = kind in ("value", "value_and_grad")
    value: Any = np.empty_like(z) if with_value and how == "none" else None
    total = 0.0
    if how == "mean" and not divisor:
        total = math.nan
        if result is not None:
            result.fill(0)
    elif z.size:
        total = _kernels.run(
            "grad" if kind == "value_and_grad" else kind,
            z,
            y,
            value,
            result,
            direction,
            w,
            s,
            upstream,
            mask,
            factor / divisor if divisor else factor,
            with_value and how != "none",
        )
    if with_value:
        value = value[()] if value is not None else total / divisor if divisor else total
    return value, result if result is None else _arrays.returned(result, out)


sigmoid = Sigmoid()
log_sigmoid = LogSigmoid()
binary_cross_entropy = BinaryCrossEntropy()
