from typing import Any

from numpy.typing import NDArray

def scan(target: NDArray[Any], classes: int, ignore_index: int | None) -> tuple[int, int]: ...
def first_unfit(a: NDArray[Any], high: float) -> int: ...
def run(
    kind: str,
    logits: NDArray[Any],
    target: NDArray[Any],
    axis: int,
    value: NDArray[Any] | None,
    out: NDArray[Any] | None,
    v: NDArray[Any] | None,
    weight: NDArray[Any] | None,
    sample_weight: NDArray[Any] | None,
    grad_output: NDArray[Any] | None,
    where: NDArray[Any] | None,
    smoothing: float,
    z_loss: float,
    scale: float,
    ignore_index: int | None,
    some_ignored: bool,
    reduce: bool,
) -> float: ...
def total_weight(
    zeros: NDArray[Any],
    target: NDArray[Any] | None,
    ignore_index: int | None,
    weight: NDArray[Any] | None,
    sample_weight: NDArray[Any] | None,
    where: NDArray[Any] | None = None,
) -> float: ...
def plain(
    logits: object, target: object, mean: bool, with_grad: bool, out: object
) -> tuple[float, NDArray[Any]] | None: ...
