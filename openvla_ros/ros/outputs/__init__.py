"""How commands reach an arm: one file per output, behind one shape. Comes in: a Motion per tick; goes out: messages and services.

Nothing is judged here: what comes in has passed the safety chain. An output knows its consumer, what must be set up before the
arm may move, and how the consumer says that it does not listen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from rclpy.duration import Duration
from rclpy.node import Node

from openvla_ros.action.command import Motion
from openvla_ros.action.pilot import Now
from openvla_ros.robot import RobotProfile


class Output(Protocol):
    """The way to one arm. Made at start-up; every method but `flush` is called on the node's only executor thread, and must not wait."""

    @property
    def topic(self) -> str:
        """The full name of the topic that moves the arm."""

    def prepare(self) -> None:
        """Called whenever somebody is to drive. Raises HandoffRefused with the reason while the arm cannot be moved.

        What takes time (a service call) is begun here, refused with "not ready yet", and found done at the next call.
        """

    def send(self, motion: Motion, now: Now) -> None:
        """One tick. Between two motions there may be silence."""

    def rivals(self) -> list[str]:
        """Full names of the nodes that publish on the arm's topic besides this one."""

    def trouble(self) -> str:
        """Why nobody may drive any more, such as a halt that the consumer reported; empty when all is well."""

    def health(self) -> Mapping[str, object]:
        """Numbers and words for diagnostics."""

    def flush(self, wait: Duration) -> None:
        """The last call: end what would not end by itself, and wait until everything has arrived, at most so long."""


def make_output(node: Node, profile: RobotProfile) -> Output:
    """The output that the profile names, with its gripper.

    Raises ConfigurationError for settings that it cannot take, DependencyMissing when its messages are not installed.
    """
    from openvla_ros.ros.outputs.gripper import with_gripper
    from openvla_ros.ros.outputs.interbotix import Interbotix
    from openvla_ros.ros.outputs.servo_pose import ServoPose
    from openvla_ros.ros.outputs.servo_twist import ServoTwist
    from openvla_ros.ros.outputs.trajectory import Trajectory

    makers: Mapping[str, Callable[[Node, RobotProfile], Output]] = {
        "interbotix": Interbotix, "trajectory": Trajectory, "servo_twist": ServoTwist, "servo_pose": ServoPose}
    return with_gripper(node, profile, makers[profile.output](node, profile))


def other_publishers(node: Node, topic: str) -> list[str]:
    """Full names of the nodes that publish on a topic, without one publisher of this node."""
    names = [f"{info.node_namespace.rstrip('/')}/{info.node_name}" for info in node.get_publishers_info_by_topic(topic)]
    own = node.get_fully_qualified_name()
    if own in names:
        names.remove(own)
    return sorted(names)
