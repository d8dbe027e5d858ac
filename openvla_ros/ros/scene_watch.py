"""What a run sees of the simulated scene: where the blocks are, and whether the instruction in force was carried out.

Comes in: markers, joint states and reports of a run with simulation_node, from any thread; goes out: words for people, and a record
of each task. The verdict is that of `simulation.task.Judge`, the same that `openvla-ros sim-eval` asks. No policy sees any of it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from openvla_msgs.msg import CommandReport
from sensor_msgs.msg import JointState
from visualization_msgs.msg import MarkerArray

from openvla_ros.contract import STEP_S
from openvla_ros.errors import StateError
from openvla_ros.robot import GripperProfile
from openvla_ros.ros.convert import SECOND_NS, to_ns
from openvla_ros.ros.scene_markers import from_markers
from openvla_ros.simulation.task import LIFTED_M, STEP_LIMITS, Judge, SceneState, is_placed, parse

UNKNOWN_LIMIT = max(STEP_LIMITS.values())
"""Steps that an instruction gets which is none of the known tasks."""


@dataclass(frozen=True)
class Attempt:
    """One instruction and what came of it."""

    instruction: str
    outcome: str  # "done", "not done", "no verdict" (none of the known tasks, or its block is not there), "broken off"
    steps: int  # of 0.2 s, until it was done or ended
    wrong: str  # colour of another block that was lifted, or reached, before; empty when none was

    def plain(self) -> dict[str, object]:
        """For JSON."""
        return vars(self)


class SceneWatch:
    """Follows one instruction after the other. Time is the simulation's."""

    def __init__(self, gripper: GripperProfile) -> None:
        self._lock = threading.Lock()
        self._gripper = gripper
        self._opening: float | None = None
        self._state: SceneState | None = None
        self._instruction = ""
        self._judge: Judge | None = None  # None where nothing can be judged
        self._due_ns: int | None = None  # when the next step ends; None before the first one was started
        self._steps = 0
        self._driven = self._closed = False
        self.attempts: list[Attempt] = []
        """What has ended."""

    def on_joints(self, message: JointState) -> None:
        """Where the fingers are."""
        if self._gripper.joint in message.name:
            with self._lock:
                self._opening = self._gripper.opening(message.position[list(message.name).index(self._gripper.joint)])

    def on_instruction(self, instruction: str) -> None:
        """The instruction in force, as the policy says it; the same again is no news. Empty: none."""
        with self._lock:
            if instruction != self._instruction and not self._closed:
                self._end_attempt()
                task = parse(instruction)
                self._instruction, self._judge = instruction, Judge(task) if task else None
                self._due_ns, self._steps = None, 0

    def on_report(self, message: CommandReport) -> None:
        """Steps count from the first one that was started, and only while the policy drives."""
        with self._lock:
            self._driven = message.driver == CommandReport.POLICY
            if message.step_started and self._driven and self._instruction and self._due_ns is None:
                self._due_ns = to_ns(message.header.stamp) + round(STEP_S * SECOND_NS)

    def on_objects(self, message: MarkerArray) -> None:
        """The scene of one moment."""
        with self._lock:
            try:
                self._state = state = from_markers(message, self._opening or 0.0)
            except StateError:
                return  # the first marker of a scene that is being laid out anew
            now_ns = to_ns(message.markers[0].header.stamp)
            if self._closed or self._due_ns is None or now_ns < self._due_ns:
                return
            self._due_ns = now_ns + round(STEP_S * SECOND_NS)
            if not self._driven:
                return
            self._steps += 1
            if self._judge is not None and self._judge.task.colour in state.blocks:
                self._judge.update(state)

    def close(self) -> None:
        """The run ends: what is not done now was broken off, and what comes later is not looked at."""
        with self._lock:
            self._end_attempt()
            self._closed = True

    @property
    def seen(self) -> bool:
        """The scene was seen."""
        return self._state is not None

    @property
    def instruction(self) -> str:
        """In force, as the policy said it last."""
        return self._instruction

    @property
    def over(self) -> bool:
        """The instruction in force was carried out, or its time has passed; true when there is none."""
        with self._lock:
            return not self._instruction or self._success or self._steps >= self._limit

    @property
    def opening(self) -> float | None:
        """Of the gripper, measured: 0 closed .. 1 open; None before it was heard of."""
        return self._opening

    def verdict(self) -> str:
        """How the instruction in force stands, for people."""
        with self._lock:
            if not self._instruction:
                return ""
            if self._judge is None:
                return "none of the known tasks: nobody judges it"
            if self._task_lacks():
                return f"there is no {self._judge.task.colour} block here"
            if self._judge.success:
                return f"done after {self._judge.success_step} steps"
            wrong = f", touched the {self._judge.wrong} block" if self._judge.wrong else ""
            return (f"step {self._steps} of {self._limit}" if self._steps < self._limit else f"not done after {self._limit} steps") + wrong

    def objects(self) -> str:
        """Where each block is, for people; empty before the scene was seen."""
        with self._lock:
            state = self._state
            return "" if state is None else "; ".join(f"{colour} block: {place(state, colour)}" for colour in state.blocks)

    @property
    def _success(self) -> bool:
        return self._judge is not None and self._judge.success

    @property
    def _limit(self) -> int:
        return self._judge.task.step_limit if self._judge is not None else UNKNOWN_LIMIT

    def _task_lacks(self) -> bool:
        return self._judge is not None and self._state is not None and self._judge.task.colour not in self._state.blocks

    def _end_attempt(self) -> None:
        if self._instruction and self._due_ns is not None and not self._closed:
            judge, steps = self._judge, self._steps
            if judge is None or self._task_lacks():
                outcome = "no verdict"
            elif judge.success_step is not None:
                outcome, steps = "done", judge.success_step
            else:
                outcome, steps = "not done" if steps >= self._limit else "broken off", min(steps, self._limit)
            self.attempts.append(Attempt(self._instruction, outcome, steps, judge.wrong if judge else ""))


def place(state: SceneState, colour: str) -> str:
    """Where a block is, in a few words."""
    height_m = state.blocks[colour][2]
    if state.held == colour:
        return f"held, {100 * height_m:.0f} cm high"
    if is_placed(state, colour):
        return "on the plate"
    return f"{100 * height_m:.0f} cm high" if height_m > LIFTED_M else "on the table"
