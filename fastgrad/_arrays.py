"""The border: the only place that coerces and rejects what users pass.

Behind it every array is an ndarray of a float type that the kernels read, aligned and in native
byte order, every axis is an int in range, and every target lies in [0, C) or is ignored.
All checks come before anything is written.  A message says what must hold, what was found, where,
and what to do.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastgrad._kernels import cross_entropy as _kernels
from fastgrad._kernels import hinge as _signs
from fastgrad._kernels import sort as _sort

FloatArray: TypeAlias = NDArray[np.floating[Any]]
BoolArray: TypeAlias = NDArray[np.bool_]
IntArray: TypeAlias = NDArray[np.integer[Any]]
Axes: TypeAlias = int | Sequence[int] | None

BY_WHERE = "where=~np.ma.getmaskarray(x)"
BY_IDS = "leave its masked rows out by ignore_index"

_NATIVE = (np.dtype(np.float32), np.dtype(np.float64))


def is_half(dtype: np.dtype[Any]) -> bool:
    """float16, or the bfloat16 of ml_dtypes, which is known by its name: we never import it."""
    return dtype.itemsize == 2 and dtype.name in ("float16", "bfloat16")


class _Bfloat16(NamedTuple):
    """What `np.finfo` would say of bfloat16: float32 with 7 stored bits of the significand."""

    eps: float = 2.0**-7
    nmant: int = 7
    minexp: int = -126
    max: float = (2 - 2.0**-7) * 2.0**127


def finfo(dtype: np.dtype[Any]) -> Any:
    """`np.finfo`, of bfloat16 too."""
    return _Bfloat16() if dtype.itemsize == 2 and dtype.name == "bfloat16" else np.finfo(dtype)


def computed(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type that the kernels compute in for scores of this one."""
    return _NATIVE[0] if is_half(dtype) else dtype


def as_scores(x: ArrayLike, name: str, leave_out: str = "") -> FloatArray:
    """Floats that the kernels read; integers and bools become float64.

    `leave_out` says how the function leaves out what a masked array masks.
    """
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(
            f"{name} must be a plain array; got a masked array, whose mask would be lost. Pass "
            + (f"{name}=x.filled(0) and {leave_out}." if leave_out else "x.data or x.filled(0).")
        )
    a = np.asarray(x)
    if a.dtype not in _NATIVE:  # equality also holds only for native byte order
        a = _converted(a, name)
    return a if a.flags.aligned else a.copy()


def _converted(a: NDArray[Any], name: str) -> FloatArray:
    kind, size = a.dtype.kind, a.dtype.itemsize
    if is_half(a.dtype) and a.dtype.isnative:
        return a
    if (kind == "f" and size in (4, 8)) or is_half(a.dtype):
        return a.astype(a.dtype.newbyteorder("="))
    if kind in "biu":
        return a.astype(np.float64)
    if kind == "f":
        raise TypeError(
            f"{name} must be float16, bfloat16, float32 or float64; got {a.dtype.name}, which "
            f"would lose digits. Use {name}.astype(np.float64) if float64 is enough."
        )
    if kind == "c":
        raise TypeError(
            f"{name} must be real; got {a.dtype.name}. Use {name}.real if the imaginary part is 0."
        )
    raise TypeError(
        f"{name} must be an array of numbers; got dtype {a.dtype}. "
        "If it holds rows of unequal length or text, make it rectangular and numeric first, "
        "for example with np.asarray(x, dtype=np.float64)."
    )


def one_axis(axis: int, ndim: int, name: str) -> int:
    """The axis as an index in [0, ndim); a 0-d array counts as one element."""
    ndim = max(ndim, 1)
    try:
        i = operator.index(axis)
    except TypeError:
        raise TypeError(f"axis must be an int; got {axis!r} ({type(axis).__name__}).") from None
    if not -ndim <= i < ndim:
        raise np.exceptions.AxisError(
            f"axis must be in [{-ndim}, {ndim}) for {name} of {ndim} dimension"
            f"{'s' if ndim > 1 else ''}; got {i}."
        )
    return i % ndim


def some_axes(axis: Axes, ndim: int, name: str) -> tuple[int, ...]:
    """One or several axes as sorted indices; None means all of them."""
    if axis is None:
        return tuple(range(max(ndim, 1)))
    if isinstance(axis, Sequence):
        axes = sorted(one_axis(i, ndim, name) for i in axis)
        if len(set(axes)) < len(axes):
            raise ValueError(f"axis must not name an axis twice; got {tuple(axis)!r}.")
        return tuple(axes)
    return (one_axis(axis, ndim, name),)


def check_temperature(t: float) -> float:
    value = _real(t, "temperature")
    if not 1e-30 <= value <= 1e30:  # NaN too; beyond, x / temperature leaves the range of float32
        raise ValueError(
            f"temperature must be > 0, between 1e-30 and 1e30; got {value!r}. "
            "For a winner that takes all, use argmax."
        )
    return value


def check_between(x: float, name: str, low: float, high: float) -> float:
    """A finite number in [low, high]."""
    value = _real(x, name)
    if not (low <= value <= high and math.isfinite(value)):
        bounds = f"in [{low:g}, {high:g}]" if high < math.inf else f"finite and >= {low:g}"
        raise ValueError(f"{name} must be {bounds}; got {value!r}.")
    return value


def check_margin(margin: float, dtype: np.dtype[Any]) -> float:
    """A margin >= 0 that is finite in the type computed in too."""
    value = check_between(margin, "margin", 0.0, math.inf)
    if value < 1e38:  # fits each type, and finfo takes long
        return value
    largest = float(finfo(computed(dtype)).max)
    return check_between(value, "margin", 0.0, largest) if value > largest else value


