"""Simulated time that pauses, goes back, jumps or runs ten times too fast, while the arm moves."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.ros, pytest.mark.faults]


@pytest.fixture(scope="module")
def world(stage: Any) -> Any:
    world = stage.world()
    world.play_clock()
    stage.command_node(use_sim_time=True)
    return world


def test_the_clock_pauses(world: Any) -> None:
    """Zeros although no tick comes; their stamps stand still as the clock does. When it runs again, nothing moves by itself."""
    twists, reports = world.move()
    world.clock_rests.set()
    try:
        report = world.see_rule(reports, "clock")
        assert report.driver == report.HOLD
        world.stops_at_once(report, twists, "clock paused")
        assert world.rest_ns(twists) <= world.sim_ns
        assert "does not run" in world.choose("POLICY").reason
    finally:
        world.clock_rests.clear()
    world.send_long()
    world.stays()


@pytest.mark.parametrize("seconds", [30.0, 0.5])
def test_the_clock_is_rewound(world: Any, seconds: float) -> None:
    twists, reports = world.move()
    world.sim_ns -= round(seconds * 1e9)
    report = world.see_rule(reports, "clock")
    assert report.driver == report.HOLD
    world.silence()
    # Stamps go back with the clock, so the order of the commands is what counts: zeros, and nothing else after them.
    sent = [twist.twist.linear.x for twist in world.twists[twists:]]
    first_zero = next(index for index, speed in enumerate(sent) if speed == 0.0 and any(sent[:index]))
    assert not any(sent[first_zero:])
    assert min(speed for speed in sent[:first_zero] if speed > 0.0) == pytest.approx(0.25), "without a ramp: the clock is not trusted"
    world.send_long()
    world.stays()


def test_the_clock_jumps_ahead(world: Any) -> None:
    """What was fresh is old at once: soft stop, and HOLD, for it was over-due for longer than `resume_within_s`."""
    twists, reports = world.move()
    seen_ns = world.seen_ns
    world.sim_ns += 30 * 10**9
    report = world.see_rule(reports, "expired")
    assert report.driver == report.HOLD
    world.silence()
    jumped_ns = seen_ns + 29 * 10**9
    after = [abs(twist.twist.linear.x) for twist in world.twists[twists:] if twist.header.stamp.sec * 10**9 > jumped_ns]
    assert after and max(after) == 0.0, "the ramp is over in simulated time"


def test_the_clock_runs_ten_times_too_fast(own_stage: Any) -> None:
    """A recording played at rate 10: the bound holds in its own time, and a step stays a step."""
    world = own_stage.world()
    world.play_clock(rate=10.0)
    own_stage.command_node(use_sim_time=True, max_observation_age_s=5.0, resume_within_s=5.0)
    twists, reports = world.move()
    world.silence()
    late_s = world.late_s()
    stop_s = (world.rest_ns(twists) - world.seen_ns) / 1e9
    assert stop_s <= 5.0 + world.tick_s + world.ramp_s + late_s
    stamps_s = [twist.header.stamp.sec + twist.header.stamp.nanosec * 1e-9 for twist in world.twists[twists:]]
    assert stamps_s == sorted(stamps_s)
    steps = sum(report.step_started for report in world.reports[reports:])
    covered_m = sum(twist.twist.linear.x * (later - sooner) for twist, sooner, later in
                    zip(world.twists[twists:], stamps_s, stamps_s[1:], strict=False))
    assert 0.0 < covered_m <= steps * 0.05 + 0.25 * late_s + 1e-6
