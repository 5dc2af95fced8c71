"""The terminal: IPython with fastgrad in it; `fastgrad`, or `python -m fastgrad.repl`."""

from __future__ import annotations

import code
import sys
from collections.abc import Sequence

from fastgrad.repl import shell


def main(argv: Sequence[str] = ()) -> int:
    """Start IPython with its own command line: ``-c``, files, ``--no-banner``, and so on."""
    try:
        import IPython  # noqa: F401
    except ModuleNotFoundError:
        return plain(argv)
    ipython(argv)
    return 0


def plain(argv: Sequence[str]) -> int:
    """Python's own prompt, where IPython is missing: the functions without the magics."""
    if argv:
        print(
            f"fastgrad repl needs IPython for {' '.join(argv)}; install it with: "
            "pip install 'fastgrad[repl]'",
            file=sys.stderr,
        )
        return 1
    print(
        "IPython is not installed, so there are no magics: call fg.gradcheck(f, X, y) and "
        "fg.profile_loss(f, X, y), or install it with: pip install 'fastgrad[repl]'",
        file=sys.stderr,
    )
    first = shell.banner().splitlines()[0]
    code.interact(first, local=dict(shell.NAMES), exitmsg="")
    return 0


def ipython(argv: Sequence[str]) -> None:
    """IPython, configured by the user's own files too."""
    from IPython.terminal.interactiveshell import TerminalInteractiveShell
    from IPython.terminal.ipapp import TerminalIPythonApp
    from traitlets import default

    class Shell(shell.Preloaded, TerminalInteractiveShell):
        @default("banner1")
        def _banner(self) -> str:
            return shell.banner()

        @default("enable_tip")
        def _tip(self) -> bool:
            return False  # IPython 9 would add a line at random

    class App(TerminalIPythonApp):
        @default("interactive_shell_class")
        def _shell(self) -> type:
            return Shell

        @default("default_extensions")
        def _extensions(self) -> list[str]:
            return shell.EXTENSIONS

    App.launch_instance(argv=list(argv))
