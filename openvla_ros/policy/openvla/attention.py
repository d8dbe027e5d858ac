"""Scaled dot-product attention, by torch itself or by flash-attn where that is installed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from openvla_ros.errors import ConfigurationError, DependencyMissing
from openvla_ros.policy.openvla import avx512

Attend = Callable[[Tensor, Tensor, Tensor, bool], Tensor]
"""(query [B,H,Q,d], key [B,H,K,d], value [B,H,K,d], causal) -> [B,H,Q,d]. Causal: the last query sees every key."""


ROWS_AT_A_TIME = 16


def attend_sdpa(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """Torch's own attention, which picks its fastest kernel by itself; ours on a CPU where that is faster."""
    if avx512.can_attend(query, key, value):
        return avx512.attend(query, key, value, causal)
    queries, keys = query.shape[2], key.shape[2]
    if not causal and (missing := filling(keys, query)):
        seen = torch.arange(keys + missing) < keys
        key, value = (functional.pad(tensor, (0, 0, 0, missing)) for tensor in (key, value))
        return attend_seen(query, key, value, seen[None, None, None])
    if queries == 1 and query.device.type == "cpu" and query.dtype == torch.bfloat16:  # one row takes longer than two
        return functional.scaled_dot_product_attention(query.repeat(1, 1, 2, 1), key, value)[:, :, :1]
    if not causal or queries == 1:
        return functional.scaled_dot_product_attention(query, key, value)
    if queries == keys:
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    # torch aligns its causal mask to the first key; a query block behind cached keys needs it aligned to the last.
    seen = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    return attend_seen(query, key, value, seen)


def filling(count: int, like: Tensor) -> int:
    """How many rows more of a tensor such as `like` are computed in no more time: bfloat16 on a CPU is multiplied 16 rows at a time
    by torch, and what is left over takes a slow way."""
    by_torch = like.dtype == torch.bfloat16 and like.device.type == "cpu" and count > avx512.most_rows()
    return -count % ROWS_AT_A_TIME if by_torch else 0


def attend_seen(query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    """The same for queries that each see keys of their own, [B, 1, Q, K] bool."""
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)


def choose_attention(name: str, device: torch.device, dtype: torch.dtype) -> Attend:
    """`sdpa` or `flash`. Raises DependencyMissing or ConfigurationError if flash-attn cannot be used here."""
    if name == "sdpa":
        return attend_sdpa
    if device.type != "cuda" or dtype == torch.float32:
        raise ConfigurationError(f"attention flash needs a CUDA device and dtype bfloat16, but the policy runs on {device.type} in "
                                 f"{str(dtype).removeprefix('torch.')}. Use attention sdpa, torch's own, which runs everywhere.")
    try:
        from flash_attn import flash_attn_func
    except ImportError as error:
        raise DependencyMissing(f"attention flash needs the package flash-attn, which cannot be imported here ({error}). Install it with: "
                                "pip install flash-attn --no-build-isolation; or use attention sdpa, torch's own.") from error

    def attend_flash(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
        result: Tensor = flash_attn_func(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), causal=causal)
        return result.transpose(1, 2)

    return attend_flash
