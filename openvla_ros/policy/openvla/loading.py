"""From settings to a ready policy: find the checkpoint, judge all of it, then load. What can be refused is refused first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from openvla_ros.errors import CheckpointError, ConfigurationError
from openvla_ros.policy.catalogue import PolicySettings
from openvla_ros.policy.openvla.attention import choose_attention
from openvla_ros.policy.openvla.checkpoint import SafetensorsFolder, check_fit, check_memory, find_checkpoint, load_weights
from openvla_ros.policy.openvla.configuration import Configuration, read_configuration, read_json
from openvla_ros.policy.openvla.model import OpenvlaModel
from openvla_ros.policy.openvla.policy import OpenvlaPolicy, cache_positions
from openvla_ros.policy.openvla.preprocess import ImagePath, Processor, read_processor
from openvla_ros.policy.openvla.quantization import BY_BITSANDBYTES, NOTES, import_bitsandbytes
from openvla_ros.policy.openvla.tokens import ActionTokens, PromptEncoder, read_tokenizer
from openvla_ros.policy.statistics import choose_statistics, read_statistics

UNTRAINED = "untrained: the weights of this checkpoint are random numbers, so its actions mean nothing"


def load_openvla(settings: PolicySettings, progress: bool | None = None) -> OpenvlaPolicy:
    """A policy with its weights in memory. progress: a bar on stderr; None means if stderr is a terminal.

    Raises CheckpointError, UnknownStatistics, NotEnoughMemory, ConfigurationError or DependencyMissing, all but damage inside
    a weight file before the first weight is read.
    """
    device, dtype = choose_device(settings.device), {"bfloat16": torch.bfloat16, "float32": torch.float32}[settings.dtype]
    attend = choose_attention(settings.attention, device, dtype)
    if settings.quantization in BY_BITSANDBYTES:
        import_bitsandbytes()
    folder = find_checkpoint(settings.checkpoint)
    content = read_json(folder / "config.json")
    source = SafetensorsFolder(folder)
    configuration = read_configuration(folder, content, source.shapes())
    statistics = choose_statistics(read_statistics(folder, content), settings.unnorm_key)
    processor = check_sides(read_processor(folder), configuration)
    prompt = PromptEncoder(read_tokenizer(folder), choose_prompt_style(settings, configuration))
    with torch.device("meta"):
        model = OpenvlaModel(configuration.shape, attend)
    check_fit(model, source.shapes())
    check_memory(model, device, dtype, settings.quantization, cache_positions(model.shape))
    if settings.threads:
        torch.set_num_threads(settings.threads)
    with progress_bar(folder.name, progress) as report:
        load_weights(model, source, device, dtype, settings.quantization, report)
    name = folder.resolve().name if folder == Path(settings.checkpoint).expanduser() else settings.checkpoint
    notes = (NOTES[settings.quantization], UNTRAINED if configuration.untrained else "")
    policy = OpenvlaPolicy(name, model, prompt, processor, ImagePath(settings.resize, settings.rotate_180, settings.centre_crop),
                           ActionTokens(configuration.vocabulary, configuration.bins), statistics, settings.step_s,
                           configuration.end_id, tuple(filter(None, notes)), settings.draft == "previous")
    if device.type == "cuda" and settings.quantization not in BY_BITSANDBYTES:  # its layers look at numbers on the host within a pass
        record(policy, folder.name, progress)
    return policy


def record(policy: OpenvlaPolicy, name: str, progress: bool | None) -> None:
    """Record the passes as CUDA graphs. Where that fails the policy is as exact without them, and its notes say so."""
    try:
        with progress_bar(name, progress, "recording", "prompt lengths") as report:
            policy.record_passes(report)
    except RuntimeError as error:
        policy.recorded = None
        policy.notes += (f"CUDA graphs could not be recorded, so every action takes longer than it needs to: {str(error).splitlines()[0]}",)


def choose_device(name: str) -> torch.device:
    """`auto` takes the GPU if torch sees one. Raises ConfigurationError if a GPU is asked for and there is none."""
    present = torch.cuda.is_available()
    if name == "cuda" and not present:
        raise ConfigurationError(f"device is cuda, but torch {torch.__version__} sees no GPU. Check nvidia-smi and that torch is a "
                                 "CUDA build, or use device auto or cpu.")
    return torch.device("cpu" if name == "cpu" or not present else "cuda")


def choose_prompt_style(settings: PolicySettings, configuration: Configuration) -> str:
    """The forced style, or the checkpoint's own. Raises ConfigurationError if neither is known."""
    style = configuration.prompt_style if settings.prompt_style == "auto" else settings.prompt_style
    if not style:
        raise ConfigurationError("config.json does not say which prompt the model was trained with (llm_backbone_id is neither Llama "
                                 "nor Vicuna). Set prompt_style to openvla or v01.")
    return style


def check_sides(processor: Processor, configuration: Configuration) -> Processor:
    """The processor, if it makes the pictures that the towers take. Raises CheckpointError."""
    made, taken = ([tower.side for tower in towers] for towers in (processor.towers, configuration.shape.towers))
    if made != taken:
        raise CheckpointError(f"preprocessor_config.json makes pictures of {made} pixels, config.json expects {taken}. "
                              "They are from different checkpoints.")
    return processor


@contextmanager
def progress_bar(name: str, shown: bool | None, verb: str = "loading", things: str = "tensors") -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr that vanishes when done, as a function (things done, things in all)."""
    console = Console(stderr=True)
    columns = (TextColumn(f"{verb} {name}", markup=False), BarColumn(), MofNCompleteColumn(), TextColumn(things), TimeRemainingColumn())
    visible = console.is_terminal if shown is None else shown
    with Progress(*columns, console=console, transient=console.is_terminal, disable=not visible) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
