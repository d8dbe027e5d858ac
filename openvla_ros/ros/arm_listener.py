"""What the arm says about itself: its newest joint states, and the URDF that they are measured with."""

from __future__ import annotations

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState
from std_msgs.msg import String

from openvla_ros.action.kinematics import Kinematics
from openvla_ros.contract import RobotState
from openvla_ros.errors import ConfigurationError, StateError
from openvla_ros.robot import Arm, RobotProfile
from openvla_ros.ros.convert import LATCHED, to_robot_state

NEWEST_STATES = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT,
                           durability=DurabilityPolicy.VOLATILE)
"""Heard from every kind of publisher; a lost one is followed by the next."""


class ArmListener:
    """Listens for one arm. Without a publisher there is no state, and with a wrong URDF there is trouble; the arm then stays in HOLD."""

    def __init__(self, node: Node, profile: RobotProfile, arm: Arm, urdf_text: str) -> None:
        """urdf_text: the profile's own, or empty.

        Raises ConfigurationError when the profile's own URDF does not fit it, DependencyMissing without pinocchio.
        """
        self._node, self._profile, self._arm = node, profile, arm
        self.kinematics = self._read(urdf_text) if urdf_text else None  # of the newest usable URDF
        self.state: RobotState | None = None
        self.trouble = ""  # what is wrong with robot_description or with the shape of the joint states
        self._urdf = urdf_text
        node.create_subscription(JointState, "joint_states", self._on_state, NEWEST_STATES)
        node.create_subscription(String, "robot_description", self._on_description, LATCHED)

    def _on_state(self, message: JointState) -> None:
        try:
            self.state = to_robot_state(message)
        except StateError as error:
            self.state = None
            self._node.get_logger().warning(str(error), throttle_duration_sec=5.0)

    def _on_description(self, message: String) -> None:
        if message.data == self._urdf:
            return
        try:
            self.kinematics = self._read(message.data)
            self._urdf, self.trouble = message.data, ""
            self._node.get_logger().info("took the arm's URDF from robot_description")
        except ConfigurationError as error:
            self.trouble = f"robot_description cannot be used: {error}"
            self._node.get_logger().error(self.trouble)

    def _read(self, urdf_text: str) -> Kinematics:
        """Links may carry the name of this robot instead of the profile's: left/ee_gripper_link, where base_frame is left/base_link."""
        prefix = self._profile.base_frame.rpartition("/")[0]
        link = self._arm.ee_link
        renamed = f"{prefix}/{link.rpartition('/')[2]}" if prefix else link
        base = self._profile.base_frame
        return Kinematics(urdf_text, renamed if f'"{renamed}"' in urdf_text else link, self._arm.joints,
                          base if f'"{base}"' in urdf_text else "")
