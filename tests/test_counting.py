"""Instructions of kernels, counted by callgrind: a lost vectorisation or a doubled pass shows.

Counts do not depend on the clock or on what else runs; they depend on the compiler and its
flags a little (without the -fwrapv of Python some are lower).
Valgrind knows no AVX-512, so that the counts are those of AVX2, from the same source text.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest

from fastgrad._kernels import isa, rows

CHILD = """
import numpy as np
import fastgrad as fg

fg.set_num_threads(1)
rng = np.random.default_rng(0)

z, y = rng.standard_normal((64, 1000), dtype=np.float32), rng.integers(0, 1000, 64)
fg.softmax(z)
fg.log_softmax(z)
fg.logsumexp(z)
fg.cross_entropy(z, y)
fg.cross_entropy.value_and_grad(z, y)
fg.cross_entropy.value_and_grad(z, y, label_smoothing=0.1)
fg.multiclass_hinge.value_and_grad(z, y)
fg.softmax(z.astype(float))

z, y = rng.standard_normal((6400, 10), dtype=np.float32), rng.integers(0, 10, 6400)
fg.softmax(z)
fg.cross_entropy.value_and_grad(z, y)
fg.softmax(z.astype(float))

x, ids = rng.standard_normal((1000, 64), dtype=np.float32), rng.integers(0, 50, 1000)
fg.segment_sum(x, ids, num_segments=50)
fg.centroid_hinge.value_and_grad(x, ids)
"""
ELEMENTS = 64_000

# Instructions per element with GCC 12; a kernel that needs other ones on purpose changes its line.
EXPECTED = {
    "softmax_rows_f32": 5.11,
    "softmax_rows_f64": 11.21,
    "softmax_lanes_f32": 9.41,
    "softmax_lanes_f64": 19.82,
    "log_softmax_rows_f32": 5.82,
    "logsumexp_rows_f32": 4.69,
    "cross_entropy_rows_f32": 4.15,
    "cross_entropy_grad_rows_f32": 5.41,
    "cross_entropy_grad_lanes_f32": 12.40,
    "mass_grad_rows_f32": 8.11,
    "crammer_singer_grad_rows_f32": 1.55,
    "segment_add_f32": 2.28,
    "centroid_hinge_f32": 13.76,
}
# The cheapest pass, which takes the maximum of a row, is 7 % of softmax.  Other compilers are not
# known to the instruction, but half the width of the vectors would still show.
BOUNDS = (0.6, 1.05) if rows.build_info()[0].startswith("GCC 12") else (0.5, 1.4)

VALGRIND = shutil.which("valgrind")


def counts(folder):
    """{kernel: instructions per element}"""
    out = folder / "callgrind.out"
    command = [VALGRIND, "--tool=callgrind", f"--callgrind-out-file={out}"]
    subprocess.run(
        [*command, sys.executable, "-c", CHILD],
        env={**os.environ, "FASTGRAD_ISA": "avx2"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    listed = subprocess.run(
        ["callgrind_annotate", "--threshold=100", str(out)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.findall(r"^\s*([\d,]+) .*:(\w+)_avx2 \[.*isa", listed.stdout, re.MULTILINE)
    return {name: int(n.replace(",", "")) / ELEMENTS for n, name in found}


@pytest.mark.skipif(VALGRIND is None, reason="valgrind is not installed")
@pytest.mark.skipif("avx2" not in isa.available_names(), reason="this machine has no AVX2")
def test_kernels_take_the_instructions_that_they_should(tmp_path):
    found = counts(tmp_path)
    low, high = BOUNDS
    wrong = {
        name: f"{found.get(name, 0):.2f} instructions per element, expected {expected}"
        for name, expected in EXPECTED.items()
        if not low * expected < found.get(name, 0) < high * expected
    }
    assert wrong == {}
