from typing import Any

from numpy.typing import NDArray

def first_unsigned(target: NDArray[Any]) -> int: ...
def run(
    kind: str,
    scores: NDArray[Any],
    target: NDArray[Any],
    value: NDArray[Any] | None,
    out: NDArray[Any] | None,
    v: NDArray[Any] | None,
    sample_weight: NDArray[Any] | None,
    grad_output: NDArray[Any] | None,
    where: NDArray[Any] | None,
    margin: float,
    squared: bool,
    scale: float,
    reduce: bool,
) -> float: ...
