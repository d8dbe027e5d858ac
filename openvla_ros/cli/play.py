"""`openvla-ros play`: a recording's sensing topics live on ROS 2, with its timing and /clock."""

from __future__ import annotations

import json
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from openvla_ros.bags.read import SECOND_NS, Recording
from openvla_ros.errors import ConfigurationError, DependencyMissing


def main(
    bag: Path = typer.Argument(..., help="rosbag2 folder, .mcap or .db3 file."),
    rate: float = typer.Option(1.0, help="Speed of time, 0.01 to 100."),
    loop: bool = typer.Option(False, help="Start again at the end. /clock and the stamps then go back."),
    topics: list[str] = typer.Option([], help="Play exactly these topics (repeat the option). Topics that command are "
                                              "heard under /replay."),
    remap: list[str] = typer.Option([], help="recorded:=heard, such as /wrist/image_raw:=/image (repeat the option)."),
    clock_hz: float = typer.Option(100.0, help="Rate of /clock, 40 to 1000 per second of wall time."),
    linger_s: float = typer.Option(2.0, help="How long /clock goes on after the last message [s]."),
    start_paused: bool = typer.Option(False, "--start-paused", help="Send nothing before ros2 service call /bag_player/resume "
                                                                    "std_srvs/srv/Trigger."),
    wait_for_subscribers: float = typer.Option(0.0, help="Longest wait for a reader of the camera before the start [s]; 0: none."),
    all_hosts: bool = typer.Option(False, help="Let other computers hear it too, as the ROS environment says."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object at the end."),
) -> None:
    """Publish a recording live: camera, instruction, states, /clock. Nothing that commands an arm.

    Messages keep their timing and quality of service. They stay on this computer unless --all-hosts is given.
    """
    try:
        from openvla_ros.ros.player import PlayOptions, play  # late: ROS
    except ImportError as error:
        raise DependencyMissing(f"play needs ROS 2 (rclpy): {error}. Run 'make setup', or source a ROS installation.") from error
    options = PlayOptions(rate=rate, loop=loop, clock_hz=clock_hz, linger_s=linger_s, start_paused=start_paused,
                          wait_for_subscribers_s=wait_for_subscribers, topics=tuple(topics),
                          remaps=dict(split_remap(text) for text in remap))
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.1f} of {task.total:.1f} s"))
    with Recording(bag) as recording:
        console = Console(stderr=True, quiet=as_json)
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task(f"play {recording.name}", total=(recording.end_ns - recording.start_ns) / SECOND_NS)
            sent = play(recording, options, all_hosts, lambda bag_s: bar.update(task, completed=bag_s))
        if as_json:
            print(json.dumps({"recording": recording.name, "sent": sent}))


def split_remap(text: str) -> tuple[str, str]:
    """The two names of "recorded:=heard". Raises ConfigurationError."""
    old, separator, new = text.partition(":=")
    if not (separator and old and new):
        raise ConfigurationError(f"remap is {text!r}, expected recorded:=heard, such as /wrist/image_raw:=/image.")
    return old, new
