"""The points of a joint trajectory: played as joint_trajectory_controller plays them, with numbers for speed, end and stop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openvla_ros.action.trajectory import (
    APART_AT_REST_RAD,
    HORIZON_S,
    RELIEF_S,
    SAME_AT_REST_RAD,
    SAME_MOVING_RAD,
    SPACING_S,
    TOP_SPEED_RAD_S,
    LastGoal,
    LastMotion,
    TrajectoryPlanner,
    TrajectoryPoint,
)

TICK_S, STEP_S, WINDOW_S = 1 / 30, 0.2, 0.1
SPEED = np.array([1.0, -0.5])  # [rad/s] of a step


def ahead_of(start: np.ndarray, since_s: float, now_s: float) -> list[tuple[float, np.ndarray]]:
    """A step that began at since_s: at the ends of the ticks to come, and at its own end."""
    left_s = since_s + STEP_S - now_s
    ends = [*(TICK_S * number for number in range(1, 10) if TICK_S * number < left_s - 1e-9), left_s]
    return [(end_s, start + SPEED * (now_s + end_s - since_s)) for end_s in ends]


class Played:
    """Follows one trajectory after the other: cubic between the points, from where the one before had brought it."""

    def __init__(self, start: np.ndarray) -> None:
        self.knots = [(0.0, start, np.zeros(2))]

    def take(self, now_s: float, points: tuple[TrajectoryPoint, ...]) -> None:
        position, velocity = self.at(now_s)
        self.knots = [(now_s, position, velocity)] + [(now_s + point.time_s, point.positions, point.velocities) for point in points]

    def at(self, now_s: float) -> tuple[np.ndarray, np.ndarray]:
        for (t0, p0, v0), (t1, p1, v1) in zip(self.knots, self.knots[1:], strict=False):
            if t0 <= now_s < t1:
                span, u = t1 - t0, (now_s - t0) / (t1 - t0)
                h = [2 * u**3 - 3 * u**2 + 1, u**3 - 2 * u**2 + u, -2 * u**3 + 3 * u**2, u**3 - u**2]
                d = [6 * u**2 - 6 * u, 3 * u**2 - 4 * u + 1, -6 * u**2 + 6 * u, 3 * u**2 - 2 * u]
                knots = np.array([p0, span * v0, p1, span * v1])
                return np.array(h) @ knots, np.array(d) @ knots / span
        return self.knots[-1][1], np.zeros(2)


def play(planner: TrajectoryPlanner, starts_s: list[float], until_s: float) -> tuple[Played, int, np.ndarray, np.ndarray]:
    """Steps that start at these times, one after the other; gives what was played, how many messages, positions and velocities per ms."""
    played, messages = Played(np.zeros(2)), 0
    positions, velocities = [], []
    tick = 0
    for ms in range(round(until_s * 1000)):
        now_s = ms / 1000
        if now_s >= tick * TICK_S - 1e-9:
            tick += 1
            began = [start_s for start_s in starts_s if start_s <= now_s + 1e-9]
            done = SPEED * STEP_S * max(0, len(began) - 1)
            if began and now_s < began[-1] + STEP_S - 1e-9:
                ahead = ahead_of(done, began[-1], now_s)
            else:
                ahead = [(0.0, SPEED * STEP_S * len(began))]
            if points := planner.plan(now_s, ahead):
                messages += 1
                played.take(now_s, points)
        position, velocity = played.at(now_s)
        positions.append(position)
        velocities.append(velocity)
    return played, messages, np.array(positions), np.array(velocities)


def test_step_is_one_message_that_ends_at_rest_where_the_step_ends() -> None:
    planner = TrajectoryPlanner(WINDOW_S)
    assert planner.plan(0.0, [(0.0, np.zeros(2))])[-1].positions == pytest.approx([0.0, 0.0])
    points = planner.plan(1.0, ahead_of(np.zeros(2), 1.0, 1.0))
    assert points[-1].time_s == pytest.approx(STEP_S + WINDOW_S)
    assert points[-1].positions == pytest.approx(SPEED * STEP_S, abs=1e-12)
    assert not points[-1].velocities.any()
    gaps = np.diff([0.0, *(point.time_s for point in points)])
    assert gaps.min() >= SPACING_S - 1e-12
    for tick in range(1, 6):
        assert planner.plan(1.0 + tick * TICK_S, ahead_of(np.zeros(2), 1.0, 1.0 + tick * TICK_S)) == ()


def test_speed_stays_below_that_of_the_step_and_acceleration_is_bounded() -> None:
    _, messages, positions, velocities = play(TrajectoryPlanner(WINDOW_S), [0.2], 1.0)
    assert messages == 2  # where it stands, and the step
    assert positions[-1] == pytest.approx(SPEED * STEP_S, abs=1e-9)
    assert (np.abs(velocities) <= np.abs(SPEED) * 1.001).all()
    accelerations = np.diff(velocities, axis=0) / 1e-3
    assert np.abs(accelerations).max() <= 1.05 * np.abs(SPEED).max() / WINDOW_S


def test_steps_without_a_gap_go_on_at_speed() -> None:
    starts_s = [0.2, 0.4, 0.6, 0.8]
    _, messages, positions, velocities = play(TrajectoryPlanner(WINDOW_S), starts_s, 1.5)
    assert messages == 1 + len(starts_s)
    cruising = velocities[320:1000]
    assert np.abs(cruising - SPEED).max() <= 0.02  # [rad/s] no stop and go
    assert positions[-1] == pytest.approx(SPEED * STEP_S * 4, abs=1e-9)
    lag = SPEED * (0.9 - 0.2) - positions[900]
    assert lag == pytest.approx(SPEED * WINDOW_S / 2, abs=1e-3)


def test_stop_in_the_middle_of_a_step_comes_to_rest_within_the_window() -> None:
    planner, played = TrajectoryPlanner(WINDOW_S), Played(np.zeros(2))
    played.take(0.0, planner.plan(0.0, [(0.0, np.zeros(2))]))
    played.take(1.0, planner.plan(1.0, ahead_of(np.zeros(2), 1.0, 1.0)))
    stop = SPEED * 0.1
    points = planner.plan(1.1, [(0.0, stop)])
    played.take(1.1, points)
    assert points[-1].time_s == pytest.approx(WINDOW_S)
    track = np.array([played.at(1.1 + ms / 1000)[0] for ms in range(200)])
    assert track[-1] == pytest.approx(stop, abs=1e-9)
    assert (np.abs(track) <= np.abs(stop) + 1e-9).all()  # never beyond where it was told to stop


def test_path_that_moves_by_less_than_the_motors_resolve_is_no_news() -> None:
    planner = TrajectoryPlanner(WINDOW_S)
    assert planner.plan(0.0, [(0.0, np.zeros(2))])
    assert planner.plan(0.1, [(0.0, np.full(2, 0.9 * SAME_AT_REST_RAD))]) == ()
    assert planner.plan(0.2, [(0.0, np.full(2, 1.1 * SAME_AT_REST_RAD))])
    assert planner.plan(0.3, [(0.1, np.full(2, 0.9 * SAME_MOVING_RAD))]) == ()
    assert planner.plan(0.4, [(0.1, np.full(2, 1.6 * SAME_MOVING_RAD))])


def test_first_motion_starts_where_the_path_came_from() -> None:
    points = TrajectoryPlanner(WINDOW_S).plan(5.0, ahead_of(np.zeros(2), 5.0, 5.0))
    assert points[0].positions == pytest.approx(SPEED * SPACING_S**2 / 2 / WINDOW_S, abs=1e-9)  # a ramp from rest at the origin


def test_silence_is_rest() -> None:
    planner = TrajectoryPlanner(WINDOW_S)
    planner.plan(0.0, [(0.0, np.zeros(2))])
    points = planner.plan(60.0, ahead_of(np.zeros(2), 60.0, 60.0))
    assert points[0].positions == pytest.approx(SPEED * SPACING_S**2 / 2 / WINDOW_S, abs=1e-9)


def test_motion_that_is_told_tick_by_tick_is_as_smooth() -> None:
    """As a human's, or a soft stop: nobody knows what comes next."""
    planner, played = TrajectoryPlanner(WINDOW_S), Played(np.zeros(2))
    ticks, tick = round(0.5 / TICK_S), 0
    velocities, positions = [], []
    for ms in range(900):
        now_s = ms / 1000
        if now_s >= tick * TICK_S - 1e-9:
            if points := planner.plan(now_s, [(0.0, SPEED * TICK_S * min(tick, ticks))]):
                played.take(now_s, points)
            tick += 1
        position, velocity = played.at(now_s)
        positions.append(position)
        velocities.append(velocity)
    assert (np.abs(velocities) <= np.abs(SPEED) * 1.1).all()
    assert positions[-1] == pytest.approx(SPEED * TICK_S * ticks, abs=1e-9)
    moving_ms = np.flatnonzero(np.abs(np.array(velocities)).max(axis=1) > 1e-9)
    assert moving_ms[-1] / 1000 <= ticks * TICK_S + WINDOW_S + 2e-3


