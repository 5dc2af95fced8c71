"""Instruction sets: which are there, how one is forced, and that none leaks into another."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import fastgrad as fg
from fastgrad import _reference as ref
from fastgrad._kernels import bandwidth, binary, cross_entropy, hinge, isa, rows, softmax, stats

NAMES = isa.available_names()
SHOW = "import fastgrad; from fastgrad._kernels import isa; print(isa.active_name())"


def python(code, **env):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_baseline_is_always_there():
    assert NAMES[0] == "baseline"
    assert set(NAMES) <= {"baseline", "avx2", "avx512"}


@pytest.mark.parametrize("name", NAMES)
def test_the_environment_forces_each_of_them(name):
    done = python(SHOW, FASTGRAD_ISA=name)
    assert done.stdout.strip() == name, done.stderr


@pytest.mark.parametrize("text", [None, ""])
def test_the_widest_is_the_default(text):
    done = python(SHOW, FASTGRAD_ISA=text or "")
    assert done.stdout.strip() == NAMES[-1], done.stderr


@pytest.mark.parametrize("text", ["mmx", "AVX2", "avx2,avx512", "0"])
def test_nonsense_is_an_import_error_that_lists_what_there_is(text):
    done = python("import fastgrad", FASTGRAD_ISA=text)
    message = (
        f"FASTGRAD_ISA={text}: no instruction set '{text}': "
        f"this machine and build have {', '.join(NAMES)}"
    )
    assert done.stderr.splitlines()[-1] == f"ImportError: {message}"


def test_use_switches_and_tells_what_was(isa):
    from fastgrad._kernels import isa as module

    assert module.active_name() == isa
    assert module._use("baseline") == isa
    assert module.active_name() == "baseline"


def test_a_name_that_is_not_there_switches_nothing():
    before = isa.active_name()
    with pytest.raises(ValueError, match="no instruction set 'mmx'"):
        isa._use("mmx")
    assert isa.active_name() == before


def test_instruction_sets_agree_within_their_bars(dtype, op, rng):
    x = rng.normal(0, 3, (9, 60)).astype(dtype)
    inputs = op.inputs(rng, x, -1)
    before = isa.active_name()
    try:
        for name in NAMES:
            isa._use(name)
            op.check(op.run(x, -1, *inputs), x, -1, inputs, name)
    finally:
        isa._use(before)


@pytest.mark.parametrize("name", NAMES)
def test_results_are_right_in_a_process_that_has_one(name):
    code = (
        "import numpy as np, fastgrad as fg; x = np.linspace(-3, 3, 60);"
        "print(repr(fg.softmax(x).tolist()))"
    )
    done = python(code, FASTGRAD_ISA=name)
    exact = ref.softmax(np.linspace(-3, 3, 60))
    np.testing.assert_allclose(eval(done.stdout), exact.astype(float), rtol=3 * 2.0**-52)


# ---- show_config --------------------------------------------------------------------------------


def test_show_config_prints_each_fact_on_a_line(capsys):
    compiler, openmp = rows.build_info()
    fg.show_config()
    lines = dict(
        re.split(r"\s{2,}|(?<=set) ", s, maxsplit=1) for s in capsys.readouterr().out.splitlines()
    )
    assert list(lines) == [
        "fastgrad",
        "NumPy",
        "Python",
        "instruction set",
        "compiler",
        "OpenMP",
        "threads",
    ]
    assert lines["NumPy"] == np.__version__
    assert (
        lines["instruction set"].strip() == f"{isa.active_name()} (available: {', '.join(NAMES)})"
    )
    assert lines["compiler"] == compiler
    assert lines["OpenMP"] == (str(openmp) if openmp else "no: this build runs on one thread")
    assert lines["threads"] == str(fg.get_num_threads())


def test_show_config_shows_the_active_one(isa, capsys):
    fg.show_config()
    assert f"instruction set   {isa} (available:" in capsys.readouterr().out


# ---- disassembly --------------------------------------------------------------------------------

OBJDUMP = shutil.which("objdump")
MODULES = [isa, rows, softmax, cross_entropy, binary, hinge, stats, bandwidth]
VEX = re.compile(r"\tv[a-z]")  # every mnemonic of AVX and later begins with v; no older one does
OLD_WITH_V = {"verr", "verw"}


def symbols(path):
    """{symbol: its lines of disassembly}; data in text sections does not occur in these files."""
    text = subprocess.run(
        [OBJDUMP, "-d", "--no-show-raw-insn", "-w", path],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "LC_ALL": "C"},
    ).stdout
    found: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        head = re.match(r"[0-9a-f]+ <(.+)>:$", line)
        if head:
            name = head[1]
        elif line.startswith(" "):
            found.setdefault(name, []).append(line)
    return found


def is_of(name, set_name):
    # The compiler may split a cold part off; it keeps the name in front.
    return re.sub(r"\.(cold|part|constprop|isra)(\.\d+)?", "", name).endswith(set_name)


def holds_avx(line):
    return bool(VEX.search(line)) or "%ymm" in line or "%zmm" in line


if OBJDUMP and sys.platform == "linux" and len(NAMES) > 1:

    @pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__.rpartition(".")[2])
    def test_no_avx_outside_the_symbols_named_so(module):
        """A machine without AVX runs whatever is not named avx2 or avx512."""
        bad = {
            name: line
            for name, lines in symbols(module.__file__).items()
            if not (is_of(name, "avx2") or is_of(name, "avx512"))
            for line in lines
            if holds_avx(line) and line.split("\t")[-1].split()[0] not in OLD_WITH_V
        }
        assert bad == {}

    def test_no_avx512_in_the_symbols_of_avx2():
        """Neither 512-bit registers, nor masks, nor the upper sixteen registers."""
        wide = re.compile(r"%zmm|%k[0-7]|%[xy]mm(1[6-9]|2\d|3[01])\b|\{%")
        mine = {n: lines for n, lines in symbols(isa.__file__).items() if is_of(n, "avx2")}
        assert len(mine) >= 10
        assert {n: s for n, lines in mine.items() for s in lines if wide.search(s)} == {}

    @pytest.mark.parametrize("name", ["avx2", "avx512"])
    def test_the_disassembly_sees_what_it_looks_for(name):
        mine = [s for n, lines in symbols(isa.__file__).items() if is_of(n, name) for s in lines]
        register = {"avx2": "%ymm", "avx512": "%zmm"}[name]
        assert sum(register in s for s in mine) > 1000


def test_the_scanner_knows_an_avx_instruction():
    assert holds_avx("  1000:\tvaddps %xmm0,%xmm1,%xmm2")
    assert holds_avx("  1000:\tvzeroupper")
    assert not holds_avx("  1000:\taddps  %xmm0,%xmm1")
    assert is_of("softmax_rows_f32_avx2.cold", "avx2")
    assert not is_of("softmax_rows_f32_baseline", "avx2")
