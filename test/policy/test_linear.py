"""Packed layers are exact; 8-bit layers are near, exact in their integers, and never quiet about NaN."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from openvla_ros.policy.openvla.linear import (
    Int8Linear,
    PackedLinear,
    can_multiply_int8,
    can_pack,
    join_linear,
    multiply_int8,
)

SIZES = [(64, 96), (33, 17), (1, 5), (300, 1), (256, 1088)]  # (inputs, outputs), odd ones too: oneDNN fills its blocks up


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_a_packed_layer_gives_what_the_plain_one_gives(dtype: torch.dtype, inputs: int, outputs: int, bias: bool) -> None:
    if not can_pack(dtype):
        pytest.skip(f"this CPU or torch has no packed products of {dtype}")
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs, bias=bias).to(dtype)
    packed = PackedLinear(layer)
    for shape in ((1, inputs), (7, inputs), (1, 1, inputs), (2, 40, inputs)):
        tokens = torch.randn(shape).to(dtype)
        expected = layer(tokens)
        result = packed(tokens)
        assert result.shape == expected.shape and result.dtype == dtype
        torch.testing.assert_close(result, expected, rtol=2 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps * inputs**0.5)
        part = tokens.expand(3, *shape)[1]  # a view
        torch.testing.assert_close(packed(part), result, rtol=0, atol=0)


@torch.inference_mode()
def test_a_packed_layer_keeps_one_copy_and_lets_nan_through() -> None:
    if not can_pack(torch.float32):
        pytest.skip("this torch has no packed products")
    layer = nn.Linear(64, 96)
    layer.weight[3, 5] = float("nan")
    packed = PackedLinear(layer)
    assert list(packed.parameters()) == []
    result = packed(torch.randn(4, 64))
    assert torch.isnan(result[:, 3]).all() and torch.isfinite(result[:, 4:]).all()


@torch.inference_mode()
def test_joined_layers_stand_side_by_side() -> None:
    layers, tokens = [nn.Linear(16, outputs, bias=False) for outputs in (8, 4, 12)], torch.randn(3, 16)
    torch.testing.assert_close(join_linear(layers)(tokens), torch.cat([layer(tokens) for layer in layers], dim=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
@torch.inference_mode()
def test_an_8_bit_layer_is_near_its_exact_self(dtype: torch.dtype, inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs, bias=False).to(dtype)
    quantized, tokens = Int8Linear(layer), torch.randn(2, 9, inputs).to(dtype)
    tokens[0, 3] *= 1000.0  # a scale per row: a loud token does not drown the others
    tokens[1, 2] = 0.0
    result, exact = quantized(tokens), tokens.float() @ layer.weight.float().T
    assert result.shape == exact.shape and result.dtype == dtype and torch.equal(result[1, 2].float(), exact[1, 2])
    error = (result.float() - exact).norm(dim=-1)
    assert float((error / exact.norm(dim=-1).clamp_min(1e-6)).median()) < 0.02
    torch.testing.assert_close(quantized(tokens[:, :1]), result[:, :1], rtol=0.01, atol=0.01)


@torch.inference_mode()
def test_8_bit_products_are_exact_and_both_ways_agree() -> None:
    generator = torch.Generator().manual_seed(1)
    rows, weight = (torch.randint(-127, 128, size, generator=generator).to(torch.int8) for size in ((20, 512), (64, 512)))
    exact = rows.long() @ weight.long().t()
    assert torch.equal(multiply_int8(rows, weight).long(), exact) and torch.equal(multiply_int8(rows[:1], weight).long(), exact[:1])
    layer = nn.Linear(512, 64, bias=False)
    quantized, tokens = Int8Linear(layer), torch.randn(5, 512)
    assert quantized.by_onednn == can_multiply_int8()
    if quantized.by_onednn:
        other = Int8Linear(layer)
        other.by_onednn, other.weight = False, (layer.weight / other.scale[:, None]).round().to(torch.int8)
        torch.testing.assert_close(other(tokens), quantized(tokens), rtol=1e-5, atol=1e-6)


@torch.inference_mode()
def test_a_row_of_nan_stays_one_and_the_others_are_untouched() -> None:
    quantized, tokens = Int8Linear(nn.Linear(32, 16, bias=False)), torch.randn(3, 32)
    sound = quantized(tokens)
    tokens[1, 4] = float("nan")
    result = quantized(tokens)
    assert torch.isnan(result[1]).all() and torch.equal(result[[0, 2]], sound[[0, 2]])


@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("0", "0")])
def test_huge_pages_are_asked_for_unless_somebody_said_otherwise(clean_environment: dict[str, str], before: str | None, after: str) -> None:
    code = "import os; import openvla_ros.policy.openvla.linear; print(os.environ['THP_MEM_ALLOC_ENABLE'])"
    environment = {name: value for name, value in clean_environment.items() if name != "THP_MEM_ALLOC_ENABLE"}
    environment |= {} if before is None else {"THP_MEM_ALLOC_ENABLE": before}
    assert subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout.strip() == after
