"""From a checkpoint on disk or on the hub to a network full of weights, one tensor at a time.

Only safetensors are read: pickle files (`.bin`, `.pt`) can run code when they are opened. No `trust_remote_code`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from openvla_ros.errors import CheckpointError, NotEnoughMemory
from openvla_ros.policy.catalogue import ACCEPTED_CHECKPOINTS, DEFAULT, default_checkpoint
from openvla_ros.policy.openvla.avx512 import Room
from openvla_ros.policy.openvla.configuration import Shapes, unused_shapes
from openvla_ros.policy.openvla.language import GatedMlp, KeyValueCache, SelfAttention
from openvla_ros.policy.openvla.linear import Int8Linear, fastest_linear
from openvla_ros.policy.openvla.memory import free_bytes
from openvla_ros.policy.openvla.model import OpenvlaModel
from openvla_ros.policy.openvla.quantization import (
    BY_BITSANDBYTES,
    BYTES_PER_WEIGHT,
    TRANSIENT_BYTES_PER_WEIGHT,
    is_quantized,
    quantize_linear,
)

HUB_FILES = ("*.json", "*.safetensors")
"""What is fetched from the hub: no code, no pickle."""

PICKLE_ENDINGS = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
FLOAT_TYPES = ("BF16", "F16", "F32")
WORKING_BYTES = 256 * 1024**2
"""Set aside for activations and the libraries' own buffers."""


class TensorSource(Protocol):
    """Anything that has named tensors: files on disk, or a generator of random ones."""

    def read(self, name: str) -> Tensor:
        """One tensor, floating point, on the CPU. Raises CheckpointError."""


def find_checkpoint(name: str) -> Path:
    """The folder of a checkpoint: the shipped one, `name` itself, or a hub snapshot that is fetched when it is not in the cache yet.

    Raises CheckpointError that says what is accepted.
    """
    if name == DEFAULT:
        return default_checkpoint()
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"checkpoint {name!r} is a file, expected {ACCEPTED_CHECKPOINTS}.")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name):
        raise CheckpointError(f"there is no folder {name!r}; a checkpoint is {ACCEPTED_CHECKPOINTS}.")
    from huggingface_hub import snapshot_download  # late: only needed for hub names
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"there is no folder {name!r}, and the Hugging Face hub did not give a model of that name ({reason}). "
                              "Check the spelling and the network (offline: copy the model folder here and name it); "
                              f"a checkpoint is {ACCEPTED_CHECKPOINTS}.") from error


class SafetensorsFolder:
    """The weights of a checkpoint folder: `model.safetensors`, or shards listed in `model.safetensors.index.json`."""

    def __init__(self, folder: Path) -> None:
        """Opens every file and reads the headers, so a missing or damaged one shows now. Raises CheckpointError."""
        self.file_of: dict[str, Any] = {}
        self.shape_of: dict[str, tuple[int, ...]] = {}
        for path in weight_files(folder):
            file = open_weights(path)
            for name in file.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                view = file.get_slice(name)
                if name in self.file_of:
                    raise CheckpointError(f"tensor {name} is stored twice, the second time in {path}. Download the checkpoint again.")
                if view.get_dtype() not in FLOAT_TYPES:
                    raise CheckpointError(f"tensor {name} in {path} has type {view.get_dtype()}, expected one of {', '.join(FLOAT_TYPES)}. "
                                          "Weights quantised on disk are not read: take the original and set quantization to int8 or nf4.")
                self.file_of[name], self.shape_of[name] = file, tuple(view.get_shape())

    def shapes(self) -> Shapes:
        """Name -> shape of every tensor."""
        return self.shape_of

    def read(self, name: str) -> Tensor:
        """One tensor as a view of the mapped file: copy it before keeping it."""
        tensor: Tensor = self.file_of[name].get_tensor(name)
        return tensor


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up a checkpoint. Raises CheckpointError with what to do instead."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} is not a weight index: {type(error).__name__}: {error}. Download it again.") from error
        outside = [name for name in names if Path(name).name != name]
        absent = [name for name in names if not (folder / name).is_file()]
        if outside or absent or not names:
            listed = ", ".join(outside or absent) or "none at all"
            raise CheckpointError(f"{index} names weight files that are not in the folder: {listed}. Finish the download.")
        return [folder / name for name in names]
    present = sorted(path.name for path in folder.iterdir())
    pickles = [name for name in present if name.endswith(PICKLE_ENDINGS)]
    if pickles:
        raise CheckpointError(f"{folder} has its weights only as pickle files ({', '.join(pickles[:4])}). Opening a pickle runs "
                              "whatever code is in it, so it is refused. Convert it to model.safetensors on a machine you trust.")
    if "adapter_config.json" in present:
        raise CheckpointError(f"{folder} is a LoRA adapter without its base model. Merge it into the base model's weights first.")
    raise CheckpointError(f"{folder} has neither model.safetensors nor model.safetensors.index.json; it holds "
                          f"{', '.join(present[:8]) or 'nothing'}. Name the folder of a complete checkpoint.")


def open_weights(path: Path) -> Any:
    """A safetensors handle. Raises CheckpointError that says what the file is instead."""
    try:
        return safe_open(path, framework="pt", device="cpu")
    except RuntimeError as error:  # torch maps the file
        raise CheckpointError(f"{path} with {path.stat().st_size / 1e9:.1f} GB cannot be mapped into memory ({error}). Raise the limit on "
                              "address space (ulimit -v), or use a checkpoint in smaller shards.") from error
    except (SafetensorError, OSError, ValueError) as error:
        with path.open("rb") as file:
            start = file.read(200)
        if start.lstrip()[:1] == b"<":
            guess = "It is a web page: the download link needed a login or is gone."
        elif start.startswith(b"version https://git-lfs"):
            guess = "It is a Git LFS pointer: run git lfs pull in that folder."
        else:
            guess = f"It has {path.stat().st_size} bytes and is truncated or damaged: download it again and compare its size."
        raise CheckpointError(f"{path} is not a readable safetensors file ({error}). {guess}") from error


