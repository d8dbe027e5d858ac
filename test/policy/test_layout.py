"""Checkpoints that we write: whole or not at all, loaded by the loader of the released ones, with the text we taught."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from openvla_ros.contract import Observation
from openvla_ros.errors import CheckpointError, ConfigurationError
from openvla_ros.policy.catalogue import PolicySettings
from openvla_ros.policy.openvla.language import DecoderShape
from openvla_ros.policy.openvla.layout import (
    BINS,
    PADDING,
    complete,
    count_tokens,
    make_action_tokens,
    make_processor,
    make_prompt_encoder,
    write_checkpoint,
    write_folder,
)
from openvla_ros.policy.openvla.loading import load_openvla
from openvla_ros.policy.openvla.model import ModelShape, OpenvlaModel
from openvla_ros.policy.openvla.vision import TowerShape

WORDS = ("move", "pick", "up", "the", "red", "block")
SHAPE = ModelShape(
    towers=(TowerShape(width=24, depth=3, heads=3, mlp=48, side=64, patch=16, prefix=1, layer_scale=True),
            TowerShape(width=24, depth=2, heads=3, mlp=48, side=64, patch=16, prefix=0, layer_scale=False)),
    decoder=DecoderShape(vocab_size=count_tokens(WORDS) + PADDING, hidden_size=48, intermediate_size=96, num_hidden_layers=2,
                         num_attention_heads=3, num_key_value_heads=3, head_dim=16, max_position_embeddings=512))
STATISTICS: dict[str, Any] = {"action": {"q01": [-0.03] * 3 + [0.0] * 3 + [0.0], "q99": [0.03] * 3 + [0.0] * 3 + [1.0],
                                         "mask": [True] * 6 + [False]}}


def trained_tensors(seed: int = 0) -> dict[str, Tensor]:
    """What a training run has: the tensors of the network, without those that nobody reads."""
    torch.manual_seed(seed)
    return {name: tensor.detach() for name, tensor in OpenvlaModel(SHAPE).state_dict().items()}


def write(folder: Path, tensors: dict[str, Tensor] | None = None, **settings: Any) -> int:
    return write_checkpoint(folder, SHAPE, complete(SHAPE, tensors or trained_tensors()), WORDS, "mine", STATISTICS, "# Card\n", **settings)


@pytest.mark.parametrize("stored_as", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("run_as", ["float32", "bfloat16"])
def test_half_precision_weights_load_and_run(tmp_path: Path, stored_as: torch.dtype, run_as: str) -> None:
    tensors = trained_tensors()
    write(tmp_path / "small", tensors, dtype=stored_as)
    policy = load_openvla(PolicySettings(str(tmp_path / "small"), device="cpu", dtype=run_as), progress=False)
    kept = {name: tensor for name, tensor in policy.model.state_dict().items() if name in tensors}  # the others were joined or packed
    assert "language_model.model.embed_tokens.weight" in kept
    for name, tensor in kept.items():
        assert torch.equal(tensor, tensors[name].to(stored_as).to(policy.dtype)), name
    prediction = policy.predict(Observation(np.full((64, 64, 3), 90, dtype=np.uint8), "pick up the red block", 0), keep_logits=True)
    assert prediction.logits is not None and np.isfinite(prediction.logits).all()
    assert policy.notes == () and policy.statistics.key == "mine"


def test_what_training_uses_is_what_the_loader_reads(tmp_path: Path) -> None:
    write(tmp_path / "small")
    policy = load_openvla(PolicySettings(str(tmp_path / "small"), device="cpu", dtype="float32"), progress=False)
    trained = make_prompt_encoder(WORDS, SHAPE)
    for instruction in ("pick up the red block", "Paint the GREEN-ish \u4e2d thing!"):
        assert policy.prompt.prompt(instruction) == trained.prompt(instruction)
        assert policy.prompt.encode(instruction) == trained.encode(instruction)
    assert policy.processor == make_processor(SHAPE)
    assert policy.tokens == make_action_tokens(SHAPE)
    assert policy.tokens.first_id == count_tokens(WORDS) - BINS


def test_a_known_word_is_one_token_and_an_unknown_one_is_spelled() -> None:
    encoder = make_prompt_encoder(WORDS, SHAPE)
    empty = len(encoder.encode(""))
    assert len(encoder.encode("pick up the red block")) == empty + 5
    assert len(encoder.encode("pick up the redder block")) == empty + 8


def test_the_unused_tensors_are_there_and_let_everything_pass() -> None:
    trained = trained_tensors()
    added = {name: tensor for name, tensor in complete(SHAPE, trained).items() if name not in trained}
    assert {"vision_backbone.featurizer.blocks.2.attn.qkv.weight", "vision_backbone.fused_featurizer.norm.weight",
            "vision_backbone.fused_featurizer.attn_pool.latent"} <= added.keys()
    assert all(bool((tensor == (1.0 if ("norm" in name and name.endswith("weight")) or name.endswith("scale_factor") else 0.0)).all())
               for name, tensor in added.items())


def test_layout_of_the_folder(tmp_path: Path) -> None:
    stored = write(tmp_path / "small", extra={"evaluation.json": b"{}"})
    assert {path.name for path in (tmp_path / "small").iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json",
        "tokenizer_config.json", "README.md", "evaluation.json"}
    assert 2 * stored < (tmp_path / "small" / "model.safetensors").stat().st_size < 2 * stored + 20_000
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert config["norm_stats"] == {"mine": STATISTICS} and config["untrained"] is False and config["torch_dtype"] == "float16"
    assert (tmp_path / "small" / "README.md").read_text() == "# Card\n"


def test_only_a_checkpoint_of_the_same_kind_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "small")
    before = (tmp_path / "small" / "model.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=r"exists already.*--force"):
        write(tmp_path / "small")
    with pytest.raises(CheckpointError, match=r"exists already. Choose another name\.$"):
        write(tmp_path / "small", untrained=True, force=True)
    assert (tmp_path / "small" / "model.safetensors").read_bytes() == before
    write(tmp_path / "small", trained_tensors(seed=1), force=True)
    assert (tmp_path / "small" / "model.safetensors").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["small"], "nothing unfinished is left"


def test_a_checkpoint_that_could_not_be_loaded_is_not_written(tmp_path: Path) -> None:
    tensors = complete(SHAPE, trained_tensors())
    name = "projector.fc1.bias"
    for wrong, words, message in (
            ({**tensors, name: torch.full_like(tensors[name], 1e6)}, WORDS, rf"{name} holds NaN.*too large for float16"),
            ({**tensors, name: torch.zeros(5)}, WORDS, rf"wrong shape: {name} \[5\]"),
            (trained_tensors(), WORDS, r"missing: vision_backbone\.featurizer\.blocks\.2"),
            (tensors, (*WORDS, "banana"), r"the words take \d+ tokens.*vocab_size of at least \d+")):
        with pytest.raises((CheckpointError, ConfigurationError), match=message):
            write_checkpoint(tmp_path / "small", SHAPE, wrong, words, "mine", STATISTICS, "")
    turned = replace(SHAPE, decoder=replace(SHAPE.decoder, rope_theta=100.0))
    with pytest.raises(CheckpointError, match=r"cannot say .*rope_theta=100\.0"):
        write_checkpoint(tmp_path / "small", turned, tensors, WORDS, "mine", STATISTICS, "")
    with pytest.raises(CheckpointError, match="q99 is below q01"):
        write_checkpoint(tmp_path / "small", SHAPE, tensors, WORDS, "mine", {"action": {"q01": [1.0], "q99": [0.0]}}, "")
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_stays_when_writing_fails(tmp_path: Path) -> None:
    write_folder(tmp_path / "small", {"a": b"old"})
    with pytest.raises(OSError):
        write_folder(tmp_path / "small", {"a": b"new", "no/such/folder": b""})
    assert (tmp_path / "small" / "a").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
