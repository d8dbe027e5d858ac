"""OpenVLA as one network: its parts and how they join. Sizes in `ModelShape`, weights elsewhere, the order of passes in `passes.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from openvla_ros.policy.openvla.attention import Attend, attend_sdpa
from openvla_ros.policy.openvla.language import DecoderShape, LanguageModel
from openvla_ros.policy.openvla.vision import TowerShape, VisionBackbone


@dataclass(frozen=True)
class ModelShape:
    """Every size of the network: one or two towers, and the decoder."""

    towers: tuple[TowerShape, ...]
    decoder: DecoderShape

    @property
    def vision_width(self) -> int:
        """Features per patch, all towers together."""
        return sum(tower.width for tower in self.towers)


class Projector(nn.Module):
    """Patch features -> decoder embeddings. Fused towers have three layers, a single tower two; exact GELU between."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        width, hidden, fused = shape.vision_width, shape.decoder.hidden_size, len(shape.towers) > 1
        middle = 4 * width if fused else hidden
        self.fc1 = nn.Linear(width, middle)
        self.fc2 = nn.Linear(middle, hidden)
        self.fc3 = nn.Linear(hidden, hidden) if fused else None

    def forward(self, features: Tensor) -> Tensor:
        """[B, patches, vision width] -> [B, patches, W]"""
        projected = self.fc2(functional.gelu(self.fc1(features)))
        if self.fc3 is not None:
            projected = self.fc3(functional.gelu(projected))
        return projected  # type: ignore[no-any-return]


class OpenvlaModel(nn.Module):
    """The network. Build it under `torch.device("meta")` and let `checkpoint.load_weights` fill it."""

    def __init__(self, shape: ModelShape, attend: Attend = attend_sdpa) -> None:
        super().__init__()
        self.shape = shape
        self.vision_backbone = VisionBackbone(shape.towers, attend)
        self.projector = Projector(shape)
        self.language_model = LanguageModel(shape.decoder, attend)

    def see(self, pixels: Tensor) -> Tensor:
        """[B, 3 or 6, side, side] -> patch embeddings [B, patches, W]"""
        return self.projector(self.vision_backbone(pixels))  # type: ignore[no-any-return]

    def join(self, patches: Tensor, ids: Tensor) -> Tensor:
        """[B, P, W] patches and [B, T] ids, the first of them BOS -> the sequence [B, P + T, W]: the picture stands right behind BOS."""
        text = self.language_model.embed(ids)
        return torch.cat([text[:, :1], patches, text[:, 1:]], dim=1)


def cut_behind(ids: list[int], end_id: int) -> list[int]:
    """The ids up to the first `end_id`, that one included."""
    return ids[:ids.index(end_id) + 1] if end_id in ids else ids


def last_of_sequence(prompt_ids: Sequence[int], generated_ids: Sequence[int], count: int) -> list[int]:
    """What the released code takes as action tokens: the last `count` ids of prompt and answer together.

    After an early end of sequence these include ids of the prompt; the caller must call that a fault.
    """
    return [*prompt_ids, *generated_ids][-count:]
