"""The world: the arm is the URDF's, holds when nothing is said, keeps its limits whatever is said, and grips."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import mujoco
import numpy as np
import pytest

from openvla_ros.contract import FloatArray, Pose
from openvla_ros.errors import StateError
from openvla_ros.simulation.scene import layout
from openvla_ros.simulation.tabletop import ARM_JOINTS, FINGER_JOINTS, STRAIGHT_DOWN, TOOL_LINK, Tabletop
from openvla_ros.simulation.task import BLOCK_EDGE_M, COLOURS


def joint_limits(checkout: Path, name: str) -> list[float]:
    """Of the joints from the file, read here by other means than the simulation's."""
    urdf = ElementTree.parse(checkout / "config" / "robots" / "wx250s.urdf")
    found = {joint.attrib["name"]: joint.find("limit") for joint in urdf.iter("joint")}
    return [float(found[joint].attrib[name]) for joint in ARM_JOINTS + FINGER_JOINTS]  # type: ignore[union-attr]


def go_to(tabletop: Tabletop, tool_m: tuple[float, ...], seconds: float = 1.0) -> None:
    joints, missing_m = tabletop.inverse(Pose(np.array(tool_m), STRAIGHT_DOWN), tabletop.arm_positions_rad, np.inf)
    assert missing_m < 1e-4
    tabletop.set_arm_target(joints)
    tabletop.advance(seconds)


def everything(tabletop: Tabletop) -> FloatArray:
    return np.concatenate([tabletop.data.qpos, tabletop.data.qvel])


def test_forward_kinematics_are_those_of_the_package(tabletop: Tabletop, checkout: Path) -> None:
    pytest.importorskip("pinocchio")
    from openvla_ros.action.kinematics import Kinematics

    urdf = (checkout / "config" / "robots" / "wx250s.urdf").read_text(encoding="utf-8")
    kinematics = Kinematics(urdf, TOOL_LINK, ARM_JOINTS)
    np.testing.assert_allclose(tabletop.arm_ranges_rad.T, [kinematics.limits.lower, kinematics.limits.upper])
    random = np.random.default_rng(0)
    for _ in range(50):
        joints = random.uniform(*tabletop.arm_ranges_rad.T)
        mine, theirs = tabletop.forward(joints), kinematics.forward(joints)
        np.testing.assert_allclose(mine.position_m, theirs.position_m, atol=1e-7)
        np.testing.assert_allclose(mine.rotation, theirs.rotation, atol=1e-6)


def test_inverse_kinematics_find_every_place_of_the_layouts(tabletop: Tabletop) -> None:
    for seed in range(20):
        scene = layout(seed)
        tabletop.place(scene)
        for place in (*scene.blocks.values(), scene.plate_m):
            for height_m in (0.022, 0.15):
                wanted = Pose(np.array([*place[:2], height_m]), STRAIGHT_DOWN)
                joints, missing_m = tabletop.inverse(wanted, tabletop.arm_positions_rad, np.inf)
                assert missing_m < 1e-4
                np.testing.assert_allclose(tabletop.forward(joints).position_m, wanted.position_m, atol=1e-4)


def test_what_is_out_of_reach_is_missed_without_a_jump(tabletop: Tabletop) -> None:
    seed = tabletop.arm_positions_rad
    joints, missing_m = tabletop.inverse(Pose(np.array([1.0, 0.0, 0.2]), STRAIGHT_DOWN), seed, 0.3)
    assert missing_m > 0.1
    assert np.abs(joints - seed).max() <= 0.3 + 1e-12


def test_the_fingers_leave_8_to_52_mm(tabletop: Tabletop) -> None:
    go_to(tabletop, (0.26, 0.0, 0.15))
    for position_m, gap_m in zip(tabletop.finger_range_m, (0.008, 0.052), strict=True):
        tabletop.set_finger_target(position_m)
        tabletop.advance(1.0)
        model, data = tabletop.model, tabletop.data
        pads = [int(model.body(f"wx250s/{name}_link").geomadr[0]) for name in FINGER_JOINTS]
        assert mujoco.mj_geomDistance(model, data, *pads, 1.0, None) == pytest.approx(gap_m, abs=2e-4)


