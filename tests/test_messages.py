"""Every message of the library in full, its class, and that nothing was written before it."""

# ruff: noqa: E501  (a message is easier to search for in one piece)

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import fastgrad as fg

X = np.zeros((2, 3))
OUT = np.full((2, 3), 7.0)
Y = np.array([0, 1])
MASKED = np.ma.masked_array(X, X == 1)
READ_ONLY = np.zeros((2, 3))
READ_ONLY.flags.writeable = False
UNALIGNED = np.zeros(49, np.uint8)[1:].view(np.float64).reshape(2, 3)
BIG = np.zeros(12)
MASKED_IDS = np.ma.masked_array([0, 1], [0, 1])


def late(index):
    """Ten thousand targets, one of them wrong: found in a later chunk of the scan."""
    y = np.zeros(10000, int)
    y[index] = 9
    return y


CALLS = {
    "Segments.num_segments": setattr,
    "softmax": fg.softmax,
    "log_softmax": fg.log_softmax,
    "logsumexp": fg.logsumexp,
    "cross_entropy": fg.cross_entropy,
    "grad": fg.cross_entropy.grad,
    "value_and_grad": fg.cross_entropy.value_and_grad,
    "hvp": fg.cross_entropy.hvp,
    "softmax.vjp": fg.softmax.vjp,
    "softmax.jvp": fg.softmax.jvp,
    "log_softmax.vjp": fg.log_softmax.vjp,
    "log_softmax.jvp": fg.log_softmax.jvp,
    "logsumexp.vjp": fg.logsumexp.vjp,
    "logsumexp.jvp": fg.logsumexp.jvp,
    "sigmoid": fg.sigmoid,
    "sigmoid.vjp": fg.sigmoid.vjp,
    "log_sigmoid.jvp": fg.log_sigmoid.jvp,
    "binary": fg.binary_cross_entropy,
    "binary.grad": fg.binary_cross_entropy.grad,
    "binary.hvp": fg.binary_cross_entropy.hvp,
    "token_stats": fg.token_stats,
    "linear": fg.linear_cross_entropy,
    "linear.grad": fg.linear_cross_entropy.grad,
    "linear.hvp": fg.linear_cross_entropy.hvp,
    "linear.fisher_diag": fg.linear_cross_entropy.fisher_diag,
    "linear.flat": fg.linear_cross_entropy.flat,
    "flat": fg.linear_cross_entropy.flat(X, Y, num_classes=2),
    "flat.hessp": fg.linear_cross_entropy.flat(X, Y, num_classes=2, bias=False).hessp,
    "flat.unpack": fg.linear_cross_entropy.flat(X, Y, num_classes=2).unpack,
    "hinge": fg.hinge,
    "hinge.grad": fg.hinge.grad,
    "hinge.hvp": fg.hinge.hvp,
    "classes": fg.multiclass_hinge,
    "classes.grad": fg.multiclass_hinge.grad,
    "classes.hvp": fg.multiclass_hinge.hvp,
    "set_num_threads": fg.set_num_threads,
    "from_ids": fg.Segments.from_ids,
    "from_lengths": fg.Segments.from_lengths,
    "from_offsets": fg.Segments.from_offsets,
    "Segments": fg.Segments,
    "segment_sum": fg.segment_sum,
    "segment_mean": fg.segment_mean,
    "segment_max": fg.segment_max,
    "segment_softmax": fg.segment_softmax,
    "segment_sum.vjp": fg.segment_sum.vjp,
    "segment_softmax.vjp": fg.segment_softmax.vjp,
    "segment_min.jvp": fg.segment_min.jvp,
    "centroids": fg.class_centroids,
    "centroids.vjp": fg.class_centroids.vjp,
    "prototypes": fg.prototype_logits,
    "prototypes.vjp": fg.prototype_logits.vjp,
    "centroid_hinge": fg.centroid_hinge,
    "centroid_hinge.grad": fg.centroid_hinge.grad,
    "centroid_hinge.hvp": fg.centroid_hinge.hvp,
    "CentroidState": fg.streaming.CentroidState,
    "state.update": fg.streaming.CentroidState(2).update([[0.0, 1.0, 2.0]], [0]).update,
    "state.merge": fg.streaming.CentroidState(2).update([[0.0, 1.0, 2.0]], [0]).merge,
    "log.update": fg.streaming.LogSumExpState(0).update([[0.0, 1.0]]).update,
    "log.merge": fg.streaming.LogSumExpState(0).update([[0.0, 1.0]]).merge,
    "sum.update": fg.streaming.LossSum().update,
    "sum.merge": fg.streaming.LossSum().merge,
    "XGBoost": fg.boosting.XGBoostObjective,
    "objective": fg.boosting.XGBoostObjective(fg.cross_entropy),
    "init_score": fg.boosting.init_score,
    "CatBoost": fg.boosting.CatBoostObjective(fg.binary_cross_entropy).calc_ders_range,
    "CatBoost.multi": fg.boosting.CatBoostObjective(fg.cross_entropy).calc_ders_multi,
}

AxisError = np.exceptions.AxisError
PLAIN = "Pass x.data or x.filled(0)."
MASK_LOST = "must be a plain array; got a masked array, whose mask would be lost. "
MASKED_LABELS = (
    "must be a plain array; got a masked array, whose mask would be lost. Leave its masked rows "
    "out of the data, or give them weight 0."
)
RAGGED = (
    "must be an array of numbers; got dtype {}. If it holds rows of unequal length or text, make it "
    "rectangular and numeric first, for example with np.asarray(x, dtype=np.float64)."
)
SAME = "x itself or not overlap x; they share part of their memory. Use a fresh np.empty."
SHARED = "they share part of their memory. Use a fresh np.empty."

