"""How `profile_loss` measures.

Order of a run: call each part once and compare it with the reference; warm up; rounds, in each of
which every contestant is timed once, in alternating order; then memory, which would disturb times.
Two contestants do nothing but read and copy as many bytes as the loss must: they are the ceiling.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import itertools
import math
import os
import platform
import re
import sysconfig
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgrad import _reference
from fastgrad._arrays import finfo
from fastgrad._kernels import bandwidth, isa, rows
from fastgrad._maps import _Differentiable, _Options, parameter_names, signature_of
from fastgrad._profile.idioms import IDIOMS, ids_of
from fastgrad._profile.result import (
    Ceiling,
    LossProfile,
    Memory,
    Part,
    Progress,
    Speedup,
    format_bytes,
    interval,
)
from fastgrad._segments import Segments
from fastgrad._threads import get_num_threads, num_threads

Call = functools.partial[Any]

PARTS = {
    "forward": "",
    "gradient": "grad",
    "both": "value_and_grad",
    "hvp": "hvp",
    "vjp": "vjp",
    "jvp": "jvp",
}
"""The attribute of a loss or map that each part times; the first is the call itself."""

SAMPLE = 4e-3
"""Seconds that a sample lasts at least.

The first calls find caches and clock as the contestant before left them: with 1 ms a call of 11 µs
came out 8 % slow, with 4 ms as if it were alone.
"""
SETTLED = 0.02
"""Warm-up ends when two successive medians differ by less."""
WIDE = 0.10
"""An interquartile range above this share of the median is called noise."""
WARM = 0.3
"""Seconds of warming up each, at most."""
PRECISE = 0.01
"""Rounds end when every confidence interval is narrower than this on each side."""
PAUSE = 0.2
"""Seconds between two calls of `callback`."""
CHECKED = 1 << 18
"""Elements of which the exact, slow twin is asked at most."""
CHECKED_ROWS = 256


# ---- the function -------------------------------------------------------------------------------


def profile_loss(
    f: Callable[..., Any],
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    grad: Callable[..., Any] | None = None,
    reference: Callable[..., Any] | str | None = "NumPy",
    what: str | Sequence[str] | None = None,
    seconds: float = 2.0,
    rounds: int = 15,
    threads: int | None = None,
    cold: bool = False,
    traffic: float | Mapping[str, float] | None = None,
    flops: float | Mapping[str, float] | None = None,
    memory: bool = True,
    ceiling: float | None = None,
    sweep: Sequence[int] | None = None,
    name: str | None = None,
    names: Sequence[str] | None = None,
    callback: Callable[[Progress], object] | None = None,
) -> LossProfile:
    """Measure a loss: time, traffic, memory and accuracy, against a reference and the machine.

    Parameters
    ----------
    f : callable
        A loss or map, one of its derivatives (``fg.cross_entropy.value_and_grad``), or any function
        of arrays.
    *args, kwargs
        What `f` is called with.
    grad : callable, optional
        The gradient, called with the same arguments, where `f` does not carry it.
    reference : callable, "NumPy" or None
        What `f` is compared with: a loss, map or function, timed in the same rounds.  "NumPy" is
        the usual NumPy idiom of a built-in, and nothing for other functions.
    what : str or sequence of str, optional
        Of "forward", "gradient", "both", "hvp", "vjp", "jvp".  Default: all that `f` has.
    seconds : float, default 2.0
        For the rounds; they end earlier when every interval is within 1 %.
    rounds : int, default 15
        The fewest rounds, whatever `seconds`; slow calls end them at three times `seconds`.
    threads : int, optional
        Threads of fastgrad's kernels meanwhile.  Those of BLAS are not touched.
    cold : bool, default False
        Before every call, drive the caches out with a buffer of twice the last one's size.
    traffic : float or mapping of part to float, optional
        Bytes that a call moves.  Default: every argument read once, every result written once.
    flops : float or mapping of part to float, optional
        Floating-point operations of a call, to show their rate.
    memory : bool, default True
        Measure memory too, after the rounds.
    ceiling : float, optional
        Bytes per second to compare with, instead of those measured.
    sweep : sequence of int, optional
        Sizes.  The one positional argument is then a function that makes the arguments of a size.
    name, names : str, sequence of str, optional
        What the report calls `f` and its positional arguments.
    callback : callable, optional
        Called at most five times a second with a `Progress`.

    Returns
    -------
    LossProfile
        ``print`` shows it; `parts`, `speedup`, `memory`, `accuracy`, `ceiling` hold the numbers.

    Raises
    ------
    TypeError, ValueError
        For options that do not fit together, before anything is measured.
    KeyboardInterrupt
        On Ctrl-C, its attribute `result` being the profile of the rounds and sizes done (None
        before that).

    See Also
    --------
    gradcheck

    Notes
    -----
    In each round every contestant runs once, in alternating order, so that drift hits all alike.
    A sample lasts 4 ms at least, with the garbage collector off.  Intervals are order statistics
    [1]_: the median lies between two of the sorted times with a probability of 95 %, whatever their
    distribution.  A speed-up is the median of the ratios within rounds.

    The share of the ceiling is the time in which kernels that only read and copy move as many bytes
    of the same caches, in the same rounds, on as many threads, over the time taken.  Results are
    compared before anything is timed: with the reference, and for the built-ins with the exact twin
    in long double (on a sample of rows where there are many).  Memory counts NumPy's arrays and the
    kernels' scratch (tracemalloc), the tables of segment sums excepted.

    References
    ----------
    .. [1] T. Hoefler and R. Belli, "Scientific Benchmarking of Parallel Computing Systems", SC15,
       doi:10.1145/2807591.2807644.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> z, y = np.zeros((64, 10)), np.zeros(64, int)
    >>> p = fg.profile_loss(fg.cross_entropy, z, y, seconds=0.01)
    >>> sorted(p.parts)
    ['both', 'forward', 'gradient', 'hvp']
    >>> p.speedup["both"].agrees, p.parts["both"].read, p.parts["both"].written
    (True, 5632, 5128)
    """
    options: dict[str, Any] = {
        "kwargs": kwargs,
        "grad": grad,
        "reference": reference,
        "what": what,
        "rounds": rounds,
        "threads": threads,
        "cold": cold,
        "traffic": traffic,
        "flops": flops,
        "memory": memory,
        "ceiling": ceiling,
        "name": name,
        "names": names,
        "callback": callback,
    }
    if not callable(f):
        raise TypeError(f"f must be a function of arrays; got {type(f).__name__}.")
    if grad is not None and not callable(grad):
        raise TypeError(
            f"grad must be a function of the same arguments; got {type(grad).__name__}."
        )
    if not seconds > 0 or rounds < 1:
        raise ValueError(f"seconds and rounds must be positive; got {seconds} and {rounds}.")
    _check_model(traffic, flops, ceiling)
    if sweep is not None:
        if len(args) != 1 or not callable(args[0]) or not len(sweep):
            raise TypeError(
                "with sweep=, give sizes, and one function that makes the arguments of a size: "
                "profile_loss(f, make, sweep=[1000, 10_000])."
            )

        def of_size(n: int) -> LossProfile:
            given = args[0](n)
            given = given if isinstance(given, tuple) else (given,)
            return profile_loss(f, *given, seconds=seconds / len(sweep), **options)

        return swept(sorted(map(int, sweep)), of_size)
    with contextlib.ExitStack() as stack:
        if threads is not None:
            stack.enter_context(num_threads(threads))
        stack.enter_context(np.errstate(all="ignore"))
        # Functions such as np.mean of nothing warn past that, here once in every call.
        stack.enter_context(warnings.catch_warnings(action="ignore", category=RuntimeWarning))
        run = _Run(_Subject(f, args, dict(kwargs or {}), grad), seconds, rounds, cold, callback)
        try:
            run.choose(what)
            run.compare(reference)
            run.model(traffic, flops, ceiling)
            run.race()
            if memory:
                run.weigh()
        except KeyboardInterrupt as stop:
            done = run.profile(name, names, interrupted=True) if run.done else None
            stop.result = done  # type: ignore[attr-defined]  # the caller's partial report
            raise
        return run.profile(name, names, interrupted=False)


def swept(sizes: Iterable[int], of_size: Callable[[int], LossProfile]) -> LossProfile:
    """The profile of the largest size with those of all; after Ctrl-C, of those that are done."""
    profiles: dict[int, LossProfile] = {}

    def together(interrupted: bool) -> LossProfile:
        largest = profiles[max(profiles)]
        return dataclasses.replace(largest, sweep=profiles, interrupted=interrupted)

    try:
        for n in sizes:
            profiles[n] = of_size(n)
    except KeyboardInterrupt as stop:
        if partial := getattr(stop, "result", None):
            profiles[n] = partial
        stop.result = together(True) if profiles else None  # type: ignore[attr-defined]
        raise
    return together(False)


def _check_model(traffic: Any, flops: Any, ceiling: Any) -> None:
    for name, value in (("traffic", traffic), ("flops", flops), ("ceiling", ceiling)):
        if value is None:
            continue
        parts = value if isinstance(value, Mapping) and name != "ceiling" else {"both": value}
        unknown = [part for part in parts if part not in PARTS]
        if unknown:
            raise ValueError(f"{name} is for parts {', '.join(PARTS)}; got {unknown[0]!r}.")
        for amount in parts.values():
            number = isinstance(amount, (int, float, np.number)) and not isinstance(amount, bool)
            if not number or not 0 < amount < math.inf:
                unit = {"traffic": "bytes", "flops": "operations", "ceiling": "bytes per second"}
                raise ValueError(f"{name} must be {unit[name]}, over 0; got {amount!r}.")


# ---- what is measured ---------------------------------------------------------------------------


class _Subject:
    """A function with its arguments, taken apart into parts that can be called."""

    def __init__(
        self,
        f: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        grad: Callable[..., Any] | None = None,
    ) -> None:
        self.f, self.options = _without_options(f)
        owner = getattr(f, "__self__", None)
        attribute = getattr(f, "__name__", "")
        self.only = ""
        if isinstance(owner, _Differentiable) and attribute in PARTS.values():
            self.only = next(part for part, name in PARTS.items() if name == attribute)
            self.f = owner
        self.name = f"{_name(owner)}.{attribute}" if self.only else _name(f)
        self.args, self.kwargs = _bound(f, args, kwargs)
        self.functions = {"forward": f} if not self.only else {self.only: f}
        if not self.only:
            for part, attribute in PARTS.items():
                if attribute and callable(getattr(f, attribute, None)):
                    self.functions[part] = getattr(f, attribute)
        if grad is not None:
            self.functions["gradient"] = grad
        self.results: dict[str, list[NDArray[Any]]] = {}
        """Arrays that each part returned: copies, for a call may write into those of another."""
        self.vectors: dict[str, Any] = {}

    @property
    def builtin(self) -> str:
        """Name of the built-in that it is, or ""."""
        return getattr(type(self.f), "_builtin_name", "")

    @property
    def cancels(self) -> bool:
        """Whether elements of the gradient are differences, exact to ulps of the largest only."""
        options = {**self.options, **self.kwargs}
        soft = len(self.args) > 1 and getattr(self.args[1], "dtype", np.dtype(bool)).kind == "f"
        products = ("linear_cross_entropy", "prototype_logits", "centroid_hinge")
        return self.builtin in products or "label_smoothing" in options or soft

    def call(self, part: str) -> Call:
        """The part as a call without arguments, a vector drawn for it where it needs one."""
        args, function = self.args, self.functions[part]
        if part in ("hvp", "vjp", "jvp") and not self.only:
            if part not in self.vectors:  # the same one for every contestant
                self.vectors[part] = self.vector(part)
            parameters = parameter_names(function)
            # Behind the call's own arguments, or before those that are options (an axis).
            at = next((i for i, n in enumerate(parameters) if n in ("g", "v")), len(args))
            args = (*args[:at], self.vectors[part], *args[at:])
        return functools.partial(function, *args, **self.kwargs)

    def vector(self, part: str) -> Any:
        """Normal numbers in the shapes of what the part multiplies."""
        rng = np.random.default_rng(0)

        def like(a: Any) -> Any:
            a = np.asarray(a)
            dtype = a.dtype if a.dtype.kind == "f" or a.dtype.kind == "V" else np.float64
            return np.asarray(rng.standard_normal(a.shape)).astype(dtype)

        if part == "vjp":
            if "forward" not in self.results:
                self.results["forward"] = _copies(self.call("forward")())
            return like(self.results["forward"][0])
        if part == "hvp" and "gradient" in self.functions:
            slope = self.functions["gradient"](*self.args, **self.kwargs)
            if isinstance(slope, tuple):
                kept = [n for n in slope._fields if n != "X" or "wrt" in self.kwargs]  # type: ignore[attr-defined]  # the heads
                return tuple(like(getattr(slope, n)) for n in kept)
        return like(self.args[0])

    def sampled(self, most: int) -> tuple[_Subject, str]:
        """The same on some rows only, if there are more than `most` elements; and in words.

        ValueError if a single row has more.
        """
        f = self.functions[self.only or "forward"]
        signature = signature_of(f)
        bound = signature.bind(*self.args, **self.kwargs)
        named = {**self.options, **bound.arguments}
        first = np.asarray(self.args[0])
        axes = named.get("axis", -1) if "axis" in signature.parameters else ()
        row = range(first.ndim) if axes is None else np.atleast_1d(axes) % max(first.ndim, 1)
        along = next((d for d in range(first.ndim) if d not in row), -1)
        n = first.shape[along] if along >= 0 else 1
        each = first.size // max(n, 1)
        if each > most:
            raise ValueError(f"a row of {each:,} elements ({most:,} at most)")
        keep = min(CHECKED_ROWS, most // max(each, 1))
        if n <= keep or (first.ndim == 1 and n <= most):
            return self, ""
        at = np.linspace(0, n - 1, keep).astype(np.intp)

        def some(a: Any) -> Any:
            if isinstance(a, Segments):
                return Segments.from_ids(ids_of(a)[at], a.num_segments) if len(a.order) == n else a
            shape = (len(a),) if isinstance(a, list) else getattr(a, "shape", ())
            # What has one value for each row lacks the axes of a row, and those are in front.
            place = along if len(shape) == first.ndim else 0
            return np.take(a, at, place) if shape[place : place + 1] == (n,) else a

        for name in named.keys() - _WITHOUT_ROWS:
            bound.arguments[name] = some(named[name])
        return _Subject(f, bound.args, bound.kwargs), f" on {keep:,} of {n:,} rows"


def _without_options(f: Any) -> tuple[Any, dict[str, Any]]:
    """What `with_options` was called on, and with what."""
    options: dict[str, Any] = {}
    while isinstance(f, _Differentiable) and isinstance(vars(f).get("_value"), _Options):
        inner = vars(f)["_value"]
        f, options = inner._f, {**inner._options, **options}
    return f, options


def _bound(
    f: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with those that have a place in it: derivatives put a vector behind them."""
    try:
        bound = signature_of(f).bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{_name(f)} cannot be called with these arguments: {error}.") from error
    return bound.args, bound.kwargs


