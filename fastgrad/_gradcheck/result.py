"""What a check found, and how it reads."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgrad._gradcheck.diagnosis import Diagnosis
from fastgrad._gradcheck.problem import Array

ASCII = str.maketrans(
    {
        "✔": "OK",
        "✘": "X",
        "±": "+-",
        "×": "x",
        "µ": "u",
        "–": "-",
        "−": "-",
        "·": "|",
        "…": "...",
        "≤": "<=",
        "≥": ">=",
        "∈": "in",
        "∉": "not in",
        "ᵀ": "^T",
        "→": "->",
        "₂": "_2",
        "²": "^2",
        "½": "1/2",
    }
)

GLYPHS = {"PASS": "✔", "KINK": "✔", "FAIL": "✘", "UNRESOLVED": "?", "INTERRUPTED": "…"}


@dataclass(frozen=True)
class Element:
    """One element, as it was tested.

    Attributes
    ----------
    input : str
    index : tuple of int
    analytic, numeric, bar : float
        The two derivatives, and how far the numeric one may be off.
    error : float
        ``|analytic − numeric|``.
    rel : float
        The error over the larger of the two.
    ratio : float
        The error over what was allowed: over 1 is suspect, wrong only when two ladders say so.
    """

    input: str
    index: tuple[int, ...]
    analytic: float
    numeric: float
    bar: float
    error: float
    rel: float
    ratio: float

    @property
    def place(self) -> str:
        """``X[7, 3]``."""
        return f"{self.input}[{', '.join(map(str, self.index))}]" if self.index else self.input


@dataclass(frozen=True)
class Kink:
    """A point where the slopes on both sides differ.

    Attributes
    ----------
    input : str
    index : tuple of int
    left, right : float
        The one-sided derivatives.
    analytic : float
    valid : bool
        Whether `analytic` lies between them: a valid subgradient along this coordinate.
    """

    input: str
    index: tuple[int, ...]
    left: float
    right: float
    analytic: float
    valid: bool

    @property
    def place(self) -> str:
        return f"{self.input}[{', '.join(map(str, self.index))}]" if self.index else self.input


@dataclass(frozen=True)
class InputReport:
    """One input of the check.

    Attributes
    ----------
    name : str
    shape : tuple of int
    dtype : str
    analytic, numeric, bar : ndarray or None
        NaN where nothing was measured; None when directions alone were.
    status : uint8 ndarray or None
        0 not measured, 1 agrees, 2 agrees below the noise, 3 kink with a valid subgradient,
        4 wrong, 5 undecided.
    checked, resolved, wrong : int
        Elements measured; with a bar under a tenth of their value; wrong.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    analytic: Array | None
    numeric: Array | None
    bar: Array | None
    status: NDArray[np.uint8] | None
    checked: int
    resolved: int
    wrong: int


