"""The Llama decoder with a static key/value cache: embeddings in, logits of the last position out.

Parameter names are those of the published checkpoints. RMSNorm and rotary angles are computed in float32, the rest in the
weights' type, as the released model does.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from openvla_ros.policy.openvla import avx512
from openvla_ros.policy.openvla.attention import Attend, attend_seen
from openvla_ros.policy.openvla.linear import BlockedLinear, join_linear


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


@dataclass(frozen=True, eq=False)
class Places:
    """Where the T tokens of one pass stand, the same for every layer.

    slots: places in the cache that they are written to, a slice for all rows alike, or [B, T] int64. end: only places before it are read.
    cosine, sine: the cache's rotary tables at the positions, [T, d] or [B, 1, T, d]. starts: where each row's tokens begin, which stand
    side by side; one number where all begin alike, none where only the device knows. seen: [B, 1, T, end], the places each token looks at;
    None: the tokens are the last ones before `end`, and each sees itself and all before it.
    """

    slots: slice | Tensor
    end: int
    cosine: Tensor
    sine: Tensor
    starts: tuple[int, ...] = ()
    seen: Tensor | None = None


class KeyValueCache:
    """Keys and values of every layer, allocated once, with the rotary table for its positions.

    keys, values: per layer [B, key/value heads, length, d], written in place. cosine, sine: [length, d], the first half of sine negative.
    """

    def __init__(self, shape: DecoderShape, length: int, device: torch.device, dtype: torch.dtype, batch: int = 1) -> None:
        size = (batch, shape.num_key_value_heads, length, shape.head_dim)
        self.length = length
        self.memory = torch.zeros((2, shape.num_hidden_layers, *size), device=device, dtype=dtype)  # in one piece, for pages of 2 MB
        self.keys, self.values = (list(part) for part in self.memory)
        exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32, device=device) / shape.head_dim
        angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), 1.0 / shape.rope_theta**exponents)
        angles = torch.cat([angles, angles], dim=1)  # half-split layout: feature i turns with i + d/2
        self.cosine, self.sine = angles.cos().to(dtype), angles.sin().to(dtype)
        self.sine[:, :shape.head_dim // 2].neg_()  # here once, instead of the features for every token

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

    def consecutive(self, start: int, count: int) -> Places:
        """`count` tokens from position `start` on, in all rows."""
        end = start + count
        return Places(slice(start, end), end, self.cosine[start:end], self.sine[start:end], (start,))

    def staggered(self, starts: Sequence[int], count: int) -> Places:
        """`count` tokens in each row, from a position of its own on."""
        positions = torch.tensor(starts)[:, None] + torch.arange(count)
        return replace(self.scattered(positions.to(self.cosine.device, non_blocking=True), max(starts) + count), starts=tuple(starts))

    def scattered(self, positions: Tensor, end: int) -> Places:
        """Tokens at positions [B, T] int64, in each row its own, all before `end`. Each sees what stands at or before its position."""
        reach = torch.arange(end, device=positions.device)
        return Places(positions, end, self.cosine[positions][:, None], self.sine[positions][:, None],
                      seen=reach <= positions[:, None, :, None])

    def write(self, layer: int, places: Places, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store [B, heads, T, d] at `places`; return views of everything before their end."""
        for memory, new in ((self.keys[layer], key), (self.values[layer], value)):
            if isinstance(places.slots, slice):
                memory[:, :, places.slots] = new
            else:
                memory.scatter_(2, places.slots[:, None, :, None].expand_as(new), new)
        return self.keys[layer][:, :, :places.end], self.values[layer][:, :, :places.end]

    def clear(self) -> None:
        """Forget what is in it. Only needed after NaN: a place that is not seen counts with weight 0, and 0 times NaN is NaN."""
        for tensor in (*self.keys, *self.values):
            tensor.zero_()


def rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary position embedding of [B, heads, T, d] by the tables of a cache."""
    return heads * cosine + heads.roll(heads.shape[-1] // 2, dims=-1) * sine


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
        self.qkv_proj: nn.Module | None = None

    def fuse(self) -> None:
        """Join the three projections, which read the same input, into one. Published parameter names are gone afterwards."""
        self.qkv_proj = join_linear((self.q_proj, self.k_proj, self.v_proj))
        del self.q_proj, self.k_proj, self.v_proj

    def project(self, tokens: Tensor) -> Tensor:
        """[B, T, W] -> the heads of query, key and value, one behind the other: [B, heads, T, d]"""
        if self.qkv_proj is None:
            projected = torch.cat([self.q_proj(tokens), self.k_proj(tokens), self.v_proj(tokens)], dim=-1)
        else:
            projected = self.qkv_proj(tokens)
        return projected.view(*tokens.shape[:2], -1, self.shape.head_dim).transpose(1, 2)

    def forward(self, tokens: Tensor, cache: KeyValueCache, places: Places, wanted: Tensor | None = None) -> Tensor:
        """[B, T, W] at `places` -> [B, T, W], or [B, S, W] of the `wanted` tokens only, [B, S]."""
        own, shared, heads = self.shape.num_attention_heads, self.shape.num_key_value_heads, self.project(tokens)
        turned = rotate(heads[:, :own + shared], places.cosine, places.sine)
        query = turned[:, :own]
        keys, values = cache.write(self.layer, places, turned[:, own:], heads[:, own + shared:])
        if own > shared:  # grouped queries: several query heads share one key head
            keys, values = keys.repeat_interleave(own // shared, dim=1), values.repeat_interleave(own // shared, dim=1)
        mixed = self.attend(query, keys, values, True) if places.seen is None else attend_seen(query, keys, values, places.seen)
        return self.o_proj(choose(mixed.transpose(1, 2).flatten(2), wanted))  # type: ignore[no-any-return]


class GatedMlp(nn.Module):
    """SiLU-gated feed-forward layer."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)
        self.gate_up_proj: nn.Module | None = None

    def fuse(self) -> None:
        """Join the two layers that read the same input into one. Published parameter names are gone afterwards."""
        self.gate_up_proj = join_linear((self.gate_proj, self.up_proj))
        del self.gate_proj, self.up_proj

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T, W] -> [B, T, W]"""
        if self.gate_up_proj is None:
            gate, up = self.gate_proj(tokens), self.up_proj(tokens)
        else:
            gate, up = self.gate_up_proj(tokens).chunk(2, dim=-1)
        return self.down_proj(functional.silu(gate) * up)  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    """Pre-norm attention, then pre-norm feed-forward."""

    def __init__(self, shape: DecoderShape, layer: int, attend: Attend) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = SelfAttention(shape, layer, attend)
        self.post_attention_layernorm = RmsNorm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = GatedMlp(shape)

    def forward(self, tokens: Tensor, cache: KeyValueCache, places: Places, wanted: Tensor | None = None) -> Tensor:
        """[B, T, W] -> [B, T, W], or [B, S, W] of the `wanted` tokens only, [B, S]: behind the last layer the others are not read."""
        mixed = self.self_attn(self.input_layernorm(tokens), cache, places, wanted)
        tokens = choose(tokens, wanted) + mixed
        return tokens + self.mlp(self.post_attention_layernorm(tokens))  # type: ignore[no-any-return]


def choose(tokens: Tensor, wanted: Tensor | None) -> Tensor:
    """[B, T, W] and [B, S] -> [B, S, W]; all of them without a choice."""
    return tokens if wanted is None else tokens.gather(1, wanted[:, :, None].expand(-1, -1, tokens.shape[2]))


class DecoderStack(nn.Module):
    """Embedding table, layers and final norm, under the name `model` in the checkpoint."""

    def __init__(self, shape: DecoderShape, attend: Attend) -> None:
        super().__init__()
        # To draw the first numbers of a table on the meta device torch would import its compiler, 4 s for nothing: given one it does not.
        table = torch.empty(shape.vocab_size, shape.hidden_size)
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size, _weight=table if table.is_meta else None)
        self.layers = nn.ModuleList(DecoderLayer(shape, layer, attend) for layer in range(shape.num_hidden_layers))
        self.norm = RmsNorm(shape.hidden_size, shape.rms_norm_eps)


class LanguageModel(nn.Module):
    """The decoder with its output head."""

    def __init__(self, shape: DecoderShape, attend: Attend) -> None:
        super().__init__()
        self.shape = shape
        self.model = DecoderStack(shape, attend)
        self.blocks: avx512.Blocks | None = None
        self.lm_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)

    def embed(self, token_ids: Tensor) -> Tensor:
        """[B, T] int64 -> [B, T, W]"""
        return self.model.embed_tokens(token_ids)  # type: ignore[no-any-return]

    def forward(self, tokens: Tensor, cache: KeyValueCache, places: Places, wanted: Tensor | None = None) -> Tensor:
        """Run [B, T, W] at `places`, extending the cache; float32 logits [B, S, vocab] behind the `wanted` tokens [B, S], None: all."""
        *layers, last = self.model.layers
        in_a_row = bool(places.starts) and avx512.can_decode(
            tokens, places.cosine, places.sine, cache.memory, len(cache.keys[0]), places.starts)
        blocks = self.in_blocks() if in_a_row else None
        if blocks is not None:
            whole = wanted is None
            tokens = avx512.decode(blocks, tokens, places.cosine, places.sine, cache.memory, places.starts, whole)
            if whole:
                return self.lm_head(tokens).float()  # type: ignore[no-any-return]
        else:
            for layer in layers:
                tokens = layer(tokens, cache, places)
        return self.lm_head(self.model.norm(last(tokens, cache, places, wanted))).float()  # type: ignore[no-any-return]

    def in_blocks(self) -> avx512.Blocks | None:
        """The layers for our own kernels, if all their products lie in blocks; made once."""
        if self.blocks is None:
            shape, layers = self.shape, list[list[Tensor]]()
            for layer in self.model.layers:
                assert isinstance(layer, DecoderLayer)
                products = (layer.self_attn.qkv_proj, layer.self_attn.o_proj, layer.mlp.gate_up_proj, layer.mlp.down_proj)
                found = [product.blocks for product in products if isinstance(product, BlockedLinear)]
                if len(found) < len(products):
                    return None
                qkv, o, gate_up, down = found
                layers.append([layer.input_layernorm.weight, qkv, o, layer.post_attention_layernorm.weight, gate_up, down])
            sizes = (shape.hidden_size, shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim, shape.intermediate_size)
            self.blocks = avx512.Blocks(sizes, shape.rms_norm_eps, layers, self.model.norm.weight)
        return self.blocks