def _name(f: Any) -> str:
    return str(getattr(f, "__name__", type(f).__name__))


def _arrays(result: Any) -> Iterator[NDArray[Any]]:
    if isinstance(result, (tuple, list)):
        for part in result:
            yield from _arrays(part)
    elif isinstance(result, Mapping):
        for key in sorted(result, key=str):  # equal dicts may have another order
            yield from _arrays(result[key])
    elif isinstance(result, Segments):
        yield from (result.order, result.offsets)
    elif result is not None:
        yield np.asarray(result)


def _copies(result: Any) -> list[NDArray[Any]]:
    return [a.copy() for a in _arrays(result)]


def _nbytes(*values: Any) -> int:
    return sum(a.nbytes for value in values for a in _arrays(value))


# ---- comparing ----------------------------------------------------------------------------------


def _difference(ours: Any, other: Any) -> float:
    """Largest over the arrays of |a - b| / |b| in the 2-norm; inf where NaN or shapes differ."""
    a, b = list(_arrays(ours)), list(_arrays(other))
    if len(a) != len(b):
        return math.inf
    return max((_distance(x, y) for x, y in zip(a, b, strict=True)), default=0.0)


def _distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    if a.shape != b.shape:
        return math.inf
    number = np.complex128 if "c" in (a.dtype.kind, b.dtype.kind) else np.float64
    a, b = a.reshape(-1), b.reshape(-1)
    apart = size = 0.0
    for i in range(0, a.size, CHECKED):  # large arrays are not converted as a whole
        try:
            x, y = (v[i : i + CHECKED].astype(number) for v in (a, b))
        except (TypeError, ValueError) as error:
            raise TypeError(
                "results must be numbers to be compared with those of a reference; got "
                f"{a.dtype} and {b.dtype}. Give reference=None."
            ) from error
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        apart += float((np.abs(np.where(same, 0, x - y)) ** 2).sum())
        size += float((np.abs(y[np.isfinite(y)]) ** 2).sum())
    if apart == 0:
        return 0.0
    return math.sqrt(apart / size) if size and math.isfinite(apart) else math.inf


