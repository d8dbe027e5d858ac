"""Simulated time that is heard apart from a node's executor."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("rclpy", reason="needs ROS")
import rclpy
from rclpy.node import Node
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock

from openvla_ros.ros.clock_listener import hear_apart
from openvla_ros.ros.convert import to_time

pytestmark = pytest.mark.ros

DEADLINE_S = 30.0


@pytest.fixture
def ros(ros_domain_id: int) -> Iterator[None]:
    rclpy.init()
    yield
    rclpy.try_shutdown()


def test_the_time_of_a_node_that_nobody_spins_goes_on(ros: None) -> None:
    node = Node("sleeper", namespace="/left", parameter_overrides=[Parameter("use_sim_time", value=True)])
    world = Node("world")
    clock = world.create_publisher(Clock, "/clock", 1)
    listener = hear_apart(node)
    assert listener is not None
    end, wanted_ns = time.monotonic() + DEADLINE_S, 7_000_000_000
    while node.get_clock().now().nanoseconds != wanted_ns:
        assert time.monotonic() < end, "the time did not come"
        clock.publish(Clock(clock=to_time(wanted_ns)))
        time.sleep(0.02)
    assert world.get_subscriptions_info_by_topic("/clock")[0].node_name == "sleeper_clock"
    listener.close()
    assert not any(thread.name == "clock" for thread in threading.enumerate())
    node.destroy_node()
    world.destroy_node()


@pytest.mark.parametrize(("arguments", "simulated"), [([], False), (["--ros-args", "-r", "/clock:=/other_clock"], True)])
def test_nothing_is_heard_apart_where_there_is_no_such_clock(ros_domain_id: int, arguments: list[str], simulated: bool) -> None:
    rclpy.init(args=arguments)
    node = Node("awake", parameter_overrides=[Parameter("use_sim_time", value=simulated)])
    try:
        assert hear_apart(node) is None
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
