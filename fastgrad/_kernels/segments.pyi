from typing import Any

from numpy.typing import NDArray

def scan(
    ids: NDArray[Any], ignore_index: int | None, classes: NDArray[Any] | None
) -> tuple[int, int]: ...
def pack(
    ids: NDArray[Any],
    ignore_index: int | None,
    classes: NDArray[Any] | None,
    counts: NDArray[Any] | None,
    out: NDArray[Any],
) -> bool: ...
def count(ids: NDArray[Any], ignore_index: int | None, counts: NDArray[Any]) -> None: ...
def ascends(ids: NDArray[Any], ignore_index: int | None, offsets: NDArray[Any] | None) -> bool: ...
def sorts_in_steps(segments: int, rows: int) -> bool: ...
def sort(
    ids: NDArray[Any], ignore_index: int | None, offsets: NDArray[Any], order: NDArray[Any]
) -> int: ...
def place(
    ids: NDArray[Any], ignore_index: int | None, offsets: NDArray[Any], order: NDArray[Any]
) -> None: ...
def prefers_table(
    items: int, rows: int, segments: int, columns: int, size: int, is_sorted: bool
) -> bool: ...
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
) -> None: ...
def extreme(
    x: NDArray[Any],
    least: bool,
    offsets: NDArray[Any],
    order: NDArray[Any] | None,
    out: NDArray[Any],
    place: NDArray[Any] | None,
) -> None: ...
def series(
    name: str,
    x: NDArray[Any],
    g: NDArray[Any] | None,
    offsets: NDArray[Any],
    order: NDArray[Any] | None,
    out: NDArray[Any] | None,
    value: NDArray[Any] | None,
    alpha: NDArray[Any] | None,
) -> None: ...
