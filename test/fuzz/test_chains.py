"""The two safety chains against numbers that nobody expects: what leaves is finite and inside every limit, or it is a stop.

`make test` puts single inputs, which hypothesis can shrink, through the very functions that command_node's pilot calls. `make fuzz`
puts millions through a twin of them that works on rows at once; the first of its tests proves the twin equal to the product on rows
out of the same source. hypothesis draws seeds and special numbers, numpy fills the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from openvla_ros.action.command import Twist, rotation_vector
from openvla_ros.action.safety import ABSURD, ROUNDING, Course, Situation, judge, limit
from openvla_ros.contract import Action, FloatArray, Pose
from openvla_ros.errors import ActionError
from openvla_ros.robot import Limits

MAX_AGE_S, PERIOD_S, STEP_S = 0.6, 1 / 30, 0.2
SLACK = 1.0 + 2e-9
"""What rounding is allowed beside a limit, as the rules themselves allow it."""

ROWS, SEEDS = 20_000, 60
"""Rows of one seed; seeds of one test. 1.2 million rows each."""

bulk = settings(max_examples=SEEDS, deadline=None, suppress_health_check=list(HealthCheck), database=None)
single = settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
seeds = st.integers(0, 2**32 - 1)
specials = st.lists(st.floats(), min_size=1, max_size=5)
anything = st.floats(width=64) | st.sampled_from([0.05, 0.25, 1.0, 1e308, 5e-324, float("nan"), float("inf")]) | st.floats(-1, 1)
velocities = st.lists(anything, min_size=3, max_size=3).map(np.array)
near_limits = st.lists(st.floats(-2, 2), min_size=3, max_size=3).map(np.array)


# ---------------------------------------------------------------------- the twin: the chains on rows


@dataclass
class Judged:
    """What the step chain says to rows: the actions [n, 7], which of them stop the arm [n], and where a rule acted [n]."""

    rows: FloatArray
    stops: Any
    acted: dict[str, Any]


def norms(vectors: FloatArray) -> FloatArray:
    """[n]; infinite only where the length itself is. NaN for vectors that are not finite."""
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    safe = np.where(largest > 0.0, largest, 1.0)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.linalg.norm(vectors / safe, axis=1) * safe[:, 0]


def shorten_rows(vectors: FloatArray, longest: Any) -> tuple[FloatArray, Any]:
    longest = np.broadcast_to(longest, len(vectors))
    over = norms(vectors) > longest
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    unit = vectors / np.where(over[:, None], largest, 1.0)
    length = np.where(over, norms(unit), 1.0)
    return np.where(over[:, None], unit * (longest / length)[:, None], vectors), over


def angles_rows(rpy: FloatArray) -> FloatArray:
    """[n] the angle that each roll, pitch, yaw makes together."""
    angles, several = norms(rpy), np.count_nonzero(rpy, axis=1) > 1
    if several.any():
        angles[several] = norms(Rotation.from_euler("xyz", rpy[several]).as_rotvec())
    return angles


def judge_rows(rows: FloatArray, age_s: FloatArray, limits: Limits) -> Judged:
    finite = np.isfinite(rows).all(axis=1)
    fresh = (age_s >= 0.0) & (age_s <= MAX_AGE_S)
    rows = np.where(finite[:, None], rows, 0.0)
    move, far = shorten_rows(rows[:, :3], limits.max_step_m)
    turn, wide = shorten_rows(rows[:, 3:6], limits.max_step_rad)
    angle = angles_rows(turn)
    over = angle > limits.max_step_rad * (1.0 + 1e-13)
    wide |= over
    while over.any():
        turn[over] *= (limits.max_step_rad / angle[over])[:, None]
        angle[over] = angles_rows(turn[over])
        over = angle > limits.max_step_rad * (1.0 + 1e-13)
    opening = np.clip(rows[:, 6], 0.0, 1.0)
    goes = finite & fresh
    return Judged(np.column_stack([move, turn, opening]), ~goes, {
        "finite": ~finite, "age": finite & ~fresh, "step_clamp_translation": goes & far, "step_clamp_rotation": goes & wide,
        "gripper": goes & (opening != rows[:, 6])})


@dataclass
class Rows:
    """Motions of one tick: wished and former velocities [n, 3] each, and where the target is [n, 3]."""

    linear: FloatArray
    angular: FloatArray
    before_linear: FloatArray
    before_angular: FloatArray
    position: FloatArray


def limit_rows(rows: Rows, limits: Limits, build_up_s: float) -> tuple[FloatArray, FloatArray]:
    """finite, workspace, speed, acceleration, with a target and without a measured pose. [n, 3] linear and angular velocity."""
    with np.errstate(invalid="ignore", over="ignore"):
        sane = np.maximum(np.abs(rows.linear).max(axis=1), np.abs(rows.angular).max(axis=1)) <= ABSURD
    linear, angular = np.where(sane[:, None], rows.linear, 0.0), np.where(sane[:, None], rows.angular, 0.0)
    low, high = np.array(limits.box.low_m), np.array(limits.box.high_m)
    below, above = rows.position < low - ROUNDING, rows.position > high + ROUNDING
    outside = (below | above).any(axis=1)
    back = np.where(below, np.maximum(linear, 0.0), 0.0) + np.where(above, np.minimum(linear, 0.0), 0.0)
    room = (np.clip(rows.position + linear * PERIOD_S, low, high) - rows.position) / PERIOD_S
    inside = np.where(np.abs(room - linear) * PERIOD_S <= ROUNDING, linear, room)
    linear = np.where(outside[:, None], within_rows(back, 0.5 * limits.max_speed_m_s), inside)
    angular = np.where(outside[:, None], 0.0, angular)
    linear, angular = within_rows(linear, limits.max_speed_m_s), within_rows(angular, limits.max_speed_rad_s)
    return (built_up_rows(linear, rows.before_linear, limits.max_acceleration_m_s2 * build_up_s),
            built_up_rows(angular, rows.before_angular, limits.max_acceleration_rad_s2 * build_up_s))


def within_rows(velocities: FloatArray, fastest: float) -> FloatArray:
    over = norms(velocities) > fastest * (1.0 + ROUNDING)
    return np.where(over[:, None], shorten_rows(velocities, fastest)[0], velocities)


def built_up_rows(velocities: FloatArray, before: FloatArray, change: float) -> FloatArray:
    fits = (norms(velocities - before) <= change + ROUNDING) | ~velocities.any(axis=1)
    a, b = (velocities**2).sum(axis=1), -(velocities * before).sum(axis=1)
    root = b * b - a * ((before**2).sum(axis=1) - change**2)
    none = (a == 0.0) | (root < 0.0)
    share = np.clip((-b + np.sqrt(np.where(none, 0.0, root))) / np.where(none, 1.0, a), -np.inf, 1.0)
    share = np.where(none, 0.0, share)
    partial = (share > 0.0) | (norms(before) <= change)
    unit = velocities / np.where(fits, 1.0, norms(velocities))[:, None]
    nearest = shorten_rows(velocities, np.maximum(0.0, (unit * before).sum(axis=1)))[0]
    return np.where(fits[:, None], velocities, np.where(partial[:, None], velocities * share[:, None], nearest))


def draw_motions(draw_rows: Any, seed: int, special: list[float], count: int, limits: Limits) -> Rows:
    """Wishes of any size; former velocities are such as were sent, for they come from here; targets in and around the box."""
    random = np.random.default_rng(seed + 1)
    low, high = np.array(limits.box.low_m), np.array(limits.box.high_m)
    position = low + random.random((count, 3)) * (high - low)
    edge = random.random((count, 3))
    position = np.where(edge < 0.1, low, np.where(edge > 0.9, high, position)) + (
        random.normal(size=(count, 3)) * 0.02 * (random.random((count, 1)) < 0.1))
    with np.errstate(invalid="ignore"):
        before_linear, before_angular = (
            shorten_rows(draw_rows(seed + number, [0.0], count, 3, size), size)[0]
            for number, size in ((2, limits.max_speed_m_s), (3, limits.max_speed_rad_s)))
    finite = np.isfinite(before_linear).all(axis=1) & np.isfinite(before_angular).all(axis=1)
    linear, angular = (draw_rows(seed + number, special, count, 3, size)
                       for number, size in ((4, limits.max_speed_m_s), (5, limits.max_speed_rad_s)))
    return Rows(linear, angular,
                np.where(finite[:, None], before_linear, 0.0), np.where(finite[:, None], before_angular, 0.0), position)


# ---------------------------------------------------------------------- make fuzz


def draw_ages(seed: int, special: list[float], count: int) -> FloatArray:
    """Seconds since the observation, and what is left of them when a clock jumps."""
    random = np.random.default_rng(seed + 9)
    odd = [0.0, -5e-324, MAX_AGE_S, np.nextafter(MAX_AGE_S, 1.0), -1.0, 1e9, -1e9, np.nan, np.inf]
    jumps = random.choice(np.concatenate([odd, special]), size=count)
    return np.where(random.random(count) < 0.1, jumps, random.random(count) * 2.0 * MAX_AGE_S)


@pytest.mark.fuzz
@settings(bulk, max_examples=3)
@given(seed=seeds, special=specials)
def test_the_twin_is_the_product(limits: Limits, draw_rows: Any, seed: int, special: list[float]) -> None:
    count = 1500
    rows, age_s = draw_rows(seed, special, count, 7, 0.1), draw_ages(seed, special, count)
    twin = judge_rows(rows, age_s, limits)
    for index, row in enumerate(rows):
        verdict = judge(Action.from_vector(row), Situation(float(age_s[index]), MAX_AGE_S, limits))
        assert (verdict.action is None) == twin.stops[index], row
        if verdict.action is not None:
            np.testing.assert_allclose(verdict.action.to_vector(), twin.rows[index], rtol=1e-12, atol=1e-300)
        names = {name for name, acted in twin.acted.items() if acted[index]}
        edge = min(abs(norms(row[None, :3])[0] - limits.max_step_m), abs(norms(row[None, 3:6])[0] - limits.max_step_rad))
        assert set(verdict.rules) == names or edge < 1e-12, row

    motions = draw_motions(draw_rows, seed, special, count, limits)
    for build_up_s in (PERIOD_S, STEP_S):
        linear, angular = limit_rows(motions, limits, build_up_s)
        for index in range(count):
            twist, _ = limit(Twist(motions.linear[index].copy(), motions.angular[index].copy()), Course(
                limits, PERIOD_S, Pose(motions.position[index], np.eye(3)), None,
                Twist(motions.before_linear[index].copy(), motions.before_angular[index].copy()), build_up_s))
            np.testing.assert_allclose(twist.linear_m_s, linear[index], rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(twist.angular_rad_s, angular[index], rtol=1e-9, atol=1e-9)


@pytest.mark.fuzz
@bulk
@given(seed=seeds, special=specials)
def test_a_million_steps(limits: Limits, draw_rows: Any, seed: int, special: list[float]) -> None:
    rows, age_s = draw_rows(seed, special, ROWS, 7, 0.1), draw_ages(seed, special, ROWS)
    with np.errstate(all="ignore"):
        judged = judge_rows(rows, age_s, limits)
        again = judge_rows(judged.rows, np.zeros(ROWS), limits)
    goes = ~judged.stops
    out, asked = judged.rows[goes], rows[goes]
    assert goes.any() and judged.stops.any()
    assert (judged.stops == ~(np.isfinite(rows).all(axis=1) & (age_s >= 0.0) & (age_s <= MAX_AGE_S))).all()
    assert np.isfinite(out).all()
    assert (norms(out[:, :3]) <= limits.max_step_m * SLACK).all() and (norms(out[:, 3:6]) <= limits.max_step_rad * SLACK).all()
    assert (angles_rows(out[:, 3:6]) <= limits.max_step_rad * SLACK).all()
    assert ((out[:, 6] >= 0.0) & (out[:, 6] <= 1.0)).all()
    assert np.abs(again.rows[goes] - out).max() <= 1e-12, "clamped twice"
    for part in (slice(0, 3), slice(3, 6)):
        keeps_direction(asked[:, part], out[:, part])


def keeps_direction(asked: FloatArray, sent: FloatArray) -> None:
    """What was made less of points where it pointed, and is not longer."""
    assert (norms(sent) / (1.0 + 1e-12) <= norms(asked)).all()
    largest = [np.abs(vectors).max(axis=1) for vectors in (asked, sent)]
    there = np.minimum(*largest) > 1e-300  # nothing that is so small has a direction
    one, other = (vectors[there] / size[there, None] for vectors, size in zip((asked, sent), largest, strict=True))
    np.testing.assert_allclose(other, one, atol=1e-9)  # each is as long as its largest number


@pytest.mark.fuzz
@bulk
@given(seed=seeds, special=specials)
def test_a_million_motions(limits: Limits, draw_rows: Any, seed: int, special: list[float]) -> None:
    motions = draw_motions(draw_rows, seed, special, ROWS, limits)
    for build_up_s in (PERIOD_S, STEP_S):
        linear, angular = limit_rows(motions, limits, build_up_s)
        twice = limit_rows(Rows(linear, angular, motions.before_linear, motions.before_angular, motions.position), limits, build_up_s)
        assert np.isfinite(linear).all() and np.isfinite(angular).all()
        assert (norms(linear) <= limits.max_speed_m_s * SLACK).all() and (norms(angular) <= limits.max_speed_rad_s * SLACK).all()
        for sent, before, most in ((linear, motions.before_linear, limits.max_acceleration_m_s2),
                                   (angular, motions.before_angular, limits.max_acceleration_rad_s2)):
            slower = norms(sent) <= norms(before) * SLACK + ROUNDING
            assert ((norms(sent - before) <= most * build_up_s + 1e-8) | slower).all(), "builds up too fast"
        low, high = np.array(limits.box.low_m), np.array(limits.box.high_m)
        after = motions.position + linear * PERIOD_S
        beyond = np.maximum(np.maximum(low - after, after - high), 0.0)
        beyond_before = np.maximum(np.maximum(low - motions.position, motions.position - high), 0.0)
        assert (beyond <= beyond_before + 2 * ROUNDING).all(), "leaves the box, or goes further out of it"
        assert np.abs(twice[0] - linear).max() <= 1e-12 and np.abs(twice[1] - angular).max() <= 1e-12, "limited twice"


# ---------------------------------------------------------------------- make test: the product itself, one input at a time


@single
@given(vector=st.lists(anything, min_size=7, max_size=7), age_s=anything)
def test_any_step_leaves_within_the_limits_or_stops(limits: Limits, vector: list[float], age_s: float) -> None:
    action = Action.from_vector(vector)
    verdict = judge(action, Situation(age_s, MAX_AGE_S, limits))
    assert (verdict.action is None) == (not np.isfinite(vector).all() or not 0.0 <= age_s <= MAX_AGE_S)
    if verdict.action is None:
        assert verdict.reason and verdict.rules
        return
    out = verdict.action
    assert np.isfinite(out.to_vector()).all() and 0.0 <= out.gripper <= 1.0
    assert np.linalg.norm(out.translation_m) <= limits.max_step_m * SLACK
    assert max(np.linalg.norm(out.rotation_rad), np.linalg.norm(rotation_vector(out.rotation_rad))) <= limits.max_step_rad * SLACK
    keeps_direction(action.translation_m[None], out.translation_m[None])
    keeps_direction(action.rotation_rad[None], out.rotation_rad[None])
    again = judge(out, Situation(0.0, MAX_AGE_S, limits))
    assert again.action is not None and np.abs(again.action.to_vector() - out.to_vector()).max() <= 1e-12


@single
@given(vector=st.lists(anything, max_size=12).filter(lambda vector: len(vector) != 7))
def test_a_step_of_another_length_is_refused(vector: list[float]) -> None:
    with pytest.raises(ActionError, match="expected \\[7\\]"):
        Action.from_vector(vector)


@single
@given(linear=velocities, angular=velocities, before=near_limits, turning=near_limits, position=near_limits, lag=near_limits,
       build_up_s=st.sampled_from([PERIOD_S, STEP_S]))
def test_any_motion_leaves_within_the_limits(limits: Limits, linear: FloatArray, angular: FloatArray, before: FloatArray,
                                             turning: FloatArray, position: FloatArray, lag: FloatArray, build_up_s: float) -> None:
    """With a measured pose that lags behind: the lead too, which the twin leaves out."""
    target = Pose(position * 0.3, np.eye(3))
    measured = Pose(target.position_m - 0.1 * lag, Rotation.from_rotvec(0.5 * lag).as_matrix())
    former = Twist(shorten_rows(before[None], limits.max_speed_m_s)[0][0], shorten_rows(turning[None], limits.max_speed_rad_s)[0][0])
    course = Course(limits, PERIOD_S, target, measured, former, build_up_s)
    twist, rules = limit(Twist(linear.copy(), angular.copy()), course)
    assert np.isfinite(twist.linear_m_s).all() and np.isfinite(twist.angular_rad_s).all()
    assert np.linalg.norm(twist.linear_m_s) <= limits.max_speed_m_s * SLACK
    assert np.linalg.norm(twist.angular_rad_s) <= limits.max_speed_rad_s * SLACK
    after = target.position_m + twist.linear_m_s * PERIOD_S
    lead_before, lead_after = (np.linalg.norm(place - measured.position_m) for place in (target.position_m, after))
    inside = all(low <= value <= high for low, value, high in zip(limits.box.low_m, target.position_m, limits.box.high_m, strict=True))
    if inside:  # from outside, the way back into the box goes before the lead
        assert lead_after <= max(limits.max_lead_m, lead_before) + 2 * ROUNDING
        assert all(low - 2 * ROUNDING <= value <= high + 2 * ROUNDING for low, value, high in
                   zip(limits.box.low_m, after, limits.box.high_m, strict=True))
    if not np.isfinite(np.concatenate([linear, angular])).all():
        assert "finite" in rules and not twist.moving
