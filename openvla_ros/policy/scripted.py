"""A policy without a model: a slow horizontal circle. It proves the path behind a policy, with no weights and no torch."""

from __future__ import annotations

import math

import numpy as np

from openvla_ros.contract import STEP_S, Action, ActionChunk, Check, Observation

STEP_M = 0.005
"""Length of one step [m]: at 5 Hz the arm moves at 2.5 cm/s."""

PERIOD_S = 10.0
"""Time of one turn [s]: with 5 mm steps at 5 Hz a circle of 4 cm radius, inside any arm's workspace."""


class ScriptedPolicy:
    """Moves along a circle, 5 mm per step; the direction depends on nothing but the camera stamp, so replays agree exactly."""

    def __init__(self, step_s: float = STEP_S) -> None:
        self.step_s = step_s

    name = "scripted"
    notes = ("scripted policy: it draws a circle and looks at neither picture nor instruction",)

    def act(self, observation: Observation) -> ActionChunk:
        """One step along the tangent of the circle, without rotation, gripper open."""
        phase = 2.0 * math.pi * (observation.stamp_ns % round(PERIOD_S * 1e9)) / (PERIOD_S * 1e9)
        step = Action(np.array([STEP_M * math.cos(phase), STEP_M * math.sin(phase), 0.0]), np.zeros(3), gripper=1.0)
        return ActionChunk(steps=(step,), step_s=self.step_s, observation_stamp_ns=observation.stamp_ns,
                           instruction=observation.instruction, policy_name=self.name)

    def self_test(self) -> tuple[Check, ...]:
        """Nothing can go wrong here but the arithmetic: the steps of one turn must end where they began."""
        frame, turn = np.zeros((2, 2, 3), dtype=np.uint8), range(0, round(PERIOD_S * 1e9), round(PERIOD_S * 1e9 / 50))
        walked = sum(self.act(Observation(frame, "circle", stamp)).steps[0].translation_m for stamp in turn)
        return (Check("scripted circle closes", bool(np.allclose(walked, 0.0, atol=1e-9)),
                      f"{len(turn)} steps of {STEP_M * 1000:.0f} mm end {np.linalg.norm(walked) * 1000:.3f} mm from their start"),)

    def close(self) -> None:
        """Holds no memory."""