def test_a_seed_and_the_same_calls_give_the_same_world() -> None:
    worlds = Tabletop(3), Tabletop(4)
    worlds[1].advance(0.3)
    worlds[1].reset(3)
    for tabletop in worlds:
        go_to(tabletop, (0.25, 0.05, 0.02))
        tabletop.set_finger_target(0.0)
        tabletop.advance(0.7)
    np.testing.assert_array_equal(everything(worlds[0]), everything(worlds[1]))


@pytest.mark.parametrize("seed", range(4))
def test_without_commands_it_holds_and_nothing_moves(seed: int) -> None:
    tabletop = Tabletop(seed)
    tabletop.advance(0.2)  # blocks settle into the table by a tenth of a millimetre
    before = everything(tabletop)
    tabletop.advance(5.0)
    assert np.abs(everything(tabletop) - before).max() < 1e-4
    assert not tabletop.troubles().at_limit and not tabletop.troubles().collisions


def test_absurd_targets_break_no_limit(tabletop: Tabletop, checkout: Path) -> None:
    random = np.random.default_rng(0)
    lower, upper, effort = (np.array(joint_limits(checkout, name)) for name in ("lower", "upper", "effort"))
    for _ in range(40):
        tabletop.set_arm_target(random.choice([-1e9, 1e9], 6))
        tabletop.set_finger_target(random.choice([-1e9, 1e9]))
        for _ in range(5):
            tabletop.advance(0.04)
            joints = tabletop.joints()
            assert (joints.positions >= lower - 0.03).all() and (joints.positions <= upper + 0.03).all()  # the table pushes, too
            assert (np.abs(joints.efforts) <= effort + 1e-9).all()
    assert np.isfinite(everything(tabletop)).all()


def test_a_leap_of_the_target_is_followed_at_the_joints_top_speed(tabletop: Tabletop, checkout: Path) -> None:
    go_to(tabletop, (0.2, 0.0, 0.28))
    start, target = tabletop.arm_positions_rad[0], tabletop.arm_positions_rad
    target[0] += 1.5
    tabletop.set_arm_target(target)
    tabletop.advance(0.2)
    assert 0.3 < tabletop.arm_positions_rad[0] - start <= 0.2 * joint_limits(checkout, "velocity")[0]
    tabletop.advance(1.0)
    assert tabletop.arm_positions_rad[0] - start == pytest.approx(1.5, abs=1e-3)


@pytest.mark.parametrize("target", [[0.0] * 5, [0.0] * 5 + [float("nan")], [float("inf")] * 6])
def test_targets_that_are_none_are_refused_and_change_nothing(tabletop: Tabletop, target: list[float]) -> None:
    before = tabletop.arm_positions_rad
    with pytest.raises(StateError, match="expected 6 finite numbers: waist"):
        tabletop.set_arm_target(target)
    with pytest.raises(StateError, match="left_finger is nan"):
        tabletop.set_finger_target(float("nan"))
    tabletop.advance(0.5)
    np.testing.assert_allclose(tabletop.arm_positions_rad, before, atol=1e-6)


def test_joints_are_named_and_the_fingers_mirror_each_other(tabletop: Tabletop) -> None:
    tabletop.set_finger_target(0.02)
    tabletop.advance(1.0)
    joints = tabletop.joints()
    assert joints.names == ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "left_finger", "right_finger")
    assert joints.positions.shape == joints.velocities.shape == joints.efforts.shape == (8,)
    assert joints.positions[6] == pytest.approx(0.02, abs=1e-4) and joints.positions[7] == pytest.approx(-0.02, abs=1e-4)
    assert tabletop.opening == pytest.approx(5 / 22, abs=0.01)


