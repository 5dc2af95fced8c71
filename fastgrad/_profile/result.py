"""What `profile_loss` returns: the numbers, and the report that shows them."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgrad._gradcheck.result import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Part:
    """One timed part of a loss: `times` of one call in seconds, a value for every round."""

    times: tuple[float, ...]
    loops: int
    read: int
    """Bytes that the call must read at least (the model, not a measurement)."""
    written: int
    floor: float = math.nan
    """Seconds in which this machine moves these bytes and does nothing else."""
    flops: float | None = None

    @property
    def median(self) -> float:
        """Seconds of one call."""
        return median(self.times)

    @property
    def ci(self) -> tuple[float, float]:
        """95 % confidence interval of the median."""
        return interval(self.times)

    @property
    def iqr(self) -> float:
        """Interquartile range as a share of the median."""
        low, high = np.quantile(self.times, [0.25, 0.75])
        return float(high - low) / self.median

    @property
    def gbps(self) -> float:
        """Traffic of the model per second, in 10^9 bytes."""
        return (self.read + self.written) / self.median / 1e9

    @property
    def fraction(self) -> float:
        """Share of the ceiling: the time that moving the bytes takes over the time taken."""
        return self.floor / self.median


@dataclass(frozen=True)
class Speedup:
    """Times of the reference over ours: `ratio` is the median over rounds."""

    ratio: float
    ci: tuple[float, float]
    difference: float
    """Largest difference between both results, as a share of the largest element."""
    agrees: bool
    """Whether that is rounding; if not, the ratio means nothing."""
    reference: tuple[float, ...]
    """Seconds of one call of the reference, in the rounds in which it ran."""


@dataclass(frozen=True)
class Memory:
    """Bytes that one call takes: its results, and what it needs besides at the worst moment."""

    result: int
    extra: int
    reference: int | None = None
    """What a call of the reference needs besides its results."""


@dataclass(frozen=True)
class Ceiling:
    """What this machine can do with as many bytes, in bytes per second."""

    copy: float
    read: float
    working_set: int
    level: str
    """The smallest cache that holds the working set, or "DRAM"; "" where sizes are unknown."""
    given: bool = False
    """Whether the caller gave it, so that nothing was measured."""


@dataclass(frozen=True)
class Progress:
    """What `callback` is told: rounds done of those expected, and seconds since the start."""

    phase: str
    done: int
    total: int
    seconds: float


@dataclass(frozen=True, repr=False)
class LossProfile:
    """What `profile_loss` found; ``print(profile)`` shows it as a table.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> p = fg.profile_loss(fg.softmax, np.zeros((8, 4)), what="forward", seconds=0.01)
    >>> part = p.parts["forward"]
    >>> part.ci[0] <= part.median <= part.ci[1]
    True
    >>> fg.LossProfile.from_json(p.to_json()) == p
    True
    """

    name: str
    inputs: tuple[tuple[str, tuple[int, ...], str], ...]
    """Name, shape and dtype of every array given."""
    threads: int
    cold: bool
    rounds: int
    seconds: float
    parts: dict[str, Part]
    reference: str | None
    speedup: dict[str, Speedup]
    ceiling: Ceiling
    traffic: str
    """The model of the bytes moved, in words."""
    memory: dict[str, Memory]
    accuracy: dict[str, float]
    """Largest error of each part in ulp against the exact twin; empty where there is none."""
    checked: str
    """What the accuracy was measured on, or why there is none."""
    warnings: tuple[str, ...]
    machine: dict[str, str]
    sweep: dict[int, LossProfile] = dataclasses.field(default_factory=dict)
    """Profiles by size, if there was a sweep; this profile is then that of the largest."""
    interrupted: bool = False
    dtype: str = "float64"
    """That of whose ulps the accuracy is."""

    def __str__(self) -> str:
        return plain(self.report(), getattr(sys.stdout, "encoding", None))

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{what} {_time(p.median, p)}"
            + (f" ({self.ratio(what)})" if what in self.speedup else "")
            for what, p in self.parts.items()
        )
        return f"<LossProfile {self.name}: {shown}>"

    # ---- the report -------------------------------------------------------------------------

    def title(self) -> tuple[str, str, str]:
        """Name, arguments, and the conditions of the measurement."""
        inputs = ", ".join(f"{name} {shape} {dtype}" for name, shape, dtype in self.inputs)
        threads = f"{self.threads} thread{'s' * (self.threads != 1)}"
        rounds = f"{self.rounds} interleaved round{'s' * (self.rounds != 1)}"
        how = f"{threads} · {'cold' if self.cold else 'warm'} · {rounds} · {self.seconds:.1f} s"
        return self.name, inputs, how + " · interrupted" * self.interrupted

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headings and one row of texts for every part; a column without content is left out."""
        vs = f"vs {self.reference}"
        names = ["", "median", "95% CI", "IQR", vs, "traffic", "rate", "of peak", "flops"]
        lines = []
        for what, p in self.parts.items():
            lines.append(
                [
                    what,
                    _time(p.median, p),
                    _range(p),
                    f"{p.iqr:.1%}",
                    self.ratio(what, ci=True) if what in self.speedup else "–",
                    format_bytes(p.read + p.written),
                    f"{p.gbps:.3g} GB/s",
                    f"{p.fraction:.0%}" if math.isfinite(p.fraction) else "–",
                    f"{p.flops / p.median / 1e9:.3g} Gflop/s" if p.flops else "–",
                ]
            )
        keep = [i for i in range(len(names)) if i == 0 or any(line[i] != "–" for line in lines)]
        return [names[i] for i in keep], [[line[i] for i in keep] for line in lines]

    def ratio(self, what: str, ci: bool = False) -> str:
        """The speed-up of a part as text, with its interval if asked for."""
        s = self.speedup[what]
        if not s.agrees:
            return f"DISAGREES ({s.difference:.1g})"
        low, high = (_significant(r, 3) for r in s.ci)
        return f"{_significant(s.ratio, 3)}×" + f" [{low}, {high}]" * ci

    def notes(self) -> list[tuple[str, str]]:
        """What stands below the table: topic and text."""
        c, found = self.ceiling, []
        where = {"": "", "DRAM": ", larger than every cache"}.get(c.level, f", fits {c.level}")
        source = "as given" if c.given else "measured in the same rounds"
        moves = f"a copy moves {c.copy / 1e9:.3g} GB/s here, a read {c.read / 1e9:.3g} ({source})"
        found.append(("peak", f"{moves}; working set {format_bytes(c.working_set)}{where}"))
        if self.memory:
            what, m = max(self.memory.items(), key=lambda item: item[1].extra + item[1].result)
            other = ""
            if m.reference is not None:
                other = f" ({self.reference}: {format_bytes(m.reference)})"
            extra = f"{what}: {format_bytes(m.extra)} extra{other}"
            found.append(("memory", f"{extra}, {format_bytes(m.result)} result"))
        if self.accuracy:
            errors = ", ".join(f"{what} {_ulp(u)}" for what, u in self.accuracy.items())
            worst = f"worst error in ulp of {self.dtype}: {errors}"
            found.append(("accuracy", f"{worst} ({self.checked})"))
        elif self.speedup:
            apart = max(s.difference for s in self.speedup.values())
            differ = f"differ from those of {self.reference} by {apart:.1g} in the 2-norm"
            same = f"equal those of {self.reference}"
            found.append(("accuracy", f"results {differ if apart else same}; {self.checked}"))
        else:
            found.append(("accuracy", self.checked))
        found.extend(("!", text) for text in self.warnings)
        return found

    def sweep_table(self) -> tuple[list[str], list[list[str]]]:
        """Headings and one row of texts for every size of the sweep."""
        names = ["size", *self.parts]
        lines = []
        for n, profile in self.sweep.items():
            cells = [f"{n:,}"]
            for what in self.parts:
                p = profile.parts[what]
                ratio = f"  {profile.ratio(what)}" if what in profile.speedup else ""
                cells.append(f"{_time(p.median, p)}{ratio}  {p.fraction:.0%}")
            lines.append(cells)
        return names, lines

    def report(self, width: int | None = None) -> str:
        """The report as plain text.

        Parameters
        ----------
        width : int, optional
            Columns of text; what does not fit is left out of the table, least important first.
            Default: all columns.
        """
        width = width or 200
        name, inputs, how = self.title()
        head = f"{name}   {inputs}   {how}"
        lines = (
            [head]
            if len(head) <= min(width, 100)
            else [*_wrapped(f"{name}   {inputs}", width), how]
        )
        names, rows = self.table()
        vs = f"vs {self.reference}"
        for narrower in (None, "IQR", "traffic", "95% CI", "rate", "ratio", "of peak"):
            if narrower == "ratio":
                i = names.index(vs) if vs in names else 0
                rows = [[*r[:i], r[i].split(" [")[0], *r[i + 1 :]] for r in rows]
            elif narrower in names:
                i = names.index(narrower)
                names, rows = names[:i] + names[i + 1 :], [r[:i] + r[i + 1 :] for r in rows]
            text = _aligned(names, rows)
            if max(map(len, text)) <= width:
                break
        lines += text
        for topic, note in self.notes():
            lines += _wrapped(note, width, f"{topic:<9} ")
        if self.sweep:
            lines += ["", *_aligned(*self.sweep_table()), "time, speed-up, share of the ceiling"]
        return "\n".join(lines)

    def compare(
        self,
        others: Mapping[str, LossProfile],
        *,
        name: str | None = None,
        width: int | None = None,
    ) -> str:
        """Show this profile next to others: their times, and how many times as fast it is.

        Parameters
        ----------
        others : mapping of str to LossProfile
            By the name to show.  They were measured at other moments: an interval that holds 1
            tells nothing.
        name : str, optional
            What to call this one.
        width : int, optional
            As for `report`.
        """
        lines = []
        for what, mine in self.parts.items():
            cells = [what, _time(mine.median, mine)]
            for other in others.values():
                p = other.parts.get(what)
                if p is None:
                    cells.append("–")
                    continue
                ratios = (p.median / mine.median, p.ci[0] / mine.ci[1], p.ci[1] / mine.ci[0])
                ratio, low, high = (_significant(r, 3) for r in ratios)
                cells.append(f"{_time(p.median, p)}, {ratio}× [{low}, {high}]")
            lines.append(cells)
        text = _aligned(["", name or self.name, *others], lines)
        for key, other in others.items():
            apart = [k for k, v in self.machine.items() if other.machine.get(k) != v]
            if other.inputs != self.inputs:
                apart.append("arguments")
            if other.threads != self.threads:
                apart.append("threads")
            if apart:
                text += _wrapped(
                    f"{key} was measured with other {', '.join(apart)}", width or 200, "! "
                )
        return "\n".join(text)

    # ---- exporters --------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Everything, as dicts, lists, strings and numbers."""
        d = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for key in ("parts", "speedup", "memory"):
            d[key] = {what: dataclasses.asdict(value) for what, value in d[key].items()}
        d["ceiling"] = dataclasses.asdict(self.ceiling)
        d["sweep"] = {str(n): p.to_dict() for n, p in self.sweep.items()}
        return d

    def to_json(self) -> str:
        """`to_dict` as JSON; `from_json` reads it."""
        return json.dumps(self.to_dict(), indent=1)

    @classmethod
    def from_json(cls, text: str) -> LossProfile:
        """The profile that `to_json` wrote."""
        return cls._from_dict(json.loads(text))

    @classmethod
    def _from_dict(cls, d: dict[str, Any]) -> LossProfile:
        d = dict(d)
        parts = {w: {**p, "times": tuple(p["times"])} for w, p in d["parts"].items()}
        d["parts"] = {w: Part(**p) for w, p in parts.items()}
        d["speedup"] = {
            w: Speedup(**{**s, "ci": tuple(s["ci"]), "reference": tuple(s["reference"])})
            for w, s in d["speedup"].items()
        }
        d["memory"] = {w: Memory(**m) for w, m in d["memory"].items()}
        d["ceiling"] = Ceiling(**d["ceiling"])
        d["inputs"] = tuple((name, tuple(shape), dtype) for name, shape, dtype in d["inputs"])
        d["warnings"] = tuple(d["warnings"])
        d["sweep"] = {int(n): cls._from_dict(p) for n, p in d["sweep"].items()}
        return cls(**d)

    def to_frame(self) -> Any:
        """One row per part (and size) as a pandas DataFrame; needs pandas."""
        import pandas

        return pandas.DataFrame(
            [
                {
                    **({"size": n} if self.sweep else {}),
                    "part": what,
                    "median": p.median,
                    "ci_low": p.ci[0],
                    "ci_high": p.ci[1],
                    "speedup": profile.speedup[what].ratio if what in profile.speedup else None,
                    "bytes": p.read + p.written,
                    "gbps": p.gbps,
                    "fraction": p.fraction,
                }
                for n, profile in (self.sweep or {0: self}).items()
                for what, p in profile.parts.items()
            ]
        )

    def plot(self) -> Figure:
        """Times by round, or for a sweep times and rates by size; needs matplotlib."""
        from matplotlib.figure import Figure

        # Not pyplot: that would choose a backend for the user and keep the figure alive.
        if not self.sweep:
            figure = Figure(figsize=(7, 2.4), layout="constrained")
            axes = figure.subplots()
            for what, p in self.parts.items():
                axes.plot(np.array(p.times) / p.median, ".-", lw=0.8, label=what)
            axes.set(xlabel="round", ylabel="time / median")
            axes.legend(fontsize="small")
            return figure
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        sizes = list(self.sweep)
        for what in self.parts:
            parts = [p.parts[what] for p in self.sweep.values()]
            (line,) = left.loglog(sizes, [p.median for p in parts], ".-", label=what)
            if all(what in p.speedup for p in self.sweep.values()):
                slow = [median(p.speedup[what].reference) for p in self.sweep.values()]
                left.loglog(sizes, slow, ":", color=line.get_color(), label=f"{what}, reference")
            right.semilogx(sizes, [p.gbps for p in parts], ".-", label=what)
        right.semilogx(
            sizes, [p.ceiling.copy / 1e9 for p in self.sweep.values()], "k--", label="copy"
        )
        left.set(xlabel="size", ylabel="seconds")
        right.set(xlabel="size", ylabel="GB/s", ylim=(0, None))
        for axes in (left, right):
            axes.legend(fontsize="small")
        return figure


