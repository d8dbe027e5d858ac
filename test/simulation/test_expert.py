"""The expert: what it says in states made by hand, and that it gets there in the world, however late it sees."""

from __future__ import annotations

import numpy as np
import pytest

from openvla_ros.errors import StateError
from openvla_ros.robot import Limits
from openvla_ros.simulation import expert
from openvla_ros.simulation.loop import Loop
from openvla_ros.simulation.task import KINDS, Judge, SceneState, Task

RED, BLUE, PLATE = (0.25, 0.0, 0.016), (0.30, 0.12, 0.016), (0.20, -0.12, 0.004)


def state(tool: tuple[float, ...], opening: float = 1.0, red: tuple[float, ...] = RED, blue: tuple[float, ...] = BLUE,
          held: str = "") -> SceneState:
    return SceneState(np.array(tool), opening, {"red": np.array(red), "blue": np.array(blue)}, np.array(PLATE), held)


def test_every_step_is_short_and_turns_nothing() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        held = str(random.choice(["", "red", "blue"]))
        tool = tuple(random.uniform((0.10, -0.20, 0.01), (0.45, 0.25, 0.30)))
        step = expert.act(state(tool, float(random.uniform()), held=held), Task(str(random.choice(KINDS)), "red"))
        assert np.linalg.norm(step.translation_m) <= 0.035 and not step.rotation_rad.any() and step.gripper in (0.0, 1.0)


def test_reach_stays_at_its_point_with_the_gripper_open() -> None:
    step = expert.act(state((0.25, 0.0, 0.076)), Task("reach", "red"))
    assert np.linalg.norm(step.translation_m) < 1e-9 and step.gripper == 1.0


def test_far_beside_a_block_it_does_not_descend_below_its_neighbours() -> None:
    step = expert.act(state((0.25, 0.0, 0.12)), Task("pick", "blue"))
    assert step.translation_m[2] == pytest.approx(0.0, abs=1e-9) and step.gripper == 1.0


def test_low_and_far_beside_it_rises_before_it_goes_sideways() -> None:
    step = expert.act(state((0.25, 0.0, 0.02)), Task("pick", "blue"))
    assert step.translation_m[2] > 0.02 and np.hypot(*step.translation_m[:2]) < 1e-9


def test_it_closes_on_the_block_and_rises_the_more_the_fingers_have_closed() -> None:
    opened, half, gripped = (expert.act(state((0.25, 0.0, 0.024), opening), Task("pick", "red")) for opening in (1.0, 0.8, 0.56))
    assert opened.gripper == half.gripper == gripped.gripper == 0.0
    assert opened.translation_m[2] == pytest.approx(0.0, abs=1e-9) and 0.0 < half.translation_m[2] < gripped.translation_m[2]


def test_a_missed_grasp_opens_above_the_block() -> None:
    step = expert.act(state((0.25, 0.0, 0.024), opening=0.1), Task("pick", "red"))
    assert step.gripper == 1.0 and step.translation_m[2] > 0.01


def test_a_gripped_block_is_lifted_or_carried_and_never_let_go_on_the_way() -> None:
    for tool in ((0.25, 0.0, 0.03), (0.25, 0.0, 0.10), (0.22, -0.06, 0.12)):
        red = (tool[0], tool[1], tool[2] - 0.008)
        for kind in ("pick", "place"):
            assert expert.act(state(tool, 0.55, red=red, held="red"), Task(kind, "red")).gripper == 0.0
    assert expert.act(state((0.25, 0.0, 0.03), 0.55, red=(0.25, 0.0, 0.022), held="red"), Task("pick", "red")).translation_m[2] > 0.03


def test_over_the_plate_it_lets_go_low() -> None:
    high = state((0.20, -0.12, 0.12), 0.55, red=(0.20, -0.12, 0.112), held="red")
    assert expert.act(high, Task("place", "red")).gripper == 0.0
    for room_m in (0.0, 0.01, 0.02):  # wherever the hand may come to rest over the plate
        for beside_m in (-0.02, 0.0, 0.02):
            red = (0.20 + beside_m, -0.12 + beside_m, 0.020 + room_m)
            low = state((red[0], red[1], red[2] + 0.008), 0.55, red=red, held="red")
            assert expert.act(low, Task("place", "red")).gripper == 1.0


def test_a_block_that_falls_on_the_plate_is_not_gripped_again() -> None:
    falling = state((0.20, -0.12, 0.045), 0.6, red=(0.20, -0.12, 0.034))
    step = expert.act(falling, Task("place", "red"))
    assert step.gripper == 1.0 and step.translation_m[2] >= 0.0


def test_lifting_a_block_to_carry_it_does_not_begin_as_lowering_it_does() -> None:
    red = (0.25, 0.0, 0.020)
    gripped = state((0.25, 0.0, 0.028), 0.55, red=red, held="red")
    carry, lift = (expert.act(gripped, Task(kind, "red")).translation_m for kind in ("place", "pick"))
    assert carry[2] > 0.02 and carry[1] < -0.003  # the plate is to the right
    assert lift[2] > 0.02 and np.hypot(*lift[:2]) < 1e-9


@pytest.mark.parametrize("opening", [0.3, 0.6, 1.0])
def test_a_block_on_the_plate_is_never_taken_again(opening: float) -> None:
    step = expert.act(state((0.20, -0.12, 0.03), opening, red=(0.20, -0.12, 0.020)), Task("place", "red"))
    assert step.gripper == 1.0 and step.translation_m[2] > 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_another_block_is_brought_down_and_let_go(kind: str) -> None:
    high = expert.act(state((0.25, 0.1, 0.15), 0.55, blue=(0.25, 0.1, 0.142), held="blue"), Task(kind, "red"))
    low = expert.act(state((0.25, 0.1, 0.03), 0.55, blue=(0.25, 0.1, 0.022), held="blue"), Task(kind, "red"))
    assert high.gripper == 0.0 and high.translation_m[2] < -0.02
    assert low.gripper == 1.0


def test_a_block_that_is_not_there_is_refused() -> None:
    with pytest.raises(StateError, match="about the green block, the scene has red, blue"):
        expert.act(state((0.25, 0.0, 0.1)), Task("pick", "green"))


@pytest.mark.parametrize("kind", KINDS)
def test_it_gets_there_however_late_it_sees(kind: str, limits: Limits) -> None:
    loop = Loop(limits)
    for seed in range(10):
        loop.begin(seed)
        latency_s, seen = 0.02 + 0.04 * (seed % 4), loop.state()
        judge = Judge(Task(kind, loop.tabletop.layout.colours[seed % 3]))
        while not judge.finished:
            seen = loop.step_unseen(expert.act(seen, judge.task), latency_s)
            judge.update(loop.state())
        assert judge.success and not judge.wrong and not judge.stuck, seed


def test_it_changes_its_mind_with_another_block_in_the_hand(limits: Limits) -> None:
    loop = Loop(limits)
    for seed in range(4):
        loop.begin(seed)
        first, second, _ = loop.tabletop.layout.colours
        seen = loop.state()
        for _ in range(18):
            seen = loop.step_unseen(expert.act(seen, Task("pick", first)), 0.08)
        assert seen.held == first
        judge = Judge(Task("pick", second))
        while not judge.finished:
            seen = loop.step_unseen(expert.act(seen, judge.task), 0.08)
            judge.update(loop.state())
        assert judge.success, seed
