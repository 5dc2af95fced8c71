"""What is checked: a function, the inputs that move, and where its derivative comes from."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgrad._maps import Loss, Map, parameter_names, signature_of
from fastgrad._threads import cached_property

Array = NDArray[np.float64]
KINDS = ("grad", "vjp", "jvp", "jac", "hvp", "hess_diag")


@dataclass
class Input:
    """One array that moves.

    Attributes
    ----------
    name : str
        As f's signature names it.
    key : int or str
        Position or keyword in the call.
    original : object
        What the user passed, untouched; the analytic side gets it.
    x : ndarray
        Its values, a copy in the precision of the numeric side.
    moving : ndarray
        The array that f is called with.
    """

    name: str
    key: int | str
    original: Any
    x: NDArray[Any]
    moving: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.asarray(self.original).dtype

    @property
    def size(self) -> int:
        return self.x.size


class Problem:
    """f at x, counted and repeatable, with one or more inputs that move.

    The numeric side calls `reference` (f itself unless given) with copies; the analytic side calls
    the derivative with the very objects that the user passed, so that their layout and dtype count.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None,
        grad: Any,
        wrt: Any,
        kind: str | None,
        eval_dtype: Any,
        reference: Callable[..., Any] | None,
        name: str | None,
    ) -> None:
        if not callable(f):
            raise TypeError(
                f"f must be a function, an fg.Loss or an fg.Map; got {type(f).__name__}. "
                "Pass the function itself and its arguments after it: gradcheck(f, x, y)."
            )
        if reference is not None and not callable(reference):
            raise TypeError(f"reference must be a function; got {type(reference).__name__}.")
        if kind is not None and kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, or None; got {kind!r}.")
        self.f = f
        self.args = list(args)
        self.kwargs = dict(kwargs or {})
        self.given = grad
        self.name = name or str(getattr(f, "__name__", type(f).__name__))
        self.reference = reference or f
        self.evals = 0
        self.derivative_evals = 0
        self.findings: dict[str, str] = {}
        self.notes: list[str] = []
        self._kept = [
            (a, a.copy()) for a in [*self.args, *self.kwargs.values()] if isinstance(a, np.ndarray)
        ]
        self._parameters = parameter_names(f)
        self.value_shape, self.kind = self._first_value(kind)
        self.inputs = [self._input(key) for key in self._keys(wrt)]
        self._choose_precision(eval_dtype)
        self.reset()

    # ---- the numeric side ------------------------------------------------------------------------

    def value(self) -> NDArray[Any]:
        """F where the inputs stand now."""
        self.evals += 1
        # A copy: what f returns may be a view of what moves, or a buffer of its own.
        out = np.array(_first(self.reference(*self.moving_args, **self.moving_kwargs)))
        if self.fresh:
            self._renew()
        return out

    def stand(self) -> None:
        """Call f at x, for a derivative may use what f kept of its last call."""
        self.evals += 1
        with self._watching("f"):
            self.f(*self.args, **self.kwargs)

    def move(self, directions: Sequence[NDArray[Any]], t: float) -> None:
        """Stand at x + t·direction."""
        for part, d in zip(self.inputs, directions, strict=True):
            np.multiply(d, t, out=part.moving, casting="unsafe")
            part.moving += part.x
        self.mark()

    def reset(self) -> None:
        """Stand at x."""
        for part in self.inputs:
            np.copyto(part.moving, part.x)
        self.mark()

    def jittered(self, rng: np.random.Generator) -> tuple[list[Any], dict[str, Any]]:
        """The arguments, with every input moved by a tenth of its spread."""
        args, kwargs = list(self.args), dict(self.kwargs)
        for part in self.inputs:
            wide = np.asarray(part.x.real, float)
            finite = wide[np.isfinite(wide)]
            spread = float(np.std(finite)) or float(np.max(np.abs(finite), initial=0)) or 1.0
            moved = (wide + 0.1 * spread * rng.standard_normal(part.shape)).astype(part.dtype)
            if isinstance(part.key, int):
                args[part.key] = moved
            else:
                kwargs[part.key] = moved
        return args, kwargs

    def complex_inputs(self) -> None:
        """Let complex numbers in, for the complex step."""
        for part in self.inputs:
            part.x = part.x.astype(complex)
            part.moving = part.x.copy(order="K")
        self._bind()

    def real_inputs(self, x: Sequence[NDArray[Any]]) -> None:
        """Take complex numbers out again."""
        for part, real in zip(self.inputs, x, strict=True):
            part.x, part.moving = real, real.copy(order="K")
        self._bind()

    def mark(self) -> None:
        # f that writes into its arguments gets new copies at every call.
        if self.fresh:
            self._stand = [part.moving.copy(order="K") for part in self.inputs]

    def _renew(self) -> None:
        for part, stand in zip(self.inputs, self._stand, strict=True):
            np.copyto(part.moving, stand)
        moving = {part.key for part in self.inputs}
        pairs = [(i, a, self.args[i]) for i, a in enumerate(self.moving_args)]
        for key, a, original in [
            *pairs,
            *((name, a, self.kwargs[name]) for name, a in self.moving_kwargs.items()),
        ]:
            if isinstance(a, np.ndarray) and key not in moving:
                np.copyto(a, np.asarray(original), casting="unsafe")

    def _bind(self) -> None:
        """The arguments of the numeric side, with the moving arrays among them."""
        wide = self.eval_dtype

        def constant(a: Any) -> Any:
            if not isinstance(a, np.ndarray):
                return a
            if is_floating(a) and a.dtype != wide and wide == np.float64 and a.dtype.itemsize < 8:
                return a.astype(wide)
            return a.copy(order="K") if a.flags.writeable else a

        self.moving_args = [constant(a) for a in self.args]
        self.moving_kwargs = {name: constant(a) for name, a in self.kwargs.items()}
        for part in self.inputs:
            if isinstance(part.key, int):
                self.moving_args[part.key] = part.moving
            else:
                self.moving_kwargs[part.key] = part.moving

    # ---- the first look --------------------------------------------------------------------------

    @property
    def fresh(self) -> bool:
        return "mutates" in self.findings

    @contextlib.contextmanager
    def _watching(self, who: str) -> Iterator[None]:
        """Finds out, and takes back, what a call writes into the user's arrays."""
        try:
            yield
        finally:
            for now, before in self._kept:
                if not _same(now, before):
                    self.findings.setdefault(
                        "mutates", f"{who} wrote into its input {self._name_of(now)}"
                    )
                    if now.flags.writeable:
                        np.copyto(now, before)

    def _name_of(self, a: NDArray[Any]) -> str:
        for i, arg in enumerate(self.args):
            if arg is a:
                return self.parameter(i)
        return next((name for name, arg in self.kwargs.items() if arg is a), "an argument")

    def _first_value(self, kind: str | None) -> tuple[tuple[int, ...], str]:
        with self._watching("f"):
            self.evals += 1
            out = self.f(*self.args, **self.kwargs)
        value = _first(out)
        if value.dtype.kind not in "fiub" and value.dtype.name != "bfloat16":
            raise TypeError(
                f"f must return a number or an array of real numbers; {self.name} returned "
                f"{type(out).__name__}."
            )
        value = value.copy()
        self.evals += 1
        with self._watching("f"):
            again = _first(self.f(*self.args, **self.kwargs))
        self.spread = 0.0
        if not _same(value, again):
            gap = np.abs(np.asarray(again, float) - np.asarray(value, float))
            self.spread = float(np.nanmax(gap, initial=0)) or np.inf
        self.at_x = self._value_at_x = np.asarray(value, float)
        # A value that is handed back rounded to few digits has that noise.
        self.value_eps = float(np.finfo(value.dtype).eps) if value.dtype.kind == "f" else 0.0
        scalar = value.ndim == 0 or (value.size == 1 and not isinstance(self.f, (Map, Loss)))
        self.scalar = scalar
        if kind is None:
            kind = self._kind(scalar, np.shape(value))
        return value.shape, kind

    def _kind(self, scalar: bool, shape: tuple[int, ...]) -> str:
        f = self.f
        if self.given is None:
            if hasattr(f, "grad") or hasattr(f, "value_and_grad"):
                return "grad" if scalar else "vjp"
            if hasattr(f, "vjp"):
                return "vjp"
            if hasattr(f, "jvp"):
                return "jvp"
            raise TypeError(
                f"no derivative of {self.name} is known: it has no grad, value_and_grad, vjp or "
                "jvp, and grad= is not given. Pass grad=, a function with the same arguments (or "
                "the gradient itself), or make it an fg.Loss or fg.Map."
            )
        if scalar:
            return "grad"
        if not callable(self.given):
            given = self.given
            given = given[0] if isinstance(given, (tuple, list)) else given
            given = next(iter(given.values())) if isinstance(given, Mapping) else given
            of_value = np.ndim(given) > len(shape) and np.shape(given)[: len(shape)] == shape
            return "jac" if of_value else "vjp"
        return "vjp"

    def parameter(self, i: int) -> str:
        return self._parameters[i] if i < len(self._parameters) else f"arg{i}"

    def _keys(self, wrt: Any) -> list[int | str]:
        if wrt is not None:
            names = [wrt] if isinstance(wrt, (str, int)) else list(wrt)
            if not names:
                raise ValueError("wrt must name at least one input; it is empty.")
            keys = [self._key(name) for name in names]
            if len(set(keys)) < len(keys):
                raise ValueError(f"wrt must name each input once; got {wrt!r}.")
            if len(keys) > 1 and self.kind in ("jac", "jvp"):
                raise ValueError(f"kind={self.kind!r} takes one input; got {len(keys)} in wrt.")
            return keys
        default = self._own_names()
        if default is not None:
            return [self._key(name) for name in default]
        arrays = [i for i, a in enumerate(self.args) if _is_float_array(a)]
        scalars = [i for i, a in enumerate(self.args) if isinstance(a, (float, np.floating))]
        floats = arrays or scalars
        if not floats:
            if (
                self.args
                and _is_array(self.args[0])
                and np.asarray(self.args[0]).dtype.kind in "iu"
            ):
                self.findings["integer"] = (
                    f"{self.parameter(0)} has dtype {np.asarray(self.args[0]).dtype}: "
                    "no small step from it can be stored"
                )
                return [0]
            raise TypeError(
                f"{self.name} has no floating array among its positional arguments to "
                "differentiate. Pass the array positionally, or name a keyword in wrt=."
            )
        if self.kind not in ("grad", "vjp"):
            return [floats[0]]
        probe = self._probe(len(floats))
        if isinstance(probe, Mapping):
            return [self._key(name) for name in probe]
        if isinstance(probe, tuple):
            fields: tuple[str, ...] = getattr(probe, "_fields", ())
            if fields and all(name in self._parameters for name in fields):
                return [self._key(name) for name in fields]
            if len(probe) != len(floats):
                raise ValueError(
                    f"the gradient is a tuple of {len(probe)}, and {self.name} was given "
                    f"{len(floats)} floating arrays "
                    f"({', '.join(self.parameter(i) for i in floats)}): "
                    "name the inputs that it belongs to in wrt=."
                )
            return [*floats]
        return [floats[0]]

    def _own_names(self) -> list[str] | None:
        """The inputs of a loss whose grad takes wrt= (linear_cross_entropy)."""
        grad = getattr(self.f, "grad", None)
        if self.given is not None or grad is None or "wrt" not in parameter_names(grad):
            return None
        names = inspect.signature(grad).parameters["wrt"].default or ()
        have = dict(zip(self._parameters, self.args, strict=False)) | self.kwargs
        return [n for n in names if _is_float_array(have.get(n))]

    def _probe(self, floats: int) -> Any:
        given = self.given
        if given is None:
            return None if self.kind != "grad" else self._call_gradient(None)
        if not callable(given):
            return tuple(given) if isinstance(given, list) and len(given) == floats > 1 else given
        out = self._call_gradient(np.ones(self.value_shape) if self.kind == "vjp" else None)
        return tuple(out) if isinstance(out, list) and len(out) == floats > 1 else out

    def _key(self, name: Any) -> int | str:
        if isinstance(name, (int, np.integer)) and not isinstance(name, bool):
            if not -len(self.args) <= name < len(self.args):
                raise ValueError(
                    f"wrt names position {name}; {self.name} was given {len(self.args)} positional "
                    "arguments."
                )
            return int(name) % len(self.args)
        if name in self.kwargs:
            return str(name)
        for i in range(len(self.args)):
            if name in (self.parameter(i), f"arg{i}"):
                return i
        have = [self.parameter(i) for i in range(len(self.args))] + list(self.kwargs)
        raise ValueError(
            f"wrt names {name!r}, which is not an argument here; there are {', '.join(have)}."
        )

    def _input(self, key: int | str) -> Input:
        original = self.args[key] if isinstance(key, int) else self.kwargs[key]
        name = self.parameter(key) if isinstance(key, int) else key
        a = np.asarray(original)
        if isinstance(original, np.ma.MaskedArray):
            raise TypeError(
                f"{name} must not be a masked array: a difference knows no mask. Pass its data, "
                "and let f leave out what is masked."
            )
        if a.dtype.kind == "c":
            raise TypeError(f"{name} is complex; only real inputs are differentiated.")
        if a.dtype.kind not in "fiub" and not is_floating(a):
            raise TypeError(
                f"{name} must hold numbers to be differentiated; got {type(original).__name__}."
            )
        if a.dtype.kind in "iub" and "integer" not in self.findings:
            self.findings["integer"] = (
                f"{name} has dtype {a.dtype}: no small step from it can be stored"
            )
        if a.size and not np.isfinite(a.astype(float)).any():
            raise ValueError(f"{name} holds no finite number: there is nothing to differentiate.")
        return Input(name, key, original, a, a)

    def _choose_precision(self, wanted: Any) -> None:
        """float64 for narrower inputs too, if f takes it and means the same by it."""
        if wanted not in (None, "same", "float64", np.float64):
            raise ValueError(f"eval_dtype must be None, 'same' or 'float64'; got {wanted!r}.")
        widest = max(
            (p.dtype for p in self.inputs), key=lambda d: d.itemsize if d.kind == "f" else 0
        )
        native = (
            widest if widest.kind == "f" and widest.itemsize in (4, 8) else np.dtype(np.float64)
        )
        if wanted == "same" and widest.kind == "f":
            self._copy_inputs(native if widest.itemsize > 2 else np.dtype(np.float32))
            return
        self._copy_inputs(np.dtype(np.float64))
        if all(p.dtype == np.float64 for p in self.inputs) or self.fresh:
            return
        try:
            value = self.value()
            wide = np.asarray(value, float)
        except (TypeError, ValueError) as error:
            if wanted is not None:
                raise
            if "integer" in self.findings:
                raise TypeError(
                    f"{self.findings['integer']}, and {self.name} does not take it as float64 "
                    f"({error}). Leave it out of wrt."
                ) from error
            wide = np.full(self.at_x.shape, np.nan)
        loose = 0.1 if min(p.dtype.itemsize for p in self.inputs) < 4 else 1e-2
        scale = np.max(np.abs(self.at_x), initial=0, where=np.isfinite(self.at_x))
        near = wide.shape == self.at_x.shape and bool(
            np.all((np.abs(wide - self.at_x) <= loose * scale) | ~np.isfinite(self.at_x))
        )
        if near or wanted is not None or "integer" in self.findings:
            self.at_x = wide
            self.value_eps = float(np.finfo(value.dtype).eps) if value.dtype.kind == "f" else 0.0
            return
        self._copy_inputs(native)
        self.notes.append(
            f"numeric side in {native}: in float64 the function does not give the same"
        )

    def _copy_inputs(self, dtype: np.dtype[Any]) -> None:
        self.eval_dtype = dtype
        for part in self.inputs:
            # Memory of its own: a broadcast input would move in many places at once.
            part.x = np.asarray(part.original).astype(dtype, order="K", copy=True)
            if np.asarray(part.original).strides.count(0):
                part.x = np.ascontiguousarray(part.x)
            part.moving = part.x.copy(order="K")
        self._bind()
        if self.fresh:
            self.mark()

    # ---- the analytic side -----------------------------------------------------------------------

    def analytic(self, vector: Any = None, kind: str | None = None) -> list[NDArray[Any]]:
        """The derivative as the user has it, one float64 array per input."""
        kind = kind or self.kind
        out = self._call_gradient(vector, kind)
        parts = self._split(out, kind)
        return [np.array(p, float) for p in parts]

    def look_twice(self, vector: Any) -> list[NDArray[Any]]:
        """The first gradient, watched: what it writes, whether it repeats, what memory it uses."""
        with self._watching("the gradient"):
            first = self._split(self._call_gradient(vector))
        kept = [np.array(p, float) for p in first]
        for part, g in zip(self.inputs, first, strict=True):
            if not isinstance(g, np.ndarray):
                continue
            shared = [a for a, _ in self._kept if np.may_share_memory(a, g)]
            if shared and callable(self._source()):
                self.findings["aliased"] = (
                    f"the gradient shares memory with {self._name_of(shared[0])}: "
                    "who scales it in place changes the input; return a copy"
                )
            if is_floating(g) and g.dtype.itemsize < min(part.dtype.itemsize, 8):
                self.findings["dtype"] = (
                    f"the gradient has dtype {g.dtype}, the input {part.name} {part.dtype}"
                )
            if g.dtype.kind in "iu" and part.dtype.kind == "f":
                self.findings["dtype"] = (
                    f"the gradient has dtype {g.dtype}: it cannot hold the derivative"
                )
        if callable(self._source()):
            with self._watching("the gradient"):
                second = self._split(self._call_gradient(vector))
            for part, a, g in zip(self.inputs, kept, second, strict=True):
                if not _same(a, np.asarray(g, float)):
                    self.findings["nondeterministic"] = (
                        f"the gradient for {part.name} is not deterministic: two calls at the same "
                        "place differ"
                    )
            buffers = [
                (a, b)
                for a, b in zip(first, second, strict=True)
                if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.size
            ]
            if any((a is not b and np.may_share_memory(a, b)) or a is b for a, b in buffers):
                self.findings.setdefault(
                    "aliased",
                    "two calls return the same memory: the next call overwrites this gradient",
                )
        return kept

    def both(self, analytic: Sequence[Array]) -> list[tuple[str, Array, Array]]:
        """What value_and_grad says beside what value and grad say; empty without all three."""
        f = self.f
        if self.given is not None or not isinstance(f, Loss):
            return []
        if not (hasattr(f, "grad") and hasattr(f, "value_and_grad")):
            return []
        more = self.asked(f.value_and_grad)
        together: Callable[..., Any] = f.value_and_grad
        value, grad = together(*self.args, **self.kwargs, **more)
        self.derivative_evals += 1
        pairs = [("value", np.asarray(value, float), np.asarray(self._value_at_x, float))]
        pairs += [
            ("grad", np.asarray(g, float), a)
            for g, a in zip(self._split(grad), analytic, strict=True)
        ]
        return pairs

    def _source(self) -> Any:
        return self.given if self.given is not None else self.f

    def at_copy(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """The derivative at other inputs: what the difference quotients of second order need."""
        args, kwargs = list(self.moving_args), dict(self.moving_kwargs)
        for part, a in zip(self.inputs, arrays, strict=True):
            if isinstance(part.key, int):
                args[part.key] = a
            else:
                kwargs[part.key] = a
        self.derivative_evals += 1
        out = self._gradient_of(self.f, args, kwargs)
        return [np.array(p, float) for p in self._split(out)]

    def _gradient_of(self, f: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        kwargs = {**kwargs, **self.asked(getattr(f, "grad", None))}
        if hasattr(f, "grad"):
            return f.grad(*args, **kwargs)
        if hasattr(f, "value_and_grad"):
            return f.value_and_grad(*args, **kwargs)[1]
        raise TypeError(
            f"{self.name} has no grad, which checking second derivatives needs. Make it an "
            "fg.Loss(value=..., grad=..., hvp=...)."
        )

    def asked(self, derivative: Any) -> dict[str, Any]:
        """wrt= for a derivative that takes it."""
        if self.given is None and derivative is not None and "wrt" in parameter_names(derivative):
            return {"wrt": tuple(part.name for part in getattr(self, "inputs", [])) or ("W",)}
        return {}

    def _call_gradient(self, vector: Any, kind: str | None = None) -> Any:
        handed = copy.deepcopy(vector)
        out = self._called(handed, kind)
        parts = vector if isinstance(vector, tuple) else (vector,)
        theirs = handed if isinstance(vector, tuple) else (handed,)
        if not all(a is b or _same(a, b) for a, b in zip(theirs, parts, strict=True)):
            self.findings.setdefault("mutates", "the gradient wrote into the vector it was given")
        return out

    def _called(self, vector: Any, kind: str | None) -> Any:
        kind = kind or self.kind
        given = self.given
        self.derivative_evals += 1
        if given is not None and not callable(given):
            return given
        args, kwargs = self.args, self.kwargs
        if given is not None:
            if kind == "vjp" and not self._takes_vector:
                return given(*args, **kwargs)
            return (
                given(*args, **kwargs)
                if kind in ("grad", "jac", "hess_diag")
                else given(*args, vector, **kwargs)
            )
        f = self.f
        if kind == "grad":
            return self._gradient_of(f, args, kwargs)
        if kind == "vjp" and hasattr(f, "vjp"):
            return f.vjp(*args, vector, **kwargs)
        if kind == "vjp":
            if hasattr(f, "grad") and "grad_output" in parameter_names(f.grad):
                return f.grad(*args, grad_output=vector, **kwargs)
            return self._gradient_of(f, args, kwargs)
        if not hasattr(f, kind):
            raise TypeError(f"{self.name} has no {kind}; pass it as grad=.")
        more = self.asked(getattr(f, kind))
        vectors = () if kind == "hess_diag" else (vector,)
        return getattr(f, kind)(*args, *vectors, **kwargs, **more)

    @cached_property
    def _takes_vector(self) -> bool:
        """Whether a derivative of an array function has room for a cotangent after f's arguments.

        One that has f's own arguments is the gradient of the sum.  Trap: `out=None`, as the
        functions of NumPy have it, is no room; they would overwrite the cotangent and return it.
        """
        given, at = self.given, len(self.args)
        if isinstance(given, np.ufunc):
            return given.nin > at
        found = list(signature_of(given).parameters.values())
        if any(p.kind is p.VAR_POSITIONAL for p in found):  # a compiled function may show this too
            return self._accepts_vector()
        places = [p for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if len(places) <= at:
            return False
        place = places[at]
        option = place.name in ("out", *parameter_names(self.f))
        return place.default is place.empty or (place.default is None and not option)

    def _accepts_vector(self) -> bool:
        self.derivative_evals += 1
        try:
            self.given(*self.args, np.ones(self.value_shape), **self.kwargs)
        except (TypeError, ValueError):  # too many arguments, or too many to unpack
            return False
        return True

    @property
    def fixed_cotangent(self) -> bool:
        """Whether the analytic side stands for a cotangent of ones, and takes no other."""
        if self.kind != "vjp":
            return False
        if self.given is not None:
            return not callable(self.given) or not self._takes_vector
        return not hasattr(self.f, "vjp") and "grad_output" not in parameter_names(
            getattr(self.f, "grad", None)
        )

    def _split(self, out: Any, kind: str | None = None) -> list[Any]:
        """One array per input, of its shape."""
        inputs = self.inputs
        if isinstance(out, Mapping):
            missing = [p.name for p in inputs if p.name not in out]
            if missing:
                raise ValueError(
                    f"the gradient is a dict of {', '.join(map(str, out))}; "
                    f"it has nothing for {', '.join(missing)}."
                )
            parts = [out[p.name] for p in inputs]
        elif isinstance(out, tuple) or (isinstance(out, list) and len(inputs) > 1):
            if len(out) != len(inputs):
                raise ValueError(
                    "the gradient must be one array for each of "
                    f"{', '.join(p.name for p in inputs)}; got {len(out)}."
                )
            parts = list(out)
        else:
            if len(inputs) > 1:
                raise ValueError(
                    "the gradient must be a tuple or dict with one array for each of "
                    f"{', '.join(p.name for p in inputs)}; got {type(out).__name__}."
                )
            parts = [out]
        for part, g in zip(inputs, parts, strict=False):
            if hasattr(g, "toarray"):
                raise TypeError(
                    f"the derivative for {part.name} is a {type(g).__name__}; pass its toarray()."
                )
            if np.iscomplexobj(g):
                raise TypeError(f"the derivative for {part.name} is complex; pass its real part.")
            if np.asarray(g).dtype.kind in "USmM":
                raise TypeError(
                    f"the derivative for {part.name} must hold numbers; got dtype "
                    f"{np.asarray(g).dtype}."
                )
        if (kind or self.kind) in ("jvp", "jac"):
            return parts
        for i, (part, g) in enumerate(zip(inputs, parts, strict=True)):
            shape = np.shape(g)
            if g is None or shape == part.shape:
                if g is None:
                    raise ValueError(f"the gradient for {part.name} is None.")
                continue
            if len(shape) == 2 and shape == part.shape[::-1]:
                self.findings["transposed"] = (
                    f"the gradient has shape {shape}, the input {part.name} {part.shape}"
                )
                parts[i] = np.transpose(np.asarray(g))
                continue
            others = [
                self.parameter(k)
                for k, a in enumerate(self.args)
                if k != part.key and _is_float_array(a) and np.shape(a) == shape
            ]
            hint = f" It has the shape of {others[0]}: pass wrt={others[0]!r}." if others else ""
            raise ValueError(
                f"the gradient for {part.name} must have its shape {part.shape}; got {shape}.{hint}"
            )
        return parts


def is_floating(a: Any) -> bool:
    """float16 to longdouble, and bfloat16, which NumPy does not know by itself."""
    dtype = np.asarray(a).dtype
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _is_array(a: Any) -> bool:
    return isinstance(a, (np.ndarray, list, tuple)) and np.asarray(a).dtype.kind != "O"


def _is_float_array(a: Any) -> bool:
    if not isinstance(a, (np.ndarray, list, tuple)):
        return False
    try:
        return (is_floating(a) and np.asarray(a).ndim > 0) or (
            isinstance(a, np.ndarray) and is_floating(a)
        )
    except ValueError:  # a ragged list
        return False


def _first(out: Any) -> NDArray[Any]:
    """The value as an array; of several, the first, which is the one that is differentiated."""
    if isinstance(out, tuple) and out:
        out = out[0]
    return np.asarray(out)


def _same(a: Any, b: Any) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(np.all((a == b) | ((a != a) & (b != b))))
