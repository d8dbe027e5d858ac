"""The way of an action to the arm without ROS: what command_node, its trajectory output and the simulation's node do together.

Comes in: one action per step; goes out: the world a step later. Deltas are integrated on what was sent last, cut by the limits of the
robot's profile, played over the step and smoothed as the trajectory output smooths. Kept small on purpose: the safety chain itself is
in `action/`, and the evaluation through ROS says whether this is close enough to it.
"""

from __future__ import annotations

import numpy as np

from openvla_ros.contract import STEP_S, Action, ByteArray, FloatArray, Pose
from openvla_ros.errors import ActionError
from openvla_ros.robot import Limits
from openvla_ros.simulation.camera import Camera
from openvla_ros.simulation.tabletop import STRAIGHT_DOWN, Tabletop
from openvla_ros.simulation.task import SceneState

TICK_S = 0.02
"""The path is followed in ticks of this length: five time steps of the world."""

TICKS = round(STEP_S / TICK_S)
"""Of a step: an even number."""

GRIPPER_PER_S = 2.0
"""How fast the commanded opening changes, as command_node has it."""

REACHED_M = 1e-3
"""What inverse kinematics may miss: less than a pixel shows."""

LATENCY_S = 0.08
"""How long before the end of a running step the policy's picture of it is taken, by default."""


class Loop:
    """One arm in one world. Call `begin`, then `step` once per action; look in between or a little before a step ends."""

    def __init__(self, limits: Limits, tabletop: Tabletop | None = None, camera: Camera | None = None) -> None:
        """limits: of the robot's profile."""
        self.tabletop, self.camera = tabletop or Tabletop(), camera or Camera()
        self._limits = limits
        self._window = max(1, round(limits.longest_ramp_s / TICK_S))  # ticks that the trajectory output averages over
        self.begin(0)

    def begin(self, seed: int) -> None:
        """A new episode in the layout of a seed."""
        self.tabletop.reset(seed)
        self._sent = Pose(self.tabletop.layout.start_m, STRAIGHT_DOWN)
        self._joints = self.tabletop.arm_positions_rad
        self._opening = 1.0
        self._path = [self._joints] * self._window  # the last ticks, newest last

    def picture(self) -> ByteArray:
        """What the camera sees now."""
        return self.camera.picture(self.tabletop)

    def state(self) -> SceneState:
        """The truth about the scene now."""
        return self.tabletop.state()

    @property
    def opening(self) -> float:
        """Of the gripper, as it was commanded last: 0 closed .. 1 open."""
        return self._opening

    def step(self, action: Action, look_before_end_s: float = 0.0) -> tuple[ByteArray, SceneState]:
        """Play one action for its 0.2 s. Returns picture and state of `look_before_end_s` before its end.

        Raises ActionError for NaN and infinity, and for a look that is not within the step.
        """
        picture, state = self._play(action, look_before_end_s, draw=True)
        assert picture is not None, "it was asked for"
        return picture, state

    def step_unseen(self, action: Action, look_before_end_s: float = 0.0) -> SceneState:
        """The same without a picture, which is most of the time a step takes."""
        return self._play(action, look_before_end_s, draw=False)[1]

    def _play(self, action: Action, look_before_end_s: float, draw: bool) -> tuple[ByteArray | None, SceneState]:
        if not np.isfinite(action.to_vector()).all():
            raise ActionError(f"action holds NaN or infinity: {action.to_vector().tolist()}. Nothing was moved.")
        if not 0.0 <= look_before_end_s <= STEP_S:
            raise ActionError(f"the look is {look_before_end_s} s before the end of a step, expected 0 to {STEP_S:g} s.")
        look_after = TICKS - round(look_before_end_s / TICK_S)
        picture, state = None, self.state()
        for tick, joints in enumerate([self._joints, *self._way(action)]):
            if tick > 0:
                self._tick(joints, action.gripper)
            if tick == look_after:
                picture, state = self.picture() if draw else None, self.state()
        return picture, state

    def _way(self, action: Action) -> list[FloatArray]:
        """Moves the target. Returns where the joints [6] are to be after each tick: a straight line of the tool, solved at its middle
        and end, as far as it can be reached; command_node does not go further either."""
        start, goal_m = self._sent, self._limited(action.translation_m)
        turn_rad = _shortened(action.rotation_rad, self._limits.max_step_rad)
        knots = [self._joints]
        for share in (0.5, 1.0):
            wanted = Pose(start.position_m + share * (goal_m - start.position_m), _rotation(share * turn_rad) @ start.rotation)
            joints, missing_m = self.tabletop.inverse(wanted, knots[-1])
            if missing_m < REACHED_M:
                self._sent = wanted
            knots.append(joints if missing_m < REACHED_M else knots[-1])
        half, way = TICKS // 2, []
        for tick in range(TICKS):
            knot, share = tick // half, (tick % half + 1) / half
            way.append(knots[knot] * (1.0 - share) + knots[knot + 1] * share)
        return way

    def _tick(self, joints: FloatArray, gripper: float) -> None:
        """The target of the arm is the mean of where the joints were to be lately, as the trajectory output smooths."""
        self._joints, self._path = joints, [*self._path[1:], joints]
        change = GRIPPER_PER_S * TICK_S
        self._opening = min(1.0, max(0.0, self._opening + min(change, max(-change, gripper - self._opening))))
        low_m, high_m = self.tabletop.finger_range_m
        self.tabletop.set_arm_target(np.mean(self._path, axis=0))
        self.tabletop.set_finger_target(low_m + self._opening * (high_m - low_m))
        self.tabletop.advance(TICK_S)

    def _limited(self, translation_m: FloatArray) -> FloatArray:
        """Where the target goes: not further than the step, the lead and the box allow."""
        step_m = _shortened(translation_m, self._limits.max_step_m)
        here_m, measured_m = self._sent.position_m, self.tabletop.tool_pose().position_m
        goal_m = np.clip(here_m + step_m, self._limits.box.low_m, self._limits.box.high_m)
        longest_m = max(self._limits.max_lead_m, float(np.linalg.norm(here_m - measured_m)))
        ahead_m = goal_m - measured_m
        if np.linalg.norm(ahead_m) > longest_m:
            goal_m = measured_m + ahead_m * (longest_m / float(np.linalg.norm(ahead_m)))
        return goal_m


def _shortened(vector: FloatArray, longest: float) -> FloatArray:
    return vector * min(1.0, longest / max(float(np.linalg.norm(vector)), 1e-12))


def _rotation(rpy_rad: FloatArray) -> FloatArray:
    """Of fixed-axis roll, pitch, yaw: the contract's Rz Ry Rx."""
    (sr, sp, sy), (cr, cp, cy) = np.sin(rpy_rad), np.cos(rpy_rad)
    return np.array([[cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
                     [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
                     [-sp, cp * sr, cp * cr]])
