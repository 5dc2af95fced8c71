"""For test suites: assertions whose messages are reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastgrad._gradcheck.check import gradcheck
from fastgrad._gradcheck.result import GradcheckResult

__all__ = ["assert_gradient"]


def assert_gradient(f: Callable[..., Any], *args: Any, **options: Any) -> GradcheckResult:
    """Assert that the derivative of `f` is right at these arguments.

    Parameters
    ----------
    f, *args, **options
        As for `gradcheck`.

    Returns
    -------
    GradcheckResult
        What was found, if the derivative is right.

    Raises
    ------
    AssertionError
        The derivative is wrong, or differences cannot tell; the message is the report.

    Examples
    --------
    >>> import numpy as np
    >>> import fastgrad as fg
    >>> r = fg.testing.assert_gradient(fg.logsumexp, np.array([[0.0, 1.0, 2.0]]))
    """
    __tracebackhide__ = True
    result = gradcheck(f, *args, **options)
    if not result:
        raise AssertionError(result.report())
    return result
