"""What belongs into a recording is found among what is there, and each topic is heard once, whatever its publishers offer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import monotonic, sleep
from typing import Any

import pytest
import rclpy
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import String

from openvla_ros.bags.sample import Offer
from openvla_ros.errors import ConfigurationError
from openvla_ros.ros.recorder_topics import Choice, Ear, Quality, asked_of

pytestmark = pytest.mark.ros

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
VOLATILE = QoSProfile(depth=10)
RELIABLE_LATCHED, RELIABLE_VOLATILE, WEAK = Offer(durability=1), Offer(), Offer(reliability=2)


@pytest.fixture
def make(ros_domain_id: int) -> Iterator[Callable[..., Node]]:
    """make(name, namespace) -> a node of this process, in this test's domain."""
    rclpy.init()
    nodes: list[Node] = []

    def node(name: str, namespace: str = "/") -> Node:
        nodes.append(Node(name, namespace=namespace))
        return nodes[-1]

    yield node
    for one in nodes:
        one.destroy_node()
    rclpy.shutdown()


def settled(seen: Callable[[], Any], wanted: Any) -> None:
    """Discovery takes its time, also within a process."""
    until_s = monotonic() + 30.0
    while seen() != wanted and monotonic() < until_s:
        sleep(0.01)
    assert seen() == wanted


def names(choice: Choice, node: Node) -> set[str]:
    return {name for name, _ in choice.of(node)}


def test_the_usual_topics_and_those_of_our_nodes_under_the_names_they_were_given(make: Callable[..., Node]) -> None:
    recorder, world = make("recorder", "/left"), make("world", "/left")
    for kind, topic in ((CompressedImage, "image/compressed"), (Image, "image"), (Image, "wrist/image_raw"), (JointState, "joint_states"),
                        (JointState, "arm/joint_commands"), (String, "instruction"), (String, "said"), (String, "/instruction"),
                        (String, "_hidden/said"), (Clock, "/clock"), (String, "/rosout_like")):
        world.create_publisher(kind, topic, 10)
    usual = {"/left/image/compressed", "/left/joint_states", "/left/instruction", "/parameter_events"}
    settled(lambda: names(Choice(), recorder), usual)
    assert names(Choice(topics=("said", "/clock")), recorder) == usual | {"/left/said", "/clock"}
    assert names(Choice(image_topics=("image", "wrist/image_raw")), recorder) == usual - {"/left/image/compressed"} | {
        "/left/image", "/left/wrist/image_raw"}
    assert names(Choice(exclude="joint|^/param"), recorder) == {"/left/image/compressed", "/left/instruction"}
    assert names(Choice(everything=True, exclude="arm"), recorder) == usual | {
        "/left/image", "/left/wrist/image_raw", "/left/said", "/instruction", "/rosout_like"}
    policy = make("policy_node", "/left")  # it looks at another camera, and was given another name for the instruction
    policy.create_subscription(Image, "wrist/image_raw", print, 10)
    policy.create_subscription(String, "said", print, 10)
    settled(lambda: names(Choice(), recorder), usual - {"/left/image/compressed"} | {"/left/wrist/image_raw", "/left/said"})


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"--exclude '\[' is no regular expression"):
        Choice(exclude="[")


@pytest.mark.parametrize(("offers", "asked"), [
    ([RELIABLE_VOLATILE], [Quality(True, False)]),
    ([WEAK], [Quality(False, False)]),
    ([RELIABLE_VOLATILE, WEAK], [Quality(False, False)]),
    ([RELIABLE_LATCHED], [Quality(True, True)]),
    ([RELIABLE_LATCHED, RELIABLE_VOLATILE], [Quality(True, True), Quality(True, False)]),
    ([RELIABLE_LATCHED, WEAK], [Quality(True, True), Quality(False, False)]),
])
def test_what_is_asked_for_hears_every_publisher(offers: list[Offer], asked: list[Quality]) -> None:
    assert asked_of(offers) == asked


def test_what_was_latched_and_what_comes_is_heard_once(make: Callable[..., Node]) -> None:
    """One publisher latches and another does not, which comes later: the subscription is made anew, and hears the latched one again."""
    recorder, world = make("recorder"), make("world")
    latched = world.create_publisher(String, "/instruction", LATCHED)
    latched.publish(String(data="before"))
    heard: list[str] = []

    def hear(source: Any, data: bytes, info: Any) -> None:
        heard.append(next(text for text in ("before", "volatile", "after") if data[:len(said(text))] == said(text)))

    settled(lambda: recorder.count_publishers("/instruction"), 1)
    ear = Ear(recorder, "/instruction", "std_msgs/msg/String", String, hear)
    spin(recorder, lambda: heard == ["before"])
    volatile = world.create_publisher(String, "/instruction", VOLATILE)
    spin(recorder, lambda: (ear.adapt(), len(ear.source.offers) == 2)[1] and volatile.get_subscription_count() == 1)
    spin(recorder, lambda: latched.get_subscription_count() == 2)
    volatile.publish(String(data="volatile"))
    spin(recorder, lambda: "volatile" in heard)
    latched.publish(String(data="after"))
    spin(recorder, lambda: "after" in heard)
    spin(recorder, lambda: False, seconds=0.3)  # a second copy would come now
    assert heard == ["before", "volatile", "after"] and ear.heard == 3


def said(text: str) -> bytes:
    return bytes(serialize_message(String(data=text)))


def spin(node: Node, found: Callable[[], bool], seconds: float = 30.0) -> None:
    until_s = monotonic() + seconds
    while not found() and monotonic() < until_s:
        rclpy.spin_once(node, timeout_sec=0.02)
    assert found() or seconds < 1.0


def test_messages_that_were_lost_on_the_way_are_counted(make: Callable[..., Node]) -> None:
    recorder, world = make("recorder"), make("world")
    publisher = world.create_publisher(String, "/words", QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT))
    settled(lambda: recorder.count_publishers("/words"), 1)
    heard: list[bytes] = []
    ear = Ear(recorder, "/words", "std_msgs/msg/String", String, lambda source, data, info: heard.append(data))
    say_until_heard(publisher, recorder, heard, "first")
    before = len(heard)
    for _ in range(500):  # more than the middleware keeps while nobody takes them
        publisher.publish(String(data="many"))
    sent = 500 + say_until_heard(publisher, recorder, heard, "last")
    if not ear.lost:
        pytest.skip("this middleware does not number what a publisher sends")
    assert ear.lost + len(heard) - before == sent


def say_until_heard(publisher: Any, node: Node, heard: list[bytes], text: str) -> int:
    """How often it had to be said, numbered, until the newest was heard."""
    for times in range(1, 100):
        data = said(f"{text} {times}")
        publisher.publish(String(data=f"{text} {times}"))
        spin(node, lambda data=data: any(one[:len(data)] == data for one in heard), seconds=0.9)
        if any(one[:len(data)] == data for one in heard):
            return times
    raise AssertionError(f"{text!r} was never heard")
