"""From steps to what an arm takes: a twist, for now."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from openvla_ros.action.safety import shorten
from openvla_ros.contract import Action, FloatArray
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


def to_twist(shares: Iterable[tuple[Action, float]], period_s: float) -> Twist:
    """The constant velocity that covers, within one tick, the given shares (0..1) of steps.

    In the middle of a step this is delta / step_s, divided once. In a tick that a step begins or ends in it is the mean over
    the tick, so that the integral over all ticks is the delta. The rotation is the rpy delta over time too: for steps within
    0.25 rad that differs from Rz Ry Rx by less than 0.02 rad, and by nothing when the step turns about one axis.
    """
    linear_m_s, angular_rad_s = np.zeros(3), np.zeros(3)
    for action, share in shares:
        linear_m_s += action.translation_m * (share / period_s)
        angular_rad_s += action.rotation_rad * (share / period_s)
    return Twist(linear_m_s, angular_rad_s)


def slow_down(twist: Twist, elapsed_s: float, limits: Limits) -> Twist:
    """The twist of a soft stop `elapsed_s` later: translation and rotation each lose speed, direction kept, down to zero."""
    return Twist(_slower(twist.linear_m_s, limits.stop_m_s2 * elapsed_s),
                 _slower(twist.angular_rad_s, limits.stop_rad_s2 * elapsed_s))


def _slower(velocity: FloatArray, loss: float) -> FloatArray:
    left = float(np.linalg.norm(velocity)) - loss
    return shorten(velocity, left) if left > REST else np.zeros(3)
