"""What the tests of the simulation share: the limits of the shipped robot and a world."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from openvla_ros.robot import Limits, from_mapping

pytest.importorskip("mujoco", reason="MuJoCo is not installed: pip install 'openvla-ros[simulation]'")

from openvla_ros.simulation.tabletop import Tabletop


@pytest.fixture(scope="session")
def limits(checkout: Path) -> Limits:
    """Those of config/robots/wx250s.yaml."""
    path = checkout / "config" / "robots" / "wx250s.yaml"
    return from_mapping(yaml.safe_load(path.read_text(encoding="utf-8")), path.name).limits


@pytest.fixture()
def tabletop() -> Tabletop:
    """A world in the layout of seed 0."""
    return Tabletop(0)
