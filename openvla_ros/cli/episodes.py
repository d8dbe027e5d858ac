"""`openvla-ros episodes`: recordings cut into episodes, as a dataset that training reads."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from openvla_ros.bags.episodes import LEFT_OUT
from openvla_ros.bags.harvest import DatasetSummary, EpisodeRules, write_dataset
from openvla_ros.bags.read import Recording
from openvla_ros.bags.steps import StepSettings, picture_topic
from openvla_ros.errors import BagError


def main(
    bags: list[Path] = typer.Argument(..., help="rosbag2 folders, .mcap or .db3 files."),
    output: Path = typer.Option(..., help="Folder of the dataset. What an earlier, killed run finished there is kept."),
    gap: float = typer.Option(0.8, help="Longest time between two steps of one episode [s]."),
    min_steps: int = typer.Option(2, help="Shorter episodes are left out."),
    success: bool = typer.Option(None, "--success/--failure", help="Mark all episodes that the recording does not mark itself.",
                                 show_default=False),
    success_topic: str = typer.Option("", help="Bool that marks the episode it ends.  \\[default: .../episode/success]"),
    source: str = typer.Option("auto", help="sent (command reports), recorded (teleop actions), or auto: reports where there are any."),
    instruction: str = typer.Option("", help="Use this instruction instead of the recorded ones."),
    image_topic: str = typer.Option("", help="Camera topic, where the recording has several."),
    instruction_topic: str = typer.Option("", help="Instruction topic, where the recording has several."),
    action_topic: str = typer.Option("", help="Topic of the recorded actions (Float64MultiArray of 7 numbers)."),
    report_topic: str = typer.Option("", help="Topic of the command reports, where the recording has several."),
    raw_frames: str = typer.Option("jpeg", help="How uncompressed pictures are stored: jpeg (quality 95) or png (exact, slower to read). "
                                   "JPEG and PNG files are kept byte by byte."),
    key: str = typer.Option("", help="Name of the action statistics (unnorm_key).  \\[default: the folder's name]"),
    workers: int = typer.Option(1, min=1, help="So many recordings at a time, each in its own process."),
    force: bool = typer.Option(False, help="Replace another dataset at --output."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> int:
    """Cut recordings into episodes: by instruction, driver, gaps and marks, each step with its picture and what the arm was sent.

    What cannot be aligned is listed with the reason. No ROS installation is needed. Exit code 2 if any recording failed; the dataset
    then holds the others.
    """
    settings = StepSettings(image_topic, instruction, instruction_topic, action_topic, report_topic, success_topic, source, raw_frames)
    rules = EpisodeRules(gap, min_steps, success)
    with Progress(TextColumn("episodes"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                  console=Console(stderr=True, quiet=as_json)) as bar:
        pictures = _count_pictures(bags, settings)
        task = bar.add_task("episodes", total=sum(pictures.values()))

        def finished(path: Path) -> None:
            done = sum(pictures.get(one, 0) for one in bags[:bags.index(path) + 1]) if workers == 1 else None
            bar.update(task, completed=done, advance=None if workers == 1 else pictures.get(path, 0))

        found = write_dataset(bags, output, settings, rules, key, force, workers, lambda: bar.advance(task), finished)
    if as_json:
        print(json.dumps(as_plain(found)))
    else:
        show(found)
    return 2 if found.failed else 0


def _count_pictures(bags: list[Path], settings: StepSettings) -> dict[Path, int]:
    """How long the bar is. What cannot be opened counts as nothing here, and is named when it is its turn."""
    counts = {}
    for path in bags:
        with suppress(BagError), Recording(path) as recording:
            counts[path] = picture_topic(recording, settings).count
    return counts


def as_plain(found: DatasetSummary) -> dict[str, Any]:
    """The outcome as JSON values. Ranges of message numbers are in left_out.json."""
    return {
        "dataset": str(found.folder), "episodes": found.episodes, "rows": found.rows, "bytes": found.bytes, "failed": dict(found.failed),
        "recordings": [{
            "recording": part.recording, "episodes": part.episodes, "rows": part.rows, "notes": list(part.notes), "kept": part.reused,
            "left_out": [{"kind": entry.kind, "topic": entry.topic, "reason": entry.reason, "count": entry.count}
                         for entry in part.left_out],
        } for part in found.parts]}


def show(found: DatasetSummary) -> None:
    """The outcome in a terminal."""
    console = Console()
    table = Table(title="Episodes", title_justify="left")
    for heading in ("recording", "episodes", "rows", "left out", "why"):
        table.add_column(heading, justify="right" if heading in ("episodes", "rows", "left out") else "left")
    for part in found.parts:
        first = [escape(part.recording) + (" (kept)" if part.reused else ""), str(part.episodes), str(part.rows)]
        for entry in part.left_out:
            table.add_row(*first, str(entry.count), escape(f"{entry.kind}s of {entry.topic}: {entry.reason}"))
            first = ["", "", ""]
        if not part.left_out:
            table.add_row(*first, "0", "")
        for note in part.notes:
            table.add_row("", "", "", "", f"note: {escape(note)}", style="yellow")
    for path, why in found.failed.items():
        table.add_row(escape(Path(path).name), "-", "-", "all", escape(why), style="red")
    console.print(table)
    console.print(f"{found.episodes} episodes, {found.rows} rows, {found.bytes / 1e6:.1f} MB in {found.folder}; what was left out is in "
                  f"{LEFT_OUT}", soft_wrap=True)
