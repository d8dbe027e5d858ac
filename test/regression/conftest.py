"""A small recording and a small model with random weights, for tests of recordings as tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openvla_ros.bags.episode import EpisodeSettings, make_episode
from openvla_ros.policy.catalogue import PolicySettings
from openvla_ros.regression.job import Job, Result, check, run_job
from openvla_ros.regression.workers import LoadedPolicy

SCRIPTED = PolicySettings("scripted")


@pytest.fixture(scope="session")
def episode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six frames of 64x48 pixels."""
    folder = tmp_path_factory.mktemp("episodes") / "episode"
    make_episode(folder, EpisodeSettings(seconds=1.2, width=64, height=48))
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> PolicySettings:
    """An untrained checkpoint."""
    untrained = pytest.importorskip("openvla_ros.policy.openvla.untrained", reason="needs torch")
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    untrained.write_untrained(folder)
    return PolicySettings(str(folder), dtype="float32", device="cpu", threads=1)


@pytest.fixture(scope="session")
def loaded() -> Any:
    """One policy at a time for all tests."""
    kept = LoadedPolicy()
    yield kept
    kept.close()


@pytest.fixture
def run(loaded: LoadedPolicy) -> Callable[[Job], Result]:
    """A job as `openvla-ros replay` runs one."""

    def run(job: Job) -> Result:
        check(job)
        return run_job(job, loaded.get(job.policy))

    return run


@pytest.fixture
def job(episode: Path, tmp_path: Path) -> Callable[..., Job]:
    """job(policy=..., ...) -> a job on the episode without a report."""

    def make(**changes: Any) -> Job:
        return replace(Job("episode", episode, SCRIPTED, tmp_path / "out", report=False), **changes)

    return make
