"""Hand and policy: who drives when, for how long a hand counts, and how big the bump is at each switch."""

from __future__ import annotations

import math

import numpy as np
import pytest

from openvla_ros.action.command import NOBODY, ZERO, Twist
from openvla_ros.action.handoff import Driver
from openvla_ros.action.teleop import TeleopRequest
from openvla_ros.errors import HandoffRefused

TICK_S = 1 / 30
FULL = [0.05, 0.0, 0.0, 0.0, 0.0, 0.25]  # 0.25 m/s and 1.25 rad/s


def policy(arm):
    """Bring the policy to full speed in the middle of a step."""
    arm.resume()
    now_s = arm.time_ns / 1e9
    arm.at(now_s, arm.chunk(*[FULL] * 3, observed_s=now_s))
    arm.run(now_s + 0.3)
    assert arm.speeds()[-1] == pytest.approx(0.25)
    return arm


# ---------------------------------------------------------------------- takeover


@pytest.mark.parametrize("device", ["joy", "twist"])
def test_touching_the_teleop_with_the_deadman_held_takes_over(widow, device: str) -> None:
    arm = policy(widow())
    arm.grip((0.1, 0.0, 0.0), device=device, deadman=False)
    assert arm.tick().driver is Driver.POLICY
    arm.grip((0.0, 0.0, 0.0), device=device)
    assert arm.tick().driver is Driver.POLICY, "a hand that rests on the deadman asks for nothing"
    arm.grip((0.0, 0.1, 0.0), device=device)
    decision = arm.tick()
    assert decision.driver is Driver.HUMAN and decision.intervention and decision.stop_reason == ""


def test_takeover_by_service_waits_for_the_hand(widow) -> None:
    arm = policy(widow())
    arm.pilot.take_over()
    arm.run(arm.time_ns / 1e9 + 1.5)
    assert arm.pilot.driver is Driver.HUMAN and arm.pilot.stop_reason == "waiting for the human's hand"
    assert arm.log[-1][1].motion is None, "half a second of zeros, then silence"
    arm.pilot.take_over()
    assert arm.pilot.driver is Driver.HUMAN


def test_a_hand_out_of_hold_drives_but_never_out_of_stopped(widow) -> None:
    arm = widow()
    arm.drive(0.2, linear=(0.1, 0.0, 0.0))
    assert arm.pilot.driver is Driver.HUMAN and arm.speeds()[-1] == pytest.approx(0.1)
    assert not arm.log[-1][1].intervention, "nobody was interrupted"
    arm.pilot.emergency_stop("button")
    before = len(arm.log)
    arm.drive(0.5, linear=(0.1, 0.0, 0.0))
    assert arm.pilot.driver is Driver.STOPPED and not arm.speeds()[before:].any()


def test_a_hand_that_never_let_go_does_not_take_over_again(widow) -> None:
    arm = widow()
    arm.drive(0.2, linear=(0.1, 0.0, 0.0))
    arm.pilot.hold()
    arm.drive(0.6, linear=(0.1, 0.0, 0.0))
    assert arm.pilot.driver is Driver.HOLD and not arm.speeds()[-1]
    with pytest.raises(HandoffRefused, match="hand is on the teleop"):
        arm.pilot.resume(arm.now)
    arm.drive(0.7)
    arm.drive(0.8, linear=(0.1, 0.0, 0.0))
    assert arm.pilot.driver is Driver.HUMAN


def test_an_obstacle_keeps_the_hand_out_until_it_is_gone(widow) -> None:
    arm = widow()
    for _ in range(3):
        arm.grip((0.1, 0.0, 0.0))
        decision = arm.tick({"output": "not ready yet"})
        assert decision.driver is Driver.HOLD and decision.stop_reason == "not ready yet"
    arm.grip((0.1, 0.0, 0.0))
    assert arm.tick().driver is Driver.HUMAN
    with pytest.raises(HandoffRefused, match="another publisher"):
        widow().pilot.take_over({"arm_topic": "another publisher"})


# ---------------------------------------------------------------------- how long a hand counts


@pytest.mark.parametrize(("device", "holds_s"), [("joy", 0.25), ("twist", 0.2)])
def test_a_device_that_falls_silent_stops_the_arm(widow, device: str, holds_s: float) -> None:
    arm = widow()
    arm.drive(0.5, linear=(0.2, 0.0, 0.0), device=device)
    heard_s = arm.time_ns / 1e9 - TICK_S
    arm.run(2.0)
    moving_s = arm.times_s()[arm.speeds() > 0]
    full_s = arm.times_s()[arm.speeds() > 0.2 - 1e-9]
    assert full_s[-1] < heard_s + holds_s + 1e-6 <= full_s[-1] + TICK_S + 1e-6
    assert moving_s[-1] <= heard_s + holds_s + TICK_S + 0.2 / 2.5 + 1e-6, "one tick, and the ramp"
    assert arm.pilot.driver is Driver.HUMAN and arm.pilot.stop_reason == "the teleop went silent"