def test_path_begins_anew_where_the_arm_was_moved_to_while_nobody_drove() -> None:
    planner = TrajectoryPlanner(0.104)
    planner.plan(0.0, [(0.0, np.zeros(1))])
    planner.plan(1.0, [(0.033, np.array([0.01])), (0.2, np.array([0.05]))])
    points = planner.plan(3600.0, [(0.033, np.array([1.001])), (0.2, np.array([1.005]))])
    assert all(1.0 - 1e-9 <= point.positions[0] <= 1.005 + 1e-9 for point in points)
    assert max(abs(point.velocities[0]) for point in points) <= 0.004 / 0.167 + 1e-9


def test_target_that_is_put_back_to_the_arm_is_not_approached_from_where_it_was() -> None:
    """As by the effort rule: the arm is 0.5 rad behind, and is not to be pushed once more."""
    planner = TrajectoryPlanner(WINDOW_S)
    planner.plan(0.0, [(0.0, np.zeros(2))])
    planner.plan(1.0, ahead_of(np.zeros(2), 1.0, 1.0))
    points = planner.plan(1.1, [(0.0, np.full(2, -0.5))])
    assert all(point.positions == pytest.approx([-0.5, -0.5]) and not point.velocities.any() for point in points)


@given(st.lists(st.tuples(
    st.sampled_from([0.0, 0.05, 0.099, 0.101, 0.5, 3600.0]) | st.floats(0.0, 5.0),  # pause [s]
    st.just(0.0) | st.floats(-3.0, 3.0),  # where the arm was moved to in the pause, from where it was [rad]
    st.floats(-2.0, 2.0)), min_size=1, max_size=8))  # speed of the step [rad/s]
