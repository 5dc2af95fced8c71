"""The commands of the benchmarks: see `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

RESULTS = Path(".benchmarks")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str, quick: bool = False) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("--results", type=Path, default=RESULTS, help="folder (.benchmarks)")
        if quick:
            added.add_argument("--quick", action="store_true", help="less of it, in shorter rounds")
        return added

    command("limit", "Copies and reads of this machine, by size and threads.", quick=True)
    bars = command("bars", "Whether every bar of the project is met; 1 if not.", quick=True)
    bars.add_argument("--only", default="", help="only rows whose bar or case contains this")
    bars.add_argument("--part", choices=("one", "many", "isa", "threads"), help=argparse.SUPPRESS)
    accuracy = command("accuracy", "Worst errors against long double; 1 if a bar is missed.")
    accuracy.add_argument("--isa", help="force this instruction set")
    scaling = command("scaling", "Time and memory against size and threads.", quick=True)
    scaling.add_argument("--only", default="", help="only parts whose name contains this")
    report = command("report", "Tables and figures of the saved results.")
    report.add_argument("--readme", action="store_true", help="also those in README.md")
    compare = commands.add_parser("compare", help="What changed between two files beyond noise.")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    args = parser.parse_args()

    # Each imports libraries that read their settings when they are loaded: only what is needed.
    if args.command == "compare":
        from benchmarks.compare import main as compared

        return compared(args.before, args.after)
    args.results.mkdir(parents=True, exist_ok=True)
    if args.command == "report":
        from benchmarks.report import main as reported

        return reported(args.results, args.readme)

    if args.command in ("limit", "scaling"):  # these set threads as they go, up to all
        os.environ.setdefault("BENCH_THREADS", str(os.cpu_count() or 1))
    failed, name = False, args.command
    if args.command == "limit":
        from benchmarks.limit import main as limited

        results = limited(0.1 if args.quick else 0.5)
    elif args.command == "bars":
        from benchmarks import bars as race

        if args.part:
            name = f"bars-{args.part}"
            results = {"rows": race.run_part(args.part, args.quick, args.only)}
        else:
            results = race.main(args.quick, args.only, args.results)
            failed = any(row["verdict"] == "MISSED" for row in results["rows"])
    elif args.command == "accuracy":
        from benchmarks.accuracy import main as errors

        results = errors(args.isa)
        failed = any(not row["met"] for row in results["rows"])
    else:
        from benchmarks.scaling import main as scaled

        results = scaled(args.quick, args.only)

    from benchmarks import libraries

    line = " ".join(["python -m benchmarks", *sys.argv[1:]])
    results = {"command": args.command, "line": line, "machine": libraries.machine(), **results}
    (args.results / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
