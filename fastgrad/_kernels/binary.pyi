from typing import Any

from numpy.typing import NDArray

_Floats = NDArray[Any]

def transform(name: str, x: _Floats, out: _Floats) -> None: ...
def derivative(name: str, x: _Floats, g: _Floats, out: _Floats) -> None: ...
def run(
    kind: str,
    logits: _Floats,
    target: NDArray[Any],
    value: _Floats | None,
    out: _Floats | None,
    v: _Floats | None,
    pos_weight: _Floats | None,
    sample_weight: _Floats | None,
    grad_output: _Floats | None,
    where: NDArray[Any] | None,
    scale: float,
    reduce: bool,
) -> float: ...