# ---- texts --------------------------------------------------------------------------------------


def interval(times: Sequence[float]) -> tuple[float, float]:
    """Order statistics between which the median lies with a probability of at least 95 %.

    For fewer than six times no two do, and it is their range.
    """
    n, ordered = len(times), sorted(times)
    below, outside = 0, 0.5**n  # P(no more than `below` times lie under the median)
    while outside + math.comb(n, below + 1) * 0.5**n <= 0.025:
        below += 1
        outside += math.comb(n, below) * 0.5**n
    return ordered[below], ordered[n - 1 - below]


def _digits(p: Part) -> int:
    """Digits that the interval supports, from 2 to 4."""
    low, high = p.ci
    half = max((high - low) / 2 / p.median, 1e-9)
    return min(max(1 - math.floor(math.log10(half)), 2), 4)


_UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9))


def _unit(seconds: float) -> tuple[str, float]:
    return next((u for u in _UNITS if seconds >= u[1]), _UNITS[-1])


def _significant(x: float, digits: int) -> str:
    before = math.floor(math.log10(x)) + 1 if x > 0 else 1
    return f"{x:.{max(digits - before, 0)}f}"


def _time(seconds: float, p: Part) -> str:
    unit, size = _unit(seconds)
    return f"{_significant(seconds / size, _digits(p))} {unit}"


def _range(p: Part) -> str:
    size = _unit(p.median)[1]
    low, high = (_significant(t / size, min(_digits(p) + 1, 4)) for t in p.ci)
    return f"{low} – {high}"


def format_bytes(n: float) -> str:
    """Bytes in decimal units, three digits: 262 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000 or unit == "GB":
            return f"{n:.3g} {unit}" if n < 1000 else f"{n:,.0f} {unit}"
        n /= 1000
    raise AssertionError


def _ulp(error: float) -> str:
    return f"{error:.1f}" if error < 100 else f"{error:.0e}"


def _wrapped(text: str, width: int, lead: str = "") -> list[str]:
    return textwrap.wrap(
        text, max(width, 20), initial_indent=lead, subsequent_indent=" " * len(lead)
    )


def _aligned(names: list[str], lines: list[list[str]]) -> list[str]:
    """Columns under their headings: the first to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(names, *lines, strict=True)]
    return [
        "   ".join(
            c.ljust(w) if i == 0 else c.rjust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (names, *lines)
    ]