def test_every_point_can_be_reached_after_any_pause_and_displacement(rounds: list[tuple[float, float, float]]) -> None:
    """Displaced arms are measured, so the path begins where the arm is."""
    planner, now_s, start = TrajectoryPlanner(WINDOW_S), 1.0, 0.0
    planner.plan(now_s, [(0.0, np.zeros(1))])
    for pause_s, displacement, speed in rounds:
        now_s += pause_s
        if pause_s > WINDOW_S:
            start += displacement
        points = planner.plan(now_s, [(end_s, np.array([start + speed * end_s])) for end_s in (TICK_S, 0.08, 0.14, STEP_S)])
        fastest = 2.0 + TOP_SPEED_RAD_S if pause_s <= WINDOW_S else 2.0 + APART_AT_REST_RAD / SPACING_S
        before_s, before = 0.0, start
        for point in points:
            lag = 2.0 * WINDOW_S / 2 if before_s == 0.0 and pause_s <= WINDOW_S else 0.0  # the arm may be still on its way
            assert abs(point.positions[0] - before) <= fastest * (point.time_s - before_s) + lag + 1e-9
            assert abs(point.velocities[0]) <= fastest + 1e-9
            before_s, before = point.time_s, float(point.positions[0])
        start += speed * STEP_S
        now_s += STEP_S


