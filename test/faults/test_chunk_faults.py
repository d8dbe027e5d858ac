"""What a policy may do wrong: chunks that are late, spoilt, foreign or too many, with command_node as a process of its own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.ros, pytest.mark.faults]


@pytest.fixture(scope="module")
def world(stage: Any) -> Any:
    stage.command_node()
    return stage.world()


@pytest.fixture
def rival(world: Any) -> Any:
    """Publishers that leave again when the scenario is over."""
    made: list[Any] = []

    def meet(publisher: Any) -> Any:
        made.append(publisher)
        return publisher

    yield meet
    for publisher in made:
        world.executor.create_task(world.destroy_publisher, publisher)


def test_the_policy_goes_silent_in_the_middle_of_a_chunk(world: Any) -> None:
    """Twenty steps were sent, four seconds of motion. The age of their one observation ends it."""
    twists, reports = world.move()
    world.see_rule(reports, "age")
    world.see("HOLD")
    world.stops_by_age(twists, "policy silent")
    world.stays()


def spoil_number(value: float) -> Callable[[Any], None]:
    def spoil(message: Any) -> None:
        message.steps[1].rotation.z = value
    return spoil


def spoil_gripper(message: Any) -> None:
    message.steps[0].gripper = math.nan


def spoil_frame(message: Any) -> None:
    message.header.frame_id = "world"


def spoil_no_frame(message: Any) -> None:
    message.header.frame_id = ""


def spoil_length(message: Any) -> None:
    message.steps = [message.steps[0]] * 257


def spoil_brief(message: Any) -> None:
    message.step_duration.nanosec = 50_000_000  # a full step four times too fast


def spoil_duration(message: Any) -> None:
    message.step_duration.nanosec = 0


def spoil_backward(message: Any) -> None:
    message.step_duration.sec = -1


def spoil_fault(message: Any) -> None:
    message.fault = "moves all the same"


@pytest.mark.parametrize(("spoil", "rule"), [
    pytest.param(spoil_number(math.nan), "finite", id="nan", marks=pytest.mark.representative),
    pytest.param(spoil_number(-math.inf), "finite", id="infinity"),
    pytest.param(spoil_gripper, "finite", id="nan_gripper"),
    pytest.param(spoil_frame, "frame", id="wrong_frame"),
    pytest.param(spoil_no_frame, "frame", id="no_frame"),
    pytest.param(spoil_length, "step_count", id="wrong_length"),
    pytest.param(spoil_brief, "step_duration", id="too_short_steps"),
    pytest.param(spoil_duration, "malformed", id="steps_of_no_duration"),
    pytest.param(spoil_backward, "malformed", id="steps_of_negative_duration"),
    pytest.param(spoil_fault, "malformed", id="fault_with_steps"),
])
def test_a_chunk_that_is_wrong_in_itself_stops_the_arm_softly(world: Any, spoil: Callable[[Any], None], rule: str) -> None:
    """The driver stays POLICY, but what was playing is forgotten."""
    twists, reports = world.move()
    message = world.chunk(*[world.full] * 2)
    spoil(message)
    world.chunks.publish(message)
    report = world.see_rule(reports, rule)
    assert report.driver == report.POLICY and report.stop_reason
    world.stops_softly(report, twists, f"chunk: {rule}")


def test_a_stop_that_the_policy_sends_is_obeyed_in_any_order(world: Any) -> None:
    twists, reports = world.move()
    stop = world.chunk(sequence=1)
    stop.fault = "instruction cleared"
    world.chunks.publish(stop)
    report = world.see_report(reports, lambda report: "instruction cleared" in report.stop_reason, "the stop")
    world.stops_softly(report, twists, "the policy says stop")


def test_huge_steps_are_cut_to_the_limits(world: Any) -> None:
    world.settle()
    twists, reports = world.move()
    world.chunks.publish(world.chunk((1e300, -1e300, 1e300, 1e300, 0.0, 0.0, 7.0)))
    report = world.see_report(reports, lambda report: report.step_started and report.requested.translation.x == 1e300, "the huge step")
    assert {"step_clamp_translation", "step_clamp_rotation", "gripper"} <= set(report.rules)
    assert math.hypot(*(getattr(report.sent.translation, axis) for axis in "xyz")) <= 0.05 + 1e-12
    world.rest_ns(twists)  # holds every command to the limits


@pytest.mark.parametrize(("identity", "observed_ns", "rule"), [
    pytest.param({"sequence": 1}, None, "order", id="sequence_goes_back"),
    pytest.param({"generation": 0}, None, "order", id="old_generation"),
    pytest.param({}, lambda world: world.seen_ns - 100_000, "order", id="observed_before_the_last"),
    pytest.param({}, lambda world: world.seen_ns - 5 * 10**9, "before_switch", id="observed_in_the_past"),
    pytest.param({}, lambda world: world.seen_ns + 5 * 10**9, "age", id="observed_in_the_future"),
    pytest.param({}, lambda world: 0, "stamp", id="no_stamp"),
])
def test_a_chunk_at_the_wrong_time_is_dropped_and_what_plays_goes_on(world: Any, identity: dict[str, int], observed_ns: Any,
                                                                     rule: str) -> None:
    twists, reports = world.move()
    message = world.chunk(world.full, **identity)
    if observed_ns is not None:
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(observed_ns(world), 10**9)
    world.chunks.publish(message)
    report = world.see_rule(reports, rule)
    assert report.driver == report.POLICY and report.stop_reason == ""
    world.stops_by_age(twists, f"a chunk was dropped: {rule}")


def test_a_flood_of_chunks_moves_no_faster_than_one(world: Any) -> None:
    """A thousand chunks, as fast as they go: each may be played, one after the other, never two at once."""
    twists, reports = world.move()
    for _ in range(1000):
        world.send_long()
        time.sleep(0.0005)
    world.stops_by_age(twists, "flood of chunks")  # with the limits on every command
    started = [report for report in world.reports[reports:] if report.step_started]
    begun_s = [report.header.stamp.sec + report.header.stamp.nanosec * 1e-9 for report in started]
    assert (len(started) - 1) * 0.2 <= begun_s[-1] - begun_s[0] + world.tick_s + world.late_s(), "a step was cut short"


def test_another_start_of_the_policy_leads_to_hold(world: Any) -> None:
    twists, reports = world.move()
    world.session += 1
    world.chunks.publish(world.chunk(world.full))
    report = world.see_rule(reports, "session")
    assert report.driver == report.HOLD
    world.stops_softly(report, twists, "another session")
    world.send_long()
    world.stays()


def test_a_second_publisher_of_chunks_leads_to_hold(world: Any, rival: Any) -> None:
    twists, reports = world.move()
    rival(world.another_policy())
    report = world.see_rule(reports, "chunk_publisher")
    assert report.driver == report.HOLD and "2 publishers" in report.stop_reason
    world.stops_softly(report, twists, "second publisher of chunks")
    assert "Leave one running" in world.choose("POLICY").reason


@pytest.mark.representative
def test_another_publisher_on_the_topic_of_the_arm_leads_to_hold(world: Any, rival: Any) -> None:
    twists, reports = world.move()
    rival(world.another_commander())
    report = world.see_rule(reports, "arm_topic")
    assert report.driver == report.HOLD and "/world" in report.stop_reason
    world.stops_softly(report, twists, "another publisher on the arm's topic")
    assert "only one may command the arm" in world.choose("POLICY").reason
    world.stays()


def test_the_policys_publisher_vanishes(world: Any) -> None:
    twists, reports = world.move()
    world.executor.create_task(world.destroy_publisher, world.chunks)
    world.chunks = None
    report = world.see_rule(reports, "chunk_publisher")
    assert report.driver == report.HOLD
    world.stops_softly(report, twists, "the policy's publisher vanishes")
