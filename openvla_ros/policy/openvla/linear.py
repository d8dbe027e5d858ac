"""Linear layers for inference: weights laid out once as a CPU reads them fastest, and weights and rows in 8 bits.

`BlockedLinear` and `PackedLinear` are exact: the same sums as torch's own layer, whose plain layout costs up to a third of the speed
on a CPU (docs/performance.md). `Int8Linear` is not exact, and says so in NOTES of `quantization.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from openvla_ros.policy.openvla import avx512

LARGEST = 127.0
"""Of the 8-bit numbers used, on both sides of zero."""

SMALLEST_SCALE = 1e-12
"""Stands in for the scale of a row of zeros."""

ZERO_POINT = 128
"""What stands for 0 in the unsigned rows of oneDNN's 8-bit products. Signed rows would do without, but on a CPU with VNNI and without AMX
oneDNN multiplies those by a reference loop, hundreds of times as slow."""

CUDA_ROWS = 32
"""cuBLAS multiplies 8-bit matrices of more than 16 rows only; fewer are filled up to so many."""


def join_linear(layers: Sequence[nn.Linear]) -> nn.Linear:
    """One layer that gives the outputs of several, side by side, from one pass over their common input. None of them has a bias.

    Joined tensors are copies: drop the layers that they came from.
    """
    weight = torch.cat([layer.weight for layer in layers])
    with torch.device("meta"):
        joined = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    joined.weight = nn.Parameter(weight, requires_grad=False)
    return joined


def fastest_linear(layer: nn.Linear, room: avx512.Room) -> nn.Module:
    """A layer on the CPU as it runs fastest here; the layer itself where nothing is faster. room: where its weight may lie."""
    if avx512.most_rows() > avx512.FEW_ROWS and avx512.fits(layer):
        return BlockedLinear(layer, room)
    return PackedLinear(layer) if can_pack(layer.weight.dtype) else layer


class BlockedLinear(nn.Module):
    """A bfloat16 linear layer on the CPU, multiplied by our own kernels. Ask `avx512.most_rows` and `avx512.fits` before."""

    def __init__(self, layer: nn.Linear, room: avx512.Room) -> None:
        super().__init__()
        self.blocks = avx512.block_weight(layer.weight.detach(), room)
        self.bias = None if layer.bias is None else layer.bias.detach()
        self.inputs, self.outputs = layer.in_features, layer.out_features

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]"""
        if tokens.shape[-1] != self.inputs:
            raise ValueError(f"tokens have {tokens.shape[-1]} features, and this layer takes {self.inputs}")
        return avx512.multiply(tokens, self.blocks.data_ptr(), self.outputs, self.bias)


