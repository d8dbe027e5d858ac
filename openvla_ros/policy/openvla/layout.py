"""A checkpoint in the published Hugging Face layout, written by us: weights, config.json with statistics, processor, own tokenizer.

What is written here goes through the same loader as openvla-7b (`loading.py`), so all that can be wrong with it is refused before a
byte is written. The tokenizer is our own, in the structure of Llama's; no data and no weights of others.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from tokenizers import Tokenizer
from torch import Tensor

from openvla_ros.errors import CheckpointError, ConfigurationError
from openvla_ros.policy.openvla.checkpoint import check_fit, shape_table
from openvla_ros.policy.openvla.configuration import Shapes, read_configuration, unused_shapes
from openvla_ros.policy.openvla.model import ModelShape, OpenvlaModel
from openvla_ros.policy.openvla.preprocess import Processor, parse_processor
from openvla_ros.policy.openvla.tokens import EMPTY_TOKEN, PROMPTS, ActionTokens, PromptEncoder
from openvla_ros.policy.statistics import check_statistics

BINS, PADDING = 256, 64
"""Action tokens at the end of the vocabulary, and rows of the embedding table behind it, as in the released models."""

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")
PAD_TOKEN = "<PAD>"
BEGIN_ID, END_ID = 1, 2

MADE_BY = "openvla_ros"
"""Value of `made_by` in config.json: by it `force` knows what it may replace."""

TIMM_IDS = ("vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224")
# As stored in the published files: rounded to bfloat16.
MEANS = ((0.484375, 0.455078125, 0.40625), (0.5, 0.5, 0.5))
STDS = ((0.228515625, 0.2236328125, 0.224609375), (0.5, 0.5, 0.5))


def write_checkpoint(folder: Path, shape: ModelShape, tensors: Mapping[str, Tensor], words: Iterable[str], key: str,
                     statistics: Mapping[str, Any], card: str, dtype: torch.dtype = torch.float16, untrained: bool = False,
                     extra: Mapping[str, bytes] | None = None, force: bool = False) -> int:
    """Write the checkpoint; the folder appears at once and whole. Returns the number of stored parameters.

    shape: two towers, the first with a prefix (DINOv2), the second without (SigLIP). tensors: names and shapes of
    `OpenvlaModel(shape).state_dict()`, the layout's unused ones too (see `complete`); they are stored as `dtype`.
    words: known to the tokenizer as one token each (see `describe_tokenizer`). statistics: the entry of norm_stats under `key`.
    card: README.md. extra: further files, name -> content. force: replace the folder if it is a checkpoint that was
    written here with the same `untrained`. Raises CheckpointError, and ConfigurationError for words that do not fit.
    """
    if folder.exists() and not (force and is_ours(folder, untrained)):
        advice = "Choose another name, or replace it with --force" if is_ours(folder, untrained) else "Choose another name"
        raise CheckpointError(f"{folder} exists already. {advice}.")
    check_statistics(key, statistics)
    stored = {name: store(name, tensors[name], dtype) for name in sorted(tensors)}
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    with torch.device("meta"):
        check_fit(OpenvlaModel(shape), shapes)
    config = describe_model(shape, key, statistics, dtype, untrained)
    read_back = read_configuration(folder, config, shapes).shape
    if read_back != shape:
        raise CheckpointError(f"config.json of the published layout cannot say {shape}: a loader would read {read_back}. Take heads that "
                              "divide the width, and leave head_dim and rope_theta as they are.")
    descriptions = {
        "config.json": config,
        "preprocessor_config.json": describe_processor(shape),
        "tokenizer.json": describe_tokenizer(words, vocabulary_size(shape)),
        "generation_config.json": {"bos_token_id": BEGIN_ID, "eos_token_id": END_ID, "pad_token_id": vocabulary_size(shape)},
        "tokenizer_config.json": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": PAD_TOKEN,
                                  "tokenizer_class": "PreTrainedTokenizerFast",
                                  "model_max_length": shape.decoder.max_position_embeddings},
    }
    files = {**(extra or {}), "README.md": card.encode(), "model.safetensors": save(stored, metadata={"format": "pt"}),
             **{name: (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode() for name, content in descriptions.items()}}
    write_folder(folder, files)
    return sum(tensor.numel() for tensor in stored.values())


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make `folder` with these files in place of what is there; whoever looks finds all the old ones or all the new ones."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished, replaced = (folder.parent / f".{folder.name}.{state}-{os.getpid()}" for state in ("unfinished", "replaced"))
    try:
        unfinished.mkdir()
        for name, content in files.items():
            (unfinished / name).write_bytes(content)
        if folder.exists():
            folder.rename(replaced)
        unfinished.rename(folder)
    finally:
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        for leftover in (unfinished, replaced):
            shutil.rmtree(leftover, ignore_errors=True)


def is_ours(folder: Path, untrained: bool) -> bool:
    """Whether a folder is a checkpoint that was written here, with random weights or with trained ones as asked."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return content.get("made_by") == MADE_BY and (content.get("untrained") is True) == untrained
    except (OSError, ValueError, AttributeError):
        return False


