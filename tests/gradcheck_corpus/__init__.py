"""Right gradients and planted bugs by which gradcheck is judged, drawn from a seed.

Written against the specification of gradcheck and not against its code.
"""

from __future__ import annotations

import numpy as np

from gradcheck_corpus import (
    binary,
    by_hand,
    centroids,
    cross_entropy,
    hinge,
    linear,
    maps,
    segments,
)
from gradcheck_corpus.case import Case, call, parts, plant

MODULES = (maps, cross_entropy, binary, linear, hinge, segments, centroids, by_hand)
FAMILIES = tuple(m.FAMILY for m in MODULES)

__all__ = ["FAMILIES", "Case", "call", "corpus", "parts", "plant"]


def corpus(family: str, seed: int, right: bool) -> list[Case]:
    """The right cases of a family, or the planted bugs, with inputs drawn from `seed`."""
    module = MODULES[FAMILIES.index(family)]
    rng = np.random.default_rng([seed, FAMILIES.index(family), right])
    with np.errstate(all="ignore"):
        return module.right(rng) if right else module.planted(rng)
