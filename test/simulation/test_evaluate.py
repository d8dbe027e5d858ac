"""Evaluation: counts, controls, and that batching changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from openvla_ros.contract import STEP_S, Action, ActionChunk, Observation
from openvla_ros.errors import ActionError, ConfigurationError
from openvla_ros.robot import Limits
from openvla_ros.simulation.evaluate import EXPERT, Episode, TaskResult, evaluate, other_task, phrase, random_actor, task_of, wilson
from openvla_ros.simulation.scene import TRAINING_SEEDS, layout
from openvla_ros.simulation.task import HELD_OUT_PHRASES, KINDS, PHRASES, Task, parse


def chunk(observation: Observation, *steps: Action, fault: str = "", step_s: float = STEP_S) -> ActionChunk:
    return ActionChunk(steps, step_s, observation.stamp_ns, observation.instruction, fault=fault)


STILL = Action(np.zeros(3), np.zeros(3), 1.0)


def test_the_expert_does_every_task_and_the_batch_size_does_not_matter(limits: Limits) -> None:
    calls: list[tuple[int, int]] = []
    results = evaluate(EXPERT, limits, KINDS, range(4), progress=lambda done, total: calls.append((done, total)))
    assert {kind: result.successes for kind, result in results.items()} == dict.fromkeys(KINDS, 4)
    assert all(result.wrong == 0 and result.told_successes == 4 for result in results.values())
    assert calls[-1] == (12, 12) and calls == sorted(calls)
    assert evaluate(EXPERT, limits, KINDS, range(4), batch=1) == results


def test_told_another_colour_the_expert_goes_to_the_other_one(limits: Limits) -> None:
    for result in evaluate(EXPERT, limits, KINDS, range(4), instruction_control="other-colour").values():
        assert result.successes == 0 and result.told_successes == 4
        assert all(episode.told == other_task(episode.task, episode.seed) != episode.task for episode in result.episodes)


def test_chance_alone_picks_and_places_nothing(limits: Limits) -> None:
    for result in evaluate(random_actor(0), limits, ["pick", "place"], range(3), image_control="blank").values():
        assert result.successes == 0


def test_each_running_episode_is_asked_once_per_step(limits: Limits) -> None:
    asked: list[int] = []

    def act(observations: Sequence[Observation]) -> list[ActionChunk]:
        asked.append(len(observations))
        assert {one.rgb.shape for one in observations} == {(128, 128, 3)}
        assert all(parse(one.instruction) is not None for one in observations)
        return [chunk(one, STILL) for one in observations]

    result = evaluate(act, limits, ["reach"], range(5), batch=3, image_control="blank")["reach"]
    assert asked == [3] * 30 + [2] * 30
    assert all(episode.stuck and not episode.success and episode.steps == 30 for episode in result.episodes)


def test_a_policy_sees_the_scene_unless_it_is_blank(limits: Limits) -> None:
    seen: dict[str, set[bytes]] = {}
    for control in ("", "blank"):
        def act(observations: Sequence[Observation], control: str = control) -> list[ActionChunk]:
            seen.setdefault(control, set()).update(one.rgb.tobytes() for one in observations)
            return [chunk(one, STILL) for one in observations]

        evaluate(act, limits, ["reach"], range(2), image_control=control)
    assert len(seen["blank"]) == 1 and len(seen[""]) > 1


def test_faults_hold_the_arm_and_are_counted(limits: Limits) -> None:
    def act(observations: Sequence[Observation]) -> list[ActionChunk]:
        broken = Action(np.array([np.nan, 0.0, 0.0]), np.zeros(3), 1.0)
        return [chunk(one, fault="no") if one.stamp_ns % 400_000_000 else chunk(one, broken) for one in observations]

    result = evaluate(act, limits, ["reach"], [0], image_control="blank")["reach"]
    assert result.episodes[0].faults == 30 and result.episodes[0].stuck
    assert result.to_mapping()["faults"] == 30


def test_answers_that_do_not_fit_are_refused(limits: Limits) -> None:
    with pytest.raises(ActionError, match="2 observations were answered with 0 chunks"):
        evaluate(lambda observations: [], limits, ["reach"], range(2), image_control="blank")
    with pytest.raises(ActionError, match=r"steps of 0.1 s, this loop plays steps of 0.2 s"):
        evaluate(lambda seen: [chunk(one, STILL, step_s=0.1) for one in seen], limits, ["reach"], [0], image_control="blank")


@pytest.mark.parametrize(("kinds", "seeds", "control", "image", "message"), [
    (["push"], [0], "", "", r"tasks \['push'\] are unknown"),
    ([], [0], "", "", "nothing to evaluate: 0 tasks"),
    (["pick"], [], "", "", "0 seeds"),
    (["pick"], [TRAINING_SEEDS.start], "", "", "seed 1000000 is not for evaluation"),
    (["pick"], [-1], "", "", "seed -1 is not for evaluation"),
    (["pick"], [0], "same-colour", "", "instruction control is 'same-colour', expected 'other-colour', or nothing"),
    (["pick"], [0], "", "black", "image control is 'black', expected 'blank', or nothing"),
])
def test_arguments_are_checked(kinds: list[str], seeds: list[int], control: str, image: str, message: str, limits: Limits) -> None:
    with pytest.raises(ConfigurationError, match=message):
        evaluate(EXPERT, limits, kinds, seeds, instruction_control=control, image_control=image)


def test_tasks_are_about_blocks_that_are_there_and_about_each_in_turn() -> None:
    for seed in range(6):
        colours = layout(seed).colours
        assert task_of("pick", seed).colour in colours
        assert other_task(task_of("pick", seed), seed).colour in set(colours) - {task_of("pick", seed).colour}
    asked = [layout(seed).colours.index(task_of("pick", seed).colour) for seed in range(30)]
    assert [asked.count(place) for place in range(3)] == [10, 10, 10]


@pytest.mark.parametrize("phrases", [PHRASES, HELD_OUT_PHRASES])
def test_phrases_are_taken_in_turn(phrases: dict[str, tuple[str, ...]]) -> None:
    task = Task("pick", "red")
    said = {phrase(task, seed, phrases) for seed in range(60)}
    assert len(said) == len(phrases["pick"]) and {parse(text) for text in said} == {task}
    assert phrase(task, 0) == "pick up the red block"


@pytest.mark.parametrize(("successes", "count", "low", "high"), [(0, 0, 0.0, 1.0), (0, 50, 0.0, 0.0714), (143, 150, 0.9068, 0.9772),
                                                                (50, 50, 0.9286, 1.0)])
def test_intervals_are_wilsons(successes: int, count: int, low: float, high: float) -> None:
    assert wilson(successes, count) == pytest.approx((low, high), abs=1e-4)


def test_results_are_counted() -> None:
    red, blue = Task("pick", "red"), Task("pick", "blue")
    result = TaskResult("pick", (Episode(red, red, 0, True, 12, "", False, 0, True),
                                 Episode(red, blue, 1, False, 45, "blue", True, 2, True),
                                 Episode(red, red, 2, True, 15, "", False, 0, True)))
    assert result.to_mapping() == {
        "episodes": 3, "successes": 2, "rate": pytest.approx(2 / 3), "interval_95": pytest.approx(list(wilson(2, 3))), "wrong_object": 1,
        "told_successes": 3, "told_interval_95": pytest.approx(list(wilson(3, 3))), "median_steps": 13.5, "stuck": 1, "faults": 2,
        "failed_seeds": [1]}
    assert TaskResult("pick", ()).median_steps is None and TaskResult("pick", ()).rate == 0.0
