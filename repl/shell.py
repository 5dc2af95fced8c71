"""What the terminal and the kernel share: names that are there, and a banner that says where."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import numpy as np

import fastgrad as fg
from fastgrad._kernels import isa

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell as _Base
else:
    _Base = object

NAMES: dict[str, Any] = {"fg": fg, "fastgrad": fg, "np": np}
EXTENSIONS = ["storemagic", "fastgrad"]
"""IPython's own, and ours: the magics come the way that a user would load them."""


def banner() -> str:
    """Versions, instruction set and threads, and what to type."""
    n = fg.get_num_threads()
    return (
        f"fastgrad {fg.__version__} | {isa.active_name()}, {n} thread{'s' * (n != 1)} | "
        f"NumPy {np.__version__}, Python {platform.python_version()} | loaded: fg, np\n"
        "  %gradcheck fg.cross_entropy(X, y)      is the gradient right?\n"
        "  %profile_loss fg.cross_entropy(X, y)   how far from this machine's limit?\n"
    )


class Preloaded(_Base):
    """A shell with fastgrad and NumPy in it, which also %reset leaves there."""

    def init_user_ns(self) -> None:
        """Called at the start and by %reset."""
        super().init_user_ns()
        self.user_ns.update(NAMES)
        # Not the user's own variables: %who does not list them.
        self.user_ns_hidden.update(NAMES)