# call, arguments, keywords, class, message
CASES = [
    # scores
    ("softmax", (MASKED,), {}, TypeError, f"x {MASK_LOST}Pass x=x.filled(0) and where=~np.ma.getmaskarray(x)."),
    ("cross_entropy", (MASKED, Y), {}, TypeError, f"logits {MASK_LOST}Pass logits=x.filled(0) and where=~np.ma.getmaskarray(x)."),
    ("softmax", (X.astype(np.longdouble),), {}, TypeError, f"x must be float16, bfloat16, float32 or float64; got {np.dtype(np.longdouble).name}, which would lose digits. Use x.astype(np.float64) if float64 is enough."),
    ("logsumexp", (X.astype(complex),), {}, TypeError, "a must be real; got complex128. Use a.real if the imaginary part is 0."),
    ("log_softmax", (X.astype(object),), {}, TypeError, f"x {RAGGED.format('object')}"),
    ("softmax", (["a", "b"],), {}, TypeError, f"x {RAGGED.format('<U1')}"),
    ("softmax", (np.array(["2020-01-01"], "M8[D]"),), {}, TypeError, f"x {RAGGED.format('datetime64[D]')}"),
    ("softmax", (None,), {}, TypeError, f"x {RAGGED.format('object')}"),
    # axis
    ("softmax", (X, 2), {}, AxisError, "axis must be in [-2, 2) for x of 2 dimensions; got 2."),
    ("logsumexp", (X, -3), {}, AxisError, "axis must be in [-2, 2) for a of 2 dimensions; got -3."),
    ("cross_entropy", (X, Y), {"axis": 2}, AxisError, "axis must be in [-2, 2) for logits of 2 dimensions; got 2."),
    ("softmax", (np.float64(0), 1), {}, AxisError, "axis must be in [-1, 1) for x of 1 dimension; got 1."),
    ("softmax", (X, (0, 5)), {}, AxisError, "axis must be in [-2, 2) for x of 2 dimensions; got 5."),
    ("softmax", (X, 0.5), {}, TypeError, "axis must be an int; got 0.5 (float)."),
    ("softmax", (X, -1.0), {}, TypeError, "axis must be an int; got -1.0 (float)."),
    ("log_softmax", (X, -1.0), {}, TypeError, "axis must be an int; got -1.0 (float)."),
    ("cross_entropy", (X, Y), {"axis": -1.0}, TypeError, "axis must be an int; got -1.0 (float)."),
    ("softmax", (X, np.array([0, 1])), {}, TypeError, "axis must be an int; got array([0, 1]) (ndarray)."),
    ("cross_entropy", (X, Y), {"axis": None}, TypeError, "axis must be an int; got None (NoneType)."),
    ("cross_entropy", (X, Y), {"axis": (0, 1)}, TypeError, "axis must be an int; got (0, 1) (tuple)."),
    ("softmax", (X, (0, "1")), {}, TypeError, "axis must be an int; got '1' (str)."),
    ("softmax", (X, (1, -1)), {}, ValueError, "axis must not name an axis twice; got (1, -1)."),
    # temperature
    ("softmax", (X,), {"temperature": 0.0}, ValueError, "temperature must be > 0, between 1e-30 and 1e30; got 0.0. For a winner that takes all, use argmax."),
    ("softmax", (X,), {"temperature": -1}, ValueError, "temperature must be > 0, between 1e-30 and 1e30; got -1.0. For a winner that takes all, use argmax."),
    ("logsumexp", (X,), {"temperature": np.inf}, ValueError, "temperature must be > 0, between 1e-30 and 1e30; got inf. For a winner that takes all, use argmax."),
    ("log_softmax", (X,), {"temperature": np.nan}, ValueError, "temperature must be > 0, between 1e-30 and 1e30; got nan. For a winner that takes all, use argmax."),
    ("softmax", (X,), {"temperature": np.ones(2)}, TypeError, "temperature must be one number; got an array of shape (2,)."),
    ("softmax", (X,), {"temperature": "2"}, TypeError, "temperature must be a real number; got '2'."),
    ("softmax", (X,), {"temperature": "hot"}, TypeError, "temperature must be a real number; got 'hot'."),
    ("softmax", (X,), {"temperature": None}, TypeError, "temperature must be a real number; got None."),
    ("softmax", (X,), {"temperature": 1j}, TypeError, "temperature must be a real number; got 1j."),
    # where, b, vectors
    ("softmax", (X,), {"where": [1, 0, 1]}, TypeError, "where must be boolean (True keeps an element); got dtype int64. Use where=mask.astype(bool), or where=mask != 0."),
    ("softmax", (X,), {"where": [True, False]}, ValueError, "where must broadcast to the shape of x, (2, 3); it has shape (2,)."),
    ("logsumexp", (X,), {"where": np.ones((1, 2, 3), bool)}, ValueError, "where must broadcast to the shape of a, (2, 3); it has shape (1, 2, 3)."),
    ("logsumexp", (X,), {"b": [1.0, 2]}, ValueError, "b must broadcast to the shape of a, (2, 3); it has shape (2,)."),
    ("logsumexp", (X,), {"b": [1j]}, TypeError, "b must be real; got complex128. Use b.real if the imaginary part is 0."),
    ("softmax.vjp", (X, [1.0, 2]), {}, ValueError, "g must have shape (2, 3); it has shape (2,)."),
    ("softmax.jvp", (X, [1.0, 2]), {}, ValueError, "v must have shape (2, 3); it has shape (2,)."),
    ("softmax.vjp", (X, X), {"y": X[:1]}, ValueError, "y must have shape (2, 3); it has shape (1, 3)."),
    ("log_softmax.vjp", (X, X.T), {}, ValueError, "g must have shape (2, 3); it has shape (3, 2)."),
    ("log_softmax.jvp", (X, 1.0), {}, ValueError, "v must have shape (2, 3); it has shape ()."),
    ("logsumexp.vjp", (X, X), {}, ValueError, "g must have shape (2,); it has shape (2, 3)."),
    ("logsumexp.vjp", (X, [1.0, 2]), {"keepdims": True}, ValueError, "g must have shape (2, 1); it has shape (2,)."),
    ("logsumexp.jvp", (X, [1.0, 2]), {}, ValueError, "v must have shape (2, 3); it has shape (2,)."),
    # out
    ("softmax", (X,), {"out": [0.0]}, TypeError, "out must be a NumPy array; got list."),
    ("softmax", (X,), {"out": MASKED}, TypeError, "out must be a NumPy array; got MaskedArray."),
    ("softmax", (X,), {"out": np.zeros((3, 2))}, ValueError, "out must have shape (2, 3); it has shape (3, 2)."),
    ("logsumexp", (X,), {"out": np.zeros((2, 1))}, ValueError, "out must have shape (2,); it has shape (2, 1)."),
    ("softmax", (X,), {"out": OUT.astype(np.float32)}, TypeError, "out must have the dtype of the result, float64; it has float32. Use np.empty((2, 3), np.float64)."),
    ("grad", (X, Y), {"out": OUT.astype(">f8")}, TypeError, "out must have the dtype of the result, float64; it has >f8. Use np.empty((2, 3), np.float64)."),
    ("softmax", (X,), {"out": READ_ONLY}, ValueError, "out must be writeable; it is read-only."),
    ("softmax", (X,), {"out": UNALIGNED}, ValueError, "out must be aligned in memory; it is not. Use a fresh np.empty."),
    ("softmax", (X,), {"out": np.lib.stride_tricks.as_strided(BIG, (2, 3), (8, 8))}, ValueError, "out must not overlap itself; its strides (8, 8) visit some memory twice. Use a fresh np.empty, not a broadcast or windowed view."),
    ("softmax", (X,), {"out": np.lib.stride_tricks.as_strided(BIG, (2, 3), (0, 8))}, ValueError, "out must not overlap itself; its strides (0, 8) visit some memory twice. Use a fresh np.empty, not a broadcast or windowed view."),
    ("softmax", (BIG[:6],), {"out": BIG[1:7]}, ValueError, f"out must be {SAME}"),
    ("softmax", (BIG[:6],), {"out": BIG[5::-1]}, ValueError, f"out must be {SAME}"),
    ("logsumexp", (BIG.reshape(2, 6),), {"out": BIG[:2]}, ValueError, f"out must be a itself or not overlap a; {SHARED}"),
    ("grad", (BIG[:6].reshape(2, 3), Y), {"out": BIG[3:9].reshape(2, 3)}, ValueError, f"out must be logits itself or not overlap logits; {SHARED}"),
    ("softmax.vjp", (BIG[:3], BIG[6:9]), {"out": BIG[:3]}, ValueError, f"out must not overlap x; {SHARED}"),
    ("softmax.vjp", (BIG[:3], BIG[6:9]), {"out": BIG[7:10]}, ValueError, f"out must be g itself or not overlap g; {SHARED}"),
    ("softmax.vjp", (BIG[:3], BIG[6:9]), {"y": BIG[3:6], "out": BIG[3:6]}, ValueError, f"out must not overlap y; {SHARED}"),
    ("logsumexp.vjp", (BIG.reshape(2, 6), BIG[:2]), {"out": BIG.reshape(2, 6)}, ValueError, f"out must not overlap g; {SHARED}"),
    ("logsumexp", (BIG[:3],), {"b": BIG[4:7], "out": BIG[4:5].reshape(())}, ValueError, f"out must not overlap b; {SHARED}"),
    ("softmax", (BIG[:3],), {"where": BIG[6:].view(bool)[:3], "out": BIG[6:9]}, ValueError, f"out must not overlap where; {SHARED}"),
    ("grad", (X[:, :1], BIG[:2].view(np.int64)), {"out": BIG[:2, None]}, ValueError, f"out must not overlap target; {SHARED}"),
    # targets
    ("cross_entropy", (X, np.ma.masked_array(Y, [0, 1])), {}, TypeError, f"target {MASK_LOST}Pass target=y.filled(-100): rows with ignore_index=-100 are left out."),
    ("cross_entropy", (X, [0.0, 1.0]), {}, TypeError, "target must hold integers if it names one class per row; got dtype float64. Use target.astype(np.int64) if the values are whole numbers."),
    ("cross_entropy", (X, X[:1]), {}, ValueError, "target must have the shape of logits, (2, 3), if it holds probabilities; it has shape (1, 3). Nothing is broadcast."),
    ("cross_entropy", (Y, X), {}, TypeError, "target must hold class indices of shape (), or probabilities of the shape of logits, (2,); got float64 of shape (2, 3). The order is (logits, target)."),
    ("cross_entropy", (X, [[0.5, 0.5, 0], [0, -0.5, 1]]), {}, ValueError, "target must be a probability, finite and >= 0; target[1, 1] is -0.5 (as float64)."),
    ("grad", (X.T, np.array([[0, 0, np.nan], [np.inf, 0, 0]]).T), {"axis": 0, "out": OUT.T}, ValueError, "target must be a probability, finite and >= 0; target[0, 1] is inf (as float64)."),
    ("cross_entropy", (X, ["a", "b"]), {}, TypeError, "target must hold class indices (integers) or probabilities (floats); got dtype <U1. Map the classes to 0, 1, ..., for example by np.unique(y, return_inverse=True)."),
    ("cross_entropy", (X, [[0], [1]]), {}, ValueError, "target must have shape (2,), that of logits (2, 3) without the class axis 1; it has shape (2, 1). Nothing is broadcast: pass target.reshape((2,))."),
    ("cross_entropy", (X, np.eye(2, 3, dtype=int)), {}, ValueError, "target must have shape (2,), that of logits (2, 3) without the class axis 1; it has shape (2, 3). If it is one-hot, pass target.argmax(1)."),
    ("cross_entropy", (X, [0, 1, 0]), {}, ValueError, "target must have shape (2,), that of logits (2, 3) without the class axis 1; it has shape (3,)."),
    ("cross_entropy", (X, 0), {}, ValueError, "target must have shape (2,), that of logits (2, 3) without the class axis 1; it has shape ()."),
    ("cross_entropy", (Y, X.astype(int)), {}, ValueError, "target must have shape (), that of logits (2,) without the class axis 0; it has shape (2, 3). The order of the arguments is (logits, target)."),
    ("cross_entropy", (np.zeros((2, 3, 4)), np.zeros((2, 4), int)), {}, ValueError, "target must have shape (2, 3), that of logits (2, 3, 4) without the class axis 2; it has shape (2, 4). If another axis holds the classes, say axis=."),
    ("cross_entropy", (X, [0, 3]), {}, IndexError, "target must be in [0, 3) or equal to ignore_index=-100; target[1] is 3."),
    ("cross_entropy", (X, [1, 3]), {}, IndexError, "target must be in [0, 3) or equal to ignore_index=-100; target[1] is 3. Classes count from 0: if yours count from 1, pass target - 1."),
    ("cross_entropy", (X, [0, -1]), {}, IndexError, "target must be in [0, 3) or equal to ignore_index=-100; target[1] is -1. If -1 marks rows to leave out, pass ignore_index=-1."),
    ("grad", (X, [-2, 5]), {"out": OUT}, IndexError, "target must be in [0, 3) or equal to ignore_index=-100; target[0] is -2. Negative indices do not count from the end."),
    ("value_and_grad", (X, [0, -100]), {"ignore_index": None, "out": OUT}, IndexError, "target must be in [0, 3); target[1] is -100. Negative indices do not count from the end."),
    ("cross_entropy", (X[0], 3), {}, IndexError, "target must be in [0, 3) or equal to ignore_index=-100; target is 3. Classes count from 0: if yours count from 1, pass target - 1."),
    ("cross_entropy", (X, np.array([0, 2**64 - 1], np.uint64)), {}, IndexError, "target must be in [0, 3) or equal to ignore_index=-100; target[1] is 18446744073709551615."),
    ("cross_entropy", (X, [0, 7]), {"ignore_index": 1}, IndexError, "target must be in [0, 3) or equal to ignore_index=1; target[1] is 7."),
    ("cross_entropy", (np.zeros((2, 3, 4)), [[0, 0, 0], [0, 9, 9]]), {}, IndexError, "target must be in [0, 4) or equal to ignore_index=-100; target[1, 1] is 9."),
    ("cross_entropy", (np.zeros((3, 4, 2)), np.array([[0, 0, 0], [0, 9, 9]]).T), {"axis": 1}, IndexError, "target must be in [0, 4) or equal to ignore_index=-100; target[1, 1] is 9."),
    ("cross_entropy", (np.zeros((10000, 3)), late(9999)), {}, IndexError, "target must be in [0, 3) or equal to ignore_index=-100; target[9999] is 9."),
    ("cross_entropy", (np.zeros((10000, 3)), late(5000).astype(np.int8)), {}, IndexError, "target must be in [0, 3) or equal to ignore_index=-100; target[5000] is 9."),
    ("cross_entropy", (X, Y), {"ignore_index": 0.5}, TypeError, "ignore_index must be an int or None; got 0.5."),
    ("cross_entropy", (X, Y), {"ignore_index": "x"}, TypeError, "ignore_index must be an int or None; got 'x'."),
    ("cross_entropy", (X, Y), {"ignore_index": 2**63}, ValueError, "ignore_index must fit in int64; got 9223372036854775808."),
    ("cross_entropy", (X, Y), {"ignore_index": -(2**63) - 1}, ValueError, "ignore_index must fit in int64; got -9223372036854775809."),
    ("cross_entropy", (X, Y), {"reduction": "avg"}, ValueError, "reduction must be 'mean', 'sum' or 'none'; got 'avg'."),
    ("grad", (X, Y), {"reduction": 1}, ValueError, "reduction must be 'mean', 'sum' or 'none'; got 1."),
    # weights and options
    ("cross_entropy", (X, Y), {"weight": [1.0, 2.0]}, ValueError, "weight must have shape (3,), one number per class; it has shape (2,). Weights of rows go to sample_weight."),
    ("cross_entropy", (X, Y), {"weight": [1.0, -2.0, 0]}, ValueError, "weight must be finite and >= 0; weight[1] is -2.0 (as float64)."),
    ("cross_entropy", (X.astype(np.float32), Y), {"weight": [1.0, 1e39, 0]}, ValueError, "weight must be finite and >= 0; weight[1] is inf (as float32)."),
    ("cross_entropy", (X, Y), {"sample_weight": [1.0, 2, 3]}, ValueError, "sample_weight must have shape (2,), one number per row; it has shape (3,). Nothing is broadcast; weights of classes go to weight."),
    ("grad", (X, Y), {"sample_weight": [1.0, np.nan], "out": OUT}, ValueError, "sample_weight must be finite and >= 0; sample_weight[1] is nan (as float64)."),
    ("cross_entropy", (X[0], 1), {"sample_weight": -1}, ValueError, "sample_weight must be finite and >= 0; sample_weight is -1.0 (as float64)."),
    ("cross_entropy", (X, Y), {"sample_weight": [1j, 1]}, TypeError, "sample_weight must be real; got complex128. Use sample_weight.real if the imaginary part is 0."),
    ("cross_entropy", (X, Y), {"label_smoothing": 1.5}, ValueError, "label_smoothing must be in [0, 1]; got 1.5."),
    ("cross_entropy", (X, Y), {"label_smoothing": np.nan}, ValueError, "label_smoothing must be in [0, 1]; got nan."),
    ("cross_entropy", (X, Y), {"z_loss": -1e-4}, ValueError, "z_loss must be finite and >= 0; got -0.0001."),
    ("cross_entropy", (X, Y), {"z_loss": np.inf}, ValueError, "z_loss must be finite and >= 0; got inf."),
    ("cross_entropy", (X, Y), {"normalizer": 2, "reduction": "sum"}, ValueError, "normalizer must go with reduction='mean', which it divides by; got reduction='sum'. Drop it, or use reduction='mean'."),
    ("cross_entropy", (X, Y), {"normalizer": 0}, ValueError, "normalizer must be finite and > 0; got 0.0."),
    ("cross_entropy", (X, X), {"ignore_index": 0}, ValueError, "ignore_index must be left out where target holds probabilities; got 0. Leave rows out by sample_weight 0."),
    ("grad", (X, Y), {"grad_output": [1.0, 2]}, ValueError, "grad_output must be one number, with reduction='mean'; it has shape (2,)."),
    ("grad", (X, Y), {"grad_output": [1.0, 2, 3], "reduction": "none"}, ValueError, "grad_output must be one number, or have shape (2,), one per row, with reduction='none'; it has shape (3,)."),
    ("grad", (X, Y), {"where": [[True, True, True], [True, False, True]], "out": OUT}, ValueError, "where must keep every class that has target mass; row [1] drops the target's class, 1. Keep it, or leave the row out by sample_weight 0."),
    ("grad", (X, np.eye(2, 3)), {"where": [[True, True, True], [True, False, True]], "out": OUT}, ValueError, "where must keep every class that has target mass; row [1] drops a class whose target probability is > 0. Keep it, or leave the row out by sample_weight 0."),
    ("cross_entropy", (X[0], 1), {"where": [True, False, True]}, ValueError, "where must keep every class that has target mass; the row drops the target's class, 1. Keep it, or leave the row out by sample_weight 0."),
    ("hvp", (X, Y, X[0]), {}, ValueError, "v must have shape (2, 3); it has shape (3,)."),
    ("cross_entropy", (X, Y), {"where": np.ma.masked_array(X > 0, X > 9)}, TypeError, "where must be a plain array; got a masked array, whose mask would be lost. Pass where=where.filled(False)."),
    ("Segments.num_segments", (fg.Segments.from_ids(Y), "num_segments", 3), {}, AttributeError, "num_segments of Segments must not change, for results were made of it; make others by Segments.from_ids(ids)."),
    ("hvp", (BIG[:3], 0, BIG[6:9]), {"out": BIG[7:10]}, ValueError, f"out must be v itself or not overlap v; {SHARED}"),
    ("hvp", (BIG[:3], 0, BIG[6:9]), {"out": BIG[:3]}, ValueError, f"out must not overlap logits; {SHARED}"),
    # sigmoid and binary cross-entropy
    ("sigmoid", (MASKED,), {}, TypeError, f"x {MASK_LOST}{PLAIN}"),
    ("sigmoid", (BIG[:6],), {"out": BIG[1:7]}, ValueError, f"out must be {SAME}"),
    ("sigmoid", (X,), {"out": OUT[:1]}, ValueError, "out must have shape (2, 3); it has shape (1, 3)."),
    ("sigmoid.vjp", (X, X[0]), {}, ValueError, "g must have shape (2, 3); it has shape (3,)."),
    ("sigmoid.vjp", (X, X), {"y": X[0]}, ValueError, "y must have shape (2, 3); it has shape (3,)."),
    ("sigmoid.vjp", (BIG[:3], BIG[6:9]), {"out": BIG[:3]}, ValueError, f"out must not overlap x; {SHARED}"),
    ("log_sigmoid.jvp", (X, X[0]), {}, ValueError, "v must have shape (2, 3); it has shape (3,)."),
    ("binary", (MASKED, X), {}, TypeError, f"logits {MASK_LOST}Pass logits=x.filled(0) and where=~np.ma.getmaskarray(x)."),
    ("binary", (X, np.ma.masked_array(Y, [0, 1])), {}, TypeError, f"target {MASK_LOST}Pass target=x.filled(0) and where=~np.ma.getmaskarray(x)."),
    ("binary", (X, X.astype(complex)), {}, TypeError, "target must be real; got complex128. Use target.real if the imaginary part is 0."),
    ("binary", (X, X.astype(str)), {}, TypeError, f"target {RAGGED.format('<U32')}"),
    ("binary", (X, X[0]), {}, ValueError, "target must have the shape of logits, (2, 3); it has shape (3,). Nothing is broadcast."),
    ("binary", (X, np.zeros(6, int)), {}, ValueError, "target must have the shape of logits, (2, 3); it has shape (6,). Nothing is broadcast: pass target.reshape((2, 3))."),
    ("binary", (BIG[:2], [0, 2]), {}, ValueError, "target must hold 0 and 1, or probabilities as floats; target[1] is 2."),
    ("binary.grad", (X, [[0, 1, 1], [1, -1, 2]]), {"out": OUT}, ValueError, "target must hold 0 and 1, or probabilities as floats; target[1, 1] is -1. If the classes are -1 and 1, pass (target + 1) // 2."),
    ("binary", (np.zeros(10000), late(9999)), {}, ValueError, "target must hold 0 and 1, or probabilities as floats; target[9999] is 9."),
    ("binary", (0.5, 3), {}, ValueError, "target must hold 0 and 1, or probabilities as floats; target is 3."),
    ("binary", (X, X + 1.25), {}, ValueError, "target must be a probability in [0, 1]; target[0, 0] is 1.25 (as float64)."),
    ("binary.grad", (BIG[:2], [0.5, np.nan]), {"out": BIG[4:6]}, ValueError, "target must be a probability in [0, 1]; target[1] is nan (as float64)."),
    ("binary", (X, X), {"pos_weight": [1.0, 2]}, ValueError, "pos_weight must broadcast to the shape of logits, (2, 3); it has shape (2,)."),
    ("binary", (X, X), {"pos_weight": -1}, ValueError, "pos_weight must be finite and >= 0; pos_weight is -1.0 (as float64)."),
    ("binary", (X.astype(np.float32), X), {"sample_weight": [[1e39], [1]]}, ValueError, "sample_weight must be finite and >= 0; sample_weight[0, 0] is inf (as float32)."),
    ("binary", (X, X), {"where": [1, 0, 1]}, TypeError, "where must be boolean (True keeps an element); got dtype int64. Use where=mask.astype(bool), or where=mask != 0."),
    ("binary", (X, X), {"reduction": "avg"}, ValueError, "reduction must be 'mean', 'sum' or 'none'; got 'avg'."),
    ("binary", (X, X), {"normalizer": 2, "reduction": "none"}, ValueError, "normalizer must go with reduction='mean', which it divides by; got reduction='none'. Drop it, or use reduction='mean'."),
    ("binary.grad", (X, X), {"grad_output": X}, ValueError, "grad_output must be one number, with reduction='mean'; it has shape (2, 3)."),
    ("binary.grad", (BIG[:3], BIG[6:9]), {"out": BIG[6:9]}, ValueError, f"out must not overlap target; {SHARED}"),
    ("binary.grad", (BIG[:3], X[0]), {"pos_weight": BIG[9], "sample_weight": BIG[6:9], "out": BIG[6:9]}, ValueError, f"out must not overlap sample_weight; {SHARED}"),
    ("binary.hvp", (X, X, X[0]), {}, ValueError, "v must have shape (2, 3); it has shape (3,)."),
    # token statistics
    ("token_stats", (X, X), {}, TypeError, "target must hold class indices (integers); got probabilities of shape (2, 3). If the largest names the class, pass target.argmax(1)."),
    ("token_stats", (X, [0, 3]), {}, IndexError, "target must be in [0, 3) or equal to ignore_index=-100; target[1] is 3."),
    ("token_stats", (X, [0]), {}, ValueError, "target must have shape (2,), that of logits (2, 3) without the class axis 1; it has shape (1,)."),
    ("token_stats", (X, Y), {"ignore_index": 0.5}, TypeError, "ignore_index must be an int or None; got 0.5."),
    ("token_stats", (X, Y), {"axis": 2}, AxisError, "axis must be in [-2, 2) for logits of 2 dimensions; got 2."),
    # linear head: X (2, 3) with two classes
    ("linear", (X.astype(np.float16), X, Y), {}, TypeError, "X must be float32 or float64, the types of BLAS; got float16. Use X.astype(np.float32)."),
    ("linear.grad", (X, X.astype(np.float16), Y), {}, TypeError, "W must be float32 or float64, the types of BLAS; got float16. Use W.astype(np.float32)."),
    ("linear", (X[0], X, Y), {}, ValueError, "X must have 2 dimensions; it has shape (3,). One row is X[None, :]."),
    ("linear.flat", (X[None], Y), {"num_classes": 2}, ValueError, "X must have 2 dimensions; it has shape (1, 2, 3)."),
    ("linear", (MASKED, X, Y), {}, TypeError, f"X {MASK_LOST}{PLAIN}"),
    ("linear", (X, X[:, :2], Y), {}, ValueError, "W must have shape (classes, 3), one weight for each column of X (2, 3); it has shape (2, 2)."),
    ("linear", (X, X.T, Y), {}, ValueError, "W must have shape (classes, 3), one weight for each column of X (2, 3); it has shape (3, 2). Is it transposed? Pass W.T."),
    ("linear", (X.astype(np.float32), X, Y), {}, TypeError, "W must have the dtype of X, float32, or every call would convert it; it has float64. Convert it once: W.astype(np.float32), or X to that of W."),
    ("linear", (X.astype(int), X.astype(np.float32), Y), {}, TypeError, "W must have the dtype of X, float64, or every call would convert it; it has float32. Convert it once: W.astype(np.float64), or X to that of W."),
    ("linear", (X, X[:0], Y), {}, ValueError, "logits must have at least one class; axis 1 has length 0."),
    ("linear", (X, X, Y), {"bias": [1.0, 2, 3]}, ValueError, "bias must have shape (2,), one number for each row of W; it has shape (3,)."),
    ("linear", (X, X, [0, 2]), {}, IndexError, "target must be in [0, 2) or equal to ignore_index=-100; target[1] is 2."),
    ("linear", (X, X, [0, 1, 1]), {}, ValueError, "target must have shape (2,), that of logits (2, 2) without the class axis 1; it has shape (3,)."),
    ("linear", (X, X, Y), {"l2": -1}, ValueError, "l2 must be finite and >= 0; got -1.0."),
    ("linear.grad", (X, X, Y), {"l2": 0.1, "reduction": "none"}, ValueError, "l2 must be 0 with reduction='none', whose rows would each count the penalty; got 0.1. Add it to their sum."),
    ("linear", (X, X, Y), {"memory": 0}, ValueError, "memory must be at least 1; got 0."),
    ("linear", (X, X, Y), {"memory": 1e6}, TypeError, "memory must be an int; got 1000000.0."),
    ("linear.grad", (X, X, Y), {"wrt": "W"}, TypeError, "wrt must be a sequence of names out of 'W', 'bias', 'X'; got 'W'. Use wrt=('W',)."),
    ("linear.grad", (X, X, Y), {"wrt": None}, TypeError, "wrt must be a sequence of names out of 'W', 'bias', 'X'; got None."),
    ("linear.grad", (X, X, Y), {"wrt": ("W", "b")}, ValueError, "wrt must hold some of 'W', 'bias', 'X', each once; got ('W', 'b')."),
    ("linear.grad", (X, X, Y), {"wrt": ["X", "X"]}, ValueError, "wrt must hold some of 'W', 'bias', 'X', each once; got ('X', 'X')."),
    ("linear.grad", (X, X, Y), {"wrt": ()}, ValueError, "wrt must hold some of 'W', 'bias', 'X', each once; got ()."),
    ("linear.fisher_diag", (X, X, Y), {"wrt": ("X",)}, ValueError, "wrt must hold some of 'W', 'bias', each once; got ('X',)."),
    ("linear.fisher_diag", (X, X, Y), {"l2": 0.1}, ValueError, "l2 must be 0 for fisher_diag, which is the information in the data; got 0.1. Add what a penalty curves by yourself."),
    ("linear.fisher_diag", (X, X, Y), {"z_loss": 0.1}, ValueError, "z_loss must be 0 for fisher_diag, which is the information in the data; got 0.1. Add what a penalty curves by yourself."),
    ("linear.hvp", (X, X, Y, X), {}, TypeError, "v must be a tuple with an array for each name in wrt; got ndarray. A single one is (v,)."),
    ("linear.hvp", (X, X, Y, ()), {}, ValueError, "v must hold 3 arrays, one each for ('W', 'bias', 'X'); it holds 0."),
    ("linear.hvp", (X, X, Y, (X, Y, X, X)), {}, ValueError, "v must hold 3 arrays, one each for ('W', 'bias', 'X'); it holds 4."),
    ("linear.hvp", (X, X, Y, (X, X)), {"wrt": ("W",)}, ValueError, "v must hold 1 arrays, one each for ('W',); it holds 2."),
    ("linear.hvp", (X, X, Y, (X, X)), {}, ValueError, "v[1] (of bias) must have shape (2,); it has shape (2, 3)."),
    ("linear.flat", (X, Y), {"num_classes": 2, "reduction": "none"}, ValueError, "reduction must be 'mean' or 'sum', one number to minimise; got 'none'."),
    ("linear.flat", (X, Y), {"num_classes": 2.0}, TypeError, "num_classes must be an int; got 2.0."),
    ("flat", (np.zeros(6),), {}, ValueError, "theta must have shape (8,), all of W and then the bias if there is one; it has shape (6,)."),
    ("flat.unpack", (X,), {}, ValueError, "theta must have shape (8,), all of W and then the bias if there is one; it has shape (2, 3)."),
    ("flat.hessp", (np.zeros(6), np.zeros(8)), {}, ValueError, "v must have shape (6,), all of W and then the bias if there is one; it has shape (8,)."),
    # segments
    ("Segments", (), {}, TypeError, "Segments must be made by Segments.from_ids(ids), Segments.from_lengths(lengths) or Segments.from_offsets(offsets)."),
    ("from_ids", (np.ma.masked_array(Y, Y == 1),), {}, TypeError, f"ids {MASK_LOST}Pass ids.filled(-1) and ignore_index=-1."),
    ("from_ids", ([0.5, 1],), {}, TypeError, "ids must hold the segment of every row (integers); got dtype float64. Use ids.astype(np.int64) if the values are whole numbers, or number what they name by np.unique(ids, return_inverse=True)."),
    ("from_ids", (3,), {}, ValueError, "ids must have shape (N,), or (B, N) for a batch of items; it has shape ()."),
    ("from_ids", ([0, -1],), {}, IndexError, "ids must be >= 0 and less than 2**63 - 1; ids[1] is -1. To leave such rows out, pass ignore_index=-1."),
    ("from_ids", ([0, -1],), {"ignore_index": 0}, IndexError, "ids must be >= 0 and less than 2**63 - 1 or equal to ignore_index=0; ids[1] is -1. To leave such rows out, pass ignore_index=-1."),
    ("from_ids", (np.array([1, 2**64 - 1], np.uint64),), {}, IndexError, "ids must be >= 0 and less than 2**63 - 1; ids[1] is 18446744073709551615."),
    ("from_ids", ([[0, 1], [3, 0]], 3), {}, IndexError, "ids must be in [0, 3); ids[1, 0] is 3. If all ids are meant, pass num_segments=4 or more."),
    ("from_ids", ([[0, 1], [0, 1]], [2, 1]), {}, IndexError, "ids must be in [0, 1); ids[1, 1] is 1. If all ids are meant, pass num_segments=2 or more."),
    ("segment_sum", (BIG, late(5000)[:12] + 9), {"num_segments": 4}, IndexError, "segments must be in [0, 4); segments[0] is 9."),
    ("segment_mean", (late(9999) * 1.0, late(9999)), {"num_segments": 4}, IndexError, "segments must be in [0, 4); segments[9999] is 9."),
    ("from_ids", (Y, 2.0), {}, TypeError, "num_segments must be an int, or an array of them; got 2.0."),
    ("from_ids", (Y, [2]), {}, ValueError, "num_segments must be one number, for ids of shape (2,); it has shape (1,)."),
    ("from_ids", ([Y, Y], [2, 2, 2]), {}, ValueError, "num_segments must be one number, or have shape (2,), one for every item of ids of shape (2, 2); it has shape (3,)."),
    ("from_ids", (Y, -1), {}, ValueError, "num_segments must be >= 0 and less than 2**48; got -1."),
    ("from_ids", ([0, 2**60],), {}, ValueError, "ids must be less than 2**48 where num_segments is left out, for every number up to the largest has a result; got 1152921504606846976. Number them from 0 on with np.unique(..., return_inverse=True)."),
    ("from_ids", ([Y, Y], [2, 2**50]), {}, ValueError, "num_segments must be >= 0 and less than 2**48; got 1125899906842624."),
    ("from_ids", (Y,), {"ignore_index": 0.5}, TypeError, "ignore_index must be an int or None; got 0.5."),
    ("from_lengths", ([1, 2, -1],), {}, ValueError, "lengths must be >= 0; lengths[2] is -1."),
    ("from_lengths", ([2**62, 2**62],), {}, ValueError, "lengths must sum to less than 2**63 rows; they sum to more."),
    ("from_lengths", ([Y],), {}, ValueError, "lengths must have one dimension; it has shape (1, 2)."),
    ("from_lengths", (np.array([2**63], np.uint64),), {}, ValueError, "lengths must fit in int64; got 9223372036854775808."),
    ("from_offsets", ([1, 2],), {}, ValueError, "offsets must begin with 0; offsets[0] is 1. For n segments there are n + 1 offsets; if these are lengths, use Segments.from_lengths."),
    ("from_offsets", ([],), {}, ValueError, "offsets must begin with 0; they are empty. For n segments there are n + 1 offsets; if these are lengths, use Segments.from_lengths."),
    ("from_offsets", ([0, 2, 1],), {}, ValueError, "offsets must not fall; offsets[1] is 2 and offsets[2] is 1. If these are lengths, use Segments.from_lengths."),
    ("segment_sum", (X, fg.Segments.from_ids(Y)), {"num_segments": 3}, ValueError, "num_segments must be left out beside a Segments, which has its own; got 3. Pass it to Segments.from_ids."),
    ("segment_max", (X, fg.Segments.from_ids(Y)), {"ignore_index": 3}, ValueError, "ignore_index must be left out beside a Segments, which has its own; got 3. Pass it to Segments.from_ids."),
    ("segment_softmax", (X, [0, 1, 1]), {}, ValueError, "data must have a shape that begins with that of segments, (3,); it has shape (2, 3). Rows come first: segments (N,) or (B, N), data (N, ...) or (B, N, ...)."),
    ("segment_sum", (X, Y), {"weights": [1.0]}, ValueError, "weights must have the shape of segments, (2,), one number per row; it has shape (1,). Nothing is broadcast."),
    ("segment_mean", (X, Y), {"weights": [1.0, -1]}, ValueError, "weights must be finite and >= 0; weights[1] is -1.0 (as float64)."),
    ("segment_mean", (X, Y), {"empty_value": "none"}, TypeError, "empty_value must be a real number; got 'none'."),
    ("segment_sum", (X, Y), {"out": OUT[:1]}, ValueError, "out must have shape (2, 3); it has shape (1, 3)."),
    ("segment_sum", (X, Y), {"out": X}, ValueError, f"out must not overlap data; {SHARED}"),
    ("segment_softmax", (X, Y), {"out": X}, ValueError, f"out must not overlap data; {SHARED}"),
    ("segment_sum.vjp", (X, Y, X[:1]), {"out": OUT}, ValueError, "g must have shape (2, 3); it has shape (1, 3)."),
    ("segment_min.jvp", (X, Y, X[:1]), {"out": OUT}, ValueError, "v must have shape (2, 3); it has shape (1, 3)."),
    ("segment_softmax.vjp", (X, Y, X), {"y": X[:1], "out": OUT}, ValueError, "y must have shape (2, 3); it has shape (1, 3)."),
    # hinge losses
    ("hinge", (MASKED, X), {}, TypeError, f"scores {MASK_LOST}Pass scores=x.filled(0) and where=~np.ma.getmaskarray(x)."),
    ("hinge", (BIG[:2], np.ma.masked_array([1, -1], [0, 1])), {}, TypeError, f"target {MASK_LOST}Pass target=y.filled(1) and where=~np.ma.getmaskarray(y)."),
    ("hinge", (X, X + 1), {}, TypeError, "target must hold bools, or the integers -1 and 1; got dtype float64. If its sign tells the class, pass target > 0."),
    ("hinge", (X, X.astype(str)), {}, TypeError, "target must hold bools, or the integers -1 and 1; got dtype <U32."),
    ("hinge", (X, X[0] > 0), {}, ValueError, "target must have the shape of scores, (2, 3); it has shape (3,). Nothing is broadcast."),
    ("hinge", (X, np.ones(6, int)), {}, ValueError, "target must have the shape of scores, (2, 3); it has shape (6,). Nothing is broadcast: pass target.reshape((2, 3))."),
    ("hinge.grad", (X, [[1, -1, 1], [1, 0, 2]]), {"out": OUT}, ValueError, "target must hold bools, or the integers -1 and 1; target[1, 1] is 0. If the classes are 0 and 1, pass target == 1."),
    ("hinge", (X, np.array([[1, 1, 1], [1, 3, -1]]).T.copy().T), {}, ValueError, "target must hold bools, or the integers -1 and 1; target[1, 1] is 3."),
    ("hinge", (np.zeros(10000), late(9999) + 1), {}, ValueError, "target must hold bools, or the integers -1 and 1; target[9999] is 10."),
    ("hinge", (0.5, 2), {}, ValueError, "target must hold bools, or the integers -1 and 1; target is 2."),
    ("hinge", (BIG[:2], np.array([1, 2**64 - 1], np.uint64)), {}, ValueError, "target must hold bools, or the integers -1 and 1; target[1] is 18446744073709551615."),
    ("hinge", (BIG[:2], np.array([1, 2**63 - 1])), {}, ValueError, "target must hold bools, or the integers -1 and 1; target[1] is 9223372036854775807."),
    ("hinge", (X, X > 0), {"margin": -1}, ValueError, "margin must be finite and >= 0; got -1.0."),
    ("hinge", (X, X > 0), {"margin": np.nan}, ValueError, "margin must be finite and >= 0; got nan."),
    ("hinge", (X.astype(np.float32), X > 0), {"margin": 1e39}, ValueError, "margin must be in [0, 3.40282e+38]; got 1e+39."),
    ("hinge", (X, X > 0), {"margin": "wide"}, TypeError, "margin must be a real number; got 'wide'."),
    ("hinge", (X, X > 0), {"sample_weight": [1.0, 2]}, ValueError, "sample_weight must broadcast to the shape of scores, (2, 3); it has shape (2,)."),
    ("hinge.grad", (X, X > 0), {"sample_weight": -X - 1, "out": OUT}, ValueError, "sample_weight must be finite and >= 0; sample_weight[0, 0] is -1.0 (as float64)."),
    ("hinge", (X.astype(np.float16), X > 0), {"sample_weight": [1e39]}, ValueError, "sample_weight must be finite and >= 0; sample_weight[0] is inf (as float32)."),
    ("hinge", (X, X > 0), {"where": [True, False]}, ValueError, "where must broadcast to the shape of scores, (2, 3); it has shape (2,)."),
    ("hinge", (X, X > 0), {"reduction": "avg"}, ValueError, "reduction must be 'mean', 'sum' or 'none'; got 'avg'."),
    ("hinge.hvp", (X, X > 0, X[0]), {}, ValueError, "v must have shape (2, 3); it has shape (3,)."),
    ("hinge.hvp", (BIG[:3], BIG[:3] > 0, BIG[6:9]), {"out": BIG[:3]}, ValueError, f"out must not overlap scores; {SHARED}"),
    ("hinge.grad", (BIG[:3], BIG[6:].view(bool)[:3]), {"out": BIG[6:9]}, ValueError, f"out must not overlap target; {SHARED}"),
    ("classes", (MASKED, Y), {}, TypeError, f"scores {MASK_LOST}Pass scores=x.filled(0) and where=~np.ma.getmaskarray(x)."),
    ("classes", (X, Y), {"axis": 2}, AxisError, "axis must be in [-2, 2) for scores of 2 dimensions; got 2."),
    ("classes", (X, Y), {"variant": "one_vs_rest"}, ValueError, "variant must be 'crammer_singer' or 'weston_watkins'; got 'one_vs_rest'."),
    ("classes", (X, Y), {"divide": 3}, ValueError, "divide must be 'one' or 'k'; got 3."),
    ("classes.grad", (X, Y), {"divide": "k", "out": OUT}, ValueError, "divide must be 'one' with variant='crammer_singer', which counts one class only; got 'k'. PyTorch's multi_margin_loss is variant='weston_watkins' with divide='k'."),
    ("classes", (X, Y), {"margin": np.inf}, ValueError, "margin must be finite and >= 0; got inf."),
    ("classes", (X, X), {}, TypeError, "target must hold class indices (integers); got probabilities of shape (2, 3). If the largest names the class, pass target.argmax(1)."),
    ("classes", (X, [0.0, 1.0]), {}, TypeError, "target must hold integers if it names one class per row; got dtype float64. Use target.astype(np.int64) if the values are whole numbers."),
    ("classes", (X, X[:1]), {}, ValueError, "target must have the shape of scores, (2, 3), if it holds probabilities; it has shape (1, 3). Nothing is broadcast."),
    ("classes", (Y, X), {}, TypeError, "target must hold class indices of shape (), or probabilities of the shape of scores, (2,); got float64 of shape (2, 3). The order is (scores, target)."),
    ("classes", (X, [0, 1, 0]), {}, ValueError, "target must have shape (2,), that of scores (2, 3) without the class axis 1; it has shape (3,)."),
    ("classes", (Y, X.astype(int)), {}, ValueError, "target must have shape (), that of scores (2,) without the class axis 0; it has shape (2, 3). The order of the arguments is (scores, target)."),
    ("classes.grad", (X, [0, 3]), {"out": OUT}, IndexError, "target must be in [0, 3) or equal to ignore_index=-100; target[1] is 3."),
    ("classes", (X, [0, -1]), {}, IndexError, "target must be in [0, 3) or equal to ignore_index=-100; target[1] is -1. If -1 marks rows to leave out, pass ignore_index=-1."),
    ("classes", (X, Y), {"weight": [1.0, 2]}, ValueError, "weight must have shape (3,), one number per class; it has shape (2,). Weights of rows go to sample_weight."),
    ("classes", (X, Y), {"sample_weight": [1.0]}, ValueError, "sample_weight must have shape (2,), one number per row; it has shape (1,). Nothing is broadcast; weights of classes go to weight."),
    ("classes.grad", (X, Y), {"where": [[True, True, True], [True, False, True]], "out": OUT}, ValueError, "where must keep every class that has target mass; row [1] drops the target's class, 1. Keep it, or leave the row out by sample_weight 0."),
    ("classes", (X, Y), {"where": [True, False]}, ValueError, "where must broadcast to the shape of scores, (2, 3); it has shape (2,)."),
    ("classes.grad", (BIG[:6].reshape(2, 3), Y), {"out": BIG[3:9].reshape(2, 3)}, ValueError, f"out must be scores itself or not overlap scores; {SHARED}"),
    ("classes.hvp", (X, Y, X[0]), {}, ValueError, "v must have shape (2, 3); it has shape (3,)."),
    ("segment_sum", (MASKED, Y), {}, TypeError, f"data {MASK_LOST}Pass data=x.filled(0) and leave its masked rows out by ignore_index."),
    ("segment_sum", (X, Y), {"weights": np.ma.masked_array([1.0, 2.0], [0, 1])}, TypeError, f"weights {MASK_LOST}{PLAIN}"),
    ("segment_sum.vjp", (X, Y, MASKED), {}, TypeError, f"g {MASK_LOST}{PLAIN}"),
    ("token_stats", (MASKED, Y), {}, TypeError, f"logits {MASK_LOST}{PLAIN}"),
    ("prototypes", (MASKED, X), {}, TypeError, f"X {MASK_LOST}{PLAIN}"),
    ("from_lengths", (np.ma.masked_array([1, 2], [0, 1]),), {}, TypeError, f"lengths {MASK_LOST}Pass lengths.filled(0): a segment without rows."),
    ("from_offsets", (np.ma.masked_array([0, 2], [0, 1]),), {}, TypeError, f"offsets {MASK_LOST}Pass offsets.compressed()."),
    ("cross_entropy", (X, []), {}, ValueError, "target must have shape (2,), that of logits (2, 3) without the class axis 1; it has shape (0,)."),
    ("segment_sum", (np.ones(2, np.float32), Y), {"weights": np.array([1.0, -1e-60])}, ValueError, "weights must be finite and >= 0; weights[1] is -1.401298464324817e-45 (as float32)."),
    # boosting
    ("XGBoost", (fg.cross_entropy,), {"floor": "a"}, TypeError, "floor must be a real number; got 'a'."),
    ("XGBoost", (fg.cross_entropy,), {"floor": X[0]}, TypeError, "floor must be one number; got an array of shape (3,)."),
    ("XGBoost", (fg.cross_entropy,), {"floor": 1e300}, ValueError, "floor must be in [0, 3.40282e+38]; got 1e+300."),
    ("XGBoost", (fg.cross_entropy,), {"target": MASKED_IDS}, TypeError, f"target {MASKED_LABELS}"),
    ("objective", (Y, MASKED), {}, TypeError, f"scores {MASK_LOST}{PLAIN}"),
    ("objective", (MASKED_IDS, X), {}, TypeError, f"target {MASKED_LABELS}"),
    ("objective", (Y, X, np.ma.masked_array([1.0, 1.0], [0, 1])), {}, TypeError, f"sample_weight {MASK_LOST}{PLAIN}"),
    ("objective", (Y, X, [1.0, -1.0]), {}, ValueError, "sample_weight must be finite and >= 0; sample_weight[1] is -1.0 (as float64)."),
    ("objective", (Y, X, np.ones((2, 3))), {}, ValueError, "sample_weight must have shape (2,), one number per row; it has shape (2, 3)."),
    ("objective", (Y, X, [1.0]), {}, ValueError, "sample_weight must have one entry for each of the 2 rows of the scores; it has shape (1,). Parts of the data, as in cross-validation, need an objective of their own where it has a target."),
    ("init_score", (fg.cross_entropy, Y), {"num_class": "3"}, TypeError, "num_class must be an int; got '3'."),
    ("init_score", (fg.binary_cross_entropy, Y), {"num_class": 0}, ValueError, "num_class must be at least 1; got 0."),
    ("init_score", (fg.cross_entropy, 1), {"num_class": 2}, ValueError, "target must have one entry for each row; got the single number 1."),
    ("init_score", (fg.cross_entropy, Y), {"num_class": 2, "sample_weight": [-1.0, 2.0]}, ValueError, "sample_weight must be finite and >= 0; sample_weight[0] is -1.0 (as float64)."),
    ("CatBoost", ([0.0, 0.0], Y, [1.0, -1.0]), {}, ValueError, "sample_weight must be finite and >= 0; sample_weight[1] is -1.0 (as float64)."),
    ("CatBoost.multi", ([0.0, 0.0], 1, -1.0), {}, ValueError, "weight must be finite and >= 0; got -1.0."),
    # threads
    ("set_num_threads", (0,), {}, ValueError, "n must be at least 1, and less than 2**31; got 0."),
    ("set_num_threads", (2**31,), {}, ValueError, "n must be at least 1, and less than 2**31; got 2147483648."),
    ("set_num_threads", (1.5,), {}, TypeError, "n must be an int; got 1.5."),
    ("set_num_threads", ("2",), {}, TypeError, "n must be an int; got '2'."),
    # centroids
    ("centroids", (X[0], Y), {}, ValueError, "X must have shape (N, d), or (B, N, d) for a batch of items; it has shape (3,). One column is X[:, None]."),
    ("centroid_hinge", (X[None, None], Y), {}, ValueError, "X must have shape (N, d), or (B, N, d) for a batch of items; it has shape (1, 1, 2, 3)."),
    ("centroids", (MASKED, Y), {}, TypeError, f"X {MASK_LOST}Pass X=x.filled(0) and leave its masked rows out by ignore_index."),
    ("centroids", (X, [0, 1, 1]), {}, ValueError, "labels must have shape (2,), one class for every row of X (2, 3); they have shape (3,)."),
    ("centroid_hinge", (X, Y[:, None]), {}, ValueError, "labels must have shape (2,), one class for every row of X (2, 3); they have shape (2, 1). Nothing is broadcast: pass labels.reshape((2,))."),
    ("centroid_hinge", (X, fg.Segments.from_ids([0, 1, 2])), {}, ValueError, "labels must have shape (2,), one class for every row of X (2, 3); they have shape (3,)."),
    ("centroids", (X, fg.Segments.from_ids(Y)), {"num_classes": 2}, ValueError, "num_classes must be left out beside a Segments, which has its own; got 2. Pass it to Segments.from_ids."),
    ("centroids", (X, fg.Segments.from_ids(Y)), {"ignore_index": -1}, ValueError, "ignore_index must be left out beside a Segments, which has its own; got -1. Pass it to Segments.from_ids."),
    ("centroids", (X, [0, 2]), {"num_classes": 2}, IndexError, "labels must be in [0, 2); labels[1] is 2. If all labels are meant, pass num_classes=3 or more."),
    ("centroids", (X, Y), {"num_classes": 3.0}, TypeError, "num_classes must be an int, or an array of them; got 3.0."),
    ("centroids", (X, [0.0, 1.0]), {}, TypeError, "labels must hold the class of every row (integers); got dtype float64. Use labels.astype(np.int64) if the values are whole numbers, or number what they name by np.unique(labels, return_inverse=True)."),
    ("centroids", (X, Y), {"sample_weight": [1.0, -1.0]}, ValueError, "sample_weight must be finite and >= 0; sample_weight[1] is -1.0 (as float64)."),
    ("centroids.vjp", (X, Y, X[0]), {}, ValueError, "g must have shape (2, 3); it has shape (3,)."),
    ("prototypes", (X, X[:, :2]), {}, ValueError, "centroids must have shape (K, 3), to fit X (2, 3); they have shape (2, 2)."),
    ("prototypes", (X[None], X), {}, ValueError, "centroids must have shape (1, K, 3), to fit X (1, 2, 3); they have shape (2, 3)."),
    ("prototypes", (X, X), {"out": np.zeros((2, 3))}, ValueError, "out must have shape (2, 2); it has shape (2, 3)."),
    ("prototypes.vjp", (X, X, X), {}, ValueError, "g must have shape (2, 2); it has shape (2, 3)."),
    ("prototypes", (BIG[:9].reshape(3, 3), np.ones((3, 3))), {"out": BIG[:9].reshape(3, 3)}, ValueError, f"out must not overlap X; {SHARED}"),
    ("centroid_hinge", (X, Y), {"margin": -1}, ValueError, "margin must be finite and >= 0; got -1.0."),
    ("centroid_hinge", (X, Y), {"class_reduction": "none"}, ValueError, "class_reduction must be 'mean' or 'sum'; got 'none'."),
    ("centroid_hinge", (X, Y), {"reduction": "max"}, ValueError, "reduction must be 'mean', 'sum' or 'none'; got 'max'."),
    ("centroid_hinge.grad", (X, Y), {"out": READ_ONLY}, ValueError, "out must be writeable; it is read-only."),
    ("centroid_hinge.grad", (BIG[:6].reshape(2, 3), Y), {"out": BIG[3:9].reshape(2, 3)}, ValueError, f"out must be X itself or not overlap X; {SHARED}"),
    ("centroid_hinge.hvp", (OUT, Y, X), {"out": OUT}, ValueError, f"out must not overlap X; {SHARED}"),
    ("centroid_hinge.hvp", (X, Y, X[0]), {}, ValueError, "v must have shape (2, 3); it has shape (3,)."),
    # streaming
    ("CentroidState", (0,), {}, ValueError, "num_classes must be at least 1; got 0."),
    ("state.update", (X[None], Y), {}, ValueError, "X must have shape (N, d); it has shape (1, 2, 3)."),
    ("state.update", (X[:, :2], Y), {}, ValueError, "X must be of shape (3,) apart from the rows, as in the updates before; it is of shape (2,)."),
    ("state.update", (X, fg.Segments.from_ids(Y, 3)), {}, ValueError, "labels must have num_segments=2, as the state; these Segments have 3. Give it to Segments.from_ids."),
    ("state.merge", (fg.streaming.CentroidState(3),), {}, ValueError, "both states must have the same num_classes; got 2 here and 3 there."),
    ("state.merge", (fg.streaming.LossSum(),), {}, TypeError, "other must be a CentroidState; got LossSum."),
    ("log.update", (X,), {}, ValueError, "a must be of shape (2,) apart from the rows, as in the updates before; it is of shape (3,)."),
    ("log.merge", (fg.streaming.LogSumExpState(1),), {}, ValueError, "both states must have the same axis; got 0 here and 1 there."),
    ("sum.update", (1.0,), {}, TypeError, "weight must be given with a single number: of how many rows is it the sum? Pass weight=len(target), or one value per row (reduction='none')."),
    ("sum.update", ([1.0, 2.0], [1.0]), {}, ValueError, "weight must be one number or have the shape of values, (2,); it has shape (1,)."),
    ("sum.update", ([1.0, 2.0], [1.0, -1.0]), {}, ValueError, "weight must be finite and >= 0; weight[1] is -1.0 (as float64)."),
    ("sum.merge", (0.0,), {}, TypeError, "other must be a LossSum; got float."),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "args", "kwargs", "kind", "message"),
    CASES,
    ids=[f"{i}-{c[0]}-{c[3].__name__}" for i, c in enumerate(CASES)],
)
def test_message_in_full(raises_exactly, call, args, kwargs, kind, message):
    arrays = [a for a in (*args, *kwargs.values()) if isinstance(a, np.ndarray)]
    before = [a.tobytes() for a in arrays]
    raises_exactly(kind, message, CALLS[call], *args, **kwargs)
    assert [a.tobytes() for a in arrays] == before  # out too: nothing is written before raising


