"""How reports look: text with colour in a terminal, HTML in a notebook, progress in both.

The HTML holds no script, style sheet, SVG, id or class, so that it survives the sanitizer of an
untrusted notebook, and reads well where styles are dropped too.  It takes the colour of the text
from the page (dark themes), and says nothing by colour alone.
"""

from __future__ import annotations

import base64
import io
import math
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from html import escape
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from IPython.display import DisplayHandle, display

import fastgrad as fg
from fastgrad._gradcheck.result import plain

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell
    from matplotlib.figure import Figure

Result = Any
"""A `GradcheckResult` or a `LossProfile`."""

PATIENCE = 0.5
"""Seconds before progress is shown."""

# ---- text ---------------------------------------------------------------------------------------


def coloured(text: str) -> str:
    """The text with ANSI colours on its verdicts, warnings and ratios; its columns stay."""
    from rich.console import Console
    from rich.text import Text

    shown = Text(text)
    for pattern, style in (
        (r"^✔ \w+|^OK \w+", "bold green"),
        (r"^✘ \w+|^X \w+|DISAGREES", "bold red"),
        (r"^\? \w+", "bold yellow"),
        (r"(?m)^! .*(?:\n {2,}.*)*", "yellow"),
        (r"(?m)^ *(?:worst|coverage|pattern|kink|noise|peak|memory|accuracy|gradient) {2,}", "dim"),
        (r"\b\d[\d.]*×", "bold"),
    ):
        shown.highlight_regex(pattern, style)
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="standard", width=10_000)
    console.print(shown, soft_wrap=True, end="")
    return out.getvalue()


def shows_colour(shell: InteractiveShell) -> bool:
    """Whether this is a terminal that shows colour, and nobody said no to it."""
    return (
        find_spec("rich") is not None
        and sys.stdout.isatty()
        and not in_kernel(shell)
        and str(shell.colors).lower() != "nocolor"
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM") != "dumb"
    )


def in_kernel(shell: InteractiveShell) -> bool:
    """Whether the shell serves a notebook or another client, not a terminal."""
    return getattr(shell, "kernel", None) is not None


def text(result: Result, shell: InteractiveShell, note: str = "") -> str:
    """The report, and a note below it, as this shell's terminal can show it."""
    # Of a terminal that is narrower than a report can be, the lines are broken by itself.
    width = 100 if in_kernel(shell) else max(shutil.get_terminal_size().columns, 40)
    report = result.report(width) + (f"\n{note}" if note else "")
    report = printable(report, shell)
    return coloured(report) if shows_colour(shell) else report


def printable(text: str, shell: InteractiveShell) -> str:
    """The text as this shell's stdout can carry it."""
    # A kernel's stdout is a stream of UTF-8, whatever the terminal that it was started from.
    encoding = "utf-8" if in_kernel(shell) else getattr(sys.stdout, "encoding", None)
    return plain(text, encoding)


# ---- HTML ---------------------------------------------------------------------------------------

_CELL = "padding:2px 6px;text-align:{};font-family:monospace;font-size:12px"
_UNBROKEN = _CELL + ";white-space:nowrap"
_CHIP = "background-color:{};color:#ffffff;padding:2px 8px;font-weight:bold;border-radius:4px"
_COLOURS = {
    "PASS": "#2e7d32",
    "KINK": "#2e7d32",
    "FAIL": "#c62828",
    "UNRESOLVED": "#9a6700",
    "INTERRUPTED": "#616161",
}


def html(result: Result) -> str:
    """The report as HTML that needs nothing but itself."""
    return _profile(result) if isinstance(result, fg.LossProfile) else _gradcheck(result)


def _card(*parts: str) -> str:
    return f'<div style="text-align:left;line-height:1.5">{"".join(parts)}</div>'


def _chip(word: str, colour: str) -> str:
    return f'<span style="{_CHIP.format(colour)}">{escape(word)}</span>'


def _line(content: str) -> str:
    return f"<div>{content}</div>"


