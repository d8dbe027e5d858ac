"""A small checkpoint of the true architecture with random weights, for trying everything out without a trained model.

It has both towers, the fused projector, a Llama decoder and the files of the published layout, so it goes through the same code
as openvla-7b. Its actions mean nothing. Its tokenizer is our own, built in the structure of Llama's.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from openvla_ros.errors import CheckpointError, ConfigurationError
from openvla_ros.policy.openvla.checkpoint import shape_table
from openvla_ros.policy.openvla.configuration import Shapes, unused_shapes
from openvla_ros.policy.openvla.language import DecoderShape
from openvla_ros.policy.openvla.model import ModelShape, OpenvlaModel
from openvla_ros.policy.openvla.tokens import EMPTY_TOKEN, PROMPTS
from openvla_ros.policy.openvla.vision import TowerShape

SIZES = ("tiny",)
KEY = "untrained"
VOCABULARY, PADDING, BINS = 1024, 64, 256
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")
PAD_TOKEN = "<PAD>"

TINY = ModelShape(
    towers=(TowerShape(width=64, depth=4, heads=4, mlp=192, side=128, patch=16, prefix=5, layer_scale=True),
            TowerShape(width=72, depth=3, heads=4, mlp=160, side=128, patch=16, prefix=0, layer_scale=False)),
    decoder=DecoderShape(vocab_size=VOCABULARY + PADDING, hidden_size=128, intermediate_size=256, num_hidden_layers=4,
                         num_attention_heads=4, num_key_value_heads=4, head_dim=32, max_position_embeddings=1024))

TIMM_IDS = ("vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224")
# As stored in the published files: rounded to bfloat16.
MEANS = ((0.484375, 0.455078125, 0.40625), (0.5, 0.5, 0.5))
STDS = ((0.228515625, 0.2236328125, 0.224609375), (0.5, 0.5, 0.5))

LIMITS = (0.02, 0.02, 0.02, 0.06, 0.06, 0.1)
"""Largest step the checkpoint can ask for [m, rad]: of the size of BridgeData's 99th percentile."""

WORDS = ("a", "an", "and", "the", "to", "in", "on", "of", "into", "from", "near", "next", "behind", "under", "over", "left", "right", "top",
         "put", "pick", "place", "move", "take", "push", "pull", "open", "close", "lift", "turn", "fold", "stack", "wipe", "up", "down",
         "red", "green", "blue", "yellow", "cube", "block", "cup", "bowl", "pot", "pan", "plate", "spoon", "fork", "knife", "towel",
         "cloth", "carrot", "eggplant", "broccoli", "drawer", "sink", "table", "robot", "gripper", "object")

README = """# Untrained checkpoint

Made by `openvla-ros make-checkpoint`. **The weights are random numbers: its actions mean nothing.** It has the architecture and the
file layout of OpenVLA, in miniature, so that the whole system can be started and tested without a trained model. Every action it
gives is inside small limits (2 cm, 0.1 rad per step), but it is not aimed at anything. Do not run it on a real arm.

Statistics key: `{key}`. Seed: {seed}. Own tokenizer, in the structure of Llama's; no data and no weights of others.
"""


