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
def run_classes(
    kind: str,
    variant: str,
    scores: NDArray[Any],
    target: NDArray[Any],
    axis: int,
    value: NDArray[Any] | None,
    out: NDArray[Any] | None,
    v: NDArray[Any] | None,
    weight: NDArray[Any] | None,
    sample_weight: NDArray[Any] | None,
    grad_output: NDArray[Any] | None,
    where: NDArray[Any] | None,
    margin: float,
    squared: bool,
    per_class: bool,
    scale: float,
    ignore_index: int | None,
    some_ignored: bool,
    reduce: bool,
) -> float: ...
def plain_classes(
    scores: object,
    target: object,
    variant: str,
    margin: float,
    squared: bool,
    per_class: bool,
    mean: bool,
    with_grad: bool,
    out: object,
) -> tuple[float, NDArray[Any]] | None: ...
