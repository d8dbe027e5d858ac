"""Drafts through a real model: the answers of a moving scene are those of plain greedy decoding, alone, in batches and in fixed shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from openvla_ros.contract import Observation
from openvla_ros.policy.catalogue import PolicySettings
from openvla_ros.policy.openvla.loading import load_openvla
from openvla_ros.policy.openvla.policy import OpenvlaPolicy, Prediction
from openvla_ros.policy.openvla.untrained import write_untrained
from openvla_ros.policy.statistics import check_statistics

MARGIN = 1e-3
"""Where the two largest logits are nearer than this part of the largest, rounding may choose the other token."""

TEXTS = ("put the red cube on the plate", "open the drawer", "z", "put the spoon on the towel")


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., OpenvlaPolicy]:
    folder = tmp_path_factory.mktemp("drafts") / "tiny"
    write_untrained(folder)
    return lambda device="cpu", **settings: load_openvla(
        PolicySettings(str(folder), device=device, dtype="float32", **settings), progress=False)


def scene(moved: float, seed: int = 5) -> np.ndarray:
    """A picture of coloured squares with so much of a second one mixed in."""
    random = np.random.default_rng(seed)
    one, other = (random.integers(0, 256, (6, 8, 3)).repeat(16, 0).repeat(16, 1) for _ in range(2))
    return ((1.0 - moved) * one + moved * other).astype(np.uint8)


def sure_tokens(prediction: Prediction) -> int:
    """How many of the first tokens rounding cannot turn."""
    assert prediction.logits is not None
    top = np.sort(prediction.logits, axis=1)[:, -2:]
    close = np.flatnonzero(top[:, 1] - top[:, 0] < MARGIN * np.abs(top[:, 1]))
    return int(close[0]) if len(close) else len(prediction.generated_ids)


def assert_same(drafted: Sequence[Prediction], plain: Sequence[Prediction]) -> None:
    for one, other in zip(drafted, plain, strict=True):
        sure = sure_tokens(other)
        assert one.generated_ids[:sure] == other.generated_ids[:sure]
        assert one.passes <= other.passes == 7


@pytest.mark.parametrize("recorded", [False, True])
def test_a_moving_scene(load: Callable[..., OpenvlaPolicy], recorded: bool) -> None:
    drafting, plain = load(), load(draft="none")
    if recorded:
        drafting.record_passes()
    frames = [Observation(scene(moved), TEXTS[index // 6 % 4], stamp_ns=index)
              for index, moved in enumerate([0.0, 0.0, 0.01, 0.02, 0.2, 0.4, 0.4, 0.41, 0.9, 0.9, 0.0, 0.0])]
    found, expected = ([policy.predict(frame, keep_logits=True) for frame in frames] for policy in (drafting, plain))
    assert_same(found, expected)
    assert found[0].passes == 7 and found[0].confirmed == 0, "nothing to try yet"
    for before, prediction in zip(expected, found[1:], strict=False):
        agreeing = [one == other for one, other in zip(before.generated_ids[:6], prediction.generated_ids, strict=False)]
        assert prediction.confirmed == [*agreeing, False].index(False)
    assert found[1].passes == 1 and found[1].pass_ms == (), "the same frame again"
    assert sum(prediction.passes for prediction in found) < 7 * len(found)
    facts = drafting.facts()
    assert facts["passes per action"] == pytest.approx(np.mean([prediction.passes for prediction in found]))
    assert facts["tokens confirmed from the draft"] == pytest.approx(np.mean([prediction.confirmed for prediction in found]))
    assert plain.facts()["passes per action"] == 7 and all(len(prediction.pass_ms) == 6 for prediction in expected)


def test_rows_of_a_batch_each_have_their_draft(load: Callable[..., OpenvlaPolicy]) -> None:
    drafting, plain = load(), load(draft="none")

    def robots(moved: Sequence[float]) -> list[Observation]:
        return [Observation(scene(each, seed), TEXTS[seed], stamp_ns=0) for seed, each in enumerate(moved)]

    for moved in ([0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.01, 0.0], [0.9, 0.5, 0.01, 0.1]):
        found = drafting.predict_batch(robots(moved), keep_logits=True)
        expected = plain.predict_batch(robots(moved), keep_logits=True)
        assert_same(found, expected)
        for one, other in zip(found, expected, strict=True):
            if sure_tokens(other) == 7:
                np.testing.assert_allclose(one.logits, other.logits, rtol=0, atol=1e-4 * np.abs(other.logits).max())
    assert drafting.predict_batch(robots([0.9, 0.5, 0.01, 0.1]))[0].passes == 1
    assert drafting.predict_batch(robots([0.9, 0.5]))[0].passes == 7, "other rows than before"


def test_what_was_no_action_is_no_draft(load: Callable[..., OpenvlaPolicy]) -> None:
    policy = load()
    observation = Observation(scene(0.0), TEXTS[0], stamp_ns=0)
    policy.predict(observation)
    policy.statistics = check_statistics("other", {"action": {"q01": [-1.0] * 4, "q99": [1.0] * 4}})
    assert policy.predict(observation).passes == 4, "the answer before was longer"
    assert policy.predict(observation).passes == 1
    policy.forget()
    assert policy.predict(observation).passes == 4
    tokens, policy.tokens = policy.tokens, type(policy.tokens)(100)  # from now on no token of the model's is an action
    assert "is no action" in policy.predict(observation).fault
    policy.tokens = tokens
    assert policy.predict(observation).passes == 4


@pytest.mark.parametrize("rows", [1, 3])
def test_nan_in_one_answer_does_not_reach_the_next(load: Callable[..., OpenvlaPolicy], rows: int) -> None:
    policy, plain = load(), load(draft="none")
    policy.record_passes()
    observations = [Observation(scene(0.1, seed), TEXTS[seed], stamp_ns=0) for seed in range(rows)]
    place = policy.model.vision_backbone.featurizer.pos_embed
    sound = place.clone()
    place[0, 3] = float("nan")
    assert all("NaN or infinity" in prediction.fault for prediction in policy.predict_batch(observations))
    place.copy_(sound)
    for _ in range(2):
        assert_same(policy.predict_batch(observations, keep_logits=True), plain.predict_batch(observations, keep_logits=True))


def test_pictures_become_the_processors_numbers(load: Callable[..., OpenvlaPolicy]) -> None:
    policy = load()
    policy.record_passes()
    rgb = scene(0.3)
    expected = torch.from_numpy(policy.processor.to_pixels(rgb))
    assert policy.recorded is not None
    for passes in (policy.passes, policy.recorded):
        with torch.inference_mode():
            pixels = passes.look([policy.prepare(Observation(rgb, "z", stamp_ns=0))])
        assert pixels.shape == (1, 6, 128, 128) and torch.equal(pixels[0], expected)


@pytest.mark.gpu
def test_recorded_graphs_answer_as_the_cpu(load: Callable[..., OpenvlaPolicy]) -> None:
    plain, on_gpu = load(draft="none"), load("cuda")
    assert on_gpu.recorded is not None
    frames = [Observation(scene(moved), text, stamp_ns=0) for moved in (0.0, 0.0, 0.2, 0.9) for text in TEXTS]
    assert_same([on_gpu.predict(frame, keep_logits=True) for frame in frames],
                [plain.predict(frame, keep_logits=True) for frame in frames])
