"""Golden data of the released model code, and policies loaded from the golden checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openvla_ros.contract import Observation
from openvla_ros.policy.catalogue import PolicySettings
from openvla_ros.policy.openvla.loading import load_openvla
from openvla_ros.policy.openvla.policy import OpenvlaPolicy
from openvla_ros.policy.statistics import choose_statistics, read_statistics

GOLDEN_CASES = {"tiny_fused": 9, "tiny_siglip_v01": 8}

LoadGolden = Callable[..., OpenvlaPolicy]


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    """Folder of the golden data."""
    return shared / "golden"


@pytest.fixture(scope="session")
def load_golden(golden: Path) -> Iterator[LoadGolden]:
    """(checkpoint name, unnorm_key, settings...) -> policy; the weights are loaded once per kind of settings."""

    @cache
    def load(name: str, **settings: Any) -> OpenvlaPolicy:
        return load_openvla(PolicySettings(str(golden / name / "checkpoint"), "bridge_orig", **{"device": "cpu", **settings}),
                            progress=False)

    def with_key(name: str, unnorm_key: str = "bridge_orig", **settings: Any) -> OpenvlaPolicy:
        policy = load(name, **settings)
        folder = golden / name / "checkpoint"
        policy.statistics = choose_statistics(read_statistics(folder, {}), unnorm_key)
        return policy

    yield with_key
    load.cache_clear()


@pytest.fixture
def recorded() -> Iterator[Callable[[OpenvlaPolicy], OpenvlaPolicy]]:
    """A loaded policy, until the end of the test in fixed shapes."""
    used: list[OpenvlaPolicy] = []

    def record(policy: OpenvlaPolicy) -> OpenvlaPolicy:
        policy.record_passes()
        used.append(policy)
        return policy

    yield record
    for policy in used:
        policy.recorded = None
        policy.forget()


@pytest.fixture(params=[(name, index) for name, count in GOLDEN_CASES.items() for index in range(count)],
                ids=lambda case: f"{case[0]}-{case[1]}")
def case(request: pytest.FixtureRequest, golden: Path) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
    """One golden case: checkpoint name, its line in cases.json, its arrays."""
    name, index = request.param
    description = json.loads((golden / name / "cases.json").read_text())["cases"][index]
    with np.load(golden / name / description["file"]) as arrays:
        return name, description, dict(arrays)


@pytest.fixture(scope="session")
def frame_observation() -> Observation:
    """A small picture with an instruction, for tests in which neither matters."""
    rows, columns = np.mgrid[0:96, 0:128]
    rgb = np.stack([rows * 2, columns * 2, rows + columns], axis=2).astype(np.uint8)
    return Observation(rgb, "put the spoon on the towel", stamp_ns=1)