def _real(x: Any, name: str) -> float:
    if isinstance(x, np.ndarray) and x.ndim > 0:
        raise TypeError(f"{name} must be one number; got an array of shape {x.shape}.")
    try:
        if isinstance(x, str):
            raise TypeError
        return float(x)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a real number; got {x!r}.") from None


def as_where(where: ArrayLike | None, shape: tuple[int, ...], name: str) -> BoolArray | None:
    """A mask of the given shape, broadcast as a ufunc does it; True keeps."""
    if where is None:
        return None
    if isinstance(where, np.ma.MaskedArray):
        raise TypeError(
            "where must be a plain array; got a masked array, whose mask would be lost. "
            "Pass where=where.filled(False)."
        )
    mask = np.asarray(where)
    if mask.dtype != np.bool_:
        raise TypeError(
            f"where must be boolean (True keeps an element); got dtype {mask.dtype}. "
            "Use where=mask.astype(bool), or where=mask != 0."
        )
    return _broadcast(mask, shape, "where", name)


def as_factors(b: ArrayLike, x: FloatArray) -> FloatArray:
    """Factors of the terms of logsumexp, broadcast to x and cast to fit it."""
    return _broadcast(_fitted(as_scores(b, "b"), x.dtype), x.shape, "b", "a")


def cast(a: FloatArray, dtype: np.dtype[Any]) -> FloatArray:
    """The scores decide the dtype; what is too large for it becomes infinite, quietly, and what is
    too small loses digits.
    """
    if a.dtype == dtype:
        return a
    with np.errstate(over="ignore", under="ignore"):
        return a.astype(dtype, copy=False)


def _fitted(a: FloatArray, dtype: np.dtype[Any]) -> FloatArray:
    """Numbers that go with scores of this dtype: of the same, or of the type computed in."""
    return a if a.dtype == dtype else cast(a, computed(dtype))


def _broadcast(a: NDArray[Any], shape: tuple[int, ...], what: str, name: str) -> NDArray[Any]:
    try:
        return np.broadcast_to(a, shape)
    except ValueError:
        raise ValueError(
            f"{what} must broadcast to the shape of {name}, {shape}; it has shape {a.shape}."
        ) from None


def as_cotangent(
    g: ArrayLike, shape: tuple[int, ...], dtype: np.dtype[Any], name: str
) -> FloatArray:
    """A vector for a derivative: exactly this shape, cast to the dtype of the scores (for half
    precision to float32, unless it has that very dtype).
    """
    a = as_scores(g, name)
    if a.shape != shape:
        raise ValueError(f"{name} must have shape {shape}; it has shape {a.shape}.")
    return _fitted(a, dtype)


# ---- results ----------------------------------------------------------------------------------


def as_out(
    out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], **inputs: NDArray[Any] | None
) -> FloatArray:
    """The memory of `out` if it can take the result; it may be the first of `inputs`, but overlap
    none.

    As a plain array, for one of a subclass may not reshape and slice as such (np.matrix does not).
    What the user gets back is `out` itself.
    """
    if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"out must be a NumPy array; got {type(out).__name__}.")
    array: FloatArray = np.asarray(out)
    if array.shape != shape:
        raise ValueError(f"out must have shape {shape}; it has shape {array.shape}.")
    if array.dtype != dtype:
        raise TypeError(
            f"out must have the dtype of the result, {dtype}; it has {array.dtype}. "
            f"Use np.empty({shape}, {'ml_dtypes' if dtype.kind == 'V' else 'np'}.{dtype})."
        )
    if not array.flags.writeable:
        raise ValueError("out must be writeable; it is read-only.")
    if not array.flags.aligned:
        raise ValueError("out must be aligned in memory; it is not. Use a fresh np.empty.")
    flags = array.flags
    if not (flags.c_contiguous or flags.f_contiguous) and _overlaps_itself(array):
        raise ValueError(
            f"out must not overlap itself; its strides {array.strides} visit some memory twice. "
            "Use a fresh np.empty, not a broadcast or windowed view."
        )
    for i, (name, a) in enumerate(inputs.items()):
        # The bounds first: they are cheap and mostly enough.
        if a is None or not np.may_share_memory(a, array) or (i == 0 and _same_view(a, array)):
            continue
        if np.shares_memory(a, array):
            raise ValueError(
                f"out must {'be ' + name + ' itself or ' if i == 0 else ''}not overlap {name}; "
                "they share part of their memory. Use a fresh np.empty."
            )
    return array


def returned(result: FloatArray, out: FloatArray | None) -> FloatArray:
    """What the user gets: `out` if it was given, else what was made, as a scalar if it has no
    axes.
    """
    if out is not None:
        return out
    scalar: FloatArray = result[()]
    return result if result.ndim else scalar


def _same_view(a: NDArray[Any], b: NDArray[Any]) -> bool:
    if a.shape != b.shape:
        return False
    # Strides of axes of one element mean nothing.
    strides = [(s, t) for n, s, t in zip(a.shape, a.strides, b.strides, strict=True) if n > 1]
    return a.ctypes.data == b.ctypes.data and all(s == t for s, t in strides)


def _overlaps_itself(a: NDArray[Any]) -> bool:
    """Sufficient test: sorted by stride, each axis steps over all that the smaller ones span."""
    span = a.itemsize
    for stride, n in sorted((abs(s), n) for s, n in zip(a.strides, a.shape, strict=True) if n > 1):
        if stride < span:
            return a.size > 0
        span = stride * (n - 1) + span
    return False


# ---- targets ----------------------------------------------------------------------------------


def as_indices(a: ArrayLike) -> NDArray[Any]:
    """An array; a list without elements is one of integers, though NumPy makes float64 of it."""
    array = np.asarray(a)
    return array.astype(np.int64) if array.size == 0 and isinstance(a, (list, tuple)) else array