@dataclass
class GradcheckResult:
    """What `gradcheck` found; true if the derivative is right.

    Attributes
    ----------
    verdict : str
        "PASS"; "KINK": right, and at kinks a valid subgradient; "FAIL": wrong, on two ladders of
        steps; "UNRESOLVED": differences cannot tell, and `message` says what to do;
        "INTERRUPTED": stopped by Ctrl-C, with what was known.
    name, kind, mode : str
        The function, the derivative, and how it was measured.
    message : str
        The verdict in one line.
    inputs : dict of str to InputReport
    worst : list of Element
        With the largest error for what was allowed, first.
    wrong : list of Element
        At most 64.
    wrong_count : int or None
        None where only a part was measured.
    kinks : list of Kink
    unresolved : list of Element
    diagnoses : tuple of Diagnosis
        What is probably wrong, best first.  May hold remarks on a right gradient too.
    guarantee : str
        What random directions could have missed, with the probability; "" in other modes.
    noise : float
        Standard deviation of one value of the function.
    evals, derivative_evals : int
        Calls of the function and of the derivative.
    seconds : float
    seed : int
    notes : list of str
        How the check departed from the plan.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> r = fg.gradcheck(fg.logsumexp, np.array([[0.0, 1.0, 2.0], [3.0, 0.0, 1.0]]))
    >>> r.verdict, r.checked, len(r.wrong)
    ('PASS', 6, 0)
    >>> r.inputs["a"].numeric.shape
    (2, 3)
    """

    verdict: str
    name: str
    kind: str
    mode: str
    message: str
    inputs: dict[str, InputReport]
    worst: list[Element] = field(default_factory=list)
    wrong: list[Element] = field(default_factory=list)
    wrong_count: int | None = 0
    kinks: list[Kink] = field(default_factory=list)
    unresolved: list[Element] = field(default_factory=list)
    diagnoses: tuple[Diagnosis, ...] = ()
    guarantee: str = ""
    noise: float = 0.0
    evals: int = 0
    derivative_evals: int = 0
    seconds: float = 0.0
    seed: int = 0
    notes: list[str] = field(default_factory=list)
    top: int = 10

    def __bool__(self) -> bool:
        return self.verdict in ("PASS", "KINK")

    @property
    def passed(self) -> bool:
        """The truth value, by name."""
        return bool(self)

    @property
    def pattern(self) -> str:
        """The best diagnosis as a line of text, or ""."""
        return self.diagnoses[0].text if self.diagnoses else ""

    @property
    def checked(self) -> int:
        """Elements measured one by one."""
        return sum(i.checked for i in self.inputs.values())

    @property
    def resolved(self) -> int:
        return sum(i.resolved for i in self.inputs.values())

    @property
    def size(self) -> int:
        """Elements that there are."""
        return sum(math.prod(i.shape) for i in self.inputs.values())

    def __repr__(self) -> str:
        parts = []
        if self.checked:
            parts.append(f"{self.resolved}/{self.checked}")
        if self.verdict == "FAIL" and self.wrong:
            worst = self.wrong[0]
            parts.append(f"worst {worst.place} rel {worst.rel:.2g}")
        elif self.worst and math.isfinite(self.worst[0].rel):
            parts.append(f"worst rel {max(e.rel for e in self.worst):.2g}")
        if not self and self.pattern:
            parts.append(self.pattern)
        return f"<GradcheckResult {self.verdict} {', '.join(parts)}>".replace(" >", ">")

    def __str__(self) -> str:
        # For print; a stream that cannot carry it would lose the report to an error.
        return plain(self.report(), getattr(sys.stdout, "encoding", None))

    # ---- text ------------------------------------------------------------------------------------

    def headline(self) -> str:
        """Verdict, function, what was differentiated and how, evaluations, time."""
        letter = {"grad": "d/d", "vjp": "vᵀ·d/d", "jvp": "", "jac": "d/d"}.get(self.kind, "d²/d")
        inputs = ", ".join(
            f"{letter}{name.removesuffix('0') if '·' in name else name} {i.shape} {i.dtype}"
            for name, i in self.inputs.items()
            if "·" not in name or name.endswith("0")
        )
        return (
            f"{GLYPHS[self.verdict]} {self.verdict}  {self.name}   {inputs}   "
            f"{self.mode} · {self.evals:,} evals · {_seconds(self.seconds)}"
        )

    def coverage(self) -> str:
        """How much was measured, and what was looked at besides numbers."""
        parts = []
        if self.checked:
            parts.append(f"{self.resolved:,}/{self.checked:,} resolved (bar < 10% of value)")
            if self.checked < self.size:
                parts.append(f"{self.checked:,} of {self.size:,} elements measured")
        codes = {d.code for d in self.diagnoses}
        parts.append(f"{len(self.kinks)} kink{'' if len(self.kinks) == 1 else 's'}")
        parts.append("not deterministic" if "nondeterministic" in codes else "deterministic")
        parts.append("inputs written to" if "mutates" in codes else "inputs untouched")
        return " · ".join(parts)

    def report(self, width: int | None = None) -> str:
        """The whole result as text.

        Parameters
        ----------
        width : int, optional
            Text is wrapped to as many columns, 40 at least; the table of elements keeps its own
            77.  Default: 100.

        Returns
        -------
        str

        Raises
        ------
        ValueError
            If `width` is less than 40.
        """
        import textwrap

        width = 100 if width is None else width
        if not width >= 40:
            raise ValueError(f"width must be at least 40 columns; got {width!r}.")
        lines: list[str] = []

        def say(label: str, text: str) -> None:
            lines.extend(
                textwrap.wrap(
                    text,
                    width,
                    initial_indent=f"  {label:<10}",
                    subsequent_indent=" " * 12,
                    break_long_words=False,
                    break_on_hyphens=False,
                )
            )

        lines.extend(
            textwrap.wrap(self.headline(), width, subsequent_indent="    ", break_long_words=False)
        )
        if not self:
            say("", self.message)
        for d in self.diagnoses:
            say("diagnosis" if not self else "remark", d.text)
        shown = self.wrong or self.unresolved if not self else self.worst[:1]
        if shown:
            lines.extend(
                _table(shown[: self.top], self.verdict == "PASS" or self.verdict == "KINK")
            )
            more = (self.wrong_count or len(shown)) - min(len(shown), self.top)
            if not self and more > 0:
                say("", f"and {more:,} more")
        for k in self.kinks[: self.top if not self else 3]:
            inside = "∈" if k.valid else "∉"
            low, high = sorted((k.left, k.right))
            say(
                "kink",
                f"{k.place}   left slope {k.left:.6g}   right slope {k.right:.6g}   "
                f"analytic {k.analytic:.6g} {inside} [{low:.6g}, {high:.6g}]",
            )
        say("coverage", self.coverage())
        if self.guarantee and self.verdict != "FAIL":
            say("guarantee", self.guarantee)
        for note in self.notes:
            say("note", note)
        return "\n".join(lines)

    # ---- export ----------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain Python objects; arrays become lists."""
        return {
            "verdict": self.verdict,
            "passed": bool(self),
            "name": self.name,
            "kind": self.kind,
            "mode": self.mode,
            "message": self.message,
            "pattern": self.pattern,
            "inputs": {
                name: {
                    key: value.tolist() if isinstance(value, np.ndarray) else value
                    for key, value in vars(report).items()
                }
                for name, report in self.inputs.items()
            },
            **{
                key: [asdict(e) for e in getattr(self, key)]
                for key in ("worst", "wrong", "kinks", "unresolved", "diagnoses")
            },
            **{
                key: getattr(self, key)
                for key in (
                    "wrong_count",
                    "guarantee",
                    "noise",
                    "evals",
                    "derivative_evals",
                    "seconds",
                    "seed",
                    "notes",
                )
            },
        }

    def to_json(self) -> str:
        """`to_dict` as JSON; NaN and infinities become null."""
        return json.dumps(_plain(self.to_dict()), allow_nan=False)

    def to_frame(self) -> Any:
        """The elements that were measured, a row of a pandas.DataFrame each."""
        import pandas as pd

        rows = []
        for report in self.inputs.values():
            if (
                report.numeric is None
                or report.status is None
                or report.analytic is None
                or report.bar is None
            ):
                continue
            for index in np.argwhere(report.status != 0):
                i = tuple(int(k) for k in index)
                rows.append(
                    {
                        "input": report.name,
                        "index": i,
                        "analytic": report.analytic[i],
                        "numeric": report.numeric[i],
                        "bar": report.bar[i],
                        "status": STATUS[int(report.status[i])],
                    }
                )
        return pd.DataFrame(
            rows, columns=["input", "index", "analytic", "numeric", "bar", "status"]
        )


