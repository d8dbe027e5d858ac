"""Training examples are those of the released batch transform (`units/` of the golden data)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openvla_ros.policy.openvla.tokens import ActionTokens, PromptEncoder, read_tokenizer
from openvla_ros.training.examples import IGNORED, make_example

STYLES = {"openvla": "tiny_fused", "v01": "tiny_siglip_v01"}


@pytest.fixture(scope="module")
def golden_examples(shared: Path) -> list[dict[str, Any]]:
    examples: list[dict[str, Any]] = json.loads((shared / "golden/units/text_and_actions.json").read_text())["train_examples"]
    assert len(examples) >= 3
    return examples


@pytest.mark.shared
@pytest.mark.parametrize("style", sorted(STYLES))
def test_ids_and_labels_are_the_released_ones(style: str, golden_examples: list[dict[str, Any]], shared: Path) -> None:
    prompt = PromptEncoder(read_tokenizer(shared / "golden" / STYLES[style] / "checkpoint"), style)
    for golden in golden_examples:
        example = make_example(prompt, ActionTokens(32000), 2, golden["instruction"], np.array(golden["action"]))
        assert list(example.input_ids) == golden[style]["input_ids"]
        assert list(example.labels) == golden[style]["labels"]


@pytest.mark.shared
def test_the_prompt_is_masked_and_nothing_else(golden_examples: list[dict[str, Any]], shared: Path) -> None:
    prompt = PromptEncoder(read_tokenizer(shared / "golden/tiny_fused/checkpoint"), "openvla")
    example = make_example(prompt, ActionTokens(32000), 2, "lift the lid", np.zeros(7))
    assert example.input_ids[:example.prompt_length] == tuple(prompt.encode("lift the lid"))
    assert set(example.labels[:example.prompt_length]) == {IGNORED}
    assert example.labels[example.prompt_length:] == example.input_ids[example.prompt_length:]
    assert len(example.labels[example.prompt_length:]) == 8
