"""The figures of the report: ratios to peers, the roofline, scaling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

OURS = "#c0392b"
COLOURS = {
    "numpy": "#4477aa",
    "scipy": "#66ccee",
    "torch": "#ee7733",
    "jax": "#228833",
    "scikit-learn": "#aa3377",
    "pandas": "#777777",
}
plt.rcParams |= {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=100, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def ratios(rows: list[dict[str, Any]], path: Path, caption: str) -> None:
    """Time of every peer in units of ours, one line for every case; a tick is the bar."""
    figure, axes = plt.subplots(figsize=(8.5, 0.24 * len(rows) + 1), layout="constrained")
    used = set()
    for i, row in enumerate(rows):
        ours = row["times"]["fastgrad"][1]
        best = row["times"][row["rival"]][1] / ours
        axes.plot([1, best], [i, i], color="#d5d8dc", lw=5, zorder=1, solid_capstyle="butt")
        for name, times in row["times"].items():
            library = name.split()[0]
            if library in COLOURS:
                used.add(library)
                axes.plot(times[1] / ours, i, "o", color=COLOURS[library], ms=5, zorder=3)
        if row["least"]:
            axes.plot(row["least"], i, "|", color="black", ms=11, mew=1.5, zorder=2)
    axes.axvline(1, color=OURS, lw=1.5, zorder=2)
    axes.set_xscale("log")
    ticks = [n for n in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if within(n, axes.get_xlim())]
    axes.set_xticks(ticks, [f"{n:g}" for n in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(rows)), [row["case"].replace(" float32", "") for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", color="#eeeeee", zorder=0)
    axes.set_xlabel(
        "time / time of fastgrad, float32, one thread (right of the red line: fastgrad is faster)"
        f"\n{caption}",
        fontsize=7.5,
    )
    handles = [Line2D([], [], color=OURS, lw=1.5, label="fastgrad")]
    handles += [
        Line2D([], [], marker="o", ls="", color=colour, label=name)
        for name, colour in COLOURS.items()
        if name in used
    ]
    handles.append(Line2D([], [], marker="|", ls="", ms=11, mew=1.5, color="black", label="bar"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    save(figure, path)


def within(n: float, ends: tuple[float, float]) -> bool:
    return ends[0] <= n <= ends[1]


def roofline(
    runs: list[dict[str, Any]], limits: list[dict[str, Any]], path: Path, caption: str
) -> None:
    """Bytes that must move, a second, against those bytes; lines are copies and reads."""
    figure, axes = plt.subplots(figsize=(8.5, 4.6), layout="constrained")
    sizes = [one["size"] / 2**20 for one in limits]
    for kind, style in (("copy", "-"), ("stream", "--"), ("read", ":")):
        label = {"stream": "streamed copy"}.get(kind, kind)
        speeds = [one[kind] / 1e9 for one in limits]
        axes.plot(sizes, speeds, style, color="black", lw=1.2, label=label)
    groups = sorted({run["group"] for run in runs})
    for group, colour in zip(groups, plt.get_cmap("tab10").colors, strict=False):
        cases = {run["case"] for run in runs if run["group"] == group}
        first = True
        for case in cases:
            of_case = [r for r in runs if r["case"] == case and r["group"] == group]
            ours = [r["GB/s"] for r in of_case if r["implementation"] == "fastgrad"]
            peers = [r["GB/s"] for r in of_case if r["implementation"] != "fastgrad"]
            x = of_case[0]["bytes"] / 2**20
            if ours and peers:
                axes.plot([x, x], [max(peers), ours[0]], color=colour, lw=0.8, alpha=0.5)
                axes.plot(x, max(peers), "o", color=colour, ms=4, mfc="white")
            if ours:
                label = group if first else None
                axes.plot(x, ours[0], "o", color=colour, ms=6, label=label)
                first = False
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g} MiB" if x >= 1 else f"{x * 1024:g} KiB")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(
        "bytes that must be read and written (full circles: fastgrad; empty: fastest peer)"
        f"\n{caption}",
        fontsize=7.5,
    )
    axes.set_ylabel("GB/s")
    axes.grid(color="#eeeeee")
    figure.legend(loc="outside right center", frameon=False)
    save(figure, path)


def scaling(results: dict[str, Any], path: Path, caption: str) -> None:
    """Time against each size, and how many times as fast more threads are."""
    kinds = [k for k in ("N", "C", "K") if any(s["against"] == k for s in results["series"])]
    figure, panels = plt.subplots(
        1,
        len(kinds) + 1,
        figsize=(13, 3.8),
        width_ratios=[1.1] * len(kinds) + [0.7],
        layout="constrained",
    )
    for axes, kind in zip(panels, kinds, strict=False):
        for one in results["series"]:
            if one["against"] == kind:
                label = f"{one['name']}: {kind}^{one['exponent']:.2f}"
                times = [t * 1e3 for t in one["seconds"]]
                axes.plot(one["sizes"], times, "o-", ms=3, lw=1, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        if kind != "N":  # within a decade or two
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.set_xlabel(kind)
        axes.set_ylabel("ms, one thread" if kind == kinds[0] else "")
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * (high / low) ** 0.35)  # room for the legend
        axes.grid(color="#eeeeee")
        axes.legend(fontsize=6.5, frameon=False, loc="upper left")
    axes = panels[-1]
    rows = results["threads"]
    last = [row["seconds"][0] / row["seconds"][-1] for row in rows]
    axes.barh(range(len(rows)), last, color=OURS, height=0.6)
    most = rows[0]["threads"][-1]
    axes.axvline(most, color="black", lw=1)
    axes.set_yticks(range(len(rows)), [_short(row["case"]) for row in rows], fontsize=6.5)
    axes.invert_yaxis()
    axes.set_xlabel(f"times as fast on {most} threads as on 1")
    figure.supxlabel(caption, fontsize=7.5)
    save(figure, path)


def _short(case: str) -> str:
    return case.replace(" float32", "").replace(" out=", "").replace("loss+gradient", "l+g")
