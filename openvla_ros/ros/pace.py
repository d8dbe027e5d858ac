"""How fast simulated time passes. Wall time is an argument; no ROS in here."""

from __future__ import annotations

from collections import deque

SLACK_S = 0.1
"""What a late simulation still makes up for [wall time]. Later than that it is too slow, and the clock slows instead."""

WINDOW_S = 2.0
"""The reached factor is that of so much wall time."""


class Pace:
    """Seconds of simulated time per second of wall time. One thread at a time may call."""

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._begun: tuple[float, float] | None = None  # simulated and wall time of one moment of the plan
        self._passed: deque[tuple[float, float]] = deque()

    @property
    def factor(self) -> float:
        """The wanted one."""
        return self._factor

    @factor.setter
    def factor(self, factor: float) -> None:
        self._factor, self._begun = factor, None

    def wait_s(self, simulated_s: float, wall_s: float) -> float:
        """How long to wait on the wall clock before simulated time may go beyond simulated_s; 0 when it is late already."""
        self._passed.append((simulated_s, wall_s))
        while self._passed[0][1] < wall_s - WINDOW_S:
            self._passed.popleft()
        if self._begun is None:
            self._begun = simulated_s, wall_s
        wait_s = self._begun[1] + (simulated_s - self._begun[0]) / self._factor - wall_s
        if wait_s < -SLACK_S:
            self._begun = simulated_s, wall_s
        return max(0.0, wait_s)

    def reached(self) -> float | None:
        """The factor of the last seconds; None as long as there was none."""
        if len(self._passed) < 2 or self._passed[-1][1] <= self._passed[0][1]:
            return None
        (simulated_0, wall_0), (simulated_1, wall_1) = self._passed[0], self._passed[-1]
        return (simulated_1 - simulated_0) / (wall_1 - wall_0)

    def forget(self) -> None:
        """Time stood still on purpose: nothing is to be made up for."""
        self._begun = None
        self._passed.clear()


class Due:
    """Says when something that recurs is to be done, on a clock that goes in small steps."""

    def __init__(self, rate_hz: float) -> None:
        self._period_s, self._next_s = 1.0 / rate_hz, float("-inf")

    def is_now(self, time_s: float) -> bool:
        """Whether its time has come. Then the next one is a period later on average, and nothing that was missed is made up for."""
        if time_s < self._next_s - 1e-9:
            return False
        planned_s = self._next_s + self._period_s
        self._next_s = planned_s if planned_s > time_s else time_s + self._period_s
        return True

    def hurry(self) -> None:
        """It is due at once."""
        self._next_s = float("-inf")
