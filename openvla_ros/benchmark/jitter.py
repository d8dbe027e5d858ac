"""How late command_node ticks while its computer has other things to do, from the stamps of its commands."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from openvla_ros.benchmark.needs import need_ros
from openvla_ros.benchmark.overhead import INSTRUCTION
from openvla_ros.benchmark.spread import Spread, spread
from openvla_ros.benchmark.untrained import load_checkpoint
from openvla_ros.contract import Action, ActionChunk, ChunkIdentity
from openvla_ros.errors import ConfigurationError, OpenvlaRosError

if TYPE_CHECKING:
    from openvla_ros.benchmark.lab import Lab
    from openvla_ros.ros.processes import Process

GOALS_MS = {"idle": None, "policy": 3.0, "saturated": 10.0}
"""What the computer does beside command_node -> the goal for p99 of the lateness.

policy: policy_node with its default settings, which are a core left free and niceness 10, never without a picture to work on.
saturated: on every core a process that never waits, at the priority of command_node.
"""

ROBOT = "wx250s_replay"
"""No hardware behind it; command_node sends a twist at every tick while somebody drives."""

CHUNK_EVERY_S, STEPS, STEP_S = 0.5, 10, 0.2
"""The hand sends chunks that last four times longer than it takes to send the next, so that it may be late itself."""

MAX_AGE_S = 5.0
"""max_observation_age_s of the measured node: a starved hand must not stop the arm, for then nothing could be measured."""

POLICY_PART = "/load/policy_node: policy"
"""Where the policy under load says how it is."""

SETTLE_S = 1.0
"""Not counted after a load has begun."""


@dataclass(frozen=True)
class Jitter:
    """One load. A tick is late by as much as the time since the tick before exceeds the period; early ones are not negative.

    That is what command_node itself keeps as tick_late in its diagnostics. The stamp of a command is when its tick began.
    """

    load: str
    scheduling: str  # of the thread that ticks, as command_node says
    rate_hz: float
    cores: int
    ticks: int
    late_ms: Spread
    goal_ms: float | None  # for p99 of late_ms
    policy_threads: int | None  # of torch, and niceness, as policy_node says; None without one
    policy_nice: str | None
    inferences: int | None  # in the same time


def measure_jitter(loads: Sequence[str] = tuple(GOALS_MS), *, seconds: float = 8.0, rate_hz: float = 30.0, realtime_priority: int = 10,
                   report: Callable[[str], None] = lambda text: None) -> tuple[Jitter, ...]:
    """Run command_node under each load for `seconds`, one after the other. Starting takes about 4 s, and 8 s for a policy.

    realtime_priority: as command_node's parameter; 0 measures it without SCHED_FIFO. Raises DependencyMissing without ROS, or without torch
    where a policy is asked for; OpenvlaRosError when a process does not do its part.
    """
    if unknown := [load for load in loads if load not in GOALS_MS]:
        raise ConfigurationError(f"loads {unknown} are unknown, expected some of {', '.join(GOALS_MS)}.")
    need_ros("the jitter of command_node")
    from openvla_ros.benchmark.lab import Lab

    with tempfile.TemporaryDirectory(prefix="openvla_ros_bench_") as name, Lab(Path(name)) as lab:
        checkpoint = load_checkpoint(Path(name) / "load") if "policy" in loads else ""
        report("starting command_node")
        lab.start("command_node", "openvla_ros.ros.command_node:main", {
            "robot": ROBOT, "rate_hz": float(rate_hz), "max_observation_age_s": MAX_AGE_S, "realtime_priority": realtime_priority})
        with Hand(lab) as hand:
            hand.take_the_arm()
            return tuple(_measure(lab, hand, load, checkpoint, seconds, rate_hz, report) for load in loads)


def _measure(lab: Lab, hand: Hand, load: str, checkpoint: str, seconds: float, rate_hz: float, report: Callable[[str], None]) -> Jitter:
    witness = lab.witness
    report(f"{load}: making the load")
    with ExitStack() as ending:
        for process in make_load(lab, load, checkpoint):
            ending.callback(lab.stop, process)
        lab.rest(SETTLE_S)
        report(f"{load}: ticks of command_node, {seconds:g} s")
        said = dict(witness.health[POLICY_PART]) if load == "policy" else {}
        begin_ns = witness.now_ns()
        lab.rest(seconds)
        end_ns = witness.now_ns()
        hand.look()
        lab.wait(lambda: witness.ticks_ns[-1] > end_ns, "the last tick")
        scheduling = witness.health["/command_node: driver"]["scheduling"]
        done = int(witness.health[POLICY_PART]["taken"]) if load == "policy" else 0
    stamps_ns = [stamp for stamp in witness.ticks_ns if begin_ns <= stamp < end_ns]
    inferences = done - int(said["taken"]) if said else None
    return Jitter(load, scheduling, rate_hz, len(os.sched_getaffinity(0)), len(stamps_ns), spread(lateness_ms(stamps_ns, rate_hz)),
                  GOALS_MS[load], int(said["threads"]) if said else None, said.get("nice"), inferences)


def lateness_ms(stamps_ns: Sequence[int], rate_hz: float) -> list[float]:
    """By how much each interval exceeds the period, 0 for those that do not."""
    return [max(0.0, (after - before) / 1e6 - 1e3 / rate_hz) for before, after in pairwise(stamps_ns)]


def make_load(lab: Lab, load: str, checkpoint: str) -> list[Process]:
    """Start it, and wait until it runs. The policy lives in a namespace of its own: its chunks move nothing."""
    if load == "saturated":
        return [lab.start(f"burner_{core}", "openvla_ros.benchmark.burner:main") for core in os.sched_getaffinity(0)]
    if load == "policy":
        policy = lab.start_policy(checkpoint, INSTRUCTION, "/load", max_observation_age_s=60.0)
        camera = lab.start("bench_camera", "openvla_ros.benchmark.camera:main", {}, "/load")
        lab.wait(lambda: int(lab.witness.health[POLICY_PART].get("taken", 0)) > 1, "the first inference")
        return [camera, policy]
    return []


class Hand:
    """A context: sends chunks to and fro, as a policy would, so that command_node moves at every tick."""

    def __init__(self, lab: Lab) -> None:
        from openvla_ros.ros.profile import read_robot

        self._lab, self._publisher, self._frame = lab, lab.hand(), read_robot(ROBOT).base_frame
        self._sequence, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._run, name="hand", daemon=True)

    def __enter__(self) -> Hand:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        from openvla_ros.ros.convert import to_chunk_message

        due_s = monotonic()
        while not self._ended.wait(max(0.0, due_s - monotonic())):
            self._sequence += 1
            step = Action.from_vector([0.01 if self._sequence % 2 else -0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
            chunk = ActionChunk((step,) * STEPS, STEP_S, self._lab.witness.now_ns())
            self._publisher.publish(to_chunk_message(chunk, ChunkIdentity(1, 1, self._sequence), self._frame))
            due_s += CHUNK_EVERY_S

    def take_the_arm(self) -> None:
        """Choose the driver POLICY, as soon as command_node has found us, and wait for the first commands."""
        from openvla_msgs.srv import SetDriver

        witness, answers = self._lab.witness, []

        def accepted() -> bool:
            answers.append(self._lab.ask(witness.drivers, SetDriver.Request(driver=SetDriver.Request.POLICY), "set_driver"))
            return bool(answers[-1].success)

        self._lab.wait(accepted, "command_node to take chunks")
        self._lab.wait(lambda: len(witness.ticks_ns) > 1 and witness.driver == "POLICY", "the first commands")

    def look(self) -> None:
        """Raises OpenvlaRosError when the arm was taken away: what was measured then is not the ticks."""
        if self._lab.witness.driver != "POLICY":
            raise OpenvlaRosError(f"the driver fell to {self._lab.witness.driver} while ticks were measured: this process was not "
                                  f"scheduled for {MAX_AGE_S:g} s. Close other programs.")
