"""How the released code computes an action, written plainly, to measure against: the yardstick, not part of the product.

Comes in: the weights of a loaded policy and an observation; goes out: the same ids, the slow way. As released (openvla/openvla @ c8f03f48):
both towers are computed to their last block, of which only the one before is used; transformers' own Llama with separate q, k, v, gate and
up products and torch's attention (sdpa: what transformers takes by default where flash-attn is not asked for); a cache that grows by
concatenation; logits of all positions in float32; one token per pass, each looked at on the host before the next.
What the released towers take from timm is written out here, as the package needs no timm.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from openvla_ros.contract import FloatArray, Observation
from openvla_ros.errors import DependencyMissing, NotEnoughMemory
from openvla_ros.policy.openvla.checkpoint import WORKING_BYTES, TensorSource
from openvla_ros.policy.openvla.language import DecoderShape
from openvla_ros.policy.openvla.memory import free_bytes
from openvla_ros.policy.openvla.model import ModelShape, Projector
from openvla_ros.policy.openvla.policy import OpenvlaPolicy
from openvla_ros.policy.openvla.preprocess import Processor, TowerInput, pad_to_square
from openvla_ros.policy.openvla.vision import Block, PatchEmbed, TowerShape


@dataclass(frozen=True)
class Answer:
    """One inference. ids: as generated, the end-of-sequence id included. margins: [steps] logit of each id minus the best other one."""

    ids: tuple[int, ...]
    margins: FloatArray
    logits: Tensor  # [steps, vocab] float32, on the device
    stage_ms: Mapping[str, float]


class Baseline:
    """The released path on the weights of a policy. Tensors are the policy's own wherever it still has them as published."""

    def __init__(self, policy: OpenvlaPolicy, source: TensorSource) -> None:
        """source: where the policy's weights came from, for those it does not keep: the towers' last blocks, and what its engine has laid
        out in another way. Raises DependencyMissing without transformers, NotEnoughMemory where a copy of those has no room."""
        self.policy, self.device, self.dtype = policy, policy.device, policy.dtype
        shape = policy.model.shape
        with torch.device("meta"):
            self.towers = nn.ModuleList(TimmTower(tower) for tower in shape.towers)
            self.projector = Projector(shape)
            self.llama = build_llama(shape.decoder)
        tensors = Tensors(published_tensors(policy.model), source, self.device, self.dtype)
        parts = {"projector.": self.projector, "language_model.": self.llama}
        parts |= dict(zip(("vision_backbone.featurizer.", "vision_backbone.fused_featurizer."), self.towers, strict=False))
        tensors.check_memory(parts)
        for prefix, module in parts.items():
            tensors.fill(module, prefix)
        self.own_bytes = tensors.own_bytes
        self.rotary_on_device()
        known = inspect.signature(type(self.llama.model).forward).parameters
        self.cache_argument = "cache" if "cache" in known else "past_key_values"  # renamed in transformers 5

    def rotary_on_device(self) -> None:
        """The rotary frequencies are computed when the class is made, and it was made on meta."""
        head = self.llama.config.head_dim
        exponents = torch.arange(0, head, 2, dtype=torch.float32, device=self.device) / head
        rotary = self.llama.model.rotary_emb
        rotary.inv_freq = rotary.original_inv_freq = 1.0 / (self.policy.model.shape.decoder.rope_theta ** exponents)

    @torch.inference_mode()
    def predict(self, observation: Observation) -> Answer:
        """The path of the released `predict_action`, stage by stage. Raises InstructionError."""
        watch = Watch(self.device)
        prompt = torch.tensor([self.policy.prompt.encode(observation.instruction)], device=self.device)
        pixels = self.to_pixels(self.policy.image_path.apply(observation, self.policy.processor.side))
        watch.end("preprocess")
        pixels = pixels.to(self.device, self.dtype)
        watch.end("upload")
        patches = self.projector(self.see(pixels))
        watch.end("vision")
        text = self.llama.model.embed_tokens(prompt)
        logits, cache = self.forward(torch.cat([text[:, :1], patches, text[:, 1:]], dim=1), None)
        watch.end("prefill")
        ids, rows = list[int](), list[Tensor]()
        for step in range(self.policy.statistics.length):
            rows.append(logits[:, -1, :])
            token = rows[-1].argmax(dim=-1)  # greedy search: the first largest
            ids.append(int(token))  # the host looks at each token, for the end of the sequence
            if ids[-1] == self.policy.end_id or step == self.policy.statistics.length - 1:
                break
            logits, cache = self.forward(self.llama.model.embed_tokens(token[:, None]), cache)
            watch.end(f"decode {step + 1}")
        all_rows = torch.cat(rows)
        best = all_rows.topk(2, dim=-1).values
        return Answer(tuple(ids), (best[:, 0] - best[:, 1]).double().cpu().numpy(), all_rows, watch.stage_ms)

    def to_pixels(self, rgb: np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
        """[1, 3 per tower, side, side] float32: each tower resizes the picture for itself, as released."""
        processor: Processor = self.policy.processor
        picture = Image.fromarray(rgb)
        if processor.strategy == "letterbox":
            picture = pad_to_square(picture, processor.letterbox_fill)
        return torch.vstack([to_tensor(processor.resize(picture, tower.side), tower) for tower in processor.towers])[None]

    def see(self, pixels: Tensor) -> Tensor:
        """[1, 3 or 6, side, side] -> [1, patches, sum of widths]"""
        return torch.cat([tower(part) for tower, part in zip(self.towers, torch.split(pixels, 3, dim=1), strict=True)], dim=2)

    def forward(self, tokens: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """[1, T, W] behind what the cache holds -> logits of all positions [1, T, vocab] in float32, and the grown cache."""
        from transformers import DynamicCache

        cache = DynamicCache() if cache is None else cache
        hidden = self.llama.model(inputs_embeds=tokens, use_cache=True, **{self.cache_argument: cache}).last_hidden_state
        return self.llama.lm_head(hidden).float(), cache


def attend_plainly(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """Torch's attention as it comes, as in timm's towers, which are not causal."""
    assert not causal
    return functional.scaled_dot_product_attention(query, key, value)


class TimmTower(nn.Module):
    """A vision transformer as timm runs it for `get_intermediate_layers`: every block is computed, the one before the last is taken."""

    def __init__(self, shape: TowerShape) -> None:
        super().__init__()
        self.shape = shape
        if shape.prefix:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        if shape.prefix > 1:
            self.reg_token = nn.Parameter(torch.zeros(1, shape.prefix - 1, shape.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, shape.patches, shape.width))
        self.patch_embed = PatchEmbed(shape)
        self.blocks = nn.ModuleList(Block(shape, attend_plainly) for _ in range(shape.depth))

    def forward(self, pixels: Tensor) -> Tensor:
        """[1, 3, side, side] -> [1, patches, W]"""
        tokens = self.patch_embed(pixels) + self.pos_embed
        if self.shape.prefix:
            prefix = [self.cls_token] + ([self.reg_token] if self.shape.prefix > 1 else [])
            tokens = torch.cat([part.expand(len(tokens), -1, -1) for part in prefix] + [tokens], dim=1)
        outputs = []
        for block in self.blocks:
            tokens = block(tokens)
            outputs.append(tokens)
        return outputs[-2][:, self.shape.prefix:]  # type: ignore[no-any-return]


def to_tensor(rgb: np.ndarray[Any, np.dtype[np.uint8]], tower: TowerInput) -> Tensor:
    """[H, W, 3] uint8 -> [3, H, W] float32, with torchvision's arithmetic: to 0..1, minus mean, by standard deviation."""
    pixels = torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous().float().div(255)
    mean, std = (torch.tensor(values)[:, None, None] for values in (tower.mean, tower.std))
    return pixels.sub_(mean).div_(std)


def build_llama(decoder: DecoderShape) -> Any:
    """transformers' own class, without weights. Raises DependencyMissing."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise DependencyMissing(f"the baseline is transformers' Llama, which cannot be imported here ({error}). Install it with: "
                                "pip install transformers") from error
    make_config: Any = LlamaConfig  # takes more than its types say
    model: Any = LlamaForCausalLM
    config = make_config(
        vocab_size=decoder.vocab_size, hidden_size=decoder.hidden_size, intermediate_size=decoder.intermediate_size,
        num_hidden_layers=decoder.num_hidden_layers, num_attention_heads=decoder.num_attention_heads,
        num_key_value_heads=decoder.num_key_value_heads, head_dim=decoder.head_dim, rms_norm_eps=decoder.rms_norm_eps,
        rope_theta=decoder.rope_theta, max_position_embeddings=decoder.max_position_embeddings, tie_word_embeddings=False,
        attn_implementation="sdpa")
    return model(config).eval()


class Tensors:
    """Fills networks by published names: with the policy's own tensors where it has them, else from the source."""

    def __init__(self, shared: Mapping[str, Tensor], source: TensorSource, device: torch.device, dtype: torch.dtype) -> None:
        self.shared, self.source, self.device, self.dtype, self.own_bytes = shared, source, device, dtype, 0

    def check_memory(self, parts: Mapping[str, nn.Module]) -> None:
        """Raise NotEnoughMemory if what is not shared has no room."""
        needed = sum(tensor.numel() * self.dtype.itemsize for prefix, module in parts.items()
                     for name, tensor in module.state_dict().items() if prefix + name not in self.shared)
        available = free_bytes(self.device)
        if needed + WORKING_BYTES > available:
            raise NotEnoughMemory(f"the baseline needs {needed / 1e9:.2f} GB for weights of its own, which the engine has laid out in "
                                  f"another way, but {available / 1e9:.2f} GB are free. Measure it on a machine with more memory.")

    def fill(self, module: nn.Module, prefix: str) -> None:
        """Give `module` all of its parameters, in place. prefix: of their published names."""
        for name in list(module.state_dict()):
            tensor = self.shared.get(prefix + name)
            if tensor is None:
                tensor = torch.empty(module.get_parameter(name).shape, device=self.device, dtype=self.dtype)
                tensor.copy_(self.source.read(prefix + name))
                self.own_bytes += tensor.nbytes
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, nn.Parameter(tensor, requires_grad=False))
        module.eval()


JOINED: Mapping[str, Sequence[str]] = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Layers of the decoder that an engine may have joined -> the published ones, in the order of their rows."""


def published_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Published name -> the tensor of a network that holds it, as a view where it was joined with others. What was laid out in another
    way altogether (quantised, packed) is not there."""
    shape: ModelShape = model.shape  # type: ignore[assignment]
    decoder = shape.decoder
    rows = {"q_proj": decoder.num_attention_heads * decoder.head_dim, "k_proj": decoder.num_key_value_heads * decoder.head_dim,
            "v_proj": decoder.num_key_value_heads * decoder.head_dim, "gate_proj": decoder.intermediate_size,
            "up_proj": decoder.intermediate_size}
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        parent, _, layer = path.rpartition(".")
        if leaf == "weight" and layer in JOINED:
            parts = torch.split(parameter, [rows[part] for part in JOINED[layer]])
            found.update({f"{parent}.{part}.weight": tensor.detach() for part, tensor in zip(JOINED[layer], parts, strict=True)})
        elif parameter.dtype.is_floating_point:
            found[name] = parameter.detach()
    return found


class Watch:
    """Milliseconds per stage; on a GPU each end waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stage_ms = device, dict[str, float]()
        self.last_s = time.perf_counter()

    def end(self, stage: str) -> None:
        """The stage that began when the last one ended is over."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now_s = time.perf_counter()
        self.stage_ms[stage] = (now_s - self.last_s) * 1000.0
        self.last_s = now_s


