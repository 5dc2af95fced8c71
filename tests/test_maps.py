"""What maps and losses are: signatures, options, pickling, users' own, help."""

from __future__ import annotations

import copy
import inspect
import pickle
import pydoc

import numpy as np
import pytest

import fastgrad as fg

SEGMENT_MAPS = [
    fg.segment_sum,
    fg.segment_mean,
    fg.segment_max,
    fg.segment_min,
    fg.segment_logsumexp,
    fg.segment_softmax,
    fg.segment_log_softmax,
]
MAPS = [
    fg.softmax,
    fg.log_softmax,
    fg.logsumexp,
    fg.sigmoid,
    fg.log_sigmoid,
    *SEGMENT_MAPS,
    fg.class_centroids,
    fg.prototype_logits,
]
LOSSES = [
    fg.cross_entropy,
    fg.binary_cross_entropy,
    fg.hinge,
    fg.multiclass_hinge,
    fg.centroid_hinge,
]
BUILT_IN = MAPS + LOSSES
built_in = pytest.mark.parametrize("f", BUILT_IN, ids=lambda f: f.__name__)

COMMON = "axis=-1, *, temperature=1.0"
LSE = f"{COMMON}, b=None, keepdims=False, return_sign=False, where=None, out=None"
OPTIONS = (
    "*, axis=-1, weight=None, sample_weight=None, ignore_index=-100, label_smoothing=0.0, "
    "z_loss=0.0, where=None, reduction='mean', normalizer=None"
)
XENT = f"logits, target, {OPTIONS}"
BINARY = "*, pos_weight=None, sample_weight=None, where=None, reduction='mean', normalizer=None"
BCE = f"logits, target, {BINARY}"
HINGE = (
    "*, margin=1.0, squared=False, sample_weight=None, where=None, reduction='mean', "
    "normalizer=None"
)
CLASSES = (
    "*, axis=-1, variant='crammer_singer', divide='one', margin=1.0, squared=False, weight=None, "
    "sample_weight=None, ignore_index=-100, where=None, reduction='mean', normalizer=None"
)
LINEAR = (
    "*, bias=None, l2=0.0, weight=None, sample_weight=None, ignore_index=-100, "
    "label_smoothing=0.0, z_loss=0.0, reduction='mean', normalizer=None, memory=67108864"
)
GRAD = "wrt=('W', 'bias', 'X'), grad_output=None"
IDS = "*, num_segments=None"
EXTREME = "ignore_index=None, empty_value={}, return_argmax=False, out=None"
SEGMENT_OPTIONS = {
    "sum": "weights=None, ignore_index=None, empty_value=0.0, out=None",
    "mean": "weights=None, ignore_index=None, empty_value=nan, out=None",
    "max": EXTREME.format("-inf"),
    "min": EXTREME.format("inf"),
    "logsumexp": "ignore_index=None, out=None",
    "softmax": "ignore_index=None, out=None",
    "log_softmax": "ignore_index=None, out=None",
}
CENTROIDS = "*, num_classes=None, sample_weight=None, ignore_index=None, leave_one_out=False"
CENTROID_HINGE = (
    "*, margin=1.0, squared=True, centroid_grad=True, class_reduction='mean', num_classes=None, "
    "sample_weight=None, ignore_index=None, reduction='mean', normalizer=None"
)
SIGNATURES = [
    (fg.softmax, f"x, {COMMON}, where=None, out=None"),
    (fg.softmax.vjp, f"x, g, {COMMON}, where=None, y=None, out=None"),
    (fg.softmax.jvp, f"x, v, {COMMON}, where=None, y=None, out=None"),
    (fg.log_softmax, f"x, {COMMON}, where=None, out=None"),
    (fg.log_softmax.vjp, f"x, g, {COMMON}, where=None, out=None"),
    (fg.log_softmax.jvp, f"x, v, {COMMON}, where=None, out=None"),
    (fg.logsumexp, f"a, {LSE}"),
    (fg.logsumexp.vjp, f"a, g, {LSE}"),
    (fg.logsumexp.jvp, f"a, v, {LSE}"),
    (fg.cross_entropy, XENT),
    (fg.cross_entropy.grad, f"{XENT}, grad_output=None, out=None"),
    (fg.cross_entropy.value_and_grad, f"{XENT}, grad_output=None, out=None"),
    (fg.cross_entropy.hvp, f"logits, target, v, {OPTIONS}, grad_output=None, out=None"),
    (fg.cross_entropy.hess_diag, f"{XENT}, grad_output=None, out=None"),
    (fg.sigmoid, "x, *, out=None"),
    (fg.sigmoid.vjp, "x, g, *, y=None, out=None"),
    (fg.sigmoid.jvp, "x, v, *, y=None, out=None"),
    (fg.log_sigmoid, "x, *, out=None"),
    (fg.log_sigmoid.vjp, "x, g, *, out=None"),
    (fg.log_sigmoid.jvp, "x, v, *, out=None"),
    (fg.binary_cross_entropy, BCE),
    (fg.binary_cross_entropy.grad, f"{BCE}, grad_output=None, out=None"),
    (fg.binary_cross_entropy.value_and_grad, f"{BCE}, grad_output=None, out=None"),
    (fg.binary_cross_entropy.hvp, f"logits, target, v, {BINARY}, grad_output=None, out=None"),
    (fg.binary_cross_entropy.hess_diag, f"{BCE}, grad_output=None, out=None"),
    *[
        (f, f"scores, target, {options}{', grad_output=None, out=None' if more else ''}")
        for loss, options in ((fg.hinge, HINGE), (fg.multiclass_hinge, CLASSES))
        for f, more in (
            (loss, False),
            (loss.grad, True),
            (loss.value_and_grad, True),
            (loss.hess_diag, True),
        )
    ],
    (fg.hinge.hvp, f"scores, target, v, {HINGE}, grad_output=None, out=None"),
    (fg.multiclass_hinge.hvp, f"scores, target, v, {CLASSES}, grad_output=None, out=None"),
    (fg.token_stats, "logits, target, *, axis=-1, ignore_index=-100"),
    (fg.linear_cross_entropy, f"X, W, target, {LINEAR}"),
    (fg.linear_cross_entropy.grad, f"X, W, target, {LINEAR}, {GRAD}"),
    (fg.linear_cross_entropy.value_and_grad, f"X, W, target, {LINEAR}, {GRAD}"),
    (fg.linear_cross_entropy.hvp, f"X, W, target, v, {LINEAR}, wrt=None, grad_output=None"),
    (
        fg.linear_cross_entropy.fisher_diag,
        f"X, W, target, {LINEAR}, wrt=('W', 'bias'), grad_output=None",
    ),
    (fg.Segments.from_ids, "ids, num_segments=None, *, ignore_index=None"),
    (fg.Segments.from_lengths, "lengths"),
    (fg.Segments.from_offsets, "offsets"),
    (fg.class_centroids, f"X, labels, {CENTROIDS}"),
    (fg.class_centroids.vjp, f"X, labels, g, {CENTROIDS}"),
    (fg.class_centroids.jvp, f"X, labels, v, {CENTROIDS}"),
    (fg.prototype_logits, "X, centroids, *, out=None"),
    (fg.prototype_logits.vjp, "X, centroids, g, *, out=None"),
    (fg.prototype_logits.jvp, "X, centroids, v, *, out=None"),
    (fg.centroid_hinge, f"X, labels, {CENTROID_HINGE}"),
    (fg.centroid_hinge.grad, f"X, labels, {CENTROID_HINGE}, grad_output=None, out=None"),
    (fg.centroid_hinge.value_and_grad, f"X, labels, {CENTROID_HINGE}, grad_output=None, out=None"),
    (fg.centroid_hinge.hvp, f"X, labels, v, {CENTROID_HINGE}, grad_output=None, out=None"),
]
for f in SEGMENT_MAPS:
    options = SEGMENT_OPTIONS[f.__name__.removeprefix("segment_")]
    saved = options.replace("out", "y=None, out") if f is fg.segment_softmax else options
    SIGNATURES += [
        (f, f"data, segments, {IDS}, {options}"),
        (f.vjp, f"data, segments, g, {IDS}, {saved}"),
        (f.jvp, f"data, segments, v, {IDS}, {saved}"),
    ]


