"""`openvla-ros run`: the whole system as one command, on a recording or on a robot. No ROS installation is needed.

This module reads options and decides what is started with which parameters; `ros/supervisor.py` runs it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from openvla_ros.errors import ConfigurationError, DependencyMissing
from openvla_ros.share import share_folder

if TYPE_CHECKING:
    from openvla_ros.ros.processes import Part
    from openvla_ros.ros.supervisor import Outcome, Plan

REPLAY_ROBOT = "wx250s_replay"
PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")  # Fast DDS 2 (Humble, Jazzy) and 3


def main(
    checkpoint: Annotated[str, typer.Option(help="Checkpoint folder, Hugging Face hub name, or 'scripted' (no model, for trying out).")],
    bag: Annotated[Path | None, typer.Option(help="Play this recording and end after it. Nothing real is moved.")] = None,
    policy: Annotated[str, typer.Option(help="Policy profile: a name in config/policies or a .yaml file; empty: openvla-7b.")] = "",
    unnorm_key: Annotated[str, typer.Option(help="Action statistics; empty: the only ones, else as the policy profile says.")] = "",
    instruction: Annotated[str, typer.Option(help="What to do; with --bag, instead of the recorded instruction.")] = "",
    robot: Annotated[str, typer.Option(help=f"Robot profile; empty: {REPLAY_ROBOT} with --bag, else command_node's own.")] = "",
    driver: Annotated[str, typer.Option(help="policy or hold: who drives when ready.  \\[default: policy with --bag, else hold]")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compute and report everything, send nothing to the arm.")] = False,
    action_scale: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Factor on the policy's motions.")] = None,
    rate: Annotated[float, typer.Option(min=0.05, max=20.0, help="Speed of the recording.")] = 1.0,
    loop: Annotated[bool, typer.Option("--loop", help="Play the recording again and again.")] = False,
    seconds: Annotated[float | None, typer.Option(min=0.5, help="End so long after the policy became active [s].")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda; empty: as the policy profile says.")] = "",
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32; empty: as the policy profile says.")] = "",
    quantization: Annotated[str, typer.Option(help="none, int8 or nf4; empty: as the policy profile says.")] = "",
    attention: Annotated[str, typer.Option(help="sdpa or flash; empty: as the policy profile says.")] = "",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of torch; 0: all cores but one.")] = 0,
    image_topic: Annotated[str, typer.Option(help="Camera topic; with --bag needed only where the recording has several.")] = "",
    compressed: Annotated[bool, typer.Option("--compressed", help="The camera topic carries CompressedImage (without --bag).")] = False,
    namespace: Annotated[str, typer.Option(help="Namespace of the nodes, such as /left_arm.")] = "",
    domain: Annotated[int | None, typer.Option(min=0, max=232, help="ROS domain; with --bag a free one, else ROS_DOMAIN_ID.")] = None,
    params_file: Annotated[Path | None, typer.Option(help="ROS parameter file for both nodes; options given here win.")] = None,
    log_folder: Annotated[Path | None, typer.Option("--log-dir", help="Folder for the logs of the parts.")] = None,
    plain: Annotated[bool, typer.Option("--plain", "--no-table", help="Lines instead of a live table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, at the end.")] = False,
) -> int:
    """Start policy_node, command_node and, with --bag, a player; show what happens; stop all of it cleanly on Ctrl-C.

    With --bag nothing leaves this computer: own ROS domain, localhost only, a robot profile without hardware.
    Without it, the driver is HOLD until somebody hands over.
    """
    for package in ("rclpy", "openvla_msgs"):
        if find_spec(package) is None:
            raise DependencyMissing(f"run needs ROS 2, and {package} is not importable. Use make setup, or source a ROS workspace in "
                                    "which openvla_msgs is built. Without ROS: openvla-ros replay.")
    driver = driver or ("policy" if bag else "hold")
    if driver not in ("policy", "hold"):
        raise ConfigurationError(f"--driver is {driver!r}, expected policy or hold.")
    if params_file is not None and not params_file.is_file():
        raise ConfigurationError(f"--params-file {params_file} does not exist.")
    if bag is None and (loop or rate != 1.0):
        raise ConfigurationError("--rate and --loop belong to a recording: give --bag too.")
    if bag is not None and compressed:
        raise ConfigurationError("--compressed is for a live camera; a recording says itself what it holds.")

    camera = Camera(image_topic, compressed, "") if bag is None else recorded_camera(bag, image_topic, instruction)
    # Only what was asked for is set here: it wins over a parameter file, and that may say `dry_run: true`.
    chosen: dict[str, Any] = {
        "checkpoint": checkpoint, "unnorm_key": unnorm_key, "policy": policy, "device": device, "dtype": dtype,
        "quantization": quantization, "attention": attention, "threads": threads}
    policy_values = {name: value for name, value in chosen.items() if value}
    command_values: dict[str, Any] = {"dry_run": True} if dry_run else {}
    command_topic = ""
    if action_scale is not None:
        command_values["action_scale"] = action_scale
    if bag or camera.compressed:
        policy_values["image_transport"] = "compressed" if camera.compressed else "raw"
    if bag:
        policy_values["use_sim_time"] = command_values["use_sim_time"] = True
    if bag or robot:
        profile = checked_robot(robot or REPLAY_ROBOT, bag, dry_run)
        command_values["robot"] = robot or REPLAY_ROBOT
        policy_values["base_frame"] = profile.base_frame
        command_topic = profile.command_topic if profile.output == "servo_twist" else ""  # the others speak other messages
    instruction_topic = "run_instruction" if bag and instruction else "instruction"
    remaps = {"instruction": instruction_topic if instruction or not camera.instruction_topic else camera.instruction_topic}
    if camera.topic:
        remaps["image/compressed" if camera.compressed else "image"] = camera.topic
    from openvla_ros.ros.processes import Part
    from openvla_ros.ros.supervisor import Plan

    plan = Plan(
        policy=Part("policy_node", "openvla_ros.ros.policy_node:main",
                    ros_arguments(policy_values, remaps, namespace, params_file)),
        command=Part("command_node", "openvla_ros.ros.command_node:main",
                     ros_arguments(command_values, {}, namespace, params_file)),
        player=None if bag is None else player(bag, rate, loop),
        namespace=namespace, command_topic=command_topic, instruction_topic=instruction_topic, instruction=instruction,
        driver=driver, seconds=seconds, camera_topic=camera.topic, loops=loop)
    outcome = conduct(plan, surroundings(bag is not None, domain), log_folder, plain, as_json)
    if as_json:
        print(json.dumps({**outcome.summary, **({"error": outcome.error} if outcome.error else {})}))
    return outcome.exit_code


@dataclass(frozen=True)
class Camera:
    """Where pictures and instruction come from. Empty: under the node's own names."""

    topic: str
    compressed: bool
    instruction_topic: str


