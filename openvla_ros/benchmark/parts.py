"""How long the parts of the command side take: forward kinematics, one tick of the pilot. Single calls, one after the other.

A new row is a function that prepares one call, and a line in ITEMS.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

import numpy as np

from openvla_ros.contract import Action, ActionChunk, ChunkIdentity, FloatArray, Pose, ReceivedChunk, RobotState
from openvla_ros.errors import DependencyMissing
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
