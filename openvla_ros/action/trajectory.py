"""From a path of joints in time to the few points of a joint trajectory that ends at rest.

The target jumps from rest to the speed of a step and back, which no arm can. So the path is averaged over the time of a soft stop:
the arm comes half of it later, is never faster than the path, reaches every end exactly, and a step that follows without a gap
goes on at speed. If nothing follows, what was sent last brings it to rest by itself.

For arms that take one goal per tick instead, `LastGoal` says which are worth sending.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openvla_ros.contract import FloatArray

SPACING_S = 0.05
"""Smallest time between two points: more than two cycles of a controller at 50 Hz."""

SAME_MOVING_RAD, SAME_AT_REST_RAD = 3e-3, 3e-4
"""A path that differs less from what was promised is the same. A tick that comes 2 ms late shifts a moving joint by 1e-3 rad, which is not
worth a message; where the arm rests it is to be exact. A servo with 4096 positions per turn resolves 1.5e-3 rad."""

HORIZON_S = 1.0
"""A trajectory ends within this, however long the step is: so long the arm goes on when this process is killed."""

APART_AT_REST_RAD = 0.02
"""After a rest, a path that begins further from where the one before ended has nothing to do with it: the arm was moved in between."""

TOP_SPEED_RAD_S = 3.2
"""No joint is asked to make up faster for a path that jumps: one that jumps by more within the window begins anew."""


RELIEF_S = 2.0
"""So long after a motion joints at rest are sent: where it stops, or where an arm that pushes too hard is to stay. That is longer than a
trajectory, and than a policy keeps driving without fresh chunks."""


@dataclass(frozen=True)
class TrajectoryPoint:
    """Where the joints are to be, and how fast. The last point of a trajectory is at rest."""

    time_s: float  # from now
    positions: FloatArray  # [n] rad
    velocities: FloatArray  # [n] rad/s


class TrajectoryPlanner:
    """Remembers the path that was asked for, and speaks only when it changes. One thread at a time may call."""

    def __init__(self, window_s: float) -> None:
        """window_s: the time to average over; the arm is at rest that much after its path has ended."""
        self._window_s = max(window_s, SPACING_S)
        self._times_s: list[float] = []
        self._positions: list[FloatArray] = []

    @property
    def window_s(self) -> float:
        """How much later than the path the arm comes to rest."""
        return self._window_s

    def plan(self, now_s: float, ahead: Sequence[tuple[float, FloatArray]]) -> tuple[TrajectoryPoint, ...]:
        """The trajectory from now on; empty when the one before still says the same.

        ahead: (seconds from now, joint positions), at least one, in order; after the last the arm is to rest there. A single one at
        0 s: it rests now. now_s: on any steady clock; after a jump back the path begins anew where the arm is not where it was.
        What is so far ahead that the arm would rest only after the horizon is left for later calls, but never the first.
        """
        ahead = [*ahead[:1], *(point for point in ahead[1:] if point[0] + self._window_s <= HORIZON_S)]
        times_s = np.array([now_s + later_s for later_s, _ in ahead])
        positions = np.array([where for _, where in ahead])
        same = SAME_MOVING_RAD if ahead[-1][0] > 0.0 else SAME_AT_REST_RAD
        if self._times_s and np.abs(self._promised(times_s) - positions).max() <= same and (
                np.abs(self._positions[-1] - positions[-1]).max() <= same):
            return ()
        self._remember(now_s, times_s, positions)
        end_s = float(times_s[-1]) - now_s + self._window_s
        count = max(1, int(end_s / SPACING_S + 1e-9))
        points = []
        for number in range(1, count + 1):
            time_s = end_s * number / count
            until = now_s + time_s
            velocities = (self._at(until) - self._at(until - self._window_s)) / self._window_s
            points.append(TrajectoryPoint(time_s, self._mean(until), velocities if number < count else np.zeros_like(velocities)))
        return tuple(points)

    def _promised(self, times_s: FloatArray) -> FloatArray:
        return np.array([self._at(float(time_s)) for time_s in times_s])

    def _remember(self, now_s: float, times_s: FloatArray, positions: FloatArray) -> None:
        """Replace what was to come, and forget what the average no longer reaches, or all when the path begins elsewhere."""
        # Where the path came from, if it moves and is told ahead, is a straight line back.
        slope = (positions[1] - positions[0]) / (times_s[1] - times_s[0]) if len(times_s) > 1 else np.zeros_like(positions[0])
        here = positions[0] - slope * (times_s[0] - now_s)
        if self._times_s:
            if np.abs(self._at(now_s) - here).max() <= self._apart_rad(now_s):
                here = self._at(now_s)
            else:  # the arm is not where it was sent: going on from there would be a leap
                self._times_s, self._positions = [], []
        oldest_s = now_s - self._window_s
        past = [(oldest_s, self._at(oldest_s) if self._times_s else here)]
        past += [(time_s, where) for time_s, where in zip(self._times_s, self._positions, strict=True) if oldest_s < time_s < now_s]
        past += [(now_s, here)]
        future = [(float(time_s), where) for time_s, where in zip(times_s, positions, strict=True) if time_s > now_s]
        self._times_s = [time_s for time_s, _ in past + future]
        self._positions = [where for _, where in past + future]
        if not future:  # to rest here and now
            self._positions[-1] = positions[-1]

    def _apart_rad(self, now_s: float) -> float:
        """How far from the remembered path another one may begin now and still continue it."""
        moving = self._times_s[0] <= now_s <= self._times_s[-1] + self._window_s
        return TOP_SPEED_RAD_S * self._window_s if moving else APART_AT_REST_RAD

    def _at(self, time_s: float) -> FloatArray:
        """The path at a time: straight between what was said, at rest before and after."""
        later = int(np.searchsorted(self._times_s, time_s))
        if later == 0:
            return self._positions[0]
        if later == len(self._times_s):
            return self._positions[-1]
        before_s, after_s = self._times_s[later - 1], self._times_s[later]
        share = (time_s - before_s) / (after_s - before_s)
        return self._positions[later - 1] * (1.0 - share) + self._positions[later] * share

    def _mean(self, until_s: float) -> FloatArray:
        """The mean of the path over the window that ends at a time."""
        since_s = until_s - self._window_s
        knots = [since_s, *(time_s for time_s in self._times_s if since_s < time_s < until_s), until_s]
        where = [self._at(time_s) for time_s in knots]
        area = sum(((one + other) / 2.0 * (after_s - before_s)
                    for one, other, before_s, after_s in zip(where, where[1:], knots, knots[1:], strict=False)), np.zeros_like(where[0]))
        return area / self._window_s


class LastMotion:
    """When the arm was last moved. Joints at rest long after it are not worth sending, and unsafe: they may be those of a driver that
    was chosen long ago and moved nothing, and the arm elsewhere by now. One thread at a time may call."""

    def __init__(self) -> None:
        self._moved_s = -np.inf

    def is_recent(self, now_s: float, moving: bool) -> bool:
        """moving: it is moved now. After a jump back of the clock the last motion counts as just over, so that it is stopped."""
        self._moved_s = now_s if moving else min(self._moved_s, now_s)
        return bool(now_s - self._moved_s <= RELIEF_S)


class LastGoal:
    """What an arm that takes goals was told last, and whether it is to be told another. One thread at a time may call."""

    def __init__(self) -> None:
        self._goal: FloatArray | None = None
        self._motion = LastMotion()

    def is_news(self, now_s: float, joints: FloatArray, moving: bool) -> bool:
        """Whether to send these joints; True takes them as sent. moving: they are the end of a motion; else the arm is to rest.

        The same goal is never sent again: not by a stop, and not by another driver. At rest there is one only soon after a motion.
        """
        recent = self._motion.is_recent(now_s, moving)
        if not recent or (self._goal is not None and np.array_equal(joints, self._goal)):
            return False
        self._goal = joints
        return True
