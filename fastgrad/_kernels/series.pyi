from typing import Any

from numpy.typing import NDArray

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
