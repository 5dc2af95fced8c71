"""Cross-entropy of a linear head: logits X Wᵀ + bias, which never exist as a whole.

The rows are cut into tiles.  A tile's logits lie in one buffer, are turned into their own
derivative there, and are multiplied back: three matrix products for all gradients, as with the
whole logits.  The alternative, tiles of classes over all rows, needs a fourth product, because a
row's softmax is known only after its last tile; it lost at 128,000 classes, where tiles of rows
are at their lowest.

Shapes: N rows, d features, K classes; R rows of a tile.
"""

from __future__ import annotations

import functools
import math
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastgrad import _arrays
from fastgrad._arrays import FloatArray
from fastgrad._cross_entropy import cross_entropy
from fastgrad._maps import Loss
from fastgrad._threads import alone

ROWS = 1024
"""More rows in a tile make no product faster and only leave the caches."""

VECTOR = 16
"""Products run faster where the number of rows is a multiple of BLAS's own small tiles."""

Rows: TypeAlias = slice | NDArray[np.intp]


class _Options(NamedTuple):
    """What a call of `linear_cross_entropy` and of each of its derivatives was given."""

    bias: ArrayLike | None
    l2: float
    weight: ArrayLike | None
    sample_weight: ArrayLike | None
    ignore_index: int | None
    label_smoothing: float
    z_loss: float
    reduction: str | None
    normalizer: float | None
    memory: int


