from typing import Any

from numpy.typing import NDArray

def prefers_table(segments: int, columns: int, size: int, is_sorted: bool) -> bool: ...
def reduce(
    x: NDArray[Any],
    ids: NDArray[Any] | None,
    ignore_index: int | None,
    offsets: NDArray[Any] | None,
    order: NDArray[Any] | None,
    out: NDArray[Any],
    weight: NDArray[Any] | None,
    total: NDArray[Any] | None,
    mean: bool,
    empty: float,
    table: bool,
    even: float,
    check: bool,
    made: NDArray[Any] | None,
) -> bool | None: ...
def spread(
    table: NDArray[Any],
    ids: NDArray[Any] | None,
    ignore_index: int | None,
    offsets: NDArray[Any] | None,
    out: NDArray[Any],
    weight: NDArray[Any] | None,
    total: NDArray[Any] | None,
) -> None: ...
def extreme(
    x: NDArray[Any],
    least: bool,
    offsets: NDArray[Any],
    order: NDArray[Any] | None,
    out: NDArray[Any],
    place: NDArray[Any] | None,
) -> None: ...
