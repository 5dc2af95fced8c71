"""What is installed, under which names, and what an import pulls in."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastgrad
import fastgrad.repl

ROOT = Path(__file__).resolve().parents[1]


def run_outside(code: str, cwd: Path) -> str:
    """Run code in a fresh interpreter that cannot see the repository's folder as sys.path[0]."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_version_is_that_of_the_metadata():
    assert fastgrad.__version__ == importlib.metadata.version("fastgrad")


def test_fastgrad_repl_is_the_folder_repl():
    assert fastgrad.repl.__name__ == "fastgrad.repl"
    installed = Path(fastgrad.repl.__file__).read_bytes()
    assert installed == (ROOT / "repl" / "__init__.py").read_bytes()


def test_repl_under_another_name_is_refused():
    spec = importlib.util.spec_from_file_location("repl", ROOT / "repl" / "__init__.py")
    message = (
        "this package must be imported as 'fastgrad.repl'; it was imported as 'repl' from "
        "the repository's folder. Write 'import fastgrad.repl'."
    )
    with pytest.raises(ImportError, match=f"^{re.escape(message)}$"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_distribution_has_no_top_level_repl():
    # Not metadata.files(): an editable install lists its import hook and no modules.
    assert importlib.metadata.distribution("fastgrad").read_text("top_level.txt") == "fastgrad\n"


def test_repl_is_not_importable_by_itself(tmp_path):
    code = "import importlib.util; print(importlib.util.find_spec('repl'))"
    assert run_outside(code, tmp_path) == "None"


def test_import_outside_the_repository(tmp_path):
    code = "import fastgrad, fastgrad.repl; print(fastgrad.__version__)"
    assert run_outside(code, tmp_path) == fastgrad.__version__


def test_import_stays_light(tmp_path):
    code = (
        "import sys, fastgrad; "
        "heavy = {'IPython', 'traitlets', 'ipykernel', 'rich', 'matplotlib', 'pandas', 'scipy'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert run_outside(code, tmp_path) == "[]"
