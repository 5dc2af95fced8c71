"""Tables and figures of saved results: report.md and .html beside them, and figures/*.png here.

What README shows lies between `<!-- NAME: made by make report -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from benchmarks import figures

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
FIGURES = HERE / "figures"

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; font-size: 13px } td, th { padding: .2em .7em }
tr:nth-child(even) { background: #f6f6f6 } th { border-bottom: 2px solid; text-align: left }
td:not(:first-child), th:not(:first-child) { text-align: right } img { max-width: 100% }
"""


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def time_text(seconds: float) -> str:
    scale, unit = (1e6, "µs") if seconds < 1e-3 else (1e3, "ms")
    value = seconds * scale
    return f"{value:.3g} {unit}" if value < 100 else f"{value:,.0f} {unit}"


def made_by(results: dict[str, Any]) -> str:
    """The command, the machine and the date: what every figure has to say."""
    m = results["machine"]
    caches = ", ".join(f"{level} {size}" for level, size in m["caches"].items())
    versions = ", ".join(f"{name} {v}" for name, v in m["versions"].items())
    return (
        f"`{results['line']}` on {m['date']}, commit {m['commit']}: {m['processor']}, "
        f"{m['cores']} cores ({caches}), {m['instruction set']}, load {m['load']} before; "
        f"Python {m['python']}, "
        f"{m['compiler']}, {versions}."
    )


def caption(results: dict[str, Any]) -> str:
    m = results["machine"]
    return (
        f"{results['line']}, {m['date']}, commit {m['commit']}; {m['processor']}, "
        f"{m['cores']} cores, {m['instruction set']}, load {m['load']} before"
    )


# ---- one function for every file of results -----------------------------------------------------


def accuracy_table(results: dict[str, Any]) -> str:
    names = list(results["machine"]["versions"])
    rows = []
    for row in results["rows"]:
        eps = 2.0**-23 if row["dtype"] == "float32" else 2.0**-52
        cells = [_error_text(row["errors"].get(name), eps) for name in names]
        label = f"{row['dtype']}: {row['case']} ({row['unit']})"
        rows.append([label, *cells, f"{row['bar']:g}"])
    return table(["worst error", *names, "bar"], rows)


def _error_text(error: float | None, eps: float) -> str:
    if error is None:
        return "–"
    if error * eps > 0.5:
        return "lost"
    return f"{error:,.1f}" if error < 10 else f"{error:,.0f}"


