"""From measurements to a verdict: what failed, what cannot be told, and why."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgrad._gradcheck.diagnosis import Diagnosis, Measured, diagnose, from_findings
from fastgrad._gradcheck.result import Element, GradcheckResult, InputReport, Kink
from fastgrad._gradcheck.run import Part, Run
from fastgrad._gradcheck.search import BELOW_NOISE, FAIL, KINK, OPEN, PASS, UNRESOLVED, Direction
from fastgrad._segments import Segments

HIDDEN = 1e-3
"""An element whose bar exceeds this part of the largest can hide an error that matters."""
ALWAYS_WRONG = ("mutates", "nondeterministic", "transposed")
"""What makes a derivative unusable, however right its numbers are."""


class Judge:
    """Reads a run; changes nothing."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def result(self, interrupted: bool = False) -> GradcheckResult:
        """Everything measured so far, judged."""
        run = self.run
        problem = run.problem
        s = run.search
        wrong, unresolved, kinks, worst = self._elements()
        counts = {code: sum(int((p.status == code).sum()) for p in run.parts) for code in range(6)}
        diagnoses = self._diagnoses()
        failed_direction = next((d for d in run.directions if d.failed), None)
        undecided = [d for d in run.directions if not d.ok and not d.failed]
        bad_kinks = [k for k in kinks if not k.valid]
        message = ""
        complete = run.done_mode in ("full", "rows", "complex")
        if run.trouble:
            verdict, message = "UNRESOLVED", f"{problem.name}: {run.trouble}"
        elif counts[FAIL]:
            verdict = "FAIL"
            top = wrong[0]
            places = f"{counts[FAIL]:,} place{'s' if counts[FAIL] != 1 else ''}"
            if not complete:
                measured = sum(counts.values()) - counts[OPEN]
                places = f"{'all ' if counts[FAIL] == measured > 1 else ''}{places} measured"
            kind = "hvp" if "·v" in top.input and problem.kind == "grad" else problem.kind
            message = (
                f"{problem.name}: {_derivative_of(kind)}{top.input} wrong at {places}, "
                f"worst {top.place} ({_apart(top.analytic, top.numeric)})."
            )
        elif any(code in problem.findings for code in ALWAYS_WRONG):
            verdict = "FAIL"
            code = next(c for c in ALWAYS_WRONG if c in problem.findings)
            message = f"{problem.name}: {problem.findings[code]}."
        elif any(d.code in ("jvp", "asymmetric", "inconsistent") for d in run.mixed):
            verdict, message = "FAIL", f"{problem.name}: {run.mixed[0].text}."
        elif failed_direction is not None and not self._diffuse(failed_direction):
            verdict = "FAIL"
            d = failed_direction
            message = (
                f"{problem.name}: along a random direction the gradient gives {d.analytic:.8g}, "
                f"differences {d.numeric:.8g} ±{d.bar:.1g}; no single element was found."
            )
        elif run.stopped:
            verdict = "UNRESOLVED"
            other_way = "" if run.done_mode == "random" else ", or take mode='random'"
            message = (
                f"{problem.name}: {run.stopped} after {run.clock.done:,} of {run.clock.total:,} "
                f"elements, none of them wrong. Raise budget={other_way}."
            )
        elif counts[UNRESOLVED] or undecided or self._hidden():
            verdict = "UNRESOLVED"
            message = f"{problem.name}: {self._why(unresolved, undecided)}"
        elif run.directions and self.radius_is_poor():
            verdict = "UNRESOLVED"
            why = f"noise of f {run.noise:.1e}, or kinks on the way"
            widest = max(run.directions, key=lambda d: d.allowance)
            if widest.bar < 0.1 * widest.allowance:
                why = f"rounding of a gradient in {run.parts[0].dtype}"
            what = f" an error of less than {run.radius:.1g} of the gradient's norm"
            message = (
                f"{problem.name}: random directions cannot tell"
                f"{what if run.radius < 1 else ''} ({why}); use mode='full'."
            )
        elif kinks and not bad_kinks:
            verdict = "KINK"
            message = (
                f"{problem.name}: right, with a valid subgradient at "
                f"{len(kinks)} kink{'s' if len(kinks) != 1 else ''}."
            )
        else:
            verdict = "PASS"
            message = f"{problem.name}: the derivative is right."
        if interrupted:
            verdict = "INTERRUPTED"
            message = (
                f"{problem.name}: interrupted: {run.clock.done:,}/{run.clock.total:,} checked, "
                f"{counts[FAIL]:,} wrong so far."
            )
        known = (
            counts[FAIL]
            if complete and not run.stopped
            else (None if counts[FAIL] or verdict == "FAIL" else 0)
        )
        notes = [*problem.notes]
        if failed_direction is not None and verdict in ("PASS", "KINK"):
            error = abs(failed_direction.analytic - failed_direction.numeric)
            notes.append(
                "along a random direction the gradient is off by "
                f"{error / max(run.norm, 1e-300):.1e} of its norm, spread thinly and within rtol"
            )
        return GradcheckResult(
            verdict=verdict,
            name=problem.name,
            kind=problem.kind,
            mode=run.done_mode,
            message=message,
            inputs=self._reports(),
            worst=worst[: run.top],
            wrong=wrong[:64],
            wrong_count=known,
            kinks=kinks,
            unresolved=unresolved[:64],
            diagnoses=tuple(diagnoses),
            guarantee=run.guarantee,
            noise=run.noise if s is None else s.noise,
            evals=problem.evals,
            derivative_evals=problem.derivative_evals,
            seconds=run.clock.seconds,
            seed=run.seed,
            notes=notes,
            top=run.top,
        )

    def radius_is_poor(self) -> bool:
        return self.run.done_mode.startswith("random") and self.run.radius > 1e-2

    def _diffuse(self, d: Direction) -> bool:
        """Off by less, in its norm, than the relative error that is granted to every element."""
        measured = any((p.status != OPEN).any() for p in self.run.parts)
        rtol = max(t.rtol for t in self.run.tolerance)
        return measured and abs(d.analytic - d.numeric) <= 3 * rtol * self.run.norm + 2 * d.bar

    def _hidden(self) -> bool:
        for i, p in enumerate(self.run.parts):
            below = p.status == BELOW_NOISE
            if not below.any():
                continue
            sizes = np.maximum(np.abs(p.analytic), np.abs(np.nan_to_num(p.numeric)))
            largest = float(np.max(sizes, initial=0, where=np.isfinite(sizes)))
            if self.run.search is not None and i < len(self.run.search.reach):
                largest = max(largest, self.run.search.reach[i])
            largest = max(largest, p.natural)
            if np.any(p.bar[below] > HIDDEN * largest):
                return True
        return False

    def _why(self, unresolved: list[Element], undecided: list[Direction]) -> str:
        advice = "Try reference= (a NumPy twin), mode='complex', or another x."
        if self.run.problem.eval_dtype.itemsize < 8:
            advice = "Try eval_dtype='float64', reference= (a NumPy twin), or another x."
        if self.run.search is not None and self.run.search.jumps:
            return (
                f"f jumps within the smallest step at {self.run.search.jumps} places: it has no "
                f"derivative there. {advice}"
            )
        if unresolved:
            e = unresolved[0]
            if not math.isfinite(e.bar):
                return f"f is not finite around {e.place}: no difference can be taken. {advice}"
            return (
                f"finite differences cannot tell: at {e.place} the bar ±{e.bar:.1e} is as large as "
                f"the difference {e.error:.1e}; the noise of f is {self.run.noise:.1e}. {advice}"
            )
        if undecided:
            d = undecided[0]
            if d.edge or not math.isfinite(d.bar):
                return (
                    "along a random direction f leaves its domain before differences settle: some "
                    f"element lies too near its edge. Try mode='full'. {advice}"
                )
            return (
                f"finite differences cannot tell: along a random direction the bar ±{d.bar:.1e} is "
                f"as large as the difference {abs(d.analytic - d.numeric):.1e} (noise of f "
                f"{self.run.noise:.1e}, or kinks on the way). Try mode='full' or 'rows'. {advice}"
            )
        return (
            f"finite differences cannot tell: bars exceed the gradient itself; the noise of f is "
            f"{self.run.noise:.1e}. {advice}"
        )

    def _elements(self) -> tuple[list[Element], list[Element], list[Kink], list[Element]]:
        wrong: list[Element] = []
        unresolved: list[Element] = []
        kinks: list[Kink] = []
        good: list[Element] = []
        for p in self.run.parts:
            size = np.maximum(np.abs(p.analytic), np.abs(p.numeric))
            error = np.abs(p.analytic - p.numeric)
            allowed = p.tolerance.rtol * size + p.tolerance.atol + p.bar
            rel = np.where(size > 0, error / size, 0.0)
            ratio = np.where(allowed > 0, error / allowed, np.where(error > 0, np.inf, 0.0))
            for code, into in ((FAIL, wrong), (UNRESOLVED, unresolved), (PASS, good)):
                index = np.flatnonzero(p.status.reshape(-1) == code)
                # NaN first: nothing is worse.
                weight = np.nan_to_num(ratio.reshape(-1)[index], nan=np.inf, posinf=np.inf)
                if code == FAIL:
                    weight = np.nan_to_num(error.reshape(-1)[index], nan=np.inf, posinf=np.inf)
                for i in index[np.argsort(-weight, kind="stable")[:64]]:
                    into.append(
                        Element(
                            p.name,
                            tuple(int(k) for k in np.unravel_index(int(i), p.status.shape)),
                            *(
                                float(array.reshape(-1)[i])
                                for array in (p.analytic, p.numeric, p.bar, error, rel, ratio)
                            ),
                        )
                    )
            at_kink = np.isfinite(p.left) & np.isfinite(p.right) & np.isin(p.status, (KINK, FAIL))
            for i in np.flatnonzero(at_kink.reshape(-1)):
                kinks.append(  # noqa: PERF401 - the long form reads better
                    Kink(
                        p.name,
                        tuple(int(k) for k in np.unravel_index(int(i), p.status.shape)),
                        float(p.left.reshape(-1)[i]),
                        float(p.right.reshape(-1)[i]),
                        float(p.analytic.reshape(-1)[i]),
                        bool(p.status.reshape(-1)[i] == KINK),
                    )
                )
        if len(self.run.parts) > 1:
            wrong.sort(key=lambda e: -np.nan_to_num(e.error, nan=np.inf))
            good.sort(key=lambda e: -e.ratio)
        return wrong, unresolved, kinks, wrong or good

    def _reports(self) -> dict[str, InputReport]:
        out = {}
        for p in self.run.parts:
            measured = p.status != OPEN
            any_measured = bool(measured.any())
            resolved = measured & np.isin(p.status, (PASS, KINK, FAIL))
            out[p.name] = InputReport(
                name=p.name,
                shape=p.status.shape,
                dtype=p.dtype,
                analytic=p.analytic if any_measured else None,
                numeric=p.numeric if any_measured else None,
                bar=p.bar if any_measured else None,
                status=p.status if any_measured else None,
                checked=int(measured.sum()),
                resolved=int(resolved.sum()),
                wrong=int((p.status == FAIL).sum()),
            )
        if not out:
            for part in self.run.problem.inputs:
                out[part.name] = InputReport(
                    part.name, part.shape, str(part.dtype), None, None, None, None, 0, 0, 0
                )
        return out

    # ---- diagnosis -------------------------------------------------------------------------------

    def _diagnoses(self) -> list[Diagnosis]:
        problem = self.run.problem
        findings = dict(problem.findings)
        integer = findings.pop("integer", None)
        found = [*self.run.mixed]
        any_wrong = any((p.status == FAIL).any() for p in self.run.parts)
        if any_wrong and problem.kind != "jvp":
            for i, p in enumerate(self.run.parts[: len(problem.inputs)]):
                index = np.flatnonzero(
                    (p.status.reshape(-1) != OPEN) & np.isnan(p.left).reshape(-1)
                )
                if not (p.status.reshape(-1)[index] == FAIL).any():  # at kinks alone
                    index = np.flatnonzero(p.status.reshape(-1) != OPEN)
                if not (p.status == FAIL).any() or not len(index):
                    continue
                found += diagnose(self._measured(i, p, index))
        flat = self.run.search is not None and self.run.search.flat
        if flat and (any_wrong or self._all_zero()) and all(d.code != "flat" for d in found):
            found.insert(
                0,
                Diagnosis(
                    "flat",
                    "f is flat: it does not change with its input at all: argmax, round, a "
                    "comparison or a cast cuts the dependence; train through a smooth surrogate",
                ),
            )
        if integer and any_wrong:
            found.insert(0, from_findings({"integer": integer})[0])
        leading = [
            code for code in ("mutates", "nondeterministic", "transposed") if code in findings
        ]
        first = from_findings({code: findings.pop(code) for code in leading})
        return [*first, *found, *from_findings(findings)]

    def _all_zero(self) -> bool:
        return all(not np.any(a) for a in (self.run.search.analytic if self.run.search else []))

    def _measured(self, i: int, p: Part, index: NDArray[np.intp]) -> Measured:
        problem = self.run.problem
        others = [
            (name, value)
            for name, value in (
                *((problem.parameter(k), a) for k, a in enumerate(problem.args)),
                *problem.kwargs.items(),
            )
        ]
        labels, constants = [], []
        for name, value in others:
            if isinstance(value, Segments):
                ids = np.empty(value.order.size, np.intp)
                ids[np.asarray(value.order)] = np.repeat(
                    np.arange(value.num_segments), value.counts
                )
                labels.append((name, ids))
                continue
            if not isinstance(value, (np.ndarray, list)):
                continue
            try:
                array = np.asarray(value)
            except ValueError:
                continue
            if array.dtype.kind in "iub" and array.ndim:
                labels.append((name, array.astype(np.intp)))
            elif _one_hot(array):
                labels.append((name, np.argmax(array, axis=-1)))
            elif (
                array.dtype.kind == "f"
                and array.ndim
                and not any(q.name == name for q in problem.inputs)
            ):
                constants.append((name, array.astype(float)))
        size = np.maximum(np.abs(p.analytic), np.abs(p.numeric)).reshape(-1)[index]
        slack = 2 * p.bar.reshape(-1)[index] + p.tolerance.rtol * np.nan_to_num(size)
        return Measured(
            name=p.name,
            x=np.broadcast_to(np.asarray(problem.inputs[i].x.real, float), p.analytic.shape),
            a=p.analytic,
            index=index,
            n=p.numeric.reshape(-1)[index],
            slack=np.nan_to_num(slack, nan=0.0, posinf=0.0),
            wrong=p.status.reshape(-1)[index] == FAIL,
            rtol=p.tolerance.rtol,
            along_ones=self.run.along_ones[i] if self.run.along_ones else None,
            labels=labels,
            constants=constants,
            located=i in self.run.located,
        )


def _one_hot(a: NDArray[Any]) -> bool:
    """Rows of zeros with a single 1: class indices in another form."""
    if a.dtype.kind != "f" or a.ndim < 2 or not a.size:
        return False
    return bool(np.all((a == 0) | (a == 1)) and np.all(a.sum(axis=-1) == 1))


def _apart(a: float, n: float) -> str:
    """Both with as many digits as tell them apart."""
    for digits in (4, 6, 9, 12, 17):
        one, other = f"{a:.{digits}g}", f"{n:.{digits}g}"
        if one != other:
            break
    return f"{one} against {other}"


def _derivative_of(kind: str) -> str:
    return {"hvp": "H·v in ", "hess_diag": "diag H in ", "jvp": ""}.get(kind, "d/d")
