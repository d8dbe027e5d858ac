"""`openvla-ros replay`: a policy over a recording, offline; a report of what it would have done."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from openvla_ros.bags.frames import select
from openvla_ros.bags.read import Recording
from openvla_ros.bags.replay import Replay, ReplayedFrame, replay
from openvla_ros.bags.report import as_plain, median_stage_ms, write_report
from openvla_ros.policy.catalogue import load_policy, read_profile


def main(
    bag: Path = typer.Argument(..., help="rosbag2 folder, .mcap or .db3 file."),
    checkpoint: str = typer.Option(..., help="'default' (shipped), a checkpoint folder, a Hugging Face hub name, or 'scripted'."),
    unnorm_key: str = typer.Option("", help="Action statistics to use; empty: the checkpoint's only ones, else the profile's."),
    output: Path = typer.Option(None, help="Folder for replay.json and replay.png.  \\[default: replay-<bag name>]"),
    instruction: str = typer.Option("", help="Use this instruction instead of the recorded ones."),
    image_topic: str = typer.Option("", help="Camera topic, where the recording has several."),
    instruction_topic: str = typer.Option("", help="Instruction topic, where the recording has several."),
    action_topic: str = typer.Option("", help="Topic of the recorded actions (Float64MultiArray, or TwistStamped deltas)."),
    stride: int = typer.Option(1, min=1, help="Take every so many-th frame."),
    limit: int = typer.Option(0, min=0, help="End after so many frames; 0 for all."),
    profile: str = typer.Option("openvla-7b", "--policy", help="Policy profile: a name in config/policies or a .yaml file. It sets "
                                "the image path, as in policy_node; the options below override it."),
    device: str = typer.Option("", help="auto, cpu or cuda."),
    dtype: str = typer.Option("", help="bfloat16 or float32."),
    quantization: str = typer.Option("", help="none, int8 or nf4."),
    attention: str = typer.Option("", help="sdpa or flash."),
    resize: str = typer.Option("", help="direct (as the released server), or bridge (as the Bridge evaluation)."),
    centre_crop: bool = typer.Option(None, help="For models fine-tuned with random crops.", show_default=False),
    rotate_180: bool = typer.Option(None, help="Turn every frame by 180 degrees first.", show_default=False),
    prompt_style: str = typer.Option("", help="auto, openvla or v01."),
    threads: int = typer.Option(0, min=0, help="CPU threads of torch; 0 for its own choice."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object (without the frames; those are in the file)."),
) -> None:
    """Run a policy over a recording, offline, and compare with the recorded actions.

    Writes a JSON report and a picture. No ROS installation is needed; nothing is published.
    """
    console = Console(stderr=True, quiet=as_json)
    turns = {name: value for name, value in (("centre_crop", centre_crop), ("rotate_180", rotate_180)) if value is not None}
    with Recording(bag) as recording:
        selection = select(recording, image_topic, instruction, instruction_topic, action_topic)
        settings = read_profile(profile, checkpoint=checkpoint, unnorm_key=unnorm_key, device=device, dtype=dtype,
                                quantization=quantization, attention=attention, resize=resize, prompt_style=prompt_style,
                                threads=threads, **turns)
        policy = load_policy(settings, progress=False if as_json else None)
        try:
            expected = -(-selection.image.count // stride)
            with Progress(TextColumn("replay"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console) as bar:
                task = bar.add_task("replay", total=min(limit, expected) if limit else expected)
                result = replay(recording, selection, policy, stride, limit, lambda frame: bar.advance(task))
                bar.update(task, total=len(result.frames))
        finally:
            policy.close()
    folder = output or Path(f"replay-{result.recording}")
    json_path, picture_path = write_report(result, folder)
    if as_json:
        print(json.dumps({**as_plain(result, with_frames=False), "report": str(json_path), "picture": str(picture_path)}))
    else:
        show(result, json_path, picture_path)


def show(result: Replay, json_path: Path, picture_path: Path) -> None:
    """The report in a terminal."""
    console = Console()
    table = Table(title=f"{result.policy} on {result.recording}\nsize of predicted minus recorded, its bias, correlation r",
                  title_justify="left")
    for heading in ("", "unit", "n", "mean", "median", "95 %", "max", "bias", "r"):
        table.add_column(heading, justify="left" if heading in ("", "unit") else "right", no_wrap=True)
    for error in result.errors:
        numbers = (error.mean_abs, error.median_abs, error.p95_abs, error.max_abs, error.bias, error.correlation)
        table.add_row(error.name, error.unit, str(error.pairs), *("-" if value is None else f"{value:.4f}" for value in numbers))
    console.print(table)
    faults = [frame for frame in result.frames if frame.fault]
    console.print(f"{len(result.frames)} frames, {len(faults)} faults{_first_fault(faults)}")
    console.print("median ms: " + ", ".join(f"{name} {value:.1f}" for name, value in median_stage_ms(result).items()))
    for note in result.notes:
        console.print(f"note: {note}", style="yellow")
    console.print(f"report: {json_path}\npicture: {picture_path}", soft_wrap=True)


def _first_fault(faults: list[ReplayedFrame]) -> str:
    return f"; the first, frame {faults[0].index}: {faults[0].fault}" if faults else ""
