"""What a training step reads is what the policy will see and should say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from openvla_ros.contract import Observation
from openvla_ros.policy.openvla.layout import make_action_tokens, make_processor
from openvla_ros.policy.openvla.preprocess import ImagePath
from openvla_ros.simulation.task import COLOURS, KINDS, PHRASES, PLATE_RADIUS_M, Task, parse
from openvla_ros.training.default_policy.batches import LARGEST_STEP_M, STATISTICS, Batches, choose_tasks, frame_weights
from openvla_ros.training.default_policy.frames import FrameSet
from openvla_ros.training.default_policy.network import ENTITIES, network_shape


@pytest.fixture(scope="module")
def batches(frames: FrameSet) -> Batches:
    return Batches(frames, network_shape())


def test_pixels_are_those_of_inference(batches: Batches, frames: FrameSet) -> None:
    batch = batches.make(np.array([0, 60]), np.random.default_rng(0), 0)
    processor = make_processor(network_shape())
    for row, index in enumerate((0, 60)):
        observation = Observation(np.array(frames.picture(index)), "move to the red block", stamp_ns=0)
        expected = processor.to_pixels(ImagePath(resize="direct").apply(observation, processor.side))
        np.testing.assert_array_equal(batch.pixels[row].numpy(), expected)
        plain = frames.picture(index).transpose(2, 0, 1) / 255.0  # 128 x 128 stays as it is: no resize, no JPEG
        np.testing.assert_allclose(batch.pixels[row, 3:].numpy(), (plain - 0.5) / 0.5, atol=1e-6)


def test_answers_decode_to_the_expert(batches: Batches, frames: FrameSet) -> None:
    random = np.random.default_rng(1)
    batch = batches.make(np.arange(0, 90, 9), random, 9)
    assert batch.pack is not None
    tokens, decode = make_action_tokens(network_shape()), batches.prompt.tokenizer.decode
    for row, index in enumerate(range(0, 90, 9)):
        asked = set()
        for column in range(9):
            start = int(batch.pack.readers[row, column, 0])
            ids = torch.cat([batch.pack.prefix_ids, batch.pack.suffix_ids[row, column, :start + 1]]).tolist()
            task = parse(decode(ids).split("take to ")[1].split("?")[0])
            assert task is not None
            asked.add(task)
            metric = STATISTICS.to_metric(tokens.decode(batch.pack.answers[row, column].tolist()))
            expected = frames.truth.actions[index, KINDS.index(task.kind), COLOURS.index(task.colour)]
            np.testing.assert_allclose(metric[:3], expected[:3], atol=LARGEST_STEP_M / 255 + 1e-6)
            assert metric[3:6].tolist() == [0.0, 0.0, 0.0]
            assert round(metric[6]) == expected[3]
        present = [colour for number, colour in enumerate(COLOURS) if np.isfinite(frames.truth.positions_m[index, number, 0])]
        assert asked == {Task(kind, colour) for kind in KINDS for colour in present}


def test_standing_still_is_exactly_zero() -> None:
    tokens = make_action_tokens(network_shape())
    still = tokens.decode(tokens.encode(STATISTICS.to_normalized(np.array([0.0] * 6 + [1.0]))).tolist())
    assert STATISTICS.to_metric(still)[:6].tolist() == [0.0] * 6
    assert STATISTICS.to_metric(still)[6] > 0.99


def test_questions_point_at_the_right_patch(batches: Batches, frames: FrameSet) -> None:
    batch = batches.make(np.arange(90), np.random.default_rng(2), 3)
    across, patch = batches.across, batches.patch
    for row, entity in np.argwhere(batch.patches.numpy() >= 0):
        column, line = frames.truth.places[row, entity]
        number = int(batch.patches[row, entity])
        middle = np.array([number % across + 0.5, number // across + 0.5]) + batch.details[row, entity, :2].numpy()
        np.testing.assert_allclose(middle * patch, [column + 0.5, line + 0.5], atol=1e-3)
    absent = ~np.isfinite(frames.truth.positions_m[:90, :, 0])
    assert (batch.patches.numpy()[absent] == -1).all() and absent.sum() == 90
    assert torch.isfinite(batch.details).all() and torch.isfinite(batch.scene).all()
    assert (batch.patches[:, ENTITIES.index("tool")] >= 0).float().mean() > 0.9


def test_questions_about_the_grip_have_the_right_answers(batches: Batches, frames: FrameSet) -> None:
    chosen, truth = np.arange(len(frames)), frames.truth
    tasks = choose_tasks(truth, chosen, np.random.default_rng(3), 9)
    batch = batches.make(chosen, np.random.default_rng(3), 9)
    tool_m, plate_m = truth.positions_m[:, ENTITIES.index("tool")], truth.positions_m[:, ENTITIES.index("plate")]
    for row in chosen:
        over = np.hypot(*(tool_m - plate_m)[row, :2]) < PLATE_RADIUS_M
        expected = [[truth.held[row] >= 0, truth.held[row] == colour, over] for _, colour in tasks[row]]
        np.testing.assert_array_equal(batch.grip[row].numpy(), np.array(expected, np.float32))
    held = batch.grip[:, :, 0]
    assert 0.0 < held.mean() < 1.0 and (batch.grip[:, :, 1] <= held).all()


def test_only_blocks_that_are_there_are_asked_for_and_none_twice(frames: FrameSet) -> None:
    chosen = np.arange(90)
    tasks = choose_tasks(frames.truth, chosen, np.random.default_rng(0), 9)
    for row, pairs in enumerate(tasks.tolist()):
        assert len({tuple(pair) for pair in pairs}) == 9
        assert all(np.isfinite(frames.truth.actions[row, kind, colour]).all() for kind, colour in pairs)


def test_a_step_can_be_drawn_again(batches: Batches) -> None:
    one, other = (batches.draw(np.random.default_rng([0, 3, 17]), 4, 5) for _ in range(2))
    assert one.pack is not None and other.pack is not None
    assert torch.equal(one.pixels, other.pixels) and torch.equal(one.pack.suffix_ids, other.pack.suffix_ids)


def test_frames_in_which_fingers_decide_are_drawn_more_often(frames: FrameSet) -> None:
    weights = frame_weights(frames.truth)
    moving = (frames.truth.opening < 0.95) & (frames.truth.held < 0)
    assert weights.min() >= 1.0
    assert not moving.any() or weights[moving].min() > 1.5


def test_every_word_of_the_phrases_is_one_token(batches: Batches) -> None:
    for kind in KINDS:
        for template in PHRASES[kind]:
            text = template.format(colour="red")
            assert len(batches.prompt.encode(text)) == 1 + 8 + len(text.split()) + 4  # BOS, 8 words, text, "?", newline, "Out:", space
