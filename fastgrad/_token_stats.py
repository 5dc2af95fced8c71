"""token_stats: what language models are evaluated by, from one reading of the logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fastgrad import _arrays
from fastgrad._arrays import BoolArray, FloatArray, IntArray
from fastgrad._kernels import stats as _kernels


class TokenStats(NamedTuple):
    """Statistics of rows of logits: what `token_stats` returns.

    Attributes
    ----------
    nll : ndarray
        Cross-entropy of the row, in the dtype of the logits; 0 if the row is ignored.
    logsumexp : ndarray
        Logarithm of the sum of the exponentials, in the dtype of the logits.
    argmax : ndarray of int64
        The class with the largest logit, the first of several.
    correct : ndarray of bool
        Is that the target?  False if the row is ignored.
    entropy : ndarray
        Entropy of the softmax in nats, in the dtype of the logits.
    rank : ndarray of int64
        How many classes come before the target; -1 if the row is ignored.

    Examples
    --------
    >>> import fastgrad as fg
    >>> fg.TokenStats._fields
    ('nll', 'logsumexp', 'argmax', 'correct', 'entropy', 'rank')
    """

    nll: FloatArray
    logsumexp: FloatArray
    argmax: IntArray
    correct: BoolArray
    entropy: FloatArray
    rank: IntArray


def token_stats(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    axis: int = -1,
    ignore_index: int | None = -100,
) -> TokenStats:
    r"""Loss, prediction, confidence and rank of the target for every row of logits.

    Parameters
    ----------
    logits : array_like of floats, shape (..., C, ...)
        Scores, any strides, the classes along `axis`.  float16 and bfloat16 (of `ml_dtypes`) are
        read natively and computed in float32, the results rounded once; integers and bools become
        float64.  A memory map is read in place.
    target : array_like of int or bool
        Class indices in [0, C), or `ignore_index`, with the shape of `logits` without `axis`.
    axis : int, default -1
        The class axis.
    ignore_index : int or None, default -100
        A row with this target has nll 0, correct False and rank -1; what does not depend on the
        target is given all the same.

    Returns
    -------
    TokenStats
        Named tuple of arrays with the shape of `target`: nll, logsumexp, argmax, correct, entropy,
        rank.

    Raises
    ------
    IndexError
        For a target outside [0, C) that is not `ignore_index`, naming the first one.
    TypeError
        For targets that are not integers, and for logits as in `softmax`.
    ValueError
        For a target of another shape, or no classes.

    See Also
    --------
    cross_entropy, logsumexp

    Notes
    -----
    With `p` the softmax of a row and `y` its target,

    .. math:: \mathrm{nll} = -\log p_y, \qquad
              \mathrm{entropy} = -\sum_c p_c \log p_c
              = \log \frac{S}{e_{\max}} + \frac{1}{S} \sum_c e_c (z_{\max} - z_c),

    :math:`e_c` the exponentials and `S` their sum.  Every term is >= 0 and none is subtracted, so
    all three floats have full relative accuracy (4 eps), the nll and entropy of the most confident
    rows included.  The exponential of the mean nll over the rows not ignored is the perplexity; the
    mean of ``rank < k`` is the top-k accuracy.

    Sorted by falling logit, ties by rising index, the target stands at position `rank`; so
    ``rank == 0`` exactly where `correct`, and it costs no sort.

    A row with NaN has nll, logsumexp and entropy NaN, argmax at the first NaN (as np.argmax),
    correct False and rank -1.  With +inf, or -inf alone, nll and entropy are NaN and logsumexp is
    that infinity, but argmax and rank are as ever.  -inf elsewhere adds nothing to the entropy.
    No rows give empty arrays.  Nothing warns.

    A row is read from memory once, and nothing of its size is allocated (a strided row is packed
    into one line per thread).  A row's results do not depend on the other rows or on threads, to
    the last bit.

    References
    ----------
    .. [1] P. Blanchard, D. J. Higham and N. J. Higham, "Accurately computing the log-sum-exp and
       softmax functions", IMA J. Numer. Anal. 41(4), 2021, doi:10.1093/imanum/draa038.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> logits = np.array([[0.0, 1.0, 2.0], [40.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    >>> stats = fg.token_stats(logits, [1, 0, -100])
    >>> stats.nll
    array([1.40760596e+00, 8.49670851e-18, 0.00000000e+00])
    >>> stats.rank, stats.correct
    (array([ 1,  0, -1]), array([False,  True, False]))
    >>> round(float(np.exp(stats.nll[:2].mean())), 6)
    2.021426
    """
    z = _arrays.as_scores(logits, "logits")
    shape = z.shape
    z = z.reshape(1) if z.ndim == 0 else z
    i = _arrays.one_axis(axis, z.ndim, "logits")
    classes = z.shape[i]
    _arrays.check_classes(classes, i)
    y = _arrays.as_class_indices(target, z, shape, i)
    ignored = _arrays.check_ignore_index(ignore_index)
    _arrays.check_range(y, classes, ignored)
    record = np.empty(y.shape, _record(_arrays.computed(z.dtype)))
    if record.size:
        _kernels.token_stats(z, y, i, ignored, record)

    def field(name: str) -> Any:
        a = np.ascontiguousarray(record[name]).reshape(y.shape)
        return (_arrays.cast(a, z.dtype) if a.dtype.kind == "f" else a)[()]

    rank = field("rank")
    return TokenStats(
        field("nll"), field("logsumexp"), field("argmax"), rank == 0, field("entropy"), rank
    )


def _record(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What the kernel writes for a row, laid out as C does it."""
    floats = [(name, dtype) for name in ("nll", "logsumexp", "entropy")]
    return np.dtype([*floats, ("argmax", np.int64), ("rank", np.int64)], align=True)