def test_long_step_is_told_a_second_at_a_time_and_goes_on_at_speed() -> None:
    planner, played = TrajectoryPlanner(WINDOW_S), Played(np.zeros(2))
    played.take(0.0, planner.plan(0.0, [(0.0, np.zeros(2))]))
    step_s, velocities = 3.0, []
    for tick in range(round(step_s / TICK_S)):
        now_s = 1.0 + tick * TICK_S
        ends_s = [*np.arange(TICK_S, 4.0 - now_s - 1e-9, 0.05), 4.0 - now_s]
        if points := planner.plan(now_s, [(end_s, SPEED * (now_s + end_s - 1.0)) for end_s in ends_s]):
            assert points[-1].time_s <= HORIZON_S + 1e-9
            played.take(now_s, points)
        velocities.append(played.at(now_s + TICK_S / 2)[1])
    assert np.abs(np.array(velocities[5:-5]) - SPEED).max() <= 0.05
    assert played.at(5.0)[0] == pytest.approx(SPEED * step_s, abs=1e-9)


def test_stop_repeats_no_goal_however_late() -> None:
    goal, here = LastGoal(), np.array([0.1, 0.2])
    assert goal.is_news(1.0, here, moving=True)
    for now_s in (1.1, 1.5, 60.0, 3600.0):
        assert not goal.is_news(now_s, here.copy(), moving=False)
        assert not goal.is_news(now_s, here.copy(), moving=True)  # nor a human's hand that only closes the gripper


def test_stop_sends_no_joints_that_are_old() -> None:
    """A driver was chosen and never moved the arm; somebody else did; now there is an emergency stop."""
    goal = LastGoal()
    assert not goal.is_news(0.0, np.zeros(2), moving=False)  # nothing has moved yet at all
    assert goal.is_news(1.0, np.ones(2), moving=True)
    assert not goal.is_news(3600.0, np.full(2, 2.0), moving=False)
    assert goal.is_news(3601.0, np.full(2, 2.0), moving=True)


def test_arm_that_pushes_too_hard_is_told_to_stay_where_it_is() -> None:
    goal = LastGoal()
    assert goal.is_news(1.0, np.ones(2), moving=True)
    assert goal.is_news(1.0 + 0.9 * RELIEF_S, np.full(2, 0.9), moving=False)
    assert not goal.is_news(1.0 + 0.95 * RELIEF_S, np.full(2, 0.9), moving=False)
    assert not goal.is_news(1.0 + 1.1 * RELIEF_S, np.full(2, 0.8), moving=False)


def test_joints_at_rest_are_sent_only_soon_after_a_motion() -> None:
    motion = LastMotion()
    assert not motion.is_recent(0.0, moving=False)
    assert motion.is_recent(1.0, moving=True)
    assert motion.is_recent(1.0 + 0.99 * RELIEF_S, moving=False)
    assert not motion.is_recent(1.0 + 1.01 * RELIEF_S, moving=False)


def test_after_a_jump_back_of_the_clock_the_stop_is_sent() -> None:
    motion = LastMotion()
    assert motion.is_recent(100.0, moving=True)
    assert motion.is_recent(1.0, moving=False)
    assert not motion.is_recent(1.0 + 1.01 * RELIEF_S, moving=False)
    assert RELIEF_S > HORIZON_S  # nothing is queued any more when stops fall silent
