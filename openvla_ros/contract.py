"""What passes between the rooms: observation in, chunk of actions out. Read this first.

Conventions, the same everywhere in the package:

- metres, radians, seconds; nanoseconds only in names that end in `_ns`; times are ROS-clock times unless said otherwise.
- An action is one end-effector step in the robot's base frame (x forward, y left, z up): a *displacement*, not a velocity.
- Rotation is fixed-axis roll, pitch, yaw about the base axes: R = Rz(yaw) Ry(pitch) Rx(roll), which is
  `scipy.spatial.transform.Rotation.from_euler("xyz", ...)` in lower case, multiplied from the left.
- Gripper: 0 closed .. 1 open (the convention of all OpenVLA training data).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from openvla_ros.errors import ActionError, ImageError, ObservationError, StateError

FloatArray = npt.NDArray[np.float64]
ByteArray = npt.NDArray[np.uint8]

ACTION_NAMES = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper")
"""Order of the seven numbers of an action vector: metres, radians, 0 closed .. 1 open."""

STEP_S = 0.2
"""Duration of one step [s]: BridgeData V2 was recorded, and OpenVLA is evaluated, at 5 Hz."""


@dataclass(frozen=True)
class Observation:
    """One camera frame with the instruction that holds for it.

    rgb: uint8 [H, W, 3], red first, not flipped. stamp_ns: when the camera saw it (header stamp, ROS clock).
    jpeg: the pixels come out of a JPEG file already, so an evaluation-style JPEG round trip must not be added.
    Raises ImageError or ObservationError.
    """

    rgb: ByteArray
    instruction: str
    stamp_ns: int
    jpeg: bool = False

    def __post_init__(self) -> None:
        rgb = self.rgb
        if not isinstance(rgb, np.ndarray) or rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
            came = f"{rgb.dtype} {list(rgb.shape)}" if isinstance(rgb, np.ndarray) else type(rgb).__name__
            raise ImageError(f"image is {came}, expected uint8 [height, width, 3] in red-green-blue order. "
                             "Convert it before it is made an observation.")
        if min(rgb.shape[:2]) < 1:
            raise ImageError(f"image has shape {list(rgb.shape)}: it holds no pixel. Check the camera driver.")
        if not self.instruction.strip():
            raise ObservationError("instruction is empty. Publish a text on the instruction topic; empty means stop.")


@dataclass(frozen=True)
class Action:
    """One end-effector step in the robot's base frame. Values are not judged here: `action.safety` does that."""

    translation_m: FloatArray  # [3] dx, dy, dz
    rotation_rad: FloatArray  # [3] fixed-axis droll, dpitch, dyaw
    gripper: float  # 0 closed .. 1 open, absolute

    def __post_init__(self) -> None:
        for name in ("translation_m", "rotation_rad"):
            value = np.array(getattr(self, name), dtype=np.float64)  # a copy: the caller may reuse its buffer
            if value.shape != (3,):
                raise ActionError(f"action {name} has shape {list(value.shape)}, expected [3].")
            value.flags.writeable = False
            object.__setattr__(self, name, value)
        object.__setattr__(self, "gripper", float(self.gripper))

    @staticmethod
    def from_vector(vector: Sequence[float] | FloatArray) -> Action:
        """Seven numbers in the order of ACTION_NAMES. Raises ActionError for any other length."""
        values = np.asarray(vector, dtype=np.float64)
        if values.shape != (len(ACTION_NAMES),):
            raise ActionError(f"action has shape {list(values.shape)}, expected [7]: {', '.join(ACTION_NAMES)}. "
                              "Statistics of another embodiment (bimanual, navigation) cannot drive this arm.")
        return Action(values[:3], values[3:6], float(values[6]))

    def to_vector(self) -> FloatArray:
        """[7] float64 in the order of ACTION_NAMES."""
        return np.concatenate([self.translation_m, self.rotation_rad, [self.gripper]])


@dataclass(frozen=True, eq=False)
class Pose:
    """Where the end effector is: the frame `ee_link` seen from the robot's base frame. What moves one is in `action.pose`.

    A rotation is refused unless it is orthonormal and right-handed within 1e-6. Raises StateError, for NaN and infinity too.
    Two poses are never equal by `==`; ask `action.pose.distance`.
    """

    position_m: FloatArray  # [3] x, y, z
    rotation: FloatArray  # [3, 3]: its columns are the axes of the end effector, along the base axes

    def __post_init__(self) -> None:
        for name, shape in (("position_m", (3,)), ("rotation", (3, 3))):
            value = np.array(getattr(self, name), dtype=np.float64)  # a copy: the caller may reuse its buffer
            if value.shape != shape or not np.isfinite(value).all():
                raise StateError(f"pose {name} is {value.tolist()}, expected {list(shape)} finite numbers.")
            value.flags.writeable = False
            object.__setattr__(self, name, value)
        skew = np.abs(self.rotation.T @ self.rotation - np.eye(3)).max()
        if not skew <= 1e-6 or np.linalg.det(self.rotation) < 0.0:
            raise StateError(f"pose rotation {self.rotation.tolist()} is no rotation: expected orthonormal, right-handed axes.")


