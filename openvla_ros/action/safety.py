"""The rules between whoever drives and an arm: pure, in a fixed order, fail closed.

Two chains, one after the other. STEP_CHAIN judges a step of a policy: Action in, Verdict out. MOTION_CHAIN limits what the arm does
in the coming tick, whoever asked for it: Twist in, Twist out. A rule passes, makes less of it, or stops the arm; every rule that
acted is named, so that it can be counted and reported. Applying a chain twice changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from openvla_ros.action.command import ZERO, Twist, advanced, rotation_vector, shorten
from openvla_ros.action.pose import distance
from openvla_ros.contract import Action, FloatArray, Pose, ReceivedChunk
from openvla_ros.robot import Limits

MAX_STEPS = 256
"""Longest chunk that is taken. Known policies send 1 to 64 steps; more is a broken sender."""

GRIPPER_PER_S = 2.0
"""How fast an opening may change: from closed to open in half a second."""

ABSURD = 1e3
"""Faster than this [m/s, rad/s] nobody means. It also keeps the arithmetic of the rules far from overflow."""

ROUNDING = 1e-9
"""What lies this little [m, rad] beyond a limit is on it."""


# ---------------------------------------------------------------------- a step of a policy


@dataclass(frozen=True)
class Situation:
    """What the rules look at besides the step."""

    observation_age_s: float  # now minus the camera stamp, ROS clock
    max_observation_age_s: float
    limits: Limits


@dataclass(frozen=True)
class Verdict:
    """What may go to the arm. action None: stop, and `reason` says why. rules: names of those that acted, in order."""

    action: Action | None
    rules: tuple[str, ...] = ()
    reason: str = ""


Rule = Callable[[Action, Situation], Verdict]


def finite(action: Action, situation: Situation) -> Verdict:
    """No NaN, no infinity. Looks before anything is compared: comparisons let NaN through."""
    if not np.isfinite(action.to_vector()).all():
        return Verdict(None, ("finite",), f"action holds NaN or infinity: {action.to_vector().tolist()}")
    return Verdict(action)


def age(action: Action, situation: Situation) -> Verdict:
    """Old pictures move nothing. A stamp from the future stops too: a clock jumped, or two clocks disagree."""
    allowed_s = situation.max_observation_age_s
    if not 0.0 <= situation.observation_age_s <= allowed_s:
        return Verdict(None, ("age",), f"observation is {situation.observation_age_s:.3f} s old, allowed 0 to {allowed_s:g} s")
    return Verdict(action)


def step_clamp(action: Action, situation: Situation) -> Verdict:
    """Translation and rotation apart, each shortened as a vector, so that the direction is kept.

    The original Bridge robot cuts each axis by itself, which bends the direction and lets a diagonal be 1.7 times longer. A rotation
    is cut until both the norm of its rpy and the angle that they make together are small enough; they differ by up to 3 %.
    """
    longest_rad = situation.limits.max_step_rad
    translation_m = shorten(action.translation_m, situation.limits.max_step_m)
    rotation_rad = shorten(action.rotation_rad, longest_rad)
    while (angle_rad := math.hypot(*rotation_vector(rotation_rad))) > longest_rad * (1.0 + 1e-13):  # two or three rounds
        rotation_rad = rotation_rad * (longest_rad / angle_rad)
    rules = (("step_clamp_translation",) if translation_m is not action.translation_m else ()) + (
        ("step_clamp_rotation",) if rotation_rad is not action.rotation_rad else ())
    return Verdict(Action(translation_m, rotation_rad, action.gripper) if rules else action, rules)


def gripper(action: Action, situation: Situation) -> Verdict:
    """0 closed .. 1 open. Real data overshoots a little (1.0187 in BridgeData), so it is cut, not refused."""
    opening = min(1.0, max(0.0, action.gripper))
    if opening == action.gripper:
        return Verdict(action)
    return Verdict(Action(action.translation_m, action.rotation_rad, opening), ("gripper",))


STEP_CHAIN: tuple[Rule, ...] = (finite, age, step_clamp, gripper)
"""In the order they act. A new rule is a function above and a word here."""


def judge(action: Action, situation: Situation) -> Verdict:
    """Run the chain of a step. The first stop ends it."""
    rules: tuple[str, ...] = ()
    for rule in STEP_CHAIN:
        verdict = rule(action, situation)
        rules += verdict.rules
        if verdict.action is None:
            return Verdict(None, rules, verdict.reason)
        action = verdict.action
    return Verdict(action, rules)


# ---------------------------------------------------------------------- the motion of a tick


@dataclass(frozen=True)
class Course:
    """What the rules look at besides the motion. target, measured None: the profile has no joint states; such rules are left out."""

    limits: Limits
    duration_s: float  # for how long the motion goes on
    target: Pose | None  # the last that was sent
    measured: Pose | None
    before: Twist  # the velocity that this one follows: of the step before, or of the tick before
    build_up_s: float  # the time that a change of velocity may take: the step's duration, or the tick's


MotionRule = Callable[[Twist, Course], Twist]


def finite_motion(twist: Twist, course: Course) -> Twist:
    """NaN, infinity, and numbers that are no velocity of any arm, are no motion."""
    small = (np.abs(twist.linear_m_s) <= ABSURD).all() and (np.abs(twist.angular_rad_s) <= ABSURD).all()  # NaN is not
    return twist if small else ZERO


def lead(twist: Twist, course: Course) -> Twist:
    """The target may be ahead of the measured pose only so far; what brings it nearer always passes."""
    if course.target is None or course.measured is None:
        return twist
    limits, after = course.limits, advanced(course.target, twist, course.duration_s)
    ahead_m, ahead_rad = distance(course.measured, after)
    now_m, now_rad = distance(course.measured, course.target)
    linear_m_s, angular_rad_s = twist.linear_m_s, twist.angular_rad_s
    if ahead_m > max(limits.max_lead_m, now_m) + ROUNDING:
        linear_m_s = linear_m_s * _share_within(
            course.target.position_m - course.measured.position_m, linear_m_s * course.duration_s, max(limits.max_lead_m, now_m))
    if ahead_rad > max(limits.max_lead_rad, now_rad) + ROUNDING:
        angular_rad_s = angular_rad_s * _share_of_turn(course, angular_rad_s, max(limits.max_lead_rad, now_rad))
    return _changed(twist, linear_m_s, angular_rad_s)


def workspace(twist: Twist, course: Course) -> Twist:
    """The box limits motion, not position: nothing leaves it, and from outside only what leads back passes, at half the top speed."""
    if course.target is None:
        return twist
    low_m, high_m = np.array(course.limits.box.low_m), np.array(course.limits.box.high_m)
    position_m = course.target.position_m
    below, above = position_m < low_m - ROUNDING, position_m > high_m + ROUNDING
    if (below | above).any():
        back_m_s = np.where(below, np.maximum(twist.linear_m_s, 0.0), 0.0) + np.where(above, np.minimum(twist.linear_m_s, 0.0), 0.0)
        return _changed(twist, _within(back_m_s, 0.5 * course.limits.max_speed_m_s), np.zeros(3))
    room_m_s = (np.clip(position_m + twist.linear_m_s * course.duration_s, low_m, high_m) - position_m) / course.duration_s
    stays = np.abs(room_m_s - twist.linear_m_s) * course.duration_s <= ROUNDING
    return _changed(twist, np.where(stays, twist.linear_m_s, room_m_s), twist.angular_rad_s)


def speed(twist: Twist, course: Course) -> Twist:
    """Translation and rotation apart, direction kept."""
    return _changed(twist, _within(twist.linear_m_s, course.limits.max_speed_m_s),
                    _within(twist.angular_rad_s, course.limits.max_speed_rad_s))


def acceleration(twist: Twist, course: Course) -> Twist:
    """Velocity builds up, and turns round, only so fast; direction kept. Slowing down is never forbidden: a wall may ask for it at once.

    A policy's step has its whole duration for the change: it is a displacement, played as one constant velocity, and its consumer
    smooths within it. A human's velocity has one tick.
    """
    limits = course.limits
    return _changed(twist, _built_up(twist.linear_m_s, course.before.linear_m_s, limits.max_acceleration_m_s2 * course.build_up_s),
                    _built_up(twist.angular_rad_s, course.before.angular_rad_s, limits.max_acceleration_rad_s2 * course.build_up_s))


MOTION_CHAIN: tuple[tuple[str, MotionRule], ...] = (
    ("finite", finite_motion), ("lead", lead), ("workspace", workspace), ("speed", speed), ("acceleration", acceleration))
"""In the order they act, by name. A new rule is a function above and a row here. Joint limits come after it, where joints are commanded:
inverse kinematics keeps them, and what it cannot reach is not moved to (`target.py`)."""


def limit(twist: Twist, course: Course) -> tuple[Twist, tuple[str, ...]]:
    """Run the chain of a motion: what may go to the arm, and the names of the rules that acted."""
    rules: tuple[str, ...] = ()
    for name, rule in MOTION_CHAIN:
        allowed = rule(twist, course)
        if allowed is not twist:
            rules += (name,)
        twist = allowed
    return twist, rules


def outside(pose: Pose, limits: Limits) -> str:
    """Where a pose is outside the box, in words, or empty."""
    return ", ".join(f"{axis} is {value:.3f} m, allowed {low:g} to {high:g}" for axis, value, low, high in
                     zip("xyz", pose.position_m, limits.box.low_m, limits.box.high_m, strict=True)
                     if not low - ROUNDING <= value <= high + ROUNDING)


def opened(opening: float | None, wish: float, elapsed_s: float) -> float:
    """The opening after so long on its way to a wish (finite): cut to 0..1 and at most GRIPPER_PER_S fast. None: it is not known yet."""
    wish = min(1.0, max(0.0, wish))
    if opening is None:
        return wish
    change = GRIPPER_PER_S * elapsed_s
    return opening + min(change, max(-change, wish - opening))


def _changed(twist: Twist, linear_m_s: FloatArray, angular_rad_s: FloatArray) -> Twist:
    """The same object when nothing changed, so that a rule that did not act is not named."""
    if np.array_equal(linear_m_s, twist.linear_m_s) and np.array_equal(angular_rad_s, twist.angular_rad_s):
        return twist
    return Twist(np.array(linear_m_s), np.array(angular_rad_s))


def _within(velocity: FloatArray, fastest: float) -> FloatArray:
    """Rounding of a tick's mean is not counted as too fast."""
    return shorten(velocity, fastest) if _norm(velocity) > fastest * (1.0 + ROUNDING) else velocity