def as_target(
    target: ArrayLike, logits: FloatArray, shape: tuple[int, ...], axis: int, name: str = "logits"
) -> tuple[NDArray[Any], bool]:
    """Class indices, one for every row of logits, their range not checked; or (True) probabilities.

    `shape` and `name` are what the user sees of logits, which has at least one axis.
    """
    if isinstance(target, np.ma.MaskedArray):
        raise TypeError(
            "target must be a plain array; got a masked array, whose mask would be lost. "
            "Pass target=y.filled(-100): rows with ignore_index=-100 are left out."
        )
    y = as_indices(target)
    rows = logits.shape[:axis] + logits.shape[axis + 1 :]
    if y.dtype.kind in "biu":
        if y.shape != rows:
            raise ValueError(_wrong_rows(y, logits, rows, axis, name))
        return (
            y if y.flags.aligned and y.dtype.isnative else y.astype(y.dtype.newbyteorder("=")),
            False,
        )
    if not _is_real(y):
        raise TypeError(
            f"target must hold class indices (integers) or probabilities (floats); got dtype "
            f"{y.dtype}. Map the classes to 0, 1, ..., for example by "
            "np.unique(y, return_inverse=True)."
        )
    if y.shape != shape:
        raise _not_probabilities(y, shape, rows, name)
    t = _fitted(as_scores(y, "target"), logits.dtype)
    check_fit(t, "target", "a probability, finite and >= 0")
    return t.reshape(logits.shape), True


def as_class_indices(
    target: ArrayLike, logits: FloatArray, shape: tuple[int, ...], axis: int, name: str = "logits"
) -> IntArray:
    """Class indices, one for every row of logits, their range not checked."""
    y, soft = as_target(target, logits, shape, axis, name)
    if soft:
        raise TypeError(
            f"target must hold class indices (integers); got probabilities of shape {shape}. "
            f"If the largest names the class, pass target.argmax({axis})."
        )
    return y


