"""`openvla-ros run`: the whole system as one command, in a simulation, on a recording or on a robot. No ROS installation is needed.

This module reads options and decides what is started with which parameters; `ros/supervisor.py` runs it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import psutil
import typer
from rich.console import Console

from openvla_ros.cli.surroundings import logs, surroundings
from openvla_ros.errors import ConfigurationError, DependencyMissing
from openvla_ros.robot import RobotProfile
from openvla_ros.share import share_folder

if TYPE_CHECKING:
    from openvla_ros.ros.chronicle import Page
    from openvla_ros.ros.plan import Plan
    from openvla_ros.ros.processes import Part
    from openvla_ros.ros.supervisor import Outcome

REPLAY_ROBOT, SIMULATED_ROBOT = "wx250s_replay", "wx250s_sim"

DEFAULT_POLICY = "default"
"""Policy profile and checkpoint of the simulation."""

IN_SIMULATION, OF_A_RECORDING, OF_A_ROBOT = "Simulation", "Recording (--bag)", "Robot (--robot)"
"""Headings of --help."""


def main(
    checkpoint: Annotated[str, typer.Option(help="Checkpoint folder, Hugging Face hub name, or 'scripted' (no model, for trying out).  "
                                                 "\\[default: default in the simulation, else needed]")] = "",
    policy: Annotated[str, typer.Option(help="Policy profile: a name in config/policies or a .yaml file.  \\[default: default in the "
                                             "simulation, else openvla-7b]")] = "",
    unnorm_key: Annotated[str, typer.Option(help="Action statistics; empty: the only ones, else as the policy profile says.")] = "",
    instruction: Annotated[str, typer.Option(help="What to do first.  \\[default: to pick up a block in the simulation; as recorded with "
                                                  "--bag; else nothing]")] = "",
    driver: Annotated[str, typer.Option(help="policy or hold: who drives when ready.  \\[default: hold with --robot, else policy]")] = "",
    action_scale: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Factor on the policy's motions.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.5, help="End so long after the policy became active [s].")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda; empty: as the policy profile says.")] = "",
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32; empty: as the policy profile says.")] = "",
    quantization: Annotated[str, typer.Option(help="none, int8, nf4 or w8a8; empty: as the policy profile says.")] = "",
    attention: Annotated[str, typer.Option(help="sdpa or flash; empty: as the policy profile says.")] = "",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of torch; 0: as the policy profile says, else all cores but one.")] = 0,
    namespace: Annotated[str, typer.Option(help="Namespace of the nodes, such as /left_arm.")] = "",
    domain: Annotated[int | None, typer.Option(min=0, max=232, help="ROS domain; with --robot ROS_DOMAIN_ID, else a free one.")] = None,
    params_file: Annotated[Path | None, typer.Option(help="ROS parameter file for the nodes; options given here win.")] = None,
    log_folder: Annotated[Path | None, typer.Option("--log-dir", help="Folder for logs, plot and film.")] = None,
    rerun: Annotated[Path | None, typer.Option(help="Write the run for the Rerun viewer to this .rrd file.")] = None,
    plain: Annotated[bool, typer.Option("--plain", "--no-table", help="Lines instead of a live table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, at the end.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=999_999, help="Which scene.", rich_help_panel=IN_SIMULATION)] = 0,
    bag: Annotated[Path | None, typer.Option(help="Play this recording and end after it. Nothing real is moved.",
                                             rich_help_panel=OF_A_RECORDING)] = None,
    rate: Annotated[float, typer.Option(min=0.05, max=20.0, help="Speed of the recording.", rich_help_panel=OF_A_RECORDING)] = 1.0,
    loop: Annotated[bool, typer.Option("--loop", help="Play it again and again.", rich_help_panel=OF_A_RECORDING)] = False,
    robot: Annotated[str, typer.Option(help=f"Robot profile, such as wx250s. With --bag: empty is {REPLAY_ROBOT}.",
                                       rich_help_panel=OF_A_ROBOT)] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compute and report everything, send nothing to the arm.",
                                          rich_help_panel=OF_A_ROBOT)] = False,
    image_topic: Annotated[str, typer.Option(help="Camera topic; with --bag needed only where it has several.",
                                             rich_help_panel=OF_A_ROBOT)] = "",
    compressed: Annotated[bool, typer.Option("--compressed", help="The camera topic carries CompressedImage.",
                                             rich_help_panel=OF_A_ROBOT)] = False,
) -> int:
    """Start camera, policy and arm, show what happens, take instructions, and stop all of it on Ctrl-C.

    Without --bag and --robot: a SIMULATED arm with the policy that comes along; type what it is to do.
    Lines of a pipe are done one after the other, and the run ends after the last.

    With --bag: a RECORDING is played to its end.
    Neither of the two leaves this computer: own ROS domain, localhost only, no hardware.

    With --robot: a real ROBOT and its camera. The driver is HOLD until somebody hands over.
    """
    for package in ("rclpy", "openvla_msgs"):
        if find_spec(package) is None:
            raise DependencyMissing(f"run needs ROS 2, and {package} is not importable. Use make setup, or source a ROS workspace in "
                                    "which openvla_msgs is built. Without ROS: openvla-ros replay.")
    simulated = bag is None and robot in ("", SIMULATED_ROBOT)
    driver = driver or ("policy" if bag or simulated else "hold")
    if driver not in ("policy", "hold"):
        raise ConfigurationError(f"--driver is {driver!r}, expected policy or hold.")
    if params_file is not None and not params_file.is_file():
        raise ConfigurationError(f"--params-file {params_file} does not exist.")
    if bag is None and (loop or rate != 1.0):
        raise ConfigurationError("--rate and --loop belong to a recording: give --bag too.")
    if bag is not None and compressed:
        raise ConfigurationError("--compressed is for a live camera; a recording says itself what it holds.")
    if simulated and (compressed or image_topic):
        raise ConfigurationError("--image-topic and --compressed are for a robot's camera; the simulation has its own. Give --robot too.")
    if not simulated and not checkpoint:
        raise ConfigurationError("--checkpoint is needed with --bag and --robot: a folder with config.json and *.safetensors, a hub name "
                                 "such as openvla/openvla-7b, or scripted. The policy that comes along knows the simulation only.")
    if rerun is not None:
        refuse_without_rerun(rerun)

    camera = Camera("", False, "")
    if simulated:
        robot, checkpoint, policy = SIMULATED_ROBOT, checkpoint or DEFAULT_POLICY, policy or DEFAULT_POLICY
    elif bag is None:
        camera = Camera(image_topic, compressed, "")
    else:
        robot = robot or REPLAY_ROBOT
        camera = recorded_camera(bag, image_topic, instruction)
    profile = checked_robot(robot, bag, dry_run)
    # Only what was asked for is set here: it wins over a parameter file, and that may say `dry_run: true`.
    chosen: dict[str, Any] = {
        "checkpoint": checkpoint, "unnorm_key": unnorm_key, "policy": policy, "device": device, "dtype": dtype,
        "quantization": quantization, "attention": attention, "threads": threads}
    policy_values = {name: value for name, value in chosen.items() if value}
    command_values: dict[str, Any] = {"robot": robot, **({"dry_run": True} if dry_run else {})}
    policy_values["base_frame"] = profile.base_frame
    if action_scale is not None:
        command_values["action_scale"] = action_scale
    if bag or camera.compressed:
        policy_values["image_transport"] = "compressed" if camera.compressed else "raw"
    if bag:
        policy_values["draft"] = "none"  # an answer to a recording depends on its frame alone, as in `replay`
    if bag or simulated:
        policy_values["use_sim_time"] = command_values["use_sim_time"] = True
    instruction_topic = "run_instruction" if bag and instruction else "instruction"
    remaps = {"instruction": instruction_topic if instruction or not camera.instruction_topic else camera.instruction_topic}
    if camera.topic:
        remaps["image/compressed" if camera.compressed else "image"] = camera.topic
    typed = not as_json and not plain and bag is None and sys.stdin.isatty() and sys.stdout.isatty()
    from openvla_ros.ros.plan import Film, Plan
    from openvla_ros.ros.processes import Part

    def node(name: str, values: Mapping[str, Any], names: Mapping[str, str]) -> Part:
        return Part(name, f"openvla_ros.ros.{name}:main", ros_arguments(values, names, namespace, params_file))

    film = Film("overview/image", reliable=True) if simulated else None
    if rerun is not None and not simulated:
        film = Film(camera.topic or ("image/compressed" if camera.compressed else "image"), camera.compressed)
    plan = Plan(
        policy=node("policy_node", policy_values, remaps), command=node("command_node", command_values, {}),
        player=None if bag is None else player(bag, rate, loop),
        simulation=node("simulation_node", {"robot": robot, "seed": seed}, {}) if simulated else None,
        gripper=profile.gripper if simulated else None, seed=seed, namespace=namespace,
        # The outputs other than servo_twist speak other messages.
        command_topic=profile.command_topic if bag and profile.output == "servo_twist" else "",
        instruction_topic=instruction_topic if instruction or typed or simulated else "", instruction=instruction,
        suggestion=first_instruction(seed) if simulated else "", patient=not typed, driver=driver, seconds=seconds,
        camera_topic=camera.topic, film=film, loops=loop)
    outcome = conduct(plan, surroundings(bag is not None or simulated, domain), log_folder, plain, as_json, typed, rerun)
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


def first_instruction(seed: int) -> str:
    """Something that can be done in this scene."""
    from openvla_ros.simulation.scene import layout
    from openvla_ros.simulation.task import Task

    return Task("pick", layout(seed).colours[0]).instruction


def checked_robot(robot: str, bag: Path | None, dry_run: bool) -> RobotProfile:
    """The robot profile; a real one may meet a recording only in a dry run. Raises ConfigurationError."""
    from openvla_ros.ros.profile import read_robot

    profile = read_robot(robot)
    if bag is not None and profile.real and not dry_run:
        raise ConfigurationError(f"robot {robot!r} is a real arm, and a recording must not move it. Use --robot {REPLAY_ROBOT}, "
                                 "or --dry-run.")
    return profile


def refuse_without_rerun(path: Path) -> None:
    """Raises DependencyMissing, and ConfigurationError for a file that cannot be written, before anything is started."""
    if find_spec("rerun") is None:
        raise DependencyMissing("--rerun needs the Python package rerun-sdk, which is not installed. Install it with: "
                                "pip install 'openvla-ros[viewer]'")
    if not path.absolute().parent.is_dir():
        raise ConfigurationError(f"--rerun {path}: the folder {path.absolute().parent} does not exist.")


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


def conduct(plan: Plan, environment: Mapping[str, str], log_folder: Path | None, plain: bool, as_json: bool, typed: bool,
            rerun: Path | None) -> Outcome:
    """Run the plan and show it. Sets the environment for good: a process has only one ROS domain."""
    from contextlib import ExitStack

    from openvla_ros.cli.prompt import Silence, TypedLines, standard_input
    from openvla_ros.cli.screen import Lines, LiveTable, Quiet
    from openvla_ros.cli.terminal import Keyboard
    from openvla_ros.ros.processes import Process

    folder = logs(log_folder)
    os.environ.update(environment)
    os.environ.setdefault("ROS_LOG_DIR", str(folder / "ros"))
    parts = [Process(part, folder) for part in plan.first]  # they load ROS while this process does; they end when it ends
    from openvla_ros.ros.prompter import help_text
    from openvla_ros.ros.supervisor import Supervisor

    console = Console()
    with ExitStack() as terminal:
        screen: Quiet | LiveTable | Lines
        said: TypedLines | Silence | Any = standard_input() if plan.simulation is not None else Silence()
        if as_json:
            screen = Quiet()
        elif plain or not console.is_terminal:
            screen = Lines(console)
        else:
            screen = table = LiveTable(console, help_text(plan.simulation is not None) if typed else "")
            if typed:
                said = TypedLines(terminal.enter_context(Keyboard()), table.type)
        terminal.callback(screen.close)
        screen.say(f"logs are in {folder}")
        if environment.get("ROS_DOMAIN_ID") and (plan.player or plan.simulation):
            screen.say(f"private to this computer; to look in: export ROS_DOMAIN_ID={environment['ROS_DOMAIN_ID']} "
                       "ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST")
        supervisor = Supervisor(plan, screen, said, folder, process_began_s(), parts)
        outcome = supervisor.run()
    outcome = replace(outcome, summary={**outcome.summary, **keep(supervisor.page, plan, folder, rerun)})
    if not as_json:
        for line in report(outcome.summary):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if outcome.error:
        print(f"error: {outcome.error}", file=sys.stderr)
    return outcome


def process_began_s() -> float:
    """Steady time at which this process was started, by the user's Enter and not by the end of our imports."""
    created_s: float = psutil.Process().create_time()
    return time.monotonic() - max(0.0, time.time() - created_s)


