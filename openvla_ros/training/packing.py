"""Many instructions for one picture in one pass, through the weights of an `OpenvlaModel`.

The picture stands at the beginning and attention is causal, so nothing before the first differing word depends on the instruction:
it is computed once, and every instruction's rest attends to it and to itself. Same numbers as one `prefill` and
`decode` per instruction, at a fraction of the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from openvla_ros.policy.openvla.language import DecoderLayer, KeyValueCache, rotate
from openvla_ros.policy.openvla.model import OpenvlaModel
from openvla_ros.training.examples import Example


@dataclass(frozen=True)
class Pack:
    """Examples of a batch of pictures: B pictures, S examples for each, A answer tokens in each example.

    prefix_ids: [P] what all of them begin with, BOS first. suffix_ids: [B, S, L] the rest without the last answer token (nothing
    is predicted from it), filled up on the right. readers: [B, S, A] places in the suffix whose output is the next answer
    token. answers: [B, S, A] those tokens.
    """

    prefix_ids: Tensor
    suffix_ids: Tensor
    readers: Tensor
    answers: Tensor


def pack_examples(examples: Sequence[Sequence[Example]], answer_length: int) -> Pack:
    """[B][S] examples -> a Pack with the first `answer_length` answer tokens of each (7 leaves the end of sequence out)."""
    flat = [example for row in examples for example in row]
    shared = min(example.prompt_length for example in flat) - 1  # the last prompt token is the first reader, so it stays in the suffix
    first = flat[0].input_ids
    while shared > 1 and any(example.input_ids[:shared] != first[:shared] for example in flat):
        shared -= 1
    ends = [example.prompt_length + answer_length - 1 for example in flat]
    suffixes = torch.zeros(len(flat), max(ends) - shared, dtype=torch.int64)
    for row, (example, end) in enumerate(zip(flat, ends, strict=True)):
        suffixes[row, :end - shared] = torch.tensor(example.input_ids[shared:end])
    starts = torch.tensor([example.prompt_length - 1 - shared for example in flat])
    answers = torch.tensor([example.input_ids[example.prompt_length:example.prompt_length + answer_length] for example in flat])
    grid = (len(examples), len(examples[0]), -1)
    return Pack(torch.tensor(first[:shared]), suffixes.view(grid), (starts[:, None] + torch.arange(answer_length)).view(grid),
                answers.view(grid))


@dataclass(frozen=True)
class PackOutput:
    """patches: [B, patches, W] the projector's output. states: [B, S, A, W] what the output head sees. logits: [B, S, A, vocab]."""

    patches: Tensor
    states: Tensor
    logits: Tensor


def read_pack(model: OpenvlaModel, pixels: Tensor, pack: Pack) -> PackOutput:
    """Run every example of the pack by teacher forcing. pixels: [B, 3 or 6, side, side]."""
    decoder, (batch, count, length) = model.language_model, pack.suffix_ids.shape
    patches = model.see(pixels)
    text = decoder.embed(pack.prefix_ids).expand(batch, -1, -1)
    prefix = torch.cat([text[:, :1], patches, text[:, 1:]], dim=1)
    suffix = decoder.embed(pack.suffix_ids)
    everywhere = torch.arange(length).expand(batch, count, length)
    table = KeyValueCache(decoder.shape, prefix.shape[1] + length, pixels.device, torch.float32)
    layers = [layer for layer in decoder.model.layers if isinstance(layer, DecoderLayer)]
    for layer in layers[:-1]:
        prefix, suffix = run_layer(layer, prefix, suffix, everywhere, table)
    # Behind the last layer only the answers are read, so only they are computed there.
    _, states = run_layer(layers[-1], prefix, suffix, pack.readers, table, prefix_too=False)
    states = decoder.model.norm(states)
    return PackOutput(patches, states, decoder.lm_head(states).float())


def run_layer(layer: DecoderLayer, prefix: Tensor, suffix: Tensor, places: Tensor, table: KeyValueCache,
              prefix_too: bool = True) -> tuple[Tensor, Tensor]:
    """One decoder layer on [B, P, W] and [B, S, L, W]; of the suffixes only `places` [B, S, Q] come out, [B, S, Q, W]."""
    attention, (batch, before, width), (_, count, length, _) = layer.self_attn, prefix.shape, suffix.shape
    heads, size = attention.shape.num_attention_heads, attention.shape.head_dim
    chosen = places.shape[2] != length
    wanted = suffix.gather(2, places[..., None].expand(-1, -1, -1, width)) if chosen else suffix
    tokens = torch.cat([prefix, suffix.flatten(1, 2)], dim=1)
    asking = torch.cat([prefix, wanted.flatten(1, 2)], dim=1) if prefix_too else wanted.flatten(1, 2)
    normed = layer.input_layernorm(tokens)
    asked = normed if prefix_too and not chosen else layer.input_layernorm(asking)
    where = torch.cat([torch.arange(before), before + torch.arange(length).repeat(count)])
    key = rotate(split(attention.k_proj(normed), heads, size), table.cosine[where], table.sine[where])
    value = split(attention.v_proj(normed), heads, size)
    query_at = before + places.flatten(1)  # [B, S*Q]
    if prefix_too:
        query_at = torch.cat([torch.arange(before).expand(batch, -1), query_at], dim=1)
    query = rotate(split(attention.q_proj(asked), heads, size), table.cosine[query_at][:, None], table.sine[query_at][:, None])
    mixed = [functional.scaled_dot_product_attention(query[:, :, :before], key[:, :, :before], value[:, :, :before], is_causal=True)
             ] if prefix_too else []
    mixed.append(attend_suffixes(query[:, :, before if prefix_too else 0:], key, value, before, places, length))
    asking = asking + attention.o_proj(torch.cat(mixed, dim=2).transpose(1, 2).flatten(2))
    asking = asking + layer.mlp(layer.post_attention_layernorm(asking))
    read = before if prefix_too else 0
    return asking[:, :read], asking[:, read:].view(batch, count, -1, width)


def split(tokens: Tensor, heads: int, size: int) -> Tensor:
    """[B, T, heads*d] -> [B, heads, T, d]"""
    return tokens.view(*tokens.shape[:2], heads, size).transpose(1, 2)


def attend_suffixes(query: Tensor, key: Tensor, value: Tensor, before: int, places: Tensor, length: int) -> Tensor:
    """Each suffix sees the prefix and its own past. query: [B, H, S*Q, d]; key, value: [B, H, before + S*L, d] -> [B, H, S*Q, d]"""
    (batch, heads, _, size), (_, count, asked) = query.shape, places.shape
    own = (batch, heads, count, length, size)
    scores = query @ key[:, :, :before].transpose(2, 3)
    own_scores = query.view(batch, heads, count, asked, size) @ key[:, :, before:].reshape(own).transpose(3, 4)
    hidden = torch.arange(length) > places[:, None, :, :, None]  # [B, 1, S, Q, L]
    own_scores = own_scores.masked_fill(hidden, -torch.inf).view(batch, heads, count * asked, length)
    weights = (torch.cat([scores, own_scores], dim=3) / size**0.5).softmax(dim=3)
    mine = weights[..., before:].reshape(batch, heads, count, asked, length) @ value[:, :, before:].reshape(own)
    mixed: Tensor = weights[..., :before] @ value[:, :, :before] + mine.view(batch, heads, count * asked, size)
    return mixed
