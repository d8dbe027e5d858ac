"""A topic that is heard beside the executor."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("rclpy", reason="needs ROS")
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from std_msgs.msg import String

from openvla_ros.ros.ear import Ear

pytestmark = pytest.mark.ros

DEADLINE_S = 30.0
QUALITY = QoSProfile(depth=1)


@pytest.fixture
def node(ros_domain_id: int) -> Iterator[Node]:
    rclpy.init()
    made = Node("listener")
    yield made
    made.destroy_node()
    rclpy.try_shutdown()


def until(good: Callable[[], object], what: str, meanwhile: Callable[[], object] = lambda: None) -> None:
    end = time.monotonic() + DEADLINE_S
    while not good():
        assert time.monotonic() < end, f"waited for: {what}"
        meanwhile()
        time.sleep(0.02)


def test_every_message_comes_on_the_ears_own_thread_and_none_through_the_executor(node: Node) -> None:
    heard: list[tuple[str, str]] = []
    ear = Ear(node, String, "words", QUALITY, lambda message: heard.append((message.data, threading.current_thread().name)))
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    spinning = threading.Thread(target=executor.spin, daemon=True)
    spinning.start()
    speaker = node.create_publisher(String, "words", QUALITY)
    until(speaker.get_subscription_count, "the ear to be found")
    for number in range(20):
        speaker.publish(String(data=str(number)))
        until(lambda: heard and heard[-1][0] == str(number), f"word {number}")  # noqa: B023 - called before the next number
    assert heard == [(str(number), "words") for number in range(20)]
    executor.shutdown()
    spinning.join(DEADLINE_S)
    ear.close()


def test_it_is_in_the_graph_until_it_is_closed(node: Node) -> None:
    ear = Ear(node, String, "words", QUALITY, lambda message: None)
    assert [info.node_name for info in node.get_subscriptions_info_by_topic("/words")] == ["listener"]
    ear.close()
    assert not any(thread.name == "words" for thread in threading.enumerate())
    until(lambda: not node.get_subscriptions_info_by_topic("/words"), "the subscription to leave")
    assert ear.failure is None


def test_what_the_callback_raises_is_kept_and_ends_it(node: Node) -> None:
    def refuse(message: String) -> None:
        raise ValueError(message.data)

    ear = Ear(node, String, "words", QUALITY, refuse)
    speaker = node.create_publisher(String, "words", QUALITY)
    until(lambda: ear.failure, "the failure", lambda: speaker.publish(String(data="no")))
    assert isinstance(ear.failure, ValueError) and str(ear.failure) == "no"
    until(lambda: not any(thread.name == "words" for thread in threading.enumerate()), "the thread to end")
    ear.close()


def test_it_ends_with_its_context(ros_domain_id: int) -> None:
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=ros_domain_id)
    node = Node("listener", context=context)
    ear = Ear(node, String, "words", QUALITY, lambda message: None)
    rclpy.shutdown(context=context)
    until(lambda: not any(thread.name == "words" for thread in threading.enumerate()), "the thread to end")
    assert ear.failure is None
