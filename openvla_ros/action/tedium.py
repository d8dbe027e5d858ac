"""Notices a policy that has stopped meaning anything: steps that are near zero, or all the same. A diagnostic, never a stop."""

from __future__ import annotations

import numpy as np

from openvla_ros.contract import Action, FloatArray

NEAR_ZERO_M, NEAR_ZERO_RAD = 0.001, 0.005
"""Less than this along each axis in one step is no motion."""


class Tedium:
    """Counts such steps in a row."""

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._idle = self._same = 0
        self._last: FloatArray | None = None

    def watch(self, step: Action) -> None:
        """A step that has started."""
        vector = step.to_vector()
        idle = np.abs(vector[:3]).max() < NEAR_ZERO_M and np.abs(vector[3:6]).max() < NEAR_ZERO_RAD
        gripper_moved = self._last is not None and abs(vector[6] - self._last[6]) > 0.5
        self._idle = self._idle + 1 if idle and not gripper_moved else 0
        self._same = self._same + 1 if self._last is not None and np.array_equal(vector, self._last) else 1
        self._last = vector

    @property
    def complaint(self) -> str:
        """What is odd, or empty."""
        if self._idle >= self._patience:
            return f"the last {self._idle} steps of the policy moved nothing. Is it done, or does it not see the scene?"
        if self._same >= self._patience:
            return f"the last {self._same} steps of the policy were all the same. Does it still see new pictures?"
        return ""
