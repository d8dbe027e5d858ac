from __future__ import annotations

import numpy as np

from openvla_ros.contract import STEP_S, Action, ActionChunk, Observation
from openvla_ros.robot import Limits
from openvla_ros.simulation import expert
from openvla_ros.simulation.evaluate import EVALUATION_SEEDS
from openvla_ros.simulation.scene import TRAINING_SEEDS
from openvla_ros.simulation.task import COLOURS, KINDS, Task, parse
from openvla_ros.training.default_policy.collect import Drive, Driving, Recorder, collect, label
from openvla_ros.training.default_policy.network import ENTITIES


def test_labels_are_the_expert_for_every_task_and_nothing_for_absent_blocks(limits: Limits) -> None:
    drive = Drive(Driving(episode_steps=5), limits, np.random.default_rng(1))
    actions = label(drive.state)
    for kind, name in enumerate(KINDS):
        for colour, word in enumerate(COLOURS):
            if word in drive.state.blocks:
                action = expert.act(drive.state, Task(name, word))
                np.testing.assert_array_equal(actions[kind, colour], [*action.translation_m, action.gripper])
            else:
                assert np.isnan(actions[kind, colour]).all()


def test_places_are_where_the_blocks_are_seen(recorder: Recorder) -> None:
    truth, hits, looks = recorder.truth(), 0, 0
    for picture, places in zip(recorder.pictures, truth.places, strict=True):
        for colour in ("red", "blue"):
            column, row = places[ENTITIES.index(colour)]
            if np.isfinite(column):
                patch = picture[round(row) - 1:round(row) + 2, round(column) - 1:round(column) + 2].mean(axis=(0, 1))
                hits += int(patch.argmax() == (0 if colour == "red" else 2) and patch.max() > 1.5 * np.median(patch))
                looks += 1
    assert looks > 60 and hits > 0.8 * looks  # the rest is hidden by the arm


def test_the_expert_shows_all_parts_of_the_tasks(recorder: Recorder) -> None:
    truth = recorder.truth()
    assert 0.05 < (truth.held >= 0).mean() < 0.8
    assert truth.positions_m[:, ENTITIES.index("tool"), 2].min() < 0.05 < 0.12 < truth.positions_m[:, ENTITIES.index("tool"), 2].max()
    assert np.nanmax(np.abs(truth.actions[..., :3])) <= 0.035


def test_the_same_seed_gives_the_same_frames(limits: Limits) -> None:
    one, other = (collect(8, Driving(episode_steps=4), limits, np.random.default_rng(7)) for _ in range(2))
    for picture, again in zip(one.pictures, other.pictures, strict=True):
        np.testing.assert_array_equal(picture, again)
    np.testing.assert_array_equal(one.truth().actions, other.truth().actions)


def test_training_and_evaluation_have_no_layout_in_common() -> None:
    assert not set(range(TRAINING_SEEDS.start, TRAINING_SEEDS.start + 10)) & set(EVALUATION_SEEDS)
    assert EVALUATION_SEEDS.stop <= TRAINING_SEEDS.start


def test_a_policy_that_drives_sees_what_is_recorded(limits: Limits) -> None:
    seen: list[Observation] = []

    def act(observations: list[Observation]) -> list[ActionChunk]:
        seen.extend(observations)
        down = Action(np.array([0.0, 0.0, -0.01]), np.zeros(3), 1.0)
        return [ActionChunk((down,) if row else (), STEP_S, 0) for row, _ in enumerate(observations)]  # the first one gives none: it stays

    recorder = collect(9, Driving(episode_steps=20), limits, np.random.default_rng(2), act, worlds=3)
    assert len(recorder.pictures) == 9 == len(seen)
    for picture, observation in zip(recorder.pictures, seen, strict=True):
        np.testing.assert_array_equal(picture, observation.rgb)
        assert parse(observation.instruction) is not None
