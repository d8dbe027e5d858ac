"""`openvla-ros bench`: how long the parts of the package take on this machine, and how that compares with an earlier run.

The only place where speed is measured: no test asserts a time. A new row is a function that prepares one call, and a line in ITEMS.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from openvla_ros.contract import Action, ActionChunk, ChunkIdentity, FloatArray, Pose, ReceivedChunk, RobotState
from openvla_ros.errors import ConfigurationError, DependencyMissing
from openvla_ros.share import share_folder

TICK_US = 1e6 / 30.0
"""Period of command_node's default rate: what all of its work in one tick must stay far below."""

WIDOWX_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
WIDOWX_AT_WORK = np.array([-0.1, -0.3, 0.45, 0.1, 1.2, -0.2])  # over the table, as in BridgeData's episodes

Call = Callable[[], object]


@dataclass(frozen=True)
class Measured:
    """Durations of single calls of one item. skipped: why there are none; empty when it was measured."""

    name: str
    calls: int = 0
    median_us: float = float("nan")
    p99_us: float = float("nan")
    skipped: str = ""


def main(
    seconds: Annotated[float, typer.Option(min=0.01, max=600.0, help="Time to spend on each row [s].")] = 1.0,
    only: Annotated[str, typer.Option(help="Measure only rows whose name holds this text.")] = "",
    against: Annotated[Path | None, typer.Option(help="Output of an earlier `bench --json`, to be shown beside.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")] = False,
) -> None:
    """Measure how long the parts of the package take here: median and 99th percentile of single calls.

    Close other programs first: what they take shows in the 99th percentile. A row whose library is not installed is skipped.
    """
    rows = {name: prepare for name, prepare in ITEMS.items() if only in name}
    if not rows:
        raise ConfigurationError(f"--only {only!r} fits no row; there are: {'; '.join(ITEMS)}.")
    earlier = {} if against is None else read_earlier(against)
    with Progress(TextColumn("bench {task.description}"), BarColumn(), MofNCompleteColumn(), console=Console(stderr=True, quiet=as_json),
                  transient=True) as bar:
        task, measured = bar.add_task("", total=len(rows)), []
        for name, prepare in rows.items():
            bar.update(task, description=name)
            measured.append(measure(name, prepare, seconds))
            bar.advance(task)
    if as_json:
        print(json.dumps({"machine": machine(), "tick_us": TICK_US, "items": [as_plain(row, earlier) for row in measured]}))
    else:
        show(measured, earlier)


def measure(name: str, prepare: Callable[[], Call], seconds: float) -> Measured:
    """Call again and again, at least ten times and for a tenth of the time as a warm-up; each call is timed by itself."""
    try:
        call = prepare()
    except DependencyMissing as error:
        return Measured(name, skipped=str(error))
    time_calls(call, seconds / 10)
    durations_us = np.array(time_calls(call, seconds)) / 1e3
    return Measured(name, len(durations_us), float(np.median(durations_us)), float(np.percentile(durations_us, 99)))


def time_calls(call: Call, seconds: float) -> list[int]:
    """Durations [ns] of calls one after the other."""
    durations_ns: list[int] = []
    end_ns = perf_counter_ns() + round(seconds * 1e9)
    while (before_ns := perf_counter_ns()) < end_ns or len(durations_ns) < 10:
        call()
        durations_ns.append(perf_counter_ns() - before_ns)
    return durations_ns


# The rows: each function prepares everything and returns the call that is measured. What it imports, only it needs.


def forward_kinematics() -> Call:
    """One pose of the WidowX from its six joint positions."""
    arm, positions = widowx(), itertools.cycle(WIDOWX_AT_WORK + np.random.default_rng(0).uniform(-0.3, 0.3, (200, 6)))
    return lambda: arm.forward(next(positions))


def inverse_kinematics_tick() -> Call:
    """A target one tick ahead: what a position output asks for 30 times per second."""
    return inverse_kinematics(translation_m=0.05 / 6, rotation_rad=0.25 / 6)


def inverse_kinematics_step() -> Call:
    """A target one largest step ahead: what a trajectory output asks for."""
    return inverse_kinematics(translation_m=0.05, rotation_rad=0.25)


def inverse_kinematics_out_of_reach() -> Call:
    """A target a metre away: the search ends with a verdict, after the most iterations."""
    return inverse_kinematics(translation_m=1.0, rotation_rad=0.0)


def inverse_kinematics(translation_m: float, rotation_rad: float) -> Call:
    """Targets in random directions from poses over the table, each with the seed that it comes from."""
    from openvla_ros.action.pose import moved

    arm, random = widowx(), np.random.default_rng(1)

    def problem() -> tuple[Pose, FloatArray]:
        seed = WIDOWX_AT_WORK + random.uniform(-0.3, 0.3, 6)
        along, about = (vector / np.linalg.norm(vector) for vector in random.normal(size=(2, 3)))
        return moved(arm.forward(seed), along * translation_m, about * rotation_rad), seed

    problems = itertools.cycle([problem() for _ in range(200)])
    return lambda: arm.inverse(*next(problems))


def widowx() -> Any:
    """Kinematics of the arm whose URDF is shipped."""
    from openvla_ros.action.kinematics import Kinematics

    urdf = (share_folder() / "config" / "robots" / "wx250s.urdf").read_text(encoding="utf-8")
    return Kinematics(urdf, "wx250s/ee_gripper_link", WIDOWX_JOINTS)


