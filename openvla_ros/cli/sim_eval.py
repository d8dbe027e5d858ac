"""`openvla-ros sim-eval`: how often a policy does what it is told on the simulated tabletop, in this process or through real nodes."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from openvla_ros.errors import ConfigurationError, DependencyMissing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from openvla_ros.simulation.evaluate import Act, StateActor, TaskResult

ROBOT = "wx250s_sim"
"""Profile whose limits hold in the simulation."""

EXPERT, RANDOM = "expert", "random"
"""Checkpoint names of those who are no policy: the scripted expert, which sees the truth, and chance."""

EXPERT_NOTE = "the expert sees where everything is, which no policy does"

CANONICAL, TRAINING, HELD_OUT = PHRASES = ("canonical", "training", "held-out")

PACKAGES = ("openvla_ros", "mujoco-core", "mujoco", "torch", "numpy")
"""Those whose version can change a result."""


@dataclass(frozen=True)
class Request:
    """What to evaluate. Every field was checked."""

    checkpoint: str
    kinds: tuple[str, ...]
    seeds: range
    phrases: str
    instruction_control: str
    image_control: str


@dataclass(frozen=True)
class Outcome:
    """What was found. notes: what a user must know about the policy. command_path: None where no ROS was in between."""

    results: Mapping[str, TaskResult]
    notes: tuple[str, ...] = ()
    command_path: Mapping[str, object] | None = None


def main(
    checkpoint: Annotated[str, typer.Option(help="'default' (shipped with the package), a checkpoint folder, a hub name; or 'expert' "
                                            "(scripted, sees the truth) and 'random', to compare with.")] = "default",
    tasks: Annotated[str, typer.Option(help="Some of reach, pick, place.")] = "reach,pick,place",
    episodes: Annotated[int, typer.Option(min=1, help="Episodes per task, each in a layout of its own.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Layout of the first episode; the others follow. Training uses none of these.")] = 0,
    phrases: Annotated[str, typer.Option(help="canonical, training (all that it learned) or held-out (that it never saw).")] = CANONICAL,
    instruction_control: Annotated[str, typer.Option(help="other-colour: tell it another block that is there.")] = "",
    image_control: Annotated[str, typer.Option(help="blank: show it grey pictures.")] = "",
    through_ros: Annotated[bool, typer.Option("--ros", help="Through policy_node, command_node and simulation_node as processes, one "
                                              "episode after the other in real time.")] = False,
    real_time_factor: Annotated[float, typer.Option(min=0.05, max=20.0, help="With --ros: pace of the simulated time; below 1 for a "
                                                    "computer that is too slow.")] = 1.0,
    batch: Annotated[int, typer.Option(min=1, max=256, help="Without --ros: episodes side by side.")] = 32,
    unnorm_key: Annotated[str, typer.Option(help="Action statistics to use. Optional where there is only one.")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda; empty: as the profile of the default policy says.")] = "",
    dtype: Annotated[str, typer.Option(help="bfloat16 or float32; empty: as the profile of the default policy says.")] = "",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of torch; 0: as the profile says.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Write a picture of the result to this .png file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")] = False,
) -> None:
    """Let a policy do its tasks on the simulated tabletop, and count.

    The same command line gives the same counts on the same machine; another processor may turn single episodes. Controls show that
    it reads and looks: with other-colour the task itself should fail and the told one succeed, with blank pictures all should fail.
    It says nothing about a real arm.
    """
    request = check(checkpoint, tasks, range(seed, seed + episodes), phrases, instruction_control, image_control)
    if plot is not None:
        check_plot(plot)
    settings = {name: value for name, value in (("unnorm_key", unnorm_key), ("device", device), ("dtype", dtype)) if value}
    if through_ros:
        check_for_ros(request, settings)
    begin = perf_counter()
    with progress_bar(len(request.kinds) * episodes, quiet=as_json) as progress:
        outcome = (run_through_ros(request, threads, real_time_factor, progress) if through_ros else
                   run_here(request, settings | ({"threads": threads} if threads else {}), batch, progress))
    report = to_report(request, outcome, perf_counter() - begin)
    if plot is not None:
        from openvla_ros.cli.sim_eval_plot import write_plot  # late: matplotlib takes a second

        write_plot(outcome.results, title(request), plot)
    if as_json:
        print(json.dumps(report))
    else:
        show(request, outcome, report)
        if plot is not None:
            typer.echo(f"picture: {plot}")


def check(checkpoint: str, tasks: str, seeds: range, phrases: str, instruction_control: str, image_control: str) -> Request:
    """The request, before anything is loaded. Raises ConfigurationError; DependencyMissing without MuJoCo."""
    try:
        from openvla_ros.simulation.evaluate import IMAGE_CONTROLS, INSTRUCTION_CONTROLS  # late: MuJoCo takes a moment
        from openvla_ros.simulation.scene import EVALUATION_SEEDS
        from openvla_ros.simulation.task import KINDS
    except ModuleNotFoundError as error:
        raise DependencyMissing(f"the simulation needs the Python package {error.name!r}, which is not installed. Install it with: "
                                "pip install 'openvla-ros[simulation]'") from error
    kinds = tuple(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    if not kinds:
        raise ConfigurationError(f"--tasks is empty, expected some of {', '.join(KINDS)}.")
    for option, value, known in (*(("tasks", kind, KINDS) for kind in kinds), ("phrases", phrases, PHRASES),
                                 ("instruction-control", instruction_control, INSTRUCTION_CONTROLS),
                                 ("image-control", image_control, IMAGE_CONTROLS)):
        if value not in known:
            raise ConfigurationError(f"--{option} has {value!r}, expected {' or '.join(filter(None, known))}.")
    if seeds.stop > EVALUATION_SEEDS.stop:
        raise ConfigurationError(f"--seed {seeds.start} with --episodes {len(seeds)} reaches layout {seeds.stop - 1}; those from "
                                 f"{EVALUATION_SEEDS.stop} on are for training. Begin lower.")
    if image_control and checkpoint == EXPERT:
        raise ConfigurationError("the expert looks at no picture, so --image-control would change nothing. Name a checkpoint.")
    return Request(checkpoint, kinds, seeds, phrases, instruction_control, image_control)


def check_plot(path: Path) -> None:
    """Refuse now what would lose a long evaluation at its end. Raises ConfigurationError, DependencyMissing."""
    if not path.parent.is_dir():
        raise ConfigurationError(f"--plot {path}: there is no folder {path.parent}. Make it first.")
    if path.is_dir():
        raise ConfigurationError(f"--plot {path} is a folder. Name a .png file in it.")
    if not os.access(path.parent, os.W_OK):
        raise ConfigurationError(f"--plot {path}: nothing can be written to {path.parent}. Name a file in a folder of yours.")
    if find_spec("matplotlib") is None:
        raise DependencyMissing("--plot needs matplotlib. Install it with: pip install 'openvla-ros[simulation]'")


def run_here(request: Request, settings: Mapping[str, object], batch: int, progress: Callable[[int, int], None]) -> Outcome:
    """In this process, many episodes side by side. Raises OpenvlaRosError."""
    from openvla_ros.ros.profile import read_robot
    from openvla_ros.simulation.evaluate import evaluate

    limits = read_robot(ROBOT).limits
    act, notes, close = open_actor(request, settings)
    try:
        results = evaluate(act, limits, request.kinds, request.seeds, batch=batch, instruction_control=request.instruction_control,
                        image_control=request.image_control, phrases=templates(request.phrases), progress=progress)
    finally:
        close()
    return Outcome(results, notes)


def open_actor(request: Request, settings: Mapping[str, object]) -> tuple[Act | StateActor, tuple[str, ...], Callable[[], None]]:
    """(whoever acts, what must be known about it, what frees its memory). Raises OpenvlaRosError."""
    from openvla_ros.policy.catalogue import DEFAULT, SCRIPTED, read_profile
    from openvla_ros.simulation import evaluate

    if request.checkpoint == EXPERT:
        return evaluate.EXPERT, (EXPERT_NOTE,), lambda: None
    if request.checkpoint == RANDOM:
        return evaluate.random_actor(request.seeds.start), (), lambda: None
    if request.checkpoint == SCRIPTED:
        raise ConfigurationError("the scripted policy draws a circle and does no task. Name a checkpoint, or compare with 'random'.")
    try:
        from openvla_ros.policy.openvla.loading import load_openvla  # late: torch takes a second
    except ModuleNotFoundError as error:
        raise DependencyMissing(f"a checkpoint needs the Python package {error.name!r}, which is not installed. Install it with: "
                                "pip install 'openvla-ros[policy,simulation]'") from error
    policy = load_openvla(read_profile(DEFAULT, checkpoint=request.checkpoint, **settings), progress=False)
    return policy.act_batch, policy.notes, policy.close


def check_for_ros(request: Request, settings: Mapping[str, object]) -> None:
    """Refuse what cannot be had through ROS. Raises ConfigurationError; DependencyMissing without ROS."""
    if request.checkpoint == RANDOM:
        raise ConfigurationError("--ros runs policy_node, and that loads a checkpoint: 'random' is none. Chance needs no ROS: leave --ros "
                                 "out, or name a checkpoint.")
    if request.image_control:
        raise ConfigurationError("--ros shows policy_node what the camera publishes, so --image-control cannot be had with it. "
                                 "Leave one of them out.")
    if settings:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in settings)
        raise ConfigurationError(f"--ros runs policy_node with the profile of the default policy, so it takes no {options}. "
                                 "Write what you need into a checkpoint folder of your own, or leave --ros out.")
    lacking = [name for name in ("rclpy", "openvla_msgs") if find_spec(name) is None]
    if lacking:
        raise DependencyMissing(f"--ros needs {' and '.join(lacking)}, which cannot be imported here. Run make setup, source a ROS "
                                "workspace, or leave --ros out.")


def run_through_ros(request: Request, threads: int, real_time_factor: float, progress: Callable[[int, int], None]) -> Outcome:
    """Through the nodes, as processes. Raises OpenvlaRosError."""
    from openvla_ros.ros.simulation_trial import run_trials

    trials = run_trials(request.checkpoint, request.kinds, request.seeds, instruction_control=request.instruction_control,
                        phrases=templates(request.phrases), real_time_factor=real_time_factor, threads=threads or 1, progress=progress)
    return Outcome(trials.results, (EXPERT_NOTE,) if request.checkpoint == EXPERT else (), trials.timing.to_mapping())


def templates(phrases: str) -> Mapping[str, Sequence[str]] | None:
    """The ways to ask, per kind of task; None: the canonical one."""
    from openvla_ros.simulation import task

    return {CANONICAL: None, TRAINING: task.PHRASES, HELD_OUT: task.HELD_OUT_PHRASES}[phrases]


@contextmanager
def progress_bar(total: int, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, as a function (episodes done, episodes in all)."""
    columns = (TextColumn("episodes"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    console = Console(stderr=True, quiet=quiet)
    with Progress(*columns, console=console, transient=console.is_terminal) as bar:
        task = bar.add_task("episodes", total=total)
        yield lambda done, all_of_them: bar.update(task, completed=done, total=all_of_them)


def to_report(request: Request, outcome: Outcome, seconds: float) -> dict[str, Any]:
    """The outcome for JSON."""
    return {
        "checkpoint": request.checkpoint, "notes": list(outcome.notes), "through": "process" if outcome.command_path is None else "ros",
        "tasks": {kind: result.to_mapping() for kind, result in outcome.results.items()},
        "first_seed": request.seeds.start, "episodes": len(request.seeds), "phrases": request.phrases,
        "instruction_control": request.instruction_control or None, "image_control": request.image_control or None,
        "command_path": outcome.command_path, "seconds": round(seconds, 1), "versions": versions(),
    }


def versions() -> dict[str, str]:
    """What is installed of PACKAGES, and Python."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def title(request: Request) -> str:
    """One line that says what was evaluated."""
    controls = [text for text in (request.phrases != CANONICAL and f"{request.phrases} phrases", request.instruction_control,
                                  request.image_control and f"{request.image_control} pictures") if text]
    return f"{request.checkpoint}, layouts {request.seeds.start} to {request.seeds.stop - 1}" + "".join(f", {text}" for text in controls)


def show(request: Request, outcome: Outcome, report: Mapping[str, Any]) -> None:
    """The outcome in a terminal."""
    console = Console()
    table = Table(title=Text(title(request)), title_justify="left")  # a Text: brackets in a path are no markup
    table.add_column("task", no_wrap=True)
    for heading in ("done", "rate (95 %)", *(("told done",) if request.instruction_control else ()), "wrong", "steps", "stuck", "faults"):
        table.add_column(heading, justify="right", no_wrap=True)
    for kind, result in outcome.results.items():
        counted = report["tasks"][kind]
        low, high = counted["interval_95"]
        told = (f"{result.told_successes}/{result.count}",) if request.instruction_control else ()
        steps = "none" if result.median_steps is None else f"{result.median_steps:g}"
        table.add_row(kind, f"{result.successes}/{result.count}", f"{result.rate:.0%} ({low:.0%}..{high:.0%})", *told,
                      str(result.wrong), steps, str(counted["stuck"]), str(counted["faults"]))
    console.print(table)
    for note in outcome.notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    for kind in outcome.results:
        failed = report["tasks"][kind]["failed_seeds"]
        if failed and not (request.instruction_control or request.image_control):
            listed = ", ".join(map(str, failed[:12])) + (" ..." if len(failed) > 12 else "")
            console.print(f"{kind}: not done in the layouts {listed}", highlight=False)
    for name, value in (outcome.command_path or {}).items():
        spoken = ", ".join(f"{part} {number}" for part, number in value.items()) if isinstance(value, Mapping) else value
        console.print(f"command path: {name}: {spoken or 'none'}", markup=False, highlight=False)
    console.print(f"{report['seconds']:g} s through {'ROS' if report['through'] == 'ros' else 'this process'}; "
                  + ", ".join(f"{name} {number}" for name, number in report["versions"].items()), highlight=False, style="dim")