def shown(f):
    """The signature without its annotations."""
    signature = inspect.signature(f)
    empty = inspect.Parameter.empty
    bare = [p.replace(annotation=empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=empty))[1:-1]


@pytest.mark.parametrize(
    ("f", "expected"), SIGNATURES, ids=[str(i) for i in range(len(SIGNATURES))]
)
def test_signature_shows_the_real_parameters(f, expected):
    assert shown(f) == expected


@pytest.mark.parametrize(
    "f", [f for f, _ in SIGNATURES], ids=[str(i) for i in range(len(SIGNATURES))]
)
def test_every_parameter_is_annotated(f):
    for p in inspect.signature(f).parameters.values():
        assert p.annotation is not inspect.Parameter.empty, p


def test_built_ins_are_maps_or_losses():
    assert all(isinstance(f, fg.Map) and not isinstance(f, fg.Loss) for f in MAPS)
    assert all(isinstance(f, fg.Loss) and not isinstance(f, fg.Map) for f in LOSSES)


@built_in
def test_built_ins_are_named_as_they_are_exported(f):
    assert getattr(fg, f.__name__) is f


@built_in
@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy], ids=lambda f: f.__name__)
def test_a_copy_of_a_built_in_is_itself(f, again):
    assert again(f) is f


@built_in
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_built_in_pickles_by_name(f, protocol):
    assert pickle.loads(pickle.dumps(f, protocol)) is f


