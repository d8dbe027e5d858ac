"""Many single values in, the few numbers that are reported out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Of single values in one unit. NaN throughout where there are none."""

    count: int
    median: float
    p99: float
    largest: float


def spread(values: Sequence[float]) -> Spread:
    """Median, 99th percentile (linear between the two values around it) and the largest."""
    if not values:
        return Spread(0, float("nan"), float("nan"), float("nan"))
    median, p99, largest = np.percentile(np.asarray(values, dtype=np.float64), [50.0, 99.0, 100.0])
    return Spread(len(values), float(median), float(p99), float(largest))
