"""A few labelled frames of the real simulation, and the limits of its robot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("mujoco", reason="the simulation needs mujoco-core")

from openvla_ros.robot import Limits, from_mapping
from openvla_ros.training.default_policy.collect import Driving, Recorder, collect
from openvla_ros.training.default_policy.frames import FrameSet, save_frames


@pytest.fixture(scope="session")
def limits(checkout: Path) -> Limits:
    path = checkout / "config/robots/wx250s_sim.yaml"
    return from_mapping(yaml.safe_load(path.read_text(encoding="utf-8")), str(path)).limits


@pytest.fixture(scope="session")
def recorder(limits: Limits) -> Recorder:
    """90 frames in short episodes, the expert driving."""
    return collect(90, Driving(episode_steps=6), limits, np.random.default_rng(3))


@pytest.fixture(scope="session")
def frames(recorder: Recorder, tmp_path_factory: pytest.TempPathFactory) -> FrameSet:
    """The same as a set of two files."""
    folder, truth = tmp_path_factory.mktemp("frames"), recorder.truth()
    for name, part in (("a", slice(0, 50)), ("b", slice(50, None))):
        save_frames(folder, name, recorder.pictures[part], type(truth)(**{field: values[part] for field, values in vars(truth).items()}))
    return FrameSet(folder, ["a", "b"])