def raced(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The cases against peers, float32, on one thread, each once."""
    rows: dict[str, dict[str, Any]] = {}
    for row in results["rows"]:
        plain = row["threads"] == 1 and row["dtype"] == "float32" and row["bar"] != "AVX2 forced"
        if plain and row["against"] in ("peers", "time") and row["rival"]:
            kept = rows.setdefault(row["case"], {**row, "times": dict(row["times"])})
            kept["times"] |= {n: t for n, t in row["times"].items() if n not in kept["times"]}
            others = [n for n in kept["times"] if n != "fastgrad"]
            kept["rival"] = min(others, key=lambda n: kept["times"][n][1])
    return [_with_bar(row) for row in rows.values()]


def best_form(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With `out=` alone where a case is there with and without."""
    names = {row["case"] for row in rows}
    return [row for row in rows if f"{row['case']} out=" not in names]


def _with_bar(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"least": row["least"] if row["against"] == "peers" else None}


def speed_table(results: dict[str, Any]) -> str:
    copies = {r["case"]: r["times"] for r in results["rows"] if r["against"] == "np.copyto"}
    rows = []
    for row in best_form(raced(results)):
        ours, best = row["times"]["fastgrad"][1], row["times"][row["rival"]][1]
        copy = copies.get(row["case"])
        rows.append(
            [
                row["case"].replace(" float32", "").replace("out=", "`out=`"),
                time_text(ours),
                f"{time_text(best)} ({row['rival']})",
                f"{best / ours:.1f}",
                f"{copy['np.copyto'][1] / copy['fastgrad'][1]:.2f}" if copy else "–",
            ]
        )
    head = ["float32, one thread", "fastgrad", "fastest other", "ratio", "ratio to np.copyto"]
    return table(head, rows)


def bars_table(results: dict[str, Any]) -> str:
    """For every bar its worst case."""
    by_bar: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in results["rows"]:
        if row["least"] is not None and row["verdict"] != "no peer":
            key = (row["bar"], row["against"], row["threads"])
            by_bar.setdefault(key, []).append(row)
    lines = []
    for (bar, against, threads), rows in by_bar.items():
        in_time = against == "time"

        def margin(row: dict[str, Any], in_time: bool = in_time) -> float:
            reached = 1 / row["times"]["fastgrad"][1] if in_time else row["ratio"]
            return reached * row["least"] if in_time else reached / row["least"]

        worst = min(rows, key=margin)
        missed = sum(row["verdict"] == "MISSED" for row in rows)
        found = time_text(worst["times"]["fastgrad"][1]) if in_time else f"{worst['ratio']:.2f}"
        least = f"≤ {time_text(worst['least'])}" if in_time else f"≥ {worst['least']:g}"
        verdict = f"**missed** in {missed} of {len(rows)}" if missed else f"met in {len(rows)}"
        rival = "" if in_time else worst["rival"]
        lines.append([bar, str(threads), least, found, worst["case"], rival, verdict])
    return table(["bar", "threads", "at least", "worst", "in", "rival", ""], lines)


def limit_table(results: dict[str, Any]) -> str:
    rows = []
    for one in results["limits"]:
        speeds = [f"{one[kind] / 1e9:.1f}" for kind in ("copy", "stream", "read")]
        rows.append([str(one["threads"]), f"{one['size'] / 2**20:g} MiB", *speeds])
    return table(["threads", "touched", "copy, GB/s", "streamed copy", "read"], rows)


def scaling_tables(results: dict[str, Any]) -> str:
    parts = []
    if "series" in results:
        rows = [
            [
                one["name"],
                one["against"],
                f"{one['sizes'][0]:,} to {one['sizes'][-1]:,}",
                f"{time_text(one['seconds'][0])} to {time_text(one['seconds'][-1])}",
                f"{one['exponent']:.2f}",
            ]
            for one in results["series"]
        ]
        head = ["time, one thread", "against", "from", "takes", "exponent of the upper half"]
        parts.append(table(head, rows))
    if "threads" in results:
        rows = [
            [row["case"], *(f"{row['seconds'][0] / s:.2f}" for s in row["seconds"])]
            for row in results["threads"]
        ]
        counts = [str(n) for n in results["threads"][0]["threads"]]
        parts.append(table(["times as fast, on threads", *counts], rows))
    if "memory" in results:
        rows = []
        for row in results["memory"]:
            ours = [b for n, b in row["peaks"].items() if n.startswith("fastgrad")]
            peers = {n: b for n, b in row["peaks"].items() if not n.startswith("fastgrad")}
            cells = ", ".join(f"{n} {b / 2**20:.1f}" for n, b in peers.items())
            rows.append([row["case"], *(f"{b / 2**20:.1f}" for b in ours), cells])
        head = ["MiB beyond arguments and results, ± 0.3", "1 thread", "all threads", "peers"]
        parts.append(table(head, rows))
    if "larger than memory" in results:
        found = results["larger than memory"]
        parts.append(
            f"The loss of {found['bytes'] / 2**30:.1f} GiB of logits in a file, in a process that "
            f"may have {found['allowed'] / 2**30:g} GiB of memory: {found['seconds']:.2f} s, "
            f"{found['GB/s']:.1f} GB/s."
        )
        found = results["beyond 2**31"]
        if "skipped" in found:
            parts.append(f"More than 2³¹ elements: not run, for only {found['skipped']}.")
        else:
            parts.append(
                f"{found['elements']:,} elements of float16: logsumexp in "
                f"{found['logsumexp, seconds']:.2f} s, cross-entropy with its gradient in place in "
                f"{found['value_and_grad in place, seconds']:.2f} s, rows checked."
            )
    return "\n\n".join(parts)


def suite_table(results: dict[str, Any]) -> str:
    by_case: dict[tuple[str, str, int], dict[str, dict[str, Any]]] = {}
    for run in results["benchmarks"]:
        info = run["extra_info"]
        key = (info["group"], info["case"], info["threads"])
        by_case.setdefault(key, {})[info["implementation"]] = run
    rows = []
    for (group, case, threads), runs in by_case.items():
        if "fastgrad" not in runs:
            continue
        medians = {name: run["stats"]["median"] for name, run in runs.items()}
        ours, info = medians.pop("fastgrad"), runs["fastgrad"]["extra_info"]
        best = min(medians, key=medians.__getitem__, default=None)
        rows.append(
            [
                group,
                case,
                str(threads),
                time_text(ours),
                f"{time_text(medians[best])} ({best})" if best else "–",
                f"{medians[best] / ours:.1f}" if best else "–",
                f"{info['GB/s']:.1f}",
                f"{info['fraction of the limit']:.2f}",
            ]
        )
    head = [
        "group",
        "case",
        "threads",
        "fastgrad",
        "fastest other",
        "ratio",
        "GB/s",
        "of the limit",
    ]
    return table(head, rows)


# ---- the report ---------------------------------------------------------------------------------


def main(folder: Path, readme: bool) -> int:
    saved = {p.stem: json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))}
    if not saved:
        raise SystemExit(f"{folder} holds no results: run `make bench` or `make report` first")
    FIGURES.mkdir(exist_ok=True)
    sections: dict[str, str] = {}

    def section(
        name: str, title: str, text: Callable[[dict[str, Any]], str], figure: str = ""
    ) -> None:
        if name in saved:
            picture = _shown(title, figure, folder) if figure else ""
            by = made_by(saved[name])
            sections[name] = f"## {title}\n\n{picture}{text(saved[name])}\n\n{by}"

    section("limit", "The limit", limit_table)
    if "bars" in saved:
        rows = best_form(raced(saved["bars"]))
        figures.ratios(rows, FIGURES / "ratios.png", caption(saved["bars"]))
    section("bars", "Speed", lambda r: speed_table(r) + "\n\n" + bars_table(r), "ratios.png")
    section("accuracy", "Accuracy", accuracy_table)
    if {"series", "threads"} <= saved.get("scaling", {}).keys():
        text = caption(saved["scaling"])
        figures.scaling(saved["scaling"], FIGURES / "scaling.png", text)
    section("scaling", "Scaling", scaling_tables, "scaling.png")
    for name in [n for n, results in saved.items() if "benchmarks" in results]:
        sections[name] = _suite(name, saved[name], folder)

    head = (
        "# fastgrad, measured\n\nMade by `python -m benchmarks report`; see the module docstrings."
    )
    text = "\n\n".join([head, *sections.values()]) + "\n"
    (folder / "report.md").write_text(text, "utf-8")
    body = MarkdownIt("commonmark").enable("table").render(text)
    page = f'<!doctype html><meta charset="utf-8"><title>fastgrad</title><style>{STYLE}</style>'
    (folder / "report.html").write_text(page + body, "utf-8")
    print(f"wrote {folder / 'report.md'}, report.html and {FIGURES}")
    if readme:
        _into_readme(saved)
    return 0


