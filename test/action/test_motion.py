"""The chain of a motion: lead, workspace, speed, acceleration, each with numbers, and what holds for any float."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from openvla_ros.action.command import ZERO, Twist, advanced
from openvla_ros.action.pose import distance, from_rpy
from openvla_ros.action.safety import MOTION_CHAIN, Course, limit, opened, outside
from openvla_ros.contract import Pose
from openvla_ros.robot import Box, Limits

LIMITS = Limits(0.05, 0.25, 0.25, 1.25, 2.5, 12.0, 0.06, 0.3, Box((0.1, 0.45), (-0.2, 0.25), (-0.01, 0.3)))
TICK_S = 1 / 30


def at(x: float, y: float = 0.0, z: float = 0.15, rpy: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Pose:
    return from_rpy(np.array([x, y, z]), np.array(rpy))


def twist(*numbers: float) -> Twist:
    values = np.array([*numbers, *[0.0] * (6 - len(numbers))])
    return Twist(values[:3].copy(), values[3:].copy())


def course(target: Pose | None = None, measured: Pose | None = None, before: Twist = ZERO, duration_s: float = TICK_S,
           build_up_s: float = 0.2) -> Course:
    return Course(LIMITS, duration_s, target, measured, before, build_up_s)


def test_the_order_of_the_rules() -> None:
    assert [name for name, _ in MOTION_CHAIN] == ["finite", "lead", "workspace", "speed", "acceleration"]


def test_what_is_inside_every_limit_is_untouched() -> None:
    wish = twist(0.15, 0.0, -0.2, 0.0, 1.25)
    assert limit(wish, course(at(0.3), at(0.28), wish)) == (wish, ())


def test_rules_that_need_the_pose_are_left_out_only_without_one() -> None:
    assert limit(twist(0.25), course())[1] == ()
    assert limit(twist(0.25), course(at(0.45), None, twist(0.25)))[1] == ("workspace",)


# ---------------------------------------------------------------------- lead


def test_the_target_leads_by_at_most_six_centimetres() -> None:
    allowed, rules = limit(twist(0.25), course(at(0.355), at(0.3), twist(0.25)))
    assert rules == ("lead",) and allowed.linear_m_s == pytest.approx([0.005 * 30, 0, 0])
    diagonal, rules = limit(twist(0.2, 0.15), course(at(0.355), at(0.3), twist(0.2, 0.15)))
    assert rules == ("lead",) and diagonal.linear_m_s[0] / diagonal.linear_m_s[1] == pytest.approx(4 / 3), "direction kept"
    assert np.linalg.norm([0.055 + diagonal.linear_m_s[0] * TICK_S, diagonal.linear_m_s[1] * TICK_S]) == pytest.approx(0.06)


def test_beyond_the_lead_only_what_does_not_make_it_longer_passes() -> None:
    behind = course(at(0.4), at(0.3), twist(-0.2))
    assert limit(back := twist(-0.2), behind) == (back, ())
    assert not limit(twist(0.01), behind)[0].moving


def test_the_rotation_leads_by_at_most_three_tenths_of_a_radian() -> None:
    ahead = at(0.3, rpy=(0.0, 0.0, 0.28))
    allowed, rules = limit(twist(0, 0, 0, 0, 0, 1.25), course(ahead, at(0.3), twist(0, 0, 0, 0, 0, 1.25)))
    assert rules == ("lead",) and allowed.angular_rad_s[2] == pytest.approx(0.02 * 30, rel=1e-4)
    assert limit(twist(0, 0, 0, 0, 0, -1.25), course(ahead, at(0.3), twist(0, 0, 0, 0, 0, -1.25)))[1] == ()


# ---------------------------------------------------------------------- workspace


def test_a_wall_stops_what_leads_out_and_lets_the_rest_slide() -> None:
    allowed, rules = limit(twist(0.15, 0.1, 0.0, 0.0, 0.5), course(at(0.448), at(0.448), twist(0.15, 0.1)))
    assert rules == ("workspace",)
    assert allowed.linear_m_s == pytest.approx([0.002 * 30, 0.1, 0.0]) and allowed.angular_rad_s[1] == 0.5
    assert limit(twist(-0.15), course(at(0.45), at(0.45)))[1] == ()


@pytest.mark.parametrize(("wish", "passes"), [
    ((0.0, 0.0, 0.25), (0.0, 0.0, 0.125)), ((0.0, 0.0, 0.1), (0.0, 0.0, 0.1)), ((0.0, 0.0, -0.1), (0, 0, 0)),
    ((0.1, 0.2, 0.1), (0.0, 0.0, 0.1)), ((0.0, 0.0, 0.0, 1.0, 0.0, 0.0), (0, 0, 0))])
def test_outside_only_what_leads_back_passes_at_half_the_top_speed(wish: tuple[float, ...], passes: tuple[float, ...]) -> None:
    below = at(0.3, 0.0, -0.05)
    allowed, rules = limit(twist(*wish), course(below, below, twist(*wish)))
    assert allowed.linear_m_s == pytest.approx(passes) and not allowed.angular_rad_s.any()
    assert (rules == ("workspace",)) is (wish != (0.0, 0.0, 0.1))


def test_outside_is_said_in_words() -> None:
    assert outside(at(0.3), LIMITS) == "" == outside(at(0.45, 0.25, -0.01), LIMITS)
    assert outside(at(0.05, 0.0, 0.4), LIMITS) == "x is 0.050 m, allowed 0.1 to 0.45, z is 0.400 m, allowed -0.01 to 0.3"


# ---------------------------------------------------------------------- speed and acceleration


def test_speed_keeps_direction_and_translation_and_rotation_apart() -> None:
    allowed, rules = limit(twist(0.3, 0.4, 0.0, 1.0), course(before=twist(0.15, 0.2, 0.0, 1.0)))
    assert rules == ("speed",) and allowed.linear_m_s == pytest.approx([0.15, 0.2, 0.0]) and allowed.angular_rad_s[0] == 1.0


def test_a_reversal_at_full_speed_just_fits_into_a_step() -> None:
    """2.5 m/s^2 in 0.2 s are 0.5 m/s: from 0.25 to -0.25. 12 rad/s^2 are 2.4 rad/s: not quite from 1.25 to -1.25."""
    assert limit(twist(-0.25), course(before=twist(0.25)))[1] == ()
    allowed, rules = limit(twist(0, 0, 0, -1.25), course(before=twist(0, 0, 0, 1.25)))
    assert rules == ("acceleration",) and allowed.angular_rad_s == pytest.approx([-1.15, 0, 0])
    allowed, rules = limit(twist(-0.25), course(before=twist(0.25), build_up_s=0.15))
    assert rules == ("acceleration",) and allowed.linear_m_s == pytest.approx([-0.125, 0, 0])


def test_a_tick_lets_velocity_build_up_by_a_twelfth_of_a_metre_per_second() -> None:
    allowed, rules = limit(twist(0.2), course(build_up_s=TICK_S))
    assert rules == ("acceleration",) and allowed.linear_m_s == pytest.approx([2.5 / 30, 0, 0])
    assert limit(ZERO, course(before=twist(0.25), build_up_s=TICK_S)) == (ZERO, ()), "slowing down is never forbidden"


# ---------------------------------------------------------------------- gripper


def test_the_gripper_takes_half_a_second_for_its_whole_way() -> None:
    opening = 0.0
    for _ in range(15):
        assert opening < 1.0
        opening = opened(opening, 1.0, TICK_S)
    assert opening == pytest.approx(1.0) and opened(1.0, 0.0, 0.2) == pytest.approx(0.6)
    assert opened(None, 1.0187, TICK_S) == 1.0 and opened(0.5, -7.0, 10.0) == 0.0 and opened(0.3, 0.31, TICK_S) == 0.31


# ---------------------------------------------------------------------- any float

ANY = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)
PLACE = st.tuples(st.floats(-0.1, 0.7), st.floats(-0.4, 0.4), st.floats(-0.2, 0.5))
TURN = st.tuples(*[st.floats(-1.0, 1.0)] * 3)
SPEED = st.tuples(*[st.floats(-0.14, 0.14)] * 3, *[st.floats(-0.7, 0.7)] * 3)


@settings(max_examples=2000, deadline=None)
@given(st.lists(ANY, min_size=6, max_size=6), PLACE, TURN, PLACE, TURN, SPEED, st.sampled_from([1 / 200, 1 / 30, 0.2]))
def test_any_motion_is_inside_every_limit_or_none(wish: list[float], place: tuple[float, ...], turn: tuple[float, float, float],
                                                   seen: tuple[float, ...], seen_turn: tuple[float, float, float],
                                                   before: tuple[float, ...], build_up_s: float) -> None:
    target, measured = at(*place, rpy=turn), at(*seen, rpy=seen_turn)
    now = course(target, measured, twist(*before), 1 / 30, build_up_s)
    allowed, rules = limit(twist(*wish), now)
    speed_m_s, speed_rad_s = math.hypot(*allowed.linear_m_s), math.hypot(*allowed.angular_rad_s)
    assert speed_m_s <= 0.25 * (1 + 1e-8) and speed_rad_s <= 1.25 * (1 + 1e-8)  # and so no NaN
    for change, most, here, was in (
            (allowed.linear_m_s - before[:3], 2.5 * build_up_s, speed_m_s, math.hypot(*before[:3])),
            (allowed.angular_rad_s - before[3:], 12.0 * build_up_s, speed_rad_s, math.hypot(*before[3:]))):
        assert math.hypot(*change) <= most + 1e-8 or here <= was + 1e-12
    after = advanced(target, allowed, 1 / 30)
    ahead, was_ahead = distance(measured, after), distance(measured, target)
    assert ahead[0] <= max(0.06, was_ahead[0]) + 1e-8 and ahead[1] <= max(0.3, was_ahead[1]) + 1e-8
    violation, before_violation = beyond(after), beyond(target)
    assert (violation <= before_violation + 1e-8).all(), "nothing leaves the box, and outside nothing goes further"
    if before_violation.any():
        assert speed_m_s <= 0.125 * (1 + 1e-8) and speed_rad_s == 0.0
    if not np.isfinite(wish).all():
        assert allowed is ZERO or not allowed.moving
    if allowed.moving:
        again, _ = limit(allowed, now)
        assert np.abs(again.linear_m_s - allowed.linear_m_s).max() <= 1e-9
        assert np.abs(again.angular_rad_s - allowed.angular_rad_s).max() <= 1e-5  # the lead of a turn is found to a millionth
    assert len(rules) == len(set(rules))


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.floats(-1e300, 1e300), min_size=6, max_size=6), SPEED)
def test_speed_and_acceleration_keep_the_direction(wish: list[float], before: tuple[float, ...]) -> None:
    asked = twist(*(math.copysign(min(abs(value), 900.0), value) for value in wish))
    allowed, _ = limit(asked, course(before=twist(*before)))
    again, _ = limit(allowed, course(before=twist(*before)))
    assert np.abs(np.concatenate([again.linear_m_s - allowed.linear_m_s, again.angular_rad_s - allowed.angular_rad_s])).max() <= 1e-12
    for one, other in ((asked.linear_m_s, allowed.linear_m_s), (asked.angular_rad_s, allowed.angular_rad_s)):
        if math.hypot(*one) > 1e-6:
            assert np.abs(other - one * (math.hypot(*other) / math.hypot(*one))).max() <= 1e-9


def beyond(pose: Pose) -> np.ndarray:
    low, high = np.array(LIMITS.box.low_m), np.array(LIMITS.box.high_m)
    return np.maximum(low - pose.position_m, 0.0) + np.maximum(pose.position_m - high, 0.0) * (pose.position_m > high + 1e-9)


def test_the_rotation_of_a_motion_goes_about_base_axes() -> None:
    start = at(0.3, rpy=(0.3, 1.2, -0.4))
    after = advanced(start, twist(0, 0, 0, 0, 0, 1.0), 0.1)
    assert after.rotation == pytest.approx(Rotation.from_euler("z", 0.1).as_matrix() @ start.rotation)
