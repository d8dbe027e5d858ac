"""Products and attention in bfloat16 on x86 CPUs with AVX-512 BF16: the door to `avx512.cpp`, which is compiled at installation.

Both are exact in the way torch's own are: sums in float32, rounded where torch rounds. Where there was no compiler, on another CPU, or
should a trial give other numbers than torch, `most_rows` is 0 and torch multiplies: slower, and right. `describe` says which, and why.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional

BLOCK = 64
"""Outputs that lie side by side in the memory of a weight."""

HUGE_PAGE, CACHE_LINE = 2**21, 64
"""Bytes."""

INTERFACE = 2
"""Of `avx512.cpp`; what was compiled from another one is not used."""

FEW_ROWS = 7
"""Rows that are multiplied at a time, and by one reading of the weights."""


@lru_cache(maxsize=1)
def find_kernels() -> ModuleType | str:
    """The compiled functions, if they are there, run on this CPU and are right; else why not. Tried out, once."""
    try:
        found = import_module("openvla_ros.policy.openvla._avx512")
    except ImportError as error:  # not compiled, or for another Python, or torch brought another library of threads
        return f"they cannot be imported ({error}). Install GCC and the headers of Python, then this package again"
    if getattr(found, "interface", None) != INTERFACE:
        return "they were compiled from another version of the package. Install it again"
    if not found.has_avx512_bf16:
        return "this CPU has no AVX-512 BF16"
    return found if is_right(found) else "they gave other numbers than torch in a trial, so they are not used; please report this CPU"


def is_right(found: ModuleType) -> bool:
    """Whether small products and attentions are those of torch in float32, to the last digits of bfloat16."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(torch.bfloat16)

    def close(result: Tensor, expected: Tensor) -> bool:
        return float((result.float() - expected).abs().max()) <= 4.0 * torch.finfo(torch.bfloat16).eps * float(expected.abs().max())

    with torch.inference_mode():
        weight, bias, tokens = draw(128, 96), draw(128), draw(9, 96)
        blocks = block_weight(weight, Room(slab_bytes=0))  # under a name: an address keeps nothing in memory
        product = run_multiply(found, tokens, blocks.data_ptr(), 128, bias)
        one = run_multiply(found, tokens[:1], blocks.data_ptr(), 128, bias)
        good = [close(product, expected := functional.linear(tokens.float(), weight.float(), bias.float())), close(one, expected[:1])]
        for queries, causal in ((7, False), (21, True)):  # by rows as they lie, and packed
            query, key, value = draw(1, 2, queries, 72), draw(1, 2, 21, 72), draw(1, 2, 21, 72)
            mixed = functional.scaled_dot_product_attention(query.float(), key.float(), value.float(), is_causal=causal)
            good.append(close(run_attend(found, query, key, value, causal), mixed))
    return all(good)


@lru_cache(maxsize=1)
def most_rows() -> int:
    """Up to so many rows are multiplied, and queries answered, faster here than by torch: all on most CPUs with AVX-512 BF16; few on those
    with AMX, which torch uses for the others; 0 where nothing is."""
    found = find_kernels()
    if isinstance(found, str):
        return 0
    return FEW_ROWS if found.has_amx else sys.maxsize


def describe() -> str:
    """What is multiplied by the kernels, for a person."""
    found = find_kernels()
    if isinstance(found, str):
        return f"not used: {found}"
    return "used for all products in bfloat16" if most_rows() > FEW_ROWS else f"used for up to {FEW_ROWS} rows; torch's AMX for more"


