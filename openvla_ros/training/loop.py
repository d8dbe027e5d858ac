"""The optimiser's side of training: learning rate over time, averaged gradients of several processes, averaged weights, and a state
file from which all of it goes on after the process was killed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, distributed, nn

from openvla_ros.errors import TrainingError


@dataclass(frozen=True)
class Schedule:
    """Learning rate by step: up from zero, level, and in the last part down along a cosine.

    decay_share: share of `steps` in which it falls to floor_share * peak. A longer level part changes nothing of what
    came before it.
    """

    peak: float
    steps: int
    warmup_steps: int
    decay_share: float
    floor_share: float

    def rate(self, step: int) -> float:
        """At `step`, from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        decay_steps = self.decay_share * self.steps
        passed = (step - (self.steps - decay_steps)) / decay_steps if decay_steps else 0.0
        fall = 0.5 * (1.0 - math.cos(math.pi * min(max(passed, 0.0), 1.0)))
        return self.peak * (1.0 - (1.0 - self.floor_share) * fall)


class Trainer:
    """A network, its AdamW and its averaged weights. `step` counts the updates; all processes hold the same numbers.

    average: name -> running mean of each parameter over about 1 / (1 - `averaging`) updates, over fewer in the beginning.
    """

    def __init__(self, network: nn.Module, weight_decay: float = 0.05, averaging: float = 0.995, clip: float = 5.0) -> None:
        self.network, self.averaging, self.clip = network, averaging, clip
        self.parameters = dict(network.named_parameters())
        matrices = [parameter for parameter in self.parameters.values() if parameter.dim() > 1]
        vectors = [parameter for parameter in self.parameters.values() if parameter.dim() <= 1]
        self.optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}],
                                           lr=0.0, betas=(0.9, 0.98))
        for parameter in self.parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        self.average = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.step = 0

    @torch.no_grad()
    def update(self, loss: Tensor, rate: float) -> float:
        """One step down the gradient of `loss`, averaged over the processes. Returns the gradient's norm before clipping.

        Raises TrainingError when it is not finite; the weights are as before then.
        """
        with torch.enable_grad():
            loss.backward()  # type: ignore[no-untyped-call]
        average_gradients(list(self.parameters.values()))
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), self.clip))
        if not math.isfinite(norm):
            raise TrainingError(f"the gradient of step {self.step} is {norm}: training has diverged. Start again with a lower learning "
                                "rate, or resume from an earlier state.")
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        self.step += 1
        keep = min(self.averaging, (1.0 + self.step) / (10.0 + self.step))
        for name, parameter in self.parameters.items():
            self.average[name].lerp_(parameter, 1.0 - keep)
        return norm

    def save(self, path: Path, notes: Mapping[str, float]) -> None:
        """Write everything `load` needs; whoever is killed meanwhile leaves the previous file whole. notes: numbers to keep with it."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            state = self.optimizer.state.get(parameter, {})
            tensors |= {f"weight.{name}": parameter.detach(), f"average.{name}": self.average[name],
                        **{f"{moment}.{name}": state[moment] for moment in ("exp_avg", "exp_avg_sq") if moment in state}}
        content = save({name: tensor.contiguous() for name, tensor in tensors.items()},
                       metadata={"step": str(self.step), "notes": json.dumps(dict(notes))})
        write_whole(path, content)

    @torch.no_grad()
    def load(self, path: Path) -> dict[str, float]:
        """Go on from a saved state; returns its notes. Raises TrainingError if it is of another network or damaged."""
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a handle is no mapping
                described = file.metadata()
            self.step = int(described["step"])
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"weight.{name}"])
                self.average[name].copy_(tensors[f"average.{name}"])
                if f"exp_avg.{name}" in tensors:
                    self.optimizer.state[parameter] = {"step": torch.tensor(float(self.step)), "exp_avg": tensors[f"exp_avg.{name}"],
                                                       "exp_avg_sq": tensors[f"exp_avg_sq.{name}"]}
            notes: dict[str, float] = json.loads(described["notes"])
        except Exception as error:  # safetensors and torch raise many kinds
            raise TrainingError(f"{path} is not a state of this training: {type(error).__name__}: {error}. Start again in another "
                                "folder.") from error
        return notes


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes; alone, nothing happens."""
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, part in zip(gradients, torch.split(flat, [gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that at any moment there is the old one or the new one, whole, also after a power cut."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
