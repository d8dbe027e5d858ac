"""What a page of results says: every action of every frame in its place, and a camera only where the robot has one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from openvla_ros.bags.motion import project
from openvla_ros.bags.page import write_page
from openvla_ros.bags.page_content import PageRun
from openvla_ros.regression.job import FAILED, Job, Result
from openvla_ros.regression.pages import page_of
from openvla_ros.regression.robots import read_robot
from openvla_ros.share import share_folder

Make = Callable[..., Job]
Run = Callable[[Job], Result]


def test_a_run_through_the_pilot_shows_what_was_sent(job: Make, run: Run, tmp_path: Path) -> None:
    work = job(through="command")
    result = run(work)
    page = page_of([work], [result])
    assert page.passed is None and page.policy == "scripted" and page.facts["policy checkpoint"] == "scripted"
    assert result.replay is not None and result.commanded is not None
    for shown, frame in zip(page.tracks[0].frames, result.replay.frames, strict=True):
        assert (shown.index, shown.stamp_ns, shown.log_ns) == (frame.index, frame.stamp_ns, frame.log_ns)
        assert shown.predicted is frame.action and shown.recorded is frame.recorded
        assert shown.sent is result.commanded.frames[frame.index].sent and shown.driver == result.commanded.frames[frame.index].driver
    text = write_page(page, tmp_path).read_text(encoding="utf-8")
    assert text.count("<img") >= 2 and "nothing asserted" in text


def test_frames_that_are_not_as_expected_show_the_expected_action(job: Make, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "expected.json"
    assert run(job(write_expected=file)).differences == ()
    work = job(expect=file)
    good = page_of([work], [run(work)])
    assert good.passed and good.against == ""
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('"action": [', '"action": [1e-3, ', 1).replace(", 1.0]", "]", 1), encoding="utf-8")
    result = run(work)
    page = page_of([work], [result])
    assert page.passed is False and page.against == "expected"
    wrong = {difference.index: difference for difference in result.differences}
    assert wrong and all(bool(frame.difference) == (frame.index in wrong) for frame in page.tracks[0].frames)
    first = page.tracks[0].frames[min(wrong)]
    expected = wrong[first.index].expected
    assert expected is not None and first.against is expected.action and wrong[first.index].cause in first.difference


def test_another_policy_stands_beside(job: Make, run: Run) -> None:
    work = job()
    result = run(work)
    assert result.replay is not None
    moved = replace(result.replay, frames=tuple(replace(frame, action=frame.action + 1.0) for frame in result.replay.frames[1:]
                                                if frame.action is not None))
    page = page_of([work, replace(work, name="lost")], [result, Result("lost", FAILED, error="it is gone")],
                   [replace(result, replay=moved), Result("lost", FAILED, error="gone too")], against="int8")
    assert page.against == "int8" and page.failed == {"lost": "it is gone"} and len(page.tracks) == 1
    assert page.tracks[0].frames[0].against is None
    assert all(np.allclose(frame.against - frame.predicted, 1.0) for frame in page.tracks[0].frames[1:])


def test_the_camera_is_that_of_the_robot(job: Make, run: Run, tmp_path: Path) -> None:
    profile = yaml.safe_load((share_folder() / "config/robots/wx250s_replay.yaml").read_text(encoding="utf-8"))
    profile["camera"] = camera = {"width": 64, "height": 48, "fx": 60.0, "fy": 60.0, "cx": 32.0, "cy": 24.0, "position_m": [0.3, 0.0, 1.0],
                         "quaternion_xyzw": [0.7071068, -0.7071068, 0.0, 0.0]}
    (tmp_path / "robot.yaml").write_text(yaml.safe_dump(profile), encoding="utf-8")
    work = job()
    result = run(work)

    def text(page: PageRun) -> str:
        return write_page(page, tmp_path).read_text(encoding="utf-8")

    assert "not projected" in text(page_of([work], [result]))
    assert "arrows are 3 steps long" in text(page_of([replace(work, robot=str(tmp_path / "robot.yaml"))], [result]))
    recorded = tmp_path / "recorded"
    shutil.copytree(work.bag, recorded)
    metadata = yaml.safe_load((recorded / "metadata.yaml").read_text(encoding="utf-8"))
    metadata["rosbag2_bagfile_information"]["custom_data"] = {"openvla_ros.robot_profile": yaml.safe_dump(profile)}
    (recorded / "metadata.yaml").write_text(yaml.safe_dump(metadata), encoding="utf-8")
    page = page_of([replace(work, bag=recorded)], [result])  # with the camera of that day, whatever robot is asked for now
    found = page.tracks[0].camera
    assert found is not None and found.fx == camera["fx"] and "arrows are 3 steps long" in text(page)


def test_the_camera_of_the_simulation_is_the_one_in_its_profile() -> None:
    simulated = pytest.importorskip("openvla_ros.simulation.camera", reason="needs mujoco").Camera(128, 128)
    camera = read_robot("wx250s_sim").profile.camera
    assert camera is not None
    points_m = np.random.default_rng(0).uniform([0.1, -0.2, 0.0], [0.4, 0.2, 0.3], (50, 3))
    assert np.allclose(project(points_m, camera), [simulated.project(point_m) for point_m in points_m], atol=1e-2)
