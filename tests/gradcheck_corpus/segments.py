"""Reductions and normalisations of ragged segments, checked by their vector-Jacobian products."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastgrad as fg
from gradcheck_corpus import bugs
from gradcheck_corpus.case import Case, plant
from gradcheck_corpus.data import VALUES, Rng, backwards, scores, sealed, sliced

FAMILY = "segments"
N, C = 14, 19
REDUCTIONS = (fg.segment_sum, fg.segment_mean, fg.segment_max, fg.segment_min, fg.segment_logsumexp)
NORMALISERS = (fg.segment_softmax, fg.segment_log_softmax)
IDS = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 4, 4, 4, 5, 5])  # 3 has no rows


def _case(name: str, f: Any, x: np.ndarray, ids: np.ndarray = IDS, **more: Any) -> Case:
    kwargs = dict(more.pop("kwargs", {}))
    if f in REDUCTIONS and f is not fg.segment_logsumexp:
        kwargs.setdefault("empty_value", 0.0)
    more.setdefault("smooth", f not in (fg.segment_max, fg.segment_min))
    return Case(f"{FAMILY}: {name}", FAMILY, f, (x, ids), f.vjp, kwargs=kwargs, kind="vjp", **more)


def listwise(s: np.ndarray, ids: np.ndarray, best: np.ndarray) -> Any:
    """Mean over segments of -log softmax at the best row of each."""
    return -fg.segment_log_softmax(s, ids)[best].mean()


def listwise_grad(s: np.ndarray, ids: np.ndarray, best: np.ndarray) -> np.ndarray:
    g = fg.segment_softmax(s, ids) / len(best)
    g[best] -= 1 / len(best)
    return g


def _listwise(rng: Rng, name: str = "listwise", dtype: Any = np.float64) -> Case:
    ids = np.repeat(np.arange(6), [5, 3, 7, 2, 4, 2])
    best = np.array([1, 5, 9, 15, 18, 21])
    return Case(
        f"{FAMILY}: {name}",
        FAMILY,
        listwise,
        (scores(rng, (23,)).astype(dtype), ids, best),
        listwise_grad,
        grad=listwise_grad,
    )


def right(rng: Rng) -> list[Case]:
    x, line = scores(rng, (N, 5)), scores(rng, (N,))
    shuffled = rng.permutation(IDS)
    cases = []
    for f in REDUCTIONS + NORMALISERS:
        n = f.__name__
        no_empty = np.minimum(IDS, 2) if f is fg.segment_logsumexp else IDS
        cases += [
            _case(n, f, x, no_empty),
            _case(f"{n} of a vector", f, line, no_empty),
            _case(f"{n}, unsorted", f, x, rng.permutation(no_empty)),
            _case(f"{n}, float32", f, x.astype(np.float32), no_empty),
            _case(f"{n}, offset 1e4", f, line + 1e4, no_empty),
            _case(f"{n}, scale 1e-30", f, line * 1e-30, no_empty, hard=True),
            _case(f"{n}, scale 1e30", f, line * 1e30, no_empty, hard=True),
            _case(
                f"{n}, ignored rows",
                f,
                line,
                np.where(no_empty == 1, -1, 0),
                kwargs={"ignore_index": -1},
                hard=f is fg.segment_log_softmax,
            ),
            _case(f"{n}, one row", f, x[:1], IDS[:1]),
            _case(f"{n}, each row its own", f, line, np.arange(N)),
        ]
    tied = rng.integers(0, 2, (N, 3)).astype(float)
    ids = fg.Segments.from_ids(IDS) if hasattr(fg.Segments, "from_ids") else IDS
    cases += [
        _case("segment_max with ties", fg.segment_max, tied),
        _case("segment_min with ties", fg.segment_min, tied),
        _case("segment_max, all equal", fg.segment_max, np.ones(N)),
        _case("segment_mean, weights", fg.segment_mean, x, kwargs={"weights": rng.random(N)}),
        _case("segment_sum, weights", fg.segment_sum, x, kwargs={"weights": rng.random(N)}),
        _case("segment_sum, more segments", fg.segment_sum, x, kwargs={"num_segments": 9}),
        _case("segment_sum of three axes", fg.segment_sum, scores(rng, (N, 2, 3))),
        _case("segment_sum, Fortran order", fg.segment_sum, np.asfortranarray(x)),
        _case("segment_mean, every second", fg.segment_mean, sliced(x)),
        _case("segment_softmax, backwards", fg.segment_softmax, backwards(line)),
        _case("segment_log_softmax, read-only", fg.segment_log_softmax, sealed(line)),
        _case(
            "segment_mean, empty is NaN",
            fg.segment_mean,
            x,
            kwargs={"empty_value": np.nan},
            hard=True,
        ),
        _case(
            "segment_max, empty is -inf",
            fg.segment_max,
            x,
            kwargs={"empty_value": -np.inf},
            hard=True,
        ),
        _case("segment_logsumexp, empty is -inf", fg.segment_logsumexp, x, hard=True),
        _case("segment_softmax, prepared ids", fg.segment_softmax, line, ids),
        _case("segment_sum, shuffled", fg.segment_sum, x, shuffled),
        _listwise(rng),
        _listwise(rng, "listwise, float32", np.float32),
        _case(
            "segment_sum, 65,536 elements",
            fg.segment_sum,
            scores(rng, (4096, 16)),
            np.sort(rng.integers(0, 100, 4096)),
            options={"mode": "random"},
        ),
    ]
    return cases


def planted(rng: Rng) -> list[Case]:
    x = scores(rng, (N, C))
    mean = _case("segment_mean", fg.segment_mean, x)
    soft = _case("segment_softmax", fg.segment_softmax, x)
    total = _case("segment_sum", fg.segment_sum, x)
    listed = _listwise(rng)
    cases = bugs.anywhere(mean) + bugs.anywhere(listed) + bugs.vector(listed)
    cases += [c for c in bugs.matrix(soft) if "rolled along the rows" not in c.name]
    cases += bugs.behaviour(total)

    def of(case: Case, bug: str, wrong: Any, *codes: str, **evidence: Any) -> None:
        cases.extend(plant(case, bug, derivative=wrong, codes=codes, **evidence))

    def spread(g: np.ndarray, ids: np.ndarray, **kw: Any) -> np.ndarray:
        return g[ids]

    def without(segment: int) -> Any:
        def change(case: Case) -> Any:
            def wrong(x: Any, ids: Any, *g: Any, **kw: Any) -> np.ndarray:
                made = np.array(case.derivative(x, ids, *g, **kw))
                made[ids == segment] = 0
                return made

            return wrong

        return change

    for case, n in ((mean, 2), (mean, 5), (total, 0), (soft, 4), (soft, 2), (total, 5)):
        of(case, f"segment {n} missing", without(n)(case), "missing segment")
    of(listed, "segment 2 missing", without(2)(listed), "missing segment")
    of(listed, "last segment missing", without(5)(listed), "missing segment", "tail")
    of(mean, "counts forgotten", lambda x, ids, g, **kw: spread(g, ids))
    of(mean, "divided by all rows", lambda x, ids, g, **kw: spread(g, ids) / len(ids))
    of(
        mean,
        "count plus one",
        lambda x, ids, g, **kw: spread(g / (1 + np.bincount(ids))[:, None], ids),
    )
    of(mean, "count of the mean segment", lambda x, ids, g, **kw: spread(g, ids) * 6 / len(ids))
    of(total, "ids off by one", lambda x, ids, g, **kw: spread(g, np.maximum(ids - 1, 0)))
    of(total, "divided by the counts", lambda x, ids, g, **kw: fg.segment_mean.vjp(x, ids, g))
    of(
        total,
        "only the first row of each",
        lambda x, ids, g, **kw: spread(g, ids) * (np.diff(ids, prepend=-1) > 0)[:, None],
    )
    of(
        total,
        "the last row of each lost",
        lambda x, ids, g, **kw: spread(g, ids) * (np.diff(ids, append=9) == 0)[:, None],
    )
    of(soft, "p times g", lambda x, ids, g: fg.segment_softmax(x, ids) * g)
    of(soft, "normalised over all rows", lambda x, ids, g: fg.softmax.vjp(x, g, axis=0))
    of(soft, "normalised along the columns", lambda x, ids, g: fg.softmax.vjp(x, g))
    of(soft, "that of the logarithm", lambda x, ids, g: fg.segment_log_softmax.vjp(x, ids, g))
    weights = rng.random(N) + 0.1
    weighted = _case("segment_sum, weights", fg.segment_sum, x, kwargs={"weights": weights})
    of(weighted, "weights forgotten", lambda x, ids, g, **kw: spread(g, ids))
    averaged = _case("segment_mean, weights", fg.segment_mean, x, kwargs={"weights": weights})
    of(
        averaged,
        "weights not normalised",
        lambda x, ids, g, **kw: weights[:, None] * spread(g, ids),
    )
    of(
        averaged,
        "weights only in the divisor",
        lambda x, ids, g, **kw: spread(g / np.bincount(ids, weights, 6).clip(1e-9)[:, None], ids),
    )
    most = _case("segment_max", fg.segment_max, x)
    of(most, "least for most", lambda x, ids, g, **kw: fg.segment_min.vjp(x, ids, g, **kw))
    of(most, "shared by all rows", lambda x, ids, g, **kw: fg.segment_mean.vjp(x, ids, g))
    of(most, "segment 4 missing", without(4)(most), "missing segment")
    skipping = _case(
        "ignored rows", fg.segment_sum, x, np.where(IDS == 1, -1, IDS), kwargs={"ignore_index": -1}
    )
    of(skipping, "ignored rows kept", lambda x, ids, g, **kw: g[np.maximum(ids, 0)])
    of(listed, "-1 at the best forgotten", lambda s, ids, best: fg.segment_softmax(s, ids) / 6)
    of(
        listed,
        "mean over rows",
        lambda s, ids, best: listwise_grad(s, ids, best) * 6 / 23,
        "factor",
        factor=6 / 23,
    )
    of(
        listed,
        "sum for mean",
        lambda s, ids, best: listwise_grad(s, ids, best) * 6,
        "factor",
        factor=6.0,
    )
    for how in ("float32", "offset 1e4", "scale 1e-30", "scale 1e30", "scale 1e-3"):
        draw, _ = VALUES[how]
        odd = _case(f"segment_sum, {how}", fg.segment_sum, draw(rng, (N, 5)))
        cases += plant(odd, "half", bugs.scaled(0.5), codes=("factor",))
        cases += plant(odd, "one doubled", bugs.doubled)
    big = _case(
        "segment_sum, 65,536 elements",
        fg.segment_sum,
        scores(rng, (4096, 16)),
        np.sort(rng.integers(0, 100, 4096)),
        options={"mode": "random"},
    )
    cases += plant(big, "one doubled", bugs.doubled, located=True)
    return cases
