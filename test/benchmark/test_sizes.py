"""Random networks: the stated sizes, the published shapes, no degenerate answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from openvla_ros.benchmark.sizes import INSTRUCTION, SIZES, RandomSource, count_parameters, random_policy
from openvla_ros.contract import Observation
from openvla_ros.errors import ConfigurationError
from openvla_ros.policy.openvla.layout import layout_shapes

CPU = torch.device("cpu")


def test_the_stated_numbers_of_parameters() -> None:
    assert count_parameters(SIZES["7b"]) == 7_541_237_184, "openvla-7b"
    assert count_parameters(SIZES["mid"]) == 680_711_424
    assert count_parameters(SIZES["tiny"]) < 2e6


@pytest.mark.shared
def test_the_shapes_of_openvla_7b(shared: Path) -> None:
    published = json.loads((shared / "data" / "openvla_7b_tensors.json").read_text())
    tensors = published.get("tensors", published)
    shapes = {name: tuple(entry["shape"]) for name, entry in tensors.items()} if isinstance(tensors, dict) else {
        entry["name"]: tuple(entry["shape"]) for entry in tensors}
    assert layout_shapes(SIZES["7b"]) == shapes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_weights_always_answer_with_actions(dtype: torch.dtype) -> None:
    policy, _ = random_policy("tiny", CPU, dtype)
    random, answers = np.random.default_rng(0), set()
    for _ in range(30):
        rgb = random.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
        answer = policy.predict(Observation(rgb, INSTRUCTION, 0))
        assert not answer.fault and len(answer.token_ids) == 7
        answers.add(answer.token_ids)
    assert len(answers) > 20, "the picture matters"
    assert any("random weights" in note for note in policy.notes)
    assert len(policy.prompt.encode(INSTRUCTION)) == 24


def test_tensors_are_the_same_for_a_seed_and_no_rows_are_twice() -> None:
    source, again, other = (RandomSource(SIZES["tiny"], torch.float32, seed) for seed in (0, 0, 1))
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    assert torch.equal(source.read(name), again.read(name)) and not torch.equal(source.read(name), other.read(name))
    rows = source.read("language_model.model.embed_tokens.weight")
    assert len(torch.unique(rows, dim=0)) == len(rows)
    assert rows.std() == pytest.approx(0.2, rel=0.02)


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="expected one of tiny, mid, 7b"):
        random_policy("huge", CPU, torch.float32)