def _norm(vector: FloatArray) -> float:
    return math.hypot(*vector)


def _built_up(velocity: FloatArray, before: FloatArray, change: float) -> FloatArray:
    """The longest part of `velocity` that is at most `change` from `before`, or, where none is, the part that is nearest to it."""
    if _norm(velocity - before) <= change + ROUNDING or not velocity.any():
        return velocity
    share = _share_within(-before, velocity, change)
    if share > 0.0 or _norm(before) <= change:
        return velocity * share
    unit = velocity / _norm(velocity)
    return shorten(velocity, max(0.0, float(unit @ before)))


def _share_within(start: FloatArray, move: FloatArray, longest: float) -> float:
    """The largest share 0..1 of a move that ends within `longest` of the origin; 0 where there is none."""
    a, b, c = float(move @ move), float(start @ move), float(start @ start) - longest**2
    root = b * b - a * c
    if a == 0.0 or root < 0.0:
        return 0.0
    return min(1.0, max(0.0, (-b + math.sqrt(root)) / a))


def _share_of_turn(course: Course, angular_rad_s: FloatArray, longest_rad: float) -> float:
    """The largest share 0..1 of a turn, to 1e-6, that keeps the target within `longest_rad` of the measured pose."""
    assert course.target is not None and course.measured is not None
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = 0.5 * (low + high)
        after = advanced(course.target, Twist(np.zeros(3), angular_rad_s * middle), course.duration_s)
        low, high = (middle, high) if distance(course.measured, after)[1] <= longest_rad else (low, middle)
    return low