def test_letting_go_of_the_deadman_stops_at_the_next_tick(widow) -> None:
    arm = widow()
    arm.drive(0.5, linear=(0.2, 0.0, 0.0))
    arm.grip((0.2, 0.0, 0.0), deadman=False)
    before = len(arm.log)
    arm.run(1.0)
    assert arm.speeds()[before:before + 3] == pytest.approx([0.2 - 2.5 / 30, 0.2 - 5 / 30, 0.0], abs=1e-8)
    assert arm.pilot.stop_reason == "waiting for the human's hand"


def test_one_message_is_one_bounded_jog(widow) -> None:
    arm = widow()
    begun = arm.pose.position_m
    arm.grip((0.025, 0.0, 0.0), device="twist")
    arm.run(1.0)
    assert (arm.pose.position_m - begun)[0] == pytest.approx(0.025 * 0.2, abs=0.025 * TICK_S + 1e-6)


@pytest.mark.parametrize(("stamp_s", "frame", "numbers", "rule"), [
    (-0.3, "arm/base_link", 0.1, "teleop_age"), (0.3, "arm/base_link", 0.1, "teleop_age"), (-1.7e9, "arm/base_link", 0.1, "teleop_age"),
    (-0.05, "world", 0.1, "teleop_frame"), (-0.05, "", 0.1, "teleop_frame"), (-0.05, "arm/base_link", math.nan, "teleop_finite")])
def test_a_message_that_is_wrong_moves_nothing_and_is_counted(widow, stamp_s: float, frame: str, numbers: float, rule: str) -> None:
    arm = widow()
    arm.pilot.take_over()
    request = TeleopRequest(Twist(np.array([numbers, 0.0, 0.0]), np.zeros(3)), deadman=True)
    for _ in range(5):
        arm.pilot.teleop("twist", request, arm.now, arm.now.ros_ns + round(stamp_s * 1e9), frame)
        arm.tick()
        arm.time_ns += arm.period_ns
    assert not arm.speeds().any() and arm.pilot.counts[rule] == 5 and arm.pilot.stop_reason


def test_a_device_that_is_not_understood_moves_nothing(widow) -> None:
    arm = widow()
    arm.drive(0.2, linear=(0.1, 0.0, 0.0))
    arm.pilot.teleop("joy", TeleopRequest(fault="the joystick has 2 axes"), arm.now)
    arm.run(0.5)
    assert not arm.speeds()[-1] and arm.pilot.counts["teleop"] == 1


def test_the_device_that_moves_counts(widow) -> None:
    arm = widow()
    arm.pilot.teleop("joy", TeleopRequest(ZERO, deadman=False), arm.now)
    arm.drive(0.2, linear=(0.0, 0.1, 0.0), device="twist")
    assert arm.velocities()[-1][:2] == pytest.approx([0.0, 0.1])
    arm.grip((0.1, 0.0, 0.0), device="joy")
    arm.run(arm.time_ns / 1e9 + 3 * TICK_S)
    assert arm.velocities()[-1][:2] == pytest.approx([0.1, 0.0]), "the joystick goes before the stream"


# ---------------------------------------------------------------------- what the policy does meanwhile


def test_the_policys_proposal_is_told_while_a_human_drives(widow) -> None:
    arm = policy(widow())
    arm.pilot.take_over()
    now_s = arm.time_ns / 1e9
    arm.at(now_s, arm.chunk([0.01, 0.02], observed_s=now_s - 0.1))
    decision = arm.tick()
    assert decision.proposal is not None and decision.proposal.translation_m == pytest.approx([0.01, 0.02, 0.0]) and decision.intervention
    assert decision.step is None, "it is told, not played"
    arm.run(now_s + 0.45)
    assert arm.log[-1][1].proposal is not None
    arm.run(now_s + 0.6)
    assert arm.log[-1][1].proposal is None, "older than 0.6 s"
    for bad in (arm.chunk([math.nan], observed_s=now_s + 0.6), arm.chunk([0.01], observed_s=now_s + 0.6, frame_id="world"),
                arm.chunk(observed_s=now_s + 0.6)):
        arm.at(arm.time_ns / 1e9, bad)
        arm.run(arm.time_ns / 1e9 + 0.01)
        assert arm.log[-1][1].proposal is None


