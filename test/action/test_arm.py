"""The pilot with an arm that says where it is: target and lead, workspace, effort, start pose, joints."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from openvla_ros.action.command import Phase
from openvla_ros.action.handoff import Driver
from openvla_ros.action.pilot import Pilot, Settings
from openvla_ros.action.pose import distance, from_rpy
from openvla_ros.contract import Pose
from openvla_ros.errors import ConfigurationError, HandoffRefused
from openvla_ros.robot import Box

TICK_S = 1 / 30
BRIDGE_DOWN = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])  # D: Bridge rpy 0 in the frame of ee_gripper_link


def steady(arm, step: list[float], until_s: float):
    """One chunk each 0.2 s from now on."""
    begun_s = arm.time_ns / 1e9
    for number in range(math.ceil((until_s - begun_s) / 0.2)):
        arm.at(begun_s + 0.2 * number, arm.chunk(step, observed_s=max(begun_s, begun_s + 0.2 * number - 0.05)))
    arm.run(until_s)


# ---------------------------------------------------------------------- joint states


@pytest.mark.parametrize("driver", ["POLICY", "HUMAN", "start"])
def test_no_fresh_joint_states_no_motion(widow, driver: str) -> None:
    arm = widow()
    if driver == "POLICY":
        arm.resume()
        steady(arm, [0.02], 0.3)
    elif driver == "HUMAN":
        arm.drive(0.3, linear=(0.1, 0.0, 0.0))
    else:
        arm = widow(position_m=(0.2, 0.0, 0.1))
        arm.pilot.go_to_start()
        arm.run(0.3)
    assert arm.speeds()[-1] > 0.04
    lost_ns = arm.time_ns
    frozen = arm.state()
    arm.state = lambda: frozen
    before = len(arm.log)
    if driver == "HUMAN":
        arm.drive(1.0, linear=(0.1, 0.0, 0.0))
    else:
        steady(arm, [0.02], 1.0)
    assert arm.pilot.driver is Driver.HOLD and arm.pilot.fell and "joint states are" in arm.pilot.stop_reason
    assert arm.pilot.counts["joint_states"] == 1
    moving_s = [(time_ns - lost_ns) / 1e9 for (time_ns, _), speed in zip(arm.log[before:], arm.speeds()[before:], strict=True) if speed]
    assert moving_s[-1] < 0.25 + TICK_S + 0.1
    for refused in (lambda: arm.pilot.resume(arm.now), arm.pilot.take_over, arm.pilot.go_to_start):
        with pytest.raises(HandoffRefused, match="joint states are"):
            refused()


def test_before_the_first_look_nobody_may_drive(kinematics, widow) -> None:
    profile = widow().profile
    with pytest.raises(HandoffRefused, match="not looked at yet"):
        Pilot(profile, Settings(), kinematics).take_over()


# ---------------------------------------------------------------------- target


def test_deltas_are_integrated_on_what_was_sent(widow) -> None:
    """The wall takes half of the first step away; the next one starts at the wall, not where the first one wanted to be."""
    arm = widow(position_m=(0.44, 0.0, 0.1)).resume()
    arm.at(0.1, arm.chunk([0.02], observed_s=0.05))
    arm.at(0.3, arm.chunk([-0.02], observed_s=0.25))
    arm.run(1.0)
    assert arm.log[-1][1].target.position_m == pytest.approx([0.43, 0.0, 0.1], abs=1e-5)
    first = next(decision for _, decision in arm.log if decision.step_started)
    assert first.rules == ("workspace",) and first.step.sent.translation_m == pytest.approx([0.01, 0, 0], abs=1e-5)
    assert arm.pilot.counts["workspace"] == 1


def test_a_step_ends_at_rz_ry_rx_about_base_axes(widow) -> None:
    arm = widow().resume()
    begun = arm.pose
    step = [0.01, -0.02, 0.015, 0.1, -0.15, 0.12]
    arm.at(0.1, arm.chunk(step, observed_s=0.05))
    arm.run(0.6)
    end = arm.log[-1][1].target
    assert end.rotation == pytest.approx(Rotation.from_euler("xyz", step[3:]).as_matrix() @ begun.rotation, abs=1e-12)
    assert end.position_m == pytest.approx(begun.position_m + step[:3], abs=1e-12)


def test_the_pivot_differs_from_the_bridge_robot_by_what_design_says(widow) -> None:
    """There p_new = c + d + Rd (p_t - c) about the measured c; here p_t + d. The difference is (Rd - I)(p_t - c), at most
    0.25 rad times the lead of 0.06 m."""
    arm = widow().resume()
    arm.delay_ticks = 6  # 0.2 s behind, as a real one
    steady(arm, [0.02, 0.0, 0.0, 0.0, 0.0, 0.2], 0.7)
    decision = arm.log[-1][1]
    turn = Rotation.from_euler("xyz", [0.0, 0.0, 0.2]).as_matrix()
    ours, measured = decision.target.position_m, decision.measured.position_m
    delta = np.array([0.02, 0.0, 0.0])
    theirs = measured + delta + turn @ (ours - measured)
    assert theirs - (ours + delta) == pytest.approx((turn - np.eye(3)) @ (ours - measured), abs=1e-15)
    assert 1e-3 < np.linalg.norm(theirs - ours - delta) < 0.25 * 0.06


@pytest.mark.shared
@pytest.mark.parametrize("episode", ["bridge_v2_broccoli_640x480", "bridge_v2_cloth_640x480_db3", "bridge_v2_pot_640x480_raw"])
@pytest.mark.parametrize("output", ["servo_twist", "interbotix"])
def test_bridge_episodes_reproduce_the_recorded_poses(widow, shared: Path, episode: str, output: str) -> None:
    """The target after each step against the recorded pose: 1e-5 m, and as far in rotation as labels that are Euler differences allow."""
    record = json.loads((shared / "data" / "bags" / episode / "episode.json").read_text())
    recorded = [Pose(row[:3], Rotation.from_euler("xyz", row[3:6]).as_matrix() @ BRIDGE_DOWN) for row in np.array(record["ee_xyz_rpy"])]
    arm = widow(rate_hz=25.0)
    arm = widow(profile=arm.profile.through(output), rate_hz=25.0)
    arm.joints = arm.reach(recorded[0], arm.joints)
    arm.run(0.1)
    arm.resume()
    begun_s = arm.time_ns / 1e9
    for k, action in enumerate(np.array(record["action7"])):
        arm.at(begun_s + 0.2 * k, arm.chunk(action.tolist(), observed_s=max(begun_s, begun_s + 0.2 * k - 0.1)))
    arm.run(begun_s + 0.2 * len(record["action7"]) + 0.3)
    assert arm.pilot.counts["steps"] == len(record["action7"]), arm.pilot.stop_reason
    acted = set(arm.pilot.counts) - {"chunks", "steps", "gripper", "gripper_rate"}
    assert not acted, "no rule makes less of what the real robot did"
    starts = [index for index, (_, decision) in enumerate(arm.log) if decision.step_started]
    apart = [distance(arm.log[start + 4][1].target, pose) for start, pose in zip(starts, recorded[1:], strict=True)]  # 5 ticks of 0.04 s
    offset = distance(arm.log[starts[0]][1].measured, recorded[0])  # the inverse kinematics that placed the arm
    assert max(metres for metres, _ in apart) < 1e-5 + offset[0]
    assert 1e-4 < max(radians for _, radians in apart) < 0.06


def test_bridge_default_rotation_only_converts() -> None:
    """Bridge's default reset state is the profile's start pose `bridge`."""
    assert from_rpy(np.zeros(3), np.array([0.0, math.pi / 2, 0.0])).rotation == pytest.approx(BRIDGE_DOWN, abs=1e-12)


def test_a_sagging_arm_does_not_ratchet_down(widow) -> None:
    """3 cm below its target, the next driver goes on from the target; 8 cm below, from where the arm is."""
    arm = widow().resume()
    steady(arm, [0.01], 1.0)
    arm.run(1.5)
    sent = arm.log[-1][1].target
    arm.blocked = True
    for sag_m, starts_m in ((0.03, sent.position_m[2]), (0.08, sent.position_m[2] - 0.08)):
        arm.pilot.hold()
        arm.joints = arm.reach(Pose(sent.position_m - [0.0, 0.0, sag_m], sent.rotation), arm.joints)
        arm.run(arm.time_ns / 1e9 + 0.2)
        arm.pilot.take_over()
        assert arm.tick().target.position_m[2] == pytest.approx(starts_m, abs=1e-5)


# ---------------------------------------------------------------------- lead


def test_an_arm_that_does_not_follow_is_given_up_after_a_second(widow) -> None:
    arm = widow().resume()
    arm.blocked = True
    steady(arm, [0.02], 3.0)
    leads = np.array([distance(decision.target, decision.measured)[0] for _, decision in arm.log if decision.target])
    assert leads.max() == pytest.approx(0.06, abs=1e-6)
    reached_s = arm.times_s()[-len(leads):][np.argmax(leads >= 0.99 * 0.06)]
    fell_s = next(time_ns / 1e9 for time_ns, decision in arm.log if decision.driver is Driver.HOLD and time_ns > 1e8)
    assert fell_s - reached_s == pytest.approx(1.0, abs=2 * TICK_S)
    assert "does not follow" in arm.pilot.stop_reason and arm.pilot.fell
    assert arm.pilot.counts["lead"] >= 1 and arm.pilot.counts["not_following"] == 1


def test_an_arm_that_turns_too_slowly_is_given_up_too(widow) -> None:
    arm = widow().resume()
    arm.blocked = True
    steady(arm, [0.0, 0.0, 0.0, 0.0, 0.0, 0.1], 3.0)
    leads = [distance(decision.target, decision.measured)[1] for _, decision in arm.log if decision.target]
    assert max(leads) == pytest.approx(0.3, abs=1e-5)
    assert "does not follow" in arm.pilot.stop_reason


def test_an_arm_that_lags_by_a_step_is_fine(widow) -> None:
    arm = widow(position_m=(0.12, 0.0, 0.15)).resume()
    arm.delay_ticks = 6
    steady(arm, [0.05], 1.2)
    assert arm.pilot.driver is Driver.POLICY and arm.pilot.counts["not_following"] == 0


def test_a_dry_run_starts_each_step_where_the_arm_is(widow) -> None:
    arm = widow(dry_run=True).resume()
    arm.blocked = True
    steady(arm, [0.04], 3.0)
    assert arm.pilot.driver is Driver.POLICY and arm.pilot.counts["steps"] == 15 and arm.pilot.counts["lead"] == 0
    sent = [decision.step.sent.translation_m[0] for _, decision in arm.log if decision.step_started]
    assert sent == pytest.approx([0.04] * 15)


# ---------------------------------------------------------------------- workspace


def test_outside_the_box_the_policy_is_refused_and_a_human_leads_back_at_half_speed(widow) -> None:
    arm = widow(position_m=(0.3, 0.0, -0.03))
    with pytest.raises(HandoffRefused, match=r"outside the workspace: z is -0.030 m, allowed -0.01 to 0.3"):
        arm.pilot.resume(arm.now)
    arm.drive(0.3, linear=(0.2, 0.0, -0.2))
    assert arm.pilot.driver is Driver.HUMAN and not arm.speeds().any() and arm.pilot.counts["workspace"] == 1
    before = len(arm.log)
    arm.drive(0.6, linear=(0.2, 0.0, 0.25))
    velocities = arm.velocities()[before:]
    outside = np.array([decision.target.position_m[2] < -0.01 for _, decision in arm.log[before:]])
    assert velocities[outside, 2].max() == pytest.approx(0.125) and not velocities[outside][:-1, 0].any()
    arm.run(1.0)
    arm.pilot.resume(arm.now)
    assert arm.pilot.driver is Driver.POLICY


@pytest.mark.parametrize("direction", [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, -1), (0.6, 0.8, 0)])
def test_no_hand_and_no_policy_leaves_the_box(widow, direction: tuple[float, float, float]) -> None:
    for by_hand in (True, False):
        arm = widow()
        if by_hand:
            arm.drive(3.0, linear=tuple(0.25 * np.array(direction)))
        else:
            arm.resume()
            steady(arm, [*(0.05 * np.array(direction))], 3.0)
        targets = np.array([decision.target.position_m for _, decision in arm.log if decision.target is not None])
        assert (targets >= np.array([0.1, -0.2, -0.01]) - 1e-9).all() and (targets <= np.array([0.45, 0.25, 0.3]) + 1e-9).all()
        assert arm.pilot.counts["workspace"] >= 1


# ---------------------------------------------------------------------- gripper


def openings(arm) -> np.ndarray:
    return np.array([decision.motion.gripper if decision.motion else np.nan for _, decision in arm.log])


def test_the_gripper_moves_at_two_per_second_and_only_while_a_step_plays(widow) -> None:
    arm = widow().resume()
    arm.at(0.1, arm.chunk([0.001, 0, 0, 0, 0, 0, 0.0], observed_s=0.1))
    arm.run(0.6)
    sent = openings(arm)
    assert np.abs(np.diff(sent[~np.isnan(sent)])).max() == pytest.approx(2.0 / 30)
    first = next(decision for _, decision in arm.log if decision.step_started)
    assert first.step.requested.gripper == 0.0 and first.step.sent.gripper == pytest.approx(0.6) and first.rules == ("gripper_rate",)
    kept = sent[~np.isnan(sent)][-1]
    assert 0.4 < kept < 0.7, "one step of 0.2 s closes it by 0.4, and then it is kept"
    arm.run(2.5)  # expiry, and HOLD after it
    assert arm.pilot.driver is Driver.HOLD
    said = openings(arm)
    assert said[~np.isnan(said)][-1] == kept


@pytest.mark.parametrize("stop", ["hold", "emergency", "take_over", "zero steps"])
def test_every_stop_and_switch_keeps_the_gripper(widow, stop: str) -> None:
    arm = widow().resume()
    arm.at(0.1, arm.chunk(*[[0.01, 0, 0, 0, 0, 0, 0.0]] * 5, observed_s=0.1))
    arm.run(0.2)
    before = arm.log[-1][1].motion.gripper
    if stop == "zero steps":
        arm.at(0.2, arm.chunk(observed_s=0.15))
    else:
        {"hold": arm.pilot.hold, "take_over": arm.pilot.take_over, "emergency": lambda: arm.pilot.emergency_stop("x")}[stop]()
    index = len(arm.log)
    arm.run(1.0)
    kept = openings(arm)[index:]
    assert set(kept[~np.isnan(kept)]) == {before} and 0.0 < before < 1.0


def test_a_human_moves_the_gripper_alone(widow) -> None:
    arm = widow()
    arm.grip(gripper=1.0, device="gripper")
    arm.run(1.0)
    assert arm.pilot.driver is Driver.HUMAN and arm.finger_m == pytest.approx(0.035)
    assert not arm.speeds().any()
    arm.grip(gripper=math.nan, device="gripper")
    arm.run(1.2)
    assert arm.finger_m == pytest.approx(0.035) and arm.pilot.counts["teleop_finite"] == 1


# ---------------------------------------------------------------------- effort


def test_an_arm_that_pushes_too_hard_stops_at_once_and_lets_go(widow) -> None:
    arm = widow().resume()
    arm.delay_ticks = 4
    steady(arm, [0.04], 0.5)
    opening = arm.log[-1][1].motion.gripper
    arm.efforts = np.array([0, 0, 0, 0, 1031, 0, 0])  # the elbow, backwards behind the finger
    decision = arm.tick()
    assert decision.driver is Driver.HOLD and decision.refused == ("effort",) and not decision.twist.moving
    assert "elbow pushes with 1031, allowed 1030" in decision.stop_reason
    assert distance(decision.target, decision.measured)[0] == 0.0 and decision.motion.gripper == opening
    with pytest.raises(HandoffRefused, match="still pushes too hard"):
        arm.pilot.resume(arm.now)
    arm.drive(arm.time_ns / 1e9 + 0.3, linear=(-0.1, 0.0, 0.0))
    assert arm.pilot.driver is Driver.HUMAN and arm.speeds()[-1] == pytest.approx(0.1), "a human leads it out"
    arm.efforts = np.zeros(7)
    arm.run(arm.time_ns / 1e9 + 0.5)
    arm.pilot.resume(arm.now)
    assert arm.pilot.driver is Driver.POLICY and arm.pilot.counts["effort"] == 1


# ---------------------------------------------------------------------- go_to_start


@pytest.mark.parametrize("output", ["servo_twist", "interbotix"])
@pytest.mark.parametrize("name", ["bridge", "openvla"])
def test_from_the_sleep_pose_to_the_start_pose(widow, output: str, name: str) -> None:
    arm = widow(profile=widow().profile.through(output), start_pose=name)
    arm.joints = np.array([0.0, -1.80, 1.55, 0.0, 0.8, 0.0])
    arm.run(0.1)
    assert arm.pilot.warnings == ("the arm lies in its sleep pose. Call go_to_start before a policy drives.",)
    assert arm.pilot.go_to_start() == name
    arm.run(15.0)
    assert arm.pilot.stop_reason == f"at the start pose '{name}'" and arm.pilot.driver is Driver.HOLD and not arm.pilot.warnings
    numbers = np.array(arm.profile.arm.start_poses[name])
    apart_m, apart_rad = distance(arm.pose, from_rpy(numbers[:3], numbers[3:]))
    assert apart_m < 2e-4 and apart_rad < 2e-3
    speeds = arm.velocities()
    assert np.linalg.norm(speeds[:, :3], axis=1).max() <= 0.0505 and np.linalg.norm(speeds[:, 3:], axis=1).max() <= 0.2525
    assert arm.log[-1][1].motion is None, "silence when it is there"


def test_the_way_to_the_start_pose_ends_with_any_choice_or_stop(widow) -> None:
    endings = {"hold": lambda arm: arm.pilot.hold(), "resume": lambda arm: arm.resume(), "take_over": lambda arm: arm.pilot.take_over(),
               "emergency": lambda arm: arm.pilot.emergency_stop("x"), "hand": lambda arm: arm.grip((0.0, 0.0, 0.05)),
               "obstacle": lambda arm: arm.tick({"arm_topic": "another publisher"}), "clock": lambda arm: arm.pilot.halt("still")}
    for ending, act in endings.items():
        arm = widow(position_m=(0.2, 0.1, 0.2))
        arm.pilot.go_to_start()
        arm.run(1.0)
        assert arm.speeds()[-1] == pytest.approx(0.05, rel=0.01), ending
        act(arm)
        arm.run(3.0)
        assert not arm.speeds()[-1] and arm.pose.position_m[0] < 0.28, ending
    with pytest.raises(HandoffRefused, match="HUMAN: go_to_start works in HOLD only"):
        driven = widow()
        driven.pilot.take_over()
        driven.pilot.go_to_start()
    with pytest.raises(ConfigurationError, match="start_pose 'home' is unknown; this profile has bridge, openvla"):
        widow(start_pose="home")


def test_a_way_that_is_blocked_is_given_up(widow) -> None:
    arm = widow(position_m=(0.2, 0.0, 0.15))
    arm.pilot.go_to_start()
    arm.blocked = True
    arm.run(5.0)
    assert "does not follow" in arm.pilot.stop_reason and arm.pilot.fell
    limits = replace(arm.profile.limits, box=Box((0.1, 0.25), (-0.2, 0.25), (-0.01, 0.3)))
    walled = widow(position_m=(0.2, 0.0, 0.15), profile=replace(arm.profile, limits=limits))
    walled.pilot.go_to_start()
    walled.run(5.0)
    assert walled.pilot.stop_reason == "the way to the start pose is blocked: workspace"


# ---------------------------------------------------------------------- enable, warnings


def test_without_the_enable_heartbeat_nobody_drives(widow) -> None:
    arm = widow(require_enable=True)
    with pytest.raises(HandoffRefused, match="enable heartbeat is missing"):
        arm.pilot.take_over()
    arm.pilot.enable(True, arm.now)
    arm.run(0.2)
    arm.pilot.resume(arm.now)
    arm.at(arm.time_ns / 1e9, arm.chunk(*[[0.02]] * 10, observed_s=arm.time_ns / 1e9))
    enabled_s = 0.0
    arm.run(1.0)
    fell_s = next(time_ns / 1e9 for time_ns, decision in arm.log if decision.stop_reason.startswith("the enable heartbeat"))
    assert enabled_s + 0.5 < fell_s <= enabled_s + 0.5 + 3 * TICK_S and arm.pilot.driver is Driver.HOLD
    arm.pilot.enable(True, arm.now)
    arm.pilot.enable(False, arm.now)
    arm.tick()
    with pytest.raises(HandoffRefused, match="enable"):
        arm.pilot.take_over()


@pytest.mark.parametrize(("step", "words"), [
    ([0.0005, 0.0, 0.0, 0.001], "moved nothing"), ([0.0, 0.002, 0.0], "all the same")])
def test_a_policy_that_means_nothing_any_more_is_noticed(widow, step: list[float], words: str) -> None:
    arm = widow(stuck_after=5).resume()
    steady(arm, step, 0.8)
    assert not arm.pilot.warnings
    steady(arm, step, 1.3)
    assert words in arm.pilot.warnings[0] and arm.pilot.driver is Driver.POLICY


def test_different_steps_are_no_reason_to_worry(widow) -> None:
    arm = widow(stuck_after=3).resume()
    for number in range(10):
        arm.at(0.2 * number, arm.chunk([0.002 + 0.001 * (number % 2)], observed_s=max(0.0, 0.2 * number - 0.05)))
    arm.run(2.0)
    assert not arm.pilot.warnings


# ---------------------------------------------------------------------- joints


def test_joints_follow_the_target_and_never_jump(widow) -> None:
    arm = widow(profile=widow().profile.through("interbotix")).resume()
    steady(arm, [0.01, 0.02, -0.005, 0.05, 0.0, 0.1], 1.5)
    joints = np.array([decision.motion.joints for _, decision in arm.log if decision.motion])
    assert len(joints) > 30 and np.abs(np.diff(joints, axis=0)).max() <= 3.1416 / 30
    for _, decision in arm.log:
        if decision.motion is not None:
            assert distance(arm.kinematics.forward(decision.motion.joints), decision.motion.target) == pytest.approx((0, 0), abs=2e-5)


def test_what_the_joints_cannot_reach_is_not_moved_to(widow) -> None:
    profile = widow().profile.through("interbotix")
    wide = replace(profile, limits=replace(profile.limits, box=Box((0.1, 1.0), (-0.2, 0.25), (-0.01, 0.3))))
    arm = widow(profile=wide)
    arm.drive(4.0, linear=(0.2, 0.0, 0.0))
    refusals = {rule for rule in arm.pilot.counts if rule in ("reach", "joint_limit", "joint_step", "singularity")}
    assert refusals and arm.pilot.driver is Driver.HUMAN
    joints = np.array([decision.motion.joints for _, decision in arm.log if decision.motion])
    assert np.abs(np.diff(joints, axis=0)).max() <= 3.1416 / 30
    lower, upper = arm.kinematics.limits.lower, arm.kinematics.limits.upper
    assert (joints >= lower).all() and (joints <= upper).all()
    arm.drive(5.0, linear=(-0.1, 0.0, 0.0))
    assert arm.speeds()[-1] == pytest.approx(0.1), "the way back is open"


@pytest.mark.parametrize("driver", ["POLICY", "HUMAN"])
def test_an_arm_that_was_led_to_its_full_stretch_comes_back(widow, driver: str) -> None:
    """Whoever led it there: from a stretched arm even the way back needs joints that turn too fast, so it begins slowly."""
    arm = widow(position_m=(0.4124, -0.1216, 0.2142), profile=widow().profile.through("interbotix"))
    begun_m = arm.pose.position_m
    if driver == "POLICY":
        arm.resume()
        steady(arm, [-0.0166, 0.0214, -0.0171], 2.0)
    else:
        arm.drive(2.0, linear=(-0.083, 0.107, -0.085))
    assert {"joint_step", "singularity"} & set(arm.pilot.counts), "the place was to be one where it cannot go at full speed at once"
    assert np.linalg.norm(arm.log[-1][1].target.position_m - begun_m) > 0.2
    joints = np.array([decision.motion.joints for _, decision in arm.log if decision.motion])
    assert np.abs(np.diff(joints, axis=0)).max() <= 3.1416 / 30 + 1e-9


def test_a_trajectory_is_told_the_way_to_the_end_of_the_step(widow) -> None:
    profile = widow().profile
    outputs = {**profile.outputs, "trajectory": profile.outputs["interbotix"]}
    arm = widow(profile=replace(profile, outputs=outputs, output="trajectory"), rate_hz=25.0).resume()
    arm.at(0.08, arm.chunk([0.04], observed_s=0.05))
    arm.run(0.6)
    first = next(decision for _, decision in arm.log if decision.step_started)
    times = [time_s for time_s, _ in first.motion.ahead]
    assert times[0] == pytest.approx(0.04) and times[-1] == pytest.approx(0.2) and np.diff(times).min() >= 0.05 - 1e-9
    end = arm.kinematics.forward(first.motion.ahead[-1][1])
    assert end.position_m == pytest.approx(first.measured.position_m + np.array([0.04, 0, 0]), abs=2e-5)
    assert arm.log[-1][1].motion.ahead == ()


# ---------------------------------------------------------------------- any input

ANY = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)
CHUNK = st.tuples(st.just("chunk"), st.lists(ANY, min_size=7, max_size=7), st.integers(-100, 700))
HAND = st.tuples(st.just("hand"), st.lists(ANY, min_size=6, max_size=6), st.one_of(st.none(), ANY))
EVENT = st.tuples(st.sampled_from(["resume", "take_over", "hold", "start", "stop", "reset", "blind"]), st.none(), st.none())


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(CHUNK, HAND, EVENT, st.none()), min_size=5, max_size=40), st.booleans())
def test_whoever_asks_the_arm_gets_what_is_inside_every_limit(kinematics, widow_kind, inputs: list[object], preempt: bool) -> None:
    arm = widow_kind(kinematics, preempt=preempt)
    arm.blocked = True
    for item in inputs:
        kind, numbers, extra = item or ("", None, None)  # type: ignore[misc]
        try:
            if kind == "chunk":
                arm.at(arm.time_ns / 1e9, arm.chunk(numbers, observed_s=arm.time_ns / 1e9 - extra / 1000))
            elif kind == "hand":
                arm.grip(numbers[:3], numbers[3:], extra)
            elif kind == "blind":
                arm.stamp_lag_ns = 10**9 - arm.stamp_lag_ns
            elif kind:
                {"resume": lambda: arm.pilot.resume(arm.now), "take_over": arm.pilot.take_over, "hold": arm.pilot.hold,
                 "start": arm.pilot.go_to_start, "stop": lambda: arm.pilot.emergency_stop("x"),
                 "reset": lambda: arm.pilot.reset(False)}[kind]()
        except HandoffRefused:
            pass
        before = arm.velocities()[-1]
        arm.run(arm.time_ns / 1e9 + 1e-6)
        decision, after = arm.log[-1][1], arm.velocities()[-1]
        assert np.linalg.norm(after[:3]) <= 0.25 * (1 + 1e-8) and np.linalg.norm(after[3:]) <= 1.25 * (1 + 1e-8)
        for part, most in ((slice(0, 3), 0.5), (slice(3, 6), 2.4)):
            slower = np.linalg.norm(after[part]) <= np.linalg.norm(before[part]) + 1e-9
            assert slower or np.linalg.norm(after[part] - before[part]) <= (most if decision.driver is Driver.POLICY else most / 6) + 1e-9
        if decision.motion is None:
            continue
        assert decision.motion.gripper is None or 0.0 <= decision.motion.gripper <= 1.0
        assert decision.motion.phase is not Phase.MOVING or decision.driver is not Driver.STOPPED
        if decision.target is not None:
            assert (decision.target.position_m >= np.array([0.1, -0.2, -0.01]) - 1e-8).all()
            assert (decision.target.position_m <= np.array([0.45, 0.25, 0.3]) + 1e-8).all()
            apart_m, apart_rad = distance(decision.target, arm.pose)
            assert apart_m <= 0.06 + 0.0126 + 1e-6 and apart_rad <= 0.3 + 0.066 + 1e-6  # and a soft stop without fresh joint states


# ---------------------------------------------------------------------- ticks that are not on time


@pytest.mark.parametrize("output", ["servo_twist", "interbotix"])
@pytest.mark.parametrize("seed", range(3))
def test_the_target_is_where_the_held_twists_lead(widow, output: str, seed: int) -> None:
    """Late and early ticks neither lose nor add way: the target is the integral of what was sent, each until the next."""
    draw = np.random.default_rng(seed)
    arm = widow(profile=widow().profile.through(output), max_observation_age_s=5.0).resume()
    begun = arm.pose.position_m
    arm.at(0.1, arm.chunk(*[[0.01, 0.0, 0.005]] * 5, observed_s=0.05))
    arm.run(0.1 + 1.0 + 0.2, jitter=lambda: int(draw.integers(-8_000_000, 8_000_000)))
    end = arm.log[-1][1].target.position_m
    assert np.abs(end - begun - [0.05, 0.0, 0.025]).max() <= 0.056 * 2 * 0.008, "only where motion ends can a tick be held too long"
    moved = arm.path()[-1, :3]
    assert np.abs(end - begun - moved).max() <= 0.056 * 2 * 0.008


def test_a_tick_between_ticks_moves_nothing_twice(widow) -> None:
    """The node ticks at once when a service is called."""
    arm = widow().resume()
    begun = arm.pose.position_m[0]
    arm.at(0.1, arm.chunk([0.04], observed_s=0.05))
    arm.run(0.2)
    for _ in range(5):
        arm.time_ns += 2_000_000
        arm.tick()
    arm.run(0.6)
    assert arm.log[-1][1].target.position_m[0] - begun == pytest.approx(0.04, abs=0.2 * 0.034)
    assert arm.log[-1][1].target.position_m[0] - begun == pytest.approx(arm.path()[-1, 0], abs=0.2 * 0.034)