def recorded_camera(bag: Path, image_topic: str, instruction: str) -> Camera:
    """The camera and instruction topic of a recording. Raises BagError."""
    from openvla_ros.bags.frames import COMPRESSED_IMAGE, select
    from openvla_ros.bags.read import Recording

    with Recording(bag) as recording:
        chosen = select(recording, image_topic, instruction)
    said = chosen.instruction.name if chosen.instruction else ""
    return Camera(chosen.image.name, chosen.image.type == COMPRESSED_IMAGE, said)


def checked_robot(robot: str, bag: Path | None, dry_run: bool) -> Any:
    """The robot profile; a real one may meet a recording only in a dry run. Raises ConfigurationError."""
    from openvla_ros.ros.profile import read_robot

    profile = read_robot(robot)
    if bag is not None and profile.real and not dry_run:
        raise ConfigurationError(f"robot {robot!r} is a real arm, and a recording must not move it. Use --robot {REPLAY_ROBOT}, "
                                 "or --dry-run.")
    return profile


def ros_arguments(parameters: Mapping[str, Any], remaps: Mapping[str, str], namespace: str, params_file: Path | None) -> tuple[str, ...]:
    """The command line that gives a node its parameters, names and namespace. Later ones win over the file."""
    arguments = ["--ros-args"]
    if params_file is not None:
        arguments += ["--params-file", str(params_file)]
    for name, value in parameters.items():
        # A text in YAML quotes stays a text, whatever it looks like; ROS reads these values as YAML.
        arguments += ["-p", f"{name}:={json.dumps(value)}"]
    for name, topic in remaps.items():
        if name != topic:
            arguments += ["-r", f"{name}:={topic}"]
    if namespace.strip("/"):
        arguments += ["-r", f"__ns:=/{namespace.strip('/')}"]
    return tuple(arguments)


def player(bag: Path, rate: float, loop: bool) -> Part:
    """The process that publishes the recording and its clock."""
    from openvla_ros.ros.processes import Part

    arguments = ("play", str(bag.resolve()), "--rate", str(rate), "--start-paused", "--wait-for-subscribers", "30",
                 "--json", *(["--loop"] if loop else []))
    return Part("player", "openvla_ros.cli.app:main", arguments)