def test_the_humans_motion_is_recorded_in_steps(widow) -> None:
    arm = widow()
    arm.pilot.take_over()
    arm.run(0.1)
    begun = arm.log[-1][1].target.position_m
    arm.drive(0.7, linear=(0.3, 0.0, 0.0))
    end = arm.log[-1][1].target.position_m
    steps = [decision.step for _, decision in arm.log if decision.step is not None]
    assert len(steps) == 3 and {step.identity for step in steps} == {NOBODY}
    assert all(decision.notable and not decision.step_started for _, decision in arm.log if decision.step)
    assert steps[0].requested.translation_m == pytest.approx([0.05, 0, 0]), "0.3 m/s is more than the 0.25 m/s there are"
    assert 0.0 < steps[0].sent.translation_m[0] < 0.05 == pytest.approx(steps[1].sent.translation_m[0])
    assert sum(step.sent.translation_m[0] for step in steps) == pytest.approx(end[0] - begun[0], abs=1e-9)
    assert "speed" in steps[1].rules


def test_the_policy_comes_back_only_with_a_chunk_observed_after_the_switch(widow) -> None:
    arm = policy(widow())
    arm.drive(arm.time_ns / 1e9 + 0.3, linear=(-0.1, 0.0, 0.0))
    arm.drive(arm.time_ns / 1e9 + 0.3)
    switched_s = arm.time_ns / 1e9
    arm.pilot.resume(arm.now)
    assert arm.pilot.driver is Driver.POLICY
    arm.at(switched_s + 0.05, arm.chunk([0.05], observed_s=switched_s - 0.01))
    arm.run(switched_s + 0.2)
    assert arm.pilot.counts["before_switch"] == 1 and not arm.speeds()[-4:].any()
    arm.at(switched_s + 0.2, arm.chunk([0.05], observed_s=switched_s + 0.02))
    arm.run(switched_s + 0.3)
    assert arm.speeds()[-1] == pytest.approx(0.25)


# ---------------------------------------------------------------------- bumps


SWITCHES = {
    "POLICY to HUMAN by service": lambda arm: arm.pilot.take_over(),
    "POLICY to HUMAN by touch": lambda arm: arm.grip((-0.25, 0.0, 0.0), (0.0, 0.0, -1.25)),
    "POLICY to HOLD": lambda arm: arm.pilot.hold(),
    "HUMAN to HOLD": lambda arm: arm.pilot.hold(),
    "HUMAN to POLICY": lambda arm: arm.resume(),
}


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("rate_hz", [30.0, 100.0])
def test_the_bump_at_a_switch_is_within_the_profile(widow, name: str, rate_hz: float) -> None:
    """From full speed. The largest change of velocity from one tick to the next, and of the acceleration that it stands for."""
    arm = widow(rate_hz=rate_hz)
    if name.startswith("POLICY"):
        policy(arm)
    else:
        arm.drive(0.5, linear=(0.25, 0.0, 0.0), angular=(0.0, 0.0, 1.25))
        if name == "HUMAN to POLICY":
            arm.grip(deadman=False)
    speeds_before = arm.velocities()[-1]
    assert np.linalg.norm(speeds_before[:3]) == pytest.approx(0.25) and np.linalg.norm(speeds_before[3:]) == pytest.approx(1.25)
    first = len(arm.log) - 1
    SWITCHES[name](arm)
    arm.run(arm.time_ns / 1e9 + 0.5)
    velocities = arm.velocities()[first:]
    period_s = 1 / rate_hz
    accelerations = np.diff(velocities, axis=0) / period_s
    assert np.linalg.norm(accelerations[:, :3], axis=1).max() <= 2.5 + 1e-6
    assert np.linalg.norm(accelerations[:, 3:], axis=1).max() <= 12.0 + 1e-5
    changes = np.diff(np.vstack([np.zeros(6), accelerations]), axis=0)
    assert np.linalg.norm(changes[:, :3], axis=1).max() <= 2 * 2.5 + 1e-6
    if name.endswith("touch"):
        assert velocities[-1][:3] == pytest.approx([-0.25, 0, 0]) or arm.pilot.stop_reason, "and on into the other direction"
    else:
        assert not velocities[-1].any()
    kept = {decision.motion.gripper for _, decision in arm.log[first:] if decision.motion}
    assert len(kept) == 1, "the gripper is kept"


def test_a_target_that_the_arm_lost_is_not_jumped_to(widow) -> None:
    """The human pushed the arm by hand, torque off; whoever drives next starts where it is."""
    arm = policy(widow())
    arm.pilot.hold()
    arm.run(2.0)
    arm.joints = arm.reach(type(arm.pose)(arm.pose.position_m - [0.1, 0.05, 0.0], arm.pose.rotation), arm.joints)
    arm.run(2.1)
    measured = arm.pose.position_m
    arm.drive(2.3, linear=(0.0, 0.05, 0.0))
    targets = np.array([decision.target.position_m for _, decision in arm.log[-6:]])
    assert np.abs(targets[0] - measured).max() < 0.005 and np.linalg.norm(np.diff(targets, axis=0), axis=1).max() <= 0.05 / 30 + 1e-9