@built_in
def test_derivatives_of_a_built_in_pickle(f):
    for kind in ("vjp", "jvp", "grad", "value_and_grad"):
        if hasattr(f, kind):
            assert pickle.loads(pickle.dumps(getattr(f, kind))) == getattr(f, kind)


@built_in
def test_representation(f):
    assert repr(f) == f"<fastgrad {type(f).__name__.lower()} {f.__name__}>"


@built_in
def test_help_shows_the_summary_and_the_example(f):
    text = pydoc.render_doc(f, renderer=pydoc.plaintext)
    assert inspect.getdoc(f).splitlines()[0] in text
    assert "Examples" in inspect.getdoc(f)


@built_in
def test_dir_lists_the_derivatives_that_exist(f):
    losses = {"grad", "value_and_grad", "hvp", "hess_diag"}
    expected = {"vjp", "jvp"} if isinstance(f, fg.Map) else losses
    if f is fg.centroid_hinge:
        expected = expected - {"hess_diag"}
    assert ({"vjp", "jvp"} | losses) & set(dir(f)) == expected


@built_in
def test_only_real_derivatives_exist(f):
    for kind in ("vjp", "jvp", "grad", "value_and_grad", "hvp", "hess_diag"):
        assert hasattr(f, kind) == (kind in dir(f))


# ---- with_options -------------------------------------------------------------------------------


def test_options_are_new_defaults():
    x = np.arange(6.0).reshape(2, 3)
    cool = fg.softmax.with_options(temperature=2.0, axis=0)
    np.testing.assert_array_equal(cool(x), fg.softmax(x, 0, temperature=2.0))


def test_options_may_be_overridden():
    x = np.arange(6.0).reshape(2, 3)
    cool = fg.softmax.with_options(temperature=2.0)
    np.testing.assert_array_equal(cool(x, temperature=1.0), fg.softmax(x))


def test_options_given_by_position_are_overridden():
    x = np.arange(6.0).reshape(2, 3)
    first = fg.softmax.with_options(axis=0)
    np.testing.assert_array_equal(first(x, 1), fg.softmax(x, 1))


def test_derivatives_get_the_options():
    x, g = np.arange(6.0).reshape(2, 3), np.eye(2, 3)
    cool = fg.softmax.with_options(temperature=2.0)
    np.testing.assert_array_equal(cool.vjp(x, g), fg.softmax.vjp(x, g, temperature=2.0))
    np.testing.assert_array_equal(cool.jvp(x, g), fg.softmax.jvp(x, g, temperature=2.0))


def test_losses_get_the_options():
    x, y = np.arange(6.0).reshape(2, 3), [0, 2]
    total = fg.cross_entropy.with_options(reduction="sum")
    assert total(x, y) == fg.cross_entropy(x, y, reduction="sum")
    assert total.value_and_grad(x, y)[0] == total(x, y)
    grad = fg.cross_entropy.grad(x, y, reduction="sum")
    np.testing.assert_array_equal(total.grad(x, y), grad)


