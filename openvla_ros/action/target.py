"""What was sent last: the one thing that deltas are integrated on. Here a wished motion meets the safety chain and the joints.

Comes in: the velocity somebody wishes for the coming tick; goes out: what the arm is sent, and the rules that made less of it. The
target is moved by what was sent, never by what was wished.
"""

from __future__ import annotations

import numpy as np

from openvla_ros.action.command import ZERO, Twist, advanced
from openvla_ros.action.kinematics import Kinematics
from openvla_ros.action.pose import distance
from openvla_ros.action.safety import Course, limit, opened
from openvla_ros.action.schedule import SECOND_NS
from openvla_ros.action.state import Measured
from openvla_ros.contract import FloatArray, Pose
from openvla_ros.robot import JOINT_OUTPUTS, RobotProfile

SLOWER = (1.0, 0.5, 0.25)
"""Shares of a motion that are tried where the joints cannot make all of it in time. Near a stretched arm the same way back needs
joints many times as fast: refused at every speed, the arm would stay there for ever, whoever drives."""

TOO_FAST = ("joint_step", "singularity")
"""Rules of the kinematics that a slower motion may satisfy."""

GRIP = 0.05
"""A gripper that is commanded so much further open than it is was moved by somebody else: fingers lag, but they open freely."""


class Target:
    """Pose, joints, velocity and opening as they were last sent. All but the velocity are None until they are known."""

    def __init__(self, profile: RobotProfile) -> None:
        self._profile = profile
        self.pose: Pose | None = None
        self.joints: FloatArray | None = None  # only for outputs in joints
        self.twist = ZERO
        self.gripper: float | None = None
        self._until_ns: int | None = None  # the end of the last tick that moved it

    def anchor(self, measured: Measured | None) -> None:
        """Where a new driver starts: at what was last sent, if the arm is within the lead of it (one that sags must not ratchet down),
        else where the arm is. Without measured pose nothing changes."""
        if measured is None:
            return
        if measured.opening is not None and (self.gripper is None or self.gripper > measured.opening + GRIP):
            self.gripper = measured.opening  # it was closed by somebody else; more closed than measured is a grip, and is kept
        limits, kept = self._profile.limits, False
        if self.pose is not None:
            apart_m, apart_rad = distance(measured.pose, self.pose)
            kept = apart_m <= limits.max_lead_m and apart_rad <= limits.max_lead_rad
        if not kept:
            self.place(measured)

    def place(self, measured: Measured) -> None:
        """Start where the arm is."""
        self.pose = measured.pose
        if self._profile.output in JOINT_OUTPUTS:
            self.joints = measured.positions
        if self.gripper is None:
            self.gripper = measured.opening

    def move(self, wish: Twist, measured: Measured | None, kinematics: Kinematics | None, tick_ns: int, duration_s: float,
             before: Twist, build_up_s: float) -> tuple[str, ...]:
        """Go as wished for the tick that begins at tick_ns, as far as the rules let it. Returns the names of those that acted."""
        self._catch_up(tick_ns, duration_s)
        course = Course(self._profile.limits, duration_s, self.pose, measured.pose if measured else None, before, build_up_s)
        twist, rules = limit(wish, course)
        if self.pose is not None and twist.moving:
            if self.joints is not None:
                twist, rule = self._turn_joints(twist, kinematics, duration_s)
                rules += (rule,) if rule else ()
            self.pose = advanced(self.pose, twist, duration_s)
        self.twist = twist
        return rules

    def _turn_joints(self, wish: Twist, kinematics: Kinematics | None, duration_s: float) -> tuple[Twist, str]:
        """Move the joints with the hand, more slowly where they must and not at all where they cannot. Returns what they make of the wish,
        and the rule that was in the way of all of it, or ""."""
        assert kinematics is not None and self.pose is not None and self.joints is not None, "joints were measured with it"
        first = ""
        for share in SLOWER:
            twist = Twist(wish.linear_m_s * share, wish.angular_rad_s * share) if share < 1.0 else wish
            solution = kinematics.inverse(advanced(self.pose, twist, duration_s), self.joints, kinematics.limits.velocity * duration_s)
            first = first or solution.rule
            if solution.reached:
                self.joints = solution.positions
                return twist, first
            if solution.rule not in TOO_FAST:
                break
        return ZERO, first

    def _catch_up(self, tick_ns: int, duration_s: float) -> None:
        """Ticks are never on time. What was sent last holds until this one, so the target goes on with it, or back if this one is early.

        By a tick at most: an arm that heard nothing for longer has stopped by itself.
        """
        if self.pose is not None and self._until_ns is not None and self.twist.moving:
            late_s = min(duration_s, max(-duration_s, (tick_ns - self._until_ns) / SECOND_NS))
            here, there = self.pose, advanced(self.pose, self.twist, late_s)
            box, here_m = self._profile.limits.box, here.position_m
            inside_m = np.clip(there.position_m, np.minimum(box.low_m, here_m), np.maximum(box.high_m, here_m))
            self.pose = Pose(inside_m, there.rotation)
        self._until_ns = tick_ns + round(duration_s * SECOND_NS)

    def path(self, first_s: float, duration_s: float, spacing_s: float, kinematics: Kinematics | None,
             ) -> tuple[tuple[float, FloatArray], ...]:
        """Where the joints are to be at `first_s`, when this tick ends, and on until `duration_s` from now if the velocity stays:
        (seconds from now, positions), `spacing_s` apart or more but for the last. It ends where the box or the joints do."""
        if self.joints is None or self.pose is None or kinematics is None:
            return ()
        left_s = duration_s - first_s
        points, pose, joints = [(first_s, self.joints)], self.pose, self.joints
        if left_s <= 0.0:
            return tuple(points)
        count = max(1, int(left_s / spacing_s + 1e-9))
        twist, _ = limit(self.twist, Course(self._profile.limits, left_s, pose, None, self.twist, left_s))
        for number in range(1, count + 1):
            later = advanced(pose, twist, left_s * number / count)
            solution = kinematics.inverse(later, joints, kinematics.limits.velocity * (left_s / count))
            if not solution.reached:
                break
            joints = solution.positions
            points.append((first_s + left_s * number / count, joints))
        return tuple(points)

    def rest(self) -> None:
        """No velocity any more; all else stays."""
        self.twist = ZERO

    def open(self, wish: float, elapsed_s: float) -> None:
        """Bring the gripper nearer to a wished opening. NaN and infinity are no wish."""
        if np.isfinite(wish):
            self.gripper = opened(self.gripper, wish, elapsed_s)

    def ahead_of(self, measured: Measured | None) -> bool:
        """The target is as far ahead of the arm as it may be."""
        if self.pose is None or measured is None:
            return False
        apart_m, apart_rad = distance(measured.pose, self.pose)
        limits = self._profile.limits
        return apart_m >= 0.99 * limits.max_lead_m or apart_rad >= 0.99 * limits.max_lead_rad
