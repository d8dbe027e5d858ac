"""The rules of a joint_trajectory_controller, as the simulated arm has them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from openvla_ros.errors import ActionError
from openvla_ros.ros.trajectory_follower import JointRange, TrajectoryFollower, Waypoint

JOINTS = ("waist", "elbow")
LIMITS = JointRange(np.array([-1.0, -2.0]), np.array([1.0, 2.0]), np.array([3.0, 3.0]))


def point(time_s: float, positions: list[float], velocities: list[float] | None = None) -> Waypoint:
    return Waypoint(time_s, np.array(positions), None if velocities is None else np.array(velocities))


@pytest.fixture
def follower() -> TrajectoryFollower:
    return TrajectoryFollower(JOINTS, np.array([0.1, 0.2]), LIMITS)


def test_it_holds_before_the_first_and_after_the_last_point(follower: TrajectoryFollower) -> None:
    np.testing.assert_allclose(follower.advance(1.0), [0.1, 0.2])
    follower.take(JOINTS, [point(0.1, [0.2, 0.2]), point(0.2, [0.3, 0.2])], None, 1.0)
    for now_s, wanted in ((1.05, 0.15), (1.1, 0.2), (1.15, 0.25), (1.2, 0.3), (7.0, 0.3), (9.0, 0.3)):
        np.testing.assert_allclose(follower.advance(now_s), [wanted, 0.2], atol=1e-12)


def test_cubic_where_velocities_are_given(follower: TrajectoryFollower) -> None:
    follower.take(JOINTS, [point(1.0, [0.5, 0.2], [0.0, 0.0])], None, 0.0)
    shares, wanted = np.linspace(0.0, 1.0, 101), []
    for share in shares:
        wanted.append(follower.advance(float(share))[0])
    np.testing.assert_allclose(wanted, 0.1 + 0.4 * (3 * shares**2 - 2 * shares**3), atol=1e-12)


def test_the_speed_between_two_points_is_the_slope_of_the_position(follower: TrajectoryFollower) -> None:
    """A trajectory that replaces another in the middle goes on at its speed: no kink in a cubic."""
    follower.take(JOINTS, [point(0.4, [0.5, 0.2], [0.0, 0.0])], None, 0.0)
    before = [follower.advance(0.198)[0], follower.advance(0.2)[0]]
    follower.take(JOINTS, [point(0.4, [0.9, 0.2], [0.0, 0.0])], None, 0.2)
    after = follower.advance(0.202)[0]
    assert (after - before[1]) / 0.002 == pytest.approx((before[1] - before[0]) / 0.002, rel=0.02)


def test_a_new_one_starts_where_the_old_one_wanted_to_be(follower: TrajectoryFollower) -> None:
    follower.take(JOINTS, [point(1.0, [0.9, 0.2])], None, 0.0)
    assert follower.advance(0.5)[0] == pytest.approx(0.5)
    follower.take(JOINTS, [point(0.5, [0.0, 0.2])], None, 0.5)
    assert follower.advance(0.75)[0] == pytest.approx(0.25)


def test_names_in_another_order_and_a_start_that_is_stamped(follower: TrajectoryFollower) -> None:
    follower.take(("elbow", "waist"), [point(0.2, [0.6, 0.5])], 10.0, 9.8)  # a start to come: on the way from now on
    np.testing.assert_allclose(follower.advance(10.0), [0.3, 0.4])
    np.testing.assert_allclose(follower.advance(10.2), [0.5, 0.6])


@pytest.mark.parametrize(("names", "points", "start_s", "said"), [
    (("waist",), [point(0.1, [0.0])], None, "joints waist, expected waist, elbow"),
    ((), [point(0.1, [0.0, 0.0])], None, "joints none"),
    (("waist", "elbow", "finger"), [point(0.1, [0.0, 0.0, 0.0])], None, "waist, elbow, finger, expected"),
    (JOINTS, [], None, "without points"),
    (JOINTS, [point(0.1, [0, 0]), point(0.1, [0, 0])], None, "expected them to grow"),
    (JOINTS, [point(-0.1, [0, 0]), point(0.1, [0, 0])], None, "expected them to grow"),
    (JOINTS, [point(0.1, [0, 0, 0])], None, "expected 2 finite numbers"),
    (JOINTS, [point(0.1, [0, 0], [0])], None, "expected 2 finite numbers"),
    (JOINTS, [point(0.1, [math.nan, 0])], None, "expected 2 finite numbers"),
    (JOINTS, [point(0.1, [0, 0], [0, math.inf]), point(0.2, [0, 0])], None, "expected 2 finite numbers"),
    (JOINTS, [point(0.1, [0, 0], [0, 0.01])], None, "expected rest"),
    (JOINTS, [point(0.1, [0, 0])], 4.8, "ended 0.100 s ago"),
])
def test_what_is_refused_changes_nothing(follower: TrajectoryFollower, names: tuple[str, ...], points: list[Waypoint],
                                         start_s: float | None, said: str) -> None:
    follower.take(JOINTS, [point(1.0, [0.9, 0.2])], None, 4.0)
    with pytest.raises(ActionError, match=said):
        follower.take(names, points, start_s, 5.0)
    np.testing.assert_allclose(follower.advance(5.0), [0.9, 0.2])


def test_limits_of_position_and_speed_hold_whatever_is_asked(follower: TrajectoryFollower) -> None:
    follower.advance(0.0)
    follower.take(JOINTS, [point(0.01, [100.0, -100.0])], None, 0.0)
    before, seen = np.array([0.1, 0.2]), []
    for tick in range(1, 200):
        wanted = follower.advance(tick * 0.01)
        assert (np.abs(wanted - before) <= LIMITS.velocity * 0.01 + 1e-12).all()
        seen, before = [*seen, follower.limited], wanted
    np.testing.assert_allclose(before, [1.0, -2.0])
    assert seen[0] == JOINTS and seen[-1] == JOINTS  # it is still asked for more than the joints can


def test_placed_elsewhere_it_forgets_its_trajectory(follower: TrajectoryFollower) -> None:
    follower.take(JOINTS, [point(1.0, [0.9, 0.2])], None, 0.0)
    follower.advance(0.5)
    follower.place(np.array([-0.9, 1.9]))
    np.testing.assert_allclose(follower.advance(0.6), [-0.9, 1.9])
    assert follower.limited == ()
