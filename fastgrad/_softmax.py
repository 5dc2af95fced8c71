"""softmax, log_softmax and logsumexp with their derivatives."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastgrad import _arrays
from fastgrad._arrays import Axes, BoolArray, FloatArray
from fastgrad._kernels import softmax as _kernels
from fastgrad._maps import Map


class _Merged:
    """An array seen with its reduced axes merged into one.

    One axis is a view of any array.  Several are where their memory allows it; otherwise `array` is
    a copy, and `restore` writes it back.
    """

    def __init__(self, a: Any, axes: tuple[int, ...]) -> None:
        self._whole = a
        if len(axes) == 1 and a.ndim > 0:
            self.array, self.axis = a, axes[0]
            return
        k = len(axes) if a.ndim else 0
        self._moved = np.moveaxis(a, axes[:k], range(-k, 0)) if k else a
        rest = self._moved.shape[: a.ndim - k]
        size = 1
        for n in self._moved.shape[a.ndim - k :]:
            size *= n
        self.array, self.axis = self._moved.reshape((*rest, size)), len(rest)

    def restore(self) -> None:
        """Write the elements of `array` to the whole, if they are a copy."""
        if self.array is not self._whole and not np.may_share_memory(self.array, self._whole):
            self._moved[...] = self.array.reshape(self._moved.shape)


def _optional(a: Any, axes: tuple[int, ...]) -> Any:
    return None if a is None else _Merged(a, axes).array


class _RowMap(Map):
    """What softmax and log_softmax share: shapes, checks, and the two passes of a derivative."""

    def __init__(self) -> None:
        self.__name__ = self._builtin_name

    def _apply(
        self, x: ArrayLike, axis: Axes, temperature: float, where: Any, out: Any
    ) -> FloatArray:
        a = _arrays.as_scores(x, "x", _arrays.BY_WHERE)
        axes = _arrays.some_axes(axis, a.ndim, "x")
        t = _arrays.check_temperature(temperature)
        mask = _arrays.as_where(where, a.shape, "x")
        y = (
            np.empty_like(a)
            if out is None
            else _arrays.as_out(out, a.shape, a.dtype, x=a, where=mask)
        )
        self._into(self._builtin_name, a, axes, t, mask, y)
        return _arrays.returned(y, out)

    @staticmethod
    def _into(
        name: str,
        a: FloatArray,
        axes: tuple[int, ...],
        t: float,
        mask: BoolArray | None,
        y: FloatArray,
    ) -> None:
        if a.size == 0:
            return
        merged = _Merged(y, axes)
        source = _Merged(a, axes)
        _kernels.transform(
            name, source.array, source.axis, merged.array, t, _optional(mask, axes), None
        )
        merged.restore()

    def _pull(
        self,
        kernel: str,
        x: ArrayLike,
        g: ArrayLike,
        what: str,
        axis: Axes,
        temperature: float,
        where: Any,
        out: Any,
        y: ArrayLike | None,
    ) -> FloatArray:
        a = _arrays.as_scores(x, "x", _arrays.BY_WHERE)
        axes = _arrays.some_axes(axis, a.ndim, "x")
        t = _arrays.check_temperature(temperature)
        mask = _arrays.as_where(where, a.shape, "x")
        v = _arrays.as_cotangent(g, a.shape, a.dtype, what)
        p = None if y is None else _arrays.as_cotangent(y, a.shape, a.dtype, "y")
        named = {what: v, "x": a, "y": p, "where": mask}
        result = np.empty_like(a) if out is None else _arrays.as_out(out, a.shape, a.dtype, **named)
        if a.size == 0:
            return _arrays.returned(result, out)
        if p is None:
            p = np.empty_like(a, dtype=_arrays.computed(a.dtype))
            # `result` holds the probabilities for a moment, unless it is still needed as g, would
            # round them, or has strides of its own, on which the bits may depend.
            if (
                result.dtype == p.dtype
                and result.strides == p.strides
                and not np.may_share_memory(result, v)
            ):
                p = result
            self._into("softmax", a, axes, t, mask, p)
        merged, source = _Merged(result, axes), _Merged(p, axes)
        _kernels.derivative(
            kernel,
            source.array,
            _Merged(v, axes).array,
            source.axis,
            merged.array,
            t,
            _optional(mask, axes),
        )
        merged.restore()
        return _arrays.returned(result, out)


class Softmax(_RowMap):
    r"""Softmax: positive numbers that sum to one along an axis.

    .. math:: y_i = \exp(x_i / T) / \sum_j \exp(x_j / T)

    Parameters
    ----------
    x : array_like of floats
        Scores of any shape and strides.  float16 and bfloat16 (of `ml_dtypes`) are read and written
        natively and computed in float32.  Integers and bools become float64; 0-d counts as one
        element.
    axis : int, sequence of int, or None, default -1
        Axis or axes that sum to one; None means all.
    temperature : float, default 1.0
        `T`, in [1e-30, 1e30].  It costs neither time nor accuracy.
    where : array_like of bool, optional
        Elements to keep, broadcast to the shape of `x`; the others get exactly 0 and may hold
        anything.
    out : ndarray, optional
        Where to put the result: shape and dtype of `x`.  It may be `x` itself.

    Returns
    -------
    ndarray
        Shape and dtype of `x`, in its memory order ("K"); `out` if that was given.

    Raises
    ------
    TypeError
        For complex, long double, object or masked input, and an `out` of another dtype.
    ValueError
        For a temperature out of range, a `where` that does not broadcast, an
        `out` of another shape, read-only, or overlapping an input.
    numpy.exceptions.AxisError
        For an axis out of range.

    See Also
    --------
    log_softmax, logsumexp

    Notes
    -----
    Within 2.5 ulp of the exact value for every number of classes (3.5 where the processor has no
    fused multiply-add, which x86 has had since 2013): the maximum is subtracted as an exact power
    of two and the sum is taken in two words [1]_ [2]_.  A row's bits do not depend on the other
    rows, on the number of threads or on `out`.

    Half precision gives the bits of the same call on ``x.astype(np.float32)``, rounded once to the
    dtype of `x`.  Other arrays, such as `g`, are read as they are if they have that very dtype, and
    cast to float32 otherwise.

    A row with NaN or +inf is NaN, as is a row of -inf alone; other rows are untouched, and what
    `where` drops counts as absent and is 0 in any row.  -inf gives exactly 0.  An empty axis gives
    an empty result.  Nothing warns.

    A long call can be interrupted; `out` is then partly written.  Several axes at once are
    merged without a copy where the memory allows it.

    Derivatives: ``vjp(x, g)`` and ``jvp(x, v)``.

    References
    ----------
    .. [1] M. Dukhan and A. Ablavatski, "The Two-Pass Softmax Algorithm", 2020, arXiv:2001.04438.
    .. [2] P. Blanchard, D. J. Higham and N. J. Higham, "Accurately computing the log-sum-exp and
       softmax functions", IMA J. Numer. Anal. 41(4), 2021, doi:10.1093/imanum/draa038.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> fg.softmax(np.array([[0.0, np.log(3.0)], [1000.0, 1000.0]]))
    array([[0.25, 0.75],
           [0.5 , 0.5 ]])
    """

    _builtin_name = "softmax"

    def __call__(
        self,
        x: ArrayLike,
        axis: Axes = -1,
        *,
        temperature: float = 1.0,
        where: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray:
        if (
            axis.__class__ is int
            and axis == -1
            and where is None
            and out is None
            and temperature.__class__ is float
            and temperature == 1.0
        ):
            y: FloatArray | None = _kernels.plain_softmax(x)
            if y is not None:
                return y
        return self._apply(x, axis, temperature, where, out)

    def vjp(
        self,
        x: ArrayLike,
        g: ArrayLike,
        axis: Axes = -1,
        *,
        temperature: float = 1.0,
        where: ArrayLike | None = None,
        y: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray:
        r"""Pull a cotangent back: :math:`y \circ (g - \langle y, g\rangle) / T`.

        Parameters
        ----------
        x : array_like
            As in the call.
        g : array_like
            Cotangent of the result, of the shape of `x`; cast to its dtype.
        axis, temperature, where
            As in the call.  Where `where` is False the result is 0 and `g` is not read.
        y : array_like, optional
            The result of the call for these arguments, to save computing it again.
        out : ndarray, optional
            Where to put the result; it may be `g` itself.

        Returns
        -------
        ndarray
            Shape and dtype of `x`.  Rows whose softmax is NaN are NaN.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.softmax.vjp(np.zeros(2), np.array([1.0, 0.0]))
        array([ 0.25, -0.25])
        """
        return self._pull("softmax", x, g, "g", axis, temperature, where, out, y)

    def jvp(
        self,
        x: ArrayLike,
        v: ArrayLike,
        axis: Axes = -1,
        *,
        temperature: float = 1.0,
        where: ArrayLike | None = None,
        y: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray:
        r"""Push a tangent forward: :math:`y \circ (v - \langle y, v\rangle) / T`.

        The Jacobian of softmax is symmetric, so this is `vjp` with a tangent of `x`; parameters and
        result are the same.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.softmax.jvp(np.zeros(2), np.array([1.0, 0.0]))
        array([ 0.25, -0.25])
        """
        return self._pull("softmax", x, v, "v", axis, temperature, where, out, y)


class LogSoftmax(_RowMap):
    r"""Logarithm of the softmax.

    .. math:: y_i = x_i / T - \log \sum_j \exp(x_j / T)

    Parameters
    ----------
    x, axis, temperature, where, out
        As for `softmax`; elements that `where` drops get -inf.

    Returns
    -------
    ndarray
        Shape and dtype of `x`, in its memory order ("K"); `out` if that was given.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As for `softmax`.

    See Also
    --------
    softmax, logsumexp, cross_entropy

    Notes
    -----
    Full relative accuracy even at the winner of a confident row: the sum leaves the largest term
    out, and its own value is ``-log1p(others / largest)``, where other libraries return 0.

    A row with NaN or +inf is NaN, as is a row of -inf alone.  -inf gives -inf, and so does what
    `where` drops, in any row.

    Derivatives: ``vjp(x, g)`` and ``jvp(x, v)``.

    References
    ----------
    .. [1] P. Blanchard, D. J. Higham and N. J. Higham, "Accurately computing the log-sum-exp and
       softmax functions", IMA J. Numer. Anal. 41(4), 2021, doi:10.1093/imanum/draa038.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> fg.log_softmax(np.array([0.0, -40.0]))
    array([-4.24835426e-18, -4.00000000e+01])
    """

    _builtin_name = "log_softmax"

    def __call__(
        self,
        x: ArrayLike,
        axis: Axes = -1,
        *,
        temperature: float = 1.0,
        where: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray:
        if (
            axis.__class__ is int
            and axis == -1
            and where is None
            and out is None
            and temperature.__class__ is float
            and temperature == 1.0
        ):
            y: FloatArray | None = _kernels.plain_log_softmax(x)
            if y is not None:
                return y
        return self._apply(x, axis, temperature, where, out)

    def vjp(
        self,
        x: ArrayLike,
        g: ArrayLike,
        axis: Axes = -1,
        *,
        temperature: float = 1.0,
        where: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray:
        r"""Pull a cotangent back: :math:`(g - p \sum g) / T`, with `p` the softmax.

        Parameters
        ----------
        x : array_like
            As in the call.
        g : array_like
            Cotangent of the result, of the shape of `x`; cast to its dtype.
        axis, temperature, where
            As in the call.  Where `where` is False the result is 0 and `g` is not read.
        out : ndarray, optional
            Where to put the result; it may be `g` itself.

        Returns
        -------
        ndarray
            Shape and dtype of `x`.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.log_softmax.vjp(np.zeros(2), np.array([1.0, 0.0]))
        array([ 0.5, -0.5])
        """
        return self._pull("log_softmax_vjp", x, g, "g", axis, temperature, where, out, None)

    def jvp(
        self,
        x: ArrayLike,
        v: ArrayLike,
        axis: Axes = -1,
        *,
        temperature: float = 1.0,
        where: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray:
        r"""Push a tangent forward: :math:`(v - \langle p, v\rangle) / T`, with `p` the softmax.

        Parameters
        ----------
        x : array_like
            As in the call.
        v : array_like
            Tangent of `x`, of its shape; cast to its dtype.
        axis, temperature, where
            As in the call.  Where `where` is False the result is 0 and `v` is not read.
        out : ndarray, optional
            Where to put the result; it may be `v` itself.

        Returns
        -------
        ndarray
            Shape and dtype of `x`.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.log_softmax.jvp(np.zeros(2), np.array([1.0, 0.0]))
        array([ 0.5, -0.5])
        """
        return self._pull("log_softmax_jvp", x, v, "v", axis, temperature, where, out, None)


class LogSumExp(Map):
    r"""Logarithm of a sum of exponentials along an axis.

    .. math:: \log \sum_j b_j \exp(a_j / T)

    Parameters
    ----------
    a : array_like of floats
        Exponents of any shape and strides.  float16 and bfloat16 (of `ml_dtypes`) are read and
        written natively and computed in float32.  Integers and bools become float64.
    axis : int, sequence of int, or None, default -1
        Axis or axes to sum over; None means all.  (SciPy's default is None.)
    temperature : float, default 1.0
        `T`, in [1e-30, 1e30].
    b : array_like, optional
        Factors of the exponentials, of either sign, broadcast to the shape of `a` and cast to its
        dtype. A factor 0 removes its element, even an infinite one.
    keepdims : bool, default False
        Keep the reduced axes with length one.
    return_sign : bool, default False
        Also return the sign of the sum; without it, the logarithm of a negative sum is NaN.
    where : array_like of bool, optional
        Elements to keep, broadcast to the shape of `a`.
    out : ndarray, optional
        Where to put the logarithm: its shape, and the dtype of `a`.

    Returns
    -------
    ndarray or scalar
        The logarithm, of the dtype of `a`; `out` if that was given.
    ndarray or scalar
        The sign (-1, 0, 1 or NaN), only if `return_sign`.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As for `softmax`.

    See Also
    --------
    softmax, log_softmax

    Notes
    -----
    Computed as ``max + log1p(others / largest)``: within 2 ulp of the larger of the result and the
    maximum, and with full relative accuracy where the result is near zero.

    With `b` the error is a few ulp of the larger of those and 1, and more where signs cancel.

    NaN gives NaN, unless `where` or a factor 0 removes it; otherwise +inf gives +inf.  -inf counts
    as nothing; a sum of nothing is -inf with sign 0.

    Derivatives: ``vjp(a, g)`` and ``jvp(a, v)``.

    References
    ----------
    .. [1] P. Blanchard, D. J. Higham and N. J. Higham, "Accurately computing the log-sum-exp and
       softmax functions", IMA J. Numer. Anal. 41(4), 2021, doi:10.1093/imanum/draa038.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> print(fg.logsumexp(np.array([0.0, -40.0])))
    4.248354255291589e-18
    >>> log, sign = fg.logsumexp(np.array([0.0, 0.0]), b=np.array([1.0, -3.0]), return_sign=True)
    >>> print(round(float(np.exp(log)), 12), sign)
    2.0 -1.0
    """

    _builtin_name = "logsumexp"

    def __init__(self) -> None:
        self.__name__ = self._builtin_name

    def __call__(
        self,
        a: ArrayLike,
        axis: Axes = -1,
        *,
        temperature: float = 1.0,
        b: ArrayLike | None = None,
        keepdims: bool = False,
        return_sign: bool = False,
        where: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> Any:
        x = _arrays.as_scores(a, "a", _arrays.BY_WHERE)
        axes = _arrays.some_axes(axis, x.ndim, "a")
        t = _arrays.check_temperature(temperature)
        mask = _arrays.as_where(where, x.shape, "a")
        factors = None if b is None else _arrays.as_factors(b, x)
        kept = _reduced(x.shape, axes, keepdims=True)
        shape = kept if keepdims else _reduced(x.shape, axes, keepdims=False)
        value = (
            np.empty(shape, x.dtype)
            if out is None
            else _arrays.as_out(out, shape, x.dtype, a=x, b=factors, where=mask)
        )
        sign = np.empty(shape, x.dtype) if return_sign else None
        if x.size == 0:
            value[...] = -np.inf
            if sign is not None:
                sign[...] = 0
        else:
            source = _Merged(x, axes)
            rows = source.array.shape[: source.axis] + source.array.shape[source.axis + 1 :]
            masked = _optional(mask, axes)
            if factors is None:
                log = value
                if sign is not None and _arrays.is_half(x.dtype):
                    log = np.empty(shape, np.float32)  # a log that float16 cannot hold has a sign
                _kernels.logsumexp(source.array, source.axis, _as_rows(log, rows), t, masked)
                if sign is not None:
                    sign[...] = np.where(np.isnan(log), log, log > -np.inf)
                    value[...] = _arrays.cast(log, x.dtype)
            else:
                s = None if sign is None else _as_rows(sign, rows)
                weights = _Merged(factors, axes).array
                _kernels.logsumexp_weighted(
                    source.array,
                    weights,
                    source.axis,
                    _as_rows(value, rows),
                    s,
                    None,
                    None,
                    t,
                    masked,
                )
        result = _arrays.returned(value, out)
        return result if sign is None else (result, _arrays.returned(sign, None))

    def vjp(
        self,
        a: ArrayLike,
        g: ArrayLike,
        axis: Axes = -1,
        *,
        temperature: float = 1.0,
        b: ArrayLike | None = None,
        keepdims: bool = False,
        return_sign: bool = False,
        where: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray:
        r"""Pull a cotangent back: :math:`g\, b \circ \exp(a / T) / (T \sum b \exp(a / T))`.

        Parameters
        ----------
        a : array_like
            As in the call.
        g : array_like
            Cotangent of the logarithm, of its shape (with the reduced axes if `keepdims`).  Where
            it is infinite divided by the temperature, so is the result, and NaN at a share of 0.
        axis, temperature, b, keepdims, return_sign, where
            As in the call.  The sign is piecewise constant and has no cotangent; without
            `return_sign`, a negative sum has value and gradient NaN.
        out : ndarray, optional
            Where to put the result: shape and dtype of `a`; it may be `a` itself.

        Returns
        -------
        ndarray
            Shape and dtype of `a`; 0 where `where` or a factor 0 removes the element.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.logsumexp.vjp(np.array([0.0, 0.0]), 1.0)
        array([0.5, 0.5])
        """
        x = _arrays.as_scores(a, "a", _arrays.BY_WHERE)
        axes = _arrays.some_axes(axis, x.ndim, "a")
        t = _arrays.check_temperature(temperature)
        mask = _arrays.as_where(where, x.shape, "a")
        factors = None if b is None else _arrays.as_factors(b, x)
        shape = _reduced(x.shape, axes, keepdims=keepdims)
        cotangent = _arrays.as_cotangent(g, shape, x.dtype, "g")
        cotangent = _arrays.cast(cotangent, _arrays.computed(x.dtype))
        result = (
            np.empty_like(x)
            if out is None
            else _arrays.as_out(out, x.shape, x.dtype, a=x, g=cotangent, b=factors, where=mask)
        )
        if x.size > 0:
            self._gradient(x, cotangent, axes, t, factors, return_sign, mask, result)
        return _arrays.returned(result, out)

    @staticmethod
    def _gradient(
        x: FloatArray,
        cotangent: FloatArray,
        axes: tuple[int, ...],
        t: float,
        factors: FloatArray | None,
        return_sign: bool,
        mask: BoolArray | None,
        result: FloatArray,
    ) -> None:
        source, merged = _Merged(x, axes), _Merged(result, axes)
        rows = source.array.shape[: source.axis] + source.array.shape[source.axis + 1 :]
        alpha, masked = cotangent.reshape(rows), _optional(mask, axes)
        if factors is None:
            _kernels.transform("softmax", source.array, source.axis, merged.array, t, masked, alpha)
        else:
            sign = np.empty(rows, cotangent.dtype) if return_sign else None
            value = np.empty(rows, cotangent.dtype)
            weights = _Merged(factors, axes).array
            _kernels.logsumexp_weighted(
                source.array, weights, source.axis, value, sign, merged.array, alpha, t, masked
            )
        merged.restore()

    def jvp(
        self,
        a: ArrayLike,
        v: ArrayLike,
        axis: Axes = -1,
        *,
        temperature: float = 1.0,
        b: ArrayLike | None = None,
        keepdims: bool = False,
        return_sign: bool = False,
        where: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> Any:
        r"""Push a tangent forward: :math:`\sum v\, b \exp(a / T) / (T \sum b \exp(a / T))`.

        Parameters
        ----------
        a : array_like
            As in the call.
        v : array_like
            Tangent of `a`, of its shape; cast to its dtype.
        axis, temperature, b, keepdims, return_sign, where
            As in the call.  Elements that `where` or a factor 0 removes are not read from `v`.
        out : ndarray, optional
            Where to put the result, which has the shape of the logarithm.

        Returns
        -------
        ndarray or scalar
            The tangent of the logarithm.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> print(fg.logsumexp.jvp(np.array([0.0, 0.0]), np.array([1.0, 0.0])))
        0.5
        """
        x = _arrays.as_scores(a, "a", _arrays.BY_WHERE)
        axes = _arrays.some_axes(axis, x.ndim, "a")
        t = _arrays.check_temperature(temperature)
        mask = _arrays.as_where(where, x.shape, "a")
        tangent = _arrays.as_cotangent(v, x.shape, x.dtype, "v")
        shape = _reduced(x.shape, axes, keepdims=keepdims)
        value = (
            np.empty(shape, x.dtype)
            if out is None
            else _arrays.as_out(out, shape, x.dtype, v=tangent, a=x, where=mask)
        )
        if x.size == 0:
            value[...] = 0
            return _arrays.returned(value, out)
        factors = None if b is None else _arrays.as_factors(b, x)
        p = np.empty_like(x, dtype=_arrays.computed(x.dtype))
        ones = np.ones(_reduced(x.shape, axes, keepdims=True), p.dtype)
        self._gradient(x, ones, axes, t, factors, return_sign, mask, p)
        removed = mask
        if factors is not None:
            present = factors != 0
            removed = present if mask is None else mask & present
        source = _Merged(p, axes)
        rows = source.array.shape[: source.axis] + source.array.shape[source.axis + 1 :]
        _kernels.dot(
            source.array,
            _Merged(tangent, axes).array,
            source.axis,
            _as_rows(value, rows),
            1.0,
            _optional(removed, axes),
        )
        return _arrays.returned(value, out)


def _reduced(shape: tuple[int, ...], axes: tuple[int, ...], *, keepdims: bool) -> tuple[int, ...]:
    if not shape:
        return ()
    if keepdims:
        return tuple(1 if i in axes else n for i, n in enumerate(shape))
    return tuple(n for i, n in enumerate(shape) if i not in axes)


def _as_rows(a: FloatArray, rows: tuple[int, ...]) -> FloatArray:
    """A view without the axes of length one that keepdims leaves: no copy takes that."""
    return a.reshape(rows)


softmax = Softmax()
log_softmax = LogSoftmax()
logsumexp = LogSumExp()
