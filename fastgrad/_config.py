"""What this build and machine are."""

from __future__ import annotations

import platform
from importlib.metadata import version

import numpy as np

from fastgrad._kernels import isa, rows
from fastgrad._threads import get_num_threads


def show_config() -> None:
    """Print versions, instruction sets, compiler, OpenMP and threads.

    Examples
    --------
    >>> import fastgrad as fg
    >>> fg.show_config()  # doctest: +ELLIPSIS
    fastgrad          ...
    """
    compiler, openmp = rows.build_info()
    lines = {
        "fastgrad": version("fastgrad"),
        "NumPy": np.__version__,
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "instruction set": f"{isa.active_name()} (available: {', '.join(isa.available_names())})",
        "compiler": compiler,
        "OpenMP": str(openmp) if openmp else "no: this build runs on one thread",
        "threads": str(get_num_threads()),
    }
    for what, value in lines.items():
        print(f"{what:<17} {value}")