def _ulps(actual: Any, exact: Any, dtype: np.dtype[Any], largest: bool) -> float:
    """Worst error in ulp of `dtype` at the element itself, or at the largest one."""
    worst = 0.0
    for a, e in zip(_arrays(actual), _arrays(exact), strict=True):
        wide, e = a.astype(np.longdouble), e.astype(np.longdouble)
        same = (wide == e) | (np.isnan(wide) & np.isnan(e))
        size = np.where(np.isfinite(e), np.abs(e), 0)
        if largest:
            size = size.max(initial=0)
        info = finfo(dtype)
        exponent = np.maximum(np.frexp(size)[1] - 1, info.minexp)
        error = np.where(
            same, 0, np.abs(wide - e) / np.ldexp(np.longdouble(1), exponent - info.nmant)
        )
        worst = max(worst, float(np.where(np.isnan(error), np.inf, error).max(initial=0)))
    return worst


# ---- the run ------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Contestant:
    call: Call
    loops: int = 1
    threads: int | None = None
    times: list[float] = dataclasses.field(default_factory=list)
    """NaN in the rounds in which it did not run."""

    def sample(self, flush: Callable[[], Any] | None = None) -> float:
        """Seconds of one call; a single one if it is to find the caches flushed."""
        call, loops = self.call, self.loops
        if flush is not None:
            flush()
            loops = 1
        with num_threads(self.threads or get_num_threads()):
            start = time.perf_counter()
            for _ in itertools.repeat(None, loops):
                call()
            return (time.perf_counter() - start) / loops

    @property
    def spent(self) -> float:
        return self.loops * sum(t for t in self.times if t == t)


