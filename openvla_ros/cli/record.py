"""`openvla-ros record`: camera, instruction, states, chunks, reports and the rest of a running system into a rosbag2 recording."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from openvla_ros.cli.surroundings import surroundings
from openvla_ros.errors import DependencyMissing

if TYPE_CHECKING:
    from openvla_ros.ros.recorder import Result, View

LINE_S = 5.0
"""How often a line is printed where there is no terminal."""


def main(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to make.  \\[default: recording_DATE_TIME here]")] = None,
    topics: Annotated[list[str] | None, typer.Option("--topic", help="Record this too (repeat the option).")] = None,
    image_topics: Annotated[list[str] | None, typer.Option("--image-topic", help="Record this camera, not the policy's (repeat).")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Record every topic there is, every camera too.")] = False,
    exclude: Annotated[str, typer.Option(help="Regular expression; topics whose name has a match are not recorded.")] = "",
    when_driver: Annotated[list[str] | None, typer.Option(help="Record only while one of these drives: policy,human")] = None,
    paused: Annotated[bool, typer.Option("--paused", help="Wait for ros2 service call /recorder/start std_srvs/srv/Trigger.")] = False,
    seconds: Annotated[float, typer.Option(min=0.0, help="End after so many seconds of recording; 0: at Ctrl-C.")] = 0.0,
    split_mb: Annotated[float, typer.Option(min=0.0, help="Begin a new file when one has this many megabytes; 0: never.")] = 0.0,
    split_s: Annotated[float, typer.Option(min=0.0, help="Begin a new file when one spans so many seconds; 0: never.")] = 0.0,
    compression: Annotated[str, typer.Option(help="none, lz4 or zstd. JPEG pictures do not get smaller.")] = "none",
    queue_mb: Annotated[float, typer.Option(min=1.0, help="What may wait in memory for a slow disk.")] = 256.0,
    clock: Annotated[str, typer.Option(help="Of the log times: system, ros (/clock), or auto: /clock if it is there.")] = "auto",
    robot: Annotated[str, typer.Option(help="Robot profile to embed; empty: as command_node says.")] = "",
    checkpoint: Annotated[str, typer.Option(help="Checkpoint to identify; empty: as policy_node says.")] = "",
    namespace: Annotated[str, typer.Option(help="Namespace of the nodes, such as /left_arm.")] = "",
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of a live table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, at the end.")] = False,
) -> int:
    """Record a running system until Ctrl-C. It listens only: nothing is decoded, and no node waits for the disk.

    Each start, by service or driver, makes a recording of its own: OUTPUT, OUTPUT_002, and so on.
    """
    try:
        from openvla_ros.ros.recorder import RecordOptions, driver_names, record  # late: ROS, and the bag library
        from openvla_ros.ros.recorder_topics import Choice
    except ImportError as error:
        raise DependencyMissing(f"record needs ROS 2 (rclpy) and mcap, and {error.name} is not importable. Run 'make setup', or source "
                                "a ROS installation and: pip install 'openvla-ros[bags]'.") from error
    from openvla_ros.bags.scribe import QueueLimits
    from openvla_ros.bags.write import WriteSettings

    options = RecordOptions(
        output=output or Path(time.strftime("recording_%Y%m%d_%H%M%S")), namespace=namespace,
        choice=Choice(tuple(topics or ()), tuple(image_topics or ()), exclude, everything),
        drivers=driver_names(when_driver or ()), paused=paused, seconds=seconds, clock=clock,
        settings=WriteSettings(round(split_mb * 1e6), split_s, compression), limits=QueueLimits(bytes=round(queue_mb * 1e6)),
        robot=robot, checkpoint=checkpoint)
    os.environ.update(surroundings(private=False, domain=None))  # raw pictures get lost on the default settings of Fast DDS
    screen = Screen(Console(stderr=True, quiet=as_json), plain)
    try:
        result = record(options, screen.update)
    finally:
        screen.close()
    if as_json:
        print(json.dumps(as_plain(result)))
    else:
        for line in report(result):
            print(line)
        if result.error:
            typer.secho(f"error: {result.error}", fg=typer.colors.RED, err=True)
    return 2 if result.error else 0


class Screen:
    """A table that is drawn anew, in a terminal; elsewhere a line now and then and at every change."""

    def __init__(self, console: Console, plain: bool) -> None:
        self._console = console
        # Drawn by the caller: a thread of its own would outlive the recorder and end the process without its last words.
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal and not plain and not console.quiet else None
        if self._live is not None:
            self._live.start()
        self._phase, self._said_s = "", 0.0

    def update(self, view: View) -> None:
        """Called four times per second."""
        if self._live is not None:
            self._live.update(draw(view), refresh=True)
        elif view.phase != self._phase or monotonic() - self._said_s >= LINE_S:
            self._phase, self._said_s = view.phase, monotonic()
            self._console.print(line(view), markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the last table on the screen."""
        if self._live is not None:
            self._live.stop()


def line(view: View) -> str:
    """Where it is, in a line."""
    bag, progress = view.progress.bag, view.progress
    said = view.phase
    if bag is not None:
        said += f": {bag.path}, {bag.messages} messages, {bag.bytes / 1e6:.1f} MB, {bag.bytes / 1e6 / max(bag.seconds, 1.0):.2f} MB/s"
    dropped = sum(progress.dropped.values())
    return said + (f", {progress.waiting_bytes / 1e6:.0f} MB queued, {dropped} dropped" if dropped or progress.waiting_bytes > 1e6 else "")


def draw(view: View) -> Group:
    """The table of topics, between what is written and what is wrong."""
    bag, progress = view.progress.bag, view.progress
    table = Table(title=line(view), title_justify="left", min_width=72)
    for name in ("topic", "messages", "Hz", "lost", "dropped"):
        table.add_column(name, justify="left" if name == "topic" else "right")
    for name in sorted(view.heard):
        count = bag.counts.get(name, 0) if bag is not None else 0
        hz = f"{count / bag.seconds:.1f}" if bag is not None and bag.seconds > 0.5 else ""
        lost, dropped = view.lost.get(name, 0), progress.dropped.get(name, 0)
        table.add_row(name, str(count), hz, str(lost or ""), Text(str(dropped or ""), style="red"))
    return Group(table, *(Text(f"! {note}", style="yellow") for note in view.notes))


def as_plain(result: Result) -> dict[str, Any]:
    """The result for programs."""
    plain: dict[str, Any] = {**asdict(result), "bags": [{**asdict(bag), "path": str(bag.path)} for bag in result.bags]}
    if not result.error:
        del plain["error"]
    return plain


def report(result: Result) -> list[str]:
    """The result for people."""
    lines = [f"{bag.path}: {bag.messages} messages of {len(bag.counts)} topics in {bag.seconds:.1f} s, {bag.bytes / 1e6:.1f} MB in "
             f"{len(bag.files)} file{'s' if len(bag.files) > 1 else ''}" for bag in result.bags]
    lines += counted("dropped, the disk was too slow", result.dropped) + counted("lost on the way here", result.lost)
    lines += [f"not installed here: {name} ({kind})" for name, kind in result.not_installed.items()]
    lines += [f"silent: {', '.join(result.silent)}"] if result.silent else []
    return lines or ["nothing was recorded"]


def counted(what: str, counts: Mapping[str, int]) -> list[str]:
    """A line for messages that are missing, or none."""
    return [f"{what}: " + ", ".join(f"{name} {number}" for name, number in sorted(counts.items()))] if counts else []