def as_binary_target(
    target: ArrayLike, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Zeros and ones as integers or bools, or probabilities as floats of `dtype`."""
    y = as_indices(target)
    if y.dtype.kind not in "biu" or isinstance(target, np.ma.MaskedArray):
        y = cast(as_scores(target, "target", BY_WHERE), dtype)
    _check_elements(y, shape, "logits")
    if _is_real(y):
        check_fit(y, "target", "a probability in [0, 1]", 1.0)
        return y
    y = y if y.flags.aligned and y.dtype.isnative else y.astype(y.dtype.newbyteorder("="))
    bad, _ = _kernels.scan(y, 2, None)
    if bad >= 0:
        where = tuple(int(i) for i in np.unravel_index(bad, shape))
        place = f"target[{', '.join(map(str, where))}]" if where else "target"
        message = f"target must hold 0 and 1, or probabilities as floats; {place} is {y[where]}."
        if y[where] == -1:
            message += " If the classes are -1 and 1, pass (target + 1) // 2."
        raise ValueError(message)
    return y


def as_signed_target(target: ArrayLike, shape: tuple[int, ...]) -> NDArray[Any]:
    """Bools, or integers that are all -1 or 1, of the shape of scores."""
    if isinstance(target, np.ma.MaskedArray):
        raise TypeError(
            "target must be a plain array; got a masked array, whose mask would be lost. "
            "Pass target=y.filled(1) and where=~np.ma.getmaskarray(y)."
        )
    y = as_indices(target)
    allowed = "target must hold bools, or the integers -1 and 1"
    if y.dtype.kind not in "biu":
        hint = " If its sign tells the class, pass target > 0." if _is_real(y) else ""
        raise TypeError(f"{allowed}; got dtype {y.dtype}.{hint}")
    _check_elements(y, shape, "scores")
    y = y if y.flags.aligned and y.dtype.isnative else y.astype(y.dtype.newbyteorder("="))
    bad = -1 if y.dtype.kind == "b" else _signs.first_unsigned(y)
    if bad >= 0:
        where = tuple(int(i) for i in np.unravel_index(bad, shape))
        place = f"target[{', '.join(map(str, where))}]" if where else "target"
        hint = " If the classes are 0 and 1, pass target == 1." if y[where] == 0 else ""
        raise ValueError(f"{allowed}; {place} is {y[where]}.{hint}")
    return y


def _check_elements(y: NDArray[Any], shape: tuple[int, ...], name: str) -> None:
    """A target for every element."""
    if y.shape != shape:
        hint = "Nothing is broadcast"
        if y.size == math.prod(shape) and y.ndim != len(shape):
            hint += f": pass target.reshape({shape})"
        raise ValueError(
            f"target must have the shape of {name}, {shape}; it has shape {y.shape}. {hint}."
        )


def _is_real(a: NDArray[Any]) -> bool:
    return a.dtype.kind == "f" or is_half(a.dtype)


def _not_probabilities(
    y: NDArray[Any], shape: tuple[int, ...], rows: tuple[int, ...], name: str
) -> Exception:
    if y.ndim > len(shape):
        return TypeError(
            f"target must hold class indices of shape {rows}, or probabilities of the shape of "
            f"{name}, {shape}; got {y.dtype} of shape {y.shape}. The order is ({name}, target)."
        )
    if y.shape == rows:
        return TypeError(
            f"target must hold integers if it names one class per row; got dtype {y.dtype}. "
            "Use target.astype(np.int64) if the values are whole numbers."
        )
    return ValueError(
        f"target must have the shape of {name}, {shape}, if it holds probabilities; it has shape "
        f"{y.shape}. Nothing is broadcast."
    )


def _wrong_rows(
    y: NDArray[Any], logits: FloatArray, rows: tuple[int, ...], axis: int, name: str
) -> str:
    start = (
        f"target must have shape {rows}, that of {name} {logits.shape} without the class axis "
        f"{axis}; it has shape {y.shape}."
    )
    if y.shape == logits.shape:
        return f"{start} If it is one-hot, pass target.argmax({axis})."
    if y.size == math.prod(rows) and y.ndim == len(rows) + 1:
        return f"{start} Nothing is broadcast: pass target.reshape({rows})."
    if y.ndim > logits.ndim:
        return f"{start} The order of the arguments is ({name}, target)."
    if y.ndim == len(rows) and logits.ndim > 2 and sorted(y.shape) != sorted(rows):
        return f"{start} If another axis holds the classes, say axis=."
    return start


def check_ignore_index(ignore_index: int | None, soft: bool = False) -> int | None:
    if ignore_index is None:
        return None
    if soft and ignore_index != -100:
        raise ValueError(
            f"ignore_index must be left out where target holds probabilities; got {ignore_index!r}."
            " Leave rows out by sample_weight 0."
        )
    try:
        i = operator.index(ignore_index)
    except TypeError:
        raise TypeError(f"ignore_index must be an int or None; got {ignore_index!r}.") from None
    if not -(2**63) <= i < 2**63:
        raise ValueError(f"ignore_index must fit in int64; got {i}.")
    return i


def check_range(y: IntArray, classes: int, ignore_index: int | None) -> int:
    """Number of rows that are kept; IndexError for the first target that is no class."""
    bad, kept = _kernels.scan(y, classes, ignore_index)
    if bad < 0:
        return kept
    where = tuple(int(i) for i in np.unravel_index(bad, y.shape))
    value = int(y[where])
    place = f"target[{', '.join(map(str, where))}]" if where else "target"
    allowed = f"in [0, {classes})"
    if ignore_index is not None:
        allowed += f" or equal to ignore_index={ignore_index}"
    message = f"target must be {allowed}; {place} is {value}."
    if value == -1:
        message += " If -1 marks rows to leave out, pass ignore_index=-1."
    elif value < 0:
        message += " Negative indices do not count from the end."
    elif value == classes and int(y.min(initial=value)) >= 1:
        message += " Classes count from 0: if yours count from 1, pass target - 1."
    raise IndexError(message)


def check_reduction(reduction: str | None) -> str:
    if reduction is None:
        return "none"
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none'; got {reduction!r}.")
    return reduction


def check_classes(classes: int, axis: int, name: str = "logits") -> None:
    if classes == 0:
        raise ValueError(f"{name} must have at least one class; axis {axis} has length 0.")


def check_variant(variant: str, divide: str) -> None:
    """Which classes a multiclass hinge counts, and whether it is divided by their number."""
    if variant not in ("crammer_singer", "weston_watkins"):
        raise ValueError(f"variant must be 'crammer_singer' or 'weston_watkins'; got {variant!r}.")
    if divide not in ("one", "k"):
        raise ValueError(f"divide must be 'one' or 'k'; got {divide!r}.")
    if divide == "k" and variant == "crammer_singer":
        raise ValueError(
            "divide must be 'one' with variant='crammer_singer', which counts one class only; got "
            "'k'. PyTorch's multi_margin_loss is variant='weston_watkins' with divide='k'."
        )


def check_normalizer(normalizer: float | None, reduction: str) -> float | None:
    """What the mean is divided by, None for the weight of the rows kept."""
    if normalizer is None:
        return None
    if reduction != "mean":
        raise ValueError(
            f"normalizer must go with reduction='mean', which it divides by; got "
            f"reduction={reduction!r}. Drop it, or use reduction='mean'."
        )
    value = _real(normalizer, "normalizer")
    if not 0 < value < math.inf:
        raise ValueError(f"normalizer must be finite and > 0; got {value!r}.")
    return value


# ---- weights ----------------------------------------------------------------------------------


def _as_weights(weight: ArrayLike, name: str, dtype: np.dtype[Any], mean: bool = False) -> Any:
    """Weights in the type computed in, of which only those are 0 that were given as 0.

    Weights of a mean may be multiplied by a common factor, so that they keep their ratios.
    """
    given = as_scores(weight, name)
    w = cast(given, computed(dtype))
    if w.dtype.itemsize >= given.dtype.itemsize or w.all():
        return w
    if mean and ((w == 0) & (given != 0)).any():
        w = cast(np.asarray(balanced(given)), computed(dtype))
    return as_zero_as(w, given)


def as_zero_as(w: FloatArray, given: FloatArray) -> FloatArray:
    """Rounded weights, the smallest number in place of a 0 that was none."""
    lost = (w == 0) & (given != 0)
    least = np.finfo(w.dtype).smallest_subnormal
    return np.where(lost, np.copysign(least, given).astype(w.dtype), w) if lost.any() else w


def as_class_weight(
    weight: ArrayLike | None, classes: int, dtype: np.dtype[Any]
) -> FloatArray | None:
    """One contiguous weight per class, in the type computed in."""
    if weight is None:
        return None
    w = np.ascontiguousarray(_as_weights(weight, "weight", dtype))
    if np.shape(weight) != (classes,):
        raise ValueError(
            f"weight must have shape ({classes},), one number per class; it has shape "
            f"{np.shape(weight)}. Weights of rows go to sample_weight."
        )
    check_fit(w, "weight", "finite and >= 0")
    return w


def as_row_weight(
    sample_weight: ArrayLike | None,
    rows: tuple[int, ...],
    dtype: np.dtype[Any],
    mean: bool = False,
) -> FloatArray | None:
    """One weight per row, in the type computed in; for a `mean`, any multiple of them."""
    if sample_weight is None:
        return None
    s: FloatArray = _as_weights(sample_weight, "sample_weight", dtype, mean)
    if s.shape != rows:
        raise ValueError(
            f"sample_weight must have shape {rows}, one number per row; it has shape {s.shape}. "
            "Nothing is broadcast; weights of classes go to weight."
        )
    check_fit(s, "sample_weight", "finite and >= 0")
    return s


def as_element_weight(
    weight: ArrayLike | None,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    scores: str = "logits",
    mean: bool = False,
) -> FloatArray | None:
    """A weight for every element of the scores, broadcast to them, in the type computed in; for a
    `mean`, any multiple of them.
    """
    if weight is None:
        return None
    w = _as_weights(weight, name, dtype, mean)
    broadcast = _broadcast(w, shape, name, scores)
    check_fit(w, name, "finite and >= 0")
    return broadcast


def check_fit(a: FloatArray, name: str, what: str, high: float = math.inf) -> None:
    """Every element in [0, high] and finite."""
    largest = min(high, float(finfo(a.dtype).max))
    bad = _kernels.first_unfit(a, largest)
    if bad >= 0:
        where = tuple(int(i) for i in np.unravel_index(bad, a.shape))
        place = f"{name}[{', '.join(map(str, where))}]" if where else name
        raise ValueError(f"{name} must be {what}; {place} is {float(a[where])} (as {a.dtype}).")


def as_grad_output(
    grad_output: ArrayLike | None, reduction: str, rows: tuple[int, ...], dtype: np.dtype[Any]
) -> tuple[float, FloatArray | None]:
    """An upstream derivative as a common factor and one factor per row."""
    if grad_output is None:
        return 1.0, None
    g = as_scores(grad_output, "grad_output")
    if g.ndim == 0:
        return float(g), None
    if reduction != "none" or g.shape != rows:
        raise ValueError(
            "grad_output must be one number"
            + (f", or have shape {rows}, one per row" if reduction == "none" else "")
            + f", with reduction={reduction!r}; it has shape {g.shape}."
        )
    return 1.0, cast(g, computed(dtype))


def check_kept(
    mask: BoolArray,
    target: NDArray[Any],
    soft: bool,
    axis: int,
    weight: FloatArray | None,
    sample_weight: FloatArray | None,
    ignore_index: int | None,
    label_smoothing: float,
    dtype: np.dtype[Any],
) -> FloatArray | None:
    """Sample weights that are 0 where `mask` keeps no class; ValueError for a row that counts and
    has target mass on a class that is dropped.
    """
    if not soft:
        counted = np.True_ if ignore_index is None else target != ignore_index
        classes = np.expand_dims(np.where(counted, target, 0), axis)
        lost = ~np.take_along_axis(mask, classes, axis).squeeze(axis)
        if not lost.any():  # so every row keeps a class, too
            return sample_weight
    some = mask.any(axis=axis)
    if soft:
        bad = ((target > 0) & ~mask).any(axis=axis) & some
    else:
        bad = lost & some & counted
        if weight is not None and label_smoothing == 0.0:
            bad &= weight[classes.squeeze(axis)] != 0
    if sample_weight is not None:
        bad &= sample_weight != 0
    if bad.any():
        row = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
        place = f"row [{', '.join(map(str, row))}]" if row else "the row"
        what = (
            "a class whose target probability is > 0"
            if soft
            else f"the target's class, {int(target[row])}"
        )
        raise ValueError(
            f"where must keep every class that has target mass; {place} drops {what}. "
            "Keep it, or leave the row out by sample_weight 0."
        )
    if some.all():
        return sample_weight
    ones = np.ones((), computed(dtype)) if sample_weight is None else sample_weight
    return np.where(some, ones, np.zeros((), ones.dtype))


# ---- linear head -------------------------------------------------------------------------------


def as_matrix(a: ArrayLike, name: str) -> FloatArray:
    """Two dimensions of a float type that BLAS multiplies."""
    given = np.asarray(a)
    if _is_real(given) and given.dtype.itemsize == 2:
        raise TypeError(
            f"{name} must be float32 or float64, the types of BLAS; got {given.dtype.name}. "
            f"Use {name}.astype(np.float32)."
        )
    matrix = as_scores(a, name)
    if matrix.ndim != 2:
        hint = f" One row is {name}[None, :]." if matrix.ndim == 1 else ""
        raise ValueError(f"{name} must have 2 dimensions; it has shape {matrix.shape}.{hint}")
    return matrix


def as_head(W: ArrayLike, X: FloatArray) -> FloatArray:
    """Weights (K, d) that fit X (N, d), in its dtype, in a layout that BLAS reads."""
    integers = np.asarray(W).dtype.kind in "biu"
    w = as_matrix(W, "W")
    if w.shape[1] != X.shape[1]:
        hint = " Is it transposed? Pass W.T." if w.shape[0] == X.shape[1] else ""
        raise ValueError(
            f"W must have shape (classes, {X.shape[1]}), one weight for each column of X "
            f"{X.shape}; it has shape {w.shape}.{hint}"
        )
    if not integers and w.dtype != X.dtype:
        raise TypeError(
            f"W must have the dtype of X, {X.dtype}, or every call would convert it; it has "
            f"{w.dtype}. Convert it once: W.astype(np.{X.dtype}), or X to that of W."
        )
    return for_blas(cast(w, X.dtype))


def for_blas(a: FloatArray) -> FloatArray:
    """The matrix itself if BLAS reads its strides; else a copy, without which NumPy is slow."""
    size, strides = a.itemsize, a.strides
    for along, across, n in ((1, 0, a.shape[1]), (0, 1, a.shape[0])):
        if strides[along] == size and strides[across] >= n * size and strides[across] % size == 0:
            return a
    return np.ascontiguousarray(a)


def as_bias(bias: ArrayLike | None, classes: int, dtype: np.dtype[Any]) -> FloatArray | None:
    if bias is None:
        return None
    b = cast(as_scores(bias, "bias"), dtype)
    if b.shape != (classes,):
        raise ValueError(
            f"bias must have shape ({classes},), one number for each row of W; it has shape "
            f"{b.shape}."
        )
    return b


def as_flat(theta: ArrayLike, size: int, name: str) -> FloatArray:
    """All parameters in one vector."""
    flat = as_scores(theta, name)
    if flat.shape != (size,):
        raise ValueError(
            f"{name} must have shape ({size},), all of W and then the bias if there is one; it has "
            f"shape {flat.shape}."
        )
    return flat


def check_wrt(wrt: Sequence[str], known: tuple[str, ...]) -> tuple[str, ...]:
    """Some of the known names, each once."""
    names = ", ".join(map(repr, known))
    if isinstance(wrt, str) or not isinstance(wrt, Sequence):
        hint = f" Use wrt=({wrt!r},)." if wrt in known else ""
        raise TypeError(f"wrt must be a sequence of names out of {names}; got {wrt!r}.{hint}")
    if not wrt or len(set(wrt)) < len(wrt) or not set(wrt) <= set(known):
        raise ValueError(f"wrt must hold some of {names}, each once; got {tuple(wrt)!r}.")
    return tuple(wrt)


def as_directions(
    v: Sequence[ArrayLike],
    wrt: Sequence[str] | None,
    shapes: dict[str, tuple[int, ...]],
    dtype: np.dtype[Any],
) -> dict[str, FloatArray]:
    """The parts of a direction by the names of what they move."""
    if not isinstance(v, (tuple, list)):
        raise TypeError(
            f"v must be a tuple with an array for each name in wrt; got {type(v).__name__}. "
            "A single one is (v,)."
        )
    known = tuple(shapes)
    names = (
        known[: len(v)] if wrt is None and v else check_wrt(known if wrt is None else wrt, known)
    )
    if len(v) != len(names):
        raise ValueError(
            f"v must hold {len(names)} arrays, one each for {names}; it holds {len(v)}."
        )
    return {
        name: for_blas(a) if a.ndim == 2 else a
        for name, part in zip(names, v, strict=True)
        for a in [as_cotangent(part, shapes[name], dtype, f"v[{names.index(name)}] (of {name})")]
    }


def check_l2(l2: float, reduction: str) -> float:
    value = check_between(l2, "l2", 0.0, math.inf)
    if value and reduction == "none":
        raise ValueError(
            f"l2 must be 0 with reduction='none', whose rows would each count the penalty; got "
            f"{value!r}. Add it to their sum."
        )
    return value


def check_no_penalty(l2: float, z_loss: float) -> None:
    for name, value in (("l2", l2), ("z_loss", z_loss)):
        if value:
            raise ValueError(
                f"{name} must be 0 for fisher_diag, which is the information in the data; got "
                f"{value!r}. Add what a penalty curves by yourself."
            )


def check_count(n: int, name: str) -> int:
    try:
        i = operator.index(n)
    except TypeError:
        raise TypeError(f"{name} must be an int; got {n!r}.") from None
    if i < 1:
        raise ValueError(f"{name} must be at least 1; got {i}.")
    return i


def check_reduced(reduction: str | None) -> str:
    how = check_reduction(reduction)
    if how == "none":
        raise ValueError("reduction must be 'mean' or 'sum', one number to minimise; got 'none'.")
    return how


# ---- segments ----------------------------------------------------------------------------------


def refuse_bare_segments() -> None:
    raise TypeError(
        "Segments must be made by Segments.from_ids(ids), Segments.from_lengths(lengths) or "
        "Segments.from_offsets(offsets)."
    )


def refuse_change_of_segments(name: str) -> NoReturn:
    raise AttributeError(
        f"{name} of Segments must not change, for results were made of it; make others by "
        "Segments.from_ids(ids)."
    )


def _as_integers(a: ArrayLike, name: str, what: str, fill: str) -> IntArray:
    if isinstance(a, np.ma.MaskedArray):
        raise TypeError(
            f"{name} must be a plain array; got a masked array, whose mask would be lost. "
            f"Pass {name}.{fill}."
        )
    integers = as_indices(a)
    if integers.dtype.kind not in "biu":
        raise TypeError(
            f"{name} must hold {what} (integers); got dtype {integers.dtype}. Use "
            f"{name}.astype(np.int64) if the values are whole numbers, or number what they name by "
            f"np.unique({name}, return_inverse=True)."
        )
    return integers


def as_ids(ids: ArrayLike, name: str) -> IntArray:
    """The segment of every row, C-contiguous; the range is not checked."""
    fill = "filled(-1) and ignore_index=-1"
    what = "class" if name == "labels" else "segment"
    a = _as_integers(ids, name, f"the {what} of every row", fill)
    if a.ndim not in (1, 2):
        raise ValueError(
            f"{name} must have shape (N,), or (B, N) for a batch of items; it has shape {a.shape}."
        )
    if a.flags.c_contiguous and a.flags.aligned and a.dtype.isnative:
        return a
    return np.require(a, a.dtype.newbyteorder("="), ["C", "A"])


def _as_consecutive(a: ArrayLike, name: str, what: str, fill: str) -> NDArray[np.int64]:
    integers = _as_integers(a, name, what, fill)
    if integers.ndim != 1:
        raise ValueError(f"{name} must have one dimension; it has shape {integers.shape}.")
    if integers.dtype == np.uint64 and integers.max(initial=0) >= 2**63:
        raise ValueError(f"{name} must fit in int64; got {integers.max()}.")
    return integers.astype(np.int64)


def offsets_of_lengths(lengths: ArrayLike) -> NDArray[np.int64]:
    """Where consecutive segments of these lengths begin, and the last ends."""
    sizes = _as_consecutive(
        lengths,
        "lengths",
        "the number of rows of every segment",
        "filled(0): a segment without rows",
    )
    if sizes.min(initial=0) < 0:
        i = int((sizes < 0).argmax())
        raise ValueError(f"lengths must be >= 0; lengths[{i}] is {sizes[i]}.")
    offsets = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=offsets[1:])
    if offsets.min() < 0:  # a sum of non-negative numbers that wraps is negative at least once
        raise ValueError("lengths must sum to less than 2**63 rows; they sum to more.")
    return offsets


def as_offsets(offsets: ArrayLike) -> NDArray[np.int64]:
    """Where consecutive segments begin, and the last ends; a copy."""
    a = _as_consecutive(offsets, "offsets", "where every segment begins", "compressed()")
    if len(a) == 0 or a[0] != 0:
        found = f"offsets[0] is {a[0]}" if len(a) else "they are empty"
        raise ValueError(
            f"offsets must begin with 0; {found}. For n segments there are n + 1 offsets; if these "
            "are lengths, use Segments.from_lengths."
        )
    falls = a[1:] < a[:-1]
    if falls.any():
        i = int(falls.argmax())
        raise ValueError(
            f"offsets must not fall; offsets[{i}] is {a[i]} and offsets[{i + 1}] is {a[i + 1]}. "
            "If these are lengths, use Segments.from_lengths."
        )
    return a


def _option_of(name: str) -> str:
    """What a caller of `labels` or of ids says how many there are."""
    return "num_classes" if name == "labels" else "num_segments"


def numbers_of_segments(
    num_segments: ArrayLike, ids: IntArray, name: str
) -> tuple[int, NDArray[np.int64]]:
    """The number of segments of the result, and that of every item."""
    items, option = ids.shape[0] if ids.ndim == 2 else 1, _option_of(name)
    given = np.asarray(num_segments)
    if given.ndim == 0 and given.dtype.kind in "iu" and 0 <= given < 2**48:
        return int(given), np.full(items, given, np.int64)
    if given.dtype.kind not in "iu":
        raise TypeError(f"{option} must be an int, or an array of them; got {num_segments!r}.")
    if given.ndim > 0 and (ids.ndim == 1 or given.shape != (items,)):
        fits = f"or have shape ({items},), one for every item of " if ids.ndim == 2 else "for "
        raise ValueError(
            f"{option} must be one number, {fits}{name} of shape {ids.shape}; it has shape "
            f"{given.shape}."
        )
    least, most = (int(given.min()), int(given.max())) if given.size else (0, 0)
    if least < 0 or most >= 2**48:  # beyond any memory; B * K then fits in int64
        raise ValueError(
            f"{option} must be >= 0 and less than 2**48; got {least if least < 0 else most}."
        )
    return most, np.ascontiguousarray(np.broadcast_to(given.astype(np.int64), (items,)))


def check_ids(
    ids: IntArray, num_segments: int | ArrayLike | None, ignore_index: int | None, name: str
) -> int:
    """The number of segments; IndexError for the first id out of range that is not ignored, and
    ValueError for more segments than any memory holds.
    """
    if num_segments is None:
        largest = check_range_of_ids(ids, None, ignore_index, name)
        if largest >= 2**48:
            raise ValueError(
                f"{name} must be less than 2**48 where {_option_of(name)} is left out, for every "
                f"number up to the largest has a result; got {largest}. Number them from 0 on with "
                "np.unique(..., return_inverse=True)."
            )
        return largest + 1
    number, each = numbers_of_segments(num_segments, ids, name)
    check_range_of_ids(ids, each, ignore_index, name)
    return number


def check_range_of_ids(
    ids: IntArray, each: NDArray[np.int64] | None, ignore_index: int | None, name: str
) -> int:
    """The largest id, or -1, where no number is given for each item; IndexError as above."""
    bad, largest = _sort.scan(ids.reshape((1, *ids.shape)[-2:]), ignore_index, each)
    if bad < 0:
        return largest
    where = tuple(int(i) for i in np.unravel_index(bad, ids.shape))
    value = int(ids[where])
    place = f"{name}[{', '.join(map(str, where))}]"
    limit = None if each is None else int(each[where[0] if ids.ndim == 2 else 0])
    allowed = ">= 0 and less than 2**63 - 1" if limit is None else f"in [0, {limit})"
    if ignore_index is not None:
        allowed += f" or equal to ignore_index={ignore_index}"
    message = f"{name} must be {allowed}; {place} is {value}."
    if value < 0:
        message += f" To leave such rows out, pass ignore_index={value}."
    elif value == limit:
        what = name if name == "labels" else "ids"
        message += f" If all {what} are meant, pass {_option_of(name)}={value + 1} or more."
    raise IndexError(message)


def check_no_options_of_ids(**options: Any) -> None:
    """Beside a Segments, which has settled them."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(
                f"{name} must be left out beside a Segments, which has its own; got {value!r}. "
                "Pass it to Segments.from_ids."
            )


