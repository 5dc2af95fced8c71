"""C-accelerated loss kernels for NumPy arrays, each with its exact gradient.

>>> import numpy as np
>>> import fastgrad as fg
>>> value, grad = fg.cross_entropy.value_and_grad(np.zeros((1, 2)), [0])
"""

from importlib.metadata import PackageNotFoundError as _NotInstalled
from importlib.metadata import version as _version
from typing import Any as _Any

try:
    from fastgrad._kernels import isa as _isa  # noqa: F401
except ModuleNotFoundError as _error:
    if _error.name != "fastgrad._kernels.isa":
        raise
    raise ImportError(
        "this is fastgrad's source folder, and nothing is compiled in it: "
        "run `pip install -e .` here, or start Python in another folder to use the installed "
        "package."
    ) from None

from fastgrad import boosting as boosting
from fastgrad import streaming as streaming
from fastgrad import testing as testing
from fastgrad._binary import binary_cross_entropy as binary_cross_entropy
from fastgrad._binary import log_sigmoid as log_sigmoid
from fastgrad._binary import sigmoid as sigmoid
from fastgrad._centroids import Centroids as Centroids
from fastgrad._centroids import centroid_hinge as centroid_hinge
from fastgrad._centroids import class_centroids as class_centroids
from fastgrad._centroids import prototype_logits as prototype_logits
from fastgrad._config import show_config as show_config
from fastgrad._cross_entropy import cross_entropy as cross_entropy
from fastgrad._gradcheck.check import gradcheck as gradcheck
from fastgrad._gradcheck.diagnosis import Diagnosis as Diagnosis
from fastgrad._gradcheck.numerical import numerical_gradient as numerical_gradient
from fastgrad._gradcheck.numerical import numerical_hvp as numerical_hvp
from fastgrad._gradcheck.numerical import numerical_jacobian as numerical_jacobian
from fastgrad._gradcheck.result import GradcheckResult as GradcheckResult
from fastgrad._hinge import hinge as hinge
from fastgrad._hinge import multiclass_hinge as multiclass_hinge
from fastgrad._linear import linear_cross_entropy as linear_cross_entropy
from fastgrad._maps import Loss as Loss
from fastgrad._maps import Map as Map
from fastgrad._profile import LossProfile as LossProfile
from fastgrad._profile import profile_loss as profile_loss
from fastgrad._segments import Segments as Segments
from fastgrad._segments import segment_log_softmax as segment_log_softmax
from fastgrad._segments import segment_logsumexp as segment_logsumexp
from fastgrad._segments import segment_max as segment_max
from fastgrad._segments import segment_mean as segment_mean
from fastgrad._segments import segment_min as segment_min
from fastgrad._segments import segment_softmax as segment_softmax
from fastgrad._segments import segment_sum as segment_sum
from fastgrad._softmax import log_softmax as log_softmax
from fastgrad._softmax import logsumexp as logsumexp
from fastgrad._softmax import softmax as softmax
from fastgrad._threads import get_num_threads as get_num_threads
from fastgrad._threads import num_threads as num_threads
from fastgrad._threads import set_num_threads as set_num_threads
from fastgrad._token_stats import TokenStats as TokenStats
from fastgrad._token_stats import token_stats as token_stats

try:
    __version__ = _version("fastgrad")
except _NotInstalled:  # compiled in place, never installed
    __version__ = "unknown"

__all__ = [
    "Centroids",
    "Diagnosis",
    "GradcheckResult",
    "Loss",
    "LossProfile",
    "Map",
    "Segments",
    "TokenStats",
    "binary_cross_entropy",
    "centroid_hinge",
    "class_centroids",
    "cross_entropy",
    "get_num_threads",
    "gradcheck",
    "hinge",
    "linear_cross_entropy",
    "log_sigmoid",
    "log_softmax",
    "logsumexp",
    "multiclass_hinge",
    "num_threads",
    "numerical_gradient",
    "numerical_hvp",
    "numerical_jacobian",
    "profile_loss",
    "prototype_logits",
    "segment_log_softmax",
    "segment_logsumexp",
    "segment_max",
    "segment_mean",
    "segment_min",
    "segment_softmax",
    "segment_sum",
    "set_num_threads",
    "show_config",
    "sigmoid",
    "softmax",
    "token_stats",
]


def load_ipython_extension(ipython: _Any) -> None:
    """Serve ``%load_ext fastgrad``; IPython is imported by nobody else."""
    from fastgrad.repl import load_ipython_extension as load

    load(ipython)


def unload_ipython_extension(ipython: _Any) -> None:
    """Serve ``%unload_ext fastgrad``."""
    from fastgrad.repl import unload_ipython_extension as unload

    unload(ipython)
