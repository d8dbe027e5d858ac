"""Twists: one division, an exact soft stop, and how far a twist of the rpy is from the rotation that it stands for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from openvla_ros.action.command import ZERO, Twist, slow_down, to_twist
from openvla_ros.contract import Action
from openvla_ros.robot import Box, Limits

LIMITS = Limits(0.05, 0.25, 0.25, 1.25, 2.5, 12.0, 0.06, 0.3, Box((0.1, 0.45), (-0.2, 0.25), (-0.01, 0.3)))


def test_a_delta_is_divided_once() -> None:
    step = Action.from_vector([0.01, -0.02, 0.03, 0.1, -0.05, 0.2, 1.0])
    period_s = 0.04
    twist = to_twist([(step, period_s / 0.2)], period_s)
    assert twist.linear_m_s == pytest.approx([0.05, -0.1, 0.15])
    assert twist.angular_rad_s == pytest.approx(Rotation.from_euler("xyz", [0.1, -0.05, 0.2]).as_rotvec() / 0.2)
    assert twist.angular_rad_s == pytest.approx([0.5, -0.25, 1.0], abs=0.06)  # about the numbers themselves
    single = to_twist([(Action.from_vector([0, 0, 0, 0, 0, -0.2, 1.0]), 0.2)], period_s)
    assert single.angular_rad_s == pytest.approx([0, 0, -1.0], abs=1e-15)


def test_a_tick_that_two_steps_share_is_their_mean() -> None:
    first, second = Action.from_vector([0.04, 0, 0, 0, 0, 0, 1]), Action.from_vector([0, 0.02, 0, 0, 0, 0, 1])
    twist = to_twist([(first, 0.05), (second, 0.15)], 0.04)
    assert twist.linear_m_s == pytest.approx([0.04 * 0.05 / 0.04, 0.02 * 0.15 / 0.04, 0.0])


def test_soft_stop_from_full_speed_takes_a_tenth_of_a_second_and_keeps_direction() -> None:
    twist = Twist(np.array([0.15, 0.0, -0.2]), np.array([0.0, 1.25, 0.0]))
    speeds = []
    for _ in range(5):
        twist = slow_down(twist, 1 / 30, LIMITS)
        speeds.append((np.linalg.norm(twist.linear_m_s), np.linalg.norm(twist.angular_rad_s)))
        if speeds[-1][0]:
            assert twist.linear_m_s / speeds[-1][0] == pytest.approx([0.6, 0.0, -0.8])
    assert [s for s, _ in speeds] == pytest.approx([0.25 - 2.5 / 30, 0.25 - 5.0 / 30, 0, 0, 0], abs=1e-12)
    assert [w for _, w in speeds] == pytest.approx([0.85, 0.45, 0.05, 0, 0], abs=1e-12)
    assert not twist.moving


def test_soft_stop_of_rest_is_rest() -> None:
    assert not slow_down(ZERO, 0.1, LIMITS).moving


def test_twist_of_rpy_is_near_the_fixed_axis_rotation() -> None:
    """Exact about one axis; elsewhere within the bound that `to_twist` states."""
    draw = np.random.default_rng(0)
    rpy = draw.normal(size=(20_000, 3))
    rpy *= 0.25 / np.linalg.norm(rpy, axis=1, keepdims=True)
    meant, played = Rotation.from_euler("xyz", rpy), Rotation.from_rotvec(rpy)
    difference_rad = (played * meant.inv()).magnitude()
    assert 0.01 < difference_rad.max() < 0.02
    single = np.diag([0.25, 0.25, 0.25])
    assert (Rotation.from_rotvec(single) * Rotation.from_euler("xyz", single).inv()).magnitude().max() < 1e-12
