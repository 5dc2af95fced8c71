"""Arrays of every layout, scale and precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Rng = np.random.Generator


def scores(rng: Rng, shape: tuple[int, ...], scale: float = 2.0) -> np.ndarray:
    return rng.normal(0, scale, shape)


def sliced(a: np.ndarray) -> np.ndarray:
    """The same numbers, every second element of a longer row."""
    room = np.full((*a.shape[:-1], 2 * a.shape[-1]), 7.0, a.dtype)
    view = room[..., ::2]
    view[...] = a
    return view


def backwards(a: np.ndarray) -> np.ndarray:
    """The same numbers with negative strides."""
    turned = np.ascontiguousarray(np.flip(a))
    return np.flip(turned)


def sealed(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


# Which of them differences may be unable to resolve is said by the second entry.
Layout = Callable[[np.ndarray], np.ndarray]
LAYOUTS: dict[str, Layout] = {
    "Fortran order": np.asfortranarray,
    "every second element": sliced,
    "negative strides": backwards,
    "read-only": sealed,
}

VALUES: dict[str, tuple[Callable[[Rng, tuple[int, ...]], np.ndarray], bool]] = {
    "float32": (lambda r, s: scores(r, s).astype(np.float32), False),
    "float32, offset 1e4": (lambda r, s: (scores(r, s) + 1e4).astype(np.float32), False),
    "float16": (lambda r, s: scores(r, s).astype(np.float16), False),
    "offset 1e4": (lambda r, s: scores(r, s) + 1e4, False),
    "offset -1e6": (lambda r, s: scores(r, s) - 1e6, False),
    "offset 1e8": (lambda r, s: scores(r, s) + 1e8, True),
    "offset 1e12": (lambda r, s: scores(r, s) + 1e12, True),
    "scale 1e-3": (lambda r, s: scores(r, s, 1e-3), False),
    "scale 1e-30": (lambda r, s: scores(r, s, 1e-30), True),
    "scale 1e-300": (lambda r, s: scores(r, s, 1e-300), True),
    "scale 30": (lambda r, s: scores(r, s, 30), False),
    "scale 300": (lambda r, s: scores(r, s, 300), True),
    "scale 1e30": (lambda r, s: scores(r, s, 1e30), True),
    "scale 1e300": (lambda r, s: scores(r, s, 1e300), True),
    "near overflow of exp": (lambda r, s: 709 + r.uniform(-1, 1, s), False),
    "near underflow of exp": (lambda r, s: -740 + r.uniform(-3, 3, s), False),
    "zeros": (lambda r, s: np.zeros(s), False),
    "ones": (lambda r, s: np.ones(s), False),
    "ties": (lambda r, s: r.integers(-2, 3, s).astype(float), False),
    "scales mixed": (lambda r, s: scores(r, s) * 10.0 ** r.integers(-6, 2, s), True),
}


def longdouble(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Float arrays in long double, the rest as it is."""
    return tuple(
        a.astype(np.longdouble) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a
        for a in args
    )
