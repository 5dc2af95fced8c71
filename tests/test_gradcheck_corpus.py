"""gradcheck on the corpus: verdicts, diagnoses and error bars; and the corpus on itself.

A sample of each family by default, everything with many seeds with ``-m fuzz``.
"""

from __future__ import annotations

import collections

import numpy as np
import pytest
from gradcheck_corpus import FAMILIES, Case, call, corpus, parts

families = pytest.mark.parametrize("family", FAMILIES)


# ---- the corpus itself --------------------------------------------------------------------------


@families
def test_there_are_enough_cases_and_no_two_of_one_name(family):
    for right in (True, False):
        cases = corpus(family, 0, right)
        assert len(cases) >= 40
        assert len({c.name for c in cases}) == len(cases)
        assert all(c.right == right and c.family == family for c in cases)
        assert sum(bool(c.codes) for c in cases) >= 40 * (not right)


def slope(case: Case, along: list[np.ndarray | None], h: float) -> np.longdouble:
    """Central difference of <v, f> along arrays for the positional arguments, Richardson once."""

    def at(t: float) -> np.longdouble:
        args = [
            a if d is None else a + np.asarray(t * d, a.dtype)
            for a, d in zip(case.args, along, strict=True)
        ]
        value = np.asarray(case.f(*args, **case.kwargs), np.longdouble)
        v = 1.0
        if case.kind == "vjp":
            v = np.random.default_rng(0).standard_normal(value.shape)
        return (value * v).sum()

    def central(h: float) -> np.longdouble:
        return (at(h) - at(-h)) / (2 * h)

    return (4 * central(h / 2) - central(h)) / 3


STEEP = ("by hand at small p", "by hand near 1")
"""Where a step of 1e-4 is a large one."""


@families
@pytest.mark.parametrize("seed", range(3))
def test_the_right_derivatives_are_right(family, seed):
    """One random direction each; where the steps of this simple check suffice."""
    checked = 0
    for case in corpus(family, seed, True):
        floats = [isinstance(a, np.ndarray) and a.dtype == np.float64 for a in case.args]
        size = max((np.abs(a).max() for a in np.asarray(case.args[0])[None]), default=0.0)
        plain = case.kind in ("grad", "vjp") and floats[0] and 1e-3 < size < 100
        if not plain or not case.smooth or case.hard or case.args[0].size > 1000:
            continue
        if case.kwargs.get("reduction") == "none" or case.name.endswith(STEEP):
            continue
        rng = np.random.default_rng(1)
        v = rng.standard_normal(case.args[0].shape)
        along = [v, *[None] * (len(case.args) - 1)]
        right = call(case, case.derivative)
        g = right.get("X", next(iter(right.values())))
        if g.shape != v.shape:
            continue
        gap = abs(slope(case, along, 1e-4 * size) - (g * v).sum())
        assert gap <= 1e-7 * max(1e-3, np.abs(g).sum()), case
        checked += 1
    assert checked >= 5


# ---- what gradcheck says of it ------------------------------------------------------------------


def sample(family: str, seed: int, right: bool, count: int) -> list[Case]:
    cases = corpus(family, seed, right)
    chosen = np.random.default_rng([seed, right]).permutation(len(cases))[:count]
    return [cases[i] for i in np.sort(chosen)]


def first_code(result) -> str:
    return result.diagnoses[0].code if result.diagnoses else ""


def holds(wanted, found) -> bool:
    if isinstance(wanted, float):
        return found is not None and abs(found - wanted) <= 1e-3 * abs(wanted)
    return found in (wanted, [wanted])


def misdiagnosed(case: Case, result) -> str:
    """What the first diagnosis says instead of the right thing; empty if it is right."""
    if first_code(result) not in case.codes:
        return f"{first_code(result) or 'nothing'}, not {' or '.join(case.codes)}"
    if first_code(result) != case.codes[0]:
        return ""  # the evidence is that of the first
    evidence = result.diagnoses[0].evidence
    wrong = {k: evidence.get(k) for k, v in case.evidence.items() if not holds(v, evidence.get(k))}
    return f"evidence {wrong}, not {dict(case.evidence)}" if wrong else ""


def checked(cases: list[Case], complaints: list[str], **options):
    """Each case with its result; one that raises is complained of, and the others go on."""
    for case in cases:
        try:
            result = case.check(**options)
        except Exception as error:
            complaints.append(f"{case}: {type(error).__name__}, {error}")
        else:
            yield case, result