def check_fit(model: OpenvlaModel, stored: Shapes) -> None:
    """Compare the network's tensors with the stored ones. Raises CheckpointError naming every one that does not fit."""
    needed = shape_table(model)
    must, may = unused_shapes(model.shape, needed)
    known = {**needed, **must, **may}
    missing = sorted((needed.keys() | must.keys()) - stored.keys())
    unexpected = sorted(stored.keys() - known.keys())
    misshapen = [f"{name} {list(stored[name])}, expected {list(known[name])}"
                 for name in sorted(known.keys() & stored.keys()) if stored[name] != known[name]]
    if missing or unexpected or misshapen:
        lines = [f"{title}: {'; '.join(names)}" for title, names in
                 (("missing", missing), ("not part of the model", unexpected), ("wrong shape", misshapen)) if names]
        raise CheckpointError("the weights do not fit config.json. " + ". ".join(lines) +
                              ". Weights and config.json must come from the same checkpoint.")


def needed_bytes(parameters: Iterable[tuple[str, Tensor]], dtype: torch.dtype, quantization: str) -> tuple[int, int]:
    """(memory that stays, further memory at the worst moment while loading) for the named parameters, meta ones too."""
    kept = transient = 0.0
    for name, parameter in parameters:
        size = parameter.numel()
        if quantization != "none" and is_quantized(name):
            kept += size * BYTES_PER_WEIGHT[quantization]
            transient = max(transient, size * TRANSIENT_BYTES_PER_WEIGHT[quantization])
        else:
            kept += size * dtype.itemsize
            transient = max(transient, size * dtype.itemsize)
    return int(kept), int(transient)


def check_memory(model: OpenvlaModel, device: torch.device, dtype: torch.dtype, quantization: str, positions: int,
                 free: Callable[[torch.device], int] = free_bytes) -> None:
    """Raise NotEnoughMemory if loading would not fit; both numbers are in the message. Takes no memory itself."""
    kept, transient = needed_bytes(model.named_parameters(), dtype, quantization)
    cache = KeyValueCache.count_bytes(model.shape.decoder, positions, dtype)
    needed, available = kept + transient + cache + WORKING_BYTES, free(device)
    if needed > available:
        hint = "Use quantization nf4 or int8, free memory, or take a larger machine" if quantization == "none" else \
               "Free memory or take a larger machine"
        raise NotEnoughMemory(f"loading needs about {needed / 1e9:.2f} GB on {device.type} (weights {kept / 1e9:.2f}, cache "
                              f"{cache / 1e9:.2f}, while loading {(transient + WORKING_BYTES) / 1e9:.2f}), but "
                              f"{available / 1e9:.2f} GB are free. {hint}.")


def load_weights(model: OpenvlaModel, source: TensorSource, device: torch.device, dtype: torch.dtype, quantization: str = "none",
                 report: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Fill a network built on the meta device, in place, and lay it out for inference; afterwards nothing in it is on meta.

    Tensors come one by one, those to be quantised first: quantising takes the most memory on the side, and then little
    else is there. Each part is laid out as soon as its tensors are there, so two copies of one part are the most there ever is beside the
    result. report: called with (tensors done, tensors in all). Call `check_fit` before.
    """
    names = sorted(model.state_dict(), key=lambda name: (not is_quantized(name), part_of(name)))
    done, room = 0, Room()
    for part, members in groupby(names, key=part_of):
        for name in members:
            tensor = source.read(name)
            if quantization in BY_BITSANDBYTES and is_quantized(name):
                replace_module(model, name.removesuffix(".weight"), quantize_linear(tensor, quantization, device, dtype))
            else:
                own = torch.empty(tensor.shape, device=device, dtype=dtype)
                own.copy_(tensor)  # always a copy: the source may be a mapping of a file that somebody replaces later
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, nn.Parameter(own, requires_grad=False))
            done += 1
            report(done, len(names))
        lay_out(model, part, quantization, room)
    model.eval()


def part_of(name: str) -> str:
    """The attention or feed-forward layer that a tensor belongs to, else its own module; "" for a tensor of a module with others inside."""
    match = re.match(r"(.*\.(?:self_attn|attn|mlp)|(?:projector|language_model\.lm_head))\.", name)
    return match[1] if match else ""


def lay_out(model: OpenvlaModel, part: str, quantization: str, room: Room) -> None:
    """Join the matrices of a part that read the same input, and replace its linear layers by what runs fastest here, or in few bits."""
    if not part:
        return
    module = model.get_submodule(part)
    on_cpu = next(module.parameters()).device.type == "cpu"
    if isinstance(module, (SelfAttention, GatedMlp)) and quantization not in BY_BITSANDBYTES:
        module.fuse()
    for name, layer in [(name, layer) for name, layer in model.named_modules() if name.startswith(part) and type(layer) is nn.Linear]:
        if quantization == "w8a8" and is_quantized(f"{name}.weight"):
            replace_module(model, name, Int8Linear(layer))
        elif on_cpu:
            replace_module(model, name, fastest_linear(layer, room))


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where the dotted `name` points."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def shape_table(model: nn.Module) -> Shapes:
    """Name -> shape of everything a network loads."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
