"""A small checkpoint of the true architecture with random weights, for trying everything out without a trained model.

It has both towers, the fused projector, a Llama decoder and the files of the published layout, so it goes through the same code
as openvla-7b. Its actions mean nothing.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from openvla_ros.errors import ConfigurationError
from openvla_ros.policy.openvla.language import DecoderShape
from openvla_ros.policy.openvla.layout import BINS, PADDING, layout_shapes, passes, write_checkpoint
from openvla_ros.policy.openvla.model import ModelShape
from openvla_ros.policy.openvla.vision import TowerShape

SIZES = ("tiny",)
KEY = "untrained"
VOCABULARY = 1024

TINY = ModelShape(
    towers=(TowerShape(width=64, depth=4, heads=4, mlp=192, side=128, patch=16, prefix=5, layer_scale=True),
            TowerShape(width=72, depth=3, heads=4, mlp=160, side=128, patch=16, prefix=0, layer_scale=False)),
    decoder=DecoderShape(vocab_size=VOCABULARY + PADDING, hidden_size=128, intermediate_size=256, num_hidden_layers=4,
                         num_attention_heads=4, num_key_value_heads=4, head_dim=32, max_position_embeddings=1024))

LIMITS = (0.02, 0.02, 0.02, 0.06, 0.06, 0.1)
"""Largest step the checkpoint can ask for [m, rad]: of the size of BridgeData's 99th percentile."""

WORDS = ("a", "an", "and", "the", "to", "in", "on", "of", "into", "from", "near", "next", "behind", "under", "over", "left", "right", "top",
         "put", "pick", "place", "move", "take", "push", "pull", "open", "close", "lift", "turn", "fold", "stack", "wipe", "up", "down",
         "red", "green", "blue", "yellow", "cube", "block", "cup", "bowl", "pot", "pan", "plate", "spoon", "fork", "knife", "towel",
         "cloth", "carrot", "eggplant", "broccoli", "drawer", "sink", "table", "robot", "gripper", "object")

README = """# Untrained checkpoint

Made by `openvla-ros make-checkpoint`. **The weights are random numbers: its actions mean nothing.** It has the architecture and the
file layout of OpenVLA, in miniature, so that the whole system can be started and tested without a trained model. Every action it
gives is inside small limits (2 cm, 0.1 rad per step), but it is not aimed at anything. Do not run it on a real arm.

Statistics key: `{key}`. Seed: {seed}. Own tokenizer, in the structure of Llama's; no data and no weights of others.
"""


def write_untrained(folder: Path, size: str = "tiny", seed: int = 0, force: bool = False) -> int:
    """Write the checkpoint; the folder appears at once and whole. Returns the number of parameters.

    Raises ConfigurationError for an unknown size, CheckpointError if the folder exists; `force` replaces an untrained one only.
    """
    if size not in SIZES:
        raise ConfigurationError(f"size is {size!r}, expected one of {', '.join(SIZES)}.")
    statistics = {"action": {"q01": [*(-limit for limit in LIMITS), 0.0], "q99": [*LIMITS, 1.0], "mask": [True] * 7},
                  "num_trajectories": 0, "num_transitions": 0}
    return write_checkpoint(folder, TINY, random_tensors(TINY, seed), WORDS, KEY, statistics, README.format(key=KEY, seed=seed),
                            torch.bfloat16, untrained=True, force=force)


def random_tensors(shape: ModelShape, seed: int) -> dict[str, Tensor]:
    """Every tensor of the published layout, the unused ones included, in float32; the same for the same seed."""
    shapes = layout_shapes(shape)
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: random_tensor(name, shapes[name], generator) for name in sorted(shapes)}
    tensors["language_model.lm_head.weight"] = action_head(shape.decoder, generator)
    return tensors


def random_tensor(name: str, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Scales that let picture and text reach the output: norms pass, layer scale is 1, position weighs less than content."""
    if passes(name):
        return torch.zeros(size) if name.endswith("bias") else torch.ones(size)
    values = torch.randn(size, generator=generator)
    if name.endswith(("bias", "_token", "pos_embed", "latent")):
        return 0.1 * values
    if name.endswith("embed_tokens.weight"):
        return 0.2 * values
    gain = 2.0 if name.endswith(("q_proj.weight", "k_proj.weight")) else 1.0
    return gain * values / math.sqrt(math.prod(size[1:]))


def action_head(decoder: DecoderShape, generator: torch.Generator) -> Tensor:
    """An output head whose largest logit always belongs to an action token.

    The rows of the action tokens go once around a circle in a random plane, all others are zero. Wherever the hidden state points
    in that plane, the nearest row has a positive logit, so it beats the zeros; and it turns smoothly with the hidden state.
    """
    plane = torch.linalg.qr(torch.randn(decoder.hidden_size, 2, generator=generator)).Q
    angles = torch.arange(BINS) * (2.0 * math.pi / BINS)
    head = torch.zeros(decoder.vocab_size, decoder.hidden_size)
    head[VOCABULARY - BINS:VOCABULARY] = torch.stack([angles.cos(), angles.sin()], dim=1) @ plane.T
    return head
