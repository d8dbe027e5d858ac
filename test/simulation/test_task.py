"""Words, and the judge with states made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from openvla_ros.errors import ConfigurationError, StateError
from openvla_ros.simulation.task import COLOURS, HELD_OUT_PHRASES, HOVER_M, KINDS, PHRASES, STUCK_STEPS, Judge, SceneState, Task, parse

RED, BLUE, PLATE = (0.25, 0.0, 0.016), (0.30, 0.12, 0.016), (0.20, -0.12, 0.004)
AWAY = (0.26, 0.0, 0.17)


def state(tool: tuple[float, ...] = AWAY, opening: float = 1.0, red: tuple[float, ...] = RED, blue: tuple[float, ...] = BLUE,
          held: str = "") -> SceneState:
    return SceneState(np.array(tool), opening, {"red": np.array(red), "blue": np.array(blue)}, np.array(PLATE), held)


def over(block: tuple[float, ...], beside_m: float = 0.0, above_m: float = HOVER_M) -> tuple[float, ...]:
    return block[0] + beside_m, block[1], block[2] + above_m


@pytest.mark.parametrize("kind", KINDS)
def test_every_known_phrase_is_understood(kind: str) -> None:
    for colour in COLOURS:
        task = Task(kind, colour)
        assert parse(task.instruction) == task
        for template in (*PHRASES[kind], *HELD_OUT_PHRASES[kind]):
            assert parse(template.format(colour=colour)) == task


def test_no_phrase_is_held_out_and_trained_on_or_means_two_things() -> None:
    templates = [template for phrases in (PHRASES, HELD_OUT_PHRASES) for kind in KINDS for template in phrases[kind]]
    assert len(set(templates)) == len(templates)


def test_held_out_phrases_hold_no_new_words() -> None:
    def words(phrases: object) -> set[str]:
        return {word for kind in KINDS for template in phrases[kind] for word in template.split()}  # type: ignore[index]

    assert words(HELD_OUT_PHRASES) <= words(PHRASES)


@pytest.mark.parametrize("text", ["Pick up the RED block.", "  pick up   the red block ", "pick up the red block !"])
def test_spelling_does_not_matter(text: str) -> None:
    assert parse(text) == Task("pick", "red")


@pytest.mark.parametrize("text", ["", "pick up the purple block", "pick up the red block and dance", "do not pick up the red block"])
def test_other_texts_are_no_task(text: str) -> None:
    assert parse(text) is None


@pytest.mark.parametrize(("kind", "colour"), [("push", "red"), ("pick", "purple")])
def test_a_task_that_does_not_exist_is_refused(kind: str, colour: str) -> None:
    with pytest.raises(ConfigurationError, match="expected one of reach, pick, place"):
        Task(kind, colour)


def test_reach_is_done_after_three_steps_in_a_row_at_the_point() -> None:
    judge = Judge(Task("reach", "red"))
    for there in (over(RED), over(RED, 0.024), over(RED, 0.026), over(RED, above_m=HOVER_M + 0.029), over(RED), over(RED)):
        assert not judge.success
        judge.update(state(there))
    assert judge.success_step == 6 and judge.finished and not judge.wrong


def test_reach_is_not_done_too_high_above_the_block() -> None:
    judge = Judge(Task("reach", "red"))
    for _ in range(5):
        judge.update(state(over(RED, above_m=HOVER_M + 0.031)))
    assert not judge.success


def test_reaching_another_block_is_wrong() -> None:
    judge = Judge(Task("reach", "red"))
    for _ in range(3):
        judge.update(state(over(BLUE)))
    assert judge.wrong == "blue" and not judge.success


def test_pick_needs_height_and_grip() -> None:
    judge = Judge(Task("pick", "red"))
    judge.update(state(red=(0.25, 0.0, 0.09)))
    judge.update(state(red=(0.25, 0.0, 0.079), held="red"))
    assert not judge.success
    judge.update(state(red=(0.25, 0.0, 0.081), held="red"))
    assert judge.success_step == 3


@pytest.mark.parametrize("kind", ["pick", "place"])
def test_lifting_another_block_is_wrong_even_when_the_task_is_done_later(kind: str) -> None:
    judge = Judge(Task(kind, "red"))
    judge.update(state(blue=(0.3, 0.12, 0.041), held="blue"))
    judge.update(state(red=(0.25, 0.0, 0.1), held="red") if kind == "pick" else state(red=(0.2, -0.12, 0.02)))
    assert judge.success and judge.wrong == "blue"


def test_what_happens_after_success_is_not_wrong() -> None:
    judge = Judge(Task("pick", "red"))
    judge.update(state(red=(0.25, 0.0, 0.1), held="red"))
    judge.update(state(blue=(0.3, 0.12, 0.1), held="blue"))
    assert judge.success_step == 1 and not judge.wrong


@pytest.mark.parametrize(("red", "opening", "held", "done"), [
    ((0.20, -0.12, 0.020), 1.0, "", True),
    ((0.20, -0.071, 0.020), 1.0, "", True),  # 4.9 cm beside the middle
    ((0.20, -0.069, 0.020), 1.0, "", False),
    ((0.20, -0.12, 0.060), 1.0, "", False),  # in the air
    ((0.20, -0.12, 0.020), 0.6, "", False),  # the fingers are still around it
    ((0.20, -0.12, 0.020), 1.0, "red", False),
])
def test_place_needs_a_block_that_lies_on_the_plate_let_go(red: tuple[float, ...], opening: float, held: str, done: bool) -> None:
    judge = Judge(Task("place", "red"))
    judge.update(state(red=red, opening=opening, held=held))
    assert judge.success is done


def test_an_episode_ends_at_its_limit() -> None:
    judge = Judge(Task("reach", "red"))
    for _ in range(30):
        assert not judge.finished
        judge.update(state())
    assert judge.finished and not judge.success


def test_an_arm_that_stands_still_is_stuck_and_one_that_closes_is_not() -> None:
    still, closing = Judge(Task("pick", "red")), Judge(Task("pick", "red"))
    for step in range(STUCK_STEPS + 1):
        assert not still.stuck
        still.update(state())
        closing.update(state(opening=1.0 - 0.06 * step))
    assert still.stuck and not closing.stuck


def test_a_block_that_is_not_there_is_refused() -> None:
    with pytest.raises(StateError, match=r"about the green block, the scene has red, blue"):
        Judge(Task("pick", "green")).update(state())


@pytest.mark.parametrize("tool", [(0.2, 0.1), (0.2, 0.1, float("nan"))])
def test_a_state_that_cannot_be_is_refused(tool: tuple[float, ...]) -> None:
    with pytest.raises(StateError, match=r"'tool_m'.*expected three finite numbers"):
        state(tool)


def test_an_opening_that_is_no_number_is_refused() -> None:
    with pytest.raises(StateError, match="opening of the gripper is nan"):
        state(opening=float("nan"))


def test_a_block_that_is_held_is_there() -> None:
    with pytest.raises(StateError, match="holds 'green'"):
        state(held="green")