class _Run:
    """One measurement, step by step; each method needs those before it."""

    def __init__(
        self,
        subject: _Subject,
        seconds: float,
        rounds: int,
        cold: bool,
        callback: Callable[[Progress], object] | None,
    ) -> None:
        self.subject, self.seconds, self.rounds, self.cold = subject, seconds, rounds, cold
        self.callback, self.told = callback, 0.0
        self.start = time.perf_counter()
        self.done = 0
        self.warnings: list[str] = []
        self.reference: str | None = None
        self.twins: dict[str, Call] = {}
        self.differences: dict[str, float] = {}
        self.accuracy: dict[str, float] = {}
        self.dtype = np.dtype(np.float64)
        self.memory: dict[str, Memory] = {}
        self.frequency = _frequency()

    def tell(self, phase: str, done: int = 0, total: int = 0) -> None:
        now = time.perf_counter()
        if self.callback is not None and now - self.told > PAUSE:
            self.told = now
            self.callback(Progress(phase, done, total, now - self.start))

    # ---- step 1: the parts, each called once ------------------------------------------------

    def choose(self, what: str | Sequence[str] | None) -> None:
        """Which parts there are and were asked for; their results."""
        s = self.subject
        wanted = [what] if isinstance(what, str) else list(what or PARTS)
        if unknown := [w for w in wanted if w not in PARTS]:
            raise ValueError(f"what must be of {', '.join(PARTS)}; got {', '.join(unknown)}.")
        self.tell("calling")
        if "forward" in s.functions:
            value = s.call("forward")()
            s.results["forward"] = _copies(value)
            if isinstance(value, tuple) and len(value) == 2 and set(s.functions) == {"forward"}:
                # A plain function that returns (value, gradient).
                s.functions = {"both": s.functions["forward"]}
                s.results = {"both": s.results["forward"]}
        self.parts = [part for part in PARTS if part in wanted and part in s.functions]
        if not self.parts:
            raise ValueError(
                f"{s.name} has no {', '.join(wanted)}; it has {', '.join(s.functions)}."
            )
        for part in self.parts:
            if part not in s.results:
                s.results[part] = _copies(s.call(part)())
        self.race_of = {part: _Contestant(s.call(part)) for part in self.parts}

    # ---- step 2: are the results right ------------------------------------------------------

    def compare(self, reference: Any) -> None:
        """Against the exact twin, and against the reference that will be timed."""
        self.tell("comparing")
        self.checked = self.compare_exactly()
        if reference is None:
            return
        s = self.subject
        by_default = not callable(reference)
        if callable(reference):
            self.reference, idiom, kwargs = _name(reference), reference, s.kwargs
        elif not isinstance(reference, str) or reference != "NumPy":
            raise TypeError(f'reference must be a function, "NumPy" or None; got {reference!r}.')
        elif s.builtin in IDIOMS:
            self.reference, idiom = "NumPy", IDIOMS[s.builtin]
            kwargs = {k: v for k, v in {**s.options, **s.kwargs}.items() if k not in _OURS}
        else:
            if s.builtin:
                self.warnings.append(f"there is no customary NumPy form of {s.builtin}")
            return
        try:
            self.twins = self.calls_of(idiom, kwargs)
            for part, call in self.twins.items():
                self.differences[part] = _difference(s.results[part], call())
        except Exception as error:
            if not by_default:
                raise
            self.reference, self.twins = None, {}
            self.warnings.append(f"no NumPy reference: {error}")

    def calls_of(self, idiom: Any, kwargs: dict[str, Any]) -> dict[str, Call]:
        s, calls = self.subject, dict[str, Call]()
        found = {
            part: getattr(idiom, attribute) if attribute else idiom
            for part, attribute in PARTS.items()
            if not attribute or callable(getattr(idiom, attribute, None))
        }
        if len(found) == 1:  # a plain function: its result tells what it stands for
            self.tell("comparing")
            result = idiom(*s.args, **kwargs)
            if isinstance(result, tuple) and "both" in self.parts:
                found = {"both": idiom}
            elif len(self.parts) == 1:
                found = {self.parts[0]: idiom}
        for part in self.parts:
            if part in found:
                # The vector that ours got; a derivative called by name has it among its arguments.
                call = s.call(part)
                signature_of(found[part]).bind(*call.args, **kwargs)
                calls[part] = functools.partial(found[part], *call.args, **kwargs)
        return calls

    def compare_exactly(self) -> str:
        """Fill in the errors in ulp, and return what they are of."""
        s = self.subject
        if not s.builtin:
            return "no exact twin to compare with"
        given = np.asarray(s.args[0]).dtype
        self.dtype = given if given.kind in "fV" else np.dtype(np.float64)
        try:
            sample, rows = s.sampled(CHECKED)
            for part in self.parts:
                if part not in sample.functions:
                    continue
                ours = s.results[part] if not rows else sample.call(part)()
                exact = _exactly(s, sample, part)
                if exact is None:
                    continue
                largest = part in ("hvp", "vjp", "jvp") or s.cancels
                self.accuracy[part] = _ulps(ours, exact, self.dtype, largest)
        except (TypeError, ValueError, IndexError) as error:
            return f"the exact twin does not take this: {error}"
        return f"the exact twin{rows}"

    # ---- step 3: what the machine could do --------------------------------------------------

    def model(
        self,
        traffic: float | Mapping[str, float] | None,
        flops: float | Mapping[str, float] | None,
        ceiling: float | None,
    ) -> None:
        """Bytes of every part, and the two contestants that only move bytes."""
        s = self.subject
        self.flops = self.by_part(flops)
        given_bytes = self.by_part(traffic)
        self.bytes = {}
        for part in self.parts:
            given = [a for key, a in s.kwargs.items() if key != "out"]
            read = _nbytes(*s.call(part).args, *given)
            written = _nbytes(s.results[part])
            if part in given_bytes:
                written = min(written, int(given_bytes[part]))
                read = int(given_bytes[part]) - written
            self.bytes[part] = read, written
        self.traffic = "every argument is read once, every result is written once"
        if len(given_bytes) == len(self.parts):
            self.traffic = "as given"
        elif given_bytes:
            self.traffic = f"{', '.join(given_bytes)} as given; else {self.traffic}"
        self.given = None if ceiling is None else float(ceiling)
        self.movers: dict[tuple[str, int], _Contestant] = {}
        if ceiling is not None:
            return
        room = max(_available() // 4, 1 << 20)
        most_read = min(max(r for r, _ in self.bytes.values()), room)
        most_written = min(max(w for _, w in self.bytes.values()), room // 2)
        moves: dict[str, Call] = {}
        src = np.ones(max(most_read, 64), np.uint8)
        moves["read"] = functools.partial(bandwidth.read, src)
        if most_written >= 64:
            dst, src = np.zeros(most_written, np.uint8), np.ones(most_written, np.uint8)
            moves["copy"] = functools.partial(bandwidth.copy, dst, src)
            if most_written >= 1 << 20:  # stores past the caches pay only for large results
                moves["stream"] = functools.partial(bandwidth.stream, dst, src)
                moves["stream pages"] = functools.partial(bandwidth.stream_pages, dst, src)
        self.moved = dict.fromkeys(moves, 2 * most_written) | {"read": max(most_read, 64)}
        # One thread too: on a busy machine, or for little data, more of them are slower.
        for threads in {1, get_num_threads()}:
            for kind, move in moves.items():
                self.movers[kind, threads] = _Contestant(move, threads=threads)

    def by_part(self, given: float | Mapping[str, float] | None) -> dict[str, float]:
        """What was given for each part that is measured; floats, which JSON takes."""
        if given is None:
            return {}
        amounts = given if isinstance(given, Mapping) else dict.fromkeys(self.parts, given)
        return {part: float(amounts[part]) for part in self.parts if part in amounts}

    def rates(self) -> tuple[float, float]:
        """Bytes per second of a copy and of a read."""
        if self.given is not None:
            return self.given, self.given
        rate: dict[str, float] = {}
        for (kind, _), c in self.movers.items():
            # The best of all rounds: a ceiling, not what other jobs leave of it.
            best = self.moved[kind] / min(t for t in c.times if t == t)
            rate[kind] = max(rate.get(kind, 0.0), best)
        only_read = rate.pop("read")
        return max(rate.values(), default=only_read), only_read

    def floor(self, part: str) -> float:
        """Seconds of a copy of what is both read and written, and a read of the rest."""
        read, written = self.bytes[part]
        copy, only_read = self.rates()
        both = min(read, written) if written >= 64 else 0
        return 2 * both / copy + (read - both) / only_read + max(written - read, 0) / copy

    # ---- step 4: the rounds -----------------------------------------------------------------

    def race(self) -> None:
        """Warm up, then time everybody in turns."""
        self.references = {part: _Contestant(call) for part, call in self.twins.items()}
        everybody = [*self.race_of.values(), *self.references.values(), *self.movers.values()]
        flush = _flusher() if self.cold else None
        collecting = gc.isenabled()
        gc.disable()
        try:
            for c in everybody:
                self.tell("warming up")
                if flush is None:
                    _warm(c, min(self.seconds / 10, WARM))
            begin = time.perf_counter()
            while not self.enough(time.perf_counter() - begin):
                took = time.perf_counter() - begin
                expected = max(self.rounds, int(self.done * self.seconds / max(took, 1e-9)))
                for c in everybody if self.done % 2 == 0 else everybody[::-1]:
                    self.tell("measuring", self.done, expected)
                    c.times.append(math.nan if self.rests(c) else c.sample(flush))
                self.done += 1
        finally:
            for c in everybody:  # an interrupted round counts for nobody
                del c.times[self.done :]
            if collecting:
                gc.enable()

    def rests(self, c: _Contestant) -> bool:
        """Whether a slow reference or ceiling has had its share, and ours may go on alone."""
        if self.done < 6 or c in self.race_of.values():
            return False
        return c.spent > max(o.spent for o in self.race_of.values()) * 2

    def enough(self, took: float) -> bool:
        """Precise, or out of time."""
        n = self.done
        if n < self.rounds:
            return (n >= 6 and took > 3 * self.seconds) or (n >= 1 and took > 10 * self.seconds)
        if took > self.seconds or n >= 1000:
            return True
        return all(
            (high - low) / 2 < PRECISE * median(c.times)
            for c in self.race_of.values()
            for low, high in [interval(c.times)]
        )

    # ---- step 5: memory ---------------------------------------------------------------------

    def weigh(self) -> None:
        """Peak memory of one call of each, beside what it returns."""
        ours = tracemalloc.is_tracing()
        if not ours:
            tracemalloc.start()
        try:
            for part, c in self.race_of.items():
                self.tell("weighing")
                result, extra = _peak(c.call)
                other = self.references.get(part)
                reference = None if other is None else _peak(other.call)[1]
                self.memory[part] = Memory(result, extra, reference)
        finally:
            if not ours:
                tracemalloc.stop()

    # ---- the end ----------------------------------------------------------------------------

    def profile(
        self, name: str | None, names: Sequence[str] | None, interrupted: bool
    ) -> LossProfile:
        """Everything that was found."""
        s = self.subject
        copy, read = self.rates()
        parts, speedup = {}, {}
        for part, c in self.race_of.items():
            flops = self.flops.get(part)
            parts[part] = Part(tuple(c.times), c.loops, *self.bytes[part], self.floor(part), flops)
            if part in self.references:
                pairs = [
                    (t, r)
                    for t, r in zip(c.times, self.references[part].times, strict=True)
                    if r == r
                ]
                ratios = [r / t for t, r in pairs]
                off = self.differences[part]
                speedup[part] = Speedup(
                    median(ratios),
                    interval(ratios),
                    off,
                    off <= self.tolerance(),
                    tuple(r for _, r in pairs),
                )
        set_ = max(r + w for r, w in self.bytes.values())
        return LossProfile(
            name=name or s.name,
            inputs=tuple(self.inputs(names)),
            threads=get_num_threads(),
            cold=self.cold,
            rounds=self.done,
            seconds=time.perf_counter() - self.start,
            parts=parts,
            reference=self.reference,
            speedup=speedup,
            ceiling=Ceiling(copy, read, set_, _level(set_), self.given is not None),
            traffic=self.traffic,
            memory=self.memory,
            accuracy=self.accuracy,
            dtype=str(self.dtype),
            checked=self.checked,
            warnings=(*self.noise(parts), *self.warnings),
            machine=_machine(),
            interrupted=interrupted,
        )

    def tolerance(self) -> float:
        """What rounding can explain: half the digits of the narrowest input."""
        dtypes = [a.dtype for a in _arrays(self.subject.args) if a.dtype.kind in "fcV"]
        return max((float(finfo(d).eps) ** 0.5 for d in dtypes), default=1.5e-8)

    def inputs(self, names: Sequence[str] | None) -> Iterator[tuple[str, tuple[int, ...], str]]:
        s = self.subject
        parameters = parameter_names(self.race_of[self.parts[0]].call.func)
        known = [*(names or []), *parameters[len(names or []) :]]
        given = [(known[i] if i < len(known) else f"arg{i}", a) for i, a in enumerate(s.args)]
        for name, value in [*given, *s.kwargs.items()]:
            yield from _described(name, value)

    def noise(self, parts: Mapping[str, Part]) -> Iterator[str]:
        """Reasons to trust the times less, in words."""
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        threads = get_num_threads()
        if self.done < self.rounds:
            yield f"only {self.done} of {self.rounds} rounds: give more seconds"
        if threads > (cpus or 1):
            yield f"{threads} threads on {cpus} CPU{'s' * (cpus != 1)}"
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        if load > threads + 0.5:
            jobs = f"load average {load:.1f} on {cpus} CPU{'s' * (cpus != 1)}"
            yield f"{jobs}: another job is running"
        wide = [what for what, p in parts.items() if p.iqr > WIDE]
        if any(p.iqr > 5 * WIDE for p in parts.values()):
            yield "do not rely on these times: they vary by half and more from round to round"
        elif wide:
            yield f"noisy: the middle half of the times of {', '.join(wide)} spreads over 10 %"
        for what, p in parts.items():
            third = len(p.times) // 3
            if third >= 5:
                drift = median(p.times[-third:]) / median(p.times[:third]) - 1
                if abs(drift) > 0.05 and p.iqr < abs(drift):
                    yield f"drift: {what} took {drift:+.0%} at the end against the beginning"
        now = _frequency()
        if now and self.frequency and abs(now / self.frequency - 1) > 0.1:
            yield f"the clock went from {self.frequency:,.0f} to {now:,.0f} MHz"
        governor = _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
        if governor not in ("", "performance"):
            yield f"CPU governor is {governor!r}: the clock follows the load"
        if sysconfig.get_config_var("Py_DEBUG"):
            yield "this is a debug build of Python"
        if not self.given and not self.cold:
            over = [what for what, p in parts.items() if p.fraction > 1.05]
            if over:
                yield (
                    f"{', '.join(over)} over 100 %: fewer bytes are moved than the model says, or "
                    "they lie in a nearer cache"
                )
        fast = [what for what, p in parts.items() if p.median < 50e-6]
        if fast and not self.cold:
            s = self.subject
            empty = _Contestant(functools.partial(_nothing, *s.args, **s.kwargs), loops=1000)
            cost = min(empty.sample() for _ in range(5))
            yield (
                f"short calls: of each, Python takes {cost * 1e9:.0f} ns at least "
                "(a call of an empty function with these arguments)"
            )
        fresh = [w for w, p in parts.items() if p.written >= 32 << 20 and self.takes_out(w)]
        if fresh:
            size = format_bytes(parts[fresh[0]].written)
            yield (
                f"{', '.join(fresh)}: {size} of results are new memory at every call, which the "
                "system has to clear; out= avoids that"
            )

    def takes_out(self, part: str) -> bool:
        call = self.race_of[part].call
        return "out" not in self.subject.kwargs and ("out" in parameter_names(call.func))


_OURS = ("out", "memory")
"""Options about where, not what: an idiom and the twins have none of them."""

_WITHOUT_ROWS = {"W", "weight", "bias", "centroids", "pos_weight"}
"""Arguments that are of classes, also where there are as many of these as of rows."""


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Do nothing."""


def _described(name: str, value: Any) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """Name, shape and dtype of every array in an argument."""
    if isinstance(value, Segments):
        yield name, (len(value.order),), f"Segments of {value.num_segments}"
    elif isinstance(value, (list, tuple)) and any(isinstance(a, np.ndarray) for a in value):
        for i, a in enumerate(value):
            yield from _described(f"{name}[{i}]", a)
    elif isinstance(value, (np.ndarray, list)):
        a = np.asarray(value)
        yield name, a.shape, str(a.dtype)


def _exactly(s: _Subject, sample: _Subject, part: str) -> Any:
    """The exact twin's result, or None if there is none for this part."""
    twin = getattr(_reference, s.builtin + (f"_{PARTS[part]}" if PARTS[part] else ""), None)
    if twin is None:
        return None
    kwargs = {k: v for k, v in {**s.options, **sample.kwargs}.items() if k not in _OURS}
    args = []
    for a in sample.call(part).args:
        if isinstance(a, Segments):
            key = "num_segments" if s.builtin.startswith("segment") else "num_classes"
            kwargs[key], a = a.num_segments, ids_of(a)
        args.append(a)
    return twin(*args, **kwargs)


def _warm(c: _Contestant, seconds: float) -> None:
    """Find the loops of a sample, and run until the times settle."""
    took = c.sample()
    while took * c.loops < SAMPLE:
        c.loops = max(c.loops + 1, math.ceil(1.2 * SAMPLE / max(took, 1e-8)))
        took = c.sample()
    end, before = time.perf_counter() + seconds, math.inf
    while took < seconds and time.perf_counter() < end:
        now = median(c.sample() for _ in range(3))
        if abs(now / before - 1) < SETTLED:
            return
        before = now


def _peak(call: Callable[[], Any]) -> tuple[int, int]:
    """Bytes of what a call returns, and of what else it needed at the worst moment."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    result = call()
    after, peak = tracemalloc.get_traced_memory()
    del result
    kept = max(after - before, 0)
    return kept, max(peak - before - kept, 0)


# ---- the machine --------------------------------------------------------------------------------


def _text(path: str) -> str:
    try:
        return Path(path).read_text("ascii", "replace").strip()
    except OSError:  # not Linux, or a container without it
        return ""


def _caches() -> dict[str, int]:
    """Bytes of the data caches that one core sees, by name, smallest first."""
    found = {}
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        level, kind, size = (_text(str(folder / f)) for f in ("level", "type", "size"))
        match = re.fullmatch(r"(\d+)([KMG])", size)
        if match and kind in ("Data", "Unified"):
            found[f"L{level}"] = int(match[1]) << {"K": 10, "M": 20, "G": 30}[match[2]]
    return dict(sorted(found.items()))


def _level(working_set: int) -> str:
    caches = _caches()
    return next((n for n, size in caches.items() if working_set <= size), "DRAM" if caches else "")


def _available() -> int:
    """Bytes of memory that are free."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # macOS, Windows
        return 4 << 30


def _flusher() -> Callable[[], Any]:
    """A call that drives everything out of the caches."""
    last = max(_caches().values(), default=32 << 20)
    buffer = np.ones(min(2 * last, _available() // 2), np.uint8)
    return lambda: np.add(buffer, 1, out=buffer)


def _frequency() -> float:
    """MHz of the first core now, 0 if unknown."""
    khz = _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")
    return float(khz) / 1000 if khz else 0.0


@functools.cache
def _machine() -> dict[str, str]:
    model = re.search(r"^model name\s*:\s*(.+)$", _text("/proc/cpuinfo"), re.MULTILINE)
    compiler, openmp = rows.build_info()
    return {
        "CPU": model[1] if model else platform.processor() or platform.machine(),
        "CPUs": str(os.cpu_count()),
        "caches": ", ".join(f"{n} {format_bytes(b)}" for n, b in _caches().items()) or "unknown",
        "instruction set": isa.active_name(),
        "compiler": compiler,
        "OpenMP": str(openmp) if openmp else "no",
        "NumPy": np.__version__,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
    }
