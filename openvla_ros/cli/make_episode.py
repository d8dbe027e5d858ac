"""`openvla-ros make-episode`: a small drawn episode as a recording, for trying things out without data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import typer

from openvla_ros.bags.episode import EpisodeSettings, make_episode
from openvla_ros.bags.scene import INSTRUCTION
from openvla_ros.errors import ConfigurationError


def main(
    output: Path = typer.Option(..., help="Folder of the new recording."),
    seconds: float = typer.Option(8.0, help="Length [s]."),
    fps: float = typer.Option(5.0, help="Images and actions per second."),
    size: str = typer.Option("640x480", help="Width x height of the images [px]."),
    instruction: str = typer.Option(INSTRUCTION, help="What the recording says on /instruction."),
    seed: int = typer.Option(0, min=0, help="Where the blocks lie; equal seeds give equal recordings."),
    force: bool = typer.Option(False, help="Replace an older recording at --output."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Draw an episode: a gripper carries a block into a bowl; recorded actions match the motion. Plainly synthetic."""
    width, height = split_size(size)
    settings = EpisodeSettings(seconds, fps, width, height, instruction, seed)
    make_episode(output, settings, force)
    said = {"recording": str(output), "frames": settings.frames, "actions": settings.frames - 1, "instruction": settings.instruction}
    typer.echo(json.dumps(said) if as_json else f"{output}: {settings.frames} drawn images of {size}, "
               f"{settings.frames - 1} actions, instruction {settings.instruction!r}")


def split_size(text: str) -> tuple[int, int]:
    """Width and height of "640x480". Raises ConfigurationError."""
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not found:
        raise ConfigurationError(f"size is {text!r}, expected WIDTHxHEIGHT such as 640x480.")
    return int(found[1]), int(found[2])
