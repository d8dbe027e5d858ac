"""Kinematics against the published numbers, a second model of the same arm, and the arm's own limits."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from openvla_ros.action.kinematics import TOLERANCE_M, TOLERANCE_RAD, Kinematics, Solution
from openvla_ros.action.pose import distance, moved
from openvla_ros.contract import Pose
from openvla_ros.errors import ConfigurationError, DependencyMissing, StateError

TIP = "wx250s/ee_gripper_link"
JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
NEUTRAL = np.array([-0.13192235, -0.76238847, 0.44485444, -0.01994175, 1.7564081, -0.15953401])  # bridge_conventions.md
STRAIGHT_DOWN = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])  # D: Bridge rpy = 0
ELBOW_STRAIGHT = -(math.pi / 2 - math.atan2(0.04975, 0.25))  # shoulder, elbow and wrist in a line
TICK_S = 1 / 30


@pytest.fixture(scope="module")
def urdf(checkout: Path) -> str:
    return (checkout / "config" / "robots" / "wx250s.urdf").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def arm(urdf: str) -> Kinematics:
    return Kinematics(urdf, TIP, JOINTS)


@pytest.fixture(scope="module")
def numbers(shared: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((shared / "data" / "wx250s_kinematics.yaml").read_text(encoding="utf-8")))


def bridge_pose(state: np.ndarray) -> Pose:
    """A recorded state x, y, z, roll, pitch, yaw as the pose of ee_gripper_link."""
    return Pose(state[:3], Rotation.from_euler("xyz", state[3:6]).as_matrix() @ STRAIGHT_DOWN)


def random_positions(arm: Kinematics, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(arm.limits.lower, arm.limits.upper, (count, len(JOINTS)))


def walk(arm: Kinematics, poses: Iterator[Pose], seed: np.ndarray) -> Iterator[tuple[Solution, np.ndarray]]:
    """Solutions along a path, each with the joint motion since the one before; ends with the first that falls short."""
    for pose in poses:
        solution = arm.inverse(pose, seed)
        yield solution, solution.positions - seed
        if not solution.reached:
            return
        seed = solution.positions


# Forward


def test_home_pose(arm: Kinematics) -> None:
    home = arm.forward(np.zeros(6))
    assert home.position_m == pytest.approx([0.458325, 0.0, 0.36065], abs=1e-12)
    assert np.abs(home.rotation - np.eye(3)).max() < 1e-12


def test_neutral_pose_in_bridge_terms(arm: Kinematics) -> None:
    pose = arm.forward(NEUTRAL)
    assert pose.position_m == pytest.approx([0.1202, -0.0191, 0.2467], abs=6e-5)
    rpy_rad = Rotation.from_matrix(pose.rotation @ STRAIGHT_DOWN.T).as_euler("xyz")
    assert rpy_rad == pytest.approx([-0.0399, -0.1272, 0.0252], abs=6e-5)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["home", "sleep", "bridge_neutral"])
def test_listed_poses(arm: Kinematics, numbers: dict[str, Any], name: str) -> None:
    listed = numbers["named_configurations"][name]
    pose = arm.forward(listed["q"])
    assert pose.position_m == pytest.approx(listed["ee_xyz"], abs=6e-6)
    assert Rotation.from_matrix(pose.rotation).as_euler("xyz") == pytest.approx(listed["ee_rpy"], abs=6e-6)


@pytest.mark.shared
def test_forward_agrees_with_the_product_of_exponentials(arm: Kinematics, numbers: dict[str, Any]) -> None:
    model = numbers["product_of_exponentials"]
    for positions in random_positions(arm, 200, seed=3):
        transform = np.array(model["M"], dtype=float)
        for (wx, wy, wz, *v), angle_rad in reversed(list(zip(model["Slist"], positions, strict=True))):
            screw = np.array([[0, -wz, wy, v[0]], [wz, 0, -wx, v[1]], [-wy, wx, 0, v[2]], [0, 0, 0, 0]])
            transform = expm(screw * angle_rad) @ transform
        pose = arm.forward(positions)
        assert np.abs(pose.position_m - transform[:3, 3]).max() < 1e-12
        assert np.abs(pose.rotation - transform[:3, :3]).max() < 1e-12


# The URDF


@pytest.mark.shared
def test_urdf_has_the_published_numbers(urdf: str, numbers: dict[str, Any]) -> None:
    robot = ElementTree.fromstring(urdf)
    joints = {joint.attrib["name"]: joint for joint in robot.findall("joint")}
    listed = [*numbers["joints"], *numbers["fixed_and_gripper"]]
    assert list(joints) == [joint["name"] for joint in listed]
    for want in listed:
        joint = joints[want["name"]]
        assert joint.attrib["type"] == want["type"]
        assert [joint.find(end).attrib["link"] for end in ("parent", "child")] == [f"wx250s/{want['parent']}", f"wx250s/{want['child']}"]
        assert vector(joint.find("origin"), "xyz") == want["xyz"] and vector(joint.find("origin"), "rpy") == [0, 0, 0]
        limits = {name: want[name] for name in ("lower", "upper", "velocity", "effort") if name in want}
        assert ({name: float(value) for name, value in joint.find("limit").attrib.items()} if limits else {}) == limits
        assert "axis" not in want or vector(joint.find("axis"), "xyz") == want["axis"]
        if want in numbers["joints"]:
            assert {name: float(value) for name, value in joint.find("dynamics").attrib.items()} == numbers["joint_dynamics"]
    inertials = {link.attrib["name"]: link.find("inertial") for link in robot.findall("link")}
    for name, want in numbers["inertials"].items():
        if name != "note":
            inertial = inertials[f"wx250s/{name}"]
            assert float(inertial.find("mass").attrib["value"]) == want["mass"]
            assert vector(inertial.find("origin"), "xyz") == want["com"] and vector(inertial.find("origin"), "rpy") == want["rpy"]
            for part in ("ixx", "iyy", "izz", "ixy", "ixz", "iyz"):
                assert float(inertial.find("inertia").attrib[part]) == want[part], (name, part)


def vector(element: ElementTree.Element, name: str) -> list[float]:
    return [float(number) for number in element.attrib.get(name, "0 0 0").split()]


def test_urdf_is_plain_and_every_moving_link_has_a_shape(urdf: str) -> None:
    robot = ElementTree.fromstring(urdf)
    assert not [element for element in robot.iter() if element.tag.startswith("{") or element.tag == "mesh"]
    for link in robot.findall("link"):
        assert (link.find("visual") is None) == (link.find("collision") is None) == (link.find("inertial") is None)
    mimic = next(robot.iter("mimic"))
    assert mimic.attrib == {"joint": "left_finger", "multiplier": "-1", "offset": "0"}


def test_limits_come_from_the_urdf(arm: Kinematics) -> None:
    assert arm.joint_names == JOINTS
    assert arm.limits.lower == pytest.approx([-3.1415827, -1.8849556, -2.1467550, -3.1415827, -1.7453293, -3.1415827], abs=0)
    assert arm.limits.upper == pytest.approx([3.1415827, 1.9896753, 1.6057029, 3.1415827, 2.1467550, 3.1415827], abs=0)
    assert arm.limits.velocity == pytest.approx([3.1415927] * 6, abs=0) and arm.limits.effort == pytest.approx([10, 20, 15, 2, 5, 1], abs=0)
    with pytest.raises(ValueError, match="read-only"):
        arm.limits.upper[0] = 10.0


# Inverse


def test_round_trips(arm: Kinematics) -> None:
    """From a seed within 0.3 rad of an answer, the inverse finds one, wherever the arm stands."""
    offsets = np.random.default_rng(5).uniform(-0.3, 0.3, (2500, 6))
    rules: Counter[str] = Counter()
    for positions, offset in zip(random_positions(arm, 2500, seed=4), offsets, strict=True):
        target = arm.forward(positions)
        solution = arm.inverse(target, np.clip(positions + offset, arm.limits.lower, arm.limits.upper))
        rules[solution.rule] += 1
        if solution.reached:
            error_m, error_rad = distance(arm.forward(solution.positions), target)
            assert error_m < 1e-4 and error_rad < 1e-4
            assert (solution.position_error_m, solution.rotation_error_rad) == (error_m, error_rad)
            assert error_m <= TOLERANCE_M and error_rad <= TOLERANCE_RAD * (1 + 1e-9)
        else:
            assert solution.smallest_singular_value < 0.01, solution
    assert rules[""] >= 2490, rules


def test_whatever_is_asked_the_answer_keeps_limits_and_step_and_says_the_truth(arm: Kinematics) -> None:
    random = np.random.default_rng(6)
    rules: Counter[str] = Counter()
    for seed in random_positions(arm, 600, seed=7):
        target = Pose(random.normal(scale=0.3, size=3), Rotation.random(rng=random).as_matrix())
        max_joint_step = random.choice([0.01, 0.1, 0.5, math.inf])
        solution = arm.inverse(target, seed, max_joint_step)
        rules[solution.rule] += 1
        assert (solution.positions >= arm.limits.lower).all() and (solution.positions <= arm.limits.upper).all()
        assert np.abs(solution.positions - seed).max() <= max_joint_step + 1e-15
        error_m, error_rad = distance(arm.forward(solution.positions), target)
        assert (solution.position_error_m, solution.rotation_error_rad) == (error_m, error_rad)
        assert solution.reached == (error_m <= TOLERANCE_M and error_rad <= TOLERANCE_RAD * (1 + 1e-9)) == (not solution.rule)
        assert bool(solution.reason) is not solution.reached
        before_m, before_rad = distance(arm.forward(seed), target)
        assert math.hypot(error_m, 0.1 * error_rad) <= math.hypot(before_m, 0.1 * before_rad) + 1e-12  # never worse than standing still
    assert set(rules) == {"", "joint_step", "joint_limit", "singularity", "reach"}, rules


def test_nothing_asked_nothing_moves(arm: Kinematics) -> None:
    for positions in random_positions(arm, 50, seed=8):
        solution = arm.inverse(arm.forward(positions), positions)
        assert solution.reached and solution.iterations == 0
        assert np.array_equal(solution.positions, positions)


def test_smallest_singular_value_is_the_worst_direction(arm: Kinematics) -> None:
    """By finite differences of the forward side: the least motion of the hand over all directions of joint motion."""
    for positions in random_positions(arm, 20, seed=9):
        columns = []
        for joint in np.eye(6) * 1e-6:
            before, after = arm.forward(positions - joint), arm.forward(positions + joint)
            turn = Rotation.from_matrix(after.rotation @ before.rotation.T).as_rotvec()
            columns.append(np.concatenate([after.position_m - before.position_m, 0.1 * turn]) / 2e-6)
        least = np.linalg.svd(np.array(columns).T, compute_uv=False)[-1]
        assert arm.inverse(arm.forward(positions), positions).smallest_singular_value == pytest.approx(least, abs=1e-8)


def test_out_of_reach_is_a_verdict(arm: Kinematics) -> None:
    seed = arm.inverse(bridge_pose(np.array([0.4, 0.0, 0.1, 0, 0, 0])), NEUTRAL, math.inf)
    assert seed.reached
    far = arm.inverse(bridge_pose(np.array([0.7, 0.0, 0.1, 0, 0, 0])), seed.positions, math.inf)
    assert not far.reached and far.rule == "reach"
    assert "no joint motion brings the hand closer than" in far.reason and "out of reach" in far.reason
    assert 0.05 < far.position_error_m < 0.3 and far.smallest_singular_value < 1e-3
    assert far.positions[2] == pytest.approx(ELBOW_STRAIGHT, abs=1e-3)  # it stretches out as far as it can


@pytest.mark.parametrize("distance_m", [1e6, 1e150])
def test_absurdly_far_is_a_verdict(arm: Kinematics, distance_m: float) -> None:
    solution = arm.inverse(Pose(np.array([distance_m, 0.0, 0.0]), np.eye(3)), NEUTRAL)
    assert not solution.reached and np.isfinite(solution.positions).all()


def test_a_joint_limit_is_a_verdict(arm: Kinematics) -> None:
    at_limit = NEUTRAL.copy()
    at_limit[0] = arm.limits.upper[0]
    pose, turn = arm.forward(at_limit), Rotation.from_euler("z", 0.1).as_matrix()
    solution = arm.inverse(Pose(turn @ pose.position_m, turn @ pose.rotation), at_limit)
    assert not solution.reached and solution.rule == "joint_limit"
    assert solution.reason.startswith("waist at 3.142") and solution.reason.endswith("at the joint limit")


def test_too_far_for_one_call_is_a_verdict_and_the_way_is_gone_in_several(arm: Kinematics) -> None:
    goal = NEUTRAL + np.array([0.8, 0.0, 0.0, 0.0, 0.0, 0.0])
    target, positions = arm.forward(goal), NEUTRAL
    rules = []
    for _ in range(3):
        solution = arm.inverse(target, positions, 0.3)
        positions = solution.positions
        rules.append(solution.rule)
    assert rules == ["joint_step", "joint_step", ""]
    assert positions == pytest.approx(goal, abs=1e-3)


def test_max_joint_step_may_differ_by_joint(arm: Kinematics) -> None:
    target = arm.forward(NEUTRAL + 0.2)
    per_joint = arm.limits.velocity * TICK_S * [1, 1, 1, 0.5, 0.5, 0.5]
    solution = arm.inverse(target, NEUTRAL, per_joint)
    assert solution.rule == "joint_step" and (np.abs(solution.positions - NEUTRAL) <= per_joint + 1e-15).all()


def test_a_seed_outside_the_limits_is_led_back_at_the_allowed_pace(arm: Kinematics) -> None:
    """A sagging or hand-turned joint may be measured beyond its limit; that must neither jump nor block for ever."""
    sagging = NEUTRAL.copy()
    sagging[1] = arm.limits.lower[1] - 0.25
    target = arm.forward(np.concatenate([[sagging[0], arm.limits.lower[1] + 0.05], sagging[2:]]))
    seeds = [sagging]
    for expected in ("joint_limit", "joint_limit", "", ""):
        solution = arm.inverse(target, seeds[-1], 0.1)
        assert np.abs(solution.positions - seeds[-1]).max() <= 0.1 + 1e-15
        assert solution.rule == expected or (expected == "" and solution.rule == "joint_step")
        seeds.append(solution.positions)
    assert solution.reached
    assert "shoulder at -2.035 outside the joint limits" in arm.inverse(target, sagging, 0.1).reason


# Singularities and continuity


def test_straight_arm_and_aligned_wrist_bound_the_joint_motion(arm: Kinematics) -> None:
    straight = np.array([0.0, 0.9, ELBOW_STRAIGHT, 0.0, 0.37, 0.0])
    assert arm.inverse(arm.forward(straight), straight).smallest_singular_value < 1e-9
    home = np.zeros(6)  # forearm_roll and wrist_rotate turn about one line
    assert arm.inverse(arm.forward(home), home).smallest_singular_value < 1e-9
    steps = np.random.default_rng(10).normal(size=(150, 6)) * ([0.01] * 3 + [0.05] * 3)
    rules: Counter[str] = Counter()
    for singular, step, near in itertools.product((straight, home), steps, (0.0, 1e-6, 1e-3)):
        seed = singular + near
        solution = arm.inverse(moved(arm.forward(seed), step[:3], step[3:]), seed, 0.2)
        rules[solution.rule] += 1
        assert np.abs(solution.positions - seed).max() <= 0.2 + 1e-15
        assert solution.rule in ("", "singularity", "joint_step", "reach")
    assert rules["singularity"] > 100 and rules["reach"] > 50, rules


def test_a_straight_arm_can_be_bent_again(arm: Kinematics) -> None:
    straight = np.array([0.0, 0.9, ELBOW_STRAIGHT, 0.0, 0.37, 0.0])
    pose = arm.forward(straight)
    wrist = pose.position_m - pose.rotation @ [0.158575, 0, 0]
    inward = -(wrist - [0, 0, 0.11065]) / np.linalg.norm(wrist - [0, 0, 0.11065])
    solutions = list(walk(arm, (moved(pose, 0.001 * step * inward, np.zeros(3)) for step in range(1, 51)), straight))
    assert len(solutions) == 50 and all(solution.reached for solution, _ in solutions)
    assert max(np.abs(motion).max() for _, motion in solutions) < 0.15  # sqrt of the distance: the first millimetre needs the most
    sides = {math.copysign(1.0, solution.positions[2] - ELBOW_STRAIGHT) for solution, _ in solutions}
    assert len(sides) == 1  # it never passes through straight again


@pytest.mark.shared
def test_bridge_episodes_are_followed_without_a_jump(arm: Kinematics, shared: Path) -> None:
    """18 real episodes, each state-to-state step of 0.2 s cut into ticks of 1/30 s."""
    episodes = np.load(shared / "data" / "bridge_octo_debug_64px.npz")["state7"]
    largest_rad, least_singular_value, count = 0.0, math.inf, 0
    for episode in episodes:
        start = arm.inverse(bridge_pose(episode[0]), NEUTRAL, math.inf)
        assert start.reached
        path = (bridge_pose(before + (after - before) * tick / 6)
                for before, after in itertools.pairwise(episode) for tick in range(1, 7))
        for solution, motion in walk(arm, path, start.positions):
            assert solution.reached, solution
            largest_rad = max(largest_rad, np.abs(motion).max())
            least_singular_value = min(least_singular_value, solution.smallest_singular_value)
            count += 1
            assert solution.positions[2] > ELBOW_STRAIGHT and solution.positions[4] > 0.0  # the same branch all the time
    assert count == 18 * 9 * 6
    assert largest_rad < 0.05  # of 0.105 that the joints may turn in a tick
    assert least_singular_value > 0.03


def test_straight_lines_through_the_bridge_box(arm: Kinematics) -> None:
    """120 lines at 0.25 m/s: where the arm gets to, joint motion is what the Jacobian says; where not, a verdict, not a jump."""
    random = np.random.default_rng(11)
    low, high = np.array([0.10, -0.15, -0.01]), np.array([0.45, 0.25, 0.25])
    rules: Counter[str] = Counter()
    for _ in range(120):
        begin, end = random.uniform(low, high, (2, 3))
        rotation = Rotation.from_euler("xyz", random.uniform(-0.3, 0.3, 3)).as_matrix() @ STRAIGHT_DOWN
        start = arm.inverse(Pose(begin, rotation), NEUTRAL, math.inf)
        if not start.reached:
            assert start.rule in ("reach", "joint_limit", "singularity")
            rules["no start"] += 1
            continue
        ticks = math.ceil(np.linalg.norm(end - begin) / (0.25 * TICK_S))
        stride_m = np.linalg.norm(end - begin) / ticks
        before = start
        for solution, motion in walk(arm, (Pose(begin + (end - begin) * (tick / ticks), rotation) for tick in range(1, ticks + 1)),
                                     start.positions):
            rules[solution.rule] += 1
            if solution.reached:
                worst = min(before.smallest_singular_value, solution.smallest_singular_value)
                assert np.linalg.norm(motion) <= 2.0 * stride_m / worst
                assert solution.positions[2] > ELBOW_STRAIGHT and solution.positions[4] > 0.0  # the same branch all the time
            before = solution
    assert rules[""] > 2500 and rules["no start"] < 12, rules
    assert sum(rules[rule] for rule in ("reach", "joint_limit", "singularity", "joint_step")) < 12, rules


# Other URDFs, and what is refused


def in_a_world(urdf: str, joint: str) -> str:
    """The arm as part of a larger robot, turned and lifted."""
    mount = f'<link name="world"/><joint name="mount" {joint}<parent link="world"/><child link="wx250s/base_link"/>' \
            '<origin xyz="1 2 0.7" rpy="0.1 -0.2 2.5"/></joint>'
    return urdf.replace('<link name="wx250s/base_link">', mount + '<link name="wx250s/base_link">', 1)


RAIL = 'type="prismatic"><axis xyz="1 0 0"/><limit lower="-1" upper="1" velocity="1" effort="1"/>'


@pytest.mark.parametrize("joint", ['type="fixed">', RAIL])
def test_poses_are_seen_from_the_base_link(urdf: str, arm: Kinematics, joint: str) -> None:
    mounted = Kinematics(in_a_world(urdf, joint), TIP, JOINTS, base_link="wx250s/base_link")
    for positions in random_positions(arm, 20, seed=12):
        assert distance(mounted.forward(positions), arm.forward(positions)) == pytest.approx((0.0, 0.0), abs=1e-12)
        target = moved(arm.forward(positions), np.full(3, 0.003), np.full(3, 0.02))
        ours, theirs = arm.inverse(target, positions), mounted.inverse(target, positions)
        assert ours.rule == theirs.rule and theirs.positions == pytest.approx(ours.positions, abs=2e-3 if ours.reached else 0.1)


def test_a_joint_between_root_and_tip_cannot_be_forgotten(urdf: str) -> None:
    with pytest.raises(ConfigurationError, match=r"joint names are waist.*from 'world' to '.*' are mount, waist, shoulder"):
        Kinematics(in_a_world(urdf, RAIL), TIP, JOINTS)


def test_joints_in_another_order(urdf: str, arm: Kinematics) -> None:
    order = [3, 0, 5, 1, 4, 2]
    shuffled = Kinematics(urdf, TIP, [JOINTS[number] for number in order])
    assert np.array_equal(shuffled.limits.lower, arm.limits.lower[order])
    assert distance(shuffled.forward(NEUTRAL[order]), arm.forward(NEUTRAL)) == pytest.approx((0.0, 0.0), abs=1e-12)
    target = moved(arm.forward(NEUTRAL), np.full(3, 0.01), np.full(3, 0.05))
    assert shuffled.inverse(target, NEUTRAL[order]).positions == pytest.approx(arm.inverse(target, NEUTRAL).positions[order], abs=1e-9)


def test_four_axes_with_metres_and_radians() -> None:
    """A gantry with a turning hand: reaches what it can, and says what it cannot."""
    links = "".join(f'<link name="l{number}"/>' for number in range(5))
    joints = "".join(
        f'<joint name="{name}" type="{kind}"><parent link="l{number}"/><child link="l{number + 1}"/><axis xyz="{axis}"/>'
        '<limit lower="-1" upper="1" velocity="1" effort="1"/></joint>'
        for number, (name, kind, axis) in enumerate((("x", "prismatic", "1 0 0"), ("y", "prismatic", "0 1 0"),
                                                     ("z", "prismatic", "0 0 1"), ("turn", "revolute", "0 0 1"))))
    gantry = Kinematics(f'<robot name="gantry">{links}{joints}</robot>', "l4", ("x", "y", "z", "turn"))
    target = moved(Pose(np.zeros(3), np.eye(3)), np.array([0.1, -0.2, 0.3]), np.array([0.0, 0.0, 0.4]))
    solution = gantry.inverse(target, np.zeros(4))
    assert solution.reached and solution.positions == pytest.approx([0.1, -0.2, 0.3, 0.4], abs=2e-5)
    tilted = gantry.inverse(moved(target, np.zeros(3), np.array([0.2, 0.0, 0.0])), solution.positions)
    assert tilted.rule == "reach" and tilted.rotation_error_rad == pytest.approx(0.2, abs=1e-3)
    beyond = gantry.inverse(moved(target, np.array([2.0, 0, 0]), np.zeros(3)), np.zeros(4), math.inf)
    assert beyond.reason == "x at 1.000 at the joint limit"


@pytest.mark.parametrize(("change", "words"), [
    ({"ee_link": "gripper_link"}, r"no link 'gripper_link'; it has wx250s/base_link, .*wx250s/ee_gripper_link"),
    ({"ee_link": "waist"}, "no link 'waist'"),  # a joint of that name exists
    ({"base_link": "wx250s_base"}, "no link 'wx250s_base'"),
    ({"joint_names": JOINTS[:5]}, "joint names are .*wrist_angle; .* are .*wrist_angle, wrist_rotate"),
    ({"joint_names": (*JOINTS, "gripper")}, "joint names are .*gripper; "),
    ({"joint_names": (*JOINTS[:5], "wrist_rotat")}, "wrist_rotat; "),
    ({"joint_names": (*JOINTS, "waist")}, "wrist_rotate, waist; "),
    ({"joint_names": ()}, "joint names are ; "),
    ({"ee_link": "wx250s/base_link", "joint_names": ()}, "are none"),
    ({"ee_link": "wx250s/gripper_prop_link", "joint_names": (*JOINTS, "gripper")}, "'gripper' has no limits"),
    ({"base_link": "wx250s/left_finger_link"}, "from 'wx250s/left_finger_link' to"),
    ({"urdf_text": ""}, r"URDF cannot be read \(0 characters\)"),
    ({"urdf_text": "<robot name='x'><xacro:macro/></robot>"}, "run xacro first"),
    ({"urdf_text": "<robot name='x'><link name='a'/></robot>"}, "no link 'wx250s/ee_gripper_link'; it has a"),
])
def test_what_does_not_fit_is_refused(urdf: str, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Kinematics(**{"urdf_text": urdf, "ee_link": TIP, "joint_names": JOINTS, **change})


def test_joints_without_a_range_or_a_speed_are_refused(urdf: str) -> None:
    for old, new in (('lower="-1.8849556"', 'lower="1.9896753"'), ('velocity="3.1415927" effort="20"', 'velocity="0" effort="20"')):
        with pytest.raises(ConfigurationError, match="joint 'shoulder' has limits"):
            Kinematics(urdf.replace(old, new, 1), TIP, JOINTS)


@pytest.mark.parametrize("positions", [np.full(6, math.nan), np.zeros(5), np.zeros((1, 6)), np.array([0, 0, 0, 0, 0, math.inf])])
def test_positions_that_are_none_are_refused(arm: Kinematics, positions: np.ndarray) -> None:
    with pytest.raises(StateError, match="expected 6 finite numbers: waist, shoulder"):
        arm.forward(positions)
    with pytest.raises(StateError, match="expected 6 finite numbers"):
        arm.inverse(Pose(np.zeros(3), np.eye(3)), positions)


@pytest.mark.parametrize("step", [0.0, -1.0, math.nan])
def test_a_step_that_is_none_is_refused(arm: Kinematics, step: float) -> None:
    with pytest.raises(StateError, match="max_joint_step"):
        arm.inverse(arm.forward(NEUTRAL), NEUTRAL, step)


def test_without_pinocchio_the_message_says_what_to_do(urdf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pinocchio", None)  # what an import finds where it is not installed
    with pytest.raises(DependencyMissing, match=r"pip install 'openvla-ros\[kinematics\]'"):
        Kinematics(urdf, TIP, JOINTS)


def test_importing_the_module_does_not_import_pinocchio(clean_environment: dict[str, str]) -> None:
    code = "import sys, openvla_ros.action.kinematics; sys.exit('pinocchio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=clean_environment, timeout=60).returncode == 0