@dataclass(frozen=True, eq=False)
class RobotState:
    """Joint states as they were heard, not judged yet: any names in any order. `action.state` finds an arm's joints in them.

    velocities and efforts are empty where the driver does not say them. Raises StateError when a length does not fit.
    """

    names: tuple[str, ...]
    positions: FloatArray  # rad, m for prismatic joints
    velocities: FloatArray
    efforts: FloatArray  # in the driver's unit; Interbotix: mA
    stamp_ns: int  # when they were measured, ROS clock

    def __post_init__(self) -> None:
        for name, optional in (("positions", False), ("velocities", True), ("efforts", True)):
            value = np.array(getattr(self, name), dtype=np.float64)
            if value.shape != (len(self.names),) and not (optional and value.size == 0):
                raise StateError(f"joint states have {len(self.names)} names and {value.size} {name}. Expected one for each.")
            value.flags.writeable = False
            object.__setattr__(self, name, value)


@dataclass(frozen=True, order=True)
class ChunkIdentity:
    """Which chunk this is. A chunk is newer than another of the same session when (generation, sequence) is larger."""

    session: int  # random, drawn once per start of the policy process
    generation: int  # raised whenever earlier results become void: new instruction, driver change, activation
    sequence: int  # counts the chunks of a session from 1


@dataclass(frozen=True)
class ActionChunk:
    """What a policy answers to one observation: steps to be played one after the other, `step_s` each.

    No steps means: stop now. A non-empty `fault` says why and always comes with no steps.
    stage_ms: milliseconds per stage in the order they ran, such as preprocess, vision, prefill, decode.
    """

    steps: tuple[Action, ...]
    step_s: float
    observation_stamp_ns: int
    instruction: str = ""
    policy_name: str = ""
    token_ids: tuple[int, ...] = ()
    fault: str = ""
    stage_ms: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        if self.fault and self.steps:
            raise ActionError(f"chunk carries the fault {self.fault!r} and {len(self.steps)} steps; "
                              "a fault never moves the arm.")
        if not 0.01 <= self.step_s <= 10.0:  # also refuses NaN
            raise ActionError(f"chunk has step_s {self.step_s}, expected 0.01 to 10 seconds.")


@dataclass(frozen=True)
class Evidence:
    """How a policy came to a chunk: enough to say, when two answers differ, where they parted."""

    input_ids: tuple[int, ...]  # the prompt as the model read it
    pixels: str  # digest of the numbers that the towers saw
    margins: tuple[float, ...]  # at each token: its logit minus that of the best other one


@dataclass(frozen=True)
class ReceivedChunk:
    """A chunk as it came over the wire, not judged yet. frame_id: frame of its deltas."""

    chunk: ActionChunk
    identity: ChunkIdentity
    frame_id: str


@dataclass(frozen=True)
class Check:
    """One line of a self-test or of `doctor`: what was looked at, whether it is good, what was seen or what to do."""

    name: str
    passed: bool
    detail: str
    note: bool = False  # passed, but not good either: something optional is absent, or worth knowing. Only `doctor` has such lines.


class Policy(Protocol):
    """Anything that turns an observation into actions: local, remote, scripted or recorded.

    One thread calls a policy at a time. `act` raises OpenvlaRosError for an observation that it cannot take, and
    returns a chunk with `fault` set when the model ran but gave no action.
    """

    @property
    def name(self) -> str:
        """Short name for reports, such as the checkpoint folder."""

    @property
    def step_s(self) -> float:
        """Duration of one step of its chunks [s]."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user must know about this mode, for diagnostics: quantised, untrained, not exact. Often empty."""

    def act(self, observation: Observation) -> ActionChunk:
        """The one verb."""

    def self_test(self) -> tuple[Check, ...]:
        """Prove at start-up that picture and instruction reach the output. Takes a few inferences."""

    def close(self) -> None:
        """Free the memory (GPU memory too). The policy cannot be used afterwards."""
