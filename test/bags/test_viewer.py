"""The file for the Rerun viewer: whole, readable by its own tools, and a clear word where the viewer is not installed."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from openvla_ros.bags.episode import EpisodeSettings, make_episode
from openvla_ros.bags.frames import frames, select
from openvla_ros.bags.page_content import PageFrame, PageRun, Track
from openvla_ros.bags.read import Recording
from openvla_ros.bags.viewer import write_rerun
from openvla_ros.errors import BagError, DependencyMissing

needs_rerun = pytest.mark.skipif(find_spec("rerun") is None, reason="needs rerun-sdk: pip install 'openvla-ros[viewer]'")


@pytest.fixture
def run(tmp_path: Path) -> PageRun:
    make_episode(tmp_path / "drawn", EpisodeSettings(seconds=1.0, width=64, height=48))
    with Recording(tmp_path / "drawn") as recording:
        seen = [PageFrame(frame.index, frame.stamp_ns, frame.log_ns, frame.instruction, frame.recorded, np.full(7, 0.01), driver="POLICY",
                          fault="none" * (frame.index == 2), tool_m=np.zeros(3), margin=1.0, stage_ms={"total": 5.0})
                for frame in frames(recording, select(recording))]
    return PageRun("run", "policy", [Track(name, tmp_path / "drawn", "/camera/image_raw/compressed", seen, rotate_180=name == "b")
                                     for name in ("a", "b")])


@needs_rerun
def test_the_viewer_can_read_it(run: PageRun, tmp_path: Path) -> None:
    file = write_rerun(run, tmp_path / "out" / "run.rrd")
    assert [path.name for path in file.parent.iterdir()] == ["run.rrd"]
    said = subprocess.run([sys.executable, "-m", "rerun", "rrd", "print", str(file)], capture_output=True, text=True, timeout=60,
                          check=True).stdout.replace("\\ ", " ")
    for entity in ("camera", "step/dx/predicted", "step/gripper/recorded", "instruction", "driver", "fault", "margin", "arm/tool"):
        assert f"000 a/{entity}" in said and f"001 b/{entity}" in said, entity


@needs_rerun
def test_a_file_that_cannot_be_written_is_named(run: PageRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BagError, match=r"cannot be written to .*another name for --rerun"):
        write_rerun(run, tmp_path / "file" / "run.rrd")


def test_without_the_viewer_it_says_what_to_install(run: PageRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(DependencyMissing, match=r"pip install 'openvla-ros\[viewer\]'"):
        write_rerun(run, tmp_path / "run.rrd")
    assert not (tmp_path / "run.rrd").exists()