def as_data(data: ArrayLike, shape: tuple[int, ...]) -> FloatArray:
    """Floats with the axes of the rows first."""
    a = as_scores(data, "data", BY_IDS)
    if a.shape[: len(shape)] != shape:
        raise ValueError(
            f"data must have a shape that begins with that of segments, {shape}; it has shape "
            f"{a.shape}. Rows come first: segments (N,) or (B, N), data (N, ...) or (B, N, ...)."
        )
    return a


def as_segment_weights(
    weights: ArrayLike | None, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> FloatArray | None:
    """One contiguous weight per row, in the type computed in."""
    if weights is None:
        return None
    w = _as_weights(weights, "weights", dtype)
    if w.shape != shape:
        raise ValueError(
            f"weights must have the shape of segments, {shape}, one number per row; it has shape "
            f"{w.shape}. Nothing is broadcast."
        )
    check_fit(w, "weights", "finite and >= 0")
    return np.ascontiguousarray(w)


def balanced(weights: FloatArray | None) -> FloatArray | None:
    """Weights of a mean, times a power of two: their products then stay in range."""
    largest = 0.0 if weights is None or not weights.size else float(weights.max())
    if weights is None or largest == 0 or 2.0**-32 < largest < 2.0**32:
        return weights
    return scaled_weights(weights, -math.frexp(largest)[1])


@np.errstate(under="ignore")
def scaled_weights(weights: FloatArray, exponents: Any) -> FloatArray:
    """Weights times powers of two; none becomes 0."""
    return as_zero_as(np.asarray(np.ldexp(weights, exponents)), weights)


def check_empty_value(x: float) -> float:
    return _real(x, "empty_value")


# ---- boosting ----------------------------------------------------------------------------------


def as_raw_scores(scores: Any) -> NDArray[Any]:
    """What a library predicts; its dtype is checked by the loss."""
    if isinstance(scores, np.ma.MaskedArray):
        as_scores(scores, "scores")  # raises
    return np.asarray(scores)


def as_labels(target: Any) -> NDArray[Any]:
    """Labels of rows; their dtype is checked by the loss."""
    if isinstance(target, np.ma.MaskedArray):
        raise TypeError(
            "target must be a plain array; got a masked array, whose mask would be lost. Leave its "
            "masked rows out of the data, or give them weight 0."
        )
    y = np.asarray(target)
    if y.ndim == 0:
        raise ValueError(f"target must have one entry for each row; got the single number {y}.")
    return y


def check_training_rows(what: str, a: NDArray[Any], rows: int) -> None:
    if a.shape[:1] != (rows,):
        raise ValueError(
            f"{what} must have one entry for each of the {rows} rows of the scores; it has shape "
            f"{a.shape}. Parts of the data, as in cross-validation, need an objective of their own "
            "where it has a target."
        )


def as_training_weight(weight: ArrayLike, rows: int, dtype: np.dtype[Any]) -> FloatArray:
    """Weights of rows, of this dtype."""
    w: FloatArray = _as_weights(weight, "sample_weight", dtype)
    check_training_rows("sample_weight", w, rows)
    if w.ndim > 1:
        raise ValueError(
            f"sample_weight must have shape ({rows},), one number per row; it has shape {w.shape}."
        )
    check_fit(w, "sample_weight", "finite and >= 0")
    return w


# ---- centroids ---------------------------------------------------------------------------------


def as_rows(X: ArrayLike, name: str, leave_out: str = "") -> FloatArray:
    """Rows (N, d), or (B, N, d) of a batch."""
    x = as_scores(X, name, leave_out)
    if x.ndim not in (2, 3):
        hint = f" One column is {name}[:, None]." if x.ndim == 1 else ""
        raise ValueError(
            f"{name} must have shape (N, d), or (B, N, d) for a batch of items; it has shape "
            f"{x.shape}.{hint}"
        )
    return x


def check_labels(labels: tuple[int, ...], X: tuple[int, ...]) -> None:
    """The shape of labels is that of the rows of X."""
    if labels != X[:-1]:
        hint = ""
        if len(labels) == len(X) and labels[-1] == 1 and labels[:-1] == X[:-1]:
            hint = f" Nothing is broadcast: pass labels.reshape({X[:-1]})."
        raise ValueError(
            f"labels must have shape {X[:-1]}, one class for every row of X {X}; they have shape "
            f"{labels}.{hint}"
        )


def check_class_reduction(how: str) -> str:
    if how not in ("mean", "sum"):
        raise ValueError(f"class_reduction must be 'mean' or 'sum'; got {how!r}.")
    return how


def as_centroids(centroids: ArrayLike, X: FloatArray) -> FloatArray:
    """Centroids (K, d) or (B, K, d) that fit X, in the dtype it is computed in."""
    c = cast(as_scores(centroids, "centroids"), computed(X.dtype))
    batch, d = X.shape[:-2], X.shape[-1]
    if c.ndim != X.ndim or c.shape[:-2] != batch or c.shape[-1] != d:
        shape = ", ".join(map(str, (*batch, "K", d)))
        raise ValueError(
            f"centroids must have shape ({shape}), to fit X {X.shape}; they have shape {c.shape}."
        )
    return c


def as_matrix_of_rows(X: ArrayLike) -> FloatArray:
    x = as_rows(X, "X")
    if x.ndim != 2:
        raise ValueError(f"X must have shape (N, d); it has shape {x.shape}.")
    return x


def check_same_classes(segments: int, classes: int) -> None:
    if segments != classes:
        raise ValueError(
            f"labels must have num_segments={classes}, as the state; these Segments have "
            f"{segments}. Give it to Segments.from_ids."
        )


def check_merge(other: Any, kind: type, **same: tuple[Any, Any]) -> None:
    """Another state of this kind, and equal in what must be the same."""
    if not isinstance(other, kind):
        raise TypeError(f"other must be a {kind.__name__}; got {type(other).__name__}.")
    for name, (ours, theirs) in same.items():
        if ours != theirs:
            raise ValueError(
                f"both states must have the same {name}; got {ours!r} here and {theirs!r} there."
            )


def check_same_columns(shape: tuple[int, ...], known: tuple[int, ...] | None, name: str) -> None:
    if known is not None and shape != known:
        raise ValueError(
            f"{name} must be of shape {known} apart from the rows, as in the updates before; it is "
            f"of shape {shape}."
        )


def as_losses(values: ArrayLike, weight: ArrayLike | None) -> tuple[FloatArray, FloatArray | None]:
    """Numbers to add up, contiguous float32 or float64, and their weight."""
    given = as_scores(values, "values")
    v = np.ascontiguousarray(given.astype(computed(given.dtype), copy=False))
    if weight is None:
        if np.ndim(values) == 0:
            raise TypeError(
                "weight must be given with a single number: of how many rows is it the sum? "
                "Pass weight=len(target), or one value per row (reduction='none')."
            )
        return v, None
    w = as_scores(weight, "weight").astype(np.float64, copy=False)
    if w.ndim > 0 and w.shape != given.shape:
        raise ValueError(
            f"weight must be one number or have the shape of values, {given.shape}; it has shape "
            f"{w.shape}."
        )
    check_fit(w, "weight", "finite and >= 0")
    return v, np.ascontiguousarray(w)
