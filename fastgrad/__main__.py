"""The `fastgrad` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import fastgrad


def main(argv: Sequence[str] | None = None) -> int:
    """Run `fastgrad demo`, `info`, `repl` or `kernel`; without a command, the REPL."""
    parser = argparse.ArgumentParser(prog="fastgrad", description=fastgrad.__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"fastgrad {fastgrad.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    commands.add_parser("demo", help="fit handwritten digits and show what fastgrad does")
    commands.add_parser("info", help="versions, instruction sets, compiler, threads")
    # Its arguments are IPython's, --help and --version too.
    commands.add_parser(
        "repl", add_help=False, help="IPython with fastgrad loaded (the default); takes its options"
    )
    kernel = commands.add_parser("kernel", help="tell Jupyter about the fastgrad kernel")
    _kernel_options(kernel)
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] == "repl":
        return _repl(words[1:])
    given = parser.parse_args(words)
    return {"demo": _demo, "info": _info, "kernel": _kernel}[given.command](given)


def _kernel_options(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="action", required=True)
    for action, text in (
        ("install", "write the kernel spec, by default into this environment"),
        ("uninstall", "remove it"),
        ("doctor", "find it, start it and use it, and say what is wrong"),
    ):
        one = actions.add_parser(action, help=text, description=text)
        one.add_argument("--name", default="fastgrad", help="of the kernel (fastgrad)")
        if action == "doctor":
            continue
        place = one.add_mutually_exclusive_group()
        place.add_argument("--user", action="store_true", help="for this user")
        place.add_argument(
            "--sys-prefix",
            dest="prefix",
            action="store_const",
            const=sys.prefix,
            help="in this environment (the default in one)",
        )
        place.add_argument("--prefix", help="under PREFIX/share/jupyter/kernels")
        if action == "install":
            one.add_argument("--display-name", help="what Jupyter's menus show")
            one.add_argument(
                "--env",
                nargs=2,
                action="append",
                default=[],
                metavar=("NAME", "VALUE"),
                help="an environment variable of the kernel, such as OMP_NUM_THREADS",
            )


def _info(given: argparse.Namespace) -> int:
    fastgrad.show_config()
    return 0


def _demo(given: argparse.Namespace) -> int:
    def run() -> int:
        from fastgrad.demo import run

        return run()

    return _with_extra("demo", "fastgrad demo", run)


def _repl(words: Sequence[str]) -> int:
    from fastgrad.repl.console import main as start

    return start(words)


def _kernel(given: argparse.Namespace) -> int:
    def run() -> int:
        from fastgrad.repl import install

        if given.action == "doctor":
            return install.doctor(given.name)
        if given.action == "uninstall":
            return install.uninstall(given.name, given.user, given.prefix)
        try:
            return install.install(
                given.name, given.user, given.prefix, given.display_name, dict(given.env)
            )
        except (ValueError, OSError) as error:  # the name, or the place
            print(f"fastgrad kernel install: {error}", file=sys.stderr)
            return 1

    return _with_extra("repl", "fastgrad kernel", run)


def _with_extra(extra: str, command: str, run: Callable[[], int]) -> int:
    """Run what needs an extra, or say in one line which one is missing."""
    try:
        return run()
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        if missing == "fastgrad":
            raise
        print(
            f"{command} needs {missing}; install it with: pip install 'fastgrad[{extra}]'",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
