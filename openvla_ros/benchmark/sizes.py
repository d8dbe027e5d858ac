"""Networks to measure where weights cannot be had: true shapes, random numbers made in place.

Comes in: the name of a size, and device, dtype and quantisation; goes out: an OpenvlaPolicy that runs as a loaded one does. Its actions
mean nothing, and the ids of actions are forced: no row of the output head but theirs is other than zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from openvla_ros.contract import STEP_S
from openvla_ros.errors import ConfigurationError
from openvla_ros.policy.openvla.attention import choose_attention
from openvla_ros.policy.openvla.checkpoint import check_memory, load_weights
from openvla_ros.policy.openvla.language import DecoderShape
from openvla_ros.policy.openvla.layout import BINS, END_ID, layout_shapes, make_action_tokens, make_processor, make_prompt_encoder, passes
from openvla_ros.policy.openvla.model import ModelShape, OpenvlaModel
from openvla_ros.policy.openvla.policy import OpenvlaPolicy, cache_positions
from openvla_ros.policy.openvla.preprocess import ImagePath
from openvla_ros.policy.openvla.quantization import NOTES
from openvla_ros.policy.openvla.untrained import TINY, WORDS
from openvla_ros.policy.openvla.vision import TowerShape
from openvla_ros.policy.statistics import ActionStatistics, check_statistics

SIZES: Mapping[str, ModelShape] = MappingProxyType({
    "tiny": TINY,
    "mid": ModelShape(
        towers=(TowerShape(width=384, depth=12, heads=6, mlp=1536, side=224, patch=14, prefix=5, layer_scale=True),
                TowerShape(width=768, depth=12, heads=12, mlp=3072, side=224, patch=14, prefix=0, layer_scale=False)),
        decoder=DecoderShape(hidden_size=1536, intermediate_size=4096, num_hidden_layers=16, num_attention_heads=12,
                             num_key_value_heads=12)),
    "7b": ModelShape(  # as published: DINOv2 ViT-L/14 with registers, SigLIP SO400M/14, Llama-2-7B
        towers=(TowerShape(width=1024, depth=24, heads=16, mlp=4096, side=224, patch=14, prefix=5, layer_scale=True),
                TowerShape(width=1152, depth=27, heads=16, mlp=4304, side=224, patch=14, prefix=0, layer_scale=False)),
        decoder=DecoderShape()),
})

INSTRUCTION = "put the red cup and the spoon into the top drawer"
"""With the prompt 24 tokens of the benchmark's tokenizer: 280 positions with the picture, the length that limits are stated for."""

NOTE = "random weights: the actions mean nothing, and only ids of actions can be said (all other rows of the output head are zero)"

POOL = 16_777_213
"""Random numbers that are drawn; tensors are cut from them, each at a place of its own. A prime, so no two rows of a matrix are equal."""

LOGIT_SIZE = 4.0
"""Standard deviation of the logits of action ids: the two largest of 256 are then about as far apart as those of a trained model."""


class RandomSource:
    """Tensors of the published layout made of random numbers when they are read. Fast: nothing is drawn but the pool, once."""

    def __init__(self, shape: ModelShape, dtype: torch.dtype, seed: int = 0) -> None:
        self.decoder, self.sizes, self.dtype = shape.decoder, layout_shapes(shape), dtype
        self.pool = torch.randn(POOL, generator=torch.Generator().manual_seed(seed)).to(dtype)
        self.place = {name: (seed + index * 7_368_787) % POOL for index, name in enumerate(sorted(self.sizes))}

    def read(self, name: str) -> Tensor:
        """One tensor in the target type, the same for the same seed."""
        size = self.sizes[name]
        if passes(name):
            return (torch.zeros if name.endswith("bias") else torch.ones)(size, dtype=self.dtype)
        if name == "language_model.lm_head.weight":
            return self.head(size, self.place[name])
        return self.cut(size, self.place[name], scale_of(name, size))

    def cut(self, size: tuple[int, ...], place: int, scale: float) -> Tensor:
        """Numbers of the pool from `place` on, round and round, times `scale`."""
        flat, done = torch.empty(math.prod(size), dtype=self.dtype), 0
        while done < len(flat):
            count = min(len(flat) - done, POOL - place)
            torch.mul(self.pool[place:place + count], scale, out=flat[done:done + count])
            done, place = done + count, 0
        return flat.view(size)

    def head(self, size: tuple[int, ...], place: int) -> Tensor:
        """An output head whose largest logit always belongs to an action: their rows are random, all others are zero.

        That none of 256 random logits is above zero does not happen in the lifetime of a robot. Unlike rows on a circle
        (`untrained.action_head`) these keep the largest two apart by more than bfloat16 rounds.
        """
        first = size[0] - (self.decoder.vocab_size - action_end(self.decoder)) - BINS
        head = torch.zeros(size, dtype=self.dtype)
        head[first:first + BINS] = self.cut((BINS, size[1]), place, LOGIT_SIZE / math.sqrt(size[1]))
        return head


def action_end(decoder: DecoderShape) -> int:
    """The first id behind those of actions."""
    return make_action_tokens(ModelShape((), decoder)).vocabulary


def scale_of(name: str, size: tuple[int, ...]) -> float:
    """Scales that let picture and text reach the output, as in `untrained.random_tensor`."""
    if name.endswith(("bias", "_token", "pos_embed", "latent")):
        return 0.1
    if name.endswith("embed_tokens.weight"):
        return 0.2
    return (2.0 if name.endswith(("q_proj.weight", "k_proj.weight")) else 1.0) / math.sqrt(math.prod(size[1:]))


def random_policy(size: str, device: torch.device, dtype: torch.dtype, quantization: str = "none", attention: str = "sdpa", seed: int = 0,
                  report: Callable[[int, int], None] = lambda done, total: None) -> tuple[OpenvlaPolicy, RandomSource]:
    """A policy of that size, and where its weights came from. The same seed gives the same weights, before they are quantised.

    report: called with (tensors done, tensors in all), on a GPU then with recorded passes. Raises ConfigurationError for an unknown size,
    NotEnoughMemory before the first tensor is made, DependencyMissing.
    """
    if size not in SIZES:
        raise ConfigurationError(f"size is {size!r}, expected one of {', '.join(SIZES)}.")
    shape = SIZES[size]
    with torch.device("meta"):
        model = OpenvlaModel(shape, choose_attention(attention, device, dtype))
    check_memory(model, device, dtype, quantization, cache_positions(shape))
    source = RandomSource(shape, dtype, seed)
    load_weights(model, source, device, dtype, quantization, report)
    notes = tuple(filter(None, (NOTES[quantization], NOTE)))
    # The tokenizer of the small size: its ids are ids of the larger vocabularies too, and its prompts as long as Llama's.
    policy = OpenvlaPolicy(size, model, make_prompt_encoder(WORDS, TINY), make_processor(shape), ImagePath(), make_action_tokens(shape),
                           statistics(), STEP_S, END_ID, notes)
    if device.type == "cuda":
        policy.record_passes(report)
    return policy, source


def statistics() -> ActionStatistics:
    """Some limits of the size of BridgeData's, to turn ids into metres."""
    high = [0.03, 0.04, 0.04, 0.08, 0.08, 0.2]
    entry = {"q01": [*(-value for value in high), 0.0], "q99": [*high, 1.0], "mask": [True] * 6 + [False]}
    return check_statistics("benchmark", {"action": entry})


def count_parameters(shape: ModelShape) -> int:
    """Of the published layout, the unused ones included."""
    return sum(math.prod(size) for size in layout_shapes(shape).values())
