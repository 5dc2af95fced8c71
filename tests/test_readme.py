"""The examples of README.md, run in order and in one namespace, as a reader would."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

README = Path(__file__).parents[1] / "README.md"


def test_the_examples_of_the_readme_run(tmp_path, capsys):
    pytest.importorskip("lightgbm")
    tokens = np.array([0, 5, 127_999])
    logits = np.random.default_rng(0).normal(size=(3, 128_000)).astype(np.float32)
    logits.tofile(tmp_path / "logits")
    names = {"path": tmp_path / "logits", "T": 3, "tokens": tokens}
    examples = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), flags=re.DOTALL)
    assert len(examples) == 7
    for example in examples[:-1]:
        exec(example, names)
    assert "loss 0.1106, accuracy 96.6%" in capsys.readouterr().out
    p = np.exp(logits.astype(float))
    p /= p.sum(axis=1, keepdims=True)
    assert names["perplexity"] == pytest.approx(np.exp(-np.log(p[range(3), tokens]).mean()))
    np.testing.assert_allclose(names["means"], names["centroids"], rtol=1e-15)
    assert names["result"].diagnoses[0].evidence["name"] == "N"
    exec(examples[-1], names)
    assert names["p"].shape == (len(names["y"]), 3)
