"""Every public function with `out=`, given an array of a subclass that is no plain array in
Python: the memory is written as that of a plain one, and `out` itself comes back."""

import inspect

import numpy as np
import pytest

import fastgrad as fg

X = np.random.default_rng(0).normal(size=(4, 3))
Y = np.array([0, 2, 1, 1])
TABLE = X[1:]
SIGNS = X > 0
IDS = [0, 1, 0, 1]

MAPS = {
    "sigmoid": (X,),
    "log_sigmoid": (X,),
    "softmax": (X,),
    "log_softmax": (X,),
    "segment_softmax": (X, IDS),
    "segment_log_softmax": (X, IDS),
}
REDUCTIONS = ("sum", "mean", "max", "min", "logsumexp")
CALLS = {
    **MAPS,
    **{f"{name}.{kind}": (*args, X) for name, args in MAPS.items() for kind in ("vjp", "jvp")},
    **{f"segment_{name}": (X, IDS) for name in REDUCTIONS},
    **{f"segment_{name}.vjp": (X, IDS, X[:2]) for name in REDUCTIONS},
    **{f"segment_{name}.jvp": (X, IDS, X) for name in REDUCTIONS},
    "logsumexp": (X,),
    "logsumexp.vjp": (X, X[:, :1]),
    "logsumexp.jvp": (X, X),
    "prototype_logits": (X, TABLE),
    "prototype_logits.vjp": (X, TABLE, X),
    "prototype_logits.jvp": (X, TABLE, X),
}
for name, target in (
    ("cross_entropy", Y),
    ("multiclass_hinge", Y),
    ("binary_cross_entropy", SIGNS),
    ("hinge", SIGNS),
    ("centroid_hinge", Y),
):
    CALLS |= {f"{name}.{kind}": (X, target) for kind in ("grad", "value_and_grad")}
    CALLS[f"{name}.hvp"] = (X, target, X)
    if name != "centroid_hinge":
        CALLS[f"{name}.hess_diag"] = (X, target)


class Hostile(np.ndarray):
    """An array no method of which may be relied on."""

    def __getitem__(self, key):
        raise AssertionError("indexed")

    def __setitem__(self, key, value):
        raise AssertionError("assigned to")

    def reshape(self, *shape, **options):
        raise AssertionError("reshaped")

    def fill(self, value):
        raise AssertionError("filled")

    def __array_ufunc__(self, *args, **options):
        raise AssertionError("given to a ufunc")


def find(name):
    f = fg
    for part in name.split("."):
        f = getattr(f, part)
    return f


def with_out():
    """The names of public functions, and of methods of public objects, that take `out`."""
    for name in fg.__all__:
        f = getattr(fg, name)
        if isinstance(f, type) or not callable(f):
            continue
        methods = {f"{name}.{m}": getattr(f, m) for m in dir(f) if not m.startswith("_")}
        for path, g in {name: f, **methods}.items():
            if callable(g) and "out" in inspect.signature(g).parameters:
                yield path


def test_every_function_with_out_is_here():
    assert sorted(CALLS) == sorted(with_out())


@pytest.mark.parametrize("kind", [np.matrix, np.memmap, Hostile])
@pytest.mark.parametrize("name", CALLS)
def test_out_of_a_subclass_is_filled_as_a_plain_array_and_returned(name, kind, tmp_path):
    f, args = find(name), CALLS[name]
    options = {"keepdims": True} if name.startswith("logsumexp") else {}
    plain = f(*args, **options)
    plain = plain[1] if isinstance(plain, tuple) else plain
    room = np.zeros((plain.shape[0] + 2, plain.shape[1]))  # a guard on each side
    if kind is np.memmap:
        room = np.memmap(tmp_path / "room", plain.dtype, "w+", shape=room.shape)
    room[...] = 7
    out = room[1:-1] if kind is np.memmap else room[1:-1].view(kind)
    got = f(*args, **options, out=out)
    assert (got[1] if isinstance(got, tuple) else got) is out
    np.testing.assert_array_equal(room[1:-1], plain)
    assert (room[[0, -1]] == 7).all()


@pytest.mark.parametrize(
    "name", ["softmax", "cross_entropy.grad", "segment_sum", "centroid_hinge.grad"]
)
def test_strided_out_of_a_subclass(name):
    args = CALLS[name]
    plain = find(name)(*args)
    room = np.full((plain.shape[0], 2 * plain.shape[1]), 7.0)
    out = room[:, ::2].view(Hostile)
    assert find(name)(*args, out=out) is out
    np.testing.assert_array_equal(room[:, ::2], plain)
    assert (room[:, 1::2] == 7).all()
