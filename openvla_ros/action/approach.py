"""The slow, straight way to a start pose. Comes in: where the target is; goes out: the velocity for the coming tick."""

from __future__ import annotations

from dataclasses import dataclass

from openvla_ros.action.command import Twist, towards
from openvla_ros.action.pose import distance
from openvla_ros.contract import Pose

SLOW_M_S, SLOW_RAD_S = 0.05, 0.25
"""A fifth of the WidowX's limits: time enough for a hand on the emergency stop."""

NEAR_M, NEAR_RAD = 1e-4, 1e-3
"""So near, it has arrived."""


@dataclass(frozen=True)
class Approach:
    """Where to, and under which name. The position goes along a straight line while the rotation goes about one axis."""

    name: str
    end: Pose

    def reached(self, pose: Pose) -> bool:
        """The pose is there."""
        apart_m, apart_rad = distance(pose, self.end)
        return apart_m <= NEAR_M and apart_rad <= NEAR_RAD

    def velocity(self, pose: Pose, period_s: float) -> Twist:
        """From this pose, so that position and rotation arrive together and neither overshoots within one tick."""
        apart_m, apart_rad = distance(pose, self.end)
        return towards(pose, self.end, max(period_s, apart_m / SLOW_M_S, apart_rad / SLOW_RAD_S))