def test_the_state_has_what_is_there(tabletop: Tabletop) -> None:
    state, scene = tabletop.state(), tabletop.layout
    assert tuple(state.blocks) == scene.colours and state.held == "" and state.opening == 1.0
    np.testing.assert_allclose(state.tool_m, scene.start_m, atol=1e-4)
    np.testing.assert_allclose(state.plate_m, scene.plate_m)
    for colour, place in scene.blocks.items():
        np.testing.assert_allclose(state.blocks[colour], place, atol=1e-6)
    np.testing.assert_allclose(tabletop.tool_pose().rotation, STRAIGHT_DOWN, atol=1e-4)


def test_a_state_does_not_change_when_time_passes(tabletop: Tabletop) -> None:
    state = tabletop.state()
    before = state.tool_m.copy()
    go_to(tabletop, (0.3, 0.1, 0.2))
    np.testing.assert_array_equal(state.tool_m, before)


def test_a_block_is_gripped_and_let_go(tabletop: Tabletop) -> None:
    colour = tabletop.layout.colours[0]
    place = tabletop.layout.blocks[colour]
    for height_m in (0.10, 0.024):
        go_to(tabletop, (place[0], place[1], height_m))
    tabletop.set_finger_target(0.0)
    tabletop.advance(0.6)
    assert tabletop.state().held == colour and 0.4 < tabletop.opening < 0.6
    go_to(tabletop, (place[0], place[1], 0.10))
    assert tabletop.state().held == colour and tabletop.state().blocks[colour][2] > 0.08
    tabletop.set_finger_target(1.0)
    tabletop.advance(0.6)
    assert tabletop.state().held == "" and tabletop.state().blocks[colour][2] < BLOCK_EDGE_M


def test_collisions_name_the_part_and_what_it_touches(tabletop: Tabletop) -> None:
    colour = tabletop.layout.colours[0]
    place = tabletop.layout.blocks[colour]
    low, _ = tabletop.inverse(Pose(np.array([0.22, 0.0, -0.02]), STRAIGHT_DOWN), tabletop.arm_positions_rad, np.inf)
    tabletop.set_arm_target(low)
    tabletop.advance(1.0)
    assert ("left_finger_link", "table") in tabletop.troubles().collisions
    tabletop.reset(0)
    tabletop.set_finger_target(0.0)
    tabletop.advance(0.5)
    for height_m in (0.10, 0.035):  # closed fingers on top of a block
        go_to(tabletop, (place[0], place[1], height_m))
    assert not tabletop.troubles().collisions  # a finger at a block is what fingers are for
    assert tabletop.state().blocks[colour][2] == pytest.approx(BLOCK_EDGE_M / 2.0, abs=2e-3)


def test_a_joint_at_its_limit_is_named(tabletop: Tabletop) -> None:
    target = tabletop.arm_positions_rad
    target[5] = 10.0
    tabletop.set_arm_target(target)
    tabletop.advance(3.0)
    assert tabletop.troubles().at_limit == ("wrist_rotate",)


def test_blocks_that_are_not_there_lie_out_of_the_way(tabletop: Tabletop) -> None:
    absent = (set(COLOURS) - set(tabletop.layout.colours)).pop()
    assert tabletop.data.body(absent).xpos[0] > 2.0 and absent not in tabletop.state().blocks


def test_a_mirror_shows_another_world_and_changes_nothing_of_it() -> None:
    world, still = Tabletop(3), Tabletop(9)
    world.set_arm_target(world.arm_positions_rad + 0.2)
    world.advance(0.4)
    before = world.data.qpos.copy()
    still.mirror(world)
    assert np.array_equal(still.data.qpos, before) and still.layout is world.layout
    seen, shown = world.state(), still.state()
    np.testing.assert_allclose(shown.tool_m, seen.tool_m, atol=1e-3)  # MuJoCo's poses are one time step older than its joints
    still.advance(0.4)
    assert np.array_equal(world.data.qpos, before)
