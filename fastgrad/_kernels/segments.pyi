from typing import Any

from numpy.typing import NDArray

def scan(
    ids: NDArray[Any], ignore_index: int | None, classes: NDArray[Any] | None
) -> tuple[int, int]: ...
def count(ids: NDArray[Any], ignore_index: int | None, counts: NDArray[Any]) -> None: ...
def sort(
    ids: NDArray[Any], ignore_index: int | None, cursor: NDArray[Any], order: NDArray[Any]
) -> None: ...
