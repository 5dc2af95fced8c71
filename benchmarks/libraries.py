"""The libraries that are compared, loaded with the same number of threads; and this machine.

Import this module before NumPy: libraries read their thread counts, and whether idle threads spin,
from the environment when they are loaded.  BENCH_THREADS sets the threads of all (default 1),
BENCH_PEERS the libraries to compare with (default: those of NAMES that are installed).
"""

# ruff: noqa: E402 - the environment has to be set before the imports.

from __future__ import annotations

import os

NAMES = ("numpy", "scipy", "torch", "jax", "scikit-learn", "pandas")
THREADS = int(os.environ.get("BENCH_THREADS", "1"))
WANTED = os.environ.get("BENCH_PEERS", ",".join(NAMES)).split(",")

# Torch and scikit-learn bring an OpenMP runtime each besides ours, and in one process they spin
# against each other; fastgrad alone waits as it does for everybody, whoever started this process.
WAIT = os.environ.setdefault("BENCH_WAIT", os.environ.get("OMP_WAIT_POLICY", ""))
if set(WANTED) & {"torch", "scikit-learn"}:
    os.environ["OMP_WAIT_POLICY"] = "passive"
elif WAIT:
    os.environ["OMP_WAIT_POLICY"] = WAIT
else:
    os.environ.pop("OMP_WAIT_POLICY", None)
for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(THREADS)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    f"--xla_cpu_multi_thread_eigen={'true' if THREADS > 1 else 'false'} "
    f"intra_op_parallelism_threads={THREADS}"
)
if hasattr(os, "sched_setaffinity"):
    # One thread is one core: a library that starts more of them must not gain by it.  A process
    # that such a one starts for several threads would inherit the pin, so it is told what there is.
    CORES = os.environ.setdefault(
        "BENCH_CORES", ",".join(map(str, sorted(os.sched_getaffinity(0))))
    )
    allowed = {int(core) for core in CORES.split(",")}
    os.sched_setaffinity(0, {max(allowed)} if THREADS == 1 else allowed)

import importlib
import platform
import subprocess
import warnings
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import fastgrad as fg
from fastgrad._kernels import isa, rows


def _optional(library: str, module: str) -> Any:
    if library not in WANTED:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what others deprecate is not our concern
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError:
            return None


scipy_special = _optional("scipy", "scipy.special")
scipy_sparse = _optional("scipy", "scipy.sparse")
sklearn_loss = _optional("scikit-learn", "sklearn._loss.loss")
torch = _optional("torch", "torch")
jax = _optional("jax", "jax")
pandas = _optional("pandas", "pandas")

fg.set_num_threads(THREADS)
if torch is not None:
    torch.set_num_threads(THREADS)
if jax is not None:
    jax.config.update("jax_enable_x64", True)  # else float64 input silently becomes float32

_LOADED = {
    "numpy": np,
    "scipy": scipy_special,
    "torch": torch,
    "jax": jax,
    "scikit-learn": sklearn_loss,
    "pandas": pandas,
}
INSTALLED = tuple(n for n in NAMES if n in WANTED and _LOADED[n] is not None)


def installed(name: str) -> bool:
    """Whether a contestant can run; what follows the library's name is the form of its use."""
    return name.split()[0] in ("fastgrad", *INSTALLED)


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("fastgrad", *INSTALLED)}


# ---- this machine -------------------------------------------------------------------------------


LOAD = round(os.getloadavg()[0], 1)
"""Before anything was measured."""


def machine() -> dict[str, Any]:
    """What figures depend on, for every file of results."""
    compiler, openmp = rows.build_info()
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "caches": _caches(),
        "memory": f"{_memory() / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "compiler": compiler,
        "openmp": openmp,
        "instruction set": isa.active_name(),
        "threads": THREADS,
        "versions": versions(),
        "commit": _commit(),
        "date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        "load": LOAD,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(s for s in lines if s.startswith("model name")).split(": ")[1]
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _caches() -> dict[str, str]:
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind = (folder / "type").read_text().strip()
        if kind != "Instruction":
            level = (folder / "level").read_text().strip()
            found[f"L{level}"] = (folder / "size").read_text().strip()
    return found


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _commit() -> str:
    """The commit that was measured; "+" where files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
