"""The output `servo_pose`: the target pose itself, interpolated every tick, for MoveIt Servo of Jazzy and later.

Servo then follows our target instead of adding up velocities, so nothing drifts; it asks for a speed cap above the profile's.
"""

from __future__ import annotations

from collections.abc import Mapping

from geometry_msgs.msg import PoseStamped
from rclpy.duration import Duration
from rclpy.node import Node

from openvla_ros.action.command import Motion, Phase
from openvla_ros.action.pilot import Now
from openvla_ros.action.pose import to_quaternion
from openvla_ros.contract import Pose
from openvla_ros.robot import RobotProfile
from openvla_ros.ros.convert import NEWEST_RELIABLE, SECOND_NS, to_time
from openvla_ros.ros.outputs import other_publishers
from openvla_ros.ros.outputs.servo import POSE, Servo
from openvla_ros.ros.outputs.settings import SettingsReader

HALT_S = 0.1
"""In silence MoveIt Servo halts after so long."""


class LastPose:
    """A pose is a command to go there, also at rest. So at rest only the pose that Servo holds already is said again."""

    def __init__(self) -> None:
        self._pose: Pose | None = None
        self._said_ns = 0

    def next(self, motion: Motion, tick_ns: int) -> Pose | None:
        """What to publish at this tick; None: nothing, because Servo has halted, and an old pose would set the arm moving again."""
        if motion.phase is not Phase.ZEROS:
            self._pose = motion.target
        elif self._pose is not None and tick_ns - self._said_ns > HALT_S * SECOND_NS:
            self._pose = None
        self._said_ns = tick_ns
        return self._pose


class ServoPose:
    """An Output. In silence MoveIt Servo halts after HALT_S."""

    def __init__(self, node: Node, profile: RobotProfile) -> None:
        described = profile.outputs[profile.output]
        settings = SettingsReader(described.settings, "output 'servo_pose'")
        self._node, self._frame_id, self._last = node, profile.base_frame, LastPose()
        self._servo = Servo(node, settings, POSE, releases=("jazzy",))
        settings.finish()
        self._poses = node.create_publisher(PoseStamped, described.command_topic, NEWEST_RELIABLE)

    @property
    def topic(self) -> str:
        """The topic of the poses."""
        return str(self._poses.topic_name)

    def prepare(self) -> None:
        """Switch Servo to poses and let it run."""
        self._servo.prepare()

    def send(self, motion: Motion, now: Now) -> None:
        """Publish where to be at the end of the tick. The stamp is the time of sending, which Servo compares with its own."""
        pose = self._last.next(motion, now.tick_ns)
        if pose is None:
            return
        message = PoseStamped()
        message.header.stamp, message.header.frame_id = to_time(now.ros_ns), self._frame_id
        position, orientation = message.pose.position, message.pose.orientation
        position.x, position.y, position.z = map(float, pose.position_m)
        orientation.x, orientation.y, orientation.z, orientation.w = map(float, to_quaternion(pose))
        self._poses.publish(message)

    def rivals(self) -> list[str]:
        """Other publishers of the poses."""
        return other_publishers(self._node, self.topic)

    def trouble(self) -> str:
        """A halt that Servo reports."""
        return self._servo.trouble()

    def health(self) -> Mapping[str, object]:
        """How many listen, and what Servo says."""
        return {"listeners": self._poses.get_subscription_count(), **self._servo.health()}

    def flush(self, wait: Duration) -> None:
        """Wait until every listener has them."""
        self._poses.wait_for_all_acked(wait)
