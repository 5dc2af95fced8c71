"""The kernels of the limit move every byte once, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

import fastgrad as fg
from fastgrad._kernels import bandwidth

SIZES = [0, 1, 7, 63, 64, 65, 255, 256, 257, 1023, 131_072, 131_073, 1_000_003]

MOVES = (bandwidth.copy, bandwidth.stream, bandwidth.stream_pages)
moves = pytest.mark.parametrize("move", MOVES)


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    with fg.num_threads(request.param):
        yield request.param


@moves
@pytest.mark.parametrize("offset", [0, 1, 13, 32])
@pytest.mark.parametrize("size", SIZES)
def test_every_byte_arrives_and_none_beside(isa, threads, move, size, offset, rng):
    src = rng.integers(0, 256, size + 3, dtype=np.uint8)[3:]
    whole = np.full(size + 128, 7, np.uint8)
    # From the next line of the cache on, so that `offset` is where the stores begin in a line.
    at = -whole.ctypes.data % 64 + offset
    move(whole[at : at + size], src)
    np.testing.assert_array_equal(whole[at : at + size], src)
    assert np.all(whole[:at] == 7)
    assert np.all(whole[at + size :] == 7)


@pytest.mark.parametrize("size", SIZES)
def test_read_takes_every_byte(isa, threads, size, rng):
    src = rng.integers(0, 256, size, dtype=np.uint8)
    assert bandwidth.read(src) == np.bitwise_xor.reduce(src)


def test_reads_and_writes_stay_inside_their_memory(isa, guard, rng):
    for size in (1, 63, 321, 4097):
        src = rng.integers(0, 256, size, dtype=np.uint8)
        for at in ("begin", "end"):
            source = guard(size).place(src, at)
            assert bandwidth.read(source) == np.bitwise_xor.reduce(src)
            for move in MOVES:
                dst = guard(size).place(np.zeros_like(src), at)
                move(dst, source)
                np.testing.assert_array_equal(dst, src)


@moves
def test_any_dtype_and_order(move, rng):
    src = np.asfortranarray(rng.normal(size=(30, 50)))
    dst = np.empty_like(src)
    move(dst, src)
    np.testing.assert_array_equal(dst, src)


@moves
def test_what_is_refused(move):
    a = np.zeros(100)
    with pytest.raises(ValueError, match=r"dst and src must not overlap"):
        move(a[1:], a[:-1])
    with pytest.raises(ValueError, match=r"dst and src must not overlap"):
        move(a, a)
    with pytest.raises(ValueError, match=r"dst must have the 800 bytes of src; it has 792"):
        move(np.zeros(99), a)
    with pytest.raises(ValueError, match=r"src must be contiguous; its strides are \(16,\)"):
        move(np.zeros(50), a[::2])
    with pytest.raises(ValueError, match=r"dst must be contiguous; its strides are \(-8,\)"):
        move(np.zeros(100)[::-1], a)
    a.flags.writeable = False
    with pytest.raises(ValueError, match=r"dst must be writeable"):
        move(a, np.zeros(100))
    move(np.zeros(50), np.zeros(100)[:50])  # neighbours in memory do not overlap


def test_read_refuses_strides():
    with pytest.raises(ValueError, match=r"src must be contiguous"):
        bandwidth.read(np.zeros((4, 4))[:, 1:])