def test_signature_shows_the_options():
    cool = fg.softmax.with_options(temperature=2.0)
    assert inspect.signature(cool).parameters["temperature"].default == 2.0
    assert inspect.signature(cool.vjp).parameters["temperature"].default == 2.0
    assert shown(cool) == "x, axis=-1, *, temperature=2.0, where=None, out=None"


def test_a_function_with_options_keeps_its_kind_and_derivatives():
    for f in BUILT_IN:
        option = {"reduction": "sum"}
        if isinstance(f, fg.Map):
            option = {"num_classes": 3} if f is fg.class_centroids else {"out": None}
        other = f.with_options(**option)
        assert isinstance(other, fg.Map) == isinstance(f, fg.Map)
        for kind in ("vjp", "jvp", "grad", "value_and_grad", "hvp", "hess_diag"):
            assert hasattr(other, kind) == hasattr(f, kind)


def test_a_function_with_options_is_named_by_them():
    total = fg.cross_entropy.with_options(reduction="sum")
    assert repr(total) == "<fastgrad loss cross_entropy(reduction='sum')>"


def test_a_function_with_options_has_the_docstring():
    total = fg.cross_entropy.with_options(reduction="sum")
    assert inspect.getdoc(total) == inspect.getdoc(fg.cross_entropy)


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda f: pickle.loads(pickle.dumps(f))]
)
def test_a_function_with_options_can_be_copied(again):
    total = again(fg.cross_entropy.with_options(reduction="sum"))
    x, y = np.arange(6.0).reshape(2, 3), [0, 2]
    assert total(x, y) == fg.cross_entropy(x, y, reduction="sum")
    assert total.value_and_grad(x, y)[0] == total(x, y)
    assert not hasattr(total, "vjp")


def test_options_add_up():
    twice = fg.cross_entropy.with_options(reduction="sum").with_options(axis=0)
    x, y = np.arange(6.0).reshape(3, 2), [0, 2]
    assert twice(x, y) == fg.cross_entropy(x, y, axis=0, reduction="sum")


def test_options_leave_the_original_alone():
    fg.softmax.with_options(temperature=2.0)
    assert inspect.signature(fg.softmax).parameters["temperature"].default == 1.0


# ---- users' own ---------------------------------------------------------------------------------


def squared(z, y, *, scale=1.0):
    """Half the squared distance."""
    return 0.5 * scale * float(np.sum((z - y) ** 2))


def squared_grad(z, y, *, scale=1.0):
    return scale * (z - y)


def squared_both(z, y, *, scale=1.0):
    return squared(z, y, scale=scale), squared_grad(z, y, scale=scale)


def squared_hvp(z, y, v, *, scale=1.0):
    return scale * v


Z, T = np.array([1.0, 3.0]), np.array([0.0, 1.0])


def test_value_alone_has_no_derivatives():
    loss = fg.Loss(squared)
    assert loss(Z, T) == 2.5
    assert not any(hasattr(loss, k) for k in ("grad", "value_and_grad", "hvp", "hess_diag"))


def test_value_and_grad_is_made_of_both():
    loss = fg.Loss(squared, grad=squared_grad)
    value, grad = loss.value_and_grad(Z, T, scale=2.0)
    assert value == 5
    np.testing.assert_array_equal(grad, [2, 4])


def test_value_and_grad_are_taken_from_both_at_once():
    loss = fg.Loss(value_and_grad=squared_both)
    assert loss(Z, T) == 2.5
    np.testing.assert_array_equal(loss.grad(Z, T, scale=2.0), [2, 4])


def test_what_is_given_is_not_replaced():
    loss = fg.Loss(squared, grad=squared_grad, value_and_grad=squared_both, hvp=squared_hvp)
    assert loss.value_and_grad is squared_both
    assert loss.grad is squared_grad
    assert loss.hvp is squared_hvp
    assert not hasattr(loss, "hess_diag")


def test_an_own_loss_has_signature_name_and_docstring_of_its_value():
    loss = fg.Loss(squared)
    assert shown(loss) == "z, y, *, scale=1.0"
    assert loss.__name__ == "squared"
    assert loss.__doc__ == "Half the squared distance."
    assert repr(loss) == "<fastgrad loss squared>"


def test_an_own_loss_may_be_named():
    assert repr(fg.Loss(squared, name="mine")) == "<fastgrad loss mine>"