def complete(shape: ModelShape, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` of a trained network and, where absent, what the layout holds beside them and nobody reads.

    Those are each tower's last block, final norm and pooling head: ones for the scale of a norm and of a layer, else zeros.
    """
    return {name: torch.ones(size) if passes(name) and not name.endswith("bias") else torch.zeros(size)
            for name, size in layout_shapes(shape).items() if name not in tensors} | dict(tensors)


def layout_shapes(shape: ModelShape) -> Shapes:
    """Name -> shape of every tensor of the published layout, the unused ones included."""
    with torch.device("meta"):
        needed = shape_table(OpenvlaModel(shape))
    must, may = unused_shapes(shape, needed)
    return {**needed, **must, **may}


def passes(name: str) -> bool:
    """Whether the tensor belongs to a norm or a layer scale, which let their input through when their weight is one."""
    return "norm" in name or name.endswith("scale_factor")


def store(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous copy on the CPU. Raises CheckpointError if it is not finite as `dtype`: float16 ends at 65504."""
    stored = tensor.detach().to("cpu", dtype, copy=True).contiguous()
    if not torch.isfinite(stored).all():
        raise CheckpointError(f"tensor {name} holds NaN, infinity, or numbers too large for {str(dtype).removeprefix('torch.')}. "
                              "Training has diverged; a checkpoint of it would only give faults.")
    return stored


def describe_model(shape: ModelShape, key: str, statistics: Mapping[str, Any], dtype: torch.dtype, untrained: bool) -> dict[str, Any]:
    """Content of config.json."""
    decoder, kind, stored_as = shape.decoder, "untrained" if untrained else "small", str(dtype).removeprefix("torch.")
    return {
        "architectures": ["OpenVLAForActionPrediction"], "model_type": "openvla", "made_by": MADE_BY, "untrained": untrained,
        "arch_specifier": "no-align+fused-gelu-mlp", "vision_backbone_id": f"dinosiglip-{kind}-{shape.towers[0].side}px",
        "llm_backbone_id": f"llama2-{kind}", "use_fused_vision_backbone": True, "image_resize_strategy": "resize-naive",
        "image_sizes": [tower.side for tower in shape.towers], "timm_model_ids": list(TIMM_IDS), "timm_override_act_layers": [None, None],
        "timm_model_kwargs": [{"embed_dim": tower.width, "depth": tower.depth, "num_heads": tower.heads} for tower in shape.towers],
        "n_action_bins": BINS, "pad_token_id": vocabulary_size(shape), "pad_to_multiple_of": PADDING, "torch_dtype": stored_as,
        "text_config": {"model_type": "llama", "vocab_size": decoder.vocab_size, "hidden_size": decoder.hidden_size,
                        "intermediate_size": decoder.intermediate_size, "num_hidden_layers": decoder.num_hidden_layers,
                        "num_attention_heads": decoder.num_attention_heads, "num_key_value_heads": decoder.num_key_value_heads,
                        "rms_norm_eps": decoder.rms_norm_eps, "max_position_embeddings": decoder.max_position_embeddings,
                        "pad_token_id": vocabulary_size(shape), "torch_dtype": stored_as},
        "norm_stats": {key: dict(statistics)},
    }


def describe_processor(shape: ModelShape) -> dict[str, Any]:
    """Content of preprocessor_config.json."""
    return {
        "image_processor_type": "PrismaticImageProcessor", "processor_class": "PrismaticProcessor", "use_fused_vision_backbone": True,
        "image_resize_strategy": "resize-naive", "input_sizes": [[3, tower.side, tower.side] for tower in shape.towers],
        "interpolations": ["bicubic", "bicubic"], "means": MEANS, "stds": STDS, "tvf_do_letterbox": False, "tvf_letterbox_fill": None,
        "tvf_normalize_params": [{"inplace": False, "mean": mean, "std": std} for mean, std in zip(MEANS, STDS, strict=True)],
    }


def make_processor(shape: ModelShape) -> Processor:
    """The image processor that a written checkpoint of this shape will have, for training it."""
    return parse_processor(describe_processor(shape))


def make_prompt_encoder(words: Iterable[str], shape: ModelShape) -> PromptEncoder:
    """The prompt encoder that a written checkpoint of these words and shape will have, for training it. Raises ConfigurationError."""
    return PromptEncoder(Tokenizer.from_str(json.dumps(describe_tokenizer(words, vocabulary_size(shape)))), "openvla")


def make_action_tokens(shape: ModelShape) -> ActionTokens:
    """The action tokens that a written checkpoint of this shape will have, for training it."""
    return ActionTokens(vocabulary_size(shape), BINS)


def vocabulary_size(shape: ModelShape) -> int:
    """Tokens without the padding rows; the action ids end here."""
    return shape.decoder.vocab_size - PADDING


def count_tokens(words: Iterable[str]) -> int:
    """The smallest vocabulary that holds `words` and the actions; `DecoderShape.vocab_size` is at least this and PADDING."""
    return len(text_pieces(words)[0]) + BINS


def text_pieces(words: Iterable[str]) -> tuple[list[str], list[str]]:
    """(tokens that text can become, in the order of their ids; merges that make them).

    Special tokens, bytes, the space mark, printable ASCII, then each word, letter by letter from its beginning. Words of the prompt
    that begin a line have no space mark in front.
    """
    pieces = dict.fromkeys([*SPECIAL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256)), EMPTY_TOKEN, *map(chr, range(33, 127))])
    merges: dict[str, None] = {}
    prompt_words = [word for prompt in PROMPTS.values() for word in prompt.replace("{instruction}", "").split()]
    spaced = dict.fromkeys(EMPTY_TOKEN + word for word in [*words, *prompt_words])
    line_starts = dict.fromkeys(line.split()[0] for prompt in PROMPTS.values() for line in prompt.splitlines()[1:])  # no space in front
    for word in [*spaced, *line_starts]:
        start = word[0]
        for letter in word[1:]:
            merges[f"{start} {letter}"] = None
            pieces[start := start + letter] = None
    return list(pieces), list(merges)


def describe_tokenizer(words: Iterable[str], vocabulary: int) -> dict[str, Any]:
    """tokenizer.json in the structure of Llama's: BOS in front, spaces as U+2581, byte fallback, byte-pair merges.

    `words` and those of the prompts are one token each, other text is spelled: the longest known beginning, then letters or bytes.
    The last BINS ids are never reached by text: they are the actions. Raises ConfigurationError if `vocabulary` is too small.
    """
    pieces, merges = text_pieces(words)
    if len(pieces) + BINS > vocabulary:
        raise ConfigurationError(f"the words take {len(pieces)} tokens and the actions {BINS}, but the vocabulary has {vocabulary}. "
                                 f"Give the decoder a vocab_size of at least {len(pieces) + BINS + PADDING}.")
    unused = (f"<unused_{index}>" for index in range(vocabulary - BINS - len(pieces)))
    actions = (f"<action_{bin_index}>" for bin_index in reversed(range(BINS)))
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": index, "content": token, **special} for index, token in
                         [*enumerate(SPECIAL_TOKENS), (vocabulary, PAD_TOKEN)]],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": EMPTY_TOKEN},
                                                           {"type": "Replace", "pattern": {"String": " "}, "content": EMPTY_TOKEN}]},
        "pre_tokenizer": None,
        "post_processor": {"type": "TemplateProcessing", "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
                           "pair": [begin, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                           "special_tokens": {"<s>": {"id": "<s>", "ids": [BEGIN_ID], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": EMPTY_TOKEN}, "content": " "},
                                                     {"type": "ByteFallback"}, {"type": "Fuse"},
                                                     {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": {piece: index for index, piece in enumerate([*pieces, *unused, *actions])}, "merges": merges},
    }
