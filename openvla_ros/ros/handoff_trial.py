"""A scripted human in the loop of the simulation: takes over in the middle of a pick, leads the arm away, hands back; the policy finishes.

Comes in: a stage that is ready; goes out: what was seen and said, for a test to judge and for a plot. Times are simulated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from openvla_msgs.msg import CommandReport
from openvla_msgs.srv import SetDriver
from sensor_msgs.msg import Image

from openvla_ros.contract import STEP_S, ByteArray, FloatArray
from openvla_ros.errors import OpenvlaRosError
from openvla_ros.ros.convert import SECOND_NS, to_ns
from openvla_ros.ros.simulation_stage import EVERYTHING, Stage
from openvla_ros.simulation.evaluate import task_of
from openvla_ros.simulation.tabletop import Tabletop
from openvla_ros.simulation.task import Judge, Task

NEAR_M = 0.06
"""The human takes over when the tool is so near to the block that is to be picked: just before it would be gripped."""

PUSH_M_S, PUSH_S = (-0.02, -0.10, 0.10), 1.0
"""How the human leads the arm, aside and up, and for how long. Not further out: a stretched arm may hardly move."""

MESSAGE_S = 0.05
"""Distance of two messages of the hand; one holds for 0.2 s."""

REST_S = 0.6
"""The hand is off the teleop for so long before it hands back, so that the proposal of the policy can be seen meanwhile."""

LIMIT_S = 30.0
"""An attempt of the policy that takes longer has failed."""

SWITCHES = ("start", "take-over", "hand-back", "end")


@dataclass(frozen=True)
class HandoffRun:
    """What happened. Positions are of the tool, in the frame of the arm's base; times begin at the first joint states."""

    task: Task
    success: bool
    times_s: FloatArray  # [n] of the joint states
    tool_m: FloatArray  # [n, 3] by forward kinematics of the measured joints
    openings: FloatArray  # [n] of the gripper, 0 closed .. 1 open
    drivers: tuple[tuple[float, str], ...]  # (since when, who), in order
    switches_s: Mapping[str, float]  # of SWITCHES
    reports: tuple[CommandReport, ...]
    frames: Mapping[str, ByteArray]  # of SWITCHES: what the overview camera saw next, uint8 [H, W, 3]

    @property
    def disturbed(self) -> bool:
        """The arm fell to HOLD although nobody asked for it: a computer that stalls for a quarter of a second is enough."""
        first = next((number for number, (_, driver) in enumerate(self.drivers) if driver == "POLICY"), 0)
        return any(driver == "HOLD" for _, driver in self.drivers[first:])

    def driver_at(self, time_s: float) -> str:
        """Who drove."""
        return next((name for since_s, name in reversed(self.drivers) if since_s <= time_s), "HOLD")


def run_handoff(stage: Stage, seed: int) -> HandoffRun:
    """One pick with a human in its middle. Raises OpenvlaRosError when the policy does not even come near the block."""
    director, task = stage.director, task_of("pick", seed)
    frames: dict[str, ByteArray] = {}
    switches_ns: dict[str, int] = {}

    def note(name: str) -> None:
        """This moment, and the first picture after it. In between nobody looks, so that no picture is drawn in vain."""
        pictures: list[Image] = []
        switches_ns[name] = director.now_ns
        subscription = director.create_subscription(Image, "overview/image", pictures.append, EVERYTHING)
        stage.wait(lambda: bool(pictures) and to_ns(pictures[-1].header.stamp) >= switches_ns[name], "the overview camera")
        stage.let_go(subscription)
        frames[name] = from_image(pictures[-1])

    stage.reset(seed)
    director.instruct(task.instruction)
    director.forget()
    note("start")
    stage.drive_soon(SetDriver.Request.POLICY)
    _until(stage, lambda: distance_m(stage, task) < NEAR_M, "the tool near the block")
    stage.drive(SetDriver.Request.HUMAN)
    note("take-over")
    for _ in range(round(PUSH_S / MESSAGE_S)):
        director.push(PUSH_M_S)
        stage.pass_time(MESSAGE_S)
    director.push((0.0, 0.0, 0.0))
    stage.pass_time(REST_S)
    note("hand-back")
    stage.drive_soon(SetDriver.Request.POLICY)
    judge = Judge(task)
    until_ns = director.now_ns + round(LIMIT_S * SECOND_NS)
    while not judge.success and director.now_ns < until_ns:
        if director.driver == "HOLD":
            stage.drive_soon(SetDriver.Request.POLICY)
        stage.pass_time(STEP_S)
        judge.update(director.moments[-1].state)
    note("end")
    return _told(stage, task, judge.success, switches_ns, frames)


def distance_m(stage: Stage, task: Task) -> float:
    """From the tool to the centre of the block."""
    if not stage.director.moments:
        return float("inf")
    state = stage.director.moments[-1].state
    return float(np.linalg.norm(state.tool_m - state.blocks[task.colour]))


def from_image(message: Image) -> ByteArray:
    """Pixels of an rgb8 message, uint8 [H, W, 3]."""
    return np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3).copy()


def _until(stage: Stage, condition: Callable[[], bool], what: str) -> None:
    """Like Stage.wait while POLICY drives, with simulated time as the limit: the policy may never get there."""
    director = stage.director
    until_ns = director.now_ns + round(LIMIT_S * SECOND_NS)
    while not condition() and director.now_ns <= until_ns:
        stage.wait(lambda: condition() or director.now_ns > until_ns or director.driver == "HOLD", what)
        if director.driver == "HOLD":
            stage.drive_soon(SetDriver.Request.POLICY)
    if not condition():
        raise OpenvlaRosError(f"{what}: not within {LIMIT_S:g} s of simulated time. Is this policy one that can pick?")


def _told(stage: Stage, task: Task, success: bool, switches_ns: Mapping[str, int], frames: Mapping[str, ByteArray]) -> HandoffRun:
    states, reports = list(stage.director.states), tuple(stage.director.reports)
    world, begin_ns = Tabletop(), to_ns(states[0].header.stamp)
    low_m, high_m = world.finger_range_m
    drivers: list[tuple[float, str]] = []
    names = {CommandReport.HOLD: "HOLD", CommandReport.POLICY: "POLICY", CommandReport.HUMAN: "HUMAN", CommandReport.STOPPED: "STOPPED"}
    for report in reports:
        if not drivers or drivers[-1][1] != names[report.driver]:
            drivers.append(((to_ns(report.header.stamp) - begin_ns) / SECOND_NS, names[report.driver]))
    return HandoffRun(
        task, success, np.array([(to_ns(state.header.stamp) - begin_ns) / SECOND_NS for state in states]),
        np.array([world.forward(np.array(state.position[:6])).position_m for state in states]),
        np.clip((np.array([state.position[6] for state in states]) - low_m) / (high_m - low_m), 0.0, 1.0), tuple(drivers),
        {name: (stamp_ns - begin_ns) / SECOND_NS for name, stamp_ns in switches_ns.items()}, reports, dict(frames))
