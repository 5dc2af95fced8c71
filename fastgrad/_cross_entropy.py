"""Cross-entropy of class indices or probabilities, with its first and second derivatives."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fastgrad import _arrays
from fastgrad._arrays import FloatArray
from fastgrad._kernels import cross_entropy as _kernels
from fastgrad._maps import Loss


class _Options(NamedTuple):
    """What a call of `cross_entropy` and of each of its derivatives was given."""

    axis: int
    weight: ArrayLike | None
    sample_weight: ArrayLike | None
    ignore_index: int | None
    label_smoothing: float
    z_loss: float
    where: ArrayLike | None
    reduction: str | None
    normalizer: float | None


class CrossEntropy(Loss):
    r"""Cross-entropy between logits and class indices or probabilities.

    .. math::
        \ell_n = s_n \Big( \sum_c m_{nc} (\mathrm{lse}(z_n) - z_{nc})
                 + \lambda\, \mathrm{lse}(z_n)^2 \Big), \quad
        m_{nc} = w_c \big( (1 - \epsilon)\, t_{nc} + \epsilon / K \big)

    with :math:`\mathrm{lse}` the logsumexp of a row, `t` one-hot for a class index or the
    probabilities given, and without options just :math:`\mathrm{lse}(z_n) - z_{n y_n}`.

    Parameters
    ----------
    logits : array_like of floats, shape (..., C, ...)
        Scores, any strides, the classes along `axis`.  float16 and bfloat16 (of `ml_dtypes`) are
        read and written natively and computed in float32.  Integers and bools become float64.
    target : array_like
        Of int or bool, with the shape of `logits` without `axis`: class indices in [0, C), or
        `ignore_index`.  Of float, with the shape of `logits`: probabilities, finite and >= 0,
        cast to the dtype of `logits`; they need not sum to 1.  Never broadcast, never wrapped.
    axis : int, default -1
        The class axis.  (PyTorch's is always 1.)
    weight : array_like, shape (C,), optional
        Weights `w` of the classes, finite and >= 0, cast to the dtype of `logits`.
    sample_weight : array_like, optional
        Weights `s` of the rows, finite and >= 0, of the shape of `logits` without `axis`.
    ignore_index : int or None, default -100
        Rows with this class index are left out: loss 0, derivatives exactly 0, whatever their
        logits.  The class stays in the softmax of the other rows.  None leaves nothing out.  Leave
        out rows with probabilities by `sample_weight` 0.
    label_smoothing : float in [0, 1], default 0.0
        The share :math:`\epsilon` of the mass that is spread evenly over all `K` classes kept, the
        target's included (PyTorch's rule).  Class weights weigh the spread mass too: each class by
        its own weight.
    z_loss : float >= 0, default 0.0
        :math:`\lambda`, in front of the squared logsumexp that keeps logits from drifting; it gets
        the sample weight of a row but no class weight.
    where : array_like of bool, optional
        Classes to keep, broadcast to the shape of `logits`.  A class that is dropped is absent from
        softmax, smoothing and `K`, and may hold anything; its derivatives are exactly 0.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides the sum by the effective weight of the rows kept: :math:`\sum s_n w_{y_n}`
        for class indices, :math:`\sum s_n` for probabilities (with all weights 1, their number).
        "none" (or None) gives one value per row.
    normalizer : float > 0, optional
        What "mean" divides by instead, so that the sums of micro-batches add up.

    Returns
    -------
    float or ndarray
        A Python float, accumulated in float64; for "none" an array with one element per row and the
        dtype of `logits`.

    Raises
    ------
    IndexError
        For a class index outside [0, C) that is not `ignore_index`, naming the first one.
    TypeError
        For targets that are neither numbers nor bools, floats where class indices must be, and for
        logits as in `softmax`.
    ValueError
        For a target or weight of another shape, negative or not finite, options out of range or
        without meaning together, a `where` that drops a class with target mass, no classes, or an
        unfit `out`.

    See Also
    --------
    linear_cross_entropy, binary_cross_entropy, softmax, log_softmax, token_stats

    Notes
    -----
    The loss is ``log1p(rest / e_y)`` with `rest` the sum of the exponentials of all classes but the
    target's, and the gradient at the target ``-rest / (rest + e_y)``: confident rows keep full
    relative accuracy (4 eps) where other libraries return 0 [1]_.  With options, every term of the
    loss is still >= 0 and none is subtracted.  Value and gradient take one pass over memory, and an
    option costs time only when it is used.

    A row with NaN or +inf has loss and derivatives NaN, as has a row of -inf alone; other rows are
    untouched.  A class at -inf with target mass gives loss +inf and gradient minus that mass; one
    without gives exactly 0.  A row is ignored, as with `ignore_index`, if its sample weight is 0,
    the weight of its class is 0 and nothing is smoothed, or `where` drops all its classes.  With no
    row kept, or a total weight of 0, "mean" is NaN, "sum" 0, every derivative 0.  Nothing warns.

    Half precision gives the bits of the same call on ``logits.astype(np.float32)``, arrays rounded
    once to the dtype of `logits`, floats not at all.  Weights, and probabilities and vectors of
    another dtype, are then cast to float32.

    A row's results do not depend on the other rows, on threads or on `out`, to the last
    bit; the reduced value does not depend on threads.

    Derivatives: ``grad``, ``value_and_grad``, ``hvp`` and ``hess_diag``, with the same arguments.

    References
    ----------
    .. [1] P. Blanchard, D. J. Higham and N. J. Higham, "Accurately computing the log-sum-exp and
       softmax functions", IMA J. Numer. Anal. 41(4), 2021, doi:10.1093/imanum/draa038.
    .. [2] C. Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (label
       smoothing), 2015, arXiv:1512.00567.
    .. [3] A. Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways" (z-loss), 2022,
       arXiv:2204.02311.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> logits = np.array([[0.0, 1.0, 2.0], [40.0, 0.0, 0.0]])
    >>> fg.cross_entropy(logits, [1, 0], reduction="none")
    array([1.40760596e+00, 8.49670851e-18])
    >>> value, grad = fg.cross_entropy.value_and_grad(logits, [1, -100])
    >>> round(value, 6)
    1.407606
    >>> grad.round(3)
    array([[ 0.09 , -0.755,  0.665],
           [ 0.   ,  0.   ,  0.   ]])
    >>> fg.cross_entropy(np.zeros((1, 2)), [[0.5, 0.5]], sample_weight=[3.0], reduction="sum")
    2.0794415416798357
    """

    _builtin_name = "cross_entropy"

    def __init__(self) -> None:
        self.__name__ = self._builtin_name

    def __call__(
        self,
        logits: ArrayLike,
        target: ArrayLike,
        *,
        axis: int = -1,
        weight: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: int | None = -100,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        where: ArrayLike | None = None,
        reduction: str | None = "mean",
        normalizer: float | None = None,
    ) -> Any:
        options = _Options(
            axis,
            weight,
            sample_weight,
            ignore_index,
            label_smoothing,
            z_loss,
            where,
            reduction,
            normalizer,
        )
        plain = _plain(logits, target, options, False, None)
        if plain is not None:
            return plain[0]
        return _general("value", logits, target, None, options, None, None)[0]

    def grad(
        self,
        logits: ArrayLike,
        target: ArrayLike,
        *,
        axis: int = -1,
        weight: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: int | None = -100,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        where: ArrayLike | None = None,
        reduction: str | None = "mean",
        normalizer: float | None = None,
        grad_output: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray:
        r"""Gradient with respect to the logits.

        .. math:: s_n \big( (A_n + 2 \lambda\, \mathrm{lse}) p_{nc} - m_{nc} \big), \quad
                  A_n = \sum_c m_{nc}

        Parameters
        ----------
        logits, target, axis, ...
            As in the call.  For "none", each row's gradient is that of its own loss.
        grad_output : float or array_like, optional
            Factor of the gradient, an upstream derivative: one number, or for "none" one per row.
            Where it is infinite in the type computed in, a derivative of several parts (smoothing,
            `z_loss`, probabilities), or with `where`, may be NaN.
        out : ndarray, optional
            Where to put it: shape and dtype of `logits`; it may be `logits` itself.

        Returns
        -------
        ndarray
            Shape and dtype of `logits`; `out` if that was given.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.cross_entropy.grad(np.zeros((1, 2)), [0])
        array([[-0.5,  0.5]])
        """
        options = _Options(
            axis,
            weight,
            sample_weight,
            ignore_index,
            label_smoothing,
            z_loss,
            where,
            reduction,
            normalizer,
        )
        plain = None
        if grad_output is None:
            plain = _plain(logits, target, options, True, out)
        found = plain or _general("grad", logits, target, None, options, grad_output, out)
        grad: FloatArray = found[1]
        return grad

    def value_and_grad(
        self,
        logits: ArrayLike,
        target: ArrayLike,
        *,
        axis: int = -1,
        weight: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: int | None = -100,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        where: ArrayLike | None = None,
        reduction: str | None = "mean",
        normalizer: float | None = None,
        grad_output: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> tuple[Any, FloatArray]:
        """Loss and gradient in one pass.

        Parameters
        ----------
        logits, target, axis, ..., grad_output, out
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
        >>> fg.cross_entropy.value_and_grad(np.zeros((1, 2)), [0])
        (0.6931471805599453, array([[-0.5,  0.5]]))
        """
        options = _Options(
            axis,
            weight,
            sample_weight,
            ignore_index,
            label_smoothing,
            z_loss,
            where,
            reduction,
            normalizer,
        )
        if grad_output is None:
            plain = _plain(logits, target, options, True, out)
            if plain is not None:
                return plain
        return _general("value_and_grad", logits, target, None, options, grad_output, out)

    def hvp(
        self,
        logits: ArrayLike,
        target: ArrayLike,
        v: ArrayLike,
        *,
        axis: int = -1,
        weight: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: int | None = -100,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        where: ArrayLike | None = None,
        reduction: str | None = "mean",
        normalizer: float | None = None,
        grad_output: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray:
        r"""The Hessian with respect to the logits, times a vector.

        .. math:: s_n \big( B_n\, p \circ (v - \langle p, v \rangle)
                  + 2 \lambda\, p \langle p, v \rangle \big), \quad
                  B_n = A_n + 2 \lambda\, \mathrm{lse}

        Symmetric; without z-loss positive semidefinite, and exactly 0 for a `v` that is constant
        along the classes.

        Parameters
        ----------
        logits, target, axis, ..., grad_output
            As for `grad`.
        v : array_like
            The vector: shape of `logits`, cast to its dtype.  Where `where` is False it is not
            read.
        out : ndarray, optional
            Where to put the result: shape and dtype of `logits`; it may be `v` itself.

        Returns
        -------
        ndarray
            Shape and dtype of `logits`; `out` if that was given.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.cross_entropy.hvp(np.zeros((1, 2)), [0], [[1.0, 0.0]])
        array([[ 0.25, -0.25]])
        """
        options = _Options(
            axis,
            weight,
            sample_weight,
            ignore_index,
            label_smoothing,
            z_loss,
            where,
            reduction,
            normalizer,
        )
        result: FloatArray = _general("hvp", logits, target, v, options, grad_output, out)[1]
        return result

    def hess_diag(
        self,
        logits: ArrayLike,
        target: ArrayLike,
        *,
        axis: int = -1,
        weight: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: int | None = -100,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        where: ArrayLike | None = None,
        reduction: str | None = "mean",
        normalizer: float | None = None,
        grad_output: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray:
        r"""The diagonal of the Hessian with respect to the logits.

        .. math:: s_n \big( B_n\, p (1 - p) + 2 \lambda\, p^2 \big)

        Parameters
        ----------
        logits, target, axis, ..., grad_output, out
            As for `grad`.

        Returns
        -------
        ndarray
            Shape and dtype of `logits`; `out` if that was given.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.cross_entropy.hess_diag(np.zeros((1, 2)), [0])
        array([[0.25, 0.25]])
        """
        options = _Options(
            axis,
            weight,
            sample_weight,
            ignore_index,
            label_smoothing,
            z_loss,
            where,
            reduction,
            normalizer,
        )
        result: FloatArray = _general("hess_diag", logits, target, None, options, grad_output, out)[
            1
        ]
        return result


def _plain(
    logits: ArrayLike, target: ArrayLike, options: _Options, with_grad: bool, out: Any
) -> tuple[Any, Any] | None:
    """The commonest call with the least overhead, or None if this is not one."""
    axis, weight, sample_weight, ignore, smoothing, z_loss, where, reduction, normalizer = options
    if (
        axis.__class__ is int
        and axis == -1
        and weight is None
        and sample_weight is None
        and where is None
        and normalizer is None
        and smoothing.__class__ is float
        and smoothing == 0.0
        and z_loss.__class__ is float
        and z_loss == 0.0
        and (reduction == "mean" or reduction == "sum")
        and (ignore is None or (type(ignore) is int and -(2**63) <= ignore < 0))
    ):
        return _kernels.plain(logits, target, reduction == "mean", with_grad, out)
    return None


def _general(
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
    shape = z.shape
    z = z.reshape(1) if z.ndim == 0 else z
    i = _arrays.one_axis(options.axis, z.ndim, "logits")
    rows, classes = z.shape[:i] + z.shape[i + 1 :], z.shape[i]
    how = _arrays.check_reduction(options.reduction)
    divisor = _arrays.check_normalizer(options.normalizer, how)
    smoothing = _arrays.check_between(options.label_smoothing, "label_smoothing", 0.0, 1.0)
    z_loss = _arrays.check_between(options.z_loss, "z_loss", 0.0, math.inf)
    _arrays.check_classes(classes, i)
    y, soft = _arrays.as_target(target, z, shape, i)
    ignored = _arrays.check_ignore_index(options.ignore_index, soft)
    w = _arrays.as_class_weight(options.weight, classes, z.dtype)
    shares = how == "mean" and divisor is None
    s = _arrays.as_row_weight(options.sample_weight, rows, z.dtype, shares)
    mask = _arrays.as_where(options.where, z.shape, "logits")
    factor, upstream = _arrays.as_grad_output(grad_output, how, rows, z.dtype)
    direction = None
    if kind == "hvp":
        direction = _arrays.as_cotangent(v, shape, z.dtype, "v")
    result: Any = None
    if kind != "value":
        result = np.empty_like(z) if out is None else None
        if out is not None:
            # `out` may be the first of these.
            inputs: dict[str, Any] = {"v": direction} if direction is not None else {}
            inputs |= {"logits": z.reshape(shape), "target": y, "weight": w, "where": mask}
            inputs |= {"sample_weight": s, "grad_output": upstream}
            result = _arrays.as_out(out, shape, z.dtype, **inputs).reshape(z.shape)
    kept = math.prod(rows) if soft else _arrays.check_range(y, classes, ignored)
    if mask is not None:
        s = _arrays.check_kept(mask, y, soft, i, w, s, ignored, smoothing, z.dtype)

    if shares:
        divisor, s = float(kept), _arrays.balanced(s)
        if (
            not soft and z_loss == 0
        ):  # else they are not a factor of the divisor, or not of the loss
            w = _arrays.balanced(w)
        if kept and (s is not None or (w is not None and not soft)):
            zeros = np.broadcast_to(_arrays.computed(z.dtype).type(0), rows)
            divisor = _kernels.total_weight(zeros, None if soft else y, ignored, w, s)
    with_value = kind in ("value", "value_and_grad")
    value: Any = np.empty(rows, z.dtype) if with_value and how == "none" else None
    total = 0.0
    if divisor == 0.0 and result is not None:
        result.fill(0)
    elif z.size:
        total = _kernels.run(
            "grad" if kind == "value_and_grad" else kind,
            z,
            y,
            i,
            value,
            result,
            direction if direction is None else direction.reshape(z.shape),
            w,
            s,
            upstream,
            mask,
            smoothing,
            z_loss,
            factor / divisor if divisor else factor,
            ignored,
            kept < y.size,
            with_value and how != "none",
        )
    if how == "mean" and with_value:
        value = total / divisor if divisor else math.nan
    elif how == "sum" and with_value:
        value = total
    elif value is not None and value.ndim == 0:
        value = value[()]
    if out is not None or result is None:
        return value, out
    return value, result if shape else result[0]


cross_entropy = CrossEntropy()
