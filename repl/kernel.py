"""The Jupyter kernel: ipykernel with fastgrad in it; `python -m fastgrad.repl.kernel`."""

from __future__ import annotations

import sys

try:
    from ipykernel.ipkernel import IPythonKernel
    from ipykernel.kernelapp import IPKernelApp
    from ipykernel.zmqshell import ZMQInteractiveShell
except ModuleNotFoundError as error:
    missing = str(error.name).partition(".")[0]
    sys.exit(f"the fastgrad kernel needs {missing}; install it with: pip install 'fastgrad[repl]'")
from traitlets import Type, Unicode, default

import fastgrad
from fastgrad.repl import shell


class FastgradShell(shell.Preloaded, ZMQInteractiveShell):
    """The shell behind a notebook."""

    @default("banner1")
    def _banner(self) -> str:
        return shell.banner()

    @default("enable_tip")
    def _tip(self) -> bool:
        return False  # IPython 9 would add a line at random


class FastgradKernel(IPythonKernel):
    """Python to every client (its language is python), with fastgrad, NumPy and the magics."""

    shell_class = Type(FastgradShell)
    implementation = "fastgrad"
    implementation_version = fastgrad.__version__

    @default("help_links")
    def _help_links(self) -> list[dict[str, str]]:
        return [
            {"text": "NumPy", "url": "https://numpy.org/doc/stable"},
            {"text": "IPython", "url": "https://ipython.readthedocs.io"},
        ]


class FastgradKernelApp(IPKernelApp):
    """Starts one kernel."""

    name = Unicode("fastgrad-kernel")
    kernel_class = Type(FastgradKernel)

    @default("default_extensions")
    def _extensions(self) -> list[str]:
        return shell.EXTENSIONS


if __name__ == "__main__":
    FastgradKernelApp.launch_instance()
