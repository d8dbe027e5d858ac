"""The default policy's network: an `OpenvlaModel` of small sizes, how its weights begin, and heads that exist in training only."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from openvla_ros.policy.openvla.language import DecoderShape
from openvla_ros.policy.openvla.layout import BINS, PADDING, count_tokens
from openvla_ros.policy.openvla.model import ModelShape, OpenvlaModel
from openvla_ros.policy.openvla.vision import TowerShape
from openvla_ros.simulation.task import COLOURS, HELD_OUT_PHRASES, PHRASES

WORDS = tuple(sorted({word for phrases in (PHRASES, HELD_OUT_PHRASES) for templates in phrases.values() for template in templates
                      for word in template.replace("{colour}", "").split()} | set(COLOURS)))
"""Words that are one token each; others are spelled by letters and bytes, which training never shows."""

ENTITIES = (*COLOURS, "plate", "tool")
"""What the training heads look for in the picture."""

DETAILS = 5
"""Numbers of an entity that a patch is asked for: place inside the patch (2), position in the scene (3)."""


GRIP_FACTS = 3
"""What a decoder's state is asked, yes or no: is a block held, is it the named one, is the hand over the plate."""


def network_shape() -> ModelShape:
    """About 3.5 million parameters: two ViTs of three used blocks, and a Llama of four layers. 64 patches of 16 pixels."""
    vocabulary = 64 * math.ceil(count_tokens(WORDS) / 64)
    return ModelShape(
        towers=(TowerShape(width=128, depth=4, heads=4, mlp=384, side=128, patch=16, prefix=5, layer_scale=True),
                TowerShape(width=128, depth=4, heads=4, mlp=384, side=128, patch=16, prefix=0, layer_scale=False)),
        decoder=DecoderShape(vocab_size=vocabulary + PADDING, hidden_size=160, intermediate_size=432, num_hidden_layers=4,
                             num_attention_heads=5, num_key_value_heads=5, head_dim=32, max_position_embeddings=1024))


class TrainingHeads(nn.Module):
    """Questions that teach where things are; dropped from the checkpoint.

    On the projector's patches: which patch holds the middle of each entity, where in it, and where in the scene. On the
    decoder's states: where tool and goal are in the scene, which patch holds the goal, and whether it grips and is over the plate.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.place = nn.Linear(width, len(ENTITIES))
        self.detail = nn.Linear(width, len(ENTITIES) * DETAILS)
        self.scene = nn.Linear(width, 6)
        self.pointer = nn.Linear(width, width)
        self.grip = nn.Linear(width, GRIP_FACTS)

    def point(self, states: Tensor, patches: Tensor) -> Tensor:
        """[B, N, W] states and [B, P, W] patches -> [B, N, P] logits."""
        return self.pointer(states) @ patches.transpose(1, 2) / states.shape[-1]**0.5  # type: ignore[no-any-return]


class Network(nn.Module):
    """What is trained: the model that will be deployed, and the heads."""

    def __init__(self, shape: ModelShape, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.model = OpenvlaModel(shape)
        self.heads = TrainingHeads(shape.decoder.hidden_size)
        begin(self.model)


@torch.no_grad()
def begin(model: OpenvlaModel) -> None:
    """Weights to begin with, beyond torch's own: places and numbers start out in order, so that they need not be learned one by one."""
    decoder, shape = model.language_model, model.language_model.shape
    for tower in (model.vision_backbone.featurizer, model.vision_backbone.fused_featurizer):
        assert tower is not None
        tower.pos_embed.copy_(0.5 * place_waves(tower.shape.side // tower.shape.patch, tower.shape.width))
        for name, parameter in tower.named_parameters():
            if name.endswith("_token"):
                parameter.normal_(std=0.02)
            elif name.endswith((".attn.proj.weight", ".mlp.fc2.weight")):  # what is added to a residual stream starts small
                parameter.mul_(1.0 / math.sqrt(2.0 * tower.shape.depth))
            elif name.endswith((".attn.proj.bias", ".mlp.fc2.bias")):
                parameter.zero_()
    for name, parameter in decoder.named_parameters():
        if name.endswith((".o_proj.weight", ".down_proj.weight")):
            parameter.mul_(1.0 / math.sqrt(2.0 * shape.num_hidden_layers))
    actions = slice(shape.vocab_size - PADDING - BINS, shape.vocab_size - PADDING)
    decoder.model.embed_tokens.weight.normal_(std=0.2)
    decoder.model.embed_tokens.weight[actions] = 0.2 * number_waves(shape.hidden_size)
    decoder.lm_head.weight.zero_()
    decoder.lm_head.weight[actions] = 0.05 * number_waves(shape.hidden_size)


def place_waves(side: int, width: int) -> Tensor:
    """[1, side * side, width]: sines and cosines of row and column, in the order of the patches."""
    frequencies = math.pi / side * 2.0 ** torch.linspace(0.0, math.log2(side), width // 4)
    angles = torch.arange(side)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, width / 2]
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=2).reshape(1, side * side, width)


def number_waves(width: int) -> Tensor:
    """[BINS, width]: random smooth functions of the bin of unit size, the row of -1 last as in the vocabulary."""
    frequencies = torch.arange(1, 17, dtype=torch.float32)
    angles = 0.5 * math.pi * frequencies * torch.linspace(-1.0, 1.0, BINS)[:, None]
    waves = torch.cat([angles.sin(), angles.cos()], dim=1) / torch.cat([frequencies, frequencies]).sqrt()
    rows = waves @ torch.randn(waves.shape[1], width)
    return (rows / rows.std()).flip(0)