@pytest.mark.parametrize(
    "f", [fg.cross_entropy, fg.cross_entropy.grad, fg.token_stats], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("shape", [(2, 0), (0, 0)], ids=str)
def test_no_classes(raises_exactly, f, shape):
    message = "logits must have at least one class; axis 1 has length 0."
    raises_exactly(ValueError, message, f, np.zeros(shape), np.zeros(shape[0], int))


def test_no_classes_of_a_hinge(raises_exactly):
    message = "scores must have at least one class; axis 0 has length 0."
    raises_exactly(
        ValueError, message, fg.multiclass_hinge, np.zeros((0, 2)), np.zeros(2, int), axis=0
    )


def test_out_for_halves(raises_exactly):
    """bfloat16 is known by its name; NumPy has no name for it."""
    for half, module in ((np.float16, "np"), (ml_dtypes.bfloat16, "ml_dtypes")):
        name = np.dtype(half).name
        message = (
            f"out must have the dtype of the result, {name}; it has float64. "
            f"Use np.empty((2, 3), {module}.{name})."
        )
        raises_exactly(TypeError, message, fg.softmax, X.astype(half), out=OUT)


def test_other_types_of_ml_dtypes(raises_exactly):
    x = X.astype(ml_dtypes.float8_e4m3)
    message = f"x {RAGGED.format('float8_e4m3')}"
    raises_exactly(TypeError, message, fg.softmax, x)


def test_derivative_that_does_not_exist(raises_exactly):
    message = "squared has no hvp; the derivatives it has: grad, value_and_grad."
    squared = fg.Loss(lambda z, y: (z - y) ** 2, grad=lambda z, y: 2 * (z - y), name="squared")
    raises_exactly(AttributeError, message, getattr, squared, "hvp")


def test_diagonal_that_does_not_exist(raises_exactly):
    message = "centroid_hinge has no hess_diag: every row of a class bends with every other "
    message += "through their centroid. hvp gives products with the whole Hessian."
    raises_exactly(AttributeError, message, getattr, fg.centroid_hinge, "hess_diag")
    assert not hasattr(fg.centroid_hinge, "hess_diag")


def test_attribute_that_does_not_exist(raises_exactly):
    message = "'Softmax' object has no attribute 'nonsense'"
    raises_exactly(AttributeError, message, getattr, fg.softmax, "nonsense")


def test_derivative_of_a_function_without_any(raises_exactly):
    message = "square has no vjp; the derivatives it has: none."
    raises_exactly(AttributeError, message, getattr, fg.Map(np.square), "vjp")


def test_option_that_does_not_exist(raises_exactly):
    message = "cross_entropy has no option 'smoothing'; it has axis, weight, sample_weight, "
    message += "ignore_index, label_smoothing, z_loss, where, reduction, normalizer."
    raises_exactly(TypeError, message, fg.cross_entropy.with_options, smoothing=0.1)


def test_a_loss_of_nothing(raises_exactly):
    message = "a Loss needs value=, or value_and_grad= to take it from; got neither."
    raises_exactly(TypeError, message, fg.Loss)


@pytest.mark.parametrize("which", ["value", "grad", "value_and_grad", "hvp", "hess_diag"])
def test_a_part_of_a_loss_that_is_no_function(raises_exactly, which):
    given = {"value": abs} | {which: 3}
    raises_exactly(TypeError, f"{which} must be a function; got int.", fg.Loss, **given)


def test_instruction_set_that_does_not_exist(raises_exactly):
    from fastgrad._kernels import isa

    have = ", ".join(isa.available_names())
    message = f"no instruction set 'mmx': this machine and build have {have}"
    raises_exactly(ValueError, message, isa._use, "mmx")


def test_every_raise_of_the_border_is_met_here():
    """A new check in _arrays.py or _threads.py needs a new case above."""
    import inspect

    from fastgrad import _arrays, _threads

    raises = sum(inspect.getsource(m).count("    raise ") for m in (_arrays, _threads))
    assert raises == RAISES, "count them again, and add the message that is new"


RAISES = 101