class LinearCrossEntropy(Loss):
    r"""Cross-entropy of the logits of a linear head, which are never stored as a whole.

    .. math::
        L = \mathrm{CE}(X W^\top + b, \text{target}) + \tfrac12 \lambda_2 \lVert W \rVert^2

    with CE as in `cross_entropy`.

    Parameters
    ----------
    X : array_like, float32 or float64, shape (N, d)
        Features, one row each.  Integers and bools become float64.
    W : array_like, shape (K, d)
        Weights of the classes, in the dtype of `X`; integers are converted to it.
    target : array_like
        Class indices of shape (N,), or probabilities of shape (N, K), as in `cross_entropy`.
    bias : array_like, shape (K,), optional
        Zero if not given.
    l2 : float >= 0, default 0.0
        :math:`\lambda_2`.  The penalty is added after the reduction and never touches `bias`.
    weight, sample_weight, ignore_index, label_smoothing, z_loss, reduction, normalizer
        As in `cross_entropy`.
    memory : int, default 64 MiB
        Bytes that tiles of logits may take, at least those of one row; a sixteenth of it is used
        besides to add up the gradient of `W`.

    Returns
    -------
    float or ndarray
        A Python float, accumulated in float64; for "none" an array of shape (N,) and the dtype of
        `X`.

    Raises
    ------
    IndexError
        For a class index outside [0, K) that is not `ignore_index`, naming the first one.
    TypeError
        For `X` and `W` of different float dtypes (the one that is wrong would be copied at every
        call), and as in `cross_entropy`.
    ValueError
        For shapes that do not fit, a penalty with reduction "none", `memory` < 1, and as in
        `cross_entropy`.

    See Also
    --------
    cross_entropy

    Notes
    -----
    With G the gradient in the logits: :math:`dW = G^\top X + \lambda_2 W`, :math:`db = \sum_n G_n`,
    :math:`dX = G W`.  Only what `wrt` asks for is multiplied: three products for all gradients, one
    for the value.  Rows that count for nothing (`ignore_index`, sample weight 0, class weight 0
    without smoothing) are left out before the products and may hold anything; their loss and their
    rows of `dX` are exactly 0.

    Products are NumPy's: their sums have the accuracy of its BLAS, and equal bits need equal
    shapes, `memory` and BLAS threads.  Given the logits, losses and G are as accurate as those of
    `cross_entropy`.  A logit that is NaN makes its row NaN, and the gradients that the row enters.
    With no row kept, or a total weight of 0, "mean" is NaN, "sum" the penalty, and every gradient
    that of the penalty.  Nothing warns.

    A `W` in which neither axis is contiguous is copied, because BLAS cannot read it.

    Derivatives: ``grad``, ``value_and_grad``, ``hvp`` and ``fisher_diag``, with the same arguments.
    ``flat`` gives the loss as a function of one flat vector, for the optimisers of SciPy.

    References
    ----------
    .. [1] E. Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", 2024,
       arXiv:2411.09009.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> X, W = np.array([[1.0, 0.0], [0.0, 2.0]]), np.zeros((3, 2))
    >>> round(fg.linear_cross_entropy(X, W, [0, 2], l2=0.1), 6)
    1.098612
    >>> value, grad = fg.linear_cross_entropy.value_and_grad(X, W, [0, 2], wrt=("W", "bias"))
    >>> grad.W.round(3)
    array([[-0.333,  0.333],
           [ 0.167,  0.333],
           [ 0.167, -0.667]])
    >>> grad.bias.round(3)
    array([-0.167,  0.333, -0.167])
    """

    _builtin_name = "linear_cross_entropy"
    _derivatives = ("grad", "value_and_grad", "hvp", "fisher_diag")

    def __init__(self) -> None:
        self.__name__ = self._builtin_name

    def __getattr__(self, name: str) -> NoReturn:
        if name == "hess_diag":
            raise AttributeError(
                "linear_cross_entropy has no hess_diag, because its Hessian is that of three "
                "arguments; fisher_diag is the diagonal in W and bias, without the penalty."
            )
        super().__getattr__(name)

    def __call__(
        self,
        X: ArrayLike,
        W: ArrayLike,
        target: ArrayLike,
        *,
        bias: ArrayLike | None = None,
        l2: float = 0.0,
        weight: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: int | None = -100,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        reduction: str | None = "mean",
        normalizer: float | None = None,
        memory: int = 64 * 2**20,
    ) -> Any:
        options = _Options(
            bias,
            l2,
            weight,
            sample_weight,
            ignore_index,
            label_smoothing,
            z_loss,
            reduction,
            normalizer,
            memory,
        )
        return _first_order(_Head(X, W, target, options, None), (), True)[0]

    def grad(
        self,
        X: ArrayLike,
        W: ArrayLike,
        target: ArrayLike,
        *,
        bias: ArrayLike | None = None,
        l2: float = 0.0,
        weight: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: int | None = -100,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        reduction: str | None = "mean",
        normalizer: float | None = None,
        memory: int = 64 * 2**20,
        wrt: Sequence[str] = ("W", "bias", "X"),
        grad_output: ArrayLike | None = None,
    ) -> Any:
        """Gradients with respect to the weights, the bias and the features.

        Parameters
        ----------
        X, W, target, bias, l2, ..., memory
            As in the call.  For "none" the gradient is that of the sum of the losses, or with
            `grad_output` of the sum that it weighs.
        wrt : sequence of {"W", "bias", "X"}
            What to differentiate by; "bias" also if none is given, which is then zero.
        grad_output : float or array_like, optional
            Factor of the gradients, an upstream derivative: one number, or for "none" one per row.

        Returns
        -------
        named tuple of ndarray
            With exactly the fields of `wrt`, in that order; each of the shape of its argument and
            the dtype of `X`.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.linear_cross_entropy.grad([[2.0]], [[0.0], [0.0]], [1], wrt=("bias", "W"))
        Gradient(bias=array([ 0.5, -0.5]), W=array([[ 1.],
               [-1.]]))
        """
        options = _Options(
            bias,
            l2,
            weight,
            sample_weight,
            ignore_index,
            label_smoothing,
            z_loss,
            reduction,
            normalizer,
            memory,
        )
        fields = _arrays.check_wrt(wrt, ("W", "bias", "X"))
        return _first_order(_Head(X, W, target, options, grad_output), fields, False)[1]

    def value_and_grad(
        self,
        X: ArrayLike,
        W: ArrayLike,
        target: ArrayLike,
        *,
        bias: ArrayLike | None = None,
        l2: float = 0.0,
        weight: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: int | None = -100,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        reduction: str | None = "mean",
        normalizer: float | None = None,
        memory: int = 64 * 2**20,
        wrt: Sequence[str] = ("W", "bias", "X"),
        grad_output: ArrayLike | None = None,
    ) -> tuple[Any, Any]:
        """Loss and gradients in one walk over the rows.

        Parameters
        ----------
        X, W, target, bias, l2, ..., memory, wrt, grad_output
            As for `grad`; `grad_output` does not touch the value.

        Returns
        -------
        value : float or ndarray
            What the call returns.
        grad : named tuple of ndarray
            What `grad` returns.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> value, grad = fg.linear_cross_entropy.value_and_grad([[2.0]], [[0.0], [0.0]], [1])
        >>> value, grad.X
        (0.6931471805599453, array([[0.]]))
        """
        options = _Options(
            bias,
            l2,
            weight,
            sample_weight,
            ignore_index,
            label_smoothing,
            z_loss,
            reduction,
            normalizer,
            memory,
        )
        fields = _arrays.check_wrt(wrt, ("W", "bias", "X"))
        return _first_order(_Head(X, W, target, options, grad_output), fields, True)

    def hvp(
        self,
        X: ArrayLike,
        W: ArrayLike,
        target: ArrayLike,
        v: Sequence[ArrayLike],
        *,
        bias: ArrayLike | None = None,
        l2: float = 0.0,
        weight: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: int | None = -100,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        reduction: str | None = "mean",
        normalizer: float | None = None,
        memory: int = 64 * 2**20,
        wrt: Sequence[str] | None = None,
        grad_output: ArrayLike | None = None,
    ) -> Any:
        r"""The Hessian with respect to the arguments in `wrt`, times a vector.

        The vector moves the logits by :math:`D = X v_W^\top + v_X W^\top + v_b`.  With G the
        gradient in the logits and R their Hessian times D, the result is
        :math:`R^\top X + G^\top v_X + \lambda_2 v_W` for `W`, :math:`R W + G v_W` for `X` and
        :math:`\sum_n R_n` for the bias.

        Parameters
        ----------
        X, W, target, bias, l2, ..., memory, grad_output
            As for `grad`.
        v : sequence of array_like
            One array for every name in `wrt`, of its argument's shape; cast to the dtype of `X`.
        wrt : sequence of {"W", "bias", "X"}, optional
            What `v` moves, everything else being held still; by default the first ``len(v)`` of
            these.

        Returns
        -------
        named tuple of ndarray
            The fields of `wrt`, in that order.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> v = np.array([[1.0], [0.0]]), np.zeros(2)
        >>> fg.linear_cross_entropy.hvp([[2.0]], [[0.0], [0.0]], [1], v)
        HessianProduct(W=array([[ 1.],
               [-1.]]), bias=array([ 0.5, -0.5]))
        """
        options = _Options(
            bias,
            l2,
            weight,
            sample_weight,
            ignore_index,
            label_smoothing,
            z_loss,
            reduction,
            normalizer,
            memory,
        )
        head = _Head(X, W, target, options, grad_output)
        shapes = {"W": head.W.shape, "bias": head.W.shape[:1], "X": head.X.shape}
        return _second_order(head, _arrays.as_directions(v, wrt, shapes, head.X.dtype))

    def fisher_diag(
        self,
        X: ArrayLike,
        W: ArrayLike,
        target: ArrayLike,
        *,
        bias: ArrayLike | None = None,
        l2: float = 0.0,
        weight: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: int | None = -100,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        reduction: str | None = "mean",
        normalizer: float | None = None,
        memory: int = 64 * 2**20,
        wrt: Sequence[str] = ("W", "bias"),
        grad_output: ArrayLike | None = None,
    ) -> Any:
        r"""Diagonal of the Fisher information of the weights and the bias.

        .. math:: F_{kj} = \sum_n A_n\, p_{nk} (1 - p_{nk})\, x_{nj}^2

        with :math:`A_n` the mass of a row over the divisor of the mean; the same without x for the
        bias.  As the head is linear, this is also the diagonal of the Hessian (and of the
        Gauss-Newton matrix): divide a gradient by it, plus your `l2`, for a diagonal Newton step.

        Parameters
        ----------
        X, W, target, bias, ..., memory, grad_output
            As for `grad`.
        l2, z_loss
            Must be 0: a penalty is no information that the data carry.
        wrt : sequence of {"W", "bias"}
            Of which the diagonal is wanted.

        Returns
        -------
        named tuple of ndarray
            The fields of `wrt`, in that order; each of the shape of its argument.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> fg.linear_cross_entropy.fisher_diag([[2.0]], [[0.0], [0.0]], [1])
        FisherDiagonal(W=array([[1.],
               [1.]]), bias=array([0.25, 0.25]))
        """
        options = _Options(
            bias,
            l2,
            weight,
            sample_weight,
            ignore_index,
            label_smoothing,
            z_loss,
            reduction,
            normalizer,
            memory,
        )
        fields = _arrays.check_wrt(wrt, ("W", "bias"))
        head = _Head(X, W, target, options, grad_output)
        _arrays.check_no_penalty(head.l2, head.z_loss)
        return _fisher_diag(head, fields)

    def flat(
        self,
        X: ArrayLike,
        target: ArrayLike,
        *,
        num_classes: int,
        bias: bool = True,
        l2: float = 0.0,
        weight: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: int | None = -100,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        reduction: str = "mean",
        normalizer: float | None = None,
        memory: int = 64 * 2**20,
    ) -> FlatLinearCrossEntropy:
        """The loss as a function of one flat vector, for the optimisers of SciPy.

        Parameters
        ----------
        X, target, l2, weight, ..., memory
            As in the call; `reduction` must not be "none".
        num_classes : int
            The number K of classes, which indices alone do not tell.
        bias : bool, default True
            Whether the vector ends with a bias.

        Returns
        -------
        FlatLinearCrossEntropy
            ``fun(theta)`` is the value and the flat gradient, ``fun.hessp(theta, v)`` the Hessian
            times v, ``fun.unpack(theta)`` the pair (W, bias), ``fun.start()`` a vector of zeros.

        Examples
        --------
        >>> import numpy as np
        >>> import fastgrad as fg
        >>> from scipy.optimize import minimize
        >>> X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), [0, 1, 0, 1]
        >>> fun = fg.linear_cross_entropy.flat(X, y, num_classes=2, l2=0.1)
        >>> result = minimize(fun, fun.start(), jac=True, hessp=fun.hessp, method="Newton-CG")
        >>> W, bias = fun.unpack(result.x)
        >>> round(result.fun, 6)
        0.603693
        """
        options = {
            "l2": l2,
            "weight": weight,
            "sample_weight": sample_weight,
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
            "z_loss": z_loss,
            "reduction": _arrays.check_reduced(reduction),
            "normalizer": normalizer,
            "memory": memory,
        }
        classes = _arrays.check_count(num_classes, "num_classes")
        return FlatLinearCrossEntropy(_arrays.as_matrix(X, "X"), target, classes, bias, options)


