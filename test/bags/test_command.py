"""A replayed recording through the pilot: steps arrive as they should, the recorded driver and hand are obeyed, twice is the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from openvla_ros.bags.command import CommandRun, command
from openvla_ros.bags.frames import select
from openvla_ros.bags.read import Recording
from openvla_ros.bags.replay import ReplayedFrame, replay
from openvla_ros.errors import BagError, ConfigurationError
from openvla_ros.policy.scripted import ScriptedPolicy
from openvla_ros.robot import RobotProfile, from_mapping
from openvla_ros.share import share_folder

MakeBag = Callable[..., Path]
MS = 1_000_000


@pytest.fixture(scope="module")
def profile() -> RobotProfile:
    """The robot without hardware."""
    path = share_folder() / "config/robots/wx250s_replay.yaml"
    return from_mapping(yaml.safe_load(path.read_text()), str(path))


def answers(messages: Any, count: int, action: Any = (0.01, 0, 0, 0, 0, 0.02, 1.0), every_ms: int = 200) -> list[ReplayedFrame]:
    """A policy that says the same about every picture."""
    stamps = [messages.t0_ns + (100 + every_ms * k) * MS for k in range(count)]
    return [ReplayedFrame(k, stamp, "go", (), np.array(action, float), None, "", {}, log_ns=stamp + 5 * MS)
            for k, stamp in enumerate(stamps)]


def run(bag: Path, frames: list[ReplayedFrame], profile: RobotProfile, latency_s: float = 0.1) -> CommandRun:
    with Recording(bag) as recording:
        return command(recording, frames, profile, latency_s=latency_s)


@pytest.fixture
def plain(write_bag: MakeBag, messages: Any) -> Path:
    """A recording that does not say who drives."""
    return write_bag([messages.text(0, "go"), messages.image(100)])


def test_every_step_reaches_the_arm_whole(plain: Path, messages: Any, profile: RobotProfile) -> None:
    found = run(plain, answers(messages, 10), profile)
    assert found.counts["chunks"] == found.counts["steps"] == 10 and list(found.frames) == list(range(10))
    for commanded in found.frames.values():
        assert commanded.driver == "POLICY" and commanded.rules == ()
        np.testing.assert_allclose(commanded.sent, [0.01, 0, 0, 0, 0, 0.02, 1.0], atol=1e-12)
    moved = sum(commanded.moved for commanded in found.frames.values() if commanded.moved is not None)
    np.testing.assert_allclose(moved, [0.1, 0, 0, 0, 0, 0.2], atol=0.004)  # the very first and last tick ramp
    assert [change.driver for change in found.changes] == ["POLICY"] and found.changes[0].at_s == 0.0


def test_safety_acts_and_is_named(plain: Path, messages: Any, profile: RobotProfile) -> None:
    found = run(plain, answers(messages, 3, (0.08, 0, 0, 0, 0, 0, 1.0)), profile)
    for commanded in found.frames.values():
        assert commanded.sent is not None and "step_clamp_translation" in commanded.rules
        assert np.linalg.norm(commanded.sent[:3]) == pytest.approx(0.05)
    odd = run(plain, answers(messages, 2, (np.nan, 0, 0, 0, 0, 0, 1.0)), profile)
    assert [(commanded.sent, commanded.rules) for commanded in odd.frames.values()] == [(None, ("finite",))] * 2


def test_answers_that_come_too_late_are_not_played(plain: Path, messages: Any, profile: RobotProfile) -> None:
    found = run(plain, answers(messages, 4), profile, latency_s=0.7)
    assert all(commanded.sent is None and commanded.rules == ("age",) for commanded in found.frames.values())


def test_the_newest_of_many_answers_wins(plain: Path, messages: Any, profile: RobotProfile) -> None:
    found = run(plain, answers(messages, 40, every_ms=50), profile)
    played = [index for index, commanded in found.frames.items() if commanded.sent is not None]
    assert 9 <= len(played) <= 12 and found.counts["chunks"] == 40
    moved = sum(commanded.moved for commanded in found.frames.values() if commanded.moved is not None)
    assert moved[0] <= 0.01 * len(played) + 1e-6, "never faster than a step in its time"


def test_a_pause_ends_policy_and_the_next_frame_begins_it_again(plain: Path, messages: Any, profile: RobotProfile) -> None:
    frames = answers(messages, 8)
    late = [frame for frame in frames if frame.index < 4] + [
        ReplayedFrame(frame.index, frame.stamp_ns + 5000 * MS, "go", (), frame.action, None, "", {}, log_ns=frame.log_ns + 5000 * MS)
        for frame in frames if frame.index >= 4]
    found = run(plain, late, profile)
    assert [change.driver for change in found.changes] == ["POLICY", "HOLD", "POLICY"] and "no fresh chunk" in found.changes[1].reason
    assert all(commanded.sent is not None for commanded in found.frames.values())


def test_a_fault_stops_the_arm(plain: Path, messages: Any, profile: RobotProfile) -> None:
    frames = answers(messages, 3)
    frames[1] = ReplayedFrame(1, frames[1].stamp_ns, "go", (), None, None, "early end", {}, log_ns=frames[1].log_ns)
    found = run(plain, frames, profile)
    assert [found.frames[k].sent is None for k in range(3)] == [False, True, False]


def test_the_recorded_driver_and_hand_are_obeyed(write_bag: MakeBag, messages: Any, profile: RobotProfile) -> None:
    def hand(at_ms: int) -> Any:
        topic, kind, _, message = messages.twist(at_ms, [0.05, 0, 0, 0, 0, 0], "/teleop/delta_twist_cmds")
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(messages.t0_ns + at_ms * MS, 10**9)
        message.header.frame_id = "wx250s/base_link"
        return topic, kind, at_ms, message

    bag = write_bag([
        messages.text(0, "go"), messages.text(1, "HOLD", "/driver"), messages.image(100), messages.text(450, "POLICY", "/driver"),
        *(hand(at_ms) for at_ms in range(1000, 1400, 100)), messages.text(1900, "STOPPED", "/driver"),
        messages.text(2300, "HOLD", "/driver"), messages.text(2310, "POLICY", "/driver")])
    found = run(bag, answers(messages, 15), profile)
    assert [change.driver for change in found.changes] == ["POLICY", "HUMAN", "STOPPED", "HOLD", "POLICY"]
    drivers = [found.frames[k].driver for k in range(15)]
    # A frame's answer comes 105 ms after its stamp at 100 + 200 k ms.
    assert drivers == ["HOLD"] * 2 + ["POLICY"] * 2 + ["POLICY"] + ["HUMAN"] * 4 + ["STOPPED"] * 2 + ["POLICY"] * 4
    assert found.frames[1].sent is None and found.frames[3].sent is not None and found.frames[6].sent is None
    assert found.frames[9].sent is None and found.frames[14].sent is not None


def test_a_driver_that_is_only_said_again_changes_nothing(write_bag: MakeBag, messages: Any, profile: RobotProfile) -> None:
    """As in each file of a split recording. Today's pilot fell into HOLD in a pause, and the human of that day resumed nothing."""
    said = [messages.text(0, "go"), messages.text(1, "HOLD", "/driver"), messages.image(100), messages.text(50, "POLICY", "/driver")]
    frames = [frame if frame.index < 4 else replace(frame, stamp_ns=frame.stamp_ns + 5000 * MS, log_ns=frame.log_ns + 5000 * MS)
              for frame in answers(messages, 8)]
    again = [*said, messages.text(5000, "POLICY", "/driver")]
    found = run(write_bag(again), frames, profile)
    assert [change.driver for change in found.changes] == ["POLICY", "HOLD"] and found.frames[7].sent is None
    found = run(write_bag([*again, messages.text(4990, "HOLD", "/driver")], "anew"), frames, profile)
    assert [change.driver for change in found.changes] == ["POLICY", "HOLD", "POLICY"] and found.frames[7].sent is not None


