"""What the fuzz shares: numbers that nobody expects, and the rule that the millions run only when they are asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openvla_ros.contract import FloatArray
from openvla_ros.robot import Box, Limits

SPECIAL = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e308, -1e308, 5e-324, -5e-324, 2.3e-308, 1e-160, 1e-16, 1e16, 0.05, 0.25,
                    1.0, np.nextafter(1.0, 2.0), 2.0, -1.0, np.pi, 1e3])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`make fuzz` says `-m fuzz`; without that word the marked ones are left out."""
    if "fuzz" in config.option.markexpr:
        return
    here = Path(__file__).parent
    left = [item for item in items if here in item.path.parents and item.get_closest_marker("fuzz")]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


@pytest.fixture(scope="session")
def limits() -> Limits:
    """Those of the WidowX profile."""
    return Limits(0.05, 0.25, 0.25, 1.25, 2.5, 12.0, 0.06, 0.3, Box((0.1, 0.45), (-0.2, 0.25), (-0.01, 0.3)))


@pytest.fixture(scope="session")
def draw_rows():
    """(seed, special numbers, count, columns, typical size) -> rows: from 1e-12 to 1e12 of the size, a tenth of them with specials."""

    def draw(seed: int, special: list[float], count: int, columns: int, size: float) -> FloatArray:
        random = np.random.default_rng(seed)
        rows = random.normal(size=(count, columns)) * size * 10.0 ** random.choice([-12, -3, -1, 0, 0, 0, 0, 1, 3, 12], size=(count, 1))
        odd = random.random(count) < 0.1
        values = random.choice(np.concatenate([SPECIAL, special]), size=(count, columns))
        return np.where(odd[:, None] & (random.random((count, columns)) < 0.5), values, rows)

    return draw
