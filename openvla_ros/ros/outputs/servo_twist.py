"""The output `servo_twist`: TwistStamped in m/s and rad/s, stamped with the time of sending."""

from __future__ import annotations

from collections.abc import Mapping

from geometry_msgs.msg import TwistStamped
from rclpy.duration import Duration
from rclpy.node import Node

from openvla_ros.action.command import Motion
from openvla_ros.action.pilot import Now
from openvla_ros.robot import RobotProfile
from openvla_ros.ros.convert import NEWEST_RELIABLE
from openvla_ros.ros.convert_command import to_twist_message
from openvla_ros.ros.outputs import other_publishers
from openvla_ros.ros.outputs.servo import TWIST, Servo
from openvla_ros.ros.outputs.settings import SettingsReader


class ServoTwist:
    """An Output. Says zeros as often as it is given them; in silence MoveIt Servo halts after 0.1 s."""

    def __init__(self, node: Node, profile: RobotProfile) -> None:
        described = profile.outputs[profile.output]
        settings = SettingsReader(described.settings, "output 'servo_twist'")
        self._node, self._frame_id = node, profile.base_frame
        self._servo = Servo(node, settings, TWIST)
        settings.finish()
        self._twists = node.create_publisher(TwistStamped, described.command_topic, NEWEST_RELIABLE)

    @property
    def topic(self) -> str:
        """The topic of the twists."""
        return str(self._twists.topic_name)

    def prepare(self) -> None:
        """Let Servo run, and switch it to twists where it has more than one kind of command."""
        self._servo.prepare()

    def send(self, motion: Motion, now: Now) -> None:
        """Publish the mean velocity of the tick."""
        self._twists.publish(to_twist_message(motion.twist, now.ros_ns, self._frame_id))

    def rivals(self) -> list[str]:
        """Other publishers of the twists."""
        return other_publishers(self._node, self.topic)

    def trouble(self) -> str:
        """A halt that Servo reports."""
        return self._servo.trouble()

    def health(self) -> Mapping[str, object]:
        """How many listen, and what Servo says."""
        return {"listeners": self._twists.get_subscription_count(), **self._servo.health()}

    def flush(self, wait: Duration) -> None:
        """Wait until every listener has them."""
        self._twists.wait_for_all_acked(wait)