class PackedLinear(nn.Module):
    """A linear layer on the CPU whose weight lies in oneDNN's own blocked layout. Ask `can_pack` before.

    Where that is the layout of our kernels, too, they multiply few rows by the same memory.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), None)
        self.bias = None if layer.bias is None else layer.bias.detach()
        self.inputs, self.outputs = layer.in_features, layer.out_features
        self.blocks = self.find_blocks() if avx512.most_rows() and avx512.fits(layer) else 0

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]"""
        if self.blocks and tokens.numel() <= avx512.FEW_ROWS * self.inputs and tokens.shape[-1] == self.inputs:
            return avx512.multiply(tokens, self.blocks, self.outputs, self.bias)
        return self.multiply(tokens)

    def multiply(self, tokens: Tensor) -> Tensor:
        """By oneDNN."""
        return torch.ops.mkldnn._linear_pointwise(tokens, self.packed, self.bias, "none", [], "")  # type: ignore[no-any-return]

    def find_blocks(self) -> int:
        """Address of the packed weight, if it is as large as in blocks and gives what oneDNN gives for a row of random numbers; else 0."""
        try:
            address, size = torch.ops.mkldnn.data_ptr(self.packed), torch.ops.mkldnn._nbytes(self.packed)
        except (AttributeError, RuntimeError):  # a torch without the operations
            return 0
        if size != self.inputs * self.outputs * torch.bfloat16.itemsize:
            return 0
        row = torch.randn(1, self.inputs, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
        with torch.inference_mode():
            expected, found = self.multiply(row).float(), avx512.multiply(row, address, self.outputs, self.bias).float()
        near = float((found - expected).abs().max()) <= 4.0 * torch.finfo(torch.bfloat16).eps * float(expected.abs().max())
        return address if near else 0  # NaN is not near


@lru_cache(maxsize=8)
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this torch on this CPU multiplies by packed weights, and gives what its own layer gives. Tried out, once per type."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(96, 80).to(dtype)
    tokens = torch.randn(1, 5, 96, generator=generator).to(dtype)
    with torch.inference_mode():
        expected = layer(tokens).float()
        try:
            packed = PackedLinear(layer)
            found = [packed(tokens).float(), packed(tokens[:, :1]).float()]
        except (AttributeError, RuntimeError):  # a torch without the operation, a CPU without bfloat16
            return False
    # Not more than the last digit of the type, once each way.
    close = 4.0 * torch.finfo(dtype).eps * float(expected.abs().max())
    return all(float((result - expected[:, :result.shape[1]]).abs().max()) <= close for result in found)


class Int8Linear(nn.Module):
    """Weight in 8 bits with a scale per output, every row of the input in 8 bits with a scale of its own; sums in 32-bit integers."""

    def __init__(self, layer: nn.Linear) -> None:
        """layer: without bias."""
        super().__init__()
        weight = layer.weight.detach()
        self.scale = (weight.abs().amax(dim=1).float() / LARGEST).clamp_min(SMALLEST_SCALE)  # [outputs]
        whole = (weight / self.scale[:, None]).round_().to(torch.int8)
        self.by_onednn = weight.device.type == "cpu" and can_multiply_int8()
        self.weight = torch.ops.onednn.qlinear_prepack(whole, None) if self.by_onednn else whole
        self.zero = torch.zeros(len(weight), dtype=torch.int32)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs] of the same type"""
        rows = tokens.reshape(-1, tokens.shape[-1])
        # Rounded to the type of the tokens before it is divided by, since it is multiplied by in that type. NaN stays NaN.
        row_scale = (rows.abs().amax(dim=1, keepdim=True) / LARGEST).clamp_min(SMALLEST_SCALE)
        whole = (rows / row_scale.float()).round_().to(torch.int8)
        if self.by_onednn:
            sums = multiply_packed_int8(whole, self.weight, self.scale, self.zero, tokens.dtype)
        else:
            sums = (multiply_int8(whole, self.weight) * self.scale).to(tokens.dtype)
        return sums.mul_(row_scale).view(*tokens.shape[:-1], -1)


def multiply_packed_int8(rows: Tensor, packed: Tensor, scale: Tensor, zero: Tensor, dtype: torch.dtype) -> Tensor:
    """[R, inputs] int8, overwritten, by a packed 8-bit weight, times its scales [outputs] -> [R, outputs]. zero: [outputs] int32 zeros."""
    unsigned = rows.bitwise_xor_(-ZERO_POINT).view(torch.uint8)  # flips the highest bit: the same as adding ZERO_POINT
    return torch.ops.onednn.qlinear_pointwise(unsigned, 1.0, ZERO_POINT, packed, scale, zero, None, 1.0, 0,  # type: ignore[no-any-return]
                                              dtype, "none", [], "")


def multiply_int8(rows: Tensor, weight: Tensor) -> Tensor:
    """[R, inputs] by [outputs, inputs], both int8 -> [R, outputs] int32, exact."""
    count = len(rows)
    if rows.device.type == "cuda" and count < CUDA_ROWS:
        rows = functional.pad(rows, (0, 0, 0, CUDA_ROWS - count))
    product: Tensor = torch._int_mm(rows, weight.t())
    return product.narrow(0, 0, count)


@lru_cache(maxsize=1)
def can_multiply_int8() -> bool:
    """Whether this torch on this CPU multiplies packed 8-bit weights, and right. Tried out, once."""
    generator = torch.Generator().manual_seed(0)
    rows, weight = (torch.randint(-127, 128, size, generator=generator).to(torch.int8) for size in ((5, 96), (80, 96)))
    exact = rows.long() @ weight.long().t()
    try:
        packed = torch.ops.onednn.qlinear_prepack(weight, None)
        found = multiply_packed_int8(rows, packed, torch.ones(80), torch.zeros(80, dtype=torch.int32), torch.float32)
    except (AttributeError, RuntimeError):
        return False
    return bool((found.double() == exact.double()).all())