def judge_right(cases: list[Case], **options) -> list[str]:
    """Complaints about right gradients that fail, or are not told though they could be."""
    complaints: list[str] = []
    for case, result in checked(cases, complaints, **options):
        if not result and not (case.hard and result.verdict == "UNRESOLVED"):
            complaints.append(f"{case}: {result.verdict}, {result.message}")
    return complaints


def judge_wrong(cases: list[Case], **options) -> tuple[list[str], list[str], int]:
    """Complaints about bugs that pass, about diagnoses, and the number of these that were due."""
    passed: list[str] = []
    mistaken: list[str] = []
    due = 0
    for case, result in checked(cases, passed, **options):
        if result or (result.verdict != "FAIL" and not case.hard):
            passed.append(f"{case}: {result.verdict}, {result.message}")
        elif case.codes and result.verdict == "FAIL":
            due += 1
            if what := misdiagnosed(case, result):
                mistaken.append(f"{case}: {what}")
        if case.wrong and len(case.wrong) <= 8 and result.verdict == "FAIL":
            found = {e.index for e in result.wrong}
            if found != case.wrong:
                passed.append(f"{case}: located {sorted(found)}, not {sorted(case.wrong)}")
    return passed, mistaken, due


def coverage(cases: list[Case], **options) -> collections.Counter:
    """Elements whose true error is within their bar ("within"), and all ("all")."""
    counts: collections.Counter = collections.Counter()
    raised: list[str] = []
    judged = [c for c in cases if c.truth or (c.smooth and c.kind == "vjp")]
    for case, result in checked(judged, raised, **{"mode": "full", **options}):
        if case.truth is not None:
            truths = parts(case.truth())
        elif case.kind == "vjp" and case.args[0].dtype == np.float64:
            truths = {name: r.analytic for name, r in result.inputs.items()}
        else:
            continue
        exact = case.truth is not None
        for name, report in result.inputs.items():
            truth = truths[name] if name in truths else truths[0]
            bar = np.asarray(report.bar, np.longdouble)
            # An analytic value in double stands in for the truth to a few units in the last place
            # of it, or of the vector of size 1 that it is multiplied with.
            slack = 0.0 if exact else 8 * np.finfo(float).eps * (1 + np.abs(truth).max())
            error = np.abs(np.asarray(report.numeric, np.longdouble) - truth)
            known = np.isfinite(bar) & np.isfinite(report.numeric)
            for kink in result.kinks:  # there the derivative is a range
                known[kink.index] &= kink.input != name
            within = error <= bar + slack
            counts["all"] += int(known.sum())
            counts["within"] += int((within & known).sum())
            if (outside := known & ~within).any():
                counts[f"{case}: {name}"] += int(outside.sum())
    assert raised == []
    return counts


SMALL = 22
"""Cases of a family and a kind that are looked at by default."""


@families
def test_no_right_gradient_fails(family):
    assert judge_right(sample(family, 0, True, SMALL)) == []


@families
def test_no_wrong_gradient_passes_and_it_gets_its_diagnosis(family):
    passed, mistaken, due = judge_wrong(sample(family, 0, False, 2 * SMALL))
    assert passed == []
    assert len(mistaken) <= 0.05 * due, mistaken


@families
def test_error_bars_cover_the_error(family):
    cases = [c for c in corpus(family, 1, True) if c.args[0].size <= 150]
    counts = coverage(cases[::4])
    assert counts["all"] >= 50
    assert counts["within"] >= 0.999 * counts["all"], counts


@pytest.mark.fuzz
@families
@pytest.mark.parametrize("seed", range(20))
def test_everything_right_over_many_seeds(family, seed):
    assert judge_right(corpus(family, seed, True), seed=seed) == []


@pytest.mark.fuzz
@families
@pytest.mark.parametrize("seed", range(20))
def test_every_bug_over_many_seeds(family, seed):
    passed, mistaken, due = judge_wrong(corpus(family, seed, False), seed=seed)
    assert passed == []
    assert len(mistaken) <= 0.05 * due, mistaken


@pytest.mark.fuzz
@families
def test_error_bars_over_many_seeds(family):
    total: collections.Counter = collections.Counter()
    for seed in range(10):
        cases = [c for c in corpus(family, seed, True) if c.args[0].size <= 150]
        total += coverage(cases, seed=seed)
    assert total["within"] >= 0.999 * total["all"], total
