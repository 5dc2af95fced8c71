"""What the benchmarks conclude; their clock is not tested here, and nothing is measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def python(*arguments, check=True, **env):
    """Run in the root, whose folder `benchmarks` is a package only there."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "BENCH_PEERS": "numpy", **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=check,
    )


def bars(path, ours, numpy, spread=0.01):
    """A file of results as `bars` writes it: one case of fastgrad, as many of NumPy as given."""

    def quartiles(t):
        return [t * (1 - spread), t, t * (1 + spread)]

    rows = [
        {"bar": "softmax", "case": f"softmax {i}", "threads": 1, "times": {"numpy": quartiles(t)}}
        for i, t in enumerate(numpy)
    ]
    rows[0]["times"]["fastgrad"] = quartiles(ours)
    path.write_text(json.dumps({"command": "bars", "rows": rows}))
    return path


@pytest.mark.parametrize(
    ("ours", "numpy", "spread", "verdict"),
    [
        (1.5, 2.0, 0.01, "0 faster, 1 slower, 0 as before"),
        (0.5, 2.0, 0.01, "1 faster, 0 slower, 0 as before"),
        (1.02, 2.0, 0.001, "0 faster, 0 slower, 1 as before"),  # apart, but by less than 5 %
        (1.2, 2.0, 0.2, "0 faster, 0 slower, 1 as before"),  # within the noise
        (1.5, 3.0, 0.01, "0 faster, 0 slower, 1 as before"),  # the machine, not fastgrad
        (1.0, 1.0, 0.01, "0 faster, 1 slower, 0 as before"),  # a faster machine that did not help
    ],
)
def test_compare_tells_change_from_noise(tmp_path, ours, numpy, spread, verdict):
    before = bars(tmp_path / "a", 1.0, [2.0], spread)
    after = bars(tmp_path / "b", ours, [numpy], spread)
    done = python("-m", "benchmarks", "compare", before, after, check=False)
    assert done.stdout.splitlines()[-1] == f"fastgrad: {verdict}", done.stderr
    assert done.returncode == ("1 slower" in verdict)


@pytest.mark.parametrize(
    ("ours", "verdict"), [(1.25, "as before"), (0.8, "as before"), (1.5, "slower")]
)
def test_what_the_peers_vary_by_is_noise(tmp_path, ours, verdict):
    before = bars(tmp_path / "a", 1.0, [1.0] * 20, 0.001)
    after = bars(tmp_path / "b", ours, [1.3, 1 / 1.3] * 10, 0.001)
    done = python("-m", "benchmarks", "compare", before, after, check=False)
    assert f"1 {verdict}" in done.stdout.splitlines()[-1], done.stdout + done.stderr


def test_compare_refuses_other_files(tmp_path):
    other = tmp_path / "limit.json"
    other.write_text('{"command": "limit"}')
    done = python("-m", "benchmarks", "compare", other, other, check=False)
    assert done.stderr.strip() == f"{other} holds neither a run of the suite nor one of `bars`"


def test_every_small_case_agrees_with_its_peers():
    code = (
        "from benchmarks.bench_suite import calls\n"
        "print(*(f'{case}: {\" \".join(case.calls())}' for case in calls()), sep='\\n')"
    )
    lines = python("-c", code).stdout.splitlines()
    assert "softmax 64x10 float32: fastgrad numpy" in lines
    assert "CE loss+gradient 64x10 float32: fastgrad numpy" in lines
    assert "class centroids 64x4x10 float32: fastgrad numpy" in lines
    assert len(lines) == 9


def test_a_peer_that_computes_something_else_is_refused():
    code = (
        "from benchmarks.softmax import softmax\n"
        "from benchmarks.work import Case\n"
        "softmax.by('numpy')(lambda data: lambda: data.z)\n"
        "Case(softmax, (64, 10)).calls()"
    )
    done = python("-c", code, check=False)
    assert "AssertionError: numpy gives" in done.stderr
    assert "640 elements are apart" in done.stderr


def test_the_limit_of_a_case_is_a_copy_and_a_read():
    code = (
        "from benchmarks.limit import Limit, least_seconds\n"
        "limits = [Limit(1000, 1, 1.0, 2.0, 4.0), Limit(10**6, 1, 10.0, 5.0, 8.0)]\n"
        "print(least_seconds(limits, 1500, 500), least_seconds(limits, 400_000, 400_000))"
    )
    # 500 copied bytes are 1000 moved ones, at the faster of the copies; the other 1000 are read.
    assert python("-c", code).stdout.split() == [str(1000 / 2 + 1000 / 4), str(800_000 / 10)]
