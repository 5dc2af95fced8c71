"""Softmax: the cases only. For example: make bench ARGS='-k "float32 and 256x1000"'."""

import peers
import pytest

SHAPES = [(64, 10), (65536, 10), (65536, 32), (256, 1000), (4096, 1000)]

libraries = pytest.mark.parametrize("name", peers.WORK["softmax"])
dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


@libraries
@dtypes
@pytest.mark.parametrize("out", [False, True], ids=["new", "out"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_rows(race, shape, out, dtype, name):
    race("softmax", name, peers.make_case(shape, dtype, out=out))


@libraries
@dtypes
def test_axis_1(race, dtype, name):
    race("softmax", name, peers.make_case((8, 21, 128, 128), dtype, axis=1))


@libraries
@dtypes
def test_fortran_order(race, dtype, name):
    race("softmax", name, peers.make_case((4096, 1000), dtype, order="F"))
