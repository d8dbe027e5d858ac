"""The towers against transformers' Dinov2WithRegisters and Siglip vision classes, with the same random weights."""

from __future__ import annotations

import pytest
import torch

from openvla_ros.policy.openvla.attention import attend_sdpa
from openvla_ros.policy.openvla.vision import Tower, TowerShape

WIDTH, HEADS, MLP, SIDE, PATCH, DEPTH = 48, 3, 96, 56, 14, 4


def filled_tower(shape: TowerShape) -> Tower:
    torch.manual_seed(0)
    tower = Tower(shape, attend_sdpa).eval()
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return tower


def copy_linear(target: torch.nn.Module, weight: torch.Tensor, bias: torch.Tensor) -> None:
    target.weight.data.copy_(weight)
    target.bias.data.copy_(bias)


@torch.inference_mode()
def test_dinov2_tower_agrees_with_transformers() -> None:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    tower = filled_tower(TowerShape(WIDTH, DEPTH, HEADS, MLP, SIDE, PATCH, prefix=5, layer_scale=True))
    config = Dinov2WithRegistersConfig(hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, mlp_ratio=MLP // WIDTH,
                                       image_size=SIDE, patch_size=PATCH, num_register_tokens=4, layer_norm_eps=1e-6,
                                       attn_implementation="eager")
    oracle = Dinov2WithRegistersModel(config).eval()
    embeddings = oracle.embeddings
    copy_linear(embeddings.patch_embeddings.projection, tower.patch_embed.proj.weight, tower.patch_embed.proj.bias)
    embeddings.cls_token.data.copy_(tower.cls_token)
    embeddings.register_tokens.data.copy_(tower.reg_token)
    embeddings.position_embeddings.data.zero_()  # transformers gives the class token a position, timm's reg4 model does not
    embeddings.position_embeddings.data[:, 1:].copy_(tower.pos_embed)
    for ours, theirs in zip(tower.blocks, oracle.encoder.layer, strict=False):
        copy_linear(theirs.norm1, ours.norm1.weight, ours.norm1.bias)
        copy_linear(theirs.norm2, ours.norm2.weight, ours.norm2.bias)
        for index, name in enumerate(("q_proj", "k_proj", "v_proj")):
            copy_linear(getattr(theirs.attention, name), ours.attn.qkv.weight[index * WIDTH:(index + 1) * WIDTH],
                        ours.attn.qkv.bias[index * WIDTH:(index + 1) * WIDTH])
        copy_linear(theirs.attention.o_proj, ours.attn.proj.weight, ours.attn.proj.bias)
        copy_linear(theirs.mlp.fc1, ours.mlp.fc1.weight, ours.mlp.fc1.bias)
        copy_linear(theirs.mlp.fc2, ours.mlp.fc2.weight, ours.mlp.fc2.bias)
        theirs.layer_scale1.lambda1.data.copy_(ours.ls1.scale_factor)
        theirs.layer_scale2.lambda1.data.copy_(ours.ls2.scale_factor)
    pixels = torch.randn(2, 3, SIDE, SIDE)
    states = oracle(pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(tower(pixels), states[DEPTH - 1][:, 5:], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_siglip_tower_agrees_with_transformers() -> None:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    tower = filled_tower(TowerShape(WIDTH, DEPTH, HEADS, MLP, SIDE, PATCH, prefix=0, layer_scale=False))
    config = SiglipVisionConfig(hidden_size=WIDTH, intermediate_size=MLP, num_hidden_layers=DEPTH, num_attention_heads=HEADS,
                                image_size=SIDE, patch_size=PATCH, layer_norm_eps=1e-6, hidden_act="gelu", attn_implementation="eager")
    oracle = SiglipVisionModel(config).eval()
    oracle = getattr(oracle, "vision_model", oracle)
    copy_linear(oracle.embeddings.patch_embedding, tower.patch_embed.proj.weight, tower.patch_embed.proj.bias)
    oracle.embeddings.position_embedding.weight.data.copy_(tower.pos_embed[0])
    for ours, theirs in zip(tower.blocks, oracle.encoder.layers, strict=False):
        copy_linear(theirs.layer_norm1, ours.norm1.weight, ours.norm1.bias)
        copy_linear(theirs.layer_norm2, ours.norm2.weight, ours.norm2.bias)
        for index, name in enumerate(("q_proj", "k_proj", "v_proj")):
            copy_linear(getattr(theirs.self_attn, name), ours.attn.qkv.weight[index * WIDTH:(index + 1) * WIDTH],
                        ours.attn.qkv.bias[index * WIDTH:(index + 1) * WIDTH])
        copy_linear(theirs.self_attn.out_proj, ours.attn.proj.weight, ours.attn.proj.bias)
        copy_linear(theirs.mlp.fc1, ours.mlp.fc1.weight, ours.mlp.fc1.bias)
        copy_linear(theirs.mlp.fc2, ours.mlp.fc2.weight, ours.mlp.fc2.bias)
    pixels = torch.randn(2, 3, SIDE, SIDE)
    states = oracle(pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(tower(pixels), states[DEPTH - 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prefix", [0, 5])
@torch.inference_mode()
def test_every_patch_sees_the_whole_picture(prefix: int) -> None:
    tower = filled_tower(TowerShape(WIDTH, DEPTH, HEADS, MLP, SIDE, PATCH, prefix, layer_scale=bool(prefix)))
    pixels = torch.randn(1, 3, SIDE, SIDE)
    changed = pixels.clone()
    changed[..., -PATCH:, -PATCH:] += 1.0  # the last patch only
    difference = (tower(pixels) - tower(changed)).abs().amax(dim=2)[0]
    assert difference.shape == (16,) and (difference > 0).all() and difference.argmax() == 15
