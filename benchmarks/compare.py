"""What changed between two files of results beyond noise.

The peers are the same in both: the median of their changes is the machine's, and is taken out; what
nine of ten of them stay below is noise.  fastgrad's time changed if its quartiles lie apart from
those before, and its median moved by more than that and by more than 5 %.  All columns of two runs
of the suite are in `pytest-benchmark compare`.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median, quantiles
from typing import Any

LEAST = 1.05

Quartiles = tuple[float, float, float]


def read(path: Path) -> dict[tuple[str, str], Quartiles]:
    """Quartiles of seconds by (case, contestant), of a run of the suite or of `bars`."""
    results: dict[str, Any] = json.loads(path.read_text())
    if "benchmarks" in results:
        found = {}
        for run in results["benchmarks"]:
            info, stats = run["extra_info"], run["stats"]
            key = f"{info['group']}: {info['case']}, {info['threads']} thread(s)"
            found[key, info["implementation"]] = (stats["q1"], stats["median"], stats["q3"])
        return found
    if results.get("command") == "bars":
        return {
            (f"{row['bar']}: {row['case']}, {row['threads']} thread(s)", name): tuple(times)
            for row in results["rows"]
            for name, times in row["times"].items()
        }
    raise SystemExit(f"{path} holds neither a run of the suite nor one of `bars`")


def main(before_path: Path, after_path: Path) -> int:
    """1 if fastgrad became slower anywhere."""
    before, after = read(before_path), read(after_path)
    both = [key for key in before if key in after]
    if not both:
        raise SystemExit("the two files have no case in common")
    for name, keys in (("before", before), ("after", after)):
        if len(keys) > len(both):
            print(f"{len(keys) - len(both)} times are only in the file {name}")
    peers = [after[key][1] / before[key][1] for key in both if key[1] != "fastgrad"]
    drift = median(peers) if peers else 1.0
    apart = [max(change / drift, drift / change) for change in peers]
    noise = max(LEAST, quantiles(apart, n=10)[-1] if len(apart) > 1 else LEAST)
    print(f"the peers took {drift:.3f} times as long, which is taken out; noise is {noise - 1:.1%}")
    counts = {"faster": 0, "slower": 0, "as before": 0}
    lines = []
    for case, name in both:
        old, new = before[case, name], after[case, name]
        if name == "fastgrad":
            change = new[1] / old[1] / drift
            overlap = new[0] / drift <= old[2] and new[2] / drift >= old[0]
            same = overlap or 1 / noise <= change <= noise
            verdict = "as before" if same else "slower" if change > 1 else "faster"
            counts[verdict] += 1
            if not same:
                lines.append((change, f"{old[1] * 1e3:>10.3f}{new[1] * 1e3:>10.3f}", case))
    if lines:
        print(f"\n{'before, ms':>10}{'after':>10}{'change':>9}")
    for change, times, case in sorted(lines):
        print(f"{times}{change - 1:>+9.1%}  {case}")
    print(f"\nfastgrad: {', '.join(f'{n} {verdict}' for verdict, n in counts.items())}")
    return int(counts["slower"] > 0)
