"""What config.json and the tensor shapes say about a checkpoint: sizes, vocabulary, prompt. Judged here, used elsewhere."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from openvla_ros.errors import CheckpointError
from openvla_ros.policy.openvla.language import DecoderShape
from openvla_ros.policy.openvla.model import ModelShape
from openvla_ros.policy.openvla.vision import TowerShape

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor name -> shape."""

TOWER_NAMES = ("vision_backbone.featurizer", "vision_backbone.fused_featurizer")

PUBLISHED_TOWERS: Mapping[str, tuple[int, int]] = {
    "vit_large_patch14_reg4_dinov2.lvd142m": (24, 16),
    "vit_so400m_patch14_siglip_224": (27, 16),
}
"""timm id -> depth and heads. Heads cannot be seen in tensor shapes."""


@dataclass(frozen=True)
class Configuration:
    """A judged checkpoint description.

    vocabulary: text tokens without padding rows, where action ids end. end_id: the end-of-sequence token.
    prompt_style: key of `tokens.PROMPTS`, or "" if the config does not tell. untrained: made by `openvla-ros make-checkpoint`.
    """

    shape: ModelShape
    vocabulary: int
    bins: int
    end_id: int
    prompt_style: str
    untrained: bool


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a checkpoint folder. Raises CheckpointError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} has no {path.name}, so it is not a checkpoint in the published Hugging Face layout. "
                              "Name the folder that holds config.json and the *.safetensors files.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}. Download it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a JSON {type(content).__name__}, expected an object. Download it again.")
    return content


def read_configuration(folder: Path, content: Mapping[str, Any], shapes: Shapes) -> Configuration:
    """Judge config.json (`content`) together with generation_config.json and the stored tensors. Raises CheckpointError."""
    came = content.get("model_type")
    if came != "openvla":
        raise CheckpointError(f"{folder / 'config.json'} describes a model of type {came!r}, expected 'openvla'. This package runs "
                              "OpenVLA checkpoints in the published layout: openvla-7b, openvla-v01-7b and fine-tuned ones.")
    try:
        decoder = read_decoder(content)
        towers = read_towers(content, shapes)
        padding = whole("pad_to_multiple_of", content.get("pad_to_multiple_of", 64), least=0)
        bins = whole("n_action_bins", content.get("n_action_bins", 256), least=2)
        generation = read_json(folder / "generation_config.json") if (folder / "generation_config.json").is_file() else {}
        end_id = whole("eos_token_id of generation_config.json", generation.get("eos_token_id", 2), least=0)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{folder / 'config.json'} does not describe a model this package can run: "
                              f"{type(error).__name__}: {error}.") from error
    vocabulary = decoder.vocab_size - padding
    if not 2 <= bins <= vocabulary:
        raise CheckpointError(f"{folder / 'config.json'}: n_action_bins is {bins}, expected 2 to {vocabulary}, which is vocab_size "
                              f"{decoder.vocab_size} without the padding to multiples of {padding}.")
    return Configuration(ModelShape(towers, decoder), vocabulary, bins, end_id, prompt_style(content),
                         untrained=content.get("untrained") is True)