def plain(text: str, encoding: str | None) -> str:
    """The text, in ASCII if the encoding cannot carry it."""
    try:
        text.encode(encoding or "utf-8")  # a text buffer has none
    except UnicodeEncodeError:
        return text.translate(ASCII).encode("ascii", "replace").decode()
    return text


STATUS = ("not measured", "pass", "below noise", "kink", "wrong", "unresolved")


def _table(elements: list[Element], one_line: bool) -> list[str]:
    if one_line:
        return [
            f"  worst     {e.place}   analytic {e.analytic:.6e}   "
            f"numeric {e.numeric:.6e} ±{e.bar:.0e}   "
            + (
                "below noise"
                if e.bar > max(abs(e.analytic), abs(e.numeric))
                else f"rel {e.rel:.1e}"
            )
            for e in elements
        ]
    wide = max(7, *(len(e.place) for e in elements))
    lines = [
        f"  {'element':<{wide}}    analytic      numeric ± bar          abs err    rel     err/bar"
    ]
    for e in elements:
        rel = "noise" if e.bar > max(abs(e.analytic), abs(e.numeric)) else f"{e.rel:.1e}"
        ratio = e.error / e.bar if e.bar > 0 else math.inf
        lines.append(
            f"  {e.place:<{wide}}  {e.analytic: .4e}  {e.numeric: .6e} ±{e.bar:.0e}  "
            f"{e.error:.1e}  {rel:<7} {ratio:.0e}"
        )
    return lines


def _seconds(s: float) -> str:
    return f"{s:.1f} s" if s >= 1 else f"{1e3 * s:.0f} ms"


def _plain(value: Any) -> Any:
    """Only what JSON knows."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
