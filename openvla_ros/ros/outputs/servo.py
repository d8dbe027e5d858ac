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

RELEASES = ("auto", "none", "humble", "jazzy")
"""Which Servo listens. jazzy: also everything later. none: something else does, which needs no call and gives no status. auto: whichever
of Servo's services are there when somebody is to drive; none, as long as none are."""

HALTS: Mapping[str, Mapping[int, str]] = {
    "auto": {},
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
        self._node, self._name = node, settings.text("servo_node", "servo_node")
        self._command_type = command_type
        self._status = 0
        self._errand: Errand | None = None  # none: nothing is to be set up
        self._connect()

    def prepare(self) -> None:
        """Let Servo listen to our commands. Raises HandoffRefused while it does not, or while it says that it halts."""
        if self._release == "auto":
            self._release = self._found()
            self._connect()
        if trouble := self.trouble():
            raise HandoffRefused(trouble)
        if self._errand is not None:
            self._errand.require()

    def trouble(self) -> str:
        """What Servo's newest status says, when it halts; it says NO_WARNING again as soon as it need not. Or that it came late."""
        if self._release == "auto" and self._found() != "auto":
            return "MoveIt Servo came after the driver was chosen. Choose again, so that it is set up."
        meaning = HALTS[self._release].get(self._status)
        return f"MoveIt Servo reports status {self._status}: {meaning}. Move the arm away from there first." if meaning else ""

    def health(self) -> Mapping[str, object]:
        """Which Servo is expected, and its newest status code."""
        return {"servo": self._release} if self._errand is None else {"servo": self._release, "servo_status": self._status}

    def _found(self) -> str:
        """The release whose services are there; auto while none are."""
        there = {name for name, _ in self._node.get_service_names_and_types()}
        for release, service in (("jazzy", "switch_command_type"), ("humble", "start_servo")):
            if self._node.resolve_service_name(f"{self._name}/{service}") in there:
                return release
        return "auto"

    def _connect(self) -> None:
        if self._release == "jazzy":
            message, self._service = _jazzy()
            self._switch = self._node.create_client(self._service, f"{self._name}/switch_command_type")
            self._pause = self._node.create_client(SetBool, f"{self._name}/pause_servo")
            self._errand = Errand(self._set_up_jazzy)
        elif self._release == "humble":
            message = Int8
            self._start = self._node.create_client(Trigger, f"{self._name}/start_servo")
            self._errand = Errand(self._set_up_humble)
        else:
            return
        self._remedy = f"Start MoveIt Servo ({self._release}) as {self._name}, or set 'servo' and 'servo_node' in the robot profile."
        self._node.create_subscription(message, f"{self._name}/status", self._on_status, QoSProfile(depth=10))

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


def _jazzy() -> tuple[Any, Any]:
    try:
        from moveit_msgs.msg import ServoStatus
        from moveit_msgs.srv import ServoCommandType
    except ImportError as error:
        raise DependencyMissing("MoveIt Servo of Jazzy is spoken to with moveit_msgs, which is not installed: apt install "
                                "ros-$ROS_DISTRO-moveit-msgs, or choose another output, or set 'servo: none'.") from error
    return ServoStatus, ServoCommandType
