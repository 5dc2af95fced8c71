"""`profile_loss`: `measure.py` takes the times, `result.py` shows them, `idioms.py` is compared."""

from __future__ import annotations

from fastgrad._profile.measure import profile_loss as profile_loss
from fastgrad._profile.result import LossProfile as LossProfile