def whole(name: str, value: object, least: int = 1) -> int:
    """`value`, which must be a whole number of at least `least`. Raises ValueError that calls it `name`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {value!r}, expected a whole number of at least {least}")
    return value


def prompt_style(content: Mapping[str, Any]) -> str:
    """Which prompt the model was trained on; "" if unknown.

    The released scripts look for "v01" in the path, which a renamed folder breaks. The base model tells it reliably: the only
    Vicuna-based release is v01, and Vicuna's own chat prompt is what it was trained with.
    """
    base = f"{content.get('llm_backbone_id', '')} {content.get('hf_llm_id', '')}".lower()
    if "vicuna" in base:
        return "v01"
    return "openvla" if "llama" in base else ""


def read_decoder(content: Mapping[str, Any]) -> DecoderShape:
    """Sizes from `text_config`; absent fields have the defaults of DecoderShape. Raises ValueError for other architectures."""
    text = dict(content["text_config"])
    expected = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
                "tie_word_embeddings": False, "rope_scaling": None}
    for name, value in expected.items():
        if text.get(name, value) != value:
            raise ValueError(f"text_config.{name} is {text[name]!r}, only {value!r} is supported")
    given: dict[str, Any] = {field.name: text[field.name] for field in fields(DecoderShape) if text.get(field.name) is not None}
    for field in fields(DecoderShape):
        value = given.get(field.name, field.default)
        if field.type == "int":
            whole(f"text_config.{field.name}", value)
        elif not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ValueError(f"text_config.{field.name} is {value!r}, expected a number above 0")
    heads = given.get("num_attention_heads", DecoderShape.num_attention_heads)
    given.setdefault("num_key_value_heads", heads)
    given.setdefault("head_dim", given.get("hidden_size", DecoderShape.hidden_size) // heads)
    shape = DecoderShape(**given)
    whole("text_config.hidden_size per attention head", shape.head_dim)
    if shape.num_attention_heads % shape.num_key_value_heads or shape.head_dim % 2:
        raise ValueError(f"{shape.num_attention_heads} heads of {shape.head_dim} features cannot share "
                         f"{shape.num_key_value_heads} key heads")
    return shape


def read_towers(content: Mapping[str, Any], shapes: Shapes) -> tuple[TowerShape, ...]:
    """Sizes of each tower: width, depth and MLP from the tensors, heads and picture size from config.json. Raises ValueError."""
    identifiers = content["timm_model_ids"]
    fused = content.get("use_fused_vision_backbone")
    if fused is None:
        fused = str(content["vision_backbone_id"]).startswith(("dinosiglip", "dinoclip"))
    count = 2 if fused else 1
    if len(identifiers) != count:
        raise ValueError(f"timm_model_ids names {len(identifiers)} towers, expected {count}")
    overrides = content.get("timm_override_act_layers") or [None] * count
    if any(overrides):
        raise ValueError(f"timm_override_act_layers is {overrides}: only towers with the usual GELU are supported")
    arguments = content.get("timm_model_kwargs") or [None] * count
    return tuple(read_tower(TOWER_NAMES[index], str(identifiers[index]), arguments[index],
                            whole(f"image_sizes[{index}]", content["image_sizes"][index]), shapes) for index in range(count))


def read_tower(name: str, identifier: str, arguments: Mapping[str, Any] | None, side: int, shapes: Shapes) -> TowerShape:
    """One tower; see read_towers."""
    if arguments is None and identifier not in PUBLISHED_TOWERS:
        raise ValueError(f"vision tower {identifier!r} is unknown; known are {', '.join(PUBLISHED_TOWERS)}. For another one, config.json "
                         "must give timm_model_kwargs with num_heads (head counts cannot be seen in tensor shapes)")
    depth, heads = PUBLISHED_TOWERS[identifier] if arguments is None else (
        None, whole(f"timm_model_kwargs.num_heads of {name}", arguments["num_heads"]))
    if arguments is not None and "depth" in arguments:
        depth = whole(f"timm_model_kwargs.depth of {name}", arguments["depth"], least=2)
    numbers = [int(found[1]) for found in (re.match(rf"{re.escape(name)}\.blocks\.(\d+)\.", tensor) for tensor in shapes) if found]
    stored = max(numbers, default=-1) + 1
    if depth is None:
        depth = stored
    # One block too few would silently shift the output to an earlier layer: the last stored block is the one that is not used.
    if stored != depth or depth < 2:
        raise ValueError(f"{name} has {stored} blocks in the weights, expected {depth} (and at least 2)")
    shape_of = {leaf: shapes.get(f"{name}.{leaf}", ()) for leaf in
                ("patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "cls_token", "reg_token", "blocks.0.ls1.scale_factor")}
    kernel = shape_of["patch_embed.proj.weight"]
    if len(kernel) != 4 or len(shape_of["blocks.0.mlp.fc1.weight"]) != 2:
        raise ValueError(f"{name} lacks patch_embed.proj.weight [width, 3, patch, patch] or blocks.0.mlp.fc1.weight [mlp, width]")
    width, patch = kernel[0], kernel[2]
    if patch < 1 or side % patch:
        raise ValueError(f"{name}: {side} pixels cannot be cut into patches of {patch}")
    if width < 1 or width % heads:
        raise ValueError(f"{name}: width {width} cannot be cut into num_heads {heads}")
    registers = shape_of["reg_token"]
    prefix = (1 if shape_of["cls_token"] else 0) + (registers[1] if len(registers) == 3 else 0)
    return TowerShape(width, depth, heads, shape_of["blocks.0.mlp.fc1.weight"][0], side, patch, prefix,
                      layer_scale=bool(shape_of["blocks.0.ls1.scale_factor"]))


def unused_shapes(shape: ModelShape, needed: Shapes) -> tuple[Shapes, Shapes]:
    """Tensors that published files hold and nobody reads: (those that must be there, those that may be).

    Must: the last block of each tower (its presence proves that the depth was read right). May: final norm and SigLIP's pooling head.
    needed: name -> shape of everything that is loaded.
    """
    must: dict[str, tuple[int, ...]] = {}
    may: dict[str, tuple[int, ...]] = {}
    for name, tower in zip(TOWER_NAMES, shape.towers, strict=False):
        first, width = f"{name}.blocks.0.", tower.width
        must.update({f"{name}.blocks.{tower.depth - 1}.{key.removeprefix(first)}": size
                     for key, size in needed.items() if key.startswith(first)})
        may.update({f"{name}.norm.{leaf}": (width,) for leaf in ("weight", "bias")})
        if not tower.prefix:
            may.update({f"{name}.attn_pool.{leaf}": size for leaf, size in attention_pool(width, tower.mlp).items()})
    return must, may


def attention_pool(width: int, mlp: int) -> Shapes:
    """Tensors of SigLIP's pooling head, which OpenVLA stores and does not use."""
    sizes: dict[str, tuple[int, ...]] = {"latent": (1, 1, width)}
    for leaf, outputs, inputs in (("q", width, width), ("kv", 2 * width, width), ("proj", width, width),
                                  ("mlp.fc1", mlp, width), ("mlp.fc2", width, mlp)):
        sizes |= {f"{leaf}.weight": (outputs, inputs), f"{leaf}.bias": (outputs,)}
    return sizes | {"norm.weight": (width,), "norm.bias": (width,)}
