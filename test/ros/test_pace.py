"""Simulated time against wall time, and what recurs in it."""

from __future__ import annotations

import itertools

import pytest

from openvla_ros.ros.pace import Due, Pace

CYCLE_S = 0.008


def run(pace: Pace, wall_s: float, cost_s: float, cycles: int, simulated_s: float = 1.0) -> tuple[float, float]:
    """Cycles that cost wall time and then wait as they are told. Returns simulated and wall time afterwards."""
    for _ in range(cycles):
        simulated_s += CYCLE_S
        wall_s += cost_s
        wall_s += pace.wait_s(simulated_s, wall_s)
    return simulated_s, wall_s


@pytest.mark.parametrize("factor", [0.2, 1.0, 5.0])
def test_time_passes_as_fast_as_wanted(factor: float) -> None:
    pace = Pace(factor)
    simulated_s, wall_s = run(pace, 100.0, 0.001, 1000)
    assert (simulated_s - 1.0) / (wall_s - 100.0) == pytest.approx(factor, rel=0.01)
    assert pace.reached() == pytest.approx(factor, rel=0.01)


def test_too_slow_a_computer_slows_the_clock_and_makes_nothing_up() -> None:
    pace = Pace(1.0)
    simulated_s, wall_s = run(pace, 0.0, 0.016, 500)  # every cycle takes twice as long as it may
    assert wall_s == pytest.approx(500 * 0.016) and pace.reached() == pytest.approx(0.5, rel=0.01)
    later_s, later_wall_s = run(pace, wall_s, 0.001, 500, simulated_s)  # fast again: at most the slack is caught up
    assert (later_s - simulated_s) - (later_wall_s - wall_s) <= 0.1 + CYCLE_S


def test_a_short_delay_is_made_up_for() -> None:
    pace = Pace(1.0)
    simulated_s, wall_s = run(pace, 0.0, 0.001, 100)
    later_s, later_wall_s = run(pace, wall_s + 0.05, 0.001, 100, simulated_s)  # a picture took 50 ms
    assert later_wall_s - wall_s == pytest.approx(later_s - simulated_s, abs=1e-9)


def test_another_factor_holds_from_now_on() -> None:
    pace = Pace(1.0)
    simulated_s, wall_s = run(pace, 0.0, 0.0, 100)
    pace.factor = 4.0
    later_s, later_wall_s = run(pace, wall_s, 0.0, 101, simulated_s)
    assert later_wall_s - wall_s == pytest.approx((later_s - simulated_s - CYCLE_S) / 4.0)


def test_standing_still_on_purpose_is_not_made_up_for() -> None:
    pace = Pace(1.0)
    simulated_s, wall_s = run(pace, 0.0, 0.001, 100)
    pace.forget()
    assert pace.reached() is None
    _, later_wall_s = run(pace, wall_s + 60.0, 0.001, 100, simulated_s)
    assert later_wall_s - wall_s - 60.0 == pytest.approx(99 * CYCLE_S, abs=2e-3)


@pytest.mark.parametrize("rate_hz", [10.0, 25.0, 30.0, 62.5])
def test_what_recurs_keeps_its_rate_on_a_coarse_clock(rate_hz: float) -> None:
    due = Due(rate_hz)
    times_s = [tick * CYCLE_S for tick in range(12500) if due.is_now(tick * CYCLE_S)]
    assert len(times_s) == pytest.approx(100.0 * rate_hz, rel=0.002)
    assert all(0.0 < later - earlier < 1.0 / rate_hz + CYCLE_S for earlier, later in itertools.pairwise(times_s))


def test_after_a_pause_it_is_due_once_and_in_a_hurry_at_once() -> None:
    due = Due(10.0)
    assert due.is_now(0.0) and not due.is_now(0.05) and due.is_now(5.0) and not due.is_now(5.05) and due.is_now(5.1)
    due.hurry()
    assert due.is_now(5.11)
