"""The tasks of the tabletop, the words that ask for them, and who says whether they were done.

Comes in: an instruction, and the state of the scene once per step; goes out: a Task, and a verdict. Pure: numpy only, so the same
judge looks at an episode in this process and at one through ROS.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from openvla_ros.contract import FloatArray
from openvla_ros.errors import ConfigurationError, StateError

COLOURS = ("red", "green", "blue", "yellow")
KINDS = ("reach", "pick", "place")

BLOCK_EDGE_M = 0.032
"""Edge of the cubes: the stock fingers leave between 8 and 52 mm."""

PLATE_RADIUS_M, PLATE_HEIGHT_M = 0.06, 0.004

HOVER_M = 0.06
"""`reach` is for the point so far above the centre of the block."""

REACHED_XY_M, REACHED_Z_M, REACHED_STEPS = 0.025, 0.030, 3
"""The tool is so near to that point, for so many steps in a row."""

PICKED_M = 0.08
"""Height of the centre of a block that was picked up."""

PLACED_XY_M = 0.05
"""A block that was put on the plate is so near to its centre."""

PLACED_Z_M = PLATE_HEIGHT_M + 0.85 * BLOCK_EDGE_M
"""The centre of a block that lies on the plate is lower, even when it stands on an edge; of one on top of another it is higher."""

OPENED = 0.8
"""From this opening on the gripper counts as open: a gripped block leaves it at 0.55."""

LIFTED_M = 0.04
"""The centre of another block that was lifted by mistake is higher. Tipped on an edge it would be at 0.023."""

STEP_LIMITS: Mapping[str, int] = MappingProxyType({"reach": 30, "pick": 45, "place": 70})
"""How many steps of 0.2 s an episode may take."""

STUCK_STEPS, STUCK_M, STUCK_OPENING = 10, 0.004, 0.05
"""The arm is stuck when in so many steps in a row neither the tool nor the fingers left where they were by more than this."""

_CANONICAL: Mapping[str, str] = MappingProxyType({
    "reach": "move to the {colour} block",
    "pick": "pick up the {colour} block",
    "place": "put the {colour} block on the plate",
})

PHRASES: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "reach": (_CANONICAL["reach"], "go to the {colour} block", "reach for the {colour} block", "move the gripper to the {colour} cube",
              "touch the {colour} block", "move above the {colour} cube"),
    "pick": (_CANONICAL["pick"], "pick the {colour} block", "grab the {colour} block", "lift the {colour} cube",
             "take the {colour} block", "pick up the {colour} cube"),
    "place": (_CANONICAL["place"], "place the {colour} block on the plate", "move the {colour} block to the plate",
              "put the {colour} cube on the plate", "put the {colour} block onto the plate", "set the {colour} cube on the plate"),
})
"""Ways to ask for each kind of task, the canonical one first. The default policy was trained on these."""

HELD_OUT_PHRASES: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "reach": ("reach the {colour} cube", "go above the {colour} block"),
    "pick": ("grab the {colour} cube", "lift up the {colour} block"),
    "place": ("place the {colour} cube onto the plate", "move the {colour} cube on the plate"),
})
"""Ways to ask that it never saw in training, of words that it knows."""


@dataclass(frozen=True)
class Task:
    """What to do with the block of which colour. Raises ConfigurationError for a kind or colour that does not exist."""

    kind: str  # of KINDS
    colour: str  # of COLOURS

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.colour not in COLOURS:
            raise ConfigurationError(f"task is {self.kind!r} with {self.colour!r}, expected one of {', '.join(KINDS)} "
                                     f"with one of {', '.join(COLOURS)}.")

    @property
    def instruction(self) -> str:
        """The canonical phrase."""
        return _CANONICAL[self.kind].format(colour=self.colour)

    @property
    def step_limit(self) -> int:
        """Steps until the episode counts as failed."""
        return STEP_LIMITS[self.kind]


_TASKS: Mapping[str, Task] = MappingProxyType({
    template.format(colour=colour): Task(kind, colour)
    for phrases in (PHRASES, HELD_OUT_PHRASES) for kind in KINDS for template in phrases[kind] for colour in COLOURS})


def parse(instruction: str) -> Task | None:
    """The task that an instruction asks for; None when it is none of the known phrases. Case, full stop and spacing do not matter."""
    return _TASKS.get(re.sub(r"\s+", " ", instruction).strip().rstrip(".! ").lower())


@dataclass(frozen=True, eq=False)
class SceneState:
    """Where everything is, in the frame of the arm's base. Raises StateError for another shape, NaN and infinity."""

    tool_m: FloatArray  # [3] origin of ee_gripper_link, measured
    opening: float  # of the gripper, measured: 0 closed .. 1 open
    blocks: Mapping[str, FloatArray]  # colour -> [3] centre of each block that is there
    plate_m: FloatArray  # [3] centre of the plate's top
    held: str  # colour of the block that both fingers touch; empty when there is none

    def __post_init__(self) -> None:
        for name, value in {"tool_m": self.tool_m, "plate_m": self.plate_m, **self.blocks}.items():
            if np.shape(value) != (3,) or not np.isfinite(value).all():
                raise StateError(f"position {name!r} of the scene is {np.asarray(value).tolist()}, expected three finite numbers.")
        if not math.isfinite(self.opening):
            raise StateError(f"opening of the gripper is {self.opening}, expected a finite number, 0 closed .. 1 open.")
        if self.held and self.held not in self.blocks:
            raise StateError(f"the gripper holds {self.held!r}, but the scene has only {', '.join(self.blocks) or 'no blocks'}.")


