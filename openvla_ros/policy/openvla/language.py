"""The Llama decoder with a static key/value cache: embeddings in, logits of the last position out.

Parameter names are those of the published checkpoints. RMSNorm and rotary angles are computed in float32, the rest in the
weights' type, as the released model does.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from openvla_ros.policy.openvla.attention import Attend


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of the decoder. The defaults are transformers' LlamaConfig defaults: the published config leaves them out."""

    vocab_size: int = 32064
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 128
    rms_norm_eps: float = 1e-6  # not Llama-2's 1e-5: the published config has no such field, and this is the default
    rope_theta: float = 10000.0
    max_position_embeddings: int = 2048


class KeyValueCache:
    """Keys and values of every layer, allocated once, with the rotary table for its positions.

    keys, values: per layer [B, key/value heads, length, d], written in place. cosine, sine: [length, d].
    """

    def __init__(self, shape: DecoderShape, length: int, device: torch.device, dtype: torch.dtype, batch: int = 1) -> None:
        size = (batch, shape.num_key_value_heads, length, shape.head_dim)
        self.length = length
        self.keys = [torch.zeros(size, device=device, dtype=dtype) for _ in range(shape.num_hidden_layers)]
        self.values = [torch.zeros(size, device=device, dtype=dtype) for _ in range(shape.num_hidden_layers)]
        exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32, device=device) / shape.head_dim
        angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), 1.0 / shape.rope_theta**exponents)
        angles = torch.cat([angles, angles], dim=1)  # half-split layout: feature i turns with i + d/2
        self.cosine, self.sine = angles.cos().to(dtype), angles.sin().to(dtype)

    @staticmethod
    def count_bytes(shape: DecoderShape, length: int, dtype: torch.dtype, batch: int = 1) -> int:
        """Memory of the keys and values."""
        per_position = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim * dtype.itemsize
        return batch * length * per_position

    def rows(self, count: int) -> KeyValueCache:
        """The first `count` rows as a cache of their own, in the same memory."""
        view = copy(self)
        view.keys, view.values = ([tensor[:count] for tensor in tensors] for tensors in (self.keys, self.values))
        return view

    def write(self, layer: int, start: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store [B, heads, T, d] at positions start..start+T-1; return views of everything up to there."""
        end = start + key.shape[2]
        self.keys[layer][:, :, start:end] = key
        self.values[layer][:, :, start:end] = value
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


def rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary position embedding of [B, heads, T, d] by tables [T, d]."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cosine + torch.cat([-second, first], dim=-1) * sine


class RmsNorm(nn.Module):
    """Root-mean-square norm in float32, cast back, then times the weight: the order matters in bfloat16."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., W] -> [..., W]"""
        wide = tokens.float()
        wide = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * wide.to(tokens.dtype)


class SelfAttention(nn.Module):
    """Causal attention over everything the cache holds so far."""

    def __init__(self, shape: DecoderShape, layer: int, attend: Attend) -> None:
        super().__init__()
        self.shape, self.layer, self.attend = shape, layer, attend
        self.q_proj = nn.Linear(shape.hidden_size, shape.num_attention_heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, shape.num_key_value_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, shape.num_key_value_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.num_attention_heads * shape.head_dim, shape.hidden_size, bias=False)

    def forward(self, tokens: Tensor, cache: KeyValueCache, start: int) -> Tensor:
        """[B, T, W] at positions start..start+T-1 -> [B, T, W]"""
        batch, count, _ = tokens.shape
        query, key, value = (projection(tokens).view(batch, count, -1, self.shape.head_dim).transpose(1, 2)
                             for projection in (self.q_proj, self.k_proj, self.v_proj))
        cosine, sine = cache.cosine[start:start + count], cache.sine[start:start + count]
        keys, values = cache.write(self.layer, start, rotate(key, cosine, sine), value)
        sharing = self.shape.num_attention_heads // self.shape.num_key_value_heads
        if sharing > 1:  # grouped queries: several query heads share one key head
            keys, values = keys.repeat_interleave(sharing, dim=1), values.repeat_interleave(sharing, dim=1)
        mixed = self.attend(rotate(query, cosine, sine), keys, values, True)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, count, -1))  # type: ignore[no-any-return]


class GatedMlp(nn.Module):
    """SiLU-gated feed-forward layer."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T, W] -> [B, T, W]"""
        return self.down_proj(functional.silu(self.gate_proj(tokens)) * self.up_proj(tokens))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """Pre-norm attention, then pre-norm feed-forward."""

    def __init__(self, shape: DecoderShape, layer: int, attend: Attend) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = SelfAttention(shape, layer, attend)
        self.post_attention_layernorm = RmsNorm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = GatedMlp(shape)

    def forward(self, tokens: Tensor, cache: KeyValueCache, start: int) -> Tensor:
        """[B, T, W] -> [B, T, W]"""
        tokens = tokens + self.self_attn(self.input_layernorm(tokens), cache, start)
        return tokens + self.mlp(self.post_attention_layernorm(tokens))  # type: ignore[no-any-return]


class DecoderStack(nn.Module):
    """Embedding table, layers and final norm, under the name `model` in the checkpoint."""

    def __init__(self, shape: DecoderShape, attend: Attend) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(shape, layer, attend) for layer in range(shape.num_hidden_layers))
        self.norm = RmsNorm(shape.hidden_size, shape.rms_norm_eps)


class LanguageModel(nn.Module):
    """The decoder with its output head."""

    def __init__(self, shape: DecoderShape, attend: Attend) -> None:
        super().__init__()
        self.shape = shape
        self.model = DecoderStack(shape, attend)
        self.lm_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)

    def embed(self, token_ids: Tensor) -> Tensor:
        """[B, T] int64 -> [B, T, W]"""
        return self.model.embed_tokens(token_ids)  # type: ignore[no-any-return]

    def forward(self, tokens: Tensor, cache: KeyValueCache, start: int) -> Tensor:
        """Run [B, T, W] at positions start..start+T-1, extending the cache; float32 logits [B, vocab] of the last position."""
        for layer in self.model.layers:
            tokens = layer(tokens, cache, start)
        return self.lm_head(self.model.norm(tokens[:, -1])).float()  # type: ignore[no-any-return]