class FlatLinearCrossEntropy:
    """`linear_cross_entropy` of fixed data as a function of one flat vector (made by ``flat``).

    The vector holds W (K, d) row after row, then the bias (K,) if there is one.  It and the
    gradient are float64, as the optimisers want; with float32 data the arithmetic is float32 and
    the vector is rounded to it.

    Examples
    --------
    >>> import fastgrad as fg
    >>> fun = fg.linear_cross_entropy.flat([[2.0]], [1], num_classes=2)
    >>> fun([0.0, 0.0, 0.0, 0.0])
    (0.6931471805599453, array([ 1. , -1. ,  0.5, -0.5]))
    """

    def __init__(
        self, X: FloatArray, target: ArrayLike, classes: int, bias: bool, options: dict[str, Any]
    ) -> None:
        self._X, self._target, self._options = X, target, options
        self._shape = classes, X.shape[1]
        self._size = classes * (X.shape[1] + bool(bias))
        self._wrt = ("W", "bias") if bias else ("W",)

    def __call__(self, theta: ArrayLike) -> tuple[float, NDArray[np.float64]]:
        """Value and flat gradient: what ``minimize(fun, x0, jac=True)`` calls."""
        W, bias = self._native(theta, "theta")
        value, grad = linear_cross_entropy.value_and_grad(
            self._X, W, self._target, bias=bias, wrt=self._wrt, **self._options
        )
        return value, _flattened(grad)

    def hessp(self, theta: ArrayLike, v: ArrayLike) -> NDArray[np.float64]:
        """The Hessian at theta times the flat vector v."""
        W, bias = self._native(theta, "theta")
        direction: Any = self._native(v, "v")[: len(self._wrt)]
        product = linear_cross_entropy.hvp(
            self._X,
            W,
            self._target,
            direction,
            bias=bias,
            wrt=self._wrt,
            **self._options,
        )
        return _flattened(product)

    def start(self) -> NDArray[np.float64]:
        """A vector of zeros, where all classes are equally likely."""
        return np.zeros(self._size)

    def unpack(self, theta: ArrayLike) -> tuple[FloatArray, FloatArray | None]:
        """W (K, d) and bias (K,), None if there is none, as views of theta."""
        return self._unpack(_arrays.as_flat(theta, self._size, "theta"))

    def _unpack(self, flat: FloatArray) -> tuple[FloatArray, FloatArray | None]:
        W, bias = np.split(flat, [math.prod(self._shape)])
        return W.reshape(self._shape), bias if bias.size else None

    def _native(self, flat: ArrayLike, name: str) -> tuple[FloatArray, FloatArray | None]:
        """W and bias in the dtype of X."""
        a = _arrays.as_flat(flat, self._size, name)
        return self._unpack(_arrays.cast(a, self._X.dtype))


