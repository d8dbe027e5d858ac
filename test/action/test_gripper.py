"""The force loop closes on a finger that moves, eases where it shall be, and never presses harder than the motor bears."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openvla_ros.action.gripper import FULL_PWM, GAIN_PER_M, pressing_pwm

FINGERS_M = st.floats(0.0, 0.1)


@pytest.mark.parametrize(("wanted_m", "measured_m", "pwm"), [
    (0.037, 0.015, FULL_PWM), (0.015, 0.037, -FULL_PWM), (0.02, 0.02, 0),
    (0.021, 0.020, 105), (0.020, 0.021, -105),  # 350 x 300 x 1 mm, cut to whole counts, as BridgeData's robot
])
def test_force(wanted_m: float, measured_m: float, pwm: int) -> None:
    assert pressing_pwm(wanted_m, measured_m) == pytest.approx(pwm, abs=1)


@given(FINGERS_M, FINGERS_M)
def test_force_is_bounded_and_points_to_the_target(wanted_m: float, measured_m: float) -> None:
    pwm = pressing_pwm(wanted_m, measured_m)
    assert abs(pwm) <= FULL_PWM
    assert pwm * (wanted_m - measured_m) >= 0.0


def test_a_finger_without_friction_comes_to_rest_without_overshoot() -> None:
    finger_m, speed_per_pwm, period_s = 0.037, 0.0002, 0.02
    for _ in range(100):
        finger_m += pressing_pwm(0.015, finger_m) * speed_per_pwm * period_s
        assert finger_m >= 0.015
    assert math.isclose(finger_m, 0.015, abs_tol=1.5 / GAIN_PER_M / FULL_PWM + 1e-9)