def write_untrained(folder: Path, size: str = "tiny", seed: int = 0, force: bool = False) -> int:
    """Write the checkpoint; the folder appears at once and whole. Returns the number of parameters.

    Raises ConfigurationError for an unknown size, CheckpointError if the folder exists; `force` replaces an untrained one only.
    """
    if size not in SIZES:
        raise ConfigurationError(f"size is {size!r}, expected one of {', '.join(SIZES)}.")
    if folder.exists() and not (force and is_untrained(folder)):
        advice = "Choose another name" if not is_untrained(folder) else "Choose another name, or replace it with --force"
        raise CheckpointError(f"{folder} exists already. {advice}.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.parent / f".{folder.name}.unfinished-{os.getpid()}"
    try:
        unfinished.mkdir()
        tensors = random_tensors(TINY, seed)
        (unfinished / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
        (unfinished / "README.md").write_text(README.format(key=KEY, seed=seed), encoding="utf-8")
        for name, content in descriptions(TINY).items():
            (unfinished / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return sum(tensor.numel() for tensor in tensors.values())


def is_untrained(folder: Path) -> bool:
    """Whether a folder is a checkpoint that was made here."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("untrained") is True
    except (OSError, ValueError, AttributeError):
        return False


def random_tensors(shape: ModelShape, seed: int) -> dict[str, Tensor]:
    """Every tensor of the published layout, the unused ones included, in bfloat16; the same for the same seed."""
    with torch.device("meta"):
        needed = shape_table(OpenvlaModel(shape))
    must, may = unused_shapes(shape, needed)
    shapes: Shapes = {**needed, **must, **may}
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: random_tensor(name, shapes[name], generator) for name in sorted(shapes)}
    tensors["language_model.lm_head.weight"] = action_head(shape.decoder, generator)
    return {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}


def random_tensor(name: str, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Scales that let picture and text reach the output: norms pass, layer scale is 1, position weighs less than content."""
    if "norm" in name or name.endswith("scale_factor"):
        return torch.zeros(size) if name.endswith("bias") else torch.ones(size)
    values = torch.randn(size, generator=generator)
    if name.endswith(("bias", "_token", "pos_embed", "latent")):
        return 0.1 * values
    if name.endswith("embed_tokens.weight"):
        return 0.2 * values
    gain = 2.0 if name.endswith(("q_proj.weight", "k_proj.weight")) else 1.0
    return gain * values / math.sqrt(math.prod(size[1:]))


def action_head(decoder: DecoderShape, generator: torch.Generator) -> Tensor:
    """An output head whose largest logit always belongs to an action token.

    The rows of the action tokens go once around a circle in a random plane, all others are zero. Wherever the hidden state points
    in that plane, the nearest row has a positive logit, so it beats the zeros; and it turns smoothly with the hidden state.
    """
    plane = torch.linalg.qr(torch.randn(decoder.hidden_size, 2, generator=generator)).Q
    angles = torch.arange(BINS) * (2.0 * math.pi / BINS)
    head = torch.zeros(decoder.vocab_size, decoder.hidden_size)
    head[VOCABULARY - BINS:VOCABULARY] = torch.stack([angles.cos(), angles.sin()], dim=1) @ plane.T
    return head


def descriptions(shape: ModelShape) -> dict[str, Any]:
    """File name -> content of every JSON file of the layout."""
    decoder = shape.decoder
    config = {
        "architectures": ["OpenVLAForActionPrediction"], "model_type": "openvla", "untrained": True,
        "arch_specifier": "no-align+fused-gelu-mlp", "vision_backbone_id": "dinosiglip-untrained-128px",
        "llm_backbone_id": "llama2-untrained", "use_fused_vision_backbone": True, "image_resize_strategy": "resize-naive",
        "image_sizes": [tower.side for tower in shape.towers], "timm_model_ids": list(TIMM_IDS), "timm_override_act_layers": [None, None],
        "timm_model_kwargs": [{"embed_dim": tower.width, "depth": tower.depth, "num_heads": tower.heads} for tower in shape.towers],
        "n_action_bins": BINS, "pad_token_id": VOCABULARY, "pad_to_multiple_of": PADDING, "torch_dtype": "bfloat16",
        "text_config": {"model_type": "llama", "vocab_size": decoder.vocab_size, "hidden_size": decoder.hidden_size,
                        "intermediate_size": decoder.intermediate_size, "num_hidden_layers": decoder.num_hidden_layers,
                        "num_attention_heads": decoder.num_attention_heads, "num_key_value_heads": decoder.num_key_value_heads,
                        "rms_norm_eps": decoder.rms_norm_eps, "max_position_embeddings": decoder.max_position_embeddings,
                        "pad_token_id": VOCABULARY, "torch_dtype": "bfloat16"},
        "norm_stats": {KEY: {"action": {"q01": [*(-limit for limit in LIMITS), 0.0], "q99": [*LIMITS, 1.0], "mask": [True] * 7},
                             "num_trajectories": 0, "num_transitions": 0}},
    }
    processor = {
        "image_processor_type": "PrismaticImageProcessor", "processor_class": "PrismaticProcessor", "use_fused_vision_backbone": True,
        "image_resize_strategy": "resize-naive", "input_sizes": [[3, tower.side, tower.side] for tower in shape.towers],
        "interpolations": ["bicubic", "bicubic"], "means": MEANS, "stds": STDS, "tvf_do_letterbox": False, "tvf_letterbox_fill": None,
        "tvf_normalize_params": [{"inplace": False, "mean": mean, "std": std} for mean, std in zip(MEANS, STDS, strict=True)],
    }
    return {"config.json": config, "preprocessor_config.json": processor, "tokenizer.json": tokenizer(),
            "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": VOCABULARY},
            "tokenizer_config.json": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": PAD_TOKEN,
                                      "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": decoder.max_position_embeddings}}


def tokenizer() -> dict[str, Any]:
    """tokenizer.json in the structure of Llama's: BOS in front, spaces as U+2581, byte fallback, byte-pair merges.

    Each known word grows letter by letter from its beginning. The last BINS ids are never reached by text: they are the actions.
    """
    pieces = dict.fromkeys([*SPECIAL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256)), EMPTY_TOKEN, *map(chr, range(33, 127))])
    merges: dict[str, None] = {}
    prompt_words = [word for prompt in PROMPTS.values() for word in prompt.replace("{instruction}", "").split()]
    for word in dict.fromkeys([*WORDS, *prompt_words]):
        start = EMPTY_TOKEN
        for letter in word:
            if len(pieces) >= VOCABULARY - BINS and start + letter not in pieces:
                break
            merges[f"{start} {letter}"] = None
            pieces[start := start + letter] = None
    unused = (f"<unused_{index}>" for index in range(VOCABULARY - BINS - len(pieces)))
    actions = (f"<action_{bin_index}>" for bin_index in reversed(range(BINS)))
    vocabulary = {piece: index for index, piece in enumerate([*pieces, *unused, *actions])}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": index, "content": token, **special} for index, token in
                         [*enumerate(SPECIAL_TOKENS), (VOCABULARY, PAD_TOKEN)]],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": EMPTY_TOKEN},
                                                           {"type": "Replace", "pattern": {"String": " "}, "content": EMPTY_TOKEN}]},
        "pre_tokenizer": None,
        "post_processor": {"type": "TemplateProcessing", "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
                           "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                           "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": EMPTY_TOKEN}, "content": " "},
                                                     {"type": "ByteFallback"}, {"type": "Fuse"},
                                                     {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "vocab": vocabulary, "merges": list(merges)},
    }
