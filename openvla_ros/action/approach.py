"""The slow way to a start pose, straight in joint space: a straight line of the hand would lead through singularities.

Comes in: where the target is; goes out: the velocity of the hand for the coming tick, which then meets the same safety rules as any
other. The way goes on only as far as the target has come.
"""

from __future__ import annotations

import numpy as np

from openvla_ros.action.command import Twist, towards
from openvla_ros.action.kinematics import Kinematics
from openvla_ros.action.pose import distance
from openvla_ros.contract import FloatArray, Pose
from openvla_ros.errors import HandoffRefused

SLOW_M_S, SLOW_RAD_S, SLOW_JOINT_RAD_S = 0.05, 0.25, 0.5
"""A fifth of the WidowX's limits: time enough for a hand on the emergency stop."""

NEAR_M, NEAR_RAD = 1e-4, 1e-3
"""So near, the target has come to a point of the way."""

CRAWL = 0.02
"""Less than this part of the slow speed gets nowhere."""


class Approach:
    """One way, from joint positions to a pose. `name` is the pose's, for people."""

    def __init__(self, name: str, end: Pose, positions: FloatArray, kinematics: Kinematics) -> None:
        """positions: [n], where the arm is. Raises HandoffRefused when no way of holding the joints makes the end pose."""
        self.name, self._kinematics, self._positions = name, kinematics, positions
        middle = 0.5 * (kinematics.limits.lower + kinematics.limits.upper)
        solutions = [kinematics.inverse(end, seed, np.inf) for seed in (positions, np.zeros_like(positions), middle)]
        reached = [solution.positions for solution in solutions if solution.reached]
        if not reached:
            raise HandoffRefused(f"the start pose {name!r} cannot be reached: {solutions[0].reason}. Correct it in the robot's profile.")
        self._end = min(reached, key=lambda joints: float(np.abs(joints - positions).max()))

    def arrived(self, target: Pose) -> bool:
        """The target is at the end of the way."""
        return _near(target, self._kinematics.forward(self._end))

    def velocity(self, target: Pose, period_s: float) -> Twist:
        """From this target to the next point of the way."""
        if _near(target, self._kinematics.forward(self._positions)):
            self._positions = self._next(period_s)
        return towards(target, self._kinematics.forward(self._positions), period_s)

    def crawls(self, twist: Twist) -> bool:
        """What was sent is hardly a motion: something is in the way."""
        return bool(np.linalg.norm(twist.linear_m_s) < CRAWL * SLOW_M_S and np.linalg.norm(twist.angular_rad_s) < CRAWL * SLOW_RAD_S)

    def _next(self, period_s: float) -> FloatArray:
        """As far along the way as the slow speeds allow in one tick."""
        left = self._end - self._positions
        furthest = float(np.abs(left).max())
        step = left * min(1.0, SLOW_JOINT_RAD_S * period_s / furthest) if furthest > 0.0 else left
        here = self._kinematics.forward(self._positions)
        far_m, far_rad = distance(here, self._kinematics.forward(self._positions + step))
        excess = max(far_m / (SLOW_M_S * period_s), far_rad / (SLOW_RAD_S * period_s), 1.0)
        return self._positions + step / excess


def _near(one: Pose, other: Pose) -> bool:
    apart_m, apart_rad = distance(one, other)
    return apart_m <= NEAR_M and apart_rad <= NEAR_RAD
