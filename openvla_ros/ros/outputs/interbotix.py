"""The output `interbotix`: joint positions for the driver xs_sdk, on commands/joint_group, at the rate of the ticks.

The driver checks no limits, so none may be left to it. Its motors plan every goal over `profile_velocity_ms`, which smooths the
stream and delays it; so long the arm goes on after the last command. Mode and profile are checked before anybody may drive.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import QoSProfile

from openvla_ros.action.command import Motion
from openvla_ros.action.pilot import Now
from openvla_ros.action.trajectory import LastGoal
from openvla_ros.errors import ConfigurationError, DependencyMissing, HandoffRefused
from openvla_ros.robot import RobotProfile
from openvla_ros.ros.convert import SECOND_NS
from openvla_ros.ros.outputs import other_publishers
from openvla_ros.ros.outputs.errand import Conversation, Errand, Question
from openvla_ros.ros.outputs.settings import SettingsReader

MODES_FILE = "config/interbotix/wx250s_modes.yaml"
REMEDY = "Start the Interbotix driver in this namespace (xsarm_control.launch.py)."


def driver_messages() -> Any:
    """The package interbotix_xs_msgs. Raises DependencyMissing."""
    try:
        import interbotix_xs_msgs.msg
        import interbotix_xs_msgs.srv
    except ImportError as error:
        raise DependencyMissing("the Interbotix driver is spoken to with interbotix_xs_msgs, which is not installed: build it from "
                                "github.com/Interbotix/interbotix_ros_core in your workspace, or choose another output.") from error
    return interbotix_xs_msgs


class Interbotix:
    """An Output. Raises DependencyMissing without interbotix_xs_msgs."""

    def __init__(self, node: Node, profile: RobotProfile) -> None:
        described = profile.outputs[profile.output]
        settings = SettingsReader(described.settings, "output 'interbotix'")
        self._group = settings.text("group", "arm")
        velocity_ms = settings.whole("profile_velocity_ms", 250, 20, 1000)  # both as BridgeData was recorded, for steps of 200 ms
        acceleration_ms = settings.whole("profile_acceleration_ms", 100, 10, 500)
        settings.finish()
        if acceleration_ms * 2 > velocity_ms:
            raise ConfigurationError(f"output 'interbotix' has profile_acceleration_ms {acceleration_ms}, expected at most half of "
                                     f"profile_velocity_ms {velocity_ms}.")
        self._registers = {"Profile_Velocity": velocity_ms, "Profile_Acceleration": acceleration_ms}
        if profile.arm is None:
            raise ConfigurationError("output 'interbotix' commands joints; describe them under 'arm'.")
        self._joints = list(profile.arm.joints)
        self._node, messages = node, driver_messages()
        self._message, self._services = messages.msg.JointGroupCommand, messages.srv
        self._commands = node.create_publisher(self._message, described.command_topic, QoSProfile(depth=1))
        self._rival_topics = [self.topic, node.resolve_topic_name("commands/joint_trajectory")]
        self._info = node.create_client(self._services.RobotInfo, "get_robot_info")
        self._get = node.create_client(self._services.RegisterValues, "get_motor_registers")
        self._set = node.create_client(self._services.RegisterValues, "set_motor_registers")
        self._errand = Errand(self._set_up)
        self._goal = LastGoal()

    @property
    def topic(self) -> str:
        """The topic of the joint positions."""
        return str(self._commands.topic_name)

    def prepare(self) -> None:
        """Check the driver's mode, set its profile. Never changes a mode: that switches the torque off and drops the arm."""
        self._errand.require()

    def send(self, motion: Motion, now: Now) -> None:
        """Publish where the joints are to be at the end of the tick. At rest nothing: a goal that is said again is planned anew."""
        if motion.joints is not None and self._goal.is_news(now.tick_ns / SECOND_NS, motion.joints, motion.tells):
            self._commands.publish(self._message(name=self._group, cmd=motion.joints.tolist()))

    def rivals(self) -> list[str]:
        """Other publishers of joint positions, or of the driver's own kind of trajectories."""
        return sorted({name for topic in self._rival_topics for name in other_publishers(self._node, topic)})

    def trouble(self) -> str:
        """The driver says nothing by itself."""
        return ""

    def health(self) -> Mapping[str, object]:
        """How many listen, and the profile that was asked for."""
        return {"listeners": self._commands.get_subscription_count(), "profile_velocity_ms": self._registers["Profile_Velocity"],
                "profile_acceleration_ms": self._registers["Profile_Acceleration"]}

    def flush(self, wait: Duration) -> None:
        """Wait until the driver has them."""
        self._commands.wait_for_all_acked(wait)

    def _set_up(self) -> Conversation:
        info = yield Question(self._info, self._services.RobotInfo.Request(cmd_type="group", name=self._group), REMEDY)
        if list(info.joint_names) != self._joints:
            raise HandoffRefused(f"the driver's group {self._group!r} has the joints {list(info.joint_names)}, the profile "
                                 f"{self._joints}. Choose the profile of this arm.")
        if (info.mode, info.profile_type) != ("position", "time"):
            raise HandoffRefused(f"the driver's group {self._group!r} is in mode {info.mode!r} with profile type {info.profile_type!r}, "
                                 f"expected 'position' and 'time'. Start the driver with mode_configs:={MODES_FILE}; changing a mode now "
                                 "would drop the arm.")
        torque = yield self._ask("Torque_Enable")
        if not all(torque.values):
            raise HandoffRefused("the torque of the arm is off. Support the arm, then call torque_enable.")
        for register, wanted in self._registers.items():
            if set((yield self._ask(register)).values) == {wanted}:
                continue
            yield Question(self._set, self._services.RegisterValues.Request(
                cmd_type="group", name=self._group, reg=register, value=wanted), REMEDY)
            values = list((yield self._ask(register)).values)
            if set(values) != {wanted}:
                raise HandoffRefused(f"the driver's register {register} is {values} after it was set to {wanted}. See the driver's log.")

    def _ask(self, register: str) -> Question:
        return Question(self._get, self._services.RegisterValues.Request(cmd_type="group", name=self._group, reg=register), REMEDY)