# ---------------------------------------------------------------------- a chunk as a whole


@dataclass(frozen=True)
class Refusal:
    """Why a chunk is not taken, or the arm may not be moved: the rule's name and the reason with what to do."""

    rule: str
    reason: str


def refuse_content(received: ReceivedChunk, base_frame: str, limits: Limits) -> Refusal | None:
    """What is wrong with a chunk whenever it comes: such a chunk says that its sender is wrong, so the arm stops."""
    chunk, shortest_s = received.chunk, limits.shortest_step_s
    if received.frame_id != base_frame:
        return Refusal("frame", f"chunk is in frame {received.frame_id!r}, this arm takes {base_frame!r}. "
                                "Set base_frame to the same name in both nodes; no transform is looked up.")
    if len(chunk.steps) > MAX_STEPS:
        return Refusal("step_count", f"chunk has {len(chunk.steps)} steps, at most {MAX_STEPS} are taken")
    if chunk.step_s < shortest_s - 1e-6:
        return Refusal("step_duration", f"chunk has steps of {chunk.step_s:g} s; steps as large as this profile allows need "
                                        f"{shortest_s:g} s at its top speed. Lower max_step_m and max_step_rad for a faster policy.")
    bad = sum(not np.isfinite(step.to_vector()).all() for step in chunk.steps)
    if bad:
        return Refusal("finite", f"chunk {received.identity.sequence} holds NaN or infinity in {bad} of {len(chunk.steps)} steps")
    return None