def _shown(title: str, figure: str, folder: Path) -> str:
    return f"![{title}]({os.path.relpath(FIGURES / figure, folder)})\n\n"


def _suite(name: str, results: dict[str, Any], folder: Path) -> str:
    """A run of pytest-benchmark, whose own JSON holds machine and limits elsewhere."""
    machine = {"machine": results["machine_info"]["fastgrad"], "line": "pytest benchmarks"}
    picture = f"roofline-{name}.png"
    runs = [run["extra_info"] for run in results["benchmarks"]]
    # Products of matrices are bound by arithmetic, small calls by overhead: bytes say nothing.
    left_out = ("linear", "checker", "call overhead")
    runs = [run for run in runs if not run["cold"] and run["group"] not in left_out]
    limits = results["machine_info"]["limits"]
    figures.roofline(runs, limits, FIGURES / picture, caption(machine))
    threads = machine["machine"]["threads"]
    title = f"The suite, {threads} thread{'s' * (threads > 1)}"
    return (
        f"## {title}\n\n{_shown(title, picture, folder)}{suite_table(results)}\n\n"
        f"{made_by(machine)}"
    )


def _into_readme(saved: dict[str, Any]) -> None:
    text = README.read_text("utf-8")
    shown = {
        "accuracy": lambda r: accuracy_table(r) + "\n\n" + made_by(r),
        "bars": lambda r: (
            "![time of each library in units of fastgrad's](benchmarks/figures/ratios.png)\n\n"
            + speed_table(r)
            + "\n\n"
            + made_by(r)
        ),
        "scaling": lambda r: (
            "![time against size and threads](benchmarks/figures/scaling.png)\n\n" + made_by(r)
        ),
        "speed-1": lambda r: "![bytes a second](benchmarks/figures/roofline-speed-1.png)",
    }
    for name, make in shown.items():
        if name not in saved:
            print(f"{README.name} keeps its {name}: no such results")
            continue
        text = _replaced(text, name, make(saved[name]))
    README.write_text(text, "utf-8")
    print(f"wrote {README}")


def _replaced(text: str, name: str, made: str) -> str:
    begin, end = f"<!-- {name}: made by make report -->", "<!-- end -->"
    if text.count(begin) != 1:
        raise SystemExit(f"{README} must hold {begin!r} once; it has it {text.count(begin)} times")
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{README}: behind {begin!r} there is no {end!r}")
    return f"{before}{begin}\n\n{made}\n\n{end}{after}"