def safety_chain() -> Call:
    """All rules on one step, every second one too long."""
    from openvla_ros.action.safety import Situation, judge
    from openvla_ros.ros.profile import read_robot

    situation = Situation(0.2, 0.6, read_robot("wx250s").limits)
    steps = itertools.cycle([Action.from_vector([size, 0.01, -0.01, 0.1, 0.0, size, 1.0]) for size in (0.01, 0.5)])
    return lambda: judge(next(steps), situation)


def pilot_tick() -> Call:
    """One tick of the pure core while the policy drives, with a new chunk at every sixth, as at 5 Hz. No arm is measured."""
    return _pilot("wx250s_replay", "servo_twist")


def pilot_tick_joints() -> Call:
    """The same with an arm that follows exactly: forward kinematics of the joint states, all rules, and inverse kinematics."""
    return _pilot("wx250s", "interbotix")


def _pilot(robot: str, output: str) -> Call:
    from openvla_ros.action.pilot import Inputs, Now, Pilot, Settings
    from openvla_ros.ros.profile import read_robot

    profile, settings = read_robot(robot).through(output), Settings()
    pilot, period_ns = Pilot(profile, settings, widowx() if profile.arm else None), round(1e9 / settings.rate_hz)
    numbers, start_ns = itertools.count(1), 1_700_000_000_000_000_000
    joints = WIDOWX_AT_WORK

    def measured(now_ns: int) -> RobotState | None:
        return RobotState(WIDOWX_JOINTS, joints, np.zeros(0), np.zeros(0), now_ns) if profile.arm else None

    def call() -> object:
        nonlocal joints
        number = next(numbers)
        now_ns, sign = start_ns + number * period_ns, 1.0 if number // 6 % 2 else -1.0  # to and fro, so it never arrives anywhere
        step = Action.from_vector([0.02 * sign, 0.01 * sign, -0.01 * sign, 0.05 * sign, 0.0, 0.1 * sign, 1.0])
        chunk = ReceivedChunk(ActionChunk((step,), 0.2, now_ns), ChunkIdentity(1, 1, number), profile.base_frame)
        decision = pilot.step(Now(now_ns, now_ns), measured(now_ns), Inputs(received=(chunk,) if number % 6 == 0 else ()))
        if decision.motion is not None and decision.motion.joints is not None:
            joints = decision.motion.joints
        return decision

    pilot.step(Now(start_ns, start_ns), measured(start_ns))
    pilot.resume(Now(start_ns, start_ns))
    return call


ITEMS: dict[str, Callable[[], Call]] = {
    "forward kinematics": forward_kinematics,
    "inverse kinematics, a tick ahead": inverse_kinematics_tick,
    "inverse kinematics, a step ahead": inverse_kinematics_step,
    "inverse kinematics, out of reach": inverse_kinematics_out_of_reach,
    "safety chain, one step": safety_chain,
    "pilot, one tick": pilot_tick,
    "pilot, one tick through the joints": pilot_tick_joints,
}
"""Row -> what prepares its call. A name is what `--against` finds an earlier number by."""


def machine() -> dict[str, Any]:
    """What the numbers belong to."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    return {"processor": processor, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2), "system": platform.platform(),
            "python": platform.python_version(), "numpy": np.__version__}


def read_earlier(path: Path) -> dict[str, float]:
    """Medians [us] by name out of an earlier `--json`. Raises ConfigurationError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {item["name"]: float(item["median_us"]) for item in content["items"] if item["median_us"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"--against {path} is not the output of openvla-ros bench --json: {error!r}. "
                                 "Write one with: openvla-ros bench --json > before.json") from error


def ratio(row: Measured, earlier: dict[str, float]) -> float | None:
    """How much longer it takes now, 1 for the same; None without an earlier number."""
    return row.median_us / earlier[row.name] if row.name in earlier and not row.skipped else None


def as_plain(row: Measured, earlier: dict[str, float]) -> dict[str, Any]:
    """One row for JSON, where a number that was not measured is null."""
    plain = {name: None if value != value else value for name, value in asdict(row).items()}
    return plain | {"earlier_median_us": earlier.get(row.name), "ratio": ratio(row, earlier)}


def show(measured: Sequence[Measured], earlier: dict[str, float]) -> None:
    """The rows in a terminal. Microseconds; of tick: p99 as a share of TICK_US; ratio: median now over before."""
    console, here = Console(), machine()
    table = Table(title=f"{here['processor']}, {here['cores']} cores, load {here['load']}, Python {here['python']}", title_justify="left")
    table.add_column("one call, µs", no_wrap=True)
    for heading in ("median", "p99", "of tick", *(("before", "ratio") if earlier else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in measured:
        if row.skipped:
            continue
        change = ratio(row, earlier)
        beside = () if not earlier else ("-", "-") if change is None else (number(earlier[row.name]), f"{change:.2f}")
        table.add_row(row.name, number(row.median_us), number(row.p99_us), f"{row.p99_us / TICK_US:.2%}", *beside)
    console.print(table)
    for row in measured:
        if row.skipped:
            console.print(f"{row.name} skipped: {row.skipped}", markup=False)


def number(microseconds: float) -> str:
    """Four digits or so."""
    return f"{microseconds:.1f}" if microseconds < 1000.0 else f"{microseconds:.0f}"
