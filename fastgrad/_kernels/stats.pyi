from typing import Any

from numpy.typing import NDArray

def token_stats(
    logits: NDArray[Any],
    target: NDArray[Any],
    axis: int,
    ignore_index: int | None,
    record: NDArray[Any],
) -> None: ...
