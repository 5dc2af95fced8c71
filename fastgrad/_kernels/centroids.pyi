from typing import Any

from numpy.typing import NDArray

def hinge(
    x: NDArray[Any],
    v: NDArray[Any] | None,
    out: NDArray[Any] | None,
    weight: NDArray[Any] | None,
    order: NDArray[Any],
    offsets: NDArray[Any],
    margin: float,
    squared: bool,
    moving: bool,
    scale: NDArray[Any],
    values: NDArray[Any],
) -> None: ...
def moments(
    x: NDArray[Any], weight: NDArray[Any] | None, order: NDArray[Any], offsets: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]: ...
def leave_one_out(
    x: NDArray[Any],
    out: NDArray[Any],
    weight: NDArray[Any] | None,
    order: NDArray[Any],
    offsets: NDArray[Any],
    pull: bool,
) -> None: ...
def kept(weight: NDArray[Any], order: NDArray[Any], offsets: NDArray[Any]) -> NDArray[Any]: ...
def total(a: NDArray[Any]) -> tuple[float, float]: ...
def row_squares(x: NDArray[Any]) -> NDArray[Any]: ...
def prototype_logits(
    x: NDArray[Any],
    c: NDArray[Any],
    x_squares: NDArray[Any],
    c_squares: NDArray[Any],
    absent: NDArray[Any],
    out: NDArray[Any],
) -> None: ...
def item_values(
    values: NDArray[Any], present: NDArray[Any], mean: bool, items: NDArray[Any]
) -> None: ...
