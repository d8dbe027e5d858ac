"""The model against golden files that the released OpenVLA code made. Tolerances: the golden data's own README."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from openvla_ros.contract import Observation

pytestmark = pytest.mark.shared

Case = tuple[str, dict[str, Any], dict[str, np.ndarray]]


def test_case_in_float32(case: Case, load_golden) -> None:  # type: ignore[no-untyped-def]
    name, description, arrays = case
    policy = load_golden(name, description["unnorm_key"], dtype="float32")
    result = policy.predict(Observation(arrays["image"], description["instruction"], 0), keep_logits=True)
    assert list(result.input_ids) == description["model_input_ids"]
    assert list(result.generated_ids) == description["generated_ids"]
    assert list(result.token_ids) == description["action_token_ids"]
    assert policy.tokens.bins_of(result.token_ids).tolist() == description["bin_indices"]
    np.testing.assert_allclose(result.normalized_action, arrays["normalized_action"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.action, arrays["action"], rtol=0, atol=1e-12)
    assert result.logits is not None and result.logits.dtype == np.float32
    np.testing.assert_allclose(result.logits, arrays["logits"], rtol=0, atol=2e-4)
    assert bool(result.fault) == (description["early_eos"] or not all(description["in_action_range"]))
    assert list(result.stage_ms) == ["preprocess", "upload", "vision", "prefill", "decode"]


def test_case_in_recorded_shapes(case: Case, load_golden, recorded) -> None:  # type: ignore[no-untyped-def]
    """Prompts filled up to a multiple of 16 tokens, everything in fixed memory: what a GPU runs as recorded graphs. With the draft of the
    case before, which is wrong, then with its own answer, which is right."""
    name, description, arrays = case
    policy = recorded(load_golden(name, description["unnorm_key"], dtype="float32"))
    observation, count = Observation(arrays["image"], description["instruction"], 0), policy.statistics.length
    for attempt in range(3):
        if attempt == 0:
            policy.forget()
        if attempt == 2:
            policy.answered = [[*description["generated_ids"], *[0] * count][:count]]
        result = policy.predict(observation, keep_logits=True)
        assert list(result.generated_ids) == description["generated_ids"]
        np.testing.assert_allclose(result.logits, arrays["logits"], rtol=0, atol=2e-4)
        assert result.passes <= count and (attempt or result.passes == count)
    assert result.passes == 1 or description["early_eos"]


def test_case_with_any_draft(case: Case, load_golden) -> None:  # type: ignore[no-untyped-def]
    name, description, arrays = case
    policy = load_golden(name, description["unnorm_key"], dtype="float32")
    observation, count = Observation(arrays["image"], description["instruction"], 0), policy.statistics.length
    answer = [*description["generated_ids"], *[0] * count][:count]
    for wrong in (0, 3, count - 2, count):
        policy.answered = [[*answer[:wrong], *[5] * (count - wrong)]]
        result = policy.predict(observation, keep_logits=True)
        assert list(result.generated_ids) == description["generated_ids"] and bool(result.fault) == bool(
            description["early_eos"] or not all(description["in_action_range"]))
        np.testing.assert_allclose(result.logits, arrays["logits"], rtol=0, atol=2e-4)
        assert result.passes <= count and (description["early_eos"] or result.confirmed == min(wrong, count - 1))


@pytest.mark.gpu
@pytest.mark.parametrize("draft", ["none", "previous"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_case_on_a_gpu(case: Case, load_golden, dtype: str, draft: str) -> None:  # type: ignore[no-untyped-def]
    name, description, arrays = case
    policy = load_golden(name, description["unnorm_key"], device="cuda", dtype=dtype, draft=draft)
    assert policy.recorded is not None and policy.notes == ()
    for _ in range(2):
        result = policy.predict(Observation(arrays["image"], description["instruction"], 0), keep_logits=True)
        assert list(result.generated_ids) == description["generated_ids"]
        np.testing.assert_allclose(result.logits[0], arrays["logits"][0], rtol=0, atol={"float32": 2e-3, "bfloat16": 0.5}[dtype])


def test_case_stages_in_float32(case: Case, load_golden) -> None:  # type: ignore[no-untyped-def]
    name, _, arrays = case
    policy = load_golden(name, dtype="float32")
    pixels = policy.processor.to_pixels(arrays["image"])
    np.testing.assert_allclose(pixels, arrays["pixel_values"], rtol=0, atol=1e-6)
    with torch.inference_mode():
        features = policy.model.vision_backbone(torch.from_numpy(pixels)[None])
        embeddings = policy.model.projector(features)
    np.testing.assert_allclose(features[0], arrays["vision_features"], rtol=0, atol=5e-6)
    np.testing.assert_allclose(embeddings[0], arrays["projected_patch_embeddings"], rtol=0, atol=5e-6)


def test_case_in_bfloat16(case: Case, load_golden) -> None:  # type: ignore[no-untyped-def]
    name, description, arrays = case
    policy = load_golden(name, description["unnorm_key"], dtype="bfloat16")
    result = policy.predict(Observation(arrays["image"], description["instruction"], 0), keep_logits=True)
    assert list(result.generated_ids) == description["generated_ids"]
    np.testing.assert_allclose(result.action, arrays["action"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.logits[0], arrays["logits"][0], rtol=0, atol=0.5)


def test_act_turns_a_good_case_into_a_step_and_a_bad_one_into_a_fault(golden, load_golden) -> None:  # type: ignore[no-untyped-def]
    policy = load_golden("tiny_fused", "bridge_orig", dtype="float32")
    good, early_end, foreign = (np.load(golden / "tiny_fused" / "cases" / f"{name}.npz") for name in
                                ("c01_bridge_sink", "c07_early_eos", "c00_bridge_spoon"))
    instructions = {line["name"]: line for line in json.loads((golden / "tiny_fused" / "cases.json").read_text())["cases"]}
    chunk = policy.act(Observation(good["image"], instructions["c01_bridge_sink"]["instruction"], 17))
    assert len(chunk.steps) == 1 and not chunk.fault and chunk.observation_stamp_ns == 17 and chunk.step_s == 0.2
    assert chunk.policy_name == "checkpoint" and list(chunk.token_ids) == instructions["c01_bridge_sink"]["action_token_ids"]
    for arrays, name, words in ((early_end, "c07_early_eos", "ended its answer early, at token 4 of 7"),
                                (foreign, "c00_bridge_spoon", "token 16097 at place 6 of 7 is no action; those are 31744 to 31999")):
        chunk = policy.act(Observation(arrays["image"], instructions[name]["instruction"], 18))
        assert chunk.steps == () and words in chunk.fault
        assert list(chunk.token_ids) == instructions[name]["generated_ids"]
