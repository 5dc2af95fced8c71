"""`fastgrad kernel install | uninstall | doctor`: tell Jupyter of the kernel, or see what ails."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from queue import Empty
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from jupyter_client.manager import start_new_kernel
from jupyter_core.paths import jupyter_data_dir
from traitlets import TraitError

MODULE = "fastgrad.repl.kernel"
PATIENCE = 60
"""Seconds that a kernel may take to start, or to answer."""


def spec(display_name: str | None, env: dict[str, str]) -> dict[str, Any]:
    """The contents of kernel.json; the interpreter by its full path, so that it is this one."""
    return {
        "argv": [
            sys.executable,
            "-Xfrozen_modules=off",
            "-m",
            MODULE,
            "-f",
            "{connection_file}",
        ],
        "display_name": display_name
        or f"fastgrad (Python {sys.version_info.major}.{sys.version_info.minor})",
        "language": "python",
        "interrupt_mode": "signal",
        "kernel_protocol_version": "5.5",
        "metadata": {"debugger": True, "supported_encryption": ["curve"]},
        **({"env": env} if env else {}),
    }


def install(
    name: str,
    user: bool,
    prefix: str | None,
    display_name: str | None = None,
    env: dict[str, str] | None = None,
) -> int:
    """Write the kernel spec; by default into this environment, outside of one for the user."""
    user, prefix = _place(user, prefix)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # it is copied with its mode, and others must read it
        Path(folder, "kernel.json").write_text(json.dumps(spec(display_name, env or {}), indent=1))
        for logo in (files("fastgrad.repl") / "kernelspec").iterdir():
            Path(folder, logo.name).write_bytes(logo.read_bytes())
        manager = KernelSpecManager()
        where = manager.install_kernel_spec(folder, kernel_name=name, user=user, prefix=prefix)
    option = "--user" if user else f"--prefix {prefix}"
    print(f"installed kernel {name!r} in {where}")
    kernels = Path(where).resolve().parent
    if kernels not in [Path(folder).resolve() for folder in manager.kernel_dirs]:
        print(f"Jupyter here does not look there, unless JUPYTER_PATH has {kernels.parent}")
    print(f"to undo: fastgrad kernel uninstall --name {name} {option}")
    return 0


def uninstall(name: str, user: bool, prefix: str | None) -> int:
    """Remove the kernel spec from the same place."""
    user, prefix = _place(user, prefix)
    root = Path(jupyter_data_dir()) if user else Path(str(prefix), "share", "jupyter")
    folder = root / "kernels" / name
    try:
        argv = json.loads((folder / "kernel.json").read_text("utf-8"))["argv"]
    except FileNotFoundError:
        print(f"there is no kernel {name!r} in {folder.parent}", file=sys.stderr)
        return 1
    except (ValueError, LookupError, TypeError):  # it is damaged
        argv = []
    if MODULE not in argv:
        print(f"{folder} is not a fastgrad kernel; left as it is", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    print(f"removed {folder}")
    return 0


def _place(user: bool, prefix: str | None) -> tuple[bool, str | None]:
    if user or prefix:
        return user, prefix
    in_environment = sys.prefix != sys.base_prefix
    return not in_environment, sys.prefix if in_environment else None


def doctor(name: str) -> int:
    """Say whether Jupyter finds the kernel, whether it is this one, and whether it works."""
    worked = True
    for good, what in _findings(name):
        print(f"{'ok  ' if good else 'BAD '} {what}")
        worked &= good
    return 0 if worked else 1


def _same(python: str, other: str) -> bool:
    """Whether both are the Python of one environment, as `python` and `python3` are.

    The folder counts, too: environments hold links to one Python outside of them.
    """
    a, b = Path(python), Path(other)
    return a.exists() and a.samefile(b) and a.parent.samefile(b.parent)


def _findings(name: str) -> Iterator[tuple[bool, str]]:
    try:
        found = KernelSpecManager().get_kernel_spec(name)
    except NoSuchKernel:
        yield False, f"Jupyter knows no kernel {name!r}; run: fastgrad kernel install"
        return
    except (ValueError, TypeError, TraitError) as error:
        yield False, f"kernel.json is damaged: {error}; run: fastgrad kernel install --name {name}"
        return
    yield True, f"Jupyter finds kernel {name!r} in {found.resource_dir}"
    if MODULE not in found.argv:
        yield False, f"it does not start {MODULE}"
        return
    same = _same(found.argv[0], sys.executable)
    hint = "" if same else f", not this one, {sys.executable}; run fastgrad kernel install again"
    yield same, f"it starts {found.argv[0]}{hint}"
    try:
        manager, client = start_new_kernel(startup_timeout=PATIENCE, kernel_name=name)
    except (RuntimeError, OSError) as error:
        yield False, f"it does not start: {error}"
        return
    try:
        info = client.kernel_info(reply=True, timeout=PATIENCE)["content"]
        ours = info["implementation"] == "fastgrad"
        yield ours, f"it answers as {info['implementation']} {info['implementation_version']}"
        for line in ("%gradcheck?", "%gradcheck fg.softmax(np.zeros((2, 3)))"):
            reply = client.execute_interactive(
                line, silent=False, timeout=PATIENCE, output_hook=lambda message: None
            )["content"]
            said = reply.get("evalue", "").splitlines() or ["works"]
            yield reply["status"] == "ok", f"{line}: {said[0]}"
    except (Empty, TimeoutError, RuntimeError) as error:
        yield False, f"it does not answer: {error!r}"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
