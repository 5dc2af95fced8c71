"""What is wrong with a gradient: hypotheses, each tested against the numeric side.

A hypothesis says how a right gradient would turn into the one at hand.  Those about the whole array
(sign, factor, order of the elements, a term too many) are tried first and must explain every
element that was measured; those about a place (a row, a column, the target, the tail) look at where
the wrong elements are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Diagnosis:
    """What is probably wrong, and what speaks for it.

    Attributes
    ----------
    code : str
        One word for programs: "sign", "factor", "transposed", "permuted", "common shift", "zero",
        "flat", "diagonal", "regulariser", "weights", "centroid held still", "target", "tail",
        "row", "column", "missing row", "extra row", "missing segment", "segment", "element",
        "nan", "integer", "mutates", "nondeterministic", "aliased", "dtype", "jvp", "asymmetric".
    text : str
        One line for people.
    evidence : dict
        What it rests on; its keys depend on `code`.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> r = fg.gradcheck(lambda x: np.sum(x**3), np.array([1.0, 2.0]), grad=lambda x: -3 * x**2)
    >>> r.diagnoses[0].code
    'sign'
    """

    code: str
    text: str
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass
class Measured:
    """One input's gradient beside the numeric one, where that was measured.

    `index` holds the flat positions measured, `n`, `slack` and `wrong` belong to them; `complete`
    says whether they are all there are.
    """

    name: str
    x: Array
    a: Array
    index: NDArray[np.intp]
    n: Array
    slack: Array
    wrong: NDArray[np.bool_]
    rtol: float
    labels: list[tuple[str, NDArray[np.intp]]]
    constants: list[tuple[str, Array]]
    along_ones: tuple[float, float] | None = None
    located: bool = False
    """Directions elsewhere agree: what was measured is where the error is, not a sample."""

    @property
    def complete(self) -> bool:
        return len(self.index) == self.a.size

    @property
    def at(self) -> Array:
        return self.a.reshape(-1)[self.index]

    def places(self) -> tuple[NDArray[np.intp], ...]:
        """Coordinates of the wrong elements."""
        return np.unravel_index(self.index[self.wrong], self.a.shape)


_EXPLAIN_ALL = ("nan", "flat", "factor", "sign", "transposed", "permuted", "target")
"""Diagnoses that leave nothing for the next hypothesis."""
FITS = 0.97
"""Part of the elements that a hypothesis about all of them has to explain."""


def diagnose(m: Measured) -> list[Diagnosis]:
    """Best first; empty where nothing known fits.

    What explains the whole array leaves nothing for a place to explain.
    """
    found: list[Diagnosis] = []
    with np.errstate(all="ignore"):
        whole = _OF_PLACES if m.located else _OF_THE_WHOLE
        for hypothesis in (*whole, *_OF_A_PLACE):
            if hypothesis in _OF_A_PLACE[:1] and found:
                break
            found += list(hypothesis(m))
            if found and found[-1].code in _EXPLAIN_ALL:
                break
    return found


def _explains(m: Measured, predicted: Array, loose: float = 1.0) -> bool:
    """Whether the numeric side is `predicted`, everywhere that it was measured."""
    error = np.abs(predicted - m.n)
    known = np.isfinite(m.n)
    near = max(1e-6, 2 * m.rtol)
    ok = error <= loose * (m.slack + near * np.maximum(np.abs(predicted), np.abs(m.n)))
    # Elements below their own noise prove nothing.
    telling = known & (np.abs(m.n) > 3 * m.slack)
    if not telling.any():
        return False
    # A kink between the steps spoils a numeric value here and there.
    return bool(np.mean(ok[known]) >= FITS and np.mean(ok[telling]) >= FITS)


# ---- the whole array ----------------------------------------------------------------------------


def _nan(m: Measured) -> Iterator[Diagnosis]:
    bad = ~np.isfinite(m.a)
    if not bad.any():
        return
    where = _place(np.flatnonzero(bad.reshape(-1))[0], m.a.shape, m.name)
    what = "NaN" if np.isnan(m.a).any() else "infinite"
    yield Diagnosis(
        "nan",
        f"the gradient is {what} at {int(bad.sum())} places, first {where}, where f is finite",
        {"count": int(bad.sum())},
    )


def _flat(m: Measured) -> Iterator[Diagnosis]:
    if np.all(m.n == 0) and np.any(m.at != 0):
        yield Diagnosis(
            "flat",
            f"f is flat: it does not change at all with {m.name}: argmax, round, "
            "comparison or a cast cuts the dependence. Its derivative is 0; train through a smooth "
            "surrogate (softmax, sigmoid, cross-entropy)",
        )


def _factor(m: Measured) -> Iterator[Diagnosis]:
    telling = (np.abs(m.n) > 10 * m.slack) & np.isfinite(m.at)
    if not telling.any() or np.all(m.at[telling] == 0):
        return
    a, n = m.at[telling], m.n[telling]
    # Least squares for a ≈ factor · n, by the bars: one that is spoiled must not bend the factor.
    weight = np.abs(n) / (m.slack[telling] + 1e-9 * np.abs(n))
    ratio = a / n
    factor = float(np.sum(weight**2 * ratio) / np.sum(weight**2))
    if factor == 0 or not math.isfinite(factor) or abs(factor - 1) < 1e-9:
        return
    if not _explains(m, m.at / factor):
        return
    if len(a) < 2 and m.a.size > 1:
        return
    near = max(1e-5, m.rtol)
    if math.isclose(factor, -1, rel_tol=near):
        yield Diagnosis("sign", "the gradient has the wrong sign: it is −1 times the numeric one")
        return
    name, hint = _named_factor(factor, near, m.a.shape, m.labels)
    sign = "the sign is wrong too, and " if factor < 0 else ""
    text = f"{sign}the gradient is {name} times the numeric one{hint}"
    yield Diagnosis("factor", text, {"factor": factor, "name": name})
    if factor < 0:
        yield Diagnosis("sign", "the gradient has the wrong sign", {"factor": factor})


def _named_factor(
    factor: float, near: float, shape: tuple[int, ...], labels: list[tuple[str, Any]]
) -> tuple[str, str]:
    rows = math.prod(shape[:-1]) if len(shape) > 1 else (shape[0] if shape else 1)
    classes = shape[-1] if len(shape) > 1 else 0
    known: list[tuple[str, float, str]] = []
    samples = [len(ids) for _, ids in labels]
    for size, letter, what in (
        *((s, "N", "rows") for s in dict.fromkeys([*samples, rows])),
        (classes, "C", "classes"),
        (math.prod(shape), "size", "elements"),
    ):
        if size > 2:
            known += [
                (letter, size, f" ({letter} = {size} {what}): a sum where f takes the mean?"),
                (
                    f"1/{letter}",
                    1 / size,
                    f" ({letter} = {size} {what}): a mean where f takes the sum?",
                ),
            ]
    known += [
        ("ln 2", math.log(2), ": natural against binary logarithm?"),
        ("1/ln 2", 1 / math.log(2), ": natural against binary logarithm?"),
        ("2", 2.0, ": a square without its ½, or a term counted twice?"),
        ("1/2", 0.5, ": a ½ too many, or a square whose 2 is missing?"),
    ]
    for name, value, hint in known:
        if math.isclose(abs(factor), value, rel_tol=near):
            return ("−" if factor < 0 else "") + name, hint
    return f"{factor:.{6 if abs(factor - 1) > 1e-5 else 10}g}", ""


def _transposed(m: Measured) -> Iterator[Diagnosis]:
    shape = m.a.shape
    if len(shape) >= 2 and shape[-1] == shape[-2]:
        turned = np.swapaxes(m.a, -1, -2).reshape(-1)[m.index]
        if _explains(m, turned):
            yield Diagnosis(
                "transposed", "the gradient is transposed: its last two axes are swapped"
            )


def _permuted(m: Measured) -> Iterator[Diagnosis]:
    shape = m.a.shape
    if m.a.size < 2:
        return
    if len(shape) >= 2:
        orders = {
            "fortran order": m.a.reshape(-1).reshape(shape, order="F"),
            "fortran order (inverse)": m.a.reshape(-1, order="F").reshape(shape),
        }
        for candidate in orders.values():
            if _explains(m, candidate.reshape(-1)[m.index]):
                yield Diagnosis(
                    "permuted",
                    "the elements are in Fortran order where C order is meant (ravel or reshape "
                    "with the other order)",
                    {"how": "fortran order"},
                )
                return
    for axis in range(len(shape)):
        for shift in (1, -1):
            if shape[axis] > 1 and _explains(m, np.roll(m.a, shift, axis).reshape(-1)[m.index]):
                yield Diagnosis(
                    "permuted",
                    f"the gradient is rolled by one along axis {axis}: an index is off by one",
                    {"how": f"rolled by 1 along axis {axis}", "axis": axis, "shift": -shift},
                )
                return
        if shape[axis] > 1 and _explains(m, np.flip(m.a, axis).reshape(-1)[m.index]):
            yield Diagnosis(
                "permuted",
                f"the gradient is reversed along axis {axis}",
                {"how": f"reversed along axis {axis}"},
            )
            return
    if len(shape) > 1 and m.a.size > 2:
        for shift in (1, -1):
            if _explains(m, np.roll(m.a, shift).reshape(-1)[m.index]):
                yield Diagnosis(
                    "permuted",
                    "the flat gradient is rolled by one: an index is off by one",
                    {"how": "rolled by 1"},
                )
                return
    yield from _swapped(m)


def _swapped(m: Measured) -> Iterator[Diagnosis]:
    if m.wrong.sum() == 2:
        i, j = np.flatnonzero(m.wrong)
        a, n, slack = m.at, m.n, m.slack
        if abs(a[i] - n[j]) <= 2 * slack[j] + 1e-6 * abs(n[j]) and abs(a[j] - n[i]) <= 2 * slack[
            i
        ] + 1e-6 * abs(n[i]):
            places = [_place(m.index[k], m.a.shape, m.name) for k in (i, j)]
            yield Diagnosis(
                "permuted", f"{places[0]} and {places[1]} are swapped", {"how": "swapped"}
            )


def _common_shift(m: Measured) -> Iterator[Diagnosis]:
    """Every coordinate moved at once: all elements are the derivative along ones."""
    if m.a.size < 2 or m.along_ones is None or not np.any(m.a):
        return  # of zeros `_zero` speaks, though a sum may be 0 too
    largest = float(np.max(np.abs(m.n), initial=0))
    if float(np.ptp(m.n)) <= 1e-6 * largest:
        return
    # Such a gradient comes of one difference with some eps: few of its digits hold.
    noise = 1e-4 * largest
    total, bar = m.along_ones
    sums: list[tuple[str, Any]] = [("array", total)] if bar <= noise else []
    if m.complete:
        flat = np.empty(m.a.size)
        flat[m.index] = m.n
        n: Array = flat.reshape(m.a.shape)
        if n.shape[-1] > 1:
            sums.append(("row", n.sum(axis=-1, keepdims=True)))
        if n.ndim > 1 and n.shape[0] > 1:
            sums.append(("column", n.sum(axis=0, keepdims=True)))
    for what, along in sums:
        if np.all(np.abs(m.a - along) <= 2 * noise + 1e-3 * np.abs(along)):
            yield Diagnosis(
                "common shift",
                f"every element holds the derivative along ones of the whole {what}: all "
                "coordinates were shifted at once (f(x + eps) shifts the array); shift one "
                "element at a time",
                {"along": what},
            )
            return


def _zero(m: Measured) -> Iterator[Diagnosis]:
    if not np.any(m.a) and np.any(m.n):
        yield Diagnosis(
            "zero",
            f"the gradient is 0 everywhere, and f does depend on {m.name}: never accumulated?",
        )


def _regulariser(m: Measured) -> Iterator[Diagnosis]:
    """What is wrong is off by a multiple of x, or of its sign; a bias may be left alone."""
    w = m.wrong
    x, error = m.x.reshape(-1)[m.index][w], (m.at - m.n)[w]
    if len(error) < 3 or (m.a.ndim > 1 and any(len(np.unique(p)) == 1 for p in m.places())):
        return  # one line alone: a place
    for what, shape in (("x", x), ("sign(x)", np.sign(x))):
        if np.ptp(np.abs(x)) == 0 or np.ptp(np.sign(x)) == 0:
            continue  # a constant would explain as much
        loose = m.slack[w] + 1e-5 * np.abs(error)
        weight = 1 / loose**2
        c = float(np.sum(weight * error * shape) / np.sum(weight * shape**2))
        if np.all(np.abs(error - c * shape) <= loose):
            verb = "has a term too many" if c > 0 else "lacks a term"
        elif what == "x":
            c = float(np.sqrt(np.sum(weight * error**2) / np.sum(weight * shape**2)))
            if not np.all(np.abs(np.abs(error) - c * np.abs(shape)) <= loose):
                continue
            verb = "has a term where it should not, and lacks it where it should have it"
        else:
            continue
        all_of_it = "" if np.all(w) else f", at {len(error):,} of the {len(w):,} elements measured"
        yield Diagnosis(
            "regulariser",
            f"the gradient {verb}: {abs(c):.6g}·{what.replace('x', m.name)}{all_of_it}: "
            "is a regulariser "
            f"{'counted twice' if c > 0 else 'missing that f has'}?",
            {"input": m.name, "coefficient": c, "term": what},
        )
        return


def _centroid(m: Measured) -> Iterator[Diagnosis]:
    """The right gradient is a minus the mean of a over the class."""
    if not m.complete:
        return
    for name, ids in m.labels:
        if m.a.ndim < 2 or ids.shape != m.a.shape[:-1]:
            continue
        classes = np.unique(ids, axis=None)
        for weights in (None, *(w for _, w in m.constants if w.shape == ids.shape)):
            moved = m.a.copy()
            batches = [()] if ids.ndim == 1 else list(np.ndindex(ids.shape[:-1]))
            for b in batches:
                for k in classes:
                    rows = (*b, ids[b] == k)
                    if not np.any(ids[b] == k):
                        continue
                    share = (
                        1 / np.sum(ids[b] == k)
                        if weights is None
                        else (weights[rows] / weights[rows].sum())[:, None]
                    )
                    moved[rows] = m.a[rows] - share * m.a[rows].sum(axis=0)
            if _explains(m, moved.reshape(-1)[m.index]):
                yield Diagnosis(
                    "centroid held still",
                    "the centroid was held still: the numeric gradient is this one less its mean "
                    f"over each class of {name}",
                    {"labels": name},
                )
                return


def _weights(m: Measured) -> Iterator[Diagnosis]:
    """a/n is one number per row, or per column, that an argument holds."""
    if not m.wrong.any() or m.a.ndim < 1:
        return
    for name, w in m.constants:
        for what, shape in (("row", w.shape + (1,) * (m.a.ndim - w.ndim)), ("column", w.shape)):
            try:
                wide = np.broadcast_to(w.reshape(shape), m.a.shape).reshape(-1)[m.index]
            except ValueError:
                continue
            if np.ptp(w) == 0 or w.size < 2:
                continue
            # Up to one common factor: a weighted mean divides by another sum.
            for how, basis in (("lacks", m.at * wide), ("has twice", m.at / wide)):
                telling = np.isfinite(basis) & (np.abs(m.n) > 10 * m.slack)
                # A weight of 0 tells nothing of the elements it belongs to: they must be right.
                if telling.sum() < 2 or not np.all(np.isfinite(basis[m.wrong])):
                    continue
                c = float(np.sum(basis[telling] * m.n[telling]) / np.sum(basis[telling] ** 2))
                if _explains(m, c * np.where(np.isfinite(basis), basis, m.n)):
                    yield Diagnosis(
                        "weights",
                        f"the gradient {how} the factor {name} of its {what}",
                        {"argument": name, "per": what, "how": how},
                    )
                    return
    yield from _row_factor(m)


def _row_factor(m: Measured) -> Iterator[Diagnosis]:
    """a/n is the same within each row, and another in other rows: some factor per row."""
    if m.a.ndim < 2:
        return
    with np.errstate(all="ignore"):
        ratio = m.at / m.n
    telling = (np.abs(m.n) > 100 * m.slack) & np.isfinite(ratio)
    rows = m.index // m.a.shape[-1]
    factors = []
    for row in np.unique(rows[telling]):
        r = ratio[telling & (rows == row)]
        if len(r) < 2:
            continue
        if np.ptp(r) > 1e-5 * np.max(np.abs(r)):
            return
        factors.append(float(r[0]))
    if 0 in factors:
        return  # rows left out: a place
    wrong = sum(abs(f - 1) > 1e-5 for f in factors)
    if wrong >= max(3, len(factors) / 2) and np.ptp(factors) > 1e-3 * np.max(np.abs(factors)):
        yield Diagnosis(
            "weights",
            "within each row the gradient is one factor times the numeric one, from "
            f"{min(factors):.4g} to {max(factors):.4g} by row: a weight or divisor per row is "
            "missing",
            {"per": "row", "factors": factors[:16]},
        )


# ---- a place ------------------------------------------------------------------------------------


def _target(m: Measured) -> Iterator[Diagnosis]:
    """Right everywhere but at one place of each row, and off there by the same amount."""
    if not m.wrong.any() or m.a.ndim == 0:
        return
    places = m.places()
    error = (m.at - m.n)[m.wrong]
    same = float(np.ptp(error)) <= 1e-4 * float(np.max(np.abs(error)))
    off = f"by {error[0]:.6g} each" if same else "by amounts that differ by row"
    for name, ids in m.labels:
        for axis in range(m.a.ndim):
            shape = m.a.shape[:axis] + m.a.shape[axis + 1 :]
            if ids.size != math.prod(shape) or (len(error) < 2 and ids.size > 1):
                continue
            rows = tuple(p for k, p in enumerate(places) if k != axis)
            if not np.all(places[axis] == ids.reshape(shape)[rows]):
                continue
            yield Diagnosis(
                "target",
                f"wrong at the target of each row alone ({len(error)} places), {off}: "
                f"the −1 at column {name}[i] is missing or misplaced",
                {"labels": name, "error": float(error[0])},
            )
            return
    # No argument tells the target, but one place in every row does.
    rows = m.index[m.wrong] // m.a.shape[-1]
    seen = np.unique(m.index // m.a.shape[-1]) if m.complete else rows
    one_each = m.a.ndim > 1 and len(np.unique(rows)) == len(rows) == len(seen) >= 3
    if one_each and same and len(np.unique(places[-1])) > 1:
        yield Diagnosis(
            "target",
            f"wrong at one place in each row alone ({len(error)} places), {off}: "
            "is the −1 at the target missing?",
            {"error": float(error[0])},
        )


def _lines(m: Measured) -> Iterator[Diagnosis]:
    """All wrong elements in few columns, or few rows: the tail, a bias, rows left out."""
    if not m.wrong.any() or m.a.ndim == 0:
        return
    places = m.places()
    a, n = m.at[m.wrong], m.n[m.wrong]
    zero = bool(np.all(a == 0) or np.all(~np.isfinite(a)))
    constant = len(a) > 1 and bool(np.all(a == a[0]))
    right = ~m.wrong & np.isfinite(m.n)
    others = np.unravel_index(m.index[right], m.a.shape)
    yield from _segments(m, places, zero)
    count = int(m.wrong.sum())
    first = int(m.index[m.wrong].min())
    before = m.index[right & (m.n != 0)]
    width = m.a.shape[-1]
    ends_inside = m.a.ndim == 1 or bool(np.any(before // width == first // width))
    if zero and count > 1 and len(before) and np.all(before < first) and ends_inside:
        yield Diagnosis(
            "tail",
            f"all {count} wrong elements are the last of the array, from "
            f"{_place(first, m.a.shape, m.name)} on; the gradient is 0 there: is its tail not "
            "written?",
            {"axis": None, "index": first},
        )
        return
    for axis in range(m.a.ndim - 1, -1, -1):
        length = m.a.shape[axis]
        wrong = np.unique(places[axis])
        if (
            length < 2
            or len(wrong) > max(1, length // 2)
            or (m.a.ndim == 1 and len(wrong) == 1 and not zero)
        ):
            continue
        # The other indices of this axis were measured too, and are right.
        seen = np.setdiff1d(np.unique(others[axis]), wrong)
        if not len(seen):
            continue
        last_axis = axis == m.a.ndim - 1
        suffix = wrong[-1] == length - 1 and np.array_equal(wrong, np.arange(wrong[0], length))
        what = _named_line(axis, m.a.ndim)
        listed = ", ".join(map(str, wrong[:4])) + (" …" if len(wrong) > 4 else "")
        where = (
            f"{count} of {count} wrong elements in {what}{'s' if len(wrong) > 1 else ''} {listed}"
        )
        if last_axis and suffix and (zero or (constant and m.a.ndim == 1)):
            yield Diagnosis(
                "tail",
                f"{where}, the last; the gradient is {'0' if zero else f'{a[0]:.6g}'} there: "
                f"is the tail of axis {axis} not written?",
                {"axis": axis, "index": _one_or_all(wrong)},
            )
            return
        whole = m.a.ndim == 1 or all(
            len(np.unique(places[k])) > 1 or m.a.shape[k] == 1 for k in range(m.a.ndim) if k != axis
        )
        if not whole:
            continue
        if zero and not last_axis and np.any(n != 0):
            yield Diagnosis(
                "missing row",
                f"{where}; the gradient is 0 there: "
                f"{'is that row' if len(wrong) == 1 else 'are those rows'} left out of the loop?",
                {"axis": axis, "index": _one_or_all(wrong)},
            )
            return
        if np.all(n == 0) and not last_axis:
            yield Diagnosis(
                "extra row",
                f"{where}; f does not depend on {'it' if len(wrong) == 1 else 'them'}: "
                "a row that is ignored or has weight 0 got a gradient",
                {"axis": axis, "index": _one_or_all(wrong)},
            )
            return
        if len(wrong) <= max(1, length // 4):
            error = a - n
            x = m.x.reshape(-1)[m.index][m.wrong]
            c = float(np.sum(error * x) / np.sum(x**2)) if np.any(x) else 0.0
            penalised = len(x) > 1 and np.all(
                np.abs(error - c * x) <= 1e-5 * np.abs(error) + m.slack[m.wrong]
            )
            ratio = a / n
            steady = (
                len(a) > 1 and np.all(np.isfinite(ratio)) and np.ptp(ratio) <= 1e-5 * abs(ratio[0])
            )
            if penalised:
                more = f"; off by {c:.6g}·{m.name}: a bias that is penalised on one side only?"
            elif zero:
                more = "; the gradient is 0 there"
            elif steady:
                more = f"; {ratio[0]:.6g} times the numeric one there"
            else:
                more = ""
            yield Diagnosis(
                "column" if last_axis and m.a.ndim > 1 else "row",
                where + more,
                {"axis": axis, "index": _one_or_all(wrong)},
            )
            if penalised:
                yield Diagnosis(
                    "regulariser",
                    f"{what} {listed}: off by {c:.6g}·{m.name}",
                    {"input": m.name, "coefficient": c, "term": "x"},
                )
            return


def _segments(m: Measured, places: tuple[NDArray[np.intp], ...], zero: bool) -> Iterator[Diagnosis]:
    """Exactly the rows of one label."""
    for name, ids in m.labels:
        if ids.size == 0 or ids.shape != m.a.shape[: ids.ndim] or len(np.unique(ids)) < 2:
            continue
        rows = places[: ids.ndim]
        wrong = np.unique(ids[rows])
        if len(wrong) != 1:
            continue
        members = int((ids == wrong[0]).sum())
        hit = len({tuple(int(p[i]) for p in rows) for i in range(len(rows[0]))})
        if members < 2 or hit < min(members, 2) or (m.complete and hit < members):
            continue
        if zero:
            yield Diagnosis(
                "missing segment",
                f"all {hit} wrong rows are those of {name} == {wrong[0]}; the gradient is 0 there: "
                "is that segment left out?",
                {"labels": name, "segment": int(wrong[0])},
            )
        else:
            yield Diagnosis(
                "segment",
                f"all {hit} wrong rows are those of {name} == {wrong[0]}",
                {"labels": name, "segment": int(wrong[0])},
            )


def _one_or_all(index: NDArray[np.intp]) -> int | list[int]:
    return int(index[0]) if len(index) == 1 else [int(i) for i in index]


def _named_line(axis: int, ndim: int) -> str:
    if ndim == 1:
        return "element"
    if axis == ndim - 1:
        return "column"
    return "row" if ndim == 2 else f"index of axis {axis}"


def _element(m: Measured) -> Iterator[Diagnosis]:
    if m.wrong.sum() != 1 or m.a.size < 2:
        return
    i = int(np.flatnonzero(m.wrong)[0])
    a, n = float(m.at[i]), float(m.n[i])
    ratio = f", {a / n:.6g} times the numeric one" if n else ""
    yield Diagnosis(
        "element",
        f"one element alone is wrong: {_place(m.index[i], m.a.shape, m.name)}{ratio}",
        {"index": tuple(int(k) for k in np.unravel_index(m.index[i], m.a.shape))},
    )


_Hypothesis = Callable[[Measured], Iterator[Diagnosis]]
_OF_THE_WHOLE: tuple[_Hypothesis, ...] = (
    _nan,
    _flat,
    _factor,
    _transposed,
    _permuted,
    _common_shift,
    _zero,
    _target,
    _regulariser,
    _centroid,
    _weights,
)
_OF_PLACES: tuple[_Hypothesis, ...] = (_nan, _flat, _swapped, _target, _weights)
"""Those of the whole that may also be of a few places."""
_OF_A_PLACE: tuple[_Hypothesis, ...] = (
    _lines,
    _element,
)


def _place(flat: int, shape: tuple[int, ...], name: str) -> str:
    if not shape:
        return name
    return f"{name}[{', '.join(str(int(k)) for k in np.unravel_index(int(flat), shape))}]"


# ---- what the checker saw besides numbers -------------------------------------------------------

_ADVICE: dict[str, str] = {
    "mutates": "work on a copy",
    "nondeterministic": "fix its seed, or allow for it with nondet=",
    "aliased": "",
    "dtype": "",
    "integer": "pass floats: x.astype(float)",
    "transposed": "transpose it",
}


def from_findings(findings: dict[str, str]) -> list[Diagnosis]:
    """Diagnoses of what was seen outside the numbers: writes, repeats, memory, dtypes, shapes."""
    return [
        Diagnosis(
            code, f"{text}{'; ' + _ADVICE[code] if _ADVICE.get(code) else ''}", {"finding": text}
        )
        for code, text in findings.items()
    ]
