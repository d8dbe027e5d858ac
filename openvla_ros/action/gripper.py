"""The force loop of a gripper whose motor is driven by PWM, as BridgeData's robot has it."""

from __future__ import annotations

GAIN_PER_M = 300.0
"""Full force from 3.3 mm of error on (bridge_data_robot, custom_gripper_controller.py)."""

FULL_PWM = 350
"""Largest PWM [counts] that the gripper's motor bears for long, by Interbotix; BridgeData's robot uses it too."""


def pressing_pwm(wanted_m: float, measured_m: float) -> int:
    """PWM [counts] that presses the finger from where it is to where it shall be: positive opens, 0 when it is there."""
    effort = min(1.0, max(-1.0, GAIN_PER_M * (wanted_m - measured_m)))
    return int(FULL_PWM * effort)
