"""Joint states: found by name, and refused for everything that makes them untrustworthy."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from openvla_ros.action.safety import Refusal
from openvla_ros.action.state import Measured, asleep, measure, strained
from openvla_ros.contract import RobotState
from openvla_ros.errors import StateError
from openvla_ros.robot import Arm, GripperProfile

NOW_NS = 1_700_000_000_000_000_000
JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
ARM = Arm(JOINTS, "wx250s/ee_gripper_link", effort=(800, 1000, 600, 600, 600, 700), sleep=(0.0, -1.80, 1.55, 0.0, 0.8, 0.0))
FINGER = GripperProfile("gripper", "left_finger", 0.010, 0.035, {})
SLEEP = (0.0, -1.80, 1.55, 0.0, 0.8, 0.0)


def state(names: tuple[str, ...] = JOINTS, positions: object = SLEEP, efforts: object = (), age_s: float = 0.01) -> RobotState:
    return RobotState(names, np.array(positions), np.zeros(0), np.array(efforts), NOW_NS - round(age_s * 1e9))


def seen(heard: RobotState | None, kinematics) -> Measured | Refusal:
    return measure(heard, ARM, FINGER, kinematics, NOW_NS, 0.25)


def test_the_arm_is_where_its_joints_say(kinematics) -> None:
    found = seen(state(), kinematics)
    assert isinstance(found, Measured)
    assert found.pose.position_m == pytest.approx([0.12265, 0.0, 0.08126], abs=1e-5)  # wx250s_kinematics.yaml: sleep
    assert found.opening is None and found.efforts.size == 0 and asleep(found, ARM) and strained(found, ARM) == ""
    assert not asleep(found, replace(ARM, sleep=())) and not asleep(replace(found, positions=np.array([0.2, *SLEEP[1:]])), ARM)


def test_joints_are_found_by_name_in_any_order_among_others(kinematics) -> None:
    names = ("left_finger", *reversed(JOINTS), "right_finger", "gripper")
    found = seen(state(names, [0.0225, *reversed(SLEEP), -0.0225, 9.9]), kinematics)
    assert isinstance(found, Measured)
    assert found.positions == pytest.approx(SLEEP) and found.opening == pytest.approx(0.5)
    unknown = seen(state(names, [math.nan, *reversed(SLEEP), -0.0225, 9.9]), kinematics)
    assert isinstance(unknown, Measured) and unknown.opening is None


@pytest.mark.parametrize(("heard", "words"), [
    (None, "no joint states came"),
    (state(age_s=0.26), r"0.260 s old, allowed -0.05 to 0.25 s"), (state(age_s=-0.06), "-0.060 s old"),
    (replace(state(), stamp_ns=0), "no stamp"),
    (state(JOINTS[:5], SLEEP[:5]), "lack wrist_rotate; they have waist"), (state((), ()), "they have no joints"),
    (state(positions=[*SLEEP[:5], math.nan]), "NaN"), (state(positions=[math.inf, *SLEEP[1:]]), "NaN or infinity"),
    (state(efforts=[math.nan] * 6), "NaN")])
def test_what_cannot_be_trusted(kinematics, heard: RobotState | None, words: str) -> None:
    refusal = seen(heard, kinematics)
    assert isinstance(refusal, Refusal) and refusal.rule == "joint_states" and re.search(words, refusal.reason)


def test_without_a_urdf_nothing_is_known() -> None:
    refusal = measure(state(), ARM, None, None, NOW_NS, 0.25)
    assert isinstance(refusal, Refusal) and refusal.rule == "robot_description"


def test_lists_of_different_length() -> None:
    with pytest.raises(StateError, match="6 names and 5 positions"):
        state(positions=SLEEP[:5])
    with pytest.raises(StateError, match="6 names and 2 efforts"):
        state(efforts=[1, 2])


@pytest.mark.parametrize(("efforts", "words"), [
    ([1370, 1710, 1030, 1030, 1030, 1200], ""), ([-1370, -1710, -1030, -1030, -1030, -1200], ""),
    ([1371, 0, 0, 0, 0, 0], "waist pushes with 1371, allowed 1370"), ([0, 0, -1031, 0, 0, 1201], "elbow .* 1031.*wrist_rotate .* 1201")])
def test_the_effort_of_bridgedata_times_one_point_seven_and_ten(kinematics, efforts: list[float], words: str) -> None:
    found = seen(state(efforts=efforts), kinematics)
    assert isinstance(found, Measured)
    said = strained(found, ARM)
    assert re.search(words, said) if words else said == ""
    assert strained(found, replace(ARM, effort=())) == ""