class Room:
    """Memory for the weights of one policy, side by side in pages of 2 MB from their first byte on.

    A weight by itself begins and ends somewhere within such pages, and what is in smaller ones is read a fifth more slowly. Memory that
    nobody has written to yet counts for nothing.
    """

    def __init__(self, slab_bytes: int = 2**28) -> None:
        self.slab_bytes = slab_bytes
        self.rest = torch.empty(0, dtype=torch.uint8)

    def take(self, count: int) -> Tensor:
        """[count] bfloat16 of any content."""
        size = -(-count * torch.bfloat16.itemsize // CACHE_LINE) * CACHE_LINE
        if size > len(self.rest):
            length = max(self.slab_bytes, size)
            slab = torch.empty(length + HUGE_PAGE, dtype=torch.uint8)
            self.rest = slab[-slab.data_ptr() % HUGE_PAGE:][:length]
        taken, self.rest = self.rest[:size], self.rest[size:]
        return taken.view(torch.bfloat16)[:count]


def block_weight(weight: Tensor, room: Room) -> Tensor:
    """[outputs, inputs] bfloat16 -> [outputs / 64, inputs / 2, 64, 2], a copy in that room."""
    outputs, inputs = weight.shape
    blocks = room.take(weight.numel()).view(outputs // BLOCK, inputs // 2, BLOCK, 2)
    return blocks.copy_(weight.view(outputs // BLOCK, BLOCK, inputs // 2, 2).transpose(1, 2))


def fits(layer: nn.Linear) -> bool:
    """Whether the layer's weight can be laid out in blocks, and be read by `multiply`."""
    outputs, inputs = layer.weight.shape
    return layer.weight.dtype == torch.bfloat16 and outputs % BLOCK == 0 and inputs % 2 == 0


def multiply(tokens: Tensor, blocks: int, outputs: int, bias: Tensor | None) -> Tensor:
    """[..., inputs] bfloat16 by the weight in blocks at that address -> [..., outputs]. Call it where `most_rows` is not 0.

    Raises TypeError for another type or device: what lies in memory is taken as it is.
    """
    if tokens.dtype != torch.bfloat16 or tokens.device.type != "cpu":
        raise TypeError(f"weights are bfloat16 on a CPU, and the tokens to be multiplied by them are {tokens.dtype} on {tokens.device}")
    found = find_kernels()
    assert not isinstance(found, str), found
    return run_multiply(found, tokens.contiguous(), blocks, outputs, bias)


def run_multiply(found: ModuleType, tokens: Tensor, blocks: int, outputs: int, bias: Tensor | None) -> Tensor:
    """The same for tokens that lie in one piece."""
    inputs, result = tokens.shape[-1], tokens.new_empty((*tokens.shape[:-1], outputs))
    found.multiply(torch.get_num_threads(), tokens.numel() // inputs, inputs, outputs, tokens.data_ptr(), blocks,
                   0 if bias is None else bias.data_ptr(), result.data_ptr())
    return result


def can_attend(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `attend` takes these, and is faster than torch for so many queries. It has no gradient."""
    alike = (query.dtype == key.dtype == value.dtype == torch.bfloat16 and query.device == key.device == value.device
             and key.shape == value.shape and query.shape[:2] == key.shape[:2] and query.shape[3] == key.shape[3])
    return (alike and query.device.type == "cpu" and 0 < query.shape[2] <= most_rows() and query.shape[3] % 2 == 0
            and query.stride(3) == key.stride(3) == value.stride(3) == 1 and not torch.is_grad_enabled())


def attend(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """As `attention.Attend` says. Ask `can_attend` before."""
    found = find_kernels()
    assert not isinstance(found, str), found
    return run_attend(found, query, key, value, causal)


def run_attend(found: ModuleType, query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """[B, H, Q, d], [B, H, K, d] twice, the features of a row side by side -> [B, H, Q, d]"""
    batch, heads, queries, width = query.shape
    result = query.new_empty((batch, queries, heads, width))
    found.attend(torch.get_num_threads(), batch, heads, queries, key.shape[2], width,
                 *((tensor.data_ptr(), *tensor.stride()[:3]) for tensor in (query, key, value)),
                 causal, math.log2(math.e) / math.sqrt(width), result.data_ptr())
    return result.transpose(1, 2)



class Blocks:
    """A decoder for `decode`: its sizes, and its weights as they lie in memory."""

    def __init__(self, sizes: tuple[int, int, int, int, int], eps: float, layers: Sequence[Sequence[Tensor]], norm: Tensor) -> None:
        """sizes: features of a token, heads of queries and of keys, features of a head and within the feed-forward part. eps: of the norms.

        layers: of each the first norm, qkv, o, the second norm, gate and up, down; products in blocks, without a bias. norm: the last.
        """
        self.numbers = (*sizes, eps, math.log2(math.e) / math.sqrt(sizes[3]))
        self.layers, self.norm = [tuple(layer) for layer in layers], norm  # kept, since addresses keep nothing
        self.addresses = tuple(weight.data_ptr() for layer in layers for weight in layer)


def can_decode(tokens: Tensor, cosine: Tensor, sine: Tensor, cache: Tensor, rows: int, starts: Sequence[int]) -> bool:
    """Whether `decode` takes these, and is faster than torch for so many tokens. It has no gradient.

    rows: those of the cache that may be written.
    """
    alike = all(tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu" for tensor in (tokens, cosine, sine, cache))
    batch, count, width = *tokens.shape[:2], cache.shape[5]
    tables = (count, width) if len(starts) == 1 else (batch, 1, count, width)
    fits = cosine.shape == sine.shape == tables and cosine.is_contiguous() and sine.is_contiguous() and width % 32 == 0
    return (alike and fits and cache.stride()[4:] == (width, 1) and batch <= rows and len(starts) in (1, batch)
            and min(starts) >= 0 and max(starts) + count <= cache.shape[4] and 0 < batch * count <= most_rows()
            and not torch.is_grad_enabled())


def decode(blocks: Blocks, tokens: Tensor, cosine: Tensor, sine: Tensor, cache: Tensor, starts: Sequence[int], whole: bool) -> Tensor:
    """All layers of a decoder and the norm behind them, or all but the last layer, in one call.

    Between two products Python would find its own code pushed out of the caches by the weights, which costs more than what it does.

    tokens: [B, T, W], which stand in row b at the places from starts[b] on, or in all rows from starts[0] on. cosine, sine: of these,
    [B, 1, T, d] or [T, d]. cache: keys and values, [2, layers, at least B, key heads, length, d], written at the places of the tokens,
    read up to there. Ask `can_decode` before. Returns [B, T, W].
    """
    found, tokens = find_kernels(), tokens.contiguous()
    assert not isinstance(found, str), found
    if tokens.shape[2] != blocks.numbers[0]:
        raise ValueError(f"tokens have {tokens.shape[2]} features, and this decoder takes {blocks.numbers[0]}")
    if not whole and len(blocks.layers) == 1:
        return tokens
    result, (side, *strides) = torch.empty_like(tokens), cache.stride()[:4]
    keys, batch, alike = cache.data_ptr(), len(tokens), len(starts) == 1
    places = (tuple(starts) * (batch if alike else 1), cosine.data_ptr(), sine.data_ptr(), 0 if alike else cosine.stride(0))
    found.decode(torch.get_num_threads(), *tokens.shape[:2], blocks.numbers, blocks.addresses, len(blocks.layers) - (not whole),
                 blocks.norm.data_ptr() if whole else 0, tokens.data_ptr(), places, (keys, keys + side * cache.itemsize, *strides),
                 result.data_ptr())
    return result
