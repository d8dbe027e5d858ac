"""The vision towers: pixels in, one feature per patch out. DINOv2 with registers and SigLIP are the same code.

Parameter names are those of the published checkpoints. Like the released model this stops at the second-to-last block and
applies no final norm; the last block is not even built.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from openvla_ros.policy.openvla.attention import Attend

NORM_EPS = 1e-6


@dataclass(frozen=True)
class TowerShape:
    """Sizes of one tower. `depth` counts the last, unused block; `prefix` counts class and register tokens (0 or 1 + registers)."""

    width: int
    depth: int
    heads: int
    mlp: int
    side: int
    patch: int
    prefix: int
    layer_scale: bool

    @property
    def patches(self) -> int:
        """Features per picture."""
        return (self.side // self.patch) ** 2


class Attention(nn.Module):
    """Full attention over all tokens of one picture."""

    def __init__(self, shape: TowerShape, attend: Attend) -> None:
        super().__init__()
        self.heads, self.attend = shape.heads, attend
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.proj = nn.Linear(shape.width, shape.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T, W] -> [B, T, W]"""
        batch, count, width = tokens.shape
        query, key, value = self.qkv(tokens).view(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = self.attend(query, key, value, False)
        return self.proj(mixed.transpose(1, 2).reshape(batch, count, width))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two layers with the exact (erf) GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T, W] -> [B, T, W]"""
        return self.fc2(functional.gelu(self.fc1(tokens)))  # type: ignore[no-any-return]


class LayerScale(nn.Module):
    """One factor per feature. transformers renames anything called gamma, hence the published name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale_factor = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T, W] -> [B, T, W]"""
        return tokens * self.scale_factor


class Block(nn.Module):
    """Pre-norm transformer block; SigLIP has no layer scale."""

    def __init__(self, shape: TowerShape, attend: Attend) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width, eps=NORM_EPS)
        self.attn = Attention(shape, attend)
        self.ls1 = LayerScale(shape.width) if shape.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(shape.width, eps=NORM_EPS)
        self.mlp = Mlp(shape.width, shape.mlp)
        self.ls2 = LayerScale(shape.width) if shape.layer_scale else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T, W] -> [B, T, W]"""
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens)))
        return tokens + self.ls2(self.mlp(self.norm2(tokens)))  # type: ignore[no-any-return]


class PatchEmbed(nn.Module):
    """Cuts the picture into patches, row by row, and maps each to a token."""

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, shape.width, kernel_size=shape.patch, stride=shape.patch)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, side, side] -> [B, patches, W]"""
        return self.proj(pixels).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class Tower(nn.Module):
    """One vision transformer up to its second-to-last block."""

    def __init__(self, shape: TowerShape, attend: Attend) -> None:
        super().__init__()
        self.shape = shape
        if shape.prefix:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        if shape.prefix > 1:
            self.reg_token = nn.Parameter(torch.zeros(1, shape.prefix - 1, shape.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, shape.patches, shape.width))
        self.patch_embed = PatchEmbed(shape)
        self.blocks = nn.ModuleList(Block(shape, attend) for _ in range(shape.depth - 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, side, side] -> [B, patches, W]"""
        tokens = self.patch_embed(pixels) + self.pos_embed  # positions belong to patches only, not to the prefix
        if self.shape.prefix:
            prefix = [self.cls_token] + ([self.reg_token] if self.shape.prefix > 1 else [])
            tokens = torch.cat([part.expand(len(tokens), -1, -1) for part in prefix] + [tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens[:, self.shape.prefix:]  # type: ignore[no-any-return]


class VisionBackbone(nn.Module):
    """One tower, or two whose features are joined patch by patch."""

    def __init__(self, shapes: tuple[TowerShape, ...], attend: Attend) -> None:
        super().__init__()
        self.featurizer = Tower(shapes[0], attend)
        self.fused_featurizer = Tower(shapes[1], attend) if len(shapes) > 1 else None
        self._second_stream: torch.cuda.Stream | None = None

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3 or 6, side, side] -> [B, patches, sum of widths]"""
        if self.fused_featurizer is None:
            return self.featurizer(pixels)  # type: ignore[no-any-return]
        if not pixels.is_cuda:
            return torch.cat([self.featurizer(pixels[:, :3]), self.fused_featurizer(pixels[:, 3:])], dim=2)
        # Neither tower fills a large GPU for one picture, so they run side by side.
        here, beside = torch.cuda.current_stream(), self.second_stream()
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            second = self.fused_featurizer(pixels[:, 3:])
        first = self.featurizer(pixels[:, :3])
        here.wait_stream(beside)
        second.record_stream(here)
        return torch.cat([first, second], dim=2)

    def second_stream(self) -> torch.cuda.Stream:
        """Made at its first use."""
        if self._second_stream is None:
            self._second_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        return self._second_stream
