from typing import Any

from numpy.typing import NDArray

_Floats = NDArray[Any]

def plain_softmax(x: object) -> _Floats | None: ...
def plain_log_softmax(x: object) -> _Floats | None: ...
def transform(
    name: str,
    x: _Floats,
    axis: int,
    out: _Floats,
    t: float,
    where: NDArray[Any] | None,
    alpha: _Floats | None,
) -> None: ...
def logsumexp(
    x: _Floats, axis: int, value: _Floats, t: float, where: NDArray[Any] | None
) -> None: ...
def logsumexp_weighted(
    x: _Floats,
    b: _Floats,
    axis: int,
    value: _Floats | None,
    sign: _Floats | None,
    out: _Floats | None,
    alpha: _Floats | None,
    t: float,
    where: NDArray[Any] | None,
) -> None: ...
def derivative(
    name: str,
    p: _Floats,
    g: _Floats,
    axis: int,
    out: _Floats,
    t: float,
    where: NDArray[Any] | None,
) -> None: ...
def dot(
    p: _Floats, v: _Floats, axis: int, value: _Floats, t: float, where: NDArray[Any] | None
) -> None: ...
