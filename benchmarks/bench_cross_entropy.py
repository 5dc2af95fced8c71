"""Cross-entropy: the cases only. For example: make bench ARGS='-k "gradient and float32"'."""

import peers
import pytest

SHAPES = [(64, 10), (65536, 10), (65536, 32), (256, 1000), (4096, 1000)]

shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])
libraries = pytest.mark.parametrize("name", peers.WORK["CE loss+gradient"])


@libraries
@dtypes
@pytest.mark.parametrize("out", [False, True], ids=["new", "out"])
@shapes
def test_loss_and_gradient(race, shape, out, dtype, name):
    race("CE loss+gradient", name, peers.make_case(shape, dtype, out=out))


@libraries
@dtypes
@shapes
def test_loss(race, shape, dtype, name):
    race("CE loss", name, peers.make_case(shape, dtype))


@libraries
@dtypes
def test_loss_and_gradient_axis_1(race, dtype, name):
    case = peers.make_case((8, 21, 128, 128), dtype, axis=1)
    race("CE loss+gradient", name, case)