def test_an_own_loss_takes_options():
    loss = fg.Loss(squared, grad=squared_grad).with_options(scale=2.0)
    assert loss(Z, T) == 5
    assert loss.value_and_grad(Z, T)[0] == 5
    np.testing.assert_array_equal(loss.grad(Z, T), [2, 4])


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda f: pickle.loads(pickle.dumps(f))]
)
@pytest.mark.parametrize(
    "loss",
    [
        fg.Loss(squared),
        fg.Loss(squared, grad=squared_grad),
        fg.Loss(value_and_grad=squared_both),
        fg.Loss(squared, grad=squared_grad).with_options(scale=2.0),
    ],
    ids=["value", "both", "at once", "options"],
)
def test_an_own_loss_can_be_copied(loss, again):
    other = again(loss)
    assert other(Z, T) == loss(Z, T)
    assert hasattr(other, "grad") == hasattr(loss, "grad")
    assert repr(other) == repr(loss)


class CompiledMax:
    """As the functions of a compiled library: callable, and no signature to be seen."""

    __name__ = "max"
    __signature__ = ()

    def __call__(self, *args, **kwargs):
        return max(*args, **kwargs)


compiled_max = CompiledMax()


def test_an_own_map_of_a_compiled_function_without_signature():
    with pytest.raises(TypeError, match="__signature__"):
        inspect.signature(compiled_max)
    largest = fg.Map(compiled_max, vjp=lambda x, g: g * (x == x.max()))
    x = np.array([0.5, 3.0, -1.0])
    assert largest(x) == 3
    assert fg.gradcheck(largest, x)
    assert not fg.gradcheck(fg.Map(compiled_max, vjp=lambda x, g: g * x), x)
    assert largest.with_options(key=abs)(-x) == -3


def test_the_parts_of_a_pair_without_signature_show_one():
    pair = fg.Loss(value_and_grad=compiled_max)
    both = fg.Loss(compiled_max, grad=compiled_max)
    for f in (pair, pair.grad, both, both.value_and_grad):
        assert shown(f) == "*args, **kwargs"


def test_options_of_a_derivative_that_takes_any():
    scaled = fg.Map(lambda x, *, k=1.0: k * x, vjp=lambda x, g, **k: k["k"] * g)
    double = scaled.with_options(k=2.0)
    assert shown(double) == "x, *, k=2.0"
    assert shown(double.vjp) == "x, g, **k"
    assert double(3.0) == double.vjp(1.0, 3.0) == 6.0


def test_what_has_no_default_behind_an_option_is_a_keyword():
    def vjp(x, g, a, b, *rest):
        return g * a * b

    scaled = fg.Map(lambda x, a=1.0, b=1.0: a * b * x, vjp=vjp)
    double = scaled.with_options(a=2.0)
    assert shown(double) == "x, a=2.0, b=1.0"
    assert shown(double.vjp) == "x, g, a=2.0, *rest, b"
    assert double.vjp(1.0, 3.0, b=5.0) == double.vjp(1.0, 3.0, 2.0, 5.0) == 30.0


def test_an_own_map():
    double = fg.Map(np.sinh, vjp=lambda x, g: g * np.cosh(x))
    np.testing.assert_array_equal(double(Z), np.sinh(Z))
    assert hasattr(double, "vjp")
    assert not hasattr(double, "jvp")


def test_a_half_made_object_does_not_recurse():
    """copy and pickle look for attributes on objects whose __init__ has not run."""
    with pytest.raises(AttributeError):
        getattr(object.__new__(fg.Loss), "nonsense")  # noqa: B009


@pytest.mark.parametrize("name", ["logits", "target"])
def test_arguments_are_no_options(name):
    with pytest.raises(TypeError, match=f"cross_entropy has no option '{name}'; it has axis, "):
        fg.cross_entropy.with_options(**{name: 2.0})


def test_options_behind_any_number_of_arguments():
    last = fg.Map(lambda z, w=1, *args, k=2: k).with_options(k=9)
    assert last(1, 2, 3) == 9
    assert last(1, 2, 3, k=4) == 4
    assert fg.Map(lambda *xs, k=1: k).with_options(k=9)(1) == 9
    assert fg.Map(lambda z, w=1: w).with_options(w=9)(1, 2) == 2
