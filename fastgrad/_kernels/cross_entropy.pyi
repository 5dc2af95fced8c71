from typing import Any

from numpy.typing import NDArray

def scan(target: NDArray[Any], classes: int, ignore_index: int | None) -> tuple[int, int]: ...
def run(
    logits: NDArray[Any],
    target: NDArray[Any],
    axis: int,
    value: NDArray[Any] | None,
    out: NDArray[Any] | None,
    alpha: NDArray[Any] | None,
    scale: float,
    ignore_index: int | None,
    kept: int,
    reduce: bool,
) -> float: ...
def plain(
    logits: object, target: object, mean: bool, with_grad: bool
) -> tuple[float, NDArray[Any]] | None: ...