class Judge:
    """Watches one episode of a task, one `update` per step. What it said once stays."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.steps = 0
        """How many states it saw."""
        self.success_step: int | None = None
        """At which of them, from 1, the task was done; None as long as it is not."""
        self.wrong = ""
        """Colour of a block that was lifted, or reached, instead of the named one before the task was done."""
        self.stuck = False
        """The arm stood still for long before the task was done."""
        self._near: dict[str, int] = {}
        self._anchor: tuple[FloatArray, float] | None = None
        self._still = 0

    @property
    def success(self) -> bool:
        """The task was done."""
        return self.success_step is not None

    @property
    def finished(self) -> bool:
        """The task was done, or the time for it is over."""
        return self.success or self.steps >= self.task.step_limit

    def update(self, state: SceneState) -> None:
        """The state after the next step. Raises StateError when the named block is not there."""
        if self.task.colour not in state.blocks:
            raise StateError(f"the task is about the {self.task.colour} block, the scene has {', '.join(state.blocks) or 'no blocks'}.")
        self.steps += 1
        if self.success:
            return
        self._watch(state)
        done = {colour for colour in state.blocks if self._done(state, colour)}
        if self.task.colour in done:
            self.success_step = self.steps
        elif not self.wrong:
            self.wrong = next((colour for colour in state.blocks if colour != self.task.colour
                               and (colour in done if self.task.kind == "reach" else state.blocks[colour][2] > LIFTED_M)), "")

    def _done(self, state: SceneState, colour: str) -> bool:
        """Whether the task would be done if it were about this colour. Counts for `reach`: once per state."""
        block_m = state.blocks[colour]
        if self.task.kind == "pick":
            return bool(block_m[2] > PICKED_M and state.held == colour)
        if self.task.kind == "place":
            return is_placed(state, colour) and state.held != colour and state.opening >= OPENED
        apart_m = state.tool_m - block_m - (0.0, 0.0, HOVER_M)
        near = np.hypot(apart_m[0], apart_m[1]) <= REACHED_XY_M and abs(apart_m[2]) <= REACHED_Z_M
        self._near[colour] = self._near.get(colour, 0) + 1 if near else 0
        return self._near[colour] >= REACHED_STEPS

    def _watch(self, state: SceneState) -> None:
        if self._anchor is not None and np.linalg.norm(state.tool_m - self._anchor[0]) <= STUCK_M and (
                abs(state.opening - self._anchor[1]) <= STUCK_OPENING):
            self._still += 1
        else:
            self._anchor, self._still = (np.array(state.tool_m), state.opening), 0
        self.stuck = self.stuck or self._still >= STUCK_STEPS


def is_placed(state: SceneState, colour: str) -> bool:
    """The block lies on the plate, whatever the gripper does."""
    block_m = state.blocks[colour]
    return bool(np.hypot(*(block_m - state.plate_m)[:2]) <= PLACED_XY_M and block_m[2] < PLACED_Z_M)
