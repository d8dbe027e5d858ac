"""policy_node as a process that is killed, frozen, deactivated or started again while it moves the arm."""

from __future__ import annotations

import signal
from typing import Any

import pytest

pytestmark = [pytest.mark.ros, pytest.mark.faults]


@pytest.fixture
def acting(own_stage: Any) -> Any:
    """A world with command_node and an active policy_node; and that node's process."""
    world = own_stage.world()
    own_stage.command_node()
    world.film()
    world.say("put the spoon on the towel")
    return world, own_stage.policy_node(world)


def newest_observation_ns(world: Any) -> int:
    """Of the chunks that were heard: what came after the last of them nobody can know."""
    return max(chunk.header.stamp.sec * 10**9 + chunk.header.stamp.nanosec for chunk in world.heard if chunk.steps)


@pytest.mark.representative
def test_policy_killed_then_started_again_with_a_latched_instruction(own_stage: Any, acting: Any) -> None:
    """The arm stops by age; the new policy speaks, and moves nothing until a human chooses POLICY."""
    world, child = acting
    twists, _ = world.drive()
    child.signal(signal.SIGKILL)
    child.wait()
    world.see("HOLD")
    world.seen_ns = newest_observation_ns(world)
    world.stops_by_age(twists, "policy killed")

    count = len(world.heard)
    own_stage.policy_node(world)
    world.until(lambda: any(chunk.steps for chunk in world.heard[count:]), "chunks of the new policy")
    world.stays()


def test_policy_frozen_and_thawed(acting: Any) -> None:
    """SIGSTOP: the arm stops by age. SIGCONT: what it had in hand is old, and nothing moves before a human wants it."""
    world, child = acting
    twists, _ = world.drive()
    child.signal(signal.SIGSTOP)
    world.see("HOLD")
    world.seen_ns = newest_observation_ns(world)
    world.stops_by_age(twists, "policy frozen")
    count = len(world.heard)
    child.signal(signal.SIGCONT)
    world.until(lambda: any(chunk.steps for chunk in world.heard[count:]), "chunks after the thaw")
    world.stays()


def test_policy_deactivated_says_stop_at_once(acting: Any) -> None:
    world, _ = acting
    twists, reports = world.drive()
    world.transition("DEACTIVATE")
    report = world.see_report(reports, lambda report: "deactivated" in report.stop_reason, "the stop")
    world.stops_softly(report, twists, "policy deactivated")


def test_policy_ended_by_sigterm_says_stop_at_once(acting: Any) -> None:
    world, child = acting
    twists, reports = world.drive()
    child.signal(signal.SIGTERM)
    assert child.wait() == 0
    report = world.see_report(reports, lambda report: report.stop_reason.startswith("the policy stopped the arm") or (
        "chunk_publisher" in report.rules), "the stop")
    world.stops_softly(report, twists, "policy ended by SIGTERM")
