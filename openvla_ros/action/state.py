"""What the joint states say about the arm, or why they cannot be trusted. Without fresh ones nothing moves.

Comes in: a RobotState as it was heard, in any order and with any other joints beside; goes out: Measured, or a Refusal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openvla_ros.action.kinematics import Kinematics
from openvla_ros.action.safety import Refusal
from openvla_ros.contract import FloatArray, Pose, RobotState
from openvla_ros.robot import Arm, GripperProfile

SECOND_NS = 1_000_000_000

EFFORT_FACTOR, EFFORT_MARGIN = 1.7, 10.0
"""An effort above the usual largest, times the factor and plus the margin, stops the arm: BridgeData's robot does so (mA)."""

ASLEEP_RAD = 0.15
"""An arm whose joints are all this near to its sleep pose lies in its cradle."""

AHEAD_S = 0.05
"""Joint states may be stamped so far in the future: two clocks of one network, synchronised."""


@dataclass(frozen=True)
class Measured:
    """The arm as it is now."""

    positions: FloatArray  # [n] in the order of Arm.joints
    pose: Pose
    efforts: FloatArray  # [n], or empty where the driver does not say them
    opening: float | None  # of the gripper, 0 closed .. 1 open; None: it is not among the joint states


def measure(state: RobotState | None, arm: Arm, gripper: GripperProfile | None, kinematics: Kinematics | None, now_ns: int,
            max_age_s: float) -> Measured | Refusal:
    """The arm's joints out of the newest joint states; now_ns: ROS clock, as their stamp."""
    if kinematics is None:
        return Refusal("robot_description", "no URDF of the arm is there: the profile names none, and none came on robot_description")
    if state is None:
        return Refusal("joint_states", "no joint states came. Start the arm's driver, or remap joint_states.")
    if state.stamp_ns == 0:
        return Refusal("joint_states", "the joint states carry no stamp (zero). Let the driver stamp them.")
    age_s = (now_ns - state.stamp_ns) / SECOND_NS
    if not -AHEAD_S <= age_s <= max_age_s:
        return Refusal("joint_states", f"the newest joint states are {age_s:.3f} s old, allowed {-AHEAD_S:g} to {max_age_s:g} s. "
                                       "Is the arm's driver alive, are the clocks synchronised?")
    missing = [name for name in arm.joints if name not in state.names]
    if missing:
        return Refusal("joint_states", f"the joint states lack {', '.join(missing)}; they have {', '.join(state.names) or 'no joints'}")
    order = [state.names.index(name) for name in arm.joints]
    positions = state.positions[order]
    efforts = state.efforts[order] if state.efforts.size else np.zeros(0)
    if not np.isfinite(positions).all() or not np.isfinite(efforts).all():
        return Refusal("joint_states", f"the joint states hold NaN or infinity: positions {positions.tolist()}, "
                                       f"efforts {efforts.tolist()}")
    return Measured(positions, kinematics.forward(positions), efforts, _opening(state, gripper))


def strained(measured: Measured, arm: Arm) -> str:
    """Which joints push harder than they may, in words, or empty. Arms that declare no efforts are never strained."""
    if not arm.effort or not measured.efforts.size:
        return ""
    allowed = EFFORT_FACTOR * np.array(arm.effort) + EFFORT_MARGIN
    return ", ".join(f"{name} pushes with {abs(effort):.0f}, allowed {most:.0f}"
                     for name, effort, most in zip(arm.joints, measured.efforts, allowed, strict=True) if abs(effort) > most)


def asleep(measured: Measured, arm: Arm) -> bool:
    """The arm lies in its sleep pose, from where a policy has never seen the world."""
    return bool(arm.sleep) and bool(np.abs(measured.positions - np.array(arm.sleep)).max() <= ASLEEP_RAD)


def _opening(state: RobotState, gripper: GripperProfile | None) -> float | None:
    if gripper is None or gripper.joint not in state.names:
        return None
    position = state.positions[state.names.index(gripper.joint)]
    return gripper.opening(float(position)) if np.isfinite(position) else None
