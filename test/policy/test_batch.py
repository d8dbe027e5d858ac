"""Many observations at once: every row is answered as if it had come alone, faults included."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from openvla_ros.contract import Observation
from openvla_ros.errors import InstructionError, NotEnoughMemory
from openvla_ros.policy.catalogue import PolicySettings
from openvla_ros.policy.openvla.loading import load_openvla
from openvla_ros.policy.openvla.passes import Passes
from openvla_ros.policy.openvla.policy import OpenvlaPolicy, Prediction
from openvla_ros.policy.openvla.untrained import write_untrained

MARGIN = 1e-3
"""Where the two largest logits are nearer than this part of the largest, rounding may choose the other token."""

INSTRUCTIONS = ("put the red cube on the plate", "open the drawer", "close the drawer", "z", "put the spoon on the towel")


@pytest.fixture
def policy(tmp_path_factory: pytest.TempPathFactory) -> OpenvlaPolicy:
    folder = tmp_path_factory.mktemp("batch") / "tiny"
    write_untrained(folder)
    return load_openvla(PolicySettings(str(folder), device="cpu", dtype="float32"), progress=False)


@pytest.fixture(scope="module")
def observations() -> list[Observation]:
    random = np.random.default_rng(5)
    return [Observation(random.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1),
                        INSTRUCTIONS[index % len(INSTRUCTIONS)], stamp_ns=index) for index in range(11)]


def assert_same(batch: Sequence[Prediction], singles: Sequence[Prediction]) -> None:
    """Equal tokens up to the first choice that rounding could have turned."""
    assert len(batch) == len(singles)
    for one, other in zip(batch, singles, strict=True):
        assert one.logits is not None and other.logits is not None
        assert one.input_ids == other.input_ids
        top = np.sort(other.logits, axis=1)[:, -2:]
        close = np.flatnonzero(top[:, 1] - top[:, 0] < MARGIN * np.abs(top[:, 1]))
        sure = int(close[0]) if len(close) else len(other.generated_ids)
        assert one.generated_ids[:sure] == other.generated_ids[:sure]
        np.testing.assert_allclose(one.logits[:sure], other.logits[:sure], rtol=0, atol=1e-4 * np.abs(other.logits).max())
        if sure == len(other.generated_ids):
            assert one.generated_ids == other.generated_ids and one.fault == other.fault
            np.testing.assert_array_equal(one.action, other.action)


def test_rows_with_mixed_instructions_equal_single_runs(policy: OpenvlaPolicy, observations: list[Observation]) -> None:
    singles = [policy.predict(observation, keep_logits=True) for observation in observations]
    assert len({len(single.input_ids) for single in singles}) > 2, "prompts of several lengths in one pass"
    assert_same(policy.predict_batch(observations, keep_logits=True), singles)
    assert_same(policy.predict_batch(observations[:3], keep_logits=True), singles[:3])  # fewer rows than the cache has
    chunks = policy.act_batch(observations)
    assert [chunk.observation_stamp_ns for chunk in chunks] == [observation.stamp_ns for observation in observations]
    assert [chunk.instruction for chunk in chunks] == [observation.instruction for observation in observations]
    assert all(len(chunk.steps) == 1 and chunk.policy_name == policy.name and "decode" in chunk.stage_ms for chunk in chunks)
    assert policy.act_batch([]) == []


@pytest.mark.shared
@pytest.mark.parametrize("name", ["tiny_fused", "tiny_siglip_v01"])
def test_golden_cases_in_one_batch(golden: Path, load_golden, name: str) -> None:  # type: ignore[no-untyped-def]
    """Among them rows that end early and rows with tokens that are no action."""
    policy = load_golden(name, dtype="float32")
    cases = json.loads((golden / name / "cases.json").read_text())["cases"]
    observations = [Observation(np.load(golden / name / case["file"])["image"], case["instruction"], 0) for case in cases]
    together = policy.predict_batch(observations, keep_logits=True)
    assert_same(together, [policy.predict(observation, keep_logits=True) for observation in observations])
    for case, prediction in zip(cases, together, strict=True):
        if len(case["bin_indices"]) == policy.statistics.length:
            assert list(prediction.generated_ids) == case["generated_ids"]
            assert bool(prediction.fault) == (case["early_eos"] or not all(case["in_action_range"]))


def test_a_row_of_nan_disturbs_no_other(policy: OpenvlaPolicy, observations: list[Observation]) -> None:
    spoon = [index for index, observation in enumerate(observations) if "spoon" in observation.instruction]
    sound = policy.act_batch(observations)
    policy.model.language_model.model.embed_tokens.weight[policy.prompt.tokenizer.token_to_id("\u2581spoon")] = float("nan")
    for index, (before, chunk) in enumerate(zip(sound, policy.act_batch(observations), strict=True)):
        if index in spoon:
            assert chunk.steps == () and "NaN or infinity" in chunk.fault
        else:
            assert chunk.token_ids == before.token_ids and len(chunk.steps) == 1 and not chunk.fault


def test_an_instruction_that_cannot_be_read_refuses_the_batch(policy: OpenvlaPolicy, observations: list[Observation]) -> None:
    wrong = Observation(observations[0].rgb, "say </s>", 0)
    with pytest.raises(InstructionError, match="special token"):
        policy.act_batch([*observations, wrong])


def test_cancel_ends_every_row(policy: OpenvlaPolicy, observations: list[Observation], monkeypatch: pytest.MonkeyPatch) -> None:
    more = Passes.more

    def cancelled_at_the_first_pass(*arguments):  # type: ignore[no-untyped-def]
        policy.cancel()
        return more(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Passes, "more", cancelled_at_the_first_pass)
        assert {chunk.fault for chunk in policy.act_batch(observations)} == {"cancelled after 2 of 7 tokens"}
    assert not any(chunk.fault for chunk in policy.act_batch(observations))


def test_the_cache_is_made_once_and_refused_where_it_has_no_room(policy: OpenvlaPolicy, observations: list[Observation]) -> None:
    alike = [Observation(observation.rgb, "open the drawer", 0) for observation in observations]
    policy.act_batch(alike)
    address = policy.batch_cache.keys[0].data_ptr()
    policy.act_batch(alike[:4])
    policy.act_batch(alike)
    assert policy.batch_cache.keys[0].data_ptr() == address
    with pytest.raises(NotEnoughMemory, match=r"a batch of 10000000 needs .* GB on cpu .* Use smaller batches"):
        policy.cache_for(10_000_000)
    assert not policy.act(alike[0]).fault
