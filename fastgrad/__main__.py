"""The `fastgrad` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import fastgrad


def main(argv: Sequence[str] | None = None) -> int:
    """Run `fastgrad demo` or `fastgrad info`."""
    parser = argparse.ArgumentParser(prog="fastgrad", description=fastgrad.__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"fastgrad {fastgrad.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("demo", help="fit handwritten digits and show what fastgrad does")
    commands.add_parser("info", help="versions, instruction sets, compiler, threads")
    command = parser.parse_args(argv).command
    if command == "info":
        fastgrad.show_config()
        return 0
    try:
        from fastgrad.demo import run
    except ModuleNotFoundError as error:
        print(
            f"fastgrad demo needs {error.name}; install it with: pip install 'fastgrad[demo]'",
            file=sys.stderr,
        )
        return 1
    return run()


if __name__ == "__main__":
    sys.exit(main())