def _flattened(parts: Sequence[FloatArray]) -> NDArray[np.float64]:
    return np.concatenate([part.ravel() for part in parts], dtype=np.float64)


# ---- tiles of rows ----------------------------------------------------------------------------


class _Tile(NamedTuple):
    """Some rows that count, their logits, and what `cross_entropy` needs to know of them.

    What is computed of the logits stands between products: hence `alone`.
    """

    rows: Rows
    X: FloatArray
    Z: FloatArray
    spare: FloatArray
    target: NDArray[Any]
    options: dict[str, Any]
    slope: Any

    def value(self) -> Any:
        with alone():
            return cross_entropy(self.Z, self.target, **self.options)

    def derive(self, derivative: Callable[..., Any], *v: FloatArray, out: FloatArray) -> Any:
        with alone():
            return derivative(
                self.Z, self.target, *v, **self.options, grad_output=self.slope, out=out
            )


class _Head:
    """The checked arguments of a call."""

    def __init__(
        self,
        X: ArrayLike,
        W: ArrayLike,
        target: ArrayLike,
        options: _Options,
        grad_output: ArrayLike | None,
    ) -> None:
        self.X = _arrays.as_matrix(X, "X")
        self.W = _arrays.as_head(W, self.X)
        dtype, count, classes = self.X.dtype, len(self.X), len(self.W)
        self.bias = _arrays.as_bias(options.bias, classes, dtype)
        self.how = _arrays.check_reduction(options.reduction)
        self.l2 = _arrays.check_l2(options.l2, self.how)
        normalizer = _arrays.check_normalizer(options.normalizer, self.how)
        self.smoothing = _arrays.check_between(options.label_smoothing, "label_smoothing", 0.0, 1.0)
        self.z_loss = _arrays.check_between(options.z_loss, "z_loss", 0.0, math.inf)
        self.memory = _arrays.check_count(options.memory, "memory")
        _arrays.check_classes(classes, 1)
        logits = np.broadcast_to(dtype.type(0), (count, classes))  # only its shape and dtype count
        self.target, soft = _arrays.as_target(target, logits, logits.shape, 1)
        ignored = _arrays.check_ignore_index(options.ignore_index, soft)
        self.weight = _arrays.as_class_weight(options.weight, classes, dtype)
        shares = self.how == "mean" and normalizer is None
        self.sample_weight = _arrays.as_row_weight(options.sample_weight, (count,), dtype, shares)
        factor, self.upstream = _arrays.as_grad_output(grad_output, self.how, (count,), dtype)
        if not soft:
            _arrays.check_range(self.target, classes, ignored)
        if shares:
            self.sample_weight = _arrays.balanced(self.sample_weight)
            if not soft and self.z_loss == 0:
                self.weight = _arrays.balanced(self.weight)
        self.kept, total = self._weigh(soft, ignored)
        self.divisor = 1.0
        if self.how == "mean":
            self.divisor = total if normalizer is None else normalizer
            if not self.divisor:
                self.kept = np.empty(0, np.intp)
        self.factor = factor
        self.slope = factor / self.divisor if self.divisor else 0.0

    def _weigh(self, soft: bool, ignored: int | None) -> tuple[NDArray[np.intp] | None, float]:
        """The rows that count, None for all of them, and the sum of their weights."""
        counts = np.ones(len(self.X), bool)
        weights = np.ones(len(self.X)) if self.sample_weight is None else self.sample_weight
        weights = weights.astype(np.float64, copy=False)
        if self.sample_weight is not None:
            counts &= weights != 0
        if not soft and ignored is not None:
            counts &= self.target != ignored
        if not soft and self.weight is not None:
            of_class = self.weight[np.where(counts, self.target, 0)]
            weights = weights * of_class
            if self.smoothing == 0.0:
                counts &= of_class != 0
        if counts.all():
            return None, float(weights.sum())
        return np.flatnonzero(counts), float(weights[counts].sum())

    def tiles(self, buffers: int = 1) -> Iterator[_Tile]:
        """The rows that count, tile by tile; the logits of one overwrite those of the last.

        The memory is for `buffers` arrays (R, K), the second for the caller, and for two (R, d).
        """
        count = len(self.X) if self.kept is None else len(self.kept)
        if not count:
            return
        classes, features = self.W.shape
        fit = self.memory // (self.X.itemsize * (buffers * classes + 2 * features))
        most = max(1, min(fit, ROWS))
        height = -(-count // -(-count // most))  # tiles of equal height
        if most >= VECTOR:
            height = min(-(-height // VECTOR) * VECTOR, most // VECTOR * VECTOR)
        room = np.empty((buffers, min(height, count), classes), self.X.dtype)
        options = {
            "weight": self.weight,
            "ignore_index": None,
            "label_smoothing": self.smoothing,
            "z_loss": self.z_loss,
            "reduction": "none" if self.how == "none" else "sum",
        }
        for start in range(0, count, height):
            stop = min(start + height, count)
            rows = slice(start, stop) if self.kept is None else self.kept[start:stop]
            X = _arrays.for_blas(self.X[rows])
            Z = np.matmul(X, self.W.T, out=room[0, : stop - start])
            if self.bias is not None:
                Z += self.bias
            if self.sample_weight is not None:
                options["sample_weight"] = self.sample_weight[rows]
            slope = self.slope if self.upstream is None else self.upstream[rows]
            yield _Tile(rows, X, Z, room[-1, : len(Z)], self.target[rows], options, slope)


class _Sums:
    """The results by name, to which every tile adds its share."""

    def __init__(self, head: _Head, fields: Sequence[str]) -> None:
        shapes = {"W": head.W.shape, "bias": head.W.shape[:1], "X": head.X.shape}
        self.parts = {name: np.zeros(shapes[name], head.X.dtype) for name in fields}
        self._room = head.memory // 16 // head.X.itemsize

    def add(self, G: FloatArray, X: FloatArray) -> None:
        """Pull slopes G (R, K) of logits that came from the rows X (R, d) back to W and bias."""
        if "W" in self.parts:
            _add_product(G.T, X, self.parts["W"], self._room)
        if "bias" in self.parts:
            self.parts["bias"] += np.ones(len(G), G.dtype) @ G

    def add_penalty(self, slope: float, W: FloatArray) -> None:
        """Slope times W, in pieces."""
        if "W" in self.parts and slope:  # 0 * inf is not 0
            for rows in _pieces(W, self._room):
                self.parts["W"][rows] += slope * W[rows]

    def named(self, kind: str) -> Any:
        return _tuple_type(kind, tuple(self.parts))(*self.parts.values())


def _pieces(a: FloatArray, room: int) -> Iterator[slice]:
    """Slices of the rows of `a`, each of at most `room` elements, or of one row."""
    step = max(1, room // max(1, a.shape[1]))
    return (slice(i, i + step) for i in range(0, len(a), step))


def _add_product(a: FloatArray, b: FloatArray, out: FloatArray, room: int) -> None:
    """Add a @ b to `out` in pieces, because NumPy's own product can only overwrite."""
    for rows in _pieces(out, room):
        out[rows] += a[rows] @ b


# ---- the loss and its derivatives --------------------------------------------------------------


@np.errstate(all="ignore")
def _first_order(head: _Head, fields: Sequence[str], with_value: bool) -> tuple[Any, Any]:
    """The value if it is wanted, and the gradients in the order of the fields if there are any."""
    losses = np.zeros(len(head.X), head.X.dtype) if head.how == "none" else None
    total = 0.0
    sums = _Sums(head, fields)
    sums.add_penalty(head.factor * head.l2, head.W)
    for tile in head.tiles():
        value: Any = 0.0
        if not fields:
            value = tile.value()
        else:
            derivative = cross_entropy.value_and_grad if with_value else cross_entropy.grad
            result = tile.derive(derivative, out=tile.Z)
            value, G = result if with_value else (value, result)
            sums.add(G, tile.X)
            if "X" in sums.parts:
                sums.parts["X"][tile.rows] = G @ head.W
        if losses is None:
            total += value
        else:
            losses[tile.rows] = value
    if losses is not None:
        return losses, sums.named("Gradient")
    value = total / head.divisor if head.divisor else math.nan
    return value + _penalty(head) if with_value else None, sums.named("Gradient")


def _penalty(head: _Head) -> float:
    if not head.l2:  # 0 * inf is not 0
        return 0.0
    wide = (head.W[rows].astype(np.float64) for rows in _pieces(head.W, head.memory // 128))
    return head.l2 / 2 * sum(float(np.vdot(w, w)) for w in wide)


@np.errstate(all="ignore")
def _second_order(head: _Head, v: dict[str, FloatArray]) -> Any:
    """The Hessian times the directions `v`, in their order."""
    sums = _Sums(head, tuple(v))
    if "W" in v:
        sums.add_penalty(head.factor * head.l2, v["W"])
    for tile in head.tiles(buffers=2):
        D = tile.spare
        moved = _arrays.for_blas(v["X"][tile.rows]) if "X" in v else None
        if "W" in v:
            np.matmul(tile.X, v["W"].T, out=D)
            if moved is not None:
                _add_product(head.W, moved.T, D.T, head.memory // 16 // D.itemsize)
        elif moved is not None:
            np.matmul(moved, head.W.T, out=D)
        else:
            D.fill(0)
        if "bias" in v:
            D += v["bias"]
        R = tile.derive(cross_entropy.hvp, D, out=D)
        sums.add(R, tile.X)
        if moved is None:
            continue
        sums.parts["X"][tile.rows] = R @ head.W
        if "W" in v:
            G = tile.derive(cross_entropy.grad, out=tile.Z)
            _add_product(G.T, moved, sums.parts["W"], head.memory // 16 // D.itemsize)
            sums.parts["X"][tile.rows] += G @ v["W"]
    return sums.named("HessianProduct")


@np.errstate(all="ignore")
def _fisher_diag(head: _Head, fields: Sequence[str]) -> Any:
    sums = _Sums(head, fields)
    for tile in head.tiles():
        H = tile.derive(cross_entropy.hess_diag, out=tile.Z)
        sums.add(H, np.square(tile.X))
    return sums.named("FisherDiagonal")


# ---- named results -----------------------------------------------------------------------------


@functools.cache
def _tuple_type(kind: str, fields: tuple[str, ...]) -> Any:
    """A named tuple of these fields, whose instances pickle although no module holds the type."""

    def reduce(self: Any) -> Any:
        return _unpickled, (kind, fields, tuple(self))

    return type(kind, (namedtuple(kind, fields),), {"__slots__": (), "__reduce__": reduce})


def _unpickled(kind: str, fields: tuple[str, ...], parts: tuple[FloatArray, ...]) -> Any:
    return _tuple_type(kind, fields)(*parts)


linear_cross_entropy = LinearCrossEntropy()
