"""Interactive front ends of fastgrad; the home of its IPython extension.

``%load_ext fastgrad.repl`` works and registers nothing yet: the magics ``%gradcheck`` and
``%profile_loss`` arrive in a later version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

# From the root of the repository this folder is also found as `repl`: a second copy of every
# module, whose classes are not those of the first.
if __name__ != "fastgrad.repl":
    raise ImportError(
        f"this package must be imported as 'fastgrad.repl'; it was imported as {__name__!r} from "
        "the repository's folder. Write 'import fastgrad.repl'."
    )

__all__ = ["load_ipython_extension", "unload_ipython_extension"]


def load_ipython_extension(ipython: InteractiveShell) -> None:
    """Register fastgrad's magics with a shell; there are none in this version."""


def unload_ipython_extension(ipython: InteractiveShell) -> None:
    """Take fastgrad's magics out of a shell; there are none in this version."""
