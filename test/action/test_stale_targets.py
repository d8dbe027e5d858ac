"""A target that the arm was moved away from is never gone back to, whoever asks for what: stops, starts, drivers, grippers."""

from __future__ import annotations

import numpy as np
import pytest

from openvla_ros.action.command import Phase
from openvla_ros.action.handoff import Driver
from openvla_ros.action.pose import distance
from openvla_ros.errors import HandoffRefused

ELSEWHERE = np.array([0.5, -0.3, 0.5, 0.0, 1.3, 0.0])
FULL = [0.05, 0.0, 0.0]


def positions(widow, **settings):
    """An arm behind an output that sends positions."""
    arm = widow()
    return type(arm)(arm.kinematics, profile=arm.profile.through("interbotix"), **settings)


def used(arm):
    """Driven by hand, held, and at rest."""
    arm.pilot.take_over()
    arm.drive(1.0, linear=(0.1, 0.0, 0.0))
    arm.grip(deadman=False)
    arm.pilot.hold()
    arm.run(3.0)
    assert arm.log[-1][1].motion is None, "silent"
    return arm


def test_an_emergency_stop_at_rest_commands_no_pose(widow) -> None:
    arm = used(positions(widow))
    arm.joints = ELSEWHERE
    arm.run(4.0)
    arm.pilot.emergency_stop("tried out")
    assert [arm.tick().motion for _ in range(3)] == [None] * 3


def test_an_emergency_stop_at_rest_still_says_zero_to_a_twist(widow) -> None:
    arm = used(widow())
    arm.pilot.emergency_stop("tried out")
    decision = arm.tick()
    assert decision.motion is not None and not decision.motion.twist.moving


@pytest.mark.parametrize("end", ["emergency_stop", "not_following"])
def test_a_blocked_arm_is_not_left_pushing(widow, end: str) -> None:
    arm = positions(widow)
    arm.pilot.take_over()
    arm.blocked = True
    if end == "emergency_stop":
        arm.drive(0.9, linear=(0.2, 0.0, 0.0))
        assert distance(arm.log[-1][1].target, arm.pose)[0] == pytest.approx(0.06, abs=1e-3)
        arm.pilot.emergency_stop("a hand is in the way")
    else:
        arm.drive(2.5, linear=(0.2, 0.0, 0.0))
        assert arm.pilot.driver is Driver.HOLD and arm.pilot.counts["not_following"] == 1
    arm.run(arm.time_ns / 1e9 + 0.2)
    told = [d.motion for _, d in arm.log if d.motion is not None and d.driver is not Driver.HUMAN]
    assert told[0].phase is not Phase.ZEROS and told[-1].phase is Phase.ZEROS, "the way back is a motion, then comes rest"
    for motion in told:
        assert motion.joints == pytest.approx(arm.joints) and not motion.twist.moving


def test_a_driver_that_rested_for_long_starts_where_the_arm_is(widow) -> None:
    arm = used(positions(widow))
    arm.pilot.take_over()
    arm.run(10.0)
    arm.joints = ELSEWHERE
    arm.run(20.0)
    arm.grip((0.1, 0.0, 0.0), device="twist")
    decision = arm.tick()
    assert decision.motion is not None and np.abs(decision.motion.joints - ELSEWHERE).max() < 0.02


def test_an_idle_arm_that_is_pushed_gives_in_and_says_so(widow) -> None:
    arm = used(positions(widow))
    arm.pilot.take_over()
    arm.run(10.0)
    arm.joints, arm.efforts = ELSEWHERE, np.full(7, 2000.0)
    decision = arm.tick()
    assert decision.driver is Driver.HOLD and decision.motion is not None
    assert decision.motion.tells and decision.motion.joints == pytest.approx(ELSEWHERE)


def test_go_to_start_is_refused_while_the_arm_pushes(widow) -> None:
    arm = widow()
    arm.pilot.take_over()
    arm.run(0.2)
    arm.efforts = np.full(7, 2000.0)
    arm.run(1.5)
    with pytest.raises(HandoffRefused, match="pushes too hard"):
        arm.pilot.go_to_start()
    arm.efforts = np.zeros(7)
    arm.run(1.6)
    arm.pilot.go_to_start()


def test_go_to_start_is_refused_under_a_hand_and_in_motion(widow) -> None:
    arm = widow()
    arm.pilot.take_over()
    arm.drive(0.4, linear=(0.2, 0.0, 0.0))
    arm.pilot.hold()
    with pytest.raises(HandoffRefused, match="hand is on the teleop") as caught:
        arm.pilot.go_to_start()
    assert "still moving" in str(caught.value)
    arm.grip(deadman=False)
    arm.run(2.0)
    arm.pilot.go_to_start()


def test_what_a_hand_asked_for_holds_from_when_it_asked(widow) -> None:
    arm = widow()
    arm.pilot.take_over()
    arm.drive(1.0, linear=(0.1, 0.0, 0.0))
    late = arm.now._replace()
    arm.pilot.teleop("joy", arm.pilot._hand.request(late.tick_ns), late, stamp_ns=late.ros_ns - 200_000_000)
    arm.run(1.4)
    moving = [time_ns / 1e9 for time_ns, d in arm.log if d.twist is not None and d.twist.moving]
    assert moving[-1] <= late.ros_ns / 1e9 - 0.2 + 0.25 + 0.138 - arm.ros_offset_ns / 1e9, "0.25 s from its stamp, a tick and the ramp"


def test_a_gripper_that_somebody_closed_is_not_thrown_open(widow) -> None:
    arm = widow()
    arm.pilot.take_over()
    arm.drive(1.0, gripper=1.0)
    arm.grip(deadman=False)
    arm.pilot.hold()
    arm.run(2.5)
    arm.finger_m = 0.010  # another program closes it on an object
    arm.run(3.0)
    now_s = arm.time_ns / 1e9
    arm.resume()
    arm.at(now_s, arm.chunk(FULL, observed_s=now_s))  # its gripper says 1
    decision = arm.tick()
    assert decision.motion is not None and decision.motion.gripper == pytest.approx(2.0 / 30, abs=1e-6)


def test_a_grip_is_kept_over_a_switch(widow) -> None:
    arm = widow()
    arm.pilot.take_over()
    arm.drive(1.0, gripper=0.0)
    arm.finger_m = 0.025  # an object is in between
    arm.grip(deadman=False)
    arm.pilot.hold()
    arm.resume()
    assert arm.pilot._target.gripper == pytest.approx(0.0)


def test_extra_ticks_make_nothing_faster(widow) -> None:
    arm = widow()
    arm.pilot.take_over()
    arm.run(0.5)
    arm.grip((0.25, 0.0, 0.0), gripper=1.0)
    before = arm.log[-1][1].motion
    opening = before.gripper if before is not None and before.gripper is not None else None
    first = arm.time_ns
    for _ in range(10):
        decision = arm.tick()
        arm.time_ns += 1_000_000
    elapsed_s = (arm.time_ns - 1_000_000 - first) / 1e9 + 1 / 30
    assert decision.twist is not None and np.linalg.norm(decision.twist.linear_m_s) <= 2.5 * elapsed_s + 1e-9
    if opening is not None:
        assert decision.motion is not None and decision.motion.gripper <= opening + 2.0 * elapsed_s + 1e-9
