"""What a map and a loss are: callables that carry their own derivatives.

A *map* (`f(x, ...)` gives an array) has `.vjp` and `.jvp`; a *loss* (`f(scores, target, ...)` gives
a scalar, or one value per row) has `.grad`, `.value_and_grad` and maybe `.hvp`, `.hess_diag`.  A
derivative that does not exist is an absent attribute, so that `hasattr` tells.

Built-in maps and losses are instances of subclasses that write `__call__` and every derivative out
with their real parameters; users make their own from functions.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

_Function = Callable[..., Any]


def signature_of(f: Any) -> inspect.Signature:
    """The signature of f, or one that takes anything where it shows none.

    Compiled functions show none: those of PyTorch, and NumPy's ufuncs before 2.4.
    """
    try:
        return inspect.signature(f)
    except (TypeError, ValueError):
        return inspect.signature(lambda *args, **kwargs: None)


def parameter_names(f: Any) -> list[str]:
    """What arguments the signature of f names; [] where it shows none."""
    found = signature_of(f).parameters.values()
    return [p.name for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _is_option(p: inspect.Parameter) -> bool:
    has_default = p.kind is p.POSITIONAL_OR_KEYWORD and p.default is not p.empty
    return has_default or p.kind is p.KEYWORD_ONLY


class _Differentiable:
    """A callable with derivatives; what `Map` and `Loss` share."""

    _derivatives: tuple[str, ...]
    """Names of the derivatives that its kind may have."""

    _builtin_name: ClassVar[str] = ""
    """Name under which a built-in is a module global; pickle and copy go by it."""

    __name__: str

    def __init__(self, value: _Function, name: str | None, **derivatives: _Function | None) -> None:
        for kind, f in {"value": value, **derivatives}.items():
            if f is not None and not callable(f):
                raise TypeError(f"{kind} must be a function; got {type(f).__name__}.")
        self._value = value
        self.__name__ = name or str(getattr(value, "__name__", type(self).__name__.lower()))
        self.__doc__ = value.__doc__
        self.__signature__ = signature_of(value)
        for kind, f in derivatives.items():
            if f is not None:
                setattr(self, kind, f)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._value(*args, **kwargs)

    def with_options(self, **options: Any) -> _Differentiable:
        """The same function with other defaults.

        Parameters
        ----------
        **options
            Keyword arguments of the call; a later call may still override them.

        Returns
        -------
        Map or Loss
            Of the same kind, with the same derivatives, which get the options too.
        """
        found = inspect.signature(self).parameters.values()
        takes_any = any(p.kind is p.VAR_KEYWORD for p in found)
        has = [p.name for p in found if _is_option(p)]
        for option in options:
            if option not in has and (option in parameter_names(self) or not takes_any):
                raise TypeError(
                    f"{self.__name__} has no option {option!r}; it has {', '.join(has) or 'none'}."
                )
        return _with_options(self, options)

    def __repr__(self) -> str:
        return f"<fastgrad {type(self).__name__.lower()} {self.__name__}>"

    def __reduce__(self) -> Any:
        # A string: pickle looks the object up by this name, copy returns the object itself.
        return self._builtin_name or super().__reduce__()

    def __getattr__(self, name: str) -> NoReturn:
        if name in self._derivatives:
            have = [d for d in self._derivatives if d in dir(self)]
            raise AttributeError(
                f"{self.__name__} has no {name}; "
                f"the derivatives it has: {', '.join(have) or 'none'}."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


class Map(_Differentiable):
    """A function from an array to an array, with its derivatives.

    Parameters
    ----------
    value : callable
        ``value(x, ...)``, returning an array.
    vjp : callable, optional
        ``vjp(x, g, ...)``: the cotangent `g`, of the shape of the result, pulled back to `x`.
    jvp : callable, optional
        ``jvp(x, v, ...)``: the tangent `v`, of the shape of `x`, pushed forward.
    name : str, optional
        Shown in reports; default: that of `value`.

    Notes
    -----
    Only the derivatives given exist: ``hasattr(f, "jvp")`` tells.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> square = fg.Map(np.square, vjp=lambda x, g: 2 * x * g, name="square")
    >>> square.vjp(np.array([1.0, 2.0]), np.array([1.0, 1.0]))
    array([2., 4.])
    >>> hasattr(square, "jvp")
    False
    """

    _derivatives = ("vjp", "jvp")

    def __init__(
        self,
        value: _Function,
        *,
        vjp: _Function | None = None,
        jvp: _Function | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(value, name, vjp=vjp, jvp=jvp)


class Loss(_Differentiable):
    """A function from scores and a target to a number, with its derivatives.

    Parameters
    ----------
    value : callable, optional
        ``value(scores, target, ...)``, returning a scalar (or one value per row).
    grad : callable, optional
        The gradient with respect to the first argument, called with the same arguments.
    value_and_grad : callable, optional
        Both at once.  `value` and `grad` that are not given are taken from it, and it from them.
    hvp : callable, optional
        ``hvp(scores, target, v, ...)``: the Hessian times `v`.
    hess_diag : callable, optional
        The diagonal of the Hessian.
    name : str, optional
        Shown in reports; default: that of the function.

    Notes
    -----
    Only the derivatives given exist: ``hasattr(f, "hvp")`` tells.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> squared = fg.Loss(
    ...     value=lambda z, y: 0.5 * float(np.sum((z - y) ** 2)),
    ...     grad=lambda z, y: z - y,
    ...     name="squared",
    ... )
    >>> squared.value_and_grad(np.array([1.0, 3.0]), np.array([0.0, 1.0]))
    (2.5, array([1., 2.]))
    """

    _derivatives = ("grad", "value_and_grad", "hvp", "hess_diag")

    def __init__(
        self,
        value: _Function | None = None,
        *,
        grad: _Function | None = None,
        value_and_grad: _Function | None = None,
        hvp: _Function | None = None,
        hess_diag: _Function | None = None,
        name: str | None = None,
    ) -> None:
        if value is None and value_and_grad is None:
            raise TypeError("a Loss needs value=, or value_and_grad= to take it from; got neither.")
        if value_and_grad is not None:
            value = value or _Part(value_and_grad, 0)
            grad = grad or _Part(value_and_grad, 1)
        elif value is not None and grad is not None:
            value_and_grad = _Both(value, grad)
        assert value is not None
        super().__init__(
            value, name, grad=grad, value_and_grad=value_and_grad, hvp=hvp, hess_diag=hess_diag
        )


class _Part:
    """One of the two results of value_and_grad.  A class, not a closure, so that it pickles."""

    def __init__(self, f: _Function, which: int) -> None:
        functools.update_wrapper(self, f)
        self.__signature__ = signature_of(f)
        self._f, self._which = f, which

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._f(*args, **kwargs)[self._which]


class _Both:
    """value and grad, one after the other."""

    def __init__(self, value: _Function, grad: _Function) -> None:
        functools.update_wrapper(self, value)
        self.__signature__ = signature_of(value)
        self._pair = value, grad

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        value, grad = self._pair
        return value(*args, **kwargs), grad(*args, **kwargs)


class _Options:
    """A function with other defaults, which its signature shows."""

    def __init__(self, f: _Function, options: dict[str, Any]) -> None:
        functools.update_wrapper(self, f, updated=())
        self._f, self._options = f, options
        signature = signature_of(f)
        self._places = [
            p.name
            for p in signature.parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        parameters = []
        behind = False  # a default: what has none can then be a keyword only
        for p in signature.parameters.values():
            if p.name in options and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                p, behind = p.replace(default=options[p.name]), True
            elif behind and p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty:
                p = p.replace(kind=p.KEYWORD_ONLY)
            parameters.append(p)
        self.__signature__ = signature.replace(parameters=sorted(parameters, key=lambda p: p.kind))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = self._places[: len(args)]
        options = {n: v for n, v in self._options.items() if n not in given}
        return self._f(*args, **{**options, **kwargs})


def _with_options(f: _Differentiable, options: dict[str, Any]) -> _Differentiable:
    kind: type[Loss] | type[Map] = Loss if isinstance(f, Loss) else Map
    shown = ", ".join(f"{n}={v!r}" for n, v in options.items())
    result = kind(_Options(f, options), name=f"{f.__name__}({shown})")
    result._derivatives = f._derivatives  # type: ignore[assignment]  # a built-in may have others than its kind
    for d in f._derivatives:
        if hasattr(f, d):
            setattr(result, d, _Options(getattr(f, d), options))
    return result