def test_answers_of_several_steps_are_refused(plain: Path, messages: Any, profile: RobotProfile) -> None:
    frames = answers(messages, 2)
    with pytest.raises(ConfigurationError, match="up to 8 steps, and only the first is kept"):
        run(plain, [frames[0], replace(frames[1], steps=8)], profile)


def test_a_recording_of_two_robots_is_refused(write_bag: MakeBag, messages: Any, profile: RobotProfile) -> None:
    bag = write_bag([messages.text(0, "go"), messages.image(100), messages.text(1, "HOLD", "/left/driver"),
                     messages.text(1, "POLICY", "/right/driver")])
    with pytest.raises(BagError, match="several robots: /left/driver and /right/driver"):
        run(bag, answers(messages, 2), profile)


@pytest.mark.shared
def test_twice_is_the_same(write_bag: MakeBag, shared: Path, profile: RobotProfile) -> None:
    with Recording(shared / "data/bags/bridge_octo_debug_64px") as recording:
        frames = replay(recording, select(recording), ScriptedPolicy(), limit=40).frames
        one, other = (command(recording, frames, profile) for _ in range(2))
    assert one.changes == other.changes and one.counts == other.counts
    for first, second in zip(one.frames.values(), other.frames.values(), strict=True):
        assert (first.rules, first.driver) == (second.rules, second.driver)
        np.testing.assert_array_equal(first.sent, second.sent)
        np.testing.assert_array_equal(first.moved, second.moved)


@pytest.mark.shared
def test_an_arm_with_recorded_joint_states_is_measured(shared: Path) -> None:
    """DROID's own recording with the profile of a Franka: its joint states are read, and the pilot knows where the arm is."""
    pytest.importorskip("pinocchio")
    from openvla_ros.regression.robots import read_robot

    robot = read_robot("fr3")
    with Recording(shared / "data/bags/droid_bottle_in_bag_320x192") as recording:
        frames = replay(recording, select(recording), ScriptedPolicy(), limit=10).frames
        found = command(recording, frames, robot.profile, robot.kinematics)
    assert set(found.frames) == set(range(10)) and found.changes


def test_two_clocks_are_refused(plain: Path, messages: Any, profile: RobotProfile) -> None:
    frames = [ReplayedFrame(0, 5, "go", (), np.zeros(7), None, "", {}, log_ns=messages.t0_ns)]
    with pytest.raises(BagError, match="different clocks"):
        run(plain, frames, profile)
