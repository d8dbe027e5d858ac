"""The stand-in of the command side: it plays a step in its time, keeps the profile's limits, and refuses what is no action."""

from __future__ import annotations

import numpy as np
import pytest

from openvla_ros.contract import Action
from openvla_ros.errors import ActionError
from openvla_ros.robot import Limits
from openvla_ros.simulation import expert
from openvla_ros.simulation.loop import Loop
from openvla_ros.simulation.task import Task

STILL = Action(np.zeros(3), np.zeros(3), 1.0)


@pytest.fixture()
def loop(limits: Limits) -> Loop:
    return Loop(limits)


def move(x: float, y: float, z: float, gripper: float = 1.0) -> Action:
    return Action(np.array([x, y, z]), np.zeros(3), gripper)


def test_steps_add_up(loop: Loop) -> None:
    start_m = loop.state().tool_m
    for action in [move(0.01, 0.02, -0.01)] * 4 + [STILL] * 3:
        loop.step_unseen(action)
    np.testing.assert_allclose(loop.state().tool_m - start_m, [0.04, 0.08, -0.04], atol=3e-4)
    assert loop.tabletop.time_s == pytest.approx(7 * 0.2)


def test_what_is_not_asked_for_is_held(loop: Loop) -> None:
    before = loop.state()
    for _ in range(20):
        loop.step_unseen(STILL)
    np.testing.assert_allclose(loop.state().tool_m, before.tool_m, atol=1e-4)


def test_the_arm_lags_behind_a_look_before_the_end(limits: Limits) -> None:
    early, late = Loop(limits), Loop(limits)
    start_m = early.state().tool_m
    _, seen = early.step(move(0.03, 0.0, 0.0), 0.1)
    assert 0.0 < seen.tool_m[0] - start_m[0] < 0.5 * (late.step_unseen(move(0.03, 0.0, 0.0)).tool_m[0] - start_m[0])
    np.testing.assert_array_equal(early.state().tool_m, late.state().tool_m)  # looking changes nothing


def test_picture_and_state_are_of_the_same_instant(loop: Loop, limits: Limits) -> None:
    picture, _ = loop.step(move(0.03, 0.0, 0.0), 0.0)
    np.testing.assert_array_equal(picture, loop.picture())
    again = Loop(limits)
    earlier, _ = again.step(move(0.03, 0.0, 0.0), 0.1)
    assert (earlier != picture).any()


def test_a_step_that_is_too_long_keeps_its_direction(loop: Loop, limits: Limits) -> None:
    start_m = loop.state().tool_m
    for action in (move(0.3, 0.4, 0.0), *[STILL] * 4):
        loop.step_unseen(action)
    np.testing.assert_allclose(loop.state().tool_m - start_m, limits.max_step_m * np.array([0.6, 0.8, 0.0]), atol=1e-3)


def test_the_box_is_not_left(loop: Loop, limits: Limits) -> None:
    for direction in ((0.05, 0.0, 0.0), (0.0, 0.05, 0.0), (0.0, -0.05, 0.0), (0.0, 0.0, 0.05)):
        for _ in range(12):
            loop.step_unseen(move(*direction))
        tool_m = loop.state().tool_m
        assert (tool_m <= np.array(limits.box.high_m) + 2e-3).all() and (tool_m >= np.array(limits.box.low_m) - 2e-3).all()


def test_out_of_reach_the_arm_stays_and_comes_back(loop: Loop) -> None:
    for _ in range(12):
        loop.step_unseen(move(0.05, 0.0, 0.05))  # the corner of the box cannot be reached straight down
    far_m = loop.state().tool_m
    for action in [move(-0.03, 0.0, 0.0)] * 3 + [STILL] * 3:
        loop.step_unseen(action)
    np.testing.assert_allclose(loop.state().tool_m - far_m, [-0.09, 0.0, 0.0], atol=0.01)


def test_a_rotation_turns_the_tool(loop: Loop) -> None:
    before = loop.tabletop.tool_pose().rotation
    for action in [Action(np.zeros(3), np.array([0.0, 0.0, 0.1]), 1.0)] * 3 + [STILL] * 3:
        loop.step_unseen(action)
    cosine, sine = np.cos(0.3), np.sin(0.3)
    about_z = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    np.testing.assert_allclose(loop.tabletop.tool_pose().rotation, about_z @ before, atol=2e-3)


def test_the_gripper_takes_half_a_second(loop: Loop) -> None:
    openings = []
    for _ in range(4):
        loop.step_unseen(move(0.0, 0.0, 0.0, gripper=0.0))
        openings.append(loop.opening)
    assert openings == pytest.approx([0.6, 0.2, 0.0, 0.0])
    assert loop.state().opening < 0.02


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_moves_nothing(loop: Loop, bad: float) -> None:
    before = loop.state().tool_m
    for action in (move(bad, 0.0, 0.0), move(0.0, 0.0, 0.0, gripper=bad), Action(np.zeros(3), np.array([0.0, bad, 0.0]), 1.0)):
        with pytest.raises(ActionError, match="NaN or infinity"):
            loop.step_unseen(action)
    with pytest.raises(ActionError, match=r"0.3 s before the end of a step, expected 0 to 0.2 s"):
        loop.step(STILL, 0.3)
    np.testing.assert_array_equal(loop.state().tool_m, before)


def test_a_new_episode_forgets_the_one_before(limits: Limits) -> None:
    used, fresh = Loop(limits), Loop(limits)
    for _ in range(5):
        used.step_unseen(move(0.03, 0.03, -0.03, gripper=0.0))
    for one in (used, fresh):
        one.begin(7)
        one.step_unseen(move(0.0, 0.02, 0.0))
    np.testing.assert_array_equal(used.state().tool_m, fresh.state().tool_m)
    np.testing.assert_array_equal(used.picture(), fresh.picture())


def test_a_gripped_block_stays_gripped_whatever_is_asked(loop: Loop) -> None:
    random = np.random.default_rng(0)
    colour = loop.tabletop.layout.colours[0]
    seen = loop.state()
    for _ in range(20):
        seen = loop.step_unseen(expert.act(seen, Task("pick", colour)), 0.08)
    assert seen.held == colour
    for _ in range(40):
        loop.step_unseen(move(*random.uniform((-0.035, -0.035, -0.030), (0.035, 0.035, 0.040)), gripper=0.0))
    assert loop.state().held == colour