def _table(names: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table of HTML cells; the first column is a heading, and the first two are never broken."""

    def row(cells: Sequence[str], tag: str) -> str:
        inner = ""
        for i, cell in enumerate(cells):
            style = (_UNBROKEN if i < 2 else _CELL).format("right" if i else "left")
            kind = tag if i else "th"
            inner += f'<{kind} style="{style}">{cell}</{kind}>'
        return f"<tr>{inner}</tr>"

    body = "".join(row(line, "td") for line in lines)
    return f'<table style="margin:6px 0px">{row(names, "th")}{body}</table>'


def _details(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def _meter(share: float, text: str, bad: str = "") -> str:
    value = min(max(share, 0.0), 1.0)
    return f'{escape(text)} <meter min="0" max="1"{bad} value="{value:.3f}">{escape(text)}</meter>'


def image(figure: Figure) -> str:
    """A figure as an image that is part of the page."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out)
    data = base64.b64encode(out.getvalue()).decode()
    return f'<img alt="figure" src="data:image/png;base64,{data}">'


def _profile(p: fg.LossProfile) -> str:
    name, inputs, how = p.title()
    names, lines = p.table()
    vs = f"vs {p.reference}"
    rows = []
    for (what, part), line in zip(p.parts.items(), lines, strict=True):
        cells = {n: escape(cell) for n, cell in zip(names, line, strict=True)}
        # Two lines in a cell, so that the table fits beside a narrow side bar.
        cells["median"] += f"<br/>{cells.pop('95% CI').replace(' ', '&nbsp;')}"
        if math.isfinite(part.fraction):
            cells["of peak"] = _meter(part.fraction, f"{part.fraction:.0%}")
        if what in p.speedup:
            cells[vs] = _speedup(p, what)
        rows.append(list(cells.values()))
    names[names.index("median")] += " (95% CI)"
    names.remove("95% CI")
    topics = "".join(
        _line(f"<b>{'note' if topic == '!' else topic}</b> {escape(note)}")
        for topic, note in p.notes()
    )
    machine = _table(
        ["machine", ""], [[escape(key), escape(value)] for key, value in p.machine.items()]
    )
    sweep = ""
    if p.sweep:
        heads, cells_of = p.sweep_table()
        sweep = _table([escape(h) for h in heads], [[escape(c) for c in r] for r in cells_of])
        sweep += _line("time, speed-up, share of the peak")
    return _card(
        _line(f"<b>{escape(name)}</b> &nbsp; {escape(inputs)}"),
        _line(escape(how)),
        _table([escape(n) for n in names], rows),
        topics,
        sweep,
        _details(
            "How this was measured",
            _line(f"Traffic is a model: {escape(p.traffic)}.")
            + _line(
                "In each round every contestant ran once, in alternating order; intervals are "
                "order statistics of the rounds, a speed-up is the median of the ratios within "
                "rounds. Peak is what kernels that only read and copy reach on as many bytes."
            )
            + machine,
        ),
    )


def _speedup(p: fg.LossProfile, what: str) -> str:
    """The ratio above its interval, in bold with a word where that leaves out 1."""
    s = p.speedup[what]
    ratio, _, interval = escape(p.ratio(what, ci=True)).partition(" ")
    if not s.agrees:
        return f"{_chip(ratio, _COLOURS['FAIL'])}<br/>{interval}"
    word = " (faster)" if s.ci[0] > 1 else " (slower)" if s.ci[1] < 1 else ""
    first = f"<b>{ratio}</b>{word}" if word else ratio
    return f"{first}<br/>{interval}".replace(" ", "&nbsp;")


def _relative(error: float) -> str:
    """On a logarithmic scale from 1e-16 to 1, in another colour from 1e-6 on."""
    # Without `optimum`, which the sanitizer drops: the range from low to high is the good one.
    scale = ' low="0" high="0.625"'
    return _meter((math.log10(max(error, 1e-16)) + 16) / 16, f"{error:.1g}", scale)


def _number(x: Any) -> str:
    return "–" if x is None else f"{x:.6g}"


def _gradcheck(r: Any) -> str:
    of = ", ".join(f"d/d{i.name} {tuple(i.shape)} {i.dtype}" for i in r.inputs.values())
    word = {"PASS": "✔ PASS", "KINK": "✔ PASS", "FAIL": "✘ FAIL"}.get(r.verdict, r.verdict)
    if r.verdict == "KINK":
        word += f", {len(r.kinks)} kink{'s' * (len(r.kinks) != 1)}"
    head = " · ".join([of, r.mode, f"{r.evals:,} evaluations", _seconds(r.seconds)])
    parts = [
        _line(f"{_chip(word, _COLOURS[r.verdict])} <b>{escape(r.name)}</b> &nbsp; {escape(head)}"),
        _line(escape(r.message)) if not r else "",
        _line(f"<b>pattern</b> {escape(r.pattern)}") if r.pattern else "",
        _line(f"<b>coverage</b> {escape(r.coverage())}"),
        _line(f"<b>guarantee</b> {escape(r.guarantee)}") if r.guarantee else "",
        *(_line(f"<b>note</b> {escape(note)}") for note in r.notes),
    ]
    elements = (r.wrong or r.unresolved or r.worst)[: r.top if not r else 3]
    if elements:
        parts.append(
            _table(
                [
                    "wrong" if r.wrong else "unresolved" if r.unresolved and not r else "worst",
                    "analytic",
                    "numeric ± bar",
                    "rel. error",
                    "error / bar",
                ],
                [
                    [
                        escape(_place(e.input, e.index)),
                        _number(e.analytic),
                        f"{_number(e.numeric)} ± {e.bar:.1g}",
                        _relative(e.rel),
                        f"{e.error / e.bar:.0e}" if e.bar > 0 else "inf",
                    ]
                    for e in elements
                ],
            )
        )
    inputs = [
        [
            escape(i.name),
            escape(f"{tuple(i.shape)} {i.dtype}"),
            f"{i.checked:,}",
            f"{i.resolved:,}",
            f"{i.wrong:,}",
        ]
        for i in r.inputs.values()
    ]
    parts.append(_details("Inputs", _table(["input", "", "checked", "resolved", "wrong"], inputs)))
    if r.kinks:
        kinks = [
            [
                escape(_place(k.input, k.index)),
                _number(k.left),
                _number(k.right),
                _number(k.analytic),
                "yes" if k.valid else "NO",
            ]
            for k in r.kinks
        ]
        heads = ["kink", "left slope", "right slope", "analytic", "between them"]
        parts.append(_details(f"Kinks ({len(kinks)})", _table(heads, kinks)))
    if len(r.diagnoses) > 1:
        found = "".join(_line(escape(d.text)) for d in r.diagnoses)
        parts.append(_details("Everything noticed", found))
    facts = [
        ["kind", escape(str(r.kind))],
        ["mode", escape(str(r.mode))],
        ["noise of f", _number(r.noise)],
        ["seed", escape(str(r.seed))],
        ["evaluations", f"{r.evals:,}"],
    ]
    parts.append(_details("How this was computed", _table(["", ""], facts)))
    return _card(*parts)


def _place(name: str, index: Sequence[int] | None) -> str:
    return f"{name}[{', '.join(map(str, index))}]" if index else name


def _seconds(t: float) -> str:
    return f"{t:.1f} s" if t >= 1 else f"{t * 1e3:.0f} ms"


def gradcheck_figure(r: Any) -> Figure | None:
    """Error map and analytic against numeric of the first input; None where they are not kept."""
    from matplotlib.figure import Figure

    kept = [i for i in r.inputs.values() if i.numeric is not None and i.analytic is not None]
    if not kept:
        return None
    one = kept[0]
    analytic, numeric, bar = (
        np.asarray(a, np.float64) for a in (one.analytic, one.numeric, one.bar)
    )
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    with np.errstate(all="ignore"):
        ratio = np.abs(analytic - numeric) / bar
    table = np.atleast_2d(ratio)
    while table.ndim > 2:  # the worst over all but the last two axes
        table = np.nanmax(table, axis=0)
    drawn = left.imshow(
        np.log10(np.maximum(table, 1e-3)), aspect="auto", interpolation="nearest", vmin=-3, vmax=6
    )
    figure.colorbar(drawn, ax=left, label="log10(error / bar)")
    left.set(title=f"d/d{one.name}", xlabel="last axis")
    sizes = np.abs([numeric, analytic])[:, np.isfinite(numeric)]
    edge = sizes[sizes > 0].min(initial=1.0) / 10
    right.loglog(*np.maximum(sizes, edge), ".")  # zeros lie on the edge, not outside
    line = [v for v in right.get_xlim() if v > 0]
    right.loglog(line, line, "k--", lw=0.8)
    right.set(xlabel="|numeric|", ylabel="|analytic|")
    return figure


# ---- showing ------------------------------------------------------------------------------------


class Progress:
    """Told how far a run is; shows it after half a second, and leaves nothing behind."""

    def __init__(self, shell: InteractiveShell, quiet: bool) -> None:
        self.kernel, self.quiet = in_kernel(shell), quiet
        self.handle: DisplayHandle | None = None
        self._bar: Any = None

    def __call__(self, p: Any) -> None:
        """Called by `gradcheck` and `profile_loss`, at most five times a second."""
        if self.quiet or p.seconds < PATIENCE:
            return
        wrong = f", {p.wrong:,} wrong so far" if getattr(p, "wrong", 0) else ""
        label = f"{p.phase}{wrong}"
        if self.kernel:
            share = f'max="{p.total}" value="{p.done}"' if p.total else ""
            bundle = {
                "text/plain": f"{label} {p.done}/{p.total}",
                "text/html": f"<progress {share}></progress> {escape(label)}",
            }
            if self.handle is None:
                self.handle = display(bundle, raw=True, display_id=True)
            else:
                self.handle.update(bundle, raw=True)
        elif sys.stderr.isatty() and find_spec("rich") is not None:
            if self._bar is None:
                from rich.console import Console
                from rich.progress import Progress as Bar

                self._bar = Bar(console=Console(stderr=True), transient=True)
                self._task = self._bar.add_task(label, total=None)
                self._bar.start()
            self._bar.update(self._task, description=label, completed=p.done, total=p.total or None)

    def replace(self, bundle: dict[str, str]) -> None:
        """Show the report, in the place of the progress if there was some."""
        if self.handle is None:
            self.close()
            display(bundle, raw=True)
        else:
            self.handle.update(bundle, raw=True)
            self.handle = None

    def close(self) -> None:
        """Erase what no report has replaced."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self.handle is not None:
            self.handle.update({"text/plain": ""}, raw=True)
            self.handle = None


def bundle(
    result: Result, shell: InteractiveShell, note: str = "", figure: Figure | None = None
) -> dict[str, str]:
    """The report in every form that a client may choose from."""
    page = html(result)
    if note:
        page = _card(page, _line(escape(note)))
    if figure is not None:
        page = _card(page, image(figure))
    return {"text/plain": text(result, shell, note), "text/html": page}