def keep(page: Page, plan: Plan, folder: Path, rerun: Path | None) -> dict[str, Any]:
    """Write what the run kept of itself: plot, film, Rerun file. What cannot be written is a note, not a fault of the run."""
    from openvla_ros.cli.film import write_film
    from openvla_ros.cli.rerun_file import write_rerun
    from openvla_ros.cli.run_plot import write_plot

    title = "simulation" if plan.simulation is not None else "recording" if plan.player is not None else "robot"
    works: dict[str, Callable[[], Path | None]] = {
        "plot": lambda: write_plot(page, f"openvla-ros run: {title}", folder / "run.png"),
        "film": lambda: write_film(page, folder / "run.gif"),
        "rerun": lambda: write_rerun(page, rerun) if rerun is not None else None}
    files: dict[str, str] = {}
    notes: list[str] = []
    for name, work in works.items():
        try:
            path = work()
        except Exception as error:  # a full disk, a missing matplotlib: the run itself is over and was what it was
            notes.append(f"no {name} was written: {type(error).__name__}: {error}")
        else:
            if path is not None:
                files[name] = str(path)
    return {"files": files, "file_notes": notes}


def report(summary: Mapping[str, Any]) -> list[str]:
    """The summary for people."""
    lines = ["", "summary", *([f"  {summary['headline']}"] if summary["headline"] else [])]
    for task in summary.get("tasks", ()):
        wrong = f", touched the {task['wrong']} block" if task["wrong"] else ""
        lines.append(f"  task        {task['instruction']}: {task['outcome']} after {task['steps']} steps{wrong}")
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
    if summary.get("start_s"):
        lines.append("  start       " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in summary["start_s"].items()))
    lines += [f"  note        {note}" for note in (*summary["notes"], *summary.get("file_notes", ()))]
    lines += [f"  {name:<11} {path}" for name, path in summary.get("files", {}).items()]
    lines.append(f"  logs        {summary['log_folder']}")
    if "tasks" in summary:
        lines += ["  look closer with --rerun FILE.rrd, or while it runs in RViz:",
                  f"              rviz2 -d {share_folder() / 'config/rviz/simulation.rviz'}"]
    return lines
