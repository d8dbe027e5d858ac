"""Robot profiles: those that are shipped, and everything that is refused."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from openvla_ros.errors import ConfigurationError
from openvla_ros.robot import LIMIT_RANGES, Arm, Box, Limits, from_mapping
from openvla_ros.ros.profile import read_robot

WIDOWX = Limits(0.05, 0.25, 0.25, 1.25, 2.5, 12.0, 0.06, 0.3, Box((0.1, 0.45), (-0.2, 0.25), (-0.01, 0.3)))
GOOD: dict[str, Any] = {
    "name": "arm", "real": True, "output": "servo_twist",
    "arm": {"joints": ["one", "two"], "ee_link": "arm/hand", "effort": [800, 1000], "sleep": [0, -1.8],
            "start_poses": {"table": [0.3, 0, 0.15, 0, 1.57, 0]}},
    "outputs": {"servo_twist": {"command_topic": "delta_twist_cmds", "gripper": "joint_trajectory"},
                "interbotix": {"command_topic": "commands/joint_group", "gripper": "none", "group": "arm"}},
    "grippers": {"joint_trajectory": {"command_topic": "gripper/joint_trajectory", "joint": "left_finger", "closed": 0.01, "open": 0.035,
                                      "move_s": 0.3}},
    "limits": {"max_step_m": 0.05, "max_step_rad": 0.25, "max_speed_m_s": 0.25, "max_speed_rad_s": 1.25, "max_acceleration_m_s2": 2.5,
               "max_acceleration_rad_s2": 12, "max_lead_m": 0.06, "max_lead_rad": 0.3,
               "box": {"x": [0.1, 0.45], "y": [-0.2, 0.25], "z": [-0.01, 0.3]}},
}


def changed(path: str, value: object) -> dict[str, Any]:
    """GOOD with one value replaced; DROP leaves it out."""
    mapping = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    place = mapping
    for parent in parents:
        place = place[parent]
    if value is DROP:
        del place[last]
    else:
        place[last] = value
    return mapping


DROP = object()


def test_a_good_mapping() -> None:
    profile = from_mapping(GOOD, "arm.yaml")
    assert profile.base_frame == "arm/base_link" and profile.limits == WIDOWX
    assert profile.limits.shortest_step_s == pytest.approx(0.2)
    assert profile.limits.longest_ramp_s == pytest.approx(1.25 / 12)
    assert profile.arm == Arm(("one", "two"), "arm/hand", "", (800, 1000), (0, -1.8), {"table": (0.3, 0, 0.15, 0, 1.57, 0)})
    assert profile.command_topic == "delta_twist_cmds" and profile.gripper is profile.grippers["joint_trajectory"]
    assert profile.gripper.settings == {"move_s": 0.3}
    assert [profile.gripper.opening(position) for position in (0.0, 0.0225, 0.036)] == pytest.approx([0.0, 0.5, 1.0])


def test_another_output_of_the_same_robot() -> None:
    profile = from_mapping(GOOD, "arm.yaml").through("interbotix")
    assert profile.command_topic == "commands/joint_group" and profile.gripper is None
    assert profile.outputs["interbotix"].settings == {"group": "arm"}
    with pytest.raises(ConfigurationError, match="output 'servo_pose' is not described in this profile, expected one of servo_twist"):
        profile.through("servo_pose")


WRONG = [
    ("nmae", "x", r"arm.yaml: profile has unknown keys \['nmae'\]"),
    ("name", None, "name"), ("name", "two words", "two words"), ("real", "yes", "true or false"), ("base_frame", "", "base_frame"),
    ("output", "joint", "output 'joint' is not described"), ("outputs", {}, "expected one of none"),
    ("outputs", None, "outputs is NoneType"),
    ("outputs.velocity", GOOD["outputs"]["interbotix"], r"'outputs' has \['velocity'\], expected some of interbotix"),
    ("outputs.servo_twist.command_topic", 3, "command_topic"),
    ("outputs.servo_twist.gripper", "pneumatic", "one of joint_trajectory"),
    ("outputs.servo_twist.gripper", "interbotix_single", "not described under 'grippers'"),
    ("grippers.joint_trajectory.closed", 0.035, "two different positions"),
    ("grippers.joint_trajectory.open", math.nan, "2 numbers"),
    ("grippers.joint_trajectory.joint", "", "joint"),
    ("arm", "none", r"'arm' is none.*Describe its joints"), ("arm", None, "arm is NoneType"), ("arm.joints", "one", "list"),
    ("arm.joints", ["one", "one"], "different"), ("arm.effort", [1], "2 numbers"), ("arm.effort", [0, 1], "above 0"),
    ("arm.sleep", [0, math.nan], "2 numbers"), ("arm.start_poses", {"x": [1, 2]}, "start pose 'x'.*6 numbers"),
    ("arm.ee_link", "", "ee_link"), ("arm.urfd", "", r"unknown keys \['urfd"),
    ("limits", None, "limits is NoneType, expected a mapping"), ("limits", {"box": {}}, r"lacks \['max_step_m'"),
    ("limits.box", None, "box is NoneType"), ("limits.box.z", [0.3, -0.01], "higher face"),
    ("limits.box.z", [-0.01, math.inf], "2 numbers"), ("limits.box.z", [-0.01, 1e9], "between -2 and 2 m"),
    ("limits.box.z", [-5, 5], "between -2 and 2 m"), ("limits.box.z", "unlimited", "2 numbers"),
    ("limits.box.z", [-0.01, 10**400], "2 numbers"),
    ("limits.max_acceleration_m_s2", 1.0, r"step of 0.05 m in 0.2 s starts from rest with 1.25 m/s\^2, allowed are 1"),
    ("limits.max_acceleration_rad_s2", 1.0, "step of 0.25 rad"),
]


WRONG += [(f"arm.{key}", value, f"arm key '{key}' is ") for key in ("effort", "sleep", "start_poses", "joints")
          for value in (None, "", [], {}, 0, 5, False, "none", math.nan)]
WRONG += [(f"arm.{key}", [0.1, value], f"arm key '{key}' is ") for key in ("effort", "sleep", "joints")
          for value in (None, "", [], {}, False, math.nan, math.inf, 10**400)]
WRONG += [("arm.start_poses", {"x": value}, "start pose 'x' is ") for value in
          (None, "", 5, [], {}, [0.3, 0, 0.15, 0, 1.57, math.nan], [0.3, 0, 0.15, 0, 1.57, None], [0.3, 0, 0.15, 0, 1.57, True])]
WRONG += [
    ("arm.effort", [800, 1e9], "at most 5000"), ("arm.effort", [800, -1], "above 0"),
    ("arm.sleep", [0, -103], "'sleep' has 0, -103, expected .* rad"),
    ("arm.start_poses", {"x": [300, 0, 150, 0, 1.57, 0]}, "start pose 'x' has 300, 0, 150, expected -2 to 2 m"),
    ("arm.start_poses", {"x": [0.3, 0, 0.15, 0, 90, 0]}, "start pose 'x' has 0, 90, 0, expected .* rad"),
    ("arm.start_poses", {None: [0.3, 0, 0.15, 0, 1.57, 0]}, "expected names"),
    ("output", ["servo_twist"], r"output \['servo_twist'\] is not described"), ("output", {}, "is not described"),
    ("outputs.servo_twist.gripper", ["none"], "one of joint_trajectory"),
    ("grippers.joint_trajectory.open", 37, "has 0.01, 37, expected 0 to 0.2 m"),
    ("grippers.joint_trajectory.closed", -0.01, "has -0.01, 0.035, expected 0 to 0.2 m"),
]


@pytest.mark.parametrize(("path", "value", "words"), WRONG)
def test_a_wrong_profile_is_refused(path: str, value: object, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        from_mapping(changed(path, value), "arm.yaml")


@pytest.mark.parametrize("path", ["name", "real", "output", "outputs", "limits", "arm", "limits.box", "limits.max_lead_m", "arm.joints",
                                  "outputs.servo_twist.command_topic", "outputs.servo_twist.gripper", "grippers.joint_trajectory.joint"])
def test_a_missing_key_is_refused(path: str) -> None:
    with pytest.raises(ConfigurationError, match=f"lacks \\['{path.rpartition('.')[2]}'\\]"):
        from_mapping(changed(path, DROP), "arm.yaml")


@pytest.mark.parametrize("name", LIMIT_RANGES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0, -1, 1e9, "0.05", None, True, "unlimited"])
def test_no_limit_can_be_lifted(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=f"limit '{name}' is .*expected a number from"):
        from_mapping(changed(f"limits.{name}", value), "arm.yaml")


def test_what_is_left_out_of_an_arm_is_none() -> None:
    mapping = copy.deepcopy(GOOD)
    for key in ("effort", "sleep", "start_poses"):
        del mapping["arm"][key]
    arm = from_mapping(mapping, "arm.yaml").arm
    assert arm == Arm(("one", "two"), "arm/hand") and arm.effort == arm.sleep == () and not arm.start_poses
    assert replace(arm, ee_link="arm/wrist").start_poses == {}


def test_only_a_recording_may_be_without_joint_states() -> None:
    profile = from_mapping({**changed("real", False), "arm": "none"}, "arm.yaml")
    assert profile.arm is None
    with pytest.raises(ConfigurationError, match="needs its joint states"):
        profile.through("interbotix")


@pytest.mark.parametrize("mapping", [None, [], "wx250s", 3])
def test_something_else_than_a_mapping_is_refused(mapping: object) -> None:
    with pytest.raises(ConfigurationError, match="expected a mapping"):
        from_mapping(mapping, "arm.yaml")


def test_shipped_profiles() -> None:
    real, replay = read_robot("wx250s"), read_robot("wx250s_replay")
    assert real.real and real.base_frame == "wx250s/base_link" and real.limits == WIDOWX
    assert replay.arm is None and replay.output == "servo_twist"
    assert replace(replay, name="wx250s", real=True, arm=real.arm, output=real.output, outputs=real.outputs, grippers=real.grippers) == real


def test_the_simulated_robot_is_the_real_one_without_its_driver() -> None:
    real, simulated = read_robot("wx250s"), read_robot("wx250s_sim")
    assert real.arm is not None and simulated.arm is not None and not simulated.real
    assert simulated.output == "trajectory" and simulated.outputs == {"trajectory": real.outputs["trajectory"]}
    assert simulated.grippers == {"joint_trajectory": real.grippers["joint_trajectory"]}
    own = {"effort": real.arm.effort, "sleep": real.arm.sleep, "start_poses": real.arm.start_poses}
    assert replace(simulated.arm, **own) == real.arm
    assert simulated.limits == real.limits and simulated.base_frame == real.base_frame


def test_profiles_by_path_and_by_wrong_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    assert read_robot(str(path)).name == "arm"
    with pytest.raises(ConfigurationError, match=r"no robot profile 'ur5'; there are .*wx250s, wx250s_replay"):
        read_robot("ur5")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_robot(str(tmp_path / "absent.yaml"))
    path.write_text("name: [")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_robot(str(path))


CAMERA = {"width": 640, "height": 480, "fx": 600, "fy": 600.0, "cx": 320, "cy": 240, "position_m": [0.0, -0.2, 0.4],
          "quaternion_xyzw": [0, 0, 0, 1.05]}


def test_a_camera_is_optional_and_its_rotation_is_normalised() -> None:
    assert from_mapping(GOOD, "here").camera is None
    camera = from_mapping({**GOOD, "camera": CAMERA}, "here").camera
    assert camera is not None and camera.quaternion_xyzw == (0.0, 0.0, 0.0, 1.0) and camera.position_m == (0.0, -0.2, 0.4)


@pytest.mark.parametrize(("key", "value", "word"), [
    ("fx", 0, "expected a number of pixels"), ("width", math.nan, "expected a number of pixels"), ("cx", "320", "expected a number"),
    ("position_m", [0, 0], "expected 3 numbers"), ("position_m", [0, 0, 400], "-10 to 10 m"),
    ("quaternion_xyzw", [0, 0, 0, 0], "has length 0"), ("quaternion_xyzw", [1, 1, 1, 1], "has length 2"),
    ("k1", 0.1, r"unknown keys \['k1'\]")])
def test_a_wrong_camera_is_refused(key: str, value: object, word: str) -> None:
    with pytest.raises(ConfigurationError, match=word):
        from_mapping({**GOOD, "camera": {**CAMERA, key: value}}, "here")
