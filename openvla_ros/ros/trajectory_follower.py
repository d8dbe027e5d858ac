"""What a joint_trajectory_controller of ros2_control makes of a trajectory: where its joints are wanted at each moment. No ROS in here.

The rules are those of ros2_controllers (humble, jazzy) with the settings of config/ros2_control, so that what the simulated arm takes
the real one takes too. Ours: NaN is refused, and nothing is wanted beyond the joints' limits or faster than they can go.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openvla_ros.contract import FloatArray
from openvla_ros.errors import ActionError

AT_REST = 1.2e-7
"""A last velocity below this is zero: the epsilon of single precision, with which the controller compares."""


@dataclass(frozen=True)
class Waypoint:
    """One point of a trajectory. velocities: None where the message gives none."""

    time_s: float  # from the trajectory's start
    positions: FloatArray  # [n] rad or m
    velocities: FloatArray | None  # [n] rad/s or m/s


@dataclass(frozen=True)
class JointRange:
    """Limits of a controller's joints, each [n] in their order."""

    lower: FloatArray  # rad or m
    upper: FloatArray
    velocity: FloatArray  # rad/s or m/s, above 0


class TrajectoryFollower:
    """One controller. It holds the last point of its trajectory for ever, and `start` before the first. One thread at a time may call."""

    def __init__(self, joints: Sequence[str], start: FloatArray, limits: JointRange) -> None:
        self.joints, self._limits = tuple(joints), limits
        self.limited: tuple[str, ...] = ()
        """Joints that were wanted beyond a limit, or faster than they can go, at the last `advance`."""
        self.place(start)

    def place(self, positions: FloatArray) -> None:
        """Forget the trajectory and want this, at once: the arm was put there."""
        self._wanted = np.array(positions, dtype=np.float64)
        self._velocity = np.zeros(len(self.joints))
        self._knots: list[tuple[float, FloatArray, FloatArray | None]] = []
        self._now_s: float | None = None

    def take(self, names: Sequence[str], points: Sequence[Waypoint], start_s: float | None, now_s: float) -> None:
        """Follow another trajectory from now on; it begins at what is wanted now (interpolate_from_desired_state).

        names: order of the numbers in `points`. start_s: when it starts, on the clock of now_s; None: now.
        Raises ActionError, and goes on as before, for a trajectory that the controller refuses; it is refused as a whole.
        """
        self._require_good(names, points, start_s, now_s)
        order = [list(names).index(joint) for joint in self.joints]
        begin_s = now_s if start_s is None else start_s
        self._knots = [(now_s, self._wanted, self._velocity)]
        self._knots += [(begin_s + point.time_s, point.positions[order], None if point.velocities is None else point.velocities[order])
                        for point in points]

    def advance(self, now_s: float) -> FloatArray:
        """[n] where the joints are wanted at a time, in the order of `joints`; times must not go back. Between points cubic where
        velocities are given, straight without."""
        position, velocity = self._at(now_s)
        inside = np.clip(position, self._limits.lower, self._limits.upper)
        if self._now_s is not None:  # the motors go no faster, whatever is asked for
            reach = self._limits.velocity * max(0.0, now_s - self._now_s)
            inside = np.clip(inside, self._wanted - reach, self._wanted + reach)
        short = np.abs(inside - position) > 1e-9
        self.limited = tuple(itertools.compress(self.joints, short))
        self._wanted, self._velocity, self._now_s = inside, np.where(short, 0.0, velocity), now_s
        return inside.copy()

    def _at(self, now_s: float) -> tuple[FloatArray, FloatArray]:
        for (t0, p0, v0), (t1, p1, v1) in itertools.pairwise(self._knots):
            if t0 <= now_s < t1:
                return _between((now_s - t0) / (t1 - t0), t1 - t0, p0, v0, p1, v1)
        last = self._knots[-1][1] if self._knots and now_s >= self._knots[-1][0] else self._wanted
        return last, np.zeros(len(self.joints))

    def _require_good(self, names: Sequence[str], points: Sequence[Waypoint], start_s: float | None, now_s: float) -> None:
        count = len(self.joints)
        if sorted(names) != sorted(self.joints):
            raise ActionError(f"trajectory for the joints {', '.join(names) or 'none'}, expected {', '.join(self.joints)}.")
        if not points:
            raise ActionError("trajectory without points.")
        times_s = [point.time_s for point in points]
        if any(later <= earlier for earlier, later in itertools.pairwise(times_s)) or times_s[0] < 0.0:
            raise ActionError(f"trajectory with times {times_s}, expected them to grow from 0 on.")
        if start_s is not None and start_s + times_s[-1] < now_s:
            raise ActionError(f"trajectory ended {now_s - start_s - times_s[-1]:.3f} s ago. Stamp it 0 for now, or synchronise the clocks.")
        for point in points:
            for numbers in (point.positions, point.velocities):
                if numbers is not None and (numbers.shape != (count,) or not np.isfinite(numbers).all()):
                    raise ActionError(f"trajectory point {numbers.tolist()}, expected {count} finite numbers.")
        last = points[-1].velocities
        if last is not None and (np.abs(last) > AT_REST).any():
            raise ActionError(f"trajectory ends with the velocities {last.tolist()}, expected rest: the controllers do not allow "
                              "a nonzero velocity at the end.")


def _between(share: float, span_s: float, p0: FloatArray, v0: FloatArray | None, p1: FloatArray,
             v1: FloatArray | None) -> tuple[FloatArray, FloatArray]:
    """Position and velocity at a share (0..1) of the way between two points."""
    if v0 is None or v1 is None:
        return p0 + share * (p1 - p0), (p1 - p0) / span_s
    way = p1 - p0
    bend_out, bend_in = v0 * span_s - way, way - v1 * span_s  # Hermite, written as a straight line and what bends it
    left = 1.0 - share
    bend = left * bend_out + share * bend_in
    return p0 + share * way + share * left * bend, (way + (left - share) * bend + share * left * (bend_in - bend_out)) / span_s
