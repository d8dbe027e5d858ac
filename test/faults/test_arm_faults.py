"""An arm whose joint states fail, that does not follow, pushes too hard or stands where it should not; and the enable heartbeat."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

pytestmark = [pytest.mark.ros, pytest.mark.faults]
pytest.importorskip("pinocchio", reason="needs pinocchio (pip install pin)")

JOINT_STATES_S = 0.25
"""max_joint_state_age_s, as command_node has it by default."""
ENABLE_S = 0.5


@pytest.fixture(scope="module")
def world(stage: Any) -> Any:
    world = stage.world()
    world.have_arm()
    stage.command_node(robot="wx250s", output="servo_twist")
    return world


def lose(message: Any) -> Any:
    return None


def say_nan(message: Any) -> Any:
    message.position[2] = math.nan
    return message


def lack_a_name(message: Any) -> Any:
    message.name, message.position, message.effort = message.name[1:], message.position[1:], message.effort[1:]
    return message


def lack_a_position(message: Any) -> Any:
    message.position = message.position[1:]
    return message


def no_stamp(message: Any) -> Any:
    message.header.stamp.sec = message.header.stamp.nanosec = 0
    return message


def shift(seconds: int) -> Any:
    def distort(message: Any) -> Any:
        message.header.stamp.sec += seconds
        return message
    return distort


@pytest.mark.parametrize("distort", [
    pytest.param(lose, id="lost"), pytest.param(say_nan, id="nan"), pytest.param(lack_a_name, id="lack_a_name"),
    pytest.param(lack_a_position, id="lack_a_position"), pytest.param(no_stamp, id="no_stamp"), pytest.param(shift(-5), id="in_the_past"),
    pytest.param(shift(5), id="in_the_future"),
])
def test_joint_states_that_say_nothing_stop_the_arm(world: Any, distort: Any) -> None:
    """Without fresh joint states there is no motion, whoever drives."""
    twists, reports = world.move()
    world.distort_joints = distort
    report = world.see_rule(reports, "joint_states")
    assert report.driver == report.HOLD
    world.stops_within(JOINT_STATES_S + world.tick_s + world.ramp_s, world.joints_ns, twists, "the newest joint states' stamp",
                       f"joint states: {distort.__qualname__.split('.')[0]}")
    assert not world.choose("POLICY").success and not world.choose("HUMAN").success
    world.send_long()
    world.stays()


def test_joint_states_in_another_order_each_time_change_nothing(world: Any) -> None:
    def shuffle(message: Any) -> Any:
        rows = list(zip(message.name, message.position, message.effort, strict=True))
        random.shuffle(rows)
        message.name, message.position, message.effort = (list(column) for column in zip(*rows, strict=True))
        return message

    world.settle()
    world.distort_joints = shuffle
    world.speak()
    twists, reports = len(world.twists), len(world.reports)
    world.resume()
    world.send_long()
    world.await_motion(twists, at_least=0.2)
    world.see_rule(reports, "age")
    world.stops_by_age(twists, "joint states shuffled")
    assert not any("joint_states" in report.rules for report in world.reports[reports:])
    sent = [twist.twist.linear for twist in world.twists[twists:]]
    assert max(max(abs(linear.y), abs(linear.z)) for linear in sent) == 0.0, "along x, as asked"


def test_an_arm_that_does_not_follow_is_given_up(world: Any) -> None:
    """It is blocked: the target leads by the allowed distance at most, and after a second of that the driver is HOLD."""
    twists, reports = world.move()
    world.blocked = True
    world.until(lambda: any("not_following" in report.rules for report in world.reports[reports:]), "the arm to be given up",
                world.send_long)
    report = world.see_rule(reports, "not_following")
    assert report.driver == report.HOLD
    world.stops_softly(report, twists, "arm does not follow")
    poses = [(report.target_pose.position, report.measured_pose.position) for report in world.reports[reports:]
             if report.target_pose_valid and report.measured_pose_valid]
    assert max(math.dist((ahead.x, ahead.y, ahead.z), (here.x, here.y, here.z)) for ahead, here in poses) <= 0.06 + 0.01  # a state is old


def test_an_arm_that_pushes_too_hard_is_stopped_at_once(world: Any) -> None:
    twists, reports = world.move()
    world.efforts = [0.0, 1711.0, 0.0, 0.0, 0.0, 0.0]
    report = world.see_rule(reports, "effort")
    assert report.driver == report.HOLD and "shoulder" in report.stop_reason
    world.stops_at_once(report, twists, "effort")
    assert "pushes too hard" in world.choose("POLICY").reason


def test_an_arm_that_starts_outside_its_box(world: Any) -> None:
    """No policy may drive it. A hand may, back inside and at half the top speed; further out nothing moves."""
    world.settle()
    world.place(0.3, -0.03)
    world.until(lambda: "outside" in world.choose("POLICY").reason, "POLICY to be refused")
    count = len(world.twists)
    assert world.choose("HUMAN").success
    world.push_for_ticks(20, 0.0, 0.0, -0.25)
    assert not world.moved(count), "further out of the box"
    world.until(lambda: world.moved(count), "the way back", lambda: world.hand.publish(world.push(0.1, 0.0, 0.25)))
    world.push_for_ticks(10, 0.1, 0.0, 0.25)
    low = [twist.twist.linear for twist in world.twists[count:]]
    assert max(linear.z for linear in low[:5]) <= 0.125 + 1e-9
    world.rest_ns(count)


@pytest.mark.parametrize("driver", ["POLICY", "HUMAN"])
def test_the_enable_heartbeat_is_lost(own_stage: Any, driver: str) -> None:
    world = own_stage.world()
    world.have_arm()
    own_stage.command_node(robot="wx250s", output="servo_twist", require_enable=True)
    world.beat()
    push = lambda: world.hand.publish(world.push(0.1))  # noqa: E731
    world.until(world.hand.get_subscription_count, "command_node to listen")
    twists, reports = world.move() if driver == "POLICY" else world.drive_by(push)
    world.heart.cancel()
    world.until(lambda: any("enable" in report.rules for report in world.reports[reports:]), "the lost heartbeat",
                push if driver == "HUMAN" else lambda: None)
    world.see("HOLD")
    # It carries no stamp: one tick more for its way here.
    world.stops_within(ENABLE_S + 2 * world.tick_s + world.ramp_s, world.beaten_ns, twists, "the last heartbeat", f"enable lost, {driver}")
    assert "heartbeat" in world.choose(driver).reason
