"""The output `trajectory`: trajectory_msgs/JointTrajectory for a joint_trajectory_controller of ros2_control, on its topic.

One message per step, to its end and to rest; a stop is a short trajectory too. Nothing reaches further than 1 s ahead, so a longer step
is one message per tick. header.stamp is zero, which means now. Nothing needs to be set up: that the controller follows is seen in the
joint states, and command_node watches those.
"""

from __future__ import annotations

from collections.abc import Mapping

from rclpy.duration import Duration
from rclpy.node import Node
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from openvla_ros.action.command import Motion
from openvla_ros.action.pilot import Now
from openvla_ros.action.trajectory import LastMotion, TrajectoryPlanner
from openvla_ros.errors import ConfigurationError, HandoffRefused
from openvla_ros.robot import RobotProfile
from openvla_ros.ros.convert import NEWEST_RELIABLE, SECOND_NS, to_duration
from openvla_ros.ros.outputs import other_publishers
from openvla_ros.ros.outputs.settings import SettingsReader


class Trajectory:
    """An Output."""

    def __init__(self, node: Node, profile: RobotProfile) -> None:
        described = profile.outputs[profile.output]
        SettingsReader(described.settings, "output 'trajectory'").finish()
        if profile.arm is None:
            raise ConfigurationError("output 'trajectory' commands joints; describe them under 'arm'.")
        self._node, self._joints = node, list(profile.arm.joints)
        self._planner = TrajectoryPlanner(profile.limits.longest_ramp_s)
        self._motion = LastMotion()
        self._trajectories = node.create_publisher(JointTrajectory, described.command_topic, NEWEST_RELIABLE)
        self._sent = 0

    @property
    def topic(self) -> str:
        """The topic of the trajectories."""
        return str(self._trajectories.topic_name)

    def prepare(self) -> None:
        """Somebody must listen: a controller that is not active does not."""
        if not self._trajectories.get_subscription_count():
            raise HandoffRefused(f"nobody listens on {self.topic}. Start the controllers with config/ros2_control/wx250s_controllers.yaml.")

    def send(self, motion: Motion, now: Now) -> None:
        """Publish a trajectory when the one before no longer says where the arm is to go. Long after a motion a stop needs none."""
        now_s = now.tick_ns / SECOND_NS
        if not self._motion.is_recent(now_s, motion.tells) or motion.joints is None:
            return
        points = self._planner.plan(now_s, motion.ahead or ((0.0, motion.joints),))
        if points:
            self._sent += 1
            self._trajectories.publish(JointTrajectory(joint_names=self._joints, points=[
                JointTrajectoryPoint(positions=point.positions.tolist(), velocities=point.velocities.tolist(),
                                     time_from_start=to_duration(point.time_s)) for point in points]))

    def rivals(self) -> list[str]:
        """Other publishers of trajectories. Goals of the controller's action are not seen."""
        return other_publishers(self._node, self.topic)

    def trouble(self) -> str:
        """Nothing is heard back."""
        return ""

    def health(self) -> Mapping[str, object]:
        """How many listen, how many messages were sent, and how much later than its path the arm rests."""
        return {"listeners": self._trajectories.get_subscription_count(), "trajectories_sent": self._sent,
                "smoothing_s": f"{self._planner.window_s:.3f}"}

    def flush(self, wait: Duration) -> None:
        """Wait until the controller has them."""
        self._trajectories.wait_for_all_acked(wait)
