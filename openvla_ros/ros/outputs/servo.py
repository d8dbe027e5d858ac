"""What MoveIt Servo needs before it moves an arm, and how it says that it will not. Shared by servo_twist and servo_pose.

Servo's services and status differ between Humble and Jazzy, and so do the meanings of its status codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile
from std_msgs.msg import Int8
from std_srvs.srv import SetBool, Trigger

from openvla_ros.errors import DependencyMissing, HandoffRefused
from openvla_ros.ros.outputs.errand import Conversation, Errand, Question
from openvla_ros.ros.outputs.settings import SettingsReader

RELEASES = ("none", "humble", "jazzy")
"""Which Servo listens. none: something else does, which needs no call and gives no status. jazzy: also everything later."""

HALTS: Mapping[str, Mapping[int, str]] = {
    "none": {},
    "humble": {2: "it halted before a singularity", 4: "it halted before a collision"},
    "jazzy": {2: "it halted before a singularity", 5: "it halted before a collision"},
}
"""Status code -> what it means. On Humble 5 is a joint at its bound, which on both releases only says that one joint waits."""

TWIST, POSE = 1, 2
"""Command types of Servo since Jazzy (moveit_msgs/srv/ServoCommandType)."""


class Servo:
    """The way to one servo_node. Raises DependencyMissing when Jazzy's messages are not installed."""

    def __init__(self, node: Node, settings: SettingsReader, command_type: int, releases: tuple[str, ...] = RELEASES) -> None:
        self._release = settings.choice("servo", releases[0], releases)
        name = settings.text("servo_node", "servo_node")
        self._remedy = f"Start MoveIt Servo ({self._release}) as {name}, or set 'servo' and 'servo_node' in the robot profile."
        self._command_type = command_type
        self._status = 0
        if self._release == "jazzy":
            message, self._service = _jazzy()
            self._switch = node.create_client(self._service, f"{name}/switch_command_type")
            self._pause = node.create_client(SetBool, f"{name}/pause_servo")
            self._errand = Errand(self._set_up_jazzy)
            node.create_subscription(message, f"{name}/status", self._on_status, QoSProfile(depth=10))
        elif self._release == "humble":
            self._start = node.create_client(Trigger, f"{name}/start_servo")
            self._errand = Errand(self._set_up_humble)
            node.create_subscription(Int8, f"{name}/status", self._on_status, QoSProfile(depth=10))
        else:
            self._errand = Errand(_nothing)

    def prepare(self) -> None:
        """Let Servo listen to our commands. Raises HandoffRefused while it does not, or while it says that it halts."""
        if trouble := self.trouble():
            raise HandoffRefused(trouble)
        self._errand.require()

    def trouble(self) -> str:
        """What Servo's newest status says, when it halts; it says NO_WARNING again as soon as it need not."""
        meaning = HALTS[self._release].get(self._status)
        return f"MoveIt Servo reports status {self._status}: {meaning}. Move the arm away from there first." if meaning else ""

    def health(self) -> Mapping[str, object]:
        """Which Servo is expected, and its newest status code."""
        return {"servo": self._release} if self._release == "none" else {"servo": self._release, "servo_status": self._status}

    def _on_status(self, message: Any) -> None:
        self._status = message.code if self._release == "jazzy" else message.data

    def _set_up_jazzy(self) -> Conversation:
        switched = yield Question(self._switch, self._service.Request(command_type=self._command_type), self._remedy)
        if not switched.success:
            raise HandoffRefused(f"MoveIt Servo did not switch to command type {self._command_type}. See its log.")
        unpaused = yield Question(self._pause, SetBool.Request(data=False), self._remedy)
        if not unpaused.success:
            raise HandoffRefused(f"MoveIt Servo did not leave its pause: {unpaused.message or 'it gave no reason'}.")

    def _set_up_humble(self) -> Conversation:
        started = yield Question(self._start, Trigger.Request(), self._remedy)
        if not started.success:
            raise HandoffRefused(f"MoveIt Servo did not start: {started.message or 'it gave no reason'}.")


def _nothing() -> Conversation:
    yield from ()


def _jazzy() -> tuple[Any, Any]:
    try:
        from moveit_msgs.msg import ServoStatus
        from moveit_msgs.srv import ServoCommandType
    except ImportError as error:
        raise DependencyMissing("MoveIt Servo of Jazzy is spoken to with moveit_msgs, which is not installed: apt install "
                                "ros-$ROS_DISTRO-moveit-msgs, or choose another output.") from error
    return ServoStatus, ServoCommandType