def surroundings(private: bool, domain: int | None) -> dict[str, str]:
    """ROS environment of the run, for this process and its children.

    private: a recording is played. It gets a domain of its own and stays on this computer, whatever the shell says: the shell of a
    robot computer says how to reach the robot.
    """
    environment = {}
    if private:
        environment = {"ROS_DOMAIN_ID": str(free_domain()), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "ROS_STATIC_PEERS": ""}
        if os.environ.get("ROS_DISTRO") == "humble":
            environment["ROS_LOCALHOST_ONLY"] = "1"  # what newer ROS calls the discovery range
    if domain is not None:
        environment["ROS_DOMAIN_ID"] = str(domain)
    if not any(os.environ.get(name) for name in PROFILE_VARIABLES):
        environment |= dict.fromkeys(PROFILE_VARIABLES, str(share_folder() / "config" / "fastdds.xml"))
    return environment


def free_domain() -> int:
    """A domain from 1 to 100 in which nobody on this computer listens. The ports of a domain are fixed (DDSI-RTPS 9.6.1.1)."""
    start = os.getpid()
    for offset in range(100):
        domain = 1 + (start + offset) % 100
        try:
            for port in (7400 + 250 * domain, 7410 + 250 * domain):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                    probe.bind(("", port))
        except OSError:
            continue
        return domain
    raise ConfigurationError("no free ROS domain from 1 to 100 on this computer. End other ROS processes, or give --domain.")


def logs(asked: Path | None) -> Path:
    """The folder for this run's logs, made. Falls back to a temporary one where ROS's log folder cannot be written."""
    name = time.strftime("openvla_ros_%Y%m%d_%H%M%S_") + str(os.getpid())
    home = Path(os.environ.get("ROS_LOG_DIR") or Path(os.environ.get("ROS_HOME") or Path.home() / ".ros") / "log")
    folder = asked if asked is not None else home / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if asked is not None:
            raise ConfigurationError(f"--log-dir {asked} cannot be made: {error}.") from error
        return Path(tempfile.mkdtemp(prefix=name))
    return folder


def conduct(plan: Plan, environment: Mapping[str, str], log_folder: Path | None, plain: bool, as_json: bool) -> Outcome:
    """Run the plan and show it. Sets the environment for good: a process has only one ROS domain."""
    from openvla_ros.cli.screen import Lines, LiveTable, Quiet
    from openvla_ros.ros.supervisor import Supervisor

    folder = logs(log_folder)
    os.environ.update(environment)
    os.environ.setdefault("ROS_LOG_DIR", str(folder / "ros"))
    console = Console()
    screen = Quiet() if as_json else LiveTable(console) if console.is_terminal and not plain else Lines(console)
    screen.say(f"logs are in {folder}")
    if plan.player is not None:
        screen.say(f"private to this computer; to look in: export ROS_DOMAIN_ID={environment['ROS_DOMAIN_ID']} "
                   "ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST")
    try:
        outcome = Supervisor(plan, screen, folder).run()
    finally:
        screen.close()
    if not as_json:
        for line in report(outcome.summary):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if outcome.error:
        print(f"error: {outcome.error}", file=sys.stderr)
    return outcome


def report(summary: Mapping[str, Any]) -> list[str]:
    """The summary for people."""
    lines = ["", "summary", *([f"  {summary['headline']}"] if summary["headline"] else [])]
    if summary["frames_played"] is not None:
        lines.append(f"  frames      {summary['frames_played']} played, {summary['frames_received'] or 0} received, "
                     f"{summary['frames_inferred'] or 0} inferred, {summary['frames_replaced_by_newer'] or 0} replaced by newer ones")
    for name, count in summary["frames_refused"].items():
        lines.append(f"              {count} refused: {name}")
    hz = summary["hz"]
    lines.append(f"  chunks      {summary['chunks']} published" + (f" at {hz:.2f} Hz" if hz else ""))
    if summary["chunks_overtaken"]:
        lines.append(f"              {summary['chunks_overtaken']} overtaken: instruction, driver or state changed meanwhile")
    lines.append(f"  steps       {summary['steps_started']} started, driver at the end {summary['driver']}")
    for name, value in summary["latency_ms"].items():
        lines.append(f"  {name:<11} median {value['median']:.1f} ms, p99 {value['p99']:.1f} ms")
    for title, counts in (("faults", summary["faults"]), ("rules", summary["rules"]), ("stops", summary["stop_reasons"])):
        lines += [f"  {title:<11} {count} x {name}" for name, count in counts.items()]
    return lines + [f"  note        {note}" for note in summary["notes"]] + [f"  logs        {summary['log_folder']}"]
