"""Emergency stops, parameters at run time and the end of command_node itself, while the arm moves."""

from __future__ import annotations

import signal
from typing import Any

import pytest

pytestmark = [pytest.mark.ros, pytest.mark.faults]


@pytest.fixture(scope="module")
def world(stage: Any) -> Any:
    stage.command_node()
    return stage.world()


@pytest.mark.representative
@pytest.mark.parametrize("way", ["service", "topic"])
def test_emergency_stop_while_the_policy_drives(world: Any, way: str) -> None:
    """Zeros in the same tick, without a ramp; latched; the reset moves nothing."""
    twists, reports = world.move()
    if way == "service":
        world.emergency_stop()
    else:
        world.request_stop(True)
    report = world.see_report(reports, lambda report: report.driver == report.STOPPED, "STOPPED")
    world.stops_at_once(report, twists, f"emergency stop by {way}")
    world.send_long()
    assert "reset_stop" in world.choose("POLICY").reason
    world.stays("STOPPED")
    count = len(world.twists)
    world.settle()
    assert not world.moved(count), "the reset moved the arm"


@pytest.mark.parametrize("way", ["service", "topic"])
def test_emergency_stop_in_hold(world: Any, way: str) -> None:
    world.settle()
    count = len(world.twists)
    if way == "service":
        world.emergency_stop()
    else:
        world.request_stop(True)
    world.see("STOPPED")
    assert "reset_stop" in world.choose("HOLD").reason
    world.stays("STOPPED")
    assert not world.moved(count)


def test_parameters_changed_while_the_policy_drives(world: Any) -> None:
    """Refused in motion, whatever they are; in HOLD they hold from the next POLICY on; what is out of range never does."""
    twists, _ = world.move()
    for name, value in (("action_scale", 0.5), ("max_observation_age_s", 5.0), ("rate_hz", 20.0), ("robot", "wx250s"),
                        ("use_sim_time", True), ("base_frame", "elsewhere")):
        answer = world.change(name, value)
        assert not answer.successful and answer.reason, name
    world.stops_by_age(twists, "parameters changed at run time")
    world.see("HOLD")
    assert not world.change("action_scale", 2.0).successful
    assert world.change("action_scale", 0.5).successful
    world.speak()
    count = len(world.reports)
    world.resume()
    world.send_long()
    report = world.see_report(count, lambda report: report.step_started, "a scaled step")
    assert report.sent.translation.x == 0.025
    world.settle()
    assert world.change("action_scale", 1.0).successful


@pytest.mark.representative
def test_sigterm_in_motion_sends_zeros_first(own_stage: Any) -> None:
    child, world = own_stage.command_node(), own_stage.world()
    twists, _ = world.move()
    late_s = world.late_s()
    world.send_long()
    world.await_motion(len(world.twists))
    count = len(world.reports)
    child.signal(signal.SIGTERM)
    assert child.wait() == 0
    report = world.see_report(count, lambda report: "leaving" in report.stop_reason, "the last report")
    assert report.driver == report.HOLD
    rest_s = (world.rest_ns(twists) - report.header.stamp.sec * 10**9 - report.header.stamp.nanosec) / 1e9
    assert rest_s <= late_s, "zeros come with the last report"


def test_command_node_restarted_while_the_policy_goes_on(own_stage: Any) -> None:
    """Killed in motion: the topic breaks off, and whoever consumes it must stop by its own timeout. Restarted: HOLD, and silence."""
    child, world = own_stage.command_node(), own_stage.world()
    world.move()
    child.signal(signal.SIGKILL)
    child.wait()
    count, announced = len(world.twists), len(world.drivers)
    own_stage.command_node()
    world.until(lambda: world.drivers[announced:] == ["HOLD"], "HOLD of the new one")
    world.send_long()
    world.stays()
    assert len(world.twists) == count, "a new command_node said something before a driver was chosen"


def test_command_node_is_frozen_and_thawed(own_stage: Any) -> None:
    """A node that was stopped for longer than the age limit plays nothing of what it had."""
    child, world = own_stage.command_node(), own_stage.world()
    twists, _ = world.move()
    child.signal(signal.SIGSTOP)
    seen_ns = world.seen_ns
    world.until(lambda: world.now_ns() - seen_ns > (world.age_s + 0.5) * 1e9, "the observation to grow old")
    count = len(world.twists)
    child.signal(signal.SIGCONT)
    world.see("HOLD")
    world.silence()
    assert all(stamp_ns(twist) - seen_ns <= world.age_s * 1e9 or not moves_at_full_speed(twist) for twist in world.twists[count:])
    world.stops_within(world.stop_s, seen_ns, twists, "the observation's stamp, command_node itself frozen", "command_node frozen")


def stamp_ns(twist: Any) -> int:
    return int(twist.header.stamp.sec * 10**9 + twist.header.stamp.nanosec)


def moves_at_full_speed(twist: Any) -> bool:
    return bool(abs(twist.twist.linear.x) > 0.2)
