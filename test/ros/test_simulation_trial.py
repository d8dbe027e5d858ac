"""The whole loop through ROS, with the scripted expert as the policy: what fails here is the command path."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS")
pytest.importorskip("mujoco", reason="needs the extra 'simulation'")
from openvla_msgs.msg import CommandReport

from openvla_ros.errors import ConfigurationError
from openvla_ros.ros.convert import to_ns
from openvla_ros.ros.handoff_trial import HandoffRun, run_handoff
from openvla_ros.ros.profile import read_robot
from openvla_ros.ros.simulation_stage import Stage
from openvla_ros.ros.simulation_trial import EXPERT, Timing, policy_part, run_episode, run_trials
from openvla_ros.ros.supervisor import PartDied
from openvla_ros.simulation.evaluate import other_task, task_of

pytestmark = pytest.mark.ros

ATTEMPTS = 3


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Stage(policy_part(EXPERT, 1, 0.6), tmp_path_factory.mktemp("stage"), lifecycle=False) as ready:
        yield ready


@pytest.fixture(scope="module")
def handoff(stage: Stage) -> HandoffRun:
    """The first run in which nothing but the script changed the driver: on a busy computer a stall of the clock does."""
    for _ in range(ATTEMPTS):
        run = run_handoff(stage, 5)
        if not run.disturbed:
            break
    return run


@pytest.mark.parametrize(("kind", "seed"), [("reach", 0), ("place", 2)])
def test_the_expert_succeeds_through_the_command_path(stage: Stage, kind: str, seed: int) -> None:
    timing = Timing()
    episode = run_episode(stage, kind, seed, "", None, timing)
    assert episode.success and episode.task == task_of(kind, seed) and not episode.wrong
    assert episode.faults == timing.falls, "a busy computer may stall the clock, which means HOLD; nothing else went wrong"
    assert np.median(timing.gaps_s) == pytest.approx(0.2, abs=0.02) and min(timing.ages_s) >= 0.0
    assert timing.to_mapping()["steps"] == len(timing.ages_s)


def test_told_another_colour_it_does_that_instead(stage: Stage) -> None:
    episode = run_episode(stage, "reach", 4, "other-colour", None, Timing())
    assert episode.told == other_task(episode.task, 4) and episode.told_success and not episode.success
    assert episode.wrong == episode.told.colour


def test_a_human_takes_over_in_the_middle_of_a_pick_and_the_policy_finishes(handoff: HandoffRun) -> None:
    assert handoff.success
    drivers = [driver for _, driver in handoff.drivers]
    assert drivers[drivers.index("POLICY"):] == ["POLICY", "HUMAN", "POLICY"]
    taken, back = handoff.switches_s["take-over"], handoff.switches_s["hand-back"]
    away = handoff.tool_m[np.searchsorted(handoff.times_s, back)] - handoff.tool_m[np.searchsorted(handoff.times_s, taken)]
    assert away[2] > 0.05 and np.hypot(*away[:2]) > 0.05, "the human was to lead it away"


def test_a_take_over_is_an_intervention_and_the_policy_goes_on_proposing(handoff: HandoffRun) -> None:
    """The first reports after a switch may come before the new driver's first step."""
    by_human = [report for report in handoff.reports if report.driver == CommandReport.HUMAN]
    assert len(by_human) > 3 and all(report.intervention for report in by_human)
    assert not any(report.intervention for report in handoff.reports if report.driver == CommandReport.POLICY)
    assert any(report.proposal_valid for report in by_human)


def test_nothing_jumps_at_the_switches(handoff: HandoffRun) -> None:
    """Neither the measured tool nor the target that is sent moves faster than the profile lets it."""
    limits = read_robot("wx250s_sim").limits
    speeds_m_s = np.linalg.norm(np.diff(handoff.tool_m, axis=0), axis=1) / np.diff(handoff.times_s)
    assert speeds_m_s.max() <= 2.0 * limits.max_speed_m_s  # in between, ticks that came late on a busy computer are made up for
    for switch in ("take-over", "hand-back"):
        near = np.abs(handoff.times_s[:-1] - handoff.switches_s[switch]) < 0.3
        assert speeds_m_s[near].max() <= 1.2 * limits.max_speed_m_s
    driven = itertools.dropwhile(lambda report: report.driver != CommandReport.POLICY, handoff.reports)  # before, it is the last scene's
    targets = [(to_ns(report.header.stamp) / 1e9, np.array([getattr(report.target_pose.position, axis) for axis in "xyz"]))
               for report in driven if report.target_pose_valid]
    for (before_s, before_m), (after_s, after_m) in itertools.pairwise(targets):
        assert np.linalg.norm(after_m - before_m) <= limits.max_speed_m_s * (after_s - before_s + 1 / 30) + 1e-6
    window_s = limits.longest_ramp_s
    for switch in ("take-over", "hand-back"):
        near = np.abs(handoff.times_s - handoff.switches_s[switch]) < 0.3
        times_s, tool_m = handoff.times_s[near], handoff.tool_m[near]
        velocities = np.diff(tool_m, axis=0) / np.diff(times_s)[:, None]
        middle_s = (times_s[1:] + times_s[:-1]) / 2.0
        for number, velocity in enumerate(velocities):
            later = np.searchsorted(middle_s, middle_s[number] + window_s)
            if later < len(velocities):  # over the time of a soft stop the speed changes by no more than a soft stop's and some ringing
                change = np.linalg.norm(velocities[later] - velocity)
                assert change <= 1.3 * limits.max_acceleration_m_s2 * (middle_s[later] - middle_s[number]) + 0.02


def test_the_picture_of_the_handoff_is_drawn_from_that_run(handoff: HandoffRun, checkout: Path, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("handoff", checkout / "docs" / "handoff.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.draw(handoff, tmp_path / "handoff.png")
    assert (tmp_path / "handoff.png").stat().st_size > 50_000
    assert all(frame.shape == (288, 384, 3) and frame.std() > 10.0 for frame in handoff.frames.values())


def test_trials_count_as_the_evaluation_in_process_does(ros_domain_id: int, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    trials = run_trials(EXPERT, ["reach"], [8], domain=ros_domain_id, log_folder=tmp_path,
                        progress=lambda done, total: seen.append((done, total)))
    result = trials.results["reach"]
    assert seen == [(1, 1)] and result.to_mapping()["successes"] == 1
    assert [episode.seed for episode in result.episodes] == [8]
    assert (tmp_path / "command_node.log").is_file()


@pytest.mark.parametrize(("kinds", "seeds", "control", "said"), [
    (["dance"], [0], "", "expected some of reach, pick, place"), ([], [0], "", "nothing to evaluate"), (["reach"], [], "", "nothing"),
    (["reach"], [2**30], "", "not for evaluation"), (["reach"], [0], "upside-down", "expected 'other-colour'"),
])
def test_what_cannot_be_evaluated_is_refused_before_anything_starts(kinds: list[str], seeds: list[int], control: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        run_trials(EXPERT, kinds, seeds, instruction_control=control)


def test_a_policy_that_cannot_be_made_ready_is_named(ros_domain_id: int, tmp_path: Path) -> None:
    with pytest.raises((ConfigurationError, PartDied), match=r"(?s)policy_node.*no/such/folder"):
        run_trials("/no/such/folder", ["reach"], [0], domain=ros_domain_id, log_folder=tmp_path)
