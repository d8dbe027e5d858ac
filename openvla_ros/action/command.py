"""From steps to what an arm takes: a twist, a target pose, joint positions, an opening of the gripper."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

import numpy as np
from scipy.spatial.transform import Rotation

from openvla_ros.contract import Action, ChunkIdentity, FloatArray, Pose
from openvla_ros.robot import Limits

REST = 1e-6
"""Speeds below this [m/s, rad/s] are zero: what is left of a ramp after rounding of the tick."""


@dataclass(frozen=True)
class Twist:
    """Velocity of the end effector along and about the base axes."""

    linear_m_s: FloatArray  # [3]
    angular_rad_s: FloatArray  # [3]

    def __post_init__(self) -> None:
        self.linear_m_s.flags.writeable = self.angular_rad_s.flags.writeable = False

    @property
    def moving(self) -> bool:
        """False when every component is exactly zero."""
        return bool(self.linear_m_s.any() or self.angular_rad_s.any())


ZERO = Twist(np.zeros(3), np.zeros(3))


@dataclass(frozen=True)
class PlayedStep:
    """A step that is playing: as it was asked for and as it goes to the arm over its duration.

    A human's motion has steps too, for the record: of `contract.STEP_S` each, and with the identity NOBODY.
    """

    identity: ChunkIdentity
    observation_stamp_ns: int
    requested: Action
    sent: Action
    rules: tuple[str, ...]


NOBODY = ChunkIdentity(0, 0, 0)
"""The identity of a step that came out of no chunk."""


class Phase(Enum):
    """What a Motion is part of."""

    MOVING = "moving"  # a step plays, a human moves the arm, or it goes to its start pose
    RAMP = "ramp"  # a soft stop
    ZEROS = "zeros"  # at rest: between two steps, or in the half second before silence


@dataclass(frozen=True)
class Motion:
    """What the arm is sent for one tick. An output takes from it what its arm understands.

    twist: mean velocity over the tick, along and about the base axes. target, joints: where to be at the tick's end; None where the
    profile has no joint states, and joints also for outputs in end-effector space. At rest they stay where they were.
    ahead: only for the output `trajectory`: (seconds from now, joint positions) at this tick's end and on along the step that plays,
    to its end; the last one is where the arm comes to rest if nothing follows.
    """

    twist: Twist
    target: Pose | None = None
    joints: FloatArray | None = None  # [n] in the order of Arm.joints
    gripper: float | None = None  # wanted opening now, 0 closed .. 1 open; None: keep what it has
    phase: Phase = Phase.ZEROS
    step: PlayedStep | None = None  # the policy's step that plays now
    ahead: tuple[tuple[float, FloatArray], ...] = ()

    @property
    def tells(self) -> bool:
        """Target and joints are news: the arm is moved, or on its way to rest. False: they only say again where it rests."""
        return self.twist.moving or self.phase is Phase.RAMP


def to_twist(shares: Iterable[tuple[Action, float]], period_s: float) -> Twist:
    """The constant velocity that covers, within one tick, the given shares (0..1) of steps.

    In the middle of a step this is delta / step_s, divided once. In a tick that a step begins or ends in it is the mean over
    the tick, so that the integral over all ticks is the delta. The rotation goes about the one axis, at the one speed, that makes
    Rz Ry Rx at the step's end; for steps within 0.25 rad it is less than 0.02 rad from the rpy numbers over time.
    """
    linear_m_s, angular_rad_s = np.zeros(3), np.zeros(3)
    for action, share in shares:
        linear_m_s += action.translation_m * (share / period_s)
        angular_rad_s += rotation_vector(action.rotation_rad) * (share / period_s)
    return Twist(linear_m_s, angular_rad_s)


def to_action(twist: Twist, duration_s: float, gripper: float) -> Action:
    """The step that a constant velocity makes."""
    turn = Rotation.from_rotvec(twist.angular_rad_s * duration_s)
    return Action(twist.linear_m_s * duration_s, turn.as_euler("xyz"), gripper)


def rotation_vector(rpy_rad: FloatArray) -> FloatArray:
    """[3] axis times angle [rad] of Rz(yaw) Ry(pitch) Rx(roll), along base axes."""
    if np.count_nonzero(rpy_rad) <= 1:
        return rpy_rad  # about one axis: the same numbers
    vector: FloatArray = Rotation.from_euler("xyz", rpy_rad).as_rotvec()
    return vector


def advanced(pose: Pose, twist: Twist, duration_s: float) -> Pose:
    """Where a pose is after moving at a constant velocity."""
    turn = Rotation.from_rotvec(twist.angular_rad_s * duration_s).as_matrix() if twist.angular_rad_s.any() else np.eye(3)
    return Pose(pose.position_m + twist.linear_m_s * duration_s, turn @ pose.rotation)


def towards(start: Pose, end: Pose, duration_s: float) -> Twist:
    """The constant velocity from one pose to another."""
    turn = Rotation.from_matrix(end.rotation @ start.rotation.T).as_rotvec()
    return Twist((end.position_m - start.position_m) / duration_s, turn / duration_s)


def slow_down(twist: Twist, elapsed_s: float, limits: Limits) -> Twist:
    """The twist of a soft stop `elapsed_s` later: translation and rotation each lose speed, direction kept, down to zero."""
    return Twist(_slower(twist.linear_m_s, limits.max_acceleration_m_s2 * elapsed_s),
                 _slower(twist.angular_rad_s, limits.max_acceleration_rad_s2 * elapsed_s))


def slew(twist: Twist, wish: Twist, elapsed_s: float, limits: Limits) -> Twist:
    """The twist `elapsed_s` later on the straight way to another one, at the allowed acceleration. Finite input."""
    return Twist(_nearer(twist.linear_m_s, wish.linear_m_s, limits.max_acceleration_m_s2 * elapsed_s),
                 _nearer(twist.angular_rad_s, wish.angular_rad_s, limits.max_acceleration_rad_s2 * elapsed_s))


def shorten(vector: FloatArray, longest: float) -> FloatArray:
    """The vector itself when it is not longer than `longest`, else one of that length and the same direction. Finite input."""
    largest = float(np.abs(vector).max())
    if largest <= longest and math.hypot(*vector) <= longest:
        return vector
    unit = vector / largest  # first, so that huge values do not overflow
    return unit * (longest / math.hypot(*unit))


def _slower(velocity: FloatArray, loss: float) -> FloatArray:
    left = float(np.linalg.norm(velocity)) - loss
    return shorten(velocity, left) if left > REST else np.zeros(3)


def _nearer(velocity: FloatArray, wish: FloatArray, change: float) -> FloatArray:
    missing = wish - velocity
    step = shorten(missing, change)
    return wish.copy() if step is missing else velocity + step
