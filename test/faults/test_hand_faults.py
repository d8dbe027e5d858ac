"""A human's devices that die, lose their deadman or talk nonsense while they move the arm."""

from __future__ import annotations

import math
import signal
import sys
import time
from itertools import pairwise
from typing import Any

import pytest

pytestmark = [pytest.mark.ros, pytest.mark.faults]
pytest.importorskip("pinocchio", reason="needs pinocchio (pip install pin)")

TWIST_S, JOY_S = 0.2, 0.25
"""How long one message of each device holds."""

TELEOP = """
import rclpy
from geometry_msgs.msg import TwistStamped
rclpy.init()
node = rclpy.create_node("teleop")
publisher = node.create_publisher(TwistStamped, "teleop/delta_twist_cmds", 1)
def push():
    message = TwistStamped()
    message.header.stamp, message.header.frame_id = node.get_clock().now().to_msg(), "wx250s/base_link"
    message.twist.linear.x = 0.1
    publisher.publish(message)
node.create_timer(0.02, push)
rclpy.spin(node)
"""


@pytest.fixture(scope="module")
def world(stage: Any) -> Any:
    world = stage.world()
    world.have_arm()
    stage.command_node(robot="wx250s", output="servo_twist", joy="xbox")
    world.until(lambda: world.hand.get_subscription_count() and world.joy.get_subscription_count(), "command_node to listen")
    return world


def stamp_ns(message: Any) -> int:
    return int(message.header.stamp.sec * 10**9 + message.header.stamp.nanosec)


def push(world: Any) -> Any:
    return lambda: world.hand.publish(world.push(0.1))


def test_the_teleop_is_killed(stage: Any, world: Any) -> None:
    """A process of its own, by SIGKILL: the arm stops when its last message is 0.2 s old. The driver stays HUMAN, at rest."""
    heard: list[Any] = []
    subscription = world.create_subscription(type(world.push(0.0)), "teleop/delta_twist_cmds", heard.append, 10)
    world.settle()
    twists = len(world.twists)
    child = stage.run("teleop", [sys.executable, "-c", TELEOP])
    world.until(lambda: world.drivers[-1] == "HUMAN" and world.moved(twists) and heard, "the teleop to move the arm, and to be heard here")
    child.signal(signal.SIGKILL)
    child.wait()
    world.stops_within(TWIST_S + world.tick_s + world.ramp_s, max(stamp_ns(message) for message in heard), twists,
                       "the teleop's last stamp", "teleop killed")
    world.stays("HUMAN")
    world.executor.create_task(world.destroy_subscription, subscription)


def test_a_deadman_that_is_stuck_is_no_hand(world: Any) -> None:
    """Held from the first message on: nothing moves before it was let go once. So it is after a message that nobody understands."""
    world.settle()
    count = len(world.twists)
    world.joy.publish(world.joy.msg_type())  # no axes, no buttons
    for _ in range(20):
        world.press(1.0, deadman=True)
        time.sleep(0.02)
    world.stays("HOLD")
    assert not world.moved(count)


@pytest.mark.parametrize("fault", ["released", "silent"])
def test_the_deadman_is_lost(world: Any, fault: str) -> None:
    """Let go while the stick is still deflected; or the joystick goes silent while it is held."""
    stamps: list[int] = []
    world.press(0.0, deadman=False)
    twists, _ = world.drive_by(lambda: stamps.append(world.press(1.0, deadman=True)))
    if fault == "released":
        begin_ns = world.press(1.0, deadman=False)
        world.stops_within(world.tick_s + world.ramp_s, begin_ns, twists, "the joystick's stamp", "deadman released")
    else:
        world.stops_within(JOY_S + world.tick_s + world.ramp_s, stamps[-1], twists, "the joystick's last stamp", "joystick silent")
    world.stays("HUMAN")


def say_nan(message: Any) -> None:
    message.twist.angular.y = math.nan


def say_infinity(message: Any) -> None:
    message.twist.linear.z = -math.inf


def say_frame(message: Any) -> None:
    message.header.frame_id = "camera"


def say_old(message: Any) -> None:
    message.header.stamp.sec -= 5


@pytest.mark.parametrize(("spoil", "rule"), [
    pytest.param(say_nan, "teleop_finite", id="nan"), pytest.param(say_infinity, "teleop_finite", id="infinity"),
    pytest.param(say_frame, "teleop_frame", id="another_frame"), pytest.param(say_old, "teleop_age", id="an_old_stamp"),
])
def test_a_teleop_that_talks_nonsense(world: Any, spoil: Any, rule: str) -> None:
    twists, reports = world.drive_by(push(world))
    message = world.push(0.1)
    spoil(message)
    world.hand.publish(message)
    report = world.see_rule(reports, rule)
    assert report.driver == report.HUMAN
    world.stops_within(TWIST_S + world.tick_s + world.ramp_s, stamp_ns(report), twists, "the report of the teleop's fault",
                       f"teleop: {rule}")


def test_a_hand_faster_than_the_arm_may_move(world: Any) -> None:
    """1000 m/s asked for: the top speed, reached no faster than the profile allows."""
    world.settle()
    twists, reports = len(world.twists), len(world.reports)
    world.until(lambda: any(twist.twist.linear.x > 0.2 for twist in world.twists[twists:]), "the hand to move the arm",
                lambda: world.hand.publish(world.push(1000.0)))
    world.see_rule(reports, "speed")
    world.rest_ns(twists)  # holds every command to the top speed
    speeds = [twist.twist.linear.x for twist in world.twists[twists:]]
    assert max(later - sooner for sooner, later in pairwise(speeds)) <= 2.5 * world.tick_s + 1e-6


@pytest.mark.parametrize("way", ["service", "topic"])
def test_emergency_stop_while_a_human_drives(world: Any, way: str) -> None:
    """Latched for a hand that goes on, too; and after the reset it must be let go before it moves anything."""
    twists, reports = world.drive_by(push(world))
    if way == "service":
        world.emergency_stop()
    else:
        world.request_stop(True)
    report = world.see_report(reports, lambda report: report.driver == report.STOPPED, "STOPPED")
    for _ in range(10):
        world.hand.publish(world.push(0.1))
    world.stops_at_once(report, twists, f"emergency stop by {way}, HUMAN")
    assert "reset_stop" in world.choose("HUMAN").reason
    world.stays("STOPPED")


def test_joint_states_are_lost_while_a_human_drives(world: Any) -> None:
    twists, reports = world.drive_by(push(world))
    world.distort_joints = lambda message: None
    world.until(lambda: any("joint_states" in report.rules for report in world.reports[reports:]), "the fault", push(world))
    world.see("HOLD")
    world.stops_within(0.25 + world.tick_s + world.ramp_s, world.joints_ns, twists, "the newest joint states' stamp",
                       "joint states lost, HUMAN")


def test_a_policy_that_vanishes_does_not_disturb_the_human(world: Any) -> None:
    world.move()
    world.until(lambda: world.drivers[-1] == "HUMAN", "the takeover", push(world))
    world.executor.create_task(world.destroy_publisher, world.chunks)
    world.chunks = None
    count = len(world.twists)
    world.until(lambda: len(world.twists) > count + 20, "the human to go on", push(world))
    assert world.drivers[-1] == "HUMAN" and all(twist.twist.linear.x > 0.0 for twist in world.twists[count + 5:count + 20])
    world.rest_ns(count)
